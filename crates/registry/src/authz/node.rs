//! The Node authorizer: a kubelet reads only what the pods of its node refer to, and writes only
//! its own objects (what it writes is looked at again by the NodeRestriction admission plug-in).
//!
//! There is no standing graph. The pod that gave a node access to an object is remembered as a
//! hint and checked again by one read; without a good hint the namespace's pods are searched.

use std::collections::HashMap;
use std::sync::Arc;

use apiserver::{Authorizer, AuthzAttributes, Decision, Reader, Rules, UserInfo};
use parking_lot::Mutex;
use serde_json::Value;

use super::rules::Rule;
use crate::podref::{Kind, is_mirror, references};
use crate::util::{PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, PODS, VOLUME_ATTACHMENTS, text};

/// The name of the node that a user is: `Some("")` for a node whose name cannot be told.
pub(crate) fn node_name(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix("system:node:")?;
    user.in_group("system:nodes").then_some(name)
}

type Hint = (String, Kind, String, String);

/// The authorizer.
pub(crate) struct NodeAuthorizer {
    reader: Arc<dyn Reader>,
    rules: Vec<Rule>,
    hints: Mutex<HashMap<Hint, String>>,
}

impl NodeAuthorizer {
    /// `rules` are those of the cluster role `system:node`, for what is not subdivided.
    pub fn new(reader: Arc<dyn Reader>, rules: Vec<Rule>) -> Self {
        Self { reader, rules, hints: Mutex::default() }
    }

    fn pod_refers(pod: &Value, node: &str, kind: Kind, name: &str) -> bool {
        text(pod, "/spec/nodeName") == node
            && !is_mirror(pod)
            && references(pod).iter().any(|(k, n)| *k == kind && n == name)
    }

    /// Whether a pod of the node refers to the object.
    fn related(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let key = (node.to_owned(), kind, namespace.to_owned(), name.to_owned());
        let hint = self.hints.lock().get(&key).cloned();
        if let Some(pod) = hint.and_then(|pod| self.reader.get(&PODS, namespace, &pod))
            && Self::pod_refers(&pod, node, kind, name)
        {
            return true;
        }
        let mut related = false;
        let pods = self.reader.list(&PODS, Some(namespace));
        let mut hints = self.hints.lock();
        // A bound on memory only: forgotten hints cost a search.
        if hints.len() > 100_000 {
            hints.clear();
        }
        hints.remove(&key);
        for pod in pods.iter().filter(|p| text(p, "/spec/nodeName") == node && !is_mirror(p)) {
            for (k, n) in references(pod) {
                related |= k == kind && n == name;
                hints.insert((node.to_owned(), k, namespace.to_owned(), n), text(pod, "/metadata/name").to_owned());
            }
        }
        related || (kind == Kind::Secret && self.volume_secret(node, namespace, name))
    }

    /// A secret that a persistent volume in use on the node refers to.
    fn volume_secret(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.reader.list(&PERSISTENT_VOLUMES, None).iter().any(|volume| {
            let Some(spec) = volume.get("spec").and_then(Value::as_object) else { return false };
            let claim_namespace = text(volume, "/spec/claimRef/namespace");
            let refers = spec.values().filter(|v| v.is_object()).any(|source| {
                ["secretRef", "nodePublishSecretRef", "nodeStageSecretRef", "controllerPublishSecretRef", "nodeExpandSecretRef"]
                    .iter()
                    .filter_map(|key| source.get(key))
                    .any(|r| {
                        let of = match text(r, "/namespace") {
                            "" => claim_namespace,
                            of => of,
                        };
                        text(r, "/name") == name && of == namespace
                    })
            });
            refers && self.related(node, Kind::Claim, claim_namespace, text(volume, "/spec/claimRef/name"))
        })
    }

    fn volume(&self, node: &str, name: &str) -> bool {
        let Some(volume) = self.reader.get(&PERSISTENT_VOLUMES, "", name) else { return false };
        let (namespace, claim) = (text(&volume, "/spec/claimRef/namespace"), text(&volume, "/spec/claimRef/name"));
        let bound = self
            .reader
            .get(&PERSISTENT_VOLUME_CLAIMS, namespace, claim)
            .is_some_and(|c| ["", name].contains(&text(&c, "/spec/volumeName")));
        bound && self.related(node, Kind::Claim, namespace, claim)
    }

    fn decide(&self, node: &str, a: &AuthzAttributes) -> Result<(), String> {
        let yes = |ok: bool| {
            if ok { Ok(()) } else { Err(format!("no relationship found between node '{node}' and this object")) }
        };
        let named = |ok: &dyn Fn() -> bool| {
            if a.name.is_empty() { Err("No Object name found".to_owned()) } else { yes(ok()) }
        };
        let related = |kind| named(&|| self.related(node, kind, &a.namespace, &a.name));
        let read = |kind| {
            if !matches!(a.verb.as_str(), "get" | "list" | "watch") {
                Err("can only read resources of this type".to_owned())
            } else if !a.subresource.is_empty() {
                Err("cannot read subresource".to_owned())
            } else if a.namespace.is_empty() {
                Err("can only read namespaced object of this type".to_owned())
            } else {
                related(kind)
            }
        };
        let get = |ok: &dyn Fn() -> bool| {
            if a.verb != "get" {
                Err("can only get individual resources of this type".to_owned())
            } else if !a.subresource.is_empty() {
                Err("cannot get subresource".to_owned())
            } else {
                named(ok)
            }
        };
        // A mirror pod too, whose status the kubelet reports; only what it refers to gives no access.
        let own_pod = || self.reader.get(&PODS, &a.namespace, &a.name).is_some_and(|p| text(&p, "/spec/nodeName") == node);
        match (a.api_group.as_str(), a.resource.as_str()) {
            ("", "secrets") => read(Kind::Secret),
            ("", "configmaps") => read(Kind::ConfigMap),
            ("", "persistentvolumeclaims") if a.subresource == "status" => match a.verb.as_str() {
                "update" | "patch" => related(Kind::Claim),
                _ => Err("can only get/update/patch this type".into()),
            },
            ("", "persistentvolumeclaims") => get(&|| self.related(node, Kind::Claim, &a.namespace, &a.name)),
            ("", "persistentvolumes") => get(&|| self.volume(node, &a.name)),
            ("resource.k8s.io", "resourceclaims") => get(&|| self.related(node, Kind::ResourceClaim, &a.namespace, &a.name)),
            ("storage.k8s.io", "volumeattachments") => get(&|| {
                self.reader.get(&VOLUME_ATTACHMENTS, "", &a.name).is_some_and(|v| text(&v, "/spec/nodeName") == node)
            }),
            ("", "serviceaccounts") if a.verb == "get" && a.subresource.is_empty() => read(Kind::ServiceAccount),
            ("", "serviceaccounts") => {
                if a.verb != "create" || a.name.is_empty() {
                    Err("can only create tokens for individual service accounts".into())
                } else if a.subresource != "token" {
                    Err("can only create token subresource of serviceaccount".into())
                } else {
                    related(Kind::ServiceAccount)
                }
            }
            ("coordination.k8s.io", "leases") => {
                if !matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
                    Err("can only get, create, update, patch, or delete a node lease".into())
                } else if a.namespace != "kube-node-lease" {
                    Err("can only access leases in the \"kube-node-lease\" system namespace".into())
                } else if a.verb != "create" && a.name != node {
                    Err("can only access node lease with the same name as the requesting node".into())
                } else {
                    Ok(())
                }
            }
            ("storage.k8s.io", "csinodes") => {
                if !matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
                    Err("can only get, create, update, patch, or delete a CSINode".into())
                } else if !a.subresource.is_empty() {
                    Err("cannot authorize CSINode subresources".into())
                } else if a.verb != "create" && a.name != node {
                    Err("can only access CSINode with the same name as the requesting node".into())
                } else {
                    Ok(())
                }
            }
            ("resource.k8s.io", "resourceslices") => match a.verb.as_str() {
                _ if !a.subresource.is_empty() => Err("cannot authorize ResourceSlice subresources".into()),
                "create" => Ok(()),
                "watch" | "list" | "deletecollection" if selects(&a.field_selector, "spec.nodeName", node) => Ok(()),
                "watch" | "list" | "deletecollection" => {
                    Err("can only list/watch/deletecollection resourceslices with nodeName field selector".into())
                }
                _ => yes(self.own_slice(node, &a.name)),
            },
            ("", "nodes") => match (a.subresource.as_str(), a.verb.as_str()) {
                ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
                ("", "get" | "list" | "watch") => match a.name.as_str() {
                    name if name == node => Ok(()),
                    "" => Err(format!("node '{node}' cannot read all nodes, only its own Node object")),
                    name => Err(format!("node '{node}' cannot read '{name}', only its own Node object")),
                },
                _ => Err(String::new()),
            },
            ("", "pods") => match (a.subresource.as_str(), a.verb.as_str()) {
                ("", "get") => get(&own_pod),
                ("", "list" | "watch") => {
                    if selects(&a.field_selector, "spec.nodeName", node) {
                        Ok(())
                    } else if !a.name.is_empty() {
                        yes(own_pod())
                    } else {
                        Err("can only list/watch pods with spec.nodeName field selector".into())
                    }
                }
                ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
                _ => Err(String::new()),
            },
            _ if self.rules.iter().any(|r| r.allows(a)) => Ok(()),
            _ => Err(String::new()),
        }
    }

    fn own_slice(&self, node: &str, name: &str) -> bool {
        api::resources::find("resource.k8s.io", "v1", "resourceslices")
            .and_then(|r| self.reader.get(r, "", name))
            .is_some_and(|s| text(&s, "/spec/nodeName") == node)
    }
}

/// Whether a raw field selector demands `field` = `value`.
fn selects(selector: &str, field: &str, value: &str) -> bool {
    selector.split(',').any(|term| {
        term.split_once('=').is_some_and(|(f, v)| f == field && v.strip_prefix('=').unwrap_or(v) == value)
    })
}

impl Authorizer for NodeAuthorizer {
    fn authorize(&self, attributes: &AuthzAttributes) -> (Decision, String) {
        let Some(node) = node_name(&attributes.user) else { return (Decision::NoOpinion, String::new()) };
        if node.is_empty() {
            return (Decision::NoOpinion, format!("unknown node for user {:?}", attributes.user.name));
        }
        if !attributes.resource_request {
            let allowed = self.rules.iter().any(|r| r.allows(attributes));
            return (if allowed { Decision::Allow } else { Decision::NoOpinion }, String::new());
        }
        match self.decide(node, attributes) {
            Ok(()) => (Decision::Allow, String::new()),
            Err(reason) => (Decision::NoOpinion, reason),
        }
    }

    fn rules_for(&self, user: &UserInfo, _namespace: &str) -> Rules {
        match node_name(user) {
            Some(_) => Rules {
                incomplete: true,
                evaluation_error: "node authorizer does not support user rule resolution".into(),
                ..Rules::default()
            },
            None => Rules::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Objects;
    use serde_json::json;

    fn asks(verb: &str, namespace: &str, resource: &str, name: &str) -> AuthzAttributes {
        AuthzAttributes {
            user: UserInfo::new("system:node:n1", &["system:nodes"]),
            verb: verb.into(),
            resource_request: true,
            namespace: namespace.into(),
            resource: resource.into(),
            name: name.into(),
            ..Default::default()
        }
    }

    #[test]
    fn reads_what_its_pods_use() {
        let objects = Objects::new();
        objects.put(&PODS, json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"nodeName": "n1", "serviceAccountName": "default",
            "volumes": [{"name": "s", "secret": {"secretName": "mine"}}]}}));
        objects.put(&PODS, json!({"metadata": {"name": "q", "namespace": "a"}, "spec": {"nodeName": "n2",
            "volumes": [{"name": "s", "secret": {"secretName": "other"}}]}}));
        let node = NodeAuthorizer::new(objects.clone(), Vec::new());
        let allowed = |a: AuthzAttributes| node.authorize(&a).0 == Decision::Allow;
        assert!(allowed(asks("get", "a", "secrets", "mine")));
        assert!(allowed(asks("get", "a", "secrets", "mine")), "by hint");
        let (_, reason) = node.authorize(&asks("get", "a", "secrets", "other"));
        assert_eq!(reason, "no relationship found between node 'n1' and this object");
        assert!(!allowed(asks("list", "a", "secrets", "")));
        assert!(allowed(AuthzAttributes { subresource: "token".into(), ..asks("create", "a", "serviceaccounts", "default") }));
        assert!(allowed(AuthzAttributes { field_selector: "spec.nodeName=n1".into(), ..asks("list", "", "pods", "") }));
        assert!(!allowed(asks("list", "", "pods", "")));
        assert!(allowed(asks("get", "a", "pods", "p")));
        assert!(!allowed(asks("get", "a", "pods", "q")));
        objects.put(&PODS, json!({"metadata": {"name": "static-n1", "namespace": "b", "annotations": {"kubernetes.io/config.mirror": "x"}},
            "spec": {"nodeName": "n1", "volumes": [{"name": "s", "secret": {"secretName": "wanted"}}]}}));
        assert!(allowed(asks("get", "b", "pods", "static-n1")), "a kubelet reads its mirror pods to report their status");
        assert!(!allowed(asks("get", "b", "secrets", "wanted")), "a mirror pod, which a kubelet makes, opens nothing");
        objects.remove(&PODS, "a", "p");
        assert!(!allowed(asks("get", "a", "secrets", "mine")), "the hint is checked");
    }
}
