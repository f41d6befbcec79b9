//! Frames and messages: gRPC, etcd, CRI, SPDY, WebSocket.

use std::convert::Infallible;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proto::grpc::Decoder;
use proto::{Message, cri, etcd};
use streaming::server::{self, Options};
use streaming::spdy;
use streaming::status::ExecStatus;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Parts;

fn message<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let Ok(message) = M::decode(bytes) else { return };
    let written = message.encode_to_vec();
    let again = M::decode(&*written).expect("what was written can be read");
    assert_eq!(again.encode_to_vec(), written);
}

/// A message, and frames of messages.
pub fn grpc(input: &[u8]) {
    message::<etcd::RangeResponse>(input);
    message::<etcd::TxnRequest>(input);
    message::<etcd::TxnResponse>(input);
    message::<etcd::WatchRequest>(input);
    message::<etcd::WatchResponse>(input);
    message::<etcd::StatusResponse>(input);
    message::<cri::CreateContainerRequest>(input);
    message::<cri::RunPodSandboxRequest>(input);
    message::<cri::ContainerStatusResponse>(input);
    message::<cri::ListPodSandboxStatsResponse>(input);
    let mut whole = Decoder::default();
    whole.push(input);
    let mut found = 0;
    while let Ok(Some(_)) = whole.next::<etcd::WatchResponse>() {
        found += 1;
    }
    // In pieces they are the same.
    let mut pieces = Decoder::default();
    let mut again = 0;
    for piece in input.chunks(3) {
        pieces.push(piece);
        while let Ok(Some(_)) = pieces.next::<etcd::WatchResponse>() {
            again += 1;
        }
    }
    assert!(again >= found, "{again} messages in pieces, {found} in one");
}

/// Frames: what was read is written and read the same.
pub fn spdy(input: &[u8]) {
    let (mut decoder, mut rest) = (spdy::frame::Decoder::default(), BytesMut::from(input));
    let (mut encoder, mut other) = (spdy::frame::Encoder::default(), spdy::frame::Decoder::default());
    while let Ok(Some(frame)) = decoder.decode(&mut rest) {
        let mut bytes = BytesMut::new();
        encoder.encode(&frame, &mut bytes);
        if bytes.is_empty() {
            continue;
        }
        // A frame may be too large for what we send back, never for what we read.
        match other.decode(&mut bytes) {
            Ok(again) => assert_eq!(again.as_ref(), Some(&frame)),
            Err(_) => return,
        }
    }
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() == "/portforward" {
        return Ok(match server::port_forward(&mut request) {
            Ok((answer, forwards)) => {
                tokio::spawn(async move {
                    let Ok(mut forwards) = forwards.await else { return };
                    while let Some(_forward) = forwards.next().await {}
                });
                answer
            }
            Err(answer) => answer,
        });
    }
    let options = Options::from_query(request.uri().query().unwrap_or_default());
    Ok(match server::exec(&mut request, options) {
        Ok((answer, streams)) => {
            tokio::spawn(async move {
                let Ok(mut streams) = streams.await else { return };
                let mut total = 0;
                if let Some(stdin) = &mut streams.stdin {
                    let mut buffer = vec![0; 4096];
                    while let Ok(n @ 1..) = stdin.read(&mut buffer).await {
                        total += n;
                    }
                }
                if let Some(stdout) = &mut streams.stdout {
                    let _ = stdout.write_all(total.to_string().as_bytes()).await;
                }
                streams.status.finish(ExecStatus::Success).await;
            });
            answer
        }
        Err(answer) => answer,
    })
}

/// A request for exec or port forwarding, and what is sent once it was upgraded.
pub fn streams(input: &[u8]) {
    let mut parts = Parts::of(input);
    let (head, data) = (parts.bytes(), parts.bytes());
    let head = [head, b"\r\nHost: a\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"].concat();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (mut client, end) = tokio::io::duplex(64 << 10);
        let http = hyper::server::conn::http1::Builder::new();
        tokio::spawn(async move {
            let _ = http.serve_connection(TokioIo::new(end), service_fn(answer)).with_upgrades().await;
        });
        let talk = async {
            client.write_all(&head).await?;
            let mut buffer = vec![0; 4096];
            let n = client.read(&mut buffer).await?;
            if buffer[..n].starts_with(b"HTTP/1.1 101") {
                client.write_all(data).await?;
                client.shutdown().await?;
                while client.read(&mut buffer).await? > 0 {}
            }
            std::io::Result::Ok(())
        };
        // It ends when we are gone, well before its patience does.
        let _ = tokio::time::timeout(Duration::from_millis(200), talk).await;
    });
}
