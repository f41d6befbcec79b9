//! The objects as they are to be written, or nothing when they are so already. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{Resource, ResourceExt};
use rules::{migration, storage};

const PRE_RESIZE: &str = "volume.alpha.kubernetes.io/pre-resize-capacity";
/// On a volume of ours: it is not to go before what it stands for has been deleted.
const OUR_PROTECTION: &str = "kubernetes.io/pv-controller";
/// The same, of provisioners outside.
const THEIR_PROTECTION: &str = "external-provisioner.volume.kubernetes.io/finalizer";

fn annotate<K: ResourceExt>(object: &mut K, key: &str, value: &str) {
    object.annotations_mut().insert(key.into(), value.into());
}

/// The reference of a claim as volumes hold it.
pub fn claim_reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        api_version: Some(PersistentVolumeClaim::api_version(&()).into_owned()),
        kind: Some(PersistentVolumeClaim::kind(&()).into_owned()),
        namespace: claim.namespace(),
        name: Some(claim.name_any()),
        uid: claim.uid(),
        resource_version: claim.resource_version(),
        field_path: None,
    }
}

/// The volume, bound to the claim.
pub fn volume_to_claim(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<PersistentVolume> {
    let reserved = storage::is_bound_to(volume, claim);
    let whole = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).is_some_and(|r| r.uid == claim.metadata.uid && r.name == claim.metadata.name && r.namespace == claim.metadata.namespace);
    let marked = reserved || volume.annotations().contains_key(storage::BOUND_BY_CONTROLLER);
    if whole && marked {
        return None;
    }
    let mut new = volume.clone();
    if !whole {
        new.spec.get_or_insert_default().claim_ref = Some(claim_reference(claim));
    }
    if !marked {
        annotate(&mut new, storage::BOUND_BY_CONTROLLER, "yes");
    }
    Some(new)
}

/// The claim, bound to the volume.
pub fn claim_to_volume(claim: &PersistentVolumeClaim, volume: &str) -> Option<PersistentVolumeClaim> {
    let mut new = claim.clone();
    if storage::volume_name(claim) != volume {
        new.spec.get_or_insert_default().volume_name = Some(volume.into());
        if !claim.annotations().contains_key(storage::BOUND_BY_CONTROLLER) {
            annotate(&mut new, storage::BOUND_BY_CONTROLLER, "yes");
        }
    } else if claim.annotations().contains_key(storage::BIND_COMPLETED) {
        return None;
    }
    annotate(&mut new, storage::BIND_COMPLETED, "yes");
    Some(new)
}

/// The claim with this phase, and with what it has of the volume.
pub fn claim_status(claim: &PersistentVolumeClaim, phase: &str, volume: Option<&PersistentVolume>) -> Option<PersistentVolumeClaim> {
    let mut new = claim.clone();
    let old = claim.status.clone().unwrap_or_default();
    let status = new.status.get_or_insert_default();
    let was = status.phase.replace(phase.into());
    match volume {
        None => {
            status.access_modes = None;
            status.capacity = None;
            status.current_volume_attributes_class_name = None;
        }
        Some(volume) => {
            let spec = volume.spec.clone().unwrap_or_default();
            status.access_modes = spec.access_modes;
            // Later it is the expander's.
            if was.as_deref() != Some(phase) {
                let before = volume.annotations().get(PRE_RESIZE).filter(|p| api::quantity::Quantity::parse(p).is_ok());
                match before {
                    Some(size) => drop(status.capacity.get_or_insert_with(BTreeMap::new).insert("storage".into(), Quantity(size.clone()))),
                    None => status.capacity = spec.capacity,
                }
            }
            if was.as_deref() == Some("Pending") && phase == "Bound" {
                status.current_volume_attributes_class_name = spec.volume_attributes_class_name;
            }
        }
    }
    (*status != old).then_some(new)
}

/// The volume with this phase.
pub fn volume_phase(volume: &PersistentVolume, phase: &str, message: &str) -> Option<PersistentVolume> {
    if storage::volume_phase(volume) == phase {
        return None;
    }
    let mut new = volume.clone();
    let status = new.status.get_or_insert_default();
    status.phase = Some(phase.into());
    status.message = Some(message.to_string()).filter(|m| !m.is_empty());
    Some(new)
}

/// The volume without its claim: free for anyone, unless somebody had reserved it by name.
pub fn unbound(volume: &PersistentVolume) -> PersistentVolume {
    let mut new = volume.clone();
    let ours = new.annotations_mut().remove(storage::BOUND_BY_CONTROLLER).is_some();
    let spec = new.spec.get_or_insert_default();
    if ours {
        spec.claim_ref = None;
    } else if let Some(reference) = &mut spec.claim_ref {
        reference.uid = None;
    }
    new
}

/// The claim of the default class.
pub fn with_class(claim: &PersistentVolumeClaim, class: &str) -> PersistentVolumeClaim {
    let mut new = claim.clone();
    new.spec.get_or_insert_default().storage_class_name = Some(class.into());
    new
}

/// The claim that asks a provisioner for its volume.
pub fn with_provisioner(claim: &PersistentVolumeClaim, provisioner: &str) -> Option<PersistentVolumeClaim> {
    if claim.annotations().get(storage::PROVISIONER).is_some_and(|p| p == provisioner) {
        return None;
    }
    let mut new = claim.clone();
    annotate(&mut new, storage::PROVISIONER, provisioner);
    annotate(&mut new, storage::BETA_PROVISIONER, provisioner);
    hand_over(new.annotations_mut(), provisioner);
    Some(new)
}

/// Notes the driver that has taken over from a provisioner, or that none has. Whether that was news.
fn hand_over(annotations: &mut BTreeMap<String, String>, provisioner: &str) -> bool {
    let noted = annotations.get(migration::MIGRATED_TO).map(String::as_str).unwrap_or_default();
    match migration::by_name(provisioner) {
        Some(plugin) if noted != plugin.driver => annotations.insert(migration::MIGRATED_TO.into(), plugin.driver.into()),
        None if !noted.is_empty() => annotations.remove(migration::MIGRATED_TO),
        _ => return false,
    };
    true
}

/// The claim with a note of the driver that has taken over from its provisioner.
pub fn handed_over_claim(claim: &PersistentVolumeClaim) -> Option<PersistentVolumeClaim> {
    let annotation = |key| claim.annotations().get(key);
    let provisioner = annotation(storage::PROVISIONER).or_else(|| annotation(storage::BETA_PROVISIONER))?;
    let mut annotations = claim.annotations().clone();
    hand_over(&mut annotations, provisioner).then(|| {
        let mut new = claim.clone();
        new.metadata.annotations = Some(annotations);
        new
    })
}

/// The volume with a note of the driver that has taken over from its provisioner, and with the finalizers
/// of whoever is to delete it.
pub fn handed_over_volume(volume: &PersistentVolume) -> Option<PersistentVolume> {
    let provisioner = volume.annotations().get(storage::PROVISIONED_BY)?;
    let mut annotations = volume.annotations().clone();
    let mut finalizers = volume.finalizers().to_vec();
    let noted = hand_over(&mut annotations, provisioner);
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref()).unwrap_or_default();
    if migration::by_name(provisioner).is_some() {
        finalizers.retain(|f| f != OUR_PROTECTION);
    } else if provisioner.starts_with("kubernetes.io/") {
        match policy {
            "Delete" if !finalizers.iter().any(|f| f == OUR_PROTECTION) => finalizers.push(OUR_PROTECTION.into()),
            "Retain" | "Recycle" => finalizers.retain(|f| f != OUR_PROTECTION),
            _ => {}
        }
        finalizers.retain(|f| f != THEIR_PROTECTION);
    }
    if !noted && finalizers == volume.finalizers() {
        return None;
    }
    let mut new = volume.clone();
    new.metadata.annotations = Some(annotations);
    new.metadata.finalizers = Some(finalizers).filter(|f| !f.is_empty());
    Some(new)
}
