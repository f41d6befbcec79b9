//! Where pods may run: affinity, tolerations, spreading, taints.

use super::at::At;
use super::meta::label_selector;
use crate::field::FieldError;
use crate::names;
use crate::seen::Seen;
use std::collections::HashMap;

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Affinity of a pod.
pub fn affinity(at: &At<'_>) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let node = at.at("nodeAffinity");
    if node.at(REQUIRED).set() {
        node_selector(&node.at(REQUIRED));
    }
    for t in node.at(PREFERRED).items() {
        weight(&t);
        node_selector_term(&t.at("preference"), false);
    }
    for k in ["podAffinity", "podAntiAffinity"] {
        for t in at.at(k).at(REQUIRED).items() {
            pod_affinity_term(&t);
        }
        for t in at.at(k).at(PREFERRED).items() {
            weight(&t);
            pod_affinity_term(&t.at("podAffinityTerm"));
        }
    }
}

fn weight(at: &At<'_>) {
    let w = at.at("weight");
    if !(1..=100).contains(&w.int_or(0)) {
        w.invalid_as(w.int_or(0), "must be in the range 1-100");
    }
}

/// A selector of nodes by their labels and names.
pub fn node_selector(at: &At<'_>) {
    let terms = at.at("nodeSelectorTerms");
    if terms.is_empty() {
        terms.required("must have at least one node selector term");
    }
    terms.items().for_each(|t| node_selector_term(&t, true));
}

fn node_selector_term(at: &At<'_>, check_values: bool) {
    for e in at.at("matchExpressions").items() {
        let values = e.at("values");
        match e.at("operator").text() {
            "In" | "NotIn" => {
                if values.is_empty() {
                    values.required("must be specified when `operator` is 'In' or 'NotIn'");
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
                }
            }
            "Gt" | "Lt" => {
                if values.len() != 1 {
                    values.required("must be specified single value when `operator` is 'Lt' or 'Gt'");
                }
            }
            other => e.at("operator").invalid_as(other, "not a valid selector operator"),
        }
        e.at("key").check(names::qualified_name);
        if check_values {
            values.items().for_each(|v| v.check(names::label_value));
        }
    }
    for f in at.at("matchFields").items() {
        let values = f.at("values");
        match f.at("operator").text() {
            "In" | "NotIn" => {
                if values.len() != 1 {
                    values.required("must be only one value when `operator` is 'In' or 'NotIn' for node field selector");
                }
            }
            other => f.at("operator").invalid_as(other, "not a valid selector operator"),
        }
        if f.at("key").text() == "metadata.name" {
            values.items().for_each(|v| v.check(names::dns1123_subdomain));
        } else {
            f.at("key").invalid("not a valid field selector key");
        }
    }
}

fn pod_affinity_term(at: &At<'_>) {
    label_selector(&at.at("labelSelector"));
    label_selector(&at.at("namespaceSelector"));
    for n in at.at("namespaces").items() {
        n.named(at.path.child("namespace")).check(names::dns1123_label);
    }
    match_label_keys(at, &["matchLabelKeys", "mismatchLabelKeys"]);
    let key = at.at("topologyKey");
    if key.filled().is_none() {
        key.required("can not be empty");
    }
    for m in names::qualified_name(key.text()) {
        key.invalid_as(key.text(), m);
    }
}

fn match_label_keys(at: &At<'_>, fields: &[&str]) {
    let selector = at.at("labelSelector");
    for k in fields {
        let keys = at.at(k);
        if !keys.is_empty() && !selector.set() {
            keys.forbidden("must not be specified when labelSelector is not set");
        } else {
            keys.items().for_each(|k| k.check(names::qualified_name));
        }
    }
    let other: Seen<&str> = at.at("mismatchLabelKeys").items().map(|k| k.text()).collect();
    for k in at.at("matchLabelKeys").items() {
        if other.has(&k.text()) {
            k.invalid("exists in both matchLabelKeys and mismatchLabelKeys");
        }
    }
}

/// Tolerations of a pod.
pub fn tolerations(at: &At<'_>) {
    for t in at.items() {
        let (key, operator, value, effect) = (t.at("key"), t.at("operator"), t.at("value"), t.at("effect"));
        key.check_if_filled(names::qualified_name);
        if key.filled().is_none() && operator.text() != "Exists" {
            operator
                .invalid_as(operator.text(), "operator must be Exists when `key` is empty, which means \"match all values and all keys\"");
        }
        if t.at("tolerationSeconds").set() && effect.text() != "NoExecute" {
            effect.invalid_as(effect.text(), "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        match operator.text() {
            "" | "Equal" => {
                let bad = names::label_value(value.text());
                if !bad.is_empty() {
                    operator.invalid_as(value.text(), bad.join(";"));
                }
            }
            "Exists" => {
                if value.filled().is_some() {
                    operator.invalid_as(value.text(), "value must be empty when `operator` is 'Exists'");
                }
            }
            "Lt" | "Gt" => operator.not_supported(&["Equal", "Exists", "Lt", "Gt"]),
            _ => operator.not_supported(&["Equal", "Exists"]),
        }
        if effect.filled().is_some() {
            effect.one_of_if_set(EFFECTS);
        }
    }
}

/// Taints of a node.
pub fn taints(at: &At<'_>) {
    let mut seen = Seen::default();
    for t in at.items() {
        let (key, value, effect) = (t.at("key"), t.at("value"), t.at("effect"));
        for m in names::qualified_name(key.text()) {
            key.invalid_as(key.text(), m);
        }
        let bad = names::label_value(value.text());
        if !bad.is_empty() {
            value.invalid(bad.join(";"));
        }
        effect.one_of(EFFECTS);
        let id = (key.text(), effect.text());
        if !seen.add(id) {
            let mut e = FieldError::duplicate(&t.path, t.v.clone());
            e.detail = "taints must be unique by key and effect pair".to_owned();
            t.push(e);
        }
    }
}

/// How pods are spread.
pub fn topology_spread(at: &At<'_>) {
    fn id<'a>(c: &At<'a>) -> (&'a str, &'a str) {
        (c.at("topologyKey").text(), c.at("whenUnsatisfiable").text())
    }
    let mut left: HashMap<(&str, &str), usize> = HashMap::new();
    at.items().for_each(|c| *left.entry(id(&c)).or_default() += 1);
    for c in at.items() {
        let skew = c.at("maxSkew");
        if skew.int_or(0) <= 0 {
            skew.invalid_as(skew.int_or(0), "must be greater than zero");
        }
        if c.at("topologyKey").filled().is_none() {
            c.at("topologyKey").required("can not be empty");
        }
        let action = c.at("whenUnsatisfiable");
        if !["DoNotSchedule", "ScheduleAnyway"].contains(&action.text()) {
            let valid = ["DoNotSchedule", "ScheduleAnyway"];
            c.push(FieldError::not_supported(&action.path, action.text(), &valid));
        }
        let times = left.entry(id(&c)).or_default();
        *times -= 1;
        if *times > 0 {
            let (k, w) = id(&c);
            c.push(FieldError::duplicate(&c.path.child("{topologyKey, whenUnsatisfiable}"), format!("{{{k}, {w}}}")));
        }
        let domains = c.at("minDomains");
        if let Some(n) = domains.int() {
            if n <= 0 {
                domains.invalid("must be greater than zero");
            }
            if action.text() != "DoNotSchedule" {
                domains.invalid(format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", action.text()));
            }
        }
        for k in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            c.at(k).one_of_if_set(&["Honor", "Ignore"]);
        }
        match_label_keys(&c, &["matchLabelKeys"]);
        label_selector(&c.at("labelSelector"));
    }
}
