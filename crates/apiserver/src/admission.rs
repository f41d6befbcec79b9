//! Admission framework: plug-ins that change or refuse a write after authorization and before it is stored.
use async_trait::async_trait;
use serde_json::Value;

use crate::ctx::Ctx;
use crate::types::Status;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// What is written. The resource, subresource, namespace, name, user and dry run are in `ctx`.
pub struct Attributes<'a> {
    pub ctx: &'a Ctx,
    pub operation: Operation,
    /// The stored object, for updates and (where it is one object) deletes.
    pub old: Option<&'a Value>,
    /// CreateOptions, UpdateOptions or DeleteOptions as given (Null when none were). A patch has those of what it comes to.
    pub options: &'a Value,
}

/// A plug-in. All plug-ins admit in order, then (after defaulting, strategy and validation) all validate in order.
#[async_trait]
pub trait Admission: Send + Sync {
    /// Upstream's plug-in name, such as `NamespaceLifecycle`.
    fn name(&self) -> &'static str;

    fn handles(&self, operation: Operation) -> bool;

    /// May change the object; the error is the response. For deletes and connects the object is Null.
    async fn admit(&self, _attributes: &Attributes<'_>, _object: &mut Value) -> Result<(), Status> {
        Ok(())
    }

    /// Appends what the plug-in has to say to `/metrics`.
    fn metrics(&self, _out: &mut String) {}

    /// May refuse. The object is `None` for deletes.
    async fn validate(&self, _attributes: &Attributes<'_>, _object: Option<&Value>) -> Result<(), Status> {
        Ok(())
    }
}
