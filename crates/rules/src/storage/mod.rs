//! What claims, volumes and classes say of each other, for all who have to agree on it: the binder,
//! the scheduler, the provisioner and the kubelet. Pure; it decides on no action.

pub mod local;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Volume};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::labels;

/// On a claim: its binding is complete.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or volume: the binding was made by the controller and may be undone by it.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim: the node that the scheduler chose for its first consumer.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a volume: who made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: who is asked to make its volume.
pub const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// The older form of the same.
pub const BETA_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// The provisioner of classes whose volumes are made by hand.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_CLASS: [&str; 2] = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

/// The class that a claim asks for; empty: none.
pub fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    let named = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    claim.annotations().get(BETA_CLASS).map(String::as_str).or(named).unwrap_or_default()
}

/// Whether a claim says anything of a class, be it that it wants none.
pub fn has_class(claim: &PersistentVolumeClaim) -> bool {
    claim.annotations().contains_key(BETA_CLASS) || claim.spec.as_ref().is_some_and(|s| s.storage_class_name.is_some())
}

/// The class that a volume is of; empty: none.
pub fn volume_class(volume: &PersistentVolume) -> &str {
    let named = volume.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    volume.annotations().get(BETA_CLASS).map(String::as_str).or(named).unwrap_or_default()
}

/// Whether claims of the class wait for a pod that uses them.
pub fn waits_for_consumer(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// The default class: of several the youngest, then the first by name.
pub fn default_class(classes: &[Arc<StorageClass>]) -> Option<Arc<StorageClass>> {
    let marked = |c: &&Arc<StorageClass>| DEFAULT_CLASS.iter().any(|a| c.annotations().get(*a).is_some_and(|v| v == "true"));
    let rank = |c: &&Arc<StorageClass>| (std::cmp::Reverse(c.metadata.creation_timestamp.as_ref().map(|t| t.0)), c.name_any());
    classes.iter().filter(marked).min_by_key(rank).cloned()
}

/// The volume that a claim names; empty: none yet.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default()
}

/// Whether a claim has its volume and nothing remains to be done about it.
pub fn is_fully_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_name(claim).is_empty() && claim.annotations().contains_key(BIND_COMPLETED)
}

/// Whether a volume is reserved for, or bound to, this claim.
pub fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return false };
    let uid = reference.uid.as_deref().unwrap_or_default();
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && (uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
}

/// The amount of storage in a list of resources; zero when there is none.
pub fn storage(list: Option<&BTreeMap<String, Text>>) -> Quantity {
    let text = list.and_then(|l| l.get("storage"));
    text.and_then(|t| Quantity::parse(&t.0).ok()).unwrap_or_else(Quantity::zero)
}

/// How much a claim asks for.
pub fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    storage(claim.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref()))
}

/// How much a volume holds.
pub fn capacity(volume: &PersistentVolume) -> Quantity {
    storage(volume.spec.as_ref().and_then(|s| s.capacity.as_ref()))
}

/// A volume's phase; empty when it has none yet.
pub fn volume_phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Whether claim and volume mean the same by being a file system or a block device.
pub fn same_mode(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let of_claim = claim.spec.as_ref().and_then(|s| s.volume_mode.as_deref()).unwrap_or("Filesystem");
    of_claim == volume.spec.as_ref().and_then(|s| s.volume_mode.as_deref()).unwrap_or("Filesystem")
}

/// Whether claim and volume are of the same VolumeAttributesClass.
pub fn same_attributes(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let of_claim = claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref()).unwrap_or_default();
    of_claim == volume.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref()).unwrap_or_default()
}

/// Whether a volume can be used in every way that a claim asks for.
pub fn has_access_modes(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let offered: Vec<&String> = volume.spec.iter().flat_map(|s| s.access_modes.iter().flatten()).collect();
    claim.spec.iter().flat_map(|s| s.access_modes.iter().flatten()).all(|m| offered.contains(&m))
}

/// Where a volume is looked for.
#[derive(Clone, Copy)]
pub enum Site<'a> {
    /// Anywhere. A claim that waits for its consumer finds only a volume that is reserved for it.
    Anywhere { waits: bool },
    /// On a node: those volumes that the function says can be reached from there.
    Node(&'a dyn Fn(&PersistentVolume) -> bool),
}

/// The volume that suits a claim best: one that is reserved for it, or else the smallest that is large
/// enough, the least capable of access modes first. Volumes in `taken` are left out.
pub fn find_match(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>], site: Site<'_>, taken: &HashSet<String>) -> Option<Arc<PersistentVolume>> {
    let wanted = requested(claim);
    let selector = claim.spec.as_ref().and_then(|s| s.selector.as_ref());
    let reachable = |v: &PersistentVolume| match site {
        Site::Anywhere { .. } => true,
        Site::Node(reachable) => reachable(v),
    };
    let mut best: Option<(usize, Quantity, &Arc<PersistentVolume>)> = None;
    for volume in volumes {
        let reserved = is_bound_to(volume, claim);
        let claimed = volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_some());
        let holds = capacity(volume);
        if taken.contains(&volume.name_any())
            || (claimed && !reserved)
            || holds < wanted
            || !same_mode(claim, volume)
            || !same_attributes(claim, volume)
            || volume.metadata.deletion_timestamp.is_some()
            || !has_access_modes(claim, volume)
        {
            continue;
        }
        if reserved {
            return reachable(volume).then(|| volume.clone());
        }
        if matches!(site, Site::Anywhere { waits: true })
            || volume_phase(volume) != "Available"
            || selector.is_some_and(|s| !labels::matches(s, volume.labels()))
            || volume_class(volume) != claim_class(claim)
            || !reachable(volume)
        {
            continue;
        }
        // For a node, the size alone counts.
        let modes = match site {
            Site::Anywhere { .. } => volume.spec.as_ref().and_then(|s| s.access_modes.as_ref()).map_or(0, Vec::len),
            Site::Node(_) => 0,
        };
        if best.as_ref().is_none_or(|(m, size, _)| (modes, &holds) < (*m, size)) {
            best = Some((modes, holds, volume));
        }
    }
    best.map(|(_, _, volume)| volume.clone())
}

/// The claim of a pod's ephemeral volume.
pub fn ephemeral_claim_name(pod: &ObjectMeta, volume: &Volume) -> String {
    format!("{}-{}", pod.name.as_deref().unwrap_or_default(), volume.name)
}

/// Whether a claim was made for an ephemeral volume of this very pod.
pub fn made_for(pod: &ObjectMeta, claim: &PersistentVolumeClaim) -> Result<(), String> {
    let text = |field: &'_ Option<String>| field.clone().unwrap_or_default();
    made_for_pod(&text(&pod.namespace), &text(&pod.name), &text(&pod.uid), claim)
}

/// The same, for the pod of this namespace, name and uid.
pub fn made_for_pod(namespace: &str, name: &str, uid: &str, claim: &PersistentVolumeClaim) -> Result<(), String> {
    let owner = claim.owner_references().iter().find(|r| r.controller == Some(true));
    if owner.is_some_and(|o| o.uid == uid) {
        return Ok(());
    }
    let of_claim = format!("{}/{}", claim.namespace().unwrap_or_default(), claim.name_any());
    Err(format!("PVC {of_claim} was not created for pod {namespace}/{name} (pod is not owner)"))
}

/// The claim behind a volume of a pod, and whether it is an ephemeral one; nothing for other volumes.
pub fn claim_of(pod: &ObjectMeta, volume: &Volume) -> Option<(String, bool)> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some((source.claim_name.clone(), false));
    }
    volume.ephemeral.as_ref().map(|_| (ephemeral_claim_name(pod, volume), true))
}

/// The names of all claims that a pod uses.
pub fn claims_of(pod: &ObjectMeta, volumes: &[Volume]) -> Vec<String> {
    volumes.iter().filter_map(|v| Some(claim_of(pod, v)?.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn claim(spec: Value) -> PersistentVolumeClaim {
        let mut full = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}, "storageClassName": "c"});
        full.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
        serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "n", "uid": "u"}, "spec": full})).expect("a claim")
    }

    fn volume(name: &str, size: &str, spec: Value) -> Arc<PersistentVolume> {
        let mut full = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": size}, "storageClassName": "c"});
        full.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
        let object = json!({"metadata": {"name": name, "labels": {"disk": name}}, "spec": full, "status": {"phase": "Available"}});
        Arc::new(serde_json::from_value(object).expect("a volume"))
    }

    fn found(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>]) -> String {
        let site = Site::Anywhere { waits: false };
        find_match(claim, volumes, site, &HashSet::new()).map_or("none".into(), |v| v.name_any())
    }

    #[test]
    fn the_smallest_volume_that_suits_is_found() {
        let plain = claim(json!({}));
        let sizes = [volume("big", "20Gi", json!({})), volume("fits", "6Gi", json!({})), volume("small", "4Gi", json!({}))];
        assert_eq!(found(&plain, &sizes), "fits");
        // Fewer access modes come before less size.
        let many = volume("many", "5Gi", json!({"accessModes": ["ReadWriteOnce", "ReadWriteMany"]}));
        assert_eq!(found(&plain, &[many.clone(), sizes[0].clone()]), "big");
        assert_eq!(found(&claim(json!({"accessModes": ["ReadWriteMany"]})), &[many, sizes[0].clone()]), "many");
        assert_eq!(found(&claim(json!({"selector": {"matchLabels": {"disk": "big"}}})), &sizes), "big");
        let equal = [volume("first", "6Gi", json!({})), volume("second", "6Gi", json!({}))];
        assert_eq!(found(&plain, &equal), "first");
    }

    #[test]
    fn what_does_not_suit_is_left() {
        let fits = [volume("v", "6Gi", json!({}))];
        for spec in [
            json!({"storageClassName": "other"}),
            json!({"storageClassName": ""}),
            json!({"volumeMode": "Block"}),
            json!({"accessModes": ["ReadOnlyMany"]}),
            json!({"resources": {"requests": {"storage": "7Gi"}}}),
            json!({"selector": {"matchLabels": {"disk": "other"}}}),
            json!({"volumeAttributesClassName": "gold"}),
        ] {
            assert_eq!(found(&claim(spec.clone()), &fits), "none", "{spec}");
        }
        let site = Site::Anywhere { waits: true };
        assert!(find_match(&claim(json!({})), &fits, site, &HashSet::new()).is_none(), "it waits for its consumer");
        let nowhere = |_: &PersistentVolume| false;
        assert!(find_match(&claim(json!({})), &fits, Site::Node(&nowhere), &HashSet::new()).is_none());
        let taken = HashSet::from(["v".to_string()]);
        assert!(find_match(&claim(json!({})), &fits, Site::Anywhere { waits: false }, &taken).is_none());
    }

    #[test]
    fn a_reserved_volume_is_for_its_claim_alone() {
        let reserved = |uid: &str| volume("mine", "50Gi", json!({"storageClassName": "any", "claimRef": {"namespace": "n", "name": "a", "uid": uid}}));
        let plain = claim(json!({}));
        let free = volume("free", "5Gi", json!({}));
        assert_eq!(found(&plain, &[free.clone(), reserved("")]), "mine");
        assert_eq!(found(&plain, &[free.clone(), reserved("u")]), "mine");
        assert_eq!(found(&plain, &[free, reserved("another")]), "free");
        let waits = find_match(&plain, &[reserved("")], Site::Anywhere { waits: true }, &HashSet::new());
        assert_eq!(waits.expect("it need not wait").name_any(), "mine");
    }

    #[test]
    fn the_youngest_default_class_counts() {
        let class = |name: &str, born: &str, mark: &str| -> Arc<StorageClass> {
            let annotations = json!({DEFAULT_CLASS[0]: mark});
            let meta = json!({"name": name, "creationTimestamp": born, "annotations": annotations});
            Arc::new(serde_json::from_value(json!({"metadata": meta, "provisioner": "p"})).expect("a class"))
        };
        let all = [class("old", "2026-01-01T00:00:00Z", "true"), class("new", "2026-02-01T00:00:00Z", "true"), class("newest", "2026-03-01T00:00:00Z", "false")];
        assert_eq!(default_class(&all).expect("one").name_any(), "new");
        assert!(default_class(&all[2..]).is_none());
    }

    #[test]
    fn a_claim_says_of_which_class_it_is_and_how_far_its_binding_is() {
        let of = |metadata: Value, spec: Value| -> PersistentVolumeClaim { serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a claim") };
        let older = of(json!({"annotations": {BETA_CLASS: "b"}}), json!({}));
        assert_eq!((claim_class(&older), has_class(&older)), ("b", true));
        let none = of(json!({}), json!({"storageClassName": ""}));
        assert_eq!((claim_class(&none), has_class(&none)), ("", true), "it wants none");
        let silent = of(json!({}), json!({}));
        assert_eq!((claim_class(&silent), has_class(&silent)), ("", false));
        assert_eq!((volume_name(&silent), is_fully_bound(&silent)), ("", false));
        let named = of(json!({}), json!({"volumeName": "v"}));
        assert_eq!((volume_name(&named), is_fully_bound(&named)), ("v", false));
        let complete = |spec| of(json!({"annotations": {BIND_COMPLETED: "yes"}}), spec);
        assert!(is_fully_bound(&complete(json!({"volumeName": "v"}))) && !is_fully_bound(&complete(json!({}))));
        let mode = |mode: Value| serde_json::from_value::<StorageClass>(json!({"metadata": {}, "provisioner": "p", "volumeBindingMode": mode})).expect("a class");
        assert!(waits_for_consumer(&mode(json!("WaitForFirstConsumer"))));
        assert!(!waits_for_consumer(&mode(json!("Immediate"))) && !waits_for_consumer(&mode(Value::Null)));
    }

    #[test]
    fn a_pod_has_the_claims_that_it_names_and_those_made_for_it() {
        let meta = |uid: &str| ObjectMeta { namespace: Some("n".into()), name: Some("p".into()), uid: Some(uid.into()), ..ObjectMeta::default() };
        let volumes: Vec<Volume> = serde_json::from_value(json!([
            {"name": "named", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "own", "ephemeral": {}}, {"name": "none", "emptyDir": {}}]))
        .expect("volumes");
        let claims: Vec<_> = volumes.iter().map(|v| claim_of(&meta("u"), v)).collect();
        assert_eq!(claims, [Some(("data".into(), false)), Some(("p-own".into(), true)), None]);
        assert_eq!(claims_of(&meta("u"), &volumes), ["data", "p-own"]);
        let owner = |uid: &str, controls: bool| json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": controls});
        let owned = |owners: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"namespace": "n", "name": "p-own", "ownerReferences": owners}})).expect("a claim")
        };
        assert_eq!(made_for(&meta("u"), &owned(json!([owner("x", false), owner("u", true)]))), Ok(()));
        let foreign = Err("PVC n/p-own was not created for pod n/p (pod is not owner)".to_string());
        for owners in [json!([owner("x", true)]), json!([owner("u", false)]), json!([])] {
            assert_eq!(made_for(&meta("u"), &owned(owners)), foreign);
        }
    }
}
