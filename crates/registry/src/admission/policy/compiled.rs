//! A policy's expressions, compiled; what they say of a write; and what is wrong with them before they are ever asked.

use std::borrow::Cow;
use std::collections::BTreeMap;

use api::field::{FieldError, Path};
use apiserver::{Attributes, AuthzAttributes, UserInfo};
use cel::admission::{NAMESPACE, REQUEST, Variables, compile, env};
use cel::{AccessRequest, Activation, Authorizer, Decision, Env, Program, RUNTIME_BUDGET, Type, Value as CelValue};
use serde_json::{Value, json};

use super::matching::{Target, operation};
use crate::util::{items, text};

/// What match conditions may cost together.
const MATCH_BUDGET: u64 = RUNTIME_BUDGET / 4;
/// The longest message that an expression may make, in bytes.
const LONGEST_MESSAGE: usize = 5 * 1024;
const OUT_OF_BUDGET: &str = "validation failed due to running out of cost budget, no further validation rules will be run";

/// An expression with what it compiled to, or why it did not.
struct Expression {
    text: String,
    program: Result<Program, String>,
}

struct Validation {
    check: Expression,
    message_expression: Option<Expression>,
    message: String,
    reason: String,
}

/// A policy, compiled.
pub(super) struct Policy {
    pub name: String,
    /// Name and resourceVersion: another text is another policy.
    pub version: String,
    /// Whether what goes wrong refuses the write.
    pub fails: bool,
    object: Value,
    variables: Vec<(String, Result<Program, String>)>,
    conditions: Vec<Expression>,
    validations: Vec<Validation>,
    annotations: Vec<Expression>,
}

/// A write that is judged.
pub(super) struct Input<'a> {
    pub attributes: &'a Attributes<'a>,
    pub object: Option<&'a Value>,
    pub target: &'a Target,
    pub params: Option<&'a Value>,
    pub namespace: Option<&'a Value>,
}

/// What is against a write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A validation is not met, or could not be asked.
    Denied { message: String, reason: String },
    /// An audit annotation could not be made.
    Annotation { message: String },
}

/// The environments of a policy's expressions: with the authorizer, and without for messages.
fn environments(policy: &Value) -> (Env, Env) {
    let params = policy.pointer("/spec/paramKind").is_some();
    let of = |authorizer: bool| env(Variables { params, authorizer, ..Variables::default() });
    (of(true), of(false))
}

impl Policy {
    /// What tells a policy's text from every other.
    pub fn version_of(policy: &Value) -> String {
        format!("{} {} {}", text(policy, "/metadata/name"), text(policy, "/metadata/uid"), text(policy, "/metadata/resourceVersion"))
    }

    /// Compiles all expressions of a policy.
    pub fn compile(policy: &Value) -> Policy {
        let (mut full, mut plain) = environments(policy);
        let mut variables = Vec::new();
        for variable in items(policy, "/spec/variables") {
            let name = text(variable, "/name");
            let program = full.compile(text(variable, "/expression")).map_err(|e| format!("{}{e}", e.prefix()));
            let t = program.as_ref().map_or(Type::Dyn, |p| p.result_type().clone());
            full.declare_composed(name, t.clone());
            plain.declare_composed(name, t);
            variables.push((name.to_owned(), program));
        }
        let of = |env: &Env, expression: &str, types: &[Type]| Expression { text: expression.to_owned(), program: compile(env, expression, types) };
        let validation = |v: &Value| Validation {
            check: of(&full, text(v, "/expression"), &[Type::Bool]),
            message_expression: Some(text(v, "/messageExpression")).filter(|m| !m.is_empty()).map(|m| of(&plain, m, &[Type::String])),
            message: text(v, "/message").trim().to_owned(),
            reason: text(v, "/reason").to_owned(),
        };
        Policy {
            name: text(policy, "/metadata/name").to_owned(),
            version: Policy::version_of(policy),
            fails: text(policy, "/spec/failurePolicy") != "Ignore",
            conditions: items(policy, "/spec/matchConditions").map(|c| of(&full, text(c, "/expression"), &[Type::Bool])).collect(),
            validations: items(policy, "/spec/validations").map(validation).collect(),
            annotations: items(policy, "/spec/auditAnnotations").map(|a| of(&full, text(a, "/valueExpression"), &[Type::String, Type::Null])).collect(),
            variables,
            object: policy.clone(),
        }
    }

    /// Which writes the policy is for.
    pub fn constraints(&self) -> &Value {
        &self.object["spec"]["matchConstraints"]
    }

    /// The kind of its parameters.
    pub fn param_kind(&self) -> Option<&Value> {
        self.object.pointer("/spec/paramKind")
    }

    /// What the policy has against a write.
    pub fn evaluate(&self, input: &Input<'_>) -> Vec<Outcome> {
        let data = Data::new(input);
        let failed = |message: String| if self.fails { vec![Outcome::Denied { message, reason: String::new() }] } else { Vec::new() };
        match self.conditions(&data) {
            Ok(true) => {}
            Ok(false) => return Vec::new(),
            Err(message) => return failed(message),
        }
        let mut budget = RUNTIME_BUDGET;
        let activation = data.activation(&self.variables);
        let mut results = Vec::new();
        for validation in &self.validations {
            match validation.check.evaluate(&activation, &mut budget) {
                Ok(result) => results.push(result),
                Err(Spent) => return failed(OUT_OF_BUDGET.to_string()),
            }
        }
        let mut outcomes = Vec::new();
        for (validation, result) in self.validations.iter().zip(results) {
            match result {
                Err(message) => outcomes.extend(failed(message)),
                Ok(value) if value.as_bool() == Some(true) => {}
                Ok(_) => match validation.message(&activation, &mut budget) {
                    Ok(message) => {
                        let reason = if validation.reason.is_empty() { "Invalid".to_string() } else { validation.reason.clone() };
                        outcomes.push(Outcome::Denied { message, reason });
                    }
                    Err(Spent) => outcomes.extend(failed(format!("failed messageExpression: {OUT_OF_BUDGET}"))),
                },
            }
        }
        let mut budget = RUNTIME_BUDGET;
        for annotation in &self.annotations {
            match annotation.evaluate(&activation, &mut budget) {
                Err(Spent) => return failed(OUT_OF_BUDGET.to_string()),
                Ok(Err(message)) if self.fails => outcomes.push(Outcome::Annotation { message }),
                Ok(_) => {}
            }
        }
        outcomes
    }

    /// Whether all match conditions hold. One that does not decides, whatever the others do.
    fn conditions(&self, data: &Data<'_>) -> Result<bool, String> {
        let activation = data.activation(&self.variables);
        let mut budget = MATCH_BUDGET;
        let mut errors = Vec::new();
        for condition in &self.conditions {
            match condition.evaluate(&activation, &mut budget) {
                Err(Spent) => return Err(OUT_OF_BUDGET.to_string()),
                Ok(Err(message)) => errors.push(message),
                Ok(Ok(value)) if value.as_bool() == Some(false) => return Ok(false),
                Ok(Ok(_)) => {}
            }
        }
        if errors.is_empty() { Ok(true) } else { Err(api::field::aggregate(errors)) }
    }
}

/// The budget is spent.
struct Spent;

impl Expression {
    /// Evaluates the expression and takes its cost, with that of the variables that it needed, off the budget.
    fn evaluate<'a>(&'a self, activation: &Activation<'a>, budget: &mut u64) -> Result<Result<CelValue<'a>, String>, Spent> {
        let program = match &self.program {
            Ok(program) => program,
            Err(why) => return Ok(Err(format!("compilation error: {why}"))),
        };
        let evaluation = program.eval(activation);
        for cost in [activation.take_composed_cost(), evaluation.cost] {
            *budget = budget.checked_sub(cost).ok_or(Spent)?;
        }
        Ok(evaluation.result.map_err(|e| format!("expression '{}' resulted in error: {e}", self.text)))
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

/// What expressions see of a write, in the version that the policy asked for.
struct Data<'a> {
    object: Cow<'a, Value>,
    old: Cow<'a, Value>,
    request: Value,
    namespace: &'a Value,
    params: Option<&'a Value>,
    asker: Asker<'a>,
    resource: AccessRequest,
}

impl<'a> Data<'a> {
    fn new(input: &Input<'a>) -> Data<'a> {
        let attributes = input.attributes;
        let (ctx, target) = (attributes.ctx, input.target);
        let own = ctx.resource;
        let convert = |object: Option<&'a Value>| match object {
            Some(object) if (own.group, own.version) != (target.group, target.version) => {
                Cow::Owned(apiserver::convert((own.group, own.version, own.kind), (target.group, target.version), object.clone()))
            }
            Some(object) => Cow::Borrowed(object),
            None => Cow::Borrowed(&Value::Null),
        };
        let request_kind = own.subresource(&ctx.subresource).filter(|_| !ctx.subresource.is_empty());
        let request_kind = request_kind.map_or((own.group, own.version, own.kind), |s| (s.group, s.version, s.kind));
        let name = match &ctx.name[..] {
            "" => input.object.map_or("", |o| text(o, "/metadata/name")),
            name => name,
        };
        let mut request = json!({
            "kind": {"group": target.group, "version": target.version, "kind": target.kind},
            "resource": {"group": target.group, "version": target.version, "resource": target.plural},
            "requestKind": {"group": request_kind.0, "version": request_kind.1, "kind": request_kind.2},
            "requestResource": {"group": own.group, "version": own.version, "resource": own.plural},
            "operation": operation(attributes.operation), "userInfo": user(&ctx.user), "dryRun": ctx.dry_run, "options": attributes.options,
        });
        let texts = [("subResource", &ctx.subresource[..]), ("requestSubResource", &ctx.subresource), ("name", name), ("namespace", &ctx.namespace)];
        for (field, value) in texts.into_iter().filter(|(_, v)| !v.is_empty()) {
            request[field] = value.into();
        }
        // What is asked of a namespace is asked in it.
        if (own.group, own.plural) == ("", "namespaces") && !name.is_empty() {
            request["namespace"] = name.into();
        }
        let resource = AccessRequest {
            group: own.group.to_string(),
            resource: own.plural.to_string(),
            subresource: ctx.subresource.clone(),
            namespace: ctx.namespace.clone(),
            name: name.to_string(),
            ..AccessRequest::default()
        };
        Data {
            object: convert(input.object.filter(|o| !o.is_null())),
            old: convert(attributes.old),
            request,
            namespace: input.namespace.unwrap_or(&Value::Null),
            params: input.params,
            asker: Asker { attributes },
            resource,
        }
    }

    fn activation<'d>(&'d self, variables: &'d [(String, Result<Program, String>)]) -> Activation<'d> {
        let typed = |decl: &'static cel::DeclType, value: &'d Value| match value {
            Value::Null => CelValue::Null,
            value => decl.value(value).unwrap_or_else(|_| CelValue::from_json(value)),
        };
        let mut activation = Activation::new()
            .with("object", CelValue::from_json(&self.object))
            .with("oldObject", CelValue::from_json(&self.old))
            .with("request", typed(&REQUEST, &self.request))
            .with("namespaceObject", typed(&NAMESPACE, self.namespace))
            .with("params", self.params.map_or(CelValue::Null, CelValue::from_json))
            .with("authorizer", CelValue::authorizer(&self.asker))
            .with("authorizer.requestResource", CelValue::request_resource(&self.asker, self.resource.clone()));
        for (name, program) in variables {
            activation.compose(name, program.as_ref().map_err(Clone::clone));
        }
        activation
    }
}

/// Who makes the request, as `request.userInfo` shows it.
fn user(user: &UserInfo) -> Value {
    let mut info = json!({"username": user.name});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.clone().into();
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

/// Asks the server's authorizer for who makes the request.
struct Asker<'a> {
    attributes: &'a Attributes<'a>,
}

impl Authorizer for Asker<'_> {
    fn authorize(&self, request: &AccessRequest) -> Decision {
        let ctx = self.attributes.ctx;
        let user = match &request.service_account {
            Some((namespace, name)) => UserInfo {
                name: format!("system:serviceaccount:{namespace}:{name}"),
                groups: vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}"), "system:authenticated".into()],
                uid: String::new(),
                extra: BTreeMap::new(),
            },
            None => ctx.user.clone(),
        };
        let question = AuthzAttributes {
            user,
            verb: request.verb.clone(),
            resource_request: request.path.is_none(),
            namespace: request.namespace.clone(),
            api_group: request.group.clone(),
            api_version: "*".into(),
            resource: request.resource.clone(),
            subresource: request.subresource.clone(),
            name: request.name.clone(),
            path: request.path.clone().unwrap_or_default(),
            field_selector: request.field_selector.clone().unwrap_or_default(),
            label_selector: request.label_selector.clone().unwrap_or_default(),
        };
        let (decision, reason) = ctx.backend.authorizer.authorize(&question);
        Decision { allowed: decision == apiserver::Decision::Allow, reason, error: None }
    }
}

/// What is wrong with the expressions of a policy that is being written. Those that it had before stay.
pub(crate) fn mistakes(policy: &Value, before: Option<&Value>) -> Vec<FieldError> {
    let spec = Path::new("spec");
    let mut errors = Vec::new();
    let (mut full, mut plain) = environments(policy);
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
    for (i, condition) in items(policy, "/spec/matchConditions").enumerate() {
        check(&full, "matchConditions", i, "expression", text(condition, "/expression"), &[Type::Bool]);
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
