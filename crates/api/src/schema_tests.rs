//! What Go would make of a tree: fields dropped, types refused, values in normal form.

use super::*;
use serde_json::json;

fn norm(ty: &str, mut value: Value) -> Value {
    normalize(ty, &mut value).unwrap();
    value
}

fn fails(ty: &str, mut value: Value) -> String {
    normalize(ty, &mut value).unwrap_err().to_string()
}

const POD: &str = "io.k8s.api.core.v1.Pod";
const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";

#[test]
fn empty_structs_stay_and_empty_values_go() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "creationTimestamp": null, "labels": {}},
        "spec": {"containers": [{"name": "c", "image": "", "ports": [], "resources": null}], "hostNetwork": false, "nodeSelector": null}});
    assert_eq!(
        norm(POD, pod),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
            "spec": {"containers": [{"name": "c", "resources": {}}]}, "status": {}})
    );
}

#[test]
fn required_values_are_always_shown() {
    let condition = norm("io.k8s.api.core.v1.PodCondition", json!({"type": "Ready", "status": "True"}));
    assert_eq!(condition, json!({"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": null}));
    let status = norm("io.k8s.api.core.v1.ContainerStatus", json!({"name": "a"}));
    assert_eq!(
        status,
        json!({"name": "a", "state": {}, "lastState": {}, "ready": false, "restartCount": 0, "image": "", "imageID": ""})
    );
    assert_eq!(norm("io.k8s.api.rbac.v1.ClusterRole", json!({})), json!({"metadata": {}, "rules": null}));
}

#[test]
fn texts_become_canonical() {
    let pod = json!({"metadata": {"creationTimestamp": "2026-01-02T03:04:05+01:00"},
        "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": 1, "memory": "1024Mi", "x": "0.5", "y": "10u"}}}]}});
    let pod = norm(POD, pod);
    assert_eq!(pod["metadata"]["creationTimestamp"], "2026-01-02T02:04:05Z");
    assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"], json!({"cpu": "1", "memory": "1Gi", "x": "500m", "y": "1m"}));
    let lease = norm("io.k8s.api.coordination.v1.Lease", json!({"spec": {"renewTime": "2026-01-02T03:04:05.100000Z"}}));
    assert_eq!(lease["spec"]["renewTime"], "2026-01-02T03:04:05.100000Z");
    let secret = norm("io.k8s.api.core.v1.Secret", json!({"data": {"a": "YQ==", "b": "YWJj\nZA==", "c": null}}));
    assert_eq!(secret["data"], json!({"a": "YQ==", "b": "YWJjZA==", "c": null}));
}

#[test]
fn unknown_fields_are_named_by_path() {
    let mut pod = json!({"Kind": "x", "spec": {"containers": [{"name": "a"}, {"name": "b", "foo": 1}], "volumes": [{"name": "v", "emptyDir": {"bar": 2}}]}});
    let found = normalize(POD, &mut pod).unwrap();
    assert_eq!(
        found.unknown,
        ["unknown field \"Kind\"", "unknown field \"spec.containers[1].foo\"", "unknown field \"spec.volumes[0].emptyDir.bar\""]
    );
    assert_eq!(pod["spec"]["volumes"][0], json!({"name": "v", "emptyDir": {}}));
}

#[test]
fn type_errors_are_in_the_decoders_words() {
    assert_eq!(
        fails(DEPLOYMENT, json!({"spec": {"replicas": "3"}})),
        "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    assert_eq!(
        fails(POD, json!({"spec": {"containers": {"a": 1}}})),
        "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container"
    );
    assert_eq!(
        fails(POD, json!({"spec": {"containers": [{"image": 3}]}})),
        "json: cannot unmarshal number into Go struct field Container.spec.containers.image of type string"
    );
    assert_eq!(
        fails("io.k8s.api.core.v1.ConfigMap", json!({"data": {"a": 3}})),
        "json: cannot unmarshal number into Go struct field ConfigMap.data of type string"
    );
    assert_eq!(
        fails(DEPLOYMENT, json!({"spec": {"replicas": 1.5}})),
        "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    assert!(fails(POD, json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}})).starts_with("quantities must match"));
    assert_eq!(fails("io.k8s.api.core.v1.Secret", json!({"data": {"a": "%%%%"}})), "illegal base64 data at input byte 0");
}

#[test]
fn crd_schemas_take_their_unions() {
    let ty = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
    let schema = json!({"type": "object", "default": {"a": null}, "properties": {"l": {"type": "array", "items": {"type": "string", "nope": 1}}},
        "additionalProperties": false, "enum": [1, "a", null]});
    let mut given = schema.clone();
    let found = normalize(ty, &mut given).unwrap();
    assert_eq!(found.unknown, ["unknown field \"properties.l.items.nope\""]);
    let mut expect = schema;
    expect["properties"]["l"]["items"] = json!({"type": "string"});
    assert_eq!(given, expect);
}
