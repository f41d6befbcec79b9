//! The kubeconfig files of a control plane, and those for more users.

use jiff::SignedDuration;
use pki::{CertRequest, Credentials, Kubeconfig, Usage};

use crate::certs::{Authority, endpoint, local_endpoint};
use crate::error::{Doing, Result, refused};
use crate::files::{self, Place};

/// A user, and whether it talks to the API server of its own machine.
pub struct Spec {
    /// `admin`, for `admin.conf`.
    pub file: &'static str,
    /// What it is.
    pub about: &'static str,
    user: &'static str,
    group: &'static str,
    local: bool,
}

impl Spec {
    /// User and group; the kubelet's is the node's.
    pub fn subject(&self, node: &str) -> (String, &'static str) {
        let user = if self.file == "kubelet" { format!("{}{node}", self.user) } else { self.user.into() };
        (user, self.group)
    }

    /// Whether its user talks to the API server of the same machine.
    pub fn is_local(&self) -> bool {
        self.local
    }
}

/// The kubeconfigs in their order.
pub const ALL: [Spec; 5] = [
    Spec { file: "admin", about: "certificate embedded in the kubeconfig file for the admin to use and for kubeadm itself", user: "kubernetes-admin", group: "kubeadm:cluster-admins", local: false },
    Spec { file: "super-admin", about: "certificate embedded in the kubeconfig file for the super-admin", user: "kubernetes-super-admin", group: "system:masters", local: false },
    Spec { file: "kubelet", about: "certificate embedded in the kubeconfig file for the kubelet to use", user: "system:node:", group: "system:nodes", local: true },
    Spec { file: "controller-manager", about: "certificate embedded in the kubeconfig file for the controller manager to use", user: "system:kube-controller-manager", group: "", local: true },
    Spec { file: "scheduler", about: "certificate embedded in the kubeconfig file for the scheduler manager to use", user: "system:kube-scheduler", group: "", local: true },
];

/// A kubeconfig of one user of a cluster.
pub fn entry(cluster: &str, user: &str, server: &str, ca_pem: &str, credentials: Credentials) -> Kubeconfig {
    Kubeconfig { context: format!("{user}@{cluster}"), cluster: cluster.into(), user: user.into(), server: server.into(), ca_pem: ca_pem.into(), credentials }
}

/// A user's certificate by the cluster's CA, as a kubeconfig.
pub fn for_user(authority: &Authority<'_>, server: &str, user: &str, groups: &[String], lifetime: SignedDuration) -> Result<String> {
    let ca = authority.load(&crate::certs::ALL[0])?;
    let request = CertRequest { cn: user.into(), orgs: groups.to_vec(), sans: Vec::new(), usages: vec![Usage::Client], lifetime };
    let pair = ca.issue_for_key(&request, &authority.key()?, authority.now).doing(|| format!("failure while creating {user} client certificate"))?;
    let credentials = Credentials::Certificate { cert_pem: pair.cert_pem, key_pem: pair.key_pem };
    pki::kubeconfig(&entry(&authority.cluster.cluster_name, user, server, ca.cert_pem(), credentials)).doing(|| "writing a kubeconfig".into())
}

/// Writes one of the files, or checks that the one that is there leads to this cluster.
pub fn write(authority: &Authority<'_>, place: &Place, port: u16, spec: &Spec) -> Result<()> {
    let path = place.conf(spec.file);
    if path.exists() {
        check(authority, place, port, spec)?;
        println!("[kubeconfig] Using existing kubeconfig file: {:?}", path.display().to_string());
        return Ok(());
    }
    println!("[kubeconfig] Writing {:?} kubeconfig file", format!("{}.conf", spec.file));
    let (user, group) = spec.subject(authority.node);
    let groups: Vec<String> = Some(group.to_string()).filter(|g| !g.is_empty()).into_iter().collect();
    let text = for_user(authority, &server(authority, port, spec), &user, &groups, authority.leaf_lifetime())?;
    files::write(&path, text.as_bytes(), 0o600)
}

/// Where the user of a file finds the cluster.
fn server(authority: &Authority<'_>, port: u16, spec: &Spec) -> String {
    if spec.local { local_endpoint(authority.address, port) } else { endpoint(authority.cluster, authority.address, port) }
}

/// Checks that a file that is there leads to this cluster.
fn check(authority: &Authority<'_>, place: &Place, port: u16, spec: &Spec) -> Result<()> {
    let (path, server) = (place.conf(spec.file), server(authority, port, spec));
    let there = client::Entry::read(&path).doing(|| format!("failed to load kubeconfig file {} that already exists on disk", path.display()))?;
    let ca = files::read(&authority.dir.join("ca.crt"))?;
    if pki::pem_decode(&there.ca).first() != pki::pem_decode(&ca).first() {
        return refused(format!("a kubeconfig file {:?} exists already but has got the wrong CA cert", path.display().to_string()));
    }
    if there.server != server {
        println!("[kubeconfig] WARNING: a kubeconfig file {:?} exists already but has an unexpected API Server URL: expected: {server}, got: {}", path.display().to_string(), there.server);
    }
    Ok(())
}

/// Checks the files that a control plane has to be given, because nobody here can sign for them.
pub fn given(authority: &Authority<'_>, place: &Place, port: u16, names: &[&str]) -> Result<()> {
    for spec in names.iter().filter_map(|name| ALL.iter().find(|s| s.file == *name)) {
        let said = || format!("the {}.conf file does not exists or it is not valid", spec.file);
        check(authority, place, port, spec).doing(said)?;
        let entry = client::Entry::read(&place.conf(spec.file)).doing(said)?;
        let ca = files::read(&authority.dir.join("ca.crt"))?;
        let signed = match &entry.credentials.certificate {
            Some((certificate, _)) => pki::is_signed_by(certificate, &ca).doing(said)?,
            None => entry.credentials.token.is_some(),
        };
        if !signed {
            return refused(format!("{}: it holds no certificate that the CA has signed; have {}.conf.csr signed, and put it in: kubectl config set-credentials", said(), spec.file));
        }
    }
    Ok(())
}

/// Whose certificate is in a kubeconfig, and how long it is good.
pub fn peer_of(path: &std::path::Path) -> Result<pki::Peer> {
    let there = client::Entry::read(path).doing(|| format!("failed to load {}", path.display()))?;
    let Some((certificate, _)) = there.credentials.certificate else {
        return refused(format!("{} holds no certificate", path.display()));
    };
    pki::Peer::from_pem(&certificate).doing(|| format!("{} cannot be used", path.display()))
}
