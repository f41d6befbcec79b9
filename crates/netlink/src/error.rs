//! The error of a netlink request: what was asked, and the kernel's answer with its explanation.

use std::io;

/// The result of a netlink request.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A netlink socket could not be opened or configured.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// Sending the request or reading the answer failed.
    #[error("{what}: no answer from the kernel")]
    Io {
        /// The request in words.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the request.
    #[error("{what}: {source}{}", explanation.as_deref().map(|e| format!(" ({e})")).unwrap_or_default())]
    Kernel {
        /// The request in words.
        what: String,
        /// The kernel's extended acknowledgement, where it gave one.
        explanation: Option<String>,
        /// The error code.
        #[source]
        source: io::Error,
    },
    /// The answer was not understood.
    #[error("{what}: malformed answer: {detail}")]
    Malformed {
        /// The request in words.
        what: String,
        /// What was wrong with it.
        detail: String,
    },
    /// A network namespace could not be opened, entered or made.
    #[error("network namespace {name}")]
    Namespace {
        /// Its path or descriptor.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The `errno` of the kernel's refusal.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Kernel { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// The object exists already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// The object does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENXIO)
        )
    }
}
