//! How far each replica set is scaled in one step of a rollout. Pure arithmetic.

use std::sync::Arc;

use jiff::Timestamp;
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
    let replicas = replicas(deployment);
    let rolling = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.rolling_update.as_ref());
    let surge = resolve(rolling.and_then(|r| r.max_surge.as_ref()), replicas, true);
    let mut unavailable = resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), replicas, false);
    if surge == 0 && unavailable == 0 {
        unavailable = 1;
    }
    Fence { surge, unavailable: unavailable.min(replicas) }
}

/// The most replicas that may be there at once; no more than are wanted unless pods are rolled.
pub fn most(deployment: &Deployment) -> i32 {
    replicas(deployment).saturating_add(if recreates(deployment) { 0 } else { fence(deployment).surge })
}

/// The least that must be available.
pub fn least(deployment: &Deployment) -> i32 {
    replicas(deployment) - if recreates(deployment) { 0 } else { fence(deployment).unavailable }
}

/// The replicas that a deployment is to have.
pub fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
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

/// The replicas that sets are to have in all: a number that stays at the largest when it would be larger.
pub fn total<S: AsRef<ReplicaSet>>(sets: impl IntoIterator<Item = S>) -> i32 {
    sets.into_iter().map(|s| wanted(s.as_ref())).fold(0, i32::saturating_add)
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

/// The size at which a new set starts.
pub fn first_size(deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> i32 {
    let replicas = replicas(deployment);
    if recreates(deployment) {
        return replicas;
    }
    (most(deployment) - total(old)).clamp(0, replicas)
}

/// The step of a rolling update: either the new set grows or old ones shrink.
pub fn rolling(deployment: &Deployment, new: &ReplicaSet, old: &[Arc<ReplicaSet>]) -> Vec<Scale> {
    let replicas = replicas(deployment);
    let old_total = total(old);
    let total = wanted(new).saturating_add(old_total);

    // Grow the new set as far as the surge allows.
    if wanted(new) > replicas {
        return vec![Scale { set: new.name_any(), to: replicas }];
    }
    if wanted(new) < replicas {
        let room = (most(deployment) - total).max(0);
        let to = wanted(new) + room.min(replicas - wanted(new));
        if to != wanted(new) {
            return vec![Scale { set: new.name_any(), to }];
        }
    }

    // Shrink old sets, oldest first: pods that are not healthy anyway, then as many as may be missing.
    // While too few of the new set are available nothing more may go.
    let mut cleanup = (total - least(deployment)).saturating_sub(wanted(new) - available(new));
    if old_total == 0 || cleanup <= 0 {
        return Vec::new();
    }
    let mut old: Vec<&Arc<ReplicaSet>> = old.iter().collect();
    old.sort_by_cached_key(|s| age(s));
    let mut sizes: Vec<i32> = old.iter().map(|s| wanted(s)).collect();
    for (set, size) in old.iter().zip(&mut sizes) {
        let unhealthy = (*size - available(set)).clamp(0, cleanup);
        *size -= unhealthy;
        cleanup -= unhealthy;
    }
    let healthy: i32 = available(new) + old.iter().map(|s| available(s)).sum::<i32>();
    let mut spare = (healthy - least(deployment)).max(0);
    for size in &mut sizes {
        let less = (*size).min(spare);
        *size -= less;
        spare -= less;
    }
    let changed = old.iter().zip(sizes).filter(|(set, size)| wanted(set) != *size);
    changed.map(|(set, to)| Scale { set: set.name_any(), to }).collect()
}

/// Orders sets from the oldest to the newest.
pub fn age(set: &ReplicaSet) -> (Option<Timestamp>, String) {
    (set.metadata.creation_timestamp.as_ref().map(|t| t.0), set.name_any())
}

fn noted(set: &ReplicaSet, annotation: &str) -> Option<i32> {
    set.annotations().get(annotation).and_then(|v| v.parse().ok()).filter(|n| *n >= 0)
}

/// Whether the deployment's size was changed since its sets were last scaled.
pub fn is_resized(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> bool {
    sets.iter().filter(|s| wanted(s) > 0).any(|s| noted(s, super::DESIRED).is_some_and(|d| d != replicas(deployment)))
}

/// A change of the deployment's size, apart from any rollout. One set takes it all; when the new one is
/// as large as it should be, the others go; in the midst of a rollout it is spread over all in
/// proportion to their sizes, and what rounding leaves goes to the largest. Each set that is named gets
/// the new sizes noted even if its own stays.
pub fn resize(deployment: &Deployment, new: Option<&Arc<ReplicaSet>>, old: &[Arc<ReplicaSet>]) -> Vec<Scale> {
    let replicas = replicas(deployment);
    let to = |set: &ReplicaSet, to: i32| Scale { set: set.name_any(), to };
    let mut active: Vec<&Arc<ReplicaSet>> = old.iter().chain(new).filter(|s| wanted(s) > 0).collect();
    if active.len() <= 1 {
        let latest = old.iter().max_by_key(|s| age(s));
        let only = active.first().copied().or(new).or(latest);
        return only.filter(|s| wanted(s) != replicas).map(|s| to(s, replicas)).into_iter().collect();
    }
    let saturated = |s: &&Arc<ReplicaSet>| {
        wanted(s) == replicas && noted(s, super::DESIRED) == Some(replicas) && available(s) == replicas
    };
    if new.filter(saturated).is_some() {
        return old.iter().filter(|s| wanted(s) > 0).map(|s| to(s, 0)).collect();
    }
    if recreates(deployment) {
        return Vec::new();
    }
    let allowed = if replicas > 0 { most(deployment) } else { 0 };
    let to_add = i64::from(allowed) - active.iter().map(|s| i64::from(wanted(s))).sum::<i64>();
    // Larger sets come first; of equal ones the newer grows and the older shrinks.
    active.sort_by_cached_key(|s| age(s));
    if to_add > 0 {
        active.reverse();
    }
    active.sort_by_key(|s| std::cmp::Reverse(wanted(s)));
    let fit = |size: i64| i32::try_from(size.max(0)).unwrap_or(i32::MAX);
    let mut added = 0;
    let mut result: Vec<Scale> = Vec::new();
    for set in &active {
        let left = to_add - added;
        let share = i64::from(share(deployment, set));
        let share = if to_add > 0 { share.min(left) } else { share.max(left) };
        let share = if left == 0 { 0 } else { share };
        added += share;
        result.push(to(set, fit(i64::from(wanted(set)) + share)));
    }
    if let Some(largest) = result.first_mut() {
        largest.to = fit(i64::from(largest.to) + to_add - added);
    }
    result
}

/// How much a set would change if it kept its part of the whole.
fn share(deployment: &Deployment, set: &ReplicaSet) -> i32 {
    if replicas(deployment) == 0 {
        return -wanted(set);
    }
    let counted = || deployment.status.as_ref().and_then(|s| s.replicas).unwrap_or(0);
    let before = noted(set, super::MAX).filter(|m| *m > 0).unwrap_or_else(counted);
    if before == 0 {
        return 0;
    }
    (f64::from(wanted(set)) * f64::from(most(deployment)) / f64::from(before)).round() as i32 - wanted(set)
}

/// Old sets beyond the history limit that have no pods, oldest revision first.
pub fn expired(deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> Vec<String> {
    let limit = deployment.spec.as_ref().and_then(|s| s.revision_history_limit).filter(|l| *l != i32::MAX);
    let Some(limit) = limit.and_then(|l| usize::try_from(l).ok()) else { return Vec::new() };
    let mut old: Vec<&Arc<ReplicaSet>> = old.iter().filter(|s| s.metadata.deletion_timestamp.is_none()).collect();
    old.sort_by_cached_key(|s| (super::revision(s.annotations()), age(s)));
    let beyond = old.len().saturating_sub(limit);
    let empty = |s: &&&Arc<ReplicaSet>| {
        let status = s.status.clone().unwrap_or_default();
        wanted(s) == 0 && status.replicas == 0 && s.metadata.generation.unwrap_or(0) <= status.observed_generation.unwrap_or(0)
    };
    old[..beyond].iter().filter(empty).map(|s| s.name_any()).collect()
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

    fn set(name: &str, wanted: i32, available: i32) -> Arc<ReplicaSet> {
        // Names tell the order: `old` is newer than `older`, and `new` newer than both.
        let day = ["older", "old", "new"].iter().position(|n| *n == name).unwrap_or(0) + 1;
        sized(name, wanted, available, json!({"creationTimestamp": format!("2026-01-0{day}T00:00:00Z")}))
    }

    fn sized(name: &str, wanted: i32, available: i32, meta: serde_json::Value) -> Arc<ReplicaSet> {
        let mut set = json!({"metadata": meta, "spec": {"replicas": wanted, "selector": {}},
            "status": {"replicas": wanted, "availableReplicas": available}});
        set["metadata"]["name"] = name.into();
        Arc::new(serde_json::from_value(set).expect("a set"))
    }

    fn noting(name: &str, wanted: i32, available: i32, desired: i32, max: i32) -> Arc<ReplicaSet> {
        let mut set = set(name, wanted, available).as_ref().clone();
        set.annotations_mut().insert(super::super::DESIRED.into(), desired.to_string());
        set.annotations_mut().insert(super::super::MAX.into(), max.to_string());
        Arc::new(set)
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
    fn absurd_numbers_of_replicas_do_not_wrap() {
        let d = deployment(i32::MAX, "25%", "25%");
        assert_eq!((most(&d), first_size(&d, &[])), (i32::MAX, i32::MAX));
        let (old, new) = (noting("old", i32::MAX, 5, i32::MAX, i32::MAX), noting("new", i32::MAX, 0, i32::MAX, i32::MAX));
        assert_eq!(first_size(&d, std::slice::from_ref(&old)), 0);
        rolling(&d, &new, std::slice::from_ref(&old));
        let down = deployment(2, "25%", "25%");
        let sizes = scales(resize(&down, Some(&new), std::slice::from_ref(&old)));
        assert!(sizes.iter().all(|(_, to)| (0..=3).contains(to)), "{sizes:?}");
        assert_eq!(amount::of(&IntOrString::String("9999999999999999%".into()), i32::MAX, true), i32::MAX);
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
        // No more than may go; the oldest set first, in whatever order they come.
        let broken = [set("old", 3, 1), set("older", 5, 1)];
        assert_eq!(scales(rolling(&d, &set("new", 2, 2), &broken)), [("older".to_string(), 3)]);
    }

    #[test]
    fn the_new_set_grows_to_what_is_wanted_and_no_further() {
        let d = deployment(10, "30%", "0%");
        assert_eq!(scales(rolling(&d, &set("new", 9, 9), &[])), [("new".to_string(), 10)], "there would be room for four");
        assert_eq!(scales(rolling(&d, &set("new", 4, 4), &[set("old", 5, 5)])), [("new".to_string(), 8)]);
    }

    #[test]
    fn nothing_goes_while_the_new_set_is_not_available() {
        let d = deployment(4, "25%", "0%");
        assert_eq!(scales(rolling(&d, &set("new", 1, 0), &[set("old", 4, 4)])), []);
        assert_eq!(scales(rolling(&d, &set("new", 1, 1), &[set("old", 4, 4)])), [("old".to_string(), 3)]);
    }

    #[test]
    fn where_a_new_set_starts() {
        let d = deployment(10, "25%", "25%");
        assert_eq!((first_size(&d, &[]), first_size(&d, &[set("old", 10, 10)]), first_size(&d, &[set("old", 20, 20)])), (10, 3, 0));
        let mut recreate = d;
        recreate.spec.as_mut().expect("a spec").strategy.as_mut().expect("a strategy").type_ = Some("Recreate".into());
        assert_eq!(first_size(&recreate, &[set("old", 10, 10)]), 10);
        assert_eq!((most(&recreate), least(&recreate)), (10, 10));
    }

    #[test]
    fn one_set_takes_a_new_size_whole() {
        let d = deployment(7, "25%", "25%");
        assert_eq!(scales(resize(&d, Some(&set("new", 3, 3)), &[set("old", 0, 0)])), [("new".to_string(), 7)]);
        for both in [[set("older", 0, 0), set("old", 0, 0)], [set("old", 0, 0), set("older", 0, 0)]] {
            assert_eq!(scales(resize(&d, None, &both)), [("old".to_string(), 7)], "the newest");
        }
        assert_eq!(scales(resize(&d, Some(&set("new", 7, 7)), &[])), []);
        assert_eq!(scales(resize(&d, None, &[])), []);
    }

    #[test]
    fn old_sets_go_when_the_new_one_is_complete() {
        let d = deployment(3, "25%", "25%");
        assert_eq!(scales(resize(&d, Some(&noting("new", 3, 3, 3, 4)), &[set("old", 2, 2), set("older", 0, 0)])), [("old".to_string(), 0)]);
        let shared = [("new".to_string(), 2), ("old".to_string(), 2)];
        assert_eq!(scales(resize(&d, Some(&noting("new", 3, 2, 3, 4)), &[set("old", 2, 2)])), shared, "one is not available yet");
        assert_eq!(scales(resize(&d, Some(&noting("new", 3, 3, 5, 7)), &[set("old", 2, 2)])), shared, "it was given another size");
    }

    #[test]
    fn a_new_size_is_spread_in_proportion() {
        // Of 10 (13 with the surge) the sets have 5 and 8; 30 make 38.
        let d = deployment(30, "25%", "25%");
        let (new, old) = (noting("new", 5, 5, 10, 13), noting("old", 8, 8, 10, 13));
        assert_eq!(scales(resize(&d, Some(&new), &[old])), [("old".to_string(), 23), ("new".to_string(), 15)]);
        // Equal ones: the newer takes what rounding leaves when growing, the older loses it when shrinking.
        let pair = |d: Deployment| resize(&d, Some(&noting("new", 5, 5, 10, 10)), &[noting("old", 5, 5, 10, 10)]);
        assert_eq!(scales(pair(deployment(11, "0%", "10%"))), [("new".to_string(), 6), ("old".to_string(), 5)]);
        assert_eq!(scales(pair(deployment(9, "0%", "10%"))), [("old".to_string(), 4), ("new".to_string(), 5)]);
        let mut none = deployment(0, "0%", "10%");
        assert_eq!(scales(pair(none.clone())), [("old".to_string(), 0), ("new".to_string(), 0)]);
        let rolling = none.spec.as_mut().and_then(|s| s.strategy.as_mut()).and_then(|s| s.rolling_update.as_mut()).expect("a strategy");
        rolling.max_surge = Some(IntOrString::Int(2));
        assert_eq!(scales(pair(none)), [("old".to_string(), 0), ("new".to_string(), 0)], "nothing is rolled where nothing is wanted");
        assert!(is_resized(&deployment(11, "0%", "10%"), &[noting("new", 5, 5, 10, 10)]));
        assert!(!is_resized(&deployment(10, "0%", "10%"), &[noting("new", 5, 5, 10, 10), noting("old", 0, 0, 3, 3)]));
    }

    #[test]
    fn a_set_that_notes_nothing_counts_by_what_there_is() {
        let mut d = deployment(20, "0%", "10%");
        d.status = serde_json::from_value(json!({"replicas": 10})).expect("a status");
        assert_eq!(share(&d, &set("new", 5, 5)), 5, "ten are there, and twenty are to be");
        assert_eq!(share(&d, &noting("new", 5, 5, 0, 0)), 5, "what is noted is nonsense");
        assert_eq!(share(&d, &noting("new", 5, 5, 20, 20)), 0);
        d.status = None;
        assert_eq!(share(&d, &set("new", 5, 5)), 0);
    }

    #[test]
    fn history_beyond_the_limit_goes_when_it_is_empty() {
        let mut d = deployment(1, "25%", "0%");
        d.spec.as_mut().expect("a spec").revision_history_limit = Some(1);
        let of = |name: &str, revision: i32, size: i32| sized(name, size, size, json!({"annotations": {super::super::REVISION: revision.to_string()}}));
        assert_eq!(expired(&d, &[of("c", 3, 0), of("a", 1, 0), of("b", 2, 0)]), ["a", "b"]);
        assert_eq!(expired(&d, &[of("c", 3, 0), of("a", 1, 2), of("b", 2, 0)]), ["b"], "one with pods stays");
        let with = |name: &str, revision: i32, change: fn(&mut ReplicaSet)| {
            let mut set = of(name, revision, 0).as_ref().clone();
            change(&mut set);
            Arc::new(set)
        };
        let ending = with("a", 1, |s| s.status.as_mut().expect("a status").replicas = 1);
        let unseen = with("b", 2, |s| s.metadata.generation = Some(2));
        assert!(expired(&d, &[of("c", 3, 0), ending, unseen]).is_empty(), "one has a pod still, the other may be given some");
        d.spec.as_mut().expect("a spec").revision_history_limit = Some(3);
        assert!(expired(&d, &[of("c", 3, 0), of("a", 1, 0), of("b", 2, 0)]).is_empty());
    }
}
