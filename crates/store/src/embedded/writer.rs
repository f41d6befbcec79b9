//! The thread that writes: groups transactions into commits, compacts, expires, reopens.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

use super::database::{Database, Failed, Writes};
use super::layout::{self, COMPACTED, REVISION};
use super::{Options, Shared};
use crate::watch::Batch;
use crate::{Compare, Error, Event, KeyValue, Op, Txn, TxnResponse};

/// A commit takes no more than this.
const GROUP_TXNS: usize = 1024;
const GROUP_BYTES: usize = 8 << 20;
/// Changes that are compacted between two commits.
const COMPACT_CHUNK: usize = 256;
/// Keys that are expired in one commit.
const EXPIRE_CHUNK: usize = 256;
/// The pause between attempts to reopen, and the longest sleep.
const RETRY: Duration = Duration::from_millis(500);
const IDLE: Duration = Duration::from_secs(60);

/// What the writer is asked to do.
pub(super) enum Request {
    /// Apply a transaction that has been checked.
    Txn {
        txn: Txn,
        reply: oneshot::Sender<Result<TxnResponse, Error>>,
    },
    /// Compact at a revision.
    Compact {
        revision: i64,
        reply: oneshot::Sender<Result<(), Error>>,
    },
    /// Finish.
    Close(oneshot::Sender<()>),
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    options: Options,
    requests: Receiver<Request>,
    /// The compaction's progress: changes up to this revision have been removed.
    cleaned: i64,
    /// When which revision was current, and how much had been written by then; oldest first.
    marks: VecDeque<Mark>,
    written: u64,
    /// The next deadline in milliseconds since 1970, if keys expire.
    deadline: Option<i64>,
    /// Deadlines before this one are done with.
    expired: i64,
    newest: Newest,
    /// When the database failed last.
    failed: Option<Instant>,
}

/// What follows a step.
enum Step {
    Continue,
    /// Ends, and tells whom.
    End(Option<oneshot::Sender<()>>),
}

struct Mark {
    at: Instant,
    revision: i64,
    written: u64,
}

/// Transactions that are committed together.
#[derive(Default)]
struct Group {
    writes: Writes,
    batches: Vec<Batch>,
    /// Keys as these transactions leave them.
    latest: HashMap<Vec<u8>, Option<KeyValue>>,
    replies: Vec<(oneshot::Sender<Result<TxnResponse, Error>>, TxnResponse)>,
    deadline: Option<i64>,
    bytes: usize,
}

impl Writer {
    pub fn new(shared: Arc<Shared>, options: Options, requests: Receiver<Request>) -> Self {
        let mut this = Self {
            shared,
            options,
            requests,
            cleaned: 0,
            marks: VecDeque::new(),
            written: 0,
            deadline: None,
            expired: 0,
            newest: Newest::default(),
            failed: None,
        };
        this.mark();
        this
    }

    /// Works until the store is closed or dropped.
    pub fn run(mut self) {
        self.find_deadline();
        let closing = loop {
            // fjall panics over some errors; they are treated as those that it returns.
            match catch_unwind(AssertUnwindSafe(|| self.step())) {
                Ok(Step::Continue) => {}
                Ok(Step::End(closing)) => break closing,
                Err(_) => self.failed_with("the engine panicked".to_owned(), Instant::now()),
            }
        };
        *self.shared.database.write() = None;
        *self.shared.directory.lock() = None;
        self.shared.feed.close();
        if let Some(closed) = closing {
            let _ = closed.send(());
        }
    }

    /// Waits for something to do, and does it.
    fn step(&mut self) -> Step {
        let request = match self.requests.try_recv() {
            Ok(request) => Some(request),
            Err(_) if self.compacting() => None,
            Err(_) => match self.requests.recv_timeout(self.idle()) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Step::End(None),
            },
        };
        if self.failed.is_some_and(|at| at.elapsed() >= RETRY) {
            self.reopen();
        }
        if let Some(closing) = request.and_then(|request| self.serve(request)) {
            return Step::End(Some(closing));
        }
        if self.failed.is_none() {
            let done = self.expire().and_then(|()| self.compact());
            if let Err(failed) = done {
                self.fail(&failed);
            }
        }
        Step::Continue
    }

    fn idle(&self) -> Duration {
        if self.failed.is_some() {
            return RETRY;
        }
        let until =
            |deadline: i64| Duration::from_millis(deadline.saturating_sub(now()).max(0) as u64);
        self.deadline
            .map_or(IDLE, |deadline| until(deadline).min(IDLE))
    }

    /// Serves a request and those that wait behind it.
    fn serve(&mut self, first: Request) -> Option<oneshot::Sender<()>> {
        let mut group = Group::default();
        let mut next = Some(first);
        let mut after = None;
        let mut failure = None;
        while let Some(request) = next.take() {
            let (txn, reply) = match request {
                Request::Txn { txn, reply } => (txn, reply),
                other => {
                    after = Some(other);
                    break;
                }
            };
            if reply.is_closed() {
                // Whoever asked was told that it took too long.
                next = self.requests.try_recv().ok();
                continue;
            }
            let shared = self.shared.clone();
            let database = shared.database.read();
            let applied = match database.as_ref() {
                Some(database) if self.failed.is_none() => {
                    self.apply(database, &txn, &mut group).map_err(|failed| {
                        let error = self.shared.error(&failed);
                        failure = Some(failed);
                        error
                    })
                }
                _ => Err(self.last_error()),
            };
            match applied {
                Ok(response) => group.replies.push((reply, response)),
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            }
            if failure.is_none() && group.replies.len() < GROUP_TXNS && group.bytes < GROUP_BYTES {
                next = self.requests.try_recv().ok();
            }
        }
        self.commit(group);
        if let Some(failed) = failure {
            self.fail(&failed);
        }
        match after {
            Some(Request::Compact { revision, reply }) => {
                let _ = reply.send(self.start_compaction(revision));
            }
            Some(Request::Close(closed)) => return Some(closed),
            _ => {}
        }
        None
    }

    /// Applies a transaction to what the group leaves.
    fn apply(
        &mut self,
        database: &Database,
        txn: &Txn,
        group: &mut Group,
    ) -> Result<TxnResponse, Failed> {
        let current = group
            .batches
            .last()
            .map_or_else(|| self.shared.feed.revision(), |batch| batch.revision);
        let mut compared = Vec::with_capacity(txn.compare.len());
        for compare in &txn.compare {
            compared.push(match self.newest.expected(database, compare, group)? {
                Some(kv) => Some(kv),
                None => group.latest(database, &compare.key)?,
            });
        }
        let holds = |(kv, wanted): (&Option<KeyValue>, i64)| {
            kv.as_ref().map_or(0, |kv| kv.mod_revision) == wanted
        };
        if !compared
            .iter()
            .zip(txn.compare.iter().map(|compare| compare.mod_revision))
            .all(holds)
        {
            return Ok(TxnResponse {
                revision: current,
                current: compared,
                ..TxnResponse::default()
            });
        }
        let mut previous = Vec::with_capacity(txn.then.len());
        for op in &txn.then {
            let known = txn.compare.iter().position(|compare| compare.key == op.key());
            previous.push(match known.and_then(|i| compared.get(i)) {
                Some(kv) => kv.clone(),
                None => group.latest(database, op.key())?,
            });
        }
        // Nothing fails from here on, so a transaction is in the group whole or not at all.
        let revision = current + 1;
        let mut events = Vec::new();
        for (op, prev) in txn.then.iter().zip(&previous) {
            let replaced = prev.as_ref().map_or(0, |kv| kv.mod_revision);
            let log_key = layout::log_key(revision, events.len() as u32);
            match op {
                Op::Put {
                    key,
                    value,
                    ttl_seconds,
                } => {
                    let kv = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: prev.as_ref().map_or(revision, |kv| kv.create_revision),
                        mod_revision: revision,
                        version: prev.as_ref().map_or(1, |kv| kv.version + 1),
                    };
                    group.writes.put.push((
                        layout::version_key(key, revision),
                        layout::version_value(&kv),
                    ));
                    if let Some(seconds) = ttl_seconds {
                        let milliseconds = i64::try_from(*seconds)
                            .unwrap_or(i64::MAX)
                            .saturating_mul(1000);
                        let deadline = now().max(self.expired).saturating_add(milliseconds);
                        group.writes.put.push((
                            layout::ttl_key(deadline, key),
                            revision.to_be_bytes().to_vec(),
                        ));
                        group.deadline =
                            Some(group.deadline.map_or(deadline, |other| other.min(deadline)));
                    }
                    group.latest.insert(key.clone(), Some(kv.clone()));
                    events.push(Event::Put {
                        kv,
                        prev: prev.clone(),
                    });
                }
                Op::Delete { .. } if prev.is_none() => continue,
                Op::Delete { key } => {
                    group.writes.put.push((
                        layout::version_key(key, revision),
                        layout::TOMBSTONE.to_vec(),
                    ));
                    group.latest.insert(key.clone(), None);
                    events.push(Event::Delete {
                        key: key.clone(),
                        revision,
                        prev: prev.clone(),
                    });
                }
            }
            group
                .writes
                .put
                .push((log_key, layout::log_value(replaced, op.key())));
            group.bytes += op.size() + 64;
        }
        let revision = if events.is_empty() { current } else { revision };
        if !events.is_empty() {
            group.batches.push(Batch { revision, events });
        }
        Ok(TxnResponse {
            succeeded: true,
            revision,
            current: Vec::new(),
            previous,
        })
    }

    /// Makes a group durable, shows it to watchers, and answers.
    fn commit(&mut self, mut group: Group) {
        let mut result = Ok(());
        if let Some(last) = group.batches.last() {
            group
                .writes
                .put
                .push((REVISION.to_vec(), last.revision.to_be_bytes().to_vec()));
        }
        if !group.writes.is_empty() {
            let shared = self.shared.clone();
            let database = shared.database.read();
            *shared.writing.lock() = Some(Instant::now());
            let written = database
                .as_ref()
                .map(|database| database.write(group.writes));
            *shared.writing.lock() = None;
            drop(database);
            match written {
                Some(Ok(())) => {}
                Some(Err(failed)) => {
                    result = Err(self.shared.error(&failed));
                    self.fail(&failed);
                }
                None => result = Err(self.last_error()),
            }
        }
        if result.is_ok() {
            self.deadline = self.deadline.into_iter().chain(group.deadline).min();
            self.written += group.bytes as u64;
            group.batches.iter().for_each(|batch| self.newest.note(batch));
            self.shared.feed.publish(group.batches);
            self.mark();
        }
        for (reply, response) in group.replies {
            // Those that changed nothing may still tell of what the group was to write.
            let _ = reply.send(result.clone().map(|()| response));
        }
    }

    /// Deletes what has expired.
    fn expire(&mut self) -> Result<(), Failed> {
        if self.deadline.is_none_or(|deadline| deadline > now()) {
            return Ok(());
        }
        let shared = self.shared.clone();
        let guard = shared.database.read();
        let Some(database) = guard.as_ref() else {
            return Ok(());
        };
        let time = now();
        let due = database.view().deadlines(self.expired, EXPIRE_CHUNK + 1)?;
        let mut group = Group::default();
        self.deadline = None;
        let mut done = self.expired;
        for (i, (deadline, key, revision)) in due.into_iter().enumerate() {
            if deadline > time || i == EXPIRE_CHUNK {
                self.deadline = Some(deadline);
                break;
            }
            // Does nothing if the key has been put again since.
            self.apply(
                database,
                &Txn::delete(key.clone()).when(key.clone(), revision),
                &mut group,
            )?;
            group.writes.remove.push(layout::ttl_key(deadline, &key));
            done = deadline;
        }
        drop(guard);
        self.commit(group);
        self.expired = done;
        Ok(())
    }

    fn find_deadline(&mut self) {
        let shared = self.shared.clone();
        let database = shared.database.read();
        if let Some(Ok(found)) = database
            .as_ref()
            .map(|database| database.view().deadlines(0, 1))
        {
            self.expired = 0;
            self.deadline = found.first().map(|(deadline, ..)| *deadline);
        }
    }

    /// Remembers now and then which revision is current.
    fn mark(&mut self) {
        let (at, revision) = (Instant::now(), self.shared.feed.revision());
        let due = self.marks.back().is_none_or(|mark| {
            at - mark.at >= self.options.keep_for / 16
                || revision - mark.revision >= self.options.keep_revisions / 16
                || self.written - mark.written >= self.options.keep_bytes / 16
        });
        if due {
            self.marks.push_back(Mark {
                at,
                revision,
                written: self.written,
            });
        }
        let mut target = None;
        while let Some(mark) = self.marks.front()
            && (mark.at.elapsed() > self.options.keep_for
                || revision - mark.revision > self.options.keep_revisions
                || self.written - mark.written > self.options.keep_bytes)
        {
            target = Some(mark.revision);
            self.marks.pop_front();
        }
        if let Some(target) = target {
            // Fails when it has been compacted further by request.
            let _ = self.start_compaction(target);
        }
    }

    fn start_compaction(&mut self, revision: i64) -> Result<(), Error> {
        let current = self.shared.feed.revision();
        if revision > current {
            return Err(Error::Future {
                requested: revision,
                current,
            });
        }
        let compacted = self.shared.compacted.load(Ordering::SeqCst);
        if revision <= compacted {
            return Err(Error::Compacted {
                revision: compacted,
            });
        }
        self.shared.compacted.store(revision, Ordering::SeqCst);
        self.shared.feed.forget(revision);
        Ok(())
    }

    fn compacting(&self) -> bool {
        self.failed.is_none() && self.cleaned < self.shared.compacted.load(Ordering::SeqCst)
    }

    /// Removes a part of what has been compacted.
    fn compact(&mut self) -> Result<(), Failed> {
        if !self.compacting() {
            return Ok(());
        }
        let shared = self.shared.clone();
        let database = shared.database.read();
        let Some(database) = database.as_ref() else {
            return Ok(());
        };
        let target = self.shared.compacted.load(Ordering::SeqCst);
        let (remove, through) = database
            .view()
            .garbage(self.cleaned + 1, target, COMPACT_CHUNK)?;
        let put = vec![(COMPACTED.to_vec(), target.to_be_bytes().to_vec())];
        // If this is lost in a crash, it is done again.
        database.write_later(Writes { put, remove })?;
        self.cleaned = through;
        Ok(())
    }

    fn last_error(&self) -> Error {
        let message = self
            .shared
            .error
            .lock()
            .clone()
            .unwrap_or_else(|| "it is being reopened".to_owned());
        if message == NO_SPACE {
            return Error::NoSpace {
                path: self.shared.path.clone(),
                advice: "free some space on the file system that holds it",
            };
        }
        Error::Unavailable {
            path: self.shared.path.clone(),
            message,
        }
    }

    fn fail(&mut self, failed: &Failed) {
        let message = if self.shared.is_full(failed) {
            NO_SPACE.to_owned()
        } else {
            failed.message()
        };
        // What failed in the background shows in the next write; then there is no reason to wait.
        let past = Instant::now().checked_sub(RETRY);
        let at = if failed.background() && self.failed.is_none() {
            past
        } else {
            None
        };
        self.failed_with(message, at.unwrap_or_else(Instant::now));
    }

    fn failed_with(&mut self, message: String, at: Instant) {
        tracing::error!(path = %self.shared.path.display(), error = %message, "the store failed and will be reopened");
        *self.shared.error.lock() = Some(message);
        self.failed = Some(at);
    }

    /// Opens the database anew: fjall refuses writes after an I/O error.
    fn reopen(&mut self) {
        self.newest = Newest::default();
        let path = match self.shared.directory.lock().as_ref() {
            Some(directory) => directory.database(),
            None => return,
        };
        let shared = self.shared.clone();
        let mut guard = shared.database.write();
        let options = &self.options;
        let opened = catch_unwind(AssertUnwindSafe(|| {
            // The old one must have let go of its files.
            *guard = None;
            let database = Database::open(&path, options)?;
            let (published, found) = (shared.feed.revision(), database.revision()?);
            if found > published {
                // Written, and perhaps not durable: after a failed fsync the kernel takes its pages for
                // clean. So it is written once more before anybody sees it.
                let mut writes = database.view().rewrite(published + 1, found)?;
                writes
                    .put
                    .push((REVISION.to_vec(), found.to_be_bytes().to_vec()));
                database.write(writes)?;
                shared.feed.skip_to(found);
            } else {
                // Proves that writing works again.
                let put = vec![(REVISION.to_vec(), published.to_be_bytes().to_vec())];
                database.write(Writes {
                    put,
                    remove: Vec::new(),
                })?;
            }
            Ok::<_, Failed>(database)
        }));
        match opened {
            Ok(Ok(database)) => {
                *guard = Some(database);
                drop(guard);
                tracing::info!(path = %path.display(), "the store works again");
                self.failed = None;
                *self.shared.error.lock() = None;
                self.find_deadline();
            }
            Ok(Err(failed)) => {
                drop(guard);
                self.fail(&failed);
            }
            Err(_) => {
                drop(guard);
                self.failed_with("its files are damaged".to_owned(), Instant::now());
            }
        }
    }
}

/// The last revisions of keys that were written lately, by hashes of the keys. To find a key's latest version in the
/// database all tables are looked at; a version whose revision is known is found in one of them.
#[derive(Default)]
struct Newest {
    hasher: RandomState,
    revisions: HashMap<u64, i64>,
}

/// How many keys are known; 1 MB.
const NEWEST_KEYS: usize = 1 << 15;

impl Newest {
    fn note(&mut self, batch: &Batch) {
        if self.revisions.len() >= NEWEST_KEYS {
            self.revisions.clear();
        }
        for event in &batch.events {
            self.revisions.insert(self.hasher.hash_one(event.key()), batch.revision);
        }
    }

    /// The version that a transaction expects, if it is known to be its key's latest: neither the key nor another of the
    /// same hash has been written since.
    fn expected(&self, database: &Database, compare: &Compare, group: &Group) -> Result<Option<KeyValue>, Failed> {
        let known = || self.revisions.get(&self.hasher.hash_one(&compare.key)) == Some(&compare.mod_revision);
        if compare.mod_revision == 0 || group.latest.contains_key(&compare.key) || !known() {
            return Ok(None);
        }
        database.version(&compare.key, compare.mod_revision)
    }
}

/// Marks the error that is a full disk.
pub(super) const NO_SPACE: &str = "no space left";

impl Group {
    fn latest(&self, database: &Database, key: &[u8]) -> Result<Option<KeyValue>, Failed> {
        match self.latest.get(key) {
            Some(kv) => Ok(kv.clone()),
            None => database.latest(key),
        }
    }
}

/// Milliseconds since 1970.
fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64)
}
