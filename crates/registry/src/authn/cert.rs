//! Client certificates: the common name is the user, the organisations are the groups.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use apiserver::{AuthnRequest, Authenticator, UserInfo};
use async_trait::async_trait;
use parking_lot::Mutex;
use pki::{Peer, Roots};

use super::authenticated;

/// How many verified certificates are remembered.
const REMEMBERED: usize = 4096;

/// The CAs, and the leaves that they have been seen to vouch for: a signature is checked once, not on every request of
/// a connection.
struct State {
    roots: Arc<Roots>,
    verified: HashMap<Vec<u8>, Peer>,
}

/// Accepts certificates that one of the client CAs signed.
pub(crate) struct ClientCertificates(Mutex<State>);

impl ClientCertificates {
    pub fn new(roots: Roots) -> Self {
        Self(Mutex::new(State { roots: Arc::new(roots), verified: HashMap::new() }))
    }

    /// Other CAs vouch from now on, also for connections that are open.
    pub fn replace(&self, roots: Roots) {
        *self.0.lock() = State { roots: Arc::new(roots), verified: HashMap::new() };
    }
}

#[async_trait]
impl Authenticator for ClientCertificates {
    async fn authenticate(&self, req: &AuthnRequest<'_>) -> Result<Option<UserInfo>, String> {
        let Some(peer) = req.peer else { return Ok(None) };
        let Some(leaf) = peer.certs.first() else { return Ok(None) };
        let now = req.now.as_second();
        let (known, roots) = {
            let state = self.0.lock();
            (state.verified.get(leaf).filter(|p| now >= p.not_before && now <= p.not_after).cloned(), state.roots.clone())
        };
        let who = match known {
            Some(who) => who,
            None => {
                let who = roots.verify_client(&peer.certs, req.now).map_err(|e| e.to_string())?;
                let mut state = self.0.lock();
                if state.verified.len() >= REMEMBERED {
                    state.verified.clear();
                }
                // Not what CAs vouched for that have been replaced meanwhile.
                if Arc::ptr_eq(&state.roots, &roots) {
                    state.verified.insert(leaf.clone(), who.clone());
                }
                who
            }
        };
        if who.cn.is_empty() {
            return Ok(None);
        }
        let credential = format!("X509SHA256={}", who.fingerprint);
        Ok(Some(authenticated(UserInfo {
            name: who.cn,
            uid: who.uid?,
            groups: who.orgs,
            extra: BTreeMap::from([("authentication.kubernetes.io/credential-id".to_owned(), vec![credential])]),
        })))
    }
}
