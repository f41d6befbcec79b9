//! Exec: each protocol's client against the server.

mod common;

use bytes::Bytes;
use common::{Spdy, connect, soon, upgrade};
use futures::{SinkExt, StreamExt};
use http::Request;
use streaming::server::Options;
use streaming::spdy::frame::Frame;
use streaming::status::ExecStatus;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

const ALL: Options = Options {
    stdin: true,
    stdout: true,
    stderr: true,
    tty: false,
};
const EXIT_5: &str = r#"{"details":{"causes":[{"message":"5","reason":"ExitCode"}]},"message":"command terminated with non-zero exit code: command terminated with exit code 5","metadata":{},"reason":"NonZeroExitCode","status":"Failure"}"#;

async fn run_v5(path: &str, input: Vec<u8>) -> (Vec<u8>, Vec<u8>, ExecStatus) {
    let request = Request::get(format!("http://pod{path}")).body(()).unwrap();
    let mut streams = streaming::client::exec(request, ALL, connect())
        .await
        .unwrap();
    let mut stdin = streams.stdin.take().unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let write = async {
        stdin.write_all(&input).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let (mut stdout, mut stderr) = (streams.stdout.unwrap(), streams.stderr.unwrap());
    let (_, a, b, status) = tokio::join!(
        write,
        stdout.read_to_end(&mut out),
        stderr.read_to_end(&mut err),
        streams.status.wait()
    );
    a.unwrap();
    b.unwrap();
    (out, err, status)
}

#[tokio::test]
async fn websocket_v5_with_half_close() {
    let (out, err, status) =
        soon(run_v5("/exec?input=1&output=1&error=1", b"hello".to_vec())).await;
    assert_eq!(
        (out.as_slice(), err.as_slice(), status),
        (&b"HELLO"[..], &b"bye"[..], ExecStatus::ExitCode(5))
    );
}

#[tokio::test]
async fn success_and_bulk() {
    // More than all buffers together.
    let input = vec![b'x'; 4 << 20];
    let (out, _, status) = soon(run_v5("/exec?input=1&output=1&error=1", input)).await;
    assert_eq!((out.len(), status), (4 << 20, ExecStatus::Success));
    assert!(out.iter().all(|byte| *byte == b'X'));
}

#[tokio::test]
async fn through_the_proxy() {
    let (out, err, status) = soon(run_v5("/proxy", b"hello".to_vec())).await;
    assert_eq!(
        (out.as_slice(), err.as_slice(), status),
        (&b"HELLO"[..], &b"bye"[..], ExecStatus::ExitCode(5))
    );
}

#[tokio::test]
async fn terminal_sizes_arrive() {
    let options = Options {
        stdin: false,
        stdout: true,
        stderr: false,
        tty: true,
    };
    let request = Request::get("http://pod/exec?output=1&tty=1")
        .body(())
        .unwrap();
    let mut streams = streaming::client::exec(request, options, connect())
        .await
        .unwrap();
    streams.resize.send(120, 40).await.unwrap();
    let mut out = String::new();
    soon(streams.stdout.unwrap().read_to_string(&mut out))
        .await
        .unwrap();
    assert_eq!(out, "120x40\n");
    assert_eq!(soon(streams.status.wait()).await, ExecStatus::Success);
}

const KEY: &str = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

async fn websocket(path: &str, protocol: &str) -> WebSocketStream<tokio::io::DuplexStream> {
    let headers = format!("{KEY}Sec-WebSocket-Protocol: {protocol}\r\n");
    let (head, io) = upgrade(connect(), path, &headers).await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(
        head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"),
        "{head}"
    );
    assert!(
        head.contains(&format!("sec-websocket-protocol: {protocol}\r\n")),
        "{head}"
    );
    WebSocketStream::from_raw_socket(io, Role::Client, None).await
}

#[tokio::test]
async fn websocket_v4_as_the_python_client() {
    let mut socket = websocket("/exec?output=1&error=1&tty=0", "v4.channel.k8s.io").await;
    let mut messages = Vec::new();
    while let Some(Ok(message)) = soon(socket.next()).await {
        messages.push(message);
    }
    let binary = |bytes: &[u8]| Message::Binary(Bytes::copy_from_slice(bytes));
    assert_eq!(messages[0], binary(b"\x01"));
    assert_eq!(messages[1], binary(b"\x02bye"));
    assert_eq!(
        messages[2],
        binary(b"\x03{\"metadata\":{},\"status\":\"Success\"}")
    );
    let Message::Close(Some(close)) = &messages[3] else {
        panic!("{:?}", messages[3])
    };
    assert_eq!(u16::from(close.code), 1000);
}

#[tokio::test]
async fn websocket_base64() {
    let mut socket = websocket("/exec?input=1&output=1", "base64.channel.k8s.io").await;
    assert_eq!(
        soon(socket.next()).await.unwrap().unwrap(),
        Message::text("1")
    );
    socket.send(Message::text("0aGVsbG8=")).await.unwrap();
    assert_eq!(
        soon(socket.next()).await.unwrap().unwrap(),
        Message::text("1SEVMTE8=")
    );
}

#[tokio::test]
async fn refusals() {
    let (head, _) = upgrade(
        connect(),
        "/exec?output=1",
        &format!("{KEY}Sec-WebSocket-Protocol: v9\r\n"),
    )
    .await;
    assert!(head.starts_with("http/1.1 403 "), "{head}");
    let (head, _) = upgrade(connect(), "/exec", KEY).await;
    assert!(head.starts_with("http/1.1 400 "), "{head}");
    let (head, _) = upgrade(connect(), "/exec?output=1", "").await;
    assert!(head.starts_with("http/1.1 400 "), "{head}");
    let spdy = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9.channel.k8s.io\r\n";
    let (head, _) = upgrade(connect(), "/exec?output=1", spdy).await;
    assert!(head.starts_with("http/1.1 403 "), "{head}");
    assert!(
        head.contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io"),
        "{head}"
    );
}

#[tokio::test]
async fn spdy_v4_as_old_kubectl() {
    let headers = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nX-Stream-Protocol-Version: v3.channel.k8s.io\r\n";
    let (head, io) = upgrade(connect(), "/exec?input=1&output=1&error=1", headers).await;
    assert!(
        head.contains("x-stream-protocol-version: v4.channel.k8s.io\r\n"),
        "{head}"
    );
    let mut spdy = Spdy::new(io);
    let types = ["error", "stdin", "stdout", "stderr"];
    for (i, kind) in types.iter().enumerate() {
        spdy.open(1 + 2 * i as u32, &[("streamtype", kind)]).await;
        let reply = soon(spdy.next()).await.unwrap();
        assert!(
            matches!(reply, Frame::SynReply { stream, .. } if stream == 1 + 2 * i as u32),
            "{reply:?}"
        );
    }
    spdy.send(Frame::Ping(1)).await;
    spdy.send(Frame::Data {
        stream: 3,
        data: Bytes::from_static(b"hello"),
        fin: false,
    })
    .await;
    spdy.send(Frame::Data {
        stream: 3,
        data: Bytes::new(),
        fin: true,
    })
    .await;
    let mut received = vec![Vec::new(); 8];
    let (mut finished, mut pinged) = (Vec::new(), false);
    while finished.len() < 3 {
        match soon(spdy.next()).await.expect("the client closes first") {
            Frame::Data { stream, data, fin } => {
                received[stream as usize].extend_from_slice(&data);
                if fin {
                    finished.push(stream);
                }
            }
            Frame::Ping(1) => pinged = true,
            other => panic!("{other:?}"),
        }
    }
    assert!(pinged);
    for stream in [1, 5, 7] {
        assert!(finished.contains(&stream), "{finished:?}");
    }
    assert_eq!(String::from_utf8_lossy(&received[1]), EXIT_5);
    assert_eq!(
        (received[5].as_slice(), received[7].as_slice()),
        (&b"HELLO"[..], &b"bye"[..])
    );
}
