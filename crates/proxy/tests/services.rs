//! Services traced through the compiled rule set, and the same rule set given to the kernel.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nft::conntrack::Flow;
use nft::fake::{Fake, Machine, Outcome, Packet};
use nft::{Family, Kernel, Nftables, Reject};
use proxy::{Config, Model, rules, stale};
use serde_json::{Value, json};

const SERVICE: &str = "10.96.0.7";
const POD: &str = "10.244.0.5";
const CLIENT: &str = "198.51.100.1";
const NODE: &str = "192.0.2.1";

fn config() -> Config {
    Config {
        node_name: "a".into(),
        prefix: "t".into(),
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()],
    }
}

fn service(patch: Value) -> Service {
    let mut spec = json!({
        "type": "NodePort", "clusterIP": SERVICE, "clusterIPs": [SERVICE], "externalIPs": ["203.0.113.9"],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}],
    });
    spec.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
    serde_json::from_value(json!({"metadata": {"namespace": "d", "name": "s"}, "spec": spec})).unwrap()
}

/// A slice with these endpoints: address, node, conditions.
fn slice(endpoints: &[(&str, &str, Value)]) -> EndpointSlice {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, node, more)| {
            let mut endpoint = json!({"addresses": [address], "nodeName": node});
            endpoint.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            endpoint
        })
        .collect();
    serde_json::from_value(json!({
        "metadata": {"namespace": "d", "name": "s-1", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }))
    .unwrap()
}

fn ready() -> Value {
    json!({"conditions": {"ready": true}})
}

struct Node {
    fake: Fake,
    machine: Machine,
}

fn node(service: Service, slice: EndpointSlice) -> Node {
    let fake = Fake::new();
    let model = Model::new(Family::Ip, "a", &[&service], &[&slice]);
    fake.apply(None, &rules::compile(&config(), &model)).unwrap();
    let addresses = [NODE, "127.0.0.1", "10.244.0.1"].map(|a| a.parse().unwrap()).to_vec();
    Node { fake, machine: Machine { addresses, route: |_| "eth0", random: 0 } }
}

impl Node {
    fn trace(&self, source: &str, destination: &str, port: u16) -> Outcome {
        let packet = Packet::tcp(source, destination, port, "eth0");
        let own = self.machine.addresses.contains(&packet.source);
        self.fake.trace(&self.machine, if own { packet.local() } else { packet })
    }
}

fn to(address: &str, masqueraded: bool) -> Outcome {
    Outcome::Delivered { to: (address.parse().unwrap(), 8080), masqueraded }
}

const REFUSED: Outcome = Outcome::Rejected(Reject::TcpReset);

#[test]
fn every_address_of_a_service_leads_to_its_endpoint() {
    let node = node(service(json!({})), slice(&[("10.244.1.9", "b", ready())]));
    assert_eq!(node.trace(POD, SERVICE, 80), to("10.244.1.9", false));
    assert_eq!(node.trace(NODE, SERVICE, 80), to("10.244.1.9", true), "the node itself");
    assert_eq!(node.trace(CLIENT, "203.0.113.9", 80), to("10.244.1.9", true), "external address");
    assert_eq!(node.trace(CLIENT, NODE, 30080), to("10.244.1.9", true), "node port");
    assert_eq!(node.trace("127.0.0.1", "127.0.0.1", 30080), to("10.244.1.9", true), "node port by loopback");
    assert_eq!(node.trace(POD, NODE, 30080), to("10.244.1.9", true), "node port from a pod");
    assert_eq!(node.trace(POD, SERVICE, 81), REFUSED, "a port it does not have");
    let udp = node.fake.trace(&node.machine, Packet::tcp(POD, SERVICE, 80, "eth0").udp());
    assert_eq!(udp, Outcome::Rejected(Reject::PortUnreachable), "a protocol it does not have");
    let elsewhere = Outcome::Delivered { to: (CLIENT.parse().unwrap(), 30080), masqueraded: false };
    assert_eq!(node.trace(POD, CLIENT, 30080), elsewhere, "another machine's port");
}

#[test]
fn a_pod_reaches_itself() {
    let node = node(service(json!({})), slice(&[(POD, "a", ready())]));
    assert_eq!(node.trace(POD, SERVICE, 80), to(POD, true));
    assert_eq!(node.trace("10.244.0.6", SERVICE, 80), to(POD, false));
}

#[test]
fn choice_readiness_and_termination() {
    let not_ready = || json!({"conditions": {"ready": false}});
    let leaving = || json!({"conditions": {"ready": false, "serving": true, "terminating": true}});
    let mut both = node(service(json!({})), slice(&[("10.244.0.2", "a", ready()), ("10.244.0.3", "a", ready())]));
    assert_eq!(both.trace(POD, SERVICE, 80), to("10.244.0.2", false));
    both.machine.random = 1;
    assert_eq!(both.trace(POD, SERVICE, 80), to("10.244.0.3", false));
    let one = slice(&[("10.244.0.2", "a", not_ready()), ("10.244.0.3", "a", ready()), ("10.244.0.4", "a", leaving())]);
    assert_eq!(node(service(json!({})), one).trace(POD, SERVICE, 80), to("10.244.0.3", false));
    let last = slice(&[("10.244.0.2", "a", not_ready()), ("10.244.0.4", "a", leaving())]);
    assert_eq!(node(service(json!({})), last).trace(POD, SERVICE, 80), to("10.244.0.4", false));
    let none = node(service(json!({})), slice(&[("10.244.0.2", "a", not_ready())]));
    for (destination, port) in [(SERVICE, 80), (NODE, 30080), ("203.0.113.9", 80)] {
        assert_eq!(none.trace(POD, destination, port), REFUSED, "{destination}");
    }
}

#[test]
fn affinity_keeps_a_client_at_its_endpoint() {
    let endpoints = slice(&[("10.244.0.2", "a", ready()), ("10.244.0.3", "a", ready())]);
    let mut node = node(service(json!({"sessionAffinity": "ClientIP"})), endpoints);
    assert_eq!(node.trace(POD, SERVICE, 80), to("10.244.0.2", false));
    node.machine.random = 1;
    assert_eq!(node.trace(POD, SERVICE, 80), to("10.244.0.2", false), "remembered");
    assert_eq!(node.trace(POD, NODE, 30080), to("10.244.0.2", true), "by each address");
    assert_eq!(node.trace("10.244.0.9", SERVICE, 80), to("10.244.0.3", false), "another client");
}

#[test]
fn traffic_policies() {
    let local = || service(json!({"externalTrafficPolicy": "Local"}));
    let here = node(local(), slice(&[("10.244.1.9", "b", ready()), ("10.244.0.2", "a", ready())]));
    assert_eq!(here.trace(CLIENT, NODE, 30080), to("10.244.0.2", false), "the client's address is kept");
    let mut elsewhere = node(local(), slice(&[("10.244.1.9", "b", ready())]));
    assert_eq!(elsewhere.trace(CLIENT, NODE, 30080), Outcome::Dropped);
    assert_eq!(elsewhere.trace(CLIENT, "203.0.113.9", 80), Outcome::Dropped);
    assert_eq!(elsewhere.trace(POD, NODE, 30080), to("10.244.1.9", false), "pods are inside");
    assert_eq!(elsewhere.trace(NODE, NODE, 30080), to("10.244.1.9", true), "the node is inside");
    elsewhere = node(service(json!({"internalTrafficPolicy": "Local"})), slice(&[("10.244.1.9", "b", ready())]));
    assert_eq!(elsewhere.trace(POD, SERVICE, 80), Outcome::Dropped);
    assert_eq!(elsewhere.trace(CLIENT, NODE, 30080), to("10.244.1.9", true));
}

#[test]
fn same_node_hints() {
    let hint = |node: &str| json!({"conditions": {"ready": true}, "hints": {"forNodes": [{"name": node}]}});
    let hinted = slice(&[("10.244.0.1", "a", hint("a")), ("10.244.1.1", "b", hint("b"))]);
    let mut near = node(service(json!({})), hinted);
    for random in 0..2 {
        near.machine.random = random;
        assert_eq!(near.trace(POD, SERVICE, 80), to("10.244.0.1", false));
    }
    let far = node(service(json!({})), slice(&[("10.244.1.1", "b", hint("b"))]));
    assert_eq!(far.trace(POD, SERVICE, 80), to("10.244.1.1", false), "better far than nowhere");
}

#[test]
fn services_that_are_not_for_us() {
    for patch in [json!({"clusterIP": "None", "clusterIPs": ["None"]}), json!({"type": "ExternalName"})] {
        let model = Model::new(Family::Ip, "a", &[&service(patch)], &[&slice(&[(POD, "a", ready())])]);
        assert!(model.ports.is_empty());
    }
}

#[test]
fn udp_connections_to_former_endpoints_are_forgotten() {
    let udp = |endpoints: &[&str]| {
        let ports = json!([{"name": "http", "port": 53, "protocol": "UDP", "nodePort": 30053}]);
        let endpoints: Vec<_> = endpoints.iter().map(|address| (*address, "a", ready())).collect();
        let mut slice = slice(&endpoints);
        slice.ports.as_mut().unwrap()[0].protocol = Some("UDP".into());
        Model::new(Family::Ip, "a", &[&service(json!({"ports": ports}))], &[&slice])
    };
    let flow = |destination: &str, port, reply: &str| Flow {
        protocol: 17,
        source: POD.parse().unwrap(),
        destination: destination.parse().unwrap(),
        destination_port: port,
        reply_source: reply.parse().unwrap(),
        reply_port: if reply == destination { port } else { 8080 },
    };
    let (before, now) = (udp(&["10.244.0.2"]), udp(&["10.244.0.3"]));
    assert!(stale(Some(&now), &now).is_none());
    let test = stale(Some(&before), &now).unwrap();
    assert!(test(&flow(SERVICE, 53, "10.244.0.2")));
    assert!(test(&flow(SERVICE, 53, SERVICE)), "sent before there was an endpoint");
    assert!(test(&flow(NODE, 30053, "10.244.0.2")));
    assert!(!test(&flow(SERVICE, 53, "10.244.0.3")));
    assert!(!test(&flow(CLIENT, 30053, CLIENT)), "another machine's port");
    assert!(!test(&flow(CLIENT, 53, CLIENT)));
    let gone = Model::new(Family::Ip, "a", &[] as &[&Service], &[] as &[&EndpointSlice]);
    assert!(stale(Some(&before), &gone).unwrap()(&flow(SERVICE, 53, "10.244.0.2")));
}

#[test]
fn the_kernel_takes_the_rules_and_their_changes() {
    // SAFETY: moves this test's own thread to a new network namespace, nothing else.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
    let kernel = Kernel::open().unwrap();
    let endpoints = |count: u8| {
        let addresses: Vec<String> = (2..2 + count).map(|n| format!("10.244.0.{n}")).collect();
        slice(&addresses.iter().map(|a| (a.as_str(), "a", ready())).collect::<Vec<_>>())
    };
    let mut previous = None;
    for (patch, count) in [
        (json!({}), 0),
        (json!({}), 1),
        (json!({}), 100),
        (json!({"sessionAffinity": "ClientIP"}), 3),
        (json!({"sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local"}), 2),
        (json!({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}), 5),
        (json!({"type": "ExternalName"}), 5),
    ] {
        let model = Model::new(Family::Ip, "a", &[&service(patch)], &[&endpoints(count)]);
        let rules = rules::compile(&config(), &model);
        kernel.apply(previous.as_ref(), &rules).unwrap();
        previous = Some(rules);
    }
    let six = json!({"clusterIP": "fd96::1", "clusterIPs": ["fd96::1"], "externalIPs": []});
    let mut slice = slice(&[("fd00::2", "a", ready()), ("fd00::3", "b", ready())]);
    slice.address_type = "IPv6".into();
    let model = Model::new(Family::Ip6, "a", &[&service(six)], &[&slice]);
    kernel.apply(None, &rules::compile(&config(), &model)).unwrap();
    assert_eq!(proxy::purge(&kernel, "t").unwrap(), 2);
    assert_eq!(proxy::purge(&kernel, "t").unwrap(), 0);
}
