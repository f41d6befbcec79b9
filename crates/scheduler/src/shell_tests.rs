//! The shell against an API server of a hundred lines that can be told to fail.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use reconcile::{Informers, Tasks};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::config::Config;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::convert::Infallible>;

#[derive(Default)]
struct Objects {
    /// By path.
    all: BTreeMap<String, Value>,
    /// Path of the collection, type, object.
    events: Vec<(String, &'static str, Value)>,
    /// Reasons and messages of recorded events.
    told: Vec<String>,
    /// Answers for the next bindings; 0 does it and answers nothing that can be read.
    refusals: Vec<u16>,
    /// The same for writes of claims on devices.
    refused_claims: Vec<u16>,
    /// How many of the next changes of a status fail.
    unwritten: usize,
}

#[derive(Clone)]
pub(crate) struct Fake(Arc<(Mutex<Objects>, watch::Sender<usize>)>);

impl Fake {
    pub fn new() -> Fake {
        Fake(Arc::new((Mutex::default(), watch::Sender::new(0))))
    }

    pub fn put(&self, collection: &str, mut object: Value) {
        let mut objects = self.0.0.lock();
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_string();
        let path = format!("{collection}/{namespace}/{}", object["metadata"]["name"].as_str().expect("a name"));
        object["metadata"]["resourceVersion"] = json!((objects.events.len() + 1).to_string());
        let kind = if objects.all.insert(path, object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        objects.events.push((collection.into(), kind, object));
        let count = objects.events.len();
        drop(objects);
        self.0.1.send_replace(count);
    }

    pub fn remove(&self, path: &str) {
        self.remove_from("pods", path);
    }

    fn remove_from(&self, collection: &str, path: &str) {
        let mut objects = self.0.0.lock();
        if let Some(mut object) = objects.all.remove(path) {
            object["metadata"]["resourceVersion"] = json!((objects.events.len() + 1).to_string());
            objects.events.push((collection.into(), "DELETED", object));
        }
        let count = objects.events.len();
        drop(objects);
        self.0.1.send_replace(count);
    }

    pub fn pod(&self, name: &str) -> Value {
        self.0.0.lock().all.get(&format!("pods/default/{name}")).cloned().unwrap_or(Value::Null)
    }

    /// An object of the namespace of the tests.
    pub fn object(&self, collection: &str, name: &str) -> Value {
        self.0.0.lock().all.get(&format!("{collection}/default/{name}")).cloned().unwrap_or(Value::Null)
    }

    /// Answers for the next bindings, and for the next writes of claims, the last first.
    pub fn refuse(&self, bindings: &[u16], claims: &[u16]) {
        let mut objects = self.0.0.lock();
        (objects.refusals, objects.refused_claims) = (bindings.to_vec(), claims.to_vec());
    }

    fn fails_to_write(&self) -> bool {
        let unwritten = &mut self.0.0.lock().unwritten;
        let left = unwritten.checked_sub(1);
        *unwritten = left.unwrap_or(0);
        left.is_some()
    }

    fn watch(&self, collection: String, from: usize) -> Body {
        let fake = self.clone();
        let stream = futures::stream::unfold((from, self.0.1.subscribe()), move |(mut at, mut changed)| {
            let (fake, collection) = (fake.clone(), collection.clone());
            async move {
                loop {
                    let next = fake.0.0.lock().events.get(at).cloned();
                    match next {
                        Some((c, kind, object)) => {
                            at += 1;
                            if c == collection {
                                // the type first, as every API server has it
                                let line = format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n");
                                return Some((Ok(http_body::Frame::data(Bytes::from(line))), (at, changed)));
                            }
                        }
                        None => changed.changed().await.ok()?,
                    }
                }
            }
        });
        StreamBody::new(stream.boxed()).boxed_unsync()
    }

    async fn answer(self, request: Request<kube::client::Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path: Vec<&str> = parts.uri.path().split('/').filter(|p| !p.is_empty()).collect();
        let query = parts.uri.query().unwrap_or_default();
        let full = |status: StatusCode, value: Value| {
            let body = http_body_util::Full::new(Bytes::from(value.to_string())).boxed_unsync();
            Response::builder().status(status).body(body).expect("a response")
        };
        let refuse = |code: u16| full(StatusCode::from_u16(code).expect("a code"), json!({"kind": "Status", "status": "Failure", "message": "told to fail", "reason": "InternalError", "code": code}));
        match (&parts.method, &path[..]) {
            (&Method::GET, [.., collection]) if query.contains("watch=true") => {
                let from = query.split("resourceVersion=").nth(1).and_then(|v| v.split('&').next()?.parse().ok()).unwrap_or(0);
                Response::new(self.watch(collection.to_string(), from))
            }
            (&Method::GET, ["api", "v1", "namespaces", _, "pods", name]) => match self.pod(name) {
                Value::Null => refuse(404),
                pod => full(StatusCode::OK, pod),
            },
            (&Method::GET, [.., "namespaces", _, collection, name]) => match self.object(collection, name) {
                Value::Null => refuse(404),
                object => full(StatusCode::OK, object),
            },
            (&Method::GET, [.., collection]) => {
                let objects = self.0.0.lock();
                let items: Vec<&Value> = objects.all.iter().filter(|(p, _)| p.starts_with(&format!("{collection}/"))).map(|(_, o)| o).collect();
                full(StatusCode::OK, json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": objects.events.len().to_string()}, "items": items}))
            }
            (&Method::POST, [.., "resourceclaims"]) => {
                let mut claim = sent;
                let name = format!("{}made", claim["metadata"]["generateName"].as_str().unwrap_or_default());
                claim["metadata"]["name"] = json!(name);
                claim["metadata"]["uid"] = json!(format!("uid-{name}"));
                self.put("resourceclaims", claim);
                full(StatusCode::CREATED, self.object("resourceclaims", &name))
            }
            (&Method::PUT, [.., "resourceclaims", name] | [.., "resourceclaims", name, "status"]) => {
                if let Some(code) = self.0.0.lock().refused_claims.pop() {
                    return full(StatusCode::from_u16(code).expect("a code"), json!({"kind": "Status", "status": "Failure", "message": "told to fail", "reason": "Conflict", "code": code}));
                }
                let mut claim = self.object("resourceclaims", name);
                if claim.is_null() {
                    return refuse(404);
                }
                let part = if path.ends_with(&["status"]) { "status" } else { "metadata" };
                claim[part] = sent[part].clone();
                self.put("resourceclaims", claim);
                full(StatusCode::OK, self.object("resourceclaims", name))
            }
            (&Method::PATCH, [.., "resourceclaims", name, "status"]) => {
                let mut claim = self.object("resourceclaims", name);
                let gone = sent["status"]["reservedFor"][0]["uid"].clone();
                if let Some(reserved) = claim["status"]["reservedFor"].as_array_mut() {
                    reserved.retain(|r| r["uid"] != gone);
                }
                self.put("resourceclaims", claim.clone());
                full(StatusCode::OK, claim)
            }
            (&Method::DELETE, [.., "resourceclaims", name]) => {
                self.remove_from("resourceclaims", &format!("resourceclaims/default/{name}"));
                full(StatusCode::OK, json!({"kind": "Status", "status": "Success"}))
            }
            (&Method::POST, [.., "pods", name, "binding"]) => {
                let refusal = self.0.0.lock().refusals.pop();
                if let Some(code) = refusal.filter(|code| *code != 0) {
                    return refuse(code);
                }
                let mut pod = self.pod(name);
                if pod.is_null() {
                    return refuse(404);
                }
                pod["spec"]["nodeName"] = sent["target"]["name"].clone();
                self.put("pods", pod);
                if refusal.is_some() {
                    return Response::new(http_body_util::Full::new(Bytes::from_static(b"{")).boxed_unsync());
                }
                full(StatusCode::CREATED, json!({"kind": "Status", "status": "Success"}))
            }
            (&Method::POST, [.., "events"]) => {
                let told = format!("{} {}: {}", sent["involvedObject"]["name"].as_str().unwrap_or_default(), sent["reason"].as_str().unwrap_or_default(), sent["message"].as_str().unwrap_or_default());
                self.0.0.lock().told.push(told);
                full(StatusCode::CREATED, sent)
            }
            (&Method::PATCH, [.., "pods", name, "status"]) => {
                let mut pod = self.pod(name);
                if pod.is_null() {
                    return refuse(404);
                }
                if self.fails_to_write() {
                    return refuse(503);
                }
                for (key, value) in sent["status"].as_object().cloned().unwrap_or_default() {
                    pod["status"][&key] = value;
                }
                self.put("pods", pod.clone());
                full(StatusCode::OK, pod)
            }
            (&Method::DELETE, [.., "pods", name]) => {
                self.remove(&format!("pods/default/{name}"));
                full(StatusCode::OK, json!({"kind": "Status", "status": "Success"}))
            }
            _ => refuse(404),
        }
    }

    /// Waits until a condition holds.
    pub async fn until(&self, what: &str, test: impl Fn(&Fake) -> bool) {
        let wait = async {
            while !test(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let told = || self.0.0.lock().told.clone();
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("never: {what}; events {:?}", told()));
    }

    pub fn is_on(&self, name: &str, node: &str) -> bool {
        self.pod(name)["spec"]["nodeName"] == node
    }

    pub fn was_told(&self, start: &str) -> bool {
        self.0.0.lock().told.iter().any(|t| t.starts_with(start))
    }
}

pub(crate) fn start(fake: &Fake) -> Tasks {
    start_with(fake, Config::default())
}

pub(crate) fn start_with(fake: &Fake, config: Config) -> Tasks {
    let tasks = Tasks::new();
    let own = fake.clone();
    let client = client::in_process(move |request| own.clone().answer(request));
    let informers = Informers::new(client.clone(), tasks.clone());
    let config = Config { initial_backoff: Duration::from_millis(10), max_backoff: Duration::from_millis(50), ..config };
    crate::start(client, &informers, &tasks, config);
    tasks
}

pub(crate) fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": name}, "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"}}})
}

pub(crate) fn pod(name: &str, priority: i32, cpu: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"schedulerName": "default-scheduler", "priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}, "status": {"phase": "Pending"}})
}

#[tokio::test]
async fn a_pod_is_bound_though_binding_fails_at_first() {
    let fake = Fake::new();
    fake.0.0.lock().refusals = vec![500, 409];
    fake.put("nodes", node("a"));
    fake.put("pods", pod("p", 0, "1"));
    let mut foreign = pod("foreign", 0, "1");
    foreign["spec"]["schedulerName"] = json!("another");
    fake.put("pods", foreign);
    let tasks = start(&fake);
    fake.until("bound", |f| f.is_on("p", "a")).await;
    fake.until("told", |f| f.was_told("p Scheduled: Successfully assigned default/p to a")).await;
    assert!(fake.was_told("p FailedScheduling: binding rejected: running Bind plugin \"DefaultBinder\": "));
    assert!(fake.pod("foreign")["spec"]["nodeName"].is_null(), "it is for another scheduler");
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_binding_whose_answer_is_lost_is_one() {
    let fake = Fake::new();
    fake.0.0.lock().refusals = vec![0];
    fake.put("nodes", node("a"));
    fake.put("pods", pod("p", 0, "1"));
    let tasks = start(&fake);
    fake.until("told", |f| f.was_told("p Scheduled: Successfully assigned default/p to a")).await;
    assert!(!fake.was_told("p FailedScheduling"));
    assert!(fake.pod("p")["status"]["conditions"].is_null(), "nobody says that it is on no node");
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_pod_that_fits_nowhere_is_told_so_and_bound_when_a_node_comes() {
    let fake = Fake::new();
    fake.put("nodes", node("a"));
    fake.put("pods", pod("first", 0, "2"));
    let tasks = start(&fake);
    fake.until("bound", |f| f.is_on("first", "a")).await;
    fake.put("pods", pod("second", 0, "2"));
    fake.until("refused", |f| f.pod("second")["status"]["conditions"][0]["reason"] == "Unschedulable").await;
    let message = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    assert_eq!(fake.pod("second")["status"]["conditions"][0]["message"], message);
    fake.until("told", |f| f.was_told(&format!("second FailedScheduling: {message}"))).await;
    fake.put("nodes", node("b"));
    fake.until("bound", |f| f.is_on("second", "b")).await;
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_is_told_of_a_pod_is_not_lost() {
    let fake = Fake::new();
    fake.put("nodes", node("a"));
    fake.0.0.lock().unwritten = 3;
    fake.put("pods", pod("large", 0, "9"));
    let tasks = start(&fake);
    fake.until("refused", |f| f.pod("large")["status"]["conditions"][0]["reason"] == "Unschedulable").await;
    assert_eq!(fake.0.0.lock().unwritten, 0);
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn gates_hold_until_they_are_gone() {
    let fake = Fake::new();
    fake.put("nodes", node("a"));
    let mut gated = pod("gated", 9, "1");
    gated["spec"]["schedulingGates"] = json!([{"name": "wait"}]);
    fake.put("pods", gated);
    fake.put("pods", pod("p", 0, "1"));
    let tasks = start(&fake);
    fake.until("bound", |f| f.is_on("p", "a")).await;
    assert!(fake.pod("gated")["spec"]["nodeName"].is_null());
    fake.put("pods", pod("gated", 9, "1"));
    fake.until("bound", |f| f.is_on("gated", "a")).await;
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn the_more_important_displaces() {
    let fake = Fake::new();
    fake.put("nodes", node("a"));
    fake.put("pods", pod("low", 1, "2"));
    let tasks = start(&fake);
    fake.until("bound", |f| f.is_on("low", "a")).await;
    fake.put("pods", pod("high", 10, "1"));
    fake.until("bound in its place", |f| f.is_on("high", "a")).await;
    assert_eq!(fake.pod("low"), Value::Null);
    assert_eq!(fake.pod("high")["status"]["nominatedNodeName"], "a");
    fake.until("told", |f| f.was_told("low Preempted: Preempted by pod high on node a")).await;
    let marked = fake.0.0.lock().events.iter().any(|(_, _, o)| {
        o["metadata"]["name"] == "low" && o["status"]["conditions"][0]["type"] == "DisruptionTarget" && o["status"]["conditions"][0]["reason"] == "PreemptionByScheduler"
    });
    assert!(marked, "the victim was marked before it went");
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_driver_with_no_room_has_some_when_a_volume_is_detached() {
    let fake = Fake::new();
    fake.put("nodes", node("a"));
    let limit = json!([{"name": "cinder.csi.openstack.org", "nodeID": "a", "allocatable": {"count": 1}}]);
    fake.put("csinodes", json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": "a"}, "spec": {"drivers": limit}}));
    let csi = json!({"driver": "cinder.csi.openstack.org", "volumeHandle": "old"});
    fake.put("persistentvolumes", json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "old"}, "spec": {"csi": csi}}));
    let spec = json!({"attacher": "cinder.csi.openstack.org", "nodeName": "a", "source": {"persistentVolumeName": "old"}});
    fake.put("volumeattachments", json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": "x"}, "spec": spec}));
    let mut own = pod("own", 0, "1");
    own["spec"]["volumes"] = json!([{"name": "v", "cinder": {"volumeID": "new"}}]);
    fake.put("pods", own);
    let tasks = start(&fake);
    let message = |f: &Fake| f.pod("own")["status"]["conditions"][0]["message"].as_str().unwrap_or_default().to_string();
    fake.until("refused", |f| message(f).starts_with("0/1 nodes are available: 1 node(s) exceed max volume count. ")).await;
    fake.remove_from("volumeattachments", "volumeattachments//x");
    fake.until("bound", |f| f.is_on("own", "a")).await;
    tasks.shutdown(Duration::from_secs(5)).await;
}
