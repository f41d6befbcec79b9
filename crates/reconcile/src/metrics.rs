//! Counts of work queues, in Prometheus' text format under the names that client-go has for them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

/// Upper bounds of the histograms, in seconds.
const BUCKETS: [f64; 12] = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0];

/// How often something took how long.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Histogram {
    counts: [u64; BUCKETS.len()],
    total: u64,
    sum: f64,
}

impl Histogram {
    pub fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        if let Some(i) = BUCKETS.iter().position(|b| seconds <= *b) {
            self.counts[i] += 1;
        }
        self.total += 1;
        self.sum += seconds;
    }

    fn write(&self, out: &mut String, family: &str, queue: &str) {
        let mut sum = 0;
        for (bound, count) in BUCKETS.iter().zip(self.counts) {
            sum += count;
            let _ = writeln!(out, "{family}_bucket{{name=\"{queue}\",le=\"{}\"}} {sum}", short(*bound));
        }
        let _ = writeln!(out, "{family}_bucket{{name=\"{queue}\",le=\"+Inf\"}} {}", self.total);
        let _ = writeln!(out, "{family}_sum{{name=\"{queue}\"}} {}\n{family}_count{{name=\"{queue}\"}} {}", self.sum, self.total);
    }
}

/// Small numbers as Go writes them.
fn short(bound: f64) -> String {
    if bound < 1e-4 { format!("{bound:e}").replace("e-", "e-0") } else { bound.to_string() }
}

/// What a queue tells of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Numbers {
    pub depth: usize,
    pub adds: u64,
    pub retries: u64,
    /// From being put in to being taken out.
    pub waited: Histogram,
    /// From being taken out to being done.
    pub worked: Histogram,
    /// What is being worked on now: all of it together, and the longest.
    pub unfinished: Duration,
    pub longest: Duration,
}

/// A queue of any keys.
pub(crate) trait Observed: Send + Sync {
    fn numbers(&self) -> Numbers;
}

/// The queues of a group of tasks, by name.
#[derive(Clone, Default)]
pub(crate) struct Registry(Arc<Mutex<BTreeMap<&'static str, Weak<dyn Observed>>>>);

impl Registry {
    pub fn register(&self, name: &'static str, queue: Weak<dyn Observed>) {
        self.0.lock().insert(name, queue);
    }

    /// A reading of one family: its name, type, help and value.
    pub fn render(&self) -> String {
        type Read = fn(&Numbers) -> f64;
        let all: Vec<(&'static str, Numbers)> = self.0.lock().iter().filter_map(|(name, q)| Some((*name, q.upgrade()?.numbers()))).collect();
        let mut out = String::new();
        let single: [(&str, &str, &str, Read); 5] = [
            ("workqueue_adds_total", "counter", "Total number of adds handled by workqueue", |n| n.adds as f64),
            ("workqueue_depth", "gauge", "Current depth of workqueue", |n| n.depth as f64),
            (
                "workqueue_longest_running_processor_seconds",
                "gauge",
                "How many seconds has the longest running processor for workqueue been running.",
                |n| n.longest.as_secs_f64(),
            ),
            ("workqueue_retries_total", "counter", "Total number of retries handled by workqueue", |n| n.retries as f64),
            (
                "workqueue_unfinished_work_seconds",
                "gauge",
                "How many seconds of work has done that is in progress and hasn't been observed by work_duration. Large values indicate stuck \
                 threads. One can deduce the number of stuck threads by observing the rate at which this increases.",
                |n| n.unfinished.as_secs_f64(),
            ),
        ];
        for (family, kind, help, read) in single {
            let _ = writeln!(out, "# HELP {family} [ALPHA] {help}\n# TYPE {family} {kind}");
            for (name, numbers) in &all {
                let _ = writeln!(out, "{family}{{name=\"{name}\"}} {}", read(numbers));
            }
        }
        let spread: [(&str, &str, fn(&Numbers) -> &Histogram); 2] = [
            ("workqueue_queue_duration_seconds", "How long in seconds an item stays in workqueue before being requested.", |n| &n.waited),
            ("workqueue_work_duration_seconds", "How long in seconds processing an item from workqueue takes.", |n| &n.worked),
        ];
        for (family, help, read) in spread {
            let _ = writeln!(out, "# HELP {family} [ALPHA] {help}\n# TYPE {family} histogram");
            all.iter().for_each(|(name, numbers)| read(numbers).write(&mut out, family, name));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Queue;

    #[tokio::test]
    async fn a_queue_tells_what_it_did() {
        let (registry, queue) = (Registry::default(), Queue::<u32>::new());
        registry.register("test", queue.observed());
        [1, 2, 2].into_iter().for_each(|key| queue.add(key));
        let expect = |lines: &[&str]| {
            let text = registry.render();
            for line in lines {
                let line = line.replace('(', "{name=\"test\"").replace(')', "}");
                assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
            }
        };
        expect(&["workqueue_adds_total() 2", "workqueue_depth() 2", "workqueue_unfinished_work_seconds() 0"]);
        let key = queue.next().await;
        expect(&["workqueue_depth() 1", "workqueue_queue_duration_seconds_count() 1", "workqueue_work_duration_seconds_count() 0"]);
        queue.add_rate_limited(key);
        queue.done(&key);
        expect(&["workqueue_retries_total() 1", "workqueue_work_duration_seconds_count() 1", "workqueue_work_duration_seconds_bucket(,le=\"1000\") 1"]);
        drop(queue);
        assert!(!registry.render().contains("name="), "a queue that is gone tells nothing");
    }

    #[test]
    fn histograms_add_up() {
        let mut histogram = Histogram::default();
        for took in [Duration::ZERO, Duration::from_millis(20), Duration::from_secs(2), Duration::from_secs(5000)] {
            histogram.observe(took);
        }
        let mut text = String::new();
        histogram.write(&mut text, "f", "q");
        for line in [
            "f_bucket{name=\"q\",le=\"1e-08\"} 1",
            "f_bucket{name=\"q\",le=\"0.01\"} 1",
            "f_bucket{name=\"q\",le=\"0.1\"} 2",
            "f_bucket{name=\"q\",le=\"1000\"} 3",
            "f_bucket{name=\"q\",le=\"+Inf\"} 4",
            "f_sum{name=\"q\"} 5002.02",
            "f_count{name=\"q\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
