//! What the server says about objects: one case a sentence.

use super::*;
use serde_json::json;

fn resource(group: &str, kind: &str) -> &'static Resource {
    crate::resources::all().iter().find(|r| r.group == group && r.kind == kind).unwrap()
}

fn says(errs: Vec<FieldError>) -> Vec<String> {
    errs.iter().map(ToString::to_string).collect()
}

fn on_create(group: &str, kind: &str, obj: &Value) -> Vec<String> {
    says(create(resource(group, kind), obj))
}

fn meta(name: &str) -> Value {
    json!({"name": name, "namespace": "default"})
}

fn pod_spec() -> Value {
    json!({"containers": [{"name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}],
        "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30})
}

fn pod() -> Value {
    json!({"metadata": meta("p"), "spec": pod_spec()})
}

fn deployment() -> Value {
    json!({"metadata": meta("d"), "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod_spec()}}})
}

fn service() -> Value {
    json!({"metadata": meta("s"), "spec": {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
        "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
        "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}]}})
}

/// The object with the value at a JSON pointer set.
fn set(mut v: Value, at: &str, to: Value) -> Value {
    let (parent, key) = at.rsplit_once('/').unwrap();
    match v.pointer_mut(parent).unwrap() {
        Value::Object(m) => drop(m.insert(key.to_owned(), to)),
        Value::Array(l) => match key.parse::<usize>() {
            Ok(i) => l[i] = to,
            Err(_) => l.push(to),
        },
        _ => panic!(),
    }
    v
}

#[test]
fn good_objects_pass() {
    let none: Vec<String> = Vec::new();
    assert_eq!(on_create("", "Pod", &pod()), none);
    assert_eq!(on_create("apps", "Deployment", &deployment()), none);
    assert_eq!(on_create("", "Service", &service()), none);
    assert_eq!(on_create("", "Namespace", &json!({"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}})), none);
    assert_eq!(says(update(resource("apps", "Deployment"), &set(deployment(), "/spec/replicas", 3.into()), &deployment())), none);
    let ds = json!({"metadata": meta("d"), "spec": {"selector": {"matchLabels": {"a": "b"}}, "updateStrategy": {"type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod_spec()}}});
    assert_eq!(on_create("apps", "DaemonSet", &ds), none);
    let sts = json!({"metadata": meta("d"), "spec": {"podManagementPolicy": "OrderedReady", "selector": {"matchLabels": {"a": "b"}},
        "updateStrategy": {"type": "RollingUpdate"}, "volumeClaimTemplates": [{"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}}], "template": {"metadata": {"labels": {"a": "b"}}, "spec":
        set(pod_spec(), "/containers/0/volumeMounts", json!([{"name": "v", "mountPath": "/v"}]))}}});
    assert_eq!(on_create("apps", "StatefulSet", &sts), none);
    let labels = json!({"batch.kubernetes.io/controller-uid": "u", "batch.kubernetes.io/job-name": "j", "controller-uid": "u", "job-name": "j"});
    let job = json!({"metadata": {"name": "j", "namespace": "n", "uid": "u"}, "spec": {"selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}},
        "completionMode": "NonIndexed", "template": {"metadata": {"labels": labels}, "spec": set(pod_spec(), "/restartPolicy", "Never".into())}}});
    assert_eq!(on_create("batch", "Job", &job), none);
    let role = json!({"metadata": {"name": "system:x"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]});
    assert_eq!(on_create("rbac.authorization.k8s.io", "ClusterRole", &role), none);
}

#[test]
fn metadata() {
    let bad = on_create("", "Pod", &set(pod(), "/metadata/name", "Bad_Name".into()));
    assert_eq!(
        bad,
        ["metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"]
    );
    assert_eq!(
        on_create("", "ConfigMap", &json!({"metadata": {}})),
        ["metadata.name: Required value: name or generateName is required", "metadata.namespace: Required value"]
    );
    let old = set(pod(), "/metadata/deletionTimestamp", "2026-01-01T00:00:00Z".into());
    let new = set(old.clone(), "/metadata/finalizers", json!(["a.b/c"]));
    let told = "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"a.b/c\"}";
    // as every change, and as a change of a pod
    assert_eq!(says(update(resource("", "Pod"), &new, &old)), [told, told]);
}

#[test]
fn containers() {
    let with = |at: &str, v: Value| on_create("", "Pod", &set(pod(), at, v));
    assert_eq!(with("/spec/containers", json!([])), ["spec.containers: Required value"]);
    assert_eq!(with("/spec/containers/0/image", "".into()), ["spec.containers[0].image: Required value"]);
    assert_eq!(
        with("/spec/containers/0/imagePullPolicy", "Sometimes".into()),
        ["spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\""]
    );
    assert_eq!(
        with("/spec/containers/0/ports", json!([{"containerPort": 70000, "protocol": "TCP"}, {"protocol": "X", "containerPort": 1}])),
        [
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "spec.containers[0].ports[1].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\""
        ]
    );
    assert_eq!(
        with("/spec/containers/0/volumeMounts", json!([{"name": "v", "mountPath": "/a"}])),
        ["spec.containers[0].volumeMounts[0].name: Not found: \"v\""]
    );
    assert_eq!(
        with("/spec/containers/0/resources", json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}})),
        ["spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"]
    );
    assert_eq!(
        with("/spec/containers/0/resources", json!({"requests": {"what": "1"}})),
        [
            "spec.containers[0].resources.requests[what]: Invalid value: \"what\": must be a standard resource type or fully qualified",
            "spec.containers[0].resources.requests[what]: Invalid value: \"what\": must be a standard resource for containers"
        ]
    );
    assert_eq!(
        with("/spec/containers/0/livenessProbe", json!({"successThreshold": 2})),
        [
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1"
        ]
    );
    assert_eq!(
        with("/spec/containers/0/env", json!([{"name": "A", "valueFrom": {}}, {"name": "B=", "value": "x"}])),
        [
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            "spec.containers[0].env[1].name: Invalid value: \"B=\": a valid environment variable name must consist only of printable ASCII characters other than '='"
        ]
    );
    assert_eq!(
        with("/spec/initContainers", json!([{"name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File", "livenessProbe": {}}])),
        [
            "spec.initContainers[0].name: Duplicate value: \"c\"",
            "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always"
        ]
    );
}

#[test]
fn pod_specs() {
    let with = |at: &str, v: Value| on_create("", "Pod", &set(pod(), at, v));
    assert_eq!(
        with("/spec/restartPolicy", "Maybe".into()),
        ["spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"OnFailure\", \"Never\""]
    );
    assert_eq!(with("/spec/volumes", json!([{"name": "v"}])), ["spec.volumes[0]: Required value: must specify a volume type"]);
    assert_eq!(
        with("/spec/volumes", json!([{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}])),
        ["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"]
    );
    assert_eq!(
        with("/spec/tolerations", json!([{"operator": "Equal", "effect": "NoSchedule"}])),
        ["spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\""]
    );
    assert_eq!(
        with("/spec/affinity", json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}})),
        ["spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term"]
    );
}

#[test]
fn pod_updates() {
    let r = resource("", "Pod");
    let up = |new: &Value| says(update(r, new, &pod()));
    assert!(up(&set(pod(), "/spec/containers/0/image", "j".into())).is_empty());
    assert!(up(&set(pod(), "/spec/tolerations", json!([{"key": "a", "operator": "Exists"}]))).is_empty());
    let changed = up(&set(pod(), "/spec/nodeSelector", json!({"a": "b"})));
    assert!(changed[0].starts_with("spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n"), "{changed:?}");
    let two = set(pod(), "/spec/containers/-", pod()["spec"]["containers"][0].clone());
    assert!(up(&two).contains(&"spec.containers: Forbidden: pod updates may not add or remove containers".to_owned()));
}

#[test]
fn workloads() {
    let with = |at: &str, v: Value| on_create("apps", "Deployment", &set(deployment(), at, v));
    assert_eq!(with("/spec/replicas", (-1).into()), ["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]);
    assert_eq!(
        with("/spec/template/metadata/labels", json!({"a": "c"})),
        ["spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`"]
    );
    assert_eq!(
        with("/spec/template/spec/restartPolicy", "Never".into()),
        ["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""]
    );
    assert_eq!(
        with("/spec/strategy/rollingUpdate", json!({"maxSurge": 0, "maxUnavailable": 0})),
        ["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"]
    );
    let mut other = set(deployment(), "/spec/selector", json!({"matchLabels": {"a": "c"}}));
    other = set(other, "/spec/template/metadata/labels", json!({"a": "c"}));
    assert_eq!(
        says(update(resource("apps", "Deployment"), &other, &deployment())),
        ["spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"c\"}}: field is immutable"]
    );
    let job = json!({"metadata": {"name": "j", "namespace": "n", "uid": "u"}, "spec": {"manualSelector": true, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod_spec()}}});
    assert_eq!(on_create("batch", "Job", &job), ["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""]);
    let cron = json!({"metadata": meta("c"), "spec": {"schedule": "* * * *", "concurrencyPolicy": "Allow",
        "jobTemplate": {"spec": {"template": {"spec": set(pod_spec(), "/restartPolicy", "Never".into())}}}}});
    assert_eq!(
        on_create("batch", "CronJob", &cron),
        ["spec.schedule: Invalid value: \"* * * *\": expected exactly 5 fields, found 4: [* * * *]"]
    );
}

#[test]
fn services() {
    let with = |at: &str, v: Value| on_create("", "Service", &set(service(), at, v));
    assert_eq!(with("/spec/ports", json!([])), ["spec.ports: Required value"]);
    assert_eq!(
        with("/spec/ports", json!([{"port": 0, "targetPort": 1, "protocol": "TCP"}])),
        ["spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"]
    );
    assert_eq!(
        with("/spec/ports", json!([{"port": 1, "targetPort": 1, "protocol": "TCP"}, {"port": 2, "targetPort": 1, "protocol": "TCP"}])),
        ["spec.ports[0].name: Required value", "spec.ports[1].name: Required value"]
    );
    assert_eq!(
        with("/spec/clusterIPs", json!(["10.96.0.300"])),
        [
            "spec.clusterIPs: Invalid value: [\"10.96.0.300\"]: first value must match `clusterIP`",
            "spec.clusterIPs[0]: Invalid value: \"10.96.0.300\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
        ]
    );
    let moved = set(set(service(), "/spec/clusterIP", "10.96.0.8".into()), "/spec/clusterIPs", json!(["10.96.0.8"]));
    assert_eq!(
        says(update(resource("", "Service"), &moved, &service())),
        ["spec.clusterIPs[0]: Invalid value: [\"10.96.0.8\"]: may not change once set"]
    );
}

#[test]
fn others() {
    assert_eq!(
        on_create("rbac.authorization.k8s.io", "RoleBinding", &json!({"metadata": meta("b"), "roleRef": {"kind": "X", "name": "r"}})),
        [
            "roleRef.apiGroup: Unsupported value: \"\": supported values: \"rbac.authorization.k8s.io\"",
            "roleRef.kind: Unsupported value: \"X\": supported values: \"Role\", \"ClusterRole\""
        ]
    );
    assert_eq!(
        on_create("", "Node", &json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "a", "effect": "Never"}]}})),
        ["metadata.taints[0].effect: Unsupported value: \"Never\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\""]
    );
    assert_eq!(
        on_create("", "Secret", &json!({"metadata": meta("s"), "type": "kubernetes.io/tls", "data": {"a/b": ""}})),
        [
            "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
            "data[tls.crt]: Required value",
            "data[tls.key]: Required value"
        ]
    );
    let frozen = json!({"metadata": meta("c"), "immutable": true, "data": {"a": "1"}});
    assert_eq!(
        says(update(resource("", "ConfigMap"), &set(frozen.clone(), "/data/a", "2".into()), &frozen)),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    assert_eq!(
        on_create("scheduling.k8s.io", "PriorityClass", &json!({"metadata": {"name": "p"}, "value": 2000000000})),
        ["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"]
    );
    assert_eq!(
        on_create("networking.k8s.io", "NetworkPolicy", &json!({"metadata": meta("p"), "spec": {"podSelector": {}, "ingress": [{"from": [{}]}]}})),
        ["spec.ingress[0].from[0]: Required value: must specify a peer"]
    );
}

#[test]
fn persistent_volumes() {
    let volume = |source: Value, policy: &str| {
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "persistentVolumeReclaimPolicy": policy, "volumeMode": "Filesystem"});
        spec.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        json!({"metadata": {"name": "v"}, "spec": spec})
    };
    let says = |source: Value, policy: &str| on_create("", "PersistentVolume", &volume(source, policy));
    assert!(says(json!({"hostPath": {"path": "/data", "type": "Directory"}}), "Recycle").is_empty());
    assert_eq!(says(json!({"hostPath": {"path": "/a/../b"}}), "Retain"), ["spec.hostPath.path: Invalid value: \"/a/../b\": must not contain '..'"]);
    assert_eq!(says(json!({"hostPath": {"path": "/"}}), "Recycle"), ["spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'"]);
    assert_eq!(says(json!({"nfs": {"server": "s", "path": "p"}}), "Retain"), ["spec.nfs.path: Invalid value: \"p\": must be an absolute path"]);
    assert_eq!(says(json!({"csi": {"driver": "d.io"}}), "Retain"), ["spec.csi.volumeHandle: Required value"]);
    assert_eq!(says(json!({"local": {"path": "/p"}}), "Retain"), ["spec.nodeAffinity: Required value: Local volume requires node affinity"]);
    let near = |host: &str| {
        let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]}});
        volume(json!({"local": {"path": "/p"}, "nodeAffinity": affinity}), "Retain")
    };
    let pv = resource("", "PersistentVolume");
    assert!(update(pv, &near("a"), &near("a")).is_empty());
    let moved: Vec<String> = super::tests::says(update(pv, &near("b"), &near("a")));
    assert!(moved.len() == 1 && moved[0].ends_with("field is immutable, except for updating from beta label to GA"), "{moved:?}");
}

fn device_claim(devices: Value) -> Value {
    json!({"metadata": meta("c"), "spec": {"devices": devices}})
}

fn device_request(more: Value) -> Value {
    let mut exactly = json!({"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1});
    exactly.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"name": "r", "exactly": exactly})
}

#[test]
fn device_claims() {
    const GROUP: &str = "resource.k8s.io";
    let none: Vec<String> = Vec::new();
    let on = |devices: Value| on_create(GROUP, "ResourceClaim", &device_claim(devices));
    let one = |more: Value| on(json!({"requests": [device_request(more)]}));
    assert_eq!(one(json!({"selectors": [{"cel": {"expression": "true"}}], "tolerations": [{"key": "k", "operator": "Equal", "value": "v", "effect": "None"}]})), none);
    assert_eq!(one(json!({"deviceClassName": ""})), ["spec.devices.requests[0].exactly.deviceClassName: Required value"]);
    assert_eq!(one(json!({"count": 0})), ["spec.devices.requests[0].exactly.count: Invalid value: 0: must be greater than zero"]);
    assert_eq!(one(json!({"allocationMode": "All"})), ["spec.devices.requests[0].exactly.count: Invalid value: 1: must not be specified when allocationMode is 'All'"]);
    assert_eq!(one(json!({"allocationMode": "Some"})), ["spec.devices.requests[0].exactly.allocationMode: Unsupported value: \"Some\": supported values: \"All\", \"ExactCount\""]);
    assert_eq!(one(json!({"selectors": [{}]})), ["spec.devices.requests[0].exactly.selectors[0].cel: Required value"]);
    assert_eq!(one(json!({"tolerations": [{"operator": "Exists", "value": "v"}]})), ["spec.devices.requests[0].exactly.tolerations[0].value: Invalid value: \"v\": must be empty for operator `Exists`"]);
    assert_eq!(on(json!({"requests": [{"name": "r"}]})), ["spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required"]);
    let request = || device_request(json!({}));
    assert_eq!(on(json!({"requests": [request(), request()]})), ["spec.devices.requests[1]: Duplicate value: \"r\""]);
    assert_eq!(on(json!({"requests": vec![request(); 33]})), ["spec.devices.requests: Too many: 33: must have at most 32 items"]);
    let tied = |constraint: Value| on(json!({"requests": [request()], "constraints": [constraint]}));
    assert_eq!(tied(json!({"requests": ["r"], "matchAttribute": "d.io/numa"})), none);
    assert_eq!(tied(json!({"matchAttribute": "numa"})), ["spec.devices.constraints[0].matchAttribute: Invalid value: \"numa\": a fully qualified name must be a domain and a name separated by a slash"]);
    assert!(tied(json!({"requests": ["q"], "distinctAttribute": "d.io/numa"}))[0].starts_with("spec.devices.constraints[0].requests[0]: Invalid value: \"q\": must be the name of a request"));
    let config = |config: Value| on(json!({"requests": [request()], "config": [config]}));
    assert_eq!(config(json!({"opaque": {"driver": "d.io", "parameters": {}}})), none);
    assert_eq!(config(json!({"opaque": {"driver": "d.io", "parameters": 3}})), ["spec.devices.config[0].opaque.parameters: Invalid value: \"<value omitted>\": must be a valid JSON object"]);
    let claims = resource(GROUP, "ResourceClaim");
    let (before, after) = (device_claim(json!({"requests": [request()]})), device_claim(json!({"requests": []})));
    let changed = says(update(claims, &after, &before));
    assert!(changed.len() == 1 && changed[0].starts_with("spec: Invalid value: ") && changed[0].ends_with("field is immutable"), "{changed:?}");
    assert_eq!(on_create(GROUP, "DeviceClass", &json!({"metadata": {"name": "c"}, "spec": {"extendedResourceName": "gpu"}})), ["spec.extendedResourceName: Invalid value: \"gpu\": must be a valid extended resource name"]);
}

#[test]
fn device_claims_of_pods() {
    let says = |claims: Value| on_create("", "Pod", &set(pod(), "/spec/resourceClaims", claims));
    let none: Vec<String> = Vec::new();
    assert_eq!(says(json!([{"name": "a", "resourceClaimName": "x"}, {"name": "b", "resourceClaimTemplateName": "y"}])), none);
    assert_eq!(says(json!([{"name": "a", "resourceClaimName": "x"}, {"name": "a", "resourceClaimName": "x"}])), ["spec.resourceClaims[1].name: Duplicate value: \"a\""]);
    let neither = says(json!([{"name": "a"}]));
    assert!(neither.len() == 1 && neither[0].ends_with("must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"), "{neither:?}");
    assert!(says(json!([{"name": "A", "resourceClaimName": "x"}]))[0].starts_with("spec.resourceClaims[0].name: Invalid value: \"A\": a lowercase RFC 1123 label"));
}

#[test]
fn device_claim_statuses() {
    let claim = |status: Value| {
        let mut claim = device_claim(json!({"requests": [device_request(json!({}))]}));
        claim["status"] = status;
        claim
    };
    let on = |status: Value, old: Value| says(update_status(resource("resource.k8s.io", "ResourceClaim"), &claim(status), &claim(old)));
    let given = |device: &str| json!({"devices": {"results": [{"request": "r", "driver": "d.io", "pool": "p", "device": device}]}});
    let pod = json!([{"resource": "pods", "name": "p", "uid": "u"}]);
    let none: Vec<String> = Vec::new();
    assert_eq!(on(json!({"allocation": given("1"), "reservedFor": pod}), json!({})), none);
    assert_eq!(on(json!({}), json!({"allocation": given("1"), "reservedFor": pod})), none);
    assert_eq!(on(json!({"reservedFor": pod}), json!({})), ["status.reservedFor: Forbidden: may not be specified when `allocated` is not set"]);
    let changed = on(json!({"allocation": given("2")}), json!({"allocation": given("1")}));
    assert!(changed.len() == 1 && changed[0].starts_with("status.allocation: Invalid value") && changed[0].ends_with("field is immutable"), "{changed:?}");
    let mut foreign = given("1");
    foreign["devices"]["results"][0]["request"] = json!("q");
    assert!(on(json!({"allocation": foreign}), json!({}))[0].starts_with("status.allocation.devices.results[0].request: Invalid value: \"q\": must be the name of a request"));
    let many: Vec<Value> = (0..257).map(|i| json!({"resource": "pods", "name": "p", "uid": i.to_string()})).collect();
    assert_eq!(on(json!({"allocation": given("1"), "reservedFor": many}), json!({})), ["status.reservedFor: Too many: 257: must have at most 256 items"]);
    let reported = json!([{"driver": "d.io", "pool": "p", "device": "2"}]);
    assert_eq!(on(json!({"allocation": given("1"), "devices": reported}), json!({"allocation": given("1")})), ["status.devices[0]: Invalid value: {\"device\":\"2\",\"driver\":\"d.io\",\"pool\":\"p\",\"shareID\":\"\"}: must be an allocated device in the claim"]);
}

#[test]
fn device_slices() {
    let slice = |more: Value| {
        let mut spec = json!({"driver": "d.io", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "nodeName": "n"});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"metadata": {"name": "s"}, "spec": spec})
    };
    let on = |more: Value| on_create("resource.k8s.io", "ResourceSlice", &slice(more));
    let device = |more: Value| {
        let mut device = json!({"name": "d"});
        device.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        on(json!({"devices": [device]}))
    };
    let none: Vec<String> = Vec::new();
    let ok = json!({"attributes": {"model": {"string": "x"}, "d.io/numa": {"int": 1}, "v": {"version": "1.2.3-a.1+b"}}, "capacity": {"memory": {"value": "1Gi"}}, "taints": [{"key": "k", "effect": "NoSchedule"}]});
    assert_eq!(device(ok), none);
    assert_eq!(on(json!({"nodeName": null})), ["spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"]);
    assert_eq!(on(json!({"allNodes": true})), ["spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set"]);
    assert_eq!(on(json!({"pool": {"name": "p", "resourceSliceCount": 0}})), ["spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero"]);
    assert_eq!(device(json!({"attributes": {"a": {}}})), ["spec.devices[0].attributes[a]: Invalid value: \"\": exactly one value must be specified"]);
    assert_eq!(device(json!({"attributes": {"a": {"version": "1.2"}}})), ["spec.devices[0].attributes[a].version: Invalid value: \"1.2\": must be a string compatible with semver.org spec 2.0.0"]);
    assert_eq!(device(json!({"taints": [{"key": "k", "effect": "Never"}]})), ["spec.devices[0].taints[0].effect: Unsupported value: \"Never\": supported values: \"NoExecute\", \"NoSchedule\", \"None\""]);
    assert_eq!(device(json!({"bindingConditions": ["a"]})), ["spec.devices[0].bindingFailureConditions: Invalid value: null: bindingFailureConditions are required to use bindingConditions"]);
    assert_eq!(device(json!({"nodeName": "n"})), ["spec.devices[0]: Invalid value: null: `nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec"]);
    let shared = |policy: Value| device(json!({"allowMultipleAllocations": true, "capacity": {"memory": {"value": "8Gi", "requestPolicy": policy}}}));
    assert_eq!(shared(json!({"default": "1Gi", "validRange": {"min": "1Gi", "max": "7Gi", "step": "2Gi"}})), none);
    assert_eq!(shared(json!({"validValues": ["1Gi"]})), ["spec.devices[0].capacity[memory].requestPolicy.default: Required value: required when validValues is defined"]);
    assert_eq!(shared(json!({"default": "3Gi", "validValues": ["1Gi", "2Gi"]})), ["spec.devices[0].capacity[memory].requestPolicy.validValues: Invalid value: \"3Gi\": default value is not valid according to the requestPolicy"]);
    assert_eq!(device(json!({"capacity": {"memory": {"value": "8Gi", "requestPolicy": {}}}})), ["spec.devices[0].capacity[memory].requestPolicy: Forbidden: allowMultipleAllocations must be true"]);
    let slices = resource("resource.k8s.io", "ResourceSlice");
    let moved = says(update(slices, &slice(json!({"nodeName": "m"})), &slice(json!({}))));
    assert!(moved.len() == 1 && moved[0].starts_with("spec.nodeName: Invalid value: \"m\": field is immutable"), "{moved:?}");
}

fn flow_schema() -> Value {
    json!({"metadata": {"name": "s"}, "spec": {"matchingPrecedence": 1000, "priorityLevelConfiguration": {"name": "l"},
        "distinguisherMethod": {"type": "ByUser"}, "rules": [{"subjects": [{"kind": "User", "user": {"name": "u"}}],
        "resourceRules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "namespaces": ["a"]}],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["/a/*"]}]}]}})
}

#[test]
fn flow_schemas() {
    let with = |at: &str, v: Value| on_create("flowcontrol.apiserver.k8s.io", "FlowSchema", &set(flow_schema(), at, v));
    let none: Vec<String> = Vec::new();
    assert_eq!(with("/spec/matchingPrecedence", 10000.into()), none);
    assert_eq!(with("/spec/matchingPrecedence", (-1).into()), ["spec.matchingPrecedence: Invalid value: -1: must be a positive value"]);
    assert_eq!(with("/spec/matchingPrecedence", 10001.into()), ["spec.matchingPrecedence: Invalid value: 10001: must not be greater than 10000"]);
    assert_eq!(with("/spec/matchingPrecedence", 1.into()), ["spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1"]);
    assert_eq!(with("/spec/priorityLevelConfiguration", json!({})), ["spec.priorityLevelConfiguration.name: Required value: must reference a priority level"]);
    assert_eq!(with("/spec/rules/0/subjects", json!([])), ["spec.rules[0].subjects: Required value: subjects must contain at least one value"]);
    assert_eq!(
        with("/spec/rules/0", json!({"subjects": [{"kind": "Group", "group": {"name": "g"}}]})),
        ["spec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty"]
    );
    let subject = |s: Value| with("/spec/rules/0/subjects/0", s);
    assert_eq!(subject(json!({"kind": "User"})), ["spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'"]);
    assert_eq!(
        subject(json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*"}, "group": {"name": "g"}})),
        [
            "spec.rules[0].subjects[0].serviceAccount.namespace: Required value: must specify namespace for service account",
            "spec.rules[0].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'",
        ]
    );
    assert_eq!(
        subject(json!({"kind": "Node"})),
        ["spec.rules[0].subjects[0].kind: Unsupported value: \"Node\": supported values: \"Group\", \"ServiceAccount\", \"User\""]
    );
    let rule = |at: &str, v: Value| with(&format!("/spec/rules/0/resourceRules/0/{at}"), v);
    assert_eq!(rule("namespaces", json!([])), ["spec.rules[0].resourceRules[0].namespaces: Required value: resource rules that are not cluster scoped must supply at least one namespace"]);
    assert_eq!(rule("apiGroups", json!([])), ["spec.rules[0].resourceRules[0].apiGroups: Required value: resource rules must supply at least one api group"]);
    assert_eq!(
        rule("resources", json!(["*", "pods"])),
        ["spec.rules[0].resourceRules[0].resources: Invalid value: [\"*\",\"pods\"]: if '*' is present, must not specify other resources"]
    );
    let verbs = rule("verbs", json!(["connect"]));
    assert!(verbs[0].ends_with("supported values: \"create\", \"delete\", \"deletecollection\", \"get\", \"list\", \"patch\", \"proxy\", \"update\", \"watch\""), "{verbs:?}");
    assert!(rule("namespaces", json!(["A"]))[0].contains("each member of this list must be '*' or a DNS-1123 label; a lowercase RFC 1123 label must"));
    for (url, why) in [("a", "must start with slash"), ("/a//b", "must not contain double slash"), ("/a b", "must not contain white-space"), ("/a*", "wildcard can only do suffix matching")] {
        let said = with("/spec/rules/0/nonResourceRules/0/nonResourceURLs", json!([url]));
        assert_eq!(said, [format!("spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: {url:?}: {why}")]);
    }
    let fixed = on_create("flowcontrol.apiserver.k8s.io", "FlowSchema", &set(flow_schema(), "/metadata/name", "catch-all".into()));
    assert!(fixed.len() == 1 && fixed[0].ends_with("spec of 'catch-all' must equal the fixed value"), "{fixed:?}");
    let told = set(flow_schema(), "/status", json!({"conditions": [{"type": "Dangling"}, {"type": "Dangling"}]}));
    assert_eq!(says(update_status(resource("flowcontrol.apiserver.k8s.io", "FlowSchema"), &told, &flow_schema())), ["status.conditions[1].type: Duplicate value: \"Dangling\""]);
}

#[test]
fn priority_levels() {
    let level = |name: &str, spec: Value| {
        on_create("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", &json!({"metadata": {"name": name}, "spec": spec}))
    };
    let limited = |response: Value| level("l", json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 1, "limitResponse": response}}));
    let queuing = |queues: i64, hand: i64, length: i64| {
        limited(json!({"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": length}}))
    };
    let at = "spec.limited.limitResponse";
    assert!(queuing(64, 8, 50).is_empty() && limited(json!({"type": "Reject"})).is_empty());
    assert_eq!(queuing(64, 8, -1), [format!("{at}.queuing.queueLengthLimit: Invalid value: -1: must be positive")]);
    assert_eq!(queuing(4, 8, 1), [format!("{at}.queuing.handSize: Invalid value: 8: should not be greater than queues (4)")]);
    assert_eq!(queuing(10_000_001, 1, 1), [format!("{at}.queuing.queues: Invalid value: 10000001: must not be greater than 10000000")]);
    assert_eq!(
        queuing(512, 8, 50),
        [format!("{at}.queuing.handSize: Invalid value: 8: required entropy bits of deckSize 512 and handSize 8 should not be greater than 60")]
    );
    assert_eq!(limited(json!({"type": "Queue"})), [format!("{at}.queuing: Required value: must not be empty if limited.limitResponse.type is Limited")]);
    assert_eq!(limited(json!({"type": "Wait"})), [format!("{at}.type: Unsupported value: \"Wait\": supported values: \"Queue\", \"Reject\"")]);
    assert_eq!(level("l", json!({"type": "Limited"})), ["spec.limited: Required value: must not be empty when type is Limited"]);
    assert_eq!(level("l", json!({"type": "Exempt"})), ["spec.type: Invalid value: \"Exempt\": must be 'Exempt' if and only if `name` is 'exempt'"]);
    let shares = json!({"nominalConcurrencyShares": -1, "lendablePercent": 101, "borrowingLimitPercent": -1, "limitResponse": {"type": "Reject"}});
    assert_eq!(
        level("l", json!({"type": "Limited", "limited": shares})),
        [
            "spec.limited.nominalConcurrencyShares: Invalid value: -1: must be a non-negative integer",
            "spec.limited.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive",
            "spec.limited.borrowingLimitPercent: Invalid value: -1: if specified, must be a non-negative integer",
        ]
    );
    assert!(level("exempt", json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 5, "lendablePercent": 50}})).is_empty());
    let fixed = level("exempt", json!({"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}}));
    assert!(fixed.iter().any(|e| e.ends_with("spec of 'exempt' except the 'spec.exempt' field must equal the fixed value")), "{fixed:?}");
}
