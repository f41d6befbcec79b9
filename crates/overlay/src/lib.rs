//! The pod network: IPAM, veth, VXLAN; plan then apply.
//!
//! Each pod has a veth pair and a /32 host route to it (no bridge, no ARP, nothing to clean up but
//! the link); ranges of other nodes are routed over one VXLAN device whose neighbour and forwarding
//! entries follow from the Node objects alone: the hardware address of a tunnel end is computed from
//! the node's pod range, so nodes have nothing to tell each other. The first address of the range is
//! the pods' gateway and sits on the VXLAN device; cluster DNS listens there.
//!
//! Packet filter rules (masquerade, host ports) are handed to a [`PacketFilter`], because this crate
//! knows no nf_tables; `proxy::PodRules` makes them and the binary connects the two.
#![forbid(unsafe_code)]

mod apply;
mod ipam;
mod network;
mod plan;
mod record;
mod support;
mod veth;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

pub use ipam::Ipam;
pub use netlink::Prefix;
pub use network::Overlay;
pub use plan::{Desired, NodeView, Remote, mac_of, plan};
pub use record::Record;
pub use support::{Missing, missing};

/// What the overlay of one node needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of this node's Node object.
    pub node_name: String,
    /// Directory for the records of pods; made when missing.
    pub data_dir: PathBuf,
    /// How names of our links begin; at most 5 bytes.
    pub prefix: String,
    /// The pod ranges of the whole cluster: traffic inside is not masqueraded.
    pub cluster_cidrs: Vec<Prefix>,
    /// The ranges of service addresses. They are routed to the tunnel device, so that the node
    /// itself reaches Services without a default route; the proxy translates before anything leaves.
    pub service_cidrs: Vec<Prefix>,
    /// MTU of pods; otherwise that of the node's own link less the 50 bytes of VXLAN.
    pub mtu: Option<u32>,
    /// VXLAN network identifier.
    pub vni: u32,
    /// VXLAN UDP port, the same on each node.
    pub port: u16,
}

impl Config {
    /// The usual settings for a node.
    pub fn new(node_name: impl Into<String>, data_dir: impl Into<PathBuf>, cluster_cidrs: Vec<Prefix>) -> Self {
        Self {
            node_name: node_name.into(),
            data_dir: data_dir.into(),
            prefix: "knarr".into(),
            cluster_cidrs,
            service_cidrs: Vec::new(),
            mtu: None,
            vni: 1,
            port: 8472,
        }
    }

    /// The name of the VXLAN device.
    pub fn vxlan_name(&self) -> String {
        format!("{}.vxlan", self.prefix)
    }
}

/// A pod sandbox, as the container runtime names it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Sandbox {
    /// The runtime's identifier.
    pub id: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

/// A port of the node that leads to a pod (`hostPort`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct HostPort {
    /// The node's address; any when absent.
    pub host_ip: Option<IpAddr>,
    /// The port on the node.
    pub host_port: u16,
    /// The port in the pod.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// What the packet filter has to do for the pod network of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterRules {
    /// This node's pod range: what leaves it for outside the cluster is masqueraded.
    pub pod_cidr: Prefix,
    /// The pod ranges of the whole cluster.
    pub cluster_cidrs: Vec<Prefix>,
    /// How names of our links begin: packets from them to loopback addresses are dropped.
    pub link_prefix: String,
    /// Host ports and the pods they lead to.
    pub host_ports: Vec<(HostPort, Ipv4Addr)>,
}

/// Puts [`FilterRules`] in force, replacing those before. Called on a blocking thread.
pub trait PacketFilter: Send + Sync {
    /// Applies the rules in one transaction.
    fn apply(&self, rules: &FilterRules) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// Why the pod network could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work.
    #[error("pod network configuration: {0}")]
    Config(String),
    /// The node has no pod range yet.
    #[error("the pod network is not ready: {0}")]
    NotReady(String),
    /// No address is left.
    #[error("no free address in the pod range {0}")]
    Exhausted(Prefix),
    /// A file of the data directory, or a kernel setting.
    #[error("{path}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A request to the kernel.
    #[error("pod network links")]
    Netlink(#[from] netlink::Error),
    /// The packet filter.
    #[error("pod network packet filter")]
    Filter(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The blocking work was cut short.
    #[error("pod network work was cut short")]
    Interrupted,
}

pub(crate) fn file_error(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { path, source }
}
