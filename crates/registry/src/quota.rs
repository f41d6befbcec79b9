//! What objects use of a namespace's quotas: counting, for the admission plug-in and the status.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use apiserver::Ctx;
use apiserver::types::Resource;
use serde_json::{Value, json};

use crate::podref::total;
use crate::util::{PERSISTENT_VOLUME_CLAIMS, PODS, RESOURCE_QUOTAS, SERVICES, items, map, number, text};

/// Amounts by quota name (`requests.cpu`, `count/jobs.batch`).
pub(crate) type Usage = BTreeMap<String, Quantity>;

/// The status of a quota with this usage.
pub(crate) fn status(quota: &Value, used: Usage) -> Value {
    let used: BTreeMap<String, String> = used.into_iter().map(|(k, v)| (k, v.canonical())).collect();
    json!({"hard": quota["spec"]["hard"], "used": used})
}

/// Counts again for every quota of the namespace, and writes what changed.
pub(crate) async fn refresh(ctx: &Ctx) {
    for quota in ctx.backend.reader.list(&RESOURCE_QUOTAS, Some(&ctx.namespace)) {
        let now = status(&quota, used(ctx, &quota, &quantities(map(&quota, "/spec/hard"))));
        if quota.get("status") != Some(&now) {
            write(ctx, text(&quota, "/metadata/name"), now).await;
        }
    }
}

/// Writes a quota's status; a failure is only logged, the next write counts again.
pub(crate) async fn write(ctx: &Ctx, name: &str, status: Value) {
    let mut change = |object: &mut Value| {
        object["status"] = status.clone();
        Ok(())
    };
    if let Err(e) = ctx.backend.writer.modify(&RESOURCE_QUOTAS, &ctx.namespace, name, &mut change).await {
        tracing::warn!(error = %e.message, "quota status not written");
    }
}

pub(crate) fn quantities(map: Option<&serde_json::Map<String, Value>>) -> Usage {
    map.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), Quantity::from_value(v).ok()?))).collect()
}

/// What all objects of the namespace use of the limited resources.
pub(crate) fn used(ctx: &Ctx, quota: &Value, hard: &Usage) -> Usage {
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
pub(crate) fn usage_of(resource: &Resource, object: &Value) -> Usage {
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
pub(crate) fn in_scope(quota: &Value, resource: &Resource, object: &Value) -> bool {
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
