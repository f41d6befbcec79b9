//! Certificate signing requests of nodes: approved when they ask for no more than a node may have,
//! and signed by the cluster's CA. Old requests are removed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::api::core::v1::{Node, Service};
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Client, ResourceExt};
use pki::{Ca, Csr, Usage};
use reconcile::{Queue, Requeue, run_workers};

use crate::Context;

const CLIENT_KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// The longest that a signed certificate lives.
const LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 365);
/// How long finished requests are kept.
const KEPT: SignedDuration = SignedDuration::from_hours(1);

/// Whether a request is for what its requestor may have without being asked.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A client certificate of a node, asked for by a bootstrapping node or by that very node.
    Approve(&'static str),
    /// Somebody has to look at it.
    Leave,
}

/// Judges a request. The requestor was authenticated by the API server, which filled in the names.
/// `taken` are addresses that are known to be others' than the requesting node's: with a certificate
/// for one of them, a node could pass for the API server.
pub fn judge(spec: &CertificateSigningRequestSpec, csr: &Csr, taken: &BTreeSet<IpAddr>) -> Verdict {
    let groups = spec.groups.clone().unwrap_or_default();
    let username = spec.username.clone().unwrap_or_default();
    let usages = spec.usages.clone().unwrap_or_default();
    let node = csr.cn.starts_with("system:node:") && csr.orgs == ["system:nodes"];
    let only = |allowed: &[&str], needed: &str| {
        usages.iter().all(|u| allowed.contains(&u.as_str())) && usages.iter().any(|u| u == needed)
    };
    if !node {
        return Verdict::Leave;
    }
    match spec.signer_name.as_str() {
        CLIENT_KUBELET => {
            let names = csr.dns_names.len() + csr.ips.len() + csr.emails.len() + csr.uris.len();
            if names != 0 || !only(&["key encipherment", "digital signature", "client auth"], "client auth") {
                Verdict::Leave
            } else if username == csr.cn && groups.iter().any(|g| g == "system:nodes") {
                Verdict::Approve("Auto approving self kubelet client certificate after SubjectAccessReview.")
            } else if groups.iter().any(|g| g == "system:bootstrappers") {
                Verdict::Approve("Auto approving kubelet client certificate after SubjectAccessReview.")
            } else {
                Verdict::Leave
            }
        }
        // The node's own serving certificate: its name and addresses alone, asked for by itself.
        KUBELET_SERVING => {
            let host = csr.cn.trim_start_matches("system:node:");
            let names = csr.emails.is_empty() && csr.uris.is_empty() && csr.dns_names.iter().all(|n| n == host) && !csr.ips.is_empty();
            let names = names && csr.ips.iter().all(|ip| !ip.is_loopback() && !ip.is_unspecified() && !taken.contains(ip));
            if username == csr.cn && names && only(&["key encipherment", "digital signature", "server auth"], "server auth") {
                Verdict::Approve("Auto approving kubelet serving certificate of the node itself.")
            } else {
                Verdict::Leave
            }
        }
        _ => Verdict::Leave,
    }
}

/// The usages that a signer grants.
fn usages(signer: &str) -> Option<&'static [Usage]> {
    match signer {
        CLIENT_KUBELET | CLIENT => Some(&[Usage::Client]),
        KUBELET_SERVING => Some(&[Usage::Server]),
        _ => None,
    }
}

/// Starts approver, signer and cleaner.
pub fn start(context: &Context, signing_ca: (String, String)) {
    let requests = context.informers.of::<CertificateSigningRequest>();
    let queue = Queue::<String>::new();
    let q = queue.clone();
    requests.on_change(move |c| {
        if c.new.is_some() {
            q.add(c.latest().name_any());
        }
    });
    let client = context.client.clone();
    let (nodes, services) = (context.informers.of::<Node>(), context.informers.of::<Service>());
    run_workers(&context.tasks, "certificatesigningrequest", context.workers(1), queue, move |name: String| {
        let (client, requests, signing_ca) = (client.clone(), requests.clone(), signing_ca.clone());
        let (nodes, services) = (nodes.clone(), services.clone());
        async move {
            requests.synced().await;
            nodes.synced().await;
            services.synced().await;
            match requests.get("", &name) {
                Some(request) => {
                    let username = request.spec.username.as_deref().unwrap_or_default();
                    let taken = taken(username.trim_start_matches("system:node:"), &nodes.list(), &services.list());
                    sync(&client, &request, &taken, &signing_ca).await
                }
                None => Ok(Requeue::No),
            }
        }
    });
}

/// The addresses of all nodes but one, and of services.
fn taken(node: &str, nodes: &[Arc<Node>], services: &[Arc<Service>]) -> BTreeSet<IpAddr> {
    let others = nodes.iter().filter(|n| n.metadata.name.as_deref() != Some(node));
    let addresses = others.flat_map(|n| n.status.iter().flat_map(|s| s.addresses.iter().flatten())).map(|a| &a.address);
    let cluster_ips = services.iter().flat_map(|s| s.spec.iter().flat_map(|s| s.cluster_ips.iter().flatten()));
    addresses.chain(cluster_ips).filter_map(|a| a.parse().ok()).collect()
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}", crate::pods::text(.0))]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Pki(#[from] pki::Error),
}

async fn sync(client: &Client, request: &CertificateSigningRequest, taken: &BTreeSet<IpAddr>, signing_ca: &(String, String)) -> Result<Requeue, Error> {
    let api = Api::<CertificateSigningRequest>::all(client.clone());
    let name = request.name_any();
    let now = Timestamp::now();
    let status = request.status.clone().unwrap_or_default();
    let has = |kind: &str| status.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True");
    if has("Denied") || has("Failed") || status.certificate.is_some() {
        let created = request.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
        let left = KEPT - now.duration_since(created);
        if left.is_positive() {
            return Ok(Requeue::After(left.unsigned_abs()));
        }
        return match api.delete(&name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Requeue::No),
            other => Ok(other.map(|_| Requeue::No)?),
        };
    }
    let pem = String::from_utf8_lossy(&request.spec.request.0).into_owned();
    let csr = match Csr::from_pem(&pem) {
        Ok(csr) => csr,
        Err(error) => {
            tracing::warn!(request = name, "the certificate request cannot be read: {error}");
            return Ok(Requeue::No);
        }
    };
    if !has("Approved") {
        let Verdict::Approve(message) = judge(&request.spec, &csr, taken) else { return Ok(Requeue::No) };
        let mut approved = request.clone();
        let mut conditions = status.conditions.unwrap_or_default();
        conditions.push(k8s_openapi::api::certificates::v1::CertificateSigningRequestCondition {
            type_: "Approved".into(),
            status: "True".into(),
            reason: Some("AutoApproved".into()),
            message: Some(message.into()),
            ..Default::default()
        });
        approved.status.get_or_insert_default().conditions = Some(conditions);
        api.replace_subresource("approval", &name, &Default::default(), &approved).await?;
        return Ok(Requeue::No);
    }
    let Some(usages) = usages(&request.spec.signer_name) else { return Ok(Requeue::No) };
    let ca = Ca::from_pem(&signing_ca.0, &signing_ca.1)?;
    let asked = request.spec.expiration_seconds.map_or(LIFETIME, |s| SignedDuration::from_secs(i64::from(s)));
    let start = now - SignedDuration::from_mins(5);
    let certificate = ca.sign_csr(&csr, usages, start, now + asked.min(LIFETIME))?;
    let mut signed = request.clone();
    signed.status.get_or_insert_default().certificate = Some(k8s_openapi::ByteString(certificate.into_bytes()));
    api.replace_status(&name, &PostParams::default(), &signed).await?;
    Ok(Requeue::After(Duration::from_secs(3600)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(signer: &str, user: &str, group: &str, usages: &[&str]) -> CertificateSigningRequestSpec {
        CertificateSigningRequestSpec {
            signer_name: signer.into(),
            username: Some(user.into()),
            groups: Some(vec![group.into()]),
            usages: Some(usages.iter().map(|u| u.to_string()).collect()),
            ..CertificateSigningRequestSpec::default()
        }
    }

    #[test]
    fn only_node_certificates_are_approved_unasked() {
        let none = BTreeSet::new();
        let node = Csr { cn: "system:node:a".into(), orgs: vec!["system:nodes".into()], ..Csr::default() };
        let client = ["digital signature", "client auth"];
        assert!(matches!(judge(&spec(CLIENT_KUBELET, "system:bootstrap:x", "system:bootstrappers", &client), &node, &none), Verdict::Approve(_)));
        assert!(matches!(judge(&spec(CLIENT_KUBELET, "system:node:a", "system:nodes", &client), &node, &none), Verdict::Approve(_)));
        assert_eq!(judge(&spec(CLIENT_KUBELET, "jane", "dev", &client), &node, &none), Verdict::Leave);
        assert_eq!(judge(&spec(CLIENT_KUBELET, "system:node:b", "system:nodes", &client), &node, &none), Verdict::Leave, "another node's name");
        let admin = Csr { cn: "admin".into(), orgs: vec!["system:masters".into()], ..Csr::default() };
        assert_eq!(judge(&spec(CLIENT_KUBELET, "system:bootstrap:x", "system:bootstrappers", &client), &admin, &none), Verdict::Leave);
        let server = ["digital signature", "server auth"];
        assert_eq!(judge(&spec(CLIENT_KUBELET, "system:bootstrap:x", "system:bootstrappers", &server), &node, &none), Verdict::Leave);
        let own = Csr { ips: vec!["10.0.0.1".parse().expect("an address")], dns_names: vec!["a".into()], ..node.clone() };
        assert!(matches!(judge(&spec(KUBELET_SERVING, "system:node:a", "system:nodes", &server), &own, &none), Verdict::Approve(_)));
        let others = BTreeSet::from(["10.0.0.1".parse().expect("an address")]);
        assert_eq!(judge(&spec(KUBELET_SERVING, "system:node:a", "system:nodes", &server), &own, &others), Verdict::Leave, "another's address");
        let foreign = Csr { dns_names: vec!["kubernetes".into()], ..own };
        assert_eq!(judge(&spec(KUBELET_SERVING, "system:node:a", "system:nodes", &server), &foreign, &none), Verdict::Leave);
    }

    #[test]
    fn a_node_may_keep_its_own_address_and_take_no_other() {
        let node = |name: &str, ip: &str| -> Arc<Node> {
            let status = serde_json::json!({"addresses": [{"type": "InternalIP", "address": ip}, {"type": "Hostname", "address": name}]});
            Arc::new(serde_json::from_value(serde_json::json!({"metadata": {"name": name}, "status": status})).expect("a node"))
        };
        let service = serde_json::json!({"metadata": {"name": "kubernetes"}, "spec": {"clusterIPs": ["10.96.0.1"]}});
        let services = [Arc::new(serde_json::from_value(service).expect("a service"))];
        let all = taken("a", &[node("a", "10.0.0.1"), node("b", "10.0.0.2")], &services);
        assert_eq!(all.iter().map(|ip| ip.to_string()).collect::<Vec<_>>(), ["10.0.0.2", "10.96.0.1"]);
    }
}
