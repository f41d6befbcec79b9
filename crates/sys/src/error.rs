//! The one error of this crate: what was tried, on what, and what the kernel said.

use std::path::{Path, PathBuf};

/// A refused or failed system call.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {source}", path.display())]
pub struct Error {
    /// A verb phrase such as `mount overlay on`.
    pub operation: &'static str,
    pub path: PathBuf,
    pub source: std::io::Error,
}

/// What everything here answers.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(operation: &'static str, path: impl AsRef<Path>, source: impl Into<std::io::Error>) -> Self {
        Self { operation, path: path.as_ref().to_owned(), source: source.into() }
    }

    /// Whether the kernel's answer was this errno.
    pub fn is(&self, errno: rustix::io::Errno) -> bool {
        self.source.raw_os_error() == Some(errno.raw_os_error())
    }
}

pub(crate) trait Context<T> {
    fn context(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::new(operation, path, source))
    }
}
