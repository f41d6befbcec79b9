//! Volumes, claims and storage classes.

use super::at::{At, same};
use super::container::resource_amount;
use super::meta::label_selector;
use super::scheduling::node_selector;
use crate::names;
use crate::quantity::Quantity;
use crate::seen::Seen;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};

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
    let elsewhere = reference.at("namespace").filled().is_some();
    let differs = || ["apiGroup", "kind", "name"].iter().any(|k| source.v.get(k) != reference.v.get(k));
    if source.set() && reference.set() && elsewhere {
        spec.invalid_as(source.v.clone(), "may not be specified when dataSourceRef.namespace is specified");
    } else if source.set() && reference.set() && differs() {
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

/// In the order in which they are looked at.
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
    for (_, q) in capacity.entries() {
        let Some(n) = q.quantity() else { continue };
        valid_amount(&q, &n);
        if n.sign() <= 0 {
            q.invalid_as(n.canonical(), "must be greater than zero");
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
    for kind in SOURCES.iter().filter(|k| spec.at(k).set()) {
        // which of all does not ask for others
        if found && *kind != "flexVolume" {
            spec.at(if *kind == "cephfs" { "cephFS" } else { kind }).forbidden("may not specify more than 1 volume type");
        } else {
            volume_source(spec, kind);
        }
        found = true;
    }
    if !found {
        spec.required("must specify a volume type");
    }
    if reclaim.text() == "Recycle" && spec.down(&["hostPath", "path"]).filled().is_some_and(is_root) {
        reclaim.forbidden("may not be 'recycle' for a hostPath mount of '/'");
    }
    spec.at("storageClassName").check_if_filled(names::dns1123_subdomain);
    spec.at("volumeMode").one_of_if_set(VOLUME_MODES);
    let class = spec.at("volumeAttributesClassName");
    if class.set() {
        match class.filled() {
            None => class.required("an empty string is disallowed"),
            Some(_) => class.check(names::dns1123_subdomain),
        }
        if !spec.at("csi").set() {
            spec.at("csi").required("has to be specified when using volumeAttributesClassName");
        }
    }
}

fn volume_source(spec: &At<'_>, kind: &str) {
    let at = spec.at(kind);
    match kind {
        "hostPath" | "nfs" => super::volumes::source(spec, kind),
        "csi" => {
            super::volumes::csi_driver(&at.at("driver"));
            if at.at("volumeHandle").filled().is_none() {
                at.at("volumeHandle").required("");
            }
            for secret in ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"] {
                let secret = at.at(secret);
                if !secret.set() {
                    continue;
                }
                for (field, check) in [("name", names::dns1123_subdomain as fn(&str) -> Vec<String>), ("namespace", names::dns1123_label)] {
                    match secret.at(field).filled() {
                        None => secret.at(field).required(""),
                        Some(_) => secret.at(field).check(check),
                    }
                }
            }
        }
        "local" => {
            match at.at("path").filled() {
                None => at.at("path").required(""),
                Some(_) => super::volumes::no_backsteps(&at.at("path")),
            }
            if !spec.at("nodeAffinity").set() {
                spec.at("nodeAffinity").required("Local volume requires node affinity");
            }
        }
        kind => super::sources::source(spec, kind, true),
    }
}

fn valid_amount(at: &At<'_>, amount: &Quantity) -> bool {
    let good = amount.sign() >= 0;
    if !good {
        at.invalid_as(amount.value(), "must be a valid resource quantity");
    }
    good
}

/// The status of a claim: what it has got, and how far its growing is.
pub fn claim_status(at: &At<'_>) {
    const STATES: &[&str] =
        &["ControllerResizeInProgress", "ControllerResizeInfeasible", "NodeResizeInProgress", "NodeResizeInfeasible", "NodeResizePending"];
    let status = at.at("status");
    if at.down(&["spec", "accessModes"]).is_empty() {
        at.named("Spec".into()).at("accessModes").required("");
    }
    for (_, q) in status.at("capacity").entries() {
        if let Some(n) = q.quantity() {
            valid_amount(&q, &n);
        }
    }
    let states = status.at("allocatedResourceStatuses");
    for (name, state) in states.entries() {
        claim_resource(&states, name);
        if !STATES.contains(&state.text()) {
            states.push(crate::field::FieldError::not_supported(&states.path, name, STATES));
        }
    }
    let amounts = status.at("allocatedResources");
    for (name, q) in amounts.entries() {
        if let Some(n) = q.quantity()
            && claim_resource(&amounts, name)
            && valid_amount(&q, &n)
        {
            resource_amount(&q, "storage");
        }
    }
}

/// What is native of a claim is its storage.
fn claim_resource(at: &At<'_>, name: &str) -> bool {
    let bad = names::qualified_name(name);
    for m in &bad {
        at.invalid_as(name, m.as_str());
    }
    let foreign = bad.is_empty() && super::container::is_native(name) && name != "storage";
    if foreign {
        at.push(crate::field::FieldError::not_supported(&at.path, name, &["storage"]));
    }
    bad.is_empty() && !foreign
}

/// Whether a path is `/`, however it is written.
fn is_root(path: &str) -> bool {
    path.starts_with('/') && path.split('/').all(|p| matches!(p, "" | "."))
}

/// A change of a volume.
pub fn volume_update(new: &At<'_>, old: &At<'_>) {
    let (spec, before) = (new.at("spec"), old.at("spec"));
    let (csi, csi_before) = (spec.at("csi"), before.at("csi"));
    // a secret for growing may be named later
    let mut grown = csi.v.clone();
    if csi_before.set()
        && !csi_before.at("controllerExpandSecretRef").set()
        && let Some(csi) = grown.as_object_mut()
    {
        csi.remove("controllerExpandSecretRef");
    }
    if SOURCES.iter().any(|k| !same(if *k == "csi" { &grown } else { spec.at(k).v }, before.at(k).v)) {
        let at = spec.named(spec.path.child("persistentvolumesource"));
        at.forbidden("spec.persistentvolumesource is immutable after creation\n");
    }
    spec.at("volumeMode").named("volumeMode".into()).immutable(&before.at("volumeMode"));
    // Once it is said where a volume is, it stays there.
    if before.at("nodeAffinity").set() && !same(spec.at("nodeAffinity").v, before.at("nodeAffinity").v) {
        let at = spec.at("nodeAffinity").named("nodeAffinity".into());
        at.invalid("field is immutable, except for updating from beta label to GA");
    }
    let class = "volumeAttributesClassName";
    if before.at(class).set() && !spec.at(class).set() {
        spec.at(class).forbidden("update from non-nil value to nil is forbidden");
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
    allowed_topologies(&at.at("allowedTopologies"));
}

/// Where volumes of a class may be: labels and their values, each combination once.
fn allowed_topologies(list: &At<'_>) {
    // how often each was there; the empty one counts for every term
    let mut seen = HashMap::from([(Vec::new(), list.len())]);
    for term in list.items() {
        let all = term.at("matchLabelExpressions");
        let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for e in all.items() {
            let (key, values) = (e.at("key"), e.at("values"));
            let mut of = Seen::default();
            if values.is_empty() {
                values.required("");
            }
            for v in values.items() {
                if !of.add(v.text()) {
                    v.duplicate();
                }
            }
            let of: BTreeSet<&str> = values.items().map(|v| v.text()).collect();
            key.check(names::qualified_name);
            if labels.insert(key.text(), of).is_some() {
                key.duplicate();
            }
        }
        let times = seen.entry(labels.into_iter().collect()).or_insert(0);
        (0..*times).for_each(|_| all.push(crate::field::FieldError::duplicate(&all.path, "")));
        *times += 1;
    }
}

/// A change of a storage class.
pub fn storage_class_update(new: &At<'_>, old: &At<'_>) {
    storage_class(new);
    for k in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
        new.at(k).immutable(&old.at(k));
    }
}
