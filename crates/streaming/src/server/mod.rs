//! The server's side: negotiation of the protocol, and the upgrade.

mod exec;
mod port_forward;
mod reader;

use bytes::Bytes;
use http::header::{
    CONNECTION, HOST, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

pub use exec::{ExecStreams, Options, Resize, StatusSink, exec};
pub use port_forward::{PortForward, PortForwards, port_forward};
pub use reader::reader;

/// An answer without or with a small body.
pub type Answer = Response<Full<Bytes>>;

pub(crate) const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");
const SPDY: &str = "SPDY/3.1";

/// Whether the request asks for an upgrade to SPDY or WebSocket (or anything else).
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && tokens(headers, CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

/// Whether the request asks for an upgrade to WebSocket.
pub fn is_websocket(headers: &HeaderMap) -> bool {
    is_upgrade(headers)
        && tokens(headers, UPGRADE).any(|token| token.eq_ignore_ascii_case("websocket"))
}

/// The comma-separated values of all headers of a name.
fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// An upgrade that was agreed to, and the answer that says so.
struct Agreed {
    answer: Answer,
    on_upgrade: OnUpgrade,
    /// The protocol; empty if the client named none.
    protocol: String,
    websocket: bool,
}

/// What the connection is once the answer has been sent.
async fn upgraded(on_upgrade: OnUpgrade) -> Result<TokioIo<Upgraded>, crate::Error> {
    on_upgrade
        .await
        .map(TokioIo::new)
        .map_err(crate::Error::Upgrade)
}

fn refuse(code: StatusCode, message: impl Into<String>) -> Answer {
    let mut answer = Response::new(Full::from(message.into() + "\n"));
    *answer.status_mut() = code;
    let headers = answer.headers_mut();
    headers.insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(
        http::header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    answer
}

/// Agrees on a protocol, in the client's order of preference, and takes the upgrade.
#[expect(clippy::result_large_err, reason = "the error is the answer, made once a connection")]
fn agree<B>(req: &mut Request<B>, websocket: &[&str], spdy: &[&str]) -> Result<Agreed, Answer> {
    let headers = req.headers();
    if is_websocket(headers) {
        let wanted: Vec<&str> = tokens(headers, SEC_WEBSOCKET_PROTOCOL).collect();
        let protocol = match wanted.iter().find(|protocol| websocket.contains(protocol)) {
            Some(protocol) => (*protocol).to_owned(),
            None if wanted.is_empty() => String::new(),
            None => {
                let message = format!(
                    "requested protocol(s) are not supported: {wanted:?}; supports {websocket:?}"
                );
                return Err(refuse(StatusCode::FORBIDDEN, message));
            }
        };
        let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
            return Err(refuse(
                StatusCode::BAD_REQUEST,
                "unable to upgrade: Sec-WebSocket-Key header is missing",
            ));
        };
        let accept = derive_accept_key(key.as_bytes());
        let mut answer = switching("websocket");
        let headers = answer.headers_mut();
        headers.insert(
            "sec-websocket-accept",
            HeaderValue::try_from(accept).expect("base64"),
        );
        if !protocol.is_empty() {
            headers.insert(
                SEC_WEBSOCKET_PROTOCOL,
                HeaderValue::try_from(&protocol).expect("was a header"),
            );
        }
        return Ok(Agreed {
            answer,
            on_upgrade: hyper::upgrade::on(req),
            protocol,
            websocket: true,
        });
    }
    if !is_upgrade(headers)
        || !tokens(headers, UPGRADE).any(|token| token.eq_ignore_ascii_case(SPDY))
    {
        let host = headers
            .get(HOST)
            .and_then(|host| host.to_str().ok())
            .unwrap_or_default();
        tracing::debug!(host, "streaming request without upgrade headers");
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "unable to upgrade: missing upgrade headers in request",
        ));
    }
    let wanted: Vec<&str> = tokens(headers, STREAM_PROTOCOL).collect();
    let protocol = match wanted.iter().find(|protocol| spdy.contains(protocol)) {
        Some(protocol) => (*protocol).to_owned(),
        None if wanted.is_empty() => String::new(),
        None => {
            let message = format!(
                "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
                wanted.join(" "),
                spdy.join(" "),
            );
            let mut answer = refuse(StatusCode::FORBIDDEN, message);
            for protocol in spdy {
                let value =
                    HeaderValue::try_from(*protocol).expect("our names are fit for headers");
                answer.headers_mut().append(ACCEPTED_PROTOCOLS, value);
            }
            return Err(answer);
        }
    };
    let mut answer = switching(SPDY);
    if !protocol.is_empty() {
        answer.headers_mut().insert(
            STREAM_PROTOCOL,
            HeaderValue::try_from(&protocol).expect("was a header"),
        );
    }
    Ok(Agreed {
        answer,
        on_upgrade: hyper::upgrade::on(req),
        protocol,
        websocket: false,
    })
}

fn switching(to: &'static str) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer
        .headers_mut()
        .insert(UPGRADE, HeaderValue::from_static(to));
    answer
}
