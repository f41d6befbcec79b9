//! The `Writer`: writes without a request, by the server itself.
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use crate::core::{Core, Written};
use crate::ctx::{Ctx, UserInfo};
use crate::model;
use crate::object;
use crate::storage::{Modify, Writer};
use crate::types::{Resource, Status};
use crate::verbs::{DeleteOptions, Op};

pub(crate) struct CoreWriter(pub Arc<Core>);

/// Who the server is when it acts by itself.
pub fn server_user() -> UserInfo {
    UserInfo::new("system:apiserver", &["system:masters", "system:authenticated"])
}

impl CoreWriter {
    fn op(&self, resource: &'static Resource, namespace: &str, name: &str) -> Op {
        let mut ctx = Ctx::new(resource, namespace, name, server_user(), jiff::Timestamp::now(), self.0.backend());
        ctx.custom = self.0.custom(resource);
        Op {
            core: self.0.clone(),
            strategy: self.0.strategy_of(&ctx, ""),
            ctx,
            admission: Arc::default(),
            brings_version: false,
            user_agent: "kube-apiserver".into(),
        }
    }

    async fn write(&self, resource: &'static Resource, namespace: &str, name: &str, change: Modify<'_>, owned: bool) -> Result<Value, Status> {
        let op = self.op(resource, namespace, name);
        let mut current = match self.0.current(resource, namespace, name).await? {
            Some(current) => Some(current),
            None => self.0.fresh(resource, namespace, name).await?,
        };
        let mut refreshed = false;
        for _ in 0..32 {
            let Some(old) = current else {
                return Err(api::status::not_found(resource.group, resource.plural, name));
            };
            let revision = old.revision;
            // Whoever books a change needs to know what there was.
            let (mut new, before) = if owned { (old.object.clone(), Some(old.object)) } else { (old.object, None) };
            if let Err(status) = change(&mut new) {
                // refused on what may be an old state: look again, once
                if refreshed {
                    return Err(status);
                }
                refreshed = true;
                let fresh = self.0.fresh(resource, namespace, name).await?;
                if fresh.as_ref().is_some_and(|f| f.revision == revision) {
                    return Err(status);
                }
                current = fresh;
                continue;
            }
            if let Some(before) = before {
                if crate::verbs::same(&new, &before) {
                    return Ok(before);
                }
                let now = op.ctx.now_string();
                model::track_update(&op.ctx, Some(&before), &mut new, &op.user_agent, &now);
            }
            match self.0.put_tree(resource, new, revision).await? {
                Written::Done(object) => return Ok(object.into_tree()),
                Written::Conflict(now) => current = now,
            }
        }
        Err(api::status::conflict(resource.group, resource.plural, name, api::status::OPTIMISTIC_LOCK))
    }
}

#[async_trait]
impl Writer for CoreWriter {
    async fn get(&self, resource: &'static Resource, namespace: &str, name: &str) -> Result<Value, Status> {
        match self.0.fresh(resource, namespace, name).await? {
            Some(stored) => Ok(stored.object),
            None => Err(api::status::not_found(resource.group, resource.plural, name)),
        }
    }

    async fn create(&self, resource: &'static Resource, object: Value) -> Result<Value, Status> {
        let mut object = object;
        let op = self.op(resource, object::meta(&object, "namespace"), object::name(&object));
        let map = object::map_of(&mut object);
        map.insert("kind".into(), resource.kind.into());
        map.insert("apiVersion".into(), model::api_version(resource).into());
        model::apply_defaults(resource.group, resource.version, resource.kind, &mut object);
        op.fill_system_fields(&mut object);
        if model::tracks_generation(resource) {
            object::meta_mut(&mut object).insert("generation".into(), 1.into());
        }
        let now = op.ctx.now_string();
        model::track_update(&op.ctx, None, &mut object, &op.user_agent, &now);
        match self.0.put_tree(resource, object, 0).await? {
            Written::Done(object) => Ok(object.into_tree()),
            Written::Conflict(_) => Err(api::status::already_exists(resource.group, resource.plural, &op.ctx.name)),
        }
    }

    async fn update(&self, resource: &'static Resource, object: Value) -> Result<Value, Status> {
        let wanted = object::meta(&object, "resourceVersion").to_string();
        let name = object::name(&object).to_string();
        let namespace = object::meta(&object, "namespace").to_string();
        let conflict = || api::status::conflict(resource.group, resource.plural, &name, api::status::OPTIMISTIC_LOCK);
        let mut replace = |current: &mut Value| {
            if !wanted.is_empty() && object::meta(current, "resourceVersion") != wanted {
                return Err(conflict());
            }
            let fields = current.get("metadata").and_then(|m| m.get("managedFields")).cloned();
            *current = object.clone();
            if let Some(fields) = fields {
                object::meta_mut(current).entry("managedFields").or_insert(fields);
            }
            Ok(())
        };
        self.modify(resource, &namespace, &name, &mut replace).await
    }

    async fn modify(&self, resource: &'static Resource, namespace: &str, name: &str, change: Modify<'_>) -> Result<Value, Status> {
        self.write(resource, namespace, name, change, true).await
    }

    async fn modify_unowned(&self, resource: &'static Resource, namespace: &str, name: &str, change: Modify<'_>) -> Result<Value, Status> {
        self.write(resource, namespace, name, change, false).await
    }

    async fn convert(&self, from: &'static Resource, to: &'static Resource, object: Value) -> Result<Value, Status> {
        if std::ptr::eq(from, to) {
            return Ok(object);
        }
        if from.is_custom() {
            return self.0.converted(to, object).await;
        }
        Ok(model::convert(from, to, object))
    }

    async fn delete(&self, resource: &'static Resource, namespace: &str, name: &str, options: &Value) -> Result<Value, Status> {
        let options = DeleteOptions::from_value(options)?;
        let deleted = self.op(resource, namespace, name).delete(&options).await?;
        Ok(deleted.object.into_tree())
    }
}
