//! Expressions about a question of access: `request`, a SubjectAccessReview's spec, as the match conditions of an
//! AuthorizationConfiguration have it.

use std::sync::LazyLock;

use serde_json::Value as Json;

use crate::env::Env;
use crate::eval::Activation;
use crate::program::Program;
use crate::schema::DeclType;
use crate::types::Type;
use crate::value::Value;

/// The type of `request`.
static REQUEST: LazyLock<DeclType> = LazyLock::new(|| {
    let text = || DeclType::string_of(0);
    let texts = || DeclType::list_of(text());
    let selector = || {
        let requirement = DeclType::object_of([("key", text()), ("operator", text()), ("values", texts())]);
        DeclType::object_of([("rawSelector", text()), ("requirements", DeclType::list_of(requirement))])
    };
    let resource = DeclType::object_of([
        ("namespace", text()),
        ("verb", text()),
        ("group", text()),
        ("version", text()),
        ("resource", text()),
        ("subresource", text()),
        ("name", text()),
        ("fieldSelector", selector()),
        ("labelSelector", selector()),
    ]);
    DeclType::object_of([
        ("resourceAttributes", resource),
        ("nonResourceAttributes", DeclType::object_of([("path", text()), ("verb", text())])),
        ("user", text()),
        ("groups", texts()),
        ("extra", DeclType::map_of(texts(), 0)),
        ("uid", text()),
    ])
});

static ENV: LazyLock<Env> = LazyLock::new(|| {
    let mut env = Env::new();
    env.declare_schema("request", "kubernetes.SubjectAccessReviewSpec", &REQUEST);
    env
});

/// Compiles a condition; the error is what upstream says of it.
pub fn compile(expression: &str) -> Result<Program, String> {
    let program = ENV.compile(expression).map_err(|issues| format!("compilation failed: {issues}"))?;
    match program.result_type() {
        Type::Bool => Ok(program),
        other => Err(format!("must evaluate to bool but got {other}")),
    }
}

/// The question as conditions see it: a spec in which only `resourceAttributes`, `nonResourceAttributes` and the
/// selectors may be missing.
pub fn activation(spec: &Json) -> Activation<'_> {
    Activation::new().with("request", REQUEST.value(spec).unwrap_or_else(|_| Value::from_json(spec)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_see_the_question() {
        let spec = json!({"user": "jane", "uid": "", "groups": ["dev"], "extra": {}, "resourceAttributes": {"namespace": "a", "verb": "list",
            "group": "", "version": "v1", "resource": "pods", "subresource": "", "name": "",
            "labelSelector": {"requirements": [{"key": "app", "operator": "In", "values": ["x"]}]}}});
        let holds = |expression: &str| compile(expression).expect("a condition").eval(&activation(&spec)).result.map(|v| v.as_bool()).map_err(|e| e.to_string());
        assert_eq!(holds("has(request.resourceAttributes) && request.resourceAttributes.namespace == 'a'"), Ok(Some(true)));
        assert_eq!(holds("!('system:masters' in request.groups) && request.user.startsWith('j')"), Ok(Some(true)));
        assert_eq!(holds("request.resourceAttributes.labelSelector.requirements.exists(r, r.key == 'app' && r.values == ['x'])"), Ok(Some(true)));
        assert_eq!(holds("has(request.resourceAttributes.fieldSelector)"), Ok(Some(false)));
        assert_eq!(holds("request.nonResourceAttributes.path == '/'"), Err("no such key: nonResourceAttributes".into()));
        assert_eq!(compile("request.user").unwrap_err(), "must evaluate to bool but got string");
        assert!(compile("request.name == ''").unwrap_err().contains("undefined field 'name'"));
    }
}
