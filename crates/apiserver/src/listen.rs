//! The TLS listener: HTTP/1.1 and HTTP/2 by ALPN, optional client certificates, upgrades, draining.
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature_with_raw_key};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use x509_parser::prelude::FromDer;

use crate::activity::{Activity, Verdict, Watched};
use crate::authn::Peer;
use crate::profile;
use crate::server::Server;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long open requests may take to end once the server is told to stop.
const DRAIN: Duration = Duration::from_secs(3);

/// The serving certificate, replaceable while serving.
pub struct ServingTls {
    config: ArcSwap<ServerConfig>,
    options: TlsOptions,
}

/// How connections are secured and multiplexed, beside the certificate.
#[derive(Debug, Clone)]
pub struct TlsOptions {
    /// TLS 1.3 alone; 1.2 too, otherwise.
    pub only_13: bool,
    /// The only cipher suites of TLS 1.2 ([`TlsOptions::suites`]); all that there are, if none is given.
    pub suites: Vec<CipherSuite>,
    /// Certificates for clients that name one of their hosts.
    pub named: Vec<NamedCertificate>,
    /// Whether HTTP/2 is spoken, beside HTTP/1.1.
    pub http2: bool,
    /// Requests at once on a connection of HTTP/2.
    pub max_streams: u32,
    /// The share of requests over HTTP/2 after which the client is asked to connect anew, from 0 to 1.
    pub goaway_chance: f64,
}

impl Default for TlsOptions {
    fn default() -> TlsOptions {
        TlsOptions { only_13: false, suites: Vec::new(), named: Vec::new(), http2: true, max_streams: 250, goaway_chance: 0.0 }
    }
}

/// A certificate and the hosts it is for, `example.com` or `*.example.com`; without any, those that it names itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedCertificate {
    pub hosts: Vec<String>,
    pub cert_pem: String,
    pub key_pem: String,
}

/// What is wrong with a serving certificate or its key.
#[derive(Debug, thiserror::Error)]
#[error("the serving certificate cannot be used: {0}")]
pub struct TlsError(String);

/// Suites that upstream knows by these names, and that are not spoken here: they are weak.
const UNSPOKEN: [&str; 16] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

impl TlsOptions {
    /// Cipher suites by Go's names, and those of the names that nothing is done with. Those of TLS 1.3 cannot be chosen.
    pub fn suites(names: &[String]) -> Result<(Vec<CipherSuite>, Vec<&str>), String> {
        let spoken = rustls::crypto::ring::default_provider().cipher_suites;
        let (mut suites, mut unspoken) = (Vec::new(), Vec::new());
        for name in names {
            let is = |known: &CipherSuite| {
                let known = format!("{known:?}");
                known == *name || known.strip_suffix("_SHA256").is_some_and(|k| k == name && k.ends_with("CHACHA20_POLY1305")) || known.replacen("TLS13_", "TLS_", 1) == *name
            };
            match spoken.iter().find(|suite| is(&suite.suite())) {
                Some(suite) => suites.push(suite.suite()),
                None if UNSPOKEN.contains(&name.as_str()) => unspoken.push(name.as_str()),
                None => return Err(format!("Cipher suite {name} not supported or doesn't exist")),
            }
        }
        if suites.is_empty() && !unspoken.is_empty() {
            return Err(format!("none of the cipher suites {} is spoken here: name one of ECDHE with GCM or CHACHA20", unspoken.join(", ")));
        }
        Ok((suites, unspoken))
    }
}

impl ServingTls {
    /// From PEM: a certificate chain, leaf first, and its private key.
    pub fn new(cert_pem: &str, key_pem: &str) -> Result<Arc<ServingTls>, TlsError> {
        ServingTls::with(cert_pem, key_pem, TlsOptions::default())
    }

    pub fn with(cert_pem: &str, key_pem: &str, options: TlsOptions) -> Result<Arc<ServingTls>, TlsError> {
        let config = ArcSwap::new(server_config(cert_pem, key_pem, &options)?);
        Ok(Arc::new(ServingTls { config, options }))
    }

    /// Used by connections from now on.
    pub fn replace(&self, cert_pem: &str, key_pem: &str) -> Result<(), TlsError> {
        self.config.store(server_config(cert_pem, key_pem, &self.options)?);
        Ok(())
    }
}

fn server_config(cert_pem: &str, key_pem: &str, options: &TlsOptions) -> Result<Arc<ServerConfig>, TlsError> {
    let mut provider = rustls::crypto::ring::default_provider();
    if !options.suites.is_empty() {
        provider.cipher_suites.retain(|suite| suite.tls13().is_some() || options.suites.contains(&suite.suite()));
    }
    let provider = Arc::new(provider);
    let mut certificates = Certificates { default: certified(cert_pem, key_pem, &provider)?, named: Vec::new() };
    for named in &options.named {
        let key = certified(&named.cert_pem, &named.key_pem, &provider)?;
        let hosts = if named.hosts.is_empty() { hosts(&named.cert_pem)? } else { named.hosts.clone() };
        certificates.named.extend(hosts.into_iter().map(|host| (host.to_ascii_lowercase(), key.clone())));
    }
    let versions: &[&rustls::SupportedProtocolVersion] = if options.only_13 { &[&rustls::version::TLS13] } else { &[&rustls::version::TLS13, &rustls::version::TLS12] };
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(|e| TlsError(e.to_string()))?
        .with_client_cert_verifier(Arc::new(AnyClient(provider)))
        .with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = if options.http2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { vec![b"http/1.1".to_vec()] };
    Ok(Arc::new(config))
}

fn certified(cert_pem: &str, key_pem: &str, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, TlsError> {
    let fail = |e: &dyn std::fmt::Display| TlsError(e.to_string());
    let chain = CertificateDer::pem_slice_iter(cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(|e| fail(&e))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| fail(&e))?;
    CertifiedKey::from_der(chain, key, provider).map(Arc::new).map_err(|e| fail(&e))
}

/// The hosts that a certificate is for: its names and its common name, without addresses, which clients do not name.
fn hosts(cert_pem: &str) -> Result<Vec<String>, TlsError> {
    let fail = |e: pki::Error| TlsError(e.to_string());
    let common = pki::Peer::from_pem(cert_pem).map_err(fail)?.cn;
    let names = pki::names_of(cert_pem).map_err(fail)?.into_iter().chain([common]);
    Ok(names.filter(|name| !name.is_empty() && name.parse::<std::net::IpAddr>().is_err()).collect())
}

/// The certificates that are shown: by the host that the client names, or the one for all others.
#[derive(Debug)]
struct Certificates {
    default: Arc<CertifiedKey>,
    named: Vec<(String, Arc<CertifiedKey>)>,
}

impl Certificates {
    fn of(&self, host: Option<&str>) -> Arc<CertifiedKey> {
        let host = host.unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
        let any = host.split_once('.').map(|(_, rest)| format!("*.{rest}"));
        let find = |wanted: &str| self.named.iter().find(|(name, _)| name == wanted).map(|(_, key)| key.clone());
        find(&host).or_else(|| find(&any?)).unwrap_or_else(|| self.default.clone())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.of(hello.server_name()))
    }
}

impl Server {
    /// Serves connections until cancelled, then lets open requests end (watches end at once).
    pub async fn listen(self: Arc<Server>, listener: TcpListener, tls: Arc<ServingTls>, cancel: CancellationToken) {
        let connections = TaskTracker::new();
        let stop = CancellationToken::new();
        loop {
            let (tcp, addr) = tokio::select! {
                () = cancel.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // out of descriptors, or the peer was gone already: neither ends the server
                        tracing::warn!(%error, "accepting a connection failed");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                },
            };
            let (server, tls, stop) = (self.clone(), tls.clone(), stop.clone());
            connections.spawn(async move {
                if let Err(why) = profile::named("connection", Box::pin(server.connection(tcp, addr, &tls, stop))).await {
                    tracing::debug!(peer = %addr, why, "a connection ended");
                }
            });
        }
        drop(listener);
        stop.cancel();
        self.core.closing.cancel();
        connections.close();
        let _ = tokio::time::timeout(DRAIN, connections.wait()).await;
        self.writes.close();
        let _ = tokio::time::timeout(DRAIN, self.writes.wait()).await;
        self.flush_audit().await;
    }

    async fn connection(
        self: Arc<Server>,
        tcp: TcpStream,
        addr: std::net::SocketAddr,
        serving: &ServingTls,
        stop: CancellationToken,
    ) -> Result<(), String> {
        let _ = tcp.set_nodelay(true);
        let (config, options) = (serving.config.load_full(), &serving.options);
        let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(tcp))
            .await
            .map_err(|_| "TLS handshake timeout".to_string())?
            .map_err(|e| format!("TLS handshake error: {e}"))?;
        let certs = tls.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|c| c.to_vec()).collect();
        let peer = Peer { addr: Some(addr), certs: Arc::new(certs) };
        let activity = Activity::new(self.config.timeouts, tls.get_ref().1.alpn_protocol() != Some(b"h2"));
        let doings = activity.clone();
        let (goaway, chance) = (Arc::new(Notify::new()), options.goaway_chance);
        let leave = goaway.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            let server = self.clone();
            request.extensions_mut().insert(peer.clone());
            if chance > 0.0 && request.version() == http::Version::HTTP_2 && rand::random::<f64>() < chance {
                leave.notify_one();
            }
            let doing = doings.request();
            async move { Ok::<_, std::convert::Infallible>(doing.respond(server.handle(request).await)) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(1 << 20);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(options.max_streams)
            .keep_alive_interval(Duration::from_secs(30))
            .max_header_list_size(1 << 20);
        let io = Watched { io: tls, activity: activity.clone() };
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(io), service);
        let mut connection = std::pin::pin!(connection);
        let idle = async {
            loop {
                match activity.verdict(Instant::now()) {
                    Verdict::Until(then) => tokio::time::sleep_until(then.into()).await,
                    Verdict::Idle => return Ok(()),
                    Verdict::Cut(why) => return Err(why.to_string()),
                }
            }
        };
        let mut idle = std::pin::pin!(idle);
        let mut leaving = false;
        loop {
            tokio::select! {
                result = connection.as_mut() => return result.map_err(|e| e.to_string()),
                ended = idle.as_mut() => break ended?,
                () = stop.cancelled() => break,
                // the requests that are there are served to their ends
                () = goaway.notified(), if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
        connection.as_mut().graceful_shutdown();
        match tokio::time::timeout(DRAIN, connection).await {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(_) => Err("cut at shutdown".into()),
        }
    }
}

/// Takes any client certificate whose key the client has; whether it is trusted is decided by authentication, so that a
/// bad one is a 401 and not a broken connection, and certificates of X.509 version 1 are no special case.
#[derive(Debug)]
struct AnyClient(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(&self, _: &CertificateDer<'_>, _: &[CertificateDer<'_>], _: UnixTime) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(cert)
            .map_err(|_| rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding))?;
        let key = SubjectPublicKeyInfoDer::from(parsed.public_key().raw);
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
