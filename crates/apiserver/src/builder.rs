//! Collects what the registry installs, before the server is built from it.
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use store::Store;

use crate::admission::Admission;
use crate::admitted::Admitted;
use crate::audit::Auditor;
use crate::authn::Authenticator;
use crate::authz::Authorizer;
use crate::cache::Cache;
use crate::core::Core;
use crate::ctx::{Backend, UserInfo};
use crate::enablement::Enablement;
use crate::encrypt::{EncryptionConfig, Transformer};
use crate::location::Locator;
use crate::server::Server;
use crate::stored::StorageMediaType;
use crate::strategy::{Creater, Strategy, Virtual};
use crate::types::Resource;

/// (group, plural, subresource or "").
pub type Key = (String, String, String);

/// Work to be done once the store is readable and the cache synced; /readyz stays red until all are through. Retried while it fails.
pub type PostStart = Arc<dyn Fn(Backend) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

/// Work that is done again and again once all post-start hooks are through.
pub struct Periodic {
    /// What the log calls it.
    pub name: &'static str,
    /// The pause between two times; the first comes after one.
    pub every: Duration,
    pub work: PostStart,
    /// Done once, when the server is told to stop, while it still serves.
    pub stop: Option<PostStart>,
}

/// Appends to what `/metrics` says.
pub type Render = Arc<dyn Fn(&mut String) + Send + Sync>;

/// A named health check for /healthz, /livez and /readyz.
pub type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Everything the generic server does not know by itself.
#[derive(Default)]
pub struct Parts {
    pub(crate) strategies: HashMap<Key, Arc<dyn Strategy>>,
    pub(crate) creaters: HashMap<Key, Arc<dyn Creater>>,
    pub(crate) virtuals: HashMap<Key, Arc<dyn Virtual>>,
    pub(crate) locators: HashMap<Key, Arc<dyn Locator>>,
    pub(crate) admission: Arc<Vec<Arc<dyn Admission>>>,
    pub(crate) admitted: Admitted,
    pub(crate) authenticators: Vec<Arc<dyn Authenticator>>,
    pub(crate) authorizers: Vec<Arc<dyn Authorizer>>,
    pub(crate) post_start: Vec<(String, PostStart)>,
    pub(crate) also_known: HashMap<&'static str, &'static [&'static str]>,
    pub(crate) checks: Vec<(String, Check)>,
    pub(crate) periodic: Vec<Periodic>,
    pub(crate) metrics: Vec<Render>,
    pub(crate) documents: HashMap<String, (String, Vec<u8>)>,
    pub(crate) served: Vec<&'static [Resource]>,
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

    /// A group version beside the built-in ones, all of whose resources are computed: discovery shows it, and each of
    /// them is answered by the [`Virtual`] that is installed for it.
    pub fn served_group(&mut self, resources: &'static [Resource]) {
        self.served.push(resources);
    }

    /// A resource of a group that was installed.
    pub(crate) fn served(&self, group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
        self.served.iter().copied().flatten().find(|r| r.plural == plural && r.group == group && r.version == version)
    }

    pub fn locator(&mut self, group: &str, plural: &str, subresource: &str, locator: Arc<dyn Locator>) {
        self.locators.insert(Self::key(group, plural, subresource), locator);
    }

    /// Appends to the admission chain.
    pub fn admission(&mut self, plugin: Arc<dyn Admission>) {
        Arc::make_mut(&mut self.admission).push(plugin);
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

    /// Upstream's names of what the hook of this name does.
    pub fn also_known(&mut self, hook: &'static str, as_: &'static [&'static str]) {
        self.also_known.insert(hook, as_);
    }

    pub fn check(&mut self, name: &str, check: Check) {
        self.checks.push((name.to_string(), check));
    }

    /// Work to be done again and again while the server runs.
    pub fn periodic(&mut self, periodic: Periodic) {
        self.periodic.push(periodic);
    }

    /// Families of metrics beside the server's own.
    pub fn metrics(&mut self, render: Render) {
        self.metrics.push(render);
    }

    /// A fixed document at a non-resource path (`/.well-known/openid-configuration`): content type and body.
    pub fn document(&mut self, path: &str, content_type: &str, body: Vec<u8>) {
        self.documents.insert(path.to_string(), (content_type.to_string(), body));
    }
}

/// The identity of a caller in the same process. Only wiring code makes one and puts it into a request's extensions; it
/// passes authorization like everyone's. Requests from the network never have it: the listener makes their extensions.
#[derive(Debug, Clone)]
pub struct InProcess(pub UserInfo);

/// How the server is to be.
pub struct Config {
    /// What is recorded of requests, and where.
    pub audit: crate::audit::Config,
    /// Which resources are encrypted at rest, and with what.
    pub encryption: EncryptionConfig,
    /// PEM of the CA that kubelets' serving certificates must come from.
    pub kubelet_ca: Option<String>,
    /// PEM certificate and key that this server shows to kubelets.
    pub kubelet_client: Option<Arc<pki::Renewable>>,
    /// PEM certificate and key that this server shows to aggregated servers: the front proxy's.
    pub proxy_client: Option<Arc<pki::Renewable>>,
    /// The form in which objects are written; unless told, JSON where the store is this server's alone, and upstream's
    /// protobuf where others may read it.
    pub storage_media_type: Option<StorageMediaType>,
    /// What the keys in the store begin with (upstream's `--etcd-prefix`).
    pub storage_prefix: String,
    /// How often history is forgotten that is older than this; never, if zero.
    pub compact_every: Duration,
    /// How long events live, in seconds.
    pub event_ttl: u64,
    /// Whether containers may be privileged.
    pub allow_privileged: bool,
    /// Which of the built-in resources are served.
    pub enablement: Enablement,
    /// Whether requests without credentials are those of `system:anonymous`; refused otherwise.
    pub anonymous: bool,
    /// How many requests are served at once.
    pub concurrency: Concurrency,
    /// The only paths at which they are; all, if none is given.
    pub anonymous_paths: Vec<String>,
    /// Longest time a request may take that is no watch or stream.
    pub request_timeout: Duration,
    /// How long watches last at least whose clients do not say it, and at most twice as long.
    pub min_request_timeout: Duration,
    /// Origins of web pages that may ask, as regular expressions.
    pub cors_allowed_origins: Vec<String>,
    /// Directives of the header `Strict-Transport-Security`; without any, there is none.
    pub strict_transport_security: Vec<String>,
    /// How long connections may do nothing.
    pub timeouts: crate::Timeouts,
    /// Whether there is something at `/debug/pprof/`.
    pub profiling: bool,
    /// What `/flagz` tells; it is not there without any.
    pub flags: BTreeMap<String, String>,
    /// `v1.36.0`.
    pub git_version: String,
    /// `host:port` that `/api` names; the request's Host when there is none.
    pub advertise_address: Option<String>,
}

/// How many requests are served at once, watches and streams aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concurrency {
    /// Priority and fairness divides the sum of both numbers by flow schemas and priority levels. Without, each is a bound
    /// of its own (zero: none), and what is beyond is refused.
    pub fair: bool,
    /// Requests that read.
    pub reads: usize,
    /// Requests that write.
    pub writes: usize,
}

impl Default for Concurrency {
    fn default() -> Concurrency {
        Concurrency { fair: true, reads: 400, writes: 200 }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            audit: crate::audit::Config::default(),
            encryption: EncryptionConfig::default(),
            kubelet_ca: None,
            kubelet_client: None,
            proxy_client: None,
            storage_media_type: None,
            storage_prefix: "/registry".into(),
            compact_every: Duration::from_secs(300),
            event_ttl: 3600,
            allow_privileged: true,
            enablement: Enablement::default(),
            anonymous: true,
            concurrency: Concurrency::default(),
            anonymous_paths: Vec::new(),
            request_timeout: Duration::from_secs(60),
            min_request_timeout: Duration::from_secs(1800),
            cors_allowed_origins: Vec::new(),
            strict_transport_security: Vec::new(),
            timeouts: crate::Timeouts::default(),
            profiling: true,
            flags: BTreeMap::new(),
            git_version: api::VERSION.into(),
            advertise_address: None,
        }
    }
}

/// Why a server cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("the encryption keys cannot be used")]
    Encryption(#[from] crate::encrypt::Error),
    #[error(transparent)]
    Audit(#[from] crate::audit::Error),
    #[error(transparent)]
    Browsers(#[from] crate::browsers::Error),
    #[error("the certificates for kubelets cannot be used: {0}")]
    Kubelet(String),
}

/// A server in the making: its store and cache are there (so [`Builder::backend`] works), the rest is installed into `parts`.
pub struct Builder {
    pub parts: Parts,
    config: Config,
    core: Arc<Core>,
}

impl Builder {
    pub fn new(config: Config, store: Arc<dyn Store>) -> Result<Builder, BuildError> {
        let mut prefixes: Vec<String> =
            crate::model::all().iter().filter(|r| crate::model::is_stored(r)).map(|r| r.storage_prefix.to_string()).collect();
        prefixes.sort();
        prefixes.dedup();
        let transformer = Transformer::new(&config.encryption)?.under(&config.storage_prefix);
        let store = store::under(store, &config.storage_prefix);
        let own = if store.is_shared() { StorageMediaType::Protobuf } else { StorageMediaType::Json };
        let media_type = config.storage_media_type.unwrap_or(own);
        let core = Core::new(store, Cache::new(prefixes), transformer, media_type, &config);
        Ok(Builder { parts: Parts::default(), config, core })
    }

    /// Reader, writer, authorizer and authenticator of the server to be. The reader is empty until the server runs.
    pub fn backend(&self) -> Backend {
        self.core.backend()
    }

    /// The finished server. It serves once [`crate::Server::run`] has filled the cache. Auditing needs a runtime here.
    pub fn build(self) -> Result<Arc<Server>, BuildError> {
        let mut parts = self.parts;
        let mut authorizers: Vec<Arc<dyn Authorizer>> = vec![Arc::new(crate::authz::Masters)];
        authorizers.append(&mut parts.authorizers);
        let authorizer = Arc::new(crate::authz::Union(authorizers));
        let authenticator = Arc::new(crate::filters::Union(std::mem::take(&mut parts.authenticators)));
        let dialer = crate::proxy::Dialer::new(self.config.kubelet_ca.as_deref(), self.config.kubelet_client.clone())
            .map_err(BuildError::Kubelet)?;
        self.core.install(parts, authorizer, authenticator);
        let counters = Arc::default();
        let auditor = Auditor::open(&self.config.audit, Arc::clone(&counters))?;
        let browsers = crate::browsers::Browsers::new(&self.config.cors_allowed_origins, &self.config.strict_transport_security)?;
        Ok(Arc::new(Server::new(self.config, self.core, dialer, auditor, counters, browsers)))
    }
}
