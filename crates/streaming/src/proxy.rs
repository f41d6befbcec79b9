//! Passes an upgrade request on to another server, and then bytes both ways without looking at them.

use bytes::Bytes;
use futures::FutureExt;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::Error;

/// The largest body of a refusal that is passed back.
const MAX_BODY: usize = 1 << 20;

/// Sends `req` to the server behind `io` as a request for `uri` (path and query), with its method and
/// headers as they are: remove credentials that are not meant for that server first. The answer is to
/// be sent to the client. If the server agreed to the upgrade, the future passes the bytes on until
/// both sides have closed; spawn it.
pub async fn upgrade<B, IO>(
    mut req: Request<B>,
    uri: Uri,
    io: IO,
) -> Result<
    (
        Response<Full<Bytes>>,
        Option<impl Future<Output = ()> + Send + 'static + use<B, IO>>,
    ),
    Error,
>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let from_client = hyper::upgrade::on(&mut req);
    let (parts, _) = req.into_parts();
    let mut forwarded = Request::new(Empty::<Bytes>::new());
    *forwarded.method_mut() = parts.method;
    *forwarded.headers_mut() = parts.headers;
    forwarded.headers_mut().remove(http::header::CONTENT_LENGTH);
    forwarded
        .headers_mut()
        .remove(http::header::TRANSFER_ENCODING);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    *forwarded.uri_mut() = path
        .parse()
        .map_err(|_| Error::Request("the path is not valid"))?;
    if let Some(authority) = uri.authority() {
        let host = authority
            .as_str()
            .parse()
            .map_err(|_| Error::Request("the host is not valid"))?;
        forwarded.headers_mut().insert(http::header::HOST, host);
    }

    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
        .await
        .map_err(Error::Http)?;
    let mut connection = std::pin::pin!(connection.with_upgrades().fuse());
    let exchange = async {
        let mut answer = sender.send_request(forwarded).await.map_err(Error::Http)?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let from_server = hyper::upgrade::on(&mut answer);
            return Ok((answer.map(|_| Full::default()), Some(from_server)));
        }
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await;
        let body = body.map_err(|_| {
            Error::Refused(format!("the answer {} has no readable body", parts.status))
        })?;
        let mut answer = Response::from_parts(parts, Full::new(body.to_bytes()));
        answer.headers_mut().remove(http::header::TRANSFER_ENCODING);
        answer.headers_mut().remove(http::header::CONNECTION);
        Ok((answer, None))
    };
    let mut exchange = std::pin::pin!(exchange);
    // The connection must be polled for the exchange to go on; it may end first.
    let (answer, from_server) = tokio::select! {
        result = &mut exchange => result?,
        ended = &mut connection => {
            ended.map_err(Error::Http)?;
            exchange.await?
        }
    };
    let Some(from_server) = from_server else {
        return Ok((answer, None));
    };
    // Hands the connection over to the upgrade, if that has not happened yet.
    let from_server = tokio::select! {
        io = from_server => io.map_err(Error::Upgrade)?,
        Err(error) = &mut connection => return Err(Error::Http(error)),
    };
    let pass = async move {
        let Ok(from_client) = from_client.await else {
            return;
        };
        let (mut client, mut server) = (TokioIo::new(from_client), TokioIo::new(from_server));
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    };
    Ok((answer, Some(pass)))
}
