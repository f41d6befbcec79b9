//! `certs`: how long certificates last, making them anew, and requests for somebody else to sign.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use pki::{CertRequest, Credentials, KeyAlgorithm, Peer, Usage};
use serde_json::{Value, json};

use crate::certs::{ALL, Authority, Cert, load_ca, local_endpoint, named};
use crate::config::ClusterConfiguration;
use crate::error::{Doing, Result, refused};
use crate::files::{self, Place};
use crate::kubeconfigs::{self, Spec};
use crate::tokens::{columns, human};

/// What can be renewed.
#[derive(Clone, Copy)]
enum Handled {
    Cert(Cert),
    Conf(&'static Spec),
}

/// Everything in upstream's order: kubeconfigs and certificates by name. The kubelet renews its own.
fn handled() -> Vec<(String, Handled)> {
    let certs = ALL.iter().filter(|c| c.ca.is_some()).map(|c| (c.name.to_string(), Handled::Cert(*c)));
    let confs = kubeconfigs::ALL.iter().filter(|s| s.file != "kubelet").map(|s| (format!("{}.conf", s.file), Handled::Conf(s)));
    let mut all: Vec<_> = certs.chain(confs).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// The names that `certs renew` knows.
pub fn names() -> Vec<String> {
    handled().into_iter().map(|(name, _)| name).collect()
}

/// Where certificates and kubeconfigs lie.
pub struct Keeper<'a> {
    /// Upstream's directories.
    pub place: &'a Place,
    /// The certificates.
    pub dir: PathBuf,
    /// How long what is signed is good.
    pub lifetime: SignedDuration,
}

impl Keeper<'_> {
    fn path(&self, what: Handled) -> PathBuf {
        match what {
            Handled::Cert(cert) => self.dir.join(format!("{}.crt", cert.base)),
            Handled::Conf(spec) => self.place.conf(spec.file),
        }
    }

    fn end(&self, what: Handled) -> Result<Timestamp> {
        let path = self.path(what);
        match what {
            Handled::Cert(_) => end(&path),
            Handled::Conf(_) => Timestamp::from_second(kubeconfigs::peer_of(&path)?.not_after).doing(|| format!("{} cannot be used", path.display())),
        }
    }

    fn ca(what: Handled) -> Cert {
        let name = match what {
            Handled::Cert(cert) => cert.ca.unwrap_or("ca"),
            Handled::Conf(_) => "ca",
        };
        named(name).unwrap_or(ALL[0])
    }

    fn has_key(&self, ca: &Cert) -> bool {
        self.dir.join(format!("{}.key", ca.base)).exists()
    }

    /// How long each is good, as a table or as JSON.
    pub fn expiration(&self, as_json: bool, now: Timestamp) -> Result<String> {
        let mut rows = vec![["CERTIFICATE", "EXPIRES", "RESIDUAL TIME", "CERTIFICATE AUTHORITY", "EXTERNALLY MANAGED"].map(String::from)];
        let (mut certificates, mut authorities) = (Vec::new(), Vec::new());
        for (name, what) in handled() {
            if !self.path(what).exists() {
                rows.push([format!("!MISSING! {name}"), String::new(), String::new(), String::new(), String::new()]);
                certificates.push(json!({"name": name, "expirationDate": null, "residualTime": 0, "externallyManaged": false, "missing": true}));
                continue;
            }
            let (end, ca) = (self.end(what)?, Self::ca(what));
            let external = !self.has_key(&ca);
            rows.push([name.clone(), date(end), residual(end, now), ca.name.into(), format!("{:<8}", yes(external))]);
            let mut one = info(&name, end, now, external);
            one["caName"] = ca.name.into();
            certificates.push(one);
        }
        let mut second = vec![["CERTIFICATE AUTHORITY", "EXPIRES", "RESIDUAL TIME", "EXTERNALLY MANAGED"].map(String::from)];
        for ca in ALL.iter().filter(|c| c.ca.is_none()) {
            let path = self.dir.join(format!("{}.crt", ca.base));
            if !path.exists() {
                second.push([format!("!MISSING! {}", ca.name), String::new(), String::new(), String::new()]);
                authorities.push(json!({"name": ca.name, "expirationDate": null, "residualTime": 0, "externallyManaged": false, "missing": true}));
                continue;
            }
            let end = end(&path)?;
            second.push([ca.name.into(), date(end), residual(end, now), format!("{:<8}", yes(!self.has_key(ca)))]);
            authorities.push(info(ca.name, end, now, !self.has_key(ca)));
        }
        if as_json {
            let all = json!({"kind": "CertificateExpirationInfo", "apiVersion": "output.kubeadm.k8s.io/v1alpha3",
                "certificates": certificates, "certificateAuthorities": authorities});
            return serde_json::to_string_pretty(&all).map(|t| t + "\n").doing(|| "writing JSON".into());
        }
        Ok(format!("{}\n{}", columns(&rows), columns(&second)))
    }

    /// Makes one anew, with the same names.
    pub fn renew(&self, name: &str, now: Timestamp) -> Result<()> {
        let Some((_, what)) = handled().into_iter().find(|(n, _)| n == name) else {
            return refused(format!("unknown certificate {name:?}: there are all, {}", names().join(", ")));
        };
        let about = match what {
            Handled::Cert(cert) => cert.about,
            Handled::Conf(spec) => spec.about,
        };
        let path = self.path(what);
        if !path.exists() {
            println!("MISSING! {about}");
            return Ok(());
        }
        let ca = Self::ca(what);
        if !self.has_key(&ca) {
            println!("Detected external {}, {about} can't be renewed", ca.base);
            return Ok(());
        }
        match what {
            Handled::Cert(cert) => self.renew_certificate(&cert, &path, &ca, now)?,
            Handled::Conf(_) => self.renew_kubeconfig(&path, &ca, now)?,
        }
        println!("{about} renewed");
        Ok(())
    }

    /// Makes those anew of which less than a third of their time is left, each for as long as it was good before, and
    /// says which. What somebody else's CA has signed is left alone.
    pub fn renew_due(&self, now: Timestamp) -> Result<Vec<String>> {
        let mut done = Vec::new();
        for (name, what) in handled() {
            let (path, ca) = (self.path(what), Self::ca(what));
            if !path.exists() || !self.has_key(&ca) {
                continue;
            }
            let peer = match what {
                Handled::Cert(_) => Peer::from_pem(&files::read(&path)?).doing(|| format!("{} cannot be read", path.display()))?,
                Handled::Conf(_) => kubeconfigs::peer_of(&path)?,
            };
            if !peer.is_due(now) {
                continue;
            }
            let keeper = Keeper { place: self.place, dir: self.dir.clone(), lifetime: peer.lifetime() };
            match what {
                Handled::Cert(cert) => keeper.renew_certificate(&cert, &path, &ca, now)?,
                Handled::Conf(_) => keeper.renew_kubeconfig(&path, &ca, now)?,
            }
            done.push(name);
        }
        Ok(done)
    }

    /// Makes a certificate anew for other names and addresses.
    pub fn replace(&self, cert: &Cert, names: Vec<String>, now: Timestamp) -> Result<()> {
        let path = self.path(Handled::Cert(*cert));
        let ca = Self::ca(Handled::Cert(*cert));
        if !self.has_key(&ca) {
            return refused(format!("the key of {} is not here: have who holds it make {} for {}, and say the same again", ca.name, path.display(), names.join(", ")));
        }
        let request = CertRequest { sans: names, ..self.request(&files::read(&path)?, cert.usages())? };
        self.issue(cert, &request, &path, &ca, now)
    }

    fn request(&self, old: &str, usages: Vec<Usage>) -> Result<CertRequest> {
        let said = || "the present certificate cannot be read".to_string();
        let Some(block) = pki::pem_decode(old).into_iter().find(|b| b.label == "CERTIFICATE") else { return refused(said()) };
        let peer = Peer::from_der(&block.der).doing(said)?;
        Ok(CertRequest { cn: peer.cn, orgs: peer.orgs, sans: pki::names_of(old).doing(said)?, usages, lifetime: self.lifetime })
    }

    fn renew_certificate(&self, cert: &Cert, path: &Path, ca: &Cert, now: Timestamp) -> Result<()> {
        let request = self.request(&files::read(path)?, cert.usages())?;
        self.issue(cert, &request, path, ca, now)
    }

    fn issue(&self, cert: &Cert, request: &CertRequest, path: &Path, ca: &Cert, now: Timestamp) -> Result<()> {
        let key = path.with_extension("key");
        let pem = like(&files::read(&key)?)?;
        let made = load_ca(&self.dir, ca)?.issue_for_key(request, &pem, now).doing(|| format!("renewing {}", cert.name))?;
        // A running server takes both once they fit each other.
        files::write(&key, made.key_pem.as_bytes(), 0o600)?;
        files::write(path, made.cert_pem.as_bytes(), 0o644)
    }

    fn renew_kubeconfig(&self, path: &Path, ca: &Cert, now: Timestamp) -> Result<()> {
        let old = client::Entry::read(path).doing(|| format!("failed to load {}", path.display()))?;
        let Some((certificate, key)) = old.credentials.certificate else { return refused(format!("{} holds no certificate", path.display())) };
        let request = self.request(&certificate, vec![Usage::Client])?;
        let ca = load_ca(&self.dir, ca)?;
        let pem = like(&key)?;
        let made = ca.issue_for_key(&request, &pem, now).doing(|| format!("renewing {}", path.display()))?;
        let text = files::read(path)?;
        let document: Value = serde_saphyr::from_str(&text).doing(|| format!("{} is no YAML", path.display()))?;
        let context = document["contexts"].as_array().into_iter().flatten().find(|c| c["name"] == document["current-context"]).cloned().unwrap_or_default();
        let word = |at: &str| context["context"][at].as_str().unwrap_or_default().to_string();
        let entry = pki::Kubeconfig {
            context: context["name"].as_str().unwrap_or_default().into(),
            cluster: word("cluster"),
            user: word("user"),
            server: old.server,
            ca_pem: old.ca,
            credentials: Credentials::Certificate { cert_pem: made.cert_pem, key_pem: made.key_pem },
        };
        let text = pki::merge_kubeconfig(&text, &entry, true).doing(|| format!("writing {}", path.display()))?;
        files::write(path, text.as_bytes(), 0o600)
    }
}

/// A new key of the same kind.
fn like(key: &str) -> Result<String> {
    KeyAlgorithm::of(key).and_then(pki::new_key_pem).doing(|| "making a key".into())
}

fn end(path: &Path) -> Result<Timestamp> {
    pki::certificate_end(&files::read(path)?).doing(|| format!("{} cannot be read", path.display()))
}

fn yes(it: bool) -> &'static str {
    if it { "yes" } else { "no" }
}

fn date(at: Timestamp) -> String {
    at.strftime("%b %d, %Y %H:%M UTC").to_string()
}

fn residual(end: Timestamp, now: Timestamp) -> String {
    human(end.as_second() - now.as_second())
}

fn info(name: &str, end: Timestamp, now: Timestamp, external: bool) -> Value {
    json!({"name": name, "expirationDate": api::gotime::format(end.as_second()), "residualTime": end.as_second() - now.as_second(), "externallyManaged": external})
}

/// Keys and certificate requests of a control plane whose CA is somebody else's.
pub fn requests(cluster: &ClusterConfiguration, authority: &Authority<'_>, conf_dir: &Path, port: u16) -> Result<()> {
    println!("generating keys and CSRs in {}", authority.dir.display());
    for cert in ALL.iter().filter(|c| c.ca.is_some()) {
        let (key, csr) = (authority.dir.join(format!("{}.key", cert.base)), authority.dir.join(format!("{}.csr", cert.base)));
        if key.exists() || csr.exists() {
            return refused(format!("file already exists: key or CSR {}", key.display()));
        }
        let request = authority.request(cert)?;
        let made = pki::new_csr(&request.cn, "", &request.sans, Some(&authority.key()?)).doing(|| format!("making the request for {}", cert.name))?;
        files::write(&key, made.key_pem.as_bytes(), 0o600)?;
        files::write(&csr, made.cert_pem.as_bytes(), 0o600)?;
        println!("  {}", cert.base);
    }
    println!("generating keys and CSRs in {}", conf_dir.display());
    // There may be no CA yet; then it is put into the kubeconfigs with the certificates.
    let ca_pem = std::fs::read_to_string(authority.dir.join("ca.crt")).unwrap_or_default();
    for spec in &kubeconfigs::ALL {
        let (path, csr) = (conf_dir.join(format!("{}.conf", spec.file)), conf_dir.join(format!("{}.conf.csr", spec.file)));
        if path.exists() || csr.exists() {
            return refused(format!("file already exists: kube config: {}", path.display()));
        }
        let (user, group) = spec.subject(authority.node);
        let made = pki::new_csr(&user, group, &[], Some(&authority.key()?)).doing(|| format!("making the request for {user}"))?;
        let server = if spec.is_local() { local_endpoint(authority.address, port) } else { crate::certs::endpoint(cluster, authority.address, port) };
        let credentials = Credentials::Certificate { cert_pem: String::new(), key_pem: made.key_pem };
        let text = pki::kubeconfig(&kubeconfigs::entry(&cluster.cluster_name, &user, &server, &ca_pem, credentials)).doing(|| "writing a kubeconfig".into())?;
        files::write(&path, text.as_bytes(), 0o600)?;
        files::write(&csr, made.cert_pem.as_bytes(), 0o600)?;
        println!("  {}.conf", spec.file);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Facts, complete_cluster};

    #[test]
    fn the_same_names_with_more_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = Place { kubernetes: dir.path().into(), kubelet: dir.path().join("kubelet") };
        let mut cluster = ClusterConfiguration::default();
        complete_cluster(&mut cluster, 6443, &Facts { version: "v1.36.0".into(), ..Default::default() }).expect("defaults");
        let then: Timestamp = "2026-05-01T10:00:00Z".parse().expect("a time");
        let authority = Authority { dir: dir.path().join("pki"), cluster: &cluster, node: "m1", address: "10.0.0.1", now: then };
        ALL.iter().filter(|c| c.ca != Some("etcd-ca") && c.name != "etcd-ca").for_each(|c| authority.make(c).expect(c.name));
        kubeconfigs::write(&authority, &place, 6443, &kubeconfigs::ALL[0]).expect("admin.conf");
        let keeper = Keeper { place: &place, dir: authority.dir.clone(), lifetime: authority.leaf_lifetime() };
        let table = keeper.expiration(false, then).expect("a table");
        let rows: Vec<String> = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for row in ["admin.conf May 01, 2027 10:00 UTC 365d ca no", "!MISSING! etcd-server", "front-proxy-ca Apr 28, 2036 10:00 UTC 10y no"] {
            assert!(rows.iter().any(|r| r == row), "{row:?} is not in\n{table}");
        }
        let later = then + SignedDuration::from_hours(24 * 100);
        let before = files::read(&authority.dir.join("apiserver.crt")).expect("there");
        for name in ["apiserver", "admin.conf", "scheduler.conf"] {
            keeper.renew(name, later).expect(name);
        }
        let after = files::read(&authority.dir.join("apiserver.crt")).expect("there");
        assert_eq!(pki::names_of(&before).expect("names"), pki::names_of(&after).expect("names"));
        assert_eq!(pki::certificate_end(&after).expect("an end").as_second() - pki::certificate_end(&before).expect("an end").as_second(), 86_400 * 100);
        let admin = client::Entry::read(&place.conf("admin")).expect("it is still whole");
        let certificate = admin.credentials.certificate.expect("a certificate").0;
        let peer = Peer::from_der(&pki::pem_decode(&certificate)[0].der).expect("a certificate");
        assert_eq!((peer.cn.as_str(), peer.orgs), ("kubernetes-admin", vec!["kubeadm:cluster-admins".to_string()]));
        assert!(keeper.renew("kubelet.conf", later).expect_err("it renews itself").to_string().contains("unknown certificate"));
        // without the CA's key nothing changes
        std::fs::remove_file(authority.dir.join("ca.key")).expect("removed");
        keeper.renew("apiserver", then).expect("told");
        assert_eq!(files::read(&authority.dir.join("apiserver.crt")).expect("there"), after);
    }
}
