//! RBAC rules: matching a request, and whether one set of rules covers another (escalation).

use apiserver::AuthzAttributes;
use serde_json::{Value, json};

use crate::util::texts;

/// One policy rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    pub names: Vec<String>,
    pub urls: Vec<String>,
}

impl Rule {
    /// Reads `rules[i]` of a role.
    pub fn from_value(rule: &Value) -> Self {
        let list = |key: &str| texts(rule, key).map(str::to_owned).collect();
        Self {
            verbs: list("/verbs"),
            groups: list("/apiGroups"),
            resources: list("/resources"),
            names: list("/resourceNames"),
            urls: list("/nonResourceURLs"),
        }
    }

    /// The rule as it stands in a role.
    pub fn to_value(&self) -> Value {
        let mut rule = json!({ "verbs": self.verbs });
        for (key, list) in [
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.urls),
        ] {
            if !list.is_empty() {
                rule[key] = json!(list);
            }
        }
        rule
    }

    /// Whether this rule allows what is asked.
    pub fn allows(&self, a: &AuthzAttributes) -> bool {
        if !has(&self.verbs, &a.verb) {
            return false;
        }
        if !a.resource_request {
            return self.urls.iter().any(|u| url_matches(u, &a.path));
        }
        has(&self.groups, &a.api_group)
            && self.resources.iter().any(|r| resource_matches(r, &a.resource, &a.subresource))
            && (self.names.is_empty() || self.names.contains(&a.name))
    }

    /// Whether everything this rule grants is granted by `owner` together.
    pub fn covered_by(&self, owner: &[Rule]) -> bool {
        self.atoms().iter().all(|atom| owner.iter().any(|rule| rule.covers_atom(atom)))
    }

    fn atoms(&self) -> Vec<Rule> {
        let mut atoms = Vec::new();
        for verb in &self.verbs {
            for group in &self.groups {
                for resource in &self.resources {
                    let one = |names: Vec<String>| Rule {
                        verbs: vec![verb.clone()],
                        groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        names,
                        urls: Vec::new(),
                    };
                    if self.names.is_empty() {
                        atoms.push(one(Vec::new()));
                    }
                    atoms.extend(self.names.iter().map(|n| one(vec![n.clone()])));
                }
            }
            atoms.extend(self.urls.iter().map(|u| Rule {
                verbs: vec![verb.clone()],
                urls: vec![u.clone()],
                ..Rule::default()
            }));
        }
        atoms
    }

    fn covers_atom(&self, atom: &Rule) -> bool {
        if !has(&self.verbs, &atom.verbs[0]) {
            return false;
        }
        if let Some(url) = atom.urls.first() {
            return self.urls.iter().any(|u| url_matches(u, url));
        }
        let wanted = &atom.resources[0];
        let resource = self.resources.iter().any(|r| {
            r == "*" || r == wanted || r.strip_prefix("*/").is_some_and(|sub| wanted.split_once('/').is_some_and(|(_, s)| s == sub))
        });
        has(&self.groups, &atom.groups[0])
            && resource
            && (self.names.is_empty() || atom.names.first().is_some_and(|n| self.names.contains(n)))
    }

    /// The rule as upstream prints it in an escalation error.
    pub fn compact(&self) -> String {
        let list = |l: &[String]| {
            let quoted: Vec<String> = l.iter().map(|s| format!("{s:?}")).collect();
            format!("[{}]", quoted.join(", "))
        };
        let parts: Vec<String> = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.names),
            ("NonResourceURLs", &self.urls),
            ("Verbs", &self.verbs),
        ]
        .iter()
        .filter(|(_, l)| !l.is_empty())
        .map(|(name, l)| format!("{name}:{}", list(l)))
        .collect();
        format!("{{{}}}", parts.join(", "))
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|x| x == "*" || x == wanted)
}

fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    if subresource.is_empty() {
        return rule == resource;
    }
    match rule.split_once('/') {
        Some((r, s)) => s == subresource && (r == resource || r == "*"),
        None => false,
    }
}

fn url_matches(rule: &str, path: &str) -> bool {
    rule == "*" || rule == path || (rule.ends_with('*') && path.starts_with(rule.trim_end_matches('*')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> Rule {
        let list = |s: &str| s.split(',').filter(|x| *x != "-").map(|x| if x == "core" { String::new() } else { x.to_owned() }).collect();
        Rule { verbs: list(verbs), groups: list(groups), resources: list(resources), names: list(names), urls: vec![] }
    }

    fn asks(verb: &str, group: &str, resource: &str, subresource: &str, name: &str) -> AuthzAttributes {
        AuthzAttributes {
            verb: verb.into(),
            resource_request: true,
            api_group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: name.into(),
            ..Default::default()
        }
    }

    #[test]
    fn matching() {
        let r = rule("get,list", "core", "pods,pods/log,*/scale", "-");
        assert!(r.allows(&asks("get", "", "pods", "", "x")));
        assert!(r.allows(&asks("get", "", "pods", "log", "x")));
        assert!(r.allows(&asks("get", "", "deployments", "scale", "x")));
        assert!(!r.allows(&asks("get", "", "pods", "exec", "x")));
        assert!(!r.allows(&asks("get", "apps", "pods", "", "x")));
        assert!(!r.allows(&asks("delete", "", "pods", "", "x")));
        let named = rule("get", "core", "pods", "a");
        assert!(named.allows(&asks("get", "", "pods", "", "a")));
        assert!(!named.allows(&asks("get", "", "pods", "", "b")));
        let url = Rule { verbs: vec!["get".into()], urls: vec!["/healthz/*".into()], ..Default::default() };
        let path = |p: &str| AuthzAttributes { verb: "get".into(), path: p.into(), ..Default::default() };
        assert!(url.allows(&path("/healthz/ping")));
        assert!(!url.allows(&path("/version")));
    }

    #[test]
    fn covering() {
        let owner = [rule("get", "core", "pods", "-"), rule("list", "core", "pods,secrets", "-")];
        assert!(rule("get,list", "core", "pods", "-").covered_by(&owner));
        assert!(rule("get", "core", "pods", "one").covered_by(&owner));
        assert!(!rule("get", "core", "secrets", "-").covered_by(&owner));
        assert!(!rule("*", "core", "pods", "-").covered_by(&owner));
        assert_eq!(rule("get", "core", "pods", "-").compact(), "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\"]}");
    }
}
