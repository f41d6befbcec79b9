//! The node agent: pod workers, probes, volumes, status. Knows no netlink, nf_tables or runtime.
//!
//! [`run`] registers the node, keeps its status and lease, gives each pod that is bound to it a
//! worker, and serves logs, exec and statistics over HTTPS. What a pod needs next is decided by
//! `plan` and told by `status`, both pure; `worker` does it through the CRI. Not here yet: static
//! pods, eviction, CSI volumes, device plug-ins, resizing in place.
#![forbid(unsafe_code)]

mod admit;
mod atomic;
mod backoff;
mod cgroups;
mod check;
mod claims;
mod config;
mod env;
mod images;
mod kill;
mod local_storage;
mod logs;
mod manager;
mod messages;
mod node;
mod objects;
mod plan;
mod pod;
mod probes;
mod report;
mod resize;
mod resources;
mod server;
mod start;
mod status;
mod view;
mod volumes;
mod worker;

pub use server::tls_acceptor;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use cri::v1::VersionRequest;
use k8s_openapi::api::core::v1::{Node, Pod, Service, Taint};
use kube::{Client, ResourceExt};
use reconcile::{Informers, Recorder, Tasks};

use crate::manager::Pods;
use crate::worker::Shared;

/// What a kubelet has to know. Nothing global is assumed: several may run on one machine.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the node's object.
    pub node_name: String,
    /// The node's addresses, the primary one first.
    pub node_ips: Vec<IpAddr>,
    /// Data directory of the kubelet: pods' volumes.
    pub root_dir: PathBuf,
    /// Where a tmpfs holds what must not reach a disk: secrets and tokens of volumes.
    pub run_dir: PathBuf,
    /// Holds a directory of logs a pod.
    pub log_dir: PathBuf,
    /// Resolvers of pods that use the cluster's DNS.
    pub cluster_dns: Vec<IpAddr>,
    /// As `cluster.local`.
    pub cluster_domain: String,
    /// The node's own resolver configuration.
    pub resolv_conf: PathBuf,
    /// The cgroup below which pods get theirs, as `/` or `/node-2`; none: pods get no cgroup of their own.
    pub cgroup_root: Option<String>,
    /// Where the HTTPS server listens.
    pub listen: SocketAddr,
    /// The server's certificate.
    pub serving: Arc<pki::Renewable>,
    /// Who may vouch for clients of the server.
    pub client_ca_pem: String,
    /// More labels and taints for a node that registers for the first time.
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    /// How many pods fit; 110 upstream.
    pub max_pods: u32,
    /// As `v1.36.0`.
    pub version: String,
    /// Holds the volumes of the local-path provisioner; none: this node takes none.
    pub local_storage: Option<PathBuf>,
}

/// Why a kubelet could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory cannot be made.
    #[error("cannot make {}: {source}", path.display())]
    Directory { path: PathBuf, source: std::io::Error },
    /// The tmpfs for secrets, or a cgroup.
    #[error(transparent)]
    System(#[from] sys::Error),
    /// The runtime does not answer.
    #[error("the container runtime does not answer: {0}")]
    Runtime(#[from] cri::Error),
    /// Certificates.
    #[error("serving certificate: {0}")]
    Certificate(String),
    /// The port.
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
}

/// Starts a kubelet; returns when its server listens and its tasks run (in `tasks`). Pods outlive it.
pub async fn run(
    config: Config,
    client: Client,
    informers: Informers,
    runtime: Arc<dyn cri::RuntimeService>,
    image_service: Arc<dyn cri::ImageService>,
    tasks: Tasks,
) -> Result<(), Error> {
    let config = Arc::new(config);
    for path in [&config.root_dir, &config.run_dir, &config.log_dir] {
        std::fs::create_dir_all(path).map_err(|source| Error::Directory { path: path.clone(), source })?;
    }
    let version = runtime.version(VersionRequest { version: "v1".into() }).await?;
    let machine = node::Machine::read(&config, &*runtime).await;
    let recorder = Recorder::new(&tasks, client.clone(), "kubelet", Some(config.node_name.clone()));
    let objects = Arc::new(objects::ApiObjects::new(client.clone()));
    let own_node = informers.selected::<Node>(&format!("metadata.name={}", config.node_name));
    let labels = {
        let (own_node, name) = (own_node.clone(), config.node_name.clone());
        move || own_node.get("", &name).map(|n| n.labels().clone()).unwrap_or_default()
    };
    let site = volumes::Site { node: config.node_name.clone(), labels: Box::new(labels), storage: config.local_storage.clone() };
    let volumes = volumes::Volumes::new(config.root_dir.clone(), config.run_dir.clone(), objects.clone()).at(site);
    volumes.prepare()?;
    let cgroups = match &config.cgroup_root {
        Some(root) => Some(cgroups::PodCgroups::new(sys::cgroup::Cgroups::detect()?, root)?),
        None => None,
    };
    let host = std::fs::read_to_string(&config.resolv_conf).unwrap_or_default();
    let pods = Arc::new(Pods::new(tasks.clone()));
    let wake: Arc<dyn Fn(&str) + Send + Sync> = {
        let pods = pods.clone();
        Arc::new(move |uid: &str| pods.refresh(uid))
    };
    let (_, allocatable) = machine.resources(config.max_pods);
    if let Some(root) = &config.local_storage {
        local_storage::start(&tasks, client.clone(), own_node.clone(), config.node_name.clone(), root.clone());
    }
    let admit = {
        let (pods, config, allocatable) = (pods.clone(), config.clone(), allocatable.clone());
        Box::new(move |pod: &Pod| {
            let labels = own_node.get("", &config.node_name).map(|n| n.labels().clone()).unwrap_or_default();
            admit::admit(pod, &labels, &config.node_name, &allocatable, &pods.active_but(&pod::uid(pod)))
        })
    };
    let removed = {
        let (pods, objects) = (pods.clone(), objects.clone());
        Box::new(move |uid: &str| {
            pods.remove(uid);
            objects.forget(uid);
        })
    };
    let shared = Arc::new(Shared {
        node_name: config.node_name.clone(),
        node_ips: config.node_ips.clone(),
        log_root: config.log_dir.clone(),
        dns: config::Dns { cluster: config.cluster_dns.clone(), domain: config.cluster_domain.clone(), host: config::parse_resolv_conf(&host) },
        runtime: runtime.clone(),
        runtime_name: version.runtime_name,
        images: images::Images::new(image_service.clone(), recorder.clone()),
        volumes,
        objects,
        watches: objects::Watches::new(Some(client.clone()), tasks.clone(), wake),
        reporter: report::Reporter::new(Arc::new(client.clone()), &tasks),
        recorder: recorder.clone(),
        probe_counts: probes::ProbeCounts::default(),
        cgroups,
        services: Some(informers.of::<Service>()),
        allocatable: parking_lot::RwLock::new(allocatable),
        memory_capacity: machine.memory,
        tasks: tasks.clone(),
        admit,
        removed,
    });

    let server = server::Server::new(config.clone(), client.clone(), pods.clone(), shared.clone());
    server.listen(&tasks).await?;

    let keeper = Arc::new(node::NodeKeeper { config: config.clone(), client, runtime: runtime.clone(), images: image_service, recorder, machine });
    tasks.spawn("node status", keeper.clone().keep_status());
    tasks.spawn("node lease", keeper.keep_lease());
    tasks.spawn("container events", manager::take_events(pods.clone(), runtime));
    tasks.spawn("log rotation", logs::rotate(shared.clone()));

    let informer = informers.selected::<Pod>(&format!("spec.nodeName={}", config.node_name));
    tasks.spawn("pods", async move {
        let changes = informer.subscribe();
        let taking = manager::take_changes(pods.clone(), shared.clone(), changes);
        let judging = async {
            informer.synced().await;
            while let Err(error) = manager::end_orphans(&pods, &shared, &|uid| informer.list().iter().any(|p| pod::uid(p) == uid)).await {
                tracing::warn!("cannot look for orphans: {error}");
                tokio::time::sleep(std::time::Duration::from_secs(5)).await;
            }
        };
        tokio::join!(taking, judging);
    });
    Ok(())
}
