//! CustomResourceDefinitions: what their writers may not set, and that they stay until their objects are gone.
//! What their status becomes is the API server's own business (`apiserver::custom`).

use api::crd::{CLEANUP, conditions, definition};
use api::field::FieldError;
use apiserver::strategy::generic_prepare_update;
use apiserver::{Ctx, Strategy, object};
use serde_json::{Value, json};

use crate::util::{items, text, texts};

/// The definition itself and its status.
pub(crate) struct Definitions;

/// The storage version belongs to the stored ones.
fn remember_storage(definition: &mut Value) {
    let storage = items(definition, "/spec/versions").find(|v| v["storage"] == true).map(|v| text(v, "/name").to_owned());
    let mut stored: Vec<String> = texts(definition, "/status/storedVersions").map(str::to_owned).collect();
    if let Some(name) = storage.filter(|s| !stored.contains(s)) {
        stored.push(name);
    }
    definition["status"]["storedVersions"] = stored.into();
}

/// Rules are looked at once the schemas around them are right.
fn with_rules(errors: Vec<FieldError>, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    if errors.is_empty() { apiserver::custom::rules::check_definition(new, old) } else { errors }
}

impl Strategy for Definitions {
    fn prepare_create(&self, _ctx: &Ctx, new: &mut Value) {
        new["status"] = json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []});
        object::meta_mut(new).insert("generation".into(), 1.into());
        remember_storage(new);
    }

    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
        if ctx.subresource.is_empty() {
            remember_storage(new);
        }
    }

    fn validate_create(&self, ctx: &Ctx, new: &Value) -> Vec<FieldError> {
        let mut errors = api::validate::create(ctx.resource, new);
        errors.extend(definition::create(new));
        with_rules(errors, new, None)
    }

    fn validate_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = api::validate::metadata_update(new, old);
        if ctx.subresource == "status" {
            errors.extend(definition::update_status(new));
            return errors;
        }
        errors.extend(definition::update(new, old));
        with_rules(errors, new, Some(old))
    }

    fn warnings_on_create(&self, _ctx: &Ctx, new: &Value) -> Vec<String> {
        definition::warnings(new, None)
    }

    fn warnings_on_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> Vec<String> {
        if ctx.subresource.is_empty() { definition::warnings(new, Some(old)) } else { Vec::new() }
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    /// A definition goes in two steps: first it is marked, then its objects are deleted.
    fn held(&self, definition: &Value) -> bool {
        !object::deleting(definition)
    }

    fn mark_deleting(&self, ctx: &Ctx, definition: &mut Value) {
        let mut finalizers = object::finalizers(definition);
        if !finalizers.iter().any(|f| f == CLEANUP) {
            finalizers.push(CLEANUP.into());
        }
        object::set_finalizers(definition, finalizers);
        conditions::marked().set(definition, &ctx.now_string());
    }
}
