//! Default values: what a stored object has in fields that its author left out. One function a kind,
//! on trees; rules are those of upstream's `SetDefaults_*` functions and `+default` markers.

mod pod;
mod pod_level;
mod workloads;

use serde_json::{Map, Value, json};

pub use pod::spec as pod_spec;

/// Fills in the defaults of an object of a built-in kind. Kinds without defaults are left alone.
pub fn apply(group: &str, version: &str, kind: &str, object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    match (group, kind) {
        ("", "Pod") => pod::pod(object),
        ("", "PodTemplate") => pod::template(child(object, "template")),
        ("", "ReplicationController") => workloads::replication_controller(object),
        ("", "Service") => service(object),
        ("", "Endpoints") => endpoints(object),
        ("", "Namespace") => namespace(object),
        ("", "Node") => node(object),
        ("", "Secret") => text(object, "type", "Opaque"),
        ("", "PersistentVolume") => persistent_volume(object),
        ("", "PersistentVolumeClaim") => {
            put(child(object, "spec"), "volumeMode", || json!("Filesystem"));
            text(child(object, "status"), "phase", "Pending");
        }
        ("", "LimitRange") => list(existing(object, "spec"), "limits", limit_range_item),
        ("apps", "Deployment") => workloads::deployment(object),
        ("apps", "ReplicaSet") => workloads::replica_set(object),
        ("apps", "StatefulSet") => workloads::stateful_set(object),
        ("apps", "DaemonSet") => workloads::daemon_set(object),
        ("batch", "Job") => workloads::job(object),
        ("batch", "CronJob") => workloads::cron_job(object),
        ("autoscaling", "HorizontalPodAutoscaler") => workloads::autoscaler(version, object),
        ("networking.k8s.io", "NetworkPolicy") => network_policy(object),
        ("networking.k8s.io", "IngressClass") => {
            if let Some(parameters) = existing(object, "spec").and_then(|s| existing(s, "parameters")) {
                put(parameters, "scope", || json!("Cluster"));
            }
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            text(child(object, "roleRef"), "apiGroup", "rbac.authorization.k8s.io");
            list(Some(object), "subjects", |subject| {
                if matches!(str_of(subject, "kind"), "User" | "Group") {
                    text(subject, "apiGroup", "rbac.authorization.k8s.io");
                }
            });
        }
        ("storage.k8s.io", "StorageClass") => {
            put(object, "reclaimPolicy", || json!("Delete"));
            put(object, "volumeBindingMode", || json!("Immediate"));
        }
        ("storage.k8s.io", "CSIDriver") => csi_driver(child(object, "spec")),
        ("discovery.k8s.io", "EndpointSlice") => list(Some(object), "ports", |port| {
            put(port, "name", || json!(""));
            put(port, "protocol", || json!("TCP"));
        }),
        ("scheduling.k8s.io", "PriorityClass") => put(object, "preemptionPolicy", || json!("PreemptLowerPriority")),
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration") => list(Some(object), "webhooks", webhook),
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration") => list(Some(object), "webhooks", |hook| {
            webhook(hook);
            put(hook, "reinvocationPolicy", || json!("Never"));
        }),
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy") => {
            let spec = child(object, "spec");
            put(spec, "failurePolicy", || json!("Fail"));
            if let Some(constraints) = existing(spec, "matchConstraints") {
                match_resources(constraints);
            }
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding") => {
            if let Some(resources) = existing(object, "spec").and_then(|s| existing(s, "matchResources")) {
                match_resources(resources);
            }
        }
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => number(child(object, "spec"), "matchingPrecedence", 1000),
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => priority_level(child(object, "spec")),
        ("authentication.k8s.io", "TokenRequest") => put(child(object, "spec"), "expirationSeconds", || json!(3600)),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => custom_resource_definition(object),
        ("apiregistration.k8s.io", "APIService") => {
            if let Some(service) = existing(object, "spec").and_then(|s| existing(s, "service")) {
                put(service, "port", || json!(443));
            }
        }
        ("resource.k8s.io", "ResourceClaim") => workloads::device_claim(existing(object, "spec")),
        ("resource.k8s.io", "ResourceClaimTemplate") => {
            workloads::device_claim(existing(object, "spec").and_then(|s| existing(s, "spec")));
        }
        _ => {}
    }
}

type Object = Map<String, Value>;

/// The object in a field, made when it is missing.
fn child<'a>(object: &'a mut Object, key: &str) -> &'a mut Object {
    let value = object.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it has just been made one")
}

/// The object in a field, when there is one.
fn existing<'a>(object: &'a mut Object, key: &str) -> Option<&'a mut Object> {
    object.get_mut(key)?.as_object_mut()
}

/// Sets a field that is missing.
fn put(object: &mut Object, key: &str, value: impl FnOnce() -> Value) {
    if object.get(key).is_none_or(Value::is_null) {
        object.insert(key.into(), value());
    }
}

/// Sets a text that is missing or empty.
fn text(object: &mut Object, key: &str, value: &str) {
    if str_of(object, key).is_empty() {
        object.insert(key.into(), json!(value));
    }
}

/// Sets a number that is missing or zero.
fn number(object: &mut Object, key: &str, value: i64) {
    if object.get(key).and_then(Value::as_i64).unwrap_or(0) == 0 {
        object.insert(key.into(), json!(value));
    }
}

fn str_of<'a>(object: &'a Object, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or("")
}

/// Calls `each` with every object of a list.
fn list(object: Option<&mut Object>, key: &str, mut each: impl FnMut(&mut Object)) {
    let items = object.and_then(|o| o.get_mut(key)).and_then(Value::as_array_mut);
    items.into_iter().flatten().filter_map(Value::as_object_mut).for_each(&mut each);
}

/// Copies the entries of a map that another one lacks.
fn fill(object: &mut Object, from: &str, to: &str) {
    let Some(source) = object.get(from).and_then(Value::as_object).cloned() else { return };
    let target = child(object, to);
    for (key, value) in source {
        target.entry(key).or_insert(value);
    }
}

fn service(object: &mut Object) {
    let spec = child(object, "spec");
    text(spec, "sessionAffinity", "None");
    if str_of(spec, "sessionAffinity") == "ClientIP" {
        put(child(child(spec, "sessionAffinityConfig"), "clientIP"), "timeoutSeconds", || json!(10800));
    } else {
        spec.remove("sessionAffinityConfig");
    }
    text(spec, "type", "ClusterIP");
    list(Some(spec), "ports", |port| {
        text(port, "protocol", "TCP");
        let unset = matches!(port.get("targetPort"), None | Some(Value::Null)) || port["targetPort"] == json!(0) || port["targetPort"] == json!("");
        if unset && let Some(number) = port.get("port").cloned() {
            port.insert("targetPort".into(), number);
        }
    });
    let kind = str_of(spec, "type").to_string();
    let external = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|a| !a.is_empty());
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && external) {
        text(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        put(spec, "internalTrafficPolicy", || json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        put(spec, "allocateLoadBalancerNodePorts", || json!(true));
        if let Some(balancer) = existing(object, "status").and_then(|s| existing(s, "loadBalancer")) {
            list(Some(balancer), "ingress", |ingress| {
                if !str_of(ingress, "ip").is_empty() {
                    put(ingress, "ipMode", || json!("VIP"));
                }
            });
        }
    }
}

fn endpoints(object: &mut Object) {
    list(Some(object), "subsets", |subset| list(Some(subset), "ports", |port| text(port, "protocol", "TCP")));
}

fn namespace(object: &mut Object) {
    let metadata = child(object, "metadata");
    let name = str_of(metadata, "name").to_string();
    if !name.is_empty() {
        child(metadata, "labels").insert("kubernetes.io/metadata.name".into(), json!(name));
    }
    text(child(object, "status"), "phase", "Active");
}

/// A text and a list of texts that begins with it: the text counts where they differ. `item` makes an item of it.
fn first_of(object: &mut Object, one: &str, all: &str, item: fn(&str) -> Value) {
    let text = str_of(object, one).to_owned();
    let first = object.get(all).and_then(|l| l.get(0)).cloned();
    match first {
        _ if !text.is_empty() && first != Some(item(&text)) => drop(object.insert(all.into(), json!([item(&text)]))),
        Some(first) if text.is_empty() => drop(object.insert(one.into(), first.get("ip").cloned().unwrap_or(first))),
        _ => {}
    }
}

fn node(object: &mut Object) {
    if let Some(spec) = existing(object, "spec") {
        first_of(spec, "podCIDR", "podCIDRs", |range| json!(range));
    }
    if let Some(status) = existing(object, "status")
        && let Some(capacity) = status.get("capacity").cloned()
    {
        put(status, "allocatable", || capacity);
    }
}

fn persistent_volume(object: &mut Object) {
    text(child(object, "status"), "phase", "Pending");
    let spec = child(object, "spec");
    text(spec, "persistentVolumeReclaimPolicy", "Retain");
    put(spec, "volumeMode", || json!("Filesystem"));
    pod::volume_source(spec);
    if let Some(io) = existing(spec, "scaleIO") {
        text(io, "storageMode", "ThinProvisioned");
        text(io, "fsType", "xfs");
    }
}

fn custom_resource_definition(object: &mut Object) {
    let spec = child(object, "spec");
    let kind = spec.get("names").and_then(|n| n.get("kind")).and_then(Value::as_str).unwrap_or("").to_owned();
    if !kind.is_empty() {
        let names = child(spec, "names");
        text(names, "singular", &kind.to_lowercase());
        text(names, "listKind", &format!("{kind}List"));
    }
    put(spec, "conversion", || json!({"strategy": "None"}));
    let conversion = child(spec, "conversion");
    if let Some(service) = existing(conversion, "webhook").and_then(|w| existing(w, "clientConfig")).and_then(|c| existing(c, "service")) {
        put(service, "port", || json!(443));
    }
    let versions = spec.get("versions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let stored = versions.iter().find(|v| v.get("storage") == Some(&Value::Bool(true))).and_then(|v| v.get("name")).cloned();
    let status = child(object, "status");
    if status.get("storedVersions").and_then(Value::as_array).is_none_or(|v| v.is_empty())
        && let Some(stored) = stored
    {
        status.insert("storedVersions".into(), json!([stored]));
    }
}

fn limit_range_item(item: &mut Object) {
    if str_of(item, "type") == "Container" {
        fill(item, "max", "default");
        fill(item, "default", "defaultRequest");
        fill(item, "min", "defaultRequest");
    }
}

fn network_policy(object: &mut Object) {
    let spec = child(object, "spec");
    for rules in ["ingress", "egress"] {
        list(Some(spec), rules, |rule| list(Some(rule), "ports", |port| put(port, "protocol", || json!("TCP"))));
    }
    let empty = |spec: &Object, key: &str| spec.get(key).and_then(Value::as_array).is_none_or(|a| a.is_empty());
    if empty(spec, "policyTypes") {
        let types = if empty(spec, "egress") { json!(["Ingress"]) } else { json!(["Ingress", "Egress"]) };
        spec.insert("policyTypes".into(), types);
    }
}

fn csi_driver(spec: &mut Object) {
    put(spec, "attachRequired", || json!(true));
    for key in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
        put(spec, key, || json!(false));
    }
    put(spec, "fsGroupPolicy", || json!("ReadWriteOnceWithFSType"));
    if spec.get("volumeLifecycleModes").and_then(Value::as_array).is_none_or(|a| a.is_empty()) {
        spec.insert("volumeLifecycleModes".into(), json!(["Persistent"]));
    }
}

fn webhook(hook: &mut Object) {
    put(hook, "failurePolicy", || json!("Fail"));
    put(hook, "matchPolicy", || json!("Equivalent"));
    put(hook, "namespaceSelector", || json!({}));
    put(hook, "objectSelector", || json!({}));
    put(hook, "timeoutSeconds", || json!(10));
    list(Some(hook), "rules", |rule| put(rule, "scope", || json!("*")));
    if let Some(service) = existing(child(hook, "clientConfig"), "service") {
        put(service, "port", || json!(443));
    }
}

fn match_resources(resources: &mut Object) {
    put(resources, "matchPolicy", || json!("Equivalent"));
    put(resources, "namespaceSelector", || json!({}));
    put(resources, "objectSelector", || json!({}));
    for rules in ["resourceRules", "excludeResourceRules"] {
        list(Some(resources), rules, |rule| put(rule, "scope", || json!("*")));
    }
}

fn priority_level(spec: &mut Object) {
    if let Some(exempt) = existing(spec, "exempt") {
        put(exempt, "nominalConcurrencyShares", || json!(0));
        put(exempt, "lendablePercent", || json!(0));
    }
    if let Some(limited) = existing(spec, "limited") {
        put(limited, "nominalConcurrencyShares", || json!(30));
        put(limited, "lendablePercent", || json!(0));
        if let Some(queuing) = existing(limited, "limitResponse").and_then(|r| existing(r, "queuing")) {
            number(queuing, "handSize", 8);
            number(queuing, "queues", 64);
            number(queuing, "queueLengthLimit", 50);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(group: &str, kind: &str, mut object: Value, path: &str, expected: Value) {
        apply(group, "v1", kind, &mut object);
        assert_eq!(object.pointer(path), Some(&expected), "{kind} {path} in {object}");
        let once = object.clone();
        apply(group, "v1", kind, &mut object);
        assert_eq!(object, once, "defaults are the same the second time");
    }

    #[test]
    fn services() {
        let service = json!({"spec": {"ports": [{"port": 80}, {"port": 81, "targetPort": "web"}]}});
        check("", "Service", service.clone(), "/spec/ports/0/targetPort", json!(80));
        check("", "Service", service.clone(), "/spec/ports/1/targetPort", json!("web"));
        check("", "Service", service.clone(), "/spec/type", json!("ClusterIP"));
        check("", "Service", service, "/spec/internalTrafficPolicy", json!("Cluster"));
        check("", "Service", json!({"spec": {"type": "NodePort"}}), "/spec/externalTrafficPolicy", json!("Cluster"));
        check("", "Service", json!({"spec": {"sessionAffinity": "ClientIP"}}), "/spec/sessionAffinityConfig/clientIP/timeoutSeconds", json!(10800));
    }

    #[test]
    fn definitions_name_themselves() {
        let crd = json!({"spec": {"names": {"kind": "Foo", "plural": "foos"}, "versions": [{"name": "v1", "storage": false}, {"name": "v2", "storage": true}]}});
        check("apiextensions.k8s.io", "CustomResourceDefinition", crd.clone(), "/spec/names/listKind", json!("FooList"));
        check("apiextensions.k8s.io", "CustomResourceDefinition", crd.clone(), "/spec/conversion/strategy", json!("None"));
        check("apiextensions.k8s.io", "CustomResourceDefinition", crd, "/status/storedVersions", json!(["v2"]));
    }

    #[test]
    fn pod_level_requests_come_from_the_containers() {
        let pod = json!({"spec": {"resources": {"limits": {"cpu": "2", "memory": "1Gi"}}, "containers": [
            {"name": "a", "image": "x:1", "resources": {"requests": {"cpu": "100m"}}}, {"name": "b", "image": "x:1", "resources": {"requests": {"cpu": "1"}}}]}});
        check("", "Pod", pod.clone(), "/spec/resources/requests", json!({"cpu": "1100m", "memory": "1Gi"}));
        let host = json!({"hostNetwork": true, "containers": [{"name": "a", "image": "x:latest@sha256:00", "ports": [{"containerPort": 80}]}]});
        check("", "Pod", json!({"spec": host}), "/spec/containers/0/ports/0/hostPort", json!(80));
        check("", "Pod", json!({"spec": host}), "/spec/containers/0/imagePullPolicy", json!("Always"));
        let mut set = json!({"spec": {"template": {"spec": host}}});
        apply("apps", "v1", "ReplicaSet", &mut set);
        assert_eq!(set.pointer("/spec/template/spec/containers/0/ports/0/hostPort"), None);
    }

    #[test]
    fn pods_and_what_makes_them() {
        let spec = json!({"containers": [{"name": "a", "image": "nginx", "ports": [{"containerPort": 80}],
            "livenessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": "1"}},
            "env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]},
            {"name": "b", "image": "host:5000/nginx:1.2"}],
            "volumes": [{"name": "v"}, {"name": "c", "configMap": {"name": "m"}}]});
        let pod = json!({"spec": spec});
        check("", "Pod", pod.clone(), "/spec/containers/0/imagePullPolicy", json!("Always"));
        check("", "Pod", pod.clone(), "/spec/containers/1/imagePullPolicy", json!("IfNotPresent"));
        check("", "Pod", pod.clone(), "/spec/containers/0/ports/0/protocol", json!("TCP"));
        check("", "Pod", pod.clone(), "/spec/containers/0/livenessProbe/httpGet/scheme", json!("HTTP"));
        check("", "Pod", pod.clone(), "/spec/containers/0/resources/requests/cpu", json!("1"));
        check("", "Pod", pod.clone(), "/spec/containers/0/env/0/valueFrom/fieldRef/apiVersion", json!("v1"));
        check("", "Pod", pod.clone(), "/spec/volumes/0/emptyDir", json!({}));
        check("", "Pod", pod.clone(), "/spec/volumes/1/configMap/defaultMode", json!(420));
        check("", "Pod", pod, "/spec/enableServiceLinks", json!(true));
        let deployment = json!({"spec": {"template": {"spec": spec}}});
        check("apps", "Deployment", deployment.clone(), "/spec/template/spec/restartPolicy", json!("Always"));
        check("apps", "Deployment", deployment.clone(), "/spec/strategy/rollingUpdate/maxSurge", json!("25%"));
        let mut with = deployment;
        apply("apps", "v1", "Deployment", &mut with);
        assert_eq!(with.pointer("/spec/template/spec/enableServiceLinks"), None, "only pods get that");
        check("batch", "Job", json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}), "/metadata/labels/a", json!("b"));
        let set = json!({"spec": {"volumeClaimTemplates": [{"metadata": {"name": "v"}}]}});
        check("apps", "StatefulSet", set, "/spec/volumeClaimTemplates/0/kind", json!("PersistentVolumeClaim"));
    }
}
