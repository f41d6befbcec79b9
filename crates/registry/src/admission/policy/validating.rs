//! ValidatingAdmissionPolicy: what a policy says of a write, and what its bindings make of that.

use std::collections::BTreeMap;

use api::status::Cause;
use apiserver::types::Status;
use apiserver::{Admission, Attributes, Ctx, Operation};
use async_trait::async_trait;
use cel::{Activation, RUNTIME_BUDGET, Type};
use serde_json::{Value, json};

use super::{Binding, Hook, Policy, environment, hooks, invocations, is_exempt, namespace_object};
use crate::admission::conditions::{self, Data, Expression, OUT_OF_BUDGET, Spent};
use crate::admission::configured::Configured;
use crate::admission::forbidden;
use crate::admission::request::View;
use crate::util::{ADMISSION_POLICIES, ADMISSION_POLICY_BINDINGS, items, text, texts};

/// The longest message that an expression may make, in bytes.
const LONGEST_MESSAGE: usize = 5 * 1024;

/// The longest value of an audit annotation, in bytes.
const LONGEST_NOTE: usize = 10 * 1024;

/// The plug-in, with what it compiled.
#[derive(Default)]
pub(in crate::admission) struct ValidatingAdmissionPolicy {
    hooks: Configured<Hook<Rules>>,
}

/// What a policy asks of writes.
struct Rules {
    validations: Vec<Validation>,
    /// Keys, and what makes their values.
    annotations: Vec<(String, Expression)>,
}

struct Validation {
    check: Expression,
    message_expression: Option<Expression>,
    message: String,
    reason: String,
}

/// What is against a write.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// A validation, by its place, is not met, or could not be asked.
    Denied { message: String, reason: String, index: usize },
    /// An audit annotation could not be made.
    Annotation { message: String },
    /// The audit log is told.
    Note { key: String, value: String },
}

/// A write that is refused: by which policy and binding, and why.
struct Denial {
    message: String,
    reason: String,
}

/// Compiles all expressions of a policy.
fn compile(policy: &Value) -> Policy<Rules> {
    // Messages know no authorizer.
    let environments = [environment(policy, true, false), environment(policy, false, false)];
    Policy::compile(policy, environments, |spec, [full, plain]| {
        let validation = |v: &Value| Validation {
            check: Expression::new(full, text(v, "/expression"), &[Type::Bool]),
            message_expression: Some(text(v, "/messageExpression")).filter(|m| !m.is_empty()).map(|m| Expression::new(plain, m, &[Type::String])),
            message: text(v, "/message").trim().to_owned(),
            reason: text(v, "/reason").to_owned(),
        };
        let annotation = |a: &Value| (text(a, "/key").to_owned(), Expression::new(full, text(a, "/valueExpression"), &[Type::String, Type::Null]));
        Rules { validations: items(spec, "/validations").map(validation).collect(), annotations: items(spec, "/auditAnnotations").map(annotation).collect() }
    })
}

impl Policy<Rules> {
    /// What the policy has against a write.
    fn evaluate(&self, view: &View<'_>, params: Option<&Value>, namespace: Option<&Value>) -> Vec<Outcome> {
        let data = Data::new(view, params);
        let failed_at = |index: usize, message: String| if self.fails { vec![Outcome::Denied { message, reason: String::new(), index }] } else { Vec::new() };
        let failed = |message: String| failed_at(0, message);
        match conditions::all_hold(&self.conditions, &data, &self.variables) {
            Ok(true) => {}
            Ok(false) => return Vec::new(),
            Err(message) => return failed(message),
        }
        let mut budget = RUNTIME_BUDGET;
        let activation = data.activation(namespace, &self.variables);
        let mut results = Vec::new();
        for validation in &self.rules.validations {
            match validation.check.evaluate(&activation, &mut budget) {
                Ok(result) => results.push(result),
                Err(Spent) => return failed(OUT_OF_BUDGET.to_string()),
            }
        }
        let mut outcomes = Vec::new();
        for (index, (validation, result)) in self.rules.validations.iter().zip(results).enumerate() {
            match result {
                Err(message) => outcomes.extend(failed_at(index, message)),
                Ok(value) if value.as_bool() == Some(true) => {}
                Ok(_) => match validation.message(&activation, &mut budget) {
                    Ok(message) => {
                        let reason = if validation.reason.is_empty() { "Invalid".to_string() } else { validation.reason.clone() };
                        outcomes.push(Outcome::Denied { message, reason, index });
                    }
                    Err(Spent) => outcomes.extend(failed_at(index, format!("failed messageExpression: {OUT_OF_BUDGET}"))),
                },
            }
        }
        let mut budget = RUNTIME_BUDGET;
        for (key, annotation) in &self.rules.annotations {
            match annotation.evaluate(&activation, &mut budget) {
                Err(Spent) => return failed(OUT_OF_BUDGET.to_string()),
                Ok(Err(message)) if self.fails => outcomes.push(Outcome::Annotation { message }),
                Ok(Err(_)) => {}
                Ok(Ok(value)) => {
                    let value = value.as_str().unwrap_or_default().trim();
                    if !value.is_empty() {
                        outcomes.push(Outcome::Note { key: key.clone(), value: cut(value, LONGEST_NOTE).to_owned() });
                    }
                }
            }
        }
        outcomes
    }
}

impl Validation {
    /// What is said of a write that fails this: what its message expression makes, where that is one line and not too long.
    fn message<'a>(&'a self, activation: &Activation<'a>, budget: &mut u64) -> Result<String, Spent> {
        if let Some(expression) = &self.message_expression
            && let Ok(value) = expression.evaluate(activation, budget)?
        {
            let made = value.as_str().unwrap_or_default().trim();
            if !made.is_empty() && made.len() <= LONGEST_MESSAGE && !made.contains('\n') {
                return Ok(made.to_owned());
            }
        }
        Ok(if self.message.is_empty() { format!("failed expression: {}", self.check.text.trim()) } else { self.message.clone() })
    }
}

/// The key under which the audit log finds what bindings only want to know of.
const FAILURE: &str = "validation.policy.admission.k8s.io/validation_failure";

/// A validation that is not met, as the audit log shows it.
fn failure(policy: &Policy<Rules>, binding: Option<&Binding>, message: &str, index: usize) -> String {
    let (name, actions) = binding.map_or(("", json!([])), |b| (&b.name, json!(texts(&b.object, "/spec/validationActions").collect::<Vec<_>>())));
    let (message, policy, binding) = (json!(message), json!(policy.name), json!(name));
    format!("[{{\"message\":{message},\"policy\":{policy},\"binding\":{binding},\"expressionIndex\":{index},\"validationActions\":{actions}}}]")
}

/// As much of a text as fits.
fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

/// The annotations that policies want: by policy and key, the values that its bindings come to.
#[derive(Default)]
struct Notes(BTreeMap<(String, String), Vec<String>>);

impl Notes {
    fn add(&mut self, policy: &str, key: String, value: String) {
        let values = self.0.entry((policy.to_owned(), key)).or_default();
        if !values.contains(&value) {
            values.push(value);
        }
    }

    fn publish(self, ctx: &Ctx) {
        for ((policy, key), values) in self.0.into_iter().filter(|_| ctx.is_audited()) {
            ctx.audit(&format!("{policy}/{key}"), || values.join(", "));
        }
    }
}

#[async_trait]
impl Admission for ValidatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn handles(&self, _: Operation) -> bool {
        true
    }

    async fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        let ctx = attributes.ctx;
        if is_exempt(ctx) {
            return Ok(());
        }
        let hooks = hooks(&self.hooks, ctx, [*ADMISSION_POLICIES, *ADMISSION_POLICY_BINDINGS], compile);
        let asked = invocations(&hooks, attributes, object).await;
        if asked.is_empty() {
            return Ok(());
        }
        let namespace = namespace_object(ctx).await?;
        let mut denials = Vec::new();
        let mut notes = Notes::default();
        for asked in asked {
            let (policy, binding) = match &asked {
                Ok(i) => (i.policy, Some(i.binding)),
                Err(e) => (e.policy, e.binding),
            };
            let of = match binding {
                Some(binding) => format!("ValidatingAdmissionPolicy '{}' with binding '{}'", policy.name, binding.name),
                None => format!("ValidatingAdmissionPolicy '{}'", policy.name),
            };
            let outcomes = match &asked {
                Ok(invocation) => {
                    let view = View::of(attributes, invocation.target, object).await?;
                    ctx.settled(|| policy.evaluate(&view, invocation.params.as_deref(), namespace.as_deref())).await
                }
                // What is wrong with the configuration refuses the write, whatever the binding wants done.
                Err(wrong) if policy.fails => {
                    denials.push(Denial { message: format!("{of} denied request: {}", wrong.why), reason: String::new() });
                    continue;
                }
                Err(_) => continue,
            };
            for outcome in outcomes {
                match outcome {
                    Outcome::Denied { message, reason, index } => {
                        for action in texts(binding.map_or(&Value::Null, |b| &b.object), "/spec/validationActions") {
                            match action {
                                "Deny" => denials.push(Denial { message: format!("{of} denied request: {message}"), reason: reason.clone() }),
                                "Warn" => ctx.warn(format!("Validation failed for {of}: {message}")),
                                "Audit" => ctx.audit(FAILURE, || failure(policy, binding, &message, index)),
                                _ => {}
                            }
                        }
                    }
                    Outcome::Note { key, value } => notes.add(&policy.name, key, value),
                    // Whatever the binding wants done, an annotation that cannot be made refuses.
                    Outcome::Annotation { message } => denials.push(Denial { message: format!("{of} denied request: {message}"), reason: String::new() }),
                }
            }
        }
        notes.publish(ctx);
        let Some(denial) = denials.into_iter().next() else { return Ok(()) };
        let mut status = forbidden(attributes, object, &denial.message).with_cause(Cause { message: denial.message, ..Cause::default() });
        status.reason = if denial.reason.is_empty() { "Invalid".to_string() } else { denial.reason };
        status.code = match &status.reason[..] {
            "Forbidden" => 403,
            "Unauthorized" => 401,
            "RequestEntityTooLarge" => 413,
            _ => 422,
        };
        Err(status)
    }
}
