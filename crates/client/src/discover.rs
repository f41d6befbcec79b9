//! Fetches an API server's CA by its fingerprint: what a new node knows of the cluster that it joins.
//!
//! The connection is used for nothing but the certificates in its handshake, so it may be to anyone:
//! a certificate that does not have the fingerprint is thrown away.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;

use crate::https::{TlsError, server_name};

/// Why the CA could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// The URL names no server.
    #[error("{0:?} is no URL of an API server: https://HOST:PORT is meant")]
    Url(String),
    /// The server cannot be reached.
    #[error("connecting to {server}: {source}")]
    Connect { server: String, source: io::Error },
    /// No certificate that the server showed has the fingerprint.
    #[error("{server} is not the cluster that the token is for: none of its {shown} certificates has the fingerprint {wanted}")]
    Stranger { server: String, shown: usize, wanted: String },
    /// The host's name is none.
    #[error(transparent)]
    Name(#[from] TlsError),
}

/// The PEM of the CA certificate whose SHA-256 fingerprint (hexadecimal) is `fingerprint`.
pub async fn discover_ca(url: &str, fingerprint: &str) -> Result<String, DiscoverError> {
    let uri: http::Uri = url.parse().map_err(|_| DiscoverError::Url(url.into()))?;
    let host = uri.host().ok_or_else(|| DiscoverError::Url(url.into()))?;
    let server = format!("{host}:{}", uri.port_u16().unwrap_or(443));
    let seen = Arc::new(Seen::default());
    let config = noting(seen.clone())?;
    let name = server_name(host)?;
    let connect = async {
        let tcp = TcpStream::connect(&server).await?;
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    };
    tokio::time::timeout(Duration::from_secs(10), connect)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|source| DiscoverError::Connect { server: server.clone(), source })?;
    let shown = seen.0.lock().clone();
    let found = shown.iter().find(|der| fingerprint_of(der).eq_ignore_ascii_case(fingerprint));
    match found {
        Some(der) => Ok(pem(der)),
        None => Err(DiscoverError::Stranger { server, shown: shown.len(), wanted: fingerprint.into() }),
    }
}

fn noting(seen: Arc<Seen>) -> Result<rustls::ClientConfig, TlsError> {
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Client(e.to_string()))?;
    Ok(builder.dangerous().with_custom_certificate_verifier(seen).with_no_client_auth())
}

/// The TLS configuration of a client that talks to anybody.
pub(crate) fn unverified() -> Result<rustls::ClientConfig, TlsError> {
    noting(Arc::default())
}

/// The SHA-256 fingerprint of a certificate, in hexadecimal.
pub fn fingerprint_of(der: &[u8]) -> String {
    let digest = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256
        .tls13()
        .map(|suite| suite.common.hash_provider.hash(der));
    digest.map(|d| d.as_ref().iter().map(|b| format!("{b:02x}")).collect()).unwrap_or_default()
}

fn pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|c| std::str::from_utf8(c).unwrap_or_default()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Notes what the server shows. Signatures are not checked here: nothing is sent.
#[derive(Debug, Default)]
struct Seen(Mutex<Vec<Vec<u8>>>);

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock() = std::iter::once(end).chain(intermediates).map(|c| c.to_vec()).collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
