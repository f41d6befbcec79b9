//! Admission policies and their bindings: expressions must compile when they are written.

use api::field::{FieldError, Path};
use apiserver::{Ctx, Strategy};
use serde_json::Value;

use crate::admission::policy::mistakes;
use crate::util::{text, texts};

/// Policies.
pub(crate) struct Policies;

impl Strategy for Policies {
    fn validate_create(&self, ctx: &Ctx, policy: &Value) -> Vec<FieldError> {
        let mut errors = api::validate::create(ctx.resource, policy);
        errors.extend(mistakes(policy, None));
        errors
    }

    fn validate_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = api::validate::update_through(ctx.resource, &ctx.subresource, new, old);
        // What was let in once stays.
        if new.get("spec") != old.get("spec") {
            errors.extend(mistakes(new, Some(old)));
        }
        errors
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// Bindings of policies.
pub(crate) struct Bindings;

impl Strategy for Bindings {
    fn validate_create(&self, ctx: &Ctx, binding: &Value) -> Vec<FieldError> {
        let mut errors = api::validate::create(ctx.resource, binding);
        errors.extend(of_binding(binding));
        errors
    }

    fn validate_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = api::validate::update_through(ctx.resource, &ctx.subresource, new, old);
        errors.extend(of_binding(new));
        errors
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// What is wrong with a binding.
fn of_binding(binding: &Value) -> Vec<FieldError> {
    let spec = Path::new("spec");
    let mut errors = Vec::new();
    if text(binding, "/spec/policyName").is_empty() {
        errors.push(FieldError::required(&spec.child("policyName"), ""));
    }
    if let Some(reference) = binding.pointer("/spec/paramRef") {
        let at = spec.child("paramRef");
        match (text(reference, "/name"), reference.get("selector")) {
            ("", None) => errors.push(FieldError::required(&at, "one of name or selector must be specified")),
            ("", Some(_)) | (_, None) => {}
            (_, Some(_)) => {
                for field in ["name", "selector"] {
                    errors.push(FieldError::forbidden(&at.child(field), "name and selector are mutually exclusive"));
                }
            }
        }
        if text(reference, "/parameterNotFoundAction").is_empty() {
            errors.push(FieldError::required(&at.child("parameterNotFoundAction"), ""));
        }
    }
    let at = spec.child("validationActions");
    let actions: Vec<&str> = texts(binding, "/spec/validationActions").collect();
    if actions.is_empty() {
        errors.push(FieldError::required(&at, ""));
    }
    for (i, action) in actions.iter().enumerate() {
        if !matches!(*action, "Audit" | "Deny" | "Warn") {
            errors.push(FieldError::not_supported(&at.index(i), *action, &["Audit", "Deny", "Warn"]));
        } else if actions[..i].contains(action) {
            errors.push(FieldError::duplicate(&at.index(i), *action));
        }
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errors.push(FieldError::invalid(&at, binding["spec"]["validationActions"].clone(), why));
    }
    errors
}
