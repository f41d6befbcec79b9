//! Exec and attach, for clients of SPDY (v1 to v4) and WebSocket (v1, v4, v5, raw or base64).

use std::time::Duration;

use http::{Request, StatusCode};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;

use super::{Answer, agree, refuse, upgraded};
use crate::Error;
use crate::pipe::{self, Frame, Queue, Reader, Writer};
use crate::spdy::{self, frame::header};
use crate::status::ExecStatus;
use crate::websocket::{self, Channels};

/// How long a client may take to open its streams.
const STREAM_CREATION_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to receive the rest and close.
const FINISH_TIMEOUT: Duration = Duration::from_secs(60);

const WEBSOCKET: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
const SPDY: &[&str] = &[
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];

/// Which streams the client asked for, in the request's query.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// The command reads standard input.
    pub stdin: bool,
    /// Its standard output is wanted.
    pub stdout: bool,
    /// Its standard error is wanted; never with a terminal.
    pub stderr: bool,
    /// It runs on a terminal.
    pub tty: bool,
}

impl Options {
    /// Reads the query of the kubelet's and the container runtime's endpoints (`input`, `output`,
    /// `error`, `tty`) or of the API server's (`stdin`, `stdout`, `stderr`, `tty`).
    pub fn from_query(query: &str) -> Self {
        let mut options = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, "true"));
            let on = matches!(value, "1" | "t" | "T" | "true" | "True" | "TRUE");
            match name {
                "input" | "stdin" => options.stdin = on,
                "output" | "stdout" => options.stdout = on,
                "error" | "stderr" => options.stderr = on,
                "tty" => options.tty = on,
                _ => {}
            }
        }
        options
    }
}

/// A command's streams, and where to say how it ended.
pub struct ExecStreams {
    /// What the command reads.
    pub stdin: Option<Reader>,
    /// What it writes.
    pub stdout: Option<Writer>,
    /// Its errors; never with a terminal.
    pub stderr: Option<Writer>,
    /// The terminal's sizes.
    pub resize: Option<Resize>,
    /// Says how the command ended, and closes the connection.
    pub status: StatusSink,
    /// Cancelled when the connection has ended, whoever ended it.
    pub closed: CancellationToken,
}

/// The sizes of a client's terminal, as they change.
pub struct Resize {
    reader: Reader,
    buffer: Vec<u8>,
}

impl Resize {
    /// The next size (columns, rows); `None` when there will be no more. Cancel safe.
    pub async fn recv(&mut self) -> Option<(u16, u16)> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        #[derive(Default)]
        struct Size {
            width: u16,
            height: u16,
        }
        loop {
            let mut sizes = serde_json::Deserializer::from_slice(&self.buffer).into_iter::<Size>();
            match sizes.next() {
                Some(Ok(size)) => {
                    let used = sizes.byte_offset();
                    self.buffer.drain(..used);
                    return Some((size.width, size.height));
                }
                Some(Err(error)) if !error.is_eof() => return None,
                _ if self.buffer.len() > 4096 => return None,
                _ => {}
            }
            if self.reader.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        }
    }
}

/// Where to say how the command ended. Dropping it closes the connection without a word.
pub struct StatusSink {
    writer: Writer,
    // Last: the goodbye follows what the writer's end queues.
    goodbye: Goodbye,
    json: bool,
    websocket: bool,
    /// The server's halves of streams on which only the client sends (SPDY). Ending one early tells
    /// kubectl that its input is not wanted any more.
    _unused: Vec<Writer>,
    closed: CancellationToken,
}

/// Closes the connection when dropped.
struct Goodbye(Queue);

impl Drop for Goodbye {
    fn drop(&mut self) {
        self.0.send(Frame::Close);
    }
}

impl StatusSink {
    /// Tells the client, and closes the connection after everything that was written before. Returns
    /// when the client has it all or is gone.
    pub async fn finish(mut self, status: ExecStatus) {
        let Self {
            writer,
            goodbye,
            json,
            websocket,
            closed,
            ..
        } = &mut self;
        let message = if *json {
            status.to_json().to_string()
        } else {
            status.message()
        };
        let send = async {
            if !message.is_empty() {
                let _ = writer.write_all(message.as_bytes()).await;
            }
            let _ = writer.shutdown().await;
            // A client of SPDY closes when all its streams have ended. What it has not taken from
            // its socket by then would be lost if we closed first.
            if *websocket {
                goodbye.0.send(Frame::Close);
            }
            closed.cancelled().await;
        };
        let _ = tokio::time::timeout(FINISH_TIMEOUT, send).await;
    }
}

/// Answers a request for exec or attach. Send the answer; the future yields the streams when the
/// client has opened them. `Err` is the answer to a request that cannot be served.
#[allow(clippy::result_large_err, reason = "both are the answer to send")]
pub fn exec<B>(
    req: &mut Request<B>,
    mut options: Options,
) -> Result<
    (
        Answer,
        impl Future<Output = Result<ExecStreams, Error>> + Send + 'static + use<B>,
    ),
    Answer,
> {
    options.stderr &= !options.tty;
    if !options.stdin && !options.stdout && !options.stderr {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "you must specify at least 1 of stdin, stdout, stderr",
        ));
    }
    let agreed = agree(req, WEBSOCKET, SPDY)?;
    let (on_upgrade, protocol) = (agreed.on_upgrade, agreed.protocol);
    let streams = async move {
        let io = upgraded(on_upgrade).await?;
        if agreed.websocket {
            Ok(over_websocket(io, options, &protocol).await)
        } else {
            over_spdy(io, options, &protocol).await
        }
    };
    Ok((agreed.answer, streams))
}

async fn over_websocket<IO>(io: IO, options: Options, protocol: &str) -> ExecStreams
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let socket = websocket::open(io, Role::Server).await;
    let (stdin_feed, stdin) = pipe::inbound();
    let (resize_feed, resize) = pipe::inbound();
    let feeds = vec![
        options.stdin.then_some(stdin_feed),
        None,
        None,
        None,
        Some(resize_feed),
    ];
    let channels = Channels {
        base64: protocol.contains("base64."),
        close_received: protocol.starts_with("v5."),
        close_sent: false,
    };
    let (queue, closed) = websocket::serve(socket, channels, feeds);
    let writer = |channel| queue.writer(channel).0;
    let mut stdout = options.stdout.then(|| writer(1));
    let mut stderr = options.stderr.then(|| writer(2));
    let mut error = writer(3);
    // An empty message tells the client that the connection stands.
    stdout
        .as_mut()
        .or(stderr.as_mut())
        .unwrap_or(&mut error)
        .touch()
        .await;
    let json = protocol.starts_with("v5.") || protocol.starts_with("v4.");
    ExecStreams {
        stdin: options.stdin.then_some(stdin),
        stdout,
        stderr,
        resize: options.tty.then(|| Resize {
            reader: resize,
            buffer: Vec::new(),
        }),
        status: StatusSink {
            writer: error,
            goodbye: Goodbye(queue),
            json,
            websocket: true,
            _unused: Vec::new(),
            closed: closed.clone(),
        },
        closed,
    }
}

async fn over_spdy<IO>(io: IO, options: Options, protocol: &str) -> Result<ExecStreams, Error>
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + 'static,
{
    let mut connection = spdy::serve(io, |_| true);
    let resizes = options.tty && (protocol.starts_with("v4.") || protocol.starts_with("v3."));
    let wanted = [options.stdin, options.stdout, options.stderr, resizes];
    let expected = 1 + wanted.iter().filter(|wanted| **wanted).count();
    let (mut stdin, mut stdout, mut stderr, mut error, mut resize) = (None, None, None, None, None);
    let mut unused = Vec::new();
    let arrive = async {
        let mut received = 0;
        while received < expected {
            let stream = connection.streams.recv().await?;
            match header(&stream.headers, "streamtype") {
                Some("error") => error = Some(stream.writer),
                Some("stdin") => {
                    stdin = Some(stream.reader);
                    unused.push(stream.writer);
                }
                Some("stdout") => stdout = Some(stream.writer),
                Some("stderr") => stderr = Some(stream.writer),
                Some("resize") => {
                    resize = Some(stream.reader);
                    unused.push(stream.writer);
                }
                other => {
                    tracing::debug!(?other, "unexpected stream type");
                    continue;
                }
            }
            received += 1;
        }
        Some(())
    };
    match tokio::time::timeout(STREAM_CREATION_TIMEOUT, arrive).await {
        Ok(Some(())) => {}
        Ok(None) => return Err(Error::Closed),
        Err(_) => {
            connection.queue.send(Frame::Close);
            return Err(Error::Timeout);
        }
    }
    let Some(error) = error else {
        connection.queue.send(Frame::Close);
        return Err(Error::Timeout);
    };
    let closed = connection.closed;
    Ok(ExecStreams {
        stdin,
        stdout,
        stderr,
        resize: resize.map(|reader| Resize {
            reader,
            buffer: Vec::new(),
        }),
        status: StatusSink {
            writer: error,
            goodbye: Goodbye(connection.queue),
            json: protocol.starts_with("v4."),
            websocket: false,
            _unused: unused,
            closed: closed.clone(),
        },
        closed,
    })
}
