//! `knarr agent`: a node that joins a cluster with a token, and afterwards has an identity of its own.
//!
//! The token names the cluster's CA by its fingerprint, so the first connection cannot be to a
//! stranger; the rest of it is a bootstrap token, good for asking for a node's client certificate.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bootstrap::balancer::{self, Balancer};
use bootstrap::cluster::Cluster;
use bootstrap::node::{CLIENT as CLIENT_CERTIFICATE, Purpose};
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::Api;
use pki::{CertKey, Renewable};
use reconcile::{Informers, Tasks};
use tokio::net::TcpListener;

use crate::cli::Place;
use crate::config::{Config, Flags};
use crate::files::{self, State};
use crate::layout::Layout;
use crate::progress::Progress;
use crate::server::{Signals, init_log};
use crate::{images, network, node, preflight, renewal, up};

/// How long signing may take.
const SIGNED: Duration = Duration::from_secs(30);
/// File names of the node's certificates.
const CLIENT: &str = "kubelet-client";
const SERVING: &str = "kubelet-server";

/// How to join.
#[derive(Args)]
pub struct AgentArgs {
    #[command(flatten)]
    pub flags: Flags,
    /// The cluster's API server, as https://10.0.0.1:6443
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// What `knarr token` prints on the server, or in the environment as KNARR_TOKEN; not needed
    /// once the node has joined
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
}

/// Prints the token of a cluster whose data is here.
pub fn print_token(place: &Place) -> Result<()> {
    let layout = Layout::new(&place.data_dir, &place.run_dir);
    let read = |name: &str| {
        let path = layout.pki().join(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}: is this the server, and has it run?", path.display()))
    };
    let ca = pki::Ca::from_pem(&read("ca.crt")?, &read("ca.key")?)?;
    println!("K{}::{}", client::fingerprint_of(ca.cert_der()), read("join.token")?.trim());
    Ok(())
}

/// Runs until a signal ends it.
pub fn run(args: &AgentArgs) -> Result<()> {
    preflight::root()?;
    let config = args.flags.resolve()?;
    let layout = Layout::new(&config.data_dir, &config.run_dir);
    let token = args.token.clone().or_else(|| std::env::var("KNARR_TOKEN").ok());
    let token = token.as_deref().map(parse).transpose()?;
    preflight::data_dir(&layout.data)?;
    let lock = if layout.marker().exists() { Some(files::lock(&layout.lock())?) } else { None };
    preflight::check(&config, &layout, &[("kubelet-port", config.kubelet_port)])?;
    files::public_dir(&layout.data)?;
    preflight::mark(&layout)?;
    let _lock = match lock {
        Some(lock) => lock,
        None => files::lock(&layout.lock())?,
    };
    files::public_dir(&layout.run)?;
    files::private_dir(&layout.pki())?;
    init_log(&config.log)?;
    sys::kernel::raise_open_files();
    images::install_crypto();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(32).enable_all().build()?;
    let server = match (&args.server, config.kubeadm.as_ref().and_then(|k| k.kubeconfig.as_ref())) {
        (Some(server), _) => server.clone(),
        (None, Some(path)) => client::Entry::read(path)?.server,
        (None, None) => bail!("which cluster is this node of? Say --server https://HOST:PORT"),
    };
    let result = runtime.block_on(serve(&server, token, config, &layout));
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

struct Token {
    fingerprint: String,
    secret: String,
}

fn parse(text: &str) -> Result<Token> {
    let form = "it should have the form K<fingerprint>::<id>.<secret>, as knarr token prints it";
    let (fingerprint, secret) = text.trim().strip_prefix('K').and_then(|t| t.split_once("::")).with_context(|| format!("--token is malformed: {form}"))?;
    ensure!(fingerprint.len() == 64 && fingerprint.bytes().all(|b| b.is_ascii_hexdigit()), "--token is malformed: {form}");
    ensure!(pki::bootstrap_token::parse(secret).is_some(), "--token is malformed: {form}");
    Ok(Token { fingerprint: fingerprint.into(), secret: secret.into() })
}

async fn serve(server: &str, token: Option<Token>, mut config: Config, layout: &Layout) -> Result<()> {
    let mut signals = Signals::new()?;
    let tasks = Tasks::new();
    let started = tokio::select! {
        started = start(server, token, &mut config, layout, &tasks) => started,
        () = signals.wait() => bail!("ended by a signal before the node was ready"),
    };
    if started.is_ok() {
        signals.wait().await;
        tracing::info!("draining");
    }
    if !tasks.shutdown(Duration::from_secs(15)).await {
        tracing::warn!("some tasks did not end in time");
    }
    started
}

async fn start(server: &str, token: Option<Token>, config: &mut Config, layout: &Layout, tasks: &Tasks) -> Result<()> {
    let progress = Progress::new();
    let address = preflight::node_ip(config);
    let balancer = Balancer::new(server, layout.servers(), &config.node_name)?;
    let (ca, own) = join(server, &balancer, token, config, layout).await?;
    progress.done("joined");
    let certificate = Shown::new(own)?;
    let client = client::https(balancer.https(&ca, &client::Credentials::default())?.showing(certificate.shown.clone()));
    tasks.spawn("API servers", balancer.clone().probe(ca.clone(), certificate.shown.clone()));
    if let Some(port) = config.balancer_port {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener = TcpListener::bind(address).await.with_context(|| format!("--balancer-port: cannot listen on {address}"))?;
        tasks.spawn("load balancer", balancer.clone().listen(listener));
    }
    // Who has joined by `join` knows the networks from then on.
    if config.kubeadm.is_none() {
        learn(&client, config).await?;
    }
    let serving = Shown::new(serving(&client, config, layout, address.into()).await?)?;
    progress.done("serving certificate");
    let exe = up::install(layout)?;
    let prepared = node::prepare(config, layout, &exe).await?;
    let identity = node::Identity { kubelet: client.clone(), network: client.clone(), serving: serving.shown.clone(), client_ca: ca, address };
    let informers = node::start(config, layout, prepared, identity, tasks).await?;
    tasks.spawn("API servers' addresses", follow(informers, balancer));
    tasks.spawn("certificates", renew(client.clone(), config.clone(), layout.clone(), certificate, serving));
    let nodes = Api::<Node>::all(client);
    loop {
        let ready = |n: &Node| n.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == "Ready" && c.status == "True");
        match nodes.get_opt(&config.node_name).await {
            Ok(Some(node)) if ready(&node) => break,
            Ok(_) => {}
            Err(error) => tracing::debug!("the node cannot be read: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    progress.done("node Ready");
    let took = progress.ready();
    let state = State {
        pid: std::process::id(),
        role: "agent".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        server: server.into(),
        node_name: config.node_name.clone(),
        ready: true,
        ready_after_ms: Some(took.as_millis() as u64),
    };
    state.write(&layout.state())
}

/// Tells the load balancer where the cluster says that its API servers are.
async fn follow(informers: Informers, balancer: Balancer) {
    let slices = informers.of::<EndpointSlice>();
    let mut changes = slices.subscribe();
    slices.synced().await;
    loop {
        let all = slices.in_namespace("default");
        balancer.learn(&balancer::addresses(all.iter().map(|slice| &**slice)));
        loop {
            let Some(change) = changes.recv().await else { return };
            if change.latest().metadata.namespace.as_deref() == Some("default") {
                break;
            }
        }
    }
}

/// The cluster's CA and this node's client certificate: those of an earlier start, or new ones.
async fn join(server: &str, balancer: &Balancer, token: Option<Token>, config: &Config, layout: &Layout) -> Result<(String, CertKey)> {
    let dir = layout.pki();
    let ca_file = dir.join("ca.crt");
    if let Some(path) = config.kubeadm.as_ref().and_then(|k| k.kubeconfig.as_ref()) {
        return joined(path, server, config).await;
    }
    if let (Ok(ca), Some(own)) = (std::fs::read_to_string(&ca_file), Kept::read(&dir, CLIENT)) {
        let name = own.peer.cn.trim_start_matches("system:node:");
        ensure!(name == config.node_name, "this node has joined as {name}: give --node-name {name}, or start anew with knarr down --purge");
        let left = own.left();
        if !own.is_due() {
            return Ok((ca, own.pair));
        }
        if left.is_positive() {
            let credentials = client::Credentials { certificate: Some((own.pair.cert_pem.clone(), own.pair.key_pem.clone())), token: None };
            let client = client::https(balancer.https(&ca, &credentials)?);
            return Ok((ca, match certificate(&client, config, &CLIENT_CERTIFICATE).await {
                Ok(new) => keep(&dir, CLIENT, new)?,
                Err(error) => {
                    tracing::warn!("the node's certificate, good for another {} h, cannot be renewed: {error:#}", left.as_hours());
                    own.pair
                }
            }));
        }
        ensure!(token.is_some(), "this node's certificate has expired: give --token, which knarr token prints on the server, to join again");
    }
    let token = token.context("this node has not joined yet: give --token, which knarr token prints on the server")?;
    let ca = client::discover_ca(server, &token.fingerprint).await?;
    let credentials = client::Credentials { certificate: None, token: Some(token.secret) };
    let bootstrap = client::https(client::Https::new(server, &ca, &credentials)?);
    let own = certificate(&bootstrap, config, &CLIENT_CERTIFICATE).await?;
    files::write(&ca_file, ca.as_bytes(), 0o644)?;
    Ok((ca, keep(&dir, CLIENT, own)?))
}

/// The same of a node that `join` has made, from its kubeconfig.
async fn joined(path: &Path, server: &str, config: &Config) -> Result<(String, CertKey)> {
    let entry = client::Entry::read(path)?;
    let Some((cert_pem, key_pem)) = entry.credentials.certificate else {
        bail!("{} holds no certificate: kubeadm reset, and join again", path.display());
    };
    let own = Kept::of(CertKey { cert_pem, key_pem }).with_context(|| format!("the certificate of {} cannot be read", path.display()))?;
    let name = own.peer.cn.trim_start_matches("system:node:");
    ensure!(name == config.node_name, "this node has joined as {name}, and is now called {}: kubeadm reset, and join again", config.node_name);
    ensure!(own.left().is_positive(), "this node's certificate has expired: kubeadm reset, and join again");
    if !own.is_due() {
        return Ok((entry.ca, own.pair));
    }
    let credentials = client::Credentials { certificate: Some((own.pair.cert_pem.clone(), own.pair.key_pem.clone())), token: None };
    let client = client::https(client::Https::new(server, &entry.ca, &credentials)?);
    match certificate(&client, config, &CLIENT_CERTIFICATE).await {
        Ok(new) => Ok((entry.ca, keep_joined(new)?)),
        Err(error) => {
            tracing::warn!("the node's certificate, good for another {} h, cannot be renewed: {error:#}", own.left().as_hours());
            Ok((entry.ca, own.pair))
        }
    }
}

/// Keeps the certificate of a node that `join` has made.
fn keep_joined(pair: CertKey) -> Result<CertKey> {
    let file = bootstrap::files::Place::default().kubelet_client();
    files::write(&file, format!("{}{}", pair.cert_pem, pair.key_pem).as_bytes(), 0o600)?;
    Ok(pair)
}

/// A certificate that is in use.
struct Shown {
    peer: pki::Peer,
    shown: Arc<Renewable>,
}

impl Shown {
    fn new(pair: CertKey) -> Result<Shown> {
        Ok(Shown { peer: pki::Peer::from_pem(&pair.cert_pem)?, shown: Renewable::new(&pair)? })
    }

    fn replace(&mut self, pair: &CertKey) -> Result<()> {
        self.peer = pki::Peer::from_pem(&pair.cert_pem)?;
        Ok(self.shown.replace(pair)?)
    }
}

/// Has the node's certificates made anew long before they end, as long as it runs.
async fn renew(client: Client, config: Config, layout: Layout, mut own: Shown, mut serving: Shown) {
    loop {
        tokio::time::sleep(renewal::period(own.peer.lifetime().min(serving.peer.lifetime()))).await;
        let now = Timestamp::now();
        if own.peer.is_due(now) {
            told("client", renew_client(&client, &config, &layout, &mut own).await);
        }
        if serving.peer.is_due(now) {
            let address = preflight::node_ip(&config).into();
            told("serving", async { serving.replace(&self::serving(&client, &config, &layout, address).await?) }.await);
        }
    }
}

async fn renew_client(client: &Client, config: &Config, layout: &Layout, own: &mut Shown) -> Result<()> {
    let new = certificate(client, config, &CLIENT_CERTIFICATE).await?;
    let is_joined = config.kubeadm.as_ref().is_some_and(|k| k.kubeconfig.is_some());
    let new = if is_joined { keep_joined(new)? } else { keep(&layout.pki(), CLIENT, new)? };
    own.replace(&new)
}

fn told(which: &str, result: Result<()>) {
    match result {
        Ok(()) => tracing::info!("the node's {which} certificate is renewed"),
        Err(error) => tracing::warn!("the node's {which} certificate cannot be renewed, and is tried again: {error:#}"),
    }
}

/// The certificate of this node's kubelet as a server, for its name and present address.
async fn serving(client: &Client, config: &Config, layout: &Layout, address: IpAddr) -> Result<CertKey> {
    let dir = layout.pki();
    let sans = [config.node_name.clone(), address.to_string()];
    let (names, wanted) = (dir.join("kubelet-server.names"), sans.join("\n"));
    if let Some(own) = Kept::read(&dir, SERVING)
        && !own.is_due()
        && std::fs::read_to_string(&names).is_ok_and(|text| text == wanted)
    {
        return Ok(own.pair);
    }
    let own = certificate(client, config, &Purpose { signer: "kubernetes.io/kubelet-serving", usage: "server auth", names: &sans }).await?;
    let own = keep(&dir, SERVING, own)?;
    files::write(&names, wanted.as_bytes(), 0o644)?;
    Ok(own)
}

/// A certificate and key of an earlier start.
struct Kept {
    pair: CertKey,
    peer: pki::Peer,
}

impl Kept {
    fn read(dir: &Path, name: &str) -> Option<Kept> {
        let read = |end: &str| std::fs::read_to_string(dir.join(format!("{name}.{end}"))).ok();
        Kept::of(CertKey { cert_pem: read("crt")?, key_pem: read("key")? })
    }

    fn of(pair: CertKey) -> Option<Kept> {
        Some(Kept { peer: pki::Peer::from_pem(&pair.cert_pem).ok()?, pair })
    }

    /// Whether it should be made anew.
    fn is_due(&self) -> bool {
        self.peer.is_due(Timestamp::now())
    }

    /// How long it is still good.
    fn left(&self) -> SignedDuration {
        SignedDuration::from_secs(self.peer.not_after - Timestamp::now().as_second())
    }
}

fn keep(dir: &Path, name: &str, pair: CertKey) -> Result<CertKey> {
    files::write(&dir.join(format!("{name}.key")), pair.key_pem.as_bytes(), 0o600)?;
    files::write(&dir.join(format!("{name}.crt")), pair.cert_pem.as_bytes(), 0o644)?;
    Ok(pair)
}

/// Asks the cluster to sign, and waits for it.
async fn certificate(client: &Client, config: &Config, purpose: &Purpose<'_>) -> Result<CertKey> {
    Ok(bootstrap::node::certificate(&Cluster::new(client.clone()), &config.node_name, purpose, SIGNED).await?)
}

/// The cluster's networks and domain, which the server has published. A server that does not answer
/// may be starting too: a node that has joined waits for it.
async fn learn(client: &Client, config: &mut Config) -> Result<()> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), "kube-public");
    let mut told = false;
    let map = loop {
        match maps.get(network::CLUSTER_MAP).await {
            Ok(map) => break map,
            Err(error @ kube::Error::Api(_)) => return Err(error).context("the cluster's networks cannot be read: is it a knarr cluster?"),
            Err(error) if !told => {
                tracing::warn!("waiting for the server: {error}");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let data = map.data.unwrap_or_default();
    let flags = Flags {
        node_name: Some(config.node_name.clone()),
        cluster_cidr: data.get("cluster-cidr").cloned(),
        service_cidr: data.get("service-cidr").cloned(),
        cluster_domain: data.get("cluster-domain").cloned(),
        ..Flags::default()
    };
    let published = flags.resolve()?;
    config.cluster_cidr = published.cluster_cidr;
    config.service_cidr = published.service_cidr;
    config.cluster_domain = published.cluster_domain;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_checked() {
        let good = format!("K{}::abcdef.0123456789abcdef", "a".repeat(64));
        assert_eq!(parse(&good).expect("good").secret, "abcdef.0123456789abcdef");
        for bad in ["", "abcdef.0123456789abcdef", "Kabc::abcdef.0123456789abcdef", &good.replace('.', "")] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
