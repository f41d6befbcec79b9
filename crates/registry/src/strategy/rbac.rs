//! RBAC kinds: nobody grants what they do not have (unless they may `escalate` or `bind`). Cluster
//! roles with an aggregation rule get the rules of those that it selects from a controller.

use std::sync::Arc;

use api::selector::Labels;
use api::status;
use apiserver::types::Status;
use apiserver::{AuthzAttributes, Backend, Ctx, Decision, Finish, Strategy};
use async_trait::async_trait;
use serde_json::Value;

use crate::authz::rbac::Rbac;
use crate::authz::rules::Rule;
use crate::util::{CLUSTER_ROLES, items, quote, text};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Roles and cluster roles.
pub(crate) struct Roles {
    pub rbac: Arc<Rbac>,
}

/// Role bindings and cluster role bindings.
pub(crate) struct RoleBindings {
    pub rbac: Arc<Rbac>,
}

fn may(ctx: &Ctx, verb: &str, resource: &str, name: &str) -> bool {
    let question = AuthzAttributes {
        user: ctx.user.clone(),
        verb: verb.into(),
        resource_request: true,
        namespace: ctx.namespace.clone(),
        api_group: GROUP.into(),
        api_version: "v1".into(),
        resource: resource.into(),
        name: name.into(),
        ..AuthzAttributes::default()
    };
    ctx.authorize(&question).0 == Decision::Allow
}

/// Refuses if the user lacks one of the rules.
fn check(rbac: &Rbac, ctx: &Ctx, name: &str, rules: &[Rule]) -> Result<(), Status> {
    if ctx.user.in_group("system:masters") {
        return Ok(());
    }
    let (own, _) = rbac.rules(&ctx.user, &ctx.namespace);
    let missing: Vec<String> = rules.iter().filter(|r| !r.covered_by(&own)).map(Rule::compact).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let groups: Vec<String> = ctx.user.groups.iter().map(|g| quote(g)).collect();
    let why = format!(
        "user {} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        quote(&ctx.user.name),
        groups.join(" "),
        missing.join("\n")
    );
    Err(status::forbidden(GROUP, ctx.resource.plural, name, &why))
}

impl Roles {
    fn guard(&self, ctx: &Ctx, role: &Value, old: Option<&Value>) -> Result<(), Status> {
        let name = text(role, "/metadata/name");
        let same = |key: &str| old.is_some_and(|o| o.get(key) == role.get(key));
        if (same("rules") && same("aggregationRule")) || may(ctx, "escalate", ctx.resource.plural, name) {
            return Ok(());
        }
        let mut rules: Vec<Rule> = items(role, "/rules").map(Rule::from_value).collect();
        if role.get("aggregationRule").is_some() && !same("aggregationRule") {
            // Whoever chooses what is aggregated may come to everything.
            let all = || vec!["*".to_owned()];
            rules = vec![
                Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() },
                Rule { verbs: all(), urls: all(), ..Rule::default() },
            ];
        }
        check(&self.rbac, ctx, name, &rules)
    }
}

#[async_trait]
impl Strategy for Roles {
    fn allow_create_on_update(&self) -> bool {
        true
    }

    async fn begin_create(&self, ctx: &Ctx, role: &mut Value) -> Result<Option<Finish>, Status> {
        ctx.settled(|| self.guard(ctx, role, None)).await.map(|()| None)
    }

    async fn begin_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) -> Result<Option<Finish>, Status> {
        ctx.settled(|| self.guard(ctx, new, Some(old))).await.map(|()| None)
    }
}

/// Joins rules into the cluster roles that have an aggregation rule, for a cluster that begins; later
/// the controller does so. Aggregated roles can be parts of others, so this goes on until nothing
/// changes.
pub(crate) async fn aggregate(backend: &Backend) {
    const DEEPEST: usize = 8;
    for _ in 0..DEEPEST {
        let roles = backend.reader.list(&CLUSTER_ROLES, None);
        let mut changed = false;
        for role in roles.iter().filter(|r| r.get("aggregationRule").is_some()) {
            let rules = joined(role, &roles);
            if items(role, "/rules").eq(rules.iter()) {
                continue;
            }
            changed = true;
            let mut change = |role: &mut Value| {
                role["rules"] = rules.clone().into();
                Ok(())
            };
            if let Err(e) = backend.writer.modify(&CLUSTER_ROLES, "", text(role, "/metadata/name"), &mut change).await {
                tracing::warn!(error = %e.message, "cluster role not aggregated");
                return;
            }
        }
        if !changed {
            return;
        }
    }
}

/// The rules of all roles that the aggregation rule selects, by name, each once.
fn joined(role: &Value, roles: &[Arc<Value>]) -> Vec<Value> {
    let selectors: Vec<Labels> =
        items(role, "/aggregationRule/clusterRoleSelectors").filter_map(|s| Labels::from_label_selector(s).ok()).collect();
    let mut parts: Vec<&Arc<Value>> = roles
        .iter()
        .filter(|r| text(r, "/metadata/name") != text(role, "/metadata/name"))
        .filter(|r| selectors.iter().any(|s| s.matches(r.pointer("/metadata/labels").unwrap_or(&Value::Null))))
        .collect();
    parts.sort_by_key(|r| text(r, "/metadata/name").to_owned());
    let mut rules: Vec<Value> = Vec::new();
    for rule in parts.iter().flat_map(|r| items(r, "/rules")) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    rules
}

impl RoleBindings {
    fn guard(&self, ctx: &Ctx, binding: &Value, old: Option<&Value>) -> Result<(), Status> {
        if old.is_some_and(|o| o.get("subjects") == binding.get("subjects") && o.get("roleRef") == binding.get("roleRef")) {
            return Ok(());
        }
        if ctx.user.in_group("system:masters") {
            return Ok(());
        }
        let (kind, name) = (text(binding, "/roleRef/kind"), text(binding, "/roleRef/name"));
        let plural = if kind == "ClusterRole" { "clusterroles" } else { "roles" };
        if may(ctx, "bind", plural, name) {
            return Ok(());
        }
        let rules = self.rbac.role(kind, &ctx.namespace, name).ok_or_else(|| status::not_found(GROUP, plural, name))?;
        check(&self.rbac, ctx, text(binding, "/metadata/name"), &rules)
    }
}

#[async_trait]
impl Strategy for RoleBindings {
    fn allow_create_on_update(&self) -> bool {
        true
    }

    async fn begin_create(&self, ctx: &Ctx, binding: &mut Value) -> Result<Option<Finish>, Status> {
        ctx.settled(|| self.guard(ctx, binding, None)).await.map(|()| None)
    }

    async fn begin_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) -> Result<Option<Finish>, Status> {
        ctx.settled(|| self.guard(ctx, new, Some(old))).await.map(|()| None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use crate::util::{CLUSTER_ROLE_BINDINGS, ROLES};
    use apiserver::UserInfo;
    use serde_json::json;

    #[test]
    fn no_escalation() {
        let objects = Objects::new();
        let pods = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        let roles = json!([{"verbs": ["*"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"]}, pods[0]]);
        objects.put(&CLUSTER_ROLES, json!({"metadata": {"name": "r"}, "rules": roles}));
        objects.put(&CLUSTER_ROLE_BINDINGS, json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "User", "name": "bob"}]}));
        let rbac = Arc::new(Rbac::new(objects.clone()));
        let mut ctx = objects.ctx(&ROLES, "a", "x", UserInfo::new("bob", &["system:authenticated"]));
        // "*" on roles would contain `escalate`: take bob's authorizer to be one that refuses it.
        struct Nobody;
        impl apiserver::Authorizer for Nobody {
            fn authorize(&self, _: &AuthzAttributes) -> (Decision, String) {
                (Decision::NoOpinion, String::new())
            }
            fn rules_for(&self, _: &UserInfo, _: &str) -> apiserver::Rules {
                apiserver::Rules::default()
            }
        }
        ctx.backend.authorizer = Arc::new(Nobody);
        let strategy = Roles { rbac: rbac.clone() };
        let create = |rules: Value| {
            let mut role = json!({"metadata": {"name": "x"}, "rules": rules});
            block_on(strategy.begin_create(&ctx, &mut role)).map(drop).map_err(|e| e.message)
        };
        create(pods).unwrap();
        assert_eq!(
            create(json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}])).unwrap_err(),
            "roles.rbac.authorization.k8s.io \"x\" is forbidden: user \"bob\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\"]}"
        );
        let bindings = RoleBindings { rbac };
        let mut binding = json!({"metadata": {"name": "y"}, "roleRef": {"kind": "ClusterRole", "name": "lost"}});
        assert_eq!(block_on(bindings.begin_create(&ctx, &mut binding)).err().unwrap().code, 404);
    }
}
