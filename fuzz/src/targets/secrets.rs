//! What guards secrets: encryption at rest, tokens, certificates, kubeconfigs.

use std::sync::LazyLock;

use apiserver::encrypt::Transformer;
use apiserver::{EncryptionConfig, EncryptionKey, Provider};
use bytes::Bytes;
use pki::{Ca, Credentials, Csr, Kubeconfig, Peer, Roots, jwt};
use serde_json::Value;

use super::{Parts, now};

const KEY: &[u8] = b"/registry/secrets/default/a";

/// Every way of sealing there is.
static SEALED: LazyLock<Vec<Transformer>> = LazyLock::new(|| {
    let keys = || vec![EncryptionKey { name: "k".into(), secret: vec![7; 32] }];
    let ways = [Provider::AesGcm(keys()), Provider::AesCbc(keys()), Provider::Secretbox(keys())];
    ways.into_iter().map(|way| Transformer::new(&EncryptionConfig::of(&["secrets"], vec![way])).expect("good keys")).collect()
});

/// A configuration; then a stored value; then a plain one.
pub fn encryption(input: &[u8]) {
    let mut parts = Parts::of(input);
    let config = parts.text().and_then(|text| EncryptionConfig::from_text(text).ok());
    let (stored, plain) = (Bytes::copy_from_slice(parts.bytes()), parts.bytes());
    if let Some(own) = config.and_then(|config| Transformer::new(&config).ok()) {
        let sealed = own.seal(KEY, plain.to_vec().into()).expect("sealed");
        match own.open(KEY, &sealed) {
            Ok(opened) => assert_eq!(opened, plain),
            // Values that look sealed cannot be kept as they are.
            Err(_) => assert!(plain.starts_with(b"k8s:enc:")),
        }
        let _ = own.open(KEY, &stored);
    }
    for way in SEALED.iter() {
        let _ = (way.open(KEY, &stored), way.is_stale(KEY, &stored));
        let sealed = way.seal(KEY, plain.to_vec().into()).expect("sealed");
        assert_eq!(way.open(KEY, &sealed).expect("opened"), plain);
        let mut sealed = sealed.to_vec();
        // A changed one is never taken, but by CBC, which does not know.
        if let Some(byte) = sealed.last_mut() {
            *byte ^= 1;
        }
        let is_cbc = sealed.starts_with(b"k8s:enc:aescbc:");
        assert!(is_cbc || way.open(KEY, &sealed.into()).is_err());
    }
}

static SIGNER: LazyLock<jwt::Signer> = LazyLock::new(|| {
    let key = jwt::new_key_pem().expect("a key");
    jwt::Signer::from_pem(&key).expect("its signer")
});

fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(list) => list.iter().any(has_fraction),
        Value::Object(map) => map.values().any(has_fraction),
        _ => false,
    }
}

/// A token of any kind; then claims.
pub fn tokens(input: &[u8]) {
    let mut parts = Parts::of(input);
    let Some(token) = parts.text() else { return };
    let _ = jwt::peek(token);
    assert!(SIGNER.verifier().verify(token).is_err(), "nobody else has the key");
    if let Some((id, secret)) = pki::bootstrap_token::parse(token) {
        assert_eq!(format!("{id}.{secret}"), token);
        let _ = pki::bootstrap_token::secret(token, "", None, "system:bootstrappers:a");
    }
    let _ = pki::jws::detached(token, "abcdef", token);
    let Some(claims) = parts.tree() else { return };
    // The reader of claims is one that is off in a fraction's last digit; times in tokens are whole.
    if claims.is_object() && !has_fraction(&claims) {
        let signed = SIGNER.sign(&claims).expect("signed");
        assert_eq!(jwt::peek(&signed), Some(claims.clone()));
        assert_eq!(SIGNER.verifier().verify(&signed).expect("verified"), claims);
    }
}

/// PEM, or the DER of a certificate.
pub fn certificates(input: &[u8]) {
    let _ = Peer::from_der(input);
    if let Ok(roots) = Roots::from_pem(&pki::pem_encode("CERTIFICATE", input)) {
        let _ = roots.verify_client(&[input], now());
    }
    let _ = Csr::from_pem(&pki::pem_encode("CERTIFICATE REQUEST", input));
    let Ok(text) = std::str::from_utf8(input) else { return };
    for block in pki::pem_decode(text) {
        let again = pki::pem_decode(&pki::pem_encode(&block.label, &block.der));
        assert!(again.len() == 1 && again[0].der == block.der && again[0].label == block.label);
        let _ = Peer::from_der(&block.der);
        let _ = Csr::from_pem(&pki::pem_encode("CERTIFICATE REQUEST", &block.der));
    }
    let _ = (Roots::from_pem(text), Csr::from_pem(text), pki::certificate_end(text), Ca::from_pem(text, text));
    let _ = (jwt::Signer::from_pem(text), jwt::Verifier::from_pem(text), jwt::public_key_pem(text));
}

/// A kubeconfig that gets an entry, and loses it again.
pub fn kubeconfig(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let _ = pki::remove_from_kubeconfig(text, "a");
    let entry = Kubeconfig {
        context: "knarr".into(),
        cluster: "knarr".into(),
        user: "knarr".into(),
        server: "https://127.0.0.1:6443".into(),
        ca_pem: "x".into(),
        credentials: Credentials::Token("t".into()),
    };
    let Ok(merged) = pki::merge_kubeconfig(text, &entry, true) else { return };
    let again = pki::merge_kubeconfig(&merged, &entry, true).expect("what was written can be read");
    assert_eq!(again, merged, "merged a second time");
    let _ = pki::remove_from_kubeconfig(&merged, "knarr").expect("what was written can be read");
}
