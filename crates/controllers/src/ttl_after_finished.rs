//! Deletes ended jobs when their `ttlSecondsAfterFinished` are over.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Preconditions, PropagationPolicy};
use reconcile::{Queue, Requeue, run_workers};

use crate::Context;

/// What is to be done about a job.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// It has not ended, or stays for ever.
    Nothing,
    /// Its time is not over yet.
    Wait(Duration),
    Delete,
}

/// Decides.
pub fn plan(job: &Job, now: Timestamp) -> Plan {
    let ttl = job.spec.as_ref().and_then(|s| s.ttl_seconds_after_finished);
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut ends = conditions.filter(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True");
    let (Some(ttl), Some(end), None) = (ttl, ends.next(), &job.metadata.deletion_timestamp) else { return Plan::Nothing };
    let Some(finished) = &end.last_transition_time else { return Plan::Nothing };
    let left = SignedDuration::from_secs(i64::from(ttl)) - now.duration_since(finished.0);
    if left.is_positive() { Plan::Wait(left.unsigned_abs()) } else { Plan::Delete }
}

/// Removes a job with its pods, unless it has been changed meanwhile.
fn removal(job: &Job) -> DeleteParams {
    DeleteParams {
        propagation_policy: Some(PropagationPolicy::Foreground),
        preconditions: Some(Preconditions { uid: job.uid(), resource_version: job.resource_version() }),
        ..DeleteParams::default()
    }
}

/// Starts the controller.
pub fn start(context: &Context) {
    let jobs = context.informers.of::<Job>();
    let queue = Queue::<(String, String)>::new();
    let q = queue.clone();
    jobs.on_change(move |change| {
        if let Some(job) = change.new.as_ref().filter(|j| plan(j, Timestamp::now()) != Plan::Nothing) {
            q.add((job.namespace().unwrap_or_default(), job.name_any()));
        }
    });
    let client = context.client.clone();
    run_workers(&context.tasks, "ttl-after-finished", context.workers(5), queue, move |key: (String, String)| {
        let (client, jobs) = (client.clone(), jobs.clone());
        async move {
            let api = Api::<Job>::namespaced(client, &key.0);
            let Some(known) = jobs.get(&key.0, &key.1) else { return Ok(Requeue::No) };
            if let Plan::Wait(left) = plan(&known, Timestamp::now()) {
                return Ok(Requeue::After(left));
            }
            // The time may have been made longer a moment ago.
            let Some(job) = api.get_opt(&key.1).await? else { return Ok(Requeue::No) };
            match plan(&job, Timestamp::now()) {
                Plan::Nothing => return Ok(Requeue::No),
                Plan::Wait(left) => return Ok(Requeue::After(left)),
                Plan::Delete => {}
            }
            match api.delete(&key.1, &removal(&job)).await {
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
    use serde_json::{Value, json};

    fn planned(ttl: Value, end: &str, deleting: bool, now: &str) -> Plan {
        let condition = json!({"type": end, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let mut job = json!({"metadata": {"name": "j"}, "spec": {"ttlSecondsAfterFinished": ttl, "template": {}}, "status": {"conditions": [condition]}});
        if deleting {
            job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        plan(&serde_json::from_value(job).expect("a job"), now.parse().expect("a time"))
    }

    #[test]
    fn ended_jobs_go_when_their_time_is_over() {
        let (early, late) = ("2026-01-01T00:00:09Z", "2026-01-01T00:00:10Z");
        for end in ["Complete", "Failed"] {
            assert_eq!(planned(json!(10), end, false, early), Plan::Wait(Duration::from_secs(1)));
            assert_eq!(planned(json!(10), end, false, late), Plan::Delete);
        }
        assert_eq!(planned(json!(10), "Complete", false, "2025-12-31T23:59:00Z"), Plan::Wait(Duration::from_secs(70)), "the clock went back");
        assert_eq!(planned(json!(i32::MAX), "Complete", false, "2099-01-01T00:00:00Z"), Plan::Delete);
        assert_eq!(planned(json!(0), "Complete", false, "2026-01-01T00:00:00Z"), Plan::Delete);
        assert_eq!(planned(json!(10), "Suspended", false, late), Plan::Nothing, "it has not ended");
        assert_eq!(planned(Value::Null, "Complete", false, late), Plan::Nothing, "it stays");
        assert_eq!(planned(json!(10), "Complete", true, late), Plan::Nothing, "it is going already");
    }

    #[test]
    fn what_goes_is_the_job_as_it_was_read_and_its_pods_before_it() {
        let job: Job = serde_json::from_value(serde_json::json!({"metadata": {"name": "j", "uid": "u", "resourceVersion": "7"}})).expect("a job");
        let sent = serde_json::to_value(removal(&job)).expect("JSON");
        assert_eq!((&sent["propagationPolicy"], &sent["preconditions"]), (&"Foreground".into(), &serde_json::json!({"uid": "u", "resourceVersion": "7"})));
    }
}
