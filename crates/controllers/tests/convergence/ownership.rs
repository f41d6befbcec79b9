//! Who owns what: adoption and release, objects that come again under one name, the garbage collector's
//! three policies, owners in a circle, and the end of a namespace.

use serde_json::{Value, json};

use crate::objects::{labels, map, owner, workload};
use crate::world::{CONFIG_MAPS, DEPLOYMENTS, PODS, REPLICA_SETS, STATEFUL_SETS, World, converges};

fn pod(name: &str, app: &str, owners: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels(app), "ownerReferences": owners},
        "spec": {"containers": [{"name": "c", "image": "foreign"}]}})
}

/// The uid of a pod's controller.
fn controller(pod: &Value) -> Option<&str> {
    let owners = pod["metadata"]["ownerReferences"].as_array()?;
    owners.iter().find(|o| o["controller"] == true)?["uid"].as_str()
}

async fn uid(world: &World, path: &str) -> String {
    world.get(path).await.unwrap_or_default()["metadata"]["uid"].as_str().unwrap_or("").to_string()
}

/// Waits until a set is ready and has all its pods.
async fn full(world: &World, path: &str, app: &str, count: usize) {
    world
        .until(&format!("{path} has {count} pods"), async || {
            let own = uid(world, path).await;
            let pods = world.pods("app", app).await;
            pods.iter().filter(|p| controller(p) == Some(own.as_str())).count() == count
                && world.number(path, "/status/replicas").await == count as i64
                && world.number(path, "/status/readyReplicas").await == count as i64
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_pods_are_left_alone_and_free_ones_taken() {
    converges(async |world| {
        // Without it no pod can be made.
        world.until("there is an account", async || world.get("/api/v1/namespaces/test/serviceaccounts/default").await.is_some()).await;
        let other = world.create(CONFIG_MAPS, map("other", &[])).await;
        world.create(PODS, pod("foreign", "r", &[owner(&other, true)])).await;
        world.create(PODS, pod("free", "r", &[])).await;
        // Should there be too many after an answer was lost, it is not this one that goes.
        world.patch(&format!("{PODS}/free"), json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "100"}}})).await;
        world.until("they run", async || world.list(PODS).await.iter().all(|p| p["status"]["phase"] == "Running")).await;
        let path = format!("{REPLICA_SETS}/r");
        world.create(REPLICA_SETS, workload("ReplicaSet", "r", json!({"replicas": 2}))).await;
        full(&world, &path, "r", 2).await;
        let own = uid(&world, &path).await;
        let adopted = world.get(&format!("{PODS}/free")).await.expect("it stays");
        assert_eq!(controller(&adopted), Some(own.as_str()));
        // One that does not fit any more is let go, and another takes its place.
        world.patch(&format!("{PODS}/free"), json!({"metadata": {"labels": {"app": "mine"}}})).await;
        world.until("it is let go", async || controller(&world.get(&format!("{PODS}/free")).await.expect("it stays")).is_none()).await;
        full(&world, &path, "r", 2).await;
        let foreign = world.get(&format!("{PODS}/foreign")).await.expect("it stays");
        assert_eq!(controller(&foreign), other["metadata"]["uid"].as_str());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_again_under_its_name_gets_pods_of_its_own() {
    converges(async |world| {
        let (set, db) = (format!("{REPLICA_SETS}/r"), format!("{STATEFUL_SETS}/db"));
        let make = async |image: &str| {
            let template = |app: &str| crate::objects::template(app, image);
            world.create(REPLICA_SETS, workload("ReplicaSet", "r", json!({"replicas": 2, "template": template("r")}))).await;
            let spec = json!({"replicas": 2, "serviceName": "db", "template": template("db"), "podManagementPolicy": "Parallel"});
            world.create(STATEFUL_SETS, workload("StatefulSet", "db", spec)).await;
        };
        make("a").await;
        for again in ["b", "c"] {
            full(&world, &set, "r", 2).await;
            full(&world, &db, "db", 2).await;
            world.delete(&set, "Background").await;
            world.delete(&db, "Background").await;
            make(again).await;
        }
        full(&world, &set, "r", 2).await;
        full(&world, &db, "db", 2).await;
        world.until("the old pods are gone", async || {
            let pods = world.list(PODS).await;
            pods.len() == 4 && pods.iter().all(|p| p["spec"]["containers"][0]["image"] == "c")
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trees_go_as_their_deletion_says() {
    converges(async |world| {
        for name in ["foreground", "orphan", "background"] {
            let root = world.create(CONFIG_MAPS, map(&format!("{name}-root"), &[])).await;
            for branch in 0..2 {
                let branch = world.create(CONFIG_MAPS, map(&format!("{name}-{branch}"), &[owner(&root, false)])).await;
                let leaf = format!("{}-leaf", branch["metadata"]["name"].as_str().unwrap_or(""));
                world.create(CONFIG_MAPS, map(&leaf, &[owner(&branch, true)])).await;
            }
            world.create(REPLICA_SETS, workload("ReplicaSet", name, json!({"replicas": 2}))).await;
        }
        // One with two owners stays while one of them does; one whose owner never was goes.
        let [a, b] = ["foreground-root", "orphan-0"].map(|name| world.get_map(name));
        let (a, b) = (a.await, b.await);
        world.create(CONFIG_MAPS, map("shared", &[owner(&a, false), owner(&b, false)])).await;
        let mut never = a.clone();
        never["metadata"]["uid"] = "11111111-2222-3333-4444-555555555555".into();
        world.create(CONFIG_MAPS, map("astray", &[owner(&never, false)])).await;
        for name in ["foreground", "orphan", "background"] {
            full(&world, &format!("{REPLICA_SETS}/{name}"), name, 2).await;
        }
        // What is orphaned must be known to the collector, here as upstream: when it has seen what came later, it is.
        world.create(PODS, pod("astray", "astray", &[owner(&never, false)])).await;
        world.until_gone(&format!("{CONFIG_MAPS}/astray")).await;
        world.until_gone(&format!("{PODS}/astray")).await;

        for (name, policy) in [("foreground", "Foreground"), ("orphan", "Orphan"), ("background", "Background")] {
            world.delete(&format!("{CONFIG_MAPS}/{name}-root"), policy).await;
            world.delete(&format!("{REPLICA_SETS}/{name}"), policy).await;
        }
        for name in ["foreground", "orphan", "background"] {
            world.until_gone(&format!("{CONFIG_MAPS}/{name}-root")).await;
            world.until_gone(&format!("{REPLICA_SETS}/{name}")).await;
        }
        world.until("only orphans are left", async || {
            let (maps, pods) = (world.list(CONFIG_MAPS).await, world.list(PODS).await);
            pods.len() == 2 && pods.iter().all(|p| p["metadata"]["labels"]["app"] == "orphan") && maps.iter().filter(|m| m["metadata"]["name"] != "kube-root-ca.crt").count() == 5
        })
        .await;
        for pod in world.list(PODS).await {
            assert_eq!(pod["metadata"]["labels"]["app"], "orphan");
            assert!(pod["metadata"]["ownerReferences"].is_null(), "{pod}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_in_a_circle_stay_until_one_is_deleted() {
    converges(async |world| {
        for name in ["kept", "background", "foreground"] {
            let first = world.create(CONFIG_MAPS, map(&format!("{name}-a"), &[])).await;
            let second = world.create(CONFIG_MAPS, map(&format!("{name}-b"), &[owner(&first, false)])).await;
            let third = world.create(CONFIG_MAPS, map(&format!("{name}-c"), &[owner(&second, false)])).await;
            world.patch(&format!("{CONFIG_MAPS}/{name}-a"), json!({"metadata": {"ownerReferences": [owner(&third, false)]}})).await;
        }
        // One that owns itself.
        let own = world.create(CONFIG_MAPS, map("self", &[])).await;
        world.patch(&format!("{CONFIG_MAPS}/self"), json!({"metadata": {"ownerReferences": [owner(&own, false)]}})).await;
        for (name, policy) in [("background", "Background"), ("foreground", "Foreground")] {
            world.delete(&format!("{CONFIG_MAPS}/{name}-a"), policy).await;
        }
        for name in ["background", "foreground"] {
            for part in ["a", "b", "c"] {
                world.until_gone(&format!("{CONFIG_MAPS}/{name}-{part}")).await;
            }
        }
        for name in ["kept-a", "kept-b", "kept-c", "self"] {
            assert!(world.get(&format!("{CONFIG_MAPS}/{name}")).await.is_some(), "{name} stays");
        }
        world.delete(&format!("{CONFIG_MAPS}/self"), "Foreground").await;
        world.until_gone(&format!("{CONFIG_MAPS}/self")).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_with_all_that_is_in_it_and_may_come_again() {
    converges(async |world| {
        let namespace = "/api/v1/namespaces/test";
        world.create(DEPLOYMENTS, workload("Deployment", "web", json!({"replicas": 3}))).await;
        world.create(CONFIG_MAPS, map("m", &[])).await;
        world.until("it is in use", async || world.pods("app", "web").await.len() == 3).await;
        world.delete(namespace, "Background").await;
        world.until_gone(namespace).await;
        world.create("/api/v1/namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "test"}})).await;
        for collection in [PODS, DEPLOYMENTS, REPLICA_SETS] {
            assert!(world.list(collection).await.is_empty(), "{collection} is empty");
        }
        world.create(REPLICA_SETS, workload("ReplicaSet", "r", json!({"replicas": 1}))).await;
        full(&world, &format!("{REPLICA_SETS}/r"), "r", 1).await;
    })
    .await;
}
