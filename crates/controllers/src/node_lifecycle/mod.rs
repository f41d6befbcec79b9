//! Node life cycle: a node that gives no sign of life becomes Unknown, conditions become taints, and
//! the pods of a node that is not ready are not ready either. Who leaves a tainted node is decided by
//! [`crate::taint_eviction`].
//!
//! Tasks: one looks at all nodes every five seconds, one gives nodes up at the rate of their zone,
//! workers follow single nodes and pods.

mod health;
mod taints;
mod zones;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, run_workers};
use serde_json::json;

use crate::pod::Pod;
use crate::{Context, pods};
use health::{Health, ready, silent};
use zones::{Turn, Zones};

/// How long silence is borne, and how fast nodes are given up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often nodes are looked at.
    pub period: Duration,
    /// How long a node may be silent.
    pub grace: SignedDuration,
    /// How long a new node may take to say its first word.
    pub startup_grace: SignedDuration,
    /// Nodes a second that are given up, normally.
    pub eviction_rate: f64,
    /// Nodes a second in a large zone of which much has failed.
    pub secondary_eviction_rate: f64,
    /// A zone with more nodes is large.
    pub large_cluster: usize,
    /// Part of a zone that must have failed for it to be called disrupted.
    pub unhealthy_zone: f64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            period: Duration::from_secs(5),
            grace: SignedDuration::from_secs(50),
            startup_grace: SignedDuration::from_mins(1),
            eviction_rate: 0.1,
            secondary_eviction_rate: 0.01,
            large_cluster: 50,
            unhealthy_zone: 0.55,
        }
    }
}

/// How often nodes are given up, if there are any to give up.
const EVICTION_PERIOD: Duration = Duration::from_millis(100);
/// Labels of old, kept equal to those that replaced them.
const LABELS: [(&str, &str); 2] = [("kubernetes.io/os", "beta.kubernetes.io/os"), ("kubernetes.io/arch", "beta.kubernetes.io/arch")];

/// The labels of a node that must be written: the old names of what its kubelet says.
pub fn labels(node: &Node) -> BTreeMap<String, String> {
    let labels = node.labels();
    let differs = |(primary, secondary): &(&str, &str)| {
        let value = labels.get(*primary)?;
        (labels.get(*secondary) != Some(value)).then(|| (secondary.to_string(), value.clone()))
    };
    LABELS.iter().filter_map(differs).collect()
}

#[derive(Clone)]
struct Controller {
    client: Client,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    recorder: Recorder,
    zones: Arc<Mutex<Zones>>,
    settings: Settings,
    unmarked: Queue<(String, String)>,
}

/// Starts the controller.
pub fn start(context: &Context, settings: Settings) {
    let controller = Controller {
        client: context.client.clone(),
        nodes: context.informers.of::<Node>(),
        leases: context.informers.of::<Lease>(),
        pods: context.informers.of::<Pod>(),
        recorder: Recorder::new(&context.tasks, context.client.clone(), "node-controller", None),
        zones: Arc::new(Mutex::new(Zones::new(settings.clone()))),
        settings,
        unmarked: Queue::new(),
    };
    let c = controller.clone();
    context.tasks.spawn("node-lifecycle", async move { c.watch_over().await });
    let c = controller.clone();
    context.tasks.spawn("node-lifecycle evictions", async move {
        loop {
            tokio::time::sleep(EVICTION_PERIOD).await;
            let due = c.zones.lock().due(Timestamp::now());
            for name in due {
                c.give_up(&name).await;
            }
        }
    });

    let nodes = Queue::<String>::new();
    let (q, recorder) = (nodes.clone(), controller.recorder.clone());
    controller.nodes.on_change(move |change| {
        let name = change.latest().name_any();
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && ready(old) == Some("True")
            && ready(new).is_some_and(|status| status != "True")
        {
            let message = format!("Node {name} status is now: NodeNotReady");
            recorder.event(&Reference::of(new.as_ref()), EventType::Normal, "NodeNotReady", message);
        }
        q.add(name);
    });
    let c = controller.clone();
    run_workers(&context.tasks, "node-lifecycle nodes", 8, nodes, move |name: String| {
        let c = c.clone();
        async move { pods::again_on_conflict(c.follow(&name).await) }
    });
    let q = controller.unmarked.clone();
    controller.pods.on_change(move |change| {
        let node = |pod: &Option<Arc<Pod>>| pod.as_ref().and_then(|p| p.spec.as_ref()?.node_name.clone());
        if let Some(pod) = &change.new
            && node(&change.new).is_some()
            && node(&change.old) != node(&change.new)
        {
            q.add((pod.namespace().unwrap_or_default(), pod.name_any()));
        }
    });
    let c = controller.clone();
    run_workers(&context.tasks, "node-lifecycle pods", 4, controller.unmarked, move |key: (String, String)| {
        let c = c.clone();
        async move { pods::again_on_conflict(c.mark_pod(&key.0, &key.1).await) }
    });
}

impl Controller {
    async fn watch_over(&self) {
        self.nodes.synced().await;
        self.leases.synced().await;
        let mut seen: HashMap<String, (String, Health)> = HashMap::new();
        loop {
            let nodes = self.nodes.list();
            self.greet(&nodes, &mut seen);
            let mut numbers: BTreeMap<String, (usize, usize)> = BTreeMap::new();
            for node in &nodes {
                let name = node.name_any();
                let now = Timestamp::now();
                let lease = self.leases.get("kube-node-lease", &name);
                let (_, health) =
                    seen.entry(name).or_insert_with(|| (node.uid().unwrap_or_default(), Health::new(node, lease.as_deref(), now)));
                health.observe(node, lease.as_deref(), now);
                let silent = health.is_silent(node, &self.settings, now);
                let node = if silent { self.silence(node, now).await } else { node.clone() };
                if zones::counts(&node) {
                    let number = numbers.entry(zones::of(&node)).or_default();
                    match ready(&node) {
                        Some("True") => number.0 += 1,
                        _ => number.1 += 1,
                    }
                }
                self.judge(&node).await;
            }
            let turn = self.zones.lock().judge(&numbers);
            match turn {
                Turn::Nothing => {}
                Turn::AllLost => {
                    tracing::info!("all nodes are not ready: none of them is given up");
                    for node in &nodes {
                        self.zones.lock().keep(&node.name_any());
                        self.write_taints(node, taints::reachable(node)).await;
                    }
                }
                Turn::SomeBack => {
                    tracing::info!("some nodes are ready again");
                    let now = Timestamp::now();
                    seen.values_mut().for_each(|(_, health)| health.probe = now);
                }
            }
            tokio::time::sleep(self.settings.period).await;
        }
    }

    /// Tells of nodes that came and went.
    fn greet(&self, nodes: &[Arc<Node>], seen: &mut HashMap<String, (String, Health)>) {
        let event = |name: &str, uid: &str, reason: &str, message: String| {
            let reference = Reference { api_version: "v1".into(), kind: "Node".into(), name: name.into(), uid: uid.into(), ..Reference::default() };
            self.recorder.event(&reference, EventType::Normal, reason, message);
        };
        let now: HashMap<String, String> = nodes.iter().map(|n| (n.name_any(), n.uid().unwrap_or_default())).collect();
        seen.retain(|name, (uid, _)| {
            let stays = now.get(name) == Some(uid);
            if !stays {
                event(name, uid, "RemovingNode", format!("Removing Node {name} from Controller"));
                self.zones.lock().keep(name);
            }
            stays
        });
        for (name, uid) in now.iter().filter(|(name, _)| !seen.contains_key(*name)) {
            event(name, uid, "RegisteredNode", format!("Registered Node {name} in Controller"));
        }
    }

    /// Marks a silent node. Returns the node as it is then.
    async fn silence(&self, node: &Arc<Node>, now: Timestamp) -> Arc<Node> {
        let conditions = silent(node, now);
        if node.status.as_ref().and_then(|s| s.conditions.as_ref()) == Some(&conditions) {
            return node.clone();
        }
        let name = node.name_any();
        let patch = json!({"metadata": {"uid": node.uid()}, "status": {"conditions": conditions}});
        match Api::<Node>::all(self.client.clone()).patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(marked) => Arc::new(marked),
            Err(error) => {
                tracing::warn!(node = name, "the node could not be marked: {}", pods::text(&error));
                node.clone()
            }
        }
    }

    /// Decides whether a node is to be given up.
    async fn judge(&self, node: &Arc<Node>) {
        let name = node.name_any();
        match ready(node) {
            None => {}
            Some("True") => {
                self.zones.lock().keep(&name);
                self.write_taints(node, taints::reachable(node)).await;
            }
            Some(_) => {
                let wanted = taints::no_execute(node, Timestamp::now());
                if wanted == taints::of(node) {
                    return;
                }
                // From one reason to the other is no new loss.
                if taints::reachable(node).len() < taints::of(node).len() {
                    self.write_taints(node, wanted).await;
                } else {
                    self.zones.lock().give_up(&zones::of(node), &name);
                }
            }
        }
    }

    async fn give_up(&self, name: &str) {
        let Some(node) = self.nodes.get("", name) else { return };
        if ready(&node).is_some_and(|status| status != "True") {
            self.write_taints(&node, taints::no_execute(&node, Timestamp::now())).await;
        }
    }

    /// Follows one node: its taints, its labels of old, and its pods when it has ceased to be ready.
    async fn follow(&self, name: &str) -> kube::Result<Requeue> {
        self.nodes.synced().await;
        let Some(node) = self.nodes.get("", name) else { return Ok(Requeue::No) };
        // Nothing else looks after these taints: a node that does not change would keep them.
        forgive(self.put_taints(&node, taints::no_schedule(&node, Timestamp::now())).await)?;
        let labels = labels(&node);
        if !labels.is_empty() {
            let patch = json!({"metadata": {"uid": node.uid(), "labels": labels}});
            forgive(Api::<Node>::all(self.client.clone()).patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(|_| ()))?;
        }
        if ready(&node).is_some_and(|status| status != "True") {
            self.pods.synced().await;
            let here = |pod: &Arc<Pod>| pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(name) && pods::is_ready(pod);
            for pod in self.pods.list().iter().filter(|p| here(p)) {
                self.unmarked.add((pod.namespace().unwrap_or_default(), pod.name_any()));
            }
        }
        Ok(Requeue::No)
    }

    /// A pod on a node that is not ready is not ready: nobody knows.
    async fn mark_pod(&self, namespace: &str, name: &str) -> kube::Result<Requeue> {
        let Some(pod) = self.pods.get(namespace, name).filter(|p| pods::is_ready(p)) else { return Ok(Requeue::No) };
        let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
        if self.nodes.get("", &node).is_none_or(|n| ready(&n).is_none_or(|status| status == "True")) {
            return Ok(Requeue::No);
        }
        let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()});
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}});
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        forgive(api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(|_| ()))?;
        self.recorder.event(&Reference::of(pod.as_ref()), EventType::Warning, "NodeNotReady", "Node is not ready");
        Ok(Requeue::No)
    }

    /// Writes taints. A failure is no matter: the next look at all nodes tries again.
    async fn write_taints(&self, node: &Node, wanted: Vec<Taint>) {
        if let Err(error) = self.put_taints(node, wanted).await {
            tracing::debug!(node = node.name_any(), "the taints could not be written: {}", pods::text(&error));
        }
    }

    /// Writes taints if they differ.
    async fn put_taints(&self, node: &Node, wanted: Vec<Taint>) -> kube::Result<()> {
        if taints::of(node) == wanted {
            return Ok(());
        }
        let patch = json!({"metadata": {"resourceVersion": node.resource_version()}, "spec": {"taints": wanted}});
        Api::<Node>::all(self.client.clone()).patch(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }
}

/// What is gone needs nothing more.
fn forgive(result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_labels_follow_new_ones() {
        let node = |labels: serde_json::Value| -> Node { serde_json::from_value(json!({"metadata": {"labels": labels}})).expect("a node") };
        let wanted = labels(&node(json!({"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "beta.kubernetes.io/arch": "x"})));
        assert_eq!(wanted.into_iter().collect::<Vec<_>>(), [
            ("beta.kubernetes.io/arch".to_string(), "amd64".to_string()),
            ("beta.kubernetes.io/os".to_string(), "linux".to_string())
        ]);
        assert!(labels(&node(json!({"kubernetes.io/os": "linux", "beta.kubernetes.io/os": "linux"}))).is_empty());
        assert!(labels(&node(json!({"beta.kubernetes.io/os": "linux"}))).is_empty());
    }

    #[test]
    fn a_node_that_is_gone_needs_no_taints_and_one_that_changed_does() {
        assert!(forgive(Ok(())).is_ok() && forgive(Err(pods::refused(404, "NotFound"))).is_ok());
        for (code, reason) in [(409, "Conflict"), (500, "InternalError")] {
            let outcome = forgive(Err(pods::refused(code, reason))).map(|()| Requeue::No);
            assert_eq!(pods::again_on_conflict(outcome).is_ok(), code == 409, "{reason}: it is tried again either way");
        }
    }
}
