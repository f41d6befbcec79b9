//! What every implementation of the CRI has to do, as plain async functions that panic when it does
//! not. The fake, and the runtimes in their own tests, run them.

use proto::cri::*;

use crate::{Code, RuntimeService};

/// Does something to the container with this id.
type Act<'a> = Box<dyn Fn(&str) + Send + Sync + 'a>;

/// What the suite runs.
pub struct Target<'a> {
    /// A reference of an image that is present.
    pub image: String,
    /// A command that exits with 3 when it gets SIGTERM, or that `end` makes exit so.
    pub command: Vec<String>,
    /// Makes the container exit with 3 from outside, for runtimes that run nothing; or waits until the
    /// command minds signals.
    pub end: Option<Act<'a>>,
}

fn sandbox_config() -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { name: "contract".into(), uid: "uid-1".into(), namespace: "ns".into(), attempt: 0 }),
        hostname: "contract".into(),
        labels: [("suite".to_string(), "contract".to_string())].into(),
        linux: Some(LinuxPodSandboxConfig::default()),
        ..Default::default()
    }
}

/// A sandbox and a container from creation to removal, as list and status show them on the way.
pub async fn life_cycle(runtime: &dyn RuntimeService, target: Target<'_>) {
    let request = RunPodSandboxRequest { config: Some(sandbox_config()), ..Default::default() };
    let sandbox = runtime.run_pod_sandbox(request).await.expect("run sandbox").pod_sandbox_id;
    let list = |labels: &[(&str, &str)]| ListPodSandboxRequest {
        filter: Some(PodSandboxFilter {
            label_selector: labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            ..Default::default()
        }),
    };
    let found = runtime.list_pod_sandbox(list(&[("suite", "contract")])).await.unwrap().items;
    assert!(found.iter().any(|s| s.id == sandbox && s.state() == PodSandboxState::Ready));
    let found = runtime.list_pod_sandbox(list(&[("suite", "other")])).await.unwrap().items;
    assert!(found.is_empty(), "the label selector lets nothing else pass");

    let config = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "c".into(), attempt: 0 }),
        image: Some(ImageSpec { image: target.image.clone(), ..Default::default() }),
        command: target.command.clone(),
        linux: Some(LinuxContainerConfig::default()),
        ..Default::default()
    };
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(config),
        sandbox_config: Some(sandbox_config()),
    };
    let id = runtime.create_container(request).await.expect("create").container_id;
    assert_eq!(status(runtime, &id).await.state(), ContainerState::Created);
    runtime.start_container(StartContainerRequest { container_id: id.clone() }).await.expect("start");
    let running = status(runtime, &id).await;
    assert_eq!(running.state(), ContainerState::Running);
    assert!(running.started_at >= running.created_at);
    let again = runtime.start_container(StartContainerRequest { container_id: id.clone() }).await;
    assert!(again.is_err(), "a container starts once");

    if let Some(end) = &target.end {
        end(&id);
    }
    let stop = StopContainerRequest { container_id: id.clone(), timeout: 10 };
    runtime.stop_container(stop.clone()).await.expect("stop");
    let ended = status(runtime, &id).await;
    assert_eq!((ended.state(), ended.exit_code, ended.reason.as_str()), (ContainerState::Exited, 3, "Error"));
    assert!(ended.finished_at >= ended.started_at);
    runtime.stop_container(stop).await.expect("stopping twice is fine");

    let stop = StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
    runtime.stop_pod_sandbox(stop.clone()).await.expect("stop sandbox");
    runtime.stop_pod_sandbox(stop).await.expect("stopping a sandbox twice is fine");
    let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: false };
    let stopped = runtime.pod_sandbox_status(request.clone()).await.unwrap().status.unwrap();
    assert_eq!(stopped.state(), PodSandboxState::NotReady);
    let remove = RemovePodSandboxRequest { pod_sandbox_id: sandbox };
    runtime.remove_pod_sandbox(remove.clone()).await.expect("remove sandbox");
    runtime.remove_pod_sandbox(remove).await.expect("removing twice is fine");
    assert_eq!(runtime.pod_sandbox_status(request).await.unwrap_err().code, Code::NotFound);
    let gone = runtime.container_status(ContainerStatusRequest { container_id: id, verbose: false }).await;
    assert_eq!(gone.unwrap_err().code, Code::NotFound, "a sandbox takes its containers with it");
}

/// Unknown ids: reading says so, stopping and removing are content.
pub async fn unknown_ids(runtime: &dyn RuntimeService) {
    let id = "0".repeat(64);
    let gone = runtime.container_status(ContainerStatusRequest { container_id: id.clone(), verbose: false }).await;
    assert_eq!(gone.unwrap_err().code, Code::NotFound);
    let gone = runtime.start_container(StartContainerRequest { container_id: id.clone() }).await;
    assert_eq!(gone.unwrap_err().code, Code::NotFound);
    runtime.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 0 }).await.expect("stop");
    runtime.remove_container(RemoveContainerRequest { container_id: id.clone() }).await.expect("remove");
    runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await.expect("stop sandbox");
    runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id }).await.expect("remove sandbox");
}

async fn status(runtime: &dyn RuntimeService, id: &str) -> ContainerStatus {
    let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
    runtime.container_status(request).await.expect("status").status.expect("a status")
}
