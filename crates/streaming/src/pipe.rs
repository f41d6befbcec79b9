//! A stream's two ends as the user holds them: a reader fed by the connection's read loop, a writer
//! that fills the connection's outbound queue. Both have bounded buffers.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::PollSemaphore;

/// Bytes kept for a reader before the connection stops reading.
const INBOUND: usize = 256 << 10;
/// The largest piece of data in one frame.
const CHUNK: usize = 32 << 10;
/// Data frames queued on one connection.
const QUEUED: usize = 16;

/// Makes a reader and what feeds it.
pub(crate) fn inbound() -> (Feed, Reader) {
    let shared = Arc::new(Shared {
        state: Mutex::default(),
        room: Notify::new(),
    });
    (Feed(shared.clone()), Reader(shared))
}

struct Shared {
    state: Mutex<State>,
    room: Notify,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Bytes>,
    len: usize,
    ended: bool,
    abandoned: bool,
    waker: Option<Waker>,
}

/// The connection's end of a [`Reader`]. Dropping it ends the stream.
pub(crate) struct Feed(Arc<Shared>);

impl Feed {
    /// Passes data on; waits while the buffer is full. Data for a dropped reader is discarded.
    pub async fn push(&self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        loop {
            {
                let mut state = self.0.state.lock();
                if state.abandoned {
                    return;
                }
                if state.len < INBOUND {
                    state.len += data.len();
                    state.chunks.push_back(data);
                    if let Some(waker) = state.waker.take() {
                        waker.wake();
                    }
                    return;
                }
            }
            self.0.room.notified().await;
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.ended = true;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

/// What the other side sends on a stream; ends when it half-closes the stream or goes away.
pub struct Reader(Arc<Shared>);

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.0.state.lock();
        let Some(chunk) = state.chunks.front_mut() else {
            if state.ended {
                return Poll::Ready(Ok(()));
            }
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let n = chunk.len().min(buf.remaining());
        buf.put_slice(&chunk[..n]);
        chunk.advance(n);
        if chunk.is_empty() {
            state.chunks.pop_front();
        }
        state.len -= n;
        self.0.room.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.abandoned = true;
        state.chunks.clear();
        self.0.room.notify_one();
    }
}

/// What a connection's write loop sends.
pub(crate) enum Frame {
    /// Accept a stream (SPDY).
    Reply(u32),
    /// Data; the permit is given back when it has been written.
    Data(u32, Bytes, OwnedSemaphorePermit),
    /// Half-close a stream.
    Finish(u32),
    /// Tear a stream down.
    Reset(u32),
    /// Answer a ping (SPDY); the permit bounds the queue.
    Ping(u32, OwnedSemaphorePermit),
    /// Everything has been queued: say goodbye and close.
    Close,
}

/// The outbound side of a connection.
#[derive(Clone)]
pub(crate) struct Queue {
    frames: mpsc::UnboundedSender<Frame>,
    room: Arc<Semaphore>,
}

impl Queue {
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Frame>) {
        let (frames, receiver) = mpsc::unbounded_channel();
        (
            Self {
                frames,
                room: Arc::new(Semaphore::new(QUEUED)),
            },
            receiver,
        )
    }

    /// Queues a frame; nothing happens when the connection is gone.
    pub fn send(&self, frame: Frame) {
        let _ = self.frames.send(frame);
    }

    /// Waits for room; `None` when the connection is gone.
    pub async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.room.clone().acquire_owned().await.ok()
    }

    /// Closing this makes all writers fail. It does not keep the queue open, as a clone would.
    pub fn room(&self) -> Arc<Semaphore> {
        self.room.clone()
    }

    /// A writer for a stream, and the switch that makes it fail.
    pub fn writer(&self, stream: u32) -> (Writer, Arc<AtomicBool>) {
        let gone = Arc::new(AtomicBool::new(false));
        let room = PollSemaphore::new(self.room.clone());
        (
            Writer {
                queue: self.clone(),
                room,
                stream,
                finished: false,
                gone: gone.clone(),
            },
            gone,
        )
    }
}

/// What is sent on a stream. Shutting it down or dropping it half-closes the stream; data that was
/// written before still arrives.
pub struct Writer {
    queue: Queue,
    room: PollSemaphore,
    stream: u32,
    finished: bool,
    gone: Arc<AtomicBool>,
}

impl Writer {
    /// Tears the stream down in both directions, so that the other side notices at once.
    pub fn reset(mut self) {
        self.finished = true;
        self.queue.send(Frame::Reset(self.stream));
    }

    /// Queues an empty message.
    pub(crate) async fn touch(&mut self) {
        if let Some(permit) = self.queue.permit().await {
            self.queue
                .send(Frame::Data(self.stream, Bytes::new(), permit));
        }
    }

    fn finish(&mut self) {
        if !std::mem::replace(&mut self.finished, true) {
            self.queue.send(Frame::Finish(self.stream));
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.finished || self.gone.load(Ordering::Relaxed) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let Some(permit) = ready!(self.room.poll_acquire(cx)) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let n = buf.len().min(CHUNK);
        self.queue.send(Frame::Data(
            self.stream,
            Bytes::copy_from_slice(&buf[..n]),
            permit,
        ));
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.finish();
    }
}
