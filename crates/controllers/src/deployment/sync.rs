//! Reads a deployment and its replica sets, and does the next step.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, run_workers};
use rules::labels;
use serde_json::json;

use super::plan::{self, Scale, wanted};
use super::{DESIRED, MAX, revision, status};
use crate::pod::Pod;
use crate::{Context, ownership, pods, template};

/// How long a pass that waits for its own write to be seen waits at most.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(super) struct Controller {
    pub client: Client,
    pub deployments: Informer<Deployment>,
    pub sets: Informer<ReplicaSet>,
    pub pods: Informer<Pod>,
    pub recorder: Recorder,
}

/// A deployment's sets: that of its template, when there is one, and all others.
pub(super) struct Sets {
    pub new: Option<Arc<ReplicaSet>>,
    pub old: Vec<Arc<ReplicaSet>>,
}

impl Sets {
    /// The oldest set of the template is the new one.
    fn split(deployment: &Deployment, mut all: Vec<Arc<ReplicaSet>>) -> Sets {
        let wanted = deployment.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        all.sort_by_cached_key(|s| plan::age(s));
        let same = |s: &Arc<ReplicaSet>| s.spec.as_ref().and_then(|s| s.template.as_ref()).is_some_and(|t| template::same(t, &wanted));
        let new = all.iter().position(same).map(|at| all.remove(at));
        Sets { new, old: all }
    }

    fn all(&self) -> Vec<Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new).cloned().collect()
    }

    /// The newest revision among the old ones.
    pub fn old_revision(&self) -> i64 {
        self.old.iter().map(|s| revision(s.annotations())).max().unwrap_or(0)
    }
}

/// Starts the controller.
pub fn start(context: &Context) {
    let controller = Controller {
        client: context.client.clone(),
        deployments: context.informers.of::<Deployment>(),
        sets: context.informers.of::<ReplicaSet>(),
        pods: context.informers.of::<Pod>(),
        recorder: Recorder::new(&context.tasks, context.client.clone(), "deployment-controller", None),
    };
    let queue = Queue::<(String, String)>::new();
    let q = queue.clone();
    controller.deployments.on_change(move |c| q.add(ownership::key(c.latest().as_ref())));
    ownership::wake_owners(&controller.sets, &controller.deployments, &queue, |d: &Deployment, s: &ReplicaSet| selects(d, s));
    // A Recreate deployment waits for its last old pod to be gone.
    let (q, sets) = (queue.clone(), controller.sets.clone());
    controller.pods.on_change(move |change| {
        if change.new.is_some() {
            return;
        }
        let pod = change.latest();
        let namespace = pod.namespace().unwrap_or_default();
        let set = ownership::controller_of(&pod.metadata).and_then(|o| sets.get(&namespace, &o.name));
        if let Some(owner) = set.as_ref().and_then(|s| ownership::controller_of(&s.metadata)) {
            q.add((namespace, owner.name.clone()));
        }
    });
    run_workers(&context.tasks, "deployment", context.workers(5), queue, move |key: (String, String)| {
        let controller = controller.clone();
        async move {
            controller.deployments.synced().await;
            controller.sets.synced().await;
            controller.pods.synced().await;
            pods::again_on_conflict(controller.sync(&key.0, &key.1).await)
        }
    });
}

fn selects(deployment: &Deployment, set: &ReplicaSet) -> bool {
    deployment.spec.as_ref().is_some_and(|s| labels::matches(&s.selector, set.labels()))
}

impl Controller {
    async fn sync(&self, namespace: &str, name: &str) -> kube::Result<Requeue> {
        let Some(deployment) = self.deployments.get(namespace, name) else { return Ok(Requeue::No) };
        let now = Timestamp::now();
        if deployment.spec.as_ref().is_some_and(|s| s.selector == LabelSelector::default()) {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.event(&Reference::of(deployment.as_ref()), EventType::Warning, "SelectingAll", message);
            return Ok(Requeue::No);
        }
        let all = self.sets.in_namespace(namespace);
        let all = ownership::claim_all(&self.client, deployment.as_ref(), all, |s| selects(&deployment, s)).await?;
        let mut sets = Sets::split(&deployment, all);

        let going = deployment.metadata.deletion_timestamp.is_some();
        if !going && let Some(paused) = status::pause(&deployment, now) {
            self.put_status(&deployment, paused).await?;
            return Ok(Requeue::After(PATIENCE));
        }
        if !self.adjust_new(&deployment, &mut sets, now).await? {
            return Ok(Requeue::After(PATIENCE));
        }
        let paused = deployment.spec.as_ref().is_some_and(|s| s.paused == Some(true));
        if going || paused || plan::is_resized(&deployment, &sets.all()) {
            if !going {
                let scales = plan::resize(&deployment, sets.new.as_ref(), &sets.old);
                self.scale(&deployment, &mut sets, &scales).await?;
            }
            if paused && !going {
                self.clean_up(&deployment, &sets).await?;
            }
            return self.tell(&deployment, &sets, false, now).await;
        }
        if plan::recreates(&deployment) {
            let scales: Vec<Scale> = sets.old.iter().filter(|s| wanted(s) > 0).map(|s| Scale { set: s.name_any(), to: 0 }).collect();
            self.scale(&deployment, &mut sets, &scales).await?;
            if !scales.is_empty() || self.old_pods_run(&sets) {
                return self.tell(&deployment, &sets, true, now).await;
            }
        }
        let Some(new) = sets.new.clone() else {
            self.create_new(&deployment, &sets, now).await?;
            return Ok(Requeue::After(PATIENCE));
        };
        let scales = match plan::recreates(&deployment) {
            true if wanted(&new) != plan::replicas(&deployment) => vec![Scale { set: new.name_any(), to: plan::replicas(&deployment) }],
            true => Vec::new(),
            false => plan::rolling(&deployment, &new, &sets.old),
        };
        self.scale(&deployment, &mut sets, &scales).await?;
        if scales.is_empty() && deployment.status.as_ref().is_some_and(|s| status::complete(&deployment, s)) {
            self.clean_up(&deployment, &sets).await?;
        }
        self.tell(&deployment, &sets, true, now).await
    }

    /// Whether a pod of an old set has not ended yet.
    fn old_pods_run(&self, sets: &Sets) -> bool {
        let namespace = sets.old.first().and_then(|s| s.namespace()).unwrap_or_default();
        let of_old = |p: &Arc<Pod>| {
            let owner = ownership::controller_of(&p.metadata).map(|o| &o.uid);
            sets.old.iter().any(|s| s.metadata.uid.as_ref() == owner && owner.is_some())
        };
        sets.old.iter().any(|s| s.status.as_ref().is_some_and(|s| s.replicas > 0))
            || self.pods.in_namespace(&namespace).iter().any(|p| of_old(p) && !matches!(pods::phase(p), "Succeeded" | "Failed"))
    }

    /// Scales sets, notes on each the sizes that were wanted, and puts the outcome into `sets`.
    async fn scale(&self, deployment: &Deployment, sets: &mut Sets, scales: &[Scale]) -> kube::Result<()> {
        let api = Api::<ReplicaSet>::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        let (desired, max) = (plan::replicas(deployment).to_string(), plan::most(deployment).to_string());
        for set in sets.old.iter_mut().chain(&mut sets.new) {
            let Some(scale) = scales.iter().find(|s| s.set == set.name_any()) else { continue };
            let from = wanted(set);
            let noted = |key: &str, value: &String| set.annotations().get(key) == Some(value);
            if from == scale.to && noted(DESIRED, &desired) && noted(MAX, &max) {
                continue;
            }
            let patch = json!({
                "metadata": {"annotations": {DESIRED: desired, MAX: max}, "resourceVersion": set.resource_version()},
                "spec": {"replicas": scale.to}
            });
            *set = Arc::new(api.patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?);
            if scale.to != from {
                let direction = if scale.to > from { "up" } else { "down" };
                let message = format!("Scaled {direction} replica set {} from {from} to {}", set.name_any(), scale.to);
                self.recorder.event(&Reference::of(deployment), EventType::Normal, "ScalingReplicaSet", message);
            }
        }
        Ok(())
    }

    /// Deletes the oldest revisions beyond the history limit.
    async fn clean_up(&self, deployment: &Deployment, sets: &Sets) -> kube::Result<()> {
        let api = Api::<ReplicaSet>::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        for name in plan::expired(deployment, &sets.old) {
            match api.delete(&name, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes the status; that of a rollout also tells how it goes on.
    async fn tell(&self, deployment: &Deployment, sets: &Sets, rollout: bool, now: Timestamp) -> kube::Result<Requeue> {
        let all = sets.all();
        let mut wanted = status::numbers(deployment, sets.new.as_deref(), &all, now);
        let mut again = None;
        if rollout {
            status::progress(deployment, sets.new.as_deref(), &all, &mut wanted, now);
            again = status::next_check(deployment, &wanted, now);
        }
        if status::filled(deployment.status.clone().unwrap_or_default()) != wanted {
            self.put_status(deployment, wanted).await?;
        }
        Ok(again.map_or(Requeue::No, Requeue::After))
    }

    /// Writes a deployment's status.
    pub async fn put_status(&self, deployment: &Deployment, status: DeploymentStatus) -> kube::Result<()> {
        let new = Deployment { status: Some(status), ..deployment.clone() };
        self.put(&new).await
    }

    /// Writes a deployment's status and annotations.
    pub async fn put(&self, deployment: &Deployment) -> kube::Result<()> {
        let api = Api::<Deployment>::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        match api.replace_status(&deployment.name_any(), &PostParams::default(), deployment).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }
}
