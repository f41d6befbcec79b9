//! Node life cycle: a node whose lease is not renewed becomes Unknown; conditions become taints; pods
//! on tainted nodes leave when they do not tolerate it, or not for ever.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, run_workers};
use serde_json::json;

use crate::{Context, pods};

/// How long a node may be silent.
pub const GRACE: SignedDuration = SignedDuration::from_secs(50);
/// How often nodes are looked at.
const PERIOD: Duration = Duration::from_secs(5);

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Condition, the status that is bad, and the taint that follows.
const PRESSURE: [(&str, &str, &str); 4] = [
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// The conditions of a node that has been silent for too long.
pub fn silent(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let mut conditions = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            Some(c) if c.status == "Unknown" => {}
            Some(c) => {
                c.status = "Unknown".into();
                c.reason = Some("NodeStatusUnknown".into());
                c.message = Some("Kubelet stopped posting node status.".into());
                c.last_transition_time = Some(Time(now));
            }
            None => conditions.push(NodeCondition {
                type_: kind.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(now)),
            }),
        }
    }
    conditions
}

/// The taints that a node is to have, those of others kept.
pub fn taints(node: &Node, now: Timestamp) -> Vec<Taint> {
    let old = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let ours = |t: &Taint| {
        [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&t.key.as_str()) || PRESSURE.iter().any(|(_, _, key)| *key == t.key)
    };
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match condition(node, "Ready").map(|c| c.status.as_str()) {
        Some("True") => {}
        Some("Unknown") => wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
        Some(_) => wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
        // A node that has said nothing yet keeps the taint that it was registered with.
        None => wanted.push((NOT_READY, "NoSchedule")),
    }
    for (kind, bad, key) in PRESSURE {
        if condition(node, kind).is_some_and(|c| c.status == bad) {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true)) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let mut taints: Vec<Taint> = old.iter().filter(|t| !ours(t)).cloned().collect();
    for (key, effect) in wanted {
        let same = old.iter().find(|t| t.key == key && t.effect == effect).cloned();
        taints.push(same.unwrap_or_else(|| Taint {
            key: key.into(),
            effect: effect.into(),
            time_added: Some(Time(now)),
            ..Taint::default()
        }));
    }
    taints
}

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().unwrap_or("");
    let effect = toleration.effect.as_deref().unwrap_or("");
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref().unwrap_or("Equal") {
            "Exists" => true,
            "" | "Equal" => !key.is_empty() && toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or(""),
            _ => false,
        }
}

/// When a pod must leave a node with these taints: never, or at a time.
pub fn leaves(pod: &Pod, taints: &[Taint], now: Timestamp) -> Option<Timestamp> {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.clone()).unwrap_or_default();
    let mut leaves: Option<Timestamp> = None;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let covering: Vec<&Toleration> = tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        let since = taint.time_added.as_ref().map_or(now, |t| t.0);
        let at = if covering.is_empty() {
            now
        } else {
            match covering.iter().filter_map(|t| t.toleration_seconds).min() {
                None => continue,
                Some(seconds) => since + SignedDuration::from_secs(seconds.max(0)),
            }
        };
        leaves = Some(leaves.map_or(at, |l| l.min(at)));
    }
    leaves
}

#[derive(Clone)]
struct Controller {
    client: Client,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    recorder: Recorder,
    evictor: Recorder,
}

/// Starts the controller.
pub fn start(context: &Context) {
    let controller = Controller {
        client: context.client.clone(),
        nodes: context.informers.of::<Node>(),
        leases: context.informers.of::<Lease>(),
        pods: context.informers.of::<Pod>(),
        recorder: Recorder::new(&context.tasks, context.client.clone(), "node-controller", None),
        evictor: Recorder::new(&context.tasks, context.client.clone(), "taint-eviction-controller", None),
    };
    let c = controller.clone();
    context.tasks.spawn("node-lifecycle", async move { c.watch_over().await });

    let nodes = Queue::<String>::new();
    let pods = Queue::<(String, String)>::new();
    let (q, p, all) = (nodes.clone(), pods.clone(), controller.pods.clone());
    controller.nodes.on_change(move |change| {
        let name = change.latest().name_any();
        let taints = |n: &Option<Arc<Node>>| n.as_ref().and_then(|n| n.spec.as_ref()).and_then(|s| s.taints.clone());
        if taints(&change.old) != taints(&change.new) {
            let here = |pod: &Arc<Pod>| pod.spec.as_ref().and_then(|s| s.node_name.as_ref()) == Some(&name);
            all.list().iter().filter(|p| here(p)).for_each(|pod| p.add((pod.namespace().unwrap_or_default(), pod.name_any())));
        }
        q.add(name);
    });
    let p = pods.clone();
    controller.pods.on_change(move |change| {
        if let Some(pod) = &change.new
            && pod.spec.as_ref().is_some_and(|s| s.node_name.is_some())
        {
            p.add((pod.namespace().unwrap_or_default(), pod.name_any()));
        }
    });
    let c = controller.clone();
    run_workers(&context.tasks, "node-lifecycle taints", 2, nodes, move |name: String| {
        let c = c.clone();
        async move { c.taint(&name).await }
    });
    let c = controller;
    run_workers(&context.tasks, "taint-eviction", 4, pods, move |key: (String, String)| {
        let c = c.clone();
        async move { c.evict(&key.0, &key.1).await }
    });
}

impl Controller {
    /// Marks nodes Unknown whose lease and status have not moved for the grace period, by our own
    /// clock since we saw them move, so that clocks need not agree.
    async fn watch_over(&self) {
        self.nodes.synced().await;
        self.leases.synced().await;
        let mut seen: HashMap<String, (String, Timestamp)> = HashMap::new();
        loop {
            let now = Timestamp::now();
            let nodes = self.nodes.list();
            seen.retain(|name, _| nodes.iter().any(|n| n.name_any() == *name));
            for node in nodes {
                let name = node.name_any();
                let lease = self.leases.get("kube-node-lease", &name);
                let renewed = lease.as_ref().and_then(|l| l.spec.as_ref()?.renew_time.as_ref().map(|t| t.0.to_string()));
                let heartbeat = condition(&node, "Ready").and_then(|c| c.last_heartbeat_time.as_ref().map(|t| t.0.to_string()));
                let sign = format!("{renewed:?} {heartbeat:?}");
                let entry = seen.entry(name.clone()).or_insert_with(|| (sign.clone(), now));
                if entry.0 != sign {
                    *entry = (sign, now);
                }
                if now.duration_since(entry.1) < GRACE {
                    continue;
                }
                let ready = condition(&node, "Ready").map(|c| c.status.clone());
                let conditions = silent(&node, now);
                if node.status.as_ref().and_then(|s| s.conditions.as_ref()) == Some(&conditions) {
                    continue;
                }
                let patch = json!({"status": {"conditions": conditions}});
                match Api::<Node>::all(self.client.clone()).patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                    Ok(_) if ready.as_deref() == Some("True") => {
                        self.recorder.event(&Reference::of(node.as_ref()), EventType::Normal, "NodeNotReady", format!("Node {name} status is now: NodeNotReady"));
                        self.mark_pods(&name, now).await;
                    }
                    Ok(_) => {}
                    Err(error) => tracing::warn!(node = name, "the node could not be marked: {}", pods::text(&error)),
                }
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// The pods of a silent node are not ready: nobody knows.
    async fn mark_pods(&self, node: &str, now: Timestamp) {
        for pod in self.pods.list() {
            if pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) != Some(node) || !pods::is_ready(&pod) {
                continue;
            }
            let patch = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now.to_string()}]}});
            let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
            if let Err(error) = api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await {
                tracing::warn!(pod = pod.name_any(), "the pod could not be marked: {}", pods::text(&error));
            }
        }
    }

    async fn taint(&self, name: &str) -> kube::Result<Requeue> {
        self.nodes.synced().await;
        let Some(node) = self.nodes.get("", name) else { return Ok(Requeue::No) };
        let wanted = taints(&node, Timestamp::now());
        if node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default() == wanted {
            return Ok(Requeue::No);
        }
        let patch = json!({"metadata": {"resourceVersion": node.resource_version()}, "spec": {"taints": wanted}});
        match Api::<Node>::all(self.client.clone()).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(Requeue::No),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Requeue::No),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Requeue::After(Duration::from_millis(10))),
            Err(error) => Err(error),
        }
    }

    async fn evict(&self, namespace: &str, name: &str) -> kube::Result<Requeue> {
        self.nodes.synced().await;
        let Some(pod) = self.pods.get(namespace, name) else { return Ok(Requeue::No) };
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::No);
        }
        let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
        let taints = self.nodes.get("", &node).and_then(|n| n.spec.as_ref()?.taints.clone()).unwrap_or_default();
        let now = Timestamp::now();
        let Some(at) = leaves(&pod, &taints, now) else { return Ok(Requeue::No) };
        if at > now {
            return Ok(Requeue::After(at.duration_since(now).unsigned_abs()));
        }
        self.evictor.event(&Reference::of(pod.as_ref()), EventType::Normal, "TaintManagerEviction", format!("Marking for deletion Pod {namespace}/{name}"));
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let patch = json!({"status": {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": now.to_string()}]}});
        let marked = api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(|_| ());
        let outcome = match marked {
            Ok(()) => api.delete(name, &DeleteParams::default()).await.map(|_| ()),
            failed => failed,
        };
        match outcome {
            Ok(()) => Ok(Requeue::No),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Requeue::No),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, spec: serde_json::Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": [
            {"type": "Ready", "status": ready}, {"type": "DiskPressure", "status": "True"}]}}))
        .expect("a node")
    }

    #[test]
    fn conditions_become_taints_and_those_of_others_stay() {
        let now = Timestamp::UNIX_EPOCH;
        let node = node("Unknown", json!({"unschedulable": true, "taints": [{"key": "mine", "effect": "NoSchedule"}, {"key": NOT_READY, "effect": "NoExecute"}]}));
        let got: Vec<(String, String)> = taints(&node, now).into_iter().map(|t| (t.key, t.effect)).collect();
        let wanted = [
            ("mine", "NoSchedule"),
            (UNREACHABLE, "NoSchedule"),
            (UNREACHABLE, "NoExecute"),
            ("node.kubernetes.io/disk-pressure", "NoSchedule"),
            (UNSCHEDULABLE, "NoSchedule"),
        ];
        assert_eq!(got, wanted.map(|(k, e)| (k.to_string(), e.to_string())));
    }

    #[test]
    fn pods_leave_at_once_later_or_never() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().expect("a time");
        let taint: Taint = serde_json::from_value(json!({"key": "k", "effect": "NoExecute", "timeAdded": "2026-01-01T00:08:00Z"})).expect("a taint");
        let pod = |tolerations: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": [], "tolerations": tolerations}})).expect("a pod")
        };
        assert_eq!(leaves(&pod(json!([])), std::slice::from_ref(&taint), now), Some(now));
        assert_eq!(leaves(&pod(json!([{"key": "k", "operator": "Exists"}])), std::slice::from_ref(&taint), now), None);
        let five = pod(json!([{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]));
        assert_eq!(leaves(&five, &[taint], now), Some("2026-01-01T00:13:00Z".parse().expect("a time")));
    }
}
