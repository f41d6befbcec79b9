//! What is mounted in a container, in the order that later mounts may lie in earlier ones.

use std::path::Path;

use cri::v1::{Mount, MountPropagation};
use serde_json::{Value, json};

use super::Input;

/// The mounts, and whether the container's must reach the host.
pub struct Mounts {
    pub list: Vec<Value>,
    pub shared: bool,
}

pub fn mounts(input: &Input<'_>, privileged: bool) -> Result<Mounts, String> {
    let wanted = &input.config.mounts;
    let taken = |destination: &str| wanted.iter().any(|m| normal(&m.container_path) == destination);
    let mut list: Vec<(String, Value)> = Vec::new();
    let mut kernel = |kind: &str, destination: &str, options: &[&str]| {
        if !taken(destination) {
            let source = if kind == "tmpfs" && destination == "/dev" { "tmpfs" } else { kind };
            let mount = json!({"destination": destination, "type": kind, "source": source, "options": options});
            list.push((destination.to_owned(), mount));
        }
    };
    let access = if privileged { "rw" } else { "ro" };
    kernel("proc", "/proc", &["nosuid", "noexec", "nodev"]);
    kernel("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]);
    kernel("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]);
    kernel("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]);
    kernel("sysfs", "/sys", &["nosuid", "noexec", "nodev", access]);
    kernel("cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", access]);
    let read_only = input.config.linux.as_ref().and_then(|l| l.security_context.as_ref()).is_some_and(|s| s.readonly_rootfs);
    for (destination, source) in &input.sandbox_files {
        if !taken(destination) {
            let options = ["rbind", "rprivate", if read_only { "ro" } else { "rw" }];
            list.push(((*destination).to_owned(), json!({"destination": destination, "type": "bind", "source": source, "options": options})));
        }
    }
    if !taken("/dev/shm") {
        let options = ["rbind", "rprivate", "rw", "nosuid", "noexec", "nodev"];
        list.push(("/dev/shm".to_owned(), json!({"destination": "/dev/shm", "type": "bind", "source": input.shm, "options": options})));
    }
    for mount in wanted {
        list.push((normal(&mount.container_path), bind(mount)?));
    }
    // By depth, and stable: what was named later lies on top.
    list.sort_by_key(|(destination, _)| Path::new(destination).components().count());
    let shared = wanted.iter().any(|m| m.propagation() == MountPropagation::Bidirectional);
    Ok(Mounts { list: list.into_iter().map(|(_, mount)| mount).collect(), shared })
}

/// Without a trailing slash or doubled ones.
fn normal(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    format!("/{}", parts.join("/"))
}

fn bind(mount: &Mount) -> Result<Value, String> {
    if mount.container_path.is_empty() {
        return Err("a mount has no container path".into());
    }
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        return Err(format!("mount {}: idmapped mounts are not supported", mount.container_path));
    }
    let propagation = match mount.propagation() {
        MountPropagation::Private => "rprivate",
        MountPropagation::HostToContainer => "rslave",
        MountPropagation::Bidirectional => "rshared",
    };
    let mut options = vec!["rbind", propagation, if mount.readonly { "ro" } else { "rw" }];
    if mount.recursive_read_only {
        options.push("rro");
    }
    Ok(json!({"destination": normal(&mount.container_path), "type": "bind", "source": mount.host_path, "options": options}))
}
