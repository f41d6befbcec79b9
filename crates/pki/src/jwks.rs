//! Tokens of other issuers: signed JSON (RFC 7515) and the key sets (RFC 7517) that verify it. RSA with PKCS #1 and PSS,
//! and ECDSA on P-256 and P-384; keys on P-521 are passed over.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::{
    self, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde_json::Value;

use crate::{Error, Result};

/// All ways of signing that tokens of other issuers may have been signed in.
pub const ALGORITHMS: [&str; 9] = ["ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"];

/// A token in its compact form, taken apart. Nothing in it is to be trusted yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Jws<'t> {
    /// How it says that it is signed.
    pub algorithm: String,
    /// Which key it says that it is signed with.
    pub key_id: Option<String>,
    /// The claims, as JSON.
    pub claims: Value,
    signed: &'t str,
    signature: Vec<u8>,
}

impl<'t> Jws<'t> {
    /// Takes a token apart.
    pub fn parse(token: &'t str) -> Result<Jws<'t>> {
        let bad = |what: &str| Error::Jwt(format!("malformed jwt: {what}"));
        let (signed, signature) = token.rsplit_once('.').ok_or_else(|| bad("expected 3 parts got 1"))?;
        let (header, claims) = signed.split_once('.').ok_or_else(|| bad("expected 3 parts got 2"))?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| bad("not base64url"));
        let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| bad("the header is not JSON"))?;
        if header.get("crit").is_some() {
            return Err(bad("a critical header is not known"));
        }
        let claims: Value = serde_json::from_slice(&decode(claims)?).map_err(|_| bad("the claims are not JSON"))?;
        if !claims.is_object() {
            return Err(bad("the claims are no object"));
        }
        let text = |name: &str| header[name].as_str().map(str::to_owned);
        Ok(Jws { algorithm: text("alg").unwrap_or_default(), key_id: text("kid").filter(|k| !k.is_empty()), claims, signed, signature: decode(signature)? })
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Public {
    /// Modulus and exponent.
    Rsa(Vec<u8>, Vec<u8>),
    /// A point of the curve.
    P256(Vec<u8>),
    P384(Vec<u8>),
}

/// Public keys by their ids.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KeySet(Vec<(Option<String>, Public)>);

impl KeySet {
    /// Reads a JSON web key set. Keys of other kinds are left out.
    pub fn from_jwks(set: &Value) -> Result<KeySet> {
        let keys = set.get("keys").and_then(Value::as_array).ok_or_else(|| Error::Jwt("a key set without keys".into()))?;
        Ok(KeySet(keys.iter().filter_map(|key| Some((key["kid"].as_str().map(str::to_owned), public(key)?))).collect()))
    }

    /// Whether one of the keys that the token may mean signed it.
    pub fn verifies(&self, token: &Jws<'_>) -> bool {
        let meant = self.0.iter().filter(|(id, _)| token.key_id.is_none() || *id == token.key_id);
        meant.into_iter().any(|(_, key)| key.signed(token))
    }
}

fn public(key: &Value) -> Option<Public> {
    let bytes = |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str()?.trim_end_matches('=')).ok();
    let stripped = |bytes: Vec<u8>| bytes.into_iter().skip_while(|b| *b == 0).collect::<Vec<u8>>();
    match (key["kty"].as_str()?, key["crv"].as_str()) {
        ("RSA", _) => Some(Public::Rsa(stripped(bytes("n")?), stripped(bytes("e")?))),
        ("EC", Some(curve @ ("P-256" | "P-384"))) => {
            let size = if curve == "P-256" { 32 } else { 48 };
            let (x, y) = (bytes("x")?, bytes("y")?);
            let point = [&[4][..], &x, &y].concat();
            match (x.len() == size && y.len() == size, size) {
                (true, 32) => Some(Public::P256(point)),
                (true, _) => Some(Public::P384(point)),
                _ => None,
            }
        }
        _ => None,
    }
}

impl Public {
    fn signed(&self, token: &Jws<'_>) -> bool {
        let (message, signature) = (token.signed.as_bytes(), &token.signature);
        match (self, token.algorithm.as_str()) {
            (Public::P256(point), "ES256") => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok(),
            (Public::P384(point), "ES384") => UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).verify(message, signature).is_ok(),
            (Public::Rsa(n, e), algorithm) => {
                let parameters: &signature::RsaParameters = match algorithm {
                    "RS256" => &RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &RSA_PSS_2048_8192_SHA256,
                    "PS384" => &RSA_PSS_2048_8192_SHA384,
                    "PS512" => &RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair};
    use serde_json::json;

    use super::*;
    use crate::jwt::Signer;

    fn token(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    #[test]
    fn every_way_of_signing_with_rsa_is_verified() {
        let pem = crate::jwt::TEST_RSA_KEY;
        let keys = KeySet::from_jwks(&Signer::from_pem(pem).unwrap().verifier().jwks()).unwrap();
        let pair = RsaKeyPair::from_pkcs8(&crate::ca::key_pair(pem).unwrap().serialize_der()).unwrap();
        let ways: [(&str, &'static dyn RsaEncoding); 6] = [
            ("RS256", &RSA_PKCS1_SHA256),
            ("RS384", &RSA_PKCS1_SHA384),
            ("RS512", &RSA_PKCS1_SHA512),
            ("PS256", &RSA_PSS_SHA256),
            ("PS384", &RSA_PSS_SHA384),
            ("PS512", &RSA_PSS_SHA512),
        ];
        for (algorithm, way) in ways {
            let sign = |message: &[u8]| {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(way, &SystemRandom::new(), message, &mut signature).unwrap();
                signature
            };
            let text = token(&json!({"alg": algorithm}), &json!({"sub": "x"}), sign);
            let jws = Jws::parse(&text).unwrap();
            assert_eq!((jws.claims["sub"].as_str(), keys.verifies(&jws)), (Some("x"), true), "{algorithm}");
            // the same signature does not do for another way, or for other claims
            for other in ["RS256", "PS256", "ES256", "none", "HS256"].iter().filter(|o| **o != algorithm) {
                assert!(!keys.verifies(&Jws { algorithm: other.to_string(), ..jws.clone() }), "{algorithm} as {other}");
            }
            let (head, rest) = text.split_once('.').unwrap();
            let forged = format!("{head}.{}.{}", URL_SAFE_NO_PAD.encode("{\"sub\":\"y\"}"), rest.split_once('.').unwrap().1);
            assert!(!keys.verifies(&Jws::parse(&forged).unwrap()));
        }
    }

    #[test]
    fn keys_are_meant_by_their_ids() {
        let (one, two) = (Signer::from_pem(&crate::jwt::new_key_pem().unwrap()).unwrap(), Signer::from_pem(&crate::jwt::new_key_pem().unwrap()).unwrap());
        let text = one.sign(&json!({})).unwrap();
        let jws = Jws::parse(&text).unwrap();
        let set = |signer: &Signer| KeySet::from_jwks(&signer.verifier().jwks()).unwrap();
        assert!(set(&one).verifies(&jws) && !set(&two).verifies(&jws));
        assert!(set(&one).verifies(&Jws { key_id: None, ..jws.clone() }));
        assert!(!set(&one).verifies(&Jws { key_id: Some("other".into()), ..jws }));
        let odd = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AA"}, {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, {}]});
        assert_eq!(KeySet::from_jwks(&odd).unwrap(), KeySet::default());
        assert!(KeySet::from_jwks(&json!({})).is_err());
        for garbage in ["", "a", "a.b", "a.b.c", "e30.W10.", "eyJjcml0IjpbXX0.e30."] {
            assert!(Jws::parse(garbage).is_err(), "{garbage}");
        }
    }
}
