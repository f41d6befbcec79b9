//! What a controller has done that its informer has not shown yet. While anything is outstanding the
//! informer's picture is too old to plan on.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1;
use kube::ResourceExt;
use parking_lot::Mutex;
use reconcile::{Change, Informer};

use crate::pod::Pod;

/// After this time an expectation is given up: the watch has surely caught up.
const TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Default)]
struct Pending {
    created: HashSet<String>,
    deleted: HashSet<String>,
    since: Option<Instant>,
}

/// Deleted pods that are remembered: one may come and go before its creation has been answered.
const REMEMBERED: usize = 1024;

#[derive(Default)]
struct State {
    pending: HashMap<String, Pending>,
    gone: VecDeque<String>,
}

/// Outstanding creations and deletions of pods, by the owner's uid. Clones are the same.
#[derive(Clone, Default)]
pub struct Expectations(Arc<Mutex<State>>);

impl Expectations {
    /// Follows `pods`, so that what is seen is no longer expected.
    pub fn following(pods: &Informer<Pod>) -> Expectations {
        let expectations = Expectations::default();
        let observer = expectations.clone();
        pods.on_change(move |change| observer.observe(change));
        expectations
    }

    fn observe(&self, change: &Change<Pod>) {
        let pod = change.latest();
        let Some(owner) = crate::ownership::controller_of(&pod.metadata) else { return };
        let uid = pod.uid().unwrap_or_default();
        let mut state = self.0.lock();
        if change.new.is_none() {
            state.gone.push_back(uid.clone());
            if state.gone.len() > REMEMBERED {
                state.gone.pop_front();
            }
        }
        let pending = &mut state.pending;
        if let Some(entry) = pending.get_mut(&owner.uid) {
            entry.created.remove(&uid);
            if change.new.is_none() || pod.metadata.deletion_timestamp.is_some() {
                entry.deleted.remove(&uid);
            }
            if entry.created.is_empty() && entry.deleted.is_empty() {
                pending.remove(&owner.uid);
            }
        }
    }

    /// A pod was created; `pods` is asked whether it has been seen already.
    pub fn created(&self, owner: &str, pod: &v1::Pod, pods: &Informer<Pod>) {
        let uid = pod.uid().unwrap_or_default();
        self.insert(owner, |p| p.created.insert(uid.clone()));
        let seen = pods.get(&pod.namespace().unwrap_or_default(), &pod.name_any());
        if seen.is_some_and(|p| p.uid() == pod.uid()) || self.0.lock().gone.contains(&uid) {
            self.remove(owner, |p| p.created.remove(&uid));
        }
    }

    /// A pod is about to be deleted. To be called before the deletion is sent.
    pub fn deleting(&self, owner: &str, uid: &str) {
        self.insert(owner, |p| p.deleted.insert(uid.to_string()));
    }

    /// The deletion failed.
    pub fn not_deleted(&self, owner: &str, uid: &str) {
        self.remove(owner, |p| p.deleted.remove(uid));
    }

    /// Whether everything that was done for `owner` has been seen.
    pub fn fulfilled(&self, owner: &str) -> bool {
        let pending = &mut self.0.lock().pending;
        match pending.get(owner).and_then(|p| p.since) {
            None => true,
            Some(since) if since.elapsed() > TIMEOUT => {
                pending.remove(owner);
                true
            }
            Some(_) => false,
        }
    }

    /// How long something has been outstanding for `owner`; nothing when it is not, or was given up.
    pub fn waiting(&self, owner: &str) -> Option<Duration> {
        if self.fulfilled(owner) {
            return None;
        }
        self.0.lock().pending.get(owner).and_then(|p| p.since).map(|since| since.elapsed())
    }

    fn insert(&self, owner: &str, change: impl FnOnce(&mut Pending) -> bool) {
        let pending = &mut self.0.lock().pending;
        let entry = pending.entry(owner.to_string()).or_default();
        entry.since = Some(Instant::now());
        change(entry);
    }

    fn remove(&self, owner: &str, change: impl FnOnce(&mut Pending) -> bool) {
        let pending = &mut self.0.lock().pending;
        if let Some(entry) = pending.get_mut(owner) {
            change(entry);
            if entry.created.is_empty() && entry.deleted.is_empty() {
                pending.remove(owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str) -> Arc<Pod> {
        let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "o", "controller": true});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": uid, "uid": uid, "ownerReferences": [owner]}})).expect("a pod"))
    }

    #[test]
    fn what_is_seen_is_no_longer_expected() {
        let expectations = Expectations::default();
        expectations.insert("o", |p| p.created.insert("a".into()));
        expectations.deleting("o", "b");
        assert!(!expectations.fulfilled("o") && expectations.fulfilled("p"));
        assert!(expectations.waiting("o").is_some());
        expectations.observe(&Change { old: None, new: Some(pod("a")) });
        expectations.observe(&Change { old: None, new: Some(pod("b")) });
        assert!(!expectations.fulfilled("o"), "b is still there");
        expectations.observe(&Change { old: Some(pod("b")), new: None });
        assert!(expectations.fulfilled("o") && expectations.waiting("o").is_none());
        assert_eq!(expectations.0.lock().gone, ["b"], "its creation may be answered later than its end is seen");
    }

    #[test]
    fn a_deletion_that_failed_is_not_expected() {
        let expectations = Expectations::default();
        expectations.deleting("o", "a");
        expectations.insert("o", |p| p.created.insert("b".into()));
        expectations.not_deleted("o", "a");
        assert!(!expectations.fulfilled("o"), "another one is still expected");
        expectations.remove("o", |p| p.created.remove("b"));
        assert!(expectations.fulfilled("o"));
        for n in 0..=REMEMBERED {
            expectations.observe(&Change { old: Some(pod(&n.to_string())), new: None });
        }
        let gone = &expectations.0.lock().gone;
        assert_eq!((gone.len(), gone.front().map(String::as_str)), (REMEMBERED, Some("1")), "only the last are remembered");
    }

    #[test]
    fn an_expectation_is_given_up_after_five_minutes() {
        let expectations = Expectations::default();
        let fulfilled_after = |time: Duration| {
            expectations.deleting("o", "a");
            expectations.0.lock().pending.get_mut("o").expect("it is expected").since = Instant::now().checked_sub(time);
            expectations.fulfilled("o")
        };
        assert!(!fulfilled_after(TIMEOUT - Duration::from_secs(60)));
        assert!(fulfilled_after(TIMEOUT + Duration::from_secs(1)));
        assert!(expectations.0.lock().pending.is_empty());
    }

    #[tokio::test]
    async fn a_creation_is_expected_unless_it_has_been_seen() {
        let pods = crate::testing::informer::<Pod>(vec![json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "seen", "namespace": "n", "uid": "seen"}})]).await;
        let expected = |name: &str, uid: &str| {
            let expectations = Expectations::default();
            expectations.observe(&Change { old: Some(pod("gone")), new: None });
            expectations.created("o", &serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n", "uid": uid}})).expect("a pod"), &pods);
            !expectations.fulfilled("o")
        };
        assert!(expected("new", "new"));
        assert!(!expected("seen", "seen"));
        assert!(expected("seen", "later"), "what is seen is the one before");
        assert!(!expected("gone", "gone"), "it came and went");
    }
}
