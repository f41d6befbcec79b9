//! Cluster addresses and node ports: who has which.
//!
//! An address is taken by making its IPAddress object, whose name only one can have; node ports are bits of one
//! object that upstream's servers over the same store use as well. So several servers never give the same twice.
//! [`repair`] compares both with the Services now and then.

pub(crate) mod addresses;
mod cidr;
pub(crate) mod metrics;
pub(crate) mod ports;
pub(crate) mod repair;

pub(crate) use addresses::ClusterIps;
pub(crate) use cidr::Cidr;
pub(crate) use ports::NodePorts;

use std::net::IpAddr;

use api::seen::Seen;
use serde_json::Value;

use crate::util::{items, number, text, texts};

/// The addresses that a Service holds.
pub(crate) fn addresses_of(service: &Value) -> Vec<IpAddr> {
    texts(service, "/spec/clusterIPs").filter_map(|ip| ip.parse().ok()).collect()
}

/// The node ports that a Service holds. One that its TCP and its UDP port share is there once; one that two ports of
/// the same protocol share, twice.
pub(crate) fn ports_of(service: &Value) -> Vec<u16> {
    let (mut numbers, mut seen) = (Seen::default(), Seen::default());
    let mut ports = Vec::new();
    let listed = items(service, "/spec/ports").filter_map(|p| {
        let protocol = if text(p, "/protocol").is_empty() { "TCP" } else { text(p, "/protocol") };
        Some((u16::try_from(number(p, "/nodePort")?).ok().filter(|n| *n != 0)?, protocol.to_owned()))
    });
    let health = number(service, "/spec/healthCheckNodePort").and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
    for (port, protocol) in listed.chain(health.map(|n| (n, "TCP".to_owned()))) {
        if !seen.add((port, protocol)) || !numbers.has(&port) {
            ports.push(port);
        }
        numbers.add(port);
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_are_counted_by_number() {
        let service = json!({"spec": {"healthCheckNodePort": 30005, "ports": [
            {"nodePort": 30001, "protocol": "TCP"}, {"nodePort": 30001, "protocol": "UDP"},
            {"nodePort": 30002}, {"nodePort": 30002, "protocol": "TCP"}, {"port": 80},
        ]}});
        assert_eq!(ports_of(&service), [30001, 30002, 30002, 30005]);
    }
}
