//! What a definition's status becomes: which names it gets, and whether it is established.
//!
//! [`plan`] looks at a definition and the names that others in its group have, and answers the next status;
//! it is asked again until nothing changes.

use super::structure::validate_structural;
use super::{CLEANUP, flag, items, text};
use crate::field::{FieldError, Path, aggregate};
use serde_json::{Map, Value, json};

/// The status of a condition, or "".
pub fn condition<'a>(definition: &'a Value, kind: &str) -> &'a str {
    find(definition, kind).map_or("", |c| text(c, "/status"))
}

/// Whether a condition is `True`.
pub fn is_true(definition: &Value, kind: &str) -> bool {
    condition(definition, kind) == "True"
}

fn find<'a>(definition: &'a Value, kind: &str) -> Option<&'a Value> {
    items(definition, "/status/conditions").iter().find(|c| text(c, "/type") == kind)
}

/// A condition to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub kind: &'static str,
    pub status: &'static str,
    pub reason: &'static str,
    pub message: String,
}

impl Condition {
    fn new(kind: &'static str, status: &'static str, reason: &'static str, message: impl Into<String>) -> Condition {
        Condition { kind, status, reason, message: message.into() }
    }

    fn is_in(&self, definition: &Value) -> bool {
        find(definition, self.kind)
            .is_some_and(|c| (text(c, "/status"), text(c, "/reason"), text(c, "/message")) == (self.status, self.reason, self.message.as_str()))
    }

    /// Puts the condition into a status. `now` is an RFC 3339 time.
    pub fn set(&self, definition: &mut Value, now: &str) {
        let status = &mut definition["status"];
        if !status.is_object() {
            *status = json!({});
        }
        if !status["conditions"].is_array() {
            status["conditions"] = json!([]);
        }
        let Some(all) = status["conditions"].as_array_mut() else { return };
        let mut condition = json!({"type": self.kind, "status": self.status, "reason": self.reason, "message": self.message, "lastTransitionTime": now});
        match all.iter_mut().find(|c| text(c, "/type") == self.kind) {
            Some(old) => {
                if text(old, "/status") == self.status && !text(old, "/lastTransitionTime").is_empty() {
                    condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
                }
                *old = condition;
            }
            None => all.push(condition),
        }
    }
}

/// Deletion has been asked for.
pub fn marked() -> Condition {
    Condition::new(
        "Terminating",
        "True",
        "InstanceDeletionPending",
        "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
    )
}

/// Deletion goes on.
pub fn deleting() -> Condition {
    Condition::new("Terminating", "True", "InstanceDeletionInProgress", "CustomResource deletion is in progress")
}

/// Objects could not be deleted.
pub fn deletion_failed(why: &str) -> Condition {
    Condition::new("Terminating", "True", "InstanceDeletionFailed", format!("could not issue all deletes: {why}"))
}

/// Nothing is left.
pub fn deleted(established: bool) -> Condition {
    match established {
        true => Condition::new("Terminating", "False", "InstanceDeletionCompleted", "removed all instances"),
        false => Condition::new("Terminating", "False", "NeverEstablished", "resource was never established"),
    }
}

/// Whether a deleted definition waits for its objects.
pub fn cleans_up(definition: &Value) -> bool {
    !text(definition, "/metadata/deletionTimestamp").is_empty()
        && items(definition, "/metadata/finalizers").iter().any(|f| f == CLEANUP)
}

/// What is to change in a status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// New `acceptedNames`.
    pub names: Option<Value>,
    pub set: Vec<Condition>,
    pub remove: Vec<&'static str>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Plan::default()
    }

    /// Makes the changes.
    pub fn apply(&self, definition: &mut Value, now: &str) {
        if let Some(names) = &self.names {
            definition["status"]["acceptedNames"] = names.clone();
        }
        self.set.iter().for_each(|c| c.set(definition, now));
        if let Some(Value::Array(all)) = definition.pointer_mut("/status/conditions") {
            all.retain(|c| !self.remove.contains(&text(c, "/type")));
        }
    }
}

/// The next status of `definition`. `others` are the other definitions.
pub fn plan(definition: &Value, others: &[&Value]) -> Plan {
    let mut plan = Plan::default();
    naming(definition, others, &mut plan);
    let accepted = plan.set.iter().find(|c| c.kind == "NamesAccepted").map_or(condition(definition, "NamesAccepted"), |c| c.status);
    let settled = !plan.set.iter().any(|c| c.kind == "Established");
    if settled && accepted == "True" && !is_true(definition, "Established") {
        let established = match bad_ca(definition) {
            true => Condition::new("Established", "False", "InvalidCABundle", "The conversion webhook CABundle is invalid"),
            false => Condition::new("Established", "True", "InitialNamesAccepted", "the initial names have been accepted"),
        };
        if !established.is_in(definition) {
            plan.set.push(established);
        }
    }
    match non_structural(definition) {
        Some(condition) if !condition.is_in(definition) => plan.set.push(condition),
        None if find(definition, "NonStructuralSchema").is_some() => plan.remove.push("NonStructuralSchema"),
        _ => {}
    }
    if let Some(condition) = approval(definition).filter(|c| !c.is_in(definition)) {
        plan.set.push(condition);
    }
    plan
}

fn naming(definition: &Value, others: &[&Value], plan: &mut Plan) {
    let empty = json!({});
    let wanted = definition.pointer("/spec/names").unwrap_or(&empty);
    let accepted = definition.pointer("/status/acceptedNames").unwrap_or(&empty);
    if same_names(wanted, accepted) && find(definition, "NamesAccepted").is_some() {
        return;
    }
    let group = text(definition, "/spec/group");
    let taken: Vec<&Value> =
        others.iter().filter(|o| text(o, "/spec/group") == group).filter_map(|o| o.pointer("/status/acceptedNames")).collect();
    let resource = |name: &str| {
        taken.iter().any(|t| text(t, "/plural") == name || text(t, "/singular") == name || items(t, "/shortNames").iter().any(|s| s == name))
    };
    let kind = |name: &str| taken.iter().any(|t| text(t, "/kind") == name || text(t, "/listKind") == name);
    let mut names: Map<String, Value> = accepted.as_object().cloned().unwrap_or_default();
    let mut conflict: Option<(&'static str, String)> = None;
    let mut settle = |key: &'static str, reason: &'static str, used: &dyn Fn(&str) -> bool| {
        let name = text(wanted, &format!("/{key}"));
        if name != text(accepted, &format!("/{key}")) && used(name) {
            conflict = Some((reason, format!("{} is already in use", crate::field::go_quote(name))));
        } else {
            names.insert(key.into(), name.into());
        }
    };
    settle("plural", "PluralConflict", &resource);
    settle("singular", "SingularConflict", &resource);
    let own = items(accepted, "/shortNames");
    let used: Vec<String> = items(wanted, "/shortNames")
        .iter()
        .filter(|s| !own.contains(s))
        .filter_map(Value::as_str)
        .filter(|s| resource(s))
        .map(|s| format!("{} is already in use", crate::field::go_quote(s)))
        .collect();
    settle("kind", "KindConflict", &kind);
    settle("listKind", "ListKindConflict", &kind);
    let kind_conflict = conflict.as_ref().is_some_and(|(reason, _)| reason.contains("Kind"));
    if !used.is_empty() {
        if !kind_conflict {
            conflict = Some(("ShortNamesConflict", aggregate(used.iter().map(String::as_str))));
        }
    } else {
        replace(&mut names, "shortNames", wanted);
    }
    replace(&mut names, "categories", wanted);
    let condition = match &conflict {
        None => Condition::new("NamesAccepted", "True", "NoConflicts", "no conflicts found"),
        Some((reason, why)) => Condition::new("NamesAccepted", "False", reason, why.clone()),
    };
    let names = Value::Object(names);
    if same_names(&names, accepted) && condition.is_in(definition) {
        return;
    }
    plan.names = Some(names);
    if !is_true(definition, "Established") {
        plan.set.push(match conflict {
            None => Condition::new("Established", "False", "Installing", "the initial names have been accepted"),
            Some(_) => Condition::new("Established", "False", "NotAccepted", "not all names are accepted"),
        });
    }
    plan.set.insert(0, condition);
}

fn replace(names: &mut Map<String, Value>, key: &str, from: &Value) {
    match from.get(key).filter(|v| v.as_array().is_some_and(|l| !l.is_empty())) {
        Some(list) => names.insert(key.into(), list.clone()),
        None => names.remove(key),
    };
}

fn same_names(a: &Value, b: &Value) -> bool {
    let scalar = |k: &str| text(a, &format!("/{k}")) == text(b, &format!("/{k}"));
    ["plural", "singular", "kind", "listKind"].into_iter().all(scalar)
        && items(a, "/shortNames") == items(b, "/shortNames")
        && items(a, "/categories") == items(b, "/categories")
}

/// Whether a conversion webhook has a CA bundle without a certificate in it.
fn bad_ca(definition: &Value) -> bool {
    let bundle = text(definition, "/spec/conversion/webhook/clientConfig/caBundle");
    !bundle.is_empty() && super::definition::bad_ca_bundle(bundle)
}

fn non_structural(definition: &Value) -> Option<Condition> {
    let mut errors = Vec::new();
    if definition.get("spec").is_some_and(|s| flag(s, "preserveUnknownFields")) {
        errors.push(FieldError::invalid(&Path::new("spec").child("preserveUnknownFields"), true, "must be false"));
    }
    for (i, version) in items(definition, "/spec/versions").iter().enumerate() {
        if let Some(schema) = version.pointer("/schema/openAPIV3Schema") {
            let path = Path::new("spec").child("versions").index(i).child("schema").child("openAPIV3Schema");
            errors.extend(validate_structural(&path, schema));
        }
    }
    if errors.is_empty() {
        return None;
    }
    Some(Condition::new("NonStructuralSchema", "True", "Violations", aggregate(errors.iter().map(ToString::to_string))))
}

const APPROVED: &str = "api-approved.kubernetes.io";

/// What a group of Kubernetes' own says of its approval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    Invalid,
    Approved,
    Bypassed,
    Missing,
}

/// The state of a definition's approval and the sentence for it; `None` for groups that need none.
pub fn approval_state(definition: &Value) -> Option<(Approval, String)> {
    let group = text(definition, "/spec/group");
    let own = ["k8s.io", "kubernetes.io"].iter().any(|d| group == *d || group.ends_with(&format!(".{d}")));
    if !own {
        return None;
    }
    let annotation = definition.pointer("/metadata/annotations").and_then(|a| a.get(APPROVED)).and_then(Value::as_str).unwrap_or_default();
    let quoted = crate::field::go_quote(APPROVED);
    let kep = "see https://github.com/kubernetes/enhancements/pull/1111";
    let is_url = annotation.split_once("://").is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty() && !rest.starts_with('/'));
    Some(match annotation {
        "" => (Approval::Missing, format!("protected groups must have approval annotation {quoted}, {kep}")),
        a if a.starts_with("unapproved") => (Approval::Bypassed, format!("not approved: {}", crate::field::go_quote(a))),
        a if is_url => (Approval::Approved, format!("approved in {a}")),
        _ => (
            Approval::Invalid,
            format!("protected groups must have approval annotation {quoted} with either a URL or a reason starting with \"unapproved\", {kep}"),
        ),
    })
}

fn approval(definition: &Value) -> Option<Condition> {
    let (state, why) = approval_state(definition)?;
    let (status, reason) = match state {
        Approval::Invalid => ("False", "InvalidAnnotation"),
        Approval::Missing => ("False", "MissingAnnotation"),
        Approval::Approved => ("True", "ApprovedAnnotation"),
        Approval::Bypassed => ("False", "UnapprovedAnnotation"),
    };
    Some(Condition::new("KubernetesAPIApprovalPolicyConformant", status, reason, why))
}
