//! Maps and objects: of JSON, of JSON with a schema, and made by an expression.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value as Json;

use super::{Str, Value};
use crate::error::Error;
use crate::escape;
use crate::schema::DeclType;

/// A map or object.
#[derive(Clone, Debug)]
pub enum Map<'a> {
    /// Fields without a schema.
    Json(&'a serde_json::Map<String, Json>),
    /// Fields with the schema of the object or map.
    Typed(&'a serde_json::Map<String, Json>, &'a DeclType),
    /// Entries made by an expression.
    Owned(Arc<OwnedMap<'a>>),
    /// The variables of an activation that are expressions themselves.
    Composed,
}

/// Entries made by an expression, in the order of their keys.
#[derive(Clone, Debug, Default)]
pub struct OwnedMap<'a> {
    pub entries: BTreeMap<Key, Value<'a>>,
    /// What other keys lead to.
    pub default: Option<Value<'a>>,
    /// Keys may be written as Kubernetes escapes field names.
    pub escaped: bool,
}

/// What a map can be looked up by. Numbers are the same key whatever their type.
#[derive(Clone, Debug)]
pub enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(String),
}

impl Key {
    /// The key that a value is; none when it cannot be one.
    pub(crate) fn of(value: &Value<'_>) -> Option<Key> {
        Some(match value {
            Value::Bool(v) => Key::Bool(*v),
            Value::Int(v) => Key::Int(*v),
            Value::Uint(v) => Key::Uint(*v),
            Value::String(s) => Key::String(s.to_string()),
            Value::Double(v) if v.fract() == 0.0 && *v >= i64::MIN as f64 && *v < i64::MAX as f64 => Key::Int(*v as i64),
            Value::Double(v) if v.fract() == 0.0 && *v > 0.0 && *v < u64::MAX as f64 => Key::Uint(*v as u64),
            _ => return None,
        })
    }

    /// The key as a value.
    pub(crate) fn value<'a>(&self) -> Value<'a> {
        match self {
            Key::Bool(v) => Value::Bool(*v),
            Key::Int(v) => Value::Int(*v),
            Key::Uint(v) => Value::Uint(*v),
            Key::String(s) => Value::string(s.as_str()),
        }
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        let number = |k: &Key| match k {
            Key::Int(v) => Some(i128::from(*v)),
            Key::Uint(v) => Some(i128::from(*v)),
            _ => None,
        };
        let rank = |k: &Key| match k {
            Key::Bool(_) => 0,
            Key::Int(_) | Key::Uint(_) => 1,
            Key::String(_) => 2,
        };
        match (self, other) {
            (Key::Bool(a), Key::Bool(b)) => a.cmp(b),
            (Key::String(a), Key::String(b)) => a.cmp(b),
            _ => rank(self).cmp(&rank(other)).then_with(|| number(self).cmp(&number(other))),
        }
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Key {}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Bool(v) => write!(f, "{v}"),
            Key::Int(v) => write!(f, "{v}"),
            Key::Uint(v) => write!(f, "{v}"),
            Key::String(v) => f.write_str(v),
        }
    }
}

impl<'a> Map<'a> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        match self {
            Map::Json(fields) | Map::Typed(fields, _) => fields.len(),
            Map::Owned(map) => map.entries.len(),
            Map::Composed => 0,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a field or key that is text.
    pub fn field(&self, name: &str) -> Option<Result<Value<'a>, Error>> {
        match self {
            Map::Json(fields) => fields.get(name).map(|v| Ok(Value::from_json(v))),
            Map::Typed(fields, schema) => schema.field_value(fields, name),
            Map::Owned(map) => {
                // A key is made for the look-up: entries made by expressions are few and small.
                let key = if map.escaped { escape::unescape(name)? } else { name.to_string() };
                map.entries.get(&Key::String(key)).or(map.default.as_ref()).cloned().map(Ok)
            }
            Map::Composed => None,
        }
    }

    /// The value of a field, also of one that expressions cannot name.
    pub(crate) fn field_or_raw(&self, name: &str) -> Option<Result<Value<'a>, Error>> {
        self.field(name).or_else(|| match self {
            Map::Typed(fields, _) => fields.get(name).map(|v| Ok(Value::from_json(v))),
            _ => None,
        })
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &Value<'_>) -> Option<Result<Value<'a>, Error>> {
        match (self, key) {
            (_, Value::String(name)) => self.field(name),
            (Map::Owned(map), _) => match Key::of(key) {
                Some(key) => map.entries.get(&key).or(map.default.as_ref()).cloned().map(Ok),
                None => None,
            },
            _ => None,
        }
    }

    /// Whether a key is there; one that only leads to the default is not.
    pub(crate) fn contains(&self, key: &Value<'_>) -> Result<bool, Error> {
        match self {
            Map::Owned(map) if map.default.is_some() => Ok(Key::of(key).is_some_and(|key| map.entries.contains_key(&key))),
            _ => Ok(self.get(key).transpose()?.is_some()),
        }
    }

    /// The keys, as an expression sees them.
    pub(crate) fn keys(&self) -> Vec<Value<'a>> {
        match self {
            Map::Json(fields) => fields.keys().map(|k| Value::borrowed(k)).collect(),
            Map::Typed(fields, schema) => fields
                .keys()
                .filter(|k| schema.knows(k))
                .map(|k| match schema.is_object().then(|| escape::escape(k)).flatten() {
                    Some(escaped) if escaped != *k => Value::string(escaped),
                    _ => Value::String(Str::Borrowed(k)),
                })
                .collect(),
            Map::Owned(map) => map.entries.keys().map(Key::value).collect(),
            Map::Composed => Vec::new(),
        }
    }
}
