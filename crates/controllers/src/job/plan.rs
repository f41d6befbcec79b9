//! What a job needs next, from its status and its pods. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::backoff::{self, Record};
use super::indexes::Indexes;
use super::pod::{index, index_failures, tracked};
use super::policy::{self, Verdict, has_failed};
use crate::pod::Pod;
use crate::pods;

/// Most pods created or deleted in one pass.
const BURST: usize = 500;

/// What a pass looks at.
pub struct Input<'a> {
    pub job: &'a Job,
    /// The pods that the job controls.
    pub pods: &'a [Arc<Pod>],
    /// Whether all pods that were created and deleted earlier have been seen so.
    pub caught_up: bool,
    /// Pods that have lost their finalizer, which `pods` may not show yet.
    pub untracked: &'a HashSet<String>,
    /// The failures that were counted for the back-off so far.
    pub backoff: Record,
    pub now: Timestamp,
}

/// A pod to create.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NewPod {
    /// Its completion index, in an indexed job.
    pub index: Option<u32>,
    /// How often pods of its index failed so far.
    pub failures: u32,
    /// How often they failed in ways that the failure policy ignores.
    pub ignored: u32,
}

/// What is to be done about pods.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Action {
    #[default]
    Nothing,
    /// The job ends: delete what still runs, and count it.
    End(Vec<Arc<Pod>>),
    /// Delete these without counting them: there are too many, or the job is suspended.
    Delete(Vec<Arc<Pod>>),
    Create(Vec<NewPod>),
}

/// What a pass decides before it acts.
#[derive(Debug, Default)]
pub struct Plan {
    pub action: Action,
    pub active: Vec<Arc<Pod>>,
    pub ready: i32,
    pub terminating: i32,
    /// All successes, those not yet in the status too.
    pub succeeded: i32,
    /// Successful indexes in the status, and with those of pods not yet counted.
    pub counted_indexes: Indexes,
    pub done: Indexes,
    /// With a back-off limit per index: the indexes that have failed for good.
    pub failed_indexes: Option<Indexes>,
    /// With a back-off limit per index: the failed pod of each index whose replacement is to be made;
    /// it keeps its finalizer until then, because it holds the number of failures.
    pub replaced: BTreeMap<u32, Arc<Pod>>,
    /// Indexes of pods that are on their way out.
    pub leaving: Indexes,
    /// How the job ends, when it does.
    pub end: Option<JobCondition>,
    /// Whether the number of pods was looked at.
    pub managed: bool,
    pub backoff: Record,
    /// When to look again though nothing changes.
    pub again: Option<Duration>,
}

/// A condition that is true since `now`.
pub fn condition(kind: &str, reason: &str, message: impl Into<String>, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// The condition of this type when it holds.
pub fn holds<'a>(job: &'a Job, kind: &str) -> Option<&'a JobCondition> {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().find(|c| c.type_ == kind && c.status == "True")
}

/// Whether the job has ended already.
pub fn finished(job: &Job) -> bool {
    holds(job, "Complete").or_else(|| holds(job, "Failed")).is_some()
}

/// Whether the job has completion indexes.
pub fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// Whether the job is not to run now.
pub fn is_suspended(spec: &JobSpec) -> bool {
    spec.suspend == Some(true)
}

/// The number of indexes of an indexed job.
pub fn completions(spec: &JobSpec) -> u32 {
    spec.completions.unwrap_or(0).max(0) as u32
}

/// Decides.
pub fn plan(input: &Input<'_>) -> Plan {
    let (job, now) = (input.job, input.now);
    let empty = JobSpec::default();
    let spec = job.spec.as_ref().unwrap_or(&empty);
    let status = job.status.clone().unwrap_or_default();
    let lists = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let active: Vec<Arc<Pod>> = input.pods.iter().filter(|p| pods::is_active(p)).cloned().collect();
    let mut plan = Plan {
        ready: active.iter().filter(|p| pods::is_ready(p)).count() as i32,
        terminating: input.pods.iter().filter(|p| is_terminating(p)).count() as i32,
        active,
        ..Plan::default()
    };

    // Pods that have ended and are in no count yet.
    let fresh = |listed: &Option<Vec<String>>, ended: &dyn Fn(&Pod) -> bool| -> Vec<Arc<Pod>> {
        let uncounted = |p: &Arc<Pod>| {
            let uid = p.uid().unwrap_or_default();
            tracked(p) && !input.untracked.contains(&uid) && !listed.iter().flatten().any(|u| *u == uid)
        };
        let valid = |p: &Arc<Pod>| !is_indexed(spec) || index(p).is_some_and(|i| i < completions(spec));
        input.pods.iter().filter(|p| uncounted(p) && valid(p) && ended(p)).cloned().collect()
    };
    let succeeded = fresh(&lists.succeeded, &|p| pods::phase(p) == "Succeeded");
    let failed = fresh(&lists.failed, &|p| has_failed(job, p));
    plan.backoff = input.backoff.after(&succeeded, &failed, now);
    let listed = |list: &Option<Vec<String>>| list.as_ref().map_or(0, Vec::len) as i32;
    plan.succeeded = status.succeeded.unwrap_or(0) + succeeded.len() as i32 + listed(&lists.succeeded);
    let counting = failed.iter().filter(|p| policy::judge(spec.pod_failure_policy.as_ref(), p).counts()).count() as i32;
    let failures = status.failed.unwrap_or(0) + counting + listed(&lists.failed);

    plan.end = decided(job, now).or_else(|| failed_by_policy(input, spec));
    if plan.end.is_none() {
        let due = spec.active_deadline_seconds.filter(|_| !is_suspended(spec)).map(|seconds| {
            let started = status.start_time.as_ref().map_or(now, |t| t.0);
            started.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
        });
        if failures > spec.backoff_limit.unwrap_or(i32::MAX) || restarted_too_often(spec, input.pods) {
            plan.end = Some(condition("FailureTarget", "BackoffLimitExceeded", "Job has reached the specified backoff limit", now));
        } else if due.is_some_and(|d| now >= d && status.start_time.is_some()) {
            plan.end = Some(condition("FailureTarget", "DeadlineExceeded", "Job was active longer than specified deadline", now));
        } else {
            plan.again = due.map(|d| d.duration_since(now).unsigned_abs());
        }
    }
    if is_indexed(spec) {
        count_indexes(input, spec, &mut plan);
    }

    if plan.end.is_some() {
        plan.again = None;
        plan.action = Action::End(plan.active.clone());
    } else if input.caught_up && job.metadata.deletion_timestamp.is_none() {
        plan.managed = true;
        plan.action = manage(spec, &mut plan, now);
    }
    plan
}

/// Whether the pod is on its way out.
fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() && !matches!(pods::phase(pod), "Succeeded" | "Failed")
}

/// The end that was decided on earlier, while there were still pods.
fn decided(job: &Job, now: Timestamp) -> Option<JobCondition> {
    let again = |kind: &str, c: &JobCondition| condition(kind, c.reason.as_deref().unwrap_or(""), c.message.clone().unwrap_or_default(), now);
    holds(job, "SuccessCriteriaMet").cloned().or_else(|| holds(job, "FailureTarget").map(|c| again("Failed", c)))
}

fn failed_by_policy(input: &Input<'_>, spec: &JobSpec) -> Option<JobCondition> {
    let policy = spec.pod_failure_policy.as_ref()?;
    input.pods.iter().filter(|p| has_failed(input.job, p)).find_map(|p| match policy::judge(Some(policy), p) {
        Verdict::FailJob(why) => Some(condition("FailureTarget", "PodFailurePolicy", why, input.now)),
        _ => None,
    })
}

/// Containers that the kubelet starts again count as failures too.
fn restarted_too_often(spec: &JobSpec, all: &[Arc<Pod>]) -> bool {
    if spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) != Some("OnFailure") {
        return false;
    }
    let running = all.iter().filter(|p| matches!(pods::phase(p), "Running" | "Pending"));
    let restarts: i32 = running
        .flat_map(|p| p.status.iter())
        .flat_map(|s| s.init_container_statuses.iter().flatten().chain(s.container_statuses.iter().flatten()))
        .map(|c| c.restart_count)
        .sum();
    match spec.backoff_limit {
        None => false,
        Some(0) => restarts > 0,
        Some(limit) => restarts >= limit,
    }
}

fn count_indexes(input: &Input<'_>, spec: &JobSpec, plan: &mut Plan) {
    let status = input.job.status.clone().unwrap_or_default();
    let (all, now) = (completions(spec), input.now);
    let of = |keep: &dyn Fn(&Pod) -> bool| -> Vec<u32> {
        input.pods.iter().filter(|p| tracked(p) && keep(p)).filter_map(|p| index(p)).filter(|i| *i < all).collect()
    };
    plan.counted_indexes = Indexes::parse(status.completed_indexes.as_deref().unwrap_or(""), all);
    plan.done = plan.counted_indexes.with(of(&|p| pods::phase(p) == "Succeeded"));
    plan.succeeded = plan.done.len() as i32;
    plan.leaving = Indexes::default().with(input.pods.iter().filter(|p| is_terminating(p)).filter_map(|p| index(p)));
    if let Some(limit) = spec.backoff_limit_per_index {
        let lost = |p: &Pod| {
            has_failed(input.job, p)
                && match policy::judge(spec.pod_failure_policy.as_ref(), p) {
                    Verdict::FailIndex => true,
                    verdict => verdict.counts() && index_failures(p).0 >= limit.max(0) as u32,
                }
        };
        let failed = Indexes::parse(status.failed_indexes.as_deref().unwrap_or(""), all).with(of(&lost));
        if plan.end.is_none() {
            let many = spec.max_failed_indexes.is_some_and(|max| failed.len() > max.max(0) as usize);
            if many {
                let why = "Job has exceeded the specified maximal number of failed indexes";
                plan.end = Some(condition("FailureTarget", "MaxFailedIndexesExceeded", why, now));
            } else if !failed.is_empty() && failed.len() + plan.done.len() >= all as usize {
                plan.end = Some(condition("FailureTarget", "FailedIndexes", "Job has failed indexes", now));
            }
        }
        plan.replaced = to_replace(input, plan, &failed, all);
        plan.failed_indexes = Some(failed);
    }
    if plan.end.is_none()
        && let Some(why) = policy::success(spec.success_policy.as_ref(), all, &plan.done)
    {
        plan.end = Some(condition("SuccessCriteriaMet", "SuccessPolicy", why, now));
    }
}

/// Of each index that is neither done, nor lost, nor running: its last failed pod.
fn to_replace(input: &Input<'_>, plan: &Plan, failed: &Indexes, all: u32) -> BTreeMap<u32, Arc<Pod>> {
    let running: BTreeSet<u32> = plan.active.iter().filter_map(|p| index(p)).collect();
    let mut last: BTreeMap<u32, Arc<Pod>> = BTreeMap::new();
    for pod in input.pods {
        let Some(i) = index(pod).filter(|i| *i < all) else { continue };
        let uid = pod.uid().unwrap_or_default();
        if !tracked(pod) || input.untracked.contains(&uid) || !has_failed(input.job, pod) {
            continue;
        }
        if plan.done.contains(i) || failed.contains(i) || running.contains(&i) {
            continue;
        }
        let rank = |p: &Pod| {
            let (counted, ignored) = index_failures(p);
            (counted + ignored, backoff::ended(p))
        };
        if last.get(&i).is_none_or(|l| rank(l) <= rank(pod)) {
            last.insert(i, pod.clone());
        }
    }
    last
}

/// Compares what runs with what should run.
fn manage(spec: &JobSpec, plan: &mut Plan, now: Timestamp) -> Action {
    let active = plan.active.len();
    if is_suspended(spec) {
        return delete(surplus(spec, &plan.active, active));
    }
    let parallelism = spec.parallelism.unwrap_or(1).max(0);
    let wanted = match spec.completions {
        None if plan.succeeded > 0 => active,
        None => parallelism as usize,
        Some(completions) => (completions - plan.succeeded).clamp(0, parallelism) as usize,
    };
    let mut gone = surplus(spec, &plan.active, active.saturating_sub(wanted));
    if !gone.is_empty() {
        gone.truncate(BURST);
        return Action::Delete(gone);
    }
    // A pod that is still on its way out may hold its place.
    let leaving = if policy::replaces_only_failed(spec) { plan.terminating.max(0) as usize } else { 0 };
    let missing = wanted.saturating_sub(active + leaving).min(BURST);
    if missing == 0 {
        return Action::Nothing;
    }
    if spec.backoff_limit_per_index.is_none()
        && let Some(wait) = plan.backoff.left(now)
    {
        plan.look_again(wait);
        return Action::Nothing;
    }
    if !is_indexed(spec) {
        return Action::Create(vec![NewPod::default(); missing]);
    }
    let mut new = Vec::new();
    let mut wait: Option<Duration> = None;
    for i in pending_indexes(spec, plan).missing(completions(spec), missing) {
        let mut pod = NewPod { index: Some(i), ..NewPod::default() };
        if let Some(old) = plan.replaced.get(&i) {
            (pod.failures, pod.ignored) = index_failures(old);
            let left = backoff::left(pod.failures + pod.ignored + 1, backoff::ended(old).unwrap_or(now), now);
            if let Some(left) = left {
                wait = Some(wait.map_or(left, |w| w.min(left)));
                continue;
            }
            if policy::judge(spec.pod_failure_policy.as_ref(), old).counts() {
                pod.failures += 1;
            } else {
                pod.ignored += 1;
            }
        }
        new.push(pod);
    }
    if let Some(wait) = wait {
        plan.look_again(wait);
    }
    if new.is_empty() { Action::Nothing } else { Action::Create(new) }
}

fn delete(pods: Vec<Arc<Pod>>) -> Action {
    if pods.is_empty() { Action::Nothing } else { Action::Delete(pods) }
}

/// The indexes that need no pod now.
fn pending_indexes(spec: &JobSpec, plan: &Plan) -> Indexes {
    let mut taken = plan.done.with(plan.active.iter().filter_map(|p| index(p)));
    if policy::replaces_only_failed(spec) {
        taken = taken.union(&plan.leaving);
    }
    match &plan.failed_indexes {
        Some(failed) => taken.union(failed),
        None => taken,
    }
}

/// At least `count` active pods that are least missed; of an indexed job also all that have no
/// index of the job, or one that another pod has.
fn surplus(spec: &JobSpec, active: &[Arc<Pod>], count: usize) -> Vec<Arc<Pod>> {
    let mut rest = active.to_vec();
    rest.sort_by_key(|p| deletion_rank(p));
    let mut gone = Vec::new();
    if is_indexed(spec) {
        // From the most useful pod on: the first of each index stays.
        let mut seen = BTreeSet::new();
        let (stay, go): (Vec<_>, Vec<_>) =
            rest.into_iter().rev().partition(|p| index(p).is_some_and(|i| i < completions(spec) && seen.insert(i)));
        gone = go;
        rest = stay;
        rest.reverse();
    }
    let more = count.saturating_sub(gone.len());
    gone.extend(rest.into_iter().take(more));
    gone
}

/// Pods that are least missed come first: unassigned, pending, unready, ready for a shorter time,
/// restarted more often, younger.
fn deletion_rank(pod: &Pod) -> impl Ord + use<> {
    let assigned = pod.spec.as_ref().is_some_and(|s| s.node_name.as_deref().is_some_and(|n| !n.is_empty()));
    let phase = match pods::phase(pod) {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let restarts = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten()).map(|c| c.restart_count).max();
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    (assigned, phase, pods::is_ready(pod), Reverse(pods::ready_since(pod)), Reverse(restarts), Reverse(created))
}

impl Plan {
    fn look_again(&mut self, wait: Duration) {
        self.again = Some(self.again.map_or(wait, |a| a.min(wait)));
    }
}
