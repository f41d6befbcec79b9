//! What is to be said of a pod that waits because of devices.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::{Devices, Finding, finding};
use crate::devices::asked::{claim_names, is_for, may_be_devices};
use crate::devices::survey::Survey;
use crate::node::NodeView;
use crate::plugin::Rejection;
use crate::pod::PodInfo;

/// Whether devices may be what a pod waits for.
pub(super) fn concern(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut requests = containers.filter_map(|c| c.resources.as_ref()?.requests.as_ref()).flat_map(|r| r.keys());
    spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()) || requests.any(|name| may_be_devices(name))
}

/// A pod is not tried at all until its claims are there; true when that holds it.
pub(super) fn held(pod: &PodInfo, known: &Devices, findings: &mut Vec<Finding>) -> bool {
    let before = findings.len();
    let world = known.0.read_recursive();
    let namespace = pod.namespace();
    for (entry, named) in pod.shape.claims.iter().zip(claim_entries(pod)) {
        let subject = format!("device claim {}", entry.name);
        match named {
            Err(why) => {
                let template = entry.resource_claim_template_name.as_deref().unwrap_or_default();
                findings.push(finding(subject, format!("{why}: the template {template} makes it"), format!("kubectl get resourceclaimtemplate -n {namespace} {template}; if it is there, knarr status tells whether the controllers run")));
            }
            Ok(None) => {}
            Ok(Some((name, own))) => match world.claim(namespace, name) {
                None => findings.push(finding(subject, format!("the ResourceClaim {name} does not exist"), format!("create the ResourceClaim {name} in namespace {namespace}"))),
                Some(claim) if claim.metadata.deletion_timestamp.is_some() => findings.push(finding(subject, format!("the ResourceClaim {name} is being deleted"), "wait until it is gone and create it anew")),
                Some(claim) if own && !is_for(pod, claim) => findings.push(finding(subject, format!("the ResourceClaim {name} was made for another pod"), format!("kubectl describe resourceclaim -n {namespace} {name}"))),
                Some(_) => {}
            },
        }
    }
    findings.len() > before
}

type Entry<'a> = Result<Option<(&'a str, bool)>, String>;

/// One answer for each claim of the pod's spec.
fn claim_entries(pod: &PodInfo) -> Vec<Entry<'_>> {
    let mut named = claim_names(pod);
    let needs_none = |entry: &crate::devices::asked::PodClaim| {
        let made = pod.made_claims.iter().flat_map(|m| m.iter()).find(|(of, _)| *of == entry.name);
        entry.resource_claim_name.is_none() && made.is_some_and(|(_, name)| name.is_none())
    };
    pod.shape.claims.iter().map(|entry| if needs_none(entry) { Ok(None) } else { named.next().transpose() }).collect()
}

/// It can go nowhere yet.
pub(super) fn whole(pod: &PodInfo, rejection: &Rejection, findings: &mut Vec<Finding>) {
    for reason in rejection.reasons(pod) {
        let fix = if reason.contains("device class") { "create the class, or name another in a new claim (kubectl get deviceclasses)" } else { "wait a moment; if it stays so, knarr status tells whether the scheduler runs" };
        findings.push(finding("device claims", reason, fix));
    }
}

/// One node will not do: the problem, and what to do.
pub(super) fn on_node(pod: &PodInfo, reason: &str, node: &NodeView, known: &Devices) -> (String, String) {
    match reason {
        "cannot allocate all claims" => {
            let surveys = known.survey(pod, node);
            let short: Vec<&Survey> = surveys.iter().filter(|s| s.wanted.map_or(s.matching == 0 || s.free() < s.matching, |wanted| s.free() < wanted)).collect();
            if short.is_empty() {
                return ("there are devices for each request, but not for all of them together, under the claims' constraints".into(), "relax the constraints, ask for less, or free devices there".into());
            }
            (short.iter().map(|s| lacking(s)).collect::<Vec<_>>().join("; "), remedy(short[0]))
        }
        "resourceclaim not available on the node" => {
            let world = known.0.read_recursive();
            let claims = world.claims_of(pod).unwrap_or_default();
            let names: Vec<String> = claims.iter().filter(|c| crate::devices::world::allocation(c).is_some()).map(|c| c.name_any()).collect();
            (format!("the devices of {} are allocated elsewhere, or do not get ready", names.join(", ")), "the pod must go where its devices are; mend what keeps it from those nodes".into())
        }
        "invalid resource pools were encountered" => ("a pool of devices there contradicts itself".into(), "see the driver's ResourceSlices: kubectl get resourceslices".into()),
        "cannot fit resource" => ("the node has neither the extended resource nor devices behind it".into(), "add a node with it, or a DeviceClass with extendedResourceName".into()),
        other => (other.to_string(), "change the pod's claims".into()),
    }
}

fn lacking(s: &Survey) -> String {
    let wanted = s.wanted.map_or("all".to_string(), |n| n.to_string());
    let mut text = format!("request {} of claim {} asks for {wanted} of class {}: ", s.request, s.claim, s.class);
    text += &match (s.near, s.matching) {
        (0, _) => "no driver offers devices there".to_string(),
        (near, 0) => format!("none of {near} devices there is what the selectors want"),
        (_, matching) => {
            let mut parts = vec![format!("{matching} devices there match")];
            if s.taken > 0 {
                parts.push(format!("{} of them belong to other claims", s.taken));
            }
            if s.tainted > 0 {
                parts.push(format!("{} have taints that the request does not tolerate", s.tainted));
            }
            parts.join(", ")
        }
    };
    s.unusable.iter().for_each(|pool| text += &format!("; the pool {pool}"));
    text
}

fn remedy(s: &Survey) -> String {
    match s {
        Survey { near: 0, .. } => "run the driver of the devices there (kubectl get resourceslices)".into(),
        Survey { matching: 0, .. } => format!("relax the selectors of the claim or of the class {}", s.class),
        Survey { tainted: 1.., taken: 0, .. } => "tolerate the taints in the claim, or mend the devices".into(),
        _ => "delete pods that use such devices, or add devices".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn pods_that_devices_concern() {
        let about = |spec: Value| concern(&serde_json::from_value(json!({"spec": spec})).expect("a pod"));
        let asking = |name: &str| json!({"containers": [{"name": "c", "resources": {"requests": {name: "1"}}}]});
        assert!(about(json!({"containers": [], "resourceClaims": [{"name": "c"}]})));
        assert!(about(asking("example.com/gpu")));
        assert!(!about(asking("cpu")));
        assert!(!about(json!({"containers": [], "resourceClaims": []})));
        let init = json!({"containers": [], "initContainers": [{"name": "i", "resources": {"requests": {"example.com/gpu": "1"}}}]});
        assert!(about(init));
    }

    #[test]
    fn what_a_node_lacks_and_what_would_help() {
        let survey = |near: usize, matching: usize, taken: usize, tainted: usize| Survey {
            claim: "c".into(),
            request: "r".into(),
            class: "gpu".into(),
            wanted: Some(2),
            near,
            matching,
            taken,
            tainted,
            unusable: Vec::new(),
        };
        let told = |s: Survey| (lacking(&s).split(": ").nth(1).unwrap_or_default().to_string(), remedy(&s));
        let (what, help) = told(survey(0, 0, 0, 0));
        assert_eq!(what, "no driver offers devices there");
        assert!(help.starts_with("run the driver"));
        let (what, help) = told(survey(4, 0, 0, 0));
        assert_eq!((what.as_str(), help.as_str()), ("none of 4 devices there is what the selectors want", "relax the selectors of the claim or of the class gpu"));
        let (what, help) = told(survey(4, 2, 0, 1));
        assert_eq!((what.as_str(), help.as_str()), ("2 devices there match, 1 have taints that the request does not tolerate", "tolerate the taints in the claim, or mend the devices"));
        let (what, help) = told(survey(4, 2, 1, 0));
        assert_eq!((what.as_str(), help.as_str()), ("2 devices there match, 1 of them belong to other claims", "delete pods that use such devices, or add devices"));
        assert_eq!(told(survey(4, 1, 0, 0)).0, "1 devices there match");
    }
}
