//! The authenticators: client certificates, service account tokens, bootstrap tokens.

mod bootstrap_token;
mod cert;
pub(crate) mod service_account;

pub(crate) use bootstrap_token::BootstrapTokens;
pub(crate) use cert::ClientCertificates;
pub(crate) use service_account::ServiceAccountTokens;

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
