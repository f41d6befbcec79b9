//! Quotas and limit ranges.

use super::at::At;
use super::container::{container_resource_name, is_huge_page, is_native, resource_amount, resource_name};
use super::meta::same_members;
use crate::names;
use crate::quantity::Quantity;
use crate::seen::Seen;

const SCOPES: &[&str] =
    &["BestEffort", "CrossNamespacePodAffinity", "NotBestEffort", "NotTerminating", "PriorityClass", "Terminating", "VolumeAttributesClass"];
const QUOTA: &[&str] = &[
    "cpu", "memory", "ephemeral-storage", "requests.cpu", "requests.memory", "requests.storage", "requests.ephemeral-storage", "limits.cpu",
    "limits.memory", "limits.ephemeral-storage", "pods", "resourcequotas", "services", "replicationcontrollers", "secrets",
    "persistentvolumeclaims", "configmaps", "services.nodeports", "services.loadbalancers",
];
const POD_COMPUTE: &[&str] = &["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];

fn is_standard(name: &str) -> bool {
    QUOTA.contains(&name) || is_huge_page(name) || name.starts_with("requests.hugepages-")
}

/// Amounts that a quota limits, or that are used of it.
fn amounts(at: &At<'_>) {
    for (name, q) in at.entries() {
        resource_name(&q, name);
        if !name.contains('/') && !is_standard(name) {
            q.invalid_as(name, "must be a standard resource for quota");
        }
        resource_amount(&q, name);
    }
}

fn counts_in(scope: &str, resource: &str) -> bool {
    match scope {
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => resource == "pods" || POD_COMPUTE.contains(&resource),
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => ["persistentvolumeclaims", "requests.storage"].contains(&resource),
        _ => true,
    }
}

/// A quota's spec.
pub fn resource_quota(spec: &At<'_>, old: Option<&At<'_>>) {
    let hard = spec.at("hard");
    amounts(&hard);
    let mut standard: Vec<&str> = hard.entries().map(|(name, _)| name).filter(|n| is_standard(n)).collect();
    standard.sort_unstable();
    let conflicting = |of: &[&str]| [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]].iter().filter(|pair| pair.iter().all(|s| of.contains(s))).count();

    let scopes = spec.at("scopes");
    for scope in scopes.items() {
        if !SCOPES.contains(&scope.text()) {
            scopes.invalid("unsupported scope");
        }
        for _ in standard.iter().filter(|r| !counts_in(scope.text(), r)) {
            scopes.invalid("unsupported scope applied to resource");
        }
    }
    let named: Vec<&str> = scopes.items().map(|s| s.text()).collect();
    (0..conflicting(&named)).for_each(|_| scopes.invalid("conflicting scopes"));

    let selector = spec.at("scopeSelector");
    let list = selector.at("matchExpressions");
    let mut named: Vec<&str> = Vec::new();
    for e in list.items() {
        let (scope, operator, values) = (e.at("scopeName").text(), e.at("operator").text(), e.at("values").named(list.path.child("values")));
        if !SCOPES.contains(&scope) {
            list.named(list.path.child("scopeName")).invalid_as(scope, "unsupported scope");
        }
        for _ in standard.iter().filter(|r| !counts_in(scope, r)) {
            list.invalid_as(selector.v.clone(), "unsupported scope applied to resource");
        }
        let at = list.named(list.path.child("operator"));
        if matches!(scope, "BestEffort" | "NotBestEffort" | "Terminating" | "NotTerminating" | "CrossNamespacePodAffinity") && operator != "Exists" {
            at.invalid_as(
                operator,
                "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                 ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
            );
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => values.required("must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"),
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if !values.is_empty() => values.invalid("must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector"),
            "Exists" | "DoesNotExist" => {}
            _ => at.invalid_as(operator, "not a valid selector operator"),
        }
        named.push(scope);
    }
    (0..conflicting(&named)).for_each(|_| list.invalid_as(scopes.v.clone(), "conflicting scopes"));
    if old.is_some_and(|o| !same_members(&scopes, &o.at("scopes"))) {
        scopes.invalid("field is immutable");
    }
}

/// A quota's status.
pub fn quota_status(status: &At<'_>) {
    amounts(&status.at("hard"));
    amounts(&status.at("used"));
}

/// A limit range's spec.
pub fn limit_range(spec: &At<'_>) {
    let mut seen = Seen::default();
    for l in spec.at("limits").items() {
        let kind = l.at("type");
        kind.check(names::qualified_name);
        if names::qualified_name(kind.text()).is_empty() && !kind.text().contains('/') && !["Pod", "Container", "PersistentVolumeClaim"].contains(&kind.text()) {
            kind.invalid("must be a standard limit type or fully qualified");
        }
        if !seen.add(kind.text()) {
            kind.duplicate();
        }
        let pod = kind.text() == "Pod";
        for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            let at = l.at(list);
            if pod && list.starts_with("default") {
                if !at.is_empty() {
                    at.forbidden("may not be specified when `type` is 'Pod'");
                }
                continue;
            }
            if list == "maxLimitRequestRatio" && kind.text() == "PersistentVolumeClaim" && !l.at("min").at("storage").set() && !l.at("max").at("storage").set() {
                l.at("limits").required("either minimum or maximum storage value is required, but neither was provided");
            }
            for (name, q) in at.entries() {
                if pod || kind.text() == "Container" {
                    container_resource_name(&q, name);
                } else {
                    resource_name(&q, name);
                }
            }
        }
        limits_of(&l, pod);
    }
}

/// How the amounts of one limit stand to each other.
fn limits_of(l: &At<'_>, pod: bool) {
    let (mut resources, mut seen) = (Vec::new(), Seen::default());
    for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        resources.extend(l.at(list).entries().map(|(name, _)| name).filter(|name| (!pod || !list.starts_with("default")) && seen.add(*name)));
    }
    for name in resources {
        let of = |list: &str| if pod && list.starts_with("default") { None } else { l.at(list).at(name).quantity() };
        let (min, max, default, request, ratio) = (of("min"), of("max"), of("default"), of("defaultRequest"), of("maxLimitRequestRatio"));
        let report = |list: &str, shown: &Quantity, detail: String| l.named(l.path.child(list).key(name)).invalid_as(shown.canonical(), detail);
        let above = |a: &Option<Quantity>, b: &Option<Quantity>| matches!((a, b), (Some(a), Some(b)) if a > b);
        let text = |q: &Option<Quantity>| q.as_ref().map(Quantity::canonical).unwrap_or_default();
        let ordered = |low: &Option<Quantity>, low_name: &str, high: &Option<Quantity>, high_name: &str, list: &str, shown: &Option<Quantity>| {
            if above(low, high)
                && let Some(shown) = shown
            {
                report(list, shown, format!("{low_name} value {} is greater than {high_name} value {}", text(low), text(high)));
            }
        };
        ordered(&min, "min", &max, "max", "min", &min);
        ordered(&min, "min", &request, "default request", "defaultRequest", &request);
        ordered(&request, "default request", &max, "max", "defaultRequest", &request);
        ordered(&request, "default request", &default, "default limit", "defaultRequest", &request);
        ordered(&min, "min", &default, "default", "default", &min);
        ordered(&default, "default", &max, "max", "default", &max);
        if let Some(ratio) = &ratio {
            if ratio.milli_value() < 1000 {
                report("maxLimitRequestRatio", ratio, format!("ratio {} is less than 1", ratio.canonical()));
            }
            if let (Some(min), Some(max)) = (&min, &max) {
                let most = max.milli_value() as f64 / min.milli_value() as f64;
                if ratio.milli_value() as f64 / 1000.0 > most {
                    report("maxLimitRequestRatio", ratio, format!("ratio {} is greater than max/min = {most:.6}", ratio.canonical()));
                }
            }
        }
        if is_native(name) && !is_huge_page(name) {
            continue;
        }
        if let (Some(default), Some(request)) = (&default, &request)
            && default != request
        {
            let detail = format!("default value {} must equal to defaultRequest value {} in {name}", default.canonical(), request.canonical());
            report("defaultRequest", request, detail);
        }
    }
}
