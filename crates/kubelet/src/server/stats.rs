//! What pods and the node use: the summary that metrics-server reads, and Prometheus texts.

use std::collections::BTreeMap;
use std::fmt::Write;

use cri::v1::{ContainerStats, ListContainerStatsRequest};
use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::Config;
use crate::manager::Pods;
use crate::node::meminfo;
use crate::pod::{self, label};
use crate::worker::Shared;

async fn containers(shared: &Shared) -> Vec<ContainerStats> {
    shared.runtime.list_container_stats(ListContainerStatsRequest::default()).await.map(|a| a.stats).unwrap_or_default()
}

fn time(nanos: i64) -> String {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_else(|_| Timestamp::now()).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn cpu(stats: &ContainerStats) -> u64 {
    stats.cpu.as_ref().and_then(|c| c.usage_core_nano_seconds.as_ref()).map_or(0, |v| v.value)
}

fn memory(stats: &ContainerStats) -> u64 {
    stats.memory.as_ref().and_then(|m| m.working_set_bytes.as_ref()).map_or(0, |v| v.value)
}

fn name(stats: &ContainerStats, key: &str) -> String {
    stats.attributes.as_ref().and_then(|a| a.labels.get(key)).cloned().unwrap_or_default()
}

/// Processor time of the whole node, in nanoseconds: what `/proc/stat` counts as not idle.
fn node_cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let numbers: Vec<u64> = text.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; in hundredths of a second on every Linux.
    let busy: u64 = numbers.iter().take(8).enumerate().filter(|(i, _)| *i != 3 && *i != 4).map(|(_, n)| n).sum();
    busy * 10_000_000
}

fn node_memory() -> (u64, u64) {
    let (total, available) = (meminfo("MemTotal"), meminfo("MemAvailable"));
    (u64::try_from(total - available).unwrap_or(0), u64::try_from(available).unwrap_or(0))
}

/// `stats/v1alpha1.Summary`.
pub async fn summary(config: &Config, shared: &Shared, pods: &Pods) -> Value {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut by_pod: BTreeMap<String, Vec<ContainerStats>> = BTreeMap::new();
    for stats in containers(shared).await {
        by_pod.entry(name(&stats, label::POD_UID)).or_default().push(stats);
    }
    let mut listed = Vec::new();
    for pod in pods.list() {
        let Some(stats) = by_pod.remove(&pod::uid(&pod)) else { continue };
        let of_group = shared.cgroups.as_ref().and_then(|c| c.stats(&pod));
        let (cpu_sum, memory_sum) = match &of_group {
            Some(group) => (group.cpu.usage, group.memory.working_set),
            None => (stats.iter().map(cpu).sum(), stats.iter().map(memory).sum()),
        };
        let containers: Vec<Value> = stats
            .iter()
            .map(|s| {
                let value = |v: &Option<cri::v1::UInt64Value>| v.as_ref().map(|v| v.value);
                let m = s.memory.clone().unwrap_or_default();
                let c = s.cpu.clone().unwrap_or_default();
                json!({
                    "name": name(s, label::CONTAINER_NAME),
                    "startTime": now,
                    "cpu": {"time": time(c.timestamp), "usageCoreNanoSeconds": cpu(s), "usageNanoCores": value(&c.usage_nano_cores)},
                    "memory": {"time": time(m.timestamp), "workingSetBytes": memory(s), "usageBytes": value(&m.usage_bytes), "rssBytes": value(&m.rss_bytes),
                        "pageFaults": value(&m.page_faults), "majorPageFaults": value(&m.major_page_faults)},
                    "rootfs": {"time": now, "usedBytes": s.writable_layer.as_ref().and_then(|w| value(&w.used_bytes))},
                })
            })
            .collect();
        let start = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        listed.push(json!({
            "podRef": {"name": pod.name_any(), "namespace": pod.namespace().unwrap_or_default(), "uid": pod::uid(&pod)},
            "startTime": start.unwrap_or_else(|| now.clone()),
            "containers": containers,
            "cpu": {"time": now, "usageCoreNanoSeconds": cpu_sum},
            "memory": {"time": now, "workingSetBytes": memory_sum},
        }));
    }
    let (used, available) = node_memory();
    let disk = rustix::fs::statvfs(&config.root_dir);
    let fs = disk.map_or(Value::Null, |s| {
        json!({"time": now, "availableBytes": s.f_bavail * s.f_frsize, "capacityBytes": s.f_blocks * s.f_frsize,
            "usedBytes": (s.f_blocks - s.f_bfree) * s.f_frsize, "inodesFree": s.f_ffree, "inodes": s.f_files, "inodesUsed": s.f_files.saturating_sub(s.f_ffree)})
    });
    json!({
        "node": {
            "nodeName": config.node_name,
            "startTime": now,
            "cpu": {"time": now, "usageCoreNanoSeconds": node_cpu()},
            "memory": {"time": now, "workingSetBytes": used, "usageBytes": used, "availableBytes": available},
            "fs": fs,
        },
        "pods": listed,
    })
}

/// `/metrics/resource`.
pub async fn resource_metrics(shared: &Shared) -> String {
    let mut text = String::new();
    let all = containers(shared).await;
    let tags = |s: &ContainerStats| {
        format!("container=\"{}\",namespace=\"{}\",pod=\"{}\"", name(s, label::CONTAINER_NAME), name(s, label::POD_NAMESPACE), name(s, label::POD_NAME))
    };
    let head = |text: &mut String, name: &str, kind: &str, help: &str| {
        let _ = writeln!(text, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
    };
    head(&mut text, "container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the container in core-seconds");
    for stats in &all {
        let _ = writeln!(text, "container_cpu_usage_seconds_total{{{}}} {}", tags(stats), cpu(stats) as f64 / 1e9);
    }
    head(&mut text, "container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes");
    for stats in &all {
        let _ = writeln!(text, "container_memory_working_set_bytes{{{}}} {}", tags(stats), memory(stats));
    }
    head(&mut text, "node_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the node in core-seconds");
    let _ = writeln!(text, "node_cpu_usage_seconds_total {}", node_cpu() as f64 / 1e9);
    head(&mut text, "node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes");
    let _ = writeln!(text, "node_memory_working_set_bytes {}", node_memory().0);
    let mut of_pods: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    for stats in &all {
        let sum = of_pods.entry((name(stats, label::POD_NAMESPACE), name(stats, label::POD_NAME))).or_default();
        sum.0 += cpu(stats);
        sum.1 += memory(stats);
    }
    head(&mut text, "pod_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the pod in core-seconds");
    for ((namespace, pod), (cpu, _)) in &of_pods {
        let _ = writeln!(text, "pod_cpu_usage_seconds_total{{namespace=\"{namespace}\",pod=\"{pod}\"}} {}", *cpu as f64 / 1e9);
    }
    head(&mut text, "pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes");
    for ((namespace, pod), (_, memory)) in &of_pods {
        let _ = writeln!(text, "pod_memory_working_set_bytes{{namespace=\"{namespace}\",pod=\"{pod}\"}} {memory}");
    }
    text
}

/// `/metrics`: how many pods and containers there are.
pub async fn metrics(pods: &Pods, shared: &Shared) -> String {
    let running = |p: &std::sync::Arc<k8s_openapi::api::core::v1::Pod>| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
    let count = pods.list().iter().filter(|p| running(p)).count();
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    let listed = shared.runtime.list_containers(Default::default()).await.map(|a| a.containers).unwrap_or_default();
    for container in listed {
        let state = ["created", "running", "exited"].get(usize::try_from(container.state).unwrap_or(3)).unwrap_or(&"unknown");
        *states.entry(state).or_default() += 1;
    }
    let mut text = String::from("# HELP kubelet_running_pods [ALPHA] Number of pods that have a running pod sandbox\n# TYPE kubelet_running_pods gauge\n");
    let _ = writeln!(text, "kubelet_running_pods {count}");
    text += "# HELP kubelet_running_containers [ALPHA] Number of containers currently running\n# TYPE kubelet_running_containers gauge\n";
    for (state, count) in states {
        let _ = writeln!(text, "kubelet_running_containers{{container_state=\"{state}\"}} {count}");
    }
    text
}
