//! JSON web tokens signed with RS256, ES256 or ES384 (RFC 7515, 7518), and the key set document (RFC 7517).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::PublicKeyData;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey, VerificationAlgorithm,
};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::{Error, Result, ca, der, pem};

/// Signs tokens and verifies its own.
pub struct Signer {
    key: PrivateKey,
    key_id: String,
    verifier: Verifier,
    random: SystemRandom,
}

enum PrivateKey {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// Verifies tokens by any of a set of public keys.
#[derive(Debug, Clone, Default)]
pub struct Verifier {
    keys: Vec<Key>,
}

/// A public key, and what it is called.
#[derive(Debug, Clone, PartialEq)]
struct Key {
    id: String,
    kind: Kind,
    /// As ring wants it: a point of the curve, or an RSAPublicKey in DER.
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    P256,
    P384,
    /// Modulus and exponent.
    Rsa(Vec<u8>, Vec<u8>),
}

impl Key {
    /// Reads a SubjectPublicKeyInfo.
    fn from_spki(spki: &[u8]) -> Result<Key> {
        let (_, info) = SubjectPublicKeyInfo::from_der(spki).map_err(|e| Error::Key(e.to_string()))?;
        let bytes = info.subject_public_key.data.to_vec();
        let kind = match info.parsed().map_err(|e| Error::Key(e.to_string()))? {
            PublicKey::EC(point) if point.data().len() == 65 => Kind::P256,
            PublicKey::EC(point) if point.data().len() == 97 => Kind::P384,
            PublicKey::RSA(key) => {
                let number = |bytes: &[u8]| bytes.iter().copied().skip_while(|b| *b == 0).collect::<Vec<u8>>();
                Kind::Rsa(number(key.modulus), number(key.exponent))
            }
            _ => return Err(Error::Key("neither RSA nor a key of the curves P-256 and P-384".into())),
        };
        // Upstream's key id.
        let id = URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, spki));
        Ok(Key { id, kind, bytes })
    }

    fn algorithm(&self) -> (&'static str, &'static dyn VerificationAlgorithm) {
        match self.kind {
            Kind::P256 => ("ES256", &ECDSA_P256_SHA256_FIXED),
            Kind::P384 => ("ES384", &ECDSA_P384_SHA384_FIXED),
            Kind::Rsa(..) => ("RS256", &RSA_PKCS1_2048_8192_SHA256),
        }
    }

    fn jwk(&self) -> Value {
        let (algorithm, _) = self.algorithm();
        let curve = |name: &str| {
            let (x, y) = self.bytes[1..].split_at(self.bytes.len() / 2);
            json!({"use": "sig", "kty": "EC", "kid": self.id, "crv": name, "alg": algorithm, "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)})
        };
        match &self.kind {
            Kind::P256 => curve("P-256"),
            Kind::P384 => curve("P-384"),
            Kind::Rsa(modulus, exponent) => json!({"use": "sig", "kty": "RSA", "kid": self.id, "alg": algorithm,
                "n": URL_SAFE_NO_PAD.encode(modulus), "e": URL_SAFE_NO_PAD.encode(exponent)}),
        }
    }
}

/// A new ECDSA P-256 private key (PKCS #8, PEM), as service account signing needs it.
pub fn new_key_pem() -> Result<String> {
    let key = rcgen::KeyPair::generate().map_err(|e| Error::Key(e.to_string()))?;
    Ok(key.serialize_pem())
}

impl Signer {
    /// Reads the private key (PEM; PKCS #8, PKCS #1 or SEC 1; RSA from 2,048 bits, P-256 or P-384).
    pub fn from_pem(key_pem: &str) -> Result<Self> {
        let pair = ca::key_pair(key_pem)?;
        let random = SystemRandom::new();
        let public = Key::from_spki(&pair.subject_public_key_info())?;
        let pkcs8 = pair.serialize_der();
        let ec = |algorithm| EcdsaKeyPair::from_pkcs8(algorithm, &pkcs8, &random).map(PrivateKey::Ec);
        let key = match public.kind {
            Kind::P256 => ec(&ECDSA_P256_SHA256_FIXED_SIGNING),
            Kind::P384 => ec(&ECDSA_P384_SHA384_FIXED_SIGNING),
            Kind::Rsa(..) => RsaKeyPair::from_pkcs8(&pkcs8).map(PrivateKey::Rsa),
        };
        let key = key.map_err(|e| Error::Key(e.to_string()))?;
        let key_id = public.id.clone();
        Ok(Self { key, key_id, verifier: Verifier { keys: vec![public] }, random })
    }

    /// The compact form of `claims`, signed.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        let (algorithm, _) = self.verifier.keys[0].algorithm();
        let header = json!({"alg": algorithm, "kid": self.key_id});
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(claims.to_string()));
        let refused = |_| Error::Sign("ring refused".into());
        let signature = match &self.key {
            PrivateKey::Ec(key) => key.sign(&self.random, token.as_bytes()).map_err(refused)?.as_ref().to_vec(),
            PrivateKey::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &self.random, token.as_bytes(), &mut signature).map_err(refused)?;
                signature
            }
        };
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
    /// Reads keys from a PEM file as `--service-account-key-file` takes it: public keys, certificates, or private
    /// keys, of which the public half counts.
    pub fn from_pem(text: &str) -> Result<Self> {
        let mut keys = Vec::new();
        for block in pem::decode(text) {
            let spki = match block.label.as_str() {
                "PUBLIC KEY" => block.der,
                "RSA PUBLIC KEY" => der::spki_from_rsa(&block.der),
                "CERTIFICATE" => {
                    let (_, certificate) = X509Certificate::from_der(&block.der).map_err(|e| Error::Certificate(e.to_string()))?;
                    certificate.public_key().raw.to_vec()
                }
                label if label.ends_with("PRIVATE KEY") => ca::key_pair(&pem::encode(label, &block.der))?.subject_public_key_info(),
                _ => continue,
            };
            let key = Key::from_spki(&spki)?;
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        if keys.is_empty() { Err(Error::Pem("PUBLIC KEY")) } else { Ok(Verifier { keys }) }
    }

    /// The claims of a token with a good signature by one of the keys. Times, issuer and
    /// audience are the caller's to check.
    pub fn verify(&self, token: &str) -> Result<Value> {
        let bad = |what: &str| Error::Jwt(format!("invalid token: {what}"));
        let (signed, signature) = token.rsplit_once('.').ok_or_else(|| bad("not a JWT"))?;
        let (header, claims) = signed.split_once('.').ok_or_else(|| bad("not a JWT"))?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| bad("not base64url"));
        let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| bad("header is not JSON"))?;
        if !["RS256", "ES256", "ES384"].map(Value::from).contains(&header["alg"]) {
            return Err(bad("unsupported algorithm"));
        }
        let kid = header["kid"].as_str();
        let signature = decode(signature)?;
        let good = self.keys.iter().filter(|key| kid.is_none_or(|k| k == key.id)).any(|key| {
            let (name, algorithm) = key.algorithm();
            // The key says how it signs, not the token.
            header["alg"] == name && UnparsedPublicKey::new(algorithm, &key.bytes).verify(signed.as_bytes(), &signature).is_ok()
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

    /// How the keys sign: `ES256`.
    pub fn algorithms(&self) -> Vec<&'static str> {
        let mut all: Vec<&'static str> = self.keys.iter().map(|key| key.algorithm().0).collect();
        all.sort();
        all.dedup();
        all
    }

    /// The JSON web key set, as served at `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        let keys: Vec<Value> = self.keys.iter().map(Key::jwk).collect();
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

/// The public key of a private key, as PEM (`sa.pub`).
pub fn public_key_pem(key_pem: &str) -> Result<String> {
    Ok(pem::encode("PUBLIC KEY", &ca::key_pair(key_pem)?.subject_public_key_info()))
}

/// Made for tests alone.
#[cfg(test)]
pub(crate) const TEST_RSA_KEY: &str = "-----BEGIN RSA PRIVATE KEY-----
MIIEpAIBAAKCAQEA2RbUctyWiEPSdvdUupyY5aR77bZi+rGeZhKh6M6OW9Fqjvdw
4cSW0Dsk0XWSkECP7VnUTNcHBsc4zmM3p0oXdaZpyDJm87H+6EuiSu2D9WEZQ4rT
exxS7H59Y4wntIgH9+7XjvLi6jmdQb52dSGd+sBH/4t9aSlOPZYuVhFbHHlCB+3b
13Q1jBnhWRpq+iI1/rMH+RjMw3p24Xnd73p9wI6G6mxa31vWz0kysNSzjHAZsvqp
LngX06alUC6qBzdTQZKbw8/oEIpfGko+AAWQTAWDcTNttIPwBOj8plhywYpb3mUf
DRZOqlWl9Tbm1tnYc3SgdGXgtfwPwciGM2HTGQIDAQABAoIBAE3VQpxf/FSkxGvE
54r0pFkJbSlgUAKD9j+whH5cuGuxHJxfmQhJHK1R1zSGC+NOUowNvfFC0xEaEoLk
zcpb5SdYX+rYL1NGSRduLqTgnYQ3qQAvYP1tvUlvXHN5h67RatH4vy5QZQ0HVRuC
NyRtxh9mGypDD9bJaXTpSHmxRVJieegfaU/sHrdLKeF62lKV1h2sHX6DLXWOSP11
1huWV3j80IZCHWFyPMkmydU6dtwWpwcq338EbNJDEa1sgaaL+DrQEyRZC6ExSIBv
slwoolWhqcRBdnSzni8Hp70fLyhRnyqhfsKDkpu1zJHIZbCsyHUCPehPB1VxU7sM
6zlIJlUCgYEA+zrOP0SoCpt+2w7Y4bQt2iM6gGzagmLTbBINIrT1RIAH62PqDqPT
kBMqSb+p7+Vmqm56W4KDkKLV78njh+rlJnN3scTc7tfTFC4Yvd58W2JRG0VW5LeR
dwi0gKfQlYzUNr1DV2VF6eM4h8CVo2bzYamCIzfj6MyWGI2vhkwPhHcCgYEA3TYS
VjW3fjHsJZsv4KhHvddqVNt/R5HNfBls7qM0pL0V1q89CsqAM1kwFKRJ4+2p4le1
zTLvLi6PqqKV+GHV1S3NtmdHFU5orXiVksjqgS+ba5qpRC8u6JCV/H4OwIvq5LRZ
VxaUeEQQbBk6tubQaTzcMu0o+JI4W3SLokfWGO8CgYBfUFAvcLzQSW43bcqa1uEO
gY8Qajv8e8H6nl6dbEohUvGuPJnwM/dwEdVZZX3zpfTtdDy3uyxvE1hXQSExz8xg
ai5fI3EurHNIlLSOVHqZsRNUZVoyK/LkVkklBoX8NxHMMsH5xlJgCfTIjCg5djWg
N89HzUyKZhQL/LU7HmBEwQKBgQCumPIKJ2XH7gFUgVNdv5S4a2EazxB73cHRNIQ9
KoXvjOrCwxer/78GSFvhvvYvN7PB2ba92njb+5YbeS5jmFzdYMSgNo3tbDDE0otE
Ct7Ezl2epbj5/z/IAe7QFnLwWL8yeoKVcVYIQriviY5FNJLErWujqnqPD2H6FVfs
40RB8wKBgQCyvJDJOQd0Mt0PaJnN8Z5cVudMBsd3PS01Jv2rN4mh5jsIPYy4nhVQ
WpPBBShDXKij6ETm2keNvaL93cbj2ilGaRqhNJjjWKu4v6ELprtEPVzXXRtSXBrm
OYu17USDggJdhQ/cEQolrPcfqgil6vjg1u8Ga+RN7YsSeamThyBDlQ==
-----END RSA PRIVATE KEY-----";

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

    #[test]
    fn keys_of_every_kind_sign_and_are_read_from_files() {
        let generated = |algorithm| rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_pem();
        let p384 = generated(&rcgen::PKCS_ECDSA_P384_SHA384);
        let mut kept = Verifier::default();
        let mut tokens = Vec::new();
        for (key, algorithm, kty) in [(TEST_RSA_KEY, "RS256", "RSA"), (&p384, "ES384", "EC"), (&generated(&rcgen::PKCS_ECDSA_P256_SHA256), "ES256", "EC")] {
            let signer = Signer::from_pem(key).unwrap();
            let token = signer.sign(&json!({"alg": algorithm})).unwrap();
            let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap()).unwrap();
            assert_eq!(header, json!({"alg": algorithm, "kid": signer.key_id()}));
            let jwk = signer.verifier().jwks()["keys"][0].clone();
            assert_eq!((&jwk["kty"], &jwk["alg"], &jwk["kid"]), (&json!(kty), &json!(algorithm), &json!(signer.key_id())));
            for file in [public_key_pem(key).unwrap(), key.to_string()] {
                let read = Verifier::from_pem(&file).unwrap();
                assert_eq!(read.verify(&token).unwrap()["alg"], algorithm);
                kept.extend(&read);
            }
            tokens.push(token);
        }
        assert_eq!(kept.keys.len(), 3);
        assert!(tokens.iter().all(|t| kept.verify(t).is_ok()));
        assert!(Signer::from_pem(&generated(&rcgen::PKCS_ED25519)).is_err());
        assert!(Verifier::from_pem("nothing").is_err());
    }

    #[test]
    fn the_key_id_of_an_rsa_key_is_upstreams() {
        let signer = Signer::from_pem(TEST_RSA_KEY).unwrap();
        // openssl pkey -pubout -outform DER | openssl dgst -sha256 -binary | base64
        assert_eq!(signer.key_id(), "rl61FP8D1_9zpM-amaAz67sY7y3qLmP5kigfnIbYOwE");
        let jwk = signer.verifier().jwks()["keys"][0].clone();
        assert_eq!(jwk["e"], "AQAB");
        assert_eq!(URL_SAFE_NO_PAD.decode(jwk["n"].as_str().unwrap()).unwrap().len(), 256);
    }
}
