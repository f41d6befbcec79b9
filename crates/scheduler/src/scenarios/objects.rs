//! What is read of pods and nodes.

use super::*;
use crate::pod::{HostPort, Toleration};

fn read(pod: Value) -> PodInfo {
    let mut whole = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": [{"name": "c"}]}});
    merge(&mut whole, pod);
    serde_json::from_value(whole).expect("a pod")
}

#[test]
fn tolerations_cover_taints() {
    let taint: crate::node::Taint = serde_json::from_value(json!({"key": "k", "value": "5", "effect": "NoSchedule"})).expect("a taint");
    let covers = |toleration: Value| serde_json::from_value::<Toleration>(toleration).expect("a toleration").covers(&taint);
    for yes in [
        json!({"operator": "Exists"}),
        json!({"key": "k", "operator": "Exists"}),
        json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"}),
        json!({"key": "k", "value": "5"}),
        json!({"value": "5"}),
        json!({"key": "k", "operator": "Equal", "value": "5"}),
        json!({"key": "k", "operator": "Lt", "value": "6"}),
        json!({"key": "k", "operator": "Gt", "value": "4"}),
    ] {
        assert!(covers(yes.clone()), "{yes}");
    }
    for no in [
        json!({"key": "other", "operator": "Exists"}),
        json!({"operator": "Exists", "effect": "NoExecute"}),
        json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}),
        json!({"key": "k", "value": "6"}),
        json!({"value": "6"}),
        json!({"key": "k", "operator": "Lt", "value": "5"}),
        json!({"key": "k", "operator": "Lt", "value": "4"}),
        json!({"key": "k", "operator": "Gt", "value": "5"}),
        json!({"key": "k", "operator": "Gt", "value": "6"}),
        json!({"key": "k", "operator": "Lt", "value": "many"}),
        json!({"key": "k", "operator": "Like", "value": "5"}),
    ] {
        assert!(!covers(no.clone()), "{no}");
    }
}

#[test]
fn host_ports_collide() {
    let ports = |port: Value| read(json!({"spec": {"containers": [{"name": "c", "ports": [port]}]}})).shape.ports.clone();
    let one = |port: i32, protocol: &str, address: &str| ports(json!({"hostPort": port, "protocol": protocol, "hostIP": address})).remove(0);
    let collide = |a: &HostPort, b: &HostPort| {
        assert_eq!(a.collides(b), b.collides(a));
        a.collides(b)
    };
    let web = one(80, "TCP", "10.0.0.1");
    assert!(collide(&web, &web));
    assert!(collide(&web, &one(80, "TCP", "")) && collide(&web, &one(80, "TCP", "0.0.0.0")), "all addresses have it");
    assert!(!collide(&web, &one(80, "TCP", "10.0.0.2")));
    assert!(!collide(&web, &one(81, "TCP", "10.0.0.1")) && !collide(&one(81, "TCP", ""), &one(80, "TCP", "")));
    assert!(!collide(&web, &one(80, "UDP", "10.0.0.1")) && !collide(&one(80, "UDP", ""), &one(80, "TCP", "")));
    assert_eq!(ports(json!({"hostPort": 0})), [], "none is asked for");
    assert_eq!(ports(json!({"containerPort": 80})), []);
    // Containers that stay hold their ports; those that end do not.
    let init = |policy: Value| read(json!({"spec": {"initContainers": [{"name": "i", "restartPolicy": policy, "ports": [{"hostPort": 80}]}]}})).shape.ports.len();
    assert_eq!((init(json!("Always")), init(Value::Null)), (1, 0));
}

#[test]
fn images_have_a_tag() {
    let images = |names: &[&str], volume: Value| {
        let containers: Vec<Value> = names.iter().map(|n| json!({"name": "c", "image": n})).collect();
        read(json!({"spec": {"containers": containers, "volumes": [volume]}})).shape.images.clone()
    };
    let tagged = images(&["web", "web:1", "host:5000/web", "host:5000/web:1", "host/web:2"], json!({"name": "v", "image": {"reference": "data"}}));
    assert_eq!(tagged.iter().map(|i| i.as_ref()).collect::<Vec<_>>(), ["web:latest", "web:1", "host:5000/web:latest", "host:5000/web:1", "host/web:2", "data:latest"]);
}

#[test]
fn what_a_pods_status_tells() {
    let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason, "message": "m"});
    let of = |deleted: bool, conditions: Value| {
        let stamp = if deleted { json!("2026-01-01T00:00:00Z") } else { Value::Null };
        read(json!({"metadata": {"deletionTimestamp": stamp}, "status": {"conditions": conditions}}))
    };
    let displaced = |status: &str, reason: &str| json!([condition("Ready", "True", ""), condition("DisruptionTarget", status, reason)]);
    assert!(of(true, displaced("True", "PreemptionByScheduler")).preempted);
    assert!(!of(false, displaced("True", "PreemptionByScheduler")).preempted, "it is not being deleted");
    assert!(!of(true, displaced("False", "PreemptionByScheduler")).preempted);
    assert!(!of(true, displaced("True", "EvictionByEvictionAPI")).preempted);
    assert!(!of(true, json!([condition("Other", "True", "PreemptionByScheduler")])).preempted);
    let refused = |status: &str| of(false, json!([condition("Ready", "False", "x"), condition("PodScheduled", status, "Unschedulable")])).refused.map(|r| r.0.clone());
    assert_eq!((refused("False").as_deref(), refused("True")), (Some("Unschedulable"), None));

    let times = read(json!({"metadata": {"creationTimestamp": "1970-01-01T00:01:00Z"}, "status": {"startTime": "1970-01-01T00:00:02Z"}}));
    assert_eq!((times.created, times.started), (60, Some(2_000_000_000)));
    assert_eq!(read(json!({"metadata": {"creationTimestamp": "soon"}})).created, 0);
    let nominated = |node: &str| read(json!({"status": {"nominatedNodeName": node}})).nominated;
    assert_eq!((nominated("a").as_deref(), nominated("")), (Some("a"), None));
    let owned = |controller: Value| read(json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Thing", "name": "first"}, {"apiVersion": "v1", "kind": "ReplicaSet", "name": "second", "controller": controller}]}}));
    assert_eq!(owned(json!(true)).shape.owner.as_ref().map(|o| o.name.as_ref()), Some("second"));
    assert_eq!((owned(json!(false)).shape.owner.as_ref(), owned(Value::Null).shape.owner.as_ref()), (None, None));
    // What a container has been given counts beside what it asks for.
    let resized = read(json!({"spec": {"containers": [cpu("1")["containers"][0]]}, "status": {"containerStatuses": [
        {"name": "other", "resources": {"requests": {"cpu": "3"}}}, {"name": "c", "resources": {"requests": {"cpu": "2"}}}]}}));
    assert_eq!(resized.shape.requests.cpu, 2000);
}

#[test]
fn volumes_without_a_place_are_not_kept() {
    let kept = |volume: Value| read(json!({"spec": {"volumes": [volume]}})).shape.volumes.len();
    for volume in [json!({"emptyDir": {}}), json!({"image": {"reference": "data"}})] {
        assert_eq!(kept(volume), 0);
    }
    for kind in ["persistentVolumeClaim", "ephemeral", "gcePersistentDisk", "awsElasticBlockStore", "azureDisk", "rbd", "iscsi"] {
        assert_eq!(kept(json!({"name": "v", kind: {}})), 1, "{kind}");
    }
}

#[test]
fn terms_with_a_namespace_selector_reach_no_further() {
    let term = |more: Value| {
        let term = with(json!({"labelSelector": {}, "topologyKey": ZONE}), more);
        read(json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}})).shape.affinity.required[0].namespaces.join(" ")
    };
    assert_eq!(term(json!({})), "n", "its own");
    assert_eq!(term(json!({"namespaces": ["b", "a"]})), "a b");
    assert_eq!(term(json!({"namespaceSelector": {}})), "");
    assert_eq!(term(json!({"namespaces": ["a"], "namespaceSelector": {}})), "a");
}

#[test]
fn a_node_is_the_same_when_nothing_that_counts_differs() {
    let plain_node = node("a", json!({}));
    assert!(plain_node.same(&node("a", json!({"metadata": {"resourceVersion": "9"}}))));
    for change in [
        json!({"metadata": {"labels": {"disk": "ssd"}}}),
        json!({"spec": {"unschedulable": true}}),
        json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}),
        json!({"status": {"allocatable": {"cpu": "5"}}}),
        json!({"status": {"images": [{"names": ["web:latest"], "sizeBytes": 1}]}}),
        json!({"status": {"declaredFeatures": ["Some"]}}),
    ] {
        assert!(!plain_node.same(&node("a", change.clone())), "{change}");
    }
}

#[test]
fn local_storage_is_a_resource_too() {
    let scratch = |name: &str, amount: &str| pod(name, json!({"containers": [{"name": "c", "resources": {"requests": {"ephemeral-storage": amount}}}]}));
    let nodes = [node("a", json!({"status": {"allocatable": {"ephemeral-storage": "10Gi"}}}))];
    check(&nodes, &[("a", scratch("x", "6Gi"))], &scratch("p", "4Gi"), "a");
    check(&nodes, &[("a", scratch("x", "6Gi"))], &scratch("p", "5Gi"), "1 Insufficient ephemeral-storage");
    let mut world = cluster(&nodes, &[("a", scratch("x", "6Gi"))]);
    world.remove_pod("x");
    assert_eq!(bound(plain().decide(&mut world, &scratch("p", "10Gi"))), "a", "what went is free again");
    assert_eq!(scratch("p", "1Ki").shape.requests.get("ephemeral-storage"), 1024);
    // More resources than there is room for in what is noted as lacking.
    let many: serde_json::Map<String, Value> = (0..70).map(|i| (format!("example.com/r{i:02}"), json!("1"))).collect();
    check(&nodes, &[], &pod("p", json!({"containers": [{"name": "c", "resources": {"requests": many}}]})), "1 Insufficient example.com/r00");
}
