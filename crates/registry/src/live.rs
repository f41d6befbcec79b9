//! What may change while the server runs: who vouches for clients, whose tokens are taken, and who decides. Files are
//! read, and looked at again, by whoever holds this.

use std::sync::Arc;

use apiserver::Backend;
use parking_lot::Mutex;
use pki::Roots;

use crate::authn::oidc::{AuthenticationConfig, Oidc, ReloadError};
use crate::authn::{ClientCertificates, FrontProxies};
use crate::authz::chain::Chain;
use crate::authz::config::{AuthorizationConfig, AuthorizationError};
use crate::bootstrap::{self, Facts};
use crate::metrics::Counters;

/// Handles on a server's authentication and authorization.
pub struct Live {
    pub(crate) client_certificates: Option<Arc<ClientCertificates>>,
    pub(crate) front_proxies: Option<Arc<FrontProxies>>,
    pub(crate) oidc: Arc<Oidc>,
    pub(crate) chain: Arc<Chain>,
    /// The kinds of authorizers at the start.
    pub(crate) required: Vec<&'static str>,
    pub(crate) facts: Mutex<Facts>,
    pub(crate) backend: Option<Backend>,
    pub(crate) counters: Arc<Counters>,
}

impl Live {
    /// Other CAs (PEM) vouch for clients from now on. Without any at the start, there never are.
    pub async fn replace_client_ca(&self, pem: &str) -> Result<(), String> {
        let Some(certificates) = &self.client_certificates else { return Ok(()) };
        certificates.replace(Roots::from_pem(pem).map_err(|e| e.to_string())?);
        self.facts.lock().client_ca_pem = Some(pem.to_owned());
        self.publish().await
    }

    /// Other CAs (PEM) vouch for the front proxy from now on.
    pub async fn replace_front_proxy_ca(&self, pem: &str) -> Result<(), String> {
        let Some(proxies) = &self.front_proxies else { return Ok(()) };
        proxies.replace(Roots::from_pem(pem).map_err(|e| e.to_string())?);
        if let Some(proxy) = &mut self.facts.lock().front_proxy {
            proxy.ca_pem = pem.to_owned();
        }
        self.publish().await
    }

    /// Tells aggregated servers whom to trust.
    async fn publish(&self) -> Result<(), String> {
        let Some(backend) = &self.backend else { return Ok(()) };
        let facts = self.facts.lock().clone();
        bootstrap::publish_authentication(backend, &facts).await
    }

    /// Uses another AuthenticationConfiguration from now on, once its issuers are reached.
    pub async fn reload_authentication(&self, text: &str) -> Result<(), ReloadError> {
        let reloaded = match AuthenticationConfig::from_text(text) {
            Ok(config) => self.oidc.reload(&config).await,
            Err(error) => Err(ReloadError::Bad(error)),
        };
        self.counters.reloaded("authentication", reloaded.is_ok());
        reloaded
    }

    /// Uses another AuthorizationConfiguration from now on. It has to keep the kinds of authorizers of the start.
    pub fn reload_authorization(&self, text: &str) -> Result<(), AuthorizationError> {
        let read = AuthorizationConfig::from_text(text, &self.required).and_then(|config| {
            // what was not there at the start is not set up
            let fresh: Vec<String> = config.0.iter().map(|m| m.kind()).filter(|k| matches!(*k, "Node" | "RBAC") && !self.required.contains(k)).map(|k| format!("authorizer type {k} is not allowed if it was not enabled at initial server startup")).collect();
            if fresh.is_empty() { Ok(config) } else { Err(AuthorizationError::Names(fresh)) }
        });
        let reloaded = read.and_then(|config| self.chain.replace(&config.0));
        self.counters.reloaded("authorization", reloaded.is_ok());
        reloaded
    }

    /// Reaches the issuers of tokens, however long that takes. Nobody has to wait for it: who comes with a token does it, too.
    pub async fn prepare(&self) {
        self.oidc.prepare().await;
    }
}
