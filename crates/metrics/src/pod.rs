//! What is kept of a pod: whose it is, where it runs and whether it does. As the client's type one takes 14 KB.

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer};

/// A pod. The fields have the names and meanings of the API's.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    #[serde(deserialize_with = "slim")]
    pub metadata: ObjectMeta,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    pub node_name: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    pub phase: Option<String>,
}

/// The name, the labels, and what an informer needs.
fn slim<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let meta = ObjectMeta::deserialize(deserializer)?;
    let ObjectMeta { name, namespace, uid, resource_version, labels, .. } = meta;
    Ok(ObjectMeta { name, namespace, uid, resource_version, labels, ..ObjectMeta::default() })
}

reconcile::resource_as!(Pod, metadata, v1::Pod);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn little_is_kept() {
        let pod = json!({"metadata": {"name": "a", "namespace": "n", "labels": {"x": "y"}, "annotations": {"long": "text"}, "resourceVersion": "7"},
            "spec": {"nodeName": "one", "containers": [{"name": "c"}]}, "status": {"phase": "Running", "podIP": "10.0.0.1"}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        assert_eq!((pod.spec.node_name.as_deref(), pod.status.phase.as_deref()), (Some("one"), Some("Running")));
        assert_eq!(pod.metadata.labels.as_ref().map(|l| l.len()), Some(1));
        assert!(pod.metadata.annotations.is_none());
        let bare: Pod = serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap();
        assert!(bare.spec.node_name.is_none());
    }
}
