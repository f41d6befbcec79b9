//! What objects use of a namespace's quotas. The server charges by it when objects are written, the
//! controller counts by it what there is.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::gotime;
use crate::names::is_extended_resource;
use crate::quantity::{Format, Quantity};

/// Amounts by quota name (`requests.cpu`, `count/jobs.batch`).
pub type Usage = BTreeMap<String, Quantity>;

/// Resource amounts by name.
pub type Amounts = BTreeMap<String, Quantity>;

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// The amounts of a resource list.
pub fn quantities(map: Option<&Map<String, Value>>) -> Amounts {
    map.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), Quantity::from_value(v).ok()?))).collect()
}

/// The amounts at a JSON pointer of an object, such as a quota's `/spec/hard`.
pub fn amounts_at(object: &Value, pointer: &str) -> Amounts {
    quantities(object.pointer(pointer).and_then(Value::as_object))
}

/// A container's `requests` or `limits`.
pub fn amounts(container: &Value, which: &str) -> Amounts {
    amounts_at(container, &format!("/resources/{which}"))
}

fn add_to(sum: &mut Amounts, name: String, amount: &Quantity) {
    match sum.get_mut(&name) {
        Some(sum) => sum.add(amount),
        None => drop(sum.insert(name, amount.clone())),
    }
}

/// What a whole pod asks for: the sum of its containers, or the largest init container.
pub fn pod_total(pod: &Value, which: &str) -> Amounts {
    let mut sum = Amounts::new();
    let mut largest = Amounts::new();
    for container in items(pod, "/spec/containers") {
        amounts(container, which).into_iter().for_each(|(k, q)| add_to(&mut sum, k, &q));
    }
    let mut sidecars = Amounts::new();
    for container in items(pod, "/spec/initContainers") {
        let wants = amounts(container, which);
        let sidecar = text(container, "/restartPolicy") == "Always";
        let mut at_once = sidecars.clone();
        for (k, q) in wants {
            add_to(&mut at_once, k.clone(), &q);
            if sidecar {
                add_to(&mut sidecars, k.clone(), &q);
                add_to(&mut sum, k, &q);
            }
        }
        for (k, q) in at_once {
            if largest.get(&k).is_none_or(|l| q > *l) {
                largest.insert(k, q);
            }
        }
    }
    for (k, q) in largest {
        if sum.get(&k).is_none_or(|s| q > *s) {
            sum.insert(k, q);
        }
    }
    for (k, q) in amounts_at(pod, &format!("/spec/resources/{which}")) {
        sum.insert(k, q);
    }
    for (k, q) in amounts_at(pod, "/spec/overhead") {
        if sum.contains_key(&k) || which == "requests" {
            add_to(&mut sum, k, &q);
        }
    }
    sum
}

fn one() -> Quantity {
    Quantity::new(1, Format::DecimalSI)
}

fn number(n: usize) -> Quantity {
    Quantity::new(n as i64, Format::DecimalSI)
}

/// Kinds that are also counted under their plain name.
const BY_NAME: [&str; 4] = ["configmaps", "replicationcontrollers", "resourcequotas", "secrets"];
const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
/// The group of device claims.
const CLAIMS: &str = "resource.k8s.io";
const DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
/// Most devices that one claim can have, which is what a request for all of them is counted as.
const MOST_DEVICES: i64 = 32;

/// The name under which all objects of a resource are counted: `count/jobs.batch`.
pub fn count_name(group: &str, plural: &str) -> String {
    if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }
}

/// What one object uses, by quota name. `now` is in seconds since 1970: a pod that should be gone
/// by now uses nothing but its place.
pub fn usage(group: &str, plural: &str, object: &Value, now: i64) -> Usage {
    let mut usage = Usage::from([(count_name(group, plural), one())]);
    match (group, plural) {
        ("", "pods") => {
            if is_running(object, now) {
                pod_usage(object, &mut usage);
            }
        }
        ("", "services") => {
            usage.insert("services".into(), one());
            let all = items(object, "/spec/ports").count();
            let allocated = || items(object, "/spec/ports").filter(|p| p.get("nodePort").is_some_and(|n| n.as_i64() != Some(0))).count();
            let (balancers, ports) = match text(object, "/spec/type") {
                "NodePort" => (0, all),
                "LoadBalancer" if object.pointer("/spec/allocateLoadBalancerNodePorts") == Some(&Value::Bool(false)) => (1, allocated()),
                "LoadBalancer" => (1, all),
                _ => (0, 0),
            };
            usage.insert("services.loadbalancers".into(), number(balancers));
            usage.insert("services.nodeports".into(), number(ports));
        }
        ("", "persistentvolumeclaims") => {
            usage.insert("persistentvolumeclaims".into(), one());
            let class = storage_class(object);
            let of = |pointer| object.pointer(pointer).and_then(|q| Quantity::from_value(q).ok());
            let storage = of("/spec/resources/requests/storage").map(|wanted| match of("/status/allocatedResources/storage") {
                Some(allocated) if allocated > wanted => allocated,
                _ => wanted,
            });
            if !class.is_empty() {
                usage.insert(format!("{class}{STORAGE_CLASS}persistentvolumeclaims"), one());
            }
            if let Some(storage) = storage {
                if !class.is_empty() {
                    usage.insert(format!("{class}{STORAGE_CLASS}requests.storage"), storage.clone());
                }
                usage.insert("requests.storage".into(), storage);
            }
        }
        ("", plural) if BY_NAME.contains(&plural) => {
            usage.insert(plural.to_owned(), one());
        }
        (CLAIMS, "resourceclaims") => device_usage(object, &mut usage),
        _ => {}
    }
    usage
}

/// Devices by class; of alternatives, the most that may be taken of each class.
fn device_usage(claim: &Value, usage: &mut Usage) {
    let wanted = |request: &Value| {
        let devices = match text(request, "/allocationMode") {
            "ExactCount" => request.get("count").and_then(Value::as_i64).unwrap_or(0),
            "All" => MOST_DEVICES,
            _ => 0,
        };
        (format!("{}{DEVICE_CLASS}", text(request, "/deviceClassName")), devices)
    };
    for request in items(claim, "/spec/devices/requests") {
        let mut most: BTreeMap<String, i64> = BTreeMap::new();
        for (name, devices) in items(request, "/firstAvailable").chain(request.get("exactly")).map(wanted) {
            let most = most.entry(name).or_default();
            *most = devices.max(*most);
        }
        most.into_iter().for_each(|(name, devices)| add_to(usage, name, &Quantity::new(devices, Format::DecimalSI)));
    }
}

fn storage_class(claim: &Value) -> &str {
    const OLD: &str = "/metadata/annotations/volume.beta.kubernetes.io~1storage-class";
    match text(claim, OLD) {
        "" => text(claim, "/spec/storageClassName"),
        class => class,
    }
}

/// Whether a pod uses more than its place: it has not ended and is not overdue to go.
pub fn is_running(pod: &Value, now: i64) -> bool {
    let due = gotime::parse(text(pod, "/metadata/deletionTimestamp")).map(|(at, _)| at);
    let grace = pod.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    let overdue = due.zip(grace).is_some_and(|(at, grace)| now > at + grace);
    !overdue && !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

fn is_standard(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage")
}

fn pod_usage(pod: &Value, usage: &mut Usage) {
    usage.insert("pods".into(), one());
    for (name, amount) in pod_total(pod, "requests") {
        let huge = name.starts_with("hugepages-");
        if is_standard(&name) || huge {
            usage.insert(name.clone(), amount.clone());
        }
        if is_standard(&name) || huge || is_extended_resource(&name) {
            usage.insert(format!("requests.{name}"), amount);
        }
    }
    for (name, amount) in pod_total(pod, "limits") {
        if is_standard(&name) {
            usage.insert(format!("limits.{name}"), amount);
        }
    }
}

/// Whether objects of the resource can use what a quota limits under this name.
pub fn concerns(group: &str, plural: &str, name: &str) -> bool {
    if name == count_name(group, plural) {
        return true;
    }
    match (group, plural) {
        ("", "pods") => {
            let (which, resource) = match name.split_once('.') {
                Some((which @ ("requests" | "limits"), resource)) => (which, resource),
                _ => ("", name),
            };
            match which {
                "limits" => is_standard(resource),
                "requests" => is_standard(resource) || resource.starts_with("hugepages-") || is_extended_resource(resource),
                _ => name == "pods" || is_standard(name) || name.starts_with("hugepages-"),
            }
        }
        ("", "services") => matches!(name, "services" | "services.nodeports" | "services.loadbalancers"),
        ("", "persistentvolumeclaims") => {
            let plain = |n: &str| matches!(n, "persistentvolumeclaims" | "requests.storage");
            plain(name) || name.split_once(STORAGE_CLASS).is_some_and(|(_, n)| plain(n))
        }
        ("", plural) => BY_NAME.contains(&plural) && name == plural,
        (CLAIMS, "resourceclaims") => name.ends_with(DEVICE_CLASS),
        _ => false,
    }
}

/// The resources (group and plural) that have to be counted for these names.
pub fn resources<'a>(names: impl IntoIterator<Item = &'a String>) -> BTreeSet<(String, String)> {
    let mut all = BTreeSet::new();
    for name in names {
        if let Some(counted) = name.strip_prefix("count/") {
            let (plural, group) = counted.split_once('.').unwrap_or((counted, ""));
            all.insert((group.to_owned(), plural.to_owned()));
        }
        for plural in ["pods", "services", "persistentvolumeclaims"].iter().chain(&BY_NAME) {
            if concerns("", plural, name) {
                all.insert((String::new(), (*plural).to_owned()));
            }
        }
        if concerns(CLAIMS, "resourceclaims", name) {
            all.insert((CLAIMS.to_owned(), "resourceclaims".to_owned()));
        }
    }
    all
}

/// Whether the quota's scopes take an object of the resource in.
pub fn in_scope(quota: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let scopes = items(quota, "/spec/scopes").filter_map(Value::as_str).map(|s| (s, "Exists", Vec::new()));
    let selected = items(quota, "/spec/scopeSelector/matchExpressions").map(|e| {
        let values: Vec<&str> = items(e, "/values").filter_map(Value::as_str).collect();
        (text(e, "/scopeName"), text(e, "/operator"), values)
    });
    scopes.chain(selected).all(|(scope, operator, values)| match (group, plural) {
        ("", "pods") => pod_in_scope(object, scope, operator, &values),
        ("", "persistentvolumeclaims") if scope == "VolumeAttributesClass" => {
            let pointers = ["/spec/volumeAttributesClassName", "/status/currentVolumeAttributesClassName",
                "/status/modifyVolumeStatus/targetVolumeAttributesClassName"];
            let mut classes: Vec<&str> = pointers.iter().map(|p| text(object, p)).filter(|c| !c.is_empty()).collect();
            if classes.is_empty() {
                classes.push("");
            }
            classes.into_iter().any(|class| selected_by(class, operator, &values))
        }
        _ => false,
    })
}

fn selected_by(name: &str, operator: &str, values: &[&str]) -> bool {
    match operator {
        "In" => !name.is_empty() && values.contains(&name),
        "NotIn" => name.is_empty() || !values.contains(&name),
        "Exists" => !name.is_empty(),
        "DoesNotExist" => name.is_empty(),
        _ => false,
    }
}

fn pod_in_scope(pod: &Value, scope: &str, operator: &str, values: &[&str]) -> bool {
    let terminating = || pod.pointer("/spec/activeDeadlineSeconds").and_then(Value::as_i64).is_some_and(|s| s >= 0);
    match scope {
        "Terminating" => terminating(),
        "NotTerminating" => !terminating(),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => selected_by(text(pod, "/spec/priorityClassName"), operator, values),
        "CrossNamespacePodAffinity" => reaches_other_namespaces(pod),
        _ => false,
    }
}

/// Whether no container of the pod names an amount of CPU or memory.
fn is_best_effort(pod: &Value) -> bool {
    let named = |amounts: Amounts| amounts.iter().any(|(k, q)| matches!(k.as_str(), "cpu" | "memory") && q.sign() > 0);
    let mut containers = items(pod, "/spec/containers").chain(items(pod, "/spec/initContainers"));
    !containers.any(|c| named(amounts(c, "requests")) || named(amounts(c, "limits")))
        && !named(amounts_at(pod, "/spec/resources/requests"))
        && !named(amounts_at(pod, "/spec/resources/limits"))
}

fn reaches_other_namespaces(pod: &Value) -> bool {
    let reaches = |term: &Value| items(term, "/namespaces").next().is_some() || term.get("namespaceSelector").is_some_and(|s| !s.is_null());
    ["podAffinity", "podAntiAffinity"].iter().any(|which| {
        let base = format!("/spec/affinity/{which}");
        let required = items(pod, &format!("{base}/requiredDuringSchedulingIgnoredDuringExecution")).any(reaches);
        required || items(pod, &format!("{base}/preferredDuringSchedulingIgnoredDuringExecution")).any(|w| reaches(&w["podAffinityTerm"]))
    })
}

/// What a quota's limits oblige each container of a pod to name, and which does not:
/// `limits.cpu for: a,b; requests.cpu for: a`.
pub fn unspecified<'a>(pod: &Value, hard: impl IntoIterator<Item = &'a String>) -> String {
    if pod.pointer("/spec/resources").and_then(Value::as_object).is_some_and(|r| !r.is_empty()) {
        return String::new();
    }
    let mut parts = Vec::new();
    for name in hard {
        let (which, resource) = match name.split_once('.') {
            Some((which @ ("requests" | "limits"), resource)) => (which, resource),
            _ => ("requests", name.as_str()),
        };
        if !matches!(resource, "cpu" | "memory") {
            continue;
        }
        let lacking: BTreeSet<&str> = items(pod, "/spec/containers")
            .chain(items(pod, "/spec/initContainers"))
            .filter(|c| c.pointer(&format!("/resources/{which}/{resource}")).is_none())
            .map(|c| text(c, "/name"))
            .collect();
        if !lacking.is_empty() {
            parts.push(format!("{name} for: {}", lacking.into_iter().collect::<Vec<_>>().join(",")));
        }
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(usage: &Usage) -> BTreeMap<&str, String> {
        usage.iter().map(|(k, v)| (k.as_str(), v.canonical())).collect()
    }

    #[test]
    fn pods_use_what_they_ask_for_until_they_end() {
        let mut pod = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m", "example.com/gpu": "2"},
            "limits": {"memory": "1Gi"}}}], "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1"}}}]}});
        let used = usage("", "pods", &pod, 0);
        let expected = [("count/pods", "1"), ("cpu", "1"), ("limits.memory", "1Gi"), ("pods", "1"), ("requests.cpu", "1"), ("requests.example.com/gpu", "2")];
        assert_eq!(shown(&used), expected.map(|(k, v)| (k, v.to_string())).into());
        assert!(used.keys().all(|name| concerns("", "pods", name)));
        pod["metadata"] = json!({"deletionTimestamp": "1970-01-01T00:01:00Z", "deletionGracePeriodSeconds": 30});
        assert_eq!([usage("", "pods", &pod, 90).len(), usage("", "pods", &pod, 91).len()], [6, 1]);
        pod["metadata"] = json!({});
        pod["status"] = json!({"phase": "Failed"});
        assert_eq!(shown(&usage("", "pods", &pod, 0)), [("count/pods", "1".to_string())].into());
    }

    #[test]
    fn services_claims_and_others() {
        let service = |spec: Value| usage("", "services", &json!({"spec": spec}), 0);
        let ports = json!([{"port": 1}, {"port": 2, "nodePort": 30000}]);
        let counts = |u: &Usage| ["services", "services.loadbalancers", "services.nodeports"].map(|k| u[k].value());
        assert_eq!(counts(&service(json!({"type": "ClusterIP", "ports": ports}))), [1, 0, 0]);
        assert_eq!(counts(&service(json!({"type": "NodePort", "ports": ports}))), [1, 0, 2]);
        assert_eq!(counts(&service(json!({"type": "LoadBalancer", "ports": ports}))), [1, 1, 2]);
        assert_eq!(counts(&service(json!({"type": "LoadBalancer", "ports": ports, "allocateLoadBalancerNodePorts": false}))), [1, 1, 1]);
        let claim = json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}});
        let used = usage("", "persistentvolumeclaims", &claim, 0);
        assert_eq!(used["gold.storageclass.storage.k8s.io/requests.storage"].canonical(), "1Gi");
        assert_eq!(used["gold.storageclass.storage.k8s.io/persistentvolumeclaims"].canonical(), "1");
        assert!(used.keys().all(|name| concerns("", "persistentvolumeclaims", name)));
        assert_eq!(shown(&usage("", "secrets", &json!({}), 0)).len(), 2);
        assert_eq!(shown(&usage("batch", "jobs", &json!({}), 0)), [("count/jobs.batch", "1".to_string())].into());
    }

    #[test]
    fn names_and_the_resources_they_need() {
        assert!(concerns("", "pods", "requests.hugepages-2Mi") && concerns("", "pods", "requests.example.com/gpu"));
        assert!(!concerns("", "pods", "requests.storage") && !concerns("", "pods", "services") && !concerns("", "pods", "count/secrets"));
        let names = ["cpu", "count/jobs.batch", "services.nodeports", "gold.storageclass.storage.k8s.io/requests.storage", "secrets"];
        let found = resources(&names.map(String::from));
        let plurals: Vec<_> = found.iter().map(|(g, p)| format!("{p}.{g}")).collect();
        assert_eq!(plurals, ["persistentvolumeclaims.", "pods.", "secrets.", "services.", "jobs.batch"]);
    }

    #[test]
    fn scopes() {
        let bare = json!({"spec": {"containers": [{"name": "c"}]}});
        let limited = json!({"spec": {"activeDeadlineSeconds": 5, "priorityClassName": "high", "containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}}],
            "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"namespaces": ["x"]}]}}}});
        for (scope, on_bare) in
            [("Terminating", false), ("NotTerminating", true), ("BestEffort", true), ("NotBestEffort", false), ("PriorityClass", false), ("CrossNamespacePodAffinity", false)]
        {
            let quota = json!({"spec": {"scopes": [scope]}});
            assert_eq!(in_scope(&quota, "", "pods", &bare), on_bare, "{scope}");
            assert_eq!(in_scope(&quota, "", "pods", &limited), !on_bare, "{scope}");
            assert!(!in_scope(&quota, "", "services", &json!({})));
        }
        let selector = |operator: &str, values: Value| {
            json!({"spec": {"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": operator, "values": values}]}}})
        };
        for (operator, values, on_bare, on_limited) in
            [("In", json!(["high"]), false, true), ("In", json!(["low"]), false, false), ("NotIn", json!(["high"]), true, false), ("DoesNotExist", json!([]), true, false)]
        {
            let quota = selector(operator, values);
            assert_eq!([in_scope(&quota, "", "pods", &bare), in_scope(&quota, "", "pods", &limited)], [on_bare, on_limited], "{operator}");
        }
        assert!(in_scope(&json!({"spec": {}}), "", "services", &json!({})));
    }

    #[test]
    fn containers_must_name_what_is_limited() {
        let pod = json!({"spec": {"containers": [{"name": "b"}, {"name": "a"}, {"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
        let hard = ["limits.memory", "pods", "requests.cpu", "requests.storage"].map(String::from);
        assert_eq!(unspecified(&pod, &hard), "limits.memory for: a,b,c; requests.cpu for: a,b");
        assert_eq!(unspecified(&pod, &["pods".to_string()]), "");
    }

    #[test]
    fn devices_count_by_class() {
        let claim = json!({"spec": {"devices": {"requests": [
            {"exactly": {"deviceClassName": "gold", "allocationMode": "ExactCount", "count": 2}},
            {"exactly": {"deviceClassName": "tin", "allocationMode": "All"}},
            {"firstAvailable": [
                {"deviceClassName": "gold", "allocationMode": "ExactCount", "count": 1},
                {"deviceClassName": "gold", "allocationMode": "ExactCount", "count": 3},
                {"deviceClassName": "silver", "allocationMode": "ExactCount", "count": 1},
            ]},
        ]}}});
        let used: Vec<(String, String)> = usage(CLAIMS, "resourceclaims", &claim, 0).into_iter().map(|(k, q)| (k, q.to_string())).collect();
        let expected = [("count/resourceclaims.resource.k8s.io", "1"), ("gold.deviceclass.resource.k8s.io/devices", "5"), ("silver.deviceclass.resource.k8s.io/devices", "1"), ("tin.deviceclass.resource.k8s.io/devices", "32")];
        assert_eq!(used, expected.map(|(k, q)| (k.to_string(), q.to_string())));
        let names = ["gold.deviceclass.resource.k8s.io/devices".to_string()];
        assert_eq!(resources(&names), BTreeSet::from([(CLAIMS.to_string(), "resourceclaims".to_string())]));
        assert!(concerns(CLAIMS, "resourceclaims", &names[0]) && !concerns("", "pods", &names[0]));
    }
}
