//! What expressions of mutations come to: a configuration to apply, or the operations of a JSON patch.

use serde_json::{Value as Json, json};

use crate::value::{Key, List, Map, Opaque, Value};

impl Value<'_> {
    /// The configuration that `Object{…}` writes down. The objects in it must be named after the fields that they are in.
    pub fn to_configuration(&self) -> Result<Json, String> {
        let Value::Opaque(Opaque::Object(object)) = self else {
            return Err(format!("unsupported return type from ApplyConfiguration expression: {}", self.type_name()));
        };
        self.check_names(&object.type_name)?;
        self.to_json().map_err(|e| e.to_string())
    }

    /// The operations that a list of `JSONPatch{…}` writes down.
    pub fn to_json_patch(&self) -> Result<Json, String> {
        let Value::List(List::Owned(items, _)) = self else {
            return Err("type mismatch: JSONPatchType.expression should evaluate to array".into());
        };
        items.iter().map(operation).collect::<Result<_, _>>().map(Json::Array)
    }

    fn check_names(&self, root: &str) -> Result<(), String> {
        let mut wrong = Vec::new();
        names(self, root, &mut wrong);
        if wrong.is_empty() { Ok(()) } else { Err(format!("type mismatch: {}", wrong.join("\n"))) }
    }
}

fn operation(item: &Value<'_>) -> Result<Json, String> {
    let Value::Opaque(Opaque::Object(given)) = item else {
        let got = item.type_name();
        return Err(format!("type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch, got element of {got}"));
    };
    let text = |field: &str| match given.fields.get(field) {
        None => Ok(""),
        Some(value) => value.as_str().ok_or_else(|| format!("unexpected type {} for JSONPatchType '{field}' field", value.type_name())),
    };
    let mut out = json!({"op": text("op")?, "path": text("path")?});
    if let from @ [_, ..] = text("from")?.as_bytes() {
        out["from"] = String::from_utf8_lossy(from).into();
    }
    if let Some(value) = given.fields.get("value") {
        if let Value::Opaque(Opaque::Object(object)) = value {
            value.check_names(&object.type_name)?;
        }
        let unfit = |e| format!("JSONPath valueExpression evaluated to a type that could not marshal to JSON: {e}");
        out["value"] = value.to_json().map_err(unfit)?;
    }
    Ok(out)
}

/// Objects are named by the path of fields from the root; lists and maps in between are not named.
fn names(value: &Value<'_>, path: &str, wrong: &mut Vec<String>) {
    match value {
        Value::Opaque(Opaque::Object(object)) => {
            if object.type_name != path {
                let (got, expected) = (&object.type_name, path);
                wrong.push(format!("unexpected type name {got:?}, expected {expected:?}, which matches field name path from root Object type"));
            }
            for (field, value) in &object.fields {
                names(value, &format!("{path}.{field}"), wrong);
            }
        }
        Value::List(List::Owned(items, _)) => items.iter().for_each(|item| names(item, path, wrong)),
        Value::Map(Map::Owned(map)) => map.entries.iter().filter(|(k, _)| matches!(k, Key::String(_))).for_each(|(_, v)| names(v, path, wrong)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, Env, Type};

    fn eval<T>(expression: &str, then: impl FnOnce(&Value<'_>) -> T) -> T {
        let object = json!({"spec": {"replicas": 2, "list": [{"a": 1}]}});
        let env = Env::new().with_mutation().variable_of("object", Type::Dyn);
        let program = env.compile(expression).unwrap_or_else(|e| panic!("{expression}: {e}"));
        let activation = Activation::new().with("object", Value::from_json(&object));
        let result = program.eval(&activation).result.unwrap();
        then(&result)
    }

    #[test]
    fn configurations_are_written_down() {
        let made = eval(
            "Object{metadata: Object.metadata{labels: {'a': 'b'}}, spec: Object.spec{replicas: object.spec.replicas + 1, ?none: optional.none(), l: [Object.spec.l{x: 1}], old: object.spec.list}}",
            |v| v.to_configuration(),
        );
        assert_eq!(made, Ok(json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 3, "l": [{"x": 1}], "old": [{"a": 1}]}})));
        let wrong = eval("Object{spec: Object.spec{selector: Object.spec.wrong{}}}", |v| v.to_configuration());
        let why = "type mismatch: unexpected type name \"Object.spec.wrong\", expected \"Object.spec.selector\", which matches field name path from root Object type";
        assert_eq!(wrong, Err(why.into()));
    }

    #[test]
    fn patches_are_written_down() {
        let made = eval(
            "[JSONPatch{op: 'add', path: '/a/' + jsonpatch.escapeKey('b/c'), value: Object.a{x: 1}}, JSONPatch{op: 'move', from: '/x', path: '/y'}, JSONPatch{op: 'test', path: '/n', value: null}]",
            |v| v.to_json_patch(),
        );
        assert_eq!(
            made,
            Ok(json!([{"op": "add", "path": "/a/b~1c", "value": {"x": 1}}, {"op": "move", "from": "/x", "path": "/y"}, {"op": "test", "path": "/n", "value": null}]))
        );
        let chosen = "object.spec.replicas > 1 ? [JSONPatch{op: 'remove', path: '/a'}] : []";
        assert_eq!(eval(chosen, |v| v.to_json_patch()), Ok(json!([{"op": "remove", "path": "/a"}])));
        let env = Env::new().with_mutation().variable_of("object", Type::Dyn);
        assert_eq!(*env.compile(chosen).unwrap().result_type(), Type::list(Type::object("JSONPatch")));
    }
}
