//! Admission policies and their bindings: expressions must compile when they are written, and who writes them must be
//! able to read the parameters.

use api::field::{FieldError, Path};
use apiserver::{AuthzAttributes, Ctx, Decision, Strategy, UserInfo};
use serde_json::Value;

use crate::admission::policy::{of_binding, of_mutating, of_validating};
use crate::admission::served;
use crate::util::{ADMISSION_POLICIES, MUTATING_POLICIES, text};

/// Policies of one of the two kinds.
pub(crate) struct Policies {
    pub mutating: bool,
}

impl Policies {
    fn mistakes(&self, ctx: &Ctx, policy: &Value, before: Option<&Value>) -> Vec<FieldError> {
        let mut errors = if self.mutating { of_mutating(policy, before) } else { of_validating(policy, before) };
        let kind = policy.pointer("/spec/paramKind");
        if errors.is_empty() && before.is_none_or(|b| b.pointer("/spec/paramKind") != kind) {
            errors.extend(kind.and_then(|kind| unreadable_kind(ctx, kind)));
        }
        errors
    }
}

impl Strategy for Policies {
    fn validate_create(&self, ctx: &Ctx, policy: &Value) -> Vec<FieldError> {
        let mut errors = api::validate::create(ctx.resource, policy);
        errors.extend(self.mistakes(ctx, policy, None));
        errors
    }

    fn validate_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = api::validate::update_through(ctx.resource, &ctx.subresource, new, old);
        // What was let in once stays.
        if new.get("spec") != old.get("spec") {
            errors.extend(self.mistakes(ctx, new, Some(old)));
        }
        errors
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// Bindings of policies of one of the two kinds.
pub(crate) struct Bindings {
    pub mutating: bool,
}

impl Bindings {
    fn mistakes(&self, ctx: &Ctx, binding: &Value, before: Option<&Value>) -> Vec<FieldError> {
        let mut errors = of_binding(binding, self.mutating);
        let same = |b: &Value| ["/spec/paramRef", "/spec/policyName"].iter().all(|p| b.pointer(p) == binding.pointer(p));
        if errors.is_empty() && !before.is_some_and(same) {
            errors.extend(binding.pointer("/spec/paramRef").and_then(|reference| self.unreadable(ctx, binding, reference)));
        }
        errors
    }

    /// Why the user may not name these parameters.
    fn unreadable(&self, ctx: &Ctx, binding: &Value, reference: &Value) -> Option<FieldError> {
        let policies = if self.mutating { *MUTATING_POLICIES } else { *ADMISSION_POLICIES };
        let name = text(binding, "/spec/policyName");
        let policy = ctx.backend.reader.get(policies, "", name);
        let kind = policy.as_ref().and_then(|p| p.pointer("/spec/paramKind"));
        let (verb, object) = match text(reference, "/name") {
            "" => ("list", ""),
            object => ("get", object),
        };
        let asked = Asked::of(ctx, kind, verb, text(reference, "/namespace"), object);
        if asked.allowed(ctx) {
            return None;
        }
        let user = shown(&ctx.user);
        let why = if policy.is_none() {
            let lacks = format!(r#"does not have "{verb}" permission for all groups, versions and resources"#);
            format!("unable to get policy {name} to determine minimum required permissions and user {user} {lacks}")
        } else if let Some(kind) = kind.filter(|_| asked.resource == "*") {
            let lacks = format!(r#"does not have "{verb}" permission for all groups, versions and resources"#);
            let kind = format!("&ParamKind{{APIVersion:{},Kind:{},}}", text(kind, "/apiVersion"), text(kind, "/kind"));
            format!("unable to resolve paramKind {kind} to determine minimum required permissions and user {user} {lacks}")
        } else {
            format!(r#"user {user} does not have "{verb}" permission on the object referenced by paramRef"#)
        };
        Some(FieldError::forbidden(&Path::new("spec").child("paramRef"), why))
    }
}

impl Strategy for Bindings {
    fn validate_create(&self, ctx: &Ctx, binding: &Value) -> Vec<FieldError> {
        let mut errors = api::validate::create(ctx.resource, binding);
        errors.extend(self.mistakes(ctx, binding, None));
        errors
    }

    fn validate_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = api::validate::update_through(ctx.resource, &ctx.subresource, new, old);
        errors.extend(self.mistakes(ctx, new, Some(old)));
        errors
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// Why the user may not write a policy with these parameters: the policy could be used to find out what is in them.
fn unreadable_kind(ctx: &Ctx, kind: &Value) -> Option<FieldError> {
    if Asked::of(ctx, Some(kind), "get", "*", "*").allowed(ctx) {
        return None;
    }
    let why = format!(
        r#"user {} must have "get" permission on all objects of the referenced paramKind (kind={}, apiVersion={})"#,
        shown(&ctx.user),
        text(kind, "/kind"),
        text(kind, "/apiVersion")
    );
    Some(FieldError::forbidden(&Path::new("spec").child("paramKind"), why))
}

/// A right to parameters. What is not known of them is taken to be anything.
struct Asked<'a> {
    verb: &'a str,
    group: String,
    version: String,
    resource: &'a str,
    namespace: &'a str,
    name: &'a str,
}

impl<'a> Asked<'a> {
    fn of(ctx: &Ctx, kind: Option<&Value>, verb: &'a str, namespace: &'a str, name: &'a str) -> Self {
        let (group, version) = kind.map_or(("*", "*"), |k| api::resources::split_api_version(text(k, "/apiVersion")));
        let resource = kind.and_then(|k| served(ctx, text(k, "/apiVersion"), text(k, "/kind"))).map_or("*", |r| r.plural);
        Asked { verb, group: group.to_owned(), version: version.to_owned(), resource, namespace, name }
    }

    fn allowed(&self, ctx: &Ctx) -> bool {
        if ctx.user.in_group("system:masters") {
            return true;
        }
        let question = AuthzAttributes {
            user: ctx.user.clone(),
            verb: self.verb.to_owned(),
            resource_request: true,
            namespace: self.namespace.to_owned(),
            api_group: self.group.clone(),
            api_version: self.version.clone(),
            resource: self.resource.to_owned(),
            name: self.name.to_owned(),
            ..AuthzAttributes::default()
        };
        ctx.authorize(&question).0 == Decision::Allow
    }
}

/// A user as Go prints one.
fn shown(user: &UserInfo) -> String {
    let extra: Vec<String> = user.extra.iter().map(|(k, v)| format!("{k}:[{}]", v.join(" "))).collect();
    format!("&{{{} {} [{}] map[{}]}}", user.name, user.uid, user.groups.join(" "), extra.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Objects;
    use crate::util::MUTATING_POLICY_BINDINGS;
    use apiserver::Authorizer;
    use apiserver::authz::Rules;
    use serde_json::json;
    use std::sync::Arc;

    /// Lets everybody read what is named `mine`.
    struct Mine;

    impl Authorizer for Mine {
        fn authorize(&self, asked: &AuthzAttributes) -> (Decision, String) {
            let known = asked.name == "mine" && asked.resource == "configmaps" && asked.api_group.is_empty();
            (if known { Decision::Allow } else { Decision::NoOpinion }, String::new())
        }

        fn rules_for(&self, _: &UserInfo, _: &str) -> Rules {
            Rules::default()
        }
    }

    #[test]
    fn parameters_must_be_readable() {
        let objects = Objects::new();
        let kind = json!({"apiVersion": "v1", "kind": "ConfigMap"});
        objects.put(&MUTATING_POLICIES, json!({"metadata": {"name": "p"}, "spec": {"paramKind": kind}}));
        let told = |user: UserInfo, policy: &str, reference: Value| {
            let mut ctx = objects.ctx(&MUTATING_POLICY_BINDINGS, "", "b", user);
            ctx.backend.authorizer = Arc::new(Mine);
            let mut reference = reference;
            reference["parameterNotFoundAction"] = json!("Deny");
            let binding = json!({"spec": {"policyName": policy, "paramRef": reference}});
            Bindings { mutating: true }.mistakes(&ctx, &binding, None).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let bob = || UserInfo::new("bob", &["g", "h"]);
        assert_eq!(told(bob(), "p", json!({"name": "mine"})), [""; 0]);
        assert_eq!(
            told(bob(), "p", json!({"name": "theirs"})),
            ["spec.paramRef: Forbidden: user &{bob  [g h] map[]} does not have \"get\" permission on the object referenced by paramRef"]
        );
        assert!(told(bob(), "p", json!({"selector": {}}))[0].contains("\"list\" permission"));
        assert!(told(bob(), "none", json!({"name": "mine"}))[0].contains("unable to get policy none to determine minimum required permissions"));
        assert_eq!(told(UserInfo::new("root", &["system:masters"]), "none", json!({"name": "x"})), [""; 0]);
        let mut ctx = objects.ctx(&MUTATING_POLICIES, "", "p", bob());
        ctx.backend.authorizer = Arc::new(Mine);
        assert_eq!(
            unreadable_kind(&ctx, &kind).unwrap().to_string(),
            "spec.paramKind: Forbidden: user &{bob  [g h] map[]} must have \"get\" permission on all objects of the referenced paramKind (kind=ConfigMap, apiVersion=v1)"
        );
    }
}
