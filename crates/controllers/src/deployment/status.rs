//! The status of a deployment, and its Progressing and Available conditions.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::plan;

fn sum(sets: &[Arc<ReplicaSet>], count: impl Fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> Option<i32>) -> i32 {
    sets.iter().filter_map(|s| s.status.as_ref()).map(|s| count(s).unwrap_or(0)).sum()
}

/// The numbers alone; conditions are carried over.
pub fn numbers(deployment: &Deployment, new: Option<&ReplicaSet>, sets: &[Arc<ReplicaSet>]) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let available = sum(sets, |s| s.available_replicas);
    let total: i32 = sets.iter().map(|s| plan::wanted(s)).sum();
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(sum(sets, |s| Some(s.replicas))),
        updated_replicas: Some(new.and_then(|s| s.status.as_ref()).map_or(0, |s| s.replicas)),
        ready_replicas: Some(sum(sets, |s| s.ready_replicas)),
        available_replicas: Some(available),
        unavailable_replicas: Some((total - available).max(0)),
        collision_count: old.collision_count,
        conditions: old.conditions,
        terminating_replicas: None,
    }
}

/// Whether all replicas are of the newest template and available, and none else is left.
pub fn complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Some(deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1));
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation >= deployment.metadata.generation
}

/// The condition of a type.
pub fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

/// Sets a condition; its transition time moves only with its status.
pub fn set(status: &mut DeploymentStatus, kind: &str, value: &str, reason: &str, message: String, now: Timestamp) {
    let old = condition(status, kind).cloned();
    if old.as_ref().is_some_and(|o| o.status == value && o.reason.as_deref() == Some(reason) && o.message.as_ref() == Some(&message)) {
        return;
    }
    let transition = old.filter(|o| o.status == value).and_then(|o| o.last_transition_time).unwrap_or(Time(now));
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|c| c.type_ != kind);
    conditions.push(DeploymentCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(transition),
    });
}

/// Sets the Available condition by the numbers.
pub fn availability(deployment: &Deployment, status: &mut DeploymentStatus, now: Timestamp) {
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let least = if plan::recreates(deployment) { wanted } else { wanted - plan::fence(deployment).unavailable };
    if status.available_replicas.unwrap_or(0) >= least {
        set(status, "Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.".into(), now);
    } else {
        let message = "Deployment does not have minimum availability.".to_string();
        set(status, "Available", "False", "MinimumReplicasUnavailable", message, now);
    }
}

/// Sets the Progressing condition. Returns when to look again for the deadline.
pub fn progress(deployment: &Deployment, new: Option<&ReplicaSet>, status: &mut DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let deadline = deployment.spec.as_ref().and_then(|s| s.progress_deadline_seconds).filter(|d| *d != i32::MAX)?;
    let old = deployment.status.clone().unwrap_or_default();
    let (subject, name) = match new {
        Some(set) => ("ReplicaSet", set.name_any()),
        None => ("Deployment", deployment.name_any()),
    };
    let current = condition(status, "Progressing").cloned();
    let was_complete = current.as_ref().is_some_and(|c| c.reason.as_deref() == Some("NewReplicaSetAvailable"))
        && status.replicas == status.updated_replicas;
    if complete(deployment, status) {
        set(status, "Progressing", "True", "NewReplicaSetAvailable", format!("{subject} \"{name}\" has successfully progressed."), now);
        return None;
    }
    if was_complete {
        return None;
    }
    let old_left = |s: &DeploymentStatus| s.replicas.unwrap_or(0) - s.updated_replicas.unwrap_or(0);
    let progressed = status.updated_replicas > old.updated_replicas.or(Some(0))
        || old_left(status) < old_left(&old)
        || status.ready_replicas > old.ready_replicas.or(Some(0))
        || status.available_replicas > old.available_replicas.or(Some(0));
    let message = format!("{subject} \"{name}\" is progressing.");
    if progressed {
        // The update time must move with each step, even when nothing else of the condition does.
        status.conditions.iter_mut().for_each(|c| c.retain(|c| c.type_ != "Progressing"));
        set(status, "Progressing", "True", "ReplicaSetUpdated", message, now);
        if let Some(old) = current.filter(|c| c.status == "True")
            && let Some(c) = status.conditions.iter_mut().flatten().find(|c| c.type_ == "Progressing")
        {
            c.last_transition_time = old.last_transition_time;
        }
        return Some(Duration::from_secs(deadline as u64 + 1));
    }
    let current = match current {
        Some(c) => c,
        None => {
            set(status, "Progressing", "True", "ReplicaSetUpdated", message, now);
            return Some(Duration::from_secs(deadline as u64 + 1));
        }
    };
    if current.reason.as_deref() == Some("ProgressDeadlineExceeded") || deployment.spec.as_ref().is_some_and(|s| s.paused == Some(true)) {
        return None;
    }
    let due = current.last_update_time.map_or(now, |t| t.0) + SignedDuration::from_secs(i64::from(deadline));
    if now >= due {
        let message = format!("{subject} \"{name}\" has timed out progressing.");
        set(status, "Progressing", "False", "ProgressDeadlineExceeded", message, now);
        return None;
    }
    Some(due.duration_since(now).unsigned_abs() + Duration::from_millis(100))
}
