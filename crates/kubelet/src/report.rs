//! Tells the API the status of pods: only what changed, the newest state only, and a state that will
//! last a few milliseconds not at all. Runs a few worker tasks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use reconcile::{Queue, Requeue, Tasks, run_workers};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

/// A pod of the API, as far as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodKey {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// What is written about pods. A trait, so that tests need no API server.
#[async_trait]
pub trait PodApi: Send + Sync {
    /// Strategic merge patch of the status. `false`: the pod is gone, or another one of that name is there.
    async fn patch_status(&self, pod: &PodKey, patch: Value) -> Result<bool, String>;
    /// Removes the pod at once: nothing of it is left on this node.
    async fn delete(&self, pod: &PodKey) -> Result<(), String>;
}

#[async_trait]
impl PodApi for Client {
    async fn patch_status(&self, pod: &PodKey, patch: Value) -> Result<bool, String> {
        let api = Api::<Pod>::namespaced(self.clone(), &pod.namespace);
        match api.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn delete(&self, pod: &PodKey) -> Result<(), String> {
        let api = Api::<Pod>::namespaced(self.clone(), &pod.namespace);
        let preconditions = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
        let params = DeleteParams { grace_period_seconds: Some(0), preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(&pod.name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The patch that turns the status `old` into `new`; `None` when there is nothing to change. Fields
/// that the kubelet does not write, and conditions of others, are left alone. Pure.
pub fn patch(old: &Value, new: &Value, uid: &str) -> Option<Value> {
    const OWNED: &[&str] = &[
        "phase", "reason", "message", "hostIP", "hostIPs", "podIP", "podIPs", "startTime", "qosClass", "initContainerStatuses",
        "containerStatuses", "ephemeralContainerStatuses", "observedGeneration",
    ];
    let mut status = Map::new();
    for key in OWNED {
        match (old.get(key), new.get(key)) {
            (before, Some(now)) if before != Some(now) => {
                let mut now = now.clone();
                // Merged by address, these would pile up.
                if matches!(*key, "podIPs" | "hostIPs")
                    && before.and_then(Value::as_array).is_some_and(|a| !a.is_empty())
                    && let Some(list) = now.as_array_mut()
                {
                    list.push(json!({"$patch": "replace"}));
                }
                status.insert((*key).to_string(), now);
            }
            (Some(_), None) => {
                status.insert((*key).to_string(), Value::Null);
            }
            _ => {}
        }
    }
    let none = Vec::new();
    let before = old["conditions"].as_array().unwrap_or(&none);
    let fields = |c: &Value| ["status", "reason", "message", "observedGeneration"].map(|k| c.get(k).cloned());
    let changed: Vec<Value> = new["conditions"]
        .as_array()
        .unwrap_or(&none)
        .iter()
        .filter(|c| before.iter().find(|b| b["type"] == c["type"]).is_none_or(|b| fields(b) != fields(c)))
        .map(|c| {
            let mut c = c.clone();
            // Merged by type, a reason that is no more has to be taken away.
            if let Some(was) = before.iter().find(|b| b["type"] == c["type"]) {
                for key in ["reason", "message"] {
                    if was.get(key).is_some() && c.get(key).is_none() {
                        c[key] = Value::Null;
                    }
                }
            }
            c
        })
        .collect();
    // These two are there while they hold; the others become false.
    let of_resizes = |c: &Value| matches!(c["type"].as_str(), Some("PodResizePending" | "PodResizeInProgress"));
    let now = new["conditions"].as_array().unwrap_or(&none);
    let gone = before.iter().filter(|b| of_resizes(b) && now.iter().all(|c| c["type"] != b["type"]));
    let changed: Vec<Value> = changed.into_iter().chain(gone.map(|b| json!({"$patch": "delete", "type": b["type"]}))).collect();
    if !changed.is_empty() {
        status.insert("conditions".to_string(), Value::Array(changed));
    }
    (!status.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": status}))
}

struct Entry {
    key: PodKey,
    /// What the API has, as far as we know.
    written: Value,
    wanted: Option<Value>,
    waiting: Vec<oneshot::Sender<()>>,
}

/// The reporter. Clones are the same.
#[derive(Clone)]
pub struct Reporter {
    api: Arc<dyn PodApi>,
    queue: Queue<String>,
    entries: Arc<Mutex<HashMap<String, Entry>>>,
}

/// How long a state may wait for a better one, when nobody waits for it.
const PATIENCE: Duration = Duration::from_millis(150);
const WORKERS: usize = 4;

impl Reporter {
    pub fn new(api: Arc<dyn PodApi>, tasks: &Tasks) -> Reporter {
        let reporter = Reporter { api, queue: Queue::new(), entries: Arc::default() };
        let worker = reporter.clone();
        run_workers(tasks, "pod status", WORKERS, reporter.queue.clone(), move |uid: String| {
            let reporter = worker.clone();
            async move { reporter.write(&uid).await.map(|()| Requeue::No) }
        });
        reporter
    }

    /// The pod is to have this status. `current` is what the API server showed last. Not `urgent`: it may wait a little.
    pub fn set(&self, key: &PodKey, current: Option<&PodStatus>, status: &PodStatus, urgent: bool) {
        let wanted = serde_json::to_value(status).unwrap_or_default();
        {
            let mut entries = self.entries.lock();
            let entry = entries.entry(key.uid.clone()).or_insert_with(|| Entry {
                key: key.clone(),
                written: serde_json::to_value(current).unwrap_or_default(),
                wanted: None,
                waiting: Vec::new(),
            });
            if patch(&entry.written, &wanted, &key.uid).is_none() {
                entry.wanted = None;
                return;
            }
            entry.wanted = Some(wanted);
        }
        if urgent {
            self.queue.add(key.uid.clone());
        } else {
            self.queue.add_after(key.uid.clone(), PATIENCE);
        }
    }

    /// Completes when the last status that was set has been written, or the pod is gone.
    pub async fn flush(&self, uid: &str) {
        let receiver = {
            let mut entries = self.entries.lock();
            let Some(entry) = entries.get_mut(uid) else { return };
            let (sender, receiver) = oneshot::channel();
            entry.waiting.push(sender);
            receiver
        };
        self.queue.add(uid.to_string());
        // The sender goes when the pod is forgotten: as good as written.
        let _ = receiver.await;
    }

    /// Why a container waits, as last told or about to be told.
    pub fn waiting_reason(&self, uid: &str, container: &str) -> Option<String> {
        let entries = self.entries.lock();
        let entry = entries.get(uid)?;
        let status = entry.wanted.as_ref().unwrap_or(&entry.written);
        let lists = ["initContainerStatuses", "containerStatuses"].into_iter().filter_map(|l| status[l].as_array());
        let found = lists.flatten().find(|c| c["name"] == container)?;
        found["state"]["waiting"]["reason"].as_str().map(str::to_string)
    }

    /// Removes the pod from the API.
    pub async fn delete(&self, key: &PodKey) -> Result<(), String> {
        self.api.delete(key).await
    }

    /// The pod is gone.
    pub fn forget(&self, uid: &str) {
        self.entries.lock().remove(uid);
    }

    async fn write(&self, uid: &str) -> Result<(), String> {
        let (key, wanted, patch, waiting) = {
            let mut entries = self.entries.lock();
            let Some(entry) = entries.get_mut(uid) else { return Ok(()) };
            let waiting = std::mem::take(&mut entry.waiting);
            let Some(wanted) = entry.wanted.take() else { return Ok(()) };
            let Some(patch) = patch(&entry.written, &wanted, uid) else { return Ok(()) };
            (entry.key.clone(), wanted, patch, waiting)
        };
        match self.api.patch_status(&key, patch).await {
            Ok(true) => {
                if let Some(entry) = self.entries.lock().get_mut(uid) {
                    entry.written = wanted;
                }
                for waiter in waiting {
                    // Whoever gave up waiting needs nothing.
                    let _ = waiter.send(());
                }
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) => {
                if let Some(entry) = self.entries.lock().get_mut(uid) {
                    entry.wanted.get_or_insert(wanted);
                    entry.waiting.extend(waiting);
                }
                Err(error)
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    #[test]
    fn only_changes_are_written() {
        let old = json!({"phase": "Pending", "podIPs": [{"ip": "1"}], "reason": "x", "nominatedNodeName": "n",
            "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady", "lastTransitionTime": "1"}, {"type": "Mine", "status": "True"}]});
        assert_eq!(patch(&old, &old, "u"), None);
        let new = json!({"phase": "Running", "podIPs": [{"ip": "2"}], "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2"}]});
        assert_eq!(
            patch(&old, &new, "u").unwrap(),
            json!({"metadata": {"uid": "u"}, "status": {
                "phase": "Running", "reason": null, "podIPs": [{"ip": "2"}, {"$patch": "replace"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": null, "lastTransitionTime": "2"}]}})
        );
    }

    /// Remembers what is written.
    #[derive(Default)]
    pub struct FakeApi {
        pub patches: Mutex<Vec<Value>>,
        pub deleted: Mutex<Vec<String>>,
        pub changed: tokio::sync::Notify,
    }

    #[async_trait]
    impl PodApi for FakeApi {
        async fn patch_status(&self, _: &PodKey, patch: Value) -> Result<bool, String> {
            self.patches.lock().push(patch);
            self.changed.notify_waiters();
            Ok(true)
        }
        async fn delete(&self, pod: &PodKey) -> Result<(), String> {
            self.deleted.lock().push(pod.uid.clone());
            self.changed.notify_waiters();
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_passing_state_is_not_written() {
        let api = Arc::new(FakeApi::default());
        let tasks = Tasks::new();
        let reporter = Reporter::new(api.clone(), &tasks);
        let key = PodKey { namespace: "n".into(), name: "p".into(), uid: "u".into() };
        let status = |phase: &str| PodStatus { phase: Some(phase.into()), ..PodStatus::default() };
        reporter.set(&key, None, &status("Pending"), false);
        reporter.set(&key, None, &status("Running"), true);
        reporter.flush("u").await;
        reporter.set(&key, None, &status("Running"), true);
        reporter.flush("u").await;
        let phases: Vec<Value> = api.patches.lock().iter().map(|p| p["status"]["phase"].clone()).collect();
        assert_eq!(phases, ["Running"]);
        tasks.shutdown(Duration::from_secs(1)).await;
    }
}
