//! From the CRI's words to the OCI runtime specification: pure, but for a look at device numbers.

pub mod caps;
mod devices;
mod mounts;

use std::path::PathBuf;

use cri::v1::{ContainerConfig, LinuxContainerResources, NamespaceMode, PodSandboxConfig};
use serde_json::{Value, json};

use crate::user::User;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What of an image's configuration matters for running it.
#[derive(Clone, Debug, Default)]
pub struct ImageDefaults {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub stop_signal: String,
}

/// Everything that a specification is made of.
pub struct Input<'a> {
    pub config: &'a ContainerConfig,
    pub sandbox: &'a PodSandboxConfig,
    pub image: &'a ImageDefaults,
    pub user: &'a User,
    pub rootfs: PathBuf,
    pub cgroup: String,
    /// cgroup version 2: the container gets its own cgroup namespace.
    pub cgroup_v2: bool,
    pub namespaces: Namespaces,
    /// Files of the sandbox that are mounted where the kubelet mounts nothing: destination and source.
    pub sandbox_files: Vec<(&'static str, PathBuf)>,
    /// The sandbox's shared memory.
    pub shm: PathBuf,
    /// Of this process.
    pub capabilities: u64,
}

/// Paths of the namespaces to join. `None` is the host's.
#[derive(Clone, Debug, Default)]
pub struct Namespaces {
    pub network: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    pub pid: Pid,
}

/// Which PID namespace.
#[derive(Clone, Debug, Default)]
pub enum Pid {
    #[default]
    Own,
    Host,
    Join(PathBuf),
}

/// The command: the CRI's where given, else the image's, as Kubernetes combines them.
pub fn args(config: &ContainerConfig, image: &ImageDefaults) -> Result<Vec<String>, String> {
    let (mut command, mut args) = (config.command.clone(), config.args.clone());
    if command.is_empty() {
        if args.is_empty() {
            args = image.cmd.clone();
        }
        command = image.entrypoint.clone();
    }
    command.extend(args);
    if command.is_empty() { Err("no command specified".into()) } else { Ok(command) }
}

/// The environment: image's, then the CRI's, each name once, the last wins.
fn env(input: &Input<'_>) -> Vec<String> {
    let mut env: Vec<String> = Vec::new();
    let mut put = |entry: String| {
        let name = entry.split('=').next().unwrap_or_default().to_owned() + "=";
        match env.iter_mut().find(|e| e.starts_with(&name)) {
            Some(old) => *old = entry,
            None => env.push(entry),
        }
    };
    put(DEFAULT_PATH.to_owned());
    if input.config.tty {
        put("TERM=xterm".to_owned());
    }
    if !input.sandbox.hostname.is_empty() {
        put(format!("HOSTNAME={}", input.sandbox.hostname));
    }
    input.image.env.iter().cloned().for_each(&mut put);
    for pair in &input.config.envs {
        put(format!("{}={}", pair.key, String::from_utf8_lossy(&pair.value)));
    }
    env
}

/// The working directory: the CRI's, the image's or the root.
pub fn cwd(config: &ContainerConfig, image: &ImageDefaults) -> String {
    let chosen = [&config.working_dir, &image.working_dir].into_iter().find(|d| !d.is_empty());
    let cwd = chosen.map_or("/", String::as_str);
    if cwd.starts_with('/') { cwd.to_owned() } else { format!("/{cwd}") }
}

/// The whole specification.
pub fn build(input: &Input<'_>) -> Result<Value, String> {
    let linux = input.config.linux.clone().unwrap_or_default();
    let security = linux.security_context.clone().unwrap_or_default();
    let resources = linux.resources.clone().unwrap_or_default();
    let caps = caps::sets(security.privileged, security.capabilities.as_ref(), input.capabilities)?;
    let devices = devices::devices(&input.config.devices, security.privileged)?;
    let mounts = mounts::mounts(input, security.privileged)?;

    let mut namespaces = vec![json!({"type": "mount"})];
    let mut join = |kind: &str, path: &Option<PathBuf>| {
        if let Some(path) = path {
            namespaces.push(json!({"type": kind, "path": path}));
        }
    };
    join("network", &input.namespaces.network);
    join("ipc", &input.namespaces.ipc);
    join("uts", &input.namespaces.uts);
    match &input.namespaces.pid {
        Pid::Own => namespaces.push(json!({"type": "pid"})),
        Pid::Host => {}
        Pid::Join(path) => namespaces.push(json!({"type": "pid", "path": path})),
    }
    if input.cgroup_v2 && !security.privileged {
        namespaces.push(json!({"type": "cgroup"}));
    }

    let mut linux_part = json!({
        "namespaces": namespaces,
        "resources": oci_resources(&resources, devices.rules),
        "cgroupsPath": input.cgroup,
        "devices": devices.nodes,
    });
    if !security.privileged {
        linux_part["maskedPaths"] = json!(security.masked_paths);
        linux_part["readonlyPaths"] = json!(security.readonly_paths);
    }
    if mounts.shared {
        linux_part["rootfsPropagation"] = json!("shared");
    }
    Ok(json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": input.config.tty,
            "user": {"uid": input.user.uid, "gid": input.user.gid, "additionalGids": input.user.groups},
            "args": args(input.config, input.image)?,
            "env": env(input),
            "cwd": cwd(input.config, input.image),
            "capabilities": {
                "bounding": caps.granted,
                "effective": caps.granted,
                "permitted": caps.granted,
                "inheritable": caps.ambient,
                "ambient": caps.ambient,
            },
            "noNewPrivileges": security.no_new_privs,
            "oomScoreAdj": sys::oom::clamped(resources.oom_score_adj as i32),
        },
        "root": {"path": input.rootfs, "readonly": security.readonly_rootfs},
        "mounts": mounts.list,
        "linux": linux_part,
    }))
}

fn oci_resources(resources: &LinuxContainerResources, device_rules: Value) -> Value {
    let mut cpu = json!({});
    let mut memory = json!({});
    let set = |object: &mut Value, name: &str, value: i64| {
        if value != 0 {
            object[name] = json!(value);
        }
    };
    set(&mut cpu, "shares", resources.cpu_shares);
    set(&mut cpu, "quota", resources.cpu_quota);
    set(&mut cpu, "period", resources.cpu_period);
    set(&mut memory, "limit", resources.memory_limit_in_bytes);
    set(&mut memory, "swap", resources.memory_swap_limit_in_bytes);
    for (name, value) in [("cpus", &resources.cpuset_cpus), ("mems", &resources.cpuset_mems)] {
        if !value.is_empty() {
            cpu[name] = json!(value);
        }
    }
    let mut out = json!({ "devices": device_rules });
    for (name, object) in [("cpu", cpu), ("memory", memory)] {
        if object.as_object().is_some_and(|o| !o.is_empty()) {
            out[name] = object;
        }
    }
    // The kubelet says 0 for every size that nobody asked for; a kernel without huge pages has no file.
    let huge: Vec<Value> = resources
        .hugepage_limits
        .iter()
        .filter(|l| l.limit > 0)
        .map(|l| json!({"pageSize": l.page_size, "limit": l.limit}))
        .collect();
    if !huge.is_empty() {
        out["hugepageLimits"] = json!(huge);
    }
    if !resources.unified.is_empty() {
        out["unified"] = json!(resources.unified);
    }
    out
}

/// The same limits for [`sys::cgroup`], for changes to a running container.
pub fn limits(resources: &LinuxContainerResources) -> sys::cgroup::Limits {
    let some = |value: i64| Some(value).filter(|v| *v != 0);
    let text = |value: &str| Some(value.to_owned()).filter(|v| !v.is_empty());
    sys::cgroup::Limits {
        cpu_shares: some(resources.cpu_shares).map(|v| v.max(2) as u64),
        cpu_quota: some(resources.cpu_quota),
        cpu_period: some(resources.cpu_period).map(|v| v.max(0) as u64),
        cpuset_cpus: text(&resources.cpuset_cpus),
        cpuset_mems: text(&resources.cpuset_mems),
        memory: some(resources.memory_limit_in_bytes),
        memory_swap: some(resources.memory_swap_limit_in_bytes),
        pids: None,
        hugepages: resources
            .hugepage_limits
            .iter()
            .map(|l| sys::cgroup::HugepageLimit { page_size: l.page_size.clone(), limit: l.limit })
            .collect(),
        unified: resources.unified.clone(),
    }
}

/// The namespace options of a sandbox, with the CRI's default for what is not said.
pub fn sandbox_namespaces(config: &PodSandboxConfig) -> (NamespaceMode, NamespaceMode, NamespaceMode) {
    let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let options = security.and_then(|s| s.namespace_options.as_ref());
    options.map_or((NamespaceMode::Pod, NamespaceMode::Container, NamespaceMode::Pod), |o| (o.network(), o.pid(), o.ipc()))
}

#[cfg(test)]
mod tests;
