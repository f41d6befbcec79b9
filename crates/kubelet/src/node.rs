//! The node object: registration, status, lease. Runs two tasks.
//!
//! The status is looked at every ten seconds and written when it changed, or every five minutes; the
//! lease says that we live. Until the node is Ready it is looked at more often.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri::v1::{ListImagesRequest, StatusRequest, VersionRequest};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus, NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use reconcile::{EventType, Recorder, Reference};
use serde_json::json;

use crate::Config;
use crate::resources::List;

/// What the machine is. Read once.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    pub cpus: u32,
    pub memory: i64,
    pub disk: u64,
    pub info: NodeSystemInfo,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map(|t| t.trim().to_string()).unwrap_or_default()
}

/// A value of `/proc/meminfo`, in bytes.
pub fn meminfo(name: &str) -> i64 {
    let text = read("/proc/meminfo");
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|l| l.split_whitespace().next()?.parse::<i64>().ok()).unwrap_or(0) * 1024
}

fn online_cpus() -> u32 {
    let count = read("/sys/devices/system/cpu/online")
        .split(',')
        .filter_map(|range| {
            let (from, to) = range.split_once('-').unwrap_or((range, range));
            Some(to.trim().parse::<u32>().ok()? - from.trim().parse::<u32>().ok()? + 1)
        })
        .sum();
    if count > 0 { count } else { std::thread::available_parallelism().map_or(1, |n| n.get() as u32) }
}

impl Machine {
    /// Looks at this machine; the disk is the one that holds `root`.
    pub async fn read(config: &Config, runtime: &dyn cri::RuntimeService) -> Machine {
        let version = runtime.version(VersionRequest { version: "v1".into() }).await.unwrap_or_default();
        let uname = rustix::system::uname();
        let release = read("/etc/os-release");
        let pretty = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"').to_string();
        let machine_id = [read("/etc/machine-id"), read("/var/lib/dbus/machine-id")].into_iter().find(|i| !i.is_empty()).unwrap_or_default();
        let uuid = read("/sys/class/dmi/id/product_uuid");
        Machine {
            cpus: online_cpus(),
            memory: meminfo("MemTotal"),
            disk: rustix::fs::statvfs(&config.root_dir).map_or(0, |s| s.f_blocks * s.f_frsize),
            info: NodeSystemInfo {
                architecture: match std::env::consts::ARCH {
                    "x86_64" => "amd64",
                    "aarch64" => "arm64",
                    other => other,
                }
                .to_string(),
                boot_id: read("/proc/sys/kernel/random/boot_id"),
                container_runtime_version: format!("{}://{}", version.runtime_name, version.runtime_version),
                kernel_version: uname.release().to_string_lossy().into_owned(),
                kube_proxy_version: String::new(),
                kubelet_version: config.version.clone(),
                system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
                machine_id,
                operating_system: "linux".into(),
                os_image: pretty,
                ..NodeSystemInfo::default()
            },
        }
    }

    /// Capacity and allocatable. Pure.
    pub fn resources(&self, max_pods: u32) -> (List, List) {
        let list = |memory: i64, disk: String| -> List {
            [
                ("cpu", self.cpus.to_string()),
                ("memory", format!("{}Ki", memory / 1024)),
                ("ephemeral-storage", disk),
                ("pods", max_pods.to_string()),
                ("hugepages-1Gi", "0".into()),
                ("hugepages-2Mi", "0".into()),
            ]
            .map(|(k, v)| (k.to_string(), Quantity(v)))
            .into()
        };
        // What upstream keeps back by default: the hard eviction thresholds.
        let (memory, disk) = (self.memory - (100 << 20), self.disk / 10 * 9);
        (list(self.memory, format!("{}Ki", self.disk / 1024)), list(memory.max(0), disk.to_string()))
    }
}

/// What the node's conditions are made of.
#[derive(Debug, Default)]
pub struct Health {
    /// Why the runtime, or its network, is not ready; empty when both are.
    pub not_ready: Vec<String>,
    pub memory_available: i64,
    /// Bytes.
    pub disk_available: u64,
    pub disk_size: u64,
}

/// Less than this is disk pressure: a tenth of the disk, as upstream, but of a large disk a tenth is
/// plenty, and a node on somebody's own machine is not to refuse pods for it.
const DISK_LOW: u64 = 1 << 30;

/// The conditions; times stay where nothing changed. Pure.
pub fn conditions(health: &Health, old: &[NodeCondition], now: Timestamp) -> Vec<NodeCondition> {
    let low_memory = health.memory_available < 100 << 20;
    let low_disk = health.disk_available < DISK_LOW.min(health.disk_size / 10);
    let ready = health.not_ready.is_empty();
    let not_ready = health.not_ready.join(", ");
    let all = [
        ("MemoryPressure", low_memory, if low_memory { ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available") } else { ("KubeletHasSufficientMemory", "kubelet has sufficient memory available") }),
        ("DiskPressure", low_disk, if low_disk { ("KubeletHasDiskPressure", "kubelet has disk pressure") } else { ("KubeletHasNoDiskPressure", "kubelet has no disk pressure") }),
        ("PIDPressure", false, ("KubeletHasSufficientPID", "kubelet has sufficient PID available")),
        ("Ready", ready, if ready { ("KubeletReady", "kubelet is posting ready status") } else { ("KubeletNotReady", not_ready.as_str()) }),
    ];
    all.into_iter()
        .map(|(kind, on, (reason, message))| {
            let status = if on { "True" } else { "False" };
            let since = old.iter().find(|c| c.type_ == kind && c.status == status).and_then(|c| c.last_transition_time.clone());
            NodeCondition {
                type_: kind.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message.into()),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: Some(since.unwrap_or(Time(now))),
            }
        })
        .collect()
}

/// Keeps the node's object.
pub struct NodeKeeper {
    pub config: Arc<Config>,
    pub client: Client,
    pub runtime: Arc<dyn cri::RuntimeService>,
    pub images: Arc<dyn cri::ImageService>,
    pub recorder: Recorder,
    pub machine: Machine,
}

const LOOK: Duration = Duration::from_secs(10);
const LOOK_UNREADY: Duration = Duration::from_millis(100);
const REPORT: Duration = Duration::from_secs(300);
const LEASE_SECONDS: i32 = 40;

impl NodeKeeper {
    fn labels(&self) -> BTreeMap<String, String> {
        let arch = &self.machine.info.architecture;
        let mut labels = self.config.labels.clone();
        for (key, value) in [
            ("kubernetes.io/hostname", self.config.node_name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", arch),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", arch),
        ] {
            labels.insert(key.into(), value.into());
        }
        labels
    }

    async fn health(&self) -> Health {
        let mut not_ready = Vec::new();
        match self.runtime.status(StatusRequest::default()).await {
            Ok(answer) => {
                let conditions = answer.status.map(|s| s.conditions).unwrap_or_default();
                for (kind, text) in [("RuntimeReady", "container runtime is down"), ("NetworkReady", "container runtime network not ready")] {
                    match conditions.iter().find(|c| c.r#type == kind) {
                        Some(c) if c.status => {}
                        Some(c) if kind == "NetworkReady" => not_ready.push(format!("{text}: {kind}=false reason:{} message:{}", c.reason, c.message)),
                        _ => not_ready.push(text.to_string()),
                    }
                }
            }
            Err(error) => not_ready.push(format!("container runtime is down: {error}")),
        }
        let (disk_available, disk_size) = rustix::fs::statvfs(&self.config.root_dir).map_or((u64::MAX, 0), |s| (s.f_bavail * s.f_frsize, s.f_blocks * s.f_frsize));
        Health { not_ready, memory_available: meminfo("MemAvailable"), disk_available, disk_size }
    }

    async fn status(&self, old: Option<&NodeStatus>) -> NodeStatus {
        let health = self.health().await;
        let (capacity, allocatable) = self.machine.resources(self.config.max_pods);
        let old_conditions = old.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let listed = self.images.list_images(ListImagesRequest::default()).await.map(|l| l.images).unwrap_or_default();
        let mut images: Vec<ContainerImage> = listed
            .into_iter()
            .map(|i| ContainerImage {
                names: Some(i.repo_digests.into_iter().chain(i.repo_tags).take(5).collect()),
                size_bytes: i64::try_from(i.size).ok(),
            })
            .collect();
        images.sort_by_key(|i| std::cmp::Reverse(i.size_bytes));
        images.truncate(50);
        let address = |type_: &str, address: String| NodeAddress { address, type_: type_.into() };
        let mut addresses: Vec<NodeAddress> = self.config.node_ips.iter().map(|ip| address("InternalIP", ip.to_string())).collect();
        addresses.push(address("Hostname", self.config.node_name.clone()));
        NodeStatus {
            capacity: Some(capacity),
            allocatable: Some(allocatable),
            conditions: Some(conditions(&health, old_conditions, Timestamp::now())),
            addresses: Some(addresses),
            daemon_endpoints: Some(NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(self.config.listen.port()) }) }),
            node_info: Some(self.machine.info.clone()),
            images: Some(images).filter(|i| !i.is_empty()),
            ..NodeStatus::default()
        }
    }

    fn reference(&self) -> Reference {
        // Upstream's events about nodes carry the name as uid.
        let name = self.config.node_name.clone();
        Reference { api_version: String::new(), kind: "Node".into(), uid: name.clone(), name, ..Reference::default() }
    }

    async fn register(&self) -> kube::Result<Node> {
        let api = Api::<Node>::all(self.client.clone());
        let name = &self.config.node_name;
        let found = match api.get_opt(name).await? {
            Some(node) => node,
            None => {
                let taints: Vec<Taint> = self.config.taints.clone();
                let node = Node {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        labels: Some(self.labels()),
                        annotations: Some([("volumes.kubernetes.io/controller-managed-attach-detach".to_string(), "true".to_string())].into()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(NodeSpec { taints: Some(taints).filter(|t| !t.is_empty()), ..NodeSpec::default() }),
                    status: Some(self.status(None).await),
                };
                match api.create(&PostParams::default(), &node).await {
                    Ok(node) => node,
                    Err(kube::Error::Api(status)) if status.code == 409 => api.get(name).await?,
                    Err(error) => return Err(error),
                }
            }
        };
        let missing: BTreeMap<String, String> = self.labels().into_iter().filter(|(k, v)| found.labels().get(k) != Some(v)).collect();
        if missing.is_empty() {
            return Ok(found);
        }
        api.patch(name, &PatchParams::default(), &Patch::Merge(json!({"metadata": {"labels": missing}}))).await
    }

    /// Registers the node, then keeps its status. Never ends.
    pub async fn keep_status(self: Arc<Self>) {
        let mut pause = Duration::from_millis(50);
        let mut node = loop {
            match self.register().await {
                Ok(node) => break node,
                Err(error) => {
                    tracing::warn!(node = self.config.node_name, "cannot register yet: {error}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(7));
                }
            }
        };
        self.recorder.event(&self.reference(), EventType::Normal, "Starting", "Starting kubelet.");
        let mut written: Option<Instant> = None;
        let mut was_ready = None;
        let api = Api::<Node>::all(self.client.clone());
        loop {
            let status = self.status(node.status.as_ref()).await;
            let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
            if was_ready != Some(ready) {
                let (reason, name) = if ready { ("NodeReady", &self.config.node_name) } else { ("NodeNotReady", &self.config.node_name) };
                if ready || was_ready.is_some() {
                    self.recorder.event(&self.reference(), EventType::Normal, reason, format!("Node {name} status is now: {reason}"));
                }
                was_ready = Some(ready);
            }
            let due = written.is_none_or(|w| w.elapsed() >= REPORT);
            if due || differs(node.status.as_ref(), &status) {
                let mut patch = serde_json::to_value(&status).unwrap_or_default();
                // Addresses are merged by type: replaced as a whole, or two of a type would mix.
                if let Some(addresses) = patch["addresses"].as_array_mut()
                    && node.status.as_ref().is_some_and(|s| s.addresses.as_ref().is_some_and(|a| !a.is_empty()))
                {
                    addresses.push(json!({"$patch": "replace"}));
                }
                match api.patch_status(&self.config.node_name, &PatchParams::default(), &Patch::Strategic(json!({"status": patch}))).await {
                    Ok(new) => {
                        node = new;
                        written = Some(Instant::now());
                    }
                    Err(kube::Error::Api(status)) if status.code == 404 => {
                        tracing::warn!("the node's object is gone; registering again");
                        if let Ok(new) = self.register().await {
                            node = new;
                        }
                    }
                    Err(error) => tracing::warn!("the node's status could not be written: {error}"),
                }
            }
            tokio::time::sleep(if ready { LOOK } else { LOOK_UNREADY }).await;
        }
    }

    /// Renews the lease every ten seconds. Never ends.
    pub async fn keep_lease(self: Arc<Self>) {
        let api = Api::<Lease>::namespaced(self.client.clone(), "kube-node-lease");
        let name = &self.config.node_name;
        let mut lease: Option<Lease> = None;
        loop {
            let mut pause = LOOK;
            if let Err(error) = self.renew(&api, name, &mut lease).await {
                tracing::debug!("the lease could not be renewed: {error}");
                lease = None;
                pause = Duration::from_secs(1);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn renew(&self, api: &Api<Lease>, name: &str, lease: &mut Option<Lease>) -> kube::Result<()> {
        let now = MicroTime(Timestamp::now());
        if lease.is_none() {
            *lease = api.get_opt(name).await?;
        }
        let renewed = match lease.take() {
            Some(mut known) => {
                let spec = known.spec.get_or_insert_default();
                spec.renew_time = Some(now);
                spec.holder_identity = Some(name.to_string());
                spec.lease_duration_seconds = Some(LEASE_SECONDS);
                api.replace(name, &PostParams::default(), &known).await?
            }
            None => {
                let node = Api::<Node>::all(self.client.clone()).get(name).await?;
                let owner = OwnerReference { api_version: "v1".into(), kind: "Node".into(), name: name.into(), uid: node.uid().unwrap_or_default(), ..OwnerReference::default() };
                let new = Lease {
                    metadata: ObjectMeta { name: Some(name.into()), namespace: Some("kube-node-lease".into()), owner_references: Some(vec![owner]), ..ObjectMeta::default() },
                    spec: Some(LeaseSpec { holder_identity: Some(name.into()), lease_duration_seconds: Some(LEASE_SECONDS), renew_time: Some(now), ..LeaseSpec::default() }),
                };
                api.create(&PostParams::default(), &new).await?
            }
        };
        *lease = Some(renewed);
        Ok(())
    }
}

/// Whether more than the time of the heartbeat changed.
fn differs(old: Option<&NodeStatus>, new: &NodeStatus) -> bool {
    let Some(old) = old else { return true };
    let conditions = |s: &NodeStatus| -> Vec<(String, String, Option<String>, Option<String>)> {
        let ours = |c: &&NodeCondition| matches!(c.type_.as_str(), "MemoryPressure" | "DiskPressure" | "PIDPressure" | "Ready");
        let mut all: Vec<_> =
            s.conditions.iter().flatten().filter(ours).map(|c| (c.type_.clone(), c.status.clone(), c.reason.clone(), c.message.clone())).collect();
        all.sort();
        all
    };
    let bytes = |list: &Option<List>| -> BTreeMap<String, Option<i64>> {
        let parse = |q: &Quantity| api::quantity::Quantity::parse(&q.0).ok().map(|q| q.milli_value());
        list.iter().flatten().map(|(k, v)| (k.clone(), parse(v))).collect()
    };
    conditions(old) != conditions(new)
        || bytes(&old.capacity) != bytes(&new.capacity)
        || bytes(&old.allocatable) != bytes(&new.allocatable)
        || old.addresses != new.addresses
        || old.images != new.images
        || old.daemon_endpoints != new.daemon_endpoints
        || old.node_info != new.node_info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_keep_their_times() {
        let health = Health { not_ready: vec![], memory_available: 1 << 30, disk_available: 20 << 30, disk_size: 250 << 30 };
        let first = conditions(&health, &[], Timestamp::UNIX_EPOCH);
        let later = Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(60);
        let down = Health { not_ready: vec!["container runtime is down".into()], ..health };
        let second = conditions(&down, &first, later);
        let of = |all: &[NodeCondition], kind: &str| all.iter().find(|c| c.type_ == kind).cloned().unwrap();
        assert_eq!(of(&first, "Ready").reason.as_deref(), Some("KubeletReady"));
        assert_eq!(of(&second, "Ready").message.as_deref(), Some("container runtime is down"));
        assert_eq!(of(&second, "Ready").last_transition_time.unwrap().0, later);
        assert_eq!(of(&second, "DiskPressure").last_transition_time.unwrap().0, Timestamp::UNIX_EPOCH);
        let status = |c: &[NodeCondition]| NodeStatus { conditions: Some(c.to_vec()), ..NodeStatus::default() };
        let beat = conditions(&Health { memory_available: 1 << 30, disk_available: 9 << 30, disk_size: 250 << 30, not_ready: vec![] }, &first, later);
        assert!(!differs(Some(&status(&first)), &status(&beat)));
        assert!(differs(Some(&status(&first)), &status(&second)));
    }
}
