//! Endpoints: the older form of endpoint slices, for clients that still read it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Client, ResourceExt};
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, run_workers};

use crate::pod::Pod;
use crate::service_pods::{self, HEADLESS, Key, TRIGGER_TIME, TriggerTimes, forgive};
use crate::{Context, pods};

/// Addresses that one object may hold.
const MOST: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";

/// The subsets of a service, with addresses in order, grouped by ports.
pub fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let spec = service.spec.clone().unwrap_or_default();
    let publish_all = spec.publish_not_ready_addresses == Some(true);
    let ipv6 = match spec.ip_families.as_deref() {
        Some([first, ..]) => first == "IPv6",
        _ => spec.cluster_ip.as_deref().is_some_and(|ip| ip.contains(':')),
    };
    let mut groups: BTreeMap<Vec<(String, i32, String)>, EndpointSubset> = BTreeMap::new();
    for pod in pods.iter().filter(|p| service_pods::is_endpoint(p, publish_all)) {
        let Some(ip) = service_pods::addresses(pod, ipv6).into_iter().next() else { continue };
        let ports: Vec<EndpointPort> = service_pods::ports(service, pod)
            .into_iter()
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
        let address = EndpointAddress {
            ip,
            hostname: service_pods::hostname(service, pod),
            node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
            target_ref: Some(service_pods::target(pod)),
        };
        let list = if publish_all || pods::is_ready(pod) { &mut group.addresses } else { &mut group.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    groups.into_values().collect()
}

/// Makes subsets hold no more than they may: ready addresses first, each subset its part. True when
/// some had to go.
pub fn truncate(subsets: &mut [EndpointSubset], most: usize) -> bool {
    let count = |list: fn(&EndpointSubset) -> &Option<Vec<EndpointAddress>>, subsets: &[EndpointSubset]| {
        subsets.iter().map(|s| list(s).as_ref().map_or(0, Vec::len)).sum::<usize>()
    };
    let ready = count(|s| &s.addresses, subsets);
    let unready = count(|s| &s.not_ready_addresses, subsets);
    if ready + unready <= most {
        return false;
    }
    let cut_ready = ready > most;
    let (room, total) = if cut_ready { (most, ready) } else { (most - ready, unready) };
    let mut left = room;
    for subset in subsets {
        if cut_ready {
            subset.not_ready_addresses = None;
        }
        let list = if cut_ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        let Some(addresses) = list else { continue };
        let part = (addresses.len() * room).div_ceil(total).min(left);
        addresses.truncate(part);
        left -= addresses.len();
        if addresses.is_empty() {
            *list = None;
        }
    }
    true
}

/// The object to write for a service, or nothing when `existing` is as it should be.
pub fn plan(service: &Service, pods: &[Arc<Pod>], existing: Option<&Endpoints>, trigger: Option<String>) -> Option<Endpoints> {
    let mut wanted = subsets(service, pods);
    let truncated = truncate(&mut wanted, MOST);
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    if service_pods::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let told = existing.is_some_and(|e| e.annotations().get(OVER_CAPACITY).is_some_and(|v| v == "truncated"));
    if let Some(old) = existing
        && old.subsets.clone().unwrap_or_default() == wanted
        && *old.labels() == labels
        && told == truncated
    {
        return None;
    }
    let mut new = existing.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta { name: service.metadata.name.clone(), namespace: service.namespace(), ..ObjectMeta::default() },
        subsets: None,
    });
    new.metadata.labels = Some(labels);
    let mut annotation = |key: &str, value: Option<String>| match value {
        Some(value) => drop(new.metadata.annotations.get_or_insert_default().insert(key.into(), value)),
        None => drop(new.metadata.annotations.as_mut().and_then(|a| a.remove(key))),
    };
    annotation(TRIGGER_TIME, trigger);
    annotation(OVER_CAPACITY, truncated.then(|| "truncated".to_string()));
    new.subsets = Some(wanted);
    Some(new)
}

#[derive(Clone)]
struct Controller {
    client: Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
    times: TriggerTimes,
    recorder: Recorder,
}

/// Starts the controller.
pub fn start(context: &Context) {
    let controller = Controller {
        client: context.client.clone(),
        services: context.informers.of::<Service>(),
        pods: context.informers.of::<Pod>(),
        endpoints: context.informers.of::<Endpoints>(),
        times: TriggerTimes::default(),
        recorder: Recorder::new(&context.tasks, context.client.clone(), "endpoint-controller", None),
    };
    let queue = Queue::<Key>::new();
    service_pods::follow(&controller.services, &controller.pods, &queue);
    // What we made for services that went while nobody looked.
    let q = queue.clone();
    controller.endpoints.on_change(move |change| {
        let endpoints = change.latest();
        if change.old.is_none() && endpoints.labels().get(MANAGED_BY).is_some_and(|m| m == MANAGER) {
            q.add((endpoints.namespace().unwrap_or_default(), endpoints.name_any()));
        }
    });
    run_workers(&context.tasks, "endpoints", context.workers(5), queue, move |key: Key| {
        let controller = controller.clone();
        async move {
            controller.services.synced().await;
            controller.pods.synced().await;
            controller.endpoints.synced().await;
            controller.sync(&key).await
        }
    });
}

impl Controller {
    async fn sync(&self, key: &Key) -> kube::Result<Requeue> {
        let (namespace, name) = key;
        let api = Api::<Endpoints>::namespaced(self.client.clone(), namespace);
        let existing = self.endpoints.get(namespace, name);
        let Some(service) = self.services.get(namespace, name) else {
            self.times.forget(key);
            if existing.is_some() {
                forgive(api.delete(name, &DeleteParams::default()).await.map(|_| ()))?;
            }
            return Ok(Requeue::No);
        };
        if !service_pods::has_endpoints(&service) {
            return Ok(Requeue::No);
        }
        let pods = service_pods::selected(&self.pods, &service);
        let trigger = self.times.of(&service, &pods).map(service_pods::trigger_text);
        let Some(new) = plan(&service, &pods, existing.as_deref(), trigger) else { return Ok(Requeue::No) };
        let (result, reason) = match &existing {
            Some(_) => (api.replace(name, &PostParams::default(), &new).await, "FailedToUpdateEndpoint"),
            None => (api.create(&PostParams::default(), &new).await, "FailedToCreateEndpoint"),
        };
        let outcome = forgive(result.map(|_| ()));
        if let Err(error) = &outcome {
            let verb = if existing.is_some() { "update" } else { "create" };
            let text = format!("Failed to {verb} endpoint {namespace}/{name}: {}", pods::text(error));
            self.recorder.event(&Reference::of(&new), EventType::Warning, reason, text);
        }
        outcome.map(|()| Requeue::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, ip: &str, ready: &str, port: &str) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "namespace": "ns"},
            "spec": {"nodeName": "n", "hostname": name, "subdomain": "s", "containers": [{"name": "c", "ports": [{"name": port, "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": ready}]}});
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn service(more: serde_json::Value) -> Service {
        let mut spec = json!({"clusterIP": "10.96.0.9", "selector": {"app": "a"}, "ports": [{"port": 80, "targetPort": "web", "protocol": "TCP"}]});
        more.as_object().expect("an object").iter().for_each(|(k, v)| spec[k] = v.clone());
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "ns", "labels": {"l": "1"}}, "spec": spec})).expect("a service")
    }

    fn ips(list: &Option<Vec<EndpointAddress>>) -> Vec<&str> {
        list.iter().flatten().map(|a| a.ip.as_str()).collect()
    }

    #[test]
    fn ready_and_other_addresses_are_kept_apart() {
        let pods = [pod("a", "10.0.0.1", "True", "web"), pod("b", "10.0.0.2", "False", "web"), pod("c", "10.0.0.3", "True", "other")];
        let all = subsets(&service(json!({})), &pods);
        assert_eq!(all.len(), 1, "a pod without the named port is none");
        assert_eq!((ips(&all[0].addresses), ips(&all[0].not_ready_addresses)), (vec!["10.0.0.1"], vec!["10.0.0.2"]));
        assert_eq!(all[0].addresses.as_ref().and_then(|a| a[0].hostname.as_deref()), Some("a"));
        assert_eq!(json!(all[0].ports), json!([{"port": 8080, "protocol": "TCP"}]));
        let named = subsets(&service(json!({"ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]})), &pods);
        assert_eq!(json!(named[0].ports), json!([{"name": "http", "port": 8080, "protocol": "TCP"}]));
        let published = subsets(&service(json!({"publishNotReadyAddresses": true})), &pods);
        assert_eq!(ips(&published[0].addresses), ["10.0.0.1", "10.0.0.2"]);
        let bare = subsets(&service(json!({"clusterIP": "None", "ports": null})), &pods);
        assert_eq!(ips(&bare[0].addresses), ["10.0.0.1", "10.0.0.3"]);
        assert_eq!(bare[0].ports, None);
        assert!(subsets(&service(json!({"ipFamilies": ["IPv6"]})), &pods).is_empty());
    }

    #[test]
    fn it_is_written_when_something_differs_and_only_then() {
        let pods = [pod("a", "10.0.0.1", "True", "web")];
        let first = plan(&service(json!({})), &pods, None, Some("t".into())).expect("it is made");
        assert_eq!((first.metadata.name.as_deref(), first.metadata.namespace.as_deref()), (Some("s"), Some("ns")));
        assert_eq!(first.labels().get(MANAGED_BY).map(String::as_str), Some(MANAGER));
        assert_eq!(first.annotations().get(TRIGGER_TIME).map(String::as_str), Some("t"));
        assert_eq!(plan(&service(json!({})), &pods, Some(&first), Some("u".into())), None);
        let headless = plan(&service(json!({"clusterIP": "None"})), &pods, Some(&first), None).expect("its labels differ");
        assert!(headless.labels().contains_key(HEADLESS) && !headless.annotations().contains_key(TRIGGER_TIME));
        assert!(plan(&service(json!({})), &[], Some(&first), None).is_some());
    }

    #[test]
    fn too_many_are_cut_ready_ones_last() {
        let addresses = |n: usize| Some((0..n).map(|i| EndpointAddress { ip: format!("10.0.0.{i}"), ..Default::default() }).collect::<Vec<_>>());
        let subset = |ready, unready| EndpointSubset { addresses: addresses(ready), not_ready_addresses: addresses(unready), ports: None };
        let sizes = |subsets: &[EndpointSubset]| -> Vec<(usize, usize)> {
            subsets.iter().map(|s| (ips(&s.addresses).len(), ips(&s.not_ready_addresses).len())).collect()
        };
        let mut few = [subset(3, 2)];
        assert!(!truncate(&mut few, 5));
        let mut some = [subset(2, 4), subset(2, 4)];
        assert!(truncate(&mut some, 8));
        assert_eq!(sizes(&some), [(2, 2), (2, 2)]);
        let mut many = [subset(6, 1), subset(3, 1)];
        assert!(truncate(&mut many, 5));
        assert_eq!(sizes(&many), [(4, 0), (1, 0)]);
        let mut three = [subset(3, 0), subset(3, 0), subset(3, 0)];
        assert!(truncate(&mut three, 7));
        assert_eq!(sizes(&three), [(3, 0), (3, 0), (1, 0)]);
    }

    #[test]
    fn a_list_that_was_cut_says_so() {
        let many: Vec<Arc<Pod>> = (0..=MOST).map(|n| pod(&format!("p{n:04}"), &format!("10.0.{}.{}", n / 250, n % 250), "True", "web")).collect();
        let cut = plan(&service(json!({})), &many, None, None).expect("it is made");
        assert_eq!(cut.annotations().get(OVER_CAPACITY).map(String::as_str), Some("truncated"));
        assert_eq!(plan(&service(json!({})), &many, Some(&cut), None), None, "it is as it should be");
        let mut other = cut.clone();
        other.annotations_mut().insert(OVER_CAPACITY.into(), "warning".into());
        assert!(plan(&service(json!({})), &many, Some(&other), None).is_some());
        let whole = plan(&service(json!({})), &many[..1], Some(&cut), None).expect("fewer");
        assert!(!whole.annotations().contains_key(OVER_CAPACITY));
    }
}
