//! The `scale` subresource of whatever has `spec.replicas`, `status.replicas` and a selector.
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::update::Attempt;
use super::{Op, WriteOptions, options_value};
use crate::admission::{Admission, Attributes, Operation};
use crate::core::Stored;
use crate::ctx::Ctx;
use crate::custom::Scale;
use crate::decode::{self, Expect};
use crate::model;
use crate::object;
use crate::types::Status;
use crate::verbs::patch::{Patch, PatchType};

/// The type of the subresource's objects.
pub fn expect() -> Expect {
    Expect::new("autoscaling", "v1", "Scale")
}

/// The object's Scale.
pub fn of(ctx: &Ctx, object: &Value) -> Value {
    if let Some(scale) = ctx.custom.as_ref().and_then(|c| c.version.scale.as_ref()) {
        return of_custom(scale, object);
    }
    let replicas = |part: &str| object.get(part).and_then(|p| p.get("replicas")).and_then(Value::as_i64).unwrap_or(0);
    let mut scale = json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata(object), "spec": {}, "status": {"replicas": replicas("status")}});
    if replicas("spec") != 0 {
        scale["spec"]["replicas"] = replicas("spec").into();
    }
    let selector = object.get("spec").and_then(|s| s.get("selector"));
    let text = match selector {
        None | Some(Value::Null) => String::new(),
        Some(s) if s.get("matchLabels").is_some() || s.get("matchExpressions").is_some() => {
            api::selector::Labels::from_label_selector(s).map(|l| l.to_string()).unwrap_or_default()
        }
        // a replication controller's plain map
        Some(map) => api::selector::Labels::from_map(map).to_string(),
    };
    if !text.is_empty() {
        scale["status"]["selector"] = text.into();
    }
    scale
}

fn metadata(object: &Value) -> serde_json::Map<String, Value> {
    let mut meta = serde_json::Map::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(v) = object.get("metadata").and_then(|m| m.get(key)) {
            meta.insert(key.into(), v.clone());
        }
    }
    meta
}

/// The Scale of a custom resource, whose definition says where its figures are.
fn of_custom(scale: &Scale, object: &Value) -> Value {
    let number = |path: &str| api::crd::path::get(object, path).and_then(Value::as_i64).unwrap_or(0);
    let mut out = json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata(object), "spec": {},
        "status": {"replicas": number(&scale.status_replicas)}});
    if number(&scale.spec_replicas) != 0 {
        out["spec"]["replicas"] = number(&scale.spec_replicas).into();
    }
    if let Some(selector) = api::crd::path::get(object, &scale.selector).and_then(Value::as_str).filter(|s| !s.is_empty() && !scale.selector.is_empty()) {
        out["status"]["selector"] = selector.into();
    }
    out
}

/// Sets the number of replicas where a custom resource has it.
fn set_replicas(object: &mut Value, path: &str, replicas: i64) {
    let mut at = object;
    let mut keys = path.trim_start_matches('.').split('.').peekable();
    while let Some(key) = keys.next() {
        let map = object::map_of(at);
        if keys.peek().is_none() {
            map.insert(key.into(), replicas.into());
            return;
        }
        at = map.entry(key).or_insert_with(|| json!({}));
    }
}

impl Op {
    /// PUT of a Scale: sets the object's replicas.
    pub async fn update_scale(&mut self, mut scale: Value, options: &WriteOptions) -> Result<Value, Status> {
        let given = object::name(&scale);
        if given != self.ctx.name {
            return Err(api::status::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({})",
                self.ctx.name
            )));
        }
        self.settle_namespace(&mut scale)?;
        self.scale_to(options, |_| Ok(scale.clone())).await
    }

    /// PATCH of a Scale.
    pub async fn patch_scale(&mut self, patch: &Patch, options: &WriteOptions) -> Result<Value, Status> {
        let ctx = self.ctx.clone();
        self.scale_to(options, |current| {
            let mut new = patch.on_scale(current)?;
            decode::patched(&mut new, &expect(), options.field_validation, Vec::new(), &ctx)?;
            let name = object::name(&new);
            if name != ctx.name {
                return Err(api::status::bad_request(format!("the name of the object ({name}) does not match the name on the URL ({})", ctx.name)));
            }
            if object::meta(&new, "resourceVersion") == object::meta(current, "resourceVersion") && patch.kind != PatchType::Apply {
                object::set_meta(&mut new, "resourceVersion", "");
            }
            Ok(new)
        })
        .await
    }

    async fn scale_to(&mut self, options: &WriteOptions, change: impl Fn(&Value) -> Result<Value, Status>) -> Result<Value, Status> {
        let r = self.ctx.resource;
        let wire = options_value("UpdateOptions", options);
        let manager = self.manager(&options.field_manager);
        let mut current = self.core.fresh(r, &self.ctx.namespace, &self.ctx.name).await?;
        for _ in 0..32 {
            let Some(old) = current else { return Err(self.not_found()) };
            let before = of(&self.ctx, &old.object);
            let mut scale = change(&before)?;
            self.admit(Operation::Update, Some(&before), &wire, &mut scale).await?;
            let mut errors = api::validate::scale_metadata(&scale);
            let replicas = match scale.get("spec").and_then(|s| s.get("replicas")) {
                None | Some(Value::Null) => 0,
                Some(v) => v.as_i64().unwrap_or(-1),
            };
            if replicas < 0 {
                let path = api::field::Path::new("spec").child("replicas");
                errors.push(api::field::FieldError::invalid(&path, replicas, "must be greater than or equal to 0"));
            }
            if !errors.is_empty() {
                return Err(api::status::invalid("autoscaling", "Scale", &self.ctx.name, &errors));
            }
            let version = object::meta(&scale, "resourceVersion");
            if !version.is_empty() && version != old.revision.to_string() {
                return Err(self.conflict(api::status::OPTIMISTIC_LOCK));
            }
            let uid = object::meta(&scale, "uid");
            if !uid.is_empty() && uid != object::meta(&old.object, "uid") {
                return Err(self.another(uid, object::meta(&old.object, "uid")));
            }
            let mut new = old.object.clone();
            object::set_meta(&mut new, "resourceVersion", version);
            let path = self.ctx.custom.as_ref().and_then(|c| c.version.scale.as_ref()).map_or(".spec.replicas", |s| &s.spec_replicas);
            set_replicas(&mut new, path, replicas);
            match self.replace_scaled(old, new, &manager, &wire, options.dry_run).await? {
                Attempt::Done(updated) => return Ok(of(&self.ctx, &updated.object.into_tree())),
                Attempt::Again(now) => current = now,
            }
        }
        Err(self.conflict(api::status::OPTIMISTIC_LOCK))
    }

    /// As an update of the resource itself, except that fields are booked with the subresource, and that admission, which
    /// has changed the Scale already, sees one.
    async fn replace_scaled(&mut self, old: Stored, mut new: Value, manager: &str, wire: &Value, dry_run: bool) -> Result<Attempt, Status> {
        let now = self.ctx.now_string();
        model::track_update(&self.ctx, Some(&old.object), &mut new, manager, &now);
        let seen = Arc::new(AsScale { ctx: self.ctx.clone(), plugins: self.admission.clone() });
        let admission = std::mem::replace(&mut self.admission, Arc::new(vec![seen as Arc<dyn Admission>]));
        let subresource = std::mem::take(&mut self.ctx.subresource);
        let strategy = std::mem::replace(&mut self.strategy, self.core.strategy_of(&self.ctx, ""));
        let result = self.replace(old, new, None, wire, dry_run).await;
        self.ctx.subresource = subresource;
        self.strategy = strategy;
        self.admission = admission;
        result
    }
}

/// Shows plug-ins an update of the scaled object as one of its Scale.
struct AsScale {
    /// With the subresource.
    ctx: Ctx,
    plugins: Arc<Vec<Arc<dyn Admission>>>,
}

#[async_trait]
impl Admission for AsScale {
    fn name(&self) -> &'static str {
        "Scale"
    }

    fn handles(&self, _: Operation) -> bool {
        true
    }

    async fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        let old = attributes.old.map(|o| of(&self.ctx, o));
        let scale = object.map(|o| of(&self.ctx, o));
        let attributes = Attributes { ctx: &self.ctx, operation: attributes.operation, old: old.as_ref(), options: attributes.options };
        for plugin in self.plugins.iter().filter(|p| p.handles(attributes.operation)) {
            plugin.validate(&attributes, scale.as_ref()).await?;
        }
        Ok(())
    }
}

impl Patch {
    fn on_scale(&self, scale: &Value) -> Result<Value, Status> {
        self.on_plain(scale)
    }
}
