//! Services to rule set (pure) to one nf_tables transaction.
//!
//! [`Model`] is what Services and EndpointSlices mean on this node, [`rules::compile`] makes the rule
//! set of it, [`run`] keeps the kernel's table equal to that. [`PodRules`] are the rules that the pod
//! network needs (masquerade, host ports): they live here because this is the crate that knows
//! nf_tables. NetworkPolicies are not handled yet, nor are health check node ports and source
//! ranges of load balancers.
#![forbid(unsafe_code)]

mod model;
mod pods;
mod run;
pub mod rules;
mod stale;
mod support;

pub use model::{Model, ServicePort};
pub use pods::{PodNetwork, PodRules};
pub use run::{Error, purge, run};
pub use stale::stale;
pub use support::{Missing, missing};

use std::net::IpAddr;

/// The bit of the packet mark that asks for masquerade, as kube-proxy's.
pub const MASQUERADE_MARK: u32 = 0x4000;

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Its address.
    pub address: IpAddr,
    /// The length of its prefix in bits.
    pub length: u8,
}

impl std::str::FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a range of addresses");
        let (address, length) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let length: u8 = length.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if length > most { Err(bad()) } else { Ok(Self { address, length }) }
    }
}

/// What the proxy of one node needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of this node's Node object.
    pub node_name: String,
    /// How names of our tables begin.
    pub prefix: String,
    /// The pod ranges of the cluster: traffic to service addresses from elsewhere is masqueraded.
    pub cluster_cidrs: Vec<Range>,
}

impl Config {
    /// The table of services.
    pub fn table(&self) -> String {
        format!("{}-services", self.prefix)
    }
}
