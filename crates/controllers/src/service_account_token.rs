//! Token Secrets: a Secret of type `kubernetes.io/service-account-token` gets a token of the account
//! that its annotation names, and goes when that account goes.
//!
//! Such tokens do not expire; they end with their Secret or account. Nothing makes them unasked.

use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use pki::jwt::Signer;
use reconcile::{Queue, Requeue, run_workers};
use serde_json::json;

use crate::{Context, pods};

const KIND: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// The issuer of tokens in Secrets.
const ISSUER: &str = "kubernetes/serviceaccount";

/// What a token Secret needs.
#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    /// Its account is gone, or another one has the name.
    Delete,
    /// This is how it should be.
    Write(Box<Secret>),
}

/// Decides for one Secret. `account` is the one in its namespace that it names; `sign` makes a token of claims.
fn plan<E>(secret: &Secret, account: Option<&ServiceAccount>, bundle: &str, sign: impl Fn(&serde_json::Value) -> Result<String, E>) -> Result<Plan, E> {
    let (name, uid) = (annotation(secret, ACCOUNT_NAME), annotation(secret, ACCOUNT_UID));
    if secret.type_.as_deref() != Some(KIND) || name.is_empty() || secret.metadata.deletion_timestamp.is_some() {
        return Ok(Plan::Nothing);
    }
    let Some(account) = account.filter(|a| uid.is_empty() || a.metadata.uid.as_deref() == Some(uid)) else { return Ok(Plan::Delete) };
    let namespace = secret.namespace().unwrap_or_default();
    let mut wanted = secret.clone();
    let data = wanted.data.get_or_insert_default();
    data.insert("ca.crt".into(), ByteString(bundle.into()));
    data.insert("namespace".into(), ByteString(namespace.clone().into()));
    if data.get("token").is_none_or(|t| t.0.is_empty()) {
        let claims = json!({
            "iss": ISSUER,
            "kubernetes.io/serviceaccount/namespace": namespace,
            "kubernetes.io/serviceaccount/secret.name": secret.name_any(),
            "kubernetes.io/serviceaccount/service-account.name": name,
            "kubernetes.io/serviceaccount/service-account.uid": account.metadata.uid,
            "sub": format!("system:serviceaccount:{namespace}:{name}"),
        });
        data.insert("token".into(), ByteString(sign(&claims)?.into()));
    }
    wanted.annotations_mut().insert(ACCOUNT_UID.into(), account.uid().unwrap_or_default());
    Ok(if wanted == *secret { Plan::Nothing } else { Plan::Write(Box::new(wanted)) })
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> &'a str {
    secret.metadata.annotations.as_ref().and_then(|all| all.get(key)).map_or("", String::as_str)
}

/// Starts the controller.
pub fn start(context: &Context, bundle: String, signer: Arc<Signer>) {
    let secrets = context.informers.selected::<Secret>(&format!("type={KIND}"));
    let accounts = context.informers.of::<ServiceAccount>();
    let queue = Queue::<(String, String)>::new();
    let q = queue.clone();
    secrets.on_change(move |c| q.add((c.latest().namespace().unwrap_or_default(), c.latest().name_any())));
    let (q, all) = (queue.clone(), secrets.clone());
    accounts.on_change(move |c| {
        let account = c.latest();
        let namespace = account.namespace().unwrap_or_default();
        for secret in all.in_namespace(&namespace) {
            if annotation(&secret, ACCOUNT_NAME) == account.name_any() {
                q.add((namespace.clone(), secret.name_any()));
            }
        }
    });
    let client = context.client.clone();
    run_workers(&context.tasks, "serviceaccount-token", 2, queue, move |(namespace, name): (String, String)| {
        let (client, secrets, accounts, bundle, signer) = (client.clone(), secrets.clone(), accounts.clone(), bundle.clone(), signer.clone());
        async move {
            secrets.synced().await;
            accounts.synced().await;
            let Some(secret) = secrets.get(&namespace, &name) else { return Ok(Requeue::No) };
            let account_name = annotation(&secret, ACCOUNT_NAME);
            let account = match accounts.get(&namespace, account_name) {
                Some(account) => Some(account),
                // an account that the informer does not know may be newer than what it knows
                None if !account_name.is_empty() => Api::<ServiceAccount>::namespaced(client.clone(), &namespace).get_opt(account_name).await?.map(Arc::new),
                None => None,
            };
            let api = Api::<Secret>::namespaced(client, &namespace);
            let signed = |claims: &serde_json::Value| signer.sign(claims).map_err(|e| kube::Error::Service(Box::new(e)));
            let result = match plan(&secret, account.as_deref(), &bundle, signed)? {
                Plan::Nothing => return Ok(Requeue::No),
                Plan::Delete => {
                    let preconditions = Some(Preconditions { uid: secret.uid(), resource_version: None });
                    api.delete(&name, &DeleteParams { preconditions, ..DeleteParams::default() }).await.map(drop)
                }
                Plan::Write(wanted) => api.replace(&name, &PostParams::default(), &wanted).await.map(drop),
            };
            pods::written(result)
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(value: serde_json::Value) -> Secret {
        serde_json::from_value(value).unwrap()
    }

    fn asking(uid: Option<&str>) -> Secret {
        let mut secret = secret(json!({"metadata": {"name": "s", "namespace": "a", "annotations": {ACCOUNT_NAME: "sa"}}, "type": KIND}));
        if let Some(uid) = uid {
            secret.annotations_mut().insert(ACCOUNT_UID.into(), uid.into());
        }
        secret
    }

    fn planned(secret: &Secret, account_uid: Option<&str>) -> Plan {
        let account = account_uid.map(|uid| serde_json::from_value(json!({"metadata": {"name": "sa", "namespace": "a", "uid": uid}})).unwrap());
        plan(secret, account.as_ref(), "CA", |claims| Ok::<_, ()>(claims["sub"].as_str().unwrap().into())).unwrap()
    }

    #[test]
    fn is_filled_once() {
        let Plan::Write(filled) = planned(&asking(None), Some("u")) else { panic!("not filled") };
        let data = |key: &str| String::from_utf8(filled.data.as_ref().unwrap()[key].0.clone()).unwrap();
        assert_eq!([data("token"), data("ca.crt"), data("namespace")], ["system:serviceaccount:a:sa", "CA", "a"]);
        assert_eq!(annotation(&filled, ACCOUNT_UID), "u");
        assert_eq!(planned(&filled, Some("u")), Plan::Nothing);
    }

    #[test]
    fn keeps_a_token_and_mends_the_rest() {
        let mut old = asking(Some("u"));
        old.data.get_or_insert_default().insert("token".into(), ByteString(b"mine".to_vec()));
        let Plan::Write(filled) = planned(&old, Some("u")) else { panic!("not mended") };
        assert_eq!(filled.data.unwrap()["token"].0, b"mine");
    }

    #[test]
    fn goes_with_its_account() {
        assert_eq!(planned(&asking(Some("u")), None), Plan::Delete);
        assert_eq!(planned(&asking(None), None), Plan::Delete);
        assert_eq!(planned(&asking(Some("u")), Some("another")), Plan::Delete);
    }

    #[test]
    fn leaves_others_alone() {
        let other = secret(json!({"metadata": {"name": "s", "namespace": "a", "annotations": {ACCOUNT_NAME: "sa"}}, "type": "Opaque"}));
        assert_eq!(planned(&other, None), Plan::Nothing);
        let nameless = secret(json!({"metadata": {"name": "s", "namespace": "a"}, "type": KIND}));
        assert_eq!(planned(&nameless, Some("u")), Plan::Nothing);
    }
}
