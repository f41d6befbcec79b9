//! Whole passes over jobs, planned and settled without a server: what is done, and what is not.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::backoff::Record;
use super::plan::{Action, Input, NewPod, Plan, finished, plan};
use super::settle::{Outcome, Settled, add_up, finish, settle};
use super::{FINALIZER, INDEX, INDEX_FAILURES, INDEX_IGNORED};

use crate::pod::Pod;

fn at(text: &str) -> Timestamp {
    format!("2026-01-01T{text}Z").parse().expect("a time")
}

/// A job with these fields over upstream's defaults.
fn job(spec: Value, status: Value) -> Job {
    let mut full = json!({"parallelism": 1, "completions": 1, "backoffLimit": 6, "completionMode": "NonIndexed",
        "template": {"spec": {"containers": [], "restartPolicy": "Never"}}});
    full.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
    if full["completions"].is_null() {
        full.as_object_mut().expect("an object").remove("completions");
    }
    serde_json::from_value(json!({"metadata": {"name": "j", "uid": "j"}, "spec": full, "status": status})).expect("a job")
}

/// A tracked pod whose container, when the phase is a last one, ended at midnight.
fn pod(uid: &str, phase: &str) -> Value {
    let mut pod = json!({"metadata": {"name": uid, "namespace": "a", "uid": uid, "finalizers": [FINALIZER], "annotations": {}}, "status": {"phase": phase}});
    if matches!(phase, "Succeeded" | "Failed") {
        let code = i32::from(phase == "Failed");
        pod["status"]["containerStatuses"] = json!([{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": code, "finishedAt": "2026-01-01T00:00:00Z"}}}]);
    }
    pod
}

fn of_index(index: u32, phase: &str) -> Value {
    let mut pod = pod(&format!("p{index}"), phase);
    pod["metadata"]["annotations"][INDEX] = index.to_string().into();
    pod
}

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    object.pointer_mut(parent).expect("the parent")[key] = value;
    object
}

/// One pass; all that was to be created and deleted is.
struct Pass {
    plan: Plan,
    settled: Settled,
    /// The status after finalizers were removed, and whether the job has ended.
    status: JobStatus,
    ended: bool,
}

fn pass_knowing(job: &Job, pods: &[Value], now: &str, caught_up: bool, backoff: Record) -> Pass {
    let pods: Vec<Arc<Pod>> = pods.iter().map(|p| Arc::new(serde_json::from_value(p.clone()).expect("a pod"))).collect();
    let untracked = HashSet::new();
    let input = Input { job, pods: &pods, caught_up, untracked: &untracked, backoff, now: at(now) };
    let plan = plan(&input);
    let outcome = match &plan.action {
        Action::Nothing => Outcome::default(),
        Action::Create(new) => Outcome { created: new.len(), ..Outcome::default() },
        Action::End(gone) | Action::Delete(gone) => {
            Outcome { deleted: gone.len(), deleted_ready: gone.iter().filter(|p| crate::pods::is_ready(p)).count(), created: 0 }
        }
    };
    let mut settled = settle(&input, &plan, outcome);
    let mut status = settled.status.clone();
    for pod in &settled.untrack {
        settled.with_finalizer.remove(&pod.uid().unwrap_or_default());
    }
    add_up(&mut status, &settled.with_finalizer);
    let ended = settled.end.as_ref().is_some_and(|end| finish(&mut status, end, at(now)));
    Pass { plan, settled, status, ended }
}

fn pass(job: &Job, pods: &[Value], now: &str) -> Pass {
    pass_knowing(job, pods, now, true, Record::default())
}

impl Pass {
    fn created(&self) -> Vec<NewPod> {
        match &self.plan.action {
            Action::Create(new) => new.clone(),
            _ => Vec::new(),
        }
    }

    fn indexes(&self) -> Vec<u32> {
        self.created().iter().filter_map(|p| p.index).collect()
    }

    fn deleted(&self) -> Vec<String> {
        match &self.plan.action {
            Action::End(gone) | Action::Delete(gone) => gone.iter().map(|p| p.name_any()).collect(),
            _ => Vec::new(),
        }
    }

    fn untracked(&self) -> Vec<String> {
        self.settled.untrack.iter().map(|p| p.name_any()).collect()
    }

    /// Types and reasons of the conditions that hold.
    fn conditions(&self) -> Vec<String> {
        let all = self.status.conditions.iter().flatten().filter(|c| c.status == "True");
        all.map(|c| format!("{} {}", c.type_, c.reason.as_deref().unwrap_or(""))).collect()
    }
}

const LATE: &str = "01:00:00";

#[test]
fn runs_to_completion_and_counts_each_pod_once() {
    let three = json!({"parallelism": 2, "completions": 3});
    let p = pass(&job(three.clone(), json!({})), &[], LATE);
    assert_eq!((p.created().len(), p.status.active, p.status.start_time.is_some()), (2, Some(2), true));
    let pods = [pod("a", "Succeeded"), pod("b", "Running")];
    let p = pass(&job(three.clone(), json!({"active": 2})), &pods, LATE);
    assert_eq!((p.created().len(), p.untracked(), p.status.active), (1, vec!["a".to_string()], Some(2)));
    assert_eq!(p.settled.status.uncounted_terminated_pods.expect("lists").succeeded, Some(vec!["a".to_string()]));
    assert_eq!(p.status.succeeded, Some(1), "added up when the finalizer is gone");
    // A crash after the first write: the pod is listed and still has its finalizer.
    let noted = job(three.clone(), json!({"uncountedTerminatedPods": {"succeeded": ["a"]}}));
    let p = pass(&noted, &pods, LATE);
    assert_eq!((p.status.succeeded, p.untracked()), (Some(1), vec!["a".to_string()]));
    // A crash after the finalizer's removal: it is listed and has none.
    let gone = with(pod("a", "Succeeded"), "/metadata/finalizers", json!([]));
    let p = pass(&noted, &[gone, pod("b", "Running")], LATE);
    assert_eq!((p.status.succeeded, p.untracked().len(), p.settled.write), (Some(1), 0, true));
    let p = pass(&job(three, json!({"succeeded": 3, "startTime": "2026-01-01T00:00:00Z"})), &[], LATE);
    assert_eq!(p.conditions(), ["SuccessCriteriaMet CompletionsReached", "Complete CompletionsReached"]);
    assert!(p.ended && p.status.completion_time.is_some());
}

#[test]
fn nothing_is_written_when_nothing_changed() {
    let status = json!({"active": 1, "ready": 0, "terminating": 0, "startTime": "2026-01-01T00:00:00Z", "uncountedTerminatedPods": {}});
    let p = pass(&job(json!({}), status), &[pod("a", "Running")], LATE);
    assert!(!p.settled.write && p.plan.action == Action::Nothing && !p.ended);
    assert_eq!(p.status.start_time.map(|t| t.0), Some(at("00:00:00")), "it began when it began");
}

#[test]
fn creates_nothing_before_earlier_pods_are_seen() {
    let p = pass_knowing(&job(json!({}), json!({})), &[], LATE, false, Record::default());
    assert_eq!(p.plan.action, Action::Nothing);
    let leaving = serde_json::from_value::<Job>(json!({"metadata": {"uid": "j", "deletionTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"parallelism": 1, "completions": 1, "template": {"spec": {"containers": []}}}}));
    assert_eq!(pass(&leaving.expect("a job"), &[], LATE).plan.action, Action::Nothing);
}

#[test]
fn a_stale_pod_that_was_counted_is_not_counted_again() {
    let job = job(json!({"completions": 2}), json!({"succeeded": 1}));
    let pods = [Arc::new(serde_json::from_value(pod("a", "Succeeded")).expect("a pod"))];
    let untracked = HashSet::from(["a".to_string()]);
    let input = Input { job: &job, pods: &pods, caught_up: true, untracked: &untracked, backoff: Record::default(), now: at(LATE) };
    let plan = plan(&input);
    let settled = settle(&input, &plan, Outcome::default());
    assert_eq!((plan.succeeded, settled.untrack.len()), (1, 0));
}

#[test]
fn failures_back_off_and_then_end_the_job() {
    let p = pass(&job(json!({"backoffLimit": 2}), json!({})), &[pod("a", "Failed")], "00:00:04");
    assert_eq!((p.plan.action.clone(), p.plan.again), (Action::Nothing, Some(Duration::from_secs(6))));
    assert_eq!((p.status.failed, p.plan.backoff.failures), (Some(1), 1));
    let twice = Record { failures: 2, last: Some(at("00:00:00")) };
    let counted = job(json!({"backoffLimit": 2}), json!({"failed": 2}));
    let p = pass_knowing(&counted, &[], "00:00:19", true, twice);
    assert_eq!((p.created().len(), p.plan.again), (0, Some(Duration::from_secs(1))));
    assert_eq!(pass_knowing(&counted, &[], "00:00:20", true, twice).created().len(), 1);
    let p = pass(&counted, &[pod("a", "Failed"), pod("b", "Running")], LATE);
    assert_eq!(p.deleted(), ["b"]);
    assert_eq!(p.conditions(), ["FailureTarget BackoffLimitExceeded"], "a pod is on its way out");
    assert_eq!((p.status.failed, p.status.active, p.status.terminating, p.ended), (Some(4), None, Some(1), false));
    let target = json!([{"type": "FailureTarget", "status": "True", "reason": "BackoffLimitExceeded", "message": "m"}]);
    let p = pass(&job(json!({"backoffLimit": 2}), json!({"failed": 4, "conditions": target, "terminating": 1})), &[], LATE);
    assert_eq!(p.conditions(), ["FailureTarget BackoffLimitExceeded", "Failed BackoffLimitExceeded"]);
    assert!(p.ended && p.status.completion_time.is_none());
}

#[test]
fn restarts_in_place_count_as_failures() {
    let spec = |limit: i32| json!({"backoffLimit": limit, "template": {"spec": {"containers": [], "restartPolicy": "OnFailure"}}});
    let restarted = |n: i32| with(pod("a", "Running"), "/status/containerStatuses",
        json!([{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": n}]));
    let ends = |limit, n| pass(&job(spec(limit), json!({})), &[restarted(n)], LATE).plan.end.is_some();
    assert_eq!([ends(0, 0), ends(0, 1), ends(3, 2), ends(3, 3)], [false, true, false, true]);
    assert!(pass(&job(json!({"backoffLimit": 0}), json!({})), &[restarted(5)], LATE).plan.end.is_none(), "restartPolicy Never");
}

#[test]
fn deadlines() {
    let spec = json!({"activeDeadlineSeconds": 60});
    let started = json!({"startTime": "2026-01-01T00:00:00Z"});
    let p = pass(&job(spec.clone(), started.clone()), &[pod("a", "Running")], "00:00:20");
    assert_eq!((p.plan.end.clone(), p.plan.again), (None, Some(Duration::from_secs(40))));
    let p = pass(&job(spec.clone(), started.clone()), &[pod("a", "Running")], "00:01:00");
    assert_eq!((p.deleted(), p.conditions()), (vec!["a".to_string()], vec!["FailureTarget DeadlineExceeded".to_string()]));
    let mut suspended = spec;
    suspended["suspend"] = true.into();
    assert!(pass(&job(suspended, started), &[], LATE).plan.end.is_none(), "time stands still for a suspended job");
}

#[test]
fn suspends_and_resumes() {
    let running = with(pod("a", "Running"), "/status/conditions", json!([{"type": "Ready", "status": "True"}]));
    let status = json!({"active": 1, "ready": 1, "startTime": "2026-01-01T00:00:00Z"});
    let p = pass(&job(json!({"suspend": true}), status), &[running], LATE);
    assert!(matches!(p.plan.action, Action::Delete(_)), "these pods count neither as failed nor as done");
    assert_eq!((p.deleted(), p.conditions()), (vec!["a".to_string()], vec!["Suspended JobSuspended".to_string()]));
    assert_eq!((p.settled.event, p.status.start_time.clone()), (Some(("Suspended", "Job suspended")), None));
    assert_eq!((p.status.ready, p.status.terminating, p.status.failed), (Some(0), Some(1), None));
    let mut status = serde_json::to_value(&p.status).expect("json");
    status["terminating"] = 0.into();
    let p = pass(&job(json!({"suspend": true}), status.clone()), &[], LATE);
    assert!(p.settled.event.is_none() && !p.settled.write && p.created().is_empty());
    let p = pass(&job(json!({}), status), &[], LATE);
    assert_eq!((p.settled.event, p.created().len()), (Some(("Resumed", "Job resumed")), 1));
    assert_eq!(p.status.start_time.as_ref().map(|t| t.0), Some(at(LATE)));
    let resumed = &p.status.conditions.as_ref().expect("conditions")[0];
    assert_eq!((resumed.status.as_str(), resumed.reason.as_deref()), ("False", Some("JobResumed")));
    let never = pass(&job(json!({}), json!({})), &[], LATE);
    assert!(never.status.conditions.is_none(), "a job that was never suspended has no such condition");
}

#[test]
fn parallelism_may_be_none_or_change() {
    let p = pass(&job(json!({"parallelism": 0}), json!({})), &[], LATE);
    assert_eq!((p.plan.action.clone(), p.ended), (Action::Nothing, false));
    let pods = [pod("a", "Running"), pod("b", "Pending"), pod("c", "Running")];
    let p = pass(&job(json!({"parallelism": 2, "completions": 9}), json!({})), &pods, LATE);
    assert_eq!(p.deleted(), ["b"], "a pending pod is least missed");
    // Without a number of completions, one success lets the others run out.
    let queue = json!({"parallelism": 3, "completions": null});
    let p = pass(&job(queue.clone(), json!({"succeeded": 1})), &[pod("a", "Running")], LATE);
    assert_eq!((p.plan.action.clone(), p.ended), (Action::Nothing, false));
    assert!(pass(&job(queue.clone(), json!({"succeeded": 1})), &[], LATE).ended);
    assert_eq!(pass(&job(queue, json!({})), &[], LATE).created().len(), 3);
    assert!(pass(&job(json!({"completions": 0}), json!({})), &[], LATE).ended, "nothing to do is done");
}

#[test]
fn a_pod_on_its_way_out_is_replaced_at_once_or_when_it_has_ended() {
    let leaving = with(pod("a", "Running"), "/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z"));
    let p = pass(&job(json!({}), json!({})), std::slice::from_ref(&leaving), LATE);
    assert_eq!((p.created().len(), p.status.failed, p.status.terminating), (1, Some(1), Some(1)));
    let p = pass(&job(json!({"podReplacementPolicy": "Failed"}), json!({})), &[leaving], LATE);
    assert_eq!((p.created().len(), p.status.failed, p.status.terminating), (0, None, Some(1)));
    let p = pass(&job(json!({"podReplacementPolicy": "Failed"}), json!({})), &[pod("a", "Failed")], LATE);
    assert_eq!((p.created().len(), p.status.failed), (1, Some(1)));
}

#[test]
fn an_indexed_job_fills_its_gaps() {
    let spec = json!({"completionMode": "Indexed", "parallelism": 3, "completions": 4});
    let pods = [of_index(0, "Succeeded"), of_index(3, "Running")];
    let p = pass(&job(spec.clone(), json!({"completedIndexes": "1", "succeeded": 1})), &pods, LATE);
    assert_eq!((p.indexes(), p.status.completed_indexes.as_deref(), p.status.succeeded), (vec![2], Some("0,1"), Some(2)));
    let twin = with(of_index(3, "Pending"), "/metadata/name", json!("twin"));
    let stranger = of_index(7, "Running");
    let p = pass(&job(spec.clone(), json!({"completedIndexes": "0-2"})), &[of_index(3, "Running"), twin, stranger], LATE);
    let mut gone = p.deleted();
    gone.sort();
    assert_eq!(gone, ["p7", "twin"], "one pod for each index of the job");
    let p = pass(&job(spec.clone(), json!({"completedIndexes": "0-2"})), &[of_index(3, "Succeeded")], LATE);
    assert_eq!((p.ended, p.status.completed_indexes.as_deref()), (true, Some("0-3")));
    // Elastic: made smaller, indexes beyond are no longer the job's.
    let small = json!({"completionMode": "Indexed", "parallelism": 2, "completions": 2});
    let p = pass(&job(small, json!({"completedIndexes": "0,3", "succeeded": 2})), &[of_index(1, "Running")], LATE);
    assert_eq!((p.status.completed_indexes.as_deref(), p.status.succeeded, p.ended), (Some("0"), Some(1), false));
}

#[test]
fn a_success_policy_ends_the_job_early() {
    let spec = json!({"completionMode": "Indexed", "parallelism": 3, "completions": 3, "successPolicy": {"rules": [{"succeededIndexes": "0"}]}});
    let p = pass(&job(spec.clone(), json!({})), &[of_index(0, "Succeeded"), of_index(1, "Running")], LATE);
    assert_eq!((p.deleted(), p.conditions()), (vec!["p1".to_string()], vec!["SuccessCriteriaMet SuccessPolicy".to_string()]));
    let met = p.status.conditions.as_ref().expect("conditions")[0].message.clone();
    assert_eq!((met.as_deref(), p.ended), (Some("Matched rules at index 0"), false));
    let mut status = serde_json::to_value(&p.status).expect("json");
    status["terminating"] = 0.into();
    let p = pass(&job(spec.clone(), status), &[], LATE);
    assert_eq!((p.ended, p.conditions().last().map(String::as_str)), (true, Some("Complete SuccessPolicy")));
    assert_eq!(p.status.failed, None, "pods that the policy ended have not failed");
    let p = pass(&job(spec, json!({})), &[of_index(1, "Succeeded"), of_index(0, "Running")], LATE);
    assert!(p.plan.end.is_none());
}

#[test]
fn a_failure_policy_ignores_counts_and_fails() {
    let spec = |action: &str| {
        json!({"backoffLimit": 0, "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [{"action": action, "onExitCodes": {"operator": "In", "values": [1]}}]}})
    };
    let p = pass(&job(spec("Ignore"), json!({})), &[pod("a", "Failed")], LATE);
    assert_eq!((p.status.failed, p.created().len(), p.untracked()), (None, 1, vec!["a".to_string()]));
    let p = pass(&job(spec("Count"), json!({})), &[pod("a", "Failed")], LATE);
    assert_eq!((p.status.failed, p.conditions().first().map(String::as_str)), (Some(1), Some("FailureTarget BackoffLimitExceeded")));
    let p = pass(&job(spec("FailJob"), json!({})), &[pod("a", "Failed"), pod("b", "Running")], LATE);
    assert_eq!((p.deleted(), p.conditions()), (vec!["b".to_string()], vec!["FailureTarget PodFailurePolicy".to_string()]));
    let why = p.status.conditions.as_ref().expect("conditions")[0].message.clone();
    assert_eq!(why.as_deref(), Some("Container c for pod a/a failed with exit code 1 matching FailJob rule at index 0"));
}

/// The failed pod of an index of which so many have failed before.
fn failed_before(index: u32, times: u32) -> Value {
    let mut pod = of_index(index, "Failed");
    pod["metadata"]["annotations"][INDEX_FAILURES] = times.to_string().into();
    pod
}

#[test]
fn each_index_has_its_own_back_off() {
    let spec = json!({"completionMode": "Indexed", "parallelism": 2, "completions": 2, "backoffLimit": 100, "backoffLimitPerIndex": 1});
    let p = pass(&job(spec.clone(), json!({})), &[failed_before(0, 0), of_index(1, "Running")], "00:00:04");
    assert_eq!((p.created().len(), p.plan.again), (0, Some(Duration::from_secs(6))));
    assert!(p.untracked().is_empty(), "the failed pod holds the count until it is replaced");
    let p = pass(&job(spec.clone(), json!({})), &[failed_before(0, 0), of_index(1, "Running")], "00:00:10");
    assert_eq!(p.created(), [NewPod { index: Some(0), failures: 1, ignored: 0 }]);
    // Replaced: now the old one is counted.
    let again = with(of_index(0, "Running"), "/metadata/uid", json!("again"));
    let p = pass(&job(spec.clone(), json!({})), &[failed_before(0, 0), again, of_index(1, "Running")], LATE);
    assert_eq!((p.untracked(), p.status.failed, p.status.failed_indexes.as_deref()), (vec!["p0".to_string()], Some(1), Some("")));
    // The second failure is one too many for the index, not for the job.
    let p = pass(&job(spec.clone(), json!({})), &[failed_before(0, 1), of_index(1, "Running")], LATE);
    assert_eq!((p.status.failed_indexes.as_deref(), p.created().len(), p.plan.end.is_none()), (Some("0"), 0, true));
    let p = pass(&job(spec, json!({"failedIndexes": "0", "failed": 2})), &[of_index(1, "Succeeded")], LATE);
    assert_eq!(p.conditions(), ["FailureTarget FailedIndexes", "Failed FailedIndexes"]);
    assert_eq!(p.status.completed_indexes.as_deref(), Some("1"));
}

#[test]
fn too_many_failed_indexes_end_the_job() {
    let spec = json!({"completionMode": "Indexed", "parallelism": 3, "completions": 5, "backoffLimit": 100, "backoffLimitPerIndex": 0,
        "maxFailedIndexes": 1});
    let one = [failed_before(0, 0), of_index(1, "Running"), of_index(2, "Running")];
    assert!(pass(&job(spec.clone(), json!({})), &one, LATE).plan.end.is_none());
    let two = [failed_before(0, 0), failed_before(1, 0), of_index(2, "Running")];
    let p = pass(&job(spec, json!({})), &two, LATE);
    assert_eq!((p.conditions(), p.deleted()), (vec!["FailureTarget MaxFailedIndexesExceeded".to_string()], vec!["p2".to_string()]));
}

#[test]
fn fail_index_spares_the_rest() {
    let spec = json!({"completionMode": "Indexed", "parallelism": 2, "completions": 2, "backoffLimit": 100, "backoffLimitPerIndex": 5,
        "podFailurePolicy": {"rules": [{"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1]}}]}});
    let p = pass(&job(spec, json!({})), &[failed_before(0, 0), of_index(1, "Running")], LATE);
    assert_eq!((p.status.failed_indexes.as_deref(), p.indexes(), p.status.failed), (Some("0"), vec![], Some(1)));
}

fn decided(kind: &str, reason: &str) -> Value {
    json!({"startTime": "2026-01-01T00:00:00Z", "conditions": [{"type": kind, "status": "True", "reason": reason, "message": "m"}]})
}

#[test]
fn an_end_that_was_decided_on_is_carried_out() {
    // Pods go first, and only then does the job end.
    let failing = |pods: &[Value]| pass(&job(json!({"parallelism": 2, "completions": 2}), decided("FailureTarget", "DeadlineExceeded")), pods, LATE);
    let p = failing(&[pod("a", "Running"), pod("b", "Running")]);
    assert_eq!((p.deleted().len(), p.ended), (2, false));
    let p = failing(&[]);
    assert_eq!((p.created().len(), p.conditions()), (0, vec!["FailureTarget DeadlineExceeded".to_string(), "Failed DeadlineExceeded".to_string()]));
    let mut off = decided("FailureTarget", "DeadlineExceeded");
    off["conditions"][0]["status"] = "False".into();
    assert_eq!(pass(&job(json!({}), off), &[], LATE).created().len(), 1, "it does not hold");
    let p = pass(&job(json!({}), decided("SuccessCriteriaMet", "SuccessPolicy")), &[], LATE);
    assert_eq!(p.conditions(), ["SuccessCriteriaMet SuccessPolicy", "Complete SuccessPolicy"], "once each");
    // While the informers may hide pods, nothing is sure.
    let unsure = pass_knowing(&job(json!({}), decided("FailureTarget", "DeadlineExceeded")), &[], LATE, false, Record::default());
    assert!(!unsure.ended && unsure.settled.end.is_none());
    // Conditions of others are kept, and do not stand for ours.
    let mut foreign = decided("Other", "x");
    foreign["succeeded"] = 1.into();
    assert_eq!(pass(&job(json!({}), foreign), &[], LATE).conditions(), ["Other x", "SuccessCriteriaMet CompletionsReached", "Complete CompletionsReached"]);
}

#[test]
fn a_job_without_completions_waits_for_its_first_success() {
    let open = |status: Value, pods: &[Value]| pass(&job(json!({"completions": null, "parallelism": 0}), status), pods, LATE);
    assert!(!open(json!({}), &[]).ended, "nothing has succeeded");
    assert!(open(json!({"succeeded": 1}), &[]).ended);
}

#[test]
fn what_is_noted_counts_beside_what_is_new() {
    let six = json!({"parallelism": 6, "completions": 6});
    let status = json!({"succeeded": 1, "uncountedTerminatedPods": {"succeeded": ["a", "x"]}});
    // One is in the count, two are noted (one of them is gone), one is new: two are left to do.
    let p = pass(&job(six.clone(), status), &[pod("a", "Succeeded"), pod("b", "Succeeded")], LATE);
    assert_eq!((p.plan.succeeded, p.created().len(), p.status.succeeded), (4, 2, Some(4)));
    // Failures alike: one counted, one noted, one new is one too many.
    let status = json!({"failed": 1, "uncountedTerminatedPods": {"failed": ["a"]}, "startTime": "2026-01-01T00:00:00Z"});
    let limited = |limit: i32| job(json!({"parallelism": 6, "completions": 6, "backoffLimit": limit}), status.clone());
    let failed = [pod("a", "Failed"), pod("b", "Failed")];
    assert_eq!(pass(&limited(2), &failed, LATE).conditions(), ["FailureTarget BackoffLimitExceeded", "Failed BackoffLimitExceeded"]);
    assert_eq!(pass(&limited(3), &failed, LATE).conditions(), [] as [&str; 0]);
}

#[test]
fn each_change_of_a_number_is_written() {
    let status = json!({"active": 1, "ready": 0, "terminating": 0, "startTime": "2026-01-01T00:00:00Z", "uncountedTerminatedPods": {}});
    let writes = |key: &str, value: Value| {
        let mut status = status.clone();
        status[key] = value;
        pass(&job(json!({}), status), &[pod("a", "Running")], LATE).settled.write
    };
    assert!(!writes("active", 1.into()));
    assert!(writes("active", 2.into()) && writes("ready", 1.into()) && writes("terminating", 1.into()));
    assert!(writes("uncountedTerminatedPods", json!({"failed": ["gone"]})), "a pod that is noted has no finalizer any more");
    assert!(writes("uncountedTerminatedPods", json!({"succeeded": ["gone"]})));
    let indexed = |status: Value| {
        let mut full = json!({"ready": 0, "terminating": 0, "active": 1, "succeeded": 1, "completedIndexes": "0", "startTime": "2026-01-01T00:00:00Z", "uncountedTerminatedPods": {}});
        full.as_object_mut().expect("an object").extend(status.as_object().expect("an object").clone());
        pass(&job(json!({"completionMode": "Indexed", "completions": 2}), full), &[of_index(1, "Running")], LATE).settled.write
    };
    assert!(!indexed(json!({})));
    assert!(indexed(json!({"completedIndexes": "0,5"})), "five is none of its indexes");
    assert!(indexed(json!({"failedIndexes": "1"})), "it does not tell of failed ones");
}

#[test]
fn an_indexed_job_counts_its_own_indexes_alone() {
    let two = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2});
    let p = pass(&job(two.clone(), json!({})), &[of_index(0, "Succeeded"), of_index(2, "Succeeded"), of_index(1, "Running")], LATE);
    assert_eq!((p.status.completed_indexes.as_deref(), p.status.succeeded, p.ended), (Some("0"), Some(1), false), "there is no index 2");
    let p = pass(&job(two.clone(), json!({})), &[of_index(2, "Failed"), of_index(0, "Running"), of_index(1, "Running")], LATE);
    assert_eq!(p.status.failed, None);
    let p = pass(&job(two.clone(), json!({})), &[of_index(0, "Failed"), of_index(1, "Running")], "00:00:01");
    assert_eq!((p.status.failed, p.indexes().len()), (Some(1), 0), "it is counted, and backs off");
    let strict = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimit": 0});
    let p = pass(&job(strict, json!({})), &[of_index(2, "Failed"), of_index(0, "Running"), of_index(1, "Running")], LATE);
    assert!(p.plan.end.is_none(), "what is none of its indexes cannot fail it");
    let own = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimitPerIndex": 3});
    let p = pass(&job(own, json!({})), &[failed_before(2, 0), of_index(0, "Running"), of_index(1, "Running")], LATE);
    assert_eq!(p.untracked(), ["p2"], "nothing takes its place, so nothing waits for it");
    // A pod of an index that is beyond the end goes.
    let p = pass(&job(two.clone(), json!({})), &[of_index(0, "Running"), of_index(1, "Running"), of_index(2, "Running")], LATE);
    assert_eq!(p.deleted(), ["p2"]);
    assert_eq!(pass(&job(two, json!({})), &[], LATE).status.succeeded, None, "nothing is not told");
}

#[test]
fn the_last_failure_of_an_index_says_how_often_it_failed() {
    let spec = json!({"completionMode": "Indexed", "completions": 1, "parallelism": 1, "backoffLimitPerIndex": 9,
        "podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]}});
    let earlier = with(of_index(0, "Failed"), "/metadata/name", "earlier".into());
    let earlier = with(earlier, "/metadata/uid", "earlier".into());
    for pods in [[earlier.clone(), failed_before(0, 1)], [failed_before(0, 1), earlier]] {
        let p = pass(&job(spec.clone(), json!({})), &pods, LATE);
        assert_eq!(p.created().iter().map(|n| (n.failures, n.ignored)).collect::<Vec<_>>(), [(2, 0)]);
    }
    // A failure that is ignored is counted apart.
    let disrupted = with(failed_before(0, 1), "/status/conditions", json!([{"type": "DisruptionTarget", "status": "True"}]));
    let p = pass(&job(spec.clone(), json!({})), &[disrupted], LATE);
    assert_eq!(p.created().iter().map(|n| (n.failures, n.ignored)).collect::<Vec<_>>(), [(1, 1)]);
    // Both sorts count for which was the last, and for how long the next one waits.
    let mut both = failed_before(0, 1);
    both["metadata"]["annotations"][INDEX_IGNORED] = "1".into();
    let sooner = with(with(failed_before(0, 1), "/metadata/name", "sooner".into()), "/metadata/uid", "sooner".into());
    let p = pass(&job(spec.clone(), json!({})), &[both.clone(), sooner], LATE);
    assert_eq!(p.created().iter().map(|n| (n.failures, n.ignored)).collect::<Vec<_>>(), [(2, 1)]);
    let p = pass(&job(spec.clone(), json!({})), &[both], "00:00:30");
    assert_eq!((p.created().len(), p.plan.again), (0, Some(Duration::from_secs(10))), "forty seconds after the third");
    // A pod whose failure is in no count any more is not replaced again.
    let gone = with(failed_before(0, 1), "/metadata/finalizers", json!([]));
    assert_eq!(pass(&job(spec, json!({})), &[gone], LATE).created().iter().map(|n| n.failures).collect::<Vec<_>>(), [0]);
}

#[test]
fn pods_that_nobody_misses_go_first() {
    let on = |name: &str, phase: &str| with(pod(name, phase), "/spec", json!({"nodeName": "n", "containers": []}));
    let homeless = with(pod("homeless", "Running"), "/spec", json!({"nodeName": "", "containers": []}));
    let all = [on("running", "Running"), on("unknown", "Unknown"), on("pending", "Pending"), homeless];
    let left = |wanted: i32| pass(&job(json!({"parallelism": wanted, "completions": 9}), json!({})), &all, LATE).deleted();
    assert_eq!(left(3), ["homeless"]);
    assert_eq!(left(2), ["homeless", "pending"]);
    assert_eq!(left(1), ["homeless", "pending", "unknown"]);
}

#[test]
fn a_job_does_not_end_while_something_is_left_to_count() {
    let end = || serde_json::from_value(json!({"type": "Complete", "status": "True"})).expect("a condition");
    let ends = |status: Value| finish(&mut serde_json::from_value(status).expect("a status"), &end(), at(LATE));
    assert!(ends(json!({"uncountedTerminatedPods": {}})) && ends(json!({"uncountedTerminatedPods": {"succeeded": [], "failed": []}})));
    assert!(!ends(json!({"uncountedTerminatedPods": {"succeeded": ["a"]}})));
    assert!(!ends(json!({"uncountedTerminatedPods": {"failed": ["a"]}})));
    assert!(!ends(json!({"terminating": 1})));
}

#[test]
fn a_pass_counts_five_hundred_pods() {
    let many = |phase: &str, from: usize, count: usize| (from..from + count).map(|n| pod(&format!("p{n:03}"), phase)).collect::<Vec<_>>();
    let open = json!({"parallelism": 1000, "completions": 1000, "backoffLimit": 1000});
    let mixed = [many("Succeeded", 0, 300), many("Failed", 300, 300)].concat();
    assert_eq!(pass(&job(open, json!({})), &mixed, LATE).untracked().len(), 500, "successes and failures together");
    let indexed = json!({"completionMode": "Indexed", "parallelism": 600, "completions": 600});
    let done: Vec<Value> = (0..600).map(|n| of_index(n, "Succeeded")).collect();
    let p = pass(&job(indexed.clone(), json!({})), &done, LATE);
    assert_eq!((p.untracked().len(), p.ended), (500, false), "not all are counted yet");
    // Those of indexes that are in the status cost nothing.
    let p = pass(&job(indexed, json!({"completedIndexes": "0-499", "succeeded": 500})), &done, LATE);
    assert_eq!((p.untracked().len(), p.ended), (600, true));
}

#[test]
fn an_end_waits_for_pods_that_could_not_be_deleted() {
    let failing = job(json!({}), decided("FailureTarget", "DeadlineExceeded"));
    let pods = [Arc::new(serde_json::from_value(pod("a", "Running")).expect("a pod"))];
    let untracked = HashSet::new();
    let input = Input { job: &failing, pods: &pods, caught_up: true, untracked: &untracked, backoff: Record::default(), now: at(LATE) };
    let plan = plan(&input);
    assert!(matches!(plan.action, Action::End(_)));
    let settled = settle(&input, &plan, Outcome::default());
    assert_eq!((settled.status.active, settled.end), (Some(1), None), "it is still there");
}

#[test]
fn a_suspension_is_told_anew_when_it_is_told_otherwise() {
    let suspended = |reason: &str, message: &str| {
        let told = json!({"conditions": [{"type": "Suspended", "status": "True", "reason": reason, "message": message}]});
        pass(&job(json!({"suspend": true}), told), &[], LATE).settled.event.is_some()
    };
    assert!(!suspended("JobSuspended", "Job suspended"));
    assert!(suspended("Other", "Job suspended") && suspended("JobSuspended", "other"));
}

#[test]
fn a_job_that_has_ended_is_finished() {
    let is = |kind: &str, status: &str| finished(&job(json!({}), json!({"conditions": [{"type": kind, "status": status}]})));
    assert!(is("Complete", "True") && is("Failed", "True"));
    assert!(!is("Complete", "False") && !is("FailureTarget", "True") && !finished(&job(json!({}), json!({}))));
}
