//! Flow schemas and priority levels.

use super::at::{At, same};
use crate::field::FieldError;
use crate::flowcontrol::{self, EXEMPT, MAX_ENTROPY_BITS, entropy_bits};
use crate::names;
use crate::seen::Seen;
use serde_json::{Value, json};

const MAX_PRECEDENCE: i64 = 10_000;
const MAX_QUEUES: i64 = 10_000_000;
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
/// An annotation that only upstream's v1beta3 knows.
const ZERO_SHARES: &str = "flowcontrol.k8s.io/v1beta3-preserve-zero-concurrency-shares";

/// A flow schema, its status included.
pub fn schema(at: &At<'_>) {
    let (spec, name) = (at.at("spec"), at.down(&["metadata", "name"]).text());
    let precedence = spec.at("matchingPrecedence");
    let number = precedence.int_or(0);
    if number <= 0 {
        precedence.invalid_as(number, "must be a positive value");
    }
    if number > MAX_PRECEDENCE {
        precedence.invalid(format!("must not be greater than {MAX_PRECEDENCE}"));
    }
    if number == 1 && name != EXEMPT {
        precedence.invalid("only the schema named 'exempt' may have matchingPrecedence 1");
    }
    let method = spec.at("distinguisherMethod");
    if method.set() && !matches!(method.at("type").text(), "ByNamespace" | "ByUser") {
        let shown = json!({"Type": method.at("type").text()});
        at.push(FieldError::not_supported(&method.at("type").path, shown, &["ByNamespace", "ByUser"]));
    }
    let level = spec.down(&["priorityLevelConfiguration", "name"]);
    if level.filled().is_none() {
        level.required("must reference a priority level");
    }
    level.check_if_filled(names::dns1123_subdomain);
    spec.at("rules").items().for_each(|r| rules(&r));
    if let Some(fixed) = flowcontrol::mandatory_schemas().iter().find(|f| f["metadata"]["name"] == name)
        && !same(&fixed["spec"], spec.v)
    {
        spec.invalid(format!("spec of '{name}' must equal the fixed value"));
    }
    conditions(at);
}

/// The conditions of either kind.
pub fn conditions(at: &At<'_>) {
    let mut seen = Seen::default();
    for condition in at.down(&["status", "conditions"]).items() {
        let kind = condition.at("type");
        if !seen.add(kind.text()) {
            kind.duplicate();
        }
        if kind.filled().is_none() {
            kind.required("");
        }
    }
}

fn rules(at: &At<'_>) {
    let subjects = at.at("subjects");
    if subjects.is_empty() {
        subjects.required("subjects must contain at least one value");
    }
    subjects.items().for_each(|s| subject(&s));
    let (resources, others) = (at.at("resourceRules"), at.at("nonResourceRules"));
    if resources.is_empty() && others.is_empty() {
        at.required("at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    resources.items().for_each(|r| resource_rule(&r));
    for rule in others.items() {
        verbs(&rule.at("verbs"));
        let urls = rule.at("nonResourceURLs");
        if urls.is_empty() {
            urls.required("nonResourceURLs must contain at least one value");
        } else if !alone(&urls, "other non-resource URLs") {
            urls.items().for_each(|u| url(&u));
        }
    }
}

fn subject(at: &At<'_>) {
    let (account, group, user) = (at.at("serviceAccount"), at.at("group"), at.at("user"));
    let kind = at.at("kind").text();
    match kind {
        "ServiceAccount" if !account.set() => account.required("serviceAccount is required when subject kind is 'ServiceAccount'"),
        "ServiceAccount" => {
            let (name, namespace) = (account.at("name"), account.at("namespace"));
            match name.filled() {
                None => name.required(""),
                Some("*") => {}
                Some(_) => name.check(names::dns1123_subdomain),
            }
            if namespace.filled().is_none() {
                namespace.required("must specify namespace for service account");
            }
            namespace.check_if_filled(names::dns1123_label);
        }
        "User" | "Group" => {
            let (one, field) = if kind == "User" { (&user, "user") } else { (&group, "group") };
            if !one.set() {
                one.required(&format!("{field} is required when subject kind is '{kind}'"));
            } else if one.at("name").filled().is_none() {
                one.at("name").required("");
            }
        }
        _ => {
            at.push(FieldError::not_supported(&at.at("kind").path, kind, &["Group", "ServiceAccount", "User"]));
            return;
        }
    }
    for (one, field, of) in [(account, "serviceAccount", "ServiceAccount"), (user, "user", "User"), (group, "group", "Group")] {
        if kind != of && one.set() {
            one.forbidden(format!("{field} is forbidden when subject kind is not '{of}'"));
        }
    }
}

fn has_wildcard(list: &At<'_>) -> bool {
    list.items().any(|i| i.text() == "*")
}

/// Whether a list has the wildcard, which stands alone.
fn alone(list: &At<'_>, others: &str) -> bool {
    let wild = has_wildcard(list);
    if wild && list.len() > 1 {
        list.invalid(format!("if '*' is present, must not specify {others}"));
    }
    wild
}

fn verbs(at: &At<'_>) {
    if at.is_empty() {
        at.required("verbs must contain at least one value");
    } else if !alone(at, "other verbs") && at.items().any(|v| !VERBS.contains(&v.text())) {
        at.not_supported(VERBS);
    }
}

fn resource_rule(at: &At<'_>) {
    verbs(&at.at("verbs"));
    for (field, one, others) in [("apiGroups", "api group", "other api groups"), ("resources", "resource", "other resources")] {
        let list = at.at(field);
        if list.is_empty() {
            list.required(&format!("resource rules must supply at least one {one}"));
        } else {
            alone(&list, others);
        }
    }
    let namespaces = at.at("namespaces");
    if namespaces.is_empty() && !at.at("clusterScope").yes() {
        namespaces.required("resource rules that are not cluster scoped must supply at least one namespace");
    } else if !alone(&namespaces, "other namespaces") {
        for namespace in namespaces.items() {
            for message in names::dns1123_label(namespace.text()) {
                namespace.invalid(format!("each member of this list must be '*' or a DNS-1123 label; {message}"));
            }
        }
    }
}

/// The path of a rule for what is no resource.
fn url(at: &At<'_>) {
    let path = at.text();
    let stars = path.matches('*').count();
    let why = match () {
        () if path.is_empty() => "must not be empty",
        () if path == "/" => return,
        () if !path.starts_with('/') => "must start with slash",
        () if path.contains(' ') => "must not contain white-space",
        () if path.contains("//") => "must not contain double slash",
        () if stars > 1 || stars == 1 && !path.ends_with("/*") => "wildcard can only do suffix matching",
        () => return,
    };
    at.invalid_as(path, why);
}

/// A priority level, its status included.
pub fn level(at: &At<'_>) {
    let (spec, name) = (at.at("spec"), at.down(&["metadata", "name"]).text());
    let annotations = at.down(&["metadata", "annotations"]);
    if annotations.at(ZERO_SHARES).set() {
        annotations.forbidden(format!("annotation '{ZERO_SHARES}' is forbidden"));
    }
    let (kind, exempt, limited) = (spec.at("type"), spec.at("exempt"), spec.at("limited"));
    if (name == EXEMPT) != (kind.text() == "Exempt") {
        kind.invalid_as(kind.text(), "must be 'Exempt' if and only if `name` is 'exempt'");
    }
    match kind.text() {
        "Exempt" => {
            if limited.set() {
                limited.forbidden("must be nil if the type is not Limited");
            }
            shares(&exempt);
            lendable(&exempt);
        }
        "Limited" => {
            if exempt.set() {
                exempt.forbidden("must be nil if the type is Limited");
            }
            if limited.set() {
                shares(&limited);
                response(&limited.at("limitResponse"));
                lendable(&limited);
                let borrowing = limited.at("borrowingLimitPercent");
                if borrowing.int_or(0) < 0 {
                    borrowing.invalid("if specified, must be a non-negative integer");
                }
            } else {
                limited.required("must not be empty when type is Limited");
            }
        }
        other => at.push(FieldError::not_supported(&kind.path, other, &["Exempt", "Limited"])),
    }
    if let Some(fixed) = flowcontrol::mandatory_levels().iter().find(|f| f["metadata"]["name"] == name) {
        let (mut fixed, mut found) = (fixed["spec"].clone(), spec.v.clone());
        let mut beside = "";
        if name == EXEMPT {
            // the shares are the administrator's
            beside = " except the 'spec.exempt' field";
            for spec in [&mut fixed, &mut found] {
                if let Value::Object(spec) = spec {
                    spec.remove("exempt");
                }
            }
        }
        if !same(&fixed, &found) {
            spec.invalid(format!("spec of '{name}'{beside} must equal the fixed value"));
        }
    }
    conditions(at);
}

fn shares(at: &At<'_>) {
    let shares = at.at("nominalConcurrencyShares");
    if shares.int_or(0) < 0 {
        shares.invalid("must be a non-negative integer");
    }
}

fn lendable(at: &At<'_>) {
    let lendable = at.at("lendablePercent");
    if !(0..=100).contains(&lendable.int_or(0)) {
        lendable.invalid("must be between 0 and 100, inclusive");
    }
}

fn response(at: &At<'_>) {
    let queuing = at.at("queuing");
    match at.at("type").text() {
        "Reject" => {
            if queuing.set() {
                queuing.forbidden("must be nil if limited.limitResponse.type is not Limited");
            }
        }
        "Queue" if !queuing.set() => queuing.required("must not be empty if limited.limitResponse.type is Limited"),
        "Queue" => {
            let [length, queues, hand] = ["queueLengthLimit", "queues", "handSize"].map(|f| queuing.at(f));
            let of = |n: &At<'_>| n.int_or(0);
            if of(&length) <= 0 {
                length.invalid_as(of(&length), "must be positive");
            }
            if of(&queues) <= 0 {
                queues.invalid_as(of(&queues), "must be positive");
            } else if of(&queues) > MAX_QUEUES {
                queues.invalid(format!("must not be greater than {MAX_QUEUES}"));
            }
            if of(&hand) <= 0 {
                hand.invalid_as(of(&hand), "must be positive");
            } else if of(&hand) > of(&queues) {
                hand.invalid(format!("should not be greater than queues ({})", of(&queues)));
            } else if entropy_bits(of(&queues), of(&hand)) > MAX_ENTROPY_BITS {
                hand.invalid(format!(
                    "required entropy bits of deckSize {} and handSize {} should not be greater than {MAX_ENTROPY_BITS}",
                    of(&queues),
                    of(&hand)
                ));
            }
        }
        other => at.push(FieldError::not_supported(&at.at("type").path, other, &["Queue", "Reject"])),
    }
}
