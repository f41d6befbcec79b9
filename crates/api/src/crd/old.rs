//! Definitions in `v1beta1`: upstream's servers store them in that version still, and so does an etcd that they wrote.

use serde_json::{Map, Value, json};

/// The version they are stored in.
pub const API_VERSION: &str = "apiextensions.k8s.io/v1beta1";

/// What stood beside the versions and meant all of them, and its name within one.
const COMMON: [(&str, &str); 4] =
    [("subresources", "subresources"), ("validation", "schema"), ("additionalPrinterColumns", "additionalPrinterColumns"), ("selectableFields", "selectableFields")];

/// The same definition in `v1`.
pub fn from_v1beta1(mut definition: Value) -> Value {
    definition["apiVersion"] = "apiextensions.k8s.io/v1".into();
    if let Some(Value::Object(spec)) = definition.get_mut("spec") {
        versions(spec);
        if let Some(Value::Object(conversion)) = spec.get_mut("conversion") {
            webhook(conversion);
        }
        // There, nothing said means yes.
        match spec.remove("preserveUnknownFields") {
            Some(Value::Bool(false)) => {}
            _ => drop(spec.insert("preserveUnknownFields".into(), true.into())),
        }
    }
    definition
}

fn versions(spec: &mut Map<String, Value>) {
    let name = spec.remove("version").unwrap_or_default();
    let listed = spec.get("versions").and_then(Value::as_array).is_some_and(|v| !v.is_empty());
    if !listed && name.as_str().is_some_and(|n| !n.is_empty()) {
        spec.insert("versions".into(), json!([{"name": name, "served": true, "storage": true}]));
    }
    let common: Vec<_> = COMMON.iter().filter_map(|(old, new)| Some((*new, spec.remove(*old)?))).filter(|(_, v)| !v.is_null()).collect();
    let Some(Value::Array(versions)) = spec.get_mut("versions") else { return };
    for version in versions.iter_mut().filter_map(Value::as_object_mut) {
        for (name, value) in &common {
            version.insert((*name).into(), value.clone());
        }
        let Some(Value::Array(columns)) = version.get_mut("additionalPrinterColumns") else { continue };
        for column in columns.iter_mut().filter_map(Value::as_object_mut) {
            if let Some(path) = column.remove("JSONPath") {
                column.insert("jsonPath".into(), path);
            }
        }
    }
}

fn webhook(conversion: &mut Map<String, Value>) {
    let mut webhook = Map::new();
    for (old, new) in [("webhookClientConfig", "clientConfig"), ("conversionReviewVersions", "conversionReviewVersions")] {
        if let Some(value) = conversion.remove(old).filter(|v| !v.is_null()) {
            webhook.insert(new.into(), value);
        }
    }
    // Review versions alone are a default that means nothing without a webhook.
    if conversion.get("strategy").is_some_and(|s| s == "Webhook") || webhook.contains_key("clientConfig") {
        conversion.insert("webhook".into(), webhook.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What upstream stores for a definition that was created in `v1`, and for one of long ago.
    #[test]
    fn definitions_of_upstream_become_v1() {
        let stored = json!({"kind": "CustomResourceDefinition", "apiVersion": API_VERSION, "metadata": {"name": "xs.example.com"},
            "spec": {"group": "example.com", "version": "v1", "names": {"plural": "xs", "kind": "X"}, "scope": "Namespaced",
                "validation": {"openAPIV3Schema": {"type": "object"}}, "subresources": {"status": {}},
                "additionalPrinterColumns": [{"name": "A", "type": "string", "JSONPath": ".a"}],
                "versions": [{"name": "v1", "served": true, "storage": true}, {"name": "v2", "served": true, "storage": false}],
                "conversion": {"strategy": "Webhook", "webhookClientConfig": {"url": "https://x"}, "conversionReviewVersions": ["v1"]},
                "preserveUnknownFields": false},
            "status": {"storedVersions": ["v1"]}});
        let version = |name, storage| {
            json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object"}},
                "subresources": {"status": {}}, "additionalPrinterColumns": [{"name": "A", "type": "string", "jsonPath": ".a"}]})
        };
        assert_eq!(
            from_v1beta1(stored),
            json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": {"name": "xs.example.com"},
                "spec": {"group": "example.com", "names": {"plural": "xs", "kind": "X"}, "scope": "Namespaced", "versions": [version("v1", true), version("v2", false)],
                    "conversion": {"strategy": "Webhook", "webhook": {"clientConfig": {"url": "https://x"}, "conversionReviewVersions": ["v1"]}}},
                "status": {"storedVersions": ["v1"]}})
        );
        let old = json!({"apiVersion": API_VERSION, "spec": {"version": "v1alpha1", "conversion": {"strategy": "None", "conversionReviewVersions": ["v1beta1"]}}});
        assert_eq!(
            from_v1beta1(old)["spec"],
            json!({"versions": [{"name": "v1alpha1", "served": true, "storage": true}], "conversion": {"strategy": "None"}, "preserveUnknownFields": true})
        );
        // A version that has its own keeps it.
        let own = json!({"spec": {"versions": [{"name": "a", "schema": {"openAPIV3Schema": {}}}], "preserveUnknownFields": false}});
        assert_eq!(from_v1beta1(own)["spec"]["versions"][0]["schema"], json!({"openAPIV3Schema": {}}));
    }
}
