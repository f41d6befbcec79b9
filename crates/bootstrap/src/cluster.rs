//! Objects of a cluster, as upstream's phases write them: read and written as trees, by path.

use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::Client;
use serde_json::{Value, json};

use crate::error::{Doing, Error, Result, refused};

/// How long a request that cannot be answered yet is asked again.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster, as somebody who may change it.
#[derive(Clone)]
pub struct Cluster(Client);

/// The path of a collection, in a namespace where the kind has them.
pub fn collection<K: kube::Resource<DynamicType = ()>>(namespace: &str) -> String {
    K::url_path(&(), Some(namespace).filter(|n| !n.is_empty()))
}

/// The path of the collection that an object is of.
fn collection_of(object: &Value) -> Result<String> {
    let word = |at: &Value| at.as_str().unwrap_or_default().to_string();
    let (version, kind) = (word(&object["apiVersion"]), word(&object["kind"]));
    let (group, v) = api::resources::split_api_version(&version);
    let Some(resource) = api::resources::find_kind(group, v, &kind) else {
        return refused(format!("there is no kind {kind:?} in {version:?}"));
    };
    let base = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{version}") };
    Ok(match resource.namespaced {
        true => format!("{base}/namespaces/{}/{}", word(&object["metadata"]["namespace"]), resource.plural),
        false => format!("{base}/{}", resource.plural),
    })
}

/// The status code of an answer that is an error.
fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

impl Cluster {
    /// Through this client.
    pub fn new(client: Client) -> Cluster {
        Cluster(client)
    }

    /// As the user of a kubeconfig; at this server instead of the one that it names.
    pub fn of(path: &Path, server: Option<&str>) -> Result<Cluster> {
        let mut entry = client::Entry::read(path).doing(|| format!("failed to load {}", path.display()))?;
        if let Some(server) = server {
            entry.server = server.into();
        }
        Cluster::entry(&entry)
    }

    /// As the user of a kubeconfig that was read.
    pub fn entry(entry: &client::Entry) -> Result<Cluster> {
        Ok(Cluster(client::https(entry.https().doing(|| "the kubeconfig cannot be used".into())?)))
    }

    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> std::result::Result<Value, kube::Error> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let bytes = body.map(Value::to_string).unwrap_or_default().into_bytes();
        let request = http::Request::builder().method(method).uri(path).header(http::header::CONTENT_TYPE, kind).body(bytes);
        self.0.request(request.map_err(kube::Error::HttpError)?).await
    }

    /// Whether the API server says that all its checks are well.
    pub async fn healthy(&self) -> Result<()> {
        let request = http::Request::get("/readyz").body(Vec::new()).map_err(kube::Error::HttpError).doing(|| "asking /readyz".into())?;
        self.0.request_text(request).await.doing(|| "the API server is not ready".into()).map(|_| ())
    }

    /// The `Date` of an answer, whatever else it says.
    pub async fn date(&self) -> Result<String> {
        let said = || "asking for the time".to_string();
        let request = http::Request::get("/version").body(kube::client::Body::empty()).doing(said)?;
        let response = self.0.send(request).await.doing(said)?;
        let date = response.headers().get(http::header::DATE).and_then(|d| d.to_str().ok());
        date.map(String::from).ok_or_else(|| Error::Refused("the answer has no date".into()))
    }

    /// The nodes; none where whoever asks may not read them.
    pub async fn nodes(&self) -> Result<Vec<Value>> {
        match self.ask("GET", &collection::<Node>(""), None).await {
            Ok(list) => Ok(list["items"].as_array().cloned().unwrap_or_default()),
            Err(error) if matches!(code(&error), Some(401 | 403)) => Ok(Vec::new()),
            Err(error) => Err(error).doing(|| "reading the nodes".into()),
        }
    }

    /// An object; none if there is none.
    pub async fn get(&self, path: &str) -> Result<Option<Value>> {
        match self.ask("GET", path, None).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if code(&error) == Some(404) => Ok(None),
            Err(error) => Err(error).doing(|| format!("reading {path}")),
        }
    }

    /// Makes an object.
    pub async fn create(&self, object: &Value) -> Result<Value> {
        let said = || format!("unable to create {}", object["kind"].as_str().unwrap_or_default());
        self.ask("POST", &collection_of(object)?, Some(object)).await.doing(said)
    }

    /// Makes an object, or replaces the one that is there. A server that is about to be ready is waited for.
    pub async fn put(&self, object: &Value) -> Result<()> {
        let (kind, name) = (object["kind"].as_str().unwrap_or_default(), object["metadata"]["name"].as_str().unwrap_or_default());
        let collection = collection_of(object)?;
        let path = format!("{collection}/{name}");
        let end = Instant::now() + PATIENCE;
        loop {
            let error = match self.ask("POST", &collection, Some(object)).await {
                Ok(_) => return Ok(()),
                Err(error) if code(&error) == Some(409) => match self.ask("PUT", &path, Some(object)).await {
                    Ok(_) => return Ok(()),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            let final_answer = matches!(code(&error), Some(400..=403 | 405 | 422));
            if final_answer || Instant::now() > end {
                return Err(error).doing(|| format!("unable to create or update the {kind} {name:?}"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Changes an object by a merge patch; none if there is none.
    pub async fn patch(&self, path: &str, patch: &Value) -> Result<Option<Value>> {
        match self.ask("PATCH", path, Some(patch)).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if code(&error) == Some(404) => Ok(None),
            Err(error) => Err(error).doing(|| format!("changing {path}")),
        }
    }

    /// Removes an object.
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.ask("DELETE", path, None).await.doing(|| format!("removing {path}")).map(|_| ())
    }

    /// The data of a ConfigMap.
    pub async fn config_map(&self, namespace: &str, name: &str, key: &str) -> Result<Option<String>> {
        let map = self.get(&format!("{}/{name}", collection::<ConfigMap>(namespace))).await?;
        Ok(map.and_then(|m| m["data"][key].as_str().map(String::from)))
    }

    /// Whether the request was refused for who asks, and not for what is asked.
    pub fn is_forbidden(error: &Error) -> bool {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<kube::Error>() {
                return matches!(code(error), Some(401 | 403));
            }
            next = error.source();
        }
        false
    }
}

const RBAC: &str = "rbac.authorization.k8s.io/v1";

/// A subject of RBAC.
pub fn group(name: &str) -> Value {
    json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": name})
}

/// A user as a subject of RBAC.
pub fn user(name: &str) -> Value {
    json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name})
}

/// A ClusterRoleBinding.
pub fn cluster_binding(name: &str, role: &str, subjects: Value) -> Value {
    json!({"apiVersion": RBAC, "kind": "ClusterRoleBinding", "metadata": {"name": name}, "subjects": subjects,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}})
}

/// The right to read one object, for these subjects.
pub fn readable(namespace: &str, name: &str, resource: &str, object: &str, subjects: Value) -> [Value; 2] {
    [
        json!({"apiVersion": RBAC, "kind": "Role", "metadata": {"name": name, "namespace": namespace},
            "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": [resource], "resourceNames": [object]}]}),
        json!({"apiVersion": RBAC, "kind": "RoleBinding", "metadata": {"name": name, "namespace": namespace}, "subjects": subjects,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}}),
    ]
}

/// The group of nodes that join by a token.
pub const JOINING: &str = "system:bootstrappers:kubeadm:default-node-token";
/// The group of nodes.
pub const NODES: &str = "system:nodes";

/// The cluster's configuration, and who may read it.
pub fn kubeadm_config(yaml: &str) -> Vec<Value> {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kubeadm-config", "namespace": "kube-system"},
        "data": {"ClusterConfiguration": yaml}});
    let mut all = vec![map];
    all.extend(readable("kube-system", "kubeadm:nodes-kubeadm-config", "configmaps", "kubeadm-config", json!([group(JOINING), group(NODES)])));
    all
}

/// The kubelets' configuration, and who may read it.
pub fn kubelet_config(yaml: &str) -> Vec<Value> {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kubelet-config", "namespace": "kube-system"}, "data": {"kubelet": yaml}});
    let mut all = vec![map];
    all.extend(readable("kube-system", "kubeadm:kubelet-config", "configmaps", "kubelet-config", json!([group(NODES), group(JOINING)])));
    all
}

/// The rights of nodes that join, each with what is said when it is there.
pub fn joining() -> Vec<(&'static str, Vec<Value>)> {
    let get_nodes = json!({"apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": "kubeadm:get-nodes"},
        "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["nodes"]}]});
    let requests = "system:certificates.k8s.io:certificatesigningrequests";
    let approver = json!([{"kind": "ServiceAccount", "name": "certificate-controller", "namespace": "kube-system"}]);
    vec![
        ("Configured RBAC rules to allow Node Bootstrap tokens to get nodes", vec![get_nodes, cluster_binding("kubeadm:get-nodes", "kubeadm:get-nodes", json!([group(JOINING)]))]),
        (
            "Configured RBAC rules to allow Node Bootstrap tokens to post CSRs in order for nodes to get long term certificate credentials",
            vec![cluster_binding("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", json!([group(JOINING)]))],
        ),
        (
            "Configured RBAC rules to allow the csrapprover controller automatically approve CSRs from a Node Bootstrap Token",
            vec![cluster_binding("kubeadm:node-autoapprove-bootstrap", &format!("{requests}:nodeclient"), json!([group(JOINING)]))],
        ),
        (
            "Configured RBAC rules to allow certificate rotation for all node client certificates in the cluster",
            vec![cluster_binding("kubeadm:node-autoapprove-certificate-rotation", &format!("{requests}:selfnodeclient"), json!([group(NODES)]))],
        ),
        (
            "Configured RBAC rules to allow the API server kubelet client certificate to access the kubelet API",
            vec![cluster_binding("kubeadm:apiserver-kubelet-client", "system:kubelet-api-admin", json!([user("kube-apiserver-kubelet-client")]))],
        ),
        // So that a machine which joins can be told from those that are there (preflight::peers); upstream has no such check.
        (
            "Configured RBAC rules to allow Node Bootstrap tokens to list nodes, for what must differ between machines",
            vec![
                json!({"apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": "knarr:list-nodes"}, "rules": [{"verbs": ["list"], "apiGroups": [""], "resources": ["nodes"]}]}),
                cluster_binding("knarr:list-nodes", "knarr:list-nodes", json!([group(JOINING)])),
            ],
        ),
        // Upstream leaves serving certificates to people; knarr's controller looks at their names, and needs the right.
        (
            "Configured RBAC rules to allow the csrapprover controller to approve the serving certificates of nodes",
            vec![cluster_binding("knarr:kubelet-serving-approver", "system:certificates.k8s.io:kubelet-serving-approver", approver)],
        ),
    ]
}

/// Where the cluster is, for those who trust nothing yet.
pub fn cluster_info(server: &str, ca_pem: &str) -> Result<Vec<Value>> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let config = json!({"apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": "", "contexts": null, "users": null,
        "clusters": [{"name": "", "cluster": {"server": server, "certificate-authority-data": STANDARD.encode(ca_pem)}}]});
    let yaml = serde_saphyr::to_string(&config).doing(|| "writing cluster-info".into())?;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cluster-info", "namespace": "kube-public"}, "data": {"kubeconfig": yaml}});
    let mut all = vec![map];
    all.extend(readable("kube-public", "kubeadm:bootstrap-signer-clusterinfo", "configmaps", "cluster-info", json!([user("system:anonymous")])));
    Ok(all)
}

/// Labels and taints of a node that is a control plane: a merge patch of the node as it is.
pub fn mark(node: &Value, taints: &[Value]) -> Value {
    let mut all = taints.to_vec();
    all.extend(node["spec"]["taints"].as_array().into_iter().flatten().filter(|t| !taints.contains(t)).cloned());
    // The version of what was read: somebody else's taint must not get lost.
    json!({"metadata": {"resourceVersion": node["metadata"]["resourceVersion"],
            "labels": {"node-role.kubernetes.io/control-plane": "", "node.kubernetes.io/exclude-from-external-load-balancers": ""}},
        "spec": {"taints": all}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_collections() {
        let of = |object: Value| collection_of(&object).map_err(|e| e.to_string());
        assert_eq!(of(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "a"}})).as_deref(), Ok("/api/v1/namespaces/a/secrets"));
        assert_eq!(of(json!({"apiVersion": RBAC, "kind": "ClusterRole"})).as_deref(), Ok("/apis/rbac.authorization.k8s.io/v1/clusterroles"));
        assert!(of(json!({"apiVersion": "v1", "kind": "Secrets"})).is_err());
        assert_eq!(collection::<ConfigMap>("a"), "/api/v1/namespaces/a/configmaps");
        assert_eq!(collection::<Node>(""), "/api/v1/nodes");
    }

    #[test]
    fn a_mark_keeps_the_taints_of_others() {
        let own = json!({"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"});
        let other = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
        let node = json!({"metadata": {"resourceVersion": "7"}, "spec": {"taints": [other, own]}});
        let patch = mark(&node, std::slice::from_ref(&own));
        assert_eq!(patch["spec"]["taints"], json!([own, other]));
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert_eq!(mark(&json!({}), &[])["spec"]["taints"], json!([]));
    }
}
