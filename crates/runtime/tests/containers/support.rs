//! A runtime in temporary directories, which leaves nothing behind.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cri::RuntimeService;
use cri::v1::*;
use runtime::{Config, Network, Runtime, SandboxRef};

pub const IMAGE: &str = "test.local/payload:latest";

/// A network that gives an address and no interface.
pub struct NoNetwork;

#[async_trait::async_trait]
impl Network for NoNetwork {
    async fn setup(&self, _: &SandboxRef, netns: &Path, _: &[runtime::PortMapping]) -> Result<Vec<IpAddr>, String> {
        assert!(netns.exists());
        Ok(vec!["10.9.8.7".parse().unwrap()])
    }

    async fn teardown(&self, _: &SandboxRef, _: &Path) -> Result<(), String> {
        Ok(())
    }

    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

pub struct World {
    pub runtime: Arc<Runtime>,
    pub config: Config,
    dir: tempfile::TempDir,
    logs: std::sync::atomic::AtomicU32,
}

fn image(store: &image::Store) {
    let exe = std::fs::read("/proc/self/exe").unwrap();
    let mut layer = tar::Builder::new(Vec::new());
    let mut add = |name: &str, mode: u32, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_mode(mode);
        layer.append_data(&mut header, name, bytes).unwrap();
    };
    add("payload", 0o755, &exe);
    add("etc/passwd", 0o644, b"root:x:0:0::/root:/\nweb:x:33:34::/srv:/\n");
    add("etc/group", 0o644, b"root:x:0:\nstaff:x:50:web\n");
    let layer = layer.into_inner().unwrap();
    let digest = |bytes: &[u8]| hex::encode(sha256(bytes));
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }, "os": "linux",
        "config": {"Entrypoint": ["/payload", "payload"], "Env": ["FROM=image"], "WorkingDir": "/work/dir"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
    })
    .to_string();
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]).to_string();
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in [("config.json", config.as_bytes()), ("layer.tar", &layer[..]), ("manifest.json", manifest.as_bytes())] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).unwrap();
    }
    store.import(&archive.into_inner().unwrap()[..], None).unwrap();
}

/// SHA-256 by the base system's tool, so that the test needs no crate for it.
fn sha256(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut child = std::process::Command::new("sha256sum").stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let out = child.wait_with_output().unwrap();
    hex::decode(&out.stdout[..64]).unwrap()
}

impl World {
    pub async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("knarr-runtime-").tempdir().unwrap();
        let images = image::Store::open(dir.path().join("images")).unwrap();
        image(&images);
        let config = Config {
            root: dir.path().join("root"),
            run: dir.path().join("run"),
            self_exe: std::env::current_exe().unwrap(),
            cgroup_parent: format!("/knarr-test-{}", std::process::id()),
            version: "test".into(),
            registries: image::Options::default(),
        };
        let runtime = Runtime::open(config.clone(), Arc::new(NoNetwork), Arc::new(images)).await.unwrap();
        Self { runtime, config, dir, logs: Default::default() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// As after a crash of the server: everything known is forgotten, and read again.
    pub async fn reopen(&mut self) {
        self.runtime.close().await;
        let images = image::Store::open(self.dir.path().join("images")).unwrap();
        self.runtime = Runtime::open(self.config.clone(), Arc::new(NoNetwork), Arc::new(images)).await.unwrap();
    }

    pub fn sandbox_config(&self) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { name: "pod".into(), uid: "u".into(), namespace: "ns".into(), attempt: 0 }),
            hostname: "pod-host".into(),
            log_directory: self.path("logs").display().to_string(),
            dns_config: Some(DnsConfig { servers: vec!["10.96.0.10".into()], ..DnsConfig::default() }),
            ..PodSandboxConfig::default()
        }
    }

    pub async fn sandbox(&self) -> String {
        self.sandbox_with(self.sandbox_config()).await
    }

    pub async fn sandbox_with(&self, config: PodSandboxConfig) -> String {
        let request = RunPodSandboxRequest { config: Some(config), ..RunPodSandboxRequest::default() };
        self.runtime.run_pod_sandbox(request).await.unwrap().pod_sandbox_id
    }

    pub fn container(&self, args: &[&str]) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: "c".into(), attempt: 0 }),
            image: Some(ImageSpec { image: IMAGE.into(), ..ImageSpec::default() }),
            args: args.iter().map(|a| a.to_string()).collect(),
            log_path: format!("c/{}.log", self.logs.fetch_add(1, std::sync::atomic::Ordering::Relaxed)),
            linux: Some(LinuxContainerConfig::default()),
            ..ContainerConfig::default()
        }
    }

    pub async fn create(&self, sandbox: &str, config: ContainerConfig) -> String {
        let request = CreateContainerRequest { pod_sandbox_id: sandbox.into(), config: Some(config), sandbox_config: None };
        self.runtime.create_container(request).await.unwrap().container_id
    }

    pub async fn start(&self, id: &str) {
        self.runtime.start_container(StartContainerRequest { container_id: id.into() }).await.unwrap();
    }

    /// Creates and starts.
    pub async fn run(&self, sandbox: &str, config: ContainerConfig) -> String {
        let id = self.create(sandbox, config).await;
        self.start(&id).await;
        id
    }

    /// Creates, starts and waits for the end: what it wrote to standard output, and its status.
    pub async fn output(&self, sandbox: &str, config: ContainerConfig) -> (String, ContainerStatus) {
        let id = self.run(sandbox, config).await;
        let status = self.ended(&id).await;
        (self.log(&id, "stdout").await, status)
    }

    pub async fn status(&self, id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        self.runtime.container_status(request).await.unwrap().status.unwrap()
    }

    /// The first process of a running container.
    pub async fn pid(&self, id: &str) -> i64 {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: true };
        let info = self.runtime.container_status(request).await.unwrap().info;
        serde_json::from_str::<serde_json::Value>(&info["info"]).unwrap()["pid"].as_i64().unwrap()
    }

    pub async fn ended(&self, id: &str) -> ContainerStatus {
        self.until(async || Some(self.status(id).await).filter(|s| s.state() == ContainerState::Exited)).await
    }

    /// The text of one stream of a container's log.
    pub async fn log(&self, id: &str, stream: &str) -> String {
        let path = self.status(id).await.log_path;
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines = text.lines().filter_map(|l| l.splitn(4, ' ').collect::<Vec<_>>().try_into().ok());
        lines.filter(|[_, s, _, _]: &[&str; 4]| *s == stream).map(|[_, _, tag, line]| if tag == "F" { format!("{line}\n") } else { line.to_owned() }).collect()
    }

    pub async fn exec(&self, id: &str, args: &[&str]) -> ExecSyncResponse {
        let cmd = ["/payload", "payload"].iter().chain(args).map(|s| s.to_string()).collect();
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout: 20 };
        self.runtime.exec_sync(request).await.unwrap()
    }

    /// Asks again until there is an answer.
    pub async fn until<T>(&self, ask: impl AsyncFn() -> Option<T>) -> T {
        let patience = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(tokio::time::Instant::now() < patience, "waited too long");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(error) = runtime::purge(&self.config) {
            eprintln!("purge: {error}");
        }
    }
}
