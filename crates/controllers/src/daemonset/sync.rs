//! Reads a daemon set, its pods and the nodes, plans, and acts.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use reconcile::{EventType, Informer, Queue, Reference, Requeue, run_workers};
use rules::labels;

use super::plan::{self, Actions, View};
use super::{Backoff, history, nodes};
use crate::Context;
use crate::ownership;
use crate::pod::Pod;
use crate::pods::{self, PodControl};

/// Most pods created, and most pods deleted, in one pass.
const BURST: usize = 250;

#[derive(Clone)]
pub struct Controller {
    pub control: PodControl,
    pub sets: Informer<DaemonSet>,
    pub nodes: Informer<Node>,
    pub revisions: Informer<ControllerRevision>,
    backoff: Arc<Mutex<Backoff>>,
}

/// Starts the controller.
pub fn start(context: &Context) {
    let controller = Controller {
        control: PodControl::new(context, "daemonset-controller"),
        sets: context.informers.of::<DaemonSet>(),
        nodes: context.informers.of::<Node>(),
        revisions: context.informers.of::<ControllerRevision>(),
        backoff: Arc::default(),
    };
    let queue = Queue::<(String, String)>::new();
    let q = queue.clone();
    controller.sets.on_change(move |c| q.add(ownership::key(c.latest().as_ref())));
    let selects = |set: &DaemonSet, pod: &Pod| set.spec.as_ref().is_some_and(|s| labels::matches(&s.selector, pod.labels()));
    ownership::wake_owners(&controller.control.pods, &controller.sets, &queue, selects);
    let selects =
        |set: &DaemonSet, r: &ControllerRevision| set.spec.as_ref().is_some_and(|s| labels::matches(&s.selector, r.labels()));
    let (q, sets) = (queue.clone(), controller.sets.clone());
    controller.revisions.on_change(move |change| {
        // One that is owned from its beginning is our own doing, or is left alone as upstream leaves it.
        let owned = change.new.as_ref().is_some_and(|r| ownership::controller_of(&r.metadata).is_some());
        if change.old.is_some() || !owned {
            ownership::owners_of(change, &sets, &selects).into_iter().for_each(|key| q.add(key));
        }
    });
    let (q, sets) = (queue.clone(), controller.sets.clone());
    controller.nodes.on_change(move |change| {
        let taints = |n: &Node| n.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && old.metadata.labels == new.metadata.labels
            && taints(old) == taints(new)
        {
            return;
        }
        sets.list().iter().for_each(|set| q.add(ownership::key(set.as_ref())));
    });
    run_workers(&context.tasks, "daemonset", context.workers(2), queue, move |key: (String, String)| {
        let controller = controller.clone();
        async move {
            controller.sets.synced().await;
            controller.control.pods.synced().await;
            controller.nodes.synced().await;
            controller.revisions.synced().await;
            pods::again_on_conflict(controller.sync(&key.0, &key.1).await)
        }
    });
}

impl Controller {
    async fn sync(&self, namespace: &str, name: &str) -> kube::Result<Requeue> {
        let Some(set) = self.sets.get(namespace, name) else { return Ok(Requeue::No) };
        let Some(spec) = set.spec.as_ref() else { return Ok(Requeue::No) };
        let reference = Reference::of(set.as_ref());
        if spec.selector == LabelSelector::default() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.control.recorder.event(&reference, EventType::Warning, "SelectingAll", message);
            return Ok(Requeue::No);
        }
        // Its revisions may be gone already, so nothing sure can be said of it.
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::No);
        }
        let pods = self.pods(&set).await?;
        let Some(revisions) = history::revisions(self, &set, &pods).await? else {
            return Ok(Requeue::After(std::time::Duration::from_millis(5)));
        };
        let nodes = self.nodes.list();
        let view = View::new(&set, &revisions.hash, &nodes, &pods, Timestamp::now());
        if !self.control.expectations.fulfilled(&reference.uid) {
            return self.write_status(&view, plan::status(&view, false)).await;
        }

        let actions = plan::manage(&view, &mut self.backoff.lock());
        let again = actions.again;
        let quiet = actions.create.is_empty() && actions.delete.is_empty();
        let mut outcome = self.act(&reference, &view, actions).await;
        // What has just been done changes the picture; the rollout goes on when it can be seen.
        if outcome.is_ok() && quiet {
            outcome = self.act(&reference, &view, plan::rolling(&view)).await;
        }
        if outcome.is_ok() {
            outcome = history::clean_up(self, &set, &revisions.old, &pods).await;
        }
        let requeue = self.write_status(&view, plan::status(&view, true)).await;
        outcome?;
        Ok(match (requeue?, again) {
            (Requeue::After(a), Some(b)) => Requeue::After(a.min(b)),
            (Requeue::No, Some(b)) => Requeue::After(b),
            (requeue, None) => requeue,
        })
    }

    async fn pods(&self, set: &DaemonSet) -> kube::Result<Vec<Arc<Pod>>> {
        let namespace = set.namespace().unwrap_or_default();
        let fits = |p: &Pod| set.spec.as_ref().is_some_and(|s| labels::matches(&s.selector, p.labels()));
        ownership::claim_all(&self.control.client, set, self.control.pods.in_namespace(&namespace), fits).await
    }

    async fn act(&self, reference: &Reference, view: &View<'_>, actions: Actions) -> kube::Result<()> {
        for (kind, reason, message) in actions.events {
            self.control.recorder.event(reference, kind, reason, message);
        }
        let template = nodes::template(view.set, view.hash);
        let owner = ownership::controller_reference(view.set);
        let pod_for = |node: &String| {
            let mut pod = pods::from_template(&reference.namespace, format!("{}-", reference.name), &template, owner.clone());
            nodes::pin(pod.spec.get_or_insert_default(), node);
            pod
        };
        let new = actions.create.iter().take(BURST).map(pod_for).collect();
        let created = self.control.create(reference, new).await;
        let deleted = self.control.delete(reference, &actions.delete[..actions.delete.len().min(BURST)]).await;
        created.map(|_| ()).and(deleted)
    }

    async fn write_status(&self, view: &View<'_>, status: DaemonSetStatus) -> kube::Result<Requeue> {
        let waits = view.pods.values().flatten().filter_map(|p| pods::availability(p, view.min_ready(), view.now).err().flatten());
        let requeue = waits.min().map_or(Requeue::No, Requeue::After);
        let mut old = view.set.status.clone().unwrap_or_default();
        for count in [&mut old.updated_number_scheduled, &mut old.number_available, &mut old.number_unavailable] {
            count.get_or_insert(0);
        }
        if old == status {
            return Ok(requeue);
        }
        let api = Api::<DaemonSet>::namespaced(self.control.client.clone(), &view.set.namespace().unwrap_or_default());
        let mut new = view.set.clone();
        new.status = Some(status);
        match api.replace_status(&view.set.name_any(), &PostParams::default(), &new).await {
            Ok(_) => Ok(requeue),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Requeue::No),
            Err(error) => Err(error),
        }
    }
}
