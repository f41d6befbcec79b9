//! persistentvolume-expander: claims that want more than they have. No volume that is left to
//! Kubernetes itself can be expanded, CSI drivers bring their own resizer: so the claim is told that
//! it waits for one, as upstream does, and which one when its volume was handed over to a driver.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use reconcile::EventType::{self, Normal, Warning};
use reconcile::{Queue, Recorder, Reference, Requeue, run_workers};
use rules::{migration, storage};
use serde_json::json;

use crate::{Context, pods};

/// On a claim: the driver whose resizer is to expand it.
const RESIZER: &str = "volume.kubernetes.io/storage-resizer";

/// Whether a claim wants to grow beyond what it has.
pub fn wants_more(claim: &PersistentVolumeClaim) -> bool {
    let has = storage::storage(claim.status.as_ref().and_then(|s| s.capacity.as_ref()));
    claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound") && storage::requested(claim) > has
}

/// What a claim is told that waits for a resizer.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    pub kind: EventType,
    pub message: String,
    /// The driver whose resizer is meant, where that is known and not on the claim yet.
    pub resizer: Option<&'static str>,
}

/// What is told to a claim that wants more; nothing when it and the volume do not belong together.
pub fn plan(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<Told> {
    let spec = volume.spec.as_ref()?;
    let bound = spec.claim_ref.as_ref().is_some_and(|r| r.uid == claim.metadata.uid);
    if !bound || !wants_more(claim) {
        return None;
    }
    if let Some(plugin) = migration::of_volume(volume) {
        let message = format!("CSI migration enabled for {}; waiting for external resizer to expand the pvc", plugin.name);
        let named = claim.annotations().get(RESIZER).is_some_and(|r| r == plugin.driver);
        return Some(Told { kind: Normal, message, resizer: (!named).then_some(plugin.driver) });
    }
    // A driver may be on its way; for the others there is none.
    let kind = if spec.csi.is_some() { Normal } else { Warning };
    Some(Told { kind, message: "waiting for an external controller to expand this PVC".into(), resizer: None })
}

/// Starts the controller.
pub fn start(context: &Context) {
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let queue = Queue::<(String, String)>::new();
    let q = queue.clone();
    claims.on_change(move |change| {
        let Some(claim) = change.new.as_ref().filter(|c| wants_more(c)) else { return };
        // Told once for each size.
        if change.old.as_ref().is_none_or(|old| storage::requested(old) != storage::requested(claim)) {
            q.add((claim.namespace().unwrap_or_default(), claim.name_any()));
        }
    });
    let client = context.client.clone();
    let recorder = Recorder::new(&context.tasks, client.clone(), "volume_expand", None);
    run_workers(&context.tasks, "persistentvolume-expander", 1, queue, move |(namespace, name): (String, String)| {
        let (client, claims, recorder) = (client.clone(), claims.clone(), recorder.clone());
        async move {
            let Some(claim) = claims.get(&namespace, &name) else { return Ok(Requeue::No) };
            let Some(volume) = Api::<PersistentVolume>::all(client.clone()).get_opt(storage::volume_name(&claim)).await? else { return Ok(Requeue::No) };
            let Some(told) = plan(&claim, &volume) else { return Ok(Requeue::No) };
            let named = match told.resizer {
                // Of a claim, this controller may write the status alone; upstream writes the annotation there, too.
                Some(driver) => {
                    let patch = json!({"metadata": {"resourceVersion": claim.metadata.resource_version, "annotations": {RESIZER: driver}}});
                    let api = Api::<PersistentVolumeClaim>::namespaced(client, &namespace);
                    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
                }
                None => Ok(()),
            };
            if named.is_ok() {
                recorder.event(&Reference::of(claim.as_ref()), told.kind, "ExternalExpanding", told.message);
            }
            pods::again_on_conflict(named.map(|()| Requeue::No))
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn only_a_bound_claim_that_wants_more_is_told() {
        let claim = |phase: &str, wants: &str| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"resources": {"requests": {"storage": wants}}},
                "status": {"phase": phase, "capacity": {"storage": "1Gi"}}})).expect("a claim")
        };
        let volume = |uid: &str, source: Value| -> PersistentVolume {
            let mut spec = json!({"claimRef": {"uid": uid}});
            spec.as_object_mut().expect("an object").extend(source.as_object().expect("an object").clone());
            serde_json::from_value(json!({"spec": spec})).expect("a volume")
        };
        let told = |claim: &PersistentVolumeClaim, volume: &PersistentVolume| plan(claim, volume).map(|t| (t.kind, t.message, t.resizer));
        let waiting = |kind| Some((kind, "waiting for an external controller to expand this PVC".to_string(), None));
        let driver = || json!({"csi": {"driver": "d", "volumeHandle": "h"}});
        assert_eq!(told(&claim("Bound", "2Gi"), &volume("u", driver())), waiting(Normal));
        assert_eq!(told(&claim("Bound", "2Gi"), &volume("u", json!({"hostPath": {"path": "/p"}}))), waiting(Warning));
        // A volume that was handed over: its driver's resizer is named, once.
        let disk = || volume("u", json!({"gcePersistentDisk": {"pdName": "d"}}));
        let message = "CSI migration enabled for kubernetes.io/gce-pd; waiting for external resizer to expand the pvc".to_string();
        assert_eq!(told(&claim("Bound", "2Gi"), &disk()), Some((Normal, message.clone(), Some("pd.csi.storage.gke.io"))));
        let mut named = claim("Bound", "2Gi");
        named.annotations_mut().insert(RESIZER.into(), "pd.csi.storage.gke.io".into());
        assert_eq!(told(&named, &disk()), Some((Normal, message, None)));
        for source in [driver(), json!({"gcePersistentDisk": {"pdName": "d"}})] {
            assert_eq!(plan(&claim("Bound", "1024Mi"), &volume("u", source.clone())), None);
            assert_eq!(plan(&claim("Pending", "2Gi"), &volume("u", source.clone())), None);
            assert_eq!(plan(&claim("Bound", "2Gi"), &volume("other", source)), None);
        }
    }
}
