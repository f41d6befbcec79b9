//! The controllers, one module each: a pure plan (what is to be done, given what is) and a thin
//! reconcile (read, plan, act). They meet the API server through the client alone and know no storage.
//! Not here yet: cron jobs, autoscaling, volumes, disruption budgets.
#![forbid(unsafe_code)]

pub mod amount;
pub mod csr;
pub mod daemonset;
pub mod deployment;
pub mod endpoints;
pub mod endpointslice;
pub mod endpointslice_mirroring;
pub mod expectations;
pub mod garbage_collector;
pub mod history;
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
pub mod service_pods;
pub mod statefulset;
pub mod taint_eviction;
pub mod template;
pub mod ttl;

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

/// Starts every controller as tasks of `tasks`. Each acts as its own service account, for which
/// `client_of` makes a client; all read through `informers`.
pub fn start(client_of: &dyn Fn(&str) -> Client, informers: &Informers, tasks: &Tasks, config: &Config) {
    let context = |account: &str| Context { client: client_of(account), informers: informers.clone(), tasks: tasks.clone() };
    replicaset::start(&context("replicaset-controller"));
    replicaset::start_replication_controllers(&context("replication-controller"));
    deployment::start(&context("deployment-controller"));
    daemonset::start(&context("daemon-set-controller"));
    statefulset::start(&context("statefulset-controller"));
    job::start(&context("job-controller"));
    endpointslice::start(&context("endpointslice-controller"));
    endpoints::start(&context("endpoint-controller"));
    endpointslice_mirroring::start(&context("endpointslicemirroring-controller"));
    namespace::start(&context("namespace-controller"));
    service_account::start(&context("service-account-controller"));
    root_ca::start(&context("root-ca-cert-publisher"), config.root_ca.clone());
    node_ipam::start(&context("node-controller"), config.cluster_cidr, config.node_mask);
    node_lifecycle::start(&context("node-controller"));
    taint_eviction::start(&context("node-controller"));
    ttl::start(&context("ttl-controller"));
    pod_gc::start(&context("pod-garbage-collector"));
    garbage_collector::start(&context("generic-garbage-collector"));
    csr::start(&context("certificate-controller"), config.signing_ca.clone());
}
