//! Somebody else decides: questions are posted as SubjectAccessReviews to a server that a kubeconfig names. Its answers are
//! remembered, so that most requests are decided from memory.

use std::sync::Arc;

use api::field::{aggregate, go_quote as quote};
use api::selector::{Fields, Labels, Operator};
use apiserver::authz::{Answer, Rules};
use apiserver::remote::{Failure, Remote};
use apiserver::{Authorizer, AuthzAttributes, Decision, UserInfo};
use cel::Program;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::config::WebhookSettings;
use crate::authn::token_webhook::open;
use crate::expiring::Expiring;
use crate::metrics::Counters;
use crate::util::{flag, text};

/// How many answers are remembered.
const MOST: usize = 8192;
/// Questions that are longer are not.
const LONGEST: usize = 10_000;

/// An authorizer that asks a server.
pub(super) struct Webhook {
    settings: WebhookSettings,
    remote: Remote,
    /// What has to hold for it to be asked.
    conditions: Vec<Program>,
    answers: Mutex<Expiring<String, Said>>,
    counters: Arc<Counters>,
}

/// What the server said.
#[derive(Clone)]
struct Said {
    allowed: bool,
    denied: bool,
    reason: String,
}

impl Said {
    fn decision(self) -> (Decision, String) {
        match self {
            Said { allowed: true, denied: true, .. } => (Decision::Failed { deny: true }, "webhook subject access review returned both allow and deny response".into()),
            Said { denied: true, reason, .. } => (Decision::Deny, reason),
            Said { allowed: true, reason, .. } => (Decision::Allow, reason),
            Said { reason, .. } => (Decision::NoOpinion, reason),
        }
    }
}

/// The question as a SubjectAccessReview's spec, in which every text is there.
fn spec(attributes: &AuthzAttributes) -> Value {
    let user = &attributes.user;
    let mut spec = json!({"user": user.name, "groups": user.groups, "uid": user.uid, "extra": user.extra});
    if !attributes.resource_request {
        spec["nonResourceAttributes"] = json!({"path": attributes.path, "verb": attributes.verb});
        return spec;
    }
    let mut resource = json!({
        "namespace": attributes.namespace, "verb": attributes.verb, "group": attributes.api_group, "version": attributes.api_version,
        "resource": attributes.resource, "subresource": attributes.subresource, "name": attributes.name,
    });
    let requirement = |key: &str, operator: &str, values: &[String]| json!({"key": key, "operator": operator, "values": values});
    // What is not understood only makes the question wider.
    let fields = Fields::parse(&attributes.field_selector).map(|f| f.terms().iter().map(|t| requirement(&t.path, if t.negated { "NotIn" } else { "In" }, std::slice::from_ref(&t.value))).collect::<Vec<_>>());
    let of_label = |r: &api::selector::Requirement| {
        let operator = match r.operator {
            Operator::Equals | Operator::DoubleEquals | Operator::In => "In",
            Operator::NotEquals | Operator::NotIn => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
            Operator::GreaterThan | Operator::LessThan => return None,
        };
        Some(requirement(&r.key, operator, &r.values))
    };
    let labels = Labels::parse(&attributes.label_selector).map(|l| l.requirements().iter().filter_map(of_label).collect::<Vec<_>>());
    for (key, requirements) in [("fieldSelector", fields.unwrap_or_default()), ("labelSelector", labels.unwrap_or_default())] {
        if !requirements.is_empty() {
            resource[key] = json!({"requirements": requirements});
        }
    }
    spec["resourceAttributes"] = resource;
    spec
}

/// Without what is empty.
fn compact(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().map(|(k, v)| (k.clone(), compact(v))).filter(|(_, v)| match v {
                Value::String(s) => !s.is_empty(),
                Value::Array(a) => !a.is_empty(),
                Value::Object(o) => !o.is_empty(),
                _ => true,
            });
            Value::Object(kept.collect())
        }
        Value::Array(items) => items.iter().map(compact).collect(),
        other => other.clone(),
    }
}

/// What came of a call, as upstream counts it.
fn result_of<T>(answer: &Result<T, Failure>) -> &'static str {
    match answer {
        Ok(_) => "success",
        Err(failure) if failure.timeout => "timeout",
        Err(_) => "error",
    }
}

impl Webhook {
    /// Reads the kubeconfig, and compiles the conditions.
    pub fn new(settings: WebhookSettings, counters: Arc<Counters>) -> Result<Webhook, String> {
        if !matches!(settings.version.as_str(), "v1" | "v1beta1") {
            return Err(format!("unsupported webhook authorizer version {}, supported versions are \"v1\", \"v1beta1\"", quote(&settings.version)));
        }
        let remote = open(&settings.config_file)?;
        let conditions = settings.conditions.iter().map(|c| cel::authorization::compile(c)).collect::<Result<_, _>>()?;
        Ok(Webhook { settings, remote, conditions, answers: Mutex::new(Expiring::new(MOST)), counters })
    }

    fn failed(&self, why: String) -> (Decision, String) {
        (Decision::Failed { deny: self.settings.denies_on_failure }, why)
    }

    /// Whether it is to be asked. A condition that does not hold decides, whatever else fails.
    fn matches(&self, spec: &Value) -> Result<bool, String> {
        if self.conditions.is_empty() {
            return Ok(true);
        }
        let activation = cel::authorization::activation(spec);
        let mut errors = Vec::new();
        for (condition, expression) in self.conditions.iter().zip(&self.settings.conditions) {
            match condition.eval(&activation).result {
                Ok(value) if value.as_bool() == Some(false) => return Ok(false),
                Ok(_) => {}
                Err(why) => errors.push(format!("cel evaluation error: expression '{expression}' resulted in error: {why}")),
            }
        }
        if errors.is_empty() { Ok(true) } else { Err(aggregate(errors)) }
    }

    async fn post(&self, attributes: &AuthzAttributes) -> (Decision, String) {
        let spec = compact(&spec(attributes));
        let key = spec.to_string();
        let api_version = format!("authorization.k8s.io/{}", self.settings.version);
        let mut sent = spec;
        if self.settings.version == "v1beta1"
            && let Some(map) = sent.as_object_mut()
            && let Some(groups) = map.remove("groups")
        {
            // the field's name of those days
            map.insert("group".into(), groups);
        }
        let review = json!({"kind": "SubjectAccessReview", "apiVersion": api_version, "metadata": {"creationTimestamp": null}, "spec": sent, "status": {"allowed": false}});
        let name = &self.settings.name;
        let answer = self.remote.post_patiently(review.to_string().into(), self.settings.timeout, |answer, took| self.counters.webhook(name, result_of(answer), took));
        let answer = answer.await;
        let result = result_of(&answer);
        let said = answer.map_err(|failure| failure.why).and_then(|bytes| {
            let review: Value = serde_json::from_slice(&bytes).map_err(|e| format!("the answer of the authorization webhook is no JSON: {e}"))?;
            if text(&review, "/kind") != "SubjectAccessReview" || text(&review, "/apiVersion") != api_version {
                let got = format!("{}, Kind={}", text(&review, "/apiVersion"), text(&review, "/kind"));
                return Err(format!("the answer of the authorization webhook is no SubjectAccessReview of {api_version}, but {got}"));
            }
            let status = &review["status"];
            Ok(Said { allowed: flag(status, "/allowed"), denied: flag(status, "/denied"), reason: text(status, "/reason").to_owned() })
        });
        match said {
            Err(why) => {
                tracing::error!(webhook = name, why, "failed to make webhook authorizer request");
                if !self.settings.denies_on_failure {
                    self.counters.failed_open(name, if result == "success" { "error" } else { result });
                }
                self.failed(why)
            }
            Ok(said) => {
                let a = attributes;
                let asked = [&a.namespace, &a.verb, &a.api_group, &a.api_version, &a.resource, &a.subresource, &a.name, &a.path];
                if asked.iter().map(|t| t.len()).sum::<usize>() < LONGEST {
                    let keep = if said.allowed { self.settings.authorized_ttl } else { self.settings.unauthorized_ttl };
                    let keep = SignedDuration::try_from(keep).unwrap_or(SignedDuration::MAX);
                    self.answers.lock().insert(key, said.clone(), Timestamp::now(), keep);
                }
                said.decision()
            }
        }
    }
}

impl Authorizer for Webhook {
    fn authorize(&self, attributes: &AuthzAttributes) -> (Decision, String) {
        let spec = spec(attributes);
        match self.matches(&spec) {
            Err(why) => self.failed(why),
            Ok(false) => (Decision::NoOpinion, String::new()),
            Ok(true) => match self.answers.lock().get(&compact(&spec).to_string(), Timestamp::now()) {
                Some(said) => said.clone().decision(),
                None => (Decision::Ask, String::new()),
            },
        }
    }

    fn ask<'a>(&'a self, attributes: &'a AuthzAttributes) -> Answer<'a> {
        Box::pin(self.post(attributes))
    }

    fn rules_for(&self, _: &UserInfo, _: &str) -> Rules {
        Rules { incomplete: true, evaluation_error: "webhook authorizer does not support user rule resolution".into(), ..Rules::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_reviews() {
        let attributes = AuthzAttributes {
            user: UserInfo { uid: "7".into(), ..UserInfo::new("jane", &["dev"]) },
            verb: "list".into(),
            resource_request: true,
            namespace: "a".into(),
            api_version: "v1".into(),
            resource: "pods".into(),
            field_selector: "spec.nodeName=n,status.phase!=Failed".into(),
            label_selector: "app in (x,y),!old,size>3".into(),
            ..AuthzAttributes::default()
        };
        assert_eq!(
            compact(&spec(&attributes)),
            json!({"user": "jane", "uid": "7", "groups": ["dev"], "resourceAttributes": {"verb": "list", "namespace": "a", "version": "v1", "resource": "pods",
                "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n"]}, {"key": "status.phase", "operator": "NotIn", "values": ["Failed"]}]},
                "labelSelector": {"requirements": [{"key": "app", "operator": "In", "values": ["x", "y"]}, {"key": "old", "operator": "DoesNotExist"}]}}})
        );
        let path = AuthzAttributes { verb: "get".into(), path: "/x".into(), ..AuthzAttributes::default() };
        assert_eq!(compact(&spec(&path)), json!({"nonResourceAttributes": {"verb": "get", "path": "/x"}}));
        assert_eq!(spec(&path)["groups"], json!([]), "conditions see what is empty");
    }

    #[test]
    fn answers_are_decisions() {
        let said = |allowed, denied| Said { allowed, denied, reason: "r".into() }.decision();
        assert_eq!(said(true, false), (Decision::Allow, "r".into()));
        assert_eq!(said(false, true), (Decision::Deny, "r".into()));
        assert_eq!(said(false, false), (Decision::NoOpinion, "r".into()));
        assert_eq!(said(true, true).0, Decision::Failed { deny: true });
    }
}
