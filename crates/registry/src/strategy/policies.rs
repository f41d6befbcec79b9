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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bindings_name_a_policy_and_what_follows() {
        let told = |spec: Value| of_binding(&json!({"spec": spec})).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(told(json!({"policyName": "p", "validationActions": ["Deny", "Audit"]})), [""; 0]);
        assert_eq!(told(json!({})), ["spec.policyName: Required value", "spec.validationActions: Required value"]);
        assert_eq!(
            told(json!({"policyName": "p", "validationActions": ["Audit", "Audit", "Shout"]})),
            [
                "spec.validationActions[1]: Duplicate value: \"Audit\"",
                "spec.validationActions[2]: Unsupported value: \"Shout\": supported values: \"Audit\", \"Deny\", \"Warn\"",
            ]
        );
        assert!(told(json!({"policyName": "p", "validationActions": ["Deny", "Warn"]}))[0].contains("must not contain both Deny and Warn"));
        let reference = |r: Value| told(json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": r}));
        assert_eq!(reference(json!({"name": "a", "parameterNotFoundAction": "Deny"})), [""; 0]);
        assert_eq!(
            reference(json!({})),
            ["spec.paramRef: Required value: one of name or selector must be specified", "spec.paramRef.parameterNotFoundAction: Required value"]
        );
        assert_eq!(reference(json!({"name": "a", "selector": {}, "parameterNotFoundAction": "Allow"})).len(), 2);
    }
}
