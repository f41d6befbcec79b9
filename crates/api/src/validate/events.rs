//! Events: as old clients make them (v1), and as new ones do (events.k8s.io).

use super::at::At;
use super::meta;
use crate::names;

const MAX_TEXT: usize = 128;
const MAX_NOTE: usize = 1024;

/// An event, in the form of its group. The core form has other names for some fields; errors use them in either.
pub fn event(at: &At<'_>, core: bool, old: Option<&At<'_>>) {
    let field = |of, name| named(of, name, core);
    let (metadata, about) = (at.at("metadata"), field(at, "involvedObject"));
    if old.is_none() {
        // old clients may use any name that can be part of a path
        meta::create(&metadata, true, if core { names::path_segment } else { names::dns1123_subdomain });
    }
    let namespace = metadata.at("namespace").text();
    let of = about.at("namespace");
    let mismatch = || of.invalid_as(of.text(), "does not match event.namespace");
    if at.at("eventTime").set() {
        if of.text().is_empty() && !matches!(namespace, "default" | "kube-system") {
            mismatch();
        }
        let controller = at.at(if core { "reportingComponent" } else { "reportingController" });
        if controller.filled().is_none() {
            controller.required("");
        }
        controller.check(names::qualified_name);
        let limits = [("reportingInstance", MAX_TEXT), ("action", MAX_TEXT), ("reason", MAX_TEXT), ("message", MAX_NOTE)];
        for (name, limit) in limits {
            let text = field(at, name);
            if text.filled().is_none() && name != "message" {
                text.required("");
            }
            if text.text().len() > limit {
                text.invalid_as("", format!("can have at most {limit} characters"));
            }
        }
    } else if of.text() != namespace && !(of.text().is_empty() && matches!(namespace, "" | "default")) {
        mismatch();
    }
    metadata.at("namespace").named("namespace".into()).check(names::dns1123_subdomain);
    if core {
        return;
    }
    let series = at.at("series");
    let check_series = || {
        if series.set() {
            if series.at("count").int_or(0) < 2 {
                series.at("count").invalid_as("", "should be at least 2");
            }
            if !series.at("lastObservedTime").set() {
                series.at("lastObservedTime").required("");
            }
        }
    };
    let Some(old) = old else {
        check_series();
        if !at.at("eventTime").set() {
            at.at("eventTime").required("");
        }
        let kind = at.at("type");
        if !matches!(kind.text(), "Normal" | "Warning") {
            kind.invalid_as("", format!("has invalid value: {}", kind.text()));
        }
        for name in ["firstTimestamp", "lastTimestamp", "count"] {
            let given = field(at, name);
            if given.set() && given.int() != Some(0) {
                given.invalid_as("", "needs to be unset");
            }
        }
        let source = field(at, "source");
        if ["component", "host"].iter().any(|f| source.at(f).filled().is_some()) {
            source.invalid_as("", "needs to be unset");
        }
        return;
    };
    if !super::at::same(series.v, old.at("series").v) {
        check_series();
    }
    for name in FIXED {
        let (now, before) = (field(at, name), field(old, name));
        if ["reason", "message", "type", "action", "reportingController", "reportingInstance"].contains(&name) {
            if now.text() != before.text() {
                now.invalid_as(now.text(), "field is immutable");
            }
        } else {
            now.immutable(&before);
        }
    }
}

/// A field by the name that it has in the core form.
fn named<'a>(of: &At<'a>, name: &'static str, core: bool) -> At<'a> {
    of.at(own_name(name, core)).named(name.into())
}

/// What stays as it was made; upstream looks at the reason twice.
const FIXED: [&str; 14] = [
    "involvedObject", "reason", "message", "source", "firstTimestamp", "lastTimestamp", "count", "reason", "type", "eventTime", "action",
    "related", "reportingController", "reportingInstance",
];

/// What the group's form calls a field of the core form.
fn own_name(name: &'static str, core: bool) -> &'static str {
    match name {
        _ if core => name,
        "involvedObject" => "regarding",
        "message" => "note",
        "source" => "deprecatedSource",
        "firstTimestamp" => "deprecatedFirstTimestamp",
        "lastTimestamp" => "deprecatedLastTimestamp",
        "count" => "deprecatedCount",
        name => name,
    }
}
