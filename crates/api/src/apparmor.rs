//! AppArmor profiles of containers in a pod's annotations, where clients put them before 1.30 (KEP-24).

use serde_json::{Map, Value, json};

use crate::field::Path;

/// What a container's annotation begins with; its name follows.
pub const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The longest path of a profile, in bytes.
const PATH_MAX: usize = 4095;

/// The profile that an annotation names.
pub fn profile(annotation: &str) -> Option<Value> {
    match annotation {
        "unconfined" => Some(json!({"type": "Unconfined"})),
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        _ => annotation.strip_prefix("localhost/").filter(|p| !p.is_empty()).map(|p| json!({"type": "Localhost", "localhostProfile": p})),
    }
}

/// What is warned of an annotation that has no field.
pub fn deprecated(annotation: &Path) -> String {
    format!("{annotation}: deprecated since v1.30; use the \"appArmorProfile\" field instead")
}

/// Gives the containers of a new pod the profiles that its annotations name; what there is to warn of.
pub fn from_annotations(pod: &mut Value) -> Vec<String> {
    let mut warnings = Vec::new();
    let named = |annotations: &Map<String, Value>| annotations.keys().any(|k| k.starts_with(ANNOTATION));
    if !pod["metadata"]["annotations"].as_object().is_some_and(named) || pod["spec"]["os"]["name"] == "windows" {
        return warnings;
    }
    let annotations = pod["metadata"]["annotations"].clone();
    let of_pod = pod["spec"]["securityContext"]["appArmorProfile"].clone();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let key = format!("{ANNOTATION}{}", container["name"].as_str().unwrap_or_default());
            let Some(annotation) = annotations[&key].as_str() else { continue };
            if !container["securityContext"]["appArmorProfile"].is_null() {
                continue;
            }
            let named = profile(annotation).filter(|p| p["localhostProfile"].as_str().is_none_or(|p| p.trim() == p && p.len() <= PATH_MAX));
            if named.as_ref() == Some(&of_pod) {
                continue;
            }
            warnings.push(deprecated(&Path::new("metadata.annotations").key(&key)));
            if let (Some(named), Some(container)) = (named, container.as_object_mut()) {
                let context = container.entry("securityContext").or_insert_with(|| json!({}));
                if context.is_null() {
                    *context = json!({});
                }
                context["appArmorProfile"] = named;
            }
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_become_fields() {
        let with = |context: Value, annotation: &str| {
            let annotations = json!({format!("{ANNOTATION}c"): annotation});
            let mut pod = json!({"metadata": {"annotations": annotations}, "spec": {"securityContext": context, "containers": [{"name": "c"}, {"name": "other"}]}});
            let warnings = from_annotations(&mut pod).len();
            assert!(pod["spec"]["containers"][1].get("securityContext").is_none());
            (pod["spec"]["containers"][0]["securityContext"]["appArmorProfile"].clone(), warnings)
        };
        assert_eq!(with(Value::Null, "unconfined"), (json!({"type": "Unconfined"}), 1));
        assert_eq!(with(Value::Null, "localhost/x"), (json!({"type": "Localhost", "localhostProfile": "x"}), 1));
        assert_eq!(with(Value::Null, "localhost/ x"), (Value::Null, 1));
        assert_eq!(with(Value::Null, "bogus"), (Value::Null, 1));
        // what the pod says of all its containers needs no saying again
        assert_eq!(with(json!({"appArmorProfile": {"type": "RuntimeDefault"}}), "runtime/default"), (Value::Null, 0));
        assert_eq!(with(json!({"appArmorProfile": {"type": "RuntimeDefault"}}), "unconfined"), (json!({"type": "Unconfined"}), 1));
    }
}
