//! Two candidates and a small API server that knows one lease.

use std::convert::Infallible;

use bytes::Bytes;
use futures::stream::BoxStream;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};

use super::*;

type Answer = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

/// One lease, with revisions and watches.
struct Server {
    lease: Mutex<Option<Value>>,
    revision: Mutex<u64>,
    events: broadcast::Sender<(u64, Bytes)>,
    up: watch::Sender<bool>,
}

impl Server {
    fn new() -> Arc<Server> {
        Arc::new(Server { lease: Mutex::default(), revision: Mutex::default(), events: broadcast::channel(64).0, up: watch::Sender::new(true) })
    }

    fn client(self: &Arc<Server>) -> Client {
        let server = self.clone();
        client::in_process(move |request| server.clone().answer(request))
    }

    fn write(&self, mut lease: Value, kind: &str) -> Value {
        let mut revision = self.revision.lock();
        *revision += 1;
        lease["metadata"]["resourceVersion"] = json!(revision.to_string());
        *self.lease.lock() = Some(lease.clone());
        let _ = self.events.send((*revision, Bytes::from(format!("{}\n", json!({"type": kind, "object": lease})))));
        lease
    }

    fn holder(&self) -> String {
        self.lease.lock().as_ref().map(|l| l["spec"]["holderIdentity"].as_str().unwrap_or("").to_string()).unwrap_or_default()
    }

    async fn answer(self: Arc<Server>, request: Request<Body>) -> Response<Answer> {
        if !*self.up.borrow() {
            return plain(503, json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "ServiceUnavailable", "code": 503}));
        }
        let failure = |code: u16, reason: &str| plain(code, json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}));
        let query = request.uri().query().unwrap_or("").to_string();
        let method = request.method().clone();
        let body = request.into_body().collect().await.expect("a body").to_bytes();
        match method {
            Method::GET if query.contains("watch=true") => {
                assert!(query.contains("fieldSelector=metadata.name%3D"), "one lease is watched, not all: {query}");
                let receiver = self.events.subscribe();
                let stream = futures::stream::unfold(receiver, |mut receiver| async move {
                    let (_, bytes) = receiver.recv().await.ok()?;
                    Some((Ok::<_, Infallible>(Frame::data(bytes)), receiver))
                });
                Response::new(StreamBody::new(stream.boxed()))
            }
            Method::GET => match self.lease.lock().clone() {
                Some(lease) => plain(200, lease),
                None => failure(404, "NotFound"),
            },
            Method::POST if self.lease.lock().is_some() => failure(409, "AlreadyExists"),
            Method::POST => plain(201, self.write(serde_json::from_slice(&body).expect("a lease"), "ADDED")),
            _ => {
                let lease: Value = serde_json::from_slice(&body).expect("a lease");
                let current = self.lease.lock().as_ref().map(|l| l["metadata"]["resourceVersion"].clone());
                if current != Some(lease["metadata"]["resourceVersion"].clone()) {
                    return failure(409, "Conflict");
                }
                plain(200, self.write(lease, "MODIFIED"))
            }
        }
    }
}

fn plain(code: u16, value: Value) -> Response<Answer> {
    let frame = Ok::<_, Infallible>(Frame::data(Bytes::from(value.to_string())));
    let body = StreamBody::new(futures::stream::once(async { frame }).boxed());
    Response::builder().status(code).body(body).expect("a response")
}

fn candidate(server: &Arc<Server>, identity: &str) -> Elector {
    let timing = Timing { lease: Duration::from_secs(2), renew: Duration::from_millis(1000), retry: Duration::from_millis(100) };
    let settings = Settings { namespace: "kube-system".into(), name: "kube-thing".into(), identity: identity.into(), timing };
    Elector::new(server.client(), settings, Recorder::none())
}

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_standby_takes_over_when_the_lease_ends_and_not_before() {
    let server = Server::new();
    let mut first = candidate(&server, "a");
    timeout(SOON, first.acquire()).await.expect("nobody has it");
    let leading = first.leadership();
    assert!(leading.is_leader() && leading.check("kube-thing").is_ok());
    let mut second = candidate(&server, "b");
    let waiting = tokio::spawn(async move {
        second.acquire().await;
        second
    });
    // It renews for longer than one lease lasts: nobody takes it.
    assert!(timeout(Duration::from_secs(3), first.renew()).await.is_err());
    assert_eq!(server.holder(), "a");
    assert!(!waiting.is_finished());
    // It is gone without a word.
    let gone = Instant::now();
    let second = timeout(SOON, waiting).await.expect("in time").expect("no panic");
    assert_eq!(server.holder(), "b");
    assert!(gone.elapsed() > Duration::from_millis(1500), "not while the lease lasts: {:?}", gone.elapsed());
    assert!(gone.elapsed() < Duration::from_secs(4), "2 s after its end at the latest: {:?}", gone.elapsed());
    let lease = server.lease.lock().clone().expect("a lease");
    assert_eq!((lease["spec"]["leaseTransitions"].as_i64(), lease["spec"]["leaseDurationSeconds"].as_i64()), (Some(1), Some(2)));
    drop(second);
    // The first one comes back, finds another, and stops.
    timeout(SOON, first.renew()).await.expect("it sees that it has lost");
    assert!(!leading.is_leader());
}

#[tokio::test]
async fn a_released_lease_is_taken_at_once() {
    let server = Server::new();
    let mut first = candidate(&server, "a");
    timeout(SOON, first.acquire()).await.expect("nobody has it");
    let mut second = candidate(&server, "b");
    let waiting = tokio::spawn(async move { second.acquire().await });
    while server.events.receiver_count() == 0 {
        tokio::task::yield_now().await;
    }
    first.release().await;
    timeout(Duration::from_millis(1500), waiting).await.expect("long before the lease would end").expect("no panic");
    assert_eq!(server.holder(), "b");
    // Whoever does not have it gives nothing up.
    first.release().await;
    assert_eq!(server.holder(), "b");
}

#[tokio::test]
async fn a_leader_that_cannot_renew_stops_before_its_lease_ends() {
    let server = Server::new();
    let mut leader = candidate(&server, "a");
    timeout(SOON, leader.acquire()).await.expect("nobody has it");
    let cut = Instant::now();
    server.up.send_replace(false);
    timeout(SOON, leader.renew()).await.expect("it gives up");
    assert!(cut.elapsed() < Duration::from_secs(2), "{:?}", cut.elapsed());
    assert!(!leader.leadership().is_leader());
}

#[tokio::test]
async fn a_deleted_lease_is_made_again_by_its_leader() {
    let server = Server::new();
    let mut leader = candidate(&server, "a");
    timeout(SOON, leader.acquire()).await.expect("nobody has it");
    *server.lease.lock() = None;
    assert!(timeout(Duration::from_millis(600), leader.renew()).await.is_err(), "it goes on leading");
    assert_eq!(server.holder(), "a");
}
