//! Streams a request to a backend: kubelets for log, exec, attach and portforward; pods, services and nodes for proxy.
//!
//! One connection a request. Upgrades are passed through byte by byte; everything else is a plain reverse proxy whose
//! redirects and HTML links get the proxy's prefix, as upstream's transport does.
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::body::{self, Body};
use crate::location::{Location, Tls};
use crate::server::{Rq, Server};
use crate::types::Status;

/// How long a connection may take to come about (upstream's dialer: 30 s).
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Larger HTML pages pass unchanged.
const MAX_HTML: usize = 4 << 20;

pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Makes connections to backends.
pub struct Dialer {
    kubelet: Option<TlsConnector>,
    unverified: TlsConnector,
}

impl Dialer {
    pub(crate) fn new(ca: Option<&str>, client: Option<Arc<pki::Renewable>>) -> Result<Dialer, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = || {
            ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(|e| e.to_string())
        };
        let kubelet = match ca {
            None => None,
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                for cert in CertificateDer::pem_slice_iter(ca.as_bytes()) {
                    roots.add(cert.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
                }
                let config = builder()?.with_root_certificates(roots);
                let config = match client {
                    None => config.with_no_client_auth(),
                    Some(own) => own.shown_by(config.with_no_client_auth()),
                };
                Some(TlsConnector::from(Arc::new(config)))
            }
        };
        let any = builder()?.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider.clone()))).with_no_client_auth();
        Ok(Dialer { kubelet, unverified: TlsConnector::from(Arc::new(any)) })
    }

    async fn connect(&self, location: &Location) -> Result<Box<dyn Io>, String> {
        let mut last = String::new();
        let first = (location.host.clone(), location.port);
        for (host, port) in std::iter::once(&first).chain(&location.alternatives) {
            match tokio::time::timeout(DIAL_TIMEOUT, self.connect_one(location.tls, host, *port)).await {
                Ok(Ok(io)) => return Ok(io),
                Ok(Err(why)) => last = format!("dial tcp {}: {why}", authority(host, *port)),
                Err(_) => last = format!("dial tcp {}: i/o timeout", authority(host, *port)),
            }
        }
        Err(last)
    }

    async fn connect_one(&self, tls: Tls, host: &str, port: u16) -> Result<Box<dyn Io>, String> {
        let tcp = TcpStream::connect((host, port)).await.map_err(|e| match e.kind() {
            std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_string(),
            _ => e.to_string(),
        })?;
        let _ = tcp.set_nodelay(true);
        let connector = match tls {
            Tls::None => return Ok(Box::new(tcp)),
            Tls::Unverified => &self.unverified,
            Tls::Kubelet => self.kubelet.as_ref().ok_or("no CA for kubelets is configured")?,
        };
        let name = ServerName::try_from(host.to_string()).map_err(|e| e.to_string())?;
        Ok(Box::new(connector.connect(name, tcp).await.map_err(|e| e.to_string())?))
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Headers that concern one connection only.
const HOP_BY_HOP: [&str; 8] =
    ["connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding"];

impl Server {
    /// Answers with what the backend answers.
    pub(crate) async fn forward(self: &Arc<Server>, rq: Rq, location: &Location) -> Result<Response<Body>, Status> {
        let upgrade = wants_upgrade(rq.headers());
        let is_proxy = rq.info.subresource == "proxy";
        if is_proxy && !upgrade && rq.info.rest.is_empty() && matches!(*rq.request.method(), Method::GET | Method::HEAD) {
            // relative links work only below a path that ends with a slash
            let query = rq.request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
            let mut response = Response::new(body::empty());
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            if let Ok(to) = HeaderValue::from_str(&format!("{}/{query}", rq.request.uri().path())) {
                response.headers_mut().insert(header::LOCATION, to);
            }
            return Ok(response);
        }
        let prefix = is_proxy.then(|| {
            let path = rq.request.uri().path();
            path.strip_suffix(rq.info.rest.as_str()).unwrap_or(path).to_string()
        });
        let io = match self.dialer.connect(location).await {
            Ok(io) => io,
            Err(why) if is_proxy => {
                return Err(api::status::unavailable(format!("error trying to reach service: {why}")));
            }
            Err(why) => {
                let url = format!("https://{}{}", authority(&location.host, location.port), location.path_and_query);
                return Err(api::status::internal(format!("error dialing backend: Get {}: {why}", api::field::go_quote(&url))));
            }
        };
        self.pass_on(rq, io, location, prefix, HeaderMap::new()).await
    }

    /// Passes a request on over a connection that is there, with these headers more.
    pub(crate) async fn pass_on(
        self: &Arc<Server>,
        mut rq: Rq,
        io: Box<dyn Io>,
        location: &Location,
        prefix: Option<String>,
        more: HeaderMap,
    ) -> Result<Response<Body>, Status> {
        let upgrade = wants_upgrade(rq.headers());
        let from_client = upgrade.then(|| hyper::upgrade::on(&mut rq.request));
        let record = rq.audit.clone();
        let mut request = outgoing(rq, location, upgrade, prefix.is_some())?;
        request.headers_mut().extend(more);
        let (mut sender, connection) =
            hyper::client::conn::http1::Builder::new().handshake(TokioIo::new(io)).await.map_err(unreachable)?;
        self.streams.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a proxied connection ended");
            }
        });
        let mut response = sender.send_request(request).await.map_err(unreachable)?;
        if let Some(record) = &record {
            record.passed_on();
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(from_client) = from_client
        {
            let from_server = hyper::upgrade::on(&mut response);
            self.streams.spawn(async move {
                let (Ok(client), Ok(server)) = tokio::join!(from_client, from_server) else { return };
                let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                // the request ends here
                drop(record);
            });
            let (parts, _) = response.into_parts();
            return Ok(Response::from_parts(parts, body::empty()));
        }
        let (mut parts, incoming) = response.into_parts();
        let kept_alive = KeepOpen(sender);
        strip(&mut parts.headers);
        parts.headers.remove(header::UPGRADE);
        let Some(prefix) = prefix.filter(|_| location.rewrite) else {
            return Ok(Response::from_parts(parts, attached(incoming, kept_alive)));
        };
        rewrite_location(&mut parts.headers, &prefix, location);
        let html = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).is_some_and(|t| t.starts_with("text/html"));
        let plain = parts.headers.get(header::CONTENT_ENCODING).is_none();
        let small = http_body::Body::size_hint(&incoming).upper().is_none_or(|n| n <= MAX_HTML as u64);
        if html && plain && small {
            let bytes = body::read(attached(incoming, kept_alive), MAX_HTML).await?;
            let text = rewrite_html(&bytes, &prefix);
            parts.headers.remove(header::CONTENT_LENGTH);
            return Ok(Response::from_parts(parts, body::full(text)));
        }
        Ok(Response::from_parts(parts, attached(incoming, kept_alive)))
    }
}

/// The connection's sender must live as long as the response's body.
struct KeepOpen(#[allow(dead_code)] hyper::client::conn::http1::SendRequest<Body>);

fn attached(incoming: hyper::body::Incoming, open: KeepOpen) -> Body {
    body::boxed(incoming.map_frame(move |frame| {
        let _ = &open;
        frame
    }))
}

fn unreachable(error: hyper::Error) -> Status {
    api::status::unavailable(format!("error trying to reach service: {error}"))
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok()).any(|v| v.to_ascii_lowercase().contains("upgrade"))
}

fn strip(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|n| n.trim().parse().ok())
        .collect();
    for name in listed {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The request as the backend gets it: no credentials of ours, no hop-by-hop headers but those of an upgrade.
fn outgoing(rq: Rq, location: &Location, upgrade: bool, forwarded: bool) -> Result<Request<Body>, Status> {
    let peer = rq.request.extensions().get::<crate::Peer>().and_then(|p| p.addr);
    let original_host = rq.request.headers().get(header::HOST).cloned();
    let original_path = rq.request.uri().path().to_string();
    let body = rq.body.lock().take().unwrap_or_else(body::empty);
    let (parts, ()) = rq.request.into_parts();
    let mut headers = parts.headers;
    let upgrade_to = headers.get(header::UPGRADE).cloned();
    strip(&mut headers);
    headers.remove(header::UPGRADE);
    headers.remove(header::AUTHORIZATION);
    let ours = |k: &&HeaderName| k.as_str().starts_with("impersonate-") || k.as_str().starts_with("x-remote-");
    let ours: Vec<HeaderName> = headers.keys().filter(ours).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
    strip_bearer_protocol(&mut headers);
    let mut insert = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    insert(header::HOST, &authority(&location.host, location.port));
    if forwarded {
        insert(HeaderName::from_static("x-forwarded-uri"), &original_path);
        insert(HeaderName::from_static("x-forwarded-proto"), "https");
        if let Some(host) = original_host.as_ref().and_then(|h| h.to_str().ok()) {
            insert(HeaderName::from_static("x-forwarded-host"), host);
        }
    }
    if let Some(peer) = peer {
        let before = headers.get("x-forwarded-for").and_then(|v| v.to_str().ok()).map(|v| format!("{v}, ")).unwrap_or_default();
        if let Ok(value) = HeaderValue::from_str(&format!("{before}{}", peer.ip())) {
            headers.insert("x-forwarded-for", value);
        }
    }
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Some(to) = upgrade_to {
            headers.insert(header::UPGRADE, to);
        }
    }
    let mut request = Request::new(if upgrade { body::empty() } else { body });
    *request.method_mut() = parts.method;
    *request.uri_mut() =
        location.path_and_query.parse().map_err(|_| api::status::bad_request("the path cannot be passed on"))?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// The token that a browser put among the WebSocket subprotocols is ours alone.
fn strip_bearer_protocol(headers: &mut HeaderMap) {
    let all: Vec<String> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|p| p.trim().to_string())
        .collect();
    if !all.iter().any(|p| p.starts_with("base64url.bearer.authorization.k8s.io.")) {
        return;
    }
    let kept: Vec<String> = all.into_iter().filter(|p| !p.starts_with("base64url.bearer.authorization.k8s.io.")).collect();
    headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
    if let Ok(value) = HeaderValue::from_str(&kept.join(", ")) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
}

/// Redirects of the backend to itself lead through the proxy again.
fn rewrite_location(headers: &mut HeaderMap, prefix: &str, location: &Location) {
    let Some(to) = headers.get(header::LOCATION).and_then(|v| v.to_str().ok()) else { return };
    let path = match to.split_once("://") {
        Some((_, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            if host != authority(&location.host, location.port) && host != location.host {
                return;
            }
            path.to_string()
        }
        None if to.starts_with('/') => to.to_string(),
        None => return,
    };
    if let Ok(value) = HeaderValue::from_str(&format!("{prefix}{path}")) {
        headers.insert(header::LOCATION, value);
    }
}

/// Absolute paths in links get the prefix.
fn rewrite_html(html: &[u8], prefix: &str) -> Vec<u8> {
    const ATTRIBUTES: [&[u8]; 5] = [b" href=", b" src=", b" action=", b" cite=", b" data="];
    let mut out = Vec::with_capacity(html.len() + 256);
    let mut i = 0;
    while i < html.len() {
        let attribute = ATTRIBUTES.iter().find(|a| html[i..].len() > a.len() && html[i..i + a.len()].eq_ignore_ascii_case(a));
        let Some(attribute) = attribute else {
            out.push(html[i]);
            i += 1;
            continue;
        };
        out.extend_from_slice(&html[i..i + attribute.len()]);
        i += attribute.len();
        if matches!(html.get(i), Some(b'"' | b'\'')) {
            out.push(html[i]);
            i += 1;
        }
        if html.get(i) == Some(&b'/') && html.get(i + 1) != Some(&b'/') {
            out.extend_from_slice(prefix.as_bytes());
        }
    }
    out
}

/// Takes any server certificate: pods and services bring their own, and upstream's proxy does not look either.
#[derive(Debug)]
pub(crate) struct AnyServer(pub Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_redirects_stay_behind_the_proxy() {
        let html = br#"<a href="/x">x</a> <a href="//other/y">y</a> <img src='/z'> <a href="rel">r</a>"#;
        let text = String::from_utf8(rewrite_html(html, "/p/proxy")).unwrap();
        assert_eq!(text, r#"<a href="/p/proxy/x">x</a> <a href="//other/y">y</a> <img src='/p/proxy/z'> <a href="rel">r</a>"#);
        let location = Location {
            tls: Tls::None,
            host: "10.0.0.1".into(),
            port: 80,
            path_and_query: "/".into(),
            rewrite: true,
            alternatives: Vec::new(),
        };
        let redirect = |to: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::LOCATION, to.parse().unwrap());
            rewrite_location(&mut headers, "/p/proxy", &location);
            headers[header::LOCATION].to_str().unwrap().to_string()
        };
        assert_eq!(redirect("/login"), "/p/proxy/login");
        assert_eq!(redirect("http://10.0.0.1:80/a"), "/p/proxy/a");
        assert_eq!(redirect("http://elsewhere/a"), "http://elsewhere/a");
    }
}
