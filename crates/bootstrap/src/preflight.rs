//! What must be so before anything is changed, under upstream's names of checks. Each finding says what is so, why it
//! matters, and what to do.

mod disk;
pub mod etcd;
pub mod firewall;
pub mod peers;
pub mod runtime;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use jiff::Timestamp;

use crate::config::{ClusterConfiguration, InitConfig, JoinConfiguration};
use crate::error::{Error, Result, refused};
use crate::files::Place;
use crate::fixes::Fix;
use crate::host::Host;

/// The port of the kubelet.
pub const KUBELET_PORT: u16 = 10250;
/// Whether the kernel passes packets on.
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// What a check found.
#[derive(Debug, PartialEq)]
pub struct Finding {
    /// The check.
    pub check: String,
    /// What, why, and the fix.
    pub text: String,
    /// Whether it stops nothing.
    pub warning: bool,
    /// What would take it away, where that is safe and can be taken back.
    pub fix: Option<Fix>,
}

/// Findings of several checks.
#[derive(Default)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    /// Something that stops the command.
    pub fn error(&mut self, check: impl Into<String>, text: impl Into<String>) {
        self.0.push(Finding { check: check.into(), text: text.into(), warning: false, fix: None });
    }

    /// Something worth knowing.
    pub fn warn(&mut self, check: impl Into<String>, text: impl Into<String>) {
        self.0.push(Finding { check: check.into(), text: text.into(), warning: true, fix: None });
    }

    /// What would take away the one that was found last.
    fn fixed_by(&mut self, fix: Fix) {
        if let Some(last) = self.0.last_mut() {
            last.fix = Some(fix);
        }
    }

    /// Whatever would take some of them away.
    pub fn fixes(&self) -> Vec<Fix> {
        self.0.iter().filter_map(|f| f.fix.clone()).collect()
    }

    fn hint(&self) {
        if self.0.iter().any(|f| f.fix.is_some()) {
            eprintln!("[preflight] --fix mends what can be mended safely, and reset takes that back");
        }
    }

    /// Prints all; an error if one stops the command and is not to be ignored.
    pub fn report(self, ignored: &BTreeSet<String>) -> Result<()> {
        self.hint();
        let ignores = |check: &str| ignored.contains("all") || ignored.contains(&check.to_lowercase());
        let (warnings, errors): (Vec<_>, Vec<_>) = self.0.into_iter().partition(|f| f.warning || ignores(&f.check));
        for finding in warnings {
            eprintln!("\t[WARNING {}]: {}", finding.check, finding.text);
        }
        if errors.is_empty() {
            return Ok(());
        }
        eprintln!("[preflight] Some fatal errors occurred:");
        for finding in errors {
            eprintln!("\t[ERROR {}]: {}", finding.check, finding.text);
        }
        eprintln!("[preflight] If you know what you are doing, you can make a check non-fatal with `--ignore-preflight-errors=...`");
        Err(Error::Preflight)
    }
}

/// The names of checks whose findings are to be warnings.
pub fn ignored(flags: &[String], file: &[String]) -> Result<BTreeSet<String>> {
    let all: BTreeSet<String> = flags.iter().chain(file).map(|name| name.to_lowercase()).collect();
    if all.contains("all") && all.len() > 1 {
        let list = all.into_iter().collect::<Vec<_>>().join(",");
        return refused(format!("ignore-preflight-errors: Invalid value: {list:?}: don't specify individual checks if 'all' is used"));
    }
    Ok(all)
}

/// Only root may do what a node does.
pub fn root(ignored: &BTreeSet<String>) -> Result<()> {
    let mut findings = Findings::default();
    if !rustix::process::geteuid().is_root() {
        findings.error("IsPrivilegedUser", "user is not running as root: certificates, namespaces and packet filters need it; run it with sudo");
    }
    findings.report(ignored)
}

/// Checks a machine that becomes a cluster's first control plane, or another one.
pub fn init(host: &dyn Host, place: &Place, config: &InitConfig, first: bool, downloads: bool) -> Findings {
    let mut findings = Findings::default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus < 2 {
        findings.error("NumCPU", format!("the number of available CPUs {cpus} is less than the required 2: a control plane on one is slow; give the machine another"));
    }
    if let Some(megabytes) = memory().filter(|m| *m < 1700) {
        findings.error("Mem", format!("the system RAM ({megabytes} MB) is less than the minimum 1700 MB: pods would be killed for memory; give the machine more"));
    }
    port(&mut findings, config.init.local_api_endpoint.bind_port, "the API server listens there");
    for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd"] {
        let path = place.kubernetes.join("manifests").join(format!("{name}.yaml"));
        absent(&mut findings, &path, "a control plane of static pods is on this machine: kubeadm reset of its version takes it away");
    }
    if config.cluster.etcd.local.is_some() {
        port(&mut findings, 2379, "etcd serves its clients there");
        port(&mut findings, 2380, "etcd's members talk to each other there");
        empty(&mut findings, &host.data_dir().join("etcd/data"), "it holds another cluster's data: kubeadm reset removes them");
        disk::check(&mut findings, host.data_dir());
    }
    firewalls(&mut findings, &firewall::ports(Some(config.init.local_api_endpoint.bind_port), config.cluster.etcd.local.is_some()));
    if !downloads {
        certificates(&mut findings, Path::new(&config.cluster.certificates_dir), Timestamp::now());
    }
    proxy(&mut findings, &config.init.local_api_endpoint.advertise_address);
    if first {
        networks(&mut findings, &config.cluster);
    }
    etcd(&mut findings, &config.cluster, downloads);
    if first {
        common(&mut findings, host, place, &config.init.node_registration.name);
    }
    findings
}

/// Checks a machine that joins.
pub fn join(host: &dyn Host, place: &Place, config: &JoinConfiguration) -> Findings {
    let mut findings = Findings::default();
    let again = "this machine has joined a cluster already, or has begun to: kubeadm reset takes that back";
    absent(&mut findings, &place.conf("kubelet"), again);
    absent(&mut findings, &place.conf("bootstrap-kubelet"), again);
    if config.control_plane.is_none() {
        absent(&mut findings, Path::new(&config.ca_cert_path), again);
    }
    if let Some(token) = &config.discovery.bootstrap_token {
        proxy(&mut findings, token.api_server_endpoint.rsplit_once(':').map_or("", |e| e.0));
    }
    if config.control_plane.is_none() {
        firewalls(&mut findings, &firewall::ports(None, false));
    }
    common(&mut findings, host, place, &config.node_registration.name);
    findings
}

fn common(findings: &mut Findings, host: &dyn Host, place: &Place, node: &str) {
    if let Err(lacking) = host.kernel() {
        findings.error("SystemVerification", lacking.text);
        if !lacking.modules.is_empty() {
            findings.fixed_by(Fix::Modules(lacking.modules));
        }
    }
    if std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1) {
        findings.warn("Swap", "swap is supported for cgroup v2 only: limits of memory do not hold for what is swapped; turn it off with swapoff -a, and take it out of /etc/fstab");
        findings.fixed_by(Fix::SwapOff);
    }
    if std::fs::read_to_string("/sys/fs/selinux/enforce").is_ok_and(|text| text.trim() == "1") {
        findings.warn("SELinux", "SELinux is enforcing, and containers run unlabelled: what hostPath volumes lead to may be refused; setenforce 0, and SELINUX=permissive in /etc/selinux/config");
    }
    if !api::names::dns1123_subdomain(node).is_empty() {
        findings.warn("Hostname", format!("invalid node name format {node:?}: use lower case letters, digits, '-' and '.'"));
    }
    if !resolves(node) {
        findings.warn("Hostname", format!("hostname \"{node}\" could not be reached: others may not find this machine by its name; a line in /etc/hosts helps"));
        if api::names::dns1123_subdomain(node).is_empty() {
            findings.fixed_by(Fix::Host { address: host.facts().address, name: node.into() });
        }
    }
    if let Some(pid) = host.running() {
        let text = format!("a node of knarr's runs on this machine already (process {pid}): kubeadm reset, or knarr down, ends it");
        findings.error("NodeRunning", text);
    }
    absent(findings, &place.process(), "this machine is part of a cluster already: kubeadm reset takes that back");
    empty(findings, &host.data_dir().join("store"), "it holds the objects of another cluster: kubeadm reset, or knarr down --purge, removes them");
    port(findings, KUBELET_PORT, "the kubelet listens there");
    if std::fs::read_to_string(IP_FORWARD).is_ok_and(|text| text.trim() != "1") {
        let text = format!(
            "{IP_FORWARD} contents are not set to 1: nothing would be passed on between pods and other machines; the node sets it when it starts. \
             So that nothing else takes that back: echo net.ipv4.ip_forward=1 > /etc/sysctl.d/kubernetes.conf; sysctl --system"
        );
        findings.warn(format!("FileContent-{}", dashed(Path::new(IP_FORWARD))), text);
        findings.fixed_by(Fix::Sysctl("net/ipv4/ip_forward", "1"));
    }
}

/// Firewalls that keep others away from what must be reached here.
fn firewalls(findings: &mut Findings, needed: &[firewall::Needed]) {
    let firewalld = process("firewalld");
    if firewalld {
        let list: Vec<String> = needed.iter().map(firewall::Needed::text).filter(|port| !let_in(port)).collect();
        if !list.is_empty() {
            let flags: Vec<String> = list.iter().map(|p| format!("--add-port={p}")).collect();
            let text = format!(
                "firewalld is active, please ensure ports [{}] are open or your cluster may not function correctly: firewall-cmd --permanent {}; firewall-cmd --reload",
                list.join(" "),
                flags.join(" ")
            );
            findings.warn("Firewalld", text);
            findings.fixed_by(Fix::Firewalld(list));
        }
    }
    firewall::check(findings, needed, firewalld);
}

/// Whether firewalld's default zone says that a port is open.
fn let_in(port: &str) -> bool {
    let asked = Command::new("firewall-cmd").arg(format!("--query-port={port}")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

/// Certificates that are there already, and are not good now.
fn certificates(findings: &mut Findings, dir: &Path, now: Timestamp) {
    for cert in &crate::certs::ALL {
        let path = dir.join(format!("{}.crt", cert.base));
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        // One that cannot be read is refused where it is used.
        let Ok(peer) = pki::Peer::from_pem(&text) else { continue };
        let date = |seconds: i64| api::gotime::format(seconds);
        let why = if peer.not_before > now.as_second() {
            format!("is not valid before {}, and it is {} here: set the clock (timedatectl set-ntp true, or chrony), or have it made anew", date(peer.not_before), date(now.as_second()))
        } else if peer.not_after < now.as_second() {
            format!("has ended at {}: remove it, so that it is made anew, or set the clock if that is wrong (timedatectl set-ntp true, or chrony)", date(peer.not_after))
        } else {
            continue;
        };
        findings.error(format!("CertificateValidity-{}", cert.name), format!("the certificate in {} {why}", path.display()));
    }
}

fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kb| kb / 1024)
}

/// What upstream appends to the name of a check of a path.
fn dashed(path: &Path) -> String {
    path.display().to_string().replace('/', "-")
}

fn absent(findings: &mut Findings, path: &Path, why: &str) {
    if path.exists() {
        findings.error(format!("FileAvailable-{}", dashed(path)), format!("{} already exists: {why}", path.display()));
    }
}

fn empty(findings: &mut Findings, dir: &Path, why: &str) {
    if std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        findings.error(format!("DirAvailable-{}", dashed(dir)), format!("{} is not empty: {why}", dir.display()));
    }
}

fn port(findings: &mut Findings, port: u16, why: &str) {
    if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_err() {
        findings.error(format!("Port-{port}"), format!("Port {port} is in use: {why}; ss -ltnp 'sport = :{port}' names who has it"));
    }
}

/// Whether a name has an address. Who does not answer soon counts as silent.
fn resolves(name: &str) -> bool {
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let listed = |line: &str| line.split('#').next().unwrap_or_default().split_whitespace().skip(1).any(|n| n.eq_ignore_ascii_case(name));
    if hosts.lines().any(listed) {
        return true;
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let name = format!("{name}:0");
    // It may outlive this question; nobody listens then.
    std::thread::spawn(move || sender.send(std::net::ToSocketAddrs::to_socket_addrs(&name).is_ok_and(|mut all| all.next().is_some())));
    receiver.recv_timeout(Duration::from_millis(300)).unwrap_or(false)
}

fn proxy(findings: &mut Findings, host: &str) {
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let Some(proxy) = variable("HTTPS_PROXY").or_else(|| variable("https_proxy")) else { return };
    let excluded = variable("NO_PROXY").or_else(|| variable("no_proxy")).unwrap_or_default();
    if !host.is_empty() && !excluded.split(',').any(|n| n.trim() == host || n.trim() == "*") {
        findings.warn("HTTPProxy", format!("Connection to \"https://{host}\" uses proxy {proxy:?}. If that is not intended, adjust your proxy settings: kubectl would go through it too; add {host} to NO_PROXY"));
    }
}

fn process(name: &str) -> bool {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.map(|e| e.path().join("comm")).any(|path| std::fs::read_to_string(path).is_ok_and(|comm| comm.trim() == name))
}

fn etcd(findings: &mut Findings, cluster: &ClusterConfiguration, downloads: bool) {
    let Some(external) = cluster.etcd.external.as_ref().filter(|_| !downloads) else { return };
    for path in [&external.ca_file, &external.cert_file, &external.key_file].into_iter().filter(|p| !p.is_empty() && !Path::new(p).exists()) {
        findings.error("ExternalEtcdClientCertificates", format!("{path} doesn't exist: etcd is not reached without it; copy it here"));
    }
}

/// A network as address and mask.
fn network(text: &str) -> Option<(u32, u32)> {
    let (address, prefix) = text.split_once('/')?;
    let prefix: u32 = prefix.parse().ok().filter(|p| *p <= 32)?;
    let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
    Some((u32::from(address.parse::<Ipv4Addr>().ok()?) & mask, mask))
}

fn networks(findings: &mut Findings, cluster: &ClusterConfiguration) {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    for (name, cidr) in [("pod", &cluster.networking.pod_subnet), ("service", &cluster.networking.service_subnet)] {
        for (link, route) in overlaps(&routes, cidr) {
            findings.error("CIDROverlap", format!("the {name} network {cidr} overlaps with the route to {route} over {link}: what is there could not be reached any more; choose another network"));
        }
    }
    let own = (network(&cluster.networking.pod_subnet), network(&cluster.networking.service_subnet));
    if let (Some(pods), Some(services)) = own
        && pods.0 & services.1 & pods.1 == services.0 & services.1 & pods.1
    {
        let net = &cluster.networking;
        findings.error("CIDROverlap", format!("the pod network {} and the service network {} overlap: choose networks that do not", net.pod_subnet, net.service_subnet));
    }
}

/// Routes of this host, as the kernel lists them, that share addresses with a network; knarr's own links aside.
fn overlaps(routes: &str, cidr: &str) -> Vec<(String, String)> {
    let Some((base, mask)) = network(cidr) else { return Vec::new() };
    let mut found = Vec::new();
    for line in routes.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|w| u32::from_str_radix(w, 16).ok()).map(u32::swap_bytes);
        let (Some(link), Some(to), Some(its)) = (words.first(), number(1), number(7)) else { continue };
        if its != 0 && !link.starts_with("knarr") && (to & mask & its) == (base & mask & its) {
            found.push((link.to_string(), format!("{}/{}", Ipv4Addr::from(to), its.count_ones())));
        }
    }
    found
}

/// Flags of upstream's components that the node's own process takes, or needs no telling of; others are refused.
pub fn extra_flags(findings: &mut Findings, config: &InitConfig) {
    for (component, flags, taken) in [
        ("apiServer", &config.cluster.api_server.extra_args, API_SERVER),
        ("controllerManager", &config.cluster.controller_manager.extra_args, CONTROLLER_MANAGER),
        ("scheduler", &config.cluster.scheduler.extra_args, SCHEDULER),
    ] {
        for flag in flags {
            let same = |(name, value): &(&str, &str)| *name == flag.name && (*value == "*" || *value == flag.value);
            if !taken.iter().any(same) {
                let text = format!(
                    "{component}.extraArgs: --{} {:?} has no effect: the control plane runs in the node's own process, with settings of its own; take it out, \
                     or ignore this check to go on without it",
                    flag.name, flag.value
                );
                findings.error("ExtraArgs", text);
            }
        }
    }
}

/// Flags whose values are passed on (`*`), or are so anyway.
const API_SERVER: &[(&str, &str)] = &[
    ("audit-policy-file", "*"),
    ("audit-log-path", "*"),
    ("audit-log-maxage", "*"),
    ("audit-log-maxbackup", "*"),
    ("audit-log-maxsize", "*"),
    ("audit-webhook-config-file", "*"),
    ("authentication-config", "*"),
    ("authorization-config", "*"),
    ("authorization-mode", "Node,RBAC"),
    ("enable-admission-plugins", "NodeRestriction"),
    ("allow-privileged", "true"),
    ("enable-bootstrap-token-auth", "true"),
    ("service-node-port-range", "30000-32767"),
    ("anonymous-auth", "true"),
    ("profiling", "true"),
    ("v", "*"),
];
const CONTROLLER_MANAGER: &[(&str, &str)] =
    &[("allocate-node-cidrs", "true"), ("node-cidr-mask-size", "24"), ("node-cidr-mask-size-ipv4", "24"), ("bind-address", "*"), ("controllers", "*,bootstrapsigner,tokencleaner"), ("v", "*")];
const SCHEDULER: &[(&str, &str)] = &[("bind-address", "*"), ("v", "*")];

/// Files that must be there for what was asked, and are not.
pub fn control_plane_files(missing: &[PathBuf]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.iter().map(|p| format!("failure loading certificate: couldn't load {}", p.display())).collect::<Vec<_>>().join(", ");
    refused(format!(
        "One or more conditions for hosting a new control plane instance is not satisfied.\n\n[{list}]\n\nPlease ensure that:\n\
         * The cluster has a stable controlPlaneEndpoint address.\n* The certificates that must be shared among control plane instances are provided.\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_can_be_ignored_by_name_and_in_any_case() {
        let findings = || {
            let mut all = Findings::default();
            all.error("Port-6443", "in use");
            all.warn("Swap", "on");
            all
        };
        assert!(findings().report(&BTreeSet::new()).is_err());
        assert!(findings().report(&ignored(&["PORT-6443".into()], &[]).expect("names")).is_ok());
        assert!(findings().report(&ignored(&[], &["all".into()]).expect("names")).is_ok());
        assert!(findings().report(&ignored(&["Swap".into()], &[]).expect("names")).is_err());
        assert!(ignored(&["all".into(), "Swap".into()], &[]).expect_err("both").to_string().contains("don't specify individual checks"));
    }

    #[test]
    fn routes_that_share_addresses() {
        // 10.244.7.0/24 over eth1, the default route, and a link of ours
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth1\t0007F40A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
knarr0\t0008F40A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
";
        assert_eq!(overlaps(routes, "10.244.0.0/16"), [("eth1".to_string(), "10.244.7.0/24".to_string())]);
        assert_eq!(overlaps(routes, "10.244.7.128/25").len(), 1);
        assert!(overlaps(routes, "10.96.0.0/12").is_empty());
    }

    #[test]
    fn certificates_that_are_there_must_be_good_now() {
        let dir = tempfile::tempdir().expect("a directory");
        let made: Timestamp = "2026-05-01T10:00:00Z".parse().expect("a time");
        let ca = pki::Ca::new("kubernetes", made, jiff::SignedDuration::from_hours(48)).expect("a CA");
        std::fs::write(dir.path().join("ca.crt"), ca.cert_pem()).expect("written");
        let at = |time: &str| {
            let mut findings = Findings::default();
            certificates(&mut findings, dir.path(), time.parse().expect("a time"));
            findings.0.pop().map(|f| (f.check, f.text))
        };
        assert_eq!(at("2026-05-02T10:00:00Z"), None);
        let (check, text) = at("2026-04-30T10:00:00Z").expect("too early");
        assert!(check == "CertificateValidity-ca" && text.contains("is not valid before 2026-05-01T09:55:00Z, and it is 2026-04-30T10:00:00Z here"), "{text}");
        assert!(at("2026-05-04T10:00:00Z").expect("too late").1.contains("has ended at 2026-05-03T10:00:00Z"));
    }

    #[test]
    fn flags_that_mean_nothing_here_are_refused() {
        let mut config = InitConfig::default();
        let arg = |name: &str, value: &str| crate::config::Arg { name: name.into(), value: value.into() };
        config.cluster.api_server.extra_args = vec![arg("audit-log-path", "/var/log/a"), arg("authorization-mode", "Node,RBAC"), arg("authorization-mode", "AlwaysAllow")];
        let mut findings = Findings::default();
        extra_flags(&mut findings, &config);
        assert_eq!(findings.0.len(), 1);
        assert!(findings.0[0].text.contains("AlwaysAllow") && findings.0[0].check == "ExtraArgs");
    }
}
