//! A table as data: chains of rules made of statements, sets and maps.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// The packets that a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4
    Ip,
    /// IPv6
    Ip6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::Ip } else { Family::Ip6 }
    }
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSet {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub table: String,
    /// Shown by tools that list it.
    pub comment: String,
    /// Its chains by name.
    pub chains: BTreeMap<String, Chain>,
    /// Its sets and maps by name.
    pub sets: BTreeMap<String, Set>,
}

impl RuleSet {
    /// A table without chains.
    pub fn new(family: Family, table: impl Into<String>, comment: impl Into<String>) -> Self {
        let (table, comment) = (table.into(), comment.into());
        Self { family, table, comment, chains: BTreeMap::new(), sets: BTreeMap::new() }
    }

    /// Adds a chain.
    pub fn chain(&mut self, name: impl Into<String>, hook: Option<Hook>, rules: Vec<Rule>) {
        self.chains.insert(name.into(), Chain { hook, rules });
    }
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Chain {
    /// Where packets enter it; only by jump otherwise.
    pub hook: Option<Hook>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// Where and when packets enter a base chain. Its policy is to accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Filter or nat.
    pub kind: HookKind,
    /// The place.
    pub point: HookPoint,
    /// The order among chains of the place; lower is earlier.
    pub priority: i32,
}

/// The type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of each connection and may translate its addresses.
    Nat,
}

/// The places of a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    /// Arrived, before routing.
    Prerouting,
    /// Routed to this machine.
    Input,
    /// Routed through this machine.
    Forward,
    /// Made by this machine.
    Output,
    /// About to leave.
    Postrouting,
}

/// One rule: statements from left to right until one does not match.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    /// The statements.
    pub statements: Vec<Statement>,
    /// Shown by tools that list it; at most 127 bytes are kept.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule of these statements.
    pub fn new(statements: impl Into<Vec<Statement>>) -> Self {
        Self { statements: statements.into(), comment: None }
    }

    /// The same with a comment.
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }
}

/// What of a packet can be compared or looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// Network source address.
    SourceAddress,
    /// Network destination address.
    DestinationAddress,
    /// Transport protocol number, one byte.
    Protocol,
    /// Transport source port, big-endian.
    SourcePort,
    /// Transport destination port, big-endian.
    DestinationPort,
    /// The packet's mark, native byte order.
    Mark,
    /// Name of the link it came in on, 16 bytes.
    InputLink,
    /// Name of the link it goes out on, 16 bytes.
    OutputLink,
    /// Connection state bits, native byte order; see [`ct_state`].
    ConnectionState,
    /// Connection status bits, native byte order; see [`ct_status`].
    ConnectionStatus,
    /// The routing type of the destination address, native byte order; see [`LOCAL`].
    DestinationType,
    /// The routing type of the source address, native byte order; see [`LOCAL`].
    SourceType,
}

/// The routing type of this machine's own addresses.
pub const LOCAL: u32 = 2;

/// Bits of [`Field::ConnectionState`].
pub mod ct_state {
    /// Belongs to no connection.
    pub const INVALID: u32 = 1;
    /// Seen in both directions.
    pub const ESTABLISHED: u32 = 2;
    /// Caused by another connection.
    pub const RELATED: u32 = 4;
    /// Not yet answered.
    pub const NEW: u32 = 8;
}

/// Bits of [`Field::ConnectionStatus`].
pub mod ct_status {
    /// Its destination is translated.
    pub const DNAT: u32 = 0x20;
}

/// One statement of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// Matches when the field begins with these bytes (names of links) or equals them (all others).
    Is(Field, Vec<u8>),
    /// Matches when [`Statement::Is`] does not.
    IsNot(Field, Vec<u8>),
    /// Matches when any of these bits of a 32-bit field is set.
    HasBits(Field, u32),
    /// Matches when none of these bits of a 32-bit field is set.
    HasNotBits(Field, u32),
    /// Matches an address field in this range.
    In(Field, IpAddr, u8),
    /// Matches an address field outside this range.
    NotIn(Field, IpAddr, u8),
    /// Matches when the set has this key.
    InSet(Vec<Field>, String),
    /// Matches when the set lacks this key.
    NotInSet(Vec<Field>, String),
    /// Takes the verdict that the map has for this key, if it has one.
    Map(Vec<Field>, String),
    /// Puts the key into a set for this many seconds, again if it is there.
    Remember(Vec<Field>, String, u32),
    /// Clears and then flips bits of the packet's mark.
    Mark {
        /// Bits to keep.
        keep: u32,
        /// Bits to flip.
        flip: u32,
    },
    /// Goes to one of these chains at random.
    GotoRandom(Vec<String>),
    /// Translates the destination to one of these at random. Ends the chain.
    Dnat(Vec<(IpAddr, u16)>),
    /// Translates the source to the address of the link it goes out on. Ends the chain.
    Masquerade,
    /// Answers with an error: TCP reset or port unreachable.
    Reject(Reject),
    /// Decides.
    Verdict(Verdict),
}

/// How a packet is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// ICMP port unreachable.
    PortUnreachable,
    /// TCP reset.
    TcpReset,
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Goes on to the next base chain.
    Accept,
    /// Is gone.
    Drop,
    /// Goes back to the chain before, or takes the policy.
    Return,
    /// Goes through another chain and comes back.
    Jump(String),
    /// Goes through another chain and does not come back.
    Goto(String),
}

/// The type of a part of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// An address of the table's family.
    Address,
    /// A transport protocol number.
    Protocol,
    /// A port.
    Port,
    /// A 32-bit mark.
    Mark,
    /// The name of a link.
    Link,
}

/// A set or a map to verdicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// The parts of its keys.
    pub key: Vec<Type>,
    /// What it holds.
    pub elements: Elements,
}

/// What a set holds. A key is its parts as [`Key`] joins them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elements {
    /// Keys with optional comments.
    Keys(BTreeMap<Key, Option<String>>),
    /// Keys with verdicts.
    Verdicts(BTreeMap<Key, Verdict>),
    /// Keys that [`Statement::Remember`] puts in and that expire; at most this many.
    Dynamic(u32),
}

/// A key of a set: its parts in network order, each padded to a multiple of four bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Key(pub Vec<u8>);

impl Key {
    /// A key without parts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a part.
    pub fn bytes(mut self, part: &[u8]) -> Self {
        self.0.extend_from_slice(part);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds an address.
    pub fn address(self, address: IpAddr) -> Self {
        self.bytes(&address_bytes(address))
    }

    /// Adds a transport protocol.
    pub fn protocol(self, protocol: u8) -> Self {
        self.bytes(&[protocol])
    }

    /// Adds a port.
    pub fn port(self, port: u16) -> Self {
        self.bytes(&port.to_be_bytes())
    }
}

/// An address as packets carry it.
pub fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// A link's name as [`Field::InputLink`] holds it, for an exact match; [`Statement::Is`] with the
/// bare bytes matches names that begin so.
pub fn link_bytes(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}
