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
            let data = BTreeMap::from([("ca.crt".to_string(), bundle)]);
            let api = Api::<ConfigMap>::namespaced(client, &namespace);
            let result = match maps.get(&namespace, NAME) {
                Some(map) if map.data.as_ref() == Some(&data) => return Ok(Requeue::No),
                Some(map) => {
                    let mut map = map.as_ref().clone();
                    map.data = Some(data);
                    api.replace(NAME, &PostParams::default(), &map).await
                }
                None => {
                    let note = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";
                    let metadata = ObjectMeta {
                        name: Some(NAME.into()),
                        namespace: Some(namespace.clone()),
                        annotations: Some(BTreeMap::from([(DESCRIPTION.to_string(), note.to_string())])),
                        ..ObjectMeta::default()
                    };
                    api.create(&PostParams::default(), &ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }).await
                }
            };
            match result {
                Ok(_) => Ok(Requeue::No),
                Err(kube::Error::Api(status)) if status.code == 404 || status.message.contains("being terminated") => Ok(Requeue::No),
                Err(error) => Err(error),
            }
        }
    });
}
