//! Who owns the volume claims of a stateful set's pods: nobody, so that they outlive everything; the
//! set; or, while a set is scaled down, the pod, so that they go with it.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use super::identity;
use crate::ownership::controller_reference;

/// Whether claims go with a set that is deleted, and with a pod that is scaled away.
fn policy(set: &StatefulSet) -> (bool, bool) {
    let policy = set.spec.as_ref().and_then(|s| s.persistent_volume_claim_retention_policy.clone()).unwrap_or_default();
    let deletes = |when: Option<String>| when.as_deref() == Some("Delete");
    (deletes(policy.when_deleted), deletes(policy.when_scaled))
}

/// Whether a reference names this object by kind and name, whatever its uid.
fn names<K: Resource<DynamicType = ()>>(reference: &OwnerReference, object: &K) -> bool {
    reference.api_version == K::api_version(&()) && reference.kind == K::kind(&()) && reference.name == object.name_any()
}

fn refers<K: Resource<DynamicType = ()>>(reference: &OwnerReference, object: &K) -> bool {
    Some(&reference.uid) == object.meta().uid.as_ref()
}

fn references(claim: &PersistentVolumeClaim) -> &[OwnerReference] {
    claim.metadata.owner_references.as_deref().unwrap_or_default()
}

/// Whether a claim belongs to an earlier object of the same name, and will go with that.
fn is_stale_for<K: Resource<DynamicType = ()>>(claim: &PersistentVolumeClaim, object: &K) -> bool {
    references(claim).iter().find(|r| names(r, object)).is_some_and(|r| !refers(r, object))
}

/// Whether a pod must wait: a claim of its name is about to go with the pod that was there before.
pub fn block(set: &StatefulSet, pod: &impl Resource<DynamicType = ()>, claims: &[&PersistentVolumeClaim]) -> bool {
    let (_, scaled) = policy(set);
    scaled && claims.iter().any(|c| is_stale_for(c, pod))
}

/// Whether someone else controls the claim, so that the policy cannot hold.
pub fn has_foreign_controller(claim: &PersistentVolumeClaim, set: &StatefulSet, pod: &impl Resource<DynamicType = ()>) -> bool {
    if policy(set) == (false, false) {
        return false;
    }
    references(claim).iter().any(|r| {
        if names(r, set) {
            !refers(r, set)
        } else if names(r, pod) {
            !refers(r, pod)
        } else {
            r.controller == Some(true)
        }
    })
}

/// The references by which the policy wants set and pod to own the claims: set, then pod.
fn wanted(set: &StatefulSet, pod: &impl Resource<DynamicType = ()>) -> (bool, bool) {
    let scaled_away = identity::ordinal(pod).is_none_or(|o| !identity::wants(set, o));
    match policy(set) {
        (false, false) => (false, false),
        (true, false) => (true, false),
        (false, true) => (false, scaled_away),
        (true, true) => (!scaled_away, scaled_away),
    }
}

/// Whether a claim's owners are what the policy wants, or cannot be made so.
pub fn is_up_to_date(claim: &PersistentVolumeClaim, set: &StatefulSet, pod: &impl Resource<DynamicType = ()>) -> bool {
    if is_stale_for(claim, set) || is_stale_for(claim, pod) {
        return true;
    }
    let of_set = references(claim).iter().any(|r| refers(r, set));
    let of_pod = references(claim).iter().any(|r| refers(r, pod));
    if has_foreign_controller(claim, set, pod) {
        return !of_set && !of_pod;
    }
    let weak = |r: &OwnerReference| (refers(r, set) || refers(r, pod)) && r.controller != Some(true);
    !references(claim).iter().any(weak) && (of_set, of_pod) == wanted(set, pod)
}

/// The claim with the owners that the policy wants.
pub fn updated(claim: &PersistentVolumeClaim, set: &StatefulSet, pod: &impl Resource<DynamicType = ()>) -> PersistentVolumeClaim {
    let foreign = has_foreign_controller(claim, set, pod);
    let mut owners: Vec<OwnerReference> = references(claim).iter().filter(|r| !names(r, set) && !names(r, pod)).cloned().collect();
    if !foreign {
        let (by_set, by_pod) = wanted(set, pod);
        if by_set {
            owners.push(controller_reference(set));
        }
        if by_pod {
            owners.push(controller_reference(pod));
        }
    }
    let mut claim = claim.clone();
    claim.metadata.owner_references = Some(owners);
    claim
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Pod;
    use serde_json::{Value, json};

    fn set(when_deleted: &str, when_scaled: &str) -> StatefulSet {
        serde_json::from_value(json!({"metadata": {"name": "s", "uid": "set"}, "spec": {"replicas": 1, "selector": {}, "template": {},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": when_deleted, "whenScaled": when_scaled}}}))
        .expect("a set")
    }

    fn pod(ordinal: i32) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": format!("s-{ordinal}"), "uid": "pod"}})).expect("a pod")
    }

    fn claim(owners: Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c", "ownerReferences": owners}})).expect("a claim")
    }

    fn owner(kind: &str, name: &str, uid: &str) -> Value {
        let version = if kind == "StatefulSet" { "apps/v1" } else { "v1" };
        json!({"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": true, "blockOwnerDeletion": true})
    }

    fn owners(set: &StatefulSet, pod: &Pod, from: &PersistentVolumeClaim) -> Vec<String> {
        let new = updated(from, set, pod);
        assert!(is_up_to_date(&new, set, pod), "the change must be enough");
        new.metadata.owner_references.unwrap_or_default().into_iter().map(|r| r.uid).collect()
    }

    #[test]
    fn each_policy_gives_the_claim_its_owner() {
        let none: [&str; 0] = [];
        let cases = [
            ("Retain", "Retain", 0, &none[..]),
            ("Retain", "Retain", 1, &none),
            ("Delete", "Retain", 0, &["set"]),
            ("Delete", "Retain", 1, &["set"]),
            ("Retain", "Delete", 0, &none),
            ("Retain", "Delete", 1, &["pod"]),
            ("Delete", "Delete", 0, &["set"]),
            ("Delete", "Delete", 1, &["pod"]),
        ];
        for (deleted, scaled, ordinal, expected) in cases {
            let (set, pod) = (set(deleted, scaled), pod(ordinal));
            for before in [json!([]), json!([owner("StatefulSet", "s", "set")]), json!([owner("Pod", &pod.name_any(), "pod")])] {
                assert_eq!(owners(&set, &pod, &claim(before)), expected, "{deleted} {scaled} {ordinal}");
            }
        }
    }

    #[test]
    fn claims_of_earlier_objects_are_left_alone_and_block_the_pod() {
        let (set, pod) = (set("Retain", "Delete"), pod(0));
        let stale = claim(json!([owner("Pod", "s-0", "earlier")]));
        assert!(is_up_to_date(&stale, &set, &pod));
        assert!(block(&set, &pod, &[&stale]));
        assert!(!block(&self::set("Retain", "Retain"), &pod, &[&stale]));
        assert!(!block(&set, &pod, &[&claim(json!([]))]));
    }

    #[test]
    fn a_foreign_controller_wins() {
        let (set, pod) = (set("Delete", "Delete"), pod(0));
        let foreign = claim(json!([owner("Database", "x", "other")]));
        assert!(has_foreign_controller(&foreign, &set, &pod));
        assert!(is_up_to_date(&foreign, &set, &pod));
        let both = claim(json!([owner("Database", "x", "other"), owner("StatefulSet", "s", "set")]));
        assert!(!is_up_to_date(&both, &set, &pod));
        assert_eq!(owners(&set, &pod, &both), ["other"]);
        assert!(!has_foreign_controller(&foreign, &self::set("Retain", "Retain"), &pod));
    }

    #[test]
    fn a_weak_reference_is_made_a_controller() {
        let set = set("Delete", "Retain");
        let mut weak = owner("StatefulSet", "s", "set");
        weak["controller"] = json!(false);
        let claim = claim(json!([weak]));
        assert!(!is_up_to_date(&claim, &set, &pod(0)));
        assert_eq!(updated(&claim, &set, &pod(0)).metadata.owner_references.map(|r| r[0].controller), Some(Some(true)));
    }

    #[test]
    fn an_owner_of_the_same_name_or_kind_is_another() {
        let (set, pod) = (set("Delete", "Retain"), pod(0));
        for (kind, name) in [("Service", "s-0"), ("Service", "other"), ("Pod", "other"), ("Pod", "s")] {
            let mut other = owner(kind, name, "other");
            other["controller"] = json!(false);
            let claim = claim(json!([other]));
            assert!(!is_up_to_date(&claim, &set, &pod), "{kind} {name}");
            assert_eq!(owners(&set, &pod, &claim), ["other", "set"], "{kind} {name}");
        }
    }

    #[test]
    fn a_claim_of_an_earlier_set_is_left_alone_whatever_pod_has_it() {
        let of_both = claim(json!([owner("StatefulSet", "s", "earlier"), owner("Pod", "s-0", "pod")]));
        assert!(is_up_to_date(&of_both, &set("Delete", "Delete"), &pod(0)));
    }
}
