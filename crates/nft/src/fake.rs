//! Rule sets in memory, and a tracer that tells what becomes of a packet: for tests of what makes
//! rule sets, through the only thing about them that matters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::conntrack::Flow;
use crate::{
    Elements, Error, Family, Field, HookKind, HookPoint, Key, LOCAL, Nftables, Reject, Result, RuleSet, Statement,
    Verdict, address_bytes, batch, ct_state, ct_status, link_bytes,
};

/// An imaginary machine's nf_tables.
#[derive(Default)]
pub struct Fake {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tables: BTreeMap<(Family, String), RuleSet>,
    remembered: BTreeSet<(String, Key)>,
    flows: Vec<Flow>,
    transactions: usize,
}

/// The first packet of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Transport protocol number.
    pub protocol: u8,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub port: u16,
    /// The link it comes in on; none when the machine itself makes it.
    pub input: Option<String>,
}

impl Packet {
    /// A TCP packet that comes in on a link.
    pub fn tcp(source: &str, destination: &str, port: u16, input: &str) -> Self {
        let address = |text: &str| text.parse().expect("an address");
        let (source, destination) = (address(source), address(destination));
        Self { source, destination, protocol: 6, source_port: 40000, port, input: Some(input.to_owned()) }
    }

    /// The same made by the machine itself.
    pub fn local(mut self) -> Self {
        self.input = None;
        self
    }

    /// The same over UDP.
    pub fn udp(mut self) -> Self {
        self.protocol = 17;
        self
    }
}

/// What the tracer has to know of the machine beside its rules.
pub struct Machine {
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// The link that a destination is reached over.
    pub route: fn(IpAddr) -> &'static str,
    /// What random choices yield: the choice among `n` is `random % n`.
    pub random: u32,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It reaches its destination.
    Delivered {
        /// Its destination then.
        to: (IpAddr, u16),
        /// Whether its source is now this machine.
        masqueraded: bool,
    },
    /// It is dropped.
    Dropped,
    /// It is answered with an error.
    Rejected(Reject),
}

struct Trip<'a> {
    machine: &'a Machine,
    packet: Packet,
    mark: u32,
    translated: bool,
    masqueraded: bool,
    output: String,
}

enum Fate {
    Continue,
    Return,
    Done,
    Outcome(Outcome),
}

impl Fake {
    /// Without tables.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A table, if it is there.
    pub fn table(&self, family: Family, name: &str) -> Option<RuleSet> {
        self.state().tables.get(&(family, name.to_owned())).cloned()
    }

    /// How many transactions there were.
    pub fn transactions(&self) -> usize {
        self.state().transactions
    }

    /// Adds a connection to those that can be forgotten.
    pub fn remember_flow(&self, flow: Flow) {
        self.state().flows.push(flow);
    }

    /// The connections that were not forgotten.
    pub fn flows(&self) -> Vec<Flow> {
        self.state().flows.clone()
    }

    /// What becomes of the first packet of a connection.
    pub fn trace(&self, machine: &Machine, packet: Packet) -> Outcome {
        let mut state = self.state();
        let output = (machine.route)(packet.destination).to_owned();
        let arrived = packet.input.is_some();
        let mut trip = Trip { machine, packet, mark: 0, translated: false, masqueraded: false, output };
        let first = if arrived { HookPoint::Prerouting } else { HookPoint::Output };
        if let Some(outcome) = trip.hook(&mut state, first) {
            return outcome;
        }
        let local = machine.addresses.contains(&trip.packet.destination);
        trip.output = (machine.route)(trip.packet.destination).to_owned();
        let rest: &[HookPoint] = match (arrived, local) {
            (true, true) => &[HookPoint::Input],
            (true, false) => &[HookPoint::Forward, HookPoint::Postrouting],
            (false, _) => &[HookPoint::Postrouting],
        };
        for point in rest {
            if let Some(outcome) = trip.hook(&mut state, *point) {
                return outcome;
            }
        }
        Outcome::Delivered { to: (trip.packet.destination, trip.packet.port), masqueraded: trip.masqueraded }
    }
}

impl Trip<'_> {
    fn hook(&mut self, state: &mut State, point: HookPoint) -> Option<Outcome> {
        let family = Family::of(self.packet.destination);
        let mut bases: Vec<_> = state
            .tables
            .values()
            .filter(|table| table.family == family)
            .flat_map(|table| {
                table.chains.iter().filter_map(|(name, chain)| {
                    let hook = chain.hook.filter(|hook| hook.point == point)?;
                    Some((hook, table.clone(), name.clone()))
                })
            })
            .collect();
        bases.sort_by_key(|(hook, ..)| hook.priority);
        let mut decided = false;
        for (hook, table, name) in bases {
            // The first translation decides for the connection.
            if hook.kind == HookKind::Nat && decided {
                continue;
            }
            let before = (self.translated, self.masqueraded);
            if let Fate::Outcome(outcome) = self.chain(state, &table, &name) {
                return Some(outcome);
            }
            decided |= hook.kind == HookKind::Nat && before != (self.translated, self.masqueraded);
        }
        None
    }

    fn chain(&mut self, state: &mut State, table: &RuleSet, name: &str) -> Fate {
        let chain = table.chains.get(name).unwrap_or_else(|| panic!("no chain {name}"));
        for rule in &chain.rules {
            for statement in &rule.statements {
                match self.statement(state, table, statement) {
                    None => break,
                    Some(Fate::Continue) => {}
                    Some(Fate::Return) => return Fate::Continue,
                    Some(fate) => return fate,
                }
            }
        }
        Fate::Continue
    }

    fn field(&self, field: Field) -> Vec<u8> {
        let kind = |address: IpAddr| {
            let local = self.machine.addresses.contains(&address);
            u32::to_ne_bytes(if local { LOCAL } else { 1 }).to_vec()
        };
        match field {
            Field::SourceAddress => address_bytes(self.packet.source),
            Field::DestinationAddress => address_bytes(self.packet.destination),
            Field::Protocol => vec![self.packet.protocol],
            Field::SourcePort => self.packet.source_port.to_be_bytes().to_vec(),
            Field::DestinationPort => self.packet.port.to_be_bytes().to_vec(),
            Field::Mark => self.mark.to_ne_bytes().to_vec(),
            Field::InputLink => link_bytes(self.packet.input.as_deref().unwrap_or("")),
            Field::OutputLink => link_bytes(&self.output),
            Field::ConnectionState => ct_state::NEW.to_ne_bytes().to_vec(),
            Field::ConnectionStatus => {
                u32::to_ne_bytes(if self.translated { ct_status::DNAT } else { 0 }).to_vec()
            }
            Field::SourceType => kind(self.packet.source),
            Field::DestinationType => kind(self.packet.destination),
        }
    }

    fn key(&self, fields: &[Field]) -> Key {
        fields.iter().fold(Key::new(), |key, field| key.bytes(&self.field(*field)))
    }

    fn bits(&self, field: Field) -> u32 {
        self.field(field).try_into().map(u32::from_ne_bytes).expect("a 32-bit field")
    }

    fn verdict(&mut self, state: &mut State, table: &RuleSet, verdict: &Verdict) -> Fate {
        match verdict {
            Verdict::Accept => Fate::Done,
            Verdict::Drop => Fate::Outcome(Outcome::Dropped),
            Verdict::Return => Fate::Return,
            Verdict::Jump(chain) => self.chain(state, table, chain),
            Verdict::Goto(chain) => match self.chain(state, table, chain) {
                Fate::Continue => Fate::Return,
                fate => fate,
            },
        }
    }

    fn in_range(&self, field: Field, address: IpAddr, bits: u8) -> bool {
        let (value, network) = (self.field(field), address_bytes(address));
        value.len() == network.len()
            && (0..usize::from(bits)).all(|bit| (value[bit / 8] ^ network[bit / 8]) & (0x80 >> (bit % 8)) == 0)
    }

    fn contains(&self, state: &State, table: &RuleSet, fields: &[Field], name: &str) -> bool {
        let key = self.key(fields);
        match &table.sets.get(name).unwrap_or_else(|| panic!("no set {name}")).elements {
            Elements::Keys(keys) => keys.contains_key(&key),
            Elements::Verdicts(verdicts) => verdicts.contains_key(&key),
            Elements::Dynamic(_) => state.remembered.contains(&(name.to_owned(), key)),
        }
    }

    /// `None` when the statement does not match.
    fn statement(&mut self, state: &mut State, table: &RuleSet, statement: &Statement) -> Option<Fate> {
        let matches = match statement {
            Statement::Is(field, bytes) => self.field(*field).starts_with(bytes),
            Statement::IsNot(field, bytes) => !self.field(*field).starts_with(bytes),
            Statement::HasBits(field, bits) => self.bits(*field) & bits != 0,
            Statement::HasNotBits(field, bits) => self.bits(*field) & bits == 0,
            Statement::In(field, address, bits) => self.in_range(*field, *address, *bits),
            Statement::NotIn(field, address, bits) => !self.in_range(*field, *address, *bits),
            Statement::InSet(key, set) => self.contains(state, table, key, set),
            Statement::NotInSet(key, set) => !self.contains(state, table, key, set),
            Statement::Map(key, map) => {
                let key = self.key(key);
                let Elements::Verdicts(verdicts) = &table.sets.get(map).unwrap_or_else(|| panic!("no map {map}")).elements
                else {
                    panic!("{map} is no map")
                };
                let verdict = verdicts.get(&key)?;
                return Some(self.verdict(state, table, verdict));
            }
            Statement::Remember(key, set, _) => {
                state.remembered.insert((set.clone(), self.key(key)));
                true
            }
            Statement::Mark { keep, flip } => {
                self.mark = (self.mark & keep) ^ flip;
                true
            }
            Statement::GotoRandom(chains) => {
                let chain = &chains[self.machine.random as usize % chains.len()];
                return Some(self.verdict(state, table, &Verdict::Goto(chain.clone())));
            }
            Statement::Dnat(targets) => {
                let (address, port) = targets[self.machine.random as usize % targets.len()];
                (self.packet.destination, self.packet.port) = (address, port);
                self.translated = true;
                return Some(Fate::Done);
            }
            Statement::Masquerade => {
                self.masqueraded = true;
                return Some(Fate::Done);
            }
            Statement::Reject(reject) => return Some(Fate::Outcome(Outcome::Rejected(*reject))),
            Statement::Verdict(verdict) => return Some(self.verdict(state, table, verdict)),
        };
        matches.then_some(Fate::Continue)
    }
}

impl Nftables for Fake {
    fn apply(&self, previous: Option<&RuleSet>, next: &RuleSet) -> Result<()> {
        // What cannot be encoded is an error here as well.
        let messages = batch::replace(next)?;
        let mut state = self.state();
        if let Some(previous) = previous
            && state.tables.get(&(previous.family, previous.table.clone())) != Some(previous)
        {
            return Err(Error::Invalid("the previous rule set is not in force".into()));
        }
        if !messages.is_empty() && previous != Some(next) {
            state.transactions += 1;
        }
        state.tables.insert((next.family, next.table.clone()), next.clone());
        Ok(())
    }

    fn delete(&self, family: Family, table: &str) -> Result<bool> {
        Ok(self.state().tables.remove(&(family, table.to_owned())).is_some())
    }

    fn forget_connections(&self, matching: &dyn Fn(&Flow) -> bool) -> Result<usize> {
        let mut state = self.state();
        let before = state.flows.len();
        state.flows.retain(|flow| !matching(flow));
        Ok(before - state.flows.len())
    }
}
