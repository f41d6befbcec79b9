//! Volume sources of particular storage systems, most of which CSI drivers have replaced. Pods name
//! them, and persistent volumes in almost the same form.

use super::at::At;
use crate::names;

fn needed(at: &At<'_>, fields: &[&str]) {
    for f in fields {
        let f = at.at(f);
        if f.is_empty() && f.filled().is_none() {
            f.required("");
        }
    }
}

/// A reference to a secret; persistent volumes have to say in which namespace.
fn secret(at: &At<'_>, volume: bool) {
    if at.set() {
        needed(at, if volume { &["name", "namespace"] } else { &["name"] });
    }
}

/// One source of these; `volume`: of a persistent volume.
pub fn source(holder: &At<'_>, kind: &str, volume: bool) {
    let at = holder.at(kind);
    match kind {
        "gitRepo" => {
            needed(&at, &["repository"]);
            super::volumes::descending_path(&at.at("directory"));
        }
        "gcePersistentDisk" => {
            let at = at.named(holder.path.child("persistentDisk"));
            needed(&at, &["pdName"]);
            partition(&at);
        }
        "awsElasticBlockStore" => {
            needed(&at, &["volumeID"]);
            partition(&at);
        }
        "iscsi" => iscsi(&at, volume),
        "fc" => fibre_channel(&at),
        "glusterfs" => {
            needed(&at, &["endpoints", "path"]);
            let namespace = at.at("endpointsNamespace");
            if namespace.set() && namespace.filled().is_none() {
                namespace.invalid("if the endpointnamespace is set, it must be a valid namespace name");
            }
            namespace.check_if_filled(names::dns1123_label);
        }
        "flocker" => {
            let (name, uuid) = (at.at("datasetName"), at.at("datasetUUID"));
            match (name.filled(), uuid.filled()) {
                (None, None) => at.required("one of datasetName and datasetUUID is required"),
                (Some(_), Some(_)) => at.invalid_as("resource", "datasetName and datasetUUID can not be specified simultaneously"),
                _ => {}
            }
            if name.text().contains('/') {
                name.invalid("must not contain '/'");
            }
        }
        "rbd" => needed(&at, &["monitors", "image"]),
        "cinder" => {
            needed(&at, &["volumeID"]);
            secret(&at.at("secretRef"), volume);
        }
        "cephfs" => needed(&at, &["monitors"]),
        "quobyte" => quobyte(&at),
        "flexVolume" => {
            needed(&at, &["driver"]);
            for (k, option) in at.at("options").entries() {
                let owner = format!(".{}", k.split_once('/').map_or(k, |(o, _)| o).to_lowercase());
                if owner.ends_with(".kubernetes.io") || owner.ends_with(".k8s.io") {
                    option.invalid_as(k, "kubernetes.io and k8s.io namespaces are reserved");
                }
            }
        }
        "azureFile" => {
            needed(&at, &["secretName", "shareName"]);
            if volume && at.at("secretNamespace").set() {
                needed(&at, &["secretNamespace"]);
            }
        }
        "azureDisk" => azure_disk(&at),
        "vsphereVolume" => needed(&at, &["volumePath"]),
        "photonPersistentDisk" => needed(&at, &["pdID"]),
        "portworxVolume" => needed(&at, &["volumeID"]),
        "scaleIO" => needed(&at, &["gateway", "system", "volumeName"]),
        "storageos" => {
            needed(&at, &["volumeName"]);
            at.at("volumeName").check_if_filled(names::dns1123_label);
            at.at("volumeNamespace").check_if_filled(names::dns1123_label);
            secret(&at.at("secretRef"), volume);
        }
        _ => {}
    }
}

fn partition(at: &At<'_>) {
    let partition = at.at("partition");
    if !(0..=255).contains(&partition.int_or(0)) {
        partition.in_range(1, 255);
    }
}

fn iscsi(at: &At<'_>, volume: bool) {
    needed(at, &["targetPortal", "iqn"]);
    let qualified = |name: &At<'_>| {
        let text = name.text();
        let alphanumeric = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_alphanumeric());
        let good = match text.get(..3) {
            Some("iqn") => is_iqn(text),
            Some("eui") => text.len() > 4 && alphanumeric(&text[4..], 16),
            Some("naa") => text.len() > 4 && alphanumeric(&text[4..], 32),
            _ if volume => false,
            _ => return name.invalid("must be valid format starting with iqn, eui, or naa"),
        };
        if !good {
            name.invalid("must be valid format");
        }
    };
    if at.at("iqn").filled().is_some() {
        qualified(&at.at("iqn"));
    }
    at.at("lun").in_range(0, 255);
    if (at.at("chapAuthDiscovery").yes() || at.at("chapAuthSession").yes()) && !at.at("secretRef").set() {
        at.at("secretRef").required("");
    }
    if volume && at.at("secretRef").set() {
        needed(&at.at("secretRef"), &["name"]);
    }
    let initiator = at.at("initiatorName");
    if initiator.set() {
        qualified(&initiator.named(at.path.child("initiatorname")));
    }
}

/// `iqn.2001-04.com.example:storage`.
fn is_iqn(text: &str) -> bool {
    let Some((head, tail)) = text.split_once(':') else { return false };
    let (bytes, rest) = (head.as_bytes(), head.get(12..).unwrap_or_default());
    let digits = |range: std::ops::Range<usize>| bytes.get(range).is_some_and(|b| b.iter().all(u8::is_ascii_digit));
    digits(4..8)
        && digits(9..11)
        && (bytes.get(3), bytes.get(8), bytes.get(11)) == (Some(&b'.'), Some(&b'-'), Some(&b'.'))
        && !rest.is_empty()
        && rest.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        && !tail.is_empty()
        && !tail.contains(|c: char| ",;*&$|".contains(c) || c.is_whitespace())
}

fn fibre_channel(at: &At<'_>) {
    let (names, ids, lun) = (at.at("targetWWNs"), at.at("wwids"), at.at("lun"));
    if names.is_empty() && ids.is_empty() {
        names.required("must specify either targetWWNs or wwids, but not both");
    }
    if !names.is_empty() && !ids.is_empty() {
        names.invalid("targetWWNs and wwids can not be specified simultaneously");
    }
    if !names.is_empty() {
        if lun.set() {
            lun.in_range(0, 255);
        } else {
            lun.required("lun is required if targetWWNs is specified");
        }
    }
}

fn quobyte(at: &At<'_>) {
    const REGISTRY: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = at.at("registry");
    match registry.filled() {
        None => registry.required(REGISTRY),
        Some(_) if at.at("tenant").text().len() >= 65 => at.at("tenant").required("must be a UUID and may not exceed a length of 64 characters"),
        Some(pairs) => {
            for _ in pairs.split(',').filter(|p| p.matches(':').count() != 1 && !p.contains("]:")) {
                registry.invalid(REGISTRY);
            }
        }
    }
    needed(at, &["volume"]);
}

fn azure_disk(at: &At<'_>) {
    needed(at, &["diskName", "diskURI"]);
    at.at("cachingMode").one_of_if_set(&["None", "ReadOnly", "ReadWrite"]);
    at.at("kind").one_of_if_set(&["Dedicated", "Managed", "Shared"]);
    let uri = at.at("diskURI");
    match at.at("kind") {
        kind if !kind.set() => {}
        kind if kind.text() == "Managed" => {
            if !uri.text().starts_with("/subscriptions/") {
                uri.not_supported_as(&["/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"]);
            }
        }
        _ if !uri.text().starts_with("https://") => {
            uri.not_supported_as(&["https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"]);
        }
        _ => {}
    }
}
