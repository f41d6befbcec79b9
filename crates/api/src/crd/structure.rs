//! Whether a schema is structural: its shape is spelled out once, and `allOf` and the like only narrow values.

use super::{flag, items, text};
use crate::field::{FieldError, Path};
use serde_json::{Map, Value, json};

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Why a schema is not structural, in the order of the messages.
pub fn validate_structural(path: &Path, schema: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    invariants(schema, Level::Root, path, &mut errors);
    complete_junctors(schema, schema, path, path, &mut errors);
    errors.sort_by_key(ToString::to_string);
    errors
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn invariants(schema: &Value, level: Level, path: &Path, errors: &mut Vec<FieldError>) {
    let kind = text(schema, "/type");
    let (embedded, preserve) = (flag(schema, "x-kubernetes-embedded-resource"), flag(schema, "x-kubernetes-preserve-unknown-fields"));
    let int_or_string = flag(schema, "x-kubernetes-int-or-string");
    match schema.get("items").filter(|i| i.is_object()) {
        Some(inner) => invariants(inner, Level::Item, &path.child("items"), errors),
        None if kind == "array" => errors.push(FieldError::required(&path.child("items"), "must be specified")),
        None => {}
    }
    for (name, property) in properties(schema) {
        invariants(property, Level::Field, &path.child("properties").key(name), errors);
    }
    let additional = schema.get("additionalProperties").filter(|a| !a.is_null());
    if let Some(additional) = additional {
        let at = path.child("additionalProperties");
        if level == Level::Root {
            errors.push(FieldError::forbidden(&at, "must not be used at the root"));
        }
        if additional.is_object() {
            invariants(additional, Level::Field, &at, errors);
        }
        if embedded {
            errors.push(FieldError::forbidden(&at, "must not be used if x-kubernetes-embedded-resource is set"));
        }
    }
    if int_or_string && preserve {
        let at = path.child("x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::invalid(&at, true, "must be false if x-kubernetes-int-or-string is true"));
    }
    if int_or_string && embedded {
        let at = path.child("x-kubernetes-embedded-resource");
        errors.push(FieldError::invalid(&at, true, "must be false if x-kubernetes-int-or-string is true"));
    }
    let any_of = is_int_or_string(schema);
    let first = items(schema, "/allOf").first().is_some_and(is_int_or_string);
    junctors(schema, any_of, first, level, path, errors);

    let at = path.child("type");
    if embedded && kind != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(if kind.is_empty() { FieldError::required(&at, why) } else { FieldError::invalid(&at, kind, why) });
    } else if kind.is_empty() && !int_or_string && !preserve {
        let why = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(FieldError::required(&at, why));
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.push(FieldError::invalid(&at, kind, "must be object at the root"));
    }
    let resource = level == Level::Root || embedded;
    for name in ["kind", "apiVersion"] {
        if let Some(property) = schema.pointer(&format!("/properties/{name}")).filter(|_| resource)
            && text(property, "/type") != "string"
        {
            let at = path.child("properties").key(name).child("type");
            errors.push(FieldError::invalid(&at, text(property, "/type"), "must be string"));
        }
    }
    if let Some(metadata) = schema.pointer("/properties/metadata") {
        let at = path.child("properties").key("metadata");
        if resource && text(metadata, "/type") != "object" {
            errors.push(FieldError::invalid(&at.child("type"), text(metadata, "/type"), "must be object"));
        }
        if level == Level::Root && !is_plain_metadata(metadata) {
            let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
            errors.push(FieldError::forbidden(&at, why));
        }
    }
    if embedded && !preserve && properties(schema).next().is_none() {
        let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.push(FieldError::required(&path.child("properties"), why));
    }
}

fn is_plain_metadata(metadata: &Value) -> bool {
    metadata.as_object().into_iter().flatten().all(|(key, value)| match key.as_str() {
        "type" | "default" => true,
        "properties" => value.as_object().is_some_and(|p| p.keys().all(|k| matches!(k.as_str(), "name" | "generateName"))),
        _ => false,
    })
}

fn is_int_or_string(schema: &Value) -> bool {
    schema.get("anyOf") == Some(&json!([{"type": "integer"}, {"type": "string"}]))
}

fn junctors(schema: &Value, skip_any_of: bool, skip_first_all_of: bool, level: Level, path: &Path, errors: &mut Vec<FieldError>) {
    if !skip_any_of {
        for (i, inner) in items(schema, "/anyOf").iter().enumerate() {
            nested(inner, false, level, &path.child("anyOf").index(i), errors);
        }
    }
    for (i, inner) in items(schema, "/allOf").iter().enumerate() {
        nested(inner, skip_first_all_of && i == 0, level, &path.child("allOf").index(i), errors);
    }
    for (i, inner) in items(schema, "/oneOf").iter().enumerate() {
        nested(inner, false, level, &path.child("oneOf").index(i), errors);
    }
    if let Some(inner) = schema.get("not").filter(|n| n.is_object()) {
        nested(inner, false, level, &path.child("not"), errors);
    }
    let pattern = text(schema, "/pattern");
    if !pattern.is_empty()
        && let Err(error) = super::schema::pattern(pattern)
    {
        let why = format!("must be a valid regular expression, but isn't: {}", error.to_string().lines().last().unwrap_or_default());
        errors.push(FieldError::invalid(&path.child("pattern"), pattern, why));
    }
}

/// What a schema inside of `allOf` and the like may not say.
const FORBIDDEN: [(&str, &str); 12] = [
    ("type", "must be empty to be structural"),
    ("additionalProperties", "must be undefined to be structural"),
    ("default", "must be undefined to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("nullable", "must be false to be structural"),
    ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
    ("x-kubernetes-embedded-resource", "must be false to be structural"),
    ("x-kubernetes-int-or-string", "must be false to be structural"),
    ("x-kubernetes-list-map-keys", "must be empty to be structural"),
    ("x-kubernetes-list-type", "must be undefined to be structural"),
    ("x-kubernetes-map-type", "must be undefined to be structural"),
];

fn nested(schema: &Value, skip_any_of: bool, level: Level, path: &Path, errors: &mut Vec<FieldError>) {
    junctors(schema, skip_any_of, false, level, path, errors);
    if let Some(inner) = schema.get("items").filter(|i| i.is_object()) {
        nested(inner, false, level, &path.child("items"), errors);
    }
    for (name, property) in properties(schema) {
        nested(property, false, Level::Field, &path.child("properties").key(name), errors);
    }
    let empty = |v: &Value| matches!(v, Value::Null | Value::Bool(false)) || v == "" || v.as_array().is_some_and(Vec::is_empty);
    for (key, why) in FORBIDDEN {
        let given = match key {
            "additionalProperties" => schema.get(key).is_some_and(|v| !v.is_null()),
            _ => schema.get(key).is_some_and(|v| !empty(v)),
        };
        if given {
            errors.push(FieldError::forbidden(&path.child(key), why));
        }
    }
    if !items(schema, "/x-kubernetes-validations").is_empty() {
        errors.push(FieldError::forbidden(&path.child("x-kubernetes-validations"), "must be empty to be structural"));
    }
    if schema.pointer("/properties/metadata").is_some() {
        let at = path.child("properties").key("metadata");
        errors.push(FieldError::forbidden(&at, "must not be specified in a nested context"));
    }
}

/// What `allOf` and the like speak of must be there in the structure.
fn complete_junctors(schema: &Value, structure: &Value, at: &Path, from: &Path, errors: &mut Vec<FieldError>) {
    if let Some(inner) = schema.get("not").filter(|n| n.is_object()) {
        complete(inner, structure, at, &from.child("not"), errors);
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (i, inner) in items(schema, &format!("/{key}")).iter().enumerate() {
            complete(inner, structure, at, &from.child(key).index(i), errors);
        }
    }
}

fn complete(schema: &Value, structure: &Value, at: &Path, from: &Path, errors: &mut Vec<FieldError>) {
    let missing = |at: &Path, from: &Path| FieldError::required(at, format!("because it is defined in {from}"));
    complete_junctors(schema, structure, at, from, errors);
    if let Some(inner) = schema.get("items").filter(|i| i.is_object()) {
        let (at, from) = (at.child("items"), from.child("items"));
        match structure.get("items").filter(|i| i.is_object()) {
            Some(structure) => complete(inner, structure, &at, &from, errors),
            None => errors.push(missing(&at, &from)),
        }
    }
    let known: Option<&Map<String, Value>> = structure.get("properties").and_then(Value::as_object);
    for (name, property) in properties(schema) {
        let (at, from) = (at.child("properties").key(name), from.child("properties").key(name));
        match known.and_then(|k| k.get(name)) {
            Some(structure) => complete(property, structure, &at, &from, errors),
            None => errors.push(missing(&at, &from)),
        }
    }
}
