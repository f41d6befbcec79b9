//! The status of a deployment, and its Progressing, Available and ReplicaFailure conditions.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::plan;

fn sum(sets: &[Arc<ReplicaSet>], count: impl Fn(&ReplicaSetStatus) -> Option<i32>) -> i32 {
    sets.iter().filter_map(|s| s.status.as_ref()).map(|s| count(s).unwrap_or(0)).sum()
}

/// The pods that are being deleted; nothing while a set does not tell.
fn terminating(sets: &[Arc<ReplicaSet>]) -> Option<i32> {
    let of = |set: &Arc<ReplicaSet>| match &set.status {
        Some(status) if status.terminating_replicas.is_some() => status.terminating_replicas,
        Some(status) if status.observed_generation.unwrap_or(0) > 0 => None,
        _ => Some(0),
    };
    sets.iter().map(of).sum()
}

/// A status with zero in place of numbers that are left out.
pub fn filled(mut status: DeploymentStatus) -> DeploymentStatus {
    for count in [
        &mut status.replicas,
        &mut status.updated_replicas,
        &mut status.ready_replicas,
        &mut status.available_replicas,
        &mut status.unavailable_replicas,
    ] {
        count.get_or_insert(0);
    }
    status.conditions = status.conditions.filter(|c| !c.is_empty());
    status
}

/// The numbers and the Available condition; other conditions are carried over.
pub fn numbers(deployment: &Deployment, new: Option<&ReplicaSet>, sets: &[Arc<ReplicaSet>], now: Timestamp) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let available = sum(sets, |s| s.available_replicas);
    let total = plan::total(sets);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(sum(sets, |s| Some(s.replicas))),
        updated_replicas: Some(new.and_then(|s| s.status.as_ref()).map_or(0, |s| s.replicas)),
        ready_replicas: Some(sum(sets, |s| s.ready_replicas)),
        available_replicas: Some(available),
        unavailable_replicas: Some((total - available).max(0)),
        collision_count: old.collision_count,
        conditions: old.conditions,
        terminating_replicas: terminating(sets),
    };
    if available >= plan::least(deployment) {
        set(&mut status, "Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.".into(), now);
    } else {
        let message = "Deployment does not have minimum availability.".to_string();
        set(&mut status, "Available", "False", "MinimumReplicasUnavailable", message, now);
    }
    status
}

/// Whether all replicas are of the newest template and available, and none else is left.
pub fn complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = plan::replicas(deployment);
    let all = |count: Option<i32>| count.unwrap_or(0) == wanted;
    all(status.updated_replicas)
        && all(status.replicas)
        && all(status.available_replicas)
        && status.observed_generation >= deployment.metadata.generation
}

/// The condition of a type.
pub fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    status.conditions.iter_mut().for_each(|c| c.retain(|c| c.type_ != kind));
    status.conditions = status.conditions.take().filter(|c| !c.is_empty());
}

/// Sets a condition, unless it is there with the same status and reason. Its transition time moves only
/// with its status.
pub fn set(status: &mut DeploymentStatus, kind: &str, value: &str, reason: &str, message: String, now: Timestamp) {
    let condition = DeploymentCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    put(status, condition);
}

fn put(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    let old = condition(status, &new.type_).filter(|o| o.status == new.status);
    if old.is_some_and(|o| o.reason == new.reason) {
        return;
    }
    if let Some(old) = old {
        new.last_transition_time = old.last_transition_time.clone();
    }
    remove(status, &new.type_);
    status.conditions.get_or_insert_default().push(new);
}

/// For how long a rollout may stand still; nothing when for ever.
pub fn deadline(deployment: &Deployment) -> Option<i32> {
    deployment.spec.as_ref().and_then(|s| s.progress_deadline_seconds).filter(|d| *d != i32::MAX)
}

/// The status that tells of a pause that has begun or ended; nothing when it does already. So the time
/// of a pause does not count towards the deadline.
pub fn pause(deployment: &Deployment, now: Timestamp) -> Option<DeploymentStatus> {
    deadline(deployment)?;
    let mut status = deployment.status.clone().unwrap_or_default();
    let reason = condition(&status, "Progressing").and_then(|c| c.reason.as_deref());
    let told = reason == Some("DeploymentPaused");
    let paused = deployment.spec.as_ref().is_some_and(|s| s.paused == Some(true));
    if reason == Some("ProgressDeadlineExceeded") || told == paused {
        return None;
    }
    let (reason, message) = match paused {
        true => ("DeploymentPaused", "Deployment is paused"),
        false => ("DeploymentResumed", "Deployment is resumed"),
    };
    set(&mut status, "Progressing", "Unknown", reason, message.into(), now);
    Some(status)
}

/// Sets the Progressing and ReplicaFailure conditions of a rollout.
pub fn progress(deployment: &Deployment, new: Option<&ReplicaSet>, sets: &[Arc<ReplicaSet>], status: &mut DeploymentStatus, now: Timestamp) {
    let old = deployment.status.clone().unwrap_or_default();
    let current = condition(&old, "Progressing").cloned();
    let was_complete = status.replicas == status.updated_replicas
        && current.as_ref().is_some_and(|c| c.reason.as_deref() == Some("NewReplicaSetAvailable"));
    if deadline(deployment).is_none() {
        remove(status, "Progressing");
    } else if !was_complete {
        let (kind, name) = match new {
            Some(set) => ("ReplicaSet", set.name_any()),
            None => ("Deployment", deployment.name_any()),
        };
        if complete(deployment, status) {
            set(status, "Progressing", "True", "NewReplicaSetAvailable", format!("{kind} {name:?} has successfully progressed."), now);
        } else if progressed(&old, status) {
            // Its update time moves with each step, even when nothing else of it does.
            remove(status, "Progressing");
            set(status, "Progressing", "True", "ReplicaSetUpdated", format!("{kind} {name:?} is progressing."), now);
            if let Some(before) = current.filter(|c| c.status == "True")
                && let Some(c) = status.conditions.iter_mut().flatten().find(|c| c.type_ == "Progressing")
            {
                c.last_transition_time = before.last_transition_time;
            }
        } else if timed_out(deployment, status, now) {
            set(status, "Progressing", "False", "ProgressDeadlineExceeded", format!("{kind} {name:?} has timed out progressing."), now);
        }
    }
    match failure(new, sets) {
        Some(failure) => put(status, failure),
        None => remove(status, "ReplicaFailure"),
    }
}

fn progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let more = |count: fn(&DeploymentStatus) -> Option<i32>| count(new).unwrap_or(0) > count(old).unwrap_or(0);
    let left = |s: &DeploymentStatus| s.replicas.unwrap_or(0) - s.updated_replicas.unwrap_or(0);
    more(|s| s.updated_replicas) || left(new) < left(old) || more(|s| s.ready_replicas) || more(|s| s.available_replicas)
}

fn timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let Some((deadline, condition)) = deadline(deployment).zip(condition(status, "Progressing")) else { return false };
    match condition.reason.as_deref() {
        Some("NewReplicaSetAvailable") => false,
        Some("ProgressDeadlineExceeded") => true,
        _ => {
            let since = condition.last_update_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
            since + SignedDuration::from_secs(deadline.into()) < now
        }
    }
}

/// Why a set cannot make or delete its pods; the new one's reason comes first.
fn failure(new: Option<&ReplicaSet>, sets: &[Arc<ReplicaSet>]) -> Option<DeploymentCondition> {
    let of = |set: &ReplicaSet| set.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == "ReplicaFailure").cloned();
    let failure = new.and_then(of).or_else(|| sets.iter().find_map(|s| of(s)))?;
    Some(DeploymentCondition {
        type_: failure.type_,
        status: failure.status,
        reason: failure.reason,
        message: failure.message,
        last_update_time: failure.last_transition_time.clone(),
        last_transition_time: failure.last_transition_time,
    })
}

/// When to look again whether the deadline has passed.
pub fn next_check(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let (deadline, current) = deadline(deployment).zip(condition(status, "Progressing"))?;
    if complete(deployment, status) || current.reason.as_deref() == Some("ProgressDeadlineExceeded") {
        return None;
    }
    let since = current.last_update_time.as_ref().map_or(now, |t| t.0);
    let due = since + SignedDuration::from_secs(i64::from(deadline) + 1);
    Some(due.duration_since(now).max(SignedDuration::from_secs(1)).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(second: &str) -> Timestamp {
        format!("2026-01-01T00:00:{second}Z").parse().expect("a time")
    }

    fn deployment(status: Value) -> Deployment {
        serde_json::from_value(json!({"metadata": {"name": "d", "generation": 2}, "status": status, "spec": {
            "replicas": 3, "progressDeadlineSeconds": 10, "selector": {}, "template": {},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}}}))
        .expect("a deployment")
    }

    fn progressing(reason: &str) -> Value {
        let status = if reason == "ProgressDeadlineExceeded" { "False" } else { "True" };
        json!([{"type": "Progressing", "status": status, "reason": reason, "message": "m",
            "lastUpdateTime": at("00").to_string(), "lastTransitionTime": at("00").to_string()}])
    }

    fn set(name: &str, wanted: i32, status: Value) -> Arc<ReplicaSet> {
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"replicas": wanted, "selector": {}}, "status": status})).expect("a set"))
    }

    fn ready(name: &str, there: i32, available: i32) -> Arc<ReplicaSet> {
        set(name, there, json!({"replicas": there, "readyReplicas": available, "availableReplicas": available, "observedGeneration": 1, "terminatingReplicas": 1}))
    }

    fn told(d: &Deployment, sets: &[Arc<ReplicaSet>], now: Timestamp) -> DeploymentStatus {
        let new = sets.last().map(Arc::as_ref);
        let mut status = numbers(d, new, sets, now);
        progress(d, new, sets, &mut status, now);
        status
    }

    fn reason(status: &DeploymentStatus, kind: &str) -> String {
        condition(status, kind).map_or("none".into(), |c| format!("{} {}", c.status, c.reason.clone().unwrap_or_default()))
    }

    #[test]
    fn numbers_and_availability() {
        let d = deployment(json!({}));
        let status = told(&d, &[ready("old", 2, 1), ready("new", 2, 1)], at("00"));
        assert_eq!((status.replicas, status.updated_replicas, status.available_replicas), (Some(4), Some(2), Some(2)));
        assert_eq!((status.unavailable_replicas, status.terminating_replicas), (Some(2), Some(2)));
        assert_eq!(reason(&status, "Available"), "True MinimumReplicasAvailable");
        let status = told(&d, &[ready("old", 2, 0), ready("new", 2, 1)], at("00"));
        assert_eq!(reason(&status, "Available"), "False MinimumReplicasUnavailable");
        let silent = set("new", 1, json!({"replicas": 1, "observedGeneration": 1}));
        assert_eq!(told(&d, &[silent], at("00")).terminating_replicas, None, "a set of an older controller does not tell");
        assert_eq!(told(&d, &[set("new", 1, json!({"replicas": 0}))], at("00")).terminating_replicas, Some(0));
    }

    #[test]
    fn a_rollout_goes_on_completes_or_stands_still() {
        let before = |reason: &str| deployment(json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 2, "conditions": progressing(reason)}));
        let d = before("NewReplicaSetCreated");
        let status = told(&d, &[ready("old", 1, 0), ready("new", 3, 1)], at("05"));
        assert_eq!(reason(&status, "Progressing"), "True ReplicaSetUpdated");
        assert_eq!(condition(&status, "Progressing").and_then(|c| c.last_transition_time.clone()), Some(Time(at("00"))));
        assert_eq!(next_check(&d, &status, at("05")), Some(Duration::from_secs(11)));
        let status = told(&d, &[ready("new", 3, 3)], at("05"));
        assert_eq!(reason(&status, "Progressing"), "True NewReplicaSetAvailable");
        assert_eq!(next_check(&d, &status, at("05")), None);

        let stuck = [ready("old", 2, 0), ready("new", 2, 0)];
        let status = told(&d, &stuck, at("09"));
        assert_eq!((reason(&status, "Progressing").as_str(), next_check(&d, &status, at("09"))), ("True NewReplicaSetCreated", Some(Duration::from_secs(2))));
        let status = told(&d, &stuck, at("11"));
        assert_eq!(reason(&status, "Progressing"), "False ProgressDeadlineExceeded");
        assert_eq!(condition(&status, "Progressing").and_then(|c| c.message.clone()).as_deref(), Some("ReplicaSet \"new\" has timed out progressing."));
        assert_eq!(next_check(&d, &status, at("11")), None);
        let status = told(&before("ProgressDeadlineExceeded"), &[ready("old", 1, 0), ready("new", 3, 0)], at("20"));
        assert_eq!(reason(&status, "Progressing"), "True ReplicaSetUpdated", "a late step is one all the same");

        let done = deployment(json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "conditions": progressing("NewReplicaSetAvailable")}));
        let status = told(&done, &[ready("new", 3, 1)], at("40"));
        assert_eq!(reason(&status, "Progressing"), "True NewReplicaSetAvailable", "pods that fail later are no rollout");
    }

    #[test]
    fn without_a_deadline_there_is_no_progress_to_tell() {
        let mut d = deployment(json!({"conditions": progressing("ReplicaSetUpdated")}));
        d.spec.as_mut().expect("a spec").progress_deadline_seconds = Some(i32::MAX);
        let status = told(&d, &[ready("new", 3, 1)], at("40"));
        assert_eq!((reason(&status, "Progressing").as_str(), next_check(&d, &status, at("40"))), ("none", None));
        assert_eq!(pause(&d, at("40")), None);
    }

    #[test]
    fn a_pause_stops_the_clock() {
        let mut d = deployment(json!({"conditions": progressing("ReplicaSetUpdated")}));
        assert_eq!(pause(&d, at("01")), None);
        d.spec.as_mut().expect("a spec").paused = Some(true);
        let status = pause(&d, at("02")).expect("a status");
        assert_eq!(reason(&status, "Progressing"), "Unknown DeploymentPaused");
        d.status = Some(status);
        assert_eq!(pause(&d, at("03")), None);
        d.spec.as_mut().expect("a spec").paused = Some(false);
        assert_eq!(reason(&pause(&d, at("50")).expect("a status"), "Progressing"), "Unknown DeploymentResumed");
        d.status = deployment(json!({"conditions": progressing("ProgressDeadlineExceeded")})).status;
        d.spec.as_mut().expect("a spec").paused = Some(true);
        assert_eq!(pause(&d, at("50")), None, "what has timed out stays so");
    }

    #[test]
    fn failures_of_sets_are_told() {
        let d = deployment(json!({}));
        let failing = |name: &str, why: &str| {
            set(name, 1, json!({"replicas": 0, "conditions": [{"type": "ReplicaFailure", "status": "True", "reason": why, "message": "m"}]}))
        };
        assert_eq!(reason(&told(&d, &[failing("old", "A"), failing("new", "B")], at("00")), "ReplicaFailure"), "True B");
        assert_eq!(reason(&told(&d, &[failing("old", "A"), ready("new", 1, 0)], at("00")), "ReplicaFailure"), "True A");
        let mut healed = d.clone();
        healed.status = Some(told(&d, &[failing("new", "B")], at("00")));
        assert_eq!(reason(&told(&healed, &[ready("new", 1, 0)], at("01")), "ReplicaFailure"), "none");
    }

    #[test]
    fn what_is_left_out_is_none() {
        let full = filled(DeploymentStatus { conditions: Some(Vec::new()), ready_replicas: Some(2), ..DeploymentStatus::default() });
        assert_eq!((full.replicas, full.ready_replicas, full.available_replicas, full.conditions), (Some(0), Some(2), Some(0), None));
        let told = deployment(json!({"conditions": progressing("NewReplicaSetCreated")})).status.expect("a status");
        assert_eq!(filled(told).conditions.map_or(0, |c| c.len()), 1);
    }

    #[test]
    fn complete_is_each_number() {
        let d = deployment(json!({}));
        let of = |status: Value| complete(&d, &serde_json::from_value(status).expect("a status"));
        let with = |key: &str, n: i32| {
            let mut status = json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3});
            status[key] = n.into();
            of(status)
        };
        assert!(with("replicas", 3));
        assert!(!with("replicas", 4) && !with("updatedReplicas", 2) && !with("availableReplicas", 2) && !with("observedGeneration", 1));
    }

    #[test]
    fn each_number_that_improves_is_progress() {
        let of = |[replicas, updated, ready, available]: [i32; 4]| DeploymentStatus {
            replicas: Some(replicas),
            updated_replicas: Some(updated),
            ready_replicas: Some(ready),
            available_replicas: Some(available),
            ..DeploymentStatus::default()
        };
        let before = [5, 2, 3, 3];
        for better in [[6, 3, 3, 3], [4, 2, 3, 3], [5, 2, 4, 3], [5, 2, 3, 4]] {
            assert!(progressed(&of(before), &of(better)), "{better:?}");
            assert!(!progressed(&of(better), &of(before)), "{better:?} was better");
        }
        assert!(!progressed(&of(before), &of(before)));
    }

    #[test]
    fn a_condition_changes_with_its_status_or_reason() {
        let mut status = DeploymentStatus::default();
        let since = |status: &DeploymentStatus| condition(status, "Available").map(|c| (c.last_update_time.clone(), c.last_transition_time.clone()));
        super::set(&mut status, "Available", "True", "A", "m".into(), at("01"));
        super::set(&mut status, "Available", "True", "A", "m".into(), at("02"));
        assert_eq!(since(&status), Some((Some(Time(at("01"))), Some(Time(at("01"))))));
        super::set(&mut status, "Available", "True", "B", "m".into(), at("03"));
        assert_eq!(since(&status), Some((Some(Time(at("03"))), Some(Time(at("01"))))));
        super::set(&mut status, "Available", "False", "B", "m".into(), at("04"));
        assert_eq!(since(&status), Some((Some(Time(at("04"))), Some(Time(at("04"))))), "with the status the transition");
        assert_eq!(status.conditions.as_ref().map(Vec::len), Some(1));
    }

    #[test]
    fn a_rollout_that_begins_late_has_its_whole_time() {
        // The last one ended long ago; nothing of the new one is there yet.
        let d = deployment(json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 1, "readyReplicas": 3, "availableReplicas": 3, "conditions": progressing("NewReplicaSetAvailable")}));
        let status = told(&d, &[ready("old", 3, 3), ready("new", 1, 0)], at("59"));
        assert_eq!(reason(&status, "Progressing"), "True NewReplicaSetAvailable");
        // To the second it has not passed.
        let stuck = [ready("old", 2, 0), ready("new", 2, 0)];
        let d = deployment(json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 2, "conditions": progressing("ReplicaSetUpdated")}));
        assert_eq!(reason(&told(&d, &stuck, at("10")), "Progressing"), "True ReplicaSetUpdated");
    }
}
