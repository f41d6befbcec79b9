//! persistentvolume-expander: claims that want more than they have. No volume that is left to
//! Kubernetes itself can be expanded, CSI drivers bring their own resizer: so the claim is told that
//! it waits for one, as upstream does.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use kube::api::Api;
use reconcile::EventType::{self, Normal, Warning};
use reconcile::{Queue, Recorder, Reference, Requeue, run_workers};
use rules::storage;

use crate::Context;

/// Whether a claim wants to grow beyond what it has.
pub fn wants_more(claim: &PersistentVolumeClaim) -> bool {
    let has = storage::storage(claim.status.as_ref().and_then(|s| s.capacity.as_ref()));
    claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound") && storage::requested(claim) > has
}

/// The type of the event for a claim that wants more and its volume; nothing when the two do not belong together.
pub fn plan(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<EventType> {
    let spec = volume.spec.as_ref()?;
    let bound = spec.claim_ref.as_ref().is_some_and(|r| r.uid == claim.metadata.uid);
    // A driver may be on its way; for the others there is none.
    (bound && wants_more(claim)).then_some(if spec.csi.is_some() { Normal } else { Warning })
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
            let Some(volume) = Api::<PersistentVolume>::all(client).get_opt(storage::volume_name(&claim)).await? else { return Ok(Requeue::No) };
            if let Some(kind) = plan(&claim, &volume) {
                recorder.event(&Reference::of(claim.as_ref()), kind, "ExternalExpanding", "waiting for an external controller to expand this PVC");
            }
            Ok::<_, kube::Error>(Requeue::No)
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
        let driver = || json!({"csi": {"driver": "d", "volumeHandle": "h"}});
        assert_eq!(plan(&claim("Bound", "2Gi"), &volume("u", driver())), Some(Normal));
        assert_eq!(plan(&claim("Bound", "2Gi"), &volume("u", json!({"hostPath": {"path": "/p"}}))), Some(Warning));
        assert_eq!(plan(&claim("Bound", "1024Mi"), &volume("u", driver())), None);
        assert_eq!(plan(&claim("Pending", "2Gi"), &volume("u", driver())), None);
        assert_eq!(plan(&claim("Bound", "2Gi"), &volume("other", driver())), None);
    }
}
