//! Pods: status at birth, graceful deletion, and the subresources `status`, `ephemeralcontainers`
//! and `resize` (each keeps everything that is not its own).

use api::quantity::Quantity;
use apiserver::strategy::{generic_prepare_create, generic_prepare_update};
use apiserver::{Ctx, Strategy};
use serde_json::{Map, Value, json};

use crate::util::{items, list, number, object, text};

/// The resource itself.
pub(crate) struct Pods;

impl Strategy for Pods {
    fn prepare_create(&self, ctx: &Ctx, pod: &mut Value) {
        generic_prepare_create(ctx, pod);
        object(pod, "metadata").insert("generation".into(), 1.into());
        if number(pod, "/spec/terminationGracePeriodSeconds").is_some_and(|grace| grace < 0) {
            object(pod, "spec").insert("terminationGracePeriodSeconds".into(), 1.into());
        }
        let qos = qos_class(pod);
        let mut status = json!({"phase": "Pending", "qosClass": qos});
        if items(pod, "/spec/schedulingGates").next().is_some() {
            status["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "lastProbeTime": null,
                "lastTransitionTime": ctx.now_string(), "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
        object(pod, "status");
        pod["status"] = status;
        select_by_own_labels(pod);
        api::apparmor::from_annotations(pod).into_iter().for_each(|warning| ctx.warn(warning));
    }

    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
        copy(new, old, "status");
        // the old name of the account's field follows the new one
        if let Some(account) = new.pointer("/spec/serviceAccountName").cloned() {
            object(new, "spec").insert("serviceAccount".into(), account);
        }
        bump(new, old);
    }

    /// The grace period is the pod's own unless the client names one; a pod that runs nowhere, or
    /// has ended, goes at once.
    fn grace_period(&self, pod: &Value, requested: Option<i64>) -> Option<i64> {
        let own = number(pod, "/spec/terminationGracePeriodSeconds").unwrap_or(0);
        let period = requested.unwrap_or(own);
        let idle = text(pod, "/spec/nodeName").is_empty() || matches!(text(pod, "/status/phase"), "Failed" | "Succeeded");
        Some(if idle { 0 } else if period < 0 { 1 } else { period })
    }
}

/// The keys of labels that a new pod's terms and constraints name go into their selectors, with the pod's own values
/// (KEP-3633, KEP-3243).
fn select_by_own_labels(pod: &mut Value) {
    if ["affinity", "topologySpreadConstraints"].iter().all(|key| pod["spec"][key].is_null()) {
        return;
    }
    let labels = pod["metadata"]["labels"].clone();
    let spec = &mut pod["spec"];
    let each = |list: Option<&mut Value>, act: &dyn Fn(&mut Value)| list.and_then(Value::as_array_mut).into_iter().flatten().for_each(act);
    let narrow = |term: &mut Value| {
        for (keys, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
            let own = items(term, &format!("/{keys}")).filter_map(|key| Some((key.as_str()?, labels.get(key.as_str()?)?)));
            let more: Vec<Value> = own.map(|(key, value)| json!({"key": key, "operator": operator, "values": [value]})).collect();
            if let Some(selector) = term.get_mut("labelSelector").and_then(Value::as_object_mut).filter(|_| !more.is_empty()) {
                list(selector, "matchExpressions").extend(more);
            }
        }
    };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(terms) = spec.get_mut("affinity").and_then(|a| a.get_mut(kind)) else { continue };
        each(terms.get_mut("preferredDuringSchedulingIgnoredDuringExecution"), &|weighted| weighted.get_mut("podAffinityTerm").into_iter().for_each(narrow));
        each(terms.get_mut("requiredDuringSchedulingIgnoredDuringExecution"), &narrow);
    }
    each(spec.get_mut("topologySpreadConstraints"), &narrow);
}

/// `status`: the kubelet's.
pub(crate) struct PodStatus;

impl Strategy for PodStatus {
    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
        copy(new, old, "spec");
        for key in ["ownerReferences", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
            let metadata = object(new, "metadata");
            match old["metadata"].get(key) {
                Some(value) => metadata.insert(key.to_owned(), value.clone()),
                None => metadata.remove(key),
            };
        }
        keep_generations(new, old);
        if text(new, "/status/qosClass").is_empty()
            && let Some(qos) = old.pointer("/status/qosClass")
        {
            object(new, "status").insert("qosClass".into(), qos.clone());
        }
    }
}

/// Clients that do not know of observed generations leave them out; those of before stay.
fn keep_generations(new: &mut Value, old: &Value) {
    const KEY: &str = "observedGeneration";
    let keep = |to: &mut Value, from: &Value| {
        if number(to, "/observedGeneration").unwrap_or(0) == 0
            && let (Some(to), Some(was)) = (to.as_object_mut(), from.get(KEY))
        {
            to.insert(KEY.into(), was.clone());
        }
    };
    let Some(status) = new.get_mut("status") else { return };
    keep(status, &old["status"]);
    for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(was) = items(old, "/status/conditions").find(|c| c["type"] == condition["type"]) {
            keep(condition, was);
        }
    }
}

/// `ephemeralcontainers`: debugging containers are only ever added.
pub(crate) struct EphemeralContainers;

impl Strategy for EphemeralContainers {
    fn prepare_update(&self, _ctx: &Ctx, new: &mut Value, old: &Value) {
        let containers = new.pointer("/spec/ephemeralContainers").cloned();
        keep_old(new, old);
        match containers {
            Some(containers) => object(new, "spec").insert("ephemeralContainers".into(), containers),
            None => object(new, "spec").remove("ephemeralContainers"),
        };
        bump(new, old);
    }
}

/// `resize`: requests, limits and resize policies of the containers that are there.
pub(crate) struct Resize;

impl Strategy for Resize {
    fn prepare_update(&self, _ctx: &Ctx, new: &mut Value, old: &Value) {
        // containers that came, went or moved are for validation to refuse
        let names = |v: &Value, key: &str| items(v, &format!("/spec/{key}")).map(|c| text(c, "/name").to_owned()).collect::<Vec<_>>();
        if ["containers", "initContainers"].iter().any(|key| names(new, key) != names(old, key)) {
            copy(new, old, "status");
            return bump(new, old);
        }
        let wanted = new.clone();
        keep_old(new, old);
        copy(&mut new["spec"], &wanted["spec"], "resources");
        for key in ["containers", "initContainers"] {
            let containers = new.pointer_mut(&format!("/spec/{key}")).and_then(Value::as_array_mut);
            for (container, source) in containers.into_iter().flatten().zip(items(&wanted, &format!("/spec/{key}"))) {
                for field in ["resources", "resizePolicy"] {
                    copy(container, source, field);
                }
            }
        }
        bump(new, old);
    }

    fn validate_update(&self, _ctx: &Ctx, new: &Value, old: &Value) -> Vec<api::field::FieldError> {
        api::validate::pod_resize(new, old, qos_class(new) != text(old, "/status/qosClass"))
    }
}

fn copy(to: &mut Value, from: &Value, key: &str) {
    let Some(map) = to.as_object_mut() else { return };
    match from.get(key) {
        Some(value) if map.get(key) == Some(value) => {}
        Some(value) => drop(map.insert(key.to_owned(), value.clone())),
        None => drop(map.remove(key)),
    }
}

/// Everything as it was, but the version and managers that the client sent.
fn keep_old(new: &mut Value, old: &Value) {
    let metadata = new["metadata"].take();
    *new = old.clone();
    for key in ["resourceVersion", "managedFields"] {
        copy(&mut new["metadata"], &metadata, key);
    }
}

/// The generation counts changes of the specification.
fn bump(new: &mut Value, old: &Value) {
    let generation = number(old, "/metadata/generation").unwrap_or(0);
    let changed = i64::from(new.get("spec") != old.get("spec"));
    if generation + changed > 0 {
        object(new, "metadata").insert("generation".into(), (generation + changed).into());
    }
}

/// Sets a pod condition; the transition time changes only when the status does.
pub(crate) fn set_condition(pod: &mut Value, mut condition: Value, now: &str) {
    let conditions = list(object(pod, "status"), "conditions");
    let old = conditions.iter_mut().find(|c| c["type"] == condition["type"]);
    condition["lastProbeTime"] = Value::Null;
    condition["lastTransitionTime"] = match &old {
        Some(old) if old["status"] == condition["status"] => old["lastTransitionTime"].clone(),
        _ => now.into(),
    };
    match old {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
}

/// Guaranteed, Burstable or BestEffort
/// (https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/).
pub(crate) fn qos_class(pod: &Value) -> &'static str {
    let amounts = |list: Option<&Map<String, Value>>| -> Vec<(String, Quantity)> {
        list.into_iter()
            .flatten()
            .filter(|(k, _)| matches!(k.as_str(), "cpu" | "memory"))
            .filter_map(|(k, v)| Some((k.clone(), Quantity::from_value(v).ok()?)))
            .filter(|(_, q)| q.sign() > 0)
            .collect()
    };
    let of = |value: &Value, which: &str| amounts(value.pointer(&format!("/resources/{which}")).and_then(Value::as_object));
    let both = |limits: &[(String, Quantity)]| limits.len() == 2;
    if let Some(whole) = pod.get("spec").filter(|s| s.get("resources").is_some()) {
        let (requests, limits) = (of(whole, "requests"), of(whole, "limits"));
        return match (requests.is_empty() && limits.is_empty(), both(&limits) && same(&requests, &limits)) {
            (true, _) => "BestEffort",
            (_, true) => "Guaranteed",
            _ => "Burstable",
        };
    }
    let (mut any, mut guaranteed) = (false, true);
    for container in items(pod, "/spec/containers").chain(items(pod, "/spec/initContainers")) {
        let (requests, limits) = (of(container, "requests"), of(container, "limits"));
        any |= !requests.is_empty() || !limits.is_empty();
        guaranteed &= both(&limits) && (requests.is_empty() || same(&requests, &limits));
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn same(requests: &[(String, Quantity)], limits: &[(String, Quantity)]) -> bool {
    requests.iter().all(|(k, q)| limits.iter().any(|(l, m)| k == l && q == m))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qos() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
        let full = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(qos_class(&pod(json!({"requests": full, "limits": full}))), "Guaranteed");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": full}))), "Burstable");
    }

    #[test]
    fn grace() {
        let running = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}});
        assert_eq!(Pods.grace_period(&running, None), Some(30));
        assert_eq!(Pods.grace_period(&running, Some(0)), Some(0));
        assert_eq!(Pods.grace_period(&running, Some(-5)), Some(1));
        let unscheduled = json!({"spec": {"terminationGracePeriodSeconds": 30}});
        assert_eq!(Pods.grace_period(&unscheduled, Some(10)), Some(0));
    }

    #[test]
    fn resize_changes_resources_only() {
        let old = json!({"metadata": {"generation": 1}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "a"}]}});
        let mut new = json!({"metadata": {"generation": 1, "resourceVersion": "5"}, "spec": {"containers": [{"name": "c", "image": "b", "resources": {"limits": {"cpu": "1"}}}]}});
        let objects = crate::testing::Objects::new();
        let ctx = objects.ctx(&crate::util::PODS, "a", "p", apiserver::UserInfo::default());
        Resize.prepare_update(&ctx, &mut new, &old);
        assert_eq!(new["spec"]["containers"][0], json!({"name": "c", "image": "a", "resources": {"limits": {"cpu": "1"}}}));
        assert_eq!(new["spec"]["nodeName"], "n");
        assert_eq!(new["metadata"], json!({"generation": 2, "resourceVersion": "5"}));
    }
}
