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
        // Without the jobs nothing can be said: it is looked at again when they are known.
        let find = |namespace: &str, name: &str| known.get(namespace, name);
        if let Some(pod) = change.new.as_ref().filter(|p| tracked(p) && (!known.has_synced() || is_orphan(p, find))) {
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
            match pods.get(&key.0, &key.1).filter(|p| is_orphan(p, |namespace, name| jobs.get(namespace, name))) {
                Some(pod) => untrack(&client, &pod).await.map(|()| Requeue::No),
                None => Ok(Requeue::No),
            }
        }
    });
}

/// `find` finds a job by its namespace and name.
fn is_orphan(pod: &Pod, find: impl Fn(&str, &str) -> Option<Arc<Job>>) -> bool {
    tracked(pod)
        && match ownership::controller_of(&pod.metadata) {
            None => true,
            Some(owner) if owner.kind != "Job" || owner.api_version != "batch/v1" => false,
            Some(owner) => match find(&pod.namespace().unwrap_or_default(), &owner.name).filter(|j| j.uid().as_ref() == Some(&owner.uid)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_no_job_will_count_are_freed() {
        let job = |change: serde_json::Value| {
            let mut job = json!({"metadata": {"name": "j", "uid": "j"}, "spec": {"template": {}}});
            job.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
            Some(Arc::new(serde_json::from_value::<Job>(job).expect("a job")))
        };
        let owned = |api_version: &str, kind: &str| json!([{"apiVersion": api_version, "kind": kind, "name": "j", "uid": "j", "controller": true}]);
        let freed = |finalizers: &[&str], owners: serde_json::Value, job: Option<Arc<Job>>| {
            let pod = json!({"metadata": {"name": "p", "namespace": "n", "finalizers": finalizers, "ownerReferences": owners}});
            let find = |namespace: &str, name: &str| job.clone().filter(|_| (namespace, name) == ("n", "j"));
            is_orphan(&serde_json::from_value(pod).expect("a pod"), find)
        };
        let ours = || owned("batch/v1", "Job");
        let (running, ended) = (json!({}), json!({"status": {"conditions": [{"type": "Complete", "status": "True"}]}}));
        assert!(freed(&[FINALIZER], json!([]), None), "nobody owns it");
        assert!(freed(&[FINALIZER], ours(), None), "its job is gone");
        assert!(freed(&[FINALIZER], ours(), job(ended.clone())));
        assert!(freed(&[FINALIZER], ours(), job(json!({"metadata": {"name": "j", "uid": "another"}}))), "a later job of that name is not its own");
        assert!(!freed(&[FINALIZER], ours(), job(running)));
        assert!(!freed(&[], ours(), None), "it has no finalizer");
        assert!(!freed(&[FINALIZER], owned("batch/v1", "CronJob"), None) && !freed(&[FINALIZER], owned("example.com/v1", "Job"), None));
        let managed = |by: &str| {
            let mut ended = ended.clone();
            ended["spec"] = json!({"template": {}, "managedBy": by});
            freed(&[FINALIZER], ours(), job(ended))
        };
        assert!(managed("kubernetes.io/job-controller") && !managed("example.com/controller"), "another controller counts its own");
    }
}
