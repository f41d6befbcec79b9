//! `/metrics/cadvisor`: containers and sandboxes under the names that dashboards know from cAdvisor, as
//! far as the CRI tells.

use std::collections::HashMap;

use cri::v1::{Container, ContainerStats, ListContainersRequest, ListPodSandboxStatsRequest, PodSandboxStats, UInt64Value};

use super::exposition::Page;
use super::stats::name;
use crate::node::meminfo;
use crate::pod::label;
use crate::worker::Shared;

/// One series: who it is of, its value and when that was read.
type Row = ([String; 6], f64, i64);

/// A family with the value of each container, where it has one.
type OfContainer = (&'static str, &'static str, &'static str, fn(&ContainerStats) -> Option<(f64, i64)>);

fn value(value: &Option<UInt64Value>) -> Option<f64> {
    value.as_ref().map(|v| v.value as f64)
}

const CONTAINERS: &[OfContainer] = &[
    ("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", |s| {
        let cpu = s.cpu.as_ref()?;
        Some((value(&cpu.usage_core_nano_seconds)? / 1e9, cpu.timestamp))
    }),
    ("container_memory_usage_bytes", "gauge", "Current memory usage in bytes, including all memory regardless of when it was accessed", |s| {
        let memory = s.memory.as_ref()?;
        Some((value(&memory.usage_bytes)?, memory.timestamp))
    }),
    ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |s| {
        let memory = s.memory.as_ref()?;
        Some((value(&memory.working_set_bytes)?, memory.timestamp))
    }),
    ("container_memory_rss", "gauge", "Size of RSS in bytes.", |s| {
        let memory = s.memory.as_ref()?;
        Some((value(&memory.rss_bytes)?, memory.timestamp))
    }),
    ("container_memory_swap", "gauge", "Container swap usage in bytes.", |s| {
        let swap = s.swap.as_ref()?;
        Some((value(&swap.swap_usage_bytes)?, swap.timestamp))
    }),
    ("container_fs_usage_bytes", "gauge", "Number of bytes that are consumed by the container on this filesystem.", |s| {
        let layer = s.writable_layer.as_ref()?;
        Some((value(&layer.used_bytes)?, layer.timestamp))
    }),
];

/// The page.
pub async fn metrics(shared: &Shared) -> String {
    let sandboxes = shared.runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await.map(|a| a.stats).unwrap_or_default();
    let listed = shared.runtime.list_containers(ListContainersRequest::default()).await.map(|a| a.containers).unwrap_or_default();
    let known: HashMap<&str, &Container> = listed.iter().map(|c| (c.id.as_str(), c)).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    page(&sandboxes, &known, cores, meminfo("MemTotal"))
}

fn page(sandboxes: &[PodSandboxStats], known: &HashMap<&str, &Container>, cores: usize, memory: i64) -> String {
    let mut page = Page::default();
    let containers = || sandboxes.iter().flat_map(|s| s.linux.iter()).flat_map(|l| l.containers.iter());
    for (family, kind, help, read) in CONTAINERS {
        let rows = containers().filter_map(|c| read(c).map(|(value, at)| (whose(c, known), value, at)));
        write(&mut page, (family, kind, help), rows.collect(), None);
    }
    let started = containers().filter_map(|c| {
        let id = c.attributes.as_ref()?.id.as_str();
        Some((whose(c, known), known.get(id)?.created_at as f64 / 1e9, 0))
    });
    write(&mut page, ("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds."), started.collect(), None);

    let of_sandbox = |s: &PodSandboxStats| {
        let a = s.attributes.clone().unwrap_or_default();
        let label = |key: &str| a.labels.get(key).cloned().unwrap_or_default();
        [String::new(), a.id.clone(), String::new(), String::new(), label(label::POD_NAMESPACE), label(label::POD_NAME)]
    };
    let traffic: [(&str, &str, fn(&cri::v1::NetworkInterfaceUsage) -> Option<f64>); 4] = [
        ("container_network_receive_bytes_total", "Cumulative count of bytes received", |i| value(&i.rx_bytes)),
        ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", |i| value(&i.rx_errors)),
        ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |i| value(&i.tx_bytes)),
        ("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting", |i| value(&i.tx_errors)),
    ];
    for (family, help, read) in traffic {
        let rows = sandboxes.iter().filter_map(|s| {
            let network = s.linux.as_ref()?.network.as_ref()?;
            Some((of_sandbox(s), read(network.default_interface.as_ref()?)?, network.timestamp))
        });
        write(&mut page, (family, "counter", help), rows.collect(), Some("eth0"));
    }
    let processes = sandboxes.iter().filter_map(|s| {
        let process = s.linux.as_ref()?.process.as_ref()?;
        Some((of_sandbox(s), value(&process.process_count)?, process.timestamp))
    });
    write(&mut page, ("container_processes", "gauge", "Number of processes running inside the container."), processes.collect(), None);
    page.one("machine_cpu_cores", "gauge", "", "Number of logical CPU cores.", cores as f64);
    page.one("machine_memory_bytes", "gauge", "", "Amount of memory installed on the machine.", memory as f64);
    page.text()
}

/// container, id, image, name, namespace, pod
fn whose(stats: &ContainerStats, known: &HashMap<&str, &Container>) -> [String; 6] {
    let id = stats.attributes.as_ref().map_or("", |a| a.id.as_str());
    let image = known.get(id).and_then(|c| c.image.as_ref()).map(|i| i.image.clone()).unwrap_or_default();
    let label = |key| name(stats, key);
    [label(label::CONTAINER_NAME), id.to_string(), image, id.to_string(), label(label::POD_NAMESPACE), label(label::POD_NAME)]
}

fn write(page: &mut Page, (family, kind, help): (&str, &str, &str), rows: Vec<Row>, interface: Option<&str>) {
    page.family(family, kind, "", help);
    for (row, value, at) in rows {
        let mut labels: Vec<(&str, &str)> = ["container", "id", "image", "name", "namespace", "pod"].into_iter().zip(row.iter().map(String::as_str)).collect();
        if let Some(interface) = interface {
            labels.insert(3, ("interface", interface));
        }
        page.sample(family, &labels, value, Some(at));
    }
}

#[cfg(test)]
mod tests {
    use cri::v1::{
        ContainerAttributes, CpuUsage, ImageSpec, LinuxPodSandboxStats, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes,
    };

    use super::*;

    #[test]
    fn containers_and_sandboxes_have_cadvisors_names() {
        let labels = |container: &str| -> std::collections::BTreeMap<String, String> {
            [(label::POD_NAME, "p"), (label::POD_NAMESPACE, "n"), (label::CONTAINER_NAME, container)].map(|(k, v)| (k.to_string(), v.to_string())).into()
        };
        let number = |value| Some(UInt64Value { value });
        let stats = ContainerStats {
            attributes: Some(ContainerAttributes { id: "1".into(), labels: labels("c").into_iter().collect(), ..Default::default() }),
            cpu: Some(CpuUsage { timestamp: 5_000_000_000, usage_core_nano_seconds: number(2_500_000_000), ..Default::default() }),
            ..Default::default()
        };
        let network = NetworkUsage {
            timestamp: 5_000_000_000,
            default_interface: Some(NetworkInterfaceUsage { name: "eth0".into(), rx_bytes: number(7), ..Default::default() }),
            interfaces: Vec::new(),
        };
        let sandbox = PodSandboxStats {
            attributes: Some(PodSandboxAttributes { id: "s".into(), labels: labels("").into_iter().collect(), ..Default::default() }),
            linux: Some(LinuxPodSandboxStats { containers: vec![stats], network: Some(network), ..Default::default() }),
        };
        let container = Container { id: "1".into(), image: Some(ImageSpec { image: "i:1".into(), ..Default::default() }), created_at: 1_500_000_000, ..Default::default() };
        let text = page(&[sandbox], &[("1", &container)].into(), 2, 4096);
        for line in [
            "container_cpu_usage_seconds_total{container=\"c\",id=\"1\",image=\"i:1\",name=\"1\",namespace=\"n\",pod=\"p\"} 2.5 5000",
            "container_start_time_seconds{container=\"c\",id=\"1\",image=\"i:1\",name=\"1\",namespace=\"n\",pod=\"p\"} 1.5",
            "container_network_receive_bytes_total{container=\"\",id=\"s\",image=\"\",interface=\"eth0\",name=\"\",namespace=\"n\",pod=\"p\"} 7 5000",
            "machine_cpu_cores 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("container_memory_rss{"), "what is not known is left out");
    }
}
