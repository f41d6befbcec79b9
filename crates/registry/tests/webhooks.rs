//! Admission webhooks through the whole handler chain, with hooks behind TLS.

mod common;
#[path = "../../apiserver/tests/common/tls.rs"]
mod tls;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine;
use bytes::Bytes;
use common::{AuditLog, Cluster, admin};
use http::Request;
use serde_json::{Value, json};

const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/a/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/a/deployments";

/// What a hook answers to a request: its `response`, without the uid.
type Answer = fn(&Value) -> Value;

/// Hooks behind one address.
struct Hooks {
    address: SocketAddr,
    bundle: String,
    /// The requests so far.
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Hooks {
    async fn start(answer: Answer) -> Hooks {
        let identity = tls::Identity::of(&["127.0.0.1"]);
        let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
        let seen = asked.clone();
        let reviewed = move |request: Request<Bytes>| {
            let review: Value = serde_json::from_slice(request.body()).unwrap();
            let mut response = answer(&review["request"]);
            response["uid"] = review["request"]["uid"].clone();
            seen.lock().unwrap().push(review["request"].clone());
            async move { tls::json(&json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response})) }
        };
        let address = identity.serve(reviewed).await;
        Hooks { address, bundle: base64::engine::general_purpose::STANDARD.encode(identity.ca.cert_pem()), asked }
    }

    /// A configuration with one hook, for these resources and with more fields.
    async fn register(&self, cluster: &Cluster, kind: &str, resources: &[&str], more: Value) {
        let mut hook = json!({"name": "h.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": format!("https://{}/", self.address), "caBundle": self.bundle},
            "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": resources}]});
        for (key, value) in more.as_object().into_iter().flatten() {
            hook[key] = value.clone();
        }
        let configuration = json!({"metadata": {"name": "c"}, "webhooks": [hook]});
        let (code, made) = cluster.post(&admin(), &format!("{REGISTRATION}/{kind}webhookconfigurations"), &configuration).await;
        assert_eq!(code, 201, "{made}");
    }

    fn asked(&self) -> Vec<Value> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    cluster.namespace("a").await;
    cluster
}

fn patch(operations: Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": base64::engine::general_purpose::STANDARD.encode(operations.to_string())})
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"seen": ""}})
}

/// Notes on a config map that the hook has seen it.
fn sign(request: &Value) -> Value {
    let seen = request["object"]["data"]["seen"].as_str().unwrap_or_default();
    patch(json!([{"op": "add", "path": "/data/seen", "value": format!("{seen}w")}]))
}

#[tokio::test]
async fn hooks_and_policies_take_turns() {
    let seen = async |policy: &str, hook: &str| {
        let (cluster, hooks) = (cluster().await, Hooks::start(sign).await);
        hooks.register(&cluster, "mutating", &["configmaps"], json!({"reinvocationPolicy": hook})).await;
        let expression = "Object{data: {'seen': object.data.seen + 'p'}}";
        let p = json!({"metadata": {"name": "p"}, "spec": {"reinvocationPolicy": policy,
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}],
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]}}});
        let (code, made) = cluster.post(&admin(), &format!("{REGISTRATION}/mutatingadmissionpolicies"), &p).await;
        assert_eq!(code, 201, "{made}");
        cluster.post(&admin(), &format!("{REGISTRATION}/mutatingadmissionpolicybindings"), &json!({"metadata": {"name": "p"}, "spec": {"policyName": "p"}})).await;
        let (code, made) = cluster.post(&admin(), MAPS, &config_map("m")).await;
        assert_eq!(code, 201, "{made}");
        made["data"]["seen"].as_str().unwrap().to_owned()
    };
    assert_eq!(seen("Never", "Never").await, "pw");
    assert_eq!(seen("IfNeeded", "Never").await, "pwp", "the policy looks again at what the hook made");
    assert_eq!(seen("IfNeeded", "IfNeeded").await, "pwpw", "and the hook at what that came to");
    assert_eq!(seen("Never", "IfNeeded").await, "pw", "nothing changed after the hook");
}

#[tokio::test]
async fn a_scale_is_shown_as_one() {
    let (cluster, hooks) = (cluster().await, Hooks::start(|_| patch(json!([{"op": "replace", "path": "/spec/replicas", "value": 4}]))).await);
    hooks.register(&cluster, "mutating", &["deployments/scale"], json!({})).await;
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "n"}},
        "template": {"metadata": {"labels": {"app": "n"}}, "spec": {"containers": [{"name": "n", "image": "n"}]}}}});
    let (code, made) = cluster.post(&admin(), DEPLOYMENTS, &deployment).await;
    assert_eq!((code, hooks.asked().len()), (201, 0), "{made}");
    let (code, scaled) = cluster.patch(&admin(), "application/merge-patch+json", &format!("{DEPLOYMENTS}/d/scale"), &json!({"spec": {"replicas": 3}})).await;
    assert_eq!((code, &scaled["spec"]["replicas"]), (200, &json!(4)), "{scaled}");
    assert_eq!(cluster.get(&admin(), &format!("{DEPLOYMENTS}/d")).await["spec"]["replicas"], 4);
    let asked = hooks.asked().remove(0);
    let scale = json!({"group": "autoscaling", "version": "v1", "kind": "Scale"});
    assert_eq!((&asked["kind"], &asked["requestKind"]), (&scale, &scale));
    assert_eq!(asked["resource"], json!({"group": "apps", "version": "v1", "resource": "deployments"}));
    assert_eq!((&asked["subResource"], &asked["operation"], &asked["name"], &asked["namespace"]), (&json!("scale"), &json!("UPDATE"), &json!("d"), &json!("a")));
    assert_eq!((&asked["object"]["kind"], &asked["object"]["spec"]["replicas"]), (&json!("Scale"), &json!(3)));
    assert_eq!((&asked["oldObject"]["apiVersion"], &asked["oldObject"]["spec"]["replicas"]), (&json!("autoscaling/v1"), &json!(1)));
}

#[tokio::test]
async fn hooks_refuse_and_are_passed_over() {
    let (cluster, hooks) = (cluster().await, Hooks::start(|_| json!({"allowed": false, "status": {"code": 418, "message": "tea"}, "warnings": ["hot"]})).await);
    let more = json!({"matchConditions": [{"name": "some", "expression": "request.operation == 'DELETE' || object.metadata.name == 'no'"}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "a"}}});
    hooks.register(&cluster, "validating", &["configmaps"], more).await;
    assert_eq!(cluster.post(&admin(), MAPS, &config_map("yes")).await.0, 201);
    assert_eq!(hooks.asked().len(), 0);
    let (code, refused) = cluster.post(&admin(), MAPS, &config_map("no")).await;
    assert_eq!((code, refused["message"].as_str().unwrap()), (418, "admission webhook \"h.example.com\" denied the request: tea"));
    let (code, _) = cluster.call(&admin(), "DELETE", &format!("{MAPS}/yes"), None).await;
    let asked = hooks.asked();
    assert_eq!((code, asked.len()), (418, 2));
    assert_eq!((&asked[1]["object"], &asked[1]["oldObject"]["metadata"]["name"]), (&Value::Null, &json!("yes")));
    cluster.namespace("b").await;
    assert_eq!(cluster.post(&admin(), "/api/v1/namespaces/b/configmaps", &config_map("no")).await.0, 201, "another namespace");
    // a hook that cannot be reached refuses, unless it may be passed over
    let gone = json!({"clientConfig": {"url": "https://127.0.0.1:1/"}});
    let path = format!("{REGISTRATION}/validatingwebhookconfigurations/c");
    let change = async |policy: &str| {
        let mut configuration = cluster.get(&admin(), &path).await;
        configuration["webhooks"][0]["clientConfig"] = gone["clientConfig"].clone();
        configuration["webhooks"][0]["failurePolicy"] = json!(policy);
        let (code, changed) = cluster.call(&admin(), "PUT", &path, Some(&configuration)).await;
        assert_eq!(code, 200, "{changed}");
        cluster.post(&admin(), MAPS, &config_map("no")).await
    };
    let (code, refused) = change("Fail").await;
    assert_eq!(code, 500);
    let why = "Internal error occurred: failed calling webhook \"h.example.com\": failed to call webhook: Post \"https://127.0.0.1:1/";
    assert!(refused["message"].as_str().unwrap().starts_with(why), "{refused}");
    assert_eq!(change("Ignore").await.0, 201);
}

#[tokio::test]
async fn the_audit_log_knows_of_hooks() {
    let (cluster, log) = AuditLog::start("hooks", "Request").await;
    let noted = |request: &Value| {
        let mut answer = if request["object"]["metadata"]["name"] == "same" { json!({"allowed": true}) } else { sign(request) };
        answer["auditAnnotations"] = json!({"saw": request["object"]["metadata"]["name"], "not a key": "x"});
        answer
    };
    let hooks = Hooks::start(noted).await;
    hooks.register(&cluster, "mutating", &["configmaps"], json!({"reinvocationPolicy": "IfNeeded"})).await;
    let (code, made) = cluster.post(&admin(), MAPS, &config_map("m")).await;
    assert_eq!(code, 201, "{made}");
    let seen = |n: usize| "w".repeat(n);
    let mutation = |mutated: bool| json!(format!("{{\"configuration\":\"c\",\"webhook\":\"h.example.com\",\"mutated\":{mutated}}}"));
    let patch = |n: usize| {
        json!(format!(
            "{{\"configuration\":\"c\",\"webhook\":\"h.example.com\",\"patch\":[{{\"op\":\"add\",\"path\":\"/data/seen\",\"value\":\"{}\"}}],\"patchType\":\"JSONPatch\"}}",
            seen(n)
        ))
    };
    assert_eq!(
        log.annotations(),
        json!({"h.example.com/saw": "m", "mutation.webhook.admission.k8s.io/round_0_index_0": mutation(true), "patch.webhook.admission.k8s.io/round_0_index_0": patch(1)})
    );
    assert_eq!(cluster.post(&admin(), MAPS, &config_map("same")).await.0, 201);
    assert_eq!(log.annotations(), json!({"h.example.com/saw": "same", "mutation.webhook.admission.k8s.io/round_0_index_0": mutation(false)}));
    // hooks that are passed over
    let path = |kind: &str| format!("{REGISTRATION}/{kind}webhookconfigurations/c");
    hooks.register(&cluster, "validating", &["configmaps"], json!({"failurePolicy": "Ignore"})).await;
    for kind in ["mutating", "validating"] {
        let mut configuration = cluster.get(&admin(), &path(kind)).await;
        configuration["webhooks"][0]["clientConfig"] = json!({"url": "https://127.0.0.1:1/"});
        configuration["webhooks"][0]["failurePolicy"] = "Ignore".into();
        let (code, changed) = cluster.call(&admin(), "PUT", &path(kind), Some(&configuration)).await;
        assert_eq!(code, 200, "{changed}");
    }
    assert_eq!(cluster.post(&admin(), MAPS, &config_map("open")).await.0, 201);
    let open = |kind: &str| format!("failed-open.{kind}.webhook.admission.k8s.io/round_0_index_0");
    assert_eq!(
        log.annotations(),
        json!({"mutation.webhook.admission.k8s.io/round_0_index_0": mutation(false), open("mutation"): "h.example.com", open("validating"): "h.example.com"})
    );
    // patches are no metadata
    let (cluster, log) = AuditLog::start("metadata", "Metadata").await;
    hooks.register(&cluster, "mutating", &["configmaps"], json!({})).await;
    assert_eq!(cluster.post(&admin(), MAPS, &config_map("m")).await.0, 201);
    assert_eq!(log.annotations(), json!({"h.example.com/saw": "m", "mutation.webhook.admission.k8s.io/round_0_index_0": mutation(true)}));
}
