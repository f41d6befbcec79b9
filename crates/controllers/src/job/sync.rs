//! Reads a job and its pods, plans, and acts: pods are counted in three steps (noted in the status,
//! finalizer removed, added up), so that a crash between any two loses and doubles nothing.

use std::sync::Arc;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::{EnvVar, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, run_workers};
use serde_json::json;

use super::plan::{self, End, Plan};
use super::{FINALIZER, INDEX};
use crate::Context;
use crate::expectations::Expectations;
use crate::ownership;
use crate::pods::{self, PodControl};

/// Starts the controller.
pub fn start(context: &Context) {
    let jobs = context.informers.of::<Job>();
    let pods = context.informers.of::<Pod>();
    let control = PodControl {
        client: context.client.clone(),
        expectations: Expectations::following(&pods),
        recorder: Recorder::new(&context.tasks, context.client.clone(), "job-controller", None),
        pods: pods.clone(),
    };
    let queue = Queue::<(String, String)>::new();
    let q = queue.clone();
    jobs.on_change(move |c| q.add((c.latest().namespace().unwrap_or_default(), c.latest().name_any())));
    let q = queue.clone();
    pods.on_change(move |change| {
        let pod = change.latest();
        if let Some(owner) = ownership::controller_of(&pod.metadata).filter(|o| o.kind == "Job") {
            q.add((pod.namespace().unwrap_or_default(), owner.name.clone()));
        }
    });
    run_workers(&context.tasks, "job", context.workers(5), queue, move |key: (String, String)| {
        let (control, jobs) = (control.clone(), jobs.clone());
        async move {
            jobs.synced().await;
            control.pods.synced().await;
            match sync(&control, &jobs, &key.0, &key.1).await {
                Err(kube::Error::Api(s)) if s.code == 409 && s.reason == "Conflict" => Ok(Requeue::After(std::time::Duration::from_millis(5))),
                other => other,
            }
        }
    });
}

async fn sync(control: &PodControl, jobs: &Informer<Job>, namespace: &str, name: &str) -> kube::Result<Requeue> {
    let job = jobs.get(namespace, name);
    let uid = job.as_ref().and_then(|j| j.uid());
    let (mine, orphans): (Vec<Arc<Pod>>, Vec<Arc<Pod>>) = control
        .pods
        .in_namespace(namespace)
        .into_iter()
        .filter(|p| ownership::controller_of(&p.metadata).is_some_and(|o| o.kind == "Job" && o.name == name))
        .partition(|p| ownership::controller_of(&p.metadata).map(|o| &o.uid) == uid.as_ref());
    // Nobody will ever count the pods of a job that is gone.
    untrack(control, namespace, &orphans).await?;
    let Some(job) = job else { return Ok(Requeue::No) };
    if job.spec.as_ref().and_then(|s| s.managed_by.as_deref()).is_some_and(|m| m != "kubernetes.io/job-controller") {
        return Ok(Requeue::No);
    }
    if plan::finished(&job) || job.metadata.deletion_timestamp.is_some() {
        untrack(control, namespace, &mine).await?;
        return Ok(Requeue::No);
    }
    if !control.expectations.fulfilled(uid.as_deref().unwrap_or("")) {
        return Ok(Requeue::No);
    }
    let now = Timestamp::now();
    let plan = plan::plan(&job, &mine, now);
    let owner = Reference::of(job.as_ref());

    let mut status = job.status.clone().unwrap_or_default();
    begin(&job, &mut status, control, &owner, now);
    status.active = Some(plan.active).filter(|n| *n > 0);
    status.ready = Some(plan.ready);
    status.terminating = Some(plan.terminating);
    status.completed_indexes = plan.completed_indexes.clone().filter(|i| !i.is_empty());
    note(&mut status, &plan);
    if let Some(end) = &plan.end {
        decide(&mut status, end, now);
    }
    let job = write(control, &job, status).await?;

    // What the status lists now may lose its finalizers, and is then added up.
    let (ok, failed) = plan::uncounted(job.status.as_ref().unwrap_or(&JobStatus::default()));
    let listed: Vec<Arc<Pod>> =
        mine.iter().filter(|p| p.uid().is_some_and(|u| ok.contains(&u) || failed.contains(&u))).cloned().collect();
    untrack(control, namespace, &listed).await?;
    let mut status = job.status.clone().unwrap_or_default();
    status.uncounted_terminated_pods = Some(UncountedTerminatedPods::default());
    status.failed = Some(status.failed.unwrap_or(0) + failed.len() as i32).filter(|n| *n > 0);
    let succeeded = match &plan.completed_indexes {
        Some(indexes) => super::indexes::parse(indexes).len() as i32,
        None => status.succeeded.unwrap_or(0) + ok.len() as i32,
    };
    status.succeeded = Some(succeeded).filter(|n| *n > 0);

    let mut outcome = control.delete(&owner, &plan.delete).await;
    if !plan.create.is_empty() && outcome.is_ok() {
        let new = plan.create.iter().map(|index| new_pod(&job, *index)).collect::<Vec<_>>();
        outcome = control.create(&owner, new).await.map(|made| status.active = Some(plan.active + made as i32));
    }
    if let Some(end) = &plan.end
        && plan.active == 0
        && plan.terminating == 0
    {
        finish(&mut status, end, now);
        let event = |kind, reason: &str, message: &str| control.recorder.event(&owner, kind, reason, message.to_string());
        if end.succeeded {
            event(EventType::Normal, "Completed", "Job completed");
        } else {
            event(EventType::Warning, end.reason, &end.message);
        }
    }
    write(control, &job, status).await?;
    outcome?;
    Ok(plan.again.map_or(Requeue::No, Requeue::After))
}

/// Start time, suspension and resumption.
fn begin(job: &Job, status: &mut JobStatus, control: &PodControl, owner: &Reference, now: Timestamp) {
    let suspended = job.spec.as_ref().is_some_and(|s| s.suspend == Some(true));
    let was = status.conditions.iter().flatten().find(|c| c.type_ == "Suspended").map(|c| c.status == "True");
    if suspended && was != Some(true) {
        set(status, "Suspended", "True", "JobSuspended", "Job suspended", now);
        status.start_time = None;
        control.recorder.event(owner, EventType::Normal, "Suspended", "Job suspended");
    } else if !suspended && was == Some(true) {
        set(status, "Suspended", "False", "JobResumed", "Job resumed", now);
        control.recorder.event(owner, EventType::Normal, "Resumed", "Job resumed");
    }
    if !suspended && status.start_time.is_none() {
        status.start_time = Some(Time(now));
    }
}

fn note(status: &mut JobStatus, plan: &Plan) {
    let lists = status.uncounted_terminated_pods.get_or_insert_default();
    let add = |list: &mut Option<Vec<String>>, pods: &[Arc<Pod>]| {
        let new: Vec<String> = pods.iter().filter_map(|p| p.uid()).collect();
        if !new.is_empty() {
            list.get_or_insert_default().extend(new);
        }
    };
    add(&mut lists.succeeded, &plan.count_succeeded);
    add(&mut lists.failed, &plan.count_failed);
}

fn set(status: &mut JobStatus, kind: &str, value: &str, reason: &str, message: &str, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|c| c.type_ != kind);
    conditions.push(JobCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    });
}

/// The end is certain, though pods may still be on their way out.
fn decide(status: &mut JobStatus, end: &End, now: Timestamp) {
    let kind = if end.succeeded { "SuccessCriteriaMet" } else { "FailureTarget" };
    if !status.conditions.iter().flatten().any(|c| c.type_ == kind) {
        set(status, kind, "True", end.reason, &end.message, now);
    }
}

fn finish(status: &mut JobStatus, end: &End, now: Timestamp) {
    if end.succeeded {
        set(status, "Complete", "True", end.reason, &end.message, now);
        status.completion_time = Some(Time(now));
    } else {
        set(status, "Failed", "True", end.reason, &end.message, now);
    }
    status.active = None;
    status.ready = Some(0);
}

async fn write(control: &PodControl, job: &Job, status: JobStatus) -> kube::Result<Job> {
    if job.status.as_ref() == Some(&status) {
        return Ok(job.clone());
    }
    let api = Api::<Job>::namespaced(control.client.clone(), &job.namespace().unwrap_or_default());
    let mut new = job.clone();
    new.status = Some(status);
    api.replace_status(&job.name_any(), &PostParams::default(), &new).await
}

fn new_pod(job: &Job, index: Option<u32>) -> Pod {
    let name = job.name_any();
    let template = job.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let generate = index.map_or(format!("{name}-"), |i| format!("{name}-{i}-"));
    let mut pod = pods::from_template(&job.namespace().unwrap_or_default(), generate, &template, ownership::controller_reference(job));
    pod.metadata.finalizers.get_or_insert_default().push(FINALIZER.into());
    if let Some(index) = index {
        pod.annotations_mut().insert(INDEX.into(), index.to_string());
        pod.labels_mut().insert(INDEX.into(), index.to_string());
        if let Some(spec) = &mut pod.spec {
            spec.hostname = Some(format!("{name}-{index}"));
            for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
                let env = container.env.get_or_insert_default();
                if !env.iter().any(|e| e.name == "JOB_COMPLETION_INDEX") {
                    env.push(EnvVar { name: "JOB_COMPLETION_INDEX".into(), value: Some(index.to_string()), ..EnvVar::default() });
                }
            }
        }
    }
    pod
}

/// Removes the tracking finalizer of pods.
async fn untrack(control: &PodControl, namespace: &str, pods: &[Arc<Pod>]) -> kube::Result<()> {
    let api = Api::<Pod>::namespaced(control.client.clone(), namespace);
    let results: Vec<kube::Result<()>> = futures::stream::iter(pods.iter().filter(|p| plan::tracked(p)).cloned().collect::<Vec<_>>())
        .map(|pod| {
            let api = api.clone();
            async move {
                let patch = json!({"metadata": {"uid": pod.uid(), "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
                match api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await {
                    Ok(_) => Ok(()),
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
                    Err(error) => Err(error),
                }
            }
        })
        .buffer_unordered(16)
        .collect()
        .await;
    results.into_iter().collect()
}
