//! Custom resources in OpenAPI: their schemas as definitions.

use super::definitions::{Dialect, META};
use crate::discovery::Entry;
use serde_json::{Map, Value, json};

/// A custom resource of one version.
#[derive(Clone, Debug)]
pub struct CustomKind {
    pub group: String,
    pub version: String,
    /// Names, verbs and subresources, as in discovery.
    pub entry: Entry,
    pub list_kind: String,
    /// `openAPIV3Schema` of the version.
    pub schema: Option<Value>,
}

/// `com.example.v1.Foo`
pub fn definition_name(group: &str, version: &str, kind: &str) -> String {
    let reversed: Vec<&str> = group.split('.').rev().collect();
    format!("{}.{version}.{kind}", reversed.join("."))
}

impl CustomKind {
    /// The definitions of the kind and of its list.
    pub fn definitions(&self, dialect: Dialect) -> [(String, Value); 2] {
        let name = definition_name(&self.group, &self.version, &self.entry.kind);
        let list = definition_name(&self.group, &self.version, &self.list_kind);
        let mut schema = self.schema.clone().unwrap_or_else(|| json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
        if dialect == Dialect::V2 {
            schema = narrow(schema);
        }
        if schema.get("type").is_none() {
            schema["type"] = "object".into();
        }
        let open = schema.get("x-kubernetes-preserve-unknown-fields").is_some() && dialect == Dialect::V2;
        if !open {
            if !schema["properties"].is_object() {
                schema["properties"] = json!({});
            }
            let properties = &mut schema["properties"];
            type_meta(properties);
            properties["metadata"] = reference("ObjectMeta", dialect, "Standard object's metadata.");
        }
        schema["x-kubernetes-group-version-kind"] = self.gvk(&self.entry.kind);
        let mut items = json!({
            "type": "object",
            "description": format!("{} is a list of {}", self.list_kind, self.entry.kind),
            "required": ["items"],
            "properties": {
                "items": {"type": "array", "description": "The objects of the list.", "items": dialect.reference(&name)},
                "metadata": reference("ListMeta", dialect, "Metadata of the list."),
            },
            "x-kubernetes-group-version-kind": self.gvk(&self.list_kind),
        });
        type_meta(&mut items["properties"]);
        [(name, schema), (list, items)]
    }

    fn gvk(&self, kind: &str) -> Value {
        json!([{"group": self.group, "version": self.version, "kind": kind}])
    }
}

fn type_meta(properties: &mut Value) {
    properties["apiVersion"] = json!({"type": "string", "description": "The version of the schema that this object is written in, as group/version."});
    properties["kind"] = json!({"type": "string", "description": "The kind of resource that this object is. In CamelCase; it cannot be changed."});
}

fn reference(name: &str, dialect: Dialect, text: &str) -> Value {
    let target = dialect.reference(&format!("{META}.{name}"));
    match dialect {
        Dialect::V2 => json!({"$ref": target["$ref"], "description": text}),
        Dialect::V3 => json!({"allOf": [target], "description": text}),
    }
}

/// Leaves out what version 2 cannot say.
fn narrow(schema: Value) -> Value {
    let Value::Object(map) = schema else { return schema };
    let open = map.get("x-kubernetes-preserve-unknown-fields").and_then(Value::as_bool) == Some(true);
    let int_or_string = map.get("x-kubernetes-int-or-string").and_then(Value::as_bool) == Some(true);
    let mut out = Map::new();
    for (key, value) in map {
        match key.as_str() {
            "oneOf" | "anyOf" | "allOf" | "not" | "default" | "nullable" | "x-kubernetes-validations" => {}
            // an open object is any value to old clients, or they would refuse unknown fields
            "type" | "properties" | "items" | "additionalProperties" if open || int_or_string => {}
            "properties" => {
                let properties = value.as_object().cloned().unwrap_or_default();
                out.insert(key, properties.into_iter().map(|(k, v)| (k, narrow(v))).collect::<Map<_, _>>().into());
            }
            "items" | "additionalProperties" => {
                out.insert(key, narrow(value));
            }
            _ => {
                out.insert(key, value);
            }
        }
    }
    out.into()
}
