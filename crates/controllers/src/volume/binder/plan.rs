//! What is to be done about one claim or one volume. Pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{self, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use reconcile::EventType::{self, Normal, Warning};
use rules::migration;
use rules::storage::{self, Site};

use super::recycle;

use crate::pod::Pod;

/// What is known beside the claim or volume itself.
#[derive(Default)]
pub struct World {
    pub volumes: Vec<Arc<PersistentVolume>>,
    pub classes: Vec<Arc<StorageClass>>,
    /// The pods of the claim's namespace.
    pub pods: Vec<Arc<Pod>>,
}

/// An event about the object that is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub kind: EventType,
    pub reason: &'static str,
    pub message: String,
}

fn note(kind: EventType, reason: &'static str, message: impl Into<String>) -> Option<Note> {
    Some(Note { kind, reason, message: message.into() })
}

/// What is to become of a claim.
#[derive(Debug, Clone, PartialEq)]
pub enum ClaimAction {
    /// It stays, or becomes, Pending; the event is told each time.
    Wait(Option<Note>),
    /// It and this volume are bound to each other.
    Bind(Arc<PersistentVolume>),
    /// It had a volume and has lost it; the event is told once.
    Lost(Note),
    /// It gets the default class.
    SetClass(String),
    /// This provisioner is asked for a volume.
    Provision(String),
    /// The event is told, nothing else changes.
    Tell(Note),
}

fn failed_binding(message: impl Into<String>) -> Option<Note> {
    note(Normal, "FailedBinding", message)
}

/// Decides on a claim.
pub fn plan_claim(claim: &PersistentVolumeClaim, world: &World) -> ClaimAction {
    if claim.annotations().contains_key(storage::BIND_COMPLETED) { bound_claim(claim, world) } else { unbound_claim(claim, world) }
}

fn unbound_claim(claim: &PersistentVolumeClaim, world: &World) -> ClaimAction {
    let named = storage::volume_name(claim);
    if named.is_empty() {
        return claim_without_volume(claim, world);
    }
    let Some(volume) = world.volumes.iter().find(|v| v.name_any() == named) else { return ClaimAction::Wait(None) };
    let taken = volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_some());
    if !taken {
        return match unsuitable(volume, claim) {
            Some(why) => ClaimAction::Wait(note(Warning, "VolumeMismatch", format!("Cannot bind to requested volume \"{named}\": {why}"))),
            None => ClaimAction::Bind(volume.clone()),
        };
    }
    if storage::is_bound_to(volume, claim) {
        return ClaimAction::Bind(volume.clone());
    }
    let message = format!("volume \"{named}\" already bound to a different claim.");
    ClaimAction::Wait(note(Warning, "FailedBinding", message))
}

fn claim_without_volume(claim: &PersistentVolumeClaim, world: &World) -> ClaimAction {
    let name = storage::claim_class(claim);
    let class = world.classes.iter().find(|c| !name.is_empty() && c.name_any() == name);
    let waits = class.is_some_and(|c| storage::waits_for_consumer(c));
    if let Some(volume) = storage::find_match(claim, &world.volumes, Site::Anywhere { waits }, &Default::default()) {
        return ClaimAction::Bind(volume);
    }
    if !storage::has_class(claim)
        && let Some(class) = storage::default_class(&world.classes)
    {
        return ClaimAction::SetClass(class.name_any());
    }
    if waits && !claim.annotations().contains_key(storage::SELECTED_NODE) {
        return ClaimAction::Wait(Some(first_consumer(claim, &world.pods)));
    }
    if name.is_empty() {
        return ClaimAction::Wait(failed_binding("no persistent volumes available for this claim and no storage class is set"));
    }
    match class {
        None => ClaimAction::Tell(Note {
            kind: Warning,
            reason: "ProvisioningFailed",
            message: format!("storageclass.storage.k8s.io \"{name}\" not found"),
        }),
        Some(class) if let Some(plugin) = migration::by_name(&class.provisioner) => ClaimAction::Provision(plugin.driver.into()),
        // What in-tree plug-ins made once and nobody has taken over.
        Some(class) if class.provisioner.starts_with("kubernetes.io/") => ClaimAction::Tell(Note {
            kind: Warning,
            reason: "ProvisioningFailed",
            message: format!("no volume plugin matched name: {}", class.provisioner),
        }),
        Some(class) => ClaimAction::Provision(class.provisioner.clone()),
    }
}

fn first_consumer(claim: &PersistentVolumeClaim, pods: &[Arc<Pod>]) -> Note {
    let name = claim.name_any();
    let waiting: Vec<String> = pods
        .iter()
        .filter(|p| !ended(p) && p.spec.as_ref().is_none_or(|s| s.node_name.as_deref().unwrap_or_default().is_empty()))
        .filter(|p| p.claims().contains(&name))
        .map(|p| p.name_any())
        .collect();
    let (reason, message) = match waiting.as_slice() {
        [] => ("WaitForFirstConsumer", "waiting for first consumer to be created before binding".to_string()),
        [one] => ("WaitForPodScheduled", format!("waiting for pod {one} to be scheduled")),
        many => ("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", many.join(","))),
    };
    Note { kind: Normal, reason, message }
}

/// Whether a pod has run to its end.
pub fn ended(pod: &Pod) -> bool {
    matches!(crate::pods::phase(pod), "Succeeded" | "Failed")
}

/// Why a claim cannot have the volume that it names.
fn unsuitable(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    if volume.metadata.deletion_timestamp.is_some() {
        return Some(format!("the volume is marked for deletion \"{}\"", volume.name_any()));
    }
    let why = if storage::capacity(volume) < storage::requested(claim) {
        "requested PV is too small"
    } else if storage::volume_class(volume) != storage::claim_class(claim) {
        "storageClassName does not match"
    } else if !storage::same_attributes(claim, volume) {
        "volumeAttributesClassName does not match"
    } else if !storage::same_mode(claim, volume) {
        "incompatible volumeMode"
    } else if !storage::has_access_modes(claim, volume) {
        "incompatible accessMode"
    } else {
        return None;
    };
    Some(why.to_string())
}

fn bound_claim(claim: &PersistentVolumeClaim, world: &World) -> ClaimAction {
    let lost = |reason, message: &str| ClaimAction::Lost(Note { kind: Warning, reason, message: message.into() });
    let named = storage::volume_name(claim);
    if named.is_empty() {
        return lost("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!");
    }
    let Some(volume) = world.volumes.iter().find(|v| v.name_any() == named) else {
        return lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!");
    };
    match volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) {
        Some(reference) if reference.uid != claim.metadata.uid => {
            lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
        }
        _ => ClaimAction::Bind(volume.clone()),
    }
}

/// What is to become of a volume.
#[derive(Debug, Clone, PartialEq)]
pub enum VolumeAction {
    /// Its phase is to be this.
    Phase(&'static str),
    /// It failed; the event is told once.
    Failed(Note),
    /// It is released from its claim: Available, and reserved only if it was before.
    Unbind(Option<Note>),
    /// Its claim's turn: they may be bound.
    Claim,
    /// The claim cannot have it: an event on each of them.
    Mismatch { volume: Note, claim: Note },
    /// A pod that wipes it is started.
    Recycle(Box<v1::Pod>),
    /// The pod that wiped it is removed.
    EndRecycler(Arc<Pod>),
    /// The event is told, nothing else changes.
    Tell(Note),
}

/// Decides on a volume. `claim` is the claim that it refers to by name, looked up without a doubt:
/// that there is none must be true now. `recycler` is the pod that wipes the volume.
pub fn plan_volume(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>, users: &[Arc<Pod>], recycler: Option<&Arc<Pod>>) -> Vec<VolumeAction> {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return vec![VolumeAction::Phase("Available")] };
    let uid = reference.uid.as_deref().unwrap_or_default();
    if uid.is_empty() {
        // Reserved, and the claim binds it when it comes.
        return vec![VolumeAction::Phase("Available"), VolumeAction::Claim];
    }
    let Some(claim) = claim.filter(|c| c.metadata.uid.as_deref() == Some(uid)) else {
        return released(volume, users, recycler);
    };
    let named = storage::volume_name(claim);
    if named == volume.name_any() {
        return vec![VolumeAction::Phase("Bound")];
    }
    if named.is_empty() {
        if storage::same_mode(claim, volume) {
            return vec![VolumeAction::Claim];
        }
        let tell = |message| Note { kind: Warning, reason: "VolumeMismatch", message };
        return vec![VolumeAction::Mismatch {
            volume: tell(format!("Cannot bind PersistentVolume to requested PersistentVolumeClaim \"{}\" due to incompatible volumeMode.", claim.name_any())),
            claim: tell(format!("Cannot bind PersistentVolume \"{}\" to requested PersistentVolumeClaim due to incompatible volumeMode.", volume.name_any())),
        }];
    }
    if volume.annotations().contains_key(storage::PROVISIONED_BY) && policy(volume) == "Delete" {
        return released(volume, users, recycler);
    }
    vec![VolumeAction::Unbind(None)]
}

fn policy(volume: &PersistentVolume) -> &str {
    volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

/// The claim is gone: what the reclaim policy says.
fn released(volume: &PersistentVolume, users: &[Arc<Pod>], recycler: Option<&Arc<Pod>>) -> Vec<VolumeAction> {
    if !matches!(storage::volume_phase(volume), "Released" | "Failed") {
        // The policy follows once that is written.
        return vec![VolumeAction::Phase("Released")];
    }
    if volume.annotations().get(migration::MIGRATED_TO).is_some_and(|driver| !driver.is_empty()) {
        // Its driver's provisioner sees to it, whatever the policy.
        return Vec::new();
    }
    match policy(volume) {
        "Retain" => Vec::new(),
        "Delete" => delete(volume).into_iter().collect(),
        "Recycle" => recycle::plan(volume, users, recycler),
        _ => vec![VolumeAction::Failed(Note {
            kind: Warning,
            reason: "VolumeUnknownReclaimPolicy",
            message: "Volume has unrecognized PersistentVolumeReclaimPolicy".into(),
        })],
    }
}

/// Volumes are deleted by those who provisioned them. What nobody did cannot be deleted from here: a
/// directory is on some node's disk, and a share somebody else's.
fn delete(volume: &PersistentVolume) -> Option<VolumeAction> {
    let spec = volume.spec.as_ref()?;
    let provisioner = volume.annotations().get(storage::PROVISIONED_BY).map(String::as_str).unwrap_or_default();
    let message = if provisioner.starts_with("kubernetes.io/") {
        format!("no volume plugin matched name: {provisioner}")
    } else if !provisioner.is_empty() || spec.csi.is_some() {
        return None;
    } else if let Some(source) = &spec.host_path {
        format!("hostPath {} is not deleted: a directory of a node is its owner's to delete", source.path)
    } else {
        format!("error getting deleter volume plugin for volume \"{}\": no deletable volume plugin matched", volume.name_any())
    };
    Some(VolumeAction::Failed(Note { kind: Warning, reason: "VolumeFailedDelete", message }))
}
