//! Which flow schema a request belongs to.

use serde_json::Value;

use crate::ctx::UserInfo;
use crate::request::RequestInfo;

/// What tells the flows of a schema apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distinguisher {
    /// The schema has one flow.
    None,
    User,
    Namespace,
}

impl Distinguisher {
    /// The name of a request's flow.
    pub fn of<'a>(self, info: &'a RequestInfo, user: &'a str) -> &'a str {
        match self {
            Distinguisher::None => "",
            Distinguisher::User => user,
            Distinguisher::Namespace => &info.namespace,
        }
    }
}

/// Rules of a flow schema, prepared for matching.
#[derive(Debug, Default)]
pub struct Rules(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    others: Vec<(Names, Vec<String>)>,
}

#[derive(Debug)]
enum Subject {
    /// `*` is everybody.
    User(String),
    Group(String),
    /// Namespace and name; the name may be `*`.
    Account(String, String),
}

/// Names, or all there may be.
#[derive(Debug)]
struct Names(Option<Vec<String>>);

#[derive(Debug)]
struct ResourceRule {
    verbs: Names,
    groups: Names,
    resources: Names,
    namespaces: Names,
    cluster: bool,
}

impl Names {
    fn of(rule: &Value, key: &str) -> Names {
        let names = texts(rule, key);
        Names((names != ["*"]).then_some(names))
    }

    fn has(&self, name: &str) -> bool {
        self.any(|n| n == name)
    }

    fn any(&self, test: impl Fn(&str) -> bool) -> bool {
        self.0.as_ref().is_none_or(|names| names.iter().any(|n| test(n)))
    }
}

fn texts(rule: &Value, key: &str) -> Vec<String> {
    list(rule, key).iter().filter_map(Value::as_str).map(str::to_string).collect()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

impl Rules {
    /// The rules of a flow schema's spec. What cannot be understood matches nothing.
    pub fn of(spec: &Value) -> Rules {
        Rules(list(spec, "rules").iter().map(Rule::of).collect())
    }

    /// Whether a request of this user is meant.
    pub fn matches(&self, info: &RequestInfo, user: &UserInfo) -> bool {
        self.0.iter().any(|rule| {
            // the cheaper question first: rules of one kind alone are common
            let empty = if info.resource_request { rule.resources.is_empty() } else { rule.others.is_empty() };
            !empty
                && rule.subjects.iter().any(|s| s.matches(user))
                && if info.resource_request {
                    rule.resources.iter().any(|r| r.matches(info))
                } else {
                    rule.others.iter().any(|(verbs, urls)| verbs.has(&info.verb) && urls.iter().any(|u| url_matches(u, &info.path)))
                }
        })
    }
}

impl Rule {
    fn of(rule: &Value) -> Rule {
        let resource = |r: &Value| ResourceRule {
            verbs: Names::of(r, "verbs"),
            groups: Names::of(r, "apiGroups"),
            resources: Names::of(r, "resources"),
            namespaces: Names::of(r, "namespaces"),
            cluster: r.get("clusterScope").and_then(Value::as_bool).unwrap_or(false),
        };
        Rule {
            subjects: list(rule, "subjects").iter().filter_map(Subject::of).collect(),
            resources: list(rule, "resourceRules").iter().map(resource).collect(),
            others: list(rule, "nonResourceRules").iter().map(|r| (Names::of(r, "verbs"), texts(r, "nonResourceURLs"))).collect(),
        }
    }
}

impl Subject {
    fn of(subject: &Value) -> Option<Subject> {
        let text = |path: &str| subject.pointer(path).and_then(Value::as_str).map(str::to_string);
        match subject.get("kind")?.as_str()? {
            "User" => Some(Subject::User(text("/user/name")?)),
            "Group" => Some(Subject::Group(text("/group/name")?)),
            "ServiceAccount" => Some(Subject::Account(text("/serviceAccount/namespace")?, text("/serviceAccount/name")?)),
            _ => None,
        }
    }

    fn matches(&self, user: &UserInfo) -> bool {
        match self {
            Subject::User(name) => name == "*" || *name == user.name,
            Subject::Group(name) => name == "*" || user.in_group(name),
            Subject::Account(namespace, name) => user
                .name
                .strip_prefix("system:serviceaccount:")
                .and_then(|rest| rest.strip_prefix(namespace.as_str())?.strip_prefix(':'))
                .is_some_and(|found| name == "*" || found == name),
        }
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let resource = |name: &str| match info.subresource.as_str() {
            "" => name == info.resource,
            sub => name.strip_prefix(info.resource.as_str()).and_then(|rest| rest.strip_prefix('/')) == Some(sub),
        };
        let place = || if info.namespace.is_empty() { self.cluster } else { self.namespaces.has(&info.namespace) };
        self.verbs.has(&info.verb) && self.resources.any(resource) && self.groups.has(&info.group) && place()
    }
}

/// A path of a rule is the path itself, or, with a star at its end or not, what is below it.
fn url_matches(rule: &str, path: &str) -> bool {
    if rule == "*" || rule == path {
        return true;
    }
    let prefix = rule.strip_suffix('*').unwrap_or(rule);
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use serde_json::json;

    fn matches(rule: Value, user: &UserInfo, method: Method, uri: &str) -> bool {
        let info = RequestInfo::parse(&method, &uri.parse().unwrap()).unwrap();
        Rules::of(&json!({"rules": [rule]})).matches(&info, user)
    }

    #[test]
    fn subjects() {
        let as_user = |subject: Value, user: UserInfo| {
            let rule = json!({"subjects": [subject], "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]});
            matches(rule, &user, Method::GET, "/version")
        };
        let account = |name: &str| json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "ns", "name": name}});
        let user = |name: &str| UserInfo::new(name, &["g"]);
        for (subject, name, expect) in [
            (json!({"kind": "User", "user": {"name": "a"}}), "a", true),
            (json!({"kind": "User", "user": {"name": "a"}}), "b", false),
            (json!({"kind": "User", "user": {"name": "*"}}), "b", true),
            (json!({"kind": "Group", "group": {"name": "g"}}), "b", true),
            (json!({"kind": "Group", "group": {"name": "h"}}), "b", false),
            (account("*"), "system:serviceaccount:ns:x", true),
            (account("*"), "system:serviceaccount:nsx:x", false),
            (account("x"), "system:serviceaccount:ns:x", true),
            (account("x"), "system:serviceaccount:ns:xy", false),
        ] {
            assert_eq!(as_user(subject.clone(), user(name)), expect, "{subject} {name}");
        }
    }

    #[test]
    fn requests() {
        let to = |resources: Value, namespaces: Value, cluster: bool, uri: &str| {
            let rule = json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": resources, "namespaces": namespaces, "clusterScope": cluster});
            let rule = json!({"subjects": [{"kind": "User", "user": {"name": "*"}}], "resourceRules": [rule]});
            matches(rule, &UserInfo::new("u", &[]), Method::GET, uri)
        };
        assert!(to(json!(["pods"]), json!(["a"]), false, "/api/v1/namespaces/a/pods/p"));
        assert!(!to(json!(["pods"]), json!(["b"]), false, "/api/v1/namespaces/a/pods/p"));
        assert!(!to(json!(["pods"]), json!(["a"]), false, "/api/v1/namespaces/a/pods/p/status"));
        assert!(to(json!(["pods/status"]), json!(["*"]), false, "/api/v1/namespaces/a/pods/p/status"));
        assert!(to(json!(["*"]), json!(["*"]), false, "/api/v1/namespaces/a/pods/p/status"));
        assert!(!to(json!(["pods"]), json!(["*"]), false, "/api/v1/pods"), "over all namespaces is cluster scope");
        assert!(to(json!(["pods"]), json!([]), true, "/api/v1/pods"));
        assert!(!to(json!(["pods"]), json!(["*"]), true, "/api/v1/pods?watch=1"));
        assert!(!to(json!(["deployments"]), json!(["*"]), true, "/apis/apps/v1/deployments"));
        assert!(!to(json!(["*"]), json!(["*"]), true, "/healthz"));
    }

    #[test]
    fn urls() {
        for (rule, path, expect) in [
            ("/healthz", "/healthz", true), ("/healthz", "/healthz/ping", true), ("/healthz", "/healthzz", false),
            ("/a/*", "/a/b", true), ("/a/*", "/a", false), ("*", "/x", true), ("/", "/x", true),
        ] {
            assert_eq!(url_matches(rule, path), expect, "{rule} {path}");
        }
    }
}
