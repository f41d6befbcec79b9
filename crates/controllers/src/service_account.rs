//! Service accounts: every active namespace has a `default` one.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use reconcile::{Queue, Requeue, run_workers};

use crate::Context;

/// Whether a namespace lacks its account.
pub fn is_missing(namespace: Option<&Namespace>, account: Option<&ServiceAccount>) -> bool {
    let ending = |n: &Namespace| n.metadata.deletion_timestamp.is_some() || n.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Terminating");
    namespace.is_some_and(|n| !ending(n)) && account.is_none()
}

/// Starts the controller.
pub fn start(context: &Context) {
    let namespaces = context.informers.of::<Namespace>();
    let accounts = context.informers.of::<ServiceAccount>();
    let queue = Queue::<String>::new();
    let q = queue.clone();
    namespaces.on_change(move |c| q.add(c.latest().name_any()));
    let q = queue.clone();
    accounts.on_change(move |c| {
        if c.new.is_none() {
            q.add(c.latest().namespace().unwrap_or_default());
        }
    });
    let client = context.client.clone();
    run_workers(&context.tasks, "serviceaccount", context.workers(2), queue, move |namespace: String| {
        let (client, namespaces, accounts) = (client.clone(), namespaces.clone(), accounts.clone());
        async move {
            namespaces.synced().await;
            accounts.synced().await;
            if !is_missing(namespaces.get("", &namespace).as_deref(), accounts.get(&namespace, "default").as_deref()) {
                return Ok(Requeue::No);
            }
            let metadata = ObjectMeta { name: Some("default".into()), namespace: Some(namespace.clone()), ..ObjectMeta::default() };
            let account = ServiceAccount { metadata, ..ServiceAccount::default() };
            match Api::<ServiceAccount>::namespaced(client, &namespace).create(&PostParams::default(), &account).await {
                Ok(_) => Ok(Requeue::No),
                Err(kube::Error::Api(status)) if status.code == 404 || status.reason == "AlreadyExists" || status.message.contains("being terminated") => Ok(Requeue::No),
                Err(error) => Err(error),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_namespace_that_stays_has_an_account() {
        let namespace = |meta: serde_json::Value, phase: &str| -> Namespace {
            serde_json::from_value(json!({"metadata": meta, "status": {"phase": phase}})).expect("a namespace")
        };
        let active = namespace(json!({"name": "n"}), "Active");
        assert!(is_missing(Some(&active), None));
        assert!(!is_missing(Some(&active), Some(&ServiceAccount::default())));
        assert!(!is_missing(None, None), "there is no namespace");
        assert!(!is_missing(Some(&namespace(json!({"name": "n"}), "Terminating")), None));
        assert!(!is_missing(Some(&namespace(json!({"name": "n", "deletionTimestamp": "2026-01-01T00:00:00Z"}), "Active")), None));
    }
}
