//! The verbs of a resource, from a parsed request to an object: what upstream's endpoint handlers and generic store do.
pub mod create;
pub mod delete;
pub mod list;
pub mod options;
pub mod patch;
pub mod scale;
pub mod update;
pub mod watch;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::admission::{Admission, Attributes, Operation};
use crate::admitted::Step;
use crate::authz::{AuthzAttributes, Decision};
use crate::core::Core;
use crate::ctx::Ctx;
use crate::object;
use crate::profile;
use crate::strategy::Strategy;
use crate::types::{FieldError, Status};

pub use options::{DeleteOptions, FieldValidation, ListOptions, WriteOptions};

/// One write (or other use) of a resource by somebody.
#[derive(Clone)]
pub struct Op {
    pub core: Arc<Core>,
    pub ctx: Ctx,
    pub strategy: Arc<dyn Strategy>,
    pub admission: Arc<Vec<Arc<dyn Admission>>>,
    /// The field manager when the client names none.
    pub user_agent: String,
    /// Whether what is to be created came with a resourceVersion.
    pub brings_version: bool,
}

impl Op {
    pub(crate) fn is_main(&self) -> bool {
        self.ctx.subresource.is_empty()
    }

    pub(crate) fn not_found(&self) -> Status {
        api::status::not_found(self.ctx.resource.group, self.ctx.resource.plural, &self.ctx.name)
    }

    pub(crate) fn conflict(&self, why: &str) -> Status {
        api::status::conflict(self.ctx.resource.group, self.ctx.resource.plural, &self.ctx.name, why)
    }

    /// That the object is another one than the client thinks it is, in the words of upstream's store.
    pub(crate) fn another(&self, wanted: &str, uid: &str) -> Status {
        let key = crate::core::storage_key(self.ctx.resource, &self.ctx.namespace, &self.ctx.name);
        let key = key.strip_prefix("/registry").unwrap_or(&key);
        self.conflict(&api::status::failed_precondition(key, "UID", wanted, uid))
    }

    pub(crate) fn invalid(&self, name: &str, errors: &[FieldError]) -> Status {
        // both APIs of events have the kind of the older one here
        let group = if crate::model::is_event(self.ctx.resource) { "" } else { self.ctx.resource.group };
        api::status::invalid(group, self.ctx.resource.kind, name, errors)
    }

    /// What is wrong beside, where nothing may be privileged; what a node says of its pods is as it is.
    pub(crate) fn unprivileged(&self, object: &Value) -> Vec<FieldError> {
        if self.core.allow_privileged || self.ctx.subresource == "status" {
            return Vec::new();
        }
        api::validate::privileged(self.ctx.resource, object)
    }

    pub(crate) async fn admit(&self, operation: Operation, old: Option<&Value>, options: &Value, object: &mut Value) -> Result<(), Status> {
        let attributes = Attributes { ctx: &self.ctx, operation, old, options };
        let mut step = self.core.parts().admitted.begin(Step::Admit, operation);
        for (place, plugin) in self.admission.iter().enumerate().filter(|(_, p)| p.handles(operation)) {
            let answer = profile::named("admission", plugin.admit(&attributes, object)).await;
            step.answered(place, answer.is_err());
            answer?;
        }
        // what a webhook or policy brought in is looked at by all, once more
        if self.ctx.begin_second_round() {
            for (place, plugin) in self.admission.iter().enumerate().filter(|(_, p)| p.handles(operation)) {
                let answer = profile::named("admission", plugin.admit(&attributes, object)).await;
                step.answered(place, answer.is_err());
                answer?;
            }
        }
        step.passed();
        self.ctx.end_rounds();
        if !object.is_null() {
            self.single_owners(object, " after mutating admission happens");
        }
        Ok(())
    }

    /// Drops owners that are named twice, with a warning.
    pub(crate) fn single_owners(&self, object: &mut Value, when: &str) {
        let repeated = object::drop_repeated_owners(object);
        if !repeated.is_empty() {
            self.ctx.warn(format!(
                ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
                repeated.join(", ")
            ));
        }
    }

    pub(crate) async fn admit_final(&self, operation: Operation, old: Option<&Value>, options: &Value, object: Option<&Value>) -> Result<(), Status> {
        let attributes = Attributes { ctx: &self.ctx, operation, old, options };
        let mut step = self.core.parts().admitted.begin(Step::Validate, operation);
        for (place, plugin) in self.admission.iter().enumerate().filter(|(_, p)| p.handles(operation)) {
            let answer = profile::named("admission", plugin.validate(&attributes, object)).await;
            step.answered(place, answer.is_err());
            answer?;
        }
        step.passed();
        Ok(())
    }

    /// For writes that turn out to be creates: the user needs that right too.
    pub(crate) async fn may_create(&self) -> Result<(), Status> {
        let ctx = &self.ctx;
        let attributes = AuthzAttributes {
            user: ctx.user.clone(),
            verb: "create".into(),
            resource_request: true,
            namespace: ctx.namespace.clone(),
            api_group: ctx.resource.group.into(),
            api_version: ctx.resource.version.into(),
            resource: ctx.resource.plural.into(),
            subresource: ctx.subresource.clone(),
            name: ctx.name.clone(),
            ..AuthzAttributes::default()
        };
        let (decision, reason) = crate::authz::decide(&*ctx.backend.authorizer, &attributes).await;
        if decision == Decision::Allow { Ok(()) } else { Err(crate::filters::forbidden(&attributes, &reason)) }
    }

    /// The manager that fields are booked to.
    pub(crate) fn manager(&self, named: &str) -> String {
        if named.is_empty() { crate::model::manager_of_user_agent(&self.user_agent) } else { named.to_string() }
    }

    /// Puts the request's namespace on the object, or refuses another one.
    pub(crate) fn settle_namespace(&self, value: &mut Value) -> Result<(), Status> {
        let ctx = &self.ctx;
        let given = object::meta(value, "namespace");
        if !ctx.resource.namespaced {
            if !given.is_empty() {
                object::set_meta(value, "namespace", "");
            }
            return Ok(());
        }
        if given.is_empty() {
            let namespace = ctx.namespace.clone();
            object::set_meta(value, "namespace", &namespace);
        } else if given != ctx.namespace {
            return Err(api::status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        Ok(())
    }
}

/// Two objects that differ at most in managedFields' times and resourceVersion count as equal: nothing is written then.
pub fn same(new: &Value, old: &Value) -> bool {
    let (Value::Object(new), Value::Object(old)) = (new, old) else { return new == old };
    if new.len() != old.len() {
        return false;
    }
    new.iter().all(|(key, value)| match old.get(key) {
        Some(before) if key == "metadata" => same_metadata(value, before),
        Some(before) => value == before,
        None => false,
    })
}

fn same_metadata(new: &Value, old: &Value) -> bool {
    let (Value::Object(new), Value::Object(old)) = (new, old) else { return new == old };
    let counted = |map: &serde_json::Map<String, Value>| map.len() - map.contains_key("resourceVersion") as usize;
    counted(new) == counted(old)
        && new.iter().filter(|(key, _)| *key != "resourceVersion").all(|(key, value)| match (old.get(key), value) {
            (Some(Value::Array(before)), Value::Array(now)) if key == "managedFields" => {
                before.len() == now.len() && now.iter().zip(before).all(|(n, o)| same_but_time(n, o))
            }
            (before, value) => before == Some(value),
        })
}

/// Two entries of managedFields that differ at most in their time.
fn same_but_time(new: &Value, old: &Value) -> bool {
    let (Value::Object(new), Value::Object(old)) = (new, old) else { return new == old };
    new.len() == old.len() && new.iter().all(|(key, value)| key == "time" && old.contains_key(key) || old.get(key) == Some(value))
}

/// Where only the times in managedFields differ, the old ones are kept.
pub(crate) fn keep_times(new: &mut Value, old: &Value) {
    let Some(Value::Array(before)) = old.get("metadata").and_then(|m| m.get("managedFields")) else { return };
    let Some(Value::Array(now)) = object::meta_mut(new).get_mut("managedFields") else { return };
    for entry in now {
        let Some(time) = before.iter().find(|old| same_but_time(entry, old)).and_then(|same| same.get("time")) else { continue };
        if entry.get("time") != Some(time) {
            object::map_of(entry).insert("time".into(), time.clone());
        }
    }
}

/// An options object as admission plug-ins see it.
pub(crate) fn options_value(kind: &str, options: &WriteOptions) -> Value {
    let mut v = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    let m = object::map_of(&mut v);
    if options.dry_run {
        m.insert("dryRun".into(), json!(["All"]));
    }
    if !options.field_manager.is_empty() {
        m.insert("fieldManager".into(), options.field_manager.as_str().into());
    }
    if let Some(force) = options.force {
        m.insert("force".into(), force.into());
    }
    v
}
