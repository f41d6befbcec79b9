//! kubeadm's command line: `init`, `join`, `token`, `certs`, `kubeconfig`, `config`, `reset`, `version`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Set up a cluster, join one, and manage what that takes, as kubeadm does.
#[derive(Parser)]
#[command(name = "kubeadm", arg_required_else_help = true)]
pub struct Kubeadm {
    #[command(subcommand)]
    pub command: Command,
}

/// What is to be done.
#[derive(Subcommand)]
pub enum Command {
    /// Run this command in order to set up the Kubernetes control plane
    Init(Box<InitArgs>),
    /// Run this on any machine you wish to join an existing cluster
    Join(Box<JoinArgs>),
    /// Manage bootstrap tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Commands related to handling Kubernetes certificates
    #[command(subcommand, alias = "certificates")]
    Certs(CertsCommand),
    /// Kubeconfig file utilities
    #[command(subcommand)]
    Kubeconfig(KubeconfigCommand),
    /// Manage configuration for a kubeadm cluster persisted in a ConfigMap in the cluster
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Performs a best effort revert of changes made to this host by 'kubeadm init' or 'kubeadm join'
    Reset(Box<ResetArgs>),
    /// Print the version
    Version(VersionArgs),
}

/// Where the node's own process keeps its files.
#[derive(Args, Clone, Default)]
pub struct PlaceArgs {
    /// Directory for everything that lasts [default: /var/lib/knarr, or KNARR_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Directory for what a reboot ends [default: /run/knarr, or KNARR_RUN_DIR]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// number for the log level verbosity
    #[arg(short, long, value_name = "LEVEL", default_value_t = 0, allow_negative_numbers = true)]
    pub v: i32,
}

impl PlaceArgs {
    /// Both directories.
    pub fn dirs(&self) -> (PathBuf, PathBuf) {
        let or = |given: &Option<PathBuf>, variable: &str, default: &str| {
            given.clone().or_else(|| std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from)).unwrap_or_else(|| default.into())
        };
        (or(&self.data_dir, "KNARR_DATA_DIR", "/var/lib/knarr"), or(&self.run_dir, "KNARR_RUN_DIR", "/run/knarr"))
    }
}

/// `init`, and `init phase …`.
#[derive(Args, Default)]
pub struct InitArgs {
    /// `phase NAME [PART]` runs one phase alone
    #[arg(value_name = "phase", hide = true)]
    pub words: Vec<String>,
    /// Path to a kubeadm configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The IP address the API Server will advertise it's listening on
    #[arg(long, value_name = "ADDRESS")]
    pub apiserver_advertise_address: Option<String>,
    /// Port for the API Server to bind to
    #[arg(long, value_name = "PORT")]
    pub apiserver_bind_port: Option<u16>,
    /// Extra Subject Alternative Names to use for the API Server serving certificate
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub apiserver_cert_extra_sans: Vec<String>,
    /// The path where to save and store the certificates
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<String>,
    /// Key used to encrypt the control-plane certificates in the kubeadm-certs Secret
    #[arg(long, value_name = "KEY")]
    pub certificate_key: Option<String>,
    /// Specify a stable IP address or DNS name for the control plane
    #[arg(long, value_name = "ENDPOINT")]
    pub control_plane_endpoint: Option<String>,
    /// Path to the CRI socket to connect
    #[arg(long, value_name = "SOCKET")]
    pub cri_socket: Option<String>,
    /// Don't apply any changes; just output what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Keep the objects in an etcd, a member of which runs beside this and each further control plane; that is also
    /// done where --upload-certs and --control-plane-endpoint announce further ones, and there is an etcd
    #[arg(long)]
    pub etcd: bool,
    /// The program of etcd [default: the first one on PATH]
    #[arg(long, value_name = "FILE")]
    pub etcd_program: Option<PathBuf>,
    /// Mend what preflight checks find where that is safe (kernel settings and modules, swap, ports of firewalld,
    /// /etc/hosts); reset takes it back
    #[arg(long)]
    pub fix: bool,
    /// A set of key=value pairs that describe feature gates for various features
    #[arg(long, value_name = "GATES")]
    pub feature_gates: Option<String>,
    /// A list of checks whose errors will be shown as warnings; 'all' ignores errors from all checks
    #[arg(long, value_name = "CHECK", value_delimiter = ',')]
    pub ignore_preflight_errors: Vec<String>,
    /// Choose a container registry to pull control plane images from
    #[arg(long, value_name = "REGISTRY")]
    pub image_repository: Option<String>,
    /// Choose a specific Kubernetes version for the control plane
    #[arg(long, value_name = "VERSION")]
    pub kubernetes_version: Option<String>,
    /// The kubeconfig file to use when talking to the cluster, in a phase
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Specify the node name
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Path to a directory that contains patches
    #[arg(long, value_name = "DIR")]
    pub patches: Option<String>,
    /// Specify range of IP addresses for the pod network
    #[arg(long, value_name = "CIDR")]
    pub pod_network_cidr: Option<String>,
    /// Use alternative range of IP address for service VIPs
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Option<String>,
    /// Use alternative domain for services, e.g. "myorg.internal"
    #[arg(long, value_name = "DOMAIN")]
    pub service_dns_domain: Option<String>,
    /// Don't print the key used to encrypt the control-plane certificates
    #[arg(long)]
    pub skip_certificate_key_print: bool,
    /// List of phases to be skipped
    #[arg(long, value_name = "PHASE", value_delimiter = ',')]
    pub skip_phases: Vec<String>,
    /// Skip printing of the default bootstrap token generated by 'kubeadm init'
    #[arg(long)]
    pub skip_token_print: bool,
    /// The token to use for establishing bidirectional trust between nodes and control-plane nodes
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// The duration before the token is automatically deleted (e.g. 1s, 2m, 3h); 0 for never
    #[arg(long, value_name = "DURATION")]
    pub token_ttl: Option<String>,
    /// Upload control-plane certificates to the kubeadm-certs Secret
    #[arg(long)]
    pub upload_certs: bool,
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// `join`, and `join phase …`.
#[derive(Args, Default)]
pub struct JoinArgs {
    /// The control plane, as HOST:PORT; or `phase NAME [PART]`, which runs one phase alone
    #[arg(value_name = "api-server-endpoint")]
    pub words: Vec<String>,
    /// Path to a kubeadm configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// If the node should host a new control plane instance, the IP address the API Server will advertise
    #[arg(long, value_name = "ADDRESS")]
    pub apiserver_advertise_address: Option<String>,
    /// If the node should host a new control plane instance, the port for the API Server to bind to
    #[arg(long, value_name = "PORT")]
    pub apiserver_bind_port: Option<u16>,
    /// Use this key to decrypt the certificate secrets uploaded by init
    #[arg(long, value_name = "KEY")]
    pub certificate_key: Option<String>,
    /// Create a new control plane instance on this node
    #[arg(long, alias = "experimental-control-plane")]
    pub control_plane: bool,
    /// Path to the CRI socket to connect
    #[arg(long, value_name = "SOCKET")]
    pub cri_socket: Option<String>,
    /// For file-based discovery, a file from which to load cluster information
    #[arg(long, value_name = "FILE")]
    pub discovery_file: Option<String>,
    /// For token-based discovery, the token used to validate cluster information fetched from the API server
    #[arg(long, value_name = "TOKEN")]
    pub discovery_token: Option<String>,
    /// For token-based discovery, validate that the root CA public key matches this hash ("<type>:<value>")
    #[arg(long, value_name = "HASH", value_delimiter = ',')]
    pub discovery_token_ca_cert_hash: Vec<String>,
    /// For token-based discovery, allow joining without --discovery-token-ca-cert-hash pinning
    #[arg(long)]
    pub discovery_token_unsafe_skip_ca_verification: bool,
    /// Don't apply any changes; just output what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Mend what preflight checks find where that is safe (kernel settings and modules, swap, ports of firewalld,
    /// /etc/hosts); reset takes it back
    #[arg(long)]
    pub fix: bool,
    /// A list of checks whose errors will be shown as warnings; 'all' ignores errors from all checks
    #[arg(long, value_name = "CHECK", value_delimiter = ',')]
    pub ignore_preflight_errors: Vec<String>,
    /// The program of etcd, for a control plane that gets a member of it [default: the first one on PATH]
    #[arg(long, value_name = "FILE")]
    pub etcd_program: Option<PathBuf>,
    /// Specify the node name
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Path to a directory that contains patches
    #[arg(long, value_name = "DIR")]
    pub patches: Option<String>,
    /// List of phases to be skipped
    #[arg(long, value_name = "PHASE", value_delimiter = ',')]
    pub skip_phases: Vec<String>,
    /// Specify the token used to temporarily authenticate with the Kubernetes Control Plane while joining
    #[arg(long, value_name = "TOKEN")]
    pub tls_bootstrap_token: Option<String>,
    /// Use this token for both discovery-token and tls-bootstrap-token when those values are not provided
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// As whom a cluster is talked to.
#[derive(Args, Clone, Default)]
pub struct ClusterArgs {
    /// The kubeconfig file to use when talking to the cluster [default: /etc/kubernetes/admin.conf]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// `token …`
#[derive(Subcommand)]
pub enum TokenCommand {
    /// Create bootstrap tokens on the server
    Create {
        /// The token; made when none is given
        token: Option<String>,
        /// Path to a kubeadm configuration file
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print the control plane's join command, with this key; needs --print-join-command
        #[arg(long, value_name = "KEY")]
        certificate_key: Option<String>,
        /// A human friendly description of how this token is used
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// Extra groups that this token will authenticate as
        #[arg(long, value_name = "GROUP", value_delimiter = ',')]
        groups: Vec<String>,
        /// Instead of printing only the token, print the full 'kubeadm join' flag needed to join the cluster
        #[arg(long)]
        print_join_command: bool,
        /// The duration before the token is automatically deleted (e.g. 1s, 2m, 3h); 0 for never
        #[arg(long, value_name = "DURATION")]
        ttl: Option<String>,
        /// Describes the ways in which this token can be used
        #[arg(long, value_name = "USAGE", value_delimiter = ',')]
        usages: Vec<String>,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Delete bootstrap tokens on the server
    Delete {
        /// Tokens, or their ids
        tokens: Vec<String>,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Generate and print a bootstrap token, but do not create it on the server
    Generate,
    /// List bootstrap tokens on the server
    List {
        /// Output format: text or json
        #[arg(long, short, value_name = "FORMAT", default_value = "text")]
        output: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

/// Where certificates are.
#[derive(Args, Clone, Default)]
pub struct CertsArgs {
    /// Path to a kubeadm configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The path where to save the certificates [default: /etc/kubernetes/pki]
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,
    /// The kubeconfig file to use when talking to the cluster
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// `certs …`
#[derive(Subcommand)]
pub enum CertsCommand {
    /// Generate certificate keys
    CertificateKey,
    /// Check certificates expiration for a Kubernetes cluster
    CheckExpiration {
        /// Output format: text or json
        #[arg(long, short, value_name = "FORMAT", default_value = "text")]
        output: String,
        #[command(flatten)]
        certs: CertsArgs,
    },
    /// Generate keys and certificate signing requests
    GenerateCsr {
        /// The path where to save the kubeconfig files
        #[arg(long, value_name = "DIR")]
        kubeconfig_dir: Option<PathBuf>,
        #[command(flatten)]
        certs: CertsArgs,
    },
    /// Renew certificates for a Kubernetes cluster: all, or one by its name
    Renew {
        /// all, admin.conf, apiserver, …
        certificate: String,
        #[command(flatten)]
        certs: CertsArgs,
    },
}

/// `kubeconfig …`
#[derive(Subcommand)]
pub enum KubeconfigCommand {
    /// Output a kubeconfig file for an additional user
    User {
        /// The name of user
        #[arg(long, value_name = "NAME")]
        client_name: String,
        /// Path to a kubeadm configuration file
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The organizations of the client certificate
        #[arg(long, value_name = "GROUP", value_delimiter = ',')]
        org: Vec<String>,
        /// The token that should be used as the authentication mechanism for this kubeconfig, instead of client certificates
        #[arg(long, value_name = "TOKEN")]
        token: Option<String>,
        /// The validity period of the client certificate, from now
        #[arg(long, value_name = "DURATION", default_value = "8760h0m0s")]
        validity_period: String,
    },
}

/// `config …`
#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Interact with container images used by kubeadm
    #[command(subcommand)]
    Images(ImagesCommand),
    /// Read an older version of the kubeadm configuration API types from a file, and output it in the newest
    Migrate {
        /// Path to the file to be converted
        #[arg(long, value_name = "FILE")]
        old_config: PathBuf,
        /// Path to the resulting file; standard output when none
        #[arg(long, value_name = "FILE")]
        new_config: Option<PathBuf>,
        /// Allow migration to experimental, unreleased APIs
        #[arg(long)]
        allow_experimental_api: bool,
    },
    /// Print configuration
    #[command(subcommand)]
    Print(PrintCommand),
    /// Read a file containing the kubeadm configuration API and report any validation problems
    Validate {
        /// Path to a kubeadm configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Allow validation of deprecated APIs
        #[arg(long)]
        allow_deprecated_api: bool,
        /// Allow validation of experimental, unreleased APIs
        #[arg(long)]
        allow_experimental_api: bool,
    },
}

/// `config images …`
#[derive(Subcommand)]
pub enum ImagesCommand {
    /// Print a list of images kubeadm will use
    List(ImagesArgs),
    /// Pull images used by kubeadm
    Pull(ImagesArgs),
}

/// What upstream takes; there is nothing to choose.
#[derive(Args, Default)]
pub struct ImagesArgs {
    /// Path to a kubeadm configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Choose a specific Kubernetes version for the control plane
    #[arg(long, value_name = "VERSION")]
    pub kubernetes_version: Option<String>,
    /// Choose a container registry to pull control plane images from
    #[arg(long, value_name = "REGISTRY")]
    pub image_repository: Option<String>,
    /// Path to the CRI socket to connect
    #[arg(long, value_name = "SOCKET")]
    pub cri_socket: Option<String>,
    /// Output format: text or json
    #[arg(long, short, value_name = "FORMAT")]
    pub output: Option<String>,
}

/// `config print …`
#[derive(Subcommand)]
pub enum PrintCommand {
    /// Print default init configuration, that can be used for 'kubeadm init'
    InitDefaults {
        /// Component config API objects to print the default values for: KubeletConfiguration
        #[arg(long, value_name = "KIND", value_delimiter = ',')]
        component_configs: Vec<String>,
    },
    /// Print default join configuration, that can be used for 'kubeadm join'
    JoinDefaults,
    /// Print default reset configuration, that can be used for 'kubeadm reset'
    ResetDefaults,
}

/// `reset`, and `reset phase …`.
#[derive(Args, Default)]
pub struct ResetArgs {
    /// `phase NAME` runs one phase alone
    #[arg(value_name = "phase", hide = true)]
    pub words: Vec<String>,
    /// The path to the directory where the certificates are stored. If specified, clean this directory
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<String>,
    /// Cleanup the "/etc/kubernetes/tmp" directory
    #[arg(long)]
    pub cleanup_tmp_dir: bool,
    /// Path to a kubeadm configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Path to the CRI socket to connect
    #[arg(long, value_name = "SOCKET")]
    pub cri_socket: Option<String>,
    /// Don't apply any changes; just output what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Reset the node without prompting for confirmation
    #[arg(long, short)]
    pub force: bool,
    /// A list of checks whose errors will be shown as warnings
    #[arg(long, value_name = "CHECK", value_delimiter = ',')]
    pub ignore_preflight_errors: Vec<String>,
    /// The kubeconfig file to use when talking to the cluster
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// List of phases to be skipped
    #[arg(long, value_name = "PHASE", value_delimiter = ',')]
    pub skip_phases: Vec<String>,
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// `version`
#[derive(Args)]
pub struct VersionArgs {
    /// Output format; available options are 'yaml', 'json' and 'short'
    #[arg(long, short, value_name = "FORMAT", default_value = "")]
    pub output: String,
}
