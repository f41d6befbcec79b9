//! Authorization framework: may they?
use std::pin::Pin;
use std::sync::Arc;

use serde_json::Value;

pub use crate::ctx::UserInfo;

/// What is asked of an authorizer.
#[derive(Debug, Clone, Default, PartialEq)]
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
    /// Not known here and now: [`Authorizer::ask`] finds out.
    Ask,
    /// Somebody could not be asked, and nobody allows it; the text says why. Whether others are asked after that is for
    /// `deny`.
    Failed { deny: bool },
}

/// An answer that takes time.
pub type Answer<'a> = Pin<Box<dyn Future<Output = (Decision, String)> + Send + 'a>>;

/// What a user may do in a namespace, for SelfSubjectRulesReview: the objects of its `resourceRules` and `nonResourceRules`.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    pub resource_rules: Vec<Value>,
    pub non_resource_rules: Vec<Value>,
    pub incomplete: bool,
    pub evaluation_error: String,
}

/// Decides from memory: it is asked on every request. Only what has to ask somebody else says [`Decision::Ask`].
pub trait Authorizer: Send + Sync {
    fn authorize(&self, attributes: &AuthzAttributes) -> (Decision, String);

    /// Finds out what [`Authorizer::authorize`] does not know; its answer is never [`Decision::Ask`].
    fn ask<'a>(&'a self, attributes: &'a AuthzAttributes) -> Answer<'a> {
        Box::pin(std::future::ready(self.authorize(attributes)))
    }

    fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules;
}

/// The answer, from memory where that is enough.
pub async fn decide(authorizer: &dyn Authorizer, attributes: &AuthzAttributes) -> (Decision, String) {
    match authorizer.authorize(attributes) {
        (Decision::Ask, _) => authorizer.ask(attributes).await,
        decided => decided,
    }
}

/// Asks each in turn until one has an opinion.
pub struct Union(pub Vec<Arc<dyn Authorizer>>);

/// What those have said who have no opinion.
#[derive(Default)]
struct Said {
    reasons: Vec<String>,
    errors: Vec<String>,
}

impl Said {
    /// Notes an answer; gives it back when nobody else is to be asked.
    fn note(&mut self, (decision, reason): (Decision, String)) -> Option<(Decision, String)> {
        match decision {
            Decision::NoOpinion if reason.is_empty() => {}
            Decision::NoOpinion => self.reasons.push(reason),
            Decision::Failed { deny: false } => self.errors.push(reason),
            _ => return Some((decision, reason)),
        }
        None
    }

    fn end(self) -> (Decision, String) {
        if self.errors.is_empty() {
            (Decision::NoOpinion, self.reasons.join("\n"))
        } else {
            (Decision::Failed { deny: false }, api::field::aggregate(self.errors))
        }
    }
}

impl Authorizer for Union {
    fn authorize(&self, attributes: &AuthzAttributes) -> (Decision, String) {
        let mut said = Said::default();
        for authorizer in &self.0 {
            if let Some(decided) = said.note(authorizer.authorize(attributes)) {
                return decided;
            }
        }
        said.end()
    }

    fn ask<'a>(&'a self, attributes: &'a AuthzAttributes) -> Answer<'a> {
        Box::pin(async move {
            let mut said = Said::default();
            for authorizer in &self.0 {
                if let Some(decided) = said.note(decide(&**authorizer, attributes).await) {
                    return decided;
                }
            }
            said.end()
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Knows nothing by itself, and learns this.
    struct Asks(Decision);

    impl Authorizer for Asks {
        fn authorize(&self, _: &AuthzAttributes) -> (Decision, String) {
            (Decision::Ask, String::new())
        }

        fn ask<'a>(&'a self, _: &'a AuthzAttributes) -> Answer<'a> {
            Box::pin(std::future::ready((self.0, "asked".to_string())))
        }

        fn rules_for(&self, _: &UserInfo, _: &str) -> Rules {
            Rules::default()
        }
    }

    #[tokio::test]
    async fn who_is_first_decides_and_failures_are_told() {
        let union = |all: Vec<Arc<dyn Authorizer>>| Union(all);
        let of = AuthzAttributes::default();
        let local = union(vec![Arc::new(Masters), Arc::new(AlwaysAllow), Arc::new(Asks(Decision::Deny))]);
        assert_eq!(local.authorize(&of).0, Decision::Allow, "nobody is asked for what is known");
        let first = union(vec![Arc::new(Asks(Decision::Deny)), Arc::new(AlwaysAllow)]);
        assert_eq!(first.authorize(&of).0, Decision::Ask);
        assert_eq!(decide(&first, &of).await, (Decision::Deny, "asked".into()));
        let failed = |deny| Arc::new(Asks(Decision::Failed { deny }));
        assert_eq!(decide(&union(vec![failed(false), Arc::new(AlwaysAllow)]), &of).await.0, Decision::Allow);
        assert_eq!(decide(&union(vec![failed(true), Arc::new(AlwaysAllow)]), &of).await.0, Decision::Failed { deny: true });
        assert_eq!(decide(&union(vec![failed(false), Arc::new(AlwaysDeny)]), &of).await, (Decision::Failed { deny: false }, "asked".into()));
        let silent = union(vec![Arc::new(Asks(Decision::NoOpinion)), Arc::new(AlwaysDeny)]);
        assert_eq!(decide(&silent, &of).await, (Decision::NoOpinion, "asked\nEverything is forbidden.".into()));
    }
}
