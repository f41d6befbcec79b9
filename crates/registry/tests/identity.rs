//! Who somebody is, when others know it: issuers of tokens (OpenID Connect), a token webhook, and CAs that change.

mod common;
#[path = "../../apiserver/tests/common/tls.rs"]
mod tls;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Cluster, admin};
use http::Request;
use jiff::{SignedDuration, Timestamp};
use pki::jwt::Signer;
use registry::{Access, AuthenticationConfig, TokenWebhookConfig};
use serde_json::{Value, json};
use tokio::net::TcpListener;

fn signer() -> Signer {
    Signer::from_pem(&pki::jwt::new_key_pem().unwrap()).unwrap()
}

/// An issuer of tokens.
struct Issuer {
    identity: tls::Identity,
    url: String,
    /// The key set that it publishes.
    keys: Arc<Mutex<Value>>,
    /// The paths that have been asked for, with the tokens that were shown.
    asked: Arc<Mutex<Vec<(String, String)>>>,
    /// What else it serves.
    more: Arc<Mutex<Vec<(String, String)>>>,
}

impl Issuer {
    async fn start() -> Issuer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = Issuer::at(listener.local_addr().unwrap());
        issuer.serve(listener);
        issuer
    }

    /// One that does not answer yet.
    fn at(address: std::net::SocketAddr) -> Issuer {
        Issuer { identity: tls::Identity::of(&["127.0.0.1"]), url: format!("https://{address}"), keys: Arc::new(Mutex::new(json!({"keys": []}))), asked: Arc::default(), more: Arc::default() }
    }

    fn serve(&self, listener: TcpListener) {
        let (url, keys, asked, more) = (self.url.clone(), self.keys.clone(), self.asked.clone(), self.more.clone());
        self.identity.serve_on(listener, move |request: Request<Bytes>| {
            let path = request.uri().path().to_owned();
            let shown = request.headers().get("authorization").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
            asked.lock().unwrap().push((path.clone(), shown));
            let answer = match path.as_str() {
                "/.well-known/openid-configuration" | "/moved/document" => tls::json(&json!({"issuer": url, "jwks_uri": format!("{url}/keys")})),
                "/elsewhere" => {
                    let mut answer = tls::code(302);
                    answer.headers_mut().insert("location", "/moved/document".parse().unwrap());
                    answer
                }
                "/keys" => tls::json(&keys.lock().unwrap()),
                other => match more.lock().unwrap().iter().find(|(path, _)| path == other) {
                    Some((_, text)) => http::Response::new(http_body_util::Full::from(text.clone())),
                    None => tls::code(404),
                },
            };
            async move { answer }
        });
    }

    fn publish(&self, signers: &[&Signer]) {
        let keys: Vec<Value> = signers.iter().map(|s| s.verifier().jwks()["keys"][0].clone()).collect();
        *self.keys.lock().unwrap() = json!({"keys": keys});
    }

    fn fetched(&self, path: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|(p, _)| p == path).count()
    }

    /// A token for `kube` with these claims.
    fn token(&self, signer: &Signer, more: Value) -> String {
        let mut claims = json!({"iss": self.url, "aud": "kube", "exp": Timestamp::now().as_second() + 600, "sub": "jane"});
        for (key, value) in more.as_object().into_iter().flatten() {
            claims[key] = value.clone();
        }
        signer.sign(&claims).unwrap()
    }

    /// An entry of a configuration that takes its tokens.
    fn entry(&self, issuer: Value, rest: Value) -> Value {
        let mut entry = json!({"issuer": {"url": self.url, "certificateAuthority": self.identity.ca.cert_pem(), "audiences": ["kube"]}});
        for (key, value) in issuer.as_object().into_iter().flatten() {
            entry["issuer"][key] = value.clone();
        }
        for (key, value) in rest.as_object().into_iter().flatten() {
            entry[key] = value.clone();
        }
        entry
    }
}

fn named_by(claim: &str, prefix: &str) -> Value {
    json!({"claimMappings": {"username": {"claim": claim, "prefix": prefix}, "groups": {"claim": "groups", "prefix": prefix}}})
}

fn configuration(jwt: &[Value]) -> String {
    json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": jwt}).to_string()
}

async fn knowing(jwt: &[Value]) -> Cluster {
    let authentication = AuthenticationConfig::from_text(&configuration(jwt)).unwrap();
    Cluster::accessed(Default::default(), Access { authentication, ..Access::default() }).await
}

#[tokio::test]
async fn tokens_of_an_issuer_are_users() {
    let (issuer, first) = (Issuer::start().await, signer());
    issuer.publish(&[&first]);
    let mappings = json!({
        "claimMappings": {"username": {"expression": "'oidc:' + claims.sub"}, "groups": {"expression": "claims.roles.split(',')"}, "uid": {"claim": "id"},
            "extra": [{"key": "example.org/tenant", "valueExpression": "claims.?tenant.orValue('')"}]},
        "claimValidationRules": [{"claim": "hd", "requiredValue": "example.com"}, {"expression": "claims.exp - claims.nbf <= 86400", "message": "too long"}],
        "userValidationRules": [{"expression": "!user.username.startsWith('oidc:system:')", "message": "reserved"}],
    });
    let c = knowing(&[issuer.entry(json!({}), mappings)]).await;
    let now = Timestamp::now().as_second();
    let claims = |more: Value| {
        let mut claims = json!({"roles": "dev,ops", "id": "7", "tenant": "t", "hd": "example.com", "nbf": now - 10, "jti": "j1"});
        more.as_object().unwrap().iter().for_each(|(k, v)| claims[k] = v.clone());
        claims
    };
    let good = issuer.token(&first, claims(json!({})));
    let jane = json!({"username": "oidc:jane", "uid": "7", "groups": ["dev", "ops", "system:authenticated"],
        "extra": {"example.org/tenant": ["t"], "authentication.kubernetes.io/credential-id": ["JTI=j1"]}});
    assert_eq!(c.whoami(&good).await, (201, jane.clone()));
    assert_eq!((issuer.fetched("/.well-known/openid-configuration"), issuer.fetched("/keys")), (1, 1));
    assert_eq!(c.whoami(&good).await.0, 201);
    assert_eq!(issuer.fetched("/keys"), 1, "known keys are not fetched again");
    // what is wrong with a token is not for its holder to know, but for who reviews it
    let review_for = async |token: &str, audiences: Value| {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token, "audiences": audiences}});
        c.post(&admin(), "/apis/authentication.k8s.io/v1/tokenreviews", &review).await.1["status"].clone()
    };
    let review = async |token: &str| review_for(token, json!([])).await;
    assert_eq!(review_for(&good, json!(["other"])).await, json!({}), "it is for the API server alone");
    let status = review(&good).await;
    assert_eq!((&status["user"], &status["audiences"]), (&jane, &json!(["https://kubernetes.default.svc.cluster.local"])));
    for (more, why) in [
        (json!({"aud": "other"}), "oidc: verify token: oidc: expected audience \"kube\" got [\"other\"]"),
        (json!({"exp": now - 1}), "oidc: verify token: oidc: token is expired"),
        (json!({"hd": "example.org"}), "oidc: required claim hd value does not match. Got = example.org, want = example.com"),
        (json!({"exp": now + 90_000}), "oidc: error evaluating claim validation expression: validation expression 'claims.exp - claims.nbf <= 86400' failed: too long"),
        (json!({"sub": "system:x"}), "oidc: error evaluating user info validation rule: validation expression '!user.username.startsWith('oidc:system:')' failed: reserved"),
    ] {
        let token = issuer.token(&first, claims(more));
        assert_eq!(c.whoami(&token).await.0, 401);
        let said = review(&token).await;
        assert!(said["error"].as_str().unwrap_or_default().contains(why), "{said} is not: {why}");
    }
    // another issuer's tokens are nobody's, also when they are signed by a known key
    assert_eq!(c.whoami(&issuer.token(&first, claims(json!({"iss": "https://other.example.com"})))).await.0, 401);
    // another key: unknown, and then published
    let second = signer();
    let fresh = issuer.token(&second, claims(json!({})));
    assert_eq!(c.whoami(&fresh).await.0, 401);
    issuer.publish(&[&second]);
    assert_eq!(c.whoami(&fresh).await.0, 201, "keys are fetched again when one is not known");
    let late = issuer.token(&first, claims(json!({"jti": "j2"})));
    assert_eq!(c.whoami(&late).await.0, 401, "the old key is gone");
    let metrics = c.call(&admin(), "GET", "/metrics", None).await.1;
    assert!(metrics.as_str().unwrap().contains("apiserver_authentication_jwt_authenticator_jwks_fetch_last_timestamp_seconds{"), "{metrics}");
}

#[tokio::test]
async fn an_issuer_may_come_later_and_be_elsewhere() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = Issuer::at(listener.local_addr().unwrap());
    drop(listener);
    let (key, other) = (signer(), Issuer::start().await);
    issuer.publish(&[&key]);
    other.publish(&[&key]);
    // the second is found by a document at another place, which has moved
    let moved = other.entry(json!({"discoveryURL": format!("{}/elsewhere", other.url), "audiences": ["a", "kube"], "audienceMatchPolicy": "MatchAny"}), named_by("sub", "other:"));
    let c = knowing(&[issuer.entry(json!({}), named_by("sub", "one:")), moved]).await;
    let token = issuer.token(&key, json!({"groups": ["dev"]}));
    assert_eq!(c.whoami(&token).await.0, 401, "nobody is there who would know");
    let (code, user) = c.whoami(&other.token(&key, json!({"groups": "dev"}))).await;
    assert_eq!((code, user), (201, json!({"username": "other:jane", "groups": ["other:dev", "system:authenticated"]})));
    assert_eq!((other.fetched("/elsewhere"), other.fetched("/moved/document"), other.fetched("/.well-known/openid-configuration")), (1, 1, 0));
    issuer.serve(TcpListener::bind(issuer.url.trim_start_matches("https://")).await.unwrap());
    let started = Instant::now();
    while c.whoami(&token).await.0 != 201 {
        assert!(started.elapsed() < Duration::from_secs(20), "the issuer is there now");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(c.whoami(&token).await.1["username"], "one:jane");
}

#[tokio::test]
async fn groups_may_be_kept_elsewhere() {
    let (issuer, key) = (Issuer::start().await, signer());
    issuer.publish(&[&key]);
    let c = knowing(&[issuer.entry(json!({}), named_by("sub", ""))]).await;
    issuer.more.lock().unwrap().push(("/groups".into(), issuer.token(&key, json!({"groups": ["far"]}))));
    let pointing = |place: &str| json!({"_claim_names": {"groups": "src"}, "_claim_sources": {"src": {"endpoint": format!("{}{place}", issuer.url), "access_token": "secret"}}});
    let (code, user) = c.whoami(&issuer.token(&key, pointing("/groups"))).await;
    assert_eq!((code, &user["groups"]), (201, &json!(["far", "system:authenticated"])));
    let shown = issuer.asked.lock().unwrap().iter().find(|(path, _)| path == "/groups").cloned().unwrap().1;
    assert_eq!(shown, "Bearer secret");
    assert_eq!(c.whoami(&issuer.token(&key, pointing("/none"))).await.0, 401);
    issuer.more.lock().unwrap().push(("/forged".into(), issuer.token(&signer(), json!({"groups": ["system:masters"]}))));
    assert_eq!(c.whoami(&issuer.token(&key, pointing("/forged"))).await.0, 401);
}

#[tokio::test]
async fn a_configuration_changes_while_the_server_runs() {
    let (one, two, key) = (Issuer::start().await, Issuer::start().await, signer());
    one.publish(&[&key]);
    two.publish(&[&key]);
    let c = knowing(&[one.entry(json!({}), named_by("sub", "one:"))]).await;
    let (first, second) = (one.token(&key, json!({})), two.token(&key, json!({})));
    assert_eq!((c.whoami(&first).await.0, c.whoami(&second).await.0), (201, 401));
    c.live.reload_authentication(&configuration(&[two.entry(json!({}), named_by("sub", "two:"))])).await.unwrap();
    assert_eq!((c.whoami(&first).await.0, c.whoami(&second).await.1["username"].as_str().unwrap()), (401, "two:jane"));
    // what is wrong changes nothing
    let why = async |text: &str| c.live.reload_authentication(text).await.unwrap_err().to_string();
    assert_eq!(why("").await, "empty config data");
    assert!(why(&configuration(&[two.entry(json!({}), json!({}))])).await.starts_with("invalid authentication configuration: jwt[0].claimMappings.username: Required value"));
    let anonymous = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "anonymous": {"enabled": true}}).to_string();
    assert_eq!(why(&anonymous).await, "invalid authentication configuration: anonymous: Forbidden: changed from initial configuration file");
    let own = two.entry(json!({"url": "https://kubernetes.default.svc.cluster.local"}), named_by("sub", ""));
    assert!(why(&configuration(&[own])).await.contains("URL must not overlap with disallowed issuers: [https://kubernetes.default.svc.cluster.local]"));
    assert_eq!(c.whoami(&second).await.0, 201);
    let metrics = c.call(&admin(), "GET", "/metrics", None).await.1;
    let count = |status: &str| {
        let lines = metrics.as_str().unwrap().lines();
        lines.filter(|l| l.starts_with("apiserver_authentication_config_controller_automatic_reloads_total{") && l.contains(&format!("status=\"{status}\""))).map(|l| l.rsplit(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((count("success"), count("failure")), (vec!["1".to_owned()], vec!["4".to_owned()]));
}

/// A kubeconfig for a server.
fn kubeconfig(folder: &std::path::Path, url: &str, ca: &str) -> std::path::PathBuf {
    std::fs::write(folder.join("ca.crt"), ca).unwrap();
    let config = json!({"current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": url, "certificate-authority": "ca.crt"}}], "users": [{"name": "u", "user": {"token": "own"}}]});
    let path = folder.join("kubeconfig");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

#[tokio::test]
async fn a_webhook_knows_tokens() {
    let (identity, asked) = (tls::Identity::of(&["127.0.0.1"]), Arc::<Mutex<Vec<Value>>>::default());
    let seen = asked.clone();
    let address = identity
        .serve(move |request: Request<Bytes>| {
            assert_eq!((request.uri().to_string().as_str(), request.headers()["authorization"].to_str().unwrap()), ("/review?timeout=30s", "Bearer own"));
            let mut review: Value = serde_json::from_slice(request.body()).unwrap();
            let mut seen = seen.lock().unwrap();
            seen.push(review.clone());
            let token = review["spec"]["token"].as_str().unwrap().to_owned();
            let tries = seen.iter().filter(|r| r["spec"]["token"] == token.as_str()).count();
            review["status"] = match token.as_str() {
                "jane" | "slow" => json!({"authenticated": true, "user": {"username": "jane", "uid": "7", "groups": ["dev"], "extra": {"a.b/c": ["d"]}}}),
                "elsewhere" => json!({"authenticated": true, "audiences": ["other"], "user": {"username": "joe"}}),
                "odd" => json!({"authenticated": false, "error": "no such token"}),
                _ => json!({"authenticated": false}),
            };
            let answer = if token == "slow" && tries == 1 { tls::code(500) } else { tls::json(&review) };
            async move { answer }
        })
        .await;
    let folder = tempfile::tempdir().unwrap();
    let config_file = kubeconfig(folder.path(), &format!("https://{address}/review"), identity.ca.cert_pem());
    let access = |version: &str, cache_ttl| {
        let token_webhook = Some(TokenWebhookConfig { config_file: config_file.clone(), version: version.into(), cache_ttl });
        Access { token_webhook, ..Access::default() }
    };
    let c = Cluster::accessed(Default::default(), access("v1", Duration::from_secs(120))).await;
    let jane = json!({"username": "jane", "uid": "7", "groups": ["dev", "system:authenticated"], "extra": {"a.b/c": ["d"]}});
    assert_eq!(c.whoami("jane").await, (201, jane.clone()));
    assert_eq!(c.whoami("jane").await.0, 201);
    let count = |token: &str| asked.lock().unwrap().iter().filter(|r| r["spec"]["token"] == token).count();
    assert_eq!(count("jane"), 1, "the answer is remembered");
    let sent = asked.lock().unwrap()[0].clone();
    assert_eq!((&sent["kind"], &sent["apiVersion"], &sent["spec"]), (&json!("TokenReview"), &json!("authentication.k8s.io/v1"), &json!({"token": "jane"})));
    assert_eq!((c.whoami("joe").await.0, c.whoami("joe").await.0, count("joe")), (401, 401, 1), "so is that it is nobody's");
    assert_eq!((c.whoami("odd").await.0, c.whoami("odd").await.0, count("odd")), (401, 401, 2), "but not what went wrong");
    assert_eq!((c.whoami("slow").await.0, count("slow")), (201, 2), "what may pass is tried again");
    // whom a token is for is asked, too
    let review = async |token: &str, audiences: Value| {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token, "audiences": audiences}});
        c.post(&admin(), "/apis/authentication.k8s.io/v1/tokenreviews", &review).await.1["status"].clone()
    };
    assert_eq!(review("elsewhere", json!(["other", "more"])).await["audiences"], json!(["other"]));
    assert_eq!(review("jane", json!(["other"])).await, json!({}), "who says nothing means the API server");
    assert_eq!(review("jane", json!(["https://kubernetes.default.svc.cluster.local"])).await["user"], jane);
    assert_eq!(asked.lock().unwrap().last().unwrap()["spec"]["audiences"], json!(["https://kubernetes.default.svc.cluster.local"]));
    // without a memory, and in the older version
    let c = Cluster::accessed(Default::default(), access("v1beta1", Duration::ZERO)).await;
    let before = count("jane");
    assert_eq!((c.whoami("jane").await.0, c.whoami("jane").await.0, count("jane")), (201, 201, before + 2));
    assert_eq!(asked.lock().unwrap().last().unwrap()["apiVersion"], "authentication.k8s.io/v1beta1");
    // own tokens are not told to anybody
    let before = asked.lock().unwrap().len();
    let claims = json!({"iss": "https://kubernetes.default.svc.cluster.local", "aud": "x"});
    let own = c.signer.sign(&claims).unwrap();
    assert_eq!(c.bearer("abcdef.0123456789abcdef", "GET", "/version", None).await.0, 200);
    assert_eq!((c.whoami(&own).await.0, asked.lock().unwrap().len()), (401, before + 1), "but what is no good may be good elsewhere");
}

#[tokio::test]
async fn cas_change_while_the_server_runs() {
    let c = Cluster::start().await;
    let certificate = |ca: &pki::Ca| {
        let request = pki::CertRequest { cn: "bob".into(), orgs: vec!["dev".into()], usages: vec![pki::Usage::Client], lifetime: SignedDuration::from_hours(1), ..Default::default() };
        pki::pem_decode(&ca.issue(&request, Timestamp::now()).unwrap().cert_pem).remove(0).der
    };
    let next = pki::Ca::new("next", Timestamp::now(), SignedDuration::from_hours(1)).unwrap();
    let (old, new) = (certificate(&c.ca), certificate(&next));
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let code = async |cert: &Vec<u8>| c.from_network(vec![cert.clone()], "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", &review).await.0;
    assert_eq!((code(&old).await, code(&new).await), (201, 401));
    let both = format!("{}{}", c.ca.cert_pem(), next.cert_pem());
    c.live.replace_client_ca(&both).await.unwrap();
    assert_eq!((code(&old).await, code(&new).await), (201, 201));
    c.live.replace_client_ca(next.cert_pem()).await.unwrap();
    assert_eq!((code(&old).await, code(&new).await), (401, 201), "nobody is remembered whose CA is gone");
    let told = c.get(&admin(), "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication").await;
    assert_eq!(told["data"]["client-ca-file"], next.cert_pem());
    assert!(c.live.replace_client_ca("no certificate").await.is_err());
    assert_eq!(code(&new).await, 201);
}

#[tokio::test]
async fn nobody_may_be_anybody_at_some_paths() {
    let c = Cluster::accessed(apiserver::Config { anonymous_paths: vec!["/version".into()], ..Default::default() }, Access::default()).await;
    let code = async |path: &str| c.from_network(Vec::new(), "GET", path, &Value::Null).await.0;
    assert_eq!((code("/version").await, code("/healthz").await, code("/version/").await), (200, 401, 401));
}
