//! Which certificates are taken from servers that this one calls: webhooks, aggregated servers, collectors of audit events.
//!
//! Beside what rustls takes, a certificate that is a CA's may be a server's too, as in Go: operators make themselves one
//! self-signed certificate, which is its own CA, and name that as the bundle.
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

/// Trusts what a bundle vouches for.
#[derive(Debug)]
pub(crate) struct Trust {
    usual: Arc<WebPkiServerVerifier>,
    bundle: Vec<CertificateDer<'static>>,
}

impl Trust {
    /// From the bundle's certificates; those that cannot be used vouch for nothing.
    pub fn new(bundle: Vec<CertificateDer<'static>>, provider: Arc<CryptoProvider>) -> Result<Trust, String> {
        let mut roots = RootCertStore::empty();
        for certificate in &bundle {
            let _ = roots.add(certificate.clone());
        }
        let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Trust { usual: usual.map_err(|_| "unable to load root certificates: unable to parse bytes as PEM block")?, bundle })
    }

    /// Whether a CA's certificate is in the bundle, or signed by one that is, and may be this server's now.
    fn takes_ca(&self, given: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Option<()> {
        let (_, certificate) = X509Certificate::from_der(given).ok()?;
        let now = ASN1Time::from_timestamp(now.as_secs().try_into().ok()?).ok()?;
        let usage = certificate.extended_key_usage().ok()?;
        let serves = usage.is_none_or(|usage| usage.value.any || usage.value.server_auth);
        let vouched = self.bundle.iter().any(|root| {
            root == given
                || X509Certificate::from_der(root).is_ok_and(|(_, root)| {
                    root.is_ca()
                        && root.subject().as_raw() == certificate.issuer().as_raw()
                        && root.validity().is_valid_at(now)
                        && certificate.verify_signature(Some(root.public_key())).is_ok()
                })
        });
        (certificate.is_ca() && serves && vouched && certificate.validity().is_valid_at(now)).then_some(())?;
        verify_server_name(&ParsedCertificate::try_from(given).ok()?, name).ok()
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        given: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let usual = self.usual.verify_server_cert(given, others, name, ocsp, now);
        usual.or_else(|error| self.takes_ca(given, name, now).map(|()| ServerCertVerified::assertion()).ok_or(error))
    }

    fn verify_tls12_signature(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};
    use rustls::pki_types::pem::PemObject;

    use super::*;

    fn verify(bundle: &[&str], given: &str, name: &str, later: u64) -> Result<(), Error> {
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let trust = Trust::new(bundle.iter().map(|pem| der(pem)).collect(), Arc::new(rustls::crypto::ring::default_provider())).unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(Timestamp::now().as_second() as u64 + later));
        trust.verify_server_cert(&der(given), &[], &ServerName::try_from(name).unwrap(), &[], now).map(drop)
    }

    /// A self-signed certificate that is a CA's and has a name, as kopf and openssl make them.
    const OWN: &str = include_str!("testdata/self-signed.pem");

    #[test]
    fn a_ca_may_be_its_own_server() {
        verify(&[OWN], OWN, "localhost", 0).unwrap();
        assert!(verify(&[OWN], OWN, "elsewhere", 0).is_err(), "of another name");
        assert!(verify(&[OWN], OWN, "localhost", 200 * 365 * 86_400).is_err(), "expired");
        let other = pki::Ca::new("other", Timestamp::now(), SignedDuration::from_hours(1)).unwrap();
        assert!(verify(&[other.cert_pem()], OWN, "localhost", 0).is_err(), "nobody vouches for it");
    }

    #[test]
    fn ordinary_certificates_are_taken_as_ever() {
        let ca = pki::Ca::new("ca", Timestamp::now(), SignedDuration::from_hours(1)).unwrap();
        let issue = |usage| {
            let request = pki::CertRequest {
                cn: "s".into(),
                sans: vec!["s.example.com".into()],
                usages: vec![usage],
                lifetime: SignedDuration::from_hours(1),
                ..Default::default()
            };
            ca.issue(&request, Timestamp::now()).unwrap().cert_pem
        };
        verify(&[ca.cert_pem()], &issue(pki::Usage::Server), "s.example.com", 0).unwrap();
        assert!(verify(&[ca.cert_pem()], &issue(pki::Usage::Client), "s.example.com", 0).is_err());
        assert!(verify(&[OWN], &issue(pki::Usage::Server), "s.example.com", 0).is_err());
    }
}
