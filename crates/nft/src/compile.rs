//! From statements to the kernel's expressions, which load fields into registers and work on those.

use std::net::IpAddr;

use crate::attributes::Attributes;
use crate::{Error, Family, Field, Key, Reject, Result, Statement, Verdict, address_bytes};

/// The first of sixteen 4-byte registers.
const REGISTER: u32 = 8;
const VERDICT_REGISTER: u32 = 0;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;

/// Elements of a map that one rule needs for itself.
pub(crate) enum Anonymous {
    /// Random number to verdict.
    Verdicts(Vec<Verdict>),
    /// Random number to address and port.
    Targets(Vec<Key>),
}

/// A rule's expressions, and the maps it needs (by number, from `first_map`).
pub(crate) struct Compiled {
    pub(crate) expressions: Attributes,
    pub(crate) maps: Vec<(u32, Anonymous)>,
}

struct Compiler {
    family: Family,
    next_map: u32,
    out: Compiled,
}

pub(crate) fn compile(family: Family, statements: &[Statement], first_map: u32) -> Result<Compiled> {
    let out = Compiled { expressions: Attributes::new(), maps: Vec::new() };
    let mut compiler = Compiler { family, next_map: first_map, out };
    for statement in statements {
        compiler.statement(statement)?;
    }
    Ok(compiler.out)
}

/// Length in bytes of a field in a packet of this family.
fn length(family: Family, field: Field) -> usize {
    match field {
        Field::SourceAddress | Field::DestinationAddress => address_length(family),
        Field::Protocol => 1,
        Field::SourcePort | Field::DestinationPort => 2,
        Field::InputLink | Field::OutputLink => 16,
        Field::Mark
        | Field::ConnectionState
        | Field::ConnectionStatus
        | Field::DestinationType
        | Field::SourceType => 4,
    }
}

pub(crate) fn address_length(family: Family) -> usize {
    match family {
        Family::Ip => 4,
        Family::Ip6 => 16,
    }
}

/// The value attribute of data.
pub(crate) fn value(bytes: &[u8]) -> Attributes {
    Attributes::new().bytes(1, bytes)
}

/// The verdict attribute of data.
pub(crate) fn verdict(verdict: &Verdict) -> Attributes {
    let (code, chain) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
    };
    let mut inner = Attributes::new().bytes(1, &i32::to_be_bytes(code));
    if let Some(chain) = chain {
        inner = inner.text(2, chain);
    }
    Attributes::new().nest(2, inner)
}

fn mask(length: u8, width: usize) -> Vec<u8> {
    (0..width)
        .map(|i| {
            let bits = usize::from(length).saturating_sub(i * 8).min(8);
            if bits == 0 { 0 } else { 0xff << (8 - bits) }
        })
        .collect()
}

impl Compiler {
    fn emit(&mut self, name: &str, data: Attributes) {
        let expression = Attributes::new().text(1, name).nest(2, data);
        let list = std::mem::take(&mut self.out.expressions);
        self.out.expressions = list.nest(1, expression);
    }

    fn load(&mut self, field: Field, register: u32) {
        let payload = |base, offset, length| {
            Attributes::new().u32(1, register).u32(2, base).u32(3, offset).u32(4, length)
        };
        let meta = |key| Attributes::new().u32(1, register).u32(2, key);
        let v4 = self.family == Family::Ip;
        let (name, data) = match field {
            Field::SourceAddress if v4 => ("payload", payload(1, 12, 4)),
            Field::SourceAddress => ("payload", payload(1, 8, 16)),
            Field::DestinationAddress if v4 => ("payload", payload(1, 16, 4)),
            Field::DestinationAddress => ("payload", payload(1, 24, 16)),
            Field::SourcePort => ("payload", payload(2, 0, 2)),
            Field::DestinationPort => ("payload", payload(2, 2, 2)),
            Field::Mark => ("meta", meta(3)),
            Field::InputLink => ("meta", meta(6)),
            Field::OutputLink => ("meta", meta(7)),
            Field::Protocol => ("meta", meta(16)),
            Field::ConnectionState => ("ct", meta(0)),
            Field::ConnectionStatus => ("ct", meta(2)),
            Field::SourceType => ("fib", meta(3).u32(3, 1)),
            Field::DestinationType => ("fib", meta(3).u32(3, 2)),
        };
        self.emit(name, data);
    }

    /// Loads the parts of a key side by side.
    fn load_key(&mut self, fields: &[Field]) -> Result<()> {
        let mut register = REGISTER;
        for field in fields {
            self.load(*field, register);
            register += u32::try_from(length(self.family, *field).div_ceil(4)).unwrap_or(u32::MAX);
        }
        if register > REGISTER + 16 {
            return Err(Error::Invalid(format!("the key {fields:?} is too long")));
        }
        Ok(())
    }

    fn compare(&mut self, operation: u32, bytes: &[u8]) {
        self.emit("cmp", Attributes::new().u32(1, REGISTER).u32(2, operation).nest(3, value(bytes)));
    }

    fn bitwise(&mut self, keep: &[u8], flip: &[u8]) {
        let length = u32::try_from(keep.len()).unwrap_or(u32::MAX);
        let data = Attributes::new().u32(1, REGISTER).u32(2, REGISTER).u32(3, length);
        self.emit("bitwise", data.nest(4, value(keep)).nest(5, value(flip)));
    }

    fn equality(&mut self, operation: u32, field: Field, bytes: &[u8]) -> Result<()> {
        let width = length(self.family, field);
        let prefix = matches!(field, Field::InputLink | Field::OutputLink) && !bytes.is_empty();
        if bytes.len() != width && !(prefix && bytes.len() < width) {
            return Err(Error::Invalid(format!("{field:?} has {width} bytes, not {}", bytes.len())));
        }
        self.load(field, REGISTER);
        self.compare(operation, bytes);
        Ok(())
    }

    fn bits(&mut self, operation: u32, field: Field, bits: u32) -> Result<()> {
        if length(self.family, field) != 4 {
            return Err(Error::Invalid(format!("{field:?} has no bits")));
        }
        self.load(field, REGISTER);
        self.bitwise(&bits.to_ne_bytes(), &[0; 4]);
        self.compare(operation, &[0; 4]);
        Ok(())
    }

    fn range(&mut self, operation: u32, field: Field, address: IpAddr, bits: u8) -> Result<()> {
        let bytes = address_bytes(address);
        if bytes.len() != length(self.family, field) || usize::from(bits) > bytes.len() * 8 {
            return Err(Error::Invalid(format!("{field:?} cannot be in {address}/{bits}")));
        }
        let mask = mask(bits, bytes.len());
        let network: Vec<u8> = bytes.iter().zip(&mask).map(|(a, m)| a & m).collect();
        self.load(field, REGISTER);
        self.bitwise(&mask, &vec![0; bytes.len()]);
        self.compare(operation, &network);
        Ok(())
    }

    fn random(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.emit("numgen", Attributes::new().u32(1, REGISTER).u32(2, count).u32(3, 1));
    }

    fn anonymous(&mut self, map: Anonymous, target: u32) {
        let id = self.next_map;
        self.next_map += 1;
        self.out.maps.push((id, map));
        let data = Attributes::new().text(1, ANONYMOUS_NAME).u32(2, REGISTER).u32(3, target).u32(4, id);
        self.emit("lookup", data);
    }

    fn target(&self, (address, port): &(IpAddr, u16)) -> Result<Key> {
        if Family::of(*address) != self.family {
            return Err(Error::Invalid(format!("{address} is of another family than its table")));
        }
        Ok(Key::new().address(*address).port(*port))
    }

    fn statement(&mut self, statement: &Statement) -> Result<()> {
        match statement {
            Statement::Is(field, bytes) => self.equality(CMP_EQ, *field, bytes)?,
            Statement::IsNot(field, bytes) => self.equality(CMP_NEQ, *field, bytes)?,
            Statement::HasBits(field, bits) => self.bits(CMP_NEQ, *field, *bits)?,
            Statement::HasNotBits(field, bits) => self.bits(CMP_EQ, *field, *bits)?,
            Statement::In(field, address, bits) => self.range(CMP_EQ, *field, *address, *bits)?,
            Statement::NotIn(field, address, bits) => self.range(CMP_NEQ, *field, *address, *bits)?,
            Statement::InSet(key, set) | Statement::NotInSet(key, set) => {
                self.load_key(key)?;
                let inverted = u32::from(matches!(statement, Statement::NotInSet(..)));
                self.emit("lookup", Attributes::new().text(1, set).u32(2, REGISTER).u32(5, inverted));
            }
            Statement::Map(key, map) => {
                self.load_key(key)?;
                self.emit("lookup", Attributes::new().text(1, map).u32(2, REGISTER).u32(3, VERDICT_REGISTER));
            }
            Statement::Remember(key, set, seconds) => {
                self.load_key(key)?;
                let update = 1;
                let data = Attributes::new().text(1, set).u32(3, update).u32(4, REGISTER);
                self.emit("dynset", data.u64(6, u64::from(*seconds) * 1000));
            }
            Statement::Mark { keep, flip } => {
                self.load(Field::Mark, REGISTER);
                self.bitwise(&keep.to_ne_bytes(), &flip.to_ne_bytes());
                self.emit("meta", Attributes::new().u32(2, 3).u32(3, REGISTER));
            }
            Statement::GotoRandom(chains) => match &chains[..] {
                [] => return Err(Error::Invalid("no chain to go to".into())),
                [chain] => self.statement(&Statement::Verdict(Verdict::Goto(chain.clone())))?,
                chains => {
                    self.random(chains.len());
                    let verdicts = chains.iter().cloned().map(Verdict::Goto).collect();
                    self.anonymous(Anonymous::Verdicts(verdicts), VERDICT_REGISTER);
                }
            },
            Statement::Dnat(targets) => self.dnat(targets)?,
            Statement::Masquerade => {
                let fully_random = 16;
                self.emit("masq", Attributes::new().u32(1, fully_random));
            }
            Statement::Reject(reject) => {
                let data = match (reject, self.family) {
                    (Reject::TcpReset, _) => Attributes::new().u32(1, 1).u8(2, 0),
                    (Reject::PortUnreachable, Family::Ip) => Attributes::new().u32(1, 0).u8(2, 3),
                    (Reject::PortUnreachable, Family::Ip6) => Attributes::new().u32(1, 0).u8(2, 4),
                };
                self.emit("reject", data);
            }
            Statement::Verdict(v) => {
                self.emit("immediate", Attributes::new().u32(1, VERDICT_REGISTER).nest(2, verdict(v)));
            }
        }
        Ok(())
    }

    fn dnat(&mut self, targets: &[(IpAddr, u16)]) -> Result<()> {
        let port_register = REGISTER + u32::try_from(address_length(self.family) / 4).unwrap_or(0);
        match targets {
            [] => return Err(Error::Invalid("no target to translate to".into())),
            [target] => {
                self.target(target)?;
                let address = address_bytes(target.0);
                self.emit("immediate", Attributes::new().u32(1, REGISTER).nest(2, value(&address)));
                let port = target.1.to_be_bytes();
                self.emit("immediate", Attributes::new().u32(1, port_register).nest(2, value(&port)));
            }
            targets => {
                let keys = targets.iter().map(|t| self.target(t)).collect::<Result<Vec<_>>>()?;
                self.random(keys.len());
                self.anonymous(Anonymous::Targets(keys), REGISTER);
            }
        }
        let family = match self.family {
            Family::Ip => libc::NFPROTO_IPV4,
            Family::Ip6 => libc::NFPROTO_IPV6,
        };
        let destination = 1;
        let data = Attributes::new().u32(1, destination).u32(2, family.unsigned_abs());
        self.emit("nat", data.u32(3, REGISTER).u32(5, port_register));
        Ok(())
    }
}

/// What the kernel names maps of single rules; it puts a number in.
pub(crate) const ANONYMOUS_NAME: &str = "__map%d";
