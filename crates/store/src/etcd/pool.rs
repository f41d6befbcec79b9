//! Connections to etcd's members: one at a time, to a member that answers and knows a leader; the next member when
//! it is lost. And calls: what may be sent again is, elsewhere, until the caller's time is over.

use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use proto::Message;
use proto::etcd::{StatusRequest, StatusResponse, method};
use proto::grpc::{self, Channel, Code, Settings};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::Options;

/// Upstream's settings: how long connecting may take in all, and how a dead connection is found.
pub(super) const DIAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one of several members may take to connect before the next one is tried.
const CONNECT: Duration = Duration::from_secs(2);
/// A call that has waited this long asks whether the member is still there.
const PATIENCE: Duration = Duration::from_secs(1);
/// And this is how long the member may take to say so.
const PROBE: Duration = Duration::from_secs(2);
/// Pauses between attempts.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Why a store on etcd could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An endpoint is not a URL.
    #[error("the etcd endpoint {endpoint:?} is not of the form https://host:port")]
    Endpoint {
        /// As it was given.
        endpoint: String,
    },
    /// No endpoint.
    #[error("no etcd endpoint is given")]
    NoEndpoint,
    /// A certificate or key cannot be used.
    #[error("etcd's {what} cannot be used: {message}")]
    Tls {
        /// Which one.
        what: &'static str,
        /// The cause.
        message: String,
    },
    /// etcd did not answer.
    #[error("etcd cannot be reached")]
    Unreachable(#[source] crate::Error),
}

struct Endpoint {
    /// As it was given.
    url: String,
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// A connection to one member.
pub(super) struct Link {
    pub channel: Channel,
    /// Shares the connection's socket, to end it when it hangs.
    socket: std::net::TcpStream,
    dead: AtomicBool,
    /// Whether calls go elsewhere by now.
    left: watch::Sender<bool>,
}

impl Link {
    /// Ends the connection: everything that waits on it fails at once.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Waits until calls go elsewhere: then nobody sees any more whether the member still answers.
    pub async fn left(&self) {
        // The sender is here as long as this is waited for.
        let _ = self.left.subscribe().wait_for(|left| *left).await;
    }

    fn usable(&self) -> bool {
        !self.dead.load(Ordering::Relaxed) && !self.channel.is_closed()
    }

    /// Whether the member still answers.
    async fn alive(&self) -> bool {
        let asked = self.channel.unary::<_, StatusResponse>(method::STATUS, &StatusRequest {}, PROBE).await;
        !matches!(asked, Err(status) if matches!(status.code, Code::DeadlineExceeded | Code::Unavailable))
    }
}

/// Whether a call changes something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It may be sent again whatever became of it.
    Always,
    /// Only when it certainly did not reach etcd.
    Unsent,
}

pub(super) struct Pool {
    endpoints: Vec<Endpoint>,
    current: tokio::sync::Mutex<Option<Arc<Link>>>,
    /// The same, to be ended without waiting.
    last: Mutex<Option<Arc<Link>>>,
    /// The endpoint that is tried first.
    first: AtomicUsize,
    closed: AtomicBool,
}

impl Pool {
    pub fn new(options: &Options) -> Result<Self, OpenError> {
        let endpoints = options.endpoints.iter().map(|url| endpoint(url, options)).collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(OpenError::NoEndpoint);
        }
        Ok(Self {
            endpoints,
            current: tokio::sync::Mutex::new(None),
            last: Mutex::new(None),
            first: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        })
    }

    /// All endpoints, for error messages.
    pub fn name(&self) -> String {
        self.endpoints.iter().map(|e| e.url.as_str()).collect::<Vec<_>>().join(",")
    }

    /// How many endpoints there are.
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Ends the connection; no other is made.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        if let Some(link) = self.last.lock().take() {
            link.kill();
        }
    }

    /// The connection that is in use, or a new one.
    pub async fn link(&self, deadline: Instant) -> Result<Arc<Link>, grpc::Status> {
        let late = |why: &str| grpc::Status { unsent: true, ..grpc::Status::new(Code::Unavailable, format!("no member can be reached: {why}")) };
        let Ok(mut current) = tokio::time::timeout_at(deadline, self.current.lock()).await else {
            return Err(late("connecting takes too long"));
        };
        if let Some(link) = current.as_ref().filter(|link| link.usable()) {
            return Ok(link.clone());
        }
        let (mut pause, mut why) = (PAUSE, String::new());
        loop {
            let first = self.first.load(Ordering::Relaxed);
            for at in (first..first + self.len()).map(|at| at % self.len()) {
                if self.closed.load(Ordering::SeqCst) {
                    return Err(late("the store is closed"));
                }
                let limit = if self.len() > 1 { CONNECT } else { DIAL };
                match tokio::time::timeout_at(deadline.min(Instant::now() + limit), self.connect(at)).await {
                    Ok(Ok(link)) => {
                        let link = Arc::new(link);
                        self.first.store(at, Ordering::Relaxed);
                        *self.last.lock() = Some(link.clone());
                        *current = Some(link.clone());
                        // Closed meanwhile: that one has not seen this link.
                        if self.closed.load(Ordering::SeqCst) {
                            link.kill();
                        }
                        return Ok(link);
                    }
                    Ok(Err(status)) => why = format!("{}: {status}", self.endpoints[at].url),
                    Err(_) => why = format!("{}: connecting takes too long", self.endpoints[at].url),
                }
                if Instant::now() >= deadline {
                    return Err(late(&why));
                }
            }
            if Instant::now() + pause >= deadline {
                return Err(late(&why));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Goes to another member next time. Calls that run on this connection go on; watches are told.
    pub async fn leave(&self, link: &Arc<Link>) {
        if self.len() == 1 {
            return;
        }
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|c| Arc::ptr_eq(c, link)) {
            *current = None;
            link.left.send_replace(true);
            self.first.store((self.first.load(Ordering::Relaxed) + 1) % self.len(), Ordering::Relaxed);
        }
    }

    /// Connects to one member, and finds out whether it can serve.
    pub async fn connect(&self, at: usize) -> Result<Link, grpc::Status> {
        let endpoint = &self.endpoints[at];
        let failed = |error: std::io::Error| grpc::Status { unsent: true, ..grpc::Status::new(Code::Unavailable, error.to_string()) };
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let stream = stream.into_std().map_err(failed)?;
        let socket = stream.try_clone().map_err(failed)?;
        let stream = TcpStream::from_std(stream).map_err(failed)?;
        let mut settings = Settings { keep_alive: KEEP_ALIVE, keep_alive_timeout: KEEP_ALIVE_TIMEOUT, ..Settings::default() };
        // A member without a leader refuses at once, and ends its watches.
        settings.headers.insert("hasleader", http::HeaderValue::from_static("true"));
        let channel = match &endpoint.tls {
            None => {
                let (channel, connection) = grpc::connect(stream, &format!("http://{}:{}", endpoint.host, endpoint.port), settings).await?;
                tokio::spawn(connection);
                channel
            }
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await.map_err(failed)?;
                let (channel, connection) = grpc::connect(stream, &format!("https://{}:{}", endpoint.host, endpoint.port), settings).await?;
                tokio::spawn(connection);
                channel
            }
        };
        let link = Link { channel, socket, dead: AtomicBool::new(false), left: watch::Sender::new(false) };
        let status: StatusResponse = link.channel.unary(method::STATUS, &StatusRequest {}, DIAL).await?;
        if status.leader == 0 {
            return Err(grpc::Status { unsent: true, ..grpc::Status::new(Code::Unavailable, "the member has no leader") });
        }
        Ok(link)
    }

    /// Makes a call within `limit`.
    pub async fn call<Q: Message, S: Message + Default>(
        &self,
        method: &'static str,
        request: &Q,
        repeat: Repeat,
        limit: Duration,
    ) -> Result<S, grpc::Status> {
        let deadline = Instant::now() + limit;
        let mut pause = PAUSE;
        loop {
            let link = self.link(deadline).await?;
            let status = match self.attempt(&link, method, request, deadline).await {
                Ok(response) => return Ok(response),
                Err(status) => status,
            };
            if status.code == Code::Unavailable {
                self.leave(&link).await;
            }
            // This one is said before anything is proposed to the cluster.
            let refused = status.unsent || status.message == "etcdserver: no leader";
            let again = status.code == Code::Unavailable && (refused || repeat == Repeat::Always);
            if !again || self.closed.load(Ordering::SeqCst) || Instant::now() + pause >= deadline {
                return Err(status);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One attempt. A member that does not answer is asked whether it is there, and given up if not.
    async fn attempt<Q: Message, S: Message + Default>(
        &self,
        link: &Link,
        method: &'static str,
        request: &Q,
        deadline: Instant,
    ) -> Result<S, grpc::Status> {
        let call = link.channel.unary(method, request, deadline.saturating_duration_since(Instant::now()));
        tokio::pin!(call);
        loop {
            if let Ok(answer) = tokio::time::timeout(PATIENCE, &mut call).await {
                return answer;
            }
            tokio::select! {
                answer = &mut call => return answer,
                alive = link.alive() => if !alive {
                    // Watches on it fail too, and go elsewhere.
                    link.kill();
                    return Err(grpc::Status::new(Code::Unavailable, "the member has stopped answering"));
                }
            }
        }
    }
}

fn endpoint(url: &str, options: &Options) -> Result<Endpoint, OpenError> {
    let bad = || OpenError::Endpoint { endpoint: url.to_owned() };
    let uri: http::Uri = url.parse().map_err(|_| bad())?;
    let host = uri.host().ok_or_else(bad)?.trim_start_matches('[').trim_end_matches(']').to_owned();
    let tls = match uri.scheme_str() {
        Some("http") => None,
        Some("https") => {
            let name = ServerName::try_from(host.clone()).map_err(|_| bad())?;
            Some((connector(options)?, name))
        }
        _ => return Err(bad()),
    };
    if !matches!(uri.path(), "" | "/") {
        return Err(bad());
    }
    Ok(Endpoint { url: url.trim_end_matches('/').to_owned(), host, port: uri.port_u16().unwrap_or(2379), tls })
}

fn connector(options: &Options) -> Result<TlsConnector, OpenError> {
    let bad = |what| move |message: String| OpenError::Tls { what, message };
    let certificates = |pem: &[u8], what| {
        let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|e| bad(what)(e.to_string()))?;
        if found.is_empty() { Err(bad(what)("it holds no certificate".to_owned())) } else { Ok(found) }
    };
    let mut roots = rustls::RootCertStore::empty();
    let ca = options.ca.as_deref().ok_or_else(|| bad("CA")("none is given, and the endpoint is https".to_owned()))?;
    for certificate in certificates(ca, "CA")? {
        roots.add(certificate).map_err(|e| bad("CA")(e.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("CA")(e.to_string()))?
        .with_root_certificates(roots);
    let mut config = match (&options.shown, &options.identity) {
        (Some(shown), _) => builder.with_client_cert_resolver(shown.clone()),
        (None, None) => builder.with_no_client_auth(),
        (None, Some((certificate, key))) => {
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| bad("client key")(e.to_string()))?;
            let chain = certificates(certificate, "client certificate")?;
            builder.with_client_auth_cert(chain, key).map_err(|e| bad("client certificate")(e.to_string()))?
        }
    };
    if options.shown.is_some() {
        // A session that is resumed goes on with the certificate that it began with.
        config.resumption = rustls::client::Resumption::disabled();
    }
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}
