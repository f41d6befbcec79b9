//! Cluster DNS: a pure zone and a server.
//!
//! [`Zone`] answers from Services and EndpointSlices as CoreDNS' `kubernetes` plug-in does (the
//! Kubernetes DNS specification 1.1); [`run`] serves it over UDP and TCP and forwards every other
//! name to the node's resolvers; [`publish`] makes the `kube-dns` Service that leads to the servers
//! of all nodes. Forwarded answers are not cached.
#![forbid(unsafe_code)]

mod answer;
mod forward;
pub mod publish;
mod server;
mod zone;

pub use answer::{Reply, respond};
pub use forward::Upstreams;
pub use server::run;
pub use zone::{Lookup, Zone};

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// What the DNS server of one node needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens, over UDP and TCP. An address may appear later than the server starts.
    pub listen: Vec<SocketAddr>,
    /// The cluster's domain, `cluster.local`.
    pub domain: String,
    /// Where names of other domains are asked for.
    pub upstreams: Resolvers,
    /// Addresses that lead back here (the cluster DNS Service): never asked.
    pub own: Vec<IpAddr>,
}

/// Where names of other domains are asked for.
#[derive(Clone, Debug)]
pub enum Resolvers {
    /// The name servers of a file like `/etc/resolv.conf`, read again when it changes.
    File(PathBuf),
    /// These.
    Fixed(Vec<SocketAddr>),
}

impl Config {
    /// The usual settings.
    pub fn new(listen: Vec<SocketAddr>, domain: impl Into<String>, service: IpAddr) -> Self {
        let upstreams = Resolvers::File("/etc/resolv.conf".into());
        Self { listen, domain: domain.into(), upstreams, own: vec![service] }
    }
}
