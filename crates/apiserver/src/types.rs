//! The `api` types that the framework traits mention, under one roof.
pub use api::field::FieldError;
pub use api::status::Status;

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
