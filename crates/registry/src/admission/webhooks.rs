//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: hooks of the cluster's own are asked about writes.
//!
//! Configurations are read from the cache and compiled when they changed. Mutating hooks are asked one after the other
//! and their patches applied; when one changed the object, all plug-ins look at it once more, and hooks that want to be
//! asked again are. Validating hooks are asked all at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::selector::Labels;
use api::status;
use apiserver::types::{Resource, Status};
use apiserver::webhook::{Client, Services};
use apiserver::{Admission, Attributes, Ctx, Operation};
use async_trait::async_trait;
use base64::Engine;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::conditions::{self, Condition};
use crate::locate::ServiceProxy;
use crate::util::{MUTATING_HOOKS, NAMESPACES, Res, VALIDATING_HOOKS, items, map, number, quote, text, texts, uuid};

/// One hook of a configuration.
struct Hook {
    /// Configuration, name and place: what tells it from others.
    id: String,
    name: String,
    client: Result<Client, String>,
    rules: Vec<Value>,
    equivalent: bool,
    namespaces: Option<Labels>,
    objects: Option<Labels>,
    /// A hook that cannot be asked is passed over.
    ignores: bool,
    side_effects: bool,
    timeout: Duration,
    review: Option<&'static str>,
    conditions: Vec<Condition>,
    again: bool,
}

/// All hooks of one kind of configuration, kept while none changes.
struct Hooks {
    resource: &'static Res,
    kept: Mutex<(u64, Arc<Vec<Hook>>)>,
}

impl Hooks {
    fn new(resource: &'static Res) -> Self {
        Self { resource, kept: Mutex::new((u64::MAX, Arc::default())) }
    }

    fn all(&self, ctx: &Ctx) -> Arc<Vec<Hook>> {
        let reader = &ctx.backend.reader;
        let version = reader.version(self.resource);
        let mut kept = self.kept.lock();
        if kept.0 != version {
            let mut configurations = reader.list(self.resource, None);
            configurations.sort_by(|a, b| text(a, "/metadata/name").cmp(text(b, "/metadata/name")));
            let hooks = configurations.iter().flat_map(|c| {
                let configuration = text(c, "/metadata/name").to_owned();
                items(c, "/webhooks").enumerate().map(move |(i, h)| read(&format!("{configuration}/{i}"), h)).collect::<Vec<_>>()
            });
            *kept = (version, Arc::new(hooks.collect()));
        }
        kept.1.clone()
    }
}

fn read(id: &str, hook: &Value) -> Hook {
    let selector = |pointer: &str| hook.pointer(pointer).and_then(|s| Labels::from_label_selector(s).ok()).filter(|s| !s.is_empty());
    Hook {
        id: format!("{id}/{}", text(hook, "/name")),
        name: text(hook, "/name").to_owned(),
        client: Client::new(hook.get("clientConfig").unwrap_or(&Value::Null)),
        rules: items(hook, "/rules").cloned().collect(),
        equivalent: text(hook, "/matchPolicy") != "Exact",
        namespaces: selector("/namespaceSelector"),
        objects: selector("/objectSelector"),
        ignores: text(hook, "/failurePolicy") == "Ignore",
        side_effects: !matches!(text(hook, "/sideEffects"), "None" | "NoneOnDryRun"),
        timeout: Duration::from_secs(number(hook, "/timeoutSeconds").unwrap_or(10).clamp(1, 30) as u64),
        review: texts(hook, "/admissionReviewVersions").find_map(|v| ["v1", "v1beta1"].into_iter().find(|k| *k == v)),
        conditions: items(hook, "/matchConditions").map(Condition::new).collect(),
        again: text(hook, "/reinvocationPolicy") == "IfNeeded",
    }
}

/// How a hook takes a request: as which resource.
struct Call {
    resource: &'static Resource,
}

/// Configurations of admission itself are nobody's to refuse.
fn is_exempt(ctx: &Ctx) -> bool {
    ctx.resource.group == "admissionregistration.k8s.io"
}

fn is_namespace(ctx: &Ctx) -> bool {
    ctx.resource.group.is_empty() && ctx.resource.plural == "namespaces"
}

/// The namespace of a request; that of a namespace is itself.
fn namespace(ctx: &Ctx) -> &str {
    if is_namespace(ctx) { &ctx.name } else { &ctx.namespace }
}

fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

fn matches_rule(rule: &Value, resource: &Resource, attributes: &Attributes<'_>) -> bool {
    let ctx = attributes.ctx;
    let has = |pointer: &str, wanted: &str| texts(rule, pointer).any(|v| v == "*" || v == wanted);
    let namespaced = !is_namespace(ctx) && !ctx.namespace.is_empty();
    let scope = match text(rule, "/scope") {
        "Namespaced" => namespaced,
        "Cluster" => !namespaced,
        _ => true,
    };
    scope
        && has("/operations", operation(attributes.operation))
        && has("/apiGroups", resource.group)
        && has("/apiVersions", resource.version)
        && texts(rule, "/resources").any(|r| {
            let (plural, sub) = r.split_once('/').unwrap_or((r, ""));
            (plural == "*" || plural == resource.plural) && (sub == "*" || sub == ctx.subresource)
        })
}

impl Hook {
    /// Whether and how the hook is asked about a write.
    async fn call(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<Option<Call>, Status> {
        let ctx = attributes.ctx;
        let Some(resource) = self.resource(attributes) else { return Ok(None) };
        if !self.selects_objects(attributes, object) || !self.selects_namespace(attributes, object).await? {
            return Ok(None);
        }
        if self.conditions.is_empty() {
            return Ok(Some(Call { resource }));
        }
        let request = request(attributes, resource, &uuid());
        let old = attributes.old.unwrap_or(&Value::Null);
        match conditions::all_hold(&self.conditions, object.unwrap_or(&Value::Null), old, &request, ctx) {
            Ok(true) => Ok(Some(Call { resource })),
            Ok(false) => Ok(None),
            Err(_) if self.ignores => Ok(None),
            Err(why) => Err(status::forbidden(ctx.resource.group, ctx.resource.plural, &ctx.name, &why)),
        }
    }

    fn resource(&self, attributes: &Attributes<'_>) -> Option<&'static Resource> {
        let own = attributes.ctx.resource;
        if self.rules.iter().any(|rule| matches_rule(rule, own, attributes)) {
            return Some(own);
        }
        if !self.equivalent {
            return None;
        }
        let others = attributes.ctx.backend.reader.equivalents(own);
        let others = || others.iter().filter(|r| (r.group, r.version) != (own.group, own.version));
        self.rules.iter().find_map(|rule| others().find(|r| matches_rule(rule, r, attributes)).copied())
    }

    fn selects_objects(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> bool {
        let Some(selector) = &self.objects else { return true };
        let labels = |o: &Value| o.pointer("/metadata/labels").cloned().unwrap_or_default();
        // a connection's options are no object with labels
        attributes.operation != Operation::Connect
            && [object, attributes.old].into_iter().flatten().any(|o| selector.matches(&labels(o)))
    }

    async fn selects_namespace(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<bool, Status> {
        let ctx = attributes.ctx;
        let Some(selector) = &self.namespaces else { return Ok(true) };
        if namespace(ctx).is_empty() && !is_namespace(ctx) {
            return Ok(true);
        }
        let empty = Value::Null;
        if is_namespace(ctx) && ctx.subresource.is_empty() && matches!(attributes.operation, Operation::Create | Operation::Update) {
            return Ok(selector.matches(object.and_then(|o| o.pointer("/metadata/labels")).unwrap_or(&empty)));
        }
        let found = match ctx.backend.reader.get(&NAMESPACES, "", namespace(ctx)) {
            Some(found) => found,
            None => Arc::new(ctx.backend.writer.get(&NAMESPACES, "", namespace(ctx)).await?),
        };
        Ok(selector.matches(found.pointer("/metadata/labels").unwrap_or(&empty)))
    }

    /// Asks the hook. The outer error is a failure to ask, the inner one is its refusal.
    async fn ask(&self, attributes: &Attributes<'_>, call: &Call, object: Option<&Value>, mutating: bool) -> Result<Result<Option<Value>, Status>, String> {
        let ctx = attributes.ctx;
        if ctx.dry_run && self.side_effects {
            let why = format!("admission webhook {} does not support dry run", quote(&self.name));
            return Ok(Err(status::bad_request(why)));
        }
        let version = self.review.ok_or("could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)")?;
        let client = self.client.as_ref().map_err(|why| format!("could not get REST client: {why}"))?;
        let uid = uuid();
        let mut request = request(attributes, call.resource, &uid);
        request["object"] = self.convert(ctx, call, object).await?;
        request["oldObject"] = self.convert(ctx, call, attributes.old).await?;
        let api_version = format!("admission.k8s.io/{version}");
        let review = json!({"kind": "AdmissionReview", "apiVersion": api_version, "request": request});
        let services = Services::new(Arc::new(ServiceProxy), ctx.backend.clone());
        let answer = client.post(&services, &self.name, &review, self.timeout).await.map_err(|why| format!("failed to call webhook: {why}"))?;
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
        for warning in texts(response, "/warnings") {
            ctx.warn(warning);
        }
        if response.get("allowed") != Some(&Value::Bool(true)) {
            return Ok(Err(refusal(&self.name, response.get("result").or(response.get("status")))));
        }
        let patch = text(response, "/patch");
        let kind = response.get("patchType").and_then(Value::as_str);
        match (mutating, patch.is_empty(), kind) {
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
        if request["object"].is_null() {
            let why = format!("admission webhook {} attempted to modify the object, which is not supported for this operation", quote(&self.name));
            return Ok(Err(status::internal(why)));
        }
        let patched = match api::patch::json_patch(&request["object"], &patch) {
            Ok(patched) => patched,
            Err(refused) => return Ok(Err(status::internal(refused.message))),
        };
        let back = ctx.backend.writer.convert(call.resource, ctx.resource, patched).await;
        Ok(back.map(Some))
    }

    async fn convert(&self, ctx: &Ctx, call: &Call, object: Option<&Value>) -> Result<Value, String> {
        match object {
            None => Ok(Value::Null),
            Some(object) if std::ptr::eq(call.resource, ctx.resource) || !ctx.subresource.is_empty() && ctx.subresource != "status" => Ok(object.clone()),
            Some(object) => ctx.backend.writer.convert(ctx.resource, call.resource, object.clone()).await.map_err(|s| s.message),
        }
    }

    /// What a failure to ask means.
    fn failed(&self, why: &str) -> Result<(), Status> {
        if self.ignores {
            tracing::warn!(webhook = self.name, why, "a webhook could not be called and is passed over");
            return Ok(());
        }
        Err(status::internal(format!("failed calling webhook {}: {why}", quote(&self.name))))
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

/// The AdmissionRequest, without the objects.
fn request(attributes: &Attributes<'_>, resource: &Resource, uid: &str) -> Value {
    let ctx = attributes.ctx;
    let kind = |r: &Resource| match r.subresource(&ctx.subresource) {
        Some(sub) => json!({"group": sub.group, "version": sub.version, "kind": sub.kind}),
        None => json!({"group": r.group, "version": r.version, "kind": r.kind}),
    };
    let named = |r: &Resource| json!({"group": r.group, "version": r.version, "resource": r.plural});
    let mut user = json!({"username": ctx.user.name, "groups": ctx.user.groups});
    if !ctx.user.uid.is_empty() {
        user["uid"] = ctx.user.uid.as_str().into();
    }
    if !ctx.user.extra.is_empty() {
        user["extra"] = json!(ctx.user.extra);
    }
    let mut request = json!({
        "uid": uid,
        "kind": kind(resource),
        "resource": named(resource),
        "requestKind": kind(ctx.resource),
        "requestResource": named(ctx.resource),
        "operation": operation(attributes.operation),
        "userInfo": user,
        "object": null,
        "oldObject": null,
        "dryRun": ctx.dry_run,
        "options": attributes.options,
    });
    for (key, value) in [("subResource", &ctx.subresource), ("requestSubResource", &ctx.subresource), ("name", &ctx.name)] {
        if !value.is_empty() {
            request[key] = value.as_str().into();
        }
    }
    if !namespace(ctx).is_empty() {
        request["namespace"] = namespace(ctx).into();
    }
    request
}

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

    fn handles(&self, _: Operation) -> bool {
        true
    }

    async fn admit(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        let ctx = attributes.ctx;
        let hooks = self.0.all(ctx);
        if hooks.is_empty() || is_exempt(ctx) {
            return Ok(());
        }
        let mut rounds = ctx.rounds();
        if rounds.again && rounds.output.as_ref() != Some(object) {
            rounds.require_earlier();
        }
        for hook in hooks.iter() {
            let given = (!object.is_null()).then_some(&*object);
            let Some(call) = hook.call(attributes, given).await? else { continue };
            if rounds.again && !rounds.required.contains(&hook.id) {
                continue;
            }
            match hook.ask(attributes, &call, given, true).await {
                Err(why) => hook.failed(&why)?,
                Ok(Err(refused)) => return Err(refused),
                Ok(Ok(None)) => {}
                Ok(Ok(Some(mut patched))) => {
                    ctx.settle(&mut patched).map_err(status::internal)?;
                    if patched != *object {
                        *object = patched;
                        rounds.require_earlier();
                        rounds.changed = true;
                    }
                }
            }
            if hook.again {
                rounds.earlier.insert(hook.id.clone());
            }
        }
        rounds.output = Some(object.clone());
        ctx.keep_rounds(rounds);
        Ok(())
    }
}

#[async_trait]
impl Admission for Validating {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn handles(&self, _: Operation) -> bool {
        true
    }

    async fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        let ctx = attributes.ctx;
        let hooks = self.0.all(ctx);
        if hooks.is_empty() || is_exempt(ctx) {
            return Ok(());
        }
        let mut calls = Vec::new();
        for hook in hooks.iter() {
            if let Some(call) = hook.call(attributes, object).await? {
                calls.push((hook, call));
            }
        }
        let asked = calls.iter().map(|(hook, call)| async move {
            match hook.ask(attributes, call, object, false).await {
                Err(why) => hook.failed(&why),
                Ok(answer) => answer.map(drop),
            }
        });
        futures::future::join_all(asked).await.into_iter().collect::<Result<Vec<()>, Status>>().map(drop)
    }
}

/// What is wrong with a configuration of webhooks.
pub(crate) fn validate(configuration: &Value, mutating: bool) -> Vec<api::field::FieldError> {
    use api::field::{FieldError, Path};
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
        } else if !seen.insert(name) {
            errors.push(FieldError::duplicate(&at.child("name"), name));
        }
        let mut one_of = |key: &str, known: &[&str]| {
            let given = text(hook, &format!("/{key}"));
            if !given.is_empty() && !known.contains(&given) {
                errors.push(FieldError::not_supported(&at.child(key), given, known));
            }
        };
        one_of("failurePolicy", &["Fail", "Ignore"]);
        one_of("matchPolicy", &["Equivalent", "Exact"]);
        if mutating {
            one_of("reinvocationPolicy", &["IfNeeded", "Never"]);
        }
        let side_effects = text(hook, "/sideEffects");
        if side_effects.is_empty() {
            errors.push(FieldError::required(&at.child("sideEffects"), "must specify one of None, NoneOnDryRun"));
        } else if !matches!(side_effects, "None" | "NoneOnDryRun") {
            errors.push(FieldError::not_supported(&at.child("sideEffects"), side_effects, &["None", "NoneOnDryRun"]));
        }
        let seconds = number(hook, "/timeoutSeconds").unwrap_or(10);
        if !(1..=30).contains(&seconds) {
            errors.push(FieldError::invalid(&at.child("timeoutSeconds"), seconds, "the timeout value must be between 1 and 30 seconds"));
        }
        let versions: Vec<&str> = texts(hook, "/admissionReviewVersions").collect();
        let versions_at = at.child("admissionReviewVersions");
        if versions.is_empty() {
            errors.push(FieldError::required(&versions_at, "must specify one of v1, v1beta1"));
        } else if !versions.iter().any(|v| matches!(*v, "v1" | "v1beta1")) {
            errors.push(FieldError::invalid(&versions_at, json!(versions), "must include at least one of v1, v1beta1"));
        }
        for (j, rule) in items(hook, "/rules").enumerate() {
            let at = at.child("rules").index(j);
            for key in ["operations", "apiGroups", "apiVersions", "resources"] {
                if texts(rule, &format!("/{key}")).next().is_none() {
                    errors.push(FieldError::required(&at.child(key), ""));
                }
            }
        }
        match map(hook, "/clientConfig") {
            Some(_) => api::crd::definition::client_config(&hook["clientConfig"], &at.child("clientConfig"), false, &mut errors),
            None => errors.push(FieldError::required(&at.child("clientConfig"), "exactly one of url or service is required")),
        }
        let given: Vec<&Value> = items(hook, "/matchConditions").collect();
        conditions::validate(&given, &at.child("matchConditions"), &mut errors);
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Objects;
    use crate::util::PODS;
    use apiserver::UserInfo;

    #[test]
    fn rules_say_which_writes() {
        let objects = Objects::new();
        let check = |rule: Value, sub: &str, expect: bool| {
            let mut ctx = objects.ctx(&PODS, "a", "p", UserInfo::default());
            ctx.subresource = sub.into();
            let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
            assert_eq!(matches_rule(&rule, &PODS, &attributes), expect, "{rule} {sub}");
        };
        let rule = |resources: &str, scope: &str| json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["*"], "resources": [resources], "scope": scope});
        check(rule("pods", "*"), "", true);
        check(rule("pods", "*"), "status", false);
        check(rule("*/*", "*"), "status", true);
        check(rule("pods/status", "Namespaced"), "status", true);
        check(rule("*", "Cluster"), "", false);
        let mut deletes = rule("*", "*");
        deletes["operations"] = json!(["DELETE"]);
        check(deletes, "", false);
    }

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
        assert_eq!(validate(&json!({"webhooks": [good]}), true), Vec::new());
        let mut bad = good.clone();
        bad["sideEffects"] = json!("Some");
        bad["name"] = json!("a.b");
        bad["clientConfig"] = json!({"url": "http://a"});
        bad["matchConditions"] = json!([{"name": "x", "expression": "1 +"}]);
        let fields: Vec<String> = validate(&json!({"webhooks": [bad]}), true).iter().map(|e| e.path.to_string()).collect();
        assert_eq!(fields, ["webhooks[0].name", "webhooks[0].sideEffects", "webhooks[0].clientConfig.url", "webhooks[0].matchConditions[0].expression"]);
    }
}
