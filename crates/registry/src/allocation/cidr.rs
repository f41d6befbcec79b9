//! Ranges of addresses, and which of their addresses can be given to Services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// A range of addresses.
#[derive(Debug, Clone)]
pub(crate) struct Cidr {
    pub text: String,
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

    /// How many addresses can be given.
    pub fn usable(&self) -> u128 {
        self.size.saturating_sub(if self.v4 { 2 } else { 1 })
    }

    /// Whether an address can be given: it is in the range, and neither the network's own nor its broadcast address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let n = number_of(ip);
        ip.is_ipv4() == self.v4 && n > self.first && n - self.first <= self.usable()
    }

    /// The offsets that are given by chance, and those that are left to people's choice while there are others
    /// (KEP-3070).
    pub fn bands(&self) -> [RangeInclusive<u128>; 2] {
        let reserved = if self.size <= 16 { 0 } else { (self.size / 16).clamp(16, 256) };
        [reserved + 1..=self.usable(), 1..=reserved]
    }
}

fn number_of(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_given() {
        let small = Cidr::parse("10.0.0.0/29").unwrap();
        for (ip, inside) in [("10.0.0.0", false), ("10.0.0.1", true), ("10.0.0.6", true), ("10.0.0.7", false), ("10.0.0.8", false), ("::1", false)] {
            assert_eq!(small.contains(ip.parse().unwrap()), inside, "{ip}");
        }
        assert_eq!((small.usable(), small.bands()), (6, [1..=6, 1..=0]));
        let six = Cidr::parse("fd00::/112").unwrap();
        assert!(six.contains("fd00::ffff".parse().unwrap()) && !six.contains("fd00::".parse().unwrap()));
        assert_eq!(six.bands(), [257..=65535, 1..=256]);
        assert_eq!(Cidr::parse("10.0.0.0/24").unwrap().bands(), [17..=254, 1..=16]);
        assert_eq!(Cidr::parse("10.0.0.0/32").unwrap().usable(), 0);
    }
}
