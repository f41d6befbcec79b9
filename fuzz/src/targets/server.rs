//! The whole server in process, over a store in memory: requests of any kind, and values of any kind in the store.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use apiserver::{Builder, Config, InProcess, Server, UserInfo};
use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use jiff::SignedDuration;
use serde_json::{Value, json};
use store::{Store, Txn};
use tokio::runtime::Runtime;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Parts;

/// A server forgets everything after so many inputs, so that it stays small.
const INPUTS: usize = 3000;
/// How long one answer may take; watches are left after that.
const PATIENCE: Duration = Duration::from_secs(5);

struct World {
    runtime: Runtime,
    server: Arc<Server>,
    store: Arc<dyn Store>,
    inputs: usize,
    _stop: DropGuard,
}

impl World {
    fn new() -> World {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (server, store, stop) = runtime.block_on(async {
            let store = store::memory::new();
            let mut builder = Builder::new(Config::default(), store.clone()).expect("a builder");
            let now = super::now();
            let ca = pki::Ca::new("kubernetes", now, SignedDuration::from_hours(24)).expect("a CA");
            let key = pki::jwt::new_key_pem().expect("a key");
            let config = registry::Config::new(ca.cert_pem(), Arc::new(pki::jwt::Signer::from_pem(&key).expect("its signer")), "192.0.2.1".parse().expect("an address"));
            registry::install(&mut builder, config).expect("installed");
            let server = builder.build().expect("a server");
            let cancel = CancellationToken::new();
            let (running, stop) = (server.clone(), cancel.clone());
            tokio::spawn(async move { running.run(stop).await });
            server.ready().await;
            (server, store, cancel.drop_guard())
        });
        let mut world = World { runtime, server, store, inputs: 0, _stop: stop };
        let account = json!({"metadata": {"name": "default"}});
        world.ask(Method::POST, "/api/v1/namespaces/default/serviceaccounts", &[], account.to_string().as_bytes());
        let definition = include_str!("definition.json");
        let (code, answer) = world.ask(Method::POST, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &[], definition.as_bytes());
        assert_eq!(code, 201, "{}", String::from_utf8_lossy(&answer));
        world
    }

    /// What it answers; a watch's beginning. Nothing when the request cannot be made.
    fn ask(&mut self, method: Method, uri: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, Vec<u8>) {
        let Ok(uri) = uri.parse::<Uri>() else { return (0, Vec::new()) };
        let watch = uri.query().is_some_and(|q| q.contains("watch")) || uri.path().contains("/watch/");
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let Ok(mut request) = request.body(Full::from(Bytes::copy_from_slice(body))) else { return (0, Vec::new()) };
        request.extensions_mut().insert(InProcess(UserInfo::new("admin", &["system:masters"])));
        let server = self.server.clone();
        self.runtime.block_on(async move {
            let response = tokio::time::timeout(PATIENCE, server.handle(request)).await.expect("an answer in time");
            let code = response.status().as_u16();
            let mut body = response.into_body();
            let mut bytes = Vec::new();
            let limit = if watch { Duration::from_millis(1) } else { PATIENCE };
            let read = tokio::time::timeout(limit, async {
                while let Some(Ok(frame)) = body.frame().await {
                    bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d));
                }
            });
            assert!(read.await.is_ok() || watch || bytes.len() > 1 << 20, "an answer ends");
            (code, bytes)
        })
    }
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

fn with_world(run: impl FnOnce(&mut World)) {
    WORLD.with_borrow_mut(|place| {
        if place.as_ref().is_some_and(|world| world.inputs > INPUTS) {
            *place = None;
        }
        let world = place.get_or_insert_with(World::new);
        world.inputs += 1;
        run(world);
    });
}

/// What would have the server call others, wherever an input says.
fn calls_out(uri: &str, body: &[u8]) -> bool {
    let has = |text: &str| body.windows(text.len()).any(|w| w == text.as_bytes());
    ["webhookconfigurations", "apiservices", "/proxy", "portforward", "/exec", "/attach", "/log"].iter().any(|p| uri.contains(p)) || has("ebhook")
}

/// Requests, one a part: `METHOD URI`, headers, an empty line, the body.
pub fn requests(input: &[u8]) {
    with_world(|world| {
        for part in crate::mutate::split(input).into_iter().take(8) {
            let (head, body) = match part.windows(2).position(|w| w == b"\n\n") {
                Some(at) => (&part[..at], &part[at + 2..]),
                None => (part, &[][..]),
            };
            let Ok(head) = std::str::from_utf8(head) else { continue };
            let mut lines = head.lines();
            let Some((method, uri)) = lines.next().and_then(|l| l.split_once(' ')) else { continue };
            let (Ok(method), false) = (method.parse::<Method>(), calls_out(uri, body)) else { continue };
            let headers: Vec<(&str, &str)> = lines.filter_map(|l| l.split_once(": ")).collect();
            let (code, answer) = world.ask(method, uri, &headers, body);
            // Of a watch it is a line for each event, the last perhaps cut off.
            if answer.first() == Some(&b'{') && !uri.contains("watch") {
                let answer: Value = serde_json::from_slice(&answer).unwrap_or_else(|e| panic!("{uri}: {e}: {}", String::from_utf8_lossy(&answer)));
                assert!(code < 400 || !answer["message"].as_str().unwrap_or_default().contains("panic"), "{uri}: {answer}");
            }
        }
        let (code, answer) = world.ask(Method::GET, "/healthz", &[], &[]);
        assert_eq!((code, &*answer), (200, &b"ok"[..]), "it is well afterwards");
    });
}

/// A key under `/registry/` and the value there, which an API server of others, or nobody, wrote.
pub fn stored(input: &[u8]) {
    let mut parts = Parts::of(input);
    let (Some(key), value) = (parts.text(), parts.bytes()) else { return };
    let key = format!("/registry/{key}");
    if key.len() > 500 || value.windows(6).any(|w| w == b"ebhook") {
        return;
    }
    with_world(|world| {
        let store = world.store.clone();
        let Ok(done) = world.runtime.block_on(store.txn(Txn::put(key.clone(), value.to_vec()))) else { return };
        let version = done.revision;
        let json = [("accept", "application/json")];
        let table = [("accept", "application/json;as=Table;g=meta.k8s.io;v=v1")];
        let protobuf = [("accept", "application/vnd.kubernetes.protobuf")];
        for path in ["/api/v1/pods", "/api/v1/secrets", "/apis/apps/v1/deployments", "/apis/example.com/v1/things", "/apis/autoscaling/v1/horizontalpodautoscalers"] {
            for headers in [&json, &table, &protobuf] {
                let uri = format!("{path}?resourceVersion={version}&resourceVersionMatch=NotOlderThan");
                let (code, answer) = world.ask(Method::GET, &uri, headers, &[]);
                assert!(code > 0 && !answer.is_empty(), "{path}");
            }
        }
        let _ = world.runtime.block_on(store.txn(Txn::delete(key)));
        let (code, _) = world.ask(Method::GET, "/healthz", &[], &[]);
        assert_eq!(code, 200, "it is well afterwards");
    });
}
