//! Writes Prometheus' text format, one family after the other. Pure.

use std::fmt::Write;

/// A page in the making.
#[derive(Default)]
pub struct Page(String);

impl Page {
    /// Begins a family; its samples follow. `stability` is `STABLE`, `ALPHA` or empty.
    pub fn family(&mut self, name: &str, kind: &str, stability: &str, help: &str) {
        let stability = if stability.is_empty() { String::new() } else { format!("[{stability}] ") };
        let _ = writeln!(self.0, "# HELP {name} {stability}{help}\n# TYPE {name} {kind}");
    }

    /// One sample; `at` is in nanoseconds since 1970.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64, at: Option<i64>) {
        self.0.push_str(name);
        for (i, (key, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{key}=\"{value}\"", if i == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = write!(self.0, " {value}");
        if let Some(at) = at.filter(|at| *at > 0) {
            let _ = write!(self.0, " {}", at / 1_000_000);
        }
        self.0.push('\n');
    }

    /// A family of one sample without labels.
    pub fn one(&mut self, name: &str, kind: &str, stability: &str, help: &str, value: f64) {
        self.family(name, kind, stability, help);
        self.sample(name, &[], value, None);
    }

    /// The page.
    pub fn text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_and_samples() {
        let mut page = Page::default();
        page.family("a_total", "counter", "STABLE", "Help.");
        page.sample("a_total", &[("x", "1"), ("y", "q\"\\")], 1.5, Some(1_700_000_000_123_456_789));
        page.one("b", "gauge", "", "Other.", 3.0);
        let expect = "# HELP a_total [STABLE] Help.\n# TYPE a_total counter\na_total{x=\"1\",y=\"q\\\"\\\\\"} 1.5 1700000000123\n\
            # HELP b Other.\n# TYPE b gauge\nb 3\n";
        assert_eq!(page.text(), expect);
    }
}
