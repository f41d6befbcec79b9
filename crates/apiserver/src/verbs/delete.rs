//! DELETE: grace, finalizers, propagation, preconditions; and deletecollection.
use std::sync::Arc;

use futures::StreamExt;
use serde_json::Value;

use super::{DeleteOptions, Op, same};
use crate::admission::Operation;
use crate::audit::Layer;
use crate::cache::Entry;
use crate::core::{Object, Stored, Written};
use crate::ctx::format_time;
use crate::object;
use crate::strategy::DefaultGc;
use crate::types::Status;

const ATTEMPTS: usize = 32;
/// Objects of a collection that are deleted at once.
const AT_ONCE: usize = 64;

/// What a delete did.
pub struct Deleted {
    pub object: Object,
    /// Really gone (otherwise marked, or marked already).
    pub gone: bool,
}

enum Step {
    Leave,
    Mark,
    Remove,
}

impl Op {
    pub async fn delete(&mut self, options: &DeleteOptions) -> Result<Deleted, Status> {
        self.warn_of_default_gc(options);
        let r = self.ctx.resource;
        let strategy = self.strategy.clone();
        let mut current = match self.core.current(r, &self.ctx.namespace, &self.ctx.name).await? {
            Some(current) => Some(current),
            None => self.core.fresh(r, &self.ctx.namespace, &self.ctx.name).await?,
        };
        let mut admitted = false;
        for attempt in 0..ATTEMPTS {
            let Some(old) = current else { return Err(self.not_found()) };
            if let Err(status) = self.check_preconditions(options, &old) {
                if attempt > 0 {
                    return Err(status);
                }
                // perhaps only the cache is behind
                let fresh = self.core.fresh(r, &self.ctx.namespace, &self.ctx.name).await?;
                match fresh {
                    Some(fresh) if fresh.revision != old.revision => {
                        current = Some(fresh);
                        continue;
                    }
                    _ => return Err(status),
                }
            }
            if !admitted {
                self.admit(Operation::Delete, Some(&old.object), &options.raw, &mut Value::Null).await?;
                admitted = true;
            }
            self.admit_final(Operation::Delete, Some(&old.object), &options.raw, None).await?;
            strategy.before_delete(&self.ctx, &old.object).await?;
            let mut new = old.object.clone();
            let step = self.plan(&mut new, options);
            let written = match step {
                Step::Leave => return Ok(Deleted { object: Object::Tree(old.object), gone: false }),
                Step::Mark if options.dry_run || same(&new, &old.object) => return Ok(Deleted { object: Object::Tree(new), gone: false }),
                Step::Remove if options.dry_run => return Ok(Deleted { object: Object::Tree(new), gone: true }),
                Step::Mark => self.ctx.timed(Layer::Storage, self.core.put(r, new, old.revision)).await?,
                Step::Remove => self.ctx.timed(Layer::Storage, self.core.remove(r, new, old.revision)).await?,
            };
            match written {
                Written::Done(object) => {
                    let gone = matches!(step, Step::Remove);
                    if gone {
                        strategy.after_delete(&self.ctx, &object.tree()).await;
                    }
                    return Ok(Deleted { object, gone });
                }
                Written::Conflict(now) => current = now,
            }
        }
        Err(self.conflict(api::status::OPTIMISTIC_LOCK))
    }

    fn warn_of_default_gc(&self, options: &DeleteOptions) {
        if options.orphan_dependents.is_none()
            && options.propagation_policy.is_none()
            && let Some(text) = self.strategy.warning_of_default_gc()
        {
            self.ctx.warn(text);
        }
    }

    fn check_preconditions(&self, options: &DeleteOptions, old: &Stored) -> Result<(), Status> {
        // upstream names the kind here, not the resource
        let r = self.ctx.resource;
        let conflict = |why: String| api::status::conflict(r.group, r.kind, &self.ctx.name, &why);
        let uid = object::meta(&old.object, "uid");
        if let Some(wanted) = &options.uid
            && wanted != uid
        {
            return Err(conflict(format!(
                "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
            )));
        }
        let version = old.revision.to_string();
        if let Some(wanted) = &options.resource_version
            && *wanted != version
        {
            return Err(conflict(format!(
                "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({version}). The object might have been modified"
            )));
        }
        Ok(())
    }

    /// Decides, and makes the marks on the object.
    fn plan(&self, value: &mut Value, options: &DeleteOptions) -> Step {
        let requested = options.grace_period_seconds;
        let mut graceful = false;
        let mut last_grace = 0;
        if object::deleting(value) {
            let left = object::meta_i64(value, "deletionGracePeriodSeconds").unwrap_or(0);
            if left != 0 {
                match requested {
                    // only shortening is possible
                    Some(period) if period < left => {
                        last_grace = self.shorten(value, left, period);
                        graceful = true;
                    }
                    _ => return Step::Leave,
                }
            }
        } else if let Some(period) = self.strategy.grace_period(value, requested) {
            let until = self.ctx.now.checked_add(jiff::SignedDuration::from_secs(period.max(0))).unwrap_or(self.ctx.now);
            let meta = object::meta_mut(value);
            meta.insert("deletionTimestamp".into(), format_time(until).into());
            meta.insert("deletionGracePeriodSeconds".into(), period.into());
            bump_generation(value);
            self.strategy.mark_deleting(&self.ctx, value);
            graceful = true;
            last_grace = period;
        }
        let finalizers = self.gc_finalizers(value, options);
        object::set_finalizers(value, finalizers.clone());
        let held = !finalizers.is_empty() || self.strategy.held(value);
        if !graceful {
            if !held {
                return Step::Remove;
            }
            self.mark(value);
            return Step::Mark;
        }
        if held || last_grace > 0 { Step::Mark } else { Step::Remove }
    }

    fn mark(&self, value: &mut Value) {
        if !object::deleting(value) {
            bump_generation(value);
            object::set_meta(value, "deletionTimestamp", &self.ctx.now_string());
            self.strategy.mark_deleting(&self.ctx, value);
        } else if object::meta(value, "deletionTimestamp") > self.ctx.now_string().as_str() {
            object::set_meta(value, "deletionTimestamp", &self.ctx.now_string());
        }
        object::meta_mut(value).insert("deletionGracePeriodSeconds".into(), 0.into());
    }

    fn shorten(&self, value: &mut Value, left: i64, period: i64) -> i64 {
        let mut period = period;
        let now = self.ctx.now;
        let at = object::meta(value, "deletionTimestamp").parse::<jiff::Timestamp>().unwrap_or(now);
        let mut until = at.checked_add(jiff::SignedDuration::from_secs(period - left)).unwrap_or(now);
        if until < now {
            until = now;
            if period != 0 {
                period = 1;
            }
        }
        let meta = object::meta_mut(value);
        meta.insert("deletionTimestamp".into(), format_time(until).into());
        meta.insert("deletionGracePeriodSeconds".into(), period.into());
        period
    }

    /// The finalizers with those of the garbage collector as the propagation policy wants them.
    fn gc_finalizers(&self, value: &Value, options: &DeleteOptions) -> Vec<String> {
        const ORPHAN: &str = "orphan";
        const FOREGROUND: &str = "foregroundDeletion";
        let mut finalizers = object::finalizers(value);
        let default = self.strategy.default_gc();
        if default == DefaultGc::Unsupported {
            return finalizers;
        }
        let has = |name: &str| finalizers.iter().any(|f| f == name);
        let (orphan, foreground) = match (options.orphan_dependents, options.propagation_policy.as_deref()) {
            (Some(orphan), _) => (orphan, false),
            (None, Some("Orphan")) => (true, false),
            (None, Some("Foreground")) => (false, true),
            (None, Some(_)) => (false, false),
            (None, None) if has(ORPHAN) => (true, false),
            (None, None) if has(FOREGROUND) => (false, true),
            (None, None) => (default == DefaultGc::Orphan, false),
        };
        finalizers.retain(|f| f != ORPHAN && f != FOREGROUND);
        if orphan {
            finalizers.push(ORPHAN.into());
        }
        if foreground {
            finalizers.push(FOREGROUND.into());
        }
        finalizers
    }

    /// Deletes each of these; what is gone already does not matter. Many at once, so that they share
    /// the store's commits; all are tried, and the first failure is told.
    pub async fn delete_collection(&self, items: Vec<Arc<Entry>>, options: &DeleteOptions) -> Result<Vec<Arc<Entry>>, Status> {
        self.warn_of_default_gc(options);
        let deletions = items.into_iter().map(|item| {
            let mut op = self.clone();
            let object = item.parse();
            op.ctx.name = object::name(&object).to_string();
            op.ctx.namespace = object::meta(&object, "namespace").to_string();
            async move {
                match op.delete(options).await {
                    Ok(_) => Ok(Some(item)),
                    Err(status) if status.code == 404 => Ok(None),
                    Err(status) => Err(status),
                }
            }
        });
        let results: Vec<Result<Option<Arc<Entry>>, Status>> = futures::stream::iter(deletions).buffered(AT_ONCE).collect().await;
        results.into_iter().filter_map(Result::transpose).collect()
    }
}

fn bump_generation(value: &mut Value) {
    if let Some(generation) = object::meta_i64(value, "generation").filter(|g| *g > 0) {
        object::meta_mut(value).insert("generation".into(), (generation + 1).into());
    }
}
