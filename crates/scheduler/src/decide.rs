//! The decision: which node a pod goes to, or why it goes to none.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use crate::filters::{Needs, filter};
use crate::scores::score;
use crate::snapshot::Snapshot;

/// Why a plug-in ruled a node out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Upstream's name of the plug-in.
    pub plugin: &'static str,
    /// Upstream's words.
    pub reason: String,
    /// Whether removing other pods could help.
    pub resolvable: bool,
}

/// One node's rejections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReasons {
    pub node: String,
    pub rejections: Vec<Rejection>,
}

/// What comes of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It goes to this node.
    Bind(String),
    /// It fits nowhere.
    Unschedulable { message: String, nodes: Vec<NodeReasons> },
}

/// Decides for one pod. Among the best nodes the `seed` picks, so that equal nodes fill evenly and the
/// same input gives the same answer.
pub fn decide(snapshot: &Snapshot, pod: &Pod, seed: u64) -> Decision {
    if snapshot.nodes.is_empty() {
        return Decision::Unschedulable { message: "no nodes available to schedule pods".into(), nodes: Vec::new() };
    }
    let needs = Needs::of(pod);
    let (mut fitting, mut rejected) = (Vec::new(), Vec::new());
    for (name, node) in &snapshot.nodes {
        match filter(&needs, node) {
            Ok(()) => fitting.push(node),
            Err(rejections) => rejected.push(NodeReasons { node: name.clone(), rejections }),
        }
    }
    match fitting.len() {
        0 => Decision::Unschedulable { message: message(pod, &rejected), nodes: rejected },
        1 => Decision::Bind(fitting[0].name()),
        _ => {
            let scores = score(pod, &fitting, snapshot.nodes.len());
            let best = scores.iter().max().copied().unwrap_or(0);
            let ties: Vec<usize> = (0..scores.len()).filter(|i| scores[*i] == best).collect();
            Decision::Bind(fitting[ties[(seed % ties.len() as u64) as usize]].name())
        }
    }
}

fn histogram<'a>(reasons: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    reasons.for_each(|r| *counts.entry(r).or_default() += 1);
    let mut texts: Vec<String> = counts.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    texts.sort();
    texts.join(", ")
}

/// The message of the FailedScheduling event, with what preemption has to say.
fn message(pod: &Pod, rejected: &[NodeReasons]) -> String {
    let all = rejected.len();
    let why = histogram(rejected.iter().flat_map(|n| n.rejections.iter().map(|r| r.reason.as_str())));
    let filters = format!("0/{all} nodes are available: {why}.");
    if pod.spec.as_ref().and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return format!("{filters} preemption: not eligible due to preemptionPolicy=Never.");
    }
    let preemption = histogram(rejected.iter().map(|n| {
        if n.rejections.iter().all(|r| r.resolvable) {
            "No preemption victims found for incoming pod"
        } else {
            "Preemption is not helpful for scheduling"
        }
    }));
    format!("{filters} preemption: 0/{all} nodes are available: {preemption}.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Node;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn node(name: &str, spec: Value, cpu: &str) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": spec,
                "status": {"allocatable": {"cpu": cpu, "memory": "4Gi", "pods": "3"}}}))
            .expect("a node"),
        )
    }

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("a pod")
    }

    fn asking(cpu: &str) -> Pod {
        pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}))
    }

    fn why(nodes: Vec<Arc<Node>>, pods: &[Pod], wanted: &Pod) -> String {
        match decide(&Snapshot::new(nodes, pods), wanted, 0) {
            Decision::Bind(node) => format!("bound to {node}"),
            Decision::Unschedulable { message, .. } => message,
        }
    }

    #[test]
    fn messages_are_upstreams() {
        let tainted = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
        assert_eq!(
            why(vec![node("a", tainted.clone(), "2")], &[], &asking("1")),
            "0/1 nodes are available: 1 node(s) had untolerated taint(s). preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        );
        assert_eq!(
            why(vec![node("a", json!({}), "2"), node("b", json!({"unschedulable": true}), "2"), node("c", tainted, "2")], &[], &asking("8")),
            "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
        );
        let mut busy = asking("1500m");
        busy.spec.as_mut().expect("a spec").node_name = Some("a".into());
        assert_eq!(
            why(vec![node("a", json!({}), "2")], &[busy], &asking("1")),
            "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
        );
        assert_eq!(
            why(vec![node("a", json!({}), "2")], &[], &pod(json!({"containers": [], "nodeSelector": {"disk": "ssd"}}))),
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        );
        assert_eq!(why(vec![], &[], &asking("1")), "no nodes available to schedule pods");
    }

    #[test]
    fn emptier_nodes_are_better_and_preferences_better_still() {
        let mut busy = asking("1");
        busy.spec.as_mut().expect("a spec").node_name = Some("a".into());
        let nodes = || vec![node("a", json!({}), "4"), node("b", json!({}), "4")];
        assert_eq!(why(nodes(), std::slice::from_ref(&busy), &asking("1")), "bound to b");
        let prefers = pod(json!({"containers": [{"name": "c"}], "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 100, "preference": {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}]}}]}}}));
        assert_eq!(why(nodes(), &[busy], &prefers), "bound to a");
    }

    #[test]
    fn taints_are_tolerated_and_ports_taken() {
        let tainted = node("a", json!({"taints": [{"key": "k", "effect": "NoSchedule"}]}), "2");
        let tolerant = pod(json!({"containers": [], "tolerations": [{"operator": "Exists"}]}));
        assert_eq!(why(vec![tainted], &[], &tolerant), "bound to a");
        let web = |on: Option<&str>| pod(json!({"nodeName": on, "containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}));
        assert!(why(vec![node("a", json!({}), "2")], &[web(Some("a"))], &web(None)).contains("1 node(s) didn't have free ports"));
    }

    #[test]
    fn the_number_of_pods_is_bounded() {
        let here = |i: usize| pod(json!({"nodeName": "a", "containers": [{"name": format!("c{i}")}]}));
        let full: Vec<Pod> = (0..3).map(here).collect();
        assert!(why(vec![node("a", json!({}), "2")], &full, &asking("1")).contains("1 Too many pods"));
    }
}
