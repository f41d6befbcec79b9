//! What the controller remembers of jobs between passes: what it has done that the informers may not
//! show yet, and failures for the back-off. All of it may be lost; then a pass looks again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kube::ResourceExt;
use parking_lot::Mutex;
use reconcile::{Change, Informer};

use super::backoff::Record;
use super::pod::tracked;
use crate::ownership;
use crate::pod::Pod;

#[derive(Default)]
struct OfJob {
    /// Pods whose finalizer was removed, until they are seen without it.
    untracked: HashSet<String>,
    backoff: Record,
}

/// By the job's uid. Clones are the same.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<HashMap<String, OfJob>>>);

impl Memory {
    /// Follows `pods`, to forget removals that are seen.
    pub fn following(pods: &Informer<Pod>) -> Memory {
        let memory = Memory::default();
        let observer = memory.clone();
        pods.on_change(move |change| observer.observe(change));
        memory
    }

    fn observe(&self, change: &Change<Pod>) {
        let pod = change.latest();
        if change.new.is_some() && tracked(pod) {
            return;
        }
        let Some(owner) = ownership::controller_of(&pod.metadata) else { return };
        if let Some(job) = self.0.lock().get_mut(&owner.uid) {
            job.untracked.remove(&pod.uid().unwrap_or_default());
        }
    }

    /// Pods of the job whose finalizer is gone.
    pub fn untracked(&self, job: &str) -> HashSet<String> {
        self.0.lock().get(job).map(|j| j.untracked.clone()).unwrap_or_default()
    }

    /// The pod's finalizer is about to be removed.
    pub fn untracking(&self, job: &str, pod: &str) {
        self.0.lock().entry(job.to_string()).or_default().untracked.insert(pod.to_string());
    }

    /// It was not removed after all.
    pub fn not_untracked(&self, job: &str, pod: &str) {
        if let Some(job) = self.0.lock().get_mut(job) {
            job.untracked.remove(pod);
        }
    }

    /// The failures counted so far.
    pub fn backoff(&self, job: &str) -> Record {
        self.0.lock().get(job).map(|j| j.backoff).unwrap_or_default()
    }

    /// Remembers failures that are in the status now.
    pub fn count(&self, job: &str, record: Record) {
        self.0.lock().entry(job.to_string()).or_default().backoff = record;
    }

    /// Nothing more will be asked about the job.
    pub fn forget(&self, job: &str) {
        self.0.lock().remove(job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn removals_are_forgotten_when_seen() {
        let memory = Memory::default();
        let pod = |finalizers: &[&str]| {
            let owner = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "j", "controller": true}]);
            let meta = json!({"metadata": {"uid": "p", "finalizers": finalizers, "ownerReferences": owner}});
            Arc::new(serde_json::from_value::<Pod>(meta).expect("a pod"))
        };
        memory.untracking("j", "p");
        memory.observe(&Change { old: None, new: Some(pod(&[super::super::FINALIZER])) });
        assert_eq!(memory.untracked("j").len(), 1);
        memory.observe(&Change { old: None, new: Some(pod(&[])) });
        assert!(memory.untracked("j").is_empty());
    }

    #[test]
    fn a_job_is_remembered_until_it_is_forgotten() {
        let memory = Memory::default();
        memory.untracking("j", "p");
        memory.not_untracked("j", "p");
        assert!(memory.untracked("j").is_empty(), "its finalizer could not be removed");
        let record = Record::default().after(&[], &[], jiff::Timestamp::UNIX_EPOCH);
        let failed = json!({"metadata": {"uid": "f"}, "status": {"phase": "Failed"}});
        let record = record.after(&[], &[Arc::new(serde_json::from_value(failed).expect("a pod"))], jiff::Timestamp::UNIX_EPOCH);
        memory.count("j", record);
        assert!(memory.backoff("j").left(jiff::Timestamp::UNIX_EPOCH).is_some() && memory.backoff("other").left(jiff::Timestamp::UNIX_EPOCH).is_none());
        memory.forget("j");
        assert!(memory.backoff("j").left(jiff::Timestamp::UNIX_EPOCH).is_none());
    }
}
