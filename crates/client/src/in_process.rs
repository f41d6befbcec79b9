//! The in-process transport: requests of a [`kube::Client`] become calls of a function.

use std::convert::Infallible;
use std::future::Future;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use kube::client::Body;
use tower::Service;

/// A client whose requests are answered by `handler`. The wiring code puts the caller's identity
/// into the request before it hands it to the API server; the client never sees it.
pub fn in_process<F, Fut, B>(handler: F) -> kube::Client
where
    F: Fn(Request<Body>) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    kube::Client::new(crate::patience::Patient(Call(handler)), "default")
}

#[derive(Clone)]
struct Call<F>(F);

impl<F, Fut, B> Service<Request<Body>> for Call<F>
where
    F: Fn(Request<Body>) -> Fut,
    Fut: Future<Output = Response<B>> + Send + 'static,
    B: 'static,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = futures::future::Map<Fut, fn(Response<B>) -> Result<Response<B>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        futures::FutureExt::map((self.0)(request), Ok as fn(_) -> _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    #[tokio::test]
    async fn a_call_reaches_the_handler_and_its_answer_comes_back() {
        let client = in_process(|request: Request<Body>| async move {
            assert_eq!(request.uri().path(), "/api/v1/namespaces/a/configmaps/b");
            let body = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"},"data":{"k":"v"}}"#;
            Response::new(http_body_util::Full::new(Bytes::from(body)))
        });
        let api = kube::Api::<ConfigMap>::namespaced(client, "a");
        let map = api.get("b").await.expect("the handler answers");
        assert_eq!(map.data.expect("data")["k"], "v");
    }
}
