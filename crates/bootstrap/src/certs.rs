//! The certificates of a control plane: which there are, and making those that are missing.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use pki::{Ca, CertRequest, KeyAlgorithm, Usage};

use crate::config::{ClusterConfiguration, duration, host_port};
use crate::error::{Doing, Error, Result, refused};
use crate::files;

/// One of upstream's certificates.
#[derive(Debug, Clone, Copy)]
pub struct Cert {
    /// What phases and commands call it.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Its file below the certificates' directory, without its ending.
    pub base: &'static str,
    /// The name of the CA that signs it; none for a CA.
    pub ca: Option<&'static str>,
    /// Its common name; empty for the node's name.
    cn: &'static str,
    server: bool,
    client: bool,
}

const fn ca(name: &'static str, about: &'static str, base: &'static str, cn: &'static str) -> Cert {
    Cert { name, about, base, ca: None, cn, server: false, client: false }
}

const fn leaf(name: &'static str, about: &'static str, base: &'static str, ca: &'static str, cn: &'static str, use_as: (bool, bool)) -> Cert {
    Cert { name, about, base, ca: Some(ca), cn, server: use_as.0, client: use_as.1 }
}

/// All of them, each after its CA.
pub const ALL: [Cert; 10] = [
    ca("ca", "self-signed Kubernetes CA to provision identities for other Kubernetes components", "ca", "kubernetes"),
    leaf("apiserver", "certificate for serving the Kubernetes API", "apiserver", "ca", "kube-apiserver", (true, false)),
    leaf("apiserver-kubelet-client", "certificate for the API server to connect to kubelet", "apiserver-kubelet-client", "ca", "kube-apiserver-kubelet-client", (false, true)),
    ca("front-proxy-ca", "self-signed CA to provision identities for front proxy", "front-proxy-ca", "front-proxy-ca"),
    leaf("front-proxy-client", "certificate for the front proxy client", "front-proxy-client", "front-proxy-ca", "front-proxy-client", (false, true)),
    ca("etcd-ca", "self-signed CA to provision identities for etcd", "etcd/ca", "etcd-ca"),
    leaf("etcd-server", "certificate for serving etcd", "etcd/server", "etcd-ca", "", (true, true)),
    leaf("etcd-peer", "certificate for etcd nodes to communicate with each other", "etcd/peer", "etcd-ca", "", (true, true)),
    leaf("etcd-healthcheck-client", "certificate for liveness probes to healthcheck etcd", "etcd/healthcheck-client", "etcd-ca", "kube-etcd-healthcheck-client", (false, true)),
    leaf("apiserver-etcd-client", "certificate the apiserver uses to access etcd", "apiserver-etcd-client", "etcd-ca", "kube-apiserver-etcd-client", (false, true)),
];

impl Cert {
    /// What it may be used for.
    pub fn usages(&self) -> Vec<Usage> {
        [(self.server, Usage::Server), (self.client, Usage::Client)].into_iter().filter(|(is, _)| *is).map(|(_, usage)| usage).collect()
    }
}

/// The certificate of this name.
pub fn named(name: &str) -> Option<Cert> {
    ALL.iter().copied().find(|c| c.name == name)
}

/// The pin by which a joining node knows a CA: `sha256:` and the digest of its public key.
pub fn pin(ca_pem: &str) -> Result<Vec<String>> {
    let blocks = pki::pem_decode(ca_pem);
    let certificates = blocks.iter().filter(|b| b.label == "CERTIFICATE");
    certificates.map(|b| pki::public_key_digest(&b.der).map(|d| format!("sha256:{}", hex::encode(d))).doing(|| "the CA certificate cannot be read".into())).collect()
}

/// The name or address, and the port, that everybody reaches the control plane by: `https://…`.
pub fn endpoint(cluster: &ClusterConfiguration, address: &str, port: u16) -> String {
    let local = local_endpoint(address, port);
    if cluster.control_plane_endpoint.is_empty() {
        return local;
    }
    match host_port(&cluster.control_plane_endpoint) {
        Ok((host, named)) => local_endpoint(&host, named.unwrap_or(port)),
        Err(_) => local,
    }
}

/// `https://ADDRESS:PORT`
pub fn local_endpoint(address: &str, port: u16) -> String {
    if address.contains(':') { format!("https://[{address}]:{port}") } else { format!("https://{address}:{port}") }
}

/// What the certificates of one control plane are made from.
pub struct Authority<'a> {
    /// Where they lie.
    pub dir: PathBuf,
    /// The cluster.
    pub cluster: &'a ClusterConfiguration,
    /// This node.
    pub node: &'a str,
    /// The address of its API server.
    pub address: &'a str,
    /// When they are made.
    pub now: Timestamp,
}

impl Authority<'_> {
    fn path(&self, base: &str, end: &str) -> PathBuf {
        self.dir.join(format!("{base}.{end}"))
    }

    fn lifetime(&self, text: &str, default_hours: i64) -> SignedDuration {
        duration(text).and_then(|d| SignedDuration::try_from(d).ok()).unwrap_or(SignedDuration::from_hours(default_hours))
    }

    /// How long what is signed is good.
    pub fn leaf_lifetime(&self) -> SignedDuration {
        self.lifetime(&self.cluster.certificate_validity_period, 24 * 365)
    }

    /// A new private key of the cluster's algorithm.
    pub fn key(&self) -> Result<String> {
        // An empty name is that of a configuration that nobody has completed; others have been checked.
        let algorithm = KeyAlgorithm::named(&self.cluster.encryption_algorithm).unwrap_or_default();
        pki::new_key_pem(algorithm).doing(|| "making a key".into())
    }

    /// Names and addresses of a certificate.
    pub fn names(&self, cert: &Cert) -> Result<Vec<String>> {
        let own = self.address.to_string();
        let mut all: Vec<String> = match cert.base {
            "apiserver" => {
                let net = &self.cluster.networking;
                let mut all = vec!["kubernetes".into(), "kubernetes.default".into(), "kubernetes.default.svc".into()];
                all.extend([format!("kubernetes.default.svc.{}", net.dns_domain), self.node.into(), first_address(&net.service_subnet)?, own]);
                if !self.cluster.control_plane_endpoint.is_empty() {
                    all.push(host_port(&self.cluster.control_plane_endpoint)?.0);
                }
                // Knarr's own clients on this machine.
                all.extend(["localhost".into(), "127.0.0.1".into()]);
                all.extend(self.cluster.api_server.cert_sans.iter().cloned());
                all
            }
            "etcd/server" | "etcd/peer" => {
                let mut all = vec![self.node.into(), "localhost".into(), own, "127.0.0.1".into(), "::1".into()];
                let local = self.cluster.etcd.local.iter();
                all.extend(local.flat_map(|l| if cert.base == "etcd/server" { &l.server_cert_sans } else { &l.peer_cert_sans }).cloned());
                all
            }
            _ => Vec::new(),
        };
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|name| seen.insert(name.clone()));
        Ok(all)
    }

    /// Reads a CA with its key.
    pub fn load(&self, ca: &Cert) -> Result<Ca> {
        load_ca(&self.dir, ca)
    }

    /// What a certificate says, by the cluster's configuration.
    pub fn request(&self, cert: &Cert) -> Result<CertRequest> {
        // Upstream has given the API server's right by RBAC since 1.34.
        let cn = if cert.cn.is_empty() { self.node } else { cert.cn };
        Ok(CertRequest { cn: cn.into(), orgs: Vec::new(), sans: self.names(cert)?, usages: cert.usages(), lifetime: self.leaf_lifetime() })
    }

    /// Makes one certificate, or says that it is there.
    pub fn make(&self, cert: &Cert) -> Result<()> {
        let (crt, key) = (self.path(cert.base, "crt"), self.path(cert.base, "key"));
        let Some(ca_name) = cert.ca else {
            if crt.exists() {
                pki::certificate_end(&files::read(&crt)?).doing(|| format!("{} is no certificate", crt.display()))?;
                let kind = if key.exists() { "" } else { "keyless " };
                println!("[certs] Using existing {} {kind}certificate authority", cert.base);
                return Ok(());
            }
            if key.exists() {
                return refused(format!("{} is there but {} is not: restore it, or remove the key", key.display(), crt.display()));
            }
            println!("[certs] Generating {:?} certificate and key", cert.base);
            let pem = self.key()?;
            let lifetime = self.lifetime(&self.cluster.ca_certificate_validity_period, 24 * 3650);
            let made = Ca::with_key(cert.cn, &pem, self.now, lifetime).doing(|| format!("making the CA {:?}", cert.name))?;
            files::write(&key, made.key_pem().as_bytes(), 0o600)?;
            return files::write(&crt, made.cert_pem().as_bytes(), 0o644);
        };
        let Some(ca) = named(ca_name) else { return Ok(()) };
        if crt.exists() && key.exists() {
            let ca_pem = files::read(&self.path(ca.base, "crt"))?;
            if !pki::is_signed_by(&files::read(&crt)?, &ca_pem).doing(|| format!("{} cannot be used", crt.display()))? {
                return refused(format!("[certs] certificate {} not signed by CA certificate {}", cert.base, ca.base));
            }
            println!("[certs] Using existing {} certificate and key on disk", cert.base);
            return Ok(());
        }
        if key.exists() {
            return refused(format!("failure loading {} certificate: {} is there and {} is not: have its request signed, or remove the key", cert.base, key.display(), crt.display()));
        }
        println!("[certs] Generating {:?} certificate and key", cert.base);
        let request = self.request(cert)?;
        if !request.sans.is_empty() {
            let (ips, mut names): (Vec<&str>, Vec<&str>) = request.sans.iter().map(String::as_str).partition(|s| s.parse::<IpAddr>().is_ok());
            names.sort_unstable();
            println!("[certs] {} serving cert is signed for DNS names [{}] and IPs [{}]", cert.base, names.join(" "), ips.join(" "));
        }
        let made = self.load(&ca)?.issue_for_key(&request, &self.key()?, self.now).doing(|| format!("making the certificate {:?}", cert.name))?;
        files::write(&key, made.key_pem.as_bytes(), 0o600)?;
        files::write(&crt, made.cert_pem.as_bytes(), 0o644)
    }

    /// Makes the key that signs service account tokens, and the one that encrypts Secrets at rest.
    pub fn service_account(&self) -> Result<()> {
        let (key, public) = (self.path("sa", "key"), self.path("sa", "pub"));
        if key.exists() {
            println!("[certs] Using the existing \"sa\" key");
        } else {
            println!("[certs] Generating \"sa\" key and public key");
            files::write(&key, self.key()?.as_bytes(), 0o600)?;
        }
        if !public.exists() {
            let pem = pki::jwt::public_key_pem(&files::read(&key)?).doing(|| format!("{} cannot be used", key.display()))?;
            files::write(&public, pem.as_bytes(), 0o600)?;
        }
        let encryption = self.path("encryption", "key");
        if !encryption.exists() {
            let mut bytes = [0; 32];
            rand::fill(&mut bytes[..]);
            files::write(&encryption, hex::encode(bytes).as_bytes(), 0o600)?;
        }
        Ok(())
    }

    /// Whether a CA is somebody else's: its certificate is here, and its key is not. Then all that it signs for a control
    /// plane must be here.
    pub fn external(&self, ca: External) -> Result<bool> {
        let (base, name) = match ca {
            External::Cluster => ("ca", "CA"),
            External::FrontProxy => ("front-proxy-ca", "front-proxy CA"),
        };
        let (crt, key) = (self.path(base, "crt"), self.path(base, "key"));
        if !crt.exists() || key.exists() {
            return Ok(false);
        }
        let signed: &[(&str, &str)] = match ca {
            External::Cluster => &[("apiserver", "API server"), ("apiserver-kubelet-client", "API server kubelet client")],
            External::FrontProxy => &[("front-proxy-client", "front-proxy client")],
        };
        let ca_pem = files::read(&crt)?;
        for (base, whose) in signed {
            self.is_signed(base, whose, &ca_pem).doing(|| format!("invalid or incomplete external {name}"))?;
        }
        Ok(true)
    }

    fn is_signed(&self, base: &str, whose: &str, ca_pem: &str) -> Result<()> {
        let (crt, key) = (self.path(base, "crt"), self.path(base, "key"));
        let key = files::read(&key).doing(|| format!("failure loading key for {base}"))?;
        KeyAlgorithm::of(&key).doing(|| format!("failure loading key for {base}"))?;
        let pem = files::read(&crt).doing(|| format!("failure loading certificate for {whose}: kubeadm certs generate-csr makes {base}.csr for it to be signed"))?;
        if !pki::is_signed_by(&pem, ca_pem).doing(|| format!("failure loading certificate for {whose}"))? {
            return refused(format!("certificate {whose} is not signed by corresponding CA"));
        }
        if base == "apiserver" {
            let wanted = self.names(&ALL[1])?;
            let there = pki::names_of(&pem).doing(|| format!("failure loading certificate for {whose}"))?;
            // Knarr's own clients on this machine ask for the address, not for the names that upstream's do without.
            let missing: Vec<&String> = wanted.iter().filter(|n| !there.contains(n) && !matches!(n.as_str(), "localhost" | "127.0.0.1")).collect();
            if !missing.is_empty() {
                let list = missing.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ");
                return refused(format!("certificate {whose} is invalid: it is not good for {list}; have {base}.csr signed with its subject alternative names (openssl x509 -copy_extensions copy)"));
            }
        }
        Ok(())
    }
}

/// CAs that may be somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum External {
    /// The cluster's.
    Cluster,
    /// The one by which aggregated servers know the API server.
    FrontProxy,
}

/// Reads a CA with its key from a directory.
pub fn load_ca(dir: &Path, ca: &Cert) -> Result<Ca> {
    let path = |end: &str| dir.join(format!("{}.{end}", ca.base));
    let read = |end: &str| {
        std::fs::read_to_string(path(end)).map_err(|source| Error::While {
            what: format!("the CA files do not exist, please run `kubeadm init phase certs {}` to generate it ({})", ca.name, path(end).display()),
            source: source.into(),
        })
    };
    Ca::from_pem(&read("crt")?, &read("key")?).doing(|| format!("the CA in {} cannot be used", path("crt").display()))
}

/// The first address of a network that is given out: that of the service `kubernetes`.
pub fn first_address(network: &str) -> Result<String> {
    nth_address(network, 1)
}

/// The nth address of a network.
pub fn nth_address(network: &str, n: u32) -> Result<String> {
    let address = network.split_once('/').and_then(|(a, _)| a.parse::<std::net::Ipv4Addr>().ok());
    match address {
        Some(address) => Ok(std::net::Ipv4Addr::from(u32::from(address).wrapping_add(n)).to_string()),
        None => refused(format!("unable to get first IP address from the given CIDR: {network}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Facts, complete_cluster};

    #[test]
    fn upstreams_layout_from_nothing_and_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut cluster = ClusterConfiguration { control_plane_endpoint: "lb:6443".into(), ..Default::default() };
        complete_cluster(&mut cluster, 6443, &Facts { version: "v1.36.0".into(), ..Default::default() }).expect("defaults");
        let now = "2026-05-01T10:00:00Z".parse().expect("a time");
        let authority = Authority { dir: dir.path().into(), cluster: &cluster, node: "m1", address: "10.0.0.1", now };
        for cert in &ALL {
            authority.make(cert).expect(cert.name);
        }
        authority.service_account().expect("keys");
        let read = |name: &str| files::read(&dir.path().join(name)).expect(name);
        let apiserver = read("apiserver.crt");
        let names = pki::names_of(&apiserver).expect("names");
        for name in ["kubernetes.default.svc.cluster.local", "m1", "lb", "10.96.0.1", "10.0.0.1"] {
            assert!(names.iter().any(|n| n == name), "{name} is not in {names:?}");
        }
        assert!(pki::is_signed_by(&apiserver, &read("ca.crt")).expect("readable"));
        assert!(!pki::is_signed_by(&apiserver, &read("etcd/ca.crt")).expect("readable"));
        assert_eq!(pin(&read("ca.crt")).expect("a pin")[0].len(), 71);
        // a second time nothing changes
        for cert in &ALL {
            authority.make(cert).expect(cert.name);
        }
        authority.service_account().expect("keys");
        assert_eq!(read("apiserver.crt"), apiserver);
        // what another CA has signed is not taken for ours
        std::fs::copy(dir.path().join("etcd/ca.crt"), dir.path().join("ca.crt")).expect("copied");
        let error = authority.make(&named("apiserver").expect("known")).expect_err("foreign").to_string();
        assert!(error.contains("certificate apiserver not signed by CA certificate ca"), "{error}");
    }

    #[test]
    fn a_ca_of_somebody_else_needs_all_that_it_signs() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut cluster = ClusterConfiguration::default();
        complete_cluster(&mut cluster, 6443, &Facts { version: "v1.36.0".into(), ..Default::default() }).expect("defaults");
        let now = "2026-05-01T10:00:00Z".parse().expect("a time");
        let authority = Authority { dir: dir.path().into(), cluster: &cluster, node: "m1", address: "10.0.0.1", now };
        let remove = |name: &str| std::fs::remove_file(dir.path().join(name)).expect(name);
        let make = |name: &str| authority.make(&named(name).expect("known")).expect(name);
        assert!(!authority.external(External::Cluster).expect("nothing there"));
        make("ca");
        assert!(!authority.external(External::Cluster).expect("ours"));
        let key = files::read(&dir.path().join("ca.key")).expect("a key");
        for name in ["apiserver", "apiserver-kubelet-client", "front-proxy-ca", "front-proxy-client"] {
            make(name);
        }
        remove("ca.key");
        assert!(authority.external(External::Cluster).expect("complete"));
        assert!(!authority.external(External::FrontProxy).expect("ours"));
        remove("front-proxy-ca.key");
        assert!(authority.external(External::FrontProxy).expect("complete"));
        let incomplete = |ca: External| authority.external(ca).expect_err("incomplete").chain();
        remove("front-proxy-client.key");
        assert!(incomplete(External::FrontProxy).starts_with("invalid or incomplete external front-proxy CA: failure loading key for front-proxy-client"));
        remove("apiserver-kubelet-client.crt");
        let error = incomplete(External::Cluster);
        assert!(error.starts_with("invalid or incomplete external CA: failure loading certificate for API server kubelet client: kubeadm certs generate-csr"), "{error}");
        // a key whose certificate is missing is not thrown away
        files::write(&dir.path().join("ca.key"), key.as_bytes(), 0o600).expect("written");
        let error = authority.make(&named("apiserver-kubelet-client").expect("known")).expect_err("half").to_string();
        assert!(error.contains("apiserver-kubelet-client.key is there and"), "{error}");
        remove("ca.key");
        // signed by another, and without the names that it is asked by
        let request = |sans: Vec<String>| CertRequest { cn: "kube-apiserver".into(), sans, usages: vec![Usage::Server], lifetime: SignedDuration::from_hours(1), ..Default::default() };
        let put = |ca: &Ca, sans: Vec<String>| {
            let pair = ca.issue(&request(sans), now).expect("issued");
            files::write(&dir.path().join("apiserver.crt"), pair.cert_pem.as_bytes(), 0o644).expect("written");
            files::write(&dir.path().join("apiserver.key"), pair.key_pem.as_bytes(), 0o600).expect("written");
        };
        put(&Ca::new("kubernetes", now, SignedDuration::from_hours(2)).expect("a CA"), authority.names(&ALL[1]).expect("names"));
        assert!(incomplete(External::Cluster).ends_with("certificate API server is not signed by corresponding CA"));
        put(&Ca::from_pem(&files::read(&dir.path().join("ca.crt")).expect("there"), &key).expect("ours"), vec!["kubernetes".into()]);
        let error = incomplete(External::Cluster);
        assert!(error.contains("not good for kubernetes.default,") && error.contains("10.0.0.1;"), "{error}");
    }
}
