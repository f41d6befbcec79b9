//! The built-in signers: each knows what it signs, and signs it with its CA.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use pki::{Ca, Csr};
use reconcile::Requeue;

use super::{CLIENT, CLIENT_KUBELET, Error, KUBELET_SERVING, LEGACY, check_node, has, is_issued, parse, with_condition};
use crate::pods;

/// Where a CA's certificate and key come from.
#[derive(Clone, Debug)]
pub enum Authority {
    /// PEM certificate and PEM key.
    Pem(String, String),
    /// Files with these, read for each signature: they may be renewed.
    Files(PathBuf, PathBuf),
}

impl Authority {
    /// The CA as it is now.
    pub fn load(&self) -> Result<Ca, Error> {
        let read = |path: &Path| std::fs::read_to_string(path).map_err(|e| Error::File(path.to_path_buf(), e));
        Ok(match self {
            Authority::Pem(certificate, key) => Ca::from_pem(certificate, key)?,
            Authority::Files(certificate, key) => Ca::from_pem(&read(certificate)?, &read(key)?)?,
        })
    }
}

/// How the built-in signers sign.
#[derive(Clone, Debug)]
pub struct Signing {
    /// The CA of each signer, by the signer's name; one without does not sign.
    pub authorities: BTreeMap<&'static str, Authority>,
    /// The longest that a signed certificate lives.
    pub lifetime: SignedDuration,
}

impl Signing {
    /// One CA for all signers, and a year.
    pub fn by(authority: Authority) -> Signing {
        let authorities = SIGNERS.iter().map(|signer| (*signer, authority.clone())).collect();
        Signing { authorities, lifetime: SignedDuration::from_hours(24 * 365) }
    }
}

/// The signers that Kubernetes has built in.
pub const SIGNERS: [&str; 4] = [KUBELET_SERVING, CLIENT_KUBELET, CLIENT, LEGACY];

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
pub fn validity(asked: Option<i32>, longest: SignedDuration, now: Timestamp, ca_end: Timestamp) -> (Timestamp, Timestamp) {
    // A longest below the shortest wins.
    let lifetime = asked.map_or(longest, |s| SignedDuration::from_secs(i64::from(s)).max(SHORTEST).min(longest));
    let end = if lifetime < SHORT { now + lifetime } else { now + lifetime - BACKDATE };
    (now - BACKDATE, end.min(ca_end))
}

pub(super) async fn sync(client: &Client, request: &CertificateSigningRequest, signing: &Signing) -> Result<Requeue, Error> {
    if is_issued(request) || !has(request, "Approved") || has(request, "Denied") || has(request, "Failed") {
        return Ok(Requeue::No);
    }
    let Some(authority) = signing.authorities.get(request.spec.signer_name.as_str()) else { return Ok(Requeue::No) };
    let usages = request.spec.usages.clone().unwrap_or_default();
    let Some(csr) = parse(request).map(|csr| check(&request.spec.signer_name, &csr, &usages).map(|verdict| (csr, verdict))).transpose() else {
        return Ok(Requeue::No);
    };
    let (csr, verdict) = csr?;
    let now = Timestamp::now();
    let signed = match verdict {
        Err(why) => with_condition(request, "Failed", "SignerValidationFailure", why, now),
        Ok(()) => {
            let ca = authority.load()?;
            let (start, end) = validity(request.spec.expiration_seconds, signing.lifetime, now, ca.not_after()?);
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

    const LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 365);

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
        let lasts = |asked| validity(asked, LIFETIME, now, far).1.duration_since(now);
        assert_eq!(validity(None, LIFETIME, now, far).0, now - BACKDATE);
        assert_eq!(lasts(None), LIFETIME - BACKDATE);
        assert_eq!(lasts(Some(i32::MAX)), LIFETIME - BACKDATE);
        assert_eq!(lasts(Some(600)), SHORTEST);
        assert_eq!(lasts(Some(1)), SHORTEST);
        assert_eq!(lasts(Some(3600)), SignedDuration::from_hours(1), "short ones are as long as was asked");
        assert_eq!(lasts(Some(86400)), SignedDuration::from_hours(24) - BACKDATE);
        assert_eq!(lasts(Some(SHORT.as_secs() as i32)), SHORT - BACKDATE, "eight hours are not short");
        let soon = now + SignedDuration::from_hours(1);
        assert_eq!(validity(None, LIFETIME, now, soon).1, soon, "no longer than the CA");
        let brief = SignedDuration::from_mins(5);
        assert_eq!(validity(Some(3600), brief, now, far).1, now + brief, "no longer than the signer was told");
    }

    #[test]
    fn one_authority_may_be_all_signers_for_a_year() {
        let signing = Signing::by(Authority::Files("ca.crt".into(), "ca.key".into()));
        assert_eq!((signing.lifetime, signing.authorities.into_keys().collect::<Vec<_>>().len()), (LIFETIME, SIGNERS.len()));
    }
}
