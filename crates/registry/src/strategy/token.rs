//! `serviceaccounts/NAME/token`: tokens bound to an audience, a time and (mostly) a pod.

use std::sync::Arc;

use api::field::{FieldError, Path};
use api::status;
use apiserver::types::Status;
use apiserver::{Creater, Ctx};
use async_trait::async_trait;
use jiff::SignedDuration;
use pki::jwt::Signer;
use serde_json::{Value, json};

use crate::util::{NODES, PODS, SECRETS, SERVICE_ACCOUNTS, number, text, texts, uuid};

/// A kubelet asks for this lifetime; such tokens live a year but warn after it.
const WARN_ONLY_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 60 * 60;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;

/// Issues tokens.
pub(crate) struct TokenRequests {
    pub signer: Arc<Signer>,
    pub issuer: String,
    /// The API server's own audiences.
    pub audiences: Vec<String>,
    /// Longest life, in seconds; who asks for more gets this.
    pub max_seconds: Option<i64>,
    /// Whether pods' tokens go on to be good for a year.
    pub extend: bool,
}

#[async_trait]
impl Creater for TokenRequests {
    async fn create(&self, ctx: &Ctx, mut request: Value) -> Result<Value, Status> {
        let name = &ctx.name;
        let invalid = |errors: &[FieldError]| status::invalid("authentication.k8s.io", "TokenRequest", name, errors);
        for (key, wanted) in [("name", name), ("namespace", &ctx.namespace)] {
            let given = text(&request, &format!("/metadata/{key}"));
            if !given.is_empty() && given != wanted {
                let what = if key == "name" { "must match the service account name if specified" } else { "must match the service account namespace if specified" };
                return Err(invalid(&[FieldError::invalid(&Path::new(&format!("metadata.{key}")), given, what)]));
            }
        }
        let account = self.account(ctx).await?;
        let uid = text(&account, "/metadata/uid").to_owned();
        let given = text(&request, "/metadata/uid");
        if !given.is_empty() && given != uid {
            let why = format!("the UID in the token request ({given}) does not match the UID of the service account ({uid})");
            return Err(status::conflict("authentication.k8s.io", "TokenRequest", name, &why));
        }
        let mut audiences: Vec<String> = texts(&request, "/spec/audiences").map(str::to_owned).collect();
        if audiences.is_empty() {
            audiences = self.audiences.clone();
        }
        let mut seconds = number(&request, "/spec/expirationSeconds").unwrap_or(3600);
        let path = Path::new("spec.expirationSeconds");
        let invalid = |errors: &[FieldError]| status::invalid("authentication.k8s.io", "TokenRequest", "", errors);
        if seconds < MIN_SECONDS {
            return Err(invalid(&[FieldError::invalid(&path, seconds, "may not specify a duration less than 10 minutes")]));
        }
        if seconds > MAX_SECONDS {
            return Err(invalid(&[FieldError::invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds")]));
        }
        if let Some(max) = self.max_seconds.filter(|max| seconds > *max) {
            ctx.warn(format!("requested expiration of {seconds} seconds shortened to {max} seconds"));
            seconds = max;
        }
        let mut private = json!({"namespace": ctx.namespace, "serviceaccount": {"name": name, "uid": uid}});
        let pod_bound = self.bind(ctx, &request, &mut private)?;
        let own = audiences.iter().all(|a| self.audiences.contains(a));
        let mut lifetime = seconds;
        let now = ctx.now.as_second();
        if self.extend && pod_bound && own && seconds == WARN_ONLY_SECONDS {
            lifetime = EXTENDED_SECONDS;
            private["warnafter"] = (now + seconds).into();
        }
        let id = uuid();
        let claims = json!({
            "aud": audiences, "exp": now + lifetime, "iat": now, "nbf": now, "iss": self.issuer, "jti": id,
            "sub": format!("system:serviceaccount:{}:{name}", ctx.namespace), "kubernetes.io": private,
        });
        let token = self.signer.sign(&claims).map_err(|e| status::internal(format!("failed to generate token: {e}")))?;
        // the user's credential-id in what is done with it
        ctx.audit("authentication.kubernetes.io/issued-credential-id", || format!("JTI={id}"));
        let end = ctx.now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(ctx.now);
        let metadata = json!({"name": name, "namespace": ctx.namespace, "uid": uid, "creationTimestamp": ctx.now_string()});
        request["metadata"] = metadata;
        request["spec"]["audiences"] = json!(audiences);
        request["spec"]["expirationSeconds"] = seconds.into();
        request["status"] = json!({"token": token, "expirationTimestamp": apiserver::ctx::format_time(end)});
        Ok(request)
    }
}

impl TokenRequests {
    async fn account(&self, ctx: &Ctx) -> Result<Value, Status> {
        // Just created accounts may not have reached the cache when another server made them.
        match ctx.backend.reader.get(&SERVICE_ACCOUNTS, &ctx.namespace, &ctx.name) {
            Some(account) => Ok((*account).clone()),
            None => ctx.backend.writer.get(&SERVICE_ACCOUNTS, &ctx.namespace, &ctx.name).await,
        }
    }

    /// Adds the claims about the bound object; true if it is a pod.
    fn bind(&self, ctx: &Ctx, request: &Value, private: &mut Value) -> Result<bool, Status> {
        let Some(reference) = request.pointer("/spec/boundObjectRef").filter(|r| r.is_object()) else { return Ok(false) };
        let (api_version, kind) = (text(reference, "/apiVersion"), text(reference, "/kind"));
        let (name, uid) = (text(reference, "/name"), text(reference, "/uid"));
        let reader = &ctx.backend.reader;
        let (resource, namespace): (&'static apiserver::types::Resource, &str) = match (api_version, kind) {
            ("v1", "Pod") => (*PODS, &ctx.namespace),
            ("v1", "Secret") => (*SECRETS, &ctx.namespace),
            ("v1", "Node") => (*NODES, ""),
            _ if name.is_empty() && !kind.is_empty() => return Err(status::bad_request("Name parameter required.")),
            _ => {
                let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
                return Err(status::bad_request(format!("cannot bind token to object of type {group}/{version}, Kind={kind}")));
            }
        };
        let object = reader.get(resource, namespace, name).ok_or_else(|| status::not_found("", resource.plural, name))?;
        let actual = text(&object, "/metadata/uid");
        if kind == "Pod" && text(&object, "/spec/serviceAccountName") != ctx.name {
            return Err(status::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                ctx.name
            )));
        }
        if !uid.is_empty() && uid != actual {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(status::conflict("", kind, name, &why));
        }
        private[kind.to_lowercase()] = json!({"name": name, "uid": actual});
        if kind != "Pod" {
            return Ok(false);
        }
        let node = text(&object, "/spec/nodeName");
        if !node.is_empty() {
            private["node"] = match reader.get(&NODES, "", node) {
                Some(n) => json!({"name": node, "uid": text(&n, "/metadata/uid")}),
                None => json!({"name": node}),
            };
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::ServiceAccountTokens;
    use crate::testing::{Objects, block_on};
    use apiserver::{Authenticator, AuthnRequest, UserInfo};

    #[test]
    fn token_lives_as_long_as_its_pod() {
        let objects = Objects::new();
        objects.put(&SERVICE_ACCOUNTS, json!({"metadata": {"name": "sa", "namespace": "a", "uid": "u1"}}));
        objects.put(&PODS, json!({"metadata": {"name": "p", "namespace": "a", "uid": "u2"}, "spec": {"serviceAccountName": "sa", "nodeName": "n"}}));
        let signer = Arc::new(Signer::from_pem(&pki::jwt::new_key_pem().unwrap()).unwrap());
        let own = vec!["https://k".to_owned()];
        let mut requests = TokenRequests { signer: signer.clone(), issuer: "https://k".into(), audiences: own.clone(), max_seconds: None, extend: true };
        let ctx = objects.ctx(&SERVICE_ACCOUNTS, "a", "sa", UserInfo::default());
        let ask = json!({"spec": {"expirationSeconds": 3607, "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u2"}}});
        let answer = block_on(requests.create(&ctx, ask.clone())).unwrap();
        assert_eq!(answer["status"]["expirationTimestamp"], "2026-05-01T11:00:07Z");
        let token = answer["status"]["token"].as_str().unwrap().to_owned();
        let authn = ServiceAccountTokens::new(objects.clone(), signer.verifier().clone(), own.clone(), own);
        let who = |audiences: &[String]| {
            let headers = http::HeaderMap::new();
            let req = AuthnRequest { headers: &headers, path: "/", peer: None, bearer: Some(&token), audiences, granted: None, now: ctx.now };
            block_on(authn.authenticate(&req))
        };
        let user = who(&[]).unwrap().unwrap();
        assert_eq!(user.name, "system:serviceaccount:a:sa");
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"]);
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
        assert_eq!(user.extra["authentication.kubernetes.io/node-name"], ["n"]);
        assert!(who(&["other".to_owned()]).is_err());
        let life = |answer: Value| {
            let payload = answer["status"]["token"].as_str().and_then(|t| t.split('.').nth(1)).unwrap().to_owned();
            let claims: Value = serde_json::from_slice(&base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, payload).unwrap()).unwrap();
            claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap()
        };
        assert_eq!(life(answer), EXTENDED_SECONDS);
        requests.extend = false;
        assert_eq!(life(block_on(requests.create(&ctx, ask.clone())).unwrap()), 3607);
        requests.max_seconds = Some(3600);
        let shortened = block_on(requests.create(&ctx, ask.clone())).unwrap();
        assert_eq!((shortened["spec"]["expirationSeconds"].as_i64(), life(shortened)), (Some(3600), 3600));
        assert_eq!(ctx.warnings(), ["requested expiration of 3607 seconds shortened to 3600 seconds"]);
        objects.remove(&PODS, "a", "p");
        assert_eq!(who(&[]).unwrap_err(), "service account token has been invalidated");
        assert_eq!(block_on(requests.create(&ctx, ask)).unwrap_err().code, 404);
    }
}
