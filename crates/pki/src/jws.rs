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

/// Whether a detached signature is of this content, by whoever knows the secret.
pub fn verify_detached(token: &str, content: &str, key_id: &str, secret: &str) -> bool {
    let Some((header, tag)) = token.split_once("..") else { return false };
    let decoded = URL_SAFE_NO_PAD.decode(header).ok().and_then(|h| serde_json::from_slice::<serde_json::Value>(&h).ok());
    if !decoded.is_some_and(|h| h["alg"] == "HS256" && h["kid"] == key_id) {
        return false;
    }
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let Ok(tag) = URL_SAFE_NO_PAD.decode(tag) else { return false };
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), signed.as_bytes(), &tag).is_ok()
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

    #[test]
    fn only_the_signed_content_and_the_right_secret() {
        let token = detached("content", "abcdef", "0123456789abcdef");
        assert!(verify_detached(&token, "content", "abcdef", "0123456789abcdef"));
        for (content, id, secret) in [("other", "abcdef", "0123456789abcdef"), ("content", "abcdee", "0123456789abcdef"), ("content", "abcdef", "1123456789abcdef")] {
            assert!(!verify_detached(&token, content, id, secret));
        }
        assert!(!verify_detached("..", "content", "abcdef", "0123456789abcdef"));
        assert!(!verify_detached(&token.replace("..", "."), "content", "abcdef", "0123456789abcdef"));
    }
}
