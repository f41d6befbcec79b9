//! Which remembered UDP connections lead to where nothing is any more. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nft::conntrack::Flow;

use crate::Model;

const UDP: u8 = 17;

type Destinations = BTreeMap<(Option<IpAddr>, u16), BTreeSet<(IpAddr, u16)>>;

/// UDP destinations (node ports have no address) with where they may lead.
fn destinations(model: Option<&Model>) -> Destinations {
    let mut found = Destinations::new();
    for port in model.iter().flat_map(|m| &m.ports).filter(|p| p.protocol == UDP) {
        let targets: BTreeSet<_> = port.endpoints.iter().chain(&port.local).copied().collect();
        for address in port.cluster_ips.iter().chain(&port.external_ips) {
            found.insert((Some(*address), port.port), targets.clone());
        }
        if let Some(number) = port.node_port {
            found.insert((None, number), targets);
        }
    }
    found
}

/// The test for connections to forget after a change; `None` when no UDP destination changed.
pub fn stale(before: Option<&Model>, now: &Model) -> Option<impl Fn(&Flow) -> bool + use<>> {
    let (old, new) = (destinations(before), destinations(Some(now)));
    if before.is_some() && old == new {
        return None;
    }
    if old.is_empty() && new.is_empty() {
        return None;
    }
    Some(move |flow: &Flow| {
        let reply = (flow.reply_source, flow.reply_port);
        let translated = reply != (flow.destination, flow.destination_port);
        let by_address = (Some(flow.destination), flow.destination_port);
        let by_port = (None, flow.destination_port);
        if flow.protocol != UDP {
            false
        } else if let Some(targets) = new.get(&by_address) {
            // Also what was sent before there was an endpoint, and went nowhere.
            !targets.contains(&reply)
        } else if old.contains_key(&by_address) {
            translated
        } else if let Some(targets) = new.get(&by_port) {
            // The port may be another machine's: only what was translated to an endpoint is ours.
            translated && old.get(&by_port).is_some_and(|old| old.contains(&reply)) && !targets.contains(&reply)
        } else {
            translated && old.get(&by_port).is_some_and(|old| old.contains(&reply))
        }
    })
}
