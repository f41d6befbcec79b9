//! Sandboxes from start to removal.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cri::v1::*;
use cri::{Error, Message, Result};
use shim::protocol::{Answer, Call, Launch};

use crate::shim::Shim;
use crate::state::{Runtime, Sandbox, SandboxState};
use crate::{PortMapping, files, spec};

/// Runs blocking work off the event loop.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::result::Result<T, String> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Error::unknown),
        Err(error) => Err(Error::internal(error)),
    }
}

pub(crate) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Runtime {
    pub(crate) async fn run_sandbox(&self, request: RunPodSandboxRequest) -> Result<String> {
        let config = request.config.as_ref().ok_or_else(|| Error::invalid_argument("sandbox config is missing"))?;
        if config.metadata.is_none() {
            return Err(Error::invalid_argument("sandbox config must include metadata"));
        }
        if !matches!(request.runtime_handler.as_str(), "" | "knarr") {
            return Err(Error::invalid_argument(format!("no runtime for {:?} is configured", request.runtime_handler)));
        }
        let id = files::new_id();
        let linux = config.linux.clone().unwrap_or_default();
        let own_cgroup = linux.cgroup_parent.is_empty() || !self.cgroups.exists(&linux.cgroup_parent);
        let cgroup_parent = match linux.cgroup_parent.as_str() {
            "" => format!("{}/{id}", self.config.cgroup_parent.trim_end_matches('/')),
            parent => format!("/{}", parent.trim_matches('/')),
        };
        let state = SandboxState { created_at: files::now(), cgroup_parent, own_cgroup, ..SandboxState::default() };
        let sandbox = Arc::new(Sandbox {
            dir: self.config.sandboxes().join(&id),
            run: self.config.run.join(&id),
            id: id.clone(),
            request,
            state: parking_lot::Mutex::new(state),
            turn: tokio::sync::Mutex::new(()),
        });
        match self.bring_up(&sandbox).await {
            Ok(()) => Ok(id),
            Err(error) => {
                self.tear_down(&sandbox).await;
                self.discard(&sandbox).await;
                Err(Error::unknown(format!("failed to start sandbox {id:?}: {}", error.message)))
            }
        }
    }

    async fn bring_up(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let netns = sandbox.netns();
        let prepare = (sandbox.clone(), netns.clone(), self.cgroups.clone());
        blocking(move || {
            let (sandbox, netns, cgroups) = prepare;
            prepare_files(&sandbox).map_err(text)?;
            if let Some(netns) = netns {
                sys::netns::create(&netns).map_err(text)?;
            }
            cgroups.create(&sandbox.state.lock().cgroup_parent.clone()).map_err(text)?;
            sandbox.save().map_err(text)
        })
        .await?;
        // The network and the shim need nothing of each other.
        let (ips, ()) = tokio::try_join!(self.wire(sandbox, netns.as_deref()), self.start_shim(sandbox))?;
        {
            let mut state = sandbox.state.lock();
            state.ips = ips;
            state.ready = true;
        }
        sandbox.save().map_err(Error::internal)?;
        self.sandboxes.lock().insert(sandbox.id.clone(), sandbox.clone());
        self.emit(&sandbox.id, sandbox, ContainerEventType::Created);
        self.emit(&sandbox.id, sandbox, ContainerEventType::Started);
        Ok(())
    }

    async fn wire(&self, sandbox: &Sandbox, netns: Option<&Path>) -> Result<Vec<std::net::IpAddr>> {
        let Some(netns) = netns else { return Ok(Vec::new()) };
        let ports: Vec<PortMapping> = sandbox.config().port_mappings.iter().filter_map(port_mapping).collect();
        let wired = self.network.setup(&sandbox.reference(), netns, &ports).await;
        wired.map_err(|e| Error::unknown(format!("failed to setup network for sandbox: {e}")))
    }

    async fn start_shim(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let config = sandbox.config();
        let (network, pid, ipc) = spec::sandbox_namespaces(config);
        let host_network = network == NamespaceMode::Node;
        let hostname = if config.hostname.is_empty() { sandbox.id[..12].to_owned() } else { config.hostname.clone() };
        let mut sysctls: Vec<(String, String)> = Vec::new();
        if !host_network {
            // As containerd: what needs no privilege on one's own network.
            sysctls.push(("net.ipv4.ip_unprivileged_port_start".into(), "0".into()));
            sysctls.push(("net.ipv4.ping_group_range".into(), "0 2147483647".into()));
        }
        let wanted = config.linux.as_ref().map(|l| l.sysctls.clone()).unwrap_or_default();
        sysctls.extend(wanted);
        let launch = Launch {
            id: sandbox.id.clone(),
            dir: sandbox.run.clone(),
            network: sandbox.netns(),
            hostname: (!host_network).then_some(hostname),
            ipc: ipc != NamespaceMode::Node,
            pid: pid == NamespaceMode::Pod,
            sysctls,
            oom_score_adj: -998,
        };
        let (exe, cgroups, group) = (self.config.self_exe.clone(), self.cgroups.clone(), self.config.shim_cgroup());
        let child = blocking(move || crate::shim::launch(&exe, &launch).map_err(|e| format!("start the shim {}: {e}", exe.display()))).await?;
        // Its own group: whatever happens to the server's does not concern it. The kernel takes
        // milliseconds to move a process, during which the rest goes on. (It also is quicker with the
        // next move right after one, so that the container profits.)
        let pid = child.id() as i32;
        let moved = blocking(move || match cgroups.join(&group, pid) {
            // It may have failed already, and says so itself.
            Err(error) if !error.is(rustix::io::Errno::SRCH) => Err(text(error)),
            _ => Ok(()),
        });
        let shim = Shim::connect(&sandbox.run).map(Arc::new).map_err(|e| Error::unknown(format!("connect to the shim: {e}")))?;
        self.attend(sandbox, &shim);
        self.reap(child);
        let (hello, moved) = tokio::join!(shim.call(Call::Hello, &[]), moved);
        let (answer, _) = hello.map_err(|e| Error::unknown(format!("{e}: {}", crate::shim::complaint(&sandbox.run))))?;
        moved?;
        let Answer::Hello { pid, pause, .. } = answer else { return Err(Error::internal("the shim did not introduce itself")) };
        let mut state = sandbox.state.lock();
        (state.shim_pid, state.pause_pid, state.shim) = (pid, pause, Some(shim));
        Ok(())
    }

    /// Collects a shim when it ends; it outlives us otherwise.
    fn reap(&self, mut child: std::process::Child) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let Ok(Some(process)) = sys::pidfd::open(child.id() as i32) else { return };
            let Ok(process) = crate::shim::watched(process, tokio::io::Interest::READABLE) else { return };
            tokio::select! {
                _ = process.readable() => {}
                () = stop.cancelled() => return,
            }
            // It has ended, so this does not block.
            let _ = child.wait();
        });
    }

    /// Stops everything in a sandbox and gives its network back.
    pub(crate) async fn stop_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let _turn = sandbox.turn.lock().await;
        for container in self.containers_of(&sandbox.id) {
            self.kill_container(&container).await?;
        }
        let was_ready = std::mem::replace(&mut sandbox.state.lock().ready, false);
        self.tear_down(sandbox).await;
        sandbox.save().map_err(Error::internal)?;
        if was_ready {
            self.emit(&sandbox.id, sandbox, ContainerEventType::Stopped);
        }
        Ok(())
    }

    /// Network, shim, shared memory. Idempotent, and goes on after failures: what is left shows in the
    /// log and goes with the next attempt or a purge.
    async fn tear_down(&self, sandbox: &Arc<Sandbox>) {
        if let Some(netns) = sandbox.netns()
            && let Err(error) = self.network.teardown(&sandbox.reference(), &netns).await {
                tracing::warn!(sandbox = sandbox.id, error, "the network did not let a sandbox go");
            }
        let shim = sandbox.state.lock().shim.take();
        let known = shim.is_some();
        if let Some(shim) = shim {
            // It may have gone on its own.
            let _ = tokio::time::timeout(Duration::from_secs(5), shim.tell(Call::Quit)).await;
        }
        let sandbox = sandbox.clone();
        let done = blocking(move || {
            if !known {
                // One of a start that was cut off, or that we lost.
                crate::purge::quit(&sandbox.run);
            }
            sys::mount::unmount(&sandbox.run.join("shm")).map_err(text)?;
            sandbox.netns().map_or(Ok(()), |netns| sys::netns::remove(&netns)).map_err(text)
        });
        if let Err(error) = done.await {
            tracing::warn!(%error, "a sandbox was not cleaned up completely");
        }
    }

    /// Removes a sandbox with all its containers.
    pub(crate) async fn remove_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        self.stop_sandbox(sandbox).await?;
        for container in self.containers_of(&sandbox.id) {
            self.delete_container(&container).await?;
        }
        let _turn = sandbox.turn.lock().await;
        self.discard(sandbox).await;
        if self.sandboxes.lock().remove(&sandbox.id).is_some() {
            self.emit(&sandbox.id, sandbox, ContainerEventType::Deleted);
        }
        Ok(())
    }

    /// Files and cgroup.
    async fn discard(&self, sandbox: &Arc<Sandbox>) {
        let (sandbox, cgroups) = (sandbox.clone(), self.cgroups.clone());
        let done = blocking(move || {
            let (parent, own) = {
                let state = sandbox.state.lock();
                (state.cgroup_parent.clone(), state.own_cgroup)
            };
            // Another sandbox of the same pod may use it, or its maker removes it.
            if own && cgroups.pids(&parent).is_ok_and(|pids| pids.is_empty()) && cgroups.children(&parent).is_empty() {
                let _ = cgroups.remove(&parent);
            }
            files::remove_dir(&sandbox.run).map_err(text)?;
            files::remove_dir(&sandbox.dir).map_err(text)
        });
        if let Err(error) = done.await {
            tracing::warn!(%error, "a sandbox was not removed completely");
        }
    }

    /// Follows a shim: its containers' ends, and its own.
    pub(crate) fn attend(&self, sandbox: &Arc<Sandbox>, shim: &Arc<Shim>) {
        let (me, sandbox, shim, stop) = (self.me.clone(), sandbox.clone(), shim.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let exited = |id: &str, exit| {
                if let Some(runtime) = me.upgrade() {
                    runtime.container_ended(id, exit);
                }
            };
            tokio::select! {
                () = shim.listen(exited) => {}
                () = stop.cancelled() => return,
            }
            if let Some(runtime) = me.upgrade() {
                runtime.shim_gone(&sandbox, &shim).await;
            }
        });
    }

    /// The connection has ended. Unless the sandbox was stopped, the shim is asked again; when it does
    /// not answer, nobody holds the pod any more, and what is left of it ends.
    async fn shim_gone(&self, sandbox: &Arc<Sandbox>, shim: &Arc<Shim>) {
        {
            let mut state = sandbox.state.lock();
            if !state.shim.as_ref().is_some_and(|current| Arc::ptr_eq(current, shim)) {
                return;
            }
            state.shim = None;
        }
        tracing::error!(sandbox = sandbox.id, complaint = crate::shim::complaint(&sandbox.run), "the connection to a sandbox's shim has ended");
        self.adopt(sandbox).await;
        if !sandbox.state.lock().ready {
            self.emit(&sandbox.id, sandbox, ContainerEventType::Stopped);
        }
    }
}

fn port_mapping(mapping: &cri::v1::PortMapping) -> Option<PortMapping> {
    let port = |n: i32| u16::try_from(n).ok().filter(|p| *p > 0);
    Some(PortMapping {
        protocol: match mapping.protocol() {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        },
        container_port: port(mapping.container_port)?,
        host_port: port(mapping.host_port)?,
        host_ip: mapping.host_ip.parse().ok(),
    })
}

/// The sandbox's directories and the files that its containers share.
fn prepare_files(sandbox: &Sandbox) -> std::io::Result<()> {
    std::fs::create_dir_all(&sandbox.dir)?;
    std::fs::create_dir_all(sandbox.run.join("shm"))?;
    let config = sandbox.config();
    files::write(&sandbox.dir.join("request.pb"), &sandbox.request.encode_to_vec())?;
    let (network, _, ipc) = spec::sandbox_namespaces(config);
    let host = network == NamespaceMode::Node;
    let hostname = match (config.hostname.as_str(), host) {
        ("", true) => std::fs::read_to_string("/etc/hostname").unwrap_or_default().trim().to_owned(),
        ("", false) => sandbox.id[..12].to_owned(),
        (name, _) => name.to_owned(),
    };
    std::fs::write(sandbox.dir.join("hostname"), format!("{hostname}\n"))?;
    let local = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
    let hosts = if host { std::fs::read_to_string("/etc/hosts").unwrap_or_else(|_| local.to_owned()) } else { local.to_owned() };
    std::fs::write(sandbox.dir.join("hosts"), hosts)?;
    let resolv = match &config.dns_config {
        Some(dns) => resolv_conf(dns),
        None => std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    std::fs::write(sandbox.dir.join("resolv.conf"), resolv)?;
    if ipc != NamespaceMode::Node {
        sys::mount::tmpfs(&sandbox.run.join("shm"), "mode=1777,size=65536k").map_err(std::io::Error::other)?;
    }
    Ok(())
}

fn resolv_conf(dns: &DnsConfig) -> String {
    let mut out = String::new();
    if !dns.searches.is_empty() {
        out += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        out += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        out += &format!("options {}\n", dns.options.join(" "));
    }
    out
}

/// The sandbox's shared memory, as containers mount it.
pub(crate) fn shm(sandbox: &Sandbox) -> std::path::PathBuf {
    match spec::sandbox_namespaces(sandbox.config()).2 {
        NamespaceMode::Node => "/dev/shm".into(),
        _ => sandbox.run.join("shm"),
    }
}
