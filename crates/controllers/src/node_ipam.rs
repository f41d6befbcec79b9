//! Gives each node a range of pod addresses, cut from the cluster's.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use reconcile::{EventType, Queue, Recorder, Reference, Requeue, run_workers};
use serde_json::json;

use crate::Context;

/// The first range of `mask` bits within `cluster` that is not taken.
pub fn next_range(cluster: (Ipv4Addr, u8), mask: u8, taken: &HashSet<String>) -> Option<String> {
    if mask < cluster.1 || mask > 32 {
        return None;
    }
    let base = u64::from(u32::from(cluster.0)) & (u64::from(u32::MAX) << (32 - cluster.1));
    (0..1u64 << (mask - cluster.1))
        .map(|i| format!("{}/{mask}", Ipv4Addr::from((base + (i << (32 - mask))) as u32)))
        .find(|range| !taken.contains(range))
}

/// Starts the controller.
pub fn start(context: &Context, cluster: (Ipv4Addr, u8), mask: u8) {
    let nodes = context.informers.of::<Node>();
    let queue = Queue::<String>::new();
    let q = queue.clone();
    nodes.on_change(move |change| {
        if let Some(node) = &change.new
            && node.spec.as_ref().is_none_or(|s| s.pod_cidr.is_none())
        {
            q.add(node.name_any());
        }
    });
    let recorder = Recorder::new(&context.tasks, context.client.clone(), "cidrAllocator", None);
    let client = context.client.clone();
    // Ranges given that the informer may not show yet. One worker, so nothing is given twice.
    let given = std::sync::Arc::new(parking_lot::Mutex::new(std::collections::HashMap::<String, String>::new()));
    run_workers(&context.tasks, "node-ipam", 1, queue, move |name: String| {
        let (client, nodes, recorder, given) = (client.clone(), nodes.clone(), recorder.clone(), given.clone());
        async move {
            nodes.synced().await;
            let Some(node) = nodes.get("", &name) else { return Ok(Requeue::No) };
            if node.spec.as_ref().is_some_and(|s| s.pod_cidr.is_some()) {
                return Ok(Requeue::No);
            }
            let all = nodes.list();
            let known: HashSet<String> = all.iter().map(|n| n.name_any()).collect();
            let taken: HashSet<String> = {
                let mut given = given.lock();
                given.retain(|node, _| known.contains(node));
                let assigned = all.iter().filter_map(|n| n.spec.as_ref()?.pod_cidr.clone());
                assigned.chain(given.iter().filter(|(n, _)| **n != name).map(|(_, r)| r.clone())).collect()
            };
            let Some(range) = next_range(cluster, mask, &taken) else {
                recorder.event(&Reference::of(node.as_ref()), EventType::Normal, "CIDRNotAvailable", format!("Node {name} status is now: CIDRNotAvailable"));
                return Ok(Requeue::After(std::time::Duration::from_secs(30)));
            };
            let patch = json!({"metadata": {"uid": node.uid()}, "spec": {"podCIDR": range, "podCIDRs": [range]}});
            let api = Api::<Node>::all(client);
            given.lock().insert(name.clone(), range);
            match api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => Ok(Requeue::No),
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(Requeue::No),
                Err(error) => Err(error),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_given_in_order_and_run_out() {
        let cluster = (Ipv4Addr::new(10, 244, 0, 0), 22);
        let mut taken = HashSet::new();
        for expected in ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"] {
            let range = next_range(cluster, 24, &taken).expect("there is room");
            assert_eq!(range, expected);
            taken.insert(range);
        }
        assert_eq!(next_range(cluster, 24, &taken), None);
        taken.remove("10.244.1.0/24");
        assert_eq!(next_range(cluster, 24, &taken).as_deref(), Some("10.244.1.0/24"));
        let first = |address: [u8; 4], width, mask| next_range((address.into(), width), mask, &HashSet::new());
        assert_eq!(first([10, 244, 3, 7], 22, 24).as_deref(), Some("10.244.0.0/24"), "the range that the address is in");
        assert_eq!(first([10, 244, 0, 0], 24, 24).as_deref(), Some("10.244.0.0/24"), "one node may have it all");
        assert_eq!(first([10, 244, 0, 0], 30, 32).as_deref(), Some("10.244.0.0/32"));
        assert_eq!((first([10, 244, 0, 0], 24, 23), first([10, 244, 0, 0], 24, 33)), (None, None));
    }
}
