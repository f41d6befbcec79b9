//! The durable engine: a fjall database (an LSM tree with a journal) in one process.
//!
//! One thread writes. It takes all transactions that wait, applies them one after the other to what
//! it reads, and commits them with one fsync; then it publishes the revisions to watchers and answers.
//! So concurrent transactions share an fsync, and nothing is visible before it is durable. Reads and
//! watches use the versions that are kept for each key and never wait for the writer. The same thread
//! compacts, expires, and reopens the database after an I/O error.

mod database;
mod directory;
mod import;
mod layout;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

pub use directory::OpenError;
pub use import::Import;

use crate::watch::{Feed, History, Source};
use crate::{Error, RangeRequest, RangeResponse, Status, Store, Txn, TxnResponse, WatchStream};
use database::{Database, Failed};
use directory::Directory;
use writer::{Request, Writer};

/// Settings; the defaults suit a cluster of one to a few nodes.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long changes are kept for watches and reads at older revisions.
    pub keep_for: Duration,
    /// Keep no more than this many revisions, however new they are.
    pub keep_revisions: i64,
    /// Keep no more than about this many bytes of changes, however new they are.
    pub keep_bytes: u64,
    /// Bytes of recent writes that are kept in memory before they are sorted into a table.
    pub memtable_bytes: u64,
    /// Bytes of tables that are cached, beyond the kernel's page cache.
    pub cache_bytes: u64,
    /// Bytes of recent changes that watchers get from memory.
    pub feed_bytes: usize,
    /// How long a request waits for the disk.
    pub patience: Duration,
}

/// What is written in the background at once, by default.
const MEMTABLE: u64 = 4 << 20;

/// A write that takes longer than this makes the store's status bad.
const SLOW: Duration = Duration::from_secs(2);

impl Default for Options {
    fn default() -> Self {
        Self {
            keep_for: Duration::from_secs(300),
            keep_revisions: 200_000,
            keep_bytes: 256 << 20,
            memtable_bytes: MEMTABLE,
            cache_bytes: 1 << 20,
            feed_bytes: 1 << 20,
            patience: Duration::from_secs(10),
        }
    }
}

/// Opens the store in a directory, creating it if it is not there. Blocks for as long as it takes to
/// read the journal: milliseconds.
pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Arc<dyn Store>, OpenError> {
    let mut directory = Directory::open(dir.as_ref())?;
    let path = directory.path().to_owned();
    // fjall panics over some damage that it finds.
    let opened = std::panic::catch_unwind(|| Database::open(&directory.database(), &options));
    let database = match opened {
        Ok(Ok(database)) => database,
        Ok(Err(Failed(fjall::Error::Io(source))))
            if source.kind() != std::io::ErrorKind::UnexpectedEof =>
        {
            return Err(OpenError::Io {
                path,
                action: "opening the database",
                source,
            });
        }
        Ok(Err(Failed(error))) => {
            return Err(OpenError::Corrupt {
                path,
                message: error.to_string(),
            });
        }
        Err(_) => {
            return Err(OpenError::Corrupt {
                path,
                message: "its files contradict each other".to_owned(),
            });
        }
    };
    let corrupt = |failed: Failed| OpenError::Corrupt {
        path: path.clone(),
        message: failed.message(),
    };
    let revision = database.revision().map_err(corrupt)?.max(1);
    let compacted = database.compacted().map_err(corrupt)?;
    directory.created()?;

    let feed = Arc::new(Feed::new(revision, options.feed_bytes));
    let shared = Arc::new(Shared {
        path: path.clone(),
        directory: Mutex::new(Some(directory)),
        database: RwLock::new(Some(database)),
        compacted: AtomicI64::new(compacted),
        error: Mutex::new(None),
        writing: Mutex::new(None),
        patience: options.patience,
        feed,
    });
    let (requests, receiver) = std::sync::mpsc::channel();
    let writer = Writer::new(shared.clone(), options, receiver);
    let started = std::thread::Builder::new()
        .name("store-writer".to_owned())
        .spawn(move || writer.run());
    started.map_err(|source| OpenError::Io {
        path,
        action: "starting a thread",
        source,
    })?;
    Ok(Arc::new(Embedded {
        shared,
        requests: Mutex::new(requests),
    }))
}

struct Embedded {
    shared: Arc<Shared>,
    requests: Mutex<std::sync::mpsc::Sender<Request>>,
}

/// What readers and the writer share.
struct Shared {
    path: PathBuf,
    /// `None` once the store is closed.
    directory: Mutex<Option<Directory>>,
    /// `None` while it is closed, or cannot be reopened. Readers hold the lock while they read.
    database: RwLock<Option<Database>>,
    compacted: AtomicI64,
    error: Mutex<Option<String>>,
    /// Since when the disk has been busy with a write.
    writing: Mutex<Option<Instant>>,
    patience: Duration,
    feed: Arc<Feed>,
}

impl Shared {
    /// Waits for the disk, but not for ever.
    async fn in_time<T>(&self, what: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let late = |_| Error::Timeout { path: self.path.clone(), message: format!("no answer within {:?}: the disk is too slow, or has stopped", self.patience) };
        tokio::time::timeout(self.patience, what).await.map_err(late)?
    }

    /// Whether it failed for want of space.
    fn is_full(&self, failed: &Failed) -> bool {
        failed.no_space() || failed.background() && self.directory.lock().as_ref().is_some_and(|directory| directory.is_full(MEMTABLE))
    }

    fn error(&self, failed: &Failed) -> Error {
        if self.is_full(failed) {
            return Error::NoSpace {
                path: self.path.clone(),
                advice: "free some space on the file system that holds it",
            };
        }
        Error::Io {
            path: self.path.clone(),
            message: failed.message(),
        }
    }

    /// Reads from the database, on a thread that may block.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Self, &Database) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let this = self.clone();
        let read = move || match this.database.read().as_ref() {
            Some(database) => read(&this, database),
            None if this.directory.lock().is_none() => Err(Error::Closed),
            None => {
                let message = this.error.lock().clone().unwrap_or_default();
                Err(Error::Unavailable {
                    path: this.path.clone(),
                    message,
                })
            }
        };
        let read = async { tokio::task::spawn_blocking(read).await.unwrap_or(Err(Error::Closed)) };
        self.in_time(read).await
    }

    fn range(&self, database: &Database, request: &RangeRequest) -> Result<RangeResponse, Error> {
        loop {
            let current = self.feed.revision();
            let revision = if request.revision <= 0 {
                current
            } else {
                request.revision
            };
            if revision > current {
                return Err(Error::Future {
                    requested: revision,
                    current,
                });
            }
            // The order matters: what this view lacks was compacted before, so that is seen next.
            let view = database.view();
            let compacted = self.compacted.load(Ordering::SeqCst);
            if revision < compacted {
                if request.revision <= 0 {
                    continue;
                }
                return Err(Error::Compacted {
                    revision: compacted,
                });
            }
            let mut response = view
                .range(request, revision)
                .map_err(|failed| self.error(&failed))?;
            response.revision = current;
            response.more = !request.count_only && response.count > response.kvs.len();
            return Ok(response);
        }
    }
}

#[async_trait::async_trait]
impl Source for Arc<Shared> {
    async fn history(&self, from: i64) -> Result<History, Error> {
        let read = move |shared: &Shared, database: &Database| {
            let to = shared.feed.revision();
            let view = database.view();
            let compacted = shared.compacted.load(Ordering::SeqCst);
            if from <= compacted {
                return Err(Error::Compacted {
                    revision: compacted,
                });
            }
            let (batches, through) = view
                .history(from, to)
                .map_err(|failed| shared.error(&failed))?;
            Ok(History { batches, through })
        };
        self.read(read).await
    }
}

impl Embedded {
    async fn request<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .lock()
            .send(make(reply))
            .map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)
    }
}

#[async_trait::async_trait]
impl Store for Embedded {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        self.shared
            .read(move |shared, database| shared.range(database, &request))
            .await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error> {
        txn.check()?;
        let request = async { self.request(|reply| Request::Txn { txn, reply }).await? };
        self.shared.in_time(request).await
    }

    async fn watch(&self, prefix: &[u8], from_revision: i64) -> Result<WatchStream, Error> {
        let current = self.shared.feed.revision();
        let next = if from_revision <= 0 {
            current + 1
        } else {
            from_revision
        };
        let compacted = self.shared.compacted.load(Ordering::SeqCst);
        if next <= compacted {
            return Err(Error::Compacted {
                revision: compacted,
            });
        }
        Ok(self
            .shared
            .feed
            .watch(Arc::new(self.shared.clone()), prefix, next))
    }

    async fn compact(&self, revision: i64) -> Result<(), Error> {
        self.request(|reply| Request::Compact { revision, reply })
            .await?
    }

    async fn revision(&self) -> Result<i64, Error> {
        Ok(self.shared.feed.revision())
    }

    async fn status(&self) -> Result<Status, Error> {
        let shared = self.shared.clone();
        let size = move || shared.directory.lock().as_ref().map(Directory::size);
        let size = tokio::task::spawn_blocking(size)
            .await
            .ok()
            .flatten()
            .ok_or(Error::Closed)?;
        let slow = self.shared.writing.lock().map(|since| since.elapsed()).filter(|took| *took > SLOW);
        let slow = slow.map(|took| format!("the disk has not finished a write for {} s", took.as_secs()));
        let error = self.shared.error.lock().clone();
        Ok(Status {
            engine: "embedded",
            revision: self.shared.feed.revision(),
            compacted: self.shared.compacted.load(Ordering::SeqCst),
            size_bytes: size,
            full: error.as_deref() == Some(writer::NO_SPACE),
            error: error.or(slow),
        })
    }

    async fn close(&self) {
        // An error means that it is closed.
        let _ = self.request(Request::Close).await;
    }
}
