//! Annotations that mean something.

use super::at::At;
use super::container;
use crate::field::{Path, go_quote};
use crate::seen::Seen;
use crate::{apparmor, seccomp};

const MIRROR: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const INGRESS_CLASS: &str = "kubernetes.io/ingress.class";
const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";
/// Kinds of volumes that are mounted with options.
const MOUNTED: &[&str] = &[
    "gcePersistentDisk", "awsElasticBlockStore", "glusterfs", "nfs", "rbd", "quobyte", "iscsi", "cinder", "cephfs", "azureFile",
    "vsphereVolume", "azureDisk", "photonPersistentDisk",
];

/// Whether a pod stands for one that its node has from a file.
pub fn is_mirror(pod: &At<'_>) -> bool {
    pod.down(&["metadata", "annotations"]).at(MIRROR).set()
}

/// Those of a pod or template.
pub fn of_pod(annotations: &At<'_>, spec: &At<'_>, old: Option<&At<'_>>) {
    let at = |key: &str| annotations.at(key).named(annotations.path.key(key));
    if at(MIRROR).set() && spec.at("nodeName").filled().is_none() {
        at(MIRROR).invalid("must set spec.nodeName if mirror pod annotation is set");
    }
    let cost = |annotations: &At<'_>| annotations.at(DELETION_COST).v.as_str().is_none_or(is_cost);
    if !cost(annotations) && old.is_none_or(cost) {
        at(DELETION_COST).invalid("must be a 32bit integer");
    }
    for (key, profile) in annotations.entries() {
        let profile = profile.named(annotations.path.child(key));
        if key == seccomp::POD || key.starts_with(seccomp::CONTAINER) {
            seccomp_profile(&profile);
        }
    }
    let mut containers: Option<Seen<&str>> = None;
    for (key, profile) in annotations.entries() {
        let Some(name) = key.strip_prefix(apparmor::ANNOTATION) else { continue };
        let profile = profile.named(annotations.path.key(key));
        if !containers.get_or_insert_with(|| container::each(spec).map(|c| c.at("name").text()).collect()).has(&name) {
            profile.invalid_as(name, "container not found");
        }
        let text = profile.text();
        if !matches!(text, "" | "runtime/default" | "unconfined") && !text.starts_with("localhost/") {
            profile.invalid(format!("invalid AppArmor profile name: {}", go_quote(text)));
        }
    }
}

/// An integer of 32 bits in its usual form.
fn is_cost(text: &str) -> bool {
    !text.starts_with('+') && (text == "0" || !text.starts_with('0')) && text.parse::<i32>().is_ok()
}

fn seccomp_profile(profile: &At<'_>) {
    match profile.text() {
        "runtime/default" | "docker/default" | "unconfined" => {}
        text => match text.strip_prefix("localhost/") {
            Some(path) if path.starts_with('/') => profile.invalid_as(path, "must be a relative path"),
            Some(path) if path.split('/').any(|part| part == "..") => profile.invalid_as(path, "must not contain '..'"),
            Some(_) => {}
            None => profile.invalid("must be a valid seccomp profile"),
        },
    }
}

/// What a change of a pod may not do to them.
pub fn of_pod_changed(pod: &At<'_>, old: &At<'_>) {
    let (new, old) = (pod.down(&["metadata", "annotations"]), old.down(&["metadata", "annotations"]));
    let told = |key: &str, apparmor_why: &str, mirror_why: &str| {
        let at = new.named(new.path.key(key));
        if key.starts_with(apparmor::ANNOTATION) {
            at.forbidden(apparmor_why);
        }
        if key == MIRROR {
            at.forbidden(mirror_why);
        }
    };
    for (key, _) in old.entries().filter(|(key, before)| new.at(key).v != before.v) {
        told(key, "may not remove or update AppArmor annotations", "may not remove or update mirror pod annotation");
    }
    for (key, _) in new.entries().filter(|(key, _)| !old.at(key).set()) {
        told(key, "may not add AppArmor annotations", "may not add mirror pod annotation");
    }
    of_pod(&new, &pod.at("spec"), Some(&old));
}

/// Fields that say the same as an annotation.
pub fn match_fields(annotations: &At<'_>, spec: &At<'_>) {
    let of_pod = spec.down(&["securityContext", "seccompProfile"]);
    matches(annotations.at(seccomp::POD).v.as_str(), &of_pod, "seccomp");
    for c in container::each(spec) {
        let key = format!("{}{}", seccomp::CONTAINER, c.at("name").text());
        matches(annotations.at(&key).v.as_str(), &c.down(&["securityContext", "seccompProfile"]), "seccomp");
    }
    if spec.down(&["os", "name"]).text() == "windows" {
        return;
    }
    let of_pod = spec.down(&["securityContext", "appArmorProfile"]);
    for c in container::each(spec) {
        let own = c.down(&["securityContext", "appArmorProfile"]);
        let key = format!("{}{}", apparmor::ANNOTATION, c.at("name").text());
        let profile = if own.set() { own } else { of_pod.named(own.path) };
        matches(annotations.at(&key).v.as_str(), &profile, "apparmor");
    }
}

fn matches(annotation: Option<&str>, profile: &At<'_>, word: &str) {
    let (Some(annotation), true) = (annotation, profile.set()) else { return };
    let local = annotation.strip_prefix("localhost/");
    let same = match profile.at("type").text() {
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" => annotation == "runtime/default" || word == "seccomp" && annotation == "docker/default",
        "Localhost" => local.is_some(),
        _ => return,
    };
    if !same {
        profile.at("type").forbidden(format!("{word} type in annotation and field must match"));
    } else if local.is_some() && profile.at("localhostProfile").v.as_str() != local {
        profile.at("localhostProfile").forbidden(format!("{word} profile in annotation and field must match"));
    }
}

/// That of an Ingress's class.
pub fn ingress_class(at: &At<'_>) {
    let (old, field) = (at.down(&["metadata", "annotations"]).at(INGRESS_CLASS), at.down(&["spec", "ingressClassName"]));
    if old.set() && field.set() && old.text() != field.text() {
        old.named(Path::new("annotations").child(INGRESS_CLASS)).invalid("must match `ingressClassName` when both are specified");
    }
}

/// That of a volume's mount options.
pub fn mount_options(at: &At<'_>) {
    let options = at.down(&["metadata", "annotations"]).at(MOUNT_OPTIONS);
    if options.set() && !MOUNTED.iter().any(|kind| at.at("spec").at(kind).set()) {
        options.forbidden("may not specify mount options for this volume type");
    }
}
