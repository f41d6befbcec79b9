//! Objects of many kinds, and all that a server has.

use serde_json::{Value, json};

use super::{Cluster, admin};

/// Paths to create at, in the namespace `a`, and what.
pub fn all() -> Vec<(&'static str, Value)> {
    let meta = json!({"name": "x", "labels": {"app": "x"}, "annotations": {"note": "ü"}});
    let template = json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
        "env": [{"name": "E", "value": ""}], "resources": {"requests": {"cpu": "0.5"}}, "livenessProbe": {"httpGet": {"path": "/", "port": "http"}}}]}});
    let selector = json!({"matchLabels": {"app": "x"}});
    vec![
        ("/api/v1/namespaces/a/configmaps", json!({"metadata": meta, "data": {"k": "v", "empty": ""}, "binaryData": {"b": "AAEC"}})),
        ("/api/v1/namespaces/a/secrets", json!({"metadata": meta, "stringData": {"k": "v"}})),
        ("/api/v1/namespaces/a/services", json!({"metadata": meta, "spec": {"selector": {"app": "x"}, "ports": [{"port": 80, "targetPort": "web"}]}})),
        ("/api/v1/namespaces/a/pods", json!({"metadata": meta, "spec": template["spec"]})),
        ("/apis/apps/v1/namespaces/a/deployments", json!({"metadata": meta, "spec": {"selector": selector, "template": template}})),
        ("/apis/batch/v1/namespaces/a/jobs", json!({"metadata": meta, "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}})),
        ("/apis/autoscaling/v1/namespaces/a/horizontalpodautoscalers",
            json!({"metadata": meta, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"}}})),
        ("/apis/events.k8s.io/v1/namespaces/a/events", json!({"metadata": meta, "eventTime": "2026-01-02T03:04:05.000006Z", "reportingController": "example.com/c",
            "reportingInstance": "i", "action": "A", "reason": "R", "type": "Normal", "regarding": {"kind": "Pod", "name": "x", "namespace": "a"}})),
        ("/apis/networking.k8s.io/v1/namespaces/a/ingresses", json!({"metadata": meta, "spec": {"defaultBackend": {"service": {"name": "x", "port": {"number": 80}}}}})),
        ("/apis/policy/v1/namespaces/a/poddisruptionbudgets", json!({"metadata": meta, "spec": {"minAvailable": "50%", "selector": selector}})),
        ("/apis/storage.k8s.io/v1/storageclasses", json!({"metadata": meta, "provisioner": "example.com/p", "parameters": {"a": "b"}})),
        ("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json!({"metadata": {"name": "xs.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "xs", "kind": "X"}, "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}})),
    ]
}

/// All lists that there are, by path; without the Leases by which servers say that they live.
pub async fn everything(cluster: &Cluster) -> Vec<(String, Value)> {
    let mut lists = Vec::new();
    for resource in api::resources::all().iter().filter(|r| r.has_verb("list") && !r.storage_prefix.is_empty()) {
        let root = if resource.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}/{}", resource.group, resource.version) };
        let path = format!("{root}/{}", resource.plural);
        let (code, mut list) = cluster.call(&admin(), "GET", &path, None).await;
        if code == 200 {
            list["metadata"] = Value::Null;
            let lives = |o: &Value| o.pointer("/metadata/labels/apiserver.kubernetes.io~1identity").is_some();
            list["items"].as_array_mut().unwrap().retain(|o| !lives(o));
            lists.push((path, list));
        }
    }
    lists
}

