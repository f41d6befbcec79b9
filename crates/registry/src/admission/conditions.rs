//! Match conditions: expressions in CEL that say which requests a webhook is for.

use std::sync::LazyLock;

use api::field::{FieldError, Path};
use apiserver::{AuthzAttributes, Ctx, Decision};
use cel::{AccessRequest, Activation, DeclType, Env, Program, Type, Value as Cel};
use serde_json::Value;

use crate::util::text;

/// Most conditions of one webhook.
const MOST: usize = 64;
/// The most that all conditions of one webhook may cost.
const BUDGET: u64 = 2_500_000;

/// The type of `request`.
static REQUEST: LazyLock<DeclType> = LazyLock::new(|| {
    let text = || DeclType::string_of(0);
    let kind = || DeclType::object_of([("group", text()), ("version", text()), ("kind", text())]);
    let resource = || DeclType::object_of([("group", text()), ("version", text()), ("resource", text())]);
    let user = DeclType::object_of([
        ("username", text()),
        ("uid", text()),
        ("groups", DeclType::list_of(text())),
        ("extra", DeclType::map_of(DeclType::list_of(text()), 0)),
    ]);
    DeclType::object_of([
        ("kind", kind()),
        ("resource", resource()),
        ("subResource", text()),
        ("requestKind", kind()),
        ("requestResource", resource()),
        ("requestSubResource", text()),
        ("name", text()),
        ("namespace", text()),
        ("operation", text()),
        ("userInfo", user),
        ("dryRun", DeclType::bool()),
        ("options", DeclType::unknown()),
    ])
});

fn environment() -> Env {
    let mut env = Env::new().variable_of("object", Type::Dyn).variable_of("oldObject", Type::Dyn);
    env.declare_schema("request", "kubernetes.AdmissionRequest", &REQUEST);
    env.declare("authorizer", Type::object("kubernetes.authorization.Authorizer"));
    env.declare("authorizer.requestResource", Type::object("kubernetes.authorization.ResourceCheck"));
    env
}

fn compile(expression: &str) -> Result<Program, String> {
    let program = environment().compile(expression).map_err(|issues| format!("compilation failed: {issues}"))?;
    match program.result_type() {
        Type::Bool | Type::Dyn => Ok(program),
        _ => Err("must evaluate to bool".into()),
    }
}

/// One condition.
pub(super) struct Condition {
    name: String,
    program: Result<Program, String>,
}

impl Condition {
    pub fn new(condition: &Value) -> Self {
        Self { name: text(condition, "/name").to_owned(), program: compile(text(condition, "/expression")) }
    }
}

/// Asks the server's authorizers in the name of who makes the request.
struct Rights<'a>(&'a Ctx);

impl cel::Authorizer for Rights<'_> {
    fn authorize(&self, asked: &AccessRequest) -> cel::Decision {
        let user = match &asked.service_account {
            Some((namespace, name)) => apiserver::UserInfo::new(
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
        let (decision, reason) = self.0.backend.authorizer.authorize(&attributes);
        cel::Decision { allowed: decision == Decision::Allow, reason, error: None }
    }
}

/// Whether all conditions hold. One that does not decides, whatever else fails; otherwise a failure is the answer.
pub(super) fn all_hold(conditions: &[Condition], object: &Value, old: &Value, request: &Value, ctx: &Ctx) -> Result<bool, String> {
    let rights = Rights(ctx);
    let asked = AccessRequest {
        group: ctx.resource.group.to_owned(),
        resource: ctx.resource.plural.to_owned(),
        subresource: ctx.subresource.clone(),
        namespace: ctx.namespace.clone(),
        name: ctx.name.clone(),
        ..AccessRequest::default()
    };
    let mut failures = Vec::new();
    let mut left = BUDGET;
    for condition in conditions {
        let program = match &condition.program {
            Ok(program) => program,
            Err(why) => {
                failures.push(why.clone());
                continue;
            }
        };
        let request = REQUEST.value(request).map_err(|e| e.to_string())?;
        let activation = Activation::new()
            .with("object", Cel::from_json(object))
            .with("oldObject", Cel::from_json(old))
            .with("request", request)
            .with("authorizer", Cel::authorizer(&rights))
            .with("authorizer.requestResource", Cel::request_resource(&rights, asked.clone()));
        let evaluation = program.eval(&activation);
        let Some(rest) = left.checked_sub(evaluation.cost) else {
            return Err("validation failed due to running out of cost budget, no further validation rules will be run".into());
        };
        left = rest;
        match evaluation.result {
            Ok(value) if value.as_bool() == Some(false) => return Ok(false),
            Ok(_) => {}
            Err(error) => failures.push(format!("expression '{}' resulted in error: {error}", condition.name)),
        }
    }
    if failures.is_empty() { Ok(true) } else { Err(api::field::aggregate(failures.iter().map(String::as_str))) }
}

/// What is wrong with the conditions of a webhook.
pub(super) fn validate(conditions: &[&Value], at: &Path, errors: &mut Vec<FieldError>) {
    if conditions.len() > MOST {
        errors.push(FieldError::too_many(at, conditions.len(), MOST));
    }
    let mut seen = Vec::new();
    for (i, condition) in conditions.iter().enumerate() {
        let at = at.index(i);
        let (name, expression) = (text(condition, "/name"), text(condition, "/expression"));
        if expression.trim().is_empty() {
            errors.push(FieldError::required(&at.child("expression"), ""));
        } else if let Err(why) = compile(expression) {
            errors.push(FieldError::invalid(&at.child("expression"), expression, why));
        }
        if name.is_empty() {
            errors.push(FieldError::required(&at.child("name"), ""));
        } else if seen.contains(&name) {
            errors.push(FieldError::duplicate(&at.child("name"), name));
        } else {
            for why in api::names::qualified_name(name) {
                errors.push(FieldError::invalid(&at.child("name"), name, why));
            }
        }
        seen.push(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Objects;
    use crate::util::PODS;
    use serde_json::json;

    fn hold(conditions: &[&str]) -> Result<bool, String> {
        let objects = Objects::new();
        let ctx = objects.ctx(&PODS, "a", "p", apiserver::UserInfo::new("bob", &["g"]));
        let request = json!({"operation": "CREATE", "userInfo": {"username": "bob", "groups": ["g"]}, "resource": {"group": "", "version": "v1", "resource": "pods"}});
        let conditions: Vec<Condition> = conditions.iter().map(|e| Condition::new(&json!({"name": "c", "expression": e}))).collect();
        all_hold(&conditions, &json!({"metadata": {"name": "p"}}), &Value::Null, &request, &ctx)
    }

    #[test]
    fn conditions_decide() {
        assert_eq!(hold(&[]), Ok(true));
        assert_eq!(hold(&["object.metadata.name == 'p'", "request.userInfo.username == 'bob'", "oldObject == null"]), Ok(true));
        assert_eq!(hold(&["authorizer.group('').resource('pods').namespace('a').check('delete').allowed()"]), Ok(true));
        assert_eq!(hold(&["object.metadata.none == 1", "request.operation == 'DELETE'"]), Ok(false), "one that does not hold decides");
        assert_eq!(hold(&["object.metadata.none == 1"]), Err("expression 'c' resulted in error: no such key: none".into()));
        let mut errors = Vec::new();
        validate(&[&json!({"name": "a/b/c", "expression": "request.nope"})], &Path::new("m"), &mut errors);
        assert_eq!(errors.len(), 2);
        assert!(errors[0].detail.starts_with("compilation failed: ERROR: <input>:1:8: undefined field 'nope'"), "{}", errors[0]);
    }
}
