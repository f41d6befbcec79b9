//! The reclaim policy Recycle: a pod removes what is in the volume. Deprecated upstream, and kept to
//! what upstream recycles, hostPath and NFS. Pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{self, PersistentVolume};
use kube::ResourceExt;
use reconcile::EventType::{Normal, Warning};
use serde_json::json;

use super::plan::{Note, VolumeAction, ended};

use crate::pod::Pod;

/// Where recyclers run.
pub const NAMESPACE: &str = "default";
const IMAGE: &str = "registry.k8s.io/build-image/debian-base:bookworm-v1.0.6";
const SCRUB: &str = "test -e /scrub && find /scrub -mindepth 1 -delete && test -z \"$(ls -A /scrub)\" || exit 1";

/// The name of the pod that wipes a volume.
pub fn name(volume: &str) -> String {
    format!("recycler-for-{volume}")
}

/// Decides on a released volume. `users` are pods that use its former claim's name.
pub fn plan(volume: &PersistentVolume, users: &[Arc<Pod>], recycler: Option<&Arc<Pod>>) -> Vec<VolumeAction> {
    let failed = |message: String| VolumeAction::Failed(Note { kind: Warning, reason: "VolumeFailedRecycle", message });
    let running: Vec<String> = users.iter().filter(|p| !ended(p)).map(|p| format!("{}/{}", p.namespace().unwrap_or_default(), p.name_any())).collect();
    if !running.is_empty() {
        let message = format!("Volume is used by pods: {}", running.join(","));
        return vec![VolumeAction::Tell(Note { kind: Normal, reason: "VolumeFailedRecycle", message })];
    }
    match recycler {
        Some(pod) if pod.metadata.deletion_timestamp.is_some() => Vec::new(),
        Some(pod) => match crate::pods::phase(pod) {
            "Succeeded" => vec![
                VolumeAction::EndRecycler(pod.clone()),
                VolumeAction::Unbind(Some(Note { kind: Normal, reason: "VolumeRecycled", message: "Volume recycled".into() })),
            ],
            "Failed" => {
                let message = pod.status.as_ref().and_then(|s| s.message.clone()).unwrap_or_else(|| "pod failed, pod.Status.Message unknown".into());
                vec![VolumeAction::EndRecycler(pod.clone()), failed(format!("Recycle failed: failed to recycle volume: {message}"))]
            }
            _ => Vec::new(),
        },
        None => match pod(volume) {
            Some(pod) => vec![VolumeAction::Recycle(Box::new(pod))],
            None => vec![failed("No recycler plugin found for the volume!".into())],
        },
    }
}

fn pod(volume: &PersistentVolume) -> Option<v1::Pod> {
    let spec = volume.spec.as_ref()?;
    let (source, least) = if let Some(path) = &spec.host_path {
        (json!({"name": "vol", "hostPath": {"path": path.path}}), 60)
    } else if let Some(nfs) = &spec.nfs {
        (json!({"name": "vol", "nfs": nfs}), 300)
    } else {
        return None;
    };
    // Half a minute for each gibibyte.
    let deadline = least.max(30 * (rules::storage::capacity(volume).value() >> 30));
    let pod = json!({
        "metadata": {"name": name(&volume.name_any()), "namespace": NAMESPACE},
        "spec": {
            "activeDeadlineSeconds": deadline, "restartPolicy": "Never", "volumes": [source],
            "containers": [{"name": "pv-recycler", "image": IMAGE, "command": ["/bin/sh"], "args": ["-c", SCRUB],
                "volumeMounts": [{"name": "vol", "mountPath": "/scrub"}]}],
        },
    });
    serde_json::from_value(pod).ok()
}
