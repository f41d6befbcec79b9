//! Certificates that peers show: who they are, and whether a CA of ours vouches for them.
//!
//! The chain check is ours and not rustls' because guides make client certificates with plain
//! `openssl x509 -req`, which are X.509 version 1; rustls refuses those and Go takes them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use jiff::{SignedDuration, Timestamp};
use x509_parser::der_parser::oid;
use x509_parser::oid_registry::Oid;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Name};

use crate::ca::BACKDATE;
use crate::{Error, Result, pem};

/// Who a client certificate speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Common name: the user.
    pub cn: String,
    /// Organisations: the groups.
    pub orgs: Vec<String>,
    /// The user's uid, by upstream's attribute for it; empty without, or what is wrong with it.
    pub uid: std::result::Result<String, String>,
    /// Start of validity, in seconds since 1970.
    pub not_before: i64,
    /// End of validity, in seconds since 1970.
    pub not_after: i64,
    /// SHA-256 of the certificate, in hexadecimal (upstream's credential id is `X509SHA256=…`).
    pub fingerprint: String,
}

impl Peer {
    /// Reads a certificate (DER) without checking who signed it.
    pub fn from_der(der: &[u8]) -> Result<Self> {
        Ok(peer(&parse(der)?, der))
    }

    /// The same of the first certificate in a PEM text.
    pub fn from_pem(text: &str) -> Result<Self> {
        Self::from_der(&first(text)?)
    }

    /// How long it was good for when it was issued.
    pub fn lifetime(&self) -> SignedDuration {
        let whole = SignedDuration::from_secs(self.not_after.saturating_sub(self.not_before));
        if whole > BACKDATE { whole - BACKDATE } else { whole }
    }

    /// Whether less than a third of its time is left: it should be made anew.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.not_after.saturating_sub(now.as_second()).saturating_mul(3) < self.lifetime().as_secs()
    }
}

/// The CA certificates that may vouch for clients.
#[derive(Debug, Clone)]
pub struct Roots {
    ders: Vec<Vec<u8>>,
}

impl Roots {
    /// All certificates of a PEM bundle.
    pub fn from_pem(bundle: &str) -> Result<Self> {
        let ders: Vec<Vec<u8>> =
            pem::decode(bundle).into_iter().filter(|b| b.label == "CERTIFICATE").map(|b| b.der).collect();
        if ders.is_empty() {
            return Err(Error::Pem("CERTIFICATE"));
        }
        for der in &ders {
            parse(der)?;
        }
        Ok(Self { ders })
    }

    /// Checks a chain as the peer sent it (leaf first, DER) for TLS client use at `now`.
    pub fn verify_client(&self, chain: &[impl AsRef<[u8]>], now: Timestamp) -> Result<Peer> {
        let first = chain.first().ok_or_else(|| Error::Verify("no certificate".into()))?.as_ref();
        let leaf = parse(first)?;
        check_time(&leaf, now)?;
        if let Ok(Some(usage)) = leaf.extended_key_usage()
            && !usage.value.client_auth
            && !usage.value.any
        {
            return Err(Error::Verify("certificate specifies an incompatible key usage".into()));
        }
        let intermediates =
            chain[1..].iter().take(8).map(|c| parse(c.as_ref())).collect::<Result<Vec<_>>>()?;
        let roots = self.ders.iter().map(|d| parse(d)).collect::<Result<Vec<_>>>()?;
        let mut current = &leaf;
        for _ in 0..=intermediates.len() {
            for root in &roots {
                if vouches(root, current, true) {
                    check_time(root, now)?;
                    return Ok(peer(&leaf, first));
                }
            }
            match intermediates.iter().find(|i| vouches(i, current, false)) {
                Some(next) => {
                    check_time(next, now)?;
                    current = next;
                }
                None => break,
            }
        }
        Err(Error::Verify("certificate signed by unknown authority".into()))
    }
}

/// A certificate's public key (SubjectPublicKeyInfo, DER).
pub fn public_key(der: &[u8]) -> Result<Vec<u8>> {
    Ok(parse(der)?.public_key().raw.to_vec())
}

/// SHA-256 of a certificate's public key (SubjectPublicKeyInfo), by which RFC 7469 pins it.
pub fn public_key_digest(der: &[u8]) -> Result<[u8; 32]> {
    let digest = ring::digest::digest(&ring::digest::SHA256, parse(der)?.public_key().raw);
    digest.as_ref().try_into().map_err(|_| Error::Certificate("no digest".into()))
}

/// The names and addresses that the first certificate of a PEM text is for.
pub fn names_of(cert_pem: &str) -> Result<Vec<String>> {
    let der = first(cert_pem)?;
    let names = parse(&der)?.subject_alternative_name().map_err(|e| Error::Certificate(e.to_string()))?.map(|e| e.value.general_names.clone());
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_string()),
        GeneralName::IPAddress(bytes) => ip(bytes).map(|ip| ip.to_string()),
        _ => None,
    };
    Ok(names.iter().flatten().filter_map(text).collect())
}

/// Whether the first certificate of a PEM text is signed by the CA of another.
pub fn is_signed_by(cert_pem: &str, ca_pem: &str) -> Result<bool> {
    let (cert, ca) = (first(cert_pem)?, first(ca_pem)?);
    Ok(vouches(&parse(&ca)?, &parse(&cert)?, true))
}

fn first(pem_text: &str) -> Result<Vec<u8>> {
    pem::decode(pem_text).into_iter().find(|b| b.label == "CERTIFICATE").map(|b| b.der).ok_or(Error::Pem("CERTIFICATE"))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>> {
    let (_, cert) = X509Certificate::from_der(der).map_err(|e| Error::Certificate(e.to_string()))?;
    Ok(cert)
}

/// Whether `issuer` signed `subject` and may. A root of version 1 has no constraints to look at:
/// the administrator's naming it a root is enough, as in Go.
fn vouches(issuer: &X509Certificate<'_>, subject: &X509Certificate<'_>, root: bool) -> bool {
    if issuer.subject().as_raw() != subject.issuer().as_raw() {
        return false;
    }
    let may = match issuer.basic_constraints() {
        Ok(Some(constraints)) => constraints.value.ca,
        Ok(None) => root && issuer.version.0 < 2,
        Err(_) => false,
    };
    may && subject.verify_signature(Some(issuer.public_key())).is_ok()
}

fn check_time(cert: &X509Certificate<'_>, now: Timestamp) -> Result<()> {
    let seconds = now.as_second();
    let validity = cert.validity();
    if seconds < validity.not_before.timestamp() || seconds > validity.not_after.timestamp() {
        return Err(Error::Verify("certificate has expired or is not yet valid".into()));
    }
    Ok(())
}

fn peer(cert: &X509Certificate<'_>, der: &[u8]) -> Peer {
    let (cn, orgs) = subject(cert.subject());
    let hash = ring::digest::digest(&ring::digest::SHA256, der);
    Peer {
        cn,
        orgs,
        uid: uid(cert.subject()),
        not_before: cert.validity().not_before.timestamp(),
        not_after: cert.validity().not_after.timestamp(),
        fingerprint: hash.as_ref().iter().map(|b| format!("{b:02x}")).collect(),
    }
}

/// Common name (the last one, as Go) and organisations of a name.
pub(crate) fn subject(name: &X509Name<'_>) -> (String, Vec<String>) {
    let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        a.as_str().map(str::to_owned).unwrap_or_else(|_| String::from_utf8_lossy(a.as_slice()).into_owned())
    };
    let cn = name.iter_common_name().last().map(text).unwrap_or_default();
    (cn, name.iter_organization().map(text).collect())
}

/// The attribute of a name that is a user's uid (1.3.6.1.4.1.57683.2, the Kubernetes project's own).
const UID: Oid<'_> = oid!(1.3.6.1.4.1.57683.2);

fn uid(name: &X509Name<'_>) -> std::result::Result<String, String> {
    let all: std::result::Result<Vec<&str>, _> = name.iter_by_oid(&UID).map(|a| a.as_str().map_err(|_| "unable to parse UID into a string")).collect();
    match all?[..] {
        [] => Ok(String::new()),
        [""] => Err("UID cannot be an empty string".into()),
        [uid] => Ok(uid.into()),
        ref more => Err(format!("expected 1 UID, but found multiple: [{}]", more.join(" "))),
    }
}

/// An IP address of a subject alternative name.
pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| Ipv6Addr::from(v6).into())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

    use super::*;

    #[test]
    fn a_uid_is_one_text() {
        let uid = |values: &[&str]| {
            let mut name = DistinguishedName::new();
            // of one type, a name made by this library has one value: others are made of another, and renamed
            for (i, value) in values.iter().enumerate() {
                name.push(DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 57683, 2 + i as u64]), DnValue::Utf8String((*value).into()));
            }
            let mut params = CertificateParams::default();
            params.distinguished_name = name;
            let mut der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
            let oid = |last: u8| [0x06, 0x09, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x83, 0xc2, 0x53, last];
            for at in 0..der.len() - 11 {
                if (2..9).any(|last| der[at..at + 11] == oid(last)) {
                    der[at + 10] = 2;
                }
            }
            Peer::from_der(&der).unwrap().uid
        };
        assert_eq!(uid(&[]), Ok(String::new()));
        assert_eq!(uid(&["7f"]), Ok("7f".into()));
        assert_eq!(uid(&[""]), Err("UID cannot be an empty string".into()));
        assert_eq!(uid(&["a", "b"]), Err("expected 1 UID, but found multiple: [a b]".into()));
    }
}
