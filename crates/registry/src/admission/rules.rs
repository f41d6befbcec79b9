//! What is wrong with the rules and selectors of webhooks, policies and bindings that are being written.

use api::field::{FieldError, Path};
use serde_json::Value;

use crate::util::{items, text, texts};

/// The operations of rules.
pub(super) const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
/// Those of rules for what can be changed.
pub(super) const MUTATING_OPERATIONS: [&str; 4] = ["*", "CONNECT", "CREATE", "UPDATE"];

/// Checks a field that has one of some words. A field that is not there is fine.
pub(super) fn one_of(of: &Value, field: &str, known: &[&str], at: &Path, errors: &mut Vec<FieldError>) {
    let given = of.get(field).and_then(Value::as_str);
    if let Some(given) = given.filter(|g| !known.contains(g)) {
        errors.push(FieldError::not_supported(&at.child(field), given, known));
    }
}

/// The same of a field that has to be there.
pub(super) fn needs_one_of(of: &Value, field: &str, known: &[&str], at: &Path, errors: &mut Vec<FieldError>) {
    if text(of, &format!("/{field}")).is_empty() {
        errors.push(FieldError::required(&at.child(field), ""));
    } else {
        one_of(of, field, known, at, errors);
    }
}

/// The same of a field that is there when it is empty.
pub(super) fn given_one_of(of: &Value, field: &str, known: &[&str], at: &Path, errors: &mut Vec<FieldError>) {
    if of.get(field).is_none_or(Value::is_null) {
        errors.push(FieldError::required(&at.child(field), ""));
    } else {
        one_of(of, field, known, at, errors);
    }
}

/// Checks a rule.
pub(super) fn validate(rule: &Value, at: &Path, errors: &mut Vec<FieldError>) {
    list(rule, "operations", "operations", at, errors);
    for (i, operation) in texts(rule, "/operations").enumerate().filter(|(_, o)| !OPERATIONS.contains(o)) {
        errors.push(FieldError::not_supported(&at.child("operations").index(i), operation, &OPERATIONS));
    }
    list(rule, "apiGroups", "API groups", at, errors);
    list(rule, "apiVersions", "API versions", at, errors);
    for (i, _) in texts(rule, "/apiVersions").enumerate().filter(|(_, v)| v.is_empty()) {
        errors.push(FieldError::required(&at.child("apiVersions").index(i), ""));
    }
    resources(rule, &at.child("resources"), errors);
    one_of(rule, "scope", &["*", "Cluster", "Namespaced"], at, errors);
}

/// A list that must have something, and nothing beside `*`.
fn list(rule: &Value, field: &str, what: &str, at: &Path, errors: &mut Vec<FieldError>) {
    let given: Vec<&str> = texts(rule, &format!("/{field}")).collect();
    if given.is_empty() {
        errors.push(FieldError::required(&at.child(field), ""));
    } else if given.len() > 1 && given.contains(&"*") {
        let why = format!("if '*' is present, must not specify other {what}");
        errors.push(FieldError::invalid(&at.child(field), rule[field].clone(), why));
    }
}

fn resources(rule: &Value, at: &Path, errors: &mut Vec<FieldError>) {
    let given: Vec<&str> = texts(rule, "/resources").collect();
    if given.is_empty() {
        errors.push(FieldError::required(at, ""));
    }
    let (mut all_of, mut of_all) = (Vec::new(), Vec::new());
    let mut plain = false;
    for (i, resource) in given.iter().enumerate() {
        let at = at.index(i);
        if resource.is_empty() {
            errors.push(FieldError::required(&at, ""));
            continue;
        }
        let Some((plural, sub)) = resource.split_once('/') else {
            plain = *resource != "*";
            continue;
        };
        if all_of.contains(&plural) {
            errors.push(FieldError::invalid(&at, *resource, format!("if '{plural}/*' is present, must not specify {resource}")));
        }
        if of_all.contains(&sub) {
            errors.push(FieldError::invalid(&at, *resource, format!("if '*/{sub}' is present, must not specify {resource}")));
        }
        if sub == "*" {
            all_of.push(plural);
        }
        if plural == "*" {
            of_all.push(sub);
        }
    }
    let mut alone = |why: &str| errors.push(FieldError::invalid(at, rule["resources"].clone(), why));
    if given.len() > 1 && given.contains(&"*/*") {
        alone("if '*/*' is present, must not specify other resources");
    }
    if given.contains(&"*") && plain {
        alone("if '*' is present, must not specify other resources without subresources");
    }
}

/// Checks `matchConstraints` or `matchResources`.
pub(super) fn validate_resources(resources: &Value, at: &Path, errors: &mut Vec<FieldError>) {
    given_one_of(resources, "matchPolicy", &["Equivalent", "Exact"], at, errors);
    for key in ["namespaceSelector", "objectSelector"] {
        match resources.get(key).filter(|s| !s.is_null()) {
            Some(selector) => errors.extend(api::validate::label_selector(selector, &at.child(key))),
            None => errors.push(FieldError::required(&at.child(key), "")),
        }
    }
    for key in ["resourceRules", "excludeResourceRules"] {
        for (i, rule) in items(resources, &format!("/{key}")).enumerate() {
            let at = at.child(key).index(i);
            let names: Vec<&str> = texts(rule, "/resourceNames").collect();
            for (j, name) in names.iter().enumerate() {
                let at = at.child("resourceNames").index(j);
                errors.extend(api::names::path_segment(name).into_iter().map(|why| FieldError::invalid(&at, *name, why)));
                if names[..j].contains(name) {
                    errors.push(FieldError::duplicate(&at, *name));
                }
            }
            validate(rule, &at, errors);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_are_checked() {
        let told = |change: Value| {
            let mut rule = json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "scope": "*"});
            for (key, value) in change.as_object().into_iter().flatten() {
                rule[key] = value.clone();
            }
            let mut errors = Vec::new();
            validate(&rule, &Path::new("r"), &mut errors);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(told(json!({})), [""; 0]);
        assert_eq!(told(json!({"resources": ["pods", "pods/*", "*/scale"]})), [""; 0]);
        assert_eq!(
            told(json!({"operations": ["*", "EAT"], "apiGroups": [], "apiVersions": [""]})),
            [
                "r.operations: Invalid value: [\"*\",\"EAT\"]: if '*' is present, must not specify other operations",
                "r.operations[1]: Unsupported value: \"EAT\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"DELETE\", \"UPDATE\"",
                "r.apiGroups: Required value",
                "r.apiVersions[0]: Required value",
            ]
        );
        assert_eq!(
            told(json!({"resources": ["pods/*", "pods/log", "*", "secrets"], "scope": "Some"})),
            [
                "r.resources[1]: Invalid value: \"pods/log\": if 'pods/*' is present, must not specify pods/log",
                "r.resources: Invalid value: [\"pods/*\",\"pods/log\",\"*\",\"secrets\"]: if '*' is present, must not specify other resources without subresources",
                "r.scope: Unsupported value: \"Some\": supported values: \"*\", \"Cluster\", \"Namespaced\"",
            ]
        );
    }
}
