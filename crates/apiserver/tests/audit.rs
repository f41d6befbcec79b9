//! The audit log of a server: whole events, and backends that fail.
mod common;
#[path = "common/tls.rs"]
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apiserver::audit;
use apiserver::authz::{AuthzAttributes, Rules};
use apiserver::types::Status;
use apiserver::{
    Admission, Attributes, Authenticator, AuthnRequest, Authorizer, Body, Builder, Concurrency, Config, ConnectRequest, Ctx, Decision, InProcess, Location, Locator, Operation, Peer, Server,
    Tls, UserInfo, body,
};
use async_trait::async_trait;
use bytes::Bytes;
use common::Reply;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- {level: None, nonResourceURLs: [/metrics]}
- {level: Metadata, resources: [{group: '', resources: [secrets]}]}
- {level: Request, verbs: [patch]}
- {level: RequestResponse, resources: [{group: '', resources: [configmaps]}], omitManagedFields: true}
- {level: RequestResponse, omitStages: [RequestReceived]}
";

/// Reading is for everybody, writing for the group `writers`.
struct ReadOnly;

impl Authorizer for ReadOnly {
    fn authorize(&self, a: &AuthzAttributes) -> (Decision, String) {
        let reads = matches!(a.verb.as_str(), "get" | "list" | "watch");
        if reads || a.user.in_group("writers") { (Decision::Allow, "as always".into()) } else { (Decision::NoOpinion, "writers only".into()) }
    }

    fn rules_for(&self, _: &UserInfo, _: &str) -> Rules {
        Rules::default()
    }
}

/// What annotations about time begin with.
const LATENCY: &str = "apiserver.latency.k8s.io/";

/// No token is known.
struct NoTokens;

#[async_trait]
impl Authenticator for NoTokens {
    async fn authenticate(&self, request: &AuthnRequest<'_>) -> Result<Option<UserInfo>, String> {
        request.bearer.map_or(Ok(None), |_| Err("unknown".into()))
    }
}

/// Notes, panics and waits, as the name of the object wants it.
struct Moody(Arc<Notify>);

#[async_trait]
impl Admission for Moody {
    fn name(&self) -> &'static str {
        "Moody"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        match object["metadata"]["name"].as_str() {
            Some("noted") => {
                attributes.ctx.audit("moody.example.com/said", || "yes".into());
                attributes.ctx.audit("moody.example.com/said", || "no".into());
                attributes.ctx.audit_at(audit::Level::RequestResponse, "moody.example.com/more", || "much".into());
                attributes.ctx.audit("no-prefix", || "no".into());
            }
            Some("boom") => panic!("no {}", 1),
            Some("late") => self.0.notified().await,
            Some("slow") => tokio::time::sleep(Duration::from_millis(600)).await,
            _ => {}
        }
        Ok(())
    }
}

struct At(std::net::SocketAddr);

#[async_trait]
impl Locator for At {
    async fn locate(&self, _: &Ctx, request: &ConnectRequest) -> Result<Location, Status> {
        Ok(Location {
            tls: Tls::None,
            host: self.0.ip().to_string(),
            port: self.0.port(),
            path_and_query: format!("/{}", request.query),
            rewrite: false,
            alternatives: Vec::new(),
        })
    }
}

/// A server that answers every request with what `answer` makes of it.
async fn serve<F>(answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static) -> std::net::SocketAddr
where
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = hyper::service::service_fn(move |request| {
                let answered = answer(request);
                async move { Ok::<_, std::convert::Infallible>(answered.await) }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service).with_upgrades());
        }
    });
    address
}

struct Audited {
    server: Arc<Server>,
    folder: PathBuf,
    /// How much of the log has been read.
    read: Mutex<usize>,
    go_on: Arc<Notify>,
    cancel: CancellationToken,
    running: Option<JoinHandle<()>>,
}

impl Drop for Audited {
    fn drop(&mut self) {
        self.cancel.cancel();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn bob() -> UserInfo {
    UserInfo::new("bob", &["writers", "system:authenticated"])
}

/// A server with a policy; `settle` sets up the backends, in a folder of its own.
async fn start(name: &str, settle: impl FnOnce(&mut audit::Config, &std::path::Path)) -> Audited {
    let folder = std::env::temp_dir().join(format!("knarr-audited-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("policy.yaml"), POLICY).unwrap();
    let mut config = audit::Config { policy_file: Some(folder.join("policy.yaml")), ..audit::Config::default() };
    settle(&mut config, &folder);
    // priority and fairness makes objects of its own, which would be recorded too
    let concurrency = Concurrency { fair: false, ..Concurrency::default() };
    let mut builder = Builder::new(Config { audit: config, concurrency, ..Config::default() }, store::memory::new()).unwrap();
    let go_on = Arc::new(Notify::new());
    let backend = serve(|request: Request<Incoming>| async move {
        let mut response = Response::new(Full::from("a line\n"));
        if request.headers().contains_key(header::UPGRADE) {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            *response.body_mut() = Full::default();
            response.headers_mut().insert(header::CONNECTION, "Upgrade".parse().unwrap());
            response.headers_mut().insert(header::UPGRADE, "SPDY/3.1".parse().unwrap());
        }
        response
    })
    .await;
    builder.parts.authorizer(Arc::new(ReadOnly));
    builder.parts.authenticator(Arc::new(NoTokens));
    builder.parts.admission(Arc::new(Moody(go_on.clone())));
    for subresource in ["exec", "log"] {
        builder.parts.locator("", "pods", subresource, Arc::new(At(backend)));
    }
    let server = builder.build().unwrap();
    let cancel = CancellationToken::new();
    let (run, stop) = (server.clone(), cancel.clone());
    let running = tokio::spawn(async move { run.run(stop).await });
    server.ready().await;
    Audited { server, folder, read: Mutex::new(0), go_on, cancel, running: Some(running) }
}

fn into_file(config: &mut audit::Config, folder: &std::path::Path) {
    config.log.path = folder.join("audit.log").display().to_string();
}

impl Audited {
    async fn raw(&self, user: Option<UserInfo>, method: &str, uri: &str, headers: &[(&str, &str)], object: Value) -> Response<Body> {
        let body = if object.is_null() { Vec::new() } else { object.to_string().into_bytes() };
        let mut request = Request::builder().method(method).uri(uri).header("user-agent", "tests/1");
        for (key, value) in headers {
            request = request.header(*key, *value);
        }
        let mut request = request.body(body::full(body)).unwrap();
        request.extensions_mut().insert(Peer { addr: Some("192.0.2.7:4711".parse().unwrap()), ..Peer::default() });
        if let Some(user) = user {
            request.extensions_mut().insert(InProcess(user));
        }
        self.server.handle(request).await
    }

    async fn send(&self, user: Option<UserInfo>, method: &str, uri: &str, headers: &[(&str, &str)], object: Value) -> Reply {
        let (parts, body) = self.raw(user, method, uri, headers, object).await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes().to_vec();
        Reply { code: parts.status.as_u16(), headers: parts.headers, bytes }
    }

    async fn bob(&self, method: &str, uri: &str, object: Value) -> Reply {
        self.send(Some(bob()), method, uri, &[("content-type", "application/json")], object).await
    }

    /// The next events of the log, which has to come to that many in ten seconds and not to more. Times and ids are
    /// looked at here, and taken out, and so is what is said of requests that took long, which any may.
    async fn events(&self, count: usize) -> Vec<Value> {
        let started = Instant::now();
        let lines = loop {
            let text = std::fs::read_to_string(self.folder.join("audit.log")).unwrap_or_default();
            let lines: Vec<String> = text.lines().skip(*self.read.lock()).map(str::to_string).collect();
            if lines.len() >= count && text.ends_with('\n') || count == 0 {
                break lines;
            }
            assert!(started.elapsed() < Duration::from_secs(10), "{count} events in time: {lines:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        *self.read.lock() += lines.len();
        let mut events: Vec<Value> = lines.iter().map(|l| serde_json::from_str(l).expect("an event")).collect();
        assert_eq!(events.len(), count, "{events:?}");
        let mut ids = std::collections::BTreeSet::new();
        for event in &mut events {
            let map = event.as_object_mut().unwrap();
            assert_eq!((map.remove("kind"), map.remove("apiVersion")), (Some("Event".into()), Some("audit.k8s.io/v1".into())));
            ids.insert(map.remove("auditID").unwrap().as_str().unwrap().to_string());
            let [received, at] = ["requestReceivedTimestamp", "stageTimestamp"].map(|key| {
                let text = map.remove(key).unwrap().as_str().unwrap().to_string();
                assert!(text.len() == 27 && text.ends_with('Z'), "{text}");
                text
            });
            if let Some(annotations) = map.get_mut("annotations").and_then(Value::as_object_mut) {
                annotations.retain(|key, _| !key.starts_with(LATENCY));
                if annotations.is_empty() {
                    map.remove("annotations");
                }
            }
            assert!(received <= at && (map["stage"] != "RequestReceived" || received == at), "{received} {at}");
        }
        assert!(ids.len() <= 1, "all of one request");
        events
    }

    /// The value of a metric; 0 where it is not shown.
    async fn metric(&self, name: &str) -> u64 {
        let text = self.send(Some(bob()), "GET", "/metrics", &[], Value::Null).await.text();
        text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).unwrap_or(0)
    }
}

/// An event of bob's, but for its id and times.
fn event(level: &str, stage: &str, verb: &str, uri: &str, more: Value) -> Value {
    let mut event = json!({"level": level, "stage": stage, "verb": verb, "requestURI": uri, "user": {"username": "bob", "groups": ["writers", "system:authenticated"]},
        "sourceIPs": ["192.0.2.7"], "userAgent": "tests/1"});
    for (key, value) in more.as_object().unwrap() {
        match value {
            Value::Null => event.as_object_mut().unwrap().remove(key),
            value => event.as_object_mut().unwrap().insert(key.clone(), value.clone()),
        };
    }
    event
}

fn allowed() -> Value {
    json!({"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": "as always"})
}

fn code(code: u16) -> Value {
    json!({"metadata": {}, "code": code})
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

#[tokio::test]
async fn a_create_and_a_get() {
    let a = start("create", into_file).await;
    let made = a.bob("POST", MAPS, map("noted")).await.ok();
    let at = json!({"resource": "configmaps", "namespace": "default", "apiVersion": "v1"});
    let mut named = at.clone();
    named["name"] = "noted".into();
    let mut answered = made.clone();
    answered["metadata"].as_object_mut().unwrap().remove("managedFields").expect("fields to leave out");
    let mut notes = allowed();
    notes["moody.example.com/said"] = "yes".into();
    notes["moody.example.com/more"] = "much".into();
    assert_eq!(
        a.events(2).await,
        [
            event("RequestResponse", "RequestReceived", "create", MAPS, json!({"objectRef": at})),
            event(
                "RequestResponse",
                "ResponseComplete",
                "create",
                MAPS,
                json!({"objectRef": named, "responseStatus": code(201), "requestObject": map("noted"), "responseObject": answered, "annotations": notes})
            ),
        ]
    );
    let uri = format!("{MAPS}/noted?pretty=1");
    assert_eq!(a.bob("GET", &uri, Value::Null).await.ok(), made);
    assert_eq!(
        a.events(2).await,
        [
            event("RequestResponse", "RequestReceived", "get", &uri, json!({"objectRef": named})),
            event("RequestResponse", "ResponseComplete", "get", &uri, json!({"objectRef": named, "responseStatus": code(200), "responseObject": answered, "annotations": allowed()})),
        ]
    );
    // in other forms it is recorded as JSON
    for accept in ["application/yaml", "application/vnd.kubernetes.protobuf"] {
        assert_eq!(a.send(Some(bob()), "GET", &format!("{MAPS}/noted"), &[("accept", accept)], Value::Null).await.code, 200);
        let shown = &a.events(2).await[1]["responseObject"];
        assert_eq!((&shown["data"], &shown["metadata"]["uid"], &shown["kind"]), (&made["data"], &made["metadata"]["uid"], &json!("ConfigMap")), "{accept}");
    }
    // lists are recorded as they are answered
    a.bob("GET", MAPS, Value::Null).await.ok();
    let list = &a.events(2).await[1]["responseObject"];
    assert_eq!((&list["kind"], &list["items"][0]["data"], list["items"][0]["metadata"].get("managedFields")), (&json!("ConfigMapList"), &made["data"], None));
}

#[tokio::test]
async fn levels_decide_what_is_recorded() {
    let a = start("levels", into_file).await;
    const SECRETS: &str = "/api/v1/namespaces/default/secrets";
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "uid": "theirs"}, "stringData": {"k": "hidden"}});
    a.bob("POST", SECRETS, secret).await.ok();
    a.bob("GET", SECRETS, Value::Null).await.ok();
    let text = std::fs::read_to_string(a.folder.join("audit.log")).unwrap();
    assert!(!text.contains("hidden") && !text.contains("aGlkZGVu") && !text.contains("Object\""), "{text}");
    *a.read.lock() = 2;
    let mut made = event(
        "Metadata",
        "RequestReceived",
        "list",
        SECRETS,
        json!({"objectRef": {"resource": "secrets", "namespace": "default", "apiVersion": "v1"}}),
    );
    let events = a.events(2).await;
    assert_eq!(events[0], made);
    made["stage"] = "ResponseComplete".into();
    made["responseStatus"] = code(200);
    made["annotations"] = allowed();
    assert_eq!(events[1], made);
    // patches as they come, of what comes of them no more than a code
    a.bob("POST", MAPS, map("m")).await.ok();
    a.events(2).await;
    a.send(Some(bob()), "PATCH", &format!("{MAPS}/m"), &[("content-type", "application/merge-patch+json")], json!({"data": {"k": "w"}})).await.ok();
    let patched = a.events(2).await.remove(1);
    let uri = format!("{MAPS}/m");
    let about = json!({"resource": "configmaps", "namespace": "default", "name": "m", "apiVersion": "v1"});
    let expected = json!({"objectRef": about, "responseStatus": code(200), "requestObject": {"data": {"k": "w"}}, "annotations": allowed()});
    assert_eq!(patched, event("Request", "ResponseComplete", "patch", &uri, expected));
    // a deletion has options, and a Status
    let options = json!({"propagationPolicy": "Background"});
    let gone = a.bob("DELETE", &uri, options).await.ok();
    let deleted = a.events(2).await.remove(1);
    let status = json!({"metadata": {}, "status": "Success", "details": gone["details"], "code": 200});
    let options = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1", "propagationPolicy": "Background"});
    let expected = json!({"objectRef": about, "responseStatus": status, "requestObject": options, "responseObject": gone, "annotations": allowed()});
    assert_eq!(deleted, event("RequestResponse", "ResponseComplete", "delete", &uri, expected));
    // of what the policy leaves out there is nothing
    assert_eq!(a.metric("apiserver_audit_level_total{level=\"Metadata\"}").await, 2);
    assert!(a.metric("apiserver_audit_event_total").await >= 10 && a.metric("apiserver_audit_level_total{level=\"None\"}").await >= 2);
    assert!(a.events(0).await.is_empty());
}

#[tokio::test]
async fn who_may_not_and_who_is_nobody() {
    let a = start("forbidden", into_file).await;
    let ann = UserInfo { uid: "7".into(), ..UserInfo::new("ann", &["system:authenticated"]) };
    let refused = a.send(Some(ann), "POST", MAPS, &[("audit-id", "mine"), ("x-forwarded-for", "198.51.100.1")], map("m")).await;
    assert_eq!((refused.code, &refused.headers["audit-id"]), (403, &"mine".parse::<http::HeaderValue>().unwrap()));
    let text = std::fs::read_to_string(a.folder.join("audit.log")).unwrap();
    assert_eq!(text.matches("\"auditID\":\"mine\"").count(), 2);
    let answer = refused.json();
    let status = json!({"metadata": {}, "status": "Failure", "message": answer["message"], "reason": "Forbidden", "details": answer["details"], "code": 403});
    assert_eq!(answer["details"], json!({"kind": "configmaps"}));
    assert_eq!(
        a.events(2).await[1],
        event(
            "RequestResponse",
            "ResponseComplete",
            "create",
            MAPS,
            json!({"user": {"username": "ann", "uid": "7", "groups": ["system:authenticated"]}, "sourceIPs": ["198.51.100.1", "192.0.2.7"],
                "objectRef": {"resource": "configmaps", "namespace": "default", "apiVersion": "v1"}, "responseStatus": status, "responseObject": answer,
                "annotations": {"authorization.k8s.io/decision": "forbid", "authorization.k8s.io/reason": "writers only"}})
        )
    );
    // as somebody else
    let headers = [("impersonate-user", "eve"), ("impersonate-group", "readers")];
    assert_eq!(a.send(Some(bob()), "DELETE", &format!("{MAPS}/m"), &headers, Value::Null).await.code, 403);
    let event_ = a.events(2).await.remove(1);
    assert_eq!(event_["user"]["username"], "bob");
    assert_eq!(event_["impersonatedUser"], json!({"username": "eve", "groups": ["readers", "system:authenticated"]}));
    assert_eq!(event_["authenticationMetadata"], json!({"impersonationConstraint": "impersonate:user-info"}));
    assert_eq!(event_["annotations"]["authorization.k8s.io/decision"], "forbid");
    // with a bad token
    let refused = a.send(None, "GET", MAPS, &[("authorization", "Bearer x")], Value::Null).await;
    let answer = refused.json();
    let status = json!({"metadata": {}, "status": "Failure", "message": "Unauthorized", "reason": "Unauthorized", "code": 401});
    assert_eq!(
        a.events(1).await,
        [event(
            "RequestResponse",
            "ResponseStarted",
            "list",
            MAPS,
            json!({"user": {}, "objectRef": {"resource": "configmaps", "namespace": "default", "apiVersion": "v1"}, "responseStatus": status, "responseObject": answer})
        )]
    );
    // discovery has objects, the rest of the documents has none
    let groups = a.bob("GET", "/apis", Value::Null).await.ok();
    let seen = a.events(1).await.remove(0);
    assert_eq!((&seen["responseObject"], seen.get("objectRef"), &seen["requestURI"]), (&groups, None, &json!("/apis")));
    a.bob("GET", "/version", Value::Null).await.ok();
    assert_eq!(a.events(1).await, [event("RequestResponse", "ResponseComplete", "get", "/version", json!({"responseStatus": code(200), "annotations": allowed()}))]);
}

#[tokio::test]
async fn what_stays_open_has_three_events() {
    let a = start("long", into_file).await;
    let uri = format!("{MAPS}?watch=1");
    let response = a.raw(Some(bob()), "GET", &uri, &[], Value::Null).await;
    let about = json!({"resource": "configmaps", "namespace": "default", "apiVersion": "v1"});
    let of = |stage: &str, more: Value| event("RequestResponse", stage, "watch", &uri, more);
    let started = json!({"objectRef": about, "responseStatus": code(200), "annotations": allowed()});
    assert_eq!(a.events(2).await, [of("RequestReceived", json!({"objectRef": about})), of("ResponseStarted", started.clone())]);
    a.bob("POST", MAPS, map("m")).await.ok();
    a.events(2).await;
    drop(response);
    assert_eq!(a.events(1).await, [of("ResponseComplete", started)]);
    // a log is a stream, too
    let uri = "/api/v1/namespaces/default/pods/p/log";
    assert_eq!(a.bob("GET", uri, Value::Null).await.text(), "a line\n");
    let about = json!({"resource": "pods", "namespace": "default", "name": "p", "subresource": "log", "apiVersion": "v1"});
    let of = |stage: &str, verb: &str, uri: &str, about: &Value, status: u16| {
        event("RequestResponse", stage, verb, uri, json!({"objectRef": about, "responseStatus": code(status), "annotations": allowed()}))
    };
    assert_eq!(a.events(2).await, ["ResponseStarted", "ResponseComplete"].map(|stage| of(stage, "get", uri, &about, 200)));
    // a command runs until its connection ends
    let uri = "/api/v1/namespaces/default/pods/p/exec?command=ls&stdout=true";
    let upgrade = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    assert_eq!(a.send(Some(bob()), "POST", uri, &upgrade, Value::Null).await.code, 101);
    let about = json!({"resource": "pods", "namespace": "default", "name": "p", "subresource": "exec", "apiVersion": "v1"});
    assert_eq!(a.events(2).await, ["ResponseStarted", "ResponseComplete"].map(|stage| of(stage, "create", uri, &about, 101)));
}

#[tokio::test]
async fn every_request_comes_to_an_end() {
    let a = start("end", into_file).await;
    assert_eq!(a.bob("POST", MAPS, map("boom")).await.code, 500);
    let events = a.events(2).await;
    assert_eq!((&events[1]["stage"], &events[1]["annotations"]), (&json!("Panic"), &allowed()));
    assert_eq!(events[1]["responseStatus"], json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "message": "APIServer panic'd: no 1", "code": 500}));
    // a client that goes before its write is through
    let gone = a.bob("POST", MAPS, map("late"));
    assert!(tokio::time::timeout(Duration::from_millis(200), gone).await.is_err());
    assert_eq!(a.events(1).await[0]["stage"], "RequestReceived");
    a.go_on.notify_one();
    let end = a.events(1).await.remove(0);
    assert_eq!((&end["stage"], &end["responseStatus"]["code"], &end["objectRef"]["name"]), (&json!("ResponseComplete"), &json!(201), &json!("late")));
}

#[tokio::test]
async fn slow_requests_say_where_their_time_went() {
    let a = start("slow", into_file).await;
    assert_eq!(a.bob("POST", MAPS, map("slow")).await.code, 201);
    a.events(2).await;
    let text = std::fs::read_to_string(a.folder.join("audit.log")).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let told: Vec<&str> = last["annotations"].as_object().unwrap().keys().filter_map(|key| key.strip_prefix(LATENCY)).collect();
    assert_eq!(told, ["authentication", "authorization", "etcd", "total"]);
    let total = last["annotations"][format!("{LATENCY}total")].as_str().unwrap();
    assert!(total.ends_with("ms") && total > "600" || total.ends_with('s') && !total.ends_with("ms"), "{total}");
}

#[tokio::test]
async fn a_log_that_is_full() {
    let full = |mode: &'static str| move |config: &mut audit::Config, _: &std::path::Path| (config.log.path, config.log.max_size, config.log.mode) = ("/dev/full".into(), 0, mode.into());
    let a = start("full", full("blocking")).await;
    a.bob("POST", MAPS, map("m")).await.ok();
    assert_eq!(a.metric("apiserver_audit_error_total{plugin=\"log\"}").await, 2, "nothing is lost silently");
    assert_eq!(a.metric("apiserver_audit_requests_rejected_total").await, 0);
    let a = start("strict", full("blocking-strict")).await;
    let refused = a.bob("POST", &format!("{MAPS}?a=1&b=2"), map("m")).await;
    assert_eq!((refused.code, refused.text()), (500, format!("Internal Server Error: \"{MAPS}?a=1&amp;b=2\": failed to store audit event\n")));
    assert_eq!(a.metric("apiserver_audit_requests_rejected_total").await, 1);
    assert_eq!(a.bob("GET", "/version", Value::Null).await.code, 200, "only the first event counts, which this rule leaves out");
    let a = start("gathered", full("batch")).await;
    a.bob("POST", MAPS, map("m")).await.ok();
    let started = Instant::now();
    while a.metric("apiserver_audit_error_total{plugin=\"log\"}").await < 2 {
        assert!(started.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A kubeconfig for a server at this address.
fn kubeconfig(folder: &std::path::Path, address: std::net::SocketAddr) -> Option<PathBuf> {
    let config = json!({"kind": "Config", "apiVersion": "v1", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": format!("http://{address}/events")}}], "users": [{"name": "u", "user": {"token": "secret"}}]});
    let path = folder.join("webhook.yaml");
    std::fs::write(&path, config.to_string()).unwrap();
    Some(path)
}

/// A server that keeps what it is sent, after it has failed some times.
async fn collector(failures: usize) -> (std::net::SocketAddr, Arc<Mutex<Vec<Value>>>) {
    let (lists, left) = (Arc::<Mutex<Vec<Value>>>::default(), Arc::new(Mutex::new(failures)));
    let seen = lists.clone();
    let address = serve(move |request: Request<Incoming>| {
        let (seen, left) = (seen.clone(), left.clone());
        async move {
            assert_eq!((request.method().as_str(), request.uri().to_string().as_str()), ("POST", "/events?timeout=30s"));
            assert_eq!(request.headers()["authorization"], "Bearer secret");
            let list: Value = serde_json::from_slice(&request.into_body().collect().await.unwrap().to_bytes()).unwrap();
            let mut response = Response::new(Full::default());
            if *left.lock() > 0 {
                *left.lock() -= 1;
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            } else {
                seen.lock().push(list);
            }
            response
        }
    })
    .await;
    (address, lists)
}

#[tokio::test]
async fn events_are_sent_in_batches() {
    let (address, lists) = collector(2).await;
    let mut a = start("batches", |config, folder| {
        config.webhook.config_file = kubeconfig(folder, address);
        config.webhook.initial_backoff = Duration::from_millis(1);
        (config.webhook.batch.max_size, config.webhook.batch.max_wait) = (3, Duration::from_secs(3600));
        (config.webhook.truncate.enabled, config.webhook.truncate.max_event_size) = (true, 2000);
    })
    .await;
    let mut large = map("large");
    large["data"]["k"] = "x".repeat(4000).into();
    a.bob("POST", MAPS, map("small")).await.ok();
    a.bob("POST", MAPS, large).await.ok();
    let started = Instant::now();
    while lists.lock().is_empty() {
        assert!(started.elapsed() < Duration::from_secs(10), "a full batch is sent at once, again if that fails");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(lists.lock().len(), 1, "what is no full batch waits");
    // the end of the server
    a.cancel.cancel();
    a.running.take().unwrap().await.unwrap();
    let lists = lists.lock();
    assert_eq!((lists.len(), &lists[0]["kind"], &lists[0]["apiVersion"]), (2, &json!("EventList"), &json!("audit.k8s.io/v1")));
    let events: Vec<&Value> = lists.iter().flat_map(|l| l["items"].as_array().unwrap()).collect();
    let stages: Vec<_> = events.iter().map(|e| (e["objectRef"]["name"].as_str().unwrap_or_default(), e["stage"].as_str().unwrap())).collect();
    assert_eq!(stages, [("", "RequestReceived"), ("small", "ResponseComplete"), ("", "RequestReceived"), ("large", "ResponseComplete")]);
    assert_eq!((events[1]["requestObject"]["kind"].as_str(), events[1].get("kind")), (Some("ConfigMap"), None));
    assert_eq!((events[3].get("requestObject"), &events[3]["annotations"]["audit.k8s.io/truncated"]), (None, &json!("true")));
}

#[tokio::test]
async fn a_webhook_is_trusted_by_its_certificate() {
    let hook = tls::Identity::of(&["hook.example.com"]);
    let tokens = Arc::<Mutex<Vec<String>>>::default();
    let seen = tokens.clone();
    let address = hook
        .serve(move |request| {
            seen.lock().push(request.headers()["authorization"].to_str().unwrap().to_string());
            async { tls::code(200) }
        })
        .await;
    let settle = |name: &'static str| {
        let ca = hook.ca.cert_pem().to_string();
        move |config: &mut audit::Config, folder: &std::path::Path| {
            std::fs::write(folder.join("ca.crt"), ca).unwrap();
            std::fs::write(folder.join("token"), "first\n").unwrap();
            let cluster = json!({"server": format!("https://{address}"), "certificate-authority": "ca.crt", "tls-server-name": name});
            let kubeconfig = json!({"current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [{"name": "k", "cluster": cluster}], "users": [{"name": "u", "user": {"tokenFile": "token"}}]});
            std::fs::write(folder.join("webhook"), kubeconfig.to_string()).unwrap();
            config.webhook.config_file = Some(folder.join("webhook"));
            config.webhook.mode = "blocking-strict".into();
            config.webhook.initial_backoff = Duration::from_millis(1);
        }
    };
    let a = start("trusted", settle("hook.example.com")).await;
    a.bob("GET", MAPS, Value::Null).await.ok();
    std::fs::write(a.folder.join("token"), "second").unwrap();
    a.bob("GET", MAPS, Value::Null).await.ok();
    assert_eq!(*tokens.lock(), ["Bearer first", "Bearer first", "Bearer second", "Bearer second"]);
    let a = start("untrusted", settle("other.example.com")).await;
    assert_eq!(a.bob("GET", MAPS, Value::Null).await.code, 500, "without its first event no request is served");
    assert_eq!(a.metric("apiserver_audit_error_total{plugin=\"webhook\"}").await, 1);
}

#[tokio::test]
async fn a_webhook_that_is_slow_or_gone_stops_nobody() {
    let never = serve(|_: Request<Incoming>| std::future::pending::<Response<Full<Bytes>>>()).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (name, address, plugin) in [("slow", never, "buffered"), ("gone", nobody, "webhook")] {
        let a = start(name, |config, folder| {
            config.webhook.config_file = kubeconfig(folder, address);
            // who is gone is given up soon; who is slow keeps all places, and then the buffer is full
            config.webhook.initial_backoff = Duration::from_millis(1);
            config.webhook.batch = audit::BatchConfig { buffer_size: 4, max_size: 1, max_wait: Duration::ZERO, throttle: false, qps: 0.0, burst: 0 };
        })
        .await;
        let started = Instant::now();
        for _ in 0..50 {
            a.bob("GET", &format!("{MAPS}?limit=1"), Value::Null).await.ok();
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{name}: {:?}", started.elapsed());
        while a.metric(&format!("apiserver_audit_error_total{{plugin=\"{plugin}\"}}")).await == 0 {
            assert!(started.elapsed() < Duration::from_secs(20), "{name}: what is lost is counted");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(a.metric("apiserver_audit_event_total").await, 100);
    }
}

#[tokio::test]
async fn settings_are_checked() {
    let built = |config: audit::Config| Builder::new(Config { audit: config, ..Config::default() }, store::memory::new()).unwrap().build().map(drop).map_err(|e| e.to_string());
    assert_eq!(built(audit::Config::default()), Ok(()));
    let none = built(audit::Config { policy_file: Some("/nowhere/policy".into()), ..audit::Config::default() });
    assert!(none.unwrap_err().starts_with("loading audit policy file: failed to read file path \"/nowhere/policy\": "));
    let mut config = audit::Config::default();
    (config.log.path, config.log.format) = ("-".into(), "xml".into());
    assert_eq!(built(config), Err("invalid audit log format xml, allowed formats are \"legacy,json\"".into()));
}
