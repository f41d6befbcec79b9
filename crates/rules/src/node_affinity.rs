//! Node selectors and required node affinity: which nodes a pod's spec allows.

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec};
use kube::ResourceExt;

/// Whether a requirement holds for a value (nothing when the key is absent).
fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let listed = || requirement.values.iter().flatten().any(|v| Some(v.as_str()) == value);
    let compare = |test: fn(&i64, &i64) -> bool| {
        let bound = requirement.values.as_ref().and_then(|v| v.first());
        let number = |text: &str| text.parse::<i64>().ok();
        value.and_then(number).zip(bound.and_then(|b| number(b))).is_some_and(|(a, b)| test(&a, &b))
    };
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

/// Whether a term selects a node. An empty term selects none.
pub fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name = node.name_any();
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|r| holds(r, node.labels().get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| r.key == "metadata.name" && holds(r, Some(&name)))
}

/// Whether the node selector and the required node affinity of a pod allow a node.
pub fn allows(spec: &PodSpec, node: &Node) -> bool {
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| node.labels().get(k) == Some(v));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term_matches(t, node)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(spec: &str) -> bool {
        let node: Node = serde_json::from_str(r#"{"metadata":{"name":"a","labels":{"zone":"x","cores":"8"}}}"#).expect("a node");
        let mut spec: serde_json::Value = serde_json::from_str(spec).expect(spec);
        spec["containers"] = serde_json::json!([]);
        allows(&serde_json::from_value(spec).expect("a spec"), &node)
    }

    #[test]
    fn selectors_and_terms() {
        assert!(allowed("{}"));
        assert!(allowed(r#"{"nodeSelector":{"zone":"x"}}"#));
        assert!(!allowed(r#"{"nodeSelector":{"zone":"y"}}"#));
        let required = |terms: &str| {
            allowed(&format!(
                r#"{{"affinity":{{"nodeAffinity":{{"requiredDuringSchedulingIgnoredDuringExecution":{{"nodeSelectorTerms":{terms}}}}}}}}}"#
            ))
        };
        assert!(!required("[{}]"), "an empty term selects nothing");
        assert!(required(r#"[{},{"matchFields":[{"key":"metadata.name","operator":"In","values":["a"]}]}]"#));
        assert!(!required(r#"[{"matchFields":[{"key":"metadata.name","operator":"In","values":["b"]}]}]"#));
        assert!(required(r#"[{"matchExpressions":[{"key":"cores","operator":"Gt","values":["4"]}]}]"#));
        assert!(!required(r#"[{"matchExpressions":[{"key":"cores","operator":"Lt","values":["4"]}]}]"#));
        assert!(!required(r#"[{"matchExpressions":[{"key":"zone","operator":"In","values":["x"]},{"key":"gpu","operator":"Exists"}]}]"#));
    }

    #[test]
    fn each_operator() {
        let holds = |operator: &str, values: &[&str], value: Option<&str>| {
            let values = values.iter().map(|v| v.to_string()).collect();
            holds(&NodeSelectorRequirement { key: "k".into(), operator: operator.into(), values: Some(values) }, value)
        };
        assert!(holds("In", &["a", "b"], Some("b")) && !holds("In", &["a"], Some("b")) && !holds("In", &["a"], None));
        assert!(holds("NotIn", &["a"], Some("b")) && holds("NotIn", &["a"], None) && !holds("NotIn", &["a", "b"], Some("b")));
        assert!(holds("Exists", &[], Some("")) && !holds("Exists", &[], None));
        assert!(holds("DoesNotExist", &[], None) && !holds("DoesNotExist", &[], Some("")));
        assert!(holds("Gt", &["4"], Some("5")) && !holds("Gt", &["4"], Some("4")) && !holds("Gt", &["4"], Some("x")) && !holds("Gt", &["x"], Some("5")));
        assert!(holds("Lt", &["4"], Some("3")) && !holds("Lt", &["4"], Some("4")) && !holds("Lt", &["4"], None) && !holds("Lt", &[], Some("3")));
        assert!(!holds("Near", &["4"], Some("4")));
    }
}
