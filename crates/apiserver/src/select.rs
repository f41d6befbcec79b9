//! Which objects of a resource a request means: namespace, name, label and field selectors.
use api::selector::{Fields, Labels};
use serde_json::Value;

use crate::cache::{Entry, Index};
use crate::ctx::Ctx;
use crate::custom::Custom;
use crate::model;
use crate::types::{Resource, Status};

/// A parsed selection.
pub struct Selection {
    resource: &'static Resource,
    custom: Option<Custom>,
    /// Keys must start with this.
    pub prefix: String,
    /// The only key that can match.
    pub key: Option<String>,
    labels: Labels,
    fields: Fields,
}

impl Selection {
    pub fn parse(ctx: &Ctx, name: &str, labels: &str, fields: &str) -> Result<Selection, Status> {
        let (resource, namespace, custom) = (ctx.resource, ctx.namespace.as_str(), ctx.custom.clone());
        let labels = Labels::parse(labels).map_err(api::status::bad_request)?;
        let fields = Fields::parse(fields)
            .and_then(|f| {
                f.convert(|label| match &custom {
                    Some(custom) => custom.field_label(label),
                    None => api::field_labels::convert(resource.group, resource.version, resource.kind, label),
                })
            })
            .map_err(api::status::bad_request)?;
        // a field selector may narrow the scope as the path does
        let namespace = match fields.requires("metadata.namespace") {
            Some(n) if namespace.is_empty() && resource.namespaced => n.to_string(),
            _ => namespace.to_string(),
        };
        let name = match fields.requires("metadata.name") {
            Some(n) if name.is_empty() => n.to_string(),
            _ => name.to_string(),
        };
        let prefix = if resource.namespaced && !namespace.is_empty() { format!("{namespace}/") } else { String::new() };
        let key = (!name.is_empty() && (!resource.namespaced || !namespace.is_empty())).then(|| format!("{prefix}{name}"));
        Ok(Selection { resource, custom, prefix, key, labels, fields })
    }

    /// Whether every object in the scope is meant.
    pub fn everything(&self) -> bool {
        self.key.is_none() && self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether the key is in the scope.
    pub fn covers(&self, key: &str) -> bool {
        match &self.key {
            Some(only) => only == key,
            None => key.starts_with(&self.prefix),
        }
    }

    /// Whether the object (whose key is in the scope) has what the selectors want.
    pub fn matches(&self, entry: &Entry) -> bool {
        if self.labels.is_empty() && self.fields.is_empty() {
            return true;
        }
        let index = entry.indexed(|object| index(self.resource, object));
        if !self.labels.is_empty() && !self.labels.matches(&index.labels) {
            return false;
        }
        self.fields.is_empty()
            || self.fields.matches(|path| match index.fields.iter().find(|(p, _)| p == path) {
                Some((_, value)) => Some(value.clone()),
                None => self.field(entry, path),
            })
    }

    fn field(&self, entry: &Entry, path: &str) -> Option<String> {
        let r = self.resource;
        if let Some(custom) = &self.custom {
            return custom.field(&entry.tree(), path);
        }
        if model::is_storage_version(r) {
            return api::field_labels::get(r.group, r.kind, &entry.tree(), path);
        }
        let served = model::convert(model::storage_resource(r), r, entry.parse());
        api::field_labels::get(r.group, r.kind, &served, path)
    }

    /// As [`Selection::matches`], of an object that is not cached.
    pub fn matches_value(&self, object: &Value) -> bool {
        let labels = object.get("metadata").and_then(|m| m.get("labels")).unwrap_or(&Value::Null);
        self.labels.matches(labels)
            && self.fields.matches(|path| match &self.custom {
                Some(custom) => custom.field(object, path),
                None => api::field_labels::get(self.resource.group, self.resource.kind, object, path),
            })
    }
}

/// What is worth keeping of an object: labels, and the fields that informers select by all the time.
pub(crate) fn index(resource: &Resource, object: &Value) -> Index {
    let labels = object.get("metadata").and_then(|m| m.get("labels")).cloned().unwrap_or_default();
    let mut fields = Vec::new();
    for path in ["metadata.name", "metadata.namespace", "spec.nodeName", "status.phase"] {
        if let Some(value) = api::field_labels::get(resource.group, resource.kind, object, path) {
            fields.push((path.to_string(), value));
        }
    }
    Index { labels, fields }
}
