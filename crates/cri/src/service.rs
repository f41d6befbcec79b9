//! The two services as object-safe traits.

use async_trait::async_trait;
use futures::stream::BoxStream;
use proto::cri::*;

use crate::Error;

/// What every procedure answers.
pub type Result<T> = std::result::Result<T, Error>;

/// Container events, from the moment of the call on. It ends when the runtime closes; a consumer that
/// is too slow gets one error and has to list again.
pub type EventStream = BoxStream<'static, Result<ContainerEventResponse>>;

/// `runtime.v1.RuntimeService`.
#[async_trait]
pub trait RuntimeService: Send + Sync {
    /// Which runtime this is, and which versions it speaks.
    async fn version(&self, request: VersionRequest) -> Result<VersionResponse>;

    /// Makes and starts a sandbox; it is ready when this returns.
    async fn run_pod_sandbox(&self, request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse>;

    /// Kills what runs in the sandbox and gives its network back. Idempotent; an unknown id is fine.
    async fn stop_pod_sandbox(&self, request: StopPodSandboxRequest) -> Result<StopPodSandboxResponse>;

    /// Removes the sandbox with all its containers. Idempotent; an unknown id is fine.
    async fn remove_pod_sandbox(&self, request: RemovePodSandboxRequest) -> Result<RemovePodSandboxResponse>;

    /// `NotFound` when there is none.
    async fn pod_sandbox_status(&self, request: PodSandboxStatusRequest) -> Result<PodSandboxStatusResponse>;

    /// All sandboxes that the filter lets pass.
    async fn list_pod_sandbox(&self, request: ListPodSandboxRequest) -> Result<ListPodSandboxResponse>;

    /// Makes a container in a ready sandbox, without starting it.
    async fn create_container(&self, request: CreateContainerRequest) -> Result<CreateContainerResponse>;

    /// Starts a created container.
    async fn start_container(&self, request: StartContainerRequest) -> Result<StartContainerResponse>;

    /// Sends the stop signal, after `timeout` seconds SIGKILL. Idempotent; an unknown id is fine.
    async fn stop_container(&self, request: StopContainerRequest) -> Result<StopContainerResponse>;

    /// Kills when needed and removes. Idempotent; an unknown id is fine.
    async fn remove_container(&self, request: RemoveContainerRequest) -> Result<RemoveContainerResponse>;

    /// All containers that the filter lets pass.
    async fn list_containers(&self, request: ListContainersRequest) -> Result<ListContainersResponse>;

    /// `NotFound` when there is none.
    async fn container_status(&self, request: ContainerStatusRequest) -> Result<ContainerStatusResponse>;

    /// Changes the cgroup of a container.
    async fn update_container_resources(&self, request: UpdateContainerResourcesRequest) -> Result<UpdateContainerResourcesResponse>;

    /// Opens the log file anew, after a rotation renamed it.
    async fn reopen_container_log(&self, request: ReopenContainerLogRequest) -> Result<ReopenContainerLogResponse>;

    /// Runs a command in a container and collects its output; `DeadlineExceeded` after `timeout` seconds (0: never).
    async fn exec_sync(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse>;

    /// Prepares a streamed command.
    async fn exec(&self, request: ExecRequest) -> Result<ExecResponse>;

    /// Prepares streaming of a running container.
    async fn attach(&self, request: AttachRequest) -> Result<AttachResponse>;

    /// Prepares forwarding into a sandbox.
    async fn port_forward(&self, request: PortForwardRequest) -> Result<PortForwardResponse>;

    /// `NotFound` when there is none.
    async fn container_stats(&self, request: ContainerStatsRequest) -> Result<ContainerStatsResponse>;

    /// Usage of all running containers that the filter lets pass.
    async fn list_container_stats(&self, request: ListContainerStatsRequest) -> Result<ListContainerStatsResponse>;

    /// `NotFound` when there is none.
    async fn pod_sandbox_stats(&self, request: PodSandboxStatsRequest) -> Result<PodSandboxStatsResponse>;

    /// Usage of all sandboxes that the filter lets pass.
    async fn list_pod_sandbox_stats(&self, request: ListPodSandboxStatsRequest) -> Result<ListPodSandboxStatsResponse>;

    /// Tells the runtime the pod CIDR.
    async fn update_runtime_config(&self, request: UpdateRuntimeConfigRequest) -> Result<UpdateRuntimeConfigResponse>;

    /// The conditions RuntimeReady and NetworkReady.
    async fn status(&self, request: StatusRequest) -> Result<StatusResponse>;

    /// What `list_pod_sandbox_metrics` may answer.
    async fn list_metric_descriptors(&self, _request: ListMetricDescriptorsRequest) -> Result<ListMetricDescriptorsResponse> {
        Err(Error::unimplemented("ListMetricDescriptors"))
    }

    /// Metrics of sandboxes.
    async fn list_pod_sandbox_metrics(&self, _request: ListPodSandboxMetricsRequest) -> Result<ListPodSandboxMetricsResponse> {
        Err(Error::unimplemented("ListPodSandboxMetrics"))
    }

    /// Which cgroup driver the runtime wants.
    async fn runtime_config(&self, request: RuntimeConfigRequest) -> Result<RuntimeConfigResponse>;

    /// Tells the new resources of the whole pod.
    async fn update_pod_sandbox_resources(&self, _request: UpdatePodSandboxResourcesRequest) -> Result<UpdatePodSandboxResourcesResponse> {
        Err(Error::unimplemented("UpdatePodSandboxResources"))
    }

    /// Saves a container to an archive.
    async fn checkpoint_container(&self, _request: CheckpointContainerRequest) -> Result<CheckpointContainerResponse> {
        Err(Error::unimplemented("CheckpointContainer"))
    }

    /// Every creation, start, end and removal of a container.
    async fn get_container_events(&self, request: GetEventsRequest) -> Result<EventStream>;
}

/// `runtime.v1.ImageService`.
#[async_trait]
pub trait ImageService: Send + Sync {
    /// All images that the filter lets pass.
    async fn list_images(&self, request: ListImagesRequest) -> Result<ListImagesResponse>;

    /// No image in the answer when there is none.
    async fn image_status(&self, request: ImageStatusRequest) -> Result<ImageStatusResponse>;

    /// Fetches an image; the answer is its reference by digest or id.
    async fn pull_image(&self, request: PullImageRequest) -> Result<PullImageResponse>;

    /// Idempotent; an unknown image is fine.
    async fn remove_image(&self, request: RemoveImageRequest) -> Result<RemoveImageResponse>;

    /// Where images are and what they take.
    async fn image_fs_info(&self, request: ImageFsInfoRequest) -> Result<ImageFsInfoResponse>;
}
