//! Walks over values together with their type: the set of a value's fields,
//! what differs between two values, merging, removing and checking.

use super::set::{Element, Scalar, Set};
use crate::topology::{Atom, Kind, List, MapType, Node, Relation};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The element that stands for a list item, or why there is none.
pub(super) fn item_element(list: &List<'_>, item: &Value) -> Result<Element, String> {
    match &list.relation {
        Relation::Atomic => Err("invalid indexing of non-associative list".to_owned()),
        Relation::Set => match item {
            Value::Object(_) => Err("associative list without keys has an element that's a map type".to_owned()),
            Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
            Value::Null => Err("associative list without keys has an element that's an explicit null".to_owned()),
            v => Ok(Element::Value(Scalar(v.clone()))),
        },
        Relation::Keys(keys) => {
            let m = match item {
                Value::Object(m) => m,
                Value::Null => return Err("associative list with keys may not have a null element".to_owned()),
                _ => return Err("associative list with keys may not have non-map elements".to_owned()),
            };
            let mut fields: Vec<(String, Scalar)> = keys
                .iter()
                .filter_map(|(k, default)| Some((k.clone(), Scalar(m.get(k).or(default.as_ref())?.clone()))))
                .collect();
            if fields.is_empty() && !keys.is_empty() {
                let names: Vec<String> = keys.iter().map(|(k, _)| crate::field::go_quote(k)).collect();
                return Err(format!(
                    "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                    names.join(" ")
                ));
            }
            fields.sort();
            Ok(Element::Key(fields))
        }
    }
}

fn is_scalar(v: &Value) -> bool {
    matches!(v, Value::Bool(_) | Value::Number(_) | Value::String(_))
}

fn child_of(m: &MapType<'_>, key: &str) -> Node<'static> {
    // only reached for undeclared fields, which validation refuses
    let _ = (m, key);
    Node::Deduced
}

/// The paths of everything that a value holds.
pub fn to_set(node: Node<'_>, value: &Value) -> Set {
    let mut set = Set::default();
    to_set_into(node, value, &mut Vec::new(), &mut set);
    set
}

fn to_set_into(node: Node<'_>, value: &Value, path: &mut Vec<Element>, out: &mut Set) {
    match node.resolve(Some(value)) {
        Atom::Scalar(_) => out.insert(path),
        Atom::List(l) => {
            if l.relation == Relation::Atomic {
                out.insert(path);
                return;
            }
            let items: Vec<(Element, &Value)> =
                value.as_array().into_iter().flatten().filter_map(|i| Some((item_element(&l, i).ok()?, i))).collect();
            let mut seen = BTreeSet::new();
            let twice: BTreeSet<&Element> = items.iter().map(|(e, _)| e).filter(|e| !seen.insert(*e)).collect();
            for (e, item) in &items {
                path.push(e.clone());
                if !twice.contains(e) {
                    to_set_into(l.element, item, path, out);
                }
                out.insert(path);
                path.pop();
            }
        }
        Atom::Map(m) => {
            if m.atomic {
                out.insert(path);
                return;
            }
            for (k, v) in value.as_object().into_iter().flatten() {
                path.push(Element::Field(k.clone()));
                let declared = m.field(k);
                let empty = v.is_null() || v.as_object().is_some_and(Map::is_empty);
                to_set_into(declared.or_else(|| m.element()).unwrap_or(Node::Deduced), v, path, out);
                if empty || declared.is_none() {
                    out.insert(path);
                }
                path.pop();
            }
        }
    }
}

/// What differs between two values.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Paths that only the old value has.
    pub removed: Set,
    /// Paths that both have with different values.
    pub modified: Set,
    /// Paths that only the new value has.
    pub added: Set,
}

impl Comparison {
    /// Leaves out the given paths and everything below them.
    pub fn without(mut self, ignored: &Set) -> Comparison {
        for set in [&mut self.removed, &mut self.modified, &mut self.added] {
            set.subtract_recursively(ignored);
        }
        self
    }
}

/// Compares two values of a type.
pub fn compare(node: Node<'_>, old: &Value, new: &Value) -> Comparison {
    let mut out = Comparison::default();
    compare_at(node, Some(old), Some(new), &mut out);
    out
}

pub(super) fn same_atom(a: &Atom<'_>, b: &Atom<'_>) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

/// What a comparison says of a path itself.
#[derive(Clone, Copy, PartialEq)]
enum Change {
    None,
    Added,
    Removed,
    Modified,
}

impl Comparison {
    /// Takes in what was found at an element: of the path itself, and of what is below it.
    fn put(&mut self, element: impl FnOnce() -> Element, itself: Change, both: Option<Change>, below: Comparison) {
        let holds = |set: &Set| !(set.members.is_empty() && set.children.is_empty());
        if itself == Change::None && both.is_none() && !holds(&below.added) && !holds(&below.removed) && !holds(&below.modified) {
            return;
        }
        let element = element();
        for change in std::iter::once(itself).chain(both) {
            let set = match change {
                Change::None => continue,
                Change::Added => &mut self.added,
                Change::Removed => &mut self.removed,
                Change::Modified => &mut self.modified,
            };
            set.members.insert(element.clone());
        }
        for (set, below) in [(&mut self.added, below.added), (&mut self.removed, below.removed), (&mut self.modified, below.modified)] {
            if holds(&below) {
                set.children.insert(element.clone(), below);
            }
        }
    }
}

/// What is below goes to `out`; answers what became of the path itself.
fn compare_at(node: Node<'_>, old: Option<&Value>, new: Option<&Value>, out: &mut Comparison) -> Change {
    if let (Some(a), Some(b)) = (old, new)
        && equal(a, b)
    {
        return Change::None;
    }
    let (a, b) = (node.resolve(old), node.resolve(new));
    let leaf = if new.is_none() {
        compare_atom(&a, old, new, out)
    } else if old.is_none() || same_atom(&a, &b) {
        compare_atom(&b, old, new, out)
    } else {
        let first = compare_atom(&a, old, new, out);
        compare_atom(&b, old, new, out).or(first)
    };
    leaf.unwrap_or(match (old, new) {
        (None, _) => Change::Added,
        (_, None) => Change::Removed,
        _ => Change::None,
    })
}

fn compare_leaf(old: Option<&Value>, new: Option<&Value>) -> Option<Change> {
    Some(match (old, new) {
        (None, _) => Change::Added,
        (_, None) => Change::Removed,
        (Some(a), Some(b)) if !equal(a, b) => Change::Modified,
        _ => Change::None,
    })
}

/// Equality of JSON values where `1` and `1.0` are the same.
pub fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || Scalar(a.clone().into()) == Scalar(b.clone().into()),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            // both are sorted by key
            a.len() == b.len() && a.iter().zip(b).all(|((k, v), (l, w))| k == l && equal(v, w))
        }
        (a, b) => a == b,
    }
}

/// Answers what became of the path itself, when the values were compared as a whole.
fn compare_atom(atom: &Atom<'_>, old: Option<&Value>, new: Option<&Value>, out: &mut Comparison) -> Option<Change> {
    match atom {
        Atom::Scalar(_) => compare_leaf(old, new),
        Atom::List(l) => {
            let (a, b) = (old.and_then(Value::as_array), new.and_then(Value::as_array));
            if l.relation == Relation::Atomic || a.is_none_or(Vec::is_empty) && b.is_none_or(Vec::is_empty) {
                return compare_leaf(old, new);
            }
            let mut items: BTreeMap<Element, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
            for (right, list) in [(false, a), (true, b)] {
                for item in list.into_iter().flatten() {
                    let Ok(e) = item_element(l, item) else { continue };
                    let sides = items.entry(e).or_default();
                    if right { sides.1.push(item) } else { sides.0.push(item) }
                }
            }
            for (e, (a, b)) in items {
                let mut below = Comparison::default();
                let (itself, both) = match (a.len(), b.len()) {
                    (0 | 1, 0 | 1) => (compare_at(l.element, a.first().copied(), b.first().copied(), &mut below), None),
                    (2.., 2..) => {
                        let same = a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| equal(a, b));
                        (if same { Change::None } else { Change::Modified }, None)
                    }
                    (2.., _) => {
                        let one = b.first().map_or(Change::None, |b| compare_at(l.element, None, Some(b), &mut below));
                        (one, Some(Change::Removed))
                    }
                    (_, _) => {
                        let one = a.first().map_or(Change::None, |a| compare_at(l.element, Some(a), None, &mut below));
                        (one, Some(Change::Added))
                    }
                };
                out.put(|| e, itself, both, below);
            }
            None
        }
        Atom::Map(m) => {
            let (a, b) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
            if m.atomic || a.is_none_or(Map::is_empty) && b.is_none_or(Map::is_empty) {
                return compare_leaf(old, new);
            }
            let entry = |k: &str, a: Option<&Value>, b: Option<&Value>, out: &mut Comparison| {
                let mut below = Comparison::default();
                let itself = compare_at(m.at(k).unwrap_or_else(|| child_of(m, k)), a, b, &mut below);
                out.put(|| Element::Field(k.to_owned()), itself, None, below);
            };
            for (k, old) in a.into_iter().flatten() {
                entry(k, Some(old), b.and_then(|b| b.get(k)), out);
            }
            for (k, new) in b.into_iter().flatten() {
                if a.is_none_or(|a| !a.contains_key(k)) {
                    entry(k, None, Some(new), out);
                }
            }
            None
        }
    }
}

/// Lays `config` over `live`.
pub fn merge(node: Node<'_>, live: &Value, config: &Value) -> Value {
    merge_at(node, Some(live), Some(config)).unwrap_or(Value::Null)
}

fn merge_at(node: Node<'_>, live: Option<&Value>, config: Option<&Value>) -> Option<Value> {
    let keep = || config.or(live).cloned();
    let shape = if config.is_none() { node.resolve(live) } else { node.resolve(config) };
    match shape {
        Atom::Scalar(_) => keep(),
        Atom::List(l) => {
            let (a, b) = (live.and_then(Value::as_array), config.and_then(Value::as_array));
            if l.relation == Relation::Atomic || a.is_none_or(Vec::is_empty) && b.is_none_or(Vec::is_empty) {
                return keep();
            }
            Some(Value::Array(merge_lists(&l, a, b)))
        }
        Atom::Map(m) => {
            let (a, b) = (live.and_then(Value::as_object), config.and_then(Value::as_object));
            if m.atomic || a.is_none_or(Map::is_empty) && b.is_none_or(Map::is_empty) {
                return keep();
            }
            let keys: BTreeSet<&String> = a.into_iter().chain(b).flat_map(Map::keys).collect();
            let mut out = Map::new();
            for k in keys {
                let node = m.at(k).unwrap_or_else(|| child_of(&m, k));
                if let Some(v) = merge_at(node, a.and_then(|m| m.get(k)), b.and_then(|m| m.get(k))) {
                    out.insert(k.clone(), v);
                }
            }
            (!out.is_empty()).then_some(Value::Object(out))
        }
    }
}

/// The paths of all maps and lists in a value that are owned as a whole.
pub fn atomics(node: Node<'_>, value: &Value) -> Vec<String> {
    fn walk(node: Node<'_>, value: &Value, path: &mut String, out: &mut Vec<String>) {
        let len = path.len();
        match (node.resolve(Some(value)), value) {
            (Atom::List(l), Value::Array(items)) => {
                if l.relation == Relation::Atomic {
                    out.push(path.clone());
                }
                for (i, item) in items.iter().enumerate() {
                    path.push_str(&format!("[{i}]"));
                    walk(l.element, item, path, out);
                    path.truncate(len);
                }
            }
            (Atom::Map(m), Value::Object(fields)) => {
                if m.atomic {
                    out.push(path.clone());
                }
                for (key, value) in fields {
                    // values of maps without declared fields are not looked into
                    if let Some(node) = m.field(key) {
                        path.push('.');
                        path.push_str(key);
                        walk(node, value, path, out);
                        path.truncate(len);
                    }
                }
            }
            _ => {}
        }
    }
    let mut out = Vec::new();
    walk(node, value, &mut String::new(), &mut out);
    out
}

/// Items of both lists; those of `config` keep their order, the others stay near their neighbours.
fn merge_lists(l: &List<'_>, live: Option<&Vec<Value>>, config: Option<&Vec<Value>>) -> Vec<Value> {
    let index = |list: Option<&Vec<Value>>| -> Vec<(Element, Value)> {
        list.into_iter().flatten().filter_map(|i| Some((item_element(l, i).ok()?, i.clone()))).collect()
    };
    let (left, right) = (index(live), index(config));
    let mut observed_left: BTreeMap<&Element, Option<&Value>> = BTreeMap::new();
    for (e, v) in &left {
        // an item that is there twice merges with nothing
        observed_left.entry(e).and_modify(|v| *v = None).or_insert(Some(v));
    }
    let observed_right: BTreeMap<&Element, &Value> = right.iter().map(|(e, v)| (e, v)).collect();
    let mut shared = right.iter().map(|(e, _)| e).filter(|e| observed_left.contains_key(e));
    let mut next_shared = shared.next();
    let mut merged: BTreeSet<&Element> = BTreeSet::new();
    let mut out = Vec::with_capacity(left.len().max(right.len()));
    let (mut i, mut j) = (0, 0);
    let both = |e: &Element| merge_at(l.element, observed_left.get(e).copied().flatten(), observed_right.get(e).copied());
    while i < left.len() || j < right.len() {
        if i < left.len() && j < right.len() {
            let e = &left[i].0;
            if *e == right[j].0 {
                merged.insert(e);
                out.extend(both(e));
                i += 1;
                j += 1;
                next_shared = shared.next();
                continue;
            }
            if observed_right.contains_key(e) && next_shared.is_some_and(|n| n != e) {
                // a shared item that is out of order here: wait until the other list has it
                i += 1;
                continue;
            }
        }
        if i < left.len() {
            let e = &left[i].0;
            if !observed_right.contains_key(e) {
                out.extend(merge_at(l.element, Some(&left[i].1), None));
                i += 1;
                continue;
            } else if merged.contains(e) {
                i += 1;
            }
        }
        if j < right.len() {
            let e = &right[j].0;
            merged.insert(e);
            out.extend(both(e));
            j += 1;
            if next_shared == Some(e) {
                next_shared = shared.next();
            }
        }
    }
    out
}

/// The value without the given paths. A map or list that this empties becomes null.
pub fn remove(node: Node<'_>, value: &Value, paths: &Set) -> Value {
    if is_scalar(value) || value.is_null() {
        return value.clone();
    }
    match (node.resolve(Some(value)), value) {
        (Atom::List(l), Value::Array(items)) => {
            if items.is_empty() || l.relation == Relation::Atomic {
                return Value::Null;
            }
            let mut out = Vec::with_capacity(items.len());
            for item in items {
                match item_element(&l, item) {
                    Ok(e) if paths.members.contains(&e) => {}
                    Ok(e) => out.push(match paths.children.get(&e) {
                        Some(below) if !below.is_empty() => remove(l.element, item, below),
                        _ => item.clone(),
                    }),
                    Err(_) => out.push(item.clone()),
                }
            }
            if out.is_empty() { Value::Null } else { Value::Array(out) }
        }
        (Atom::Map(m), Value::Object(fields)) => {
            if fields.is_empty() || m.atomic {
                return Value::Null;
            }
            let mut out = Map::new();
            for (k, v) in fields {
                let e = Element::Field(k.clone());
                if paths.members.contains(&e) {
                    continue;
                }
                let v = match paths.children.get(&e) {
                    Some(below) if !below.is_empty() => remove(m.at(k).unwrap_or_else(|| child_of(&m, k)), v, below),
                    _ => v.clone(),
                };
                out.insert(k.clone(), v);
            }
            if out.is_empty() { Value::Null } else { Value::Object(out) }
        }
        _ => Value::Null,
    }
}

/// What is wrong with a value that is to be of a type: unknown fields, wrong shapes, items that are there twice.
pub fn check(node: Node<'_>, value: &Value, allow_duplicates: bool) -> Vec<String> {
    let mut out = Vec::new();
    check_at(node, value, allow_duplicates, &mut String::new(), &mut out);
    out
}

fn go_show(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        v => v.to_string(),
    }
}

fn check_at(node: Node<'_>, value: &Value, allow_duplicates: bool, path: &mut String, out: &mut Vec<String>) {
    fn fail(path: &str, out: &mut Vec<String>, message: String) {
        out.push(if path.is_empty() { message } else { format!("{path}: {message}") });
    }
    if value.is_null() {
        return;
    }
    match (node.resolve(Some(value)), value) {
        (Atom::Scalar(k), v) => {
            let wrong = match (k, v) {
                (Kind::Numeric, Value::Number(_)) | (Kind::String, Value::String(_)) | (Kind::Boolean, Value::Bool(_)) => None,
                (Kind::Untyped, v) if is_scalar(v) => None,
                (Kind::Numeric, v) => Some(format!(
                    "expected numeric (int or float), got {}",
                    match v {
                        Value::String(_) => "string",
                        Value::Bool(_) => "bool",
                        Value::Array(_) => "[]interface {}",
                        _ => "map[string]interface {}",
                    }
                )),
                (Kind::String, v) => Some(format!("expected string, got &value.valueUnstructured{{Value:{v}}}")),
                (Kind::Boolean, v) => Some(format!("expected boolean, got &{{{}}}", go_show(v))),
                (Kind::Untyped, v) => Some(format!("expected any scalar, got &{{{}}}", go_show(v))),
            };
            if let Some(w) = wrong {
                fail(path, out, w);
            }
        }
        (Atom::List(l), Value::Array(items)) => {
            let mut seen = BTreeSet::new();
            for (i, item) in items.iter().enumerate() {
                let e = match l.relation {
                    Relation::Atomic => Element::Index(i as i64),
                    _ => match item_element(&l, item) {
                        Ok(e) => e,
                        Err(m) => {
                            fail(path, out, format!("element {i}: {m}"));
                            return;
                        }
                    },
                };
                if !seen.insert(e.clone()) && !allow_duplicates {
                    fail(path, out, format!("duplicate entries for key {e}"));
                }
                let len = path.len();
                path.push_str(&e.to_string());
                check_at(l.element, item, allow_duplicates, path, out);
                path.truncate(len);
            }
        }
        (Atom::List(_), v) => fail(path, out, format!("expected list, got &{{{}}}", go_show(v))),
        (Atom::Map(m), Value::Object(fields)) => {
            for (k, v) in fields {
                let len = path.len();
                path.push('.');
                path.push_str(k);
                match m.at(k) {
                    Some(n) => check_at(n, v, allow_duplicates, path, out),
                    None => fail(path, out, "field not declared in schema".to_owned()),
                }
                path.truncate(len);
            }
        }
        (Atom::Map(_), v) => fail(path, out, format!("expected map, got &{{{}}}", go_show(v))),
    }
}
