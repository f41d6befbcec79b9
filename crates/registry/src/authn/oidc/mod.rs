//! Tokens of other issuers (OpenID Connect): signed by keys that the issuer publishes, and mapped to users by an
//! AuthenticationConfiguration, which may change while the server runs.

mod claims;
mod config;
mod verifier;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::field::{FieldError, Path};
use apiserver::remote::Trust;
use apiserver::{AuthnRequest, Authenticator, UserInfo};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde_json::{Map, Value};

pub use config::{AnonymousConfig, AuthenticationConfig, AuthenticationError, ClaimRule, JwtConfig, Mapping};
use config::Expressions;
use verifier::{Verifier, issuer_of};

use super::{authenticated, common, digest};
use crate::expiring::Expiring;
use crate::metrics::Counters;

/// A token that was accepted is for so long without being looked at again.
const REMEMBERED: SignedDuration = SignedDuration::from_secs(10);
/// How many tokens are remembered.
const MOST: usize = 16_384;
/// Claims that are kept elsewhere are fetched in this time.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Issuers that are not reached are tried again after this, while somebody waits for them.
const RETRY: Duration = Duration::from_secs(10);
/// How long a changed configuration waits for its issuers.
const PATIENCE: Duration = Duration::from_secs(60);

/// One issuer of the configuration.
struct Jwt {
    config: JwtConfig,
    expressions: Expressions,
    verifier: Verifier,
    trust: Arc<Trust>,
    /// Those who sign the claims that are kept elsewhere, by their URLs.
    others: Mutex<HashMap<String, Arc<Verifier>>>,
    algorithms: Vec<String>,
    counters: Arc<Counters>,
}

/// All issuers of a configuration, and the tokens that they have been seen to sign.
struct Issuers {
    all: Vec<Jwt>,
    verified: Mutex<Expiring<[u8; 32], UserInfo>>,
}

/// The authenticator.
pub(crate) struct Oidc {
    current: ArcSwap<Issuers>,
    anonymous: Option<AnonymousConfig>,
    /// Issuers of service account tokens.
    taken: Vec<String>,
    /// The audiences of the API server.
    audiences: Vec<String>,
    counters: Arc<Counters>,
}

fn issuers(config: &AuthenticationConfig, taken: &[String], counters: &Arc<Counters>) -> Result<Issuers, AuthenticationError> {
    let compiled = config::compile(config, taken).map_err(AuthenticationError::Invalid)?;
    if let Some(odd) = config.algorithms.iter().find(|a| !pki::jwks::ALGORITHMS.contains(&a.as_str())) {
        return Err(AuthenticationError::Load(format!("oidc: unsupported signing alg: {}", api::field::go_quote(odd))));
    }
    let jwt = |(config_, expressions): (&JwtConfig, Expressions)| {
        let trust = Arc::new(Trust::new(&config_.certificate_authority));
        let verifier = Verifier::new(&config_.url, &config_.discovery_url, &config_.audiences, &config.algorithms, trust.clone(), counters.clone());
        Jwt { config: config_.clone(), expressions, verifier, trust, others: Mutex::default(), algorithms: config.algorithms.clone(), counters: counters.clone() }
    };
    Ok(Issuers { all: config.jwt.iter().zip(compiled).map(jwt).collect(), verified: Mutex::new(Expiring::new(MOST)) })
}

impl AuthenticationConfig {
    /// Whether it can be used; `taken` are issuers that nobody else can be.
    pub fn check(&self, taken: &[String]) -> Result<(), AuthenticationError> {
        issuers(self, taken, &Arc::default()).map(drop)
    }
}

impl Oidc {
    /// `taken` are issuers that nobody else can be; `audiences` are the API server's own.
    pub fn new(config: &AuthenticationConfig, taken: &[String], audiences: &[String], counters: Arc<Counters>) -> Result<Oidc, AuthenticationError> {
        let current = ArcSwap::from_pointee(issuers(config, taken, &counters)?);
        Ok(Oidc { current, anonymous: config.anonymous.clone(), taken: taken.to_vec(), audiences: audiences.to_vec(), counters })
    }

    /// Uses another configuration from now on, once all its issuers are reached; if they are not in a minute, nothing
    /// changes, and it may be tried again.
    pub async fn reload(&self, config: &AuthenticationConfig) -> Result<(), ReloadError> {
        if config.anonymous != self.anonymous {
            let changed = FieldError::forbidden(&Path::new("anonymous"), "changed from initial configuration file");
            return Err(ReloadError::Bad(AuthenticationError::Invalid(vec![changed])));
        }
        let next = issuers(config, &self.taken, &self.counters).map_err(ReloadError::Bad)?;
        let started = Instant::now();
        loop {
            let errors = unready(&next).await;
            if errors.is_empty() {
                break;
            }
            if started.elapsed() > PATIENCE {
                return Err(ReloadError::Unreachable(api::field::aggregate(errors)));
            }
            tokio::time::sleep(RETRY).await;
        }
        self.current.store(Arc::new(next));
        Ok(())
    }

    /// Reaches all issuers, however long that takes; tokens are checked meanwhile.
    pub async fn prepare(&self) {
        while !unready(&self.current.load_full()).await.is_empty() {
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Why a changed configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It will never be.
    #[error(transparent)]
    Bad(AuthenticationError),
    /// Issuers that are not there yet.
    #[error("{0}")]
    Unreachable(String),
}

/// Why issuers cannot be used yet.
async fn unready(issuers: &Issuers) -> Vec<String> {
    let mut errors = Vec::new();
    for jwt in &issuers.all {
        errors.extend(jwt.verifier.ready().await.err());
    }
    errors
}

impl Jwt {
    async fn user(&self, token: &str, now: Timestamp) -> Result<UserInfo, String> {
        let mut claims = self.verifier.verify(token, now).await.map_err(|why| format!("oidc: verify token: {why}"))?;
        if !self.config.groups.claim.is_empty() {
            self.expand(&mut claims, now).await.map_err(|why| format!("oidc: could not expand distributed claims: {why}"))?;
        }
        claims::user(&self.config, &self.expressions, &claims)
    }

    /// Fetches the groups where the token says that they are kept elsewhere (OpenID Connect Core 1.0, 5.6.2).
    async fn expand(&self, claims: &mut Map<String, Value>, now: Timestamp) -> Result<(), String> {
        let claim = &self.config.groups.claim;
        let (false, Some(names)) = (claims.contains_key(claim), claims.get("_claim_names")) else { return Ok(()) };
        let names = names.as_object().ok_or("oidc: error parsing distributed claim names")?;
        let sources = claims.get("_claim_sources").ok_or("oidc: no claim sources")?;
        let sources = sources.as_object().ok_or("oidc: could not parse claim sources")?;
        let Some(source) = names.get(claim).and_then(Value::as_str) else { return Ok(()) };
        let source_of = || format!("id token _claim_names contained a source {source} missing in _claims_sources");
        let place = sources.get(source).ok_or_else(source_of)?;
        let text = |key: &str| place[key].as_str().unwrap_or_default();
        let (endpoint, bearer) = (text("endpoint"), text("access_token"));
        if endpoint.is_empty() {
            return Ok(());
        }
        let fetching = |why: String| format!("while getting distributed claim {}: {why}", api::field::go_quote(claim));
        let (code, body) = self.trust.get(endpoint, Some(bearer).filter(|b| !b.is_empty()), TIMEOUT).await.map_err(fetching)?;
        if !(200..=226).contains(&code) {
            return Err(fetching(format!("error while getting distributed claim JWT: {code}")));
        }
        let token = String::from_utf8_lossy(&body);
        let said = pki::jwt::peek(token.trim()).ok_or_else(|| format!("getting untrusted issuer from endpoint {endpoint} failed for claim {claim:?}: malformed token"))?;
        let verifier = self.other(issuer_of(&said));
        let mut found = verifier.verify(token.trim(), now).await.map_err(|why| format!("verify distributed claim token: {why}"))?;
        let value = found.remove(claim).ok_or_else(|| format!("jwt returned by distributed claim endpoint {endpoint:?} did not contain claim: {claim}"))?;
        claims.insert(claim.clone(), value);
        Ok(())
    }

    fn other(&self, issuer: &str) -> Arc<Verifier> {
        const MOST: usize = 64;
        let mut others = self.others.lock();
        if others.len() >= MOST && !others.contains_key(issuer) {
            others.clear();
        }
        let make = || Arc::new(Verifier::new(issuer, "", &self.config.audiences, &self.algorithms, self.trust.clone(), self.counters.clone()));
        others.entry(issuer.to_owned()).or_insert_with(make).clone()
    }
}

#[async_trait]
impl Authenticator for Oidc {
    async fn authenticate(&self, req: &AuthnRequest<'_>) -> Result<Option<UserInfo>, String> {
        let Some(token) = req.bearer else { return Ok(None) };
        if !req.audiences.is_empty() && !common(&self.audiences, req.audiences) {
            return Ok(None);
        }
        let current = self.current.load_full();
        if current.all.is_empty() {
            return Ok(None);
        }
        let Some(said) = pki::jwt::peek(token) else { return Ok(None) };
        let Some(jwt) = current.all.iter().find(|jwt| jwt.config.url == issuer_of(&said)) else { return Ok(None) };
        let key = digest(token);
        if let Some(user) = current.verified.lock().get(&key, req.now) {
            return Ok(Some(user.clone()));
        }
        let user = authenticated(jwt.user(token, req.now).await?);
        current.verified.lock().insert(key, user.clone(), req.now, REMEMBERED);
        Ok(Some(user))
    }
}
