//! Removes pods that no kubelet will: of nodes that are gone, terminating ones that no node has or
//! whose node is out of service, and terminated ones beyond a number.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::json;

use crate::pod::Pod;
use crate::{Context, pods};

/// How many pods are kept, and when it looks.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Terminated pods that stay; without, all do.
    pub terminated: Option<usize>,
    /// How often it looks.
    pub period: Duration,
    /// How long a node must have been missing: its object may just be late.
    pub quarantine: SignedDuration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { terminated: Some(12500), period: Duration::from_secs(20), quarantine: SignedDuration::from_secs(40) }
    }
}

/// Pods removed at once.
const PARALLEL: usize = 32;

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("")
}

fn has_ended(pod: &Pod) -> bool {
    matches!(pods::phase(pod), "Succeeded" | "Failed")
}

/// Nodes that pods name and that are not there, with the time when each was missed first.
pub fn missing(pods: &[Arc<Pod>], nodes: &[Arc<Node>], before: &HashMap<String, Timestamp>, now: Timestamp) -> HashMap<String, Timestamp> {
    let known: HashSet<String> = nodes.iter().map(|n| n.name_any()).collect();
    let absent = pods.iter().map(|p| node_of(p)).filter(|n| !n.is_empty() && !known.contains(*n));
    absent.map(|n| (n.to_string(), before.get(n).copied().unwrap_or(now))).collect()
}

/// The pods to remove, and whether their node is gone. `gone` names nodes that have been missing for
/// long enough, `out_of_service` those that are not ready and tainted as such, `kept` is how many
/// terminated pods may stay (all, if nothing is said).
pub fn plan(all: &[Arc<Pod>], gone: &HashSet<String>, out_of_service: &HashSet<String>, kept: Option<usize>) -> Vec<(Arc<Pod>, bool)> {
    let mut ended: Vec<&Arc<Pod>> = all.iter().filter(|p| has_ended(p)).collect();
    let surplus = kept.map_or(0, |kept| ended.len().saturating_sub(kept));
    let evicted = |p: &Pod| pods::phase(p) == "Failed" && p.status.as_ref().and_then(|s| s.reason.as_deref()) == Some("Evicted");
    // Evicted ones first: those that controllers made tell more.
    ended.sort_by_key(|p| (!evicted(p), p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.name_any()));
    let surplus: HashSet<Option<String>> = ended.into_iter().take(surplus).map(|p| p.uid()).collect();
    let removed = |pod: &Arc<Pod>| {
        let (node, leaving) = (node_of(pod), pod.metadata.deletion_timestamp.is_some());
        let orphan = gone.contains(node);
        let goes = orphan || (leaving && (node.is_empty() || out_of_service.contains(node))) || surplus.contains(&pod.uid());
        goes.then(|| (pod.clone(), orphan))
    };
    all.iter().filter_map(removed).collect()
}

fn is_out_of_service(node: &Node) -> bool {
    let ready = node.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == "Ready" && c.status == "True");
    !ready && node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == "node.kubernetes.io/out-of-service")
}

/// Starts the controller.
pub fn start(context: &Context, settings: Settings) {
    let pods = context.informers.of::<Pod>();
    let nodes = context.informers.of::<Node>();
    let client = context.client.clone();
    context.tasks.spawn("pod-garbage-collector", async move {
        pods.synced().await;
        nodes.synced().await;
        let mut missed = HashMap::new();
        loop {
            tokio::time::sleep(settings.period).await;
            let (all, known, now) = (pods.list(), nodes.list(), Timestamp::now());
            missed = missing(&all, &known, &missed, now);
            let mut gone = HashSet::new();
            for (name, _) in missed.iter().filter(|(_, since)| now.duration_since(**since) >= settings.quarantine) {
                // The informer may be behind.
                match Api::<Node>::all(client.clone()).get_metadata_opt(name).await {
                    Ok(None) => drop(gone.insert(name.clone())),
                    Ok(Some(_)) => {}
                    Err(error) => tracing::debug!(node = name, "whether the node exists is not known: {error}"),
                }
            }
            let out_of_service = known.iter().filter(|n| is_out_of_service(n)).map(|n| n.name_any()).collect();
            let removals = plan(&all, &gone, &out_of_service, settings.terminated).into_iter().map(|(pod, orphan)| {
                let client = client.clone();
                async move {
                    if let Err(error) = remove(&client, &pod, orphan).await {
                        tracing::warn!(pod = pod.name_any(), "the pod could not be collected: {}", pods::text(&error));
                    }
                }
            });
            futures::stream::iter(removals).buffer_unordered(PARALLEL).collect::<()>().await;
        }
    });
}

async fn remove(client: &Client, pod: &Pod, orphan: bool) -> kube::Result<()> {
    let api = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let name = pod.name_any();
    let forgive = |result: kube::Result<()>| match result {
        // It is gone, or another has its name.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other,
    };
    if !has_ended(pod) {
        let mut patch = json!({"metadata": {"uid": pod.uid()}, "status": {"phase": "Failed"}});
        if orphan {
            let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            patch["status"]["conditions"] = json!([{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists", "lastTransitionTime": now}]);
        }
        forgive(api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(|_| ()))?;
    }
    let preconditions = Some(Preconditions { uid: pod.uid(), resource_version: None });
    let params = DeleteParams { preconditions, ..DeleteParams::default().grace_period(0) };
    forgive(api.delete(&name, &params).await.map(|_| ()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str, status: serde_json::Value, created: u8, leaving: bool) -> Arc<Pod> {
        let deleted = leaving.then_some("2026-01-09T00:00:00Z");
        let meta = json!({"name": name, "uid": name, "creationTimestamp": format!("2026-01-0{created}T00:00:00Z"), "deletionTimestamp": deleted});
        Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": {"nodeName": node, "containers": []}, "status": status})).expect("a pod"))
    }

    fn names(pods: &[Arc<Pod>], gone: &[&str], out: &[&str], kept: usize) -> Vec<String> {
        let set = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
        plan(pods, &set(gone), &set(out), Some(kept)).iter().map(|(p, orphan)| format!("{}{}", p.name_any(), if *orphan { " orphan" } else { "" })).collect()
    }

    #[test]
    fn the_oldest_surplus_goes_and_evicted_ones_first() {
        let pods = [
            pod("old", "n1", json!({"phase": "Succeeded"}), 1, false),
            pod("new", "n1", json!({"phase": "Failed"}), 3, false),
            pod("evicted", "n1", json!({"phase": "Failed", "reason": "Evicted"}), 2, false),
            pod("fine", "n1", json!({"phase": "Running"}), 1, false),
        ];
        assert_eq!(names(&pods, &[], &[], 2), ["evicted"]);
        assert_eq!(names(&pods, &[], &[], 1), ["old", "evicted"]);
        assert!(names(&pods, &[], &[], 3).is_empty());
    }

    #[test]
    fn nobody_else_will_remove_these() {
        let running = || json!({"phase": "Running"});
        let pods = [
            pod("lost", "gone", running(), 1, false),
            pod("unbound", "", json!({"phase": "Pending"}), 1, true),
            pod("pending", "", json!({"phase": "Pending"}), 1, false),
            pod("leaving", "n1", running(), 1, true),
            pod("stuck", "off", running(), 1, true),
            pod("steady", "off", running(), 1, false),
        ];
        assert_eq!(names(&pods, &["gone"], &["off"], 10), ["lost orphan", "unbound", "stuck"]);
    }

    #[test]
    fn a_missing_node_is_missed_since_the_first_time() {
        let at = |s| Timestamp::from_second(s).expect("a time");
        let pods = [pod("a", "n1", json!({}), 1, false), pod("b", "n2", json!({}), 1, false), pod("c", "", json!({}), 1, false)];
        let node = |name: &str| Arc::new(serde_json::from_value::<Node>(json!({"metadata": {"name": name}})).expect("a node"));
        let first = missing(&pods, &[node("n1")], &HashMap::new(), at(1));
        assert_eq!(first, HashMap::from([("n2".to_string(), at(1))]));
        assert_eq!(missing(&pods, &[node("n1")], &first, at(9)), first);
        assert!(missing(&pods, &[node("n1"), node("n2")], &first, at(9)).is_empty());
    }

    #[test]
    fn out_of_service_is_a_taint_on_a_node_that_is_not_ready() {
        let node = |ready: &str, key: &str| -> Node {
            serde_json::from_value(json!({"spec": {"taints": [{"key": key, "effect": "NoExecute"}]}, "status": {"conditions": [{"type": "Ready", "status": ready}]}})).expect("a node")
        };
        assert!(is_out_of_service(&node("Unknown", "node.kubernetes.io/out-of-service")));
        assert!(!is_out_of_service(&node("True", "node.kubernetes.io/out-of-service")));
        assert!(!is_out_of_service(&node("False", "x")));
    }
}
