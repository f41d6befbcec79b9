//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: hooks of the cluster's own are asked about writes.
//!
//! Configurations are read from the cache and compiled when they changed. Mutating hooks are asked one after the other
//! and their patches applied; when one changed the object, all plug-ins look at it once more, and hooks that want to be
//! asked again are. Validating hooks are asked all at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::status;
use apiserver::audit::{Layer, Level};
use apiserver::histogram::Histogram;
use apiserver::types::Status;
use apiserver::webhook::{Client, Services};
use apiserver::{Admission, Attributes, Ctx, Operation};
use async_trait::async_trait;
use base64::Engine;
use cel::admission::{Variables, env};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::conditions::{self, Data, Expression};
use super::configured::Configured;
use super::matching::Matcher;
use super::request::{View, is_configuration};
use super::rules;
use crate::locate::ServiceProxy;
use crate::util::{MUTATING_HOOKS, Res, VALIDATING_HOOKS, items, map, number, quote, text, texts, uuid};

/// One hook of a configuration.
struct Hook {
    /// Configuration, name and place: what tells it from others.
    id: String,
    configuration: String,
    name: String,
    client: Result<Client, String>,
    matcher: Matcher,
    /// A hook that cannot be asked is passed over.
    ignores: bool,
    side_effects: bool,
    timeout: Duration,
    review: Option<&'static str>,
    conditions: Vec<Expression>,
    again: bool,
}

/// All hooks of one kind of configuration.
struct Hooks {
    resource: &'static Res,
    compiled: Configured<Hook>,
    /// What asking them took, by name, operation, and whether they refused.
    asked: Mutex<BTreeMap<(String, &'static str, bool), Histogram>>,
}

/// Seconds.
const BUCKETS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];

impl Hooks {
    fn new(resource: &'static Res) -> Self {
        Self { resource, compiled: Configured::default(), asked: Mutex::default() }
    }

    /// Asks one of them, and counts it.
    async fn ask(&self, hook: &Hook, view: &View<'_>, place: Option<&Place>) -> Result<Result<Option<Value>, Status>, String> {
        let began = Instant::now();
        let answer = hook.ask(view, place).await;
        let rejected = match &answer {
            Ok(answer) => answer.is_err(),
            Err(_) => !hook.ignores,
        };
        let key = (hook.name.clone(), view.attributes.operation.as_str(), rejected);
        self.asked.lock().entry(key).or_insert_with(|| Histogram::new(BUCKETS)).observe(began.elapsed().as_secs_f64());
        answer
    }

    /// Of this kind (`admit` or `validate`), in Prometheus' text format.
    fn render(&self, kind: &str, out: &mut String) {
        const FAMILY: &str = "apiserver_admission_webhook_admission_duration_seconds";
        for ((name, operation, rejected), histogram) in self.asked.lock().iter() {
            histogram.render(FAMILY, &format!("name=\"{name}\",operation=\"{operation}\",rejected=\"{rejected}\",type=\"{kind}\""), out);
        }
    }

    /// The hooks of all configurations, in the order of their names.
    fn all(&self, ctx: &Ctx) -> Arc<Vec<Hook>> {
        self.compiled.get(ctx, &[self.resource], |_| {
            let mut configurations = ctx.backend.reader.list(self.resource, None);
            configurations.sort_by(|a, b| text(a, "/metadata/name").cmp(text(b, "/metadata/name")));
            let hooks = configurations.iter().flat_map(|c| {
                let configuration = text(c, "/metadata/name").to_owned();
                items(c, "/webhooks").enumerate().map(move |(i, h)| read(&format!("{configuration}/{i}"), h)).collect::<Vec<_>>()
            });
            hooks.collect()
        })
    }
}

/// What the conditions of webhooks may name.
fn environment() -> cel::Env {
    env(Variables { authorizer: true, ..Variables::default() })
}

fn read(id: &str, hook: &Value) -> Hook {
    Hook {
        id: format!("{id}/{}", text(hook, "/name")),
        configuration: id.split('/').next().unwrap_or_default().to_owned(),
        name: text(hook, "/name").to_owned(),
        client: Client::new(hook.get("clientConfig").unwrap_or(&Value::Null)),
        matcher: Matcher::of_hook(hook),
        ignores: text(hook, "/failurePolicy") == "Ignore",
        side_effects: !matches!(text(hook, "/sideEffects"), "None" | "NoneOnDryRun"),
        timeout: Duration::from_secs(number(hook, "/timeoutSeconds").unwrap_or(10).clamp(1, 30) as u64),
        review: texts(hook, "/admissionReviewVersions").find_map(|v| ["v1", "v1beta1"].into_iter().find(|k| *k == v)),
        conditions: conditions::read(&environment(), hook),
        again: text(hook, "/reinvocationPolicy") == "IfNeeded",
    }
}

impl Hook {
    /// Whether the hook is asked about a write, and how it sees it.
    async fn view<'a>(&self, attributes: &'a Attributes<'a>, object: Option<&'a Value>) -> Result<Option<View<'a>>, Status> {
        let ctx = attributes.ctx;
        let Some(target) = self.matcher.matches(attributes, object).await? else { return Ok(None) };
        let view = View::of(attributes, target, object).await?;
        if self.conditions.is_empty() {
            return Ok(Some(view));
        }
        let holds = ctx.settled(|| conditions::all_hold(&self.conditions, &Data::new(&view, None), &[])).await;
        match holds {
            Ok(true) => Ok(Some(view)),
            Ok(false) => Ok(None),
            Err(_) if self.ignores => Ok(None),
            Err(why) => Err(status::forbidden(ctx.resource.group, ctx.resource.plural, &ctx.name, &why)),
        }
    }

    /// Asks the hook; if it may change the object, in its place among the hooks. The outer error is a failure to ask, the
    /// inner one is its refusal.
    async fn ask(&self, view: &View<'_>, place: Option<&Place>) -> Result<Result<Option<Value>, Status>, String> {
        let ctx = view.attributes.ctx;
        if ctx.dry_run && self.side_effects {
            let why = format!("admission webhook {} does not support dry run", quote(&self.name));
            return Ok(Err(status::bad_request(why)));
        }
        let version = self.review.ok_or("could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)")?;
        let client = self.client.as_ref().map_err(|why| format!("could not get REST client: {why}"))?;
        let uid = uuid();
        let mut request = view.request();
        request["uid"] = uid.as_str().into();
        request["object"] = Value::clone(&view.object);
        request["oldObject"] = Value::clone(&view.old);
        let api_version = format!("admission.k8s.io/{version}");
        let review = json!({"kind": "AdmissionReview", "apiVersion": api_version, "request": request});
        let services = Services::new(Arc::new(ServiceProxy), ctx.backend.clone());
        let layer = if place.is_some() { Layer::MutatingWebhook } else { Layer::ValidatingWebhook };
        let asked = ctx.timed(layer, client.post(&services, &self.name, &review, self.timeout)).await;
        let answer = asked.map_err(|why| format!("failed to call webhook: {why}"))?;
        let invalid = |why: String| format!("received invalid webhook response: {why}");
        let response = answer.get("response").filter(|r| r.is_object()).ok_or_else(|| invalid("webhook response was absent".into()))?;
        if version == "v1" {
            if text(response, "/uid") != uid {
                return Err(invalid(format!("expected response.uid={}, got {}", quote(&uid), quote(text(response, "/uid")))));
            }
            if text(&answer, "/kind") != "AdmissionReview" || text(&answer, "/apiVersion") != api_version {
                let got = format!("{}, Kind={}", text(&answer, "/apiVersion"), text(&answer, "/kind"));
                return Err(invalid(format!("expected webhook response of {api_version}, Kind=AdmissionReview, got {got}")));
            }
        }
        for (key, value) in map(response, "/auditAnnotations").into_iter().flatten().filter(|_| ctx.is_audited()) {
            ctx.audit(&format!("{}/{key}", self.name), || value.as_str().unwrap_or_default().to_owned());
        }
        for warning in texts(response, "/warnings") {
            ctx.warn(warning);
        }
        if response.get("allowed") != Some(&Value::Bool(true)) {
            return Ok(Err(refusal(&self.name, response.get("result").or(response.get("status")))));
        }
        let patch = text(response, "/patch");
        let kind = response.get("patchType").and_then(Value::as_str);
        match (place.is_some(), patch.is_empty(), kind) {
            (false, false, _) => return Err(invalid("validating webhook may not return response.patch".into())),
            (false, true, Some(_)) if version == "v1" => return Err(invalid("validating webhook may not return response.patchType".into())),
            (true, false, None) if version == "v1" => return Err(invalid("webhook returned response.patch but not response.patchType".into())),
            (true, true, Some(_)) if version == "v1" => return Err(invalid("webhook returned response.patchType but not response.patch".into())),
            (_, true, _) => return Ok(Ok(None)),
            (true, false, Some(kind)) if kind != "JSONPatch" => return Err(format!("unsupported patch type {}", quote(kind))),
            _ => {}
        }
        let undecodable = |why: String| format!("received undecodable patch in webhook response: {why}");
        let bytes = base64::engine::general_purpose::STANDARD.decode(patch).map_err(|e| undecodable(e.to_string()))?;
        let patch: Value = serde_json::from_slice(&bytes).map_err(|e| undecodable(e.to_string()))?;
        if patch.as_array().is_none_or(Vec::is_empty) {
            return Ok(Ok(None));
        }
        if view.object.is_null() {
            let why = format!("admission webhook {} attempted to modify the object, which is not supported for this operation", quote(&self.name));
            return Ok(Err(status::internal(why)));
        }
        let patched = match api::patch::json_patch(&view.object, &patch) {
            Ok(patched) => patched,
            Err(refused) => return Ok(Err(status::internal(refused.message))),
        };
        let back = view.back(patched).await;
        if let (Some(place), Ok(_)) = (place, &back) {
            let key = format!("patch.webhook.admission.k8s.io/{place}");
            ctx.audit_at(Level::Request, &key, || self.noted(&format!(",\"patch\":{patch},\"patchType\":\"JSONPatch\"")));
        }
        Ok(back.map(Some))
    }

    /// What the audit log says of the hook: these fields, after what it is.
    fn noted(&self, fields: &str) -> String {
        format!("{{\"configuration\":{},\"webhook\":{}{fields}}}", json!(self.configuration), json!(self.name))
    }

    /// What a failure to ask means. `kind` and `place` are for the audit log.
    fn failed(&self, why: &str, ctx: &Ctx, kind: &str, place: &Place) -> Result<(), Status> {
        if self.ignores {
            if ctx.is_audited() {
                ctx.audit(&format!("failed-open.{kind}.webhook.admission.k8s.io/{place}"), || self.name.clone());
            }
            tracing::warn!(webhook = self.name, why, "a webhook could not be called and is passed over");
            return Ok(());
        }
        Err(status::internal(format!("failed calling webhook {}: {why}", quote(&self.name))))
    }
}

/// In which round, and as which of the hooks, one is asked.
struct Place(u8, usize);

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "round_{}_index_{}", self.0, self.1)
    }
}

/// What the hook says no with.
fn refusal(name: &str, result: Option<&Value>) -> Status {
    let mut refused = Status::from_value(result.unwrap_or(&Value::Null));
    let denied = format!("admission webhook {} denied the request", quote(name));
    refused.message = match (refused.message.as_str(), refused.reason.as_str()) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    if refused.code < 400 {
        refused.code = 400;
    }
    refused
}

const METRIC: &str = "# HELP apiserver_admission_webhook_admission_duration_seconds [STABLE] Admission webhook latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit).
# TYPE apiserver_admission_webhook_admission_duration_seconds histogram
";

/// Lets hooks change what is written.
pub(super) struct Mutating(Hooks);

/// Lets hooks refuse what is written.
pub(super) struct Validating(Hooks);

impl Mutating {
    pub(super) fn new() -> Self {
        Self(Hooks::new(&MUTATING_HOOKS))
    }
}

impl Validating {
    pub(super) fn new() -> Self {
        Self(Hooks::new(&VALIDATING_HOOKS))
    }
}

#[async_trait]
impl Admission for Mutating {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    fn metrics(&self, out: &mut String) {
        out.push_str(METRIC);
        self.0.render("admit", out);
    }

    fn handles(&self, _: Operation) -> bool {
        true
    }

    async fn admit(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        let ctx = attributes.ctx;
        let hooks = self.0.all(ctx);
        if hooks.is_empty() || is_configuration(ctx) {
            return Ok(());
        }
        let mut round = ctx.round(self.name());
        if ctx.is_second_round() && round.output.as_ref() != Some(object) {
            round.require_earlier();
        }
        for (i, hook) in hooks.iter().enumerate() {
            let given = (!object.is_null()).then_some(&*object);
            let Some(view) = hook.view(attributes, given).await? else { continue };
            if ctx.is_second_round() && !round.required.contains(&hook.id) {
                continue;
            }
            let place = Place(u8::from(ctx.is_second_round()), i);
            let answer = self.0.ask(hook, &view, Some(&place)).await;
            drop(view);
            let note = |mutated: bool| {
                if ctx.is_audited() {
                    ctx.audit(&format!("mutation.webhook.admission.k8s.io/{place}"), || hook.noted(&format!(",\"mutated\":{mutated}")));
                }
            };
            if !matches!(answer, Ok(Ok(Some(_)))) {
                note(false);
            }
            match answer {
                Err(why) => hook.failed(&why, ctx, "mutation", &place)?,
                Ok(Err(refused)) => return Err(refused),
                Ok(Ok(None)) => {}
                Ok(Ok(Some(mut patched))) => {
                    // unlike policies' patches, those of webhooks may bring in unknown fields, which are dropped
                    let _unknown = ctx.settle(&mut patched).map_err(status::internal)?;
                    note(patched != *object);
                    if patched != *object {
                        *object = patched;
                        round.require_earlier();
                        ctx.require_second_round();
                    }
                }
            }
            if hook.again {
                round.earlier.insert(hook.id.clone());
            }
        }
        round.output = Some(object.clone());
        ctx.keep_round(self.name(), round);
        Ok(())
    }
}

#[async_trait]
impl Admission for Validating {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn metrics(&self, out: &mut String) {
        self.0.render("validate", out);
    }

    fn handles(&self, _: Operation) -> bool {
        true
    }

    async fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        let ctx = attributes.ctx;
        let hooks = self.0.all(ctx);
        if hooks.is_empty() || is_configuration(ctx) {
            return Ok(());
        }
        let mut calls = Vec::new();
        for hook in hooks.iter() {
            if let Some(view) = hook.view(attributes, object).await? {
                calls.push((hook, view));
            }
        }
        let asked = calls.iter().enumerate().map(|(i, (hook, view))| async move {
            match self.0.ask(hook, view, None).await {
                Err(why) => hook.failed(&why, ctx, "validating", &Place(0, i)),
                Ok(answer) => answer.map(drop),
            }
        });
        futures::future::join_all(asked).await.into_iter().collect::<Result<Vec<()>, Status>>().map(drop)
    }
}

/// What is wrong with a configuration of webhooks.
pub(crate) fn validate(configuration: &Value, mutating: bool, old: Option<&Value>) -> Vec<api::field::FieldError> {
    use api::field::{FieldError, Path};
    let before = old.map(|o| items(o, "/webhooks").collect::<Vec<_>>());
    // what all webhooks of before kept to is asked of them still
    let kept = |rule: fn(&Value) -> bool| before.as_ref().is_none_or(|b| b.iter().all(|h| rule(h)));
    let harmless = kept(|h| ["None", "NoneOnDryRun"].contains(&text(h, "/sideEffects")));
    let known_versions = kept(|h| texts(h, "/admissionReviewVersions").any(|v| REVIEWS.contains(&v)));
    let unique = before.as_ref().is_none_or(|b| b.iter().map(|h| text(h, "/name")).collect::<BTreeSet<_>>().len() == b.len());
    let effects: &[&str] = if harmless { &["None", "NoneOnDryRun"] } else { &["None", "NoneOnDryRun", "Some", "Unknown"] };
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, hook) in items(configuration, "/webhooks").enumerate() {
        let at = Path::new("webhooks").index(i);
        let name = text(hook, "/name");
        let mut wrong_name = |why: String| errors.push(FieldError::invalid(&at.child("name"), name, why));
        if name.is_empty() {
            errors.push(FieldError::required(&at.child("name"), ""));
        } else if let Some(why) = api::names::dns1123_subdomain(name).first() {
            wrong_name(why.clone());
        } else if name.split('.').count() < 3 {
            wrong_name("should be a domain with at least three segments separated by dots".into());
        }
        for (j, rule) in items(hook, "/rules").enumerate() {
            rules::validate(rule, &at.child("rules").index(j), &mut errors);
        }
        rules::one_of(hook, "failurePolicy", &["Fail", "Ignore"], &at, &mut errors);
        rules::one_of(hook, "matchPolicy", &["Equivalent", "Exact"], &at, &mut errors);
        match hook.get("sideEffects").and_then(Value::as_str) {
            None => errors.push(FieldError::required(&at.child("sideEffects"), format!("must specify one of {}", effects.join(", ")))),
            Some(_) => rules::one_of(hook, "sideEffects", effects, &at, &mut errors),
        }
        let seconds = number(hook, "/timeoutSeconds").unwrap_or(10);
        if !(1..=30).contains(&seconds) {
            errors.push(FieldError::invalid(&at.child("timeoutSeconds"), seconds, "the timeout value must be between 1 and 30 seconds"));
        }
        for selector in ["namespaceSelector", "objectSelector"] {
            if let Some(found) = hook.get(selector).filter(|s| s.is_object()) {
                errors.extend(api::validate::label_selector(found, &at.child(selector)));
            }
        }
        if mutating {
            rules::one_of(hook, "reinvocationPolicy", &["IfNeeded", "Never"], &at, &mut errors);
        }
        match map(hook, "/clientConfig") {
            Some(_) => api::crd::definition::client_config(&hook["clientConfig"], &at.child("clientConfig"), false, &mut errors),
            None => errors.push(FieldError::required(&at.child("clientConfig"), "exactly one of url or service is required")),
        }
        conditions::validate(&environment(), hook, &at.child("matchConditions"), &mut errors);
        let versions: Vec<&str> = texts(hook, "/admissionReviewVersions").collect();
        let versions_at = at.child("admissionReviewVersions");
        let mut told: BTreeSet<&str> = BTreeSet::new();
        for (j, version) in versions.iter().enumerate() {
            let at = versions_at.index(j);
            if told.insert(version) {
                errors.extend(api::names::dns1035_label(version).into_iter().map(|why| FieldError::invalid(&at, *version, why)));
            } else {
                errors.push(FieldError::invalid(&at, *version, "duplicate version"));
            }
        }
        if versions.is_empty() {
            errors.push(FieldError::required(&versions_at, format!("must specify one of {}", REVIEWS.join(", "))));
        } else if known_versions && !versions.iter().any(|v| REVIEWS.contains(v)) {
            errors.push(FieldError::invalid(&versions_at, json!(versions), format!("must include at least one of {}", REVIEWS.join(", "))));
        }
        if unique && !name.is_empty() && !seen.insert(name) {
            errors.push(FieldError::duplicate(&at.child("name"), name));
        }
    }
    errors
}

/// The versions in which reviews can be sent.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told() {
        let told = |result: Value| {
            let refused = refusal("h.example.com", Some(&result));
            (refused.code, refused.message)
        };
        assert_eq!(told(json!({"code": 403, "message": "no"})), (403, "admission webhook \"h.example.com\" denied the request: no".into()));
        assert_eq!(told(Value::Null), (400, "admission webhook \"h.example.com\" denied the request without explanation".into()));
    }

    #[test]
    fn configurations_are_checked() {
        let good = json!({"name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"], "clientConfig": {"url": "https://a/b"},
            "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]}]});
        assert_eq!(validate(&json!({"webhooks": [good]}), true, None), Vec::new());
        let mut bad = good.clone();
        bad["sideEffects"] = json!("Some");
        bad["name"] = json!("a.b");
        bad["clientConfig"] = json!({"url": "http://a"});
        bad["matchConditions"] = json!([{"name": "x", "expression": "1 +"}]);
        let fields: Vec<String> = validate(&json!({"webhooks": [bad]}), true, None).iter().map(|e| e.path.to_string()).collect();
        assert_eq!(fields, ["webhooks[0].name", "webhooks[0].sideEffects", "webhooks[0].clientConfig.url", "webhooks[0].matchConditions[0].expression"]);
    }
}
