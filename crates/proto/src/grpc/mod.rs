//! A gRPC client over one HTTP/2 connection: single calls and streams in both directions.
//!
//! Who uses it connects (TCP, TLS, a Unix socket), decides what is tried again, and where. So that this
//! can be decided, a [`Status`] tells whether the request left at all. One task runs a connection; it
//! ends with it.

mod frame;
mod status;

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

pub use frame::Decoder;
pub use status::{Code, Status};


/// How a connection is kept.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Ping the server after this time without a sign of it.
    pub keep_alive: Duration,
    /// The connection is lost when it does not answer that within this time.
    pub keep_alive_timeout: Duration,
    /// Headers that are sent with every call.
    pub headers: HeaderMap,
}

impl Default for Settings {
    fn default() -> Self {
        Self { keep_alive: Duration::from_secs(30), keep_alive_timeout: Duration::from_secs(10), headers: HeaderMap::new() }
    }
}

/// A connection. Clones share it; it ends with the last one of them and of their streams.
#[derive(Clone)]
pub struct Channel {
    sender: http2::SendRequest<Outgoing>,
    /// `https://host:port`.
    origin: String,
    headers: HeaderMap,
}

/// Speaks HTTP/2 over `io`. `origin` is what the server is called: `https://host:port`. The second part runs the
/// connection and is to be spawned.
pub async fn connect<IO>(io: IO, origin: &str, settings: Settings) -> Result<(Channel, impl Future<Output = ()> + Send + 'static), Status>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let built = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(settings.keep_alive)
        .keep_alive_timeout(settings.keep_alive_timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(2 << 20)
        .initial_connection_window_size(8 << 20)
        .handshake(TokioIo::new(io))
        .await;
    let (sender, connection) = built.map_err(|error| Status::lost(&error, true))?;
    let channel = Channel { sender, origin: origin.to_owned(), headers: settings.headers };
    // Its error is told to every call that it ends.
    Ok((channel, async move { drop(connection.await) }))
}

impl Channel {
    /// Whether the connection is over.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// One request, one response.
    pub async fn unary<Q: Message, S: Message + Default>(&self, method: &'static str, request: &Q, limit: Duration) -> Result<S, Status> {
        let call = async {
            let body = Outgoing::Whole(Some(frame::encode(request)));
            let mut stream: Streaming<S> = self.call(method, body, Some(limit)).await?;
            let Some(response) = stream.message().await? else {
                return Err(Status::new(Code::Internal, "the server answered without a message"));
            };
            // The status follows the message.
            match stream.message().await? {
                None => Ok(response),
                Some(_) => Err(Status::new(Code::Internal, "the server answered with more than one message")),
            }
        };
        match tokio::time::timeout(limit, call).await {
            Ok(done) => done,
            Err(_) => Err(Status::new(Code::DeadlineExceeded, format!("no answer within {limit:?}"))),
        }
    }

    /// One request, a stream of responses.
    pub async fn server_stream<Q: Message, S: Message + Default>(&self, method: &'static str, request: &Q) -> Result<Streaming<S>, Status> {
        self.call(method, Outgoing::Whole(Some(frame::encode(request))), None).await
    }

    /// Streams in both directions. The server sees the end of the requests when the [`Requests`] are dropped, and a
    /// cancellation when the responses are. A server may well wait for the first request before it answers at all.
    pub fn stream<Q: Message, S: Message + Default>(
        &self,
        method: &'static str,
    ) -> (Requests<Q>, impl Future<Output = Result<Streaming<S>, Status>> + Send + use<Q, S>) {
        let (sender, receiver) = mpsc::channel(4);
        let channel = self.clone();
        let call = async move { channel.call(method, Outgoing::Stream(receiver), None).await };
        (Requests { sender, kind: std::marker::PhantomData }, call)
    }

    async fn call<S>(&self, method: &'static str, body: Outgoing, limit: Option<Duration>) -> Result<Streaming<S>, Status> {
        let mut request = Request::post(format!("{}{method}", self.origin));
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.headers.clone());
        }
        request = request.header("content-type", "application/grpc").header("te", "trailers");
        if let Some(limit) = limit {
            // At most eight digits are allowed.
            request = request.header("grpc-timeout", format!("{}m", limit.as_millis().min(99_999_999)));
        }
        let request = request.body(body).map_err(|error| Status::lost(&error, true))?;
        let response = self.sender.clone().try_send_request(request).await;
        let response = response.map_err(|mut failed| {
            let unsent = failed.take_message().is_some();
            Status::lost(failed.error(), unsent)
        })?;
        Streaming::begin(response)
    }
}

/// The requests of a stream.
pub struct Requests<Q> {
    sender: mpsc::Sender<Bytes>,
    kind: std::marker::PhantomData<fn(Q)>,
}

impl<Q: Message> Requests<Q> {
    /// Sends one; waits while the server does not take it. Fails when the call is over.
    pub async fn send(&self, request: &Q) -> Result<(), Status> {
        self.sender.send(frame::encode(request)).await.map_err(|_| Status::new(Code::Unavailable, "the stream has ended"))
    }
}

/// The responses of a call.
pub struct Streaming<S> {
    body: Incoming,
    decoder: Decoder,
    /// Whether the status has been seen.
    over: bool,
    kind: std::marker::PhantomData<fn() -> S>,
}

impl<S> Streaming<S> {
    fn begin(response: Response<Incoming>) -> Result<Self, Status> {
        let ended = Status::read(response.headers());
        if let Some(Err(status)) = ended {
            return Err(status);
        }
        if response.status() != StatusCode::OK {
            let code = match response.status().as_u16() {
                401 => Code::Unauthenticated,
                403 => Code::PermissionDenied,
                404 => Code::Unimplemented,
                429 | 502..=504 => Code::Unavailable,
                _ => Code::Unknown,
            };
            return Err(Status::new(code, format!("the server answered with HTTP status {}", response.status())));
        }
        Ok(Self { body: response.into_body(), decoder: Decoder::default(), over: ended.is_some(), kind: std::marker::PhantomData })
    }
}

impl<S: Message + Default> Streaming<S> {
    /// The next message; `None` when the call ended well. Cancel safe.
    pub async fn message(&mut self) -> Result<Option<S>, Status> {
        loop {
            if let Some(message) = self.decoder.next()? {
                return Ok(Some(message));
            }
            if self.over {
                return Ok(None);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.decoder.push(&data),
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.over = true;
                            Status::read(&trailers).unwrap_or_else(|| Err(Status::new(Code::Internal, "the server sent no status")))?;
                            if self.decoder.partial() {
                                return Err(Status::new(Code::Internal, "the server's last message is cut off"));
                            }
                        }
                    }
                },
                Some(Err(error)) => return Err(Status::lost(&error, false)),
                None => return Err(Status::new(Code::Unavailable, "the server ended the stream without a status")),
            }
        }
    }
}

/// The body of a request.
enum Outgoing {
    Whole(Option<Bytes>),
    Stream(mpsc::Receiver<Bytes>),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(receiver) => receiver.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
