//! Reads a deployment and its replica sets, and does the next step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, labels, run_workers};
use serde_json::json;

use super::plan::{self, Scale, wanted};
use super::{DESIRED, MAX, REVISION, REVISION_HISTORY, status};
use crate::Context;
use crate::ownership::{self, Claim};
use crate::template::{self, HASH_LABEL};

#[derive(Clone)]
struct Controller {
    client: Client,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    recorder: Recorder,
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
    controller.deployments.on_change(move |c| q.add((c.latest().namespace().unwrap_or_default(), c.latest().name_any())));
    let (q, all) = (queue.clone(), controller.deployments.clone());
    controller.sets.on_change(move |change| {
        for set in [&change.old, &change.new].into_iter().flatten() {
            let namespace = set.namespace().unwrap_or_default();
            match ownership::controller_of(&set.metadata) {
                Some(owner) if owner.kind == "Deployment" => q.add((namespace, owner.name.clone())),
                Some(_) => {}
                None => all
                    .in_namespace(&namespace)
                    .iter()
                    .filter(|d| d.spec.as_ref().is_some_and(|s| labels::matches(&s.selector, set.labels())))
                    .for_each(|d| q.add((namespace.clone(), d.name_any()))),
            }
        }
    });
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
            match controller.sync(&key.0, &key.1).await {
                // Somebody was faster; the informer will say so.
                Err(kube::Error::Api(s)) if s.code == 409 && s.reason == "Conflict" => Ok(Requeue::After(Duration::from_millis(5))),
                other => other,
            }
        }
    });
}

impl Controller {
    async fn sync(&self, namespace: &str, name: &str) -> kube::Result<Requeue> {
        let Some(deployment) = self.deployments.get(namespace, name) else { return Ok(Requeue::No) };
        let sets = self.claim(&deployment).await?;
        let template = deployment.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        let set_template = |s: &ReplicaSet| s.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
        let existing = sets.iter().find(|s| template::same(&set_template(s), &template)).cloned();
        let now = Timestamp::now();
        if deployment.metadata.deletion_timestamp.is_some() {
            return self.write_status(&deployment, existing.as_deref(), &sets, now).await;
        }
        let paused = deployment.spec.as_ref().is_some_and(|s| s.paused == Some(true));
        let replicas = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
        let resized = sets
            .iter()
            .filter(|s| wanted(s) > 0)
            .any(|s| s.annotations().get(DESIRED).is_some_and(|d| *d != replicas.to_string()));
        if paused || resized {
            let mut newest_first: Vec<ReplicaSet> = sets.iter().map(|s| s.as_ref().clone()).collect();
            newest_first.sort_by_key(|s| std::cmp::Reverse(s.metadata.creation_timestamp.as_ref().map(|t| t.0)));
            if let Some(at) = existing.as_ref().and_then(|e| newest_first.iter().position(|s| s.uid() == e.uid())) {
                newest_first[..=at].rotate_right(1);
            }
            let scales = plan::proportional(&deployment, &newest_first);
            self.scale(&deployment, &sets, &scales, true).await?;
            return self.write_status(&deployment, existing.as_deref(), &sets, now).await;
        }
        if plan::recreates(&deployment) {
            let old: Vec<Scale> = sets
                .iter()
                .filter(|s| existing.as_ref().is_none_or(|e| e.uid() != s.uid()) && wanted(s) > 0)
                .map(|s| Scale { set: s.name_any(), to: 0 })
                .collect();
            let owners: Vec<String> = sets
                .iter()
                .filter(|s| existing.as_ref().is_none_or(|e| e.uid() != s.uid()))
                .filter_map(|s| s.uid())
                .collect();
            let running = self.pods.in_namespace(namespace).iter().any(|p| {
                !matches!(crate::pods::phase(p), "Succeeded" | "Failed")
                    && ownership::controller_of(&p.metadata).is_some_and(|o| owners.contains(&o.uid))
            });
            if !old.is_empty() || running {
                self.scale(&deployment, &sets, &old, false).await?;
                return self.write_status(&deployment, existing.as_deref(), &sets, now).await;
            }
            let Some(new) = self.newest(&deployment, existing, &sets).await? else {
                return Ok(Requeue::After(Duration::from_millis(5)));
            };
            if wanted(&new) != replicas {
                let scale = [Scale { set: new.name_any(), to: replicas }];
                self.scale(&deployment, &with(&sets, &new), &scale, false).await?;
            }
            return self.finish(&deployment, &new, &sets, now).await;
        }
        let Some(new) = self.newest(&deployment, existing, &sets).await? else {
            return Ok(Requeue::After(Duration::from_millis(5)));
        };
        let mut old: Vec<ReplicaSet> = sets.iter().filter(|s| s.uid() != new.uid()).map(|s| s.as_ref().clone()).collect();
        old.sort_by_key(|s| s.metadata.creation_timestamp.as_ref().map(|t| t.0));
        let scales = plan::rolling(&deployment, &new, &old);
        self.scale(&deployment, &with(&sets, &new), &scales, false).await?;
        self.finish(&deployment, &new, &sets, now).await
    }

    async fn finish(&self, deployment: &Deployment, new: &Arc<ReplicaSet>, sets: &[Arc<ReplicaSet>], now: Timestamp) -> kube::Result<Requeue> {
        let sets = with(sets, new);
        let numbers = status::numbers(deployment, Some(new), &sets);
        if status::complete(deployment, &numbers) {
            self.clean_up(deployment, new, &sets).await?;
        }
        self.write_status(deployment, Some(new), &sets, now).await
    }

    /// The replica sets that are the deployment's, after adopting and releasing.
    async fn claim(&self, deployment: &Deployment) -> kube::Result<Vec<Arc<ReplicaSet>>> {
        let namespace = deployment.namespace().unwrap_or_default();
        let uid = deployment.uid().unwrap_or_default();
        let Some(spec) = &deployment.spec else { return Ok(Vec::new()) };
        let api = Api::<ReplicaSet>::namespaced(self.client.clone(), &namespace);
        let mut sets = Vec::new();
        for set in self.sets.in_namespace(&namespace) {
            let matches = labels::matches(&spec.selector, set.labels());
            let set_uid = set.uid().unwrap_or_default();
            let patch = match ownership::claim(&uid, deployment.metadata.deletion_timestamp.is_some(), &set.metadata, matches) {
                Claim::Keep => {
                    sets.push(set);
                    continue;
                }
                Claim::Ignore => continue,
                Claim::Adopt => ownership::adopt_patch(&ownership::controller_reference(deployment), &set_uid),
                Claim::Release => ownership::release_patch(&uid, &set_uid),
            };
            let patched = api.patch(&set.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await?;
            if matches {
                sets.push(Arc::new(patched));
            }
        }
        Ok(sets)
    }

    /// The replica set of the current template, with the right revision; created when missing.
    /// Nothing when its name was taken by another template and a new name must be made.
    async fn newest(&self, deployment: &Deployment, existing: Option<Arc<ReplicaSet>>, sets: &[Arc<ReplicaSet>]) -> kube::Result<Option<Arc<ReplicaSet>>> {
        let namespace = deployment.namespace().unwrap_or_default();
        let api = Api::<ReplicaSet>::namespaced(self.client.clone(), &namespace);
        let spec = deployment.spec.clone().unwrap_or_default();
        let newest_old = sets
            .iter()
            .filter(|s| existing.as_ref().is_none_or(|e| e.uid() != s.uid()))
            .map(|s| revision(s.annotations()))
            .max()
            .unwrap_or(0);
        if let Some(set) = existing {
            let mut annotations = carried(deployment.annotations());
            let current = revision(set.annotations());
            if current <= newest_old {
                annotations.insert(REVISION.into(), (newest_old + 1).to_string());
                if current > 0 {
                    let history = set.annotations().get(REVISION_HISTORY).map_or(String::new(), |h| format!("{h},"));
                    annotations.insert(REVISION_HISTORY.into(), format!("{history}{current}"));
                }
            }
            let changed = annotations.iter().any(|(k, v)| set.annotations().get(k) != Some(v));
            let min_ready = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0) != spec.min_ready_seconds.unwrap_or(0);
            let set = if changed || min_ready {
                let patch = json!({"metadata": {"annotations": annotations}, "spec": {"minReadySeconds": spec.min_ready_seconds.unwrap_or(0)}});
                Arc::new(api.patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?)
            } else {
                set
            };
            self.set_revision(deployment, revision(set.annotations())).await?;
            return Ok(Some(set));
        }

        let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
        let name = template::hash(&spec.template, collisions);
        let mut template = spec.template.clone();
        let mut labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        labels.insert(HASH_LABEL.into(), name.clone());
        template.metadata.get_or_insert_default().labels = Some(labels.clone());
        let mut selector = spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), name.clone());
        let replicas = spec.replicas.unwrap_or(1);
        let mut annotations = carried(deployment.annotations());
        annotations.insert(REVISION.into(), (newest_old + 1).to_string());
        let fence = plan::fence(deployment);
        let surge = if plan::recreates(deployment) { 0 } else { fence.surge };
        annotations.insert(DESIRED.into(), replicas.to_string());
        annotations.insert(MAX.into(), (replicas + surge).to_string());
        let total: i32 = sets.iter().map(|s| wanted(s)).sum();
        let first = if plan::recreates(deployment) { replicas } else { (replicas + surge - total).clamp(0, replicas) };
        let set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{name}", deployment.name_any())),
                namespace: Some(namespace.clone()),
                labels: Some(labels),
                annotations: Some(annotations),
                owner_references: Some(vec![ownership::controller_reference(deployment)]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(first),
                min_ready_seconds: spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        };
        match api.create(&PostParams::default(), &set).await {
            Ok(set) => {
                let message = format!("Scaled up replica set {} from 0 to {first}", set.name_any());
                if first > 0 {
                    self.recorder.event(&Reference::of(deployment), EventType::Normal, "ScalingReplicaSet", message);
                }
                self.set_revision(deployment, newest_old + 1).await?;
                Ok(Some(Arc::new(set)))
            }
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                let taken = api.get(&set.name_any()).await?;
                let ours = ownership::controller_of(&taken.metadata).is_some_and(|o| Some(&o.uid) == deployment.metadata.uid.as_ref());
                let same = taken.spec.as_ref().and_then(|s| s.template.as_ref()).is_some_and(|t| template::same(t, &spec.template));
                if ours && same {
                    return Ok(Some(Arc::new(taken)));
                }
                let mut counted = deployment.clone();
                counted.status.get_or_insert_default().collision_count = Some(collisions.unwrap_or(0) + 1);
                Api::<Deployment>::namespaced(self.client.clone(), &namespace)
                    .replace_status(&deployment.name_any(), &PostParams::default(), &counted)
                    .await?;
                Ok(None)
            }
            Err(error) => {
                let message = format!("Failed to create new replica set {:?}: {}", set.name_any(), crate::pods::text(&error));
                self.recorder.event(&Reference::of(deployment), EventType::Warning, "ReplicaSetCreateError", message);
                Err(error)
            }
        }
    }

    async fn set_revision(&self, deployment: &Deployment, to: i64) -> kube::Result<()> {
        if revision(deployment.annotations()) == to {
            return Ok(());
        }
        let mut new = deployment.clone();
        new.annotations_mut().insert(REVISION.into(), to.to_string());
        let api = Api::<Deployment>::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        api.replace(&deployment.name_any(), &PostParams::default(), &new).await.map(|_| ())
    }

    async fn scale(&self, deployment: &Deployment, sets: &[Arc<ReplicaSet>], scales: &[Scale], annotate_all: bool) -> kube::Result<()> {
        let namespace = deployment.namespace().unwrap_or_default();
        let api = Api::<ReplicaSet>::namespaced(self.client.clone(), &namespace);
        let replicas = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
        let surge = if plan::recreates(deployment) { 0 } else { plan::fence(deployment).surge };
        let annotations = json!({DESIRED: replicas.to_string(), MAX: (replicas + surge).to_string()});
        for set in sets {
            let to = scales.iter().find(|s| s.set == set.name_any()).map(|s| s.to);
            let stale = set.annotations().get(DESIRED) != Some(&replicas.to_string());
            let from = wanted(set);
            if to.is_none() && !(annotate_all && stale && from > 0) {
                continue;
            }
            let to = to.unwrap_or(from);
            let patch = json!({"metadata": {"annotations": annotations, "resourceVersion": set.resource_version()}, "spec": {"replicas": to}});
            api.patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
            if to != from {
                let direction = if to > from { "up" } else { "down" };
                let message = format!("Scaled {direction} replica set {} from {from} to {to}", set.name_any());
                self.recorder.event(&Reference::of(deployment), EventType::Normal, "ScalingReplicaSet", message);
            }
        }
        Ok(())
    }

    /// Deletes the oldest revisions beyond the history limit.
    async fn clean_up(&self, deployment: &Deployment, new: &ReplicaSet, sets: &[Arc<ReplicaSet>]) -> kube::Result<()> {
        let limit = deployment.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10).max(0) as usize;
        let mut old: Vec<&Arc<ReplicaSet>> = sets
            .iter()
            .filter(|s| s.uid() != new.uid() && s.metadata.deletion_timestamp.is_none())
            .filter(|s| wanted(s) == 0 && s.status.as_ref().is_none_or(|s| s.replicas == 0))
            .collect();
        old.sort_by_key(|s| revision(s.annotations()));
        let api = Api::<ReplicaSet>::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        for set in old.iter().take(old.len().saturating_sub(limit)) {
            match api.delete(&set.name_any(), &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn write_status(&self, deployment: &Deployment, new: Option<&ReplicaSet>, sets: &[Arc<ReplicaSet>], now: Timestamp) -> kube::Result<Requeue> {
        let mut wanted = status::numbers(deployment, new, sets);
        status::availability(deployment, &mut wanted, now);
        let again = status::progress(deployment, new, &mut wanted, now);
        let mut old = deployment.status.clone().unwrap_or_default();
        old.terminating_replicas = None;
        for count in [
            &mut old.replicas,
            &mut old.updated_replicas,
            &mut old.ready_replicas,
            &mut old.available_replicas,
            &mut old.unavailable_replicas,
        ] {
            count.get_or_insert(0);
        }
        if old != wanted {
            let mut updated = deployment.clone();
            updated.status = Some(wanted);
            let api = Api::<Deployment>::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
            match api.replace_status(&deployment.name_any(), &PostParams::default(), &updated).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Requeue::No),
                Err(error) => return Err(error),
            }
        }
        Ok(again.map_or(Requeue::No, Requeue::After))
    }
}

fn with(sets: &[Arc<ReplicaSet>], new: &Arc<ReplicaSet>) -> Vec<Arc<ReplicaSet>> {
    let mut all: Vec<Arc<ReplicaSet>> = sets.iter().filter(|s| s.uid() != new.uid()).cloned().collect();
    all.push(new.clone());
    all
}

fn revision(annotations: &BTreeMap<String, String>) -> i64 {
    annotations.get(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// The deployment's annotations that its sets carry too, `kubernetes.io/change-cause` among them.
fn carried(annotations: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    const OWN: [&str; 6] =
        ["kubectl.kubernetes.io/last-applied-configuration", REVISION, REVISION_HISTORY, DESIRED, MAX, "deprecated.deployment.rollback.to"];
    annotations.iter().filter(|(k, _)| !OWN.contains(&k.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect()
}
