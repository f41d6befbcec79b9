//! Authorization framework: may they?
use std::sync::Arc;

use serde_json::Value;

pub use crate::ctx::UserInfo;

/// What is asked of an authorizer.
#[derive(Debug, Clone, Default)]
pub struct AuthzAttributes {
    pub user: UserInfo,
    /// get, list, watch, create, update, patch, delete, deletecollection, impersonate, …; for non-resource requests the lower-case method.
    pub verb: String,
    /// False for non-resource requests, where only `path` counts.
    pub resource_request: bool,
    pub namespace: String,
    pub api_group: String,
    pub api_version: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    pub path: String,
    /// Raw selectors of list, watch and deletecollection.
    pub field_selector: String,
    pub label_selector: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Allow,
    Deny,
    /// Ask the next one; nobody's opinion means forbidden.
    NoOpinion,
}

/// What a user may do in a namespace, for SelfSubjectRulesReview: the objects of its `resourceRules` and `nonResourceRules`.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    pub resource_rules: Vec<Value>,
    pub non_resource_rules: Vec<Value>,
    pub incomplete: bool,
    pub evaluation_error: String,
}

/// Decides from memory only: it is asked on every request.
pub trait Authorizer: Send + Sync {
    fn authorize(&self, attributes: &AuthzAttributes) -> (Decision, String);
    fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules;
}

/// Asks each in turn until one has an opinion.
pub struct Union(pub Vec<Arc<dyn Authorizer>>);

impl Authorizer for Union {
    fn authorize(&self, attributes: &AuthzAttributes) -> (Decision, String) {
        let mut reasons = Vec::new();
        for authorizer in &self.0 {
            let (decision, reason) = authorizer.authorize(attributes);
            if decision != Decision::NoOpinion {
                return (decision, reason);
            }
            if !reason.is_empty() {
                reasons.push(reason);
            }
        }
        (Decision::NoOpinion, reasons.join("\n"))
    }

    fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules {
        let mut all = Rules::default();
        for authorizer in &self.0 {
            let rules = authorizer.rules_for(user, namespace);
            all.resource_rules.extend(rules.resource_rules);
            all.non_resource_rules.extend(rules.non_resource_rules);
            all.incomplete |= rules.incomplete;
            if !rules.evaluation_error.is_empty() {
                if !all.evaluation_error.is_empty() {
                    all.evaluation_error.push_str(", ");
                }
                all.evaluation_error.push_str(&rules.evaluation_error);
            }
        }
        all
    }
}

/// Allows everything: for tests, and upstream's `AlwaysAllow`.
pub struct AlwaysAllow;

impl Authorizer for AlwaysAllow {
    fn authorize(&self, _: &AuthzAttributes) -> (Decision, String) {
        (Decision::Allow, String::new())
    }

    fn rules_for(&self, _: &UserInfo, _: &str) -> Rules {
        Rules {
            resource_rules: vec![serde_json::json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})],
            non_resource_rules: vec![serde_json::json!({"verbs": ["*"], "nonResourceURLs": ["*"]})],
            ..Rules::default()
        }
    }
}

/// Allows nothing: upstream's `AlwaysDeny`.
pub struct AlwaysDeny;

impl Authorizer for AlwaysDeny {
    fn authorize(&self, _: &AuthzAttributes) -> (Decision, String) {
        (Decision::NoOpinion, "Everything is forbidden.".into())
    }

    fn rules_for(&self, _: &UserInfo, _: &str) -> Rules {
        Rules::default()
    }
}

/// Always allows members of `system:masters`.
pub struct Masters;

impl Authorizer for Masters {
    fn authorize(&self, attributes: &AuthzAttributes) -> (Decision, String) {
        if attributes.user.in_group("system:masters") {
            (Decision::Allow, String::new())
        } else {
            (Decision::NoOpinion, String::new())
        }
    }

    /// None: the role that upstream's bootstrap policy binds to the group says the same, and would be listed twice.
    fn rules_for(&self, _: &UserInfo, _: &str) -> Rules {
        Rules::default()
    }
}
