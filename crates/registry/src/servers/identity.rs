//! The Lease by which others see that this server lives, and the removal of those of servers that are long gone.

use apiserver::Backend;
use apiserver::types::Status;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::util::{LEASES, number, text, uuid};

const NAMESPACE: &str = "kube-system";
const LABEL: &str = "apiserver.kubernetes.io/identity";
const COMPONENT: &str = "kube-apiserver";
/// How long a server counts as living after its last renewal.
const DURATION_SECONDS: i64 = 3600;

/// This server's name among others: that of its machine, hashed.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub name: String,
    host: String,
    holder: String,
}

impl Identity {
    pub fn new(host: &str) -> Self {
        let name = name(host);
        Self { holder: format!("{name}_{}", uuid()), name, host: host.to_owned() }
    }

    /// Says that this server lives.
    pub async fn renew(&self, backend: &Backend, now: Timestamp) -> Result<(), String> {
        let now = now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let mut say = |lease: &mut Value| -> Result<(), Status> {
            lease["metadata"]["labels"][LABEL] = COMPONENT.into();
            lease["metadata"]["labels"]["kubernetes.io/hostname"] = self.host.as_str().into();
            lease["spec"]["holderIdentity"] = self.holder.as_str().into();
            lease["spec"]["leaseDurationSeconds"] = DURATION_SECONDS.into();
            lease["spec"]["renewTime"] = now.as_str().into();
            Ok(())
        };
        let renewed = if backend.reader.has(*LEASES, NAMESPACE, &self.name) {
            backend.writer.modify(*LEASES, NAMESPACE, &self.name, &mut say).await
        } else {
            let mut lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self.name, "namespace": NAMESPACE}, "spec": {}});
            say(&mut lease).map_err(|status| status.message)?;
            backend.writer.create(*LEASES, lease).await
        };
        renewed.map(drop).map_err(|status| status.message)
    }

    /// Says that this server ends.
    pub async fn remove(&self, backend: &Backend) -> Result<(), String> {
        delete(backend, &self.name).await.map_err(|status| status.message)
    }
}

async fn delete(backend: &Backend, name: &str) -> Result<(), Status> {
    match backend.writer.delete(*LEASES, NAMESPACE, name, &Value::Null).await {
        Err(status) if status.reason == "NotFound" => Ok(()),
        other => other.map(drop),
    }
}

/// Removes the Leases of servers that renew them no more.
pub(crate) async fn collect(backend: &Backend, now: Timestamp) -> Result<(), String> {
    let leases = backend.reader.list(*LEASES, Some(NAMESPACE));
    for lease in leases.iter().filter(|l| is_servers(l) && is_expired(l, now)) {
        let name = text(lease, "/metadata/name");
        // the cache may be behind
        let current = match backend.writer.get(*LEASES, NAMESPACE, name).await {
            Ok(current) => current,
            Err(_) => continue,
        };
        if is_expired(&current, now) {
            delete(backend, name).await.map_err(|status| status.message)?;
        }
    }
    Ok(())
}

fn is_servers(lease: &Value) -> bool {
    lease.pointer("/metadata/labels").and_then(|l| l.get(LABEL)).is_some_and(|l| l == COMPONENT)
}

/// Whether it is not renewed in time; what no server writes so counts as that too.
fn is_expired(lease: &Value, now: Timestamp) -> bool {
    let renewed: Option<Timestamp> = text(lease, "/spec/renewTime").parse().ok();
    let lasts = number(lease, "/spec/leaseDurationSeconds");
    renewed.zip(lasts).is_none_or(|(at, seconds)| at.as_second().saturating_add(seconds) < now.as_second())
}

/// `apiserver-` and half a hash of host and component, each with its length before it, as upstream makes it.
fn name(host: &str) -> String {
    let mut data = Vec::new();
    for part in [host, COMPONENT] {
        data.extend((part.len() as u16).to_be_bytes());
        data.extend(part.as_bytes());
    }
    let hash = ring::digest::digest(&ring::digest::SHA256, &data);
    format!("apiserver-{}", base32(&hash.as_ref()[..16]))
}

/// RFC 4648, in small letters and without padding.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bit = |i: usize| bytes.get(i / 8).is_some_and(|b| b & (0x80 >> (i % 8)) != 0);
    (0..bytes.len() * 8).step_by(5).map(|at| ALPHABET[(at..at + 5).fold(0, |n, i| n * 2 + usize::from(bit(i)))] as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use apiserver::Reader;

    #[test]
    fn names() {
        assert_eq!(base32(b"foobar"), "mzxw6ytboi");
        assert_eq!(base32(b"foob"), "mzxw6yq");
        assert_eq!(name("host").len(), "apiserver-".len() + 26);
        assert_ne!(name("host"), name("hos"));
    }

    #[test]
    fn a_lease_is_renewed_and_goes_with_its_server() {
        let objects = Objects::new();
        let backend = objects.backend();
        let at = |second: i64| Timestamp::from_second(1_000_000_000 + second).unwrap();
        let identity = Identity::new("here");
        block_on(identity.renew(&backend, at(0))).unwrap();
        block_on(identity.renew(&backend, at(10))).unwrap();
        let lease = objects.get(&LEASES, NAMESPACE, &identity.name).unwrap();
        assert_eq!(lease["metadata"]["labels"], json!({LABEL: "kube-apiserver", "kubernetes.io/hostname": "here"}));
        assert_eq!(lease["spec"]["renewTime"], "2001-09-09T01:46:50.000000Z");
        assert!(text(&lease, "/spec/holderIdentity").starts_with(&format!("{}_", identity.name)));
        objects.put(&LEASES, json!({"metadata": {"name": "broken", "namespace": NAMESPACE, "labels": {LABEL: COMPONENT}}, "spec": {}}));
        objects.put(&LEASES, json!({"metadata": {"name": "other", "namespace": NAMESPACE}, "spec": {}}));
        block_on(collect(&backend, at(3610))).unwrap();
        assert_eq!(objects.list(&LEASES, None).len(), 2, "the broken one went");
        block_on(collect(&backend, at(3611))).unwrap();
        assert!(objects.has(&LEASES, NAMESPACE, "other") && !objects.has(&LEASES, NAMESPACE, &identity.name));
        block_on(identity.renew(&backend, at(0))).unwrap();
        block_on(identity.remove(&backend)).unwrap();
        block_on(identity.remove(&backend)).unwrap();
        assert!(!objects.has(&LEASES, NAMESPACE, &identity.name));
    }
}
