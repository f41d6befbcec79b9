//! Clients made to do harm, on real connections: each is answered, or ended, and the server serves on.
mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apiserver::{Config, InProcess, ServingTls, Timeouts, UserInfo, body};
use common::{Cluster, cluster_configured};
use http::Request;
use jiff::{SignedDuration, Timestamp};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Long enough for a busy machine, short enough to notice what never ends.
const PATIENCE: Duration = Duration::from_secs(60);

struct Served {
    cluster: Cluster,
    addr: SocketAddr,
    client: ClientConfig,
    cancel: CancellationToken,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Everybody is the administrator: the tests are about connections.
struct Everybody;

#[async_trait::async_trait]
impl apiserver::Authenticator for Everybody {
    async fn authenticate(&self, _: &apiserver::AuthnRequest<'_>) -> Result<Option<UserInfo>, String> {
        Ok(Some(UserInfo::new("admin", &["system:masters"])))
    }
}

async fn serve(timeouts: Timeouts) -> Served {
    serve_within(timeouts, PATIENCE).await
}

async fn serve_within(timeouts: Timeouts, request_timeout: Duration) -> Served {
    let ca = pki::Ca::new("ca", Timestamp::now(), SignedDuration::from_hours(24)).unwrap();
    let request = pki::CertRequest {
        cn: "server".into(),
        sans: vec!["127.0.0.1".into()],
        usages: vec![pki::Usage::Server],
        lifetime: SignedDuration::from_hours(1),
        ..Default::default()
    };
    let serving = ca.issue(&request, Timestamp::now()).unwrap();
    let tls = ServingTls::new(&serving.cert_pem, &serving.key_pem).unwrap();
    let config = Config { timeouts, request_timeout, ..Config::default() };
    let cluster = cluster_configured(config, |builder| builder.parts.authenticator(Arc::new(Everybody))).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let cancel = CancellationToken::new();
    tokio::spawn(cluster.server.clone().listen(listener, tls, cancel.clone()));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(ca.cert_der().to_vec())).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Served { cluster, addr, client: client.with_root_certificates(roots).with_no_client_auth(), cancel }
}

/// Timeouts that a test need not wait long for; the others never come.
fn never() -> Timeouts {
    let long = Duration::from_secs(3600);
    Timeouts { headers: long, idle: long, stalled: long }
}

impl Served {
    async fn dial(&self, protocol: &[u8]) -> TlsStream<TcpStream> {
        let mut config = self.client.clone();
        config.alpn_protocols = vec![protocol.to_vec()];
        let tcp = TcpStream::connect(self.addr).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }

    /// Sends something and reads until the server hangs up, or `enough` was read.
    async fn talk(&self, sent: &[u8], enough: impl Fn(&str) -> bool) -> String {
        let mut io = self.dial(b"http/1.1").await;
        // It may hang up in between.
        let _ = async { io.write_all(sent).await?; io.flush().await }.await;
        read(&mut io, enough).await
    }

    async fn is_well(&self) {
        let answer = self.talk(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", |text| text.ends_with("ok")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// As a caller in the same process.
    async fn create(&self, name: &str, size: usize) {
        let map = serde_json::json!({"metadata": {"name": name}, "data": {"k": "x".repeat(size)}});
        let mut request = Request::post(MAPS).header("content-type", "application/json").body(body::full(map.to_string())).unwrap();
        request.extensions_mut().insert(InProcess(UserInfo::new("admin", &["system:masters"])));
        assert_eq!(self.cluster.server.handle(request).await.status(), 201);
    }
}

async fn read(io: &mut TlsStream<TcpStream>, enough: impl Fn(&str) -> bool) -> String {
    let mut all = Vec::new();
    let reading = async {
        let mut buffer = vec![0; 16 << 10];
        // What is looked for is at the end of what came.
        while !enough(&String::from_utf8_lossy(&all[all.len().saturating_sub(4096)..])) {
            match io.read(&mut buffer).await {
                Ok(n @ 1..) => all.extend_from_slice(&buffer[..n]),
                _ => break,
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("an answer, or an end");
    String::from_utf8_lossy(&all).into_owned()
}

/// Memory of this process that is really there, in bytes.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = text.lines().find(|l| l.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_are_bounded() {
    let served = serve(never()).await;
    let long = format!("GET /healthz HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(2 << 20));
    let many = format!("GET /healthz HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(20_000));
    let line = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(2 << 20));
    for (head, expected) in [(&long, "431"), (&many, "431"), (&line, "4")] {
        let answer = served.talk(head.as_bytes(), |_| false).await;
        // Who is still sending may be cut off before it reads.
        assert!(answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {expected}")), "{answer}");
    }
    let answer = served.talk(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: \xff\xfe\r\n\r\n", |text| text.ends_with("ok")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for nonsense in ["\0\0\0\0", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n"] {
        let answer = served.talk(nonsense.as_bytes(), |text| text.contains("\r\n\r\n")).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{nonsense:?}: {answer}");
    }
    served.is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_bounded_in_size_and_time() {
    let served = serve(never()).await;
    let head = |length: usize| format!("POST {MAPS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    let limit = 3 << 20;
    let large = [head(limit + 1).into_bytes(), vec![b' '; limit + 1]].concat();
    let answer = served.talk(&large, |text| text.trim_end().ends_with('}')).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("Request entity too large: limit is 3145728"), "{answer}");
    // The same without saying so before.
    let mut chunked = format!("POST {MAPS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    for _ in 0..4 {
        chunked.extend_from_slice(format!("{:x}\r\n{}\r\n", 1 << 20, " ".repeat(1 << 20)).as_bytes());
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let answer = served.talk(&chunked, |text| text.trim_end().ends_with('}')).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    // Who says so and then waits for the answer need not wait for a timeout.
    let waits = [head(limit + 1).into_bytes(), vec![b' '; 1 << 10]].concat();
    let answer = served.talk(&waits, |text| text.trim_end().ends_with('}')).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    served.is_well().await;
    // One byte, and then nothing: the time for a request passes.
    let served = serve_within(never(), Duration::from_secs(3)).await;
    let slow = [head(100).as_bytes(), b"{"].concat();
    let begun = Instant::now();
    let answer = served.talk(&slow, |text| text.contains("allotted timeout")).await;
    assert!(answer.starts_with("HTTP/1.1 504") && begun.elapsed() >= Duration::from_secs(2), "{answer}");
    served.is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_heads_and_idle_connections_are_ended() {
    let second = Duration::from_secs(1);
    let served = serve(Timeouts { headers: second, ..never() }).await;
    let mut io = served.dial(b"http/1.1").await;
    io.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ").await.unwrap();
    assert_eq!(read(&mut io, |_| false).await, "");
    let served = serve(Timeouts { idle: second, ..never() }).await;
    for protocol in [&b"http/1.1"[..], b"h2"] {
        let mut io = served.dial(protocol).await;
        if protocol == b"h2" {
            io.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).await.unwrap();
        } else {
            // A connection that was used is ended too.
            io.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        }
        read(&mut io, |_| false).await;
    }
    // A watch is not idle, however quiet.
    let mut io = served.dial(b"http/1.1").await;
    io.write_all(format!("GET {MAPS}?watch=1 HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
    read(&mut io, |text| text.contains("200 OK")).await;
    tokio::time::sleep(3 * second).await;
    served.create("late", 10).await;
    assert!(read(&mut io, |text| text.contains("late")).await.contains("ADDED"));
    served.is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_not_taken_are_given_up() {
    let served = serve(Timeouts { stalled: Duration::from_secs(2), ..never() }).await;
    for i in 0..24 {
        served.create(&format!("large-{i}"), 900_000).await;
    }
    let ask = |what: &str| format!("GET {MAPS}{what} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").into_bytes();
    let length = served.talk(&ask(""), |_| false).await.len();
    assert!(length > 20 << 20, "a list of {length} bytes");
    for what in ["", "?watch=1"] {
        // Nothing is read for long; then there is less than was asked for, and an end.
        let mut io = served.dial(b"http/1.1").await;
        io.write_all(&ask(what)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(8)).await;
        let got = read(&mut io, |_| false).await.len();
        assert!(got < length, "{what}: all {got} bytes were kept for who did not take them");
    }
    // HTTP/2: no window, so not a byte can be sent, and the socket never fills.
    let mut io = served.dial(b"h2").await;
    let no_window = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let requests: Vec<u8> = (0..20).flat_map(|i| request(2 * i + 1, MAPS)).collect();
    io.write_all(&[PREFACE, &no_window, &requests].concat()).await.unwrap();
    read(&mut io, |_| false).await;
    served.is_well().await;
}

/// A client that is gone with half of its connection: a watch for it must not go on for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_closed_watches_end() {
    let served = serve(never()).await;
    let mut io = served.dial(b"http/1.1").await;
    io.write_all(format!("GET {MAPS}?watch=1 HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
    assert!(read(&mut io, |text| text.contains("200 OK")).await.starts_with("HTTP/1.1 200"));
    io.shutdown().await.unwrap();
    read(&mut io, |_| false).await;
    served.is_well().await;
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let mut out = (content.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(content);
    out
}

/// A GET as one HEADERS frame: `:method GET`, `:scheme https`, `:path`, `:authority a`.
fn request(stream: u32, path: &str) -> Vec<u8> {
    let block = [&[0x82, 0x87, 0x04, path.len() as u8], path.as_bytes(), &[0x01, 1, b'a']].concat();
    frame(1, 0x5, stream, &block)
}

/// Sends floods of frames without reading; the server must neither keep what it would answer nor stop serving others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_http2_do_not_grow() {
    let served = serve(never()).await;
    let settings = frame(4, 0, 0, &[]);
    let reset: Vec<u8> = (0..20_000).flat_map(|i| [request(2 * i + 1, "/version"), frame(3, 0, 2 * i + 1, &8u32.to_be_bytes())].concat()).collect();
    let ping = frame(6, 0, 0, &[7; 8]).repeat(200_000);
    let many_settings = frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]).repeat(100_000);
    // A head that never ends, in continuations.
    let block = [&[0x00, 1, b'x', 0x7f][..], &[b'y'; 126]].concat();
    let endless = [frame(1, 0x1, 1, &[0x82, 0x87, 0x84]), frame(9, 0, 1, &block.repeat(100)).repeat(1000)].concat();
    let empty = frame(0, 0, 1, &[]).repeat(100_000);
    let windows = frame(8, 0, 0, &0x7fff_ffffu32.to_be_bytes()).repeat(10);
    for (name, flood) in [("reset", reset), ("ping", ping), ("settings", many_settings), ("head", endless), ("empty", empty), ("window", windows)] {
        let before = memory();
        let mut io = served.dial(b"h2").await;
        let flood = [PREFACE, &settings, &flood].concat();
        // Either it takes everything, or it hangs up, or it waits until we read.
        let _ = tokio::time::timeout(Duration::from_secs(5), io.write_all(&flood)).await;
        let grown = memory().saturating_sub(before) >> 20;
        println!("{name}: {grown} MB");
        assert!(grown < 64, "{name}: {grown} MB");
        served.is_well().await;
    }
}

/// The memory of this process counts both ends, and clients' are the larger.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_cost_little() {
    let (soft, hard) = {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX))
    };
    // Two descriptors a connection: as many as are allowed here.
    let wanted = 10_000.min(hard.saturating_sub(500) / 2) as usize;
    let limit = rustix::process::Rlimit { current: Some(soft.max(wanted as u64 * 2 + 500)), maximum: Some(hard) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let served = serve(never()).await;
    served.is_well().await;
    let before = memory();
    let mut open = Vec::with_capacity(wanted);
    let begun = Instant::now();
    while open.len() < wanted {
        let dials = (0..50.min(wanted - open.len())).map(|_| served.dial(b"http/1.1"));
        open.extend(futures::future::join_all(dials).await);
    }
    let each = memory().saturating_sub(before) / wanted as u64;
    println!("{wanted} connections in {:?}, {} KB each, both ends", begun.elapsed(), each >> 10);
    assert!(each < 100 << 10, "{each} bytes a connection");
    served.is_well().await;
    // A server that stops says goodbye to all of them.
    served.cancel.cancel();
    for io in &mut open {
        read(io, |_| false).await;
    }
}
