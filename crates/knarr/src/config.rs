//! What a server or an agent is to be: flags over a configuration file over defaults, checked whole
//! before anything is touched.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Taint;
use registry::{AuthenticationConfig, AuthorizationConfig, AuthorizationMode};
use serde::{Deserialize, Serialize};

use crate::component::go_duration;
use crate::engine::{Etcd, EtcdArgs};
use crate::etcd::Beside;
use crate::follow::Followed;

/// Shorter ones end before they could be renewed.
const SHORTEST_LIFETIME: std::time::Duration = std::time::Duration::from_secs(10);

/// The flags; each can also stand in the configuration file, under the same name.
#[derive(Args, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Flags {
    /// File in YAML with these same names; flags go before it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Directory for everything that lasts [default: /var/lib/knarr]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Directory for what a reboot ends [default: /run/knarr]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Name of this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address of this node [default: that of the default route]
    #[arg(long, value_name = "ADDRESS")]
    pub node_ip: Option<Ipv4Addr>,
    /// Port of the API server [default: 6443]
    #[arg(long, value_name = "PORT")]
    pub secure_port: Option<u16>,
    /// Port of the kubelet [default: 10250]
    #[arg(long, value_name = "PORT")]
    pub kubelet_port: Option<u16>,
    /// Addresses of pods [default: 10.244.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub cluster_cidr: Option<String>,
    /// Addresses of services [default: 10.96.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Option<String>,
    /// Domain of services [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// More names and addresses for the API server's certificate
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// Registries that are reached without TLS (host or host:port); loopback ones always may be
    #[arg(long, value_name = "REGISTRY", value_delimiter = ',')]
    pub insecure_registry: Vec<String>,
    /// CA bundle in PEM that registries may be signed by, besides the host's
    #[arg(long, value_name = "FILE")]
    pub registry_ca: Vec<PathBuf>,
    /// The API server's audit policy; without one nothing is recorded
    #[arg(long, value_name = "FILE")]
    pub audit_policy_file: Option<PathBuf>,
    /// File that audit events are written to; `-` is standard output
    #[arg(long, value_name = "FILE")]
    pub audit_log_path: Option<PathBuf>,
    /// Days that old audit logs are kept; 0 for ever [default: 366]
    #[arg(long, value_name = "DAYS")]
    pub audit_log_maxage: Option<u32>,
    /// How many old audit logs are kept; 0 for all [default: 100]
    #[arg(long, value_name = "NUMBER")]
    pub audit_log_maxbackup: Option<u32>,
    /// Megabytes after which an audit log is put aside; 0 for never [default: 100]
    #[arg(long, value_name = "MB")]
    pub audit_log_maxsize: Option<u32>,
    /// Kubeconfig of a server that audit events are sent to
    #[arg(long, value_name = "FILE")]
    pub audit_webhook_config_file: Option<PathBuf>,
    /// Members of an etcd that keeps the objects instead of the data directory, as https://host:port
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub etcd_servers: Vec<String>,
    /// CA by which etcd is known
    #[arg(long, value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// Certificate that is shown to etcd
    #[arg(long, value_name = "FILE")]
    pub etcd_certfile: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE")]
    pub etcd_keyfile: Option<PathBuf>,
    /// What keys in etcd begin with [default: /registry]
    #[arg(long, value_name = "PREFIX")]
    pub etcd_prefix: Option<String>,
    /// Run a member of etcd beside the server, and keep the objects there: the first one of a cluster, or with --etcd-join
    /// a further one; where it has run before it is what it was
    #[arg(long)]
    pub etcd: bool,
    /// The etcd to run [default: the one on PATH]
    #[arg(long, value_name = "FILE")]
    pub etcd_program: Option<PathBuf>,
    /// Members of the cluster that the member is to join, as https://host:2379; its CA has to be in pki/etcd already
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub etcd_join: Vec<String>,
    /// Port of the member for clients [default: 2379]
    #[arg(long, value_name = "PORT")]
    pub etcd_client_port: Option<u16>,
    /// Port of the member for other members [default: 2380]
    #[arg(long, value_name = "PORT")]
    pub etcd_peer_port: Option<u16>,
    /// How long the server still takes requests when it was told to end and says that it is not ready, so that load
    /// balancers look elsewhere, as 5s [default: 0s; 1s with an etcd]
    #[arg(long, value_name = "DURATION")]
    pub shutdown_delay_duration: Option<String>,
    /// Address that is at one of the servers at a time, at one that is ready, and announced by it on the link that has
    /// the node's address; the same on all servers
    #[arg(long, value_name = "ADDRESS")]
    pub control_plane_vip: Option<Ipv4Addr>,
    /// How often the server makes a snapshot of all objects, as 6h; 0s for never [default: 12h]
    #[arg(long, value_name = "DURATION")]
    pub snapshot_interval: Option<String>,
    /// How many of those are kept [default: 5]
    #[arg(long, value_name = "NUMBER")]
    pub snapshot_keep: Option<usize>,
    /// Port on loopback at which an agent's load balancer serves other programs of the machine [default: none]
    #[arg(long, value_name = "PORT")]
    pub balancer_port: Option<u16>,
    /// The API server's AuthenticationConfiguration: issuers whose tokens are taken; it may change later
    #[arg(long, value_name = "FILE")]
    pub authentication_config: Option<PathBuf>,
    /// The API server's AuthorizationConfiguration: webhooks beside Node and RBAC; it may change later
    #[arg(long, value_name = "FILE")]
    pub authorization_config: Option<PathBuf>,
    /// Parts that others run, beside this server or elsewhere: controllers, scheduler
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    pub disable: Vec<Part>,
    /// What is logged, as `info` or `warn,kubelet=debug` [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// How long certificates are good, those of nodes as well; they are renewed when a third of it is left [default: 8760h]
    #[arg(long, value_name = "DURATION")]
    pub certificate_validity_period: Option<String>,
    /// Of a node that `init` or `join` has made; in the configuration file alone.
    #[arg(skip)]
    pub kubeadm: Option<Kubeadm>,
}

/// What `init` and `join` tell of their node.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Kubeadm {
    /// The cluster's certificates, in upstream's layout; a control plane's.
    pub pki_dir: Option<PathBuf>,
    /// By which a node that has joined reaches its cluster.
    pub kubeconfig: Option<PathBuf>,
    /// What the node registers with.
    pub node_labels: BTreeMap<String, String>,
    /// The same.
    pub taints: Vec<Taint>,
}

/// A part of the control plane that a server can do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// What `kube-controller-manager` does.
    Controllers,
    /// What `kube-scheduler` does.
    Scheduler,
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Part::Controllers => "controllers",
            Part::Scheduler => "scheduler",
        }
    }
}

/// A network: address and prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    pub address: Ipv4Addr,
    pub prefix: u8,
}

impl Cidr {
    fn parse(name: &str, text: &str) -> Result<Cidr> {
        let (address, prefix) = text.split_once('/').with_context(|| format!("--{name} {text:?} is not a network: it has no /"))?;
        let address: Ipv4Addr = address.parse().with_context(|| format!("--{name} {text:?}: {address:?} is not an IPv4 address"))?;
        let prefix: u8 = prefix.parse().with_context(|| format!("--{name} {text:?}: {prefix:?} is not a prefix length"))?;
        ensure!((8..=30).contains(&prefix), "--{name} {text:?}: the prefix length must be from 8 to 30");
        let mask = u32::MAX << (32 - prefix);
        let base = Ipv4Addr::from(u32::from(address) & mask);
        ensure!(base == address, "--{name} {text:?} has bits beyond its prefix: {base}/{prefix} is meant?");
        Ok(Cidr { address, prefix })
    }

    /// The nth address.
    pub fn nth(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) + n)
    }

    /// Whether two networks share addresses.
    pub fn overlaps(&self, other: &Cidr) -> bool {
        let mask = u32::MAX << (32 - self.prefix.min(other.prefix));
        u32::from(self.address) & mask == u32::from(other.address) & mask
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub node_name: String,
    pub node_ip: Option<Ipv4Addr>,
    pub secure_port: u16,
    pub kubelet_port: u16,
    pub cluster_cidr: Cidr,
    pub service_cidr: Cidr,
    pub cluster_domain: String,
    pub tls_san: Vec<String>,
    pub insecure_registries: Vec<String>,
    pub registry_cas: Vec<Vec<u8>>,
    pub audit: apiserver::audit::Config,
    /// Where the objects are, if not in the data directory.
    pub etcd: Option<Etcd>,
    /// The member of etcd beside the server.
    pub member: Option<Beside>,
    pub shutdown_delay: std::time::Duration,
    pub balancer_port: Option<u16>,
    pub control_plane_vip: Option<Ipv4Addr>,
    /// How often snapshots are made, and how many are kept.
    pub snapshots: (std::time::Duration, usize),
    /// Issuers whose tokens are taken, and the file that says so.
    pub authentication: Option<(AuthenticationConfig, Followed)>,
    /// Who decides about requests, and the file that says so.
    pub authorization: Option<(AuthorizationConfig, Followed)>,
    /// Parts that others run.
    pub disabled: Vec<Part>,
    pub log: String,
    /// How long certificates are good.
    pub certificate_lifetime: SignedDuration,
    /// Of a node that `init` or `join` has made.
    pub kubeadm: Option<Kubeadm>,
}

impl Config {
    /// The address of cluster DNS: the tenth of the service network.
    pub fn dns(&self) -> Ipv4Addr {
        self.service_cidr.nth(10)
    }

    /// The address of the service `kubernetes`.
    pub fn api_service(&self) -> Ipv4Addr {
        self.service_cidr.nth(1)
    }
}

impl Flags {
    /// Reads the configuration file, and checks everything.
    pub fn resolve(&self) -> Result<Config> {
        let file = match &self.config {
            None => Flags::default(),
            Some(path) => read(path)?,
        };
        let text = |flag: &Option<String>, file: &Option<String>, default: &str| flag.clone().or_else(|| file.clone()).unwrap_or_else(|| default.into());
        let path = |flag: &Option<PathBuf>, file: &Option<PathBuf>, default: &str| {
            let path = flag.clone().or_else(|| file.clone()).unwrap_or_else(|| default.into());
            std::path::absolute(&path).with_context(|| format!("{} cannot be made absolute", path.display()))
        };
        let cluster_cidr = Cidr::parse("cluster-cidr", &text(&self.cluster_cidr, &file.cluster_cidr, "10.244.0.0/16"))?;
        let service_cidr = Cidr::parse("service-cidr", &text(&self.service_cidr, &file.service_cidr, "10.96.0.0/16"))?;
        ensure!(!cluster_cidr.overlaps(&service_cidr), "--cluster-cidr {cluster_cidr} and --service-cidr {service_cidr} overlap: choose networks that do not");
        ensure!(cluster_cidr.prefix <= 24, "--cluster-cidr {cluster_cidr} is too small: each node takes a /24 of it");
        ensure!(service_cidr.prefix <= 28, "--service-cidr {service_cidr} is too small: DNS has its tenth address");
        let node_name = match self.node_name.clone().or_else(|| file.node_name.clone()) {
            Some(name) => name,
            None => host_name()?,
        };
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if node_name.is_empty() || node_name.len() > 253 || !node_name.chars().all(label) || node_name.starts_with(['-', '.']) || node_name.ends_with(['-', '.']) {
            bail!("--node-name {node_name:?} cannot be the name of a node: use lower case letters, digits, '-' and '.'");
        }
        let all = |flag: &[String], file: &[String]| flag.iter().chain(file).cloned().collect::<Vec<_>>();
        let mut registry_cas = Vec::new();
        for path in self.registry_ca.iter().chain(&file.registry_ca) {
            registry_cas.push(std::fs::read(path).with_context(|| format!("--registry-ca: cannot read {}", path.display()))?);
        }
        let audit = self.audit(&file)?;
        let cluster_domain = text(&self.cluster_domain, &file.cluster_domain, "cluster.local");
        let authentication = followed(&self.authentication_config, &file.authentication_config)?.map(|followed| authentication(followed, &cluster_domain)).transpose()?;
        let authorization = followed(&self.authorization_config, &file.authorization_config)?.map(authorization).transpose()?;
        let etcd = Etcd::of(&self.etcd_with(&file))?;
        let member = self.member(&file)?;
        ensure!(member.is_none() || etcd.is_none(), "--etcd runs an etcd, and --etcd-servers names one that others run: say one of them");
        let every = self.snapshot_interval.as_deref().or(file.snapshot_interval.as_deref()).unwrap_or("12h");
        let every = if every == "0" { "0s" } else { every };
        let snapshots = (
            go_duration(every).with_context(|| format!("--snapshot-interval {every:?} is no duration: 6h, for one"))?,
            self.snapshot_keep.or(file.snapshot_keep).unwrap_or(5),
        );
        let control_plane_vip = self.control_plane_vip.or(file.control_plane_vip);
        let mut tls_san = all(&self.tls_san, &file.tls_san);
        tls_san.extend(control_plane_vip.map(|a| a.to_string()));
        let delay = self.shutdown_delay_duration.as_ref().or(file.shutdown_delay_duration.as_ref());
        let shutdown_delay = match delay {
            Some(text) => go_duration(text).with_context(|| format!("--shutdown-delay-duration {text:?} is no duration: 5s, for one"))?,
            None => std::time::Duration::from_secs((etcd.is_some() || member.is_some()).into()),
        };
        Ok(Config {
            data_dir: path(&self.data_dir, &file.data_dir, "/var/lib/knarr")?,
            run_dir: path(&self.run_dir, &file.run_dir, "/run/knarr")?,
            node_name,
            node_ip: self.node_ip.or(file.node_ip),
            secure_port: self.secure_port.or(file.secure_port).unwrap_or(6443),
            kubelet_port: self.kubelet_port.or(file.kubelet_port).unwrap_or(10250),
            cluster_cidr,
            service_cidr,
            cluster_domain,
            tls_san,
            control_plane_vip,
            snapshots,
            insecure_registries: all(&self.insecure_registry, &file.insecure_registry),
            registry_cas,
            audit,
            etcd,
            member,
            shutdown_delay,
            balancer_port: self.balancer_port.or(file.balancer_port),
            authentication,
            authorization,
            disabled: self.disable.iter().chain(&file.disable).copied().collect(),
            log: text(&self.log, &file.log, "info"),
            certificate_lifetime: self.certificate_lifetime(&file)?,
            kubeadm: file.kubeadm,
        })
    }

    fn certificate_lifetime(&self, file: &Flags) -> Result<SignedDuration> {
        let Some(text) = self.certificate_validity_period.as_ref().or(file.certificate_validity_period.as_ref()) else {
            return Ok(SignedDuration::from_hours(24 * 365));
        };
        let period = go_duration(text).with_context(|| format!("--certificate-validity-period {text:?} is no duration: 8760h, for one"))?;
        ensure!(period >= SHORTEST_LIFETIME, "--certificate-validity-period {text} is too short: certificates have to last 10s at least");
        SignedDuration::try_from(period).with_context(|| format!("--certificate-validity-period {text} is too long"))
    }

    fn member(&self, file: &Flags) -> Result<Option<Beside>> {
        let beside = Beside {
            program: self.etcd_program.clone().or_else(|| file.etcd_program.clone()),
            join: if self.etcd_join.is_empty() { file.etcd_join.clone() } else { self.etcd_join.clone() },
            client_port: self.etcd_client_port.or(file.etcd_client_port).unwrap_or(2379),
            peer_port: self.etcd_peer_port.or(file.etcd_peer_port).unwrap_or(2380),
        };
        ensure!(beside.client_port != beside.peer_port, "--etcd-client-port and --etcd-peer-port are both {}: give each its own", beside.client_port);
        let wanted = self.etcd || file.etcd;
        ensure!(wanted || (beside.program.is_none() && beside.join.is_empty()), "--etcd must be said where a member of etcd is to run: --etcd-program and --etcd-join tell how");
        Ok(wanted.then_some(beside))
    }

    fn etcd_with(&self, file: &Flags) -> EtcdArgs {
        let or = |flag: &Option<PathBuf>, file: &Option<PathBuf>| flag.clone().or_else(|| file.clone());
        EtcdArgs {
            etcd_servers: if self.etcd_servers.is_empty() { file.etcd_servers.clone() } else { self.etcd_servers.clone() },
            etcd_cafile: or(&self.etcd_cafile, &file.etcd_cafile),
            etcd_certfile: or(&self.etcd_certfile, &file.etcd_certfile),
            etcd_keyfile: or(&self.etcd_keyfile, &file.etcd_keyfile),
            etcd_prefix: self.etcd_prefix.clone().or_else(|| file.etcd_prefix.clone()),
        }
    }

    fn audit(&self, file: &Flags) -> Result<apiserver::audit::Config> {
        let absolute = |flag: &Option<PathBuf>, file: &Option<PathBuf>| -> Result<Option<PathBuf>> {
            let Some(path) = flag.as_ref().or(file.as_ref()) else { return Ok(None) };
            if path.as_os_str() == "-" {
                return Ok(Some(path.clone()));
            }
            std::path::absolute(path).map(Some).with_context(|| format!("{} cannot be made absolute", path.display()))
        };
        let mut audit = apiserver::audit::Config { policy_file: absolute(&self.audit_policy_file, &file.audit_policy_file)?, ..Default::default() };
        audit.webhook.config_file = absolute(&self.audit_webhook_config_file, &file.audit_webhook_config_file)?;
        if let Some(path) = absolute(&self.audit_log_path, &file.audit_log_path)? {
            audit.log.path = path.to_str().with_context(|| format!("--audit-log-path {} is no text", path.display()))?.into();
        }
        let number = |flag: Option<u32>, file: Option<u32>, default: i64| flag.or(file).map_or(default, i64::from);
        audit.log.max_age = number(self.audit_log_maxage, file.audit_log_maxage, audit.log.max_age);
        audit.log.max_backups = number(self.audit_log_maxbackup, file.audit_log_maxbackup, audit.log.max_backups);
        audit.log.max_size = number(self.audit_log_maxsize, file.audit_log_maxsize, audit.log.max_size);
        audit.check()?;
        Ok(audit)
    }

    /// The same flags as arguments for another process.
    pub fn arguments(&self) -> Vec<std::ffi::OsString> {
        let mut arguments: Vec<std::ffi::OsString> = Vec::new();
        let mut add = |name: &str, value: Option<std::ffi::OsString>| {
            if let Some(value) = value {
                arguments.push(format!("--{name}").into());
                arguments.push(value);
            }
        };
        let absolute = |p: &PathBuf| std::path::absolute(p).unwrap_or_else(|_| p.clone()).into_os_string();
        add("config", self.config.as_ref().map(absolute));
        add("data-dir", self.data_dir.as_ref().map(absolute));
        add("run-dir", self.run_dir.as_ref().map(absolute));
        add("node-name", self.node_name.clone().map(Into::into));
        add("node-ip", self.node_ip.map(|a| a.to_string().into()));
        add("secure-port", self.secure_port.map(|p| p.to_string().into()));
        add("kubelet-port", self.kubelet_port.map(|p| p.to_string().into()));
        add("cluster-cidr", self.cluster_cidr.clone().map(Into::into));
        add("service-cidr", self.service_cidr.clone().map(Into::into));
        add("cluster-domain", self.cluster_domain.clone().map(Into::into));
        add("log", self.log.clone().map(Into::into));
        add("certificate-validity-period", self.certificate_validity_period.clone().map(Into::into));
        let log = |p: &PathBuf| if p.as_os_str() == "-" { p.clone().into_os_string() } else { absolute(p) };
        add("audit-policy-file", self.audit_policy_file.as_ref().map(absolute));
        add("audit-log-path", self.audit_log_path.as_ref().map(log));
        add("audit-log-maxage", self.audit_log_maxage.map(|n| n.to_string().into()));
        add("audit-log-maxbackup", self.audit_log_maxbackup.map(|n| n.to_string().into()));
        add("audit-log-maxsize", self.audit_log_maxsize.map(|n| n.to_string().into()));
        add("audit-webhook-config-file", self.audit_webhook_config_file.as_ref().map(absolute));
        self.etcd_servers.iter().for_each(|s| add("etcd-servers", Some(s.into())));
        add("etcd-cafile", self.etcd_cafile.as_ref().map(absolute));
        add("etcd-certfile", self.etcd_certfile.as_ref().map(absolute));
        add("etcd-keyfile", self.etcd_keyfile.as_ref().map(absolute));
        add("etcd-prefix", self.etcd_prefix.clone().map(Into::into));
        add("etcd-program", self.etcd_program.as_ref().map(absolute));
        self.etcd_join.iter().for_each(|s| add("etcd-join", Some(s.into())));
        add("etcd-client-port", self.etcd_client_port.map(|p| p.to_string().into()));
        add("etcd-peer-port", self.etcd_peer_port.map(|p| p.to_string().into()));
        add("shutdown-delay-duration", self.shutdown_delay_duration.clone().map(Into::into));
        add("control-plane-vip", self.control_plane_vip.map(|a| a.to_string().into()));
        add("snapshot-interval", self.snapshot_interval.clone().map(Into::into));
        add("snapshot-keep", self.snapshot_keep.map(|n| n.to_string().into()));
        add("balancer-port", self.balancer_port.map(|p| p.to_string().into()));
        add("authentication-config", self.authentication_config.as_ref().map(absolute));
        add("authorization-config", self.authorization_config.as_ref().map(absolute));
        self.disable.iter().for_each(|part| add("disable", Some(part.name().into())));
        self.tls_san.iter().for_each(|s| add("tls-san", Some(s.into())));
        self.insecure_registry.iter().for_each(|s| add("insecure-registry", Some(s.into())));
        self.registry_ca.iter().for_each(|s| add("registry-ca", Some(absolute(s))));
        if self.etcd {
            arguments.push("--etcd".into());
        }
        arguments
    }
}

/// Issuer of service account tokens.
pub fn issuer(cluster_domain: &str) -> String {
    format!("https://kubernetes.default.svc.{cluster_domain}")
}

fn followed(flag: &Option<PathBuf>, file: &Option<PathBuf>) -> Result<Option<Followed>> {
    let Some(path) = flag.as_ref().or(file.as_ref()) else { return Ok(None) };
    let path = std::path::absolute(path).with_context(|| format!("{} cannot be made absolute", path.display()))?;
    Followed::read(&path).map(Some)
}

fn authentication(file: Followed, cluster_domain: &str) -> Result<(AuthenticationConfig, Followed)> {
    let named = || format!("--authentication-config {}", file.path.display());
    let config = AuthenticationConfig::from_text(&file.text).with_context(named)?;
    config.check(&[issuer(cluster_domain)]).with_context(named)?;
    Ok((config, file))
}

/// A node has to come to its rights, and its administrator, too; nobody to all of them.
fn authorization(file: Followed) -> Result<(AuthorizationConfig, Followed)> {
    let named = || format!("--authorization-config {}", file.path.display());
    let config = AuthorizationConfig::from_text(&file.text, &["Node", "RBAC"]).with_context(named)?;
    ensure!(!config.0.contains(&AuthorizationMode::AlwaysAllow), "{}: AlwaysAllow is for kube-apiserver alone", named());
    Ok((config, file))
}

fn read(path: &Path) -> Result<Flags> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the configuration {}", path.display()))?;
    if text.trim().is_empty() {
        return Ok(Flags::default());
    }
    serde_saphyr::from_str(&text).map_err(|error| anyhow::anyhow!("the configuration {} cannot be used: {error}", path.display()))
}

pub fn host_name() -> Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").context("the host's name cannot be read; give --node-name")?;
    Ok(text.trim().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut Flags)) -> Result<Config> {
        let mut flags = Flags { node_name: Some("n".into()), ..Flags::default() };
        change(&mut flags);
        flags.resolve()
    }

    #[test]
    fn bad_values_are_named_with_what_to_do() {
        type Change = Box<dyn FnOnce(&mut Flags)>;
        let cases: [(Change, &str); 5] = [
            (Box::new(|f| f.cluster_cidr = Some("10.244.0.0".into())), "is not a network: it has no /"),
            (Box::new(|f| f.cluster_cidr = Some("10.244.1.0/16".into())), "10.244.0.0/16 is meant?"),
            (Box::new(|f| f.service_cidr = Some("10.244.0.0/20".into())), "overlap: choose networks that do not"),
            (Box::new(|f| f.node_name = Some("My_Node".into())), "use lower case letters"),
            (Box::new(|f| f.config = Some("/nowhere/config.yaml".into())), "cannot read the configuration /nowhere/config.yaml"),
        ];
        for (change, expected) in cases {
            let error = format!("{:#}", with(change).expect_err(expected));
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn flags_go_before_the_file_and_unknown_names_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, "secure-port: 7443\ncluster-domain: example.test\n").expect("written");
        let config = with(|f| {
            f.config = Some(file.clone());
            f.secure_port = Some(8443);
        })
        .expect("a configuration");
        assert_eq!((config.secure_port, config.cluster_domain.as_str()), (8443, "example.test"));
        std::fs::write(&file, "secure-prt: 7443\n").expect("written");
        let error = format!("{:#}", with(|f| f.config = Some(file.clone())).expect_err("an unknown name"));
        assert!(error.contains("secure-prt") && error.contains("config.yaml"), "{error}");
    }

    #[test]
    fn who_is_known_and_who_decides() {
        let dir = tempfile::tempdir().expect("a directory");
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("apiVersion: apiserver.config.k8s.io/v1\n{text}")).expect("written");
            Some(path)
        };
        let authentication = put("a", "kind: AuthenticationConfiguration\njwt: [{issuer: {url: 'https://a.example.com', audiences: [k]}, claimMappings: {username: {expression: claims.sub}}}]");
        let authorization = put("z", "kind: AuthorizationConfiguration\nauthorizers: [{type: Node, name: node}, {type: RBAC, name: rbac}]");
        let config = with(|f| (f.authentication_config, f.authorization_config) = (authentication.clone(), authorization)).expect("a configuration");
        assert_eq!(config.authentication.expect("issuers").0.jwt[0].url, "https://a.example.com");
        assert_eq!(config.authorization.expect("authorizers").0.0, [AuthorizationMode::Node, AuthorizationMode::Rbac]);
        let why = |change: &dyn Fn(&mut Flags)| format!("{:#}", with(change).expect_err("it is refused"));
        let rbac = put("rbac", "kind: AuthorizationConfiguration\nauthorizers: [{type: RBAC, name: rbac}]");
        assert!(why(&|f| f.authorization_config = rbac.clone()).ends_with("missing required types: [Node]"));
        let all = put("all", "kind: AuthorizationConfiguration\nauthorizers: [{type: Node, name: node}, {type: RBAC, name: rbac}, {type: AlwaysAllow, name: alwaysallow}]");
        assert!(why(&|f| f.authorization_config = all.clone()).contains("AlwaysAllow is for kube-apiserver alone"));
        let own = put("own", "kind: AuthenticationConfiguration\njwt: [{issuer: {url: 'https://kubernetes.default.svc.cluster.local', audiences: [k]}, claimMappings: {username: {expression: claims.sub}}}]");
        assert!(why(&|f| f.authentication_config = own.clone()).contains("URL must not overlap with disallowed issuers"));
        assert!(why(&|f| f.authentication_config = Some("/nowhere/file".into())).contains("cannot read /nowhere/file"));
    }

    #[test]
    fn auditing() {
        let dir = tempfile::tempdir().expect("a directory");
        let policy = dir.path().join("policy.yaml");
        std::fs::write(&policy, "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n").expect("written");
        let flags = Flags {
            node_name: Some("n".into()),
            audit_policy_file: Some(policy.clone()),
            audit_log_path: Some("-".into()),
            audit_log_maxbackup: Some(3),
            ..Flags::default()
        };
        let audit = flags.resolve().expect("a configuration").audit;
        assert_eq!((audit.policy_file.as_ref(), audit.log.path.as_str(), audit.log.max_backups, audit.log.max_age), (Some(&policy), "-", 3, 366));
        let arguments = flags.arguments().join(std::ffi::OsStr::new(" "));
        assert!(arguments.to_string_lossy().contains("--audit-log-path - --audit-log-maxbackup 3"), "{arguments:?}");
        std::fs::write(&policy, "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Much}]\n").expect("written");
        let error = format!("{:#}", flags.resolve().expect_err("no level"));
        assert!(error.contains("rules[0].level: Unsupported value: \"Much\""), "{error}");
    }

    #[test]
    fn addresses_of_the_service_network() {
        let config = with(|_| {}).expect("defaults");
        assert_eq!(config.dns().to_string(), "10.96.0.10");
        assert_eq!(config.api_service().to_string(), "10.96.0.1");
    }
}
