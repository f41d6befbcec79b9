//! What a cron job needs next, from its status and its jobs. Pure.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use reconcile::EventType;

use super::times::{Clock, Missed};
use crate::ownership;

/// The time of the schedule that a job was made for: annotation.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// An event to record.
pub type Event = (EventType, &'static str, String);

/// What is to be done.
#[derive(Debug, Default)]
pub struct Plan {
    /// Ended jobs that are too many to keep.
    pub forget: Vec<Arc<Job>>,
    /// Running jobs to delete before a new one is made.
    pub replace: Vec<ObjectReference>,
    /// The time for which to make a job.
    pub start: Option<Timestamp>,
    /// The status, before a job is made.
    pub status: CronJobStatus,
    pub events: Vec<Event>,
    /// When to look again though nothing changes.
    pub again: Option<Duration>,
}

/// The condition that says how a job has ended.
fn ended(job: &Job) -> Option<&str> {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut ends = conditions.filter(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True");
    ends.next().map(|c| c.type_.as_str())
}

/// Decides. `jobs` are those that name the cron job as their owner, `gone` the uids of active jobs
/// that do not exist any more.
pub fn plan(cron: &CronJob, jobs: &[Arc<Job>], gone: &HashSet<String>, now: Timestamp) -> Plan {
    let spec = &cron.spec;
    let mut plan = Plan { status: cron.status.clone().unwrap_or_default(), ..Plan::default() };
    plan.forget = surplus(jobs, "Complete", spec.successful_jobs_history_limit);
    plan.forget.extend(surplus(jobs, "Failed", spec.failed_jobs_history_limit));
    plan.look_at(jobs);
    for missing in plan.status.active.iter().flatten().filter(|a| gone.contains(a.uid.as_deref().unwrap_or(""))) {
        let name = missing.name.clone().unwrap_or_default();
        plan.events.push((EventType::Normal, "MissingJob", format!("Active job went missing: {name}")));
    }
    plan.status.active.iter_mut().for_each(|a| a.retain(|r| !gone.contains(r.uid.as_deref().unwrap_or(""))));
    if cron.metadata.deletion_timestamp.is_none() {
        plan.schedule(cron, spec, now);
    }
    plan.status.active = plan.status.active.take().filter(|a| !a.is_empty());
    plan
}

/// The oldest of the jobs that ended so, beyond as many as are to be kept.
fn surplus(jobs: &[Arc<Job>], end: &str, keep: Option<i32>) -> Vec<Arc<Job>> {
    let Some(keep) = keep else { return Vec::new() };
    let mut done: Vec<Arc<Job>> = jobs.iter().filter(|j| ended(j) == Some(end)).cloned().collect();
    done.sort_by_key(|j| {
        let started = j.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
        (started.is_none(), started, j.name_any())
    });
    let many = done.len().saturating_sub(keep.max(0) as usize);
    done.truncate(many);
    done
}

impl Plan {
    /// Brings the list of active jobs and the last success up to what the jobs say.
    fn look_at(&mut self, jobs: &[Arc<Job>]) {
        for job in jobs {
            let uid = job.uid();
            let listed = self.status.active.iter().flatten().any(|a| a.uid == uid);
            let Some(end) = ended(job) else {
                if !listed {
                    let why = format!("Saw a job that the controller did not create or forgot: {}", job.name_any());
                    self.events.push((EventType::Warning, "UnexpectedJob", why));
                }
                continue;
            };
            if listed {
                self.status.active.iter_mut().for_each(|a| a.retain(|r| r.uid != uid));
                let what = format!("Saw completed job: {}, condition: {end}", job.name_any());
                self.events.push((EventType::Normal, "SawCompletedJob", what));
            }
            let completed = job.status.as_ref().and_then(|s| s.completion_time.clone()).filter(|_| end == "Complete");
            let last = self.status.last_successful_time.as_ref().map(|t| t.0);
            if completed.as_ref().is_some_and(|c| last.is_none_or(|l| c.0 > l)) {
                self.status.last_successful_time = completed;
            }
        }
    }

    fn warn(&mut self, reason: &'static str, message: String) {
        self.events.push((EventType::Warning, reason, message));
    }

    /// Decides whether a job is to be made now.
    fn schedule(&mut self, cron: &CronJob, spec: &CronJobSpec, now: Timestamp) {
        let name = spec.time_zone.as_deref().unwrap_or("");
        let zone = match api::cron::zone(name) {
            Ok(zone) => zone,
            Err(error) => return self.warn("UnknownTimeZone", format!("invalid timeZone: {name:?}: {error}")),
        };
        if spec.suspend == Some(true) {
            return;
        }
        if spec.schedule.contains("TZ") {
            let why = format!(
                "CRON_TZ or TZ used in schedule {:?} is not officially supported, see \
                 https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details",
                spec.schedule
            );
            self.warn("UnsupportedSchedule", why);
        }
        let schedule = match api::cron::parse(&spec.schedule) {
            Ok(schedule) => schedule,
            Err(error) => return self.warn("UnparseableSchedule", format!("unparseable schedule: {:?} : {error}", spec.schedule)),
        };
        let clock = Clock { schedule, zone };
        let due = match clock.due(cron, now, true) {
            Ok(due) => due,
            Err(error) => return self.warn("InvalidSchedule", format!("invalid schedule: {} : {error}", spec.schedule)),
        };
        self.again = clock.wait(cron, now);
        let Some(time) = due.time else { return };
        if due.missed == Missed::Many {
            let why = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.warn("TooManyMissedTimes", why.into());
        }
        let name = job_name(cron, time);
        let known = self.status.active.iter().flatten().any(|a| a.name.as_ref() == Some(&name) && a.namespace == cron.metadata.namespace);
        if known || self.status.last_schedule_time.as_ref().is_some_and(|t| t.0 == time) {
            return;
        }
        let running = self.status.active.clone().unwrap_or_default();
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !running.is_empty() => {
                let why = "Not starting job because prior execution is running and concurrency policy is Forbid";
                return self.events.push((EventType::Normal, "JobAlreadyActive", why.into()));
            }
            Some("Replace") => self.replace = running,
            _ => {}
        }
        self.start = Some(time);
    }
}

/// How long to wait after a change of the schedule; an error for one that cannot be read.
pub fn wait(cron: &CronJob, now: Timestamp) -> Result<Option<Duration>, String> {
    let spec = cron.spec.clone();
    let zone = api::cron::zone(spec.time_zone.as_deref().unwrap_or("")).unwrap_or(TimeZone::UTC);
    let schedule = api::cron::parse(&spec.schedule)?;
    Ok(Clock { schedule, zone }.wait(cron, now))
}

/// The name of the job for a time: the same however often it is tried.
pub fn job_name(cron: &CronJob, time: Timestamp) -> String {
    format!("{}-{}", cron.name_any(), time.as_second() / 60)
}

/// The job for a time.
pub fn new_job(cron: &CronJob, time: Timestamp) -> Job {
    let spec = cron.spec.clone();
    let template = spec.job_template;
    let meta = template.metadata.unwrap_or_default();
    let zone = api::cron::zone(spec.time_zone.as_deref().unwrap_or("")).unwrap_or(TimeZone::UTC);
    let zoned = time.to_zoned(zone);
    let format = if zoned.offset().is_zero() { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%:z" };
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.into(), zoned.strftime(format).to_string());
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(cron, time)),
            namespace: cron.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![ownership::controller_reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// How the status names an active job.
pub fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some(Job::api_version(&()).into_owned()),
        kind: Some(Job::kind(&()).into_owned()),
        namespace: job.metadata.namespace.clone(),
        name: job.metadata.name.clone(),
        uid: job.metadata.uid.clone(),
        resource_version: job.metadata.resource_version.clone(),
        field_path: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(text: &str) -> Timestamp {
        format!("2026-01-01T{text}Z").parse().expect("a time")
    }

    /// An hourly cron job made at midnight.
    fn cron(spec: Value, status: Value) -> CronJob {
        let mut full = json!({"schedule": "0 * * * *", "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1, "concurrencyPolicy": "Allow",
            "jobTemplate": {"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}, "spec": {"template": {"spec": {"containers": []}}}}});
        full.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
        serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "n", "uid": "c", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": full, "status": status}))
        .expect("a cron job")
    }

    fn job(name: &str, end: Option<&str>, hour: u32) -> Arc<Job> {
        let conditions: Vec<Value> = end.iter().map(|e| json!({"type": e, "status": "True"})).collect();
        let mut status = json!({"conditions": conditions, "startTime": format!("2026-01-01T{hour:02}:00:00Z")});
        if end == Some("Complete") {
            status["completionTime"] = format!("2026-01-01T{hour:02}:30:00Z").into();
        }
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "status": status})).expect("a job"))
    }

    fn active(name: &str) -> Value {
        json!({"name": name, "namespace": "n", "uid": name})
    }

    fn reasons(plan: &Plan) -> Vec<&'static str> {
        plan.events.iter().map(|e| e.1).collect()
    }

    fn planned(cron: &CronJob, jobs: &[Arc<Job>], now: &str) -> Plan {
        plan(cron, jobs, &HashSet::new(), at(now))
    }

    #[test]
    fn starts_a_job_when_its_time_has_come_and_not_twice() {
        let p = planned(&cron(json!({}), json!({})), &[], "00:59:00");
        assert_eq!((p.start, p.again), (None, Some(Duration::from_millis(60_100))));
        let p = planned(&cron(json!({}), json!({})), &[], "01:00:01");
        assert_eq!((p.start, p.again), (Some(at("01:00:00")), Some(Duration::from_millis(3_599_100))));
        let made = json!({"lastScheduleTime": "2026-01-01T01:00:00Z"});
        assert_eq!(planned(&cron(json!({}), made), &[], "01:00:02").start, None);
        let name = job_name(&cron(json!({}), json!({})), at("01:00:00"));
        assert_eq!(name, format!("c-{}", at("01:00:00").as_second() / 60));
        let listed = json!({"active": [active(&name)]});
        assert_eq!(planned(&cron(json!({}), listed), &[job(&name, None, 1)], "01:00:02").start, None);
    }

    #[test]
    fn a_job_is_named_for_its_time_and_runs_beside_its_cron_job() {
        let cron = cron(json!({}), json!({}));
        let job = new_job(&cron, at("01:00:00"));
        assert_eq!((job.metadata.name, job.metadata.namespace.as_deref()), (Some(job_name(&cron, at("01:00:00"))), Some("n")));
    }

    #[test]
    fn a_job_has_ended_when_it_says_so() {
        let of = |kind: &str, status: &str| {
            let job = serde_json::from_value::<Job>(json!({"metadata": {}, "status": {"conditions": [{"type": kind, "status": status}]}}));
            ended(&job.expect("a job")).map(String::from)
        };
        assert_eq!((of("Complete", "True"), of("Failed", "True")), (Some("Complete".into()), Some("Failed".into())));
        assert_eq!((of("Suspended", "True"), of("Failed", "False")), (None, None));
    }

    #[test]
    fn a_clock_that_jumps_starts_no_time_twice() {
        let last = |time: &str| cron(json!({}), json!({"lastScheduleTime": format!("2026-01-01T{time}Z")}));
        let p = planned(&last("01:00:00"), &[], "05:20:00");
        assert_eq!((p.start, p.again), (Some(at("05:00:00")), Some(Duration::from_millis(2_400_100))), "of those leapt over just the last");
        for back in ["01:00:30", "04:59:59", "05:00:01"] {
            let p = planned(&last("05:00:00"), &[], back);
            assert_eq!(p.start, None, "{back}");
            assert_eq!(p.again, Some((at("06:00:00").duration_since(at(back))).unsigned_abs() + Duration::from_millis(100)));
        }
        assert_eq!(planned(&last("05:00:00"), &[], "06:00:01").start, Some(at("06:00:00")));
        let late = plan(&last("01:00:00"), &[], &HashSet::new(), "2080-05-05T05:20:00Z".parse().expect("a time"));
        assert_eq!((late.start, reasons(&late)), ("2080-05-05T05:00:00Z".parse().ok(), vec!["TooManyMissedTimes"]));
    }

    #[test]
    fn does_not_start_when_suspended_ended_or_too_late() {
        assert_eq!(planned(&cron(json!({"suspend": true}), json!({})), &[], "01:00:01").start, None);
        let mut leaving = cron(json!({}), json!({}));
        leaving.metadata.deletion_timestamp = leaving.metadata.creation_timestamp.clone();
        assert_eq!(planned(&leaving, &[], "01:00:01").start, None);
        let p = planned(&cron(json!({"startingDeadlineSeconds": 30}), json!({})), &[], "01:00:31");
        assert_eq!((p.start, reasons(&p)), (None, vec![]), "the time is not even looked at");
        assert_eq!(planned(&cron(json!({"startingDeadlineSeconds": 30}), json!({})), &[], "01:00:29").start, Some(at("01:00:00")));
    }

    #[test]
    fn tells_what_is_wrong_with_a_schedule() {
        let of = |spec: Value| {
            let p = planned(&cron(spec, json!({})), &[], "05:00:00");
            assert_eq!(p.start, None);
            p.events.into_iter().map(|e| (e.1, e.2)).collect::<Vec<_>>()
        };
        assert_eq!(of(json!({"schedule": "x"})), [("UnparseableSchedule",
            "unparseable schedule: \"x\" : expected exactly 5 fields, found 1: [x]".to_string())]);
        assert_eq!(of(json!({"timeZone": "No/Where"})), [("UnknownTimeZone", "invalid timeZone: \"No/Where\": unknown time zone No/Where".to_string())]);
        assert_eq!(of(json!({"schedule": "0 0 31 2 *"}))[0].0, "InvalidSchedule");
        let many = planned(&cron(json!({"schedule": "* * * * *"}), json!({})), &[], "02:00:30");
        assert_eq!((many.start, reasons(&many)), (Some(at("02:00:00")), vec!["TooManyMissedTimes"]));
        assert!(wait(&cron(json!({"schedule": "x"}), json!({})), at("01:00:00")).is_err());
    }

    #[test]
    fn concurrency() {
        let running = [job("old", None, 1)];
        let of = |policy: &str| {
            let status = json!({"active": [active("old")], "lastScheduleTime": "2026-01-01T01:00:00Z"});
            let p = planned(&cron(json!({"concurrencyPolicy": policy}), status), &running, "02:00:01");
            (p.start.is_some(), p.replace.len(), reasons(&p))
        };
        assert_eq!(of("Allow"), (true, 0, vec![]));
        assert_eq!(of("Forbid"), (false, 0, vec!["JobAlreadyActive"]));
        assert_eq!(of("Replace"), (true, 1, vec![]));
        let idle = planned(&cron(json!({"concurrencyPolicy": "Forbid"}), json!({})), &[], "02:00:01");
        assert!(idle.start.is_some());
    }

    #[test]
    fn follows_its_jobs() {
        let status = json!({"active": [active("a"), active("b"), active("c")], "lastScheduleTime": "2026-01-01T05:00:00Z",
            "lastSuccessfulTime": "2026-01-01T01:00:00Z"});
        let jobs = [job("a", Some("Complete"), 3), job("b", None, 4), job("x", None, 4)];
        let p = plan(&cron(json!({}), status), &jobs, &HashSet::from(["c".to_string()]), at("05:30:00"));
        let left: Vec<_> = p.status.active.iter().flatten().filter_map(|a| a.name.clone()).collect();
        assert_eq!(left, ["b"]);
        assert_eq!(reasons(&p), ["SawCompletedJob", "UnexpectedJob", "MissingJob"]);
        assert_eq!(p.events[0].2, "Saw completed job: a, condition: Complete");
        assert_eq!(p.status.last_successful_time.map(|t| t.0), Some(at("03:30:00")));
    }

    #[test]
    fn keeps_only_so_many_ended_jobs() {
        let jobs = [job("a", Some("Complete"), 3), job("b", Some("Complete"), 1), job("c", Some("Complete"), 2), job("d", Some("Failed"), 1), job("e", None, 0)];
        let of = |limit: Value| {
            let p = planned(&cron(json!({"successfulJobsHistoryLimit": limit}), json!({"lastScheduleTime": "2026-01-01T05:00:00Z"})), &jobs, "05:30:00");
            p.forget.iter().map(|j| j.name_any()).collect::<Vec<_>>()
        };
        assert_eq!(of(json!(1)), ["b", "c"]);
        assert_eq!(of(json!(0)), ["b", "c", "a"]);
        assert!(of(json!(3)).is_empty());
        assert!(of(Value::Null).is_empty());
    }

    #[test]
    fn a_new_job() {
        let job = new_job(&cron(json!({}), json!({})), at("01:00:00"));
        assert_eq!(job.annotations()[SCHEDULED], "2026-01-01T01:00:00Z");
        assert_eq!((job.annotations()["c"].as_str(), job.labels()["a"].as_str()), ("d", "b"));
        let owner = ownership::controller_of(&job.metadata).expect("an owner");
        assert_eq!((owner.kind.as_str(), owner.block_owner_deletion), ("CronJob", Some(true)));
        let there = reference(&job);
        assert_eq!((there.kind.as_deref(), there.api_version.as_deref()), (Some("Job"), Some("batch/v1")));
    }
}
