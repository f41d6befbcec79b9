//! Policies that change writes: scenarios in which they do, fail, or must not.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::testing::{Objects, block_on};
use crate::util::{CONFIG_MAPS, MUTATING_POLICIES, MUTATING_POLICY_BINDINGS, NAMESPACES, PODS};
use apiserver::{Admission, Ctx, Operation, UserInfo};

static DEPLOYMENTS: crate::util::Res = std::sync::LazyLock::new(|| api::resources::find("apps", "v1", "deployments").unwrap());
static AUTOSCALERS: crate::util::Res =
    std::sync::LazyLock::new(|| api::resources::find("autoscaling", "v2", "horizontalpodautoscalers").unwrap());

/// A cluster with policies, each with a binding of the same name.
struct Scene {
    objects: Arc<Objects>,
    plugin: MutatingAdmissionPolicy,
}

impl Scene {
    fn new(policies: &[(&str, Value)]) -> Scene {
        let scene = Scene { objects: Objects::new(), plugin: MutatingAdmissionPolicy::default() };
        scene.objects.put(&NAMESPACES, json!({"metadata": {"name": "default", "labels": {"env": "prod"}}}));
        for (name, spec) in policies {
            scene.put(name, spec.clone(), json!({}));
        }
        scene
    }

    fn put(&self, name: &str, policy: Value, binding: Value) {
        let mut spec = json!({"failurePolicy": "Fail", "reinvocationPolicy": "Never", "matchConstraints": {"resourceRules": [
            {"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*", "*/*"]}]}});
        for (key, value) in policy.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        self.objects.put(&MUTATING_POLICIES, json!({"metadata": {"name": name}, "spec": spec}));
        let mut spec = json!({"policyName": name});
        for (key, value) in binding.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        self.objects.put(&MUTATING_POLICY_BINDINGS, json!({"metadata": {"name": format!("{name}-b")}, "spec": spec}));
    }

    fn ctx(&self, resource: &'static Resource, name: &str) -> Ctx {
        self.objects.ctx(resource, "default", name, UserInfo::new("ann", &["devs"]))
    }

    fn admit(&self, ctx: &Ctx, operation: Operation, mut object: Value) -> Result<Value, Status> {
        let attributes = Attributes { ctx, operation, old: None, options: &Value::Null };
        block_on(self.plugin.admit(&attributes, &mut object)).map(|()| object)
    }

    /// Creates a deployment.
    fn deploy(&self) -> Result<Value, Status> {
        self.admit(&self.ctx(&DEPLOYMENTS, "d"), Operation::Create, deployment())
    }

    fn refusal(&self) -> String {
        self.deploy().unwrap_err().message
    }
}

fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "default", "labels": {"app": "a"}},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "a"}}, "template": {"metadata": {"labels": {"app": "a"}},
            "spec": {"containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": "1"}]}]}}}})
}

fn apply(expression: &str) -> Value {
    json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}})
}

fn patch(expression: &str) -> Value {
    json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}})
}

fn mutations(all: &[Value]) -> Value {
    json!({"mutations": all})
}

#[test]
fn a_configuration_is_laid_over_the_object() {
    let scene = Scene::new(&[(
        "p",
        mutations(&[
            apply("Object{metadata: Object.metadata{annotations: {'mutated-by': 'admission-policy'}}, spec: Object.spec{replicas: 1337}}"),
            apply("Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{containers: [
                Object.spec.template.spec.containers{name: 'side', image: 's'},
                Object.spec.template.spec.containers{name: 'c', env: [Object.spec.template.spec.containers.env{name: 'B', value: string(object.spec.replicas)}]}]}}}}"),
        ]),
    )]);
    let made = scene.deploy().unwrap();
    assert_eq!((&made["metadata"]["annotations"], &made["spec"]["replicas"]), (&json!({"mutated-by": "admission-policy"}), &json!(1337)));
    assert_eq!(made["metadata"]["labels"], json!({"app": "a"}));
    let containers = &made["spec"]["template"]["spec"]["containers"];
    let of = |name: &str| containers.as_array().unwrap().iter().find(|c| c["name"] == name).unwrap();
    assert_eq!(of("c")["env"], json!([{"name": "A", "value": "1"}, {"name": "B", "value": "1337"}]), "items merge by their key, and the second mutation sees the first");
    assert_eq!((&of("c")["image"], &of("side")["image"]), (&json!("i"), &json!("s")));
    assert_eq!(of("side")["terminationMessagePath"], "/dev/termination-log", "what comes in is defaulted");
}

#[test]
fn patches_see_variables_and_parameters() {
    let policy = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "variables": [{"name": "n", "expression": "params.data.n"}],
        "mutations": [patch("[JSONPatch{op: 'test', path: '/spec/replicas', value: 1}, JSONPatch{op: 'replace', path: '/spec/replicas', value: int(variables.n)},
            JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('x/y'), value: request.userInfo.username + namespaceObject.metadata.labels.env}]")]});
    let scene = Scene::new(&[]);
    scene.put("p", policy, json!({"paramRef": {"name": "n", "namespace": "default", "parameterNotFoundAction": "Deny"}}));
    assert_eq!(
        scene.refusal(),
        "policy 'p' with binding 'p-b' denied request: failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
    );
    scene.objects.put(&CONFIG_MAPS, json!({"metadata": {"name": "n", "namespace": "default"}, "data": {"n": "7"}}));
    let made = scene.deploy().unwrap();
    assert_eq!((&made["spec"]["replicas"], &made["metadata"]["labels"]), (&json!(7), &json!({"app": "a", "x/y": "annprod"})));
    // A test that fails leaves the object alone, and is no failure.
    let scene = Scene::new(&[("p", mutations(&[patch("[JSONPatch{op: 'replace', path: '/spec/replicas', value: 9}, JSONPatch{op: 'test', path: '/spec/replicas', value: 1}]")]))]);
    assert_eq!(scene.deploy().unwrap()["spec"]["replicas"], 1);
}

#[test]
fn policies_follow_each_other_in_the_order_of_their_names() {
    let append = |what: &str| mutations(&[apply(&format!("Object{{metadata: Object.metadata{{labels: {{'seen': object.metadata.labels[?'seen'].orValue('') + '{what}'}}}}}}"))]);
    let scene = Scene::new(&[("b", append("b")), ("a", append("a")), ("c", append("c"))]);
    assert_eq!(scene.deploy().unwrap()["metadata"]["labels"]["seen"], "abc");
}

#[test]
fn failures_refuse_where_the_policy_says_so() {
    let of = |mutation: Value| Scene::new(&[("p", mutations(&[mutation]))]);
    const REFUSED: &str = "policy 'p' with binding 'p-b' denied request: ";
    let status = of(apply("Object{spec: Object.spec{replicas: object.spec.nope}}")).deploy().unwrap_err();
    assert_eq!(
        status.message,
        format!("{REFUSED}expression 'Object{{spec: Object.spec{{replicas: object.spec.nope}}}}' resulted in error: no such key: nope")
    );
    assert_eq!((status.code, &status.reason[..]), (403, "Invalid"));
    let details = status.details.unwrap();
    assert_eq!((&details.causes[0].message, &details.name[..], &details.kind[..]), (&status.message, "d", "deployments"));
    for (mutation, why) in [
        (apply("Object{spec: Object.spec{replicas: 'x'}}"), "error applying patch: failed to convert patch object to typed object: .spec.replicas: expected numeric (int or float), got string"),
        (apply("Object{spec: Object.spec{nope: 1}}"), "error applying patch: failed to convert patch object to typed object: .spec.nope: field not declared in schema"),
        (
            apply("Object{spec: Object.spec{selector: Object.spec.selector{matchLabels: {'a': 'b'}}, template: Object.spec.template{spec: Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: 'c', args: ['x']}]}}}}"),
            "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.selector, .spec.template.spec.containers[0].args",
        ),
        (apply("Object{spec: Object.other{}}"), "type mismatch: unexpected type name \"Object.other\", expected \"Object.spec\", which matches field name path from root Object type"),
        (patch("[JSONPatch{op: 'remove', path: '/spec/none'}]"), "JSON Patch: remove operation does not apply: doc is missing path: \"/spec/none\": missing value"),
        (patch("[JSONPatch{op: 'replace', path: '/spec/none', value: 1}]"), "JSON Patch: replace operation does not apply: doc is missing key: /spec/none: missing value"),
        (patch("[JSONPatch{op: 'change', path: '/spec'}]"), "JSON Patch: Unexpected kind: change"),
        (patch("lists.range(100000).map(i, lists.range(i)).size() > 0 ? [JSONPatch{op: 'remove', path: '/spec'}] : []"), "expression 'lists.range(100000)"),
        (apply("1"), "must evaluate to Object but got int"),
    ] {
        let told = of(mutation).refusal();
        assert!(told.starts_with(&format!("{REFUSED}{why}")), "{told}");
    }
    let broken = of(apply("Object{")).refusal();
    assert!(broken.starts_with(&format!("{REFUSED}compilation failed: ERROR: <input>:1:8: Syntax error")), "{broken}");
    let mut ignoring = mutations(&[apply("Object{spec: Object.spec{nope: 1}}"), apply("Object{spec: Object.spec{replicas: 3}}")]);
    ignoring["failurePolicy"] = json!("Ignore");
    assert_eq!(Scene::new(&[("p", ignoring)]).deploy().unwrap()["spec"]["replicas"], 3, "what works of a policy that may fail stays");
}

#[test]
fn what_a_patch_may_not_bring_in_fails_the_request() {
    let mut policy = mutations(&[patch("[JSONPatch{op: 'add', path: '/spec/nope', value: 1}]")]);
    policy["failurePolicy"] = json!("Ignore");
    let status = Scene::new(&[("p", policy)]).deploy().unwrap_err();
    assert_eq!((status.code, &status.message[..]), (500, "Internal error occurred: strict decoding error: unknown field \"spec.nope\""));
    let typed = mutations(&[patch("[JSONPatch{op: 'replace', path: '/spec/replicas', value: 'x'}]")]);
    assert_eq!(Scene::new(&[("p", typed)]).deploy().unwrap_err().code, 500);
}

#[test]
fn who_is_not_meant_is_left_alone() {
    let change = || apply("Object{metadata: Object.metadata{labels: {'x': 'y'}}}");
    let with = |extra: Value, binding: Value| {
        let mut policy = mutations(&[change()]);
        for (key, value) in extra.as_object().into_iter().flatten() {
            policy[key] = value.clone();
        }
        let scene = Scene::new(&[]);
        scene.put("p", policy, binding);
        scene.deploy().map(|made| made["metadata"]["labels"]["x"] == "y")
    };
    assert_eq!(with(json!({}), json!({})).unwrap(), true);
    assert_eq!(with(json!({}), json!({"policyName": "other"})).unwrap(), false);
    assert_eq!(with(json!({}), json!({"matchResources": {"namespaceSelector": {"matchLabels": {"env": "test"}}}})).unwrap(), false);
    let condition = |e: &str| json!({"matchConditions": [{"name": "c", "expression": e}]});
    assert_eq!(with(condition("object.spec.replicas > 1"), json!({})).unwrap(), false);
    assert_eq!(with(condition("object.spec.replicas == 1"), json!({})).unwrap(), true);
    let failed = with(condition("object.nope"), json!({})).unwrap_err();
    assert_eq!(failed.message, "policy 'p' with binding 'p-b' denied request: compilation error: must evaluate to bool but got dyn");
    let mut ignoring = condition("object.nope == 1");
    ignoring["failurePolicy"] = json!("Ignore");
    assert_eq!(with(ignoring, json!({})).unwrap(), false);
    let selector = json!({"matchConstraints": {"objectSelector": {"matchLabels": {"app": "b"}}}});
    assert_eq!(with(selector, json!({})).unwrap(), false);

    let scene = Scene::new(&[("p", mutations(&[change()]))]);
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy", "metadata": {"name": "q"}});
    let ctx = scene.objects.ctx(&MUTATING_POLICIES, "", "q", UserInfo::new("ann", &[]));
    assert_eq!(scene.admit(&ctx, Operation::Create, policy.clone()).unwrap(), policy, "policies are nobody's to change");
    assert!(!scene.plugin.handles(Operation::Delete) && scene.plugin.handles(Operation::Connect));
    let mut ctx = scene.ctx(&PODS, "p");
    ctx.subresource = "exec".into();
    let refused = scene.admit(&ctx, Operation::Connect, json!({"kind": "PodExecOptions", "apiVersion": "v1"})).unwrap_err();
    assert_eq!(refused.code, 503);
    assert!(refused.message.starts_with("Resource kind /v1, Kind=PodExecOptions not found. "), "{}", refused.message);
}

#[test]
fn another_version_is_changed_in_its_own_form() {
    let mut policy = mutations(&[apply("Object{spec: Object.spec{targetCPUUtilizationPercentage: object.spec.targetCPUUtilizationPercentage + 1}}")]);
    policy["matchConstraints"] = json!({"resourceRules": [{"apiGroups": ["autoscaling"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["*"]}]});
    let object = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h", "namespace": "default"},
        "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"},
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]}});
    let scene = Scene::new(&[("p", policy.clone())]);
    let made = scene.admit(&scene.ctx(&AUTOSCALERS, "h"), Operation::Create, object.clone()).unwrap();
    assert_eq!((&made["apiVersion"], &made["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"]), (&json!("autoscaling/v2"), &json!(81)));
    policy["matchConstraints"]["matchPolicy"] = json!("Exact");
    let scene = Scene::new(&[("p", policy)]);
    assert_eq!(scene.admit(&scene.ctx(&AUTOSCALERS, "h"), Operation::Create, object.clone()).unwrap(), object);
}
