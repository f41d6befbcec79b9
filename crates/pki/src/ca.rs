//! A certificate authority: making one, reading one, issuing certificates from it.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SigningKey,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::algorithm::{KeyAlgorithm, new_key_pem};
use crate::{Csr, Error, Result, der, pem, usage};

/// How long a certificate is valid.
pub type Lifetime = SignedDuration;

/// Certificates start this long before they are made, so that a peer whose clock is a little
/// behind accepts them (upstream backdates signed requests by five minutes as well).
pub(crate) const BACKDATE: SignedDuration = SignedDuration::from_mins(5);

/// An extended key usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// TLS server (`server auth`).
    Server,
    /// TLS client (`client auth`).
    Client,
}

/// What a certificate shall say.
#[derive(Debug, Clone, Default)]
pub struct CertRequest {
    /// Common name; for client certificates, the user.
    pub cn: String,
    /// Organisations; for client certificates, the groups.
    pub orgs: Vec<String>,
    /// Subject alternative names: host names and IP addresses as text.
    pub sans: Vec<String>,
    /// Extended key usages.
    pub usages: Vec<Usage>,
    /// Time from now to the end of validity.
    pub lifetime: Lifetime,
}

/// A certificate with its private key (PKCS #8), both as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct CertKey {
    /// The certificate.
    pub cert_pem: String,
    /// The private key.
    pub key_pem: String,
}

/// A certificate authority with its key.
pub struct Ca {
    cert_pem: String,
    cert_der: Vec<u8>,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// Makes a new self-signed CA with an ECDSA P-256 key.
    pub fn new(cn: &str, now: Timestamp, lifetime: Lifetime) -> Result<Self> {
        Ca::with_key(cn, &new_key_pem(KeyAlgorithm::EcdsaP256)?, now, lifetime)
    }

    /// Makes a new self-signed CA with a key that is there.
    pub fn with_key(cn: &str, key_pem: &str, now: Timestamp, lifetime: Lifetime) -> Result<Self> {
        let key = key_pair(key_pem)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, cn);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyCertSign];
        params.subject_alt_names = dns_san(cn).into_iter().collect();
        validity(&mut params, now.saturating_sub(BACKDATE).unwrap_or(now), now.saturating_add(lifetime).unwrap_or(now));
        let cert = params.self_signed(&key).map_err(|e| Error::Sign(e.to_string()))?;
        Ok(Self {
            cert_pem: cert.pem(),
            cert_der: cert.der().to_vec(),
            key_pem: key.serialize_pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads a CA from PEM texts. The key may be PKCS #8, PKCS #1 (RSA) or SEC 1 (EC), as kubeadm
    /// and openssl write them.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self> {
        let block = pem::decode(cert_pem)
            .into_iter()
            .find(|b| b.label == "CERTIFICATE")
            .ok_or(Error::Pem("CERTIFICATE"))?;
        let key = key_pair(key_pem)?;
        let cert_der = block.der;
        {
            let (_, cert) =
                X509Certificate::from_der(&cert_der).map_err(|e| Error::Certificate(e.to_string()))?;
            if cert.public_key().raw != key.subject_public_key_info() {
                return Err(Error::Key("the key does not belong to the CA certificate".into()));
            }
        }
        let issuer = Issuer::from_ca_cert_der(&cert_der.clone().into(), key)
            .map_err(|e| Error::Certificate(e.to_string()))?;
        Ok(Self { cert_pem: cert_pem.to_owned(), cert_der, key_pem: key_pem.to_owned(), issuer })
    }

    /// The CA's certificate as PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The CA's certificate as DER.
    pub fn cert_der(&self) -> &[u8] {
        &self.cert_der
    }

    /// The CA's private key as PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Issues a certificate with a new ECDSA P-256 key.
    pub fn issue(&self, request: &CertRequest, now: Timestamp) -> Result<CertKey> {
        self.issue_for_key(request, &new_key_pem(KeyAlgorithm::EcdsaP256)?, now)
    }

    /// Issues a certificate for a key that is there.
    pub fn issue_for_key(&self, request: &CertRequest, key_pem: &str, now: Timestamp) -> Result<CertKey> {
        let key = key_pair(key_pem)?;
        let sans = request.sans.iter().map(|s| san(s)).collect::<Result<Vec<_>>>()?;
        let start = now.saturating_sub(BACKDATE).unwrap_or(now);
        let end = now.saturating_add(request.lifetime).unwrap_or(now);
        let cert_pem = self.sign(&key, &request.cn, &request.orgs, sans, (KEY_USAGES.to_vec(), purposes(&request.usages)), start, end)?;
        Ok(CertKey { cert_pem, key_pem: key.serialize_pem() })
    }

    /// Signs a certificate request with the given usages and validity; subject and alternative
    /// names are the request's.
    pub fn sign_csr(&self, csr: &Csr, usages: &[Usage], start: Timestamp, end: Timestamp) -> Result<String> {
        self.sign_request(csr, KEY_USAGES.to_vec(), purposes(usages), start, end)
    }

    /// The same with usages as the certificates API names them (`digital signature`, `client auth`).
    pub fn sign_csr_as(&self, csr: &Csr, usages: &[String], start: Timestamp, end: Timestamp) -> Result<String> {
        let (keys, purposes) = usage::parse(usages)?;
        self.sign_request(csr, keys, purposes, start, end)
    }

    /// When the CA's certificate ends.
    pub fn not_after(&self) -> Result<Timestamp> {
        not_after(&self.cert_der)
    }

    fn sign_request(
        &self,
        csr: &Csr,
        keys: Vec<KeyUsagePurpose>,
        purposes: Vec<ExtendedKeyUsagePurpose>,
        start: Timestamp,
        end: Timestamp,
    ) -> Result<String> {
        let key =
            rcgen::SubjectPublicKeyInfo::from_der(&csr.public_key).map_err(|e| Error::Request(e.to_string()))?;
        let mut sans: Vec<SanType> = csr.ips.iter().map(|ip| SanType::IpAddress(*ip)).collect();
        for name in &csr.dns_names {
            sans.push(SanType::DnsName(name.as_str().try_into().map_err(|_| Error::Request(format!("invalid DNS name {name:?}")))?));
        }
        for mail in &csr.emails {
            sans.push(SanType::Rfc822Name(mail.as_str().try_into().map_err(|_| Error::Request(format!("invalid address {mail:?}")))?));
        }
        for uri in &csr.uris {
            sans.push(SanType::URI(uri.as_str().try_into().map_err(|_| Error::Request(format!("invalid URI {uri:?}")))?));
        }
        self.sign(&key, &csr.cn, &csr.orgs, sans, (keys, purposes), start, end)
    }

    #[allow(clippy::too_many_arguments)]
    fn sign(
        &self,
        key: &impl PublicKeyData,
        cn: &str,
        orgs: &[String],
        sans: Vec<SanType>,
        usages: (Vec<KeyUsagePurpose>, Vec<ExtendedKeyUsagePurpose>),
        start: Timestamp,
        end: Timestamp,
    ) -> Result<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(org) = orgs.first() {
            params.distinguished_name.push(DnType::OrganizationName, org.as_str());
        }
        if !cn.is_empty() {
            params.distinguished_name.push(DnType::CommonName, cn);
        }
        params.subject_alt_names = sans;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        (params.key_usages, params.extended_key_usages) = usages;
        // Two certificates for one key must differ in their serial number.
        let mut seed = key.der_bytes().to_vec();
        seed.extend(start.as_nanosecond().to_be_bytes());
        seed.extend(end.as_nanosecond().to_be_bytes());
        let hash = ring::digest::digest(&ring::digest::SHA256, &seed);
        let mut serial = hash.as_ref()[..16].to_vec();
        serial[0] = (serial[0] & 0x7f) | 0x40;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        validity(&mut params, start, end);
        let cert = params.signed_by(key, &self.issuer).map_err(|e| Error::Sign(e.to_string()))?;
        if orgs.len() < 2 {
            return Ok(cert.pem());
        }
        self.with_subject(cert.der(), &der::name(cn, orgs))
    }

    /// rcgen keeps one value an attribute type, but a user in several groups has several
    /// organisations: put the whole name in and sign again.
    fn with_subject(&self, cert_der: &[u8], name: &[u8]) -> Result<String> {
        let (_, cert) = X509Certificate::from_der(cert_der).map_err(|e| Error::Certificate(e.to_string()))?;
        let old = cert.subject().as_raw();
        let tbs = cert.tbs_certificate.as_ref();
        let at = old.as_ptr() as usize - tbs.as_ptr() as usize;
        let header = if tbs[1] < 0x80 { 2 } else { 2 + (tbs[1] & 0x7f) as usize };
        let tbs = der::seq(&[&tbs[header..at], name, &tbs[at + old.len()..]]);
        let signature = self.issuer.key().sign(&tbs).map_err(|e| Error::Sign(e.to_string()))?;
        // Certificate ::= SEQUENCE { tbs, algorithm, BIT STRING }
        let outer_header = if cert_der[1] < 0x80 { 2 } else { 2 + (cert_der[1] & 0x7f) as usize };
        let algorithm_at = outer_header + cert.tbs_certificate.as_ref().len();
        let algorithm_len = 2 + cert_der[algorithm_at + 1] as usize;
        let algorithm = &cert_der[algorithm_at..algorithm_at + algorithm_len];
        let bits = der::tlv(0x03, &[&[0u8][..], &signature].concat());
        Ok(pem::encode("CERTIFICATE", &der::seq(&[&tbs, algorithm, &bits])))
    }
}

const KEY_USAGES: [KeyUsagePurpose; 2] = [KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];

fn purposes(usages: &[Usage]) -> Vec<ExtendedKeyUsagePurpose> {
    let purpose = |usage: &Usage| match usage {
        Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
    };
    usages.iter().map(purpose).collect()
}

/// When the first certificate of a PEM text ends.
pub fn certificate_end(cert_pem: &str) -> Result<Timestamp> {
    let block = pem::decode(cert_pem).into_iter().find(|b| b.label == "CERTIFICATE").ok_or(Error::Pem("CERTIFICATE"))?;
    not_after(&block.der)
}

fn not_after(cert_der: &[u8]) -> Result<Timestamp> {
    let (_, cert) = X509Certificate::from_der(cert_der).map_err(|e| Error::Certificate(e.to_string()))?;
    Timestamp::from_second(cert.validity().not_after.timestamp()).map_err(|e| Error::Certificate(e.to_string()))
}

/// Reads a private key in any of the three PEM forms.
pub(crate) fn key_pair(key_pem: &str) -> Result<KeyPair> {
    let blocks = pem::decode(key_pem);
    let block = blocks
        .iter()
        .find(|b| b.label.ends_with("PRIVATE KEY"))
        .ok_or(Error::Pem("PRIVATE KEY"))?;
    let pkcs8 = match block.label.as_str() {
        "RSA PRIVATE KEY" => der::pkcs8_from_rsa(&block.der),
        "EC PRIVATE KEY" => {
            der::pkcs8_from_ec(&block.der).ok_or_else(|| Error::Key("unsupported EC key".into()))?
        }
        _ => block.der.clone(),
    };
    KeyPair::try_from(pkcs8).map_err(|e| Error::Key(e.to_string()))
}

fn dns_san(name: &str) -> Option<SanType> {
    Some(SanType::DnsName(name.try_into().ok()?))
}

fn san(text: &str) -> Result<SanType> {
    match text.parse::<IpAddr>() {
        Ok(ip) => Ok(SanType::IpAddress(ip)),
        Err(_) => dns_san(text).ok_or_else(|| Error::Request(format!("invalid DNS name {text:?}"))),
    }
}

fn validity(params: &mut CertificateParams, start: Timestamp, end: Timestamp) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |t: Timestamp| epoch + std::time::Duration::from_secs(t.as_second().max(0) as u64);
    params.not_before = at(start);
    params.not_after = at(end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Roots;

    fn now() -> Timestamp {
        "2026-05-01T10:00:00Z".parse().unwrap()
    }

    #[test]
    fn issues_what_was_asked_for() {
        let ca = Ca::new("kubernetes", now(), SignedDuration::from_hours(87600)).unwrap();
        let request = CertRequest {
            cn: "alice".into(),
            orgs: vec!["dev".into(), "ops".into(), "system:masters".into()],
            sans: vec!["localhost".into(), "10.96.0.1".into()],
            usages: vec![Usage::Client, Usage::Server],
            lifetime: SignedDuration::from_hours(24),
        };
        let issued = ca.issue(&request, now()).unwrap();
        let der = &pem::decode(&issued.cert_pem)[0].der;
        let roots = Roots::from_pem(ca.cert_pem()).unwrap();
        let peer = roots.verify_client(&[der], now()).unwrap();
        assert_eq!(peer.cn, "alice");
        assert_eq!(peer.orgs, ["dev", "ops", "system:masters"]);
        let late = now().saturating_add(SignedDuration::from_hours(25)).unwrap();
        assert!(roots.verify_client(&[der], late).unwrap_err().to_string().contains("expired"));
        let other = Ca::new("kubernetes", now(), SignedDuration::from_hours(1)).unwrap();
        assert!(Roots::from_pem(other.cert_pem()).unwrap().verify_client(&[der], now()).is_err());
    }

    #[test]
    fn usages_go_by_their_names() {
        let ca = Ca::new("kubernetes", now(), SignedDuration::from_hours(10)).unwrap();
        let made = crate::new_csr("x", "", &[], None).unwrap();
        let csr = Csr::from_pem(&made.cert_pem).unwrap();
        let sign = |usages: &[&str]| {
            let usages: Vec<String> = usages.iter().map(|u| u.to_string()).collect();
            ca.sign_csr_as(&csr, &usages, now(), now().saturating_add(SignedDuration::from_hours(1)).unwrap())
        };
        let pem = sign(&["code signing", "cert sign", "netscape sgc", "client auth"]).unwrap();
        let der = &pem::decode(&pem)[0].der;
        let (_, cert) = X509Certificate::from_der(der).unwrap();
        let extended = cert.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.code_signing && extended.client_auth && !extended.server_auth);
        assert_eq!(extended.other.iter().map(|o| o.to_string()).collect::<Vec<_>>(), ["2.16.840.1.113730.4.1"]);
        let key = cert.key_usage().unwrap().unwrap().value;
        assert!(key.key_cert_sign() && !key.digital_signature());
        assert!(!cert.is_ca());
        assert_eq!(certificate_end(&pem).unwrap(), now().saturating_add(SignedDuration::from_hours(1)).unwrap());
        assert_eq!(sign(&["fishing"]).unwrap_err().to_string(), "malformed certificate request: unrecognized usage values: [\"fishing\"]");
    }

    #[test]
    fn reads_itself_back() {
        let ca = Ca::new("kubernetes", now(), SignedDuration::from_hours(10)).unwrap();
        let again = Ca::from_pem(ca.cert_pem(), ca.key_pem()).unwrap();
        let issued = again.issue(&CertRequest { cn: "x".into(), usages: vec![Usage::Client], lifetime: SignedDuration::from_hours(1), ..Default::default() }, now()).unwrap();
        let roots = Roots::from_pem(ca.cert_pem()).unwrap();
        assert_eq!(roots.verify_client(&[&pem::decode(&issued.cert_pem)[0].der], now()).unwrap().cn, "x");
        let other = Ca::new("kubernetes", now(), SignedDuration::from_hours(10)).unwrap();
        assert!(Ca::from_pem(ca.cert_pem(), other.key_pem()).is_err());
    }

    #[test]
    fn server_certificate_is_not_a_client_certificate() {
        let ca = Ca::new("kubernetes", now(), SignedDuration::from_hours(10)).unwrap();
        let issued = ca.issue(&CertRequest { cn: "x".into(), usages: vec![Usage::Server], lifetime: SignedDuration::from_hours(1), ..Default::default() }, now()).unwrap();
        let roots = Roots::from_pem(ca.cert_pem()).unwrap();
        assert!(roots.verify_client(&[&pem::decode(&issued.cert_pem)[0].der], now()).is_err());
    }
}
