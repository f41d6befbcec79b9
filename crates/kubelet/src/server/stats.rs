//! `/stats/summary`: what pods and the node use, as one JSON object.

use std::collections::{BTreeMap, HashMap};

use cri::v1::{ContainerStats, ListContainerStatsRequest, ListContainersRequest, ListPodSandboxStatsRequest, NetworkInterfaceUsage, PodSandboxStats, UInt64Value};
use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::Config;
use crate::manager::Pods;
use crate::node::meminfo;
use crate::pod::{self, label};
use crate::worker::Shared;

pub(super) async fn containers(shared: &Shared) -> Vec<ContainerStats> {
    shared.runtime.list_container_stats(ListContainerStatsRequest::default()).await.map(|a| a.stats).unwrap_or_default()
}

fn time(nanos: i64) -> String {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_else(|_| Timestamp::now()).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub(super) fn cpu(stats: &ContainerStats) -> u64 {
    stats.cpu.as_ref().and_then(|c| c.usage_core_nano_seconds.as_ref()).map_or(0, |v| v.value)
}

pub(super) fn memory(stats: &ContainerStats) -> u64 {
    stats.memory.as_ref().and_then(|m| m.working_set_bytes.as_ref()).map_or(0, |v| v.value)
}

pub(super) fn name(stats: &ContainerStats, key: &str) -> String {
    stats.attributes.as_ref().and_then(|a| a.labels.get(key)).cloned().unwrap_or_default()
}

/// Processor time of the whole node, in nanoseconds: what `/proc/stat` counts as not idle.
pub(super) fn node_cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let numbers: Vec<u64> = text.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; in hundredths of a second on every Linux.
    let busy: u64 = numbers.iter().take(8).enumerate().filter(|(i, _)| *i != 3 && *i != 4).map(|(_, n)| n).sum();
    busy * 10_000_000
}

pub(super) fn node_memory() -> (u64, u64) {
    let (total, available) = (meminfo("MemTotal"), meminfo("MemAvailable"));
    (u64::try_from(total - available).unwrap_or(0), u64::try_from(available).unwrap_or(0))
}

fn value(value: &Option<UInt64Value>) -> Option<u64> {
    value.as_ref().map(|v| v.value)
}

/// When the node was booted.
fn booted() -> Option<i64> {
    let seconds: i64 = std::fs::read_to_string("/proc/stat").ok()?.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse().ok())?;
    Some(seconds * 1_000_000_000)
}

fn interface(usage: &NetworkInterfaceUsage) -> Value {
    json!({"name": usage.name, "rxBytes": value(&usage.rx_bytes), "rxErrors": value(&usage.rx_errors),
        "txBytes": value(&usage.tx_bytes), "txErrors": value(&usage.tx_errors)})
}

/// `NetworkStats`: the default interface stands in it and in the list of all.
fn network(stats: &PodSandboxStats) -> Option<Value> {
    let usage = stats.linux.as_ref()?.network.as_ref()?;
    let mut all: Vec<Value> = usage.interfaces.iter().map(interface).collect();
    let mut object = usage.default_interface.as_ref().map_or_else(|| json!({"name": ""}), interface);
    if let Some(default) = &usage.default_interface {
        all.insert(0, interface(default));
    }
    object["time"] = time(usage.timestamp).into();
    object["interfaces"] = all.into();
    Some(object)
}

/// `ContainerStats`
fn container(s: &ContainerStats, started: &HashMap<String, i64>, now: &str) -> Value {
    let (m, c) = (s.memory.clone().unwrap_or_default(), s.cpu.clone().unwrap_or_default());
    let id = s.attributes.as_ref().map_or("", |a| a.id.as_str());
    let mut object = json!({
        "name": name(s, label::CONTAINER_NAME),
        "startTime": started.get(id).map_or_else(|| now.to_string(), |at| time(*at)),
        "cpu": {"time": time(c.timestamp), "usageCoreNanoSeconds": cpu(s)},
        "memory": {"time": time(m.timestamp), "workingSetBytes": memory(s)},
        "rootfs": {"time": now, "usedBytes": s.writable_layer.as_ref().and_then(|w| value(&w.used_bytes)),
            "inodesUsed": s.writable_layer.as_ref().and_then(|w| value(&w.inodes_used))},
    });
    let mut put = |part: &str, key: &str, amount: Option<u64>| {
        if let Some(amount) = amount {
            object[part][key] = amount.into();
        }
    };
    put("cpu", "usageNanoCores", value(&c.usage_nano_cores));
    put("memory", "usageBytes", value(&m.usage_bytes));
    put("memory", "rssBytes", value(&m.rss_bytes));
    put("memory", "availableBytes", value(&m.available_bytes));
    put("memory", "pageFaults", value(&m.page_faults));
    put("memory", "majorPageFaults", value(&m.major_page_faults));
    if let Some(swap) = &s.swap {
        object["swap"] = json!({"time": time(swap.timestamp), "swapUsageBytes": value(&swap.swap_usage_bytes).unwrap_or(0)});
    }
    object
}

/// `stats/v1alpha1.Summary`.
pub async fn summary(config: &Config, shared: &Shared, pods: &Pods) -> Value {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut by_pod: BTreeMap<String, Vec<ContainerStats>> = BTreeMap::new();
    for stats in containers(shared).await {
        by_pod.entry(name(&stats, label::POD_UID)).or_default().push(stats);
    }
    let runtime = &shared.runtime;
    let started = runtime.list_containers(ListContainersRequest::default()).await.map(|a| a.containers).unwrap_or_default();
    let started: HashMap<String, i64> = started.into_iter().map(|c| (c.id, c.created_at)).collect();
    let sandboxes = runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await.map(|a| a.stats).unwrap_or_default();
    let uid = |s: &PodSandboxStats| s.attributes.as_ref().and_then(|a| a.labels.get(label::POD_UID)).cloned().unwrap_or_default();
    let sandboxes: HashMap<String, PodSandboxStats> = sandboxes.into_iter().map(|s| (uid(&s), s)).collect();
    let mut listed = Vec::new();
    for pod in pods.list() {
        let Some(stats) = by_pod.remove(&pod::uid(&pod)) else { continue };
        let of_group = shared.cgroups.as_ref().and_then(|c| c.stats(&pod));
        let (cpu_sum, memory_sum) = match &of_group {
            Some(group) => (group.cpu.usage, group.memory.working_set),
            None => (stats.iter().map(cpu).sum(), stats.iter().map(memory).sum()),
        };
        let containers: Vec<Value> = stats.iter().map(|s| container(s, &started, &now)).collect();
        let start = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        let mut object = json!({
            "podRef": {"name": pod.name_any(), "namespace": pod.namespace().unwrap_or_default(), "uid": pod::uid(&pod)},
            "startTime": start.unwrap_or_else(|| now.clone()),
            "containers": containers,
            "cpu": {"time": now, "usageCoreNanoSeconds": cpu_sum},
            "memory": {"time": now, "workingSetBytes": memory_sum},
        });
        if let Some(group) = &of_group {
            object["swap"] = json!({"time": now, "swapUsageBytes": group.memory.swap});
            object["process_stats"] = json!({"process_count": group.pids});
        }
        if let Some(network) = sandboxes.get(&pod::uid(&pod)).and_then(network) {
            object["network"] = network;
        }
        listed.push(object);
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
            "startTime": booted().map_or_else(|| now.clone(), time),
            "cpu": {"time": now, "usageCoreNanoSeconds": node_cpu()},
            "memory": {"time": now, "workingSetBytes": used, "usageBytes": used, "availableBytes": available},
            "fs": fs,
            "swap": {"time": now, "swapUsageBytes": u64::try_from(meminfo("SwapTotal") - meminfo("SwapFree")).unwrap_or(0),
                "swapAvailableBytes": u64::try_from(meminfo("SwapFree")).unwrap_or(0)},
        },
        "pods": listed,
    })
}
