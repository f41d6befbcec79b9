//! What makes pods: rollouts, scaling, completions, ordinals, nodes, and numbers that are absurd.

use serde_json::{Value, json};

use crate::objects::{job, template, workload};
use crate::world::{CLAIMS, DAEMON_SETS, DEPLOYMENTS, JOBS, PODS, REPLICA_SETS, STATEFUL_SETS, World, converges};

async fn rolled_out(world: &World, path: &str, replicas: i64) {
    let what = format!("{path} has rolled out {replicas}");
    world
        .until(&what, async || {
            let object = world.get(path).await.unwrap_or_default();
            let status = &object["status"];
            let all = |field: &str| status[field].as_i64().unwrap_or(0) == replicas;
            status["observedGeneration"] == object["metadata"]["generation"] && all("replicas") && all("updatedReplicas") && all("availableReplicas")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_is_made_scaled_and_rolled_out() {
    converges(async |world| {
        let path = format!("{DEPLOYMENTS}/web");
        world.create(DEPLOYMENTS, workload("Deployment", "web", json!({"replicas": 3}))).await;
        rolled_out(&world, &path, 3).await;
        world.patch(&path, json!({"spec": {"replicas": 5}})).await;
        rolled_out(&world, &path, 5).await;
        world.patch(&path, json!({"spec": {"template": template("web", "b")}})).await;
        rolled_out(&world, &path, 5).await;
        world.until("five pods of the new image are left", async || {
            let pods = world.list(PODS).await;
            pods.len() == 5 && pods.iter().all(|p| p["spec"]["containers"][0]["image"] == "b")
        })
        .await;
    })
    .await;
}

/// Ends the pods of a job one by one, each when the controller has seen them all: one too many, made
/// when an answer was lost, might end as well, and would count.
async fn complete(world: &World, name: &str, completions: usize, parallelism: usize) {
    let path = format!("{JOBS}/{name}");
    world
        .until(&format!("{name} is complete"), async || {
            let status = world.get(&path).await.unwrap_or_default()["status"].clone();
            let (ended, active): (Vec<_>, Vec<_>) =
                world.pods("job-name", name).await.into_iter().partition(|p| p["status"]["phase"] == "Succeeded");
            let wanted = parallelism.min(completions - ended.len().min(completions));
            if wanted > 0 && active.len() == wanted && status["active"] == wanted && status["ready"] == wanted {
                let pod = active[0]["metadata"]["name"].as_str().expect("a name");
                world.patch(&format!("{PODS}/{pod}/status"), json!({"status": {"phase": "Succeeded", "conditions": []}})).await;
            }
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|c| c["type"] == "Complete" && c["status"] == "True")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_count_each_completion_once() {
    converges(async |world| {
        world.create(JOBS, job("plain", json!({"completions": 3, "parallelism": 2}))).await;
        world.create(JOBS, job("indexed", json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed"}))).await;
        for name in ["plain", "indexed"] {
            complete(&world, name, 3, 2).await;
            let path = format!("{JOBS}/{name}");
            assert_eq!(world.number(&path, "/status/succeeded").await, 3);
            assert_eq!(world.number(&path, "/status/failed").await, 0);
        }
        let tracked = async || world.list(PODS).await.iter().any(|p| !p["metadata"]["finalizers"].is_null());
        world.until("no pod is tracked any more", async || !tracked().await).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_goes_in_order() {
    converges(async |world| {
        let path = format!("{STATEFUL_SETS}/db");
        let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "none", "resources": {"requests": {"storage": "1Mi"}}}});
        let spec = json!({"replicas": 3, "serviceName": "db", "volumeClaimTemplates": [claim]});
        world.create(STATEFUL_SETS, workload("StatefulSet", "db", spec)).await;
        // Whatever breaks, none is made before those below it are ready.
        let in_order = async || {
            let pods = world.pods("app", "db").await;
            let ready = |name: &str| pods.iter().any(|p| p["metadata"]["name"] == name && p["status"]["phase"] == "Running");
            let there = |name: &str| pods.iter().any(|p| p["metadata"]["name"] == name);
            assert!(!there("db-1") || ready("db-0"), "db-1 came too early");
            assert!(!there("db-2") || ready("db-1"), "db-2 came too early");
            ready("db-2")
        };
        world.until("the third is there", in_order).await;
        rolled_out(&world, &path, 3).await;
        world.patch(&path, json!({"spec": {"template": template("db", "b")}})).await;
        rolled_out(&world, &path, 3).await;
        world.patch(&path, json!({"spec": {"replicas": 1}})).await;
        rolled_out(&world, &path, 1).await;
        assert_eq!(world.list(CLAIMS).await.len(), 3, "claims stay");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_follows_the_nodes() {
    converges(async |world| {
        let path = format!("{DAEMON_SETS}/agent");
        world.create(DAEMON_SETS, workload("DaemonSet", "agent", json!({}))).await;
        let on = async |count: i64| {
            let status = world.get(&path).await.unwrap_or_default()["status"].clone();
            ["desiredNumberScheduled", "currentNumberScheduled", "updatedNumberScheduled", "numberAvailable"].iter().all(|f| status[*f] == count)
        };
        world.until("it is on three nodes", async || on(3).await).await;
        world.node("n3").await;
        world.until("it is on four nodes", async || on(4).await).await;
        let keep = json!({"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": "n3"}}}}});
        world.patch(&path, keep).await;
        world.until("it is on one node", async || on(1).await && world.list(PODS).await.len() == 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absurd_number_of_replicas_is_gone_about_in_parts() {
    converges(async |world| {
        let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"count/pods": "60"}}});
        world.create("/api/v1/namespaces/test/resourcequotas", quota).await;
        world.until("the quota is counted", async || {
            let quota = world.get("/api/v1/namespaces/test/resourcequotas/q").await.unwrap_or_default();
            quota["status"]["hard"]["count/pods"] == "60"
        })
        .await;
        let spec = |app: &str, more: Value| {
            let mut spec = json!({"replicas": i32::MAX, "template": template(app, "a")});
            spec.as_object_mut().expect("fields").extend(more.as_object().cloned().unwrap_or_default());
            spec
        };
        world.create(STATEFUL_SETS, workload("StatefulSet", "many", spec("many", json!({"serviceName": "many", "podManagementPolicy": "Parallel"})))).await;
        world.create(DEPLOYMENTS, workload("Deployment", "more", spec("more", json!({})))).await;
        // Its pods do not end, or there would be ever new ones.
        world.create(JOBS, job("most", json!({"parallelism": i32::MAX, "completions": i32::MAX, "template": {
            "metadata": {"labels": {"app": "most", "idle": ""}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "a"}]}}}))).await;
        world.until("the quota is used up", async || world.list(PODS).await.len() >= 50).await;
        world.patch(&format!("{STATEFUL_SETS}/many"), json!({"spec": {"replicas": 2}})).await;
        world.patch(&format!("{DEPLOYMENTS}/more"), json!({"spec": {"replicas": 2}})).await;
        world.patch(&format!("{JOBS}/most"), json!({"spec": {"parallelism": 2}})).await;
        // Nobody else has been kept from work.
        world.create(REPLICA_SETS, workload("ReplicaSet", "few", json!({"replicas": 2}))).await;
        for (app, count) in [("many", 2), ("more", 2), ("most", 2), ("few", 2)] {
            world.until(&format!("{count} pods of {app} are left"), async || world.pods("app", app).await.len() == count).await;
        }
    })
    .await;
}
