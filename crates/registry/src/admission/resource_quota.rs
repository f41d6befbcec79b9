//! ResourceQuota: what a namespace may hold.
//!
//! Thin: usage is counted from the cache at each write and put into the quota's status; there is
//! no reservation between servers.

use api::quantity::Quantity;
use apiserver::types::Status;
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use serde_json::Value;

use super::forbidden;
use crate::quota::{self, Usage, in_scope, quantities, usage_of, used};
use crate::util::{RESOURCE_QUOTAS, items, map, text};

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
            let used = used(ctx, &quota, &hard);
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
                let mut after = used;
                for (name, amount) in &concerned {
                    after.entry(name.clone()).or_insert_with(Quantity::zero).add(amount);
                }
                quota::write(ctx, quota_name, quota::status(&quota, after)).await;
            }
        }
        Ok(())
    }
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
    use crate::util::PODS;
    use apiserver::UserInfo;
    use serde_json::json;

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
