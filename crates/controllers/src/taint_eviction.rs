//! Taint eviction: pods leave a node that has a NoExecute taint when they do not tolerate it, or not
//! for ever.
//!
//! The time that a pod tolerates a taint begins when the taint is first seen with it.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Taint, Toleration};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, run_workers};

use crate::pod::Pod;
use crate::{Context, pods};

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().unwrap_or("");
    let effect = toleration.effect.as_deref().unwrap_or("");
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref().unwrap_or("Equal") {
            "Exists" => true,
            "" | "Equal" => toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or(""),
            _ => false,
        }
}

/// What happens to a pod.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// It stays.
    Stay,
    /// It leaves at this time, the taints having been seen first at that one.
    Leave { since: Timestamp, at: Timestamp },
}

/// Decides about a pod with these tolerations. `since` is when a departure was first planned.
pub fn plan(tolerations: &[Toleration], taints: &[Taint], since: Option<Timestamp>, now: Timestamp) -> Decision {
    let mut seconds: Option<i64> = None;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        // Of several tolerations the first one counts.
        let Some(used) = tolerations.iter().find(|t| tolerates(t, taint)) else {
            return Decision::Leave { since: since.unwrap_or(now), at: now };
        };
        if let Some(limit) = used.toleration_seconds {
            seconds = Some(seconds.map_or(limit, |s| s.min(limit)).max(0));
        }
    }
    match seconds {
        None => Decision::Stay,
        Some(seconds) => {
            let since = since.unwrap_or(now);
            Decision::Leave { since, at: since.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX) }
        }
    }
}

type Key = (String, String);

#[derive(Clone)]
struct Controller {
    client: Client,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    recorder: Recorder,
    /// Planned departures: the pod's uid, and since when.
    planned: Arc<Mutex<HashMap<Key, (String, Timestamp)>>>,
}

/// Starts the controller.
pub fn start(context: &Context) {
    let controller = Controller {
        client: context.client.clone(),
        nodes: context.informers.of::<Node>(),
        pods: context.informers.of::<Pod>(),
        recorder: Recorder::new(&context.tasks, context.client.clone(), "taint-eviction-controller", None),
        planned: Arc::default(),
    };
    let queue = Queue::<Key>::new();
    let (q, all) = (queue.clone(), controller.pods.clone());
    controller.nodes.on_change(move |change| {
        let old = change.old.as_deref().map(no_execute).unwrap_or_default();
        let new = change.new.as_deref().map(no_execute).unwrap_or_default();
        if old != new {
            let name = change.latest().name_any();
            let here = |pod: &&Arc<Pod>| pod.spec.as_ref().and_then(|s| s.node_name.as_ref()) == Some(&name);
            all.list().iter().filter(here).for_each(|pod| q.add((pod.namespace().unwrap_or_default(), pod.name_any())));
        }
    });
    let q = queue.clone();
    controller.pods.on_change(move |change| {
        let what = |pod: &Option<Arc<Pod>>| pod.as_ref().and_then(|p| p.spec.as_ref()).map(|s| (s.node_name.clone(), s.tolerations.clone()));
        let pod = change.latest();
        if pod.spec.as_ref().is_some_and(|s| s.node_name.is_some()) && what(&change.old) != what(&change.new) {
            q.add((pod.namespace().unwrap_or_default(), pod.name_any()));
        }
    });
    run_workers(&context.tasks, "taint-eviction", context.workers(8), queue, move |key: Key| {
        let controller = controller.clone();
        async move {
            controller.nodes.synced().await;
            controller.pods.synced().await;
            controller.sync(key).await
        }
    });
}

fn no_execute(node: &Node) -> Vec<Taint> {
    node.spec.iter().flat_map(|s| s.taints.iter().flatten()).filter(|t| t.effect == "NoExecute").cloned().collect()
}

impl Controller {
    async fn sync(&self, key: Key) -> kube::Result<Requeue> {
        let (namespace, name) = &key;
        let Some(pod) = self.pods.get(namespace, name).filter(|p| p.metadata.deletion_timestamp.is_none()) else {
            self.planned.lock().remove(&key);
            return Ok(Requeue::No);
        };
        let uid = pod.uid().unwrap_or_default();
        let spec = pod.spec.clone().unwrap_or_default();
        let taints = spec.node_name.as_ref().and_then(|n| self.nodes.get("", n)).map(|n| no_execute(&n)).unwrap_or_default();
        let now = Timestamp::now();
        let since = self.planned.lock().get(&key).filter(|(u, _)| *u == uid).map(|(_, since)| *since);
        match plan(spec.tolerations.as_deref().unwrap_or_default(), &taints, since, now) {
            Decision::Stay => {
                if self.planned.lock().remove(&key).is_some() && since.is_some() {
                    self.tell(namespace, name, "Cancelling deletion of Pod");
                }
                Ok(Requeue::No)
            }
            Decision::Leave { since, at } if at > now => {
                self.planned.lock().insert(key.clone(), (uid, since));
                Ok(Requeue::After(at.duration_since(now).unsigned_abs()))
            }
            Decision::Leave { .. } => {
                self.tell(namespace, name, "Marking for deletion Pod");
                let why = ("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint");
                pods::evict(&self.client, namespace, name, uid, why, now).await?;
                self.planned.lock().remove(&key);
                Ok(Requeue::No)
            }
        }
    }

    fn tell(&self, namespace: &str, name: &str, what: &str) {
        let reference = Reference { api_version: "v1".into(), kind: "Pod".into(), namespace: namespace.into(), name: name.into(), ..Reference::default() };
        self.recorder.event(&reference, EventType::Normal, "TaintManagerEviction", format!("{what} {namespace}/{name}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn taint(key: &str, effect: &str) -> Taint {
        serde_json::from_value(json!({"key": key, "value": "v", "effect": effect})).expect("a taint")
    }

    fn decide(tolerations: Value, taints: &[Taint], since: Option<i64>, now: i64) -> Decision {
        let tolerations: Vec<Toleration> = serde_json::from_value(tolerations).expect("tolerations");
        plan(&tolerations, taints, since.map(at), at(now))
    }

    #[test]
    fn pods_leave_at_once_later_or_never() {
        let k = [taint("k", "NoExecute")];
        assert_eq!(decide(json!([]), &k, None, 9), Decision::Leave { since: at(9), at: at(9) });
        assert_eq!(decide(json!([]), &[taint("k", "NoSchedule")], None, 9), Decision::Stay);
        assert_eq!(decide(json!([{"key": "k", "operator": "Exists"}]), &k, None, 9), Decision::Stay);
        assert_eq!(decide(json!([{"operator": "Exists"}]), &k, Some(1), 9), Decision::Stay, "it is cancelled");
        for operator in [Value::Null, json!(""), json!("Equal")] {
            assert_eq!(decide(json!([{"key": "k", "operator": operator, "value": "v"}]), &k, None, 9), Decision::Stay, "{operator}");
        }
        assert_eq!(decide(json!([{"key": "k", "value": "w"}]), &k, None, 9), Decision::Leave { since: at(9), at: at(9) });
        let five = json!([{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]);
        assert_eq!(decide(five.clone(), &k, None, 9), Decision::Leave { since: at(9), at: at(309) });
        assert_eq!(decide(five.clone(), &k, Some(9), 100), Decision::Leave { since: at(9), at: at(309) }, "it does not begin anew");
        assert_eq!(decide(five, &[], Some(9), 100), Decision::Stay);
        let negative = json!([{"key": "k", "operator": "Exists", "tolerationSeconds": -5}]);
        assert_eq!(decide(negative, &k, None, 9), Decision::Leave { since: at(9), at: at(9) });
    }

    #[test]
    fn the_shortest_time_counts_and_every_taint_must_be_tolerated() {
        let both = [taint("a", "NoExecute"), taint("b", "NoExecute")];
        let tolerations = json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 30}, {"key": "b", "operator": "Exists", "tolerationSeconds": 10}]);
        assert_eq!(decide(tolerations.clone(), &both, None, 0), Decision::Leave { since: at(0), at: at(10) });
        assert_eq!(decide(tolerations.clone(), &both[..1], Some(0), 5), Decision::Leave { since: at(0), at: at(30) });
        let third = [both[0].clone(), taint("c", "NoExecute")];
        assert_eq!(decide(tolerations, &third, Some(0), 5), Decision::Leave { since: at(0), at: at(5) });
        let first = json!([{"key": "a", "operator": "Exists"}, {"key": "a", "operator": "Exists", "tolerationSeconds": 1}]);
        assert_eq!(decide(first, &both[..1], None, 0), Decision::Stay, "the first toleration that matches is used");
    }

    #[test]
    fn only_taints_that_evict_count() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"taints": [
            {"key": "a", "value": "v", "effect": "NoExecute"}, {"key": "b", "value": "v", "effect": "NoSchedule"}]}})).expect("a node");
        assert_eq!(no_execute(&node), [taint("a", "NoExecute")]);
        assert_eq!(no_execute(&Node::default()), []);
    }
}
