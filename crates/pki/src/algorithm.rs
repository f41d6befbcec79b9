//! Which kind of key, and making new ones.

use rcgen::{KeyPair, PublicKeyData};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::{Error, Result, ca, der, pem, rsa};

/// A kind of key, as kubeadm's configuration names it (`ClusterConfiguration.encryptionAlgorithm`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// `ECDSA-P256`
    #[default]
    EcdsaP256,
    /// `ECDSA-P384`
    EcdsaP384,
    /// `RSA-2048`
    Rsa2048,
    /// `RSA-3072`
    Rsa3072,
    /// `RSA-4096`
    Rsa4096,
}

impl KeyAlgorithm {
    /// All of them, in upstream's order.
    pub const ALL: [KeyAlgorithm; 5] = [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP384, KeyAlgorithm::Rsa2048, KeyAlgorithm::Rsa3072, KeyAlgorithm::Rsa4096];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            KeyAlgorithm::EcdsaP256 => "ECDSA-P256",
            KeyAlgorithm::EcdsaP384 => "ECDSA-P384",
            KeyAlgorithm::Rsa2048 => "RSA-2048",
            KeyAlgorithm::Rsa3072 => "RSA-3072",
            KeyAlgorithm::Rsa4096 => "RSA-4096",
        }
    }

    /// By its name.
    pub fn named(name: &str) -> Option<KeyAlgorithm> {
        KeyAlgorithm::ALL.into_iter().find(|a| a.name() == name)
    }

    /// That of a private key (PEM). A size between those that have names counts as the next larger one.
    pub fn of(key_pem: &str) -> Result<KeyAlgorithm> {
        let spki = ca::key_pair(key_pem)?.subject_public_key_info();
        let (_, info) = SubjectPublicKeyInfo::from_der(&spki).map_err(|e| Error::Key(e.to_string()))?;
        match info.parsed().map_err(|e| Error::Key(e.to_string()))? {
            PublicKey::EC(point) if point.data().len() == 65 => Ok(KeyAlgorithm::EcdsaP256),
            PublicKey::EC(point) if point.data().len() == 97 => Ok(KeyAlgorithm::EcdsaP384),
            PublicKey::RSA(key) => Ok(match key.key_size() {
                0..=2048 => KeyAlgorithm::Rsa2048,
                2049..=3072 => KeyAlgorithm::Rsa3072,
                _ => KeyAlgorithm::Rsa4096,
            }),
            _ => Err(Error::Key("neither RSA nor a key of the curves P-256 and P-384".into())),
        }
    }
}

/// A new private key (PKCS #8, PEM).
pub fn new_key_pem(algorithm: KeyAlgorithm) -> Result<String> {
    let generate = |curve| KeyPair::generate_for(curve).map(|key| key.serialize_pem()).map_err(|e| Error::Key(e.to_string()));
    match algorithm {
        KeyAlgorithm::EcdsaP256 => generate(&rcgen::PKCS_ECDSA_P256_SHA256),
        KeyAlgorithm::EcdsaP384 => generate(&rcgen::PKCS_ECDSA_P384_SHA384),
        KeyAlgorithm::Rsa2048 => rsa_pem(2048),
        KeyAlgorithm::Rsa3072 => rsa_pem(3072),
        KeyAlgorithm::Rsa4096 => rsa_pem(4096),
    }
}

fn rsa_pem(bits: u64) -> Result<String> {
    let key = der::pkcs8_from_rsa(&rsa::generate(bits)?);
    // Reading it back has ring check that its parts fit each other.
    KeyPair::try_from(key.clone()).map_err(|e| Error::Key(e.to_string()))?;
    Ok(pem::encode("PRIVATE KEY", &key))
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::{Ca, CertRequest, Roots, Usage};

    #[test]
    fn each_kind_is_made_and_known_again() {
        for algorithm in [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP384, KeyAlgorithm::Rsa2048, KeyAlgorithm::Rsa3072] {
            let key = new_key_pem(algorithm).unwrap();
            assert_eq!(KeyAlgorithm::of(&key).unwrap(), algorithm);
            assert_eq!(KeyAlgorithm::named(algorithm.name()), Some(algorithm));
        }
        assert_eq!(KeyAlgorithm::named("RSA-1024"), None);
    }

    #[test]
    fn a_ca_of_each_kind_signs_for_keys_of_each_kind() {
        let (now, hour): (Timestamp, _) = ("2026-05-01T10:00:00Z".parse().unwrap(), SignedDuration::from_hours(1));
        let rsa = [new_key_pem(KeyAlgorithm::Rsa2048).unwrap(), crate::jwt::TEST_RSA_KEY.to_string()];
        let ec = [new_key_pem(KeyAlgorithm::EcdsaP256).unwrap(), new_key_pem(KeyAlgorithm::EcdsaP384).unwrap()];
        let keys = rsa.iter().chain(&ec);
        for ca_key in keys.clone() {
            let made = Ca::with_key("kubernetes", ca_key, now, hour).unwrap();
            let ca = Ca::from_pem(made.cert_pem(), ca_key).unwrap();
            let roots = Roots::from_pem(ca.cert_pem()).unwrap();
            for key in keys.clone() {
                let request = CertRequest { cn: "x".into(), orgs: vec!["a".into(), "b".into()], sans: Vec::new(), usages: vec![Usage::Client], lifetime: hour };
                let pair = ca.issue_for_key(&request, key, now).unwrap();
                let peer = roots.verify_client(&[&pem::decode(&pair.cert_pem)[0].der], now).unwrap();
                assert_eq!((peer.cn.as_str(), peer.orgs.len()), ("x", 2));
                // rustls takes it too, as a server's or a client's
                crate::Renewable::new(&pair).unwrap();
                let csr = crate::Csr::from_pem(&crate::new_csr("y", "", &[], Some(key)).unwrap().cert_pem).unwrap();
                assert!(ca.sign_csr(&csr, &[Usage::Server], now, now.saturating_add(hour).unwrap()).is_ok());
            }
            let signer = crate::jwt::Signer::from_pem(ca_key).unwrap();
            let token = signer.sign(&serde_json::json!({"sub": "x"})).unwrap();
            assert_eq!(signer.verifier().verify(&token).unwrap()["sub"], "x");
        }
    }
}
