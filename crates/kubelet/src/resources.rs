//! Requests and limits: quality of service classes, cgroup values, what a pod asks of its node. Pure.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::pod::{is_sidecar, spec};

/// A list of quantities as the API has it.
pub type List = BTreeMap<String, Text>;

/// Quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

fn parse(text: &Text) -> Option<Quantity> {
    Quantity::parse(&text.0).ok()
}

/// A quantity of a list, in units, rounded up.
pub fn value(list: Option<&List>, name: &str) -> Option<i64> {
    list?.get(name).and_then(parse).map(|q| q.value())
}

/// The same in thousandths.
pub fn milli(list: Option<&List>, name: &str) -> Option<i64> {
    list?.get(name).and_then(parse).map(|q| q.milli_value())
}

fn limits(container: &Container) -> Option<&List> {
    container.resources.as_ref()?.limits.as_ref()
}

fn requests(container: &Container) -> Option<&List> {
    container.resources.as_ref()?.requests.as_ref()
}

/// The class of a pod (upstream's `ComputePodQOS`).
pub fn qos(pod: &Pod) -> Qos {
    let spec = spec(pod);
    let mut any = false;
    let mut all = true;
    let whole = spec.resources.as_ref();
    let each: Vec<(Option<&List>, Option<&List>)> = match whole {
        Some(r) if r.requests.is_some() || r.limits.is_some() => vec![(r.requests.as_ref(), r.limits.as_ref())],
        _ => spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(|c| (requests(c), limits(c))).collect(),
    };
    for (requests, limits) in each {
        for name in ["cpu", "memory"] {
            let request = milli(requests, name).filter(|v| *v > 0);
            let limit = milli(limits, name).filter(|v| *v > 0);
            any |= request.is_some() || limit.is_some();
            all &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, all) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

fn add(into: &mut BTreeMap<String, Quantity>, list: Option<&List>) {
    for (name, text) in list.into_iter().flatten() {
        if let Some(quantity) = parse(text) {
            into.entry(name.clone()).or_insert_with(Quantity::zero).add(&quantity);
        }
    }
}

fn raise(into: &mut BTreeMap<String, Quantity>, other: &BTreeMap<String, Quantity>) {
    for (name, quantity) in other {
        let entry = into.entry(name.clone()).or_insert_with(Quantity::zero);
        if *entry < *quantity {
            *entry = quantity.clone();
        }
    }
}

/// What a pod asks of its node: its containers together, or the greatest moment of its initialisation.
pub fn pod_requests(pod: &Pod) -> BTreeMap<String, Quantity> {
    total(pod, |r| r.requests.as_ref().or(r.limits.as_ref()))
}

/// The same of limits; a resource that one container has no limit on is absent.
pub fn pod_limits(pod: &Pod) -> BTreeMap<String, Quantity> {
    let mut limits = total(pod, |r| r.limits.as_ref());
    let unlimited = |name: &str| {
        let spec = spec(pod);
        let in_pod = spec.resources.as_ref().and_then(|r| r.limits.as_ref()).is_some_and(|l| l.contains_key(name));
        !in_pod && spec.containers.iter().any(|c| self::limits(c).is_none_or(|l| !l.contains_key(name)))
    };
    limits.retain(|name, _| !unlimited(name));
    limits
}

fn total(pod: &Pod, list: impl Fn(&ResourceRequirements) -> Option<&List>) -> BTreeMap<String, Quantity> {
    let spec = spec(pod);
    let of = |c: &Container| {
        let mut map = BTreeMap::new();
        add(&mut map, c.resources.as_ref().and_then(&list));
        map
    };
    let sum = |into: &mut BTreeMap<String, Quantity>, other: &BTreeMap<String, Quantity>| {
        for (name, quantity) in other {
            into.entry(name.clone()).or_insert_with(Quantity::zero).add(quantity);
        }
    };
    let mut running = BTreeMap::new();
    spec.containers.iter().for_each(|c| sum(&mut running, &of(c)));
    let mut sidecars = BTreeMap::new();
    let mut peak = BTreeMap::new();
    for container in spec.init_containers.iter().flatten() {
        let mut now = sidecars.clone();
        sum(&mut now, &of(container));
        raise(&mut peak, &now);
        if is_sidecar(container) {
            sidecars = now;
        }
    }
    sum(&mut running, &sidecars);
    raise(&mut running, &peak);
    if let Some(whole) = spec.resources.as_ref().and_then(&list) {
        let mut map = BTreeMap::new();
        add(&mut map, Some(whole));
        running.extend(map);
    }
    add(&mut running, spec.overhead.as_ref());
    running
}

/// cgroup shares for thousandths of a processor.
pub fn shares(milli: i64) -> i64 {
    if milli <= 0 { 2 } else { (milli * 1024 / 1000).clamp(2, 262_144) }
}

/// Microseconds of processor time in each period of 100 ms.
pub fn quota(milli: i64) -> i64 {
    (milli * 100).max(1000)
}

/// The length of a scheduling period, in microseconds.
pub const PERIOD: i64 = 100_000;

/// How readily the kernel kills a container for lack of memory (upstream's `GetContainerOOMScoreAdjust`).
pub fn oom_score_adj(pod: &Pod, container: &Container, capacity: i64) -> i64 {
    if spec(pod).priority.unwrap_or(0) >= 2_000_000_000 {
        return -997;
    }
    match qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let request = value(requests(container), "memory").or_else(|| value(limits(container), "memory")).unwrap_or(0);
            let adjust = if capacity > 0 { 1000 - (i128::from(request) * 1000 / i128::from(capacity)) as i64 } else { 999 };
            match adjust {
                ..3 => 3,
                1000.. => 999,
                other => other,
            }
        }
    }
}

/// A container's own resources as the CRI wants them.
pub fn linux(pod: &Pod, container: &Container, capacity: i64) -> cri::v1::LinuxContainerResources {
    let cpu_request = milli(requests(container), "cpu");
    let cpu_limit = milli(limits(container), "cpu");
    let shares_of = cpu_request.or(cpu_limit).unwrap_or(0);
    cri::v1::LinuxContainerResources {
        cpu_period: if cpu_limit.is_some_and(|l| l > 0) { PERIOD } else { 0 },
        cpu_quota: cpu_limit.filter(|l| *l > 0).map(quota).unwrap_or(0),
        cpu_shares: shares(shares_of),
        memory_limit_in_bytes: value(limits(container), "memory").unwrap_or(0),
        oom_score_adj: oom_score_adj(pod, container, capacity),
        ..Default::default()
    }
}

/// The value that `resourceFieldRef` gives: limits that are not set are the node's allocatable.
pub fn field(container: &Container, resource: &str, divisor: Option<&Text>, allocatable: &List) -> Option<String> {
    let (kind, name) = resource.split_once('.')?;
    let list = match kind {
        "limits" => limits(container),
        "requests" => requests(container),
        _ => return None,
    };
    let quantity = match list.and_then(|l| l.get(name)).and_then(parse) {
        Some(quantity) => quantity,
        None if kind == "limits" => allocatable.get(name).and_then(parse).unwrap_or_else(Quantity::zero),
        None => limits(container).and_then(|l| l.get(name)).and_then(parse).unwrap_or_else(Quantity::zero),
    };
    let divisor = divisor.and_then(parse).filter(|d| !d.is_zero());
    let (have, by) = if name == "cpu" {
        (quantity.milli_value(), divisor.map_or(1000, |d| d.milli_value()))
    } else {
        (quantity.value(), divisor.map_or(1, |d| d.value()))
    };
    Some(((i128::from(have) + i128::from(by) - 1) / i128::from(by.max(1))).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "a"}, "spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn classes() {
        let check = |resources: serde_json::Value, expect: Qos| {
            assert_eq!(qos(&pod(serde_json::json!([{"name": "a", "resources": resources}]))), expect);
        };
        check(serde_json::json!({}), Qos::BestEffort);
        check(serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}}), Qos::Guaranteed);
        check(serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}), Qos::Guaranteed);
        check(serde_json::json!({"limits": {"cpu": "1"}}), Qos::Burstable);
        check(serde_json::json!({"requests": {"cpu": "1"}}), Qos::Burstable);
    }

    #[test]
    fn the_peak_of_initialisation_counts() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "a"}, "spec": {
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "i", "resources": {"requests": {"cpu": "1"}}},
            ],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "200m", "memory": "1Mi"}}}],
        }}))
        .unwrap();
        let all = pod_requests(&pod);
        assert_eq!(all["cpu"].milli_value(), 1100);
        assert_eq!(all["memory"].value(), 1 << 20);
    }

    #[test]
    fn cgroup_values() {
        assert_eq!((shares(0), shares(100), shares(1000)), (2, 102, 1024));
        assert_eq!((quota(1), quota(500)), (1000, 50_000));
        let pod = pod(serde_json::json!([{"name": "a", "resources": {"requests": {"memory": "4Gi"}}}]));
        assert_eq!(oom_score_adj(&pod, &pod.spec.as_ref().unwrap().containers[0], 8 << 30), 500);
    }

    #[test]
    fn resource_fields() {
        let pod = pod(serde_json::json!([{"name": "a", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}}}]));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let check = |resource: &str, divisor: Option<&str>, expect: &str| {
            let divisor = divisor.map(|d| Text(d.to_string()));
            assert_eq!(field(container, resource, divisor.as_ref(), &List::new()).unwrap(), expect);
        };
        check("limits.cpu", None, "2");
        check("limits.cpu", Some("1m"), "1500");
        check("limits.memory", Some("1Mi"), "64");
        check("requests.memory", None, "67108864");
    }
}
