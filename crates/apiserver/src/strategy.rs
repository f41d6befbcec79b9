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
    /// Never waits for dependents (events).
    Unsupported,
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
        crate::model::validate_create(ctx.resource, object)
    }

    fn warnings_on_create(&self, ctx: &Ctx, object: &Value) -> Vec<String> {
        crate::model::warnings(ctx.resource, &ctx.subresource, object, None)
    }

    /// The default keeps the old status (on the resource itself) or everything but the new status (on `status`),
    /// and bumps `metadata.generation` when the spec changed.
    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
    }

    fn validate_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> Vec<FieldError> {
        crate::model::validate_update(ctx.resource, &ctx.subresource, new, old)
    }

    fn warnings_on_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> Vec<String> {
        crate::model::warnings(ctx.resource, &ctx.subresource, new, Some(old))
    }

    /// Whether PUT (and apply) may create. (Apply may in any case.)
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// Whether PUT without resourceVersion is accepted.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// What to warn of when the client does not say what becomes of dependents.
    fn warning_of_default_gc(&self) -> Option<&'static str> {
        None
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

    /// Whether a delete that is done at once answers with the object instead of a Status.
    fn returns_deleted_object(&self, ctx: &Ctx) -> bool {
        crate::model::returns_deleted_object(ctx.resource)
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
pub fn generic_prepare_create(ctx: &Ctx, object: &mut Value) {
    api::gates::drop_disabled(ctx.resource.group, ctx.resource.kind, object, None);
    if crate::model::has_subresource(ctx.resource, "status") {
        crate::object::map_of(object).remove("status");
    }
    if crate::model::tracks_generation(ctx.resource) {
        crate::object::meta_mut(object).insert("generation".into(), 1.into());
    }
}

/// See [`Strategy::prepare_update`]; for strategies that only add to it.
pub fn generic_prepare_update(ctx: &Ctx, new: &mut Value, old: &Value) {
    reset_fields(ctx, new, old);
    api::gates::drop_disabled(ctx.resource.group, ctx.resource.kind, new, Some(old));
    if ctx.subresource.is_empty() && crate::model::tracks_generation(ctx.resource) {
        let before = crate::object::meta_i64(old, "generation").unwrap_or(0);
        let now = if same_desire(new, old) { before } else { before + 1 };
        if now > 0 {
            crate::object::meta_mut(new).insert("generation".into(), now.into());
        }
    }
}

/// Whether two objects differ in nothing but metadata and status.
fn same_desire(new: &Value, old: &Value) -> bool {
    const BESIDE: [&str; 4] = ["metadata", "status", "kind", "apiVersion"];
    let (Value::Object(new), Value::Object(old)) = (new, old) else { return new == old };
    let counted = |map: &serde_json::Map<String, Value>| map.keys().filter(|k| !BESIDE.contains(&k.as_str())).count();
    counted(new) == counted(old) && new.iter().filter(|(k, _)| !BESIDE.contains(&k.as_str())).all(|(k, v)| old.get(k) == Some(v))
}

/// What an update through this endpoint cannot change is put back: the status through the resource itself, everything
/// but the status (and annotations, finalizers and the like) through `status`.
pub fn reset_fields(ctx: &Ctx, new: &mut Value, old: &Value) {
    let has_status = crate::model::has_subresource(ctx.resource, "status");
    if ctx.subresource == "status" {
        let status = crate::object::map_of(new).remove("status");
        let metadata = crate::object::map_of(new).remove("metadata");
        let mut merged = old.clone();
        let map = crate::object::map_of(&mut merged);
        match status {
            Some(status) => map.insert("status".into(), status),
            None => map.remove("status"),
        };
        if let Some(mut metadata) = metadata {
            let m = crate::object::map_of(&mut metadata);
            for key in crate::model::kept_by_status(ctx.resource) {
                match old.get("metadata").and_then(|m| m.get(*key)) {
                    Some(before) => m.insert((*key).into(), before.clone()),
                    None => m.remove(*key),
                };
            }
            map.insert("metadata".into(), metadata);
        }
        *new = merged;
    } else if ctx.subresource.is_empty() && has_status {
        let map = crate::object::map_of(new);
        match old.get("status") {
            Some(status) if map.get("status") == Some(status) => {}
            Some(status) => drop(map.insert("status".into(), status.clone())),
            None => drop(map.remove("status")),
        }
    }
}

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
