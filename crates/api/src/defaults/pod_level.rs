//! Pod-level resources (KEP-2837): what a pod that sets some of them gets for the others, from
//! the sum of its containers.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Object, child, existing, str_of};
use crate::quantity::Quantity;

type Sums = BTreeMap<String, Quantity>;

/// Fills `spec.resources` of a pod whose containers have their defaults.
pub(super) fn resources(spec: &mut Object) {
    let filled = |o: &Object, key: &str| o.get(key).and_then(Value::as_object).is_some_and(|m| !m.is_empty());
    let Some(own) = existing(spec, "resources") else { return };
    if !filled(own, "limits") && !filled(own, "requests") {
        return;
    }
    let huge: Sums = aggregate(spec, "limits").into_iter().filter(|(name, _)| name.starts_with("hugepages-")).collect();
    let requests: Sums = aggregate(spec, "requests").into_iter().filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory")).collect();
    let own = child(spec, "resources");
    for (name, sum) in huge {
        if own.get("requests").and_then(|r| r.get(&name)).is_none() {
            child(own, "limits").entry(name).or_insert_with(|| sum.canonical().into());
        }
    }
    if !filled(own, "limits") {
        return;
    }
    for (name, sum) in requests {
        child(own, "requests").entry(name).or_insert_with(|| sum.canonical().into());
    }
    let limits = own.get("limits").and_then(Value::as_object).cloned().unwrap_or_default();
    for (name, limit) in limits {
        if matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-") {
            child(own, "requests").entry(name).or_insert(limit);
        }
    }
}

fn amounts(container: &Value, which: &str) -> Sums {
    let map = container.get("resources").and_then(|r| r.get(which)).and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), Quantity::from_value(v).ok()?))).collect()
}

fn add(to: &mut Sums, from: &Sums) {
    for (name, amount) in from {
        to.entry(name.clone()).and_modify(|sum| sum.add(amount)).or_insert_with(|| amount.clone());
    }
}

/// What the containers need at once: all regular ones and sidecars, or an init container with the
/// sidecars before it where that is more.
fn aggregate(spec: &Object, which: &str) -> Sums {
    let list = |key: &str| spec.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let (mut sums, mut sidecars, mut most) = (Sums::new(), Sums::new(), Sums::new());
    for container in list("containers") {
        add(&mut sums, &amounts(container, which));
    }
    for container in list("initContainers") {
        let mut needs = amounts(container, which);
        if container.as_object().is_some_and(|c| str_of(c, "restartPolicy") == "Always") {
            add(&mut sums, &needs);
            add(&mut sidecars, &needs);
            needs = sidecars.clone();
        } else {
            add(&mut needs, &sidecars);
        }
        larger(&mut most, needs);
    }
    larger(&mut sums, most);
    sums
}

fn larger(of: &mut Sums, other: Sums) {
    for (name, amount) in other {
        match of.get_mut(&name) {
            Some(known) if *known >= amount => {}
            _ => {
                of.insert(name, amount);
            }
        }
    }
}
