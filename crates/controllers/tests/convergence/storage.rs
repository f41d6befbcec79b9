//! Claims and volumes: who gets which, what is held while it is in use, and volumes that are made on a
//! node when somebody needs them.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::world::{CLAIMS, NODES, PODS, VOLUMES, World, converges};

const ATTACHMENTS: &str = "/apis/storage.k8s.io/v1/volumeattachments";

fn volume(name: &str, size: &str, policy: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {"storageClassName": "manual",
        "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": policy, "hostPath": {"path": "/srv"}}})
}

fn claim(name: &str, class: &str, size: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": claim_spec(class, size)})
}

fn claim_spec(class: &str, size: &str) -> Value {
    json!({"accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": size}}})
}

fn pod(name: &str, volume: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "a"}], "volumes": [volume]}})
}

fn of_claim(name: &str) -> Value {
    json!({"name": "v", "persistentVolumeClaim": {"claimName": name}})
}

async fn phase(world: &World, path: &str) -> String {
    world.get(path).await.unwrap_or_default()["status"]["phase"].as_str().unwrap_or("gone").to_string()
}

async fn becomes(world: &World, collection: &str, name: &str, wanted: &str) {
    let path = format!("{collection}/{name}");
    world.until(&format!("{path} is {wanted}"), async || phase(world, &path).await == wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_find_volumes_and_nothing_goes_that_is_in_use() {
    converges(async |world| {
        world.until("there is an account", async || world.get("/api/v1/namespaces/test/serviceaccounts/default").await.is_some()).await;
        let mut reserved = volume("reserved", "1Gi", "Retain");
        reserved["spec"]["claimRef"] = json!({"namespace": "test", "name": "late"});
        for volume in [volume("small", "1Gi", "Retain"), volume("large", "10Gi", "Retain"), volume("medium", "5Gi", "Retain"), reserved] {
            let name = volume["metadata"]["name"].as_str().expect("a name").to_string();
            world.create(VOLUMES, volume).await;
            becomes(&world, VOLUMES, &name, "Available").await;
        }
        world.create(CLAIMS, claim("modest", "manual", "500Mi")).await;
        world.create(CLAIMS, claim("greedy", "manual", "8Gi")).await;
        world.create(CLAIMS, claim("excessive", "manual", "80Gi")).await;
        for name in ["modest", "greedy"] {
            becomes(&world, CLAIMS, name, "Bound").await;
        }
        becomes(&world, CLAIMS, "excessive", "Pending").await;
        world.create(CLAIMS, claim("late", "manual", "1Gi")).await;
        becomes(&world, CLAIMS, "late", "Bound").await;
        becomes(&world, VOLUMES, "reserved", "Bound").await;

        // In use, both stay until the pod has ended.
        world.create(PODS, pod("user", of_claim("modest"))).await;
        becomes(&world, PODS, "user", "Running").await;
        world.until("they are protected", async || {
            let protected = async |path: &str| world.get(path).await.unwrap_or_default()["metadata"]["finalizers"].is_array();
            protected(&format!("{CLAIMS}/modest")).await && protected(&format!("{VOLUMES}/small")).await
        })
        .await;
        world.delete(&format!("{CLAIMS}/modest"), "Background").await;
        world.delete(&format!("{VOLUMES}/small"), "Background").await;
        world.delete(&format!("{CLAIMS}/greedy"), "Background").await;
        world.until_gone(&format!("{CLAIMS}/greedy")).await;
        becomes(&world, VOLUMES, "large", "Released").await;
        assert_eq!(phase(&world, &format!("{CLAIMS}/modest")).await, "Bound");
        assert_eq!(phase(&world, &format!("{VOLUMES}/small")).await, "Bound");
        world.patch(&format!("{PODS}/user/status"), json!({"status": {"phase": "Succeeded"}})).await;
        world.until_gone(&format!("{CLAIMS}/modest")).await;
        world.until_gone(&format!("{VOLUMES}/small")).await;

        // A volume that goes for good takes its claim's data with it, and that is told.
        world.delete(&format!("{VOLUMES}/reserved"), "Background").await;
        world.patch(&format!("{VOLUMES}/reserved"), json!({"metadata": {"finalizers": null}})).await;
        becomes(&world, CLAIMS, "late", "Lost").await;
        // And one that comes helps whom none did.
        world.create(VOLUMES, volume("huge", "100Gi", "Retain")).await;
        becomes(&world, CLAIMS, "excessive", "Bound").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ephemeral_volumes_live_with_their_pods() {
    converges(async |world| {
        world.until("there is an account", async || world.get("/api/v1/namespaces/test/serviceaccounts/default").await.is_some()).await;
        world.create(VOLUMES, volume("one", "1Gi", "Retain")).await;
        becomes(&world, VOLUMES, "one", "Available").await;
        let template = |size: &str| json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": claim_spec("manual", size)}}});
        world.create(PODS, pod("short", template("1Gi"))).await;
        becomes(&world, CLAIMS, "short-v", "Bound").await;
        // Somebody's claim of that name is not taken.
        world.create(CLAIMS, claim("long-v", "manual", "50Gi")).await;
        world.create(PODS, pod("long", template("2Gi"))).await;
        world.create(PODS, pod("other", template("3Gi"))).await;
        becomes(&world, CLAIMS, "other-v", "Pending").await;
        becomes(&world, PODS, "short", "Running").await;
        world.delete(&format!("{PODS}/short"), "Background").await;
        world.until_gone(&format!("{CLAIMS}/short-v")).await;
        becomes(&world, VOLUMES, "one", "Released").await;
        let foreign = world.get(&format!("{CLAIMS}/long-v")).await.expect("it stays");
        assert!(foreign["metadata"]["ownerReferences"].is_null());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_volumes_are_made_where_they_are_wanted_and_removed() {
    converges(async |world| {
        let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "local-path"},
            "provisioner": "rancher.io/local-path", "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete"});
        world.create("/apis/storage.k8s.io/v1/storageclasses", class).await;
        world.patch(&format!("{NODES}/n1"), json!({"metadata": {"annotations": {"local-path.knarr/directory": "/srv/storage"}}})).await;
        for name in ["goes", "stays", "waits"] {
            world.create(CLAIMS, claim(name, "local-path", "1Gi")).await;
        }
        becomes(&world, CLAIMS, "waits", "Pending").await;
        // As the scheduler does.
        for name in ["goes", "stays"] {
            world.patch(&format!("{CLAIMS}/{name}"), json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "n1"}}})).await;
            becomes(&world, CLAIMS, name, "Bound").await;
        }
        let volume = world.get(&format!("{CLAIMS}/goes")).await.expect("it is there")["spec"]["volumeName"].as_str().expect("a volume").to_string();
        let key = format!("remove.local-path.knarr/{volume}");
        world.delete(&format!("{CLAIMS}/goes"), "Background").await;
        let asked = async || world.get(&format!("{NODES}/n1")).await.unwrap_or_default()["metadata"]["annotations"][&key].clone();
        world.until("the node is asked to remove it", async || asked().await.as_str().is_some_and(|a| a.starts_with("remove "))).await;
        assert!(world.get(&format!("{VOLUMES}/{volume}")).await.is_some(), "it is there until its directory is not");
        // As the kubelet does.
        world.patch(&format!("{NODES}/n1"), json!({"metadata": {"annotations": {&key: "removed"}}})).await;
        world.until_gone(&format!("{VOLUMES}/{volume}")).await;
        world.until("nothing is left to ask for", async || asked().await.is_null()).await;
    })
    .await;
}

fn attachment_name(driver: &str, handle: &str, node: &str) -> String {
    let digest = Sha256::digest(format!("{handle}{driver}{node}"));
    format!("csi-{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// Plays a driver's attacher.
async fn attach(world: &World, name: &str) {
    let path = format!("{ATTACHMENTS}/{name}");
    world.until(&format!("{name} is asked for"), async || world.get(&path).await.is_some()).await;
    world.patch(&format!("{path}/status"), json!({"status": {"attached": true}})).await;
}

async fn annotation(world: &World, path: &str, key: &str) -> String {
    world.get(path).await.unwrap_or_default()["metadata"]["annotations"][key].as_str().unwrap_or_default().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_of_clouds_are_their_drivers() {
    converges(async |world| {
        world.until("there is an account", async || world.get("/api/v1/namespaces/test/serviceaccounts/default").await.is_some()).await;
        let node = format!("{NODES}/n0");
        world.patch(&node, json!({"metadata": {"annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}}})).await;
        let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "disks"},
            "provisioner": "kubernetes.io/gce-pd", "volumeBindingMode": "Immediate", "allowVolumeExpansion": true});
        world.create("/apis/storage.k8s.io/v1/storageclasses", class).await;

        // The driver is asked by its own name, and what was made in the old way is its to look after.
        world.create(CLAIMS, claim("data", "disks", "1Gi")).await;
        let of_claim_named = format!("{CLAIMS}/data");
        let provisioner = "volume.kubernetes.io/storage-provisioner";
        world.until("the driver is asked", async || annotation(&world, &of_claim_named, provisioner).await == "pd.csi.storage.gke.io").await;
        let mut disk = volume("disk", "1Gi", "Delete");
        disk["metadata"] = json!({"name": "disk", "finalizers": ["kubernetes.io/pv-controller", "external-provisioner.volume.kubernetes.io/finalizer"],
            "annotations": {"pv.kubernetes.io/provisioned-by": "kubernetes.io/gce-pd"}, "labels": {"topology.kubernetes.io/zone": "eu-w1-b"}});
        disk["spec"]["hostPath"] = Value::Null;
        disk["spec"]["gcePersistentDisk"] = json!({"pdName": "d"});
        disk["spec"]["storageClassName"] = json!("disks");
        disk["spec"]["claimRef"] = json!({"namespace": "test", "name": "data"});
        world.create(VOLUMES, disk).await;
        becomes(&world, CLAIMS, "data", "Bound").await;
        let of_volume = format!("{VOLUMES}/disk");
        world.until("the driver is noted", async || annotation(&world, &of_volume, "pv.kubernetes.io/migrated-to").await == "pd.csi.storage.gke.io").await;
        world.until("only the driver holds the volume", async || {
            let volume = world.get(&of_volume).await.unwrap_or_default();
            let finalizers = volume["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            !finalizers.contains(&json!("kubernetes.io/pv-controller")) && finalizers.contains(&json!("external-provisioner.volume.kubernetes.io/finalizer"))
        })
        .await;

        // It is attached by the driver, as is one that a pod describes itself.
        world.create(PODS, pod("user", of_claim("data"))).await;
        world.create(PODS, pod("own", json!({"name": "v", "awsElasticBlockStore": {"volumeID": "aws://z/vol-7", "fsType": "xfs"}}))).await;
        let by_claim = attachment_name("pd.csi.storage.gke.io", "projects/UNSPECIFIED/zones/eu-w1-b/disks/d", "n0");
        let by_pod = attachment_name("ebs.csi.aws.com", "vol-7", "n0");
        attach(&world, &by_claim).await;
        attach(&world, &by_pod).await;
        let source = async |name: &str| world.get(&format!("{ATTACHMENTS}/{name}")).await.expect("it is there")["spec"]["source"].clone();
        assert_eq!(source(&by_claim).await, json!({"persistentVolumeName": "disk"}));
        let csi = json!({"driver": "ebs.csi.aws.com", "volumeHandle": "vol-7", "fsType": "xfs", "volumeAttributes": {"partition": "0"}});
        let spec = json!({"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "csi": csi});
        assert_eq!(source(&by_pod).await, json!({"inlineVolumeSpec": spec}));
        let attached = async || {
            let node = world.get(&node).await.unwrap_or_default();
            let mut names: Vec<String> = node["status"]["volumesAttached"].as_array().into_iter().flatten().map(|v| v["name"].as_str().unwrap_or_default().into()).collect();
            names.sort();
            names
        };
        let wanted = ["kubernetes.io/csi/ebs.csi.aws.com^vol-7", "kubernetes.io/csi/pd.csi.storage.gke.io^projects/UNSPECIFIED/zones/eu-w1-b/disks/d"];
        world.until("the node knows of both", async || attached().await == wanted).await;

        // Who wants more waits for the driver's resizer.
        world.patch(&of_claim_named, json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}})).await;
        let resizer = "volume.kubernetes.io/storage-resizer";
        world.until("the resizer is named", async || annotation(&world, &of_claim_named, resizer).await == "pd.csi.storage.gke.io").await;

        // What nobody uses any more is detached, and left to the driver.
        for name in ["user", "own"] {
            world.delete(&format!("{PODS}/{name}"), "Background").await;
        }
        world.until_gone(&format!("{ATTACHMENTS}/{by_claim}")).await;
        world.until_gone(&format!("{ATTACHMENTS}/{by_pod}")).await;
        world.until("the node knows of none", async || attached().await.is_empty()).await;
        world.delete(&of_claim_named, "Background").await;
        becomes(&world, VOLUMES, "disk", "Released").await;
    })
    .await;
}
