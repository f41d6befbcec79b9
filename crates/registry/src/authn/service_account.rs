//! Service account tokens: bound ones (by TokenRequest) and legacy ones (from Secrets).
//!
//! The signature of a token is checked once and remembered; what it is bound to (service account,
//! pod, secret, node) is looked at on every request, so that deleting the pod ends its token. The use of legacy tokens
//! and of stale ones is noted: on the Secret, in the audit log, and in warnings.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use apiserver::authn::{Note, note};
use apiserver::types::Status;
use apiserver::{AuthnRequest, Authenticator, Reader, UserInfo, Writer};
use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use pki::jwt::Verifier;
use serde_json::Value;

use super::{authenticated, common, digest};
use crate::util::{NODES, PODS, SECRETS, SERVICE_ACCOUNTS, items, object, text, texts};

/// A bound object is good for this long after its deletion began, and clocks may differ by it.
const LEEWAY_SECONDS: i64 = 60;
const REMEMBERED: usize = 16_384;
/// Issuer of tokens that Secrets hold.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// Accepts tokens that the cluster's service account keys signed.
pub(crate) struct ServiceAccountTokens {
    reader: Arc<dyn Reader>,
    verifier: Verifier,
    issuers: Vec<String>,
    audiences: Vec<String>,
    verified: Mutex<HashMap<[u8; 32], Arc<Value>>>,
    /// Notes on Secrets when their tokens are used.
    writer: Option<Arc<dyn Writer>>,
    pub uses: Arc<Uses>,
}

/// How often tokens of each kind were used.
#[derive(Default)]
pub(crate) struct Uses([AtomicU64; 5]);

#[derive(Clone, Copy)]
enum Use {
    Manual,
    Generated,
    Invalid,
    Stale,
    Valid,
}

impl Uses {
    fn count(&self, used: Use) {
        self.0[used as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// In Prometheus' text form.
    pub fn render(&self, out: &mut String) {
        let families = [
            ("legacy_manual_token_uses_total", "Cumulative manually created legacy tokens used"),
            ("legacy_auto_token_uses_total", "Cumulative auto-generated legacy tokens used"),
            ("invalid_legacy_auto_token_uses_total", "Cumulative invalid auto-generated legacy tokens used"),
            ("stale_tokens_total", "Cumulative stale projected service account tokens used"),
            ("valid_tokens_total", "Cumulative valid projected service account tokens used"),
        ];
        for ((name, help), count) in families.iter().zip(&self.0) {
            let count = count.load(Ordering::Relaxed);
            out.push_str(&format!("# HELP serviceaccount_{name} [ALPHA] {help}\n# TYPE serviceaccount_{name} counter\nserviceaccount_{name} {count}\n"));
        }
    }
}

/// The day on which a legacy token was last used.
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// The day since when a legacy token is not taken any more.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

impl ServiceAccountTokens {
    /// `audiences` are those that the API server itself answers to.
    pub fn new(reader: Arc<dyn Reader>, verifier: Verifier, issuers: Vec<String>, audiences: Vec<String>) -> Self {
        Self { reader, verifier, issuers, audiences, verified: Mutex::default(), writer: None, uses: Arc::default() }
    }

    /// Notes the use of legacy tokens on their Secrets.
    pub fn noting(mut self, writer: Arc<dyn Writer>) -> Self {
        self.writer = Some(writer);
        self
    }

    fn claims(&self, token: &str) -> Result<Arc<Value>, String> {
        let key = digest(token);
        if let Some(claims) = self.verified.lock().get(&key) {
            return Ok(claims.clone());
        }
        let claims = Arc::new(self.verifier.verify(token).map_err(|e| e.to_string())?);
        let mut verified = self.verified.lock();
        if verified.len() >= REMEMBERED {
            verified.clear();
        }
        verified.insert(key, claims.clone());
        Ok(claims)
    }

    fn account(&self, namespace: &str, name: &str, uid: &str, now: i64) -> Result<(), String> {
        let account = self
            .reader
            .get(&SERVICE_ACCOUNTS, namespace, name)
            .ok_or_else(|| format!("serviceaccounts {name:?} not found"))?;
        let current = text(&account, "/metadata/uid");
        if current != uid {
            return Err(format!("service account UID ({current}) does not match claim ({uid})"));
        }
        if deleted(&account, now) {
            return Err(format!("service account {namespace}/{name} has been deleted"));
        }
        Ok(())
    }

    fn modern(&self, claims: &Value, wanted: &[String], now: i64) -> Result<UserInfo, String> {
        let has = audiences(claims);
        let wanted = if wanted.is_empty() { &self.audiences[..] } else { wanted };
        if !common(&has, wanted) {
            return Err(format!("token audiences {has:?} is invalid for the target audiences {wanted:?}"));
        }
        let time = |claim: &str| claims.get(claim).and_then(Value::as_f64).map(|t| t as i64);
        if time("exp").is_some_and(|t| now - LEEWAY_SECONDS > t) {
            return Err("service account token has expired".into());
        }
        if time("nbf").is_some_and(|t| now + LEEWAY_SECONDS < t) {
            return Err("service account token is not valid yet".into());
        }
        let private = claims.get("kubernetes.io").ok_or("no private claims")?;
        let namespace = text(private, "/namespace");
        let (name, uid) = (text(private, "/serviceaccount/name"), text(private, "/serviceaccount/uid"));
        if text(claims, "/sub") != format!("system:serviceaccount:{namespace}:{name}") {
            return Err("sub does not match the private claims".into());
        }
        self.account(namespace, name, uid, now)?;
        let mut extra = BTreeMap::new();
        let mut tell = |key: &str, value: &str| {
            if !value.is_empty() {
                extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
            }
        };
        if let Some(secret) = private.get("secret") {
            bound(self.reader.get(&SECRETS, namespace, text(secret, "/name")), "secret", text(secret, "/uid"), now)?;
        }
        if let Some(pod) = private.get("pod") {
            bound(self.reader.get(&PODS, namespace, text(pod, "/name")), "pod", text(pod, "/uid"), now)?;
            tell("pod-name", text(pod, "/name"));
            tell("pod-uid", text(pod, "/uid"));
        }
        if let Some(node) = private.get("node") {
            if private.get("pod").is_none() {
                bound(self.reader.get(&NODES, "", text(node, "/name")), "node", text(node, "/uid"), now)?;
            }
            tell("node-name", text(node, "/name"));
            tell("node-uid", text(node, "/uid"));
        }
        if let Some(warn_after) = private.get("warnafter").and_then(Value::as_f64).map(|t| t as i64).filter(|t| *t != 0) {
            if now > warn_after {
                let text = format!("subject: {}, seconds after warning threshold: {}", text(claims, "/sub"), now - warn_after);
                note(Note::Audit("authentication.k8s.io/stale-token", text));
                self.uses.count(Use::Stale);
            } else {
                self.uses.count(Use::Valid);
            }
        }
        let jti = text(claims, "/jti");
        if !jti.is_empty() {
            tell("credential-id", &format!("JTI={jti}"));
        }
        Ok(user(namespace, name, uid, extra))
    }

    async fn legacy(&self, token: &str, claims: &Value, wanted: &[String], now: i64) -> Result<UserInfo, String> {
        if !wanted.is_empty() && !common(&self.audiences, wanted) {
            return Err("audience mismatch".into());
        }
        let claim = |key: &str| claims.get(format!("kubernetes.io/serviceaccount/{key}")).and_then(Value::as_str).unwrap_or("");
        let (namespace, name, uid) = (claim("namespace"), claim("service-account.name"), claim("service-account.uid"));
        let secret = self
            .reader
            .get(&SECRETS, namespace, claim("secret.name"))
            .filter(|s| s.pointer("/metadata/deletionTimestamp").is_none())
            .ok_or("Token has been invalidated")?;
        if STANDARD.decode(text(&secret, "/data/token")).unwrap_or_default() != token.as_bytes() {
            return Err("Token does not match server's copy".into());
        }
        self.account(namespace, name, uid, now)?;
        let secret_name = text(&secret, "/metadata/name");
        let invalid = secret.pointer("/metadata/labels").and_then(|l| l.get(INVALID_SINCE)).and_then(Value::as_str).is_some_and(|l| !l.is_empty());
        if invalid {
            note(Note::Audit("authentication.k8s.io/legacy-token-invalidated", format!("{secret_name}/{namespace}")));
            self.uses.count(Use::Invalid);
            self.note_use(&secret, now).await;
            return Err(format!(
                "the token in secret {namespace}/{secret_name} for service account {namespace}/{name} has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '{INVALID_SINCE}' label from the secret to temporarily allow use of this token"
            ));
        }
        let account = self.reader.get(&SERVICE_ACCOUNTS, namespace, name);
        let generated = account.is_some_and(|a| items(&a, "/secrets").any(|s| text(s, "/name") == secret_name));
        if generated {
            note(Note::Warning("Use tokens from the TokenRequest API or manually created secret-based tokens instead of auto-generated secret-based tokens."));
            note(Note::Audit("authentication.k8s.io/legacy-token-autogenerated-secret", secret_name.to_owned()));
            self.uses.count(Use::Generated);
        } else {
            note(Note::Audit("authentication.k8s.io/legacy-token-manual-secret", secret_name.to_owned()));
            self.uses.count(Use::Manual);
        }
        self.note_use(&secret, now).await;
        Ok(user(namespace, name, uid, BTreeMap::new()))
    }

    /// Says on a Secret that its token is used today, once a day. Tomorrow counts as well: clocks of servers may differ.
    async fn note_use(&self, secret: &Value, now: i64) {
        let Some(writer) = &self.writer else { return };
        let day = |seconds: i64| jiff::Timestamp::from_second(seconds).map(|at| at.strftime("%Y-%m-%d").to_string()).unwrap_or_default();
        let today = day(now);
        let said = secret.pointer("/metadata/labels").and_then(|l| l.get(LAST_USED)).and_then(Value::as_str).unwrap_or("");
        if said == today || said == day(now + 86_400) {
            return;
        }
        let (namespace, name) = (text(secret, "/metadata/namespace"), text(secret, "/metadata/name"));
        let uid = text(secret, "/metadata/uid");
        let mut change = |current: &mut Value| -> Result<(), Status> {
            if text(current, "/metadata/uid") != uid {
                return Err(api::status::conflict("", "secrets", name, "it is another Secret now"));
            }
            object(object_of(current), "labels").insert(LAST_USED.into(), today.as_str().into());
            Ok(())
        };
        if let Err(status) = writer.modify(*SECRETS, namespace, name, &mut change).await {
            tracing::error!(namespace, name, why = status.message, "the use of a legacy token could not be noted");
        }
    }
}

/// The metadata.
fn object_of(value: &mut Value) -> &mut Value {
    object(value, "metadata");
    &mut value["metadata"]
}

/// The audiences of a token's claims.
fn audiences(claims: &Value) -> Vec<String> {
    match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        _ => texts(claims, "/aud").map(str::to_owned).collect(),
    }
}

/// Whether the bound object is still that object and not gone.
fn bound(object: Option<Arc<Value>>, kind: &str, uid: &str, now: i64) -> Result<(), String> {
    let object = object.ok_or("service account token has been invalidated")?;
    let current = text(&object, "/metadata/uid");
    if current != uid {
        return Err(format!("{kind} UID ({current}) does not match service account {kind} ref claim ({uid})"));
    }
    if deleted(&object, now) {
        return Err("service account token has been invalidated".into());
    }
    Ok(())
}

fn deleted(object: &Value, now: i64) -> bool {
    text(object, "/metadata/deletionTimestamp")
        .parse::<jiff::Timestamp>()
        .is_ok_and(|at| at.as_second() < now - LEEWAY_SECONDS)
}

fn user(namespace: &str, name: &str, uid: &str, extra: BTreeMap<String, Vec<String>>) -> UserInfo {
    authenticated(UserInfo {
        name: format!("system:serviceaccount:{namespace}:{name}"),
        uid: uid.to_owned(),
        groups: vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")],
        extra,
    })
}

#[async_trait]
impl Authenticator for ServiceAccountTokens {
    async fn authenticate(&self, req: &AuthnRequest<'_>) -> Result<Option<UserInfo>, String> {
        let Some(token) = req.bearer else { return Ok(None) };
        let Some(issuer) = pki::jwt::peek(token).map(|c| text(&c, "/iss").to_owned()) else { return Ok(None) };
        let now = req.now.as_second();
        if issuer == LEGACY_ISSUER {
            let claims = self.claims(token)?;
            return self.legacy(token, &claims, req.audiences, now).await.map(Some);
        }
        if !self.issuers.contains(&issuer) {
            return Ok(None);
        }
        let claims = self.claims(token)?;
        let user = self.modern(&claims, req.audiences, now)?;
        if let Some(granted) = req.granted {
            *granted.lock() = Some(audiences(&claims));
        }
        Ok(Some(user))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use serde_json::json;

    /// Answers who uses the token at this time, and what is on its Secret afterwards.
    fn use_at(objects: &Arc<Objects>, authenticator: &ServiceAccountTokens, token: &str, now: &str) -> (Result<String, String>, Value) {
        let headers = Default::default();
        let request = AuthnRequest { headers: &headers, path: "/", peer: None, bearer: Some(token), audiences: &[], granted: None, now: now.parse().unwrap() };
        let who = block_on(authenticator.authenticate(&request)).map(|user| user.expect("a token of ours").name);
        (who, Reader::get(&**objects, &SECRETS, "n", "t").unwrap()["metadata"]["labels"].clone())
    }

    #[test]
    fn the_use_of_legacy_tokens_is_noted_once_a_day() {
        let objects = Objects::new();
        let signer = pki::jwt::Signer::from_pem(&pki::jwt::new_key_pem().unwrap()).unwrap();
        let claim = |key: &str| format!("kubernetes.io/serviceaccount/{key}");
        let token = signer.sign(&json!({
            "iss": LEGACY_ISSUER, "sub": "system:serviceaccount:n:a",
            claim("namespace"): "n", claim("secret.name"): "t", claim("service-account.name"): "a", claim("service-account.uid"): "u",
        })).unwrap();
        objects.put(&SERVICE_ACCOUNTS, json!({"metadata": {"name": "a", "namespace": "n", "uid": "u"}, "secrets": [{"name": "t"}]}));
        objects.put(&SECRETS, json!({"metadata": {"name": "t", "namespace": "n", "uid": "s"}, "data": {"token": STANDARD.encode(&token)}}));
        let authenticator = ServiceAccountTokens::new(objects.clone(), signer.verifier().clone(), vec!["i".into()], vec!["i".into()]).noting(objects.clone());
        let (who, labels) = use_at(&objects, &authenticator, &token, "2026-05-01T23:00:00Z");
        assert_eq!((who, labels), (Ok("system:serviceaccount:n:a".into()), json!({LAST_USED: "2026-05-01"})));
        let version = objects.version(&SECRETS);
        use_at(&objects, &authenticator, &token, "2026-05-01T23:30:00Z").0.unwrap();
        use_at(&objects, &authenticator, &token, "2026-04-30T23:30:00Z").0.unwrap();
        assert_eq!(objects.version(&SECRETS), version, "it is said already");
        assert_eq!(use_at(&objects, &authenticator, &token, "2026-05-02T00:30:00Z").1, json!({LAST_USED: "2026-05-02"}));
        let mut secret = (*Reader::get(&*objects, &SECRETS, "n", "t").unwrap()).clone();
        secret["metadata"]["labels"][INVALID_SINCE] = "2026-05-03".into();
        objects.put(&SECRETS, secret);
        let (refused, labels) = use_at(&objects, &authenticator, &token, "2026-05-04T00:30:00Z");
        assert!(refused.unwrap_err().starts_with("the token in secret n/t for service account n/a has been marked invalid. "));
        assert_eq!(labels[LAST_USED], "2026-05-04");
        let counts: Vec<u64> = authenticator.uses.0.iter().map(|n| n.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [0, 4, 1, 0, 0]);
    }
}
