//! What a job needs next, from its status and its pods. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::{FINALIZER, INDEX, indexes};
use crate::pods;

/// How a job ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub succeeded: bool,
    pub reason: &'static str,
    pub message: String,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Ended pods that are to be counted now, by how they ended.
    pub count_succeeded: Vec<Arc<Pod>>,
    pub count_failed: Vec<Arc<Pod>>,
    /// Pods to create: of an indexed job with their index.
    pub create: Vec<Option<u32>>,
    /// Pods to delete.
    pub delete: Vec<Arc<Pod>>,
    pub active: i32,
    pub ready: i32,
    pub terminating: i32,
    pub completed_indexes: Option<String>,
    pub end: Option<End>,
    /// When to look again though nothing changes.
    pub again: Option<Duration>,
}

/// The first back-off after a failed pod; it doubles with each further failure.
const BACKOFF: SignedDuration = SignedDuration::from_secs(10);
const MAX_BACKOFF: SignedDuration = SignedDuration::from_mins(10);
/// Most pods created in one pass.
const BURST: usize = 500;

/// Whether the pod still has to be counted.
pub fn tracked(pod: &Pod) -> bool {
    pod.finalizers().iter().any(|f| f == FINALIZER)
}

/// The completion index of a pod.
pub fn index(pod: &Pod) -> Option<u32> {
    pod.annotations().get(INDEX)?.parse().ok()
}

fn failed(job: &Job, pod: &Pod) -> bool {
    let replace_terminating = job.spec.as_ref().and_then(|s| s.pod_replacement_policy.as_deref()) != Some("Failed");
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => replace_terminating && pod.metadata.deletion_timestamp.is_some(),
    }
}

/// Whether the job has ended already.
pub fn finished(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")
}

/// Decides. `owned` are the pods that the job controls.
pub fn plan(job: &Job, owned: &[Arc<Pod>], now: Timestamp) -> Plan {
    let spec = job.spec.clone().unwrap_or_default();
    let status = job.status.clone().unwrap_or_default();
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let parallelism = spec.parallelism.unwrap_or(1).max(0);
    let (known_ok, known_failed) = uncounted(&status);
    let mut plan = Plan::default();
    let mut active: Vec<Arc<Pod>> = Vec::new();
    let mut restarts = 0;
    let mut last_failure: Option<Timestamp> = None;
    for pod in owned {
        let uid = pod.uid().unwrap_or_default();
        if pods::phase(pod) == "Succeeded" {
            if tracked(pod) && !known_ok.contains(&uid) {
                plan.count_succeeded.push(pod.clone());
            }
        } else if failed(job, pod) {
            last_failure = last_failure.max(Some(ended(pod).unwrap_or(now)));
            if tracked(pod) && !known_failed.contains(&uid) {
                plan.count_failed.push(pod.clone());
            }
        } else if pod.metadata.deletion_timestamp.is_none() {
            active.push(pod.clone());
        }
        if pod.metadata.deletion_timestamp.is_some() && !matches!(pods::phase(pod), "Succeeded" | "Failed") {
            plan.terminating += 1;
        }
        restarts += pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten()).map(|c| c.restart_count).sum::<i32>();
    }
    plan.active = active.len() as i32;
    plan.ready = active.iter().filter(|p| pods::is_ready(p)).count() as i32;
    let failures = status.failed.unwrap_or(0) + known_failed.len() as i32 + plan.count_failed.len() as i32;
    let mut done: BTreeSet<u32> = indexes::parse(status.completed_indexes.as_deref().unwrap_or(""));
    let successes = if indexed {
        done.extend(plan.count_succeeded.iter().filter_map(|p| index(p)).filter(|i| (*i as i64) < i64::from(spec.completions.unwrap_or(0))));
        plan.completed_indexes = Some(indexes::format(&done));
        done.len() as i32
    } else {
        status.succeeded.unwrap_or(0) + known_ok.len() as i32 + plan.count_succeeded.len() as i32
    };

    let suspended = spec.suspend == Some(true);
    let limit = spec.backoff_limit.unwrap_or(6);
    let on_failure = spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) == Some("OnFailure");
    let started = status.start_time.as_ref().map(|t| t.0);
    plan.end = pending_end(&status);
    if plan.end.is_none() {
        let deadline = spec.active_deadline_seconds.zip(started).filter(|_| !suspended);
        let due = deadline.map(|(seconds, start)| start + SignedDuration::from_secs(seconds));
        plan.end = if failures > limit || (on_failure && (if limit == 0 { restarts > 0 } else { restarts >= limit })) {
            Some(End { succeeded: false, reason: "BackoffLimitExceeded", message: "Job has reached the specified backoff limit".into() })
        } else if due.is_some_and(|d| now >= d) {
            Some(End { succeeded: false, reason: "DeadlineExceeded", message: "Job was active longer than specified deadline".into() })
        } else if match spec.completions {
            Some(completions) => successes >= completions,
            None => successes > 0 && plan.active == 0,
        } {
            Some(End { succeeded: true, reason: "CompletionsReached", message: "Reached expected number of succeeded pods".into() })
        } else {
            plan.again = due.map(|d| d.duration_since(now).unsigned_abs());
            None
        };
    }
    if plan.end.is_some() || suspended {
        plan.delete = active;
        return plan;
    }

    let wanted = match spec.completions {
        None if successes > 0 => plan.active,
        None => parallelism,
        Some(completions) => parallelism.min((completions - successes).max(0)),
    };
    if plan.active > wanted {
        active.sort_by_key(|p| (pods::is_ready(p), std::cmp::Reverse(p.metadata.creation_timestamp.as_ref().map(|t| t.0))));
        plan.delete = active.into_iter().take((plan.active - wanted) as usize).collect();
    } else if plan.active < wanted {
        let wait = backoff(failures, last_failure, now);
        if let Some(wait) = wait {
            plan.again = Some(plan.again.map_or(wait, |a| a.min(wait)));
            return plan;
        }
        // A pod that is still on its way out holds its place, unless it counts as failed already.
        let leaving = if spec.pod_replacement_policy.as_deref() == Some("Failed") { plan.terminating } else { 0 };
        let missing = ((wanted - plan.active - leaving).max(0) as usize).min(BURST);
        plan.create = if indexed {
            let taken: BTreeSet<u32> = active.iter().filter_map(|p| index(p)).collect();
            let all = 0..spec.completions.unwrap_or(0).max(0) as u32;
            all.filter(|i| !done.contains(i) && !taken.contains(i)).take(missing).map(Some).collect()
        } else {
            vec![None; missing]
        };
    }
    plan
}

/// The end that was decided on earlier, while its last pods were still there.
fn pending_end(status: &JobStatus) -> Option<End> {
    let find = |kind: &str| status.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == "True");
    if let Some(condition) = find("FailureTarget") {
        let reason = match condition.reason.as_deref() {
            Some("DeadlineExceeded") => "DeadlineExceeded",
            _ => "BackoffLimitExceeded",
        };
        return Some(End { succeeded: false, reason, message: condition.message.clone().unwrap_or_default() });
    }
    let condition = find("SuccessCriteriaMet")?;
    Some(End { succeeded: true, reason: "CompletionsReached", message: condition.message.clone().unwrap_or_default() })
}

/// The uids that the status lists as ended but not yet added up.
pub fn uncounted(status: &JobStatus) -> (BTreeSet<String>, BTreeSet<String>) {
    let lists = status.uncounted_terminated_pods.clone().unwrap_or_default();
    (lists.succeeded.into_iter().flatten().collect(), lists.failed.into_iter().flatten().collect())
}

fn ended(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let end = |c: &k8s_openapi::api::core::v1::ContainerStatus| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|t| t.0);
    statuses.iter().filter_map(end).max().or_else(|| pod.metadata.deletion_timestamp.as_ref().map(|t| t.0))
}

fn backoff(failures: i32, last: Option<Timestamp>, now: Timestamp) -> Option<Duration> {
    let last = last?;
    if failures <= 0 {
        return None;
    }
    let delay = BACKOFF.checked_mul(1 << (failures - 1).min(8)).unwrap_or(MAX_BACKOFF).min(MAX_BACKOFF);
    let left = delay - now.duration_since(last);
    left.is_positive().then(|| left.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn job(spec: Value, status: Value) -> Job {
        let mut full = json!({"template": {"spec": {"containers": [], "restartPolicy": "Never"}}});
        full.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
        serde_json::from_value(json!({"metadata": {"name": "j", "uid": "j"}, "spec": full, "status": status})).expect("a job")
    }

    fn pod(uid: &str, phase: &str, index: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": uid, "uid": uid, "finalizers": [FINALIZER], "annotations": {INDEX: index}},
                "status": {"phase": phase, "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:00:00Z"}}}]}}))
            .expect("a pod"),
        )
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn runs_to_completion_and_counts_each_pod_once() {
        let now = at("2026-01-01T01:00:00Z");
        let new = job(json!({"parallelism": 2, "completions": 3}), json!({}));
        assert_eq!(plan(&new, &[], now).create.len(), 2);
        let pods = [pod("a", "Succeeded", ""), pod("b", "Running", "")];
        let p = plan(&new, &pods, now);
        assert_eq!((p.count_succeeded.len(), p.create.len(), p.active), (1, 1, 1));
        let noted = job(json!({"parallelism": 2, "completions": 3}), json!({"succeeded": 1, "uncountedTerminatedPods": {"succeeded": ["a"]}}));
        let p = plan(&noted, &pods, now);
        assert_eq!((p.count_succeeded.len(), p.create.len()), (0, 0), "two are done, one is running");
        let all = job(json!({"parallelism": 2, "completions": 3}), json!({"succeeded": 3}));
        assert!(plan(&all, &[], now).end.is_some_and(|e| e.succeeded));
    }

    #[test]
    fn failures_back_off_and_then_end_the_job() {
        let twice = job(json!({"backoffLimit": 2}), json!({"failed": 1}));
        let p = plan(&twice, &[pod("a", "Failed", "")], at("2026-01-01T00:00:05Z"));
        assert_eq!((p.create.len(), p.again), (0, Some(Duration::from_secs(15))));
        let p = plan(&twice, &[pod("a", "Failed", "")], at("2026-01-01T00:00:21Z"));
        assert_eq!(p.create.len(), 1);
        let thrice = job(json!({"backoffLimit": 2}), json!({"failed": 2}));
        let p = plan(&thrice, &[pod("a", "Failed", ""), pod("b", "Running", "")], at("2026-01-01T01:00:00Z"));
        assert_eq!(p.end.as_ref().map(|e| (e.succeeded, e.reason)), Some((false, "BackoffLimitExceeded")));
        assert_eq!(p.delete.len(), 1);
    }

    #[test]
    fn an_indexed_job_fills_its_gaps() {
        let now = at("2026-01-01T01:00:00Z");
        let j = job(json!({"completionMode": "Indexed", "parallelism": 3, "completions": 4}), json!({"completedIndexes": "1"}));
        let p = plan(&j, &[pod("a", "Succeeded", "0"), pod("b", "Running", "3")], now);
        assert_eq!(p.create, [Some(2)]);
        assert_eq!(p.completed_indexes.as_deref(), Some("0,1"));
    }
}
