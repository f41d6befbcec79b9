//! A server with the registry installed, and a client that is a function call.
#![allow(dead_code)] // each test binary uses its part

pub mod kinds;

use std::sync::Arc;

use apiserver::builder::InProcess;
use apiserver::{Server, UserInfo};
use http::Request;
use http_body_util::{BodyExt, Full};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use store::Store;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A running server.
pub struct Cluster {
    pub server: Arc<Server>,
    pub ca: Arc<pki::Ca>,
    store: Arc<dyn Store>,
    /// Signs service account tokens.
    pub signer: Arc<pki::jwt::Signer>,
    pub live: registry::Live,
    _stop: DropGuard,
}

pub fn user(name: &str, groups: &[&str]) -> UserInfo {
    UserInfo::new(name, groups)
}

pub fn admin() -> UserInfo {
    user("admin", &["system:masters", "system:authenticated"])
}

impl Cluster {
    pub async fn start() -> Self {
        let ca = pki::Ca::new("kubernetes", Timestamp::now(), SignedDuration::from_hours(24)).unwrap();
        Self::over(store::memory::new(), Arc::new(ca)).await
    }

    /// A server that is set up otherwise.
    pub async fn configured(config: apiserver::Config) -> Self {
        let ca = pki::Ca::new("kubernetes", Timestamp::now(), SignedDuration::from_hours(24)).unwrap();
        Self::set_up(store::memory::new(), Arc::new(ca), config, Default::default()).await
    }

    /// A server that knows others, and lets others decide.
    pub async fn accessed(config: apiserver::Config, access: registry::Access) -> Self {
        let ca = pki::Ca::new("kubernetes", Timestamp::now(), SignedDuration::from_hours(24)).unwrap();
        Self::set_up(store::memory::new(), Arc::new(ca), config, access).await
    }

    /// The same, with more installed into it.
    pub async fn installed(config: apiserver::Config, more: impl FnOnce(&mut apiserver::Builder)) -> Self {
        let ca = pki::Ca::new("kubernetes", Timestamp::now(), SignedDuration::from_hours(24)).unwrap();
        Self::built(store::memory::new(), Arc::new(ca), config, Default::default(), "192.0.2.1", more).await
    }

    /// A server over a store that may already hold a cluster.
    pub async fn over(store: Arc<dyn Store>, ca: Arc<pki::Ca>) -> Self {
        Self::set_up(store, ca, Default::default(), Default::default()).await
    }

    /// The same, with the form in which it writes.
    pub async fn writing(store: Arc<dyn Store>, ca: Arc<pki::Ca>, form: apiserver::StorageMediaType) -> Self {
        Self::set_up(store, ca, apiserver::Config { storage_media_type: Some(form), ..Default::default() }, Default::default()).await
    }

    /// The same, set up otherwise.
    pub async fn with(store: Arc<dyn Store>, ca: Arc<pki::Ca>, config: apiserver::Config) -> Self {
        Self::set_up(store, ca, config, Default::default()).await
    }

    async fn set_up(store: Arc<dyn Store>, ca: Arc<pki::Ca>, config: apiserver::Config, access: registry::Access) -> Self {
        Self::built(store, ca, config, access, "192.0.2.1", |_| {}).await
    }

    /// One of several servers.
    pub async fn at(store: Arc<dyn Store>, ca: Arc<pki::Ca>, address: &str) -> Self {
        Self::built(store, ca, Default::default(), Default::default(), address, |_| {}).await
    }

    async fn built(store: Arc<dyn Store>, ca: Arc<pki::Ca>, config: apiserver::Config, access: registry::Access, address: &str, more: impl FnOnce(&mut apiserver::Builder)) -> Self {
        let mut builder = apiserver::Builder::new(config, store.clone()).unwrap();
        let signer = Arc::new(pki::jwt::Signer::from_pem(&pki::jwt::new_key_pem().unwrap()).unwrap());
        let config = registry::Config {
            join_token: Some("abcdef.0123456789abcdef".into()),
            access,
            ..registry::Config::new(ca.cert_pem(), signer.clone(), address.parse().unwrap())
        };
        let live = registry::install(&mut builder, config).unwrap();
        more(&mut builder);
        let server = builder.build().unwrap();
        let cancel = CancellationToken::new();
        let running = server.clone();
        let stop = cancel.clone();
        tokio::spawn(async move { running.run(stop).await });
        let started = std::time::Instant::now();
        server.ready().await;
        eprintln!("ready after {:?}", started.elapsed());
        Self { server, ca, signer, live, store, _stop: cancel.drop_guard() }
    }

    pub fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    /// The head and the text of a GET's answer.
    pub async fn answer(&self, user: &UserInfo, path: &str) -> (http::HeaderMap, String) {
        let mut request = Self::request("GET", path).body(Full::<bytes::Bytes>::default()).unwrap();
        request.extensions_mut().insert(InProcess(user.clone()));
        let (head, body) = self.server.handle(request).await.into_parts();
        let bytes = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        (head.headers, String::from_utf8_lossy(&bytes).into())
    }

    /// A request with a body, if there is one; the code, the answer, and the texts of its warnings.
    pub async fn warned(&self, user: &UserInfo, method: &str, path: &str, body: &Value) -> (u16, Value, Vec<String>) {
        self.warned_as(user, method, path, "application/json", body).await
    }

    /// The same with a body of another type.
    pub async fn warned_as(&self, user: &UserInfo, method: &str, path: &str, media: &str, body: &Value) -> (u16, Value, Vec<String>) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut request = Self::request(method, path).body(Full::from(body)).unwrap();
        request.headers_mut().insert("content-type", media.parse().unwrap());
        request.extensions_mut().insert(InProcess(user.clone()));
        let (head, body) = self.server.handle(request).await.into_parts();
        let warnings = head.headers.get_all("warning").iter();
        // 299 - "text"
        let text = |w: &http::HeaderValue| w.to_str().unwrap().splitn(3, ' ').nth(2).unwrap().strip_prefix('"').unwrap().strip_suffix('"').unwrap().replace("\\\"", "\"");
        let warnings = warnings.map(text).collect();
        let bytes = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let answer = serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into()));
        (head.status.as_u16(), answer, warnings)
    }

    /// Puts a value into the store, past the server.
    pub async fn overwrite(&self, key: &str, value: Vec<u8>) {
        self.store.txn(store::Txn::put(key, value)).await.unwrap();
    }

    async fn send(&self, mut request: Request<Full<bytes::Bytes>>, user: Option<&UserInfo>) -> (u16, Value) {
        if let Some(user) = user {
            request.extensions_mut().insert(InProcess(user.clone()));
        }
        let response = self.server.handle(request).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into())))
    }

    /// Who the server takes the holder of a token for: the code, and the user.
    pub async fn whoami(&self, token: &str) -> (u16, Value) {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let (code, answer) = self.bearer(token, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", Some(&review)).await;
        (code, answer.pointer("/status/userInfo").cloned().unwrap_or_default())
    }

    /// A request from the network without a token, with these certificates.
    pub async fn from_network(&self, certs: Vec<Vec<u8>>, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut request = Self::request(method, path).body(Full::from(body)).unwrap();
        request.extensions_mut().insert(apiserver::Peer { addr: None, certs: Arc::new(certs) });
        self.send(request, None).await
    }

    fn request(method: &str, path: &str) -> http::request::Builder {
        Request::builder().method(method).uri(path).header("content-type", "application/json").header("accept", "application/json")
    }

    pub async fn call(&self, user: &UserInfo, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let bytes = body.map(Value::to_string).unwrap_or_default();
        self.send(Self::request(method, path).body(Full::from(bytes)).unwrap(), Some(user)).await
    }

    pub async fn bearer(&self, token: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let bytes = body.map(Value::to_string).unwrap_or_default();
        let request = Self::request(method, path).header("authorization", format!("Bearer {token}"));
        self.send(request.body(Full::from(bytes)).unwrap(), None).await
    }

    /// A POST that takes the given media types.
    pub async fn post_accepting(&self, user: &UserInfo, accept: &str, path: &str, body: &Value) -> (u16, Value) {
        let mut request = Self::request("POST", path).body(Full::from(body.to_string())).unwrap();
        request.headers_mut().insert("accept", accept.parse().unwrap());
        self.send(request, Some(user)).await
    }

    /// A GET that takes the given media types.
    pub async fn get_as(&self, user: &UserInfo, accept: &str, path: &str) -> Value {
        let mut request = Self::request("GET", path).body(Full::default()).unwrap();
        request.headers_mut().insert("accept", accept.parse().unwrap());
        let (code, value) = self.send(request, Some(user)).await;
        assert_eq!(code, 200, "{path}: {value}");
        value
    }

    /// A PATCH of the given kind.
    pub async fn patch(&self, user: &UserInfo, kind: &str, path: &str, patch: &Value) -> (u16, Value) {
        self.patch_text(user, kind, path, patch.to_string()).await
    }

    /// A PATCH whose body is this text.
    pub async fn patch_text(&self, user: &UserInfo, kind: &str, path: &str, patch: String) -> (u16, Value) {
        let mut request = Self::request("PATCH", path).body(Full::from(patch)).unwrap();
        request.headers_mut().insert("content-type", kind.parse().unwrap());
        self.send(request, Some(user)).await
    }

    pub async fn post(&self, user: &UserInfo, path: &str, body: &Value) -> (u16, Value) {
        self.call(user, "POST", path, Some(body)).await
    }

    pub async fn get(&self, user: &UserInfo, path: &str) -> Value {
        let (code, value) = self.call(user, "GET", path, None).await;
        assert_eq!(code, 200, "{path}: {value}");
        value
    }

    /// A namespace with its default account, as the controllers would make it.
    pub async fn namespace(&self, name: &str) {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let (code, answer) = self.post(&admin(), "/api/v1/namespaces", &namespace).await;
        assert_eq!(code, 201, "{answer}");
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        let (code, answer) = self.post(&admin(), &format!("/api/v1/namespaces/{name}/serviceaccounts"), &account).await;
        assert_eq!(code, 201, "{answer}");
    }
}

/// An audit log of a server of its own; it goes with the test.
pub struct AuditLog(std::path::PathBuf);

impl AuditLog {
    /// A server that records at this level what is written in the namespace `a`.
    pub async fn start(name: &str, level: &str) -> (Cluster, AuditLog) {
        let folder = std::env::temp_dir().join(format!("knarr-annotations-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let rule = format!("{{level: {level}, namespaces: [a], verbs: [create, update]}}");
        std::fs::write(folder.join("policy"), format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{rule}]\n")).unwrap();
        let mut config = apiserver::Config::default();
        config.audit.policy_file = Some(folder.join("policy"));
        config.audit.log.path = folder.join("log").display().to_string();
        let cluster = Cluster::configured(config).await;
        cluster.namespace("a").await;
        (cluster, AuditLog(folder))
    }

    /// The annotations of the last event, but for those of authorization.
    pub fn annotations(&self) -> Value {
        let text = std::fs::read_to_string(self.0.join("log")).unwrap();
        let mut event: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        let annotations = event["annotations"].as_object_mut().unwrap();
        assert!(annotations.remove("authorization.k8s.io/decision").is_some() && annotations.remove("authorization.k8s.io/reason").is_some());
        event["annotations"].take()
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
