//! How many pods are made, which are deleted, and the status that they amount to.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use crate::pod::Pod;
use crate::pods;

/// Most pods created or deleted in one pass.
const BURST: usize = 500;

/// What one pass does about the number of pods.
#[derive(Debug, PartialEq)]
pub enum Plan {
    /// Nothing is missing or too much.
    Nothing,
    /// So many are missing.
    Create(usize),
    /// These are too much.
    Delete(Vec<Arc<Pod>>),
}

/// Decides how to come from `active` pods to `wanted`. `neighbours` counts pods by node, for those
/// that must go.
pub fn plan(wanted: i32, active: &[Arc<Pod>], neighbours: impl FnOnce() -> BTreeMap<String, usize>, now: Timestamp) -> Plan {
    let wanted = wanted.max(0) as usize;
    if active.len() < wanted {
        Plan::Create((wanted - active.len()).min(BURST))
    } else if active.len() > wanted {
        let mut ranked = active.to_vec();
        if wanted > 0 {
            let neighbours = neighbours();
            ranked.sort_by_cached_key(|p| deletion_rank(p, &neighbours, now));
        }
        ranked.truncate((active.len() - wanted).min(BURST));
        Plan::Delete(ranked)
    } else {
        Plan::Nothing
    }
}

/// The node that a pod is on, or nothing.
pub fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("")
}

/// Pods that are least missed come first: unassigned, pending, unready, cheap to delete, on a node with
/// more of their like, ready for a shorter time, restarted more often, younger. Times count by their
/// order of magnitude alone, so that it is not always the newest that goes.
fn deletion_rank(pod: &Pod, neighbours: &BTreeMap<String, usize>, now: Timestamp) -> impl Ord + use<> {
    let phase = match pods::phase(pod) {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let magnitude = |since: Timestamp| now.duration_since(since).as_nanos().max(0).checked_ilog2();
    let restarts = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten()).map(|c| c.restart_count).max();
    (
        !node(pod).is_empty(),
        phase,
        pods::is_ready(pod),
        deletion_cost(pod),
        Reverse(neighbours.get(node(pod)).copied().unwrap_or(0)),
        pods::ready_since(pod).map(magnitude),
        Reverse(restarts),
        pod.metadata.creation_timestamp.as_ref().map(|t| magnitude(t.0)),
        pod.uid(),
    )
}

/// What it costs to delete a pod, as its annotation says. What is not a plain number is nothing.
fn deletion_cost(pod: &Pod) -> i32 {
    let text = pod.annotations().get("controller.kubernetes.io/pod-deletion-cost").map_or("", String::as_str);
    let odd = text.starts_with('+') || (text.len() > 1 && text.starts_with('0'));
    if odd { 0 } else { text.parse().unwrap_or(0) }
}

/// Why pods could not be made or deleted.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Whether some are missing; else some are too many.
    pub creating: bool,
    pub message: String,
}

/// The status that `active` pods amount to; the second value says when it should be looked at again.
pub fn status(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: Option<i32>,
    failure: Option<Failure>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let spec = set.spec.clone().unwrap_or_default();
    let min_ready = Duration::from_secs(spec.min_ready_seconds.unwrap_or(0).max(0) as u64);
    let template = spec.template.and_then(|t| t.metadata).and_then(|m| m.labels).unwrap_or_default();
    let mut status = ReplicaSetStatus {
        replicas: active.len() as i32,
        observed_generation: set.metadata.generation,
        conditions: set.status.as_ref().and_then(|s| s.conditions.clone()),
        terminating_replicas: terminating,
        ..ReplicaSetStatus::default()
    };
    let (mut labelled, mut ready, mut available, mut again) = (0, 0, 0, None);
    for pod in active {
        labelled += i32::from(template.iter().all(|(k, v)| pod.labels().get(k) == Some(v)));
        ready += i32::from(pods::is_ready(pod));
        match pods::availability(pod, min_ready, now) {
            Ok(()) => available += 1,
            Err(Some(wait)) => again = Some(again.map_or(wait, |a: Duration| a.min(wait))),
            Err(None) => {}
        }
    }
    status.fully_labeled_replicas = Some(labelled);
    status.ready_replicas = Some(ready);
    status.available_replicas = Some(available);
    let failed = status.conditions.iter().flatten().any(|c| c.type_ == "ReplicaFailure");
    match failure {
        Some(failure) if !failed => status.conditions.get_or_insert_default().push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(if failure.creating { "FailedCreate" } else { "FailedDelete" }.into()),
            message: Some(failure.message),
            last_transition_time: Some(Time(now)),
        }),
        None if failed => status.conditions.iter_mut().for_each(|c| c.retain(|c| c.type_ != "ReplicaFailure")),
        _ => {}
    }
    status.conditions = status.conditions.filter(|c| !c.is_empty());
    (status, again)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, phase: &str, ready: bool) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "labels": {"app": "a"}},
                "spec": {"nodeName": "n", "containers": []},
                "status": {"phase": phase, "conditions": [
                    {"type": "Ready", "status": if ready {"True"} else {"False"}, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
            }))
            .expect("a pod"),
        )
    }

    fn now() -> Timestamp {
        "2026-01-02T00:00:00Z".parse().expect("a time")
    }

    fn deleted(wanted: i32, active: &[Arc<Pod>], neighbours: &[(&str, usize)]) -> Vec<String> {
        let neighbours = || neighbours.iter().map(|(n, c)| (n.to_string(), *c)).collect();
        match plan(wanted, active, neighbours, now()) {
            Plan::Delete(gone) => gone.iter().map(|p| p.name_any()).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn with(pod: Arc<Pod>, change: impl FnOnce(&mut Pod)) -> Arc<Pod> {
        let mut pod = pod.as_ref().clone();
        change(&mut pod);
        Arc::new(pod)
    }

    #[test]
    fn missing_pods_are_created_and_the_least_useful_ones_deleted() {
        let three = [pod("a", "Running", true), pod("b", "Pending", false), pod("c", "Running", false)];
        assert_eq!(plan(5, &three, BTreeMap::new, now()), Plan::Create(2));
        assert_eq!(plan(3, &three, BTreeMap::new, now()), Plan::Nothing);
        assert_eq!(plan(100_000, &three, BTreeMap::new, now()), Plan::Create(BURST));
        assert_eq!(deleted(1, &three, &[]), ["b", "c"]);
        assert_eq!(deleted(-1, &three, &[]).len(), 3);
    }

    #[test]
    fn cost_neighbours_and_age_decide_among_ready_pods() {
        let cost = |name: &str, cost: &str| {
            with(pod(name, "Running", true), |p| {
                p.annotations_mut().insert("controller.kubernetes.io/pod-deletion-cost".into(), cost.into());
            })
        };
        assert_eq!(deleted(2, &[cost("a", "5"), cost("b", "-3"), cost("c", "+9")], &[]), ["b"]);
        assert_eq!(deleted(1, &[cost("a", "5"), cost("b", "-3"), cost("c", "+9")], &[]), ["b", "c"], "+9 is no number");

        let on = |name: &str, node: &str| with(pod(name, "Running", true), |p| p.spec.as_mut().expect("a spec").node_name = Some(node.into()));
        assert_eq!(deleted(1, &[on("a", "m"), on("b", "n")], &[("m", 1), ("n", 3)]), ["b"]);

        let since = |name: &str, time: &str| {
            with(pod(name, "Running", true), |p| {
                let conditions = p.status.as_mut().and_then(|s| s.conditions.as_mut()).expect("conditions");
                conditions[0].last_transition_time = Some(Time(time.parse().expect("a time")));
            })
        };
        assert_eq!(deleted(1, &[since("a", "2026-01-01T00:00:00Z"), since("b", "2026-01-01T23:00:00Z")], &[]), ["b"]);
        let close = [since("a", "2026-01-01T00:00:09Z"), since("b", "2026-01-01T00:00:00Z")];
        let close = close.map(|p| with(p, |p| p.metadata.uid = Some(if p.name_any() == "a" { "2" } else { "1" }.into())));
        assert_eq!(deleted(1, &close, &[]), ["b"], "seconds do not count after a day");
    }

    #[test]
    fn a_failure_is_told_until_it_is_over() {
        let set = |status: serde_json::Value| -> ReplicaSet {
            serde_json::from_value(json!({"metadata": {}, "spec": {"replicas": 2, "selector": {}}, "status": status})).expect("a set")
        };
        let failure = |creating| Some(Failure { creating, message: "no room".into() });
        let reason = |status: ReplicaSetStatus| status.conditions.map(|c| (c[0].reason.clone(), c[0].message.clone()));
        let failed = |why: &str| Some((Some(why.to_string()), Some("no room".to_string())));
        let fresh = set(json!({"replicas": 0}));
        assert_eq!(reason(status(&fresh, &[], None, failure(true), now()).0), failed("FailedCreate"));
        assert_eq!(reason(status(&fresh, &[], None, failure(false), now()).0), failed("FailedDelete"));
        let before = json!({"replicas": 0, "conditions": [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "first"}]});
        let still = status(&set(before.clone()), &[], None, failure(true), now()).0;
        let messages = still.conditions.map(|all| all.into_iter().filter_map(|c| c.message).collect::<Vec<_>>());
        assert_eq!(messages, Some(vec!["first".to_string()]), "what is known is not told again");
        assert_eq!(status(&set(before), &[], None, None, now()).0.conditions, None);
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"generation": 3},
            "spec": {"minReadySeconds": 10, "selector": {}, "template": {"metadata": {"labels": {"app": "a"}}}}
        }))
        .expect("a set");
        let pods = [pod("a", "Running", true), pod("b", "Running", false)];
        let now = "2026-01-01T00:00:04Z".parse().expect("a time");
        let (status, again) = status(&set, &pods, Some(1), None, now);
        assert_eq!((status.replicas, status.ready_replicas, status.available_replicas), (2, Some(1), Some(0)));
        assert_eq!((status.fully_labeled_replicas, status.observed_generation), (Some(2), Some(3)));
        assert_eq!((again, status.terminating_replicas), (Some(Duration::from_secs(6)), Some(1)));
    }

    #[test]
    fn pods_that_nobody_misses_go_first() {
        let phase = |name: &str, phase: &str| pod(name, phase, false);
        let homeless = with(pod("d", "Running", true), |p| p.spec.as_mut().expect("a spec").node_name = Some(String::new()));
        let all = [phase("a", "Running"), phase("b", "Unknown"), phase("c", "Pending"), homeless];
        assert_eq!(deleted(1, &all, &[]), ["d", "c", "b"]);
        let reversed: Vec<_> = all.iter().rev().cloned().collect();
        assert_eq!(deleted(1, &reversed, &[]), ["d", "c", "b"]);
        let cost = |name: &str, cost: &str| {
            with(pod(name, "Running", true), |p| {
                p.annotations_mut().insert("controller.kubernetes.io/pod-deletion-cost".into(), cost.into());
            })
        };
        assert_eq!(deleted(1, &[cost("a", "007"), cost("b", "1")], &[]), ["a"], "a number does not begin with a zero");
        assert_eq!(deleted(1, &[cost("a", "0"), cost("b", "-1")], &[]), ["b"]);
    }

    #[test]
    fn available_pods_are_counted_and_conditions_of_others_kept() {
        let set: ReplicaSet = serde_json::from_value(json!({"metadata": {}, "spec": {"selector": {}},
            "status": {"replicas": 0, "conditions": [{"type": "Other", "status": "True"}]}}))
        .expect("a set");
        let three = [pod("a", "Running", true), pod("b", "Running", true), pod("c", "Running", false)];
        let (status, again) = status(&set, &three, None, None, now());
        assert_eq!((status.ready_replicas, status.available_replicas, again), (Some(2), Some(2), None));
        assert_eq!(status.conditions.map(|c| c.len()), Some(1));
    }
}
