//! Labels of nodes that have another name now, and who selects by them.

use serde_json::Value;

use super::{Warnings, list, text};
use crate::field::Path;
use crate::names;

const OLD: &[(&str, &str)] = &[
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/instance-type", "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    ("failure-domain.beta.kubernetes.io/region", "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"),
    ("failure-domain.beta.kubernetes.io/zone", "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"),
    ("node-role.kubernetes.io/master", "use \"node-role.kubernetes.io/control-plane\" instead"),
    ("scheduler.alpha.kubernetes.io/preferAvoidPods", "deprecated since v1.22; use Taints and Tolerations instead"),
];

/// What is said of a label.
pub(super) fn old_label(key: &str) -> Option<&'static str> {
    OLD.iter().find(|(old, _)| *old == key).map(|(_, why)| *why)
}

/// The old ones among the labels of a map, with what is said of them.
pub(super) fn old_labels(labels: &Value) -> impl Iterator<Item = (&String, &'static str)> {
    labels.as_object().into_iter().flatten().filter_map(|(key, _)| Some((key, old_label(key)?)))
}

/// The terms of a node selector.
pub(super) fn selector(selector: &Value, path: &Path, out: &mut Warnings) {
    for (i, t) in list(selector, "nodeSelectorTerms").iter().enumerate() {
        term(t, false, &path.child("nodeSelectorTerms").index(i), out);
    }
}

/// The expressions of a term or selector; with `values`, also that these can be no values of labels.
pub(super) fn term(term: &Value, values: bool, path: &Path, out: &mut Warnings) {
    for (i, e) in list(term, "matchExpressions").iter().enumerate() {
        let (at, key) = (path.child("matchExpressions").index(i), text(e, "key"));
        if let Some(why) = old_label(key) {
            out.push(format!("{}: {key} is {why}", at.child("key")));
        }
        for (j, value) in list(e, "values").iter().filter_map(Value::as_str).enumerate().filter(|_| values) {
            out.extend(names::label_value(value).iter().map(|why| format!("{}: {value} is invalid, {why}", at.child("values").index(j))));
        }
    }
}
