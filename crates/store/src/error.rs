//! What can go wrong with an open store, in the words that reach the user.

use std::path::PathBuf;

/// An error of a [`Store`](crate::Store) operation.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The revision asked for has been compacted.
    #[error("required revision has been compacted; the oldest complete one is {revision}")]
    Compacted {
        /// The compacted revision: the oldest at which a range works.
        revision: i64,
    },
    /// The revision asked for does not exist yet.
    #[error(
        "required revision is a future revision: {requested} was asked for, the store is at {current}"
    )]
    Future {
        /// The revision asked for.
        requested: i64,
        /// The store's revision.
        current: i64,
    },
    /// The request breaks a rule (an empty key, the same key twice in one transaction).
    #[error("{0}")]
    Invalid(&'static str),
    /// The transaction is larger than [`MAX_TXN_BYTES`](crate::MAX_TXN_BYTES).
    #[error("request is too large: {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Bytes of all keys and values.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The disk is full, or a quota is reached. Reads still work; writes are tried anew.
    #[error("no space left in the store {path}: {advice}; the store resumes by itself")]
    NoSpace {
        /// The store's directory, or etcd's endpoints.
        path: PathBuf,
        /// What the user can do.
        advice: &'static str,
    },
    /// Reading or writing failed. The engine reopens itself; the next request may succeed.
    #[error("the store in {path} failed: {message}")]
    Io {
        /// The store's directory, or etcd's endpoints.
        path: PathBuf,
        /// The cause.
        message: String,
    },
    /// The store has not answered in time, or the connection was lost meanwhile. Whether a transaction was applied is
    /// not known.
    #[error("the store in {path} failed: {message}")]
    Timeout {
        /// The store's directory, or etcd's endpoints.
        path: PathBuf,
        /// The cause.
        message: String,
    },
    /// The store takes no requests at the moment. Nothing was changed; it comes back by itself.
    #[error("the store in {path} cannot be used: {message}")]
    Unavailable {
        /// The store's directory, or etcd's endpoints.
        path: PathBuf,
        /// The cause.
        message: String,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}
