//! Jobs: pods run to completion, each counted exactly once. A pod keeps a finalizer until its end is
//! in the job's status, so that no end is lost to whoever deletes pods. [`plan`] decides, `sync` acts.

mod indexes;
pub mod plan;
mod sync;

pub use sync::start;

/// The finalizer of a pod whose end has not been counted.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// The index of a pod of an indexed job: annotation and label.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
