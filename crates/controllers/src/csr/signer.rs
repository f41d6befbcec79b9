//! The built-in signers: each knows what it signs, and signs it with the cluster's CA.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use pki::{Ca, Csr};
use reconcile::Requeue;

use super::{CLIENT, CLIENT_KUBELET, Error, KUBELET_SERVING, LEGACY, check_node, has, is_issued, parse, with_condition};
use crate::pods;

/// The longest that a signed certificate lives.
const LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 365);
/// The shortest.
const SHORTEST: SignedDuration = SignedDuration::from_mins(10);
/// Certificates begin this long before they are signed, for clocks that are late.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);
/// Shorter ones last as long as was asked for all the same.
const SHORT: SignedDuration = SignedDuration::from_hours(8);

/// Whether a signer is ours, and why it will not sign this request.
pub fn check(signer: &str, csr: &Csr, usages: &[String]) -> Option<Result<(), String>> {
    Some(match signer {
        CLIENT_KUBELET => check_node(csr, usages, false),
        KUBELET_SERVING => check_node(csr, usages, true),
        CLIENT => match usages.iter().find(|u| !["digital signature", "key encipherment", "client auth"].contains(&u.as_str())) {
            Some(other) => Err(format!("invalid usage for client certificate: {other}")),
            None if !usages.iter().any(|u| u == "client auth") => Err("missing required usage for client certificate: client auth".into()),
            None => Ok(()),
        },
        LEGACY => Ok(()),
        _ => return None,
    })
}

/// From when to when a certificate is valid; never longer than that of the CA.
pub fn validity(asked: Option<i32>, now: Timestamp, ca_end: Timestamp) -> (Timestamp, Timestamp) {
    let lifetime = asked.map_or(LIFETIME, |s| SignedDuration::from_secs(i64::from(s)).clamp(SHORTEST, LIFETIME));
    let end = if lifetime < SHORT { now + lifetime } else { now + lifetime - BACKDATE };
    (now - BACKDATE, end.min(ca_end))
}

pub(super) async fn sync(client: &Client, request: &CertificateSigningRequest, signing_ca: &(String, String)) -> Result<Requeue, Error> {
    if is_issued(request) || !has(request, "Approved") || has(request, "Denied") || has(request, "Failed") {
        return Ok(Requeue::No);
    }
    let usages = request.spec.usages.clone().unwrap_or_default();
    let Some(csr) = parse(request).map(|csr| check(&request.spec.signer_name, &csr, &usages).map(|verdict| (csr, verdict))).transpose() else {
        return Ok(Requeue::No);
    };
    let (csr, verdict) = csr?;
    let now = Timestamp::now();
    let signed = match verdict {
        Err(why) => with_condition(request, "Failed", "SignerValidationFailure", why, now),
        Ok(()) => {
            let ca = Ca::from_pem(&signing_ca.0, &signing_ca.1)?;
            let (start, end) = validity(request.spec.expiration_seconds, now, ca.not_after()?);
            let certificate = ca.sign_csr_as(&csr, &usages, start, end)?;
            let mut signed = request.clone();
            signed.status.get_or_insert_default().certificate = Some(k8s_openapi::ByteString(certificate.into_bytes()));
            signed
        }
    };
    match Api::<CertificateSigningRequest>::all(client.clone()).replace_status(&request.name_any(), &PostParams::default(), &signed).await {
        Ok(_) => Ok(Requeue::No),
        Err(error) => Ok(pods::written(Err(error))?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signer_knows_what_it_signs() {
        let usages = |all: &[&str]| -> Vec<String> { all.iter().map(|u| u.to_string()).collect() };
        let anyone = Csr { cn: "jane".into(), orgs: vec!["dev".into()], ..Csr::default() };
        let client = usages(&["digital signature", "client auth"]);
        assert_eq!(check(CLIENT, &anyone, &client), Some(Ok(())));
        assert_eq!(check(CLIENT, &anyone, &usages(&["server auth"])), Some(Err("invalid usage for client certificate: server auth".into())));
        assert_eq!(
            check(CLIENT, &anyone, &usages(&["digital signature"])),
            Some(Err("missing required usage for client certificate: client auth".into()))
        );
        assert!(matches!(check(CLIENT_KUBELET, &anyone, &client), Some(Err(_))));
        assert!(matches!(check(KUBELET_SERVING, &anyone, &client), Some(Err(_))));
        assert_eq!(check(LEGACY, &anyone, &usages(&["code signing"])), Some(Ok(())));
        assert_eq!(check("example.com/mine", &anyone, &client), None);
    }

    #[test]
    fn lifetimes_have_bounds() {
        let now = Timestamp::from_second(1_000_000_000).expect("a time");
        let far = now + SignedDuration::from_hours(24 * 3650);
        let lasts = |asked| validity(asked, now, far).1.duration_since(now);
        assert_eq!(validity(None, now, far).0, now - BACKDATE);
        assert_eq!(lasts(None), LIFETIME - BACKDATE);
        assert_eq!(lasts(Some(i32::MAX)), LIFETIME - BACKDATE);
        assert_eq!(lasts(Some(600)), SHORTEST);
        assert_eq!(lasts(Some(1)), SHORTEST);
        assert_eq!(lasts(Some(3600)), SignedDuration::from_hours(1), "short ones are as long as was asked");
        assert_eq!(lasts(Some(86400)), SignedDuration::from_hours(24) - BACKDATE);
        let soon = now + SignedDuration::from_hours(1);
        assert_eq!(validity(None, now, soon).1, soon, "no longer than the CA");
    }
}
