//! Preemption: which pods of lower priority must go so that a pod fits, chosen as upstream chooses.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::cluster::NodeIx;
use crate::decide::histogram;
use crate::filters::Cycle;
use crate::plugin::Rejection;
use crate::pod::PodInfo;
use crate::selector::Selector;

/// A PodDisruptionBudget as far as preemption heeds it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Budget {
    pub namespace: String,
    /// `None` and the empty one select nothing.
    pub selector: Option<Selector>,
    /// How many of its pods may go now.
    pub allowed: i32,
    /// Pods whose disruption is counted already.
    pub disrupted: BTreeSet<String>,
}

/// Pods that are to go from a node.
#[derive(Debug, Clone)]
pub struct Victims {
    pub node: String,
    /// The most important first.
    pub pods: Vec<Arc<PodInfo>>,
    /// How many go against a budget.
    pub violations: usize,
}

/// Why preemption does not help.
pub(crate) struct Helpless {
    /// In upstream's words.
    pub message: String,
    /// Whether the pod loses the node that it is nominated to.
    pub loses_nomination: bool,
    /// Something went wrong, and nothing else is to be said of the pod.
    pub broken: bool,
}

fn not_eligible(why: &str) -> Helpless {
    Helpless { message: format!("not eligible due to {why}."), loses_nomination: false, broken: false }
}

/// Whose removal makes room for the pod of `cycle`, for each node where it does, or what upstream says
/// when nobody's does.
pub(crate) fn preempt(cycle: &Cycle<'_>, rejected: &[(NodeIx, Rejection)], budgets: &[Budget], seed: u64, all: usize) -> Result<Vec<Victims>, Helpless> {
    let (pod, cluster) = (cycle.pod, cycle.cluster);
    if pod.shape.never_preempts {
        return Err(not_eligible("preemptionPolicy=Never"));
    }
    if let Some(node) = pod.nominated.as_deref().and_then(|n| cluster.ix(n)) {
        let hopeless = rejected.iter().any(|(n, r)| *n == node && !r.resolvable);
        let leaving = |p: &Arc<PodInfo>| p.preempted && p.shape.priority < pod.shape.priority;
        if !hopeless && cluster.at(node).pods.iter().any(leaving) {
            return Err(not_eligible("a terminating pod on the nominated node"));
        }
    }
    let potential: Vec<NodeIx> = rejected.iter().filter(|(_, r)| r.resolvable).map(|(n, _)| *n).collect();
    let wanted = (potential.len() * cycle.profile.min_candidate_nodes_percentage / 100).max(cycle.profile.min_candidate_nodes_absolute).min(potential.len());
    let (mut clean, mut violating): (Vec<Victims>, Vec<Victims>) = (Vec::new(), Vec::new());
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut said: Vec<(Rejection, usize)> = Vec::new();
    let mut victimless: Vec<String> = Vec::new();
    let mut unhelpful = all - potential.len();
    let start = if potential.is_empty() { 0 } else { seed as usize % potential.len() };
    for node in potential[start..].iter().chain(&potential[..start]) {
        match victims_on(cycle, *node, budgets) {
            // An extender has refused the node, and the filters do not.
            Ok(victims) if victims.pods.is_empty() => victimless.push(format!("expected at least one victim pod on node {:?}", victims.node)),
            Ok(victims) if victims.violations == 0 => clean.push(victims),
            Ok(victims) => violating.push(victims),
            Err(rejection) => match said.iter_mut().find(|(known, _)| *known == rejection) {
                Some((_, count)) => *count += 1,
                None => said.push((rejection, 1)),
            },
        }
        if !clean.is_empty() && clean.len() + violating.len() >= wanted {
            break;
        }
    }
    clean.append(&mut violating);
    if !clean.is_empty() {
        return Ok(clean);
    }
    if !victimless.is_empty() {
        let message = if victimless.len() == 1 { victimless.remove(0) } else { format!("[{}]", victimless.join(", ")) };
        return Err(Helpless { message, loses_nomination: false, broken: true });
    }
    for (rejection, count) in said {
        rejection.reasons(pod).into_iter().for_each(|r| *reasons.entry(r).or_default() += count);
    }
    if unhelpful > 0 {
        *reasons.entry("Preemption is not helpful for scheduling".into()).or_default() += std::mem::take(&mut unhelpful);
    }
    Err(Helpless { message: format!("0/{all} nodes are available: {}.", histogram(&reasons)), loses_nomination: true, broken: false })
}

/// Ordered by importance: the priority, then the longer run.
fn importance(pod: &Arc<PodInfo>) -> (Reverse<i32>, i64) {
    (Reverse(pod.shape.priority), pod.started.unwrap_or(i64::MAX))
}

/// The fewest and least important pods of a node that must go.
fn victims_on(cycle: &Cycle<'_>, node: NodeIx, budgets: &[Budget]) -> Result<Victims, Rejection> {
    let info = cycle.cluster.at(node);
    let lower = |p: &&Arc<PodInfo>| p.shape.priority < cycle.pod.shape.priority;
    let mut removed: Vec<Arc<PodInfo>> = info.pods.iter().filter(lower).cloned().collect();
    if removed.is_empty() {
        return Err(Rejection::final_("DefaultPreemption", "No preemption victims found for incoming pod"));
    }
    cycle.without(node, &removed)?;
    removed.sort_by_key(importance);
    // Those whose removal a budget forbids are spared first, then the others, the important first.
    let (forbidden, free) = by_budget(&removed, budgets);
    let mut violations = 0;
    for (pods, counts) in [(&forbidden, true), (&free, false)] {
        for pod in pods.iter() {
            let Some(at) = removed.iter().position(|p| Arc::ptr_eq(p, pod)) else { continue };
            let pod = removed.remove(at);
            if cycle.without(node, &removed).is_err() {
                removed.insert(at, pod);
                violations += usize::from(counts);
            }
        }
    }
    Ok(Victims { node: info.name().into(), pods: removed, violations })
}

/// Pods whose removal goes against a budget, and the others, each in their order.
fn by_budget(pods: &[Arc<PodInfo>], budgets: &[Budget]) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut allowed: Vec<i32> = budgets.iter().map(|b| b.allowed).collect();
    let (mut forbidden, mut free) = (Vec::new(), Vec::new());
    for pod in pods {
        let mut violates = false;
        for (budget, allowed) in budgets.iter().zip(&mut allowed) {
            let selects = budget.selector.as_ref().is_some_and(|s| !s.is_everything() && s.matches(&pod.shape.labels));
            if pod.shape.labels.is_empty() || budget.namespace != pod.namespace() || !selects || budget.disrupted.contains(pod.name()) {
                continue;
            }
            *allowed -= 1;
            violates |= *allowed < 0;
        }
        if violates { forbidden.push(pod.clone()) } else { free.push(pod.clone()) }
    }
    (forbidden, free)
}

/// The node whose loss is the least: the fewest violations, the lowest highest priority, the lowest sum
/// of priorities, the fewest pods, and the latest start of its most important pods.
pub(crate) fn best(candidates: Vec<Victims>) -> Option<Victims> {
    let rank = |v: &Victims| {
        let highest = v.pods.first().map_or(0, |p| p.shape.priority);
        // Raised so that many pods of negative priority do not look better than few.
        let sum: i64 = v.pods.iter().map(|p| i64::from(p.shape.priority) + i64::from(i32::MAX) + 1).sum();
        let most_important = v.pods.iter().filter(|p| p.shape.priority == highest);
        let earliest = most_important.map(|p| p.started.unwrap_or(i64::MAX)).min().unwrap_or(i64::MAX);
        (v.violations, highest, sum, v.pods.len(), Reverse(earliest))
    };
    // The first of equals.
    candidates.into_iter().reduce(|best, other| if rank(&other) < rank(&best) { other } else { best })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, labels: Value, priority: i32, started: i64) -> Arc<PodInfo> {
        let object = json!({"metadata": {"name": name, "namespace": "n", "uid": name, "labels": labels}, "spec": {"priority": priority, "containers": []}});
        let mut pod: PodInfo = serde_json::from_value(object).expect("a pod");
        pod.started = Some(started);
        Arc::new(pod)
    }

    /// The victims of a node: priority and start of each, the most important first.
    fn lost(node: &str, violations: usize, pods: &[(i32, i64)]) -> Victims {
        let pods = pods.iter().enumerate().map(|(i, (priority, started))| pod(&format!("{node}{i}"), json!({}), *priority, *started)).collect();
        Victims { node: node.into(), pods, violations }
    }

    fn chosen(a: &Victims, b: &Victims) -> String {
        let best = |all: [&Victims; 2]| best(all.map(Victims::clone).to_vec()).expect("one").node;
        assert_eq!(best([a, b]), best([b, a]), "their order does not matter");
        best([a, b])
    }

    #[test]
    fn the_least_is_lost() {
        assert_eq!(chosen(&lost("a", 1, &[(0, 5)]), &lost("b", 0, &[(9, 1), (9, 1)])), "b", "budgets count first");
        assert_eq!(chosen(&lost("a", 0, &[(9, 5)]), &lost("b", 0, &[(8, 1), (8, 1)])), "b", "then the highest priority");
        assert_eq!(chosen(&lost("a", 0, &[(9, 5), (3, 5)]), &lost("b", 0, &[(9, 1), (2, 1)])), "b", "then the sum");
        assert_eq!(chosen(&lost("a", 0, &[(-9, 5), (-9, 5)]), &lost("b", 0, &[(-9, 1)])), "b", "more are not less, be they ever so unimportant");
        assert_eq!(chosen(&lost("a", 0, &[(9, 5), (3, 1)]), &lost("b", 0, &[(9, 6), (3, 0)])), "b", "then who began later");
        assert_eq!(chosen(&lost("a", 0, &[(9, 5), (9, 7)]), &lost("b", 0, &[(9, 6), (9, 6)])), "b", "of the most important the earliest");
        let equal = [lost("first", 0, &[(1, 1)]), lost("second", 0, &[(1, 1)])];
        assert_eq!(best(equal.to_vec()).expect("one").node, "first");
        assert!(best(Vec::new()).is_none());
    }

    #[test]
    fn importance_is_priority_and_then_age() {
        let mut all = [pod("late", json!({}), 1, 9), pod("high", json!({}), 2, 9), pod("early", json!({}), 1, 3)];
        all.sort_by_key(importance);
        assert_eq!(all.map(|p| p.name().to_string()), ["high", "early", "late"]);
    }

    #[test]
    fn budgets_forbid_what_goes_beyond_them() {
        let budget = |namespace: &str, selector: Value, allowed: i32| Budget {
            namespace: namespace.into(),
            selector: serde_json::from_value(selector).expect("a selector"),
            allowed,
            disrupted: BTreeSet::from(["gone".to_string()]),
        };
        let pods: Vec<_> = ["x", "gone", "y", "z"].iter().map(|n| pod(n, json!({"app": "web"}), 0, 0)).chain([pod("bare", json!({}), 0, 0)]).collect();
        let forbidden = |budgets: &[Budget]| {
            let (forbidden, free) = by_budget(&pods, budgets);
            assert_eq!(forbidden.len() + free.len(), pods.len());
            forbidden.iter().map(|p| p.name().to_string()).collect::<Vec<_>>().join(" ")
        };
        let web = json!({"matchLabels": {"app": "web"}});
        assert_eq!(forbidden(&[budget("n", web.clone(), 1)]), "y z", "one may go, and one is gone already");
        assert_eq!(forbidden(&[budget("n", web.clone(), 3)]), "");
        assert_eq!(forbidden(&[budget("n", web.clone(), 0)]), "x y z");
        assert_eq!(forbidden(&[budget("n", web.clone(), 2), budget("n", web.clone(), 1)]), "y z", "each counts for itself");
        assert_eq!(forbidden(&[budget("other", web, 0)]), "");
        assert_eq!(forbidden(&[budget("n", json!({}), 0), budget("n", Value::Null, 0)]), "", "neither selects anything");
        assert_eq!(forbidden(&[budget("n", json!({"matchLabels": {"app": "db"}}), 0)]), "");
        assert_eq!(forbidden(&[budget("n", json!({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}), 0)]), "", "pods without labels are nobody's");
    }
}
