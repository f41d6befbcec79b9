//! Resource quotas: the status says from the start what is used.

use apiserver::strategy::generic_prepare_update;
use apiserver::types::Status;
use apiserver::{Ctx, Finish, Strategy};
use async_trait::async_trait;
use serde_json::Value;

use crate::quota::{quantities, status, used};
use crate::util::map;

/// The resource's own rules.
pub(crate) struct ResourceQuotas;

fn count(ctx: &Ctx, quota: &mut Value) {
    let used = used(ctx, quota, &quantities(map(quota, "/spec/hard")));
    quota["status"] = status(quota, used);
}

#[async_trait]
impl Strategy for ResourceQuotas {
    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
    }

    async fn begin_create(&self, ctx: &Ctx, quota: &mut Value) -> Result<Option<Finish>, Status> {
        count(ctx, quota);
        Ok(None)
    }

    async fn begin_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) -> Result<Option<Finish>, Status> {
        if new.get("spec") != old.get("spec") {
            count(ctx, new);
        }
        Ok(None)
    }
}
