//! Autoscalers in autoscaling/v1: what that version has no fields for is kept in annotations, in the form that upstream
//! gives it there.
use serde_json::{Map, Value, json};

use super::map_of;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
/// What a version 1 object asks for that names no metric.
const DEFAULT_UTILIZATION: i64 = 80;

fn utilization(metric: &Value, part: &str) -> Option<i64> {
    let resource = metric.get("resource")?;
    if metric.get("type")? != "Resource" || resource.get("name")? != "cpu" {
        return None;
    }
    resource.get(part)?.get("averageUtilization")?.as_i64()
}

/// From version 2 to version 1.
pub fn to_v1(hpa: &mut Value) {
    let mut kept: Vec<(&str, Value)> = Vec::new();
    if let Some(Value::Object(spec)) = hpa.get_mut("spec") {
        if let Some(Value::Array(metrics)) = spec.remove("metrics") {
            let mut others = Vec::new();
            for metric in metrics {
                match utilization(&metric, "target") {
                    Some(percent) => drop(spec.entry("targetCPUUtilizationPercentage").or_insert_with(|| percent.into())),
                    None => others.push(metric_to_v1(metric, "target")),
                }
            }
            if !others.is_empty() {
                kept.push((METRICS, others.into()));
            }
        }
        if let Some(behavior) = spec.remove("behavior").filter(|b| !b.is_null()) {
            kept.push((BEHAVIOR, behavior_to_go(&behavior)));
        }
    }
    if let Some(Value::Object(status)) = hpa.get_mut("status") {
        if let Some(Value::Array(metrics)) = status.remove("currentMetrics").filter(|m| m.as_array().is_some_and(|m| !m.is_empty())) {
            if let Some(percent) = metrics.iter().find_map(|m| utilization(m, "current")) {
                status.insert("currentCPUUtilizationPercentage".into(), percent.into());
            }
            kept.push((CURRENT_METRICS, metrics.into_iter().map(|m| metric_to_v1(m, "current")).collect()));
        }
        // Always told in this version, and in the other one unless it is none.
        status.entry("currentReplicas").or_insert(json!(0));
        if let Some(conditions) = status.remove("conditions").filter(|c| c.as_array().is_some_and(|c| !c.is_empty())) {
            kept.push((CONDITIONS, conditions));
        }
    }
    drop_annotations(hpa);
    for (key, value) in kept {
        map_of(map_of(map_of(hpa).entry("metadata").or_insert_with(|| json!({}))).entry("annotations").or_insert_with(|| json!({}))).insert(key.into(), in_order(&value).into());
    }
}

/// From version 1 to version 2. Annotations that cannot be read are dropped.
pub fn to_v2(hpa: &mut Value) {
    let read = |key: &str| -> Option<Value> {
        let text = hpa.get("metadata")?.get("annotations")?.get(key)?.as_str()?;
        serde_json::from_str(text).ok()
    };
    let (metrics, current, behavior, conditions) = (read(METRICS), read(CURRENT_METRICS), read(BEHAVIOR), read(CONDITIONS));
    drop_annotations(hpa);
    if let Some(Value::Object(spec)) = hpa.get_mut("spec") {
        let mut all: Vec<Value> = match metrics {
            Some(Value::Array(metrics)) => metrics.into_iter().map(|m| metric_to_v2(m, "target")).collect(),
            _ => Vec::new(),
        };
        let cpu = spec.remove("targetCPUUtilizationPercentage").or_else(|| all.is_empty().then(|| DEFAULT_UTILIZATION.into()));
        if let Some(percent) = cpu.filter(|p| !p.is_null()) {
            all.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}}));
        }
        spec.insert("metrics".into(), all.into());
        if let Some(behavior) = behavior.map(behavior_from_go).filter(|b| b.as_object().is_some_and(|b| !b.is_empty())) {
            spec.insert("behavior".into(), behavior);
        }
    }
    if let Some(Value::Object(status)) = hpa.get_mut("status") {
        if let Some(percent) = status.remove("currentCPUUtilizationPercentage") {
            let current = json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}]);
            status.insert("currentMetrics".into(), current);
        }
        if let Some(Value::Array(current)) = current {
            // it says more than the percentage
            status.insert("currentMetrics".into(), current.into_iter().map(|m| metric_to_v2(m, "current")).collect());
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

/// The fields of all that is kept, in an order that each of upstream's structures agrees with.
const ORDER: [&str; 38] = [
    "ScaleUp", "ScaleDown", "StabilizationWindowSeconds", "SelectPolicy", "Policies", "Type", "Value", "PeriodSeconds", "Tolerance", "type", "status", "lastTransitionTime", "reason", "message",
    "object", "pods", "resource", "containerResource", "external", "kind", "name", "apiVersion", "target", "metricName", "metricSelector", "targetValue", "currentValue",
    "targetAverageUtilization", "currentAverageUtilization", "targetAverageValue", "currentAverageValue", "container", "selector", "averageValue", "matchLabels", "matchExpressions", "key", "operator",
];

/// JSON as upstream writes it: fields in the order of their structures, labels by name.
fn in_order(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<(&String, &Value)> = map.iter().collect();
            fields.sort_by_key(|(name, _)| ORDER.iter().position(|n| n == name).unwrap_or(ORDER.len()));
            let labels = |name: &str, value: &Value| if name == "matchLabels" { value.to_string() } else { in_order(value) };
            let fields: Vec<String> = fields.into_iter().map(|(name, value)| format!("{}:{}", Value::from(name.as_str()), labels(name, value))).collect();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(in_order).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

fn drop_annotations(hpa: &mut Value) {
    let meta = map_of(map_of(hpa).entry("metadata").or_insert_with(|| json!({})));
    let Some(Value::Object(annotations)) = meta.get_mut("annotations") else { return };
    for key in [METRICS, CURRENT_METRICS, BEHAVIOR, CONDITIONS] {
        annotations.remove(key);
    }
    if annotations.is_empty() {
        meta.remove("annotations");
    }
}

/// The kinds of metrics.
const SOURCES: [&str; 5] = ["object", "pods", "resource", "containerResource", "external"];

/// A metric of version 2 as version 1 has it; `part` is `target`, or `current` in a status.
fn metric_to_v1(mut metric: Value, part: &str) -> Value {
    for kind in SOURCES {
        let Some(source) = metric.get(kind).filter(|s| s.is_object()) else { continue };
        let is_status = part == "current";
        let get = |path: &str| source.pointer(path).filter(|v| !v.is_null()).cloned();
        let amount = |name: &str| get(&format!("/{part}/{name}"));
        let zero = || Some(json!("0"));
        let mut new = Map::new();
        let mut put = |name: String, value: Option<Value>| {
            if let Some(value) = value {
                new.insert(name, value);
            }
        };
        match kind {
            "object" => {
                put("target".into(), get("/describedObject"));
                put("metricName".into(), get("/metric/name"));
                put(format!("{part}Value"), amount("value").or_else(zero));
                put("selector".into(), get("/metric/selector"));
                put("averageValue".into(), amount("averageValue"));
            }
            "pods" => {
                put("metricName".into(), get("/metric/name"));
                put(format!("{part}AverageValue"), amount("averageValue").or_else(zero));
                put("selector".into(), get("/metric/selector"));
            }
            "external" => {
                put("metricName".into(), get("/metric/name"));
                put("metricSelector".into(), get("/metric/selector"));
                put(format!("{part}Value"), amount("value").or_else(|| if is_status { zero() } else { None }));
                put(format!("{part}AverageValue"), amount("averageValue"));
            }
            _ => {
                put("name".into(), get("/name"));
                put(format!("{part}AverageUtilization"), amount("averageUtilization"));
                put(format!("{part}AverageValue"), amount("averageValue").or_else(|| if is_status { zero() } else { None }));
                put("container".into(), get("/container"));
            }
        }
        metric[kind] = new.into();
    }
    metric
}

/// A metric of version 1 as version 2 has it.
fn metric_to_v2(mut metric: Value, part: &str) -> Value {
    for kind in SOURCES {
        let Some(source) = metric.get(kind).filter(|s| s.is_object()) else { continue };
        let is_status = part == "current";
        let get = |name: &str| source.get(name).filter(|v| !v.is_null()).cloned();
        let of = |name: &str| get(&format!("{part}{name}"));
        let (mut new, mut amounts) = (Map::new(), Map::new());
        let mut amount = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                amounts.insert(name.into(), value);
            }
        };
        let mut identifier = json!({"name": get("metricName").unwrap_or_else(|| "".into())});
        if let Some(selector) = get(if kind == "external" { "metricSelector" } else { "selector" }) {
            identifier["selector"] = selector;
        }
        let by;
        match kind {
            "object" => {
                let average = get("averageValue");
                by = if average.is_some() { "AverageValue" } else { "Value" };
                // the field cannot be left out in version 1
                let counts = |value: &Value| is_status || by == "Value" || value.as_str().is_none_or(|v| v != "0");
                amount("value", of("Value").filter(counts));
                amount("averageValue", average);
                new.insert("describedObject".into(), get("target").unwrap_or_else(|| json!({})));
                new.insert("metric".into(), identifier);
            }
            "pods" => {
                by = "AverageValue";
                amount("averageValue", of("AverageValue"));
                new.insert("metric".into(), identifier);
            }
            "external" => {
                by = if of("Value").is_some() { "Value" } else { "AverageValue" };
                amount("value", of("Value"));
                amount("averageValue", of("AverageValue"));
                new.insert("metric".into(), identifier);
            }
            _ => {
                by = if of("AverageUtilization").is_some() { "Utilization" } else { "AverageValue" };
                amount("averageValue", of("AverageValue"));
                amount("averageUtilization", of("AverageUtilization"));
                for name in ["name", "container"] {
                    if let Some(value) = get(name) {
                        new.insert(name.into(), value);
                    }
                }
            }
        }
        if !is_status {
            amounts.insert("type".into(), by.into());
        }
        new.insert(part.into(), amounts.into());
        metric[kind] = new.into();
    }
    metric
}

/// Upstream writes its own Go type there, whose fields have no other names than in Go, and are all written.
fn behavior_to_go(behavior: &Value) -> Value {
    let rules = |name: &str| match behavior.get(name).filter(|r| !r.is_null()) {
        None => Value::Null,
        Some(rules) => {
            let get = |name: &str| rules.get(name).cloned().unwrap_or_default();
            let policies = get("policies").as_array().map(|list| {
                let policy = |p: &Value| json!({"Type": p["type"], "Value": p["value"], "PeriodSeconds": p["periodSeconds"]});
                list.iter().map(policy).collect::<Vec<Value>>()
            });
            json!({"StabilizationWindowSeconds": get("stabilizationWindowSeconds"), "SelectPolicy": get("selectPolicy"), "Policies": policies, "Tolerance": get("tolerance")})
        }
    };
    json!({"ScaleUp": rules("scaleUp"), "ScaleDown": rules("scaleDown")})
}

/// Go reads names whatever their case; what is null is not there.
fn behavior_from_go(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let named = map.into_iter().filter(|(_, v)| !v.is_null()).map(|(key, value)| {
                let mut chars = key.chars();
                let first = chars.next().map(|c| c.to_ascii_lowercase());
                (first.into_iter().chain(chars).collect(), behavior_from_go(value))
            });
            Value::Object(named.collect())
        }
        Value::Array(list) => list.into_iter().map(behavior_from_go).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotation(hpa: &Value, key: &str) -> Value {
        serde_json::from_str(hpa["metadata"]["annotations"][key].as_str().unwrap_or_else(|| panic!("{key}: {hpa}"))).unwrap()
    }

    #[test]
    fn what_version_1_lacks_is_in_upstreams_form() {
        let selector = json!({"matchLabels": {"a": "b"}});
        let about = json!({"kind": "Service", "name": "s", "apiVersion": "v1"});
        let metrics = json!([
            {"type": "Object", "object": {"describedObject": about, "metric": {"name": "m", "selector": selector}, "target": {"type": "Value", "value": "5"}}},
            {"type": "Object", "object": {"describedObject": about, "metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "7"}}},
            {"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "1k"}}},
            {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
            {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c", "target": {"type": "Utilization", "averageUtilization": 60}}},
            {"type": "External", "external": {"metric": {"name": "q", "selector": selector}, "target": {"type": "Value", "value": "9"}}},
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
        ]);
        let current = json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 40, "averageValue": "4m"}}}]);
        let behavior = json!({"scaleUp": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]}});
        let conditions = json!([{"type": "AbleToScale", "status": "True", "reason": "R"}]);
        let v2 = json!({
            "metadata": {"name": "h", "annotations": {"own": "x"}},
            "spec": {"maxReplicas": 3, "metrics": metrics, "behavior": behavior},
            "status": {"currentReplicas": 1, "currentMetrics": current, "conditions": conditions},
        });
        let mut v1 = v2.clone();
        to_v1(&mut v1);
        let text = |key: &str| v1["metadata"]["annotations"][key].as_str().unwrap();
        assert_eq!(text(CONDITIONS), "[{\"type\":\"AbleToScale\",\"status\":\"True\",\"reason\":\"R\"}]");
        assert!(text(BEHAVIOR).starts_with("{\"ScaleUp\":{\"StabilizationWindowSeconds\":0,\"SelectPolicy\":null,\"Policies\":[{\"Type\":\"Pods\",\"Value\":4,\"PeriodSeconds\":15}]"), "{}", text(BEHAVIOR));
        assert!(text(METRICS).starts_with("[{\"type\":\"Object\",\"object\":{\"target\":{\"kind\":\"Service\",\"name\":\"s\",\"apiVersion\":\"v1\"},\"metricName\":\"m\",\"targetValue\":\"5\",\"selector\""), "{}", text(METRICS));
        assert_eq!((&v1["spec"], &v1["status"]), (&json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}), &json!({"currentReplicas": 1, "currentCPUUtilizationPercentage": 40})));
        assert_eq!(
            annotation(&v1, METRICS),
            json!([
                {"type": "Object", "object": {"target": about, "metricName": "m", "targetValue": "5", "selector": selector}},
                {"type": "Object", "object": {"target": about, "metricName": "m", "targetValue": "0", "averageValue": "7"}},
                {"type": "Pods", "pods": {"metricName": "m", "targetAverageValue": "1k"}},
                {"type": "Resource", "resource": {"name": "memory", "targetAverageValue": "1Gi"}},
                {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c", "targetAverageUtilization": 60}},
                {"type": "External", "external": {"metricName": "q", "metricSelector": selector, "targetValue": "9"}},
            ])
        );
        assert_eq!(annotation(&v1, CURRENT_METRICS), json!([{"type": "Resource", "resource": {"name": "cpu", "currentAverageUtilization": 40, "currentAverageValue": "4m"}}]));
        assert_eq!(
            annotation(&v1, BEHAVIOR),
            json!({"ScaleUp": {"StabilizationWindowSeconds": 0, "SelectPolicy": null, "Policies": [{"Type": "Pods", "Value": 4, "PeriodSeconds": 15}], "Tolerance": null}, "ScaleDown": null})
        );
        to_v2(&mut v1);
        assert_eq!(v1, v2);
    }

    #[test]
    fn no_metric_means_the_processor() {
        let mut hpa = json!({"metadata": {"annotations": {METRICS: "nonsense"}}, "spec": {"maxReplicas": 3}});
        to_v2(&mut hpa);
        assert_eq!(hpa["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert!(hpa["metadata"].get("annotations").is_none());
    }
}
