//! Removes pods that no kubelet will: of nodes that are gone, and terminated ones beyond a number.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use crate::{Context, pods};

/// Terminated pods that are kept.
const KEPT: usize = 12500;
/// How often it looks.
const PERIOD: Duration = Duration::from_secs(20);

/// The pods to remove. `missing` names nodes that have been absent for long enough.
pub fn plan(all: &[Arc<Pod>], missing: &HashSet<String>, kept: usize) -> Vec<Arc<Pod>> {
    let node = |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
    let mut terminated: Vec<&Arc<Pod>> = all.iter().filter(|p| matches!(pods::phase(p), "Succeeded" | "Failed")).collect();
    terminated.sort_by_key(|p| p.metadata.creation_timestamp.as_ref().map(|t| t.0));
    let surplus = terminated.len().saturating_sub(kept);
    let mut gone: Vec<Arc<Pod>> = terminated.into_iter().take(surplus).cloned().collect();
    gone.extend(all.iter().filter(|p| missing.contains(&node(p))).cloned());
    gone.extend(all.iter().filter(|p| node(p).is_empty() && p.metadata.deletion_timestamp.is_some()).cloned());
    let mut seen = HashSet::new();
    gone.retain(|p| seen.insert(p.uid()));
    gone
}

/// Starts the controller.
pub fn start(context: &Context) {
    let pods = context.informers.of::<Pod>();
    let nodes = context.informers.of::<Node>();
    let client = context.client.clone();
    context.tasks.spawn("pod-garbage-collector", async move {
        pods.synced().await;
        nodes.synced().await;
        // A node must be missing twice in a row: its object may just be late.
        let mut suspects: HashSet<String> = HashSet::new();
        loop {
            tokio::time::sleep(PERIOD).await;
            let all = pods.list();
            let known: HashSet<String> = nodes.list().iter().map(|n| n.name_any()).collect();
            let absent: HashSet<String> = all
                .iter()
                .filter_map(|p| p.spec.as_ref()?.node_name.clone())
                .filter(|n| !n.is_empty() && !known.contains(n))
                .collect();
            let missing: HashSet<String> = absent.intersection(&suspects).cloned().collect();
            suspects = absent;
            for pod in plan(&all, &missing, KEPT) {
                if let Err(error) = remove(&client, &pod, &missing).await {
                    tracing::warn!(pod = pod.name_any(), "the pod could not be collected: {}", pods::text(&error));
                }
            }
        }
    });
}

async fn remove(client: &Client, pod: &Pod, missing: &HashSet<String>) -> kube::Result<()> {
    let api = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let name = pod.name_any();
    let ended = matches!(pods::phase(pod), "Succeeded" | "Failed");
    let orphan = pod.spec.as_ref().and_then(|s| s.node_name.as_ref()).is_some_and(|n| missing.contains(n));
    if !ended {
        let mut status = json!({"status": {"phase": "Failed"}});
        if orphan {
            status["status"]["conditions"] = json!([{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists", "lastTransitionTime": jiff::Timestamp::now().to_string()}]);
        }
        match api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    match api.delete(&name, &DeleteParams::default().grace_period(0)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str, phase: &str, created: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "uid": name, "creationTimestamp": created},
                "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase}}))
            .expect("a pod"),
        )
    }

    #[test]
    fn the_oldest_surplus_and_the_orphans_go() {
        let pods = [
            pod("old", "n1", "Succeeded", "2026-01-01T00:00:00Z"),
            pod("new", "n1", "Failed", "2026-01-02T00:00:00Z"),
            pod("lost", "n2", "Running", "2026-01-02T00:00:00Z"),
            pod("fine", "n1", "Running", "2026-01-02T00:00:00Z"),
        ];
        let missing = HashSet::from(["n2".to_string()]);
        let names: Vec<String> = plan(&pods, &missing, 1).iter().map(|p| p.name_any()).collect();
        assert_eq!(names, ["old", "lost"]);
    }
}
