//! Fills the cache: one consistent read of everything, then one watch of everything, for ever.
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::FutureExt;
use store::{Event, RangeRequest, Store, WatchEvent};

use super::watch::Change;
use super::{Cache, Entry, MAX_EVENT_BYTES, MAX_EVENTS, Resource, Snapshot};
use crate::stored;

/// Events whose revisions are published at once, at most.
const AT_ONCE: usize = 256;

/// Why the cache could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    #[error("reading the store failed")]
    Store(#[from] store::Error),
}

/// Decrypts a stored value: (key, value) → plain bytes, or what is wrong with it.
pub type Open = Arc<dyn Fn(&[u8], &Bytes) -> Result<Bytes, String> + Send + Sync>;

/// The task between store and cache.
pub struct Feed {
    pub cache: Arc<Cache>,
    pub store: Arc<dyn Store>,
    pub open: Open,
}

impl Feed {
    /// Loads everything. Afterwards the cache serves, and [`Feed::run`] keeps it current.
    pub async fn load(&self) -> Result<i64, FeedError> {
        let all = self.store.range(RangeRequest::prefix("/registry/")).await?;
        self.cache.loaded.store(all.revision as u64, Ordering::Release);
        let mut maps: std::collections::HashMap<String, Vec<_>> = Default::default();
        for kv in &all.kvs {
            let Some((resource, key)) = self.place(&kv.key) else { continue };
            let Some(entry) = self.entry(&kv.key, &kv.value, kv.mod_revision) else { continue };
            match maps.get_mut(resource.prefix.as_str()) {
                Some(map) => map.push((Arc::from(key), entry)),
                None => drop(maps.insert(resource.prefix.clone(), vec![(Arc::from(key), entry)])),
            }
        }
        let revision = all.revision as u64;
        for resource in self.cache.resources() {
            let objects = maps.remove(resource.prefix.as_str()).unwrap_or_default();
            let bytes = objects.iter().map(|(_, entry): &(_, Arc<Entry>)| entry.json.len() as u64).sum();
            let map = objects.into_iter().collect();
            let mut history = resource.history.lock();
            history.events.clear();
            history.bytes = 0;
            history.oldest = revision;
            // watchers from before a reload must list again: their position is gone
            history.next_seq += 1;
            let newest = history.next_seq - 1;
            resource.snapshot.store(Arc::new(Snapshot { revision, map }));
            resource.bytes.store(bytes, Ordering::Relaxed);
            drop(history);
            resource.newest.send_replace(newest);
        }
        self.cache.revision.send_replace(revision);
        Ok(all.revision)
    }

    /// Follows the store from after `revision` until the store is closed.
    pub async fn run(&self, mut revision: i64) {
        loop {
            match self.follow(&mut revision).await {
                Ok(()) => return,
                Err(store::Error::Closed) => return,
                Err(error) => {
                    tracing::warn!(%error, "the watch of the store broke; reading everything again");
                    loop {
                        match self.load().await {
                            Ok(at) => {
                                revision = at;
                                break;
                            }
                            Err(FeedError::Store(store::Error::Closed)) => return,
                            Err(error) => {
                                tracing::error!(%error, "the store cannot be read; trying again");
                                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                            }
                        }
                    }
                }
            }
        }
    }

    async fn follow(&self, revision: &mut i64) -> Result<(), store::Error> {
        let mut stream = self.store.watch(b"/registry/", *revision + 1).await?;
        while let Some(item) = stream.next().await {
            // What was committed together is published together: whoever waits is woken once.
            let (mut next, mut taken) = (Some(item), 0);
            while let Some(item) = next {
                *revision = match item? {
                    WatchEvent::Events { revision, events } => {
                        for event in events {
                            self.apply(event);
                        }
                        revision
                    }
                    WatchEvent::Progress { revision } => revision,
                };
                taken += 1;
                next = if taken < AT_ONCE { stream.next().now_or_never().flatten() } else { None };
            }
            let at = *revision as u64;
            self.cache.revision.send_if_modified(|r| at > std::mem::replace(r, at));
        }
        Ok(())
    }

    fn apply(&self, event: Event) {
        let Some((resource, key)) = self.place(event.key()) else { return };
        let key: Arc<str> = Arc::from(key);
        let (revision, entry) = match &event {
            Event::Put { kv, .. } => (kv.mod_revision as u64, self.entry(&kv.key, &kv.value, kv.mod_revision)),
            Event::Delete { revision, .. } => (*revision as u64, None),
        };
        resource.append(key, revision, entry);
    }

    fn entry(&self, key: &[u8], value: &Bytes, revision: i64) -> Option<Arc<Entry>> {
        let fail = |why: &str| {
            self.cache.undecodable.fetch_add(1, Ordering::Relaxed);
            tracing::error!(key = %String::from_utf8_lossy(key), why, "a stored object cannot be read and is not served");
        };
        match (self.open)(key, value) {
            Ok(plain) => match stored::json(&plain) {
                Ok(json) => Some(Arc::new(Entry::new(&json, revision as u64))),
                Err(why) => {
                    fail(&why);
                    None
                }
            },
            Err(why) => {
                fail(&why);
                None
            }
        }
    }

    /// `/registry/pods/default/a` → the pods' cache and `default/a`; group resources have one or two parts more.
    fn place<'a>(&self, key: &'a [u8]) -> Option<(Arc<Resource>, &'a str)> {
        let key = std::str::from_utf8(key).ok()?;
        let mut end = "/registry/".len();
        for _ in 0..3 {
            end += key.get(end..)?.find('/')? + 1;
            if let Some(resource) = self.cache.resource(&key[..end]) {
                return Some((resource, &key[end..]));
            }
        }
        None
    }
}

impl Resource {
    fn append(&self, key: Arc<str>, revision: u64, entry: Option<Arc<Entry>>) {
        let mut history = self.history.lock();
        let now = self.snapshot.load();
        let mut map = now.map.clone();
        let previous = match &entry {
            Some(entry) => map.insert(key.clone(), entry.clone()),
            None => map.remove(&key),
        };
        if entry.is_none() && previous.is_none() {
            return;
        }
        let size = |e: &Option<Arc<Entry>>| e.as_ref().map_or(0, |e| e.json.len() as u64);
        // only this thread writes it
        let bytes = (self.bytes.load(Ordering::Relaxed) + size(&entry)).saturating_sub(size(&previous));
        self.bytes.store(bytes, Ordering::Relaxed);
        let after = Snapshot { revision, map };
        let seq = history.next_seq;
        history.next_seq += 1;
        history.bytes += entry.as_ref().or(previous.as_ref()).map_or(0, |e| e.json.len());
        history.events.push_back(Arc::new(Change::new(seq, revision, key, entry, previous, after.clone())));
        while history.events.len() > MAX_EVENTS || history.bytes > MAX_EVENT_BYTES && history.events.len() > 100 {
            // a revision leaves as a whole: a watch cannot start inside of one
            let Some(gone) = history.events.pop_front() else { break };
            history.bytes -= gone.bytes();
            history.oldest = gone.revision;
        }
        self.snapshot.store(Arc::new(after));
        drop(history);
        self.newest.send_replace(seq);
    }
}
