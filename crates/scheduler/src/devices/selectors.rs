//! Whether a device is what a CEL expression asks for.

use std::sync::Arc;

use super::slice::Device;

/// Why an expression has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SelectorError {
    /// It does not compile.
    Compile(Arc<str>),
    /// It fails on this device.
    Run(Arc<str>),
}

impl std::fmt::Display for SelectorError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SelectorError::Compile(why) => write!(f, "CEL compile error: {why}"),
            SelectorError::Run(why) => write!(f, "CEL runtime error: {why}"),
        }
    }
}

/// An expression's answer.
pub type Verdict = Result<bool, SelectorError>;

/// Answers expressions.
pub trait Selectors: Send + Sync {
    /// What an expression says of a driver's device.
    fn matches(&self, expression: &str, driver: &str, device: &Device) -> Verdict;
}

/// The expressions of the API.
pub(crate) fn standard() -> Arc<dyn Selectors> {
    Arc::new(Later)
}

struct Later;

impl Selectors for Later {
    fn matches(&self, expression: &str, _: &str, _: &Device) -> Verdict {
        if expression.is_empty() {
            return Err(SelectorError::Compile("expression is empty".into()));
        }
        Err(SelectorError::Run("expressions are not supported yet".into()))
    }
}
