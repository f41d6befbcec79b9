//! Reads a job and its pods, and does what [`plan`](super::plan) and [`settle`](super::settle) say.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, run_workers};
use rules::labels;
use serde_json::json;

use super::memory::Memory;
use super::orphans::{self, managed_elsewhere, untrack};
use super::plan::{self, Action, Input};
use super::pod::{new_pod, tracked};
use super::settle::{self, Outcome, Settled};
use super::FINALIZER;
use crate::Context;
use crate::expectations::Expectations;
use crate::ownership::{self, Claim};
use crate::pod::Pod;
use crate::pods::{self, PodControl};
use crate::written::Written;

/// Changes of pods within this time are looked at together.
const BATCH: Duration = Duration::from_millis(100);
/// Requests under way at once for one job.
const PARALLEL: usize = 16;

#[derive(Clone)]
struct Controller {
    control: PodControl,
    jobs: Informer<Job>,
    memory: Memory,
    written: Written,
}

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
    let controller = Controller { control, jobs: jobs.clone(), memory: Memory::following(&pods), written: Written::default() };
    let queue = Queue::<(String, String)>::new();
    let (q, memory, written) = (queue.clone(), controller.memory.clone(), controller.written.clone());
    jobs.on_change(move |change| {
        let job = change.latest();
        let key = (job.namespace().unwrap_or_default(), job.name_any());
        if change.new.is_none() || plan::finished(job) {
            memory.forget(&job.uid().unwrap_or_default());
            written.forget(job.metadata.uid.as_deref());
        }
        match &change.old {
            // Only the status has changed, by our own hand most likely.
            Some(old) if old.metadata.generation == job.metadata.generation => q.add_after(key, BATCH),
            _ => q.add(key),
        }
    });
    let (q, all) = (queue.clone(), jobs.clone());
    pods.on_change(move |change| {
        for pod in [&change.old, &change.new].into_iter().flatten() {
            let namespace = pod.namespace().unwrap_or_default();
            match ownership::controller_of(&pod.metadata) {
                Some(owner) if owner.kind == "Job" => q.add_after((namespace, owner.name.clone()), BATCH),
                Some(_) => {}
                // A job that selects it may adopt it.
                None => all
                    .in_namespace(&namespace)
                    .iter()
                    .filter(|j| selects(j, pod))
                    .for_each(|j| q.add_after((namespace.clone(), j.name_any()), BATCH)),
            }
        }
    });
    orphans::start(context, &jobs, &pods);
    run_workers(&context.tasks, "job", context.workers(5), queue, move |key: (String, String)| {
        let controller = controller.clone();
        async move {
            controller.jobs.synced().await;
            controller.control.pods.synced().await;
            match controller.sync(&key.0, &key.1).await {
                Err(kube::Error::Api(s)) if s.code == 409 && s.reason == "Conflict" => Ok(Requeue::After(Duration::from_millis(10))),
                other => other,
            }
        }
    });
}

fn selects(job: &Job, pod: &Pod) -> bool {
    let selector = job.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|s| labels::matches(s, pod.labels()))
}

impl Controller {
    async fn sync(&self, namespace: &str, name: &str) -> kube::Result<Requeue> {
        let Some(job) = self.jobs.get(namespace, name) else { return Ok(Requeue::No) };
        if managed_elsewhere(&job) || plan::finished(&job) || self.written.is_stale(&job.metadata) {
            return Ok(Requeue::No);
        }
        let owner = Reference::of(job.as_ref());
        let mode = job.spec.as_ref().and_then(|s| s.completion_mode.as_deref()).unwrap_or("NonIndexed");
        if !matches!(mode, "NonIndexed" | "Indexed") {
            let why = "Skipped Job sync because completion mode is unknown";
            self.control.recorder.event(&owner, EventType::Warning, "UnknownCompletionMode", why);
            return Ok(Requeue::No);
        }
        // Asked before the pods are read: what is seen later makes another pass.
        let caught_up = self.control.expectations.fulfilled(&owner.uid);
        let untracked = self.memory.untracked(&owner.uid);
        let pods = self.claim(&job).await?;
        let now = Timestamp::now();
        let input = Input { job: &job, pods: &pods, caught_up, untracked: &untracked, backoff: self.memory.backoff(&owner.uid), now };
        let plan = plan::plan(&input);
        let (outcome, error) = self.act(&job, &owner, &plan.action).await;
        let mut settled = settle::settle(&input, &plan, outcome);
        if let Some((reason, message)) = settled.event {
            self.control.recorder.event(&owner, EventType::Normal, reason, message);
        }
        self.track(&job, &owner, &mut settled, plan.backoff).await?;
        match error {
            Some(error) => Err(error),
            None => Ok(plan.again.map_or(Requeue::No, |again| Requeue::After(again.max(BATCH)))),
        }
    }

    /// The pods that the job controls; takes those that its selector matches, lets the others go.
    async fn claim(&self, job: &Job) -> kube::Result<Vec<Arc<Pod>>> {
        let uid = job.uid().unwrap_or_default();
        let namespace = job.namespace().unwrap_or_default();
        let mut mine = Vec::new();
        for pod in self.control.pods.in_namespace(&namespace) {
            let deleting = job.metadata.deletion_timestamp.is_some();
            let pod_uid = pod.uid().unwrap_or_default();
            let patch = match ownership::claim(&uid, deleting, &pod.metadata, selects(job, &pod)) {
                Claim::Ignore if deleting && ownership::controller_of(&pod.metadata).is_some_and(|o| o.uid == uid) => {
                    mine.push(pod);
                    continue;
                }
                Claim::Keep => {
                    mine.push(pod);
                    continue;
                }
                Claim::Ignore => continue,
                Claim::Adopt => {
                    let mut patch = ownership::adopt_patch(&ownership::controller_reference(job), &pod_uid);
                    patch["metadata"]["finalizers"] = json!([FINALIZER]);
                    patch
                }
                Claim::Release => {
                    let mut patch = ownership::release_patch(&uid, &pod_uid);
                    patch["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!([FINALIZER]);
                    patch
                }
            };
            let api = Api::<Pod>::namespaced(self.control.client.clone(), &namespace);
            match api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(patched) if ownership::controller_of(&patched.metadata).is_some_and(|o| o.uid == uid) => mine.push(Arc::new(patched)),
                Ok(_) => {}
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 422) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(mine)
    }

    async fn act(&self, job: &Job, owner: &Reference, action: &Action) -> (Outcome, Option<kube::Error>) {
        let mut outcome = Outcome::default();
        let (gone, counted) = match action {
            Action::Nothing => return (outcome, None),
            Action::Create(new) => {
                let new = new.iter().map(|wanted| new_pod(job, wanted)).collect();
                let (created, error) = self.control.create_counted(owner, new).await;
                outcome.created = created;
                return (outcome, error);
            }
            Action::End(pods) => (pods, true),
            Action::Delete(pods) => (pods, false),
        };
        let results: Vec<(bool, kube::Result<()>)> = futures::stream::iter(gone.clone())
            .map(|pod| async move {
                // A pod that is not to be counted loses its finalizer first.
                let freed = if counted { Ok(()) } else { self.untrack(&owner.uid, &pod).await };
                let result = match freed {
                    Ok(()) => self.control.delete(owner, std::slice::from_ref(&pod)).await,
                    Err(error) => Err(error),
                };
                (pods::is_ready(&pod), result)
            })
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        let mut error = None;
        for (ready, result) in results {
            match result {
                Ok(()) => {
                    outcome.deleted += 1;
                    outcome.deleted_ready += usize::from(ready);
                }
                Err(e) => error = Some(e),
            }
        }
        (outcome, error)
    }

    async fn untrack(&self, job: &str, pod: &Pod) -> kube::Result<()> {
        if !tracked(pod) {
            return Ok(());
        }
        let uid = pod.uid().unwrap_or_default();
        self.memory.untracking(job, &uid);
        let result = untrack(&self.control.client, pod).await;
        let seen = self.control.pods.get(&pod.namespace().unwrap_or_default(), &pod.name_any());
        if result.is_err() || !seen.is_some_and(|p| p.uid().as_ref() == Some(&uid) && tracked(&p)) {
            self.memory.not_untracked(job, &uid);
        }
        result
    }

    /// Notes ended pods, removes their finalizers, counts them, and ends the job when that was all.
    async fn track(&self, job: &Job, owner: &Reference, settled: &mut Settled, backoff: super::backoff::Record) -> kube::Result<()> {
        let mut job = job.clone();
        job.status = Some(settled.status.clone());
        if settled.write {
            job = self.write(&job).await?;
            self.memory.count(&owner.uid, backoff);
        }
        let results: Vec<(String, kube::Result<()>)> = futures::stream::iter(settled.untrack.clone())
            .map(|pod| async move { (pod.uid().unwrap_or_default(), self.untrack(&owner.uid, &pod).await) })
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        let mut error = None;
        for (uid, result) in results {
            match result {
                Ok(()) => drop(settled.with_finalizer.remove(&uid)),
                Err(e) => error = Some(e),
            }
        }
        let now = Timestamp::now();
        let mut status: JobStatus = job.status.clone().unwrap_or_default();
        let counted = settle::add_up(&mut status, &settled.with_finalizer);
        let ended = settled.end.as_ref().filter(|end| error.is_none() && settle::finish(&mut status, end, now));
        job.status = Some(status);
        if counted || ended.is_some() {
            job = self.write(&job).await?;
        }
        if let Some(end) = ended {
            self.tell_end(&job, owner, &end.type_, end.reason.as_deref().unwrap_or(""), end.message.as_deref().unwrap_or(""));
        }
        error.map_or(Ok(()), Err)
    }

    fn tell_end(&self, job: &Job, owner: &Reference, kind: &str, reason: &str, message: &str) {
        let recorder = &self.control.recorder;
        if kind != "Complete" {
            return recorder.event(owner, EventType::Warning, reason, message);
        }
        let wanted = job.spec.as_ref().and_then(|s| s.completions);
        if wanted.is_some_and(|w| job.status.as_ref().and_then(|s| s.succeeded).unwrap_or(0) > w) {
            let why = "Too many succeeded pods running after completion count reached";
            recorder.event(owner, EventType::Warning, "TooManySucceededPods", why);
        }
        recorder.event(owner, EventType::Normal, "Completed", "Job completed");
    }

    async fn write(&self, job: &Job) -> kube::Result<Job> {
        let api = Api::<Job>::namespaced(self.control.client.clone(), &job.namespace().unwrap_or_default());
        let written = api.replace_status(&job.name_any(), &PostParams::default(), job).await?;
        self.written.wrote(&written.metadata);
        Ok(written)
    }
}
