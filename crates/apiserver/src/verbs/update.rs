//! PUT, and the part of every change that comes after the new object is known.
use serde_json::Value;

use super::{Op, WriteOptions, keep_times, options_value, same};
use crate::admission::Operation;
use crate::audit::Layer;
use crate::core::{Object, Stored, Written};
use crate::model;
use crate::object;
use crate::profile;
use crate::types::Status;

/// How often a change is tried anew when others write in between.
const ATTEMPTS: usize = 32;

/// What a PUT did.
pub struct Updated {
    pub object: Object,
    pub created: bool,
}

/// What one attempt came to.
pub(crate) enum Attempt {
    Done(Updated),
    /// Written in between; the present state, if there is one.
    Again(Option<Stored>),
}

impl Op {
    /// Replaces the object by a decoded, normalized and defaulted one.
    pub async fn update(&mut self, value: Value, options: &WriteOptions) -> Result<Updated, Status> {
        let given = object::name(&value);
        if given.is_empty() {
            let why = format!("the name of the object ({} based on URL) was undeterminable: name must be provided", self.ctx.name);
            return Err(api::status::bad_request(why));
        }
        if given != self.ctx.name {
            return Err(api::status::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({})",
                self.ctx.name
            )));
        }
        let mut value = value;
        self.settle_namespace(&mut value)?;
        self.single_owners(&mut value, "");
        let wire = options_value("UpdateOptions", options);
        let r = self.ctx.resource;
        let mut current = self.core.current(r, &self.ctx.namespace, &self.ctx.name).await?;
        if current.is_none() || stale(&value, current.as_ref()) {
            current = self.core.fresh(r, &self.ctx.namespace, &self.ctx.name).await?;
        }
        for _ in 0..ATTEMPTS {
            let Some(old) = current else {
                if self.is_main() && self.strategy.allow_create_on_update() {
                    return self.create_by_update(value, options).await;
                }
                return Err(self.not_found());
            };
            let uid = object::meta(&value, "uid");
            let old_uid = object::meta(&old.object, "uid");
            if !uid.is_empty() && uid != old_uid {
                return Err(self.another(uid, old_uid));
            }
            let new = value.clone();
            let manager = self.manager(&options.field_manager);
            match self.replace(old, new, Some(&manager), &wire, options.dry_run).await? {
                Attempt::Done(updated) => return Ok(updated),
                Attempt::Again(now) => current = now,
            }
        }
        Err(self.conflict(api::status::OPTIMISTIC_LOCK))
    }

    async fn create_by_update(&mut self, mut value: Value, options: &WriteOptions) -> Result<Updated, Status> {
        self.may_create().await?;
        if !object::meta(&value, "resourceVersion").is_empty() && object::meta(&value, "resourceVersion") != "0" {
            return Err(self.conflict(api::status::OPTIMISTIC_LOCK));
        }
        if !object::meta(&value, "uid").is_empty() {
            return Err(self.another(object::meta(&value, "uid"), ""));
        }
        self.fill_system_fields(&mut value);
        let (now, manager) = (self.ctx.now_string(), self.manager(&options.field_manager));
        self.track_create(&mut value, &manager, &now);
        let wire = options_value("CreateOptions", options);
        self.admit(Operation::Create, None, &wire, &mut value).await?;
        let object = self.create_prepared(value, &wire, options.dry_run).await?;
        Ok(Updated { object, created: true })
    }

    /// Writes `new` over `old`. With a manager, fields are booked to it; an apply has done that already.
    pub(crate) async fn replace(&mut self, old: Stored, mut new: Value, manager: Option<&str>, wire: &Value, dry_run: bool) -> Result<Attempt, Status> {
        let given = object::meta(&new, "resourceVersion").to_string();
        let unconditional = given.is_empty() || given == "0";
        if unconditional {
            if !self.strategy.allow_unconditional_update() {
                let path = api::field::Path::new("metadata").child("resourceVersion");
                let error = api::field::FieldError::invalid(&path, 0, "must be specified for an update");
                let r = self.ctx.resource;
                return Err(api::status::invalid(r.group, r.plural, &self.ctx.name, &[error]));
            }
        } else if given != old.revision.to_string() {
            return Err(self.conflict(api::status::OPTIMISTIC_LOCK));
        }
        object::set_meta(&mut new, "resourceVersion", &old.revision.to_string());
        if let Some(manager) = manager {
            crate::strategy::reset_fields(&self.ctx, &mut new, &old.object);
            let now = self.ctx.now_string();
            model::track_update(&self.ctx, Some(&old.object), &mut new, manager, &now);
        }
        self.admit(Operation::Update, Some(&old.object), wire, &mut new).await?;
        self.settle_namespace(&mut new)?;
        keep_identity(&mut new, &old.object);
        self.strategy.prepare_update(&self.ctx, &mut new, &old.object);
        model::fill(self.ctx.resource, &mut new);
        keep_identity_after(&mut new, &old.object);
        let strategy = self.strategy.clone();
        let finish = strategy.begin_update(&self.ctx, &mut new, &old.object).await?;
        let result = self.replace_checked(old, new, wire, dry_run, unconditional).await;
        if let Some(finish) = finish {
            finish(matches!(result, Ok(Attempt::Done(_))) && !dry_run).await;
        }
        result
    }

    async fn replace_checked(&mut self, old: Stored, mut new: Value, wire: &Value, dry_run: bool, unconditional: bool) -> Result<Attempt, Status> {
        let validate = || {
            let _part = profile::part("validation");
            let mut errors = self.strategy.validate_update(&self.ctx, &new, &old.object);
            errors.extend(self.unprivileged(&new));
            errors
        };
        let errors = self.ctx.settled(validate).await;
        if !errors.is_empty() {
            return Err(self.invalid(&self.ctx.name, &errors));
        }
        for warning in self.strategy.warnings_on_update(&self.ctx, &new, &old.object) {
            self.ctx.warn(warning);
        }
        keep_times(&mut new, &old.object);
        self.admit_final(Operation::Update, Some(&old.object), wire, Some(&new)).await?;
        let r = self.ctx.resource;
        if self.emptied(&new) {
            return self.finish_deletion(old, new, dry_run).await;
        }
        if dry_run {
            return Ok(Attempt::Done(Updated { object: Object::Tree(new), created: false }));
        }
        if same(&new, &old.object) && !self.core.is_stale(r, &self.ctx.namespace, &self.ctx.name).await? {
            // an unchanged object is not written, but it must still be the present one
            let now = self.core.current(r, &self.ctx.namespace, &self.ctx.name).await?;
            if now.as_ref().is_some_and(|n| n.revision == old.revision) {
                return Ok(Attempt::Done(Updated { object: Object::Tree(old.object), created: false }));
            }
            let now = self.core.fresh(r, &self.ctx.namespace, &self.ctx.name).await?;
            if now.as_ref().is_some_and(|n| n.revision == old.revision) {
                return Ok(Attempt::Done(Updated { object: Object::Tree(old.object), created: false }));
            }
            return Ok(Attempt::Again(now));
        }
        drop(old.object);
        match self.ctx.timed(Layer::Storage, self.core.put(r, new, old.revision)).await? {
            Written::Done(object) => Ok(Attempt::Done(Updated { object, created: false })),
            Written::Conflict(now) if unconditional => Ok(Attempt::Again(now)),
            Written::Conflict(None) => Err(self.not_found()),
            Written::Conflict(Some(_)) => Err(self.conflict(api::status::OPTIMISTIC_LOCK)),
        }
    }

    /// Nothing holds this deleted object any more.
    fn emptied(&self, new: &Value) -> bool {
        object::deleting(new)
            && object::finalizers(new).is_empty()
            && object::meta_i64(new, "deletionGracePeriodSeconds").unwrap_or(0) == 0
            && !self.strategy.held(new)
    }

    async fn finish_deletion(&mut self, old: Stored, new: Value, dry_run: bool) -> Result<Attempt, Status> {
        if dry_run {
            return Ok(Attempt::Done(Updated { object: Object::Tree(new), created: false }));
        }
        match self.core.remove(self.ctx.resource, new, old.revision).await? {
            Written::Done(object) => {
                let strategy = self.strategy.clone();
                strategy.after_delete(&self.ctx, &object.tree()).await;
                Ok(Attempt::Done(Updated { object, created: false }))
            }
            Written::Conflict(now) => Ok(Attempt::Again(now)),
        }
    }
}

/// The client's view is newer than the cache's, or plainly different: ask the store.
fn stale(value: &Value, current: Option<&Stored>) -> bool {
    let given = object::meta(value, "resourceVersion");
    !given.is_empty() && given != "0" && current.is_some_and(|c| c.revision.to_string() != given)
}

/// Before the strategy: the generation is the server's.
fn keep_identity(new: &mut Value, old: &Value) {
    let generation = old.get("metadata").and_then(|m| m.get("generation")).cloned();
    let meta = object::meta_mut(new);
    match generation {
        Some(generation) => meta.insert("generation".into(), generation),
        None => meta.remove("generation"),
    };
}

/// After the strategy: identity and deletion marks are never changed by an update.
fn keep_identity_after(new: &mut Value, old: &Value) {
    let Some(Value::Object(before)) = old.get("metadata") else { return };
    let meta = object::meta_mut(new);
    if meta.get("uid").and_then(Value::as_str).unwrap_or_default().is_empty()
        && let Some(uid) = before.get("uid")
    {
        meta.insert("uid".into(), uid.clone());
    }
    for field in ["creationTimestamp", "deletionTimestamp"] {
        if let Some(value) = before.get(field) {
            meta.insert(field.into(), value.clone());
        }
    }
    if !before.contains_key("deletionTimestamp") {
        meta.remove("deletionTimestamp");
        meta.remove("deletionGracePeriodSeconds");
    } else if !meta.contains_key("deletionGracePeriodSeconds")
        && let Some(value) = before.get("deletionGracePeriodSeconds")
    {
        meta.insert("deletionGracePeriodSeconds".into(), value.clone());
    }
    meta.remove("selfLink");
}
