//! What bounds and moves numbers: quotas, disruption budgets, autoscalers.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::objects::{labels, map, owner, template, workload};
use crate::world::{AUTOSCALERS, BUDGETS, CONFIG_MAPS, DEPLOYMENTS, PODS, QUOTAS, REPLICA_SETS, World, converges};

async fn used(world: &World, quota: &str) -> Value {
    world.get(&format!("{QUOTAS}/{quota}")).await.unwrap_or_default()["status"]["used"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotas_count_what_there_is() {
    converges(async |world| {
        world.until("there is a bundle", async || world.get(&format!("{CONFIG_MAPS}/kube-root-ca.crt")).await.is_some()).await;
        for name in ["before-a", "before-b"] {
            world.create(CONFIG_MAPS, map(name, &[])).await;
        }
        let quota = |name: &str, spec: Value| json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": spec});
        world.create(QUOTAS, quota("all", json!({"hard": {"pods": "3", "requests.cpu": "2", "configmaps": "5", "count/replicasets.apps": "2"}}))).await;
        world.create(QUOTAS, quota("best-effort", json!({"hard": {"pods": "5"}, "scopes": ["BestEffort"]}))).await;
        let wanted = json!({"pods": "0", "requests.cpu": "0", "configmaps": "3", "count/replicasets.apps": "0"});
        world.until("what was there is counted", async || used(&world, "all").await == wanted).await;
        let costly = json!({"metadata": {"labels": labels("r")}, "spec": {"containers": [{"name": "c", "image": "a", "resources": {"requests": {"cpu": "500m"}}}]}});
        world.create(REPLICA_SETS, workload("ReplicaSet", "r", json!({"replicas": 7, "template": costly}))).await;
        world.until("no more than three are made", async || used(&world, "all").await["pods"] == "3").await;
        world.create(CONFIG_MAPS, map("after", &[])).await;
        world.delete(&format!("{CONFIG_MAPS}/before-a"), "Background").await;
        world.delete(&format!("{CONFIG_MAPS}/before-b"), "Background").await;
        world.patch(&format!("{REPLICA_SETS}/r"), json!({"spec": {"replicas": 2}})).await;
        let wanted = json!({"pods": "2", "requests.cpu": "1", "configmaps": "2", "count/replicasets.apps": "1"});
        world.until("what went is given back", async || used(&world, "all").await == wanted).await;
        assert_eq!(used(&world, "best-effort").await, json!({"pods": "0"}));
        world.patch(&format!("{QUOTAS}/all"), json!({"spec": {"hard": {"pods": "9", "configmaps": null}}})).await;
        let wanted = json!({"pods": "2", "requests.cpu": "1", "count/replicasets.apps": "1"});
        world.until("the limits are others", async || used(&world, "all").await == wanted).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_know_how_many_are_well() {
    converges(async |world| {
        let budget = |name: &str, app: &str, spec: Value| {
            let mut all = json!({"selector": {"matchLabels": labels(app)}});
            all.as_object_mut().expect("fields").extend(spec.as_object().cloned().unwrap_or_default());
            json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name}, "spec": all})
        };
        world.create(DEPLOYMENTS, workload("Deployment", "web", json!({"replicas": 4}))).await;
        world.create(BUDGETS, budget("least", "web", json!({"minAvailable": 3}))).await;
        world.create(BUDGETS, budget("most", "db", json!({"maxUnavailable": "50%"}))).await;
        world.create(BUDGETS, budget("nobody", "nobody", json!({"maxUnavailable": 1}))).await;
        world.create(REPLICA_SETS, workload("ReplicaSet", "db", json!({"replicas": 2}))).await;
        let is = async |name: &str, wanted: [i64; 4]| {
            let status = world.get(&format!("{BUDGETS}/{name}")).await.unwrap_or_default()["status"].clone();
            let fields = ["expectedPods", "currentHealthy", "desiredHealthy", "disruptionsAllowed"];
            let all = fields.iter().zip(wanted).all(|(field, wanted)| status[*field] == wanted);
            all && status["observedGeneration"] == 1
        };
        world.until("one of web may go", async || is("least", [4, 4, 3, 1]).await).await;
        world.until("one of db may go", async || is("most", [2, 2, 1, 1]).await).await;
        // An eviction is counted, and what takes its place is, too.
        let pods = world.pods("app", "db").await;
        let name = pods[0]["metadata"]["name"].as_str().expect("a name");
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "test"}});
        world.create(&format!("{PODS}/{name}/eviction"), eviction).await;
        world.until_gone(&format!("{PODS}/{name}")).await;
        world.until("another has taken its place", async || is("most", [2, 2, 1, 1]).await).await;
        world.patch(&format!("{DEPLOYMENTS}/web"), json!({"spec": {"replicas": 6}})).await;
        world.until("three of web may go", async || is("least", [6, 6, 3, 3]).await).await;
        // One whose controller is of a kind that nobody here follows: its scale is asked for.
        let web = world.get(&format!("{DEPLOYMENTS}/web")).await.expect("it is there");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "asked", "labels": labels("asked"), "ownerReferences": [owner(&web, true)]},
            "spec": {"containers": [{"name": "c", "image": "a"}]}});
        world.create(PODS, pod).await;
        world.until("it runs", async || world.get(&format!("{PODS}/asked")).await.unwrap_or_default()["status"]["phase"] == "Running").await;
        world.create(BUDGETS, budget("asked", "asked", json!({"maxUnavailable": 1}))).await;
        world.until("none of them may go", async || is("asked", [6, 1, 5, 0]).await).await;
        world.until("nobody is nobody", async || is("nobody", [0, 0, 0, 0]).await).await;
        world.until("no disruption is under way", async || {
            world.list(BUDGETS).await.iter().all(|b| b["status"]["disruptedPods"].as_object().is_none_or(|d| d.is_empty()))
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn autoscalers_follow_the_load() {
    converges(async |world| {
        world.use_of_pods.store(200, Ordering::Relaxed);
        for name in ["web", "calm", "sleeping"] {
            let asleep = name == "sleeping";
            world.create(DEPLOYMENTS, workload("Deployment", name, json!({"replicas": if asleep { 0 } else { 2 }, "template": template(name, "a")}))).await;
            // Half of the target is asked for by nobody but the first.
            let target = if name == "web" { "100m" } else { "200m" };
            let metric = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": target}}});
            let instant = json!({"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 100, "periodSeconds": 1}]});
            let autoscaler = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name}, "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}, "minReplicas": 1, "maxReplicas": 5, "metrics": [metric],
                "behavior": {"scaleUp": instant, "scaleDown": instant}}});
            world.create(AUTOSCALERS, autoscaler).await;
        }
        let replicas = async |name: &str, wanted: i64| {
            let path = format!("{DEPLOYMENTS}/{name}");
            world.number(&path, "/spec/replicas").await == wanted && world.number(&path, "/status/readyReplicas").await == wanted
        };
        world.until("web has as many as it may", async || replicas("web", 5).await).await;
        assert!(replicas("calm", 2).await, "what is right stays");
        world.use_of_pods.store(20, Ordering::Relaxed);
        world.until("one each is left", async || replicas("web", 1).await && replicas("calm", 1).await).await;
        assert!(replicas("sleeping", 0).await, "what was put to sleep stays so");
        world.until("the numbers have been told", async || {
            world.number(&format!("{AUTOSCALERS}/web"), "/status/currentReplicas").await == 1
                && world.number(&format!("{AUTOSCALERS}/calm"), "/status/currentReplicas").await == 1
        })
        .await;
    })
    .await;
}
