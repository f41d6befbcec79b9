//! Flow schemas and priority levels as the API has them → what requests are served by. Pure.

use std::collections::BTreeMap;

use api::flowcontrol::{self, CATCH_ALL, EXEMPT};
use serde_json::{Value, json};

use super::queues::{Discipline, Queuing};
use super::rules::{Distinguisher, Rules};
use super::share::Bounds;
use crate::object;

/// A priority level as its object describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct LevelSpec {
    pub name: String,
    pub uid: String,
    pub discipline: Discipline,
    shares: i64,
    lendable: Option<i64>,
    borrowing: Option<i64>,
}

/// A priority level with its part of the server.
#[derive(Debug, Clone, PartialEq)]
pub struct LevelPlan {
    pub spec: LevelSpec,
    pub bounds: Bounds,
    /// As many seats one request takes at most; zero is no bound.
    pub max_seats: u32,
    /// Its object is gone; it stays until nobody waits there or is served.
    pub quiescing: bool,
}

/// A flow schema as it is matched.
#[derive(Debug)]
pub struct SchemaPlan {
    pub name: String,
    pub uid: String,
    pub level: String,
    pub distinguisher: Distinguisher,
    pub rules: Rules,
}

/// What a flow schema's condition `Dangling` has to be.
#[derive(Debug, PartialEq, Eq)]
pub struct Dangling {
    pub schema: String,
    pub status: &'static str,
    pub reason: &'static str,
    pub message: String,
}

/// How requests are to be served.
#[derive(Debug)]
pub struct Plan {
    pub levels: Vec<LevelPlan>,
    /// In the order of matching; the last matches everything.
    pub schemas: Vec<SchemaPlan>,
    /// Conditions that are not as they should be.
    pub conditions: Vec<Dangling>,
}

impl LevelSpec {
    /// Nothing for an object that contradicts itself: it is as if it were not there.
    pub fn of(level: &Value) -> Option<LevelSpec> {
        let name = object::name(level).to_string();
        let spec = level.get("spec")?;
        let exempt = spec.get("type")?.as_str()? == "Exempt";
        if exempt != (name == EXEMPT) {
            return None;
        }
        let part = spec.get(if exempt { "exempt" } else { "limited" })?;
        let number = |v: &Value, key: &str| v.get(key).and_then(Value::as_i64);
        let discipline = if exempt {
            Discipline::Exempt
        } else {
            let response = part.get("limitResponse")?;
            match (response.get("type")?.as_str()?, response.get("queuing")) {
                ("Reject", None) => Discipline::Reject,
                ("Queue", Some(q)) => {
                    let positive = |key: &str| number(q, key).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
                    let (queues, hand) = (positive("queues")?, positive("handSize")?);
                    if hand > queues || flowcontrol::entropy_bits(queues as i64, hand as i64) > flowcontrol::MAX_ENTROPY_BITS {
                        return None;
                    }
                    Discipline::Queue(Queuing { queues, hand, length: positive("queueLengthLimit")? })
                }
                _ => return None,
            }
        };
        Some(LevelSpec {
            uid: object::meta(level, "uid").to_string(),
            name,
            discipline,
            shares: number(part, "nominalConcurrencyShares").unwrap_or(0).max(0),
            lendable: number(part, "lendablePercent"),
            borrowing: number(part, "borrowingLimitPercent"),
        })
    }
}

impl SchemaPlan {
    fn of(schema: &Value) -> SchemaPlan {
        let spec = schema.get("spec").unwrap_or(&Value::Null);
        let text = |path: &str| spec.pointer(path).and_then(Value::as_str).unwrap_or_default();
        SchemaPlan {
            name: object::name(schema).to_string(),
            uid: object::meta(schema, "uid").to_string(),
            level: text("/priorityLevelConfiguration/name").to_string(),
            distinguisher: match text("/distinguisherMethod/type") {
                "ByUser" => Distinguisher::User,
                "ByNamespace" => Distinguisher::Namespace,
                _ => Distinguisher::None,
            },
            rules: Rules::of(spec),
        }
    }
}

/// What to do with these objects. `busy` are the levels of before with what they were, where requests wait or are served.
pub fn plan(levels: &[&Value], schemas: &[&Value], busy: &[LevelSpec], server: i64) -> Plan {
    let mut specs: BTreeMap<String, (LevelSpec, bool)> = BTreeMap::new();
    for spec in levels.iter().filter_map(|level| LevelSpec::of(level)) {
        specs.insert(spec.name.clone(), (spec, false));
    }
    let (mut known, mut conditions) = (Vec::new(), Vec::new());
    for schema in schemas {
        let planned = SchemaPlan::of(schema);
        let found = specs.contains_key(&planned.level);
        conditions.extend(dangling(schema, &planned.level, found));
        if found {
            let precedence = schema.pointer("/spec/matchingPrecedence").and_then(Value::as_i64).unwrap_or(1000);
            known.push((precedence, planned));
        }
    }
    known.sort_by(|(a, x), (b, y)| (a, &x.name).cmp(&(b, &y.name)));
    let mut known: Vec<SchemaPlan> = known.into_iter().map(|(_, schema)| schema).collect();
    // What must be there is imagined where it is not.
    for fixed in flowcontrol::mandatory_schemas() {
        if !known.iter().any(|s| s.name == object::name(&fixed)) {
            let place = if object::name(&fixed) == EXEMPT { 0 } else { known.len() };
            known.insert(place, SchemaPlan::of(&fixed));
        }
    }
    for spec in busy {
        let mandatory = matches!(spec.name.as_str(), EXEMPT | CATCH_ALL);
        specs.entry(spec.name.clone()).or_insert_with(|| (spec.clone(), !mandatory));
    }
    for spec in flowcontrol::mandatory_levels().iter().filter_map(LevelSpec::of) {
        specs.entry(spec.name.clone()).or_insert((spec, false));
    }
    let sum = specs.values().map(|(s, _)| s.shares).sum();
    let planned = specs.into_values().map(|(spec, quiescing)| {
        let bounds = Bounds::of(server, spec.shares, sum, spec.lendable, spec.borrowing);
        let max_seats = match spec.discipline {
            Discipline::Queue(q) => bounds.max_seats(q.hand as i64),
            _ => 0,
        };
        LevelPlan { spec, bounds, max_seats, quiescing }
    });
    Plan { levels: planned.collect(), schemas: known, conditions }
}

fn dangling(schema: &Value, level: &str, found: bool) -> Option<Dangling> {
    let text = "This FlowSchema references the PriorityLevelConfiguration object named";
    let wanted = Dangling {
        schema: object::name(schema).to_string(),
        status: if found { "False" } else { "True" },
        reason: if found { "Found" } else { "NotFound" },
        message: format!("{text} {} {}", api::field::go_quote(level), if found { "and it exists" } else { "but there is no such object" }),
    };
    let conditions = schema.pointer("/status/conditions").and_then(Value::as_array);
    let now = conditions.into_iter().flatten().find(|c| c["type"] == "Dangling");
    let is = |key: &str, value: &str| now.is_some_and(|c| c[key] == value);
    let told = is("status", wanted.status) && is("reason", wanted.reason) && is("message", &wanted.message);
    (!told).then_some(wanted)
}

impl Dangling {
    /// The object to apply.
    pub fn apply(&self, now: &str) -> Value {
        let condition = json!({"type": "Dangling", "status": self.status, "reason": self.reason, "message": self.message, "lastTransitionTime": now});
        json!({"apiVersion": format!("{}/v1", flowcontrol::GROUP), "kind": "FlowSchema", "metadata": {"name": self.schema}, "status": {"conditions": [condition]}})
    }
}

/// What a default object has to become; `None` when it may stay. A mandatory one is always brought back, a suggested one
/// while nobody has taken it over.
pub fn revise(current: &Value, default: &Value, mandatory: bool) -> Option<Value> {
    let annotation = current.pointer("/metadata/annotations").and_then(|a| a.get(flowcontrol::AUTO_UPDATE)).and_then(Value::as_str);
    let told = annotation.and_then(parse_bool);
    let update = mandatory || told.unwrap_or_else(|| object::meta_i64(current, "generation") == Some(1));
    let mut wanted = default["spec"].clone();
    if object::name(default) == EXEMPT
        && let Some(exempt) = current.pointer("/spec/exempt")
    {
        // the shares are the administrator's
        wanted["exempt"] = exempt.clone();
    }
    let changed = update && current.get("spec") != Some(&wanted);
    if !changed && told == Some(update) {
        return None;
    }
    let mut revised = current.clone();
    if changed {
        revised["spec"] = wanted;
    }
    if told != Some(update) {
        revised["metadata"]["annotations"][flowcontrol::AUTO_UPDATE] = update.to_string().into();
    }
    Some(revised)
}

/// Whether an object follows the defaults, though there is no default of its name (any more).
pub fn is_unwanted(current: &Value, defaults: &[Value]) -> bool {
    let annotation = current.pointer("/metadata/annotations").and_then(|a| a.get(flowcontrol::AUTO_UPDATE)).and_then(Value::as_str);
    annotation.and_then(parse_bool) == Some(true) && !defaults.iter().any(|d| object::name(d) == object::name(current))
}

/// As Go parses it.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctx::UserInfo;
    use crate::request::RequestInfo;
    use http::Method;

    fn defaults() -> (Vec<Value>, Vec<Value>) {
        let levels = [flowcontrol::mandatory_levels(), flowcontrol::suggested_levels()].concat();
        (levels, [flowcontrol::mandatory_schemas(), flowcontrol::suggested_schemas()].concat())
    }

    fn plan_of(levels: &[Value], schemas: &[Value], busy: &[LevelSpec]) -> Plan {
        plan(&levels.iter().collect::<Vec<_>>(), &schemas.iter().collect::<Vec<_>>(), busy, 600)
    }

    fn schema_of<'a>(plan: &'a Plan, method: Method, uri: &str, user: &UserInfo) -> &'a str {
        let info = RequestInfo::parse(&method, &uri.parse().unwrap()).unwrap();
        plan.schemas.iter().find(|s| s.rules.matches(&info, user)).map_or("", |s| &s.name)
    }

    #[test]
    fn upstreams_defaults() {
        let (levels, schemas) = defaults();
        let plan = plan_of(&levels, &schemas, &[]);
        let nominal: Vec<(&str, i64, u32)> =
            plan.levels.iter().map(|l| (l.spec.name.as_str(), l.bounds.nominal, l.max_seats)).collect();
        assert_eq!(
            nominal,
            [("catch-all", 13, 0), ("exempt", 0, 0), ("global-default", 49, 8), ("leader-election", 25, 4), ("node-high", 98, 15),
                ("system", 74, 12), ("workload-high", 98, 15), ("workload-low", 245, 37)]
        );
        assert_eq!(plan.conditions.len(), schemas.len(), "nobody has been told yet");
        let user = |name: &str, groups: &[&str]| UserInfo::new(name, &[groups, &["system:authenticated"]].concat());
        let (node, admin) = (user("system:node:n", &["system:nodes"]), user("admin", &["system:masters"]));
        let account = |ns: &str| user(&format!("system:serviceaccount:{ns}:x"), &["system:serviceaccounts"]);
        for (method, uri, user, expect) in [
            (Method::GET, "/api/v1/pods", &admin, "exempt"),
            (Method::GET, "/livez", &user("u", &[]), "probes"),
            (Method::GET, "/version", &user("u", &[]), "global-default"),
            (Method::GET, "/api/v1/pods", &user("u", &[]), "global-default"),
            (Method::PATCH, "/api/v1/nodes/n/status", &node, "system-node-high"),
            (Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n", &node, "system-node-high"),
            (Method::GET, "/api/v1/pods", &node, "system-nodes"),
            (Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/l", &user("system:kube-scheduler", &[]), "system-leader-election"),
            (Method::GET, "/api/v1/pods", &user("system:kube-scheduler", &[]), "kube-scheduler"),
            (Method::GET, "/api/v1/pods", &user("system:kube-controller-manager", &[]), "kube-controller-manager"),
            (Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/x/leases/l", &account("kube-system"), "system-leader-election"),
            (Method::GET, "/api/v1/pods", &account("kube-system"), "kube-system-service-accounts"),
            (Method::GET, "/api/v1/pods", &account("default"), "service-accounts"),
            (Method::GET, "/api/v1/pods", &UserInfo::new("stranger", &[]), ""),
        ] {
            assert_eq!(schema_of(&plan, method, uri, user), expect, "{uri} {}", user.name);
        }
    }

    #[test]
    fn what_must_be_there_is_imagined() {
        let plan = plan_of(&[], &[], &[]);
        assert_eq!(plan.levels.iter().map(|l| l.spec.name.as_str()).collect::<Vec<_>>(), ["catch-all", "exempt"]);
        assert_eq!(plan.levels[0].bounds.nominal, 600);
        assert_eq!(plan.schemas.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["exempt", "catch-all"]);
    }

    #[test]
    fn schemas_without_a_level_dangle() {
        let (levels, mut schemas) = defaults();
        schemas.retain(|s| s["metadata"]["name"] == "probes");
        let mut lost = schemas[0].clone();
        lost["metadata"]["name"] = "lost".into();
        lost["spec"]["priorityLevelConfiguration"]["name"] = "gone".into();
        schemas.push(lost);
        let plan = plan_of(&levels, &schemas, &[]);
        assert_eq!(plan.schemas.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["exempt", "probes", "catch-all"]);
        let lost = &plan.conditions[1];
        assert_eq!((lost.schema.as_str(), lost.status, lost.reason), ("lost", "True", "NotFound"));
        assert_eq!(
            lost.message,
            "This FlowSchema references the PriorityLevelConfiguration object named \"gone\" but there is no such object"
        );
        let told: Vec<Value> = schemas
            .iter()
            .zip(&plan.conditions)
            .map(|(schema, condition)| {
                let mut schema = schema.clone();
                schema["status"] = condition.apply("2026-01-01T00:00:00Z")["status"].clone();
                schema
            })
            .collect();
        assert_eq!(plan_of(&levels, &told, &[]).conditions, [], "and are told so once");
    }

    #[test]
    fn a_level_that_is_gone_drains() {
        let (levels, schemas) = defaults();
        let busy: Vec<LevelSpec> = levels.iter().filter_map(LevelSpec::of).collect();
        let plan = plan_of(&levels[..2], &schemas, &busy[..3]);
        let drains: Vec<(&str, bool)> = plan.levels.iter().map(|l| (l.spec.name.as_str(), l.quiescing)).collect();
        assert_eq!(drains, [("catch-all", false), ("exempt", false), ("system", true)]);
        assert!(plan.schemas.iter().all(|s| s.level != "system"));
    }

    #[test]
    fn defaults_follow_the_server_until_taken_over() {
        let default = &flowcontrol::suggested_levels()[0];
        let mut current = default.clone();
        current["metadata"]["generation"] = 1.into();
        assert_eq!(revise(&current, default, false), None);
        current["spec"]["limited"]["nominalConcurrencyShares"] = 7.into();
        current["metadata"]["generation"] = 2.into();
        assert_eq!(revise(&current, default, false).unwrap()["spec"], default["spec"], "changed, but not taken over");
        current["metadata"]["annotations"][flowcontrol::AUTO_UPDATE] = "false".into();
        assert_eq!(revise(&current, default, false), None);
        assert_eq!(revise(&current, default, true).unwrap()["metadata"]["annotations"][flowcontrol::AUTO_UPDATE], "true");
        current["metadata"]["annotations"] = json!({});
        let marked = revise(&current, default, false).unwrap();
        assert_eq!((&marked["spec"], &marked["metadata"]["annotations"][flowcontrol::AUTO_UPDATE]), (&current["spec"], &json!("false")));
        let exempt = &flowcontrol::mandatory_levels()[1];
        let mut shares = exempt.clone();
        shares["spec"]["exempt"]["nominalConcurrencyShares"] = 9.into();
        assert_eq!(revise(&shares, exempt, true), None);
        assert!(!is_unwanted(default, &flowcontrol::suggested_levels()) && is_unwanted(default, &flowcontrol::mandatory_levels()));
    }
}
