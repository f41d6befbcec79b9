//! Keeps the status of definitions: accepted names, conditions; and empties definitions that are deleted.
//!
//! One task, woken by every change of a definition. It looks at all of them, asks the plan (`api::crd::conditions`)
//! and writes what it says, until there is nothing to do; what is left of a definition's objects is looked at once a
//! second while it goes.
use std::sync::Arc;
use std::time::Duration;

use api::crd::conditions::{self, Condition};
use serde_json::Value;

use super::definitions;
use crate::core::{Core, Written};
use crate::ctx::Ctx;
use crate::model;
use crate::object;
use crate::types::{Resource, Status};
use crate::verbs::{DeleteOptions, Op};
use crate::writer::server_user;

/// How soon something that failed, or waits for others, is tried again.
const AGAIN: Duration = Duration::from_secs(1);

impl Core {
    /// Runs until dropped.
    pub(crate) async fn keep_definitions(self: Arc<Core>) {
        let Some(resource) = definitions() else { return };
        let Some(cache) = self.cache.resource(resource.storage_prefix) else { return };
        let mut changes = cache.changes();
        loop {
            changes.mark_unchanged();
            let all: Vec<Arc<Value>> = cache.snapshot().map.from("").map(|(_, entry)| entry.tree()).collect();
            let mut again = false;
            for (i, definition) in all.iter().enumerate() {
                let others: Vec<&Value> = all.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, d)| &**d).collect();
                let result = if conditions::cleans_up(definition) {
                    self.empty(resource, definition).await
                } else {
                    self.settle(resource, definition, &others).await
                };
                match result {
                    Ok(done) => again |= !done,
                    // changed or gone meanwhile: that wakes us anyway
                    Err(status) if matches!(status.code, 404 | 409) => {}
                    Err(status) => {
                        tracing::warn!(definition = object::name(definition), why = %status.message, "a definition could not be kept up");
                        again = true;
                    }
                }
            }
            if again {
                let _ = tokio::time::timeout(AGAIN, changes.changed()).await;
            } else if changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn settle(self: &Arc<Core>, resource: &'static Resource, definition: &Value, others: &[&Value]) -> Result<bool, Status> {
        let plan = conditions::plan(definition, others);
        if !plan.is_empty() {
            self.write_status(resource, definition, |new, now| plan.apply(new, now)).await?;
        }
        Ok(true)
    }

    /// Deletes a definition's objects; once none is left, lets the definition go. Answers whether nothing is waited for.
    async fn empty(self: &Arc<Core>, resource: &'static Resource, definition: &Value) -> Result<bool, Status> {
        let established = conditions::is_true(definition, "Established");
        let progress = conditions::deleting();
        let reason = |c: &Condition| {
            let mut all = definition.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
            all.any(|d| d["type"] == c.kind && d["reason"] == c.reason)
        };
        if !reason(&progress) && !reason(&conditions::deletion_failed("")) {
            // this wakes us again
            self.write_status(resource, definition, |new, now| progress.set(new, now)).await?;
            return Ok(true);
        }
        if established {
            match self.delete_objects(definition).await {
                Ok(0) => {}
                Ok(_) => return Ok(false),
                Err(status) => {
                    let failed = conditions::deletion_failed(&status.message);
                    self.write_status(resource, definition, |new, now| failed.set(new, now)).await?;
                    return Ok(false);
                }
            }
        }
        let done = conditions::deleted(established);
        self.write_status(resource, definition, |new, now| {
            done.set(new, now);
            let left = object::finalizers(new).into_iter().filter(|f| f != api::crd::CLEANUP).collect();
            object::set_finalizers(new, left);
        })
        .await?;
        Ok(true)
    }

    /// Deletes all objects and answers how many are still there.
    async fn delete_objects(self: &Arc<Core>, definition: &Value) -> Result<usize, Status> {
        let name = object::name(definition);
        let Some(found) = self.customs().known.get(name).cloned() else { return Ok(0) };
        let r = found.storage().resource;
        self.catch_up().await?;
        let cached = self.cached(r)?;
        let fresh: Vec<_> = cached.snapshot().map.from("").map(|(_, entry)| entry.clone()).filter(|e| !object::deleting(&e.tree())).collect();
        if !fresh.is_empty() {
            let mut ctx = Ctx::new(r, "", "", server_user(), jiff::Timestamp::now(), self.backend());
            ctx.custom = self.custom(r);
            let op = Op { core: self.clone(), strategy: self.strategy_of(&ctx, ""), admission: Arc::default(), user_agent: "kube-apiserver".into(), brings_version: false, ctx };
            op.delete_collection(fresh, &DeleteOptions::default()).await?;
        }
        Ok(cached.snapshot().map.len())
    }

    /// Changes a definition if it is still what was looked at.
    async fn write_status(self: &Arc<Core>, resource: &'static Resource, definition: &Value, change: impl FnOnce(&mut Value, &str)) -> Result<(), Status> {
        let revision: u64 = object::meta(definition, "resourceVersion").parse().unwrap_or(0);
        let mut ctx = Ctx::new(resource, "", object::name(definition), server_user(), jiff::Timestamp::now(), self.backend());
        ctx.subresource = "status".into();
        let now = ctx.now_string();
        let mut new = definition.clone();
        change(&mut new, &now);
        if new == *definition {
            return Ok(());
        }
        model::track_update(&ctx, Some(definition), &mut new, "kube-apiserver", &now);
        let gone = object::deleting(&new) && object::finalizers(&new).is_empty();
        let written = if gone { self.remove(resource, new, revision).await? } else { self.put(resource, new, revision).await? };
        match written {
            Written::Done(_) => Ok(()),
            Written::Conflict(_) => Err(api::status::conflict(resource.group, resource.plural, object::name(definition), api::status::OPTIMISTIC_LOCK)),
        }
    }
}
