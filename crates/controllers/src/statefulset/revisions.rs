//! Which revision a stateful set comes from and which one it goes to.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::{Client, ResourceExt};

use super::plan::Revisions;
use crate::history::{self, Created};
use crate::pod::Pod;

/// Where the wanted template is found.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    /// The newest revision keeps it.
    Newest,
    /// An older one keeps it, and becomes the newest under this number.
    Again(usize, i64),
    /// None does; one with this number is to be made.
    New(i64),
}

/// `revisions` are ordered.
fn choose(revisions: &[Arc<ControllerRevision>], template: &PodTemplateSpec) -> Choice {
    let number = history::next_number(revisions);
    match revisions.iter().rposition(|r| history::keeps(r, template)) {
        Some(at) if at + 1 == revisions.len() => Choice::Newest,
        Some(at) => Choice::Again(at, number),
        None => Choice::New(number),
    }
}

/// Finds or makes the two revisions of a set. `all` are its revisions, ordered.
pub async fn revisions(client: &Client, set: &StatefulSet, all: &[Arc<ControllerRevision>]) -> kube::Result<Revisions> {
    let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let status = set.status.clone().unwrap_or_default();
    let mut collisions = status.collision_count.unwrap_or(0);
    let update = match choose(all, &template) {
        Choice::Newest => all.last().map(|r| r.name_any()).unwrap_or_default(),
        Choice::Again(at, number) => history::renumber(client, &all[at], number).await?.name_any(),
        Choice::New(number) => loop {
            let new = history::new(set, &template, number, Some(collisions), history::HASH_LABEL);
            match history::create(client, &new).await? {
                Created::There(revision) => break revision.name_any(),
                Created::Collision => collisions += 1,
            }
        },
    };
    let update = (update, template);
    let current = all.iter().find(|r| Some(r.name_any()) == status.current_revision);
    let current = current.and_then(|r| Some((r.name_any(), history::template_of(r)?))).unwrap_or_else(|| update.clone());
    Ok(Revisions { current, update, collisions })
}

/// Deletes the oldest revisions beyond the set's limit, but for the two that it is between and those
/// of pods.
pub async fn clean_up(client: &Client, set: &StatefulSet, all: &[Arc<ControllerRevision>], pods: &[Arc<Pod>], keep: &Revisions) -> kube::Result<()> {
    let limit = set.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
    let mut live = history::live(pods.iter().map(Arc::as_ref));
    live.extend([keep.current.0.clone(), keep.update.0.clone()]);
    let names = history::excess(all, limit, |r| live.contains(&r.name_any()), false);
    history::delete(client, &set.namespace().unwrap_or_default(), &names).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "image": image}]}})).expect("a template")
    }

    #[test]
    fn the_wanted_template_is_looked_for_in_the_past() {
        let set: StatefulSet = serde_json::from_value(json!({"metadata": {"name": "s", "uid": "u"}})).expect("a set");
        let of = |(number, image): (i64, &str)| Arc::new(history::new(&set, &template(image), number, None, history::HASH_LABEL));
        let past: Vec<_> = [(1, "a"), (2, "b"), (5, "c")].into_iter().map(of).collect();
        assert_eq!(choose(&past, &template("c")), Choice::Newest);
        assert_eq!(choose(&past, &template("a")), Choice::Again(0, 6));
        assert_eq!(choose(&past, &template("d")), Choice::New(6));
        assert_eq!(choose(&[], &template("d")), Choice::New(1));
    }
}
