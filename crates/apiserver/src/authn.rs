//! Authentication framework: who is it?
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

pub use crate::ctx::UserInfo;

/// What an authenticator has to say of the request beside who makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// An annotation of the audit event: key and value.
    Audit(&'static str, String),
    /// A `Warning` header of the answer.
    Warning(&'static str),
}

/// The notes of one request.
pub(crate) type Notes = Arc<Mutex<Vec<Note>>>;

tokio::task_local! {
    pub(crate) static NOTES: Notes;
}

/// Says something of the request that is being authenticated; what is authenticated beside one (a TokenReview's token)
/// has nobody to be told.
pub fn note(note: Note) {
    let _ = NOTES.try_with(|notes| notes.lock().push(note));
}

/// What was said of the request of this task.
pub(crate) fn notes() -> Vec<Note> {
    NOTES.try_with(|notes| notes.lock().clone()).unwrap_or_default()
}

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
