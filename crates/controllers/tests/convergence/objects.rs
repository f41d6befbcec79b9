//! Objects that scenarios begin with.

use serde_json::{Value, json};

/// The labels of an application's pods, and the selector for them.
pub fn labels(app: &str) -> Value {
    json!({"app": app})
}

/// A template for pods of an application.
pub fn template(app: &str, image: &str) -> Value {
    json!({"metadata": {"labels": labels(app)}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

/// A workload of `apps/v1`. `spec` has what is its own.
pub fn workload(kind: &str, name: &str, spec: Value) -> Value {
    let mut all = json!({"selector": {"matchLabels": labels(name)}, "template": template(name, "a")});
    merge(&mut all, spec);
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": all})
}

/// A job.
pub fn job(name: &str, spec: Value) -> Value {
    let pod = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "a"}]});
    let mut all = json!({"template": {"spec": pod}});
    merge(&mut all, spec);
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": all})
}

/// A config map with owners.
pub fn map(name: &str, owners: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": owners}})
}

/// A reference to an owner.
pub fn owner(object: &Value, controls: bool) -> Value {
    let meta = &object["metadata"];
    json!({"apiVersion": object["apiVersion"], "kind": object["kind"], "name": meta["name"], "uid": meta["uid"],
        "controller": controls, "blockOwnerDeletion": true})
}

fn merge(into: &mut Value, from: Value) {
    if let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}
