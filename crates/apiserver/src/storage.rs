//! Access to stored objects for registry code: allocators, admission plug-ins, authorizers.
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use crate::types::{Resource, Status};

/// Reads from the watch cache: cheap, synchronous, possibly a moment behind other servers, never behind this server's own writes.
/// Objects are as served (with resourceVersion, apiVersion and kind).
pub trait Reader: Send + Sync {
    /// `namespace` is empty for cluster-scoped resources.
    fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Arc<Value>>;
    /// An object's labels, Null without; cheaper than the whole where they are asked for often.
    fn labels(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Value> {
        Some(self.get(resource, namespace, name)?.pointer("/metadata/labels").cloned().unwrap_or_default())
    }
    /// Whether there is such an object; cheaper than reading it.
    fn has(&self, resource: &Resource, namespace: &str, name: &str) -> bool {
        self.get(resource, namespace, name).is_some()
    }
    /// All of one namespace, or of all when it is `None` or empty.
    fn list(&self, resource: &Resource, namespace: Option<&str>) -> Vec<Arc<Value>>;
    /// All resources that show the same objects as this one, itself included: its other versions.
    fn equivalents(&self, resource: &'static Resource) -> Vec<&'static Resource> {
        let same = |r: &&'static Resource| !r.storage_prefix.is_empty() && r.storage_prefix == resource.storage_prefix;
        crate::model::all().iter().filter(same).collect()
    }
    /// What a configuration makes of an object of this resource, or of one of its subresources, when it is laid over it as
    /// an apply does, without anybody coming to own its fields.
    fn merge(&self, _resource: &'static Resource, live: &Value, config: &Value) -> Result<Value, String> {
        crate::model::merge(live, config)
    }
    /// Changes whenever an object of this resource changed: what was compiled from them can be kept while it stays.
    fn version(&self, resource: &Resource) -> u64;
}

/// Decides the new object from the stored one, for `Writer::modify`; may be called again after a conflict.
pub type Modify<'a> = &'a mut (dyn FnMut(&mut Value) -> Result<(), Status> + Send);

/// Writes built-in objects without authorization or admission, but with metadata upkeep, defaults and optimistic concurrency.
/// Strategies are not asked either, except that deletes are graceful and honour finalizers.
#[async_trait]
pub trait Writer: Send + Sync {
    /// Linearizable read of the stored object.
    async fn get(&self, resource: &'static Resource, namespace: &str, name: &str) -> Result<Value, Status>;
    /// Creates from an object with metadata.name (and namespace).
    async fn create(&self, resource: &'static Resource, object: Value) -> Result<Value, Status>;
    /// Replaces; with metadata.resourceVersion only that version.
    async fn update(&self, resource: &'static Resource, object: Value) -> Result<Value, Status>;
    /// Reads, changes, writes; retried on conflict. An unchanged object is not written.
    async fn modify(&self, resource: &'static Resource, namespace: &str, name: &str, change: Modify<'_>) -> Result<Value, Status>;
    /// The same, but nobody comes to own the fields that change: `managedFields` stay as they are, as upstream's do when
    /// a pod is bound. What `change` lets pass is written, so it must change something.
    async fn modify_unowned(&self, resource: &'static Resource, namespace: &str, name: &str, change: Modify<'_>) -> Result<Value, Status>;
    /// Brings an object from one version of a resource to another.
    async fn convert(&self, from: &'static Resource, to: &'static Resource, object: Value) -> Result<Value, Status> {
        Ok(if std::ptr::eq(from, to) { object } else { crate::model::convert(from, to, object) })
    }
    /// Deletes with these DeleteOptions (Null for none) as the API would: grace period, finalizers, preconditions, dryRun.
    async fn delete(&self, resource: &'static Resource, namespace: &str, name: &str, options: &Value) -> Result<Value, Status>;
}

/// Objects under keys that no path serves, such as `/registry/ranges/servicenodeports`. They are read from the store
/// itself.
#[async_trait]
pub trait Unserved: Send + Sync {
    /// The object under a key, with its revision.
    async fn get(&self, key: &str) -> Result<Option<(Value, u64)>, Status>;
    /// The objects under all keys that begin so.
    async fn list(&self, prefix: &str) -> Result<Vec<Value>, Status>;
    /// Writes an object with kind and apiVersion, if its key is still at `expect` (0: absent); says whether it was. With a
    /// time to live it goes by itself after so many seconds.
    async fn put(&self, key: &str, object: &Value, expect: u64, ttl_seconds: Option<u64>) -> Result<bool, Status>;
    /// Removes the key, if it is there.
    async fn delete(&self, key: &str) -> Result<(), Status>;
}
