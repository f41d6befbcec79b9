//! Pod → the configurations of its sandbox and containers, in the CRI's terms. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cri::v1::{
    self, Capability, ContainerConfig, ContainerMetadata, DnsConfig, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, MountPropagation, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PortMapping, ProfileType, Protocol, SecurityProfile,
};
use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};
use kube::ResourceExt;

use crate::pod::{self, label, spec};
use crate::{env, resources};

/// The DNS of the cluster and of the node.
#[derive(Debug, Clone, Default)]
pub struct Dns {
    pub cluster: Vec<IpAddr>,
    pub domain: String,
    /// The node's own resolver configuration, parsed.
    pub host: DnsConfig,
}

/// Parses a `resolv.conf`.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_string)),
            Some("search") => config.searches = words.map(str::to_string).collect(),
            Some("options") => config.options = words.map(str::to_string).collect(),
            _ => {}
        }
    }
    config
}

/// The resolver configuration of a pod (dnsPolicy, dnsConfig).
pub fn dns(pod: &Pod, dns: &Dns) -> DnsConfig {
    let spec = spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster_first = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !pod::host_network(pod),
        _ => false,
    };
    let mut config = if policy == "None" {
        DnsConfig::default()
    } else if cluster_first && !dns.cluster.is_empty() {
        let (namespace, domain) = (pod.namespace().unwrap_or_default(), &dns.domain);
        let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
        for search in &dns.host.searches {
            if !searches.contains(search) {
                searches.push(search.clone());
            }
        }
        let mut options = vec!["ndots:5".to_string()];
        options.extend(dns.host.options.iter().filter(|o| !o.starts_with("ndots:")).cloned());
        DnsConfig { servers: dns.cluster.iter().map(IpAddr::to_string).collect(), searches, options }
    } else {
        dns.host.clone()
    };
    if let Some(own) = &spec.dns_config {
        let append = |to: &mut Vec<String>, more: &Option<Vec<String>>| {
            for item in more.iter().flatten() {
                if !to.contains(item) {
                    to.push(item.clone());
                }
            }
        };
        append(&mut config.servers, &own.nameservers);
        append(&mut config.searches, &own.searches);
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            config.options.retain(|o| o.split(':').next() != Some(name.as_str()));
            config.options.push(match &option.value {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name,
            });
        }
    }
    config.servers.truncate(3);
    config
}

/// The host name inside a pod: its own or the one that the specification gives, at most 63 bytes.
pub fn hostname(pod: &Pod, node: &str) -> String {
    if pod::host_network(pod) {
        return node.to_string();
    }
    let spec = spec(pod);
    let name = spec.hostname_override.clone().or_else(|| spec.hostname.clone()).filter(|h| !h.is_empty()).unwrap_or_else(|| pod.name_any());
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_string()
}

/// The content of `/etc/hosts` of a pod that has its own network.
pub fn hosts(pod: &Pod, ips: &[String], hostname: &str, domain: &str) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    let subdomain = spec(pod).subdomain.as_deref().unwrap_or_default();
    for ip in ips {
        if subdomain.is_empty() {
            text += &format!("{ip}\t{hostname}\n");
        } else {
            text += &format!("{ip}\t{hostname}.{subdomain}.{}.svc.{domain}\t{hostname}\n", pod.namespace().unwrap_or_default());
        }
    }
    text + &host_aliases(pod)
}

/// What `hostAliases` add to a hosts file.
pub fn host_aliases(pod: &Pod) -> String {
    let aliases = spec(pod).host_aliases.as_deref().unwrap_or_default();
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        text += &format!("{}\t{}\n", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"));
    }
    text
}

fn namespaces(pod: &Pod, container: bool) -> NamespaceOption {
    let spec = spec(pod);
    let mode = |host: Option<bool>| if host == Some(true) { NamespaceMode::Node } else { NamespaceMode::Pod } as i32;
    let pid = if spec.host_pid == Some(true) {
        NamespaceMode::Node
    } else if spec.share_process_namespace == Some(true) {
        NamespaceMode::Pod
    } else {
        // A sandbox without a shared namespace has none of its own either.
        let _ = container;
        NamespaceMode::Container
    };
    NamespaceOption { network: mode(spec.host_network), pid: pid as i32, ipc: mode(spec.host_ipc), ..Default::default() }
}

fn seccomp(profile: Option<&SeccompProfile>, privileged: bool) -> SecurityProfile {
    let kind = match profile.map(|p| p.type_.as_str()) {
        _ if privileged => ProfileType::Unconfined,
        Some("RuntimeDefault") => ProfileType::RuntimeDefault,
        Some("Localhost") => ProfileType::Localhost,
        _ => ProfileType::Unconfined,
    };
    let localhost_ref = profile.and_then(|p| p.localhost_profile.clone()).filter(|_| kind == ProfileType::Localhost).unwrap_or_default();
    SecurityProfile { profile_type: kind as i32, localhost_ref }
}

/// The sandbox of a pod. `log_root` holds a directory a pod.
pub fn sandbox(pod: &Pod, attempt: u32, dns_config: DnsConfig, hostname: String, log_root: &Path, cgroup_parent: &str) -> PodSandboxConfig {
    let spec = spec(pod);
    let (namespace, name, uid) = (pod.namespace().unwrap_or_default(), pod.name_any(), pod::uid(pod));
    let port_mappings = if pod::host_network(pod) {
        Vec::new()
    } else {
        let ports = spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(|c| pod::is_sidecar(c))).flat_map(|c| c.ports.iter().flatten());
        ports
            .filter(|p| p.host_port.unwrap_or(0) > 0)
            .map(|p| PortMapping {
                protocol: match p.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                } as i32,
                container_port: p.container_port,
                host_port: p.host_port.unwrap_or(0),
                host_ip: p.host_ip.clone().unwrap_or_default(),
            })
            .collect()
    };
    let context = spec.security_context.as_ref();
    let privileged = pod::members(pod).iter().any(|m| m.spec.security_context.as_ref().is_some_and(|s| s.privileged == Some(true)));
    let mut labels: BTreeMap<String, String> = pod.labels().clone();
    labels.insert(label::POD_NAME.into(), name.clone());
    labels.insert(label::POD_NAMESPACE.into(), namespace.clone());
    labels.insert(label::POD_UID.into(), uid.clone());
    PodSandboxConfig {
        log_directory: log_root.join(pod::log_directory(&namespace, &name, &uid)).display().to_string(),
        metadata: Some(PodSandboxMetadata { name, uid, namespace, attempt }),
        hostname: if pod::host_network(pod) { String::new() } else { hostname },
        dns_config: Some(dns_config),
        port_mappings,
        labels,
        annotations: [(label::GRACE_PERIOD.to_string(), pod::grace_period(pod).to_string())].into(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent.to_string(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(pod, false)),
                run_as_user: context.and_then(|c| c.run_as_user).map(|value| Int64Value { value }),
                run_as_group: context.and_then(|c| c.run_as_group).filter(|_| context.is_some_and(|c| c.run_as_user.is_some())).map(|value| Int64Value { value }),
                supplemental_groups: groups(pod),
                privileged,
                seccomp: Some(SecurityProfile { profile_type: ProfileType::RuntimeDefault as i32, ..Default::default() }),
                ..Default::default()
            }),
            sysctls: context.and_then(|c| c.sysctls.as_ref()).into_iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect(),
            ..Default::default()
        }),
    }
}

fn groups(pod: &Pod) -> Vec<i64> {
    let context = spec(pod).security_context.as_ref();
    let mut groups: Vec<i64> = context.and_then(|c| c.supplemental_groups.clone()).unwrap_or_default();
    groups.extend(context.and_then(|c| c.fs_group));
    groups
}

/// What else goes into a container's configuration.
pub struct Parts<'a> {
    pub attempt: u32,
    /// The image's reference in the runtime, and how the pod names it.
    pub image_ref: String,
    pub environment: Vec<(String, String)>,
    /// Host directory of each volume.
    pub volumes: &'a BTreeMap<String, PathBuf>,
    /// For `subPath`: already resolved and safe host paths, by mount path.
    pub sub_paths: &'a BTreeMap<String, PathBuf>,
    /// Hosts file, if the pod has one of its own.
    pub hosts: Option<PathBuf>,
    /// File for the termination message.
    pub message_file: PathBuf,
    /// Bytes of memory of the node.
    pub capacity: i64,
}

/// Whether the volume is of a claim that the pod uses for reading only.
fn read_only_claim(pod: &Pod, volume: &str) -> bool {
    pod::volumes(pod).iter().filter(|v| v.name == volume).filter_map(|v| v.persistent_volume_claim.as_ref()).any(|c| c.read_only == Some(true))
}

/// A container. An error is the message of a `CreateContainerConfigError`.
pub fn container(pod: &Pod, container: &Container, parts: Parts<'_>) -> Result<ContainerConfig, String> {
    let lookup = |name: &str| parts.environment.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let expand = |list: &Option<Vec<String>>| list.iter().flatten().map(|a| env::expand(a, lookup)).collect::<Vec<_>>();
    let name = &container.name;
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let root = parts.volumes.get(&mount.name).ok_or_else(|| format!("cannot find volume {} to mount into container {}", pod::go_quote(&mount.name), pod::go_quote(name)))?;
        let host_path = parts.sub_paths.get(&mount.mount_path).unwrap_or(root);
        mounts.push(Mount {
            container_path: if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) },
            host_path: host_path.display().to_string(),
            readonly: mount.read_only == Some(true) || read_only_claim(pod, &mount.name),
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => MountPropagation::HostToContainer,
                Some("Bidirectional") => MountPropagation::Bidirectional,
                _ => MountPropagation::Private,
            } as i32,
            recursive_read_only: matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
            ..Default::default()
        });
    }
    let mounted = |path: &str| mounts.iter().any(|m| m.container_path.trim_end_matches('/') == path);
    let mut own = Vec::new();
    if let Some(hosts) = &parts.hosts
        && !mounted("/etc/hosts")
    {
        own.push(Mount { container_path: "/etc/hosts".into(), host_path: hosts.display().to_string(), ..Default::default() });
    }
    let message_path = container.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/dev/termination-log");
    if !mounted(message_path) {
        own.push(Mount { container_path: message_path.into(), host_path: parts.message_file.display().to_string(), ..Default::default() });
    }
    mounts.extend(own);

    let (namespace, pod_name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let policy = container.termination_message_policy.as_deref().unwrap_or("File");
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.clone(), attempt: parts.attempt }),
        image: Some(ImageSpec {
            image: parts.image_ref,
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: parts.environment.iter().map(|(key, value)| KeyValue { key: key.clone(), value: value.clone().into_bytes() }).collect(),
        mounts,
        labels: [
            (label::POD_NAME, pod_name),
            (label::POD_NAMESPACE, namespace),
            (label::POD_UID, pod::uid(pod)),
            (label::CONTAINER_NAME, name.clone()),
        ]
        .map(|(k, v)| (k.to_string(), v))
        .into(),
        annotations: [
            (label::HASH, pod::hash(container)),
            (label::RESTART_COUNT, parts.attempt.to_string()),
            (label::MESSAGE_PATH, message_path.to_string()),
            (label::MESSAGE_POLICY, policy.to_string()),
            (label::GRACE_PERIOD, pod::grace_period(pod).to_string()),
        ]
        .map(|(k, v)| (k.to_string(), v))
        .into(),
        log_path: format!("{name}/{}.log", parts.attempt),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources::linux(pod, container, parts.capacity)),
            security_context: Some(security(pod, container)),
        }),
        ..Default::default()
    })
}

/// Puts a container into the process namespace of another one.
pub fn share_processes(config: &mut ContainerConfig, target: &str) {
    let security = config.linux.as_mut().and_then(|l| l.security_context.as_mut());
    if let Some(options) = security.and_then(|s| s.namespace_options.as_mut()) {
        options.pid = NamespaceMode::Target as i32;
        options.target_id = target.to_string();
    }
}

fn security(pod: &Pod, container: &Container) -> LinuxContainerSecurityContext {
    let of_pod = spec(pod).security_context.as_ref();
    let own = container.security_context.as_ref();
    let privileged = own.is_some_and(|s| s.privileged == Some(true));
    let int = |value: Option<i64>| value.map(|value| Int64Value { value });
    let user = own.and_then(|s| s.run_as_user).or_else(|| of_pod.and_then(|s| s.run_as_user));
    let group = own.and_then(|s| s.run_as_group).or_else(|| of_pod.and_then(|s| s.run_as_group));
    let capabilities = own.and_then(|s| s.capabilities.as_ref());
    let profile = own.and_then(|s| s.seccomp_profile.as_ref()).or_else(|| of_pod.and_then(|s| s.seccomp_profile.as_ref()));
    let unmasked = own.is_some_and(|s| s.proc_mount.as_deref() == Some("Unmasked"));
    let paths = |list: &[&str]| if privileged || unmasked { Vec::new() } else { list.iter().map(|p| p.to_string()).collect() };
    LinuxContainerSecurityContext {
        capabilities: capabilities.map(|c| Capability {
            add_capabilities: c.add.clone().unwrap_or_default(),
            drop_capabilities: c.drop.clone().unwrap_or_default(),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(namespaces(pod, true)),
        run_as_user: int(user),
        run_as_group: int(group),
        readonly_rootfs: own.is_some_and(|s| s.read_only_root_filesystem == Some(true)),
        supplemental_groups: groups(pod),
        supplemental_groups_policy: match of_pod.and_then(|s| s.supplemental_groups_policy.as_deref()) {
            Some("Strict") => v1::SupplementalGroupsPolicy::Strict,
            _ => v1::SupplementalGroupsPolicy::Merge,
        } as i32,
        no_new_privs: own.is_some_and(|s| s.allow_privilege_escalation == Some(false)) && !privileged,
        masked_paths: paths(&[
            "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
            "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
        ]),
        readonly_paths: paths(&["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]),
        seccomp: Some(seccomp(profile, privileged)),
        ..Default::default()
    }
}

/// `runAsNonRoot`: an error when the container would run as root. `user` is the image's.
pub fn verify_non_root(pod: &Pod, container: &Container, uid: Option<i64>, username: &str) -> Result<(), String> {
    let of_pod = spec(pod).security_context.as_ref();
    let own = container.security_context.as_ref();
    let wanted = own.and_then(|s| s.run_as_non_root).or_else(|| of_pod.and_then(|s| s.run_as_non_root));
    if wanted != Some(true) {
        return Ok(());
    }
    let quoted = format!("(pod: {}, container: {})", pod::go_quote(&pod::format(pod)), container.name);
    match own.and_then(|s| s.run_as_user).or_else(|| of_pod.and_then(|s| s.run_as_user)) {
        Some(0) => Err(format!("container's runAsUser breaks non-root policy {quoted}")),
        Some(_) => Ok(()),
        None if uid == Some(0) => Err(format!("container has runAsNonRoot and image will run as root {quoted}")),
        None if uid.is_none() && !username.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({username}), cannot verify user is non-root {quoted}"
        )),
        None if uid.is_none() => Err(format!("container has runAsNonRoot and image will run as root {quoted}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::pod;

    #[test]
    fn resolver_configurations() {
        let all = Dns {
            cluster: vec!["10.96.0.10".parse().unwrap()],
            domain: "cluster.local".into(),
            host: parse_resolv_conf("# x\nsearch example.org\nnameserver 9.9.9.9\noptions timeout:1\n"),
        };
        let check = |spec: serde_json::Value, expect: &str| {
            let config = dns(&pod(spec), &all);
            assert_eq!(format!("{} | {} | {}", config.servers.join(" "), config.searches.join(" "), config.options.join(" ")), expect);
        };
        check(serde_json::json!({"containers": []}), "10.96.0.10 | n.svc.cluster.local svc.cluster.local cluster.local example.org | ndots:5 timeout:1");
        check(serde_json::json!({"containers": [], "hostNetwork": true}), "9.9.9.9 | example.org | timeout:1");
        check(serde_json::json!({"containers": [], "dnsPolicy": "Default"}), "9.9.9.9 | example.org | timeout:1");
        check(
            serde_json::json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
            "1.1.1.1 | a | ndots:2 edns0",
        );
    }

    #[test]
    fn a_container_gets_its_mounts_and_expanded_arguments() {
        let pod = pod(serde_json::json!({"containers": [{
            "name": "a", "image": "i", "args": ["--x=$(X)"], "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true}],
            "securityContext": {"runAsUser": 7, "capabilities": {"drop": ["ALL"]}, "allowPrivilegeEscalation": false},
            "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}},
        }]}));
        let spec = &pod.spec.as_ref().unwrap().containers[0];
        let volumes = BTreeMap::from([("v".to_string(), PathBuf::from("/pods/v"))]);
        let none = BTreeMap::new();
        let parts = |volumes| Parts {
            attempt: 2,
            image_ref: "sha256:1".into(),
            environment: vec![("X".into(), "1".into())],
            volumes,
            sub_paths: &none,
            hosts: Some("/h".into()),
            message_file: "/m".into(),
            capacity: 1 << 30,
        };
        let empty = BTreeMap::new();
        assert_eq!(container(&pod, spec, parts(&empty)).unwrap_err(), "cannot find volume \"v\" to mount into container \"a\"");
        let config = container(&pod, spec, parts(&volumes)).unwrap();
        assert_eq!(config.args, ["--x=1"]);
        let mounts: Vec<String> = config.mounts.iter().map(|m| format!("{}={}{}", m.container_path, m.host_path, if m.readonly { ":ro" } else { "" })).collect();
        assert_eq!(mounts, ["/v=/pods/v:ro", "/etc/hosts=/h", "/dev/termination-log=/m"]);
        assert_eq!(config.log_path, "a/2.log");
        let linux = config.linux.unwrap();
        let resources = linux.resources.unwrap();
        assert_eq!((resources.cpu_quota, resources.cpu_shares, resources.memory_limit_in_bytes), (50_000, 512, 64 << 20));
        let security = linux.security_context.unwrap();
        assert!(security.no_new_privs && security.run_as_user.unwrap().value == 7 && security.capabilities.unwrap().drop_capabilities == ["ALL"]);
    }

    #[test]
    fn root_is_refused_when_asked() {
        let pod = pod(serde_json::json!({"securityContext": {"runAsNonRoot": true}, "containers": [{"name": "a"}]}));
        let spec = &pod.spec.as_ref().unwrap().containers[0];
        assert!(verify_non_root(&pod, spec, Some(0), "").is_err());
        assert!(verify_non_root(&pod, spec, None, "www").unwrap_err().contains("non-numeric user (www)"));
        assert!(verify_non_root(&pod, spec, Some(5), "").is_ok());
    }
}
