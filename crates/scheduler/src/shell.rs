//! The shell: follows pods and nodes, decides for one pod after the other, and binds in parallel. A
//! pod that was decided on counts on its node at once, before the API server has said so.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use reconcile::{EventType, Informer, Informers, Recorder, Reference, Tasks};
use serde_json::json;
use tokio::sync::Notify;

use crate::decide::{Decision, decide};
use crate::queue::{Key, Pending};
use crate::snapshot::{NodeInfo, Snapshot, takes_room};

const NAME: &str = "default-scheduler";

struct Shared {
    client: Client,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    recorder: Recorder,
    tasks: Tasks,
    wake: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: Pending,
    attempts: HashMap<Key, u32>,
    nodes: BTreeMap<String, NodeInfo>,
    /// Pods on nodes, by uid, and those decided on that the informer does not show there yet.
    placed: HashMap<String, (String, Arc<Pod>)>,
    assumed: HashMap<String, Arc<Pod>>,
    decisions: u64,
}

impl State {
    fn place(&mut self, node: &str, pod: &Arc<Pod>) {
        let uid = pod.uid().unwrap_or_default();
        if self.placed.contains_key(&uid) {
            return;
        }
        if let Some(info) = self.nodes.get_mut(node) {
            info.add(pod);
        }
        self.placed.insert(uid, (node.to_string(), pod.clone()));
    }

    fn unplace(&mut self, uid: &str) -> bool {
        let Some((node, _)) = self.placed.remove(uid) else { return false };
        self.rebuild(&node);
        true
    }

    fn rebuild(&mut self, name: &str) {
        if let Some(node) = self.nodes.get(name).map(|i| i.node.clone()) {
            let mut info = NodeInfo::new(node);
            self.placed.values().filter(|(n, _)| n == name).for_each(|(_, pod)| info.add(pod));
            self.nodes.insert(name.to_string(), info);
        }
    }
}

/// Starts the scheduler as tasks of `tasks`.
pub fn start(client: Client, informers: &Informers, tasks: &Tasks) {
    let shared = Arc::new(Shared {
        pods: informers.of::<Pod>(),
        nodes: informers.of::<Node>(),
        recorder: Recorder::new(tasks, client.clone(), NAME, None),
        tasks: tasks.clone(),
        client,
        wake: Notify::new(),
        state: Mutex::default(),
    });
    let s = shared.clone();
    shared.nodes.on_change(move |change| {
        s.node_changed(change.latest(), change.new.is_some());
        s.wake.notify_one();
    });
    let s = shared.clone();
    shared.pods.on_change(move |change| {
        s.pod_changed(change.old.as_ref(), change.new.as_ref());
        s.wake.notify_one();
    });
    tasks.spawn("scheduler", async move {
        shared.pods.synced().await;
        shared.nodes.synced().await;
        shared.run().await;
    });
}

fn waits(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.node_name.as_deref().unwrap_or("").is_empty()
        && spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME
        && spec.scheduling_gates.as_ref().is_none_or(|g| g.is_empty())
        && pod.metadata.deletion_timestamp.is_none()
        && takes_room(pod)
}

impl Shared {
    fn node_changed(&self, node: &Arc<Node>, exists: bool) {
        let mut state = self.state.lock();
        let name = node.name_any();
        if !exists {
            state.nodes.remove(&name);
            return;
        }
        let parts = |n: &Node| (n.spec.clone(), n.labels().clone(), n.status.as_ref().and_then(|s| s.allocatable.clone()));
        let same = state.nodes.get(&name).is_some_and(|old| parts(&old.node) == parts(node));
        let mut info = NodeInfo::new(node.clone());
        state.placed.values().filter(|(n, _)| *n == name).for_each(|(_, pod)| info.add(pod));
        state.nodes.insert(name, info);
        if !same {
            state.queue.changed();
        }
    }

    fn pod_changed(&self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        let mut state = self.state.lock();
        let Some(pod) = new.or(old) else { return };
        let key = (pod.namespace().unwrap_or_default(), pod.name_any());
        let uid = pod.uid().unwrap_or_default();
        let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
        if new.is_none() || !takes_room(pod) {
            state.queue.remove(&key);
            state.attempts.remove(&key);
            state.assumed.remove(&uid);
            if state.unplace(&uid) {
                state.queue.changed();
            }
        } else if !node.is_empty() {
            state.queue.remove(&key);
            state.attempts.remove(&key);
            state.assumed.remove(&uid);
            state.place(&node, pod);
        } else if waits(pod) && !state.assumed.contains_key(&uid) {
            let created = pod.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second());
            let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
            state.queue.put(key.clone(), priority, created);
            // A status alone, as our own, does not make it fit.
            if old.is_some_and(|o| o.spec != pod.spec || o.metadata.labels != pod.metadata.labels) {
                state.queue.changed_one(&key);
            }
        } else if !waits(pod) {
            state.queue.remove(&key);
        }
    }

    async fn run(self: Arc<Self>) {
        loop {
            let (key, next) = {
                let mut guard = self.state.lock();
                let state = &mut *guard;
                let next = state.queue.promote(Instant::now(), &mut state.attempts);
                (state.queue.pop(), next)
            };
            match key {
                Some(key) => self.clone().schedule(key),
                None => {
                    let pause = next.map_or(Duration::from_secs(60), |at| at.saturating_duration_since(Instant::now()));
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }

    fn schedule(self: Arc<Self>, key: Key) {
        let Some(pod) = self.pods.get(&key.0, &key.1).filter(|p| waits(p)) else { return };
        let decision = {
            let mut state = self.state.lock();
            state.decisions += 1;
            let seed = state.decisions;
            let nodes = std::mem::take(&mut state.nodes);
            let snapshot = Snapshot { nodes };
            let decision = decide(&snapshot, &pod, seed);
            state.nodes = snapshot.nodes;
            if let Decision::Bind(node) = &decision {
                state.place(node, &pod);
                state.assumed.insert(pod.uid().unwrap_or_default(), pod.clone());
            } else {
                let attempts = state.attempts.entry(key.clone()).or_insert(0);
                *attempts += 1;
                let attempts = *attempts;
                state.queue.failed(key.clone(), attempts, Instant::now());
            }
            decision
        };
        let tasks = self.tasks.clone();
        tasks.spawn(format!("scheduling {}/{}", key.0, key.1), async move {
            match decision {
                Decision::Bind(node) => self.bind(&pod, &node).await,
                Decision::Unschedulable { message, .. } => self.explain(&pod, &message).await,
            }
        });
    }

    async fn bind(&self, pod: &Arc<Pod>, node: &str) {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let binding = Binding {
            metadata: ObjectMeta { name: Some(name.clone()), namespace: Some(namespace.clone()), uid: pod.uid(), ..ObjectMeta::default() },
            target: ObjectReference { kind: Some("Node".into()), name: Some(node.into()), ..ObjectReference::default() },
        };
        let api = Api::<Pod>::namespaced(self.client.clone(), &namespace);
        let bound: kube::Result<serde_json::Value> = api.create_subresource("binding", &name, &PostParams::default(), &binding).await;
        match bound {
            Ok(_) => {
                let message = format!("Successfully assigned {namespace}/{name} to {node}");
                self.recorder.event(&Reference::of(pod.as_ref()), EventType::Normal, "Scheduled", message);
            }
            Err(error) => {
                let uid = pod.uid().unwrap_or_default();
                let mut state = self.state.lock();
                state.assumed.remove(&uid);
                state.unplace(&uid);
                let gone = matches!(&error, kube::Error::Api(s) if s.code == 404);
                if !gone && self.pods.get(&namespace, &name).is_some_and(|p| waits(&p)) {
                    let key = (namespace.clone(), name.clone());
                    state.queue.failed(key.clone(), 1, Instant::now());
                    state.queue.changed_one(&key);
                }
                tracing::debug!(pod = name, node, "the pod could not be bound: {error}");
            }
        }
        self.wake.notify_one();
    }

    async fn explain(&self, pod: &Pod, message: &str) {
        self.recorder.event(&Reference::of(pod), EventType::Warning, "FailedScheduling", message);
        let known = pod.status.as_ref().and_then(|s| s.conditions.as_ref()).is_some_and(|c| {
            c.iter().any(|c| c.type_ == "PodScheduled" && c.status == "False" && c.reason.as_deref() == Some("Unschedulable") && c.message.as_deref() == Some(message))
        });
        if known {
            return;
        }
        let now = k8s_openapi::jiff::Timestamp::now();
        let patch = json!({"status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": message, "lastProbeTime": null, "lastTransitionTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now)}]}});
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        if let Err(error) = api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await {
            tracing::debug!(pod = pod.name_any(), "the condition could not be written: {error}");
        }
    }
}
