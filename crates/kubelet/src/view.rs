//! What the runtime has of one pod. Pure.

use cri::v1::{ContainerState, ContainerStatus, PodSandboxState, PodSandboxStatus};

/// A container of a sandbox.
#[derive(Debug, Clone, Default)]
pub struct ContainerView {
    pub sandbox: String,
    pub status: ContainerStatus,
}

impl ContainerView {
    /// The name in the pod's specification.
    pub fn name(&self) -> &str {
        self.status.metadata.as_ref().map_or("", |m| m.name.as_str())
    }

    /// How often it was restarted before.
    pub fn attempt(&self) -> u32 {
        self.status.metadata.as_ref().map_or(0, |m| m.attempt)
    }

    pub fn running(&self) -> bool {
        self.status.state == ContainerState::Running as i32
    }

    pub fn exited(&self) -> bool {
        self.status.state == ContainerState::Exited as i32
    }

    /// Not running, and never to run: its start failed, or the kubelet died in between.
    pub fn stillborn(&self) -> bool {
        self.status.state == ContainerState::Created as i32 || self.status.state == ContainerState::Unknown as i32
    }
}

/// The runtime's view of a pod, newest first.
#[derive(Debug, Clone, Default)]
pub struct View {
    pub sandboxes: Vec<PodSandboxStatus>,
    pub containers: Vec<ContainerView>,
}

impl View {
    /// From the runtime's answers, a sandbox at a time.
    pub fn new(parts: Vec<(PodSandboxStatus, Vec<ContainerStatus>)>) -> View {
        let mut view = View::default();
        for (sandbox, containers) in parts {
            let id = sandbox.id.clone();
            view.sandboxes.push(sandbox);
            view.containers.extend(containers.into_iter().map(|status| ContainerView { sandbox: id.clone(), status }));
        }
        let attempt = |s: &PodSandboxStatus| s.metadata.as_ref().map_or(0, |m| m.attempt);
        view.sandboxes.sort_by_key(|s| std::cmp::Reverse((attempt(s), s.created_at)));
        view.containers.sort_by_key(|c| std::cmp::Reverse((c.attempt(), c.status.created_at)));
        view
    }

    /// The newest sandbox.
    pub fn sandbox(&self) -> Option<&PodSandboxStatus> {
        self.sandboxes.first()
    }

    /// The newest sandbox, when it works.
    pub fn ready_sandbox(&self) -> Option<&PodSandboxStatus> {
        self.sandbox().filter(|s| s.state == PodSandboxState::Ready as i32)
    }

    /// The newest instance of a container.
    pub fn latest(&self, name: &str) -> Option<&ContainerView> {
        self.containers.iter().find(|c| c.name() == name)
    }

    /// The newest instance that has ended, before the newest one.
    pub fn previous(&self, name: &str) -> Option<&ContainerView> {
        self.containers.iter().filter(|c| c.name() == name).skip(1).find(|c| c.exited())
    }

    /// The container of this id.
    pub fn by_id(&self, id: &str) -> Option<&ContainerView> {
        self.containers.iter().find(|c| c.status.id == id)
    }

    /// Whether any container runs.
    pub fn any_running(&self) -> bool {
        self.containers.iter().any(ContainerView::running)
    }

    /// The pod's addresses, without those of the node.
    pub fn ips(&self) -> Vec<String> {
        let Some(network) = self.ready_sandbox().and_then(|s| s.network.as_ref()) else { return Vec::new() };
        std::iter::once(&network.ip).chain(network.additional_ips.iter().map(|i| &i.ip)).filter(|i| !i.is_empty()).cloned().collect()
    }
}
