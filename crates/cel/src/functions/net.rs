//! Addresses and networks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Res;
use crate::error::Error;
use crate::value::{Cidr, Opaque, Value};

fn parse_ip(text: &str) -> Result<IpAddr, Error> {
    if text.contains(':') && text.contains('%') {
        return Err(Error::new(format!("IP address {text:?} with zone value is not allowed")));
    }
    let ip: IpAddr = text.parse().map_err(|_| {
        Error::new(format!("IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"))
    })?;
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(Error::new(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))),
        _ => Ok(ip),
    }
}

fn parse_cidr(text: &str) -> Result<Cidr, Error> {
    let wrong = |why: &str| Error::new(format!("network address parse error during conversion from string: netip.ParsePrefix({text:?}): {why}"));
    let (address, bits) = text.rsplit_once('/').ok_or_else(|| wrong("no '/'"))?;
    if address.contains('%') {
        return Err(wrong("IPv6 zones cannot be present in a prefix"));
    }
    let address: IpAddr = address.parse().map_err(|_| wrong("unable to parse IP"))?;
    let plain = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) && (bits.len() == 1 || !bits.starts_with('0'));
    let bits = bits.parse::<u8>().ok().filter(|_| plain).ok_or_else(|| wrong("bad bits after slash"))?;
    if bits > if address.is_ipv4() { 32 } else { 128 } {
        return Err(wrong("prefix length out of range"));
    }
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(Error::new(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))),
        _ => Ok(Cidr { address, bits }),
    }
}

fn mask(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            Ipv4Addr::from(u32::from(ip) & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            Ipv6Addr::from(u128::from(ip) & mask).into()
        }
    }
}

fn text<'x>(a: &'x [Value<'_>]) -> Result<&'x str, Error> {
    match a {
        [Value::String(s)] => Ok(s),
        _ => Err(Error::no_overload()),
    }
}

fn network(a: &[Value<'_>]) -> Result<Cidr, Error> {
    match a.first() {
        Some(Value::Opaque(Opaque::Cidr(cidr))) => Ok(*cidr),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn ip<'a>(a: &[Value<'a>]) -> Res<'a> {
    let ip = match a {
        [Value::Opaque(Opaque::Cidr(cidr))] => cidr.address,
        _ => parse_ip(text(a)?)?,
    };
    Ok(Value::Opaque(Opaque::Ip(ip)))
}

pub(super) fn is_ip<'a>(a: &[Value<'a>]) -> Res<'a> {
    Ok(Value::Bool(parse_ip(text(a)?).is_ok()))
}

pub(super) fn is_canonical<'a>(a: &[Value<'a>]) -> Res<'a> {
    let text = text(a)?;
    Ok(Value::Bool(parse_ip(text)?.to_string() == text))
}

pub(super) fn family<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [Value::Opaque(Opaque::Ip(ip))] => Ok(Value::Int(if ip.is_ipv4() { 4 } else { 6 })),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn test<'a>(a: &[Value<'a>], holds: fn(&IpAddr) -> bool) -> Res<'a> {
    match a {
        [Value::Opaque(Opaque::Ip(ip))] => Ok(Value::Bool(holds(ip))),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn is_link_local_multicast(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    }
}

pub(super) fn is_link_local_unicast(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    }
}

pub(super) fn is_global_unicast(ip: &IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(broadcast || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_link_local_unicast(ip))
}

pub(super) fn cidr<'a>(a: &[Value<'a>]) -> Res<'a> {
    parse_cidr(text(a)?)
        .map(|cidr| Value::Opaque(Opaque::Cidr(cidr)))
        .map_err(|e| Error::new(format!("network address parse error during conversion from string: {e}")))
}

pub(super) fn is_cidr<'a>(a: &[Value<'a>]) -> Res<'a> {
    Ok(Value::Bool(parse_cidr(text(a)?).is_ok()))
}

pub(super) fn contains_ip<'a>(a: &[Value<'a>]) -> Res<'a> {
    let cidr = network(a)?;
    let ip = match a.get(1) {
        Some(Value::Opaque(Opaque::Ip(ip))) => *ip,
        Some(Value::String(s)) => parse_ip(s)?,
        _ => return Err(Error::no_overload()),
    };
    Ok(Value::Bool(ip.is_ipv4() == cidr.address.is_ipv4() && mask(ip, cidr.bits) == mask(cidr.address, cidr.bits)))
}

pub(super) fn contains_cidr<'a>(a: &[Value<'a>]) -> Res<'a> {
    let outer = network(a)?;
    let inner = match a.get(1) {
        Some(Value::Opaque(Opaque::Cidr(cidr))) => *cidr,
        Some(Value::String(s)) => parse_cidr(s).map_err(|e| Error::new(format!("network address parse error during conversion from string: {e}")))?,
        _ => return Err(Error::no_overload()),
    };
    let same = inner.address.is_ipv4() == outer.address.is_ipv4();
    Ok(Value::Bool(same && outer.bits <= inner.bits && mask(inner.address, outer.bits) == mask(outer.address, outer.bits)))
}

pub(super) fn prefix_length<'a>(a: &[Value<'a>]) -> Res<'a> {
    network(a).map(|cidr| Value::Int(i64::from(cidr.bits)))
}

pub(super) fn masked<'a>(a: &[Value<'a>]) -> Res<'a> {
    let cidr = network(a)?;
    Ok(Value::Opaque(Opaque::Cidr(Cidr { address: mask(cidr.address, cidr.bits), bits: cidr.bits })))
}
