//! How the server is to be reached: versions and suites of TLS, certificates by name, HTTP/2, and what browsers are told.
mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use apiserver::{Config, NamedCertificate, ServingTls, TlsOptions, UserInfo};
use bytes::Bytes;
use common::{Cluster, cluster_configured};
use http::{Method, Request};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CipherSuite, ClientConfig, SupportedProtocolVersion};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

struct Everybody;

#[async_trait::async_trait]
impl apiserver::Authenticator for Everybody {
    async fn authenticate(&self, _: &apiserver::AuthnRequest<'_>) -> Result<Option<UserInfo>, String> {
        Ok(Some(UserInfo::new("admin", &["system:masters"])))
    }
}

struct Served {
    _cluster: Cluster,
    addr: SocketAddr,
    ca: CertificateDer<'static>,
    cancel: CancellationToken,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// A certificate for these hosts, of a CA, with its key.
fn issue(ca: &pki::Ca, hosts: &[&str]) -> pki::CertKey {
    let sans = hosts.iter().map(|h| h.to_string()).collect();
    let request = pki::CertRequest { cn: hosts[0].into(), sans, usages: vec![pki::Usage::Server], lifetime: SignedDuration::from_hours(1), ..Default::default() };
    ca.issue(&request, Timestamp::now()).unwrap()
}

async fn serve(options: impl FnOnce(&pki::Ca) -> TlsOptions) -> Served {
    let ca = pki::Ca::new("ca", Timestamp::now(), SignedDuration::from_hours(24)).unwrap();
    let own = issue(&ca, &["127.0.0.1"]);
    let tls = ServingTls::with(&own.cert_pem, &own.key_pem, options(&ca)).unwrap();
    let cluster = cluster_configured(Config::default(), |builder| builder.parts.authenticator(Arc::new(Everybody))).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, cancel) = (listener.local_addr().unwrap(), CancellationToken::new());
    tokio::spawn(cluster.server.clone().listen(listener, tls, cancel.clone()));
    Served { _cluster: cluster, addr, ca: CertificateDer::from(ca.cert_der().to_vec()), cancel }
}

impl Served {
    async fn dial(&self, host: &str, versions: &[&'static SupportedProtocolVersion], protocols: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        let tcp = TcpStream::connect(self.addr).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(host.to_string()).unwrap(), tcp).await
    }
}

const OLD: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

#[tokio::test]
async fn versions_suites_and_protocols_are_bounded() {
    let usual = serve(|_| TlsOptions::default()).await;
    assert!(usual.dial("127.0.0.1", OLD, &[]).await.is_ok());
    let h2 = usual.dial("127.0.0.1", BOTH, &[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(h2.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));

    let strict = serve(|_| TlsOptions { only_13: true, http2: false, ..TlsOptions::default() }).await;
    assert!(strict.dial("127.0.0.1", OLD, &[]).await.is_err());
    let h1 = strict.dial("127.0.0.1", BOTH, &[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(h1.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));

    let suite = CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256;
    let one = serve(|_| TlsOptions { suites: vec![suite], ..TlsOptions::default() }).await;
    let chosen = one.dial("127.0.0.1", OLD, &[]).await.unwrap().get_ref().1.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(chosen, suite);
    assert!(one.dial("127.0.0.1", BOTH, &[]).await.is_ok(), "suites of TLS 1.3 are not chosen");
}

#[test]
fn suites_have_the_names_of_go() {
    let suites = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        TlsOptions::suites(&names).map(|(suites, unspoken)| (suites, unspoken.iter().map(|n| n.to_string()).collect::<Vec<_>>()))
    };
    let (found, unspoken) = suites(&["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256", "TLS_RSA_WITH_AES_128_CBC_SHA"]).unwrap();
    assert_eq!(found[..2], [CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]);
    assert_eq!((found.len(), unspoken), (3, vec!["TLS_RSA_WITH_AES_128_CBC_SHA".to_string()]));
    assert_eq!(suites(&["TLS_NONSENSE"]).unwrap_err(), "Cipher suite TLS_NONSENSE not supported or doesn't exist");
    assert!(suites(&["TLS_RSA_WITH_AES_128_CBC_SHA"]).unwrap_err().starts_with("none of the cipher suites TLS_RSA_WITH_AES_128_CBC_SHA is spoken here"));
}

#[tokio::test]
async fn clients_see_the_certificate_for_the_host_that_they_name() {
    let named = |key: pki::CertKey, hosts: &[&str]| NamedCertificate { hosts: hosts.iter().map(|h| h.to_string()).collect(), cert_pem: key.cert_pem, key_pem: key.key_pem };
    let served = serve(|ca| TlsOptions {
        named: vec![named(issue(ca, &["own.example"]), &[]), named(issue(ca, &["any.wide.example"]), &["*.wide.example"])],
        ..TlsOptions::default()
    })
    .await;
    for host in ["127.0.0.1", "own.example", "any.wide.example"] {
        assert!(served.dial(host, BOTH, &[]).await.is_ok(), "{host}");
    }
    // the usual certificate is not for it
    assert!(served.dial("other.example", BOTH, &[]).await.is_err());
}

#[tokio::test]
async fn clients_of_http_2_are_sent_away_now_and_then() {
    for (chance, ends) in [(0.0, false), (1.0, true)] {
        let served = serve(|_| TlsOptions { goaway_chance: chance, ..TlsOptions::default() }).await;
        let io = served.dial("127.0.0.1", BOTH, &[b"h2"]).await.unwrap();
        let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
        let mut connection = tokio::spawn(connection);
        let request = Request::get("https://127.0.0.1/version").body(Empty::<Bytes>::new()).unwrap();
        assert_eq!(send.send_request(request).await.unwrap().status(), 200, "the request itself is answered");
        let patience = if ends { Duration::from_secs(20) } else { Duration::from_millis(300) };
        assert_eq!(tokio::time::timeout(patience, &mut connection).await.is_ok(), ends, "a chance of {chance}");
    }
}

#[tokio::test]
async fn browsers_learn_whose_pages_may_ask() {
    let config = Config { cors_allowed_origins: vec!["^https://console\\.example$".into()], strict_transport_security: vec!["max-age=60".into()], ..Config::default() };
    let cluster = cluster_configured(config, |_| {}).await;
    let ask = async |method: Method, origin: &str| cluster.send(method, "/api/v1/namespaces/default/configmaps", &[("origin", origin)], Vec::new()).await;
    let before = ask(Method::OPTIONS, "https://console.example").await;
    assert_eq!((before.code, before.headers["access-control-allow-origin"].to_str().unwrap()), (204, "https://console.example"));
    assert_eq!(ask(Method::OPTIONS, "https://evil.example").await.headers.get("access-control-allow-origin"), None);
    let list = ask(Method::GET, "https://console.example").await;
    assert_eq!((list.code, list.headers["access-control-allow-credentials"].to_str().unwrap()), (200, "true"));
    assert_eq!(list.headers["strict-transport-security"].to_str().unwrap(), "max-age=60");
}

#[tokio::test]
async fn watches_last_as_long_as_configured() {
    let config = Config { min_request_timeout: Duration::from_millis(500), ..Config::default() };
    let cluster = cluster_configured(config, |_| {}).await;
    let mut watch = cluster.watch("/api/v1/configmaps?watch=1&resourceVersion=0&allowWatchBookmarks=true").await;
    let begun = tokio::time::Instant::now();
    while watch.next().await.is_some() {}
    assert!((500..9000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
}
