//! Frees pods that no job will ever count: those that have the finalizer and no owner, or whose job
//! is gone or has ended.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use reconcile::{Informer, Queue, Requeue, run_workers};
use rules::labels;
use serde_json::json;

use super::pod::tracked;
use super::{FINALIZER, plan};
use crate::pod::Pod;
use crate::{Context, ownership};

/// Starts the workers that free orphans.
pub fn start(context: &Context, jobs: &Informer<Job>, pods: &Informer<Pod>) {
    let queue = Queue::<(String, String)>::new();
    let (q, known) = (queue.clone(), jobs.clone());
    pods.on_change(move |change| {
        if let Some(pod) = change.new.as_ref().filter(|p| is_orphan(p, &known)) {
            q.add((pod.namespace().unwrap_or_default(), pod.name_any()));
        }
    });
    let (q, all) = (queue.clone(), pods.clone());
    jobs.on_change(move |change| {
        let job = change.latest();
        let Some(selector) = job.spec.as_ref().and_then(|s| s.selector.clone()) else { return };
        if change.new.is_some() && !plan::finished(job) {
            return;
        }
        for pod in all.in_namespace(&job.namespace().unwrap_or_default()) {
            if tracked(&pod) && labels::matches(&selector, pod.labels()) {
                q.add((pod.namespace().unwrap_or_default(), pod.name_any()));
            }
        }
    });
    let (client, jobs, pods) = (context.client.clone(), jobs.clone(), pods.clone());
    run_workers(&context.tasks, "job orphans", 2, queue, move |key: (String, String)| {
        let (client, jobs, pods) = (client.clone(), jobs.clone(), pods.clone());
        async move {
            jobs.synced().await;
            pods.synced().await;
            match pods.get(&key.0, &key.1).filter(|p| is_orphan(p, &jobs)) {
                Some(pod) => untrack(&client, &pod).await.map(|()| Requeue::No),
                None => Ok(Requeue::No),
            }
        }
    });
}

fn is_orphan(pod: &Arc<Pod>, jobs: &Informer<Job>) -> bool {
    tracked(pod)
        && match ownership::controller_of(&pod.metadata) {
            None => true,
            Some(owner) if owner.kind != "Job" || owner.api_version != "batch/v1" => false,
            // To be looked at again when the jobs are known.
            Some(_) if !jobs.has_synced() => true,
            Some(owner) => match jobs.get(&pod.namespace().unwrap_or_default(), &owner.name).filter(|j| j.uid().as_ref() == Some(&owner.uid)) {
                None => true,
                Some(job) => plan::finished(&job) && !managed_elsewhere(&job),
            },
        }
}

/// Whether the job says that another controller runs it.
pub fn managed_elsewhere(job: &Job) -> bool {
    job.spec.as_ref().and_then(|s| s.managed_by.as_deref()).is_some_and(|m| m != "kubernetes.io/job-controller")
}

/// Removes the finalizer; a pod that is gone needs nothing.
pub async fn untrack(client: &Client, pod: &Pod) -> kube::Result<()> {
    let api = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let patch = json!({"metadata": {"uid": pod.uid(), "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
    match api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}
