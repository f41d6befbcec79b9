//! What is wrong with policies and bindings that are being written.

use api::field::{FieldError, Path};
use api::seen::Seen;
use cel::admission::compile;
use cel::{Env, Type};
use serde_json::Value;

use super::environment;
use super::mutating::Kind;
use crate::admission::{conditions, rules};
use crate::util::{items, text, texts};

/// Words that cannot be names in expressions.
const RESERVED: [&str; 21] = [
    "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package",
    "namespace", "return", "var", "void", "while",
];

/// What is wrong with a ValidatingAdmissionPolicy. Expressions that it had before stay.
pub(crate) fn of_validating(policy: &Value, before: Option<&Value>) -> Vec<FieldError> {
    let spec = Path::new("spec");
    let mut errors = Vec::new();
    let [full, plain] = of_policy(policy, before, [environment(policy, true, false), environment(policy, false, false)], &mut errors);
    let same_names = before.is_some_and(|b| ["/spec/variables", "/spec/paramKind"].iter().all(|p| b.pointer(p) == policy.pointer(p)));
    let known = |list: &str, field: &str, expression: &str| {
        same_names && before.is_some_and(|b| items(b, &format!("/spec/{list}")).any(|old| text(old, &format!("/{field}")) == expression))
    };
    let check = |errors: &mut Vec<FieldError>, env: &Env, list: &str, i: usize, field: &str, expression: &str, types: &[Type]| {
        let at = spec.child(list).index(i).child(field);
        if expression.trim().is_empty() {
            errors.push(FieldError::required(&at, format!("{field} is not specified")));
        } else if !known(list, field, expression)
            && let Err(why) = compile(env, expression, types)
        {
            errors.push(FieldError::invalid(&at, expression, why));
        }
    };
    for (i, validation) in items(policy, "/spec/validations").enumerate() {
        let at = spec.child("validations").index(i);
        check(&mut errors, &full, "validations", i, "expression", text(validation, "/expression"), &[Type::Bool]);
        let expression = text(validation, "/messageExpression");
        if !expression.is_empty() {
            check(&mut errors, &plain, "validations", i, "messageExpression", expression, &[Type::String]);
        }
        let message = text(validation, "/message");
        if !message.is_empty() && message.trim().is_empty() {
            errors.push(FieldError::invalid(&at.child("message"), message, "must be non-empty if specified"));
        } else if message.trim().contains(['\n', '\r']) {
            errors.push(FieldError::invalid(&at.child("message"), message, "must not contain line breaks"));
        }
        rules::one_of(validation, "reason", &["Forbidden", "Invalid", "RequestEntityTooLarge"], &at, &mut errors);
    }
    errors.extend(annotation_keys(policy));
    for (i, annotation) in items(policy, "/spec/auditAnnotations").enumerate() {
        check(&mut errors, &full, "auditAnnotations", i, "valueExpression", text(annotation, "/valueExpression"), &[Type::String, Type::Null]);
    }
    if items(policy, "/spec/validations").next().is_none() && items(policy, "/spec/auditAnnotations").next().is_none() {
        for list in ["validations", "auditAnnotations"] {
            errors.push(FieldError::required(&spec.child(list), "validations or auditAnnotations must contain at least one item".to_string()));
        }
    }
    errors
}

/// Keys of audit annotations stand behind the policy's name, each once.
fn annotation_keys(policy: &Value) -> Vec<FieldError> {
    let (name, mut errors, mut seen) = (text(policy, "/metadata/name"), Vec::new(), Seen::default());
    for (i, annotation) in items(policy, "/spec/auditAnnotations").enumerate() {
        let at = Path::new("spec").child("auditAnnotations").index(i).child("key");
        let key = text(annotation, "/key");
        if name.is_empty() {
            errors.push(FieldError::invalid(&at, key, "requires metadata.name be non-empty"));
        } else {
            let whole = format!("{name}/{key}");
            errors.extend(api::names::qualified_name(&whole).into_iter().map(|why| FieldError::invalid(&at, whole.as_str(), why)));
        }
        if !seen.add(key) {
            errors.push(FieldError::duplicate(&at, key));
        }
    }
    errors
}

/// What is wrong with a MutatingAdmissionPolicy. Expressions that it had before stay.
pub(crate) fn of_mutating(policy: &Value, before: Option<&Value>) -> Vec<FieldError> {
    let spec = Path::new("spec");
    let mut errors = Vec::new();
    let [_, mutating] = of_policy(policy, before, [environment(policy, true, false), environment(policy, true, true)], &mut errors);
    operations(&policy["spec"]["matchConstraints"], &spec.child("matchConstraints"), &mut errors);
    if items(policy, "/spec/mutations").next().is_none() {
        errors.push(FieldError::required(&spec.child("mutations"), "mutations must contain at least one item"));
    }
    for (i, mutation) in items(policy, "/spec/mutations").enumerate() {
        let at = spec.child("mutations").index(i);
        let Some(kind) = Kind::of(mutation) else {
            rules::needs_one_of(mutation, "patchType", &["ApplyConfiguration", "JSONPatch"], &at, &mut errors);
            continue;
        };
        let given = text(mutation, "/patchType");
        match mutation.get(kind.field()).filter(|m| !m.is_null()) {
            None => errors.push(FieldError::required(&at.child(kind.field()), format!("must be specified when patchType is {given}"))),
            Some(body) => {
                let at = at.child(kind.field()).child("expression");
                let (whole, expression) = (text(body, "/expression"), text(body, "/expression").trim());
                let known = |m: &Value| m.get(kind.field()).is_some_and(|old| text(old, "/expression") == whole);
                if expression.is_empty() {
                    errors.push(FieldError::required(&at, ""));
                } else if !before.is_some_and(|b| items(b, "/spec/mutations").any(known))
                    && let Err(why) = compile(&mutating, expression, &[kind.result()])
                {
                    errors.push(FieldError::invalid(&at, expression, why));
                }
            }
        }
        let other = if kind == Kind::JsonPatch { Kind::ApplyConfiguration } else { Kind::JsonPatch }.field();
        if mutation.get(other).is_some_and(|m| !m.is_null()) {
            let why = format!("must not be specified when patchType is {given}");
            errors.push(FieldError::invalid(&at.child(other), format!("{{{other}}}"), why));
        }
    }
    rules::needs_one_of(&policy["spec"], "reinvocationPolicy", &["IfNeeded", "Never"], &spec, &mut errors);
    errors
}

/// Nothing can be changed in what is deleted.
fn operations(resources: &Value, at: &Path, errors: &mut Vec<FieldError>) {
    let at = at.child("resourceRules").child("operations");
    for operation in items(resources, "/resourceRules").flat_map(|r| texts(r, "/operations")) {
        if !rules::MUTATING_OPERATIONS.contains(&operation) {
            errors.push(FieldError::not_supported(&at, operation, &rules::MUTATING_OPERATIONS));
        }
    }
}

/// What is wrong with what all policies have. The environments come back with the policy's variables.
fn of_policy(policy: &Value, before: Option<&Value>, mut environments: [Env; 2], errors: &mut Vec<FieldError>) -> [Env; 2] {
    let at = Path::new("spec");
    let spec = &policy["spec"];
    rules::given_one_of(spec, "failurePolicy", &["Fail", "Ignore"], &at, errors);
    if let Some(kind) = spec.get("paramKind").filter(|k| !k.is_null()) {
        param_kind(kind, &at.child("paramKind"), errors);
    }
    let constraints = at.child("matchConstraints");
    match spec.get("matchConstraints").filter(|c| !c.is_null()) {
        None => errors.push(FieldError::required(&constraints, "")),
        Some(given) => {
            rules::validate_resources(given, &constraints, errors);
            if items(given, "/resourceRules").next().is_none() {
                errors.push(FieldError::required(&constraints.child("resourceRules"), ""));
            }
        }
    }
    // Conditions are read without the policy's variables. What was let in with the same parameters stays.
    if before.is_none_or(|b| ["/spec/matchConditions", "/spec/paramKind"].iter().any(|p| b.pointer(p) != policy.pointer(p))) {
        conditions::validate(&environments[0], spec, &at.child("matchConditions"), errors);
    }
    let known: Seen<&str> = before.into_iter().flat_map(|b| items(b, "/spec/variables")).map(|old| text(old, "/expression")).collect();
    for (i, variable) in items(spec, "/variables").enumerate() {
        let at = at.child("variables").index(i);
        let (name, expression) = (text(variable, "/name"), text(variable, "/expression"));
        if name.trim().is_empty() {
            errors.push(FieldError::required(&at.child("name"), "name is not specified"));
        } else if RESERVED.contains(&name) || !api::names::c_identifier(name).is_empty() {
            errors.push(FieldError::invalid(&at.child("name"), name, "must be a valid CEL identifier"));
        }
        let compiled = environments[0].compile(expression);
        let declared = (!expression.trim().is_empty()).then(|| compiled.as_ref().map_or(Type::Dyn, |p| p.result_type().clone()));
        if expression.trim().is_empty() {
            errors.push(FieldError::required(&at.child("expression"), "expression is not specified"));
        } else if let Err(e) = compiled {
            if !known.has(&expression) {
                errors.push(FieldError::invalid(&at.child("expression"), expression, format!("{}{e}", e.prefix())));
            }
        }
        for env in &mut environments {
            // there are variables, but none of this name
            let (name, t) = declared.clone().map_or(("", Type::Dyn), |t| (name, t));
            env.declare_composed(name, t);
        }
    }
    environments
}

fn param_kind(kind: &Value, at: &Path, errors: &mut Vec<FieldError>) {
    let mut wrong = |field: &str, value: &str, why: String| errors.push(FieldError::invalid(&at.child(field), value, why));
    let (api_version, name) = (text(kind, "/apiVersion"), text(kind, "/kind"));
    let parts: Vec<&str> = if api_version == "/" { vec!["", ""] } else { api_version.split('/').collect() };
    match parts[..] {
        [""] => errors.push(FieldError::required(&at.child("apiVersion"), "")),
        [.., _, _, _] => wrong("apiVersion", api_version, format!("unexpected GroupVersion string: {api_version}")),
        _ => {
            let (group, version) = if let [group, version] = parts[..] { (group, version) } else { ("", api_version) };
            let of_group = if group.is_empty() { Vec::new() } else { api::names::dns1123_subdomain(group) };
            if !of_group.is_empty() {
                wrong("apiVersion", group, of_group.join(","));
            }
            let of_version = api::names::dns1035_label(version);
            if version.is_empty() {
                wrong("apiVersion", api_version, "version must be specified".into());
            } else if !of_version.is_empty() {
                wrong("apiVersion", version, of_version.join(","));
            }
        }
    }
    let of_kind = api::names::dns1035_label(&name.to_lowercase());
    if name.is_empty() {
        errors.push(FieldError::required(&at.child("kind"), ""));
    } else if !of_kind.is_empty() {
        let why = format!("may have mixed case, but should otherwise match: {}", of_kind.join(","));
        errors.push(FieldError::invalid(&at.child("kind"), name, why));
    }
}

/// What is wrong with a binding, of policies that validate or that mutate.
pub(crate) fn of_binding(binding: &Value, mutating: bool) -> Vec<FieldError> {
    let spec = Path::new("spec");
    let mut errors = Vec::new();
    let name = text(binding, "/spec/policyName");
    if name.is_empty() {
        errors.push(FieldError::required(&spec.child("policyName"), ""));
    } else {
        errors.extend(api::names::dns1123_subdomain(name).into_iter().map(|why| FieldError::invalid(&spec.child("policyName"), name, why)));
    }
    if let Some(reference) = binding.pointer("/spec/paramRef") {
        param_ref(reference, &spec.child("paramRef"), &mut errors);
    }
    if let Some(resources) = binding.pointer("/spec/matchResources") {
        let at = spec.child("matchResources");
        rules::validate_resources(resources, &at, &mut errors);
        if mutating {
            operations(resources, &at, &mut errors);
        }
    }
    if !mutating {
        actions(binding, &spec.child("validationActions"), &mut errors);
    }
    errors
}

fn param_ref(reference: &Value, at: &Path, errors: &mut Vec<FieldError>) {
    let (name, selector) = (text(reference, "/name"), reference.get("selector").filter(|s| !s.is_null()));
    let exclusive = |field: &str| FieldError::forbidden(&at.child(field), "name and selector are mutually exclusive");
    if !name.is_empty() {
        errors.extend(api::names::path_segment(name).into_iter().map(|why| FieldError::invalid(&at.child("name"), name, why)));
        errors.extend(selector.map(|_| exclusive("name")));
    }
    if let Some(selector) = selector {
        errors.extend(api::validate::label_selector(selector, &at.child("selector")));
        if !name.is_empty() {
            errors.push(exclusive("selector"));
        }
    } else if name.is_empty() {
        errors.push(FieldError::required(at, "one of name or selector must be specified"));
    }
    rules::needs_one_of(reference, "parameterNotFoundAction", &["Deny", "Allow"], at, errors);
}

fn actions(binding: &Value, at: &Path, errors: &mut Vec<FieldError>) {
    let actions: Vec<&str> = texts(binding, "/spec/validationActions").collect();
    if actions.is_empty() {
        errors.push(FieldError::required(at, "at least one validation action is required"));
    }
    let mut seen = Seen::default();
    for (i, action) in actions.iter().enumerate() {
        if !matches!(*action, "Audit" | "Deny" | "Warn") {
            errors.push(FieldError::not_supported(&at.index(i), *action, &["Audit", "Deny", "Warn"]));
        } else if !seen.add(action) {
            errors.push(FieldError::duplicate(&at.index(i), *action));
        }
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errors.push(FieldError::invalid(at, binding["spec"]["validationActions"].clone(), why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(extra: Value) -> Value {
        let rule = json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"], "scope": "*"});
        let mut spec = json!({"failurePolicy": "Fail", "reinvocationPolicy": "Never", "matchConstraints": {
            "matchPolicy": "Equivalent", "namespaceSelector": {}, "objectSelector": {}, "resourceRules": [rule]}});
        for (key, value) in extra.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        json!({"metadata": {"name": "p"}, "spec": spec})
    }

    fn told(errors: Vec<FieldError>) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn mistakes_of_validating_policies() {
        let told = |extra: Value, before: Option<&Value>| told(of_validating(&spec(extra), before));
        assert_eq!(told(json!({"validations": [{"expression": "object.foo.bar == 1"}], "variables": [{"name": "a", "expression": "1"}]}), None), [""; 0]);
        assert_eq!(
            told(json!({"validations": [{"expression": "1"}, {"expression": ""}, {"expression": "params.a"}]}), None),
            [
                "spec.validations[0].expression: Invalid value: \"1\": must evaluate to bool but got int",
                "spec.validations[1].expression: Required value: expression is not specified",
                "spec.validations[2].expression: Invalid value: \"params.a\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'params' (in container '')\n | params.a\n | ^",
            ]
        );
        let param_kind = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "validations": [{"expression": "params.a == 1"}]});
        assert_eq!(told(param_kind, None), [""; 0]);
        assert_eq!(
            told(json!({"validations": [{"expression": "true", "messageExpression": "authorizer.path('/').check('get').reason()"}]}), None).len(),
            1,
            "messages know no authorizer"
        );
        assert_eq!(
            told(json!({"auditAnnotations": [{"key": "a", "valueExpression": "1"}]}), None),
            ["spec.auditAnnotations[0].valueExpression: Invalid value: \"1\": must evaluate to one of [string null_type] but got int"]
        );
        let old = spec(json!({"validations": [{"expression": "1"}]}));
        assert_eq!(told(json!({"validations": [{"expression": "1"}], "failurePolicy": "Ignore"}), Some(&old)), [""; 0], "what was let in stays");
        assert_eq!(told(json!({}), None).len(), 2);
        assert_eq!(told(json!({"validations": [{"expression": "true"}], "matchConstraints": null}), None), ["spec.matchConstraints: Required value"]);
        assert_eq!(
            told(json!({"validations": [{"expression": "true", "message": "a\nb", "reason": "Gone"}]}), None),
            [
                "spec.validations[0].message: Invalid value: \"a\\nb\": must not contain line breaks",
                "spec.validations[0].reason: Unsupported value: \"Gone\": supported values: \"Forbidden\", \"Invalid\", \"RequestEntityTooLarge\"",
            ]
        );
    }

    #[test]
    fn mistakes_of_mutating_policies() {
        let told = |extra: Value| told(of_mutating(&spec(extra), None));
        let apply = |expression: &str| json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}});
        let patch = |expression: &str| json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}});
        let good = json!({"mutations": [apply("\n Object{spec: Object.spec{replicas: variables.n}}"), patch("[JSONPatch{op: 'add', path: '/a', value: 1}]")],
            "variables": [{"name": "n", "expression": "1"}]});
        assert_eq!(told(good), [""; 0]);
        assert_eq!(told(json!({"reinvocationPolicy": ""})), [
            "spec.mutations: Required value: mutations must contain at least one item",
            "spec.reinvocationPolicy: Required value",
        ]);
        assert_eq!(
            told(json!({"mutations": [{}, {"patchType": "Merge"}, {"patchType": "JSONPatch", "applyConfiguration": {}}, apply(" ")]})),
            [
                "spec.mutations[0].patchType: Required value",
                "spec.mutations[1].patchType: Unsupported value: \"Merge\": supported values: \"ApplyConfiguration\", \"JSONPatch\"",
                "spec.mutations[2].jsonPatch: Required value: must be specified when patchType is JSONPatch",
                "spec.mutations[2].applyConfiguration: Invalid value: \"{applyConfiguration}\": must not be specified when patchType is JSONPatch",
                "spec.mutations[3].applyConfiguration.expression: Required value",
            ]
        );
        assert_eq!(
            told(json!({"mutations": [apply("1"), patch("['a']")]})),
            [
                "spec.mutations[0].applyConfiguration.expression: Invalid value: \"1\": must evaluate to Object but got int",
                "spec.mutations[1].jsonPatch.expression: Invalid value: \"['a']\": must evaluate to list(JSONPatch) but got list(string)",
            ]
        );
        let mut deletes = spec(json!({"mutations": [apply("Object{}")]}));
        deletes["spec"]["matchConstraints"]["resourceRules"][0]["operations"] = json!(["CREATE", "DELETE"]);
        assert_eq!(
            of_mutating(&deletes, None).iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["spec.matchConstraints.resourceRules.operations: Unsupported value: \"DELETE\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"UPDATE\""]
        );
        assert_eq!(
            told(json!({"mutations": [apply("Object{}")], "variables": [{"name": "a-b", "expression": ""}], "failurePolicy": "Maybe"})),
            [
                "spec.failurePolicy: Unsupported value: \"Maybe\": supported values: \"Fail\", \"Ignore\"",
                "spec.variables[0].name: Invalid value: \"a-b\": must be a valid CEL identifier",
                "spec.variables[0].expression: Required value: expression is not specified",
            ]
        );
        assert_eq!(
            told(json!({"mutations": [apply("Object{}")], "paramKind": {"apiVersion": "a/b/c"}})),
            ["spec.paramKind.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c", "spec.paramKind.kind: Required value"]
        );
    }

    #[test]
    fn bindings_name_a_policy_and_what_follows() {
        let told = |spec: Value| told(of_binding(&json!({"spec": spec}), false));
        assert_eq!(told(json!({"policyName": "p", "validationActions": ["Deny", "Audit"]})), [""; 0]);
        assert_eq!(told(json!({})), ["spec.policyName: Required value", "spec.validationActions: Required value: at least one validation action is required"]);
        assert_eq!(
            told(json!({"policyName": "p", "validationActions": ["Audit", "Audit", "Shout"]})),
            [
                "spec.validationActions[1]: Duplicate value: \"Audit\"",
                "spec.validationActions[2]: Unsupported value: \"Shout\": supported values: \"Audit\", \"Deny\", \"Warn\"",
            ]
        );
        assert!(told(json!({"policyName": "p", "validationActions": ["Deny", "Warn"]}))[0].contains("must not contain both Deny and Warn"));
        let reference = |r: Value| told(json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": r}));
        assert_eq!(reference(json!({"name": "a", "parameterNotFoundAction": "Deny"})), [""; 0]);
        assert_eq!(
            reference(json!({})),
            ["spec.paramRef: Required value: one of name or selector must be specified", "spec.paramRef.parameterNotFoundAction: Required value"]
        );
        assert_eq!(reference(json!({"name": "a", "selector": {}, "parameterNotFoundAction": "Allow"})).len(), 2);
        let mutating = of_binding(&json!({"spec": {"policyName": "a/b", "matchResources": {}}}), true);
        let fields: Vec<String> = mutating.iter().map(|e| e.path.to_string()).collect();
        assert_eq!(fields, ["spec.policyName", "spec.matchResources.matchPolicy", "spec.matchResources.namespaceSelector", "spec.matchResources.objectSelector"]);
    }
}
