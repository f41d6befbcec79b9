//! Bootstrap tokens: `cluster-info` is signed for each that may be used so (bootstrap-signer), and
//! those that have expired are removed (token-cleaner).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use reconcile::{Queue, Requeue, run_workers};

use crate::{Context, pods};

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const PUBLIC: &str = "kube-public";
const CLUSTER_INFO: &str = "cluster-info";
/// Keys of signatures: this, and the token's id.
const SIGNATURE: &str = "jws-kubeconfig-";

fn data<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    std::str::from_utf8(&secret.data.as_ref()?.get(key)?.0).ok().filter(|v| !v.is_empty())
}

/// How long a token still lives.
#[derive(Debug, PartialEq, Eq)]
pub enum Life {
    /// As long as its Secret.
    Endless,
    Left(Duration),
    /// It has expired, or nobody can say when it will.
    Over,
}

/// How long the token of a Secret still lives.
pub fn life(secret: &Secret, now: Timestamp) -> Life {
    let Some(expiration) = secret.data.as_ref().and_then(|d| d.get("expiration")).filter(|v| !v.0.is_empty()) else { return Life::Endless };
    let end = std::str::from_utf8(&expiration.0).ok().and_then(|t| t.parse::<Timestamp>().ok());
    match end.map(|end| end.duration_since(now)) {
        Some(left) if left.is_positive() => Life::Left(left.unsigned_abs()),
        _ => Life::Over,
    }
}

/// Id and secret of a token that signs.
fn signing(secret: &Secret, now: Timestamp) -> Option<(String, String)> {
    let name = secret.name_any();
    let named = name.strip_prefix("bootstrap-token-").filter(|id| id.len() == 6 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))?;
    let id = data(secret, "token-id").filter(|id| *id == named)?;
    let may = secret.type_.as_deref() == Some(TYPE) && data(secret, "usage-bootstrap-signing") == Some("true") && life(secret, now) != Life::Over;
    may.then(|| Some((id.to_string(), data(secret, "token-secret")?.to_string())))?
}

/// `cluster-info` signed for these tokens, or nothing when it is so already.
pub fn sign(map: &ConfigMap, secrets: &[Arc<Secret>], now: Timestamp) -> Option<ConfigMap> {
    let old = map.data.clone().unwrap_or_default();
    let content = old.get("kubeconfig")?;
    let tokens: BTreeMap<String, String> = secrets.iter().filter_map(|s| signing(s, now)).collect();
    let mut new: BTreeMap<String, String> = old.iter().filter(|(key, _)| !key.starts_with(SIGNATURE)).map(|(k, v)| (k.clone(), v.clone())).collect();
    new.extend(tokens.iter().map(|(id, secret)| (format!("{SIGNATURE}{id}"), pki::jws::detached(content, id, secret))));
    (new != old).then(|| ConfigMap { data: Some(new), ..map.clone() })
}

/// Starts the signer, which acts as its own account.
pub fn start_signer(context: &Context) {
    let secrets = context.informers.selected::<Secret>(&format!("type={TYPE}"));
    let maps = context.informers.selected::<ConfigMap>(&format!("metadata.name={CLUSTER_INFO}"));
    let queue = Queue::<()>::new();
    let q = queue.clone();
    secrets.on_change(move |_| q.add(()));
    let q = queue.clone();
    maps.on_change(move |_| q.add(()));
    let client = context.client.clone();
    run_workers(&context.tasks, "bootstrap-signer", 1, queue, move |()| {
        let (client, secrets, maps) = (client.clone(), secrets.clone(), maps.clone());
        async move {
            secrets.synced().await;
            maps.synced().await;
            let now = Timestamp::now();
            let tokens = secrets.in_namespace(NAMESPACE);
            // A signature ends with its token, whether or not anybody removes that.
            let next = tokens.iter().filter_map(|s| if let Life::Left(left) = life(s, now) { Some(left) } else { None }).min();
            let again = next.map_or(Requeue::No, Requeue::After);
            let Some(signed) = maps.get(PUBLIC, CLUSTER_INFO).and_then(|map| sign(&map, &tokens, now)) else { return Ok(again) };
            match Api::<ConfigMap>::namespaced(client, PUBLIC).replace(CLUSTER_INFO, &PostParams::default(), &signed).await {
                Ok(_) => Ok(again),
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(Requeue::No),
                // The newer one will be seen.
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(Requeue::After(Duration::from_millis(50))),
                Err(error) => Err(error),
            }
        }
    });
}

/// Starts the cleaner, which acts as its own account.
pub fn start_cleaner(context: &Context) {
    let secrets = context.informers.selected::<Secret>(&format!("type={TYPE}"));
    let queue = Queue::<String>::new();
    let q = queue.clone();
    secrets.on_change(move |change| {
        if change.new.as_ref().is_some_and(|s| s.namespace().as_deref() == Some(NAMESPACE)) {
            q.add(change.latest().name_any());
        }
    });
    let client = context.client.clone();
    run_workers(&context.tasks, "token-cleaner", 1, queue, move |name: String| {
        let (client, secrets) = (client.clone(), secrets.clone());
        async move {
            let Some(secret) = secrets.get(NAMESPACE, &name) else { return Ok(Requeue::No) };
            match life(&secret, Timestamp::now()) {
                Life::Endless => Ok(Requeue::No),
                Life::Left(left) => Ok(Requeue::After(left)),
                Life::Over => {
                    let params = DeleteParams::default().preconditions(Preconditions { uid: secret.uid(), resource_version: None });
                    pods::written(Api::<Secret>::namespaced(client, NAMESPACE).delete(&name, &params).await.map(drop))
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn secret(id: &str, changes: &[(&str, Option<&str>)]) -> Arc<Secret> {
        let mut data = BTreeMap::from([("token-id", id), ("token-secret", "0123456789abcdef"), ("usage-bootstrap-signing", "true")]);
        for (key, value) in changes {
            match value {
                Some(value) => data.insert(key, value),
                None => data.remove(key),
            };
        }
        let data: BTreeMap<_, _> = data.into_iter().map(|(k, v)| (k, k8s_openapi::ByteString(v.as_bytes().to_vec()))).collect();
        let meta = json!({"name": format!("bootstrap-token-{id}"), "namespace": NAMESPACE});
        Arc::new(serde_json::from_value(json!({"metadata": meta, "type": TYPE, "data": data})).expect("a Secret"))
    }

    fn info(data: serde_json::Value) -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"name": CLUSTER_INFO}, "data": data})).expect("a ConfigMap")
    }

    #[test]
    fn tokens_expire() {
        let now = at(1_000_000_000);
        assert_eq!(life(&secret("abcdef", &[]), now), Life::Endless);
        let expiring = |text: &str| life(&secret("abcdef", &[("expiration", Some(text))]), now);
        assert_eq!(expiring("2001-09-09T01:46:50Z"), Life::Left(Duration::from_secs(10)));
        assert_eq!(expiring("2001-09-09T03:46:50+02:00"), Life::Left(Duration::from_secs(10)));
        assert_eq!(expiring("2001-09-09T01:46:40Z"), Life::Over);
        assert_eq!(expiring("tomorrow"), Life::Over);
    }

    #[test]
    fn cluster_info_is_signed_for_each_token() {
        let now = at(1_000_000_000);
        let tokens = [
            secret("abcdef", &[]),
            secret("bbbbbb", &[("usage-bootstrap-signing", None)]),
            secret("cccccc", &[("expiration", Some("2000-01-01T00:00:00Z"))]),
            secret("dddddd", &[("token-id", Some("eeeeee"))]),
            secret("ffffff", &[("token-secret", None)]),
            secret("Nothing", &[]),
            secret("abc", &[]),
            secret("ABCDEF", &[]),
        ];
        let map = info(json!({"kubeconfig": "k", "other": "o", "jws-kubeconfig-gone": "x"}));
        let signed = sign(&map, &tokens, now).expect("it is to be signed");
        let data = signed.data.clone().unwrap_or_default();
        assert_eq!(data.keys().collect::<Vec<_>>(), ["jws-kubeconfig-abcdef", "kubeconfig", "other"]);
        assert_eq!(data["jws-kubeconfig-abcdef"], pki::jws::detached("k", "abcdef", "0123456789abcdef"));
        assert_eq!(sign(&signed, &tokens, now), None, "once is enough");
        assert!(sign(&signed, &[], now).is_some(), "the token is gone");
        let mut changed = signed;
        changed.data.get_or_insert_default().insert("kubeconfig".into(), "l".into());
        assert!(sign(&changed, &tokens, now).is_some());
        assert_eq!(sign(&info(json!({"other": "o"})), &tokens, now), None, "there is nothing to sign");
    }
}
