//! Addresses and ranges of Services, and classes of ingresses.

use super::at::At;
use super::net;
use crate::names;

const MAX_CONTROLLER: usize = 250;

/// What is wrong with the name of an IPAddress, which is the address.
pub fn address_name(name: &str) -> Vec<String> {
    let errs = super::Errors::default();
    let value = serde_json::Value::from(name);
    let at = At::root(&value, &errs);
    if let Some(ip) = net::ip(&at)
        && ip.to_string() != name
    {
        at.invalid(format!("must be in canonical form ({:?})", ip.to_string()));
    }
    errs.into_inner().into_iter().map(|e| e.detail).collect()
}

/// An IPAddress.
pub fn address(spec: &At<'_>, old: Option<&At<'_>>) {
    let parent = spec.at("parentRef");
    parent_reference(&parent);
    if let Some(old) = old {
        parent.immutable(&old.at("parentRef"));
    }
}

fn parent_reference(parent: &At<'_>) {
    if !parent.set() {
        return parent.required("");
    }
    parent.at("group").check_if_filled(names::dns1123_subdomain);
    for field in ["resource", "name"] {
        named(&parent.at(field));
    }
    parent.at("namespace").check_if_filled(names::path_segment);
}

fn named(at: &At<'_>) {
    match at.filled() {
        None => at.required(""),
        Some(_) => at.check(names::path_segment),
    }
}

/// A ServiceCIDR: a range, or one of each family. A second one may be added later.
pub fn service_cidr(spec: &At<'_>, old: Option<&At<'_>>) {
    let cidrs = spec.at("cidrs");
    if let Some(old) = old {
        let before = old.at("cidrs");
        let grows = before.len() == 1 && cidrs.len() == 2;
        if before.len() != cidrs.len() && !grows {
            return cidrs.invalid("field is immutable");
        }
        for (cidr, before) in cidrs.items().zip(before.items()).filter(|(a, b)| a.v != b.v) {
            cidr.immutable(&before);
        }
        if !grows {
            return;
        }
    }
    match cidrs.len() {
        0 => return cidrs.required("at least one CIDR required"),
        1 | 2 => {}
        _ => return cidrs.invalid_as(spec.v.clone(), "may only hold up to 2 values"),
    }
    let mut families = Vec::new();
    for cidr in cidrs.items() {
        let before = spec.errs.borrow().len();
        if let Some((ip, bits)) = net::cidr(&cidr) {
            families.push(ip.is_ipv4());
            if spec.errs.borrow().len() == before && format!("{ip}/{bits}") != cidr.text() {
                cidr.invalid(format!("must be in canonical form ({:?})", format!("{ip}/{bits}")));
            }
        }
    }
    if families.len() == 2 && families[0] == families[1] {
        cidrs.invalid("may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64");
    }
}

/// A class of ingresses.
pub fn ingress_class(spec: &At<'_>, old: Option<&At<'_>>) {
    let controller = spec.at("controller");
    if let Some(old) = old {
        if controller.text() != old.at("controller").text() {
            controller.invalid_as(controller.text(), "field is immutable");
        }
    }
    if controller.text().len() > MAX_CONTROLLER {
        controller.too_long(MAX_CONTROLLER);
    }
    domain_prefixed_path(&controller);
    let parameters = spec.at("parameters");
    if !parameters.set() {
        return;
    }
    if parameters.at("apiGroup").set() {
        parameters.at("apiGroup").check(names::dns1123_subdomain);
    }
    for field in ["kind", "name"] {
        named(&parameters.at(field));
    }
    let (scope, namespace) = (parameters.at("scope"), parameters.at("namespace"));
    match scope.v.as_str() {
        None => scope.required(""),
        Some("Namespace") if !namespace.set() => namespace.required("`parameters.scope` is set to 'Namespace'"),
        Some("Namespace") => namespace.check(names::dns1123_label),
        Some("Cluster") if namespace.set() => namespace.forbidden("`parameters.scope` is set to 'Cluster'"),
        Some("Cluster") => {}
        Some(_) => scope.not_supported(&["Cluster", "Namespace"]),
    }
}

/// `acme.io/foo`.
fn domain_prefixed_path(at: &At<'_>) {
    let Some(text) = at.filled() else { return at.required("") };
    names::domain_prefixed_path(text).into_iter().for_each(|(part, why)| at.invalid_as(part, why));
}
