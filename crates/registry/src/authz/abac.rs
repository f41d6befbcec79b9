//! Policies of a file, a line each (upstream's mode ABAC).

use apiserver::authz::Rules;
use apiserver::{Authorizer, AuthzAttributes, Decision, UserInfo};
use serde_json::{Value, json};

use crate::config_file::{self, Shape};
use crate::util::text;

const VERSION: &str = "abac.authorization.kubernetes.io/v1beta1";
/// Everybody who is known.
const KNOWN: &str = "system:authenticated";
const SPEC: &[(&str, Shape)] = &[
    ("user", Shape::Text),
    ("group", Shape::Text),
    ("readonly", Shape::Flag),
    ("apiGroup", Shape::Text),
    ("resource", Shape::Text),
    ("namespace", Shape::Text),
    ("nonResourcePath", Shape::Text),
];
const FIELDS: &[(&str, Shape)] = &[("spec", Shape::Object(SPEC))];

/// What a file allows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Abac {
    policies: Vec<Policy>,
    /// Whether some lines are of the form without versions, which will go.
    pub unversioned: bool,
}

/// What is wrong with a file of policies.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("line {line}: {text}: {why}")]
pub struct PolicyFileError {
    /// Counted from one.
    pub line: usize,
    text: String,
    why: String,
}

/// Texts that are empty match nothing; `*` is everything.
#[derive(Clone, Debug, Default, PartialEq)]
struct Policy {
    user: String,
    group: String,
    readonly: bool,
    api_group: String,
    resource: String,
    namespace: String,
    path: String,
}

impl Abac {
    /// Reads a file's text. What is empty or begins with `#` is no policy.
    pub fn from_text(file: &str) -> Result<Abac, PolicyFileError> {
        let mut abac = Abac::default();
        let lines = file.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.trim().starts_with('#'));
        for (n, line) in lines {
            let policy = Policy::read(line, &mut abac.unversioned).map_err(|why| PolicyFileError { line: n + 1, text: line.into(), why })?;
            abac.policies.push(policy);
        }
        Ok(abac)
    }
}

impl Policy {
    fn read(line: &str, unversioned: &mut bool) -> Result<Policy, String> {
        let value: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
        if !value.is_object() {
            return Err("a policy is an object".into());
        }
        let old = text(&value, "/apiVersion").is_empty() || text(&value, "/kind").is_empty();
        let value = if old { json!({"apiVersion": VERSION, "kind": "Policy", "spec": value}) } else { value };
        for unknown in config_file::read_leniently(&value, &[VERSION], "Policy", FIELDS)? {
            tracing::warn!("policy file: {unknown} is not looked at");
        }
        let spec = &value["spec"];
        let of = |name: &str| spec.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut policy = Policy {
            user: of("user"),
            group: of("group"),
            readonly: spec.get("readonly").and_then(Value::as_bool).unwrap_or_default(),
            api_group: of("apiGroup"),
            resource: of("resource"),
            namespace: of("namespace"),
            path: of("nonResourcePath"),
        };
        if old {
            *unversioned = true;
            policy.of_before();
        }
        if policy.user == "*" || policy.group == "*" {
            (policy.user, policy.group) = (String::new(), KNOWN.into());
        }
        Ok(policy)
    }

    /// What was left out in the form without versions was everything.
    fn of_before(&mut self) {
        let all = || "*".to_owned();
        if self.user.is_empty() && self.group.is_empty() {
            self.group = KNOWN.into();
        }
        self.path = if self.namespace.is_empty() && self.resource.is_empty() { all() } else { String::new() };
        for place in [&mut self.namespace, &mut self.resource] {
            if place.is_empty() {
                *place = all();
            }
        }
        self.api_group = all();
    }

    fn is_of(&self, user: &UserInfo) -> bool {
        let (named, grouped) = (!self.user.is_empty(), !self.group.is_empty());
        (named || grouped) && (!named || self.user == user.name) && (!grouped || user.groups.contains(&self.group))
    }

    fn allows(&self, attributes: &AuthzAttributes) -> bool {
        let is = |mine: &str, asked: &str| mine == "*" || mine == asked;
        if self.readonly && !matches!(attributes.verb.as_str(), "get" | "list" | "watch") {
            return false;
        }
        match attributes.resource_request {
            true => is(&self.namespace, &attributes.namespace) && is(&self.resource, &attributes.resource) && is(&self.api_group, &attributes.api_group),
            false => is(&self.path, &attributes.path) || self.path.ends_with('*') && attributes.path.starts_with(self.path.trim_end_matches('*')),
        }
    }

    fn verbs(&self) -> &'static [&'static str] {
        if self.readonly { &["get", "list", "watch"] } else { &["*"] }
    }
}

impl Authorizer for Abac {
    fn authorize(&self, attributes: &AuthzAttributes) -> (Decision, String) {
        match self.policies.iter().any(|p| p.is_of(&attributes.user) && p.allows(attributes)) {
            true => (Decision::Allow, String::new()),
            false => (Decision::NoOpinion, "No policy matched.".into()),
        }
    }

    fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules {
        let mut rules = Rules::default();
        for policy in self.policies.iter().filter(|p| p.is_of(user) && (p.namespace == "*" || p.namespace == namespace)) {
            if !policy.resource.is_empty() {
                rules.resource_rules.push(json!({"verbs": policy.verbs(), "apiGroups": [policy.api_group], "resources": [policy.resource]}));
            }
            if !policy.path.is_empty() {
                rules.non_resource_rules.push(json!({"verbs": policy.verbs(), "nonResourceURLs": [policy.path]}));
            }
        }
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(user: &str, groups: &[&str], verb: &str, [namespace, group, resource]: [&str; 3]) -> AuthzAttributes {
        AuthzAttributes {
            user: UserInfo::new(user, groups),
            verb: verb.into(),
            resource_request: true,
            namespace: namespace.into(),
            api_group: group.into(),
            resource: resource.into(),
            ..AuthzAttributes::default()
        }
    }

    fn visits(user: &str, groups: &[&str], verb: &str, path: &str) -> AuthzAttributes {
        AuthzAttributes { user: UserInfo::new(user, groups), verb: verb.into(), path: path.into(), ..AuthzAttributes::default() }
    }

    fn line(spec: Value) -> String {
        json!({"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": spec}).to_string()
    }

    #[test]
    fn who_is_named_may_do_what_is_named() {
        let lines = [
            "# policies".to_owned(),
            line(json!({"user": "bob", "namespace": "p", "resource": "*", "apiGroup": "*", "readonly": true})),
            String::new(),
            line(json!({"group": "ops", "namespace": "*", "resource": "pods"})),
            line(json!({"user": "eve", "group": "ops", "nonResourcePath": "/logs*"})),
            line(json!({"user": "*", "nonResourcePath": "/version", "readonly": true})),
            line(json!({"namespace": "*", "resource": "*", "apiGroup": "*", "nonResourcePath": "*"})),
        ];
        let abac = Abac::from_text(&lines.join("\n")).unwrap();
        assert!(!abac.unversioned);
        let may = |attributes: AuthzAttributes| abac.authorize(&attributes).0 == Decision::Allow;
        assert!(may(asks("bob", &[], "list", ["p", "apps", "deployments"])) && may(asks("bob", &[], "get", ["p", "", "pods"])));
        assert!(!may(asks("bob", &[], "create", ["p", "", "pods"])) && !may(asks("bob", &[], "get", ["q", "", "pods"])));
        assert!(may(asks("ann", &["ops"], "delete", ["q", "", "pods"])) && !may(asks("ann", &["ops"], "delete", ["q", "apps", "pods"])));
        assert!(may(visits("eve", &["ops"], "post", "/logs/a")) && !may(visits("eve", &[], "get", "/logs")) && !may(visits("ann", &["ops"], "get", "/logs")));
        assert!(may(visits("x", &[KNOWN], "get", "/version")) && !may(visits("x", &[KNOWN], "post", "/version")));
        assert!(!may(visits("system:anonymous", &["system:unauthenticated"], "get", "/version")), "everybody is who is known");
        assert_eq!(abac.authorize(&asks("zoe", &[], "get", ["p", "", "pods"])), (Decision::NoOpinion, "No policy matched.".into()));
        let rules = abac.rules_for(&UserInfo::new("bob", &[KNOWN]), "p");
        assert_eq!(rules.resource_rules, [json!({"verbs": ["get", "list", "watch"], "apiGroups": ["*"], "resources": ["*"]})]);
    }

    #[test]
    fn lines_without_versions_leave_out_what_is_everything() {
        let abac = Abac::from_text("{\"user\": \"bob\", \"readonly\": true}\n{\"resource\": \"events\"}").unwrap();
        let may = |attributes: AuthzAttributes| abac.authorize(&attributes).0 == Decision::Allow;
        assert!(abac.unversioned);
        assert!(may(asks("bob", &[], "get", ["p", "apps", "deployments"])) && may(visits("bob", &[], "get", "/metrics")));
        assert!(may(asks("ann", &[KNOWN], "create", ["p", "events.k8s.io", "events"])) && !may(visits("ann", &[KNOWN], "get", "/metrics")));
    }

    #[test]
    fn what_is_no_policy_is_named_by_its_line() {
        let why = |text: &str| Abac::from_text(text).unwrap_err().to_string();
        assert!(why("# a\n{").starts_with("line 2: {: EOF"), "{}", why("# a\n{"));
        assert!(why("[]").ends_with("a policy is an object"));
        let other = json!({"apiVersion": "v1", "kind": "Pod"}).to_string();
        assert!(why(&other).contains("Policy of abac.authorization.kubernetes.io/v1beta1 is expected"), "{}", why(&other));
        assert!(why(&line(json!({"user": 1}))).contains("user"), "{}", why(&line(json!({"user": 1}))));
        assert!(why("{\"user\": [\"a\"]}").contains("array"));
        assert!(Abac::from_text("{\"users\": \"a\"}").is_ok(), "upstream does not mind either");
    }
}
