//! The controllers, one module each: a pure plan (what is to be done, given what is) and a thin
//! reconcile (read, plan, act). They meet the API server through the client alone and know no storage.
#![forbid(unsafe_code)]

pub mod csr;
pub mod deployment;
pub mod endpoints;
pub mod endpointslice;
pub mod expectations;
pub mod garbage_collector;
pub mod job;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod ownership;
pub mod pod_gc;
pub mod pods;
pub mod replicaset;
pub mod resources;
pub mod root_ca;
pub mod service_account;

use std::net::Ipv4Addr;

use kube::Client;
use reconcile::{Informers, Tasks};

/// What every controller is given.
#[derive(Clone)]
pub struct Context {
    pub client: Client,
    pub informers: Informers,
    pub tasks: Tasks,
}

/// What the controllers need to know of the cluster.
#[derive(Clone)]
pub struct Config {
    /// PEM bundle published to every namespace as `kube-root-ca.crt`.
    pub root_ca: String,
    /// Key pair that signs certificate requests: PEM certificate and PEM key of the cluster CA.
    pub signing_ca: (String, String),
    /// Network that node ranges are cut from: address and prefix length.
    pub cluster_cidr: (Ipv4Addr, u8),
    /// Prefix length of one node's range.
    pub node_mask: u8,
}

/// Starts every controller as tasks of the context.
pub fn start(context: &Context, config: &Config) {
    replicaset::start(context);
    deployment::start(context);
    job::start(context);
    endpointslice::start(context);
    endpoints::start(context);
    namespace::start(context);
    service_account::start(context);
    root_ca::start(context, config.root_ca.clone());
    node_ipam::start(context, config.cluster_cidr, config.node_mask);
    node_lifecycle::start(context);
    pod_gc::start(context);
    garbage_collector::start(context);
    csr::start(context, config.signing_ca.clone());
}
