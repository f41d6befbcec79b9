//! Tools for a whole store: snapshots, restoring, moving to another engine, rewriting under today's encryption key.
//!
//! Snapshots and rewriting also work through a running server (`/knarr/store/…`), the others want the store for themselves.
//! They read and check everything before they change anything, and say afterwards what they have compared.
mod copy;
mod pages;
mod rewrite;
mod snapshot;

use std::path::PathBuf;

use pages::Pages;

pub use copy::{Converter, Copied, everything, fill, import, import_member, survey};
pub use rewrite::{Rewritten, Survey, rewrite};
pub use snapshot::{Header, Item, Snapshot, send};

/// All that is a cluster's. Other keys of an etcd are let alone.
const ALL: &str = "/registry/";
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
    #[error(transparent)]
    Member(#[from] store::etcd::ImportError),
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

/// How long a key lives that is put in again.
fn ttl(key: &[u8]) -> Option<u64> {
    key.starts_with(b"/registry/events/").then_some(EVENT_TTL)
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}
