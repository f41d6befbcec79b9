//! Calls to webhooks over HTTPS: conversion of custom resources, and admission. JSON goes out and comes back.
//!
//! A hook is at a URL, or behind a service of the cluster: then the service's locator (the one of `services/proxy`) says
//! which endpoints there are, and the certificate must be for `NAME.NAMESPACE.svc`. One connection a call.
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::ClientConfig;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::core::Core;
use crate::ctx::{Backend, Ctx};
use crate::location::{ConnectRequest, Locator};
use crate::model;
use crate::proxy::AnyServer;
use crate::trust::Trust;
use crate::writer::server_user;

/// The longest a call may take (upstream's default for hooks without a timeout of their own).
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// Answers are no longer than this.
const MAX_ANSWER: usize = 16 << 20;
/// Where Linux distributions keep the certificates that the machine trusts.
const TRUSTED: [&str; 4] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"];

/// How services of the cluster are found.
pub struct Services {
    locator: Option<Arc<dyn Locator>>,
    backend: Option<Backend>,
}

impl Services {
    /// Services as `locator` (the one of `services/proxy`) finds them.
    pub fn new(locator: Arc<dyn Locator>, backend: Backend) -> Services {
        Services { locator: Some(locator), backend: Some(backend) }
    }
}

impl Core {
    /// How services of the cluster are found.
    pub(crate) fn services(&self) -> Services {
        let key = (String::new(), "services".to_string(), "proxy".to_string());
        Services { locator: self.parts().locators.get(&key).cloned(), backend: self.shared().map(|core| core.backend()) }
    }
}

/// A hook, as a `clientConfig` names it.
pub struct Client {
    url: Option<Uri>,
    /// Namespace, name, port and path.
    service: Option<(String, String, u16, String)>,
    tls: TlsConnector,
}

impl Client {
    /// Reads a `clientConfig` of a webhook.
    pub fn new(config: &Value) -> Result<Client, String> {
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        let url = match text(config, "url").as_str() {
            "" => None,
            url => Some(url.parse::<Uri>().map_err(|e| format!("invalid URL {url:?}: {e}"))?),
        };
        let service = config.get("service").filter(|s| s.is_object()).map(|s| {
            let port = s.get("port").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok()).unwrap_or(443);
            (text(s, "namespace"), text(s, "name"), port, text(s, "path"))
        });
        if url.is_some() == service.is_some() {
            return Err("exactly one of url or service is required".into());
        }
        let bundle = base64::engine::general_purpose::STANDARD.decode(text(config, "caBundle")).unwrap_or_default();
        Ok(Client { url, service, tls: connector(&bundle, false, None)? })
    }

    /// Posts a JSON object and answers the one that comes back. `name` is for messages.
    pub async fn post(&self, services: &Services, name: &str, object: &Value, timeout: Duration) -> Result<Value, String> {
        let (host, targets, path) = match (&self.url, &self.service) {
            (Some(url), _) => {
                let host = url.host().unwrap_or_default().to_string();
                let port = url.port_u16().unwrap_or(443);
                (host.clone(), vec![(host.trim_matches(['[', ']']).to_string(), port)], url.path_and_query().map_or("/", |p| p.as_str()).to_string())
            }
            (None, Some((namespace, service, port, path))) => {
                let targets = services.targets(namespace, service, *port).await?;
                (format!("{service}.{namespace}.svc"), targets, path.clone())
            }
            (None, None) => return Err(format!("{name} has no address")),
        };
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        let port = self.url.as_ref().map_or(self.service.as_ref().map_or(443, |s| s.2), |u| u.port_u16().unwrap_or(443));
        let url = format!("https://{host}:{port}{path}?timeout={}s", timeout.as_secs());
        let body = serde_json::to_vec(object).map_err(|e| e.to_string())?;
        match tokio::time::timeout(timeout, self.exchange(&host, &targets, &path, timeout, body)).await {
            Err(_) => Err(format!("Post {url:?}: context deadline exceeded")),
            Ok(Err(why)) => Err(format!("Post {url:?}: {why}")),
            Ok(Ok((code, bytes))) if (200..300).contains(&code) => {
                serde_json::from_slice(&bytes).map_err(|e| format!("the answer of {name} is no JSON: {e}"))
            }
            Ok(Ok((code, bytes))) => {
                let status: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                let said = status.get("message").and_then(Value::as_str).map(str::to_string);
                Err(said.unwrap_or_else(|| format!("the server responded with the status code {code} but did not return more information")))
            }
        }
    }

    async fn exchange(&self, host: &str, targets: &[(String, u16)], path: &str, timeout: Duration, body: Vec<u8>) -> Result<(u16, Bytes), String> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let request: Request<Full<Bytes>> = Request::builder()
            .method(Method::POST)
            .uri(format!("{path}{separator}timeout={}s", timeout.as_secs().max(1)))
            .header(HOST, host)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json, */*")
            .header(USER_AGENT, "kube-apiserver-admission")
            .body(Full::from(body))
            .map_err(|e| e.to_string())?;
        exchange(&self.tls, host, targets, request).await
    }
}

/// A connection to one of these addresses, whose certificate has to be for `host`.
pub(crate) async fn connect(tls: &TlsConnector, host: &str, targets: &[(String, u16)]) -> Result<TlsStream<TcpStream>, String> {
    let tcp = dial(targets).await?;
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_string()).map_err(|e| e.to_string())?;
    tls.connect(name, tcp).await.map_err(|e| format!("tls: failed to verify certificate: {e}"))
}

/// One request over a connection of its own: the answer's code and body.
pub(crate) async fn exchange(tls: &TlsConnector, host: &str, targets: &[(String, u16)], request: Request<Full<Bytes>>) -> Result<(u16, Bytes), String> {
    let read = async |response: Response<Incoming>| {
        let code = response.status().as_u16();
        let bytes = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| e.to_string())?.to_bytes();
        Ok((code, bytes))
    };
    drive(TokioIo::new(connect(tls, host, targets).await?), request, read).await
}

/// One request over this connection, which ends with it, and what `read` makes of the response.
pub(crate) async fn drive<I, T, F>(io: I, request: Request<Full<Bytes>>, read: impl FnOnce(Response<Incoming>) -> F) -> Result<T, String>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    F: Future<Output = Result<T, String>>,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        read(response).await
    };
    // the connection is driven here, and ends with the call
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

async fn dial(targets: &[(String, u16)]) -> Result<TcpStream, String> {
    let mut last = "no address".to_string();
    for (host, port) in targets {
        match TcpStream::connect((host.as_str(), *port)).await {
            Ok(tcp) => {
                let _ = tcp.set_nodelay(true);
                return Ok(tcp);
            }
            Err(error) => last = format!("dial tcp {host}:{port}: connect: {}", error.to_string().to_lowercase()),
        }
    }
    Err(last)
}

impl Services {
    /// The endpoints behind a service's port.
    pub(crate) async fn targets(&self, namespace: &str, name: &str, port: u16) -> Result<Vec<(String, u16)>, String> {
        let (Some(locator), Some(backend)) = (&self.locator, &self.backend) else { return Err("services cannot be resolved here".into()) };
        let services = model::find("", "v1", "services").ok_or("services cannot be resolved here")?;
        let path = format!("https:{name}:{port}");
        let mut ctx = Ctx::new(services, namespace, &path, server_user(), jiff::Timestamp::now(), backend.clone());
        ctx.subresource = "proxy".into();
        let request = ConnectRequest { method: Method::POST, path: String::new(), query: String::new() };
        let location = locator.locate(&ctx, &request).await.map_err(|status| status.message)?;
        Ok(std::iter::once((location.host, location.port)).chain(location.alternatives).collect())
    }
}

/// A connector that trusts a bundle, or without one what the machine trusts, or (`insecure`) anyone. It shows `own`.
pub(crate) fn connector(bundle: &[u8], insecure: bool, own: Option<Arc<pki::Renewable>>) -> Result<TlsConnector, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
    let config = match insecure {
        true => config.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider))),
        false => config.dangerous().with_custom_certificate_verifier(Arc::new(Trust::new(roots(bundle)?, provider)?)),
    };
    let config = match own {
        None => config.with_no_client_auth(),
        Some(own) => own.shown_by(config.with_no_client_auth()),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn roots(bundle: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = if bundle.trim_ascii().is_empty() {
        TRUSTED.iter().find_map(|p| std::fs::read(p).ok()).unwrap_or_default()
    } else {
        bundle.to_vec()
    };
    CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|e| format!("unable to load root certificates: {e}"))
}
