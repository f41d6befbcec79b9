//! What admission takes, for `/metrics`: each plug-in and each step, without a lock, for writes pass all of them.
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::admission::{Admission, Operation};

/// Upper bounds, in seconds.
const BUCKETS: [f64; 6] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
const OPERATIONS: [Operation; 4] = [Operation::Create, Operation::Update, Operation::Delete, Operation::Connect];

/// The two steps of admission.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    Admit,
    Validate,
}

const STEPS: [Step; 2] = [Step::Admit, Step::Validate];

impl Operation {
    /// As upstream writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

#[derive(Default)]
struct Cell {
    counts: [AtomicU64; BUCKETS.len() + 1],
    nanos: AtomicU64,
}

/// By step, operation, and whether it ended in a refusal.
#[derive(Default)]
struct Cells([[[Cell; 2]; OPERATIONS.len()]; 2]);

impl Cells {
    fn observe(&self, step: Step, operation: Operation, rejected: bool, took: Duration) {
        let cell = &self.0[step as usize][operation as usize][usize::from(rejected)];
        let bucket = BUCKETS.iter().position(|bound| took.as_secs_f64() <= *bound).unwrap_or(BUCKETS.len());
        cell.counts[bucket].fetch_add(1, Ordering::Relaxed);
        cell.nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    fn render(&self, family: &str, name: Option<&str>, out: &mut String) {
        for (step, operations) in STEPS.iter().zip(&self.0) {
            for (operation, cells) in OPERATIONS.iter().zip(operations) {
                for (rejected, cell) in [false, true].iter().zip(cells) {
                    let counts: Vec<u64> = cell.counts.iter().map(|c| c.load(Ordering::Relaxed)).collect();
                    let total: u64 = counts.iter().sum();
                    if total == 0 {
                        continue;
                    }
                    let kind = match step {
                        Step::Admit => "admit",
                        Step::Validate => "validate",
                    };
                    let name = name.map_or(String::new(), |name| format!("name=\"{name}\","));
                    let labels = format!("{name}operation=\"{}\",rejected=\"{rejected}\",type=\"{kind}\"", operation.as_str());
                    let mut below = 0;
                    for (bound, count) in BUCKETS.iter().zip(&counts) {
                        below += count;
                        let _ = writeln!(out, "{family}_bucket{{{labels},le=\"{bound}\"}} {below}");
                    }
                    let seconds = cell.nanos.load(Ordering::Relaxed) as f64 / 1e9;
                    let _ = writeln!(out, "{family}_bucket{{{labels},le=\"+Inf\"}} {total}\n{family}_sum{{{labels}}} {seconds}\n{family}_count{{{labels}}} {total}");
                }
            }
        }
    }
}

/// What all plug-ins have taken, in their order.
#[derive(Default)]
pub(crate) struct Admitted {
    plugins: Vec<(&'static str, Cells)>,
    steps: Cells,
}

impl Admitted {
    pub fn new(plugins: &[Arc<dyn Admission>]) -> Admitted {
        Admitted { plugins: plugins.iter().map(|p| (p.name(), Cells::default())).collect(), steps: Cells::default() }
    }

    /// One step of one write, from now on.
    pub fn begin(&self, step: Step, operation: Operation) -> Running<'_> {
        let now = Instant::now();
        Running { admitted: self, step, operation, began: now, last: now, rejected: true }
    }

    /// Prometheus' text format.
    pub fn render(&self, out: &mut String) {
        let families = [
            ("controller", "Admission controller latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit)."),
            ("step", "Admission sub-step latency histogram in seconds, broken out for each operation and API resource and step type (validate or admit)."),
        ];
        for (which, help) in families {
            let family = format!("apiserver_admission_{which}_admission_duration_seconds");
            let _ = writeln!(out, "# HELP {family} [STABLE] {help}\n# TYPE {family} histogram");
            if which == "step" {
                self.steps.render(&family, None, out);
            } else {
                self.plugins.iter().for_each(|(name, cells)| cells.render(&family, Some(name), out));
            }
        }
    }
}

/// A step that is under way. When it is dropped before it is [`passed`](Running::passed), it was a refusal.
pub(crate) struct Running<'a> {
    admitted: &'a Admitted,
    step: Step,
    operation: Operation,
    began: Instant,
    last: Instant,
    rejected: bool,
}

impl Running<'_> {
    /// The plug-in at this place has answered.
    pub fn answered(&mut self, place: usize, rejected: bool) {
        let now = Instant::now();
        if let Some((_, cells)) = self.admitted.plugins.get(place) {
            cells.observe(self.step, self.operation, rejected, now - self.last);
        }
        self.last = now;
    }

    /// All of them have let it pass.
    pub fn passed(mut self) {
        self.rejected = false;
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.admitted.steps.observe(self.step, self.operation, self.rejected, self.began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Never;

    #[async_trait::async_trait]
    impl Admission for Never {
        fn name(&self) -> &'static str {
            "Never"
        }

        fn handles(&self, _: Operation) -> bool {
            true
        }
    }

    #[test]
    fn plugins_and_steps_are_counted() {
        let admitted = Admitted::new(&[Arc::new(Never)]);
        let mut step = admitted.begin(Step::Admit, Operation::Create);
        step.answered(0, false);
        step.passed();
        let mut step = admitted.begin(Step::Validate, Operation::Delete);
        step.answered(0, true);
        drop(step);
        let mut out = String::new();
        admitted.render(&mut out);
        for (which, name) in [("controller", "name=\"Never\","), ("step", "")] {
            for labels in ["operation=\"CREATE\",rejected=\"false\",type=\"admit\"", "operation=\"DELETE\",rejected=\"true\",type=\"validate\""] {
                assert!(out.contains(&format!("apiserver_admission_{which}_admission_duration_seconds_count{{{name}{labels}}} 1\n")), "{out}");
            }
        }
        assert_eq!(out.matches("_count{").count(), 4);
    }
}
