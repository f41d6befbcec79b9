//! Proxying and upgrades to a backend, over the real TLS listener.
mod common;

use std::net::SocketAddr;
use std::sync::Arc;

use apiserver::types::Status;
use apiserver::{AuthnRequest, Authenticator, ConnectRequest, Ctx, Location, Locator, ServingTls, Tls, UserInfo};
use bytes::Bytes;
use common::{Cluster, cluster_with};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pki::{Ca, CertRequest, Lifetime, Roots, Usage};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// A backend that says what it got, redirects, links, and echoes after an upgrade.
async fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move { Ok::<_, hyper::Error>(answer(request).await) });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service).with_upgrades());
        }
    });
    address
}

async fn answer(mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path_and_query().unwrap().to_string();
    let mut response = Response::new(Full::default());
    if request.headers().contains_key(header::UPGRADE) {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut buffer = [0; 5];
            io.read_exact(&mut buffer).await.unwrap();
            io.write_all(&buffer).await.unwrap();
            io.shutdown().await.unwrap();
        });
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(header::CONNECTION, "Upgrade".parse().unwrap());
        response.headers_mut().insert(header::UPGRADE, "SPDY/3.1".parse().unwrap());
        return response;
    }
    if path.ends_with("/redirect") {
        *response.status_mut() = StatusCode::FOUND;
        response.headers_mut().insert(header::LOCATION, "/login".parse().unwrap());
        return response;
    }
    if path.starts_with("/logs") && (path.contains("refuse") || request.headers().contains_key(header::ACCEPT)) {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        *response.body_mut() = Full::from("no such log");
        return response;
    }
    if path.ends_with("/page") {
        response.headers_mut().insert(header::CONTENT_TYPE, "text/html".parse().unwrap());
        *response.body_mut() = Full::from("<a href=\"/x\">x</a>");
        return response;
    }
    let secret = request.headers().contains_key(header::AUTHORIZATION);
    let method = request.method().clone();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    *response.body_mut() = Full::from(format!("{method} {path} {secret} {}", String::from_utf8_lossy(&body)));
    response
}

struct Here(SocketAddr, bool);

#[async_trait::async_trait]
impl Locator for Here {
    async fn locate(&self, ctx: &Ctx, request: &ConnectRequest) -> Result<Location, Status> {
        if ctx.name == "missing" {
            return Err(api::status::not_found("", "pods", "missing"));
        }
        let path = if request.path.is_empty() { "/logs/x".to_string() } else { request.path.clone() };
        let query = if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
        Ok(Location {
            tls: Tls::None,
            host: self.0.ip().to_string(),
            port: if ctx.name == "dead" { 1 } else { self.0.port() },
            path_and_query: format!("{path}{query}"),
            rewrite: self.1,
            alternatives: Vec::new(),
        })
    }
}

struct Certificates(Roots);

#[async_trait::async_trait]
impl Authenticator for Certificates {
    async fn authenticate(&self, request: &AuthnRequest<'_>) -> Result<Option<UserInfo>, String> {
        let Some(peer) = request.peer.filter(|p| !p.certs.is_empty()) else { return Ok(None) };
        let peer = self.0.verify_client(&peer.certs, request.now).map_err(|e| e.to_string())?;
        Ok(Some(UserInfo { name: peer.cn, groups: peer.orgs, ..UserInfo::default() }))
    }
}

async fn with_backend(ca: Option<&Ca>) -> Cluster {
    let address = backend().await;
    let roots = ca.map(|ca| Roots::from_pem(ca.cert_pem()).unwrap());
    cluster_with(|builder| {
        for sub in ["log", "exec"] {
            builder.parts.locator("", "pods", sub, Arc::new(Here(address, false)));
        }
        builder.parts.locator("", "services", "proxy", Arc::new(Here(address, true)));
        if let Some(roots) = roots {
            builder.parts.authenticator(Arc::new(Certificates(roots)));
        }
    })
    .await
}

const PODS: &str = "/api/v1/namespaces/a/pods";
const PROXY: &str = "/api/v1/namespaces/a/services/s:80/proxy";

#[tokio::test]
async fn plain_requests_are_passed_on() {
    let c = with_backend(None).await;
    assert_eq!(c.get(&format!("{PODS}/p/log?follow=true")).await.text(), "GET /logs/x?follow=true false ");
    assert!(c.get(&format!("{PODS}/missing/log")).await.fails(404).contains("not found"));
    assert_eq!(c.get(&format!("{PODS}/dead/log")).await.code, 500);
    // A kubelet of another make refuses what it cannot make; a client that can read JSON alone gets its log all the same.
    let log = c.send(http::Method::GET, &format!("{PODS}/p/log"), &[("accept", "application/json")], Vec::new()).await;
    assert_eq!((log.code, log.text(), log.headers["content-type"].to_str().unwrap()), (200, "GET /logs/x false ".into(), "text/plain"));
    assert_eq!(c.get(&format!("{PODS}/p/log?refuse=it")).await.fails(400), "no such log");
    let sent = c.send(http::Method::POST, &format!("{PROXY}/a/b%20c/?q=1"), &[("authorization", "Basic eA==")], b"hi".to_vec()).await;
    assert_eq!(sent.text(), "POST /a/b%20c/?q=1 false hi");
    let root = c.get(PROXY).await;
    assert_eq!((root.code, root.headers["location"].to_str().unwrap()), (301, &format!("{PROXY}/")[..]));
    assert_eq!(c.get(&format!("{PROXY}/redirect")).await.headers["location"], format!("{PROXY}/login"));
    assert_eq!(c.get(&format!("{PROXY}/page")).await.text(), format!("<a href=\"{PROXY}/x\">x</a>"));
    assert_eq!(c.get("/api/v1/namespaces/a/services/dead/proxy/").await.code, 503);
    assert_eq!(c.send(http::Method::POST, &format!("{PODS}/p/log"), &[], Vec::new()).await.code, 405);
}

struct Listening {
    cluster: Cluster,
    address: SocketAddr,
    ca: Ca,
    cancel: CancellationToken,
}

async fn listening() -> Listening {
    let now = jiff::Timestamp::now();
    let ca = Ca::new("ca", now, Lifetime::from_hours(1)).unwrap();
    let cluster = with_backend(Some(&ca)).await;
    let request = CertRequest {
        cn: "server".into(),
        sans: vec!["127.0.0.1".into()],
        usages: vec![Usage::Server],
        lifetime: Lifetime::from_hours(1),
        ..CertRequest::default()
    };
    let pair = ca.issue(&request, now).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let cancel = CancellationToken::new();
    let tls = ServingTls::new(&pair.cert_pem, &pair.key_pem).unwrap();
    tokio::spawn(cluster.server.clone().listen(listener, tls, cancel.clone()));
    Listening { cluster, address, ca, cancel }
}

impl Listening {
    async fn connect(&self, issuer: Option<&Ca>, alpn: &[u8]) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.cert_pem().as_bytes()).unwrap()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match issuer {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let request = CertRequest {
                    cn: "admin".into(),
                    usages: vec![Usage::Client],
                    lifetime: Lifetime::from_hours(1),
                    ..CertRequest::default()
                };
                let pair = ca.issue(&request, jiff::Timestamp::now()).unwrap();
                let chain = vec![CertificateDer::from_pem_slice(pair.cert_pem.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap()).unwrap()
            }
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }

    async fn get(&self, issuer: Option<&Ca>, uri: &str) -> (StatusCode, Bytes) {
        let io = TokioIo::new(self.connect(issuer, b"http/1.1").await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().uri(uri).header("host", "x").body(Empty::<Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    }
}

#[tokio::test]
async fn both_versions_of_http_and_certificates() {
    let l = listening().await;
    assert_eq!(l.get(None, "/healthz").await.0, 200);
    assert_eq!(l.get(Some(&l.ca), "/version").await.0, 200);
    let other = Ca::new("other", jiff::Timestamp::now(), Lifetime::from_hours(1)).unwrap();
    assert_eq!(l.get(Some(&other), "/version").await.0, 401);
    let io = TokioIo::new(l.connect(Some(&l.ca), b"h2").await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().uri("https://x/version").body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    // what is no TLS, or no HTTP, ends that connection only
    let mut raw = TcpStream::connect(l.address).await.unwrap();
    raw.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = raw.read_to_end(&mut rest).await;
    let mut tls = l.connect(None, b"http/1.1").await;
    tls.write_all(b"\0\x01garbage\r\n\r\n").await.unwrap();
    let _ = tls.read_to_end(&mut rest).await;
    assert_eq!(l.get(None, "/healthz").await.0, 200);
    l.cancel.cancel();
}

#[tokio::test]
async fn upgrades_pass_through() {
    let l = listening().await;
    let io = TokioIo::new(l.connect(Some(&l.ca), b"http/1.1").await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = Request::builder()
        .method("POST")
        .uri(format!("{PODS}/p/exec?command=ls"))
        .header("host", "x")
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    io.write_all(b"hello").await.unwrap();
    let mut echoed = String::new();
    io.read_to_string(&mut echoed).await.unwrap();
    assert_eq!(echoed, "hello");
    drop(l.cluster);
}

#[tokio::test]
async fn a_log_comes_over_a_websocket() {
    let l = listening().await;
    for (protocol, payload) in [("binary.k8s.io", "\u{2}GET /logs/x false "), ("base64.binary.k8s.io", "\u{1}R0VUIC9sb2dzL3ggZmFsc2Ug")] {
        let io = TokioIo::new(l.connect(Some(&l.ca), b"http/1.1").await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let request = Request::builder()
            .uri(format!("{PODS}/p/log"))
            .header("host", "x")
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", protocol)
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
        let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let mut frames = Vec::new();
        // The server ends the connection without waiting for our close.
        let _ = io.read_to_end(&mut frames).await;
        // An empty message, one with the log, and the end: opcode, length, payload.
        let (kind, text) = payload.split_at(1);
        let opcode = 0x80 | kind.as_bytes()[0];
        let mut expected = vec![opcode, 0, opcode, u8::try_from(text.len()).unwrap()];
        expected.extend_from_slice(text.as_bytes());
        expected.extend([0x88, 0]);
        assert_eq!(frames, expected, "{}", String::from_utf8_lossy(&frames));
    }
    drop(l.cluster);
}
