//! The small plug-ins that fill something in: taints of new nodes, tolerations, storage, ingress
//! and runtime classes.

use std::sync::Arc;

use apiserver::types::{Resource, Status};
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::{forbidden, is};
use crate::util::{RUNTIME_CLASSES, STORAGE_CLASSES, items, list, object, text};

/// New nodes take no pods until they are found to be ready.
pub(super) struct TaintNodesByCondition;

#[async_trait]
impl Admission for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attributes: &Attributes<'_>, node: &mut Value) -> Result<(), Status> {
        const KEY: &str = "node.kubernetes.io/not-ready";
        if is(attributes, "", "nodes") {
            let taints = list(object(node, "spec"), "taints");
            if !taints.iter().any(|t| text(t, "/key") == KEY && text(t, "/effect") == "NoSchedule") {
                taints.push(json!({"key": KEY, "effect": "NoSchedule"}));
            }
        }
        Ok(())
    }
}

/// Pods stay some time on a node that is not ready or not reachable: so many seconds, five minutes unless told.
pub(super) struct DefaultTolerationSeconds {
    pub not_ready: i64,
    pub unreachable: i64,
}

#[async_trait]
impl Admission for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn admit(&self, attributes: &Attributes<'_>, pod: &mut Value) -> Result<(), Status> {
        if !is(attributes, "", "pods") {
            return Ok(());
        }
        for (key, seconds) in [("node.kubernetes.io/not-ready", self.not_ready), ("node.kubernetes.io/unreachable", self.unreachable)] {
            let tolerated = items(pod, "/spec/tolerations").any(|t| {
                let of = text(t, "/key");
                (of.is_empty() || of == key) && matches!(text(t, "/effect"), "" | "NoExecute")
            });
            if !tolerated {
                list(object(pod, "spec"), "tolerations")
                    .push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}));
            }
        }
        Ok(())
    }
}

/// The newest object of a class kind whose annotation marks it as the default.
fn default_class(attributes: &Attributes<'_>, resource: &Resource, annotations: &[&str]) -> Option<Arc<Value>> {
    let marked = |class: &Value| {
        annotations.iter().any(|a| class["metadata"]["annotations"].get(a).is_some_and(|v| v == "true"))
    };
    let mut classes: Vec<Arc<Value>> =
        attributes.ctx.backend.reader.list(resource, None).into_iter().filter(|c| marked(c)).collect();
    classes.sort_by(|a, b| {
        let time = |c: &Value| text(c, "/metadata/creationTimestamp").to_owned();
        time(b).cmp(&time(a)).then_with(|| text(a, "/metadata/name").cmp(text(b, "/metadata/name")))
    });
    classes.into_iter().next()
}

/// Claims that name no storage class get the default one.
pub(super) struct DefaultStorageClass;

#[async_trait]
impl Admission for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attributes: &Attributes<'_>, claim: &mut Value) -> Result<(), Status> {
        if !is(attributes, "", "persistentvolumeclaims")
            || claim.pointer("/spec/storageClassName").is_some()
            || claim.pointer("/metadata/annotations/volume.beta.kubernetes.io~1storage-class").is_some()
        {
            return Ok(());
        }
        let marks = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
        if let Some(class) = default_class(attributes, &STORAGE_CLASSES, &marks) {
            object(claim, "spec").insert("storageClassName".into(), class["metadata"]["name"].clone());
        }
        Ok(())
    }
}

/// Ingresses that name no class get the default one.
pub(super) struct DefaultIngressClass;

#[async_trait]
impl Admission for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attributes: &Attributes<'_>, ingress: &mut Value) -> Result<(), Status> {
        if !is(attributes, "networking.k8s.io", "ingresses")
            || ingress.pointer("/spec/ingressClassName").is_some()
            || ingress.pointer("/metadata/annotations/kubernetes.io~1ingress.class").is_some()
        {
            return Ok(());
        }
        let Some(classes) = api::resources::find("networking.k8s.io", "v1", "ingressclasses") else { return Ok(()) };
        if let Some(class) = default_class(attributes, classes, &["ingressclass.kubernetes.io/is-default-class"]) {
            object(ingress, "spec").insert("ingressClassName".into(), class["metadata"]["name"].clone());
        }
        Ok(())
    }
}

/// Pods of a runtime class get its overhead and its scheduling constraints.
pub(super) struct RuntimeClass;

#[async_trait]
impl Admission for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attributes: &Attributes<'_>, pod: &mut Value) -> Result<(), Status> {
        let name = text(pod, "/spec/runtimeClassName").to_owned();
        if !is(attributes, "", "pods") || name.is_empty() {
            return Ok(());
        }
        let class = attributes.ctx.backend.reader.get(&RUNTIME_CLASSES, "", &name).ok_or_else(|| {
            forbidden(attributes, Some(pod), format!("pod rejected: RuntimeClass {name:?} not found"))
        })?;
        if let Some(overhead) = class.pointer("/overhead/podFixed") {
            if pod.pointer("/spec/overhead").is_some_and(|o| o != overhead) {
                let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
                return Err(forbidden(attributes, Some(pod), why));
            }
            pod["spec"]["overhead"] = overhead.clone();
        }
        for (key, value) in class.pointer("/scheduling/nodeSelector").and_then(Value::as_object).into_iter().flatten() {
            if pod["spec"]["nodeSelector"].get(key).is_some_and(|v| v != value) {
                let (of_class, of_pod) = (value.as_str().unwrap_or(""), pod["spec"]["nodeSelector"][key].as_str().unwrap_or(""));
                let why = format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {of_class}; pod.spec.nodeSelector[{key}] = {of_pod}"
                );
                return Err(forbidden(attributes, Some(pod), why));
            }
            pod["spec"]["nodeSelector"][key] = value.clone();
        }
        let extra: Vec<Value> = items(&class, "/scheduling/tolerations").cloned().collect();
        let tolerations = list(object(pod, "spec"), "tolerations");
        for toleration in extra {
            if !tolerations.contains(&toleration) {
                tolerations.push(toleration);
            }
        }
        Ok(())
    }
}
