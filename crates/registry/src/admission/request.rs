//! A write as webhooks and policies see it: its name and namespace, the version in which it is looked at, and the
//! AdmissionRequest that tells of it.

use std::borrow::Cow;
use std::sync::Arc;

use api::resources::split_api_version;
use apiserver::types::{Resource, Status};
use apiserver::{Attributes, Ctx, Operation, UserInfo};
use serde_json::{Value, json};

use crate::util::{CUSTOM_RESOURCE_DEFINITIONS, NAMESPACES, flag, items, text};

/// An operation by its name in rules and requests.
pub(super) fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

/// Whether the write is of a configuration of admission: nobody is asked about those, for nobody could put a wrong one
/// right otherwise.
pub(super) fn is_configuration(ctx: &Ctx) -> bool {
    ctx.resource.group == "admissionregistration.k8s.io"
}

/// Whether the write is of a namespace.
pub(super) fn is_namespace(ctx: &Ctx) -> bool {
    ctx.resource.group.is_empty() && ctx.resource.plural == "namespaces"
}

/// The namespace of a request; that of a namespace is itself.
pub(super) fn namespace_of(ctx: &Ctx) -> &str {
    if is_namespace(ctx) { &ctx.name } else { &ctx.namespace }
}

/// The name of what is written, as far as there is one already.
pub(super) fn name<'a>(ctx: &'a Ctx, object: Option<&'a Value>) -> &'a str {
    match &ctx.name[..] {
        "" => object.map_or("", |o| text(o, "/metadata/name")),
        name => name,
    }
}

/// A namespace: as the cache has it, else as it is stored, for the cache may be behind.
pub(super) async fn namespace(ctx: &Ctx, name: &str) -> Result<Arc<Value>, Status> {
    match ctx.backend.reader.get(&NAMESPACES, "", name) {
        Some(found) => Ok(found),
        None => ctx.backend.writer.get(&NAMESPACES, "", name).await.map(Arc::new),
    }
}

/// The resource that is served of a kind, built in or custom.
pub(crate) fn served(ctx: &Ctx, api_version: &str, kind: &str) -> Option<&'static Resource> {
    let (group, version) = split_api_version(api_version);
    let custom = || {
        let definitions = ctx.backend.reader.list(&CUSTOM_RESOURCE_DEFINITIONS, None);
        let definition = definitions.iter().find(|d| text(d, "/spec/group") == group && text(d, "/status/acceptedNames/kind") == kind)?;
        let served = items(definition, "/spec/versions").find(|v| text(v, "/name") == version && flag(v, "/served"))?;
        Some(api::crd::resource(definition, served))
    };
    api::resources::find_kind(group, version, kind).or_else(custom)
}

/// Group, version and kind of what a request for a resource carries.
fn kind(resource: &Resource, subresource: &str) -> (&'static str, &'static str, &'static str) {
    match resource.subresource(subresource) {
        Some(sub) => (sub.group, sub.version, sub.kind),
        None => (resource.group, resource.version, resource.kind),
    }
}

/// A write, in the version of one resource.
pub(super) struct View<'a> {
    pub attributes: &'a Attributes<'a>,
    /// The request's resource, or one of another version.
    pub target: &'static Resource,
    /// What is written; null where that is nothing.
    pub object: Cow<'a, Value>,
    /// What was there before; null where that was nothing.
    pub old: Cow<'a, Value>,
}

impl<'a> View<'a> {
    /// Looks at a write as one of the target.
    pub async fn of(attributes: &'a Attributes<'a>, target: &'static Resource, object: Option<&'a Value>) -> Result<View<'a>, Status> {
        Ok(View {
            attributes,
            target,
            object: converted(attributes.ctx, target, object).await?,
            old: converted(attributes.ctx, target, attributes.old).await?,
        })
    }

    /// What was made of the object, in the version of the request.
    pub async fn back(&self, object: Value) -> Result<Value, Status> {
        let (own, target) = (self.attributes.ctx.resource, self.target);
        if !converts(self.attributes.ctx, target) {
            return Ok(object);
        }
        self.attributes.ctx.backend.writer.convert(target, own, object).await
    }

    /// The AdmissionRequest, without uid and objects.
    pub fn request(&self) -> Value {
        let (ctx, own, target) = (self.attributes.ctx, self.attributes.ctx.resource, self.target);
        let kind = |r| {
            let (group, version, kind) = kind(r, &ctx.subresource);
            json!({"group": group, "version": version, "kind": kind})
        };
        let resource = |r: &Resource| json!({"group": r.group, "version": r.version, "resource": r.plural});
        let mut request = json!({
            "kind": kind(target),
            "resource": resource(target),
            "requestKind": kind(own),
            "requestResource": resource(own),
            "operation": operation(self.attributes.operation),
            "userInfo": user(&ctx.user),
            "dryRun": ctx.dry_run,
            "options": self.attributes.options,
        });
        let name = name(ctx, Some(&self.object));
        let namespace = if is_namespace(ctx) { name } else { &ctx.namespace };
        for (field, value) in [("subResource", &ctx.subresource[..]), ("requestSubResource", &ctx.subresource), ("name", name), ("namespace", namespace)] {
            if !value.is_empty() {
                request[field] = value.into();
            }
        }
        request
    }
}

/// Whether the objects of a request look different as those of the target. What a subresource has for an object of its
/// own is the same in all versions.
fn converts(ctx: &Ctx, target: &'static Resource) -> bool {
    !std::ptr::eq(ctx.resource, target) && kind(ctx.resource, &ctx.subresource).2 == ctx.resource.kind
}

async fn converted<'a>(ctx: &Ctx, target: &'static Resource, object: Option<&'a Value>) -> Result<Cow<'a, Value>, Status> {
    match object {
        None => Ok(Cow::Owned(Value::Null)),
        Some(object) if object.is_null() || !converts(ctx, target) => Ok(Cow::Borrowed(object)),
        Some(object) => ctx.backend.writer.convert(ctx.resource, target, object.clone()).await.map(Cow::Owned),
    }
}

/// Who makes the request, as `userInfo` shows it.
fn user(user: &UserInfo) -> Value {
    let mut info = json!({"username": user.name});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}
