//! Bodies: one boxed type for requests and responses, bounded reading, gzip.
use std::error::Error as StdError;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode, header};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};

use crate::types::Status;

/// What can go wrong while a body is read.
pub type BodyError = Box<dyn StdError + Send + Sync>;

/// The body of every request and response in here.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Largest request body (upstream: etcd's request limit twice).
pub const MAX_REQUEST: usize = 3 << 20;

/// Boxes any body.
pub fn boxed<B>(body: B) -> Body
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    body.map_err(Into::into).boxed_unsync()
}

pub fn empty() -> Body {
    boxed(Empty::new())
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    boxed(Full::new(bytes.into()))
}

/// A body made of chunks as they come.
pub fn stream<S>(chunks: S) -> Body
where
    S: futures::Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
{
    use futures::StreamExt;
    boxed(StreamBody::new(chunks.map(|c| c.map(http_body::Frame::data))))
}

/// How much of a [`written`] body is there at once.
const PIECE: usize = 64 << 10;

/// A body that comes into being while it is sent: `write` appends some more, and tells whether there is more to come.
pub fn written(size: Option<usize>, write: impl FnMut(&mut Vec<u8>) -> bool + Send + Unpin + 'static) -> Body {
    boxed(Written { write, left: size.map(|s| s as u64), more: true })
}

struct Written<W> {
    write: W,
    /// What is to come, where that is known.
    left: Option<u64>,
    more: bool,
}

impl<W: FnMut(&mut Vec<u8>) -> bool + Unpin> HttpBody for Written<W> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        if !self.more {
            return Poll::Ready(None);
        }
        let mut piece = Vec::with_capacity(PIECE + PIECE / 4);
        while self.more && piece.len() < PIECE {
            self.more = (self.write)(&mut piece);
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(piece.len() as u64);
        }
        Poll::Ready(Some(Ok(http_body::Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        !self.more
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.left.map_or_else(http_body::SizeHint::default, http_body::SizeHint::with_exact)
    }
}

/// A response with a [`written`] body, which is compressed when it is large and the client takes it.
pub fn response_written(
    headers: &HeaderMap,
    content_type: &'static str,
    size: Option<usize>,
    mut write: impl FnMut(&mut Vec<u8>) -> bool + Send + Unpin + 'static,
) -> Response<Body> {
    if accepts_gzip(headers) && size.is_none_or(|s| s >= GZIP_FROM) {
        let mut all = Vec::with_capacity(size.unwrap_or(PIECE));
        while write(&mut all) {}
        return response_maybe_gzip(headers, 200, content_type, all);
    }
    let mut response = Response::new(written(size, write));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

/// Reads a request body of at most `limit` bytes.
pub async fn read(mut body: Body, limit: usize) -> Result<Bytes, Status> {
    if body.size_hint().lower() > limit as u64 {
        discard(body).await;
        return Err(api::status::too_large(limit));
    }
    let mut all = BytesMut::new();
    let mut only: Option<Bytes> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| api::status::bad_request(format!("the request body could not be read: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if all.len() + only.as_ref().map_or(0, Bytes::len) + data.len() > limit {
            discard(body).await;
            return Err(api::status::too_large(limit));
        }
        match only.take() {
            None if all.is_empty() => only = Some(data),
            Some(first) => {
                all.extend_from_slice(&first);
                all.extend_from_slice(&data);
            }
            None => all.extend_from_slice(&data),
        }
    }
    Ok(only.unwrap_or_else(|| all.freeze()))
}

/// How much of a body that is too large is read for nothing: a client that is cut off while it still
/// sends may never see the answer.
const DISCARDED: usize = 16 << 20;
/// Who has sent nothing for so long waits for the answer.
const PAUSE: Duration = Duration::from_millis(500);

async fn discard(mut body: Body) {
    let mut left = DISCARDED;
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(PAUSE, body.frame()).await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        if length > left {
            return;
        }
        left -= length;
    }
}

/// A response with this content type and these bytes.
pub fn response(code: u16, content_type: &str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(value) = header::HeaderValue::from_str(content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
}

/// Bodies of this size and more are compressed for clients that take it (upstream's threshold).
const GZIP_FROM: usize = 128 * 1024;

/// Whether the client takes gzip.
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|v| {
            let mut parts = v.split(';').map(str::trim);
            parts.next() == Some("gzip") && !parts.any(|q| matches!(q, "q=0" | "q=0.0"))
        })
}

/// A response that is compressed when it is large and the client takes it.
pub fn response_maybe_gzip(headers: &HeaderMap, code: u16, content_type: &str, bytes: Vec<u8>) -> Response<Body> {
    if bytes.len() >= GZIP_FROM && accepts_gzip(headers) {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 6), flate2::Compression::fast());
        if encoder.write_all(&bytes).is_ok()
            && let Ok(small) = encoder.finish()
        {
            let mut response = response(code, content_type, small);
            let h = response.headers_mut();
            h.insert(header::CONTENT_ENCODING, header::HeaderValue::from_static("gzip"));
            h.insert(header::VARY, header::HeaderValue::from_static("Accept-Encoding"));
            return response;
        }
    }
    response(code, content_type, bytes)
}
