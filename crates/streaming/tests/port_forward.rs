//! Port-forward over SPDY, over SPDY in a WebSocket, and over a WebSocket's channels.

mod common;

use bytes::Bytes;
use common::{Spdy, connect, soon, upgrade};
use futures::{SinkExt, StreamExt};
use streaming::spdy::frame::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

const KEY: &str = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Two connections at once, one to a port that refuses; what came back on each stream.
async fn exchange<IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(io: IO) {
    let mut spdy = Spdy::new(io);
    // A stream without a port is refused.
    spdy.open(1, &[("streamtype", "data")]).await;
    assert!(matches!(
        soon(spdy.next()).await,
        Some(Frame::RstStream { stream: 1, .. })
    ));
    for (stream, kind, port, id) in [
        (3, "error", "80", "0"),
        (5, "error", "81", "1"),
        (7, "data", "81", "1"),
        (9, "data", "80", "0"),
    ] {
        spdy.open(
            stream,
            &[("streamtype", kind), ("port", port), ("requestid", id)],
        )
        .await;
    }
    // The client closes its half of the error streams at once.
    for stream in [3, 5] {
        spdy.send(Frame::Data {
            stream,
            data: Bytes::new(),
            fin: true,
        })
        .await;
    }
    spdy.send(Frame::Data {
        stream: 9,
        data: Bytes::from_static(b"ping"),
        fin: false,
    })
    .await;
    spdy.send(Frame::Data {
        stream: 9,
        data: Bytes::new(),
        fin: true,
    })
    .await;
    let mut received = vec![Vec::new(); 10];
    let mut ended = Vec::new();
    while ended.len() < 4 {
        match soon(spdy.next()).await.expect("open") {
            Frame::Data { stream, data, fin } => {
                received[stream as usize].extend_from_slice(&data);
                if fin {
                    ended.push(stream);
                }
            }
            Frame::RstStream { stream, .. } => ended.push(stream),
            Frame::SynReply { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let received: Vec<_> = [3, 5, 7, 9]
        .map(|i: usize| String::from_utf8_lossy(&received[i]).into_owned())
        .into();
    assert_eq!(received, ["", "connection refused", "", "ping"]);
}

#[tokio::test]
async fn spdy() {
    let headers = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n";
    let (head, io) = upgrade(connect(), "/portforward", headers).await;
    assert!(
        head.contains("x-stream-protocol-version: portforward.k8s.io\r\n"),
        "{head}"
    );
    exchange(io).await;
}

#[tokio::test]
async fn spdy_in_a_websocket() {
    let headers = format!("{KEY}Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io\r\n");
    let (head, io) = upgrade(connect(), "/portforward", &headers).await;
    assert!(
        head.contains("sec-websocket-protocol: spdy/3.1+portforward.k8s.io\r\n"),
        "{head}"
    );
    let (sink, stream) = WebSocketStream::from_raw_socket(io, Role::Client, None)
        .await
        .split();
    let (near, far) = tokio::io::duplex(64 << 10);
    let (mut from, mut to) = tokio::io::split(far);
    tokio::spawn(async move {
        let mut sink = sink;
        let mut buffer = vec![0; 100];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..n])))
                .await
                .unwrap();
        }
    });
    tokio::spawn(async move {
        let mut stream = stream;
        while let Some(Ok(Message::Binary(data))) = stream.next().await {
            to.write_all(&data).await.unwrap();
        }
    });
    exchange(near).await;
}

#[tokio::test]
async fn websocket_channels_as_the_python_client() {
    let headers = format!("{KEY}Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n");
    let (head, io) = upgrade(connect(), "/portforward?port=81", &headers).await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
    let mut messages = Vec::new();
    while let Some(Ok(message)) = soon(socket.next()).await {
        messages.push(message);
    }
    let binary = |bytes: &[u8]| Message::Binary(Bytes::copy_from_slice(bytes));
    assert_eq!(
        messages[..3],
        [
            binary(b"\x00\x51\x00"),
            binary(b"\x01\x51\x00"),
            binary(b"\x01connection refused")
        ]
    );
    assert!(matches!(messages[3], Message::Close(_)));

    let (head, _) = upgrade(connect(), "/portforward?port=http", &headers).await;
    assert!(head.starts_with("http/1.1 400 "), "{head}");
    let (head, _) = upgrade(connect(), "/portforward", &headers).await;
    assert!(head.starts_with("http/1.1 400 "), "{head}");
}
