//! Each resource's strategy, admission plug-ins and built-in policy.
//!
//! [`install`] puts everything into the generic API server: how users are recognized and what
//! they may do, what happens to each kind on its way into the store, where logs and streams are
//! found, and the objects a cluster begins with. Knows no HTTP and no storage engine.
#![forbid(unsafe_code)]

mod admission;
mod authn;
mod authz;
mod bootstrap;
mod components;
mod install;
mod locate;
mod podref;
mod reviews;
mod strategy;
#[cfg(test)]
mod testing;
mod util;

pub use admission::{PluginError, Plugins};
pub use authn::{FrontProxy, StaticTokens, TokenFileError};
pub use install::{Access, AuthorizationMode, Config, Error, install, install_parts};
