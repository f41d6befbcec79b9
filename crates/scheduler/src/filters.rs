//! The filters: what rules a node out for a pod, in upstream's order and words.

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

use crate::affinity;
use crate::decide::Rejection;
use crate::requests::{Amounts, pod_requests};
use crate::snapshot::{NodeInfo, host_ports};

/// What a pod needs, worked out once for all nodes.
pub(crate) struct Needs<'a> {
    pub pod: &'a Pod,
    pub requests: Amounts,
    pub ports: Vec<(String, String, i32)>,
}

impl<'a> Needs<'a> {
    pub fn of(pod: &'a Pod) -> Needs<'a> {
        Needs { pod, requests: pod_requests(pod), ports: host_ports(pod) }
    }
}

/// Runs the filters over a node until one says no.
pub(crate) fn filter(needs: &Needs, node: &NodeInfo) -> Result<(), Vec<Rejection>> {
    let spec = node.node.spec.as_ref();
    let reject = |plugin, reason: &str, resolvable| Err(vec![Rejection { plugin, reason: reason.into(), resolvable }]);
    if spec.is_some_and(|s| s.unschedulable == Some(true)) {
        let taint = Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Taint::default() };
        if !tolerated(needs.pod, &taint) {
            return reject("NodeUnschedulable", "node(s) were unschedulable", false);
        }
    }
    let named = needs.pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("");
    if !named.is_empty() && named != node.name() {
        return reject("NodeName", "node(s) didn't match the requested node name", false);
    }
    let taints = spec.and_then(|s| s.taints.as_ref());
    let hard = taints.into_iter().flatten().filter(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute"));
    if hard.into_iter().any(|t| !tolerated(needs.pod, t)) {
        return reject("TaintToleration", "node(s) had untolerated taint(s)", false);
    }
    if !affinity::allows(needs.pod, &node.node) {
        return reject("NodeAffinity", "node(s) didn't match Pod's node affinity/selector", false);
    }
    if needs.ports.iter().any(|wanted| node.ports.iter().any(|used| collide(wanted, used))) {
        return reject("NodePorts", "node(s) didn't have free ports for the requested pod ports", true);
    }
    let lacking = insufficient(&needs.requests, node);
    if lacking.is_empty() { Ok(()) } else { Err(lacking) }
}

fn collide(a: &(String, String, i32), b: &(String, String, i32)) -> bool {
    a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || a.1 == "0.0.0.0" || b.1 == "0.0.0.0")
}

fn insufficient(requests: &Amounts, node: &NodeInfo) -> Vec<Rejection> {
    let mut lacking = Vec::new();
    if node.pods as i64 + 1 > node.allocatable.get("pods") {
        lacking.push(Rejection { plugin: "NodeResourcesFit", reason: "Too many pods".into(), resolvable: true });
    }
    for (name, wanted) in &requests.0 {
        let all = node.allocatable.get(name);
        if *wanted > 0 && *wanted > all - node.requested.get(name) {
            lacking.push(Rejection { plugin: "NodeResourcesFit", reason: format!("Insufficient {name}"), resolvable: *wanted <= all });
        }
    }
    lacking
}

/// Whether a pod tolerates a taint.
pub(crate) fn tolerated(pod: &Pod, taint: &Taint) -> bool {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_ref());
    tolerations.into_iter().flatten().any(|t| covers(t, taint))
}

/// Whether a toleration covers a taint.
pub(crate) fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().unwrap_or("");
    let effect = toleration.effect.as_deref().unwrap_or("");
    let value = toleration.value.as_deref().unwrap_or("");
    let taint_value = taint.value.as_deref().unwrap_or("");
    let compare = |test: fn(i64, i64) -> bool| match (taint_value.parse(), value.parse()) {
        (Ok(taint), Ok(own)) => test(taint, own),
        _ => false,
    };
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref().unwrap_or("") {
            "Exists" => true,
            "" | "Equal" => !key.is_empty() && value == taint_value,
            "Lt" => compare(|taint, own| taint < own),
            "Gt" => compare(|taint, own| taint > own),
            _ => false,
        }
}
