//! A container runtime in memory, for tests of what drives one.
//!
//! Containers do nothing: a test ends them with [`Fake::exit`]. Image references are whatever was
//! pulled or [`Fake::add_image`]d. Failures are injected a procedure at a time with [`Fake::fail`].

use std::collections::{BTreeMap, VecDeque};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use futures::StreamExt;
use parking_lot::Mutex;
use proto::cri::*;
use tokio::sync::broadcast;

use crate::{Error, EventStream, ImageService, Result, RuntimeService};

/// The in-memory runtime.
pub struct Fake {
    state: Mutex<State>,
    events: broadcast::Sender<ContainerEventResponse>,
}

#[derive(Default)]
struct State {
    next: u64,
    sandboxes: BTreeMap<String, PodSandboxStatus>,
    containers: BTreeMap<String, Entry>,
    images: BTreeMap<String, Image>,
    failures: BTreeMap<&'static str, VecDeque<Error>>,
    calls: Vec<&'static str>,
    exec: Option<ExecSyncResponse>,
}

struct Entry {
    sandbox: String,
    config: ContainerConfig,
    status: ContainerStatus,
}

impl Default for Fake {
    fn default() -> Self {
        Self { state: Mutex::default(), events: broadcast::channel(1024).0 }
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64)
}

fn labels_match(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

impl Fake {
    /// An empty runtime.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes an image known under a name.
    pub fn add_image(&self, name: &str) {
        let mut state = self.state.lock();
        let id = format!("sha256:{:064x}", name.bytes().fold(7u128, |h, b| h.wrapping_mul(31).wrapping_add(b.into())));
        let image = Image { id, repo_tags: vec![name.into()], size: 1, ..Default::default() };
        state.images.insert(name.into(), image);
    }

    /// The next call of the procedure (snake case) fails with this error. Several wait in line.
    pub fn fail(&self, procedure: &'static str, error: Error) {
        self.state.lock().failures.entry(procedure).or_default().push_back(error);
    }

    /// What `exec_sync` answers from now on.
    pub fn set_exec(&self, response: ExecSyncResponse) {
        self.state.lock().exec = Some(response);
    }

    /// The procedures called so far, in order.
    pub fn calls(&self) -> Vec<&'static str> {
        self.state.lock().calls.clone()
    }

    /// The configuration a container was created with.
    pub fn container_config(&self, id: &str) -> Option<ContainerConfig> {
        self.state.lock().containers.get(id).map(|c| c.config.clone())
    }

    /// Ends a running container, as if its process had exited.
    pub fn exit(&self, id: &str, code: i32) {
        let mut state = self.state.lock();
        self.end(&mut state, id, code);
    }

    fn end(&self, state: &mut State, id: &str, code: i32) {
        let Some(entry) = state.containers.get_mut(id) else { return };
        if entry.status.state == ContainerState::Exited as i32 {
            return;
        }
        entry.status.state = ContainerState::Exited as i32;
        entry.status.finished_at = now();
        entry.status.exit_code = code;
        entry.status.reason = if code == 0 { "Completed" } else { "Error" }.into();
        self.emit(state, id, ContainerEventType::Stopped);
    }

    fn emit(&self, state: &State, id: &str, kind: ContainerEventType) {
        let sandbox = state.containers.get(id).map_or(id, |c| &c.sandbox);
        let containers = state.containers.values().filter(|c| c.sandbox == sandbox);
        let event = ContainerEventResponse {
            container_id: id.into(),
            container_event_type: kind as i32,
            created_at: now(),
            pod_sandbox_status: state.sandboxes.get(sandbox).cloned(),
            containers_statuses: containers.map(|c| c.status.clone()).collect(),
        };
        // Nobody listening is no error.
        let _ = self.events.send(event);
    }

    fn begin(&self, procedure: &'static str) -> Result<parking_lot::MutexGuard<'_, State>> {
        let mut state = self.state.lock();
        state.calls.push(procedure);
        match state.failures.get_mut(procedure).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(state),
        }
    }
}

impl State {
    fn id(&mut self) -> String {
        self.next += 1;
        format!("{:064x}", self.next)
    }

    fn container(&mut self, id: &str) -> Result<&mut Entry> {
        let missing = || Error::not_found(format!("an error occurred when try to find container \"{id}\": not found"));
        self.containers.get_mut(id).ok_or_else(missing)
    }

    fn sandbox(&mut self, id: &str) -> Result<&mut PodSandboxStatus> {
        let missing = || Error::not_found(format!("an error occurred when try to find sandbox \"{id}\": not found"));
        self.sandboxes.get_mut(id).ok_or_else(missing)
    }

    fn image(&self, name: &str) -> Option<&Image> {
        self.images.get(name).or_else(|| self.images.values().find(|i| i.id == name))
    }
}

#[async_trait]
impl RuntimeService for Fake {
    async fn version(&self, _: VersionRequest) -> Result<VersionResponse> {
        drop(self.begin("version")?);
        Ok(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "fake".into(),
            runtime_version: "0.1.0".into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn run_pod_sandbox(&self, request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse> {
        let mut state = self.begin("run_pod_sandbox")?;
        let config = request.config.ok_or_else(|| Error::invalid_argument("no sandbox config"))?;
        let id = state.id();
        let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let namespaces = security.and_then(|s| s.namespace_options.clone()).unwrap_or_default();
        let host = namespaces.network == NamespaceMode::Node as i32;
        let ip = if host { String::new() } else { format!("10.1.{}.{}", state.next / 250, state.next % 250 + 2) };
        let status = PodSandboxStatus {
            id: id.clone(),
            metadata: config.metadata,
            state: PodSandboxState::Ready as i32,
            created_at: now(),
            network: Some(PodSandboxNetworkStatus { ip, additional_ips: vec![] }),
            linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options: Some(namespaces) }) }),
            labels: config.labels,
            annotations: config.annotations,
            runtime_handler: request.runtime_handler,
        };
        state.sandboxes.insert(id.clone(), status);
        Ok(RunPodSandboxResponse { pod_sandbox_id: id })
    }

    async fn stop_pod_sandbox(&self, request: StopPodSandboxRequest) -> Result<StopPodSandboxResponse> {
        let mut state = self.begin("stop_pod_sandbox")?;
        let id = request.pod_sandbox_id;
        let of = |c: &Entry| c.sandbox == id && c.status.state == ContainerState::Running as i32;
        let running: Vec<String> = state.containers.iter().filter(|(_, c)| of(c)).map(|(id, _)| id.clone()).collect();
        for container in running {
            self.end(&mut state, &container, 137);
        }
        if let Ok(sandbox) = state.sandbox(&id) {
            sandbox.state = PodSandboxState::NotReady as i32;
        }
        Ok(StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(&self, request: RemovePodSandboxRequest) -> Result<RemovePodSandboxResponse> {
        let mut state = self.begin("remove_pod_sandbox")?;
        state.containers.retain(|_, c| c.sandbox != request.pod_sandbox_id);
        state.sandboxes.remove(&request.pod_sandbox_id);
        Ok(RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(&self, request: PodSandboxStatusRequest) -> Result<PodSandboxStatusResponse> {
        let mut state = self.begin("pod_sandbox_status")?;
        let status = state.sandbox(&request.pod_sandbox_id)?.clone();
        let of = state.containers.values().filter(|c| c.sandbox == request.pod_sandbox_id);
        let containers_statuses = of.map(|c| c.status.clone()).collect();
        Ok(PodSandboxStatusResponse { status: Some(status), containers_statuses, timestamp: now(), ..Default::default() })
    }

    async fn list_pod_sandbox(&self, request: ListPodSandboxRequest) -> Result<ListPodSandboxResponse> {
        let state = self.begin("list_pod_sandbox")?;
        let filter = request.filter.unwrap_or_default();
        let wanted = |s: &&PodSandboxStatus| {
            s.id.starts_with(&filter.id)
                && filter.state.as_ref().is_none_or(|f| f.state == s.state)
                && labels_match(&filter.label_selector, &s.labels)
        };
        let items = state.sandboxes.values().filter(wanted).cloned().map(|s| PodSandbox {
            id: s.id,
            metadata: s.metadata,
            state: s.state,
            created_at: s.created_at,
            labels: s.labels,
            annotations: s.annotations,
            runtime_handler: s.runtime_handler,
        });
        Ok(ListPodSandboxResponse { items: items.collect() })
    }

    async fn create_container(&self, request: CreateContainerRequest) -> Result<CreateContainerResponse> {
        let mut state = self.begin("create_container")?;
        let config = request.config.ok_or_else(|| Error::invalid_argument("no container config"))?;
        if state.sandbox(&request.pod_sandbox_id)?.state != PodSandboxState::Ready as i32 {
            return Err(Error::failed_precondition("sandbox is not ready"));
        }
        let spec = config.image.clone().unwrap_or_default();
        let image = state.image(&spec.image).ok_or_else(|| Error::not_found(format!("image {} not found", spec.image)))?;
        let image_id = image.id.clone();
        let id = state.id();
        let status = ContainerStatus {
            id: id.clone(),
            metadata: config.metadata.clone(),
            state: ContainerState::Created as i32,
            created_at: now(),
            image: Some(spec),
            image_ref: image_id.clone(),
            image_id,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            log_path: config.log_path.clone(),
            resources: config.linux.as_ref().and_then(|l| l.resources.clone()).map(|linux| ContainerResources { linux: Some(linux) }),
            ..Default::default()
        };
        state.containers.insert(id.clone(), Entry { sandbox: request.pod_sandbox_id, config, status });
        self.emit(&state, &id, ContainerEventType::Created);
        Ok(CreateContainerResponse { container_id: id })
    }

    async fn start_container(&self, request: StartContainerRequest) -> Result<StartContainerResponse> {
        let mut state = self.begin("start_container")?;
        let entry = state.container(&request.container_id)?;
        if entry.status.state != ContainerState::Created as i32 {
            return Err(Error::failed_precondition("container is not in created state"));
        }
        entry.status.state = ContainerState::Running as i32;
        entry.status.started_at = now();
        self.emit(&state, &request.container_id, ContainerEventType::Started);
        Ok(StartContainerResponse {})
    }

    async fn stop_container(&self, request: StopContainerRequest) -> Result<StopContainerResponse> {
        let mut state = self.begin("stop_container")?;
        if state.container(&request.container_id).is_ok_and(|c| c.status.state == ContainerState::Running as i32) {
            self.end(&mut state, &request.container_id, 137);
        }
        Ok(StopContainerResponse {})
    }

    async fn remove_container(&self, request: RemoveContainerRequest) -> Result<RemoveContainerResponse> {
        let mut state = self.begin("remove_container")?;
        if state.containers.contains_key(&request.container_id) {
            self.emit(&state, &request.container_id, ContainerEventType::Deleted);
            state.containers.remove(&request.container_id);
        }
        Ok(RemoveContainerResponse {})
    }

    async fn list_containers(&self, request: ListContainersRequest) -> Result<ListContainersResponse> {
        let state = self.begin("list_containers")?;
        let filter = request.filter.unwrap_or_default();
        let wanted = |c: &&Entry| {
            c.status.id.starts_with(&filter.id)
                && c.sandbox.starts_with(&filter.pod_sandbox_id)
                && filter.state.as_ref().is_none_or(|f| f.state == c.status.state)
                && labels_match(&filter.label_selector, &c.status.labels)
        };
        let containers = state.containers.values().filter(wanted).map(|c| Container {
            id: c.status.id.clone(),
            pod_sandbox_id: c.sandbox.clone(),
            metadata: c.status.metadata.clone(),
            image: c.status.image.clone(),
            image_ref: c.status.image_ref.clone(),
            state: c.status.state,
            created_at: c.status.created_at,
            labels: c.status.labels.clone(),
            annotations: c.status.annotations.clone(),
            image_id: c.status.image_id.clone(),
        });
        Ok(ListContainersResponse { containers: containers.collect() })
    }

    async fn container_status(&self, request: ContainerStatusRequest) -> Result<ContainerStatusResponse> {
        let mut state = self.begin("container_status")?;
        let status = state.container(&request.container_id)?.status.clone();
        Ok(ContainerStatusResponse { status: Some(status), ..Default::default() })
    }

    async fn update_container_resources(
        &self,
        request: UpdateContainerResourcesRequest,
    ) -> Result<UpdateContainerResourcesResponse> {
        let mut state = self.begin("update_container_resources")?;
        let entry = state.container(&request.container_id)?;
        entry.status.resources = Some(ContainerResources { linux: request.linux });
        Ok(UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(&self, request: ReopenContainerLogRequest) -> Result<ReopenContainerLogResponse> {
        let mut state = self.begin("reopen_container_log")?;
        state.container(&request.container_id)?;
        Ok(ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse> {
        let mut state = self.begin("exec_sync")?;
        let entry = state.container(&request.container_id)?;
        if entry.status.state != ContainerState::Running as i32 {
            return Err(Error::failed_precondition("container is not in running state"));
        }
        Ok(state.exec.clone().unwrap_or_default())
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecResponse> {
        let mut state = self.begin("exec")?;
        state.container(&request.container_id)?;
        Ok(ExecResponse { url: "unix:///fake/stream.sock/exec/1".into() })
    }

    async fn attach(&self, request: AttachRequest) -> Result<AttachResponse> {
        let mut state = self.begin("attach")?;
        state.container(&request.container_id)?;
        Ok(AttachResponse { url: "unix:///fake/stream.sock/attach/1".into() })
    }

    async fn port_forward(&self, request: PortForwardRequest) -> Result<PortForwardResponse> {
        let mut state = self.begin("port_forward")?;
        state.sandbox(&request.pod_sandbox_id)?;
        Ok(PortForwardResponse { url: "unix:///fake/stream.sock/portforward/1".into() })
    }

    async fn container_stats(&self, request: ContainerStatsRequest) -> Result<ContainerStatsResponse> {
        let mut state = self.begin("container_stats")?;
        let stats = state.container(&request.container_id)?.stats();
        Ok(ContainerStatsResponse { stats: Some(stats) })
    }

    async fn list_container_stats(&self, request: ListContainerStatsRequest) -> Result<ListContainerStatsResponse> {
        let state = self.begin("list_container_stats")?;
        let filter = request.filter.unwrap_or_default();
        let wanted = |c: &&Entry| {
            c.status.id.starts_with(&filter.id)
                && c.sandbox.starts_with(&filter.pod_sandbox_id)
                && labels_match(&filter.label_selector, &c.status.labels)
        };
        Ok(ListContainerStatsResponse { stats: state.containers.values().filter(wanted).map(Entry::stats).collect() })
    }

    async fn pod_sandbox_stats(&self, request: PodSandboxStatsRequest) -> Result<PodSandboxStatsResponse> {
        let mut state = self.begin("pod_sandbox_stats")?;
        let sandbox = state.sandbox(&request.pod_sandbox_id)?.clone();
        Ok(PodSandboxStatsResponse { stats: Some(state.pod_stats(sandbox)) })
    }

    async fn list_pod_sandbox_stats(&self, _: ListPodSandboxStatsRequest) -> Result<ListPodSandboxStatsResponse> {
        let state = self.begin("list_pod_sandbox_stats")?;
        let stats = state.sandboxes.values().cloned().map(|s| state.pod_stats(s)).collect();
        Ok(ListPodSandboxStatsResponse { stats })
    }

    async fn update_runtime_config(&self, _: UpdateRuntimeConfigRequest) -> Result<UpdateRuntimeConfigResponse> {
        drop(self.begin("update_runtime_config")?);
        Ok(UpdateRuntimeConfigResponse {})
    }

    async fn status(&self, _: StatusRequest) -> Result<StatusResponse> {
        drop(self.begin("status")?);
        let condition = |r#type: &str| RuntimeCondition { r#type: r#type.into(), status: true, ..Default::default() };
        let conditions = vec![condition("RuntimeReady"), condition("NetworkReady")];
        Ok(StatusResponse { status: Some(RuntimeStatus { conditions }), ..Default::default() })
    }

    async fn runtime_config(&self, _: RuntimeConfigRequest) -> Result<RuntimeConfigResponse> {
        drop(self.begin("runtime_config")?);
        let linux = LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs as i32 };
        Ok(RuntimeConfigResponse { linux: Some(linux) })
    }

    async fn get_container_events(&self, _: GetEventsRequest) -> Result<EventStream> {
        drop(self.begin("get_container_events")?);
        let receiver = self.events.subscribe();
        let next = |mut receiver: broadcast::Receiver<ContainerEventResponse>| async move {
            match receiver.recv().await {
                Ok(event) => Some((Ok(event), receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((Err(Error::unavailable("events were lost")), receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        };
        Ok(futures::stream::unfold(receiver, next).boxed())
    }
}

impl Entry {
    fn stats(&self) -> ContainerStats {
        ContainerStats {
            attributes: Some(ContainerAttributes {
                id: self.status.id.clone(),
                metadata: self.status.metadata.clone(),
                labels: self.status.labels.clone(),
                annotations: self.status.annotations.clone(),
            }),
            cpu: Some(CpuUsage { timestamp: now(), usage_core_nano_seconds: Some(UInt64Value { value: 1 }), ..Default::default() }),
            memory: Some(MemoryUsage { timestamp: now(), working_set_bytes: Some(UInt64Value { value: 1 }), ..Default::default() }),
            ..Default::default()
        }
    }
}

impl State {
    fn pod_stats(&self, sandbox: PodSandboxStatus) -> PodSandboxStats {
        let containers = self.containers.values().filter(|c| c.sandbox == sandbox.id).map(Entry::stats).collect();
        PodSandboxStats {
            attributes: Some(PodSandboxAttributes {
                id: sandbox.id,
                metadata: sandbox.metadata,
                labels: sandbox.labels,
                annotations: sandbox.annotations,
            }),
            linux: Some(LinuxPodSandboxStats { containers, ..Default::default() }),
        }
    }
}

#[async_trait]
impl ImageService for Fake {
    async fn list_images(&self, request: ListImagesRequest) -> Result<ListImagesResponse> {
        let state = self.begin("list_images")?;
        let name = request.filter.and_then(|f| f.image).map(|i| i.image).unwrap_or_default();
        let images = state.images.values().filter(|i| name.is_empty() || i.repo_tags.contains(&name) || i.id == name);
        Ok(ListImagesResponse { images: images.cloned().collect() })
    }

    async fn image_status(&self, request: ImageStatusRequest) -> Result<ImageStatusResponse> {
        let state = self.begin("image_status")?;
        let image = state.image(&request.image.unwrap_or_default().image).cloned();
        Ok(ImageStatusResponse { image, ..Default::default() })
    }

    async fn pull_image(&self, request: PullImageRequest) -> Result<PullImageResponse> {
        drop(self.begin("pull_image")?);
        let name = request.image.unwrap_or_default().image;
        self.add_image(&name);
        Ok(PullImageResponse { image_ref: self.state.lock().images[&name].id.clone() })
    }

    async fn remove_image(&self, request: RemoveImageRequest) -> Result<RemoveImageResponse> {
        let mut state = self.begin("remove_image")?;
        let name = request.image.unwrap_or_default().image;
        state.images.retain(|n, i| *n != name && i.id != name);
        Ok(RemoveImageResponse {})
    }

    async fn image_fs_info(&self, _: ImageFsInfoRequest) -> Result<ImageFsInfoResponse> {
        drop(self.begin("image_fs_info")?);
        Ok(ImageFsInfoResponse::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_fake_keeps_the_contract() {
        let fake = Fake::new();
        fake.add_image("img");
        let target = crate::contract::Target { image: "img".into(), command: vec![], end: Some(Box::new(|id| fake.exit(id, 3))) };
        crate::contract::life_cycle(&fake, target).await;
        crate::contract::unknown_ids(&fake).await;
    }
}
