//! The HTTPS transport: one connection to one server, or to one of several that a [`Dial`] chooses, HTTP/2 by ALPN, made
//! anew when it breaks.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{AUTHORIZATION, HOST, HeaderValue};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::Body;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tower::Service;

use crate::link::{Dial, Link};

/// How a client proves who it is.
#[derive(Clone, Default)]
pub struct Credentials {
    /// PEM certificate chain and PEM private key of the client.
    pub certificate: Option<(String, String)>,
    /// Bearer token.
    pub token: Option<String>,
}

/// Why a TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA bundle holds no usable certificate.
    #[error("the CA bundle cannot be used: {0}")]
    Ca(String),
    /// The client's certificate or key cannot be used.
    #[error("the client certificate cannot be used: {0}")]
    Client(String),
    /// The server's name or address is neither.
    #[error("{0:?} is neither a DNS name nor an IP address")]
    ServerName(String),
}

/// The TLS configuration of a client that trusts the PEM bundle `ca` alone.
pub fn tls_config(ca: &str, credentials: &Credentials) -> Result<rustls::ClientConfig, TlsError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        let certificate = certificate.map_err(|e| TlsError::Ca(e.to_string()))?;
        roots.add(certificate).map_err(|e| TlsError::Ca(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(TlsError::Ca("it holds no certificate".into()));
    }
    tls_config_with(roots, credentials)
}

/// The TLS configuration of a client that trusts these roots.
pub(crate) fn tls_config_with(roots: rustls::RootCertStore, credentials: &Credentials) -> Result<rustls::ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Client(e.to_string()))?
        .with_root_certificates(roots);
    let load = |key| rustls::crypto::ring::default_provider().key_provider.load_private_key(key);
    let mut config = match &credentials.certificate {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| TlsError::Client(e.to_string()))?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                .map_err(|e| TlsError::Client(e.to_string()))?;
            // Guides make X.509 v1 certificates, which rustls would refuse to look into; whether it is
            // good is for the server to say.
            let key = load(key).map_err(|e| TlsError::Client(e.to_string()))?;
            let certified = rustls::sign::CertifiedKey::new(chain, key);
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)))
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Parses a host as it stands in a URL (IPv6 in brackets) into what TLS verifies.
pub fn server_name(host: &str) -> Result<ServerName<'static>, TlsError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_string();
    ServerName::try_from(bare).map_err(|_| TlsError::ServerName(host.to_string()))
}

/// The transport itself; clones share the connection.
#[derive(Clone)]
pub struct Https(Arc<Inner>);

struct Inner {
    authority: String,
    name: ServerName<'static>,
    dial: Option<Arc<dyn Dial>>,
    tls: tokio_rustls::TlsConnector,
    authorization: Option<HeaderValue>,
    /// What is shown to the server in place of the credentials' certificate.
    own: Option<Arc<pki::Renewable>>,
    /// The connection, and which of the certificates it was made with.
    shared: Mutex<Option<(u64, http2::SendRequest<Body>)>>,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Https {
    /// A transport to `url` (`https://host:port`) that trusts the PEM bundle `ca`.
    pub fn new(url: &str, ca: &str, credentials: &Credentials) -> Result<Https, TlsError> {
        Https::with(url, None, tls_config(ca, credentials)?, credentials)
    }

    /// A transport to whichever server `dial` leads to; `url` is what requests call it.
    pub fn over(dial: Arc<dyn Dial>, url: &str, ca: &str, credentials: &Credentials) -> Result<Https, TlsError> {
        Https::with(url, Some(dial), tls_config(ca, credentials)?, credentials)
    }

    /// A transport to `url`, to whoever is there, as nobody: for what is checked otherwise (a signed `cluster-info`).
    pub fn unverified(url: &str) -> Result<Https, TlsError> {
        Https::with(url, None, crate::discover::unverified()?, &Credentials::default())
    }

    fn with(url: &str, dial: Option<Arc<dyn Dial>>, tls: rustls::ClientConfig, credentials: &Credentials) -> Result<Https, TlsError> {
        let uri: Uri = url.parse().map_err(|_| TlsError::ServerName(url.to_string()))?;
        let host = uri.host().ok_or_else(|| TlsError::ServerName(url.to_string()))?;
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(443));
        let authorization = match &credentials.token {
            None => None,
            Some(token) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                    .map_err(|_| TlsError::Client("the token holds control characters".into()))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Https(Arc::new(Inner {
            name: server_name(host)?,
            authority,
            dial,
            tls: tokio_rustls::TlsConnector::from(Arc::new(tls)),
            authorization,
            own: None,
            shared: Mutex::new(None),
        })))
    }

    /// The same, showing `own`: when that is replaced the next request makes a new connection.
    pub fn showing(&self, own: Arc<pki::Renewable>) -> Https {
        let tls = own.shown_by(rustls::ClientConfig::clone(self.0.tls.config()));
        Https(Arc::new(Inner {
            name: self.0.name.clone(),
            authority: self.0.authority.clone(),
            dial: self.0.dial.clone(),
            tls: tokio_rustls::TlsConnector::from(Arc::new(tls)),
            authorization: self.0.authorization.clone(),
            own: Some(own),
            shared: Mutex::new(None),
        }))
    }
}

impl Inner {
    async fn connect(&self) -> io::Result<tokio_rustls::client::TlsStream<Link>> {
        let connect = async {
            let (link, name) = match &self.dial {
                Some(dial) => {
                    let (link, host) = dial.dial().await?;
                    (link, server_name(&host).map_err(io::Error::other)?)
                }
                None => (Link::new(TcpStream::connect(&self.authority).await?, None)?, self.name.clone()),
            };
            self.tls.connect(name, link).await
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|e| io::Error::new(e.kind(), format!("connecting to {}: {e}", self.authority)))
    }

    async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        if let Some(value) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, value.clone());
        }
        let mut shared = self.shared.lock().await;
        let turn = self.own.as_ref().map_or(0, |own| own.turn());
        if let Some((_, sender)) = shared.as_ref().filter(|(made, s)| *made == turn && !s.is_closed()) {
            let mut sender = sender.clone();
            drop(shared);
            return Ok(sender.send_request(self.absolute(request)?).await?);
        }
        let stream = self.connect().await?;
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(4 << 20)
                .keep_alive_interval(Duration::from_secs(30))
                .keep_alive_timeout(Duration::from_secs(15))
                .timer(hyper_util::rt::TokioTimer::new())
                .handshake(TokioIo::new(stream))
                .await?;
            // The driver ends with the connection, which ends with its last sender.
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "the connection to the API server ended");
                }
            });
            *shared = Some((turn, sender.clone()));
            drop(shared);
            return Ok(sender.send_request(self.absolute(request)?).await?);
        }
        drop(shared);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "the connection to the API server ended");
            }
        });
        request.headers_mut().insert(HOST, HeaderValue::from_str(&self.authority)?);
        Ok(sender.send_request(request).await?)
    }

    fn absolute(&self, mut request: Request<Body>) -> Result<Request<Body>, http::Error> {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(http::uri::Scheme::HTTPS);
        parts.authority = Some(self.authority.parse()?);
        *request.uri_mut() = Uri::from_parts(parts)?;
        Ok(request)
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Request<Body>> for Https {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move { inner.send(request).await })
    }
}
