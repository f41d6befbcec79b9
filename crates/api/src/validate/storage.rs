//! Volumes, claims and storage classes.

use super::at::{At, same};
use super::container::resource_amount;
use super::meta::label_selector;
use super::scheduling::node_selector;
use crate::names;
use crate::quantity::Quantity;
use serde_json::Value;

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];

pub fn access_modes(spec: &At<'_>, missing: &str) {
    let modes = spec.at("accessModes");
    if modes.is_empty() {
        modes.required(missing);
    }
    for m in modes.items() {
        m.named(modes.path.clone()).one_of_if_set(ACCESS_MODES);
    }
    let has = |n: &str| modes.items().any(|m| m.text() == n);
    if has("ReadWriteOncePod") && ACCESS_MODES[..3].iter().any(|m| has(m)) {
        modes.forbidden("may not use ReadWriteOncePod with other access modes");
    }
}

/// A claim's spec.
pub fn claim_spec(spec: &At<'_>) {
    access_modes(spec, "at least 1 access mode is required");
    label_selector(&spec.at("selector"));
    let size = spec.down(&["resources", "requests", "storage"]);
    let shown = size.named(spec.path.child("resources").key("storage"));
    match size.quantity() {
        None => shown.required(""),
        Some(q) if q.sign() <= 0 => shown.invalid_as(q.canonical(), "must be greater than zero"),
        Some(_) => resource_amount(&shown, "storage"),
    }
    spec.at("storageClassName").check_if_filled(names::dns1123_subdomain);
    spec.at("volumeMode").one_of_if_set(VOLUME_MODES);
    for k in ["dataSource", "dataSourceRef"] {
        let d = spec.at(k);
        if !d.set() {
            continue;
        }
        for n in ["name", "kind"] {
            if d.at(n).filled().is_none() {
                d.at(n).required("");
            }
        }
        if d.at("apiGroup").filled().is_none() && d.at("kind").text() != "PersistentVolumeClaim" {
            d.invalid_as(d.at("kind").text(), "must be 'PersistentVolumeClaim' when referencing the default apiGroup");
        }
        d.at("apiGroup").check_if_filled(names::dns1123_subdomain);
    }
    let (source, reference) = (spec.at("dataSource"), spec.at("dataSourceRef"));
    if source.set() && reference.set() && reference.at("namespace").filled().is_none() && !same(source.v, reference.v) {
        spec.invalid_as(source.v.clone(), "must match dataSourceRef");
    }
    spec.at("volumeAttributesClassName").check_if_filled(names::dns1123_subdomain);
}

/// A change of a claim.
pub fn claim_update(new: &At<'_>, old: &At<'_>) {
    let (spec, before) = (new.at("spec"), old.at("spec"));
    let mut munged = spec.v.clone();
    let bound = new.down(&["status", "phase"]).text() == "Bound";
    if let Some(m) = munged.as_object_mut() {
        let mut keep = |k: &str| match before.v.get(k) {
            Some(v) => drop(m.insert(k.to_owned(), v.clone())),
            None => drop(m.remove(k)),
        };
        if before.at("volumeName").filled().is_none() {
            keep("volumeName");
        }
        if bound {
            keep("volumeAttributesClassName");
        }
        // a default class may be given later
        if !before.at("storageClassName").set() {
            keep("storageClassName");
        }
        if bound && let Some(requests) = m.get_mut("resources").and_then(|r| r.get_mut("requests")).and_then(Value::as_object_mut) {
            let size = before.down(&["resources", "requests", "storage"]);
            requests.insert("storage".to_owned(), size.v.clone());
        }
    }
    if !same(&munged, before.v) {
        spec.forbidden("spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n");
    }
    let size = |a: &At<'_>| a.down(&["resources", "requests", "storage"]).quantity().unwrap_or_else(Quantity::zero);
    let capacity = old.down(&["status", "capacity", "storage"]).quantity().unwrap_or_else(Quantity::zero);
    if size(&spec) < size(&before) && size(&spec) <= capacity {
        spec.down(&["resources", "requests", "storage"]).forbidden("field can not be less than status.capacity");
    }
    spec.at("volumeMode").named("volumeMode".into()).immutable(&before.at("volumeMode"));
}

const SOURCES: &[&str] = &[
    "hostPath", "gcePersistentDisk", "awsElasticBlockStore", "glusterfs", "flocker", "nfs", "rbd", "quobyte", "cephfs", "iscsi",
    "cinder", "fc", "flexVolume", "azureFile", "vsphereVolume", "photonPersistentDisk", "portworxVolume", "azureDisk", "scaleIO",
    "local", "storageos", "csi",
];

/// A volume's spec.
pub fn volume_spec(spec: &At<'_>) {
    access_modes(spec, "");
    let capacity = spec.at("capacity");
    if capacity.is_empty() {
        capacity.required("");
    }
    if !capacity.at("storage").set() || capacity.len() > 1 {
        capacity.not_supported(&["storage"]);
    }
    for (k, q) in capacity.entries() {
        match q.quantity() {
            Some(n) if n.sign() <= 0 => q.invalid_as(n.canonical(), "must be greater than zero"),
            _ => resource_amount(&q, k),
        }
    }
    let reclaim = spec.at("persistentVolumeReclaimPolicy");
    if reclaim.filled().is_some() {
        reclaim.one_of_if_set(&["Delete", "Recycle", "Retain"]);
    }
    let affinity = spec.down(&["nodeAffinity", "required"]);
    if spec.at("nodeAffinity").set() {
        if affinity.set() {
            node_selector(&affinity);
        } else {
            affinity.required("must specify required node constraints");
        }
    }
    let mut found = false;
    for k in SOURCES.iter().filter(|k| spec.at(k).set()) {
        if found {
            spec.at(k).forbidden("may not specify more than 1 volume type");
        }
        found = true;
    }
    if !found {
        spec.required("must specify a volume type");
    }
    if let Some(kind) = SOURCES.iter().find(|k| spec.at(k).set()) {
        match *kind {
            "hostPath" | "nfs" => super::volumes::source(spec, kind),
            "csi" | "local" => {}
            kind => super::sources::source(spec, kind, true),
        }
    }
    if reclaim.text() == "Recycle" && spec.down(&["hostPath", "path"]).filled().is_some_and(is_root) {
        reclaim.forbidden("may not be 'recycle' for a hostPath mount of '/'");
    }
    if spec.at("csi").set() {
        super::volumes::source(spec, "csi");
        let handle = spec.down(&["csi", "volumeHandle"]);
        if handle.filled().is_none() {
            handle.required("");
        }
    }
    if spec.at("local").set() {
        let path = spec.down(&["local", "path"]);
        match path.filled() {
            None => path.required(""),
            Some(_) => super::volumes::no_backsteps(&path),
        }
        if !spec.at("nodeAffinity").set() {
            spec.at("nodeAffinity").required("Local volume requires node affinity");
        }
    }
    spec.at("storageClassName").check_if_filled(names::dns1123_subdomain);
    spec.at("volumeMode").one_of_if_set(VOLUME_MODES);
}

/// Whether a path is `/`, however it is written.
fn is_root(path: &str) -> bool {
    path.starts_with('/') && path.split('/').all(|p| matches!(p, "" | "."))
}

/// A change of a volume.
pub fn volume_update(new: &At<'_>, old: &At<'_>) {
    let (spec, before) = (new.at("spec"), old.at("spec"));
    if SOURCES.iter().any(|k| !same(spec.at(k).v, before.at(k).v)) {
        let at = spec.named(spec.path.child("persistentvolumesource"));
        at.forbidden("spec.persistentvolumesource is immutable after creation\n");
    }
    spec.at("volumeMode").named("volumeMode".into()).immutable(&before.at("volumeMode"));
    // Once it is said where a volume is, it stays there.
    if before.at("nodeAffinity").set() && !same(spec.at("nodeAffinity").v, before.at("nodeAffinity").v) {
        let at = spec.at("nodeAffinity").named("nodeAffinity".into());
        at.invalid("field is immutable, except for updating from beta label to GA");
    }
}

/// A storage class.
pub fn storage_class(at: &At<'_>) {
    let provisioner = at.at("provisioner");
    match provisioner.filled() {
        None => provisioner.required(""),
        Some(p) => {
            for m in names::qualified_name(&p.to_lowercase()) {
                provisioner.invalid_as(p.to_lowercase(), m);
            }
        }
    }
    super::drivers::parameters(&at.at("parameters"));
    let reclaim = at.at("reclaimPolicy");
    if reclaim.filled().is_some() {
        reclaim.one_of_if_set(&["Delete", "Retain"]);
    }
    let mode = at.at("volumeBindingMode");
    if mode.set() {
        mode.one_of_if_set(&["Immediate", "WaitForFirstConsumer"]);
    } else {
        mode.required("");
    }
}

/// A change of a storage class.
pub fn storage_class_update(new: &At<'_>, old: &At<'_>) {
    for k in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
        new.at(k).immutable(&old.at(k));
    }
}
