//! Field ownership: server-side apply, and the bookkeeping in
//! `metadata.managedFields` for every other write.
//!
//! The caller defaults the result of [`apply`] and stores it; nothing is kept
//! here. Managers of another version of the type than the request's are taken
//! to own the same paths. Merging follows the `structured-merge-diff` rules
//! (KEP-555).

mod direct;
mod managers;
mod set;
#[cfg(test)]
mod tests;
mod typed;

pub use managers::{Manager, Operation, decode, encode};
pub use set::{Element, Scalar, Set, show_path};

use crate::resources::Resource;
use crate::status::{self, Cause, Status};
use crate::topology::{Node, builtin, skeleton};
use serde_json::{Value, json};

/// The annotation in which client-side `kubectl apply` keeps its last input.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What is written: type, version and subresource.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// The type of the whole object.
    pub node: Node<'a>,
    /// Group and version of the request, as in `apiVersion`.
    pub api_version: &'a str,
    /// The kind.
    pub kind: &'a str,
    /// The subresource, or empty.
    pub subresource: &'a str,
    /// Fields that a write of this kind resets and so never owns.
    pub reset: Set,
}

impl<'a> Target<'a> {
    /// A target whose main resource does not write `status`, and whose `status` subresource does not write `spec`,
    /// when `has_status`.
    pub fn new(node: Node<'a>, api_version: &'a str, kind: &'a str, subresource: &'a str, has_status: bool) -> Target<'a> {
        let reset = match subresource {
            "" if has_status => Set::of(&[&["status"]]),
            "status" => Set::of(&[&["spec"]]),
            _ => Set::default(),
        };
        Target { node, api_version, kind, subresource, reset }
    }

    /// A built-in resource or one of its subresources.
    pub fn builtin(resource: &'a Resource, api_version: &'a str, subresource: &'a str) -> Target<'a> {
        let mut t =
            Target::new(builtin(resource.type_name), api_version, resource.kind, subresource, resource.subresource("status").is_some());
        if (resource.kind, subresource) == ("CertificateSigningRequest", "approval") {
            t.reset = Set::of(&[&["spec"], &["status", "certificate"]]);
        }
        t
    }

    fn manager(&self, name: &str, operation: Operation, now: &str) -> Manager {
        Manager {
            name: if name.is_empty() { "unknown" } else { name }.to_owned(),
            operation,
            api_version: self.api_version.to_owned(),
            subresource: self.subresource.to_owned(),
            time: Some(now.to_owned()),
            set: Set::default(),
        }
    }
}

/// Several errors as one.
fn joined(errors: &[String]) -> Option<String> {
    match errors {
        [] => None,
        [one] => Some(one.clone()),
        many => Some(format!("errors:\n  {}", many.join("\n  "))),
    }
}

/// Lays `config` over `live` as an apply does, with nobody owning anything. Maps and lists that are owned as a whole
/// are refused: who means to add to one would replace it.
pub fn merge(node: Node<'_>, live: &Value, config: &Value) -> Result<Value, String> {
    if let Some(wrong) = joined(&typed::check(node, config, false)) {
        return Err(format!("failed to convert patch object to typed object: {wrong}"));
    }
    let atomics = typed::atomics(node, config);
    if !atomics.is_empty() {
        return Err(format!("invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}", atomics.join(", ")));
    }
    if let Some(wrong) = joined(&typed::check(node, live, true)) {
        return Err(format!("failed to convert original object to typed object: {wrong}"));
    }
    Ok(typed::merge(node, live, config))
}

/// The manager's name of a request that names none: the part of the user agent before the first slash.
pub fn manager_of_user_agent(user_agent: &str) -> String {
    user_agent.split('/').next().unwrap_or_default().chars().take(128).collect()
}

/// The object before anything is written to it.
fn empty(target: &Target<'_>) -> Value {
    let mut v = match target.node {
        Node::Type(t) => skeleton(t),
        _ => json!({}),
    };
    v["apiVersion"] = target.api_version.into();
    v["kind"] = target.kind.into();
    v
}

fn uid(v: &Value) -> &str {
    v.get("metadata").and_then(|m| m.get("uid")).and_then(Value::as_str).unwrap_or_default()
}

/// Writes the managed fields of `new`, which `manager` made of `old` (absent for a create) by any
/// operation but apply. `now` is an RFC 3339 time in seconds.
pub fn track_update(target: &Target<'_>, old: Option<&Value>, new: &mut Value, manager: &str, now: &str) {
    let mut given = managers::strip(new);
    let acting = || target.manager(manager, Operation::Update, now);
    let quick = match old {
        None if given.is_none() => direct::created(target.node, &empty(target), new, acting(), &target.reset),
        None => None,
        Some(live) => {
            let kept = managers::of(live);
            let came_back = given.as_ref() == kept;
            let entries = match came_back {
                true => given.take(),
                false if given.is_none() || !target.subresource.is_empty() => kept.cloned(),
                false => None,
            };
            let quick = entries.and_then(|entries| direct::changed(target.node, live, new, entries, acting(), &target.reset));
            if quick.is_none() && came_back {
                given = kept.cloned();
            }
            quick
        }
    };
    match quick {
        Some(entries) => managers::put(new, entries),
        None => track_by_sets(target, old, new, given, acting()),
    }
}

/// As [`track_update`], with everything read: what managed fields of any kind come to.
fn track_by_sets(target: &Target<'_>, old: Option<&Value>, new: &mut Value, given: Option<Value>, acting: Manager) {
    let live_fields = old.and_then(managers::of);
    let reset = given.as_ref().and_then(Value::as_array).is_some_and(|l| match l.as_slice() {
        [] => true,
        [one] => one.as_object().is_some_and(serde_json::Map::is_empty),
        _ => false,
    });
    let from_live = || decode(live_fields).unwrap_or_default();
    let mut managers = if !target.subresource.is_empty() {
        from_live()
    } else if reset {
        Vec::new()
    } else {
        match decode(given.as_ref()) {
            Ok(m) if !m.is_empty() => m,
            _ => from_live(),
        }
    };
    let created = old.is_none_or(|o| uid(o).is_empty());
    if managers.is_empty() && !created {
        // an object whose fields nobody tracks stays so until the first apply
        return;
    }
    // What the live object says of its managers is a path that nobody owns.
    let none = old.is_none().then(|| empty(target));
    if let Some(live) = old.or(none.as_ref()) {
        managers::update(target.node, live, new, &mut managers, acting, &target.reset);
    }
    managers::encode(new, managers);
}

/// Applies `config` to `live` (absent for a create) and answers the new object, not yet defaulted.
/// Conflicts are a 409 whose causes name the fields.
pub fn apply(
    target: &Target<'_>,
    live: Option<&Value>,
    config: &Value,
    manager: &str,
    force: bool,
    now: &str,
) -> Result<Value, Status> {
    let text = |k: &str| config.get(k).and_then(Value::as_str).unwrap_or_default();
    let group_version = |s: &str| match s.split_once('/') {
        Some((g, v)) => (g.to_owned(), v.to_owned()),
        None => (String::new(), s.to_owned()),
    };
    let (group, version) = group_version(text("apiVersion"));
    if text("apiVersion") != target.api_version || text("kind") != target.kind {
        return Err(status::bad_request(format!("invalid object type: {group}/{version}, Kind={}", text("kind"))));
    }
    let meta = |k: &str| config.get("metadata").and_then(|m| m.get(k));
    if meta("managedFields").is_some_and(|m| !m.is_null()) {
        return Err(status::bad_request("metadata.managedFields must be nil"));
    }
    let failed = |message: String| Status { code: 500, reason: String::new(), message, details: None };
    let wrong = typed::check(target.node, config, false);
    if let Some(errors) = joined(&wrong) {
        let name = |k| meta(k).and_then(Value::as_str).unwrap_or_default();
        return Err(failed(format!(
            "failed to create typed patch object ({}/{}; {}, Kind={}): {errors}",
            name("namespace"),
            name("name"),
            target.api_version,
            target.kind
        )));
    }
    let mut current = live.cloned().unwrap_or_else(|| empty(target));
    let fields = managers::strip(&mut current);
    let mut managers = decode(fields.as_ref()).map_err(|e| failed(format!("failed to decode managed fields: {e}")))?;
    if managers.is_empty() && live.is_some() {
        let acting = target.manager("before-first-apply", Operation::Update, now);
        managers::update(target.node, &empty(target), &current, &mut managers, acting, &target.reset);
    }
    let run = |force: bool| {
        let mut managers = managers.clone();
        let acting = target.manager(manager, Operation::Apply, now);
        managers::apply(target.node, &current, config, &mut managers, acting, &target.reset, force).map(|a| (a, managers))
    };
    let mut result = run(force);
    if manager == "kubectl"
        && let Err(conflicts) = &result
        && let Some(allowed) = last_applied_set(target, &current)
    {
        // what client-side apply set and nobody changed since is ours to take over
        let left: managers::Conflicts = conflicts
            .iter()
            .map(|(m, s)| (m.clone(), s.difference(&allowed)))
            .filter(|(_, s)| !s.is_empty())
            .collect();
        result = if left.is_empty() { run(true) } else { Err(left) };
    }
    let (applied, managers) = result.map_err(conflict_status)?;
    let mut object = if applied.changed { applied.object } else { current };
    if manager == "kubectl" {
        renew_last_applied(&mut object, config);
    }
    managers::encode(&mut object, managers);
    Ok(object)
}

fn conflict_status(mut conflicts: managers::Conflicts) -> Status {
    conflicts.sort_by(|(a, _), (b, _)| (&a.name, a.operation, &a.api_version).cmp(&(&b.name, b.operation, &b.api_version)));
    let all: Vec<(&Manager, String)> =
        conflicts.iter().flat_map(|(m, s)| s.paths().into_iter().map(move |p| (m, show_path(&p)))).collect();
    let causes = all
        .iter()
        .map(|(m, p)| Cause {
            reason: "FieldManagerConflict".to_owned(),
            message: format!("conflict with {}", m.show()),
            field: p.clone(),
        })
        .collect();
    let message = if let [(m, p)] = all.as_slice() {
        format!("Apply failed with 1 conflict: conflict with {}: {p}", m.show())
    } else {
        let mut lines = Vec::new();
        for (m, s) in &conflicts {
            lines.push(format!("conflicts with {}:", m.show()));
            lines.extend(s.paths().iter().map(|p| format!("- {}", show_path(p))));
        }
        format!("Apply failed with {} conflicts: {}", all.len(), lines.join("\n"))
    };
    status::apply_conflict(causes, message)
}

fn annotation(obj: &Value) -> Option<&str> {
    obj.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str().filter(|s| !s.is_empty())
}

/// The fields of the last client-side apply that still have the value it gave them.
fn last_applied_set(target: &Target<'_>, live: &Value) -> Option<Set> {
    let last: Value = serde_json::from_str(annotation(live)?).ok()?;
    if last.get("apiVersion")?.as_str()? != target.api_version {
        return None;
    }
    let set = typed::to_set(target.node, &last);
    let c = typed::compare(target.node, &last, live);
    Some(set.difference(&c.modified).difference(&c.added).difference(&c.removed))
}

/// Keeps the annotation of client-side apply in step, so that one can go back to it.
fn renew_last_applied(obj: &mut Value, config: &Value) {
    if annotation(obj).is_none() {
        return;
    }
    let mut config = config.clone();
    let notes = config.get_mut("metadata").and_then(|m| m.get_mut("annotations")).and_then(Value::as_object_mut);
    if let Some(a) = notes {
        a.remove(LAST_APPLIED);
    }
    let text = format!("{}\n", crate::field::go_json(&config));
    let Some(notes) = obj.get_mut("metadata").and_then(|m| m.get_mut("annotations")).and_then(Value::as_object_mut) else { return };
    let others: usize = notes.iter().filter(|(k, _)| *k != LAST_APPLIED).map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if others + LAST_APPLIED.len() + text.len() > 256 * 1024 {
        notes.remove(LAST_APPLIED);
    } else {
        notes.insert(LAST_APPLIED.to_owned(), text.into());
    }
}

/// Gives `new` the times of `old` in its managed fields when the two are otherwise the same, so that a
/// write that changes nothing stays one.
pub fn keep_times_if_unchanged(old: &Value, new: &mut Value) {
    fn without_times(v: &Value) -> Value {
        let mut v = v.clone();
        let list = v.get_mut("metadata").and_then(|m| m.get_mut("managedFields")).and_then(Value::as_array_mut);
        for e in list.into_iter().flatten().filter_map(Value::as_object_mut) {
            e.remove("time");
        }
        v
    }
    if without_times(old) == without_times(new)
        && let Some(fields) = old.get("metadata").and_then(|m| m.get("managedFields"))
        && let Some(m) = new.get_mut("metadata").and_then(Value::as_object_mut)
    {
        m.insert("managedFields".to_owned(), fields.clone());
    }
}

/// The managed fields of a `Scale` made from those of the scaled object: who owns its replicas.
pub fn scale_from_parent(parent: &Value, replicas: &[&str]) -> Value {
    let fields = parent.get("metadata").and_then(|m| m.get("managedFields"));
    let path = Set::of(&[replicas]);
    let managers: Vec<Manager> = decode(fields)
        .unwrap_or_default()
        .into_iter()
        .filter(|m| !m.set.intersection(&path).is_empty())
        .map(|m| Manager { api_version: "autoscaling/v1".to_owned(), set: Set::of(&[&["spec", "replicas"]]), ..m })
        .collect();
    let mut out = json!({"metadata": {}});
    managers::encode(&mut out, managers);
    out["metadata"].get_mut("managedFields").map_or(Value::Null, Value::take)
}

/// Writes to `parent` (of `api_version`) the owners of its replicas as they are in a written `Scale`.
pub fn scale_to_parent(parent: &mut Value, scale: &Value, api_version: &str, replicas: &[&str]) {
    let fields = |v: &Value| decode(v.get("metadata").and_then(|m| m.get("managedFields"))).unwrap_or_default();
    let path = Set::of(&[replicas]);
    let mut scaled: Vec<Manager> =
        fields(scale).into_iter().filter(|m| !m.set.intersection(&Set::of(&[&["spec", "replicas"]])).is_empty()).collect();
    let alike = |a: &Manager, b: &Manager| a.name == b.name && a.operation == b.operation && a.subresource == b.subresource;
    let mut out = Vec::new();
    for mut m in fields(parent) {
        if !m.set.intersection(&path).is_empty() {
            match scaled.iter().position(|s| alike(s, &m)) {
                Some(i) => {
                    scaled.remove(i);
                }
                None => m.set = m.set.difference(&path),
            }
        }
        if !m.set.is_empty() {
            out.push(m);
        }
    }
    out.extend(scaled.into_iter().map(|s| Manager { api_version: api_version.to_owned(), set: path.clone(), ..s }));
    managers::encode(parent, out);
}
