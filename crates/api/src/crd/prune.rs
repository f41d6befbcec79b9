//! What happens to an object before it is validated: unknown fields go, nulls that may not be go,
//! defaults come, and embedded resources get metadata of the right shape.

use super::schema::{Additional, Schema};
use crate::facts;
use crate::schema::{MOST_UNKNOWN, normalize_type};
use serde_json::{Map, Value};
use std::fmt::Write as _;

const META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Where we are, as `spec.list[0].name`.
#[derive(Default)]
struct Place {
    text: String,
    unknown: Vec<String>,
}

impl Place {
    fn key<T>(&mut self, key: &str, then: impl FnOnce(&mut Place) -> T) -> T {
        let len = self.text.len();
        if len > 0 {
            self.text.push('.');
        }
        self.text.push_str(key);
        let result = then(self);
        self.text.truncate(len);
        result
    }

    fn index<T>(&mut self, index: usize, then: impl FnOnce(&mut Place) -> T) -> T {
        let len = self.text.len();
        let _ = write!(self.text, "[{index}]");
        let result = then(self);
        self.text.truncate(len);
        result
    }

    fn record(&mut self, key: &str) {
        if self.unknown.len() >= MOST_UNKNOWN {
            return;
        }
        let path = if self.text.is_empty() { key.to_owned() } else { format!("{}.{key}", self.text) };
        self.unknown.push(path);
    }
}

/// Removes fields that the schema does not know, and answers their paths in order. At the `root` of a resource
/// `apiVersion`, `kind` and `metadata` stay.
pub fn prune(value: &mut Value, schema: &Schema, root: bool) -> Vec<String> {
    let mut place = Place::default();
    walk(value, Some(schema), root, &mut place);
    place.unknown.sort();
    place.unknown
}

fn walk(value: &mut Value, schema: Option<&Schema>, root: bool, place: &mut Place) {
    if let Some(schema) = schema.filter(|s| s.preserve) {
        return skip(value, Some(schema), root, place);
    }
    match value {
        Value::Object(map) => {
            let Some(schema) = schema else {
                map.keys().for_each(|key| place.record(key));
                return map.clear();
            };
            let embedded = schema.embedded || root;
            map.retain(|key, value| {
                if embedded && META.contains(&key.as_str()) {
                    return true;
                }
                let inner = match (schema.properties.get(key), &schema.additional) {
                    (Some(property), _) => Some(property),
                    (None, Additional::Of(inner)) => Some(&**inner),
                    (None, Additional::Allowed(_)) => None,
                    (None, Additional::Unset) => {
                        if !META.contains(&key.as_str()) || !place.text.is_empty() {
                            place.record(key);
                        }
                        return false;
                    }
                };
                place.key(key, |place| walk(value, inner, false, place));
                true
            });
        }
        Value::Array(list) => {
            for (index, value) in list.iter_mut().enumerate() {
                place.index(index, |place| walk(value, schema.and_then(|s| s.items.as_deref()), false, place));
            }
        }
        _ => {}
    }
}

/// Below a node that keeps what it does not know, what it does know is still pruned.
fn skip(value: &mut Value, schema: Option<&Schema>, root: bool, place: &mut Place) {
    let Some(schema) = schema else { return };
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                if (schema.embedded || root) && META.contains(&key.as_str()) {
                    continue;
                }
                match (schema.properties.get(key), &schema.additional) {
                    (Some(property), _) => place.key(key, |place| walk(value, Some(property), false, place)),
                    (None, Additional::Of(inner)) => place.key(key, |place| walk(value, Some(inner), false, place)),
                    (None, Additional::Allowed(_)) => place.key(key, |place| walk(value, None, false, place)),
                    (None, Additional::Unset) => {}
                }
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter_mut().enumerate() {
                place.index(index, |place| skip(value, schema.items.as_deref(), false, place));
            }
        }
        _ => {}
    }
}

/// Removes nulls from fields that are not nullable and have no default.
pub fn prune_nulls(value: &mut Value, schema: Option<&Schema>) {
    match value {
        Value::Object(map) => map.retain(|key, value| {
            let inner = schema.and_then(|s| s.at(key));
            if value.is_null() && inner.is_some_and(|s| !s.nullable && s.default.is_none()) {
                return false;
            }
            prune_nulls(value, inner);
            true
        }),
        Value::Array(list) => {
            let inner = schema.and_then(|s| s.items.as_deref());
            list.iter_mut().for_each(|value| prune_nulls(value, inner));
        }
        _ => {}
    }
}

/// Fills in defaults, also of fields that a default brought.
pub fn apply_defaults(value: &mut Value, schema: &Schema) {
    if !schema.has_defaults {
        return;
    }
    let missing = |value: &Value, schema: &Schema| value.is_null() && !schema.nullable;
    match value {
        Value::Object(map) => {
            for (name, property) in &schema.properties {
                let Some(default) = &property.default else { continue };
                if map.get(name).is_none_or(|v| missing(v, property)) {
                    map.insert(name.clone(), default.clone());
                }
            }
            for (key, value) in map.iter_mut() {
                if let Some(property) = schema.properties.get(key) {
                    apply_defaults(value, property);
                } else if let Additional::Of(inner) = &schema.additional {
                    if missing(value, inner) {
                        *value = inner.default.clone().unwrap_or_default();
                    }
                    apply_defaults(value, inner);
                }
            }
        }
        Value::Array(list) => {
            let Some(inner) = &schema.items else { return };
            for value in list {
                if missing(value, inner) {
                    *value = inner.default.clone().unwrap_or_default();
                }
                apply_defaults(value, inner);
            }
        }
        _ => {}
    }
}

/// Metadata of resources inside of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Embedded {
    /// What is of the wrong type is an error.
    Refuse,
    /// What is of the wrong type goes: it was stored before anybody checked.
    Drop,
}

impl Embedded {
    /// Brings the metadata of embedded resources into normal form. Answers the paths of unknown fields, or why it cannot be done.
    pub fn settle(self, value: &mut Value, schema: &Schema) -> Result<Vec<String>, String> {
        let mut place = Place::default();
        self.walk(value, Some(schema), &mut place)?;
        place.unknown.sort();
        Ok(place.unknown)
    }

    fn walk(self, value: &mut Value, schema: Option<&Schema>, place: &mut Place) -> Result<(), String> {
        let Some(schema) = schema else { return Ok(()) };
        match value {
            Value::Object(map) => {
                if schema.embedded {
                    self.meta(map, place)?;
                }
                for (key, value) in map.iter_mut() {
                    let inner = schema.at(key);
                    place.key(key, |place| self.walk(value, inner, place))?;
                }
            }
            Value::Array(list) => {
                for (index, value) in list.iter_mut().enumerate() {
                    place.index(index, |place| self.walk(value, schema.items.as_deref(), place))?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn meta(self, map: &mut Map<String, Value>, place: &mut Place) -> Result<(), String> {
        for key in ["apiVersion", "kind"] {
            if map.get(key).is_some_and(|v| !v.is_string()) {
                if self == Embedded::Refuse {
                    return Err(format!("{}.{key}: Invalid value: {}: must be a string", place.text, map[key]));
                }
                map.remove(key);
            }
        }
        let Some(metadata) = map.get_mut("metadata") else { return Ok(()) };
        match object_meta(metadata) {
            Ok(unknown) => {
                for field in unknown {
                    let path = format!("metadata.{field}");
                    place.record(&path);
                }
            }
            Err(why) if self == Embedded::Refuse => {
                return Err(format!("{}.metadata: Invalid value: {metadata}: {why}", place.text));
            }
            Err(_) => {}
        }
        Ok(())
    }
}

/// Brings an ObjectMeta into normal form; answers its unknown fields, or the decoder's error.
pub fn object_meta(metadata: &mut Value) -> Result<Vec<String>, String> {
    let Some(ty) = facts::type_by_name("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") else { return Ok(Vec::new()) };
    let found = normalize_type(ty, metadata).map_err(|e| e.to_string())?;
    if let Value::Object(map) = metadata
        && map.get("creationTimestamp").is_some_and(Value::is_null)
    {
        map.remove("creationTimestamp");
    }
    let name = |text: &String| text.trim_start_matches("unknown field ").trim_matches('"').to_owned();
    Ok(found.unknown.iter().map(name).collect())
}
