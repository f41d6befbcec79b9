//! The default RBAC objects, read from the table `policy.txt`.

use serde_json::{Value, json};

use crate::authz::rules::Rule;

const TABLE: &str = include_str!("policy.txt");
const RBAC: &str = "rbac.authorization.k8s.io";

/// All default RBAC objects.
pub(crate) struct Policy {
    pub cluster_roles: Vec<Value>,
    pub cluster_role_bindings: Vec<Value>,
    pub roles: Vec<Value>,
    pub role_bindings: Vec<Value>,
}

struct Role {
    namespace: String,
    name: String,
    aggregate: Option<String>,
    to: Option<String>,
    rules: Vec<Rule>,
}

/// Reads the table. Roles that aggregate others carry the joined rules at once, so that they work
/// before the aggregation controller has run.
pub(crate) fn policy() -> Policy {
    let mut roles: Vec<Role> = Vec::new();
    let (mut cluster_role_bindings, mut role_bindings) = (Vec::new(), Vec::new());
    for line in TABLE.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with(' ') {
            if let Some(role) = roles.last_mut() {
                role.rules.push(rule(&words));
            }
            continue;
        }
        let role = |namespace: &str, name: &str, rest: &[&str]| Role {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            aggregate: rest.iter().find_map(|w| w.strip_prefix("aggregate=")).map(str::to_owned),
            to: rest.iter().find_map(|w| w.strip_prefix("to=")).map(str::to_owned),
            rules: Vec::new(),
        };
        match words[0] {
            "clusterrole" => {
                if let Some(controller) = words[1].strip_prefix("system:controller:") {
                    let subject = format!("s:kube-system/{controller}");
                    cluster_role_bindings.push(binding("", words[1], "ClusterRole", words[1], &[&subject]));
                }
                roles.push(role("", words[1], &words[2..]));
            }
            "role" => roles.push(role(words[1], words[2], &[])),
            "clusterbinding" => cluster_role_bindings.push(binding("", words[1], "ClusterRole", words[2], &words[3..])),
            _ => {
                let kind = if words[3] == "role" { "Role" } else { "ClusterRole" };
                role_bindings.push(binding(words[1], words[2], kind, words[4], &words[5..]));
            }
        }
    }
    let (mut cluster_roles, mut namespaced) = (Vec::new(), Vec::new());
    for role in &roles {
        let rules = match &role.aggregate {
            Some(label) => aggregated(&roles, label),
            None => role.rules.clone(),
        };
        let mut object = json!({
            "apiVersion": format!("{RBAC}/v1"),
            "metadata": metadata(&role.namespace, &role.name),
            "rules": rules.iter().map(Rule::to_value).collect::<Vec<_>>(),
        });
        if let Some(label) = &role.to {
            object["metadata"]["labels"][format!("{RBAC}/aggregate-to-{label}")] = "true".into();
        }
        if let Some(label) = &role.aggregate {
            object["aggregationRule"] =
                json!({"clusterRoleSelectors": [{"matchLabels": {format!("{RBAC}/aggregate-to-{label}"): "true"}}]});
        }
        if role.namespace.is_empty() {
            object["kind"] = "ClusterRole".into();
            cluster_roles.push(object);
        } else {
            object["kind"] = "Role".into();
            namespaced.push(object);
        }
    }
    Policy { cluster_roles, cluster_role_bindings, roles: namespaced, role_bindings }
}

/// The rules of the role `system:node`, which the Node authorizer falls back on.
pub(crate) fn node_rules(policy: &Policy) -> Vec<Rule> {
    let role = policy.cluster_roles.iter().find(|r| r["metadata"]["name"] == "system:node");
    role.map(|r| crate::util::items(r, "/rules").map(Rule::from_value).collect()).unwrap_or_default()
}

fn aggregated(roles: &[Role], label: &str) -> Vec<Rule> {
    let mut parts: Vec<&Role> = roles.iter().filter(|r| r.to.as_deref() == Some(label)).collect();
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    let mut rules: Vec<Rule> = Vec::new();
    for part in parts {
        let of_part = match &part.aggregate {
            Some(deeper) => aggregated(roles, deeper),
            None => part.rules.clone(),
        };
        for rule in of_part {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    rules
}

fn rule(words: &[&str]) -> Rule {
    let list = |word: &str| word.split(',').map(|w| if w == "-" { String::new() } else { w.to_owned() }).collect::<Vec<_>>();
    if words[1] == "url" {
        return Rule { verbs: list(words[0]), urls: list(words[2]), ..Rule::default() };
    }
    Rule {
        verbs: list(words[0]),
        groups: list(words[1]),
        resources: list(words[2]),
        names: words.get(3).map(|w| list(w)).unwrap_or_default(),
        urls: Vec::new(),
    }
}

fn binding(namespace: &str, name: &str, role_kind: &str, role: &str, subjects: &[&str]) -> Value {
    let subjects: Vec<Value> = subjects
        .iter()
        .map(|s| match s.split_at(2) {
            ("g:", group) => json!({"apiGroup": RBAC, "kind": "Group", "name": group}),
            ("u:", user) => json!({"apiGroup": RBAC, "kind": "User", "name": user}),
            (_, account) => {
                let (ns, name) = account.split_once('/').unwrap_or(("", account));
                json!({"kind": "ServiceAccount", "name": name, "namespace": ns})
            }
        })
        .collect();
    let mut object = json!({
        "apiVersion": format!("{RBAC}/v1"),
        "kind": if namespace.is_empty() { "ClusterRoleBinding" } else { "RoleBinding" },
        "metadata": metadata(namespace, name),
        "roleRef": {"apiGroup": RBAC, "kind": role_kind, "name": role},
    });
    if !subjects.is_empty() {
        object["subjects"] = subjects.into();
    }
    object
}

fn metadata(namespace: &str, name: &str) -> Value {
    let mut metadata = json!({
        "name": name,
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
    });
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        let policy = policy();
        assert!(policy.cluster_roles.len() > 60, "{}", policy.cluster_roles.len());
        assert_eq!(policy.roles.len(), 7);
        let named = |name: &str| policy.cluster_roles.iter().find(|r| r["metadata"]["name"] == name).unwrap();
        let admin = named("admin");
        let view_rules = named("view")["rules"].as_array().unwrap();
        assert!(!view_rules.is_empty());
        assert!(view_rules.iter().all(|r| admin["rules"].as_array().unwrap().contains(r)));
        assert_eq!(named("cluster-admin")["rules"][1], json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
        for list in [&policy.cluster_role_bindings, &policy.role_bindings] {
            for binding in list {
                let role = &binding["roleRef"]["name"];
                assert!(policy.cluster_roles.iter().chain(&policy.roles).any(|r| r["metadata"]["name"] == *role), "{role}");
            }
        }
        assert!(!node_rules(&policy).is_empty());
    }
}
