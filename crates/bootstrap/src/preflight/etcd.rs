//! An etcd that others run.

use std::time::Duration;

use super::Findings;
use crate::config::ExternalEtcd;
use crate::etcd::{Access, Cluster};

const CHECK: &str = "ExternalEtcdVersion";
/// How long each endpoint may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks each endpoint for its version.
pub async fn check(findings: &mut Findings, etcd: &ExternalEtcd) {
    let cluster = match access(etcd).and_then(|access| Cluster::new(&etcd.endpoints, access.as_ref()).map_err(|e| e.to_string())) {
        Ok(cluster) => cluster.with_patience(PATIENCE),
        Err(why) => return findings.error(CHECK, format!("etcd.external cannot be asked: {why}; correct caFile, certFile and keyFile")),
    };
    for url in &etcd.endpoints {
        let one = cluster.at(std::slice::from_ref(url));
        match one.health().await {
            Ok(health) => told(findings, url, &health.version),
            Err(error) => findings.error(CHECK, format!("the etcd at {url} does not answer: {error}; start it, let port and certificates through, or correct etcd.external")),
        }
    }
}

fn access(etcd: &ExternalEtcd) -> Result<Option<Access>, String> {
    if etcd.ca_file.is_empty() {
        return Ok(None);
    }
    let read = |path: &str| std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
    let certificate = match etcd.cert_file.as_str() {
        "" => None,
        cert => Some((read(cert)?, read(&etcd.key_file)?)),
    };
    Ok(Some(Access { ca: read(&etcd.ca_file)?, certificate }))
}

fn told(findings: &mut Findings, url: &str, version: &str) {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) < (3, 4) => {
            findings.error(CHECK, format!("the etcd at {url} is {version}: 3.4 or newer is needed; upgrade it"));
        }
        (Some(3), Some(4)) => findings.warn(CHECK, format!("the etcd at {url} is {version}: 3.4 is no longer maintained upstream; it works, 3.5 or newer is better")),
        (Some(_), Some(_)) => {}
        _ => findings.error(CHECK, format!("couldn't parse external etcd version {version:?} of {url}: is it an etcd?")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let of = |version| {
            let mut findings = Findings::default();
            told(&mut findings, "https://a:2379", version);
            findings.0.into_iter().map(|f| (f.warning, f.text)).collect::<Vec<_>>()
        };
        assert_eq!(of("3.5.24"), []);
        assert_eq!(of("3.4.23"), [(true, "the etcd at https://a:2379 is 3.4.23: 3.4 is no longer maintained upstream; it works, 3.5 or newer is better".into())]);
        assert_eq!(of("3.3.8"), [(false, "the etcd at https://a:2379 is 3.3.8: 3.4 or newer is needed; upgrade it".into())]);
        assert!(!of("x")[0].0);
    }
}
