//! The engine for tests: everything in memory, nothing survives. Keeps the same contract.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::watch::{Batch, Feed, History, Source};
use crate::{
    Compare, Error, Event, KeyValue, Op, RangeRequest, RangeResponse, Status, Store, Txn,
    TxnResponse, WatchStream,
};

/// How many revisions are kept; older ones are compacted.
const KEEP: i64 = 20_000;

/// A new, empty store.
pub fn new() -> Arc<dyn Store> {
    let state = State {
        revision: 1,
        compacted: 0,
        keys: BTreeMap::new(),
        log: VecDeque::new(),
        ttl: BTreeMap::new(),
        expiring: false,
    };
    let feed = Arc::new(Feed::new(1, 0));
    Arc::new(Memory {
        shared: Arc::new(Shared {
            state: Mutex::new(state),
            feed,
            sooner: Notify::new(),
        }),
    })
}

struct Memory {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    feed: Arc<Feed>,
    /// Wakes the expiring task: a deadline may have come before the one it waits for.
    sooner: Notify,
}

struct State {
    revision: i64,
    compacted: i64,
    /// Versions of each key, oldest first; `None` is a deletion.
    keys: BTreeMap<Vec<u8>, Vec<(i64, Option<KeyValue>)>>,
    log: VecDeque<Arc<Batch>>,
    /// (deadline, key) → the version that expires.
    ttl: BTreeMap<(Instant, Vec<u8>), i64>,
    /// Whether a task waits for the next deadline.
    expiring: bool,
}

impl State {
    fn at(versions: &[(i64, Option<KeyValue>)], revision: i64) -> Option<&KeyValue> {
        let upto = versions.partition_point(|(r, _)| *r <= revision);
        versions[..upto].last()?.1.as_ref()
    }

    fn latest(&self, key: &[u8]) -> Option<KeyValue> {
        self.keys
            .get(key)
            .and_then(|versions| Self::at(versions, i64::MAX))
            .cloned()
    }

    fn apply(&mut self, txn: &Txn) -> (TxnResponse, Option<Batch>) {
        let current = |Compare { key, .. }: &Compare| self.latest(key);
        let current: Vec<_> = txn.compare.iter().map(current).collect();
        let holds = |(compare, kv): (&Compare, &Option<KeyValue>)| {
            compare.mod_revision == kv.as_ref().map_or(0, |kv| kv.mod_revision)
        };
        if !txn.compare.iter().zip(&current).all(holds) {
            return (
                TxnResponse {
                    revision: self.revision,
                    current,
                    ..TxnResponse::default()
                },
                None,
            );
        }
        let revision = self.revision + 1;
        let (mut events, mut previous) = (Vec::new(), Vec::new());
        for op in &txn.then {
            let prev = self.latest(op.key());
            previous.push(prev.clone());
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
                    self.keys
                        .entry(key.clone())
                        .or_default()
                        .push((revision, Some(kv.clone())));
                    if let Some(seconds) = ttl_seconds {
                        self.ttl.insert(
                            (Instant::now() + Duration::from_secs(*seconds), key.clone()),
                            revision,
                        );
                    }
                    events.push(Event::Put { kv, prev });
                }
                Op::Delete { key } if prev.is_some() => {
                    self.keys
                        .entry(key.clone())
                        .or_default()
                        .push((revision, None));
                    events.push(Event::Delete {
                        key: key.clone(),
                        revision,
                        prev,
                    });
                }
                Op::Delete { .. } => {}
            }
        }
        if events.is_empty() {
            return (
                TxnResponse {
                    succeeded: true,
                    revision: self.revision,
                    previous,
                    ..Default::default()
                },
                None,
            );
        }
        self.revision = revision;
        let response = TxnResponse {
            succeeded: true,
            revision,
            previous,
            ..Default::default()
        };
        (response, Some(Batch { revision, events }))
    }

    fn compact(&mut self, revision: i64) {
        self.compacted = revision;
        self.keys.retain(|_, versions| {
            let upto = versions.partition_point(|(r, _)| *r <= revision);
            let keep_last = upto > 0 && versions[upto - 1].1.is_some();
            versions.drain(..upto - usize::from(keep_last));
            !versions.is_empty()
        });
        while self
            .log
            .front()
            .is_some_and(|batch| batch.revision <= revision)
        {
            self.log.pop_front();
        }
    }
}

impl Shared {
    fn txn(&self, txn: &Txn) -> Result<TxnResponse, Error> {
        txn.check()?;
        let mut state = self.state.lock();
        let (response, batch) = state.apply(txn);
        if let Some(batch) = batch {
            state.log.push_back(Arc::new(Batch {
                revision: batch.revision,
                events: batch.events.clone(),
            }));
            if state.log.len() as i64 > 2 * KEEP {
                let keep = state.revision - KEEP;
                state.compact(keep);
            }
            // Published under the lock: revisions must reach the feed in order.
            self.feed.publish([batch]);
        }
        Ok(response)
    }

    /// Deletes what has expired; the next deadline, if any.
    fn expire(&self) -> Option<Instant> {
        loop {
            let (key, revision) = {
                let mut state = self.state.lock();
                let Some(entry) = state.ttl.first_entry() else {
                    state.expiring = false;
                    return None;
                };
                if entry.key().0 > Instant::now() {
                    return Some(entry.key().0);
                }
                let ((_, key), revision) = entry.remove_entry();
                (key, revision)
            };
            // Fails if the key has been put again, and then there is nothing to do.
            let _ = self.txn(&Txn::delete(key.clone()).when(key, revision));
        }
    }
}

#[async_trait::async_trait]
impl Source for Shared {
    async fn history(&self, from: i64) -> Result<History, Error> {
        let state = self.state.lock();
        if from <= state.compacted {
            return Err(Error::Compacted {
                revision: state.compacted,
            });
        }
        let skip = state.log.partition_point(|batch| batch.revision < from);
        let batches: Vec<_> = state.log.iter().skip(skip).take(256).cloned().collect();
        let through = batches
            .last()
            .map_or(state.revision, |batch| batch.revision);
        Ok(History { batches, through })
    }
}

#[async_trait::async_trait]
impl Store for Memory {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        let state = self.shared.state.lock();
        let revision = if request.revision <= 0 {
            state.revision
        } else {
            request.revision
        };
        if revision > state.revision {
            return Err(Error::Future {
                requested: revision,
                current: state.revision,
            });
        }
        if revision < state.compacted {
            return Err(Error::Compacted {
                revision: state.compacted,
            });
        }
        let mut response = RangeResponse {
            revision: state.revision,
            ..Default::default()
        };
        let mut add = |kv: &KeyValue| {
            response.count += 1;
            let full = request.limit > 0 && response.kvs.len() >= request.limit;
            if !request.count_only && !full {
                response.kvs.push(kv.clone());
            }
        };
        match &request.end {
            None => {
                if let Some(kv) = state
                    .keys
                    .get(&request.key)
                    .and_then(|v| State::at(v, revision))
                {
                    add(kv);
                }
            }
            Some(end) if *end > request.key => {
                state
                    .keys
                    .range(request.key.clone()..end.clone())
                    .filter_map(|(_, v)| State::at(v, revision))
                    .for_each(&mut add);
            }
            Some(_) => {}
        }
        response.more = !request.count_only && response.count > response.kvs.len();
        Ok(response)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error> {
        let response = self.shared.txn(&txn)?;
        if txn.then.iter().any(|op| {
            matches!(
                op,
                Op::Put {
                    ttl_seconds: Some(_),
                    ..
                }
            )
        }) {
            self.shared.sooner.notify_one();
            if !std::mem::replace(&mut self.shared.state.lock().expiring, true) {
                // Ends when nothing is left to expire.
                let shared = self.shared.clone();
                tokio::spawn(async move {
                    while let Some(deadline) = shared.expire() {
                        let _ = tokio::time::timeout_at(deadline, shared.sooner.notified()).await;
                    }
                });
            }
        }
        Ok(response)
    }

    async fn watch(&self, prefix: &[u8], from_revision: i64) -> Result<WatchStream, Error> {
        let state = self.shared.state.lock();
        let next = if from_revision <= 0 {
            state.revision + 1
        } else {
            from_revision
        };
        if next <= state.compacted {
            return Err(Error::Compacted {
                revision: state.compacted,
            });
        }
        Ok(self.shared.feed.watch(self.shared.clone(), prefix, next))
    }

    async fn compact(&self, revision: i64) -> Result<(), Error> {
        let mut state = self.shared.state.lock();
        if revision > state.revision {
            return Err(Error::Future {
                requested: revision,
                current: state.revision,
            });
        }
        if revision <= state.compacted {
            return Err(Error::Compacted {
                revision: state.compacted,
            });
        }
        state.compact(revision);
        Ok(())
    }

    async fn revision(&self) -> Result<i64, Error> {
        Ok(self.shared.state.lock().revision)
    }

    async fn status(&self) -> Result<Status, Error> {
        let state = self.shared.state.lock();
        let values = state
            .keys
            .values()
            .flatten()
            .filter_map(|(_, kv)| kv.as_ref());
        Ok(Status {
            engine: "memory",
            revision: state.revision,
            compacted: state.compacted,
            size_bytes: values
                .map(|kv| (kv.key.len() + kv.value.len()) as u64)
                .sum(),
            error: None,
            full: false,
        })
    }

    async fn close(&self) {
        self.shared.feed.close();
    }
}
