//! ServiceAccount: every pod runs as a service account and gets its token mounted.

use std::sync::Arc;
use std::time::Duration;

use apiserver::types::Status;
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::{forbidden, is};
use crate::podref::{Kind, is_mirror, references};
use crate::util::{SERVICE_ACCOUNTS, items, list, object, random_suffix, text};

const VOLUME: &str = "kube-api-access";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How often and how long a namespace's default account is waited for: it comes a moment after
/// the namespace.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(15);

pub(super) struct ServiceAccount;

#[async_trait]
impl Admission for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attributes: &Attributes<'_>, pod: &mut Value) -> Result<(), Status> {
        if !is(attributes, "", "pods") || is_mirror(pod) {
            return Ok(());
        }
        let given = text(pod, "/spec/serviceAccountName").to_owned();
        let name = if given.is_empty() { "default".to_owned() } else { given };
        let account = find(attributes, &name).await.ok_or_else(|| {
            let namespace = &attributes.ctx.namespace;
            forbidden(
                attributes,
                Some(pod),
                format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"),
            )
        })?;
        let spec = object(pod, "spec");
        spec.insert("serviceAccountName".into(), name.clone().into());
        spec.insert("serviceAccount".into(), name.into());
        let automount = spec
            .get("automountServiceAccountToken")
            .or(account.get("automountServiceAccountToken"))
            .and_then(Value::as_bool)
            .unwrap_or(true);
        if automount {
            mount_token(pod);
        }
        let secrets: Vec<Value> = items(&account, "/imagePullSecrets").cloned().collect();
        if items(pod, "/spec/imagePullSecrets").next().is_none() && !secrets.is_empty() {
            pod["spec"]["imagePullSecrets"] = secrets.into();
        }
        Ok(())
    }

    async fn validate(&self, attributes: &Attributes<'_>, pod: Option<&Value>) -> Result<(), Status> {
        let Some(pod) = pod.filter(|p| is(attributes, "", "pods") && is_mirror(p)) else { return Ok(()) };
        let found = references(pod);
        let why = if !text(pod, "/spec/serviceAccountName").is_empty() {
            "a mirror pod may not reference service accounts"
        } else if found.iter().any(|(kind, _)| *kind == Kind::Secret) {
            "a mirror pod may not reference secrets"
        } else if items(pod, "/spec/volumes").any(|v| items(v, "/projected/sources").any(|s| s.get("serviceAccountToken").is_some())) {
            "a mirror pod may not use ServiceAccountToken volume projections"
        } else {
            return Ok(());
        };
        Err(forbidden(attributes, Some(pod), why))
    }
}

async fn find(attributes: &Attributes<'_>, name: &str) -> Option<Arc<Value>> {
    let ctx = attributes.ctx;
    let attempts = if name == "default" { ATTEMPTS } else { 1 };
    for attempt in 0..attempts {
        if attempt > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        if let Some(account) = ctx.backend.reader.get(&SERVICE_ACCOUNTS, &ctx.namespace, name) {
            return Some(account);
        }
        if attempt == 0
            && let Ok(account) = ctx.backend.writer.get(&SERVICE_ACCOUNTS, &ctx.namespace, name).await
        {
            return Some(Arc::new(account));
        }
    }
    None
}

fn mount_token(pod: &mut Value) {
    let existing = items(pod, "/spec/volumes")
        .map(|v| text(v, "/name"))
        .find(|n| n.starts_with(&format!("{VOLUME}-")))
        .map(str::to_owned);
    let volume = existing.clone().unwrap_or_else(|| format!("{VOLUME}-{}", random_suffix(5)));
    let mut needed = false;
    let spec = object(pod, "spec");
    for key in ["initContainers", "containers"] {
        for container in spec.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let mounts = list(container, "volumeMounts");
            if !mounts.iter().any(|m| text(m, "/mountPath") == MOUNT_PATH) {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
                needed = true;
            }
        }
    }
    if existing.is_none() && needed {
        list(spec, "volumes").push(json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use crate::util::PODS;
    use apiserver::UserInfo;

    #[test]
    fn mounts_the_token() {
        let objects = Objects::new();
        objects.put(&SERVICE_ACCOUNTS, json!({"metadata": {"name": "default", "namespace": "a"}, "imagePullSecrets": [{"name": "reg"}]}));
        objects.put(&SERVICE_ACCOUNTS, json!({"metadata": {"name": "plain", "namespace": "a"}, "automountServiceAccountToken": false}));
        let ctx = objects.ctx(&PODS, "a", "", UserInfo::default());
        let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
        let admit = |mut pod: Value| block_on(ServiceAccount.admit(&attributes, &mut pod)).map(|()| pod);
        let pod = admit(json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}})).unwrap();
        assert_eq!(pod["spec"]["serviceAccountName"], "default");
        let volume = pod["spec"]["volumes"][0]["name"].as_str().unwrap();
        assert!(volume.starts_with("kube-api-access-") && volume.len() == 21);
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["name"], volume);
        assert_eq!(pod["spec"]["imagePullSecrets"], json!([{"name": "reg"}]));
        let pod = admit(json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "plain", "containers": [{"name": "c"}]}})).unwrap();
        assert!(pod["spec"].get("volumes").is_none());
        let refused = admit(json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "none"}})).unwrap_err();
        assert_eq!(
            refused.message,
            "pods \"p\" is forbidden: error looking up service account a/none: serviceaccount \"none\" not found"
        );
    }
}
