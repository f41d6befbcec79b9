//! What a configuration leaves open: upstream's defaults, and those of knarr where it works otherwise.

use super::types::*;
use crate::error::{Result, refused};

/// The default of the cluster's certificates and their keys.
pub const CERTIFICATES: &str = "/etc/kubernetes/pki";
/// Where the built-in runtime would listen; it is reached in the same process.
pub const CRI_SOCKET: &str = "unix:///run/knarr/cri.sock";
const YEAR: &str = "8760h0m0s";
const TEN_YEARS: &str = "87600h0m0s";

/// What is known of this machine and program.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The host's name, in lower case.
    pub host: String,
    /// The address of its default route.
    pub address: String,
    /// The version of Kubernetes that this program serves: `v1.36.0`.
    pub version: String,
}

/// The taint of control planes.
pub fn control_plane_taint() -> Taint {
    Taint { key: "node-role.kubernetes.io/control-plane".into(), effect: "NoSchedule".into(), ..Taint::default() }
}

fn or(field: &mut String, default: &str) {
    if field.is_empty() {
        *field = default.into();
    }
}

/// The time that a Go duration says.
pub fn duration(text: &str) -> Option<std::time::Duration> {
    let nanos = api::gotime::parse_duration(text)?;
    u64::try_from(nanos).ok().map(std::time::Duration::from_nanos)
}

fn timeouts(timeouts: &mut Option<Timeouts>) {
    let t = timeouts.get_or_insert_default();
    or(&mut t.control_plane_component_health_check, "4m0s");
    or(&mut t.kubelet_health_check, "4m0s");
    or(&mut t.kubernetes_api_call, "1m0s");
    or(&mut t.etcd_api_call, "2m0s");
    or(&mut t.tls_bootstrap, "5m0s");
    or(&mut t.discovery, "5m0s");
    or(&mut t.upgrade_manifests, "5m0s");
}

fn registration(node: &mut NodeRegistration, facts: &Facts, control_plane: bool) {
    or(&mut node.name, &facts.host);
    node.name = node.name.trim().to_lowercase();
    or(&mut node.cri_socket, CRI_SOCKET);
    or(&mut node.image_pull_policy, "IfNotPresent");
    node.image_pull_serial.get_or_insert(true);
    if control_plane {
        node.taints.get_or_insert_with(|| vec![control_plane_taint()]);
    }
}

fn endpoint(endpoint: &mut ApiEndpoint, facts: &Facts) {
    or(&mut endpoint.advertise_address, &facts.address);
    if endpoint.bind_port == 0 {
        endpoint.bind_port = 6443;
    }
}

/// Completes what `init` does on this machine; a token is made from `random` where one is to be.
pub fn complete_init(config: &mut InitConfiguration, facts: &Facts, random: &mut dyn FnMut() -> String) {
    if config.bootstrap_tokens.is_empty() {
        config.bootstrap_tokens.push(BootstrapToken::default());
    }
    for token in &mut config.bootstrap_tokens {
        complete_token(token, random);
    }
    registration(&mut config.node_registration, facts, true);
    endpoint(&mut config.local_api_endpoint, facts);
    timeouts(&mut config.timeouts);
}

fn complete_token(token: &mut BootstrapToken, random: &mut dyn FnMut() -> String) {
    if token.token.is_empty() {
        token.token = random();
    }
    if token.expires.is_none() {
        token.ttl.get_or_insert_with(|| "24h0m0s".into());
    }
    if token.usages.is_empty() {
        token.usages = vec!["signing".into(), "authentication".into()];
    }
    if token.groups.is_empty() {
        token.groups = vec!["system:bootstrappers:kubeadm:default-node-token".into()];
    }
}

/// Completes what is the same for the whole cluster. `port` is the local API server's.
pub fn complete_cluster(config: &mut ClusterConfiguration, port: u16, facts: &Facts) -> Result<()> {
    version(&mut config.kubernetes_version, facts)?;
    or(&mut config.networking.service_subnet, "10.96.0.0/12");
    or(&mut config.networking.pod_subnet, "10.244.0.0/16");
    or(&mut config.networking.dns_domain, "cluster.local");
    or(&mut config.certificates_dir, CERTIFICATES);
    or(&mut config.image_repository, "registry.k8s.io");
    or(&mut config.cluster_name, "kubernetes");
    or(&mut config.encryption_algorithm, "ECDSA-P256");
    or(&mut config.certificate_validity_period, YEAR);
    or(&mut config.ca_certificate_validity_period, TEN_YEARS);
    if let Some(local) = &mut config.etcd.local {
        or(&mut local.data_dir, "/var/lib/etcd");
    }
    if let Some(external) = &mut config.etcd.external
        && external.http_endpoints.is_empty()
    {
        external.http_endpoints = external.endpoints.clone();
    }
    let named = &mut config.control_plane_endpoint;
    if !named.is_empty() && super::host_port(named)?.1.is_none() {
        *named = format!("{named}:{port}");
    }
    for name in &mut config.api_server.cert_sans {
        *name = name.to_lowercase();
    }
    Ok(())
}

/// Which version is asked for: only this program's minor can be had. Labels of upstream's release channels mean it too.
fn version(wanted: &mut String, facts: &Facts) -> Result<()> {
    let minor = facts.version.rsplit_once('.').map_or("", |v| v.0);
    let number = wanted.trim_start_matches('v');
    let label = wanted.is_empty() || wanted.starts_with("stable") || wanted.starts_with("latest");
    if label && (number.rsplit_once('-').is_none_or(|(_, n)| n == "1" || format!("v{n}") == minor)) {
        *wanted = facts.version.clone();
        return Ok(());
    }
    let full = format!("v{number}");
    let same = full.strip_prefix(minor).is_some_and(|patch| patch.starts_with('.'));
    if !same {
        return refused(format!(
            "--kubernetes-version {wanted:?}: this binary serves Kubernetes {}, and no other minor version; leave the version out, or use a knarr of that version",
            facts.version
        ));
    }
    *wanted = full;
    Ok(())
}

/// Completes what `join` does.
pub fn complete_join(config: &mut JoinConfiguration, facts: &Facts) {
    or(&mut config.ca_cert_path, &format!("{CERTIFICATES}/ca.crt"));
    if let Some(by_token) = &config.discovery.bootstrap_token
        && config.discovery.tls_bootstrap_token.is_empty()
    {
        config.discovery.tls_bootstrap_token = by_token.token.clone();
    }
    if let Some(file) = &mut config.discovery.file
        && let Some(path) = file.kube_config_path.strip_prefix("file://")
    {
        file.kube_config_path = path.into();
    }
    registration(&mut config.node_registration, facts, config.control_plane.is_some());
    if let Some(control_plane) = &mut config.control_plane {
        endpoint(&mut control_plane.local_api_endpoint, facts);
    }
    timeouts(&mut config.timeouts);
}

/// Completes what `reset` does.
pub fn complete_reset(config: &mut ResetConfiguration) {
    or(&mut config.certificates_dir, CERTIFICATES);
    or(&mut config.cri_socket, CRI_SOCKET);
    timeouts(&mut config.timeouts);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts { host: "Node-1".into(), address: "10.0.0.1".into(), version: "v1.36.0".into() }
    }

    #[test]
    fn what_init_leaves_open() {
        let mut config = InitConfiguration::default();
        complete_init(&mut config, &facts(), &mut || "abcdef.0123456789abcdef".into());
        assert_eq!((config.node_registration.name.as_str(), config.local_api_endpoint.bind_port), ("node-1", 6443));
        assert_eq!(config.local_api_endpoint.advertise_address, "10.0.0.1");
        assert_eq!(config.bootstrap_tokens[0].ttl.as_deref(), Some("24h0m0s"));
        assert_eq!(config.node_registration.taints, Some(vec![control_plane_taint()]));
        config.node_registration.taints = Some(Vec::new());
        complete_init(&mut config, &facts(), &mut || unreachable!("there is one already"));
        assert_eq!(config.node_registration.taints, Some(Vec::new()), "an empty list says: none");
    }

    #[test]
    fn only_the_minor_that_is_served() {
        let with = |wanted: &str| {
            let mut config = ClusterConfiguration { kubernetes_version: wanted.into(), ..Default::default() };
            complete_cluster(&mut config, 6443, &facts()).map(|()| config.kubernetes_version)
        };
        for (wanted, used) in [("", "v1.36.0"), ("stable-1", "v1.36.0"), ("stable-1.36", "v1.36.0"), ("1.36.2", "v1.36.2"), ("v1.36.0", "v1.36.0")] {
            assert_eq!(with(wanted).expect(wanted), used);
        }
        for wanted in ["v1.35.1", "1.37.0", "stable-1.35", "v1.3", "1.360.0"] {
            let error = with(wanted).expect_err(wanted).to_string();
            assert!(error.contains("serves Kubernetes v1.36.0"), "{error}");
        }
    }

    #[test]
    fn an_endpoint_without_a_port_gets_the_servers() {
        let mut config = ClusterConfiguration { control_plane_endpoint: "lb.example.com".into(), ..Default::default() };
        complete_cluster(&mut config, 7443, &facts()).expect("fine");
        assert_eq!(config.control_plane_endpoint, "lb.example.com:7443");
        assert_eq!(config.networking.pod_subnet, "10.244.0.0/16");
    }
}
