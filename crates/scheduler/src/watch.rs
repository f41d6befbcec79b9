//! What the scheduler follows: pods and nodes as compact records, and the few facts of other kinds
//! that decisions rest on.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, ReplicationController, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use reconcile::{Informers, Object};

use crate::node::NodeView;
use crate::pod::PodInfo;
use crate::preempt::Budget;
use crate::selector::Selector;
use crate::shell::Shared;

/// Follows everything; the answer completes once all is known.
pub(crate) fn follow(shared: &Arc<Shared>, informers: &Informers) -> impl Future<Output = ()> + Send + use<> {
    let namespaces = informers.of::<Namespace>();
    let s = shared.clone();
    namespaces.on_change(move |change| {
        let labels = |n: &Namespace| n.labels().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        s.state.lock().cluster.set_namespace(&change.latest().name_any(), change.new.as_deref().map(labels));
    });
    let services = informers.of::<Service>();
    let s = shared.clone();
    services.on_change(move |change| {
        let service = change.latest();
        let selector = |x: &Service| x.spec.as_ref().and_then(|s| s.selector.clone()).filter(|m| !m.is_empty());
        let key = (service.namespace().unwrap_or_default().into(), service.name_any().into());
        let new = change.new.as_deref().and_then(selector);
        if change.old.as_deref().and_then(selector) == new {
            return;
        }
        let workloads = &mut s.state.lock().cluster.workloads;
        workloads.generation += 1;
        match new {
            Some(labels) => drop(workloads.services.insert(key, labels.into_iter().collect())),
            None => drop(workloads.services.remove(&key)),
        }
    });
    let sets = owners::<ReplicaSet>(shared, informers, |x| x.spec.as_ref().map(|s| selector(&s.selector)));
    let stateful = owners::<StatefulSet>(shared, informers, |x| x.spec.as_ref().map(|s| selector(&s.selector)));
    let controllers = owners::<ReplicationController>(shared, informers, |x| x.spec.as_ref()?.selector.as_ref().map(|m: &BTreeMap<_, _>| Selector::of(m)));
    let budgets = informers.of::<PodDisruptionBudget>();
    let s = shared.clone();
    budgets.on_change(move |change| {
        let key = (change.latest().namespace().unwrap_or_default(), change.latest().name_any());
        s.budget_changed(key, change.new.as_deref().map(budget));
    });
    let nodes = informers.of::<NodeView>();
    let s = shared.clone();
    nodes.on_change(move |change| s.node_changed(change.new.as_ref(), change.latest().name()));
    let pods = informers.of::<PodInfo>();
    let s = shared.clone();
    pods.on_change(move |change| s.pod_changed(change.old.as_ref(), change.new.as_ref()));
    async move {
        namespaces.synced().await;
        services.synced().await;
        sets.synced().await;
        stateful.synced().await;
        controllers.synced().await;
        budgets.synced().await;
        nodes.synced().await;
        pods.synced().await;
    }
}

fn owners<K: Object>(shared: &Arc<Shared>, informers: &Informers, selector: fn(&K) -> Option<Selector>) -> reconcile::Informer<K> {
    let informer = informers.of::<K>();
    let s = shared.clone();
    informer.on_change(move |change| {
        let object = change.latest();
        let new = change.new.as_deref().and_then(selector);
        if change.old.as_deref().and_then(selector) == new {
            return;
        }
        let key = (object.namespace().unwrap_or_default().into(), K::kind(&()).as_ref().into(), object.name_any().into());
        let workloads = &mut s.state.lock().cluster.workloads;
        workloads.generation += 1;
        match new {
            Some(selector) => drop(workloads.owners.insert(key, selector)),
            None => drop(workloads.owners.remove(&key)),
        }
    });
    informer
}

fn selector(selector: &LabelSelector) -> Selector {
    // What the API server lets through is a selector.
    serde_json::to_value(selector).ok().and_then(|v| serde_json::from_value(v).ok()).unwrap_or_default()
}

fn budget(object: &PodDisruptionBudget) -> Budget {
    let status = object.status.clone().unwrap_or_default();
    Budget {
        namespace: object.namespace().unwrap_or_default(),
        selector: object.spec.as_ref().and_then(|s| s.selector.as_ref()).map(selector),
        allowed: status.disruptions_allowed.unwrap_or(0),
        disrupted: status.disrupted_pods.unwrap_or_default().into_keys().collect(),
    }
}
