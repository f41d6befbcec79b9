//! Which taints follow from what a node says of itself. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::health::{condition, ready};

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Condition, and the taint that follows when it is true.
const PRESSURE: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

/// A node's taints.
pub fn of(node: &Node) -> Vec<Taint> {
    node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default()
}

/// The taint of a node's readiness, when it is not ready.
fn unready(node: &Node) -> Option<&'static str> {
    match ready(node)? {
        "False" => Some(NOT_READY),
        "Unknown" => Some(UNREACHABLE),
        _ => None,
    }
}

/// The taints with those that keep new pods away as the node's conditions want them.
pub fn no_schedule(node: &Node, now: Timestamp) -> Vec<Taint> {
    let old = of(node);
    let mut wanted: Vec<&str> = unready(node).into_iter().collect();
    if ready(node).is_none() && old.iter().any(|t| t.key == NOT_READY && t.effect == "NoSchedule") {
        // A node that has said nothing yet keeps the taint that it was registered with.
        wanted.push(NOT_READY);
    }
    wanted.extend(PRESSURE.iter().filter(|(kind, _)| condition(node, kind).is_some_and(|c| c.status == "True")).map(|(_, key)| *key));
    if node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true)) {
        wanted.push(UNSCHEDULABLE);
    }
    let ours = |key: &str| [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&key) || PRESSURE.iter().any(|(_, k)| *k == key);
    replace(old, "NoSchedule", ours, &wanted, now)
}

/// The taints with the one that drives pods away as the node's readiness wants it.
pub fn no_execute(node: &Node, now: Timestamp) -> Vec<Taint> {
    let wanted: Vec<&str> = unready(node).into_iter().collect();
    replace(of(node), "NoExecute", |key| [NOT_READY, UNREACHABLE].contains(&key), &wanted, now)
}

/// The taints without those that drive pods away for want of readiness.
pub fn reachable(node: &Node) -> Vec<Taint> {
    replace(of(node), "NoExecute", |key| [NOT_READY, UNREACHABLE].contains(&key), &[], Timestamp::UNIX_EPOCH)
}

fn replace(old: Vec<Taint>, effect: &str, ours: impl Fn(&str) -> bool, wanted: &[&str], now: Timestamp) -> Vec<Taint> {
    let mut taints: Vec<Taint> =
        old.into_iter().filter(|t| t.effect != effect || !ours(&t.key) || wanted.contains(&t.key.as_str())).collect();
    for key in wanted {
        if !taints.iter().any(|t| t.key == *key && t.effect == effect) {
            let time_added = Some(Time(now));
            taints.push(Taint { key: (*key).into(), effect: effect.into(), time_added, ..Taint::default() });
        }
    }
    taints
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(ready: &str, spec: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": [
            {"type": "Ready", "status": ready}, {"type": "DiskPressure", "status": "True"}]}}))
        .expect("a node")
    }

    fn names(taints: Vec<Taint>) -> Vec<String> {
        taints.into_iter().map(|t| format!("{}:{}", t.key.trim_start_matches("node.kubernetes.io/"), t.effect)).collect()
    }

    #[test]
    fn conditions_become_taints_and_those_of_others_stay() {
        let now = Timestamp::UNIX_EPOCH;
        let taints = json!([{"key": "mine", "effect": "NoSchedule"}, {"key": NOT_READY, "effect": "NoExecute"}, {"key": NOT_READY, "effect": "NoSchedule"}]);
        let silent = node("Unknown", json!({"unschedulable": true, "taints": taints}));
        assert_eq!(
            names(no_schedule(&silent, now)),
            ["mine:NoSchedule", "not-ready:NoExecute", "unreachable:NoSchedule", "disk-pressure:NoSchedule", "unschedulable:NoSchedule"]
        );
        assert_eq!(names(no_execute(&silent, now)), ["mine:NoSchedule", "not-ready:NoSchedule", "unreachable:NoExecute"]);
        assert_eq!(names(reachable(&silent)), ["mine:NoSchedule", "not-ready:NoSchedule"]);
        let fine = node("True", json!({"taints": [{"key": NOT_READY, "effect": "NoSchedule"}, {"key": "x", "effect": "NoExecute"}]}));
        assert_eq!(names(no_schedule(&fine, now)), ["x:NoExecute", "disk-pressure:NoSchedule"]);
        assert_eq!(names(no_execute(&fine, now)), ["not-ready:NoSchedule", "x:NoExecute"]);
    }

    #[test]
    fn a_node_that_is_not_ready_is_tainted_since_now() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let unready = node("False", json!({}));
        assert_eq!(names(no_schedule(&unready, now)), ["not-ready:NoSchedule", "disk-pressure:NoSchedule"]);
        let taints = no_execute(&unready, now);
        assert_eq!(taints[0].time_added, Some(Time(now)));
        assert_eq!(names(taints), ["not-ready:NoExecute"]);
    }

    #[test]
    fn a_taint_that_is_there_keeps_its_time() {
        let old = json!({"taints": [{"key": UNREACHABLE, "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]});
        let silent = node("Unknown", old);
        assert_eq!(no_execute(&silent, Timestamp::UNIX_EPOCH), of(&silent));
    }

    #[test]
    fn a_node_that_never_spoke_keeps_what_it_came_with() {
        let new: Node = serde_json::from_value(json!({"spec": {"taints": [{"key": NOT_READY, "effect": "NoSchedule"}]}})).expect("a node");
        assert_eq!(no_schedule(&new, Timestamp::UNIX_EPOCH), of(&new));
        for (key, effect) in [(NOT_READY, "NoExecute"), ("mine", "NoSchedule")] {
            let other: Node = serde_json::from_value(json!({"spec": {"taints": [{"key": key, "effect": effect}]}})).expect("a node");
            assert_eq!(no_schedule(&other, Timestamp::UNIX_EPOCH), of(&other), "{key}:{effect} is another one");
        }
    }
}
