//! A revisioned key-value store: transaction, range, watch, compact, TTL. Knows no Kubernetes type.
//!
//! The contract is etcd's, reduced to what an API server needs:
//!
//! - Every transaction that changes something gets the next revision; an empty store is at revision 1.
//!   Revisions are never reused and never go backwards, not over a restart either.
//! - A transaction is acknowledged only when it is durable.
//! - A range is a consistent snapshot at one revision: the latest, or an older one that has not been
//!   compacted.
//! - A watch yields every change from its first revision on, in order, without a gap or a repeat. A
//!   watcher reads at its own pace; only one that falls behind the compacted revision gets
//!   [`Error::Compacted`].
//! - A key put with a time to live is deleted by the engine with an ordinary revision and event.
//!
//! Engines: [`embedded`] (durable, one process), [`etcd`] (a cluster of etcd v3) and [`memory`] (tests). All
//! of them pass `tests/contract`.
#![forbid(unsafe_code)]

pub mod embedded;
mod error;
pub mod etcd;
pub mod memory;
mod steps;
mod types;
mod under;
mod watch;

pub use error::Error;
pub use steps::{Steps, Took};
pub use types::{
    Compare, Event, KeyValue, Op, RangeRequest, RangeResponse, Status, Txn, TxnResponse,
    WatchEvent, prefix_end,
};
pub use under::under;
pub use watch::{WatchStream, Watcher};

/// A key that is written to and deleted again, only for the revisions that this takes.
const SCRATCH: &[u8] = b"knarr/revision";

/// The largest sum of keys and values in one transaction, in bytes (etcd's default request limit is
/// 1.5 MiB; the API server refuses larger bodies before they come here).
pub const MAX_TXN_BYTES: usize = 4 << 20;

/// The contract that all engines keep; see the crate's documentation.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads a key or a range of keys at one revision.
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error>;

    /// Applies all operations when all comparisons hold, and none otherwise. Returns when durable.
    ///
    /// After [`Error::Io`] or [`Error::NoSpace`] the outcome is unknown, as after a lost connection:
    /// read again before repeating.
    async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error>;

    /// Streams the changes of all keys that start with `prefix` (empty: all keys), from
    /// `from_revision` on. `from_revision` may be one that does not exist yet; 0 or less means the
    /// next one.
    async fn watch(&self, prefix: &[u8], from_revision: i64) -> Result<WatchStream, Error>;

    /// Forgets what is older than `revision`: afterwards ranges work at `revision` and later,
    /// watches from `revision + 1` on.
    async fn compact(&self, revision: i64) -> Result<(), Error>;

    /// The revision of the last acknowledged change.
    async fn revision(&self) -> Result<i64, Error>;

    /// Moves on to a revision above `beyond`, which is returned. What is stored stays as it is. Takes a transaction for
    /// each revision.
    async fn advance(&self, beyond: i64) -> Result<i64, Error> {
        let mut revision = self.revision().await?;
        while revision < beyond {
            revision = self.txn(Txn::put(SCRATCH, "")).await?.revision;
        }
        Ok(self.txn(Txn::put(SCRATCH, "")).await?.revision.max(self.txn(Txn::delete(SCRATCH)).await?.revision))
    }

    /// Figures for `knarr status`, metrics and health checks.
    async fn status(&self) -> Result<Status, Error>;

    /// Whether programs of others may read and write the store too, so that its values should be in their form.
    fn is_shared(&self) -> bool {
        false
    }

    /// Stops accepting transactions, finishes those that were accepted, ends all watches, and
    /// releases what the engine holds (files, the lock on its directory). Idempotent.
    async fn close(&self);
}
