//! Secrets: `stringData` is for writing only, and a Secret that asks for a service account's token
//! gets one.
//!
//! Upstream's token controller fills such Secrets a moment after they were made; here it happens
//! with the creation itself.

use std::sync::Arc;

use api::status;
use apiserver::strategy::{generic_prepare_create, generic_prepare_update};
use apiserver::types::Status;
use apiserver::{Ctx, Finish, Strategy};
use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use pki::jwt::Signer;
use serde_json::{Value, json};

use crate::authn::service_account::LEGACY_ISSUER;
use crate::util::{SERVICE_ACCOUNTS, object, text};

const TOKEN_TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// The resource's own rules.
pub(crate) struct Secrets {
    pub signer: Arc<Signer>,
    /// The CA that pods check the API server by.
    pub cluster_ca_pem: String,
}

impl Secrets {
    fn fill_token(&self, ctx: &Ctx, secret: &mut Value) -> Result<(), Status> {
        let annotation = |key: &str| secret["metadata"]["annotations"].get(key).and_then(Value::as_str).unwrap_or("").to_owned();
        let (account, uid) = (annotation(ACCOUNT_NAME), annotation(ACCOUNT_UID));
        let Some(found) = ctx.backend.reader.get(&SERVICE_ACCOUNTS, &ctx.namespace, &account) else { return Ok(()) };
        let actual = text(&found, "/metadata/uid").to_owned();
        if !uid.is_empty() && uid != actual {
            return Ok(());
        }
        let name = text(secret, "/metadata/name").to_owned();
        let claims = json!({
            "iss": LEGACY_ISSUER,
            "kubernetes.io/serviceaccount/namespace": ctx.namespace,
            "kubernetes.io/serviceaccount/secret.name": name,
            "kubernetes.io/serviceaccount/service-account.name": account,
            "kubernetes.io/serviceaccount/service-account.uid": actual,
            "sub": format!("system:serviceaccount:{}:{account}", ctx.namespace),
        });
        let token = self.signer.sign(&claims).map_err(|e| status::internal(format!("failed to generate token: {e}")))?;
        object(&mut secret["metadata"], "annotations").insert(ACCOUNT_UID.into(), actual.into());
        let data = object(secret, "data");
        for (key, value) in [("token", token.as_str()), ("ca.crt", &self.cluster_ca_pem), ("namespace", &ctx.namespace)] {
            data.entry(key).or_insert_with(|| STANDARD.encode(value).into());
        }
        Ok(())
    }
}

#[async_trait]
impl Strategy for Secrets {
    fn prepare_create(&self, ctx: &Ctx, secret: &mut Value) {
        generic_prepare_create(ctx, secret);
        encode(secret);
    }

    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
        encode(new);
        // The type of a Secret stays when a client leaves it out.
        if new.get("type").is_none()
            && let Some(kind) = old.get("type")
        {
            new["type"] = kind.clone();
        }
    }

    async fn begin_create(&self, ctx: &Ctx, secret: &mut Value) -> Result<Option<Finish>, Status> {
        if text(secret, "/type") == TOKEN_TYPE {
            self.fill_token(ctx, secret)?;
        }
        Ok(None)
    }
}

fn encode(secret: &mut Value) {
    let Some(Value::Object(plain)) = secret.as_object_mut().and_then(|s| s.remove("stringData")) else { return };
    let data = object(secret, "data");
    for (key, value) in plain {
        data.insert(key, STANDARD.encode(value.as_str().unwrap_or("")).into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::ServiceAccountTokens;
    use crate::testing::{Objects, block_on};
    use crate::util::SECRETS;
    use apiserver::{AuthnRequest, Authenticator, UserInfo};

    fn secrets() -> Secrets {
        let signer = Arc::new(Signer::from_pem(&pki::jwt::new_key_pem().unwrap()).unwrap());
        Secrets { signer, cluster_ca_pem: "CA".into() }
    }

    #[test]
    fn string_data() {
        let ctx = Objects::new().ctx(&SECRETS, "a", "s", UserInfo::default());
        let mut secret = json!({"metadata": {"name": "s"}, "data": {"a": "eA=="}, "stringData": {"b": "y"}});
        secrets().prepare_create(&ctx, &mut secret);
        assert_eq!(secret, json!({"metadata": {"name": "s"}, "data": {"a": "eA==", "b": "eQ=="}}));
    }

    #[test]
    fn token_secret() {
        let objects = Objects::new();
        objects.put(&SERVICE_ACCOUNTS, json!({"metadata": {"name": "sa", "namespace": "a", "uid": "u"}}));
        let ctx = objects.ctx(&SECRETS, "a", "s", UserInfo::default());
        let strategy = secrets();
        let mut secret = json!({"metadata": {"name": "s", "namespace": "a", "annotations": {ACCOUNT_NAME: "sa"}}, "type": TOKEN_TYPE});
        block_on(strategy.begin_create(&ctx, &mut secret)).map(drop).unwrap();
        assert_eq!(secret["metadata"]["annotations"][ACCOUNT_UID], "u");
        let token = String::from_utf8(STANDARD.decode(secret["data"]["token"].as_str().unwrap()).unwrap()).unwrap();
        objects.put(&SECRETS, secret);
        let authn = ServiceAccountTokens::new(objects.clone(), strategy.signer.verifier().clone(), vec!["https://k".into()], vec!["https://k".into()]);
        let who = || {
            let headers = http::HeaderMap::new();
            let req = AuthnRequest { headers: &headers, path: "/", peer: None, bearer: Some(&token), audiences: &[], now: ctx.now };
            block_on(authn.authenticate(&req))
        };
        assert_eq!(who().unwrap().unwrap().name, "system:serviceaccount:a:sa");
        objects.remove(&SECRETS, "a", "s");
        assert!(who().is_err(), "a token ends with its Secret");
    }
}
