//! Tells kubelets how long they may keep what they read: the larger the cluster, the longer.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use parking_lot::Mutex;
use reconcile::{Queue, Requeue, run_workers};
use serde_json::json;

use crate::{Context, pods};

const TTL: &str = "node.alpha.kubernetes.io/ttl";

/// Fewest and most nodes of a step, and the seconds that hold on it. The steps overlap, so that one
/// node more or less does not make all nodes be written.
const STEPS: [(usize, usize, u32); 5] = [(0, 100, 0), (90, 500, 15), (450, 1000, 30), (900, 2000, 60), (1800, usize::MAX, 300)];

/// The step for this many nodes, coming from another.
pub fn step(from: usize, nodes: usize) -> usize {
    let mut step = from;
    while nodes > STEPS[step].1 {
        step += 1;
    }
    while nodes < STEPS[step].0 {
        step -= 1;
    }
    step
}

/// Starts the controller.
pub fn start(context: &Context) {
    let nodes = context.informers.of::<Node>();
    let queue = Queue::<String>::new();
    let q = queue.clone();
    nodes.on_change(move |change| q.add(change.latest().name_any()));
    let client = context.client.clone();
    let current = Arc::new(Mutex::new(0));
    run_workers(&context.tasks, "ttl", context.workers(5), queue, move |name: String| {
        let (client, nodes, current) = (client.clone(), nodes.clone(), current.clone());
        async move {
            nodes.synced().await;
            let wanted = {
                let mut current = current.lock();
                *current = step(*current, nodes.len());
                STEPS[*current].2.to_string()
            };
            let Some(node) = nodes.get("", &name).filter(|n| n.annotations().get(TTL) != Some(&wanted)) else { return Ok(Requeue::No) };
            let patch = json!({"metadata": {"uid": node.uid(), "annotations": {TTL: wanted}}});
            pods::written(Api::<Node>::all(client).patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop))
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_overlap() {
        assert_eq!(step(0, 1), 0);
        assert_eq!(step(0, 100), 0);
        assert_eq!(step(0, 101), 1);
        assert_eq!(step(1, 95), 1, "it stays until there are fewer than 90");
        assert_eq!(step(1, 89), 0);
        assert_eq!(step(0, 5000), 4);
        assert_eq!(step(4, 1800), 4);
        assert_eq!(step(4, 0), 0);
    }
}
