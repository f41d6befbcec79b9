//! Fills a member of etcd that has just been made and does not run, by writing its file: at once, with the revisions that
//! keys had, and at any revision from there on. Through etcd, each revision that is passed over would be a write.
//!
//! What the member knows of its cluster stays in the file. Keys come in the order of their revisions, as etcd keeps
//! them; everything before the new revision is compacted. Blocks. The file is replaced when all is written.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::Message;
use proto::etcd as pb;

use super::bolt::{self, BoltError, Bucket, Tree, Writer};
use super::{convert, lease};
use crate::KeyValue;

/// etcd's own limit of its file, if it is given no other.
pub const DEFAULT_QUOTA: u64 = 2 << 30;
/// Keys that share a lease.
const KEYS: usize = 1000;
const TIMES: [&[u8]; 2] = [b"scheduledCompactRev", b"finishedCompactRev"];

/// Why a member cannot be filled.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Its file cannot be read, or the new one not be written.
    #[error("{path} cannot be {action}")]
    File {
        /// The file.
        path: PathBuf,
        /// Read, written.
        action: &'static str,
        /// Why.
        #[source]
        source: BoltError,
    },
    /// It is no new member.
    #[error("{path} is not the file of a new member of etcd: {why}")]
    NotNew {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: &'static str,
    },
    /// Keys come in another order, or have revisions that cannot be.
    #[error("revision {revision} comes after {last}: keys have to come by their revisions, none above that of the store")]
    Order {
        /// Of the key that was put.
        revision: i64,
        /// Of the one before.
        last: i64,
    },
    /// etcd would take no writes.
    #[error("the objects take more than {quota} bytes in etcd, which is its quota: it would take no writes; give it a larger one, by ETCD_QUOTA_BACKEND_BYTES in the environment of this command and of the server")]
    Quota {
        /// What may be taken.
        quota: u64,
    },
}

/// A member's file in the making.
pub struct Import {
    path: PathBuf,
    temporary: PathBuf,
    writer: Writer,
    buckets: Vec<Bucket>,
    transaction: u64,
    tree: Tree,
    /// The last key's revision, and its place among those of that revision.
    last: (i64, i64),
    /// How long they last, and for how many keys they are.
    leases: Vec<(Duration, usize)>,
    quota: u64,
}

/// A revision as etcd's keys have it.
fn revision_key(main: i64, sub: i64) -> [u8; 17] {
    let mut key = [b'_'; 17];
    key[..8].copy_from_slice(&main.to_be_bytes());
    key[9..].copy_from_slice(&sub.to_be_bytes());
    key
}

impl Import {
    /// Begins with the data directory of a member that has run once, and does not now. It must have put a snapshot of its
    /// cluster aside: its log from there on does not tell of what is written here, and others have to get it whole.
    pub fn begin(data: &Path, quota: u64) -> Result<Import, ImportError> {
        let dir = data.join("member/snap");
        let path = dir.join("db");
        let failed = |action| {
            let path = path.clone();
            move |source: BoltError| ImportError::File { path, action, source }
        };
        let not = |why| ImportError::NotNew { path: path.clone(), why };
        let content = bolt::read(&path).map_err(failed("read"))?;
        let there = dir.read_dir().map_err(|e| failed("read")(e.into()))?;
        if !there.flatten().any(|e| e.path().extension().is_some_and(|e| e == "snap")) {
            return Err(not("it has put no snapshot aside"));
        }
        let bucket = |name: &[u8]| content.buckets.iter().find(|b| b.name == name);
        if !bucket(b"meta").is_some_and(|b| b.entries.iter().any(|(key, _)| key == b"consistent_index")) {
            return Err(not("it does not say how far it is"));
        }
        if !bucket(b"key").is_some_and(|b| b.entries.is_empty()) {
            return Err(not("there are keys in it"));
        }
        if !bucket(b"lease").is_some_and(|b| b.entries.is_empty()) {
            return Err(not("there are leases in it"));
        }
        let temporary = path.with_extension("new");
        let writer = Writer::create(&temporary, content.page_size).map_err(|e| failed("written")(e.into()))?;
        Ok(Import {
            temporary,
            writer,
            buckets: content.buckets,
            transaction: content.transaction,
            tree: Tree::default(),
            last: (0, 0),
            leases: Vec::new(),
            quota,
            path,
        })
    }

    fn failed(&self, source: impl Into<BoltError>) -> ImportError {
        ImportError::File { path: self.temporary.clone(), action: "written", source: source.into() }
    }

    /// Adds a key; those of lower revisions come before. It expires after `ttl` from when the member runs.
    pub fn put(&mut self, kv: &KeyValue, ttl: Option<Duration>) -> Result<(), ImportError> {
        let (last, revision) = (self.last, kv.mod_revision);
        if revision < last.0.max(1) {
            return Err(ImportError::Order { revision, last: last.0 });
        }
        self.last = if revision == last.0 { (revision, last.1 + 1) } else { (revision, 0) };
        let lease = ttl.map_or(0, |ttl| self.lease(ttl));
        let value = pb::KeyValue {
            key: kv.key.clone(),
            create_revision: kv.create_revision,
            mod_revision: revision,
            version: kv.version,
            value: kv.value.to_vec(),
            lease,
        };
        let key = revision_key(self.last.0, self.last.1);
        self.writer.put(&mut self.tree, &key, &value.encode_to_vec()).map_err(|e| self.failed(e))?;
        self.within_quota(self.writer.size())
    }

    fn within_quota(&self, size: u64) -> Result<(), ImportError> {
        if size < self.quota { Ok(()) } else { Err(ImportError::Quota { quota: self.quota }) }
    }

    /// The number of a lease that lasts that long.
    fn lease(&mut self, ttl: Duration) -> i64 {
        let at = match self.leases.iter().position(|(lasts, keys)| *lasts == ttl && *keys < KEYS) {
            Some(at) => at,
            None => {
                self.leases.push((ttl, 0));
                self.leases.len() - 1
            }
        };
        self.leases[at].1 += 1;
        at as i64 + 1
    }

    /// Completes the file and puts it in its place: the member stands at `revision`. Then reads it once more: `check` gets
    /// all keys, by their revisions. Returns the file's size.
    pub fn finish(mut self, revision: i64, mut check: impl FnMut(KeyValue)) -> Result<u64, ImportError> {
        if revision < self.last.0.max(1) {
            return Err(ImportError::Order { revision, last: self.last.0 });
        }
        let keys = self.writer.finish_tree(std::mem::take(&mut self.tree)).map_err(|e| self.failed(e))?;
        let mut buckets = Vec::new();
        for mut bucket in std::mem::take(&mut self.buckets) {
            match bucket.name.as_slice() {
                b"meta" => {
                    bucket.entries.retain(|(key, _)| !TIMES.contains(&key.as_slice()));
                    bucket.entries.extend(TIMES.map(|name| (name.to_vec(), revision_key(revision, 0).to_vec())));
                    bucket.entries.sort();
                }
                b"lease" => {
                    for (at, (ttl, _)) in self.leases.iter().enumerate() {
                        let lease = pb::Lease { id: at as i64 + 1, ttl: lease::extended(ttl.as_secs()) as i64, remaining_ttl: 0 };
                        bucket.entries.push((lease.id.to_be_bytes().to_vec(), lease.encode_to_vec()));
                    }
                }
                _ => {}
            }
            let written = (bucket.name == b"key").then_some(keys);
            buckets.push((bucket, written));
        }
        let Import { path, temporary, writer, transaction, quota, .. } = self;
        let failed = |source: std::io::Error| ImportError::File { path: temporary.clone(), action: "written", source: source.into() };
        let size = writer.finish(buckets, transaction).map_err(failed)?;
        if size >= quota {
            return Err(ImportError::Quota { quota });
        }
        std::fs::rename(&temporary, &path).map_err(failed)?;
        let dir = path.parent().unwrap_or(Path::new("."));
        std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        let mut bad = false;
        let read = bolt::read_bucket(&path, b"key", |key, value| match (key, pb::KeyValue::decode(value)) {
            (&[a, b, c, d, e, f, g, h, b'_', ..], Ok(kv)) if kv.mod_revision.to_be_bytes() == [a, b, c, d, e, f, g, h] => check(convert::key_value(kv)),
            _ => bad = true,
        });
        match if bad { Err(BoltError::Damaged("what is at a revision is not of it")) } else { read } {
            Ok(()) => Ok(size),
            Err(source) => Err(ImportError::File { path, action: "read", source }),
        }
    }
}
