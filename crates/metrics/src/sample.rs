//! Scrapes of a kubelet, and what two of them say of the use in between. Pure: times come in.

use std::collections::BTreeMap;

use crate::exposition::samples;

/// Nanoseconds since 1970.
pub type Nanos = i128;

const SECOND: Nanos = 1_000_000_000;
/// A container that began since the scrape before is measured from its start when it has run this long.
const SHORTEST: Nanos = 2 * SECOND;
/// Longer ago than this, the start is no base for what is used now.
const LONGEST: Nanos = 60 * SECOND;

/// Counters of a container or node at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Point {
    pub at: Nanos,
    /// When the container was started, where the kubelet says so.
    pub started: Option<Nanos>,
    /// Processor time since then, in seconds.
    pub cpu: Option<f64>,
    /// Bytes in use that cannot be had back at once.
    pub memory: Option<f64>,
}

/// Namespace and name.
pub type PodKey = (String, String);

/// One page of a kubelet's `/metrics/resource`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scrape {
    pub node: Point,
    /// Containers by name, by pod.
    pub pods: BTreeMap<PodKey, BTreeMap<String, Point>>,
}

/// What is used, on average over a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// End of the window.
    pub at: Nanos,
    /// Length of the window in nanoseconds.
    pub window: Nanos,
    /// Billionths of a core.
    pub cpu: u64,
    /// Bytes, at the end of the window.
    pub memory: u64,
}

/// Reads a page that came at `now`, which counts where its lines have no time of their own.
pub fn parse(page: &str, now: Nanos) -> Scrape {
    let mut scrape = Scrape { node: Point { at: now, ..Point::default() }, pods: BTreeMap::new() };
    for sample in samples(page) {
        let (of_node, field) = match sample.name {
            "node_cpu_usage_seconds_total" => (true, 0),
            "node_memory_working_set_bytes" => (true, 1),
            "container_cpu_usage_seconds_total" => (false, 0),
            "container_memory_working_set_bytes" => (false, 1),
            "container_start_time_seconds" => (false, 2),
            _ => continue,
        };
        let point = if of_node {
            &mut scrape.node
        } else {
            let key = (sample.label("namespace").to_string(), sample.label("pod").to_string());
            let pod = scrape.pods.entry(key).or_default();
            pod.entry(sample.label("container").to_string()).or_insert_with(|| Point { at: now, ..Point::default() })
        };
        match field {
            0 => {
                point.cpu = Some(sample.value);
                point.at = sample.timestamp.map_or(now, |ms| Nanos::from(ms) * 1_000_000);
            }
            1 => point.memory = Some(sample.value),
            _ => point.started = Some((sample.value * 1e9) as Nanos),
        }
    }
    scrape
}

/// What was used between two points. `None` when they do not tell: something is missing, or what ran
/// has been started anew and has not run for long enough yet.
pub fn usage(before: Option<&Point>, now: &Point) -> Option<Usage> {
    let (cpu, memory) = (now.cpu?, now.memory?);
    if memory <= 0.0 {
        return None;
    }
    let from_start = || {
        let started = now.started.filter(|s| (SHORTEST..=LONGEST).contains(&(now.at - s)))?;
        Some((started, 0.0))
    };
    let anew = |b: &Point| now.started.zip(b.started).is_some_and(|(n, b)| n > b) || b.cpu.is_some_and(|b| b > cpu);
    let (from, base) = match before {
        Some(b) if !anew(b) => (b.at, b.cpu?),
        _ => from_start()?,
    };
    let window = now.at - from;
    if window <= 0 {
        return None;
    }
    let rate = (cpu - base) / (window as f64 / 1e9);
    Some(Usage { at: now.at, window, cpu: (rate * 1e9).max(0.0).round() as u64, memory: memory as u64 })
}

/// What the containers of a pod use; `None` unless it is known of all of them.
pub fn pod(before: Option<&Scrape>, now: &Scrape, key: &PodKey) -> Option<Vec<(String, Usage)>> {
    let containers = now.pods.get(key)?;
    let earlier = before.and_then(|b| b.pods.get(key));
    let all = containers.iter().map(|(name, point)| Some((name.clone(), usage(earlier.and_then(|e| e.get(name)), point)?)));
    all.collect::<Option<Vec<_>>>().filter(|all| !all.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "node_cpu_usage_seconds_total 100 20000\nnode_memory_working_set_bytes 4096\n\
        container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 3 20500\n\
        container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 2048 20500\n\
        container_start_time_seconds{container=\"c\",namespace=\"n\",pod=\"p\"} 5.5\nother 1\n";

    #[test]
    fn pages_are_read() {
        let scrape = parse(PAGE, 21 * SECOND);
        assert_eq!(scrape.node, Point { at: 20 * SECOND, started: None, cpu: Some(100.0), memory: Some(4096.0) });
        let point = &scrape.pods[&("n".into(), "p".into())]["c"];
        assert_eq!(*point, Point { at: 20_500_000_000, started: Some(5_500_000_000), cpu: Some(3.0), memory: Some(2048.0) });
        assert_eq!(parse("node_cpu_usage_seconds_total 1\n", 7).node.at, 7, "a line without a time is of the moment it came");
    }

    fn point(at: i64, started: i64, cpu: f64) -> Point {
        Point { at: Nanos::from(at) * SECOND, started: Some(Nanos::from(started) * SECOND), cpu: Some(cpu), memory: Some(1000.0) }
    }

    #[test]
    fn two_points_make_a_rate() {
        let used = usage(Some(&point(10, 0, 5.0)), &point(25, 0, 8.0)).expect("both points are there");
        assert_eq!((used.cpu, used.memory, used.window, used.at), (200_000_000, 1000, 15 * SECOND, 25 * SECOND));
        assert_eq!(usage(Some(&point(25, 0, 8.0)), &point(25, 0, 8.0)), None, "the same scrape twice says nothing");
    }

    #[test]
    fn what_was_started_anew_counts_from_its_start_and_not_too_early() {
        let started = usage(Some(&point(10, 0, 50.0)), &point(25, 20, 2.0)).expect("five seconds are enough");
        assert_eq!((started.cpu, started.window), (400_000_000, 5 * SECOND));
        assert_eq!(usage(Some(&point(10, 0, 50.0)), &point(25, 24, 2.0)), None);
        assert_eq!(usage(None, &point(25, 15, 2.0)).map(|u| u.cpu), Some(200_000_000));
        assert_eq!(usage(None, &point(5000, 15, 2.0)), None, "a mean over its whole life is not what it uses");
        let unknown = Point { started: None, ..point(25, 0, 2.0) };
        assert_eq!(usage(Some(&Point { started: None, ..point(10, 0, 50.0) }), &unknown), None, "the counter fell: a new start");
    }

    #[test]
    fn a_pod_is_known_when_all_its_containers_are() {
        let scrape = |at, names: &[&str]| {
            let containers = names.iter().map(|n| (n.to_string(), point(at, 0, at as f64))).collect();
            Scrape { node: Point::default(), pods: [(("n".to_string(), "p".to_string()), containers)].into() }
        };
        let key = ("n".to_string(), "p".to_string());
        assert_eq!(pod(Some(&scrape(100, &["a", "b"])), &scrape(115, &["a", "b"]), &key).map(|c| c.len()), Some(2));
        assert_eq!(pod(Some(&scrape(100, &["a"])), &scrape(115, &["a", "b"]), &key), None);
        assert_eq!(pod(None, &scrape(115, &[]), &key), None);
    }
}
