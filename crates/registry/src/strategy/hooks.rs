//! Configurations of admission webhooks.

use api::field::FieldError;
use apiserver::{Ctx, Strategy};
use serde_json::Value;

use crate::admission::webhooks;

/// One of the two kinds.
pub(crate) struct HookConfigurations {
    pub mutating: bool,
}

impl Strategy for HookConfigurations {
    fn validate_create(&self, ctx: &Ctx, new: &Value) -> Vec<FieldError> {
        let mut errors = api::validate::create(ctx.resource, new);
        errors.extend(webhooks::validate(new, self.mutating, None));
        errors
    }

    fn validate_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = api::validate::update(ctx.resource, new, old);
        // what was accepted once may stay, whatever is asked today
        if new.get("webhooks") != old.get("webhooks") {
            errors.extend(webhooks::validate(new, self.mutating, Some(old)));
        }
        errors
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}
