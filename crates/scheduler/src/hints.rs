//! Which waiting pods a change may help. A change of one node is tried out on that node; what may
//! help a pod elsewhere is told by the plug-ins that look across nodes.

use std::sync::Arc;

use crate::cluster::{Cluster, NodeIx};
use crate::config::Profile;
use crate::extender::EXTENDER;
use crate::filters::Cycle;
use crate::node::NodeView;
use crate::plugin::Plugin;
use crate::pod::PodInfo;
use crate::selector::Labels;

/// Something changed.
#[derive(Debug, Clone)]
pub enum Event {
    /// A node came (no `old`) or changed.
    Node { old: Option<Arc<NodeView>>, new: Arc<NodeView> },
    /// A node went.
    NodeGone { old: Arc<NodeView> },
    /// A pod came to a node, or changed there.
    PodOnNode { old: Option<Arc<PodInfo>>, new: Arc<PodInfo>, node: String },
    /// A pod went from a node, or is no longer expected there.
    PodGone { old: Arc<PodInfo>, node: String },
}

impl Event {
    fn node(&self) -> Option<&str> {
        match self {
            Event::Node { new, .. } => Some(new.name()),
            Event::NodeGone { .. } => None,
            Event::PodOnNode { node, .. } | Event::PodGone { node, .. } => Some(node),
        }
    }
}

/// Whether an event may help a pod that these plug-ins rejected.
pub(crate) fn helps(cluster: &mut Cluster, profile: &Profile, number: usize, plugins: &[Arc<dyn Plugin>], pod: &PodInfo, rejected_by: &[&'static str], event: &Event) -> bool {
    // Nobody knows what an extender waits for.
    if rejected_by.is_empty() || rejected_by.contains(&EXTENDER) {
        return true;
    }
    let elsewhere = rejected_by.iter().any(|plugin| match *plugin {
        "InterPodAffinity" => near(cluster, pod, event),
        "PodTopologySpread" => spread(pod, event),
        name => plugins.iter().any(|p| p.name() == name && p.helps(pod, event)),
    });
    if elsewhere {
        return true;
    }
    // The plug-ins that look at one node at a time can be asked about the only one that changed.
    let Some(node) = event.node().and_then(|n| cluster.ix(n)) else { return false };
    // A pod more on a node leaves less there.
    if matches!(event, Event::PodOnNode { old: None, .. }) {
        return false;
    }
    let resolved = cluster.resolve(&pod.shape, profile, number);
    let (cycle, whole) = Cycle::new(cluster, profile, plugins, pod, resolved);
    whole.is_none() && fits_or_could(&cycle, node)
}

/// Whether a pod fits on a node, or would without the pods that it may displace.
fn fits_or_could(cycle: &Cycle<'_>, node: NodeIx) -> bool {
    match cycle.filter(node) {
        Ok(()) => true,
        Err(rejection) if rejection.resolvable && !cycle.pod.shape.never_preempts => {
            let lower: Vec<Arc<PodInfo>> = cycle.cluster.at(node).pods.iter().filter(|p| p.shape.priority < cycle.pod.shape.priority).cloned().collect();
            !lower.is_empty() && cycle.without(node, &lower).is_ok()
        }
        Err(_) => false,
    }
}

/// Whether affinity between pods may be satisfied now: a pod that is wanted near came, one that is
/// wanted far went, or a node has other labels.
fn near(cluster: &Cluster, pod: &PodInfo, event: &Event) -> bool {
    let affinity = &pod.shape.affinity;
    let selected = |terms: &[crate::pod::PodTerm], other: &PodInfo| {
        let labels = cluster.namespace_labels(&other.shape.namespace);
        terms.iter().any(|t| t.matches(&other.shape.namespace, &other.shape.labels, labels))
    };
    let against = |other: &PodInfo| {
        let labels = cluster.namespace_labels(&pod.shape.namespace);
        other.shape.affinity.required_anti.iter().any(|t| t.matches(&pod.shape.namespace, &pod.shape.labels, labels))
    };
    match event {
        Event::PodOnNode { old: None, new, .. } => selected(&affinity.required, new),
        Event::PodOnNode { old: Some(old), new, .. } => {
            old.shape.labels != new.shape.labels
                && (selected(&affinity.required, new) || (selected(&affinity.required_anti, old) && !selected(&affinity.required_anti, new)) || against(old))
        }
        // Where the last pod of its like goes, the first may go anywhere again.
        Event::PodGone { old, .. } => selected(&affinity.required, old) || selected(&affinity.required_anti, old) || against(old),
        Event::Node { old, new } => {
            let value = |labels: &Labels, key: &str| labels.get(key).map(str::to_string);
            let terms = affinity.required.iter().chain(&affinity.required_anti);
            match old {
                None => affinity.required.iter().all(|t| new.labels.get(&t.topology).is_some()),
                Some(old) => {
                    let mut differ = terms.filter(|t| value(&old.labels, &t.topology) != value(&new.labels, &t.topology));
                    differ.next().is_some() || (affinity.is_empty() && old.labels != new.labels)
                }
            }
        }
        Event::NodeGone { .. } => false,
    }
}

/// Whether spread may be even enough now: the pods that it counts, or the domains, changed.
fn spread(pod: &PodInfo, event: &Event) -> bool {
    let constraints = || pod.shape.spread.iter().filter(|c| c.hard);
    let selected = |other: &PodInfo| {
        other.shape.namespace == pod.shape.namespace && constraints().any(|c| c.selector.as_ref().is_some_and(|s| s.matches(&other.shape.labels)))
    };
    // Constraints that the profile adds are not in the shape: any change may concern them.
    let by_default = pod.shape.spread.is_empty();
    match event {
        Event::PodOnNode { old: None, new, .. } => by_default || selected(new),
        Event::PodOnNode { old: Some(old), new, .. } => old.shape.labels != new.shape.labels && (by_default || selected(old) || selected(new)) || old.terminating != new.terminating,
        Event::PodGone { old, .. } => by_default || selected(old),
        Event::Node { old: None, new } | Event::NodeGone { old: new } => by_default || constraints().all(|c| new.labels.get(&c.topology).is_some()),
        Event::Node { old: Some(old), new } => {
            by_default
                || constraints().any(|c| old.labels.get(&c.topology) != new.labels.get(&c.topology))
                || constraints().any(|c| c.honors_taints) && (old.taints != new.taints)
                || (constraints().any(|c| c.honors_affinity) && old.labels != new.labels)
        }
    }
}
