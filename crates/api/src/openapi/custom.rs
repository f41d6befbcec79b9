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
    /// Field selectors beside the common ones.
    pub selectable: Vec<String>,
    /// Objects keep fields that the schema does not know.
    pub preserve: bool,
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
        let mut schema = json!({"type": "object"});
        let open = |s: &Value| self.preserve || s.get("x-kubernetes-preserve-unknown-fields").and_then(Value::as_bool) == Some(true);
        // to kubectl, a schema without properties takes everything
        if let Some(own) = self.schema.as_ref().filter(|s| dialect == Dialect::V3 || !open(s)) {
            schema = if dialect == Dialect::V2 { narrow(own.clone()) } else { own.clone() };
            embedded(&mut schema, dialect);
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
        if dialect == Dialect::V3 && !self.selectable.is_empty() {
            let fields: Vec<Value> = self.selectable.iter().map(|f| json!({"fieldPath": f})).collect();
            schema["x-kubernetes-selectable-fields"] = fields.clone().into();
            items["x-kubernetes-selectable-fields"] = fields.into();
        }
        [(name, schema), (list, items)]
    }

    fn gvk(&self, kind: &str) -> Value {
        json!([{"group": self.group, "version": self.version, "kind": kind}])
    }
}

fn type_meta(properties: &mut Value) {
    properties["apiVersion"] = json!({"type": "string", "description": "APIVersion defines which version of the schema this object is written in, as group/version."});
    properties["kind"] = json!({"type": "string", "description": "The kind of resource that this object is. In CamelCase; it cannot be changed."});
}

fn reference(name: &str, dialect: Dialect, text: &str) -> Value {
    let target = dialect.reference(&format!("{META}.{name}"));
    match dialect {
        Dialect::V2 => json!({"$ref": target["$ref"], "description": text}),
        Dialect::V3 => json!({"allOf": [target], "description": text}),
    }
}

/// Adds what every resource has to the resources inside of one.
fn embedded(schema: &mut Value, dialect: Dialect) {
    let Value::Object(map) = schema else { return };
    for inner in map.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
        embedded(inner, dialect);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key) {
            embedded(inner, dialect);
        }
    }
    let is = |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_bool) == Some(true);
    if !is(map, "x-kubernetes-embedded-resource") || dialect == Dialect::V2 && is(map, "x-kubernetes-preserve-unknown-fields") {
        return;
    }
    let properties = map.entry("properties").or_insert_with(|| json!({}));
    type_meta(properties);
    properties["metadata"] = reference("ObjectMeta", dialect, "Standard object's metadata.");
    if let Value::Array(required) = map.entry("required").or_insert_with(|| json!([])) {
        for key in ["kind", "apiVersion"] {
            if !required.iter().any(|r| r == key) {
                required.push(key.into());
            }
        }
    }
}

/// Leaves out what version 2 cannot say, and what kubectl would take amiss.
fn narrow(schema: Value) -> Value {
    let Value::Object(map) = schema else { return schema };
    let is = |key: &str| map.get(key).and_then(Value::as_bool) == Some(true);
    let (open, nullable) = (is("x-kubernetes-preserve-unknown-fields"), is("nullable"));
    let shapeless = open || nullable;
    let kind = map.get("type").and_then(Value::as_str).unwrap_or_default();
    let no_items = shapeless || !map.contains_key("items");
    let no_type = nullable || kind == "array" && no_items || kind == "object" && open;
    let may_be_null: Vec<String> = map
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, p)| p.get("nullable").and_then(Value::as_bool) == Some(true))
        .map(|(name, _)| name.clone())
        .collect();
    let mut out = Map::new();
    for (key, value) in map {
        match key.as_str() {
            "oneOf" | "anyOf" | "allOf" | "not" | "nullable" => {}
            "type" if no_type => {}
            "properties" | "items" if shapeless => {}
            "properties" => {
                let properties = value.as_object().cloned().unwrap_or_default();
                out.insert(key, properties.into_iter().map(|(k, v)| (k, narrow(v))).collect::<Map<_, _>>().into());
            }
            "items" | "additionalProperties" => {
                out.insert(key, narrow(value));
            }
            "required" => {
                let left: Vec<Value> =
                    value.as_array().into_iter().flatten().filter(|r| !may_be_null.iter().any(|n| *r == n)).cloned().collect();
                if !left.is_empty() {
                    out.insert(key, left.into());
                }
            }
            _ => {
                out.insert(key, value);
            }
        }
    }
    out.into()
}
