//! Extended resources that devices stand behind.

use serde_json::{Value, json};

use super::super::extended;
use super::*;
use crate::requests::Resources;

fn asking(init: Value, containers: Value) -> PodInfo {
    read(json!({"metadata": {"name": "p", "namespace": "default", "uid": "p"}, "spec": {"initContainers": init, "containers": containers}}))
}

fn container(name: &str, requests: Value) -> Value {
    json!({"name": name, "resources": {"requests": requests}})
}

fn backed(devices: &[&str]) -> World {
    let mut world = world(&[on_a(plain(devices))], &[]);
    class(&mut world, "gpu", json!({"extendedResourceName": "example.com/gpu"}));
    world
}

fn got(world: &World, pod: &PodInfo, at: &str) -> String {
    on(world, pod, at).map_or_else(|why| why, |given| devices(&given))
}

#[test]
fn a_node_without_the_resource_gives_devices() {
    let two = asking(json!([]), json!([container("a", json!({"cpu": "1", "example.com/gpu": "2"}))]));
    assert_eq!(got(&backed(&["1", "2"]), &two, "a"), "container-0-request-1=1 container-0-request-1=2");
    assert_eq!(got(&backed(&["1"]), &two, "a"), "cannot allocate all claims");
    assert_eq!(got(&backed(&["1", "2"]), &two, "b"), "cannot allocate all claims");
    let implicit = asking(json!([]), json!([container("a", json!({"deviceclass.resource.kubernetes.io/gpu": "1"}))]));
    assert_eq!(got(&backed(&["1"]), &implicit, "a"), "container-0-request-0=1");
    assert_eq!(got(&world(&[], &[]), &two, "a"), "", "no class stands behind it: not a matter of devices");
}

#[test]
fn a_node_that_has_the_resource_gives_no_devices() {
    let mut world = backed(&["1"]);
    class(&mut world, "plugged", json!({"extendedResourceName": "example.com/plugged"}));
    let pod = asking(json!([]), json!([container("a", json!({"example.com/plugged": "1"}))]));
    assert_eq!(got(&world, &pod, "a"), "");
    let both = asking(json!([]), json!([container("a", json!({"example.com/plugged": "1", "example.com/gpu": "1"}))]));
    assert_eq!(got(&world, &both, "a"), "container-0-request-0=1", "only the other one");
    let foreign = asking(json!([]), json!([container("a", json!({"example.com/gpu": "1", "foreign.io/x": "1"}))]));
    assert_eq!(got(&world, &foreign, "a"), "cannot fit resource");
}

#[test]
fn the_newer_of_two_classes_counts() {
    let mut world = backed(&["1"]);
    let newer: DeviceClass = read(json!({"metadata": {"name": "other", "creationTimestamp": "2026-02-01T00:00:00Z"}, "spec": {"extendedResourceName": "example.com/gpu"}}));
    world.set_class("other", Some(&Arc::new(newer)));
    let name = |world: &World| world.class_behind("example.com/gpu").and_then(|c| c.metadata.name.clone());
    assert_eq!(name(&world).as_deref(), Some("other"));
    world.set_class("other", None);
    assert_eq!(name(&world).as_deref(), Some("gpu"));
    class(&mut world, "first", json!({"extendedResourceName": "example.com/gpu"}));
    assert_eq!(name(&world).as_deref(), Some("first"), "of the same age: the first by name");
}

#[test]
fn init_containers_use_what_others_get_later() {
    let gpu = |n: &str| json!({"example.com/gpu": n});
    let mut side = container("side", gpu("1"));
    side["restartPolicy"] = json!("Always");
    let pod = asking(json!([container("i1", gpu("3")), side, container("i2", gpu("4"))]), json!([container("main", gpu("2"))]));
    let world = backed(&[]);
    let wanted = extended::wanted(&world, &pod, &Resources::default()).expect("devices");
    let made = extended::claim(&pod, &wanted);
    let requests: Vec<(String, i64)> = made.claim.spec.devices.iter().flat_map(|d| d.requests.iter().flatten()).map(|r| (r.name.clone(), r.exactly.as_ref().and_then(|e| e.count).unwrap_or(0))).collect();
    // The first init container can have the other two's devices; the last one only the main container's.
    assert_eq!(requests, [("container-1-request-0".to_string(), 1), ("container-2-request-0".into(), 2), ("container-3-request-0".into(), 2)]);
    let shares: Vec<String> = made.mappings.iter().map(|m| format!("{} {}", m.container_name, m.request_name.trim_start_matches("container-"))).collect();
    assert_eq!(shares, ["side 1-request-0", "main 3-request-0", "i1 1-request-0", "i1 3-request-0", "i2 3-request-0", "i2 2-request-0"]);
    assert_eq!(made.claim.metadata.generate_name.as_deref(), Some("p-extended-resources-"));
}

#[test]
fn a_claim_of_an_earlier_attempt_goes_first() {
    let mut world = backed(&["1"]);
    let stale = json!({"metadata": {"name": "p-extended-resources-x", "namespace": "default", "uid": "e", "annotations": {"resource.kubernetes.io/extended-resource-claim": "true"},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p", "controller": true}]}, "spec": {"devices": {"requests": [exactly("r", json!({}))]}}});
    world.put_claim(&Arc::new(read(stale.clone())));
    let pod = asking(json!([]), json!([container("a", json!({"example.com/gpu": "1"}))]));
    assert_eq!(got(&world, &pod, "a"), "cannot schedule extended resource claim");
    let needs = Needs::of(&world, &pod, means()).expect("needs").expect("resources");
    let after = needs.after(&pod, std::iter::empty());
    assert_eq!((after.message, after.give_back.as_deref()), ("deletion of ResourceClaim completed", Some("p-extended-resources-x")));
    world.remove_claim(&read(stale));
    assert_eq!(got(&world, &pod, "a"), "container-0-request-0=1");
}

#[test]
fn names_behind_which_devices_may_stand() {
    use crate::devices::asked::{is_for, is_reserved_for, may_be_devices};
    for yes in ["example.com/gpu", "deviceclass.resource.kubernetes.io/gpu"] {
        assert!(may_be_devices(yes), "{yes}");
    }
    for no in ["cpu", "memory", "hugepages-2Mi", "attachable-volumes-csi", "kubernetes.io/x", "x.kubernetes.io/y", "requests.example.com/gpu"] {
        assert!(!may_be_devices(no), "{no}");
    }
    let of = |controller: bool, uid: &str| -> ResourceClaim {
        read(json!({"metadata": {"name": "c", "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": controller}]}, "spec": {}, "status": {"reservedFor": [{"resource": "pods", "name": "p", "uid": uid}]}}))
    };
    let pod = pod(&[]);
    assert!(is_for(&pod, &of(true, "p")) && !is_for(&pod, &of(false, "p")) && !is_for(&pod, &of(true, "q")));
    assert!(is_reserved_for(&pod, &of(true, "p")) && !is_reserved_for(&pod, &of(true, "q")));
}

#[test]
fn the_largest_of_the_init_containers_serves_all_of_them() {
    let gpu = |n: &str| json!({"example.com/gpu": n});
    for (first, second, kept) in [("2", "5", "container-1-request-0"), ("5", "2", "container-0-request-0"), ("5", "5", "container-0-request-0")] {
        let pod = asking(json!([container("i1", gpu(first)), container("i2", gpu(second))]), json!([container("main", json!({"cpu": "1"}))]));
        let world = backed(&[]);
        let made = extended::claim(&pod, &extended::wanted(&world, &pod, &Resources::default()).expect("devices"));
        let requests: Vec<_> = made.claim.spec.devices.iter().flat_map(|d| d.requests.iter().flatten()).map(|r| (r.name.clone(), r.exactly.clone().expect("a request"))).collect();
        assert_eq!(requests.len(), 1);
        assert_eq!((requests[0].0.as_str(), requests[0].1.count, requests[0].1.allocation_mode.as_deref()), (kept, Some(5), Some("ExactCount")));
        assert!(made.mappings.iter().all(|m| m.request_name == kept), "{:?}", made.mappings);
        let metadata = &made.claim.metadata;
        assert_eq!(metadata.owner_references.as_ref().map(|o| (o[0].kind.as_str(), o[0].uid.as_str())), Some(("Pod", "p")));
        assert!(metadata.name.is_some() && metadata.uid.as_ref().is_some_and(|uid| uid.ends_with('p')), "it can be told from those that are there");
    }
}
