//! The objects that are stored: pods as a deployment makes them, of about 3.3 KB once they are served.
use serde_json::{Value, json};

/// A pod as a client sends it.
pub fn pod(name: &str, node: &str) -> Value {
    let probe = |path: &str| {
        json!({"httpGet": {"path": path, "port": 8080, "scheme": "HTTP"}, "initialDelaySeconds": 5, "periodSeconds": 10,
            "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3})
    };
    json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "labels": {"app": "shop", "tier": "front", "pod-template-hash": "6d4cf56db6", "release": "stable"},
            "annotations": {"prometheus.io/scrape": "true"},
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "default",
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "server",
                "image": "registry.example.com/market/shop:v1.24.3",
                "imagePullPolicy": "IfNotPresent",
                "args": ["--listen=:8080", "--config=/etc/shop/config.yaml"],
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "env": [
                    {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
                    {"name": "LOG_LEVEL", "value": "info"},
                ],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "readinessProbe": probe("/ready"),
                "volumeMounts": [{"name": "config", "mountPath": "/etc/shop", "readOnly": true}],
            }],
            "volumes": [{"name": "config", "configMap": {"name": "shop-config", "defaultMode": 420}}],
        },
    })
}

/// A node as a kubelet registers it.
pub fn node(name: &str) -> Value {
    json!({
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            "topology.kubernetes.io/zone": "a"}},
        "status": {"capacity": {"cpu": "8", "memory": "32Gi", "pods": "110"}, "allocatable": {"cpu": "8", "memory": "31Gi", "pods": "110"}},
    })
}

/// The name of a pod.
pub fn name(i: usize) -> String {
    format!("shop-6d4cf56db6-{i:06}")
}
