//! PATCH: JSON patch, merge patch, strategic merge patch and server-side apply.
use bytes::Bytes;
use serde_json::Value;

use super::update::{Attempt, Updated};
use super::{Op, WriteOptions, options_value, same};
use crate::admission::Operation;
use crate::core::{Object, Stored};
use crate::decode::{self, Expect};
use crate::model;
use crate::negotiate::Format;
use crate::object;
use crate::profile;
use crate::types::Status;

/// How often the patch is applied anew when others write in between (upstream: 5, when conflicts are not the client's).
const ATTEMPTS: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

pub const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

impl PatchType {
    /// Of custom resources there is no strategic merge patch: nobody says how their lists merge.
    pub fn of(headers: &http::HeaderMap, custom: bool) -> Result<PatchType, Status> {
        let given = headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        match given.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(PatchType::Json),
            "application/merge-patch+json" => Ok(PatchType::Merge),
            "application/strategic-merge-patch+json" if !custom => Ok(PatchType::Strategic),
            "application/apply-patch+yaml" => Ok(PatchType::Apply),
            _ if custom => Err(api::status::unsupported_media_type(&[PATCH_TYPES[0], PATCH_TYPES[1], PATCH_TYPES[3]])),
            _ => Err(api::status::unsupported_media_type(&PATCH_TYPES)),
        }
    }
}

/// A patch, read once and applied as often as needed.
pub struct Patch {
    pub kind: PatchType,
    value: Value,
    /// Duplicate keys in the patch itself.
    strict: Vec<String>,
}

impl Patch {
    pub fn read(kind: PatchType, body: &Bytes) -> Result<Patch, Status> {
        let format = if kind == PatchType::Apply { Format::Yaml } else { Format::Json };
        let (value, duplicates) = model::decode(body, format, None).map_err(|why| {
            api::status::bad_request(match kind {
                PatchType::Apply => format!("error decoding YAML: {why}"),
                _ => format!("error decoding patch: {why}"),
            })
        })?;
        let shape_is_right = if kind == PatchType::Json { value.is_array() } else { value.is_object() };
        if !shape_is_right {
            let (what, want) = if kind == PatchType::Json { ("object", "[]handlers.jsonPatchOp") } else { ("array", "map[string]interface {}") };
            let what = match &value {
                Value::String(_) => "string",
                Value::Number(_) => "number",
                Value::Bool(_) => "bool",
                Value::Null => "null",
                _ => what,
            };
            return Err(api::status::bad_request(format!(
                "error decoding patch: json: cannot unmarshal {what} into Go value of type {want}"
            )));
        }
        if object::too_deep(&value) {
            return Err(api::status::bad_request("the patch is nested too deeply"));
        }
        let prefix = if kind == PatchType::Json { "json patch " } else { "" };
        let strict = duplicates.iter().map(|p| format!("{prefix}{p}")).collect();
        Ok(Patch { kind, value, strict })
    }

    /// The patch on an object of a type without lists to merge.
    pub(crate) fn on_plain(&self, object: &Value) -> Result<Value, Status> {
        match self.kind {
            PatchType::Json => model::json_patch(object, &self.value),
            PatchType::Merge | PatchType::Strategic | PatchType::Apply => model::merge_patch(object, &self.value),
        }
    }

    /// The patched object, not yet normalized.
    fn patched(&self, op: &Op, old: &Value) -> Result<Value, Status> {
        match self.kind {
            PatchType::Json => model::json_patch(old, &self.value),
            PatchType::Merge => model::merge_patch(old, &self.value),
            _ => model::strategic_merge(op.ctx.resource, old, &self.value),
        }
    }
}

impl Op {
    /// Applies a patch. `expect` is the type of the object (of the endpoint's version).
    pub async fn patch(&mut self, patch: &Patch, expect: &Expect, options: &WriteOptions) -> Result<Updated, Status> {
        let r = self.ctx.resource;
        let mut current = match self.core.current(r, &self.ctx.namespace, &self.ctx.name).await? {
            Some(current) => Some(current),
            None => self.core.fresh(r, &self.ctx.namespace, &self.ctx.name).await?,
        };
        let mut refreshed = false;
        for _ in 0..ATTEMPTS {
            let Some(old) = current else {
                if patch.kind == PatchType::Apply && self.is_main() {
                    match self.create_by_apply(patch, expect, options).await {
                        // somebody created it meanwhile: apply to that
                        Err(status) if status.reason == "AlreadyExists" => {
                            current = self.core.fresh(r, &self.ctx.namespace, &self.ctx.name).await?;
                            if current.is_none() {
                                return Err(status);
                            }
                            continue;
                        }
                        other => return other,
                    }
                }
                return Err(self.not_found());
            };
            let revision = old.revision;
            match self.patch_once(patch, expect, options, old).await {
                Ok(Attempt::Done(updated)) => return Ok(updated),
                Ok(Attempt::Again(now)) => current = now,
                // the cache may be behind another server's write: one try on the store's own state
                Err(status) if !refreshed && (status.code == 409 || status.code == 422) => {
                    refreshed = true;
                    let fresh = self.core.fresh(r, &self.ctx.namespace, &self.ctx.name).await?;
                    if fresh.as_ref().is_some_and(|f| f.revision == revision) {
                        return Err(status);
                    }
                    current = fresh;
                }
                Err(status) => return Err(status),
            }
        }
        Err(self.conflict(api::status::OPTIMISTIC_LOCK))
    }

    async fn patch_once(&mut self, patch: &Patch, expect: &Expect, options: &WriteOptions, old: Stored) -> Result<Attempt, Status> {
        let wire = as_write("UpdateOptions", options);
        let manager = self.manager(&options.field_manager);
        if patch.kind == PatchType::Apply {
            let config = self.apply_config(patch, expect, options)?;
            let now = self.ctx.now_string();
            let force = options.force.unwrap_or(false);
            let mut new = model::apply(&self.ctx, Some(&old.object), &config, &manager, force, &now)?;
            decode::applied(options.field_validation, &patch.strict, &self.ctx)?;
            self.finish_apply(&mut new, &config, expect)?;
            if same(&new, &old.object) {
                return Ok(Attempt::Done(Updated { object: Object::Tree(old.object), created: false }));
            }
            let own = object::meta(&new, "resourceVersion").to_string();
            if !own.is_empty() || self.strategy.allow_unconditional_update() {
                return self.replace(old, new, None, &wire, options.dry_run).await;
            }
            // kinds that want a version get the one that was applied to
            object::set_meta(&mut new, "resourceVersion", &old.revision.to_string());
            let result = self.replace(old, new, None, &wire, options.dry_run).await;
            return self.again_on_conflict(result).await;
        }
        let mut new = {
            let _part = profile::part("patching");
            let mut new = patch.patched(self, &old.object)?;
            decode::patched(&mut new, expect, options.field_validation, patch.strict.clone(), &self.ctx)?;
            new
        };
        let name = object::name(&new);
        if name != self.ctx.name {
            return Err(api::status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                self.ctx.name
            )));
        }
        // a patch without a resourceVersion of its own is good for any version
        let own = own_version(patch, &new, &old);
        if own.is_empty() && !self.strategy.allow_unconditional_update() {
            // kinds that want a version get the one the patch was applied to
            object::set_meta(&mut new, "resourceVersion", &old.revision.to_string());
            let result = self.replace(old, new, Some(&manager), &wire, options.dry_run).await;
            return self.again_on_conflict(result).await;
        }
        object::set_meta(&mut new, "resourceVersion", &own);
        self.replace(old, new, Some(&manager), &wire, options.dry_run).await
    }

    /// A conflict that is not the client's is tried again.
    async fn again_on_conflict(&self, result: Result<Attempt, Status>) -> Result<Attempt, Status> {
        match result {
            Err(status) if status.code == 409 => {
                let now = self.core.fresh(self.ctx.resource, &self.ctx.namespace, &self.ctx.name).await?;
                Ok(Attempt::Again(now))
            }
            other => other,
        }
    }

    fn apply_config(&self, patch: &Patch, expect: &Expect, options: &WriteOptions) -> Result<Value, Status> {
        let config = patch.value.clone();
        let name = object::name(&config);
        if !name.is_empty() && name != self.ctx.name {
            return Err(api::status::bad_request(format!(
                "metadata.name ({name}) does not match the name on the URL ({})",
                self.ctx.name
            )));
        }
        for (key, want) in [("apiVersion", expect.api_version()), ("kind", expect.kind.clone())] {
            let given = config.get(key).and_then(Value::as_str).unwrap_or_default();
            if given.is_empty() {
                return Err(api::status::bad_request(format!("{key} must be set")));
            }
            if given != want && key == "kind" {
                return Err(api::status::bad_request(format!("invalid object type: kind {given} was given, {want} is served here")));
            }
        }
        let unknown = model::check_settled(&self.ctx, expect, &config)
            .map_err(|why| api::status::internal(format!("failed to create typed patch object ({}/{}; {}): {why}", self.ctx.namespace, self.ctx.name, expect.api_version())))?;
        if !unknown.is_empty() {
            // unknown fields cannot be owned; upstream has no way to ignore them in an apply
            let first = unknown[0].trim_start_matches("unknown field ").trim_matches('"');
            let _ = options;
            return Err(api::status::internal(format!(
                "failed to create typed patch object ({}/{}; {}, Kind={}): .{first}: field not declared in schema",
                self.ctx.namespace,
                self.ctx.name,
                expect.api_version(),
                expect.kind
            )));
        }
        Ok(config)
    }

    fn finish_apply(&mut self, new: &mut Value, config: &Value, expect: &Expect) -> Result<(), Status> {
        model::default_settled(&self.ctx, expect, new);
        let own = object::meta(config, "resourceVersion").to_string();
        object::set_meta(new, "resourceVersion", &own);
        Ok(())
    }

    async fn create_by_apply(&mut self, patch: &Patch, expect: &Expect, options: &WriteOptions) -> Result<Updated, Status> {
        self.may_create().await?;
        self.refuse_new()?;
        let config = self.apply_config(patch, expect, options)?;
        if !object::meta(&config, "resourceVersion").is_empty() || !object::meta(&config, "uid").is_empty() {
            return Err(self.conflict("resourceVersion and uid cannot be set on an object that does not exist"));
        }
        let now = self.ctx.now_string();
        let manager = self.manager(&options.field_manager);
        let mut new = model::apply(&self.ctx, None, &config, &manager, options.force.unwrap_or(false), &now)?;
        decode::applied(options.field_validation, &patch.strict, &self.ctx)?;
        let name = self.ctx.name.clone();
        object::set_meta(&mut new, "name", &name);
        self.settle_namespace(&mut new)?;
        model::default_settled(&self.ctx, expect, &mut new);
        self.fill_system_fields(&mut new);
        let wire = as_write("CreateOptions", options);
        self.admit(Operation::Create, None, &wire, &mut new).await?;
        let object = self.create_prepared(new, &wire, options.dry_run).await?;
        Ok(Updated { object, created: true })
    }
}

/// A patch's options as admission sees them: those of what the patch comes to.
fn as_write(kind: &str, options: &WriteOptions) -> Value {
    options_value(kind, &WriteOptions { force: None, ..options.clone() })
}

/// The resourceVersion that the patch itself asks for, or "".
fn own_version(patch: &Patch, new: &Value, old: &Stored) -> String {
    let given = object::meta(new, "resourceVersion");
    if given != old.revision.to_string() {
        return given.to_string();
    }
    let mentions = match patch.kind {
        PatchType::Json => patch.value.as_array().is_some_and(|ops| {
            ops.iter().any(|o| o.get("path").and_then(Value::as_str) == Some("/metadata/resourceVersion") && o.get("op").and_then(Value::as_str) != Some("test"))
        }),
        _ => !object::meta(&patch.value, "resourceVersion").is_empty(),
    };
    if mentions { given.to_string() } else { String::new() }
}
