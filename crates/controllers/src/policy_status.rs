//! Admission policies say in their status what their expressions get wrong about the kinds that they are for.
//!
//! A policy's validations are compiled against the schemas of the kinds that its match constraints name, which admission
//! itself does not do: there, objects are dynamic. Each generation of a policy is looked at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cel::admission::{Variables, env};
use cel::{DeclType, Env, Type};
use http::Request;
use k8s_openapi::api::admissionregistration::v1::{ExpressionWarning, ValidatingAdmissionPolicy};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use reconcile::{Informer, Queue, Requeue, run_workers};
use serde_json::{Value, json};

use crate::Context;

/// The name under which it applies.
const NAME: &str = "validatingadmissionpolicy-status-controller";
/// Most kinds that one policy is checked against.
const MOST: usize = 10;

/// Group, version and kind.
type Gvk = (String, String, String);

/// What is served, as far as a policy asks: kinds by resource, and their schemas.
#[derive(Debug, Default)]
pub struct Served {
    /// By group, version and plural.
    pub kinds: HashMap<(String, String, String), String>,
    /// Schemas that are known.
    pub schemas: HashMap<Gvk, DeclType>,
}

/// The resources that a policy's constraints name one by one: group, version, plural.
fn resources(policy: &ValidatingAdmissionPolicy) -> Vec<(String, String, String)> {
    let rules = policy.spec.as_ref().and_then(|s| s.match_constraints.as_ref()).and_then(|m| m.resource_rules.as_ref());
    let mut found = Vec::new();
    for rule in rules.into_iter().flatten() {
        let sorted = |list: &Option<Vec<String>>| {
            let mut list = list.clone().unwrap_or_default();
            list.sort();
            list
        };
        let (groups, versions) = (sorted(&rule.api_groups), sorted(&rule.api_versions));
        // A wildcard is no kind.
        if groups.iter().chain(&versions).any(|g| g.contains('*')) {
            continue;
        }
        let plain: Vec<String> = sorted(&rule.resources).into_iter().filter(|r| !r.contains(['*', '/'])).collect();
        for group in &groups {
            for version in &versions {
                found.extend(plain.iter().map(|r| (group.clone(), version.clone(), r.clone())));
            }
        }
    }
    found
}

/// The kind of a policy's parameters.
fn params(policy: &ValidatingAdmissionPolicy) -> Option<Gvk> {
    let kind = policy.spec.as_ref()?.param_kind.as_ref()?;
    let (group, version) = api::resources::split_api_version(kind.api_version.as_deref().unwrap_or_default());
    Some((group.to_string(), version.to_string(), kind.kind.clone().unwrap_or_default()))
}

/// What a policy's expressions get wrong; none when this generation has been looked at.
pub fn plan(policy: &ValidatingAdmissionPolicy, served: &Served) -> Option<Vec<ExpressionWarning>> {
    let observed = policy.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
    if policy.metadata.generation.unwrap_or(0) <= observed {
        return None;
    }
    let found: BTreeSet<Gvk> = resources(policy)
        .into_iter()
        .filter_map(|key| {
            let kind = served.kinds.get(&key)?.clone();
            Some((key.0, key.1, kind))
        })
        .take(MOST)
        .collect();
    let params = params(policy);
    // Compiled once a kind, for all expressions.
    let envs: Vec<(Gvk, Env)> = found
        .into_iter()
        .filter_map(|gvk| {
            let decl = served.schemas.get(&gvk)?;
            let params_type = params.as_ref().and_then(|p| Some((p.2.as_str(), served.schemas.get(p)?)));
            let variables = Variables { params: params.is_some(), authorizer: true, object: Some((&gvk.2, decl)), params_type, mutation: false };
            let mut env = env(variables);
            for variable in policy.spec.iter().flat_map(|s| s.variables.iter().flatten()) {
                // What does not compile is told where it is used.
                let t = env.compile(&variable.expression).map_or(Type::Dyn, |p| p.result_type().clone());
                env.declare_composed(&variable.name, t);
            }
            Some((gvk, env))
        })
        .collect();
    let mut warnings = Vec::new();
    for (i, validation) in policy.spec.iter().flat_map(|s| s.validations.iter().flatten()).enumerate() {
        let message = validation.message_expression.as_deref().filter(|m| !m.is_empty());
        for (field, expression) in [("expression", Some(validation.expression.as_str())), ("messageExpression", message)] {
            let Some(expression) = expression else { continue };
            let said: Vec<String> = envs.iter().filter_map(|(gvk, env)| check(gvk, env, expression)).collect();
            if !said.is_empty() {
                warnings.push(ExpressionWarning { field_ref: format!("spec.validations[{i}].{field}"), warning: said.join("\n") });
            }
        }
    }
    Some(warnings)
}

/// What an expression gets wrong about one kind.
fn check((group, version, kind): &Gvk, env: &Env, expression: &str) -> Option<String> {
    let issues = env.compile(expression).err()?;
    // What is wrong with it as a program is not a matter of types.
    (issues.prefix() == "compilation failed: ").then(|| format!("{group}/{version}, Kind={kind}: {issues}\n"))
}

/// Finds kinds and schemas: built-in ones are known, the others are asked for.
async fn find(client: &Client, policy: &ValidatingAdmissionPolicy) -> Served {
    let mut served = Served::default();
    let mut lists: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for (group, version, plural) in resources(policy) {
        let kind = match api::resources::find(&group, &version, &plural) {
            Some(resource) => Some(resource.kind.to_string()),
            None => {
                let api_version = api::resources::api_version(&group, &version);
                if !lists.contains_key(&api_version) && !group.is_empty() {
                    let list = client.list_api_group_resources(&api_version).await.map(|l| l.resources).unwrap_or_default();
                    lists.insert(api_version.clone(), list.into_iter().map(|r| (r.name, r.kind)).collect());
                }
                lists.get(&api_version).and_then(|l| l.iter().find(|(name, _)| *name == plural)).map(|(_, kind)| kind.clone())
            }
        };
        if let Some(kind) = kind {
            served.kinds.insert((group, version, plural), kind);
        }
        if served.kinds.len() == MOST {
            break;
        }
    }
    let wanted: BTreeSet<Gvk> = served.kinds.iter().map(|((g, v, _), kind)| (g.clone(), v.clone(), kind.clone())).chain(params(policy)).collect();
    let mut documents: BTreeMap<String, Option<Value>> = BTreeMap::new();
    for gvk in wanted {
        let decl = match api::openapi::definition_of(&gvk.0, &gvk.1, &gvk.2) {
            Some(name) => built_in(name),
            None if gvk.0.is_empty() => None,
            None => {
                let path = format!("/openapi/v3/apis/{}/{}", gvk.0, gvk.1);
                if !documents.contains_key(&path) {
                    let request = Request::get(path.as_str()).body(Vec::new());
                    let document = match request {
                        Ok(request) => client.request::<Value>(request).await.ok(),
                        Err(_) => None,
                    };
                    documents.insert(path.clone(), document);
                }
                documents.get(&path).and_then(Option::as_ref).and_then(|document| custom(document, &gvk))
            }
        };
        served.schemas.extend(decl.map(|d| (gvk, d)));
    }
    served
}

/// The schema of a built-in kind.
fn built_in(name: &str) -> Option<DeclType> {
    DeclType::from_definition(name, &|name| Some(api::openapi::schema(name)))
}

/// The schema of a kind in an OpenAPI document.
fn custom(document: &Value, (group, version, kind): &Gvk) -> Option<DeclType> {
    let schemas = document.pointer("/components/schemas")?.as_object()?;
    let wanted = json!({"group": group, "version": version, "kind": kind});
    let is_it = |schema: &Value| schema["x-kubernetes-group-version-kind"].as_array().is_some_and(|kinds| kinds.contains(&wanted));
    let (name, _) = schemas.iter().find(|(_, schema)| is_it(schema))?;
    DeclType::from_definition(name, &|name| schemas.get(name).cloned())
}

/// Starts the controller.
pub fn start(context: &Context) {
    let policies: Informer<ValidatingAdmissionPolicy> = context.informers.of::<ValidatingAdmissionPolicy>();
    let queue = Queue::<String>::new();
    let q = queue.clone();
    policies.on_change(move |change| change.new.iter().for_each(|policy| q.add(policy.name_any())));
    let client = context.client.clone();
    run_workers(&context.tasks, "validatingadmissionpolicy-status", context.workers(5), queue, move |name| {
        let (client, policies) = (client.clone(), policies.clone());
        async move {
            policies.synced().await;
            let Some(policy) = policies.get("", &name) else { return Ok(Requeue::No) };
            let Some(generation) = policy.metadata.generation.filter(|g| *g > policy.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0))
            else {
                return Ok(Requeue::No);
            };
            let served = find(&client, &policy).await;
            let Some(warnings) = plan(&policy, &served) else { return Ok(Requeue::No) };
            let mut checking = json!({});
            if !warnings.is_empty() {
                checking = json!({"expressionWarnings": warnings});
            }
            let patch = json!({
                "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": policy.name_any()},
                "status": {"observedGeneration": generation, "typeChecking": checking},
            });
            let params = PatchParams::apply(NAME).force();
            match Api::<ValidatingAdmissionPolicy>::all(client).patch_status(&name, &params, &Patch::Apply(patch)).await {
                Ok(_) => Ok(Requeue::No),
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(Requeue::No),
                Err(error) => Err(error),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(generation: i64, spec: Value) -> ValidatingAdmissionPolicy {
        serde_json::from_value(json!({"metadata": {"name": "p", "generation": generation}, "spec": spec})).expect("a policy")
    }

    fn served() -> Served {
        let mut served = Served::default();
        for (group, plural, kind) in [("apps", "deployments", "Deployment"), ("", "pods", "Pod")] {
            let gvk = (group.to_string(), "v1".to_string(), kind.to_string());
            let name = api::openapi::definition_of(group, "v1", kind).expect("a kind");
            served.kinds.insert((group.to_string(), "v1".to_string(), plural.to_string()), kind.to_string());
            served.schemas.insert(gvk, built_in(name).expect("a schema"));
        }
        served
    }

    fn rule(groups: &[&str], resources: &[&str]) -> Value {
        json!({"resourceRules": [{"apiGroups": groups, "apiVersions": ["v1"], "operations": ["*"], "resources": resources}]})
    }

    fn warnings(spec: Value) -> Vec<(String, String)> {
        let warnings = plan(&policy(1, spec), &served()).expect("a generation that is new");
        warnings.into_iter().map(|w| (w.field_ref, w.warning)).collect()
    }

    #[test]
    fn right_expressions_have_no_warnings() {
        for expression in [
            "object.spec.replicas > 1",
            "object.spec.template.spec.containers.all(c, c.image.startsWith('x/'))",
            "object.metadata.labels['app'] == 'a' && oldObject.metadata.?labels.?app.orValue('') == ''",
            "request.operation == 'CREATE' && request.userInfo.groups.exists(g, g == 'a')",
            "namespaceObject.metadata.labels.env == 'prod'",
            "authorizer.group('').resource('pods').check('create').allowed()",
            "authorizer.requestResource.check('delete').allowed()",
            "object.spec.strategy.rollingUpdate.maxSurge == 1 || object.spec.strategy.rollingUpdate.maxSurge == '1%'",
            "timestamp('2020-01-01T00:00:00Z') < object.metadata.creationTimestamp",
        ] {
            let spec = json!({"matchConstraints": rule(&["apps"], &["deployments"]), "validations": [{"expression": expression}]});
            assert_eq!(warnings(spec), [], "{expression}");
        }
    }

    #[test]
    fn mistakes_about_types_are_told_by_kind() {
        let spec = json!({"matchConstraints": rule(&["apps"], &["deployments"]), "validations": [
            {"expression": "object.spec.replicas > 1"},
            {"expression": "object.spec.foo", "messageExpression": "object.metadata.name + 1"},
        ]});
        assert_eq!(
            warnings(spec),
            [
                (
                    "spec.validations[1].expression".to_string(),
                    "apps/v1, Kind=Deployment: ERROR: <input>:1:12: undefined field 'foo'\n | object.spec.foo\n | ...........^\n".to_string()
                ),
                (
                    "spec.validations[1].messageExpression".to_string(),
                    "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_+_' applied to '(string, int)'\n | object.metadata.name + 1\n | .....................^\n"
                        .to_string()
                ),
            ]
        );
        let both = json!({"matchConstraints": rule(&["", "apps"], &["pods", "deployments"]), "validations": [{"expression": "object.spec.nope"}]});
        let said = warnings(both);
        assert_eq!(said.len(), 1);
        let kinds: Vec<&str> = said[0].1.lines().filter_map(|l| l.split_once(": ERROR").map(|(kind, _)| kind)).collect();
        assert_eq!(kinds, ["/v1, Kind=Pod", "apps/v1, Kind=Deployment"]);
    }

    #[test]
    fn variables_and_parameters_have_types() {
        let spec = json!({
            "matchConstraints": rule(&["apps"], &["deployments"]), "paramKind": {"apiVersion": "v1", "kind": "Pod"},
            "variables": [{"name": "n", "expression": "object.spec.replicas"}, {"name": "broken", "expression": "nope"}],
            "validations": [
                {"expression": "variables.n > 1 && params.spec.nodeName == 'a'"},
                {"expression": "variables.n == 'a'"},
                {"expression": "variables.missing"},
                {"expression": "variables.broken"},
                {"expression": "params.spec.foo"},
            ],
        });
        let fields: Vec<String> = warnings(spec).into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, ["spec.validations[1].expression", "spec.validations[2].expression", "spec.validations[4].expression"]);
    }

    #[test]
    fn what_names_no_kind_is_not_checked() {
        for constraints in [rule(&["*"], &["deployments"]), rule(&["apps"], &["*", "deployments/scale"]), rule(&["other"], &["things"]), json!({})] {
            let spec = json!({"matchConstraints": constraints, "validations": [{"expression": "object.spec.nope"}]});
            assert_eq!(warnings(spec), []);
        }
    }

    #[test]
    fn a_generation_is_looked_at_once() {
        let spec = json!({"matchConstraints": rule(&["apps"], &["deployments"]), "validations": [{"expression": "object.nope"}]});
        let mut policy = policy(2, spec);
        policy.status = serde_json::from_value(json!({"observedGeneration": 2})).expect("a status");
        assert!(plan(&policy, &served()).is_none());
        policy.metadata.generation = Some(3);
        assert_eq!(plan(&policy, &served()).map(|w| w.len()), Some(1));
    }

    #[test]
    fn a_custom_kind_is_found_in_its_document() {
        let document = json!({"components": {"schemas": {
            "io.example.v1.Thing": {"type": "object", "x-kubernetes-group-version-kind": [{"group": "example.io", "version": "v1", "kind": "Thing"}],
                "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}, "metadata": {"allOf": [{"$ref": "#/components/schemas/Meta"}]}}},
            "Meta": {"type": "object", "properties": {"name": {"type": "string"}, "own": {"$ref": "#/components/schemas/Meta"}}},
        }}});
        let gvk = ("example.io".to_string(), "v1".to_string(), "Thing".to_string());
        let decl = custom(&document, &gvk).expect("a schema");
        let env = env(Variables { object: Some(("Thing", &decl)), ..Variables::default() });
        assert!(env.compile("object.spec.size == 1 && object.metadata.name == 'a'").is_ok());
        assert!(env.compile("object.metadata.own.name == 'a'").is_err());
        assert!(custom(&document, &("example.io".into(), "v2".into(), "Thing".into())).is_none());
    }

    #[tokio::test]
    async fn kinds_and_schemas_that_are_not_built_in_are_asked_for_once() {
        let asked: std::sync::Arc<std::sync::Mutex<Vec<String>>> = Default::default();
        let told = asked.clone();
        let client = crate::testing::client(vec![], move |path| {
            told.lock().expect("a lock").push(path.to_string());
            let schema = |kind: &str| json!({"type": "object", "properties": {"size": {"type": "integer"}},
                "x-kubernetes-group-version-kind": [{"group": "example.com", "version": "v1", "kind": kind}]});
            match path {
                "/apis/example.com/v1" => Some(json!({"groupVersion": "example.com/v1", "resources": [
                    {"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": []},
                    {"name": "toys", "singularName": "toy", "namespaced": true, "kind": "Toy", "verbs": []}]})),
                "/openapi/v3/apis/example.com/v1" => Some(json!({"components": {"schemas": {"com.example.v1.Thing": schema("Thing"), "com.example.v1.Toy": schema("Toy")}}})),
                _ => None,
            }
        });
        let spec = json!({"matchConstraints": {"resourceRules": [
            {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["deployments"]},
            {"apiGroups": ["example.com"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["toys", "things", "nothings"]},
            {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["unheardof"]}]},
            "paramKind": {"apiVersion": "v1", "kind": "Unheard"}, "validations": []});
        let served = find(&client, &policy(1, spec)).await;
        let kinds: BTreeSet<&str> = served.kinds.values().map(String::as_str).collect();
        assert_eq!(kinds, BTreeSet::from(["Deployment", "Thing", "Toy"]));
        assert_eq!(served.kinds[&("example.com".to_string(), "v1".to_string(), "toys".to_string())], "Toy");
        assert_eq!(served.schemas.keys().map(|gvk| gvk.2.as_str()).collect::<BTreeSet<_>>(), kinds);
        assert_eq!(*asked.lock().expect("a lock"), ["/apis/example.com/v1", "/openapi/v3/apis/example.com/v1"], "nothing is asked for twice");
    }

    #[tokio::test]
    async fn ten_kinds_are_enough() {
        let plurals = ["pods", "secrets", "services", "nodes", "events", "endpoints", "configmaps", "namespaces", "podtemplates", "limitranges", "serviceaccounts"];
        let served = find(&crate::testing::client(vec![], |_| None), &policy(1, json!({"matchConstraints": rule(&[""], &plurals)}))).await;
        assert_eq!((served.kinds.len(), served.schemas.len()), (MOST, MOST));
    }
}
