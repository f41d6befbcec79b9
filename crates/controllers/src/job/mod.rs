//! Jobs: pods run to completion, each counted exactly once. A pod keeps a finalizer until its end is
//! in the job's status, so that no end is lost to whoever deletes pods.
//!
//! One pass over a job: [`plan`] decides from the job and its pods, `sync` creates and deletes pods,
//! [`settle`] decides what the status says then and which pods lose their finalizer.

mod backoff;
mod indexes;
mod memory;
mod orphans;
pub mod plan;
mod pod;
mod policy;
pub mod settle;
mod sync;
#[cfg(test)]
mod scenarios;

pub use sync::start;

/// The finalizer of a pod whose end has not been counted.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// The index of a pod of an indexed job: annotation and label.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often pods of this index have failed before: annotation.
const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// How often pods of this index have failed in ways that the failure policy ignores: annotation.
const INDEX_IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
