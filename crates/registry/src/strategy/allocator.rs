//! Cluster addresses and node ports: who has which, kept in memory, read again from the Services
//! whenever that memory and a request disagree.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use apiserver::Reader;
use parking_lot::Mutex;
use rand::RngExt;
use serde_json::Value;

use crate::util::{SERVICES, items, number, text, texts};

/// Why an address or port cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("provided IP ({0}) is not in the valid range. The range of valid IPs is {1}")]
    IpOutside(IpAddr, String),
    #[error("failed to allocate IP {0}: provided IP is already allocated")]
    IpTaken(IpAddr),
    #[error("failed to allocate IP: range is full")]
    IpsFull,
    #[error("provided port is not in the valid range. The range of valid ports is {0}-{1}")]
    PortOutside(u16, u16),
    #[error("provided port is already allocated")]
    PortTaken,
    #[error("range is full")]
    PortsFull,
}

/// A range of addresses.
#[derive(Debug, Clone)]
pub(crate) struct Cidr {
    text: String,
    first: u128,
    size: u128,
    v4: bool,
}

impl Cidr {
    /// Reads `10.96.0.0/16`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let prefix: u32 = prefix.parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        if prefix > bits {
            return None;
        }
        let size = 1u128.checked_shl(bits - prefix).unwrap_or(u128::MAX);
        let first = number_of(address) & !(size - 1);
        Some(Self { text: text.to_owned(), first, size, v4: address.is_ipv4() })
    }

    /// `IPv4` or `IPv6`.
    pub fn family(&self) -> &'static str {
        if self.v4 { "IPv4" } else { "IPv6" }
    }

    /// The address at `offset`; the service `kubernetes` has the first, DNS the tenth.
    pub fn nth(&self, offset: u128) -> IpAddr {
        let n = self.first + offset;
        if self.v4 { Ipv4Addr::from(n as u32).into() } else { Ipv6Addr::from(n).into() }
    }

    fn usable(&self, ip: IpAddr) -> bool {
        let n = number_of(ip);
        let last = if self.v4 { self.first + self.size - 1 } else { u128::MAX };
        ip.is_ipv4() == self.v4 && n > self.first && n - self.first < self.size && n != last
    }
}

fn number_of(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

#[derive(Default)]
struct State {
    loaded: bool,
    ips: HashSet<IpAddr>,
    /// (port, protocol) → how many services' ports share it.
    ports: HashSet<(u16, String)>,
    /// Taken by requests that are still under way, and so not to be seen in the cache.
    pending_ips: HashMap<IpAddr, u32>,
    pending_ports: HashMap<(u16, String), u32>,
}

/// The allocator of one cluster.
pub(crate) struct Allocator {
    pub cidr: Cidr,
    ports: RangeInclusive<u16>,
    state: Mutex<State>,
}

/// What one request took: given back with [`Allocator::abort`], kept with [`Allocator::commit`].
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Taken {
    pub ips: Vec<IpAddr>,
    pub ports: Vec<(u16, String)>,
}

impl Allocator {
    pub fn new(cidr: Cidr, ports: RangeInclusive<u16>) -> Self {
        Self { cidr, ports, state: Mutex::default() }
    }

    fn load(state: &mut State, reader: &dyn Reader) {
        let (mut ips, mut ports) = (HashSet::new(), HashSet::new());
        for service in reader.list(&SERVICES, None) {
            let (i, p) = held(&service);
            ips.extend(i);
            ports.extend(p);
        }
        ips.extend(state.pending_ips.keys());
        ports.extend(state.pending_ports.keys().cloned());
        (state.ips, state.ports, state.loaded) = (ips, ports, true);
    }

    /// Runs `attempt`; if it fails, once more after reading what the Services really hold.
    fn try_twice<T>(&self, reader: &dyn Reader, attempt: impl Fn(&mut State) -> Result<T, Error>) -> Result<T, Error> {
        let mut state = self.state.lock();
        let fresh = !state.loaded;
        if fresh {
            Self::load(&mut state, reader);
        }
        match attempt(&mut state) {
            Err(_) if !fresh => {
                Self::load(&mut state, reader);
                attempt(&mut state)
            }
            other => other,
        }
    }

    /// Takes this address.
    pub fn take_ip(&self, reader: &dyn Reader, ip: IpAddr, taken: &mut Taken) -> Result<(), Error> {
        if !self.cidr.usable(ip) {
            return Err(Error::IpOutside(ip, self.cidr.text.clone()));
        }
        self.try_twice(reader, |state| if state.ips.insert(ip) { Ok(()) } else { Err(Error::IpTaken(ip)) })?;
        *self.state.lock().pending_ips.entry(ip).or_default() += 1;
        taken.ips.push(ip);
        Ok(())
    }

    /// Takes a free address, by chance, from the upper band while there is one: the lower is for
    /// those that people choose (KEP-3070).
    pub fn next_ip(&self, reader: &dyn Reader, taken: &mut Taken) -> Result<IpAddr, Error> {
        let band = (self.cidr.size / 16).clamp(16, 256).min(self.cidr.size / 2);
        let ip = self.try_twice(reader, |state| {
            let free = |from: u128, to: u128, state: &mut State| {
                if from >= to {
                    return None;
                }
                let start = rand::rng().random_range(from..to);
                let found = (start..to).chain(from..start).take(1 << 17).map(|n| self.cidr.nth(n)).find(|ip| {
                    self.cidr.usable(*ip) && !state.ips.contains(ip)
                })?;
                state.ips.insert(found);
                Some(found)
            };
            free(band, self.cidr.size, state).or_else(|| free(0, band, state)).ok_or(Error::IpsFull)
        })?;
        *self.state.lock().pending_ips.entry(ip).or_default() += 1;
        taken.ips.push(ip);
        Ok(ip)
    }

    /// Takes this node port.
    pub fn take_port(&self, reader: &dyn Reader, port: u16, protocol: &str, taken: &mut Taken) -> Result<(), Error> {
        if !self.ports.contains(&port) {
            return Err(Error::PortOutside(*self.ports.start(), *self.ports.end()));
        }
        let key = (port, protocol.to_owned());
        self.try_twice(reader, |state| if state.ports.insert(key.clone()) { Ok(()) } else { Err(Error::PortTaken) })?;
        *self.state.lock().pending_ports.entry(key.clone()).or_default() += 1;
        taken.ports.push(key);
        Ok(())
    }

    /// Takes a free node port, by chance, with the same preference for the upper band.
    pub fn next_port(&self, reader: &dyn Reader, protocol: &str, taken: &mut Taken) -> Result<u16, Error> {
        let (start, end) = (*self.ports.start(), *self.ports.end());
        let band = ((end - start) / 32).clamp(16, 128).min((end - start) / 2);
        let port = self.try_twice(reader, |state| {
            let free = |from: u16, to: u16, state: &mut State| {
                let at = rand::rng().random_range(from..=to);
                // A number in use by any protocol is left alone, as upstream's one bitmap does.
                let found = (at..=to).chain(from..at).find(|p| {
                    !["TCP", "UDP", "SCTP"].iter().any(|protocol| state.ports.contains(&(*p, (*protocol).to_owned())))
                })?;
                state.ports.insert((found, protocol.to_owned()));
                Some(found)
            };
            free(start + band, end, state).or_else(|| free(start, start + band, state)).ok_or(Error::PortsFull)
        })?;
        let key = (port, protocol.to_owned());
        *self.state.lock().pending_ports.entry(key.clone()).or_default() += 1;
        taken.ports.push(key);
        Ok(port)
    }

    /// The request was carried out: what it took is now in a Service.
    pub fn commit(&self, taken: &Taken) {
        self.settle(taken, false);
    }

    /// The request failed: what it took is free again.
    pub fn abort(&self, taken: &Taken) {
        self.settle(taken, true);
    }

    fn settle(&self, taken: &Taken, free: bool) {
        let mut state = self.state.lock();
        for ip in &taken.ips {
            state.pending_ips.remove(ip);
            if free {
                state.ips.remove(ip);
            }
        }
        for port in &taken.ports {
            state.pending_ports.remove(port);
            if free {
                state.ports.remove(port);
            }
        }
    }

    /// A Service gave these up.
    pub fn release(&self, ips: &[IpAddr], ports: &[(u16, String)]) {
        let mut state = self.state.lock();
        for ip in ips {
            state.ips.remove(ip);
        }
        for port in ports {
            state.ports.remove(port);
        }
    }
}

/// The addresses and node ports that a Service holds.
pub(crate) fn held(service: &Value) -> (Vec<IpAddr>, Vec<(u16, String)>) {
    let ips = texts(service, "/spec/clusterIPs").filter_map(|ip| ip.parse().ok()).collect();
    let mut ports: Vec<(u16, String)> = items(service, "/spec/ports")
        .filter_map(|p| {
            let port = number(p, "/nodePort").filter(|n| *n > 0)? as u16;
            let protocol = match text(p, "/protocol") {
                "" => "TCP",
                protocol => protocol,
            };
            Some((port, protocol.to_owned()))
        })
        .collect();
    if let Some(port) = number(service, "/spec/healthCheckNodePort").filter(|n| *n > 0) {
        ports.push((port as u16, "TCP".to_owned()));
    }
    (ips, ports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Objects;
    use serde_json::json;

    #[test]
    fn addresses() {
        let objects = Objects::new();
        objects.put(&SERVICES, json!({"metadata": {"name": "a", "namespace": "x"}, "spec": {"clusterIPs": ["10.0.0.1"]}}));
        let allocator = Allocator::new(Cidr::parse("10.0.0.0/29").unwrap(), 30000..=30003);
        let mut taken = Taken::default();
        assert_eq!(allocator.take_ip(&*objects, "10.0.0.1".parse().unwrap(), &mut taken), Err(Error::IpTaken("10.0.0.1".parse().unwrap())));
        for outside in ["10.0.0.0", "10.0.0.7", "10.0.0.8", "::1"] {
            assert!(matches!(allocator.take_ip(&*objects, outside.parse().unwrap(), &mut taken), Err(Error::IpOutside(..))), "{outside}");
        }
        let all: HashSet<IpAddr> = (0..5).map(|_| allocator.next_ip(&*objects, &mut taken).unwrap()).collect();
        assert_eq!(all.len(), 5);
        assert_eq!(allocator.next_ip(&*objects, &mut taken), Err(Error::IpsFull));
        allocator.abort(&taken);
        objects.remove(&SERVICES, "x", "a");
        allocator.take_ip(&*objects, "10.0.0.1".parse().unwrap(), &mut taken).expect("read again: it is free now");
    }

    #[test]
    fn ports() {
        let objects = Objects::new();
        objects.put(&SERVICES, json!({"metadata": {"name": "a", "namespace": "x"}, "spec": {"ports": [{"nodePort": 30001, "protocol": "UDP"}]}}));
        let allocator = Allocator::new(Cidr::parse("10.0.0.0/16").unwrap(), 30000..=30003);
        let mut taken = Taken::default();
        allocator.take_port(&*objects, 30001, "TCP", &mut taken).expect("the other protocol");
        assert_eq!(allocator.take_port(&*objects, 30001, "UDP", &mut taken), Err(Error::PortTaken));
        assert_eq!(allocator.take_port(&*objects, 80, "UDP", &mut taken), Err(Error::PortOutside(30000, 30003)));
        let mut rest: Vec<u16> = (0..3).map(|_| allocator.next_port(&*objects, "TCP", &mut taken).unwrap()).collect();
        rest.sort_unstable();
        assert_eq!(rest, [30000, 30002, 30003]);
        assert_eq!(allocator.next_port(&*objects, "TCP", &mut taken), Err(Error::PortsFull));
    }
}
