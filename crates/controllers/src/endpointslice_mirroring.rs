//! Mirrors Endpoints that users write, for services without a selector, into EndpointSlices.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, run_workers};

use crate::endpointslice::plan::Action;
use crate::endpointslice::{MANAGED_BY, SERVICE_NAME, apply, follow_slices, slices_of};
use crate::service_pods::{Key, TRIGGER_TIME};
use crate::{Context, ownership, pods};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// Annotations that are not mirrored.
const UNMIRRORED: [&str; 2] = [TRIGGER_TIME, "kubectl.kubernetes.io/last-applied-configuration"];

/// Whether Endpoints of this service are to be mirrored.
pub fn is_mirrored(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let skipped = endpoints.labels().get("endpointslice.kubernetes.io/skip-mirror").is_some_and(|v| v == "true");
    let election = endpoints.annotations().contains_key("control-plane.alpha.kubernetes.io/leader");
    let unselected = service.is_some_and(|s| s.spec.as_ref().and_then(|s| s.selector.as_ref()).is_none());
    !skipped && !election && unselected && endpoints.metadata.deletion_timestamp.is_none()
}

/// What a plan leads to: what to do, and what to tell of it.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub warnings: Vec<(&'static str, String)>,
}

fn endpoint(address: &EndpointAddress, ip: IpAddr, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

type SliceKey = (&'static str, String);

fn key(family: &'static str, ports: &[EndpointPort]) -> SliceKey {
    let mut all: Vec<String> = ports.iter().map(|p| format!("{:?}", (&p.name, p.port, &p.protocol, &p.app_protocol))).collect();
    all.sort();
    (family, all.join(","))
}

/// Makes slices mirror `endpoints`.
pub fn plan(endpoints: &Endpoints, existing: &[Arc<EndpointSlice>], most: usize) -> Plan {
    let mut wanted: BTreeMap<SliceKey, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
    let (mut invalid, mut skipped) = (0, 0);
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = (subset.ports.iter().flatten())
            .map(|p| EndpointPort {
                name: Some(p.name.clone().unwrap_or_default()),
                port: Some(p.port),
                protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: p.app_protocol.clone(),
            })
            .collect();
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let mut added = 0;
        for (address, ready) in ready.chain(subset.not_ready_addresses.iter().flatten().map(|a| (a, false))) {
            if added >= most {
                skipped += 1;
                continue;
            }
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                invalid += 1;
                continue;
            };
            added += 1;
            let family = if ip.is_ipv6() { "IPv6" } else { "IPv4" };
            let entry = wanted.entry(key(family, &ports)).or_insert_with(|| (ports.clone(), Vec::new()));
            entry.1.push(endpoint(address, ip, ready));
        }
    }
    let mut plan = Plan::default();
    if invalid > 0 {
        plan.warnings.push(("InvalidIPAddress", format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices")));
    }
    if skipped > 0 {
        let message = format!("A max of {most} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were skipped", skipped + invalid);
        plan.warnings.push(("TooManyAddressesToMirror", message));
    }

    let mut labels = endpoints.labels().clone();
    labels.insert(SERVICE_NAME.into(), endpoints.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations = endpoints.annotations().clone();
    annotations.retain(|key, _| !UNMIRRORED.contains(&key.as_str()));
    let mut spare: Vec<&Arc<EndpointSlice>> = existing.iter().filter(|s| s.metadata.deletion_timestamp.is_none()).collect();
    let mut missing = Vec::new();
    for ((family, ports_key), (ports, list)) in wanted {
        let same = spare.iter().position(|s| s.address_type == family && key(family, s.ports.as_deref().unwrap_or(&[])).1 == ports_key);
        missing.push((same.map(|at| spare.remove(at)), family, ports, list));
    }
    for (slice, family, ports, list) in missing {
        let slice = slice.or_else(|| spare.iter().position(|s| s.address_type == family).map(|at| spare.remove(at)));
        let mut new = match slice {
            Some(slice) => slice.as_ref().clone(),
            None => EndpointSlice {
                metadata: ObjectMeta {
                    generate_name: Some(format!("{}-", endpoints.name_any())),
                    namespace: endpoints.namespace(),
                    ..ObjectMeta::default()
                },
                address_type: family.into(),
                ..EndpointSlice::default()
            },
        };
        new.metadata.labels = Some(labels.clone());
        new.metadata.annotations = Some(annotations.clone()).filter(|a| !a.is_empty());
        new.metadata.owner_references = Some(vec![ownership::controller_reference(endpoints)]);
        new.ports = Some(ports);
        new.endpoints = Some(list);
        match slice {
            Some(old) if **old == new => {}
            Some(_) => plan.actions.push(Action::Update(new)),
            None => plan.actions.push(Action::Create(new)),
        }
    }
    plan.actions.extend(spare.into_iter().map(|s| Action::Delete(s.name_any())));
    plan
}

/// Starts the controller.
pub fn start(context: &Context, most: usize) {
    let services = context.informers.of::<Service>();
    let endpoints = context.informers.of::<Endpoints>();
    let slices: Informer<EndpointSlice> = context.informers.of::<EndpointSlice>();
    let recorder = Recorder::new(&context.tasks, context.client.clone(), "endpoint-slice-mirroring-controller", None);
    let queue = Queue::<Key>::new();
    let q = queue.clone();
    endpoints.on_change(move |c| q.add((c.latest().namespace().unwrap_or_default(), c.latest().name_any())));
    let q = queue.clone();
    services.on_change(move |c| {
        let selector = |s: &Option<Arc<Service>>| s.as_ref().map(|s| s.spec.as_ref().is_some_and(|s| s.selector.is_some()));
        if selector(&c.old) != selector(&c.new) {
            q.add((c.latest().namespace().unwrap_or_default(), c.latest().name_any()));
        }
    });
    follow_slices(&slices, MANAGER, &queue);
    let client = context.client.clone();
    run_workers(&context.tasks, "endpointslice-mirroring", context.workers(5), queue, move |(namespace, name): Key| {
        let (client, services, endpoints, slices, recorder) = (client.clone(), services.clone(), endpoints.clone(), slices.clone(), recorder.clone());
        async move {
            services.synced().await;
            endpoints.synced().await;
            slices.synced().await;
            let existing = slices_of(&slices, &namespace, &name, MANAGER);
            let service = services.get(&namespace, &name);
            let mirrored = endpoints.get(&namespace, &name).filter(|e| is_mirrored(e, service.as_deref()));
            let Some(mirrored) = mirrored else {
                let gone = existing.iter().map(|s| Action::Delete(s.name_any())).collect();
                return apply(&client, &namespace, gone).await.map(|()| Requeue::No);
            };
            let plan = plan(&mirrored, &existing, most);
            let reference = Reference::of(mirrored.as_ref());
            // A list that is cut is told of when it is written, not at every look.
            let warnings = plan.warnings.into_iter().filter(|_| !plan.actions.is_empty());
            warnings.for_each(|(reason, message)| recorder.event(&reference, EventType::Warning, reason, message));
            let outcome = apply(&client, &namespace, plan.actions).await;
            if let Err(error) = &outcome {
                let text = format!("Error updating EndpointSlices for Endpoints {namespace}/{name}: {}", pods::text(error));
                recorder.event(&reference, EventType::Warning, "FailedToUpdateEndpointSlices", text);
            }
            outcome.map(|()| Requeue::No)
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 1000;
    use serde_json::{Value, json};

    fn endpoints(subsets: Value) -> Endpoints {
        let meta = json!({"name": "s", "namespace": "ns", "uid": "e", "labels": {"l": "1"}, "annotations": {"mine": "2", TRIGGER_TIME: "now"}});
        serde_json::from_value(json!({"metadata": meta, "subsets": subsets})).expect("endpoints")
    }

    fn service(selector: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": {"selector": selector}})).expect("a service")
    }

    #[test]
    fn only_endpoints_of_users_are_mirrored() {
        let mut plain = endpoints(json!([]));
        assert!(is_mirrored(&plain, Some(&service(json!(null)))));
        assert!(!is_mirrored(&plain, Some(&service(json!({"app": "a"})))));
        assert!(!is_mirrored(&plain, None));
        plain.metadata.labels = Some([("endpointslice.kubernetes.io/skip-mirror".to_string(), "true".to_string())].into());
        assert!(!is_mirrored(&plain, Some(&service(json!(null)))));
    }

    #[test]
    fn a_mirror_is_made_kept_changed_and_removed() {
        let first = endpoints(json!([{"addresses": [{"ip": "10.0.0.1", "nodeName": "n", "hostname": "", "targetRef": {"kind": "Pod", "name": "p"}}, {"ip": "fd00::1"}, {"ip": "nonsense"}],
            "notReadyAddresses": [{"ip": "10.0.0.2", "hostname": "h"}], "ports": [{"port": 80, "protocol": "TCP"}]}]));
        let made = plan(&first, &[], MOST);
        assert_eq!(made.warnings.iter().map(|w| w.0).collect::<Vec<_>>(), ["InvalidIPAddress"]);
        let mut slices = Vec::new();
        for action in made.actions {
            let Action::Create(mut slice) = action else { panic!("{action:?}") };
            slice.metadata.name = Some(format!("s-{}", slice.address_type));
            slices.push(Arc::new(slice));
        }
        assert_eq!(slices.len(), 2);
        let four = &slices[0];
        let told: Vec<_> = four.endpoints.iter().flatten().map(|e| (e.addresses[0].as_str(), e.conditions.as_ref().and_then(|c| c.ready))).collect();
        assert_eq!(told, [("10.0.0.1", Some(true)), ("10.0.0.2", Some(false))]);
        assert_eq!(four.labels().get("l").map(String::as_str), Some("1"));
        assert_eq!(four.labels().get(MANAGED_BY).map(String::as_str), Some(MANAGER));
        assert_eq!(four.annotations().iter().collect::<Vec<_>>(), [(&"mine".to_string(), &"2".to_string())]);
        assert_eq!(four.owner_references()[0].kind, "Endpoints");
        assert_eq!((four.metadata.generate_name.as_deref(), four.metadata.namespace.as_deref()), (Some("s-"), Some("ns")));
        let [one, two] = four.endpoints.as_deref().expect("endpoints") else { panic!("two of this family") };
        assert_eq!((one.node_name.as_deref(), one.target_ref.as_ref().and_then(|t| t.name.as_deref())), (Some("n"), Some("p")));
        assert_eq!((one.hostname.as_deref(), two.hostname.as_deref()), (None, Some("h")));
        assert_eq!(plan(&first, &slices, MOST).actions, []);
        let second = endpoints(json!([{"addresses": [{"ip": "10.0.0.9"}], "ports": [{"port": 81}]}]));
        let changed = plan(&second, &slices, MOST).actions;
        assert!(matches!(&changed[..], [Action::Update(u), Action::Delete(d)] if u.name_any() == "s-IPv4" && d == "s-IPv6"), "{changed:?}");
        assert_eq!(plan(&endpoints(json!([])), &slices, MOST).actions.len(), 2);
    }

    #[test]
    fn a_subset_is_cut() {
        let addresses: Vec<Value> = (0..1002).map(|n| json!({"ip": format!("10.0.{}.{}", n / 250, n % 250)})).collect();
        let plan = plan(&endpoints(json!([{"addresses": addresses, "ports": [{"port": 80}]}])), &[], MOST);
        let [Action::Create(slice)] = &plan.actions[..] else { panic!("one slice") };
        assert_eq!(slice.endpoints.as_ref().map(Vec::len), Some(1000));
        assert_eq!(plan.warnings[0].1, "A max of 1000 addresses can be mirrored to EndpointSlices per Endpoints subset. 2 addresses were skipped");
    }

    #[test]
    fn each_list_of_ports_keeps_its_slice() {
        let both = endpoints(json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}, {"addresses": [{"ip": "10.0.0.2"}], "ports": [{"port": 81}]}]));
        let mut slices: Vec<Arc<EndpointSlice>> = (plan(&both, &[], MOST).actions.into_iter().enumerate())
            .map(|(n, action)| {
                let Action::Create(mut slice) = action else { panic!("{action:?}") };
                slice.metadata.name = Some(format!("s-{n}"));
                Arc::new(slice)
            })
            .collect();
        assert_eq!(plan(&both, &slices, MOST).actions, []);
        slices.reverse();
        assert_eq!(plan(&both, &slices, MOST).actions, [], "in whatever order they come");
    }
}
