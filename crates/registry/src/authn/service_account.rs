//! Service account tokens: bound ones (by TokenRequest) and legacy ones (from Secrets).
//!
//! The signature of a token is checked once and remembered; what it is bound to (service account,
//! pod, secret, node) is looked at on every request, so that deleting the pod ends its token.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use apiserver::{AuthnRequest, Authenticator, Reader, UserInfo};
use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use pki::jwt::Verifier;
use serde_json::Value;

use super::{authenticated, common, digest};
use crate::util::{NODES, PODS, SECRETS, SERVICE_ACCOUNTS, texts, text};

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
}

impl ServiceAccountTokens {
    /// `audiences` are those that the API server itself answers to.
    pub fn new(reader: Arc<dyn Reader>, verifier: Verifier, issuers: Vec<String>, audiences: Vec<String>) -> Self {
        Self { reader, verifier, issuers, audiences, verified: Mutex::default() }
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
        let jti = text(claims, "/jti");
        if !jti.is_empty() {
            tell("credential-id", &format!("JTI={jti}"));
        }
        Ok(user(namespace, name, uid, extra))
    }

    fn legacy(&self, token: &str, claims: &Value, wanted: &[String], now: i64) -> Result<UserInfo, String> {
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
        Ok(user(namespace, name, uid, BTreeMap::new()))
    }
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
            return self.legacy(token, &claims, req.audiences, now).map(Some);
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
