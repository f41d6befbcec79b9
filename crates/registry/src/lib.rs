//! Each resource's strategy, admission plug-ins and built-in policy.
//!
//! [`install`] puts everything into the generic API server: how users are recognized and what
//! they may do, what happens to each kind on its way into the store, where logs and streams are
//! found, and the objects a cluster begins with. Knows no HTTP and no storage engine.
#![forbid(unsafe_code)]

mod admission;
mod allocation;
mod authn;
mod authz;
mod bootstrap;
mod components;
mod config_file;
mod expiring;
mod install;
mod live;
mod locate;
mod metrics;
mod podref;
mod reviews;
mod servers;
mod strategy;
#[cfg(test)]
mod testing;
mod util;

pub use admission::{PluginError, Plugins, Settings as AdmissionSettings};
pub use authn::oidc::{AnonymousConfig, AuthenticationConfig, AuthenticationError, ClaimRule, JwtConfig, Mapping, ReloadError};
pub use authn::{FrontProxy, StaticTokens, TokenFileError, TokenWebhookConfig};
pub use authz::abac::{Abac, PolicyFileError};
pub use authz::config::{AuthorizationConfig, AuthorizationError, AuthorizationMode, WebhookSettings};
pub use install::{Access, Config, Error, install, install_parts};
pub use live::Live;
pub use servers::endpoints::EndpointReconciler;
