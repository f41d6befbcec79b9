//! `/metrics/resource`: use of processor and memory by containers, pods and the node, which
//! metrics-server and our own `metrics` read. Nothing here walks through files.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use cri::v1::{ContainerStats, ListContainersRequest};
use kube::ResourceExt;

use super::exposition::Page;
use super::stats::{containers, cpu, memory, name, node_cpu, node_memory};
use crate::manager::Pods;
use crate::node::meminfo;
use crate::pod::{self, label};
use crate::worker::Shared;

const STABLE: &str = "STABLE";
const ALPHA: &str = "ALPHA";

/// What one container uses.
struct Container {
    name: String,
    started: Option<i64>,
    at: i64,
    cpu: u64,
    memory: u64,
    swap: Option<u64>,
}

/// What one pod uses as a whole.
struct OfPod {
    namespace: String,
    pod: String,
    at: i64,
    cpu: u64,
    memory: u64,
    swap: u64,
    containers: Vec<Container>,
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn container(stats: &ContainerStats, started: &HashMap<String, i64>) -> Container {
    let id = stats.attributes.as_ref().map_or("", |a| a.id.as_str());
    Container {
        name: name(stats, label::CONTAINER_NAME),
        started: started.get(id).copied().filter(|at| *at > 0),
        at: stats.cpu.as_ref().map_or_else(now, |c| c.timestamp),
        cpu: cpu(stats),
        memory: memory(stats),
        swap: stats.swap.as_ref().and_then(|s| s.swap_usage_bytes.as_ref()).map(|v| v.value),
    }
}

/// The page.
pub async fn metrics(shared: &Shared, pods: &Pods) -> String {
    let listed = shared.runtime.list_containers(ListContainersRequest::default()).await;
    let failed = listed.is_err();
    let started = listed.map(|l| l.containers.into_iter().map(|c| (c.id, c.created_at)).collect()).unwrap_or_default();
    let mut by_pod: BTreeMap<String, Vec<ContainerStats>> = BTreeMap::new();
    for stats in containers(shared).await {
        by_pod.entry(name(&stats, label::POD_UID)).or_default().push(stats);
    }
    let mut all = Vec::new();
    for pod in pods.list() {
        let Some(stats) = by_pod.remove(&pod::uid(&pod)) else { continue };
        let mut containers: Vec<Container> = stats.iter().map(|s| container(s, &started)).collect();
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        // The pod's own group counts containers that ended too.
        let group = shared.cgroups.as_ref().and_then(|c| c.stats(&pod));
        let (cpu, memory, swap) = match &group {
            Some(group) => (group.cpu.usage, group.memory.working_set, group.memory.swap),
            None => containers.iter().fold((0, 0, 0), |sum, c| (sum.0 + c.cpu, sum.1 + c.memory, sum.2 + c.swap.unwrap_or(0))),
        };
        all.push(OfPod { namespace: pod.namespace().unwrap_or_default(), pod: pod.name_any(), at: now(), cpu, memory, swap, containers });
    }
    let node_swap = u64::try_from(meminfo("SwapTotal") - meminfo("SwapFree")).unwrap_or(0);
    page(&all, Node { at: now(), cpu: node_cpu(), memory: node_memory().0, swap: node_swap }, failed)
}

/// What the whole node uses.
struct Node {
    at: i64,
    cpu: u64,
    memory: u64,
    swap: u64,
}

fn page(pods: &[OfPod], node: Node, failed: bool) -> String {
    let mut page = Page::default();
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    let of_containers = |page: &mut Page, name: &str, kind: &str, stability: &str, help: &str, value: &dyn Fn(&Container) -> Option<f64>| {
        page.family(name, kind, stability, help);
        for pod in pods {
            for c in &pod.containers {
                let labels = [("container", c.name.as_str()), ("namespace", &pod.namespace), ("pod", &pod.pod)];
                let at = (name != "container_start_time_seconds").then_some(c.at);
                if let Some(value) = value(c) {
                    page.sample(name, &labels, value, at);
                }
            }
        }
    };
    of_containers(&mut page, "container_cpu_usage_seconds_total", "counter", STABLE, "Cumulative cpu time consumed by the container in core-seconds", &|c| {
        Some(seconds(c.cpu))
    });
    of_containers(&mut page, "container_memory_working_set_bytes", "gauge", STABLE, "Current working set of the container in bytes", &|c| {
        Some(c.memory as f64)
    });
    of_containers(&mut page, "container_start_time_seconds", "gauge", STABLE, "Start time of the container since unix epoch in seconds", &|c| {
        c.started.map(|at| at as f64 / 1e9)
    });
    let help = "Current amount of the container swap usage in bytes. Reported only on non-windows systems";
    of_containers(&mut page, "container_swap_usage_bytes", "gauge", ALPHA, help, &|c| c.swap.map(|s| s as f64));

    let of_node = [
        ("node_cpu_usage_seconds_total", "counter", STABLE, "Cumulative cpu time consumed by the node in core-seconds", seconds(node.cpu)),
        ("node_memory_working_set_bytes", "gauge", STABLE, "Current working set of the node in bytes", node.memory as f64),
        ("node_swap_usage_bytes", "gauge", ALPHA, "Current swap usage of the node in bytes. Reported only on non-windows systems", node.swap as f64),
    ];
    for (name, kind, stability, help, value) in of_node {
        page.family(name, kind, stability, help);
        page.sample(name, &[], value, Some(node.at));
    }

    let mut of_pods = |name: &str, kind: &str, stability: &str, help: &str, value: &dyn Fn(&OfPod) -> f64| {
        page.family(name, kind, stability, help);
        for pod in pods {
            page.sample(name, &[("namespace", &pod.namespace), ("pod", &pod.pod)], value(pod), Some(pod.at));
        }
    };
    of_pods("pod_cpu_usage_seconds_total", "counter", STABLE, "Cumulative cpu time consumed by the pod in core-seconds", &|p| seconds(p.cpu));
    of_pods("pod_memory_working_set_bytes", "gauge", STABLE, "Current working set of the pod in bytes", &|p| p.memory as f64);
    let help = "Current amount of the pod swap usage in bytes. Reported only on non-windows systems";
    of_pods("pod_swap_usage_bytes", "gauge", ALPHA, help, &|p| p.swap as f64);
    let help = "1 if there was an error while getting container metrics, 0 otherwise";
    page.one("resource_scrape_error", "gauge", STABLE, help, f64::from(u8::from(failed)));
    page.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_upstreams_families() {
        let container = Container { name: "c".into(), started: Some(1_700_000_000_500_000_000), at: 1_700_000_010_000_000_000, cpu: 1_500_000_000, memory: 4096, swap: Some(0) };
        let pod = OfPod { namespace: "n".into(), pod: "p".into(), at: 1_700_000_010_000_000_000, cpu: 2_000_000_000, memory: 8192, swap: 0, containers: vec![container] };
        let text = page(&[pod], Node { at: 1_700_000_010_000_000_000, cpu: 3_000_000_000, memory: 1, swap: 2 }, false);
        for line in [
            "# TYPE container_cpu_usage_seconds_total counter",
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 1.5 1700000010000",
            "container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 4096 1700000010000",
            "container_start_time_seconds{container=\"c\",namespace=\"n\",pod=\"p\"} 1700000000.5",
            "container_swap_usage_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 0 1700000010000",
            "node_cpu_usage_seconds_total 3 1700000010000",
            "pod_cpu_usage_seconds_total{namespace=\"n\",pod=\"p\"} 2 1700000010000",
            "pod_memory_working_set_bytes{namespace=\"n\",pod=\"p\"} 8192 1700000010000",
            "resource_scrape_error 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
