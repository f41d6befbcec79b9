//! What a connection is doing, so that one that does nothing, or too little, is ended: it waits for its next request, it
//! sends a request's head in drops, or it does not take what it asked for. Otherwise such clients would keep answers,
//! and what watches still have to tell, in memory for as long as they like.
//!
//! [`Watched`] notes what moves on the socket, [`Activity::respond`] what becomes of a response. [`Activity::verdict`]
//! is asked now and then, with the time. Upgraded connections are left alone, and so are those that stream a log or
//! something proxied, for there a client may well stop to read.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::body::{self, Body, BodyError};

/// How long clients may do nothing.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From the first byte of a request's head to its last (HTTP/1).
    pub headers: Duration,
    /// Between requests.
    pub idle: Duration,
    /// Until some of an answer, or of a watch's events, is taken.
    pub stalled: Duration,
}

/// Upstream's, where it has one.
impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts { headers: Duration::from_secs(32), idle: Duration::from_secs(90), stalled: Duration::from_secs(60) }
    }
}

/// What is to become of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Look again then.
    Until(Instant),
    /// Nobody asked anything for long: say goodbye.
    Idle,
    /// It keeps us waiting: cut it.
    Cut(&'static str),
}

/// One connection's doings.
pub(crate) struct Activity {
    timeouts: Timeouts,
    /// Whether heads come one after the other (HTTP/1).
    heads: bool,
    state: Mutex<State>,
}

struct State {
    /// Requests whose answers are not yet done.
    requests: usize,
    /// Those of them that may take their time.
    patient: usize,
    /// The last time that there was a request.
    active: Instant,
    /// The first byte since then.
    head: Option<Instant>,
    /// Since when the socket takes nothing.
    blocked: Option<Instant>,
    /// Answers of which a piece was handed over, and nobody asked for the next since.
    waiting: HashMap<u64, Instant>,
    next: u64,
    upgraded: bool,
}

impl Activity {
    pub fn new(timeouts: Timeouts, http1: bool) -> Arc<Activity> {
        let state = State {
            requests: 0,
            patient: 0,
            active: Instant::now(),
            head: None,
            blocked: None,
            waiting: HashMap::new(),
            next: 0,
            upgraded: false,
        };
        Arc::new(Activity { timeouts, heads: http1, state: Mutex::new(state) })
    }

    /// A request came in.
    pub fn request(self: &Arc<Activity>) -> Request {
        let mut state = self.state.lock();
        state.requests += 1;
        state.head = None;
        state.next += 1;
        Request { activity: self.clone(), id: state.next, patient: false }
    }

    /// What is to be done about it.
    pub fn verdict(&self, now: Instant) -> Verdict {
        let state = self.state.lock();
        let limits = &self.timeouts;
        // Requests come and go without waking whoever looks.
        let mut next = now + limits.idle.min(limits.stalled).min(limits.headers);
        if state.upgraded {
            return Verdict::Until(next);
        }
        if state.requests == 0 {
            if let (true, Some(head)) = (self.heads, state.head) {
                let end = head + limits.headers;
                if end <= now {
                    return Verdict::Cut("the head of a request took too long");
                }
                next = next.min(end);
            }
            let end = state.active + limits.idle;
            if end <= now {
                return Verdict::Idle;
            }
            next = next.min(end);
        }
        let oldest = state.waiting.values().copied().chain(state.blocked.filter(|_| state.patient == 0)).min();
        if let Some(oldest) = oldest {
            let end = oldest + limits.stalled;
            if end <= now {
                return Verdict::Cut("an answer was not taken");
            }
            next = next.min(end);
        }
        Verdict::Until(next)
    }
}

/// On a response that may be taken as slowly as the client likes: logs, and what is proxied. Lists, and what watches tell,
/// may not.
#[derive(Clone, Copy)]
pub(crate) struct Unhurried;

/// A request until its answer is done.
pub(crate) struct Request {
    activity: Arc<Activity>,
    id: u64,
    patient: bool,
}

impl Request {
    /// The answer with an eye on it. It is handed over in pieces, so that what is not taken is noticed.
    pub fn respond(mut self, response: Response<Body>) -> Response<Body> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.activity.state.lock().upgraded = true;
            return response;
        }
        if response.extensions().get::<Unhurried>().is_some() {
            self.patient = true;
            self.activity.state.lock().patient += 1;
        }
        self.handed_over();
        response.map(|body| body::boxed(Seen { body, rest: Bytes::new(), request: self }))
    }

    fn handed_over(&self) {
        if !self.patient {
            self.activity.state.lock().waiting.insert(self.id, Instant::now());
        }
    }

    fn asked_for(&self) {
        if !self.patient {
            self.activity.state.lock().waiting.remove(&self.id);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut state = self.activity.state.lock();
        state.requests -= 1;
        state.patient -= usize::from(self.patient);
        state.waiting.remove(&self.id);
        state.active = Instant::now();
    }
}

/// Most that is handed over at once.
const PIECE: usize = 256 << 10;

struct Seen {
    body: Body,
    /// Of the last piece, what is still to be handed over.
    rest: Bytes,
    request: Request,
}

impl HttpBody for Seen {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.request.asked_for();
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                other => return other,
            }
        }
        let length = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(length);
        if !self.is_end_stream() {
            self.request.handed_over();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, mut hint) = (self.rest.len() as u64, self.body.size_hint());
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

/// A socket that is looked at.
pub(crate) struct Watched<IO> {
    pub io: IO,
    pub activity: Arc<Activity>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        if self.activity.heads && result.is_ready() && buf.filled().len() > before {
            let mut state = self.activity.state.lock();
            if state.requests == 0 && state.head.is_none() {
                state.head = Some(Instant::now());
            }
        }
        result
    }
}

impl<IO: AsyncWrite + Unpin> Watched<IO> {
    fn wrote<T>(&self, result: Poll<T>) -> Poll<T> {
        let mut state = self.activity.state.lock();
        match result {
            Poll::Pending => drop(state.blocked.get_or_insert_with(Instant::now)),
            Poll::Ready(_) => state.blocked = None,
        }
        drop(state);
        result
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_flush(cx);
        self.wrote(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use http_body_util::BodyExt;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn activity(http1: bool) -> Arc<Activity> {
        Activity::new(Timeouts { headers: 10 * SECOND, idle: 30 * SECOND, stalled: 20 * SECOND }, http1)
    }

    fn after(activity: &Activity, seconds: u32) -> Verdict {
        activity.verdict(Instant::now() + seconds * SECOND)
    }

    #[test]
    fn who_asks_nothing_is_idle() {
        let a = activity(false);
        assert!(matches!(after(&a, 29), Verdict::Until(_)));
        assert_eq!(after(&a, 31), Verdict::Idle);
        let request = a.request();
        assert!(matches!(after(&a, 1000), Verdict::Until(_)), "the answer is ours to give");
        drop(request);
        assert_eq!(after(&a, 31), Verdict::Idle);
    }

    #[tokio::test]
    async fn heads_in_drops_are_cut() {
        for (http1, cut) in [(true, true), (false, false)] {
            let a = activity(http1);
            let mut io = Watched { io: &b"GET"[..], activity: a.clone() };
            tokio::io::AsyncReadExt::read_u8(&mut io).await.unwrap();
            assert!(matches!(after(&a, 9), Verdict::Until(_)));
            assert_eq!(matches!(after(&a, 11), Verdict::Cut(_)), cut);
            let request = a.request();
            assert!(matches!(after(&a, 11), Verdict::Until(_)), "the head is whole");
            drop(request);
            assert!(matches!(after(&a, 11), Verdict::Until(_)), "and no other has begun");
        }
    }

    #[test]
    fn answers_that_nobody_takes_are_cut() {
        let long = vec![7; PIECE + 1];
        for patient in [false, true] {
            let a = activity(false);
            let mut response = Response::new(body::full(long.clone()));
            if patient {
                response.extensions_mut().insert(Unhurried);
            }
            let mut response = a.request().respond(response);
            assert_eq!(response.body().size_hint().exact(), Some(long.len() as u64));
            assert_eq!(matches!(after(&a, 21), Verdict::Cut(_)), !patient, "not even begun");
            let first = response.body_mut().frame().now_or_never().unwrap().unwrap().unwrap();
            assert_eq!(first.data_ref().map(Bytes::len), Some(PIECE));
            assert_eq!(matches!(after(&a, 21), Verdict::Cut(_)), !patient, "one piece was taken");
            assert!(matches!(after(&a, 19), Verdict::Until(_)));
            let second = response.body_mut().frame().now_or_never().unwrap().unwrap().unwrap();
            assert_eq!(second.data_ref().map(Bytes::len), Some(1));
            drop(response);
            assert!(matches!(after(&a, 21), Verdict::Until(_)), "all was taken");
        }
    }

    #[test]
    fn a_quiet_watch_goes_on() {
        let a = activity(true);
        let mut response = a.request().respond(Response::new(body::stream(futures::stream::pending())));
        assert!(response.body_mut().frame().now_or_never().is_none());
        assert!(matches!(after(&a, 10_000), Verdict::Until(_)));
    }

    #[tokio::test]
    async fn a_socket_that_takes_nothing_is_cut() {
        let (near, _far) = tokio::io::duplex(1);
        let a = activity(true);
        let mut io = Watched { io: near, activity: a.clone() };
        let write = |io: &mut Watched<_>| tokio::io::AsyncWriteExt::write_all(io, b"ab").now_or_never();
        assert!(write(&mut io).is_none());
        let mut log = Response::new(body::empty());
        log.extensions_mut().insert(Unhurried);
        let log = a.request().respond(log);
        assert!(matches!(after(&a, 21), Verdict::Until(_)), "a log may wait");
        drop(log);
        let _request = a.request();
        assert!(matches!(after(&a, 21), Verdict::Cut(_)));
        let mut upgraded = Response::new(body::empty());
        *upgraded.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        a.request().respond(upgraded);
        assert!(matches!(after(&a, 1000), Verdict::Until(_)));
    }
}
