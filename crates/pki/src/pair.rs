//! Whether a certificate and a private key belong together, and what is wrong if not, in the words of Go's crypto/tls.

use rcgen::{KeyPair, PublicKeyData};
use x509_parser::asn1_rs::{Any, FromDer};
use x509_parser::prelude::X509Certificate;
use x509_parser::public_key::PublicKey;

use crate::{Block, der, pem};

const FOREIGN: &str = "tls: private key type does not match public key type";

/// What is wrong with a key pair (PEM), if anything is.
pub fn key_pair_mistake(cert_pem: &[u8], key_pem: &[u8]) -> Option<String> {
    let blocks = |pem: &[u8]| pem::decode(&String::from_utf8_lossy(pem));
    check(&blocks(cert_pem), &blocks(key_pem)).err()
}

fn check(certs: &[Block], keys: &[Block]) -> Result<(), String> {
    let types = |blocks: &[Block]| blocks.iter().map(|b| b.label.as_str()).collect::<Vec<_>>().join(" ");
    let Some(cert) = certs.iter().find(|b| b.label == "CERTIFICATE") else {
        return Err(match certs {
            [] => "tls: failed to find any PEM data in certificate input".into(),
            [one] if one.label.ends_with("PRIVATE KEY") => {
                "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched".into()
            }
            _ => format!("tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following types: [{}]", types(certs)),
        });
    };
    let Some(key) = keys.iter().find(|b| b.label == "PRIVATE KEY" || b.label.ends_with(" PRIVATE KEY")) else {
        return Err(match keys {
            [] => "tls: failed to find any PEM data in key input".into(),
            [one] if one.label == "CERTIFICATE" => "tls: found a certificate rather than a key in the PEM for the private key".into(),
            _ => format!("tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of the following types: [{}]", types(keys)),
        });
    };
    let (_, cert) = X509Certificate::from_der(&cert.der).map_err(|_| "x509: malformed certificate")?;
    let key = Key::parse(&key.der).ok_or("tls: failed to parse private key")?;
    let public = cert.public_key();
    let same = match public.parsed() {
        Ok(PublicKey::RSA(given)) => key.modulus().ok_or(FOREIGN)? == unsigned(given.modulus),
        Ok(PublicKey::EC(_)) => key.makes(Kind::Ec, &public.subject_public_key.data)?,
        _ if public.algorithm.algorithm.to_id_string() == ED25519 => key.makes(Kind::Ed25519, &public.subject_public_key.data)?,
        _ => return Err("tls: unknown public key algorithm".into()),
    };
    if same { Ok(()) } else { Err("tls: private key does not match public key".into()) }
}

const RSA: &str = "1.2.840.113549.1.1.1";
const EC: &str = "1.2.840.10045.2.1";
const ED25519: &str = "1.3.101.112";
const X25519: &str = "1.3.101.110";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rsa,
    Ec,
    Ed25519,
    /// One that certificates do not have.
    Other,
}

/// A private key in any of the three forms, whatever its block is called.
struct Key {
    kind: Kind,
    /// PKCS #1 of an RSA key, otherwise PKCS #8; empty, where the curve is not known here.
    der: Vec<u8>,
}

impl Key {
    fn parse(key: &[u8]) -> Option<Key> {
        let tags = |parts: &[Any<'_>]| parts.iter().map(|p| p.tag().0).collect::<Vec<_>>();
        let parts = elements(Any::from_der(key).ok()?.1.data)?;
        let of = |kind, der: &[u8]| Some(Key { kind, der: der.to_vec() });
        match tags(&parts)[..] {
            // version, algorithm, key
            [2, 16, 4, ..] => {
                let algorithm = elements(parts[1].data)?.first()?.clone().oid().ok()?.to_id_string();
                match algorithm.as_str() {
                    RSA => of(Kind::Rsa, parts[2].data),
                    EC => of(Kind::Ec, key),
                    ED25519 => of(Kind::Ed25519, key),
                    X25519 => of(Kind::Other, &[]),
                    _ => None,
                }
            }
            // version, modulus, exponent, …
            [2, 2, 2, 2, ..] => of(Kind::Rsa, key),
            // version, number, …
            [2, 4, ..] => of(Kind::Ec, &der::pkcs8_from_ec(key).unwrap_or_default()),
            _ => None,
        }
    }

    fn modulus(&self) -> Option<Vec<u8>> {
        let parts = elements(Any::from_der(&self.der).ok().filter(|_| self.kind == Kind::Rsa)?.1.data)?;
        Some(unsigned(parts.get(1)?.data))
    }

    /// Whether this public key belongs to it. A curve that is not known here is given credit.
    fn makes(&self, kind: Kind, public: &[u8]) -> Result<bool, String> {
        match self.kind {
            Kind::Other => Err("tls: found unknown private key type in PKCS#8 wrapping".into()),
            own if own != kind => Err(FOREIGN.into()),
            _ => Ok(KeyPair::try_from(self.der.as_slice()).map_or(true, |pair| pair.der_bytes() == public)),
        }
    }
}

fn elements(mut content: &[u8]) -> Option<Vec<Any<'_>>> {
    let mut all = Vec::new();
    while !content.is_empty() {
        let (rest, element) = Any::from_der(content).ok()?;
        all.push(element);
        content = rest;
    }
    Some(all)
}

/// A number without the zero that keeps it positive.
fn unsigned(number: &[u8]) -> Vec<u8> {
    number.iter().copied().skip_while(|b| *b == 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ca, KeyAlgorithm, Lifetime, new_key_pem};
    use jiff::Timestamp;

    fn mistake(cert: &str, key: &str) -> String {
        key_pair_mistake(cert.as_bytes(), key.as_bytes()).unwrap_or_default()
    }

    #[test]
    fn pairs() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let make = |key: &str| Ca::with_key("x", key, now, Lifetime::default()).unwrap().cert_pem().to_owned();
        let key = new_key_pem(KeyAlgorithm::EcdsaP256).unwrap();
        let other = new_key_pem(KeyAlgorithm::EcdsaP256).unwrap();
        let rsa = crate::jwt::TEST_RSA_KEY;
        let (cert, rsa_cert) = (make(&key), make(rsa));
        for (cert, key, expected) in [
            (cert.as_str(), key.as_str(), ""),
            (&rsa_cert, rsa, ""),
            (&cert, &other, "tls: private key does not match public key"),
            (&cert, rsa, FOREIGN),
            (&rsa_cert, &key, FOREIGN),
            ("", &key, "tls: failed to find any PEM data in certificate input"),
            (&cert, "x", "tls: failed to find any PEM data in key input"),
            (&cert, &cert, "tls: found a certificate rather than a key in the PEM for the private key"),
            (
                &key,
                &cert,
                "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched",
            ),
            (&pem::encode("CERTIFICATE", b"x"), &key, "x509: malformed certificate"),
            (&cert, &pem::encode("PRIVATE KEY", b"x"), "tls: failed to parse private key"),
            (
                &pem::encode("PUBLIC KEY", b"x"),
                &key,
                "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following types: [PUBLIC KEY]",
            ),
        ] {
            assert_eq!(mistake(cert, key), expected);
        }
    }
}
