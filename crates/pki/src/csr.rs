//! Certificate requests (PKCS #10): making, parsing, checking.

use std::net::IpAddr;

use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::{CertKey, Error, Result, ca, pem, peer};

/// A parsed certificate request whose self-signature was checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Csr {
    /// Common name.
    pub cn: String,
    /// Organisations.
    pub orgs: Vec<String>,
    /// DNS subject alternative names.
    pub dns_names: Vec<String>,
    /// IP subject alternative names.
    pub ips: Vec<IpAddr>,
    /// E-mail subject alternative names.
    pub emails: Vec<String>,
    /// URI subject alternative names.
    pub uris: Vec<String>,
    /// The subject's public key (SubjectPublicKeyInfo, DER).
    pub public_key: Vec<u8>,
}

impl Csr {
    /// Parses a PEM block `CERTIFICATE REQUEST` and checks its signature.
    pub fn from_pem(text: &str) -> Result<Self> {
        let blocks = pem::decode(text);
        let block = blocks
            .iter()
            .find(|b| b.label == "CERTIFICATE REQUEST")
            .ok_or_else(|| Error::Request("PEM block type must be CERTIFICATE REQUEST".into()))?;
        let (_, csr) = X509CertificationRequest::from_der(&block.der).map_err(|e| Error::Request(e.to_string()))?;
        csr.verify_signature().map_err(|e| Error::Request(e.to_string()))?;
        let info = &csr.certification_request_info;
        let (cn, orgs) = peer::subject(&info.subject);
        let mut out = Csr { cn, orgs, public_key: info.subject_pki.raw.to_vec(), ..Default::default() };
        for extension in csr.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(san) = extension {
                for name in &san.general_names {
                    match name {
                        GeneralName::DNSName(n) => out.dns_names.push((*n).to_owned()),
                        GeneralName::RFC822Name(n) => out.emails.push((*n).to_owned()),
                        GeneralName::URI(n) => out.uris.push((*n).to_owned()),
                        GeneralName::IPAddress(b) => out.ips.extend(peer::ip(b)),
                        other => return Err(Error::Request(format!("unsupported alternative name {other:?}"))),
                    }
                }
            }
        }
        Ok(out)
    }
}

/// Makes a certificate request with a new ECDSA P-256 key, or with the one given as PEM. The
/// result's `cert_pem` is the request.
pub fn new_csr(cn: &str, org: &str, sans: &[String], key_pem: Option<&str>) -> Result<CertKey> {
    let key = match key_pem {
        Some(text) => ca::key_pair(text)?,
        None => KeyPair::generate().map_err(|e| Error::Key(e.to_string()))?,
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if !org.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, org);
    }
    params.distinguished_name.push(DnType::CommonName, cn);
    for name in sans {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(
                name.as_str().try_into().map_err(|_| Error::Request(format!("invalid DNS name {name:?}")))?,
            ),
        });
    }
    let csr = params.serialize_request(&key).map_err(|e| Error::Sign(e.to_string()))?;
    let cert_pem = csr.pem().map_err(|e| Error::Sign(e.to_string()))?;
    Ok(CertKey { cert_pem, key_pem: key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ca, Roots, Usage};
    use jiff::{SignedDuration, Timestamp};

    #[test]
    fn request_travels_to_a_certificate() {
        let now: Timestamp = "2026-05-01T10:00:00Z".parse().unwrap();
        let made = new_csr("system:node:n1", "system:nodes", &["n1".into(), "10.0.0.1".into()], None).unwrap();
        let csr = Csr::from_pem(&made.cert_pem).unwrap();
        assert_eq!((csr.cn.as_str(), csr.orgs.as_slice()), ("system:node:n1", &["system:nodes".to_owned()][..]));
        assert_eq!(csr.dns_names, ["n1"]);
        assert_eq!(csr.ips, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        let ca = Ca::new("kubernetes", now, SignedDuration::from_hours(10)).unwrap();
        let end = now.saturating_add(SignedDuration::from_hours(1)).unwrap();
        let cert = ca.sign_csr(&csr, &[Usage::Client], now, end).unwrap();
        let der = &pem::decode(&cert)[0].der;
        let peer = Roots::from_pem(ca.cert_pem()).unwrap().verify_client(&[der], now).unwrap();
        assert_eq!(peer.cn, "system:node:n1");
        assert!(Csr::from_pem("nonsense").is_err());
    }
}
