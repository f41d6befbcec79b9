//! Removes requests that nobody needs any more.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Api, DeleteParams};
use kube::{Client, ResourceExt};
use reconcile::Informer;

use super::is_issued;

/// How often it looks.
const PERIOD: Duration = Duration::from_secs(3600);
/// How long requests are kept that were decided.
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
/// How long those are that wait, for approval or for a certificate.
const PENDING: SignedDuration = SignedDuration::from_hours(24);

/// Whether a request is to go.
pub fn is_stale(request: &CertificateSigningRequest, now: Timestamp) -> bool {
    let status = request.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let older = |at: Option<Timestamp>, than: SignedDuration| at.is_some_and(|at| now.duration_since(at) > than);
    if conditions.is_empty() && older(request.metadata.creation_timestamp.as_ref().map(|t| t.0), PENDING) {
        return true;
    }
    let issued = is_issued(request);
    let ended = || {
        let pem = status.certificate.as_ref().map(|c| String::from_utf8_lossy(&c.0).into_owned()).unwrap_or_default();
        pki::certificate_end(&pem).is_ok_and(|end| now > end)
    };
    conditions.iter().any(|c| {
        let at = c.last_update_time.as_ref().map(|t| t.0);
        match c.type_.as_str() {
            "Approved" if issued => older(at, DECIDED) || ended(),
            "Approved" => older(at, PENDING),
            "Denied" | "Failed" => older(at, DECIDED),
            _ => false,
        }
    })
}

pub(super) async fn run(client: &Client, requests: &Informer<CertificateSigningRequest>) {
    let api = Api::<CertificateSigningRequest>::all(client.clone());
    requests.synced().await;
    loop {
        let now = Timestamp::now();
        for request in requests.list().iter().filter(|r| is_stale(r, now)) {
            match api.delete(&request.name_any(), &DeleteParams::default()).await {
                Ok(_) => tracing::debug!(request = request.name_any(), "a certificate request is removed"),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => tracing::warn!(request = request.name_any(), "the certificate request could not be removed: {error}"),
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(1_000_000_000 + hours * 3600).expect("a time")
    }

    fn request(condition: Option<&str>, certificate: Option<String>) -> CertificateSigningRequest {
        let conditions: Vec<Value> =
            condition.iter().map(|kind| json!({"type": kind, "status": "True", "lastUpdateTime": at(0).to_string()})).collect();
        let certificate = certificate.map(|pem| serde_json::to_value(k8s_openapi::ByteString(pem.into_bytes())).expect("JSON"));
        serde_json::from_value(json!({"metadata": {"name": "r", "creationTimestamp": at(0).to_string()},
            "spec": {"request": "", "signerName": "s"}, "status": {"conditions": conditions, "certificate": certificate}}))
        .expect("a request")
    }

    fn certificate(hours: i64) -> String {
        let ca = pki::Ca::new("ca", at(0), SignedDuration::from_hours(10000)).expect("a CA");
        let request = pki::CertRequest { cn: "x".into(), lifetime: SignedDuration::from_hours(hours), ..Default::default() };
        ca.issue(&request, at(0)).expect("a certificate").cert_pem
    }

    #[test]
    fn each_kind_has_its_time() {
        let minute = SignedDuration::from_mins(1);
        for (condition, hours) in [(None, 24), (Some("Approved"), 24), (Some("Denied"), 1), (Some("Failed"), 1)] {
            assert!(!is_stale(&request(condition, None), at(hours)), "{condition:?}");
            assert!(is_stale(&request(condition, None), at(hours) + minute), "{condition:?}");
        }
        assert!(!is_stale(&request(Some("Mine"), None), at(1000)));
        let issued = request(Some("Approved"), Some(certificate(1000)));
        assert!(!is_stale(&issued, at(1)));
        assert!(is_stale(&issued, at(1) + minute));
        let ended = request(Some("Approved"), Some(certificate(0)));
        assert!(is_stale(&ended, at(0) + minute));
        assert!(!is_stale(&ended, at(0)), "it is good to its last second");
    }
}
