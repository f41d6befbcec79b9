//! Volumes of a pod.

use super::at::At;
use crate::names;
use crate::seen::Seen;
use serde_json::Value;
use std::collections::HashMap;

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// The sources that a volume can have, in the order in which they are looked at.
const SOURCES: &[&str] = &[
    "emptyDir", "hostPath", "gitRepo", "gcePersistentDisk", "awsElasticBlockStore", "secret", "nfs", "iscsi", "glusterfs",
    "flocker", "persistentVolumeClaim", "rbd", "cinder", "cephfs", "quobyte", "downwardAPI", "fc", "flexVolume", "configMap",
    "azureFile", "vsphereVolume", "photonPersistentDisk", "portworxVolume", "azureDisk", "storageos", "projected", "scaleIO",
    "csi", "ephemeral", "image",
];

fn mode(at: &At<'_>) {
    if at.int().is_some_and(|m| !(0..=0o777).contains(&m)) {
        at.invalid(MODE);
    }
}

fn needed(at: &At<'_>) {
    if at.filled().is_none() {
        at.required("");
    }
}

/// A path without steps up.
pub fn no_backsteps(at: &At<'_>) {
    if at.text().split('/').any(|p| p == "..") {
        at.invalid("must not contain '..'");
    }
}

/// A relative path without steps up.
pub fn descending_path(at: &At<'_>) {
    if at.text().starts_with('/') {
        at.invalid("must be a relative path");
    }
    no_backsteps(at);
}

fn unreserved_path(at: &At<'_>) {
    descending_path(at);
    if at.text().starts_with("..") && !at.text().starts_with("../") {
        at.invalid("must not start with '..'");
    }
}

fn key_to_path(at: &At<'_>) {
    needed(&at.at("key"));
    needed(&at.at("path"));
    unreserved_path(&at.at("path"));
    mode(&at.at("mode"));
}

fn downward_file(at: &At<'_>) {
    needed(&at.at("path"));
    unreserved_path(&at.at("path"));
    let (field, resource) = (at.at("fieldRef"), at.at("resourceFieldRef"));
    if field.set() {
        super::container::field_ref(&field, &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"]);
        if resource.set() {
            at.invalid_as("resource", "fieldRef and resourceFieldRef can not be specified simultaneously");
        }
    } else if resource.set() {
        super::container::resource_field_ref(&resource, true);
    } else {
        at.required("one of fieldRef and resourceFieldRef is required");
    }
    mode(&at.at("mode"));
}

fn projected(at: &At<'_>) {
    mode(&at.at("defaultMode"));
    let mut paths = Seen::default();
    for s in at.at("sources").items() {
        let mut count = 0;
        for kind in ["secret", "configMap"] {
            let p = s.at(kind);
            if !p.set() {
                continue;
            }
            count += 1;
            needed(&p.at("name"));
            for item in p.at("items").items() {
                key_to_path(&item);
                if let Some(path) = item.at("path").filled() {
                    if !paths.add(path) {
                        at.invalid_as(p.at("name").text(), "conflicting duplicate paths");
                    }
                }
            }
        }
        let downward = s.at("downwardAPI");
        if downward.set() {
            count += 1;
            for file in downward.at("items").items() {
                downward_file(&file.named(downward.path.clone()));
                if let Some(path) = file.at("path").filled() {
                    if !paths.add(path) {
                        at.invalid_as(path, "conflicting duplicate paths");
                    }
                }
            }
        }
        let token = s.at("serviceAccountToken");
        if token.set() {
            count += 1;
            let life = token.at("expirationSeconds");
            if life.int_or(3600) < 600 {
                life.invalid("may not specify a duration less than 10 minutes");
            }
            if life.int_or(3600) > 1 << 32 {
                life.invalid("may not specify a duration larger than 2^32 seconds");
            }
            let path = token.at("path").named(at.path.child("path"));
            needed(&path);
            if path.filled().is_some() {
                unreserved_path(&path);
            }
        }
        count += ["clusterTrustBundle", "podCertificate"].iter().filter(|k| s.at(k).set()).count();
        if count > 1 {
            s.forbidden("may not specify more than 1 volume type per source");
        }
    }
}

/// The name of a CSI driver.
pub fn csi_driver(at: &At<'_>) {
    let Some(name) = at.filled() else { return at.required("") };
    if name.len() > 63 {
        at.too_long(63);
    }
    for m in names::dns1123_subdomain(&name.to_lowercase()) {
        at.invalid(m);
    }
}

/// One source, of a volume or a spec that holds it.
pub fn source(volume: &At<'_>, kind: &str) {
    let at = volume.at(kind);
    match kind {
        "emptyDir" if at.at("sizeLimit").quantity().is_some_and(|q| q.sign() < 0) => {
            at.at("sizeLimit").forbidden("SizeLimit field must be a valid resource quantity");
        }
        "hostPath" => {
            needed(&at.at("path"));
            if at.at("path").filled().is_some() {
                no_backsteps(&at.at("path"));
                at.at("type").one_of_if_set(&[
                    "", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket",
                ]);
            }
        }
        "secret" | "configMap" => {
            needed(&at.at(if kind == "secret" { "secretName" } else { "name" }));
            mode(&at.at("defaultMode"));
            at.at("items").items().for_each(|i| key_to_path(&i));
        }
        "persistentVolumeClaim" => needed(&at.at("claimName")),
        "downwardAPI" => {
            mode(&at.at("defaultMode"));
            at.at("items").items().for_each(|f| downward_file(&f.named(at.path.clone())));
        }
        "projected" => projected(&at),
        "nfs" => {
            needed(&at.at("server"));
            needed(&at.at("path"));
            if !at.at("path").text().starts_with('/') {
                at.at("path").invalid_as(at.at("path").text(), "must be an absolute path");
            }
        }
        "csi" => {
            csi_driver(&at.at("driver"));
            let secret = at.at("nodePublishSecretRef");
            if secret.set() && secret.at("name").filled().is_none() {
                secret.at("name").required("");
            }
        }
        "ephemeral" => {
            let template = at.at("volumeClaimTemplate");
            if template.set() {
                let m = template.at("metadata");
                super::meta::annotations(&m.at("annotations"));
                super::meta::labels(&m.at("labels"));
                for k in m.v.as_object().into_iter().flatten().map(|(k, _)| k).filter(|k| !["annotations", "labels", "creationTimestamp"].contains(&k.as_str())) {
                    m.at(k).forbidden("cannot be set");
                }
                super::storage::claim_spec(&template.at("spec"));
            } else {
                template.required("");
            }
        }
        "image" => {
            needed(&at.at("reference"));
            at.at("pullPolicy").one_of_if_set(&["Always", "IfNotPresent", "Never"]);
        }
        _ => super::sources::source(volume, kind, false),
    }
}

/// Checks volumes and answers the good ones by name.
pub fn volumes<'a>(at: &At<'a>, pod_name: &str) -> HashMap<&'a str, &'a Value> {
    let mut good = HashMap::new();
    let made: Seen<String> = at.items().filter(|v| v.at("ephemeral").set()).map(|v| format!("{pod_name}-{}", v.at("name").text())).collect();
    for v in at.items() {
        let before = v.errs.borrow().len();
        let mut found = false;
        for kind in SOURCES.iter().filter(|k| v.at(k).set()) {
            if found {
                // two of them in upstream's spelling
                let shown = match *kind {
                    "cephfs" => "cephFS",
                    "downwardAPI" => "downwarAPI",
                    kind => kind,
                };
                v.at(shown).forbidden("may not specify more than 1 volume type");
            } else {
                found = true;
                source(&v, kind);
            }
        }
        if !found {
            v.required("must specify a volume type");
        }
        let name = v.at("name");
        match name.filled() {
            None => name.required(""),
            Some(_) => name.check(names::dns1123_label),
        }
        if good.contains_key(name.text()) {
            name.duplicate();
        }
        if !pod_name.is_empty() && v.at("persistentVolumeClaim").set() {
            let claim = v.at("persistentVolumeClaim").at("claimName");
            if made.has(&claim.text().to_owned()) {
                claim.invalid("must not reference a PVC that gets created for an ephemeral volume");
            }
        }
        if v.errs.borrow().len() == before {
            good.insert(name.text(), v.v);
        }
    }
    good
}

/// Mounts of a container.
pub fn mounts<'a>(container: &At<'a>, volumes: &HashMap<&str, &Value>) {
    let at = container.at("volumeMounts");
    let devices = container.at("volumeDevices");
    let all = |list: &At<'a>, field: &str| -> Seen<&'a str> { list.items().map(|i| i.at(field).text()).collect() };
    let (device_names, device_paths) = (all(&devices, "name"), all(&devices, "devicePath"));
    let (mount_names, mount_paths) = (all(&at, "name"), all(&at, "mountPath"));
    let mut seen = Seen::default();
    for m in at.items() {
        let (name, path) = (m.at("name"), m.at("mountPath"));
        if name.filled().is_none() {
            name.required("");
        }
        if !volumes.contains_key(name.text()) {
            name.with(&m.v["name"], name.path.clone()).not_found();
        }
        if path.filled().is_none() {
            path.required("");
        }
        if !seen.add(path.text()) {
            path.invalid("must be unique");
        }
        if device_names.has(&name.text()) {
            name.invalid("must not already exist in volumeDevices");
        }
        if device_paths.has(&path.text()) {
            path.invalid("must not already exist as a path in volumeDevices");
        }
        // reported at the list, as upstream does
        let at_list = |k: &str| m.at(k).named(at.path.child(k));
        let (sub, expr) = (m.at("subPath"), m.at("subPathExpr"));
        if sub.filled().is_some() {
            descending_path(&at_list("subPath"));
        }
        if expr.filled().is_some() {
            if sub.filled().is_some() {
                expr.invalid("subPathExpr and subPath are mutually exclusive");
            }
            descending_path(&at_list("subPathExpr"));
        }
        let propagation = at_list("mountPropagation");
        if propagation.set() {
            propagation.one_of_if_set(&["Bidirectional", "HostToContainer", "None"]);
            if propagation.text() == "Bidirectional" && !container.down(&["securityContext", "privileged"]).yes() {
                propagation.forbidden("Bidirectional mount propagation is available only to privileged containers");
            }
        }
        let recursive = at_list("recursiveReadOnly");
        match recursive.text() {
            "Enabled" | "IfPossible" => {
                if !m.at("readOnly").yes() {
                    recursive.forbidden("may only be specified when readOnly is true");
                }
                if m.at("mountPropagation").filled().is_some_and(|p| p != "None") {
                    recursive.forbidden("may only be specified when mountPropagation is None or not specified");
                }
            }
            _ => recursive.one_of_if_set(&["Disabled", "Enabled", "IfPossible"]),
        }
    }
    let (mut names_seen, mut paths_seen) = (Seen::default(), Seen::default());
    for d in devices.items() {
        let (name, path) = (d.at("name"), d.at("devicePath"));
                if name.filled().is_none() {
            name.required("");
        }
        if !names_seen.add(name.text()) {
            name.invalid("must be unique");
        }
        match volumes.get(name.text()) {
            None => name.not_found(),
            Some(v) if v.get("persistentVolumeClaim").is_none() && v.get("ephemeral").is_none() => {
                name.invalid("can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode");
            }
            _ => {}
        }
        if path.filled().is_none() {
            path.required("");
        }
        if paths_seen.has(&path.text()) {
            path.invalid("must be unique");
        }
        if path.text().split('/').any(|p| p == "..") {
            path.invalid("can not contain backsteps ('..')");
        } else {
            paths_seen.add(path.text());
        }
        if mount_names.has(&name.text()) {
            name.invalid("must not already exist in volumeMounts");
        }
        if mount_paths.has(&path.text()) {
            path.invalid("must not already exist as a path in volumeMounts");
        }
    }
}
