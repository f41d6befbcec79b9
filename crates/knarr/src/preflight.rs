//! What must be so before anything is changed. Each finding says what, where, and what to do.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::config::Config;
use crate::files;
use crate::layout::{Layout, MARKER};

/// A cluster needs at least this much room for its store to begin with.
const LEAST_DISK: u64 = 64 << 20;

/// Checks the machine for a server or agent. `ports` are to be free.
pub fn check(config: &Config, layout: &Layout, ports: &[(&str, u16)]) -> Result<()> {
    root()?;
    kernel()?;
    network()?;
    data_dir(&layout.data)?;
    room(&layout.data)?;
    for (flag, port) in ports {
        free(flag, *port)?;
    }
    ensure!(config.secure_port != config.kubelet_port, "--secure-port and --kubelet-port are both {}: give each its own", config.secure_port);
    Ok(())
}

/// Only root may mount, make namespaces and groups.
pub fn root() -> Result<()> {
    let user = rustix::process::geteuid();
    ensure!(user.is_root(), "knarr must run as root (this is user {}): namespaces, mounts and packet filters need it; try sudo", user.as_raw());
    Ok(())
}

/// Modules of the kernel that are missing.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Missing {
    text: String,
    /// Their names.
    pub modules: Vec<String>,
}

/// What pods need of the kernel.
pub fn node_kernel() -> Result<()> {
    kernel()?;
    network()
}

fn kernel() -> Result<()> {
    for (namespace, option) in [("net", "NET_NS"), ("mnt", "NAMESPACES"), ("pid", "PID_NS"), ("ipc", "IPC_NS"), ("uts", "UTS_NS")] {
        ensure!(
            Path::new("/proc/self/ns").join(namespace).exists(),
            "the kernel has no {namespace} namespaces: run a kernel with CONFIG_{option}"
        );
    }
    let filesystems = fs::read_to_string("/proc/filesystems").context("cannot read /proc/filesystems: is /proc mounted?")?;
    if !filesystems.lines().any(|l| l.ends_with("\toverlay")) && !module("overlay") {
        let text = "the kernel has no overlay file system: run `modprobe overlay`, or a kernel with CONFIG_OVERLAY_FS".into();
        bail!(Missing { text, modules: vec!["overlay".into()] });
    }
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    ensure!(!groups.is_empty(), "the kernel has no control groups: run a kernel with CONFIG_CGROUPS and mount them at /sys/fs/cgroup");
    Ok(())
}

/// The kinds of links and rules that pods and services need, tried in a network namespace that nobody else sees.
fn network() -> Result<()> {
    let lacking = netlink::netns::create()
        .and_then(|netns| netlink::netns::run(netns, lacking))
        .context("cannot make a network namespace to try the kernel's networking in")??;
    if lacking.is_empty() {
        return Ok(());
    }
    let modules: Vec<String> = lacking.iter().map(|l| l.0.to_string()).collect();
    let text = format!(
        "the kernel lacks what pods and services need: {}; load the modules (modprobe {}), or run a kernel that has them",
        lacking.iter().map(|l| format!("{} (CONFIG_{}: {})", l.0, l.1, l.2)).collect::<Vec<_>>().join(", "),
        modules.join(" ")
    );
    bail!(Missing { text, modules })
}

/// Modules that are missing, each with its kernel option and what the kernel said.
fn lacking() -> Result<Vec<(&'static str, &'static str, String)>> {
    let mut all = Vec::new();
    let links = netlink::Handle::open().context("the kernel gives no netlink socket for links")?;
    all.extend(overlay::missing(&links).into_iter().map(|m| (m.module, m.option, format!("{:#}", anyhow::Error::new(m.error)))));
    let rules = nft::Kernel::open().context("the kernel gives no netlink socket for nf_tables (CONFIG_NETFILTER_NETLINK): run `modprobe nfnetlink`")?;
    all.extend(proxy::missing(&rules).into_iter().map(|m| (m.module, m.option, format!("{:#}", anyhow::Error::new(m.error)))));
    Ok(all)
}

/// Whether a module can be loaded: the kernel loads file systems by itself when they are mounted.
fn module(name: &str) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let dir = Path::new("/lib/modules").join(release.trim());
    let listed = |file: &str| fs::read_to_string(dir.join(file)).is_ok_and(|text| text.contains(&format!("/{name}.ko")));
    listed("modules.dep") || listed("modules.builtin")
}

/// The directory is ours, empty, or not there yet.
pub fn data_dir(dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => bail!("--data-dir {} is not a directory: name one, or one that does not exist yet", dir.display()),
        Err(error) => return Err(error).with_context(|| format!("--data-dir {} cannot be read", dir.display())),
    };
    let marker = dir.join(MARKER);
    if !marker.exists() {
        if let Some(entry) = entries.flatten().find(|e| e.file_name() != "lost+found" && !is_before_mark(&e.path())) {
            bail!(
                "--data-dir {} holds files that are not knarr's ({}, for one): name an empty directory, or one that does not exist yet",
                dir.display(),
                entry.file_name().to_string_lossy()
            );
        }
        return Ok(());
    }
    let text = fs::read_to_string(&marker).with_context(|| format!("cannot read {}", marker.display()))?;
    let format = serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|v| v["format"].as_u64());
    match format {
        Some(1) => Ok(()),
        Some(other) => bail!("{} was written by another version of knarr (format {other}, this one knows 1): use that version", dir.display()),
        None => bail!("{} is damaged: restore the data directory from a copy, or remove it with knarr down --purge", marker.display()),
    }
}

/// What there may be of ours in a directory that has not been marked: its lock, and a mark that was not written to its
/// end.
fn is_before_mark(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let process = name.strip_prefix(MARKER).and_then(|rest| rest.strip_prefix('.')).and_then(|rest| rest.strip_suffix(".new"));
    let unfinished = process.is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    path.is_file() && unfinished || files::is_lock(path)
}

/// Marks the directory as ours. Called once everything has been checked.
pub fn mark(layout: &Layout) -> Result<()> {
    if !layout.marker().exists() {
        files::write(&layout.marker(), b"{\"format\": 1}\n", 0o644)?;
    }
    Ok(())
}

fn room(dir: &Path) -> Result<()> {
    let existing = dir.ancestors().find(|d| d.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing).with_context(|| format!("cannot look at the file system of {}", dir.display()))?;
    let free = stat.f_bavail * stat.f_frsize;
    ensure!(
        free >= LEAST_DISK,
        "the disk of {} is full: {} MiB are free and {} MiB are needed; make room there, or name another --data-dir",
        dir.display(),
        free >> 20,
        LEAST_DISK >> 20
    );
    ensure!(!stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY), "{} is mounted read-only: name another --data-dir", existing.display());
    Ok(())
}

fn free(flag: &str, port: u16) -> Result<()> {
    match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!("port {port} is in use by another program (ss -ltnp 'sport = :{port}' names it): stop it, or give --{flag} another port")
        }
        Err(error) => Err(error).with_context(|| format!("port {port} (--{flag}) cannot be used")),
    }
}

/// This machine's address: that by which it would reach the world. Nothing is sent.
pub fn node_ip(config: &Config) -> Ipv4Addr {
    if let Some(address) = config.node_ip {
        return address;
    }
    own_address()
}

/// The address that this machine reaches others with.
pub fn own_address() -> Ipv4Addr {
    let route = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    match route.map(|a| a.ip()) {
        Ok(std::net::IpAddr::V4(address)) if !address.is_unspecified() => address,
        _ => Ipv4Addr::LOCALHOST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_and_a_damaged_directory_are_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        data_dir(dir.path()).expect("an empty one is fine");
        data_dir(&dir.path().join("new")).expect("a missing one is fine");
        let lock = crate::layout::Layout::new(dir.path(), dir.path()).lock();
        drop(files::lock(&lock).expect("locked"));
        let unfinished = dir.path().join(format!("{MARKER}.7.new"));
        fs::write(&unfinished, "{").expect("written");
        data_dir(dir.path()).expect("one that has been locked, and nearly marked, is fine");
        fs::rename(&unfinished, dir.path().join(format!("{MARKER}.old.new"))).expect("renamed");
        assert!(data_dir(dir.path()).expect_err("foreign").to_string().contains("(knarr.json.old.new, for one)"));
        fs::remove_file(dir.path().join(format!("{MARKER}.old.new"))).expect("removed");
        fs::write(&lock, "of a door").expect("written");
        assert!(data_dir(dir.path()).expect_err("foreign").to_string().contains("(lock, for one)"));
        fs::remove_file(&lock).expect("removed");
        let file = dir.path().join("thesis.tex");
        fs::write(&file, "important").expect("written");
        let error = data_dir(dir.path()).expect_err("foreign").to_string();
        assert!(error.contains("thesis.tex") && error.contains("empty directory"), "{error}");
        assert!(data_dir(&file).expect_err("a file").to_string().contains("is not a directory"));
        for (marker, expected) in [("{\"format\": 7}", "format 7"), ("\0\0", "is damaged")] {
            fs::write(dir.path().join(MARKER), marker).expect("written");
            let error = data_dir(dir.path()).expect_err("bad marker").to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(fs::read_to_string(&file).expect("still there"), "important");
    }

    #[test]
    fn a_port_in_use_is_named() {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let error = free("secure-port", port).expect_err("in use").to_string();
        assert!(error.contains(&port.to_string()) && error.contains("--secure-port"), "{error}");
    }
}
