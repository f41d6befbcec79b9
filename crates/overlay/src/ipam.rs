//! Which address of the node's pod range belongs to which sandbox. Pure; [`crate::Record`]s on disk
//! are what it is rebuilt from.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr};

use netlink::Prefix;

/// The addresses of one IPv4 range. Network, gateway (the first) and broadcast are never given out.
#[derive(Clone, Debug)]
pub struct Ipam {
    range: Prefix,
    first: u32,
    last: u32,
    next: u32,
    used: HashMap<Ipv4Addr, String>,
}

impl Ipam {
    /// The addresses of a range; `None` when it is not IPv4 or has no room for a pod.
    pub fn new(range: Prefix) -> Option<Self> {
        let IpAddr::V4(address) = range.address else { return None };
        if range.length > 29 {
            return None;
        }
        let network = u32::from(address) & !(u32::MAX >> range.length);
        let first = network + 2;
        let last = (network | (u32::MAX >> range.length)) - 1;
        let range = Prefix::new(Ipv4Addr::from(network).into(), range.length);
        Some(Self { range, first, last, next: first, used: HashMap::new() })
    }

    /// The range.
    pub fn range(&self) -> Prefix {
        self.range
    }

    /// The gateway's address.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.first - 1)
    }

    /// Gives out the next free address: a freed one is not reused before all others were, so that
    /// nobody reaches a new pod through what is still remembered of an old one.
    pub fn allocate(&mut self, id: &str) -> Option<Ipv4Addr> {
        for _ in self.first..=self.last {
            let candidate = Ipv4Addr::from(self.next);
            self.next = if self.next >= self.last { self.first } else { self.next + 1 };
            if let Entry::Vacant(free) = self.used.entry(candidate) {
                free.insert(id.to_owned());
                return Some(candidate);
            }
        }
        None
    }

    /// Marks an address as used, as a record on disk says.
    pub fn occupy(&mut self, address: Ipv4Addr, id: &str) {
        self.used.insert(address, id.to_owned());
        let bits = u32::from(address);
        if bits >= self.next && bits <= self.last {
            self.next = if bits == self.last { self.first } else { bits + 1 };
        }
    }

    /// Frees what a sandbox holds.
    pub fn release(&mut self, id: &str) {
        self.used.retain(|_, owner| owner != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_each_address_once_and_reuses_late() {
        let mut ipam = Ipam::new("10.0.0.0/29".parse().unwrap()).unwrap();
        assert_eq!(ipam.gateway(), Ipv4Addr::new(10, 0, 0, 1));
        let given: Vec<_> = (0..5).map(|i| ipam.allocate(&i.to_string()).unwrap().octets()[3]).collect();
        assert_eq!(given, [2, 3, 4, 5, 6]);
        assert_eq!(ipam.allocate("x"), None);
        ipam.release("1");
        ipam.release("3");
        assert_eq!(ipam.allocate("x"), Some(Ipv4Addr::new(10, 0, 0, 3)));
        assert_eq!(ipam.allocate("y"), Some(Ipv4Addr::new(10, 0, 0, 5)));
    }

    #[test]
    fn continues_after_what_records_say() {
        let mut ipam = Ipam::new("10.0.0.0/24".parse().unwrap()).unwrap();
        ipam.occupy(Ipv4Addr::new(10, 0, 0, 9), "a");
        assert_eq!(ipam.allocate("b"), Some(Ipv4Addr::new(10, 0, 0, 10)));
    }

    #[test]
    fn refuses_what_has_no_room() {
        assert!(Ipam::new("10.0.0.0/30".parse().unwrap()).is_none());
        assert!(Ipam::new("fd00::/64".parse().unwrap()).is_none());
    }
}
