//! Deployments: a replica set a revision, scaled up and down by the strategy, and the status and
//! conditions that `kubectl rollout` reads. The plan is in [`plan`].

mod new_set;
pub mod plan;
mod status;
mod sync;

pub use sync::start;

/// The revision of a deployment and of its replica sets.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// The revisions that a replica set stood for before it became current again.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The replicas that the deployment wanted when a set was last scaled.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// The most replicas that the deployment allowed when a set was last scaled.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// The revision that annotations name, or 0.
pub(crate) fn revision(annotations: &std::collections::BTreeMap<String, String>) -> i64 {
    annotations.get(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}
