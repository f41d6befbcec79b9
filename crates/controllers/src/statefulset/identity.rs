//! Names, labels and volumes of the pods of a stateful set.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{self, PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, PodTemplateSpec, Volume};
use kube::{Resource, ResourceExt};

use super::{POD_INDEX_LABEL, POD_NAME_LABEL};
use crate::history::REVISION_LABEL;
use crate::pod::Pod;
use crate::{ownership, pods};

/// The set's name and the ordinal that a pod's name is made of.
pub fn parse(name: &str) -> Option<(&str, i32)> {
    let (parent, digits) = name.rsplit_once('-')?;
    let numeric = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    numeric.then(|| digits.parse().ok()).flatten().map(|ordinal| (parent, ordinal))
}

/// Whether a pod's name is one of the set's.
pub fn is_member(set: &StatefulSet, pod: &impl Resource) -> bool {
    parse(&pod.name_any()).is_some_and(|(parent, _)| parent == set.name_any())
}

/// A pod's ordinal.
pub fn ordinal(pod: &impl Resource) -> Option<i32> {
    parse(pod.meta().name.as_deref()?).map(|(_, ordinal)| ordinal)
}

/// The first ordinal of a set.
pub fn start(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.ordinals.as_ref()).and_then(|o| o.start).unwrap_or(0)
}

/// How many pods a set is to have.
pub fn replicas(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1).max(0)
}

/// The ordinals that a set wants pods with.
pub fn ordinals(set: &StatefulSet) -> impl Iterator<Item = i32> {
    let start = start(set);
    // One that is more than a number of ours can hold has no pod.
    (0..replicas(set)).map_while(move |at| start.checked_add(at))
}

/// Whether the set wants a pod with this ordinal.
pub fn wants(set: &StatefulSet, ordinal: i32) -> bool {
    let start = start(set);
    ordinal >= start && i64::from(ordinal) < i64::from(start) + i64::from(replicas(set))
}

fn templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|s| s.volume_claim_templates.as_deref()).unwrap_or_default()
}

/// The claims of the pod with this ordinal, each with the name of its volume.
pub fn claims(set: &StatefulSet, ordinal: i32) -> Vec<(String, PersistentVolumeClaim)> {
    let matched = set.spec.as_ref().and_then(|s| s.selector.match_labels.clone()).unwrap_or_default();
    let claim = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        claim.metadata.name = Some(format!("{}-{}-{ordinal}", template.name_any(), set.name_any()));
        claim.metadata.namespace = set.namespace();
        claim.metadata.labels.get_or_insert_default().extend(matched.clone());
        (template.name_any(), claim)
    };
    templates(set).iter().map(claim).collect()
}

/// Whether a pod has the name and label that its ordinal gives it.
pub fn matches(set: &StatefulSet, pod: &Pod) -> bool {
    let name = pod.name_any();
    ordinal(pod).is_some_and(|o| name == format!("{}-{o}", set.name_any()))
        && pod.labels().get(POD_NAME_LABEL) == Some(&name)
}

/// Whether a pod's volumes are those that the set's claim templates ask for.
pub fn storage_matches(set: &StatefulSet, pod: &Pod) -> bool {
    let Some(ordinal) = ordinal(pod) else { return false };
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    claims(set, ordinal).iter().all(|(volume, claim)| {
        let source = volumes.iter().find(|v| v.name == *volume).and_then(|v| v.persistent_volume_claim.as_ref());
        source.is_some_and(|s| s.claim_name == claim.name_any())
    })
}

/// Gives a pod the labels of its ordinal.
pub fn set_identity(pod: &mut v1::Pod, ordinal: i32) {
    let name = pod.name_any();
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME_LABEL.into(), name);
    labels.insert(POD_INDEX_LABEL.into(), ordinal.to_string());
}

/// Gives a pod the volumes of the set's claim templates; its other volumes stay.
pub fn set_storage(set: &StatefulSet, pod: &mut v1::Pod, ordinal: i32) {
    let claims = claims(set, ordinal);
    let spec = pod.spec.get_or_insert_default();
    let mut volumes: Vec<Volume> = claims
        .iter()
        .map(|(volume, claim)| Volume {
            name: volume.clone(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource { claim_name: claim.name_any(), ..Default::default() }),
            ..Volume::default()
        })
        .collect();
    volumes.extend(spec.volumes.take().into_iter().flatten().filter(|v| !claims.iter().any(|(name, _)| *name == v.name)));
    spec.volumes = Some(volumes).filter(|v| !v.is_empty());
}

/// The pod with this ordinal, of the revision that keeps `template`.
pub fn new_pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> v1::Pod {
    let namespace = set.namespace().unwrap_or_default();
    let mut pod = pods::from_template(&namespace, format!("{}-", set.name_any()), template, ownership::controller_reference(set));
    let name = format!("{}-{ordinal}", set.name_any());
    pod.metadata.name = Some(name.clone());
    set_identity(&mut pod, ordinal);
    pod.labels_mut().insert(REVISION_LABEL.into(), revision.into());
    set_storage(set, &mut pod, ordinal);
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain = set.spec.as_ref().and_then(|s| s.service_name.clone()).filter(|n| !n.is_empty());
    pod
}

/// The revision that a pod says it is of.
pub fn revision(pod: &Pod) -> &str {
    pod.labels().get(REVISION_LABEL).map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names() {
        assert_eq!(parse("web-0"), Some(("web", 0)));
        assert_eq!(parse("a-b-12"), Some(("a-b", 12)));
        for wrong in ["web", "web-", "web-x", "web-1x", "web-99999999999", "web-+1"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_pod_has_its_name_labels_and_volumes() {
        let set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "x", "uid": "u"},
            "spec": {"serviceName": "svc", "replicas": 2, "ordinals": {"start": 5}, "selector": {"matchLabels": {"app": "a"}},
                "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [], "volumes": [{"name": "data"}, {"name": "tmp", "emptyDir": {}}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"l": "1"}}, "spec": {}}]}}))
        .expect("a set");
        let pod = new_pod(&set, &set.spec.as_ref().expect("a spec").template, "web-abc", 5);
        assert_eq!((pod.name_any().as_str(), ordinal(&pod)), ("web-5", Some(5)));
        assert_eq!((pod.labels()[POD_NAME_LABEL].as_str(), pod.labels()[POD_INDEX_LABEL].as_str()), ("web-5", "5"));
        let seen: Pod = serde_json::from_value(json!(pod)).expect("a pod");
        assert_eq!((revision(&seen), pod.labels()["app"].as_str()), ("web-abc", "a"));
        let spec = pod.spec.clone().expect("a spec");
        assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("web-5"), Some("svc")));
        let volumes: Vec<String> = spec.volumes.iter().flatten().map(|v| v.name.clone()).collect();
        assert_eq!(volumes, ["data", "tmp"]);
        assert!(is_member(&set, &seen) && matches(&set, &seen) && storage_matches(&set, &seen));
        let named = |name: &str| {
            let mut pod = seen.clone();
            pod.metadata.name = Some(name.into());
            pod.labels_mut().insert(POD_NAME_LABEL.into(), name.into());
            (is_member(&set, &pod), matches(&set, &pod))
        };
        assert_eq!((named("web-5"), named("web-05"), named("other-5"), named("web")), ((true, true), (true, false), (false, false), (false, false)));
        let (_, claim) = &claims(&set, 5)[0];
        assert_eq!((claim.name_any().as_str(), claim.labels().len()), ("data-web-5", 2));
        assert!(wants(&set, 5) && wants(&set, 6) && !wants(&set, 4) && !wants(&set, 7));

        let mut other = seen;
        other.labels_mut().remove(POD_NAME_LABEL);
        assert!(!matches(&set, &other));
        other.spec.get_or_insert_default().volumes = None;
        assert!(!storage_matches(&set, &other));
    }
}
