//! `knarr agent`: a node that joins a cluster with a token, and afterwards has an identity of its own.
//!
//! The token names the cluster's CA by its fingerprint, so the first connection cannot be to a
//! stranger; the rest of it is a bootstrap token, good for asking for a node's client certificate.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams};
use pki::CertKey;
use reconcile::Tasks;
use serde_json::json;

use crate::cli::Place;
use crate::config::{Config, Flags};
use crate::files::{self, State};
use crate::layout::Layout;
use crate::progress::Progress;
use crate::server::{Signals, init_log};
use crate::{images, network, node, preflight, up};

/// How to join.
#[derive(Args)]
pub struct AgentArgs {
    #[command(flatten)]
    pub flags: Flags,
    /// The cluster's API server, as https://10.0.0.1:6443
    #[arg(long, value_name = "URL")]
    pub server: String,
    /// What `knarr token` prints on the server; not needed once the node has joined
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
    preflight::check(&config, &layout, &[("kubelet-port", config.kubelet_port)])?;
    let token = args.token.as_deref().map(parse).transpose()?;
    files::public_dir(&layout.data)?;
    preflight::mark(&layout)?;
    let _lock = files::lock(&layout.lock())?;
    files::public_dir(&layout.run)?;
    files::private_dir(&layout.pki())?;
    init_log(&config.log)?;
    images::install_crypto();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(32).enable_all().build()?;
    let result = runtime.block_on(serve(&args.server, token, config, &layout));
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
    let (ca, own) = join(server, token, config, layout).await?;
    progress.done("joined");
    let credentials = client::Credentials { certificate: Some((own.cert_pem.clone(), own.key_pem.clone())), token: None };
    let client = client::https(client::Https::new(server, &ca, &credentials)?);
    learn(&client, config).await?;
    let serving = serving(&client, config, layout, address.into()).await?;
    progress.done("serving certificate");
    let exe = up::install(layout)?;
    let prepared = node::prepare(config, layout, &exe).await?;
    let identity = node::Identity { kubelet: client.clone(), network: client.clone(), serving, client_ca: ca, address };
    node::start(config, layout, prepared, identity, tasks).await?;
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

/// The cluster's CA and this node's client certificate: those of an earlier start, or new ones.
async fn join(server: &str, token: Option<Token>, config: &Config, layout: &Layout) -> Result<(String, CertKey)> {
    let dir = layout.pki();
    let (ca_file, cert_file, key_file) = (dir.join("ca.crt"), dir.join("kubelet-client.crt"), dir.join("kubelet-client.key"));
    let read = std::fs::read_to_string;
    if let (Ok(ca), Ok(cert_pem), Ok(key_pem)) = (read(&ca_file), read(&cert_file), read(&key_file)) {
        return Ok((ca, CertKey { cert_pem, key_pem }));
    }
    let token = token.context("this node has not joined yet: give --token, which knarr token prints on the server")?;
    let ca = client::discover_ca(server, &token.fingerprint).await?;
    let credentials = client::Credentials { certificate: None, token: Some(token.secret) };
    let bootstrap = client::https(client::Https::new(server, &ca, &credentials)?);
    let own = certificate(&bootstrap, config, "kubernetes.io/kube-apiserver-client-kubelet", "client auth", &[]).await?;
    files::write(&key_file, own.key_pem.as_bytes(), 0o600)?;
    files::write(&cert_file, own.cert_pem.as_bytes(), 0o644)?;
    files::write(&ca_file, ca.as_bytes(), 0o644)?;
    Ok((ca, own))
}

async fn serving(client: &Client, config: &Config, layout: &Layout, address: IpAddr) -> Result<CertKey> {
    let (cert_file, key_file) = (layout.pki().join("kubelet-server.crt"), layout.pki().join("kubelet-server.key"));
    if let (Ok(cert_pem), Ok(key_pem)) = (std::fs::read_to_string(&cert_file), std::fs::read_to_string(&key_file)) {
        return Ok(CertKey { cert_pem, key_pem });
    }
    let sans = [config.node_name.clone(), address.to_string()];
    let own = certificate(client, config, "kubernetes.io/kubelet-serving", "server auth", &sans).await?;
    files::write(&key_file, own.key_pem.as_bytes(), 0o600)?;
    files::write(&cert_file, own.cert_pem.as_bytes(), 0o644)?;
    Ok(own)
}

/// Asks the cluster to sign, and waits for it.
async fn certificate(client: &Client, config: &Config, signer: &str, usage: &str, sans: &[String]) -> Result<CertKey> {
    let request = pki::new_csr(&format!("system:node:{}", config.node_name), "system:nodes", sans, None)?;
    let api = Api::<CertificateSigningRequest>::all(client.clone());
    let object: CertificateSigningRequest = serde_json::from_value(json!({
        "metadata": {"generateName": "node-csr-"},
        "spec": {"request": k8s_openapi::ByteString(request.cert_pem.into_bytes()), "signerName": signer,
                 "usages": ["digital signature", usage]}}))?;
    let made = api.create(&PostParams::default(), &object).await.context("the cluster refuses the certificate request")?;
    let name = made.metadata.name.unwrap_or_default();
    for _ in 0..300 {
        let status = api.get(&name).await.context("reading the certificate request")?.status.unwrap_or_default();
        if let Some(certificate) = status.certificate {
            return Ok(CertKey { cert_pem: String::from_utf8(certificate.0)?, key_pem: request.key_pem });
        }
        if let Some(denied) = status.conditions.iter().flatten().find(|c| matches!(c.type_.as_str(), "Denied" | "Failed")) {
            bail!("the certificate request {name} was refused: {}", denied.message.clone().unwrap_or_default());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    if let Err(error) = api.delete(&name, &DeleteParams::default()).await {
        tracing::debug!("the certificate request could not be taken back: {error}");
    }
    bail!("nobody signed the certificate request {name} within 30 s: see kubectl describe csr {name}")
}

/// The cluster's networks and domain, which the server has published.
async fn learn(client: &Client, config: &mut Config) -> Result<()> {
    let map = Api::<ConfigMap>::namespaced(client.clone(), "kube-public")
        .get(network::CLUSTER_MAP)
        .await
        .context("the cluster's networks cannot be read: is it a knarr cluster?")?;
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
