//! Wiring of the network: overlay, packet filter and DNS, and the objects that publish them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, Role, RoleBinding};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use reconcile::{Informers, Tasks};
use runtime::{Network, PortMapping, SandboxRef};
use serde_json::json;

use crate::config::Config;
use crate::layout::Layout;

/// How names of our links and tables begin.
pub const PREFIX: &str = "knarr";
/// The ConfigMap by which an agent learns what the cluster's networks are.
pub const CLUSTER_MAP: &str = "knarr-cluster";

/// The overlay's settings on this node.
pub fn overlay_config(config: &Config, layout: &Layout) -> Result<overlay::Config> {
    let cidr = config.cluster_cidr.to_string().parse().map_err(|e| anyhow::anyhow!("--cluster-cidr: {e}"))?;
    Ok(overlay::Config::new(config.node_name.clone(), layout.overlay(), vec![cidr]))
}

/// The proxy's settings on this node.
pub fn proxy_config(config: &Config) -> Result<proxy::Config> {
    let cidr = config.cluster_cidr.to_string().parse().map_err(|e: String| anyhow::anyhow!("--cluster-cidr: {e}"))?;
    Ok(proxy::Config { node_name: config.node_name.clone(), prefix: PREFIX.into(), cluster_cidrs: vec![cidr] })
}

/// The packet filter that the overlay asks for masquerade and host ports.
pub struct Filter(pub proxy::PodRules);

impl overlay::PacketFilter for Filter {
    fn apply(&self, rules: &overlay::FilterRules) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let range = |p: &overlay::Prefix| p.to_string().parse::<proxy::Range>();
        let network = proxy::PodNetwork {
            pod_cidr: range(&rules.pod_cidr)?,
            cluster_cidrs: rules.cluster_cidrs.iter().map(range).collect::<Result<_, _>>()?,
            link_prefix: rules.link_prefix.clone(),
            host_ports: rules
                .host_ports
                .iter()
                .map(|(port, pod)| (protocol_number(port.protocol), port.host_ip, port.host_port, *pod, port.container_port))
                .collect(),
        };
        Ok(self.0.apply(&network)?)
    }
}

fn protocol_number(protocol: overlay::Protocol) -> u8 {
    match protocol {
        overlay::Protocol::Tcp => 6,
        overlay::Protocol::Udp => 17,
        overlay::Protocol::Sctp => 132,
    }
}

/// The overlay as the runtime sees it.
pub struct PodNetwork(pub overlay::Overlay);

#[async_trait]
impl Network for PodNetwork {
    async fn setup(&self, sandbox: &SandboxRef, netns: &Path, ports: &[PortMapping]) -> Result<Vec<IpAddr>, String> {
        let sandbox = overlay::Sandbox {
            id: sandbox.id.clone(),
            namespace: sandbox.namespace.clone(),
            name: sandbox.name.clone(),
            uid: sandbox.uid.clone(),
        };
        let host_ports = ports.iter().map(host_port).collect::<Result<_, _>>()?;
        self.0.setup(&sandbox, netns, host_ports).await.map_err(|e| e.to_string())
    }

    async fn teardown(&self, sandbox: &SandboxRef, _: &Path) -> Result<(), String> {
        self.0.teardown(&sandbox.id).await.map_err(|e| e.to_string())
    }

    async fn ready(&self) -> Result<(), String> {
        self.0.ready().await
    }
}

fn host_port(port: &PortMapping) -> Result<overlay::HostPort, String> {
    let protocol = match port.protocol {
        "TCP" => overlay::Protocol::Tcp,
        "UDP" => overlay::Protocol::Udp,
        "SCTP" => overlay::Protocol::Sctp,
        other => return Err(format!("host ports of protocol {other} are not known")),
    };
    Ok(overlay::HostPort { host_ip: port.host_ip, host_port: port.host_port, container_port: port.container_port, protocol })
}

/// Removes links, routes and tables of this machine's (network namespace's) node.
pub fn purge(layout: &Layout) -> Result<()> {
    overlay::Overlay::purge(&overlay::Config::new("", layout.overlay(), Vec::new()))?;
    let nft = nft::Kernel::open()?;
    proxy::purge(&nft, PREFIX)?;
    Ok(())
}

/// What agents need: the cluster's networks, readable by nodes, and the right of nodes to read services.
pub async fn publish(client: &Client, config: &Config) -> Result<()> {
    let owner = PatchParams::apply("knarr").force();
    let labels = json!({"app.kubernetes.io/managed-by": "knarr"});
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CLUSTER_MAP, "namespace": "kube-public", "labels": labels},
        "data": {"cluster-cidr": config.cluster_cidr.to_string(), "service-cidr": config.service_cidr.to_string(),
                 "cluster-domain": config.cluster_domain}});
    Api::<ConfigMap>::namespaced(client.clone(), "kube-public").patch(CLUSTER_MAP, &owner, &Patch::Apply(map)).await?;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "knarr:cluster-reader", "namespace": "kube-public", "labels": labels},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [CLUSTER_MAP], "verbs": ["get"]}]});
    Api::<Role>::namespaced(client.clone(), "kube-public").patch("knarr:cluster-reader", &owner, &Patch::Apply(role)).await?;
    let group = |name: &str| json!({"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": name});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "knarr:cluster-reader", "namespace": "kube-public", "labels": labels},
        "roleRef": {"kind": "Role", "apiGroup": "rbac.authorization.k8s.io", "name": "knarr:cluster-reader"},
        "subjects": [group("system:nodes"), group("system:bootstrappers")]});
    Api::<RoleBinding>::namespaced(client.clone(), "kube-public").patch("knarr:cluster-reader", &owner, &Patch::Apply(binding)).await?;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "knarr:node-proxier", "labels": labels}, "subjects": [group("system:nodes")],
        "roleRef": {"kind": "ClusterRole", "apiGroup": "rbac.authorization.k8s.io", "name": "system:node-proxier"}});
    Api::<ClusterRoleBinding>::all(client.clone()).patch("knarr:node-proxier", &owner, &Patch::Apply(binding)).await?;
    Ok(())
}

/// Waits until a question to the service address of DNS is answered.
pub async fn dns_answers(config: &Config) {
    let name = format!("kubernetes.default.svc.{}", config.cluster_domain);
    while !ask(SocketAddr::from((config.dns(), 53)), &name, config.api_service()).await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One question for an address record, by hand: a header, the name, type A, class IN.
async fn ask(server: SocketAddr, name: &str, expected: Ipv4Addr) -> bool {
    let mut question = vec![0x4b, 0x6e, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let exchange = async {
        let socket = tokio::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        socket.connect(server).await?;
        socket.send(&question).await?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).await?;
        std::io::Result::Ok(answer[..length].to_vec())
    };
    match tokio::time::timeout(Duration::from_millis(200), exchange).await {
        Ok(Ok(answer)) => answer.starts_with(&question[..2]) && answer.windows(4).any(|w| w == expected.octets()),
        _ => false,
    }
}

/// Filter over this process's own network namespace.
pub fn filter(nft: Arc<dyn nft::Nftables>) -> Arc<Filter> {
    Arc::new(Filter(proxy::PodRules::new(nft, PREFIX)))
}

/// Serves DNS at the gateway of the node's pods, once the node has a range.
pub fn serve_dns(config: &Config, overlay: &overlay::Overlay, informers: &Informers, tasks: &Tasks) {
    let mut gateway = overlay.gateway();
    let (domain, service) = (config.cluster_domain.clone(), IpAddr::V4(config.dns()));
    let (informers, group) = (informers.clone(), tasks.clone());
    tasks.spawn("dns", async move {
        let Ok(address) = gateway.wait_for(Option::is_some).await.map(|g| *g) else { return };
        let listen = address.map(|a| SocketAddr::from((a, 53))).into_iter().collect();
        dns::run(dns::Config::new(listen, domain, service), &informers, &group);
    });
}
