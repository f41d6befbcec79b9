//! Defaults of pods and of the pod specs in everything that makes pods.

use serde_json::{Value, json};

use super::{Object, child, existing, fill, list, number, put, str_of, text};

/// A pod itself, which gets more defaults than a template.
pub(super) fn pod(object: &mut Object) {
    if let Some(status) = existing(object, "status") {
        super::first_of(status, "podIP", "podIPs", |ip| json!({"ip": ip}));
    }
    let pod = child(object, "spec");
    spec(pod);
    for containers in ["containers", "initContainers"] {
        list(Some(pod), containers, |c| {
            if let Some(resources) = existing(c, "resources") {
                fill(resources, "limits", "requests");
            }
        });
    }
    super::pod_level::resources(pod);
    put(pod, "enableServiceLinks", || json!(true));
    if pod.get("hostNetwork") == Some(&json!(true)) {
        for containers in ["containers", "initContainers"] {
            list(Some(pod), containers, |c| {
                list(Some(c), "ports", |port| {
                    if let Some(own) = port.get("containerPort").and_then(Value::as_i64) {
                        number(port, "hostPort", own);
                    }
                });
            });
        }
    }
}

/// A pod template.
pub(super) fn template(template: &mut Object) {
    spec(child(template, "spec"));
}

/// A pod spec, wherever it stands.
pub fn spec(spec: &mut Object) {
    // the account under its old name
    let account = Some(str_of(spec, "serviceAccountName")).filter(|a| !a.is_empty()).unwrap_or(str_of(spec, "serviceAccount")).to_owned();
    if !account.is_empty() {
        for key in ["serviceAccountName", "serviceAccount"] {
            if str_of(spec, key) != account {
                spec.insert(key.into(), json!(account));
            }
        }
    }
    text(spec, "dnsPolicy", "ClusterFirst");
    text(spec, "restartPolicy", "Always");
    put(spec, "securityContext", || json!({}));
    put(spec, "terminationGracePeriodSeconds", || json!(30));
    text(spec, "schedulerName", "default-scheduler");
    for containers in ["containers", "initContainers", "ephemeralContainers"] {
        list(Some(spec), containers, container);
    }
    list(Some(spec), "volumes", volume);
}

fn container(container: &mut Object) {
    let policy = if latest(str_of(container, "image")) { "Always" } else { "IfNotPresent" };
    text(container, "imagePullPolicy", policy);
    text(container, "terminationMessagePath", "/dev/termination-log");
    text(container, "terminationMessagePolicy", "File");
    put(container, "resources", || json!({}));
    list(Some(container), "ports", |port| text(port, "protocol", "TCP"));
    list(Some(container), "env", |variable| {
        let Some(from) = existing(variable, "valueFrom") else { return };
        if let Some(field) = existing(from, "fieldRef") {
            text(field, "apiVersion", "v1");
        }
        if let Some(file) = existing(from, "fileKeyRef") {
            put(file, "optional", || json!(false));
        }
    });
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = existing(container, name) {
            number(probe, "timeoutSeconds", 1);
            number(probe, "periodSeconds", 10);
            number(probe, "successThreshold", 1);
            number(probe, "failureThreshold", 3);
            http(probe);
            if let Some(grpc) = existing(probe, "grpc") {
                put(grpc, "service", || json!(""));
            }
        }
    }
    if let Some(lifecycle) = existing(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = existing(lifecycle, hook) {
                http(hook);
            }
        }
    }
}

fn http(handler: &mut Object) {
    if let Some(get) = existing(handler, "httpGet") {
        text(get, "path", "/");
        text(get, "scheme", "HTTP");
    }
}

/// Whether an image reference names the tag `latest`, or neither tag nor digest.
fn latest(image: &str) -> bool {
    let (name, digest) = match image.split_once('@') {
        Some((name, _)) => (name, true),
        None => (image, false),
    };
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => !digest,
    }
}

fn volume(volume: &mut Object) {
    if volume.iter().all(|(key, value)| key == "name" || value.is_null()) {
        volume.insert("emptyDir".into(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = existing(volume, source) {
            put(source, "defaultMode", || json!(0o644));
        }
    }
    list(existing(volume, "downwardAPI"), "items", field_ref);
    list(existing(volume, "projected"), "sources", |source| {
        if let Some(token) = existing(source, "serviceAccountToken") {
            put(token, "expirationSeconds", || json!(3600));
        }
        list(existing(source, "downwardAPI"), "items", field_ref);
    });
    volume_source(volume);
    if let Some(io) = existing(volume, "scaleIO") {
        text(io, "storageMode", "ThinProvisioned");
        text(io, "fsType", "xfs");
    }
    if let Some(image) = existing(volume, "image") {
        let policy = if latest(str_of(image, "reference")) { "Always" } else { "IfNotPresent" };
        text(image, "pullPolicy", policy);
    }
    if let Some(claim) = existing(volume, "ephemeral").and_then(|e| existing(e, "volumeClaimTemplate")) {
        super::put(child(claim, "spec"), "volumeMode", || json!("Filesystem"));
    }
}

/// Sources that pods and persistent volumes have in common.
pub(super) fn volume_source(volume: &mut Object) {
    if let Some(host) = existing(volume, "hostPath") {
        put(host, "type", || json!(""));
    }
    if let Some(disk) = existing(volume, "azureDisk") {
        put(disk, "cachingMode", || json!("ReadWrite"));
        put(disk, "fsType", || json!("ext4"));
        put(disk, "readOnly", || json!(false));
        put(disk, "kind", || json!("Shared"));
    }
    if let Some(iscsi) = existing(volume, "iscsi") {
        text(iscsi, "iscsiInterface", "default");
    }
    if let Some(rbd) = existing(volume, "rbd") {
        text(rbd, "pool", "rbd");
        text(rbd, "user", "admin");
        text(rbd, "keyring", "/etc/ceph/keyring");
    }
}

fn field_ref(item: &mut Object) {
    if let Some(field) = item.get_mut("fieldRef").and_then(Value::as_object_mut) {
        text(field, "apiVersion", "v1");
    }
}
