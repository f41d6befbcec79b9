//! What was found, as it is written into a claim's status.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceRequestAllocationResult, OpaqueDeviceConfiguration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kube::ResourceExt;

use super::allocator::{Chosen, Solution};
use super::slice::Place;

/// Most alternatives that a request can have.
const MOST_ALTERNATIVES: i64 = 8;

/// The allocation of a claim for a pod on a node. `share_id` makes names for the shares of devices.
pub fn allocation(solution: &Solution<'_>, node: &str, share_id: &mut dyn FnMut() -> String) -> AllocationResult {
    let results = solution.devices.iter().map(|chosen| result(chosen, share_id)).collect();
    let config = configuration(solution);
    AllocationResult {
        allocation_timestamp: None,
        devices: Some(DeviceAllocationResult { config: Some(config).filter(|c| !c.is_empty()), results: Some(results) }),
        node_selector: reach(&solution.devices, node),
    }
}

fn result(chosen: &Chosen<'_>, share_id: &mut dyn FnMut() -> String) -> DeviceRequestAllocationResult {
    let Chosen { request, slice, device, consumed, .. } = chosen;
    let amounts = |amounts: &BTreeMap<String, api::quantity::Quantity>| amounts.iter().map(|(name, amount)| (name.clone(), Text(amount.canonical()))).collect();
    DeviceRequestAllocationResult {
        request: request.full.clone(),
        driver: slice.driver.to_string(),
        pool: slice.pool.to_string(),
        device: device.name.to_string(),
        admin_access: request.admin.then_some(true),
        tolerations: Some(request.tolerations.clone()).filter(|t| !t.is_empty()),
        share_id: consumed.is_some().then(share_id),
        consumed_capacity: consumed.as_ref().filter(|c| !c.is_empty()).map(amounts),
        binding_conditions: device.binding_conditions.clone(),
        binding_failure_conditions: device.binding_failure_conditions.clone(),
    }
}

/// The configuration of the classes that were used, each once, and then what the claim says of its
/// requests.
fn configuration(solution: &Solution<'_>) -> Vec<DeviceAllocationConfiguration> {
    let taken = || solution.choices.iter().zip(&solution.picked).filter_map(|(choice, picked)| Some((choice, choice.requests.get(*picked)?)));
    let mut all: Vec<DeviceAllocationConfiguration> = Vec::new();
    let mut by_class: BTreeMap<String, std::ops::Range<usize>> = BTreeMap::new();
    for (_, request) in taken() {
        if let Some(range) = by_class.get(&request.class.name_any()) {
            all[range.clone()].iter_mut().for_each(|c| c.requests.get_or_insert_default().push(request.full.clone()));
            continue;
        }
        let first = all.len();
        let one = |opaque: &Option<OpaqueDeviceConfiguration>| DeviceAllocationConfiguration { source: "FromClass".into(), requests: Some(vec![request.full.clone()]), opaque: opaque.clone() };
        all.extend(request.class.spec.config.iter().flatten().map(|c| one(&c.opaque)));
        by_class.insert(request.class.name_any(), first..all.len());
    }
    for config in solution.claim.spec.devices.iter().flat_map(|d| d.config.iter().flatten()) {
        let wanted = config.requests.as_deref().unwrap_or(&[]);
        let one = || DeviceAllocationConfiguration { source: "FromClaim".into(), requests: config.requests.clone(), opaque: config.opaque.clone() };
        if wanted.is_empty() {
            all.push(one());
            continue;
        }
        let applies = taken().filter(|(choice, request)| wanted.contains(&choice.name) || wanted.contains(&request.full));
        all.extend(applies.map(|_| one()));
    }
    all
}

/// The nodes that can reach all the devices; `None` when every node can.
fn reach(devices: &[Chosen<'_>], node: &str) -> Option<NodeSelector> {
    let mut term = NodeSelectorTerm::default();
    for Chosen { slice, device, .. } in devices {
        let place = if matches!(slice.place, Place::ByDevice) { &device.place } else { &slice.place };
        if device.binds_to_node || matches!(place, Place::Node(_)) {
            let name = NodeSelectorRequirement { key: "metadata.name".into(), operator: "In".into(), values: Some(vec![node.into()]) };
            return Some(NodeSelector { node_selector_terms: vec![NodeSelectorTerm { match_expressions: None, match_fields: Some(vec![name]) }] });
        }
        // Slices have one term.
        if let Place::Selected(selector, _) = place
            && let Some(more) = selector.node_selector_terms.first()
        {
            add(&mut term.match_fields, &more.match_fields);
            add(&mut term.match_expressions, &more.match_expressions);
        }
    }
    let says_something = term.match_fields.is_some() || term.match_expressions.is_some();
    says_something.then(|| NodeSelector { node_selector_terms: vec![term] })
}

fn add(to: &mut Option<Vec<NodeSelectorRequirement>>, more: &Option<Vec<NodeSelectorRequirement>>) {
    let values = |r: &NodeSelectorRequirement| r.values.iter().flatten().cloned().collect::<BTreeSet<_>>();
    for requirement in more.iter().flatten() {
        let list = to.get_or_insert_default();
        if !list.iter().any(|known| known.key == requirement.key && known.operator == requirement.operator && values(known) == values(requirement)) {
            list.push(requirement.clone());
        }
    }
}

/// What the alternatives are worth that were taken: the first of a request the most.
pub fn worth(solution: &Solution<'_>) -> i64 {
    let open = solution.choices.iter().zip(&solution.picked).filter(|(choice, _)| choice.is_open);
    open.map(|(_, picked)| MOST_ALTERNATIVES - *picked as i64).sum()
}
