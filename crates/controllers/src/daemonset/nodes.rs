//! On which nodes a daemon set's pods run, and what its template becomes for one of them.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Affinity, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, PodTemplateSpec, Taint, Toleration};
use kube::ResourceExt;
use rules::node_affinity;

use super::{GENERATION, GENERATION_LABEL};
use crate::history::REVISION_LABEL;
use crate::pod::Pod;
use crate::taint_eviction::tolerates;

/// Whether a set's pod belongs on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It is to run there.
    Runs,
    /// None is started there, but one that is there may stay.
    Stays,
    /// It must not be there.
    Leaves,
}

/// What decides about nodes, made once for a set.
pub struct Placement {
    spec: PodSpec,
}

/// Taints which no daemon pod minds: it watches over the node in just that state.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// The same for pods on the host's network.
const TOLERATED_ON_HOST_NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

impl Placement {
    /// What the set's template allows.
    pub fn of(set: &DaemonSet) -> Placement {
        let mut spec = set.spec.as_ref().and_then(|s| s.template.spec.clone()).unwrap_or_default();
        add_tolerations(&mut spec);
        Placement { spec }
    }

    /// Decides on one node.
    pub fn fit(&self, node: &Node) -> Fit {
        let named = self.spec.node_name.as_deref().unwrap_or("");
        if !(named.is_empty() || named == node.name_any()) || !node_affinity::allows(&self.spec, node) {
            return Fit::Leaves;
        }
        let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
        let minded = |t: &&Taint| !self.spec.tolerations.iter().flatten().any(|toleration| tolerates(toleration, t));
        let effects: Vec<&str> = taints.filter(minded).map(|t| t.effect.as_str()).collect();
        match () {
            () if effects.contains(&"NoExecute") => Fit::Leaves,
            () if effects.contains(&"NoSchedule") => Fit::Stays,
            () => Fit::Runs,
        }
    }
}

fn add_tolerations(spec: &mut PodSpec) {
    let host = (spec.host_network == Some(true)).then_some(TOLERATED_ON_HOST_NETWORK);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(host) {
        let new = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        let same = |t: &&mut Toleration| {
            t.key == new.key && t.effect == new.effect && t.operator == new.operator && t.value.as_deref().unwrap_or("").is_empty()
        };
        match tolerations.iter_mut().find(same) {
            Some(there) => *there = new,
            None => tolerations.push(new),
        }
    }
}

/// The generation of the set's template, when it is known.
pub fn generation(set: &DaemonSet) -> Option<i64> {
    set.annotations().get(GENERATION).and_then(|g| g.parse().ok())
}

/// The template of the pods of one revision: labelled with it, and tolerating what daemon pods do.
pub fn template(set: &DaemonSet, hash: &str) -> PodTemplateSpec {
    let mut template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    add_tolerations(template.spec.get_or_insert_default());
    let labels: &mut BTreeMap<String, String> = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    if let Some(generation) = generation(set) {
        labels.insert(GENERATION_LABEL.into(), generation.to_string());
    }
    labels.insert(REVISION_LABEL.into(), hash.into());
    template
}

/// Pins a pod to a node by its affinity. Other required terms go: the node has been found to meet them.
pub fn pin(spec: &mut PodSpec, node: &str) {
    let term = NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".into(),
            operator: "In".into(),
            values: Some(vec![node.into()]),
        }]),
        match_expressions: None,
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    affinity.node_affinity.get_or_insert_default().required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
}

/// The node that a daemon pod is on or meant for.
pub fn node_of(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    spec.node_name.as_ref().filter(|n| !n.is_empty()).or(spec.pinned.as_ref()).cloned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn fit(spec: Value, taints: Value) -> Fit {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let set: DaemonSet =
            serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": {"selector": {}, "template": {"spec": spec}}})).expect("a set");
        let node = json!({"metadata": {"name": "n", "labels": {"disk": "ssd"}}, "spec": {"taints": taints}});
        Placement::of(&set).fit(&serde_json::from_value(node).expect("a node"))
    }

    #[test]
    fn selectors_and_names() {
        assert_eq!(fit(json!({}), json!([])), Fit::Runs);
        assert_eq!(fit(json!({"nodeSelector": {"disk": "ssd"}}), json!([])), Fit::Runs);
        assert_eq!(fit(json!({"nodeSelector": {"disk": "tape"}}), json!([])), Fit::Leaves);
        assert_eq!(fit(json!({"nodeName": "n"}), json!([])), Fit::Runs);
        assert_eq!(fit(json!({"nodeName": "m"}), json!([])), Fit::Leaves);
    }

    #[test]
    fn taints() {
        let taint = |key: &str, effect: &str| json!([{"key": key, "effect": effect}]);
        assert_eq!(fit(json!({}), taint("mine", "NoSchedule")), Fit::Stays);
        assert_eq!(fit(json!({}), taint("mine", "NoExecute")), Fit::Leaves);
        assert_eq!(fit(json!({}), taint("mine", "PreferNoSchedule")), Fit::Runs);
        assert_eq!(fit(json!({"tolerations": [{"operator": "Exists"}]}), taint("mine", "NoExecute")), Fit::Runs);
        for (key, effect) in TOLERATED {
            assert_eq!(fit(json!({}), taint(key, effect)), Fit::Runs, "{key}");
        }
        assert_eq!(fit(json!({}), taint("node.kubernetes.io/network-unavailable", "NoSchedule")), Fit::Stays);
        assert_eq!(fit(json!({"hostNetwork": true}), taint("node.kubernetes.io/network-unavailable", "NoSchedule")), Fit::Runs);
    }

    #[test]
    fn a_pod_is_pinned_to_its_node_and_found_again() {
        let mut spec = PodSpec::default();
        pin(&mut spec, "n");
        let of = |spec: &PodSpec| -> Pod { serde_json::from_value(json!({"spec": spec})).expect("a pod") };
        let pod = of(&spec);
        assert_eq!(node_of(&pod).as_deref(), Some("n"));
        pin(&mut spec, "m");
        let mut pod = of(&spec);
        assert_eq!(node_of(&pod).as_deref(), Some("m"), "the last one counts");
        pod.spec.get_or_insert_default().node_name = Some("bound".into());
        assert_eq!(node_of(&pod).as_deref(), Some("bound"));
        assert_eq!(node_of(&Pod::default()), None);
    }

    #[test]
    fn tolerations_are_added_once() {
        let mut spec = PodSpec::default();
        add_tolerations(&mut spec);
        add_tolerations(&mut spec);
        assert!(spec.tolerations.iter().flatten().all(|t| t.operator.as_deref() == Some("Exists") && t.toleration_seconds.is_none()));
        let told = spec.tolerations.iter().flatten().map(|t| (t.key.as_deref().unwrap_or(""), t.effect.as_deref().unwrap_or("")));
        assert_eq!(told.collect::<Vec<_>>(), TOLERATED, "none tolerates more than its effect");
    }
}
