//! Certificates and keys as the guides' openssl commands make them: X.509 version 1, RSA keys in
//! PKCS #1, EC keys in SEC 1.

use jiff::{SignedDuration, Timestamp};
use pki::{Ca, CertRequest, Peer, Roots, Usage, pem_decode};

const CA: &str = include_str!("data/v1ca.crt");
const CA_KEY: &str = include_str!("data/ca.key");
const USER: &str = include_str!("data/u1.crt");
const EC_KEY: &str = include_str!("data/u.key");

fn now() -> Timestamp {
    "2030-01-01T00:00:00Z".parse().unwrap()
}

#[test]
fn version_1_client_and_ca_certificates() {
    let der = &pem_decode(USER)[0].der;
    let peer = Roots::from_pem(CA).unwrap().verify_client(&[der], now()).unwrap();
    assert_eq!((peer.cn.as_str(), peer.orgs.as_slice()), ("admin", &["system:masters".to_owned()][..]));
    assert_eq!(Peer::from_der(der).unwrap(), peer);
    // A version 1 certificate that is no root does not vouch for others.
    let other = Ca::new("other", now(), SignedDuration::from_hours(1)).unwrap();
    let chain = [der, &pem_decode(CA)[0].der];
    assert!(Roots::from_pem(other.cert_pem()).unwrap().verify_client(&chain, now()).is_err());
}

#[test]
fn rsa_ca_with_a_traditional_key() {
    let ca = Ca::from_pem(CA, CA_KEY).unwrap();
    let request = CertRequest {
        cn: "bob".into(),
        orgs: vec!["a".into(), "b".into()],
        usages: vec![Usage::Client],
        lifetime: SignedDuration::from_hours(1),
        ..Default::default()
    };
    let issued = ca.issue(&request, now()).unwrap();
    let peer = Roots::from_pem(CA).unwrap().verify_client(&[&pem_decode(&issued.cert_pem)[0].der], now()).unwrap();
    assert_eq!((peer.cn.as_str(), peer.orgs.len()), ("bob", 2));
}

#[test]
fn sec1_keys_sign_tokens() {
    let signer = pki::jwt::Signer::from_pem(EC_KEY).unwrap();
    let token = signer.sign(&serde_json::json!({"a": 1})).unwrap();
    assert_eq!(signer.verifier().verify(&token).unwrap()["a"], 1);
}
