//! Observations by bucket, for `/metrics`.
use std::fmt::Write;

/// Prometheus' own buckets, in seconds.
pub const DEFAULT_BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// How many observations fell into which bucket.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: &'static [f64],
    /// One more than buckets: what is beyond the last.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// With these upper bounds, in order.
    pub fn new(buckets: &'static [f64]) -> Histogram {
        Histogram { buckets, counts: vec![0; buckets.len() + 1], sum: 0.0 }
    }

    /// Counts one.
    pub fn observe(&mut self, x: f64) {
        let bucket = self.buckets.iter().position(|b| x <= *b).unwrap_or(self.buckets.len());
        self.counts[bucket] += 1;
        self.sum += x;
    }

    /// How many there were.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Appends the lines of one series in Prometheus' text format; `labels` without braces, at least one.
    pub fn render(&self, name: &str, labels: &str, out: &mut String) {
        let mut below = 0;
        for (bound, count) in self.buckets.iter().zip(&self.counts) {
            below += count;
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        let total = self.total();
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {total}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {total}", self.sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up() {
        let mut histogram = Histogram::new(&[0.5, 1.0]);
        [0.5, 0.75, 3.0].into_iter().for_each(|x| histogram.observe(x));
        let mut out = String::new();
        histogram.render("f", "a=\"b\"", &mut out);
        let lines = ["f_bucket{a=\"b\",le=\"0.5\"} 1", "f_bucket{a=\"b\",le=\"1\"} 2", "f_bucket{a=\"b\",le=\"+Inf\"} 3", "f_sum{a=\"b\"} 4.25", "f_count{a=\"b\"} 3"];
        assert_eq!(out.lines().collect::<Vec<_>>(), lines);
    }
}
