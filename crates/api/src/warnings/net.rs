//! Addresses and ranges in forms that only some programs read, or not all in the same way.

use std::net::IpAddr;

use serde_json::Value;

use super::{Warnings, list, text};
use crate::field::{Path, go_quote};
use crate::validate::net::{is_mapped, masked, parse_cidr, sloppy_cidr, sloppy_ip};

/// An address. What is none is for validation to refuse.
pub(super) fn ip(value: &str, path: &Path, out: &mut Warnings) {
    let Some(ip) = sloppy_ip(value) else { return };
    if is_mapped(ip) || value.parse::<IpAddr>().is_err() {
        out.push(format!("{path}: non-standard IP address {} is invalid: use \"{}\"", go_quote(value), ip.to_canonical()));
    } else if ip.is_ipv6() && ip.to_string() != value {
        out.push(format!("{path}: IPv6 address {} should be in RFC 5952 canonical format (\"{ip}\")", go_quote(value)));
    }
}

/// A list of addresses.
pub(super) fn ips(list: &Value, path: &Path, out: &mut Warnings) {
    for (i, value) in list.as_array().into_iter().flatten().filter_map(Value::as_str).enumerate() {
        ip(value, &path.index(i), out);
    }
}

/// The addresses of a list of objects that have an `ip`.
pub(super) fn ips_of(items: &Value, path: &Path, out: &mut Warnings) {
    for (i, item) in items.as_array().into_iter().flatten().enumerate() {
        ip(text(item, "ip"), &path.index(i).child("ip"), out);
    }
}

/// The addresses of a load balancer in a status.
pub(super) fn balancer(object: &Value, out: &mut Warnings) {
    let path = Path::new("status.loadBalancer.ingress");
    for (i, ingress) in list(&object["status"]["loadBalancer"], "ingress").iter().enumerate() {
        ip(text(ingress, "ip"), &path.index(i), out);
    }
}

/// A range.
pub(super) fn cidr(value: &str, path: &Path, out: &mut Warnings) {
    let Some((ip, bits)) = sloppy_cidr(value) else { return };
    let first = masked((ip, bits));
    let range = match first.to_canonical() {
        plain if plain.is_ipv4() && ip.is_ipv6() => format!("{plain}/{}", bits.saturating_sub(96)),
        _ => format!("{first}/{bits}"),
    };
    let before = out.all().len();
    if first != ip {
        let alone = format!("{}/{}", ip.to_canonical(), if ip.is_ipv4() { 32 } else { 128 });
        out.push(format!("{path}: CIDR value {} is ambiguous in this context (should be \"{range}\" or \"{alone}\"?)", go_quote(value)));
    }
    if parse_cidr(value).is_none_or(|(ip, _)| is_mapped(ip)) {
        out.push(format!("{path}: non-standard CIDR value {} is invalid: use \"{range}\"", go_quote(value)));
    }
    if out.all().len() == before && ip.is_ipv6() && format!("{ip}/{bits}") != value {
        out.push(format!("{path}: IPv6 CIDR value {} should be in RFC 5952 canonical format (\"{ip}/{bits}\")", go_quote(value)));
    }
}

/// A list of ranges.
pub(super) fn cidrs(list: &Value, path: &Path, out: &mut Warnings) {
    for (i, value) in list.as_array().into_iter().flatten().filter_map(Value::as_str).enumerate() {
        cidr(value, &path.index(i), out);
    }
}
