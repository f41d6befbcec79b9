//! What can go wrong: one sentence for the user, and the cause below it.

/// The cause of an error.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is wrong, whole.
    #[error("{0}")]
    Refused(String),
    /// What was being done when something else failed.
    #[error("{what}")]
    While {
        /// What was being done.
        what: String,
        /// What failed.
        source: Cause,
    },
    /// Findings, which have been printed.
    #[error("preflight checks failed")]
    Preflight,
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of one sentence.
pub fn refused<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::Refused(text.into()))
}

/// Says what was being done when something failed.
pub trait Doing<T> {
    /// Adds it.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Cause>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::While { what: what(), source: source.into() })
    }
}

impl Error {
    /// The error and its causes in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        text
    }
}
