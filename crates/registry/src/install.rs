//! Puts this crate's parts into the generic API server.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use apiserver::builder::Check;
use apiserver::{Backend, Builder, DefaultGc, Parts, Periodic};
use jiff::Timestamp;
use parking_lot::Mutex;
use pki::Roots;
use pki::jwt::{Signer, Verifier};
use serde_json::json;

use crate::admission::Plugins;
use crate::allocation::metrics::Metrics;
use crate::allocation::repair::Repair;
use crate::allocation::{Cidr, ClusterIps, NodePorts};
use crate::authn::oidc::{AuthenticationConfig, AuthenticationError, Oidc};
use crate::authn::{BootstrapTokens, ClientCertificates, FrontProxies, FrontProxy, ServiceAccountTokens, StaticTokens, TokenWebhook, TokenWebhookConfig};
use crate::authz::chain::Chain;
use crate::authz::config::{AuthorizationError, AuthorizationMode};
use crate::authz::node::NodeAuthorizer;
use crate::authz::rbac::Rbac;
use crate::bootstrap::policy::Policy;
use crate::bootstrap::{self, Facts, policy};
use crate::components::ComponentStatuses;
use crate::live::Live;
use crate::locate::{ADDRESS_TYPES, Kubelets, Log, NodeProxy, PodProxy, ServiceProxy, Stream};
use crate::metrics::Counters;
use crate::servers::endpoints::{EndpointReconciler, Server};
use crate::servers::identity::{self, Identity};
use crate::servers::tracking;
use crate::reviews::{AccessReview, RulesReview, SelfReview, TokenReview};
use crate::strategy::crd::Definitions;
use crate::strategy::csr::{Approval, RequestStatus, SigningRequests};
use crate::strategy::hooks::HookConfigurations;
use crate::strategy::namespace::{NamespaceFinalize, NamespaceStatus, Namespaces};
use crate::strategy::devices::{ClaimStatus, Claims, Classes, Slices, Templates};
use crate::strategy::plain::{Claims as VolumeClaims, Drivers, Plain, PriorityClasses, SWITCHES, Volumes};
use crate::strategy::pod::{EphemeralContainers, PodStatus, Pods, Resize};
use crate::strategy::eviction::Eviction;
use crate::strategy::pod_actions::Binding;
use crate::strategy::policies::{Bindings, Policies};
use crate::strategy::rbac::{RoleBindings, Roles};
use crate::strategy::service::Services;
use crate::strategy::token::TokenRequests;
use crate::strategy::secret::Secrets;
use crate::strategy::workloads::{DaemonSets, Deployments, Jobs, Nodes};

/// How often this server renews what says that it lives.
const SERVERS: Duration = Duration::from_secs(10);
/// How often addresses and node ports are compared with the Services.
const REPAIR: Duration = Duration::from_secs(180);
/// How often Leases of servers are looked at that are gone.
const COLLECT: Duration = Duration::from_secs(3600);

/// What this crate must know about the cluster.
#[derive(Clone)]
pub struct Config {
    /// PEM bundle of the CAs that vouch for client certificates; without, none is taken.
    pub client_ca_pem: Option<String>,
    /// Signs service account tokens.
    pub signer: Arc<Signer>,
    /// Keys beside the signer's that tokens may still be signed with.
    pub old_keys: Verifier,
    /// Issuer of service account tokens, such as `https://kubernetes.default.svc.cluster.local`.
    pub issuer: String,
    /// Issuers beside, whose tokens are taken too: those of before.
    pub other_issuers: Vec<String>,
    /// Where the issuer's keys are, if not at this server.
    pub jwks_uri: Option<String>,
    /// Longest life of service account tokens, in seconds; requests for more get as much.
    pub max_token_seconds: Option<i64>,
    /// Whether pods' own tokens go on to be good for a year, with warnings.
    pub extend_tokens: bool,
    /// Kinds of nodes' addresses by which kubelets are reached, the best first; empty = all, those that are no names first.
    pub kubelet_address_types: Vec<String>,
    /// Audiences the API server answers to; empty = the issuer.
    pub audiences: Vec<String>,
    /// Range of cluster addresses, `10.96.0.0/16`.
    pub service_cidr: String,
    /// Node ports, 30000 to 32767 upstream.
    pub node_ports: RangeInclusive<u16>,
    /// Where pods and nodes reach this API server.
    pub advertise_address: IpAddr,
    /// Port of the same.
    pub secure_port: u16,
    /// How this server comes to stand behind the service `kubernetes`.
    pub endpoint_reconciler: EndpointReconciler,
    /// The name of its machine.
    pub hostname: String,
    /// PEM of the CA of the API server's own certificate, for `cluster-info`.
    pub cluster_ca_pem: String,
    /// A bootstrap token that lets nodes join, with the rights they need for it.
    pub join_token: Option<String>,
    /// Components for `componentstatuses` with their health checks.
    pub components: Vec<(String, Check)>,
    /// Who is known beside, and what may be done.
    pub access: Access,
}

impl Config {
    /// The usual one, of a cluster whose only CA this is.
    pub fn new(ca_pem: &str, signer: Arc<Signer>, advertise_address: IpAddr) -> Config {
        Config {
            client_ca_pem: Some(ca_pem.into()),
            signer,
            old_keys: Verifier::default(),
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            other_issuers: Vec::new(),
            jwks_uri: None,
            max_token_seconds: None,
            extend_tokens: true,
            kubelet_address_types: Vec::new(),
            audiences: Vec::new(),
            service_cidr: "10.96.0.0/16".into(),
            node_ports: 30000..=32767,
            advertise_address,
            secure_port: 6443,
            endpoint_reconciler: EndpointReconciler::Lease,
            hostname: format!("host-{advertise_address}"),
            cluster_ca_pem: ca_pem.into(),
            join_token: None,
            components: Vec::new(),
            access: Access::default(),
        }
    }
}

/// Who is known beside clients with certificates and service accounts, and what decides about requests and writes.
#[derive(Clone)]
pub struct Access {
    /// The front proxy that may speak for others.
    pub front_proxy: Option<FrontProxy>,
    /// Whether bootstrap tokens are known.
    pub bootstrap_tokens: bool,
    /// Users with tokens of a file.
    pub static_tokens: Option<StaticTokens>,
    /// Issuers beside, whose tokens are taken. (Anonymous requests are for the server's own configuration.)
    pub authentication: AuthenticationConfig,
    /// Who else knows tokens.
    pub token_webhook: Option<TokenWebhookConfig>,
    /// What decides about requests, in this order.
    pub authorization: Vec<AuthorizationMode>,
    /// What looks at writes.
    pub plugins: Plugins,
}

/// As kubeadm sets an API server up, but for the front proxy.
impl Default for Access {
    fn default() -> Access {
        Access {
            front_proxy: None,
            bootstrap_tokens: true,
            static_tokens: None,
            authentication: AuthenticationConfig::default(),
            token_webhook: None,
            authorization: vec![AuthorizationMode::Node, AuthorizationMode::Rbac],
            plugins: Plugins::default(),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not an address range with a prefix length.
    #[error("service range {0:?} is not of the form 10.96.0.0/16")]
    ServiceCidr(String),
    /// Not of the form of a bootstrap token.
    #[error("the join token is not of the form abcdef.0123456789abcdef")]
    JoinToken,
    /// No usable client CA.
    #[error("client CA certificates cannot be used")]
    ClientCa(#[source] pki::Error),
    /// No usable CA of the front proxy.
    #[error("CA certificates of the front proxy cannot be used")]
    FrontProxyCa(#[source] pki::Error),
    /// An AuthenticationConfiguration that cannot be used.
    #[error(transparent)]
    Authentication(#[from] AuthenticationError),
    /// An AuthorizationConfiguration that cannot be used.
    #[error(transparent)]
    Authorization(#[from] AuthorizationError),
    /// A token webhook that cannot be used.
    #[error("token webhook: {0}")]
    TokenWebhook(String),
}

/// Installs everything into a server that is being built. What may change later is in the caller's hands.
pub fn install(builder: &mut Builder, config: Config) -> Result<Live, Error> {
    let backend = builder.backend();
    let mut live = install_parts(&mut builder.parts, &backend, config)?;
    live.backend = Some(backend);
    Ok(live)
}

/// The same into bare parts; `backend` is that of the server they are for.
pub fn install_parts(parts: &mut Parts, backend: &Backend, config: Config) -> Result<Live, Error> {
    let reader = backend.reader.clone();
    let cidr = Cidr::parse(&config.service_cidr).ok_or_else(|| Error::ServiceCidr(config.service_cidr.clone()))?;
    let service_ip = cidr.nth(1);
    if config.join_token.as_deref().is_some_and(|t| pki::bootstrap_token::parse(t).is_none()) {
        return Err(Error::JoinToken);
    }
    let audiences = match config.audiences.is_empty() {
        true => vec![config.issuer.clone()],
        false => config.audiences.clone(),
    };
    let rbac = Arc::new(Rbac::new(reader.clone()));
    let policy = Arc::new(policy::policy());

    let counters = Arc::new(Counters::of(&format!("{}:{}", config.advertise_address, config.secure_port)));
    let known = install_authn(parts, backend, &config, &audiences, &counters)?;
    let node = Arc::new(NodeAuthorizer::new(reader.clone(), policy::node_rules(&policy)));
    let chain = Arc::new(Chain::new(&config.access.authorization, node, rbac.clone(), counters.clone())?);
    parts.authorizer(chain.clone());
    let (told, of) = (counters.clone(), chain.clone());
    parts.metrics(Arc::new(move |out| {
        of.count();
        told.render(out);
    }));
    for plugin in config.access.plugins.make() {
        parts.admission(plugin);
    }
    let metrics = Arc::new(Metrics::default());
    let ips = Arc::new(ClusterIps::new(cidr.family(), metrics.clone()));
    let ports = Arc::new(NodePorts::new(config.node_ports.clone(), metrics.clone()));
    let services = Services { ips: ips.clone(), ports: ports.clone() };
    install_strategies(parts, services, rbac);
    install_creaters(parts, &config, &audiences);
    install_locators(parts, &config.kubelet_address_types);
    let components = config.components.clone();
    parts.virtual_resource("", "componentstatuses", Arc::new(ComponentStatuses { components }));
    install_discovery_documents(parts, &config);

    let facts = Facts {
        service_cidr: config.service_cidr,
        service_ip,
        advertise_address: config.advertise_address,
        secure_port: config.secure_port,
        client_ca_pem: config.client_ca_pem,
        front_proxy: config.access.front_proxy,
        cluster_ca_pem: config.cluster_ca_pem,
        join_token: config.join_token,
    };
    let (facts_of_live, required) = (facts.clone(), config.access.authorization.iter().map(AuthorizationMode::kind).collect());
    let (repair, used) = (Arc::new(Repair::new(ips.clone(), ports, config.hostname.clone())), reader.clone());
    parts.metrics(Arc::new(move |out| metrics.render(&ips.usage(&*used), out)));
    let server = Server { reconciler: config.endpoint_reconciler, address: config.advertise_address, port: config.secure_port };
    install_work(parts, policy, facts, repair, server, Identity::new(&config.hostname));
    let (client_certificates, front_proxies, oidc) = known;
    Ok(Live { client_certificates, front_proxies, oidc, chain, required, facts: Mutex::new(facts_of_live), backend: None::<Backend>, counters })
}

/// Work of one of these, as the server wants it.
fn work<F>(work: impl Fn(Backend) -> F + Send + Sync + 'static) -> apiserver::builder::PostStart
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    Arc::new(move |backend| Box::pin(work(backend)))
}

/// The hook that makes what a cluster begins with.
const BOOTSTRAP: &str = "bootstrap-objects";

/// What is done at the start, again and again, and at the end.
fn install_work(parts: &mut Parts, policy: Arc<Policy>, facts: Facts, repair: Arc<Repair>, server: Server, identity: Identity) {
    let (facts, identity) = (Arc::new(facts), Arc::new(identity));
    let begin = (facts.clone(), repair.clone(), server.clone(), identity.clone());
    parts.also_known(
        BOOTSTRAP,
        &[
            "bootstrap-controller",
            "rbac/bootstrap-roles",
            "scheduling/bootstrap-system-priority-classes",
            "start-cluster-authentication-info-controller",
            "start-service-ip-repair-controllers",
            "start-system-namespaces-controller",
        ],
    );
    parts.post_start(
        BOOTSTRAP,
        work(move |backend| {
            let (policy, (facts, repair, server, identity)) = (policy.clone(), begin.clone());
            async move {
                bootstrap::run(&backend, &policy, &facts).await?;
                // Addresses are repaired once their ranges are there.
                repair.run(&backend, Timestamp::now()).await?;
                server.reconcile(&backend).await?;
                tracking::keep(&backend, Timestamp::now()).await?;
                identity.renew(&backend, Timestamp::now()).await
            }
        }),
    );
    let stopping = (server.clone(), identity.clone());
    parts.periodic(Periodic {
        name: "kubernetes-service",
        every: SERVERS,
        work: work(move |backend| {
            let (facts, server, identity) = (facts.clone(), server.clone(), identity.clone());
            async move {
                let results = [
                    bootstrap::keep_service(&backend, &facts).await,
                    tracking::keep(&backend, Timestamp::now()).await,
                    server.reconcile(&backend).await,
                    identity.renew(&backend, Timestamp::now()).await,
                ];
                results.into_iter().collect()
            }
        }),
        stop: Some(work(move |backend| {
            let (server, identity) = stopping.clone();
            async move {
                let results = [server.remove(&backend).await, identity.remove(&backend).await];
                results.into_iter().collect()
            }
        })),
    });
    parts.periodic(Periodic {
        name: "service-ip-repair",
        every: REPAIR,
        work: work(move |backend| {
            let repair = repair.clone();
            async move { repair.run(&backend, Timestamp::now()).await }
        }),
        stop: None,
    });
    parts.periodic(Periodic {
        name: "identity-lease-garbage-collector",
        every: COLLECT,
        work: work(|backend| async move { identity::collect(&backend, Timestamp::now()).await }),
        stop: None,
    });
}

type Known = (Option<Arc<ClientCertificates>>, Option<Arc<FrontProxies>>, Arc<Oidc>);

fn install_authn(parts: &mut Parts, backend: &Backend, config: &Config, audiences: &[String], counters: &Arc<Counters>) -> Result<Known, Error> {
    let reader = &backend.reader;
    let (mut front_proxies, mut client_certificates) = (None, None);
    if let Some(front_proxy) = &config.access.front_proxy {
        let proxies = Arc::new(FrontProxies::new(front_proxy.clone()).map_err(Error::FrontProxyCa)?);
        parts.authenticator(proxies.clone());
        front_proxies = Some(proxies);
    }
    if let Some(ca) = &config.client_ca_pem {
        let certificates = Arc::new(ClientCertificates::new(Roots::from_pem(ca).map_err(Error::ClientCa)?));
        parts.authenticator(certificates.clone());
        client_certificates = Some(certificates);
    }
    if let Some(tokens) = &config.access.static_tokens {
        parts.authenticator(Arc::new(tokens.clone()));
    }
    let mut keys = config.signer.verifier().clone();
    keys.extend(&config.old_keys);
    let issuers: Vec<String> = std::iter::once(&config.issuer).chain(&config.other_issuers).cloned().collect();
    let tokens = ServiceAccountTokens::new(reader.clone(), keys, issuers.clone(), audiences.to_vec()).noting(backend.writer.clone());
    let uses = tokens.uses.clone();
    parts.metrics(Arc::new(move |out| uses.render(out)));
    parts.authenticator(Arc::new(tokens));
    if config.access.bootstrap_tokens {
        parts.authenticator(Arc::new(BootstrapTokens { reader: reader.clone() }));
    }
    // those who may have to ask others come last
    let oidc = Arc::new(Oidc::new(&config.access.authentication, &issuers, audiences, counters.clone())?);
    parts.authenticator(oidc.clone());
    if let Some(webhook) = &config.access.token_webhook {
        parts.authenticator(Arc::new(TokenWebhook::new(webhook, audiences).map_err(Error::TokenWebhook)?));
    }
    Ok((client_certificates, front_proxies, oidc))
}

fn install_strategies(parts: &mut Parts, services: Services, rbac: Arc<Rbac>) {
    parts.strategy("", "pods", "", Arc::new(Pods));
    parts.strategy("", "pods", "status", Arc::new(PodStatus));
    parts.strategy("", "pods", "ephemeralcontainers", Arc::new(EphemeralContainers));
    parts.strategy("", "pods", "resize", Arc::new(Resize));
    parts.strategy("", "nodes", "", Arc::new(Nodes));
    parts.strategy("", "services", "", Arc::new(services));
    parts.strategy("", "namespaces", "", Arc::new(Namespaces));
    parts.strategy("", "namespaces", "status", Arc::new(NamespaceStatus));
    parts.strategy("", "namespaces", "finalize", Arc::new(NamespaceFinalize));
    parts.strategy("", "secrets", "", Arc::new(Secrets));
    parts.strategy("apps", "deployments", "", Arc::new(Deployments));
    parts.strategy("apps", "daemonsets", "", Arc::new(DaemonSets));
    parts.strategy("batch", "jobs", "", Arc::new(Jobs));
    for plural in ["roles", "clusterroles"] {
        parts.strategy("rbac.authorization.k8s.io", plural, "", Arc::new(Roles { rbac: rbac.clone() }));
    }
    for plural in ["rolebindings", "clusterrolebindings"] {
        parts.strategy("rbac.authorization.k8s.io", plural, "", Arc::new(RoleBindings { rbac: rbac.clone() }));
    }
    for subresource in ["", "status"] {
        parts.strategy(api::crd::GROUP, api::crd::PLURAL, subresource, Arc::new(Definitions));
    }
    let requests = ("certificates.k8s.io", "certificatesigningrequests");
    parts.strategy(requests.0, requests.1, "", Arc::new(SigningRequests));
    parts.strategy(requests.0, requests.1, "approval", Arc::new(Approval));
    parts.strategy(requests.0, requests.1, "status", Arc::new(RequestStatus));
    parts.strategy("resource.k8s.io", "resourceclaims", "", Arc::new(Claims));
    parts.strategy("resource.k8s.io", "resourceclaims", "status", Arc::new(ClaimStatus));
    parts.strategy("resource.k8s.io", "deviceclasses", "", Arc::new(Classes));
    parts.strategy("resource.k8s.io", "resourceslices", "", Arc::new(Slices));
    parts.strategy("resource.k8s.io", "resourceclaimtemplates", "", Arc::new(Templates));
    for (kind, mutating) in [("mutating", true), ("validating", false)] {
        let mut install = |what: &str, strategy: Arc<dyn apiserver::Strategy>| {
            parts.strategy("admissionregistration.k8s.io", &format!("{kind}admission{what}"), "", strategy);
        };
        install("policies", Arc::new(Policies { mutating }));
        install("policybindings", Arc::new(Bindings { mutating }));
    }
    for (group, plural, create_on_update, unconditional_update) in SWITCHES {
        let plain = Plain { create_on_update: *create_on_update, unconditional_update: *unconditional_update, ..Plain::DEFAULT };
        parts.strategy(group, plural, "", Arc::new(plain));
    }
    for (plural, mutating) in [("mutatingwebhookconfigurations", true), ("validatingwebhookconfigurations", false)] {
        parts.strategy("admissionregistration.k8s.io", plural, "", Arc::new(HookConfigurations { mutating }));
    }
    for group in ["", "events.k8s.io"] {
        let events = Plain { create_on_update: true, gc: DefaultGc::Unsupported, ..Plain::DEFAULT };
        parts.strategy(group, "events", "", Arc::new(events));
    }
    parts.strategy("", "replicationcontrollers", "", Arc::new(Plain { gc: DefaultGc::Orphan, ..Plain::DEFAULT }));
    for subresource in ["", "status"] {
        parts.strategy("", "persistentvolumes", subresource, Arc::new(Volumes));
    }
    parts.strategy("", "persistentvolumeclaims", "", Arc::new(VolumeClaims));
    parts.strategy("storage.k8s.io", "csidrivers", "", Arc::new(Drivers));
    parts.strategy("scheduling.k8s.io", "priorityclasses", "", Arc::new(PriorityClasses));
}

fn install_creaters(parts: &mut Parts, config: &Config, audiences: &[String]) {
    parts.creater("", "pods", "binding", Arc::new(Binding));
    parts.creater("", "bindings", "", Arc::new(Binding));
    parts.creater("", "pods", "eviction", Arc::new(Eviction));
    let tokens = TokenRequests {
        signer: config.signer.clone(),
        issuer: config.issuer.clone(),
        audiences: audiences.to_vec(),
        max_seconds: config.max_token_seconds,
        extend: config.extend_tokens,
    };
    parts.creater("", "serviceaccounts", "token", Arc::new(tokens));
    let authz = "authorization.k8s.io";
    parts.creater(authz, "selfsubjectaccessreviews", "", Arc::new(AccessReview::Own));
    parts.creater(authz, "subjectaccessreviews", "", Arc::new(AccessReview::Anyone));
    parts.creater(authz, "localsubjectaccessreviews", "", Arc::new(AccessReview::Local));
    parts.creater(authz, "selfsubjectrulesreviews", "", Arc::new(RulesReview));
    parts.creater("authentication.k8s.io", "tokenreviews", "", Arc::new(TokenReview { audiences: audiences.to_vec() }));
    parts.creater("authentication.k8s.io", "selfsubjectreviews", "", Arc::new(SelfReview));
}

fn install_locators(parts: &mut Parts, address_types: &[String]) {
    let usual = || ADDRESS_TYPES.map(String::from).into();
    let kubelets = Kubelets { address_types: if address_types.is_empty() { usual() } else { address_types.into() } };
    parts.locator("", "pods", "log", Arc::new(Log(kubelets.clone())));
    for (subresource, path) in [("exec", "exec"), ("attach", "attach"), ("portforward", "portForward")] {
        parts.locator("", "pods", subresource, Arc::new(Stream { kubelets: kubelets.clone(), path }));
    }
    parts.locator("", "pods", "proxy", Arc::new(PodProxy));
    parts.locator("", "services", "proxy", Arc::new(ServiceProxy));
    parts.locator("", "nodes", "proxy", Arc::new(NodeProxy(kubelets)));
}

/// Where others learn how to check service account tokens (OpenID Connect discovery).
fn install_discovery_documents(parts: &mut Parts, config: &Config) {
    let mut keys = config.signer.verifier().clone();
    keys.extend(&config.old_keys);
    let host = match config.advertise_address {
        IpAddr::V6(ip) => format!("[{ip}]"),
        ip => ip.to_string(),
    };
    let document = json!({
        "issuer": config.issuer,
        "jwks_uri": config.jwks_uri.clone().unwrap_or_else(|| format!("https://{host}:{}/openid/v1/jwks", config.secure_port)),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": keys.algorithms(),
    });
    parts.document("/.well-known/openid-configuration", "application/json", document.to_string().into_bytes());
    parts.document("/openid/v1/jwks", "application/jwk-set+json", keys.jwks().to_string().into_bytes());
}
