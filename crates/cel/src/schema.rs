//! OpenAPI schemas as types: what an expression may say of data, how JSON becomes values, and how large data can be.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use serde_json::Value as Json;

use crate::cost::{Size, SizeEstimator};
use crate::error::Error;
use crate::escape::{escape, unescape};
use crate::functions::time;
use crate::types::Type;
use crate::value::{List, Map, Str, Value};

/// The largest request that is taken, in bytes: what is not bounded otherwise is bounded by it.
pub const MAX_REQUEST_SIZE: u64 = 3 * 1024 * 1024;
/// The size of what has no bound, as upstream counts it.
const UNBOUNDED: u64 = i64::MAX as u64;

/// A type that a schema declares.
#[derive(Clone, Debug, PartialEq)]
pub struct DeclType {
    kind: DeclKind,
    nullable: bool,
    /// The most items, entries or bytes that it can have.
    pub max_elements: u64,
    /// The fewest bytes that it can take as JSON.
    pub min_serialized_size: u64,
}

#[derive(Clone, Debug, PartialEq)]
enum DeclKind {
    IntOrString,
    /// Data about which a schema says nothing that expressions can use.
    Unknown,
    Bool,
    Int,
    Double,
    String,
    Bytes,
    Date,
    DateTime,
    Duration,
    List(Box<DeclType>, ListKind),
    Map(Box<DeclType>),
    /// Fields by their names in expressions, with their names in JSON.
    Object(BTreeMap<String, (String, DeclType)>),
}

/// What a list is, besides being a list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ListKind {
    Atomic,
    Set,
    /// With the names (as in expressions) of its keys.
    Map(Vec<String>),
}

fn text<'a>(schema: &'a Json, key: &str) -> &'a str {
    schema.get(key).and_then(Json::as_str).unwrap_or_default()
}

fn flag(schema: &Json, key: &str) -> bool {
    schema.get(key).and_then(Json::as_bool).unwrap_or(false)
}

/// A bound of a schema; a negative one is none.
fn bound(schema: &Json, key: &str) -> Option<u64> {
    let v = schema.get(key)?;
    v.as_u64().or_else(|| v.as_i64().map(|_| 0)).or_else(|| v.as_f64().map(|f| f.max(0.0) as u64))
}

impl DeclType {
    fn new(kind: DeclKind, min_serialized_size: u64, max_elements: u64) -> DeclType {
        DeclType { kind, nullable: false, max_elements, min_serialized_size }
    }

    /// The type that a structural OpenAPI schema declares; none when expressions cannot use its data. `root` says that it is
    /// of a whole object, of which `apiVersion`, `kind` and `metadata` with names are always known.
    pub fn from_openapi(schema: &Json, root: bool) -> Option<DeclType> {
        Reader { lookup: &|_| None, open: Vec::new() }.read(schema, root)
    }

    /// The type of a definition of an OpenAPI document, given by its name. `lookup` finds the definitions that schemas refer
    /// to; what refers to itself is left out.
    pub fn from_definition(name: &str, lookup: &dyn Fn(&str) -> Option<Json>) -> Option<DeclType> {
        let schema = lookup(name)?;
        Reader { lookup, open: vec![name.to_string()] }.read(&schema, true)
    }
}

/// Reads schemas that may refer to others.
struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<Json>,
    /// The definitions that are being read.
    open: Vec<String>,
}

impl Reader<'_> {
    fn read(&mut self, schema: &Json, root: bool) -> Option<DeclType> {
        let alone = schema.get("allOf").and_then(Json::as_array).filter(|all| all.len() == 1).map(|all| &all[0]);
        if let Some(reference) = schema.get("$ref").or_else(|| alone?.get("$ref")).and_then(Json::as_str) {
            let name = reference.rsplit('/').next().unwrap_or(reference);
            if self.open.iter().any(|o| o == name) {
                return None;
            }
            let target = (self.lookup)(name)?;
            self.open.push(name.to_string());
            let decl = self.read(&target, root);
            self.open.pop();
            return decl;
        }
        let mut decl = self.from_schema(schema, root)?;
        decl.nullable = flag(schema, "nullable");
        Some(decl)
    }

    fn from_schema(&mut self, schema: &Json, root: bool) -> Option<DeclType> {
        let embedded = |s: &Json| flag(s, "x-kubernetes-embedded-resource");
        let longest = MAX_REQUEST_SIZE - 2;
        if flag(schema, "x-kubernetes-int-or-string") || text(schema, "format") == "int-or-string" {
            let max = bound(schema, "maxLength").map_or(longest, |n| n.saturating_mul(4));
            return Some(DeclType::new(DeclKind::IntOrString, 1, max));
        }
        let kind = text(schema, "type");
        Some(match kind {
            "array" => {
                let items = schema.get("items")?;
                let item = self.read(items, embedded(items))?;
                let max = bound(schema, "maxItems").unwrap_or((MAX_REQUEST_SIZE - 2) / (item.min_serialized_size + 1));
                let kind = match text(schema, "x-kubernetes-list-type") {
                    "set" => ListKind::Set,
                    "map" => {
                        let keys = schema.get("x-kubernetes-list-map-keys").and_then(Json::as_array);
                        let names = keys.into_iter().flatten().filter_map(Json::as_str);
                        ListKind::Map(names.map(|k| escape(k).unwrap_or_else(|| k.to_string())).collect())
                    }
                    _ => ListKind::Atomic,
                };
                DeclType::new(DeclKind::List(Box::new(item), kind), 2, max)
            }
            "object" => {
                if let Some(values) = schema.get("additionalProperties").filter(|v| v.is_object()) {
                    let value = self.read(values, embedded(values))?;
                    let max = bound(schema, "maxProperties").unwrap_or((MAX_REQUEST_SIZE - 2) / (value.min_serialized_size + 6));
                    return Some(DeclType::new(DeclKind::Map(Box::new(value)), 2, max));
                }
                let required = schema.get("required").and_then(Json::as_array);
                let required: Vec<&str> = required.into_iter().flatten().filter_map(Json::as_str).collect();
                let mut fields = BTreeMap::new();
                let mut min = 2;
                for (name, property) in schema.get("properties").and_then(Json::as_object).into_iter().flatten() {
                    let Some(decl) = self.read(property, embedded(property)) else { continue };
                    if required.contains(&&name[..]) && property.get("default").is_none() {
                        min += name.len() as u64 + decl.min_serialized_size + 4;
                    }
                    if let Some(escaped) = escape(name) {
                        fields.insert(escaped, (name.clone(), decl));
                    }
                }
                if root {
                    add_object_meta(&mut fields);
                }
                DeclType::new(DeclKind::Object(fields), min, 0)
            }
            "string" => {
                let max = bound(schema, "maxLength");
                match text(schema, "format") {
                    "byte" => DeclType::new(DeclKind::Bytes, 2, max.unwrap_or(longest)),
                    "duration" => DeclType::new(DeclKind::Duration, 3, 32),
                    "date" => DeclType::new(DeclKind::Date, 12, 12),
                    "date-time" => DeclType::new(DeclKind::DateTime, 21, 32),
                    _ => {
                        let values = schema.get("enum").and_then(Json::as_array).filter(|e| !e.is_empty());
                        let longest_value = values.map(|e| e.iter().filter_map(Json::as_str).map(str::len).max().unwrap_or(0) as u64);
                        let max = max.map(|n| n.saturating_mul(4)).or(longest_value).unwrap_or(longest);
                        DeclType::new(DeclKind::String, 2, max)
                    }
                }
            }
            "boolean" => DeclType::new(DeclKind::Bool, 4, 0),
            "number" => DeclType::new(DeclKind::Double, 1, 0),
            "integer" => DeclType::new(DeclKind::Int, 1, 0),
            _ => return None,
        })
    }
}

impl DeclType {
    /// A list of one type without a bound.
    pub fn list_of(item: DeclType) -> DeclType {
        DeclType::new(DeclKind::List(Box::new(item), ListKind::Atomic), 2, UNBOUNDED)
    }

    /// A map from text to one type, with the most entries that it can have.
    pub fn map_of(value: DeclType, max: u64) -> DeclType {
        DeclType::new(DeclKind::Map(Box::new(value)), 2, max)
    }

    /// An object with these fields.
    pub fn object_of(fields: impl IntoIterator<Item = (&'static str, DeclType)>) -> DeclType {
        let fields = fields.into_iter().map(|(n, t)| (escape(n).unwrap_or_else(|| n.to_string()), (n.to_string(), t)));
        DeclType::new(DeclKind::Object(fields.collect()), 2, 0)
    }

    /// Text of at most so many bytes.
    pub fn string_of(max: u64) -> DeclType {
        DeclType::new(DeclKind::String, 2, max)
    }

    /// Data of unknown type.
    pub fn unknown() -> DeclType {
        DeclType { nullable: true, ..DeclType::new(DeclKind::Unknown, 1, 0) }
    }

    /// A moment, as RFC 3339 writes it.
    pub fn time() -> DeclType {
        DeclType::new(DeclKind::DateTime, 21, 32)
    }

    /// A boolean.
    pub fn bool() -> DeclType {
        DeclType::new(DeclKind::Bool, 4, 0)
    }

    /// A whole number.
    pub fn int() -> DeclType {
        DeclType::new(DeclKind::Int, 1, 0)
    }

    /// Upstream's estimate of how often such data can occur in one request.
    pub fn max_cardinality(&self) -> u64 {
        MAX_REQUEST_SIZE / (self.min_serialized_size + 1)
    }

    /// The type as the checker knows it; its objects are added under names that begin with `name`.
    pub(crate) fn to_type(&self, name: &str, objects: &mut Vec<(String, HashMap<String, Type>)>) -> Type {
        match &self.kind {
            DeclKind::IntOrString | DeclKind::Unknown => Type::Dyn,
            DeclKind::Bool => Type::Bool,
            DeclKind::Int => Type::Int,
            DeclKind::Double => Type::Double,
            DeclKind::String => Type::String,
            DeclKind::Bytes => Type::Bytes,
            DeclKind::Date | DeclKind::DateTime => Type::Timestamp,
            DeclKind::Duration => Type::Duration,
            DeclKind::List(item, _) => Type::list(item.to_type(&format!("{name}.@idx"), objects)),
            DeclKind::Map(value) => Type::map(Type::String, value.to_type(&format!("{name}.@elem"), objects)),
            DeclKind::Object(fields) => {
                let fields = fields.iter().map(|(n, (_, t))| (n.clone(), t.to_type(&format!("{name}.{n}"), objects))).collect();
                objects.push((name.to_string(), fields));
                Type::object(name)
            }
        }
    }

    /// JSON as a value of this type; an error where it does not fit.
    pub fn value<'a>(&'a self, json: &'a Json) -> Result<Value<'a>, Error> {
        let wrong = |expected: &str| Err(Error::new(format!("invalid data, expected {expected}")));
        if json.is_null() && !matches!(self.kind, DeclKind::Unknown) {
            return if self.nullable {
                Ok(Value::Null)
            } else {
                Err(Error::new("invalid data, got null for schema with nullable=false"))
            };
        }
        let string = || json.as_str().ok_or_else(|| Error::new(format!("invalid data, expected string, got {}", go_type(json))));
        Ok(match &self.kind {
            DeclKind::Unknown => Value::from_json(json),
            DeclKind::IntOrString => match json {
                Json::String(s) => Value::String(Str::Borrowed(s)),
                _ => match json.as_i64() {
                    Some(v) => Value::Int(v),
                    None => return wrong("XIntOrString value to be either a string or integer"),
                },
            },
            DeclKind::Bool => match json {
                Json::Bool(v) => Value::Bool(*v),
                _ => return Err(Error::new(format!("invalid data, expected bool, got {}", go_type(json)))),
            },
            DeclKind::Int => match json.as_i64() {
                Some(v) => Value::Int(v),
                None => return Err(Error::new(format!("invalid data, expected int, got {}", go_type(json)))),
            },
            DeclKind::Double => match json.as_f64() {
                Some(v) => Value::Double(v),
                None => return Err(Error::new(format!("invalid data, expected float, got {}", go_type(json)))),
            },
            DeclKind::String => Value::String(Str::Borrowed(string()?)),
            DeclKind::Bytes => {
                let text = string()?;
                let bytes = base64::engine::general_purpose::STANDARD.decode(text);
                Value::Bytes(bytes.map_err(|e| Error::new(format!("Invalid byte formatted string {text}: {e}")))?.into())
            }
            DeclKind::Date => {
                let text = string()?;
                Value::Timestamp(time::parse_date(text).map_err(|e| Error::new(format!("Invalid date formatted string {text}: {e}")))?)
            }
            DeclKind::DateTime => {
                let text = string()?;
                let wrong = |e| Error::new(format!("Invalid date-time formatted string {text}: {e}"));
                Value::Timestamp(time::parse_timestamp(text).map_err(wrong)?)
            }
            DeclKind::Duration => {
                let text = string()?;
                Value::Duration(time::parse_duration(text).map_err(|e| Error::new(format!("Invalid duration {text}: {e}")))?)
            }
            DeclKind::List(..) => match json {
                Json::Array(items) => Value::List(List::Typed(items, self)),
                _ => return wrong("an array for the provided schema with type=array"),
            },
            DeclKind::Map(_) | DeclKind::Object(_) => match json {
                Json::Object(fields) => Value::Map(Map::Typed(fields, self)),
                _ => return wrong("a map for the provided schema with type=object"),
            },
        })
    }

    /// The type of a list's items.
    pub(crate) fn item(&self) -> &DeclType {
        match &self.kind {
            DeclKind::List(item, _) => item,
            _ => self,
        }
    }

    pub(crate) fn list_kind(&self) -> &ListKind {
        match &self.kind {
            DeclKind::List(_, kind) => kind,
            _ => &ListKind::Atomic,
        }
    }

    pub(crate) fn is_object(&self) -> bool {
        matches!(self.kind, DeclKind::Object(_))
    }

    /// Whether a key of JSON is known to the schema.
    pub(crate) fn knows(&self, key: &str) -> bool {
        match &self.kind {
            DeclKind::Object(fields) => fields.get(key).is_some_and(|(raw, _)| raw == key) || fields.values().any(|(raw, _)| raw == key),
            _ => true,
        }
    }

    /// A field of an object (by its name in expressions) or an entry of a map.
    pub(crate) fn field_value<'a>(&'a self, data: &'a serde_json::Map<String, Json>, name: &str) -> Option<Result<Value<'a>, Error>> {
        match &self.kind {
            DeclKind::Object(fields) => {
                let (raw, decl) = match fields.get(name) {
                    Some((raw, decl)) => (raw, decl),
                    None => {
                        let raw = unescape(name)?;
                        fields.values().find(|(r, _)| *r == raw).map(|(r, d)| (r, d))?
                    }
                };
                // A field that is null is as good as absent.
                data.get(raw).filter(|v| !v.is_null()).map(|v| decl.value(v))
            }
            DeclKind::Map(value) => data.get(name).map(|v| value.value(v)),
            _ => data.get(name).map(|v| Ok(Value::from_json(v))),
        }
    }

    /// The type at a path below this one, whose elements are field names, `@items`, `@values` and `@keys`.
    fn at(&self, path: &[String]) -> Option<u64> {
        let Some((first, rest)) = path.split_first() else { return Some(self.max_elements) };
        match (&self.kind, &first[..]) {
            (DeclKind::List(inner, _) | DeclKind::Map(inner), "@items" | "@values") => inner.at(rest),
            (DeclKind::Map(_), "@keys") => rest.is_empty().then_some(0),
            (DeclKind::Object(fields), name) => fields.get(name)?.1.at(rest),
            _ => None,
        }
    }
}

/// What is known of every whole object.
fn add_object_meta(fields: &mut BTreeMap<String, (String, DeclType)>) {
    let string = || DeclType::new(DeclKind::String, 2, MAX_REQUEST_SIZE - 2);
    let is_string = |t: Option<&(String, DeclType)>| t.is_some_and(|(_, t)| t.kind == DeclKind::String);
    let complete = match fields.get("metadata").map(|(_, t)| &t.kind) {
        Some(DeclKind::Object(meta)) => {
            is_string(meta.get("name"))
                && is_string(meta.get("generateName"))
                && is_string(fields.get("kind"))
                && is_string(fields.get("apiVersion"))
        }
        _ => false,
    };
    if complete {
        return;
    }
    let meta = DeclType::object_of([("name", string()), ("generateName", string())]);
    fields.insert("kind".into(), ("kind".into(), string()));
    fields.insert("apiVersion".into(), ("apiVersion".into(), string()));
    fields.insert("metadata".into(), ("metadata".into(), meta));
}

/// The Go type that JSON of this kind is read into, for messages.
fn go_type(json: &Json) -> &'static str {
    match json {
        Json::Null => "<nil>",
        Json::Bool(_) => "bool",
        Json::Number(n) if n.is_i64() => "int64",
        Json::Number(_) => "float64",
        Json::String(_) => "string",
        Json::Array(_) => "[]interface {}",
        Json::Object(_) => "map[string]interface {}",
    }
}

/// Sizes of data come from a schema: the first element of a path is the variable, whichever it is.
impl SizeEstimator for DeclType {
    fn size(&self, path: &[String], _: &Type) -> Option<Size> {
        let (_, rest) = path.split_first()?;
        self.at(rest).map(|max| Size { min: 0, max })
    }
}
