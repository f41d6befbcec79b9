//! In-memory stand-ins for the server's Reader and Writer, for this crate's unit tests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use apiserver::types::{Resource, Status};
use apiserver::storage::Modify;
use apiserver::{AuthnRequest, Authenticator, Authorizer, Backend, Ctx, Reader, Unserved, UserInfo, Writer};
use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::util::text;

/// Objects by (plural, namespace, name).
#[derive(Default)]
pub(crate) struct Objects {
    map: Mutex<BTreeMap<(String, String, String), Arc<Value>>>,
    version: AtomicU64,
    /// By key, with their revisions and times to live.
    pub unserved: Mutex<BTreeMap<String, (Value, u64, Option<u64>)>>,
}

impl Objects {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn put(&self, resource: &Resource, mut object: Value) {
        let version = self.version.fetch_add(1, Ordering::SeqCst) + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let key = (resource.plural.to_owned(), text(&object, "/metadata/namespace").to_owned(), text(&object, "/metadata/name").to_owned());
        self.map.lock().insert(key, Arc::new(object));
    }

    pub fn remove(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.map.lock().remove(&(resource.plural.to_owned(), namespace.to_owned(), name.to_owned()))
    }

    /// A request context over these objects.
    pub fn ctx(self: &Arc<Self>, resource: &'static Resource, namespace: &str, name: &str, user: UserInfo) -> Ctx {
        let now = "2026-05-01T10:00:00Z".parse().expect("a time");
        Ctx::new(resource, namespace, name, user, now, self.backend())
    }

    pub fn backend(self: &Arc<Self>) -> Backend {
        Backend {
            reader: self.clone(),
            writer: self.clone(),
            unserved: self.clone(),
            authorizer: Arc::new(apiserver::authz::AlwaysAllow) as Arc<dyn Authorizer>,
            authenticator: Arc::new(Nobody),
        }
    }
}

struct Nobody;

#[async_trait]
impl Authenticator for Nobody {
    async fn authenticate(&self, _: &AuthnRequest<'_>) -> Result<Option<UserInfo>, String> {
        Ok(None)
    }
}

impl Reader for Objects {
    fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.map.lock().get(&(resource.plural.to_owned(), namespace.to_owned(), name.to_owned())).cloned()
    }

    fn list(&self, resource: &Resource, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let wanted = namespace.filter(|n| !n.is_empty());
        let map = self.map.lock();
        map.iter()
            .filter(|((plural, ns, _), _)| plural == resource.plural && wanted.is_none_or(|w| w == ns))
            .map(|(_, v)| v.clone())
            .collect()
    }

    fn version(&self, _: &Resource) -> u64 {
        self.version.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Writer for Objects {
    async fn get(&self, resource: &'static Resource, namespace: &str, name: &str) -> Result<Value, Status> {
        Reader::get(self, resource, namespace, name)
            .map(|v| (*v).clone())
            .ok_or_else(|| api::status::not_found(resource.group, resource.plural, name))
    }

    async fn create(&self, resource: &'static Resource, object: Value) -> Result<Value, Status> {
        let (namespace, name) = (text(&object, "/metadata/namespace").to_owned(), text(&object, "/metadata/name").to_owned());
        if Reader::get(self, resource, &namespace, &name).is_some() {
            return Err(api::status::already_exists(resource.group, resource.plural, &name));
        }
        self.put(resource, object);
        Writer::get(self, resource, &namespace, &name).await
    }

    async fn update(&self, resource: &'static Resource, object: Value) -> Result<Value, Status> {
        self.put(resource, object.clone());
        Ok(object)
    }

    async fn modify_unowned(&self, resource: &'static Resource, namespace: &str, name: &str, change: Modify<'_>) -> Result<Value, Status> {
        self.modify(resource, namespace, name, change).await
    }

    async fn modify(&self, resource: &'static Resource, namespace: &str, name: &str, change: Modify<'_>) -> Result<Value, Status> {
        let mut object = Writer::get(self, resource, namespace, name).await?;
        change(&mut object)?;
        self.put(resource, object.clone());
        Ok(object)
    }

    async fn delete(&self, resource: &'static Resource, namespace: &str, name: &str, _: &Value) -> Result<Value, Status> {
        self.remove(resource, namespace, name)
            .map(|v| (*v).clone())
            .ok_or_else(|| api::status::not_found(resource.group, resource.plural, name))
    }
}

#[async_trait]
impl Unserved for Objects {
    async fn get(&self, key: &str) -> Result<Option<(Value, u64)>, Status> {
        Ok(self.unserved.lock().get(key).map(|(object, revision, _)| (object.clone(), *revision)))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Value>, Status> {
        Ok(self.unserved.lock().iter().filter(|(key, _)| key.starts_with(prefix)).map(|(_, (object, ..))| object.clone()).collect())
    }

    async fn put(&self, key: &str, object: &Value, expect: u64, ttl_seconds: Option<u64>) -> Result<bool, Status> {
        let revision = self.version.fetch_add(1, Ordering::SeqCst) + 1;
        let mut map = self.unserved.lock();
        let stands = map.get(key).map_or(0, |(_, revision, _)| *revision) == expect;
        if stands {
            map.insert(key.to_owned(), (object.clone(), revision, ttl_seconds));
        }
        Ok(stands)
    }

    async fn delete(&self, key: &str) -> Result<(), Status> {
        self.unserved.lock().remove(key);
        Ok(())
    }
}

/// Runs a future that never really waits.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(out) = future.as_mut().poll(&mut context) {
            return out;
        }
    }
}
