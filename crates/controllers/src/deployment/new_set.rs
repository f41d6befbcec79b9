//! The replica set of a deployment's template: made when there is none, and kept at the newest revision.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use reconcile::{EventType, Reference};
use serde_json::json;

use super::sync::{Controller, Sets};
use super::{DESIRED, MAX, REVISION, REVISION_HISTORY, plan, revision, status};
use crate::template::{self, HASH_LABEL};
use crate::{ownership, pods};

/// Longest annotation of past revisions, in characters.
const MAX_HISTORY: usize = 2000;
/// Longest name of an object.
const MAX_NAME: usize = 253;

impl Controller {
    /// Brings the new set's annotations and the deployment's revision up to date. False when the
    /// deployment has been written: then it comes back.
    pub async fn adjust_new(&self, deployment: &Deployment, sets: &mut Sets, now: Timestamp) -> kube::Result<bool> {
        let Some(set) = &sets.new else { return Ok(true) };
        let annotations = annotations(deployment, set.annotations(), sets.old_revision() + 1);
        let min_ready = deployment.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
        if annotations != *set.annotations() || set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0) != min_ready {
            let patch = json!({"metadata": {"annotations": annotations}, "spec": {"minReadySeconds": min_ready}});
            let api = Api::<ReplicaSet>::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
            let patched = api.patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
            sets.new = Some(Arc::new(patched));
            return Ok(true);
        }
        let mut new = deployment.clone();
        if let Some(number) = set.annotations().get(REVISION) {
            new.annotations_mut().insert(REVISION.into(), number.clone());
        }
        let known = new.status.as_ref().is_some_and(|s| status::condition(s, "Progressing").is_some());
        if status::deadline(deployment).is_some() && !known {
            let message = format!("Found new replica set {:?}", set.name_any());
            status::set(new.status.get_or_insert_default(), "Progressing", "True", "FoundNewReplicaSet", message, now);
        }
        if new == *deployment {
            return Ok(true);
        }
        self.put(&new).await?;
        Ok(false)
    }

    /// Creates the set of the deployment's template. The deployment then comes back, as it does when the
    /// name was taken by another template and a new name must be made.
    pub async fn create_new(&self, deployment: &Deployment, sets: &Sets, now: Timestamp) -> kube::Result<()> {
        let api = Api::<ReplicaSet>::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
        let number = sets.old_revision() + 1;
        let set = new_set(deployment, &sets.old, number, collisions);
        let name = set.name_any();
        let mut told = deployment.clone();
        match api.create(&PostParams::default(), &set).await {
            Ok(_) => {
                let size = plan::wanted(&set);
                if size > 0 {
                    let message = format!("Scaled up replica set {name} from 0 to {size}");
                    self.recorder.event(&Reference::of(deployment), EventType::Normal, "ScalingReplicaSet", message);
                }
                told.annotations_mut().insert(REVISION.into(), number.to_string());
                if status::deadline(deployment).is_some() {
                    let message = format!("Created new replica set {name:?}");
                    status::set(told.status.get_or_insert_default(), "Progressing", "True", "NewReplicaSetCreated", message, now);
                }
                self.put(&told).await
            }
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                let taken = api.get(&name).await?;
                let ours = ownership::controller_of(&taken.metadata).is_some_and(|o| Some(&o.uid) == deployment.metadata.uid.as_ref());
                let templates = (taken.spec.and_then(|s| s.template), deployment.spec.as_ref().map(|s| &s.template));
                let same = matches!(&templates, (Some(a), Some(b)) if template::same(a, b));
                if ours && same {
                    // The informer has not shown it yet.
                    return Ok(());
                }
                told.status.get_or_insert_default().collision_count = Some(collisions.unwrap_or(0) + 1);
                self.put(&told).await
            }
            Err(error) if pods::namespace_is_ending(&error) => Err(error),
            Err(error) => {
                let message = format!("Failed to create new replica set {name:?}: {}", pods::text(&error));
                self.recorder.event(&Reference::of(deployment), EventType::Warning, "ReplicaSetCreateError", message.clone());
                if status::deadline(deployment).is_some() {
                    status::set(told.status.get_or_insert_default(), "Progressing", "False", "ReplicaSetCreateError", message, now);
                    if told != *deployment {
                        self.put(&told).await?;
                    }
                }
                Err(error)
            }
        }
    }
}

fn new_set(deployment: &Deployment, old: &[Arc<ReplicaSet>], number: i64, collisions: Option<i32>) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let hash = template::hash(&spec.template, collisions);
    let mut template = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
    let mut annotations = annotations(deployment, &BTreeMap::new(), number);
    annotations.insert(DESIRED.into(), plan::replicas(deployment).to_string());
    annotations.insert(MAX.into(), plan::most(deployment).to_string());
    let mut name = deployment.name_any();
    name.truncate(MAX_NAME - 1 - hash.len());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}")),
            namespace: deployment.namespace(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![ownership::controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(plan::first_size(deployment, old)),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

/// What a set that has `before` carries as annotations: the deployment's, `kubernetes.io/change-cause`
/// among them, and the newest revision. A set that becomes current again keeps its past revisions.
fn annotations(deployment: &Deployment, before: &BTreeMap<String, String>, number: i64) -> BTreeMap<String, String> {
    const OWN: [&str; 6] =
        ["kubectl.kubernetes.io/last-applied-configuration", REVISION, REVISION_HISTORY, DESIRED, MAX, "deprecated.deployment.rollback.to"];
    let mut after = before.clone();
    let carried = deployment.annotations().iter().filter(|(k, _)| !OWN.contains(&k.as_str()));
    after.extend(carried.map(|(k, v)| (k.clone(), v.clone())));
    let Some(current) = before.get(REVISION) else {
        after.insert(REVISION.into(), number.to_string());
        return after;
    };
    // What is no number was not written by us, and stays.
    if current.parse::<i64>().is_ok() && revision(before) < number {
        after.insert(REVISION.into(), number.to_string());
        let mut past: Vec<&str> = before.get(REVISION_HISTORY).map_or("", String::as_str).split(',').filter(|p| !p.is_empty()).collect();
        past.push(current);
        while past.len() > 1 && past.iter().map(|p| p.len() + 1).sum::<usize>() > MAX_HISTORY + 1 {
            past.remove(0);
        }
        after.insert(REVISION_HISTORY.into(), past.join(","));
    }
    after
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(name: &str) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "x", "uid": "u", "annotations": {"kubernetes.io/change-cause": "why", REVISION: "7"}},
            "spec": {"replicas": 4, "selector": {"matchLabels": {"app": "a"}}, "template": {"metadata": {"labels": {"app": "a"}}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}}}}))
        .expect("a deployment")
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn a_new_set_carries_hash_sizes_and_revision() {
        let set = new_set(&deployment("d"), &[], 3, None);
        let hash = &set.labels()[HASH_LABEL];
        assert_eq!(set.name_any(), format!("d-{hash}"));
        assert_eq!((set.metadata.namespace.as_deref(), ownership::controller_of(&set.metadata).map(|o| o.name.as_str())), (Some("x"), Some("d")));
        assert_eq!(
            *set.annotations(),
            map(&[("kubernetes.io/change-cause", "why"), (REVISION, "3"), (DESIRED, "4"), (MAX, "5")])
        );
        let spec = set.spec.clone().expect("a spec");
        assert_eq!(spec.selector.match_labels.expect("labels")[HASH_LABEL], *hash);
        assert_eq!(spec.template.and_then(|t| t.metadata).and_then(|m| m.labels).expect("labels")[HASH_LABEL], *hash);
        assert_eq!(new_set(&deployment(&"n".repeat(253)), &[], 1, None).name_any().len(), 253);
    }

    #[test]
    fn a_set_that_becomes_current_again_keeps_its_past() {
        let d = deployment("d");
        let cause = ("kubernetes.io/change-cause", "why");
        assert_eq!(annotations(&d, &map(&[(REVISION, "2")]), 2), map(&[cause, (REVISION, "2")]));
        assert_eq!(annotations(&d, &map(&[(REVISION, "2")]), 5), map(&[cause, (REVISION, "5"), (REVISION_HISTORY, "2")]));
        let again = map(&[(REVISION, "5"), (REVISION_HISTORY, "1,2")]);
        assert_eq!(annotations(&d, &again, 9)[REVISION_HISTORY], "1,2,5");
        assert_eq!(annotations(&d, &map(&[(REVISION, "mine")]), 9)[REVISION], "mine");
        let long = vec!["1000000"; 250].join(",");
        let cut = &annotations(&d, &map(&[(REVISION, "1000001"), (REVISION_HISTORY, &long)]), 1_000_002)[REVISION_HISTORY];
        assert!(cut.len() <= MAX_HISTORY && cut.ends_with(",1000001"));
        // As many as there is just room for.
        let full = format!("{},1000000", vec!["100"; (MAX_HISTORY - 15) / 4].join(","));
        let kept = |past: &str| annotations(&d, &map(&[(REVISION, "1000001"), (REVISION_HISTORY, past)]), 1_000_002)[REVISION_HISTORY].len();
        let spare = MAX_HISTORY - (full.len() + 8);
        assert!(spare < 4);
        assert_eq!(kept(&format!("{}{full}", "1".repeat(spare))), MAX_HISTORY);
        assert!(kept(&format!("{}{full}", "1".repeat(spare + 1))) < MAX_HISTORY);
    }
}
