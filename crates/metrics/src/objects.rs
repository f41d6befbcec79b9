//! `NodeMetrics` and `PodMetrics` as JSON objects, and the table of the group's resources. Pure.

use std::collections::BTreeMap;

use api::gotime;
use api::quantity::{Format, Quantity};
use api::resources::Resource;
use serde_json::{Value, json};

use crate::sample::{Nanos, Usage};

/// The group that is served.
pub const GROUP: &str = "metrics.k8s.io";
/// Its version.
pub const VERSION: &str = "v1beta1";

const fn resource(kind: &'static str, list_kind: &'static str, plural: &'static str, namespaced: bool, type_name: &'static str) -> Resource {
    Resource {
        group: GROUP,
        version: VERSION,
        kind,
        list_kind,
        plural,
        singular: "",
        short_names: &[],
        categories: &[],
        namespaced,
        verbs: &["get", "list"],
        subresources: &[],
        storage_prefix: "",
        storage_version: None,
        storage_json: false,
        storage_version_hash: None,
        type_name,
    }
}

/// The resources of the group, as discovery shows them.
pub static RESOURCES: [Resource; 2] = [
    resource("NodeMetrics", "NodeMetricsList", "nodes", false, "io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetrics"),
    resource("PodMetrics", "PodMetricsList", "pods", true, "io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics"),
];

fn seconds(at: Nanos) -> String {
    gotime::format(i64::try_from(at.div_euclid(1_000_000_000)).unwrap_or_default())
}

/// Milliseconds are as much as anybody reads.
fn window(length: Nanos) -> String {
    gotime::format_duration(i64::try_from(length / 1_000_000 * 1_000_000).unwrap_or(i64::MAX))
}

fn amounts(usage: &Usage) -> Value {
    let cpu = Quantity::parse(&format!("{}n", usage.cpu)).map_or_else(|_| "0".to_string(), |q| q.canonical());
    let memory = Quantity::new(i64::try_from(usage.memory).unwrap_or(i64::MAX), Format::BinarySI).canonical();
    json!({"cpu": cpu, "memory": memory})
}

fn metadata(name: &str, namespace: &str, labels: Option<&BTreeMap<String, String>>, now: Nanos) -> Value {
    let mut metadata = json!({"name": name, "creationTimestamp": seconds(now)});
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    if let Some(labels) = labels.filter(|l| !l.is_empty()) {
        metadata["labels"] = json!(labels);
    }
    metadata
}

/// A node's object at `now`.
pub fn node(name: &str, labels: Option<&BTreeMap<String, String>>, usage: &Usage, now: Nanos) -> Value {
    json!({
        "kind": "NodeMetrics",
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "metadata": metadata(name, "", labels, now),
        "timestamp": seconds(usage.at),
        "window": window(usage.window),
        "usage": amounts(usage),
    })
}

/// A pod's object at `now`. The time and window are those of the container that was read first.
pub fn pod(namespace: &str, name: &str, labels: Option<&BTreeMap<String, String>>, containers: &[(String, Usage)], now: Nanos) -> Value {
    let first = containers.iter().map(|(_, u)| u).min_by_key(|u| u.at);
    let list: Vec<Value> = containers.iter().map(|(name, usage)| json!({"name": name, "usage": amounts(usage)})).collect();
    json!({
        "kind": "PodMetrics",
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "metadata": metadata(name, namespace, labels, now),
        "timestamp": seconds(first.map_or(now, |u| u.at)),
        "window": window(first.map_or(0, |u| u.window)),
        "containers": list,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const USAGE: Usage = Usage { at: 1_700_000_000_900_000_000, window: 15_035_500_000, cpu: 1_234_567, memory: 12 << 20 };

    #[test]
    fn objects_are_as_metrics_server_makes_them() {
        let labels = BTreeMap::from([("a".to_string(), "b".to_string())]);
        assert_eq!(
            node("n", Some(&labels), &USAGE, USAGE.at),
            json!({"kind": "NodeMetrics", "apiVersion": "metrics.k8s.io/v1beta1",
                "metadata": {"name": "n", "creationTimestamp": "2023-11-14T22:13:20Z", "labels": {"a": "b"}},
                "timestamp": "2023-11-14T22:13:20Z", "window": "15.035s", "usage": {"cpu": "1234567n", "memory": "12Mi"}})
        );
        let earlier = Usage { at: USAGE.at - 5_000_000_000, window: 60_000_000_000, cpu: 2_000_000_000, memory: 1025 };
        let pod = pod("ns", "p", None, &[("c".into(), USAGE), ("d".into(), earlier)], USAGE.at);
        assert_eq!(pod["metadata"]["namespace"], "ns");
        assert_eq!((&pod["timestamp"], &pod["window"]), (&json!("2023-11-14T22:13:15Z"), &json!("1m0s")));
        assert_eq!(pod["containers"][1], json!({"name": "d", "usage": {"cpu": "2", "memory": "1025"}}));
    }

    #[test]
    fn the_resources_have_wire_formats() {
        for r in &RESOURCES {
            assert!(api::facts::type_by_name(r.type_name).is_some(), "{}", r.type_name);
            assert!(api::facts::type_by_name(&r.list_type_name()).is_some(), "{}", r.type_name);
        }
        assert!(api::codec::encode_protobuf(&pod("ns", "p", None, &[("c".into(), USAGE)], USAGE.at)).is_ok());
    }
}
