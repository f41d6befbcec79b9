//! Servers behind TLS that tests talk to: each answers with what a function makes of a request.
#![allow(dead_code)] // each test binary uses its part

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What a server answers.
pub type Answer = Response<Full<Bytes>>;

/// A CA and a certificate that it made for these names.
pub struct Identity {
    pub ca: pki::Ca,
    own: pki::CertKey,
}

impl Identity {
    pub fn of(names: &[&str]) -> Identity {
        let (now, lifetime) = (Timestamp::now(), SignedDuration::from_hours(1));
        let ca = pki::Ca::new("servers of tests", now, lifetime).unwrap();
        let sans = names.iter().map(|n| n.to_string()).collect();
        let request = pki::CertRequest { cn: "server".into(), orgs: Vec::new(), sans, usages: vec![pki::Usage::Server], lifetime };
        let own = ca.issue(&request, now).unwrap();
        Identity { ca, own }
    }

    /// Serves on a port of this machine until the runtime ends.
    pub async fn serve<F>(&self, answer: impl Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static) -> SocketAddr
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        self.serve_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), answer)
    }

    /// The same on a port that is already there.
    pub fn serve_on<F>(&self, listener: TcpListener, answer: impl Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static) -> SocketAddr
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(self.own.cert_pem.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(self.own.key_pem.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let (acceptor, address) = (TlsAcceptor::from(Arc::new(config)), listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                        let answer = answer.clone();
                        async move {
                            let (parts, body) = request.into_parts();
                            let body = body.collect().await.unwrap().to_bytes();
                            Ok::<_, std::convert::Infallible>(answer(Request::from_parts(parts, body)).await)
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
        address
    }
}

/// An answer in JSON.
pub fn json(value: &serde_json::Value) -> Answer {
    Response::builder().header("content-type", "application/json").body(Full::new(Bytes::from(value.to_string()))).unwrap()
}

/// An answer with nothing but a code.
pub fn code(code: u16) -> Answer {
    Response::builder().status(code).body(Full::default()).unwrap()
}
