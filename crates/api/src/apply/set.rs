//! Sets of field paths, and their JSON form `FieldsV1`.
//!
//! A path is a row of elements: a field of a struct or key of a map (`f:`), an
//! item of a list found by its key fields (`k:`), by its value (`v:`) or by its
//! index (`i:`). A set may hold a path and paths below it at the same time.

use crate::field::{go_json, go_quote};
use crate::topology::{Atom, Node};
use serde_json::{Map, Value};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A scalar JSON value that can be a key of a map.
#[derive(Clone, Debug)]
pub struct Scalar(pub Value);

impl Scalar {
    fn rank(&self) -> u8 {
        match &self.0 {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Null => 5,
            Value::Array(_) => 3,
            Value::Object(_) => 4,
        }
    }
}

impl Ord for Scalar {
    fn cmp(&self, other: &Scalar) -> Ordering {
        match (&self.0, &other.0) {
            (Value::String(a), Value::String(b)) => a.cmp(b),
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
                (Some(a), Some(b)) => a.cmp(&b),
                _ => a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0)),
            },
            (a, b) => self.rank().cmp(&other.rank()).then_with(|| a.to_string().cmp(&b.to_string())),
        }
    }
}

impl PartialOrd for Scalar {
    fn partial_cmp(&self, other: &Scalar) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scalar {
    fn eq(&self, other: &Scalar) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scalar {}

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// A field of a struct, or a key of a map.
    Field(String),
    /// The list item with these key fields, sorted by name.
    Key(Vec<(String, Scalar)>),
    /// The item of a set.
    Value(Scalar),
    /// The item at an index.
    Index(i64),
}

impl Element {
    pub(super) fn serialize(&self) -> String {
        match self {
            Element::Field(name) => ["f:", name].concat(),
            Element::Key(fields) => {
                let fields: Vec<String> =
                    fields.iter().map(|(k, v)| format!("{}:{}", go_json(&Value::from(k.as_str())), go_json(&v.0))).collect();
                format!("k:{{{}}}", fields.join(","))
            }
            Element::Value(v) => format!("v:{}", go_json(&v.0)),
            Element::Index(i) => format!("i:{i}"),
        }
    }

    /// `Ok(None)` is an element of a kind that we do not know and skip.
    fn deserialize(s: &str) -> Result<Option<Element>, String> {
        let (Some(kind), Some(rest)) = (s.get(..2), s.get(2..)) else {
            return Err("key must be 2 characters long:".to_owned());
        };
        if !kind.ends_with(':') {
            return Err(format!("missing colon: {s}"));
        }
        let json = |s: &str| serde_json::from_str::<Value>(s).map_err(|e| e.to_string());
        Ok(Some(match kind {
            "f:" => Element::Field(rest.to_owned()),
            "v:" => Element::Value(Scalar(json(rest)?)),
            "k:" => match json(rest)? {
                Value::Object(m) => {
                    let mut fields: Vec<_> = m.into_iter().map(|(k, v)| (k, Scalar(v))).collect();
                    fields.sort();
                    Element::Key(fields)
                }
                _ => return Err(format!("not an object: {s}")),
            },
            "i:" => Element::Index(rest.parse().map_err(|_| format!("not an index: {s}"))?),
            _ => return Ok(None),
        }))
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |v: &Value| match v {
            Value::String(s) => go_quote(s),
            v => v.to_string(),
        };
        match self {
            Element::Field(name) => write!(f, ".{name}"),
            Element::Key(fields) => {
                let fields: Vec<String> = fields.iter().map(|(k, v)| format!("{k}={}", show(&v.0))).collect();
                write!(f, "[{}]", fields.join(","))
            }
            Element::Value(v) => write!(f, "[={}]", show(&v.0)),
            Element::Index(i) => write!(f, "[{i}]"),
        }
    }
}

/// How a path is shown: `.spec.containers[name="a"].image`.
pub fn show_path(path: &[Element]) -> String {
    path.iter().map(ToString::to_string).collect()
}

/// A set of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// The paths of one element.
    pub members: BTreeSet<Element>,
    /// Longer paths by their first element; no empty sets in here.
    pub children: BTreeMap<Element, Set>,
}

impl Set {
    /// The set of the given paths of plain fields.
    pub fn of(paths: &[&[&str]]) -> Set {
        let mut s = Set::default();
        for p in paths {
            let p: Vec<Element> = p.iter().map(|n| Element::Field((*n).to_owned())).collect();
            s.insert(&p);
        }
        s
    }

    /// Adds a path.
    pub fn insert(&mut self, path: &[Element]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    /// Whether the path itself is in the set.
    pub fn has(&self, path: &[Element]) -> bool {
        match path {
            [] => false,
            [last] => self.members.contains(last),
            [first, rest @ ..] => self.children.get(first).is_some_and(|c| c.has(rest)),
        }
    }

    /// Whether no path is in the set.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(Set::is_empty)
    }

    /// Paths in either.
    pub fn union(&self, other: &Set) -> Set {
        self.clone().joined(other.clone())
    }

    /// Paths in either, of sets that are not needed any more.
    pub fn joined(mut self, other: Set) -> Set {
        if self.members.is_empty() && self.children.is_empty() {
            return other;
        }
        self.members.extend(other.members);
        for (k, c) in other.children {
            let mine = self.children.remove(&k).unwrap_or_default();
            self.children.insert(k, mine.joined(c));
        }
        self
    }

    /// Takes paths out that are in the other set.
    pub fn subtract(&mut self, other: &Set) {
        self.take_out(other, false);
    }

    /// Takes paths out that are in the other set, or below one that is.
    pub fn subtract_recursively(&mut self, other: &Set) {
        self.take_out(other, true);
    }

    fn take_out(&mut self, other: &Set, recursive: bool) {
        for member in &other.members {
            self.members.remove(member);
            if recursive {
                self.children.remove(member);
            }
        }
        for (k, theirs) in &other.children {
            if let Some(mine) = self.children.get_mut(k) {
                mine.take_out(theirs, recursive);
                if mine.is_empty() {
                    self.children.remove(k);
                }
            }
        }
    }

    /// Paths in both.
    pub fn intersection(&self, other: &Set) -> Set {
        let members = self.members.intersection(&other.members).cloned().collect();
        let children = self.children.iter().filter_map(|(k, c)| {
            let both = c.intersection(other.children.get(k)?);
            (!both.is_empty()).then(|| (k.clone(), both))
        });
        Set { members, children: children.collect() }
    }

    /// Paths of this set that are not in the other.
    pub fn difference(&self, other: &Set) -> Set {
        let mut left = self.clone();
        left.subtract(other);
        left
    }

    /// The set with every struct field on the way to a path added as a path of its own.
    pub fn with_named_fields(&self, node: Option<Node<'_>>) -> Set {
        let atom = node.map(|n| n.resolve(None));
        let mut members = self.members.clone();
        let mut children = BTreeMap::new();
        for (k, c) in &self.children {
            let child = match (k, &atom) {
                (Element::Field(name), Some(Atom::Map(m))) => match m.field(name) {
                    Some(n) => {
                        members.insert(k.clone());
                        Some(n)
                    }
                    None => m.element(),
                },
                (Element::Key(_), Some(Atom::List(l))) => Some(l.element),
                _ => None,
            };
            children.insert(k.clone(), c.with_named_fields(child));
        }
        Set { members, children }
    }

    /// All paths, shorter ones before longer ones of the same level.
    pub fn paths(&self) -> Vec<Vec<Element>> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), &mut out);
        out
    }

    fn collect(&self, prefix: &mut Vec<Element>, out: &mut Vec<Vec<Element>>) {
        for m in &self.members {
            prefix.push(m.clone());
            out.push(prefix.clone());
            prefix.pop();
        }
        for (k, c) in &self.children {
            prefix.push(k.clone());
            c.collect(prefix, out);
            prefix.pop();
        }
    }

    /// The `FieldsV1` JSON object.
    pub fn to_fields_v1(&self) -> Value {
        self.emit(false)
    }

    fn emit(&self, include_self: bool) -> Value {
        let mut out = Map::new();
        if include_self && !(self.members.is_empty() && self.children.is_empty()) {
            out.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for m in &self.members {
            if !self.children.contains_key(m) {
                out.insert(m.serialize(), Value::Object(Map::new()));
            }
        }
        for (k, c) in &self.children {
            out.insert(k.serialize(), c.emit(self.members.contains(k)));
        }
        Value::Object(out)
    }

    /// Reads a `FieldsV1` JSON object.
    pub fn from_fields_v1(v: &Value) -> Result<Set, String> {
        Ok(Set::read(v)?.0.unwrap_or_default())
    }

    fn read(v: &Value) -> Result<(Option<Set>, bool), String> {
        let Value::Object(m) = v else { return Err("FieldsV1 holds something that is not an object".to_owned()) };
        let mut set: Option<Set> = None;
        let mut member = false;
        for (k, v) in m {
            if k == "." {
                member = true;
                continue;
            }
            let Some(element) = Element::deserialize(k)? else { continue };
            let (below, is_member) = Set::read(v)?;
            let set = set.get_or_insert_default();
            if is_member {
                set.members.insert(element.clone());
            }
            if let Some(below) = below {
                set.children.insert(element, below);
            }
        }
        let member = member || set.is_none();
        Ok((set, member))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_v1_round_trip() {
        let v = json!({"f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {
            "k:{\"name\":\"a\"}": {".": {}, "f:image": {}, "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}}}}}}}},
            "f:metadata": {"f:finalizers": {".": {}, "v:\"x\"": {}}}});
        let s = Set::from_fields_v1(&v).unwrap();
        let mut want = v.clone();
        // an item that is a member and has nothing below is written as an empty object
        want["f:spec"]["f:template"]["f:spec"]["f:containers"]["k:{\"name\":\"a\"}"]["f:ports"]["k:{\"containerPort\":80,\"protocol\":\"TCP\"}"] =
            json!({});
        assert_eq!(s.to_fields_v1(), want);
        let shown: Vec<String> = s.paths().iter().map(|p| show_path(p)).collect();
        assert!(shown.contains(&".spec.template.spec.containers[name=\"a\"].ports[containerPort=80,protocol=\"TCP\"]".to_owned()));
        assert!(shown.contains(&".metadata.finalizers[=\"x\"]".to_owned()));
    }

    #[test]
    fn algebra() {
        let a = Set::of(&[&["a"], &["b", "c"], &["b", "d"]]);
        let b = Set::of(&[&["b"], &["b", "c"]]);
        assert_eq!(a.difference(&b), Set::of(&[&["a"], &["b", "d"]]));
        let mut left = a.clone();
        left.subtract_recursively(&b);
        assert_eq!(left, Set::of(&[&["a"]]));
        assert_eq!(a.intersection(&b), Set::of(&[&["b", "c"]]));
        assert_eq!(a.union(&b), Set::of(&[&["a"], &["b"], &["b", "c"], &["b", "d"]]));
    }
}
