//! What is to be done so that each node that fits has one pod: the part that holds in every state of
//! a rollout. The steps of a rollout itself are in [`rolling`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use reconcile::EventType;

pub use super::rollout::rolling;
pub use super::status::status;

use super::nodes::{self, Fit, Placement};
use super::{Backoff, GENERATION_LABEL};
use crate::amount;
use crate::history::REVISION_LABEL;
use crate::pod::Pod;
use crate::pods;

/// Everything that a plan is made from.
pub struct View<'a> {
    pub set: &'a DaemonSet,
    /// The hash of the wanted revision.
    pub hash: &'a str,
    /// Whether the set's pods belong on each node that there is, by its name.
    pub fits: BTreeMap<String, Fit>,
    /// The set's pods, by the node that they are on or meant for.
    pub pods: BTreeMap<String, Vec<Arc<Pod>>>,
    pub now: Timestamp,
}

/// What is to be done.
#[derive(Debug, Default)]
pub struct Actions {
    /// Nodes that get a pod.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Events about the set.
    pub events: Vec<(EventType, &'static str, String)>,
    /// When the set must be looked at again, whatever happens.
    pub again: Option<Duration>,
}

impl<'a> View<'a> {
    /// The view of a set. Pods that have ended and are being deleted are nobody's concern any more.
    pub fn new(set: &'a DaemonSet, hash: &'a str, nodes: &[Arc<Node>], pods: &[Arc<Pod>], now: Timestamp) -> View<'a> {
        let placement = Placement::of(set);
        let mut by_node: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in pods {
            let ended = matches!(pods::phase(pod), "Succeeded" | "Failed");
            if ended && pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            if let Some(node) = nodes::node_of(pod) {
                by_node.entry(node).or_default().push(pod.clone());
            }
        }
        // Bound pods come first, then older ones.
        by_node.values_mut().for_each(|pods| pods.sort_by_cached_key(|p| (!bound(p), created(p), p.name_any())));
        let fits = nodes.iter().map(|n| (n.name_any(), placement.fit(n))).collect();
        View { set, hash, fits, pods: by_node, now }
    }

    /// Whether a pod is of the wanted revision.
    pub fn is_updated(&self, pod: &Pod) -> bool {
        let labelled = |key: &str, value: &str| pod.labels().get(key).is_some_and(|v| v == value);
        labelled(REVISION_LABEL, self.hash)
            || nodes::generation(self.set).is_some_and(|g| labelled(GENERATION_LABEL, &g.to_string()))
    }

    /// Whether a pod has been ready for long enough.
    pub fn is_available(&self, pod: &Pod) -> bool {
        pods::availability(pod, self.min_ready(), self.now).is_ok()
    }

    /// For how long a pod must be ready to count as available.
    pub fn min_ready(&self) -> Duration {
        let seconds = self.set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
        Duration::from_secs(seconds.max(0) as u64)
    }

    /// The settings of a rolling update; nothing for another strategy.
    pub fn rolling_update(&self) -> Option<RollingUpdateDaemonSet> {
        let strategy = self.set.spec.as_ref()?.update_strategy.clone().unwrap_or_default();
        let rolling = strategy.type_.as_deref().unwrap_or("RollingUpdate") == "RollingUpdate";
        rolling.then(|| strategy.rolling_update.unwrap_or_default())
    }

    /// How many nodes of `total` may have an old and a new pod at once.
    pub fn surge(&self, total: i32) -> i32 {
        self.rolling_update().and_then(|r| r.max_surge).map_or(0, |s| amount::of(&s, total, true))
    }
}

fn bound(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|s| s.node_name.as_deref().is_some_and(|n| !n.is_empty()))
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|t| t.0)
}

/// Makes pods where one is missing, deletes what has ended, is too much, or is where it must not be.
pub fn manage(view: &View, backoff: &mut Backoff) -> Actions {
    let mut actions = Actions::default();
    for (node, fit) in &view.fits {
        let there = view.pods.get(node);
        match (fit, there) {
            (Fit::Runs, None) => actions.create.push(node.clone()),
            (Fit::Stays, None) | (Fit::Leaves, None) => {}
            (Fit::Leaves, Some(pods)) => actions.delete.extend(pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()).cloned()),
            (Fit::Runs | Fit::Stays, Some(pods)) => node_with_pods(view, node, *fit, pods, backoff, &mut actions),
        }
    }
    // A pod for a node that is gone will never be bound, and nobody else deletes it.
    let homeless = view.pods.iter().filter(|(node, _)| !view.fits.contains_key(*node)).flat_map(|(_, pods)| pods);
    actions.delete.extend(homeless.filter(|p| !bound(p)).cloned());
    actions
}

fn node_with_pods(view: &View, node: &str, fit: Fit, pods: &[Arc<Pod>], backoff: &mut Backoff, actions: &mut Actions) {
    let mut running: Vec<&Arc<Pod>> = Vec::new();
    for pod in pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
        let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        match pods::phase(pod) {
            "Failed" => {
                let observed = view.set.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
                let key = format!("{}/{observed}/{node}", view.set.uid().unwrap_or_default());
                if let Some(delay) = backoff.running(&key, view.now) {
                    actions.again = Some(actions.again.map_or(delay, |a| a.min(delay)));
                    continue;
                }
                backoff.next(&key, view.now);
                let message = format!("Found failed daemon pod {name} on node {node}, will try to kill it");
                actions.events.push((EventType::Warning, "FailedDaemonPod", message));
                actions.delete.push(pod.clone());
            }
            "Succeeded" => {
                let message = format!("Found succeeded daemon pod {name} on node {node}, will try to delete it");
                actions.events.push((EventType::Normal, "SucceededDaemonPod", message));
                actions.delete.push(pod.clone());
            }
            _ => running.push(pod),
        }
    }
    if view.surge(1) == 0 {
        actions.delete.extend(running.into_iter().skip(1).cloned());
        return;
    }
    match running.len() {
        0 if fit == Fit::Runs => actions.create.push(node.to_string()),
        _ => {
            // During a surge one old pod that is ready may stay beside a new one that is not yet.
            let is_new = |p: &&Arc<Pod>| p.labels().get(REVISION_LABEL).is_some_and(|h| h == view.hash);
            let (new, old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) = running.into_iter().partition(is_new);
            actions.delete.extend(new.iter().chain(&old).filter(|p| !is_first(p, &new) && !is_first(p, &old)).map(|p| (*p).clone()));
            if let (Some(new), Some(old)) = (new.first(), old.first())
                && (!pods::is_ready(old) || view.is_available(new))
            {
                actions.delete.push((*old).clone());
            }
        }
    }
}

fn is_first(pod: &Arc<Pod>, of: &[&Arc<Pod>]) -> bool {
    of.first().is_some_and(|first| Arc::ptr_eq(first, pod))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
