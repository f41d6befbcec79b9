//! Containers from creation to removal.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cri::v1::*;
use cri::{Error, Message, Result};
use parking_lot::Mutex;
use shim::protocol::{Answer, Call, Run};
use shim::record::Exit;
use tokio::sync::watch;

use crate::sandbox::{blocking, shm, text};
use crate::spec::{self, ImageDefaults, Input, Namespaces, Pid};
use crate::state::{Container, Failure, Fixed, Life, Runtime, Sandbox};
use crate::user::{self, User, Wanted};
use crate::files;

/// The code of a container that could not be started, as containerd has it.
const START_FAILED: i32 = 128;
/// The code of a container whose end nobody saw.
const UNKNOWN_EXIT: i32 = 255;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

impl Runtime {
    pub(crate) async fn create(&self, request: CreateContainerRequest) -> Result<String> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        let config = request.config.ok_or_else(|| Error::invalid_argument("container config is missing"))?;
        if config.metadata.is_none() {
            return Err(Error::invalid_argument("container config must include metadata"));
        }
        if !sandbox.state.lock().ready {
            return Err(Error::failed_precondition(format!("sandbox container {:?} is not running", sandbox.id)));
        }
        let id = files::new_id();
        let namespaces = self.namespaces(&sandbox, &config)?;
        let work = (self.me.upgrade().ok_or_else(|| Error::unavailable("the runtime is closing"))?, sandbox.clone(), id.clone());
        let made = blocking(move || {
            let (runtime, sandbox, id) = work;
            let made = runtime.make(&sandbox, &id, config, namespaces);
            if made.is_err() {
                runtime.unmake(&id);
            }
            made
        })
        .await;
        let container = made.map_err(|e| Error::unknown(format!("failed to create container: {}", e.message)))?;
        self.containers.lock().insert(id.clone(), Arc::new(container));
        self.emit(&id, &sandbox, ContainerEventType::Created);
        Ok(id)
    }

    fn namespaces(&self, sandbox: &Sandbox, config: &ContainerConfig) -> Result<Namespaces> {
        let state = sandbox.state.lock();
        let of = |pid: i32, kind: &str| Path::new("/proc").join(pid.to_string()).join("ns").join(kind);
        let (network, pod_pid, ipc) = spec::sandbox_namespaces(sandbox.config());
        let host_network = network == NamespaceMode::Node;
        let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let options = security.and_then(|s| s.namespace_options.as_ref());
        let pid = match options.map_or(pod_pid, NamespaceOption::pid) {
            NamespaceMode::Container => Pid::Own,
            NamespaceMode::Node => Pid::Host,
            NamespaceMode::Pod => match state.pause_pid {
                Some(pause) => Pid::Join(of(pause, "pid")),
                None => return Err(Error::invalid_argument("the sandbox has no shared PID namespace")),
            },
            NamespaceMode::Target => {
                let id = options.map(|o| o.target_id.as_str()).unwrap_or_default();
                let target = self.container(id)?;
                if target.sandbox.id != sandbox.id {
                    return Err(Error::invalid_argument("the target container is in another sandbox"));
                }
                let pid = target.pid().ok_or_else(|| Error::failed_precondition("the target container is not running"))?;
                Pid::Join(of(pid, "pid"))
            }
        };
        Ok(Namespaces {
            network: sandbox.netns(),
            ipc: (ipc != NamespaceMode::Node).then(|| of(state.shim_pid, "ipc")),
            uts: (!host_network).then(|| of(state.shim_pid, "uts")),
            pid,
        })
    }

    /// Root file system, specification and state of a new container.
    fn make(&self, sandbox: &Arc<Sandbox>, id: &str, config: ContainerConfig, namespaces: Namespaces) -> std::result::Result<Container, String> {
        let spec = config.image.clone().unwrap_or_default();
        let image = self.images.get(&spec.image).map_err(text)?;
        let image = image.ok_or_else(|| format!("image {:?} is not present", spec.image))?;
        let defaults = image_defaults(&self.images.config(&image.id).map_err(text)?);
        let dir = self.config.containers().join(id);
        let rootfs = dir.join("rootfs");
        for part in ["rootfs", "upper", "work"] {
            std::fs::create_dir_all(dir.join(part)).map_err(text)?;
        }
        let mut lower = self.images.hold(id, &image.id).map_err(text)?;
        if lower.is_empty() {
            // An image without layers; overlays want one.
            let empty = dir.join("empty");
            std::fs::create_dir_all(&empty).map_err(text)?;
            lower.push(empty);
        }
        let overlay = sys::mount::Overlay { lower: &lower, upper: &dir.join("upper"), work: &dir.join("work") };
        sys::mount::overlay(&overlay, &rootfs).map_err(text)?;

        let user = resolve_user(&rootfs, &config, &defaults)?;
        make_mount_sources(&config)?;
        let own_pid_namespace = matches!(namespaces.pid, Pid::Own);
        let cgroup = format!("{}/{id}", sandbox.state.lock().cgroup_parent.trim_end_matches('/'));
        let file = |name: &'static str, source: &str| (name, sandbox.dir.join(source));
        let input = Input {
            config: &config,
            sandbox: sandbox.config(),
            image: &defaults,
            user: &user,
            rootfs: rootfs.clone(),
            cgroup: cgroup.clone(),
            cgroup_v2: self.cgroups.version() == sys::cgroup::Version::V2,
            namespaces,
            sandbox_files: vec![file("/etc/hosts", "hosts"), file("/etc/hostname", "hostname"), file("/etc/resolv.conf", "resolv.conf")],
            shm: shm(sandbox),
            capabilities: self.capabilities,
        };
        let spec = spec::build(&input)?;
        make_cwd(&rootfs, &config, &spec::cwd(&config, &defaults))?;
        // Both hold the environment, and with it values of Secrets: they are not kept on disk.
        let json = serde_json::to_vec(&spec).map_err(text)?;
        for (name, bytes) in [("config.json", json), ("config.pb", config.encode_to_vec())] {
            let volatile = sandbox.run.join(format!("{id}.{name}"));
            files::write(&volatile, &bytes).map_err(text)?;
            std::os::unix::fs::symlink(&volatile, dir.join(name)).map_err(text)?;
        }
        let log_dir = &sandbox.config().log_directory;
        let log = (!config.log_path.is_empty() && !log_dir.is_empty()).then(|| Path::new(log_dir).join(&config.log_path));
        let fixed = Fixed {
            sandbox: sandbox.id.clone(),
            created_at: files::now(),
            image_ref: image.digests.first().cloned().unwrap_or_else(|| image.id.clone()),
            image_id: image.id,
            user,
            cgroup,
            log,
            stop_signal: stop_signal(&config, &defaults),
            own_pid_namespace,
        };
        files::write_json(&dir.join("state.json"), &fixed).map_err(text)?;
        Ok(Container {
            id: id.to_owned(),
            sandbox: sandbox.clone(),
            fixed,
            dir,
            life: watch::Sender::new(Life::Created),
            turn: tokio::sync::Mutex::new(()),
            resources: Mutex::new(config.linux.as_ref().and_then(|l| l.resources.clone())),
            written: Mutex::default(),
            config,
        })
    }

    /// Undoes `make`. Idempotent.
    fn unmake(&self, id: &str) {
        let dir = self.config.containers().join(id);
        for volatile in ["config.json", "config.pb"].iter().filter_map(|name| std::fs::read_link(dir.join(name)).ok()) {
            // The sandbox's directory may be gone with it.
            let _ = std::fs::remove_file(volatile);
        }
        let undone = sys::mount::unmount(&dir.join("rootfs"))
            .map_err(text)
            .and_then(|()| files::remove_dir(&dir).map_err(text))
            .and_then(|()| self.images.release(id).map_err(text));
        if let Err(error) = undone {
            tracing::warn!(container = id, error, "a container was not removed completely");
        }
    }

    pub(crate) async fn start(&self, container: &Arc<Container>) -> Result<()> {
        let _turn = container.turn.lock().await;
        if container.state() != ContainerState::Created {
            let state = format!("{:?}", container.state()).to_uppercase();
            return Err(Error::failed_precondition(format!("container {:?} is in CONTAINER_{state} state", container.id)));
        }
        let shim = container.sandbox.shim();
        let shim = shim.ok_or_else(|| Error::failed_precondition(format!("sandbox container {:?} is not running", container.sandbox.id)))?;
        if let Some(parent) = container.fixed.log.as_ref().and_then(|l| l.parent()) {
            std::fs::create_dir_all(parent).map_err(|e| Error::unknown(format!("make the log directory {}: {e}", parent.display())))?;
        }
        let config = &container.config;
        let run = Run {
            id: container.id.clone(),
            bundle: container.dir.clone(),
            log: container.fixed.log.clone(),
            tty: config.tty,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            cgroup: container.fixed.cgroup.clone(),
            uid: container.fixed.user.uid,
            own_pid_namespace: container.fixed.own_pid_namespace,
        };
        match shim.call(Call::Run(run), &[]).await {
            Ok((Answer::Started { pid }, _)) => {
                // Its end may have been told already.
                container.life.send_if_modified(|life| match life {
                    Life::Created => {
                        *life = Life::Running { pid, at: files::now() };
                        true
                    }
                    Life::Exited { started_at, exit, .. } => {
                        *started_at = exit.at;
                        true
                    }
                    Life::Running { .. } => false,
                });
                self.emit(&container.id, &container.sandbox, ContainerEventType::Started);
                Ok(())
            }
            Ok(_) => Err(Error::internal("the shim answered something else")),
            Err(why) => {
                let message = format!("OCI runtime create failed: unable to start container process: {why}");
                self.start_failed(container, &message);
                Err(Error::unknown(message))
            }
        }
    }

    fn start_failed(&self, container: &Container, message: &str) {
        let exit = Exit { code: START_FAILED, oom: false, at: files::now() };
        let saved = exit.save(&container.dir).and_then(|()| files::write_json(&container.dir.join("failure.json"), &Failure { message: message.into() }));
        if let Err(error) = saved {
            tracing::warn!(container = container.id, %error, "cannot record a failed start");
        }
        container.life.send_replace(Life::Exited { started_at: 0, exit, reason: "StartError".into(), message: message.into() });
        self.emit(&container.id, &container.sandbox, ContainerEventType::Stopped);
    }

    /// A shim told of an end.
    pub(crate) fn container_ended(&self, id: &str, exit: Exit) {
        if let Some(container) = self.find_container(id)
            && container.end(exit) {
                self.emit(id, &container.sandbox, ContainerEventType::Stopped);
            }
    }

    /// Nobody holds the container any more: what is left of it is killed.
    pub(crate) async fn abandon(&self, container: &Arc<Container>) {
        self.kill_group(container).await;
        let exit = Exit::load(&container.dir).unwrap_or_else(|| Exit { code: UNKNOWN_EXIT, oom: false, at: files::now() });
        if container.state() == ContainerState::Created {
            return;
        }
        let _ = exit.save(&container.dir);
        self.container_ended(&container.id, exit);
    }

    async fn kill_group(&self, container: &Container) {
        let (cgroups, group) = (self.cgroups.clone(), container.fixed.cgroup.clone());
        let killed = blocking(move || cgroups.kill(&group, Duration::from_secs(10)).map_err(text)).await;
        if !matches!(killed, Ok(true)) {
            tracing::warn!(container = container.id, "a container's processes do not end");
        }
    }

    /// The stop signal, then SIGKILL when that did not help in time.
    pub(crate) async fn stop(&self, container: &Arc<Container>, timeout: Duration) -> Result<()> {
        if !container.life.borrow().is_running() {
            return Ok(());
        }
        if !timeout.is_zero() {
            if let Some(shim) = container.sandbox.shim() {
                let call = Call::Signal { container: container.id.clone(), signal: container.fixed.stop_signal, all: false };
                // It may have ended meanwhile.
                let _ = shim.tell(call).await;
            }
            if tokio::time::timeout(timeout, ended(container)).await.is_ok() {
                return Ok(());
            }
        }
        self.kill_container(container).await
    }

    pub(crate) async fn kill_container(&self, container: &Arc<Container>) -> Result<()> {
        if !container.life.borrow().is_running() {
            return Ok(());
        }
        if let Some(shim) = container.sandbox.shim() {
            let _ = shim.tell(Call::Signal { container: container.id.clone(), signal: SIGKILL, all: true }).await;
        }
        if tokio::time::timeout(Duration::from_secs(2), ended(container)).await.is_ok() {
            return Ok(());
        }
        // Forks that ran away from the signal, or no shim.
        self.kill_group(container).await;
        match tokio::time::timeout(Duration::from_secs(10), ended(container)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Error::deadline_exceeded(format!("an error occurs during waiting for container {:?} to be killed", container.id))),
        }
    }

    /// Kills when needed, and removes all of a container but its log.
    pub(crate) async fn delete_container(&self, container: &Arc<Container>) -> Result<()> {
        let _turn = container.turn.lock().await;
        self.kill_container(container).await?;
        if let Some(shim) = container.sandbox.shim() {
            let _ = shim.tell(Call::Forget { container: container.id.clone() }).await;
        }
        let work = (self.me.upgrade().ok_or_else(|| Error::unavailable("the runtime is closing"))?, container.clone());
        blocking(move || {
            let (runtime, container) = work;
            // Processes that joined by exec may still be there.
            if runtime.cgroups.exists(&container.fixed.cgroup) {
                runtime.cgroups.kill(&container.fixed.cgroup, Duration::from_secs(10)).map_err(text)?;
                runtime.cgroups.remove(&container.fixed.cgroup).map_err(text)?;
            }
            runtime.unmake(&container.id);
            Ok(())
        })
        .await?;
        if self.containers.lock().remove(&container.id).is_some() {
            self.emit(&container.id, &container.sandbox, ContainerEventType::Deleted);
        }
        Ok(())
    }
}

/// Returns when the container has ended.
pub(crate) async fn ended(container: &Container) {
    let mut life = container.life.subscribe();
    // The sender lives in the container.
    let _ = life.wait_for(|life| matches!(life, Life::Exited { .. })).await;
}

pub(crate) fn image_defaults(config: &image::ImageConfiguration) -> ImageDefaults {
    let Some(config) = config.config() else { return ImageDefaults::default() };
    ImageDefaults {
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        env: config.env().clone().unwrap_or_default(),
        working_dir: config.working_dir().clone().unwrap_or_default(),
        user: config.user().clone().unwrap_or_default(),
        stop_signal: config.stop_signal().clone().unwrap_or_default(),
    }
}

fn resolve_user(rootfs: &Path, config: &ContainerConfig, image: &ImageDefaults) -> std::result::Result<User, String> {
    let security = config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default();
    let number = |value: &Option<Int64Value>| value.as_ref().map(|v| u32::try_from(v.value).map_err(|_| format!("invalid id {}", v.value))).transpose();
    let (uid, gid) = (number(&security.run_as_user)?, number(&security.run_as_group)?);
    let user = match uid {
        Some(uid) => uid.to_string(),
        None if !security.run_as_username.is_empty() => security.run_as_username.clone(),
        None if gid.is_some() && image.user.is_empty() => return Err("user group is specified without user".into()),
        None => image.user.clone(),
    };
    let strict = security.supplemental_groups_policy() == SupplementalGroupsPolicy::Strict;
    user::resolve(rootfs, &Wanted { user: &user, gid, groups: &security.supplemental_groups, strict })
}

/// Sources of mounts that are not there become directories, as containerd makes them.
fn make_mount_sources(config: &ContainerConfig) -> std::result::Result<(), String> {
    for mount in &config.mounts {
        let source = Path::new(&mount.host_path);
        if mount.host_path.is_empty() || !source.is_absolute() {
            return Err(format!("mount {}: the host path {:?} is not absolute", mount.container_path, mount.host_path));
        }
        if std::fs::symlink_metadata(source).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
            std::fs::create_dir_all(source).map_err(|e| format!("mount {}: make {}: {e}", mount.container_path, source.display()))?;
        }
    }
    Ok(())
}

/// The working directory is made when it is missing: in the volume that covers it, or in the image.
fn make_cwd(rootfs: &Path, config: &ContainerConfig, cwd: &str) -> std::result::Result<(), String> {
    let covering = config.mounts.iter().filter(|m| Path::new(cwd).starts_with(&m.container_path));
    let (root, inside) = match covering.max_by_key(|m| m.container_path.len()) {
        Some(mount) if mount.readonly => return Ok(()),
        Some(mount) => {
            let inside = Path::new(cwd).strip_prefix(&mount.container_path).unwrap_or(Path::new(""));
            (Path::new(&mount.host_path), inside)
        }
        None => (rootfs, Path::new(cwd)),
    };
    if inside.as_os_str().is_empty() {
        return Ok(());
    }
    sys::beneath::create_dir_all(root, inside).map_err(|e| format!("make the working directory {cwd}: {e}"))
}

fn stop_signal(config: &ContainerConfig, image: &ImageDefaults) -> i32 {
    let named = match config.stop_signal() {
        Signal::RuntimeDefault => image.stop_signal.to_uppercase(),
        signal => format!("{signal:?}").to_uppercase(),
    };
    signal_number(&named).unwrap_or(SIGTERM)
}

/// `15`, `TERM`, `SIGTERM`, `RTMIN+3`, `SIGRTMINPLUS3`.
fn signal_number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return Some(number).filter(|n| (1..=64).contains(n));
    }
    let name = name.strip_prefix("SIG").unwrap_or(name);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = offset.trim_start_matches("PLUS").trim_start_matches('+');
        return Some(34 + offset.parse::<i32>().unwrap_or(0)).filter(|n| (34..=64).contains(n));
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset = offset.trim_start_matches("MINUS").trim_start_matches('-');
        return Some(64 - offset.parse::<i32>().unwrap_or(0)).filter(|n| (34..=64).contains(n));
    }
    let names = [
        ("HUP", 1), ("INT", 2), ("QUIT", 3), ("ILL", 4), ("TRAP", 5), ("ABRT", 6), ("IOT", 6), ("BUS", 7), ("FPE", 8), ("KILL", 9),
        ("USR1", 10), ("SEGV", 11), ("USR2", 12), ("PIPE", 13), ("ALRM", 14), ("TERM", 15), ("STKFLT", 16), ("CHLD", 17), ("CLD", 17),
        ("CONT", 18), ("STOP", 19), ("TSTP", 20), ("TTIN", 21), ("TTOU", 22), ("URG", 23), ("XCPU", 24), ("XFSZ", 25), ("VTALRM", 26),
        ("PROF", 27), ("WINCH", 28), ("IO", 29), ("POLL", 29), ("PWR", 30), ("SYS", 31),
    ];
    names.iter().find(|(n, _)| *n == name).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::signal_number;

    #[test]
    fn signals_have_many_names() {
        for (name, number) in [("15", 15), ("SIGTERM", 15), ("QUIT", 3), ("SIGRTMIN+3", 37), ("SIGRTMINPLUS3", 37), ("RTMAX-1", 63)] {
            assert_eq!(signal_number(name), Some(number), "{name}");
        }
        assert_eq!(signal_number("NONE"), None);
        assert_eq!(signal_number("99"), None);
    }
}
