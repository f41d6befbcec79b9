//! `pods/binding` and `pods/eviction`: requests that change a pod without being one.

use api::field::{FieldError, Path};
use api::status::{self, Cause};
use apiserver::types::Status;
use apiserver::{Creater, Ctx};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::pod::set_condition;
use crate::util::{POD_DISRUPTION_BUDGETS, PODS, list, map, number, object, text};

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})
}

/// The scheduler's decision: the pod gets its node.
pub(crate) struct Binding;

#[async_trait]
impl Creater for Binding {
    async fn create(&self, ctx: &Ctx, binding: Value) -> Result<Value, Status> {
        // `POST …/bindings` names the pod in the body only.
        let name = if ctx.name.is_empty() { text(&binding, "/metadata/name") } else { &ctx.name };
        if name != text(&binding, "/metadata/name") {
            return Err(status::bad_request("name in URL does not match name in Binding object"));
        }
        let mut errors = Vec::new();
        let kind = text(&binding, "/target/kind");
        if !matches!(kind, "" | "Node") {
            errors.push(FieldError::not_supported(&Path::new("target.kind"), kind, &["Node", "<empty>"]));
        }
        let node = text(&binding, "/target/name");
        if node.is_empty() {
            errors.push(FieldError::required(&Path::new("target.name"), ""));
        }
        if !errors.is_empty() {
            return Err(status::invalid("", "Binding", name, &errors));
        }
        let conflict = |why: String| Err(status::conflict("", "pods/binding", name, &why));
        let now = ctx.now_string();
        let mut assign = |pod: &mut Value| {
            for (key, what) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
                let (wanted, actual) = (text(&binding, &format!("/metadata/{key}")), text(pod, &format!("/metadata/{key}")));
                if !wanted.is_empty() && wanted != actual {
                    return conflict(format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {actual}"));
                }
            }
            if pod.pointer("/metadata/deletionTimestamp").is_some() {
                return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
            }
            let current = text(pod, "/spec/nodeName");
            if !current.is_empty() {
                return conflict(format!("pod {name} is already assigned to node {current:?}"));
            }
            if pod.pointer("/spec/schedulingGates/0").is_some() {
                return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
            }
            object(pod, "spec").insert("nodeName".into(), node.into());
            object(pod, "status").remove("nominatedNodeName");
            for key in ["annotations", "labels"] {
                for (k, v) in map(&binding, &format!("/metadata/{key}")).into_iter().flatten() {
                    object(&mut pod["metadata"], key).insert(k.clone(), v.clone());
                }
            }
            let generation = number(pod, "/metadata/generation");
            let mut condition = json!({"type": "PodScheduled", "status": "True"});
            if let Some(generation) = generation {
                condition["observedGeneration"] = generation.into();
            }
            set_condition(pod, condition, &now);
            Ok(())
        };
        if ctx.dry_run {
            let mut pod = ctx.backend.writer.get(&PODS, &ctx.namespace, name).await?;
            assign(&mut pod)?;
        } else {
            ctx.backend.writer.modify(&PODS, &ctx.namespace, name, &mut assign).await?;
        }
        Ok(success())
    }
}

/// A delete that respects disruption budgets.
pub(crate) struct Eviction;

#[async_trait]
impl Creater for Eviction {
    async fn create(&self, ctx: &Ctx, eviction: Value) -> Result<Value, Status> {
        let named = text(&eviction, "/metadata/name");
        if !named.is_empty() && named != ctx.name {
            return Err(status::bad_request("name in URL does not match name in Eviction object"));
        }
        let mut options = eviction.get("deleteOptions").cloned().unwrap_or(json!({}));
        if ctx.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        let dry_run = options.pointer("/dryRun/0").is_some();
        let pod = ctx.backend.writer.get(&PODS, &ctx.namespace, &ctx.name).await?;
        let ended = matches!(text(&pod, "/status/phase"), "Succeeded" | "Failed" | "Pending")
            || pod.pointer("/metadata/deletionTimestamp").is_some();
        if !ended {
            spend_budget(ctx, &pod, dry_run).await?;
        }
        if !dry_run {
            let now = ctx.now_string();
            let mut mark = |pod: &mut Value| {
                let condition = json!({
                    "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
                });
                set_condition(pod, condition, &now);
                Ok(())
            };
            ctx.backend.writer.modify(&PODS, &ctx.namespace, &ctx.name, &mut mark).await?;
        }
        ctx.backend.writer.delete(&PODS, &ctx.namespace, &ctx.name, &options).await?;
        Ok(success())
    }
}

async fn spend_budget(ctx: &Ctx, pod: &Value, dry_run: bool) -> Result<(), Status> {
    let labels = pod.pointer("/metadata/labels").cloned().unwrap_or(json!({}));
    let budgets: Vec<_> = ctx
        .backend
        .reader
        .list(&POD_DISRUPTION_BUDGETS, Some(&ctx.namespace))
        .into_iter()
        .filter(|b| {
            let selector = b.pointer("/spec/selector").unwrap_or(&Value::Null);
            api::selector::Labels::from_label_selector(selector).is_ok_and(|s| s.matches(&labels))
        })
        .collect();
    let budget = match budgets.as_slice() {
        [] => return Ok(()),
        [one] => one,
        _ => {
            return Err(Status {
                code: 500,
                reason: String::new(),
                message: "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.".into(),
                details: None,
            });
        }
    };
    let healthy = number(budget, "/status/currentHealthy").unwrap_or(0);
    let desired = number(budget, "/status/desiredHealthy").unwrap_or(0);
    let ready = crate::util::items(pod, "/status/conditions").any(|c| text(c, "/type") == "Ready" && text(c, "/status") == "True");
    if !ready && (text(budget, "/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow" || (healthy >= desired && desired > 0)) {
        return Ok(());
    }
    let name = text(budget, "/metadata/name").to_owned();
    let now = ctx.now_string();
    let mut spend = |budget: &mut Value| {
        let seen = number(budget, "/status/observedGeneration").unwrap_or(0);
        let cause = |message: String| Cause { reason: "DisruptionBudget".into(), message, field: String::new() };
        if seen < number(budget, "/metadata/generation").unwrap_or(0) {
            return Err(status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 10)
                .with_cause(cause(format!("The disruption budget {name} is still being processed by the server."))));
        }
        let allowed = number(budget, "/status/disruptionsAllowed").unwrap_or(0);
        if allowed < 0 {
            return Err(status::forbidden("policy", "poddisruptionbudget", &name, "pdb disruptions allowed is negative"));
        }
        if allowed == 0 {
            let healthy = number(budget, "/status/currentHealthy").unwrap_or(0);
            let desired = number(budget, "/status/desiredHealthy").unwrap_or(0);
            let why = if healthy <= desired {
                format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently")
            } else {
                format!("The disruption budget {name} does not allow evicting pods currently")
            };
            return Err(status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 0)
                .with_cause(cause(why)));
        }
        let state = object(budget, "status");
        state.insert("disruptionsAllowed".into(), (allowed - 1).into());
        let disrupted = state.entry("disruptedPods").or_insert_with(|| json!({}));
        disrupted[&ctx.name] = now.as_str().into();
        if allowed == 1 {
            for condition in list(state, "conditions") {
                if condition["type"] == "DisruptionAllowed" {
                    condition["status"] = "False".into();
                    condition["reason"] = "InsufficientPods".into();
                    condition["lastTransitionTime"] = now.as_str().into();
                }
            }
        }
        Ok(())
    };
    if dry_run {
        let mut budget = (**budget).clone();
        return spend(&mut budget);
    }
    let name = text(budget, "/metadata/name");
    ctx.backend.writer.modify(&POD_DISRUPTION_BUDGETS, &ctx.namespace, name, &mut spend).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use apiserver::{Reader, UserInfo};

    #[test]
    fn binds_once() {
        let objects = Objects::new();
        objects.put(&PODS, json!({"metadata": {"name": "p", "namespace": "a", "uid": "u"}, "spec": {}}));
        let ctx = objects.ctx(&PODS, "a", "p", UserInfo::default());
        let bind = |node: &str| block_on(Binding.create(&ctx, json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": node}})));
        bind("n1").unwrap();
        let pod = Reader::get(&*objects, &PODS, "a", "p").unwrap();
        assert_eq!(pod["spec"]["nodeName"], "n1");
        assert_eq!(pod["status"]["conditions"][0]["type"], "PodScheduled");
        let again = bind("n2").unwrap_err();
        assert_eq!(
            again.message,
            "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\""
        );
    }

    #[test]
    fn eviction_respects_the_budget() {
        let objects = Objects::new();
        objects.put(&PODS, json!({"metadata": {"name": "p", "namespace": "a", "labels": {"app": "x"}}, "spec": {"nodeName": "n"},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}));
        let budget = |allowed: i64| json!({"metadata": {"name": "b", "namespace": "a", "generation": 1}, "spec": {"selector": {"matchLabels": {"app": "x"}}},
            "status": {"observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1}});
        objects.put(&POD_DISRUPTION_BUDGETS, budget(0));
        let ctx = objects.ctx(&PODS, "a", "p", UserInfo::default());
        let evict = || block_on(Eviction.create(&ctx, json!({"metadata": {"name": "p"}})));
        let refused = evict().unwrap_err();
        assert_eq!(refused.code, 429);
        objects.put(&POD_DISRUPTION_BUDGETS, budget(1));
        evict().unwrap();
        assert!(Reader::get(&*objects, &PODS, "a", "p").is_none());
        let budget = Reader::get(&*objects, &POD_DISRUPTION_BUDGETS, "a", "b").unwrap();
        assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    }
}
