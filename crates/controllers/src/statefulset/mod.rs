//! Stateful sets: pods with names and volumes that stay. [`plan`] decides which pods are made, deleted
//! and mended, in which order; [`claims`] whose their volume claims are; `sync` reads and acts.

pub mod claims;
pub mod identity;
pub mod plan;
mod revisions;
mod sync;

pub use sync::start;

/// Label of a pod: its own name, for services of one pod.
pub const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
/// Label of a pod: its ordinal.
pub const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";
