//! A SPDY/3.1 connection as Kubernetes' clients use it: one task reads, demultiplexes and writes.
//!
//! moby/spdystream, which all those clients use, neither sends nor heeds window updates; so there is
//! no flow control here either. A full reader stops the connection.

pub mod frame;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::pipe::{self, Feed, Queue, Reader, Writer};
use frame::{Decoder, Encoder, Frame, Headers, reset};

/// How long the other side may take to close after our goodbye.
const LINGER: Duration = Duration::from_secs(5);
/// Streams open at once.
const MAX_STREAMS: usize = 8192;

/// A stream that the client opened and the server accepted.
pub(crate) struct Stream {
    pub id: u32,
    pub headers: Headers,
    pub reader: Reader,
    pub writer: Writer,
}

/// A server's end of a connection.
pub(crate) struct Connection {
    pub queue: Queue,
    pub streams: mpsc::UnboundedReceiver<Stream>,
    /// Cancelled when the connection has ended.
    pub closed: CancellationToken,
}

/// Starts serving a connection. `accept` decides by the headers whether a stream is accepted.
pub(crate) fn serve<IO>(io: IO, accept: fn(&Headers) -> bool) -> Connection
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let (queue, frames) = Queue::new();
    let (sender, streams) = mpsc::unbounded_channel();
    let closed = CancellationToken::new();
    let reading = Reading {
        queue: queue.clone(),
        accept,
        streams: sender,
        open: HashMap::new(),
    };
    let ended = closed.clone();
    let room = queue.room();
    tokio::spawn(async move {
        let _ended = ended.drop_guard();
        let (read, write) = tokio::io::split(io);
        let mut reading = std::pin::pin!(reading.run(read));
        let mut writing = std::pin::pin!(write_loop(write, frames));
        tokio::select! {
            result = &mut reading => {
                room.close();
                if let Err(error) = result {
                    tracing::debug!(%error, "streaming connection ended");
                }
            }
            _ = &mut writing => {
                room.close();
                let _ = tokio::time::timeout(LINGER, reading).await;
            }
        }
    });
    Connection {
        queue,
        streams,
        closed,
    }
}

struct Open {
    feed: Option<Feed>,
    gone: Arc<AtomicBool>,
}

struct Reading {
    queue: Queue,
    accept: fn(&Headers) -> bool,
    streams: mpsc::UnboundedSender<Stream>,
    open: HashMap<u32, Open>,
}

impl Reading {
    async fn run(mut self, mut io: impl AsyncRead + Unpin) -> std::io::Result<()> {
        let mut decoder = Decoder::default();
        let mut input = BytesMut::with_capacity(16 << 10);
        loop {
            while let Some(frame) = decoder.decode(&mut input).map_err(std::io::Error::other)? {
                self.handle(frame).await;
            }
            input.reserve(16 << 10);
            if io.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn handle(&mut self, frame: Frame) {
        match frame {
            Frame::SynStream {
                stream: id,
                headers,
                fin,
            } => {
                // Streams of which the other side has closed its half and we ours are forgotten here.
                self.open
                    .retain(|_, open| open.feed.is_some() || Arc::strong_count(&open.gone) > 1);
                if self.open.len() >= MAX_STREAMS
                    || self.open.contains_key(&id)
                    || !(self.accept)(&headers)
                {
                    return self.queue.send(pipe::Frame::Reset(id));
                }
                let (feed, reader) = pipe::inbound();
                let (writer, gone) = self.queue.writer(id);
                self.queue.send(pipe::Frame::Reply(id));
                if self
                    .streams
                    .send(Stream {
                        id,
                        headers,
                        reader,
                        writer,
                    })
                    .is_ok()
                {
                    self.open.insert(
                        id,
                        Open {
                            feed: (!fin).then_some(feed),
                            gone,
                        },
                    );
                }
            }
            Frame::Data { stream, data, fin } => {
                if let Some(open) = self.open.get_mut(&stream) {
                    if let Some(feed) = &open.feed {
                        feed.push(data).await;
                    }
                    if fin {
                        open.feed = None;
                    }
                }
            }
            Frame::RstStream { stream, .. } => {
                if let Some(open) = self.open.remove(&stream) {
                    open.gone.store(true, Ordering::Relaxed);
                }
            }
            // Odd identifiers are the client's; an even one would be the answer to ours.
            Frame::Ping(id) if id % 2 == 1 => {
                if let Some(permit) = self.queue.permit().await {
                    self.queue.send(pipe::Frame::Ping(id, permit));
                }
            }
            Frame::Ping(_) | Frame::GoAway { .. } | Frame::SynReply { .. } | Frame::Other => {}
        }
    }
}

async fn write_loop(
    mut io: impl AsyncWrite + Unpin,
    mut frames: mpsc::UnboundedReceiver<pipe::Frame>,
) -> std::io::Result<()> {
    let mut encoder = Encoder::default();
    let mut output = BytesMut::new();
    let mut last_stream = 0;
    loop {
        let frame = match frames.try_recv() {
            Ok(frame) => Some(frame),
            Err(mpsc::error::TryRecvError::Empty) => {
                io.flush().await?;
                frames.recv().await
            }
            Err(mpsc::error::TryRecvError::Disconnected) => None,
        };
        let (frame, permit) = match frame.unwrap_or(pipe::Frame::Close) {
            pipe::Frame::Reply(stream) => {
                last_stream = last_stream.max(stream);
                (
                    Frame::SynReply {
                        stream,
                        headers: Headers::new(),
                        fin: false,
                    },
                    None,
                )
            }
            pipe::Frame::Data(stream, data, permit) => (
                Frame::Data {
                    stream,
                    data,
                    fin: false,
                },
                Some(permit),
            ),
            pipe::Frame::Finish(stream) => (
                Frame::Data {
                    stream,
                    data: Bytes::new(),
                    fin: true,
                },
                None,
            ),
            pipe::Frame::Reset(stream) => (
                Frame::RstStream {
                    stream,
                    status: reset::CANCEL,
                },
                None,
            ),
            pipe::Frame::Ping(id, permit) => (Frame::Ping(id), Some(permit)),
            pipe::Frame::Close => {
                encoder.encode(
                    &Frame::GoAway {
                        last_stream,
                        status: 0,
                    },
                    &mut output,
                );
                io.write_all(&output).await?;
                return io.shutdown().await;
            }
        };
        encoder.encode(&frame, &mut output);
        io.write_all(&output).await?;
        output.clear();
        drop(permit);
    }
}
