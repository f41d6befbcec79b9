//! Scenarios of the slices of a service.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::plan::{Action, plan};
use crate::pod::Pod;
use crate::service_pods::TRIGGER_TIME;

fn pod_with(name: &str, ips: &[&str], ready: bool, leaving: bool, node: &str) -> Arc<Pod> {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name},
        "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips, "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]}
    });
    if leaving {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

fn pod(n: usize) -> Arc<Pod> {
    pod_with(&format!("p{n:04}"), &[&format!("10.0.{}.{}", n / 250, n % 250 + 1)], true, false, "n1")
}

fn service(more: Value) -> Service {
    let mut spec = json!({"clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "selector": {"app": "a"}, "ports": [{"port": 80, "targetPort": "web", "protocol": "TCP"}]});
    more.as_object().expect("an object").iter().for_each(|(k, v)| spec[k] = v.clone());
    serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "ns", "uid": "s"}, "spec": spec})).expect("a service")
}

fn zone(node: &str) -> Option<Option<String>> {
    match node {
        "n1" => Some(Some("z1".into())),
        "n2" => Some(None),
        _ => None,
    }
}

/// A cluster that does what is planned.
struct World {
    slices: Vec<Arc<EndpointSlice>>,
    made: usize,
}

impl World {
    fn new() -> World {
        World { slices: Vec::new(), made: 0 }
    }

    /// Plans, acts, and says how many were created, updated and deleted.
    fn run(&mut self, service: &Service, pods: &[Arc<Pod>]) -> (usize, usize, usize) {
        let mut counts = (0, 0, 0);
        for action in plan(service, &self.slices, pods, zone, None, 100) {
            match action {
                Action::Create(mut slice) => {
                    counts.0 += 1;
                    self.made += 1;
                    slice.metadata.name = Some(format!("s-{}", self.made));
                    self.slices.push(Arc::new(slice));
                }
                Action::Update(slice) => {
                    counts.1 += 1;
                    let place = self.slices.iter().position(|s| s.name_any() == slice.name_any()).expect("it exists");
                    self.slices[place] = Arc::new(slice);
                }
                Action::Delete(name) => {
                    counts.2 += 1;
                    self.slices.retain(|s| s.name_any() != name);
                }
            }
        }
        assert_eq!(plan(service, &self.slices, pods, zone, None, 100), [], "it is stable");
        counts
    }

    fn sizes(&self) -> Vec<usize> {
        let mut sizes: Vec<usize> = self.slices.iter().map(|s| s.endpoints.as_ref().map_or(0, Vec::len)).collect();
        sizes.sort();
        sizes
    }
}

#[test]
fn ports_are_resolved_and_conditions_told() {
    let pods = [
        pod_with("a", &["10.0.0.1"], true, false, "n1"),
        pod_with("b", &["10.0.0.2"], false, false, "n2"),
        pod_with("c", &["10.0.0.3"], true, true, "n1"),
        pod_with("d", &[""], true, false, "n1"),
        pod_with("e", &["10.0.0.5"], true, false, "nowhere"),
    ];
    let told = |service: &Service| {
        let mut world = World::new();
        world.run(service, &pods);
        let slice = world.slices[0].clone();
        assert_eq!(slice.ports.as_ref().map(|p| p[0].port), Some(Some(8080)));
        let all = slice.endpoints.clone().unwrap_or_default().into_iter().map(|e| {
            let c = e.conditions.expect("conditions");
            (e.addresses[0].clone(), [c.ready, c.serving, c.terminating].map(|c| c == Some(true)), e.zone.unwrap_or_default())
        });
        all.collect::<Vec<_>>()
    };
    let expect = |ip: &str, conditions, zone: &str| (ip.to_string(), conditions, zone.to_string());
    assert_eq!(told(&service(json!({}))), [
        expect("10.0.0.1", [true, true, false], "z1"),
        expect("10.0.0.2", [false, false, false], ""),
        expect("10.0.0.3", [false, true, true], "z1"),
    ]);
    let all = told(&service(json!({"publishNotReadyAddresses": true})));
    assert_eq!(all[1], expect("10.0.0.2", [true, false, false], ""));
    assert_eq!(all.len(), 4, "a node that is not known does not matter then");
}

#[test]
fn slices_are_filled_and_few_are_written() {
    let service = service(json!({}));
    let mut world = World::new();
    let mut pods: Vec<Arc<Pod>> = (0..250).map(pod).collect();
    assert_eq!(world.run(&service, &pods), (3, 0, 0));
    assert_eq!(world.sizes(), [50, 100, 100]);
    pods.push(pod(250));
    assert_eq!(world.run(&service, &pods), (0, 1, 0), "into the one that has room");
    pods.remove(0);
    assert_eq!(world.run(&service, &pods), (0, 1, 0));
    assert_eq!(world.sizes(), [51, 99, 100]);
    pods.push(pod(251));
    world.run(&service, &pods);
    assert_eq!(world.sizes(), [51, 100, 100], "the fullest that has room is taken");
    pods.extend((300..380).map(pod));
    assert_eq!(world.run(&service, &pods), (1, 0, 0), "more than any has room for: a new one, the others stay");
    assert_eq!(world.run(&service, &[]), (0, 1, 3), "one is left, empty");
    assert_eq!(world.sizes(), [0]);
    assert_eq!(world.run(&service, &pods[..1]), (0, 1, 0), "the empty one is used");
}

#[test]
fn pods_with_other_ports_have_slices_of_their_own() {
    let mut other = pod(2).as_ref().clone();
    let spec = json!({"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 9090}]}]});
    other.spec = serde_json::from_value(spec).ok();
    let mut world = World::new();
    assert_eq!(world.run(&service(json!({})), &[pod(1), Arc::new(other)]), (2, 0, 0));
    let mut ports: Vec<i32> = world.slices.iter().filter_map(|s| s.ports.as_ref()?[0].port).collect();
    ports.sort();
    assert_eq!(ports, [8080, 9090]);
    assert_eq!(world.run(&service(json!({})), &[pod(1)]), (0, 0, 1));
}

#[test]
fn families_and_owners_are_kept_apart() {
    let mut world = World::new();
    let both = service(json!({"ipFamilies": ["IPv4", "IPv6"]}));
    let pods = [pod_with("a", &["10.0.0.1", "fd00::1"], true, false, "n1")];
    assert_eq!(world.run(&both, &pods), (2, 0, 0));
    let addresses: Vec<_> = world.slices.iter().map(|s| (s.address_type.clone(), s.endpoints.clone().unwrap_or_default()[0].addresses.clone())).collect();
    assert!(addresses.contains(&("IPv6".into(), vec!["fd00::1".into()])), "{addresses:?}");
    assert_eq!(world.run(&service(json!({})), &pods), (0, 0, 1));
    // The service was deleted and made anew under its name.
    let mut anew = service(json!({}));
    anew.metadata.uid = Some("t".into());
    assert_eq!(world.run(&anew, &pods), (1, 0, 1));
}

#[test]
fn labels_follow_the_service() {
    let mut world = World::new();
    let mut service = service(json!({"clusterIP": "None"}));
    world.run(&service, &[pod(1)]);
    assert!(world.slices[0].labels().contains_key("service.kubernetes.io/headless"));
    service.metadata.labels = Some([("l".to_string(), "1".to_string())].into());
    assert_eq!(world.run(&service, &[pod(1)]), (0, 1, 0));
    assert_eq!(world.slices[0].labels().get("l").map(String::as_str), Some("1"));
}

#[test]
fn the_change_is_dated() {
    let [Action::Create(slice)] = &plan(&service(json!({})), &[], &[], zone, Some("t"), 100)[..] else { panic!("one is made") };
    assert_eq!(slice.annotations().get(TRIGGER_TIME).map(String::as_str), Some("t"));
}

#[test]
fn near_endpoints_are_hinted_at() {
    let pods = [pod_with("a", &["10.0.0.1"], true, false, "n1"), pod_with("b", &["10.0.0.2"], false, false, "n1")];
    let hints = |more: Value, annotation: Option<&str>| {
        let mut service = service(more);
        service.metadata.annotations = annotation.map(|mode| [("service.kubernetes.io/topology-mode".to_string(), mode.to_string())].into());
        let mut world = World::new();
        world.run(&service, &pods);
        let all: Vec<Value> = world.slices[0].endpoints.iter().flatten().map(|e| serde_json::to_value(&e.hints).expect("JSON")).collect();
        Value::from(all)
    };
    let zone = json!({"forZones": [{"name": "z1"}]});
    assert_eq!(hints(json!({}), None), json!([null, null]));
    assert_eq!(hints(json!({"trafficDistribution": "PreferClose"}), None), json!([zone, null]), "only a ready one");
    assert_eq!(hints(json!({"trafficDistribution": "PreferSameZone"}), None), json!([zone, null]));
    let node = json!({"forZones": [{"name": "z1"}], "forNodes": [{"name": "n1"}]});
    assert_eq!(hints(json!({"trafficDistribution": "PreferSameNode"}), None), json!([node, null]));
    assert_eq!(hints(json!({"trafficDistribution": "PreferSameZone"}), Some("Auto")), json!([null, null]), "the annotation wins");
}

#[test]
fn a_new_slice_is_named_for_its_service_and_tells_of_the_pods() {
    let mut named = pod(1).as_ref().clone();
    named.spec = serde_json::from_value(json!({"nodeName": "n1", "hostname": "web", "subdomain": "s", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]})).ok();
    let [Action::Create(slice)] = &plan(&service(json!({})), &[], &[Arc::new(named)], zone, None, 100)[..] else { panic!("one is made") };
    assert_eq!((slice.metadata.generate_name.as_deref(), slice.metadata.namespace.as_deref()), (Some("s-"), Some("ns")));
    let endpoint = &slice.endpoints.as_ref().expect("endpoints")[0];
    assert_eq!(endpoint.hostname.as_deref(), Some("web"));
    assert_eq!(endpoint.target_ref.as_ref().and_then(|t| t.name.as_deref()), Some("p0001"));
}

#[test]
fn an_empty_slice_has_the_labels_of_its_service_too() {
    let mut world = World::new();
    let mut service = service(json!({}));
    world.run(&service, &[]);
    service.metadata.labels = Some([("l".to_string(), "1".to_string())].into());
    assert_eq!(world.run(&service, &[]), (0, 1, 0));
    assert_eq!(world.slices[0].labels().get("l").map(String::as_str), Some("1"));
}
