//! CSI drivers, what nodes have of them, attachments, capacities, and classes of volume attributes.

use super::at::{At, same};
use super::meta::label_selector;
use super::storage::access_modes;
use crate::field::FieldError;
use crate::names;
use std::collections::BTreeSet;

/// Entries of a class's parameters, and bytes in all of them.
const MAX_PARAMETERS: usize = 512;
const MAX_PARAMETERS_SIZE: usize = 256 << 10;
const MAX_METADATA_SIZE: usize = 256 << 10;
const MAX_ERROR: usize = 1024;
const MAX_NODE_ID: usize = 256;

/// The name of a driver.
fn driver_name(at: &At<'_>) {
    let Some(name) = at.filled() else { return at.required("") };
    if name.len() > 63 {
        at.too_long(63);
    }
    at.check(|name| names::dns1123_subdomain(&name.to_lowercase()));
}

/// The name of what makes volumes.
fn provisioner(at: &At<'_>) {
    match at.filled() {
        None => at.required(""),
        Some(name) => {
            let name = name.to_lowercase();
            names::qualified_name(&name).into_iter().for_each(|m| at.invalid_as(name.clone(), m));
        }
    }
}

fn size_of(at: &At<'_>) -> usize {
    at.entries().map(|(k, v)| k.len() + v.text().len()).sum()
}

/// Parameters of a class.
pub fn parameters(at: &At<'_>) {
    if at.len() > MAX_PARAMETERS {
        return at.too_long(MAX_PARAMETERS);
    }
    if at.entries().any(|(k, _)| k.is_empty()) {
        at.invalid_as("", "field can not be empty.");
    }
    if size_of(at) > MAX_PARAMETERS_SIZE {
        at.too_long(MAX_PARAMETERS_SIZE);
    }
}

/// A class of volume attributes.
pub fn attributes_class(at: &At<'_>, old: Option<&At<'_>>) {
    if let Some(old) = old {
        for field in ["driverName", "parameters"] {
            if !same(at.at(field).v, old.at(field).v) {
                at.at(field).forbidden(format!("updates to {field} are forbidden."));
            }
        }
    }
    provisioner(&at.at("driverName"));
    parameters(&at.at("parameters"));
    if at.at("parameters").is_empty() {
        at.at("parameters").required("must contain at least one key/value pair");
    }
}

/// A driver.
pub fn driver(spec: &At<'_>, old: Option<&At<'_>>) {
    // upstream calls the field so in errors
    let attach = spec.at("attachRequired").named(spec.path.child("attachedRequired"));
    if !attach.set() {
        attach.required("");
    }
    for field in ["podInfoOnMount", "storageCapacity"] {
        if !spec.at(field).set() {
            spec.at(field).required("");
        }
    }
    spec.at("fsGroupPolicy").one_of_if_set(&["File", "None", "ReadWriteOnceWithFSType"]);
    let mut audiences = BTreeSet::new();
    for request in spec.at("tokenRequests").items() {
        let audience = request.at("audience");
        if !audiences.insert(audience.text()) {
            audience.push(FieldError::duplicate(&audience.path, audience.text()));
            continue;
        }
        let seconds = request.at("expirationSeconds");
        if seconds.int().is_some_and(|s| s < 600) {
            seconds.invalid("may not specify a duration less than 10 minutes");
        }
        if seconds.int().is_some_and(|s| s > 1 << 32) {
            seconds.invalid("may not specify a duration larger than 2^32 seconds");
        }
    }
    let modes = spec.at("volumeLifecycleModes");
    for mode in modes.items().filter(|m| !matches!(m.text(), "Persistent" | "Ephemeral")) {
        mode.named(modes.path.clone()).not_supported(&["Persistent", "Ephemeral"]);
    }
    if !spec.at("seLinuxMount").set() {
        spec.at("seLinuxMount").required("");
    }
    let period = spec.at("nodeAllocatableUpdatePeriodSeconds");
    if period.int().is_some_and(|p| p < 10) {
        period.invalid("must be greater than or equal to 10 seconds");
    }
    let in_secrets = spec.at("serviceAccountTokenInSecrets");
    if in_secrets.set() && spec.at("tokenRequests").is_empty() {
        in_secrets.invalid("serviceAccountTokenInSecrets is set but no tokenRequests are specified");
    }
    if let Some(old) = old {
        attach.immutable(&old.at("attachRequired"));
        modes.immutable(&old.at("volumeLifecycleModes"));
    }
}

/// What a node has of drivers.
pub fn node(spec: &At<'_>, old: Option<&At<'_>>) {
    let mut seen = BTreeSet::new();
    let drivers = spec.at("drivers");
    for driver in drivers.items() {
        let name = driver.at("name");
        driver_name(&name);
        let id = driver.at("nodeID");
        if id.filled().is_none() {
            id.required("");
        }
        if id.text().len() > MAX_NODE_ID {
            id.invalid(format!("must be {MAX_NODE_ID} characters or less"));
        }
        driver.down(&["allocatable", "count"]).nonnegative();
        if !seen.insert(name.text()) {
            name.duplicate();
        }
        let mut keys = BTreeSet::new();
        for key in driver.at("topologyKeys").items() {
            let key = key.named(driver.path.clone());
            if key.text().is_empty() {
                key.required("");
            }
            if !keys.insert(key.text()) {
                key.duplicate();
            }
            key.check(names::qualified_name);
        }
    }
    let Some(old) = old else { return };
    for before in old.at("drivers").items() {
        for driver in drivers.items().filter(|d| d.at("name").text() == before.at("name").text()) {
            // how many volumes it takes may change
            let fixed = ["nodeID", "topologyKeys"];
            if fixed.iter().any(|f| !same(driver.at(f).v, before.at(f).v)) {
                driver.named(drivers.path.clone()).invalid("field is immutable");
            }
        }
    }
}

/// The capacity that a driver has left somewhere.
pub fn capacity(at: &At<'_>, old: Option<&At<'_>>) {
    label_selector(&at.at("nodeTopology"));
    at.at("storageClassName").check(names::dns1123_subdomain);
    let capacity = at.at("capacity");
    if let Some(q) = capacity.quantity().filter(|q| q.sign() < 0) {
        capacity.invalid_as(q.canonical(), "must be greater than or equal to 0");
    }
    if let Some(old) = old {
        for field in ["nodeTopology", "storageClassName"] {
            at.at(field).immutable(&old.at(field));
        }
    }
}

/// An attachment. Its spec stays as it was made.
pub fn attachment(at: &At<'_>, old: Option<&At<'_>>) {
    let spec = at.at("spec");
    driver_name(&spec.at("attacher"));
    let source = spec.at("source");
    let (inline, name) = (source.at("inlineVolumeSpec"), source.at("persistentVolumeName"));
    match (inline.set(), name.set()) {
        (false, false) => source.required("must specify exactly one of inlineVolumeSpec and persistentVolumeName"),
        (true, true) => source.forbidden("must specify exactly one of inlineVolumeSpec and persistentVolumeName"),
        (false, true) if name.filled().is_none() => name.required("must specify non empty persistentVolumeName"),
        (true, false) => inline_volume(&inline),
        _ => {}
    }
    spec.at("nodeName").check(names::dns1123_subdomain);
    attachment_status(&at.at("status"));
    if name.set() {
        name.check(names::dns1123_subdomain);
    }
    if let Some(old) = old {
        spec.immutable(&old.at("spec"));
    }
}

/// A volume that an attachment describes by itself: a driver's, and nothing that is about claims.
fn inline_volume(spec: &At<'_>) {
    let context = "in the context of inline volumes";
    for field in ["claimRef", "capacity"] {
        if spec.at(field).set() && !(field == "capacity" && spec.at(field).is_empty()) {
            spec.at(field).forbidden(format!("may not be specified {context}"));
        }
    }
    let csi = spec.at("csi");
    if !csi.set() {
        csi.required(&format!("has to be specified {context}"));
    }
    access_modes(spec, "");
    let reclaim = spec.at("persistentVolumeReclaimPolicy");
    if reclaim.filled().is_some_and(|r| r != "Retain") {
        reclaim.forbidden(format!("may only be Retain {context}"));
    }
    if spec.at("nodeAffinity").set() {
        spec.at("nodeAffinity").forbidden(format!("may not be specified {context}"));
    }
    if csi.set() {
        super::volumes::source(spec, "csi");
        if csi.at("volumeHandle").filled().is_none() {
            csi.at("volumeHandle").required("");
        }
    }
    if spec.at("storageClassName").filled().is_some() {
        spec.at("storageClassName").forbidden(format!("may not be specified {context}"));
    }
    if spec.at("volumeMode").filled().is_some_and(|m| m != "Filesystem") {
        spec.at("volumeMode").forbidden(format!("may not specify volumeMode other than Filesystem {context}"));
    }
}

fn attachment_status(status: &At<'_>) {
    let metadata = status.at("attachmentMetadata");
    if size_of(&metadata) > MAX_METADATA_SIZE {
        metadata.too_long(MAX_METADATA_SIZE);
    }
    for error in ["attachError", "detachError"] {
        let message = status.down(&[error, "message"]);
        if message.text().len() > MAX_ERROR {
            // upstream names the other limit
            message.too_long(MAX_METADATA_SIZE);
        }
        let code = status.down(&[error, "errorCode"]);
        if code.int().is_some_and(|c| c < 0) {
            code.invalid(names::range_error(0, i64::from(i32::MAX)));
        }
    }
}
