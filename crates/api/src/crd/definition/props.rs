//! The schemas inside of a definition: what OpenAPI's version 3 allows there.

use super::{Errors, Options, defaults, keys, validate_structural};
use crate::crd::{flag, items, text, texts};
use crate::field::{FieldError, Path};
use crate::seen::Seen;
use serde_json::Value;

pub const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// Whether a schema or one inside of it passes a test.
pub fn any(schema: &Value, test: &dyn Fn(&Value) -> bool) -> bool {
    let mut found = false;
    each(schema, &mut |s| found |= test(s));
    found
}

/// Shows all schemas inside of one, itself included.
pub fn each(schema: &Value, show: &mut dyn FnMut(&Value)) {
    if !schema.is_object() {
        return;
    }
    show(schema);
    for key in ["items", "not", "additionalProperties", "additionalItems"] {
        match schema.get(key) {
            Some(inner @ Value::Object(_)) => each(inner, show),
            Some(Value::Array(all)) => all.iter().for_each(|s| each(s, show)),
            _ => {}
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        items(schema, &format!("/{key}")).iter().for_each(|s| each(s, show));
    }
    for key in ["properties", "patternProperties", "definitions", "dependencies"] {
        keys(schema.get(key)).for_each(|(_, s)| each(s, show));
    }
}

/// Extensions that only structural schemas may have.
pub fn has_extensions(schema: &Value) -> bool {
    flag(schema, "x-kubernetes-embedded-resource")
        || schema.get("x-kubernetes-preserve-unknown-fields").is_some()
        || flag(schema, "x-kubernetes-int-or-string")
        || ["x-kubernetes-list-map-keys", "x-kubernetes-list-type", "x-kubernetes-validations"].iter().any(|k| schema.get(k).is_some())
}

/// A set whose items are not told apart as a whole.
pub fn is_loose_set(schema: &Value) -> bool {
    let Some(inner) = schema.get("items").filter(|i| i.is_object() && text(schema, "/x-kubernetes-list-type") == "set") else { return false };
    match text(inner, "/type") {
        "array" => !matches!(text(inner, "/x-kubernetes-list-type"), "" | "atomic"),
        "object" => text(inner, "/x-kubernetes-map-type") != "atomic",
        _ => false,
    }
}

/// The keys of lists of type map must always be there.
pub fn map_keys(schema: &Value, at: &Path, errors: &mut Errors) {
    let list_type = text(schema, "/x-kubernetes-list-type");
    let Some(inner) = schema.get("items").filter(|i| i.is_object() && matches!(list_type, "set" | "map")) else { return };
    let at = at.child("items");
    if flag(inner, "nullable") {
        errors.push(FieldError::forbidden(&at.child("nullable"), format!("cannot be nullable when x-kubernetes-list-type is {list_type}")));
    }
    if list_type != "map" {
        return;
    }
    let required = texts(inner, "/required");
    for key in texts(schema, "/x-kubernetes-list-map-keys") {
        let Some(property) = inner.get("properties").and_then(|p| p.get(&key)) else { continue };
        let at = at.child("properties").key(&key);
        if !required.contains(&key) && property.get("default").is_none_or(Value::is_null) {
            let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(FieldError::required(&at.child("default"), why));
        }
        if flag(property, "nullable") {
            let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(FieldError::forbidden(&at.child("nullable"), why));
        }
    }
}

/// Fields that the root of a schema may have beside a status subresource: the JSON names, and upstream's list of them.
const AT_ROOT: [&str; 22] = [
    "description", "type", "format", "title", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum", "maxLength", "minLength",
    "pattern", "maxItems", "minItems", "uniqueItems", "multipleOf", "required", "items", "properties", "externalDocs", "example",
    "x-kubernetes-preserve-unknown-fields", "x-kubernetes-validations",
];
const AT_ROOT_TEXT: &str = "[Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields XValidations]";

/// A version's whole schema.
pub fn check(schema: &Value, at: &Path, has_status: bool, structural: bool, options: &Options, errors: &mut Errors) {
    if has_status {
        let kind = text(schema, "/type");
        if kind != "object" && !kind.is_empty() {
            let why = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
            errors.push(FieldError::invalid(&at.child("type"), kind, why));
        } else if keys(Some(schema)).any(|(key, _)| !AT_ROOT.contains(&key.as_str())) {
            let why = format!("only {AT_ROOT_TEXT} fields are allowed at the root of the schema if the status subresource is enabled");
            errors.push(FieldError::invalid(at, schema.clone(), why));
        }
    }
    if flag(schema, "nullable") {
        errors.push(FieldError::forbidden(&at.child("nullable"), "nullable cannot be true at the root"));
    }
    if structural {
        let wrong = validate_structural(at, schema);
        if wrong.is_empty() {
            defaults(schema, at, true, false, options, errors);
        }
        errors.extend(wrong);
    }
    let walk = Walk { options, defaults: Ok(()), in_meta: false };
    walk.schema(schema, at, true, errors);
}

#[derive(Clone, Copy)]
struct Walk<'a> {
    options: &'a Options,
    /// Whether defaults may be here, and where not.
    defaults: Result<(), &'a str>,
    in_meta: bool,
}

/// What is not for definitions at all.
const UNSUPPORTED: [&str; 6] = ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"];

impl Walk<'_> {
    fn schema(&self, schema: &Value, at: &Path, root: bool, errors: &mut Errors) {
        self.standard(schema, at, errors);
        if flag(schema, "uniqueItems") {
            let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            errors.push(FieldError::forbidden(&at.child("uniqueItems"), why));
        }
        if let Some(additional) = schema.get("additionalProperties").filter(|a| !a.is_null()) {
            let at = at.child("additionalProperties");
            if keys(schema.get("properties")).next().is_some() && *additional != true {
                errors.push(FieldError::forbidden(&at, "additionalProperties and properties are mutual exclusive"));
            }
            if additional.is_object() {
                let mut inner = *self;
                if self.in_meta {
                    inner.defaults = Err("inside additionalProperties applying to object metadata");
                }
                inner.schema(additional, &at, false, errors);
            }
        }
        for (name, property) in keys(schema.get("properties")) {
            let mut inner = *self;
            let reason;
            if (root || flag(schema, "x-kubernetes-embedded-resource")) && matches!(name.as_str(), "metadata" | "kind" | "apiVersion") {
                inner.in_meta = true;
                if root {
                    reason = format!("in top-level {name}");
                    Walk { defaults: Err(&reason), ..inner }.schema(property, &at.child("properties").key(name), false, errors);
                    continue;
                }
            }
            inner.schema(property, &at.child("properties").key(name), false, errors);
        }
        if let Some(not) = schema.get("not").filter(|n| n.is_object()) {
            self.schema(not, &at.child("not"), false, errors);
        }
        for key in ["allOf", "oneOf", "anyOf"] {
            for (i, inner) in items(schema, &format!("/{key}")).iter().enumerate() {
                self.schema(inner, &at.child(key).index(i), false, errors);
            }
        }
        match schema.get("items") {
            Some(inner @ Value::Object(_)) => self.schema(inner, &at.child("items"), false, errors),
            Some(Value::Array(all)) => {
                for (i, inner) in all.iter().enumerate() {
                    self.schema(inner, &at.child("items").index(i), false, errors);
                }
            }
            _ => {}
        }
        if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
            let at = at.child("x-kubernetes-preserve-unknown-fields");
            errors.push(FieldError::invalid(&at, false, "must be true or undefined"));
        }
        self.topology(schema, at, errors);
        rules(schema, at, errors);
    }

    fn standard(&self, schema: &Value, at: &Path, errors: &mut Errors) {
        let kind = text(schema, "/type");
        if kind == "null" {
            errors.push(FieldError::forbidden(&at.child("type"), "type cannot be set to null, use nullable as an alternative"));
        } else if self.options.types && !kind.is_empty() && !TYPES.contains(&kind) {
            errors.push(FieldError::not_supported(&at.child("type"), kind, &TYPES));
        }
        if let (Err(reason), Some(_)) = (self.defaults, schema.get("default").filter(|d| !d.is_null())) {
            errors.push(FieldError::forbidden(&at.child("default"), format!("must not be set {reason}")));
        }
        for key in UNSUPPORTED {
            let given = schema.get(key).is_some_and(|v| !v.is_null() && v != "" && v.as_object().is_none_or(|o| !o.is_empty()));
            if given {
                errors.push(FieldError::forbidden(&at.child(key), format!("{key} is not supported")));
            }
        }
        if schema.get("items").is_some_and(Value::is_array) {
            errors.push(FieldError::forbidden(&at.child("items"), "items must be a schema object and not an array"));
        }
        if self.in_meta && flag(schema, "x-kubernetes-embedded-resource") {
            let at = at.child("x-kubernetes-embedded-resource");
            errors.push(FieldError::forbidden(&at, "must not be used inside of resource meta"));
        }
    }

    /// How lists and maps merge.
    fn topology(&self, schema: &Value, at: &Path, errors: &mut Errors) {
        let kind = text(schema, "/type");
        let wrong_type = |why: &str| {
            let at = at.child("type");
            if kind.is_empty() { FieldError::required(&at, why) } else { FieldError::invalid(&at, kind, why) }
        };
        if let Some(map_type) = schema.get("x-kubernetes-map-type").and_then(Value::as_str) {
            if kind != "object" {
                errors.push(wrong_type("must be object if x-kubernetes-map-type is specified"));
            }
            if !matches!(map_type, "atomic" | "granular") {
                errors.push(FieldError::not_supported(&at.child("x-kubernetes-map-type"), map_type, &["atomic", "granular"]));
            }
        }
        let list_type = schema.get("x-kubernetes-list-type").and_then(Value::as_str);
        let keys = texts(schema, "/x-kubernetes-list-map-keys");
        if let Some(list_type) = list_type {
            if kind != "array" {
                errors.push(wrong_type("must be array if x-kubernetes-list-type is specified"));
            } else if self.options.atomic_sets && is_loose_set(schema) {
                let key = if text(schema, "/items/type") == "array" { "x-kubernetes-list-type" } else { "x-kubernetes-map-type" };
                let given = schema.pointer("/items/x-kubernetes-list-type").cloned().unwrap_or_default();
                let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
                errors.push(FieldError::invalid(&at.child("items").child(key), given, why));
            }
            if !matches!(list_type, "atomic" | "set" | "map") {
                errors.push(FieldError::not_supported(&at.child("x-kubernetes-list-type"), list_type, &["atomic", "set", "map"]));
            }
        }
        if !keys.is_empty() && list_type != Some("map") {
            let (at, why) = (at.child("x-kubernetes-list-type"), "must be map if x-kubernetes-list-map-keys is non-empty");
            errors.push(match list_type {
                None => FieldError::required(&at, why),
                Some(given) => FieldError::invalid(&at, given, why),
            });
        }
        if list_type == Some("map") {
            self.map_list(schema, &keys, at, errors);
        }
        if self.options.map_keys {
            map_keys(schema, at, errors);
        }
    }

    fn map_list(&self, schema: &Value, names: &[String], at: &Path, errors: &mut Errors) {
        let keys_at = at.child("x-kubernetes-list-map-keys");
        if names.is_empty() {
            errors.push(FieldError::required(&keys_at, "must not be empty if x-kubernetes-list-type is map"));
        }
        let at = at.child("items");
        let Some(inner) = schema.get("items").filter(|i| !i.is_null()) else {
            return errors.push(FieldError::required(&at, "must have a schema if x-kubernetes-list-type is map"));
        };
        if inner.is_array() {
            return errors.push(FieldError::invalid(&at, inner.clone(), "must only have a single schema if x-kubernetes-list-type is map"));
        }
        let kind = text(inner, "/type");
        if kind != "object" {
            let why = "must be object if parent array's x-kubernetes-list-type is map";
            return errors.push(FieldError::invalid(&at.child("type"), kind, why));
        }
        // each mistake shows all names: of many the first is told
        const MANY: usize = 100;
        let (mut seen, before) = (Seen::default(), errors.len());
        for name in names {
            if names.len() > MANY && errors.len() > before {
                break;
            }
            match inner.get("properties").and_then(|p| p.get(name)) {
                Some(property) if matches!(text(property, "/type"), "array" | "object") => {
                    let at = at.child("properties").key(name).child("type");
                    errors.push(FieldError::invalid(&at, kind, "must be a scalar type if parent array's x-kubernetes-list-type is map"));
                }
                Some(_) => {}
                None => errors.push(FieldError::invalid(&keys_at, names.to_vec(), "entries must all be names of item properties")),
            }
            if !seen.add(name) {
                errors.push(FieldError::invalid(&keys_at, names.to_vec(), "must not contain duplicate entries"));
            }
        }
    }
}

/// The form of `x-kubernetes-validations`; the expressions themselves are checked elsewhere.
fn rules(schema: &Value, at: &Path, errors: &mut Errors) {
    const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
    for (i, rule) in items(schema, "/x-kubernetes-validations").iter().enumerate() {
        let at = at.child("x-kubernetes-validations").index(i);
        let lines = |t: &str| t.contains(['\n', '\r']);
        let (expression, message) = (text(rule, "/rule").trim(), text(rule, "/message"));
        if expression.is_empty() {
            errors.push(FieldError::required(&at.child("rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            errors.push(FieldError::invalid(&at.child("message"), message, "must be non-empty if specified"));
        } else if lines(message.trim()) {
            errors.push(FieldError::invalid(&at.child("message"), message, "must not contain line breaks"));
        } else if lines(expression) && message.trim().is_empty() {
            errors.push(FieldError::required(&at.child("message"), "message must be specified if rule contains line breaks"));
        }
        let expression = text(rule, "/messageExpression");
        if !expression.is_empty() && expression.trim().is_empty() {
            errors.push(FieldError::required(&at.child("messageExpression"), "messageExpression must be non-empty if specified"));
        }
        if let Some(reason) = rule.get("reason").and_then(Value::as_str).filter(|r| !REASONS.contains(r)) {
            errors.push(FieldError::not_supported(&at.child("reason"), reason, &REASONS));
        }
        let field = text(rule, "/fieldPath");
        if !field.is_empty() && field.trim().is_empty() {
            errors.push(FieldError::invalid(&at.child("fieldPath"), field, "must be non-empty if specified"));
        }
        if lines(field) {
            errors.push(FieldError::invalid(&at.child("fieldPath"), field, "must not contain line breaks"));
        }
        if !field.is_empty() && super::field_schema(field, schema).is_err() {
            errors.push(FieldError::invalid(&at.child("fieldPath"), field, "must be a valid path"));
        }
    }
}
