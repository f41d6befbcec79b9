//! The nodes as the scheduler sees them, with what is taken on each.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;

use crate::requests::{Amounts, pod_requests};

/// What scores use for a container that asks for nothing: 100 thousandths of a core and 200 MiB.
pub(crate) const DEFAULT_CPU: i64 = 100;
pub(crate) const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// One node.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    pub node: Arc<Node>,
    pub allocatable: Amounts,
    pub requested: Amounts,
    /// The same with defaults for containers that ask for nothing; scores use it.
    pub nonzero: (i64, i64),
    pub pods: usize,
    /// Host ports in use: protocol, address, port.
    pub ports: Vec<(String, String, i32)>,
    /// Sizes of the images on the node, by name.
    pub images: HashMap<String, i64>,
}

impl NodeInfo {
    /// An empty node.
    pub fn new(node: Arc<Node>) -> NodeInfo {
        let status = node.status.as_ref();
        let list = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        let images = status
            .iter()
            .flat_map(|s| s.images.iter().flatten())
            .flat_map(|i| i.names.iter().flatten().map(|n| (n.clone(), i.size_bytes.unwrap_or(0))))
            .collect();
        NodeInfo {
            allocatable: list.map(Amounts::parse).unwrap_or_default(),
            requested: Amounts::default(),
            nonzero: (0, 0),
            pods: 0,
            ports: Vec::new(),
            images,
            node,
        }
    }

    /// The node's name.
    pub fn name(&self) -> String {
        self.node.name_any()
    }

    /// Puts a pod on the node.
    pub fn add(&mut self, pod: &Pod) {
        self.requested.add(&pod_requests(pod));
        let (cpu, memory) = nonzero_requests(pod);
        self.nonzero = (self.nonzero.0 + cpu, self.nonzero.1 + memory);
        self.pods += 1;
        self.ports.extend(host_ports(pod));
    }
}

/// Cpu and memory of a pod with defaults for containers that ask for none.
pub(crate) fn nonzero_requests(pod: &Pod) -> (i64, i64) {
    let asked = pod_requests(pod);
    let containers = pod.spec.as_ref().map_or(&[][..], |s| &s.containers[..]);
    let lacking = |name: &str| {
        let has = |c: &&k8s_openapi::api::core::v1::Container| {
            c.resources.as_ref().and_then(|r| r.requests.as_ref()).is_some_and(|r| r.contains_key(name))
        };
        containers.iter().filter(|c| !has(c)).count() as i64
    };
    (asked.get("cpu") + lacking("cpu") * DEFAULT_CPU, asked.get("memory") + lacking("memory") * DEFAULT_MEMORY)
}

/// The host ports that a pod wants.
pub(crate) fn host_ports(pod: &Pod) -> Vec<(String, String, i32)> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            let port = p.host_port.filter(|p| *p > 0)?;
            let address = p.host_ip.clone().filter(|a| !a.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
            Some((p.protocol.clone().unwrap_or_else(|| "TCP".into()), address, port))
        })
        .collect()
}

/// All nodes, by name.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub nodes: BTreeMap<String, NodeInfo>,
}

impl Snapshot {
    /// Nodes with the pods that are on them. Pods that have ended take nothing.
    pub fn new<'a>(nodes: impl IntoIterator<Item = Arc<Node>>, pods: impl IntoIterator<Item = &'a Pod>) -> Snapshot {
        let mut nodes: BTreeMap<String, NodeInfo> = nodes.into_iter().map(|n| (n.name_any(), NodeInfo::new(n))).collect();
        for pod in pods {
            let name = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("");
            if let Some(node) = nodes.get_mut(name)
                && takes_room(pod)
            {
                node.add(pod);
            }
        }
        Snapshot { nodes }
    }
}

/// Whether a pod takes anything on its node: until it has ended.
pub(crate) fn takes_room(pod: &Pod) -> bool {
    !matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}
