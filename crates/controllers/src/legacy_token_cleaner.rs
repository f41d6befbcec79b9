//! Tokens of old that nobody has used for a year: Secrets that service accounts list. Each is marked
//! invalid first, and removed a year after that.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use reconcile::Informer;
use serde_json::json;

use crate::{Context, listed, pods};

const TYPE: &str = "kubernetes.io/service-account-token";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// What is to be done with a token's Secret.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Nothing,
    /// Mark it invalid since this day.
    Mark(Date),
    Delete,
}

fn day(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date()
}

/// Decides about a Secret. `account` is the one that it names, `mounted` are the Secrets that pods of
/// its namespace use, `limit` is the time since when a token must not have been used.
pub fn plan(secret: &Secret, account: Option<&ServiceAccount>, mounted: &BTreeSet<String>, limit: Timestamp, now: Timestamp) -> Action {
    let name = secret.name_any();
    let created = secret.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    let label = |key: &str| secret.labels().get(key).map(|text| text.parse::<Date>());
    if secret.type_.as_deref() != Some(TYPE) || created >= limit || secret.metadata.deletion_timestamp.is_some() {
        return Action::Nothing;
    }
    match label(LAST_USED) {
        // What cannot be read cannot be judged.
        Some(Err(_)) => return Action::Nothing,
        Some(Ok(used)) if used >= day(limit) => return Action::Nothing,
        _ => {}
    }
    let uid = secret.annotations().get("kubernetes.io/service-account.uid").filter(|u| !u.is_empty());
    let of = |a: &&ServiceAccount| uid.is_none_or(|uid| a.metadata.uid.as_ref() == Some(uid));
    // Those that an account does not list were made by hand, and are the user's.
    let listed = |a: &ServiceAccount| a.secrets.iter().flatten().any(|s| s.name.as_deref() == Some(&name));
    if !account.filter(of).is_some_and(listed) || mounted.contains(&name) {
        return Action::Nothing;
    }
    match label(INVALID_SINCE) {
        Some(Ok(since)) if since >= day(limit) => Action::Nothing,
        Some(Ok(_)) => Action::Delete,
        _ => Action::Mark(day(now)),
    }
}

/// The Secrets that a pod uses.
fn secrets_of(pod: &Pod) -> BTreeSet<String> {
    let Some(spec) = &pod.spec else { return BTreeSet::new() };
    let volumes = spec.volumes.iter().flatten().flat_map(|v| {
        let projected = v.projected.iter().flat_map(|p| p.sources.iter().flatten()).filter_map(|s| s.secret.as_ref()?.name.clone().into());
        v.secret.iter().filter_map(|s| s.secret_name.clone()).chain(projected).collect::<Vec<_>>()
    });
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let env = containers.flat_map(|c| {
        let whole = c.env_from.iter().flatten().filter_map(|e| e.secret_ref.as_ref()?.name.clone().into());
        let one = c.env.iter().flatten().filter_map(|e| e.value_from.as_ref()?.secret_key_ref.as_ref()?.name.clone().into());
        whole.chain(one).collect::<Vec<_>>()
    });
    let pull = spec.image_pull_secrets.iter().flatten().map(|s| s.name.clone());
    volumes.chain(env).chain(pull.map(String::from)).collect()
}

/// The Secrets that pods of a namespace use.
async fn used_in(client: &Client, namespace: &str) -> kube::Result<BTreeSet<String>> {
    let pods = listed::all(&Api::<Pod>::namespaced(client.clone(), namespace)).await?;
    Ok(pods.iter().flat_map(secrets_of).collect())
}

/// Starts the controller.
pub fn start(context: &Context, unused_for: SignedDuration) {
    let secrets: Informer<Secret> = context.informers.selected::<Secret>(&format!("type={TYPE}"));
    let accounts: Informer<ServiceAccount> = context.informers.of::<ServiceAccount>();
    let client = context.client.clone();
    // The cleaner's own account may not read pods: as all controllers it sees them with the manager's.
    let reader = context.informers.client().clone();
    context.tasks.spawn("legacy-serviceaccount-token-cleaner", async move {
        secrets.synced().await;
        accounts.synced().await;
        loop {
            let now = Timestamp::now();
            let limit = now - unused_for;
            if is_tracked(&client, limit).await {
                let mut mounted: HashMap<String, BTreeSet<String>> = HashMap::new();
                for secret in secrets.list() {
                    let namespace = secret.namespace().unwrap_or_default();
                    if !mounted.contains_key(&namespace) {
                        match used_in(&reader, &namespace).await {
                            Ok(used) => drop(mounted.insert(namespace.clone(), used)),
                            Err(error) => {
                                tracing::warn!(namespace, "the pods that may use old tokens could not be listed: {}", pods::text(&error));
                                continue;
                            }
                        }
                    }
                    let used = &mounted[&namespace];
                    let name = secret.annotations().get("kubernetes.io/service-account.name").cloned().unwrap_or_default();
                    let account: Option<Arc<ServiceAccount>> = accounts.get(&namespace, &name);
                    let action = plan(&secret, account.as_deref(), used, limit, now);
                    if let Err(error) = act(&client, &secret, action).await {
                        tracing::warn!(secret = secret.name_any(), "the old token could not be cleaned: {}", pods::text(&error));
                    }
                }
            }
            tokio::time::sleep(INTERVAL).await;
        }
    });
}

/// Whether the API server has noted for long enough which tokens are used.
async fn is_tracked(client: &Client, limit: Timestamp) -> bool {
    let map = Api::<ConfigMap>::namespaced(client.clone(), "kube-system").get_opt(TRACKING).await;
    let since = map.ok().flatten().and_then(|m| m.data?.get("since")?.parse::<Date>().ok());
    since.and_then(|d| d.tomorrow().ok()).is_some_and(|first| first <= day(limit))
}

async fn act(client: &Client, secret: &Secret, action: Action) -> kube::Result<()> {
    let api = Api::<Secret>::namespaced(client.clone(), &secret.namespace().unwrap_or_default());
    let result = match action {
        Action::Nothing => Ok(()),
        Action::Mark(day) => {
            let patch = json!({"metadata": {"uid": secret.uid(), "labels": {INVALID_SINCE: day.to_string()}}});
            api.patch(&secret.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
        }
        Action::Delete => {
            let params = DeleteParams::default().preconditions(Preconditions { uid: secret.uid(), resource_version: secret.resource_version() });
            api.delete(&secret.name_any(), &params).await.map(|_| ())
        }
    };
    match result {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNUSED_FOR: SignedDuration = SignedDuration::from_hours(24 * 365);
    use serde_json::Value;

    fn now() -> Timestamp {
        "2026-06-01T12:00:00Z".parse().expect("a time")
    }

    fn secret(created: &str, labels: Value) -> Secret {
        let meta = json!({"name": "t", "creationTimestamp": created, "labels": labels, "annotations": {"kubernetes.io/service-account.uid": "u"}});
        serde_json::from_value(json!({"metadata": meta, "type": TYPE})).expect("a Secret")
    }

    fn account(uid: &str, secrets: Value) -> ServiceAccount {
        serde_json::from_value(json!({"metadata": {"name": "a", "uid": uid}, "secrets": secrets})).expect("an account")
    }

    #[test]
    fn unused_tokens_are_marked_and_then_removed() {
        let listed = account("u", json!([{"name": "t"}]));
        let decide = |secret: &Secret| plan(secret, Some(&listed), &BTreeSet::new(), now() - UNUSED_FOR, now());
        let old = "2024-01-01T00:00:00Z";
        assert_eq!(decide(&secret(old, json!({}))), Action::Mark("2026-06-01".parse().expect("a day")));
        assert_eq!(decide(&secret("2025-07-01T00:00:00Z", json!({}))), Action::Nothing, "it is young");
        assert_eq!(decide(&secret(old, json!({LAST_USED: "2025-07-01"}))), Action::Nothing);
        assert_eq!(decide(&secret(old, json!({LAST_USED: "lately"}))), Action::Nothing);
        assert_eq!(decide(&secret(old, json!({LAST_USED: "2025-05-01", INVALID_SINCE: "2025-07-01"}))), Action::Nothing);
        assert_eq!(decide(&secret(old, json!({LAST_USED: "2024-05-01", INVALID_SINCE: "2025-05-01"}))), Action::Delete);
    }

    #[test]
    fn tokens_that_are_somebodys_stay() {
        let old = secret("2024-01-01T00:00:00Z", json!({}));
        let none = BTreeSet::new();
        assert_eq!(plan(&old, None, &none, now() - UNUSED_FOR, now()), Action::Nothing);
        assert_eq!(plan(&old, Some(&account("u", json!([]))), &none, now() - UNUSED_FOR, now()), Action::Nothing, "made by hand");
        assert_eq!(plan(&old, Some(&account("v", json!([{"name": "t"}]))), &none, now() - UNUSED_FOR, now()), Action::Nothing, "another's account");
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "env": [{"name": "e", "valueFrom": {"secretKeyRef": {"name": "t", "key": "k"}}}]}]}})).expect("a pod");
        assert_eq!(plan(&old, Some(&account("u", json!([{"name": "t"}]))), &secrets_of(&pod), now() - UNUSED_FOR, now()), Action::Nothing);
    }
}
