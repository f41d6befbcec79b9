//! JSON web tokens signed with ES256 (RFC 7515, 7518), and the key set document (RFC 7517).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use serde_json::{Value, json};

use crate::{Error, Result, ca, der, pem};

/// Signs tokens and verifies its own.
pub struct Signer {
    key: EcdsaKeyPair,
    key_id: String,
    verifier: Verifier,
    random: SystemRandom,
}

/// Verifies tokens by any of a set of public keys.
#[derive(Debug, Clone, Default)]
pub struct Verifier {
    keys: Vec<(String, Vec<u8>)>,
}

/// A new ECDSA P-256 private key (PKCS #8, PEM), as service account signing needs it.
pub fn new_key_pem() -> Result<String> {
    let key = rcgen::KeyPair::generate().map_err(|e| Error::Key(e.to_string()))?;
    Ok(key.serialize_pem())
}

impl Signer {
    /// Reads the private key (PEM; PKCS #8 or SEC 1, curve P-256).
    pub fn from_pem(key_pem: &str) -> Result<Self> {
        let pair = ca::key_pair(key_pem)?;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pair.serialize_der(), &random)
            .map_err(|e| Error::Key(e.to_string()))?;
        let public = key.public_key().as_ref().to_vec();
        let key_id = key_id(&public);
        let verifier = Verifier { keys: vec![(key_id.clone(), public)] };
        Ok(Self { key, key_id, verifier, random })
    }

    /// The compact form of `claims`, signed.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature =
            self.key.sign(&self.random, token.as_bytes()).map_err(|_| Error::Sign("ring refused".into()))?;
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(token)
    }

    /// The key's id (`kid`).
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The verifier that knows this key.
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }
}

impl Verifier {
    /// The claims of a token with a good signature by one of the keys. Times, issuer and
    /// audience are the caller's to check.
    pub fn verify(&self, token: &str) -> Result<Value> {
        let bad = |what: &str| Error::Jwt(format!("invalid token: {what}"));
        let (signed, signature) = token.rsplit_once('.').ok_or_else(|| bad("not a JWT"))?;
        let (header, claims) = signed.split_once('.').ok_or_else(|| bad("not a JWT"))?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| bad("not base64url"));
        let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| bad("header is not JSON"))?;
        if header["alg"] != "ES256" {
            return Err(bad("unsupported algorithm"));
        }
        let kid = header["kid"].as_str();
        let signature = decode(signature)?;
        let good = self.keys.iter().filter(|(id, _)| kid.is_none_or(|k| k == id)).any(|(_, key)| {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key).verify(signed.as_bytes(), &signature).is_ok()
        });
        if !good {
            return Err(bad("signature"));
        }
        serde_json::from_slice(&decode(claims)?).map_err(|_| bad("claims are not JSON"))
    }

    /// Adds another verifier's keys (old signing keys during rotation).
    pub fn extend(&mut self, other: &Verifier) {
        for key in &other.keys {
            if !self.keys.contains(key) {
                self.keys.push(key.clone());
            }
        }
    }

    /// The JSON web key set, as served at `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        let keys: Vec<Value> = self
            .keys
            .iter()
            .map(|(id, point)| {
                json!({
                    "use": "sig", "kty": "EC", "kid": id, "crv": "P-256", "alg": "ES256",
                    "x": URL_SAFE_NO_PAD.encode(&point[1..33]),
                    "y": URL_SAFE_NO_PAD.encode(&point[33..65]),
                })
            })
            .collect();
        json!({ "keys": keys })
    }
}

/// The claims of a token whose signature was not checked; only to choose who shall check it.
pub fn peek(token: &str) -> Option<Value> {
    let mut parts = token.split('.');
    let claims = parts.nth(1)?;
    parts.next()?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}

/// Upstream's key id: SHA-256 of the public key's SubjectPublicKeyInfo, base64url.
fn key_id(point: &[u8]) -> String {
    let algorithm = [
        0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d,
        0x03, 0x01, 0x07,
    ];
    let spki = der::seq(&[&algorithm, &der::tlv(0x03, &[&[0u8][..], point].concat())]);
    URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, &spki))
}

/// The public key of a private key, as PEM (`sa.pub`).
pub fn public_key_pem(key_pem: &str) -> Result<String> {
    use rcgen::PublicKeyData;
    Ok(pem::encode("PUBLIC KEY", &ca::key_pair(key_pem)?.subject_public_key_info()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_and_verifies() {
        let signer = Signer::from_pem(&new_key_pem().unwrap()).unwrap();
        let token = signer.sign(&json!({"sub": "system:serviceaccount:a:b"})).unwrap();
        assert_eq!(signer.verifier().verify(&token).unwrap()["sub"], "system:serviceaccount:a:b");
        assert_eq!(peek(&token).unwrap()["sub"], "system:serviceaccount:a:b");
        let other = Signer::from_pem(&new_key_pem().unwrap()).unwrap();
        assert!(other.verifier().verify(&token).is_err());
        let mut both = other.verifier().clone();
        both.extend(signer.verifier());
        assert!(both.verify(&token).is_ok());
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let (header, _) = signed.split_once('.').unwrap();
        let forged = format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode("{\"sub\":\"x\"}"));
        assert!(signer.verifier().verify(&forged).is_err());
        for garbage in ["", "a.b", "a.b.c", "..."] {
            assert!(signer.verifier().verify(garbage).is_err());
        }
        let jwks = signer.verifier().jwks();
        assert_eq!(jwks["keys"][0]["kid"], signer.key_id());
    }
}
