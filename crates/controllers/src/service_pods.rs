//! What endpoints and endpoint slices have in common: which pods are behind a service, under which
//! ports, and when the change that is being told happened.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointPort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use parking_lot::Mutex;
use reconcile::{Change, Informer, Queue};

use crate::pod::Pod;
use crate::pods;

/// Annotation: when the change happened that led to this write.
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Label of what belongs to a service without a cluster address.
pub const HEADLESS: &str = "service.kubernetes.io/headless";

/// A service's namespace and name.
pub type Key = (String, String);

/// Whether a service with a selector selects a pod.
pub fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|s| !s.is_empty() && s.iter().all(|(k, v)| pod.labels().get(k) == Some(v)))
}

/// Whether the controllers make endpoints for a service.
pub fn has_endpoints(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|s| s.type_.as_deref()) != Some("ExternalName") && spec.and_then(|s| s.selector.as_ref()).is_some_and(|s| !s.is_empty())
}

/// Whether a service has no cluster address.
pub fn is_headless(service: &Service) -> bool {
    matches!(service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()).unwrap_or(""), "" | "None")
}

/// The pods that a service selects.
pub fn selected(pods: &Informer<Pod>, service: &Service) -> Vec<Arc<Pod>> {
    pods.in_namespace(&service.namespace().unwrap_or_default()).into_iter().filter(|p| selects(service, p)).collect()
}

/// Whether a pod may be an endpoint: it has an address and has not ended.
pub fn is_endpoint(pod: &Pod, leaving_too: bool) -> bool {
    let has_address = pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()).is_some_and(|ip| !ip.is_empty());
    has_address && !matches!(pods::phase(pod), "Succeeded" | "Failed") && (leaving_too || pod.metadata.deletion_timestamp.is_none())
}

/// The addresses of a pod of one family.
pub fn addresses(pod: &Pod, ipv6: bool) -> Vec<String> {
    let status = pod.status.clone().unwrap_or_default();
    let mut all: Vec<String> = status.pod_ips.into_iter().flatten().map(|ip| ip.ip).collect();
    if all.is_empty() {
        all.extend(status.pod_ip);
    }
    all.retain(|ip| !ip.is_empty() && ip.contains(':') == ipv6);
    all
}

/// The host name under which a service's pod is known.
pub fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let ours = spec.subdomain == service.metadata.name && pod.namespace() == service.namespace();
    spec.hostname.clone().filter(|h| !h.is_empty() && ours)
}

/// The reference from an endpoint to its pod.
pub fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.namespace(),
        name: pod.metadata.name.clone(),
        uid: pod.uid(),
        ..ObjectReference::default()
    }
}

/// The ports of a pod that a service leads to. A named one that the pod has not is left out.
pub fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    service.spec.iter().flat_map(|s| s.ports.iter().flatten()).filter_map(|p| port(p, pod)).collect()
}

fn port(port: &ServicePort, pod: &Pod) -> Option<EndpointPort> {
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

/// Puts services into `queue` when they change, and when a pod changes in what endpoints tell of it.
pub fn follow(services: &Informer<Service>, pods: &Informer<Pod>, queue: &Queue<Key>) {
    let q = queue.clone();
    services.on_change(move |c| q.add((c.latest().namespace().unwrap_or_default(), c.latest().name_any())));
    let (q, services) = (queue.clone(), services.clone());
    pods.on_change(move |change| {
        if matters(change) {
            for pod in [&change.old, &change.new].into_iter().flatten() {
                let namespace = pod.namespace().unwrap_or_default();
                let hit = services.in_namespace(&namespace).into_iter().filter(|s| selects(s, pod));
                hit.for_each(|service| q.add((namespace.clone(), service.name_any())));
            }
        }
    });
}

/// Whether a pod's change is one that endpoints show.
pub fn matters(change: &Change<Pod>) -> bool {
    let (Some(old), Some(new)) = (&change.old, &change.new) else { return true };
    let told = |pod: &Pod| {
        let status = pod.status.as_ref();
        let spec = pod.spec.as_ref();
        (
            pod.uid(),
            pod.metadata.deletion_timestamp.is_some(),
            pods::is_ready(pod),
            is_endpoint(pod, true),
            status.and_then(|s| s.pod_ips.clone()),
            spec.map(|s| (s.node_name.clone(), s.hostname.clone(), s.subdomain.clone())),
        )
    };
    old.labels() != new.labels() || told(old) != told(new)
}

#[derive(Default)]
struct Seen {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

/// When what endpoints show changed last, by service.
#[derive(Clone, Default)]
pub struct TriggerTimes(Arc<Mutex<HashMap<Key, Seen>>>);

impl TriggerTimes {
    /// The earliest of the changes that were not seen before; nothing when none is new. To be asked at
    /// every sync, so that what led to no write is not told later.
    pub fn of(&self, service: &Service, pods: &[Arc<Pod>]) -> Option<Timestamp> {
        let key = (service.namespace().unwrap_or_default(), service.name_any());
        let created = service.metadata.creation_timestamp.as_ref().map(|t| t.0);
        let changed = |pod: &Pod| {
            let conditions = pod.status.as_ref()?.conditions.as_ref()?;
            conditions.iter().find(|c| c.type_ == "Ready")?.last_transition_time.as_ref().map(|t| t.0)
        };
        let times: HashMap<String, Timestamp> = pods.iter().filter_map(|p| Some((p.name_any(), changed(p)?))).collect();
        let mut all = self.0.lock();
        let known = all.contains_key(&key);
        let seen = all.entry(key).or_default();
        let news = times.iter().filter(|(name, at)| seen.pods.get(*name).is_none_or(|before| before < at)).map(|(_, at)| *at);
        let earliest = news.chain(created.filter(|c| seen.service.is_none_or(|before| before < *c))).min();
        seen.pods = times;
        seen.service = created;
        if known { earliest } else { created }
    }

    /// Forgets a service.
    pub fn forget(&self, key: &Key) {
        self.0.lock().remove(key);
    }
}

/// A time as upstream writes it into the annotation.
pub fn trigger_text(at: Timestamp) -> String {
    at.to_string()
}

/// What is gone needs no endpoints, and nothing can be made in a namespace that is going away.
pub fn forgive(result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 403 && status.message.contains("being terminated") => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(status: Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "status": status})).expect("a pod"))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn only_what_endpoints_show_matters() {
        let ready = |s: &str| json!([{"type": "Ready", "status": s}]);
        let old = pod(json!({"podIP": "10.0.0.1", "conditions": ready("True")}));
        let same = pod(json!({"podIP": "10.0.0.1", "conditions": ready("True"), "message": "x"}));
        let other = pod(json!({"podIP": "10.0.0.1", "conditions": ready("False")}));
        let change = |new: &Arc<Pod>| Change { old: Some(old.clone()), new: Some(new.clone()) };
        assert!(!matters(&change(&same)));
        assert!(matters(&change(&other)));
        assert!(matters(&Change { old: None, new: Some(old.clone()) }));
    }

    #[test]
    fn the_earliest_new_change_is_told_once() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "ns", "creationTimestamp": at(1).to_string()}})).expect("a service");
        let pod = |name: &str, second| {
            let status = json!({"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at(second).to_string()}]});
            Arc::new(serde_json::from_value::<Pod>(json!({"metadata": {"name": name}, "status": status})).expect("a pod"))
        };
        let times = TriggerTimes::default();
        assert_eq!(times.of(&service, &[]), Some(at(1)));
        assert_eq!(times.of(&service, &[]), None);
        assert_eq!(times.of(&service, &[pod("a", 7), pod("b", 5)]), Some(at(5)));
        assert_eq!(times.of(&service, &[pod("a", 9), pod("b", 5)]), Some(at(9)));
        assert_eq!(times.of(&service, &[pod("b", 5)]), None, "a pod that went has no time");
        let mut anew = service.clone();
        anew.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(20)));
        assert_eq!(times.of(&anew, &[pod("b", 5)]), Some(at(20)), "it was made anew");
        times.forget(&("ns".into(), "s".into()));
        assert_eq!(times.of(&service, &[pod("b", 5)]), Some(at(1)), "nothing is known of it");
        assert_eq!(trigger_text(at(1) + jiff::SignedDuration::from_millis(500)), "1970-01-01T00:00:01.5Z");
    }

    #[test]
    fn services_select_by_labels_and_none_is_not_all() {
        let service = |spec: Value| serde_json::from_value::<Service>(json!({"metadata": {"name": "s", "namespace": "ns"}, "spec": spec})).expect("a service");
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"a": "1", "b": "2"}}})).expect("a pod");
        assert!(selects(&service(json!({"selector": {"a": "1"}})), &pod));
        assert!(!selects(&service(json!({"selector": {"a": "1", "b": "1"}})), &pod));
        assert!(!selects(&service(json!({"selector": {}})), &pod) && !selects(&service(json!({})), &pod));
        assert!(has_endpoints(&service(json!({"selector": {"a": "1"}}))));
        assert!(!has_endpoints(&service(json!({"selector": {}}))) && !has_endpoints(&service(json!({}))));
        assert!(!has_endpoints(&service(json!({"type": "ExternalName", "selector": {"a": "1"}}))));
        assert!(is_headless(&service(json!({"clusterIP": "None"}))) && is_headless(&service(json!({}))) && !is_headless(&service(json!({"clusterIP": "10.0.0.1"}))));
        let reference = target(&pod);
        let named = [&reference.kind, &reference.namespace, &reference.name, &reference.uid].map(|field| field.as_deref().unwrap_or(""));
        assert_eq!(named, ["Pod", "ns", "p", "u"]);
    }

    #[test]
    fn endpoints_are_pods_with_an_address_that_have_not_ended() {
        let leaving = |pod: &Arc<Pod>| {
            let mut pod = pod.as_ref().clone();
            pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(1)));
            pod
        };
        let runs = pod(json!({"podIP": "10.0.0.1", "phase": "Running"}));
        assert!(is_endpoint(&runs, false) && is_endpoint(&leaving(&runs), true) && !is_endpoint(&leaving(&runs), false));
        for status in [json!({}), json!({"podIP": ""}), json!({"podIP": "10.0.0.1", "phase": "Failed"}), json!({"podIP": "10.0.0.1", "phase": "Succeeded"})] {
            assert!(!is_endpoint(&pod(status), true));
        }
        let both = pod(json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}));
        assert_eq!((addresses(&both, false), addresses(&both, true)), (vec!["10.0.0.1".to_string()], vec!["fd00::1".to_string()]));
        assert_eq!((addresses(&runs, false), addresses(&runs, true)), (vec!["10.0.0.1".to_string()], vec![]));
    }

    #[test]
    fn what_is_gone_is_forgiven_and_what_is_refused_is_not() {
        assert!(forgive(Ok(())).is_ok() && forgive(Err(pods::refused(404, "NotFound"))).is_ok());
        assert!(forgive(Err(pods::refused(409, "Conflict"))).is_err() && forgive(Err(pods::refused(403, "Forbidden"))).is_err());
        let ending = |code| pods::saying(code, "unable to create new content in namespace ns because it is being terminated");
        assert!(forgive(Err(ending(403))).is_ok() && forgive(Err(ending(500))).is_err());
    }

    #[tokio::test]
    async fn pods_of_a_service_are_those_of_its_namespace_that_it_selects() {
        let pod = |namespace: &str, name: &str, app: &str| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": {"app": app}}});
        let pods = crate::testing::informer::<Pod>(vec![pod("ns", "a", "x"), pod("ns", "b", "y"), pod("other", "c", "x")]).await;
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "ns"}, "spec": {"selector": {"app": "x"}}})).expect("a service");
        assert_eq!(selected(&pods, &service).iter().map(|p| p.name_any()).collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn a_pod_has_a_name_in_the_service_that_it_names() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "ns"}})).expect("a service");
        let name = |namespace: &str, subdomain: &str, host: &str| {
            let spec = json!({"hostname": host, "subdomain": subdomain, "containers": []});
            hostname(&service, &serde_json::from_value(json!({"metadata": {"name": "p", "namespace": namespace}, "spec": spec})).expect("a pod"))
        };
        assert_eq!(name("ns", "s", "web").as_deref(), Some("web"));
        for (namespace, subdomain, host) in [("ns", "other", "web"), ("other", "s", "web"), ("ns", "s", "")] {
            assert_eq!(name(namespace, subdomain, host), None, "{host:?} in {subdomain} of {namespace}");
        }
    }

    #[test]
    fn a_named_port_is_of_a_container_or_a_sidecar() {
        let service: Service = serde_json::from_value(json!({"metadata": {}, "spec": {"ports": [{"port": 80, "targetPort": "web"}]}})).expect("a service");
        let of = |restart: Option<&str>| {
            let init = json!([{"name": "i", "restartPolicy": restart, "ports": [{"name": "web", "containerPort": 8080}]}]);
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [{"name": "c"}], "initContainers": init}})).expect("a pod");
            ports(&service, &pod).into_iter().map(|p| p.port).collect::<Vec<_>>()
        };
        assert_eq!((of(Some("Always")), of(None)), (vec![Some(8080)], vec![]));
    }
}
