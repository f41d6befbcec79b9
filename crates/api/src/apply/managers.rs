//! `metadata.managedFields`: who owns which fields, and how that changes with
//! each write.

use super::set::Set;
use super::typed::{Comparison, compare, remove, to_set};
use crate::topology::Node;
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

/// How a manager came to its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// By server-side apply.
    Apply,
    /// By any other write.
    Update,
}

impl Operation {
    fn text(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// One entry of `managedFields`.
#[derive(Clone, Debug, PartialEq)]
pub struct Manager {
    /// Name that the client gave itself.
    pub name: String,
    /// How it wrote.
    pub operation: Operation,
    /// Group and version that the paths are of.
    pub api_version: String,
    /// Subresource that it wrote through, or empty.
    pub subresource: String,
    /// RFC 3339 time of the last change of the set.
    pub time: Option<String>,
    /// The fields.
    pub set: Set,
}

impl Manager {
    /// Whether two entries are of the same manager: an applier keeps its entry over versions.
    pub fn same(&self, other: &Manager) -> bool {
        self.name == other.name
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// How messages name it.
    pub fn show(&self) -> String {
        let mut s = crate::field::go_quote(&self.name);
        if !self.subresource.is_empty() {
            s.push_str(&format!(" with subresource {}", crate::field::go_quote(&self.subresource)));
        }
        if self.operation == Operation::Update {
            s.push_str(&format!(" using {}", self.api_version));
        }
        s
    }

    fn encode(&self) -> Value {
        self.entry(self.set.to_fields_v1())
    }

    /// The entry, with these fields.
    pub(super) fn entry(&self, fields: Value) -> Value {
        let mut m = Map::new();
        m.insert("manager".into(), self.name.clone().into());
        m.insert("operation".into(), self.operation.text().into());
        m.insert("apiVersion".into(), self.api_version.clone().into());
        if let Some(t) = &self.time {
            m.insert("time".into(), t.clone().into());
        }
        m.insert("fieldsType".into(), "FieldsV1".into());
        m.insert("fieldsV1".into(), fields);
        if !self.subresource.is_empty() {
            m.insert("subresource".into(), self.subresource.clone().into());
        }
        Value::Object(m)
    }
}

/// Reads `metadata.managedFields`.
pub fn decode(v: Option<&Value>) -> Result<Vec<Manager>, String> {
    let mut out: Vec<Manager> = Vec::new();
    for (i, e) in v.and_then(Value::as_array).into_iter().flatten().enumerate() {
        let text = |k: &str| e.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
        let operation = match text("operation").as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return Err("operation must be `Apply` or `Update`".to_owned()),
        };
        if text("apiVersion").is_empty() {
            return Err("apiVersion must not be empty".to_owned());
        }
        match text("fieldsType").as_str() {
            "FieldsV1" => {}
            "" => return Err(format!("missing fieldsType in managed fields entry {i}")),
            other => {
                return Err(format!("invalid fieldsType {} in managed fields entry {i}", crate::field::go_quote(other)));
            }
        }
        let empty = json!({});
        let set = Set::from_fields_v1(e.get("fieldsV1").unwrap_or(&empty)).map_err(|e| format!("error decoding set: {e}"))?;
        let m = Manager {
            name: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: e.get("time").and_then(Value::as_str).map(str::to_owned),
            set,
        };
        match out.iter_mut().find(|o| o.same(&m)) {
            Some(o) => *o = m,
            None => out.push(m),
        }
    }
    Ok(out)
}

/// Writes `metadata.managedFields`; an object without managers has none.
pub fn encode(obj: &mut Value, mut managers: Vec<Manager>) {
    managers.sort_by(|a, b| {
        a.operation
            .cmp(&b.operation)
            .then_with(|| a.time.cmp(&b.time))
            .then_with(|| a.name.cmp(&b.name))
            .then_with(|| a.api_version.cmp(&b.api_version))
            .then_with(|| a.subresource.cmp(&b.subresource))
    });
    put(obj, managers.iter().map(Manager::encode).collect());
}

/// Writes the entries of `metadata.managedFields`, in their order; without any an object has none.
pub(super) fn put(obj: &mut Value, entries: Vec<Value>) {
    let Some(obj) = obj.as_object_mut() else { return };
    if entries.is_empty() {
        if let Some(m) = obj.get_mut("metadata").and_then(Value::as_object_mut) {
            m.remove("managedFields");
        }
        return;
    }
    let meta = obj.entry("metadata").or_insert_with(|| json!({}));
    if let Some(m) = meta.as_object_mut() {
        m.insert("managedFields".into(), entries.into());
    }
}

/// The `metadata.managedFields` of an object.
pub(super) fn of(obj: &Value) -> Option<&Value> {
    obj.get("metadata")?.get("managedFields")
}

/// Takes `metadata.managedFields` out of an object.
pub fn strip(obj: &mut Value) -> Option<Value> {
    obj.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

/// Fields that nobody owns: identity and what the server sets.
pub(super) fn never_owned() -> &'static Set {
    static SET: LazyLock<Set> = LazyLock::new(|| Set::of(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ]));
    &SET
}

/// Who would lose which fields.
pub type Conflicts = Vec<(Manager, Set)>;

/// Takes what changed away from the managers other than `acting`.
fn take_away(managers: &mut Vec<Manager>, acting: Option<&Manager>, change: &Comparison, force: bool) -> Result<(), Conflicts> {
    let touched = change.modified.union(&change.added);
    let others = |m: &Manager| acting.is_none_or(|a| !a.same(m));
    if !force {
        let both = managers.iter().filter(|m| others(m)).map(|m| (m, m.set.intersection(&touched)));
        let conflicts: Conflicts = both.filter(|(_, s)| !s.is_empty()).map(|(m, s)| (m.clone(), s)).collect();
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
    }
    for m in managers.iter_mut().filter(|m| others(m)) {
        m.set.subtract(&touched);
        m.set.subtract(&change.removed);
    }
    managers.retain(|m| !m.set.is_empty());
    Ok(())
}

/// A write that is no apply: `acting` owns what it changed.
pub fn update(node: Node<'_>, live: &Value, new: &Value, managers: &mut Vec<Manager>, acting: Manager, ignored: &Set) {
    let change = compare(node, live, new).without(ignored);
    if !managers.is_empty() {
        // Forced, so there are no conflicts.
        let _ = take_away(managers, None, &change, true);
    }
    let mut set = change.modified.joined(change.added);
    set.subtract(never_owned());
    if set.is_empty() {
        return;
    }
    match managers.iter_mut().find(|m| m.same(&acting)) {
        Some(m) => {
            m.set = std::mem::take(&mut m.set).joined(set);
            m.time = acting.time;
        }
        None => managers.push(Manager { set, ..acting }),
    }
    cap(managers);
}

/// Most entries of writes that are no applies; older ones are put together.
pub(super) const MAX_UPDATERS: usize = 10;

fn cap(managers: &mut Vec<Manager>) {
    if managers.iter().filter(|m| m.operation == Operation::Update).count() <= MAX_UPDATERS {
        return;
    }
    let mut updaters: Vec<Manager> = managers.iter().filter(|m| m.operation == Operation::Update).cloned().collect();
    updaters.sort_by(|a, b| a.time.cmp(&b.time).then_with(|| a.name.cmp(&b.name)));
    let mut left = updaters.len();
    let mut first: Vec<Manager> = Vec::new();
    for m in updaters {
        if left <= MAX_UPDATERS {
            break;
        }
        let Some(f) = first.iter().find(|f| f.api_version == m.api_version) else {
            first.push(m);
            continue;
        };
        let bucket = Manager { name: "ancient-changes".to_owned(), subresource: String::new(), ..m.clone() };
        if !managers.iter().any(|x| x.same(&bucket))
            && let Some(x) = managers.iter_mut().find(|x| x.same(f))
        {
            x.name = bucket.name.clone();
            x.subresource = String::new();
        }
        managers.retain(|x| !x.same(&m));
        if let Some(x) = managers.iter_mut().find(|x| x.same(&bucket)) {
            x.set = x.set.union(&m.set);
            x.time = m.time.clone();
        }
        left -= 1;
    }
}

/// What [`apply`] makes of an object.
pub struct Applied {
    /// The object, without managed fields.
    pub object: Value,
    /// Whether it differs from the live one.
    pub changed: bool,
}

/// A server-side apply of `config`; on success `managers` has the new owners.
pub fn apply(
    node: Node<'_>,
    live: &Value,
    config: &Value,
    managers: &mut Vec<Manager>,
    acting: Manager,
    ignored: &Set,
    force: bool,
) -> Result<Applied, Conflicts> {
    let merged = super::typed::merge(node, live, config);
    let before = managers.iter().find(|m| m.same(&acting)).cloned();
    let mut set = to_set(node, config);
    set.subtract_recursively(ignored);
    let mut next: Vec<Manager> = managers.iter().filter(|m| !m.same(&acting)).cloned().collect();
    next.push(Manager { set, time: before.as_ref().and_then(|m| m.time.clone()), ..acting.clone() });
    let object = match &before {
        Some(before) if !before.set.is_empty() => prune(node, merged, &next, &before.set),
        _ => merged,
    };
    let change = compare(node, live, &object).without(ignored);
    take_away(&mut next, Some(&acting), &change, force)?;
    let changed = !super::typed::equal(live, &object);
    if let Some(m) = next.iter_mut().find(|m| m.same(&acting)) {
        m.set.subtract(never_owned());
        if changed || m.time.is_none() {
            m.time = acting.time;
        }
    }
    next.retain(|m| !m.set.is_empty());
    *managers = next;
    Ok(Applied { object, changed })
}

/// Removes what the applier had before, has no more, and nobody else has.
fn prune(node: Node<'_>, merged: Value, managers: &[Manager], before: &Set) -> Value {
    let named = |s: &Set| s.with_named_fields(Some(node));
    let before = named(before);
    let mut pruned = remove(node, &merged, &before);
    let owned = managers.iter().fold(Set::default(), |s, m| s.union(&m.set));
    let all = named(&to_set(node, &merged));
    let kept = named(&to_set(node, &pruned)).union(&named(&owned));
    pruned = remove(node, &merged, &all.difference(&kept));
    let kept = named(&to_set(node, &pruned));
    remove(node, &merged, &all.difference(&kept).intersection(&before))
}
