//! The status of a quota. Pure.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use api::quota::{self, Usage};
use k8s_openapi::api::core::v1::{ResourceQuota, ResourceQuotaStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Amount;
use serde_json::Value;

/// What there is of one resource in the quota's namespace.
#[derive(Debug)]
pub enum Found {
    /// The objects themselves.
    Objects(Vec<Value>),
    /// How many there are.
    Count(usize),
    /// It is not known; what the status says stands.
    Unknown,
}

type Amounts = BTreeMap<String, Amount>;

fn usage(amounts: &Amounts) -> Usage {
    amounts.iter().filter_map(|(k, v)| Some((k.clone(), Quantity::parse(&v.0).ok()?))).collect()
}

/// The limits of the quota that use up the given resource.
pub fn limits(quota: &ResourceQuota) -> &Amounts {
    static NONE: Amounts = BTreeMap::new();
    quota.spec.as_ref().and_then(|s| s.hard.as_ref()).unwrap_or(&NONE)
}

/// Whether a new status frees some of what is charged.
pub fn frees(quota: &ResourceQuota, new: &ResourceQuotaStatus) -> bool {
    let used = |status: Option<&ResourceQuotaStatus>| usage(status.and_then(|s| s.used.as_ref()).unwrap_or(&BTreeMap::new()));
    let new = used(Some(new));
    used(quota.status.as_ref()).iter().any(|(name, amount)| new.get(name).is_some_and(|n| n < amount))
}

/// The status that says what is used; None when it says so already. `found` holds each resource that
/// the quota's limits are about, by group and plural; `now` is in seconds since 1970.
pub fn plan(quota: &ResourceQuota, found: &BTreeMap<(String, String), Found>, now: i64) -> Option<ResourceQuotaStatus> {
    let hard = limits(quota);
    let old = quota.status.clone().unwrap_or_default();
    let before = usage(old.used.as_ref().unwrap_or(&BTreeMap::new()));
    let mut used: Usage = hard.keys().map(|name| (name.clone(), Quantity::zero())).collect();
    let scoped = serde_json::to_value(quota).unwrap_or_default();
    for ((group, plural), found) in found {
        match found {
            Found::Objects(objects) => {
                for object in objects.iter().filter(|o| quota::in_scope(&scoped, group, plural, o)) {
                    for (name, amount) in quota::usage(group, plural, object, now) {
                        if let Some(sum) = used.get_mut(&name) {
                            sum.add(&amount);
                        }
                    }
                }
            }
            // Scopes are about pods and claims: in a quota with scopes nothing else counts.
            Found::Count(count) => {
                if quota::in_scope(&scoped, group, plural, &Value::Null) {
                    for (name, one) in quota::usage(group, plural, &Value::Null, now) {
                        if let Some(sum) = used.get_mut(&name) {
                            let mut all = one;
                            all.mul(*count as i64);
                            sum.add(&all);
                        }
                    }
                }
            }
            Found::Unknown => {
                for (name, sum) in used.iter_mut().filter(|(name, _)| quota::concerns(group, plural, name)) {
                    if let Some(known) = before.get(name) {
                        *sum = known.clone();
                    }
                }
            }
        }
    }
    let same_limits = old.hard.as_ref().is_some_and(|h| usage(h) == usage(hard)) || (old.hard.is_none() && hard.is_empty());
    if same_limits && before == used {
        return None;
    }
    let used = used.into_iter().map(|(name, amount)| (name, Amount(amount.canonical()))).collect();
    Some(ResourceQuotaStatus { hard: Some(hard.clone()), used: Some(used) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn quota(hard: Value, scopes: Value, status: Value) -> ResourceQuota {
        serde_json::from_value(json!({"metadata": {"name": "q"}, "spec": {"hard": hard, "scopes": scopes}, "status": status})).expect("a quota")
    }

    fn used(quota: &ResourceQuota, found: Vec<(&str, &str, Found)>) -> Option<Value> {
        let found = found.into_iter().map(|(g, p, f)| ((g.to_string(), p.to_string()), f)).collect();
        plan(quota, &found, 0).map(|s| json!(s.used))
    }

    fn pod(cpu: &str, phase: &str) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}, "status": {"phase": phase}})
    }

    #[test]
    fn sums_up_all_kinds() {
        let hard = json!({"pods": "9", "requests.cpu": "4", "count/jobs.batch": "5", "secrets": "3", "services": "2"});
        let pods = Found::Objects(vec![pod("500m", "Running"), pod("1", "Pending"), pod("8", "Succeeded")]);
        let services = Found::Objects(vec![json!({"spec": {"type": "ClusterIP"}})]);
        let found = vec![("", "pods", pods), ("batch", "jobs", Found::Count(2)), ("", "secrets", Found::Count(0)), ("", "services", services)];
        let sum = used(&quota(hard, json!([]), json!({})), found);
        assert_eq!(sum, Some(json!({"pods": "2", "requests.cpu": "1500m", "count/jobs.batch": "2", "secrets": "0", "services": "1"})));
    }

    #[test]
    fn less_than_is_charged_frees() {
        let charged = quota(json!({"pods": "5"}), json!([]), json!({"hard": {"pods": "5"}, "used": {"pods": "2"}}));
        let of = |pods: &str| frees(&charged, &ResourceQuotaStatus { hard: None, used: Some([("pods".to_string(), Amount(pods.into()))].into()) });
        assert!(of("1") && !of("2") && !of("3"));
    }

    #[test]
    fn what_is_right_is_not_written() {
        let right = quota(json!({"pods": "2"}), json!([]), json!({"hard": {"pods": "2"}, "used": {"pods": "1"}}));
        assert_eq!(used(&right, vec![("", "pods", Found::Objects(vec![pod("1", "Running")]))]), None);
        assert_eq!(used(&right, vec![("", "pods", Found::Objects(vec![]))]), Some(json!({"pods": "0"})), "it is gone");
        let raised = quota(json!({"pods": "3"}), json!([]), json!({"hard": {"pods": "2"}, "used": {"pods": "1"}}));
        assert!(used(&raised, vec![("", "pods", Found::Objects(vec![pod("1", "Running")]))]).is_some());
        let first = quota(json!({"pods": "2"}), json!([]), json!({"used": {"pods": "1"}}));
        assert!(used(&first, vec![("", "pods", Found::Objects(vec![pod("1", "Running")]))]).is_some(), "its limits are not told yet");
        let none = quota(json!({}), json!([]), json!({"hard": {"pods": "2"}}));
        assert!(used(&none, vec![]).is_some(), "what is told is no limit any more");
        let fresh = quota(json!({"pods": "3"}), json!([]), json!({}));
        assert_eq!(used(&fresh, vec![("", "pods", Found::Objects(vec![]))]), Some(json!({"pods": "0"})));
    }

    #[test]
    fn scopes_narrow_and_the_unknown_stands() {
        let scoped = quota(json!({"pods": "5", "count/jobs.batch": "5"}), json!(["BestEffort"]), json!({}));
        let best = json!({"spec": {"containers": [{"name": "c"}]}});
        let found = vec![("", "pods", Found::Objects(vec![pod("1", "Running"), best])), ("batch", "jobs", Found::Count(4))];
        assert_eq!(used(&scoped, found), Some(json!({"pods": "1", "count/jobs.batch": "0"})));
        let known = quota(json!({"pods": "5", "secrets": "5"}), json!([]), json!({"hard": {"pods": "5", "secrets": "5"}, "used": {"pods": "3", "secrets": "4"}}));
        let found = vec![("", "pods", Found::Objects(vec![])), ("", "secrets", Found::Unknown)];
        assert_eq!(used(&known, found), Some(json!({"pods": "0", "secrets": "4"})));
    }
}
