//! Scenarios of what is told of a pod that waits, of one that does not run well, and of a node.

use serde_json::{Value, json};

use super::*;

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

fn node(change: Value) -> Node {
    let mut node = json!({"metadata": {"name": "n1", "labels": {"zone": "a"}}, "spec": {}, "status": {
        "allocatable": {"cpu": "2", "memory": "1Gi", "pods": "2"}, "conditions": [{"type": "Ready", "status": "True"}]}});
    merge(&mut node, change);
    object(node)
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => from.into_iter().for_each(|(k, v)| merge(into.entry(k).or_insert(Value::Null), v)),
        (into, from) => *into = from,
    }
}

fn pod(spec: Value, status: Value) -> Pod {
    object(json!({"metadata": {"name": "web", "namespace": "default", "uid": "web", "labels": {"app": "web"}}, "spec": spec, "status": status}))
}

/// A pod on the node, of the app that its name says.
fn there(name: &str, spec: Value) -> PodInfo {
    let mut spec_on = json!({"nodeName": "n1", "containers": []});
    merge(&mut spec_on, spec);
    object(json!({"metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": name}}, "spec": spec_on}))
}

fn told(pod: &Pod, nodes: Vec<Node>, pods: Vec<PodInfo>, events: &[Event]) -> Report {
    about_pod(pod, nodes, pods, Listed::default(), Devices::default(), events)
}

/// Plug-in, problem and fix of the only finding about the node.
fn refused(spec: Value, change: Value, pods: Vec<PodInfo>) -> (String, String, String) {
    let mut wanted = json!({"containers": []});
    merge(&mut wanted, spec);
    let report = told(&pod(wanted, json!({"phase": "Pending"})), vec![node(change)], pods, &[]);
    let [found] = &report.findings[..] else { panic!("{report:?}") };
    let plugin = found.subject.strip_prefix("node n1 (").and_then(|s| s.strip_suffix(')')).unwrap_or_else(|| panic!("{found:?}"));
    (plugin.into(), found.problem.clone(), found.fix.clone())
}

fn texts(plugin: &str, problem: &str, fix: &str) -> (String, String, String) {
    (plugin.into(), problem.into(), fix.into())
}

fn term(app: &str) -> Value {
    json!([{"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": "zone"}])
}

fn required(kind: &str, app: &str) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": term(app)}}})
}

#[test]
fn each_refusal_has_its_remedy() {
    assert_eq!(refused(json!({}), json!({"spec": {"unschedulable": true}}), vec![]), texts("NodeUnschedulable", "the node is cordoned", "kubectl uncordon n1"));
    let taints = json!({"spec": {"taints": [{"key": "soft", "effect": "PreferNoSchedule"}, {"key": "k", "value": "v", "effect": "NoSchedule"}, {"key": "l", "effect": "NoExecute"}, {"key": "m", "effect": "NoExecute"}]}});
    let tolerant = json!({"tolerations": [{"key": "m", "operator": "Exists"}]});
    assert_eq!(refused(tolerant, taints, vec![]), texts("TaintToleration", "the pod does not tolerate the node's taint k=v:NoSchedule, l=:NoExecute", "add a toleration to the pod, or: kubectl taint nodes n1 k=v:NoSchedule-"));
    let selector = json!({"nodeSelector": {"zone": "a", "disk": "ssd", "cpu": "fast"}});
    assert_eq!(refused(selector, json!({}), vec![]), texts("NodeAffinity", "the node lacks the labels cpu=fast, disk=ssd", "kubectl label nodes n1 cpu=fast disk=ssd"));
    let rule = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]}}}});
    assert_eq!(refused(rule, json!({}), vec![]).1, "the node does not match the pod's required node affinity");
    let web = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
    assert_eq!(refused(web.clone(), json!({}), vec![there("x", web)]), texts("NodePorts", "another pod has one of the pod's host ports", "use another hostPort, or none and a Service instead"));
    assert_eq!(refused(json!({}), json!({}), vec![there("x", json!({})), there("y", json!({}))]), texts("NodeResourcesFit", "2 pods are on the node, which takes 2", "delete pods there, or add a node"));
}

#[test]
fn neighbours_that_stand_in_the_way_are_told_apart() {
    let problem = |spec: Value, pods: Vec<PodInfo>| {
        let (plugin, problem, _) = refused(spec, json!({}), pods);
        assert_eq!(plugin, "InterPodAffinity");
        problem
    };
    assert_eq!(problem(json!({}), vec![there("x", required("podAntiAffinity", "web"))]), "a pod there wants none like this one near it");
    assert_eq!(problem(required("podAntiAffinity", "x"), vec![there("x", json!({}))]), "a pod that this one wants far away is there, or in the same domain");
    assert_eq!(problem(required("podAffinity", "db"), vec![]), "no pod that this one wants near is there, or in the same domain");
    let spread = |key: &str, least: i32| json!({"topologySpreadConstraints": [{"maxSkew": 1, "minDomains": least, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]});
    assert_eq!(refused(spread("rack", 1), json!({}), vec![]), texts("PodTopologySpread", "the node lacks the label rack over which the pod is to be spread", "kubectl label nodes n1 rack=…"));
    assert!(refused(spread("zone", 2), json!({}), vec![there("web", json!({}))]).1.starts_with("one more pod there would make the spread more uneven"));
}

#[test]
fn what_is_free_is_told_in_units_that_people_use() {
    let asking = |requests: Value| json!({"containers": [{"name": "c", "resources": {"requests": requests}}]});
    let used = || vec![there("x", asking(json!({"cpu": "1500m", "memory": "256Mi"})))];
    let (_, problem, fix) = refused(asking(json!({"cpu": "1"})), json!({}), used());
    assert_eq!((problem.as_str(), fix.as_str()), ("Insufficient cpu: the pod asks for 1 cores, 500m cores of 2 cores is free", "ask for less, delete other pods there, or add a node"));
    assert_eq!(refused(asking(json!({"memory": "1000Mi"})), json!({}), used()).1, "Insufficient memory: the pod asks for 1000 MiB, 768 MiB of 1024 MiB is free");
    let (_, problem, fix) = refused(asking(json!({"example.com/gpu": "2"})), json!({"status": {"allocatable": {"example.com/gpu": "1"}}}), vec![]);
    assert_eq!(problem, "Insufficient example.com/gpu: the pod asks for 2, 1 of 1 is free");
    assert!(fix.starts_with("no node of this size can ever take it"));
}

#[test]
fn what_holds_a_pod_before_any_node_is_looked_at() {
    let only = |spec: Value, nodes: Vec<Node>, pods: Vec<PodInfo>| {
        let report = told(&pod(spec, json!({})), nodes, pods, &[]);
        let [found] = &report.findings[..] else { panic!("{report:?}") };
        (found.subject.clone(), found.problem.clone())
    };
    assert_eq!(only(json!({"containers": [], "schedulingGates": [{"name": "a"}, {"name": "b"}]}), vec![], vec![]), ("scheduling gates".into(), "the pod waits behind a, b".into()));
    assert_eq!(only(json!({"containers": [], "schedulerName": "mine"}), vec![node(json!({}))], vec![]).1, "the pod is for the scheduler \"mine\"");
    assert_eq!(only(json!({"containers": [], "schedulerName": "default-scheduler"}), vec![node(json!({}))], vec![]).1, "the pod fits node n1 but is not bound yet");
    let report = told(&pod(json!({"containers": []}), json!({})), vec![], vec![], &[]);
    assert_eq!(report.findings[0].fix, "add a node: knarr agent --server URL --token TOKEN");
    let high = pod(json!({"priority": 9, "containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]}), json!({}));
    let low = there("low", json!({"priority": 1, "containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]}));
    assert_eq!(told(&high, vec![node(json!({}))], vec![low], &[]).findings[0].problem, "on node n1 it takes the place of low, of lower priority");
}

fn event(kind: &str, reason: &str, count: i32, path: &str) -> Event {
    object(json!({"metadata": {"name": reason}, "type": kind, "reason": reason, "message": format!("{reason} happened\n"), "count": count, "involvedObject": {"fieldPath": path}}))
}

fn running(state: Value, ready: bool, node: &str) -> Pod {
    let container = json!({"name": "c", "image": "i", "imageID": "", "ready": ready, "restartCount": 0, "state": state});
    pod(json!({"nodeName": node, "containers": []}), json!({"phase": "Running", "containerStatuses": [container], "conditions": [
        {"type": "Initialized", "status": "True"}, {"type": "Ready", "status": if ready {"True"} else {"False"}}]}))
}

#[test]
fn containers_that_do_not_run_well() {
    let of = |state: Value, events: &[Event]| {
        let report = told(&running(state, false, "n1"), vec![node(json!({}))], vec![], events);
        report.findings.iter().map(|f| f.problem.clone()).collect::<Vec<_>>()
    };
    let waiting = |reason: &str| json!({"waiting": {"reason": reason, "message": "m"}});
    for reason in ["ContainerCreating", "PodInitializing", ""] {
        assert_eq!(of(waiting(reason), &[]), [] as [&str; 0], "{reason}");
    }
    assert_eq!(of(waiting("CreateContainerConfigError"), &[]), ["m"]);
    assert_eq!(of(waiting("Strange"), &[]), ["Strange: m"]);
    assert_eq!(of(json!({"terminated": {"exitCode": 0}}), &[]), [] as [&str; 0]);
    assert_eq!(of(json!({"terminated": {"exitCode": 3}}), &[]), ["its process ended with exit code 3"]);
    let on = |path: &str, reason: &str| event("Warning", reason, 1, path);
    assert_eq!(of(json!({"running": {}}), &[]), ["it runs, but its readiness probe has not succeeded yet"]);
    let events = [on("spec.containers{c}", "Unhealthy"), on("spec.containers{other}", "Unhealthy"), on("spec.containers{c}", "BackOff")];
    assert_eq!(of(json!({"running": {}}), &events), ["Unhealthy happened"]);
    assert_eq!(of(json!({"running": {}}), &events[1..]), ["it runs, but its readiness probe has not succeeded yet"], "that is about others");
}

#[test]
fn a_summary_and_the_last_warnings() {
    let summary = |pod: &Pod, nodes: Vec<Node>| told(pod, nodes, vec![], &[]).summary;
    let fine = || vec![node(json!({}))];
    assert_eq!(summary(&running(json!({"running": {}}), true, "n1"), fine()), "runs and is ready; nothing stands in its way");
    assert_eq!(summary(&running(json!({"running": {}}), false, "n1"), fine()), "runs, but is not ready");
    assert_eq!(summary(&running(json!({"running": {}}), true, "gone"), fine()), "Running", "its node is gone");
    let unfit = node(json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "MemoryPressure", "status": "True"}]}}));
    let report = told(&running(json!({"running": {}}), true, "n1"), vec![unfit], vec![], &[]);
    assert_eq!((report.findings[0].problem.as_str(), report.findings[0].fix.as_str()), ("the node is not Ready", "knarr why node/n1"));
    let ended = |phase: &str| pod(json!({"containers": []}), json!({"phase": phase, "reason": "Evicted", "message": "no room"}));
    assert_eq!(summary(&ended("Succeeded"), fine()), "has run to completion");
    assert_eq!(summary(&ended("Failed"), fine()), "Failed (Evicted): no room");
    assert_eq!(told(&ended("Failed"), fine(), vec![], &[]).findings, [], "it wants no node any more");

    let pending = pod(json!({"nodeName": "n1", "containers": []}), json!({"phase": "Pending"}));
    let first = |events: &[Event]| told(&pending, fine(), vec![], events).findings.first().map(|f| (f.subject.clone(), f.fix.clone()));
    assert_eq!(first(&[event("Normal", "Pulled", 1, "")]), None);
    let said = |reason: &str| first(&[event("Warning", "Earlier", 1, ""), event("Warning", reason, 1, ""), event("Normal", "Pulled", 1, "")]).expect("a finding");
    assert_eq!(said("FailedMount"), ("event FailedMount".into(), "create what the volume names, or mark it optional".into()));
    assert!(said("FailedCreatePodSandBox").1.contains("knarr status"));
    assert_eq!(said("Else").1, "mend what the event names");
    assert_eq!(told(&running(json!({"running": {}}), true, "n1"), fine(), vec![], &[event("Warning", "Old", 1, "")]).findings, [], "it has come further");

    let events: Vec<Event> = (1..=7).map(|n| event("Warning", &format!("W{n}"), n, "")).chain([event("Normal", "N", 1, "")]).collect();
    let report = told(&pending, fine(), vec![], &events);
    assert_eq!(report.events, ["W3 (x3): W3 happened", "W4 (x4): W4 happened", "W5 (x5): W5 happened", "W6 (x6): W6 happened", "W7 (x7): W7 happened"]);
    assert!(report.text().contains("W7 (x7)"));
    assert_eq!(told(&pending, fine(), vec![], &events[..1]).events, ["W1: W1 happened"]);
}

#[test]
fn nodes_say_what_ails_them() {
    let of = |change: Value| {
        let report = about_node(&node(change), &[]);
        (report.summary, report.findings.iter().map(|f| f.subject.clone()).collect::<Vec<_>>())
    };
    let conditions = |ready: &str, other: &str| json!({"status": {"conditions": [{"type": "Ready", "status": ready, "message": "m"}, {"type": other, "status": "True"}]}});
    assert_eq!(of(json!({})), ("is Ready; nothing stands in its way".into(), vec![]));
    assert_eq!(of(json!({"spec": {"unschedulable": true}})), ("is Ready, but".into(), vec!["scheduling".to_string()]));
    assert_eq!(of(conditions("True", "MemoryPressure")).1, ["memory"]);
    assert_eq!(of(conditions("True", "DiskPressure")).1, ["disk"]);
    assert_eq!(of(conditions("True", "PIDPressure")).1, ["process ids"]);
    assert_eq!(of(conditions("False", "Other")), ("is not Ready".into(), vec!["kubelet".to_string()]));
    assert_eq!(of(json!({"status": {"conditions": []}})).0, "has not said anything yet: its agent has registered it but not reported");
    let fix = |ready: &str| about_node(&node(conditions(ready, "Other")), &[]).findings[0].fix.clone();
    assert!(fix("Unknown").starts_with("the node is off") && fix("False").starts_with("the node's own message"));
}
