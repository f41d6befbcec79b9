//! The scheduler. The core is pure: a snapshot of nodes and a pod give a decision with its reasons
//! ([`decide`]). [`start`] runs the thin shell around it: informers in, bindings and events out.
//! [`why`] asks the same core, and whoever else knows, what keeps a pod from running. Affinity
//! between pods, topology spread, volumes and preemption are not considered yet.
#![forbid(unsafe_code)]

mod affinity;
mod decide;
mod filters;
mod queue;
mod requests;
mod scores;
mod shell;
mod snapshot;
pub mod why;

pub use decide::{Decision, NodeReasons, Rejection, decide};
pub use requests::{Amounts, pod_requests};
pub use shell::start;
pub use snapshot::{NodeInfo, Snapshot};
