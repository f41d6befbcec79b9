//! What differs from resource to resource: preparation, validation, deletion, and the subresources that are not plain objects.
use std::future::Future;
use std::pin::Pin;

use async_trait::async_trait;
use serde_json::Value;

use crate::ctx::Ctx;
use crate::types::{FieldError, Status};

/// Runs once the write is done: `true` when it was committed, `false` when it failed or was a dry run (give back what was allocated).
pub type Finish = Box<dyn FnOnce(bool) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// What happens to dependents when the client does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultGc {
    Background,
    Orphan,
}

/// A resource's (or subresource's) own rules. Every method has the default that suits most kinds.
///
/// One of these is looked up per (group, plural, subresource); updates through a subresource such as `status` use that
/// subresource's strategy. Kinds without one get [`Generic`].
#[async_trait]
pub trait Strategy: Send + Sync {
    /// Clears what clients may not set, before admission sees it. Metadata (uid, creationTimestamp, generation = 1) is done by the caller.
    /// The default drops `status` if the resource has a status subresource.
    fn prepare_create(&self, ctx: &Ctx, object: &mut Value) {
        generic_prepare_create(ctx, object);
    }

    fn validate_create(&self, ctx: &Ctx, object: &Value) -> Vec<FieldError> {
        let _ = (ctx, object);
        Vec::new()
    }

    fn warnings_on_create(&self, _ctx: &Ctx, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// The default keeps the old status (on the resource itself) or everything but the new status (on `status`),
    /// and bumps `metadata.generation` when the spec changed.
    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
    }

    fn validate_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> Vec<FieldError> {
        let _ = (ctx, new, old);
        Vec::new()
    }

    fn warnings_on_update(&self, _ctx: &Ctx, _new: &Value, _old: &Value) -> Vec<String> {
        Vec::new()
    }

    /// Whether PUT (and apply) may create. (Apply may in any case.)
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// Whether PUT without resourceVersion is accepted.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// How long the object stays, marked as deleted, before it goes: `None` = goes at once (when no finalizer holds it),
    /// `Some(0)` = this is the final delete. `requested` is the client's gracePeriodSeconds.
    fn grace_period(&self, _object: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }

    /// Called when the deletionTimestamp is set, for what goes with it (a namespace's phase).
    fn mark_deleting(&self, _ctx: &Ctx, _object: &mut Value) {}

    /// Whether something beside `metadata.finalizers` still holds a deleted object (a namespace's `spec.finalizers`).
    fn held(&self, _object: &Value) -> bool {
        false
    }

    fn default_gc(&self) -> DefaultGc {
        DefaultGc::Background
    }

    /// Last step before the write: allocate addresses or ports, write companions.
    async fn begin_create(&self, _ctx: &Ctx, _object: &mut Value) -> Result<Option<Finish>, Status> {
        Ok(None)
    }

    async fn begin_update(&self, _ctx: &Ctx, _new: &mut Value, _old: &Value) -> Result<Option<Finish>, Status> {
        Ok(None)
    }

    /// May refuse a delete.
    async fn before_delete(&self, _ctx: &Ctx, _object: &Value) -> Result<(), Status> {
        Ok(())
    }

    /// After the object is really gone: release what it held.
    async fn after_delete(&self, _ctx: &Ctx, _object: &Value) {}
}

/// The default for kinds that need nothing of their own.
pub struct Generic;

impl Strategy for Generic {}

/// See [`Strategy::prepare_create`]; for strategies that only add to it.
pub fn generic_prepare_create(_ctx: &Ctx, _object: &mut Value) {}

/// See [`Strategy::prepare_update`]; for strategies that only add to it.
pub fn generic_prepare_update(_ctx: &Ctx, _new: &mut Value, _old: &Value) {}

/// POST that stores nothing by itself: reviews, and subresources such as `binding`, `eviction`, `token`.
/// The object is decoded, defaulted, normalized and admitted; what is returned is the response (201).
#[async_trait]
pub trait Creater: Send + Sync {
    async fn create(&self, ctx: &Ctx, object: Value) -> Result<Value, Status>;
}

/// A read-only resource that is computed, not stored (`componentstatuses`).
#[async_trait]
pub trait Virtual: Send + Sync {
    async fn get(&self, ctx: &Ctx, name: &str) -> Result<Value, Status>;
    async fn list(&self, ctx: &Ctx) -> Result<Vec<Value>, Status>;
}
