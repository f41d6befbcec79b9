//! The revisions of a daemon set: the wanted one is found or made, doubles of it are merged, old ones
//! beyond the limit go.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use rules::labels;
use serde_json::json;

use super::sync::Controller;
use crate::history::{self, Created, REVISION_LABEL};
use crate::ownership;
use crate::pod::Pod;

/// The revisions of a set.
pub struct Revisions {
    /// The hash of the wanted one, which its pods carry.
    pub hash: String,
    /// All others, oldest first.
    pub old: Vec<Arc<ControllerRevision>>,
}

/// Finds or makes the wanted revision. Nothing when its name is taken: then the set has got a new
/// collision count, and comes back with it.
pub async fn revisions(controller: &Controller, set: &DaemonSet, pods: &[Arc<Pod>]) -> kube::Result<Option<Revisions>> {
    let namespace = set.namespace().unwrap_or_default();
    let client = &controller.control.client;
    let Some(spec) = &set.spec else { return Ok(None) };
    let fits = |r: &ControllerRevision| labels::matches(&spec.selector, r.labels());
    let mut all = ownership::claim_all(client, set, controller.revisions.in_namespace(&namespace), fits).await?;
    for revision in &mut all {
        if !revision.labels().contains_key(REVISION_LABEL) {
            let mut labelled = revision.as_ref().clone();
            labelled.labels_mut().insert(REVISION_LABEL.into(), revision.name_any());
            *revision = Arc::new(history::replace(client, &labelled).await?);
        }
    }
    history::sort(&mut all);
    let (mut wanted, old): (Vec<_>, Vec<_>) = all.into_iter().partition(|r| history::keeps(r, &spec.template));
    let number = history::next_number(&old);
    let current = match wanted.pop() {
        None => {
            let collisions = set.status.as_ref().and_then(|s| s.collision_count);
            let new = history::new(set, &spec.template, number, collisions, REVISION_LABEL);
            match history::create(client, &new).await? {
                Created::There(revision) => Arc::from(revision),
                Created::Collision => {
                    let mut counted = set.clone();
                    counted.status.get_or_insert_default().collision_count = Some(collisions.unwrap_or(0) + 1);
                    let api = Api::<DaemonSet>::namespaced(client.clone(), &namespace);
                    api.replace_status(&set.name_any(), &PostParams::default(), &counted).await?;
                    return Ok(None);
                }
            }
        }
        Some(newest) => {
            merge(controller, &namespace, &newest, &wanted, pods).await?;
            match newest.revision < number {
                true => Arc::new(history::renumber(client, &newest, number).await?),
                false => newest,
            }
        }
    };
    let hash = current.labels().get(REVISION_LABEL).cloned().unwrap_or_default();
    Ok(Some(Revisions { hash, old }))
}

/// Deletes doubles of `newest`, after its pods have been told that they are of that one.
async fn merge(
    controller: &Controller,
    namespace: &str,
    newest: &ControllerRevision,
    doubles: &[Arc<ControllerRevision>],
    pods: &[Arc<Pod>],
) -> kube::Result<()> {
    if doubles.is_empty() {
        return Ok(());
    }
    let hash = newest.labels().get(REVISION_LABEL);
    let is_double = |p: &&Arc<Pod>| {
        let label = p.labels().get(REVISION_LABEL);
        label != hash && doubles.iter().any(|d| d.labels().get(REVISION_LABEL) == label)
    };
    let api = Api::<Pod>::namespaced(controller.control.client.clone(), namespace);
    for pod in pods.iter().filter(is_double) {
        let patch = json!({"metadata": {"labels": {REVISION_LABEL: hash}}});
        api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    let names: Vec<String> = doubles.iter().map(|d| d.name_any()).collect();
    history::delete(&controller.control.client, namespace, &names).await
}

/// Deletes the oldest revisions beyond the set's limit which no pod is of.
pub async fn clean_up(controller: &Controller, set: &DaemonSet, old: &[Arc<ControllerRevision>], pods: &[Arc<Pod>]) -> kube::Result<()> {
    let limit = set.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
    let live = history::live(pods.iter().map(Arc::as_ref));
    let used = |r: &ControllerRevision| r.labels().get(REVISION_LABEL).is_some_and(|h| live.contains(h));
    let names = history::excess(old, limit, used, true);
    history::delete(&controller.control.client, &set.namespace().unwrap_or_default(), &names).await
}
