//! WebSocket connections: numbered channels, one byte before each message's data (Kubernetes'
//! `*.channel.k8s.io` protocols), and a byte stream in binary messages (the SPDY tunnel).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{Sink, SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_util::sync::CancellationToken;

use crate::pipe::{Feed, Frame, Queue};

/// The largest message that is accepted.
const MAX_MESSAGE: usize = 4 << 20;
/// How long the other side may take to close after our goodbye.
const LINGER: Duration = Duration::from_secs(5);
/// Before a channel's number: that channel is half-closed (v5).
const CLOSE: u8 = 255;

/// A side's variant of the channel protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Channels {
    /// Data in base64 in text messages, and the channel as a digit.
    pub base64: bool,
    /// The other side half-closes channels (a server of v5).
    pub close_received: bool,
    /// This side half-closes channels (a client of v5).
    pub close_sent: bool,
}

/// A WebSocket on an upgraded connection.
pub(crate) async fn open<IO>(io: IO, role: Role) -> WebSocketStream<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    WebSocketStream::from_raw_socket(io, role, Some(config())).await
}

pub(crate) fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .write_buffer_size(0)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

/// Starts a task that serves the channels. `feeds[n]` takes what arrives on channel n; what arrives on
/// others is ignored. The token is cancelled when the connection has ended.
pub(crate) fn serve<IO>(
    socket: WebSocketStream<IO>,
    channels: Channels,
    mut feeds: Vec<Option<Feed>>,
) -> (Queue, CancellationToken)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (queue, frames) = Queue::new();
    let closed = CancellationToken::new();
    let ended = closed.clone();
    let room = queue.room();
    tokio::spawn(async move {
        let _ended = ended.drop_guard();
        let (sink, stream) = socket.split();
        let mut reading = std::pin::pin!(read_loop(stream, channels, &mut feeds));
        let mut writing = std::pin::pin!(write_loop(sink, channels, frames));
        tokio::select! {
            _ = &mut reading => room.close(),
            _ = &mut writing => {
                room.close();
                let _ = tokio::time::timeout(LINGER, reading).await;
            }
        }
    });
    (queue, closed)
}

async fn read_loop(
    mut socket: impl Stream<Item = Result<Message, WsError>> + Unpin,
    channels: Channels,
    feeds: &mut [Option<Feed>],
) {
    while let Some(Ok(message)) = socket.next().await {
        let mut data: Bytes = match message {
            Message::Binary(data) => data,
            Message::Text(text) => text.into(),
            _ => continue,
        };
        if data.is_empty() {
            continue;
        }
        let mut channel = data.get_u8();
        if channels.close_received && channel == CLOSE {
            let Some(feed) = data.first().and_then(|n| feeds.get_mut(*n as usize)) else {
                return;
            };
            *feed = None;
            continue;
        }
        if channels.base64 {
            channel = channel.wrapping_sub(b'0');
            let Ok(plain) = STANDARD.decode(&data) else {
                continue;
            };
            data = plain.into();
        }
        if let Some(Some(feed)) = feeds.get(channel as usize) {
            feed.push(data).await;
        }
    }
}

async fn write_loop(
    mut socket: impl Sink<Message, Error = WsError> + Unpin,
    channels: Channels,
    mut frames: mpsc::UnboundedReceiver<Frame>,
) -> Result<(), WsError> {
    while let Some(frame) = frames.recv().await {
        match frame {
            Frame::Data(channel, data, permit) => {
                socket.send(message(channels, channel as u8, &data)).await?;
                drop(permit);
            }
            Frame::Finish(channel) if channels.close_sent => {
                socket
                    .send(Message::Binary(Bytes::from(vec![CLOSE, channel as u8])))
                    .await?;
            }
            Frame::Close => break,
            Frame::Reply(_) | Frame::Finish(_) | Frame::Reset(_) | Frame::Ping(..) => {}
        }
    }
    socket.send(Message::Close(Some(normal()))).await
}

fn normal() -> CloseFrame {
    CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    }
}

fn message(channels: Channels, channel: u8, data: &[u8]) -> Message {
    if channels.base64 {
        let mut text = String::with_capacity(1 + data.len().div_ceil(3) * 4);
        text.push((b'0' + channel) as char);
        STANDARD.encode_string(data, &mut text);
        return Message::text(text);
    }
    let mut bytes = BytesMut::with_capacity(1 + data.len());
    bytes.put_u8(channel);
    bytes.put_slice(data);
    Message::Binary(bytes.freeze())
}

/// A byte stream in binary messages.
pub(crate) struct Tunnel<IO> {
    socket: WebSocketStream<IO>,
    rest: Bytes,
}

impl<IO> Tunnel<IO> {
    pub fn new(socket: WebSocketStream<IO>) -> Self {
        Self {
            socket,
            rest: Bytes::new(),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.socket.poll_next_unpin(cx)) {
                Some(Ok(Message::Binary(data))) => self.rest = data,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(_)) => {
                    return Poll::Ready(Err(io::Error::other("invalid message type received")));
                }
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let n = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.socket.poll_ready_unpin(cx)).map_err(io::Error::other)?;
        let message = Message::Binary(Bytes::copy_from_slice(buf));
        self.socket
            .start_send_unpin(message)
            .map_err(io::Error::other)?;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_flush_unpin(cx).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(self.socket.poll_close_unpin(cx)) {
            Ok(()) | Err(WsError::ConnectionClosed | WsError::AlreadyClosed) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(io::Error::other(error))),
        }
    }
}
