//! What the runtime needs of a pod network.

use std::net::IpAddr;
use std::path::Path;

use async_trait::async_trait;

/// A sandbox, as networks know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxRef {
    pub id: String,
    /// The pod's namespace, name and uid.
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// A port of the host that leads to one of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
    pub container_port: u16,
    pub host_port: u16,
    /// All addresses without.
    pub host_ip: Option<IpAddr>,
}

/// Wires sandboxes. Those on the host's network are none of its business.
#[async_trait]
pub trait Network: Send + Sync {
    /// Gives a fresh network namespace its interfaces (the loopback too) and routes. The first address
    /// is the pod's primary one.
    async fn setup(&self, sandbox: &SandboxRef, netns: &Path, ports: &[PortMapping]) -> Result<Vec<IpAddr>, String>;

    /// Takes back what `setup` gave. Idempotent; the namespace may be gone.
    async fn teardown(&self, sandbox: &SandboxRef, netns: &Path) -> Result<(), String>;

    /// Whether `setup` can work, or why not (the node has no address range yet, for instance).
    async fn ready(&self) -> Result<(), String>;
}
