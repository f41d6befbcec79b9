//! What the server says about kinds of drivers, addresses, events and services of the API.

use super::*;
use serde_json::json;

const STORAGE: &str = "storage.k8s.io";
const NETWORKING: &str = "networking.k8s.io";

fn resource(group: &str, kind: &str) -> &'static Resource {
    crate::resources::all().iter().find(|r| r.group == group && r.kind == kind).unwrap()
}

fn says(errs: Vec<FieldError>) -> Vec<String> {
    errs.iter().map(ToString::to_string).collect()
}

fn new(group: &str, kind: &str, object: Value) -> Vec<String> {
    says(create(resource(group, kind), &object))
}

fn changed(group: &str, kind: &str, old: &Value, new: &Value) -> Vec<String> {
    says(update(resource(group, kind), new, old))
}

/// Checks that the object is fine, and what is said of each change of it.
fn each(group: &str, kind: &str, good: &Value, changes: &[(&str, Value, &[&str])]) {
    assert_eq!(new(group, kind, good.clone()), [""; 0], "{kind}");
    assert_eq!(changed(group, kind, good, good), [""; 0], "{kind}");
    for (pointer, value, expected) in changes {
        let mut bad = good.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = bad.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}"));
        match parent {
            Value::Array(list) => list[key.parse::<usize>().unwrap()] = value.clone(),
            _ if value.is_null() => drop(parent.as_object_mut().unwrap().remove(key)),
            _ => parent[key] = value.clone(),
        }
        assert_eq!(&new(group, kind, bad), expected, "{kind} with {pointer} = {value}");
    }
}

#[test]
fn drivers() {
    let spec = json!({"attachRequired": true, "podInfoOnMount": false, "storageCapacity": false, "seLinuxMount": false, "fsGroupPolicy": "File",
        "volumeLifecycleModes": ["Persistent"], "tokenRequests": [{"audience": "a", "expirationSeconds": 3600}]});
    let good = json!({"metadata": {"name": "csi.example.com"}, "spec": spec});
    each(
        STORAGE,
        "CSIDriver",
        &good,
        &[
            ("/spec/attachRequired", Value::Null, &["spec.attachedRequired: Required value"]),
            ("/spec/podInfoOnMount", Value::Null, &["spec.podInfoOnMount: Required value"]),
            ("/spec/seLinuxMount", Value::Null, &["spec.seLinuxMount: Required value"]),
            ("/spec/fsGroupPolicy", json!("All"), &["spec.fsGroupPolicy: Unsupported value: \"All\": supported values: \"File\", \"None\", \"ReadWriteOnceWithFSType\""]),
            ("/spec/volumeLifecycleModes", json!(["Brief"]), &["spec.volumeLifecycleModes: Unsupported value: \"Brief\": supported values: \"Persistent\", \"Ephemeral\""]),
            ("/spec/tokenRequests", json!([{"audience": "a"}, {"audience": "a"}]), &["spec.tokenRequests[1].audience: Duplicate value: \"a\""]),
            ("/spec/tokenRequests", json!([{"audience": "a", "expirationSeconds": 599}]), &["spec.tokenRequests[0].expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes"]),
            ("/spec/nodeAllocatableUpdatePeriodSeconds", json!(9), &["spec.nodeAllocatableUpdatePeriodSeconds: Invalid value: 9: must be greater than or equal to 10 seconds"]),
        ],
    );
    let mut other = good.clone();
    other["spec"]["attachRequired"] = json!(false);
    other["spec"]["podInfoOnMount"] = json!(true);
    other["spec"]["volumeLifecycleModes"] = json!(["Ephemeral"]);
    assert_eq!(
        changed(STORAGE, "CSIDriver", &good, &other),
        ["spec.attachedRequired: Invalid value: false: field is immutable", "spec.volumeLifecycleModes: Invalid value: [\"Ephemeral\"]: field is immutable"]
    );
}

#[test]
fn drivers_of_nodes() {
    let good = json!({"metadata": {"name": "node-1"}, "spec": {"drivers": [{"name": "csi.example.com", "nodeID": "i-1", "topologyKeys": ["example.com/zone"], "allocatable": {"count": 3}}]}});
    let long = "x".repeat(257);
    each(
        STORAGE,
        "CSINode",
        &good,
        &[
            ("/spec/drivers/0/name", json!(""), &["spec.drivers[0].name: Required value"]),
            ("/spec/drivers/0/nodeID", json!(""), &["spec.drivers[0].nodeID: Required value"]),
            ("/spec/drivers/0/nodeID", json!(long), &[&format!("spec.drivers[0].nodeID: Invalid value: \"{long}\": must be 256 characters or less")]),
            ("/spec/drivers/0/allocatable", json!({"count": -1}), &["spec.drivers[0].allocatable.count: Invalid value: -1: must be greater than or equal to 0"]),
            ("/spec/drivers/0/topologyKeys", json!(["a", "a"]), &["spec.drivers[0]: Duplicate value: \"a\""]),
            ("/spec/drivers", json!([{"name": "a", "nodeID": "1"}, {"name": "a", "nodeID": "2"}]), &["spec.drivers[1].name: Duplicate value: \"a\""]),
        ],
    );
    let mut other = good.clone();
    other["spec"]["drivers"][0]["allocatable"]["count"] = json!(4);
    assert_eq!(changed(STORAGE, "CSINode", &good, &other), [""; 0], "how many volumes it takes may change");
    other["spec"]["drivers"][0]["nodeID"] = json!("i-2");
    let said = changed(STORAGE, "CSINode", &good, &other);
    assert!(said.len() == 1 && said[0].starts_with("spec.drivers: Invalid value: ") && said[0].ends_with(": field is immutable"), "{said:?}");
}

#[test]
fn attachments() {
    let good = json!({"metadata": {"name": "a"}, "spec": {"attacher": "csi.example.com", "nodeName": "n", "source": {"persistentVolumeName": "v"}}});
    each(
        STORAGE,
        "VolumeAttachment",
        &good,
        &[
            ("/spec/attacher", json!(""), &["spec.attacher: Required value"]),
            ("/spec/attacher", json!("a".repeat(64)), &["spec.attacher: Too long: may not be more than 63 bytes"]),
            ("/spec/source", json!({}), &["spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName"]),
            ("/spec/source", json!({"persistentVolumeName": "v", "inlineVolumeSpec": {}}), &["spec.source: Forbidden: must specify exactly one of inlineVolumeSpec and persistentVolumeName"]),
            (
                "/spec/source",
                json!({"inlineVolumeSpec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Delete"}}),
                &[
                    "spec.source.inlineVolumeSpec.capacity: Forbidden: may not be specified in the context of inline volumes",
                    "spec.source.inlineVolumeSpec.csi: Required value: has to be specified in the context of inline volumes",
                    "spec.source.inlineVolumeSpec.persistentVolumeReclaimPolicy: Forbidden: may only be Retain in the context of inline volumes",
                ],
            ),
            ("/spec/nodeName", json!("N"), &["spec.nodeName: Invalid value: \"N\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"]),
        ],
    );
    let mut other = good.clone();
    other["spec"]["nodeName"] = json!("m");
    let said = changed(STORAGE, "VolumeAttachment", &good, &other);
    assert!(said.len() == 1 && said[0].starts_with("spec: Invalid value: ") && said[0].ends_with(": field is immutable"), "{said:?}");
    let mut failed = good.clone();
    failed["status"] = json!({"attachError": {"message": "x".repeat(1025), "errorCode": -1}});
    assert_eq!(
        says(update_status(resource(STORAGE, "VolumeAttachment"), &failed, &good)),
        ["status.attachError.message: Too long: may not be more than 262144 bytes", "status.attachError.errorCode: Invalid value: -1: must be between 0 and 2147483647, inclusive"]
    );
}

#[test]
fn capacities_and_classes() {
    let good = json!({"metadata": {"name": "c", "namespace": "n"}, "storageClassName": "fast", "capacity": "1Gi", "nodeTopology": {"matchLabels": {"zone": "a"}}});
    each(STORAGE, "CSIStorageCapacity", &good, &[
        ("/capacity", json!("-1"), &["capacity: Invalid value: \"-1\": must be greater than or equal to 0"]),
        ("/nodeTopology", json!({"matchExpressions": [{"key": "a", "operator": "In"}]}), &["nodeTopology.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"]),
    ]);
    let mut other = good.clone();
    other["storageClassName"] = json!("slow");
    other["capacity"] = json!("2Gi");
    assert_eq!(changed(STORAGE, "CSIStorageCapacity", &good, &other), ["storageClassName: Invalid value: \"slow\": field is immutable"]);
    let class = json!({"metadata": {"name": "c"}, "driverName": "csi.example.com", "parameters": {"iops": "1"}});
    each(STORAGE, "VolumeAttributesClass", &class, &[
        ("/driverName", json!(""), &["driverName: Required value"]),
        ("/parameters", json!({}), &["parameters: Required value: must contain at least one key/value pair"]),
        ("/parameters", json!({"": "x"}), &["parameters: Invalid value: \"\": field can not be empty."]),
        ("/parameters", json!({"a": "x".repeat(256 << 10)}), &["parameters: Too long: may not be more than 262144 bytes"]),
    ]);
    let mut other = class.clone();
    other["parameters"]["iops"] = json!("2");
    other["driverName"] = json!("other.example.com");
    assert_eq!(
        changed(STORAGE, "VolumeAttributesClass", &class, &other),
        ["driverName: Forbidden: updates to driverName are forbidden.", "parameters: Forbidden: updates to parameters are forbidden."]
    );
}

#[test]
fn addresses_and_ranges() {
    let good = json!({"metadata": {"name": "10.0.0.1"}, "spec": {"parentRef": {"resource": "services", "namespace": "n", "name": "s"}}});
    each(NETWORKING, "IPAddress", &good, &[
        ("/metadata/name", json!("ten"), &["metadata.name: Invalid value: \"ten\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"]),
        ("/metadata/name", json!("10.0.0.01"), &["metadata.name: Invalid value: \"10.0.0.01\": must not have leading 0s"]),
        ("/metadata/name", json!("2001:db8:0::1"), &["metadata.name: Invalid value: \"2001:db8:0::1\": must be in canonical form (\"2001:db8::1\")"]),
        ("/spec/parentRef", Value::Null, &["spec.parentRef: Required value"]),
        ("/spec/parentRef", json!({"name": "a/b"}), &["spec.parentRef.resource: Required value", "spec.parentRef.name: Invalid value: \"a/b\": may not contain '/'"]),
    ]);
    let mut other = good.clone();
    other["spec"]["parentRef"]["name"] = json!("t");
    let said = changed(NETWORKING, "IPAddress", &good, &other);
    assert!(said.len() == 1 && said[0].starts_with("spec.parentRef: Invalid value: ") && said[0].ends_with(": field is immutable"), "{said:?}");
    let range = |cidrs: Value| json!({"metadata": {"name": "r"}, "spec": {"cidrs": cidrs}});
    let good = range(json!(["10.0.0.0/24"]));
    each(NETWORKING, "ServiceCIDR", &good, &[
        ("/spec/cidrs", json!([]), &["spec.cidrs: Required value: at least one CIDR required"]),
        ("/spec/cidrs", json!(["10.0.0.1/24"]), &["spec.cidrs[0]: Invalid value: \"10.0.0.1/24\": must not have bits set beyond the prefix length"]),
        ("/spec/cidrs", json!(["2001:db8:0::/64"]), &["spec.cidrs[0]: Invalid value: \"2001:db8:0::/64\": must be in canonical form (\"2001:db8::/64\")"]),
        ("/spec/cidrs", json!(["10.0.0.0/24", "10.1.0.0/24"]), &["spec.cidrs: Invalid value: [\"10.0.0.0/24\",\"10.1.0.0/24\"]: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"]),
        ("/spec/cidrs", json!(["a", "b", "c"]), &["spec.cidrs: Invalid value: {\"cidrs\":[\"a\",\"b\",\"c\"]}: may only hold up to 2 values"]),
    ]);
    assert_eq!(changed(NETWORKING, "ServiceCIDR", &good, &range(json!(["10.0.0.0/24", "fd00::/112"]))), [""; 0], "a second family may come");
    assert_eq!(changed(NETWORKING, "ServiceCIDR", &good, &range(json!(["10.0.0.0/25"]))), ["spec.cidrs[0]: Invalid value: \"10.0.0.0/25\": field is immutable"]);
    assert_eq!(changed(NETWORKING, "ServiceCIDR", &good, &range(json!([]))), ["spec.cidrs: Invalid value: []: field is immutable"]);
    assert_eq!(
        changed(NETWORKING, "ServiceCIDR", &good, &range(json!(["10.0.0.0/24", "nonsense"]))),
        ["spec.cidrs[1]: Invalid value: \"nonsense\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"]
    );
}

#[test]
fn classes_of_ingresses() {
    let good = json!({"metadata": {"name": "c"}, "spec": {"controller": "example.com/ingress", "parameters": {"apiGroup": "example.com", "kind": "Config", "name": "c", "scope": "Cluster"}}});
    each(NETWORKING, "IngressClass", &good, &[
        ("/spec/controller", json!(""), &["spec.controller: Required value"]),
        ("/spec/controller", json!("ingress"), &["spec.controller: Invalid value: \"ingress\": must be a domain-prefixed path (such as \"acme.io/foo\")"]),
        ("/spec/controller", json!("example.com/a b"), &["spec.controller: Invalid value: \"a b\": Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')"]),
        ("/spec/parameters/kind", json!(""), &["spec.parameters.kind: Required value"]),
        ("/spec/parameters/scope", Value::Null, &["spec.parameters.scope: Required value"]),
        ("/spec/parameters/scope", json!("Galaxy"), &["spec.parameters.scope: Unsupported value: \"Galaxy\": supported values: \"Cluster\", \"Namespace\""]),
        ("/spec/parameters/scope", json!("Namespace"), &["spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"]),
        ("/spec/parameters/namespace", json!("n"), &["spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'"]),
    ]);
    let mut other = good.clone();
    other["spec"]["controller"] = json!("example.com/other");
    assert_eq!(changed(NETWORKING, "IngressClass", &good, &other), ["spec.controller: Invalid value: \"example.com/other\": field is immutable"]);
}

#[test]
fn services_of_the_api() {
    let spec = json!({"group": "example.com", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10, "service": {"namespace": "n", "name": "s", "port": 443}});
    let good = json!({"metadata": {"name": "v1.example.com"}, "spec": spec});
    let group = "apiregistration.k8s.io";
    each(group, "APIService", &good, &[
        ("/metadata/name", json!("x"), &["metadata.name: Invalid value: \"x\": must be `spec.version+\".\"+spec.group`: \"v1.example.com\""]),
        ("/spec/groupPriorityMinimum", json!(0), &["spec.groupPriorityMinimum: Invalid value: 0: must be positive and less than 20000"]),
        ("/spec/versionPriority", json!(1001), &["spec.versionPriority: Invalid value: 1001: must be positive and less than 1000"]),
        ("/spec/service/name", json!(""), &["spec.service.name: Required value"]),
        ("/spec/service/port", json!(0), &["spec.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive"]),
    ]);
    let mut insecure = good.clone();
    insecure["spec"]["insecureSkipTLSVerify"] = json!(true);
    insecure["spec"]["caBundle"] = json!("AAEC");
    assert_eq!(new(group, "APIService", insecure.clone()), ["spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is present"]);
    insecure["spec"].as_object_mut().unwrap().remove("service");
    assert_eq!(
        changed(group, "APIService", &good, &insecure),
        ["spec.caBundle: Invalid value: \"3 bytes\": local APIServices may not have a caBundle", "spec.insecureSkipTLSVerify: Invalid value: true: local APIServices may not have insecureSkipTLSVerify"]
    );
    let mut status = good.clone();
    status["status"] = json!({"conditions": [{"type": "Available", "status": "Perhaps"}]});
    assert_eq!(
        says(update_status(resource(group, "APIService"), &status, &good)),
        ["status.conditions[0].status: Unsupported value: \"Perhaps\": supported values: \"True\", \"False\", \"Unknown\""]
    );
    let legacy = json!({"metadata": {"name": "v2."}, "spec": {"version": "v2", "groupPriorityMinimum": 1, "versionPriority": 1}});
    assert_eq!(new(group, "APIService", legacy), ["spec.group: Required value: only v1 may have an empty group and it better be legacy kube"]);
}

#[test]
fn events_of_old_clients() {
    let good = json!({"metadata": {"name": "An.Event", "namespace": "n"}, "involvedObject": {"namespace": "n", "name": "p"}, "reason": "R", "message": "m"});
    each("", "Event", &good, &[
        ("/involvedObject/namespace", json!("m"), &["involvedObject.namespace: Invalid value: \"m\": does not match event.namespace"]),
        ("/involvedObject", json!({"name": "node"}), &["involvedObject.namespace: Invalid value: \"\": does not match event.namespace"]),
        (
            "/eventTime",
            json!("2026-01-01T00:00:00.000000Z"),
            &[
                "reportingComponent: Required value",
                "reportingComponent: Invalid value: \"\": name part must be non-empty",
                "reportingComponent: Invalid value: \"\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
                "reportingInstance: Required value",
                "action: Required value",
            ],
        ),
    ]);
    let of_node = json!({"metadata": {"name": "e", "namespace": "default"}, "involvedObject": {"kind": "Node", "name": "n"}});
    assert_eq!(new("", "Event", of_node), [""; 0]);
    let mut other = good.clone();
    other["message"] = json!("other");
    assert_eq!(changed("", "Event", &good, &other), [""; 0], "they may change");
}

#[test]
fn events_of_new_clients() {
    let group = "events.k8s.io";
    let good = json!({"metadata": {"name": "e", "namespace": "n"}, "regarding": {"namespace": "n", "name": "p"}, "reason": "R", "note": "m", "type": "Normal",
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "example.com/c", "reportingInstance": "c-1", "action": "Doing"});
    each(group, "Event", &good, &[
        ("/eventTime", Value::Null, &["eventTime: Required value"]),
        ("/type", json!("Grave"), &["type: Invalid value: \"\": has invalid value: Grave"]),
        ("/deprecatedCount", json!(2), &["count: Invalid value: \"\": needs to be unset"]),
        ("/deprecatedSource", json!({"host": "h"}), &["source: Invalid value: \"\": needs to be unset"]),
        ("/note", json!("x".repeat(1025)), &["message: Invalid value: \"\": can have at most 1024 characters"]),
        ("/reason", json!("x".repeat(129)), &["reason: Invalid value: \"\": can have at most 128 characters"]),
        ("/series", json!({"count": 1}), &["series.count: Invalid value: \"\": should be at least 2", "series.lastObservedTime: Required value"]),
    ]);
    let mut other = good.clone();
    other["series"] = json!({"count": 2, "lastObservedTime": "2026-01-01T00:00:00.000000Z"});
    assert_eq!(changed(group, "Event", &good, &other), [""; 0]);
    other["note"] = json!("other");
    assert_eq!(changed(group, "Event", &good, &other), ["message: Invalid value: \"other\": field is immutable"]);
}
