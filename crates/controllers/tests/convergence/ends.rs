//! What comes to its end by itself: jobs whose time is over, pods of broken devices and of nodes that are gone,
//! more ended pods than are kept, classes and volumes that nobody uses any more.

use serde_json::{Value, json};

use crate::world::{CLAIMS, DEVICE_CLAIMS, JOBS, KEPT, NODES, PODS, VOLUMES, World, converges};

const SLICES_OF_DEVICES: &str = "/apis/resource.k8s.io/v1/resourceslices";
const ATTRIBUTES: &str = "/apis/storage.k8s.io/v1/volumeattributesclasses";

async fn account(world: &World, namespace: &str) {
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
    world.until("there is an account", async || world.get(&path).await.is_some()).await;
}

fn pod(name: &str, more: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "a"}]});
    spec.as_object_mut().expect("fields").extend(more.as_object().cloned().unwrap_or_default());
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

async fn runs(world: &World, path: &str) {
    world.until(&format!("{path} runs"), async || world.get(path).await.unwrap_or_default()["status"]["phase"] == "Running").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_go_when_their_time_is_over() {
    converges(async |world| {
        account(&world, "test").await;
        for (name, ttl) in [("brief", json!(0)), ("patient", json!(3600)), ("kept", Value::Null)] {
            let pod = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "a"}]});
            let spec = json!({"ttlSecondsAfterFinished": ttl, "template": {"spec": pod}});
            world.create(JOBS, json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec})).await;
        }
        let over = async |name: &str| {
            let job = world.get(&format!("{JOBS}/{name}")).await;
            // One pod too many may be there for a moment, when an answer was lost.
            if job.as_ref().is_some_and(|j| j["status"]["ready"] == 1 && j["status"]["active"] == 1) {
                for pod in world.pods("job-name", name).await.iter().filter(|p| p["status"]["phase"] == "Running") {
                    let path = format!("{PODS}/{}/status", pod["metadata"]["name"].as_str().unwrap_or(""));
                    world.patch(&path, json!({"status": {"phase": "Succeeded", "conditions": []}})).await;
                }
            }
            job.is_none_or(|j| j["status"]["completionTime"].is_string())
        };
        for name in ["brief", "patient", "kept"] {
            world.until(&format!("{name} is over"), async || over(name).await).await;
        }
        world.until_gone(&format!("{JOBS}/brief")).await;
        world.until("its pod is gone too", async || world.pods("job-name", "brief").await.is_empty()).await;
        // What was to stay may go earlier all the same.
        world.patch(&format!("{JOBS}/patient"), json!({"spec": {"ttlSecondsAfterFinished": 0}})).await;
        world.until_gone(&format!("{JOBS}/patient")).await;
        assert!(world.get(&format!("{JOBS}/kept")).await.is_some());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_leave_devices_that_break() {
    converges(async |world| {
        account(&world, "test").await;
        let slice = |generation: i64, taints: Value| {
            let device = |name: &str| json!({"name": name, "taints": taints});
            json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "s"},
                "spec": {"driver": "example.com", "nodeName": "n0", "pool": {"name": "p", "generation": generation, "resourceSliceCount": 1}, "devices": [device("d0"), device("d1")]}})
        };
        world.create(SLICES_OF_DEVICES, slice(1, json!([]))).await;
        for (n, name, tolerations) in [(0, "meek", json!([])), (1, "stout", json!([{"operator": "Exists", "effect": "NoExecute"}]))] {
            let spec = json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "example.com"}}]}});
            world.create(DEVICE_CLAIMS, json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": name}, "spec": spec})).await;
            let path = format!("{DEVICE_CLAIMS}/{name}");
            let device = json!({"request": "r", "driver": "example.com", "pool": "p", "device": format!("d{n}"), "tolerations": tolerations});
            world.patch(&path, json!({"metadata": {"finalizers": ["resource.kubernetes.io/delete-protection"]}})).await;
            world.patch(&format!("{path}/status"), json!({"status": {"allocation": {"devices": {"results": [device]}}}})).await;
            world.create(PODS, pod(name, json!({"resourceClaims": [{"name": "device", "resourceClaimName": name}]}))).await;
            world.until("it is reserved", async || world.get(&path).await.unwrap_or_default()["status"]["reservedFor"][0]["name"] == name).await;
            runs(&world, &format!("{PODS}/{name}")).await;
        }
        // First a taint that keeps new pods away only.
        for (effect, generation) in [("NoSchedule", 2), ("NoExecute", 3)] {
            let tainted = slice(generation, json!([{"key": "example.com/broken", "effect": effect}]));
            world.patch(&format!("{SLICES_OF_DEVICES}/s"), json!({"spec": tainted["spec"]})).await;
            if effect == "NoSchedule" {
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                assert!(world.get(&format!("{PODS}/meek")).await.is_some(), "it may stay");
            }
        }
        world.until_gone(&format!("{PODS}/meek")).await;
        let meek = async || world.get(&format!("{DEVICE_CLAIMS}/meek")).await.unwrap_or_default();
        world.until("its claim is given back", async || meek().await["status"]["allocation"].is_null()).await;
        assert_eq!(world.get(&format!("{PODS}/stout")).await.unwrap_or_default()["status"]["phase"], "Running");
        world.delete(&format!("{SLICES_OF_DEVICES}/s"), "Background").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_collected_that_no_kubelet_will_end() {
    converges(async |world| {
        account(&world, "test").await;
        world.node("brittle").await;
        let mut stranded = pod("stranded", json!({"nodeName": "brittle"}));
        stranded["metadata"]["labels"] = json!({"idle": "true"});
        world.create(PODS, stranded).await;
        world.create(PODS, pod("lively", json!({"nodeName": "n1"}))).await;
        runs(&world, &format!("{PODS}/lively")).await;
        // One that is leaving, and that no node ever had.
        let mut nowhere = pod("nowhere", json!({"schedulingGates": [{"name": "example.com/wait"}]}));
        nowhere["metadata"]["labels"] = json!({"idle": "true"});
        nowhere["metadata"]["finalizers"] = json!(["example.com/held"]);
        world.create(PODS, nowhere).await;
        world.delete(&format!("{PODS}/nowhere"), "Background").await;
        world.delete(&format!("{NODES}/brittle"), "Background").await;
        world.until_gone(&format!("{PODS}/stranded")).await;
        world.patch(&format!("{PODS}/nowhere"), json!({"metadata": {"finalizers": null}})).await;
        world.until_gone(&format!("{PODS}/nowhere")).await;
        // More ended ones than are kept: the first go.
        for n in 0..KEPT + 3 {
            let mut ended = pod(&format!("ended-{n:02}"), json!({"nodeName": "n2"}));
            ended["metadata"]["labels"] = json!({"idle": "true", "ended": "true"});
            world.create(PODS, ended).await;
        }
        for n in 0..KEPT + 3 {
            world.patch(&format!("{PODS}/ended-{n:02}/status"), json!({"status": {"phase": "Succeeded"}})).await;
        }
        world.until("the first are gone", async || world.pods("ended", "true").await.len() == KEPT).await;
        assert_eq!(world.get(&format!("{PODS}/lively")).await.unwrap_or_default()["status"]["phase"], "Running");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn classes_stay_while_claims_have_them_and_volumes_are_wiped() {
    converges(async |world| {
        account(&world, "test").await;
        account(&world, "default").await;
        let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass", "metadata": {"name": "gold"}, "driverName": "example.com", "parameters": {"iops": "9"}});
        world.create(ATTRIBUTES, class).await;
        let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "wiped"}, "spec": {"storageClassName": "manual", "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Recycle", "hostPath": {"path": "/srv"}}});
        world.create(VOLUMES, volume).await;
        let claim = |name: &str, class: &str, attributes: Value| {
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {"storageClassName": class,
                "volumeAttributesClassName": attributes, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
        };
        world.create(CLAIMS, claim("fine", "other", json!("gold"))).await;
        world.create(CLAIMS, claim("first", "manual", Value::Null)).await;
        let phase = async |path: &str| world.get(path).await.unwrap_or_default()["status"]["phase"].clone();
        world.until("it is bound", async || phase(&format!("{CLAIMS}/first")).await == "Bound").await;
        let gold = async || world.get(&format!("{ATTRIBUTES}/gold")).await.unwrap_or_default();
        world.until("the class is protected", async || gold().await["metadata"]["finalizers"].is_array()).await;
        world.delete(&format!("{ATTRIBUTES}/gold"), "Background").await;
        // Bound by name: who comes while it is wiped waits.
        world.delete(&format!("{CLAIMS}/first"), "Background").await;
        let recycler = "/api/v1/namespaces/default/pods/recycler-for-wiped";
        runs(&world, recycler).await;
        world.create(CLAIMS, claim("second", "manual", Value::Null)).await;
        assert_eq!(phase(&format!("{VOLUMES}/wiped")).await, "Released");
        world
            .until("the next has the volume", async || {
                // A second time, when the first one's success was not written down.
                if phase(recycler).await == "Running" {
                    world.patch(&format!("{recycler}/status"), json!({"status": {"phase": "Succeeded"}})).await;
                }
                phase(&format!("{CLAIMS}/second")).await == "Bound"
            })
            .await;
        world.until_gone(recycler).await;
        assert!(gold().await["metadata"]["deletionTimestamp"].is_string(), "a claim has it still");
        world.delete(&format!("{CLAIMS}/fine"), "Background").await;
        world.until_gone(&format!("{ATTRIBUTES}/gold")).await;
    })
    .await;
}
