//! The objects of `flowcontrol.apiserver.k8s.io` that every cluster has: upstream's mandatory ones, which are always as
//! they are here, and its suggested ones, which administrators may change. Defaults are filled in.

use serde_json::{Value, json};

/// The group of flow schemas and priority levels.
pub const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// Says whether an object's spec follows the server's: `true` until an administrator takes it over.
pub const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
/// The level that knows no limits, and the schema that leads there.
pub const EXEMPT: &str = "exempt";
/// The level and the schema of what nothing else matches.
pub const CATCH_ALL: &str = "catch-all";

/// Priority levels that are kept as they are here (of `exempt` all but the shares).
pub fn mandatory_levels() -> Vec<Value> {
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    vec![level(CATCH_ALL, limited(5, 0, json!({"type": "Reject"}))), level(EXEMPT, exempt)]
}

/// Flow schemas that are kept as they are here.
pub fn mandatory_schemas() -> Vec<Value> {
    vec![
        schema(EXEMPT, EXEMPT, 1, "", &[group("system:masters")], everything()),
        schema(CATCH_ALL, CATCH_ALL, 10000, "ByUser", &everybody(), everything()),
    ]
}

/// Priority levels to begin with.
pub fn suggested_levels() -> Vec<Value> {
    let queue = |queues: i64, hand: i64| json!({"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 50}});
    vec![
        level("system", limited(30, 33, queue(64, 6))),
        level("node-high", limited(40, 25, queue(64, 6))),
        level("leader-election", limited(10, 0, queue(16, 4))),
        level("workload-high", limited(40, 50, queue(128, 6))),
        level("workload-low", limited(100, 90, queue(128, 6))),
        level("global-default", limited(20, 50, queue(128, 6))),
    ]
}

/// Flow schemas to begin with.
pub fn suggested_schemas() -> Vec<Value> {
    let kube_system = || json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube-system"}});
    let nodes = [group("system:nodes")];
    let managers = [user("system:kube-controller-manager"), user("system:kube-scheduler"), kube_system()];
    let health = json!([{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]);
    let leases = |verbs: &[&str]| rule(verbs, "coordination.k8s.io", &["leases"], false);
    let of_nodes = json!([rule(&["*"], "", &["nodes", "nodes/status"], true), leases(&["*"])]);
    vec![
        schema("system-nodes", "system", 500, "ByUser", &nodes, everything()),
        schema("system-node-high", "node-high", 400, "ByUser", &nodes, (of_nodes, Value::Null)),
        schema("probes", EXEMPT, 2, "", &everybody(), (Value::Null, health)),
        schema("system-leader-election", "leader-election", 100, "ByUser", &managers, (json!([leases(&["get", "create", "update"])]), Value::Null)),
        schema("kube-controller-manager", "workload-high", 800, "ByNamespace", &managers[..1], everything()),
        schema("kube-scheduler", "workload-high", 800, "ByNamespace", &managers[1..2], everything()),
        schema("kube-system-service-accounts", "workload-high", 900, "ByNamespace", &managers[2..], everything()),
        schema("service-accounts", "workload-low", 9000, "ByUser", &[group("system:serviceaccounts")], everything()),
        schema("global-default", "global-default", 9900, "ByUser", &everybody(), everything()),
    ]
}

/// Whether queues and hands of this size leave enough of a flow's hash for shuffle sharding: the bits that are needed.
pub fn entropy_bits(queues: i64, hand: i64) -> i64 {
    ((queues as f64).log2() * hand as f64).ceil() as i64
}

/// As many bits of a hash may be needed.
pub const MAX_ENTROPY_BITS: i64 = 60;

fn named(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind,
        "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}}, "spec": spec})
}

fn level(name: &str, spec: Value) -> Value {
    named("PriorityLevelConfiguration", name, spec)
}

fn limited(shares: i64, lendable: i64, response: Value) -> Value {
    json!({"type": "Limited", "limited": {"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response}})
}

fn schema(name: &str, level: &str, precedence: i64, method: &str, subjects: &[Value], (resources, others): (Value, Value)) -> Value {
    let mut rule = json!({"subjects": subjects});
    for (key, rules) in [("resourceRules", resources), ("nonResourceRules", others)] {
        if !rules.is_null() {
            rule[key] = rules;
        }
    }
    let mut spec = json!({"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": [rule]});
    if !method.is_empty() {
        spec["distinguisherMethod"] = json!({"type": method});
    }
    named("FlowSchema", name, spec)
}

fn everything() -> (Value, Value) {
    (json!([rule(&["*"], "*", &["*"], true)]), json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]))
}

fn rule(verbs: &[&str], group: &str, resources: &[&str], cluster: bool) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
    if cluster {
        rule["clusterScope"] = true.into();
    }
    rule
}

fn everybody() -> [Value; 2] {
    [group("system:unauthenticated"), group("system:authenticated")]
}

fn group(name: &str) -> Value {
    json!({"kind": "Group", "group": {"name": name}})
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "user": {"name": name}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_to_defaults_and_nothing_is_wrong() {
        let all = [mandatory_levels(), suggested_levels(), mandatory_schemas(), suggested_schemas()].concat();
        assert_eq!(all.len(), 8 + 11);
        for object in all {
            let kind = object["kind"].as_str().unwrap();
            let mut with_defaults = object.clone();
            crate::defaults::apply(GROUP, "v1", kind, &mut with_defaults);
            assert_eq!(with_defaults, object);
            let resource = crate::resources::all().iter().find(|r| r.group == GROUP && r.kind == kind).unwrap();
            assert_eq!(crate::validate::create(resource, &object), [], "{object}");
        }
        assert_eq!((entropy_bits(128, 6), entropy_bits(64, 8), entropy_bits(512, 8)), (42, 48, 72));
    }
}
