//! Requests, responses and events.

use bytes::Bytes;

/// One version of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Bytes,
    /// The revision at which the key came into being (anew, if it had been deleted).
    pub create_revision: i64,
    /// The revision of this version.
    pub mod_revision: i64,
    /// How many times the key was put since it was created: 1 for a new key.
    pub version: i64,
}

/// What to read.
#[derive(Debug, Clone, Default)]
pub struct RangeRequest {
    /// The first key.
    pub key: Vec<u8>,
    /// The end, exclusive; `None` reads the single key. See [`prefix_end`].
    pub end: Option<Vec<u8>>,
    /// The revision to read at; 0 is the latest.
    pub revision: i64,
    /// At most this many keys; 0 is no limit.
    pub limit: usize,
    /// Return [`RangeResponse::count`] only.
    pub count_only: bool,
    /// With a limit: the count need not be right, so that what is beyond the limit need not be read.
    pub uncounted: bool,
}

impl RangeRequest {
    /// Reads one key at the latest revision.
    pub fn key(key: impl Into<Vec<u8>>) -> Self {
        Self {
            key: key.into(),
            ..Self::default()
        }
    }

    /// Reads all keys that start with `prefix`, at the latest revision.
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let key = prefix.into();
        Self {
            end: Some(prefix_end(&key)),
            key,
            ..Self::default()
        }
    }

    /// Reads at `revision`.
    pub fn at(mut self, revision: i64) -> Self {
        self.revision = revision;
        self
    }

    /// Reads the page of `limit` keys that begins with `key`, of a range that may be long.
    pub fn page(key: impl Into<Vec<u8>>, end: impl Into<Vec<u8>>, limit: usize) -> Self {
        Self {
            key: key.into(),
            end: Some(end.into()),
            limit,
            uncounted: true,
            ..Self::default()
        }
    }

    /// Reads at most `limit` keys.
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }
}

/// The key after all keys that start with `prefix`. For the empty prefix and one of 0xff bytes only,
/// it is a key of many 0xff bytes, which no key in use exceeds.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0xff; 32]
}

/// What a range found.
#[derive(Debug, Clone, Default)]
pub struct RangeResponse {
    /// The store's revision when the range was read (not the older one that was asked for).
    pub revision: i64,
    /// The keys found, in order.
    pub kvs: Vec<KeyValue>,
    /// Whether the limit left keys out.
    pub more: bool,
    /// The number of keys in the range, beyond the limit too.
    pub count: usize,
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Vec<u8>,
    /// The version it must have; 0: it must be absent.
    pub mod_revision: i64,
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a key.
    Put {
        /// The key.
        key: Vec<u8>,
        /// The value.
        value: Bytes,
        /// Delete the key after this many seconds, unless it is put again.
        ttl_seconds: Option<u64>,
    },
    /// Deletes a key; nothing happens if it is absent.
    Delete {
        /// The key.
        key: Vec<u8>,
    },
}

impl Op {
    /// The key that is changed.
    pub fn key(&self) -> &[u8] {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }

    pub(crate) fn size(&self) -> usize {
        match self {
            Op::Put { key, value, .. } => key.len() + value.len(),
            Op::Delete { key } => key.len(),
        }
    }
}

/// Conditions, and the changes to make when all of them hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions.
    pub compare: Vec<Compare>,
    /// The changes; each key at most once.
    pub then: Vec<Op>,
}

impl Txn {
    /// Puts a key without any condition.
    pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Bytes>) -> Self {
        Self {
            then: vec![Op::Put {
                key: key.into(),
                value: value.into(),
                ttl_seconds: None,
            }],
            ..Self::default()
        }
    }

    /// Deletes a key without any condition.
    pub fn delete(key: impl Into<Vec<u8>>) -> Self {
        Self {
            then: vec![Op::Delete { key: key.into() }],
            ..Self::default()
        }
    }

    /// Adds the condition that `key` is at `mod_revision` (0: absent).
    pub fn when(mut self, key: impl Into<Vec<u8>>, mod_revision: i64) -> Self {
        self.compare.push(Compare {
            key: key.into(),
            mod_revision,
        });
        self
    }

    pub(crate) fn check(&self) -> Result<(), crate::Error> {
        let size: usize = self.then.iter().map(Op::size).sum();
        if size > crate::MAX_TXN_BYTES {
            return Err(crate::Error::TooLarge {
                size,
                limit: crate::MAX_TXN_BYTES,
            });
        }
        let mut keys: Vec<&[u8]> = self.then.iter().map(Op::key).collect();
        keys.sort_unstable();
        if keys.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(crate::Error::Invalid("duplicate key given in txn request"));
        }
        let compared = self.compare.iter().map(|c| c.key.as_slice());
        if keys.into_iter().chain(compared).any(<[u8]>::is_empty) {
            return Err(crate::Error::Invalid("key is not provided"));
        }
        if self
            .then
            .iter()
            .any(|op| op.key().len() > u16::MAX as usize - 64)
        {
            return Err(crate::Error::Invalid("key is longer than 65471 bytes"));
        }
        Ok(())
    }
}

/// What a transaction did.
#[derive(Debug, Clone, Default)]
pub struct TxnResponse {
    /// Whether all conditions held.
    pub succeeded: bool,
    /// The revision of the changes; if nothing changed, the store's revision.
    pub revision: i64,
    /// When it did not succeed: the compared keys as they are, in the order of the conditions.
    pub current: Vec<Option<KeyValue>>,
    /// When it succeeded: what each operation replaced or deleted, in the order of the operations.
    pub previous: Vec<Option<KeyValue>>,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key was written.
    Put {
        /// The new version.
        kv: KeyValue,
        /// The version it replaced; `None` if the key was created.
        prev: Option<KeyValue>,
    },
    /// The key was deleted, or its time to live passed.
    Delete {
        /// The key.
        key: Vec<u8>,
        /// The revision of the deletion.
        revision: i64,
        /// The last version.
        prev: Option<KeyValue>,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &[u8] {
        match self {
            Event::Put { kv, .. } => &kv.key,
            Event::Delete { key, .. } => key,
        }
    }

    pub(crate) fn size(&self) -> usize {
        let kv = |kv: &KeyValue| kv.key.len() + kv.value.len() + size_of::<KeyValue>();
        match self {
            Event::Put { kv: new, prev } => kv(new) + prev.as_ref().map_or(0, kv),
            Event::Delete { key, prev, .. } => key.len() + prev.as_ref().map_or(0, kv),
        }
    }
}

/// What a watch yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// All changes of one revision that match the prefix, in the order of the transaction.
    Events {
        /// The revision.
        revision: i64,
        /// The changes.
        events: Vec<Event>,
    },
    /// Everything up to this revision has been yielded; the changes since the last item do not match
    /// the prefix.
    Progress {
        /// The revision.
        revision: i64,
    },
}

/// Figures about a store.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// The engine's name.
    pub engine: &'static str,
    /// The revision of the last acknowledged change.
    pub revision: i64,
    /// The compacted revision: the oldest at which a range works.
    pub compacted: i64,
    /// Bytes on disk (memory engine: bytes of keys and values).
    pub size_bytes: u64,
    /// The last error, if the engine has not recovered from it yet.
    pub error: Option<String>,
    /// Whether that is want of space: reads are served nevertheless.
    pub full: bool,
}
