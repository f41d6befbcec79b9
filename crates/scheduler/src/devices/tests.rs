//! Scenarios: what is allocated on a node, and what must not be. Selectors are simple texts here:
//! `NAME=VALUE` over attributes, `fails`, or `broken`.

mod extended;
mod found;
mod flow;
mod property;
mod sharing;
mod shell;

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::needs::{Means, Needs};
use super::selectors::{SelectorError, Selectors, Verdict};
use super::slice::{Attribute, Device, Slice};
use super::world::World;
use crate::node::NodeView;
use crate::pod::PodInfo;

/// See the module.
pub(super) struct Simple;

impl Selectors for Simple {
    fn matches(&self, expression: &str, driver: &str, device: &Device) -> Verdict {
        match expression.split_once('=') {
            Some((name, value)) => Ok(device.attribute(driver, name) == Some(&Attribute::Text(value.into()))),
            None if expression == "fails" => Err(SelectorError::Run("no such key: x".into())),
            None => Err(SelectorError::Compile("syntax error".into())),
        }
    }
}

pub(super) fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

pub(super) fn node(name: &str) -> NodeView {
    read(json!({"metadata": {"name": name, "labels": {"zone": name}}, "status": {"allocatable": {"cpu": "4", "example.com/plugged": "3"}}}))
}

/// A slice of the pool `pool` of the driver `d.io`.
pub(super) fn slice(name: &str, spec: Value) -> Value {
    let mut all = json!({"driver": "d.io", "pool": {"name": "pool", "generation": 1, "resourceSliceCount": 1}});
    merge(&mut all, spec);
    json!({"metadata": {"name": name}, "spec": all})
}

pub(super) fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => from.into_iter().for_each(|(k, v)| merge(into.entry(k).or_insert(Value::Null), v)),
        (into, from) => *into = from,
    }
}

/// Devices on the node `a`, of these names and with these further fields.
pub(super) fn on_a(devices: Value) -> Value {
    slice("s", json!({"nodeName": "a", "devices": devices}))
}

pub(super) fn plain(names: &[&str]) -> Value {
    names.iter().map(|n| json!({"name": n})).collect()
}

/// A claim with these requests and whatever else its devices say.
pub(super) fn claim(name: &str, requests: Value, more: Value) -> Value {
    let mut devices = json!({"requests": requests});
    merge(&mut devices, more);
    json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": "1"}, "spec": {"devices": devices}})
}

pub(super) fn exactly(name: &str, more: Value) -> Value {
    let mut request = json!({"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1});
    merge(&mut request, more);
    json!({"name": name, "exactly": request})
}

pub(super) fn selected(expression: &str) -> Value {
    json!([{"cel": {"expression": expression}}])
}

pub(super) fn pod(claims: &[&str]) -> PodInfo {
    let claims: Vec<Value> = claims.iter().map(|c| json!({"name": c, "resourceClaimName": c})).collect();
    read(json!({"metadata": {"name": "p", "namespace": "default", "uid": "p"}, "spec": {"containers": [], "resourceClaims": claims}}))
}

/// A world with the class `gpu`.
pub(super) fn world(slices: &[Value], claims: &[Value]) -> World {
    let mut world = World::default();
    slices.iter().for_each(|s| world.slices.put(&Arc::new(read::<Slice>(s.clone()))));
    class(&mut world, "gpu", json!({}));
    claims.iter().for_each(|c| world.put_claim(&Arc::new(read::<ResourceClaim>(c.clone()))));
    world
}

pub(super) fn class(world: &mut World, name: &str, spec: Value) {
    let class: DeviceClass = read(json!({"metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec}));
    world.set_class(name, Some(&Arc::new(class)));
}

pub(super) fn means() -> Means<'static> {
    Means { selectors: &Simple, tries: 100_000, patience: SignedDuration::from_secs(600), now: Timestamp::from_second(1_000_000).expect("a time") }
}

/// What a pod gets on a node, or why nothing.
pub(super) fn on(world: &World, pod: &PodInfo, at: &str) -> Result<Vec<AllocationResult>, String> {
    let text = |r: crate::plugin::Rejection| r.reasons(pod).join("; ");
    let Some(needs) = Needs::of(world, pod, means()).map_err(text)? else { return Ok(Vec::new()) };
    let mut count = 0;
    let mut share_id = || {
        count += 1;
        format!("share-{count}")
    };
    let fit = needs.on_node(world, means(), pod, &node(at), Some(&mut share_id)).map_err(|r| text(r.rejection))?;
    Ok(fit.allocations.into_iter().chain(fit.extended.map(|(_, a)| a)).collect())
}

/// The devices of allocations, as `REQUEST=DEVICE`.
pub(super) fn devices(given: &[AllocationResult]) -> String {
    let results = given.iter().flat_map(|a| a.devices.iter().flat_map(|d| d.results.iter().flatten()));
    results.map(|r| format!("{}={}", r.request, r.device)).collect::<Vec<_>>().join(" ")
}

/// Claims that a pod has, and what it gets on node `a`: devices, or the reason.
pub(super) fn check(slices: &[Value], claims: &[Value], expected: &str) {
    check_at("a", slices, claims, expected);
}

pub(super) fn check_at(at: &str, slices: &[Value], claims: &[Value], expected: &str) {
    let names: Vec<&str> = claims.iter().filter_map(|c| c["metadata"]["name"].as_str()).filter(|n| !n.starts_with("other")).collect();
    let got = on(&world(slices, claims), &pod(&names), at).map_or_else(|why| why, |given| devices(&given));
    assert_eq!(got, expected);
}

/// A claim that has these devices, for somebody else.
pub(super) fn taken(devices: &[&str]) -> Value {
    let mut taken = claim("other", json!([]), json!({}));
    let results: Vec<Value> = devices.iter().map(|d| json!({"request": "r", "driver": "d.io", "pool": "pool", "device": d})).collect();
    taken["status"] = json!({"allocation": {"devices": {"results": results}}});
    taken
}
