//! EndpointSlices: the ready and the leaving pods behind each service that has a selector. [`plan`]
//! decides.
//!
//! Not here: the annotation `topology-mode: Auto`, which shares endpoints out among zones by their
//! processors. Slices of such a service have no hints.

pub mod plan;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Client, ResourceExt};
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, run_workers};

use crate::pod::Pod;
use crate::service_pods::{self, Key, TriggerTimes, forgive};
use crate::{Context, pods};
use plan::{Action, plan};

/// Label: the service of a slice.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label: who writes a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";

/// The slices of a service that `manager` writes.
pub fn slices_of(slices: &Informer<EndpointSlice>, namespace: &str, service: &str, manager: &str) -> Vec<Arc<EndpointSlice>> {
    let of = |s: &Arc<EndpointSlice>, key: &str, value: &str| s.labels().get(key).is_some_and(|v| v == value);
    slices.in_namespace(namespace).into_iter().filter(|s| of(s, SERVICE_NAME, service) && of(s, MANAGED_BY, manager)).collect()
}

/// Puts services into `queue` when a slice of theirs changes that `manager` writes.
pub fn follow_slices(slices: &Informer<EndpointSlice>, manager: &'static str, queue: &Queue<Key>) {
    let q = queue.clone();
    slices.on_change(move |change| {
        let slice = change.latest();
        if slice.labels().get(MANAGED_BY).is_some_and(|m| m == manager)
            && let Some(service) = slice.labels().get(SERVICE_NAME)
        {
            q.add((slice.namespace().unwrap_or_default(), service.clone()));
        }
    });
}

/// Carries out what is planned. What others changed meanwhile is planned anew when they are seen.
pub async fn apply(client: &Client, namespace: &str, actions: Vec<Action>) -> kube::Result<()> {
    let api = Api::<EndpointSlice>::namespaced(client.clone(), namespace);
    for action in actions {
        let result = match action {
            Action::Create(slice) => api.create(&PostParams::default(), &slice).await.map(|_| ()),
            Action::Update(slice) => api.replace(&slice.name_any(), &PostParams::default(), &slice).await.map(|_| ()),
            Action::Delete(name) => api.delete(&name, &DeleteParams::default()).await.map(|_| ()),
        };
        forgive(result)?;
    }
    Ok(())
}

#[derive(Clone)]
struct Controller {
    client: Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    times: TriggerTimes,
    per_slice: usize,
    recorder: Recorder,
}

/// Starts the controller.
pub fn start(context: &Context, per_slice: usize) {
    let controller = Controller {
        per_slice,
        client: context.client.clone(),
        services: context.informers.of::<Service>(),
        pods: context.informers.of::<Pod>(),
        nodes: context.informers.of::<Node>(),
        slices: context.informers.of::<EndpointSlice>(),
        times: TriggerTimes::default(),
        recorder: Recorder::new(&context.tasks, context.client.clone(), "endpoint-slice-controller", None),
    };
    let queue = Queue::<Key>::new();
    service_pods::follow(&controller.services, &controller.pods, &queue);
    follow_slices(&controller.slices, MANAGER, &queue);
    // Pods of a node count once it is known, and carry its zone.
    let (q, pods, services) = (queue.clone(), controller.pods.clone(), controller.services.clone());
    controller.nodes.on_change(move |change| {
        let zone = |node: &Option<Arc<Node>>| node.as_ref().map(|n| n.labels().get(ZONE).cloned());
        if zone(&change.old) == zone(&change.new) {
            return;
        }
        let name = change.latest().name_any();
        for pod in pods.list().iter().filter(|p| p.spec.as_ref().and_then(|s| s.node_name.as_ref()) == Some(&name)) {
            let namespace = pod.namespace().unwrap_or_default();
            let hit = services.in_namespace(&namespace).into_iter().filter(|s| service_pods::selects(s, pod));
            hit.for_each(|service| q.add((namespace.clone(), service.name_any())));
        }
    });
    run_workers(&context.tasks, "endpointslice", context.workers(5), queue, move |key: Key| {
        let controller = controller.clone();
        async move {
            controller.services.synced().await;
            controller.pods.synced().await;
            controller.nodes.synced().await;
            controller.slices.synced().await;
            controller.sync(&key).await
        }
    });
}

impl Controller {
    async fn sync(&self, key: &Key) -> kube::Result<Requeue> {
        let (namespace, name) = key;
        // The slices of a service that is gone are the garbage collector's.
        let Some(service) = self.services.get(namespace, name) else {
            self.times.forget(key);
            return Ok(Requeue::No);
        };
        if service.metadata.deletion_timestamp.is_some() || !service_pods::has_endpoints(&service) {
            return Ok(Requeue::No);
        }
        let pods = service_pods::selected(&self.pods, &service);
        let trigger = self.times.of(&service, &pods).map(service_pods::trigger_text);
        let names = pods.iter().filter_map(|p| p.spec.as_ref()?.node_name.clone());
        let zones: HashMap<String, Option<String>> =
            names.filter_map(|n| self.nodes.get("", &n).map(|node| (n, node.labels().get(ZONE).filter(|z| !z.is_empty()).cloned()))).collect();
        let existing = slices_of(&self.slices, namespace, name, MANAGER);
        let actions = plan(&service, &existing, &pods, |node| zones.get(node).cloned(), trigger.as_deref(), self.per_slice);
        let outcome = apply(&self.client, namespace, actions).await;
        if let Err(error) = &outcome {
            let text = format!("Error updating Endpoint Slices for Service {namespace}/{name}: {}", pods::text(error));
            self.recorder.event(&Reference::of(service.as_ref()), EventType::Warning, "FailedToUpdateEndpointSlices", text);
        }
        outcome.map(|()| Requeue::No)
    }
}

#[cfg(test)]
mod slice_tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn slices_are_of_a_service_and_of_whom_writes_them() {
        let slice = |namespace: &str, name: &str, service: &str, manager: &str| {
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [],
                "metadata": {"name": name, "namespace": namespace, "labels": {SERVICE_NAME: service, MANAGED_BY: manager}}})
        };
        let all = vec![slice("ns", "a", "s", MANAGER), slice("ns", "b", "t", MANAGER), slice("ns", "c", "s", "other"), slice("other", "d", "s", MANAGER)];
        let slices = crate::testing::informer::<EndpointSlice>(all).await;
        let ours = slices_of(&slices, "ns", "s", MANAGER);
        assert_eq!(ours.iter().map(|s| s.name_any()).collect::<Vec<_>>(), ["a"]);
    }
}
