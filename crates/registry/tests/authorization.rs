//! Rights that others decide about: authorization webhooks, their place among the authorizers, and what becomes of
//! requests when they are gone.

mod common;
#[path = "../../apiserver/tests/common/tls.rs"]
mod tls;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use common::{Cluster, admin, user};
use http::Request;
use registry::{Abac, Access, AuthorizationConfig, AuthorizationMode, WebhookSettings};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/a/configmaps";

/// Decides what a spec's status is.
type Decide = fn(&Value) -> Value;

/// An authorization webhook.
struct Webhook {
    folder: tempfile::TempDir,
    kubeconfig: PathBuf,
    /// The reviews that it was sent.
    asked: Arc<Mutex<Vec<Value>>>,
}

fn kubeconfig(folder: &Path, url: &str, ca: &str) -> PathBuf {
    std::fs::write(folder.join("ca.crt"), ca).unwrap();
    let config = json!({"current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": url, "certificate-authority": "ca.crt"}}], "users": [{"name": "u", "user": {}}]});
    let path = folder.join("kubeconfig");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

impl Webhook {
    async fn start(decide: Decide) -> Webhook {
        let (identity, asked) = (tls::Identity::of(&["127.0.0.1"]), Arc::<Mutex<Vec<Value>>>::default());
        let seen = asked.clone();
        let address = identity
            .serve(move |request: Request<Bytes>| {
                let mut review: Value = serde_json::from_slice(request.body()).unwrap();
                seen.lock().unwrap().push(review.clone());
                review["status"] = decide(&review["spec"]);
                let answer = match review["status"]["code"].as_u64() {
                    Some(code) => tls::code(code as u16),
                    None => tls::json(&review),
                };
                async move { answer }
            })
            .await;
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = kubeconfig(folder.path(), &format!("https://{address}/authorize"), identity.ca.cert_pem());
        Webhook { folder, kubeconfig, asked }
    }

    fn mode(&self, change: impl FnOnce(&mut WebhookSettings)) -> AuthorizationMode {
        let mut settings = WebhookSettings {
            name: "w".into(),
            config_file: self.kubeconfig.clone(),
            version: "v1".into(),
            timeout: Duration::from_secs(3),
            authorized_ttl: Duration::from_secs(300),
            unauthorized_ttl: Duration::from_secs(30),
            denies_on_failure: false,
            conditions: Vec::new(),
        };
        change(&mut settings);
        AuthorizationMode::Webhook(Box::new(settings))
    }

    /// Specs of the reviews since this was last asked.
    fn asked(&self) -> Vec<Value> {
        std::mem::take(&mut *self.asked.lock().unwrap()).into_iter().map(|mut r| r["spec"].take()).collect()
    }
}

async fn deciding(authorization: Vec<AuthorizationMode>) -> Cluster {
    let c = Cluster::accessed(Default::default(), Access { authorization, ..Access::default() }).await;
    c.namespace("a").await;
    c
}

/// Jane may do everything, and Eve nothing, whatever others say.
fn jane_not_eve(spec: &Value) -> Value {
    match spec["user"].as_str().unwrap_or_default() {
        "jane" => json!({"allowed": true, "reason": "it is Jane"}),
        "eve" => json!({"allowed": false, "denied": true, "reason": "not Eve"}),
        "ghost" => json!({"code": 403}),
        _ => json!({"allowed": false, "reason": "who is that"}),
    }
}

fn someone(name: &str) -> apiserver::UserInfo {
    user(name, &["system:authenticated"])
}

fn message(answer: &Value) -> &str {
    answer["message"].as_str().or(answer.as_str()).unwrap_or_default()
}

#[tokio::test]
async fn a_webhook_decides_in_its_place() {
    let hook = Webhook::start(jane_not_eve).await;
    let c = deciding(vec![AuthorizationMode::Rbac, hook.mode(|_| {})]).await;
    assert_eq!(hook.asked().len(), 0, "masters are let through");
    let call = async |name: &str| c.call(&someone(name), "GET", MAPS, None).await;
    assert_eq!(call("jane").await.0, 200);
    assert_eq!(
        hook.asked(),
        [json!({"user": "jane", "groups": ["system:authenticated"], "resourceAttributes": {"namespace": "a", "verb": "list", "version": "v1", "resource": "configmaps"}})]
    );
    assert_eq!((call("jane").await.0, hook.asked().len()), (200, 0), "the answer is remembered");
    let (code, refused) = call("joe").await;
    let why = "configmaps is forbidden: User \"joe\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"a\": who is that";
    assert_eq!((code, message(&refused)), (403, why));
    assert_eq!((call("joe").await.0, hook.asked().len()), (403, 1), "also that something is not allowed");
    // RBAC knows of discovery, and nobody else is asked
    assert_eq!((c.call(&someone("joe"), "GET", "/apis", None).await.0, hook.asked().len()), (200, 0));
    assert_eq!(c.call(&someone("eve"), "GET", "/apis", None).await.0, 200);
    // before RBAC it denies what that would allow
    let c = deciding(vec![hook.mode(|_| {}), AuthorizationMode::Rbac]).await;
    let (code, refused) = c.call(&someone("eve"), "GET", "/apis", None).await;
    assert_eq!((code, message(&refused)), (403, "forbidden: User \"eve\" cannot get path \"/apis\": not Eve"));
    assert_eq!(c.call(&someone("joe"), "GET", "/apis", None).await.0, 200);
    let path = hook.asked().remove(0);
    assert_eq!((&path["nonResourceAttributes"], path.get("resourceAttributes")), (&json!({"path": "/apis", "verb": "get"}), None));
    // reviews of access tell of it
    let review = async |who: &str| {
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": who, "resourceAttributes": {"verb": "get", "resource": "pods"}}});
        c.post(&admin(), "/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await.1["status"].clone()
    };
    assert_eq!(review("jane").await, json!({"allowed": true, "reason": "it is Jane"}));
    assert_eq!(review("eve").await, json!({"allowed": false, "denied": true, "reason": "not Eve"}));
    assert_eq!(review("joe").await, json!({"allowed": false, "reason": "who is that"}));
    let failed = review("ghost").await;
    assert_eq!((&failed["allowed"], failed.get("denied"), failed["evaluationError"].as_str().unwrap().contains("status code 403")), (&json!(false), None, true), "{failed}");
    let rules = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "a"}});
    let rules = c.post(&someone("jane"), "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", &rules).await.1["status"].clone();
    assert_eq!((&rules["incomplete"], &rules["evaluationError"]), (&json!(true), &json!("webhook authorizer does not support user rule resolution")));
    assert!(!rules["resourceRules"].as_array().unwrap().is_empty(), "what RBAC knows is there");
    let metrics = c.call(&admin(), "GET", "/metrics", None).await.1;
    let metrics = metrics.as_str().unwrap();
    for line in ["apiserver_authorization_decisions_total{decision=\"denied\",name=\"w\",type=\"Webhook\"} 2", "apiserver_authorization_webhook_evaluations_total{name=\"w\",result=\"error\"} 1"] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

#[tokio::test]
async fn rights_within_a_write_are_asked_for_too() {
    // Ann may write roles, and hooks' conditions ask about her; she holds no rights that RBAC knows.
    fn ann(spec: &Value) -> Value {
        let (verb, resource) = (spec["resourceAttributes"]["verb"].as_str().unwrap_or_default(), spec["resourceAttributes"]["resource"].as_str().unwrap_or_default());
        let writes = matches!(verb, "create" | "update" | "get") && matches!(resource, "roles" | "configmaps");
        json!({"allowed": spec["user"] == "ann" && (writes || verb == "escalate" || verb == "special")})
    }
    let hook = Webhook::start(ann).await;
    let forgetful = |settings: &mut WebhookSettings| (settings.authorized_ttl, settings.unauthorized_ttl) = (Duration::ZERO, Duration::ZERO);
    let c = deciding(vec![AuthorizationMode::Rbac, hook.mode(forgetful)]).await;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]});
    let (code, made) = c.post(&someone("ann"), "/apis/rbac.authorization.k8s.io/v1/namespaces/a/roles", &role).await;
    assert_eq!(code, 201, "{made}");
    let verbs: Vec<Value> = hook.asked().iter().map(|s| s["resourceAttributes"]["verb"].clone()).collect();
    assert_eq!(verbs, ["create", "escalate"]);
    // a policy whose expression asks
    let policy = |verb: &str| {
        json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]},
            "validations": [{"expression": format!("authorizer.group('').resource('configmaps').namespace('a').check('{verb}').allowed()"), "message": "not special"}]}})
    };
    let registration = "/apis/admissionregistration.k8s.io/v1";
    let (code, made) = c.post(&admin(), &format!("{registration}/validatingadmissionpolicies"), &policy("special")).await;
    assert_eq!(code, 201, "{made}");
    c.post(&admin(), &format!("{registration}/validatingadmissionpolicybindings"), &json!({"metadata": {"name": "p"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}})).await;
    let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    let (code, made) = c.post(&someone("ann"), MAPS, &map("m")).await;
    assert_eq!(code, 201, "{made}");
    let verbs: Vec<Value> = hook.asked().iter().map(|s| s["resourceAttributes"]["verb"].clone()).collect();
    assert_eq!(verbs, ["create", "special"]);
    c.call(&admin(), "DELETE", &format!("{registration}/validatingadmissionpolicies/p"), None).await;
    c.post(&admin(), &format!("{registration}/validatingadmissionpolicies"), &policy("impossible")).await;
    let (code, refused) = c.post(&someone("ann"), MAPS, &map("n")).await;
    assert!(code == 422 && message(&refused).ends_with("denied request: not special"), "{refused}");
}

#[tokio::test]
async fn conditions_say_who_is_asked_about() {
    let hook = Webhook::start(jane_not_eve).await;
    let conditions = ["has(request.resourceAttributes) && request.resourceAttributes.namespace == 'a'", "!('system:serviceaccounts' in request.groups)"].map(str::to_owned).to_vec();
    let c = deciding(vec![hook.mode(|s| s.conditions = conditions), AuthorizationMode::Rbac]).await;
    assert_eq!((c.call(&someone("jane"), "GET", MAPS, None).await.0, hook.asked().len()), (200, 1));
    assert_eq!((c.call(&someone("jane"), "GET", "/api/v1/namespaces/b/configmaps", None).await.0, hook.asked().len()), (403, 0));
    assert_eq!((c.call(&someone("eve"), "GET", "/apis", None).await.0, hook.asked().len()), (200, 0));
    let account = user("jane", &["system:serviceaccounts", "system:authenticated"]);
    assert_eq!((c.call(&account, "GET", MAPS, None).await.0, hook.asked().len()), (403, 0));
    // one that cannot be judged is a failure, unless another one does not hold
    let odd = vec!["request.resourceAttributes.namespace == 'a'".to_owned(), "request.user != 'joe'".to_owned()];
    let settle = |deny: bool| {
        let odd = odd.clone();
        move |s: &mut WebhookSettings| (s.conditions, s.denies_on_failure) = (odd, deny)
    };
    let c = deciding(vec![hook.mode(settle(true)), AuthorizationMode::Rbac]).await;
    let (code, failed) = c.call(&someone("jane"), "GET", "/apis", None).await;
    assert!(code == 500 && message(&failed).starts_with("Internal Server Error: \"/apis\": cel evaluation error: expression 'request.resourceAttributes.namespace == 'a'' resulted in error: no such key"), "{failed}");
    assert_eq!(c.call(&someone("joe"), "GET", "/apis", None).await.0, 200);
    let c = deciding(vec![hook.mode(settle(false)), AuthorizationMode::Rbac]).await;
    assert_eq!(c.call(&someone("jane"), "GET", "/apis", None).await.0, 200, "the next one is asked");
}

#[tokio::test]
async fn what_a_webhook_that_is_gone_means() {
    let hook = Webhook::start(|_| json!({"allowed": true})).await;
    let gone = hook.folder.path().join("gone");
    std::fs::create_dir(&gone).unwrap();
    let nowhere = kubeconfig(&gone, "https://127.0.0.1:1/", tls::Identity::of(&["x"]).ca.cert_pem());
    let at = |deny: bool| {
        let nowhere = nowhere.clone();
        hook.mode(move |s| (s.config_file, s.denies_on_failure) = (nowhere, deny))
    };
    let c = deciding(vec![at(false), AuthorizationMode::Rbac]).await;
    assert_eq!(c.call(&someone("jane"), "GET", "/apis", None).await.0, 200, "RBAC allows it");
    let (code, failed) = c.call(&someone("jane"), "GET", MAPS, None).await;
    assert!(code == 500 && message(&failed).contains("Post \"https://127.0.0.1:1/\": dial tcp 127.0.0.1:1: connect: connection refused"), "{code} {failed}");
    let metrics = c.call(&admin(), "GET", "/metrics", None).await.1;
    assert!(metrics.as_str().unwrap().contains("apiserver_authorization_webhook_evaluations_fail_open_total{name=\"w\",result=\"error\"} 2"), "{metrics}");
    let c = deciding(vec![at(true), AuthorizationMode::Rbac]).await;
    assert_eq!(c.call(&someone("jane"), "GET", "/apis", None).await.0, 500, "nobody else is asked");
    assert_eq!(c.call(&admin(), "GET", MAPS, None).await.0, 200);
    // who is not in time
    let slow = Webhook::start(|_| json!({"code": 504})).await;
    let c = deciding(vec![slow.mode(|s| s.denies_on_failure = true)]).await;
    let (code, _) = c.call(&someone("jane"), "GET", MAPS, None).await;
    assert_eq!((code, slow.asked().len()), (500, 5), "it is tried again, for some time");
}

#[tokio::test]
async fn authorizers_change_while_the_server_runs() {
    let hook = Webhook::start(jane_not_eve).await;
    let c = deciding(vec![AuthorizationMode::Node, AuthorizationMode::Rbac]).await;
    let call = async |name: &str| c.call(&someone(name), "GET", MAPS, None).await.0;
    assert_eq!(call("jane").await, 403);
    let file = |authorizers: Value| json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration", "authorizers": authorizers}).to_string();
    let (node, rbac) = (json!({"type": "Node", "name": "node"}), json!({"type": "RBAC", "name": "rbac"}));
    let webhook = json!({"type": "Webhook", "name": "w", "webhook": {"timeout": "3s", "subjectAccessReviewVersion": "v1beta1", "failurePolicy": "Deny",
        "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": hook.kubeconfig}}});
    c.live.reload_authorization(&file(json!([webhook, node, rbac]))).unwrap();
    assert_eq!((call("jane").await, call("joe").await), (200, 403));
    let sent = hook.asked.lock().unwrap()[0].clone();
    assert_eq!((&sent["apiVersion"], &sent["spec"]["group"], sent["spec"].get("groups")), (&json!("authorization.k8s.io/v1beta1"), &json!(["system:authenticated"]), None));
    let why = |authorizers: Value| c.live.reload_authorization(&file(authorizers)).unwrap_err().to_string();
    assert_eq!(why(json!([webhook, rbac])), "missing required types: [Node]");
    assert!(why(json!([])).starts_with("authorizers: Required value"));
    assert_eq!(call("jane").await, 200, "what is wrong changes nothing");
    c.live.reload_authorization(&file(json!([node, rbac]))).unwrap();
    assert_eq!(call("jane").await, 403);
    assert!(AuthorizationConfig::from_text("x", &[]).is_err());
}

#[tokio::test]
async fn policies_of_a_file_decide() {
    let line = |spec: Value| json!({"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": spec}).to_string();
    let file = [line(json!({"user": "ann", "namespace": "a", "resource": "configmaps"})), line(json!({"group": "system:authenticated", "nonResourcePath": "/version", "readonly": true}))].join("\n");
    let c = deciding(vec![AuthorizationMode::Abac(Arc::new(Abac::from_text(&file).unwrap())), AuthorizationMode::Rbac]).await;
    let body = json!({"metadata": {"name": "m"}});
    assert_eq!(c.post(&someone("ann"), MAPS, &body).await.0, 201);
    assert_eq!(c.call(&someone("ann"), "GET", "/version", None).await.0, 200);
    let (code, refused) = c.call(&someone("joe"), "GET", MAPS, None).await;
    let why = "configmaps is forbidden: User \"joe\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"a\": No policy matched.";
    assert_eq!((code, message(&refused)), (403, why));
    assert_eq!(c.call(&someone("joe"), "GET", "/apis", None).await.0, 200, "RBAC is asked too");
    let rules = c.post(&someone("ann"), "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", &json!({"spec": {"namespace": "a"}})).await.1;
    let of_file = json!({"verbs": ["*"], "apiGroups": [""], "resources": ["configmaps"]});
    assert!(rules["status"]["resourceRules"].as_array().unwrap().contains(&of_file), "{rules}");
}
