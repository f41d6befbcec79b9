//! A client that is lied to: each request may be refused, answered and the answer lost, or answered in
//! part. What happens is decided by a seed, by who asks for what, and by how often that was asked
//! before, so that every call there is meets its faults early, and none meets them for ever.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use apiserver::{InProcess, Server, UserInfo};
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::json;

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Refused with a status of this code and reason.
    Status(u16, &'static str),
    /// The connection breaks before the server has seen the request.
    Unsent,
    /// The connection breaks when all is done and the answer is on its way.
    Lost,
    /// The answer, or the stream of events, breaks off after so many bytes.
    Cut(usize),
    /// A watch whose first event says that its revision is gone.
    Expired,
}

/// Decides on faults, and counts them.
#[derive(Default)]
pub struct Faults {
    seed: u64,
    asked: Mutex<HashMap<String, u64>>,
    pub done: AtomicUsize,
}

/// Requests of one sort that are likely to fail.
const EARLY: u64 = 4;
/// Requests of one sort after which none fails.
const LAST: u64 = 60;

impl Faults {
    /// Nothing fails with the seed 0.
    pub fn new(seed: u64) -> Arc<Faults> {
        Arc::new(Faults { seed, ..Faults::default() })
    }

    /// What happens to a request of `who`.
    fn choose(&self, who: &str, request: &Request<Body>) -> Option<Fault> {
        if self.seed == 0 {
            return None;
        }
        let query = request.uri().query().unwrap_or("");
        let (watch, more) = (query.contains("watch=true"), query.contains("continue="));
        let sort = format!("{who} {} {} {watch} {more}", request.method(), sort_of(request.uri().path()));
        let count = {
            let mut asked = self.asked.lock();
            let count = asked.entry(sort.clone()).or_insert(0);
            *count += 1;
            *count
        };
        let name = sort.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        let dice = mixed(name ^ mixed(self.seed ^ (count << 20)));
        // Some passes read a hundred things, and are over only when all of them were had.
        let odds = match count {
            ..=EARLY => 60,
            ..=LAST if request.method() == Method::GET && !watch => 2,
            ..=LAST => 10,
            _ => 0,
        };
        if dice % 100 >= odds {
            return None;
        }
        let faults: &[Fault] = match *request.method() {
            Method::GET if watch => &WATCH,
            Method::GET if more => &MORE,
            Method::GET => &READ,
            _ => &WRITE,
        };
        let fault = match faults[(dice >> 8) as usize % faults.len()] {
            // In the middle of a line, most likely.
            Fault::Cut(most) => Fault::Cut((dice >> 16) as usize % most),
            other => other,
        };
        self.done.fetch_add(1, Ordering::Relaxed);
        Some(fault)
    }
}

const READ: [Fault; 5] = [
    Fault::Status(500, "InternalError"),
    Fault::Status(429, "TooManyRequests"),
    Fault::Status(503, "ServiceUnavailable"),
    Fault::Unsent,
    Fault::Cut(200),
];
const MORE: [Fault; 3] = [Fault::Status(410, "Expired"), Fault::Status(500, "InternalError"), Fault::Cut(200)];
const WATCH: [Fault; 7] = [
    Fault::Status(410, "Expired"),
    Fault::Status(500, "InternalError"),
    Fault::Unsent,
    Fault::Expired,
    Fault::Cut(1),
    Fault::Cut(900),
    Fault::Cut(6000),
];
const WRITE: [Fault; 7] = [
    Fault::Status(500, "InternalError"),
    Fault::Status(429, "TooManyRequests"),
    Fault::Status(503, "ServiceUnavailable"),
    Fault::Status(409, "Conflict"),
    Fault::Unsent,
    Fault::Lost,
    Fault::Lost,
];

/// A path without the names in it.
fn sort_of(path: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let start = if parts.first() == Some(&"api") { 2 } else { 3 };
    if parts.get(start) == Some(&"namespaces") && parts.len() > start + 2 {
        parts.drain(start..start + 2);
    }
    if parts.len() > start + 1 {
        parts[start + 1] = "*";
    }
    parts.join("/")
}

/// Spreads the bits of a number over all of it.
fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A client of `server` that acts as `user`. Metrics of pods are made up: each uses as much.
pub fn client(server: &Arc<Server>, faults: &Arc<Faults>, use_of_pods: &Arc<AtomicI64>, user: UserInfo) -> kube::Client {
    let (server, faults, use_of_pods) = (server.clone(), faults.clone(), use_of_pods.clone());
    let service = tower::service_fn(move |request: Request<Body>| {
        let (server, user) = (server.clone(), user.clone());
        let fault = faults.choose(&user.name, &request);
        let milli = use_of_pods.load(Ordering::Relaxed);
        async move {
            match request.uri().path().strip_prefix("/apis/metrics.k8s.io/v1beta1") {
                Some(rest) if fault.is_none() => {
                    let path = format!("/api/v1{rest}?{}", request.uri().query().unwrap_or(""));
                    Ok(whole(200, metrics(&server, path, milli).await))
                }
                _ => answer(&server, user, request, fault).await,
            }
        }
    });
    kube::Client::new(service, "default")
}

async fn answer(server: &Arc<Server>, user: UserInfo, mut request: Request<Body>, fault: Option<Fault>) -> io::Result<Answer> {
    let broken = || io::Error::new(io::ErrorKind::ConnectionReset, "the connection broke, as the test wants");
    match fault {
        Some(Fault::Unsent) => return Err(broken()),
        Some(Fault::Status(code, reason)) => return Ok(refusal(code, reason)),
        Some(Fault::Expired) => {
            let event = json!({"type": "ERROR", "object": status(410, "Expired")});
            return Ok(whole(200, format!("{event}\n")));
        }
        _ => {}
    }
    request.extensions_mut().insert(InProcess(user));
    let response = server.handle(request).await;
    match fault {
        Some(Fault::Lost) => {
            let _ = response.into_body().collect().await;
            Err(broken())
        }
        Some(Fault::Cut(left)) => Ok(response.map(|body| {
            // Some connections are closed as if all were well.
            let politely = left % 2 == 0;
            let data = Box::pin(body.into_data_stream().map(|part| part.map_err(|e| io::Error::other(e.to_string()))));
            let cut = futures::stream::unfold(Some((data, left)), move |state| async move {
                let (mut data, left) = state?;
                if left == 0 {
                    return if politely { None } else { Some((Err(broken()), None)) };
                }
                let mut part = match data.next().await? {
                    Ok(part) => part,
                    Err(error) => return Some((Err(error), None)),
                };
                part.truncate(left);
                let left = left - part.len();
                Some((Ok(http_body::Frame::data(part)), Some((data, left))))
            });
            StreamBody::new(cut).boxed_unsync()
        })),
        _ => Ok(response.map(|body| body.map_err(|e| io::Error::other(e.to_string())).boxed_unsync())),
    }
}

/// What a metrics server says of the pods of a path.
async fn metrics(server: &Arc<Server>, path: String, milli: i64) -> String {
    let mut request = Request::get(path).body(Full::new(Bytes::new())).expect("a request");
    request.extensions_mut().insert(InProcess(UserInfo::new("metrics-server", &["system:masters"])));
    let body = server.handle(request).await.into_body().collect().await.expect("a body").to_bytes();
    let pods: serde_json::Value = serde_json::from_slice(&body).expect("pods");
    let running = pods["items"].as_array().into_iter().flatten().filter(|p| p["status"]["phase"] == "Running");
    let items = running.map(|pod| {
        json!({"metadata": {"name": pod["metadata"]["name"]}, "timestamp": jiff::Timestamp::now(), "window": "1s",
            "containers": [{"name": "c", "usage": {"cpu": format!("{milli}m")}}]})
    });
    json!({"kind": "PodMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "items": items.collect::<Vec<_>>()}).to_string()
}

fn status(code: u16, reason: &str) -> serde_json::Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "code": code,
        "message": format!("{reason}, as the test wants")})
}

fn refusal(code: u16, reason: &str) -> Answer {
    let mut answer = whole(code, status(code, reason).to_string());
    if code == 429 {
        answer.headers_mut().insert("retry-after", http::HeaderValue::from_static("1"));
    }
    answer
}

fn whole(code: u16, text: String) -> Answer {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = http::StatusCode::from_u16(code).expect("a status");
    answer.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    answer
}
