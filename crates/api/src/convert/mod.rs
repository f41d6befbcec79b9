//! Kinds that are served in two versions but stored in one: events, and horizontal pod autoscalers.
mod autoscaler;

use serde_json::{Map, Value, json};

/// Brings an object from one version to another. Versions without differences only change their name.
pub fn convert(from: (&str, &str, &str), to: (&str, &str), mut object: Value) -> Value {
    match (from.0, to.0, from.2) {
        ("", "events.k8s.io", "Event") => rename(&mut object, false),
        ("events.k8s.io", "", "Event") => rename(&mut object, true),
        ("autoscaling", "autoscaling", "HorizontalPodAutoscaler") if from.1 == "v1" && to.1 == "v2" => autoscaler::to_v2(&mut object),
        ("autoscaling", "autoscaling", "HorizontalPodAutoscaler") if from.1 == "v2" && to.1 == "v1" => autoscaler::to_v1(&mut object),
        _ => {}
    }
    map_of(&mut object).insert("apiVersion".into(), crate::resources::api_version(to.0, to.1).into());
    object
}

/// The value as a map, made one if it is not.
fn map_of(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("just made a map"),
    }
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
