//! The scheduler under the same faults, with the controllers beside it: every pod gets a node that is
//! right for it, whatever was refused or lost.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::objects::{labels, workload};
use crate::world::{CLAIMS, DEPLOYMENTS, NODES, PODS, STATEFUL_SETS, World, converges_scheduled};

/// The nodes of an application's pods, in order.
async fn nodes(world: &World, app: &str) -> Vec<String> {
    let pods = world.pods("app", app).await;
    let mut all: Vec<String> = pods.iter().filter_map(|p| p["spec"]["nodeName"].as_str().map(str::to_string)).collect();
    all.sort();
    all
}

fn pods(app: &str, milli: u32, spec: Value) -> Value {
    let container = json!({"name": "c", "image": "a", "resources": {"requests": {"cpu": format!("{milli}m")}}});
    let mut all = json!({"containers": [container]});
    all.as_object_mut().expect("fields").extend(spec.as_object().cloned().unwrap_or_default());
    json!({"metadata": {"labels": labels(app)}, "spec": all})
}

/// No node has more than it can.
async fn fits(world: &World) {
    let mut sums = BTreeMap::<String, u64>::new();
    for pod in world.list(PODS).await.iter().filter(|p| !p["spec"]["nodeName"].is_null()) {
        let cpu = pod["spec"]["containers"][0]["resources"]["requests"]["cpu"].as_str().unwrap_or("0");
        let milli = cpu.strip_suffix('m').map_or_else(|| cpu.parse::<u64>().map(|c| c * 1000), str::parse);
        *sums.entry(pod["spec"]["nodeName"].as_str().unwrap_or("").into()).or_default() += milli.expect("a number");
    }
    assert!(sums.values().all(|s| *s <= 4000), "{sums:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_spread_kept_apart_and_made_room_for() {
    converges_scheduled(async |world| {
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"}, "value": 1000});
        world.create("/apis/scheduling.k8s.io/v1/priorityclasses", class).await;
        let apart = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": labels("apart")}}]}}});
        let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": labels("spread")}}]});
        // One of the first has no place, and six of the second have two each.
        world.create(DEPLOYMENTS, workload("Deployment", "apart", json!({"replicas": 4, "template": pods("apart", 100, apart)}))).await;
        world.create(DEPLOYMENTS, workload("Deployment", "spread", json!({"replicas": 6, "template": pods("spread", 200, spread)}))).await;
        world.until("three are apart", async || nodes(&world, "apart").await == ["n0", "n1", "n2"]).await;
        world.until("two each are spread", async || nodes(&world, "spread").await == ["n0", "n0", "n1", "n1", "n2", "n2"]).await;
        // The rest is filled up, and then somebody more important comes.
        world.create(DEPLOYMENTS, workload("Deployment", "low", json!({"replicas": 6, "template": pods("low", 1500, json!({}))}))).await;
        world.until("all is full", async || nodes(&world, "low").await == ["n0", "n0", "n1", "n1", "n2", "n2"]).await;
        let high = pods("high", 1500, json!({"priorityClassName": "high", "nodeSelector": {"kubernetes.io/hostname": "n1"}}));
        world.create(DEPLOYMENTS, workload("Deployment", "high", json!({"replicas": 2, "template": high}))).await;
        world.until("room is made", async || nodes(&world, "high").await == ["n1", "n1"]).await;
        fits(&world).await;
        // A node more helps those that wait.
        world.node("n3").await;
        world.until("the fourth has a place", async || nodes(&world, "apart").await == ["n0", "n1", "n2", "n3"]).await;
        world.until("and the displaced", async || nodes(&world, "low").await.len() == 6).await;
        fits(&world).await;
        for (app, count) in [("apart", 4), ("spread", 6), ("low", 6), ("high", 2)] {
            world.until(&format!("{app} is ready"), async || world.number(&format!("{DEPLOYMENTS}/{app}"), "/status/readyReplicas").await == count).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gates_taints_and_volumes_are_heeded() {
    converges_scheduled(async |world| {
        world.until("there is an account", async || world.get("/api/v1/namespaces/test/serviceaccounts/default").await.is_some()).await;
        let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "local-path"},
            "provisioner": "rancher.io/local-path", "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete"});
        world.create("/apis/storage.k8s.io/v1/storageclasses", class).await;
        // Only one node can have local volumes.
        world.patch(&format!("{NODES}/n2"), json!({"metadata": {"annotations": {"local-path.knarr/directory": "/srv"}}})).await;
        world.patch(&format!("{NODES}/n0"), json!({"spec": {"taints": [{"key": "mine", "effect": "NoSchedule"}]}})).await;
        let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local-path", "resources": {"requests": {"storage": "1Mi"}}}});
        let on = json!({"nodeSelector": {"kubernetes.io/hostname": "n2"}, "volumes": []});
        let spec = json!({"replicas": 2, "serviceName": "db", "volumeClaimTemplates": [claim], "template": pods("db", 100, on)});
        world.create(STATEFUL_SETS, workload("StatefulSet", "db", spec)).await;
        world.until("both have their volumes", async || {
            let claims = world.list(CLAIMS).await;
            nodes(&world, "db").await == ["n2", "n2"] && claims.len() == 2 && claims.iter().all(|c| c["status"]["phase"] == "Bound")
        })
        .await;
        let gated = |name: &str, spec: Value| {
            let mut pod = pods(name, 100, spec);
            pod["apiVersion"] = json!("v1");
            pod["kind"] = json!("Pod");
            pod["metadata"]["name"] = json!(name);
            pod
        };
        let on_tainted = json!({"nodeSelector": {"kubernetes.io/hostname": "n0"}});
        world.create(PODS, gated("gated", json!({"schedulingGates": [{"name": "example.com/wait"}]}))).await;
        world.create(PODS, gated("held", json!({"schedulingGates": [{"name": "example.com/wait"}]}))).await;
        world.create(PODS, gated("tolerant", json!({"nodeSelector": {"kubernetes.io/hostname": "n0"}, "tolerations": [{"key": "mine", "operator": "Exists"}]}))).await;
        world.create(PODS, gated("intolerant", on_tainted.clone())).await;
        world.create(PODS, gated("patient", on_tainted)).await;
        world.until("one tolerates it", async || nodes(&world, "tolerant").await == ["n0"]).await;
        let reason = async |name: &str| {
            let pod = world.get(&format!("{PODS}/{name}")).await.unwrap_or_default();
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().find(|c| c["type"] == "PodScheduled").and_then(|c| c["reason"].as_str().map(str::to_string)).unwrap_or_default()
        };
        world.until("two do not", async || reason("intolerant").await == "Unschedulable" && reason("patient").await == "Unschedulable").await;
        world.patch(&format!("{PODS}/gated"), json!({"spec": {"schedulingGates": null}})).await;
        world.until("the gate is open", async || nodes(&world, "gated").await.len() == 1).await;
        world.delete(&format!("{PODS}/intolerant"), "Background").await;
        world.until_gone(&format!("{PODS}/intolerant")).await;
        assert!(nodes(&world, "patient").await.is_empty() && nodes(&world, "held").await.is_empty());
        world.patch(&format!("{NODES}/n0"), json!({"spec": {"taints": null}})).await;
        world.until("who waited is there", async || nodes(&world, "patient").await == ["n0"]).await;
        assert_eq!(reason("held").await, "SchedulingGated");
    })
    .await;
}
