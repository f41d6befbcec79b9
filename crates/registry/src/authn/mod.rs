//! The authenticators: the front proxy, client certificates, tokens of a file, of service accounts, for bootstrapping, of
//! other issuers, and those that a webhook knows.

mod bootstrap_token;
mod cert;
mod front_proxy;
pub(crate) mod oidc;
pub(crate) mod service_account;
mod static_tokens;
pub(crate) mod token_webhook;

pub(crate) use bootstrap_token::BootstrapTokens;
pub(crate) use cert::ClientCertificates;
pub(crate) use front_proxy::FrontProxies;
pub use front_proxy::FrontProxy;
pub(crate) use service_account::ServiceAccountTokens;
pub use static_tokens::{StaticTokens, TokenFileError};
pub(crate) use token_webhook::TokenWebhook;
pub use token_webhook::TokenWebhookConfig;

use apiserver::UserInfo;

/// Adds the group that everyone who proved who they are is in.
pub(crate) fn authenticated(mut user: UserInfo) -> UserInfo {
    if !user.in_group("system:authenticated") && !user.in_group("system:unauthenticated") {
        user.groups.push("system:authenticated".into());
    }
    user
}

/// What tells a token from others.
pub(crate) fn digest(token: &str) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    let mut key = [0; 32];
    key.copy_from_slice(digest.as_ref());
    key
}

/// Whether both name an audience.
pub(crate) fn common(has: &[String], wanted: &[String]) -> bool {
    has.iter().any(|a| wanted.contains(a))
}
