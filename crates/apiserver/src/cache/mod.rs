//! The watch cache: every resource's objects as served bytes, in persistent maps, fed by one watch of the store.
//!
//! - A [`Snapshot`] is a cheap clone: lists and pages of lists read it without holding a lock.
//! - Recent events are kept in a bounded ring per resource; watchers read from it at their own pace ([`watch`]), so a slow
//!   watcher costs nothing until it has fallen out of the ring and is told to list again.
//! - The feed publishes a revision only after all resources have it: at `revision()` R every event up to R is in place.
mod entry;
mod feed;
mod map;
mod watch;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch as channel;

pub use entry::{Entry, Index};
pub use feed::{Feed, FeedError};
pub use map::Map;
pub use watch::{Change, ChangeKind, TooOld, Watcher, frame};

/// How much history a resource keeps, whichever is reached first.
const MAX_EVENTS: usize = 1024;
const MAX_EVENT_BYTES: usize = 4 << 20;

/// The objects of one resource at one time, by `namespace/name` or `name`.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// Revision of the last change in here.
    pub revision: u64,
    pub map: Map<Arc<Entry>>,
}

/// One resource's part of the cache.
pub struct Resource {
    /// `/registry/pods/`.
    pub prefix: String,
    snapshot: ArcSwap<Snapshot>,
    /// Of all objects, as they are served.
    bytes: AtomicU64,
    history: Mutex<History>,
    /// Sequence number of the newest event.
    newest: channel::Sender<u64>,
}

struct History {
    events: VecDeque<Arc<Change>>,
    bytes: usize,
    next_seq: u64,
    /// Watches may start at this revision or later.
    oldest: u64,
}

impl Resource {
    /// Empty, with a history that is whole since `revision`.
    fn new(prefix: String, revision: u64) -> Resource {
        Resource {
            prefix,
            snapshot: ArcSwap::from_pointee(Snapshot { revision, map: Map::default() }),
            bytes: AtomicU64::new(0),
            history: Mutex::new(History { events: VecDeque::new(), bytes: 0, next_seq: 1, oldest: revision }),
            newest: channel::Sender::new(0),
        }
    }

    /// Told of every change.
    pub fn changes(&self) -> channel::Receiver<u64> {
        self.newest.subscribe()
    }

    /// How many objects there are, and their bytes as they are served.
    pub fn size(&self) -> (usize, u64) {
        (self.snapshot.load().map.len(), self.bytes.load(Ordering::Relaxed))
    }

    /// Forms in which the objects are held: their names, how many there are, and their bytes.
    pub fn held(&self) -> [(&'static str, u64, u64); 4] {
        let mut forms = [("JSON", 0, 0), ("protobuf", 0, 0), ("table rows", 0, 0), ("history", 0, 0)];
        let mut count = |i: usize, size: usize| {
            forms[i].1 += 1;
            forms[i].2 += size as u64;
        };
        let now = self.snapshot();
        for (_, entry) in now.map.from("") {
            let (message, row) = entry.other_forms();
            count(0, entry.json.len());
            message.into_iter().for_each(|size| count(1, size));
            row.into_iter().for_each(|size| count(2, size));
        }
        self.history.lock().events.iter().for_each(|change| count(3, change.held(now.map.get(&change.key))));
        forms
    }

    /// The objects now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The objects as they were at this revision, if history goes back so far.
    pub fn snapshot_at(&self, revision: u64) -> Option<Snapshot> {
        let history = self.history.lock();
        let now = self.snapshot();
        if now.revision <= revision {
            return Some((*now).clone());
        }
        if revision < history.oldest {
            return None;
        }
        let i = history.events.partition_point(|e| e.revision <= revision);
        match i.checked_sub(1) {
            Some(i) => Some(history.events[i].after.clone()),
            // nothing happened between the start of history and then: undo the first event
            None => {
                let first = history.events.front()?;
                let mut map = first.after.map.clone();
                match &first.previous {
                    Some(previous) => map.insert(first.key.clone(), previous.clone()),
                    None => map.remove(&first.key),
                };
                Some(Snapshot { revision: history.oldest, map })
            }
        }
    }

    /// Changes with every event; see `Reader::version`.
    pub fn version(&self) -> u64 {
        *self.newest.borrow()
    }

    /// The oldest revision a watch may start at.
    pub fn oldest(&self) -> u64 {
        self.history.lock().oldest
    }
}

/// All resources' caches.
///
/// Those of built-in resources are there from the start. Custom resources get one when they are first asked for or met
/// in the store: their keys begin `/registry/GROUP/PLURAL/`, and only their groups have a dot where no built-in's prefix fits.
pub struct Cache {
    resources: HashMap<String, Arc<Resource>>,
    custom: RwLock<HashMap<String, Arc<Resource>>>,
    /// The revision of the last load: whoever comes later has missed nothing since.
    loaded: AtomicU64,
    /// What was before this revision is told to nobody any more.
    compacted: AtomicU64,
    /// What the feed has put in place; 0 until the first load.
    revision: channel::Sender<u64>,
    pub(crate) undecodable: AtomicU64,
}

impl Cache {
    /// A cache for these key prefixes; [`Feed::run`] fills it.
    pub fn new(prefixes: impl IntoIterator<Item = String>) -> Arc<Cache> {
        Arc::new(Cache {
            resources: prefixes.into_iter().map(|p| (p.clone(), Arc::new(Resource::new(p, 0)))).collect(),
            custom: RwLock::default(),
            loaded: AtomicU64::new(0),
            compacted: AtomicU64::new(0),
            revision: channel::Sender::new(0),
            undecodable: AtomicU64::new(0),
        })
    }

    /// The oldest revision of which lists are answered, as far as the store's compaction goes: they end
    /// with the store's history, though the cache may know more.
    pub fn compacted(&self) -> u64 {
        self.compacted.load(Ordering::Relaxed)
    }

    /// The store has forgotten what was before this revision.
    pub fn compact(&self, revision: u64) {
        self.compacted.fetch_max(revision, Ordering::Relaxed);
    }

    /// The cache of the objects under a prefix; `None` for what is not stored.
    pub fn resource(&self, prefix: &str) -> Option<Arc<Resource>> {
        if let Some(resource) = self.resources.get(prefix) {
            return Some(resource.clone());
        }
        if !is_custom(prefix) {
            return None;
        }
        if let Some(resource) = self.custom.read().get(prefix) {
            return Some(resource.clone());
        }
        let mut custom = self.custom.write();
        let made = || Arc::new(Resource::new(prefix.to_string(), self.loaded.load(Ordering::Acquire)));
        Some(custom.entry(prefix.to_string()).or_insert_with(made).clone())
    }

    /// All caches that there are.
    pub fn resources(&self) -> Vec<Arc<Resource>> {
        self.resources.values().chain(self.custom.read().values()).cloned().collect()
    }

    /// Every event up to this revision is in place.
    pub fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Told of every new revision.
    pub fn revisions(&self) -> channel::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Waits until the cache has this revision; false when it takes longer than `patience`.
    pub async fn wait(&self, revision: u64, patience: Duration) -> bool {
        if self.revision() >= revision {
            return true;
        }
        let mut seen = self.revision.subscribe();
        let arrived = tokio::time::timeout(patience, seen.wait_for(|r| *r >= revision)).await;
        matches!(arrived, Ok(Ok(_)))
    }

    /// Stored values that could not be read (another encryption key, damage); they are not served.
    pub fn undecodable(&self) -> u64 {
        self.undecodable.load(Ordering::Relaxed)
    }
}

/// `/registry/stable.example.com/crontabs/`
fn is_custom(prefix: &str) -> bool {
    let mut parts = prefix.strip_prefix("/registry/").unwrap_or_default().split('/');
    let (group, plural, end) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next());
    group.contains('.') && !plural.is_empty() && end == Some("") && parts.next().is_none()
}
