//! Counts for a quota whenever something it limits became less, when its limits changed, and every
//! few minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, ResourceQuota, Service};
use kube::api::{Api, PostParams};
use kube::{Client, Resource, ResourceExt};
use parking_lot::Mutex;
use reconcile::{Change, Informer, Queue, Requeue, run_workers};
use serde_json::Value;

use super::counts::Counts;
use super::plan::{self, Found};
use crate::pod::Pod;
use crate::{Context, listed};

/// How often each quota is counted though nothing happened.
const RESYNC: Duration = Duration::from_secs(300);
/// Deletions within this time are counted together.
const BATCH: Duration = Duration::from_millis(50);
/// After a change, one more look when the informers have surely caught up.
const SETTLE: Duration = Duration::from_secs(1);

type Key = (String, String);

#[derive(Clone)]
struct Controller {
    client: Client,
    /// As which informers read.
    reader: Client,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    counts: Counts,
    freed: Freed,
}

/// Quotas of which something was freed since they were counted last.
type Freed = Arc<Mutex<BTreeSet<Key>>>;

/// Whether a limit of the quota is about the resource.
fn limits(quota: &ResourceQuota, group: &str, plural: &str) -> bool {
    plan::limits(quota).keys().any(|name| api::quota::concerns(group, plural, name))
}

/// What quotas are charged for.
trait Charged: reconcile::Object {
    /// What they read of it, as the API writes that.
    fn value(&self) -> Value;
}

impl Charged for Pod {
    fn value(&self) -> Value {
        self.for_quota()
    }
}

impl Charged for Service {
    fn value(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

impl Charged for PersistentVolumeClaim {
    fn value(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

fn values<K: Charged>(objects: &Informer<K>, namespace: &str) -> Found {
    Found::Objects(objects.in_namespace(namespace).iter().map(|o| o.value()).collect())
}

/// Whether the change frees some of a quota.
fn frees<K: Charged>(plural: &str, change: &Change<K>, now: i64) -> bool {
    match (&change.old, &change.new) {
        (Some(_), None) => true,
        (Some(old), Some(new)) => {
            let (old, new) = (api::quota::usage("", plural, &old.value(), now), api::quota::usage("", plural, &new.value(), now));
            old.iter().any(|(name, amount)| new.get(name).is_none_or(|n| n < amount))
        }
        _ => false,
    }
}

/// Starts the controller.
pub fn start(context: &Context) {
    let queue = Queue::<Key>::new();
    let quotas = context.informers.of::<ResourceQuota>();
    let freed = Freed::default();
    let (q, all, note) = (queue.clone(), quotas.clone(), freed.clone());
    let less = Arc::new(move |kind: &(String, String), namespace: Option<&str>| {
        let concerned = match namespace {
            Some(namespace) => all.in_namespace(namespace),
            None => all.list(),
        };
        for quota in concerned.iter().filter(|quota| limits(quota, &kind.0, &kind.1)) {
            let key = (quota.namespace().unwrap_or_default(), quota.name_any());
            note.lock().insert(key.clone());
            q.add_after(key, BATCH);
        }
    });
    let controller = Controller {
        client: context.client.clone(),
        reader: context.informers.client().clone(),
        quotas: quotas.clone(),
        pods: context.informers.of(),
        services: context.informers.of(),
        claims: context.informers.of(),
        counts: Counts::new(context.client.clone(), context.tasks.clone(), less.clone()),
        freed,
    };
    let q = queue.clone();
    quotas.on_change(move |change| {
        let Some(quota) = &change.new else { return };
        // The server's charges are no reason to count; what it has never counted is.
        let counted = quota.status.as_ref().and_then(|s| s.hard.as_ref()) == Some(plan::limits(quota));
        if change.old.as_ref().is_none_or(|old| old.spec != quota.spec) || !counted {
            q.add((quota.namespace().unwrap_or_default(), quota.name_any()));
        }
    });
    follow(&controller.pods, &quotas, "pods", less.clone());
    follow(&controller.services, &quotas, "services", less.clone());
    follow(&controller.claims, &quotas, "persistentvolumeclaims", less);
    run_workers(&context.tasks, "resourcequota", context.workers(5), queue, move |key: Key| {
        let controller = controller.clone();
        async move {
            controller.quotas.synced().await;
            controller.pods.synced().await;
            controller.services.synced().await;
            controller.claims.synced().await;
            let freed = controller.freed.lock().remove(&key);
            let result = controller.sync(&key.0, &key.1, freed).await;
            if freed && result.is_err() {
                controller.freed.lock().insert(key);
            }
            match result {
                Err(kube::Error::Api(s)) if s.code == 409 => Ok(Requeue::After(BATCH)),
                other => other,
            }
        }
    });
}

type Less = Arc<dyn Fn(&(String, String), Option<&str>) + Send + Sync>;

fn follow<K: Charged>(objects: &Informer<K>, quotas: &Informer<ResourceQuota>, plural: &'static str, less: Less) {
    let (kind, quotas) = ((String::new(), plural.to_string()), quotas.clone());
    objects.on_change(move |change| {
        let namespace = change.latest().namespace().unwrap_or_default();
        // Most namespaces have no quota: there nothing is compared.
        let limited = change.old.is_some() && quotas.in_namespace(&namespace).iter().any(|q| limits(q, "", plural));
        if limited && frees(plural, change, Timestamp::now().as_second()) {
            less(&kind, Some(&namespace));
        }
    });
}

impl Controller {
    async fn sync(&self, namespace: &str, name: &str, freed: bool) -> kube::Result<Requeue> {
        let Some(quota) = self.quotas.get(namespace, name) else { return Ok(Requeue::No) };
        let mut found = BTreeMap::new();
        for kind in api::quota::resources(plan::limits(&quota).keys()) {
            let there = match (kind.0.as_str(), kind.1.as_str()) {
                ("", "pods") => values(&self.pods, namespace),
                ("", "services") => values(&self.services, namespace),
                ("", "persistentvolumeclaims") => values(&self.claims, namespace),
                _ => self.counts.count(&kind, namespace),
            };
            found.insert(kind, there);
        }
        let now = Timestamp::now().as_second();
        let mut new = quota.as_ref().clone();
        let mut status = plan::plan(&new, &found, now);
        if freed || status.as_ref().is_some_and(|s| plan::frees(&new, s)) {
            // The informers may have seen a charge, but not yet what was charged for; or that something has gone, but not
            // yet that it was charged. The quota is read before the objects: what is charged meanwhile makes the write a
            // conflict.
            let quotas = listed::all(&Api::<ResourceQuota>::namespaced(self.reader.clone(), namespace)).await?;
            let Some(fresh) = quotas.into_iter().find(|q| q.name_any() == name) else { return Ok(Requeue::No) };
            for (kind, there) in &mut found {
                match (kind.0.as_str(), kind.1.as_str()) {
                    ("", "pods") => *there = self.asked::<Pod>(namespace).await?,
                    ("", "services") => *there = self.asked::<Service>(namespace).await?,
                    ("", "persistentvolumeclaims") => *there = self.asked::<PersistentVolumeClaim>(namespace).await?,
                    _ => {}
                }
            }
            status = plan::plan(&fresh, &found, now);
            new = fresh;
        }
        if let Some(status) = status {
            new.status = Some(status);
            let api = Api::<ResourceQuota>::namespaced(self.client.clone(), namespace);
            match api.replace_status(name, &PostParams::default(), &new).await {
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Requeue::No),
                other => drop(other?),
            }
            // What was charged a moment ago may not have been seen when this was counted.
            return Ok(Requeue::After(SETTLE));
        }
        Ok(Requeue::After(RESYNC))
    }

    /// The objects of a kind as the API server has them.
    async fn asked<K: Charged + Resource<Scope = NamespaceResourceScope>>(&self, namespace: &str) -> kube::Result<Found> {
        let objects = listed::all(&Api::<K>::namespaced(self.reader.clone(), namespace)).await?;
        Ok(Found::Objects(objects.iter().map(Charged::value).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_became_less_is_a_reason_to_count() {
        let pod = |phase: &str| {
            let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}, "status": {"phase": phase}});
            Arc::new(serde_json::from_value::<Pod>(pod).expect("a pod"))
        };
        let of = |old: Option<&str>, new: Option<&str>| frees("pods", &Change { old: old.map(pod), new: new.map(pod) }, 0);
        assert!(of(Some("Running"), None) && of(Some("Running"), Some("Failed")));
        assert!(!of(None, Some("Running")) && !of(Some("Pending"), Some("Running")) && !of(Some("Failed"), Some("Failed")));
        let service = |kind: &str| {
            let service = json!({"metadata": {"name": "s"}, "spec": {"type": kind, "ports": [{"port": 1}]}});
            Arc::new(serde_json::from_value::<Service>(service).expect("a service"))
        };
        let changed = |old: &str, new: &str| frees("services", &Change { old: Some(service(old)), new: Some(service(new)) }, 0);
        assert!(changed("NodePort", "ClusterIP") && !changed("ClusterIP", "NodePort"));
    }
}
