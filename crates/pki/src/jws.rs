//! Detached signatures by a shared secret (RFC 7515, appendix F, HS256): how `cluster-info` is signed
//! for those who hold a bootstrap token.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac;
use serde_json::json;

/// The compact form of a signature of `content`, its payload left out.
pub fn detached(content: &str, key_id: &str, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "kid": key_id}).to_string());
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), signed.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of upstream's own test (staging/src/k8s.io/cluster-bootstrap/token/jws).
    #[test]
    fn as_upstream_signs() {
        let expected = "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8";
        assert_eq!(detached("Hello from the other side. I must have called a thousand times.", "joshua", "my voice is my passcode"), expected);
    }
}
