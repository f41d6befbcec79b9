//! Typed normal form of a tree: what Go's decoder followed by its encoder would make of an object.
//!
//! Unknown fields are dropped and named, types are checked in the decoder's words, times,
//! durations and quantities get their canonical text, empty fields go or stay by their presence.

use crate::facts::{self, Field, Presence, Ty, Type};
use crate::gotime;
use crate::quantity::Quantity;
use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::sync::OnceLock;

/// So many unknown fields, and so many that are there twice, are told of.
pub const MOST_UNKNOWN: usize = 100;

/// What [`normalize`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Normalized {
    /// One message a dropped field, `unknown field "spec.foo"`, for [`MOST_UNKNOWN`] of them.
    pub unknown: Vec<String>,
}

/// A value is not of its field's type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// Go's text, `json: cannot unmarshal string into Go struct field …`.
    #[error("{0}")]
    Type(String),
    #[error("unknown type {0}")]
    UnknownType(String),
}

/// Brings an object of a type into normal form.
pub fn normalize(type_name: &str, value: &mut Value) -> Result<Normalized, SchemaError> {
    let ty = facts::type_by_name(type_name).ok_or_else(|| SchemaError::UnknownType(type_name.to_owned()))?;
    let normalized = normalize_type(ty, value)?;
    // a daemon set's annotation is a number in upstream's memory
    if type_name == DAEMON_SET
        && let Some(text) = value["metadata"]["annotations"]["deprecated.daemonset.template.generation"].as_str()
    {
        parse_int(text).map_err(SchemaError::Type)?;
    }
    Ok(normalized)
}

const DAEMON_SET: &str = "io.k8s.api.apps.v1.DaemonSet";

/// An integer as Go reads it, and what Go says of what is none.
pub fn parse_int(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| {
        let digits = !text.is_empty() && text.trim_start_matches(['-', '+']).bytes().all(|b| b.is_ascii_digit());
        let why = if digits { "value out of range" } else { "invalid syntax" };
        format!("strconv.ParseInt: parsing {}: {why}", crate::field::go_quote(text))
    })
}

/// The same with the type at hand.
pub fn normalize_type(ty: &'static Type, value: &mut Value) -> Result<Normalized, SchemaError> {
    let mut walk = Walk { unknown: Vec::new(), error: None };
    let root = Path { parent: None, step: Step::Root };
    match value {
        Value::Object(map) => walk.object(ty, map, &root),
        other => walk.fail(format!("json: cannot unmarshal {} into Go value of type {}", json_type(other), ty.go())),
    }
    match walk.error {
        Some(message) => Err(SchemaError::Type(message)),
        None => Ok(Normalized { unknown: walk.unknown }),
    }
}

/// Adds the fields that an object of a type always shows.
pub fn fill(ty: &'static Type, map: &mut Map<String, Value>) {
    for field in ty.forced() {
        if !map.contains_key(field.json) {
            map.insert(field.json.to_owned(), absent(field));
        }
    }
}

fn absent(field: &Field) -> Value {
    if field.pointer { Value::Null } else { zero(field.ty) }
}

/// The zero value of a type in JSON.
pub fn zero(ty: Ty) -> Value {
    match ty {
        Ty::String | Ty::Named(_) => Value::String(String::new()),
        Ty::Bool | Ty::PropsOrBool => Value::Bool(false),
        Ty::Int32 | Ty::Int64 | Ty::IntOrString => Value::from(0),
        Ty::Float64 => Value::from(0),
        Ty::Duration => Value::String("0s".into()),
        Ty::Quantity => Value::String("0".into()),
        Ty::Struct(id) => {
            let mut map = Map::new();
            fill(id.get(), &mut map);
            Value::Object(map)
        }
        _ => Value::Null,
    }
}

/// Whether Go's `omitempty` would leave a non-pointer value out.
pub fn is_empty(ty: Ty, value: &Value) -> bool {
    match (ty, value) {
        (Ty::String | Ty::Named(_) | Ty::Bytes, Value::String(text)) => text.is_empty(),
        (Ty::Bool, Value::Bool(v)) => !v,
        (Ty::Int32 | Ty::Int64 | Ty::Float64, Value::Number(n)) => n.as_f64() == Some(0.0),
        (Ty::List(_) | Ty::Strings, Value::Array(list)) => list.is_empty(),
        (Ty::Map(_), Value::Object(map)) => map.is_empty(),
        _ => false,
    }
}

/// The type of a CRD's schema.
pub fn props_type() -> &'static Type {
    static TYPE: OnceLock<&'static Type> = OnceLock::new();
    TYPE.get_or_init(|| {
        let name = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
        facts::type_by_name(name).unwrap_or(&facts::types()[0])
    })
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'static Type, &'static str),
    Unknown(&'a str),
    Key(&'a str),
    Index(usize),
}

#[derive(Clone, Copy)]
struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

impl<'a> Path<'a> {
    fn then(&'a self, step: Step<'a>) -> Path<'a> {
        Path { parent: Some(self), step }
    }

    /// `spec.containers[0].name`
    fn text(&self, out: &mut String) {
        if let Some(parent) = self.parent {
            parent.text(out);
        }
        match self.step {
            Step::Root => {}
            Step::Index(index) => {
                let _ = write!(out, "[{index}]");
            }
            Step::Field(_, name) | Step::Unknown(name) | Step::Key(name) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(name);
            }
        }
    }

    /// The way Go's decoder names the place: the innermost struct, then only field names.
    fn go(&self) -> Option<String> {
        let mut names = Vec::new();
        let mut innermost = None;
        let mut at = Some(self);
        while let Some(path) = at {
            if let Step::Field(ty, name) = path.step {
                innermost.get_or_insert(ty.short);
                names.push(name);
                inlined(ty, name, &mut names);
            }
            at = path.parent;
        }
        names.reverse();
        innermost.map(|ty| format!("{ty}.{}", names.join(".")))
    }
}

/// The names of the inlined structs that a field stands in, from the inside out.
fn inlined(ty: &'static Type, name: &str, names: &mut Vec<&'static str>) {
    let holder = ty.fields.iter().find_map(|f| match f.ty {
        Ty::Struct(id) if f.inline && id.get().field(name).is_some() => Some(id.get()),
        _ => None,
    });
    if let Some(holder) = holder {
        inlined(holder, name, names);
        names.push(holder.short);
    }
}

struct Walk {
    unknown: Vec<String>,
    error: Option<String>,
}

/// Whether objects with such a struct are stored as JSON.
fn json_stored(ty: &Type) -> bool {
    ty.name.starts_with("io.k8s.apiextensions") || ty.name.starts_with("io.k8s.kube-aggregator")
}

fn json_type(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(_) => "array".into(),
        Value::Object(_) => "object".into(),
    }
}

impl Walk {
    /// Go goes on after a type error and reports the first.
    fn fail(&mut self, message: String) {
        self.error.get_or_insert(message);
    }

    fn mismatch(&mut self, what: &str, ty: Ty, path: &Path<'_>) {
        let message = match path.go() {
            Some(place) => format!("json: cannot unmarshal {what} into Go struct field {place} of type {}", ty.go()),
            None => format!("json: cannot unmarshal {what} into Go value of type {}", ty.go()),
        };
        self.fail(message);
    }

    fn object(&mut self, ty: &'static Type, map: &mut Map<String, Value>, path: &Path<'_>) {
        map.retain(|key, value| {
            let Some(field) = ty.field(key) else {
                if self.unknown.len() >= MOST_UNKNOWN {
                    return false;
                }
                let mut text = String::from("unknown field \"");
                let mut place = String::new();
                path.then(Step::Unknown(key)).text(&mut place);
                text.push_str(&place);
                text.push('"');
                self.unknown.push(text);
                return false;
            };
            if value.is_null() {
                return false;
            }
            self.value(field.ty, value, &path.then(Step::Field(ty, field.json)));
            match field.presence {
                // the stored form knows no difference between an empty list and none
                Presence::Always if !field.pointer && matches!(field.ty, Ty::List(_) | Ty::Strings) && is_empty(field.ty, value) && !json_stored(ty) => {
                    *value = Value::Null;
                    true
                }
                Presence::Always => true,
                Presence::OmitEmpty => field.pointer || !is_empty(field.ty, value),
                Presence::OmitZero => field.pointer || !(value.is_null() || is_empty(field.ty, value)),
            }
        });
        fill(ty, map);
    }

    fn value(&mut self, ty: Ty, value: &mut Value, path: &Path<'_>) {
        match (ty, &mut *value) {
            (Ty::String | Ty::Named(_), Value::String(_)) | (Ty::Bool, Value::Bool(_)) => {}
            (Ty::Int32, Value::Number(n)) => {
                if n.as_i64().and_then(|n| i32::try_from(n).ok()).is_none() {
                    let what = format!("number {n}");
                    self.mismatch(&what, ty, path);
                }
            }
            (Ty::Int64, Value::Number(n)) => {
                if n.as_i64().is_none() {
                    let what = format!("number {n}");
                    self.mismatch(&what, ty, path);
                }
            }
            (Ty::Float64, Value::Number(_)) => {}
            (Ty::Bytes, Value::String(text)) => match decode_base64(text) {
                Ok(Some(canonical)) => *text = canonical,
                Ok(None) => {}
                Err(message) => self.fail(message),
            },
            (Ty::Time, Value::String(text)) => match gotime::parse(text) {
                Some((gotime::ZERO, _)) => *value = Value::Null,
                Some((seconds, _)) => {
                    if text.len() != 20 || !text.ends_with('Z') {
                        *text = gotime::format(seconds);
                    }
                }
                None => self.fail(gotime::parse_error(text)),
            },
            (Ty::MicroTime, Value::String(text)) => match gotime::parse_micro(text) {
                Ok((gotime::ZERO, 0)) => *value = Value::Null,
                Ok((seconds, nanos)) => *text = gotime::format_micro(seconds, nanos),
                Err(message) => self.fail(message),
            },
            (Ty::Duration, Value::String(text)) => match gotime::parse_duration(text) {
                Some(nanos) => *text = gotime::format_duration(nanos),
                None => {
                    let message = format!("time: invalid duration \"{text}\"");
                    self.fail(message);
                }
            },
            (Ty::Quantity, Value::String(_) | Value::Number(_)) => match Quantity::from_value(value) {
                Ok(quantity) => {
                    let canonical = quantity.canonical();
                    if value.as_str() != Some(&canonical) {
                        *value = Value::String(canonical);
                    }
                }
                Err(error) => self.fail(error.to_string()),
            },
            (Ty::IntOrString, Value::String(_)) => {}
            (Ty::IntOrString, Value::Number(n)) => {
                if n.as_i64().and_then(|n| i32::try_from(n).ok()).is_none() {
                    let what = format!("number {n}");
                    self.mismatch(&what, Ty::Int32, path);
                }
            }
            (Ty::RawExtension | Ty::Json | Ty::FieldsV1, _) => {}
            (Ty::PropsOrArray, Value::Array(list)) => {
                for (index, item) in list.iter_mut().enumerate() {
                    self.props(item, &path.then(Step::Index(index)));
                }
            }
            (Ty::PropsOrArray | Ty::PropsOrBool | Ty::PropsOrStrings, Value::Object(_)) => self.props(value, path),
            (Ty::PropsOrBool, Value::Bool(_)) => {}
            (Ty::PropsOrBool, _) => self.fail("boolean or JSON schema expected".into()),
            (Ty::PropsOrStrings | Ty::Strings, Value::Array(list)) => self.list(&Ty::String, list, path),
            (Ty::Struct(id), Value::Object(map)) => self.object(id.get(), map, path),
            (Ty::List(item), Value::Array(list)) => self.list(item, list, path),
            (Ty::Map(item), Value::Object(map)) => {
                for (key, value) in map.iter_mut() {
                    if value.is_null() {
                        *value = zero(*item);
                        continue;
                    }
                    self.value(*item, value, &path.then(Step::Key(key)));
                    if matches!(item, Ty::Quantity) {
                        whole_milli(value);
                    }
                }
            }
            (_, Value::Null) => *value = zero(ty),
            (_, other) => {
                let what = json_type(other);
                // Go's own unmarshalers see a plain string
                let ty = match ty {
                    Ty::IntOrString => Ty::Int32,
                    Ty::Time | Ty::MicroTime | Ty::Duration => Ty::String,
                    Ty::Quantity => return self.fail(crate::quantity::QuantityError::Format.to_string()),
                    other => other,
                };
                self.mismatch(&what, ty, path);
            }
        }
    }

    fn list(&mut self, item: &Ty, list: &mut [Value], path: &Path<'_>) {
        for (index, value) in list.iter_mut().enumerate() {
            self.value(*item, value, &path.then(Step::Index(index)));
        }
    }

    fn props(&mut self, value: &mut Value, path: &Path<'_>) {
        match value {
            Value::Object(map) => self.object(props_type(), map, path),
            other => {
                let what = json_type(other);
                self.mismatch(&what, Ty::PropsOrArray, path);
            }
        }
    }
}

/// Amounts in resource lists are rounded up to thousandths.
pub(crate) fn whole_milli(value: &mut Value) {
    if let Some(text) = value.as_str().filter(|t| t.ends_with(['n', 'u']))
        && let Ok(quantity) = Quantity::parse(text)
    {
        *value = Value::String(Quantity::new_milli(quantity.milli_value(), quantity.format()).canonical());
    }
}

/// Checks base64 as Go does; gives the canonical text when it differs.
fn decode_base64(text: &str) -> Result<Option<String>, String> {
    const LENIENT: GeneralPurpose =
        GeneralPurpose::new(&base64::alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));
    let stripped;
    let clean = if text.contains(['\n', '\r']) {
        stripped = text.replace(['\n', '\r'], "");
        &stripped
    } else {
        text
    };
    match LENIENT.decode(clean) {
        Ok(data) => {
            let canonical = STANDARD.encode(data);
            Ok((canonical != text).then_some(canonical))
        }
        Err(error) => {
            let offset = match error {
                base64::DecodeError::InvalidByte(offset, _) => offset,
                base64::DecodeError::InvalidLastSymbol { offset, .. } => offset,
                _ => clean.len() / 4 * 4,
            };
            Err(format!("illegal base64 data at input byte {offset}"))
        }
    }
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
