//! What a pod asks for: its claims by name, and the extended resources of its containers.

use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::ResourceExt;
use serde::Deserialize;

use crate::pod::PodInfo;
use crate::requests::{List, Resources};

/// An entry of `spec.resourceClaims`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodClaim {
    pub name: Box<str>,
    pub resource_claim_name: Option<Box<str>>,
    pub resource_claim_template_name: Option<Box<str>>,
}

/// What a container asks for that devices may stand behind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerDevices {
    /// Among the init containers and then the others.
    pub index: usize,
    pub name: Box<str>,
    /// It runs as long as the pod: it is no init container, or one that stays.
    pub stays: bool,
    /// Resource, its number among all that the container asks for in the order of names, amount.
    pub requests: Vec<(Box<str>, usize, i64)>,
}

/// Resources that stand for a class of devices by its name.
const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";

/// The resource that stands for a class of devices without having been named there.
pub(crate) fn implicit_resource(class: &str) -> String {
    format!("{IMPLICIT}{class}")
}

/// Whether devices may stand behind a resource of this name.
pub(crate) fn may_be_devices(name: &str) -> bool {
    name.starts_with(IMPLICIT) || (name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests."))
}

impl ContainerDevices {
    /// Reads the requests of a container; nothing when none of them is of that kind.
    pub(crate) fn of(index: usize, name: &str, stays: bool, requests: &List) -> Option<ContainerDevices> {
        if !requests.keys().any(|k| may_be_devices(k)) {
            return None;
        }
        let amounts = Resources::parse(requests);
        let requests: Vec<_> = requests.keys().enumerate().filter(|(_, k)| may_be_devices(k)).map(|(at, k)| (k.as_str().into(), at, amounts.get(k))).collect();
        Some(ContainerDevices { index, name: name.into(), stays, requests })
    }
}

/// The names of a pod's claims, and whether they must have been made for it; entries that need none are
/// left out. An error is what upstream says of a claim that was not made yet.
pub(crate) fn claim_names(pod: &PodInfo) -> impl Iterator<Item = Result<(&str, bool), String>> {
    let (namespace, name) = (pod.namespace(), pod.name());
    pod.shape.claims.iter().filter_map(move |claim| {
        if let Some(name) = &claim.resource_claim_name {
            return Some(Ok((name.as_ref(), false)));
        }
        if claim.resource_claim_template_name.is_none() {
            return Some(Err(format!("pod \"{namespace}/{name}\", spec.resourceClaim {:?}: none of the supported fields are set", claim.name)));
        }
        match pod.made_claims.iter().flat_map(|m| m.iter()).find(|(of, _)| *of == claim.name) {
            Some((_, made)) => made.as_deref().map(|made| Ok((made, true))),
            None => Some(Err(format!("pod \"{namespace}/{name}\": ResourceClaim not created yet"))),
        }
    })
}

/// Whether a claim was made for a pod.
pub(crate) fn is_for(pod: &PodInfo, claim: &ResourceClaim) -> bool {
    claim.owner_references().iter().any(|o| o.controller == Some(true) && o.uid == pod.uid())
}

/// Whether a claim is reserved for a pod.
pub(crate) fn is_reserved_for(pod: &PodInfo, claim: &ResourceClaim) -> bool {
    claim.status.iter().flat_map(|s| s.reserved_for.iter().flatten()).any(|r| r.uid == pod.uid())
}
