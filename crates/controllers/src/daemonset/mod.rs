//! Daemon sets: one pod on each node that fits. [`nodes`] says which nodes those are, [`plan`] what is to
//! be made and deleted, `sync` reads and acts. Pods are bound by the scheduler; each names its node in
//! its affinity.

mod backoff;
mod history;
pub mod nodes;
pub mod plan;
mod rollout;
mod status;
mod sync;

pub use backoff::Backoff;
pub use sync::start;

/// Label of a pod: the generation of the template that made it, as daemon sets before revisions had it.
pub const GENERATION_LABEL: &str = "pod-template-generation";
/// Annotation of a daemon set: its template's generation.
pub const GENERATION: &str = "deprecated.daemonset.template.generation";
