//! Owner references: who controls an object, and what a controller may adopt or must release.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
