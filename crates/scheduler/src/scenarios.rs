//! Scenarios of whole decisions: for each plug-in a case in which it acts and one in which it must not,
//! upstream's messages, preemption, and which changes wake whom.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::cluster::{Cluster, NodeInfo};
use crate::config::{Config, DefaultSpread, Point, Profile, Strategy};
use crate::decide::{Decision, Failure, Turn, decide, enough};
use crate::hints::{Event, helps};
use crate::node::NodeView;
use crate::plugin::{Check, Plugin, Prepared, Rejection, Site};
use crate::pod::PodInfo;
use crate::preempt::Budget;

mod choices;
mod objects;
mod scores;
mod waking;

fn node(name: &str, extra: Value) -> Arc<NodeView> {
    let zone = name.split('-').next().unwrap_or(name);
    let mut node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone}},
        "spec": {}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}}});
    merge(&mut node, extra);
    Arc::new(serde_json::from_value(node).expect("a node"))
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => from.into_iter().for_each(|(k, v)| merge(into.entry(k).or_insert(Value::Null), v)),
        (into, from) => *into = from,
    }
}

fn pod(name: &str, spec: Value) -> Arc<PodInfo> {
    labelled(name, json!({"app": name}), spec)
}

fn labelled(name: &str, labels: Value, spec: Value) -> Arc<PodInfo> {
    let mut pod = json!({"metadata": {"name": name, "namespace": "default", "uid": name, "labels": labels},
        "spec": {"containers": [{"name": "c", "image": "web"}]}});
    merge(&mut pod["spec"], spec);
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

fn cpu(amount: &str) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]})
}

fn with(mut spec: Value, more: Value) -> Value {
    merge(&mut spec, more);
    spec
}

/// A cluster of these nodes, and pods with the names of their nodes.
fn cluster(nodes: &[Arc<NodeView>], pods: &[(&str, Arc<PodInfo>)]) -> Cluster {
    let mut cluster = Cluster::new(nodes.iter().cloned(), []);
    pods.iter().for_each(|(node, pod)| cluster.place(node, pod));
    cluster
}

struct Asked {
    config: Config,
    plugins: Vec<Arc<dyn Plugin>>,
    budgets: Vec<Budget>,
}

impl Asked {
    fn decide(&self, cluster: &mut Cluster, pod: &PodInfo) -> Decision {
        let turn = Turn { config: &self.config, profile: 0, plugins: &self.plugins, budgets: &self.budgets, start: 0, seed: 0, explain: true };
        decide(cluster, pod, &turn).decision
    }
}

fn plain() -> Asked {
    Asked { config: Config::default(), plugins: Vec::new(), budgets: Vec::new() }
}

fn profiled(change: impl FnOnce(&mut Profile)) -> Asked {
    let mut asked = plain();
    change(&mut asked.config.profiles[0]);
    asked
}

fn bound(decision: Decision) -> String {
    match decision {
        Decision::Bind(node) => node,
        Decision::Unschedulable(failure) => failure.message,
        Decision::Failed(message) => message,
    }
}

fn failure(decision: Decision) -> Failure {
    match decision {
        Decision::Bind(other) | Decision::Failed(other) => panic!("{other}"),
        Decision::Unschedulable(failure) => *failure,
    }
}

/// `expected` is the node's name, or how it begins; or it is said in the message.
fn check(nodes: &[Arc<NodeView>], pods: &[(&str, Arc<PodInfo>)], wanted: &PodInfo, expected: &str) {
    match plain().decide(&mut cluster(nodes, pods), wanted) {
        Decision::Bind(node) => assert!(node.starts_with(expected), "it goes to {node:?} instead of: {expected:?}"),
        other => {
            let said = bound(other);
            assert!(expected.contains(' ') && said.contains(expected), "{said:?} does not say {expected:?}");
        }
    }
}

const TAINT: &str = "k";

fn tainted(name: &str, effect: &str) -> Arc<NodeView> {
    node(name, json!({"spec": {"taints": [{"key": TAINT, "value": "v", "effect": effect}]}}))
}

#[test]
fn messages_are_upstreams() {
    let nothing = "no new claims to deallocate, preemption: ";
    let said = |nodes: &[Arc<NodeView>], pods: &[(&str, Arc<PodInfo>)], wanted: &PodInfo| bound(plain().decide(&mut cluster(nodes, pods), wanted));
    assert_eq!(
        said(&[tainted("a", "NoSchedule")], &[], &pod("p", cpu("1"))),
        format!("0/1 nodes are available: 1 node(s) had untolerated taint(s). {nothing}0/1 nodes are available: 1 Preemption is not helpful for scheduling.")
    );
    let cordoned = node("b", json!({"spec": {"unschedulable": true}}));
    assert_eq!(
        said(&[node("a", json!({})), cordoned, tainted("c", "NoExecute")], &[], &pod("p", cpu("8"))),
        format!("0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. {nothing}0/3 nodes are available: 3 Preemption is not helpful for scheduling.")
    );
    assert_eq!(
        said(&[node("a", json!({})), node("b", json!({}))], &[("a", pod("x", cpu("4"))), ("b", pod("y", cpu("4")))], &pod("p", cpu("1"))),
        format!("0/2 nodes are available: 2 Insufficient cpu. {nothing}0/2 nodes are available: 2 No preemption victims found for incoming pod.")
    );
    assert_eq!(
        said(&[node("a", json!({}))], &[("a", pod("x", cpu("4")))], &pod("p", with(cpu("1"), json!({"preemptionPolicy": "Never", "priority": 5})))),
        "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: not eligible due to preemptionPolicy=Never."
    );
    let named = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]}}}});
    assert_eq!(
        said(&[tainted("a", "NoSchedule"), node("b", json!({}))], &[], &pod("p", named)),
        format!("0/2 nodes are available: 1 node(s) didn't satisfy plugin(s) [NodeAffinity], 1 node(s) had untolerated taint(s). {nothing}0/2 nodes are available: 2 Preemption is not helpful for scheduling.")
    );
    assert_eq!(said(&[], &[], &pod("p", cpu("1"))), "no nodes available to schedule pods");
}

#[test]
fn taints_cordons_and_selectors() {
    let wanted = |spec| pod("p", spec);
    check(&[tainted("a", "NoSchedule")], &[], &wanted(json!({"tolerations": [{"key": TAINT, "operator": "Exists"}]})), "a");
    check(&[tainted("a", "PreferNoSchedule")], &[], &wanted(json!({})), "a");
    check(&[tainted("a", "PreferNoSchedule"), node("b", json!({}))], &[], &wanted(json!({})), "b");
    let cordoned = node("a", json!({"spec": {"unschedulable": true}}));
    check(std::slice::from_ref(&cordoned), &[], &wanted(json!({"tolerations": [{"operator": "Exists"}]})), "a");
    let disks = [node("a", json!({"metadata": {"labels": {"disk": "ssd"}}})), node("b", json!({}))];
    check(&disks, &[], &wanted(json!({"nodeSelector": {"disk": "ssd"}})), "a");
    check(&disks[1..], &[], &wanted(json!({"nodeSelector": {"disk": "ssd"}})), "node(s) didn't match Pod's node affinity/selector");
    let prefers = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 100, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}]}}});
    check(&disks, &[("a", pod("x", cpu("1")))], &wanted(prefers), "a");
}

#[test]
fn ports_and_the_number_of_pods() {
    let web = |name: &str, address: &str| pod(name, json!({"containers": [{"name": "c", "ports": [{"hostPort": 80, "hostIP": address}]}]}));
    check(&[node("a", json!({}))], &[("a", web("x", ""))], &web("p", "10.0.0.1"), "1 node(s) didn't have free ports for the requested pod ports");
    check(&[node("a", json!({}))], &[("a", web("x", "10.0.0.2"))], &web("p", "10.0.0.1"), "a");
    let few = node("a", json!({"status": {"allocatable": {"pods": "1"}}}));
    check(std::slice::from_ref(&few), &[("a", pod("x", json!({})))], &pod("p", json!({})), "1 Too many pods");
    check(&[few], &[], &pod("p", json!({})), "a");
}

#[test]
fn requests_of_every_kind() {
    let gpu = |n: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": n}}}]});
    let nodes = [node("a", json!({"status": {"allocatable": {"example.com/gpu": "2"}}})), node("b", json!({}))];
    check(&nodes, &[("a", pod("x", gpu("1")))], &pod("p", gpu("1")), "a");
    check(&nodes, &[("a", pod("x", gpu("1")))], &pod("p", gpu("2")), "0/2 nodes are available: 2 Insufficient example.com/gpu.");
    let ignoring = profiled(|p| p.ignored_groups.extend(["example.com".to_string()]));
    assert_eq!(bound(ignoring.decide(&mut cluster(&nodes[1..], &[]), &pod("p", gpu("2")))), "b");
    // Init containers count one by one, sidecars always; the overhead comes on top.
    let parts = pod("p", json!({"overhead": {"cpu": "5m"},
        "initContainers": [{"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}}, {"name": "init", "resources": {"requests": {"cpu": "1"}}}],
        "containers": [{"name": "a", "resources": {"requests": {"cpu": "300m"}}}, {"name": "b", "resources": {"requests": {"cpu": "0.2"}}}]}));
    assert_eq!((parts.shape.requests.cpu, parts.shape.nonzero), (1105, (1105, 600 << 20)));
    let whole = pod("p", json!({"resources": {"requests": {"cpu": "3"}}, "containers": [{"name": "a", "resources": {"requests": {"cpu": "1", "memory": "1Mi"}}}]}));
    assert_eq!((whole.shape.requests.cpu, whole.shape.requests.memory), (3000, 1 << 20));
}

fn affinity(kind: &str, app: &str, topology: &str) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": topology}]}}})
}

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

#[test]
fn pods_near_and_far() {
    let nodes = [node("a-1", json!({})), node("a-2", json!({})), node("b-1", json!({}))];
    let db = || ("b-1", pod("db", cpu("3")));
    check(&nodes, &[db()], &pod("web", with(cpu("1"), affinity("podAffinity", "db", ZONE))), "b-1");
    check(&nodes, &[db()], &pod("web", with(cpu("2"), affinity("podAffinity", "db", ZONE))), "1 Insufficient cpu, 2 node(s) didn't match pod affinity rules");
    check(&nodes, &[], &pod("web", affinity("podAffinity", "db", ZONE)), "3 node(s) didn't match pod affinity rules");
    // The first of its like may go anywhere.
    check(&nodes[..1], &[], &pod("web", affinity("podAffinity", "web", ZONE)), "a-1");
    check(&nodes, &[("a-1", pod("x", json!({})))], &pod("web", affinity("podAntiAffinity", "x", ZONE)), "b-1");
    check(&nodes[..2], &[("a-1", pod("x", json!({})))], &pod("web", affinity("podAntiAffinity", "x", ZONE)), "2 node(s) didn't match pod anti-affinity rules");
    check(&nodes[..2], &[("a-1", pod("x", json!({})))], &pod("web", affinity("podAntiAffinity", "x", HOST)), "a-2");
    // The dislike of pods that are there counts too.
    check(&nodes[..2], &[("a-1", pod("shy", affinity("podAntiAffinity", "web", ZONE)))], &pod("web", json!({})), "2 node(s) didn't satisfy existing pods anti-affinity rules");
    check(&nodes[..2], &[("a-1", pod("shy", affinity("podAntiAffinity", "other", ZONE)))], &pod("web", json!({})), "a-");
}

#[test]
fn terms_reach_into_namespaces_and_label_keys() {
    let nodes = [node("a-1", json!({})), node("b-1", json!({}))];
    let mut foreign = serde_json::from_value::<PodInfo>(json!({"metadata": {"name": "x", "uid": "x", "namespace": "other", "labels": {"app": "x"}}, "spec": {"containers": []}})).expect("a pod");
    foreign.created = 1;
    let foreign = Arc::new(foreign);
    let term = |more: Value| with(affinity("podAntiAffinity", "x", ZONE), json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        [with(json!({"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": ZONE}), more)]}}}));
    let ask = |more: Value| {
        let mut cluster = cluster(&nodes[..1], &[("a-1", foreign.clone())]);
        cluster.set_namespace("other", Some([("team", "red")].into_iter().collect()));
        bound(plain().decide(&mut cluster, &pod("p", term(more))))
    };
    assert_eq!(ask(json!({})), "a-1", "its own namespace alone");
    assert!(ask(json!({"namespaces": ["other"]})).contains("anti-affinity"));
    assert!(ask(json!({"namespaceSelector": {"matchLabels": {"team": "red"}}})).contains("anti-affinity"));
    assert_eq!(ask(json!({"namespaceSelector": {"matchLabels": {"team": "blue"}}})), "a-1");
    // matchLabelKeys narrow a term to pods of the same revision.
    let spread = |revision: &str| labelled(revision, json!({"app": "web", "rev": revision}), json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        [{"labelSelector": {"matchLabels": {"app": "web"}}, "matchLabelKeys": ["rev"], "topologyKey": ZONE}]}}}));
    check(&nodes[..1], &[("a-1", spread("1"))], &spread("2"), "a-1");
    let same = labelled("again", json!({"app": "web", "rev": "1"}), json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        [{"labelSelector": {"matchLabels": {"app": "web"}}, "matchLabelKeys": ["rev"], "topologyKey": ZONE}]}}}));
    check(&nodes[..1], &[("a-1", spread("1"))], &same, "anti-affinity rules");
}

fn spread(more: Value) -> Value {
    let mut constraint = json!({"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}});
    merge(&mut constraint, more);
    json!({"topologySpreadConstraints": [constraint]})
}

#[test]
fn pods_are_spread() {
    let nodes = [node("a-1", json!({})), node("b-1", json!({}))];
    let web = |name: &str, more: Value| labelled(name, json!({"app": "web"}), spread(more));
    let one = || ("a-1", labelled("w1", json!({"app": "web"}), json!({})));
    check(&nodes, &[one()], &web("p", json!({})), "b-1");
    let full = node("b-1", json!({"status": {"allocatable": {"pods": "0"}}}));
    check(&[nodes[0].clone(), full.clone()], &[one()], &web("p", json!({})), "1 Too many pods, 1 node(s) didn't match pod topology spread constraints.");
    check(&[nodes[0].clone(), full.clone()], &[one()], &web("p", json!({"maxSkew": 2})), "a-1");
    check(&[nodes[0].clone(), full], &[one()], &web("p", json!({"whenUnsatisfiable": "ScheduleAnyway"})), "a-1");
    // Fewer domains than minDomains: the least is nothing.
    check(&nodes[..1], &[one()], &web("p", json!({})), "a-1");
    check(&nodes[..1], &[one()], &web("p", json!({"minDomains": 2})), "node(s) didn't match pod topology spread constraints");
    let bare = Arc::new(serde_json::from_value::<NodeView>(json!({"metadata": {"name": "bare"}, "status": {"allocatable": {"pods": "1"}}})).expect("a node"));
    check(&[bare], &[], &web("p", json!({})), "(missing required label)");
    // A tainted domain counts unless the constraint honours taints.
    let closed = [nodes[0].clone(), tainted("b-1", "NoSchedule")];
    check(&closed, &[one()], &web("p", json!({})), "1 node(s) didn't match pod topology spread constraints");
    check(&closed, &[one()], &web("p", json!({"nodeTaintsPolicy": "Honor"})), "a-1");
}

#[test]
fn default_constraints_spread_the_pods_of_a_service() {
    let nodes = [node("a-1", json!({})), node("b-1", json!({"status": {"allocatable": {"cpu": "3"}}}))];
    let one = ("a-1", labelled("w1", json!({"app": "web"}), json!({})));
    let wanted = labelled("w2", json!({"app": "web"}), json!({}));
    let ask = |asked: &Asked, service: bool| {
        let mut cluster = cluster(&nodes, &[one.clone(), ("b-1", pod("x", cpu("1"))), ("b-1", pod("y", cpu("500m")))]);
        if service {
            cluster.workloads.services.insert(("default".into(), "web".into()), vec![("app".into(), "web".into())]);
        }
        bound(asked.decide(&mut cluster, &wanted))
    };
    assert_eq!(ask(&plain(), false), "a-1");
    assert_eq!(ask(&plain(), true), "b-1");
    assert_eq!(ask(&profiled(|p| p.default_spread = DefaultSpread::List(Vec::new())), true), "a-1");
    let hard = json!([{"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule"}]);
    let list = profiled(|p| p.default_spread = Profile::spread_list(hard).expect("constraints"));
    assert_eq!(ask(&list, true), "b-1");
}

#[test]
fn scores_and_weights() {
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let busy = [("a", pod("x", cpu("1")))];
    let ask = |asked: &Asked| bound(asked.decide(&mut cluster(&nodes, &busy), &pod("p", cpu("1"))));
    assert_eq!(ask(&plain()), "b");
    let packed = |p: &mut Profile| {
        p.strategy = Strategy::MostAllocated;
        p.disable(Some(Point::Score), "NodeResourcesBalancedAllocation");
    };
    assert_eq!(ask(&profiled(packed)), "a");
    let ratio = |p: &mut Profile| {
        packed(p);
        p.strategy = Strategy::RequestedToCapacityRatio(vec![(0, 0), (100, 10)]);
    };
    assert_eq!(ask(&profiled(ratio)), "a");
    let image = |name: &str| json!({"status": {"images": [{"names": [name], "sizeBytes": 900 << 20}]}});
    let images = [node("a", json!({})), node("b", image("web:latest"))];
    let local = profiled(|p| p.enable(None, "ImageLocality", 50));
    assert_eq!(bound(local.decide(&mut cluster(&images, &[("b", pod("x", cpu("2")))]), &pod("p", json!({})))), "b");
    check(&images[..], &[("b", pod("x", cpu("3500m")))], &pod("p", with(json!({}), json!({"containers": [{"name": "c", "image": "other"}]}))), "a");
}

#[test]
fn preferred_affinity_of_either_side() {
    let nodes = [node("a-1", json!({})), node("b-1", json!({}))];
    let likes = |kind: &str, app: &str| json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 100, "podAffinityTerm": {"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": ZONE}}]}}});
    check(&nodes, &[("b-1", pod("x", cpu("1")))], &pod("p", likes("podAffinity", "x")), "b-1");
    check(&nodes, &[("b-1", pod("x", likes("podAffinity", "p"))), ("b-1", pod("y", cpu("1")))], &pod("p", json!({})), "b-1");
    check(&nodes, &[("a-1", pod("x", likes("podAntiAffinity", "p"))), ("b-1", pod("y", cpu("1")))], &pod("p", json!({})), "b-1");
    check(&nodes, &[("b-1", pod("x", affinity("podAffinity", "p", ZONE))), ("b-1", pod("y", cpu("1")))], &pod("p", json!({})), "b-1");
}

fn of_priority(name: &str, priority: i32, amount: &str) -> Arc<PodInfo> {
    pod(name, with(cpu(amount), json!({"priority": priority})))
}

fn victims(asked: &Asked, cluster: &mut Cluster, wanted: &PodInfo) -> (String, Vec<String>) {
    let failure = failure(asked.decide(cluster, wanted));
    let victims = failure.preemption.unwrap_or_else(|| panic!("{}", failure.message));
    (victims.node.clone(), victims.pods.iter().map(|p| p.name().to_string()).collect())
}

#[test]
fn preemption_takes_the_least() {
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let on = |pods: &[(&str, Arc<PodInfo>)], wanted: &PodInfo| victims(&plain(), &mut cluster(&nodes, pods), wanted);
    let high = of_priority("high", 10, "2");
    // Only as many as needed, and the less important.
    let pods = [("a", of_priority("x", 1, "2")), ("a", of_priority("y", 2, "2")), ("b", of_priority("z", 10, "4"))];
    assert_eq!(on(&pods, &high), ("a".into(), vec!["x".into()]));
    // The lower highest priority decides before the number of pods.
    let pods = [("a", of_priority("x", 5, "4")), ("b", of_priority("y", 1, "2")), ("b", of_priority("z", 4, "2"))];
    assert_eq!(on(&pods, &of_priority("high", 10, "4")), ("b".into(), vec!["z".into(), "y".into()]));
    let message = failure(plain().decide(&mut cluster(&nodes, &pods), &high)).message;
    assert_eq!(message, "0/2 nodes are available: 2 Insufficient cpu.");
}

#[test]
fn preemption_must_not() {
    let nodes = [node("a", json!({}))];
    let full = |p: i32| [("a", of_priority("x", p, "4"))];
    check(&nodes, &full(10), &of_priority("p", 10, "1"), "1 No preemption victims found for incoming pod");
    check(&nodes, &full(1), &of_priority("p", 10, "5"), "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.");
    let both = [("a", of_priority("x", 1, "1")), ("a", of_priority("y", 10, "3"))];
    check(&nodes, &both, &of_priority("p", 10, "2"), "preemption: 0/1 nodes are available: 1 Insufficient cpu.");
    let off = profiled(|p| p.disable(None, "DefaultPreemption"));
    assert!(failure(off.decide(&mut cluster(&nodes, &full(1)), &of_priority("p", 10, "1"))).preemption.is_none());
    // Who has made room waits until it is there.
    let mut leaving = full(1)[0].1.as_ref().clone();
    (leaving.terminating, leaving.preempted) = (true, true);
    let mut wanted = of_priority("p", 10, "1").as_ref().clone();
    wanted.nominated = Some("a".into());
    let said = bound(plain().decide(&mut cluster(&nodes, &[("a", Arc::new(leaving))]), &wanted));
    assert!(said.ends_with("preemption: not eligible due to a terminating pod on the nominated node."), "{said}");
}

#[test]
fn preemption_heeds_budgets() {
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let pods = [("a", of_priority("x", 1, "4")), ("b", of_priority("y", 2, "4"))];
    let guard = |allowed: i32, disrupted: &[&str]| Budget {
        namespace: "default".into(),
        selector: Some(serde_json::from_value(json!({"matchLabels": {"app": "x"}})).expect("a selector")),
        allowed,
        disrupted: disrupted.iter().map(|s| s.to_string()).collect::<BTreeSet<_>>(),
    };
    let ask = |budget: Budget| victims(&Asked { budgets: vec![budget], ..plain() }, &mut cluster(&nodes, &pods), &of_priority("high", 10, "1")).0;
    assert_eq!(ask(guard(0, &[])), "b", "the budget of the cheaper one forbids");
    assert_eq!(ask(guard(1, &[])), "a");
    assert_eq!(ask(guard(0, &["x"])), "a", "its disruption is counted already");
    // When nothing else helps, a budget does not stop it.
    assert_eq!(victims(&Asked { budgets: vec![guard(0, &[])], ..plain() }, &mut cluster(&nodes[..1], &pods[..1]), &of_priority("high", 10, "1")).0, "a");
}

#[test]
fn preemption_frees_ports_and_affinity_too() {
    let nodes = [node("a-1", json!({}))];
    let shy = pod("shy", with(affinity("podAntiAffinity", "high", ZONE), json!({"priority": 1})));
    assert_eq!(victims(&plain(), &mut cluster(&nodes, &[("a-1", shy), ("a-1", of_priority("x", 1, "1"))]), &of_priority("high", 10, "1")).1, ["shy"]);
    let web = |name: &str, priority: i32| pod(name, json!({"priority": priority, "containers": [{"name": "c", "ports": [{"hostPort": 80}]}]}));
    assert_eq!(victims(&plain(), &mut cluster(&nodes, &[("a-1", web("x", 0)), ("a-1", of_priority("y", 0, "1"))]), &web("p", 1)).1, ["x"]);
}

#[test]
fn a_nomination_holds_its_place_against_the_less_important() {
    let nodes = [node("a", json!({}))];
    let mut world = cluster(&nodes, &[]);
    world.nominate(&of_priority("n", 5, "4"), Some("a"));
    assert!(bound(plain().decide(&mut world, &of_priority("p", 1, "1"))).contains("Insufficient cpu"));
    assert_eq!(bound(plain().decide(&mut world, &of_priority("p", 6, "1"))), "a");
    let own = world.nominated["n"].clone();
    assert_eq!(bound(plain().decide(&mut world, &own)), "a", "its own nomination does not stand in its way");
    world.nominate(&own, None);
    assert_eq!(bound(plain().decide(&mut world, &of_priority("p", 1, "1"))), "a");
}

#[test]
fn nominated_pods_count_and_keep_away_whom_they_must() {
    let hostname = json!("kubernetes.io/hostname");
    let keeps_away = |app: &str| json!([{"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": hostname}]);
    let nominated = |affinity: Value| {
        let mut world = cluster(&[node("a", json!({}))], &[]);
        world.nominate(&pod("n", json!({"priority": 5, "affinity": affinity})), Some("a"));
        bound(plain().decide(&mut world, &pod("p", json!({}))))
    };
    let required = |app| json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": keeps_away(app)}});
    assert!(nominated(required("p")).contains("node(s) didn't satisfy existing pods anti-affinity rules"));
    assert_eq!(nominated(required("another")), "a");
    assert_eq!(nominated(json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": keeps_away("p")}})), "a", "it wants it near");
    let preferred = json!([{"weight": 1, "podAffinityTerm": keeps_away("p")[0]}]);
    assert_eq!(nominated(json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}})), "a", "it can do with it");
    let mut nowhere = cluster(&[node("a", json!({}))], &[]);
    nowhere.nominate(&pod("n", json!({"priority": 5, "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        [{"labelSelector": {"matchLabels": {"app": "p"}}, "topologyKey": "rack"}]}}})), Some("a"));
    assert_eq!(bound(plain().decide(&mut nowhere, &pod("p", json!({})))), "a", "the node is in no rack");

    let mut few = cluster(&[node("a", json!({"status": {"allocatable": {"pods": "2"}}}))], &[("a", pod("x", json!({})))]);
    few.nominate(&of_priority("n", 5, "1"), Some("a"));
    assert!(bound(plain().decide(&mut few, &of_priority("p", 1, "1"))).contains("Too many pods"));
    few.nominate(&of_priority("n", 5, "1"), None);
    assert_eq!(bound(plain().decide(&mut few, &of_priority("p", 1, "1"))), "a");
}

#[test]
fn plugins_are_on_one_by_one() {
    let cordoned = node("a", json!({"spec": {"unschedulable": true, "taints": [{"key": TAINT, "effect": "NoSchedule"}]}}));
    let with_off = |off: &[&str]| {
        let asked = profiled(|p| off.iter().for_each(|name| p.disable(None, name)));
        bound(asked.decide(&mut cluster(std::slice::from_ref(&cordoned), &[]), &pod("p", json!({}))))
    };
    assert!(with_off(&["TaintToleration"]).contains("node(s) were unschedulable"));
    assert!(with_off(&["NodeUnschedulable"]).contains("node(s) had untolerated taint(s)"));
    assert_eq!(with_off(&["TaintToleration", "NodeUnschedulable"]), "a");

    let nodes = [node("a", json!({})), node("b", json!({}))];
    let mut named = pod("p", json!({})).as_ref().clone();
    named.node = Some("b".into());
    check(&nodes, &[], &named, "b");
    check(&nodes[..1], &[], &named, "1 node(s) didn't match the requested node name");
    let off = profiled(|p| p.disable(None, "NodeName"));
    assert_eq!(bound(off.decide(&mut cluster(&nodes[..1], &[]), &named)), "a");

    let two = json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/first": "1", "example.com/second": "1"}}}]});
    check(&nodes[..1], &[], &pod("p", two.clone()), "1 Insufficient example.com/first, 1 Insufficient example.com/second");
    let first = node("a", json!({"status": {"allocatable": {"example.com/first": "1"}}}));
    check(&[first], &[], &pod("p", two), "0/1 nodes are available: 1 Insufficient example.com/second.");

    let rule = json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["b"]}]});
    let added = profiled(|p| p.added_affinity = Some(vec![serde_json::from_value(rule).expect("a term")]));
    assert_eq!(bound(added.decide(&mut cluster(&nodes, &[]), &pod("p", json!({})))), "b");
    let refused = bound(added.decide(&mut cluster(&nodes[..1], &[]), &pod("p", json!({}))));
    assert!(refused.contains("node(s) didn't match scheduler-enforced node affinity"), "{refused}");
}

#[test]
fn decisions_repeat_and_equals_take_turns() {
    let nodes: Vec<Arc<NodeView>> = (0..300).map(|i| node(&format!("z{}-{i}", i % 3), json!({}))).collect();
    let run = || {
        let (mut cluster, asked) = (cluster(&nodes, &[]), plain());
        let (mut start, mut chosen) = (0, Vec::new());
        for seed in 0..300 {
            let turn = Turn { config: &asked.config, profile: 0, plugins: &[], budgets: &[], start, seed, explain: false };
            let outcome = decide(&mut cluster, &pod("p", cpu("100m")), &turn);
            start = outcome.start;
            let node = bound(outcome.decision);
            cluster.place(&node, &pod(&format!("p{seed}"), cpu("100m")));
            chosen.push(node);
        }
        chosen
    };
    let chosen = run();
    assert_eq!(chosen, run());
    assert!(chosen.iter().collect::<BTreeSet<_>>().len() > 200, "they fill evenly");
    assert_eq!([enough(50, 0), enough(100, 0), enough(1000, 0), enough(5000, 0), enough(6000, 0), enough(5000, 100), enough(500, 1)], [50, 100, 420, 500, 300, 5000, 100]);
}

fn declares(name: &str, features: Value) -> Arc<NodeView> {
    node(name, json!({"status": {"declaredFeatures": features}}))
}

#[test]
fn features_must_have_been_declared() {
    let all = "RestartAllContainersOnContainerExits";
    let rule = |action: &str| json!([{"name": "c", "restartPolicyRules": [{"action": "Restart"}, {"action": action}]}]);
    let wanting = pod("p", json!({"containers": rule("RestartAllContainers")}));
    let (plain_node, able) = (node("a", json!({})), declares("b", json!(["ExtendWebSocketsToKubelet", all])));
    let nodes = [plain_node.clone(), able.clone()];
    check(&nodes, &[], &wanting, "b");
    check(&nodes, &[], &pod("p", json!({"containers": [{"name": "c"}], "initContainers": rule("RestartAllContainers")})), "b");
    // It cannot be helped by displacing anybody.
    check(
        &nodes[..1],
        &[("a", of_priority("x", 1, "1"))],
        &pod("p", json!({"priority": 5, "containers": rule("RestartAllContainers")})),
        "0/1 nodes are available: 1 node(s) didn't match Pod's required features. no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
    );
    let both = json!({"hostNetwork": true, "hostUsers": false});
    check(&nodes, &[], &pod("p", both.clone()), "2 node(s) didn't match Pod's required features");
    check(&[plain_node.clone(), declares("c", json!(["UserNamespacesHostNetworkSupport"]))], &[], &pod("p", both), "c");
    // Where it must not act.
    for spec in [json!({"containers": rule("Restart")}), json!({"hostNetwork": true}), json!({"hostUsers": false}), json!({"hostNetwork": true, "hostUsers": true})] {
        check(&nodes[..1], &[], &pod("p", spec), "a");
    }
    let off = profiled(|p| p.disable(None, "NodeDeclaredFeatures"));
    assert_eq!(bound(off.decide(&mut cluster(&nodes[..1], &[]), &wanting)), "a");
    // What wakes it: the node that declares it, not one that declares another.
    let declared = |features: Value| Event::Node { old: Some(plain_node.clone()), new: declares("a", features) };
    assert!(wakes(&mut cluster(&[declares("a", json!([all]))], &[]), &wanting, "NodeDeclaredFeatures", declared(json!([all]))));
    let other = json!(["ExtendWebSocketsToKubelet"]);
    assert!(!wakes(&mut cluster(&[declares("a", other.clone())], &[]), &wanting, "NodeDeclaredFeatures", declared(other)));
}

struct Refuses(&'static str);

impl Plugin for Refuses {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }
    fn prepare<'a>(&'a self, _: &'a PodInfo, _: &'a Profile) -> Prepared<'a> {
        match self.0 {
            "" => Prepared::Skip,
            "whole" => Prepared::Reject(Rejection::final_("VolumeZone", "nowhere")),
            node => Prepared::Check(Box::new(Not(node))),
        }
    }
}

struct Not(&'static str);

impl Check for Not {
    fn filter(&self, site: Site<'_>) -> Result<(), Rejection> {
        if site.node.name() == self.0 { Err(Rejection::final_("VolumeZone", "not here")) } else { Ok(()) }
    }
    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        Some(nodes.iter().map(|n| if n.name() == "c" { 100 } else { 0 }).collect())
    }
}

#[test]
fn further_plugins_take_part() {
    let nodes = [node("a", json!({})), node("b", json!({})), node("c", json!({}))];
    let ask = |what, nodes: &[Arc<NodeView>]| bound(Asked { plugins: vec![Arc::new(Refuses(what))], ..profiled(|p| p.enable(None, "VolumeZone", 5)) }.decide(&mut cluster(nodes, &[]), &pod("p", json!({}))));
    assert_eq!(ask("a", &nodes[..2]), "b");
    assert_eq!(ask("a", &nodes), "c", "by its score");
    assert!(ask("a", &nodes[..1]).starts_with("0/1 nodes are available: 1 not here."));
    assert_eq!(ask("whole", &nodes), "0/3 nodes are available: nowhere. no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.");
    assert_eq!(ask("", &nodes[..1]), "a");
}

/// Whether an event wakes a pod after the cluster has changed as the event says.
fn wakes(cluster: &mut Cluster, wanted: &PodInfo, by: &'static str, event: Event) -> bool {
    helps(cluster, &Profile::default(), 0, &[], wanted, &[by], &event)
}

#[test]
fn a_change_wakes_whom_it_helps() {
    let nodes = [node("a-1", json!({})), node("b-1", json!({}))];
    let gone = |pod: &Arc<PodInfo>, node: &str| Event::PodGone { old: pod.clone(), node: node.into() };
    let came = |pod: &Arc<PodInfo>, node: &str| Event::PodOnNode { old: None, new: pod.clone(), node: node.into() };
    let (small, large) = (pod("small", cpu("1")), pod("large", cpu("3")));
    let mut world = cluster(&nodes, &[("a-1", of_priority("x", 0, "3"))]);
    let left = of_priority("y", 0, "1");
    assert!(wakes(&mut world, &small, "NodeResourcesFit", gone(&left, "a-1")));
    assert!(!wakes(&mut world, &large, "NodeResourcesFit", gone(&left, "a-1")), "it is still too large");
    assert!(wakes(&mut world, &of_priority("large", 9, "3"), "NodeResourcesFit", gone(&left, "a-1")), "it could displace the other");
    assert!(!wakes(&mut world, &small, "NodeResourcesFit", came(&left, "b-1")), "a pod more leaves less");
    let node_event = |old: Option<&Arc<NodeView>>, new: &Arc<NodeView>| Event::Node { old: old.cloned(), new: new.clone() };
    assert!(wakes(&mut world, &small, "TaintToleration", node_event(None, &nodes[1])));
    assert!(!wakes(&mut world, &pod("p", json!({"nodeSelector": {"disk": "ssd"}})), "NodeAffinity", node_event(None, &nodes[1])));

    let near = pod("near", affinity("podAffinity", "db", ZONE));
    assert!(wakes(&mut world, &near, "InterPodAffinity", came(&pod("db", json!({})), "b-1")));
    assert!(!wakes(&mut world, &near, "InterPodAffinity", came(&pod("other", json!({})), "b-1")));
    let far = pod("far", affinity("podAntiAffinity", "db", ZONE));
    assert!(wakes(&mut world, &far, "InterPodAffinity", gone(&pod("db", json!({})), "gone")));
    assert!(!wakes(&mut world, &far, "InterPodAffinity", gone(&pod("other", json!({})), "gone")));
    let even = labelled("even", json!({"app": "web"}), spread(json!({})));
    let web = labelled("w", json!({"app": "web"}), json!({}));
    assert!(wakes(&mut world, &even, "PodTopologySpread", came(&web, "b-1")), "the least may have risen");
    assert!(!wakes(&mut world, &even, "PodTopologySpread", came(&pod("other", json!({})), "b-1")));
    assert!(helps(&mut world, &Profile::default(), 0, &[], &even, &[], &gone(&web, "a-1")), "who was rejected by nobody is tried again");
}

#[test]
fn labels_that_change_wake_whom_they_concern() {
    let mut world = cluster(&[node("a-1", json!({}))], &[]);
    // A node that is not there: nothing can be tried out on it.
    let relabelled = |old: &Arc<PodInfo>, new: &Arc<PodInfo>| Event::PodOnNode { old: Some(old.clone()), new: new.clone(), node: "gone".into() };
    let (db, other) = (pod("db", json!({})), pod("other", json!({})));
    let (near, far) = (pod("near", affinity("podAffinity", "db", ZONE)), pod("far", affinity("podAntiAffinity", "db", ZONE)));
    assert!(wakes(&mut world, &near, "InterPodAffinity", relabelled(&other, &db)));
    assert!(!wakes(&mut world, &near, "InterPodAffinity", relabelled(&db, &db)), "it has the labels that it had");
    assert!(!wakes(&mut world, &near, "InterPodAffinity", relabelled(&db, &other)));
    assert!(wakes(&mut world, &far, "InterPodAffinity", relabelled(&db, &other)));
    assert!(!wakes(&mut world, &far, "InterPodAffinity", relabelled(&other, &db)));
    assert!(!wakes(&mut world, &far, "InterPodAffinity", relabelled(&db, &labelled("db2", json!({"app": "db", "more": ""}), json!({})))), "it is still one");
    let against = labelled("x", json!({"app": "x"}), affinity("podAntiAffinity", "plain", ZONE));
    let plain = pod("plain", json!({}));
    assert!(wakes(&mut world, &plain, "InterPodAffinity", relabelled(&against, &other)), "it kept others away");
    assert!(wakes(&mut world, &plain, "InterPodAffinity", Event::PodGone { old: against.clone(), node: "gone".into() }));
    assert!(!wakes(&mut world, &other, "InterPodAffinity", Event::PodGone { old: against, node: "gone".into() }));
    assert!(wakes(&mut world, &near, "InterPodAffinity", Event::PodGone { old: db.clone(), node: "gone".into() }), "the first may go anywhere");

    let even = labelled("even", json!({"app": "web"}), spread(json!({})));
    let web = labelled("w", json!({"app": "web"}), json!({}));
    assert!(wakes(&mut world, &even, "PodTopologySpread", relabelled(&web, &other)));
    assert!(wakes(&mut world, &even, "PodTopologySpread", relabelled(&other, &web)));
    assert!(!wakes(&mut world, &even, "PodTopologySpread", relabelled(&web, &web)));
    assert!(!wakes(&mut world, &even, "PodTopologySpread", relabelled(&db, &other)));
    let mut leaving = web.as_ref().clone();
    leaving.terminating = true;
    assert!(wakes(&mut world, &even, "PodTopologySpread", relabelled(&web, &Arc::new(leaving))), "it counts no more");
    assert!(wakes(&mut world, &even, "PodTopologySpread", Event::PodGone { old: web, node: "gone".into() }));
    assert!(!wakes(&mut world, &even, "PodTopologySpread", Event::PodGone { old: db, node: "gone".into() }));
}

#[test]
fn nodes_wake_whom_their_labels_and_taints_concern() {
    let mut world = cluster(&[], &[]);
    let in_rack = |rack: &str, more: Value| node("x", with(json!({"metadata": {"labels": {"rack": rack}}}), more));
    let (bare, first, second) = (node("x", json!({})), in_rack("1", json!({})), in_rack("2", json!({})));
    let other_label = in_rack("1", json!({"metadata": {"labels": {"disk": "ssd"}}}));
    let came = |new: &Arc<NodeView>| Event::Node { old: None, new: new.clone() };
    let changed = |old: &Arc<NodeView>, new: &Arc<NodeView>| Event::Node { old: Some(old.clone()), new: new.clone() };
    let gone = |old: &Arc<NodeView>| Event::NodeGone { old: old.clone() };
    let near = pod("near", affinity("podAffinity", "db", "rack"));
    assert!(wakes(&mut world, &near, "InterPodAffinity", came(&first)) && !wakes(&mut world, &near, "InterPodAffinity", came(&bare)));
    assert!(wakes(&mut world, &near, "InterPodAffinity", changed(&first, &second)));
    assert!(!wakes(&mut world, &near, "InterPodAffinity", changed(&first, &other_label)), "it is in the rack where it was");
    assert!(!wakes(&mut world, &near, "InterPodAffinity", gone(&first)));
    let plain = pod("plain", json!({}));
    assert!(wakes(&mut world, &plain, "InterPodAffinity", changed(&first, &other_label)), "somebody else's terms may be about it");
    assert!(!wakes(&mut world, &plain, "InterPodAffinity", changed(&first, &first)));

    let even = |policy: Value| labelled("even", json!({"app": "web"}), spread(with(json!({"topologyKey": "rack"}), policy)));
    let usual = even(json!({}));
    assert!(wakes(&mut world, &usual, "PodTopologySpread", came(&first)) && !wakes(&mut world, &usual, "PodTopologySpread", came(&bare)));
    assert!(wakes(&mut world, &usual, "PodTopologySpread", gone(&first)) && !wakes(&mut world, &usual, "PodTopologySpread", gone(&bare)));
    assert!(wakes(&mut world, &usual, "PodTopologySpread", changed(&first, &second)));
    assert!(wakes(&mut world, &usual, "PodTopologySpread", changed(&first, &other_label)), "its own affinity may allow more nodes to count");
    let blind = even(json!({"nodeAffinityPolicy": "Ignore"}));
    assert!(!wakes(&mut world, &blind, "PodTopologySpread", changed(&first, &other_label)));
    let tainted = in_rack("1", json!({"spec": {"taints": [{"key": TAINT, "effect": "NoSchedule"}]}}));
    assert!(!wakes(&mut world, &blind, "PodTopologySpread", changed(&tainted, &first)));
    let minding = even(json!({"nodeAffinityPolicy": "Ignore", "nodeTaintsPolicy": "Honor"}));
    assert!(wakes(&mut world, &minding, "PodTopologySpread", changed(&tainted, &first)));
    assert!(!wakes(&mut world, &minding, "PodTopologySpread", changed(&first, &other_label)));
}
