//! Tells the API the status of pods: only what changed, the newest state only, and a state that will
//! last a few milliseconds not at all. Says it again when somebody else has overwritten it, as the node
//! life cycle controller does. Runs a few worker tasks.

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
    /// Strategic merge patch of the status, and the pod after it. `None`: the pod is gone, or another one of that name is there.
    async fn patch_status(&self, pod: &PodKey, patch: Value) -> Result<Option<Pod>, String>;
    /// Removes the pod at once: nothing of it is left on this node.
    async fn delete(&self, pod: &PodKey) -> Result<(), String>;
}

#[async_trait]
impl PodApi for Client {
    async fn patch_status(&self, pod: &PodKey, patch: Value) -> Result<Option<Pod>, String> {
        let api = Api::<Pod>::namespaced(self.clone(), &pod.namespace);
        match api.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(pod) => Ok(Some(pod)),
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(None),
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
    /// What the API has, as far as we know, and since which of its versions.
    written: Value,
    version: u64,
    /// The newest status that was given to us: what the API is to have.
    told: Value,
    /// It has not been sent yet.
    pending: bool,
    /// Something is being sent, so what the API shows meanwhile may be older.
    sending: bool,
    /// What was sent last.
    sent: Value,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Entry {
    /// The API has this. Returns whether it has to be told again, and whether with the very words of the last time.
    fn found(&mut self, pod: &Pod) -> Option<Again> {
        let version = version(pod);
        if self.sending || version < self.version {
            return None;
        }
        self.version = version;
        self.written = serde_json::to_value(&pod.status).unwrap_or_default();
        let patch = patch(&self.written, &self.told, &self.key.uid)?;
        self.pending = true;
        Some(if patch == self.sent { Again::Later } else { Again::Now })
    }
}

/// When a status is to be told again.
#[derive(Debug, PartialEq)]
enum Again {
    Now,
    /// The same has been said before and did not last: no duel.
    Later,
}

fn version(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
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
/// How long we wait before we say the same again; upstream's status manager looks as often.
const REPEAT: Duration = Duration::from_secs(10);
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

    /// The pod is to have this status; `pod` is what the API server showed last. Not `urgent`: it may wait a little.
    pub fn set(&self, key: &PodKey, pod: &Pod, status: &PodStatus, urgent: bool) {
        let told = serde_json::to_value(status).unwrap_or_default();
        {
            let mut entries = self.entries.lock();
            let entry = entries.entry(key.uid.clone()).or_insert_with(|| Entry {
                key: key.clone(),
                written: serde_json::to_value(&pod.status).unwrap_or_default(),
                version: version(pod),
                told: Value::Null,
                pending: false,
                sending: false,
                sent: Value::Null,
                waiting: Vec::new(),
            });
            entry.told = told;
            // While something is being sent, its answer will tell.
            entry.pending = entry.sending || patch(&entry.written, &entry.told, &key.uid).is_some();
            if !entry.pending {
                return;
            }
        }
        if urgent {
            self.queue.add(key.uid.clone());
        } else {
            self.queue.add_after(key.uid.clone(), PATIENCE);
        }
    }

    /// The API server shows this pod. If its status is not what we told last, it is told again.
    pub fn seen(&self, pod: &Pod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let again = self.entries.lock().get_mut(&uid).and_then(|entry| if entry.pending { None } else { entry.found(pod) });
        self.again(uid, again);
    }

    fn again(&self, uid: String, again: Option<Again>) {
        match again {
            Some(Again::Now) => self.queue.add(uid),
            Some(Again::Later) => self.queue.add_after(uid, REPEAT),
            None => {}
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
        let status = &entry.told;
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
        let (key, patch, waiting) = {
            let mut entries = self.entries.lock();
            let Some(entry) = entries.get_mut(uid) else { return Ok(()) };
            let waiting = std::mem::take(&mut entry.waiting);
            if !std::mem::take(&mut entry.pending) {
                return Ok(());
            }
            let Some(patch) = patch(&entry.written, &entry.told, uid) else { return Ok(()) };
            entry.sending = true;
            entry.sent = patch.clone();
            (entry.key.clone(), patch, waiting)
        };
        let answer = self.api.patch_status(&key, patch).await;
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(uid) else { return Ok(()) };
        entry.sending = false;
        match answer {
            Ok(Some(pod)) => {
                let again = entry.found(&pod);
                for waiter in waiting {
                    // Whoever gave up waiting needs nothing.
                    let _ = waiter.send(());
                }
                drop(entries);
                self.again(uid.to_string(), again);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => {
                entry.pending = true;
                entry.waiting.extend(waiting);
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

    /// Remembers what is written, and holds the status of pods.
    #[derive(Default)]
    pub struct FakeApi {
        pub patches: Mutex<Vec<Value>>,
        pub deleted: Mutex<Vec<String>>,
        pub changed: tokio::sync::Notify,
        pods: Mutex<HashMap<String, (u64, Map<String, Value>)>>,
    }

    impl FakeApi {
        /// Somebody writes a field of the status.
        fn write(&self, uid: &str, fields: &Value) -> Pod {
            let mut pods = self.pods.lock();
            let (version, status) = pods.entry(uid.to_string()).or_default();
            *version += 1;
            for (key, value) in fields.as_object().into_iter().flatten() {
                match value {
                    Value::Null => drop(status.remove(key)),
                    Value::Array(items) if key == "conditions" => {
                        let all = status.entry(key).or_insert_with(|| json!([])).as_array_mut().expect("a list");
                        for item in items {
                            all.retain(|c| c["type"] != item["type"]);
                            let mut item = item.clone();
                            item.as_object_mut().expect("an object").retain(|_, v| !v.is_null());
                            all.push(item);
                        }
                        all.retain(|c| c.get("$patch").is_none());
                    }
                    Value::Array(items) => {
                        let items = items.iter().filter(|i| i.get("$patch").is_none()).cloned().collect();
                        status.insert(key.clone(), Value::Array(items));
                    }
                    other => drop(status.insert(key.clone(), other.clone())),
                }
            }
            serde_json::from_value(json!({"metadata": {"uid": uid, "resourceVersion": version.to_string()}, "status": status})).unwrap()
        }
    }

    #[async_trait]
    impl PodApi for FakeApi {
        async fn patch_status(&self, pod: &PodKey, patch: Value) -> Result<Option<Pod>, String> {
            let after = self.write(&pod.uid, &patch["status"]);
            self.patches.lock().push(patch);
            self.changed.notify_waiters();
            Ok(Some(after))
        }
        async fn delete(&self, pod: &PodKey) -> Result<(), String> {
            self.deleted.lock().push(pod.uid.clone());
            self.changed.notify_waiters();
            Ok(())
        }
    }

    async fn written(api: &FakeApi, count: usize) {
        loop {
            let changed = api.changed.notified();
            if api.patches.lock().len() >= count {
                return;
            }
            changed.await;
        }
    }

    /// What another writes over ours is told again at once, the same thing once more only after a while.
    #[tokio::test]
    async fn what_was_overwritten_is_told_again() {
        let api = Arc::new(FakeApi::default());
        let tasks = Tasks::new();
        let reporter = Reporter::new(api.clone(), &tasks);
        let key = PodKey { namespace: "n".into(), name: "p".into(), uid: "u".into() };
        let status = PodStatus { phase: Some("Running".into()), host_ip: Some("192.0.2.1".into()), ..PodStatus::default() };
        reporter.set(&key, &Pod::default(), &status, true);
        written(&api, 1).await;
        reporter.flush("u").await;
        reporter.seen(&api.write("u", &json!({"nominatedNodeName": "theirs"})));
        let overwritten = api.write("u", &json!({"phase": "Pending"}));
        reporter.seen(&overwritten);
        written(&api, 2).await;
        assert_eq!(api.patches.lock()[1]["status"], json!({"phase": "Running"}));
        reporter.flush("u").await;
        // An event that is older than our write says nothing, and a duel is not fought.
        reporter.seen(&overwritten);
        reporter.seen(&api.write("u", &json!({"phase": "Pending"})));
        assert!(tokio::time::timeout(PATIENCE, written(&api, 3)).await.is_err());
        tasks.shutdown(Duration::from_secs(1)).await;
    }

    #[tokio::test]
    async fn a_passing_state_is_not_written() {
        let api = Arc::new(FakeApi::default());
        let tasks = Tasks::new();
        let reporter = Reporter::new(api.clone(), &tasks);
        let key = PodKey { namespace: "n".into(), name: "p".into(), uid: "u".into() };
        let status = |phase: &str| PodStatus { phase: Some(phase.into()), ..PodStatus::default() };
        reporter.set(&key, &Pod::default(), &status("Pending"), false);
        reporter.set(&key, &Pod::default(), &status("Running"), true);
        reporter.flush("u").await;
        reporter.set(&key, &Pod::default(), &status("Running"), true);
        reporter.flush("u").await;
        let phases: Vec<Value> = api.patches.lock().iter().map(|p| p["status"]["phase"].clone()).collect();
        assert_eq!(phases, ["Running"]);
        tasks.shutdown(Duration::from_secs(1)).await;
    }
}
