//! From Node objects to the tunnel device, routes, neighbours and forwarding entries. Pure.

use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::api::core::v1::Node;
use netlink::{Mac, Prefix};

use crate::Ipam;

/// What matters here of a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Its IPv4 pod range, once it has one.
    pub pod_cidr: Option<Prefix>,
    /// Its IPv4 `InternalIP`.
    pub internal_ip: Option<Ipv4Addr>,
    /// Another kubelet runs it, so it has no end of our tunnel.
    pub foreign: bool,
}

impl From<&Node> for NodeView {
    fn from(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let ranges = spec.map(|s| s.pod_cidrs.clone().unwrap_or_default()).unwrap_or_default();
        let single = spec.and_then(|s| s.pod_cidr.clone());
        let pod_cidr = ranges
            .into_iter()
            .chain(single)
            .filter_map(|text| text.parse::<Prefix>().ok())
            .find(|prefix| prefix.address.is_ipv4());
        let addresses = node.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
        let internal_ip =
            addresses.iter().filter(|a| a.type_ == "InternalIP").find_map(|a| a.address.parse().ok());
        let runtime = node.status.as_ref().and_then(|s| s.node_info.as_ref()).map_or("", |i| &i.container_runtime_version);
        let foreign = !runtime.is_empty() && !runtime.starts_with("knarr://");
        Self { name: node.metadata.name.clone().unwrap_or_default(), pod_cidr, internal_ip, foreign }
    }
}

/// Another node's end of the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its pod range.
    pub range: Prefix,
    /// Its gateway, the next hop to the range.
    pub gateway: Ipv4Addr,
    /// The hardware address of its tunnel device.
    pub mac: Mac,
    /// The node's address, where tunnelled packets go.
    pub node: Ipv4Addr,
}

/// What this node's pod network should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// This node's pod range.
    pub range: Prefix,
    /// Its first address.
    pub gateway: Ipv4Addr,
    /// The hardware address of our tunnel device.
    pub mac: Mac,
    /// This node's own address, if it is known.
    pub node: Option<Ipv4Addr>,
    /// The other nodes.
    pub remotes: Vec<Remote>,
}

/// The hardware address that belongs to an IPv4 address of the pod network.
pub fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac([0x0a, 0x58, a, b, c, d])
}

/// What the pod network of node `me` should be; `None` while it has no usable pod range.
pub fn plan(me: &str, nodes: &[NodeView]) -> Option<Desired> {
    let own = nodes.iter().find(|n| n.name == me)?;
    let ipam = Ipam::new(own.pod_cidr?)?;
    let mut remotes: Vec<Remote> = nodes
        .iter()
        .filter(|n| n.name != me && !n.foreign)
        .filter_map(|n| {
            let ipam = Ipam::new(n.pod_cidr?)?;
            let gateway = ipam.gateway();
            Some(Remote { range: ipam.range(), gateway, mac: mac_of(gateway), node: n.internal_ip? })
        })
        // Two nodes of one address or range cannot both be reached; ours is never sent away.
        .filter(|r| Some(r.node) != own.internal_ip && !overlaps(r.range, ipam.range()))
        .collect();
    remotes.sort_by_key(|r| r.gateway);
    remotes.dedup_by_key(|r| r.gateway);
    Some(Desired {
        range: ipam.range(),
        gateway: ipam.gateway(),
        mac: mac_of(ipam.gateway()),
        node: own.internal_ip,
        remotes,
    })
}

fn overlaps(a: Prefix, b: Prefix) -> bool {
    a.contains(b.address) || b.contains(a.address)
}

impl Desired {
    /// What is wanted when only the range is known, as after a restart.
    pub(crate) fn alone(range: Prefix) -> Option<Self> {
        let view = NodeView { name: String::new(), pod_cidr: Some(range), internal_ip: None, foreign: false };
        plan("", &[view])
    }

    pub(crate) fn gateway_ip(&self) -> IpAddr {
        self.gateway.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, range: &str, ip: &str) -> NodeView {
        NodeView { name: name.into(), pod_cidr: range.parse().ok(), internal_ip: ip.parse().ok(), foreign: false }
    }

    #[test]
    fn routes_to_nodes_that_have_range_and_address() {
        let nodes = [
            node("a", "10.244.0.0/24", "192.0.2.1"),
            node("b", "10.244.1.0/24", "192.0.2.2"),
            node("without-range", "", "192.0.2.3"),
            node("without-address", "10.244.3.0/24", ""),
            node("same-range", "10.244.0.0/24", "192.0.2.5"),
            NodeView { foreign: true, ..node("foreign", "10.244.6.0/24", "192.0.2.6") },
        ];
        let desired = plan("a", &nodes).unwrap();
        assert_eq!(desired.gateway, Ipv4Addr::new(10, 244, 0, 1));
        assert_eq!(
            desired.remotes,
            [Remote {
                range: "10.244.1.0/24".parse().unwrap(),
                gateway: Ipv4Addr::new(10, 244, 1, 1),
                mac: Mac([0x0a, 0x58, 10, 244, 1, 1]),
                node: Ipv4Addr::new(192, 0, 2, 2),
            }]
        );
        assert_eq!(plan("without-range", &nodes), None);
        assert_eq!(plan("stranger", &nodes), None);
    }

    #[test]
    fn a_node_of_another_kubelet_is_told_by_its_runtime() {
        for (runtime, foreign) in [("", false), ("knarr://0.1.0", false), ("containerd://1.6.20", true)] {
            let info = k8s_openapi::api::core::v1::NodeSystemInfo { container_runtime_version: runtime.into(), ..Default::default() };
            let status = k8s_openapi::api::core::v1::NodeStatus { node_info: Some(info), ..Default::default() };
            let node = Node { status: Some(status), ..Default::default() };
            assert_eq!(NodeView::from(&node).foreign, foreign, "{runtime}");
        }
        assert!(!NodeView::from(&Node::default()).foreign, "one that has not reported yet");
    }
}
