//! The RBAC authorizer.
//!
//! Roles and bindings are compiled into maps by name and by subject; each of the four kinds is
//! compiled again only when the cache says that an object of that kind changed.

use std::collections::HashMap;
use std::sync::Arc;

use apiserver::types::Resource;
use apiserver::{Authorizer, AuthzAttributes, Decision, Reader, Rules, UserInfo};
use parking_lot::RwLock;
use serde_json::Value;

use super::rules::Rule;
use crate::util::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, ROLE_BINDINGS, ROLES, items, quote, text};

type ByName = HashMap<(String, String), Arc<Vec<Rule>>>;

/// A role binding.
struct Binding {
    name: String,
    namespace: String,
    role_kind: String,
    role_name: String,
}

/// The bindings of one kind, indexed by namespace and subject.
#[derive(Default)]
struct Bindings {
    all: Vec<Binding>,
    /// (namespace, `u:name` or `g:name`) → (place in `all`, the subject in words).
    by_subject: HashMap<String, HashMap<String, Vec<(usize, String)>>>,
}

/// The compiled policy.
pub(crate) struct Rbac {
    reader: Arc<dyn Reader>,
    roles: Cached<ByName>,
    cluster_roles: Cached<ByName>,
    role_bindings: Cached<Bindings>,
    cluster_role_bindings: Cached<Bindings>,
}

struct Cached<T> {
    resource: &'static Resource,
    compile: fn(&[Arc<Value>]) -> T,
    value: RwLock<Option<(u64, Arc<T>)>>,
}

impl<T> Cached<T> {
    fn new(resource: &'static Resource, compile: fn(&[Arc<Value>]) -> T) -> Self {
        Self { resource, compile, value: RwLock::new(None) }
    }

    fn get(&self, reader: &dyn Reader) -> Arc<T> {
        let version = reader.version(self.resource);
        if let Some((seen, value)) = &*self.value.read()
            && *seen == version
        {
            return value.clone();
        }
        // The version is read before the objects: a change in between only means compiling once more.
        let value = Arc::new((self.compile)(&reader.list(self.resource, None)));
        *self.value.write() = Some((version, value.clone()));
        value
    }
}

impl Rbac {
    /// An authorizer over the roles and bindings that `reader` shows.
    pub fn new(reader: Arc<dyn Reader>) -> Self {
        Self {
            reader,
            roles: Cached::new(&ROLES, compile_roles),
            cluster_roles: Cached::new(&CLUSTER_ROLES, compile_roles),
            role_bindings: Cached::new(&ROLE_BINDINGS, compile_bindings),
            cluster_role_bindings: Cached::new(&CLUSTER_ROLE_BINDINGS, compile_bindings),
        }
    }

    /// Calls `visit` with each rule that applies to the user (with a description of why) until it
    /// returns false; texts about roles that do not exist go to the result.
    fn visit(&self, user: &UserInfo, namespace: &str, visit: &mut dyn FnMut(&Rule, &dyn Fn() -> String) -> bool) -> Vec<String> {
        let mut errors = Vec::new();
        let cluster_roles = self.cluster_roles.get(&*self.reader);
        let bindings = self.cluster_role_bindings.get(&*self.reader);
        for (at, subject) in bindings.of(user, "") {
            let binding = &bindings.all[*at];
            let Some(rules) = cluster_roles.get(&(String::new(), binding.role_name.clone())) else {
                errors.push(missing("clusterrole", &binding.role_name));
                continue;
            };
            let reason = || {
                format!("ClusterRoleBinding {} of {} {} to {subject}", quote(&binding.name), binding.role_kind, quote(&binding.role_name))
            };
            if !rules.iter().all(|rule| visit(rule, &reason)) {
                return errors;
            }
        }
        if namespace.is_empty() {
            return errors;
        }
        let bindings = self.role_bindings.get(&*self.reader);
        let mut roles = None;
        for (at, subject) in bindings.of(user, namespace) {
            let binding = &bindings.all[*at];
            let rules = if binding.role_kind == "ClusterRole" {
                cluster_roles.get(&(String::new(), binding.role_name.clone())).cloned()
            } else {
                roles
                    .get_or_insert_with(|| self.roles.get(&*self.reader))
                    .get(&(binding.namespace.clone(), binding.role_name.clone()))
                    .cloned()
            };
            let Some(rules) = rules else {
                errors.push(missing(&binding.role_kind.to_lowercase(), &binding.role_name));
                continue;
            };
            let reason = || {
                format!(
                    "RoleBinding {} of {} {} to {subject}",
                    quote(&format!("{}/{}", binding.name, binding.namespace)),
                    binding.role_kind,
                    quote(&binding.role_name)
                )
            };
            if !rules.iter().all(|rule| visit(rule, &reason)) {
                return errors;
            }
        }
        errors
    }

    /// All rules that apply to the user in the namespace (and cluster-wide).
    pub fn rules(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let mut rules = Vec::new();
        let errors = self.visit(user, namespace, &mut |rule, _| {
            rules.push(rule.clone());
            true
        });
        (rules, errors)
    }

    /// The rules of a role as a binding refers to it.
    pub fn role(&self, kind: &str, namespace: &str, name: &str) -> Option<Arc<Vec<Rule>>> {
        let (map, namespace) =
            if kind == "ClusterRole" { (self.cluster_roles.get(&*self.reader), "") } else { (self.roles.get(&*self.reader), namespace) };
        map.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }
}

impl Authorizer for Rbac {
    fn authorize(&self, attributes: &AuthzAttributes) -> (Decision, String) {
        let mut allowed = None;
        let errors = self.visit(&attributes.user, &attributes.namespace, &mut |rule, reason| {
            if rule.allows(attributes) {
                allowed = Some(reason());
            }
            allowed.is_none()
        });
        match allowed {
            Some(reason) => (Decision::Allow, format!("RBAC: allowed by {reason}")),
            None => (Decision::NoOpinion, failures(errors)),
        }
    }

    fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules {
        let (rules, errors) = self.rules(user, namespace);
        let (urls, resources): (Vec<Rule>, Vec<Rule>) = rules.into_iter().partition(|r| !r.urls.is_empty());
        Rules {
            resource_rules: resources.iter().map(Rule::to_value).collect(),
            non_resource_rules: urls.iter().map(Rule::to_value).collect(),
            incomplete: false,
            evaluation_error: match errors.len() {
                0 => String::new(),
                1 => errors.into_iter().next().unwrap_or_default(),
                _ => format!("[{}]", errors.join(", ")),
            },
        }
    }
}

fn failures(mut errors: Vec<String>) -> String {
    errors.dedup();
    match errors.as_slice() {
        [] => String::new(),
        [one] => format!("RBAC: {one}"),
        many => format!("RBAC: [{}]", many.join(", ")),
    }
}

fn missing(kind: &str, name: &str) -> String {
    format!("{kind}.rbac.authorization.k8s.io {} not found", quote(name))
}

impl Bindings {
    /// The bindings that name this user or one of its groups, in their order.
    fn of<'a>(&'a self, user: &UserInfo, namespace: &str) -> Vec<&'a (usize, String)> {
        let Some(subjects) = self.by_subject.get(namespace) else { return Vec::new() };
        let keys = std::iter::once(format!("u:{}", user.name)).chain(user.groups.iter().map(|g| format!("g:{g}")));
        let mut found: Vec<&(usize, String)> = keys.filter_map(|k| subjects.get(&k)).flatten().collect();
        found.sort_by_key(|(at, _)| *at);
        found.dedup_by_key(|(at, _)| *at);
        found
    }
}

fn compile_roles(roles: &[Arc<Value>]) -> ByName {
    roles
        .iter()
        .map(|role| {
            let key = (text(role, "/metadata/namespace").to_owned(), text(role, "/metadata/name").to_owned());
            (key, Arc::new(items(role, "/rules").map(Rule::from_value).collect()))
        })
        .collect()
}

fn compile_bindings(bindings: &[Arc<Value>]) -> Bindings {
    let mut out = Bindings::default();
    for binding in bindings {
        let namespace = text(binding, "/metadata/namespace").to_owned();
        let at = out.all.len();
        let subjects = out.by_subject.entry(namespace.clone()).or_default();
        for subject in items(binding, "/subjects") {
            let name = text(subject, "/name");
            let (key, words) = match text(subject, "/kind") {
                "User" => (format!("u:{name}"), format!("User {}", quote(name))),
                "Group" => (format!("g:{name}"), format!("Group {}", quote(name))),
                "ServiceAccount" => {
                    let of = match text(subject, "/namespace") {
                        "" => namespace.as_str(),
                        of => of,
                    };
                    (format!("u:system:serviceaccount:{of}:{name}"), format!("ServiceAccount {}", quote(&format!("{name}/{of}"))))
                }
                _ => continue,
            };
            subjects.entry(key).or_default().push((at, words));
        }
        out.all.push(Binding {
            name: text(binding, "/metadata/name").to_owned(),
            namespace,
            role_kind: text(binding, "/roleRef/kind").to_owned(),
            role_name: text(binding, "/roleRef/name").to_owned(),
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Objects;
    use serde_json::json;

    fn asks(user: &UserInfo, verb: &str, namespace: &str, resource: &str) -> AuthzAttributes {
        AuthzAttributes {
            user: user.clone(),
            verb: verb.into(),
            resource_request: true,
            namespace: namespace.into(),
            resource: resource.into(),
            ..Default::default()
        }
    }

    #[test]
    fn allows_by_binding_and_follows_changes() {
        let objects = Objects::new();
        objects.put(&ROLES, json!({"metadata": {"name": "r", "namespace": "a"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}));
        objects.put(&ROLE_BINDINGS, json!({"metadata": {"name": "b", "namespace": "a"}, "roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "ServiceAccount", "name": "sa"}]}));
        let rbac = Rbac::new(objects.clone());
        let sa = UserInfo::new("system:serviceaccount:a:sa", &["system:serviceaccounts"]);
        let (decision, reason) = rbac.authorize(&asks(&sa, "get", "a", "pods"));
        assert_eq!(decision, Decision::Allow);
        assert_eq!(reason, "RBAC: allowed by RoleBinding \"b/a\" of Role \"r\" to ServiceAccount \"sa/a\"");
        assert_eq!(rbac.authorize(&asks(&sa, "get", "b", "pods")).0, Decision::NoOpinion);
        assert_eq!(rbac.authorize(&asks(&sa, "get", "", "pods")).0, Decision::NoOpinion);
        assert_eq!(rbac.authorize(&asks(&sa, "list", "a", "pods")).0, Decision::NoOpinion);
        objects.put(&CLUSTER_ROLE_BINDINGS, json!({"metadata": {"name": "c"}, "roleRef": {"kind": "ClusterRole", "name": "lost"}, "subjects": [{"kind": "Group", "name": "system:serviceaccounts"}]}));
        assert_eq!(rbac.authorize(&asks(&sa, "list", "a", "pods")).1, "RBAC: clusterrole.rbac.authorization.k8s.io \"lost\" not found");
        objects.put(&CLUSTER_ROLES, json!({"metadata": {"name": "lost"}, "rules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]}));
        assert_eq!(rbac.authorize(&asks(&sa, "list", "", "pods")).0, Decision::Allow);
    }
}
