//! A server on an in-memory store that allows everything, and a client that calls it in process.
#![allow(dead_code)]
use std::sync::Arc;

use apiserver::authz::AlwaysAllow;
use apiserver::{Body, Builder, Config, EncryptionConfig, EncryptionKey, InProcess, Provider, Server, UserInfo, body};
use futures::StreamExt;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, BodyStream};
use serde_json::Value;
use store::Store;
use tokio_util::sync::CancellationToken;

pub struct Cluster {
    pub server: Arc<Server>,
    pub store: Arc<dyn Store>,
    cancel: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

pub async fn cluster() -> Cluster {
    cluster_with(|_| {}).await
}

pub async fn cluster_with(install: impl FnOnce(&mut Builder)) -> Cluster {
    cluster_on(store::memory::new(), install).await
}

pub async fn cluster_on(store: Arc<dyn Store>, install: impl FnOnce(&mut Builder)) -> Cluster {
    let key = EncryptionKey { name: "key1".into(), secret: vec![7; 32] };
    let encryption = EncryptionConfig::of(&["secrets"], vec![Provider::AesGcm(vec![key]), Provider::Identity]);
    cluster_of(store, Config { encryption, ..Config::default() }, install).await
}

pub async fn cluster_configured(config: Config, install: impl FnOnce(&mut Builder)) -> Cluster {
    cluster_of(store::memory::new(), config, install).await
}

async fn cluster_of(store: Arc<dyn Store>, config: Config, install: impl FnOnce(&mut Builder)) -> Cluster {
    let mut builder = Builder::new(config, store.clone()).unwrap();
    builder.parts.authorizer(Arc::new(AlwaysAllow));
    install(&mut builder);
    let server = builder.build().unwrap();
    let cancel = CancellationToken::new();
    let (run, stop) = (server.clone(), cancel.clone());
    tokio::spawn(async move { run.run(stop).await });
    server.ready().await;
    Cluster { server, store, cancel }
}

pub struct Reply {
    pub code: u16,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    pub fn ok(self) -> Value {
        assert!(self.code < 300, "{}: {}", self.code, self.text());
        self.json()
    }

    pub fn fails(self, code: u16) -> String {
        assert_eq!(self.code, code, "{}", self.text());
        self.json()["message"].as_str().unwrap_or_default().to_string()
    }
}

impl Cluster {
    pub async fn raw(&self, method: Method, uri: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Response<Body> {
        let mut request = Request::builder().method(method).uri(uri);
        for (k, v) in headers {
            request = request.header(*k, *v);
        }
        let mut request = request.body(body::full(body)).unwrap();
        request.extensions_mut().insert(InProcess(UserInfo::new("admin", &["system:masters"])));
        self.server.handle(request).await
    }

    pub async fn send(&self, method: Method, uri: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Reply {
        let response = self.raw(method, uri, headers, body).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes().to_vec();
        Reply { code: parts.status.as_u16(), headers: parts.headers, bytes }
    }

    pub async fn get(&self, uri: &str) -> Reply {
        self.send(Method::GET, uri, &[], Vec::new()).await
    }

    pub async fn post(&self, uri: &str, value: Value) -> Reply {
        self.send(Method::POST, uri, &[("content-type", "application/json")], value.to_string().into_bytes()).await
    }

    pub async fn put(&self, uri: &str, value: Value) -> Reply {
        self.send(Method::PUT, uri, &[], value.to_string().into_bytes()).await
    }

    pub async fn patch(&self, uri: &str, kind: &str, value: Value) -> Reply {
        let media = format!("application/{kind}");
        self.send(Method::PATCH, uri, &[("content-type", &media)], value.to_string().into_bytes()).await
    }

    pub async fn delete(&self, uri: &str, options: Value) -> Reply {
        let body = if options.is_null() { Vec::new() } else { options.to_string().into_bytes() };
        self.send(Method::DELETE, uri, &[], body).await
    }

    pub async fn watch(&self, uri: &str) -> Events {
        let response = self.raw(Method::GET, uri, &[], Vec::new()).await;
        assert_eq!(response.status(), 200);
        Events { body: Box::pin(BodyStream::new(response.into_body())), buffer: Vec::new() }
    }
}

pub struct Events {
    body: std::pin::Pin<Box<BodyStream<Body>>>,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event; `None` at the end. Waits at most ten seconds.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(std::time::Duration::from_secs(10), self.body.next()).await.expect("an event in time")?;
            self.buffer.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// Type and name of the next event.
    pub async fn brief(&mut self) -> String {
        let event = self.next().await.expect("an event");
        format!("{} {}", event["type"].as_str().unwrap(), event["object"]["metadata"]["name"].as_str().unwrap_or("-"))
    }
}
