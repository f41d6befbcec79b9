//! The objects that metrics-server's users expect beside the group: who may read it, as whom kubelets
//! are asked, and the APIService that says it is there.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::Client;
use serde_json::json;

use crate::objects::{GROUP, VERSION};

/// The service account, in `kube-system`, as which kubelets are asked.
pub const ACCOUNT: &str = "metrics-server";
const NAMESPACE: &str = "kube-system";
const MANAGER: &str = "knarr-metrics";

/// Makes what is missing. An APIService that leads elsewhere is left as it is.
pub async fn publish(client: &Client) -> kube::Result<()> {
    let owner = PatchParams::apply(MANAGER).force();
    let labels = json!({"k8s-app": "metrics-server"});
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": NAMESPACE, "labels": labels}});
    Api::<ServiceAccount>::namespaced(client.clone(), NAMESPACE).patch(ACCOUNT, &owner, &Patch::Apply(account)).await?;
    let roles = Api::<ClusterRole>::all(client.clone());
    let aggregate = |to: &str| (format!("rbac.authorization.k8s.io/aggregate-to-{to}"), json!("true"));
    let mut reader = json!({"k8s-app": "metrics-server"});
    if let Some(map) = reader.as_object_mut() {
        map.extend(["admin", "edit", "view"].map(aggregate));
    }
    let reader = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "system:aggregated-metrics-reader", "labels": reader},
        "rules": [{"apiGroups": [GROUP], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}]});
    roles.patch("system:aggregated-metrics-reader", &owner, &Patch::Apply(reader)).await?;
    let server = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "system:metrics-server", "labels": labels},
        "rules": [{"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
                  {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}]});
    roles.patch("system:metrics-server", &owner, &Patch::Apply(server)).await?;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "system:metrics-server", "labels": labels},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:metrics-server"},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}]});
    Api::<ClusterRoleBinding>::all(client.clone()).patch("system:metrics-server", &owner, &Patch::Apply(binding)).await?;
    api_service(client).await
}

/// An APIService without a service: the group is served by the API server itself, which says that it is
/// available.
async fn api_service(client: &Client) -> kube::Result<()> {
    let services = Api::<APIService>::all(client.clone());
    let name = format!("{VERSION}.{GROUP}");
    if services.get_opt(&name).await?.is_none() {
        let wanted = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": name, "labels": {"k8s-app": "metrics-server"}},
            "spec": {"group": GROUP, "version": VERSION, "groupPriorityMinimum": 100, "versionPriority": 100}});
        let wanted: APIService = serde_json::from_value(wanted).map_err(kube::Error::SerdeError)?;
        match services.create(&PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() }, &wanted).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            other => drop(other?),
        }
    }
    Ok(())
}
