//! Measures decisions alone: 10,000 pods on 5,000 nodes, one after the other, each counted on its node
//! before the next. `cargo xtask bench scheduler` runs it and reads its lines.

use std::sync::Arc;
use std::time::{Duration, Instant};

use scheduler::{Cluster, Config, Decision, NodeView, PodInfo, Turn, decide};
use serde_json::{Value, json};

const NODES: usize = 5_000;
const PODS: usize = 10_000;

fn node(number: usize) -> Arc<NodeView> {
    let name = format!("node-{number}");
    let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("zone-{}", number % 10)}},
        "status": {"allocatable": {"cpu": "4", "memory": "32Gi", "pods": "110"}}});
    Arc::new(serde_json::from_value(node).expect("a node"))
}

fn pod(name: &str, labels: Value, spec: &Value) -> Arc<PodInfo> {
    let mut spec = spec.clone();
    if spec["containers"].is_null() {
        spec["containers"] = json!([{"name": "c", "image": "pause", "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}}}]);
    }
    let pod = json!({"metadata": {"name": name, "namespace": "bench", "uid": name, "labels": labels}, "spec": spec,
        "status": {"startTime": "2026-01-01T00:00:00Z"}});
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

fn cluster() -> Cluster {
    Cluster::new((0..NODES).map(node), [])
}

struct Run {
    times: Vec<Duration>,
    placed: usize,
    victims: usize,
}

fn run(cluster: &mut Cluster, pods: impl Iterator<Item = Arc<PodInfo>>) -> Run {
    let config = Config::default();
    let mut run = Run { times: Vec::new(), placed: 0, victims: 0 };
    let mut start = 0;
    for (seed, pod) in pods.enumerate() {
        let begin = Instant::now();
        let turn = Turn { config: &config, profile: 0, plugins: &[], budgets: &[], start, seed: seed as u64, explain: false };
        let outcome = decide(cluster, &pod, &turn);
        start = outcome.start;
        match outcome.decision {
            Decision::Bind(node) => {
                cluster.place(&node, &pod);
                run.placed += 1;
            }
            Decision::Unschedulable(failure) => {
                if let Some(victims) = failure.preemption {
                    run.victims += victims.pods.len();
                    victims.pods.iter().for_each(|v| drop(cluster.remove_pod(v.uid())));
                    cluster.place(&victims.node, &pod);
                    run.placed += 1;
                }
            }
            Decision::Failed(_) => {}
        }
        run.times.push(begin.elapsed());
    }
    run
}

fn report(name: &str, mut run: Run) {
    run.times.sort_unstable();
    let at = |part: f64| run.times[((run.times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    let total: Duration = run.times.iter().sum();
    let rate = run.times.len() as f64 / total.as_secs_f64();
    println!("{name}\tp50 {:.0} us\tp99 {:.0} us\tmost {:.0} us\t{rate:.0} pods/s\tplaced {}\tvictims {}", at(0.5), at(0.99), at(1.0), run.placed, run.victims);
}

fn main() {
    let labels = |color: &str| json!({"color": color});
    let many = |spec: Value, color: &'static str| (0..PODS).map(move |i| pod(&format!("pod-{i}"), labels(color), &spec));
    let term = |topology: &str| json!([{"labelSelector": {"matchLabels": {"color": "green"}}, "topologyKey": topology}]);

    report("basic", run(&mut cluster(), many(json!({}), "blue")));
    let near = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term("topology.kubernetes.io/zone")}}});
    report("required affinity", run(&mut cluster(), many(near, "green")));
    // Of pods that shun each other no more fit than there are nodes.
    let far = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term("kubernetes.io/hostname")}}});
    report("required anti-affinity", run(&mut cluster(), many(far, "green").take(NODES)));
    let even = json!({"topologySpreadConstraints": [{"maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"color": "green"}}},
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"color": "green"}}}]});
    report("topology spread", run(&mut cluster(), many(even, "green")));
    report("fits nowhere", run(&mut cluster(), many(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "8"}}}]}), "blue").take(1_000)));

    let mut full = cluster();
    let low = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "900m", "memory": "500Mi"}}}]});
    for i in 0..NODES * 4 {
        full.place(&format!("node-{}", i / 4), &pod(&format!("low-{i}"), labels("blue"), &low));
    }
    let high = json!({"priority": 1000, "containers": [{"name": "c", "resources": {"requests": {"cpu": "3"}}}]});
    report("preemption", run(&mut full, (0..5_000).map(|i| pod(&format!("high-{i}"), labels("red"), &high))));
}
