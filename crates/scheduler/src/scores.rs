//! The scores of the nodes that are left, each from 0 to 100, with the profile's weights.

use crate::cluster::{NONE, NodeIx, SpreadUse};
use crate::config::Strategy;
use crate::filters::Cycle;

pub(crate) const MAX: i64 = 100;
/// An image this small gives no score.
const SMALL_IMAGE: i64 = 23 * 1024 * 1024;
/// The size at which a container's images give the full score.
const LARGE_IMAGE: i64 = 1000 * 1024 * 1024;

impl Cycle<'_> {
    /// The total score of each node, in their order.
    pub fn score(&self, nodes: &[NodeIx], all: usize) -> Vec<i64> {
        let mut totals = vec![0; nodes.len()];
        let mut add = |weight: i64, scores: Vec<i64>| totals.iter_mut().zip(scores).for_each(|(total, score)| *total += weight * score);
        let weight = |plugin| self.profile.weight(plugin);
        let resolved = &self.resolved;
        match weight("TaintToleration") {
            0 => {}
            w => {
                let soft: Vec<i64> = nodes.iter().map(|n| i64::from(self.cluster.tolerance(resolved.tolerations, *n).soft)).collect();
                add(w, normalized(soft, true));
            }
        }
        if let (Some(preference), w @ 1..) = (resolved.preference, weight("NodeAffinity")) {
            add(w, normalized(nodes.iter().map(|n| self.cluster.preference(preference, *n)).collect(), false));
        }
        match weight("NodeResourcesFit") {
            0 => {}
            w => add(w, self.by_strategy(nodes)),
        }
        match weight("NodeResourcesBalancedAllocation") {
            0 => {}
            w => add(w, self.balanced(nodes)),
        }
        for (name, check) in &self.checks {
            let w = weight(name);
            let infos: Vec<_> = if w == 0 { Vec::new() } else { nodes.iter().map(|n| self.cluster.at(*n)).collect() };
            if let Some(scores) = if w == 0 { None } else { check.score(&infos) } {
                add(w, scores);
            }
        }
        if let (false, w @ 1..) = (resolved.soft.is_empty(), weight("PodTopologySpread")) {
            add(w, self.spread_score(nodes));
        }
        if let (false, w @ 1..) = (resolved.preferred.is_empty() && resolved.drawn.is_empty(), weight("InterPodAffinity")) {
            add(w, self.pod_score(nodes));
        }
        if let (w @ 1.., Some(scores)) = (weight("ImageLocality"), self.images(nodes, all)) {
            add(w, scores);
        }
        totals
    }

    /// What of a resource is asked for and used, with and without the pod, and what there is; nothing
    /// for one that the pod does not ask for and that nodes in general lack.
    fn usage(&self, resource: &str, node: NodeIx, nonzero: bool) -> (i64, i64, i64) {
        let info = self.cluster.at(node);
        let wanted = match resource {
            "cpu" if nonzero => self.pod.shape.nonzero.0,
            "memory" if nonzero => self.pod.shape.nonzero.1,
            _ => self.pod.shape.requests.get(resource),
        };
        let usual = matches!(resource, "cpu" | "memory" | "ephemeral-storage");
        let all = info.view.allocatable.get(resource);
        if all == 0 || (wanted == 0 && !usual) {
            return (0, 0, 0);
        }
        let used = match resource {
            "cpu" if nonzero => info.nonzero.0,
            "memory" if nonzero => info.nonzero.1,
            _ => info.requested.get(resource),
        };
        (used + wanted, used, all)
    }

    fn by_strategy(&self, nodes: &[NodeIx]) -> Vec<i64> {
        let resources = &self.profile.fit_resources;
        let one = |node: NodeIx| {
            let (mut sum, mut weights) = (0, 0);
            for (resource, weight) in resources {
                let (used, _, all) = self.usage(resource, node, true);
                if all == 0 {
                    continue;
                }
                let score = match &self.profile.strategy {
                    Strategy::LeastAllocated => if used > all { 0 } else { (all - used) * MAX / all },
                    Strategy::MostAllocated => used.min(all) * MAX / all,
                    Strategy::RequestedToCapacityRatio(shape) => {
                        let score = on_shape(shape, if used > all { 100 } else { used * 100 / all });
                        if score == 0 {
                            continue;
                        }
                        score
                    }
                };
                sum += score * weight;
                weights += weight;
            }
            match (&self.profile.strategy, weights) {
                (_, 0) => 0,
                (Strategy::RequestedToCapacityRatio(_), _) => (sum as f64 / weights as f64).round() as i64,
                _ => sum / weights,
            }
        };
        nodes.iter().map(|n| one(*n)).collect()
    }

    /// Nodes whose resources are used evenly are better, and better still if the pod makes them so.
    fn balanced(&self, nodes: &[NodeIx]) -> Vec<i64> {
        let resources = &self.profile.balanced_resources;
        if resources.iter().all(|r| self.pod.shape.requests.get(r) == 0) {
            return vec![0; nodes.len()];
        }
        let one = |node: NodeIx| {
            let (mut with, mut without) = (Evenness::default(), Evenness::default());
            for resource in resources {
                let (then, now, all) = self.usage(resource, node, false);
                if all > 0 {
                    with.add(then, all);
                    without.add(now, all);
                }
            }
            MAX / 2 + (MAX / 2 + with.score() - without.score()) / 2
        };
        nodes.iter().map(|n| one(*n)).collect()
    }

    fn spread_score(&self, nodes: &[NodeIx]) -> Vec<i64> {
        let soft = &self.resolved.soft;
        let scored = |node: NodeIx| !self.resolved.soft_needs_all || soft.iter().all(|u| self.cluster.value(u.topology, node) != NONE);
        let takes_part: Vec<bool> = nodes.iter().map(|n| scored(*n)).collect();
        let counted = takes_part.iter().filter(|t| **t).count();
        let weights: Vec<f64> = soft.iter().map(|u| self.domains(u, nodes, &takes_part, counted)).map(|n| ((n + 2) as f64).ln()).collect();
        let raw = |node: NodeIx| {
            let mut score = 0.0;
            for (used, weight) in soft.iter().zip(&weights) {
                let value = self.cluster.value(used.topology, node);
                if value == NONE {
                    continue;
                }
                let count = match used.by_node {
                    Some(counter) => self.cluster.counter_at(counter).count(node),
                    None => self.cluster.counter_at(used.counter).count(value),
                };
                score += f64::from(count) * weight + f64::from(used.max_skew - 1);
            }
            score.round() as i64
        };
        let raws: Vec<Option<i64>> = nodes.iter().zip(&takes_part).map(|(n, takes_part)| takes_part.then(|| raw(*n))).collect();
        let least = raws.iter().flatten().copied().min().unwrap_or(0);
        let most = raws.iter().flatten().copied().max().unwrap_or(0).max(0);
        let normal = |raw: Option<i64>| match raw {
            None => 0,
            Some(_) if most == 0 => MAX,
            Some(raw) => MAX * (most + least - raw) / most,
        };
        raws.into_iter().map(normal).collect()
    }

    /// How many domains of a soft constraint the nodes are in; no domain counts as one too.
    fn domains(&self, used: &SpreadUse, nodes: &[NodeIx], takes_part: &[bool], counted: usize) -> usize {
        if used.by_node.is_some() {
            return counted;
        }
        let mut values: Vec<u32> = nodes.iter().zip(takes_part).filter(|(_, t)| **t).map(|(n, _)| self.cluster.value(used.topology, *n)).collect();
        values.sort_unstable();
        values.dedup();
        values.len()
    }

    fn pod_score(&self, nodes: &[NodeIx]) -> Vec<i64> {
        let raw = |node: NodeIx| {
            let at = |topology| Some(self.cluster.value(topology, node)).filter(|v| *v != NONE);
            let own = self.resolved.preferred.iter().filter_map(|(w, topology, counter)| Some(w * i64::from(self.cluster.counter_at(*counter).count(at(*topology)?))));
            let others = self.resolved.drawn.iter().filter_map(|(w, carrier)| {
                let carrier = self.cluster.carrier_at(*carrier);
                Some(w * i64::from(carrier.count(at(carrier.topology)?)))
            });
            own.sum::<i64>() + others.sum::<i64>()
        };
        let raws: Vec<i64> = nodes.iter().map(|n| raw(*n)).collect();
        let (least, most) = (raws.iter().min().copied().unwrap_or(0), raws.iter().max().copied().unwrap_or(0));
        let span = (most - least) as f64;
        raws.into_iter().map(|r| if span > 0.0 { (MAX as f64 * ((r - least) as f64 / span)) as i64 } else { 0 }).collect()
    }

    fn images(&self, nodes: &[NodeIx], all: usize) -> Option<Vec<i64>> {
        let held: Vec<_> = self.pod.shape.images.iter().filter_map(|name| self.cluster.image(name)).collect();
        if held.is_empty() {
            return None;
        }
        let top = LARGE_IMAGE * i64::from(self.pod.shape.containers.max(1));
        let one = |node: NodeIx| {
            let sizes = held.iter().filter_map(|(sizes, holders)| Some((*sizes.get(&node)? as f64 * (*holders as f64 / all.max(1) as f64)) as i64));
            MAX * (sizes.sum::<i64>().clamp(SMALL_IMAGE, top) - SMALL_IMAGE) / (top - SMALL_IMAGE)
        };
        Some(nodes.iter().map(|n| one(*n)).collect())
    }
}

/// How evenly resources are used.
#[derive(Default)]
pub(crate) struct Evenness {
    fractions: [f64; 8],
    count: usize,
}

impl Evenness {
    pub(crate) fn add(&mut self, used: i64, all: i64) {
        if self.count < self.fractions.len() {
            self.fractions[self.count] = (used as f64 / all as f64).min(1.0);
            self.count += 1;
        }
    }

    pub(crate) fn score(&self) -> i64 {
        let deviation = match &self.fractions[..self.count] {
            [a, b] => ((a - b) / 2.0).abs(),
            few if few.len() < 2 => 0.0,
            many => {
                let mean = many.iter().sum::<f64>() / many.len() as f64;
                (many.iter().map(|f| (f - mean) * (f - mean)).sum::<f64>() / many.len() as f64).sqrt()
            }
        };
        ((1.0 - deviation) * MAX as f64) as i64
    }
}

/// Scales counts to 0..=100, the highest to 100 or, reversed, to 0.
pub(crate) fn normalized(mut counts: Vec<i64>, reverse: bool) -> Vec<i64> {
    let most = counts.iter().copied().max().unwrap_or(0).max(0);
    for count in &mut counts {
        let score = if most == 0 { 0 } else { MAX * *count / most };
        *count = if reverse { MAX - score } else { score };
    }
    counts
}

/// The value of a broken line at a utilization; the points' scores go from 0 to 10.
pub(crate) fn on_shape(shape: &[(i64, i64)], at: i64) -> i64 {
    let score = |i: usize| shape[i].1 * (MAX / 10);
    match shape.iter().position(|(utilization, _)| at <= *utilization) {
        Some(0) => score(0),
        Some(i) => score(i - 1) + (score(i) - score(i - 1)) * (at - shape[i - 1].0) / (shape[i].0 - shape[i - 1].0),
        None if shape.is_empty() => 0,
        None => score(shape.len() - 1),
    }
}
