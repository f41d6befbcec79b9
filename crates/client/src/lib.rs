//! Clients of a Kubernetes API server, as [`kube::Client`]s over one of two transports:
//! a function call into an API server in this process, or HTTPS described by a kubeconfig.
//! Whoever holds the client cannot tell which it is. Holds no business rules.
#![forbid(unsafe_code)]

mod delegated;
mod discover;
mod https;
mod in_process;
mod kubeconfig;
mod link;
mod patience;
mod tokens;
mod web;

pub use delegated::{Delegated, Lifetimes, Target, User};
pub use discover::{DiscoverError, discover_ca, fingerprint_of};
pub use https::{Credentials, Https, TlsError, server_name, tls_config};
pub use in_process::in_process;
pub use kubeconfig::{Entry, KubeconfigError, from_kubeconfig, https_from_kubeconfig};
pub use kube;
pub use link::{Dial, Link};
pub use tokens::service_account;
pub use web::{CallError, Web, WebError, WebTls};

/// Builds a client over HTTPS to `host:port`. HTTP/2 where the server offers it, so that watches
/// share one connection; the connection is made on first use and again whenever it is lost.
pub fn https(service: Https) -> kube::Client {
    kube::Client::new(patience::Patient(service), "default")
}
