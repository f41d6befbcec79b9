//! The kubelet's own metrics, and those of probes.

use std::collections::BTreeMap;

use cri::v1::ListContainersRequest;

use super::exposition::Page;
use crate::Config;
use crate::manager::Pods;
use crate::probes::ProbeCounts;
use crate::worker::Shared;

const ALPHA: &str = "ALPHA";

/// `/metrics`
pub async fn metrics(config: &Config, pods: &Pods, shared: &Shared) -> String {
    let mut page = Page::default();
    page.family("kubelet_node_name", "gauge", ALPHA, "The node's name. The count is always 1.");
    page.sample("kubelet_node_name", &[("node", &config.node_name)], 1.0, None);

    let all = pods.list();
    let running = all.iter().filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")).count();
    page.one("kubelet_running_pods", "gauge", ALPHA, "Number of pods that have a running pod sandbox", running as f64);

    let listed = shared.runtime.list_containers(ListContainersRequest::default()).await.map(|a| a.containers).unwrap_or_default();
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for container in listed {
        let state = ["created", "running", "exited"].get(usize::try_from(container.state).unwrap_or(3)).unwrap_or(&"unknown");
        *states.entry(state).or_default() += 1;
    }
    page.family("kubelet_running_containers", "gauge", ALPHA, "Number of containers currently running");
    for (state, count) in states {
        page.sample("kubelet_running_containers", &[("container_state", state)], count as f64, None);
    }
    let help = "Desired number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.";
    page.family("kubelet_desired_pods", "gauge", ALPHA, help);
    page.sample("kubelet_desired_pods", &[("static", "")], all.len() as f64, None);
    process(&mut page);
    page.text()
}

/// What every Prometheus client says of its process.
fn process(page: &mut Page) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let stat = read("stat");
    // Fields after the command, which may hold spaces: user and system time are the 12th and 13th.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let number = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    let resident: f64 = read("statm").split_whitespace().nth(1).and_then(|p| p.parse().ok()).unwrap_or(0.0);
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    page.one("process_cpu_seconds_total", "counter", "", "Total user and system CPU time spent in seconds.", (number(11) + number(12)) / 100.0);
    page.one("process_resident_memory_bytes", "gauge", "", "Resident memory size in bytes.", resident * 4096.0);
    page.one("process_open_fds", "gauge", "", "Number of open file descriptors.", files as f64);
}

/// `/metrics/probes`
pub fn probes(counts: &ProbeCounts) -> String {
    let mut page = Page::default();
    let help = "Cumulative number of a liveness, readiness or startup probe for a container by result.";
    page.family("prober_probe_total", "counter", "BETA", help);
    for ((kind, result, container, pod, namespace, uid), count) in counts.all() {
        let labels = [("container", container.as_str()), ("namespace", &namespace), ("pod", &pod), ("pod_uid", &uid), ("probe_type", kind), ("result", result)];
        page.sample("prober_probe_total", &labels, count as f64, None);
    }
    page.text()
}
