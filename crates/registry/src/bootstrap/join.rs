//! What lets a new node in: a bootstrap token, the rights that come with it (kubeadm's names and
//! rules), and `cluster-info`, which tells a node that trusts nothing yet where the cluster is.

use apiserver::types::Resource;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::util::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, CONFIG_MAPS, ROLE_BINDINGS, ROLES, SECRETS};

const RBAC: &str = "rbac.authorization.k8s.io";
const GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";

/// The objects for joining with `token`, which must be well formed.
pub(crate) fn objects(token: &str, server: &str, ca_pem: &str) -> Vec<(&'static Resource, Value)> {
    let Some((id, secret)) = pki::bootstrap_token::parse(token) else { return Vec::new() };
    let data = [
        ("token-id", id),
        ("token-secret", secret),
        ("usage-bootstrap-authentication", "true"),
        ("usage-bootstrap-signing", "true"),
        ("auth-extra-groups", GROUP),
    ];
    let data: serde_json::Map<String, Value> = data.iter().map(|(k, v)| ((*k).to_owned(), STANDARD.encode(v).into())).collect();
    let token = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "data": data,
    });
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config",
        "clusters": [{"name": "", "cluster": {"server": server, "certificate-authority-data": STANDARD.encode(ca_pem)}}],
    });
    // JSON is YAML: every kubeconfig reader takes it.
    let info = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "cluster-info", "namespace": "kube-public"},
        "data": {"kubeconfig": kubeconfig.to_string()},
    });
    let group = |name: &str| json!({"apiGroup": RBAC, "kind": "Group", "name": name});
    let mut all = vec![
        (*SECRETS, token),
        (*CONFIG_MAPS, info),
        (*CLUSTER_ROLES, json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "kubeadm:get-nodes"},
            "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["nodes"]}],
        })),
        (*ROLES, json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": "kubeadm:bootstrap-signer-clusterinfo", "namespace": "kube-public"},
            "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["cluster-info"]}],
        })),
        (*ROLE_BINDINGS, json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "kubeadm:bootstrap-signer-clusterinfo", "namespace": "kube-public"},
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": "kubeadm:bootstrap-signer-clusterinfo"},
            "subjects": [{"apiGroup": RBAC, "kind": "User", "name": "system:anonymous"}],
        })),
    ];
    for (name, role, subject) in [
        ("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", GROUP),
        ("kubeadm:get-nodes", "kubeadm:get-nodes", GROUP),
        ("kubeadm:node-autoapprove-bootstrap", "system:certificates.k8s.io:certificatesigningrequests:nodeclient", GROUP),
        (
            "kubeadm:node-autoapprove-certificate-rotation",
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            "system:nodes",
        ),
    ] {
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
            "subjects": [group(subject)],
        });
        all.push((*CLUSTER_ROLE_BINDINGS, binding));
    }
    // Upstream leaves serving certificates to people; ours are approved by the controller, which
    // looks at the names, and needs the right to.
    all.push((*CLUSTER_ROLE_BINDINGS, json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "knarr:kubelet-serving-approver"},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "system:certificates.k8s.io:kubelet-serving-approver"},
        "subjects": [{"kind": "ServiceAccount", "name": "certificate-controller", "namespace": "kube-system"}],
    })));
    all
}
