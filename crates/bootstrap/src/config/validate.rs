//! Whether a completed configuration makes sense, in upstream's words.

use std::net::IpAddr;

use super::types::*;
use crate::error::{Result, refused};

/// Problems, each with its field's path.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn invalid(&mut self, path: &str, value: &str, why: &str) {
        self.0.push(format!("{path}: Invalid value: {}: {why}", api::field::go_quote(value)));
    }

    fn required(&mut self, path: &str, why: &str) {
        self.0.push(format!("{path}: Required value: {why}"));
    }

    fn result(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { refused(api::field::aggregate(self.0)) }
    }

    fn flags(&mut self, path: &str, flags: &[Arg]) {
        for (i, _) in flags.iter().enumerate().filter(|(_, f)| f.name.is_empty()) {
            self.invalid(path, &format!("index {i}"), "argument has no name");
        }
    }

    fn names(&mut self, path: &str, names: &[String]) {
        for name in names {
            let plain = api::names::dns1123_subdomain(name);
            let wild = api::names::wildcard_dns1123_subdomain(name);
            if !plain.is_empty() && !wild.is_empty() && name.parse::<IpAddr>().is_err() {
                let why = format!("altname is not a valid IP address, DNS label or a DNS label with subdomain wildcards: {}; {}", plain.join("; "), wild.join("; "));
                self.invalid(path, name, &why);
            }
        }
    }

    fn absolute(&mut self, path: &str, value: &str) {
        if !value.starts_with('/') {
            self.invalid(path, value, "path is not absolute");
        }
    }

    fn endpoint(&mut self, path: &str, endpoint: &ApiEndpoint) {
        if endpoint.advertise_address.parse::<IpAddr>().is_err() {
            self.invalid(&format!("{path}.advertiseAddress"), &endpoint.advertise_address, "ip address is not valid");
        } else if endpoint.advertise_address.contains(':') {
            self.invalid(&format!("{path}.advertiseAddress"), &endpoint.advertise_address, "nodes of knarr have IPv4 addresses so far: name one");
        }
    }

    fn certificate_key(&mut self, path: &str, key: &str) {
        if key.is_empty() {
            return;
        }
        match hex::decode(key) {
            Err(error) => self.invalid(path, key, &format!("certificate key decoding error: {error}")),
            Ok(bytes) if bytes.len() != 32 => {
                self.invalid(path, key, &format!("invalid certificate key size {}, the key must be an AES key of size 32", bytes.len()))
            }
            Ok(_) => {}
        }
    }

    fn token(&mut self, path: &str, token: &str) {
        if pki::bootstrap_token::parse(token).is_none() {
            self.invalid(path, token, "the bootstrap token is invalid");
        }
    }

    fn registration(&mut self, node: &NodeRegistration) {
        if node.name.is_empty() {
            self.required(
                "nodeRegistration",
                "--node-name or .nodeRegistration.name in the config file is a required value. It seems like this value couldn't be automatically detected in your environment, please specify the desired value using the CLI or config file.",
            );
        }
        for why in api::names::dns1123_subdomain(&node.name).into_iter().filter(|_| !node.name.is_empty()) {
            self.invalid("nodeRegistration.name", &node.name, &why);
        }
        self.flags("nodeRegistration.kubeletExtraArgs", &node.kubelet_extra_args);
        if !matches!(node.image_pull_policy.as_str(), "Always" | "IfNotPresent" | "Never") {
            self.invalid("nodeRegistration.imagePullPolicy", &node.image_pull_policy, "invalid pull policy");
        }
        for taint in node.taints.iter().flatten() {
            if taint.key.is_empty() || !matches!(taint.effect.as_str(), "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
                let text = format!("{}={}:{}", taint.key, taint.value, taint.effect);
                self.invalid("nodeRegistration.taints", &text, "a taint needs a key, and one of the effects NoSchedule, PreferNoSchedule, NoExecute");
            }
        }
    }

    fn timeouts(&mut self, timeouts: &Option<Timeouts>) {
        let Some(t) = timeouts else { return };
        for (name, value) in [
            ("controlPlaneComponentHealthCheck", &t.control_plane_component_health_check),
            ("kubeletHealthCheck", &t.kubelet_health_check),
            ("kubernetesAPICall", &t.kubernetes_api_call),
            ("etcdAPICall", &t.etcd_api_call),
            ("tlsBootstrap", &t.tls_bootstrap),
            ("discovery", &t.discovery),
            ("upgradeManifests", &t.upgrade_manifests),
        ] {
            self.time(&format!("timeouts.{name}"), value);
        }
    }

    fn time(&mut self, path: &str, value: &str) {
        if super::duration(value).is_none() {
            self.invalid(path, value, "it is no duration: 90s, 5m0s or 8760h are meant");
        }
    }

    /// A network of IPv4 with at least so many addresses; its prefix length.
    fn network(&mut self, path: &str, text: &str, least: u64) -> Option<u32> {
        let parsed = text.split_once('/').and_then(|(a, p)| Some((a.parse::<IpAddr>().ok()?, p.parse::<u32>().ok()?)));
        let Some((address, prefix)) = parsed.filter(|(a, p)| *p <= if a.is_ipv4() { 32 } else { 128 }) else {
            let why = if text.contains(',') { "knarr serves one family so far: give one CIDR of IPv4" } else { "couldn't parse subnet" };
            self.invalid(path, text, why);
            return None;
        };
        if address.is_ipv6() {
            self.invalid(path, text, "pods and services of knarr have IPv4 addresses so far: name such a network");
            return None;
        }
        let size = 1u64 << (32 - prefix);
        if size < least {
            self.invalid(path, text, &format!("subnet with {size} address(es) is too small, the minimum is {least}"));
        }
        Some(prefix)
    }
}

/// Checks everything that `init` uses.
pub fn init(init: &InitConfiguration, config: &ClusterConfiguration) -> Result<()> {
    let mut problems = Problems::default();
    problems.registration(&init.node_registration);
    for (i, token) in init.bootstrap_tokens.iter().enumerate() {
        let path = format!("bootstrapTokens.{i}");
        problems.token(&format!("{path}.token"), &token.token);
        if let Some(bad) = token.usages.iter().find(|u| !matches!(u.as_str(), "signing" | "authentication")) {
            problems.invalid(&format!("{path}.usages"), bad, &format!("invalid bootstrap token usage string: {bad}, valid usage options: authentication, signing"));
        }
        if let Some(bad) = token.groups.iter().find(|g| !g.starts_with("system:bootstrappers:")) {
            problems.invalid(&format!("{path}.groups"), bad, &format!("bootstrap group {bad:?} is invalid (must match \\Asystem:bootstrappers:[a-z0-9:-]{{0,255}}[a-z0-9]\\z)"));
        }
        if token.expires.is_some() && token.ttl.is_some() {
            problems.invalid(&path, "", "the BootstrapToken .TTL and .Expires fields are mutually exclusive");
        }
        if let Some(ttl) = &token.ttl {
            problems.time(&format!("{path}.ttl"), ttl);
        }
    }
    problems.timeouts(&init.timeouts);
    add_cluster(&mut problems, config);
    problems.endpoint("localAPIEndpoint", &init.local_api_endpoint);
    problems.certificate_key("certificateKey", &init.certificate_key);
    problems.result()
}

/// Checks the cluster's configuration alone.
pub fn cluster(config: &ClusterConfiguration) -> Result<()> {
    let mut problems = Problems::default();
    add_cluster(&mut problems, config);
    problems.result()
}

fn add_cluster(problems: &mut Problems, config: &ClusterConfiguration) {
    let net = &config.networking;
    for why in api::names::dns1123_subdomain(&net.dns_domain) {
        problems.invalid("networking.dnsDomain", &net.dns_domain, &why);
    }
    if let Some(prefix) = problems.network("networking.serviceSubnet", &net.service_subnet, 10)
        && 32 - prefix > 20
    {
        problems.invalid("networking.serviceSubnet", &net.service_subnet, "specified service subnet is too large; for 32-bit addresses, the mask must be >= 12");
    }
    if let Some(prefix) = problems.network("networking.podSubnet", &net.pod_subnet, 14) {
        if prefix > 24 {
            let why = format!("the size of pod subnet with mask {prefix} is smaller than the size of node subnet with mask 24");
            problems.invalid("networking.podSubnet", &net.pod_subnet, &why);
        } else if 24 - prefix > 16 {
            problems.invalid("networking.podSubnet", &net.pod_subnet, &format!("pod subnet mask ({prefix}) and node-mask (24) difference is greater than 16"));
        }
    }
    problems.names("apiServer.certSANs", &config.api_server.cert_sans);
    problems.flags("apiServer.extraArgs", &config.api_server.extra_args);
    problems.flags("controllerManager.extraArgs", &config.controller_manager.extra_args);
    problems.flags("scheduler.extraArgs", &config.scheduler.extra_args);
    problems.absolute("certificatesDir", &config.certificates_dir);
    if !config.control_plane_endpoint.is_empty() && host_port(&config.control_plane_endpoint).is_err() {
        problems.invalid("controlPlaneEndpoint", &config.control_plane_endpoint, "endpoint is not valid");
    }
    let algorithm = config.encryption_algorithm.as_str();
    if pki::KeyAlgorithm::named(algorithm).is_none() {
        let known = pki::KeyAlgorithm::ALL.map(pki::KeyAlgorithm::name).join(" ");
        problems.invalid("encryptionAlgorithm", algorithm, &format!("Invalid encryption algorithm {algorithm:?}. Must be one of [{known}]"));
    }
    problems.time("certificateValidityPeriod", &config.certificate_validity_period);
    problems.time("caCertificateValidityPeriod", &config.ca_certificate_validity_period);
    etcd(problems, &config.etcd);
}

fn etcd(problems: &mut Problems, etcd: &Etcd) {
    if etcd.local.is_some() && etcd.external.is_some() {
        problems.invalid("etcd", "", ".Etcd.Local and .Etcd.External are mutually exclusive");
        return;
    }
    if let Some(local) = &etcd.local {
        problems.absolute("etcd.local.dataDir", &local.data_dir);
        problems.names("etcd.local.serverCertSANs", &local.server_cert_sans);
        problems.names("etcd.local.peerCertSANs", &local.peer_cert_sans);
        problems.flags("etcd.local.extraArgs", &local.extra_args);
    }
    let Some(external) = &etcd.external else { return };
    let tls = !(external.ca_file.is_empty() && external.cert_file.is_empty() && external.key_file.is_empty());
    if external.cert_file.is_empty() != external.key_file.is_empty() {
        problems.invalid("etcd.external", "", "either both or none of .Etcd.External.CertFile and .Etcd.External.KeyFile must be set");
    }
    if external.endpoints.is_empty() {
        problems.invalid("etcd.external.endpoints", "", "at least one endpoint must be specified");
    }
    for url in &external.endpoints {
        if tls && !url.starts_with("https://") {
            problems.invalid("etcd.external.endpoints", url, "the URL must be using the HTTPS scheme");
        } else if !url.contains("://") {
            problems.invalid("etcd.external.endpoints", url, "the URL without scheme is not allowed");
        }
    }
    for (name, path) in [("caFile", &external.ca_file), ("certFile", &external.cert_file), ("keyFile", &external.key_file)] {
        if !path.is_empty() {
            problems.absolute(&format!("etcd.external.{name}"), path);
        }
    }
}

/// Checks everything that `join` uses.
pub fn join(config: &JoinConfiguration) -> Result<()> {
    let mut problems = Problems::default();
    let discovery = &config.discovery;
    match (&discovery.bootstrap_token, &discovery.file) {
        (None, None) => problems.invalid("discovery", "", "bootstrapToken or file must be set"),
        (Some(_), Some(_)) => problems.invalid("discovery", "", "bootstrapToken and file cannot both be set"),
        _ => {}
    }
    if let Some(token) = &discovery.bootstrap_token {
        if token.api_server_endpoint.is_empty() {
            problems.required("discovery.bootstrapToken", "APIServerEndpoint is not set");
        }
        if token.ca_cert_hashes.is_empty() && !token.unsafe_skip_ca_verification {
            problems.invalid("discovery.bootstrapToken.caCertHashes", "", "using token-based discovery without caCertHashes can be unsafe. Set unsafeSkipCAVerification as true in your kubeadm config file or pass --discovery-token-unsafe-skip-ca-verification flag to continue");
        }
        problems.token("discovery.bootstrapToken.token", &token.token);
        if !matches!(host_port(&token.api_server_endpoint), Ok((_, Some(_)))) {
            let why = format!("address {}: missing port in address", token.api_server_endpoint);
            problems.invalid("discovery.bootstrapToken.apiServerEndpoint", &token.api_server_endpoint, &why);
        }
        problems.token("discovery.tlsBootstrapToken", &discovery.tls_bootstrap_token);
    } else if !discovery.tls_bootstrap_token.is_empty() {
        problems.token("discovery.tlsBootstrapToken", &discovery.tls_bootstrap_token);
    }
    if let Some(file) = &discovery.file {
        let path = &file.kube_config_path;
        if path.contains("://") && !path.starts_with("https://") {
            problems.invalid("discovery.file.kubeConfigPath", path, "if a URL is used, the scheme must be https");
        } else if !path.contains("://") && !std::path::Path::new(path).exists() {
            problems.invalid("discovery.file.kubeConfigPath", path, "not a valid HTTPS URL or a file on disk");
        }
    }
    problems.registration(&config.node_registration);
    problems.timeouts(&config.timeouts);
    if let Some(control_plane) = &config.control_plane {
        problems.endpoint("controlPlane.localAPIEndpoint", &control_plane.local_api_endpoint);
        problems.certificate_key("controlPlane.certificateKey", &control_plane.certificate_key);
    }
    if !config.ca_cert_path.starts_with('/') || !config.ca_cert_path.ends_with(".crt") {
        problems.invalid("caCertPath", &config.ca_cert_path, "the ca certificate path must be an absolute path");
    }
    problems.result()
}

/// Splits `host[:port]`; an address of IPv6 with a port stands in brackets.
pub fn host_port(text: &str) -> Result<(String, Option<u16>)> {
    let bad = || {
        refused(format!("hostport {text}: host '{text}' must be a valid IP address or a valid RFC-1123 DNS subdomain"))
    };
    let (host, port) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None if text.parse::<std::net::Ipv6Addr>().is_ok() => (text, None),
        None => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port.map(str::parse::<u16>) {
        None => None,
        Some(Ok(port)) if port > 0 => Some(port),
        Some(_) => return refused(format!("hostport {text}: port {} must be a valid number between 1 and 65535, inclusive", port.unwrap_or_default())),
    };
    if host.parse::<IpAddr>().is_err() && !api::names::dns1123_subdomain(host).is_empty() {
        return bad();
    }
    Ok((host.into(), port))
}

#[cfg(test)]
mod tests {
    use super::super::{Facts, complete_cluster, complete_init, complete_join};
    use super::*;

    fn facts() -> Facts {
        Facts { host: "n".into(), address: "10.0.0.1".into(), version: "v1.36.0".into() }
    }

    fn checked(change: impl FnOnce(&mut InitConfiguration, &mut ClusterConfiguration)) -> std::result::Result<(), String> {
        let (mut machine, mut config) = (InitConfiguration::default(), ClusterConfiguration::default());
        complete_init(&mut machine, &facts(), &mut || "abcdef.0123456789abcdef".into());
        complete_cluster(&mut config, 6443, &facts()).expect("defaults");
        change(&mut machine, &mut config);
        init(&machine, &config).map_err(|e| e.to_string())
    }

    #[test]
    fn the_defaults_are_good_and_each_mistake_is_named() {
        checked(|_, _| {}).expect("the defaults");
        type Change = fn(&mut InitConfiguration, &mut ClusterConfiguration);
        let cases: [(Change, &str); 9] = [
            (|_, c| c.networking.pod_subnet = "x".into(), "networking.podSubnet: Invalid value: \"x\": couldn't parse subnet"),
            (|_, c| c.networking.pod_subnet = "10.244.0.0/28".into(), "mask 28 is smaller than the size of node subnet with mask 24"),
            (|_, c| c.networking.service_subnet = "10.0.0.0/8".into(), "specified service subnet is too large"),
            (|_, c| c.networking.service_subnet = "fd00::/112".into(), "IPv4 addresses so far"),
            (|_, c| c.control_plane_endpoint = "-:6443".into(), "controlPlaneEndpoint: Invalid value: \"-:6443\": endpoint is not valid"),
            (|_, c| c.encryption_algorithm = "RSA-1024".into(), "Must be one of [ECDSA-P256 ECDSA-P384 RSA-2048 RSA-3072 RSA-4096]"),
            (|i, _| i.certificate_key = "abcd".into(), "invalid certificate key size 2"),
            (|i, _| i.bootstrap_tokens[0].token = "a.b".into(), "bootstrapTokens.0.token: Invalid value: \"a.b\": the bootstrap token is invalid"),
            (|i, _| i.local_api_endpoint.advertise_address = "lb".into(), "localAPIEndpoint.advertiseAddress: Invalid value: \"lb\": ip address is not valid"),
        ];
        for (change, expected) in cases {
            let error = checked(change).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn joining_needs_a_way_to_know_the_cluster() {
        let with = |change: fn(&mut JoinConfiguration)| {
            let token = BootstrapTokenDiscovery { token: "abcdef.0123456789abcdef".into(), api_server_endpoint: "10.0.0.1:6443".into(), ca_cert_hashes: vec!["sha256:0".into()], ..Default::default() };
            let mut config = JoinConfiguration { discovery: Discovery { bootstrap_token: Some(token), ..Default::default() }, ..Default::default() };
            change(&mut config);
            complete_join(&mut config, &facts());
            join(&config).map_err(|e| e.to_string())
        };
        with(|_| {}).expect("good");
        let error = with(|c| c.discovery.bootstrap_token = None).expect_err("nothing");
        assert_eq!(error, "discovery: Invalid value: \"\": bootstrapToken or file must be set");
        let error = with(|c| c.discovery.bootstrap_token.as_mut().expect("token").ca_cert_hashes.clear()).expect_err("unsafe");
        assert!(error.contains("--discovery-token-unsafe-skip-ca-verification"), "{error}");
        let error = with(|c| c.discovery.bootstrap_token.as_mut().expect("token").api_server_endpoint = "10.0.0.1".into()).expect_err("no port");
        assert!(error.contains("missing port in address"), "{error}");
    }

    #[test]
    fn hosts_and_ports() {
        assert_eq!(host_port("10.0.0.1:6443").expect("fine"), ("10.0.0.1".into(), Some(6443)));
        assert_eq!(host_port("lb.example.com").expect("fine"), ("lb.example.com".into(), None));
        assert_eq!(host_port("[fd00::1]:6443").expect("fine"), ("fd00::1".into(), Some(6443)));
        assert_eq!(host_port("fd00::1").expect("fine"), ("fd00::1".into(), None));
        for bad in ["lb:0", "lb:x", "a_b:1", ":6443", ""] {
            assert!(host_port(bad).is_err(), "{bad}");
        }
    }
}
