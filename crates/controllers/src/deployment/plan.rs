//! How far each replica set is scaled in one step of a rollout. Pure arithmetic.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::amount;

/// How many pods may be missing and how many too many during a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    pub surge: i32,
    pub unavailable: i32,
}

/// Resolves the strategy's percentages: surge is rounded up, unavailability down, and both being
/// zero would allow no step at all, so one pod may then be missing.
pub fn fence(deployment: &Deployment) -> Fence {
    let spec = deployment.spec.as_ref();
    let replicas = spec.and_then(|s| s.replicas).unwrap_or(1);
    let rolling = spec.and_then(|s| s.strategy.as_ref()).and_then(|s| s.rolling_update.as_ref());
    let surge = resolve(rolling.and_then(|r| r.max_surge.as_ref()), replicas, true);
    let mut unavailable = resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), replicas, false);
    if surge == 0 && unavailable == 0 {
        unavailable = 1;
    }
    Fence { surge, unavailable: unavailable.min(replicas) }
}

fn resolve(value: Option<&IntOrString>, total: i32, up: bool) -> i32 {
    amount::of(value.unwrap_or(&IntOrString::String("25%".into())), total, up)
}

/// Whether the strategy deletes all old pods before it makes new ones.
pub fn recreates(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

/// The replicas that a set is to have.
pub fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

/// One set's new size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scale {
    pub set: String,
    pub to: i32,
}

/// The step of a rolling update: either the new set grows or old ones shrink. Old sets come oldest
/// first.
pub fn rolling(deployment: &Deployment, new: &ReplicaSet, old: &[ReplicaSet]) -> Vec<Scale> {
    let replicas = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let fence = fence(deployment);
    let total: i32 = wanted(new) + old.iter().map(wanted).sum::<i32>();

    // Grow the new set as far as the surge allows.
    if wanted(new) > replicas {
        return vec![Scale { set: new.name_any(), to: replicas }];
    }
    if wanted(new) < replicas {
        let room = (replicas + fence.surge - total).max(0);
        let to = wanted(new) + room.min(replicas - wanted(new));
        if to != wanted(new) {
            return vec![Scale { set: new.name_any(), to }];
        }
    }

    // Shrink old sets: first pods that are not healthy anyway, then as many as may be missing.
    let old_total: i32 = old.iter().map(wanted).sum();
    if old_total == 0 {
        return Vec::new();
    }
    let least = replicas - fence.unavailable;
    let new_unavailable = wanted(new) - available(new);
    let mut cleanup = (total - least - new_unavailable).max(0);
    let mut sizes: Vec<i32> = old.iter().map(wanted).collect();
    for (set, size) in old.iter().zip(&mut sizes) {
        let unhealthy = (*size - available(set)).max(0).min(cleanup);
        *size -= unhealthy;
        cleanup -= unhealthy;
    }
    let healthy: i32 = available(new) + old.iter().map(available).sum::<i32>();
    let mut spare = (healthy - least).max(0);
    for size in &mut sizes {
        let less = (*size).min(spare);
        *size -= less;
        spare -= less;
    }
    old.iter()
        .zip(sizes)
        .filter(|(set, size)| wanted(set) != *size)
        .map(|(set, to)| Scale { set: set.name_any(), to })
        .collect()
}

/// Spreads a change of the deployment's size over its sets, in proportion to their own sizes, while
/// a rollout is under way or paused. Sets come newest first; what rounding leaves goes to the largest.
pub fn proportional(deployment: &Deployment, sets: &[ReplicaSet]) -> Vec<Scale> {
    let replicas = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let active: Vec<&ReplicaSet> = sets.iter().filter(|s| wanted(s) > 0).collect();
    if active.len() <= 1 {
        let Some(set) = active.first().copied().or(sets.first()) else { return Vec::new() };
        let changed = wanted(set) != replicas;
        return changed.then(|| Scale { set: set.name_any(), to: replicas }).into_iter().collect();
    }
    let total: i32 = active.iter().map(|s| wanted(s)).sum();
    let allowed = if replicas > 0 && !recreates(deployment) { replicas + fence(deployment).surge } else { replicas };
    let to_add = allowed - total;
    let mut order = active;
    order.sort_by_key(|s| std::cmp::Reverse(wanted(s)));
    let mut added = 0;
    let mut result: Vec<Scale> = Vec::new();
    for set in &order {
        let before: i32 = set.annotations().get(super::MAX).and_then(|m| m.parse().ok()).unwrap_or(total);
        let share = if before > 0 {
            (f64::from(wanted(set)) * f64::from(allowed) / f64::from(before)).round() as i32 - wanted(set)
        } else {
            0
        };
        let left = to_add - added;
        let share = if to_add > 0 { share.clamp(0, left) } else { share.clamp(left, 0) };
        added += share;
        result.push(Scale { set: set.name_any(), to: wanted(set) + share });
    }
    if let Some(first) = result.first_mut() {
        first.to = (first.to + to_add - added).max(0);
    }
    let changed = |s: &Scale| order.iter().any(|set| set.name_any() == s.set && wanted(set) != s.to);
    result.retain(changed);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(replicas: i32, surge: &str, unavailable: &str) -> Deployment {
        serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": {
            "replicas": replicas, "selector": {}, "template": {},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}))
        .expect("a deployment")
    }

    fn set(name: &str, wanted: i32, available: i32) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"replicas": wanted, "selector": {}},
            "status": {"replicas": wanted, "availableReplicas": available}}))
        .expect("a set")
    }

    fn scales(scales: Vec<Scale>) -> Vec<(String, i32)> {
        scales.into_iter().map(|s| (s.set, s.to)).collect()
    }

    #[test]
    fn percentages_round_in_favour_of_progress() {
        assert_eq!(fence(&deployment(3, "25%", "25%")), Fence { surge: 1, unavailable: 0 });
        assert_eq!(fence(&deployment(10, "25%", "25%")), Fence { surge: 3, unavailable: 2 });
        assert_eq!(fence(&deployment(2, "0%", "0%")), Fence { surge: 0, unavailable: 1 });
    }

    #[test]
    fn a_rollout_of_three_goes_one_by_one() {
        let d = deployment(3, "25%", "25%");
        let steps = [
            ((0, 0), (3, 3), vec![("new", 1)]),
            ((1, 0), (3, 3), vec![]),
            ((1, 1), (3, 3), vec![("old", 2)]),
            ((1, 1), (2, 2), vec![("new", 2)]),
            ((2, 2), (2, 2), vec![("old", 1)]),
            ((3, 3), (1, 1), vec![("old", 0)]),
            ((3, 3), (0, 0), vec![]),
        ];
        for ((nw, na), (ow, oa), expected) in steps {
            let got = scales(rolling(&d, &set("new", nw, na), &[set("old", ow, oa)]));
            let expected: Vec<(String, i32)> = expected.into_iter().map(|(n, s)| (n.to_string(), s)).collect();
            assert_eq!(got, expected, "new {nw}/{na}, old {ow}/{oa}");
        }
    }

    #[test]
    fn pods_that_are_broken_anyway_go_first() {
        let d = deployment(10, "0%", "20%");
        let got = scales(rolling(&d, &set("new", 2, 0), &[set("older", 4, 4), set("old", 4, 0)]));
        assert_eq!(got, [], "eight must stay available, and only four are");
        let got = scales(rolling(&d, &set("new", 2, 2), &[set("older", 3, 1), set("old", 7, 7)]));
        assert_eq!(got, [("older".to_string(), 0), ("old".to_string(), 6)]);
    }

    #[test]
    fn a_new_size_is_spread_in_proportion() {
        let d = deployment(20, "0", "1");
        let got = scales(proportional(&d, &[set("new", 4, 4), set("old", 6, 6)]));
        assert_eq!(got, [("old".to_string(), 12), ("new".to_string(), 8)]);
    }
}
