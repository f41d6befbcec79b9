//! The engine over etcd: real etcd v3 (3.4 or newer), one member or several, behind the same contract.
//!
//! Reads and transactions go to etcd. One watch of all keys feeds the watchers, so that each revision of etcd arrives
//! here, and who reads the revision can wait for it (progress requests of etcd before 3.4.31 cannot be relied on for
//! that). Watchers that are behind what is held here read etcd's own history. Two tasks run: one follows the watch and
//! begins it anew where it broke; one makes room when etcd is full.
//!
//! An etcd that was restored from a backup has lost revisions that were seen here. Then requests are refused until it
//! has been moved on to a higher revision than any of those, and compacted there: whoever knows older ones reads anew.

mod back;
mod bolt;
mod convert;
mod follow;
mod import;
mod lease;
mod pool;
mod room;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use proto::etcd as pb;
use proto::etcd::method;
use proto::grpc::{Code, Status as Failure};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use bolt::BoltError;
pub use import::{DEFAULT_QUOTA, Import, ImportError};
pub use pool::OpenError;

use crate::watch::{Feed, History, Source};
use crate::{Error, Op, RangeRequest, RangeResponse, SCRATCH, Status, Steps, Store, Took, Txn, TxnResponse, WatchStream};
use follow::{Broken, Follow};
use lease::Leases;
use pool::{Pool, Repeat};

/// Where etcd is, and who we are to it.
#[derive(Clone)]
pub struct Options {
    /// `https://host:port` (or `http`) of each member.
    pub endpoints: Vec<String>,
    /// The CA's certificates in PEM, by which members are known.
    pub ca: Option<Vec<u8>>,
    /// Our certificate chain and key in PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Shown in its place: one that is replaced now and then.
    pub shown: Option<Arc<dyn rustls::client::ResolvesClientCert>>,
    /// After this time a request fails, if etcd has not answered it.
    pub request_timeout: Duration,
    /// Bytes of recent changes that watchers get from memory.
    pub feed_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { endpoints: Vec::new(), ca: None, identity: None, shown: None, request_timeout: Duration::from_secs(10), feed_bytes: 1 << 20 }
    }
}

/// etcd's default limit of a request.
const REQUEST_BYTES: usize = 3 << 19;
/// A watcher that is behind takes about this much of the history at once.
const HISTORY_BYTES: usize = 1 << 20;
/// How long a watch of history may be silent before it is begun anew.
const HISTORY_PATIENCE: Duration = Duration::from_secs(10);
/// Pauses between attempts to follow.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Connects, and starts to follow. Waits for etcd as long as upstream does, 20 seconds.
pub async fn open(options: Options) -> Result<Arc<dyn Store>, OpenError> {
    let pool = Arc::new(Pool::new(&options)?);
    let shared = Arc::new(Shared {
        path: PathBuf::from(pool.name()),
        pool,
        feed: Arc::new(Feed::new(0, options.feed_bytes)),
        timeout: options.request_timeout,
        compacted: AtomicI64::new(0),
        error: Mutex::new(None),
        went_back: AtomicBool::new(false),
        cluster: AtomicU64::new(0),
        leases: Mutex::new(Leases::default()),
        read: tokio::sync::Mutex::new((0, 0)),
        asked: AtomicI64::new(0),
        full: Notify::new(),
        closed: AtomicBool::new(false),
    });
    let revision = shared.revision_within(pool::DIAL).await.map_err(OpenError::Unreachable)?;
    shared.feed.skip_to(revision);
    let tasks = vec![tokio::spawn(shared.clone().follow()), tokio::spawn(room::make(shared.clone()))];
    Ok(Arc::new(Etcd { shared, tasks: Mutex::new(tasks) }))
}

struct Etcd {
    shared: Arc<Shared>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    path: PathBuf,
    pool: Arc<Pool>,
    feed: Arc<Feed>,
    timeout: Duration,
    /// As far as it is known here.
    compacted: AtomicI64,
    /// Why the watch is not followed, while it is not.
    error: Mutex<Option<String>>,
    /// etcd has lost revisions that were seen here.
    went_back: AtomicBool,
    /// The id of the cluster that was followed last.
    cluster: AtomicU64,
    leases: Mutex<Leases>,
    /// The last reading of the revision: which one it was, and what it found.
    read: tokio::sync::Mutex<(i64, i64)>,
    /// How many such readings have begun.
    asked: AtomicI64,
    /// Told when etcd refuses writes for want of space.
    full: Notify,
    closed: AtomicBool,
}

impl Shared {
    async fn call<Q: proto::Message, S: proto::Message + Default>(&self, method: &'static str, request: &Q, repeat: Repeat) -> Result<S, Failure> {
        self.call_within(method, request, repeat, self.timeout).await
    }

    async fn call_within<Q: proto::Message, S: proto::Message + Default>(
        &self,
        method: &'static str,
        request: &Q,
        repeat: Repeat,
        limit: Duration,
    ) -> Result<S, Failure> {
        if self.went_back.load(Ordering::Relaxed) {
            let why = "etcd has lost revisions that were seen before (was it restored from a backup?): it is being moved on to higher ones";
            return Err(Failure { unsent: true, ..Failure::new(Code::Unavailable, why) });
        }
        self.pool.call(method, request, repeat, limit).await
    }

    /// An error in the contract's terms. Those that tell of a revision must look for it.
    async fn error(&self, failure: Failure, requested: i64) -> Error {
        if self.closed.load(Ordering::SeqCst) {
            return Error::Closed;
        }
        match failure.message.as_str() {
            "etcdserver: mvcc: required revision has been compacted" => Error::Compacted { revision: self.find_compacted().await },
            "etcdserver: mvcc: required revision is a future revision" => match self.revision_within(self.timeout).await {
                Ok(current) => Error::Future { requested, current },
                Err(error) => error,
            },
            "etcdserver: mvcc: database space exceeded" => {
                self.full.notify_one();
                Error::NoSpace { path: self.path.clone(), advice: "etcd's quota is used up; delete what is not needed, or raise --quota-backend-bytes" }
            }
            "etcdserver: key is not provided" => Error::Invalid("key is not provided"),
            "etcdserver: too many operations in txn request" => Error::Invalid("too many operations in one transaction"),
            _ => self.failed(failure),
        }
    }

    /// What became of a request whose answer says nothing of what was asked.
    fn failed(&self, failure: Failure) -> Error {
        let (path, message) = (self.path.clone(), failure.to_string());
        match failure.code {
            Code::DeadlineExceeded => Error::Timeout { path, message },
            Code::Unavailable if failure.message.starts_with("etcdserver: request timed out") => Error::Timeout { path, message },
            Code::Unavailable => Error::Unavailable { path, message },
            _ => Error::Io { path, message },
        }
    }

    /// The oldest revision at which a range works: a watch from the first one on is told.
    async fn find_compacted(&self) -> i64 {
        let deadline = Instant::now() + Duration::from_secs(2);
        let ask = async {
            let link = self.pool.link(deadline).await.ok()?;
            match Follow::start(&link, 1, deadline).await {
                Ok((mut watch, ..)) => match watch.next().await {
                    Err(Broken::Compacted(revision)) => revision,
                    _ => None,
                },
                Err(Broken::Compacted(revision)) => revision,
                Err(_) => None,
            }
        };
        if let Ok(Some(revision)) = tokio::time::timeout_at(deadline, ask).await {
            self.compacted.fetch_max(revision, Ordering::SeqCst);
        }
        self.compacted.load(Ordering::SeqCst)
    }

    /// The revision that a quorum agrees on, read after this was called. Callers share a reading.
    async fn revision_within(&self, limit: Duration) -> Result<i64, Error> {
        let begun = self.asked.load(Ordering::SeqCst);
        let mut read = self.read.lock().await;
        if read.0 > begun {
            return Ok(read.1);
        }
        let this = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let request = pb::RangeRequest { key: vec![0], count_only: true, ..Default::default() };
        match self.call_within::<_, pb::RangeResponse>(method::RANGE, &request, Repeat::Always, limit).await {
            Ok(found) => {
                let revision = convert::revision(&found.header);
                *read = (this, revision);
                Ok(revision)
            }
            Err(failure) if self.closed.load(Ordering::SeqCst) => {
                drop(failure);
                Err(Error::Closed)
            }
            Err(failure) => Err(self.failed(failure)),
        }
    }

    /// Follows the watch of all keys until the store is closed.
    async fn follow(self: Arc<Self>) {
        let mut pause = PAUSE;
        loop {
            let began = Instant::now();
            let why = match self.follow_once().await {
                Broken::Compacted(revision) => {
                    if let Some(revision) = revision {
                        self.compacted.fetch_max(revision, Ordering::SeqCst);
                    } else {
                        self.find_compacted().await;
                    }
                    match self.revision_within(self.timeout).await {
                        // Watchers that are behind find in etcd's history that it is gone.
                        Ok(revision) => {
                            tracing::warn!(revision, "etcd has compacted what was not seen yet; going on at its present revision");
                            self.feed.skip_to(revision.max(self.feed.revision()));
                            continue;
                        }
                        Err(error) => error.to_string(),
                    }
                }
                Broken::Lost => match back::pass(&self).await {
                    Ok(()) => continue,
                    Err(failure) => failure.to_string(),
                },
                Broken::Failed(status) => status.to_string(),
            };
            if began.elapsed() > LONGEST_PAUSE {
                pause = PAUSE;
            }
            let before = self.error.lock().replace(why.clone());
            if before.is_none() {
                tracing::warn!(why, "the watch of etcd broke; beginning it anew");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn follow_once(&self) -> Broken {
        let deadline = Instant::now() + self.timeout;
        let last = self.feed.revision();
        let followed = async {
            let link = self.pool.link(deadline).await?;
            let (mut watch, at, cluster) = match Follow::start(&link, last, deadline).await {
                Ok(started) => started,
                Err(broken) => {
                    if matches!(broken, Broken::Failed(_)) {
                        self.pool.leave(&link).await;
                    }
                    return Err(broken);
                }
            };
            // The member may be behind the others; a quorum may not.
            let known = self.cluster.swap(cluster, Ordering::Relaxed);
            let went_back = self.went_back.load(Ordering::Relaxed);
            if went_back || (known != 0 && known != cluster) || (at < last && self.revision_within(self.timeout).await.is_ok_and(|now| now < last)) {
                if !went_back {
                    tracing::error!(revision = at, seen = last, "etcd has lost revisions that were seen before: it is moved on to higher ones");
                    self.went_back.store(true, Ordering::Relaxed);
                }
                return Err(Broken::Lost);
            }
            if self.error.lock().take().is_some() {
                tracing::info!("the watch of etcd goes on");
            }
            let left = link.left();
            tokio::pin!(left);
            loop {
                let next = tokio::select! {
                    next = watch.next() => next,
                    () = &mut left => return Err(Broken::Failed(Failure::new(Code::Unavailable, "calls go to another member by now"))),
                };
                match next {
                    Ok(batches) => self.feed.publish(batches),
                    Err(Broken::Failed(status)) => {
                        self.pool.leave(&link).await;
                        return Err(Broken::Failed(status));
                    }
                    Err(broken) => return Err(broken),
                }
            }
        };
        let Err::<std::convert::Infallible, Broken>(broken) = followed.await;
        broken
    }

    /// A page of the history, or of all of it as far as watchers may see it.
    async fn history_once(&self, from: i64) -> Result<History, Broken> {
        let through = self.feed.revision();
        let deadline = Instant::now() + self.timeout;
        let link = self.pool.link(deadline).await?;
        let (mut watch, ..) = Follow::start(&link, from - 1, deadline).await?;
        let mut history = History { batches: Vec::new(), through: from - 1 };
        let mut bytes = 0;
        while history.through < through && bytes < HISTORY_BYTES {
            let silent = |_| Broken::Failed(Failure::new(Code::DeadlineExceeded, "etcd's history does not come"));
            for batch in tokio::time::timeout(HISTORY_PATIENCE, watch.next()).await.map_err(silent)?? {
                // What watchers may not see yet, they will get from the feed.
                if batch.revision <= through {
                    history.through = batch.revision;
                    bytes += batch.events.iter().map(crate::Event::size).sum::<usize>();
                    history.batches.push(Arc::new(batch));
                }
            }
        }
        Ok(history)
    }

    /// A range without a limit, page by page at one revision.
    async fn whole(&self, request: &RangeRequest, end: Vec<u8>) -> Result<RangeResponse, Error> {
        let mut steps = Steps::new(request.key.clone(), end, true);
        let mut whole = RangeResponse::default();
        let mut at = request.revision.max(0);
        while let Some(step) = steps.next() {
            let page = self.page(&step, at, step.limit as i64).await?;
            if whole.revision == 0 {
                whole.revision = convert::revision(&page.header);
                at = if at > 0 { at } else { whole.revision };
            }
            let from = whole.kvs.len();
            whole.kvs.extend(page.kvs.into_iter().map(convert::key_value));
            steps.took(&Took { kvs: &whole.kvs[from..], there: page.count as usize, more: page.more });
        }
        whole.count = whole.kvs.len();
        Ok(whole)
    }

    /// A range as it is asked for, at `revision`.
    async fn page(&self, request: &RangeRequest, revision: i64, limit: i64) -> Result<pb::RangeResponse, Error> {
        // For etcd, a zero byte is the first key there can be; and an end that is not behind the key is an empty range.
        let key = if request.key.is_empty() { vec![0] } else { request.key.clone() };
        let range_end = match &request.end {
            None => Vec::new(),
            Some(end) if *end > key => end.clone(),
            Some(_) => key.clone(),
        };
        let message = pb::RangeRequest { key, range_end, limit, revision, count_only: request.count_only, ..Default::default() };
        match self.call(method::RANGE, &message, Repeat::Always).await {
            Ok(response) => Ok(response),
            Err(failure) => Err(self.error(failure, revision).await),
        }
    }

    /// The lease of each put that expires.
    async fn leases(&self, txn: &Txn) -> Result<Vec<i64>, Error> {
        let mut leases = Vec::new();
        for op in &txn.then {
            let Op::Put { ttl_seconds: Some(ttl), .. } = op else { continue };
            let now = Instant::now();
            let found = self.leases.lock().find(*ttl, now);
            if let Some(id) = found {
                leases.push(id);
                continue;
            }
            let request = pb::LeaseGrantRequest { ttl: i64::try_from(lease::extended(*ttl)).unwrap_or(i64::MAX), id: 0 };
            // One that is granted twice ends by itself.
            let granted: pb::LeaseGrantResponse = match self.call(method::LEASE_GRANT, &request, Repeat::Always).await {
                Ok(granted) => granted,
                Err(failure) => return Err(self.error(failure, 0).await),
            };
            self.leases.lock().granted(*ttl, granted.id, now);
            leases.push(granted.id);
        }
        Ok(leases)
    }
}

#[async_trait::async_trait]
impl Source for Arc<Shared> {
    async fn history(&self, from: i64) -> Result<History, Error> {
        let mut pause = PAUSE;
        loop {
            let compacted = self.compacted.load(Ordering::SeqCst);
            if from <= compacted {
                return Err(Error::Compacted { revision: compacted });
            }
            match self.history_once(from).await {
                Ok(history) => return Ok(history),
                Err(Broken::Compacted(Some(revision))) => {
                    self.compacted.fetch_max(revision, Ordering::SeqCst);
                    return Err(Error::Compacted { revision });
                }
                Err(Broken::Compacted(None)) => return Err(Error::Compacted { revision: self.find_compacted().await }),
                Err(Broken::Failed(_) | Broken::Lost) if self.closed.load(Ordering::SeqCst) => return Err(Error::Closed),
                Err(Broken::Failed(status)) => tracing::debug!(%status, from, "reading etcd's history failed; trying again"),
                Err(Broken::Lost) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

#[async_trait::async_trait]
impl Store for Etcd {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        let shared = &self.shared;
        match &request.end {
            Some(end) if request.limit == 0 && !request.count_only && *end > request.key => shared.whole(&request, end.clone()).await,
            _ => {
                let limit = i64::try_from(request.limit).unwrap_or(i64::MAX);
                let page = shared.page(&request, request.revision.max(0), limit).await?;
                let kvs = page.kvs.into_iter().map(convert::key_value).collect();
                Ok(RangeResponse { revision: convert::revision(&page.header), kvs, more: page.more && !request.count_only, count: page.count as usize })
            }
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error> {
        txn.check()?;
        let shared = &self.shared;
        let mut again = true;
        loop {
            let leases = shared.leases(&txn).await?;
            let failure = match shared.call::<_, pb::TxnResponse>(method::TXN, &convert::txn(&txn, &leases), Repeat::Unsent).await {
                Ok(response) => return Ok(convert::txn_response(response)),
                Err(failure) => failure,
            };
            match failure.code {
                // Someone has revoked it, or etcd stood still for longer than it lasts. Nothing was applied.
                Code::NotFound if again && !leases.is_empty() => {
                    shared.leases.lock().forget(&leases);
                    again = false;
                }
                Code::InvalidArgument if failure.message == "etcdserver: request is too large" => {
                    return Err(Error::TooLarge { size: txn.then.iter().map(Op::size).sum(), limit: REQUEST_BYTES });
                }
                Code::ResourceExhausted if failure.message.starts_with("grpc: received message larger than max") => {
                    return Err(Error::TooLarge { size: txn.then.iter().map(Op::size).sum(), limit: REQUEST_BYTES });
                }
                // It was sent, and the answer is lost.
                Code::Unavailable if !failure.unsent && failure.message != "etcdserver: no leader" => {
                    return Err(Error::Timeout { path: shared.path.clone(), message: failure.to_string() });
                }
                _ => return Err(shared.error(failure, 0).await),
            }
        }
    }

    async fn advance(&self, beyond: i64) -> Result<i64, Error> {
        match back::advance(&self.shared.pool, self.shared.timeout, beyond).await {
            Ok(revision) => Ok(revision),
            Err(failure) => Err(self.shared.error(failure, 0).await),
        }
    }

    async fn watch(&self, prefix: &[u8], from_revision: i64) -> Result<WatchStream, Error> {
        let shared = &self.shared;
        if shared.closed.load(Ordering::SeqCst) {
            return Err(Error::Closed);
        }
        let next = if from_revision <= 0 { shared.revision_within(shared.timeout).await? + 1 } else { from_revision };
        let compacted = shared.compacted.load(Ordering::SeqCst);
        if next <= compacted {
            return Err(Error::Compacted { revision: compacted });
        }
        Ok(shared.feed.watch(Arc::new(shared.clone()), prefix, next))
    }

    async fn compact(&self, revision: i64) -> Result<(), Error> {
        let shared = &self.shared;
        let request = pb::CompactionRequest { revision, physical: false };
        match shared.call::<_, pb::CompactionResponse>(method::COMPACT, &request, Repeat::Always).await {
            Ok(_) => {
                shared.compacted.fetch_max(revision, Ordering::SeqCst);
                shared.feed.forget(revision);
                Ok(())
            }
            Err(failure) => Err(shared.error(failure, revision).await),
        }
    }

    async fn revision(&self) -> Result<i64, Error> {
        self.shared.revision_within(self.shared.timeout).await
    }

    async fn status(&self) -> Result<Status, Error> {
        let shared = &self.shared;
        let found = shared.call::<_, pb::StatusResponse>(method::STATUS, &pb::StatusRequest {}, Repeat::Always).await;
        let found = match found {
            Ok(found) => found,
            Err(failure) => return Err(shared.error(failure, 0).await),
        };
        let error = shared.error.lock().clone().or_else(|| (!found.errors.is_empty()).then(|| found.errors.join(", ")));
        Ok(Status {
            engine: "etcd",
            revision: self.revision().await?,
            compacted: shared.compacted.load(Ordering::SeqCst),
            size_bytes: found.db_size.max(0) as u64,
            full: found.errors.iter().any(|e| e.contains("NOSPACE")) && shared.error.lock().is_none(),
            error,
        })
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.feed.close();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            task.abort();
            let _ = task.await;
        }
        self.shared.pool.close();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.tasks.lock().iter().for_each(JoinHandle::abort);
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.pool.close();
    }
}
