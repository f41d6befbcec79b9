//! Tools for a whole store: snapshots, restoring, moving to another engine, rewriting under today's encryption key.
//!
//! Snapshots and rewriting also work through a running server (`/knarr/store/…`), the others want the store for themselves.
//! They read and check everything before they change anything, and say afterwards what they have compared.
mod copy;
mod rewrite;
mod snapshot;

use std::path::PathBuf;
use std::sync::Arc;

use store::{RangeRequest, Store};

pub use copy::{Converter, Copied, everything, fill, import, survey};
pub use rewrite::{Rewritten, Survey, rewrite};
pub use snapshot::{Header, Item, Snapshot, send};

/// All that is a cluster's. Other keys of an etcd are let alone.
const ALL: &str = "/registry/";
/// Keys that are read at once.
const PAGE: usize = 500;
/// Leases by which upstream's servers tell that they live; they are written anew all the time.
const FLEETING: &[u8] = b"/registry/masterleases/";

/// Seconds that an event lives when it is put in again: how long it has lived is not known.
pub const EVENT_TTL: u64 = 3600;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Open(#[from] store::embedded::OpenError),
    #[error("{path} cannot be {action}")]
    File {
        path: PathBuf,
        /// Read, written.
        action: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not a snapshot of knarr's: it does not begin as one")]
    NotASnapshot { path: PathBuf },
    #[error("{path} is a snapshot of another version ({found}), this one reads version {known}: use the knarr that wrote it")]
    Version { path: PathBuf, found: String, known: u32 },
    #[error("{path} is cut short ({why}): it was not written to its end, or not copied whole; use another one")]
    Cut { path: PathBuf, why: &'static str },
    #[error("{path} is damaged ({why}): use another one")]
    Damaged { path: PathBuf, why: &'static str },
    #[error("{key} cannot be read: {why}")]
    Unreadable { key: String, why: String },
    #[error("what was written is not what is there now ({0}): does something else write to it? Stop that, and begin again with --force")]
    Differs(String),
    #[error("there are {0} objects in it already: name an empty one, or say --force to replace them all")]
    NotEmpty(usize),
    #[error("the receiver has gone away")]
    Gone,
}

/// Reads everything at one revision, a page at a time.
pub(crate) struct Pages {
    store: Arc<dyn Store>,
    next: Option<Vec<u8>>,
    /// Whether all pages are of one revision.
    same: bool,
    /// Of the first page.
    pub revision: i64,
}

impl Pages {
    pub fn new(store: Arc<dyn Store>) -> Pages {
        Pages { store, next: Some(ALL.into()), same: true, revision: 0 }
    }

    /// Each page as it is when it is read: for what takes longer than history is kept.
    pub fn moving(store: Arc<dyn Store>) -> Pages {
        Pages { same: false, ..Pages::new(store) }
    }

    /// The next page; nothing at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<store::KeyValue>>, store::Error> {
        let Some(key) = self.next.take() else { return Ok(None) };
        let page = self.store.range(RangeRequest::page(key, store::prefix_end(ALL.as_bytes()), PAGE).at(if self.same { self.revision } else { 0 })).await?;
        if self.revision == 0 {
            self.revision = page.revision;
        }
        if page.more && let Some(last) = page.kvs.last() {
            let mut key = last.key.clone();
            key.push(0);
            self.next = Some(key);
        }
        Ok(Some(page.kvs.into_iter().filter(|kv| !kv.key.starts_with(FLEETING)).collect()))
    }
}

/// How long a key lives that is put in again.
fn ttl(key: &[u8]) -> Option<u64> {
    key.starts_with(b"/registry/events/").then_some(EVENT_TTL)
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}
