//! The scheduler. The core is pure: a [`Cluster`], a pod and a [`Turn`] give a decision with its
//! reasons ([`decide`]). [`start`] runs the thin shell around it: informers in, bindings and events
//! out. [`why`] asks the same core, and whoever else knows, what keeps a pod from running.
//!
//! What looks at nodes and pods alone is in `filters` and `scores`; plug-ins that need more implement
//! [`Plugin`].
#![forbid(unsafe_code)]

mod asking;
mod cluster;
mod config;
mod decide;
mod devices;
mod extender;
#[cfg(test)]
mod extender_tests;
mod filters;
mod hints;
mod node;
#[cfg(test)]
mod plain;
mod plugin;
mod plugins;
mod pod;
mod preempt;
mod queue;
mod requests;
#[cfg(test)]
mod scenarios;
mod scores;
mod selector;
mod shell;
mod storage;
#[cfg(test)]
mod shell_tests;
mod volume;
mod watch;
pub mod why;
mod write;

pub use cluster::{Cluster, NodeInfo, NodeIx};
pub use config::{Config, DEFAULT_NAME, DEFAULT_PLUGINS, DefaultSpread, Point, Profile, Strategy};
pub use decide::{Decision, Failure, NodeReasons, Outcome, Turn, decide};
pub use extender::Extender;
pub use hints::Event;
pub use node::{Effect, NodeView, Taint};
pub use plugin::{Check, Plugin, Prepared, Rejection, Site, Why, Work};
pub use pod::{HostPort, Owner, PodAffinity, PodInfo, PodTerm, Shape, Spread, Toleration};
pub use preempt::{Budget, Victims};
pub use requests::Resources;
pub use selector::{Labels, NodeRule, NodeTerm, Operator, Requirement, Selector};
pub use shell::{Handle, start};
pub use volume::PodVolume;
