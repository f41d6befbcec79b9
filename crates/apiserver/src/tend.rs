//! `/knarr/store/…`: what administrators do to the store while a server runs. Who may is said by rules for paths; by
//! default that is `system:masters` alone.
//!
//! - `GET status`: figures. `GET verify`: reads every value, and counts under which key it is.
//! - `GET snapshot`: everything at one revision; see [`crate::offline`].
//! - `POST rewrite?key=NAME`: writes again what is not stored under today's key; a line of JSON for each bit of progress,
//!   the last one with `done` or `error`. With `key` it is refused if that one does not write.
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::body::{self, Body, BodyError};
use crate::negotiate;
use crate::offline::{self, Survey};
use crate::resource::page_not_found;
use crate::server::{Rq, Server};

/// Chunks that wait for a slow receiver.
const WAITING: usize = 4;

fn told(survey: &Survey) -> Value {
    json!({"keys": survey.keys, "values": survey.values(), "stale": survey.stale, "unreadable": survey.unreadable,
        "examples": survey.examples, "revision": survey.revision})
}

fn line(value: &Value) -> Bytes {
    format!("{value}\n").into()
}

/// A body of what is sent, and of the error that ends it early.
fn streamed(mut from: mpsc::Receiver<Bytes>, end: impl Future<Output = Result<(), BodyError>> + Send + 'static) -> Response<Body> {
    let (to, chunks) = mpsc::channel(1);
    let pass = async move {
        while let Some(chunk) = from.recv().await {
            if to.send(Ok::<_, BodyError>(chunk)).await.is_err() {
                return;
            }
        }
        if let Err(error) = end.await {
            let _ = to.send(Err(error)).await;
        }
    };
    // The work goes on as the receiver asks for more.
    let pass = Box::pin(pass);
    let stream = futures::stream::unfold((chunks, Some(pass)), |(mut chunks, mut pass)| async move {
        loop {
            let Some(running) = &mut pass else { return chunks.recv().await.map(|chunk| (chunk, (chunks, pass))) };
            tokio::select! {
                biased;
                chunk = chunks.recv() => return chunk.map(|chunk| (chunk, (chunks, pass))),
                () = running => pass = None,
            }
        }
    });
    let mut response = Response::new(body::stream(stream));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/octet-stream"));
    response
}

impl Server {
    pub(crate) async fn tend_store(self: &Arc<Server>, rq: &Rq, what: &str) -> Response<Body> {
        let fail = |status| negotiate::respond_status(rq.headers(), &status);
        let ok = |value: Value| body::response(200, "application/json", value.to_string());
        let (store, transformer) = (self.core.store.clone(), self.core.transformer.clone());
        match (rq.request.method(), what) {
            (&Method::GET, "status") => match store.status().await {
                Ok(s) => ok(json!({"engine": s.engine, "revision": s.revision, "compacted": s.compacted, "bytes": s.size_bytes,
                    "error": s.error, "full": s.full, "writes": transformer.writes(SECRET)})),
                Err(error) => fail(crate::core::store_error(error)),
            },
            (&Method::GET, "verify") => match offline::survey(store, &transformer).await {
                Ok(found) => ok(told(&found)),
                Err(error) => fail(api::status::internal(error)),
            },
            (&Method::GET, "snapshot") => {
                let (to, from) = mpsc::channel(WAITING);
                let (closing, prefix) = (self.core.closing.clone(), self.config.storage_prefix.clone());
                let sent = self.streams.spawn(async move {
                    let sent = tokio::select! {
                        sent = offline::send(store, &prefix, to) => sent.map(drop).map_err(|e| e.to_string()),
                        () = closing.cancelled() => Err("the server is shutting down".to_owned()),
                    };
                    sent.inspect_err(|why| tracing::error!(why, "a snapshot did not come to its end"))
                });
                streamed(from, async move { sent.await.unwrap_or_else(|e| Err(e.to_string())).map_err(Into::into) })
            }
            (&Method::POST, "rewrite") => {
                let writes = transformer.writes(SECRET);
                if let Some(key) = rq.param("key").filter(|key| *key != writes) {
                    return fail(api::status::conflict("", "keys", key, &format!("this server writes with {writes}")));
                }
                let (to, from) = mpsc::channel(WAITING);
                let closing = self.core.closing.clone();
                let done = self.streams.spawn(async move {
                    let progress = to.clone();
                    // Who is slow to read misses some of it.
                    let say = |done, of| drop(progress.try_send(line(&json!({"rewritten": done, "of": of}))));
                    let last = tokio::select! {
                        done = offline::rewrite(store, transformer, say) => match done {
                            Ok(done) => json!({"done": {"rewritten": done.rewritten, "before": told(&done.before), "after": told(&done.after),
                                "proved": done.is_proved()}}),
                            Err(error) => {
                                tracing::error!(%error, "the values could not all be rewritten");
                                json!({"error": error.to_string()})
                            }
                        },
                        () = closing.cancelled() => json!({"error": "the server is shutting down"}),
                    };
                    let _ = to.send(line(&last)).await;
                });
                streamed(from, async move { done.await.map_err(Into::into) })
            }
            _ => page_not_found(),
        }
    }
}

/// Whose key is meant by "the key that writes": Secrets are what is encrypted if anything is.
const SECRET: &[u8] = b"/registry/secrets/default/x";
