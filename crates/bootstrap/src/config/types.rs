//! The configuration API `kubeadm.k8s.io/v1beta4`, field by field
//! (<https://kubernetes.io/docs/reference/config-api/kubeadm-config.v1beta4/>). Durations are Go's, as text.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

fn none<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Declares structs whose fields are all optional, are left out when empty, and have no others beside them.
macro_rules! types {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $json:literal $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_doc])* #[serde(rename = $json, skip_serializing_if = "none")] pub $field: $type,)*
        }
    )*};
}

types! {
    /// What `init` does on this machine.
    InitConfiguration {
        "apiVersion" api_version: String,
        "kind" kind: String,
        "bootstrapTokens" bootstrap_tokens: Vec<BootstrapToken>,
        "dryRun" dry_run: bool,
        "nodeRegistration" node_registration: NodeRegistration,
        "localAPIEndpoint" local_api_endpoint: ApiEndpoint,
        /// Encrypts the certificates that are uploaded: 64 hexadecimal digits.
        "certificateKey" certificate_key: String,
        "skipPhases" skip_phases: Vec<String>,
        "patches" patches: Option<Patches>,
        "timeouts" timeouts: Option<Timeouts>,
    }
    /// What is the same for the whole cluster.
    ClusterConfiguration {
        "apiVersion" api_version: String,
        "kind" kind: String,
        "etcd" etcd: Etcd,
        "networking" networking: Networking,
        "kubernetesVersion" kubernetes_version: String,
        "controlPlaneEndpoint" control_plane_endpoint: String,
        "apiServer" api_server: ApiServer,
        "controllerManager" controller_manager: Component,
        "scheduler" scheduler: Component,
        "dns" dns: Dns,
        "proxy" proxy: Proxy,
        "certificatesDir" certificates_dir: String,
        "imageRepository" image_repository: String,
        "featureGates" feature_gates: BTreeMap<String, bool>,
        "clusterName" cluster_name: String,
        /// `ECDSA-P256`, `ECDSA-P384`, `RSA-2048`, `RSA-3072` or `RSA-4096`.
        "encryptionAlgorithm" encryption_algorithm: String,
        "certificateValidityPeriod" certificate_validity_period: String,
        "caCertificateValidityPeriod" ca_certificate_validity_period: String,
    }
    /// What `join` does on this machine.
    JoinConfiguration {
        "apiVersion" api_version: String,
        "kind" kind: String,
        "dryRun" dry_run: bool,
        "nodeRegistration" node_registration: NodeRegistration,
        "caCertPath" ca_cert_path: String,
        "discovery" discovery: Discovery,
        "controlPlane" control_plane: Option<JoinControlPlane>,
        "skipPhases" skip_phases: Vec<String>,
        "patches" patches: Option<Patches>,
        "timeouts" timeouts: Option<Timeouts>,
    }
    /// What `reset` does on this machine.
    ResetConfiguration {
        "apiVersion" api_version: String,
        "kind" kind: String,
        "cleanupTmpDir" cleanup_tmp_dir: bool,
        "certificatesDir" certificates_dir: String,
        "criSocket" cri_socket: String,
        "dryRun" dry_run: bool,
        "force" force: bool,
        "ignorePreflightErrors" ignore_preflight_errors: Vec<String>,
        "skipPhases" skip_phases: Vec<String>,
        "unmountFlags" unmount_flags: Vec<String>,
        "timeouts" timeouts: Option<Timeouts>,
    }
    /// A token that nodes join with.
    BootstrapToken {
        /// `abcdef.0123456789abcdef`; made when empty.
        "token" token: String,
        "description" description: String,
        "ttl" ttl: Option<String>,
        "expires" expires: Option<String>,
        "usages" usages: Vec<String>,
        "groups" groups: Vec<String>,
    }
    /// How this machine becomes a node.
    NodeRegistration {
        "name" name: String,
        "criSocket" cri_socket: String,
        /// Nothing: the control plane's own taint where there is one. An empty list: none.
        "taints" taints: Option<Vec<Taint>>,
        "kubeletExtraArgs" kubelet_extra_args: Vec<Arg>,
        "ignorePreflightErrors" ignore_preflight_errors: Vec<String>,
        "imagePullPolicy" image_pull_policy: String,
        "imagePullSerial" image_pull_serial: Option<bool>,
    }
    /// A node's taint.
    Taint {
        "key" key: String,
        "value" value: String,
        "effect" effect: String,
        "timeAdded" time_added: Option<String>,
    }
    /// Where an API server is reached.
    ApiEndpoint {
        "advertiseAddress" advertise_address: String,
        "bindPort" bind_port: u16,
    }
    /// A flag of a component, without its dashes.
    Arg {
        "name" name: String,
        "value" value: String,
    }
    /// Files that change what is written.
    Patches {
        "directory" directory: String,
    }
    /// How long to wait for what.
    Timeouts {
        "controlPlaneComponentHealthCheck" control_plane_component_health_check: String,
        "kubeletHealthCheck" kubelet_health_check: String,
        "kubernetesAPICall" kubernetes_api_call: String,
        "etcdAPICall" etcd_api_call: String,
        "tlsBootstrap" tls_bootstrap: String,
        "discovery" discovery: String,
        "upgradeManifests" upgrade_manifests: String,
    }
    /// Where the objects are.
    Etcd {
        "local" local: Option<LocalEtcd>,
        "external" external: Option<ExternalEtcd>,
    }
    /// A member beside each control plane.
    LocalEtcd {
        "imageRepository" image_repository: String,
        "imageTag" image_tag: String,
        "dataDir" data_dir: String,
        "extraArgs" extra_args: Vec<Arg>,
        "extraEnvs" extra_envs: Vec<Value>,
        "serverCertSANs" server_cert_sans: Vec<String>,
        "peerCertSANs" peer_cert_sans: Vec<String>,
    }
    /// An etcd that somebody else runs.
    ExternalEtcd {
        "endpoints" endpoints: Vec<String>,
        "httpEndpoints" http_endpoints: Vec<String>,
        "caFile" ca_file: String,
        "certFile" cert_file: String,
        "keyFile" key_file: String,
    }
    /// The cluster's networks.
    Networking {
        "serviceSubnet" service_subnet: String,
        "podSubnet" pod_subnet: String,
        "dnsDomain" dns_domain: String,
    }
    /// The API server.
    ApiServer {
        "extraArgs" extra_args: Vec<Arg>,
        "extraVolumes" extra_volumes: Vec<HostPathMount>,
        "extraEnvs" extra_envs: Vec<Value>,
        "certSANs" cert_sans: Vec<String>,
    }
    /// Another component of the control plane.
    Component {
        "extraArgs" extra_args: Vec<Arg>,
        "extraVolumes" extra_volumes: Vec<HostPathMount>,
        "extraEnvs" extra_envs: Vec<Value>,
    }
    /// A directory of the host in a static pod.
    HostPathMount {
        "name" name: String,
        "hostPath" host_path: String,
        "mountPath" mount_path: String,
        "readOnly" read_only: bool,
        "pathType" path_type: String,
    }
    /// The DNS add-on.
    Dns {
        "imageRepository" image_repository: String,
        "imageTag" image_tag: String,
        "disabled" disabled: bool,
    }
    /// The proxy add-on.
    Proxy {
        "disabled" disabled: bool,
    }
    /// By what a joining node knows the cluster.
    Discovery {
        "bootstrapToken" bootstrap_token: Option<BootstrapTokenDiscovery>,
        "file" file: Option<FileDiscovery>,
        "tlsBootstrapToken" tls_bootstrap_token: String,
    }
    /// By a token, and the fingerprint of the cluster's CA.
    BootstrapTokenDiscovery {
        "token" token: String,
        "apiServerEndpoint" api_server_endpoint: String,
        "caCertHashes" ca_cert_hashes: Vec<String>,
        "unsafeSkipCAVerification" unsafe_skip_ca_verification: bool,
    }
    /// By a kubeconfig.
    FileDiscovery {
        "kubeConfigPath" kube_config_path: String,
    }
    /// A machine that becomes a control plane too.
    JoinControlPlane {
        "localAPIEndpoint" local_api_endpoint: ApiEndpoint,
        "certificateKey" certificate_key: String,
    }
}
