//! Defaults of the kinds that make pods, and of autoscalers and device claims.

use serde_json::{Value, json};

use super::{Object, child, existing, list, number, pod, put, str_of, text};

pub(super) fn replication_controller(object: &mut Object) {
    let spec = child(object, "spec");
    put(spec, "replicas", || json!(1));
    let labels = spec.get("template").and_then(|t| t.pointer("/metadata/labels")).cloned();
    if let Some(template) = existing(spec, "template") {
        pod::template(template);
    }
    if let Some(labels) = labels {
        if spec.get("selector").and_then(Value::as_object).is_none_or(|s| s.is_empty()) {
            spec.insert("selector".into(), labels.clone());
        }
        labelled(object, labels);
    }
}

/// Objects without labels take those of their template.
fn labelled(object: &mut Object, labels: Value) {
    let metadata = child(object, "metadata");
    if metadata.get("labels").and_then(Value::as_object).is_none_or(|l| l.is_empty()) {
        metadata.insert("labels".into(), labels);
    }
}

pub(super) fn deployment(object: &mut Object) {
    let spec = child(object, "spec");
    put(spec, "replicas", || json!(1));
    put(spec, "revisionHistoryLimit", || json!(10));
    put(spec, "progressDeadlineSeconds", || json!(600));
    let strategy = child(spec, "strategy");
    text(strategy, "type", "RollingUpdate");
    if str_of(strategy, "type") == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        put(rolling, "maxUnavailable", || json!("25%"));
        put(rolling, "maxSurge", || json!("25%"));
    }
    pod::template(child(spec, "template"));
}

pub(super) fn replica_set(object: &mut Object) {
    let spec = child(object, "spec");
    put(spec, "replicas", || json!(1));
    pod::template(child(spec, "template"));
}

pub(super) fn stateful_set(object: &mut Object) {
    let spec = child(object, "spec");
    put(spec, "replicas", || json!(1));
    put(spec, "revisionHistoryLimit", || json!(10));
    text(spec, "podManagementPolicy", "OrderedReady");
    let strategy = child(spec, "updateStrategy");
    if str_of(strategy, "type").is_empty() {
        text(strategy, "type", "RollingUpdate");
        child(strategy, "rollingUpdate");
    }
    if str_of(strategy, "type") == "RollingUpdate"
        && let Some(rolling) = existing(strategy, "rollingUpdate")
    {
        put(rolling, "partition", || json!(0));
    }
    let retention = child(spec, "persistentVolumeClaimRetentionPolicy");
    text(retention, "whenDeleted", "Retain");
    text(retention, "whenScaled", "Retain");
    pod::template(child(spec, "template"));
    list(Some(spec), "volumeClaimTemplates", |claim| {
        text(child(claim, "spec"), "volumeMode", "Filesystem");
        text(child(claim, "status"), "phase", "Pending");
        // They always say what they are, as upstream's do.
        claim.insert("apiVersion".into(), "v1".into());
        claim.insert("kind".into(), "PersistentVolumeClaim".into());
    });
}

pub(super) fn daemon_set(object: &mut Object) {
    let spec = child(object, "spec");
    put(spec, "revisionHistoryLimit", || json!(10));
    let strategy = child(spec, "updateStrategy");
    text(strategy, "type", "RollingUpdate");
    if str_of(strategy, "type") == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        put(rolling, "maxUnavailable", || json!(1));
        put(rolling, "maxSurge", || json!(0));
    }
    pod::template(child(spec, "template"));
}

pub(super) fn job(object: &mut Object) {
    let spec = child(object, "spec");
    let labels = spec.get("template").and_then(|t| t.pointer("/metadata/labels")).cloned();
    job_spec(spec);
    if let Some(labels) = labels {
        labelled(object, labels);
    }
}

fn job_spec(spec: &mut Object) {
    let unset = |spec: &Object, key: &str| spec.get(key).is_none_or(Value::is_null);
    if unset(spec, "completions") && unset(spec, "parallelism") {
        spec.insert("completions".into(), json!(1));
    }
    put(spec, "parallelism", || json!(1));
    let limit = if unset(spec, "backoffLimitPerIndex") { 6 } else { i32::MAX };
    put(spec, "backoffLimit", || json!(limit));
    put(spec, "completionMode", || json!("NonIndexed"));
    put(spec, "suspend", || json!(false));
    let policy = if unset(spec, "podFailurePolicy") { "TerminatingOrFailed" } else { "Failed" };
    put(spec, "podReplacementPolicy", || json!(policy));
    put(spec, "manualSelector", || json!(false));
    list(existing(spec, "podFailurePolicy"), "rules", |rule| {
        list(Some(rule), "onPodConditions", |pattern| text(pattern, "status", "True"));
    });
    pod::template(child(spec, "template"));
}

pub(super) fn cron_job(object: &mut Object) {
    let spec = child(object, "spec");
    text(spec, "concurrencyPolicy", "Allow");
    put(spec, "suspend", || json!(false));
    put(spec, "successfulJobsHistoryLimit", || json!(3));
    put(spec, "failedJobsHistoryLimit", || json!(1));
    // A job template gets the pod defaults alone: the rest comes when a job is made of it.
    pod::template(child(child(child(spec, "jobTemplate"), "spec"), "template"));
}

pub(super) fn autoscaler(version: &str, object: &mut Object) {
    let kept = existing(object, "metadata").and_then(|m| existing(m, "annotations")).is_some_and(|a| a.contains_key("autoscaling.alpha.kubernetes.io/metrics"));
    let spec = child(object, "spec");
    put(spec, "minReplicas", || json!(1));
    if version == "v1" {
        if !kept {
            put(spec, "targetCPUUtilizationPercentage", || json!(80));
        }
        return;
    }
    if spec.get("metrics").and_then(Value::as_array).is_none_or(|m| m.is_empty()) {
        let cpu = json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
        spec.insert("metrics".into(), cpu);
    }
    if let Some(behavior) = existing(spec, "behavior") {
        let up = child(behavior, "scaleUp");
        put(up, "stabilizationWindowSeconds", || json!(0));
        put(up, "selectPolicy", || json!("Max"));
        put(up, "policies", || json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]));
        let down = child(behavior, "scaleDown");
        put(down, "selectPolicy", || json!("Max"));
        put(down, "policies", || json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]));
    }
}

pub(super) fn device_claim(spec: Option<&mut Object>) {
    list(spec.and_then(|s| existing(s, "devices")), "requests", |request| {
        if let Some(exactly) = existing(request, "exactly") {
            device_count(exactly);
        }
        list(Some(request), "firstAvailable", device_count);
    });
}

fn device_count(request: &mut Object) {
    text(request, "allocationMode", "ExactCount");
    if str_of(request, "allocationMode") == "ExactCount" {
        number(request, "count", 1);
    }
    list(Some(request), "tolerations", |toleration| text(toleration, "operator", "Equal"));
}
