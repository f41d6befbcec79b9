//! Keys and certificates of a cluster, made on the first start and kept below `pki/`.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use apiserver::{EncryptionConfig, EncryptionKey, Provider};
use jiff::{SignedDuration, Timestamp};
use pki::{Ca, CertKey, CertRequest, Credentials, Kubeconfig, Usage};

use crate::config::Config;
use crate::files;
use crate::layout::Layout;

const CA_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 3650);

/// Everything secret or signed that a server needs.
pub struct Material {
    /// PEM of the cluster's CA.
    pub ca_pem: String,
    /// The same with its key, where that is here.
    pub ca: Option<Ca>,
    /// PEM of the CAs by which kubelets are known as servers.
    pub kubelet_ca: String,
    pub apiserver: CertKey,
    /// By which the API server talks to kubelets.
    pub kubelet_client: CertKey,
    pub kubelet_serving: CertKey,
    /// PEM of the CA below, which signs nothing else.
    pub front_proxy_ca: String,
    /// By which aggregated servers know the API server.
    pub front_proxy: CertKey,
    /// Signs service account tokens (PEM).
    pub service_account_key: String,
    /// Encrypt Secrets at rest: the first one writes, all read.
    pub encryption_keys: Vec<EncryptionKey>,
    /// Joins agents: `abcdef.0123456789abcdef`. None where bootstrap tokens are managed otherwise.
    pub join_token: Option<String>,
}

/// What `init` or a download has left in upstream's layout. It is read through a link in the data directory, where
/// everybody looks for certificates; what is this node's alone lies beside that.
fn shared(certificates: &Path, layout: &Layout, config: &Config, node_ip: Ipv4Addr) -> Result<Material> {
    link(&layout.pki(), certificates)?;
    if let Some(dir) = certificates.parent() {
        link(&layout.admin(), &dir.join("admin.conf"))?;
    }
    let dir = layout.pki();
    let now = Timestamp::now();
    let there = |name: &str| -> Result<CertKey> {
        let said = || format!("kubeadm init phase certs {name} makes it");
        Ok(CertKey { cert_pem: read(&dir.join(format!("{name}.crt"))).with_context(said)?, key_pem: read(&dir.join(format!("{name}.key"))).with_context(said)? })
    };
    let (ca_pem, key) = (read(&dir.join("ca.crt"))?, dir.join("ca.key"));
    let said = || format!("the CA in {} cannot be used", dir.display());
    let ca = if key.exists() { Some(Ca::from_pem(&ca_pem, &read(&key)?).with_context(said)?) } else { None };
    let own = layout.node_pki();
    files::private_dir(&own)?;
    let (kubelet_ca, kubelet_serving) = match &ca {
        Some(ca) => (ca_pem.clone(), pair(&own, "kubelet-server", ca, kubelet_request(config, node_ip), now)?),
        // Nobody here signs for the cluster's CA; the API server of this process knows its own kubelet by another.
        None => {
            let another = authority(&own, "kubelet-ca", &format!("knarr-kubelet-ca@{}", config.node_name), now)?;
            let serving = pair(&own, "kubelet-server-own", &another, kubelet_request(config, node_ip), now)?;
            (format!("{}\n{}", ca_pem.trim_end(), another.cert_pem()), serving)
        }
    };
    let service_account_key = read(&dir.join("sa.key")).context("kubeadm init phase certs sa makes it")?;
    let encryption_keys = encryption_keys(layout, None)?;
    Ok(Material {
        apiserver: there("apiserver")?,
        kubelet_client: there("apiserver-kubelet-client")?,
        kubelet_serving,
        front_proxy_ca: read(&dir.join("front-proxy-ca.crt"))?,
        front_proxy: there("front-proxy-client")?,
        service_account_key,
        encryption_keys,
        join_token: None,
        ca_pem,
        ca,
        kubelet_ca,
    })
}

/// Makes a link, or moves it.
fn link(from: &Path, to: &Path) -> Result<()> {
    if fs::read_link(from).is_ok_and(|there| there == to) {
        return Ok(());
    }
    if fs::symlink_metadata(from).is_ok_and(|there| there.is_symlink()) {
        fs::remove_file(from).with_context(|| format!("cannot remove {}", from.display()))?;
    }
    std::os::unix::fs::symlink(to, from).with_context(|| format!("cannot make {} a link to {}: is it in use by a cluster that knarr up has made?", from.display(), to.display()))
}

/// The certificate of this node's kubelet as a server.
fn kubelet_request(config: &Config, node_ip: Ipv4Addr) -> CertRequest {
    let mut sans = vec![config.node_name.clone(), node_ip.to_string()];
    sans.dedup();
    CertRequest { cn: format!("system:node:{}", config.node_name), orgs: vec!["system:nodes".into()], sans, usages: vec![Usage::Server], lifetime: config.certificate_lifetime }
}

/// Reads what is there, and makes what is missing or about to expire.
pub fn prepare(layout: &Layout, config: &Config, node_ip: Ipv4Addr, random: &mut dyn FnMut(&mut [u8])) -> Result<Material> {
    if let Some(certificates) = config.kubeadm.as_ref().and_then(|k| k.pki_dir.as_ref()) {
        return shared(certificates, layout, config, node_ip);
    }
    let dir = layout.pki();
    files::private_dir(&dir)?;
    let now = Timestamp::now();
    let ca = authority(&dir, "ca", "kubernetes", now)?;
    let mut sans: Vec<String> = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"].map(String::from).to_vec();
    sans.push(format!("kubernetes.default.svc.{}", config.cluster_domain));
    sans.push(config.node_name.clone());
    sans.extend([config.api_service(), node_ip, Ipv4Addr::LOCALHOST].map(|a| a.to_string()));
    sans.extend(config.tls_san.iter().cloned());
    sans.sort();
    sans.dedup();
    let request = |cn: &str, orgs: &[&str], sans: Vec<String>, usages: Vec<Usage>| CertRequest {
        cn: cn.into(),
        orgs: orgs.iter().map(|o| o.to_string()).collect(),
        sans,
        usages,
        lifetime: config.certificate_lifetime,
    };
    let apiserver = pair(&dir, "apiserver", &ca, request("kube-apiserver", &[], sans, vec![Usage::Server]), now)?;
    let kubelet_client = pair(
        &dir,
        "apiserver-kubelet-client",
        &ca,
        request("kube-apiserver-kubelet-client", &["system:masters"], Vec::new(), vec![Usage::Client]),
        now,
    )?;
    let front_proxy_ca = authority(&dir, "front-proxy-ca", "front-proxy-ca", now)?;
    let front_proxy = pair(&dir, "front-proxy-client", &front_proxy_ca, request("front-proxy-client", &[], Vec::new(), vec![Usage::Client]), now)?;
    let kubelet_serving = pair(&dir, "kubelet-server", &ca, kubelet_request(config, node_ip), now)?;
    let admin = pair(&dir, "admin", &ca, request("kubernetes-admin", &["system:masters"], Vec::new(), vec![Usage::Client]), now)?;

    let service_account_key = kept(&dir.join("sa.key"), || pki::jwt::new_key_pem().context("making the service account key"))?;
    kept(&dir.join("sa.pub"), || pki::jwt::public_key_pem(&service_account_key).context("deriving the service account public key"))?;
    let encryption_keys = encryption_keys(layout, Some(random))?;
    let join_token = kept(&dir.join("join.token"), || {
        let mut bytes = [0; 22];
        random(&mut bytes);
        Ok(pki::bootstrap_token::generate(&bytes))
    })?;

    let kubeconfig = pki::kubeconfig(&admin_entry(&ca, &admin, config.secure_port, Ipv4Addr::LOCALHOST))?;
    if fs::read_to_string(layout.admin()).ok().as_ref() != Some(&kubeconfig) {
        files::write(&layout.admin(), kubeconfig.as_bytes(), 0o600)?;
    }
    let front_proxy_ca = front_proxy_ca.cert_pem().into();
    let ca_pem = ca.cert_pem().to_string();
    Ok(Material { kubelet_ca: ca_pem.clone(), ca_pem, ca: Some(ca), apiserver, kubelet_client, kubelet_serving, front_proxy_ca, front_proxy, service_account_key, encryption_keys, join_token: Some(join_token.trim().into()) })
}

/// The keys that encrypt at rest, the one that writes first; makes one if there is none yet and it may.
///
/// Each line of the file is a key, as `NAME:HEX`, or as HEX alone for `key1`, the first one of every cluster.
pub fn encryption_keys(layout: &Layout, random: Option<&mut dyn FnMut(&mut [u8])>) -> Result<Vec<EncryptionKey>> {
    let path = layout.pki().join("encryption.key");
    let text = match random {
        Some(random) => kept(&path, || Ok(new_secret(random)))?,
        None if !path.exists() => return Ok(Vec::new()),
        None => read(&path)?,
    };
    let key = |line: &str| {
        let (name, digits) = line.trim().split_once(':').unwrap_or(("key1", line.trim()));
        let mut secret = vec![0; 32];
        hex::decode_to_slice(digits, &mut secret)
            .with_context(|| format!("{} is not a key of 64 hexadecimal digits: restore it from a copy", path.display()))?;
        Ok(EncryptionKey { name: name.into(), secret })
    };
    let keys = text.lines().filter(|l| !l.trim().is_empty()).map(key).collect::<Result<Vec<_>>>()?;
    ensure!(!keys.is_empty(), "{} holds no key: restore it from a copy", path.display());
    Ok(keys)
}

fn new_secret(random: &mut dyn FnMut(&mut [u8])) -> String {
    let mut key = [0; 32];
    random(&mut key);
    hex::encode(key)
}

/// Replaces the keys.
pub fn write_encryption_keys(layout: &Layout, keys: &[EncryptionKey]) -> Result<()> {
    let text: String = keys.iter().map(|k| format!("{}:{}\n", k.name, hex::encode(&k.secret))).collect();
    files::write(&layout.pki().join("encryption.key"), text.as_bytes(), 0o600)
}

/// What is encrypted at rest in a cluster of knarr's.
pub fn encryption(keys: &[EncryptionKey]) -> EncryptionConfig {
    match keys {
        [] => EncryptionConfig::default(),
        keys => EncryptionConfig::of(&["secrets"], vec![Provider::AesGcm(keys.to_vec()), Provider::Identity]),
    }
}

/// The kubeconfig entry of the administrator.
fn admin_entry(ca: &Ca, admin: &CertKey, port: u16, address: Ipv4Addr) -> Kubeconfig {
    Kubeconfig {
        context: "knarr".into(),
        cluster: "knarr".into(),
        user: "knarr-admin".into(),
        server: format!("https://{address}:{port}"),
        ca_pem: ca.cert_pem().into(),
        credentials: Credentials::Certificate { cert_pem: admin.cert_pem.clone(), key_pem: admin.key_pem.clone() },
    }
}

/// The administrator's entry, from what an earlier start left.
pub fn admin_of(layout: &Layout, port: u16) -> Result<Kubeconfig> {
    let dir = layout.pki();
    let ca = Ca::from_pem(&read(&dir.join("ca.crt"))?, &read(&dir.join("ca.key"))?)?;
    let admin = CertKey { cert_pem: read(&dir.join("admin.crt"))?, key_pem: read(&dir.join("admin.key"))? };
    Ok(admin_entry(&ca, &admin, port, Ipv4Addr::LOCALHOST))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn kept(path: &Path, make: impl FnOnce() -> Result<String>) -> Result<String> {
    if path.exists() {
        return read(path);
    }
    let text = make()?;
    let mode = if path.extension().is_some_and(|e| e == "pub") { 0o644 } else { 0o600 };
    files::write(path, text.as_bytes(), mode)?;
    Ok(text)
}

fn authority(dir: &Path, name: &str, cn: &str, now: Timestamp) -> Result<Ca> {
    let (cert, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    if cert.exists() {
        ensure!(key.exists(), "{} is there but {} is not: restore it from a copy, or start anew with knarr down --purge", cert.display(), key.display());
        return Ca::from_pem(&read(&cert)?, &read(&key)?).with_context(|| format!("the CA in {} cannot be used", dir.display()));
    }
    let ca = Ca::new(cn, now, CA_LIFETIME)?;
    // The key first: a certificate without its key would be an error at the next start.
    files::write(&key, ca.key_pem().as_bytes(), 0o600)?;
    files::write(&cert, ca.cert_pem().as_bytes(), 0o644)?;
    Ok(ca)
}

fn pair(dir: &Path, name: &str, ca: &Ca, request: CertRequest, now: Timestamp) -> Result<CertKey> {
    let (cert, key, names) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")), dir.join(format!("{name}.names")));
    let wanted = format!("{}\n{}\n{}\n", request.cn, request.orgs.join(","), request.sans.join(","));
    if let (Ok(cert_pem), Ok(key_pem), Ok(old)) = (fs::read_to_string(&cert), fs::read_to_string(&key), fs::read_to_string(&names)) {
        if old.starts_with(&wanted) && pki::Peer::from_pem(&cert_pem).is_ok_and(|peer| !peer.is_due(now)) {
            return Ok(CertKey { cert_pem, key_pem });
        }
        tracing::info!(certificate = name, "renewed");
    }
    let pair = ca.issue(&request, now)?;
    files::write(&key, pair.key_pem.as_bytes(), 0o600)?;
    files::write(&cert, pair.cert_pem.as_bytes(), 0o644)?;
    files::write(&names, wanted.as_bytes(), 0o644)?;
    Ok(pair)
}
