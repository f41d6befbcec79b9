//! What is recorded of one request, from its arrival to its end.
//!
//! A record ends when it is completed, or else when nobody holds it any more: a watch holds it as long as it is open, a
//! write until it is done, though the client may have gone. So every request that is recorded has its last event.
use std::io::Read;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::event::{Event, ObjectRef, source_ips, user_agent};
use super::latency::{Latencies, Layer};
use super::policy::{Level, Stage, Verdict};
use super::Auditor;
use crate::body::{self, Body};
use crate::ctx::UserInfo;
use crate::impersonate::Impersonated;
use crate::negotiate::Format;
use crate::request::RequestInfo;
use crate::types::Status;
use crate::{filters, model, object};

/// A request as it comes in.
pub(crate) struct Incoming<'a> {
    pub info: &'a RequestInfo,
    pub uri: &'a http::Uri,
    pub headers: &'a HeaderMap,
    pub peer: Option<IpAddr>,
    /// Nobody, when nobody was found out.
    pub user: Option<&'a UserInfo>,
    pub received: jiff::Timestamp,
}

/// The record of one request.
pub(crate) struct Record {
    auditor: Arc<Auditor>,
    verdict: Verdict,
    /// A watch or stream.
    long: bool,
    /// Its answer is an object of the API, if it is one of ours.
    answers_object: bool,
    /// Another server's answer is passed on.
    passed: AtomicBool,
    started: AtomicBool,
    done: AtomicBool,
    event: Mutex<Event>,
    latencies: Latencies,
}

impl Auditor {
    /// Begins a record, if the policy wants one.
    pub fn begin(self: &Arc<Auditor>, incoming: &Incoming<'_>) -> Option<Arc<Record>> {
        let info = incoming.info;
        let nobody = UserInfo::default();
        let verdict = self.policy.judge(&filters::attributes(info, incoming.user.unwrap_or(&nobody)));
        self.counters.level(verdict.level);
        if verdict.level == Level::None {
            return None;
        }
        let header = |name: &str| incoming.headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        let object = info.resource_request.then(|| ObjectRef {
            resource: info.resource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            api_group: info.group.clone(),
            api_version: info.version.clone(),
            subresource: info.subresource.clone(),
            ..ObjectRef::default()
        });
        let event = Event {
            level: verdict.level,
            id: header("audit-id").unwrap_or_default(),
            stage: Stage::RequestReceived,
            uri: incoming.uri.path_and_query().map_or("/", |p| p.as_str()).to_string(),
            verb: info.verb.clone(),
            user: incoming.user.cloned(),
            impersonated: None,
            constraint: None,
            source_ips: source_ips(incoming.headers, incoming.peer),
            user_agent: user_agent(incoming.headers),
            object,
            status: None,
            request_object: None,
            response_object: None,
            received: incoming.received,
            at: incoming.received,
            annotations: Default::default(),
        };
        let discovery = info.path == "/api" || info.path == "/apis" || info.path.starts_with("/api/") || info.path.starts_with("/apis/");
        Some(Arc::new(Record {
            auditor: self.clone(),
            verdict,
            long: info.long_running(),
            answers_object: info.resource_request || discovery,
            passed: AtomicBool::new(false),
            started: AtomicBool::new(false),
            done: AtomicBool::new(false),
            event: Mutex::new(event),
            latencies: Latencies::default(),
        }))
    }
}

impl Record {
    /// The event of a stage, unless that is left out.
    fn event(&self, stage: Stage) -> Option<Arc<Event>> {
        if self.verdict.omit_stages.has(stage) {
            return None;
        }
        let mut event = self.event.lock();
        event.stage = stage;
        event.at = if stage == Stage::RequestReceived { event.received } else { jiff::Timestamp::now() };
        if stage == Stage::ResponseComplete && event.verb != "watch" {
            let total = event.at.duration_since(event.received).unsigned_abs();
            self.latencies.annotate(total, &mut event.annotations);
        }
        Some(Arc::new(event.clone()))
    }

    async fn process(&self, stage: Stage) -> bool {
        match self.event(stage) {
            Some(event) => self.auditor.process(event).await,
            None => true,
        }
    }

    /// The request is there. If this is false, it must be refused: nobody would know of it.
    pub async fn received(&self) -> bool {
        let known = self.process(Stage::RequestReceived).await;
        if !known {
            self.auditor.counters.rejected();
            self.done.store(true, Ordering::Relaxed);
        }
        known
    }

    /// Nobody was found out: that is all there is to know.
    pub async fn unauthenticated(&self, response: Response<Body>) -> Response<Body> {
        let response = self.answer(response).await;
        self.done.store(true, Ordering::Relaxed);
        self.process(Stage::ResponseStarted).await;
        response
    }

    /// A layer took so long.
    pub fn took(&self, layer: Layer, time: Duration) {
        self.latencies.took(layer, time);
    }

    /// The user acts as another one.
    pub fn impersonated(&self, other: &Impersonated) {
        let mut event = self.event.lock();
        event.impersonated = Some(other.user.clone());
        event.constraint = other.constraint.clone();
    }

    /// Adds an annotation, for requests of which this level or more is recorded. The first value of a key stays.
    pub fn annotate(&self, level: Level, key: &str, value: impl FnOnce() -> String) {
        if level > self.verdict.level {
            return;
        }
        let value = value();
        let mut event = self.event.lock();
        match event.annotations.get(key) {
            None => {
                event.annotations.insert(key.into(), value);
            }
            Some(before) if *before != value => {
                tracing::warn!(key, id = event.id, "an audit annotation is there already and keeps its value");
            }
            Some(_) => {}
        }
    }

    /// The object that the request brings.
    pub fn request_object(&self, object: &Value) {
        let bytes = (self.verdict.level >= Level::Request).then(|| self.encode(object));
        let mut event = self.event.lock();
        let about = event.object.get_or_insert_default();
        for (field, own) in [("namespace", &mut about.namespace), ("name", &mut about.name), ("uid", &mut about.uid), ("resourceVersion", &mut about.resource_version)] {
            if own.is_empty() {
                *own = object::meta(object, field).to_string();
            }
        }
        event.request_object = bytes;
    }

    /// The patch that the request brings.
    pub fn request_patch(&self, patch: &Bytes) {
        if self.verdict.level < Level::Request {
            return;
        }
        let value = serde_json::from_slice::<Value>(patch).ok();
        let value = value.or_else(|| model::decode(patch, Format::Yaml, None).ok().map(|(value, _)| value));
        let value = value.unwrap_or_else(|| String::from_utf8_lossy(patch).into());
        self.event.lock().request_object = Some(object::encode(&value).into());
    }

    fn encode(&self, object: &Value) -> Bytes {
        if !self.verdict.omit_managed_fields {
            return object::encode(object).into();
        }
        let mut object = object.clone();
        without_managed_fields(&mut object);
        object::encode(&object).into()
    }

    /// The answer is that of another server.
    pub fn passed_on(&self) {
        self.passed.store(true, Ordering::Relaxed);
    }

    /// How the request ended, whoever still waits for it.
    pub fn ended(&self, result: &Result<Response<Body>, Status>) {
        let code = match result {
            Ok(response) => response.status().as_u16(),
            Err(status) => status.code,
        };
        self.event.lock().status.get_or_insert_with(|| json!({"metadata": {}}))["code"] = code.into();
    }

    /// The answer is ready; it goes out when this returns. Long ones hold the record until they end.
    pub async fn respond(self: &Arc<Record>, response: Response<Body>) -> Response<Body> {
        let response = self.answer(response).await;
        if !self.long {
            self.done.store(true, Ordering::Relaxed);
            self.process(Stage::ResponseComplete).await;
            return response;
        }
        self.started.store(true, Ordering::Relaxed);
        self.process(Stage::ResponseStarted).await;
        let record = self.clone();
        response.map(|body| {
            body::boxed(body.map_frame(move |frame| {
                let _ = &record;
                frame
            }))
        })
    }

    /// Serving the request panicked.
    pub async fn panicked(&self, why: &str) {
        self.done.store(true, Ordering::Relaxed);
        let status = json!({"metadata": {}, "status": "Failure", "message": format!("APIServer panic'd: {why}"), "reason": "InternalError", "code": 500});
        self.event.lock().status = Some(status);
        self.process(Stage::Panic).await;
    }

    /// Takes note of the answer: its code; its Status, if it is one; its object, if that is wanted.
    async fn answer(&self, response: Response<Body>) -> Response<Body> {
        let code = response.status().as_u16();
        let (wants_object, may_be_status) = {
            let event = self.event.lock();
            let sub = event.object.as_ref().is_some_and(|o| !o.subresource.is_empty());
            let wants = self.verdict.level == Level::RequestResponse && (self.answers_object || code >= 400);
            (wants, code >= 400 || event.verb == "delete" || event.verb == "create" && sub)
        };
        let ours = !self.passed.load(Ordering::Relaxed) && (!self.long || code >= 400) && response.body().size_hint().exact().is_some();
        let format = format_of(response.headers()).filter(|_| ours && (wants_object || may_be_status));
        let (response, object) = match format {
            None => (response, None),
            Some(format) => {
                let (parts, body) = response.into_parts();
                let bytes = body.collect().await.map(|all| all.to_bytes()).unwrap_or_default();
                let plain = plain(&parts.headers, &bytes);
                (Response::from_parts(parts, body::full(bytes)), Some((format, plain)))
            }
        };
        let mut status = json!({"metadata": {}});
        let mut recorded = None;
        if let Some((format, bytes)) = object {
            // Most are as they should be already.
            let line = bytes.trim_ascii_end();
            let as_is = format == Format::Json && !self.verdict.omit_managed_fields && !may_be_status && !line.contains(&b'\n');
            if as_is {
                recorded = Some(bytes.slice_ref(line));
            } else if let Some(value) = parse(&bytes, format) {
                if value["kind"] == "Status" {
                    for key in ["status", "message", "reason", "details"] {
                        if let Some(field) = value.get(key) {
                            status[key] = field.clone();
                        }
                    }
                }
                recorded = wants_object.then(|| self.encode(&value));
            }
        }
        status["code"] = code.into();
        let mut event = self.event.lock();
        event.status = Some(status);
        event.response_object = recorded;
        drop(event);
        response
    }
}

/// The request ended otherwise than by an answer, or its answer has ended.
impl Drop for Record {
    fn drop(&mut self) {
        if *self.done.get_mut() {
            return;
        }
        let closed = || json!({"metadata": {}, "status": "Success", "message": "Connection closed early", "code": 200});
        self.event.get_mut().status.get_or_insert_with(closed);
        let mut stages = vec![Stage::ResponseComplete];
        if self.long && !*self.started.get_mut() {
            stages.insert(0, Stage::ResponseStarted);
        }
        for stage in stages {
            if let Some(event) = self.event(stage) {
                self.auditor.offer(&event).for_each(drop);
            }
        }
    }
}

fn format_of(headers: &HeaderMap) -> Option<Format> {
    let media = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    match media.split(';').next().unwrap_or_default().trim() {
        "application/json" => Some(Format::Json),
        "application/yaml" => Some(Format::Yaml),
        "application/vnd.kubernetes.protobuf" => Some(Format::Protobuf),
        _ => None,
    }
}

/// A body as it was before it was compressed.
fn plain(headers: &HeaderMap, bytes: &Bytes) -> Bytes {
    if headers.get(header::CONTENT_ENCODING).is_none_or(|e| e != "gzip") {
        return bytes.clone();
    }
    let mut out = Vec::new();
    match flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut out) {
        Ok(_) => out.into(),
        Err(_) => Bytes::new(),
    }
}

fn parse(bytes: &Bytes, format: Format) -> Option<Value> {
    match format {
        Format::Json => serde_json::from_slice(bytes).ok(),
        other => model::decode(bytes, other, None).ok().map(|(value, _)| value),
    }
}

/// Takes managedFields from an object, the items of a list, and the rows of a table.
fn without_managed_fields(object: &mut Value) {
    let strip = |object: &mut Value| {
        object.get_mut("metadata").and_then(Value::as_object_mut).map(|m| m.remove("managedFields"));
    };
    strip(object);
    let Some(map) = object.as_object_mut() else { return };
    for item in map.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        strip(item);
    }
    for row in map.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten() {
        row.get_mut("object").map(strip);
    }
}
