//! Horizontal pod autoscalers, of either version.

use super::at::At;
use super::container::container_resource_name;
use crate::names;

const SOURCES: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];
/// The sources of a metric, in the order in which they are looked at, with what is said when no target is set.
const FIELDS: &[&str] = &["object", "external", "pods", "resource", "containerResource"];

/// An autoscaler's spec.
pub fn autoscaler(spec: &At<'_>, old: Option<&At<'_>>) {
    let (min, max) = (spec.at("minReplicas"), spec.at("maxReplicas"));
    // it may stay at zero
    let lowest = i64::from(old.is_none_or(|o| o.at("minReplicas").int() != Some(0)));
    if min.int().is_some_and(|m| m < lowest) {
        min.invalid(format!("must be greater than or equal to {lowest}"));
    }
    match max.int_or(0) {
        0 => max.required("must be set and greater than 0"),
        n if n < 0 => max.invalid("must be greater than or equal to 1"),
        _ => {}
    }
    if min.int().is_some_and(|m| max.int_or(0) < m) {
        max.invalid_as(max.int_or(0), "must be greater than or equal to `minReplicas`");
    }
    let target = spec.at("scaleTargetRef");
    let as_before = |o: &At<'_>| ["apiVersion", "kind"].iter().all(|k| o.at("scaleTargetRef").at(k).text() == target.at(k).text());
    reference(&target, old.is_some_and(as_before), target.at("kind").text() == "ReplicationController");
    metrics(spec, old, &min);
    for direction in ["scaleUp", "scaleDown"] {
        let rules = spec.at("behavior").at(direction);
        if rules.set() {
            scaling_rules(&rules);
        }
    }
}

/// What is to be scaled, or what a metric describes.
fn reference(at: &At<'_>, any_version: bool, core: bool) {
    for k in ["kind", "name"] {
        match at.at(k).filled() {
            None => at.at(k).required(""),
            Some(_) => at.at(k).check(names::path_segment),
        }
    }
    let version = at.at("apiVersion");
    if !any_version && let Some(why) = bad_version(version.text(), core) {
        version.invalid_as(version.text(), why);
    }
}

fn bad_version(version: &str, core: bool) -> Option<String> {
    match version.matches('/').count() {
        0 if core => None,
        0 => Some("apiVersion must specify API group".into()),
        1 if !core && version.starts_with('/') && version.len() > 1 => Some("apiVersion must specify API group".into()),
        // a slash alone is as good as nothing
        1 if version == "/" => (!core).then(|| "apiVersion must specify API group".into()),
        1 => None,
        _ => Some(format!("unexpected GroupVersion string: {version}")),
    }
}

fn metrics(spec: &At<'_>, old: Option<&At<'_>>, min: &At<'_>) {
    let list = spec.at("metrics");
    let bad = |m: &At<'_>| m.at("type").text() == "Object" && m.at("object").set() && bad_version(m.down(&["object", "describedObject", "apiVersion"]).text(), true).is_some();
    let was_bad = |o: &At<'_>| o.at("metrics").items().any(|m| bad(&m));
    let any_version = old.is_some_and(was_bad);
    list.items().for_each(|m| metric(&m, any_version));
    // version 1 has the one target, which is a metric of version 2
    let cpu = spec.at("targetCPUUtilizationPercentage");
    if cpu.int().is_some_and(|n| n < 1) {
        cpu.named(list.path.index(list.len()).child("resource.target.averageUtilization")).invalid("must be greater than 0");
    }
    if min.int() == Some(0) && !list.items().any(|m| ["Object", "External"].contains(&m.at("type").text())) {
        list.forbidden("must specify at least one Object or External metric to support scaling to zero replicas");
    }
}

fn metric(m: &At<'_>, any_version: bool) {
    let kind = m.at("type");
    if kind.filled().is_none() {
        kind.required("must specify a metric source type");
    }
    if !SOURCES.contains(&kind.text()) {
        kind.not_supported_as(SOURCES);
    }
    let present: Vec<&str> = FIELDS.iter().copied().filter(|f| m.at(f).set()).collect();
    if let Some(first) = present.first() {
        source(&m.at(first), first, any_version);
    }
    let expected = FIELDS.iter().copied().find(|f| f.eq_ignore_ascii_case(kind.text()) && SOURCES.contains(&kind.text()));
    match expected {
        Some(f) if !present.contains(&f) => m.at(f).required("must populate information for the given metric source"),
        Some(_) => {}
        None => kind.not_supported_as(SOURCES),
    }
    if present.len() != 1 {
        for other in present.iter().filter(|f| Some(**f) != expected) {
            m.at(other).forbidden("must populate the given metric source only");
        }
    }
}

fn source(at: &At<'_>, field: &str, any_version: bool) {
    let target = at.at("target");
    let needed = |k: &str, detail: &str| {
        if at.at(k).filled().is_none() {
            at.at(k).required(detail);
        }
    };
    match field {
        "object" => {
            reference(&at.at("describedObject"), any_version, true);
            metric_name(&at.at("metric").at("name"));
        }
        "external" | "pods" => metric_name(&at.at("metric").at("name")),
        "resource" => needed("name", "must specify a resource name"),
        _ => {
            needed("name", "must specify a resource name");
            if let Some(name) = at.at("name").filled() {
                container_resource_name(&at.at("name"), name);
            }
            needed("container", "must specify a container");
            at.at("container").check_if_filled(names::dns1123_label);
        }
    }
    metric_target(&target);
    let (value, average, utilization) = (target.at("value"), target.at("averageValue"), target.at("averageUtilization"));
    match field {
        "object" if !value.set() && !average.set() => average.required("must set either a target value or averageValue"),
        "external" if !value.set() && !average.set() => average.required("must set either a target value for metric or a per-pod target"),
        "external" if value.set() && average.set() => value.forbidden("may not set both a target value for metric and a per-pod target"),
        "pods" if !average.set() => average.required("must specify a positive target averageValue"),
        "resource" | "containerResource" => match (utilization.set(), average.set()) {
            (false, false) => utilization.required("must set either a target raw value or a target utilization"),
            (true, true) => average.forbidden("may not set both a target raw value and a target utilization"),
            _ => {}
        },
        _ => {}
    }
}

fn metric_name(at: &At<'_>) {
    match at.filled() {
        None => at.required("must specify a metric name"),
        Some(_) => at.check(names::path_segment),
    }
}

fn metric_target(at: &At<'_>) {
    let kind = at.at("type");
    if kind.filled().is_none() {
        kind.required("must specify a metric target type");
    }
    if !["Utilization", "Value", "AverageValue"].contains(&kind.text()) {
        kind.invalid_as(kind.text(), "must be either Utilization, Value, or AverageValue");
    }
    for k in ["value", "averageValue"] {
        if at.at(k).quantity().is_some_and(|q| q.sign() <= 0) {
            at.at(k).invalid("must be positive");
        }
    }
    if at.at("averageUtilization").int().is_some_and(|n| n < 1) {
        at.at("averageUtilization").invalid("must be greater than 0");
    }
}

fn scaling_rules(rules: &At<'_>) {
    let window = rules.at("stabilizationWindowSeconds");
    match window.int() {
        Some(n) if n < 0 => window.invalid("must be greater than or equal to zero"),
        Some(n) if n > 3600 => window.invalid("must be less than or equal to 3600"),
        _ => {}
    }
    rules.at("selectPolicy").one_of_if_set(&["Disabled", "Max", "Min"]);
    if rules.at("policies").is_empty() {
        rules.at("policies").required("must specify at least one Policy");
    }
    for p in rules.at("policies").items() {
        p.at("type").one_of_text(&["Percent", "Pods"]);
        for n in ["value", "periodSeconds"] {
            if p.at(n).int_or(0) <= 0 {
                p.at(n).invalid_as(p.at(n).int_or(0), "must be greater than zero");
            }
        }
        if p.at("periodSeconds").int_or(0) > 1800 {
            p.at("periodSeconds").invalid("must be less than or equal to 1800");
        }
    }
    let tolerance = rules.at("tolerance");
    if tolerance.quantity().is_some_and(|q| q.sign() < 0) {
        tolerance.invalid("must be greater than or equal to 0");
    }
}
