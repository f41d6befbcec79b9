//! Why an expression gave no value.

use std::borrow::Cow;
use std::fmt;

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The expression has no value for this input.
    Value,
    /// It was stopped because it cost too much. No operator absorbs that.
    CostExceeded,
}

/// A failed evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What kind of failure it was.
    pub kind: ErrorKind,
    message: Cow<'static, str>,
}

impl Error {
    /// A failure with its message.
    pub fn new(message: impl Into<Cow<'static, str>>) -> Error {
        Error { kind: ErrorKind::Value, message: message.into() }
    }

    pub(crate) fn cost() -> Error {
        Error { kind: ErrorKind::CostExceeded, message: Cow::Borrowed("operation cancelled: actual cost limit exceeded") }
    }

    pub(crate) fn no_overload() -> Error {
        Error::new("no such overload")
    }

    pub(crate) fn no_key(key: impl fmt::Display) -> Error {
        Error::new(format!("no such key: {key}"))
    }

    /// The message alone.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
