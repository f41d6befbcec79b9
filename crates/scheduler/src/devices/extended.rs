//! Extended resources that devices stand behind: what the containers of a pod ask for, as requests of a
//! claim that the scheduler makes, and which request each container's share comes from.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ContainerExtendedResourceRequest;
use k8s_openapi::api::resource::v1::{DeviceClaim, DeviceRequest, ExactDeviceRequest, ResourceClaim, ResourceClaimSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::asked::{ContainerDevices, may_be_devices};
use super::world::{EXTENDED, World};
use crate::pod::PodInfo;
use crate::requests::Resources;

/// The name of a claim that is not written yet: none that a claim could have.
const UNNAMED: &str = "<extended-resources>";

/// A claim for extended resources, and which of its requests each container's share comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Extended {
    pub claim: ResourceClaim,
    pub mappings: Vec<ContainerExtendedResourceRequest>,
}

/// Whether devices stand behind something that a pod asks for.
pub fn concerns(world: &World, pod: &PodInfo) -> bool {
    !pod.shape.devices.is_empty() && pod.shape.requests.other.iter().any(|(name, amount)| *amount != 0 && may_be_devices(name) && world.class_behind(name).is_some())
}

/// What of a pod's extended resources a node must get as devices, with the names of the classes; an error
/// when there is something that it cannot have at all.
pub fn wanted(world: &World, pod: &PodInfo, allocatable: &Resources) -> Result<BTreeMap<String, String>, &'static str> {
    let mut wanted = BTreeMap::new();
    for (name, amount) in pod.shape.requests.other.iter().filter(|(name, _)| may_be_devices(name)) {
        let class = world.class_behind(name).and_then(|c| c.metadata.name.clone());
        match class {
            _ if *amount == 0 => {}
            Some(class) if allocatable.get(name) == 0 => drop(wanted.insert(name.to_string(), class)),
            _ if !allocatable.other.iter().any(|(n, _)| n == name) => return Err("cannot fit resource"),
            _ => {}
        }
    }
    Ok(wanted)
}

/// One container's request, and the shares of requests that it has.
fn request(container: &ContainerDevices, resource: &str, class: &str, reusable: &[Option<DeviceRequest>]) -> (Option<DeviceRequest>, Vec<ContainerExtendedResourceRequest>) {
    let share = |request: &str| ContainerExtendedResourceRequest { container_name: container.name.to_string(), resource_name: resource.into(), request_name: request.into() };
    let Some((_, number, amount)) = container.requests.iter().find(|(name, _, amount)| name.as_ref() == resource && *amount != 0) else { return (None, Vec::new()) };
    let (mut shares, mut there) = (Vec::new(), 0);
    for known in reusable.iter().flatten() {
        there += count(known);
        shares.push(share(&known.name));
        if there >= *amount {
            return (None, shares);
        }
    }
    let name = format!("container-{}-request-{number}", container.index);
    shares.push(share(&name));
    let exactly = ExactDeviceRequest { device_class_name: class.into(), allocation_mode: Some("ExactCount".into()), count: Some(amount - there), ..ExactDeviceRequest::default() };
    (Some(DeviceRequest { name, exactly: Some(exactly), first_available: None }), shares)
}

fn count(request: &DeviceRequest) -> i64 {
    request.exactly.as_ref().and_then(|e| e.count).unwrap_or(0)
}

/// The claim for these resources. Init containers that end use what the others get later, and the largest
/// of their own requests serves all of them.
pub fn claim(pod: &PodInfo, wanted: &BTreeMap<String, String>) -> Extended {
    let containers = &pod.shape.devices;
    let (mut requests, mut mappings) = (Vec::new(), Vec::new());
    for (resource, class) in wanted {
        let mut lasting: Vec<Option<DeviceRequest>> = vec![None; containers.len()];
        for (at, container) in containers.iter().enumerate().filter(|(_, c)| c.stays) {
            let (own, shares) = request(container, resource, class, &[]);
            lasting[at] = own;
            mappings.extend(shares);
        }
        let (mut largest, mut names, mut passing) = (None::<DeviceRequest>, Vec::new(), Vec::new());
        for (at, container) in containers.iter().enumerate().filter(|(_, c)| !c.stays) {
            let (own, shares) = request(container, resource, class, &lasting[at..]);
            passing.extend(shares);
            if let Some(own) = own {
                names.push(own.name.clone());
                if largest.as_ref().is_none_or(|l| count(l) < count(&own)) {
                    largest = Some(own);
                }
            }
        }
        if let Some(largest) = &largest {
            passing.iter_mut().filter(|s| names.contains(&s.request_name)).for_each(|s| s.request_name = largest.name.clone());
        }
        requests.extend(largest);
        requests.extend(lasting.into_iter().flatten());
        mappings.extend(passing);
    }
    requests.sort_by(|a: &DeviceRequest, b| a.name.cmp(&b.name));
    let owner = OwnerReference { api_version: "v1".into(), kind: "Pod".into(), name: pod.name().into(), uid: pod.uid().into(), controller: Some(true), block_owner_deletion: None };
    let metadata = ObjectMeta {
        name: Some(UNNAMED.into()),
        namespace: Some(pod.namespace().into()),
        generate_name: Some(format!("{}-extended-resources-", pod.name())),
        uid: Some(format!("{UNNAMED}{}", pod.uid())),
        owner_references: Some(vec![owner]),
        annotations: Some([(EXTENDED.to_string(), "true".to_string())].into()),
        ..ObjectMeta::default()
    };
    let devices = DeviceClaim { requests: Some(requests), ..DeviceClaim::default() };
    Extended { claim: ResourceClaim { metadata, spec: ResourceClaimSpec { devices: Some(devices) }, status: None }, mappings }
}
