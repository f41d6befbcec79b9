//! `pods/eviction`: a delete that spends what a disruption budget allows.

use api::field::{FieldError, Path};
use api::selector::Labels;
use api::status::{self, Cause};
use apiserver::types::Status;
use apiserver::{Creater, Ctx};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::pod::set_condition;
use crate::util::{POD_DISRUPTION_BUDGETS, PODS, flag, items, list, map, number, object, text};

/// More evicted pods than this, of which the budget's controller knows nothing yet, are too many.
const MOST_DISRUPTED: usize = 2000;
/// How often an eviction is tried against pods that change meanwhile.
const TRIES: usize = 20;
const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// Evicts pods.
pub(crate) struct Eviction;

#[async_trait]
impl Creater for Eviction {
    async fn create(&self, ctx: &Ctx, eviction: Value) -> Result<Value, Status> {
        if text(&eviction, "/metadata/name") != ctx.name {
            return Err(status::bad_request("name in URL does not match name in Eviction object"));
        }
        let mut options = eviction.get("deleteOptions").filter(|o| o.is_object()).cloned().unwrap_or(json!({}));
        const UNSAFE: &str = "ignoreStoreReadErrorWithClusterBreakingPotential";
        if flag(&options, &format!("/{UNSAFE}")) {
            let why = "can not be set for pod eviction, try after removing the option";
            let error = FieldError::invalid(&Path::new("deleteOptions").child(UNSAFE), true, why);
            return Err(status::invalid("policy", "Eviction", &ctx.name, &[error]));
        }
        if ctx.dry_run {
            let given: Vec<&str> = crate::util::texts(&options, "/dryRun").collect();
            if !given.is_empty() && given != ["All"] {
                let message = format!("Non-matching dry-run options in request and content: [All] and [{}]", given.join(" "));
                return Err(Status { code: 500, reason: String::new(), message, details: None });
            }
            options["dryRun"] = json!(["All"]);
        }
        let versioned = options.pointer("/preconditions/resourceVersion").is_some_and(|v| !v.is_null());
        for last in (0..TRIES).map(|n| n + 1 == TRIES) {
            let pod = ctx.backend.writer.get(&PODS, &ctx.namespace, &ctx.name).await?;
            if !needs_no_budget(&pod) {
                return spend_and_delete(ctx, &pod, &options, versioned).await;
            }
            // A pending pod may start to run meanwhile: then the budget counts.
            let guarded = match versioned || is_over(&pod) {
                true => options.clone(),
                false => with_version(&options, &pod),
            };
            match mark_and_delete(ctx, &guarded).await {
                Err(conflict) if conflict.code == 409 && !versioned && !last => {}
                Err(other) => return Err(other),
                Ok(()) => break,
            }
        }
        Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
    }
}

fn is_over(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") || pod.pointer("/metadata/deletionTimestamp").is_some()
}

/// Pods that do not run are not missed.
fn needs_no_budget(pod: &Value) -> bool {
    is_over(pod) || text(pod, "/status/phase") == "Pending"
}

fn with_version(options: &Value, pod: &Value) -> Value {
    let mut options = options.clone();
    object(&mut options, "preconditions").insert("resourceVersion".into(), text(pod, "/metadata/resourceVersion").into());
    options
}

async fn spend_and_delete(ctx: &Ctx, pod: &Value, options: &Value, versioned: bool) -> Result<Value, Status> {
    let dry_run = options.pointer("/dryRun/0").is_some();
    let success = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    let labels = pod.pointer("/metadata/labels").cloned().unwrap_or(json!({}));
    let selects = |b: &Value| b.pointer("/spec/selector").is_some_and(|s| Labels::from_label_selector(s).is_ok_and(|s| s.matches(&labels)));
    let mut budgets = ctx.backend.reader.list(&POD_DISRUPTION_BUDGETS, Some(&ctx.namespace));
    budgets.retain(|b| selects(b));
    let budget = match budgets.as_slice() {
        [] => {
            mark_and_delete(ctx, options).await?;
            return Ok(success);
        }
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
    let name = text(budget, "/metadata/name");
    if is_spared(pod, budget) {
        // An unhealthy pod goes for free, but only if it still is as it was looked at.
        let guarded = if versioned { options.clone() } else { with_version(options, pod) };
        return match mark_and_delete(ctx, &guarded).await {
            Err(conflict) if conflict.code == 409 && !versioned => Err(still_processed(name)),
            other => other.map(|()| success),
        };
    }
    let now = ctx.now_string();
    let mut change = |budget: &mut Value| spend(budget, &ctx.name, &now);
    if dry_run {
        let mut budget = (**budget).clone();
        change(&mut budget)?;
    } else {
        ctx.backend.writer.modify(&POD_DISRUPTION_BUDGETS, &ctx.namespace, name, &mut change).await?;
    }
    mark_and_delete(ctx, options).await?;
    Ok(success)
}

/// Whether the pod is not ready, and the budget lets such pods go.
fn is_spared(pod: &Value, budget: &Value) -> bool {
    let ready = items(pod, "/status/conditions").any(|c| text(c, "/type") == "Ready" && text(c, "/status") == "True");
    let (healthy, desired) = (number(budget, "/status/currentHealthy").unwrap_or(0), number(budget, "/status/desiredHealthy").unwrap_or(0));
    !ready && (text(budget, "/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow" || (healthy >= desired && desired > 0))
}

fn still_processed(name: &str) -> Status {
    refusal(10, format!("The disruption budget {name} is still being processed by the server."))
}

fn refusal(retry_after: u32, why: String) -> Status {
    let cause = Cause { reason: "DisruptionBudget".into(), message: why, field: String::new() };
    status::too_many_requests(REFUSED, retry_after).with_cause(cause)
}

/// Takes one disruption from the budget, or says why there is none.
fn spend(budget: &mut Value, pod: &str, now: &str) -> Result<(), Status> {
    let name = text(budget, "/metadata/name").to_owned();
    let count = |field: &str| number(budget, &format!("/status/{field}")).unwrap_or(0);
    if count("observedGeneration") < number(budget, "/metadata/generation").unwrap_or(0) {
        return Err(still_processed(&name));
    }
    let forbidden = |why: &str| Err(status::forbidden("policy", "poddisruptionbudget", &name, why));
    let allowed = count("disruptionsAllowed");
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    if map(budget, "/status/disruptedPods").is_some_and(|d| d.len() > MOST_DISRUPTED) {
        return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed == 0 {
        let (healthy, desired) = (count("currentHealthy"), count("desiredHealthy"));
        let condition = items(budget, "/status/conditions").find(|c| text(c, "/type") == "DisruptionAllowed" && text(c, "/status") == "False");
        let (reason, message) = condition.map_or(("", ""), |c| (text(c, "/reason"), text(c, "/message")));
        return Err(refusal(
            0,
            if reason == "SyncFailed" && !message.is_empty() {
                format!("The disruption budget {name} does not allow evicting pods currently because it failed sync: {message}")
            } else if healthy <= desired {
                format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently")
            } else if !message.is_empty() {
                format!("The disruption budget {name} does not allow evicting pods currently ({reason}): {message}")
            } else {
                format!("The disruption budget {name} does not allow evicting pods currently")
            },
        ));
    }
    let generation = number(budget, "/status/observedGeneration");
    let state = object(budget, "status");
    state.insert("disruptionsAllowed".into(), (allowed - 1).into());
    object(&mut budget["status"], "disruptedPods").insert(pod.to_owned(), now.into());
    if allowed == 1 {
        let conditions = list(object(budget, "status"), "conditions");
        let old = conditions.iter().position(|c| c["type"] == "DisruptionAllowed");
        let since = old.map(|at| &conditions[at]).filter(|c| c["status"] == "False").map(|c| c["lastTransitionTime"].clone());
        let mut new = json!({"type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
            "lastTransitionTime": since.unwrap_or_else(|| now.into())});
        if let Some(generation) = generation {
            new["observedGeneration"] = generation.into();
        }
        match old {
            Some(at) => conditions[at] = new,
            None => conditions.push(new),
        }
    }
    Ok(())
}

/// Tells why the pod goes, in its status, and deletes it. Preconditions hold for the pod as it was
/// before.
async fn mark_and_delete(ctx: &Ctx, options: &Value) -> Result<(), Status> {
    let mut options = options.clone();
    if options.pointer("/dryRun/0").is_none() {
        let now = ctx.now_string();
        let wanted = |key: &str| text(&options, &format!("/preconditions/{key}")).to_owned();
        let (uid, version) = (wanted("uid"), wanted("resourceVersion"));
        let mut mark = |pod: &mut Value| {
            let actual = |key: &str| text(pod, &format!("/metadata/{key}")).to_owned();
            let conflict = |why: String| Err(status::conflict("", "Pod", &ctx.name, &why));
            if !uid.is_empty() && uid != actual("uid") {
                return conflict(format!(
                    "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
                    actual("uid")
                ));
            }
            if !version.is_empty() && version != actual("resourceVersion") {
                return conflict(format!(
                    "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The object might have been modified",
                    actual("resourceVersion")
                ));
            }
            let condition = json!({
                "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
            });
            set_condition(pod, condition, &now);
            Ok(())
        };
        let marked = ctx.backend.writer.modify(&PODS, &ctx.namespace, &ctx.name, &mut mark).await?;
        if !version.is_empty() {
            options["preconditions"]["resourceVersion"] = marked["metadata"]["resourceVersion"].clone();
        }
    }
    ctx.backend.writer.delete(&PODS, &ctx.namespace, &ctx.name, &options).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::{Objects, block_on};
    use apiserver::{Reader, UserInfo};

    fn cluster(phase: &str, ready: bool, budget: &[Value]) -> (Arc<Objects>, Ctx) {
        let objects = Objects::new();
        let ready = if ready { "True" } else { "False" };
        objects.put(&PODS, json!({"metadata": {"name": "p", "namespace": "a", "uid": "u", "labels": {"app": "x"}}, "spec": {"nodeName": "n"},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}}));
        for (n, (spec, status)) in budget.iter().map(|b| (&b["spec"], &b["status"])).enumerate() {
            let mut full = json!({"selector": {"matchLabels": {"app": "x"}}});
            full.as_object_mut().unwrap().extend(spec.as_object().cloned().unwrap_or_default());
            objects.put(&POD_DISRUPTION_BUDGETS, json!({"metadata": {"name": format!("b{n}"), "namespace": "a", "generation": 1},
                "spec": full, "status": status}));
        }
        let ctx = objects.ctx(&PODS, "a", "p", UserInfo::default());
        (objects, ctx)
    }

    fn status(allowed: i64, healthy: i64, desired: i64) -> Value {
        json!({"observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": healthy, "desiredHealthy": desired})
    }

    fn evict(ctx: &Ctx) -> Result<Value, Status> {
        block_on(Eviction.create(ctx, json!({"metadata": {"name": "p"}})))
    }

    fn there(objects: &Arc<Objects>) -> bool {
        Reader::get(&**objects, &PODS, "a", "p").is_some()
    }

    fn cause(status: &Status) -> String {
        status.details.as_ref().map(|d| d.causes[0].message.clone()).unwrap_or_default()
    }

    #[test]
    fn spends_what_the_budget_allows() {
        let (objects, ctx) = cluster("Running", true, &[json!({"status": status(1, 2, 1)})]);
        evict(&ctx).unwrap();
        assert!(!there(&objects));
        let budget = Reader::get(&*objects, &POD_DISRUPTION_BUDGETS, "a", "b0").unwrap();
        assert_eq!(budget["status"]["disruptionsAllowed"], 0);
        assert!(budget["status"]["disruptedPods"]["p"].is_string());
        assert_eq!(budget["status"]["conditions"][0]["reason"], "InsufficientPods");
    }

    #[test]
    fn refuses_in_upstreams_words() {
        let refused = |status: Value| {
            let (objects, ctx) = cluster("Running", true, &[json!({"status": status})]);
            let refused = evict(&ctx).unwrap_err();
            assert!(there(&objects));
            assert_eq!((refused.code, refused.message.as_str()), (429, REFUSED));
            cause(&refused)
        };
        assert_eq!(refused(status(0, 1, 2)), "The disruption budget b0 needs 2 healthy pods and has 1 currently");
        assert_eq!(refused(status(0, 3, 2)), "The disruption budget b0 does not allow evicting pods currently");
        assert_eq!(refused(json!({"disruptionsAllowed": 5})), "The disruption budget b0 is still being processed by the server.");
        let mut failed = status(0, 3, 2);
        failed["conditions"] = json!([{"type": "DisruptionAllowed", "status": "False", "reason": "SyncFailed", "message": "why"}]);
        assert_eq!(refused(failed), "The disruption budget b0 does not allow evicting pods currently because it failed sync: why");
    }

    #[test]
    fn two_budgets_are_one_too_many() {
        let (objects, ctx) = cluster("Running", true, &[json!({"status": status(1, 2, 1)}), json!({"status": status(1, 2, 1)})]);
        assert_eq!(evict(&ctx).unwrap_err().code, 500);
        assert!(there(&objects));
    }

    #[test]
    fn pods_that_do_not_run_need_no_budget() {
        for phase in ["Pending", "Succeeded", "Failed"] {
            let (objects, ctx) = cluster(phase, false, &[json!({"status": status(0, 0, 1)})]);
            evict(&ctx).unwrap();
            assert!(!there(&objects), "{phase}");
        }
    }

    #[test]
    fn unhealthy_pods() {
        let goes = |policy: &str, healthy: i64| {
            let (objects, ctx) = cluster("Running", false, &[json!({"spec": {"unhealthyPodEvictionPolicy": policy}, "status": status(0, healthy, 2)})]);
            let _ = evict(&ctx);
            !there(&objects)
        };
        assert!(goes("AlwaysAllow", 0));
        assert!(!goes("IfHealthyBudget", 1));
        assert!(goes("IfHealthyBudget", 2), "it is not needed");
    }

    #[test]
    fn a_dry_run_changes_nothing() {
        let (objects, ctx) = cluster("Running", true, &[json!({"status": status(1, 2, 1)})]);
        let _ = block_on(Eviction.create(&ctx, json!({"metadata": {"name": "p"}, "deleteOptions": {"dryRun": ["All"]}})));
        let budget = Reader::get(&*objects, &POD_DISRUPTION_BUDGETS, "a", "b0").unwrap();
        assert_eq!(budget["status"]["disruptionsAllowed"], 1);
        let (_, ctx) = cluster("Running", true, &[json!({"status": status(0, 1, 1)})]);
        let refused = block_on(Eviction.create(&ctx, json!({"metadata": {"name": "p"}, "deleteOptions": {"dryRun": ["All"]}})));
        assert_eq!(refused.unwrap_err().code, 429);
    }

    #[test]
    fn preconditions_hold_for_the_pod_before_it_is_marked() {
        let (objects, ctx) = cluster("Running", true, &[]);
        let with = |preconditions: Value| {
            block_on(Eviction.create(&ctx, json!({"metadata": {"name": "p"}, "deleteOptions": {"preconditions": preconditions}})))
        };
        assert_eq!(with(json!({"resourceVersion": "77"})).unwrap_err().code, 409);
        assert_eq!(with(json!({"uid": "other"})).unwrap_err().code, 409);
        assert!(there(&objects));
        let version = Reader::get(&*objects, &PODS, "a", "p").unwrap()["metadata"]["resourceVersion"].clone();
        with(json!({"resourceVersion": version, "uid": "u"})).unwrap();
        assert!(!there(&objects));
    }

    #[test]
    fn the_name_is_the_pods() {
        let (_, ctx) = cluster("Running", true, &[]);
        assert_eq!(block_on(Eviction.create(&ctx, json!({"metadata": {"name": "q"}}))).unwrap_err().code, 400);
    }
}
