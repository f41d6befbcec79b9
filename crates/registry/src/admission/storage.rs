//! The plug-ins of storage: what is in use is not removed, and only what can grow is made larger.

use api::quantity::Quantity;
use apiserver::types::Status;
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use serde_json::Value;

use super::{forbidden, is};
use crate::util::{STORAGE_CLASSES, flag, list, object, text, texts};

/// New claims, volumes and VolumeAttributesClasses get the finalizer that their protection controllers remove.
pub(super) struct StorageObjectInUseProtection;

#[async_trait]
impl Admission for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attributes: &Attributes<'_>, it: &mut Value) -> Result<(), Status> {
        let finalizer = if is(attributes, "", "persistentvolumeclaims") {
            "kubernetes.io/pvc-protection"
        } else if is(attributes, "", "persistentvolumes") {
            "kubernetes.io/pv-protection"
        } else if is(attributes, "storage.k8s.io", "volumeattributesclasses") {
            "kubernetes.io/vac-protection"
        } else {
            return Ok(());
        };
        if !texts(it, "/metadata/finalizers").any(|f| f == finalizer) {
            list(object(it, "metadata"), "finalizers").push(finalizer.into());
        }
        Ok(())
    }
}

/// Claims grow only once they are bound, and where their class says that they can.
pub(super) struct PersistentVolumeClaimResize;

#[async_trait]
impl Admission for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn validate(&self, attributes: &Attributes<'_>, claim: Option<&Value>) -> Result<(), Status> {
        let (Some(new), Some(old)) = (claim, attributes.old) else { return Ok(()) };
        let size = |c: &Value| c.pointer("/spec/resources/requests/storage").and_then(|q| Quantity::from_value(q).ok()).unwrap_or_else(Quantity::zero);
        if !is(attributes, "", "persistentvolumeclaims") || size(new) <= size(old) {
            return Ok(());
        }
        if text(old, "/status/phase") != "Bound" {
            return Err(forbidden(attributes, claim, "Only bound persistent volume claims can be expanded"));
        }
        let class = class_of(new);
        let grows = !class.is_empty()
            && class == class_of(old)
            && attributes.ctx.backend.reader.get(&STORAGE_CLASSES, "", class).is_some_and(|c| flag(&c, "/allowVolumeExpansion"));
        if grows {
            return Ok(());
        }
        let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
        Err(forbidden(attributes, claim, why))
    }
}

fn class_of(claim: &Value) -> &str {
    match claim.pointer("/metadata/annotations/volume.beta.kubernetes.io~1storage-class").and_then(Value::as_str) {
        Some(class) => class,
        None => text(claim, "/spec/storageClassName"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use crate::util::{PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, PODS};
    use apiserver::UserInfo;
    use serde_json::json;

    #[test]
    fn storage_is_protected_from_its_creation() {
        let objects = Objects::new();
        let finalizers = |resource, mut it: Value| {
            let ctx = objects.ctx(resource, "a", "", UserInfo::default());
            let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
            block_on(StorageObjectInUseProtection.admit(&attributes, &mut it)).unwrap();
            it["metadata"]["finalizers"].clone()
        };
        assert_eq!(finalizers(&PERSISTENT_VOLUMES, json!({"metadata": {"name": "v"}})), json!(["kubernetes.io/pv-protection"]));
        let claim = json!({"metadata": {"name": "c", "finalizers": ["x", "kubernetes.io/pvc-protection"]}});
        assert_eq!(finalizers(&PERSISTENT_VOLUME_CLAIMS, claim), json!(["x", "kubernetes.io/pvc-protection"]));
        assert_eq!(finalizers(&PODS, json!({"metadata": {"name": "p"}})), Value::Null);
    }

    #[test]
    fn claims_grow_where_their_class_lets_them() {
        let objects = Objects::new();
        objects.put(&STORAGE_CLASSES, json!({"metadata": {"name": "grows"}, "allowVolumeExpansion": true}));
        objects.put(&STORAGE_CLASSES, json!({"metadata": {"name": "fixed"}}));
        let ctx = objects.ctx(&PERSISTENT_VOLUME_CLAIMS, "a", "c", UserInfo::default());
        let claim = |class: &str, size: &str, phase: &str| {
            json!({"metadata": {"name": "c"}, "spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}}, "status": {"phase": phase}})
        };
        let change = |class: &str, phase: &str, to: &str| {
            let old = claim(class, "1Gi", phase);
            let attributes = Attributes { ctx: &ctx, operation: Operation::Update, old: Some(&old), options: &Value::Null };
            block_on(PersistentVolumeClaimResize.validate(&attributes, Some(&claim(class, to, phase)))).map_err(|s| s.message)
        };
        assert_eq!(change("grows", "Bound", "2Gi"), Ok(()));
        assert_eq!(change("fixed", "Bound", "1024Mi"), Ok(()), "the same size");
        let refused = "persistentvolumeclaims \"c\" is forbidden: only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
        for class in ["fixed", "", "none"] {
            assert_eq!(change(class, "Bound", "2Gi").unwrap_err(), refused);
        }
        assert_eq!(change("grows", "Pending", "2Gi").unwrap_err(), "persistentvolumeclaims \"c\" is forbidden: Only bound persistent volume claims can be expanded");
    }
}
