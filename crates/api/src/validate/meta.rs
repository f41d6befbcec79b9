//! Metadata and label selectors.

use super::at::{At, same};
use crate::names;
use crate::seen::Seen;
use serde_json::Value;
use std::collections::HashSet;

/// Most bytes of all annotations together.
const ANNOTATIONS_MAX: usize = 256 * 1024;

/// A check of a name.
pub type NameCheck = fn(&str) -> Vec<String>;

/// Labels of an object or template.
pub fn labels(at: &At<'_>) {
    for (k, v) in at.entries() {
        for m in names::qualified_name(k) {
            at.invalid_as(k, m);
        }
        for m in names::label_value(v.text()) {
            at.invalid_as(v.text(), m);
        }
    }
}

/// Annotations of an object or template.
pub fn annotations(at: &At<'_>) {
    let mut size = 0;
    for (k, v) in at.entries() {
        for m in names::qualified_name(&k.to_lowercase()) {
            at.invalid_as(k, m);
        }
        size += k.len() + v.text().len();
    }
    if size > ANNOTATIONS_MAX {
        at.too_long(ANNOTATIONS_MAX);
    }
}

fn owner_references(at: &At<'_>) {
    let mut controller = String::new();
    for r in at.items() {
        let t = |k: &str| r.v.get(k).and_then(Value::as_str).unwrap_or_default();
        let empty = |k: &str, m: &str| {
            if t(k).is_empty() {
                at.with(r.at(k).v, at.path.child(k)).invalid_as("", m);
            }
        };
        empty("apiVersion", "version must not be empty");
        for k in ["kind", "name", "uid"] {
            empty(k, "must not be empty");
        }
        if t("apiVersion") == "v1" && t("kind") == "Event" {
            at.invalid_as(r.v.clone(), "/v1, Kind=Event is disallowed from being an owner");
        }
        if r.at("controller").yes() {
            let name = format!("{}/{}", t("kind"), t("name"));
            if controller.is_empty() {
                controller = name;
            } else {
                at.invalid(format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {controller} and {name}"
                ));
            }
        }
    }
}

fn is_known_finalizer(name: &str) -> bool {
    name.contains('/') || ["kubernetes", "orphan", "foregroundDeletion"].contains(&name)
}

/// Names of finalizers are upstream's own, or have a domain.
pub fn finalizer_names(at: &At<'_>) {
    for f in at.at("finalizers").items() {
        if !is_known_finalizer(f.text()) {
            f.invalid("name is neither a standard finalizer name nor is it fully qualified");
        }
    }
}

/// How often an update looks at metadata, besides once as an object and once as a change: as a change, and as an object;
/// and whether names of finalizers must be known ones.
pub struct Rounds {
    pub changes: u8,
    pub objects: u8,
    pub known: bool,
}

/// Metadata of a changed object; what is wrong is told as often as upstream looks at it.
pub fn updated(at: &At<'_>, old: &At<'_>, rounds: &Rounds) {
    let before = at.errs.borrow().len();
    update(at, old);
    finalizers(&at.at("finalizers"));
    at.at("generation").nonnegative();
    let known = rounds.known && at.at("finalizers").items().any(|f| !is_known_finalizer(f.text()));
    if at.errs.borrow().len() == before && !known {
        return;
    }
    at.errs.borrow_mut().truncate(before);
    object(at);
    update(at, old);
    for round in 0..rounds.changes + rounds.objects {
        if round < rounds.changes { update(at, old) } else { object(at) }
        if known {
            finalizer_names(at);
        }
    }
}

fn finalizers(at: &At<'_>) {
    for f in at.items() {
        for m in names::qualified_name(f.text()) {
            at.invalid_as(f.text(), m);
        }
    }
    let has = |n: &str| at.items().any(|f| f.text() == n);
    if has("orphan") && has("foregroundDeletion") {
        at.invalid("finalizer orphan and foregroundDeletion cannot be both set");
    }
}

fn managed_fields(at: &At<'_>) {
    for e in at.items() {
        e.at("operation").one_of_if_set(&["Apply", "Update"]);
        if e.at("fieldsType").filled().is_some_and(|t| t != "FieldsV1") {
            e.at("fieldsType").invalid("must be `FieldsV1`");
        }
        if e.at("manager").text().len() > 128 {
            e.at("manager").too_long(128);
        }
    }
}

/// The part of a generated name that the server was given, made checkable: a trailing dash is fine there.
fn mask_trailing_dash(s: &str) -> String {
    match s.strip_suffix('-') {
        Some(head) if !head.is_empty() => {
            let mut head = head.to_owned();
            head.pop();
            head.push('a');
            head
        }
        _ => s.to_owned(),
    }
}

/// Metadata of a new object.
pub fn create(at: &At<'_>, namespaced: bool, name: NameCheck) {
    let generate = at.at("generateName");
    if let Some(g) = generate.filled() {
        for m in name(&mask_trailing_dash(g)) {
            generate.invalid(m);
        }
    }
    match at.at("name").filled() {
        None => at.at("name").required("name or generateName is required"),
        Some(_) => at.at("name").check(name),
    }
    let namespace = at.at("namespace");
    match (namespaced, namespace.filled()) {
        (true, None) => namespace.required(""),
        (true, Some(_)) => namespace.check(names::dns1123_label),
        (false, Some(_)) => namespace.forbidden("not allowed on this type"),
        (false, None) => {}
    }
    object(at);
}

/// Metadata of any object but for its name.
pub fn object(at: &At<'_>) {
    at.at("generation").nonnegative();
    common(at);
    finalizers(&at.at("finalizers"));
}

fn common(at: &At<'_>) {
    labels(&at.at("labels"));
    annotations(&at.at("annotations"));
    owner_references(&at.at("ownerReferences"));
    managed_fields(&at.at("managedFields"));
}

/// Metadata of a changed object. That a resource version is given is for the caller to see to.
pub fn update(at: &At<'_>, old: &At<'_>) {
    if old.at("deletionTimestamp").set() {
        let before: Seen<&Value> = old.at("finalizers").items().map(|f| f.v).collect();
        let mut new: Vec<String> = at
            .at("finalizers")
            .items()
            .filter(|f| !before.has(&f.v))
            .map(|f| crate::field::go_quote(f.text()))
            .collect();
        new.sort();
        new.dedup();
        if !new.is_empty() {
            at.at("finalizers").forbidden(format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                new.join(", ")
            ));
        }
    }
    if at.at("generation").int_or(0) < old.at("generation").int_or(0) {
        at.at("generation").invalid("must not be decremented");
    }
    for k in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        at.at(k).immutable(&old.at(k));
    }
    common(at);
}

/// A `metav1.LabelSelector`.
pub fn label_selector(at: &At<'_>) {
    labels(&at.at("matchLabels"));
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
            other => e.at("operator").invalid_as(other, "not a valid selector operator"),
        }
        e.at("key").check(names::qualified_name);
        for v in values.items() {
            v.check(names::label_value);
        }
    }
}

/// Whether a selector is there but selects everything.
pub fn selects_everything(at: &At<'_>) -> bool {
    at.set() && at.at("matchLabels").is_empty() && at.at("matchExpressions").is_empty()
}

/// A list of `metav1.Condition`s, each type once.
pub fn conditions(list: &At<'_>) {
    let mut seen = Seen::default();
    for c in list.items() {
        let kind = c.at("type");
        if !seen.add(kind.text()) {
            kind.push(crate::field::FieldError::duplicate(&kind.path, kind.text()));
        }
        condition(&c);
    }
}

/// One `metav1.Condition`.
fn condition(c: &At<'_>) {
    const REASON: &str = "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?";
    c.at("type").check(names::qualified_name);
    if !["False", "True", "Unknown"].contains(&c.at("status").text()) {
        c.at("status").not_supported_as(&["False", "True", "Unknown"]);
    }
    if c.at("observedGeneration").int_or(0) < 0 {
        c.at("observedGeneration").invalid("must be greater than or equal to zero");
    }
    if !c.at("lastTransitionTime").set() {
        c.at("lastTransitionTime").required("");
    }
    let reason = c.at("reason");
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let good = |r: &str| r.starts_with(|c: char| c.is_ascii_alphabetic()) && r.bytes().all(|b| word(b) || b == b',' || b == b':') && r.bytes().last().is_some_and(word);
    match reason.filled() {
        None => reason.required(""),
        Some(r) => {
            if !good(r) {
                let what = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'";
                reason.invalid(names::regex_error(what, REASON, &["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"]));
            }
            if r.len() > 1024 {
                reason.too_long(1024);
            }
        }
    }
    if c.at("message").text().len() > 32 * 1024 {
        c.at("message").too_long(32 * 1024);
    }
}

/// A number or a percentage.
pub fn int_or_percent(at: &At<'_>) {
    match at.v {
        Value::String(_) => at.check(names::percent),
        _ => at.nonnegative(),
    }
}

/// The number before the percent sign, if it is a percentage.
pub fn percentage(v: &Value) -> Option<i64> {
    v.as_str()?.strip_suffix('%').filter(|n| n.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

/// The number, of things or percent.
pub fn int_or_percent_value(v: &Value) -> i64 {
    percentage(v).or_else(|| v.as_i64()).unwrap_or(0)
}

/// At most 100 %.
pub fn at_most_100_percent(at: &At<'_>) {
    if percentage(at.v).is_some_and(|p| p > 100) {
        at.invalid("must not be greater than 100%");
    }
}

/// The fields of `spec` besides `mutable` must be as before.
pub fn spec_unchanged_but(new: &At<'_>, old: &At<'_>, mutable: &[&str]) -> bool {
    let keys = |a: &At<'_>| a.v.as_object().map(|m| m.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let mut all = keys(new);
    all.extend(keys(old));
    all.iter().filter(|k| !mutable.contains(&k.as_str())).all(|k| same(new.at(k).v, old.at(k).v))
}

/// Whether two lists of texts have the same members, however often and in whatever order.
pub fn same_members(a: &At<'_>, b: &At<'_>) -> bool {
    let all = |list: &At<'_>| list.v.as_array().into_iter().flatten().cloned().collect::<HashSet<Value>>();
    all(a) == all(b)
}
