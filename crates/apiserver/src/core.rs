//! The generic registry's foundation: objects in and out of the store and the cache, for any resource.
use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use store::{Compare, Op, RangeRequest, Store, Txn};
use tokio_util::sync::CancellationToken;

use crate::admitted::Admitted;
use crate::authn::{Authenticator, AuthnRequest};
use crate::authz::{Authorizer, AuthzAttributes, Decision, Rules};
use crate::builder::{Config, Parts};
use crate::cache::{Cache, Entry, Resource as Cached};
use crate::ctx::{Backend, Ctx, UserInfo};
use crate::aggregate::Aggregates;
use crate::custom::{CustomStrategy, Customs};
use crate::enablement::Enablement;
use crate::encrypt::Transformer;
use crate::model;
use crate::object;
use crate::storage::Reader;
use crate::stored::{self, StorageMediaType};
use crate::strategy::{Generic, Strategy};
use crate::types::{Resource, Status};

/// How long a write or a consistent read waits for the cache before it goes on without it.
const PATIENCE: Duration = Duration::from_secs(3);

/// How many objects of a list are kept as trees.
const SHORT: usize = 8;

/// Store, cache and what is installed, shared by everything that serves a request.
pub struct Core {
    pub store: Arc<dyn Store>,
    pub cache: Arc<Cache>,
    pub(crate) transformer: Arc<Transformer>,
    /// The form in which objects are written.
    pub(crate) media_type: StorageMediaType,
    /// Ends all watches when the server stops.
    pub(crate) closing: CancellationToken,
    /// Seconds that events live.
    pub(crate) event_ttl: u64,
    /// Whether containers may be privileged.
    pub(crate) allow_privileged: bool,
    /// Which of the built-in resources are served.
    pub(crate) enablement: Enablement,
    /// How long watches last at least that do not say it.
    pub(crate) watch_timeout: Duration,
    pub(crate) parts: OnceLock<Parts>,
    authorizer: OnceLock<Arc<dyn Authorizer>>,
    authenticator: OnceLock<Arc<dyn Authenticator>>,
    /// Custom resources.
    pub(crate) customs: Customs,
    /// Groups that other servers answer for.
    pub(crate) aggregates: Aggregates,
    this: Weak<Core>,
    /// Trees that were asked for lately, kept alive so that they are not parsed again.
    recent: Mutex<VecDeque<Arc<Value>>>,
}

/// An object as it was written or read.
#[derive(Clone)]
pub enum Object {
    Cached(Arc<Entry>),
    Tree(Value),
}

impl Object {
    pub fn tree(&self) -> Cow<'_, Value> {
        match self {
            Object::Cached(entry) => Cow::Owned(entry.parse()),
            Object::Tree(value) => Cow::Borrowed(value),
        }
    }

    pub fn into_tree(self) -> Value {
        match self {
            Object::Cached(entry) => entry.parse(),
            Object::Tree(value) => value,
        }
    }
}

/// A stored object with the revision it has.
#[derive(Clone)]
pub struct Stored {
    pub object: Value,
    pub revision: u64,
}

/// What became of a conditional write.
pub enum Written {
    Done(Object),
    /// Somebody was faster; this is there now.
    Conflict(Option<Stored>),
}

enum Committed {
    At(u64),
    Conflict(Option<Stored>),
}

impl Core {
    pub(crate) fn new(store: Arc<dyn Store>, cache: Arc<Cache>, transformer: Transformer, media_type: StorageMediaType, config: &Config) -> Arc<Core> {
        Arc::new_cyclic(|this| Core {
            this: this.clone(),
            store,
            cache,
            transformer: Arc::new(transformer),
            media_type,
            closing: CancellationToken::new(),
            event_ttl: config.event_ttl,
            allow_privileged: config.allow_privileged,
            enablement: config.enablement.clone(),
            watch_timeout: config.min_request_timeout,
            parts: OnceLock::new(),
            authorizer: OnceLock::new(),
            authenticator: OnceLock::new(),
            customs: Customs::default(),
            aggregates: Aggregates::default(),
            recent: Mutex::default(),
        })
    }

    /// The one that all share.
    pub(crate) fn shared(&self) -> Option<Arc<Core>> {
        self.this.upgrade()
    }

    pub(crate) fn install(&self, mut parts: Parts, authorizer: Arc<dyn Authorizer>, authenticator: Arc<dyn Authenticator>) {
        parts.admitted = Admitted::new(&parts.admission);
        let _ = self.parts.set(parts);
        let _ = self.authorizer.set(authorizer);
        let _ = self.authenticator.set(authenticator);
    }

    pub(crate) fn parts(&self) -> &Parts {
        static NONE: OnceLock<Parts> = OnceLock::new();
        self.parts.get().unwrap_or_else(|| NONE.get_or_init(Parts::default))
    }

    /// What registry code gets to see of the server.
    pub fn backend(self: &Arc<Core>) -> Backend {
        Backend {
            reader: self.clone(),
            writer: Arc::new(crate::writer::CoreWriter(self.clone())),
            unserved: Arc::new(crate::unserved::CoreUnserved(self.clone())),
            authorizer: Arc::new(Late(self.clone())),
            authenticator: Arc::new(Late(self.clone())),
        }
    }

    /// The strategy of a (sub)resource; subresources without one share the resource's.
    pub fn strategy(&self, resource: &Resource, subresource: &str) -> Arc<dyn Strategy> {
        let strategies = &self.parts().strategies;
        let find = |sub: &str| strategies.get(&(resource.group.to_string(), resource.plural.to_string(), sub.to_string())).cloned();
        find(subresource).or_else(|| find("")).unwrap_or_else(|| Arc::new(Generic))
    }

    /// The strategy for a request.
    pub fn strategy_of(&self, ctx: &Ctx, subresource: &str) -> Arc<dyn Strategy> {
        match &ctx.custom {
            Some(custom) => Arc::new(CustomStrategy(custom.clone())),
            None => self.strategy(ctx.resource, subresource),
        }
    }

    /// This resource's cache. Every stored resource has one.
    pub fn cached(&self, resource: &Resource) -> Result<Arc<Cached>, Status> {
        self.cache
            .resource(resource.storage_prefix)
            .ok_or_else(|| api::status::internal(format!("{} is not stored", resource.plural)))
    }

    /// The object in the cache.
    pub fn entry(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Arc<Entry>> {
        let cached = self.cache.resource(resource.storage_prefix)?;
        cached.snapshot().map.get(cache_key(resource, namespace, name).as_str()).cloned()
    }

    /// The present state, for a change to it: from the cache, which has at least all that this server wrote.
    pub async fn current(&self, resource: &'static Resource, namespace: &str, name: &str) -> Result<Option<Stored>, Status> {
        let Some(entry) = self.entry(resource, namespace, name) else { return Ok(None) };
        let entry = self.view(resource, entry).await?;
        Ok(Some(Stored { object: self.served(resource, entry.parse()), revision: entry.revision }))
    }

    /// The present state, from the store itself.
    pub async fn fresh(&self, resource: &'static Resource, namespace: &str, name: &str) -> Result<Option<Stored>, Status> {
        let key = storage_key(resource, namespace, name);
        let found = self.store.range(RangeRequest::key(key)).await.map_err(store_error)?;
        self.stored(resource, found.kvs.into_iter().next()).await
    }

    /// Whether the present state is stored by a key that writes no more.
    pub async fn is_stale(&self, resource: &'static Resource, namespace: &str, name: &str) -> Result<bool, Status> {
        if !self.transformer.is_on() {
            return Ok(false);
        }
        let key = storage_key(resource, namespace, name);
        let found = self.store.range(RangeRequest::key(key)).await.map_err(store_error)?;
        let stale = |kv: &store::KeyValue| self.transformer.is_stale(&kv.key, &kv.value);
        found.kvs.first().map_or(Ok(false), stale).map_err(api::status::internal)
    }

    async fn stored(&self, resource: &'static Resource, kv: Option<store::KeyValue>) -> Result<Option<Stored>, Status> {
        let Some(kv) = kv else { return Ok(None) };
        let plain = self.transformer.open(&kv.key, &kv.value).map_err(api::status::internal)?;
        let mut object = stored::tree(&plain).map_err(api::status::internal)?;
        object::set_meta(&mut object, "resourceVersion", &kv.mod_revision.to_string());
        let revision = kv.mod_revision as u64;
        if resource.is_custom() {
            let entry = self.view(resource, Arc::new(Entry::of(&object, revision))).await?;
            return Ok(Some(Stored { object: entry.parse(), revision }));
        }
        Ok(Some(Stored { object: self.served(resource, object), revision }))
    }

    /// Stored form → the version that `resource` serves; of custom resources the entry's view must be given.
    pub fn served(&self, resource: &'static Resource, object: Value) -> Value {
        if model::is_storage_version(resource) { object } else { model::convert(model::storage_resource(resource), resource, object) }
    }

    /// Writes the object if its key is still at `expect` (0: absent). What is served as it is stored becomes the cache's
    /// entry: its tree is not kept while the disk is waited for, by many requests at once.
    pub async fn put(&self, resource: &'static Resource, mut object: Value, expect: u64) -> Result<Written, Status> {
        if resource.is_custom() || !model::is_storage_version(resource) {
            return self.put_tree(resource, object, expect).await;
        }
        let key = storage_key(resource, object::meta(&object, "namespace"), object::name(&object));
        let plain = Bytes::from(self.encode(resource, &mut object).await?);
        drop(object);
        let op = self.put_op(resource, &key, plain.clone())?;
        let revision = match self.commit(resource, key.as_bytes(), expect, op).await? {
            Committed::At(revision) => revision,
            Committed::Conflict(now) => return Ok(Written::Conflict(now)),
        };
        let cached = self.cached(resource)?.snapshot().map.get(&key[resource.storage_prefix.len()..]).cloned();
        let entry = match cached.filter(|e| e.revision == revision) {
            Some(entry) => entry,
            // changed again since, or the cache is behind
            None => Arc::new(Entry::new(&stored::json(&plain).map_err(api::status::internal)?, revision)),
        };
        Ok(Written::Done(Object::Cached(entry)))
    }

    /// As [`Core::put`], for those who go on with the tree.
    pub async fn put_tree(&self, resource: &'static Resource, mut object: Value, expect: u64) -> Result<Written, Status> {
        let key = storage_key(resource, object::meta(&object, "namespace"), object::name(&object));
        let plain = Bytes::from(self.encode(resource, &mut object).await?);
        let op = self.put_op(resource, &key, plain)?;
        self.commit_tree(resource, object, &key, expect, op).await
    }

    /// Deletes the key if it is still at `expect`; `Done` has the last state under the deletion's revision.
    pub async fn remove(&self, resource: &'static Resource, object: Value, expect: u64) -> Result<Written, Status> {
        let key = storage_key(resource, object::meta(&object, "namespace"), object::name(&object));
        let op = Op::Delete { key: key.clone().into_bytes() };
        self.commit_tree(resource, object, &key, expect, op).await
    }

    /// The bytes to store.
    async fn encode(&self, resource: &'static Resource, object: &mut Value) -> Result<Vec<u8>, Status> {
        if self.media_type.is_protobuf(resource) {
            // Stored objects have none; a commit sets the new one.
            object::meta_mut(object).remove("resourceVersion");
        }
        if resource.is_custom() {
            Ok(object::encode_stored(&self.to_storage(resource, object).await?))
        } else if model::is_storage_version(resource) {
            self.media_type.encode(resource, object)
        } else {
            self.media_type.encode(resource, &model::convert(resource, model::storage_resource(resource), object.clone()))
        }
    }

    fn put_op(&self, resource: &'static Resource, key: &str, plain: Bytes) -> Result<Op, Status> {
        let value = self.transformer.seal(key.as_bytes(), plain).map_err(api::status::internal)?;
        let ttl_seconds = model::is_event(resource).then_some(self.event_ttl);
        Ok(Op::Put { key: key.as_bytes().to_vec(), value, ttl_seconds })
    }

    async fn commit_tree(&self, resource: &'static Resource, mut object: Value, key: &str, expect: u64, op: Op) -> Result<Written, Status> {
        Ok(match self.commit(resource, key.as_bytes(), expect, op).await? {
            Committed::At(revision) => {
                object::set_meta(&mut object, "resourceVersion", &revision.to_string());
                Written::Done(Object::Tree(object))
            }
            Committed::Conflict(now) => Written::Conflict(now),
        })
    }

    async fn commit(&self, resource: &'static Resource, key: &[u8], expect: u64, op: Op) -> Result<Committed, Status> {
        let txn = Txn { compare: vec![Compare { key: key.to_vec(), mod_revision: expect as i64 }], then: vec![op] };
        let response = self.store.txn(txn).await.map_err(store_error)?;
        if !response.succeeded {
            let current = response.current.into_iter().next().flatten();
            return Ok(Committed::Conflict(self.stored(resource, current).await?));
        }
        let revision = response.revision as u64;
        self.cache.wait(revision, PATIENCE).await;
        Ok(Committed::At(revision))
    }

    /// Waits until the cache has everything that is in the store now.
    pub async fn catch_up(&self) -> Result<(), Status> {
        let revision = self.store.revision().await.map_err(store_error)? as u64;
        if self.cache.wait(revision, PATIENCE).await {
            Ok(())
        } else {
            Err(api::status::timeout("the cache is behind the store", 1))
        }
    }

    fn remember(&self, tree: &Arc<Value>) {
        let mut recent = self.recent.lock();
        if recent.len() >= 128 {
            recent.pop_front();
        }
        recent.push_back(tree.clone());
    }
}

impl Reader for Core {
    fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let entry = self.entry(resource, namespace, name)?;
        let (tree, parsed) = entry.tree_or_parse();
        if parsed {
            self.remember(&tree);
        }
        Some(tree)
    }

    fn has(&self, resource: &Resource, namespace: &str, name: &str) -> bool {
        self.entry(resource, namespace, name).is_some()
    }

    fn labels(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Value> {
        let entry = self.entry(resource, namespace, name)?;
        Some(entry.indexed(|object| crate::select::index(resource, object)).labels.clone())
    }

    fn list(&self, resource: &Resource, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let Some(cached) = self.cache.resource(resource.storage_prefix) else { return Vec::new() };
        let prefix = namespace.filter(|n| !n.is_empty()).map(|n| format!("{n}/")).unwrap_or_default();
        let snapshot = cached.snapshot();
        snapshot
            .map
            .from(&prefix)
            .take_while(|(k, _)| k.starts_with(&prefix))
            .enumerate()
            .map(|(i, (_, entry))| {
                let (tree, parsed) = entry.tree_or_parse();
                // the few of a kind that every write looks at
                if parsed && i < SHORT {
                    self.remember(&tree);
                }
                tree
            })
            .collect()
    }

    fn equivalents(&self, resource: &'static Resource) -> Vec<&'static Resource> {
        match self.custom(resource) {
            Some(custom) => custom.definition.served(),
            None => {
                let same = |r: &&'static Resource| !r.storage_prefix.is_empty() && r.storage_prefix == resource.storage_prefix;
                model::all().iter().filter(same).collect()
            }
        }
    }

    fn merge(&self, resource: &'static Resource, live: &Value, config: &Value) -> Result<Value, String> {
        // a scale has a built-in kind
        let of_kind = live.get("kind").and_then(Value::as_str) == Some(resource.kind);
        match self.custom(resource).filter(|_| of_kind) {
            Some(custom) => {
                let node = custom.version.source().map_or(api::topology::Node::Deduced, api::topology::Node::CustomResource);
                api::apply::merge(node, live, config)
            }
            None => model::merge(live, config),
        }
    }

    fn version(&self, resource: &Resource) -> u64 {
        self.cache.resource(resource.storage_prefix).map_or(0, |c| c.version())
    }
}

/// Authorizer and authenticator that are known only once the server is built.
struct Late(Arc<Core>);

impl Authorizer for Late {
    fn authorize(&self, attributes: &AuthzAttributes) -> (Decision, String) {
        match self.0.authorizer.get() {
            Some(authorizer) => authorizer.authorize(attributes),
            None => (Decision::NoOpinion, "the server is not built yet".into()),
        }
    }

    fn ask<'a>(&'a self, attributes: &'a AuthzAttributes) -> crate::authz::Answer<'a> {
        match self.0.authorizer.get() {
            Some(authorizer) => authorizer.ask(attributes),
            None => Box::pin(std::future::ready(self.authorize(attributes))),
        }
    }

    fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules {
        self.0.authorizer.get().map(|a| a.rules_for(user, namespace)).unwrap_or_default()
    }
}

#[async_trait::async_trait]
impl Authenticator for Late {
    async fn authenticate(&self, req: &AuthnRequest<'_>) -> Result<Option<UserInfo>, String> {
        match self.0.authenticator.get() {
            Some(authenticator) => authenticator.authenticate(req).await,
            None => Ok(None),
        }
    }
}

/// `namespace/name` or `name`.
pub fn cache_key(resource: &Resource, namespace: &str, name: &str) -> String {
    if resource.namespaced { format!("{namespace}/{name}") } else { name.to_string() }
}

/// Upstream's etcd key.
pub fn storage_key(resource: &Resource, namespace: &str, name: &str) -> String {
    format!("{}{}", resource.storage_prefix, cache_key(resource, namespace, name))
}

/// What a client sees of a store's failure.
pub fn store_error(error: store::Error) -> Status {
    match error {
        store::Error::Compacted { revision } => api::status::expired(format!(
            "The resourceVersion for the provided list is too old: the oldest is {revision}"
        )),
        store::Error::TooLarge { size, limit } => {
            api::status::too_large_because(format!("the object has {size} bytes, the limit is {limit}"))
        }
        store::Error::Closed => api::status::unavailable("the server is shutting down"),
        // Not to be tried again by itself: it may have been done.
        timeout @ store::Error::Timeout { .. } => {
            tracing::error!(error = %timeout, "the store does not answer");
            api::status::timeout(timeout, 0)
        }
        unavailable @ store::Error::Unavailable { .. } => {
            tracing::error!(error = %unavailable, "the store takes no requests");
            api::status::unavailable(unavailable.to_string()).retry_after(1)
        }
        other => {
            tracing::error!(error = %other, "the store failed");
            api::status::internal(other)
        }
    }
}
