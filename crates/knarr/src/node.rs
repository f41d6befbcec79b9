//! Wiring of a node: images, network, runtime, proxy, DNS and the kubelet, for server and agent alike.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use kube::Client;
use pki::Renewable;
use reconcile::{Informers, Tasks};
use runtime::Runtime;

use crate::config::Config;
use crate::layout::Layout;
use crate::network;

/// The cgroup below which this node's shims and pods live: its own, also beside other nodes on the machine.
fn cgroup(layout: &Layout) -> String {
    if layout.data == Path::new("/var/lib/knarr") {
        return "/knarr".into();
    }
    // FNV-1a, because it must be the same for every version of this program.
    let path = layout.data.as_os_str().as_encoded_bytes();
    let hash = path.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("/knarr-{hash:08x}")
}

/// As whom the node's parts talk to the API server, and what they are known by.
pub struct Identity {
    pub kubelet: Client,
    pub network: Client,
    pub serving: Arc<Renewable>,
    pub client_ca: String,
    pub address: Ipv4Addr,
}

/// What of a node is ready before there is an API server.
pub struct Prepared {
    runtime: Arc<Runtime>,
    overlay: overlay::Overlay,
    nft: Arc<dyn nft::Nftables>,
}

fn runtime_config(config: &Config, layout: &Layout, exe: &Path) -> runtime::Config {
    runtime::Config {
        root: layout.containers(),
        run: layout.pods_run(),
        self_exe: exe.to_path_buf(),
        cgroup_parent: cgroup(layout),
        version: env!("CARGO_PKG_VERSION").into(),
        registries: image::Options { plain_http: config.insecure_registries.clone(), extra_ca_pem: config.registry_cas.clone() },
    }
}

/// Opens images, network and runtime.
pub async fn prepare(config: &Config, layout: &Layout, exe: &Path) -> Result<Prepared> {
    let (images_dir, own) = (layout.images(), exe.to_path_buf());
    let images = tokio::task::spawn_blocking(move || -> Result<image::Store> {
        let store = image::Store::open(&images_dir).with_context(|| format!("the images in {} cannot be opened", images_dir.display()))?;
        store.ensure_builtin(&own).context("the built-in image cannot be made")?;
        Ok(store)
    });
    let nft: Arc<dyn nft::Nftables> = Arc::new(nft::Kernel::open()?);
    let overlay = overlay::Overlay::open(network::overlay_config(config, layout)?, network::filter(nft.clone())).context("the pod network cannot be opened")?;
    let images = Arc::new(images.await??);
    let runtime = Runtime::open(runtime_config(config, layout, exe), Arc::new(network::PodNetwork(overlay.clone())), images)
        .await
        .context("the container runtime cannot be opened")?;
    Ok(Prepared { runtime, overlay, nft })
}

/// Starts everything that needs an API server; the informers of its network.
pub async fn start(config: &Config, layout: &Layout, prepared: Prepared, identity: Identity, tasks: &Tasks) -> Result<Informers> {
    let Prepared { runtime, overlay, nft } = prepared;
    let shared = Informers::new(identity.network.clone(), tasks.clone());
    overlay.start(&shared, tasks);
    proxy::run(network::proxy_config(config)?, nft, &shared, tasks);
    network::serve_dns(config, &overlay, &shared, tasks);
    let own = Informers::new(identity.kubelet.clone(), tasks.clone());
    let settings = kubelet::Config {
        node_name: config.node_name.clone(),
        node_ips: vec![IpAddr::V4(identity.address)],
        root_dir: layout.kubelet(),
        run_dir: layout.run.join("kubelet"),
        log_dir: layout.pod_logs(),
        cluster_dns: vec![IpAddr::V4(config.dns())],
        cluster_domain: config.cluster_domain.clone(),
        resolv_conf: "/etc/resolv.conf".into(),
        cgroup_root: Some(cgroup(layout)),
        listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, config.kubelet_port)),
        serving: identity.serving,
        client_ca_pem: identity.client_ca,
        labels: config.kubeadm.as_ref().map(|k| k.node_labels.clone()).unwrap_or_default(),
        taints: config.kubeadm.as_ref().map(|k| k.taints.clone()).unwrap_or_default(),
        max_pods: 110,
        version: crate::server::KUBERNETES.into(),
        local_storage: Some(layout.storage()),
    };
    kubelet::run(settings, identity.kubelet, own, runtime.clone(), runtime.clone(), tasks.clone()).await.context("the kubelet cannot start")?;
    let stop = tasks.token();
    tasks.spawn_uncancelled(async move {
        stop.cancelled().await;
        runtime.close().await;
    });
    Ok(shared)
}

/// Ends all pods of this node and removes what they had, but for their data.
pub fn purge(layout: &Layout) -> Result<()> {
    runtime::purge(&runtime::Config {
        root: layout.containers(),
        run: layout.pods_run(),
        self_exe: PathBuf::new(),
        cgroup_parent: cgroup(layout),
        version: String::new(),
        registries: image::Options::default(),
    })?;
    sys::mount::unmount_below(&layout.run.join("kubelet"))?;
    sys::mount::unmount_below(&layout.kubelet())?;
    Ok(())
}
