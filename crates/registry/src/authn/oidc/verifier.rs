//! One issuer: where its keys are, and whether it signed a token for us. Its discovery document is fetched when it is
//! first needed, and again until that works; its keys whenever a token is signed by one that is not known.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::field::go_quote as quote;
use apiserver::remote::Trust;
use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use pki::jwks::{Jws, KeySet};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use crate::metrics::Counters;

/// The longest that one document may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// An issuer that could not be reached is left alone for so long.
const PAUSE: Duration = Duration::from_secs(2);
/// Clocks may differ by this about when a token becomes valid.
const LEEWAY_SECONDS: i64 = 60;

/// What is known of the issuer.
struct Known {
    jwks_uri: String,
    keys: KeySet,
    /// How often keys have been fetched.
    generation: u64,
}

/// An issuer.
pub(super) struct Verifier {
    pub issuer: String,
    discovery_url: String,
    pub audiences: Vec<String>,
    algorithms: Vec<String>,
    trust: Arc<Trust>,
    known: ArcSwapOption<Known>,
    /// Held while something is fetched: who waits for it shares what comes of it. When the last attempt failed, and why.
    fetching: Mutex<Option<(Instant, String)>>,
    counters: Arc<Counters>,
}

/// Issuers by their names: Google's has two.
pub(super) fn issuer_of(claims: &Value) -> &str {
    match claims["iss"].as_str().unwrap_or_default() {
        "accounts.google.com" => "https://accounts.google.com",
        other => other,
    }
}

impl Verifier {
    /// `discovery_url` is where its document is; empty: at the usual place.
    pub fn new(issuer: &str, discovery_url: &str, audiences: &[String], algorithms: &[String], trust: Arc<Trust>, counters: Arc<Counters>) -> Verifier {
        let usual = format!("{}/.well-known/openid-configuration", issuer.strip_suffix('/').unwrap_or(issuer));
        Verifier {
            issuer: issuer.to_owned(),
            discovery_url: if discovery_url.is_empty() { usual } else { discovery_url.to_owned() },
            audiences: audiences.to_vec(),
            algorithms: algorithms.to_vec(),
            trust,
            known: ArcSwapOption::empty(),
            fetching: Mutex::new(None),
            counters,
        }
    }

    async fn document(&self, url: &str) -> Result<Value, String> {
        let (code, body) = self.trust.get(url, None, TIMEOUT).await?;
        if code != 200 {
            return Err(format!("{code}: {}", String::from_utf8_lossy(&body[..body.len().min(1024)])));
        }
        serde_json::from_slice(&body).map_err(|e| format!("oidc: failed to decode provider discovery object: {e}"))
    }

    async fn keys(&self, uri: &str) -> Result<KeySet, String> {
        let fetched = async {
            let document = self.document(uri).await?;
            KeySet::from_jwks(&document).map_err(|e| format!("oidc: failed to decode keys: {e}"))
        };
        let fetched = fetched.await;
        self.counters.jwks_fetched(&self.issuer, fetched.is_ok());
        fetched
    }

    /// Where its keys are, and the keys; fetched if they are not known.
    async fn known(&self) -> Result<Arc<Known>, String> {
        if let Some(known) = self.known.load_full() {
            return Ok(known);
        }
        let mut failed = self.fetching.lock().await;
        if let Some(known) = self.known.load_full() {
            return Ok(known);
        }
        if let Some((at, why)) = failed.as_ref()
            && at.elapsed() < PAUSE
        {
            return Err(why.clone());
        }
        let discovered = async {
            let document = self.document(&self.discovery_url).await?;
            let (issuer, jwks_uri) = (document["issuer"].as_str().unwrap_or_default(), document["jwks_uri"].as_str().unwrap_or_default());
            if issuer != self.issuer {
                return Err(format!("oidc: issuer did not match the issuer returned by provider, expected {} got {}", quote(&self.issuer), quote(issuer)));
            }
            if jwks_uri.is_empty() {
                return Err("provider did not return JWKS URL".to_owned());
            }
            Ok(Known { jwks_uri: jwks_uri.to_owned(), keys: KeySet::default(), generation: 0 })
        };
        match discovered.await {
            Ok(known) => {
                *failed = None;
                let known = Arc::new(known);
                self.known.store(Some(known.clone()));
                Ok(known)
            }
            Err(why) => {
                tracing::error!(issuer = self.issuer, why, "oidc authenticator: initializing plugin");
                *failed = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }

    /// Whether its discovery document has been read; reads it if not.
    pub async fn ready(&self) -> Result<(), String> {
        let ready = self.known().await.map(drop);
        ready.map_err(|why| format!("oidc: authenticator for issuer {} is not healthy: {why}", quote(&self.issuer)))
    }

    /// Newer keys than these.
    async fn refreshed(&self, old: &Known) -> Result<Arc<Known>, String> {
        let _fetching = self.fetching.lock().await;
        if let Some(known) = self.known.load_full()
            && known.generation > old.generation
        {
            return Ok(known);
        }
        let keys = self.keys(&old.jwks_uri).await.map_err(|why| format!("fetching keys {why}"))?;
        let known = Arc::new(Known { jwks_uri: old.jwks_uri.clone(), keys, generation: old.generation + 1 });
        self.known.store(Some(known.clone()));
        Ok(known)
    }

    /// The claims of a token of this issuer that is for us, and whose time it is.
    pub async fn verify(&self, token: &str, now: Timestamp) -> Result<Map<String, Value>, String> {
        let token = Jws::parse(token).map_err(|e| format!("oidc: {e}"))?;
        self.check(&token, now.as_second())?;
        let known = self.known().await.map_err(|why| format!("oidc: authenticator not initialized: {why}"))?;
        if !known.keys.verifies(&token) && !self.refreshed(&known).await.map_err(|why| format!("failed to verify signature: {why}"))?.keys.verifies(&token) {
            return Err("failed to verify signature: failed to verify id token signature".into());
        }
        match token.claims {
            Value::Object(claims) => Ok(claims),
            _ => Err("oidc: the claims are no object".into()),
        }
    }

    /// All but the signature.
    fn check(&self, token: &Jws<'_>, now: i64) -> Result<(), String> {
        let claims = &token.claims;
        if issuer_of(claims) != self.issuer {
            return Err(format!("oidc: id token issued by a different provider, expected {} got {}", quote(&self.issuer), quote(issuer_of(claims))));
        }
        let has: Vec<&str> = match &claims["aud"] {
            Value::String(one) => vec![one],
            Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if !self.audiences.iter().any(|a| has.contains(&a.as_str())) {
            let shown = |list: &[&str]| list.iter().map(|a| quote(a)).collect::<Vec<_>>().join(" ");
            return Err(match self.audiences.as_slice() {
                [one] => format!("oidc: expected audience {} got [{}]", quote(one), shown(&has)),
                many => {
                    let mut wanted: Vec<&str> = many.iter().map(String::as_str).collect();
                    wanted.sort_unstable();
                    format!("oidc: expected audience in [{}] got [{}]", shown(&wanted), shown(&has))
                }
            });
        }
        let time = |claim: &str| claims[claim].as_f64().map(|t| t as i64);
        let shown = |seconds: i64| Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string());
        let expiry = time("exp").unwrap_or(i64::MIN);
        if expiry < now {
            let expiry = if expiry == i64::MIN { "none".to_owned() } else { shown(expiry) };
            return Err(format!("oidc: token is expired (Token Expiry: {expiry})"));
        }
        if let Some(start) = time("nbf").filter(|start| now + LEEWAY_SECONDS < *start) {
            return Err(format!("oidc: current time {} before the nbf (not before) time: {}", shown(now), shown(start)));
        }
        if !self.algorithms.contains(&token.algorithm) {
            let known: Vec<String> = self.algorithms.iter().map(|a| quote(a)).collect();
            return Err(format!("oidc: id token signed with unsupported algorithm, expected [{}] got {}", known.join(" "), quote(&token.algorithm)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_token_is_for_us_and_of_now() {
        let signer = pki::jwt::Signer::from_pem(&pki::jwt::new_key_pem().unwrap()).unwrap();
        let texts = |all: &[&str]| all.iter().map(|a| a.to_string()).collect::<Vec<_>>();
        let verifier = |audiences: &[&str]| Verifier::new("https://a.example.com", "", &texts(audiences), &texts(&["ES256"]), Arc::new(Trust::new("")), Arc::default());
        let asked = |verifier: &Verifier, claims: Value| {
            let token = signer.sign(&claims).unwrap();
            verifier.check(&Jws::parse(&token).unwrap(), 1000)
        };
        let one = verifier(&["kube"]);
        let claims = |more: Value| {
            let mut claims = json!({"iss": "https://a.example.com", "aud": "kube", "exp": 1000});
            more.as_object().unwrap().iter().for_each(|(k, v)| claims[k] = v.clone());
            claims
        };
        let why = |more: Value| asked(&one, claims(more)).unwrap_err();
        assert_eq!(asked(&one, claims(json!({}))), Ok(()));
        assert_eq!(asked(&one, claims(json!({"aud": ["x", "kube"], "nbf": 1060}))), Ok(()));
        assert_eq!(why(json!({"iss": "https://b.example.com"})), "oidc: id token issued by a different provider, expected \"https://a.example.com\" got \"https://b.example.com\"");
        assert_eq!(why(json!({"aud": ["x"]})), "oidc: expected audience \"kube\" got [\"x\"]");
        assert_eq!(why(json!({"aud": null})), "oidc: expected audience \"kube\" got []");
        assert_eq!(why(json!({"exp": 999})), "oidc: token is expired (Token Expiry: 1970-01-01T00:16:39Z)");
        assert_eq!(why(json!({"exp": null})), "oidc: token is expired (Token Expiry: none)");
        assert!(why(json!({"nbf": 1061})).starts_with("oidc: current time 1970-01-01T00:16:40Z before the nbf"));
        assert_eq!(asked(&verifier(&["b", "a"]), claims(json!({}))).unwrap_err(), "oidc: expected audience in [\"a\" \"b\"] got [\"kube\"]");
        let rsa = Verifier::new("https://a.example.com", "", &texts(&["kube"]), &texts(&["RS256"]), Arc::new(Trust::new("")), Arc::default());
        assert_eq!(asked(&rsa, claims(json!({}))).unwrap_err(), "oidc: id token signed with unsupported algorithm, expected [\"RS256\"] got \"ES256\"");
        assert_eq!(issuer_of(&json!({"iss": "accounts.google.com"})), "https://accounts.google.com");
    }
}
