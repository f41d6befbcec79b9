//! EndpointSlices: the ready and the leaving pods behind each service that has a selector.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Client, ResourceExt};
use reconcile::{Informer, Queue, Requeue, run_workers};

use crate::{Context, ownership, pods};

/// Endpoints in one slice.
const PER_SLICE: usize = 100;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What one slice is to hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
}

/// The endpoints of a service, grouped by the port numbers that its named ports come to.
pub fn endpoints(service: &Service, pods: &[Arc<Pod>], zone: impl Fn(&str) -> Option<String>) -> Vec<Wanted> {
    let spec = service.spec.clone().unwrap_or_default();
    let publish_all = spec.publish_not_ready_addresses == Some(true);
    let mut groups: BTreeMap<Vec<(String, i32, String)>, Wanted> = BTreeMap::new();
    for pod in pods {
        let Some(status) = &pod.status else { continue };
        if matches!(pods::phase(pod), "Succeeded" | "Failed") {
            continue;
        }
        let Some(address) = status.pod_ip.clone().filter(|ip| !ip.is_empty()) else { continue };
        let ports: Vec<EndpointPort> = spec.ports.iter().flatten().filter_map(|p| port(p, pod)).collect();
        if ports.is_empty() && spec.ports.iter().flatten().next().is_some() {
            continue;
        }
        let ready = pods::is_ready(pod);
        let leaving = pod.metadata.deletion_timestamp.is_some();
        let node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
        let subdomain = pod.spec.as_ref().and_then(|s| s.subdomain.clone());
        let endpoint = Endpoint {
            addresses: vec![address],
            conditions: Some(EndpointConditions {
                ready: Some(publish_all || (ready && !leaving)),
                serving: Some(publish_all || ready),
                terminating: Some(leaving),
            }),
            hostname: pod
                .spec
                .as_ref()
                .and_then(|s| s.hostname.clone())
                .filter(|h| !h.is_empty() && subdomain == service.metadata.name && pod.namespace() == service.namespace()),
            zone: node.as_deref().and_then(&zone),
            node_name: node,
            target_ref: Some(ObjectReference {
                kind: Some("Pod".into()),
                namespace: pod.namespace(),
                name: pod.metadata.name.clone(),
                uid: pod.uid(),
                ..ObjectReference::default()
            }),
            ..Endpoint::default()
        };
        let group = ports
            .iter()
            .map(|p| (p.name.clone().unwrap_or_default(), p.port.unwrap_or(0), p.protocol.clone().unwrap_or_default()))
            .collect();
        groups.entry(group).or_insert_with(|| Wanted { ports, endpoints: Vec::new() }).endpoints.push(endpoint);
    }
    let mut result = Vec::new();
    for group in groups.into_values() {
        for chunk in group.endpoints.chunks(PER_SLICE) {
            result.push(Wanted { ports: group.ports.clone(), endpoints: chunk.to_vec() });
        }
    }
    if result.is_empty() {
        result.push(Wanted { ports: Vec::new(), endpoints: Vec::new() });
    }
    result
}

/// The port of a pod that a service's port leads to; nothing when a named one does not exist there.
pub fn port(port: &ServicePort, pod: &Pod) -> Option<EndpointPort> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
            spec.containers
                .iter()
                .chain(sidecars)
                .flat_map(|c| c.ports.iter().flatten())
                .find(|p| p.name.as_ref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol)?
                .container_port
        }
    };
    Some(EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(number),
        protocol: Some(protocol),
        app_protocol: port.app_protocol.clone(),
    })
}

/// What is to be done with the slices of a service.
#[derive(Debug, PartialEq)]
pub enum Action {
    Create(EndpointSlice),
    Update(EndpointSlice),
    Delete(String),
}

/// Makes the existing slices hold what is wanted, touching as few as possible.
pub fn plan(service: &Service, existing: &[Arc<EndpointSlice>], wanted: Vec<Wanted>) -> Vec<Action> {
    let mut labels = service.labels().clone();
    labels.insert(SERVICE_NAME.into(), service.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.into(), String::new());
    }
    let mut free: Vec<&Arc<EndpointSlice>> = existing.iter().filter(|s| s.metadata.deletion_timestamp.is_none()).collect();
    let mut missing = Vec::new();
    for want in wanted {
        let same = free.iter().position(|s| {
            s.ports.clone().unwrap_or_default() == want.ports
                && s.endpoints.clone().unwrap_or_default() == want.endpoints
                && *s.labels() == labels
        });
        match same {
            Some(at) => {
                free.swap_remove(at);
            }
            None => missing.push(want),
        }
    }
    let mut actions = Vec::new();
    for want in missing {
        let mut slice = match free.pop() {
            Some(slice) => slice.as_ref().clone(),
            None => EndpointSlice {
                metadata: ObjectMeta {
                    generate_name: Some(format!("{}-", service.name_any())),
                    namespace: service.namespace(),
                    owner_references: Some(vec![ownership::controller_reference(service)]),
                    ..ObjectMeta::default()
                },
                address_type: "IPv4".into(),
                ..EndpointSlice::default()
            },
        };
        slice.metadata.labels = Some(labels.clone());
        if let Some(time) = service.annotations().get(TRIGGER_TIME) {
            slice.annotations_mut().insert(TRIGGER_TIME.into(), time.clone());
        }
        slice.ports = Some(want.ports);
        slice.endpoints = Some(want.endpoints);
        actions.push(if slice.metadata.name.is_some() { Action::Update(slice) } else { Action::Create(slice) });
    }
    actions.extend(free.into_iter().map(|s| Action::Delete(s.name_any())));
    actions
}

/// The services of a namespace that select a pod.
pub fn services_of(services: &Informer<Service>, pod: &Pod) -> Vec<(String, String)> {
    let namespace = pod.namespace().unwrap_or_default();
    services.in_namespace(&namespace).iter().filter(|s| selects(s, pod)).map(|s| (namespace.clone(), s.name_any())).collect()
}

/// Whether a service with a selector selects a pod.
pub fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|s| !s.is_empty() && s.iter().all(|(k, v)| pod.labels().get(k) == Some(v)))
}

#[derive(Clone)]
struct Controller {
    client: Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
}

/// Starts the controller.
pub fn start(context: &Context) {
    let controller = Controller {
        client: context.client.clone(),
        services: context.informers.of::<Service>(),
        pods: context.informers.of::<Pod>(),
        nodes: context.informers.of::<Node>(),
        slices: context.informers.of::<EndpointSlice>(),
    };
    let queue = Queue::<(String, String)>::new();
    let q = queue.clone();
    controller.services.on_change(move |c| q.add((c.latest().namespace().unwrap_or_default(), c.latest().name_any())));
    let (q, services) = (queue.clone(), controller.services.clone());
    controller.pods.on_change(move |change| {
        for pod in [&change.old, &change.new].into_iter().flatten() {
            services_of(&services, pod).into_iter().for_each(|key| q.add(key));
        }
    });
    let q = queue.clone();
    controller.slices.on_change(move |change| {
        let slice = change.latest();
        if slice.labels().get(MANAGED_BY).is_some_and(|m| m == MANAGER)
            && let Some(service) = slice.labels().get(SERVICE_NAME)
        {
            q.add((slice.namespace().unwrap_or_default(), service.clone()));
        }
    });
    run_workers(&context.tasks, "endpointslice", 5, queue, move |key: (String, String)| {
        let controller = controller.clone();
        async move {
            controller.services.synced().await;
            controller.pods.synced().await;
            controller.nodes.synced().await;
            controller.slices.synced().await;
            controller.sync(&key.0, &key.1).await
        }
    });
}

impl Controller {
    async fn sync(&self, namespace: &str, name: &str) -> kube::Result<Requeue> {
        // The slices of a service that is gone are the garbage collector's.
        let Some(service) = self.services.get(namespace, name) else { return Ok(Requeue::No) };
        let spec = service.spec.as_ref();
        if service.metadata.deletion_timestamp.is_some()
            || spec.and_then(|s| s.type_.as_deref()) == Some("ExternalName")
            || spec.and_then(|s| s.selector.as_ref()).is_none_or(|s| s.is_empty())
        {
            return Ok(Requeue::No);
        }
        let pods: Vec<Arc<Pod>> = self.pods.in_namespace(namespace).into_iter().filter(|p| selects(&service, p)).collect();
        let zones: HashMap<String, String> = self
            .nodes
            .list()
            .iter()
            .filter_map(|n| Some((n.name_any(), n.labels().get("topology.kubernetes.io/zone")?.clone())))
            .collect();
        let wanted = endpoints(&service, &pods, |node| zones.get(node).cloned());
        let existing: Vec<Arc<EndpointSlice>> = self
            .slices
            .in_namespace(namespace)
            .into_iter()
            .filter(|s| s.labels().get(SERVICE_NAME).is_some_and(|n| n == name))
            .filter(|s| s.labels().get(MANAGED_BY).is_some_and(|m| m == MANAGER))
            .collect();
        let api = Api::<EndpointSlice>::namespaced(self.client.clone(), namespace);
        let results: Vec<kube::Result<()>> = futures::stream::iter(plan(&service, &existing, wanted))
            .then(|action| apply(&api, action))
            .collect()
            .await;
        results.into_iter().collect::<kube::Result<()>>()?;
        Ok(Requeue::No)
    }
}

async fn apply(api: &Api<EndpointSlice>, action: Action) -> kube::Result<()> {
    let result = match action {
        Action::Create(slice) => api.create(&PostParams::default(), &slice).await.map(|_| ()),
        Action::Update(slice) => api.replace(&slice.name_any(), &PostParams::default(), &slice).await.map(|_| ()),
        Action::Delete(name) => api.delete(&name, &DeleteParams::default()).await.map(|_| ()),
    };
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 403 && status.message.contains("being terminated") => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, ip: &str, ready: bool, leaving: bool) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "ns"},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]}
        });
        if leaving {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn service() -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "ns"}, "spec": {
            "selector": {"app": "a"}, "ports": [{"port": 80, "targetPort": "web", "protocol": "TCP"}]}}))
        .expect("a service")
    }

    #[test]
    fn named_ports_are_resolved_and_conditions_told() {
        let pods = [pod("a", "10.0.0.1", true, false), pod("b", "10.0.0.2", false, false), pod("c", "10.0.0.3", true, true), pod("d", "", true, false)];
        let wanted = endpoints(&service(), &pods, |_| Some("z".into()));
        assert_eq!(wanted.len(), 1);
        assert_eq!(wanted[0].ports[0].port, Some(8080));
        let conditions: Vec<_> = wanted[0]
            .endpoints
            .iter()
            .map(|e| {
                let c = e.conditions.clone().expect("conditions");
                (e.addresses[0].as_str(), c.ready, c.serving, c.terminating)
            })
            .collect();
        assert_eq!(
            conditions,
            [
                ("10.0.0.1", Some(true), Some(true), Some(false)),
                ("10.0.0.2", Some(false), Some(false), Some(false)),
                ("10.0.0.3", Some(false), Some(true), Some(true)),
            ]
        );
    }

    #[test]
    fn a_slice_is_made_then_left_alone_then_changed() {
        let service = service();
        let first = endpoints(&service, &[pod("a", "10.0.0.1", true, false)], |_| None);
        let actions = plan(&service, &[], first.clone());
        let [Action::Create(slice)] = &actions[..] else { panic!("{actions:?}") };
        let mut made = slice.clone();
        made.metadata.name = Some("s-x".into());
        let made = Arc::new(made);
        assert_eq!(plan(&service, std::slice::from_ref(&made), first), []);
        let second = endpoints(&service, &[pod("a", "10.0.0.1", false, false)], |_| None);
        assert!(matches!(&plan(&service, std::slice::from_ref(&made), second)[..], [Action::Update(_)]));
        let extra = Arc::new(EndpointSlice { metadata: ObjectMeta { name: Some("s-y".into()), ..Default::default() }, ..made.as_ref().clone() });
        let none = endpoints(&service, &[], |_| None);
        assert_eq!(plan(&service, &[made, extra], none).len(), 2, "one is emptied, the other deleted");
    }
}
