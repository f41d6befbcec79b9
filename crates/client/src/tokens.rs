//! Clients that act as service accounts: each asks for a token of its account with the rights of
//! another client (the TokenRequest API), sends it along, and asks for the next one in time.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, HeaderValue};
use http::{Request, Response, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::client::Body;
use tokio::sync::Mutex;
use tower::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How long tokens are asked for, as upstream.
const LIFETIME: Duration = Duration::from_secs(3600);

/// A client over `transport` (which must prove no identity of its own) that acts as a service
/// account. `root` makes its tokens, and the account itself when there is none.
pub fn service_account<S, B>(transport: S, root: kube::Client, namespace: &str, name: &str) -> kube::Client
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let account = Account { accounts: Api::namespaced(root, namespace), name: name.into(), current: Mutex::default() };
    kube::Client::new(crate::patience::Patient(Authorized { transport, account: Arc::new(account) }), "default")
}

struct Account {
    accounts: Api<ServiceAccount>,
    name: String,
    current: Mutex<Option<Token>>,
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    asked: Instant,
    lifetime: Duration,
}

/// What to do about a token of this age.
#[derive(Debug, PartialEq, Eq)]
enum Age {
    Fresh,
    /// Still good, but the next one is due.
    Due,
    Over,
}

fn age(since: Duration, lifetime: Duration) -> Age {
    if since >= lifetime {
        Age::Over
    } else if since >= lifetime.mul_f64(0.8) {
        Age::Due
    } else {
        Age::Fresh
    }
}

impl Account {
    async fn header(&self) -> Result<HeaderValue, BoxError> {
        // Whoever comes while one asks waits for its answer.
        let mut current = self.current.lock().await;
        let known = current.as_ref().map(|t| age(t.asked.elapsed(), t.lifetime));
        if let (Some(token), Some(Age::Fresh)) = (current.as_ref(), &known) {
            return Ok(token.header.clone());
        }
        match self.ask().await {
            Ok(token) => Ok(current.insert(token).header.clone()),
            Err(error) => match (current.as_ref(), known) {
                (Some(token), Some(Age::Due)) => {
                    tracing::warn!(account = self.name, "no new token yet: {error}");
                    Ok(token.header.clone())
                }
                _ => Err(error),
            },
        }
    }

    /// The API server did not take this one.
    async fn refused(&self, header: &HeaderValue) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|t| t.header == *header) {
            *current = None;
        }
    }

    async fn ask(&self) -> Result<Token, BoxError> {
        let asked = Instant::now();
        let seconds = i64::try_from(LIFETIME.as_secs()).unwrap_or(i64::MAX);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec { expiration_seconds: Some(seconds), ..TokenRequestSpec::default() }),
            ..TokenRequest::default()
        };
        let parameters = PostParams::default();
        let answer = match self.accounts.create_token_request(&self.name, &parameters, &request).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                let account = ServiceAccount { metadata, ..ServiceAccount::default() };
                match self.accounts.create(&parameters, &account).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    Err(error) => return Err(error.into()),
                }
                self.accounts.create_token_request(&self.name, &parameters, &request).await?
            }
            other => other?,
        };
        let token = answer.status.and_then(|s| s.token).ok_or("the answer to a TokenRequest has no token")?;
        let mut header = HeaderValue::from_str(&format!("Bearer {token}"))?;
        header.set_sensitive(true);
        // By our own clock alone: the server's may differ. It may have shortened the time.
        let granted = answer.spec.and_then(|s| s.expiration_seconds).and_then(|s| u64::try_from(s).ok()).map_or(LIFETIME, Duration::from_secs);
        Ok(Token { header, asked, lifetime: granted.min(LIFETIME) })
    }
}

#[derive(Clone)]
struct Authorized<S> {
    transport: S,
    account: Arc<Account>,
}

impl<S, B> Service<Request<Body>> for Authorized<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.transport.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let clone = self.transport.clone();
        // The one that was polled ready is used, as tower wants it.
        let mut transport = std::mem::replace(&mut self.transport, clone);
        let account = self.account.clone();
        Box::pin(async move {
            let header = account.header().await?;
            request.headers_mut().insert(AUTHORIZATION, header.clone());
            let response = transport.call(request).await.map_err(Into::into)?;
            if response.status() == StatusCode::UNAUTHORIZED {
                account.refused(&header).await;
            }
            Ok(response)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use k8s_openapi::api::core::v1::ConfigMap;
    use parking_lot::Mutex as Lock;
    use serde_json::{Value, json};

    use super::*;

    /// An API server that knows no account at first, and takes the newest token alone.
    #[derive(Default)]
    struct Server {
        log: Lock<Vec<String>>,
        exists: AtomicUsize,
        tokens: AtomicUsize,
    }

    impl Server {
        async fn answer(self: Arc<Server>, request: Request<Body>) -> Response<Full<Bytes>> {
            let authorization = request.headers().get(AUTHORIZATION).map(|v| v.to_str().unwrap_or("?").to_string()).unwrap_or_default();
            let path = request.uri().path().to_string();
            self.log.lock().push(format!("{} {path} {authorization}", request.method()));
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            let status = |code: u16, reason: &str| (code, json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}));
            let (code, value): (u16, Value) = if path.ends_with("/token") && self.exists.load(Ordering::SeqCst) == 0 {
                status(404, "NotFound")
            } else if path.ends_with("/token") {
                let mut value: Value = serde_json::from_slice(&body).expect("a TokenRequest");
                assert_eq!(value["spec"]["expirationSeconds"], 3600);
                value["status"] = json!({"token": format!("t{}", self.tokens.fetch_add(1, Ordering::SeqCst)), "expirationTimestamp": "2030-01-01T00:00:00Z"});
                (201, value)
            } else if path.ends_with("/serviceaccounts") {
                self.exists.store(1, Ordering::SeqCst);
                (201, serde_json::from_slice(&body).expect("an account"))
            } else if authorization != format!("Bearer t{}", self.tokens.load(Ordering::SeqCst) - 1) {
                status(401, "Unauthorized")
            } else {
                (200, json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "b"}}))
            };
            Response::builder().status(code).body(Full::new(Bytes::from(value.to_string()))).expect("a response")
        }
    }

    fn clients(server: &Arc<Server>) -> kube::Client {
        let (one, other) = (server.clone(), server.clone());
        let root = crate::in_process(move |request| one.clone().answer(request));
        let transport = tower::service_fn(move |request| {
            let server = other.clone();
            async move { Ok::<_, BoxError>(server.answer(request).await) }
        });
        service_account(transport, root, "kube-system", "job-controller")
    }

    #[tokio::test]
    async fn an_account_is_made_and_one_token_serves_many_requests() {
        let server = Arc::new(Server::default());
        let maps = Api::<ConfigMap>::namespaced(clients(&server), "a");
        maps.get("b").await.expect("an answer");
        maps.get("b").await.expect("an answer");
        let account = "/api/v1/namespaces/kube-system/serviceaccounts";
        let expected = [
            format!("POST {account}/job-controller/token "),
            format!("POST {account} "),
            format!("POST {account}/job-controller/token "),
            "GET /api/v1/namespaces/a/configmaps/b Bearer t0".into(),
            "GET /api/v1/namespaces/a/configmaps/b Bearer t0".into(),
        ];
        assert_eq!(*server.log.lock(), expected);
    }

    #[tokio::test]
    async fn a_refused_token_is_not_used_again() {
        let server = Arc::new(Server::default());
        let maps = Api::<ConfigMap>::namespaced(clients(&server), "a");
        maps.get("b").await.expect("an answer");
        // the server forgets what it gave
        server.tokens.fetch_add(1, Ordering::SeqCst);
        assert!(maps.get("b").await.is_err());
        maps.get("b").await.expect("the next token is good");
    }

    #[test]
    fn the_next_token_is_asked_for_before_the_last_is_over() {
        let lifetime = Duration::from_secs(3600);
        assert_eq!(age(Duration::from_secs(2879), lifetime), Age::Fresh);
        assert_eq!(age(Duration::from_secs(2880), lifetime), Age::Due);
        assert_eq!(age(lifetime, lifetime), Age::Over);
    }
}
