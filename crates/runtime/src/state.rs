//! What the runtime knows: sandboxes, containers, and where each is in its life.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use cri::v1::*;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shim::record::Exit;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::shim::Shim;
use crate::user::User;
use crate::{Config, Network, files};

/// The embedded container runtime: both services of the CRI.
pub struct Runtime {
    pub(crate) me: Weak<Runtime>,
    pub(crate) config: Config,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) images: Arc<image::Store>,
    pub(crate) cgroups: sys::cgroup::Cgroups,
    /// Capabilities of this process, of which containers get theirs.
    pub(crate) capabilities: u64,
    pub(crate) sandboxes: Mutex<HashMap<String, Arc<Sandbox>>>,
    pub(crate) containers: Mutex<HashMap<String, Arc<Container>>>,
    pub(crate) events: broadcast::Sender<ContainerEventResponse>,
    pub(crate) tokens: crate::streams::Tokens,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

/// A pod sandbox.
pub(crate) struct Sandbox {
    pub id: String,
    pub request: RunPodSandboxRequest,
    pub dir: PathBuf,
    pub run: PathBuf,
    pub state: Mutex<SandboxState>,
    /// Serialises stop and remove.
    pub turn: tokio::sync::Mutex<()>,
}

/// What of a sandbox changes, as it is in its file.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct SandboxState {
    pub created_at: i64,
    pub ready: bool,
    pub ips: Vec<IpAddr>,
    pub cgroup_parent: String,
    /// The parent group was made by us, so it goes with the sandbox.
    pub own_cgroup: bool,
    pub shim_pid: i32,
    pub pause_pid: Option<i32>,
    #[serde(skip)]
    pub shim: Option<Arc<Shim>>,
}

impl Sandbox {
    pub fn config(&self) -> &PodSandboxConfig {
        // Checked when the sandbox was made or loaded.
        static EMPTY: std::sync::OnceLock<PodSandboxConfig> = std::sync::OnceLock::new();
        self.request.config.as_ref().unwrap_or_else(|| EMPTY.get_or_init(PodSandboxConfig::default))
    }

    pub fn save(&self) -> std::io::Result<()> {
        let state = self.state.lock().clone();
        files::write_json(&self.dir.join("state.json"), &state)
    }

    pub fn netns(&self) -> Option<PathBuf> {
        let host = crate::spec::sandbox_namespaces(self.config()).0 == NamespaceMode::Node;
        (!host).then(|| self.run.join("netns"))
    }

    pub fn reference(&self) -> crate::SandboxRef {
        let metadata = self.config().metadata.clone().unwrap_or_default();
        crate::SandboxRef { id: self.id.clone(), namespace: metadata.namespace, name: metadata.name, uid: metadata.uid }
    }

    pub fn shim(&self) -> Option<Arc<Shim>> {
        self.state.lock().shim.clone()
    }

    pub fn status(&self) -> PodSandboxStatus {
        let state = self.state.lock();
        let config = self.config();
        let options = config.linux.as_ref().and_then(|l| l.security_context.as_ref()).and_then(|s| s.namespace_options.clone());
        let mut ips = state.ips.iter().map(IpAddr::to_string);
        PodSandboxStatus {
            id: self.id.clone(),
            metadata: config.metadata.clone(),
            state: state.cri_state() as i32,
            created_at: state.created_at,
            network: Some(PodSandboxNetworkStatus {
                ip: ips.next().unwrap_or_default(),
                additional_ips: ips.map(|ip| PodIp { ip }).collect(),
            }),
            linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options }) }),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            runtime_handler: self.request.runtime_handler.clone(),
        }
    }

    pub fn listed(&self) -> PodSandbox {
        let state = self.state.lock();
        let config = self.config();
        PodSandbox {
            id: self.id.clone(),
            metadata: config.metadata.clone(),
            state: state.cri_state() as i32,
            created_at: state.created_at,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            runtime_handler: self.request.runtime_handler.clone(),
        }
    }
}

impl SandboxState {
    pub fn cri_state(&self) -> PodSandboxState {
        if self.ready { PodSandboxState::Ready } else { PodSandboxState::NotReady }
    }
}

/// A container.
pub(crate) struct Container {
    pub id: String,
    pub sandbox: Arc<Sandbox>,
    pub config: ContainerConfig,
    pub fixed: Fixed,
    /// The OCI bundle.
    pub dir: PathBuf,
    /// Where it is in its life; watched by those who wait for its end.
    pub life: watch::Sender<Life>,
    /// Serialises start, stop and remove.
    pub turn: tokio::sync::Mutex<()>,
    /// The limits last set.
    pub resources: Mutex<Option<LinuxContainerResources>>,
    /// Bytes and inodes of the writable layer, and when they were counted.
    pub written: Mutex<Option<(std::time::Instant, (u64, u64))>>,
}

/// What of a container never changes, as it is in its file.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Fixed {
    pub sandbox: String,
    pub created_at: i64,
    pub image_id: String,
    pub image_ref: String,
    pub user: User,
    pub cgroup: String,
    pub log: Option<PathBuf>,
    pub stop_signal: i32,
    pub own_pid_namespace: bool,
}

/// A container's life.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Life {
    #[default]
    Created,
    Running {
        pid: i32,
        at: i64,
    },
    Exited {
        started_at: i64,
        exit: Exit,
        reason: String,
        message: String,
    },
}

/// Why a container could not start, in a file of its bundle.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub message: String,
}

impl Life {
    /// The life after an end.
    pub fn ended(started_at: i64, exit: Exit) -> Self {
        let reason = match &exit {
            Exit { oom: true, .. } => "OOMKilled",
            Exit { code: 0, .. } => "Completed",
            _ => "Error",
        };
        Life::Exited { started_at, exit, reason: reason.into(), message: String::new() }
    }

    pub fn is_running(&self) -> bool {
        matches!(self, Life::Running { .. })
    }

    pub fn cri_state(&self) -> ContainerState {
        match self {
            Life::Created => ContainerState::Created,
            Life::Running { .. } => ContainerState::Running,
            Life::Exited { .. } => ContainerState::Exited,
        }
    }
}

impl Container {
    pub fn state(&self) -> ContainerState {
        self.life.borrow().cri_state()
    }

    pub fn pid(&self) -> Option<i32> {
        match &*self.life.borrow() {
            Life::Running { pid, .. } => Some(*pid),
            _ => None,
        }
    }

    /// A terminated shim or a message from one: the container has ended. The first word counts.
    pub fn end(&self, exit: Exit) -> bool {
        self.life.send_if_modified(|life| {
            let started_at = match life {
                Life::Exited { .. } => return false,
                Life::Running { at, .. } => *at,
                Life::Created => 0,
            };
            *life = Life::ended(started_at, exit);
            true
        })
    }

    pub fn status(&self) -> ContainerStatus {
        let life = self.life.borrow().clone();
        let (mut started_at, mut finished_at, mut exit_code) = (0, 0, 0);
        let (mut reason, mut message) = (String::new(), String::new());
        let state = life.cri_state() as i32;
        match life {
            Life::Created => {}
            Life::Running { at, .. } => started_at = at,
            Life::Exited { started_at: at, exit, reason: why, message: text } => {
                (started_at, finished_at, exit_code) = (at, exit.at, exit.code);
                (reason, message) = (why, text);
            }
        }
        let groups = self.fixed.user.groups.iter().map(|g| i64::from(*g)).collect();
        let user = LinuxContainerUser { uid: self.fixed.user.uid.into(), gid: self.fixed.user.gid.into(), supplemental_groups: groups };
        ContainerStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state,
            created_at: self.fixed.created_at,
            started_at,
            finished_at,
            exit_code,
            image: self.config.image.clone(),
            image_ref: self.fixed.image_ref.clone(),
            reason,
            message,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            mounts: self.config.mounts.clone(),
            log_path: self.fixed.log.as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
            resources: self.resources.lock().clone().map(|linux| ContainerResources { linux: Some(linux) }),
            image_id: self.fixed.image_id.clone(),
            user: Some(ContainerUser { linux: Some(user) }),
            stop_signal: 0,
        }
    }

    pub fn listed(&self) -> cri::v1::Container {
        cri::v1::Container {
            id: self.id.clone(),
            pod_sandbox_id: self.sandbox.id.clone(),
            metadata: self.config.metadata.clone(),
            image: self.config.image.clone(),
            image_ref: self.fixed.image_ref.clone(),
            state: self.state() as i32,
            created_at: self.fixed.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            image_id: self.fixed.image_id.clone(),
        }
    }
}

impl Runtime {
    pub(crate) fn sandbox(&self, id: &str) -> cri::Result<Arc<Sandbox>> {
        let found = self.find_sandbox(id);
        found.ok_or_else(|| cri::Error::not_found(format!("an error occurred when try to find sandbox: sandbox \"{id}\": not found")))
    }

    pub(crate) fn find_sandbox(&self, id: &str) -> Option<Arc<Sandbox>> {
        by_id(&self.sandboxes.lock(), id)
    }

    pub(crate) fn container(&self, id: &str) -> cri::Result<Arc<Container>> {
        let found = self.find_container(id);
        found.ok_or_else(|| cri::Error::not_found(format!("an error occurred when try to find container \"{id}\": not found")))
    }

    pub(crate) fn find_container(&self, id: &str) -> Option<Arc<Container>> {
        by_id(&self.containers.lock(), id)
    }

    /// The containers of a sandbox, the oldest first.
    pub(crate) fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let mut list: Vec<_> = self.containers.lock().values().filter(|c| c.sandbox.id == sandbox).cloned().collect();
        list.sort_by_key(|c| c.fixed.created_at);
        list
    }

    pub(crate) fn emit(&self, id: &str, sandbox: &Sandbox, kind: ContainerEventType) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let event = ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind as i32,
            created_at: files::now(),
            pod_sandbox_status: Some(sandbox.status()),
            containers_statuses: self.containers_of(&sandbox.id).iter().map(|c| c.status()).collect(),
        };
        // Nobody listening is no error.
        let _ = self.events.send(event);
    }

    /// Ends the runtime's own tasks. Sandboxes and containers stay as they are.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// An id, or the only one that starts so.
fn by_id<T>(map: &HashMap<String, Arc<T>>, id: &str) -> Option<Arc<T>> {
    if let Some(found) = map.get(id) {
        return Some(found.clone());
    }
    let mut starting = map.iter().filter(|(full, _)| !id.is_empty() && full.starts_with(id));
    let (_, first) = starting.next()?;
    starting.next().is_none().then(|| first.clone())
}
