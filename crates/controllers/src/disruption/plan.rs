//! The status of a disruption budget. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::pod::Pod;
use crate::pods;

/// An evicted pod that is still there after this time stays after all.
const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_mins(2);
const CONDITION: &str = "DisruptionAllowed";

/// What is to be done.
#[derive(Debug, PartialEq)]
pub struct Plan {
    pub status: PodDisruptionBudgetStatus,
    /// Pods that were evicted and did not go.
    pub not_deleted: Vec<Arc<Pod>>,
    /// When to look again though nothing changes.
    pub again: Option<Duration>,
}

/// Whether the budget depends on how many pods its pods' controllers want.
pub fn needs_scale(spec: &PodDisruptionBudgetSpec) -> bool {
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

/// A part of `total`, rounded up.
fn scaled(value: &IntOrString, total: i32) -> Result<i32, String> {
    match value {
        IntOrString::Int(n) => Ok(*n),
        IntOrString::String(text) => {
            let percent: Option<i64> = text.strip_suffix('%').and_then(|p| p.parse().ok());
            let percent = percent.ok_or_else(|| "invalid value for IntOrString: invalid type: string is not a percentage".to_string())?;
            Ok(i32::try_from((percent * i64::from(total) + 99).div_euclid(100)).unwrap_or(i32::MAX))
        }
    }
}

/// Decides. `pods` are those that the budget selects, `scale` is how many their controllers want.
pub fn plan(budget: &PodDisruptionBudget, selected: &[Arc<Pod>], scale: i32, now: Timestamp) -> Result<Plan, String> {
    let empty = PodDisruptionBudgetSpec::default();
    let spec = budget.spec.as_ref().unwrap_or(&empty);
    let old = budget.status.clone().unwrap_or_default();
    let (expected, desired) = match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => (scale, (scale - scaled(most, scale)?).max(0)),
        (None, Some(IntOrString::Int(least))) => (selected.len() as i32, *least),
        (None, Some(least)) => (scale, scaled(least, scale)?),
        (None, None) => (0, 0),
    };
    let mut disrupted = BTreeMap::new();
    let (mut not_deleted, mut again) = (Vec::new(), None);
    let known = old.disrupted_pods.clone().unwrap_or_default();
    for pod in selected.iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
        let Some(since) = known.get(&pod.name_any()) else { continue };
        let left = DELETION_TIMEOUT - now.duration_since(since.0);
        if left.is_negative() {
            not_deleted.push(pod.clone());
        } else {
            again = Some(again.map_or(left.unsigned_abs(), |a: Duration| a.min(left.unsigned_abs())));
            disrupted.insert(pod.name_any(), since.clone());
        }
    }
    let healthy = |p: &&Arc<Pod>| p.metadata.deletion_timestamp.is_none() && !disrupted.contains_key(&p.name_any()) && pods::is_ready(p);
    let current = selected.iter().filter(healthy).count() as i32;
    let allowed = if expected > 0 { (current - desired).max(0) } else { 0 };
    let mut status = PodDisruptionBudgetStatus {
        current_healthy: Some(current),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: Some(disrupted).filter(|d| !d.is_empty()),
        observed_generation: budget.metadata.generation,
        conditions: old.conditions,
    };
    let (value, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    set_condition(&mut status, value, reason, "", now);
    Ok(Plan { status, not_deleted, again })
}

/// The status when it cannot be computed: nothing may be evicted.
pub fn failed(budget: &PodDisruptionBudget, why: &str, now: Timestamp) -> PodDisruptionBudgetStatus {
    let mut status = budget.status.clone().unwrap_or_default();
    status.disruptions_allowed = Some(0);
    set_condition(&mut status, "False", "SyncFailed", why, now);
    status
}

fn set_condition(status: &mut PodDisruptionBudgetStatus, value: &str, reason: &str, message: &str, now: Timestamp) {
    let observed = status.observed_generation;
    let conditions = status.conditions.get_or_insert_default();
    let mut new = Condition {
        type_: CONDITION.into(),
        status: value.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: observed,
        last_transition_time: Time(now),
    };
    match conditions.iter_mut().find(|c| c.type_ == CONDITION) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

/// Whether two statuses say the same, absent numbers being noughts.
pub fn same(a: &PodDisruptionBudgetStatus, b: &PodDisruptionBudgetStatus) -> bool {
    let filled = |s: &PodDisruptionBudgetStatus| {
        let mut s = s.clone();
        for n in [&mut s.current_healthy, &mut s.desired_healthy, &mut s.expected_pods, &mut s.disruptions_allowed] {
            n.get_or_insert(0);
        }
        s.observed_generation.get_or_insert(0);
        s.disrupted_pods = s.disrupted_pods.filter(|d| !d.is_empty());
        s.conditions.iter_mut().flatten().for_each(|c| {
            c.observed_generation.get_or_insert(0);
        });
        s
    };
    filled(a) == filled(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: &str = "2026-01-01T00:10:00Z";

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        serde_json::from_value(json!({"metadata": {"name": "b", "generation": 2}, "spec": spec, "status": status})).expect("a budget")
    }

    fn pods(ready: usize, unready: usize) -> Vec<Arc<Pod>> {
        let pod = |n: usize| {
            let state = if n < ready { "True" } else { "False" };
            let pod = json!({"metadata": {"name": format!("p{n}")}, "status": {"conditions": [{"type": "Ready", "status": state}]}});
            Arc::new(serde_json::from_value(pod).expect("a pod"))
        };
        (0..ready + unready).map(pod).collect()
    }

    /// Expected, desired, healthy and allowed.
    fn counts(spec: Value, pods: &[Arc<Pod>], scale: i32) -> [i32; 4] {
        let status = plan(&budget(spec, json!({})), pods, scale, NOW.parse().expect("a time")).expect("a plan").status;
        let condition = &status.conditions.as_ref().expect("conditions")[0];
        let allowed = status.disruptions_allowed.expect("a number");
        assert_eq!((condition.status == "True", condition.reason == "SufficientPods"), (allowed > 0, allowed > 0));
        assert_eq!((status.observed_generation, condition.observed_generation), (Some(2), Some(2)));
        [status.expected_pods, status.desired_healthy, status.current_healthy, Some(allowed)].map(|n| n.expect("a number"))
    }

    #[test]
    fn counts_what_may_go() {
        assert_eq!(counts(json!({"minAvailable": 2}), &pods(3, 1), 0), [4, 2, 3, 1]);
        assert_eq!(counts(json!({"minAvailable": 2}), &pods(1, 1), 0), [2, 2, 1, 0]);
        assert_eq!(counts(json!({"minAvailable": "50%"}), &pods(4, 0), 5), [5, 3, 4, 1], "rounded up");
        assert_eq!(counts(json!({"maxUnavailable": 1}), &pods(5, 0), 5), [5, 4, 5, 1]);
        assert_eq!(counts(json!({"maxUnavailable": "30%"}), &pods(5, 0), 5), [5, 3, 5, 2]);
        assert_eq!(counts(json!({"maxUnavailable": 9}), &pods(5, 0), 5), [5, 0, 5, 5]);
        assert_eq!(counts(json!({"maxUnavailable": 1}), &[], 0), [0, 0, 0, 0]);
        assert_eq!(counts(json!({"minAvailable": 0}), &[], 0), [0, 0, 0, 0]);
        assert_eq!(counts(json!({"maxUnavailable": 1}), &pods(2, 0), 0), [0, 0, 2, 0], "they are on their way out anyway");
        assert!(needs_scale(&serde_json::from_value(json!({"minAvailable": "1%"})).expect("a spec")));
        assert!(!needs_scale(&serde_json::from_value(json!({"minAvailable": 1})).expect("a spec")));
    }

    #[test]
    fn evicted_pods_count_as_gone_for_two_minutes() {
        let disrupted = json!({"p0": "2026-01-01T00:09:00Z", "p1": "2026-01-01T00:07:59Z", "gone": "2026-01-01T00:09:59Z"});
        let b = budget(json!({"minAvailable": 1}), json!({"disruptedPods": disrupted}));
        let p = plan(&b, &pods(3, 0), 0, NOW.parse().expect("a time")).expect("a plan");
        assert_eq!((p.status.current_healthy, p.again), (Some(2), Some(Duration::from_secs(60))));
        assert_eq!(p.status.disrupted_pods.expect("one").into_keys().collect::<Vec<_>>(), ["p0"]);
        assert_eq!(p.not_deleted.iter().map(|p| p.name_any()).collect::<Vec<_>>(), ["p1"]);
    }

    #[test]
    fn a_failure_allows_nothing() {
        let status = json!({"disruptionsAllowed": 3, "observedGeneration": 1, "currentHealthy": 4,
            "conditions": [{"type": CONDITION, "status": "True", "reason": "SufficientPods", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        let failed = failed(&budget(json!({}), status), "why", NOW.parse().expect("a time"));
        assert_eq!((failed.disruptions_allowed, failed.current_healthy, failed.observed_generation), (Some(0), Some(4), Some(1)));
        let condition = &failed.conditions.expect("conditions")[0];
        assert_eq!((condition.status.as_str(), condition.reason.as_str(), condition.message.as_str()), ("False", "SyncFailed", "why"));
        assert_eq!(condition.last_transition_time.0.to_string(), NOW);
    }

    #[test]
    fn the_same_status_is_not_written_again() {
        let b = budget(json!({"minAvailable": 1}), json!({}));
        let first = plan(&b, &pods(2, 0), 0, NOW.parse().expect("a time")).expect("a plan").status;
        let again = budget(json!({"minAvailable": 1}), serde_json::to_value(&first).expect("json"));
        let later = plan(&again, &pods(2, 0), 0, "2026-01-01T01:00:00Z".parse().expect("a time")).expect("a plan").status;
        assert!(same(&first, &later));
        assert!(!same(&first, &plan(&again, &pods(1, 1), 0, NOW.parse().expect("a time")).expect("a plan").status));
    }

    #[test]
    fn what_is_absent_is_the_same_as_nought() {
        let of = |status: Value| serde_json::from_value::<PodDisruptionBudgetStatus>(status).expect("a status");
        let noughts = json!({"currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0, "disruptionsAllowed": 0, "observedGeneration": 0, "disruptedPods": {}});
        assert!(same(&of(json!({})), &of(noughts)));
        let evicted = |name: &str| of(json!({"disruptedPods": {name: "2026-01-01T00:00:00Z"}}));
        assert!(same(&evicted("p"), &evicted("p")) && !same(&evicted("p"), &of(json!({}))));
    }
}
