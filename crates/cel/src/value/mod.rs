//! Values: scalars, and views of lists and maps that stay JSON until somebody looks into them.

mod compare;
mod list;
mod map;
mod opaque;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::error::Error;
use crate::types::Type;

pub(crate) use compare::{compare, equal, ordered, same_keys};
pub use list::List;
pub use map::{Key, Map, OwnedMap};
pub use opaque::{AccessRequest, Authorizer, Decision, Opaque};
pub(crate) use opaque::{Cidr, Stage, object_literal};

/// A value, which may borrow from what an expression was given and from the expression itself.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Str<'a>),
    Bytes(Arc<[u8]>),
    Timestamp(Timestamp),
    /// In nanoseconds.
    Duration(i64),
    List(List<'a>),
    Map(Map<'a>),
    Type(Arc<Type>),
    /// A value that may be absent.
    Optional(Option<Arc<Value<'a>>>),
    /// What only functions look into.
    Opaque(Opaque<'a>),
}

/// A moment, with the offset from UTC in which it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds of the second.
    pub nanos: u32,
    /// Seconds east of UTC.
    pub offset: i32,
}

/// Text that is borrowed or shared.
#[derive(Clone)]
pub enum Str<'a> {
    Borrowed(&'a str),
    Shared(Arc<str>),
}

impl Deref for Str<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Str::Borrowed(s) => s,
            Str::Shared(s) => s,
        }
    }
}

impl fmt::Debug for Str<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<'a> Value<'a> {
    /// A value of a JSON tree without a schema.
    pub fn from_json(json: &'a Json) -> Value<'a> {
        match json {
            Json::Null => Value::Null,
            Json::Bool(v) => Value::Bool(*v),
            Json::Number(n) => match n.as_i64() {
                Some(v) => Value::Int(v),
                None => Value::Double(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(s) => Value::String(Str::Borrowed(s)),
            Json::Array(items) => Value::List(List::Json(items)),
            Json::Object(fields) => Value::Map(Map::Json(fields)),
        }
    }

    /// Text that outlives what it came from.
    pub fn string(s: impl Into<Arc<str>>) -> Value<'a> {
        Value::String(Str::Shared(s.into()))
    }

    /// Text that is borrowed.
    pub fn borrowed(s: &'a str) -> Value<'a> {
        Value::String(Str::Borrowed(s))
    }

    /// A list of values.
    pub fn list(items: Vec<Value<'a>>) -> Value<'a> {
        Value::List(List::Owned(Arc::new(items), None))
    }

    /// A map with text as keys.
    pub fn map<K: Into<String>>(entries: impl IntoIterator<Item = (K, Value<'a>)>) -> Value<'a> {
        let entries = entries.into_iter().map(|(k, v)| (Key::String(k.into()), v)).collect();
        Value::Map(Map::Owned(Arc::new(OwnedMap { entries, ..OwnedMap::default() })))
    }

    /// A map with text as keys in which every other key leads to `default`.
    pub fn map_with_default<K: Into<String>>(entries: impl IntoIterator<Item = (K, Value<'a>)>, default: Value<'a>) -> Value<'a> {
        let entries = entries.into_iter().map(|(k, v)| (Key::String(k.into()), v)).collect();
        Value::Map(Map::Owned(Arc::new(OwnedMap { entries, default: Some(default), escaped: false })))
    }

    /// A map with text as keys, which may be written escaped.
    pub(crate) fn escaped_map<K: Into<String>>(entries: impl IntoIterator<Item = (K, Value<'a>)>) -> Value<'a> {
        let entries = entries.into_iter().map(|(k, v)| (Key::String(k.into()), v)).collect();
        Value::Map(Map::Owned(Arc::new(OwnedMap { entries, escaped: true, default: None })))
    }

    /// An optional value.
    pub fn optional(value: Option<Value<'a>>) -> Value<'a> {
        Value::Optional(value.map(Arc::new))
    }

    pub(crate) fn some(value: Value<'a>) -> Value<'a> {
        Value::Optional(Some(Arc::new(value)))
    }

    /// The truth of a boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(v) => Some(*v),
            _ => None,
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }

    /// The number of an int.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(v) => Some(*v),
            _ => None,
        }
    }

    /// The value's type at run time.
    pub(crate) fn type_of(&self) -> Type {
        match self {
            Value::Null => Type::Null,
            Value::Bool(_) => Type::Bool,
            Value::Int(_) => Type::Int,
            Value::Uint(_) => Type::Uint,
            Value::Double(_) => Type::Double,
            Value::String(_) => Type::String,
            Value::Bytes(_) => Type::Bytes,
            Value::Timestamp(_) => Type::Timestamp,
            Value::Duration(_) => Type::Duration,
            Value::List(_) => Type::list(Type::Dyn),
            Value::Map(_) => Type::map(Type::Dyn, Type::Dyn),
            Value::Type(_) => Type::Type(None),
            Value::Optional(_) => Type::optional(Type::Dyn),
            Value::Opaque(o) => o.type_of(),
        }
    }

    /// The name of the value's type.
    pub(crate) fn type_name(&self) -> String {
        self.type_of().runtime_name().to_string()
    }

    /// How large the value is, for costs: code points, bytes, items; 1 for everything else.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Value::String(s) => char_count(s) as u64,
            Value::Bytes(b) => b.len() as u64,
            Value::List(l) => l.len() as u64,
            Value::Map(m) => m.len() as u64,
            Value::Optional(Some(v)) => v.size(),
            Value::Opaque(o) => o.size(),
            _ => 1,
        }
    }

    /// Whether it is the zero of its type.
    pub(crate) fn is_zero(&self) -> bool {
        match self {
            Value::Null => true,
            Value::Bool(v) => !v,
            Value::Int(v) | Value::Duration(v) => *v == 0,
            Value::Uint(v) => *v == 0,
            Value::Double(v) => *v == 0.0,
            Value::String(s) => s.is_empty(),
            Value::Bytes(b) => b.is_empty(),
            Value::List(l) => l.len() == 0,
            Value::Map(m) => m.len() == 0,
            Value::Optional(v) => v.is_none(),
            Value::Timestamp(t) => t.seconds == -62_135_596_800 && t.nanos == 0,
            Value::Type(_) | Value::Opaque(_) => false,
        }
    }

    /// The value as JSON: what mutations and audit annotations need. Bytes become base64, times text.
    pub fn to_json(&self) -> Result<Json, Error> {
        Ok(match self {
            Value::Null | Value::Optional(None) => Json::Null,
            Value::Bool(v) => Json::Bool(*v),
            Value::Int(v) => (*v).into(),
            Value::Uint(v) => (*v).into(),
            Value::Double(v) => serde_json::Number::from_f64(*v).map_or_else(|| Json::String(v.to_string()), Json::Number),
            Value::String(s) => Json::String(s.to_string()),
            Value::Bytes(b) => {
                use base64::Engine as _;
                Json::String(base64::engine::general_purpose::STANDARD.encode(b))
            }
            Value::Timestamp(t) => Json::String(crate::functions::time::format_timestamp(*t)),
            Value::Duration(d) => Json::String(crate::functions::time::format_duration(*d)),
            Value::List(l) => match l {
                List::Json(items) | List::Typed(items, _) => Json::Array(items.to_vec()),
                List::Owned(items, _) => Json::Array(items.iter().map(Value::to_json).collect::<Result<_, _>>()?),
            },
            Value::Map(m) => match m {
                Map::Json(fields) | Map::Typed(fields, _) => Json::Object((*fields).clone()),
                Map::Owned(map) => {
                    let mut out = serde_json::Map::new();
                    for (key, value) in &map.entries {
                        let Key::String(key) = key else { return Err(Error::new("only maps with string keys can be JSON")) };
                        out.insert(key.clone(), value.to_json()?);
                    }
                    Json::Object(out)
                }
                Map::Composed => return Err(Error::new("variables cannot be JSON")),
            },
            Value::Optional(Some(v)) => v.to_json()?,
            Value::Opaque(Opaque::Object(object)) => {
                let mut out = serde_json::Map::new();
                for (key, value) in &object.fields {
                    out.insert(key.clone(), value.to_json()?);
                }
                Json::Object(out)
            }
            Value::Type(_) | Value::Opaque(_) => return Err(Error::new(format!("a value of type {} cannot be JSON", self.type_name()))),
        })
    }
}

/// Code points of a text.
pub(crate) fn char_count(s: &str) -> usize {
    if s.is_ascii() { s.len() } else { s.chars().count() }
}
