//! The runtime service: each procedure in the CRI's terms.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cri::v1::*;
use cri::{Error, EventStream, Result, RuntimeService};
use futures::StreamExt;
use shim::protocol::Call;
use tokio::sync::broadcast;

use crate::sandbox::{blocking, text};
use crate::spec;
use crate::state::{Runtime, Sandbox};

fn labels_match(selector: &std::collections::BTreeMap<String, String>, labels: &std::collections::BTreeMap<String, String>) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

impl Runtime {
    fn chosen_sandboxes(&self, id: &str, labels: &std::collections::BTreeMap<String, String>) -> Vec<Arc<Sandbox>> {
        let all = self.sandboxes.lock();
        all.values().filter(|s| s.id.starts_with(id) && labels_match(labels, &s.config().labels)).cloned().collect()
    }

    /// Removal goes on when the caller gives up, lest half of a thing stays.
    fn arc(&self) -> Result<Arc<Self>> {
        self.me.upgrade().ok_or_else(|| Error::unavailable("the runtime is closing"))
    }

    async fn to_the_end<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        self.tasks.spawn(work).await.map_err(Error::internal)?
    }
}

#[async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: VersionRequest) -> Result<VersionResponse> {
        Ok(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "knarr".into(),
            runtime_version: self.config.version.clone(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn run_pod_sandbox(&self, request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse> {
        let me = self.arc()?;
        let pod_sandbox_id = self.to_the_end(async move { me.run_sandbox(request).await }).await?;
        Ok(RunPodSandboxResponse { pod_sandbox_id })
    }

    async fn stop_pod_sandbox(&self, request: StopPodSandboxRequest) -> Result<StopPodSandboxResponse> {
        if let Some(sandbox) = self.find_sandbox(&request.pod_sandbox_id) {
            let me = self.arc()?;
            self.to_the_end(async move { me.stop_sandbox(&sandbox).await }).await?;
        }
        Ok(StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(&self, request: RemovePodSandboxRequest) -> Result<RemovePodSandboxResponse> {
        if let Some(sandbox) = self.find_sandbox(&request.pod_sandbox_id) {
            let me = self.arc()?;
            self.to_the_end(async move { me.remove_sandbox(&sandbox).await }).await?;
        }
        Ok(RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(&self, request: PodSandboxStatusRequest) -> Result<PodSandboxStatusResponse> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        let containers_statuses = self.containers_of(&sandbox.id).iter().map(|c| c.status()).collect();
        let mut info = std::collections::BTreeMap::new();
        if request.verbose {
            let state = sandbox.state.lock().clone();
            info.insert("info".to_owned(), serde_json::to_string(&state).map_err(Error::internal)?);
        }
        Ok(PodSandboxStatusResponse { status: Some(sandbox.status()), info, containers_statuses, timestamp: crate::files::now() })
    }

    async fn list_pod_sandbox(&self, request: ListPodSandboxRequest) -> Result<ListPodSandboxResponse> {
        let filter = request.filter.unwrap_or_default();
        let chosen = self.chosen_sandboxes(&filter.id, &filter.label_selector);
        let listed = chosen.iter().map(|s| s.listed());
        Ok(ListPodSandboxResponse { items: listed.filter(|s| filter.state.as_ref().is_none_or(|f| f.state == s.state)).collect() })
    }

    async fn create_container(&self, request: CreateContainerRequest) -> Result<CreateContainerResponse> {
        let me = self.arc()?;
        let container_id = self.to_the_end(async move { me.create(request).await }).await?;
        Ok(CreateContainerResponse { container_id })
    }

    async fn start_container(&self, request: StartContainerRequest) -> Result<StartContainerResponse> {
        let (me, container) = (self.arc()?, self.container(&request.container_id)?);
        self.to_the_end(async move { me.start(&container).await }).await?;
        Ok(StartContainerResponse {})
    }

    async fn stop_container(&self, request: StopContainerRequest) -> Result<StopContainerResponse> {
        if let Some(container) = self.find_container(&request.container_id) {
            let timeout = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
            self.stop(&container, timeout).await?;
        }
        Ok(StopContainerResponse {})
    }

    async fn remove_container(&self, request: RemoveContainerRequest) -> Result<RemoveContainerResponse> {
        if let Some(container) = self.find_container(&request.container_id) {
            let me = self.arc()?;
            self.to_the_end(async move { me.delete_container(&container).await }).await?;
        }
        Ok(RemoveContainerResponse {})
    }

    async fn list_containers(&self, request: ListContainersRequest) -> Result<ListContainersResponse> {
        let filter = request.filter.unwrap_or_default();
        let all: Vec<_> = self.containers.lock().values().cloned().collect();
        let chosen = all.iter().filter(|c| {
            c.id.starts_with(&filter.id)
                && c.sandbox.id.starts_with(&filter.pod_sandbox_id)
                && filter.state.as_ref().is_none_or(|f| f.state == c.state() as i32)
                && labels_match(&filter.label_selector, &c.config.labels)
        });
        Ok(ListContainersResponse { containers: chosen.map(|c| c.listed()).collect() })
    }

    async fn container_status(&self, request: ContainerStatusRequest) -> Result<ContainerStatusResponse> {
        let container = self.container(&request.container_id)?;
        let mut info = std::collections::BTreeMap::new();
        if request.verbose {
            let spec: serde_json::Value = crate::files::read_json(&container.dir.join("config.json")).map_err(Error::internal)?;
            let pid = container.pid();
            info.insert("info".to_owned(), serde_json::json!({"sandboxID": container.sandbox.id, "pid": pid, "runtimeSpec": spec}).to_string());
        }
        Ok(ContainerStatusResponse { status: Some(container.status()), info })
    }

    async fn update_container_resources(&self, request: UpdateContainerResourcesRequest) -> Result<UpdateContainerResourcesResponse> {
        let container = self.container(&request.container_id)?;
        let Some(linux) = request.linux else { return Ok(UpdateContainerResourcesResponse {}) };
        if container.life.borrow().is_running() {
            let (cgroups, path, limits) = (self.cgroups.clone(), container.fixed.cgroup.clone(), spec::limits(&linux));
            blocking(move || cgroups.set(&path, &limits).map_err(text)).await?;
        }
        *container.resources.lock() = Some(linux);
        Ok(UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(&self, request: ReopenContainerLogRequest) -> Result<ReopenContainerLogResponse> {
        let (container, shim) = self.running(&request.container_id)?;
        shim.tell(Call::ReopenLog { container: container.id.clone() }).await.map_err(Error::unknown)?;
        Ok(ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse> {
        self.run_and_wait(request).await
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecResponse> {
        Ok(ExecResponse { url: self.prepare_exec(request)? })
    }

    async fn attach(&self, request: AttachRequest) -> Result<AttachResponse> {
        Ok(AttachResponse { url: self.prepare_attach(request)? })
    }

    async fn port_forward(&self, request: PortForwardRequest) -> Result<PortForwardResponse> {
        Ok(PortForwardResponse { url: self.prepare_port_forward(request)? })
    }

    async fn container_stats(&self, request: ContainerStatsRequest) -> Result<ContainerStatsResponse> {
        let (me, container) = (self.arc()?, self.container(&request.container_id)?);
        let stats = blocking(move || Ok(me.container_stats_of(&container))).await?;
        Ok(ContainerStatsResponse { stats: Some(stats) })
    }

    async fn list_container_stats(&self, request: ListContainerStatsRequest) -> Result<ListContainerStatsResponse> {
        let filter = request.filter.unwrap_or_default();
        let me = self.arc()?;
        let stats = blocking(move || {
            let all: Vec<_> = me.containers.lock().values().cloned().collect();
            let chosen = all.iter().filter(|c| {
                c.id.starts_with(&filter.id)
                    && c.sandbox.id.starts_with(&filter.pod_sandbox_id)
                    && c.life.borrow().is_running()
                    && labels_match(&filter.label_selector, &c.config.labels)
            });
            Ok(chosen.map(|c| me.container_stats_of(c)).collect())
        });
        Ok(ListContainerStatsResponse { stats: stats.await? })
    }

    async fn pod_sandbox_stats(&self, request: PodSandboxStatsRequest) -> Result<PodSandboxStatsResponse> {
        let (me, sandbox) = (self.arc()?, self.sandbox(&request.pod_sandbox_id)?);
        let stats = blocking(move || Ok(me.sandbox_stats_of(&sandbox))).await?;
        Ok(PodSandboxStatsResponse { stats: Some(stats) })
    }

    async fn list_pod_sandbox_stats(&self, request: ListPodSandboxStatsRequest) -> Result<ListPodSandboxStatsResponse> {
        let filter = request.filter.unwrap_or_default();
        let (me, chosen) = (self.arc()?, self.chosen_sandboxes(&filter.id, &filter.label_selector));
        let stats = blocking(move || Ok(chosen.iter().filter(|s| s.state.lock().ready).map(|s| me.sandbox_stats_of(s)).collect()));
        Ok(ListPodSandboxStatsResponse { stats: stats.await? })
    }

    async fn update_runtime_config(&self, _: UpdateRuntimeConfigRequest) -> Result<UpdateRuntimeConfigResponse> {
        // The network learns its addresses from the API.
        Ok(UpdateRuntimeConfigResponse {})
    }

    async fn status(&self, _: StatusRequest) -> Result<StatusResponse> {
        let network = self.network.ready().await;
        let condition = |kind: &str, status: bool, reason: &str, message: String| RuntimeCondition {
            r#type: kind.into(),
            status,
            reason: reason.into(),
            message,
        };
        let conditions = vec![
            condition("RuntimeReady", true, "", String::new()),
            match network {
                Ok(()) => condition("NetworkReady", true, "", String::new()),
                Err(why) => condition("NetworkReady", false, "NetworkPluginNotReady", format!("Network plugin returns error: {why}")),
            },
        ];
        let features = RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: false };
        let handlers = ["", "knarr"].map(|name| RuntimeHandler { name: name.into(), features: Some(features.clone()) });
        Ok(StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            runtime_handlers: handlers.to_vec(),
            features: Some(RuntimeFeatures { supplemental_groups_policy: true, user_namespaces_host_network: false }),
            ..Default::default()
        })
    }

    async fn runtime_config(&self, _: RuntimeConfigRequest) -> Result<RuntimeConfigResponse> {
        let linux = LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs as i32 };
        Ok(RuntimeConfigResponse { linux: Some(linux) })
    }

    async fn update_pod_sandbox_resources(&self, request: UpdatePodSandboxResourcesRequest) -> Result<UpdatePodSandboxResourcesResponse> {
        // The pod's own group is the kubelet's to change.
        self.sandbox(&request.pod_sandbox_id)?;
        Ok(UpdatePodSandboxResourcesResponse {})
    }

    async fn get_container_events(&self, _: GetEventsRequest) -> Result<EventStream> {
        let next = |mut receiver: broadcast::Receiver<ContainerEventResponse>| async move {
            match receiver.recv().await {
                Ok(event) => Some((Ok(event), receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((Err(Error::unavailable("events were lost")), receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        };
        let stop = self.stop.clone();
        let events = futures::stream::unfold(self.events.subscribe(), next);
        Ok(events.take_until(async move { stop.cancelled().await }).boxed())
    }
}
