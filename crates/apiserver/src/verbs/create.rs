//! POST: decode is done; here are defaults, admission, strategy, validation, allocation and the write.
use serde_json::Value;

use super::{Op, WriteOptions, options_value};
use crate::admission::Operation;
use crate::audit::Layer;
use crate::core::{Object, Written};
use crate::model;
use crate::object;
use crate::profile;
use crate::types::Status;

/// How often a generated name is tried anew.
const NAME_ATTEMPTS: usize = 8;

impl Op {
    /// Creates the object (decoded, normalized and defaulted).
    pub async fn create(&mut self, mut value: Value, options: &WriteOptions) -> Result<Object, Status> {
        self.settle_namespace(&mut value)?;
        self.refuse_new()?;
        // told of when everything else is good, as by upstream's store
        self.brings_version = !object::meta(&value, "resourceVersion").is_empty();
        self.single_owners(&mut value, "");
        let manager = self.manager(&options.field_manager);
        self.fill_system_fields(&mut value);
        let now = self.ctx.now_string();
        self.track_create(&mut value, &manager, &now);
        let generate = object::name(&value).is_empty() && !object::meta(&value, "generateName").is_empty();
        let wire = options_value("CreateOptions", options);
        self.ctx.name = object::name(&value).to_string();
        self.admit(Operation::Create, None, &wire, &mut value).await?;
        if !generate {
            return self.create_prepared(value, &wire, options.dry_run).await;
        }
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut candidate = value.clone();
            // names end before 63 characters, suffix included
            let base: String = object::meta(&candidate, "generateName").chars().take(58).collect();
            object::set_meta(&mut candidate, "name", &format!("{base}{}", object::name_suffix()));
            match self.create_prepared(candidate, &wire, options.dry_run).await {
                Err(status) if status.reason == "AlreadyExists" => {
                    if attempt >= NAME_ATTEMPTS {
                        let r = self.ctx.resource;
                        return Err(api::status::generate_name_conflict(r.group, r.plural, &self.ctx.name, 1));
                    }
                }
                other => return other,
            }
        }
    }

    /// While a definition is being deleted, nothing new may come.
    pub(crate) fn refuse_new(&self) -> Result<(), Status> {
        let r = self.ctx.resource;
        if self.ctx.custom.as_ref().is_some_and(|c| c.terminating) {
            let why = "create not allowed while custom resource definition is terminating";
            return Err(api::status::forbidden(r.group, r.plural, &self.ctx.name, why));
        }
        Ok(())
    }

    /// Books a new object's fields, except for a status that will not be kept.
    pub(crate) fn track_create(&self, value: &mut Value, manager: &str, now: &str) {
        let status = if model::has_subresource(self.ctx.resource, "status") { object::map_of(value).remove("status") } else { None };
        model::track_update(&self.ctx, None, value, manager, now);
        if let Some(status) = status {
            object::map_of(value).insert("status".into(), status);
        }
    }

    /// uid and creationTimestamp are the server's; what only the server sets is cleared.
    pub(crate) fn fill_system_fields(&self, value: &mut Value) {
        let now = self.ctx.now_string();
        let meta = object::meta_mut(value);
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation", "resourceVersion"] {
            meta.remove(field);
        }
        meta.insert("creationTimestamp".into(), now.into());
        meta.insert("uid".into(), object::new_uid().into());
    }

    /// The part after mutating admission, also for updates and applies that create.
    pub(crate) async fn create_prepared(&mut self, mut value: Value, wire: &Value, dry_run: bool) -> Result<Object, Status> {
        self.ctx.name = object::name(&value).to_string();
        let r = self.ctx.resource;
        self.strategy.prepare_create(&self.ctx, &mut value);
        model::fill(r, &mut value);
        if object::name(&value).is_empty() {
            // generateName that could not be used, or nothing at all
            object::meta_mut(&mut value).remove("name");
        }
        let strategy = self.strategy.clone();
        let finish = strategy.begin_create(&self.ctx, &mut value).await?;
        let result = self.create_checked(value, wire, dry_run).await;
        if let Some(finish) = finish {
            finish(result.is_ok() && !dry_run).await;
        }
        match result {
            Ok(created) => Ok(created),
            Err(None) => {
                let mut status = api::status::already_exists(r.group, r.plural, &self.ctx.name);
                let there = self.core.entry(r, &self.ctx.namespace, &self.ctx.name);
                if there.is_some_and(|e| object::deleting(&e.tree())) {
                    status.message = format!("object is being deleted: {}", status.message);
                }
                Err(status)
            }
            Err(Some(status)) => Err(status),
        }
    }

    /// `Err(None)`: the name is taken.
    async fn create_checked(&mut self, value: Value, wire: &Value, dry_run: bool) -> Result<Object, Option<Status>> {
        let validate = || {
            let _part = profile::part("validation");
            let mut errors = self.strategy.validate_create(&self.ctx, &value);
            errors.extend(self.unprivileged(&value));
            errors
        };
        let errors = self.ctx.settled(validate).await;
        if !errors.is_empty() {
            return Err(Some(self.invalid(object::name(&value), &errors)));
        }
        if let Some(why) = bad_segment(object::name(&value)) {
            let error = api::field::FieldError::invalid(&api::field::Path::new("metadata").child("name"), object::name(&value), why);
            return Err(Some(self.invalid(object::name(&value), &[error])));
        }
        for warning in self.strategy.warnings_on_create(&self.ctx, &value) {
            self.ctx.warn(warning);
        }
        self.admit_final(Operation::Create, None, wire, Some(&value)).await.map_err(Some)?;
        if self.brings_version {
            return Err(Some(api::status::bad_request("resourceVersion should not be set on objects to be created")));
        }
        let r = self.ctx.resource;
        if dry_run {
            if self.core.entry(r, &self.ctx.namespace, &self.ctx.name).is_some() {
                return Err(None);
            }
            return Ok(Object::Tree(value));
        }
        match self.ctx.timed(Layer::Storage, self.core.put(r, value, 0)).await.map_err(Some)? {
            Written::Done(created) => Ok(created),
            Written::Conflict(_) => Err(None),
        }
    }
}

/// Names become parts of paths and keys: what cannot be one is refused, whatever the strategy thinks.
fn bad_segment(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("name or generateName is required"),
        "." => Some("may not be '.'"),
        ".." => Some("may not be '..'"),
        n if n.contains('/') => Some("may not contain '/'"),
        n if n.contains('%') => Some("may not contain '%'"),
        _ => None,
    }
}
