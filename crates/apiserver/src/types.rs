//! The `api` types that the framework traits mention, under one roof.
//!
//! Until `api` has landed these are stand-ins with exactly the agreed shape; afterwards this file only re-exports.
use serde_json::Value;

/// A built-in resource (one group, version and plural).
#[derive(Debug)]
pub struct Resource {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub namespaced: bool,
    pub storage_prefix: &'static str,
    pub type_name: &'static str,
}

/// A `metav1.Status` on its way to the client.
#[derive(Debug, Clone)]
pub struct Status {
    pub code: u16,
    pub reason: String,
    pub message: String,
    pub details: Option<Value>,
}

/// One validation error.
#[derive(Debug, Clone)]
pub struct FieldError {
    pub path: String,
    pub detail: String,
}
