//! The controllers, one module each: a pure plan (what is to be done, given what is) and a thin
//! reconcile (read, plan, act). They meet the API server through the client alone and know no storage.
#![forbid(unsafe_code)]

pub mod amount;
pub mod bootstrap_tokens;
pub mod clusterrole_aggregation;
pub mod cronjob;
pub mod csr;
pub mod daemonset;
pub mod deployment;
pub mod device_taint_eviction;
pub mod disruption;
pub mod endpoints;
pub mod endpointslice;
pub mod endpointslice_mirroring;
pub mod expectations;
pub mod garbage_collector;
pub mod history;
pub mod job;
pub mod legacy_token_cleaner;
mod listed;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod ownership;
pub mod pod_gc;
pub mod podautoscaler;
pub mod pod;
pub mod pods;
pub mod policy_status;
pub mod replicaset;
pub mod resource_claim;
pub mod resource_quota;
pub mod resources;
pub mod root_ca;
pub mod service_account;
pub mod service_account_token;
pub mod service_cidr;
pub mod service_pods;
pub mod statefulset;
mod table;
pub mod taint_eviction;
pub mod template;
#[cfg(test)]
mod testing;
pub mod ttl;
pub mod ttl_after_finished;
pub mod written;
pub mod volume;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use kube::Client;
use reconcile::{Informers, Tasks};

pub use table::{CONTROLLERS, Controller, Selection};

/// What every controller is given.
#[derive(Clone)]
pub struct Context {
    pub client: Client,
    pub informers: Informers,
    pub tasks: Tasks,
    /// How many objects it may work on at once, where the user has said so.
    concurrency: Option<usize>,
}

impl Context {
    /// How many workers to run: what the user has said, or else `default`.
    pub fn workers(&self, default: usize) -> usize {
        self.concurrency.unwrap_or(default)
    }
}

/// What the controllers need to know of the cluster. A controller whose part is missing does not run.
#[derive(Clone, Default)]
pub struct Config {
    /// Which controllers run.
    pub controllers: Selection,
    /// PEM bundle published to every namespace as `kube-root-ca.crt`.
    pub root_ca: Option<String>,
    /// How certificate requests are signed.
    pub signing: Option<csr::Signing>,
    /// Signs the tokens in Secrets.
    pub token_signer: Option<Arc<pki::jwt::Signer>>,
    /// Where nodes get their ranges of pod addresses from.
    pub node_ranges: Option<NodeRanges>,
    /// How pods are autoscaled.
    pub autoscaling: podautoscaler::Settings,
    /// How nodes are given up.
    pub node_lifecycle: node_lifecycle::Settings,
    /// Which pods are collected.
    pub pod_gc: pod_gc::Settings,
    /// What is kept, and how much goes into one object.
    pub limits: Limits,
    /// Workers by name of the controller, where they differ from its own number.
    pub workers: BTreeMap<&'static str, usize>,
}

/// What is kept, and how much goes into one object.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a token in a Secret may be unused.
    pub unused_tokens: jiff::SignedDuration,
    /// Endpoints in one slice.
    pub endpoints_per_slice: usize,
    /// Addresses mirrored of one subset.
    pub mirrored_per_subset: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            unused_tokens: jiff::SignedDuration::from_hours(24 * 365),
            endpoints_per_slice: 100,
            mirrored_per_subset: 1000,
        }
    }
}

/// Where nodes get their ranges of pod addresses from.
#[derive(Clone, Debug)]
pub struct NodeRanges {
    /// Network that they are cut from: address and prefix length.
    pub cluster: (Ipv4Addr, u8),
    /// Prefix length of one node's range.
    pub node_mask: u8,
}

/// Starts the selected controllers as tasks of `tasks`. Each acts as its own service account, for
/// which `client_of` makes a client; all read through `informers`.
pub fn start(client_of: &dyn Fn(&str) -> Client, informers: &Informers, tasks: &Tasks, config: &Config) {
    for controller in CONTROLLERS.iter().filter(|c| config.controllers.has(c)) {
        let Some(start) = controller.start else { continue };
        let client = if controller.account.is_empty() { informers.client().clone() } else { client_of(controller.account) };
        let concurrency = config.workers.get(controller.name).copied();
        start(&Context { client, informers: informers.clone(), tasks: tasks.clone(), concurrency }, config);
    }
}
