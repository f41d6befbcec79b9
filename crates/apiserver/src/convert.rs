//! Kinds that are served in two versions but stored in one: events, and horizontal pod autoscalers.
use serde_json::{Map, Value, json};

use crate::object::map_of;

/// Brings an object from one version to another. Versions without differences only change their name.
pub fn convert(from: (&str, &str, &str), to: (&str, &str), mut object: Value) -> Value {
    match (from.0, to.0, from.2) {
        ("", "events.k8s.io", "Event") => rename(&mut object, false),
        ("events.k8s.io", "", "Event") => rename(&mut object, true),
        ("autoscaling", "autoscaling", "HorizontalPodAutoscaler") if from.1 == "v1" && to.1 == "v2" => to_v2(&mut object),
        ("autoscaling", "autoscaling", "HorizontalPodAutoscaler") if from.1 == "v2" && to.1 == "v1" => to_v1(&mut object),
        _ => {}
    }
    map_of(&mut object).insert("apiVersion".into(), api::resources::api_version(to.0, to.1).into());
    object
}

/// Core name, events.k8s.io name.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(event: &mut Value, to_core: bool) {
    let map = map_of(event);
    for (core, new) in EVENT_FIELDS {
        let (from, to) = if to_core { (new, core) } else { (core, new) };
        if let Some(value) = map.remove(from) {
            map.insert(to.into(), value);
        }
    }
    // Of these, an empty one is not shown by events.k8s.io, and the core version shows it always.
    let (controller, instance) = if to_core { ("reportingComponent", "reportingInstance") } else { ("reportingController", "reportingInstance") };
    for key in [controller, instance] {
        if to_core {
            map.entry(key).or_insert_with(|| "".into());
        } else if map.get(key).is_some_and(|v| v == "") {
            map.remove(key);
        }
    }
    if to_core {
        map.entry("involvedObject").or_insert_with(|| json!({}));
        map.entry("source").or_insert_with(|| json!({}));
        for key in ["firstTimestamp", "lastTimestamp"] {
            map.entry(key).or_insert(Value::Null);
        }
    }
}

const V2_METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";

fn utilization(metric: &Value, part: &str) -> Option<i64> {
    let resource = metric.get("resource")?;
    if metric.get("type")? != "Resource" || resource.get("name")? != "cpu" {
        return None;
    }
    resource.get(part)?.get("averageUtilization")?.as_i64()
}

fn to_v1(hpa: &mut Value) {
    let mut others = Vec::new();
    if let Some(Value::Object(spec)) = hpa.get_mut("spec") {
        if let Some(Value::Array(metrics)) = spec.remove("metrics") {
            for metric in metrics {
                match utilization(&metric, "target") {
                    Some(percent) if !spec.contains_key("targetCPUUtilizationPercentage") => {
                        spec.insert("targetCPUUtilizationPercentage".into(), percent.into());
                    }
                    _ => others.push(metric),
                }
            }
        }
        if let Some(behavior) = spec.remove("behavior") {
            let text = behavior.to_string();
            annotations(hpa).insert("autoscaling.alpha.kubernetes.io/behavior".into(), text.into());
        }
    }
    if let Some(Value::Object(status)) = hpa.get_mut("status") {
        if let Some(Value::Array(metrics)) = status.remove("currentMetrics")
            && let Some(percent) = metrics.iter().find_map(|m| utilization(m, "current"))
        {
            status.insert("currentCPUUtilizationPercentage".into(), percent.into());
        }
        // Always told in this version, and in the other one unless it is none.
        status.entry("currentReplicas").or_insert(json!(0));
        if let Some(conditions) = status.remove("conditions") {
            let text = conditions.to_string();
            annotations(hpa).insert("autoscaling.alpha.kubernetes.io/conditions".into(), text.into());
        }
    }
    if !others.is_empty() {
        let text = Value::Array(others).to_string();
        annotations(hpa).insert(V2_METRICS.into(), text.into());
    }
}

fn to_v2(hpa: &mut Value) {
    let mut take = |key: &str| -> Option<Value> {
        let map = annotations(hpa);
        let text = map.remove(key)?;
        serde_json::from_str(text.as_str()?).ok()
    };
    let metrics = take(V2_METRICS);
    let behavior = take("autoscaling.alpha.kubernetes.io/behavior");
    let conditions = take("autoscaling.alpha.kubernetes.io/conditions");
    if annotations(hpa).is_empty() {
        crate::object::meta_mut(hpa).remove("annotations");
    }
    if let Some(Value::Object(spec)) = hpa.get_mut("spec") {
        let mut all = Vec::new();
        if let Some(percent) = spec.remove("targetCPUUtilizationPercentage") {
            all.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}}));
        }
        if let Some(Value::Array(metrics)) = metrics {
            all.extend(metrics);
        }
        if !all.is_empty() {
            spec.insert("metrics".into(), all.into());
        }
        if let Some(behavior) = behavior {
            spec.insert("behavior".into(), behavior);
        }
    }
    if let Some(Value::Object(status)) = hpa.get_mut("status") {
        if let Some(percent) = status.remove("currentCPUUtilizationPercentage") {
            let current = json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}]);
            status.insert("currentMetrics".into(), current);
        }
        status.entry("currentMetrics").or_insert(Value::Null);
        if status.get("currentReplicas") == Some(&json!(0)) {
            status.remove("currentReplicas");
        }
        if let Some(conditions) = conditions {
            status.insert("conditions".into(), conditions);
        }
    }
}

fn annotations(object: &mut Value) -> &mut Map<String, Value> {
    map_of(crate::object::meta_mut(object).entry("annotations").or_insert_with(|| json!({})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {}, "regarding": {"name": "x"}, "note": "n"});
        let core = convert(("events.k8s.io", "v1", "Event"), ("", "v1"), event);
        assert_eq!(core["message"], "n");
        assert_eq!(core["involvedObject"]["name"], "x");
        assert_eq!((&core["apiVersion"], &core["reportingComponent"]), (&json!("v1"), &json!("")));
        assert!(convert(("", "v1", "Event"), ("events.k8s.io", "v1"), core).get("reportingController").is_none());
        let v1 = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 80}});
        let v2 = convert(("autoscaling", "v1", "HorizontalPodAutoscaler"), ("autoscaling", "v2"), v1.clone());
        assert_eq!(v2["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert_eq!(convert(("autoscaling", "v2", "HorizontalPodAutoscaler"), ("autoscaling", "v1"), v2), v1);
    }
}
