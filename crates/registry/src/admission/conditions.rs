//! Expressions about a write: what they see, whom they may ask about rights, what they may cost; and match conditions,
//! which say whether a webhook or policy is meant.

use api::field::{FieldError, Path};
use api::seen::Seen;
use apiserver::{AuthzAttributes, Ctx, UserInfo};
use cel::admission::{NAMESPACE, REQUEST, compile};
use cel::{AccessRequest, Activation, Authorizer, DeclType, Decision, Env, Program, RUNTIME_BUDGET, Type, Value as Cel};
use serde_json::Value;

use super::request::{View, name};
use crate::util::{items, text};

/// Most conditions of one webhook or policy.
const MOST: usize = 64;
/// What the conditions of one webhook or policy may cost together.
const MATCH_BUDGET: u64 = RUNTIME_BUDGET / 4;
/// What is said when expressions cost too much.
pub(super) const OUT_OF_BUDGET: &str = "validation failed due to running out of cost budget, no further validation rules will be run";

/// An expression with what it compiled to, or why it did not.
pub(super) struct Expression {
    pub text: String,
    program: Result<Program, String>,
}

/// The budget is spent.
pub(super) struct Spent;

impl Expression {
    /// Compiles an expression that must have one of these types.
    pub fn new(env: &Env, text: &str, types: &[Type]) -> Self {
        Self { text: text.to_owned(), program: compile(env, text, types) }
    }

    /// Why it did not compile.
    pub fn mistake(&self) -> Option<&str> {
        self.program.as_ref().err().map(String::as_str)
    }

    /// Evaluates the expression and takes its cost, with that of the variables that it needed, off the budget.
    pub fn evaluate<'a>(&'a self, activation: &Activation<'a>, budget: &mut u64) -> Result<Result<Cel<'a>, String>, Spent> {
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

/// An expression that others know by a name, as `variables.name`.
pub(super) type Variable = (String, Result<Program, String>);

/// What expressions see of a write.
pub(super) struct Data<'a> {
    view: &'a View<'a>,
    params: Option<&'a Value>,
    request: Value,
    rights: Rights<'a>,
    asked: AccessRequest,
}

impl<'a> Data<'a> {
    /// A write, and parameters where a policy has them.
    pub fn new(view: &'a View<'a>, params: Option<&'a Value>) -> Self {
        let ctx = view.attributes.ctx;
        let asked = AccessRequest {
            group: ctx.resource.group.to_owned(),
            resource: ctx.resource.plural.to_owned(),
            subresource: ctx.subresource.clone(),
            namespace: ctx.namespace.clone(),
            name: name(ctx, Some(&view.object)).to_owned(),
            ..AccessRequest::default()
        };
        Self { view, params, request: view.request(), rights: Rights(ctx), asked }
    }

    /// The values of what expressions name.
    pub fn activation<'d>(&'d self, namespace: Option<&'d Value>, variables: &'d [Variable]) -> Activation<'d> {
        let typed = |decl: &'static DeclType, value: &'d Value| decl.value(value).unwrap_or_else(|_| Cel::from_json(value));
        let mut activation = Activation::new()
            .with("object", Cel::from_json(&self.view.object))
            .with("oldObject", Cel::from_json(&self.view.old))
            .with("request", typed(&REQUEST, &self.request))
            .with("namespaceObject", namespace.map_or(Cel::Null, |n| typed(&NAMESPACE, n)))
            .with("params", self.params.map_or(Cel::Null, Cel::from_json))
            .with("authorizer", Cel::authorizer(&self.rights))
            .with("authorizer.requestResource", Cel::request_resource(&self.rights, self.asked.clone()));
        for (name, program) in variables {
            activation.compose(name, program.as_ref().map_err(Clone::clone));
        }
        activation
    }
}

/// Asks the server's authorizers in the name of who makes the request.
struct Rights<'a>(&'a Ctx);

impl Authorizer for Rights<'_> {
    fn authorize(&self, asked: &AccessRequest) -> Decision {
        let user = match &asked.service_account {
            Some((namespace, name)) => UserInfo::new(
                format!("system:serviceaccount:{namespace}:{name}"),
                &["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}"), "system:authenticated"],
            ),
            None => self.0.user.clone(),
        };
        let attributes = AuthzAttributes {
            user,
            verb: asked.verb.clone(),
            resource_request: asked.path.is_none(),
            path: asked.path.clone().unwrap_or_default(),
            api_group: asked.group.clone(),
            api_version: "*".into(),
            resource: asked.resource.clone(),
            subresource: asked.subresource.clone(),
            namespace: asked.namespace.clone(),
            name: asked.name.clone(),
            field_selector: asked.field_selector.clone().unwrap_or_default(),
            label_selector: asked.label_selector.clone().unwrap_or_default(),
        };
        match self.0.authorize(&attributes) {
            (apiserver::Decision::Failed { .. }, why) => Decision { allowed: false, reason: String::new(), error: Some(why) },
            (decision, reason) => Decision { allowed: decision == apiserver::Decision::Allow, reason, error: None },
        }
    }
}

/// Compiles the match conditions of a webhook or policy.
pub(super) fn read(env: &Env, conditions: &Value) -> Vec<Expression> {
    items(conditions, "/matchConditions").map(|c| Expression::new(env, text(c, "/expression"), &[Type::Bool])).collect()
}

/// Whether all conditions hold. One that does not decides, whatever else fails; otherwise a failure is the answer.
/// They know no namespace object.
pub(super) fn all_hold(conditions: &[Expression], data: &Data<'_>, variables: &[Variable]) -> Result<bool, String> {
    let activation = data.activation(None, variables);
    let mut budget = MATCH_BUDGET;
    let mut failures = Vec::new();
    for condition in conditions {
        match condition.evaluate(&activation, &mut budget) {
            Err(Spent) => return Err(OUT_OF_BUDGET.to_owned()),
            Ok(Err(why)) => failures.push(why),
            Ok(Ok(value)) if value.as_bool() == Some(false) => return Ok(false),
            Ok(Ok(_)) => {}
        }
    }
    if failures.is_empty() { Ok(true) } else { Err(api::field::aggregate(failures)) }
}

/// What is wrong with the match conditions of a webhook or policy.
pub(super) fn validate(env: &Env, conditions: &Value, at: &Path, errors: &mut Vec<FieldError>) {
    let conditions: Vec<&Value> = items(conditions, "/matchConditions").collect();
    if conditions.len() > MOST {
        errors.push(FieldError::too_many(at, conditions.len(), MOST));
    }
    let mut seen = Seen::default();
    for (i, condition) in conditions.iter().enumerate() {
        let at = at.index(i);
        let (name, expression) = (text(condition, "/name"), text(condition, "/expression").trim());
        if expression.is_empty() {
            errors.push(FieldError::required(&at.child("expression"), ""));
        } else if let Err(why) = compile(env, expression, &[Type::Bool]) {
            errors.push(FieldError::invalid(&at.child("expression"), expression, why));
        }
        if name.is_empty() {
            errors.push(FieldError::required(&at.child("name"), ""));
        } else if !seen.add(name) {
            errors.push(FieldError::duplicate(&at.child("name"), name));
        } else {
            for why in api::names::qualified_name(name) {
                errors.push(FieldError::invalid(&at.child("name"), name, why));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use crate::util::PODS;
    use apiserver::{Attributes, Operation};
    use cel::admission::{Variables, env};
    use serde_json::json;

    fn full() -> Env {
        env(Variables { authorizer: true, ..Variables::default() })
    }

    fn hold(conditions: &[&str]) -> Result<bool, String> {
        let objects = Objects::new();
        let ctx = objects.ctx(&PODS, "a", "p", UserInfo::new("bob", &["g"]));
        let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
        let object = json!({"metadata": {"name": "p"}});
        let view = block_on(View::of(&attributes, &PODS, Some(&object))).unwrap();
        let conditions: Vec<Value> = conditions.iter().map(|e| json!({"name": "c", "expression": e})).collect();
        all_hold(&read(&full(), &json!({"matchConditions": conditions})), &Data::new(&view, None), &[])
    }

    #[test]
    fn conditions_decide() {
        assert_eq!(hold(&[]), Ok(true));
        assert_eq!(hold(&["object.metadata.name == 'p'", "request.userInfo.username == 'bob'", "oldObject == null"]), Ok(true));
        assert_eq!(hold(&["request.operation == 'CREATE'", "request.resource.resource == 'pods'", "'g' in request.userInfo.groups"]), Ok(true));
        assert_eq!(hold(&["authorizer.group('').resource('pods').namespace('a').check('delete').allowed()"]), Ok(true));
        assert_eq!(hold(&["object.metadata.none == 1", "request.operation == 'DELETE'"]), Ok(false), "one that does not hold decides");
        let failed = "expression 'object.metadata.none == 1' resulted in error: no such key: none";
        assert_eq!(hold(&["object.metadata.none == 1"]), Err(failed.into()));
        let mut errors = Vec::new();
        validate(&full(), &json!({"matchConditions": [{"name": "a/b/c", "expression": "request.nope"}]}), &Path::new("m"), &mut errors);
        assert_eq!(errors.len(), 2);
        assert!(errors[0].detail.starts_with("compilation failed: ERROR: <input>:1:8: undefined field 'nope'"), "{}", errors[0]);
    }
}
