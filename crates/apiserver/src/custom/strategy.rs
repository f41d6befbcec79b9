//! The strategy of all custom resources: what upstream's `customresource` strategies do, by the version's schema.
use std::collections::BTreeSet;

use api::crd::{self, path};
use api::field::{FieldError, Path};
use serde_json::Value;

use super::{Custom, rules};
use crate::ctx::Ctx;
use crate::object;
use crate::strategy::Strategy;

/// One version's strategy, for the resource itself and its status.
pub struct CustomStrategy(pub Custom);

impl CustomStrategy {
    fn has_status(&self) -> bool {
        self.0.version.resource.subresource("status").is_some()
    }

    fn type_meta(&self, value: &Value) -> Vec<FieldError> {
        let r = self.0.version.resource;
        let mut errors = Vec::new();
        for (key, wanted) in [("kind", r.kind.to_string()), ("apiVersion", r.api_version())] {
            let given = value.get(key).and_then(Value::as_str).unwrap_or_default();
            if given != wanted {
                errors.push(FieldError::invalid(&Path::new(key), given, format!("must be {wanted}")));
            }
        }
        errors
    }

    /// Whether a scale's figures are figures.
    fn scale(&self, value: &Value, spec: bool) -> Vec<FieldError> {
        let Some(scale) = &self.0.version.scale else { return Vec::new() };
        let mut errors = Vec::new();
        let mut number = |at: &str| {
            let found = path::get(value, at).filter(|v| !v.is_null());
            let Some(given) = found else { return };
            let at = Path::new(at);
            match given.as_i64() {
                None => errors.push(FieldError::invalid(&at, 0, format!("{at} accessor error: {} is of the type {}, expected int64", shown(given), go_type(given)))),
                Some(n) if n < 0 => errors.push(FieldError::invalid(&at, n, "should be a non-negative integer")),
                Some(n) if n > i64::from(i32::MAX) => {
                    errors.push(FieldError::invalid(&at, n, format!("should be less than or equal to {}", i32::MAX)));
                }
                Some(_) => {}
            }
        };
        if spec {
            number(&scale.spec_replicas);
        }
        number(&scale.status_replicas);
        if !scale.selector.is_empty()
            && let Some(given) = path::get(value, &scale.selector).filter(|v| !v.is_string() && !v.is_null())
        {
            let at = Path::new(&scale.selector);
            errors.push(FieldError::invalid(&at, "", format!("{at} accessor error: {} is of the type {}, expected string", shown(given), go_type(given))));
        }
        errors
    }

    fn lists(&self, value: &Value) -> Vec<FieldError> {
        self.0.version.schema().map(|s| crd::validate_lists(value, s)).unwrap_or_default()
    }

    /// Asks the rules, unless what they look at is wrong already.
    fn ask(&self, ctx: &Ctx, new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
        let Some(rules) = self.0.version.rules() else { return };
        match rules::blocks(errors) {
            Some(error) => errors.push(error),
            None => errors.extend(rules.validate(new, old, |warning| ctx.warn(warning))),
        }
    }

    fn validate_status(&self, ctx: &Ctx, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = api::validate::metadata_update(new, old);
        let schema = self.0.version.schema().and_then(|s| s.properties.get("status"));
        if let (Some(status), Some(schema)) = (new.get("status"), schema) {
            errors.extend(crd::validate_update("status", status, old.get("status"), schema));
        }
        errors.extend(self.scale(new, false));
        let twice = self.lists(new);
        if !twice.is_empty() && self.lists(old).is_empty() {
            errors.extend(twice);
        }
        self.ask(ctx, new, Some(old), &mut errors);
        errors
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

impl Strategy for CustomStrategy {
    fn prepare_create(&self, _ctx: &Ctx, value: &mut Value) {
        if self.has_status() {
            object::map_of(value).remove("status");
        }
        object::meta_mut(value).insert("generation".into(), 1.into());
    }

    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        if ctx.subresource == "status" {
            let map = object::map_of(new);
            let status = map.remove("status");
            let fields = map.get("metadata").and_then(|m| m.get("managedFields")).cloned();
            let mut merged = old.clone();
            if let Some(version) = map.get("metadata").and_then(|m| m.get("resourceVersion")).cloned() {
                object::meta_mut(&mut merged).insert("resourceVersion".into(), version);
            }
            match fields {
                Some(fields) => object::meta_mut(&mut merged).insert("managedFields".into(), fields),
                None => object::meta_mut(&mut merged).remove("managedFields"),
            };
            match status {
                Some(status) => object::map_of(&mut merged).insert("status".into(), status),
                None => object::map_of(&mut merged).remove("status"),
            };
            *new = merged;
            return;
        }
        if self.has_status() {
            match old.get("status") {
                Some(status) => object::map_of(new).insert("status".into(), status.clone()),
                None => object::map_of(new).remove("status"),
            };
        }
        let rest = |value: &Value| -> Vec<(String, Value)> {
            let map = value.as_object().into_iter().flatten();
            map.filter(|(key, _)| *key != "metadata").map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        if rest(new) != rest(old) {
            let generation = object::meta_i64(old, "generation").unwrap_or(0) + 1;
            object::meta_mut(new).insert("generation".into(), generation.into());
        }
    }

    fn validate_create(&self, ctx: &Ctx, value: &Value) -> Vec<FieldError> {
        let mut errors = self.type_meta(value);
        if !errors.is_empty() {
            return errors;
        }
        errors.extend(api::validate::metadata_create(value, ctx.resource.namespaced));
        if let Some(schema) = self.0.version.schema() {
            errors.extend(crd::validate(value, schema));
        }
        errors.extend(self.scale(value, true));
        errors.extend(self.lists(value));
        self.ask(ctx, value, None, &mut errors);
        errors
    }

    fn validate_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.type_meta(new);
        if !errors.is_empty() {
            return errors;
        }
        if ctx.subresource == "status" {
            return self.validate_status(ctx, new, old);
        }
        errors.extend(api::validate::metadata_update(new, old));
        if let Some(schema) = self.0.version.schema() {
            errors.extend(crd::validate_update("", new, Some(old), schema));
        }
        errors.extend(self.scale(new, true));
        if self.lists(old).is_empty() {
            errors.extend(self.lists(new));
        }
        self.ask(ctx, new, Some(old), &mut errors);
        errors
    }

    fn warnings_on_create(&self, _ctx: &Ctx, value: &Value) -> Vec<String> {
        finalizer_warnings(value, None)
    }

    fn warnings_on_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> Vec<String> {
        if ctx.subresource.is_empty() { finalizer_warnings(new, Some(old)) } else { Vec::new() }
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// Finalizers that others might use too.
fn finalizer_warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let before = old.map(object::finalizers).unwrap_or_default();
    let added: BTreeSet<String> = object::finalizers(new).into_iter().filter(|f| !before.contains(f)).collect();
    let mut warnings = Vec::new();
    for name in added {
        let say = |what: &str| format!("metadata.finalizers: {}: {what}", api::field::go_quote(&name));
        warnings.extend(api::names::qualified_name(&name).iter().map(|why| say(why)));
        if !name.contains('/') && !matches!(name.as_str(), "orphan" | "foregroundDeletion" | "kubernetes") {
            let path = if name.contains('.') { " including a path (/)" } else { "" };
            warnings.push(say(&format!("prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers")));
        }
    }
    warnings
}
