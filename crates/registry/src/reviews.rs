//! Questions about access that are asked by creating an object: who am I, may I, whose token is
//! this.

use std::collections::BTreeMap;

use api::field::{FieldError, Path};
use api::status;
use apiserver::authz::decide;
use apiserver::types::Status;
use apiserver::{AuthnRequest, AuthzAttributes, Creater, Ctx, Decision, UserInfo};
use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::util::{map, text, texts};

fn user_value(user: &UserInfo) -> Value {
    let mut out = json!({"username": user.name});
    if !user.uid.is_empty() {
        out["uid"] = user.uid.clone().into();
    }
    if !user.groups.is_empty() {
        out["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        out["extra"] = json!(user.extra);
    }
    out
}

/// The three kinds of access review.
pub(crate) enum AccessReview {
    Own,
    Anyone,
    /// Of anyone, in one namespace.
    Local,
}

impl AccessReview {
    fn kind(&self) -> &'static str {
        match self {
            Self::Own => "SelfSubjectAccessReview",
            Self::Anyone => "SubjectAccessReview",
            Self::Local => "LocalSubjectAccessReview",
        }
    }
}

fn invalid(kind: &str, name: &str, error: FieldError) -> Status {
    status::invalid("authorization.k8s.io", kind, name, &[error])
}

#[async_trait]
impl Creater for AccessReview {
    async fn create(&self, ctx: &Ctx, mut review: Value) -> Result<Value, Status> {
        let spec = review.get("spec").cloned().unwrap_or_default();
        let refuse = |error: FieldError| Err(invalid(self.kind(), "", error));
        let (resource, path) = (map(&spec, "/resourceAttributes"), map(&spec, "/nonResourceAttributes"));
        if resource.is_some() == path.is_some() {
            let what = if resource.is_some() {
                FieldError::invalid(&Path::new("spec.nonResourceAttributes"), spec["nonResourceAttributes"].clone(), "cannot be specified in combination with resourceAttributes")
            } else {
                FieldError::invalid(&Path::new("spec.resourceAttributes"), Value::Null, "exactly one of nonResourceAttributes or resourceAttributes must be specified")
            };
            return refuse(what);
        }
        let user = match self {
            Self::Own => ctx.user.clone(),
            _ => {
                if text(&spec, "/user").is_empty() && texts(&spec, "/groups").next().is_none() {
                    return refuse(FieldError::invalid(&Path::new("spec.user"), "", "at least one of user or group must be specified"));
                }
                UserInfo {
                    name: text(&spec, "/user").to_owned(),
                    uid: text(&spec, "/uid").to_owned(),
                    groups: texts(&spec, "/groups").map(str::to_owned).collect(),
                    extra: map(&spec, "/extra")
                        .into_iter()
                        .flatten()
                        .map(|(k, v)| (k.to_lowercase(), texts(v, "").map(str::to_owned).collect()))
                        .collect::<BTreeMap<_, _>>(),
                }
            }
        };
        let word = |key: &str| spec.pointer(&format!("/resourceAttributes/{key}")).and_then(Value::as_str).unwrap_or("").to_owned();
        let question = if resource.is_some() {
            if matches!(self, Self::Local) && word("namespace") != ctx.namespace {
                let message = format!("spec.resourceAttributes.namespace must match namespace: {}", ctx.namespace);
                return Err(status::bad_request(message));
            }
            AuthzAttributes {
                user,
                verb: word("verb"),
                resource_request: true,
                namespace: word("namespace"),
                api_group: word("group"),
                api_version: word("version"),
                resource: word("resource"),
                subresource: word("subresource"),
                name: word("name"),
                field_selector: text(&spec, "/resourceAttributes/fieldSelector/rawSelector").to_owned(),
                label_selector: text(&spec, "/resourceAttributes/labelSelector/rawSelector").to_owned(),
                path: String::new(),
            }
        } else {
            AuthzAttributes {
                user,
                verb: text(&spec, "/nonResourceAttributes/verb").to_owned(),
                path: text(&spec, "/nonResourceAttributes/path").to_owned(),
                ..AuthzAttributes::default()
            }
        };
        let (decision, reason) = decide(&*ctx.backend.authorizer, &question).await;
        let mut answer = json!({"allowed": decision == Decision::Allow});
        if matches!(decision, Decision::Deny | Decision::Failed { deny: true }) {
            answer["denied"] = true.into();
        }
        if !reason.is_empty() {
            let said = if matches!(decision, Decision::Failed { .. }) { "evaluationError" } else { "reason" };
            answer[said] = reason.into();
        }
        review["status"] = answer;
        Ok(review)
    }
}

/// `kubectl auth can-i --list`.
pub(crate) struct RulesReview;

#[async_trait]
impl Creater for RulesReview {
    async fn create(&self, ctx: &Ctx, mut review: Value) -> Result<Value, Status> {
        let namespace = text(&review, "/spec/namespace").to_owned();
        if namespace.is_empty() {
            return Err(status::bad_request("no namespace on request"));
        }
        let rules = ctx.backend.authorizer.rules_for(&ctx.user, &namespace);
        let mut answer = json!({
            "resourceRules": rules.resource_rules,
            "nonResourceRules": rules.non_resource_rules,
            "incomplete": rules.incomplete,
        });
        if !rules.evaluation_error.is_empty() {
            answer["evaluationError"] = rules.evaluation_error.into();
        }
        review["status"] = answer;
        Ok(review)
    }
}

/// `kubectl auth whoami`.
pub(crate) struct SelfReview;

#[async_trait]
impl Creater for SelfReview {
    async fn create(&self, ctx: &Ctx, mut review: Value) -> Result<Value, Status> {
        review["metadata"]["creationTimestamp"] = ctx.now_string().into();
        review["status"] = json!({"userInfo": user_value(&ctx.user)});
        Ok(review)
    }
}

/// Whose token is this?
pub(crate) struct TokenReview {
    /// The API server's own audiences.
    pub audiences: Vec<String>,
}

#[async_trait]
impl Creater for TokenReview {
    async fn create(&self, ctx: &Ctx, mut review: Value) -> Result<Value, Status> {
        let token = text(&review, "/spec/token").to_owned();
        if token.is_empty() {
            return Err(status::bad_request("token is required for TokenReview in authentication"));
        }
        let mut wanted: Vec<String> = texts(&review, "/spec/audiences").map(str::to_owned).collect();
        if wanted.is_empty() {
            wanted = self.audiences.clone();
        }
        let headers = Default::default();
        let granted = Mutex::new(None);
        let request = AuthnRequest { headers: &headers, path: "/", peer: None, bearer: Some(&token), audiences: &wanted, granted: Some(&granted), now: ctx.now };
        let answer = match ctx.backend.authenticator.authenticate(&request).await {
            Ok(Some(user)) => {
                // Tokens without audiences are for the API server.
                let has = granted.lock().take().unwrap_or_else(|| self.audiences.clone());
                let common: Vec<&String> = wanted.iter().filter(|a| has.contains(a)).collect();
                if common.is_empty() { json!({}) } else { json!({"authenticated": true, "user": user_value(&user), "audiences": common}) }
            }
            Ok(None) => json!({}),
            Err(why) => json!({"error": why}),
        };
        review["status"] = answer;
        Ok(review)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};

    #[test]
    fn access() {
        let resource = api::resources::find("authorization.k8s.io", "v1", "selfsubjectaccessreviews").unwrap();
        let ctx = Objects::new().ctx(resource, "", "", UserInfo::new("bob", &["g"]));
        let ask = |spec: Value| block_on(AccessReview::Own.create(&ctx, json!({"spec": spec})));
        let answer = ask(json!({"resourceAttributes": {"verb": "get", "resource": "pods"}})).unwrap();
        assert_eq!(answer["status"], json!({"allowed": true}));
        assert_eq!(ask(json!({})).unwrap_err().code, 422);
        let me = block_on(SelfReview.create(&ctx, json!({}))).unwrap();
        assert_eq!(me["status"]["userInfo"], json!({"username": "bob", "groups": ["g"]}));
    }
}
