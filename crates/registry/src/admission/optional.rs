//! Small plug-ins that run only where they are asked for.

use std::collections::BTreeSet;

use api::names::is_extended_resource;
use apiserver::types::Status;
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::{forbidden, is};
use crate::bootstrap;
use crate::util::{NAMESPACES, items, list, map, object, text, texts};

/// Upstream's plug-in that does nothing.
pub(super) struct AlwaysAdmit;

#[async_trait]
impl Admission for AlwaysAdmit {
    fn name(&self) -> &'static str {
        "AlwaysAdmit"
    }

    fn handles(&self, _: Operation) -> bool {
        false
    }
}

/// Refuses every write.
pub(super) struct AlwaysDeny;

#[async_trait]
impl Admission for AlwaysDeny {
    fn name(&self) -> &'static str {
        "AlwaysDeny"
    }

    fn handles(&self, _: Operation) -> bool {
        true
    }

    async fn admit(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        Err(forbidden(attributes, Some(object), "admission control is denying all modifications"))
    }

    async fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        Err(forbidden(attributes, object, "admission control is denying all modifications"))
    }
}

/// No Service comes by an external address that it has not had.
pub(super) struct DenyServiceExternalIps;

#[async_trait]
impl Admission for DenyServiceExternalIps {
    fn name(&self) -> &'static str {
        "DenyServiceExternalIPs"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attributes: &Attributes<'_>, service: Option<&Value>) -> Result<(), Status> {
        let Some(service) = service.filter(|_| is(attributes, "", "services")) else { return Ok(()) };
        let had: BTreeSet<&str> = attributes.old.into_iter().flat_map(|old| texts(old, "/spec/externalIPs")).collect();
        if texts(service, "/spec/externalIPs").all(|ip| had.contains(ip)) {
            return Ok(());
        }
        Err(forbidden(attributes, Some(service), "Use of external IPs is denied by admission control"))
    }
}

/// Pods keep others away from their node at most, not from a zone.
pub(super) struct LimitPodHardAntiAffinityTopology;

#[async_trait]
impl Admission for LimitPodHardAntiAffinityTopology {
    fn name(&self) -> &'static str {
        "LimitPodHardAntiAffinityTopology"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attributes: &Attributes<'_>, pod: Option<&Value>) -> Result<(), Status> {
        const NODE: &str = "kubernetes.io/hostname";
        let Some(pod) = pod.filter(|_| is(attributes, "", "pods")) else { return Ok(()) };
        let terms = items(pod, "/spec/affinity/podAntiAffinity/requiredDuringSchedulingIgnoredDuringExecution");
        match terms.map(|term| text(term, "/topologyKey")).find(|key| *key != NODE) {
            None => Ok(()),
            Some(key) => {
                let why = format!("affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} but only key {NODE} is allowed");
                Err(api::status::forbidden("", "pods", text(pod, "/metadata/name"), &why))
            }
        }
    }
}

/// Pods that ask for a device tolerate the taint of nodes that are kept for it.
pub(super) struct ExtendedResourceToleration;

#[async_trait]
impl Admission for ExtendedResourceToleration {
    fn name(&self) -> &'static str {
        "ExtendedResourceToleration"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn admit(&self, attributes: &Attributes<'_>, pod: &mut Value) -> Result<(), Status> {
        if !is(attributes, "", "pods") {
            return Ok(());
        }
        let requests = ["/spec/containers", "/spec/initContainers"].into_iter().flat_map(|list| items(pod, list)).filter_map(|c| map(c, "/resources/requests"));
        let devices: BTreeSet<String> = requests.flat_map(|r| r.keys()).filter(|name| is_extended_resource(name)).cloned().collect();
        for key in devices {
            let toleration = json!({"key": key, "operator": "Exists", "effect": "NoSchedule"});
            let tolerations = list(object(pod, "spec"), "tolerations");
            let same = |t: &&mut Value| text(t, "/key") == key && text(t, "/effect") == "NoSchedule" && text(t, "/operator") == "Exists" && text(t, "/value").is_empty();
            match tolerations.iter_mut().find(same) {
                Some(there) => *there = toleration,
                None => tolerations.push(toleration),
            }
        }
        Ok(())
    }
}

/// What is in a namespace may be written only where there is the namespace.
pub(super) struct NamespaceExists;

/// The namespace that a write needs, where it is not a namespace itself.
fn needed<'a>(attributes: &'a Attributes<'_>) -> Option<&'a str> {
    let ctx = attributes.ctx;
    let other = !ctx.namespace.is_empty() && !(ctx.resource.group.is_empty() && ctx.resource.plural == "namespaces");
    other.then_some(ctx.namespace.as_str())
}

#[async_trait]
impl Admission for NamespaceExists {
    fn name(&self) -> &'static str {
        "NamespaceExists"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    async fn validate(&self, attributes: &Attributes<'_>, _: Option<&Value>) -> Result<(), Status> {
        let backend = &attributes.ctx.backend;
        match needed(attributes) {
            Some(name) if !backend.reader.has(&NAMESPACES, "", name) => backend.writer.get(&NAMESPACES, "", name).await.map(drop),
            _ => Ok(()),
        }
    }
}

/// Namespaces come into being with what is written into them.
pub(super) struct NamespaceAutoProvision;

#[async_trait]
impl Admission for NamespaceAutoProvision {
    fn name(&self) -> &'static str {
        "NamespaceAutoProvision"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        let backend = &attributes.ctx.backend;
        let Some(name) = needed(attributes).filter(|name| !attributes.ctx.dry_run && !backend.reader.has(&NAMESPACES, "", name)) else { return Ok(()) };
        match backend.writer.create(*NAMESPACES, bootstrap::namespace(name)).await {
            Err(status) if status.reason != "AlreadyExists" => Err(forbidden(attributes, Some(object), status.message)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use crate::util::{PODS, SERVICES};
    use apiserver::UserInfo;

    #[test]
    fn external_addresses_stay_as_they_were() {
        let objects = Objects::new();
        let ctx = objects.ctx(&SERVICES, "a", "s", UserInfo::default());
        let service = |ips: &[&str]| json!({"metadata": {"name": "s"}, "spec": {"externalIPs": ips}});
        let ask = |old: Option<Value>, new: Value| {
            let attributes = Attributes { ctx: &ctx, operation: Operation::Update, old: old.as_ref(), options: &Value::Null };
            block_on(DenyServiceExternalIps.validate(&attributes, Some(&new))).map_err(|e| e.message)
        };
        assert_eq!(ask(None, service(&["192.0.2.1"])).unwrap_err(), "services \"s\" is forbidden: Use of external IPs is denied by admission control");
        ask(None, service(&[])).unwrap();
        ask(Some(service(&["192.0.2.1", "192.0.2.2"])), service(&["192.0.2.2"])).unwrap();
        assert!(ask(Some(service(&["192.0.2.1"])), service(&["192.0.2.1", "192.0.2.2"])).is_err());
    }

    #[test]
    fn anti_affinity_ends_at_the_node() {
        let objects = Objects::new();
        let ctx = objects.ctx(&PODS, "a", "p", UserInfo::default());
        let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
        let ask = |key: &str| {
            let terms = json!([{"topologyKey": "kubernetes.io/hostname"}, {"topologyKey": key}]);
            let pod = json!({"metadata": {"name": "p"}, "spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}});
            block_on(LimitPodHardAntiAffinityTopology.validate(&attributes, Some(&pod))).map_err(|e| e.message)
        };
        ask("kubernetes.io/hostname").unwrap();
        assert_eq!(
            ask("zone").unwrap_err(),
            "pods \"p\" is forbidden: affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey zone but only key kubernetes.io/hostname is allowed"
        );
    }

    #[test]
    fn who_asks_for_a_device_tolerates_its_nodes() {
        let objects = Objects::new();
        let ctx = objects.ctx(&PODS, "a", "p", UserInfo::default());
        let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
        let mut pod = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "1", "example.com/gpu": "1"}}}], "initContainers": [{"resources": {"requests": {"example.com/fpga": "1"}}}]}});
        for _ in 0..2 {
            block_on(ExtendedResourceToleration.admit(&attributes, &mut pod)).unwrap();
            let of = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoSchedule"});
            assert_eq!(pod["spec"]["tolerations"], json!([of("example.com/fpga"), of("example.com/gpu")]));
        }
    }

    #[test]
    fn namespaces_are_asked_for_or_made() {
        let objects = Objects::new();
        let ask = |plugin: &dyn Admission, operation: Operation, dry_run: bool| {
            let mut ctx = objects.ctx(&PODS, "new", "p", UserInfo::default());
            ctx.dry_run = dry_run;
            let attributes = Attributes { ctx: &ctx, operation, old: None, options: &Value::Null };
            block_on(plugin.admit(&attributes, &mut json!({})))?;
            block_on(plugin.validate(&attributes, None)).map_err(|e: Status| e)
        };
        assert_eq!(ask(&NamespaceExists, Operation::Create, false).unwrap_err().reason, "NotFound");
        ask(&NamespaceAutoProvision, Operation::Create, true).unwrap();
        assert!(ask(&NamespaceExists, Operation::Create, false).is_err(), "a dry run makes nothing");
        ask(&NamespaceAutoProvision, Operation::Create, false).unwrap();
        ask(&NamespaceAutoProvision, Operation::Create, false).unwrap();
        ask(&NamespaceExists, Operation::Delete, false).unwrap();
        assert!(AlwaysDeny.handles(Operation::Connect) && !AlwaysAdmit.handles(Operation::Create));
        assert_eq!(ask(&AlwaysDeny, Operation::Create, false).unwrap_err().message, "pods \"p\" is forbidden: admission control is denying all modifications");
    }
}
