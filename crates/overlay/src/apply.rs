//! Makes a node's tunnel device, routes and entries what the plan says, changing only what differs
//! and touching only our own links.

use std::fs;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use netlink::{
    Handle, Link, LinkChange, LinkKind, Neighbour, NeighbourKind, Netlink, NewKind, NewLink, Prefix, Route, netns,
};

use crate::{Config, Desired, Error, file_error};

/// Bytes that VXLAN over IPv4 adds to a packet.
const VXLAN_OVERHEAD: u32 = 50;
const ETHERNET_MTU: u32 = 1500;

/// The network namespace that the node lives in.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) net: Arc<Handle>,
    /// Set when it is not the process's own.
    netns: Option<Arc<OwnedFd>>,
}

impl Host {
    pub(crate) fn open(netns: Option<OwnedFd>) -> Result<Self, Error> {
        let net = match &netns {
            Some(fd) => netns::handle(fd)?,
            None => Handle::open()?,
        };
        Ok(Self { net: Arc::new(net), netns: netns.map(Arc::new) })
    }

    /// Writes kernel settings below `/proc/sys/net`.
    pub(crate) fn sysctls(&self, settings: &[(String, &str)]) -> Result<(), Error> {
        match &self.netns {
            Some(fd) => netns::run(fd.as_ref(), || write_sysctls(settings))?,
            None => write_sysctls(settings),
        }
    }
}

/// Settings of IPv6 do not exist where it is disabled: absent files are passed over.
pub(crate) fn write_sysctls(settings: &[(String, &str)]) -> Result<(), Error> {
    for (name, value) in settings {
        let path = PathBuf::from("/proc/sys/net").join(name);
        // Reading first leaves settings alone that a read-only /proc or the administrator has right.
        if fs::read_to_string(&path).is_ok_and(|now| now.trim() == *value) {
            continue;
        }
        match fs::write(&path, value) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => other.map_err(file_error(path))?,
        }
    }
    Ok(())
}

/// The MTU of pods: configured, or that of the link with the node's address less the overhead.
fn mtu(net: &dyn Netlink, config: &Config, node: Option<IpAddr>, known: Option<u32>) -> Result<u32, Error> {
    if let Some(mtu) = config.mtu {
        return Ok(mtu);
    }
    if let Some(node) = node {
        for link in net.links()?.into_iter().filter(|l| !l.name.starts_with(&config.prefix)) {
            if net.addresses(link.index)?.iter().any(|a| a.address == node) {
                // Loopback's 64 KiB do not fit a tunnel.
                return Ok(link.mtu.min(9000).saturating_sub(VXLAN_OVERHEAD).max(576));
            }
        }
    }
    Ok(known.unwrap_or(ETHERNET_MTU - VXLAN_OVERHEAD))
}

/// Makes the tunnel device. Returns it as it is afterwards.
fn tunnel(net: &dyn Netlink, config: &Config, desired: &Desired) -> Result<Link, Error> {
    let name = config.vxlan_name();
    let kind = LinkKind::Vxlan { vni: config.vni, port: config.port };
    let found = net.link(&name)?;
    let mtu = mtu(net, config, desired.node.map(IpAddr::from), found.as_ref().map(|l| l.mtu))?;
    if let Some(link) = found {
        if link.kind == kind {
            let change = LinkChange {
                up: (!link.up).then_some(true),
                mtu: (link.mtu != mtu).then_some(mtu),
                mac: (link.mac != Some(desired.mac)).then_some(desired.mac),
                ..LinkChange::default()
            };
            if change.up.is_some() || change.mtu.is_some() || change.mac.is_some() {
                net.change_link(link.index, &change)?;
            }
            return Ok(Link { mtu, ..link });
        }
        net.delete_link(&name)?;
    }
    net.create_link(&NewLink {
        name: name.clone(),
        mac: Some(desired.mac),
        mtu: Some(mtu),
        kind: NewKind::Vxlan { vni: config.vni, port: config.port, local: None },
    })?;
    net.link(&name)?.ok_or_else(|| Error::NotReady(format!("{name} went away")))
}

/// Makes the node's network as planned; returns the MTU of pods.
pub(crate) fn apply(net: &dyn Netlink, config: &Config, desired: &Desired) -> Result<u32, Error> {
    let link = tunnel(net, config, desired)?;
    let index = link.index;
    let address = Prefix::host(desired.gateway_ip());
    let present = net.addresses(index)?;
    if !present.contains(&address) {
        net.add_address(index, address)?;
    }
    for other in present.into_iter().filter(|a| a.address.is_ipv4() && *a != address) {
        net.delete_address(index, other)?;
    }

    let mut neighbours = Vec::new();
    let mut routes = Vec::new();
    for remote in &desired.remotes {
        let address = NeighbourKind::Address(remote.gateway.into());
        neighbours.push(Neighbour { index, mac: remote.mac, kind: address });
        neighbours.push(Neighbour { index, mac: remote.mac, kind: NeighbourKind::Forward(remote.node.into()) });
        routes.push(Route {
            destination: remote.range,
            index,
            gateway: Some(remote.gateway.into()),
            onlink: true,
            source: Some(desired.gateway_ip()),
        });
    }
    let services = config.service_cidrs.iter().filter(|r| r.address.is_ipv4());
    routes.extend(services.map(|range| Route {
        destination: *range,
        index,
        gateway: None,
        onlink: false,
        source: Some(desired.gateway_ip()),
    }));
    // What is no longer wanted goes first: a forwarding entry of the same hardware address but
    // another destination would otherwise be added beside the old one.
    let present = net.neighbours(index)?;
    for old in present.iter().filter(|n| !neighbours.contains(n)) {
        net.delete_neighbour(old)?;
    }
    for new in neighbours.iter().filter(|n| !present.contains(n)) {
        net.add_neighbour(new)?;
    }
    let present: Vec<Route> =
        net.routes()?.into_iter().filter(|r| r.index == index && r.destination.address.is_ipv4()).collect();
    for old in present.iter().filter(|r| !routes.iter().any(|w| w.destination == r.destination)) {
        net.delete_route(old)?;
    }
    for new in routes.iter().filter(|r| !present.contains(r)) {
        net.add_route(new)?;
    }
    Ok(link.mtu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeView, plan};
    use netlink::fake::Fake;

    fn node(name: &str, range: &str, ip: &str) -> NodeView {
        NodeView { name: name.into(), pod_cidr: range.parse().ok(), internal_ip: ip.parse().ok(), foreign: false }
    }

    #[test]
    fn follows_nodes_that_come_move_and_go() {
        let net = Fake::new();
        let config = Config::new("a", "/nonexistent", vec![]);
        let me = node("a", "10.244.0.0/24", "192.0.2.1");
        let mut nodes = vec![me.clone(), node("b", "10.244.1.0/24", "192.0.2.2")];
        assert_eq!(apply(&net, &config, &plan("a", &nodes).unwrap()).unwrap(), 1450);
        let index = net.link("knarr.vxlan").unwrap().unwrap().index;
        assert_eq!(net.addresses(index).unwrap(), ["10.244.0.1/32".parse().unwrap()]);
        assert_eq!((net.routes().unwrap().len(), net.neighbours(index).unwrap().len()), (1, 2));

        nodes[1].internal_ip = "192.0.2.9".parse().ok();
        apply(&net, &config, &plan("a", &nodes).unwrap()).unwrap();
        let forwards: Vec<_> = net
            .neighbours(index)
            .unwrap()
            .into_iter()
            .filter_map(|n| match n.kind {
                NeighbourKind::Forward(to) => Some(to.to_string()),
                NeighbourKind::Address(_) => None,
            })
            .collect();
        assert_eq!(forwards, ["192.0.2.9"]);

        apply(&net, &config, &plan("a", &[me]).unwrap()).unwrap();
        assert!(net.routes().unwrap().is_empty() && net.neighbours(index).unwrap().is_empty());
    }
}
