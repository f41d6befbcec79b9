//! Watches: recent changes in memory, older ones from the engine, at each watcher's own pace.
//!
//! Nothing is buffered for a watcher: it remembers the next revision it wants and pulls. So a slow
//! watcher costs no memory, and a gap or a repeat cannot come from an overflowing queue.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{Error, Event, WatchEvent};

/// A running watch.
pub struct WatchStream(Box<dyn Watcher>);

/// What an engine implements behind a [`WatchStream`].
#[async_trait::async_trait]
pub trait Watcher: Send {
    /// See [`WatchStream::next`].
    async fn next(&mut self) -> Option<Result<WatchEvent, Error>>;
}

impl WatchStream {
    /// Wraps an engine's watcher.
    pub fn new(watcher: Box<dyn Watcher>) -> Self {
        Self(watcher)
    }

    /// The next item; `None` when the store was closed. Cancel safe. After an [`Error::Compacted`]
    /// the watch is of no more use; after another error it may be polled again.
    pub async fn next(&mut self) -> Option<Result<WatchEvent, Error>> {
        self.0.next().await
    }
}

/// The changes of one revision.
#[derive(Debug)]
pub(crate) struct Batch {
    pub revision: i64,
    pub events: Vec<Event>,
}

/// Changes from an engine's history.
pub(crate) struct History {
    /// In order of revision.
    pub batches: Vec<Arc<Batch>>,
    /// All revisions up to this one are covered.
    pub through: i64,
}

/// Where changes come from that the feed no longer holds.
#[async_trait::async_trait]
pub(crate) trait Source: Send + Sync {
    /// Changes from `from` on: at least one revision, and as many as are cheap to hold.
    async fn history(&self, from: i64) -> Result<History, Error>;
}

/// The recent changes, and the revision that has been published.
pub(crate) struct Feed {
    ring: Mutex<Ring>,
    published: watch::Sender<i64>,
    limit_bytes: usize,
}

struct Ring {
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
    /// Changes up to this revision are not kept, also if they come later.
    forgotten: i64,
    closed: bool,
}

/// How many revisions a watcher takes at once.
const CHUNK: usize = 256;

impl Feed {
    /// A feed whose last revision is `revision`, and which keeps about `limit_bytes` of changes.
    pub fn new(revision: i64, limit_bytes: usize) -> Self {
        let ring = Ring {
            batches: VecDeque::new(),
            bytes: 0,
            forgotten: 0,
            closed: false,
        };
        Self {
            ring: Mutex::new(ring),
            published: watch::Sender::new(revision),
            limit_bytes,
        }
    }

    /// The last published revision.
    pub fn revision(&self) -> i64 {
        *self.published.borrow()
    }

    /// Makes changes visible to watchers. They must follow the last published revision.
    pub fn publish(&self, batches: impl IntoIterator<Item = Batch>) {
        let mut ring = self.ring.lock();
        let mut last = None;
        for batch in batches {
            last = Some(batch.revision);
            ring.bytes += size(&batch);
            ring.batches.push_back(Arc::new(batch));
        }
        while (ring.bytes > self.limit_bytes || ring.batches.front().is_some_and(|b| b.revision <= ring.forgotten))
            && let Some(batch) = ring.batches.pop_front()
        {
            ring.bytes -= size(&batch);
        }
        drop(ring);
        if let Some(last) = last {
            self.published.send_replace(last);
        }
    }

    /// Moves to `revision` without its changes: watchers will read them from the engine.
    pub fn skip_to(&self, revision: i64) {
        let mut ring = self.ring.lock();
        ring.batches.clear();
        ring.bytes = 0;
        drop(ring);
        self.published.send_replace(revision);
    }

    /// Forgets changes up to `revision`.
    pub fn forget(&self, revision: i64) {
        let mut ring = self.ring.lock();
        ring.forgotten = ring.forgotten.max(revision);
        while ring
            .batches
            .front()
            .is_some_and(|batch| batch.revision <= revision)
        {
            let batch = ring.batches.pop_front().expect("just seen");
            ring.bytes -= size(&batch);
        }
    }

    /// Ends all watches.
    pub fn close(&self) {
        self.ring.lock().closed = true;
        self.published.send_modify(|_| {});
    }

    /// The changes from `from` on, if the feed still holds all of them.
    fn recent(&self, from: i64) -> Option<History> {
        let ring = self.ring.lock();
        let first = ring.batches.front()?.revision;
        let skip = usize::try_from(from - first).ok()?;
        let batches: Vec<_> = ring
            .batches
            .iter()
            .skip(skip)
            .take(CHUNK)
            .cloned()
            .collect();
        let through = batches.last()?.revision;
        Some(History { batches, through })
    }

    /// Watches from `next` on.
    pub fn watch(
        self: &Arc<Self>,
        source: Arc<dyn Source>,
        prefix: &[u8],
        next: i64,
    ) -> WatchStream {
        let published = self.published.subscribe();
        let ready = VecDeque::new();
        WatchStream::new(Box::new(Pull {
            feed: self.clone(),
            source,
            published,
            prefix: prefix.to_vec(),
            next,
            ready,
        }))
    }
}

fn size(batch: &Batch) -> usize {
    64 + batch.events.iter().map(Event::size).sum::<usize>()
}

struct Pull {
    feed: Arc<Feed>,
    source: Arc<dyn Source>,
    published: watch::Receiver<i64>,
    prefix: Vec<u8>,
    next: i64,
    ready: VecDeque<WatchEvent>,
}

#[async_trait::async_trait]
impl Watcher for Pull {
    async fn next(&mut self) -> Option<Result<WatchEvent, Error>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.feed.ring.lock().closed {
                return None;
            }
            if *self.published.borrow_and_update() < self.next {
                self.published.changed().await.ok()?;
                continue;
            }
            let history = match self.feed.recent(self.next) {
                Some(history) => history,
                None => match self.source.history(self.next).await {
                    Ok(history) => history,
                    Err(error) => return Some(Err(error)),
                },
            };
            for batch in &history.batches {
                let matching = |event: &&Event| event.key().starts_with(&self.prefix);
                let events: Vec<_> = batch.events.iter().filter(matching).cloned().collect();
                if !events.is_empty() && batch.revision >= self.next {
                    self.ready.push_back(WatchEvent::Events {
                        revision: batch.revision,
                        events,
                    });
                }
            }
            self.next = history.through + 1;
            if self.ready.is_empty() {
                return Some(Ok(WatchEvent::Progress {
                    revision: history.through,
                }));
            }
        }
    }
}
