//! A profile before it has a form: amounts under paths of names.
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

use super::spent::Name;

/// From the outermost name to the innermost.
pub type Path = Vec<Name>;

/// How often, and how much.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    pub count: u64,
    pub sum: u64,
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Amount) {
        self.count += other.count;
        self.sum += other.sum;
    }
}

/// What was used for what, each amount without that of what is below it.
pub struct Report {
    /// What clients may call the file.
    pub file: &'static str,
    /// What the counts and the sums are, with their units.
    pub kinds: [(&'static str, &'static str); 2],
    pub taken: SystemTime,
    /// Zero for what is at one moment.
    pub duration: Duration,
    pub amounts: BTreeMap<Path, Amount>,
}

/// A name with all that is below it.
#[derive(Default)]
struct Node {
    amount: Amount,
    below: BTreeMap<Name, Node>,
}

impl Report {
    /// For people: the names as a tree, the largest first.
    pub fn text(&self) -> String {
        let mut root = Node::default();
        for (path, amount) in &self.amounts {
            root.amount += *amount;
            let mut node = &mut root;
            for name in path {
                node = node.below.entry(name.clone()).or_default();
                node.amount += *amount;
            }
        }
        let [(counted, _), (summed, unit)] = self.kinds;
        let mut out = String::new();
        if !self.duration.is_zero() {
            let _ = writeln!(out, "in {:.1} s", self.duration.as_secs_f64());
        }
        let _ = writeln!(out, "{summed:>14}  {:>6}  {counted:>9}", "");
        write_node(&mut out, "all", &root, root.amount.sum, unit, 0);
        out
    }
}

fn write_node(out: &mut String, name: &str, node: &Node, all: u64, unit: &str, depth: usize) {
    let Amount { count, sum } = node.amount;
    let share = if all == 0 { 0.0 } else { sum as f64 * 100.0 / all as f64 };
    let sum = match unit {
        "nanoseconds" => format!("{:.3} ms", sum as f64 / 1e6),
        _ => format!("{:.3} MB", sum as f64 / 1e6),
    };
    let _ = writeln!(out, "{sum:>14}  {share:>5.1}%  {count:>9}  {:1$}{name}", "", depth * 2);
    let mut below: Vec<_> = node.below.iter().collect();
    below.sort_by_key(|(_, node)| std::cmp::Reverse(node.amount.sum));
    for (name, node) in below {
        write_node(out, name, node, all, unit, depth + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_text() {
        let at = |path: &[&'static str]| path.iter().map(|n| Name::from(*n)).collect::<Path>();
        let ms = |count, ms: u64| Amount { count, sum: ms * 1_000_000 };
        let amounts = BTreeMap::from([
            (at(&["worker"]), ms(0, 1)),
            (at(&["worker", "get pods"]), ms(2, 1)),
            (at(&["worker", "create pods"]), ms(1, 2)),
            (at(&["worker", "create pods", "validation"]), ms(1, 4)),
        ]);
        let kinds = [("times", "count"), ("cpu", "nanoseconds")];
        let report = Report { file: "profile", kinds, taken: SystemTime::UNIX_EPOCH, duration: Duration::from_secs(2), amounts };
        assert_eq!(
            report.text(),
            "in 2.0 s\n           cpu              times\n      8.000 ms  100.0%          4  all\n      8.000 ms  100.0%          4    worker\n      \
             6.000 ms   75.0%          2      create pods\n      4.000 ms   50.0%          1        validation\n      1.000 ms   12.5%          2      get pods\n"
        );
    }
}
