//! Certificate signing requests: those of nodes are approved when they ask for no more than a node may
//! have, approved ones are signed by the built-in signers, and old ones are removed.

mod approver;
mod cleaner;
mod signer;

pub use signer::{Authority, SIGNERS, Signing};

use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use pki::Csr;
use reconcile::{Queue, Requeue, run_workers};

use crate::Context;

const CLIENT_KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// Why a request is not handled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", crate::pods::text(.0))]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Pki(#[from] pki::Error),
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
    #[error("recognized csr {name:?} as {tried:?} but subject access review was not approved")]
    NotApproved { name: String, tried: Vec<&'static str> },
}

/// Whether a request has a condition that is true.
fn has(request: &CertificateSigningRequest, kind: &str) -> bool {
    request.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == kind && c.status == "True")
}

fn is_issued(request: &CertificateSigningRequest) -> bool {
    request.status.as_ref().and_then(|s| s.certificate.as_ref()).is_some_and(|c| !c.0.is_empty())
}

fn parse(request: &CertificateSigningRequest) -> Result<Csr, pki::Error> {
    Csr::from_pem(&String::from_utf8_lossy(&request.spec.request.0))
}

/// The request with one more condition.
fn with_condition(request: &CertificateSigningRequest, kind: &str, reason: &str, message: String, now: jiff::Timestamp) -> CertificateSigningRequest {
    let mut request = request.clone();
    let condition = CertificateSigningRequestCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    request.status.get_or_insert_default().conditions.get_or_insert_default().push(condition);
    request
}

/// What must hold of the request of a node's certificate, `serving` or client. The error is why not.
fn check_node(csr: &Csr, usages: &[String], serving: bool) -> Result<(), String> {
    let purpose = if serving { "server auth" } else { "client auth" };
    let needed = ["digital signature", "key encipherment", purpose];
    if csr.orgs != ["system:nodes"] {
        return Err("subject organization is not system:nodes".into());
    }
    if serving && csr.dns_names.is_empty() && csr.ips.is_empty() {
        return Err("DNS or IP subjectAltName is required".into());
    }
    if !serving && !csr.dns_names.is_empty() {
        return Err("DNS subjectAltNames are not allowed".into());
    }
    if !csr.emails.is_empty() {
        return Err("Email subjectAltNames are not allowed".into());
    }
    if !serving && !csr.ips.is_empty() {
        return Err("IP subjectAltNames are not allowed".into());
    }
    if !csr.uris.is_empty() {
        return Err("URI subjectAltNames are not allowed".into());
    }
    if !csr.cn.starts_with("system:node:") {
        return Err("subject common name does not begin with system:node:".into());
    }
    // Keys other than RSA cannot encipher.
    let asked = |usage: &str| usages.iter().any(|u| u == usage);
    if !usages.iter().all(|u| needed.contains(&u.as_str())) || !asked("digital signature") || !asked(purpose) {
        let mut needed = needed;
        needed.sort();
        return Err(format!("usages did not match [{}]", needed.join(" ")));
    }
    Ok(())
}

/// Starts the approver.
pub fn start_approver(context: &Context) {
    let approver = approver::Approver {
        client: context.client.clone(),
        nodes: context.informers.of::<Node>(),
        services: context.informers.of::<Service>(),
    };
    follow(context, "certificatesigningrequest-approving", move |request| {
        let approver = approver.clone();
        async move { approver.sync(&request).await }
    });
}

/// Starts the built-in signers.
pub fn start_signer(context: &Context, signing: Signing) {
    let client = context.client.clone();
    follow(context, "certificatesigningrequest-signing", move |request| {
        let (client, signing) = (client.clone(), signing.clone());
        async move { signer::sync(&client, &request, &signing).await }
    });
}

/// Starts the cleaner.
pub fn start_cleaner(context: &Context) {
    let requests = context.informers.of::<CertificateSigningRequest>();
    let client = context.client.clone();
    context.tasks.spawn("certificatesigningrequest-cleaner", async move { cleaner::run(&client, &requests).await });
}

fn follow<F, W>(context: &Context, name: &'static str, work: W)
where
    W: Fn(Arc<CertificateSigningRequest>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Requeue, Error>> + Send + 'static,
{
    let requests = context.informers.of::<CertificateSigningRequest>();
    let queue = Queue::<String>::new();
    let q = queue.clone();
    requests.on_change(move |c| {
        if c.new.is_some() {
            q.add(c.latest().name_any());
        }
    });
    run_workers(&context.tasks, name, context.workers(5), queue, move |key: String| {
        let (requests, work) = (requests.clone(), work.clone());
        async move {
            requests.synced().await;
            match requests.get("", &key) {
                Some(request) => work(request).await,
                None => Ok(Requeue::No),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_ask_for_what_nodes_may_have() {
        let node = Csr { cn: "system:node:a".into(), orgs: vec!["system:nodes".into()], ..Csr::default() };
        let usages = |all: &[&str]| -> Vec<String> { all.iter().map(|u| u.to_string()).collect() };
        let client = usages(&["digital signature", "client auth"]);
        let error = |csr: &Csr, usages: &[String], serving| check_node(csr, usages, serving).expect_err("it is refused");
        assert_eq!(check_node(&node, &client, false), Ok(()));
        assert_eq!(check_node(&node, &usages(&["client auth", "key encipherment", "digital signature"]), false), Ok(()));
        let wrong = "usages did not match [client auth digital signature key encipherment]";
        assert_eq!(error(&node, &usages(&["client auth"]), false), wrong);
        assert_eq!(error(&node, &usages(&["key encipherment", "client auth"]), false), wrong);
        assert_eq!(error(&node, &usages(&["digital signature", "client auth", "server auth"]), false), wrong);
        let named = Csr { dns_names: vec!["a".into()], ..node.clone() };
        assert_eq!(error(&named, &client, false), "DNS subjectAltNames are not allowed");
        let server = usages(&["digital signature", "server auth"]);
        assert_eq!(check_node(&named, &server, true), Ok(()));
        assert_eq!(error(&node, &server, true), "DNS or IP subjectAltName is required");
        assert_eq!(error(&named, &client, true), "usages did not match [digital signature key encipherment server auth]");
        let admin = Csr { orgs: vec!["system:masters".into()], ..node.clone() };
        assert_eq!(error(&admin, &client, false), "subject organization is not system:nodes");
        let other = Csr { cn: "a".into(), ..node };
        assert_eq!(error(&other, &client, false), "subject common name does not begin with system:node:");
    }

    #[test]
    fn a_condition_counts_when_it_is_true() {
        let request = |kind: &str, status: &str| -> CertificateSigningRequest {
            let conditions = serde_json::json!([{"type": kind, "status": status}]);
            serde_json::from_value(serde_json::json!({"metadata": {}, "spec": {"request": "", "signerName": "s"}, "status": {"conditions": conditions}})).expect("a request")
        };
        assert!(has(&request("Approved", "True"), "Approved"));
        assert!(!has(&request("Approved", "False"), "Approved") && !has(&request("Denied", "True"), "Approved"));
    }

    #[test]
    fn a_request_is_read_and_gets_its_condition() {
        let pem = pki::new_csr("system:node:a", "system:nodes", &[], None).expect("a request").cert_pem;
        let request = |text: &str| CertificateSigningRequest {
            metadata: kube::core::ObjectMeta { name: Some("r".into()), ..Default::default() },
            spec: k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec { request: k8s_openapi::ByteString(text.as_bytes().to_vec()), ..Default::default() },
            status: None,
        };
        let read = parse(&request(&pem)).expect("it is one");
        assert_eq!((read.cn.as_str(), read.orgs), ("system:node:a", vec!["system:nodes".to_string()]));
        assert!(parse(&request("nonsense")).is_err());
        let now = jiff::Timestamp::UNIX_EPOCH;
        let approved = with_condition(&request(&pem), "Approved", "AutoApproved", "m".into(), now);
        assert_eq!((approved.metadata.name.as_deref(), has(&approved, "Approved")), (Some("r"), true));
        let failed = with_condition(&approved, "Failed", "SignerValidationFailure", "n".into(), now);
        assert!(has(&failed, "Approved") && has(&failed, "Failed"), "those before stay");
    }
}
