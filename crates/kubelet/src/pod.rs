//! Small questions to a pod's specification and identity. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};
use kube::ResourceExt;

/// Labels and annotations that the kubelet puts on sandboxes and containers, as upstream names them.
pub mod label {
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    pub const HASH: &str = "io.kubernetes.container.hash";
    pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    pub const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
}

/// Which of a pod's three lists a container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Runs to its end before the next one.
    Init,
    /// An init container that is kept running.
    Sidecar,
    /// A main container.
    Main,
}

/// A container of a pod, with what it is.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    pub role: Role,
    pub spec: &'a Container,
}

/// The specification; every pod that the API server hands out has one.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

/// True for init containers that are kept running.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// All containers: init containers in their order, then the main ones.
pub fn members(pod: &Pod) -> Vec<Member<'_>> {
    let spec = spec(pod);
    let init = spec.init_containers.iter().flatten();
    init.map(|c| Member { role: if is_sidecar(c) { Role::Sidecar } else { Role::Init }, spec: c })
        .chain(spec.containers.iter().map(|c| Member { role: Role::Main, spec: c }))
        .collect()
}

/// The containers that were added for debugging, as any other container. No list of [`members`] has them:
/// they are started once, and the pod's state does not depend on them.
pub fn ephemeral(pod: &Pod) -> Vec<Container> {
    let all = spec(pod).ephemeral_containers.iter().flatten().cloned();
    all.map(|e| Container {
        name: e.name,
        image: e.image,
        command: e.command,
        args: e.args,
        working_dir: e.working_dir,
        env: e.env,
        env_from: e.env_from,
        image_pull_policy: e.image_pull_policy,
        security_context: e.security_context,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        tty: e.tty,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        volume_devices: e.volume_devices,
        volume_mounts: e.volume_mounts,
        ..Container::default()
    })
    .collect()
}

/// The container whose processes one for debugging is to see.
pub fn target<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let own = spec(pod).ephemeral_containers.iter().flatten().find(|e| e.name == name)?;
    own.target_container_name.as_deref().filter(|t| !t.is_empty())
}

/// The container of this name.
pub fn member<'a>(pod: &'a Pod, name: &str) -> Option<Member<'a>> {
    members(pod).into_iter().find(|m| m.spec.name == name)
}

/// `Always`, `OnFailure` or `Never`.
pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

/// `name_namespace(uid)`, as upstream's messages call a pod.
pub fn format(pod: &Pod) -> String {
    format!("{}_{}({})", pod.name_any(), pod.namespace().unwrap_or_default(), uid(pod))
}

/// The uid as text.
pub fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

/// The path that events about a container carry.
pub fn field_path(pod: &Pod, name: &str) -> String {
    let init = spec(pod).init_containers.iter().flatten().any(|c| c.name == name);
    let ephemeral = spec(pod).ephemeral_containers.iter().flatten().any(|c| c.name == name);
    let list = if init { "initContainers" } else if ephemeral { "ephemeralContainers" } else { "containers" };
    format!("spec.{list}{{{name}}}")
}

/// The pod's directory of logs: `<namespace>_<name>_<uid>`.
pub fn log_directory(namespace: &str, name: &str, uid: &str) -> String {
    format!("{namespace}_{name}_{uid}")
}

/// Whether the pod uses the node's network.
pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

/// The pod's volumes.
pub fn volumes(pod: &Pod) -> &[Volume] {
    spec(pod).volumes.as_deref().unwrap_or_default()
}

/// What makes a running container another one: its name and image, as upstream hashes it.
pub fn hash(container: &Container) -> String {
    // FNV-1a: stable over versions of this program, which the standard hasher is not.
    let mut hash: u32 = 0x811c_9dc5;
    for byte in container.name.bytes().chain([0]).chain(container.image.iter().flat_map(|i| i.bytes())) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    format!("{hash:x}")
}

/// Seconds that the pod's containers get to end: what the deletion grants, or else the pod.
pub fn grace_period(pod: &Pod) -> i64 {
    let wanted = pod.metadata.deletion_grace_period_seconds.or(spec(pod).termination_grace_period_seconds).unwrap_or(30);
    wanted.max(1)
}

/// The value of `metadata.labels['k']` and other fields that the downward API knows; `None` for what it does not.
pub fn field(pod: &Pod, path: &str, node: &NodeFacts) -> Option<String> {
    let meta = &pod.metadata;
    let keyed = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']").map(str::to_string);
    if let Some(key) = keyed("metadata.labels") {
        return Some(meta.labels.as_ref().and_then(|l| l.get(&key)).cloned().unwrap_or_default());
    }
    if let Some(key) = keyed("metadata.annotations") {
        return Some(meta.annotations.as_ref().and_then(|l| l.get(&key)).cloned().unwrap_or_default());
    }
    Some(match path {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace().unwrap_or_default(),
        "metadata.uid" => uid(pod),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => spec(pod).node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec(pod).service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => node.ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => node.ips.join(","),
        "status.podIP" => node.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => node.pod_ips.join(","),
        _ => return None,
    })
}

/// What the downward API tells of the place where a pod runs.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    pub ips: Vec<String>,
    pub pod_ips: Vec<String>,
}

fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={}", go_quote(v))).collect();
    lines.join("\n")
}

/// As Go's `%q`.
pub fn go_quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A duration as Go prints it: `10s`, `1m20s`, `300ms`, `1.5s`.
pub fn go_duration(duration: std::time::Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_string();
    }
    if nanos < 1_000_000_000 {
        let (unit, name) = match nanos {
            0..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "µs"),
            _ => (1_000_000, "ms"),
        };
        return format!("{}{name}", nanos as f64 / f64::from(unit));
    }
    let seconds = duration.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let rest = (seconds % 60) as f64 + f64::from(duration.subsec_nanos()) / 1e9;
    let mut text = String::new();
    if hours > 0 {
        text += &format!("{hours}h");
    }
    if hours > 0 || minutes > 0 {
        text += &format!("{minutes}m");
    }
    text + &format!("{rest}s")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn durations_print_as_in_go() {
        for (ms, expect) in [(10_000, "10s"), (80_000, "1m20s"), (300_000, "5m0s"), (1_500, "1.5s"), (312, "312ms"), (3_600_000, "1h0m0s")] {
            assert_eq!(go_duration(Duration::from_millis(ms)), expect);
        }
    }

    #[test]
    fn the_downward_api_reads_fields() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a", "namespace": "b", "uid": "u", "labels": {"x": "1", "y/z": "q\"w"}},
            "spec": {"containers": [], "nodeName": "n"},
        }))
        .unwrap();
        let node = NodeFacts { ips: vec!["1.2.3.4".into()], pod_ips: vec![] };
        let check = |path: &str, expect: Option<&str>| assert_eq!(field(&pod, path, &node).as_deref(), expect, "{path}");
        check("metadata.name", Some("a"));
        check("metadata.labels['y/z']", Some("q\"w"));
        check("metadata.labels", Some("x=\"1\"\ny/z=\"q\\\"w\""));
        check("status.hostIP", Some("1.2.3.4"));
        check("spec.nodeName", Some("n"));
        check("spec.other", None);
    }
}
