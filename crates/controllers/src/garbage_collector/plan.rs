//! What becomes of an object that has owners. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PropagationPolicy;

use super::slim::Meta;

/// How an owner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It exists.
    Solid,
    /// It exists, but no watch has shown it yet.
    Unseen,
    /// It is being deleted and waits for its dependents.
    Waiting,
    /// It does not exist (any more), or not where its dependent looks for it.
    Absent,
    /// Its kind is not served (yet); nothing may be concluded.
    Unknown,
    /// A cluster-wide object names an owner within a namespace: nothing can ever be concluded.
    Nonsense,
}

/// What is to be done with an object.
#[derive(Debug, PartialEq)]
pub enum Action {
    Nothing,
    /// Nothing for now; look again later.
    Retry,
    /// Some of its owners are there, and these references are the ones to keep.
    Keep(Vec<OwnerReference>),
    /// It has no owner left. With `unblock`, its references shall stop blocking its owners first: it
    /// may be part of a cycle.
    Delete { policy: PropagationPolicy, unblock: bool },
}

/// Decides about an object with owners. `standings` are theirs, in order; `dependents` says whether
/// the object has some itself, and whether one of them waits for its own.
pub fn decide(live: &Meta, standings: &[Standing], dependents: (bool, bool)) -> Action {
    if live.owner_references.is_empty() || standings.contains(&Standing::Nonsense) {
        return Action::Nothing;
    }
    if standings.contains(&Standing::Unknown) {
        return Action::Retry;
    }
    let exists = |s: &Standing| matches!(s, Standing::Solid | Standing::Unseen);
    let keep: Vec<OwnerReference> =
        live.owner_references.iter().zip(standings).filter(|(_, s)| exists(s)).map(|(r, _)| r.clone()).collect();
    if !keep.is_empty() {
        // References to owners that wait go as well, or those would wait for ever.
        return match keep.len() == live.owner_references.len() {
            false => Action::Keep(keep),
            true if standings.contains(&Standing::Unseen) => Action::Retry,
            true => Action::Nothing,
        };
    }
    let has = |finalizer: &str| live.finalizers.iter().any(|f| f == finalizer);
    if standings.contains(&Standing::Waiting) && dependents.0 {
        return Action::Delete { policy: PropagationPolicy::Foreground, unblock: dependents.1 };
    }
    let policy = if has("orphan") {
        PropagationPolicy::Orphan
    } else if has("foregroundDeletion") {
        PropagationPolicy::Foreground
    } else {
        PropagationPolicy::Background
    };
    Action::Delete { policy, unblock: false }
}
