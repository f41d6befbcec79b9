//! What nobody can be faster than here: a server of the same libraries that only sends fixed bytes.
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::client::CEILING;

/// The sizes of what upstream answers for 5,000 pods of 3.3 KB.
const LIST: usize = 16_700_000;
const PROTOBUF: usize = 10_700_000;
const TABLE: usize = 8_600_000;
const OBJECT: usize = 3_340;
/// Events in one piece of a watch.
const BATCH: usize = 100;

/// Answers that are made once.
struct Answers {
    object: Bytes,
    list: Bytes,
    events: Bytes,
}

/// Listens, writes a kubeconfig and answers until killed.
pub async fn serve(address: SocketAddr, kubeconfig: &Path) -> Result<()> {
    let own = rcgen::generate_simple_self_signed(vec![address.ip().to_string()])?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let listener = TcpListener::bind(address).await?;
    let ca = STANDARD.encode(own.cert.pem());
    std::fs::write(
        kubeconfig,
        format!("clusters: [{{name: a, cluster: {{server: 'https://{address}', certificate-authority-data: {ca}}}}}]\nusers: [{{name: a, user: {{}}}}]\n"),
    )?;
    let mut event = vec![b'x'; OBJECT + 30];
    event.push(b'\n');
    let answers = Arc::new(Answers { object: vec![b'x'; OBJECT].into(), list: vec![b'x'; LIST].into(), events: event.repeat(BATCH).into() });
    let acceptor = TlsAcceptor::from(Arc::new(config));
    loop {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        let (acceptor, answers) = (acceptor.clone(), answers.clone());
        tokio::spawn(async move {
            let Ok(tls) = acceptor.accept(tcp).await else { return };
            let service = service_fn(move |request| {
                let answers = answers.clone();
                async move { Ok::<_, Infallible>(answer(request, &answers).await) }
            });
            // A client that hangs up ends its connection, and that is all.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, answers: &Answers) -> Response<BoxBody<Bytes, Infallible>> {
    let (parts, body) = request.into_parts();
    // What is sent is read.
    let _ = body.collect().await;
    let fixed = |bytes: Bytes| Full::new(bytes).boxed();
    let query = parts.uri.query().unwrap_or_default();
    let accept = parts.headers.get("accept").and_then(|a| a.to_str().ok()).unwrap_or_default();
    let events = query.split('&').find_map(|p| p.strip_prefix("events=")).and_then(|n| n.parse::<usize>().ok());
    let body = match (&parts.method, events) {
        (_, Some(count)) => {
            let pieces = std::iter::repeat_n(answers.events.clone(), count.div_ceil(BATCH)).map(|events| Ok(Frame::data(events)));
            StreamBody::new(futures::stream::iter(pieces)).boxed()
        }
        _ if parts.uri.path() == "/version" => fixed(CEILING.into()),
        (&Method::GET, _) if parts.uri.path().ends_with("/pods") && accept.contains("Table") => fixed(answers.list.slice(..TABLE)),
        (&Method::GET, _) if parts.uri.path().ends_with("/pods") && accept.contains("protobuf") => fixed(answers.list.slice(..PROTOBUF)),
        (&Method::GET, _) if parts.uri.path().ends_with("/pods") => fixed(answers.list.clone()),
        _ => fixed(answers.object.clone()),
    };
    let mut response = Response::new(body);
    if parts.method == Method::POST {
        *response.status_mut() = StatusCode::CREATED;
    }
    response
}
