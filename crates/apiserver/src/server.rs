//! The server: the filter chain from a request to a response, and the tasks that keep the cache alive.
//!
//! ```text
//! handle: contain panics → request info → authenticate → audit → impersonate → seats (flow) → authorize → time limit → resource or document
//! run:    load the cache → follow the store ∥ post-start hooks ∥ compaction   … until cancelled
//! ```
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderValue, Method, Request, Response, header};
use http_body::Body as HttpBody;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::activity::Unhurried;
use crate::audit::{Auditor, Counters, Incoming, Layer, Record};
use crate::authn::Note;
use crate::body::{self, Body, BodyError};
use crate::browsers::Browsers;
use crate::builder::{Concurrency, Config};
use crate::cache::Feed;
use crate::core::Core;
use crate::ctx::{Backend, UserInfo};
use crate::encrypt::EncryptionConfig;
use crate::filters::{self, Refused};
use crate::flow::inflight::{InFlight, Place};
use crate::flow::{Classified, Flow, PRODUCER, Seat, TryAfter, work};
use crate::impersonate::Impersonator;
use crate::metrics::{Answered, Metrics};
use crate::negotiate;
use crate::profile;
use crate::proxy::Dialer;
use crate::request::{RequestInfo, parse_query};
use crate::types::{Resource, Status};

/// How long the last work may take when the server stops.
const LAST_WORK: Duration = Duration::from_secs(3);

/// What tells a request from all others, in the audit log and in the answer.
const AUDIT_ID: &str = "audit-id";
/// Bytes of a body from which on a write is looked at apart from others.
const LARGE: u64 = 256 << 10;
/// So many at once: each has a thread of those that the store reads by, too.
const APART: usize = 16;
/// How long a request waits for the store to be read.
const MAX_LOADING: Duration = Duration::from_secs(15);

/// The API server.
pub struct Server {
    pub(crate) config: Config,
    pub(crate) core: Arc<Core>,
    pub(crate) backend: Backend,
    pub(crate) dialer: Dialer,
    /// Writes that are being made.
    pub(crate) writes: TaskTracker,
    /// Room for those that are made apart.
    apart: Arc<Semaphore>,
    /// Proxied connections; they end with their peers.
    pub(crate) streams: TaskTracker,
    limiter: Limiter,
    browsers: Browsers,
    pub(crate) metrics: Metrics,
    impersonator: Impersonator,
    pub(crate) started: jiff::Timestamp,
    /// Records requests, if any are to be.
    auditor: Option<Arc<Auditor>>,
    pub(crate) audited: Arc<Counters>,
    pub(crate) documents: crate::published::Published,
    /// Post-start hooks that are not through: names.
    pub(crate) pending: Mutex<Vec<String>>,
    /// How the store was when it was last asked.
    pub(crate) probe: tokio::sync::Mutex<Option<(Instant, Result<(), String>)>>,
    pub(crate) loaded: tokio::sync::watch::Sender<bool>,
    pub(crate) shutting_down: AtomicBool,
    /// Ends what is done periodically, and has its last part done.
    draining: CancellationToken,
}

/// Bounds what is served at once.
enum Limiter {
    Fair(Arc<Flow>),
    InFlight(Arc<InFlight>),
}

/// What a request occupies while it is served.
pub(crate) enum Occupied {
    Seat(#[allow(dead_code)] Seat),
    Place(#[allow(dead_code)] Place),
}

/// A request on its way through.
pub(crate) struct Rq {
    pub request: Request<()>,
    /// Taken by whoever reads it. (In a mutex because bodies cannot be shared between threads.)
    pub body: Mutex<Option<Body>>,
    pub info: Arc<RequestInfo>,
    pub query: Vec<(String, String)>,
    pub user: UserInfo,
    pub now: jiff::Timestamp,
    /// What is recorded of it, if anything is.
    pub audit: Option<Arc<Record>>,
    /// Free again when the request has been served; a watch's, once it has begun.
    pub occupied: Option<Occupied>,
}

impl Rq {
    pub fn headers(&self) -> &http::HeaderMap {
        self.request.headers()
    }

    pub fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// How large the body is, where that is known before it is read.
    fn body_size(&self) -> Option<u64> {
        self.body.lock().as_ref().map_or(Some(0), |body| body.size_hint().exact())
    }

    pub async fn body(&mut self) -> Result<Bytes, Status> {
        let body = self.body.lock().take().unwrap_or_else(body::empty);
        body::read(body, body::MAX_REQUEST).await
    }
}

impl Server {
    pub(crate) fn new(config: Config, core: Arc<Core>, dialer: Dialer, auditor: Option<Arc<Auditor>>, audited: Arc<Counters>, browsers: Browsers) -> Server {
        let mut pending: Vec<String> = core.parts().post_start.iter().map(|(name, _)| name.clone()).collect();
        let Concurrency { fair, reads, writes } = config.concurrency;
        let limiter = if fair { Limiter::Fair(Flow::new((reads + writes) as i64)) } else { Limiter::InFlight(InFlight::new(reads, writes)) };
        pending.extend(fair.then(|| PRODUCER.to_string()));
        Server {
            config,
            backend: core.backend(),
            core,
            dialer,
            writes: TaskTracker::new(),
            apart: Arc::new(Semaphore::new(APART)),
            streams: TaskTracker::new(),
            limiter,
            browsers,
            metrics: Metrics::default(),
            impersonator: Impersonator::default(),
            started: jiff::Timestamp::now(),
            auditor,
            audited,
            documents: crate::published::Published::default(),
            pending: Mutex::new(pending),
            probe: tokio::sync::Mutex::default(),
            loaded: tokio::sync::watch::Sender::new(false),
            shutting_down: AtomicBool::new(false),
            draining: CancellationToken::new(),
        }
    }

    /// Reader, writer, authorizer and authenticator.
    pub fn backend(&self) -> Backend {
        self.backend.clone()
    }

    /// Priority and fairness, if it is on.
    pub(crate) fn flow(&self) -> Option<&Arc<Flow>> {
        match &self.limiter {
            Limiter::Fair(flow) => Some(flow),
            Limiter::InFlight(_) => None,
        }
    }

    /// What has to be done before the server is ready, and is.
    pub(crate) fn hook_is_through(&self, name: &str) {
        self.pending.lock().retain(|n| n != name);
        self.loaded.send_replace(true);
    }

    /// The resource that a request is about, if there is such a one.
    pub(crate) fn known(&self, info: &RequestInfo) -> Option<&'static Resource> {
        if !info.resource_request {
            return None;
        }
        crate::model::find(&info.group, &info.version, &info.resource).or_else(|| self.core.customs().find(&info.group, &info.version, &info.resource).map(|c| c.version.resource))
    }

    /// Answers a request. Never fails and never panics.
    pub async fn handle<B>(self: &Arc<Server>, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        self.handle_boxed(request.map(body::boxed)).await
    }

    async fn handle_boxed(self: &Arc<Server>, mut request: Request<Body>) -> Response<Body> {
        let started = Instant::now();
        let audit_id = match request.headers().get(AUDIT_ID).filter(|id| !id.is_empty()) {
            Some(id) => Some(id.clone()),
            None => HeaderValue::from_str(&crate::object::new_uid()).ok(),
        };
        if let Some(id) = audit_id.as_ref().filter(|_| self.auditor.is_some() || self.core.aggregated().generation != 0) {
            // whom the request is passed on to knows it by the same id
            request.headers_mut().insert(AUDIT_ID, id.clone());
        }
        let headers = request.headers().clone();
        let method = request.method().clone();
        let info = match RequestInfo::parse(&method, request.uri()) {
            Ok(info) => info,
            Err(why) => return negotiate::respond_status(&headers, &api::status::bad_request(why)),
        };
        let info = Arc::new(info);
        let origin = self.browsers.allowed(&headers);
        if Browsers::only_asks(&method, origin.as_ref()) {
            let mut response = Response::new(body::empty());
            *response.status_mut() = http::StatusCode::NO_CONTENT;
            self.browsers.tell(origin, response.headers_mut());
            return response;
        }
        let mutating = !matches!(info.verb.as_str(), "get" | "list" | "watch" | "proxy") && !matches!(method, Method::GET | Method::HEAD);
        let long = info.long_running();
        if !long {
            self.metrics.inflight(mutating, 1);
        }
        let dry_run = request.uri().query().filter(|query| query.contains("dryRun")).map_or("", dry_run);
        let record = OnceLock::new();
        // Boxed: what a request may come to need is large, and callers in this process keep it on their stacks.
        let notes = crate::authn::Notes::default();
        let chain = Box::pin(crate::authn::NOTES.scope(notes.clone(), AssertUnwindSafe(self.chain(request, info.clone(), &record)).catch_unwind()));
        let chain = profile::requested(&info, chain);
        let result = if long {
            chain.await
        } else {
            match tokio::time::timeout(self.deadline(&headers, &info), chain).await {
                Ok(result) => result,
                Err(_) => {
                    Ok(negotiate::respond_status(&headers, &api::status::timeout("request did not complete within the allotted timeout", 0)))
                }
            }
        };
        if !long {
            self.metrics.inflight(mutating, -1);
        }
        let mut response = match (result, record.get()) {
            (Ok(response), None) => response,
            (Ok(response), Some(record)) => record.respond(response).await,
            (Err(panic), record) => {
                let why = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap_or("").to_string();
                // it need not be one that could be shared between threads
                drop(panic);
                tracing::error!(why, method = %method, path = %info.path, "serving a request panicked");
                if let Some(record) = record {
                    record.panicked(&why).await;
                }
                let status = api::status::internal("This request caused apiserver to panic. Look in the logs for details.");
                negotiate::respond_status(&headers, &status)
            }
        };
        if long && info.verb != "watch" {
            response.extensions_mut().insert(Unhurried);
        }
        let h = response.headers_mut();
        for note in notes.lock().drain(..) {
            if let Note::Warning(text) = note
                && let Some(value) = filters::warning_header(text)
            {
                h.append(header::WARNING, value);
            }
        }
        if !h.contains_key(header::CACHE_CONTROL) {
            h.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        }
        if let Some(id) = audit_id {
            h.entry(AUDIT_ID).or_insert(id);
        }
        self.browsers.tell(origin, h);
        let code = response.status().as_u16();
        let applies = headers.get(header::CONTENT_TYPE).is_some_and(|t| t == "application/apply-patch+yaml");
        let size = response.body().size_hint().lower();
        let known = self.known(&info);
        self.metrics.request(&info, known, &method, applies, &Answered { code, took: started.elapsed(), size, dry_run, system_client: system_client(&headers) });
        tracing::debug!(verb = %info.verb, path = %info.path, code, took = ?started.elapsed(), "request");
        response
    }

    fn deadline(&self, _headers: &http::HeaderMap, _info: &RequestInfo) -> Duration {
        self.config.request_timeout
    }

    /// Room for a request: what it occupies, and what its answer says of that. Otherwise, when to try again.
    async fn room(&self, info: &Arc<RequestInfo>, user: &UserInfo, query: &[(String, String)], limit: Option<Duration>) -> (Option<Classified>, Result<Option<Occupied>, TryAfter>) {
        let long = info.long_running();
        match &self.limiter {
            Limiter::InFlight(_) if long => (None, Ok(None)),
            Limiter::InFlight(bound) => match bound.enter(info.mutating()) {
                Some(place) => (None, Ok(Some(Occupied::Place(place)))),
                None if user.in_group("system:masters") => (None, Ok(None)),
                None => (None, Err(TryAfter(1))),
            },
            // a watch takes seats until it has begun
            Limiter::Fair(_) if long && info.verb != "watch" => (None, Ok(None)),
            Limiter::Fair(flow) => {
                let deadline = self.config.request_timeout;
                let patience = Flow::patience(limit.filter(|_| !long).map_or(deadline, |l| l.min(deadline)));
                let known = Known { core: &self.core, flow, info };
                let (classified, seat) = flow.enter(info, user, patience, |max| work::estimate(info, query, max, &known)).await;
                (Some(classified), seat.map(|seat| Some(Occupied::Seat(seat))))
            }
        }
    }

    async fn chain(self: &Arc<Server>, request: Request<Body>, info: Arc<RequestInfo>, recorded: &OnceLock<Arc<Record>>) -> Response<Body> {
        let headers = request.headers().clone();
        let now = jiff::Timestamp::now();
        if info.resource_request && !self.wait_loaded().await {
            let status = api::status::unavailable("the server is starting: its store has not been read yet").retry_after(1);
            return negotiate::respond_status(&headers, &status);
        }
        let backend = &self.backend;
        let extensions = request.extensions().clone();
        let user = async {
            let user = filters::authenticate(&*backend.authenticator, &extensions, &headers, &info.path, now).await?;
            let nobody = || self.config.anonymous && (self.config.anonymous_paths.is_empty() || self.config.anonymous_paths.contains(&info.path));
            user.or_else(|| nobody().then(filters::anonymous)).ok_or_else(api::status::unauthorized)
        };
        let began = Instant::now();
        let user = profile::named("authentication", pin!(user)).await;
        let authenticating = began.elapsed();
        let mut audit = None;
        if let Some(auditor) = &self.auditor {
            let peer = extensions.get::<crate::Peer>().and_then(|p| p.addr).map(|a| a.ip());
            let incoming = Incoming { info: &info, uri: request.uri(), headers: &headers, peer, user: user.as_ref().ok(), received: now };
            audit = auditor.begin(&incoming);
        }
        if let Some(record) = &audit {
            record.took(Layer::Authentication, authenticating);
            for note in crate::authn::notes() {
                if let Note::Audit(key, value) = note {
                    record.annotate(crate::audit::Level::Metadata, key, || value);
                }
            }
        }
        let query = parse_query(request.uri().query().unwrap_or_default());
        let limit = match time_limit(&info, &query) {
            Ok(limit) => limit,
            Err(status) => {
                let response = negotiate::respond_status(&headers, &status);
                return if let Some(record) = &audit { record.unauthenticated(response).await } else { response };
            }
        };
        let user = match (user, &audit) {
            (Ok(user), None) => user,
            (Ok(user), Some(record)) => {
                if !record.received().await {
                    return failed(&request, "failed to store audit event");
                }
                let _ = recorded.set(record.clone());
                user
            }
            (Err(status), None) => return negotiate::respond_status(&headers, &status),
            (Err(status), Some(record)) => return record.unauthenticated(negotiate::respond_status(&headers, &status)).await,
        };
        let began = Instant::now();
        let user = match self.impersonator.act(&*backend.authorizer, &self.metrics, &headers, &info, &user).await {
            Ok(None) => user,
            Ok(Some(impersonated)) => {
                if let Some(record) = &audit {
                    record.took(Layer::Impersonation, began.elapsed());
                    record.impersonated(&impersonated);
                }
                impersonated.user
            }
            Err(status) => return negotiate::respond_status(&headers, &status),
        };
        let asker = profile::is_taken().then(|| user.name.clone());
        let watches = info.verb == "watch";
        let (classified, room) = self.room(&info, &user, &query, limit).await;
        let mut response = match room {
            Ok(occupied) => {
                if let (Some(record), Some(classified)) = (&audit, &classified) {
                    record.took(Layer::QueueWait, classified.waited);
                }
                let (parts, body) = request.into_parts();
                let rq = Rq { request: Request::from_parts(parts, ()), body: Mutex::new(Some(body)), info, query, user, now, audit, occupied };
                profile::asked_by(asker, pin!(self.serve(rq, headers, limit))).await
            }
            Err(refused) => too_many_requests(refused),
        };
        if let Some(classified) = classified {
            classified.tell(response.headers_mut());
        }
        if watches { response } else { response.map(profile::carried_body) }
    }

    /// A request that there is room for.
    async fn serve(self: &Arc<Server>, rq: Rq, headers: http::HeaderMap, limit: Option<Duration>) -> Response<Body> {
        let authorized = filters::authorize(&*self.backend.authorizer, &rq.info, &rq.user, rq.audit.as_deref());
        let began = Instant::now();
        let authorized = profile::named("authorization", pin!(authorized)).await;
        if let Some(record) = &rq.audit {
            record.took(Layer::Authorization, began.elapsed());
        }
        match authorized {
            Ok(()) => {}
            Err(Refused::Forbidden(status)) => return negotiate::respond_status(&headers, &status),
            Err(Refused::Failed(why)) => return failed(&rq.request, &why),
        }
        let (long, resource) = (rq.info.long_running(), rq.info.resource_request);
        if let Some(to) = self.core.aggregated().route(&rq.info.path).cloned() {
            return self.aggregate(rq, &to).await.unwrap_or_else(|status| negotiate::respond_status(&headers, &status));
        }
        let is_large = rq.body_size().is_none_or(|bytes| bytes > LARGE);
        let writes = resource && !long && matches!(rq.info.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection");
        let serve = async {
            if writes {
                // a write that has begun is finished, whether or not somebody still waits for the answer
                let server = self.clone();
                let write = async move {
                    let record = rq.audit.clone();
                    let result = server.resource(rq).await;
                    if let Some(record) = record {
                        record.ended(&result);
                    }
                    result
                };
                let write = profile::carried(write);
                // what takes long to look at leaves the threads that serve to others, as far as there is room elsewhere
                let room = if is_large { self.apart.clone().try_acquire_owned().ok() } else { None };
                let task = match room {
                    None => self.writes.spawn(write),
                    Some(room) => self.writes.spawn_blocking(move || {
                        let _room = room;
                        Handle::current().block_on(write)
                    }),
                };
                match task.await {
                    Ok(result) => result,
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_) => Err(api::status::unavailable("the server is shutting down")),
                }
            } else if resource {
                self.resource(rq).await
            } else {
                self.document(rq).await
            }
        };
        let result = match limit {
            Some(limit) if !long => match tokio::time::timeout(limit, serve).await {
                Ok(result) => result,
                Err(_) => Err(api::status::timeout("request did not complete within the allotted timeout", 0)),
            },
            _ => serve.await,
        };
        result.unwrap_or_else(|status| negotiate::respond_status(&headers, &status))
    }

    /// Delivers the audit events that still wait; a stage of the shutdown.
    pub(crate) async fn flush_audit(&self) {
        if let Some(auditor) = &self.auditor {
            auditor.flush().await;
        }
    }

    /// Encrypts by another configuration from now on. What is stored stays as it is until it is written again.
    pub fn reload_encryption(&self, config: &EncryptionConfig) -> Result<(), crate::encrypt::Error> {
        self.core.transformer.reload(config)
    }

    /// Fills the cache and keeps it current until cancelled; runs the post-start hooks once there is something to read.
    pub async fn run(self: &Arc<Server>, cancel: CancellationToken) {
        let core = self.core.clone();
        let transformer = core.clone();
        let feed = Feed {
            cache: core.cache.clone(),
            store: core.store.clone(),
            open: Arc::new(move |key, value| transformer.transformer.open(key, value).map_err(|e| e.to_string())),
        };
        let (ending, ended) = (self.draining.clone(), tokio::sync::Notify::new());
        let work = async {
            let revision = loop {
                match feed.load().await {
                    Ok(revision) => break revision,
                    Err(error) => {
                        tracing::error!(error = %chain(&error), "the store cannot be read; trying again");
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                }
            };
            self.loaded.send_replace(true);
            let periodic = async {
                self.periodic(&ending).await;
                ended.notify_one();
            };
            let feeding = pin!(feed.run(revision));
            tokio::join!(profile::named("watch cache", feeding), self.hooks(), self.compaction(), self.core.clone().keep_definitions(), self.keep_aggregated(), self.keep_flow(), periodic);
        };
        let stop = async {
            cancel.cancelled().await;
            ending.cancel();
            if *self.loaded.borrow() {
                let _ = tokio::time::timeout(LAST_WORK, ended.notified()).await;
            }
            self.core.closing.cancel();
            // writes that have begun wait for the cache: it follows the store until they are through
            self.writes.close();
            let _ = tokio::time::timeout(Duration::from_secs(3), self.writes.wait()).await;
            self.flush_audit().await;
        };
        tokio::select! {
            () = stop => {}
            () = work => {}
        }
    }

    /// Resources (and who may use them) are known only once the cache is filled.
    async fn wait_loaded(&self) -> bool {
        if *self.loaded.borrow() {
            return true;
        }
        let mut loaded = self.loaded.subscribe();
        matches!(tokio::time::timeout(MAX_LOADING, loaded.wait_for(|l| *l)).await, Ok(Ok(_)))
    }

    /// Returns once the cache is filled and all post-start hooks are through.
    pub async fn ready(&self) {
        let mut loaded = self.loaded.subscribe();
        let _ = loaded.wait_for(|l| *l).await;
        loop {
            if self.pending.lock().is_empty() {
                return;
            }
            if loaded.changed().await.is_err() {
                return;
            }
        }
    }

    async fn hooks(&self) {
        let backend = self.backend();
        let hooks = self.core.parts().post_start.iter().map(|(name, hook)| {
            let backend = backend.clone();
            async move {
                let mut pause = Duration::from_millis(50);
                loop {
                    match AssertUnwindSafe(hook(backend.clone())).catch_unwind().await {
                        Ok(Ok(())) => break,
                        Ok(Err(why)) => tracing::warn!(hook = name, why, "a post-start hook failed; trying again"),
                        Err(_) => tracing::error!(hook = name, "a post-start hook panicked; trying again"),
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
                self.hook_is_through(name);
            }
        });
        futures::future::join_all(hooks).await;
    }

    /// Does what is to be done periodically until it ends, and then what is to be done last.
    async fn periodic(&self, ending: &CancellationToken) {
        let backend = self.backend();
        let tasks = self.core.parts().periodic.iter().map(|task| {
            let backend = backend.clone();
            async move {
                let guarded = async |work: &crate::builder::PostStart| match AssertUnwindSafe(work(backend.clone())).catch_unwind().await {
                    Ok(Ok(())) => {}
                    Ok(Err(why)) => tracing::warn!(task = task.name, why, "periodic work failed; trying again later"),
                    Err(_) => tracing::error!(task = task.name, "periodic work panicked; trying again later"),
                };
                ending.run_until_cancelled(self.ready()).await;
                while ending.run_until_cancelled(tokio::time::sleep(task.every)).await.is_some() {
                    guarded(&task.work).await;
                }
                if let Some(stop) = &task.stop {
                    guarded(stop).await;
                }
            }
        });
        futures::future::join_all(tasks).await;
    }

    /// Forgets what was before a revision: pages and watches that would need it are refused as expired.
    pub async fn compact(&self, before: i64) -> Result<(), store::Error> {
        self.core.store.compact(before).await?;
        self.core.cache.compact(before.max(0) as u64);
        Ok(())
    }

    async fn compaction(&self) {
        let every = self.config.compact_every;
        if every.is_zero() {
            return;
        }
        let mut turns = crate::compact::Turns::new(self.core.store.is_shared());
        loop {
            tokio::time::sleep(every).await;
            match turns.take(&*self.core.store).await {
                Ok(compacted) => self.core.cache.compact(compacted.max(0) as u64),
                Err(error) => tracing::warn!(%error, "compacting the store failed; trying again later"),
            }
        }
    }

    /// The first stage of a shutdown: /readyz fails, so that load balancers look elsewhere, and the server is taken off
    /// the endpoints of the service `kubernetes`. Requests are served as before.
    pub fn drain(&self) {
        self.shutting_down.store(true, Ordering::Relaxed);
        self.draining.cancel();
    }
}

/// What the size of a request depends on.
struct Known<'a> {
    core: &'a Core,
    flow: &'a Flow,
    info: &'a RequestInfo,
}

impl work::Known for Known<'_> {
    fn stored(&self) -> Option<work::Stored> {
        let RequestInfo { group, version, resource, .. } = self.info;
        let custom = || self.core.customs().find(group, version, resource).map(|c| c.resource());
        let resource = crate::model::find(group, version, resource).or_else(custom).filter(|r| crate::model::is_stored(r))?;
        let (objects, bytes) = self.core.cache.resource(resource.storage_prefix)?.size();
        Some(work::Stored { objects: objects as u64, bytes })
    }

    fn watches(&self) -> usize {
        self.flow.watches.interested(self.info)
    }
}

/// The answer to a request that there is no room for.
fn too_many_requests(TryAfter(seconds): TryAfter) -> Response<Body> {
    let mut response = body::response(429, "text/plain; charset=utf-8", "Too many requests, please try again later.\n");
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// How long the client says that it waits, if it does.
fn time_limit(info: &RequestInfo, query: &[(String, String)]) -> Result<Option<Duration>, Status> {
    let Some((_, text)) = query.iter().find(|(key, value)| key == "timeout" && !value.is_empty()).filter(|_| !info.long_running()) else { return Ok(None) };
    let Some(nanos) = api::gotime::parse_duration(text) else {
        return Err(api::status::bad_request(format!("invalid timeout specified in the request URL - {}", api::gotime::duration_error(text))));
    };
    Ok(u64::try_from(nanos).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos))
}

/// What metrics say of a dry run.
fn dry_run(query: &str) -> &'static str {
    let query = parse_query(query);
    let values: Vec<&str> = query.iter().filter(|(key, _)| key == "dryRun").map(|(_, value)| value.as_str()).collect();
    match values[..] {
        [] => "",
        _ if values.iter().all(|value| *value == "All") => "All",
        _ => "invalid",
    }
}

/// The component of the control plane that asks, as its user agent says.
fn system_client(headers: &http::HeaderMap) -> &'static str {
    let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).and_then(|agent| agent.split_once('/')).map_or("", |(name, _)| name);
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "cluster-policy-controller"].into_iter().find(|name| *name == agent).unwrap_or_default()
}

/// The answer to a request that cannot be recorded as strictly as it should be.
fn failed<B>(request: &Request<B>, why: &str) -> Response<Body> {
    let uri = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let text = format!("Internal Server Error: {}: {why}\n", api::field::go_quote(uri));
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let mut response = body::response(500, "text/plain; charset=utf-8", text);
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text.push_str(": ");
        text.push_str(&e.to_string());
        source = e.source();
    }
    text
}
