//! One stream from the server to the client, as messages of a WebSocket: logs for clients that cannot
//! read a plain answer bit by bit, as browsers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, Stream, StreamExt};
use http::Request;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::{Answer, agree, upgraded};
use crate::{Error, websocket};

/// Upstream's names; a client that names none gets binary messages.
const PROTOCOLS: &[&str] = &["binary.k8s.io", "base64.binary.k8s.io"];

/// Answers a request for a stream. Send the answer, and give the future what is to be sent. `Err` is the
/// answer to a request that cannot be served.
#[allow(clippy::result_large_err, reason = "both are the answer to send")]
pub fn reader<B, S>(req: &mut Request<B>) -> Result<(Answer, impl FnOnce(S) -> futures::future::BoxFuture<'static, Result<(), Error>> + Send + use<B, S>), Answer>
where
    S: Stream<Item = Bytes> + Send + Unpin + 'static,
{
    let agreed = agree(req, PROTOCOLS, &[])?;
    let base64 = agreed.protocol.starts_with("base64.");
    let on_upgrade = agreed.on_upgrade;
    let send = move |mut data: S| {
        let sending = async move {
            let mut socket = websocket::open(upgraded(on_upgrade).await?, Role::Server).await;
            let message = |bytes: Bytes| if base64 { Message::text(STANDARD.encode(bytes)) } else { Message::binary(bytes) };
            // An empty message tells the client that the connection stands.
            let mut next = Some(Bytes::new());
            while let Some(bytes) = next {
                if socket.send(message(bytes)).await.is_err() {
                    return Ok(());
                }
                next = tokio::select! {
                    bytes = data.next() => bytes,
                    // Nothing is expected from the client but its end; pings are answered below us.
                    _ = gone(&mut socket) => return Ok(()),
                };
            }
            // The client may be gone by now.
            let _ = socket.close(None).await;
            Ok(())
        };
        Box::pin(sending) as futures::future::BoxFuture<'static, Result<(), Error>>
    };
    Ok((agreed.answer, send))
}

/// Completes when the client has closed.
async fn gone<T>(socket: &mut T)
where
    T: Stream<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin,
{
    while let Some(Ok(message)) = socket.next().await {
        if message.is_close() {
            return;
        }
    }
}
