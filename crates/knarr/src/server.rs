//! `knarr server`: a whole control plane and a node in one process.
//!
//! ```text
//! check → lock → certificates → (etcd) → store → API server → controllers, scheduler ┐
//!                                             └→ images, network, runtime → kubelet ─┴→ ready → serve
//! SIGTERM → readiness off, endpoint withdrawn → delay → node and controllers drain → API server → store closed → (etcd)
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use apiserver::{Builder, InProcess, Server, UserInfo};
use bootstrap::vip;
use controllers::csr::{Authority, Signing};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::Client;
use reconcile::{Informers, Tasks};
use registry::{Access, FrontProxy};

use crate::config::{self, Config, Flags, Part};
use crate::files::{self, State};
use crate::follow::{Files, Followed};
use crate::layout::Layout;
use crate::material::{self, Material};
use crate::progress::Progress;
use crate::renewal::{self, Shown};
use crate::{engine, etcd, images, lead, network, node, preflight, snapshots, storage, up};

/// The version of Kubernetes that is served.
pub const KUBERNETES: &str = "v1.36.0";
/// How long a drain may take.
const DRAIN: Duration = Duration::from_secs(15);
/// How long a start may take before it counts as failed.
const START: Duration = Duration::from_secs(120);

/// Runs until a signal ends it.
pub fn run(flags: &Flags) -> Result<()> {
    preflight::root()?;
    let config = flags.resolve()?;
    let layout = Layout::new(&config.data_dir, &config.run_dir);
    preflight::data_dir(&layout.data)?;
    engine::check(&config, &layout)?;
    let _lock = if layout.marker().exists() { Some(files::lock(&layout.lock())?) } else { None };
    preflight::check(&config, &layout, &[("secure-port", config.secure_port), ("kubelet-port", config.kubelet_port)])?;
    files::public_dir(&layout.data)?;
    preflight::mark(&layout)?;
    let _lock = match _lock {
        Some(lock) => lock,
        None => files::lock(&layout.lock())?,
    };
    files::public_dir(&layout.run)?;
    init_log(&config.log)?;
    sys::kernel::raise_open_files();
    images::install_crypto();
    let progress = Progress::new();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4)))
        .max_blocking_threads(32)
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(&config, &layout, &progress));
    // Blocking calls that hang (a dead mount) must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(2));
    if let Err(error) = &result {
        tracing::error!("{error:#}");
    }
    result
}

/// Log lines go to standard error.
pub fn init_log(filter: &str) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter).with_context(|| format!("--log {filter:?} is no filter: say info, or warn,kubelet=debug"))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    Ok(())
}

async fn serve(config: &Config, layout: &Layout, progress: &Progress) -> Result<()> {
    let mut signals = Signals::new()?;
    let tasks = Tasks::new();
    let control = tasks.child();
    let core = Tasks::new();
    // Everything else needs the store to its end.
    let below = Tasks::new();
    // Members of etcd join one after the other.
    let limit = if config.member.is_some() { START * 2 } else { START };
    let started = tokio::select! {
        started = tokio::time::timeout(limit, start(config, layout, progress, &below, &core, &control)) => {
            started.unwrap_or_else(|_| Err(anyhow::anyhow!("the cluster was not ready after {} s: see the log above, and knarr status", limit.as_secs())))
        }
        () = signals.wait() => Err(anyhow::anyhow!("ended by a signal before it was ready")),
    };
    let outcome = match started {
        Ok((mut state, server)) => {
            let took = progress.ready();
            state.ready = true;
            state.ready_after_ms = Some(took.as_millis() as u64);
            state.write(&layout.state())?;
            tracing::info!(took = ?took, "ready");
            signals.wait().await;
            tracing::info!("draining");
            server.drain();
            tokio::time::sleep(config.shutdown_delay).await;
            Ok(())
        }
        Err(error) => Err(error),
    };
    if !control.shutdown(DRAIN).await {
        tracing::warn!("some tasks did not end in time");
    }
    if !core.shutdown(DRAIN).await {
        tracing::warn!("the API server did not end in time");
    }
    if !below.shutdown(DRAIN + DRAIN).await {
        tracing::warn!("etcd did not end in time");
    }
    if let Err(error) = std::fs::remove_file(layout.state())
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("{} cannot be removed: {error}", layout.state().display());
    }
    outcome
}

/// Signs service account tokens.
fn signer(material: &Material) -> Result<Arc<pki::jwt::Signer>> {
    Ok(Arc::new(pki::jwt::Signer::from_pem(&material.service_account_key).context("the service account key")?))
}

async fn start(config: &Config, layout: &Layout, progress: &Progress, below: &Tasks, core: &Tasks, control: &Tasks) -> Result<(State, Arc<Server>)> {
    let node_ip = preflight::node_ip(config);
    let exe = up::install(layout)?;
    let mut random = |bytes: &mut [u8]| rand::fill(bytes);
    let material = material::prepare(layout, config, node_ip, &mut random)?;
    progress.done("certificates");
    let with_member;
    let config = match &config.member {
        None => config,
        Some(beside) => {
            let etcd = etcd::start(config, layout, beside, node_ip, below).await?;
            progress.done("etcd");
            with_member = Config { etcd: Some(etcd), ..config.clone() };
            &with_member
        }
    };

    let shown = Shown::new(&material)?;
    let (server, usage, live) = api_server(config, layout, &material, &shown, node_ip, core).await?;
    progress.done("store");
    // The node's parts need nothing of the API server to get ready.
    let prepared = node::prepare(config, layout, &exe);
    let (prepared, ()) = tokio::join!(prepared, server.ready());
    let prepared = prepared?;
    let serving = listen(&server, config, &material, core).await?;
    followed(config, layout, &material).start(&serving, live, core);
    progress.done("API server");

    let clients = Clients(server.clone());
    let informers = Informers::new(clients.user("system:kube-controller-manager", &[]), control.clone());
    let settings = controllers::Config {
        controllers: controllers::Selection::new(&["*", "bootstrapsigner", "tokencleaner"]).expect("these are known"),
        root_ca: Some(material.ca_pem.clone()),
        // Where the CA is somebody else's, so are the signatures.
        signing: material.ca.as_ref().map(|ca| Signing { lifetime: config.certificate_lifetime, ..Signing::by(Authority::Pem(ca.cert_pem().into(), ca.key_pem().into())) }),
        node_ranges: Some(controllers::NodeRanges { cluster: (config.cluster_cidr.address, config.cluster_cidr.prefix), node_mask: 24 }),
        token_signer: Some(signer(&material)?),
        ..controllers::Config::default()
    };
    let runs = |part: Part| !config.disabled.contains(&part);
    // Where others may serve the same objects, one at a time works on them.
    let identity = config.etcd.as_ref().map(|_| lead::identity(&config.node_name));
    if runs(Part::Controllers) {
        let (clients, informers) = (clients.clone(), informers.clone());
        let manager = clients.user("system:kube-controller-manager", &[]);
        lead::when_leading("kube-controller-manager", manager, identity.as_deref(), control, move |tasks| {
            let accounts = clients.clone();
            controllers::start(&move |name| accounts.service_account(name), &informers, tasks, &settings);
            controllers::volume::start_local_path(clients.service_account("local-path-provisioner"), &informers, tasks);
            Ok(())
        })?;
    }
    if runs(Part::Scheduler) {
        let (client, informers) = (clients.user("system:kube-scheduler", &[]), informers.clone());
        lead::when_leading("kube-scheduler", client.clone(), identity.as_deref(), control, move |tasks| {
            scheduler::start(client.clone(), &informers, tasks, scheduler::Config::default());
            Ok(())
        })?;
    }
    crate::metrics::start(&usage, &material, &informers, control)?;
    let admin = clients.user("system:admin", &["system:masters"]);
    ::metrics::publish(&admin).await?;
    network::publish(&admin, config).await?;
    storage::publish(&admin).await?;
    dns::publish::run(IpAddr::V4(config.dns()), &Informers::new(admin, control.clone()), control);
    let (every, keep) = config.snapshots;
    if !every.is_zero() {
        control.spawn("snapshots", snapshots::run(clients.user("system:admin", &["system:masters"]), layout.snapshots(), every, keep));
    }
    virtual_address(config, node_ip, &clients, control)?;
    let running: Vec<&str> = [Part::Controllers, Part::Scheduler].into_iter().filter(|p| runs(*p)).map(Part::name).collect();
    if !running.is_empty() {
        progress.done(&running.join(", "));
    }

    let identity = format!("system:node:{}", config.node_name);
    let node = node::Identity {
        kubelet: clients.user(&identity, &["system:nodes"]),
        network: clients.user("system:kube-proxy", &[]),
        serving: shown.kubelet_serving.clone(),
        client_ca: material.ca_pem.clone(),
        address: node_ip,
    };
    node::start(config, layout, prepared, node, control).await?;
    control.spawn("certificates", renewal::keep(config.clone(), layout.clone(), node_ip, material, shown));
    // Without controllers of its own, the rest is done when others do it.
    if runs(Part::Controllers) {
        wait_for_node(&informers, &config.node_name).await;
        progress.done("node Ready");
        network::dns_answers(config).await;
        progress.done("cluster DNS");
        wait_for_account(&informers).await;
        progress.done("default service account");
    }
    let state = State {
        pid: std::process::id(),
        role: "server".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        server: format!("https://{node_ip}:{}", config.secure_port),
        node_name: config.node_name.clone(),
        ready: false,
        ready_after_ms: None,
    };
    Ok((state, server))
}

async fn api_server(config: &Config, layout: &Layout, material: &Material, shown: &Shown, node_ip: Ipv4Addr, core: &Tasks) -> Result<(Arc<Server>, ::metrics::Service, registry::Live)> {
    let store = engine::open(config, layout).await?;
    if let Some(etcd) = &config.etcd {
        etcd.follow(core);
    }
    let authentication = config.authentication.as_ref().map(|(config, _)| config.clone()).unwrap_or_default();
    let anonymous = authentication.anonymous.clone();
    let settings = apiserver::Config {
        audit: config.audit.clone(),
        encryption: material::encryption(&material.encryption_keys),
        storage_prefix: config.etcd.as_ref().map_or("/registry".into(), |etcd| etcd.prefix.clone()),
        kubelet_ca: Some(material.kubelet_ca.clone()),
        kubelet_client: Some(shown.kubelet_client.clone()),
        proxy_client: Some(shown.front_proxy.clone()),
        git_version: KUBERNETES.into(),
        anonymous: anonymous.as_ref().is_none_or(|a| a.enabled),
        anonymous_paths: anonymous.map(|a| a.paths).unwrap_or_default(),
        ..apiserver::Config::default()
    };
    let mut builder = Builder::new(settings, store)?;
    let signer = signer(material)?;
    // They run in this process and are well as long as it is not told to end.
    let stop = core.token();
    let healthy: apiserver::builder::Check = Arc::new(move || if stop.is_cancelled() { Err("shutting down".into()) } else { Ok(()) });
    let mut access = Access { front_proxy: Some(FrontProxy::of_cluster(material.front_proxy_ca.clone())), authentication, ..Access::default() };
    if let Some((authorization, _)) = &config.authorization {
        access.authorization = authorization.0.clone();
    }
    let live = registry::install(
        &mut builder,
        registry::Config {
            old_keys: signer.verifier().clone(),
            issuer: config::issuer(&config.cluster_domain),
            service_cidr: config.service_cidr.to_string(),
            secure_port: config.secure_port,
            hostname: config.node_name.clone(),
            join_token: material.join_token.clone(),
            components: ["controller-manager", "scheduler", "etcd-0"].map(|name| (name.to_string(), healthy.clone())).to_vec(),
            access,
            ..registry::Config::new(&material.ca_pem, signer, IpAddr::V4(node_ip))
        },
    )?;
    let usage = crate::metrics::install(&mut builder);
    let server = builder.build()?;
    let (running, stop) = (server.clone(), core.token());
    core.spawn_uncancelled(async move { running.run(stop).await });
    let (reloads, layout, keys) = (server.clone(), layout.clone(), material.encryption_keys.clone());
    core.spawn("encryption keys", async move { engine::follow_keys(&reloads, &layout, keys).await });
    Ok((server, usage, live))
}

/// The control plane's virtual address, if there is to be one: at this node while its server is ready, and no other has it.
fn virtual_address(config: &Config, node: Ipv4Addr, clients: &Clients, control: &Tasks) -> Result<()> {
    let Some(address) = config.control_plane_vip else { return Ok(()) };
    let settings = vip::Settings { address, node, name: config.node_name.clone() };
    let cluster = config.etcd.as_ref().map(etcd::cluster_of).transpose()?;
    let client = clients.user("system:admin", &["system:masters"]);
    let ready: vip::Ready = Box::new(move || {
        let client = client.clone();
        Box::pin(async move {
            let Ok(request) = http::Request::get("/readyz").body(kube::client::Body::empty()) else { return false };
            client.send(request).await.is_ok_and(|response| response.status().is_success())
        })
    });
    let stop = control.token();
    control.spawn_uncancelled(async move {
        if let Err(error) = vip::run(settings, cluster, ready, stop.cancelled_owned()).await {
            tracing::error!("{:#}", anyhow::Error::new(error));
        }
    });
    Ok(())
}

/// What may change while the server runs: the certificates of its directory, and the files that its flags name.
fn followed(config: &Config, layout: &Layout, material: &Material) -> Files {
    let file = |name: &str, text: &str| Followed { path: layout.pki().join(name), text: text.into() };
    let pair = [file("apiserver.crt", &material.apiserver.cert_pem), file("apiserver.key", &material.apiserver.key_pem)];
    Files {
        serving: Some((pair, material.ca_pem.clone())),
        clients: Vec::new(),
        client_ca: Some(file("ca.crt", &material.ca_pem)),
        front_proxy_ca: Some(file("front-proxy-ca.crt", &material.front_proxy_ca)),
        authentication: config.authentication.as_ref().map(|(_, file)| file.clone()),
        authorization: config.authorization.as_ref().map(|(_, file)| file.clone()),
    }
}

async fn listen(server: &Arc<Server>, config: &Config, material: &Material, core: &Tasks) -> Result<Arc<apiserver::ServingTls>> {
    // The CA goes along, so that a node that joins can compare its fingerprint.
    let chain = format!("{}{}", material.apiserver.cert_pem, material.ca_pem);
    let tls = apiserver::ServingTls::new(&chain, &material.apiserver.key_pem)?;
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, config.secure_port));
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let (server, stop, serving) = (server.clone(), core.token(), tls.clone());
    core.spawn_uncancelled(async move { server.listen(listener, serving, stop).await });
    Ok(tls)
}

/// Clients of the API server in this process, each with an identity of its own.
#[derive(Clone)]
struct Clients(Arc<Server>);

impl Clients {
    fn user(&self, name: &str, groups: &[&str]) -> Client {
        let mut groups: Vec<String> = groups.iter().map(|g| g.to_string()).collect();
        groups.push("system:authenticated".into());
        let identity = InProcess(UserInfo { name: name.into(), groups, ..UserInfo::default() });
        let (server, agent) = (self.0.clone(), http::HeaderValue::from_str(&format!("knarr/{} ({name})", env!("CARGO_PKG_VERSION"))).ok());
        client::in_process(move |mut request| {
            request.extensions_mut().insert(identity.clone());
            if let Some(agent) = &agent {
                request.headers_mut().insert(http::header::USER_AGENT, agent.clone());
            }
            let server = server.clone();
            async move { server.handle(request).await }
        })
    }

    fn service_account(&self, name: &str) -> Client {
        self.user(
            &format!("system:serviceaccount:kube-system:{name}"),
            &["system:serviceaccounts", "system:serviceaccounts:kube-system"],
        )
    }
}

async fn wait_for_node(informers: &Informers, name: &str) {
    let mut changes = informers.of::<Node>().subscribe();
    while let Some(change) = changes.recv().await {
        let ready = |n: &Node| n.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == "Ready" && c.status == "True");
        if change.new.is_some_and(|n| n.metadata.name.as_deref() == Some(name) && ready(&n)) {
            return;
        }
    }
}

async fn wait_for_account(informers: &Informers) {
    let mut changes = informers.of::<ServiceAccount>().subscribe();
    while let Some(change) = changes.recv().await {
        let meta = &change.latest().metadata;
        if meta.name.as_deref() == Some("default") && meta.namespace.as_deref() == Some("default") {
            return;
        }
    }
}

/// SIGTERM and SIGINT; SIGHUP of a closed terminal is not for us.
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    /// Starts to listen.
    pub fn new() -> Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())?, hangup: signal(SignalKind::hangup())? })
    }

    /// Waits for one that means the end.
    pub async fn wait(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {}
            }
        }
    }
}
