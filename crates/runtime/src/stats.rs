//! Usage of containers and sandboxes, from their cgroups.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri::v1::*;
use sys::cgroup::Stats;

use crate::files;
use crate::state::{Container, Runtime, Sandbox};

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn psi(pressure: &Option<(sys::cgroup::Pressure, sys::cgroup::Pressure)>) -> Option<PsiStats> {
    let data = |p: &sys::cgroup::Pressure| PsiData { total: p.total, avg10: p.avg10, avg60: p.avg60, avg300: p.avg300 };
    pressure.as_ref().map(|(full, some)| PsiStats { full: Some(data(full)), some: Some(data(some)) })
}

fn cpu(stats: &Stats, timestamp: i64) -> CpuUsage {
    CpuUsage { timestamp, usage_core_nano_seconds: value(stats.cpu.usage), usage_nano_cores: None, psi: psi(&stats.cpu.pressure) }
}

fn memory(stats: &Stats, timestamp: i64) -> MemoryUsage {
    let m = &stats.memory;
    MemoryUsage {
        timestamp,
        working_set_bytes: value(m.working_set),
        available_bytes: m.limit.and_then(|l| value(l.saturating_sub(m.working_set))),
        usage_bytes: value(m.usage),
        rss_bytes: value(m.rss),
        page_faults: value(m.page_faults),
        major_page_faults: value(m.major_page_faults),
        psi: psi(&m.pressure),
    }
}

/// How long the size of a writable layer counts: finding it takes a walk through all its files, which
/// must not be paid with every look at the use of the processor.
const COUNTED: Duration = Duration::from_secs(60);

fn written(container: &Container) -> (u64, u64) {
    let mut known = container.written.lock();
    match *known {
        Some((at, usage)) if at.elapsed() < COUNTED => usage,
        _ => {
            let usage = tree_usage(&container.dir.join("upper"));
            *known = Some((Instant::now(), usage));
            usage
        }
    }
}

impl Runtime {
    pub(crate) fn container_stats_of(&self, container: &Container) -> ContainerStats {
        let timestamp = files::now();
        let stats = self.cgroups.stats(&container.fixed.cgroup).ok();
        let (bytes, inodes) = written(container);
        ContainerStats {
            attributes: Some(ContainerAttributes {
                id: container.id.clone(),
                metadata: container.config.metadata.clone(),
                labels: container.config.labels.clone(),
                annotations: container.config.annotations.clone(),
            }),
            cpu: stats.as_ref().map(|s| cpu(s, timestamp)),
            memory: stats.as_ref().map(|s| memory(s, timestamp)),
            writable_layer: Some(FilesystemUsage {
                timestamp,
                fs_id: Some(FilesystemIdentifier { mountpoint: self.config.root.display().to_string() }),
                used_bytes: value(bytes),
                inodes_used: value(inodes),
            }),
            swap: stats.as_ref().map(|s| SwapUsage { timestamp, swap_available_bytes: None, swap_usage_bytes: value(s.memory.swap) }),
            io: None,
        }
    }

    pub(crate) fn sandbox_stats_of(&self, sandbox: &Arc<Sandbox>) -> PodSandboxStats {
        let timestamp = files::now();
        let parent = sandbox.state.lock().cgroup_parent.clone();
        let stats = self.cgroups.stats(&parent).ok();
        let config = sandbox.config();
        let running = self.containers_of(&sandbox.id);
        let running = running.iter().filter(|c| c.life.borrow().is_running());
        let shim = sandbox.state.lock().shim_pid;
        PodSandboxStats {
            attributes: Some(PodSandboxAttributes {
                id: sandbox.id.clone(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            }),
            linux: Some(LinuxPodSandboxStats {
                cpu: stats.as_ref().map(|s| cpu(s, timestamp)),
                memory: stats.as_ref().map(|s| memory(s, timestamp)),
                network: sandbox.netns().and_then(|_| network(shim, timestamp)),
                process: stats.as_ref().map(|s| ProcessUsage { timestamp, process_count: value(s.pids) }),
                containers: running.map(|c| self.container_stats_of(c)).collect(),
                io: None,
            }),
        }
    }
}

/// Counters of the interfaces in a process's network namespace, as `/proc/PID/net/dev` has them.
fn network(pid: i32, timestamp: i64) -> Option<NetworkUsage> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    let parsed = table.lines().skip(2).filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        let fields: Vec<u64> = rest.split_whitespace().filter_map(|f| f.parse().ok()).collect();
        let field = |n: usize| fields.get(n).copied().and_then(value);
        Some(NetworkInterfaceUsage { name: name.trim().into(), rx_bytes: field(0), rx_errors: field(2), tx_bytes: field(8), tx_errors: field(10) })
    });
    let mut interfaces: BTreeMap<String, NetworkInterfaceUsage> = parsed.map(|i| (i.name.clone(), i)).collect();
    interfaces.remove("lo");
    let default_interface = interfaces.remove("eth0");
    Some(NetworkUsage { timestamp, default_interface, interfaces: interfaces.into_values().collect() })
}

/// Bytes on disk and inodes of a directory with all in it; what is removed meanwhile does not count.
fn tree_usage(dir: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let (mut bytes, mut inodes) = (0, 0);
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            bytes += meta.blocks() * 512;
            inodes += 1;
            if meta.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    (bytes, inodes)
}

/// Bytes and inodes used by the runtime's own files.
pub(crate) fn usage_of(dir: &Path) -> FilesystemUsage {
    let (bytes, inodes) = tree_usage(dir);
    FilesystemUsage {
        timestamp: files::now(),
        fs_id: Some(FilesystemIdentifier { mountpoint: dir.display().to_string() }),
        used_bytes: value(bytes),
        inodes_used: value(inodes),
    }
}
