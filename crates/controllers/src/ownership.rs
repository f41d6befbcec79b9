//! Owner references: who controls an object, and what a controller may adopt or must release.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use reconcile::{Change, Informer, Object, Queue};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The reference by which `owner` controls what it creates.
pub fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The reference that controls an object, if any.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|r| r.controller == Some(true))
}

/// What to do with an object that an owner's selector may match.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Claim {
    /// It is ours and stays so.
    Keep,
    /// It has no controller and matches: take it.
    Adopt,
    /// It is ours but matches no more: let it go.
    Release,
    /// None of our business.
    Ignore,
}

/// Decides on one object. `deleting` is whether the owner is being deleted: then nothing changes hands.
pub fn claim(owner_uid: &str, deleting: bool, object: &ObjectMeta, matches: bool) -> Claim {
    match controller_of(object) {
        Some(reference) if reference.uid != owner_uid => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        Some(_) if deleting => Claim::Ignore,
        Some(_) => Claim::Release,
        None if deleting || !matches || object.deletion_timestamp.is_some() => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// The strategic merge patch that adopts an object: valid for that very object alone.
pub fn adopt_patch(reference: &OwnerReference, uid: &str) -> Value {
    json!({"metadata": {"ownerReferences": [reference], "uid": uid}})
}

/// The strategic merge patch that releases an object.
pub fn release_patch(owner_uid: &str, uid: &str) -> Value {
    json!({"metadata": {"ownerReferences": [{"$patch": "delete", "uid": owner_uid}], "uid": uid}})
}

/// A kind that lives in namespaces, as owners and what they own do.
pub trait Namespaced: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug {}
impl<K> Namespaced for K where K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug {}

/// Those of `candidates` that are `owner`'s, after taking what is free and fits, and letting go what
/// fits no more. Before the first one is taken the owner is read once more past the informer, so that
/// an owner which is already going takes nothing.
pub async fn claim_all<K: Namespaced, O: Namespaced>(
    client: &Client,
    owner: &K,
    candidates: Vec<Arc<O>>,
    fits: impl Fn(&O) -> bool,
) -> kube::Result<Vec<Arc<O>>> {
    let uid = owner.uid().unwrap_or_default();
    let namespace = owner.namespace().unwrap_or_default();
    let deleting = owner.meta().deletion_timestamp.is_some();
    let mut may_adopt = None;
    let mut ours = Vec::new();
    for object in candidates {
        let fit = fits(&object);
        let object_uid = object.uid().unwrap_or_default();
        let patch = match claim(&uid, deleting, object.meta(), fit) {
            Claim::Keep => {
                ours.push(object);
                continue;
            }
            Claim::Ignore => continue,
            Claim::Adopt => {
                if may_adopt.is_none() {
                    let fresh = Api::<K>::namespaced(client.clone(), &namespace).get_opt(&owner.name_any()).await?;
                    let lives = |k: K| k.uid().as_ref() == Some(&uid) && k.meta().deletion_timestamp.is_none();
                    may_adopt = Some(fresh.is_some_and(lives));
                }
                if may_adopt == Some(false) {
                    continue;
                }
                adopt_patch(&controller_reference(owner), &object_uid)
            }
            Claim::Release => release_patch(&uid, &object_uid),
        };
        let api = Api::<O>::namespaced(client.clone(), &namespace);
        match api.patch(&object.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(patched) if fit => ours.push(Arc::new(patched)),
            Ok(_) => {}
            // It is gone, or is another one of that name by now; the informer will say so. After a conflict
            // it may well not, so the pass has to come again.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 422) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ours)
}

/// The key of an object in queues and informers: namespace and name.
pub fn key<K: ResourceExt>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Wakes the owner of each object that changes; for an object that nobody controls, all owners that
/// would take it.
pub fn wake_owners<K, O>(objects: &Informer<O>, owners: &Informer<K>, queue: &Queue<(String, String)>, selects: impl Fn(&K, &O) -> bool + Send + Sync + 'static)
where
    K: Object,
    O: Object,
{
    let (owners, queue) = (owners.clone(), queue.clone());
    objects.on_change(move |change| owners_of(change, &owners, &selects).into_iter().for_each(|key| queue.add(key)));
}

/// The owners of an object that changes, before and after; for one that nobody controls, all owners
/// that would take it.
pub fn owners_of<K: Object, O: Object>(change: &Change<O>, owners: &Informer<K>, selects: &impl Fn(&K, &O) -> bool) -> Vec<(String, String)> {
    let mut keys = Vec::new();
    for object in [&change.old, &change.new].into_iter().flatten() {
        let namespace = object.meta().namespace.clone().unwrap_or_default();
        match controller_of(object.meta()) {
            Some(owner) if owner.kind == K::kind(&()) => keys.push((namespace, owner.name.clone())),
            Some(_) => {}
            None => keys.extend(owners.in_namespace(&namespace).iter().filter(|o| selects(o, object)).map(|o| key(o.as_ref()))),
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use crate::pod::Pod;
    use crate::testing;

    #[test]
    fn claims() {
        let free = ObjectMeta::default();
        let owned = |uid: &str| ObjectMeta {
            owner_references: Some(vec![OwnerReference { uid: uid.into(), controller: Some(true), ..Default::default() }]),
            ..ObjectMeta::default()
        };
        assert_eq!(claim("a", false, &free, true), Claim::Adopt);
        assert_eq!(claim("a", true, &free, true), Claim::Ignore);
        assert_eq!(claim("a", false, &free, false), Claim::Ignore);
        assert_eq!(claim("a", false, &owned("a"), true), Claim::Keep);
        assert_eq!(claim("a", false, &owned("a"), false), Claim::Release);
        assert_eq!(claim("a", false, &owned("b"), true), Claim::Ignore);
    }

    #[test]
    fn who_is_deleted_lets_nothing_go() {
        let owned = ObjectMeta { owner_references: Some(vec![OwnerReference { uid: "a".into(), controller: Some(true), ..Default::default() }]), ..ObjectMeta::default() };
        assert_eq!(claim("a", true, &owned, false), Claim::Ignore);
    }

    #[test]
    fn patches_are_of_that_very_object() {
        let reference = OwnerReference { api_version: "v1".into(), kind: "K".into(), name: "o".into(), uid: "a".into(), controller: Some(true), block_owner_deletion: None };
        let adopted = adopt_patch(&reference, "u");
        assert_eq!((&adopted["metadata"]["uid"], &adopted["metadata"]["ownerReferences"][0]["name"]), (&json!("u"), &json!("o")));
        assert_eq!(release_patch("a", "u"), json!({"metadata": {"uid": "u", "ownerReferences": [{"$patch": "delete", "uid": "a"}]}}));
    }

    #[tokio::test]
    async fn a_pod_wakes_its_owner_and_a_free_one_those_that_would_take_it() {
        let set = |name: &str| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name, "namespace": "n"}, "spec": {"selector": {}}});
        let sets = testing::informer::<ReplicaSet>(vec![set("a"), set("b")]).await;
        let pod = |namespace: &str, kind: Option<&str>| {
            let owners: Vec<Value> = kind.iter().map(|k| json!({"apiVersion": "apps/v1", "kind": k, "name": "o", "uid": "o", "controller": true})).collect();
            Arc::new(serde_json::from_value::<Pod>(json!({"metadata": {"name": "p", "namespace": namespace, "ownerReferences": owners}})).expect("a pod"))
        };
        let owners = |old: Option<Arc<Pod>>, new: Option<Arc<Pod>>| {
            let keys = owners_of(&Change { old, new }, &sets, &|set: &ReplicaSet, _: &Pod| set.name_any() == "b");
            keys.into_iter().map(|(namespace, name)| format!("{namespace}/{name}")).collect::<Vec<_>>()
        };
        assert_eq!(owners(None, Some(pod("n", Some("ReplicaSet")))), ["n/o"]);
        assert_eq!(owners(None, Some(pod("n", Some("DaemonSet")))), [] as [&str; 0], "it is somebody else's");
        assert_eq!(owners(None, Some(pod("n", None))), ["n/b"]);
        assert_eq!(owners(None, Some(pod("m", None))), [] as [&str; 0], "in another namespace");
        assert_eq!(owners(Some(pod("n", Some("ReplicaSet"))), Some(pod("n", None))), ["n/o", "n/b"], "who had it and who may have it");
    }
}
