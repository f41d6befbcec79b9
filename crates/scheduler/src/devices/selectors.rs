//! Whether a device is what a CEL expression asks for.

use std::collections::HashMap;
use std::sync::Arc;

use cel::{DeviceAttribute, DeviceSelector};
use parking_lot::Mutex;

use super::slice::{Attribute, Device};

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

/// More expressions than this are not kept compiled.
const MOST_EXPRESSIONS: usize = 256;

type Compiled = Result<Arc<DeviceSelector>, SelectorError>;

/// Expressions in CEL, compiled once.
#[derive(Default)]
pub(crate) struct Cel(Mutex<HashMap<Box<str>, Compiled>>);

/// The expressions of the API.
pub(crate) fn standard() -> Arc<dyn Selectors> {
    Arc::new(Cel::default())
}

impl Cel {
    fn compiled(&self, expression: &str) -> Compiled {
        if let Some(known) = self.0.lock().get(expression) {
            return known.clone();
        }
        let compiled = DeviceSelector::compile(expression).map(Arc::new).map_err(|why| SelectorError::Compile(why.into()));
        let mut known = self.0.lock();
        if known.len() >= MOST_EXPRESSIONS {
            known.clear();
        }
        known.insert(expression.into(), compiled.clone());
        compiled
    }
}

fn shown(attribute: &Attribute) -> DeviceAttribute<'_> {
    match attribute {
        Attribute::Text(text) => DeviceAttribute::Text(text),
        Attribute::Int(int) => DeviceAttribute::Int(*int),
        Attribute::Bool(bool) => DeviceAttribute::Bool(*bool),
        Attribute::Version(version) => DeviceAttribute::Version(version),
        Attribute::Unknown => DeviceAttribute::Unknown,
    }
}

impl Selectors for Cel {
    fn matches(&self, expression: &str, driver: &str, device: &Device) -> Verdict {
        let selector = self.compiled(expression)?;
        let attributes = device.attributes.iter().map(|(name, value)| (name.as_str(), shown(value)));
        let capacity = device.capacity.iter().map(|(name, capacity)| (name.as_str(), &capacity.value));
        selector.matches(driver, device.is_shared, attributes, capacity).map_err(|why| SelectorError::Run(why.into()))
    }
}
