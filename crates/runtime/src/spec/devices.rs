//! Device nodes and the rules of the device cgroup.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use cri::v1::Device;
use serde_json::{Value, json};

/// What a container sees of devices.
pub struct Devices {
    pub nodes: Vec<Value>,
    pub rules: Value,
}

/// Directories of /dev that containers have of their own.
const OWN: &[&str] = &["pts", "shm", "fd", "mqueue", "console", "ptmx", "stdin", "stdout", "stderr"];

/// A privileged container sees all of the host's devices.
pub fn devices(wanted: &[Device], privileged: bool) -> Result<Devices, String> {
    let mut nodes = Vec::new();
    let mut rules = vec![json!({"allow": privileged, "access": "rwm"})];
    if privileged {
        host_devices(Path::new("/dev"), &mut nodes);
    }
    for device in wanted {
        let node = node(Path::new(&device.host_path), &device.container_path)
            .map_err(|e| format!("device {}: {e}", device.host_path))?
            .ok_or_else(|| format!("device {}: not a device node", device.host_path))?;
        let access = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        rules.push(json!({"allow": true, "type": node["type"], "major": node["major"], "minor": node["minor"], "access": access}));
        nodes.push(node);
    }
    Ok(Devices { nodes, rules: json!(rules) })
}

fn node(host: &Path, container: &str) -> std::io::Result<Option<Value>> {
    let meta = std::fs::metadata(host)?;
    let kind = match meta.file_type() {
        t if t.is_char_device() => "c",
        t if t.is_block_device() => "b",
        _ => return Ok(None),
    };
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    Ok(Some(json!({
        "path": container, "type": kind, "major": major, "minor": minor,
        "fileMode": meta.mode() & 0o777, "uid": meta.uid(), "gid": meta.gid(),
    })))
}

fn host_devices(dir: &Path, nodes: &mut Vec<Value>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(kind) = entry.file_type() else { continue };
        if OWN.iter().any(|own| name == *own) || name.to_string_lossy().starts_with('.') {
            continue;
        }
        if kind.is_dir() {
            host_devices(&path, nodes);
        } else if kind.is_char_device() || kind.is_block_device() {
            nodes.extend(node(&path, &path.to_string_lossy()).ok().flatten());
        }
    }
}
