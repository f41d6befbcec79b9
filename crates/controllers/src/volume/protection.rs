//! What is in use is not removed: the finalizers of claims, volumes and VolumeAttributesClasses, which
//! the API server sets and these three controllers take away.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt};
use reconcile::{Informer, Queue, Requeue, run_workers};
use rules::storage;

use super::binder::plan::ended;
use crate::Context;
use crate::pod::Pod;

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const ATTRIBUTES: &str = "kubernetes.io/vac-protection";

/// What is to become of a finalizer.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Step {
    Nothing,
    Add,
    Remove,
}

/// Decides: it is there from the beginning, and goes when the object is deleted and not in use.
pub fn plan(meta: &ObjectMeta, finalizer: &str, used: impl FnOnce() -> bool) -> Step {
    let has = meta.finalizers.iter().flatten().any(|f| f == finalizer);
    match (meta.deletion_timestamp.is_some(), has) {
        (false, false) => Step::Add,
        (true, true) if !used() => Step::Remove,
        _ => Step::Nothing,
    }
}

fn apply(meta: &mut ObjectMeta, finalizer: &str, step: Step) {
    let all = meta.finalizers.get_or_insert_default();
    match step {
        Step::Nothing => {}
        Step::Add => all.push(finalizer.into()),
        Step::Remove => all.retain(|f| f != finalizer),
    }
}

/// Whether a pod keeps a claim from being removed. A pod that is on no node yet can do without.
pub fn uses_claim(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let Some(spec) = pod.spec.as_ref().filter(|s| s.node_name.as_deref().is_some_and(|n| !n.is_empty())) else { return false };
    let over = pod.metadata.deletion_timestamp.is_some() && pod.metadata.deletion_grace_period_seconds == Some(0);
    !ended(pod)
        && spec.volumes.iter().flatten().any(|v| match storage::claim_of(&pod.metadata, v) {
            Some((name, false)) => name == claim.name_any(),
            Some((name, true)) => !over && name == claim.name_any() && storage::made_for(&pod.metadata, claim).is_ok(),
            None => false,
        })
}

/// The classes that a claim has, had and is to have.
pub fn classes_of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let status = claim.status.as_ref();
    let all = [
        claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.clone()),
        status.and_then(|s| s.current_volume_attributes_class_name.clone()),
        status.and_then(|s| s.modify_volume_status.as_ref()).and_then(|m| m.target_volume_attributes_class_name.clone()),
    ];
    all.into_iter().flatten().filter(|n| !n.is_empty()).collect()
}

fn class_of_volume(volume: &PersistentVolume) -> Option<String> {
    volume.spec.as_ref().and_then(|s| s.volume_attributes_class_name.clone()).filter(|n| !n.is_empty())
}

fn passing<T>(result: kube::Result<T>) -> kube::Result<Requeue> {
    match result {
        Ok(_) => Ok(Requeue::No),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Requeue::No),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Requeue::After(std::time::Duration::from_millis(50))),
        Err(error) => Err(error),
    }
}

/// Starts `persistentvolumeclaim-protection`.
pub fn start_claims(context: &Context) {
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let pods = context.informers.of::<Pod>();
    let queue = Queue::<(String, String)>::new();
    let q = queue.clone();
    claims.on_change(move |change| {
        if let Some(claim) = &change.new {
            q.add((claim.namespace().unwrap_or_default(), claim.name_any()));
        }
    });
    let (q, known) = (queue.clone(), claims.clone());
    pods.on_change(move |change| {
        let pod = change.latest();
        // Only the end of a pod sets a claim free.
        if change.new.as_ref().is_none_or(|p| ended(p)) {
            let namespace = pod.namespace().unwrap_or_default();
            for name in pod.claims() {
                if known.get(&namespace, &name).is_some_and(|c| c.metadata.deletion_timestamp.is_some()) {
                    q.add((namespace.clone(), name));
                }
            }
        }
    });
    let client = context.client.clone();
    run_workers(&context.tasks, "persistentvolumeclaim-protection", 2, queue, move |(namespace, name)| {
        let (client, claims, pods) = (client.clone(), claims.clone(), pods.clone());
        async move {
            claims.synced().await;
            pods.synced().await;
            sync_claim(&client, &claims, &pods, &namespace, &name).await
        }
    });
}

async fn sync_claim(client: &Client, claims: &Informer<PersistentVolumeClaim>, pods: &Informer<Pod>, namespace: &str, name: &str) -> kube::Result<Requeue> {
    let Some(claim) = claims.get(namespace, name) else { return Ok(Requeue::No) };
    let step = plan(&claim.metadata, CLAIM, || pods.in_namespace(namespace).iter().any(|p| uses_claim(p, &claim)));
    if step == Step::Nothing {
        return Ok(Requeue::No);
    }
    if step == Step::Remove {
        // The informer may be behind, and this cannot be taken back.
        let live = Api::<Pod>::namespaced(client.clone(), namespace).list(&ListParams::default()).await?;
        if live.iter().any(|p| uses_claim(p, &claim)) {
            return Ok(Requeue::After(std::time::Duration::from_secs(1)));
        }
    }
    let mut new = claim.as_ref().clone();
    apply(&mut new.metadata, CLAIM, step);
    passing(Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace).replace(name, &PostParams::default(), &new).await)
}

/// Starts `persistentvolume-protection`.
pub fn start_volumes(context: &Context) {
    let volumes = context.informers.of::<PersistentVolume>();
    let queue = Queue::<String>::new();
    let q = queue.clone();
    volumes.on_change(move |change| {
        if let Some(volume) = &change.new {
            q.add(volume.name_any());
        }
    });
    let client = context.client.clone();
    run_workers(&context.tasks, "persistentvolume-protection", 1, queue, move |name: String| {
        let (client, volumes) = (client.clone(), volumes.clone());
        async move {
            let Some(volume) = volumes.get("", &name) else { return Ok(Requeue::No) };
            let step = plan(&volume.metadata, VOLUME, || storage::volume_phase(&volume) == "Bound");
            if step == Step::Nothing {
                return Ok(Requeue::No);
            }
            let mut new = volume.as_ref().clone();
            apply(&mut new.metadata, VOLUME, step);
            passing(Api::<PersistentVolume>::all(client).replace(&name, &PostParams::default(), &new).await)
        }
    });
}

/// Starts `volumeattributesclass-protection`.
pub fn start_classes(context: &Context) {
    let classes = context.informers.of::<VolumeAttributesClass>();
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let volumes = context.informers.of::<PersistentVolume>();
    let queue = Queue::<String>::new();
    let q = queue.clone();
    classes.on_change(move |change| {
        if let Some(class) = &change.new {
            q.add(class.name_any());
        }
    });
    let q = queue.clone();
    claims.on_change(move |change| change.old.iter().flat_map(|c| classes_of_claim(c)).for_each(|n| q.add(n)));
    let q = queue.clone();
    volumes.on_change(move |change| change.old.iter().filter_map(|v| class_of_volume(v)).for_each(|n| q.add(n)));
    let client = context.client.clone();
    run_workers(&context.tasks, "volumeattributesclass-protection", 1, queue, move |name: String| {
        let (client, classes, claims, volumes) = (client.clone(), classes.clone(), claims.clone(), volumes.clone());
        async move {
            claims.synced().await;
            volumes.synced().await;
            let Some(class) = classes.get("", &name) else { return Ok(Requeue::No) };
            let step = plan(&class.metadata, ATTRIBUTES, || class_used(&name, &claims.list(), &volumes.list()));
            if step == Step::Nothing {
                return Ok(Requeue::No);
            }
            let mut new = class.as_ref().clone();
            apply(&mut new.metadata, ATTRIBUTES, step);
            passing(Api::<VolumeAttributesClass>::all(client).replace(&name, &PostParams::default(), &new).await)
        }
    });
}

fn class_used(name: &str, claims: &[Arc<PersistentVolumeClaim>], volumes: &[Arc<PersistentVolume>]) -> bool {
    volumes.iter().any(|v| class_of_volume(v).as_deref() == Some(name)) || claims.iter().any(|c| classes_of_claim(c).iter().any(|n| n == name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn meta(value: Value) -> ObjectMeta {
        serde_json::from_value(value).expect("metadata")
    }

    #[test]
    fn the_finalizer_comes_at_once_and_goes_last() {
        let deleted = "2026-01-01T00:00:00Z";
        let never = || panic!("it does not matter");
        assert_eq!(plan(&meta(json!({})), CLAIM, never), Step::Add);
        assert_eq!(plan(&meta(json!({"finalizers": [CLAIM]})), CLAIM, never), Step::Nothing);
        assert_eq!(plan(&meta(json!({"deletionTimestamp": deleted})), CLAIM, never), Step::Nothing);
        let both = meta(json!({"deletionTimestamp": deleted, "finalizers": ["other", CLAIM]}));
        assert_eq!(plan(&both, CLAIM, || true), Step::Nothing);
        assert_eq!(plan(&both, CLAIM, || false), Step::Remove);
        let mut after = both;
        apply(&mut after, CLAIM, Step::Remove);
        assert_eq!(after.finalizers, Some(vec!["other".to_string()]));
    }

    #[test]
    fn pods_that_run_hold_a_claim() {
        let claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"name": "p-v", "namespace": "n", "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]}})).expect("a claim");
        let pod = |uid: &str, node: &str, phase: &str, volume: Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": uid},
                "spec": {"nodeName": node, "containers": [], "volumes": [volume]}, "status": {"phase": phase}})).expect("a pod")
        };
        let named = || json!({"name": "x", "persistentVolumeClaim": {"claimName": "p-v"}});
        let own = || json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}});
        assert!(uses_claim(&pod("u", "a", "Running", named()), &claim));
        assert!(uses_claim(&pod("u", "a", "Pending", own()), &claim));
        assert!(!uses_claim(&pod("u", "", "Pending", named()), &claim), "it runs nowhere");
        assert!(!uses_claim(&pod("u", "a", "Succeeded", named()), &claim), "it has ended");
        assert!(!uses_claim(&pod("other", "a", "Running", own()), &claim), "the claim is another's");
        assert!(!uses_claim(&pod("u", "a", "Running", json!({"name": "x", "emptyDir": {}})), &claim));
        assert!(!uses_claim(&pod("u", "a", "Running", json!({"name": "other", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}})), &claim), "another one of its own");
        let leaving = |grace: i64| {
            let mut pod = pod("u", "a", "Running", own());
            pod.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
            pod.metadata.deletion_grace_period_seconds = Some(grace);
            pod
        };
        assert!(uses_claim(&leaving(30), &claim), "it may still run");
        assert!(!uses_claim(&leaving(0), &claim), "nothing waits for it");
    }

    #[test]
    fn a_class_is_held_by_claims_and_volumes() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({"spec": {"volumeAttributesClassName": "new"},
            "status": {"currentVolumeAttributesClassName": "old", "modifyVolumeStatus": {"status": "Pending", "targetVolumeAttributesClassName": "next"}}})).expect("a claim");
        let volume: PersistentVolume = serde_json::from_value(json!({"spec": {"volumeAttributesClassName": "held"}})).expect("a volume");
        let (claims, volumes) = ([Arc::new(claim)], [Arc::new(volume)]);
        for name in ["new", "old", "next", "held"] {
            assert!(class_used(name, &claims, &volumes), "{name}");
        }
        assert!(!class_used("free", &claims, &volumes));
    }

    #[test]
    fn a_conflict_is_a_reason_to_look_again() {
        let after = |code, reason| passing::<()>(Err(crate::pods::refused(code, reason))).ok();
        assert_eq!(passing(Ok(())).ok(), Some(Requeue::No));
        assert_eq!(after(404, "NotFound"), Some(Requeue::No));
        assert!(matches!(after(409, "Conflict"), Some(Requeue::After(_))));
        assert_eq!(after(500, "InternalError"), None);
    }
}
