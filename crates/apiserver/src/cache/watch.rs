//! Watching a resource: changes are read from the shared ring, at each watcher's own pace.
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::sync::watch as channel;

use super::{Entry, Resource, Snapshot};

/// One change of one object, shared by all its watchers.
pub struct Change {
    pub seq: u64,
    pub revision: u64,
    pub key: Arc<str>,
    /// The new state; `None` when the object was deleted.
    pub current: Option<Arc<Entry>>,
    pub previous: Option<Arc<Entry>>,
    /// All objects after this change.
    pub(super) after: Snapshot,
    gone: OnceLock<Arc<Entry>>,
    frames: [OnceLock<Bytes>; 3],
}

/// What a change means to a watcher, whose selector may see an object come or go that merely changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

impl ChangeKind {
    pub fn as_str(self) -> &'static str {
        match self {
            ChangeKind::Added => "ADDED",
            ChangeKind::Modified => "MODIFIED",
            ChangeKind::Deleted => "DELETED",
        }
    }
}

impl Change {
    pub(super) fn new(
        seq: u64,
        revision: u64,
        key: Arc<str>,
        current: Option<Arc<Entry>>,
        previous: Option<Arc<Entry>>,
        after: Snapshot,
    ) -> Change {
        Change { seq, revision, key, current, previous, after, gone: OnceLock::new(), frames: Default::default() }
    }

    pub(super) fn bytes(&self) -> usize {
        self.current.as_ref().or(self.previous.as_ref()).map_or(0, |e| e.json.len())
    }

    /// Bytes that are there for this change alone: frames, and a state that is not the object's present one.
    pub(super) fn held(&self, now: Option<&Arc<Entry>>) -> usize {
        let frames: usize = self.frames.iter().filter_map(OnceLock::get).map(Bytes::len).sum();
        let past = self.current.as_ref().filter(|entry| now.is_none_or(|now| !Arc::ptr_eq(now, entry)));
        frames + past.map_or(0, |entry| entry.json.len())
    }

    /// The last state, under the revision of this change.
    fn gone(&self) -> Option<&Arc<Entry>> {
        let previous = self.previous.as_ref()?;
        Some(self.gone.get_or_init(|| Arc::new(previous.deleted_at(self.revision))))
    }

    /// What the change means under a filter.
    pub fn seen(&self, matches: impl Fn(&Entry) -> bool) -> Option<ChangeKind> {
        let before = self.previous.as_deref().is_some_and(&matches);
        let now = self.current.as_deref().is_some_and(&matches);
        match (before, now) {
            (false, true) => Some(ChangeKind::Added),
            (true, true) => Some(ChangeKind::Modified),
            (true, false) => Some(ChangeKind::Deleted),
            (false, false) => None,
        }
    }

    /// The object that the event carries.
    pub fn entry(&self, kind: ChangeKind) -> Option<&Arc<Entry>> {
        match kind {
            ChangeKind::Deleted => self.gone(),
            _ => self.current.as_ref(),
        }
    }

    /// The JSON line of the event, made once for all watchers.
    pub fn frame(&self, kind: ChangeKind) -> Bytes {
        self.frames[kind as usize]
            .get_or_init(|| match self.entry(kind) {
                Some(entry) => frame(kind.as_str(), &entry.json),
                None => Bytes::new(),
            })
            .clone()
    }
}

/// `{"type":…,"object":…}` and a newline.
pub fn frame(kind: &str, json: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(json.len() + 40);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(json);
    out.extend_from_slice(b"}\n");
    Bytes::from(out)
}

/// The watcher's position is not in the ring (any more); it has to list again.
#[derive(Debug, PartialEq, Eq)]
pub struct TooOld {
    pub oldest: u64,
}

/// A position in a resource's changes.
pub struct Watcher {
    resource: Arc<Resource>,
    next_seq: u64,
    newest: channel::Receiver<u64>,
}

impl Resource {
    /// Watches changes after this revision.
    pub fn watch_after(self: &Arc<Resource>, revision: u64) -> Result<Watcher, TooOld> {
        let newest = self.newest.subscribe();
        let history = self.history.lock();
        if revision < history.oldest {
            return Err(TooOld { oldest: history.oldest });
        }
        let i = history.events.partition_point(|e| e.revision <= revision);
        let next_seq = history.events.get(i).map_or(history.next_seq, |e| e.seq);
        Ok(Watcher { resource: self.clone(), next_seq, newest })
    }

    /// The objects now, and a watch of everything after.
    pub fn watch_from_now(self: &Arc<Resource>) -> (Arc<Snapshot>, Watcher) {
        let newest = self.newest.subscribe();
        let history = self.history.lock();
        let watcher = Watcher { resource: self.clone(), next_seq: history.next_seq, newest };
        (self.snapshot(), watcher)
    }
}

impl Watcher {
    /// Up to `max` changes that are there already.
    pub fn poll(&mut self, max: usize) -> Result<Vec<Arc<Change>>, TooOld> {
        self.newest.mark_unchanged();
        let history = self.resource.history.lock();
        if self.next_seq >= history.next_seq {
            return Ok(Vec::new());
        }
        let first = match history.events.front() {
            Some(first) if first.seq <= self.next_seq => first.seq,
            _ => return Err(TooOld { oldest: history.oldest }),
        };
        let start = (self.next_seq - first) as usize;
        let batch: Vec<_> = history.events.range(start..).take(max).cloned().collect();
        if let Some(last) = batch.last() {
            self.next_seq = last.seq + 1;
        }
        Ok(batch)
    }

    /// Whether all there is has been read.
    pub fn drained(&self) -> bool {
        self.next_seq > *self.newest.borrow()
    }

    /// Returns when there may be more. Cancel safe.
    pub async fn changed(&mut self) {
        if self.newest.changed().await.is_err() {
            // the resource lives as long as we do
            std::future::pending::<()>().await;
        }
    }
}
