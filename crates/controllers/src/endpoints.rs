//! Endpoints: the older form of endpoint slices, for clients that still read it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Client, ResourceExt};
use reconcile::{Informer, Queue, Requeue, run_workers};

use crate::{Context, endpointslice, pods};

/// Addresses that one object may hold.
const MOST: usize = 1000;

/// The subsets of a service, with addresses in order, grouped by ports.
pub fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let spec = service.spec.clone().unwrap_or_default();
    let publish_all = spec.publish_not_ready_addresses == Some(true);
    let mut groups: BTreeMap<Vec<(String, i32, String)>, EndpointSubset> = BTreeMap::new();
    for pod in pods.iter().take(MOST) {
        let Some(ip) = pod.status.as_ref().and_then(|s| s.pod_ip.clone()).filter(|ip| !ip.is_empty()) else { continue };
        if matches!(pods::phase(pod), "Succeeded" | "Failed") || (pod.metadata.deletion_timestamp.is_some() && !publish_all) {
            continue;
        }
        let ports: Vec<EndpointPort> = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|p| endpointslice::port(p, pod))
            .map(|p| EndpointPort {
                name: p.name.filter(|n| !n.is_empty()),
                port: p.port.unwrap_or(0),
                protocol: p.protocol,
                app_protocol: p.app_protocol,
            })
            .collect();
        if ports.is_empty() && spec.ports.iter().flatten().next().is_some() {
            continue;
        }
        let key = ports.iter().map(|p| (p.name.clone().unwrap_or_default(), p.port, p.protocol.clone().unwrap_or_default())).collect();
        let group = groups.entry(key).or_insert_with(|| EndpointSubset { ports: Some(ports).filter(|p| !p.is_empty()), ..EndpointSubset::default() });
        let subdomain = pod.spec.as_ref().and_then(|s| s.subdomain.clone());
        let address = EndpointAddress {
            ip,
            hostname: pod.spec.as_ref().and_then(|s| s.hostname.clone()).filter(|h| !h.is_empty() && subdomain == service.metadata.name),
            node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".into()),
                namespace: pod.namespace(),
                name: pod.metadata.name.clone(),
                uid: pod.uid(),
                ..ObjectReference::default()
            }),
        };
        let list = if publish_all || pods::is_ready(pod) { &mut group.addresses } else { &mut group.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    groups.into_values().collect()
}

#[derive(Clone)]
struct Controller {
    client: Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
}

/// Starts the controller.
pub fn start(context: &Context) {
    let controller = Controller {
        client: context.client.clone(),
        services: context.informers.of::<Service>(),
        pods: context.informers.of::<Pod>(),
        endpoints: context.informers.of::<Endpoints>(),
    };
    let queue = Queue::<(String, String)>::new();
    let q = queue.clone();
    controller.services.on_change(move |c| q.add((c.latest().namespace().unwrap_or_default(), c.latest().name_any())));
    let (q, services) = (queue.clone(), controller.services.clone());
    controller.pods.on_change(move |change| {
        for pod in [&change.old, &change.new].into_iter().flatten() {
            endpointslice::services_of(&services, pod).into_iter().for_each(|key| q.add(key));
        }
    });
    run_workers(&context.tasks, "endpoints", 2, queue, move |key: (String, String)| {
        let controller = controller.clone();
        async move {
            controller.services.synced().await;
            controller.pods.synced().await;
            controller.endpoints.synced().await;
            controller.sync(&key.0, &key.1).await
        }
    });
}

impl Controller {
    async fn sync(&self, namespace: &str, name: &str) -> kube::Result<Requeue> {
        let api = Api::<Endpoints>::namespaced(self.client.clone(), namespace);
        let existing = self.endpoints.get(namespace, name);
        let Some(service) = self.services.get(namespace, name) else {
            if existing.is_some() {
                ignore_gone(api.delete(name, &DeleteParams::default()).await.map(|_| ()))?;
            }
            return Ok(Requeue::No);
        };
        if service.spec.as_ref().and_then(|s| s.selector.as_ref()).is_none_or(|s| s.is_empty()) {
            return Ok(Requeue::No);
        }
        let pods: Vec<Arc<Pod>> = self.pods.in_namespace(namespace).into_iter().filter(|p| endpointslice::selects(&service, p)).collect();
        let wanted = subsets(&service, &pods);
        let mut labels = service.labels().clone();
        labels.insert("endpoints.kubernetes.io/managed-by".into(), "endpoint-controller".into());
        if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
            labels.insert("service.kubernetes.io/headless".into(), String::new());
        }
        match existing {
            Some(old) if old.subsets.clone().unwrap_or_default() == wanted && *old.labels() == labels => {}
            Some(old) => {
                let mut new = old.as_ref().clone();
                new.subsets = Some(wanted);
                new.metadata.labels = Some(labels);
                ignore_gone(api.replace(name, &PostParams::default(), &new).await.map(|_| ()))?;
            }
            None => {
                let metadata = ObjectMeta { name: Some(name.into()), namespace: Some(namespace.into()), labels: Some(labels), ..ObjectMeta::default() };
                let new = Endpoints { metadata, subsets: Some(wanted) };
                ignore_gone(api.create(&PostParams::default(), &new).await.map(|_| ()))?;
            }
        }
        Ok(Requeue::No)
    }
}

fn ignore_gone(result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 403 && status.message.contains("being terminated") => Ok(()),
        other => other,
    }
}
