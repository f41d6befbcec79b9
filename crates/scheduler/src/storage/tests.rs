//! Scenarios: where pods with claims may go, and where they must not.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use kube::ResourceExt;
use parking_lot::Mutex;
use rules::migration::MIGRATED_PLUGINS;
use rules::storage;
use serde_json::{Value, json};

use super::binding::{self, Claims, Promised, Question};
use super::plugins::{NodeVolumeLimits, VolumeBinding, VolumeRestrictions, VolumeZone};
use super::{Lookup, limits};
use crate::cluster::{Cluster, NodeInfo};
use crate::config::Profile;
use crate::node::NodeView;
use crate::plugin::{Plugin, Prepared, Site};
use crate::pod::PodInfo;
use crate::selector::Labels;

/// Objects in memory.
#[derive(Default)]
struct Known {
    claims: Mutex<HashMap<String, Arc<PersistentVolumeClaim>>>,
    volumes: Mutex<Vec<Arc<PersistentVolume>>>,
    classes: HashMap<String, Arc<StorageClass>>,
    drivers: Vec<Arc<CSIDriver>>,
    csi_nodes: Vec<Arc<CSINode>>,
    capacities: Vec<Arc<CSIStorageCapacity>>,
    early: bool,
    /// Of the node `a`.
    attached: Vec<(String, String)>,
}

impl Lookup for Known {
    fn claim(&self, _: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.lock().get(name).cloned()
    }
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.lock().iter().find(|v| v.name_any() == name).cloned()
    }
    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.lock().clone()
    }
    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.get(name).cloned()
    }
    fn driver(&self, name: &str) -> Option<Arc<CSIDriver>> {
        self.drivers.iter().find(|d| d.name_any() == name).cloned()
    }
    fn csi_node(&self, name: &str) -> Option<Arc<CSINode>> {
        self.csi_nodes.iter().find(|d| d.name_any() == name).cloned()
    }
    fn capacities(&self) -> Vec<Arc<CSIStorageCapacity>> {
        self.capacities.clone()
    }
    fn attached(&self, node: &str) -> Vec<(String, String)> {
        if node == "a" { self.attached.clone() } else { Vec::new() }
    }
    fn ready(&self) -> bool {
        !self.early
    }
}

fn merged(mut base: Value, more: Value) -> Value {
    for (key, value) in more.as_object().expect("an object").clone() {
        match base.get(&key).is_some_and(Value::is_object) && value.is_object() {
            true => base[&key] = merged(base[&key].clone(), value),
            false => base[&key] = value,
        }
    }
    base
}

impl Known {
    /// The classes `late` (waits, local-path), `now` (immediate) and `hand` (waits, made by hand).
    fn new() -> Known {
        let class = |provisioner: &str, mode: &str, name: &str| -> Arc<StorageClass> {
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode})).expect("a class"))
        };
        let classes = [
            class("rancher.io/local-path", "WaitForFirstConsumer", "late"),
            class("p.io/x", "Immediate", "now"),
            class(storage::NO_PROVISIONER, "WaitForFirstConsumer", "hand"),
        ];
        Known { classes: classes.into_iter().map(|c| (c.name_any(), c)).collect(), ..Known::default() }
    }

    fn claim(&self, name: &str, class: &str, more: Value) {
        let base = json!({"metadata": {"name": name, "namespace": "n", "uid": format!("uid-{name}"), "annotations": {}, "resourceVersion": "5"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": "1Gi"}}}, "status": {"phase": "Pending"}});
        self.claims.lock().insert(name.into(), Arc::new(serde_json::from_value(merged(base, more)).expect("a claim")));
    }

    fn volume(&self, name: &str, class: &str, host: &str, more: Value) {
        let base = json!({"metadata": {"name": name, "resourceVersion": "5"}, "status": {"phase": "Available"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": class, "capacity": {"storage": "2Gi"}, "local": {"path": "/p"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "host", "operator": "In", "values": [host]}]}]}}}});
        let mut volumes = self.volumes.lock();
        volumes.retain(|v| v.name_any() != name);
        volumes.push(Arc::new(serde_json::from_value(merged(base, more)).expect("a volume")));
    }
}

fn bound(volume: &str) -> Value {
    json!({"metadata": {"annotations": {storage::BIND_COMPLETED: "yes"}}, "spec": {"volumeName": volume}, "status": {"phase": "Bound"}})
}

fn labels(host: &str) -> Labels {
    [("host", host)].into_iter().collect()
}

fn node(host: &str) -> NodeInfo {
    let object = json!({"metadata": {"name": host, "labels": {"host": host}}});
    let view: NodeView = serde_json::from_value(object).expect("a node");
    Cluster::new([Arc::new(view)], []).node(host).expect("it is there").clone()
}

fn pod(uid: &str, volumes: Value) -> PodInfo {
    let object = json!({"metadata": {"name": uid, "namespace": "n", "uid": uid}, "spec": {"containers": [], "volumes": volumes}});
    serde_json::from_value(object).expect("a pod")
}

fn using(uid: &str, claims: &[&str]) -> PodInfo {
    pod(uid, claims.iter().map(|c| json!({"name": c, "persistentVolumeClaim": {"claimName": c}})).collect())
}

/// What comes of claims on a node: volumes bound and claims provided for, or the reasons.
fn ask(known: &Known, claims: &[&str], host: &str) -> String {
    match binding::claims(known, &using("p", claims)) {
        Err(why) => why,
        Ok(claims) => on(known, claims, Promised::default(), host),
    }
}

fn on(known: &Known, claims: Claims, promised: Promised, host: &str) -> String {
    match binding::on_node(known, &Question::new(known, claims, promised), host, &labels(host)) {
        Err(unfit) => unfit.to_string(),
        Ok(plan) => {
            let bind = plan.bind.iter().map(|(v, c)| format!("{}={}", c.name_any(), v.name_any()));
            bind.chain(plan.provision.iter().map(|c| format!("{}=new", c.name_any()))).collect::<Vec<_>>().join(" ")
        }
    }
}

#[test]
fn claims_that_cannot_be_used_yet_hold_the_pod() {
    let known = Known::new();
    assert_eq!(ask(&known, &["c"], "a"), "persistentvolumeclaim \"c\" not found");
    known.claim("c", "now", json!({}));
    assert_eq!(ask(&known, &["c"], "a"), "pod has unbound immediate PersistentVolumeClaims");
    known.claim("c", "late", json!({"spec": {"volumeName": "v"}}));
    assert_eq!(ask(&known, &["c"], "a"), "pod has unbound immediate PersistentVolumeClaims", "its volume was chosen already");
    known.claim("c", "now", merged(bound("v"), json!({"status": {"phase": "Lost"}})));
    assert_eq!(ask(&known, &["c"], "a"), "persistentvolumeclaim \"c\" bound to non-existent persistentvolume \"v\"");
    known.claim("c", "late", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    assert_eq!(ask(&known, &["c"], "a"), "persistentvolumeclaim \"c\" is being deleted");
    let own = pod("p", json!([{"name": "e", "ephemeral": {"volumeClaimTemplate": {}}}]));
    let why = |known: &Known| binding::claims(known, &own).expect_err("not yet");
    assert_eq!(why(&known), "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-e\"");
    known.claim("p-e", "late", json!({}));
    assert_eq!(why(&known), "PVC n/p-e was not created for pod n/p (pod is not owner)");
    known.claim("p-e", "late", json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p", "controller": true}]}}));
    assert_eq!(binding::claims(&known, &own).expect("now").waiting.len(), 1);
}

#[test]
fn bound_claims_draw_the_pod_to_their_volumes() {
    let known = Known::new();
    known.claim("c", "now", bound("v"));
    assert_eq!(ask(&known, &["c"], "a"), "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)");
    known.volume("v", "now", "a", json!({"status": {"phase": "Bound"}}));
    assert_eq!(ask(&known, &["c"], "a"), "");
    assert_eq!(ask(&known, &["c"], "b"), "node(s) didn't match PersistentVolume's node affinity");
}

#[test]
fn waiting_claims_take_a_volume_of_the_node_or_are_provided_for() {
    let known = Known::new();
    known.claim("c", "late", json!({}));
    assert_eq!(ask(&known, &["c"], "a"), "c=new");
    known.volume("v", "late", "a", json!({}));
    assert_eq!(ask(&known, &["c"], "a"), "c=v");
    assert_eq!(ask(&known, &["c"], "b"), "c=new");
    // Two claims take two volumes, the smaller claim the smaller volume.
    known.claim("d", "late", json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}));
    known.volume("w", "late", "a", json!({"spec": {"capacity": {"storage": "1Gi"}}}));
    assert_eq!(ask(&known, &["d", "c"], "a"), "c=w d=v");
    // Made by hand: without one there is none.
    known.claim("h", "hand", json!({}));
    assert_eq!(ask(&known, &["h"], "a"), "node(s) didn't find available persistent volumes to bind");
    known.volume("x", "hand", "a", json!({}));
    assert_eq!(ask(&known, &["h"], "a"), "h=x");
    assert_eq!(ask(&known, &["h"], "b"), "node(s) didn't find available persistent volumes to bind");
}

#[test]
fn what_was_chosen_before_stands() {
    let known = Known::new();
    known.claim("c", "late", json!({"metadata": {"annotations": {storage::SELECTED_NODE: "a"}}}));
    assert_eq!(ask(&known, &["c"], "a"), "c=new");
    assert_eq!(ask(&known, &["c"], "b"), "node(s) didn't find available persistent volumes to bind");
    // Promised to pods on their way.
    known.claim("c", "hand", json!({}));
    known.volume("v", "hand", "a", json!({}));
    let claims = || binding::claims(&known, &using("p", &["c"])).expect("waits");
    let promised = |uid: &str| Promised { volumes: [("v".to_string(), uid.to_string())].into(), ..Promised::default() };
    assert_eq!(on(&known, claims(), promised("another"), "a"), "node(s) didn't find available persistent volumes to bind");
    assert_eq!(on(&known, claims(), promised("uid-c"), "a"), "c=v");
    known.claim("c", "late", json!({}));
    let promised = Promised { nodes: [("uid-c".to_string(), "a".to_string())].into(), ..Promised::default() };
    let claims = binding::claims(&known, &using("p", &["c"])).expect("waits");
    assert_eq!(on(&known, claims, promised, "b"), "node(s) didn't find available persistent volumes to bind");
}

#[test]
fn classes_and_drivers_bound_where_volumes_are_made() {
    let mut known = Known::new();
    let topology = json!([{"matchLabelExpressions": [{"key": "host", "values": ["a"]}]}]);
    let class = json!({"metadata": {"name": "here"}, "provisioner": "csi.io", "volumeBindingMode": "WaitForFirstConsumer", "allowedTopologies": topology});
    known.classes.insert("here".into(), Arc::new(serde_json::from_value(class).expect("a class")));
    known.claim("c", "here", json!({}));
    assert_eq!(ask(&known, &["c"], "a"), "c=new");
    assert_eq!(ask(&known, &["c"], "b"), "node(s) didn't find available persistent volumes to bind");
    known.drivers.push(Arc::new(serde_json::from_value(json!({"metadata": {"name": "csi.io"}, "spec": {"storageCapacity": true}})).expect("a driver")));
    assert_eq!(ask(&known, &["c"], "a"), "node(s) did not have enough free storage");
    let capacity = json!({"metadata": {"name": "x"}, "storageClassName": "here", "capacity": "1Gi", "nodeTopology": {"matchLabels": {"host": "a"}}});
    known.capacities.push(Arc::new(serde_json::from_value(capacity).expect("a capacity")));
    assert_eq!(ask(&known, &["c"], "a"), "c=new");
}

#[test]
fn binding_is_followed_to_its_end() {
    let known = Known::new();
    known.claim("c", "late", json!({"metadata": {"annotations": {storage::SELECTED_NODE: "a"}}}));
    let claims = binding::claims(&known, &using("p", &["c"])).expect("waits");
    let plan = binding::on_node(&known, &Question::new(&known, claims, Promised::default()), "a", &labels("a")).expect("a plan");
    let progress = || binding::progress(&known, &plan, "a", &labels("a"));
    assert_eq!(progress(), Ok(false));
    let chosen = json!({"metadata": {"annotations": {storage::SELECTED_NODE: "a"}}});
    known.claim("c", "late", merged(bound("v"), chosen.clone()));
    assert_eq!(progress(), Ok(false), "the volume is not seen yet");
    known.volume("v", "late", "b", json!({}));
    assert_eq!(progress().unwrap_err(), "pv \"v\" node affinity doesn't match node \"a\": no matching NodeSelectorTerms");
    known.volume("v", "late", "a", json!({}));
    assert_eq!(progress(), Ok(true));
    known.claim("c", "late", json!({}));
    assert_eq!(progress().unwrap_err(), "provisioning failed for PVC \"c\"", "the provisioner gave the node back");
}

#[test]
fn promises_are_kept_until_they_are_taken_back() {
    let known = Arc::new(Known::new());
    known.claim("c", "hand", json!({}));
    known.claim("d", "hand", json!({}));
    known.volume("v", "hand", "a", json!({}));
    let plugin = VolumeBinding::over(known, |host| Some(labels(host)));
    let profile = Profile::default();
    let fits = |pod: &PodInfo| match plugin.prepare(pod, &profile) {
        Prepared::Check(check) => check.filter(Site::plain(&node("a"))).is_ok(),
        Prepared::Skip => panic!("it has claims"),
        Prepared::Reject(why) => panic!("{why:?}"),
    };
    let (first, second) = (using("p", &["c"]), using("q", &["d"]));
    assert!(fits(&first) && fits(&second));
    plugin.reserve(&first, "a").expect("it fits");
    assert!(plugin.must_pre_bind(&first, "a") && !plugin.must_pre_bind(&second, "a"));
    assert!(!fits(&second) && fits(&first));
    assert!(plugin.reserve(&second, "a").is_err());
    plugin.unreserve(&first, "a");
    assert!(fits(&second));
    assert!(matches!(plugin.prepare(&pod("r", json!([])), &profile), Prepared::Skip));
}

#[test]
fn one_pod_at_a_time() {
    let known = Arc::new(Known::new());
    known.claim("c", "now", merged(bound("v"), json!({"spec": {"accessModes": ["ReadWriteOncePod"]}})));
    known.claim("d", "now", bound("w"));
    let plugin = VolumeRestrictions::new(known);
    let profile = Profile::default();
    let (first, second) = (Arc::new(using("p", &["c", "d"])), using("q", &["c", "d"]));
    assert!(matches!(plugin.prepare(&second, &profile), Prepared::Skip));
    plugin.reserve(&first, "a").expect("nothing speaks against it");
    assert!(matches!(plugin.prepare(&first, &profile), Prepared::Skip), "it is its own claim");
    let node = node("a");
    let Prepared::Check(check) = plugin.prepare(&second, &profile) else { panic!("the claim is in use") };
    let rejection = check.filter(Site::plain(&node)).expect_err("in use");
    assert_eq!(rejection.reasons(&second), [limits::ONCE_POD_CONFLICT]);
    assert!(rejection.resolvable);
    let without = [first.clone()];
    assert!(check.filter(Site { node: &node, added: &[], removed: &without }).is_ok(), "preemption would help");
    plugin.unreserve(&first, "a");
    assert!(matches!(plugin.prepare(&second, &profile), Prepared::Skip));
    assert!(matches!(plugin.prepare(&using("r", &["gone"]), &profile), Prepared::Reject(_)));
}

#[test]
fn disks_that_are_used_once() {
    let conflict = |mine: Value, theirs: Value| {
        let (mine, theirs) = (pod("p", json!([mine])), pod("q", json!([theirs])));
        limits::disks_conflict(&mine.shape.volumes[0], &theirs)
    };
    let gce = |name: &str, read_only: bool| json!({"name": "x", "gcePersistentDisk": {"pdName": name, "readOnly": read_only}});
    assert!(conflict(gce("a", false), gce("a", true)));
    assert!(!conflict(gce("a", true), gce("a", true)) && !conflict(gce("a", false), gce("b", false)));
    let aws = |id: &str| json!({"name": "x", "awsElasticBlockStore": {"volumeID": id, "readOnly": true}});
    assert!(conflict(aws("a"), aws("a")) && !conflict(aws("a"), gce("a", false)));
    let rbd = |monitor: &str, image: &str| json!({"name": "x", "rbd": {"monitors": [monitor, "m"], "image": image}});
    assert!(conflict(rbd("a", "i"), rbd("b", "i")) && !conflict(rbd("a", "i"), rbd("a", "j")));
    let pool = |monitor: &str, pool: &str, read_only: bool| json!({"name": "x", "rbd": {"monitors": [monitor], "image": "i", "pool": pool, "readOnly": read_only}});
    assert!(conflict(pool("a", "p", false), pool("a", "p", true)) && conflict(pool("a", "rbd", false), rbd("a", "i")), "that is the usual one");
    assert!(!conflict(pool("a", "p", false), pool("a", "q", false)) && !conflict(pool("a", "p", false), pool("b", "p", false)) && !conflict(pool("a", "p", true), pool("a", "p", true)));
    let iscsi = |iqn: &str, read_only: bool| json!({"name": "x", "iscsi": {"targetPortal": "t", "iqn": iqn, "lun": 0, "readOnly": read_only}});
    assert!(conflict(iscsi("a", false), iscsi("a", true)) && conflict(iscsi("a", false), iscsi("a", false)));
    assert!(!conflict(iscsi("a", true), iscsi("a", true)) && !conflict(iscsi("a", false), iscsi("b", false)));
    let exclusive = |volume: Value| limits::is_exclusive(&pod("p", json!([volume])).shape.volumes[0]);
    assert!(exclusive(gce("a", false)) && exclusive(aws("a")) && exclusive(rbd("a", "i")) && exclusive(iscsi("a", false)));
    assert!(!exclusive(json!({"name": "x", "persistentVolumeClaim": {"claimName": "c"}})) && !exclusive(json!({"name": "x", "azureDisk": {"diskName": "d"}})));
}

#[test]
fn zones_of_volumes_and_nodes() {
    let known = Known::new();
    known.claim("c", "now", bound("v"));
    known.volume("v", "now", "a", json!({"metadata": {"labels": {"failure-domain.beta.kubernetes.io/zone": "east__west"}}}));
    let zones = limits::zones(&known, &using("p", &["c"])).expect("it is bound");
    let node = |labels: &[(&str, &str)]| labels.iter().copied().collect::<Labels>();
    assert!(limits::in_zone(&zones, &node(&[("topology.kubernetes.io/zone", "west")])));
    assert!(!limits::in_zone(&zones, &node(&[("topology.kubernetes.io/zone", "north")])));
    assert!(!limits::in_zone(&zones, &node(&[("topology.kubernetes.io/region", "r")])));
    assert!(limits::in_zone(&zones, &node(&[("host", "a")])), "it has no place");
    known.claim("d", "late", json!({}));
    assert_eq!(limits::zones(&known, &using("p", &["d"])), Ok(vec![]));
    known.claim("d", "now", json!({}));
    assert_eq!(limits::zones(&known, &using("p", &["d"])).unwrap_err(), "PersistentVolume had no name");
}

/// The volumes of CSI drivers that a pod uses.
fn of_drivers(known: &Known, pod: &PodInfo) -> Result<HashMap<String, String>, String> {
    let mut all = HashMap::new();
    limits::add_driver_volumes(known, pod, &mut all).map(|()| all)
}

#[test]
fn drivers_limit_volumes() {
    let mut known = Known::new();
    let node = json!({"metadata": {"name": "a"}, "spec": {"drivers": [{"name": "csi.io", "nodeID": "a", "allocatable": {"count": 1}}]}});
    known.csi_nodes.push(Arc::new(serde_json::from_value(node).expect("a CSINode")));
    for name in ["c", "d"] {
        known.claim(name, "now", bound(name));
        known.volume(name, "now", "a", json!({"spec": {"local": null, "csi": {"driver": "csi.io", "volumeHandle": name}}}));
    }
    let room = |here: &[&str], wanted: &[&str], host: &str| {
        let there = using("q", here);
        limits::has_room(&known, &of_drivers(&known, &using("p", wanted)).expect("there is a driver for each"), host, [&there].into_iter())
    };
    assert!(room(&[], &["c"], "a") && room(&["c"], &["c"], "a"), "the same volume counts once");
    assert!(!room(&["c"], &["d"], "a") && !room(&[], &["c", "d"], "a"));
    assert!(room(&["c"], &["d"], "b"), "it says no limit");
}

#[test]
fn what_is_attached_takes_its_place_without_pods() {
    let limit = |most: i32, attached: &[(&str, &str)], here: &[&str], wanted: &[&str]| {
        let node = json!({"metadata": {"name": "a"}, "spec": {"drivers": [{"name": "csi.io", "nodeID": "a", "allocatable": {"count": most}}]}});
        let csi_nodes = vec![Arc::new(serde_json::from_value(node).expect("a CSINode"))];
        let attached = attached.iter().map(|(driver, volume)| (driver.to_string(), volume.to_string())).collect();
        let known = Known { csi_nodes, attached, ..Known::new() };
        for name in ["c", "d"] {
            known.claim(name, "now", bound(name));
            known.volume(name, "now", "a", json!({"spec": {"local": null, "csi": {"driver": "csi.io", "volumeHandle": name}}}));
        }
        known.volume("plain", "now", "a", json!({}));
        let there = using("q", here);
        limits::has_room(&known, &of_drivers(&known, &using("p", wanted)).expect("there is a driver for each"), "a", [&there].into_iter())
    };
    assert!(!limit(1, &[("csi.io", "d")], &[], &["c"]) && limit(2, &[("csi.io", "d")], &[], &["c"]));
    assert!(limit(2, &[("csi.io", "d")], &["d"], &["c"]), "it counts once");
    for other in [("another.io", "d"), ("csi.io", "plain"), ("csi.io", "gone")] {
        assert!(limit(1, &[other], &[], &["c"]), "{other:?}");
    }
    assert!(!limit(1, &[("csi.io", "c")], &[], &["c"]), "upstream counts it twice");
}

const ZONE: &str = "topology.kubernetes.io/zone";
const DRIVERS_ZONE: &str = "topology.ebs.csi.aws.com/zone";

/// A node `m` whose kubelet hands volumes of these kinds over, and how many of each driver it takes.
fn csi_node(kinds: &str, limits: Value) -> Arc<CSINode> {
    let object = json!({"metadata": {"name": "m", "annotations": {MIGRATED_PLUGINS: kinds}}, "spec": {"drivers": limits}});
    Arc::new(serde_json::from_value(object).expect("a CSINode"))
}

fn disk(id: &str, zone: &str) -> Value {
    let required = json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": ZONE, "operator": "In", "values": [zone]}]}]});
    json!({"spec": {"local": null, "awsElasticBlockStore": {"volumeID": id}, "nodeAffinity": {"required": required}}})
}

#[test]
fn volumes_of_clouds_are_where_their_drivers_nodes_are() {
    let mut known = Known::new();
    known.claim("c", "now", bound("v"));
    known.volume("v", "now", "a", disk("vol-1", "east"));
    let by = |known: &Known, labels: &[(&str, &str)], node: &str| {
        let labels: Labels = labels.iter().copied().collect();
        let question = Question::new(known, binding::claims(known, &using("p", &["c"])).expect("it is bound"), Promised::default());
        binding::on_node(known, &question, node, &labels).map_or_else(|unfit| unfit.to_string(), |_| "fits".into())
    };
    let (far, plain, drivers) = ("node(s) didn't match PersistentVolume's node affinity", [(ZONE, "east")], [(DRIVERS_ZONE, "east")]);
    // Nothing is handed over without a CSINode that says so.
    assert_eq!((by(&known, &plain, "m").as_str(), by(&known, &drivers, "m").as_str()), ("fits", far));
    known.csi_nodes.push(csi_node("kubernetes.io/gce-pd", json!([])));
    assert_eq!((by(&known, &plain, "m").as_str(), by(&known, &drivers, "m").as_str()), ("fits", far));
    known.csi_nodes = vec![csi_node("kubernetes.io/gce-pd,kubernetes.io/aws-ebs", json!([]))];
    assert_eq!((by(&known, &plain, "m").as_str(), by(&known, &drivers, "m").as_str()), (far, "fits"));
    assert_eq!((by(&known, &plain, "other").as_str(), by(&known, &[(DRIVERS_ZONE, "west")], "m").as_str()), ("fits", far));
    known.volume("v", "now", "a", disk("aws://east/x", "east"));
    let why = "could not translate pv: failed to translate Kubernetes ID to EBS Volume ID Invalid format for AWS volume (aws://east/x)";
    assert_eq!((by(&known, &drivers, "m").as_str(), by(&known, &plain, "other").as_str()), (why, "fits"));
    // A volume that nobody has yet is found by its own words, which is upstream's way.
    known.claim("c", "hand", json!({}));
    known.volume("v", "hand", "a", disk("vol-1", "east"));
    assert_eq!((by(&known, &plain, "m").as_str(), by(&known, &drivers, "m").as_str()), ("fits", "node(s) didn't find available persistent volumes to bind"));
}

#[test]
fn the_scheduler_knows_nothing_of_shares_of_azure() {
    let mut known = Known::new();
    known.csi_nodes.push(csi_node("kubernetes.io/azure-file,kubernetes.io/vsphere-volume", json!([])));
    known.claim("c", "now", bound("v"));
    known.volume("v", "now", "a", merged(disk("", "east"), json!({"spec": {"awsElasticBlockStore": null, "vsphereVolume": {"volumePath": "v"}}})));
    let question = Question::new(&known, binding::claims(&known, &using("p", &["c"])).expect("it is bound"), Promised::default());
    assert!(binding::on_node(&known, &question, "m", &[(ZONE, "east")].into_iter().collect()).is_ok());
    let share = json!({"name": "s", "azureFile": {"secretName": "s", "shareName": "f"}});
    let both = pod("p", json!([share, {"name": "c", "persistentVolumeClaim": {"claimName": "c"}}]));
    assert_eq!(of_drivers(&known, &both), Ok(HashMap::new()));
}

#[test]
fn binding_ends_where_the_driver_can_reach_the_volume() {
    let mut known = Known::new();
    known.csi_nodes.push(csi_node("kubernetes.io/aws-ebs", json!([])));
    known.claim("c", "late", json!({"metadata": {"annotations": {storage::SELECTED_NODE: "m"}}}));
    let claims = binding::claims(&known, &using("p", &["c"])).expect("waits");
    let plan = binding::on_node(&known, &Question::new(&known, claims, Promised::default()), "m", &Labels::default()).expect("a plan");
    known.claim("c", "late", merged(bound("v"), json!({"metadata": {"annotations": {storage::SELECTED_NODE: "m"}}})));
    known.volume("v", "late", "a", disk("vol-1", "east"));
    let progress = |key: &str| binding::progress(&known, &plan, "m", &[(key, "east")].into_iter().collect());
    assert_eq!(progress(DRIVERS_ZONE), Ok(true));
    assert_eq!(progress(ZONE).unwrap_err(), "pv \"v\" node affinity doesn't match node \"m\": no matching NodeSelectorTerms");
    known.volume("v", "late", "a", disk("aws://east/x", "east"));
    assert!(progress(DRIVERS_ZONE).unwrap_err().starts_with("could not translate pv: "));
}

#[test]
fn volumes_of_clouds_count_under_their_drivers() {
    let mut known = Known::new();
    let class = |name: &str, provisioner: &str| Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "provisioner": provisioner})).expect("a class"));
    known.classes.insert("ebs".into(), class("ebs", "kubernetes.io/aws-ebs"));
    known.classes.insert("file".into(), class("file", "kubernetes.io/azure-file"));
    known.claim("c", "now", bound("v"));
    known.volume("v", "now", "a", disk("aws://east/vol-1", "east"));
    known.claim("new", "ebs", json!({}));
    known.claim("share", "file", json!({}));
    let own = |source: Value| {
        let mut volume = source;
        volume["name"] = json!("x");
        pod("p", json!([volume]))
    };
    let names = |pod: &PodInfo| {
        let mut all: Vec<_> = of_drivers(&known, pod).expect("there is a driver for each").into_iter().collect();
        all.sort();
        all.into_iter().map(|(name, driver)| format!("{driver}: {name}")).collect::<Vec<_>>()
    };
    assert_eq!(names(&using("p", &["c"])), ["ebs.csi.aws.com: ebs.csi.aws.com/vol-1"]);
    assert_eq!(names(&using("p", &["new", "share"])), ["ebs.csi.aws.com: ebs.csi.aws.com/n/new"]);
    for (source, name) in [
        (json!({"awsElasticBlockStore": {"volumeID": "vol-1"}}), "ebs.csi.aws.com: ebs.csi.aws.com/vol-1"),
        (json!({"gcePersistentDisk": {"pdName": "d"}}), "pd.csi.storage.gke.io: pd.csi.storage.gke.io/projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d"),
        (json!({"azureDisk": {"diskName": "d", "diskURI": "/u", "kind": "Managed"}}), "disk.csi.azure.com: disk.csi.azure.com//u"),
        (json!({"cinder": {"volumeID": "o"}}), "cinder.csi.openstack.org: cinder.csi.openstack.org/o"),
        (json!({"portworxVolume": {"volumeID": "p"}}), "pxd.portworx.com: pxd.portworx.com/p"),
    ] {
        assert_eq!(names(&own(source)), [name]);
    }
    for source in [json!({"emptyDir": {}}), json!({"vsphereVolume": {"volumePath": "v"}}), json!({"nfs": {"server": "s", "path": "/"}})] {
        assert!(names(&own(source)).is_empty());
    }
    let mixed = pod("p", json!([{"name": "bad", "azureDisk": {"diskURI": "/u", "kind": "Dedicated"}}, {"name": "c", "persistentVolumeClaim": {"claimName": "c"}}]));
    let why = "converting volume(bad) from inline to csi: kind(Dedicated) is not supported in csi migration";
    assert_eq!(of_drivers(&known, &mixed).unwrap_err(), why);
    let mut all = HashMap::new();
    let _ = limits::add_driver_volumes(&known, &mixed, &mut all);
    assert_eq!(all.into_keys().collect::<Vec<_>>(), ["ebs.csi.aws.com/vol-1"], "the others count all the same");
}

#[test]
fn drivers_limit_what_pods_describe_themselves() {
    let own = |uid: &str, id: &str| pod(uid, json!([{"name": "x", "cinder": {"volumeID": id}}]));
    let limited = |name: &str| csi_node("kubernetes.io/cinder", json!([{"name": name, "nodeID": "m", "allocatable": {"count": 1}}]));
    let ask = |csi: Option<Arc<CSINode>>, there: &str, wanted: &PodInfo| {
        let known = Known { csi_nodes: csi.into_iter().collect(), ..Known::new() };
        let view: NodeView = serde_json::from_value(json!({"metadata": {"name": "m"}})).expect("a node");
        let mut beside = own("q", there);
        beside.node = Some("m".into());
        let node = Cluster::new([Arc::new(view)], [Arc::new(beside)]).node("m").expect("it is there").clone();
        let plugin = NodeVolumeLimits(Arc::new(known));
        match plugin.prepare(wanted, &Profile::default()) {
            Prepared::Check(check) => check.filter(Site::plain(&node)).map_or_else(|r| r.reasons(wanted).join(", "), |()| "fits".into()),
            Prepared::Skip => "skipped".into(),
            Prepared::Reject(why) => panic!("{why:?}"),
        }
    };
    let wanted = own("p", "b");
    assert_eq!(ask(Some(limited("cinder.csi.openstack.org")), "a", &wanted), limits::TOO_MANY);
    assert_eq!(ask(Some(limited("cinder.csi.openstack.org")), "b", &wanted), "fits", "it is the same volume");
    assert_eq!(ask(Some(limited("another")), "a", &wanted), "fits");
    assert_eq!(ask(None, "a", &wanted), "fits");
    assert_eq!(ask(Some(limited("cinder.csi.openstack.org")), "a", &pod("p", json!([{"name": "x", "emptyDir": {}}]))), "skipped");
    let broken = pod("p", json!([{"name": "x", "azureDisk": {"diskURI": "/u", "kind": "Shared"}}]));
    assert_eq!(ask(None, "a", &broken), "fits");
    let why = "converting volume(x) from inline to csi: kind(Shared) is not supported in csi migration";
    assert_eq!(ask(Some(limited("another")), "a", &broken), why);
}

#[test]
fn plugins_take_part_where_volumes_are() {
    let known = {
        let mut known = Known::new();
        let node = json!({"metadata": {"name": "a"}, "spec": {"drivers": [{"name": "csi.io", "nodeID": "a", "allocatable": {"count": 0}}]}});
        known.csi_nodes.push(Arc::new(serde_json::from_value(node).expect("a CSINode")));
        known.claim("c", "now", bound("c"));
        known.volume("c", "now", "a", json!({"spec": {"local": null, "csi": {"driver": "csi.io", "volumeHandle": "c"}}}));
        Arc::new(known)
    };
    let (profile, wanted) = (Profile::default(), using("p", &["c"]));
    let limits_plugin = NodeVolumeLimits(known.clone());
    let Prepared::Check(check) = limits_plugin.prepare(&wanted, &profile) else { panic!("it has a volume of a driver") };
    assert_eq!(check.filter(Site::plain(&node("a"))).expect_err("none may be there").reasons(&wanted), [limits::TOO_MANY]);
    assert!(check.filter(Site::plain(&node("b"))).is_ok());
    assert_eq!(limits_plugin.name(), "NodeVolumeLimits");
    assert!(matches!(VolumeZone(known.clone()).prepare(&wanted, &profile), Prepared::Skip), "its volume is in no zone");
    let binding = VolumeBinding::over(known.clone(), |host| Some(labels(host)));
    let said = |claim: &str| match binding.prepare(&using("p", &[claim]), &profile) {
        Prepared::Reject(why) => (why.reasons(&wanted).join(", "), why.resolvable),
        _ => panic!("it cannot be used"),
    };
    known.claim("early", "now", json!({}));
    assert_eq!(said("early"), ("pod has unbound immediate PersistentVolumeClaims".into(), false));
    assert_eq!(said("gone"), ("persistentvolumeclaim \"gone\" not found".into(), false));
}

#[test]
fn volumes_that_are_well_used_are_better() {
    let known = Arc::new(Known::new());
    known.claim("c", "hand", json!({}));
    known.claim("d", "late", json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}}));
    known.volume("tight", "hand", "a", json!({"spec": {"capacity": {"storage": "1Gi"}}}));
    known.volume("wide", "hand", "b", json!({"spec": {"capacity": {"storage": "4Gi"}}}));
    known.volume("late", "late", "b", json!({"spec": {"capacity": {"storage": "4Gi"}}}));
    let plugin = VolumeBinding::over(known, |host| Some(labels(host)));
    let (profile, nodes) = (Profile::default(), [node("a"), node("b"), node("x")]);
    let scores = |claims: &[&str]| match plugin.prepare(&using("p", claims), &profile) {
        Prepared::Check(check) => check.score(&[&nodes[0], &nodes[1], &nodes[2]]),
        _ => panic!("it has claims"),
    };
    assert_eq!(scores(&["c"]), Some(vec![100, 25, 0]));
    assert_eq!(scores(&["c", "d"]), Some(vec![100, 50, 0]), "the mean of the classes: a quarter, and three");
    assert_eq!(Known::new().capacities().len(), 0);
}

#[test]
fn two_claims_of_a_class_are_weighed_together() {
    let known = Known::new();
    for (name, size) in [("c", "1Gi"), ("d", "2Gi")] {
        known.claim(name, "hand", json!({"spec": {"resources": {"requests": {"storage": size}}}}));
        known.volume(name, "hand", "a", json!({"spec": {"capacity": {"storage": "2Gi"}}}));
    }
    let plan = |claims: &[&str]| {
        let claims = binding::claims(&known, &using("p", claims)).expect("they wait");
        binding::on_node(&known, &Question::new(&known, claims, Promised::default()), "a", &labels("a")).expect("a plan")
    };
    assert_eq!(binding::utilization(&plan(&["c", "d"])), Some(75));
    assert_eq!(binding::utilization(&plan(&[])), None);
}

#[test]
fn capacity_is_of_the_class_and_the_place() {
    let space = |change: Value| {
        let mut known = Known::new();
        let driver = json!({"metadata": {"name": "rancher.io/local-path"}, "spec": {"storageCapacity": true}});
        known.drivers.push(Arc::new(serde_json::from_value(driver).expect("a driver")));
        let capacity = json!({"metadata": {"name": "x"}, "storageClassName": "late", "nodeTopology": {"matchLabels": {"host": "a"}}, "capacity": "1Gi"});
        known.capacities.push(Arc::new(serde_json::from_value(merged(capacity, change)).expect("a capacity")));
        known.claim("c", "late", json!({}));
        ask(&known, &["c"], "a")
    };
    assert_eq!(space(json!({})), "c=new");
    for short in [json!({"storageClassName": "now"}), json!({"nodeTopology": {"matchLabels": {"host": "b"}}}), json!({"nodeTopology": null}), json!({"capacity": "1Mi"}), json!({"maximumVolumeSize": "1Mi"})] {
        assert_eq!(space(short.clone()), "node(s) did not have enough free storage", "{short}");
    }
    assert_eq!(space(json!({"capacity": "1Mi", "maximumVolumeSize": "2Gi"})), "c=new");
}

#[test]
fn pods_with_volumes_wait_until_those_are_known() {
    let known = Arc::new(Known { early: true, ..Known::new() });
    known.claim("c", "now", bound("v"));
    let (profile, claims, plain) = (Profile::default(), using("p", &["c"]), pod("q", json!([])));
    let plugins: [&dyn Plugin; 2] = [&VolumeZone(known.clone()), &VolumeBinding::over(known, |host| Some(labels(host)))];
    for plugin in plugins {
        let Prepared::Reject(why) = plugin.prepare(&claims, &profile) else { panic!("nothing is known yet") };
        assert_eq!(why.reasons(&claims), ["the volumes of the cluster are not known yet"]);
        assert!(matches!(plugin.prepare(&plain, &profile), Prepared::Skip));
    }
}
