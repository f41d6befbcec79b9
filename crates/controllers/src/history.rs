//! ControllerRevisions: the past templates of daemon sets and stateful sets, each named by a hash and
//! numbered in the order in which they were wanted. What `kubectl rollout history` and `undo` read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::ownership::{self, Namespaced};
use crate::template;

/// Label of a pod: the revision that made it. A daemon set's is the hash, a stateful set's the name.
pub const REVISION_LABEL: &str = "controller-revision-hash";
/// Label of a revision: its hash.
pub const HASH_LABEL: &str = "controller.kubernetes.io/hash";

/// Longest part of an owner's name in that of its revisions.
const MAX_PREFIX: usize = 223;

/// The patch that a revision keeps: it puts the template back as it was, whatever is there now.
pub fn patch(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).expect("a template is always JSON");
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// The template that a revision keeps; nothing when it is none of ours.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    serde_json::from_value(revision.data.as_ref()?.0.pointer("/spec/template")?.clone()).ok()
}

/// Whether a revision keeps this template.
pub fn keeps(revision: &ControllerRevision, template: &PodTemplateSpec) -> bool {
    template_of(revision).is_some_and(|t| template::same(&t, template))
}

/// The name of an owner's revision.
pub fn name(owner: &str, hash: &str) -> String {
    let end = owner.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= MAX_PREFIX).last().unwrap_or(0);
    format!("{}-{hash}", &owner[..end])
}

/// Orders revisions from the oldest to the newest.
pub fn sort(revisions: &mut [Arc<ControllerRevision>]) {
    revisions.sort_by_cached_key(|r| (r.revision, r.metadata.creation_timestamp.as_ref().map(|t| t.0), r.name_any()));
}

/// The number of the next revision.
pub fn next_number(revisions: &[Arc<ControllerRevision>]) -> i64 {
    revisions.iter().map(|r| r.revision).max().unwrap_or(0) + 1
}

/// A new revision of `owner`, which keeps `template` and is labelled with its hash under `label`.
pub fn new<K: Namespaced>(owner: &K, template: &PodTemplateSpec, number: i64, collisions: Option<i32>, label: &str) -> ControllerRevision {
    let hash = template::hash(template, collisions);
    let mut labels: BTreeMap<String, String> = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    labels.insert(label.into(), hash.clone());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name(&owner.name_any(), &hash)),
            namespace: owner.namespace(),
            labels: Some(labels),
            annotations: owner.meta().annotations.clone(),
            owner_references: Some(vec![ownership::controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(patch(template))),
        revision: number,
    }
}

/// The revisions beyond `limit`, oldest first, among those that are not `live`. `revisions` are
/// ordered, and without the one that is wanted now.
pub fn excess(revisions: &[Arc<ControllerRevision>], limit: i32, live: impl Fn(&ControllerRevision) -> bool, live_count_too: bool) -> Vec<String> {
    let dead: Vec<&Arc<ControllerRevision>> = revisions.iter().filter(|r| !live(r)).collect();
    let counted = if live_count_too { revisions.len() } else { dead.len() };
    let Ok(limit) = usize::try_from(limit) else { return Vec::new() };
    dead.iter().take(counted.saturating_sub(limit)).map(|r| r.name_any()).collect()
}

/// The templates' hashes or names that pods say they were made from.
pub fn live<'a>(pods: impl Iterator<Item = &'a crate::pod::Pod>) -> BTreeSet<String> {
    pods.filter_map(|p| p.labels().get(REVISION_LABEL).cloned()).collect()
}

/// What became of an attempt to create a revision.
#[derive(Debug)]
pub enum Created {
    /// It is there now, or was there already.
    There(Box<ControllerRevision>),
    /// Its name is taken by a different one.
    Collision,
}

/// Creates a revision.
pub async fn create(client: &Client, revision: &ControllerRevision) -> kube::Result<Created> {
    let api = Api::<ControllerRevision>::namespaced(client.clone(), &revision.namespace().unwrap_or_default());
    match api.create(&PostParams::default(), revision).await {
        Ok(created) => Ok(Created::There(Box::new(created))),
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
            let taken = api.get(&revision.name_any()).await?;
            let same = template_of(revision).is_some_and(|t| keeps(&taken, &t));
            let owner = ownership::controller_of(&revision.metadata).map(|o| &o.uid);
            let ours = ownership::controller_of(&taken.metadata).is_none_or(|o| Some(&o.uid) == owner);
            Ok(if same && ours { Created::There(Box::new(taken)) } else { Created::Collision })
        }
        Err(error) => Err(error),
    }
}

/// Gives a revision a new number: what it keeps is wanted again.
pub async fn renumber(client: &Client, revision: &ControllerRevision, number: i64) -> kube::Result<ControllerRevision> {
    let mut new = revision.clone();
    new.revision = number;
    replace(client, &new).await
}

/// Writes a changed revision.
pub async fn replace(client: &Client, revision: &ControllerRevision) -> kube::Result<ControllerRevision> {
    let api = Api::<ControllerRevision>::namespaced(client.clone(), &revision.namespace().unwrap_or_default());
    api.replace(&revision.name_any(), &PostParams::default(), revision).await
}

/// Deletes revisions; one that is already gone is no error.
pub async fn delete(client: &Client, namespace: &str, names: &[String]) -> kube::Result<()> {
    let api = Api::<ControllerRevision>::namespaced(client.clone(), namespace);
    for name in names {
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::DaemonSet;

    fn template(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": image}]}})).expect("a template")
    }

    fn owner() -> DaemonSet {
        serde_json::from_value(json!({"metadata": {"name": "d", "namespace": "n", "uid": "u", "annotations": {"why": "so"}}})).expect("a set")
    }

    fn numbered(numbers: &[i64]) -> Vec<Arc<ControllerRevision>> {
        let of = |n: &i64| Arc::new(new(&owner(), &template(&n.to_string()), *n, None, HASH_LABEL));
        numbers.iter().map(of).collect()
    }

    #[test]
    fn a_revision_keeps_its_template() {
        let revision = new(&owner(), &template("one"), 3, None, REVISION_LABEL);
        assert_eq!(revision.data.as_ref().expect("data").0["spec"]["template"]["$patch"], "replace");
        assert!(keeps(&revision, &template("one")) && !keeps(&revision, &template("two")));
        let hash = &revision.labels()[REVISION_LABEL];
        assert_eq!(revision.name_any(), format!("d-{hash}"));
        assert_eq!((revision.labels()["app"].as_str(), revision.annotations()["why"].as_str()), ("a", "so"));
        assert_eq!((revision.metadata.namespace.as_deref(), ownership::controller_of(&revision.metadata).map(|o| o.name.as_str())), (Some("n"), Some("d")));
        assert_ne!(revision.name_any(), new(&owner(), &template("one"), 3, Some(1), REVISION_LABEL).name_any());
        let foreign = ControllerRevision { data: Some(RawExtension(json!({"spec": 1}))), ..ControllerRevision::default() };
        assert!(!keeps(&foreign, &template("one")), "what is no template equals none");
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!(name(&"x".repeat(250), "h").len(), 225);
        assert_eq!(name("short", "h"), "short-h");
    }

    #[test]
    fn order_and_next_number() {
        let mut revisions = numbered(&[5, 2, 9]);
        sort(&mut revisions);
        assert_eq!(revisions.iter().map(|r| r.revision).collect::<Vec<_>>(), [2, 5, 9]);
        assert_eq!((next_number(&revisions), next_number(&[])), (10, 1));
    }

    #[test]
    fn old_revisions_go_but_not_what_pods_still_use() {
        let revisions = numbered(&[1, 2, 3, 4]);
        let names: Vec<String> = revisions.iter().map(|r| r.name_any()).collect();
        assert_eq!(excess(&revisions, 2, |_| false, false), names[..2]);
        assert_eq!(excess(&revisions, 2, |r| r.revision == 1, false), names[1..2], "three are dead, one too many");
        assert_eq!(excess(&revisions, 2, |r| r.revision == 1, true), names[1..3], "of four two must go");
        assert!(excess(&revisions, 4, |_| false, false).is_empty());
        let pod = |hash: &str| serde_json::from_value::<crate::pod::Pod>(json!({"metadata": {"labels": {REVISION_LABEL: hash}}})).expect("a pod");
        assert_eq!(live([pod("a"), pod("b"), pod("a"), crate::pod::Pod::default()].iter()), BTreeSet::from(["a".to_string(), "b".to_string()]));
    }
}
