//! The authenticators: the front proxy, client certificates, tokens of a file, of service accounts and for bootstrapping.

mod bootstrap_token;
mod cert;
mod front_proxy;
pub(crate) mod service_account;
mod static_tokens;

pub(crate) use bootstrap_token::BootstrapTokens;
pub(crate) use cert::ClientCertificates;
pub(crate) use front_proxy::FrontProxies;
pub use front_proxy::FrontProxy;
pub(crate) use service_account::ServiceAccountTokens;
pub use static_tokens::{StaticTokens, TokenFileError};

use apiserver::UserInfo;

/// Adds the group that everyone who proved who they are is in.
pub(crate) fn authenticated(mut user: UserInfo) -> UserInfo {
    if !user.in_group("system:authenticated") && !user.in_group("system:unauthenticated") {
        user.groups.push("system:authenticated".into());
    }
    user
}

/// Whether both name an audience.
pub(crate) fn common(has: &[String], wanted: &[String]) -> bool {
    has.iter().any(|a| wanted.contains(a))
}
