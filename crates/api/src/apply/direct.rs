//! Managed fields in the form in which objects carry them: what a create owns is written in one walk, and what
//! an update does not touch is not even read. Both answer `None` where only the way over sets will do.

use super::managers::{MAX_UPDATERS, Manager, never_owned};
use super::set::{Element, Set};
use super::typed::{Comparison, compare, equal, item_element, same_atom};
use crate::topology::{Atom, Node, Relation};
use serde_json::{Map, Value};

/// A `FieldsV1` object. A path below another is a key in it; that a path with others below it is itself in the set
/// says a key `.`.
type Fields = Map<String, Value>;

const ITSELF: &str = ".";

/// The entries of an object that `acting` made of a bare one (`empty`).
pub fn created(node: Node<'_>, empty: &Value, new: &Value, acting: Manager, ignored: &Set) -> Option<Vec<Value>> {
    let (_, fields) = added(node, Some(empty), new, Some(ignored), Some(never_owned()))?;
    Some(if fields.is_empty() { Vec::new() } else { vec![acting.entry(Value::Object(fields))] })
}

fn names<'a>(set: Option<&'a Set>, key: &str) -> (bool, Option<&'a Set>) {
    let is = |e: &Element| matches!(e, Element::Field(name) if name == key);
    let Some(set) = set else { return (false, None) };
    (set.members.iter().any(is), set.children.iter().find(|(e, _)| is(e)).map(|(_, below)| below))
}

/// Whether a value is added or modified as a path of its own, and the paths below it that are; without those at or below
/// `ignored`, and without those in `unowned`.
fn added(node: Node<'_>, old: Option<&Value>, new: &Value, ignored: Option<&Set>, unowned: Option<&Set>) -> Option<(bool, Fields)> {
    let mut out = Map::new();
    if old.is_some_and(|old| equal(old, new)) {
        return Some((false, out));
    }
    let atom = node.resolve(Some(new));
    if old.is_some() && !same_atom(&node.resolve(old), &atom) {
        return None;
    }
    match atom {
        Atom::Scalar(_) => return Some((true, out)),
        Atom::List(list) => {
            let (before, items) = (old.and_then(Value::as_array), new.as_array());
            if before.is_some_and(|b| !b.is_empty()) {
                return None;
            }
            if list.relation == Relation::Atomic || items.is_none_or(Vec::is_empty) {
                return Some((true, out));
            }
            for item in items.into_iter().flatten() {
                let Ok(element) = item_element(&list, item) else { continue };
                let (itself, below) = added(list.element, None, item, None, None)?;
                let key = element.serialize();
                // Of what is there twice nobody owns a part; and whether numbers with fractions are the same, sets know.
                if has_fraction(&element) || out.contains_key(&key) {
                    return None;
                }
                put(&mut out, key, itself, below);
            }
        }
        Atom::Map(map) => {
            let (before, fields) = (old.and_then(Value::as_object), new.as_object());
            if map.atomic || before.is_none_or(Map::is_empty) && fields.is_none_or(Map::is_empty) {
                return Some((true, out));
            }
            for (key, value) in fields.into_iter().flatten() {
                let (is_ignored, ignored) = names(ignored, key);
                if is_ignored {
                    continue;
                }
                let (is_unowned, unowned) = names(unowned, key);
                let (itself, below) = added(map.at(key).unwrap_or(Node::Deduced), before.and_then(|b| b.get(key)), value, ignored, unowned)?;
                put(&mut out, ["f:", key].concat(), itself && !is_unowned, below);
            }
        }
    }
    Some((old.is_none(), out))
}

fn has_fraction(element: &Element) -> bool {
    let whole = |v: &Value| !v.is_f64();
    match element {
        Element::Key(fields) => !fields.iter().all(|(_, v)| whole(&v.0)),
        Element::Value(v) => !whole(&v.0),
        Element::Field(_) | Element::Index(_) => false,
    }
}

fn put(out: &mut Fields, key: String, itself: bool, mut below: Fields) {
    if !itself && below.is_empty() {
        return;
    }
    if itself && !below.is_empty() {
        below.insert(ITSELF.into(), Value::Object(Map::new()));
    }
    out.insert(key, Value::Object(below));
}

/// The entries of an object that `acting` made of `live`, whose entries are `kept`.
pub fn changed(node: Node<'_>, live: &Value, new: &Value, kept: Value, acting: Manager, ignored: &Set) -> Option<Vec<Value>> {
    let Value::Array(mut entries) = kept else { return None };
    let plain = entries.iter().all(|e| text(e, "fieldsType") == "FieldsV1" && !text(e, "apiVersion").is_empty() && matches!(text(e, "operation"), "Apply" | "Update"));
    let updaters = entries.iter().filter(|e| text(e, "operation") == "Update").count();
    if entries.is_empty() || !plain || updaters >= MAX_UPDATERS {
        return None;
    }
    let change = compare(node, live, new).without(ignored);
    for entry in &mut entries {
        take_away(fields_of(entry)?, &change);
    }
    let mut own = change.modified.joined(change.added);
    own.subtract(never_owned());
    if !own.is_empty() {
        match entries.iter_mut().find(|e| is_of(e, &acting)) {
            Some(entry) => {
                join(fields_of(entry)?, &own);
                if let (Some(entry), Some(time)) = (entry.as_object_mut(), &acting.time) {
                    entry.insert("time".into(), time.as_str().into());
                }
            }
            None => entries.push(acting.entry(own.to_fields_v1())),
        }
    }
    entries.retain(|e| e.get("fieldsV1").and_then(Value::as_object).is_some_and(|f| !f.is_empty()));
    let key = |e: &Value| ["operation", "time", "manager", "apiVersion", "subresource"].map(|k| text(e, k).to_owned());
    entries.sort_by_cached_key(key);
    Some(entries)
}

fn text<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn fields_of(entry: &mut Value) -> Option<&mut Fields> {
    entry.get_mut("fieldsV1")?.as_object_mut()
}

/// As [`Manager::same`], for one that updates.
fn is_of(entry: &Value, acting: &Manager) -> bool {
    text(entry, "operation") == "Update"
        && text(entry, "manager") == acting.name
        && text(entry, "subresource") == acting.subresource
        && text(entry, "apiVersion") == acting.api_version
}

fn take_away(fields: &mut Fields, change: &Comparison) {
    for set in [&change.modified, &change.added, &change.removed] {
        subtract(fields, set);
    }
}

/// Takes paths out.
fn subtract(fields: &mut Fields, set: &Set) {
    for member in &set.members {
        let key = member.serialize();
        let Some(Value::Object(below)) = fields.get_mut(&key) else { continue };
        below.remove(ITSELF);
        if below.is_empty() {
            fields.remove(&key);
        }
    }
    for (element, less) in &set.children {
        let key = element.serialize();
        let Some(Value::Object(below)) = fields.get_mut(&key) else { continue };
        if below.is_empty() {
            continue;
        }
        subtract(below, less);
        if below.len() == 1 && below.contains_key(ITSELF) {
            below.clear();
        } else if below.is_empty() {
            fields.remove(&key);
        }
    }
}

/// Puts paths in.
fn join(fields: &mut Fields, set: &Set) {
    let object = || Value::Object(Map::new());
    for member in &set.members {
        match fields.get_mut(&member.serialize()) {
            Some(Value::Object(below)) if !below.is_empty() => {
                below.entry(ITSELF).or_insert_with(object);
            }
            Some(_) => {}
            None => {
                fields.insert(member.serialize(), object());
            }
        }
    }
    for (element, more) in &set.children {
        match fields.get_mut(&element.serialize()) {
            Some(Value::Object(below)) => {
                if below.is_empty() {
                    below.insert(ITSELF.into(), object());
                }
                join(below, more);
            }
            _ => {
                fields.insert(element.serialize(), more.to_fields_v1());
            }
        }
    }
}
