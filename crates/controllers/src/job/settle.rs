//! What a job's status says after its pods were created and deleted. Pure.
//!
//! An ended pod is counted in three steps: its uid is noted in the status, its finalizer is removed,
//! its uid is exchanged for a number. A crash between any two loses and doubles nothing.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobCondition, JobSpec, JobStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::plan::{Action, Input, Plan, completions, condition, is_indexed, is_suspended};
use super::pod::{index, tracked};
use super::policy::{self, has_failed};
use crate::pod::Pod;
use crate::pods;

/// Most uids that the status holds, to keep it small.
const MOST_UNCOUNTED: usize = 500;

/// What became of the plan's action.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    pub created: usize,
    pub deleted: usize,
    /// Those of the deleted that were ready.
    pub deleted_ready: usize,
}

/// What is to be written next.
#[derive(Debug)]
pub struct Settled {
    pub status: JobStatus,
    /// Whether the status has to be written before a finalizer is removed.
    pub write: bool,
    /// Pods that lose their finalizer then.
    pub untrack: Vec<Arc<Pod>>,
    /// Uids of all pods that have a finalizer now.
    pub with_finalizer: HashSet<String>,
    /// The condition that ends the job once nothing is left to count.
    pub end: Option<JobCondition>,
    /// Reason and message of an event about a suspension or its end.
    pub event: Option<(&'static str, &'static str)>,
}

/// Decides what the status says now.
pub fn settle(input: &Input<'_>, plan: &Plan, outcome: Outcome) -> Settled {
    let (job, now) = (input.job, input.now);
    let empty = JobSpec::default();
    let spec = job.spec.as_ref().unwrap_or(&empty);
    let old = job.status.clone().unwrap_or_default();
    let mut status = old.clone();
    status.uncounted_terminated_pods.get_or_insert_default();
    let mut end = plan.end.clone();
    let mut event = None;
    if status.start_time.is_none() && !is_suspended(spec) {
        status.start_time = Some(Time(now));
    }
    let mut active = plan.active.len();
    let (mut ready, mut terminating) = (plan.ready, plan.terminating);
    match &plan.action {
        Action::Nothing => {}
        Action::Create(_) => active += outcome.created,
        Action::End(_) | Action::Delete(_) => {
            active -= outcome.deleted;
            terminating += outcome.deleted as i32;
            ready -= outcome.deleted_ready as i32;
        }
    }
    let mut write = false;
    if plan.end.is_some() {
        // While a pod may still come or stay, the end is not sure.
        if active > 0 || !input.caught_up {
            end = None;
        }
    } else if active == 0 && spec.completions.map_or(plan.succeeded > 0, |c| plan.succeeded >= c) {
        end = Some(condition("SuccessCriteriaMet", "CompletionsReached", "Reached expected number of succeeded pods", now));
    } else if plan.managed {
        event = suspension(spec, &mut status, now);
        write = event.is_some();
    }
    let number = |n: i32| Some(n).filter(|n| *n != 0);
    status.active = number(active as i32);
    status.ready = Some(ready);
    status.terminating = Some(terminating);
    write |= status.active != number(old.active.unwrap_or(0)) || status.ready != old.ready || status.terminating != old.terminating;

    let with_finalizer: HashSet<String> =
        input.pods.iter().filter(|p| tracked(p)).filter_map(|p| p.uid()).filter(|u| !input.untracked.contains(u)).collect();
    write |= add_up(&mut status, &with_finalizer);
    let (untrack, full) = note(input, plan, spec, end.as_ref(), &with_finalizer, &mut status, &mut write);
    if let Some(condition) = &mut end {
        let conditions = status.conditions.get_or_insert_default();
        let known = conditions.iter().any(|c| c.type_ == condition.type_ && c.status == "True");
        if matches!(condition.type_.as_str(), "FailureTarget" | "SuccessCriteriaMet") {
            if !known {
                conditions.push(condition.clone());
                write = true;
            }
            condition.type_ = if condition.type_ == "FailureTarget" { "Failed" } else { "Complete" }.into();
            (condition.last_transition_time, condition.last_probe_time) = (Some(Time(now)), Some(Time(now)));
        }
    }
    Settled { status, write, untrack, with_finalizer, end: end.filter(|_| !full), event }
}

/// Suspension and resumption; returns the event that tells of it.
fn suspension(spec: &JobSpec, status: &mut JobStatus, now: Timestamp) -> Option<(&'static str, &'static str)> {
    if is_suspended(spec) {
        let set = ensure(status, "Suspended", "True", "JobSuspended", "Job suspended", now);
        set.then(|| {
            status.start_time = None;
            ("Suspended", "Job suspended")
        })
    } else {
        let set = ensure(status, "Suspended", "False", "JobResumed", "Job resumed", now);
        set.then(|| {
            status.start_time = Some(Time(now));
            ("Resumed", "Job resumed")
        })
    }
}

/// Sets a condition; one that is false is not added. Returns whether something changed.
fn ensure(status: &mut JobStatus, kind: &str, value: &str, reason: &str, message: &str, now: Timestamp) -> bool {
    let new = JobCondition { status: value.into(), ..condition(kind, reason, message, now) };
    let conditions = status.conditions.get_or_insert_default();
    let changed = match conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(c) if c.status == new.status && c.reason == new.reason && c.message == new.message => false,
        Some(c) => {
            *c = new;
            true
        }
        None if value == "False" => false,
        None => {
            conditions.push(new);
            true
        }
    };
    status.conditions = status.conditions.take().filter(|c| !c.is_empty());
    changed
}

/// Exchanges uids of pods that have no finalizer any more for numbers. Returns whether there were any.
pub fn add_up(status: &mut JobStatus, with_finalizer: &HashSet<String>) -> bool {
    let Some(lists) = &mut status.uncounted_terminated_pods else { return false };
    let exchange = |list: &mut Option<Vec<String>>, count: &mut Option<i32>| {
        let before = list.as_ref().map_or(0, Vec::len);
        list.iter_mut().for_each(|l| l.retain(|uid| with_finalizer.contains(uid)));
        let gone = before - list.as_ref().map_or(0, Vec::len);
        *list = list.take().filter(|l| !l.is_empty());
        if gone > 0 {
            *count = Some(count.unwrap_or(0) + gone as i32);
        }
        gone > 0
    };
    let succeeded = exchange(&mut lists.succeeded, &mut status.succeeded);
    exchange(&mut lists.failed, &mut status.failed) || succeeded
}

/// Notes the pods that have ended. Returns those that may lose their finalizer, and whether there are
/// more than one pass can count.
fn note(
    input: &Input<'_>,
    plan: &Plan,
    spec: &JobSpec,
    end: Option<&JobCondition>,
    with_finalizer: &HashSet<String>,
    status: &mut JobStatus,
    write: &mut bool,
) -> (Vec<Arc<Pod>>, bool) {
    let (job, indexed) = (input.job, is_indexed(spec));
    let mut ordered: Vec<Arc<Pod>> = input.pods.to_vec();
    if indexed {
        ordered.sort_by_key(|p| index(p));
    }
    let known = job.status.as_ref().and_then(|s| s.uncounted_terminated_pods.clone()).unwrap_or_default();
    let was = |list: &Option<Vec<String>>, uid: &String| list.iter().flatten().any(|u| u == uid);
    let lists = status.uncounted_terminated_pods.get_or_insert_default();
    let (mut untrack, mut new_indexes, mut full) = (Vec::new(), 0, false);
    for pod in &ordered {
        let uid = pod.uid().unwrap_or_default();
        let failed = has_failed(job, pod);
        if !with_finalizer.contains(&uid) || !countable(input, plan, pod, failed, end.is_some()) {
            continue;
        }
        untrack.push(pod.clone());
        let mine = index(pod).filter(|i| *i < completions(spec));
        if pods::phase(pod) == "Succeeded" && !was(&known.failed, &uid) {
            if indexed {
                new_indexes += usize::from(mine.is_some_and(|i| !plan.counted_indexes.contains(i)));
            } else if !was(&known.succeeded, &uid) {
                lists.succeeded.get_or_insert_default().push(uid);
                *write = true;
            }
        } else if (failed || end.is_some_and(|c| c.type_ != "SuccessCriteriaMet"))
            && !was(&known.failed, &uid)
            && (!indexed || mine.is_some())
            && policy::judge(spec.pod_failure_policy.as_ref(), pod).counts()
        {
            lists.failed.get_or_insert_default().push(uid);
            *write = true;
        }
        if new_indexes + lists.succeeded.as_ref().map_or(0, Vec::len) + lists.failed.as_ref().map_or(0, Vec::len) >= MOST_UNCOUNTED {
            full = true;
            break;
        }
    }
    if indexed {
        let text = Some(plan.done.to_string()).filter(|t| !t.is_empty());
        let failed = plan.failed_indexes.as_ref().map(ToString::to_string);
        *write |= text != status.completed_indexes || failed != status.failed_indexes;
        status.succeeded = Some(plan.done.len() as i32).filter(|n| *n > 0);
        status.completed_indexes = text;
        status.failed_indexes = failed;
    }
    (untrack, full)
}

fn countable(input: &Input<'_>, plan: &Plan, pod: &Pod, failed: bool, ends: bool) -> bool {
    if input.job.metadata.deletion_timestamp.is_some() || ends || pods::phase(pod) == "Succeeded" {
        return true;
    }
    failed && !index(pod).and_then(|i| plan.replaced.get(&i)).is_some_and(|p| p.uid() == pod.uid())
}

/// Ends the job if nothing is left to count and no pod on its way out. Returns whether it did.
pub fn finish(status: &mut JobStatus, end: &JobCondition, now: Timestamp) -> bool {
    let uncounted = status.uncounted_terminated_pods.as_ref().is_some_and(|l| {
        l.succeeded.as_ref().is_some_and(|l| !l.is_empty()) || l.failed.as_ref().is_some_and(|l| !l.is_empty())
    });
    if uncounted || status.terminating.unwrap_or(0) > 0 {
        return false;
    }
    let (reason, message) = (end.reason.as_deref().unwrap_or(""), end.message.as_deref().unwrap_or(""));
    ensure(status, &end.type_, "True", reason, message, now);
    if end.type_ == "Complete" {
        status.completion_time = end.last_transition_time.clone();
    }
    true
}
