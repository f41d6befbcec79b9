//! ResourceQuota: what a namespace may hold.
//!
//! Thin: usage is counted from the cache at each write and put into the quota's status; there is
//! no reservation between servers.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use apiserver::types::{Resource, Status};
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::forbidden;
use super::limit_ranger::total;
use crate::util::{PERSISTENT_VOLUME_CLAIMS, PODS, RESOURCE_QUOTAS, SERVICES, items, map, number, text};

pub(super) struct ResourceQuota;

type Usage = BTreeMap<String, Quantity>;

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
        let Some(object) = object.filter(|_| ctx.subresource.is_empty() && !ctx.namespace.is_empty()) else { return Ok(()) };
        let quotas = ctx.backend.reader.list(&RESOURCE_QUOTAS, Some(&ctx.namespace));
        if quotas.is_empty() || ctx.resource.plural == "resourcequotas" && attributes.operation == Operation::Update {
            return Ok(());
        }
        let mut delta = usage_of(ctx.resource, object);
        if let Some(old) = attributes.old {
            for (name, amount) in usage_of(ctx.resource, old) {
                delta.entry(name).or_insert_with(Quantity::zero).sub(&amount);
            }
            delta.retain(|_, amount| amount.sign() > 0);
            if delta.is_empty() {
                return Ok(());
            }
        }
        for quota in quotas {
            let hard = quantities(map(&quota, "/spec/hard"));
            if !in_scope(&quota, ctx.resource, object) {
                continue;
            }
            let concerned: Usage = delta.iter().filter(|(k, _)| hard.contains_key(*k)).map(|(k, v)| (k.clone(), v.clone())).collect();
            let quota_name = text(&quota, "/metadata/name");
            if ctx.resource.plural == "pods" && attributes.operation == Operation::Create {
                let missing = unspecified(object, &hard);
                if !missing.is_empty() {
                    return Err(forbidden(attributes, Some(object), format!("failed quota: {quota_name}: must specify {missing}")));
                }
            }
            if concerned.is_empty() {
                continue;
            }
            let used = used(attributes, &quota, &hard);
            let over: Vec<&String> = concerned
                .iter()
                .filter(|(name, wanted)| {
                    let mut sum = used.get(*name).cloned().unwrap_or_else(Quantity::zero);
                    sum.add(wanted);
                    sum > hard[*name]
                })
                .map(|(name, _)| name)
                .collect();
            if !over.is_empty() {
                let list = |usage: &Usage| {
                    let parts: Vec<String> = over.iter().map(|n| format!("{n}={}", usage.get(*n).map_or("0".into(), Quantity::canonical))).collect();
                    parts.join(",")
                };
                let why = format!(
                    "exceeded quota: {quota_name}, requested: {}, used: {}, limited: {}",
                    list(&concerned),
                    list(&used),
                    list(&hard)
                );
                return Err(forbidden(attributes, Some(object), why));
            }
            if !ctx.dry_run {
                record(attributes, &quota, used, &concerned).await;
            }
        }
        Ok(())
    }
}

async fn record(attributes: &Attributes<'_>, quota: &Value, mut used: Usage, added: &Usage) {
    for (name, amount) in added {
        used.entry(name.clone()).or_insert_with(Quantity::zero).add(amount);
    }
    let used: BTreeMap<String, String> = used.into_iter().map(|(k, v)| (k, v.canonical())).collect();
    let mut change = |object: &mut Value| {
        object["status"] = json!({"hard": object["spec"]["hard"], "used": used});
        Ok(())
    };
    let ctx = attributes.ctx;
    let written =
        ctx.backend.writer.modify(&RESOURCE_QUOTAS, &ctx.namespace, text(quota, "/metadata/name"), &mut change).await;
    if let Err(e) = written {
        tracing::warn!(error = %e.message, "quota status not written");
    }
}

fn quantities(map: Option<&serde_json::Map<String, Value>>) -> Usage {
    map.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), Quantity::from_value(v).ok()?))).collect()
}

/// What all objects of the namespace use of the limited resources.
fn used(attributes: &Attributes<'_>, quota: &Value, hard: &Usage) -> Usage {
    let ctx = attributes.ctx;
    let mut resources: Vec<&'static Resource> = Vec::new();
    let mut add = |resource: &'static Resource| {
        if !resources.iter().any(|r| r.plural == resource.plural && r.group == resource.group) {
            resources.push(resource);
        }
    };
    for name in hard.keys() {
        if let Some(count) = name.strip_prefix("count/") {
            let (plural, group) = count.split_once('.').unwrap_or((count, ""));
            if let Some(resource) = api::resources::all().iter().find(|r| r.plural == plural && r.group == group) {
                add(resource);
            }
        } else if name.contains("storage") && !name.contains("ephemeral") {
            add(*PERSISTENT_VOLUME_CLAIMS);
        } else if let Some(resource) = api::resources::find("", "v1", name.split('.').next().unwrap_or(name)).filter(|r| r.namespaced) {
            add(resource);
        } else {
            add(*PODS);
        }
        if name.starts_with("services.") {
            add(*SERVICES);
        }
    }
    let mut sum: Usage = hard.keys().map(|k| (k.clone(), Quantity::zero())).collect();
    for resource in resources {
        for object in ctx.backend.reader.list(resource, Some(&ctx.namespace)) {
            if !in_scope(quota, resource, &object) {
                continue;
            }
            for (name, amount) in usage_of(resource, &object) {
                if let Some(total) = sum.get_mut(&name) {
                    total.add(&amount);
                }
            }
        }
    }
    sum
}

/// What one object uses, by quota name.
fn usage_of(resource: &Resource, object: &Value) -> Usage {
    let mut usage = Usage::new();
    let one = || Quantity::new(1, api::quantity::Format::DecimalSI);
    let count = if resource.group.is_empty() { resource.plural.to_owned() } else { format!("{}.{}", resource.plural, resource.group) };
    usage.insert(format!("count/{count}"), one());
    match (resource.group, resource.plural) {
        ("", "pods") => {
            if matches!(text(object, "/status/phase"), "Succeeded" | "Failed") {
                return usage;
            }
            usage.insert("pods".into(), one());
            for (name, amount) in total(object, "requests") {
                if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
                    usage.insert(name.clone(), amount.clone());
                }
                usage.insert(format!("requests.{name}"), amount);
            }
            for (name, amount) in total(object, "limits") {
                usage.insert(format!("limits.{name}"), amount);
            }
        }
        ("", "services") => {
            usage.insert("services".into(), one());
            let ports = items(object, "/spec/ports").filter(|p| number(p, "/nodePort").is_some()).count() as i64;
            match text(object, "/spec/type") {
                "LoadBalancer" => {
                    usage.insert("services.loadbalancers".into(), one());
                    usage.insert("services.nodeports".into(), Quantity::new(ports, api::quantity::Format::DecimalSI));
                }
                "NodePort" => {
                    let ports = items(object, "/spec/ports").count() as i64;
                    usage.insert("services.nodeports".into(), Quantity::new(ports, api::quantity::Format::DecimalSI));
                }
                _ => {}
            }
        }
        ("", "persistentvolumeclaims") => {
            usage.insert("persistentvolumeclaims".into(), one());
            if let Some(storage) = object.pointer("/spec/resources/requests/storage").and_then(|q| Quantity::from_value(q).ok()) {
                let class = text(object, "/spec/storageClassName");
                if !class.is_empty() {
                    usage.insert(format!("{class}.storageclass.storage.k8s.io/requests.storage"), storage.clone());
                    usage.insert(format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), one());
                }
                usage.insert("requests.storage".into(), storage);
            }
        }
        ("", plural @ ("secrets" | "configmaps" | "replicationcontrollers" | "resourcequotas")) => {
            usage.insert(plural.to_owned(), one());
        }
        _ => {}
    }
    usage
}

/// Pod quotas can be narrowed to some pods.
fn in_scope(quota: &Value, resource: &Resource, object: &Value) -> bool {
    let terminating = object.pointer("/spec/activeDeadlineSeconds").is_some();
    let best_effort = || total(object, "requests").is_empty() && total(object, "limits").is_empty();
    let scoped = items(quota, "/spec/scopes").filter_map(Value::as_str).all(|scope| {
        resource.plural == "pods"
            && match scope {
                "Terminating" => terminating,
                "NotTerminating" => !terminating,
                "BestEffort" => best_effort(),
                "NotBestEffort" => !best_effort(),
                _ => true,
            }
    });
    scoped
        && items(quota, "/spec/scopeSelector/matchExpressions").all(|e| {
            let class = text(object, "/spec/priorityClassName");
            resource.plural == "pods"
                && match (text(e, "/scopeName"), text(e, "/operator")) {
                    ("PriorityClass", "In") => items(e, "/values").any(|v| v == class),
                    ("PriorityClass", "NotIn") => !items(e, "/values").any(|v| v == class),
                    ("PriorityClass", "Exists") => !class.is_empty(),
                    ("PriorityClass", "DoesNotExist") => class.is_empty(),
                    _ => true,
                }
        })
}

/// Compute resources that the quota limits and a container of the pod does not name:
/// `limits.cpu for: a,b; requests.cpu for: a`.
fn unspecified(pod: &Value, hard: &Usage) -> String {
    let mut parts = Vec::new();
    for name in hard.keys() {
        let (which, resource) = match name.as_str() {
            "cpu" | "memory" => ("requests", name.as_str()),
            other => match other.split_once('.') {
                Some((which @ ("requests" | "limits"), r @ ("cpu" | "memory"))) => (which, r),
                _ => continue,
            },
        };
        if pod.pointer(&format!("/spec/resources/{which}/{resource}")).is_some() {
            continue;
        }
        let mut lacking: Vec<&str> = items(pod, "/spec/containers")
            .chain(items(pod, "/spec/initContainers"))
            .filter(|c| c.pointer(&format!("/resources/{which}/{resource}")).is_none())
            .map(|c| text(c, "/name"))
            .collect();
        if !lacking.is_empty() {
            lacking.sort_unstable();
            parts.push(format!("{name} for: {}", lacking.join(",")));
        }
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use apiserver::UserInfo;

    #[test]
    fn counts_and_refuses() {
        let objects = Objects::new();
        objects.put(&RESOURCE_QUOTAS, json!({"metadata": {"name": "q", "namespace": "a"}, "spec": {"hard": {"pods": "1", "requests.cpu": "1"}}}));
        let ctx = objects.ctx(&PODS, "a", "", UserInfo::default());
        let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
        let check = |pod: &Value| block_on(ResourceQuota.validate(&attributes, Some(pod))).map_err(|e| e.message);
        let bare = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
        assert_eq!(check(&bare).unwrap_err(), "pods \"p\" is forbidden: failed quota: q: must specify requests.cpu for: c");
        let mut pod = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m"}}}]}});
        check(&pod).unwrap();
        let quota = apiserver::Reader::get(&*objects, &RESOURCE_QUOTAS, "a", "q").unwrap();
        assert_eq!(quota["status"]["used"], json!({"pods": "1", "requests.cpu": "100m"}));
        objects.put(&PODS, pod.clone());
        pod["metadata"]["name"] = json!("p2");
        assert_eq!(check(&pod).unwrap_err(), "pods \"p2\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1");
    }
}
