//! etcd's certificates in kubeadm's layout: `etcd/{ca,server,peer,healthcheck-client}` and `apiserver-etcd-client` below
//! one directory. What is there is used; what is missing is made, if the CA's key is there.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use pki::{Ca, CertRequest, Usage};

use super::Access;
use crate::files;

const CA_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 3650);

/// Why etcd has no certificates.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A file cannot be read or written.
    #[error("{what} {}", .path.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why that failed.
        #[source]
        source: std::io::Error,
    },
    /// The CA's key is needed and not there.
    #[error("{} is not there, and {} has to be made: copy the key from where the cluster began (--upload-certs does), or make the certificate by hand", .key.display(), .needed.display())]
    NoKey {
        /// The CA's key.
        key: PathBuf,
        /// What it should sign.
        needed: PathBuf,
    },
    /// A certificate or key cannot be used, or not be made.
    #[error("the certificates in {}", .dir.display())]
    Pki {
        /// Where they are.
        dir: PathBuf,
        /// What is wrong.
        #[source]
        source: pki::Error,
    },
}

/// Who needs certificates: a member's name and address.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// The node's name.
    pub name: &'a str,
    /// By which other members know it.
    pub address: Ipv4Addr,
}

/// Where a certificate and its key are.
pub fn pair(pki: &Path, name: &str) -> (PathBuf, PathBuf) {
    (pki.join(format!("{name}.crt")), pki.join(format!("{name}.key")))
}

/// Sees that all five are there; makes the CA too when `found` says that a cluster begins here.
pub fn ensure(pki: &Path, subject: &Subject<'_>, found: bool, lifetime: SignedDuration, now: Timestamp) -> Result<(), CertError> {
    let dir = pki.join("etcd");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|source| CertError::File { what: "cannot make the directory", path: dir.clone(), source })?;
    let wrong = |source| CertError::Pki { dir: dir.clone(), source };
    let (ca_cert, ca_key) = pair(pki, "etcd/ca");
    if !ca_cert.exists() {
        if !found {
            return Err(CertError::NoKey { key: ca_key, needed: ca_cert });
        }
        let ca = Ca::new("etcd-ca", now, CA_LIFETIME).map_err(wrong)?;
        write(&ca_key, ca.key_pem(), 0o600)?;
        write(&ca_cert, ca.cert_pem(), 0o644)?;
    }
    let mut sans = vec!["localhost".to_owned(), subject.name.to_owned(), Ipv4Addr::LOCALHOST.to_string(), "::1".to_owned(), subject.address.to_string()];
    sans.dedup();
    let both = || vec![Usage::Server, Usage::Client];
    let wanted = [
        ("etcd/server", subject.name, sans.clone(), both()),
        ("etcd/peer", subject.name, sans, both()),
        ("etcd/healthcheck-client", "kube-etcd-healthcheck-client", Vec::new(), vec![Usage::Client]),
        ("apiserver-etcd-client", "kube-apiserver-etcd-client", Vec::new(), vec![Usage::Client]),
    ];
    for (name, cn, sans, usages) in wanted {
        let (cert, key) = pair(pki, name);
        if usable(&cert, &key, &sans, now) {
            continue;
        }
        if !ca_key.exists() {
            // An external CA: who has its key makes and renews them.
            if cert.exists() && key.exists() {
                continue;
            }
            return Err(CertError::NoKey { key: ca_key, needed: cert });
        }
        let ca = Ca::from_pem(&read(&ca_cert)?, &read(&ca_key)?).map_err(wrong)?;
        let request = CertRequest { cn: cn.into(), orgs: Vec::new(), sans, usages, lifetime };
        let made = ca.issue(&request, now).map_err(wrong)?;
        write(&key, &made.key_pem, 0o600)?;
        write(&cert, &made.cert_pem, 0o644)?;
    }
    Ok(())
}

/// Whether a certificate is there, good for a while, and for all these names.
fn usable(cert: &Path, key: &Path, sans: &[String], now: Timestamp) -> bool {
    let (Ok(text), true) = (fs::read_to_string(cert), key.exists()) else { return false };
    let Ok(peer) = pki::Peer::from_pem(&text) else { return false };
    !peer.is_due(now) && pki::names_of(&text).is_ok_and(|has| sans.iter().all(|san| has.contains(san)))
}

/// What a client of etcd shows, and by what it knows members: `name` is `apiserver-etcd-client` or `etcd/healthcheck-client`.
pub fn access(pki: &Path, name: &str) -> Result<Access, CertError> {
    let (cert, key) = pair(pki, name);
    Ok(Access { ca: read(&pair(pki, "etcd/ca").0)?, certificate: Some((read(&cert)?, read(&key)?)) })
}

fn read(path: &Path) -> Result<String, CertError> {
    fs::read_to_string(path).map_err(|source| CertError::File { what: "cannot read", path: path.into(), source })
}

pub(super) fn write(path: &Path, text: &str, mode: u32) -> Result<(), CertError> {
    files::replace(path, text.as_bytes(), mode).map_err(|source| CertError::File { what: "cannot write", path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_made_once_and_again_when_the_address_changes_or_they_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let (pki, now) = (dir.path(), Timestamp::now());
        let make = |subject: &Subject<'_>, found: bool, now: Timestamp| ensure(pki, subject, found, SignedDuration::from_hours(24 * 365), now);
        let one = Subject { name: "one", address: Ipv4Addr::new(192, 0, 2, 1) };
        let refused = make(&one, false, now).expect_err("no CA").to_string();
        assert!(refused.contains("--upload-certs"), "{refused}");
        make(&one, true, now).expect("made");
        let text = |name: &str| fs::read_to_string(pki.join(name)).expect("there");
        let (server, peer, client) = (text("etcd/server.crt"), text("etcd/peer.crt"), text("apiserver-etcd-client.crt"));
        make(&one, true, now).expect("used");
        assert_eq!((text("etcd/server.crt"), text("etcd/peer.crt")), (server.clone(), peer));
        let moved = Subject { address: Ipv4Addr::new(192, 0, 2, 9), ..one };
        make(&moved, true, now).expect("made anew");
        assert_ne!(text("etcd/server.crt"), server);
        assert_eq!(text("apiserver-etcd-client.crt"), client, "it has no address");
        make(&moved, true, now + SignedDuration::from_hours(24 * 320)).expect("renewed");
        assert_ne!(text("apiserver-etcd-client.crt"), client);
        // An external CA: its key is elsewhere.
        fs::remove_file(pki.join("etcd/ca.key")).expect("removed");
        make(&moved, false, now + SignedDuration::from_hours(24 * 320)).expect("all are there");
        fs::remove_file(pki.join("etcd/peer.crt")).expect("removed");
        let why = make(&moved, false, now).expect_err("no key").to_string();
        assert!(why.contains("etcd/ca.key") && why.contains("etcd/peer.crt"), "{why}");
        assert!(access(pki, "apiserver-etcd-client").expect("files").certificate.is_some());
    }
}
