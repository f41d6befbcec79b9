//! Takes back a pod's condition `DisruptionTarget` when the pod was not deleted after all.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use reconcile::{Informer, Queue, Requeue, run_workers};
use serde_json::{Value, json};

use crate::pod::Pod;
use crate::{Context, pods};

/// How long whoever announced a disruption may take to delete the pod.
const TIMEOUT: SignedDuration = SignedDuration::from_mins(2);

/// How long until the pod's announcement is stale; zero when it is. None when there is none that
/// could become so: the kubelet's own are always carried out.
pub fn stale_in(pod: &Pod, now: Timestamp) -> Option<Duration> {
    if pod.metadata.deletion_timestamp.is_some() || matches!(pods::phase(pod), "Succeeded" | "Failed") {
        return None;
    }
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let target = conditions.iter().find(|c| c.type_ == "DisruptionTarget" && c.status == "True")?;
    if target.reason.as_deref() == Some("TerminationByKubelet") {
        return None;
    }
    let left = TIMEOUT - now.duration_since(target.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0));
    Some(if left.is_positive() { left.unsigned_abs() } else { Duration::ZERO })
}

/// The strategic merge patch that takes the announcement back: of that very pod, as it was seen.
fn taking_back(pod: &Pod, now: Timestamp) -> Value {
    let condition = json!({"type": "DisruptionTarget", "status": "False", "reason": null, "message": null, "lastTransitionTime": Time(now)});
    json!({"metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version}, "status": {"conditions": [condition]}})
}

/// Starts the worker.
pub fn start(context: &Context, known: &Informer<Pod>) {
    let queue = Queue::<(String, String)>::new();
    let q = queue.clone();
    known.on_change(move |change| {
        if let Some(pod) = &change.new
            && let Some(left) = stale_in(pod, Timestamp::now())
        {
            q.add_after((pod.namespace().unwrap_or_default(), pod.name_any()), left);
        }
    });
    let (client, known) = (context.client.clone(), known.clone());
    run_workers(&context.tasks, "stale disruptions", 1, queue, move |key: (String, String)| {
        let (client, known) = (client.clone(), known.clone());
        async move {
            let now = Timestamp::now();
            let Some(pod) = known.get(&key.0, &key.1) else { return Ok(Requeue::No) };
            match stale_in(&pod, now) {
                None => return Ok(Requeue::No),
                Some(left) if !left.is_zero() => return Ok(Requeue::After(left)),
                Some(_) => {}
            }
            let api = Api::<Pod>::namespaced(client, &key.0);
            match api.patch_status(&key.1, &PatchParams::default(), &Patch::Strategic(taking_back(&pod, now))).await {
                Ok(_) => Ok(Requeue::No),
                Err(kube::Error::Api(s)) if s.code == 404 => Ok(Requeue::No),
                Err(kube::Error::Api(s)) if s.code == 409 => Ok(Requeue::After(Duration::from_millis(100))),
                Err(error) => Err(error),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        format!("2026-01-01T00:{text}Z").parse().expect("a time")
    }

    fn pod(status: &str, reason: &str, phase: &str, deleting: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "deletionTimestamp": deleting}, "status": {"phase": phase, "conditions": [
            {"type": "DisruptionTarget", "status": status, "reason": reason, "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
        .expect("a pod")
    }

    #[test]
    fn announcements_are_stale_after_two_minutes() {
        let running = pod("True", "EvictionByEvictionAPI", "Running", Value::Null);
        assert_eq!(stale_in(&running, at("01:30")), Some(Duration::from_secs(30)));
        assert_eq!(stale_in(&running, at("02:00")), Some(Duration::ZERO));
        let condition = &taking_back(&running, at("02:00"))["status"]["conditions"][0];
        assert_eq!(*condition, json!({"type": "DisruptionTarget", "status": "False", "reason": null, "message": null, "lastTransitionTime": "2026-01-01T00:02:00Z"}));
    }

    #[test]
    fn others_stay() {
        for pod in [
            pod("False", "EvictionByEvictionAPI", "Running", Value::Null),
            pod("True", "TerminationByKubelet", "Running", Value::Null),
            pod("True", "EvictionByEvictionAPI", "Failed", Value::Null),
            pod("True", "EvictionByEvictionAPI", "Running", json!("2026-01-01T00:00:00Z")),
        ] {
            assert_eq!(stale_in(&pod, at("09:00")), None);
        }
    }
}
