//! Cluster roles with an aggregation rule have the rules of those that it selects.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use reconcile::{Informer, Queue, Requeue, run_workers};
use rules::labels;
use serde_json::json;

use crate::Context;

/// The rules that a role is to have, or nothing when it has them, or aggregates none.
pub fn plan(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let rule = role.aggregation_rule.as_ref()?;
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in rule.cluster_role_selectors.iter().flatten() {
        let selected = |r: &&Arc<ClusterRole>| r.metadata.name != role.metadata.name && labels::matches(selector, r.labels());
        // Informers list by name, so the order is always the same.
        for rule in all.iter().filter(selected).flat_map(|r| r.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    (role.rules.clone().unwrap_or_default() != rules).then_some(rules)
}

/// Starts the controller.
pub fn start(context: &Context) {
    let roles: Informer<ClusterRole> = context.informers.of::<ClusterRole>();
    let queue = Queue::<()>::new();
    let q = queue.clone();
    roles.on_change(move |_| q.add(()));
    let client = context.client.clone();
    // One role's rules may be parts of another's, so all are looked at when one changes.
    run_workers(&context.tasks, "clusterrole-aggregation", 1, queue, move |()| {
        let (client, roles) = (client.clone(), roles.clone());
        async move {
            roles.synced().await;
            let all = roles.list();
            let api = Api::<ClusterRole>::all(client);
            let params = PatchParams::apply("clusterrole-aggregation-controller").force();
            for (role, rules) in all.iter().filter_map(|role| Some((role, plan(role, &all)?))) {
                let name = role.name_any();
                let patch = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules});
                match api.patch(&name, &params, &Patch::Apply(patch)).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(Requeue::No)
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn role(name: &str, labels: Value, verbs: &[&str], selects: Option<&str>) -> Arc<ClusterRole> {
        let rules: Vec<Value> = verbs.iter().map(|v| json!({"verbs": [v], "apiGroups": [""], "resources": ["pods"]})).collect();
        let rule = selects.map(|label| json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]}));
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}, "rules": rules, "aggregationRule": rule})).expect("a role"))
    }

    fn verbs(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<String>> {
        plan(role, all).map(|rules| rules.into_iter().flat_map(|r| r.verbs).collect())
    }

    #[test]
    fn rules_are_joined_each_once() {
        let mut all = vec![
            role("a", json!({"to-view": "true"}), &["get", "list"], None),
            role("b", json!({"to-view": "true"}), &["list", "watch"], None),
            role("c", json!({}), &["delete"], None),
            role("view", json!({"to-view": "true"}), &["delete"], Some("to-view")),
        ];
        assert_eq!(verbs(&all[3], &all), Some(vec!["get".into(), "list".into(), "watch".into()]));
        assert_eq!(verbs(&all[0], &all), None, "it aggregates nothing");
        all[3] = role("view", json!({}), &["get", "list", "watch"], Some("to-view"));
        assert_eq!(verbs(&all[3], &all), None, "it has them");
        let none = role("none", json!({}), &["get"], Some("to-none"));
        assert_eq!(verbs(&none, &all), Some(Vec::new()));
    }
}
