//! Bootstrap tokens: Secrets of type `bootstrap.kubernetes.io/token` in kube-system.

use std::sync::Arc;

use apiserver::{AuthnRequest, Authenticator, Reader, UserInfo};
use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};

use super::authenticated;
use crate::util::{SECRETS, text};

/// Looks the token up among the Secrets.
pub(crate) struct BootstrapTokens {
    pub reader: Arc<dyn Reader>,
}

#[async_trait]
impl Authenticator for BootstrapTokens {
    async fn authenticate(&self, req: &AuthnRequest<'_>) -> Result<Option<UserInfo>, String> {
        let Some((id, given)) = req.bearer.and_then(pki::bootstrap_token::parse) else { return Ok(None) };
        let name = format!("bootstrap-token-{id}");
        let Some(secret) = self.reader.get(&SECRETS, "kube-system", &name) else { return Ok(None) };
        let data = |key: &str| {
            let raw = STANDARD.decode(text(&secret, &format!("/data/{key}"))).unwrap_or_default();
            String::from_utf8(raw).unwrap_or_default()
        };
        if secret.pointer("/metadata/deletionTimestamp").is_some()
            || text(&secret, "/type") != "bootstrap.kubernetes.io/token"
            || data("token-id") != id
            || !same(data("token-secret").as_bytes(), given.as_bytes())
            || data("usage-bootstrap-authentication") != "true"
        {
            return Ok(None);
        }
        let expiration = data("expiration");
        if !expiration.is_empty() && expiration.parse::<jiff::Timestamp>().is_ok_and(|end| end <= req.now) {
            return Ok(None);
        }
        let mut groups = vec!["system:bootstrappers".to_owned()];
        for group in data("auth-extra-groups").split(',').map(str::trim).filter(|g| !g.is_empty()) {
            if !extra_group(group) {
                return Err(format!("bootstrap token {id}: invalid group {group:?}"));
            }
            groups.push(group.to_owned());
        }
        Ok(Some(authenticated(UserInfo { name: format!("system:bootstrap:{id}"), groups, ..UserInfo::default() })))
    }
}

fn extra_group(group: &str) -> bool {
    group.strip_prefix("system:bootstrappers:").is_some_and(|rest| {
        let fine = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        rest.len() <= 256
            && rest.bytes().all(|c| fine(c) || c == b':' || c == b'-')
            && rest.bytes().last().is_some_and(fine)
    })
}

/// Comparison whose time does not tell where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Objects;
    use serde_json::json;

    #[test]
    fn groups() {
        assert!(extra_group("system:bootstrappers:kubeadm:default-node-token"));
        assert!(!extra_group("system:masters"));
        assert!(!extra_group("system:bootstrappers:"));
    }

    #[test]
    fn token_of_a_secret() {
        let objects = Objects::new();
        let b = |s: &str| STANDARD.encode(s);
        objects.put(&SECRETS, json!({"metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
            "type": "bootstrap.kubernetes.io/token",
            "data": {"token-id": b("abcdef"), "token-secret": b("0123456789abcdef"), "usage-bootstrap-authentication": b("true"),
                "expiration": b("2026-06-01T00:00:00Z"), "auth-extra-groups": b("system:bootstrappers:kubeadm:default-node-token")}}));
        let tokens = BootstrapTokens { reader: objects };
        let ask = |token: &'static str, now: &str| {
            let headers = http::HeaderMap::new();
            let req = AuthnRequest { headers: &headers, path: "/", peer: None, bearer: Some(token), audiences: &[], granted: None, now: now.parse().unwrap() };
            crate::testing::block_on(tokens.authenticate(&req)).unwrap()
        };
        let user = ask("abcdef.0123456789abcdef", "2026-05-01T00:00:00Z").unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(user.groups, ["system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token", "system:authenticated"]);
        assert!(ask("abcdef.0123456789abcdee", "2026-05-01T00:00:00Z").is_none());
        assert!(ask("abcdef.0123456789abcdef", "2026-06-02T00:00:00Z").is_none());
    }
}
