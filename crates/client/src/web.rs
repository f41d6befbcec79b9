//! Calls to a web server that is no API server, as a scheduler extender: JSON in (or nothing), bytes out, over HTTP
//! or HTTPS. It keeps one idle connection; calls at the same time make more.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::https::{Credentials, TlsError, server_name, tls_config, tls_config_with};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where Linux distributions keep the certificates that the machine trusts.
const TRUSTED: [&str; 4] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"];

/// How the server proves itself, and who the client is.
#[derive(Clone, Default)]
pub struct WebTls {
    /// The server's certificate is not verified.
    pub insecure: bool,
    /// The name that its certificate must have, and that it is asked for; that of the URL when empty.
    pub server_name: String,
    /// PEM bundle that it must chain to; what the machine trusts when there is none.
    pub ca: Option<String>,
    /// PEM certificate chain and PEM private key of the client.
    pub certificate: Option<(String, String)>,
}

/// Why no calls can be made to a URL.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// The URL has no scheme of the web or no host.
    #[error("{0:?} is no http or https URL")]
    Url(String),
    /// The machine's own trusted certificates were not found.
    #[error("no certificates to trust were found on this machine: name them as the CA")]
    NoTrust,
    /// The TLS material is unusable.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It took too long.
    #[error("{method} {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)")]
    Timeout { method: &'static str, url: String },
    /// The server could not be reached, or broke off.
    #[error("{method} {url:?}: {cause}")]
    Broken { method: &'static str, url: String, cause: BoxError },
}

/// A server to call. Clones share the connection.
#[derive(Clone)]
pub struct Web(Arc<Inner>);

struct Inner {
    url: String,
    authority: String,
    address: String,
    tls: Option<(tokio_rustls::TlsConnector, ServerName<'static>)>,
    timeout: Duration,
    idle: Mutex<Option<http1::SendRequest<Full<Bytes>>>>,
}

impl std::fmt::Debug for Web {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Web").field(&self.0.url).finish()
    }
}

impl Web {
    /// A server at `url`, to which the path of a call is appended. A call takes no longer than `timeout`.
    pub fn new(url: &str, tls: &WebTls, timeout: Duration) -> Result<Web, WebError> {
        let uri: Uri = url.parse().map_err(|_| WebError::Url(url.into()))?;
        let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) else { return Err(WebError::Url(url.into())) };
        let (port, connector) = match scheme {
            "http" => (80, None),
            "https" => {
                let name = if tls.server_name.is_empty() { host } else { &tls.server_name };
                (443, Some((tokio_rustls::TlsConnector::from(Arc::new(configured(tls)?)), server_name(name)?)))
            }
            _ => return Err(WebError::Url(url.into())),
        };
        let address = format!("{host}:{}", uri.port_u16().unwrap_or(port));
        let authority = uri.port().map_or_else(|| host.to_string(), |port| format!("{host}:{port}"));
        let url = url.trim_end_matches('/').to_string();
        Ok(Web(Arc::new(Inner { url, authority, address, tls: connector, timeout, idle: Mutex::new(None) })))
    }

    /// The server's URL, with no slash at its end.
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// Posts JSON to `path` below the URL; answers the status and the body.
    pub async fn post(&self, path: &str, json: Vec<u8>) -> Result<(StatusCode, Bytes), CallError> {
        let url = format!("{}/{path}", self.0.url);
        let request = (Method::POST, json.into(), usize::MAX);
        self.call("Post", url, request).await
    }

    /// Reads what is at the URL itself; no more than `limit` bytes.
    pub async fn get(&self, limit: usize) -> Result<(StatusCode, Bytes), CallError> {
        self.call("Get", self.0.url.clone(), (Method::GET, Bytes::new(), limit)).await
    }

    async fn call(&self, method: &'static str, url: String, request: (Method, Bytes, usize)) -> Result<(StatusCode, Bytes), CallError> {
        match tokio::time::timeout(self.0.timeout, self.0.exchange(&url, request)).await {
            Err(_) => Err(CallError::Timeout { method, url }),
            Ok(Err(cause)) => Err(CallError::Broken { method, url, cause }),
            Ok(Ok(answer)) => Ok(answer),
        }
    }
}

fn configured(tls: &WebTls) -> Result<rustls::ClientConfig, WebError> {
    let credentials = Credentials { certificate: tls.certificate.clone(), token: None };
    let mut config = match (&tls.ca, tls.insecure) {
        (Some(ca), _) => tls_config(ca, &credentials)?,
        // The roots are never asked: the verifier below takes their place.
        (None, true) => tls_config_unverified(&credentials)?,
        (None, false) => {
            let pem = trusted().ok_or(WebError::NoTrust)?;
            let mut roots = rustls::RootCertStore::empty();
            // Bundles of distributions hold a few that are too old to be understood.
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem.as_bytes()).flatten());
            if roots.is_empty() {
                return Err(WebError::NoTrust);
            }
            tls_config_with(roots, &credentials)?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn trusted() -> Option<String> {
    let own = std::env::var("SSL_CERT_FILE").ok();
    own.iter().map(String::as_str).chain(TRUSTED).find_map(|path| std::fs::read_to_string(Path::new(path)).ok())
}

fn tls_config_unverified(credentials: &Credentials) -> Result<rustls::ClientConfig, TlsError> {
    let mut config = tls_config_with(rustls::RootCertStore::empty(), credentials)?;
    config.dangerous().set_certificate_verifier(Arc::new(Unverified(rustls::crypto::ring::default_provider())));
    Ok(config)
}

/// Takes every certificate, as the user has asked; that the server has its key is still checked.
#[derive(Debug)]
struct Unverified(rustls::crypto::CryptoProvider);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(&self, _: &CertificateDer<'_>, _: &[CertificateDer<'_>], _: &ServerName<'_>, _: &[u8], _: UnixTime) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl Inner {
    async fn exchange(&self, url: &str, (method, body, limit): (Method, Bytes, usize)) -> Result<(StatusCode, Bytes), BoxError> {
        let path = url.parse::<Uri>()?.path_and_query().map_or_else(|| "/".to_string(), ToString::to_string);
        let mut kept = self.idle.lock().take().filter(|sender| !sender.is_closed());
        loop {
            let reused = kept.is_some();
            let mut sender = match kept.take() {
                Some(sender) => sender,
                None => self.connect().await?,
            };
            let request = Request::builder()
                .method(&method)
                .uri(&path)
                .header(HOST, &self.authority)
                .header(CONTENT_TYPE, "application/json")
                .body(Full::new(body.clone()))?;
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let status = response.status();
                    let closes = response.headers().get(CONNECTION).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"close"));
                    let stays = response.version() >= Version::HTTP_11 && !closes;
                    let body = Limited::new(response.into_body(), limit).collect().await?.to_bytes();
                    if stays {
                        *self.idle.lock() = Some(sender);
                    }
                    return Ok((status, body));
                }
                // The server had closed the idle connection, and has seen nothing of the call.
                Err(error) if reused && error.message().is_some() => {}
                Err(error) => return Err(error.into_error().into()),
            }
        }
    }

    async fn connect(&self) -> Result<http1::SendRequest<Full<Bytes>>, BoxError> {
        let tcp = TcpStream::connect(&self.address).await.map_err(|e| format!("dial tcp {}: {e}", self.address))?;
        tcp.set_nodelay(true)?;
        match &self.tls {
            None => speak(tcp).await,
            Some((connector, name)) => speak(connector.connect(name.clone(), tcp).await?).await,
        }
    }
}

async fn speak<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S) -> Result<http1::SendRequest<Full<Bytes>>, BoxError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // The driver ends with the connection, which ends with its sender.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to a web server ended");
        }
    });
    sender.ready().await?;
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};
    use pki::{Ca, CertRequest, Usage};
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server by the name `extender.test` that asks clients for certificates of its CA when `mutual`.
    /// It closes each connection after its first answer, as servers of HTTP/1.0 do.
    async fn server(mutual: bool) -> (u16, Ca, (String, String)) {
        let now = Timestamp::now();
        let lifetime = SignedDuration::from_hours(1);
        let ca = Ca::new("test", now, lifetime).expect("a CA");
        let issue = |usage, sans: &[&str]| {
            let request = CertRequest { cn: "test".into(), sans: sans.iter().map(|s| s.to_string()).collect(), usages: vec![usage], lifetime, ..CertRequest::default() };
            let pair = ca.issue(&request, now).expect("a certificate");
            (pair.cert_pem.clone(), pair.key_pem.clone())
        };
        let (chain, key) = issue(Usage::Server, &["extender.test"]);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().expect("versions");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.cert_der().to_vec().into()).expect("a root");
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("a verifier");
        let builder = if mutual { builder.with_client_cert_verifier(verifier) } else { builder.with_no_client_auth() };
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(|c| c.expect("a certificate")).collect();
        let config = builder.with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key")).expect("a configuration");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut read = [0; 4096];
                if stream.read(&mut read).await.is_ok_and(|n| n > 0) {
                    let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
                    let _ = stream.shutdown().await;
                }
            }
        });
        let client = issue(Usage::Client, &[]);
        (port, ca, client)
    }

    async fn post(port: u16, tls: &WebTls) -> Result<(), String> {
        let web = Web::new(&format!("https://127.0.0.1:{port}/x"), tls, Duration::from_secs(20)).map_err(|e| e.to_string())?;
        // Each needs a connection of its own.
        for _ in 0..2 {
            let (status, body) = web.post("filter", b"{}".to_vec()).await.map_err(|e| e.to_string())?;
            assert_eq!((status, &body[..]), (StatusCode::OK, &b"{}"[..]));
        }
        assert_eq!(web.get(2).await.map_err(|e| e.to_string())?.1, "{}");
        assert!(web.get(1).await.expect_err("too long").to_string().starts_with("Get \"https://127.0.0.1:"));
        Ok(())
    }

    #[tokio::test]
    async fn the_server_must_prove_itself_unless_told_otherwise() {
        let (port, ca, _) = server(false).await;
        let trusting = WebTls { ca: Some(ca.cert_pem().into()), server_name: "extender.test".into(), ..WebTls::default() };
        assert_eq!(post(port, &trusting).await, Ok(()));
        assert_eq!(post(port, &WebTls { insecure: true, ..WebTls::default() }).await, Ok(()));
        let nameless = WebTls { server_name: String::new(), ..trusting.clone() };
        assert!(post(port, &nameless).await.expect_err("its certificate is for another name").contains("Post \"https://127.0.0.1:"));
        let other = Ca::new("other", Timestamp::now(), SignedDuration::from_hours(1)).expect("a CA");
        assert!(post(port, &WebTls { ca: Some(other.cert_pem().into()), ..trusting }).await.is_err(), "it is of another CA");
    }

    #[tokio::test]
    async fn the_client_shows_its_certificate() {
        let (port, ca, certificate) = server(true).await;
        let anonymous = WebTls { ca: Some(ca.cert_pem().into()), server_name: "extender.test".into(), ..WebTls::default() };
        assert!(post(port, &anonymous).await.is_err());
        assert_eq!(post(port, &WebTls { certificate: Some(certificate), ..anonymous }).await, Ok(()));
    }
}
