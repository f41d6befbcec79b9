//! Key usages by the names that the certificates API has for them.

use rcgen::{ExtendedKeyUsagePurpose as Extended, KeyUsagePurpose as Key};

use crate::{Error, Result};

/// Usages of the key, and purposes of the certificate, each once and in order.
pub(crate) fn parse(names: &[String]) -> Result<(Vec<Key>, Vec<Extended>)> {
    let (mut keys, mut purposes, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    for name in names {
        if let Some(usage) = key(name) {
            if !keys.contains(&usage) {
                keys.push(usage);
            }
        } else if let Some(purpose) = extended(name) {
            if !purposes.contains(&purpose) {
                purposes.push(purpose);
            }
        } else {
            unknown.push(name);
        }
    }
    if unknown.is_empty() { Ok((keys, purposes)) } else { Err(Error::Request(format!("unrecognized usage values: {unknown:?}"))) }
}

fn key(name: &str) -> Option<Key> {
    Some(match name {
        "signing" | "digital signature" => Key::DigitalSignature,
        "content commitment" => Key::ContentCommitment,
        "key encipherment" => Key::KeyEncipherment,
        "key agreement" => Key::KeyAgreement,
        "data encipherment" => Key::DataEncipherment,
        "cert sign" => Key::KeyCertSign,
        "crl sign" => Key::CrlSign,
        "encipher only" => Key::EncipherOnly,
        "decipher only" => Key::DecipherOnly,
        _ => return None,
    })
}

fn extended(name: &str) -> Option<Extended> {
    // id-kp of RFC 5280, where IPsec's three have their places.
    let kp = |n| Extended::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, n]);
    Some(match name {
        "any" => Extended::Any,
        "server auth" => Extended::ServerAuth,
        "client auth" => Extended::ClientAuth,
        "code signing" => Extended::CodeSigning,
        "email protection" | "s/mime" => Extended::EmailProtection,
        "ipsec end system" => kp(5),
        "ipsec tunnel" => kp(6),
        "ipsec user" => kp(7),
        "timestamping" => Extended::TimeStamping,
        "ocsp signing" => Extended::OcspSigning,
        "microsoft sgc" => Extended::Other(vec![1, 3, 6, 1, 4, 1, 311, 10, 3, 3]),
        "netscape sgc" => Extended::Other(vec![2, 16, 840, 1, 113730, 4, 1]),
        _ => return None,
    })
}
