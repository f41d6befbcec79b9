//! Publishes the cluster's CA bundle as the ConfigMap `kube-root-ca.crt` in every namespace.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use reconcile::{Queue, Requeue, run_workers};

use crate::Context;

const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";

/// The map as it is to be written, or nothing when it is so already.
pub fn plan(map: Option<&ConfigMap>, namespace: &str, bundle: &str) -> Option<ConfigMap> {
    let data = BTreeMap::from([("ca.crt".to_string(), bundle.to_string())]);
    let Some(map) = map else {
        let note = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";
        let metadata = ObjectMeta {
            name: Some(NAME.into()),
            namespace: Some(namespace.into()),
            annotations: Some(BTreeMap::from([(DESCRIPTION.to_string(), note.to_string())])),
            ..ObjectMeta::default()
        };
        return Some(ConfigMap { metadata, data: Some(data), ..ConfigMap::default() });
    };
    (map.data.as_ref() != Some(&data)).then(|| ConfigMap { data: Some(data), ..map.clone() })
}

/// Starts the controller.
pub fn start(context: &Context, bundle: String) {
    let namespaces = context.informers.of::<Namespace>();
    let maps = context.informers.selected::<ConfigMap>(&format!("metadata.name={NAME}"));
    let queue = Queue::<String>::new();
    let q = queue.clone();
    namespaces.on_change(move |c| q.add(c.latest().name_any()));
    let q = queue.clone();
    maps.on_change(move |c| q.add(c.latest().namespace().unwrap_or_default()));
    let client = context.client.clone();
    run_workers(&context.tasks, "root-ca-certificate-publisher", context.workers(2), queue, move |namespace: String| {
        let (client, namespaces, maps, bundle) = (client.clone(), namespaces.clone(), maps.clone(), bundle.clone());
        async move {
            namespaces.synced().await;
            maps.synced().await;
            if namespaces.get("", &namespace).is_none_or(|n| n.metadata.deletion_timestamp.is_some()) {
                return Ok(Requeue::No);
            }
            let map = maps.get(&namespace, NAME);
            let Some(wanted) = plan(map.as_deref(), &namespace, &bundle) else { return Ok(Requeue::No) };
            let api = Api::<ConfigMap>::namespaced(client, &namespace);
            let result = match map {
                Some(_) => api.replace(NAME, &PostParams::default(), &wanted).await,
                None => api.create(&PostParams::default(), &wanted).await,
            };
            match result {
                Ok(_) => Ok(Requeue::No),
                Err(kube::Error::Api(status)) if status.code == 404 || status.message.contains("being terminated") => Ok(Requeue::No),
                Err(error) => Err(error),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_is_made_and_mended_and_else_left_alone() {
        let made = plan(None, "n", "a").expect("there is none");
        assert_eq!((made.name_any().as_str(), made.namespace().as_deref()), (NAME, Some("n")));
        assert!(made.annotations().contains_key(DESCRIPTION));
        assert_eq!(plan(Some(&made), "n", "a"), None);
        assert_eq!(plan(Some(&made), "n", "b").and_then(|m| m.data), Some(BTreeMap::from([("ca.crt".into(), "b".into())])));
        let mut spoilt = made.clone();
        spoilt.labels_mut().insert("mine".into(), "1".into());
        spoilt.data.get_or_insert_default().insert("more".into(), "x".into());
        let mended = plan(Some(&spoilt), "n", "a").expect("there is more in it");
        assert_eq!(mended.data, made.data);
        assert!(mended.labels().contains_key("mine"), "what is no data is the user's");
    }
}
