//! Approves client certificates of nodes, for those who may have them, and serving certificates of
//! nodes that ask for their own names and addresses.
//!
//! The second is ours: upstream leaves serving certificates to others.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::api::core::v1::{Node, Service};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use pki::Csr;
use reconcile::{Informer, Requeue};

use super::{CLIENT_KUBELET, Error, KUBELET_SERVING, check_node, has, is_issued, parse, with_condition};
use crate::pods;

/// What is asked before a request is approved.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Whether its author may create one of these, in turn: subresource, and what is said then.
    Review(Vec<(&'static str, &'static str)>),
    /// Nothing: it is for what its author is anyway.
    Approve(&'static str),
    /// Somebody has to look at it.
    Leave,
}

/// Judges a request. Its author was authenticated by the API server, which filled in the names.
/// `taken` are addresses that are known to be others' than the requesting node's: with a certificate
/// for one of them, a node could pass for the API server.
pub fn judge(spec: &CertificateSigningRequestSpec, csr: &Csr, taken: &BTreeSet<IpAddr>) -> Verdict {
    let usages = spec.usages.clone().unwrap_or_default();
    let own = spec.username.as_ref() == Some(&csr.cn);
    match spec.signer_name.as_str() {
        CLIENT_KUBELET if check_node(csr, &usages, false).is_ok() => {
            let mut reviews = vec![("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.")];
            if own {
                reviews.insert(0, ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."));
            }
            Verdict::Review(reviews)
        }
        KUBELET_SERVING if own && check_node(csr, &usages, true).is_ok() => {
            let host = csr.cn.trim_start_matches("system:node:");
            let names = csr.dns_names.iter().all(|n| n == host) && !csr.ips.is_empty();
            let addresses = csr.ips.iter().all(|ip| !ip.is_loopback() && !ip.is_unspecified() && !taken.contains(ip));
            if names && addresses {
                Verdict::Approve("Auto approving kubelet serving certificate of the node itself.")
            } else {
                Verdict::Leave
            }
        }
        _ => Verdict::Leave,
    }
}

/// The addresses of all nodes but one, and of services.
fn taken(node: &str, nodes: &[Arc<Node>], services: &[Arc<Service>]) -> BTreeSet<IpAddr> {
    let others = nodes.iter().filter(|n| n.metadata.name.as_deref() != Some(node));
    let addresses = others.flat_map(|n| n.status.iter().flat_map(|s| s.addresses.iter().flatten())).map(|a| &a.address);
    let cluster_ips = services.iter().flat_map(|s| s.spec.iter().flat_map(|s| s.cluster_ips.iter().flatten()));
    addresses.chain(cluster_ips).filter_map(|a| a.parse().ok()).collect()
}

/// Asks whether the author of a request may create this kind of it.
fn review(spec: &CertificateSigningRequestSpec, subresource: &str) -> SubjectAccessReview {
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: spec.username.clone(),
            uid: spec.uid.clone(),
            groups: spec.groups.clone(),
            extra: spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some("certificates.k8s.io".into()),
                resource: Some("certificatesigningrequests".into()),
                subresource: Some(subresource.into()),
                verb: Some("create".into()),
                version: Some("*".into()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    }
}

#[derive(Clone)]
pub(super) struct Approver {
    pub client: Client,
    pub nodes: Informer<Node>,
    pub services: Informer<Service>,
}

impl Approver {
    pub async fn sync(&self, request: &CertificateSigningRequest) -> Result<Requeue, Error> {
        if is_issued(request) || has(request, "Approved") || has(request, "Denied") {
            return Ok(Requeue::No);
        }
        let csr = match parse(request) {
            Ok(csr) => csr,
            Err(error) => {
                tracing::debug!(request = request.name_any(), "the certificate request cannot be read: {error}");
                return Ok(Requeue::No);
            }
        };
        self.nodes.synced().await;
        self.services.synced().await;
        let node = request.spec.username.as_deref().unwrap_or_default().trim_start_matches("system:node:");
        let taken = taken(node, &self.nodes.list(), &self.services.list());
        let reviews = match judge(&request.spec, &csr, &taken) {
            Verdict::Leave => return Ok(Requeue::No),
            Verdict::Approve(message) => return self.approve(request, message).await,
            Verdict::Review(reviews) => reviews,
        };
        for (subresource, message) in &reviews {
            if self.may(&request.spec, subresource).await? {
                return self.approve(request, message).await;
            }
        }
        Err(Error::NotApproved { name: request.name_any(), tried: reviews.iter().map(|r| r.0).collect() })
    }

    async fn may(&self, spec: &CertificateSigningRequestSpec, subresource: &str) -> Result<bool, Error> {
        let answer = Api::<SubjectAccessReview>::all(self.client.clone()).create(&PostParams::default(), &review(spec, subresource)).await?;
        Ok(answer.status.is_some_and(|s| s.allowed))
    }

    async fn approve(&self, request: &CertificateSigningRequest, message: &str) -> Result<Requeue, Error> {
        let approved = with_condition(request, "Approved", "AutoApproved", message.into(), Timestamp::now());
        let api = Api::<CertificateSigningRequest>::all(self.client.clone());
        match api.replace_subresource("approval", &request.name_any(), &Default::default(), &approved).await {
            Ok(_) => Ok(Requeue::No),
            Err(error) => Ok(pods::written(Err(error))?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(signer: &str, user: &str, usages: &[&str]) -> CertificateSigningRequestSpec {
        CertificateSigningRequestSpec {
            signer_name: signer.into(),
            username: Some(user.into()),
            usages: Some(usages.iter().map(|u| u.to_string()).collect()),
            ..CertificateSigningRequestSpec::default()
        }
    }

    fn reviews(verdict: Verdict) -> Vec<&'static str> {
        let Verdict::Review(reviews) = verdict else { panic!("{verdict:?}") };
        reviews.into_iter().map(|r| r.0).collect()
    }

    #[test]
    fn only_node_certificates_are_approved_unasked() {
        let none = BTreeSet::new();
        let node = Csr { cn: "system:node:a".into(), orgs: vec!["system:nodes".into()], ..Csr::default() };
        let client = ["digital signature", "client auth"];
        assert_eq!(reviews(judge(&spec(CLIENT_KUBELET, "system:bootstrap:x", &client), &node, &none)), ["nodeclient"]);
        assert_eq!(reviews(judge(&spec(CLIENT_KUBELET, "system:node:a", &client), &node, &none)), ["selfnodeclient", "nodeclient"]);
        assert_eq!(reviews(judge(&spec(CLIENT_KUBELET, "system:node:b", &client), &node, &none)), ["nodeclient"], "another's name");
        let admin = Csr { cn: "admin".into(), orgs: vec!["system:masters".into()], ..Csr::default() };
        assert_eq!(judge(&spec(CLIENT_KUBELET, "system:bootstrap:x", &client), &admin, &none), Verdict::Leave);
        assert_eq!(judge(&spec(super::super::CLIENT, "system:node:a", &client), &node, &none), Verdict::Leave);
        let server = ["digital signature", "server auth"];
        assert_eq!(judge(&spec(CLIENT_KUBELET, "system:bootstrap:x", &server), &node, &none), Verdict::Leave);
        let own = Csr { ips: vec!["10.0.0.1".parse().expect("an address")], dns_names: vec!["a".into()], ..node.clone() };
        assert!(matches!(judge(&spec(KUBELET_SERVING, "system:node:a", &server), &own, &none), Verdict::Approve(_)));
        assert_eq!(judge(&spec(KUBELET_SERVING, "system:node:b", &server), &own, &none), Verdict::Leave, "another's name");
        let others = BTreeSet::from(["10.0.0.1".parse().expect("an address")]);
        assert_eq!(judge(&spec(KUBELET_SERVING, "system:node:a", &server), &own, &others), Verdict::Leave, "another's address");
        for everybodys in ["127.0.0.1", "::1", "0.0.0.0", "::"] {
            let local = Csr { ips: vec![everybodys.parse().expect("an address")], ..own.clone() };
            assert_eq!(judge(&spec(KUBELET_SERVING, "system:node:a", &server), &local, &none), Verdict::Leave, "{everybodys}");
        }
        let foreign = Csr { dns_names: vec!["kubernetes".into()], ..own };
        assert_eq!(judge(&spec(KUBELET_SERVING, "system:node:a", &server), &foreign, &none), Verdict::Leave);
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

    #[test]
    fn authors_are_asked_about_with_all_that_they_are() {
        let mut asked = spec(CLIENT_KUBELET, "system:bootstrap:x", &["client auth"]);
        (asked.uid, asked.groups) = (Some("u".into()), Some(vec!["system:bootstrappers".into()]));
        asked.extra = Some([("scopes".to_string(), vec!["all".to_string()])].into());
        let attributes = serde_json::json!({"group": "certificates.k8s.io", "resource": "certificatesigningrequests", "subresource": "nodeclient", "verb": "create", "version": "*"});
        assert_eq!(serde_json::json!(review(&asked, "nodeclient").spec), serde_json::json!({"user": "system:bootstrap:x", "uid": "u",
            "groups": ["system:bootstrappers"], "extra": {"scopes": ["all"]}, "resourceAttributes": attributes}));
    }
}
