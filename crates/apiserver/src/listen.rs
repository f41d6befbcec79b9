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
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
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
pub struct ServingTls(ArcSwap<ServerConfig>);

/// What is wrong with a serving certificate or its key.
#[derive(Debug, thiserror::Error)]
#[error("the serving certificate cannot be used: {0}")]
pub struct TlsError(String);

impl ServingTls {
    /// From PEM: a certificate chain, leaf first, and its private key.
    pub fn new(cert_pem: &str, key_pem: &str) -> Result<Arc<ServingTls>, TlsError> {
        Ok(Arc::new(ServingTls(ArcSwap::new(server_config(cert_pem, key_pem)?))))
    }

    /// Used by connections from now on.
    pub fn replace(&self, cert_pem: &str, key_pem: &str) -> Result<(), TlsError> {
        self.0.store(server_config(cert_pem, key_pem)?);
        Ok(())
    }
}

fn server_config(cert_pem: &str, key_pem: &str) -> Result<Arc<ServerConfig>, TlsError> {
    let fail = |e: &dyn std::fmt::Display| TlsError(e.to_string());
    let chain = CertificateDer::pem_slice_iter(cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(|e| fail(&e))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| fail(&e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| fail(&e))?
        .with_client_cert_verifier(Arc::new(AnyClient(provider)))
        .with_single_cert(chain, key)
        .map_err(|e| fail(&e))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
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
            let config = tls.0.load_full();
            let (server, stop) = (self.clone(), stop.clone());
            connections.spawn(async move {
                if let Err(why) = profile::named("connection", Box::pin(server.connection(tcp, addr, config, stop))).await {
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
        config: Arc<ServerConfig>,
        stop: CancellationToken,
    ) -> Result<(), String> {
        let _ = tcp.set_nodelay(true);
        let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(tcp))
            .await
            .map_err(|_| "TLS handshake timeout".to_string())?
            .map_err(|e| format!("TLS handshake error: {e}"))?;
        let certs = tls.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|c| c.to_vec()).collect();
        let peer = Peer { addr: Some(addr), certs: Arc::new(certs) };
        let activity = Activity::new(self.config.timeouts, tls.get_ref().1.alpn_protocol() != Some(b"h2"));
        let doings = activity.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            let server = self.clone();
            request.extensions_mut().insert(peer.clone());
            let doing = doings.request();
            async move { Ok::<_, std::convert::Infallible>(doing.respond(server.handle(request).await)) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(1 << 20);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(250)
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
        tokio::select! {
            result = connection.as_mut() => return result.map_err(|e| e.to_string()),
            ended = idle => ended?,
            () = stop.cancelled() => {}
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
