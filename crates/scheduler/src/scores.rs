//! The scores of the nodes that are left, each from 0 to 100, with upstream's weights.

use k8s_openapi::api::core::v1::Pod;

use crate::affinity;
use crate::filters::tolerated;
use crate::snapshot::{NodeInfo, nonzero_requests};

const MAX: i64 = 100;
/// An image this small gives no score.
const SMALL_IMAGE: i64 = 23 * 1024 * 1024;
/// The size at which a container's images give the full score.
const LARGE_IMAGE: i64 = 1000 * 1024 * 1024;

/// The total score of each node, in their order.
pub(crate) fn score(pod: &Pod, nodes: &[&NodeInfo], all: usize) -> Vec<i64> {
    let intolerable: Vec<i64> = nodes.iter().map(|n| soft_taints(pod, n)).collect();
    let preferred: Vec<i64> = nodes.iter().map(|n| affinity::preference(pod, &n.node)).collect();
    let most_taints = intolerable.iter().copied().max().unwrap_or(0);
    let most_preferred = preferred.iter().copied().max().unwrap_or(0);
    let (cpu, memory) = nonzero_requests(pod);
    nodes
        .iter()
        .enumerate()
        .map(|(i, node)| {
            let taints = if most_taints == 0 { MAX } else { MAX - intolerable[i] * MAX / most_taints };
            let affinity = if most_preferred == 0 { 0 } else { preferred[i] * MAX / most_preferred };
            3 * taints + 2 * affinity + least_allocated(node, cpu, memory) + balanced(node, pod) + images(pod, node, nodes, all)
        })
        .collect()
}

fn soft_taints(pod: &Pod, node: &NodeInfo) -> i64 {
    let taints = node.node.spec.as_ref().and_then(|s| s.taints.as_ref());
    taints.into_iter().flatten().filter(|t| t.effect == "PreferNoSchedule" && !tolerated(pod, t)).count() as i64
}

fn least_allocated(node: &NodeInfo, cpu: i64, memory: i64) -> i64 {
    let part = |used: i64, all: i64| if all == 0 || used > all { 0 } else { (all - used) * MAX / all };
    let parts = [
        (node.nonzero.0 + cpu, node.allocatable.get("cpu")),
        (node.nonzero.1 + memory, node.allocatable.get("memory")),
    ];
    let known: Vec<i64> = parts.iter().filter(|(_, all)| *all > 0).map(|(used, all)| part(*used, *all)).collect();
    if known.is_empty() { 0 } else { known.iter().sum::<i64>() / known.len() as i64 }
}

/// Nodes whose resources are used evenly are better, and better still if the pod makes them so.
fn balanced(node: &NodeInfo, pod: &Pod) -> i64 {
    let requests = crate::requests::pod_requests(pod);
    let spread = |with: bool| -> f64 {
        let fractions: Vec<f64> = ["cpu", "memory"]
            .iter()
            .filter(|name| node.allocatable.get(name) > 0)
            .map(|name| {
                let used = node.requested.get(name) + if with { requests.get(name) } else { 0 };
                (used as f64 / node.allocatable.get(name) as f64).min(1.0)
            })
            .collect();
        match fractions[..] {
            [a, b] => ((a - b) / 2.0).abs(),
            _ => 0.0,
        }
    };
    if requests.get("cpu") == 0 && requests.get("memory") == 0 {
        return 0;
    }
    let value = |with| ((1.0 - spread(with)) * MAX as f64) as i64;
    MAX / 2 + (MAX / 2 + value(true) - value(false)) / 2
}

fn images(pod: &Pod, node: &NodeInfo, nodes: &[&NodeInfo], all: usize) -> i64 {
    let Some(spec) = &pod.spec else { return 0 };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let names: Vec<String> = containers.filter_map(|c| c.image.as_deref()).map(normalized).collect();
    let sum: i64 = names
        .iter()
        .filter_map(|name| {
            let size = *node.images.get(name)?;
            let holders = nodes.iter().filter(|n| n.images.contains_key(name)).count();
            Some((size as f64 * holders as f64 / all.max(1) as f64) as i64)
        })
        .sum();
    let top = LARGE_IMAGE * names.len().max(1) as i64;
    MAX * (sum.clamp(SMALL_IMAGE, top) - SMALL_IMAGE) / (top - SMALL_IMAGE)
}

fn normalized(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || image.contains('@') { image.to_string() } else { format!("{image}:latest") }
}
