//! Which slices a service is to have, and how to get there by few writes. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::{MANAGED_BY, MANAGER, SERVICE_NAME};
use crate::pod::Pod;
use crate::service_pods::{self, HEADLESS, TRIGGER_TIME};
use crate::{ownership, pods};


/// What is to be done with the slices of a service.
#[derive(Debug, PartialEq)]
pub enum Action {
    Create(EndpointSlice),
    Update(EndpointSlice),
    Delete(String),
}

type Ports = Vec<(String, i32, String, String)>;

fn key(ports: &[EndpointPort]) -> Ports {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let mut key: Ports = ports.iter().map(|p| (text(&p.name), p.port.unwrap_or(0), text(&p.protocol), text(&p.app_protocol))).collect();
    key.sort();
    key
}

/// The address families that a service has.
fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.clone().unwrap_or_default();
    let named: Vec<&'static str> =
        spec.ip_families.iter().flatten().filter_map(|f| ["IPv4", "IPv6"].into_iter().find(|known| known == f)).collect();
    match spec.cluster_ip.as_deref().unwrap_or("") {
        _ if !named.is_empty() => named,
        "" | "None" => vec!["IPv4", "IPv6"],
        ip if ip.contains(':') => vec!["IPv6"],
        _ => vec!["IPv4"],
    }
}

/// Whom an endpoint is meant for, by the service's wish for near ones.
fn hints(service: &Service, endpoint: &Endpoint) -> Option<EndpointHints> {
    let annotation = |key: &str| service.annotations().get(key).map(String::as_str);
    let mode = annotation("service.kubernetes.io/topology-aware-hints").or_else(|| annotation("service.kubernetes.io/topology-mode"));
    let wish = service.spec.as_ref().and_then(|s| s.traffic_distribution.as_deref());
    let near = matches!(wish, Some("PreferClose" | "PreferSameZone" | "PreferSameNode"));
    let ready = endpoint.conditions.as_ref().is_some_and(|c| c.ready == Some(true));
    if !near || !ready || matches!(mode, Some("Auto" | "auto")) {
        return None;
    }
    let for_zones = endpoint.zone.clone().map(|name| vec![ForZone { name }]);
    let for_nodes = endpoint.node_name.clone().filter(|_| wish == Some("PreferSameNode")).map(|name| vec![ForNode { name }]);
    (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints { for_zones, for_nodes })
}

/// The endpoint of a pod, if it has an address of the family. `zone` tells the zone of a node that
/// exists.
fn endpoint(service: &Service, pod: &Pod, ipv6: bool, zone: Option<String>) -> Option<Endpoint> {
    let addresses = service_pods::addresses(pod, ipv6);
    if addresses.is_empty() {
        return None;
    }
    let publish_all = service.spec.as_ref().is_some_and(|s| s.publish_not_ready_addresses == Some(true));
    let (serving, leaving) = (pods::is_ready(pod), pod.metadata.deletion_timestamp.is_some());
    let ready = publish_all || (serving && !leaving);
    let mut endpoint = Endpoint {
        addresses,
        conditions: Some(EndpointConditions { ready: Some(ready), serving: Some(serving), terminating: Some(leaving) }),
        hostname: service_pods::hostname(service, pod),
        zone,
        node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        target_ref: Some(service_pods::target(pod)),
        ..Endpoint::default()
    };
    endpoint.hints = hints(service, &endpoint);
    Some(endpoint)
}

/// Endpoints by what they are: the same one may change its conditions and place.
type Set = BTreeMap<(Vec<String>, String, String), Endpoint>;

fn identity(endpoint: &Endpoint) -> (Vec<String>, String, String) {
    let target = endpoint.target_ref.as_ref().map(|t| format!("{}/{}", t.name.as_deref().unwrap_or(""), t.uid.as_deref().unwrap_or("")));
    (endpoint.addresses.clone(), endpoint.hostname.clone().unwrap_or_default(), target.unwrap_or_default())
}

/// The labels of a service's slices.
pub fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    if service_pods::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), service.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

/// Makes the existing slices of a service hold its pods. `zone` tells of a node whether it exists, and
/// its zone; a pod of a node that does not is left out unless the service takes all.
pub fn plan(
    service: &Service,
    existing: &[Arc<EndpointSlice>],
    pods: &[Arc<Pod>],
    zone: impl Fn(&str) -> Option<Option<String>>,
    trigger: Option<&str>,
    per_slice: usize,
) -> Vec<Action> {
    let families = families(service);
    let of_service = |s: &EndpointSlice| {
        s.owner_references().iter().any(|o| Some(&o.uid) == service.metadata.uid.as_ref() && o.kind == "Service")
    };
    let mut actions = Vec::new();
    let usable = |s: &&Arc<EndpointSlice>| s.metadata.deletion_timestamp.is_none();
    for slice in existing.iter().filter(usable).filter(|s| !families.contains(&s.address_type.as_str())) {
        actions.push(Action::Delete(slice.name_any()));
    }
    for family in families {
        let ipv6 = family == "IPv6";
        let (own, foreign): (Vec<_>, Vec<_>) =
            existing.iter().filter(usable).filter(|s| s.address_type == family).partition(|s| of_service(s));
        let mut wanted: BTreeMap<Ports, (Vec<EndpointPort>, Set)> = BTreeMap::new();
        for pod in pods.iter().filter(|p| service_pods::is_endpoint(p, true)) {
            let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("");
            let known = zone(node);
            if known.is_none() && service.spec.as_ref().is_none_or(|s| s.publish_not_ready_addresses != Some(true)) {
                continue;
            }
            let Some(endpoint) = endpoint(service, pod, ipv6, known.flatten()) else { continue };
            let ports = service_pods::ports(service, pod);
            wanted.entry(key(&ports)).or_insert_with(|| (ports, Set::new())).1.insert(identity(&endpoint), endpoint);
        }
        if wanted.is_empty() {
            wanted.insert(Ports::new(), (Vec::new(), Set::new()));
        }
        actions.extend(of_family(service, family, &own, wanted, trigger, per_slice));
        actions.extend(foreign.into_iter().map(|s| Action::Delete(s.name_any())));
    }
    actions
}

fn of_family(
    service: &Service,
    family: &str,
    own: &[&Arc<EndpointSlice>],
    wanted: BTreeMap<Ports, (Vec<EndpointPort>, Set)>,
    trigger: Option<&str>,
    per_slice: usize,
) -> Vec<Action> {
    let labels = labels(service);
    let mut spare: Vec<&Arc<EndpointSlice>> = own.iter().filter(|s| !wanted.contains_key(&key(s.ports.as_deref().unwrap_or(&[])))).copied().collect();
    let mut fresh: Vec<(Vec<EndpointPort>, Vec<Endpoint>)> = Vec::new();
    let mut changed: Vec<EndpointSlice> = Vec::new();
    for (ports_key, (ports, set)) in wanted {
        let mine: Vec<&Arc<EndpointSlice>> = own.iter().filter(|s| key(s.ports.as_deref().unwrap_or(&[])) == ports_key).copied().collect();
        // Nothing to hold: one empty slice says so.
        if set.is_empty() {
            match mine.iter().find(|s| s.endpoints.as_ref().is_none_or(Vec::is_empty)) {
                Some(kept) if *kept.labels() == labels => spare.extend(mine.iter().filter(|s| s.name_any() != kept.name_any())),
                _ => {
                    spare.extend(mine);
                    fresh.push((ports, Vec::new()));
                }
            }
            continue;
        }
        let (more, emptied) = pack(&mine, set, &labels, per_slice);
        spare.extend(emptied);
        for (slice, endpoints) in more {
            match slice {
                Some(slice) => changed.push(EndpointSlice { endpoints: Some(endpoints), ..slice.as_ref().clone() }),
                None => fresh.push((ports.clone(), endpoints)),
            }
        }
    }
    // A slice that is not needed becomes one that is: one write instead of two.
    let mut created = Vec::new();
    for (ports, endpoints) in fresh {
        match spare.pop() {
            Some(slice) => changed.push(EndpointSlice { ports: Some(ports), endpoints: Some(endpoints), ..slice.as_ref().clone() }),
            None => created.push(EndpointSlice {
                metadata: ObjectMeta {
                    generate_name: Some(format!("{}-", service.name_any())),
                    namespace: service.namespace(),
                    owner_references: Some(vec![ownership::controller_reference(service)]),
                    ..ObjectMeta::default()
                },
                address_type: family.into(),
                ports: Some(ports),
                endpoints: Some(endpoints),
            }),
        }
    }
    let finish = |mut slice: EndpointSlice| {
        slice.metadata.labels = Some(labels.clone());
        match trigger {
            Some(time) => drop(slice.annotations_mut().insert(TRIGGER_TIME.into(), time.to_string())),
            None => drop(slice.metadata.annotations.as_mut().and_then(|a| a.remove(TRIGGER_TIME))),
        }
        slice
    };
    let mut actions: Vec<Action> = created.into_iter().map(|s| Action::Create(finish(s))).collect();
    actions.extend(changed.into_iter().map(|s| Action::Update(finish(s))));
    actions.extend(spare.into_iter().map(|s| Action::Delete(s.name_any())));
    actions
}

type Packed<'a> = (Vec<(Option<&'a Arc<EndpointSlice>>, Vec<Endpoint>)>, Vec<&'a Arc<EndpointSlice>>);

/// Spreads endpoints over the slices that are there: what is in place stays there, slices that are
/// written anyway are filled first, and at most one other is. Returns what to write, and the slices
/// that hold nothing any more.
fn pack<'a>(slices: &[&'a Arc<EndpointSlice>], mut set: Set, labels: &BTreeMap<String, String>, per_slice: usize) -> Packed<'a> {
    let mut write: Vec<(Option<&'a Arc<EndpointSlice>>, Vec<Endpoint>)> = Vec::new();
    let (mut unchanged, mut emptied) = (Vec::new(), Vec::new());
    for &slice in slices {
        let old = slice.endpoints.clone().unwrap_or_default();
        let new: Vec<Endpoint> = old.iter().filter_map(|e| set.remove(&identity(e))).collect();
        if new.is_empty() {
            emptied.push(slice);
        } else if new != old || slice.labels() != labels {
            write.push((Some(slice), new));
        } else {
            unchanged.push(slice);
        }
    }
    let mut rest: Vec<Endpoint> = set.into_values().collect();
    write.sort_by_key(|(_, endpoints)| std::cmp::Reverse(endpoints.len()));
    for (_, endpoints) in &mut write {
        let room = per_slice.saturating_sub(endpoints.len()).min(rest.len());
        endpoints.extend(rest.drain(..room));
    }
    while !rest.is_empty() {
        let fits = |s: &&&Arc<EndpointSlice>| s.endpoints.as_ref().map_or(0, Vec::len) + rest.len() <= per_slice;
        let fullest = unchanged.iter().filter(fits).max_by_key(|s| s.endpoints.as_ref().map_or(0, Vec::len)).copied();
        let mut endpoints = Vec::new();
        if let Some(slice) = fullest {
            // All that is left fits: this is the last one.
            endpoints = slice.endpoints.clone().unwrap_or_default();
        }
        endpoints.extend(rest.drain(..per_slice.min(rest.len())));
        write.push((fullest, endpoints));
    }
    (write, emptied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_those_that_the_service_names_or_has() {
        let of = |spec: serde_json::Value| families(&serde_json::from_value(serde_json::json!({"metadata": {}, "spec": spec})).expect("a service"));
        assert_eq!(of(serde_json::json!({"ipFamilies": ["IPv6", "IPv4"], "clusterIP": "10.0.0.1"})), ["IPv6", "IPv4"]);
        assert_eq!(of(serde_json::json!({"clusterIP": "10.0.0.1"})), ["IPv4"]);
        assert_eq!(of(serde_json::json!({"clusterIP": "fd00::1"})), ["IPv6"]);
        assert_eq!((of(serde_json::json!({"clusterIP": "None"})), of(serde_json::json!({}))), (vec!["IPv4", "IPv6"], vec!["IPv4", "IPv6"]));
    }
}
