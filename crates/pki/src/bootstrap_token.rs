//! Bootstrap tokens, `abcdef.0123456789abcdef`: the format and the Secret that holds one
//! (https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/).

use serde_json::{Value, json};

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Splits a token into its id (6 characters) and secret (16); `None` if it is not of that form.
pub fn parse(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let fine = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (fine(id, 6) && fine(secret, 16)).then_some((id, secret))
}

/// Makes a token from 22 random bytes.
pub fn generate(random: &[u8; 22]) -> String {
    let mut text: String = random.iter().map(|b| ALPHABET[(b & 31) as usize] as char).collect();
    text.insert(6, '.');
    text
}

/// The Secret of kube-system that makes `token` valid: for authentication and for signing
/// cluster-info, until `expiration` (RFC 3339; `None` = for ever).
pub fn secret(token: &str, description: &str, expiration: Option<&str>, groups: &str) -> Option<Value> {
    let (id, secret) = parse(token)?;
    let mut data = json!({
        "token-id": id,
        "token-secret": secret,
        "usage-bootstrap-authentication": "true",
        "usage-bootstrap-signing": "true",
    });
    for (key, value) in [("description", Some(description)), ("expiration", expiration), ("auth-extra-groups", Some(groups))] {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            data[key] = value.into();
        }
    }
    Some(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token",
        "stringData": data,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format() {
        assert_eq!(parse("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for bad in ["", "abcdef", "abcdef.0123", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcdeg!"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert!(parse(&generate(&[255; 22])).is_some());
        assert!(secret(&generate(&[7; 22]), "", None, "").is_some());
    }
}
