//! Policies that judge writes: scenarios in which they refuse, warn, or must not.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::testing::{Objects, block_on};
use crate::util::{ADMISSION_POLICIES, ADMISSION_POLICY_BINDINGS, CONFIG_MAPS, NAMESPACES};
use apiserver::{Admission, Operation, UserInfo};

/// A cluster with one policy and one binding.
struct Scene {
    objects: Arc<Objects>,
    plugin: ValidatingAdmissionPolicy,
}

impl Scene {
    fn new(policy: Value, binding: Value) -> Scene {
        let scene = Scene { objects: Objects::new(), plugin: ValidatingAdmissionPolicy::default() };
        scene.objects.put(&NAMESPACES, json!({"metadata": {"name": "default", "labels": {"env": "prod"}}}));
        scene.put(policy, binding);
        scene
    }

    fn put(&self, policy: Value, binding: Value) {
        let mut spec = json!({"failurePolicy": "Fail", "matchConstraints": {"resourceRules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}]}});
        for (key, value) in policy.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        self.objects.put(&ADMISSION_POLICIES, json!({"metadata": {"name": "p"}, "spec": spec}));
        let mut spec = json!({"policyName": "p", "validationActions": ["Deny"]});
        for (key, value) in binding.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        self.objects.put(&ADMISSION_POLICY_BINDINGS, json!({"metadata": {"name": "b"}, "spec": spec}));
    }

    /// Writes a config map with this data.
    fn write(&self, data: Value) -> (Result<(), Status>, Vec<String>) {
        let ctx = self.objects.ctx(&CONFIG_MAPS, "default", "c", UserInfo::new("ann", &["devs"]));
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "default", "labels": {"app": "a"}}, "data": data});
        (self.judge(&ctx, Operation::Create, Some(&object), None), ctx.warnings())
    }

    fn judge(&self, ctx: &Ctx, operation: Operation, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let attributes = Attributes { ctx, operation, old, options: &Value::Null };
        block_on(self.plugin.validate(&attributes, object))
    }

    fn refusal(&self, data: Value) -> String {
        self.write(data).0.unwrap_err().message
    }
}

const REFUSED: &str = "configmaps \"c\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: ";

#[test]
fn a_validation_that_is_not_met_refuses() {
    let scene = Scene::new(json!({"validations": [{"expression": "object.data.size() < 2"}]}), json!({}));
    assert!(scene.write(json!({"a": "1"})).0.is_ok());
    let status = scene.write(json!({"a": "1", "b": "2"})).0.unwrap_err();
    assert_eq!(status.message, format!("{REFUSED}failed expression: object.data.size() < 2"));
    assert_eq!((status.code, &status.reason[..]), (422, "Invalid"));
    assert_eq!(status.details.unwrap().causes[0].message, "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: failed expression: object.data.size() < 2");
}

#[test]
fn messages_and_reasons_are_the_policys() {
    let with = |extra: Value| {
        let mut validation = json!({"expression": "false"});
        for (key, value) in extra.as_object().into_iter().flatten() {
            validation[key] = value.clone();
        }
        Scene::new(json!({"validations": [validation]}), json!({})).write(json!({})).0.unwrap_err()
    };
    assert_eq!(with(json!({"message": " no "})).message, format!("{REFUSED}no"));
    assert_eq!(with(json!({"message": "no", "messageExpression": "'not ' + object.metadata.name"})).message, format!("{REFUSED}not c"));
    // A message that cannot be made, is empty or has lines is none.
    for bad in ["object.nope", "' '", "'a\\nb'", "1"] {
        assert_eq!(with(json!({"message": "no", "messageExpression": bad})).message, format!("{REFUSED}no"), "{bad}");
    }
    let forbidden = with(json!({"reason": "Forbidden"}));
    assert_eq!((forbidden.code, &forbidden.reason[..]), (403, "Forbidden"));
}

#[test]
fn actions_say_what_follows() {
    let policy = json!({"validations": [{"expression": "false", "message": "no"}]});
    let warns = Scene::new(policy.clone(), json!({"validationActions": ["Warn", "Audit"]}));
    let (result, warnings) = warns.write(json!({}));
    assert!(result.is_ok());
    assert_eq!(warnings, ["Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': no"]);
    assert!(Scene::new(policy, json!({"validationActions": ["Audit"]})).write(json!({})).0.is_ok());
}

#[test]
fn what_fails_counts_as_the_failure_policy_says() {
    let validations = json!([{"expression": "object.data.missing == 'a'"}]);
    let strict = Scene::new(json!({"validations": validations}), json!({}));
    assert_eq!(strict.refusal(json!({})), format!("{REFUSED}expression 'object.data.missing == 'a'' resulted in error: no such key: missing"));
    let lenient = Scene::new(json!({"validations": validations, "failurePolicy": "Ignore"}), json!({}));
    assert!(lenient.write(json!({})).0.is_ok());
    // But it does not hide what is really not met.
    let both = json!({"validations": [{"expression": "object.nope"}, {"expression": "false"}], "failurePolicy": "Ignore"});
    assert!(Scene::new(both, json!({})).write(json!({})).0.is_err());
    let broken = Scene::new(json!({"validations": [{"expression": "1 +"}]}), json!({}));
    assert!(broken.refusal(json!({})).starts_with(&format!("{REFUSED}compilation error: compilation failed: ERROR: <input>:1:4: Syntax error")));
    let costly = Scene::new(json!({"validations": [{"expression": "lists.range(100000).map(i, lists.range(i)).size() > 0"}]}), json!({}));
    assert!(costly.refusal(json!({})).contains("operation cancelled: actual cost limit exceeded"));
    let many: Vec<Value> = (0..30).map(|_| json!({"expression": "lists.range(60000).all(i, i >= 0)"})).collect();
    let spent = Scene::new(json!({"validations": many}), json!({}));
    assert_eq!(spent.refusal(json!({})), format!("{REFUSED}validation failed due to running out of cost budget, no further validation rules will be run"));
}

#[test]
fn conditions_come_first() {
    let policy = |conditions: Value| json!({"matchConditions": conditions, "validations": [{"expression": "false", "message": "no"}]});
    let named = |expression: &str| json!({"name": expression, "expression": expression});
    assert!(Scene::new(policy(json!([named("request.userInfo.username != 'ann'")])), json!({})).write(json!({})).0.is_ok());
    assert!(Scene::new(policy(json!([named("'devs' in request.userInfo.groups")])), json!({})).write(json!({})).0.is_err());
    // One that is false decides, also where another fails.
    assert!(Scene::new(policy(json!([named("object.nope"), named("false")])), json!({})).write(json!({})).0.is_ok());
    let failing = Scene::new(policy(json!([named("object.nope == 1"), named("true")])), json!({}));
    assert_eq!(failing.refusal(json!({})), format!("{REFUSED}expression 'object.nope == 1' resulted in error: no such key: nope"));
}

#[test]
fn expressions_see_the_request() {
    let holds = |expression: &str| {
        let scene = Scene::new(json!({"validations": [{"expression": expression}], "variables": [
            {"name": "size", "expression": "object.data.size()"}, {"name": "twice", "expression": "variables.size * 2"}]}), json!({}));
        let result = scene.write(json!({"a": "1"})).0;
        assert!(result.is_ok(), "{expression}: {}", result.unwrap_err().message);
    };
    for expression in [
        "variables.twice == 2",
        "request.operation == 'CREATE' && request.kind.kind == 'ConfigMap' && request.resource.resource == 'configmaps'",
        "request.name == 'c' && request.namespace == 'default' && !has(request.subResource) && request.dryRun == false",
        "oldObject == null",
        "namespaceObject.metadata.labels.env == 'prod'",
        "authorizer.group('').resource('pods').namespace('default').check('create').allowed()",
        "authorizer.requestResource.check('delete').allowed()",
        "object.metadata.?annotations.orValue({}).size() == 0",
    ] {
        holds(expression);
    }
}

#[test]
fn constraints_say_which_writes_are_meant() {
    let rule = |extra: Value| {
        let mut rule = json!({"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"]});
        for (key, value) in extra.as_object().into_iter().flatten() {
            rule[key] = value.clone();
        }
        rule
    };
    let judged = |constraints: Value| {
        let policy = json!({"matchConstraints": constraints, "validations": [{"expression": "false"}]});
        Scene::new(policy, json!({})).write(json!({})).0.is_err()
    };
    assert!(judged(json!({"resourceRules": [rule(json!({}))]})));
    assert!(judged(json!({"resourceRules": [rule(json!({"resources": ["configmaps"], "resourceNames": ["c"], "scope": "Namespaced"}))]})));
    for other in [
        json!({"apiGroups": ["apps"]}),
        json!({"apiVersions": ["v2"]}),
        json!({"operations": ["DELETE"]}),
        json!({"resources": ["configmaps/status", "secrets"]}),
        json!({"resourceNames": ["d"]}),
        json!({"scope": "Cluster"}),
    ] {
        assert!(!judged(json!({"resourceRules": [rule(other.clone())]})), "{other}");
    }
    let all = json!([rule(json!({}))]);
    assert!(!judged(json!({"resourceRules": all, "excludeResourceRules": [rule(json!({"resources": ["configmaps"]}))]})));
    assert!(judged(json!({"resourceRules": all, "namespaceSelector": {"matchLabels": {"env": "prod"}}, "objectSelector": {"matchLabels": {"app": "a"}}})));
    assert!(!judged(json!({"resourceRules": all, "namespaceSelector": {"matchLabels": {"env": "test"}}})));
    assert!(!judged(json!({"resourceRules": all, "objectSelector": {"matchLabels": {"app": "b"}}})));
}

#[test]
fn a_binding_narrows_and_a_policy_without_one_is_silent() {
    let policy = json!({"validations": [{"expression": "false"}]});
    assert!(Scene::new(policy.clone(), json!({"policyName": "other"})).write(json!({})).0.is_ok());
    let elsewhere = json!({"matchResources": {"namespaceSelector": {"matchLabels": {"env": "test"}}}});
    assert!(Scene::new(policy, elsewhere).write(json!({})).0.is_ok());
}

#[test]
fn parameters_are_looked_up() {
    let policy = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "validations": [{"expression": "params == null || object.data.n == params.data.n"}]});
    let by_name = |action: &str| json!({"paramRef": {"name": "limits", "namespace": "default", "parameterNotFoundAction": action}});
    let scene = Scene::new(policy.clone(), by_name("Deny"));
    let missing = "configmaps \"c\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction";
    assert_eq!(scene.refusal(json!({"n": "1"})), missing);
    scene.objects.put(&CONFIG_MAPS, json!({"metadata": {"name": "limits", "namespace": "default", "labels": {"l": "1"}}, "data": {"n": "1"}}));
    assert!(scene.write(json!({"n": "1"})).0.is_ok());
    assert!(scene.write(json!({"n": "2"})).0.is_err());
    assert!(Scene::new(policy.clone(), by_name("Allow")).write(json!({"n": "2"})).0.is_ok());
    // Each that a selector selects has to agree.
    scene.objects.put(&CONFIG_MAPS, json!({"metadata": {"name": "more", "namespace": "default", "labels": {"l": "1"}}, "data": {"n": "2"}}));
    scene.put(policy.clone(), json!({"paramRef": {"selector": {"matchLabels": {"l": "1"}}, "parameterNotFoundAction": "Deny"}}));
    assert!(scene.write(json!({"n": "1"})).0.is_err());
    scene.put(policy, json!({}));
    assert!(scene.write(json!({"n": "1"})).0.is_ok(), "without a reference, there are no parameters");
    let unknown = json!({"paramKind": {"apiVersion": "x.io/v1", "kind": "Nope"}, "validations": [{"expression": "true"}]});
    assert!(Scene::new(unknown, by_name("Deny")).refusal(json!({})).ends_with("paramKind kind `&ParamKind{APIVersion:x.io/v1,Kind:Nope,}` not known"));
}

#[test]
fn a_changed_policy_counts_at_once_and_policies_are_not_judged() {
    let scene = Scene::new(json!({"validations": [{"expression": "false"}]}), json!({}));
    assert!(scene.write(json!({})).0.is_err());
    scene.put(json!({"validations": [{"expression": "true"}]}), json!({}));
    assert!(scene.write(json!({})).0.is_ok());
    let everything = json!({"matchConstraints": {"resourceRules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*", "*"]}]},
        "validations": [{"expression": "false"}]});
    scene.put(everything, json!({}));
    let ctx = scene.objects.ctx(&ADMISSION_POLICIES, "", "p", UserInfo::new("ann", &[]));
    assert!(scene.judge(&ctx, Operation::Delete, None, None).is_ok());
    let ctx = scene.objects.ctx(&NAMESPACES, "", "default", UserInfo::new("ann", &[]));
    assert!(scene.judge(&ctx, Operation::Delete, None, Some(&json!({"metadata": {"name": "default"}}))).is_err());
}
