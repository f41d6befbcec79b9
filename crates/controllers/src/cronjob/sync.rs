//! Reads a cron job and its jobs, and does what [`plan`](super::plan) says.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Client, ResourceExt};
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, run_workers};

use super::plan::{self, Plan};
use crate::written::Written;
use crate::{Context, ownership, pods};

#[derive(Clone)]
struct Controller {
    client: Client,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
    recorder: Recorder,
    written: Written,
}

/// Starts the controller.
pub fn start(context: &Context) {
    let controller = Controller {
        client: context.client.clone(),
        crons: context.informers.of::<CronJob>(),
        jobs: context.informers.of::<Job>(),
        recorder: Recorder::new(&context.tasks, context.client.clone(), "cronjob-controller", None),
        written: Written::default(),
    };
    let queue = Queue::<(String, String)>::new();
    let (q, recorder, written) = (queue.clone(), controller.recorder.clone(), controller.written.clone());
    controller.crons.on_change(move |change| {
        let cron = change.latest();
        let key = (cron.namespace().unwrap_or_default(), cron.name_any());
        let clock = |c: &CronJob| (c.spec.schedule.clone(), c.spec.time_zone.clone());
        if change.new.is_none() {
            written.forget(cron.metadata.uid.as_deref());
        }
        // Times of a new schedule that are already over start nothing.
        if change.old.as_ref().is_some_and(|old| change.new.is_some() && clock(old) != clock(cron)) {
            match plan::wait(cron, Timestamp::now()) {
                Ok(wait) => wait.into_iter().for_each(|wait| q.add_after(key.clone(), wait)),
                Err(_) => {
                    let why = format!("unparseable schedule for cronjob: {}", cron.spec.schedule);
                    recorder.event(&Reference::of(cron.as_ref()), EventType::Warning, "UnParseableCronJobSchedule", why);
                }
            }
            return;
        }
        q.add(key);
    });
    let q = queue.clone();
    controller.jobs.on_change(move |change| {
        for job in [&change.old, &change.new].into_iter().flatten() {
            if let Some(owner) = ownership::controller_of(&job.metadata).filter(|o| o.kind == "CronJob") {
                q.add((job.namespace().unwrap_or_default(), owner.name.clone()));
            }
        }
    });
    run_workers(&context.tasks, "cronjob", context.workers(5), queue, move |key: (String, String)| {
        let controller = controller.clone();
        async move {
            controller.crons.synced().await;
            controller.jobs.synced().await;
            match controller.sync(&key.0, &key.1).await {
                Err(kube::Error::Api(s)) if s.code == 409 && s.reason == "Conflict" => Ok(Requeue::After(Duration::from_millis(10))),
                other => other,
            }
        }
    });
}

fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(s) if s.code == 404)
}

impl Controller {
    async fn sync(&self, namespace: &str, name: &str) -> kube::Result<Requeue> {
        let Some(cron) = self.crons.get(namespace, name).filter(|c| !self.written.is_stale(&c.metadata)) else {
            return Ok(Requeue::No);
        };
        let owned = |j: &Arc<Job>| ownership::controller_of(&j.metadata).is_some_and(|o| o.kind == "CronJob" && o.name == name);
        let jobs: Vec<Arc<Job>> = self.jobs.in_namespace(namespace).into_iter().filter(owned).collect();
        let api = Api::<Job>::namespaced(self.client.clone(), namespace);
        let mut gone = HashSet::new();
        for active in cron.status.iter().flat_map(|s| s.active.iter().flatten()) {
            let uid = active.uid.clone().unwrap_or_default();
            if jobs.iter().any(|j| j.uid().as_deref() == Some(&uid)) {
                continue;
            }
            // Made a moment ago perhaps: the informer may not know it yet.
            if api.get_opt(active.name.as_deref().unwrap_or("")).await?.is_none() {
                gone.insert(uid);
            }
        }
        let owner = Reference::of(cron.as_ref());
        let plan = plan::plan(&cron, &jobs, &gone, Timestamp::now());
        for (kind, reason, message) in &plan.events {
            self.recorder.event(&owner, *kind, reason, message.clone());
        }
        let mut forgotten = Ok(());
        for job in &plan.forget {
            forgotten = forgotten.and(self.delete(&api, &owner, &job.name_any()).await);
        }
        let mut status = plan.status.clone();
        let started = self.start_job(&api, &cron, &owner, &plan, &mut status).await;
        if cron.status.clone().unwrap_or_default() != status {
            let mut new = cron.as_ref().clone();
            new.status = Some(status);
            let crons = Api::<CronJob>::namespaced(self.client.clone(), namespace);
            match crons.replace_status(name, &PostParams::default(), &new).await {
                Ok(written) => self.written.wrote(&written.metadata),
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        started?;
        // The next time of the schedule may be far away, or never come.
        forgotten?;
        Ok(plan.again.map_or(Requeue::No, |again| Requeue::After(again.max(Duration::from_millis(1)))))
    }

    async fn start_job(&self, api: &Api<Job>, cron: &CronJob, owner: &Reference, plan: &Plan, status: &mut CronJobStatus) -> kube::Result<()> {
        let Some(time) = plan.start else { return Ok(()) };
        for running in &plan.replace {
            self.delete(api, owner, running.name.as_deref().unwrap_or("")).await?;
            status.active.iter_mut().for_each(|a| a.retain(|r| r.uid != running.uid));
        }
        status.active = status.active.take().filter(|a| !a.is_empty());
        let new = plan::new_job(cron, time);
        let job = match api.create(&PostParams::default(), &new).await {
            Ok(job) => {
                self.recorder.event(owner, EventType::Normal, "SuccessfulCreate", format!("Created job {}", job.name_any()));
                job
            }
            // Made before, by a pass that could not note it.
            Err(kube::Error::Api(s)) if s.code == 409 && s.reason == "AlreadyExists" => {
                let job = api.get(&new.name_any()).await?;
                let ours = ownership::controller_of(&job.metadata).map(|o| &o.uid) == cron.metadata.uid.as_ref();
                if !ours || status.active.iter().flatten().any(|a| a.uid == job.metadata.uid) {
                    return Ok(());
                }
                job
            }
            Err(error) => {
                let ending = matches!(&error, kube::Error::Api(s) if s.message.contains("because it is being terminated"));
                if !ending {
                    let why = format!("Error creating job: {}", pods::text(&error));
                    self.recorder.event(owner, EventType::Warning, "FailedCreate", why);
                }
                return Err(error);
            }
        };
        status.active.get_or_insert_default().push(plan::reference(&job));
        status.last_schedule_time = Some(Time(time));
        Ok(())
    }

    async fn delete(&self, api: &Api<Job>, owner: &Reference, name: &str) -> kube::Result<()> {
        match api.delete(name, &DeleteParams::background()).await {
            Ok(_) => self.recorder.event(owner, EventType::Normal, "SuccessfulDelete", format!("Deleted job {name}")),
            Err(error) if is_missing(&error) => {}
            Err(error) => {
                self.recorder.event(owner, EventType::Warning, "FailedDelete", format!("Deleted job: {}", pods::text(&error)));
                return Err(error);
            }
        }
        Ok(())
    }
}
