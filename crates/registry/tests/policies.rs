//! Admission policies and webhooks through the whole handler chain.

mod common;

use common::{AuditLog, Cluster, admin};
use serde_json::{Value, json};

const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/a/deployments";

fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "nginx"}},
        "template": {"metadata": {"labels": {"app": "nginx"}}, "spec": {"containers": [{"name": "nginx", "image": "nginx:latest"}]}}}})
}

fn policy(name: &str, resources: &[&str], mutations: &[Value], again: &str) -> Value {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy", "metadata": {"name": name}, "spec": {
        "reinvocationPolicy": again, "mutations": mutations, "matchConstraints": {"resourceRules": [
            {"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"], "resources": resources}]}}})
}

fn apply(expression: &str) -> Value {
    json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}})
}

async fn with(policies: &[Value]) -> Cluster {
    let cluster = Cluster::start().await;
    cluster.namespace("a").await;
    for policy in policies {
        let (code, made) = cluster.post(&admin(), &format!("{REGISTRATION}/mutatingadmissionpolicies"), policy).await;
        assert_eq!(code, 201, "{made}");
        assert_eq!(made["spec"]["failurePolicy"], "Fail");
        assert_eq!(made["spec"]["matchConstraints"]["matchPolicy"], "Equivalent");
        let name = policy["metadata"]["name"].as_str().unwrap();
        let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name}});
        let (code, made) = cluster.post(&admin(), &format!("{REGISTRATION}/mutatingadmissionpolicybindings"), &binding).await;
        assert_eq!(code, 201, "{made}");
    }
    cluster
}

#[tokio::test]
async fn a_deployment_is_mutated() {
    let annotate = apply("\nObject{\n  metadata: Object.metadata{\n    annotations: {\n      \"mutated-by\": \"admission-policy\"\n    }\n  }\n}");
    let cluster = with(&[policy("p", &["deployments"], &[annotate, apply("Object{spec: Object.spec{replicas: 1337}}")], "Never")]).await;
    let (code, dry) = cluster.post(&admin(), &format!("{DEPLOYMENTS}?dryRun=All"), &deployment("d")).await;
    assert_eq!((code, &dry["spec"]["replicas"]), (201, &json!(1337)), "dry runs too");
    let (code, made) = cluster.post(&admin(), DEPLOYMENTS, &deployment("d")).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!((&made["metadata"]["annotations"]["mutated-by"], &made["spec"]["replicas"]), (&json!("admission-policy"), &json!(1337)));
    // an update comes back to it
    let (code, patched) = cluster.patch(&admin(), "application/merge-patch+json", &format!("{DEPLOYMENTS}/d"), &json!({"spec": {"replicas": 2}})).await;
    assert_eq!((code, &patched["spec"]["replicas"]), (200, &json!(1337)));
    let (code, _) = cluster.call(&admin(), "DELETE", &format!("{REGISTRATION}/mutatingadmissionpolicybindings/p"), None).await;
    assert_eq!(code, 200);
    let (_, made) = cluster.post(&admin(), DEPLOYMENTS, &deployment("e")).await;
    assert_eq!(made["spec"]["replicas"], 1, "without a binding, a policy does nothing");
}

#[tokio::test]
async fn policies_are_asked_again_when_they_want_to() {
    let add = |what: &str| format!("Object{{metadata: Object.metadata{{annotations: {{'seen': object.metadata.?annotations[?'seen'].orValue('') + '{what}'}}}}}}");
    let of = |name: &str, again: &str| policy(name, &["deployments"], &[apply(&add(name))], again);
    let seen = async |policies: &[Value]| {
        let cluster = with(policies).await;
        let (code, made) = cluster.post(&admin(), DEPLOYMENTS, &deployment("d")).await;
        assert_eq!(code, 201, "{made}");
        made["metadata"]["annotations"]["seen"].as_str().unwrap().to_owned()
    };
    assert_eq!(seen(&[of("a", "Never"), of("b", "Never")]).await, "ab");
    assert_eq!(seen(&[of("a", "IfNeeded"), of("b", "Never")]).await, "aba");
    assert_eq!(seen(&[of("a", "Never"), of("b", "IfNeeded")]).await, "abb", "after its own change, too");
}

#[tokio::test]
async fn a_scale_is_mutated_as_one() {
    let condition = json!([{"name": "scale", "expression": "request.kind.kind == 'Scale' && request.kind.group == 'autoscaling' && request.subResource == 'scale' && oldObject.spec.replicas == 1"}]);
    let mut p = policy("p", &["deployments/scale"], &[apply("Object{spec: Object.spec{replicas: object.spec.replicas * 2}}")], "Never");
    p["spec"]["matchConditions"] = condition;
    let cluster = with(&[p]).await;
    cluster.post(&admin(), DEPLOYMENTS, &deployment("d")).await;
    let uri = format!("{DEPLOYMENTS}/d/scale");
    let (code, scaled) = cluster.patch(&admin(), "application/merge-patch+json", &uri, &json!({"spec": {"replicas": 3}})).await;
    assert_eq!((code, &scaled["spec"]["replicas"]), (200, &json!(6)), "{scaled}");
    assert_eq!(cluster.get(&admin(), &format!("{DEPLOYMENTS}/d")).await["spec"]["replicas"], 6);

    // and judged as one
    let judge = json!({"metadata": {"name": "v"}, "spec": {"validations": [{"expression": "object.spec.replicas < 9 && object.kind == 'Scale'", "message": "too many"}],
        "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["deployments/scale"]}]}}});
    let (code, made) = cluster.post(&admin(), &format!("{REGISTRATION}/validatingadmissionpolicies"), &judge).await;
    assert_eq!(code, 201, "{made}");
    let binding = json!({"metadata": {"name": "v"}, "spec": {"policyName": "v", "validationActions": ["Deny"]}});
    let (code, made) = cluster.post(&admin(), &format!("{REGISTRATION}/validatingadmissionpolicybindings"), &binding).await;
    assert_eq!(code, 201, "{made}");
    let scale = async |to: i64| cluster.patch(&admin(), "application/merge-patch+json", &uri, &json!({"spec": {"replicas": to}})).await;
    assert_eq!(scale(8).await.0, 200);
    let (code, refused) = scale(9).await;
    assert_eq!((code, refused["message"].as_str().unwrap().ends_with("denied request: too many")), (422, true), "{refused}");
    let (code, _) = cluster.patch(&admin(), "application/merge-patch+json", &format!("{DEPLOYMENTS}/d"), &json!({"spec": {"replicas": 10}})).await;
    assert_eq!(code, 200, "the object itself is not meant");
}

#[tokio::test]
async fn custom_resources_are_merged_by_their_schema() {
    let port = |name: &str, port: i64| format!("Object.spec.ports{{name: '{name}', port: {port}}}");
    let add = format!("Object{{spec: Object.spec{{ports: [{}, {}]}}}}", port("b", 22), port("c", 3));
    let cluster = with(&[policy("p", &["tabs"], &[apply(&add)], "Never")]).await;
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "port": {"type": "integer"}}}}}}}}});
    let definition = json!({"metadata": {"name": "tabs.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "tabs", "kind": "Tab"}, "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}]}});
    let (code, made) = cluster.post(&admin(), "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    assert_eq!(code, 201, "{made}");
    let tab = json!({"apiVersion": "example.com/v1", "kind": "Tab", "metadata": {"name": "t"}, "spec": {"ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}]}});
    for _ in 0..200 {
        let (code, made) = cluster.post(&admin(), "/apis/example.com/v1/namespaces/a/tabs", &tab).await;
        if code == 404 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            continue;
        }
        assert_eq!(code, 201, "{made}");
        assert_eq!(made["spec"]["ports"], json!([{"name": "a", "port": 1}, {"name": "b", "port": 22}, {"name": "c", "port": 3}]));
        return;
    }
    panic!("the definition was never served");
}

#[tokio::test]
async fn policies_that_make_no_sense_are_refused() {
    let cluster = with(&[]).await;
    let path = format!("{REGISTRATION}/mutatingadmissionpolicies");
    let (code, refused) = cluster.post(&admin(), &path, &policy("p", &["deployments"], &[apply("object.spec")], "Sometimes")).await;
    assert_eq!(code, 422);
    assert_eq!(
        refused["message"],
        "MutatingAdmissionPolicy.admissionregistration.k8s.io \"p\" is invalid: [spec.mutations[0].applyConfiguration.expression: Invalid value: \"object.spec\": must evaluate to Object but got dyn, spec.reinvocationPolicy: Unsupported value: \"Sometimes\": supported values: \"IfNeeded\", \"Never\"]"
    );
    // the verbs of upstream's conformance test
    let template = json!({"metadata": {"generateName": "e2e-", "labels": {"l": "v"}}, "spec": policy("", &["deployments"], &[apply("Object{spec: Object.spec{replicas: 100}}")], "Never")["spec"]});
    let (_, made) = cluster.post(&admin(), &path, &template).await;
    cluster.post(&admin(), &path, &template).await;
    let one = format!("{path}/{}", made["metadata"]["name"].as_str().unwrap());
    let change = json!({"metadata": {"annotations": {"patched": "true"}}, "spec": {"reinvocationPolicy": "IfNeeded"}});
    let (code, patched) = cluster.patch(&admin(), "application/merge-patch+json", &one, &change).await;
    assert_eq!((code, &patched["spec"]["reinvocationPolicy"], &patched["metadata"]["generation"]), (200, &json!("IfNeeded"), &json!(2)));
    let (code, _) = cluster.call(&admin(), "DELETE", &format!("{path}?labelSelector=l=v"), None).await;
    assert_eq!((code, cluster.get(&admin(), &path).await["items"].as_array().map(Vec::len)), (200, Some(0)));
}

#[tokio::test]
async fn the_audit_log_knows_of_policies() {
    let (cluster, log) = AuditLog::start("policies", "Metadata").await;
    let rules = json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]);
    let policy = json!({"metadata": {"name": "p.example.com"}, "spec": {"matchConstraints": {"resourceRules": rules},
        "validations": [{"expression": "true"}, {"expression": "size(object.data) < 2", "message": "too much"}],
        "auditAnnotations": [{"key": "size", "valueExpression": "' ' + string(size(object.data)) + ' '"}, {"key": "none", "valueExpression": "null"}]}});
    let (code, made) = cluster.post(&admin(), &format!("{REGISTRATION}/validatingadmissionpolicies"), &policy).await;
    assert_eq!(code, 201, "{made}");
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p.example.com", "validationActions": ["Audit", "Warn"]}});
    let (code, made) = cluster.post(&admin(), &format!("{REGISTRATION}/validatingadmissionpolicybindings"), &binding).await;
    assert_eq!(code, 201, "{made}");
    let map = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "m"}, "data": data});
    const MAPS: &str = "/api/v1/namespaces/a/configmaps";
    let (code, made) = cluster.post(&admin(), MAPS, &map(json!({"a": "1"}))).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(log.annotations(), json!({"p.example.com/size": "1"}));
    let (code, made) = cluster.post(&admin(), MAPS, &map(json!({"a": "1", "b": "2"}))).await;
    assert_eq!(code, 201, "{made}");
    let failure = r#"[{"message":"too much","policy":"p.example.com","binding":"b","expressionIndex":1,"validationActions":["Audit","Warn"]}]"#;
    assert_eq!(log.annotations(), json!({"p.example.com/size": "2", "validation.policy.admission.k8s.io/validation_failure": failure}));
}

#[tokio::test]
async fn the_audit_log_knows_of_pod_security() {
    let (cluster, log) = AuditLog::start("security", "Metadata").await;
    const PODS: &str = "/api/v1/namespaces/a/pods";
    let pod = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i"}]}});
    cluster.post(&admin(), "/api/v1/namespaces/a/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    let (code, made) = cluster.post(&admin(), PODS, &pod("p")).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(log.annotations(), json!({"pod-security.kubernetes.io/enforce-policy": "privileged:latest"}));
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/audit": "baseline", "pod-security.kubernetes.io/audit-version": "v1.30"}}});
    let (code, changed) = cluster.patch(&admin(), "application/merge-patch+json", "/api/v1/namespaces/a", &labels).await;
    assert_eq!(code, 200, "{changed}");
    let (code, made) = cluster.post(&admin(), PODS, &pod("q")).await;
    assert_eq!(code, 201, "{made}");
    let violation = "would violate PodSecurity \"baseline:v1.30\": host namespaces (hostNetwork=true)";
    assert_eq!(
        log.annotations(),
        json!({"pod-security.kubernetes.io/enforce-policy": "privileged:latest", "pod-security.kubernetes.io/audit-violations": violation})
    );
}
