//! Volumes, claims and storage classes.

use serde_json::Value;

use super::{Warnings, annotation, list, nodes, text, whole_bytes};
use crate::field::Path;

pub(super) fn claim(spec: &Value, path: &Path, out: &mut Warnings) {
    for kind in ["requests", "limits"] {
        whole_bytes(&spec["resources"][kind], &path.child("resources").child(kind), "storage", out);
    }
}

/// The annotation that was a storage class's name.
pub(super) fn storage_class(object: &Value, out: &mut Warnings) {
    const KEY: &str = "volume.beta.kubernetes.io/storage-class";
    if annotation(object, KEY) {
        out.push(format!("metadata.annotations[{KEY}]: deprecated since v1.8; use \"storageClassName\" attribute instead"));
    }
}

pub(super) fn volume(volume: &Value, out: &mut Warnings) {
    const OLD: &[(&str, &str)] = &[
        ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
        ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ];
    const MOUNT: &str = "volume.beta.kubernetes.io/mount-options";
    let spec = &volume["spec"];
    storage_class(volume, out);
    if annotation(volume, MOUNT) {
        out.push(format!("metadata.annotations[{MOUNT}]: deprecated since v1.31; use \"mountOptions\" attribute instead"));
    }
    if text(spec, "persistentVolumeReclaimPolicy") == "Recycle" {
        out.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".into());
    }
    nodes::selector(&spec["nodeAffinity"]["required"], &Path::new("spec.nodeAffinity.required"), out);
    for (key, why) in OLD.iter().filter(|(key, _)| !spec[*key].is_null()) {
        out.push(format!("spec.{}: {why}", if *key == "storageos" { "storageOS" } else { key }));
    }
}

pub(super) fn driver(new: &Value, old: Option<&Value>, out: &mut Warnings) {
    let (spec, before) = (&new["spec"], old.map(|o| &o["spec"]["tokenRequests"]));
    if !list(spec, "tokenRequests").is_empty() && spec["serviceAccountTokenInSecrets"].is_null() && before != Some(&spec["tokenRequests"]) {
        out.push(
            "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes".into(),
        );
    }
}

pub(super) fn topologies(topologies: &[Value], out: &mut Warnings) {
    for (i, topology) in topologies.iter().enumerate() {
        for (j, e) in list(topology, "matchLabelExpressions").iter().enumerate() {
            if let Some(why) = nodes::old_label(text(e, "key")) {
                out.push(format!("{}: {why}", Path::new("allowedTopologies").index(i).child("matchLabelExpressions").index(j).child("key")));
            }
        }
    }
}
