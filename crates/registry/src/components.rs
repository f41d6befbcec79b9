//! `componentstatuses`: a computed list of the control plane's components.

use api::status;
use apiserver::builder::Check;
use apiserver::types::Status;
use apiserver::{Ctx, Virtual};
use async_trait::async_trait;
use serde_json::{Value, json};

/// Asks each component when it is asked.
pub(crate) struct ComponentStatuses {
    pub components: Vec<(String, Check)>,
}

fn component(name: &str, check: &Check) -> Value {
    let condition = match check() {
        Ok(()) => json!({"type": "Healthy", "status": "True", "message": "ok"}),
        Err(why) => json!({"type": "Healthy", "status": "False", "message": "Unhealthy", "error": why}),
    };
    json!({"apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": name}, "conditions": [condition]})
}

#[async_trait]
impl Virtual for ComponentStatuses {
    async fn get(&self, _ctx: &Ctx, name: &str) -> Result<Value, Status> {
        let found = self.components.iter().find(|(n, _)| n == name);
        found.map(|(n, c)| component(n, c)).ok_or_else(|| status::not_found("", "componentstatuses", name))
    }

    async fn list(&self, ctx: &Ctx) -> Result<Vec<Value>, Status> {
        ctx.warn("v1 ComponentStatus is deprecated in v1.19+");
        Ok(self.components.iter().map(|(n, c)| component(n, c)).collect())
    }
}
