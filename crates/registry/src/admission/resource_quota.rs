//! ResourceQuota: what a namespace may hold. A write that needs more is charged to the quota's
//! status before it is done, by a compare-and-swap, so that two writes never share the last place.
//! What is used besides, and what becomes free, the controller counts.

use std::collections::BTreeSet;

use api::quantity::Quantity;
use api::quota::{self, Usage, amounts_at};
use apiserver::types::Status;
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use serde_json::Value;

use super::forbidden;
use crate::util::{RESOURCE_QUOTAS, text};

pub(super) struct ResourceQuota;

#[async_trait]
impl Admission for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        let ctx = attributes.ctx;
        let Some(object) = object.filter(|o| !ctx.namespace.is_empty() && is_charged(attributes, o)) else { return Ok(()) };
        let (group, plural) = (ctx.resource.group, ctx.resource.plural);
        let enforced = ctx.subresource != "status";
        let refuse = |why: String| forbidden(attributes, Some(object), why);
        let quotas = ctx.backend.reader.list(&RESOURCE_QUOTAS, Some(&ctx.namespace));
        let mut charges = Vec::new();
        for quota in &quotas {
            let hard = amounts_at(quota, "/status/hard");
            let names: BTreeSet<String> = hard.into_keys().filter(|name| quota::concerns(group, plural, name)).collect();
            if names.is_empty() || !quota::in_scope(quota, group, plural, object) {
                continue;
            }
            let name = text(quota, "/metadata/name");
            if (group, plural) == ("", "pods") {
                let missing = quota::unspecified(object, &names);
                if !missing.is_empty() {
                    return Err(refuse(format!("failed quota: {name}: must specify {missing}")));
                }
            }
            let used = amounts_at(quota, "/status/used");
            if !names.iter().all(|n| used.contains_key(n)) {
                let names = names.into_iter().collect::<Vec<_>>().join(",");
                return Err(refuse(format!("status unknown for quota: {name}, resources: {names}")));
            }
            let delta = delta(attributes, object, quota);
            if !delta.is_empty() {
                charges.push((name, quota, delta));
            }
        }
        // Nothing is charged before all have agreed.
        for (_, quota, delta) in &charges {
            charge(&mut (***quota).clone(), delta, enforced).map_err(refuse)?;
        }
        for (name, _, delta) in charges.into_iter().filter(|_| !ctx.dry_run) {
            let mut change = |quota: &mut Value| charge(quota, &delta, enforced).map_err(refuse);
            match ctx.backend.writer.modify(&RESOURCE_QUOTAS, &ctx.namespace, name, &mut change).await {
                // Deleted meanwhile: it limits nothing any more.
                Err(status) if status.code == 404 => {}
                other => drop(other?),
            }
        }
        Ok(())
    }
}

/// Whether this kind of write can need more of a quota.
fn is_charged(attributes: &Attributes<'_>, object: &Value) -> bool {
    let ctx = attributes.ctx;
    let create = attributes.operation == Operation::Create;
    let differs = |pointer: &str| attributes.old.is_some_and(|old| old.pointer(pointer) != object.pointer(pointer));
    match (ctx.resource.group, ctx.resource.plural, ctx.subresource.as_str()) {
        ("" | "events.k8s.io", "events", _) => false,
        ("", "pods", "") => {
            let deadline = |pod: &Value| pod.pointer("/spec/activeDeadlineSeconds").is_some();
            create || attributes.old.is_some_and(|old| deadline(old) != deadline(object))
        }
        ("", "pods", "resize") => !create,
        ("", "services" | "persistentvolumeclaims", "") => true,
        ("", "persistentvolumeclaims", "status") => {
            differs("/status/allocatedResources") || differs("/status/currentVolumeAttributesClassName") || differs("/status/modifyVolumeStatus")
        }
        (_, _, "") => create,
        _ => false,
    }
}

/// What the write needs more of than what it replaces.
fn delta(attributes: &Attributes<'_>, object: &Value, quota: &Value) -> Usage {
    let ctx = attributes.ctx;
    let (group, plural, now) = (ctx.resource.group, ctx.resource.plural, ctx.now.as_second());
    let mut delta = quota::usage(group, plural, object, now);
    // An object that comes into the quota's scope only now is charged in full.
    if let Some(old) = attributes.old.filter(|old| attributes.operation == Operation::Update && quota::in_scope(quota, group, plural, old)) {
        for (name, amount) in quota::usage(group, plural, old, now) {
            if let Some(sum) = delta.get_mut(&name) {
                sum.sub(&amount);
            }
        }
    }
    delta.retain(|_, amount| amount.sign() > 0);
    delta
}

/// Adds to what is used, or says why that is too much.
fn charge(quota: &mut Value, delta: &Usage, enforced: bool) -> Result<(), String> {
    let hard = amounts_at(quota, "/status/hard");
    let used = amounts_at(quota, "/status/used");
    let mut after = used.clone();
    let mut over = Vec::new();
    for (name, amount) in delta {
        let Some(limit) = hard.get(name) else { continue };
        let sum = after.entry(name.clone()).or_insert_with(Quantity::zero);
        sum.add(amount);
        if *sum > *limit {
            over.push(name);
        }
    }
    if enforced && !over.is_empty() {
        let list = |usage: &Usage| {
            let parts = over.iter().filter_map(|n| Some(format!("{n}={}", usage.get(*n)?.canonical())));
            parts.collect::<Vec<_>>().join(",")
        };
        let name = text(quota, "/metadata/name");
        return Err(format!("exceeded quota: {name}, requested: {}, used: {}, limited: {}", list(delta), list(&used), list(&hard)));
    }
    for (name, amount) in after {
        if used.get(&name) != Some(&amount) {
            quota["status"]["used"][name] = amount.canonical().into();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::{Objects, block_on};
    use crate::util::{PODS, SERVICES};
    use apiserver::UserInfo;
    use apiserver::types::Resource;
    use serde_json::json;

    fn quota(objects: &Objects, spec: Value, hard: Value, used: Value) {
        objects.put(&RESOURCE_QUOTAS, json!({"metadata": {"name": "q", "namespace": "a"}, "spec": spec, "status": {"hard": hard, "used": used}}));
    }

    fn used(objects: &Arc<Objects>) -> Value {
        apiserver::Reader::get(&**objects, &RESOURCE_QUOTAS, "a", "q").unwrap()["status"]["used"].clone()
    }

    fn write(objects: &Arc<Objects>, resource: &'static Resource, old: Option<&Value>, new: &Value) -> Result<(), String> {
        let ctx = objects.ctx(resource, "a", "", UserInfo::default());
        let operation = if old.is_some() { Operation::Update } else { Operation::Create };
        let attributes = Attributes { ctx: &ctx, operation, old, options: &Value::Null };
        block_on(ResourceQuota.validate(&attributes, Some(new))).map_err(|e| e.message)
    }

    fn pod(name: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "a"}, "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "600m"}}}]}})
    }

    #[test]
    fn charges_and_refuses() {
        let objects = Objects::new();
        let hard = json!({"pods": "5", "requests.cpu": "1"});
        quota(&objects, json!({}), hard, json!({"pods": "0", "requests.cpu": "0"}));
        let bare = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
        assert_eq!(write(&objects, &PODS, None, &bare).unwrap_err(), "pods \"p\" is forbidden: failed quota: q: must specify requests.cpu for: c");
        write(&objects, &PODS, None, &pod("p")).unwrap();
        assert_eq!(used(&objects), json!({"pods": "1", "requests.cpu": "600m"}));
        assert_eq!(
            write(&objects, &PODS, None, &pod("p2")).unwrap_err(),
            "pods \"p2\" is forbidden: exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1"
        );
        assert_eq!(used(&objects), json!({"pods": "1", "requests.cpu": "600m"}), "what is refused is not charged");
        write(&objects, &PODS, Some(&pod("p")), &pod("p")).unwrap();
        assert_eq!(used(&objects)["pods"], "1", "an update of a pod needs nothing");
    }

    #[test]
    fn updates_are_charged_by_the_difference() {
        let objects = Objects::new();
        quota(&objects, json!({}), json!({"services.nodeports": "2", "services": "1"}), json!({"services.nodeports": "1", "services": "1"}));
        let service = |n: usize| json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": vec![json!({"port": 1}); n]}});
        write(&objects, &SERVICES, Some(&service(1)), &service(2)).unwrap();
        assert_eq!(used(&objects), json!({"services.nodeports": "2", "services": "1"}));
        assert!(write(&objects, &SERVICES, Some(&service(2)), &service(3)).unwrap_err().contains("requested: services.nodeports=1, used: services.nodeports=2"));
        write(&objects, &SERVICES, Some(&service(2)), &service(1)).unwrap();
        assert_eq!(used(&objects)["services.nodeports"], "2", "what becomes free is the controller's to count");
    }

    #[test]
    fn only_counted_quotas_in_scope_count() {
        let objects = Objects::new();
        quota(&objects, json!({"scopes": ["Terminating"]}), json!({"pods": "0"}), json!({"pods": "0"}));
        write(&objects, &PODS, None, &pod("p")).unwrap();
        quota(&objects, json!({"hard": {"pods": "0"}}), Value::Null, Value::Null);
        write(&objects, &PODS, None, &pod("p")).unwrap();
        quota(&objects, json!({}), json!({"pods": "5"}), json!({}));
        assert_eq!(write(&objects, &PODS, None, &pod("p")).unwrap_err(), "pods \"p\" is forbidden: status unknown for quota: q, resources: pods");
        quota(&objects, json!({}), json!({"count/services": "0"}), json!({"count/services": "0"}));
        write(&objects, &PODS, None, &pod("p")).unwrap();
        assert!(write(&objects, &SERVICES, None, &json!({"metadata": {"name": "s"}})).is_err());
    }
}
