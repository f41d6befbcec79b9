//! Authentication framework: who is it?
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;

pub use crate::ctx::UserInfo;

/// The connection a request came over, put into its extensions by the listener.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    pub addr: Option<SocketAddr>,
    /// The client's certificate chain, DER, leaf first; possession of the key is proven, trust is not yet decided.
    pub certs: Arc<Vec<Vec<u8>>>,
}

/// What an authenticator may look at.
#[derive(Debug, Clone)]
pub struct AuthnRequest<'a> {
    pub headers: &'a http::HeaderMap,
    pub path: &'a str,
    pub peer: Option<&'a Peer>,
    /// From `Authorization: Bearer`, or from the WebSocket subprotocol `base64url.bearer.authorization.k8s.io.…`.
    pub bearer: Option<&'a str>,
    /// Audiences asked for by a TokenReview; empty = the API server's own.
    pub audiences: &'a [String],
    /// Where the audiences of the credential go, by whoever knows them; nobody else's are those of the API server.
    pub granted: Option<&'a parking_lot::Mutex<Option<Vec<String>>>>,
    pub now: jiff::Timestamp,
}

/// One way of finding out who the user is. They are asked in the order of installation; the first that knows, wins.
#[async_trait]
pub trait Authenticator: Send + Sync {
    /// `Ok(None)`: not my kind of credential. `Err`: my kind, but bad (401 unless another one accepts it); the text is for the log.
    async fn authenticate(&self, req: &AuthnRequest<'_>) -> Result<Option<UserInfo>, String>;
}
