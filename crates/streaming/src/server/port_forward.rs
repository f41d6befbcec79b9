//! Port-forward: pairs of streams (data, error) over SPDY, SPDY in a WebSocket, or a WebSocket's
//! channels.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;

use super::{Answer, agree, refuse, upgraded};
use crate::Error;
use crate::pipe::{self, Frame, Queue, Reader, Writer};
use crate::spdy::frame::{Headers, header};
use crate::spdy::{self, Stream};
use crate::websocket::{self, Channels, Tunnel};

const SPDY: &[&str] = &["portforward.k8s.io"];
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const WEBSOCKET: &[&str] = &[TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];
/// Halves of pairs that wait for their other half.
const MAX_WAITING: usize = 1024;

/// One forwarded connection: read and write it as the client's end of a TCP connection. Dropping it
/// closes it.
pub struct PortForward {
    /// The port in the pod.
    pub port: u16,
    reader: Reader,
    writer: Writer,
    error: Writer,
    /// Dropped with the last connection of a WebSocket.
    _open: Option<mpsc::Sender<()>>,
}

impl PortForward {
    /// Tells the client that forwarding failed, and tears the connection down.
    pub async fn fail(self, message: &str) {
        let PortForward {
            writer, mut error, ..
        } = self;
        let _ = error.write_all(message.as_bytes()).await;
        let _ = error.shutdown().await;
        writer.reset();
    }
}

impl AsyncRead for PortForward {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for PortForward {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

/// The connections of one client, as they come. Dropping it closes the client's connection.
pub struct PortForwards {
    source: Source,
    queue: Queue,
}

enum Source {
    /// Streams come as the client opens them; halves wait here for each other.
    Spdy {
        streams: mpsc::UnboundedReceiver<Stream>,
        waiting: HashMap<String, Stream>,
    },
    /// All ports were named in the request.
    WebSocket {
        pairs: Vec<PortForward>,
        all_closed: mpsc::Receiver<()>,
        closed: CancellationToken,
    },
}

impl PortForwards {
    /// The next connection; `None` when the client is gone. Cancel safe.
    pub async fn next(&mut self) -> Option<PortForward> {
        let (streams, waiting) = match &mut self.source {
            Source::Spdy { streams, waiting } => (streams, waiting),
            Source::WebSocket {
                pairs,
                all_closed,
                closed,
            } => {
                if let Some(pair) = pairs.pop() {
                    return Some(pair);
                }
                tokio::select! {
                    _ = all_closed.recv() => {}
                    () = closed.cancelled() => {}
                }
                return None;
            }
        };
        loop {
            let stream = streams.recv().await?;
            let id = request_id(&stream);
            let Some(other) = waiting.remove(&id) else {
                // Clients open both at once; a flood of halves is no client of ours.
                if waiting.len() < MAX_WAITING {
                    waiting.insert(id, stream);
                }
                continue;
            };
            let (data, error) = match (is_data(&stream), is_data(&other)) {
                (true, false) => (stream, other),
                (false, true) => (other, stream),
                _ => {
                    let what = if is_data(&other) { "data" } else { "error" };
                    let mut writer = other.writer;
                    let message = format!(
                        "error processing stream for request {id}: {what} stream already assigned"
                    );
                    let _ = writer.write_all(message.as_bytes()).await;
                    continue;
                }
            };
            let Some(port) = port(&data.headers) else {
                continue;
            };
            return Some(PortForward {
                port,
                reader: data.reader,
                writer: data.writer,
                error: error.writer,
                _open: None,
            });
        }
    }
}

impl Drop for PortForwards {
    fn drop(&mut self) {
        self.queue.send(Frame::Close);
    }
}

fn is_data(stream: &Stream) -> bool {
    header(&stream.headers, "streamtype") == Some("data")
}

fn port(headers: &Headers) -> Option<u16> {
    header(headers, "port")?
        .parse()
        .ok()
        .filter(|port| *port > 0)
}

fn request_id(stream: &Stream) -> String {
    // Clients without request ids open the error stream first, and the data stream right after it.
    let guess = || {
        stream
            .id
            .wrapping_sub(if is_data(stream) { 2 } else { 0 })
            .to_string()
    };
    header(&stream.headers, "requestid").map_or_else(guess, str::to_owned)
}

fn acceptable(headers: &Headers) -> bool {
    port(headers).is_some() && matches!(header(headers, "streamtype"), Some("data" | "error"))
}

/// Answers a request for port-forward. Send the answer; the future yields the connections. `Err` is
/// the answer to a request that cannot be served.
#[allow(clippy::result_large_err, reason = "both are the answer to send")]
pub fn port_forward<B>(
    req: &mut Request<B>,
) -> Result<
    (
        Answer,
        impl Future<Output = Result<PortForwards, Error>> + Send + 'static + use<B>,
    ),
    Answer,
> {
    let ports = match ports(req.uri().query().unwrap_or_default()) {
        Ok(ports) => ports,
        Err(message) => return Err(refuse(StatusCode::BAD_REQUEST, message)),
    };
    let agreed = agree(req, WEBSOCKET, SPDY)?;
    if agreed.websocket && agreed.protocol != TUNNEL && ports.is_empty() {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "query parameter \"port\" is required",
        ));
    }
    let (on_upgrade, protocol) = (agreed.on_upgrade, agreed.protocol);
    let forwards = async move {
        let io = upgraded(on_upgrade).await?;
        Ok(if !agreed.websocket {
            over_spdy(io)
        } else if protocol == TUNNEL {
            over_spdy(Tunnel::new(websocket::open(io, Role::Server).await))
        } else {
            over_websocket(io, &protocol, &ports).await
        })
    };
    Ok((agreed.answer, forwards))
}

fn over_spdy<IO: AsyncRead + AsyncWrite + Send + 'static>(io: IO) -> PortForwards {
    let connection = spdy::serve(io, acceptable);
    let source = Source::Spdy {
        streams: connection.streams,
        waiting: HashMap::new(),
    };
    PortForwards {
        source,
        queue: connection.queue,
    }
}

async fn over_websocket<IO>(io: IO, protocol: &str, ports: &[u16]) -> PortForwards
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let socket = websocket::open(io, Role::Server).await;
    let (mut feeds, mut readers) = (Vec::new(), Vec::new());
    for _ in ports {
        let (feed, reader) = pipe::inbound();
        feeds.extend([Some(feed), None]);
        readers.push(reader);
    }
    let channels = Channels {
        base64: protocol.contains("base64."),
        close_received: false,
        close_sent: false,
    };
    let (queue, closed) = websocket::serve(socket, channels, feeds);
    let mut pairs = Vec::new();
    let (open, all_closed) = mpsc::channel(1);
    for (i, (port, reader)) in ports.iter().zip(readers).enumerate() {
        let channel = 2 * i as u32;
        for channel in [channel, channel + 1] {
            if let Some(permit) = queue.permit().await {
                queue.send(Frame::Data(
                    channel,
                    Bytes::copy_from_slice(&port.to_le_bytes()),
                    permit,
                ));
            }
        }
        let (writer, error) = (queue.writer(channel).0, queue.writer(channel + 1).0);
        pairs.push(PortForward {
            port: *port,
            reader,
            writer,
            error,
            _open: Some(open.clone()),
        });
    }
    PortForwards {
        source: Source::WebSocket {
            pairs,
            all_closed,
            closed,
        },
        queue,
    }
}

/// The ports of a request's query: `port` (kubelet) or `ports` (API server), repeated or with commas.
fn ports(query: &str) -> Result<Vec<u16>, String> {
    let values = query.split('&').filter_map(|pair| pair.split_once('='));
    let values = values.filter(|(name, _)| matches!(*name, "port" | "ports"));
    let mut ports = Vec::new();
    for text in values.flat_map(|(_, value)| value.split(',').flat_map(|value| value.split("%2C")))
    {
        match text.parse::<u16>() {
            Ok(0) => return Err(format!("port {text:?} must be > 0")),
            Ok(port) => ports.push(port),
            Err(_) => return Err(format!("unable to parse {text:?} as a port")),
        }
    }
    if ports.len() > 100 {
        return Err("too many ports".to_owned());
    }
    Ok(ports)
}
