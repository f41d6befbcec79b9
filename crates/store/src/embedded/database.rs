//! The open database: reads at a revision, the history, and batches of writes. Synchronous.

use std::path::Path;
use std::sync::Arc;

use fjall::{Database as Fjall, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};

use super::Options;
use super::layout::{self, COMPACTED, REVISION};
use crate::watch::Batch;
use crate::{Event, KeyValue, RangeRequest, RangeResponse};

/// Changes that are read from the history at once.
const HISTORY_BYTES: usize = 1 << 20;
const HISTORY_REVISIONS: usize = 512;

/// A read or write of the database failed.
#[derive(Debug)]
pub struct Failed(pub fjall::Error);

impl From<fjall::Error> for Failed {
    fn from(error: fjall::Error) -> Self {
        Self(error)
    }
}

impl Failed {
    /// Whether the cause is that the disk is full.
    pub fn no_space(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&self.0);
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<std::io::Error>() {
                use std::io::ErrorKind::{QuotaExceeded, StorageFull};
                return matches!(io.kind(), StorageFull | QuotaExceeded);
            }
            cause = error.source();
        }
        false
    }

    /// Whether a write in the background failed before, which is known only from then on.
    pub fn background(&self) -> bool {
        matches!(self.0, fjall::Error::Poisoned)
    }

    /// The cause in words.
    pub fn message(&self) -> String {
        if self.background() {
            "a write in the background failed".to_owned()
        } else {
            self.0.to_string()
        }
    }
}

/// What a batch writes.
#[derive(Default)]
pub struct Writes {
    pub put: Vec<(Vec<u8>, Vec<u8>)>,
    pub remove: Vec<Vec<u8>>,
}

impl Writes {
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.remove.is_empty()
    }
}

/// An open database.
pub struct Database {
    fjall: Fjall,
    data: Keyspace,
}

impl Database {
    /// Opens or creates it.
    pub fn open(path: &Path, options: &Options) -> Result<Self, Failed> {
        let fjall = Fjall::builder(path)
            .cache_size(options.cache_bytes)
            .worker_threads(1)
            .max_cached_files(Some(64))
            .max_journaling_size(64 << 20)
            .manual_journal_persist(true)
            .open()?;
        let settings = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(options.memtable_bytes)
                .manual_journal_persist(true)
        };
        let data = fjall.keyspace("data", settings)?;
        Ok(Self { fjall, data })
    }

    /// Writes a batch, durably.
    pub fn write(&self, writes: Writes) -> Result<(), Failed> {
        self.commit(writes, Some(PersistMode::SyncData))
    }

    /// Writes versions from elsewhere, with their revisions as they were there, straight into tables, durably. They come
    /// by their keys, and there is nothing yet.
    pub fn ingest<E>(&self, versions: impl Iterator<Item = Result<KeyValue, E>>, failed: impl Fn(Failed) -> E) -> Result<(), E> {
        let failed = |error: fjall::Error| failed(Failed(error));
        let mut tables = self.data.start_ingestion().map_err(failed)?;
        for kv in versions {
            let kv = kv?;
            tables.write(layout::version_key(&kv.key, kv.mod_revision), layout::version_value(&kv)).map_err(failed)?;
        }
        tables.finish().map_err(failed)
    }

    /// Writes deadlines: when, of which key, at which revision.
    pub fn deadlines_of(&self, some: &[(i64, Vec<u8>, i64)]) -> Result<(), Failed> {
        let put = some.iter().map(|(deadline, key, revision)| (layout::ttl_key(*deadline, key), revision.to_be_bytes().to_vec())).collect();
        self.write(Writes { put, remove: Vec::new() })
    }

    /// Makes `revision` the present one, before which nothing is known.
    pub fn begin_at(&self, revision: i64) -> Result<(), Failed> {
        let number = revision.to_be_bytes().to_vec();
        let put = vec![(REVISION.to_vec(), number.clone()), (layout::COMPACTED.to_vec(), number)];
        self.write(Writes { put, remove: Vec::new() })
    }

    /// Writes a batch that becomes durable with the next one.
    pub fn write_later(&self, writes: Writes) -> Result<(), Failed> {
        self.commit(writes, None)
    }

    fn commit(&self, writes: Writes, durability: Option<PersistMode>) -> Result<(), Failed> {
        let mut batch = self.fjall.batch().durability(durability);
        for (key, value) in writes.put {
            batch.insert(&self.data, key, value);
        }
        for key in writes.remove {
            batch.remove(&self.data, key);
        }
        Ok(batch.commit()?)
    }

    /// A stored number, 0 if there is none.
    fn number(&self, key: &[u8]) -> Result<i64, Failed> {
        Ok(self
            .data
            .get(key)?
            .and_then(|value| layout::parse_number(&value))
            .unwrap_or(0))
    }

    /// The last revision.
    pub fn revision(&self) -> Result<i64, Failed> {
        self.number(REVISION)
    }

    /// The compacted revision.
    pub fn compacted(&self) -> Result<i64, Failed> {
        self.number(COMPACTED)
    }

    /// The latest version of a key.
    pub fn latest(&self, key: &[u8]) -> Result<Option<KeyValue>, Failed> {
        at(&self.fjall.snapshot(), &self.data, key, i64::MAX)
    }

    /// The version of a key at a revision, if there is one and it is no deletion.
    pub fn version(&self, key: &[u8], revision: i64) -> Result<Option<KeyValue>, Failed> {
        let value = self.data.get(layout::version_key(key, revision))?;
        Ok(value.and_then(|value| layout::parse_version(key, revision, &value)))
    }

    /// A consistent view.
    pub fn view(&self) -> View<'_> {
        View {
            snapshot: self.fjall.snapshot(),
            data: &self.data,
        }
    }
}

fn at(
    snapshot: &Snapshot,
    data: &Keyspace,
    key: &[u8],
    revision: i64,
) -> Result<Option<KeyValue>, Failed> {
    let range = layout::version_key(key, 0)..=layout::version_key(key, revision);
    let Some(found) = snapshot.range(data, range).next_back() else {
        return Ok(None);
    };
    let (found, value) = found.into_inner()?;
    Ok(layout::parse_version_key(&found)
        .and_then(|(key, revision)| layout::parse_version(&key, revision, &value)))
}

/// The database at one moment.
pub struct View<'a> {
    snapshot: Snapshot,
    data: &'a Keyspace,
}

impl View<'_> {
    /// Reads a range at a revision that is not compacted; `revision` and `more` are left to the caller.
    pub fn range(&self, request: &RangeRequest, revision: i64) -> Result<RangeResponse, Failed> {
        let mut response = RangeResponse::default();
        let mut add = |kv: KeyValue| {
            response.count += 1;
            let full = request.limit > 0 && response.kvs.len() >= request.limit;
            if !request.count_only && !full {
                response.kvs.push(kv);
            }
        };
        let Some(end) = &request.end else {
            at(&self.snapshot, self.data, &request.key, revision)?
                .into_iter()
                .for_each(add);
            return Ok(response);
        };
        if *end <= request.key {
            return Ok(response);
        }
        let range = layout::version_bound(&request.key)..layout::version_bound(end);
        // One more tells that there is more.
        let enough = |found| request.uncounted && request.limit > 0 && found > request.limit;
        let mut found = 0;
        // The newest version so far of the key that is being passed.
        let mut newest: Option<(Vec<u8>, i64, fjall::Slice)> = None;
        for item in self.snapshot.range(self.data, range) {
            let (key, value) = item.into_inner()?;
            let Some((key, version)) = layout::parse_version_key(&key) else {
                continue;
            };
            if version > revision {
                continue;
            }
            if let Some((passed, version, value)) = newest.take_if(|(passed, ..)| *passed != key)
                && let Some(kv) = layout::parse_version(&passed, version, &value)
            {
                found += 1;
                add(kv);
                if enough(found) {
                    return Ok(response);
                }
            }
            newest = Some((key, version, value));
        }
        if let Some((key, version, value)) = newest
            && let Some(kv) = layout::parse_version(&key, version, &value)
        {
            add(kv);
        }
        Ok(response)
    }

    fn version(&self, key: &[u8], revision: i64) -> Result<Option<KeyValue>, Failed> {
        let value = self
            .snapshot
            .get(self.data, layout::version_key(key, revision))?;
        Ok(value.and_then(|value| layout::parse_version(key, revision, &value)))
    }

    /// The changes of revisions `from..=to`, or fewer if they are large; and the last revision covered.
    pub fn history(&self, from: i64, to: i64) -> Result<(Vec<Arc<Batch>>, i64), Failed> {
        let mut batches: Vec<Batch> = Vec::new();
        let mut bytes = 0;
        for item in self.snapshot.range(
            self.data,
            layout::log_key(from, 0)..=layout::log_key(to, u32::MAX),
        ) {
            let (key, value) = item.into_inner()?;
            let (Some(revision), Some((previous, key))) =
                (layout::parse_log_key(&key), layout::parse_log_value(&value))
            else {
                continue;
            };
            if batches
                .last()
                .is_none_or(|batch| batch.revision != revision)
            {
                if bytes > HISTORY_BYTES || batches.len() >= HISTORY_REVISIONS {
                    let last = batches.last().map_or(to, |batch| batch.revision);
                    return Ok((batches.into_iter().map(Arc::new).collect(), last));
                }
                batches.push(Batch {
                    revision,
                    events: Vec::new(),
                });
            }
            let prev = if previous > 0 {
                self.version(key, previous)?
            } else {
                None
            };
            let event = match self.version(key, revision)? {
                Some(kv) => Event::Put { kv, prev },
                None => Event::Delete {
                    key: key.to_vec(),
                    revision,
                    prev,
                },
            };
            bytes += event.size();
            batches.last_mut().expect("just pushed").events.push(event);
        }
        Ok((batches.into_iter().map(Arc::new).collect(), to))
    }

    /// What can be removed for the changes of revisions `from..=to`, at most `limit` of them; and the
    /// last revision that is then done with.
    pub fn garbage(&self, from: i64, to: i64, limit: usize) -> Result<(Vec<Vec<u8>>, i64), Failed> {
        let mut remove = Vec::new();
        let (mut last, mut seen) = (from - 1, 0);
        for item in self.snapshot.range(
            self.data,
            layout::log_key(from, 0)..=layout::log_key(to, u32::MAX),
        ) {
            let (log_key, value) = item.into_inner()?;
            let (Some(revision), Some((previous, key))) = (
                layout::parse_log_key(&log_key),
                layout::parse_log_value(&value),
            ) else {
                continue;
            };
            if seen >= limit && revision != last {
                return Ok((remove, last));
            }
            (last, seen) = (revision, seen + 1);
            if previous > 0 {
                remove.push(layout::version_key(key, previous));
            }
            let version = layout::version_key(key, revision);
            if self
                .snapshot
                .get(self.data, &version)?
                .is_some_and(|value| layout::is_tombstone(&value))
            {
                remove.push(version);
            }
            remove.push(log_key.to_vec());
        }
        Ok((remove, to))
    }

    /// Deadlines from `from` on: deadline, key, revision.
    pub fn deadlines(&self, from: i64, limit: usize) -> Result<Vec<(i64, Vec<u8>, i64)>, Failed> {
        let mut found = Vec::new();
        for item in self
            .snapshot
            .range(self.data, layout::ttl_key(from, b"")..b"u".to_vec())
            .take(limit)
        {
            let (key, value) = item.into_inner()?;
            if let (Some((deadline, key)), Some(revision)) =
                (layout::parse_ttl_key(&key), layout::parse_number(&value))
            {
                found.push((deadline, key.to_vec(), revision));
            }
        }
        Ok(found)
    }

    /// All entries that the changes of revisions `from..=to` wrote, to write them once more.
    pub fn rewrite(&self, from: i64, to: i64) -> Result<Writes, Failed> {
        let mut writes = Writes::default();
        for item in self.snapshot.range(
            self.data,
            layout::log_key(from, 0)..=layout::log_key(to, u32::MAX),
        ) {
            let (log_key, log) = item.into_inner()?;
            let (Some(revision), Some((_, key))) = (
                layout::parse_log_key(&log_key),
                layout::parse_log_value(&log),
            ) else {
                continue;
            };
            let version = layout::version_key(key, revision);
            if let Some(value) = self.snapshot.get(self.data, &version)? {
                writes.put.push((version, value.to_vec()));
            }
            writes.put.push((log_key.to_vec(), log.to_vec()));
        }
        Ok(writes)
    }
}
