//! The expression language: what compiles ends within its limit, whatever it says.

use std::sync::LazyLock;

use cel::admission::{self, Variables};
use cel::{Activation, DeclType, DeviceSelector, Env, Program, Type, Value};
use serde_json::{Value as Json, json};

use super::Parts;

/// A limit that is reached soon, so that running into it is tried too.
const LIMIT: u64 = 100_000;

/// The schema that `self` has.
static SCHEMA: LazyLock<DeclType> = LazyLock::new(|| {
    let text = json!({"type": "string", "maxLength": 64});
    let schema = json!({"type": "object", "properties": {
        "name": text, "count": {"type": "integer"}, "ratio": {"type": "number"}, "on": {"type": "boolean"}, "when": {"type": "string", "format": "date-time"},
        "long": {"type": "string", "format": "duration"}, "raw": {"type": "string", "format": "byte"}, "port": {"x-kubernetes-int-or-string": true},
        "list": {"type": "array", "maxItems": 10, "items": {"type": "integer"}}, "set": {"type": "array", "x-kubernetes-list-type": "set", "items": text},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": text, "v": {"type": "integer"}}}},
        "words": {"type": "object", "additionalProperties": text}, "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "null": {"type": "string", "nullable": true}, "some-name": text,
    }});
    DeclType::from_openapi(&schema, false).expect("a schema")
});

/// Runs it, and holds it to its limit. A single call may go beyond, by what it alone costs.
fn held<'a>(program: &'a Program, activation: &Activation<'a>) {
    let evaluation = program.eval_within(activation, LIMIT);
    if let Ok(value) = &evaluation.result {
        assert!(evaluation.cost <= LIMIT, "cost {}", evaluation.cost);
        let _ = value.to_json();
        let _ = value.to_configuration();
        let _ = value.to_json_patch();
    }
    // The same again, for it depends on nothing else.
    let again = program.eval_within(activation, LIMIT);
    assert_eq!(again.cost, evaluation.cost);
    assert_eq!(again.result.is_ok(), evaluation.result.is_ok());
}

/// An expression over `self`, which has a schema, and `object`, which has none; then their values.
pub fn cel(input: &[u8]) {
    let mut parts = Parts::of(input);
    let Some(text) = parts.text() else { return };
    let (own, object) = (parts.tree().unwrap_or_default(), parts.tree().unwrap_or_default());
    let mut env = Env::new().variable_of("object", Type::Dyn).with_bind();
    env.declare_schema("self", "selfType", &SCHEMA);
    let program = match env.compile(text) {
        Ok(program) => program,
        Err(issues) => return drop(issues.to_string()),
    };
    let _ = program.estimate(&*SCHEMA);
    let _ = program.fields_of("self");
    let Ok(value) = SCHEMA.value(&own) else { return };
    held(&program, &Activation::new().with("self", value).with("object", Value::from_json(&object)));
}

/// An expression of admission policies, with the object; and as a selector of devices.
pub fn admission(input: &[u8]) {
    let mut parts = Parts::of(input);
    let Some(text) = parts.text() else { return };
    let object = parts.tree().unwrap_or_default();
    let env = admission::env(Variables { params: true, mutation: true, ..Variables::default() });
    if let Ok(program) = env.compile(text) {
        let _ = program.estimate(&cel::NoSizes);
        let request = json!({"operation": "CREATE", "name": "a", "namespace": "b", "userInfo": {"username": "u", "groups": ["g"]}});
        let request = admission::REQUEST.value(&request).expect("a request");
        let namespace = json!({"metadata": {"name": "b", "labels": {"a": "b"}}});
        let namespace = admission::NAMESPACE.value(&namespace).expect("a namespace");
        let activation = Activation::new()
            .with("object", Value::from_json(&object))
            .with("oldObject", Value::from_json(&Json::Null))
            .with("params", Value::from_json(&object))
            .with("request", request)
            .with("namespaceObject", namespace);
        held(&program, &activation);
    }
    let _ = DeviceSelector::compile(text);
}
