//! The node agent: pod workers, probes, volumes, status. Knows no netlink, nf_tables or runtime.
//!
//! [`run`] registers the node, keeps its status and lease, gives each pod that is bound to it a
//! worker, and serves logs, exec and statistics over HTTPS. What a pod needs next is decided by
//! [`plan::plan`] and told by [`status::status`], both pure; [`worker`] does it through the CRI.
#![forbid(unsafe_code)]

mod admit;
mod atomic;
mod backoff;
mod cgroups;
mod check;
mod config;
mod env;
mod images;
mod kill;
mod manager;
mod messages;
mod objects;
mod plan;
mod pod;
mod probes;
mod report;
mod resources;
mod start;
mod status;
mod view;
mod volumes;
mod worker;
