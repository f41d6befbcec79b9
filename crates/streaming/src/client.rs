//! Exec and attach over WebSocket v5, as kubectl does it.

use http::{HeaderValue, Request};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Error as WsError;

use crate::Error;
use crate::pipe::{self, Reader, Writer};
use crate::server::Options;
use crate::status::ExecStatus;
use crate::websocket::{self, Channels};

const PROTOCOL: &str = "v5.channel.k8s.io";

/// A remote command's streams.
pub struct ExecStreams {
    /// What the command reads; shut it down to end its input.
    pub stdin: Option<Writer>,
    /// What it writes; ends with the connection.
    pub stdout: Option<Reader>,
    /// Its errors; ends with the connection.
    pub stderr: Option<Reader>,
    /// The terminal's size.
    pub resize: Resize,
    /// How it ended.
    pub status: Status,
}

/// Tells the other side the terminal's size.
pub struct Resize(Writer);

impl Resize {
    /// Sets the size.
    pub async fn send(&mut self, columns: u16, rows: u16) -> std::io::Result<()> {
        self.0
            .write_all(format!("{{\"Width\":{columns},\"Height\":{rows}}}\n").as_bytes())
            .await
    }
}

/// Where the command's end is told.
pub struct Status(Reader);

impl Status {
    /// Waits for the command's end. Read its output meanwhile: nothing moves while that is full.
    pub async fn wait(mut self) -> ExecStatus {
        let mut text = Vec::new();
        let _ = self.0.read_to_end(&mut text).await;
        ExecStatus::from_json(&text)
    }
}

/// Starts a command. `req` is the request (absolute URI, credentials); the WebSocket headers are added
/// here. `options` says which streams the URI's query asks for. Drop all streams to disconnect.
pub async fn exec<IO>(mut req: Request<()>, options: Options, io: IO) -> Result<ExecStreams, Error>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    use tokio_tungstenite::tungstenite::handshake::client::generate_key;
    let host = req
        .uri()
        .authority()
        .map(|authority| authority.as_str().to_owned());
    let host = host.ok_or(Error::Request("the request's URI names no host"))?;
    // tungstenite wants its own scheme; the connection is the caller's either way.
    let mut uri = req.uri().clone().into_parts();
    uri.scheme = Some(
        "ws".parse()
            .map_err(|_| Error::Request("the scheme is not valid"))?,
    );
    *req.uri_mut() = uri
        .try_into()
        .map_err(|_| Error::Request("the request's URI has no path"))?;
    let header = |text: &str| {
        HeaderValue::try_from(text).map_err(|_| Error::Request("a header is not valid"))
    };
    let headers = req.headers_mut();
    headers.insert("host", header(&host)?);
    headers.insert("connection", HeaderValue::from_static("Upgrade"));
    headers.insert("upgrade", HeaderValue::from_static("websocket"));
    headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
    headers.insert("sec-websocket-key", header(&generate_key())?);
    headers.insert("sec-websocket-protocol", HeaderValue::from_static(PROTOCOL));
    let connected =
        tokio_tungstenite::client_async_with_config(req, io, Some(websocket::config())).await;
    let socket = match connected {
        Ok((socket, _)) => socket,
        Err(WsError::Http(answer)) => {
            let body = answer
                .body()
                .as_deref()
                .map(String::from_utf8_lossy)
                .unwrap_or_default();
            return Err(Error::Refused(format!(
                "{}: {}",
                answer.status(),
                body.trim()
            )));
        }
        Err(error) => return Err(Error::Handshake(Box::new(error))),
    };
    let ((stdout_feed, stdout), (stderr_feed, stderr)) = (pipe::inbound(), pipe::inbound());
    let (status_feed, status) = pipe::inbound();
    let feeds = vec![
        None,
        options.stdout.then_some(stdout_feed),
        options.stderr.then_some(stderr_feed),
        Some(status_feed),
    ];
    let channels = Channels {
        base64: false,
        close_received: false,
        close_sent: true,
    };
    let (queue, _) = websocket::serve(socket, channels, feeds);
    Ok(ExecStreams {
        stdin: options.stdin.then(|| queue.writer(0).0),
        stdout: options.stdout.then_some(stdout),
        stderr: options.stderr.then_some(stderr),
        resize: Resize(queue.writer(4).0),
        status: Status(status),
    })
}
