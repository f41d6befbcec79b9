//! What every client does when the API server has no room for a request: it asks again once the server's time for that
//! is over, as client-go does.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, StatusCode, header};
use kube::client::Body;
use tower::Service;

/// As often a request is asked again.
const AGAIN: usize = 10;

/// A transport that asks again what was refused with 429 and a time to come back.
#[derive(Clone)]
pub struct Patient<S>(pub S);

impl<S, B> Service<Request<Body>> for Patient<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send,
    B: Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut again = copy(&request);
        let (mut transport, first) = (self.0.clone(), self.0.call(request));
        Box::pin(async move {
            let mut response = first.await?;
            for _ in 0..AGAIN {
                let (Some(pause), Some(request)) = (pause(&response), again.take()) else { break };
                drop(response);
                tokio::time::sleep(pause).await;
                again = copy(&request);
                std::future::poll_fn(|context| transport.poll_ready(context)).await?;
                response = transport.call(request).await?;
            }
            Ok(response)
        })
    }
}

/// When to come back, if the server is too busy.
fn pause<B>(response: &Response<B>) -> Option<Duration> {
    if response.status() != StatusCode::TOO_MANY_REQUESTS {
        return None;
    }
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The same request once more; none of a stream, and none that becomes one.
fn copy(request: &Request<Body>) -> Option<Request<Body>> {
    if request.headers().contains_key(header::UPGRADE) {
        return None;
    }
    let mut again = Request::new(request.body().try_clone()?);
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    *again.extensions_mut() = request.extensions().clone();
    Some(again)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use http_body_util::{BodyExt, Full};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::PostParams;

    use super::*;

    /// Makes a config map at a server that refuses this often, with this header. Answers how often it was asked.
    async fn asked(refusals: u64, retry_after: Option<&'static str>) -> (u64, bool) {
        let count = Arc::new(AtomicU64::new(0));
        let seen = count.clone();
        let client = crate::in_process(move |request: Request<Body>| {
            let seen = seen.clone();
            async move {
                let body = request.into_body().collect().await.expect("a body").to_bytes();
                let map: ConfigMap = serde_json::from_slice(&body).expect("the whole object, each time");
                let busy = seen.fetch_add(1, Ordering::Relaxed) < refusals;
                let mut response = Response::new(Full::from(if busy { "later".into() } else { serde_json::to_vec(&map).expect("JSON") }));
                if busy {
                    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                    if let Some(seconds) = retry_after {
                        response.headers_mut().insert(header::RETRY_AFTER, http::HeaderValue::from_static(seconds));
                    }
                }
                response
            }
        });
        let made = kube::Api::<ConfigMap>::namespaced(client, "a").create(&PostParams::default(), &ConfigMap::default()).await;
        (count.load(Ordering::Relaxed), made.is_ok())
    }

    #[tokio::test]
    async fn a_busy_server_is_asked_again() {
        assert_eq!(asked(2, Some("0")).await, (3, true));
        assert_eq!(asked(1, None).await, (1, false), "it does not say when");
        assert_eq!(asked(99, Some("0")).await, (11, false), "not for ever");
        let started = std::time::Instant::now();
        assert_eq!(asked(1, Some("1")).await, (2, true));
        assert!(started.elapsed() >= Duration::from_secs(1));
    }
}
