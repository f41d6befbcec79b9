//! The example of the crate's documentation, run.

use cel::{Activation, DeclType, Env, Type, Value};
use serde_json::json;

#[test]
fn example() {
    let schema = DeclType::from_openapi(
        &json!({"type": "object", "properties": {"replicas": {"type": "integer"}, "max": {"type": "integer"}}}),
        false,
    )
    .unwrap();
    let mut env = Env::new();
    env.declare_schema("self", "selfType", &schema);
    let program = env.compile("self.replicas <= self.max").unwrap();
    assert_eq!(*program.result_type(), Type::Bool);
    assert!(program.estimate(&schema).max < cel::MAX_REQUEST_SIZE);

    let object = json!({"replicas": 3, "max": 2});
    let activation = Activation::new().with("self", schema.value(&object).unwrap());
    let evaluation = program.eval(&activation);
    assert_eq!(evaluation.result.unwrap().as_bool(), Some(false));

    // Without a schema, data is dynamic.
    let program = Env::new().variable_of("object", Type::Dyn).compile("object.max.foo").unwrap();
    let activation = Activation::new().with("object", Value::from_json(&object));
    assert_eq!(program.eval(&activation).result.unwrap_err().to_string(), "no such key: foo");

    // What does not compile says why, in upstream's words.
    let issues = Env::new().compile("1 + 'a'").unwrap_err();
    assert!(issues.to_string().starts_with("ERROR: <input>:1:3: found no matching overload for '_+_' applied to '(int, string)'"));
}
