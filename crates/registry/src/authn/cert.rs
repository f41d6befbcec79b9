//! Client certificates: the common name is the user, the organisations are the groups.

use std::collections::{BTreeMap, HashMap};

use apiserver::{AuthnRequest, Authenticator, UserInfo};
use async_trait::async_trait;
use parking_lot::Mutex;
use pki::{Peer, Roots};

use super::authenticated;

/// How many verified certificates are remembered.
const REMEMBERED: usize = 4096;

/// Accepts certificates that one of the client CAs signed.
pub(crate) struct ClientCertificates {
    roots: Roots,
    /// Verified leaves: a signature is checked once, not on every request of a connection.
    verified: Mutex<HashMap<Vec<u8>, Peer>>,
}

impl ClientCertificates {
    pub fn new(roots: Roots) -> Self {
        Self { roots, verified: Mutex::default() }
    }
}

#[async_trait]
impl Authenticator for ClientCertificates {
    async fn authenticate(&self, req: &AuthnRequest<'_>) -> Result<Option<UserInfo>, String> {
        let Some(peer) = req.peer else { return Ok(None) };
        let Some(leaf) = peer.certs.first() else { return Ok(None) };
        let now = req.now.as_second();
        let known = self.verified.lock().get(leaf).filter(|p| now >= p.not_before && now <= p.not_after).cloned();
        let who = match known {
            Some(who) => who,
            None => {
                let who = self.roots.verify_client(&peer.certs, req.now).map_err(|e| e.to_string())?;
                let mut verified = self.verified.lock();
                if verified.len() >= REMEMBERED {
                    verified.clear();
                }
                verified.insert(leaf.clone(), who.clone());
                who
            }
        };
        if who.cn.is_empty() {
            return Ok(None);
        }
        let credential = format!("X509SHA256={}", who.fingerprint);
        Ok(Some(authenticated(UserInfo {
            name: who.cn,
            uid: String::new(),
            groups: who.orgs,
            extra: BTreeMap::from([("authentication.kubernetes.io/credential-id".to_owned(), vec![credential])]),
        })))
    }
}
