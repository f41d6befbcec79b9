//! NodeRestriction: a kubelet writes its own node, lease and mirror pods, and the status of the
//! pods bound to it; nothing of other nodes.

use std::collections::BTreeSet;

use api::status;
use apiserver::types::Status;
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use serde_json::Value;

use super::forbidden;
use crate::authz::node::node_name;
use crate::podref::{Kind, is_mirror, references};
use crate::util::{NODES, PODS, flag, items, map, quote, text};

pub(super) struct NodeRestriction;

#[async_trait]
impl Admission for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    async fn admit(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        let ctx = attributes.ctx;
        let Some(node) = node_name(&ctx.user) else { return Ok(()) };
        if node.is_empty() {
            return Err(forbidden(attributes, None, format!("could not determine node from user {}", quote(&ctx.user.name))));
        }
        let refuse = |why: String| Err(forbidden(attributes, Some(object), why));
        let check = match (ctx.resource.group, ctx.resource.plural, ctx.subresource.as_str()) {
            ("", "pods", "") => pod(attributes, node, object)?,
            ("", "pods", "status") => pod_status(attributes, node, object),
            ("", "pods", "eviction") => bound_pod(attributes, node, "evict")?,
            ("", "pods", other) => Err(format!("unexpected pod subresource {}, only 'status' and 'eviction' are allowed", quote(other))),
            ("", "nodes", _) => node_object(attributes, node, object),
            ("", "persistentvolumeclaims", "status") => Ok(()),
            ("", "persistentvolumeclaims", _) => Err("may only update PVC status".into()),
            ("", "serviceaccounts", "token") if attributes.operation == Operation::Create => ctx.settled(|| token(attributes, node, object)).await?,
            ("coordination.k8s.io", "leases", _) => lease(attributes, node, object),
            ("storage.k8s.io", "csinodes", _) => own_name(attributes, object, node, "CSINode"),
            ("resource.k8s.io", "resourceslices", _) if attributes.operation == Operation::Create => {
                if text(object, "/spec/nodeName") == node {
                    Ok(())
                } else {
                    Err("can only create ResourceSlice with the same NodeName as the requesting node".into())
                }
            }
            ("certificates.k8s.io", "certificatesigningrequests", "") if attributes.operation == Operation::Create => csr(node, object),
            _ => Ok(()),
        };
        match check {
            Ok(()) => Ok(()),
            Err(why) => refuse(why),
        }
    }
}

type Check = Result<(), String>;

fn pod(attributes: &Attributes<'_>, node: &str, object: &Value) -> Result<Check, Status> {
    match attributes.operation {
        Operation::Create => mirror_pod(attributes, node, object),
        Operation::Delete => bound_pod(attributes, node, "delete"),
        _ => Ok(Err(format!("unexpected operation \"UPDATE\", node {} can only create and delete mirror pods", quote(node)))),
    }
}

/// The pod in the request's path must be bound to the node.
fn bound_pod(attributes: &Attributes<'_>, node: &str, action: &str) -> Result<Check, Status> {
    let ctx = attributes.ctx;
    let Some(pod) = ctx.backend.reader.get(&PODS, &ctx.namespace, &ctx.name) else {
        return Err(status::not_found("", "pods", &ctx.name));
    };
    if text(&pod, "/spec/nodeName") == node {
        return Ok(Ok(()));
    }
    let node = if action == "evict" { node.to_owned() } else { quote(node) };
    Ok(Err(format!("node {node} can only {action} pods with spec.nodeName set to itself")))
}

fn mirror_pod(attributes: &Attributes<'_>, node: &str, pod: &Value) -> Result<Check, Status> {
    let quoted = quote(node);
    if !is_mirror(pod) {
        return Ok(Err(format!("pod does not have \"kubernetes.io/config.mirror\" annotation, node {quoted} can only create mirror pods")));
    }
    if text(pod, "/spec/nodeName") != node {
        return Ok(Err(format!("node {quoted} can only create pods with spec.nodeName set to itself")));
    }
    let owners: Vec<&Value> = items(pod, "/metadata/ownerReferences").collect();
    let [owner] = owners.as_slice() else {
        let what = if owners.is_empty() { "an owner reference" } else { "a single owner reference" };
        return Ok(Err(format!("node {quoted} can only create pods with {what} set to itself")));
    };
    if (text(owner, "/apiVersion"), text(owner, "/kind"), text(owner, "/name")) != ("v1", "Node", node) {
        return Ok(Err(format!("node {quoted} can only create pods with an owner reference set to itself")));
    }
    if !flag(owner, "/controller") {
        return Ok(Err(format!("node {quoted} can only create pods with a controller owner reference set to itself")));
    }
    if flag(owner, "/blockOwnerDeletion") {
        return Ok(Err(format!("node {quoted} must not set blockOwnerDeletion on an owner reference")));
    }
    let Some(object) = attributes.ctx.backend.reader.get(&NODES, "", node) else {
        return Err(status::not_found("", "nodes", node));
    };
    let (expected, got) = (text(owner, "/uid"), text(&object, "/metadata/uid"));
    if expected != got {
        return Ok(Err(format!("node {node} UID mismatch: expected {expected} got {got}")));
    }
    match api_reference(pod) {
        Some(what) => Ok(Err(format!("node {quoted} can not create pods that reference {what}"))),
        None => Ok(Ok(())),
    }
}

/// What of the API a pod refers to, if anything. A kubelet must not widen what it may read by a pod of its own making.
fn api_reference(pod: &Value) -> Option<&'static str> {
    let refers = |kind| references(pod).iter().any(|(k, _)| *k == kind);
    let volumes = |field: &str| items(pod, "/spec/volumes").any(|v| v.get(field).is_some());
    let projected = |field: &str| items(pod, "/spec/volumes").flat_map(|v| items(v, "/projected/sources")).any(|s| s.get(field).is_some());
    let found = [
        (refers(Kind::ServiceAccount), "serviceaccounts"),
        (refers(Kind::Secret) || volumes("secret") || volumes("azureFile") || projected("secret"), "secrets"),
        (refers(Kind::ConfigMap) || volumes("configMap") || projected("configMap"), "configmaps"),
        (items(pod, "/spec/resourceClaims").next().is_some(), "resourceclaims"),
        (volumes("csi"), "csidrivers (via CSI volumes)"),
        (volumes("glusterfs"), "endpoints (via glusterFS volumes)"),
        (volumes("persistentVolumeClaim"), "persistentvolumeclaims"),
        (volumes("ephemeral"), "persistentvolumeclaims (via ephemeral volumes)"),
        (projected("serviceAccountToken"), "serviceaccounts (via projected volumes)"),
        (projected("clusterTrustBundle"), "clustertrustbundles"),
        (projected("podCertificate"), "podcertificates"),
    ];
    found.iter().find(|(refers, _)| *refers).map(|(_, what)| *what)
}

fn pod_status(attributes: &Attributes<'_>, node: &str, new: &Value) -> Check {
    let Some(old) = attributes.old else { return Ok(()) };
    let node_quoted = quote(node);
    if text(old, "/spec/nodeName") != node {
        return Err(format!("node {node_quoted} can only update pod status for pods with spec.nodeName set to itself"));
    }
    if map(old, "/metadata/labels").cloned().unwrap_or_default() != map(new, "/metadata/labels").cloned().unwrap_or_default() {
        return Err(format!("node {node_quoted} cannot update labels through pod status"));
    }
    if old.pointer("/status/resourceClaimStatuses") != new.pointer("/status/resourceClaimStatuses") {
        return Err(format!("node {node_quoted} cannot update resource claim statues"));
    }
    if old.pointer("/status/extendedResourceClaimStatus") != new.pointer("/status/extendedResourceClaimStatus") {
        return Err(format!("node {node_quoted} cannot update extended resource claim status"));
    }
    Ok(())
}

fn node_object(attributes: &Attributes<'_>, node: &str, new: &Value) -> Check {
    let ctx = attributes.ctx;
    let name = if ctx.name.is_empty() { text(new, "/metadata/name") } else { &ctx.name };
    let quoted = quote(node);
    if name != node {
        return Err(format!("node {quoted} is not allowed to modify node {}", quote(name)));
    }
    match attributes.operation {
        Operation::Create => {
            if new.pointer("/spec/configSource").is_some() {
                return Err(format!("node {quoted} is not allowed to create pods with a non-nil configSource"));
            }
            let bad = forbidden_labels(new, &Value::Null);
            if !bad.is_empty() {
                return Err(format!("node {quoted} is not allowed to set the following labels: {}", bad.join(", ")));
            }
        }
        Operation::Update => {
            let Some(old) = attributes.old else { return Ok(()) };
            if new.pointer("/spec/configSource").is_some_and(|c| Some(c) != old.pointer("/spec/configSource")) {
                return Err(format!("node {quoted} is not allowed to update configSource to a new non-nil configSource"));
            }
            if !items(new, "/spec/taints").eq(items(old, "/spec/taints")) {
                return Err(format!("node {quoted} is not allowed to modify taints"));
            }
            if !items(new, "/metadata/ownerReferences").eq(items(old, "/metadata/ownerReferences")) {
                return Err(format!("node {quoted} is not allowed to modify ownerReferences"));
            }
            let bad = forbidden_labels(new, old);
            if !bad.is_empty() {
                return Err(format!("is not allowed to modify labels: {}", bad.join(", ")));
            }
        }
        _ => {}
    }
    Ok(())
}

/// Labels of the system's domains a kubelet sets about itself.
const KUBELET_LABELS: [&str; 10] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "node.kubernetes.io/windows-build",
];

fn forbidden_labels(new: &Value, old: &Value) -> Vec<String> {
    let (new, old) = (map(new, "/metadata/labels"), map(old, "/metadata/labels"));
    let keys: BTreeSet<&String> = new.into_iter().chain(old).flat_map(|m| m.keys()).collect();
    let changed = |k: &&&String| new.and_then(|m| m.get(**k)) != old.and_then(|m| m.get(**k));
    keys.iter().filter(changed).filter(|k| !allowed_label(k)).map(|k| (**k).clone()).collect()
}

fn allowed_label(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return true };
    let within = |of: &str| domain == of || domain.ends_with(&format!(".{of}"));
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    if !within("kubernetes.io") && !within("k8s.io") {
        return true;
    }
    KUBELET_LABELS.contains(&key)
        || matches!(key, "beta.kubernetes.io/os" | "beta.kubernetes.io/arch")
        || within("kubelet.kubernetes.io")
        || within("node.kubernetes.io")
}

fn token(attributes: &Attributes<'_>, node: &str, request: &Value) -> Result<Check, Status> {
    let reference = request.pointer("/spec/boundObjectRef");
    let field = |key: &str| reference.map_or("", |r| text(r, key));
    if (field("/apiVersion"), field("/kind")) != ("v1", "Pod") || field("/name").is_empty() {
        return Ok(Err("node requested token not bound to a pod".into()));
    }
    if field("/uid").is_empty() {
        return Ok(Err("node requested token with a pod binding without a uid".into()));
    }
    let ctx = attributes.ctx;
    let Some(pod) = ctx.backend.reader.get(&PODS, &ctx.namespace, field("/name")) else {
        return Err(status::not_found("", "pods", field("/name")));
    };
    if field("/uid") != text(&pod, "/metadata/uid") {
        return Ok(Err(format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            field("/uid")
        )));
    }
    if text(&pod, "/spec/nodeName") != node {
        return Ok(Err("node requested token bound to a pod scheduled on a different node".into()));
    }
    let audiences: Vec<&Value> = items(request, "/spec/audiences").collect();
    let wanted = match audiences.as_slice() {
        [] => "",
        [one] => one.as_str().unwrap_or(""),
        _ => return Ok(Err("node may only request 0 or 1 audiences".into())),
    };
    let in_spec = items(&pod, "/spec/volumes").any(|v| {
        v.get("csi").is_some()
            || v.get("persistentVolumeClaim").is_some()
            || v.get("ephemeral").is_some()
            || items(v, "/projected/sources").any(|s| s.get("serviceAccountToken").is_some_and(|t| text(t, "/audience") == wanted))
    });
    if in_spec {
        return Ok(Ok(()));
    }
    let question = apiserver::AuthzAttributes {
        user: ctx.user.clone(),
        verb: "request-serviceaccounts-token-audience".into(),
        resource_request: true,
        namespace: ctx.namespace.clone(),
        api_version: "v1".into(),
        resource: wanted.to_owned(),
        name: ctx.name.clone(),
        ..Default::default()
    };
    if ctx.authorize(&question).0 == apiserver::Decision::Allow {
        return Ok(Ok(()));
    }
    Ok(Err(format!(
        "audience {} not found in pod spec volume, {} is not authorized to request tokens for this audience",
        quote(wanted),
        ctx.user.name
    )))
}

fn lease(attributes: &Attributes<'_>, node: &str, object: &Value) -> Check {
    if attributes.ctx.namespace != "kube-node-lease" {
        return Err("can only access leases in the \"kube-node-lease\" system namespace".into());
    }
    own_name(attributes, object, node, "node lease")
}

fn own_name(attributes: &Attributes<'_>, object: &Value, node: &str, what: &str) -> Check {
    let name = match attributes.operation {
        Operation::Create => text(object, "/metadata/name"),
        _ => &attributes.ctx.name,
    };
    if name == node { Ok(()) } else { Err(format!("can only access {what} with the same name as the requesting node")) }
}

fn csr(node: &str, request: &Value) -> Check {
    use base64::{Engine, engine::general_purpose::STANDARD};
    if !matches!(text(request, "/spec/signerName"), "kubernetes.io/kubelet-serving" | "kubernetes.io/kube-apiserver-client-kubelet") {
        return Ok(());
    }
    let pem = STANDARD.decode(text(request, "/spec/request")).unwrap_or_default();
    let csr = pki::Csr::from_pem(&String::from_utf8_lossy(&pem)).map_err(|e| format!("unable to parse csr: {e}"))?;
    if csr.cn != format!("system:node:{node}") {
        return Err(format!(
            "can only create a node CSR with CN={}",
            quote(&format!("system:node:{node}"))
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels() {
        for (label, fine) in [
            ("kubernetes.io/hostname", true),
            ("example.com/x", true),
            ("plain", true),
            ("node.kubernetes.io/anything", true),
            ("node-role.kubernetes.io/control-plane", false),
            ("node-restriction.kubernetes.io/x", false),
        ] {
            assert_eq!(allowed_label(label), fine, "{label}");
        }
        let old = json!({"metadata": {"labels": {"node-role.kubernetes.io/worker": ""}}});
        assert!(forbidden_labels(&old, &old).is_empty(), "what does not change is fine");
    }

    #[test]
    fn a_mirror_pod_refers_to_nothing() {
        let volume = |source: Value| {
            let mut volume = json!({"name": "v"});
            volume.as_object_mut().expect("an object").extend(source.as_object().expect("an object").clone());
            json!({"spec": {"volumes": [volume]}})
        };
        for (pod, what) in [
            (json!({"spec": {"containers": [{"name": "c", "image": "i"}]}}), None),
            (volume(json!({"hostPath": {"path": "/etc"}})), None),
            (volume(json!({"projected": {"sources": [{"downwardAPI": {}}]}})), None),
            (volume(json!({"secret": {"secretName": "s"}})), Some("secrets")),
            (volume(json!({"persistentVolumeClaim": {"claimName": "c"}})), Some("persistentvolumeclaims")),
            (volume(json!({"csi": {"driver": "d"}})), Some("csidrivers (via CSI volumes)")),
            (volume(json!({"projected": {"sources": [{"clusterTrustBundle": {"path": "p"}}]}})), Some("clustertrustbundles")),
            (volume(json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}})), Some("serviceaccounts (via projected volumes)")),
            // A claim that does not exist yet is one all the same: its controller would make it.
            (json!({"spec": {"resourceClaims": [{"name": "r", "resourceClaimTemplateName": "t"}]}}), Some("resourceclaims")),
        ] {
            assert_eq!(api_reference(&pod), what, "{pod}");
        }
    }
}
