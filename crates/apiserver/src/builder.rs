//! Collects what the registry installs, before the server is built from it.
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::admission::Admission;
use crate::authn::Authenticator;
use crate::authz::Authorizer;
use crate::ctx::Backend;
use crate::location::Locator;
use crate::strategy::{Creater, Strategy, Virtual};

/// (group, plural, subresource or "").
pub type Key = (String, String, String);

/// Work to be done once the store is readable and the cache synced; /readyz stays red until all are through. Retried while it fails.
pub type PostStart = Arc<dyn Fn(Backend) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

/// A named health check for /healthz, /livez and /readyz.
pub type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Everything the generic server does not know by itself.
#[derive(Default)]
pub struct Parts {
    pub(crate) strategies: HashMap<Key, Arc<dyn Strategy>>,
    pub(crate) creaters: HashMap<Key, Arc<dyn Creater>>,
    pub(crate) virtuals: HashMap<Key, Arc<dyn Virtual>>,
    pub(crate) locators: HashMap<Key, Arc<dyn Locator>>,
    pub(crate) admission: Vec<Arc<dyn Admission>>,
    pub(crate) authenticators: Vec<Arc<dyn Authenticator>>,
    pub(crate) authorizers: Vec<Arc<dyn Authorizer>>,
    pub(crate) post_start: Vec<(String, PostStart)>,
    pub(crate) checks: Vec<(String, Check)>,
    pub(crate) documents: HashMap<String, (String, Vec<u8>)>,
}

impl Parts {
    fn key(group: &str, plural: &str, subresource: &str) -> Key {
        (group.to_string(), plural.to_string(), subresource.to_string())
    }

    pub fn strategy(&mut self, group: &str, plural: &str, subresource: &str, strategy: Arc<dyn Strategy>) {
        self.strategies.insert(Self::key(group, plural, subresource), strategy);
    }

    /// POST to this (sub)resource is answered by `creater` instead of being stored.
    pub fn creater(&mut self, group: &str, plural: &str, subresource: &str, creater: Arc<dyn Creater>) {
        self.creaters.insert(Self::key(group, plural, subresource), creater);
    }

    pub fn virtual_resource(&mut self, group: &str, plural: &str, resource: Arc<dyn Virtual>) {
        self.virtuals.insert(Self::key(group, plural, ""), resource);
    }

    pub fn locator(&mut self, group: &str, plural: &str, subresource: &str, locator: Arc<dyn Locator>) {
        self.locators.insert(Self::key(group, plural, subresource), locator);
    }

    /// Appends to the admission chain.
    pub fn admission(&mut self, plugin: Arc<dyn Admission>) {
        self.admission.push(plugin);
    }

    pub fn authenticator(&mut self, authenticator: Arc<dyn Authenticator>) {
        self.authenticators.push(authenticator);
    }

    pub fn authorizer(&mut self, authorizer: Arc<dyn Authorizer>) {
        self.authorizers.push(authorizer);
    }

    /// Bootstrap objects and the like; run concurrently in their order of installation as soon as the cache is synced.
    pub fn post_start(&mut self, name: &str, hook: PostStart) {
        self.post_start.push((name.to_string(), hook));
    }

    pub fn check(&mut self, name: &str, check: Check) {
        self.checks.push((name.to_string(), check));
    }

    /// A fixed document at a non-resource path (`/.well-known/openid-configuration`): content type and body.
    pub fn document(&mut self, path: &str, content_type: &str, body: Vec<u8>) {
        self.documents.insert(path.to_string(), (content_type.to_string(), body));
    }
}
