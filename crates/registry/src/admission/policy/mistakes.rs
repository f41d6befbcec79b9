//! What is wrong with policies that are being written.

use api::field::{FieldError, Path};
use cel::admission::compile;
use cel::{Env, Type};
use serde_json::Value;

use super::environment;
use crate::admission::conditions;
use crate::util::{items, text};

/// What is wrong with the expressions of a policy that is being written. Those that it had before stay.
pub(crate) fn mistakes(policy: &Value, before: Option<&Value>) -> Vec<FieldError> {
    let spec = Path::new("spec");
    let mut errors = Vec::new();
    let (mut full, mut plain) = (environment(policy, true, false), environment(policy, false, false));
    // Conditions are read without the policy's variables. What was let in with the same parameters stays.
    if before.is_none_or(|b| ["/spec/matchConditions", "/spec/paramKind"].iter().any(|p| b.pointer(p) != policy.pointer(p))) {
        conditions::validate(&full, &policy["spec"], &spec.child("matchConditions"), &mut errors);
    }
    let known = |pointer: &str, field: &str, expression: &str| before.is_some_and(|b| items(b, pointer).any(|old| text(old, &format!("/{field}")) == expression));
    let mut check = |env: &Env, list: &str, i: usize, field: &str, expression: &str, types: &[Type]| {
        let at = spec.child(list).index(i).child(field);
        if expression.trim().is_empty() {
            errors.push(FieldError::required(&at, format!("{field} is not specified")));
            return;
        }
        if known(&format!("/spec/{list}"), field, expression) {
            return;
        }
        if let Err(why) = compile(env, expression, types) {
            errors.push(FieldError::invalid(&at, expression, why));
        }
    };
    for (i, variable) in items(policy, "/spec/variables").enumerate() {
        let (name, expression) = (text(variable, "/name"), text(variable, "/expression"));
        let t = full.compile(expression).map_or(Type::Dyn, |p| p.result_type().clone());
        check(&full, "variables", i, "expression", expression, std::slice::from_ref(&t));
        full.declare_composed(name, t.clone());
        plain.declare_composed(name, t);
    }
    for (i, validation) in items(policy, "/spec/validations").enumerate() {
        check(&full, "validations", i, "expression", text(validation, "/expression"), &[Type::Bool]);
        let message = text(validation, "/messageExpression");
        if !message.is_empty() {
            check(&plain, "validations", i, "messageExpression", message, &[Type::String]);
        }
    }
    for (i, annotation) in items(policy, "/spec/auditAnnotations").enumerate() {
        check(&full, "auditAnnotations", i, "valueExpression", text(annotation, "/valueExpression"), &[Type::String, Type::Null]);
    }
    if items(policy, "/spec/validations").next().is_none() && items(policy, "/spec/auditAnnotations").next().is_none() {
        for list in ["validations", "auditAnnotations"] {
            errors.push(FieldError::required(&spec.child(list), "validations or auditAnnotations must contain at least one item".to_string()));
        }
    }
    if policy.pointer("/spec/matchConstraints").is_none() {
        errors.push(FieldError::required(&spec.child("matchConstraints"), String::new()));
    } else if items(policy, "/spec/matchConstraints/resourceRules").next().is_none() {
        errors.push(FieldError::required(&spec.child("matchConstraints").child("resourceRules"), String::new()));
    }
    errors
}
