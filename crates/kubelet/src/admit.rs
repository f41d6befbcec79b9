//! Whether a pod that was bound here may run here: the checks of a scheduler that knew too little. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{NodeSelectorTerm, Pod};

use crate::pod::{is_sidecar, spec};
use crate::resources::{List, pod_requests};

/// Reason and message of a refusal.
pub type Refusal = (String, String);

/// Checks a pod against the node and the pods that it has. An error is for the pod's status.
pub fn admit(pod: &Pod, labels: &BTreeMap<String, String>, node_name: &str, allocatable: &List, others: &[Arc<Pod>]) -> Result<(), Refusal> {
    let affinity = || ("NodeAffinity".to_string(), "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".to_string());
    let spec = spec(pod);
    if spec.node_selector.iter().flatten().any(|(k, v)| labels.get(k) != Some(v)) {
        return Err(affinity());
    }
    let required = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref()).and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    if let Some(required) = required
        && !required.node_selector_terms.iter().any(|t| term_matches(t, labels, node_name))
    {
        return Err(affinity());
    }
    let taken: Vec<HostPort<'_>> = others.iter().flat_map(|other| host_ports(other)).collect();
    if host_ports(pod).iter().any(|port| taken.iter().any(|other| port.meets(other))) {
        let message = "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        return Err(("NodePorts".to_string(), message.to_string()));
    }
    let number = |name: &str| allocatable.get(name).and_then(|q| Quantity::parse(&q.0).ok());
    let out_of = |name: &str, requested: i64, used: i64, capacity: i64| {
        let message = format!("Pod was rejected: Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}");
        Err((format!("OutOf{name}"), message))
    };
    if let Some(pods) = number("pods") {
        let used = i64::try_from(others.len()).unwrap_or(i64::MAX);
        if used + 1 > pods.value() {
            return out_of("pods", 1, used, pods.value());
        }
    }
    for (name, wanted) in pod_requests(pod) {
        let amount = |q: &Quantity| if name == "cpu" { q.milli_value() } else { q.value() };
        let Some(have) = number(&name) else { continue };
        let mut used = Quantity::zero();
        for other in others {
            if let Some(more) = pod_requests(other).get(&name) {
                used.add(more);
            }
        }
        if amount(&wanted) > 0 && amount(&wanted) + amount(&used) > amount(&have) {
            return out_of(&name, amount(&wanted), amount(&used), amount(&have));
        }
    }
    Ok(())
}

/// A port of the node that a pod wants for itself.
struct HostPort<'a> {
    address: &'a str,
    protocol: &'a str,
    port: i32,
}

impl HostPort<'_> {
    /// Both cannot be had: an empty address is all of them.
    fn meets(&self, other: &HostPort<'_>) -> bool {
        let all = |address: &str| matches!(address, "" | "0.0.0.0" | "::");
        (self.port, self.protocol) == (other.port, other.protocol)
            && (self.address == other.address || all(self.address) || all(other.address))
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort<'_>> {
    let sidecars = spec(pod).init_containers.iter().flatten().filter(|c| is_sidecar(c));
    let ports = spec(pod).containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            let port = p.host_port.filter(|port| *port > 0)?;
            Some(HostPort { address: p.host_ip.as_deref().unwrap_or_default(), protocol: p.protocol.as_deref().unwrap_or("TCP"), port })
        })
        .collect()
}

/// Whether a term selects a node.
pub fn term_matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, node_name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let holds = |operator: &str, have: Option<&str>, values: &[String]| {
        let number = |s: &str| s.parse::<i64>().ok();
        match operator {
            "In" => have.is_some_and(|h| values.iter().any(|v| v == h)),
            "NotIn" => have.is_none_or(|h| values.iter().all(|v| v != h)),
            "Exists" => have.is_some(),
            "DoesNotExist" => have.is_none(),
            "Gt" => matches!((have.and_then(number), values.first().and_then(|v| number(v))), (Some(a), Some(b)) if a > b),
            "Lt" => matches!((have.and_then(number), values.first().and_then(|v| number(v))), (Some(a), Some(b)) if a < b),
            _ => false,
        }
    };
    expressions.iter().all(|e| holds(&e.operator, labels.get(&e.key).map(String::as_str), e.values.as_deref().unwrap_or_default()))
        && fields.iter().all(|e| e.key == "metadata.name" && holds(&e.operator, Some(node_name), e.values.as_deref().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

    use super::*;
    use crate::plan::tests::pod;

    fn check(spec: serde_json::Value, others: usize, expect: &str) {
        let labels = BTreeMap::from([("zone".to_string(), "a".to_string())]);
        let allocatable: List = [("cpu", "1"), ("memory", "1Gi"), ("pods", "2")].map(|(k, v)| (k.to_string(), Text(v.to_string()))).into();
        let other = Arc::new(pod(serde_json::json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "600m"}},
            "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": "10.0.0.1"}]}]})));
        let result = admit(&pod(spec), &labels, "node", &allocatable, &vec![other; others]);
        assert_eq!(result.map_or_else(|(r, m)| format!("{r}|{m}"), |()| "ok".into()), expect);
    }

    #[test]
    fn refusals_are_worded_as_upstream() {
        let cpu = |n: &str| serde_json::json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": n}}}]});
        check(cpu("400m"), 1, "ok");
        let port = |port: serde_json::Value| serde_json::json!({"containers": [{"name": "a", "ports": [port]}]});
        let taken = "NodePorts|Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        check(port(serde_json::json!({"containerPort": 1, "hostPort": 80})), 1, taken);
        check(port(serde_json::json!({"containerPort": 1, "hostPort": 80, "hostIP": "10.0.0.1", "protocol": "TCP"})), 1, taken);
        check(port(serde_json::json!({"containerPort": 1, "hostPort": 80, "hostIP": "10.0.0.2"})), 1, "ok");
        check(port(serde_json::json!({"containerPort": 1, "hostPort": 80, "protocol": "UDP"})), 1, "ok");
        check(port(serde_json::json!({"containerPort": 80})), 1, "ok");
        check(cpu("500m"), 1, "OutOfcpu|Pod was rejected: Node didn't have enough resource: cpu, requested: 500, used: 600, capacity: 1000");
        check(serde_json::json!({"containers": []}), 2, "OutOfpods|Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2");
        check(serde_json::json!({"containers": [], "nodeSelector": {"zone": "a"}}), 0, "ok");
        check(
            serde_json::json!({"containers": [], "nodeSelector": {"zone": "b"}}),
            0,
            "NodeAffinity|Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        );
    }
}
