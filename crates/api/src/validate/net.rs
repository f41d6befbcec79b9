//! IP addresses and ranges in objects.

use crate::seen::Seen;
use super::at::At;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A CIDR range: address and prefix length.
pub fn parse_cidr(s: &str) -> Option<(IpAddr, u8)> {
    let (ip, bits) = s.split_once('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    if bits.is_empty() || bits.len() > 1 && bits.starts_with('0') || !bits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let bits: u8 = bits.parse().ok()?;
    (bits <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, bits))
}

fn number(ip: IpAddr) -> (u128, u8) {
    match ip {
        IpAddr::V4(a) => (u128::from(u32::from(a)), 32),
        IpAddr::V6(a) => (u128::from(a), 128),
    }
}

/// Whether an address is in a range.
pub fn contains((net, bits): (IpAddr, u8), ip: IpAddr) -> bool {
    let ((n, width), (i, other)) = (number(net), number(ip));
    let shift = u32::from(width - bits);
    width == other && (shift >= 128 || n >> shift == i >> shift)
}

fn without_leading_zeros(s: &str) -> String {
    let part = |p: &str| match p.trim_start_matches('0') {
        "" if !p.is_empty() => "0".to_owned(),
        p => p.to_owned(),
    };
    s.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// An IP address in its normal form.
pub fn ip(at: &At<'_>) -> Option<IpAddr> {
    match at.text().parse::<IpAddr>() {
        Ok(ip) if is_mapped(ip) => {
            at.invalid("must not be an IPv4-mapped IPv6 address");
            None
        }
        Ok(ip) => Some(ip),
        Err(_) if without_leading_zeros(at.text()).parse::<Ipv4Addr>().is_ok() => {
            at.invalid("must not have leading 0s");
            None
        }
        Err(_) => {
            at.invalid_as(at.text(), "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
            None
        }
    }
}

/// An IP address that may be in any form if it was among those of before.
pub fn new_ip(at: &At<'_>, before: &Seen<&str>) -> Option<IpAddr> {
    if before.has(&at.text()) { sloppy_ip(at.text()) } else { ip(at) }
}

/// An IP address in any form that was ever accepted.
pub fn sloppy_ip(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| without_leading_zeros(text).parse().ok())
}

/// A range that may be in any form if it was among those of before.
pub fn new_cidr(at: &At<'_>, before: &Seen<&str>) -> Option<(IpAddr, u8)> {
    if before.has(&at.text()) { sloppy_cidr(at.text()) } else { cidr(at) }
}

/// A range in any form that was ever accepted.
pub fn sloppy_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, bits) = text.split_once('/')?;
    let bits = if bits.is_empty() { bits } else { &without_leading_zeros(bits) };
    parse_cidr(&format!("{}/{bits}", without_leading_zeros(ip)))
}

/// A range.
pub fn cidr(at: &At<'_>) -> Option<(IpAddr, u8)> {
    let parsed = parse_cidr(at.text());
    match parsed {
        None if sloppy_cidr(at.text()).is_some() => at.invalid("must not have leading 0s in IP or prefix length"),
        None => at.invalid_as(at.text(), "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
        Some((ip, _)) if is_mapped(ip) => at.invalid("must not have an IPv4-mapped IPv6 address"),
        Some((ip, bits)) if masked((ip, bits)) != ip => at.invalid("must not have bits set beyond the prefix length"),
        Some(_) => {}
    }
    parsed
}

/// An address with the length of its network's prefix.
pub fn interface_address(at: &At<'_>) {
    match sloppy_cidr(at.text()) {
        None => at.invalid_as(at.text(), "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)"),
        Some((ip, bits)) => {
            let plain = ip.to_canonical();
            let bits = if plain.is_ipv4() && ip.is_ipv6() { bits.saturating_sub(96) } else { bits };
            let usual = format!("{plain}/{bits}");
            if at.text() != usual {
                at.invalid(format!("must be in canonical form (\"{usual}\")"));
            }
        }
    }
}

/// The first address of a range.
pub fn masked((ip, bits): (IpAddr, u8)) -> IpAddr {
    let (n, width) = number(ip);
    let shift = u32::from(width - bits);
    let n = if shift >= 128 { 0 } else { n >> shift << shift };
    if ip.is_ipv4() { Ipv4Addr::from(n as u32).into() } else { Ipv6Addr::from(n).into() }
}

/// Whether an address is one of IPv4 in the form of IPv6.
pub fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(a) if a.to_ipv4_mapped().is_some())
}

/// An address that can be behind a service.
pub fn endpoint_ip(at: &At<'_>, ip: IpAddr) {
    if ip.is_unspecified() {
        at.invalid(format!("may not be unspecified ({})", at.text()));
    }
    if ip.is_loopback() {
        at.invalid("may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let link_local = match ip {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.segments()[0] & 0xffc0 == 0xfe80,
    };
    if link_local {
        at.invalid("may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    let multicast = match ip {
        IpAddr::V4(a) => a.octets()[..3] == [224, 0, 0],
        IpAddr::V6(a) => a.segments()[0] & 0xff0f == 0xff02,
    };
    if multicast {
        at.invalid("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// Whether the addresses are at most one of each family.
pub fn one_a_family(ips: &[IpAddr]) -> bool {
    ips.len() < 2 || ips.len() == 2 && ips[0].is_ipv4() != ips[1].is_ipv4()
}
