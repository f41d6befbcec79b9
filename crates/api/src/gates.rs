//! Fields behind feature gates that are off, and fields that nothing uses any more: dropped from what is written,
//! unless the stored object has them already.

use serde_json::{Map, Value};

/// A step of a path is a field; `[]` are all items of a list, `{}` all entries of a map.
type Way = &'static [&'static str];

const POD: &[Way] = &[
    &["schedulingGroup"],
    &["containers", "[]", "lifecycle", "stopSignal"],
    &["initContainers", "[]", "lifecycle", "stopSignal"],
    &["ephemeralContainers", "[]", "lifecycle", "stopSignal"],
    &["volumes", "[]", "projected", "sources", "[]", "clusterTrustBundle"],
    &["volumes", "[]", "projected", "sources", "[]", "podCertificate"],
];

/// Where a kind has its pod specification.
pub(crate) fn pod_spec(group: &str, kind: &str) -> Option<Way> {
    Some(match (group, kind) {
        ("", "Pod") => &["spec"],
        ("", "PodTemplate") => &["template", "spec"],
        ("", "ReplicationController") | ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet") | ("batch", "Job") => &["spec", "template", "spec"],
        ("batch", "CronJob") => &["spec", "jobTemplate", "spec", "template", "spec"],
        _ => return None,
    })
}

fn ways(group: &str, kind: &str) -> &'static [Way] {
    match (group, kind) {
        ("", "Pod") => &[&["status", "nodeAllocatableResourceClaimStatuses"]],
        ("", "Node") => &[&["spec", "configSource"], &["status", "config"]],
        ("", "ServiceAccount") => {
            &[&["secrets", "[]", "apiVersion"], &["secrets", "[]", "kind"], &["secrets", "[]", "namespace"], &["secrets", "[]", "fieldPath"], &["secrets", "[]", "uid"], &["secrets", "[]", "resourceVersion"]]
        }
        ("apps", "StatefulSet") => &[&["spec", "updateStrategy", "rollingUpdate", "maxUnavailable"]],
        ("coordination.k8s.io", "Lease") => &[&["spec", "strategy"], &["spec", "preferredHolder"]],
        ("storage.k8s.io", "CSIDriver") => &[&["spec", "preventPodSchedulingIfMissing"]],
        ("discovery.k8s.io", "EndpointSlice") => &[&["endpoints", "[]", "deprecatedTopology"]],
        ("resource.k8s.io", "ResourceSlice") => &[
            &["spec", "devices", "[]", "nodeAllocatableResourceMappings"],
            &["spec", "devices", "[]", "attributes", "{}", "bools"],
            &["spec", "devices", "[]", "attributes", "{}", "ints"],
            &["spec", "devices", "[]", "attributes", "{}", "strings"],
            &["spec", "devices", "[]", "attributes", "{}", "versions"],
        ],
        _ => &[],
    }
}

/// Drops from `new` what `old` does not have.
pub fn drop_disabled(group: &str, kind: &str, new: &mut Value, old: Option<&Value>) {
    ways(group, kind).iter().for_each(|way| unless_used(new, old, way));
    if let Some(spec) = pod_spec(group, kind) {
        let old = old.and_then(|o| spec.iter().try_fold(o, |v, k| v.get(k)));
        if let Some(spec) = spec.iter().try_fold(new, |v, k| v.get_mut(k)) {
            POD.iter().for_each(|way| unless_used(spec, old, way));
        }
    }
}

fn unless_used(new: &mut Value, old: Option<&Value>, way: Way) {
    if uses(new, way) && !old.is_some_and(|o| uses(o, way)) {
        remove(new, way);
    }
}

fn uses(v: &Value, way: &[&str]) -> bool {
    match way {
        [] => !v.is_null(),
        ["[]", rest @ ..] => v.as_array().is_some_and(|l| l.iter().any(|v| uses(v, rest))),
        ["{}", rest @ ..] => v.as_object().is_some_and(|m| m.values().any(|v| uses(v, rest))),
        [key, rest @ ..] => v.get(key).is_some_and(|v| uses(v, rest)),
    }
}

fn remove(v: &mut Value, way: &[&str]) {
    match (way, v) {
        (["[]", rest @ ..], Value::Array(list)) => list.iter_mut().for_each(|v| remove(v, rest)),
        (["{}", rest @ ..], Value::Object(map)) => map.values_mut().for_each(|v| remove(v, rest)),
        ([key], Value::Object(map)) => drop(Map::remove(map, *key)),
        ([key, rest @ ..], Value::Object(map)) => map.get_mut(*key).into_iter().for_each(|v| remove(v, rest)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dropped_unless_used() {
        let source = |name: &str| json!({"spec": {"template": {"spec": {"volumes": [{"name": "v", "projected": {"sources": [{name: {"path": "x"}}]}}]}}}});
        let mut new = source("podCertificate");
        drop_disabled("apps", "Deployment", &mut new, Some(&source("podCertificate")));
        assert_eq!(new, source("podCertificate"));
        drop_disabled("apps", "Deployment", &mut new, Some(&source("secret")));
        assert_eq!(new["spec"]["template"]["spec"]["volumes"][0]["projected"]["sources"], json!([{}]));
        let mut slice = json!({"spec": {"devices": [{"attributes": {"a": {"int": 1, "ints": [1]}}}]}});
        drop_disabled("resource.k8s.io", "ResourceSlice", &mut slice, None);
        assert_eq!(slice["spec"]["devices"][0]["attributes"], json!({"a": {"int": 1}}));
    }
}
