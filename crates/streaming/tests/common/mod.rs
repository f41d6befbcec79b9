//! A server in front of a fake command and a fake pod, on in-memory pipes.
#![allow(dead_code)]

use std::convert::Infallible;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use streaming::server::{self, ExecStreams, Options};
use streaming::spdy::frame::{Decoder, Encoder, Frame, Headers};
use streaming::status::ExecStatus;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Connects to a server that runs [`command`] for `/exec` and [`pod`] for `/portforward`.
pub fn connect() -> DuplexStream {
    let (client, server) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move {
        let http = hyper::server::conn::http1::Builder::new();
        let _ = http
            .serve_connection(TokioIo::new(server), service_fn(handle))
            .with_upgrades()
            .await;
    });
    client
}

async fn handle(mut req: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if req.uri().path() == "/portforward" {
        return Ok(match server::port_forward(&mut req) {
            Ok((answer, forwards)) => {
                tokio::spawn(async move {
                    let mut forwards = forwards.await.unwrap();
                    while let Some(forward) = forwards.next().await {
                        tokio::spawn(pod(forward));
                    }
                });
                answer
            }
            Err(answer) => answer,
        });
    }
    if req.uri().path() == "/proxy" {
        let (answer, pass) = streaming::proxy::upgrade(
            req,
            "/exec?input=1&output=1&error=1".parse().unwrap(),
            connect(),
        )
        .await
        .unwrap();
        pass.map(tokio::spawn);
        return Ok(answer);
    }
    let options = Options::from_query(req.uri().query().unwrap_or_default());
    Ok(match server::exec(&mut req, options) {
        Ok((answer, streams)) => {
            tokio::spawn(async move { command(streams.await.unwrap()).await });
            answer
        }
        Err(answer) => answer,
    })
}

/// Writes its input in capitals, the terminal's first size, and "bye" as an error; then exits with
/// the length of its input.
async fn command(streams: ExecStreams) {
    let mut total = 0;
    let mut stdout = streams.stdout.expect("tests want output");
    if let Some(mut resize) = streams.resize {
        let (columns, rows) = resize.recv().await.unwrap();
        stdout
            .write_all(format!("{columns}x{rows}\n").as_bytes())
            .await
            .unwrap();
    }
    if let Some(mut stdin) = streams.stdin {
        let mut buffer = vec![0; 10_000];
        loop {
            let n = stdin.read(&mut buffer).await.unwrap();
            if n == 0 {
                break;
            }
            total += n;
            stdout
                .write_all(&buffer[..n].to_ascii_uppercase())
                .await
                .unwrap();
        }
    }
    if let Some(mut stderr) = streams.stderr {
        stderr.write_all(b"bye").await.unwrap();
    }
    drop(stdout);
    streams
        .status
        .finish(ExecStatus::ExitCode((total % 256) as i32))
        .await;
}

/// Port 80 echoes; others refuse.
async fn pod(mut forward: server::PortForward) {
    if forward.port != 80 {
        return forward.fail("connection refused").await;
    }
    let mut text = Vec::new();
    forward.read_to_end(&mut text).await.unwrap();
    forward.write_all(&text).await.unwrap();
}

/// Sends a request for an upgrade and takes the answer's head.
pub async fn upgrade(mut io: DuplexStream, path: &str, headers: &str) -> (String, DuplexStream) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n{headers}\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.expect("an answer"));
    }
    (String::from_utf8(head).unwrap().to_lowercase(), io)
}

/// A client of SPDY that does everything in one task.
pub struct Spdy<IO> {
    io: IO,
    encoder: Encoder,
    decoder: Decoder,
    input: BytesMut,
}

impl<IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Spdy<IO> {
    pub fn new(io: IO) -> Self {
        Self {
            io,
            encoder: Encoder::default(),
            decoder: Decoder::default(),
            input: BytesMut::new(),
        }
    }

    pub async fn send(&mut self, frame: Frame) {
        let mut output = BytesMut::new();
        self.encoder.encode(&frame, &mut output);
        self.io.write_all(&output).await.unwrap();
    }

    pub async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let headers: Headers = headers
            .iter()
            .map(|(n, v)| (n.to_string(), v.to_string()))
            .collect();
        self.send(Frame::SynStream {
            stream,
            headers,
            fin: false,
        })
        .await;
    }

    /// The next frame; `None` at the end.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.input).unwrap() {
                return Some(frame);
            }
            if self.io.read_buf(&mut self.input).await.unwrap() == 0 {
                return None;
            }
        }
    }
}

/// Replaces a duration that no test should take.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(std::time::Duration::from_secs(20), what)
        .await
        .expect("done in time")
}
