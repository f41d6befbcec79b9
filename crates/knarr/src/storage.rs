//! Storage that comes with a cluster: the default StorageClass, once, and the rights of its provisioner.

use anyhow::Result;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::network::CLUSTER_MAP;

const NAME: &str = "knarr:local-path-provisioner";
/// In the cluster's ConfigMap: the class was given to this cluster, and is its users' from then on.
const GIVEN: &str = "local-path-class";

/// Publishes both; after [`crate::network::publish`], which makes the ConfigMap.
pub async fn publish(client: &Client) -> Result<()> {
    let owner = PatchParams::apply("knarr-storage").force();
    let labels = json!({"app.kubernetes.io/managed-by": "knarr"});
    let rule = |group: &str, resource: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": NAME, "labels": labels}, "rules": [
        rule("", "persistentvolumes", &["get", "list", "watch", "create", "update", "delete"]),
        rule("", "persistentvolumeclaims", &["get", "list", "watch", "update"]),
        rule("storage.k8s.io", "storageclasses", &["get", "list", "watch"]),
        rule("", "nodes", &["get", "list", "watch", "patch"]),
        rule("", "events", &["create", "patch", "update"]),
    ]});
    Api::<ClusterRole>::all(client.clone()).patch(NAME, &owner, &Patch::Apply(role)).await?;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": NAME, "labels": labels},
        "subjects": [{"kind": "ServiceAccount", "namespace": "kube-system", "name": "local-path-provisioner"}],
        "roleRef": {"kind": "ClusterRole", "apiGroup": "rbac.authorization.k8s.io", "name": NAME}});
    Api::<ClusterRoleBinding>::all(client.clone()).patch(NAME, &owner, &Patch::Apply(binding)).await?;
    class(client).await
}

/// A class that a user deleted or changed stays so: it is made for new clusters only.
async fn class(client: &Client) -> Result<()> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), "kube-public");
    if maps.get(CLUSTER_MAP).await?.data.is_some_and(|d| d.contains_key(GIVEN)) {
        return Ok(());
    }
    let class: StorageClass = serde_json::from_value(json!({
        "metadata": {"name": "local-path", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "rancher.io/local-path", "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
    }))?;
    match Api::<StorageClass>::all(client.clone()).create(&PostParams::default(), &class).await {
        Ok(_) => {}
        // Made before a crash, or by a user.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(error.into()),
    }
    let given = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {GIVEN: "given"}});
    maps.patch(CLUSTER_MAP, &PatchParams::apply("knarr-storage"), &Patch::Apply(given)).await?;
    Ok(())
}
