//! APIServices: groups of the API and who answers for them.

use super::at::At;
use crate::names;

/// An APIService, whose name is made of its version and group.
pub fn api_service(at: &At<'_>) {
    let spec = at.at("spec");
    let (group, version) = (spec.at("group"), spec.at("version"));
    let name = at.down(&["metadata", "name"]);
    let wanted = format!("{}.{}", version.text(), group.text());
    if let Some(given) = name.filled() {
        let wrong = names::path_segment(given);
        if wrong.is_empty() && given != wanted {
            name.invalid(format!("must be `spec.version+\".\"+spec.group`: {wanted:?}"));
        }
        wrong.into_iter().for_each(|m| name.invalid(m));
    }
    if group.filled().is_none() && version.text() != "v1" {
        group.required("only v1 may have an empty group and it better be legacy kube");
    }
    group.check_if_filled(names::dns1123_subdomain);
    version.check(names::dns1035_label);
    for (field, most) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
        let given = spec.at(field);
        let n = given.int_or(0);
        if n <= 0 || n > most {
            given.invalid_as(n, format!("must be positive and less than {most}"));
        }
    }
    let (service, ca, insecure) = (spec.at("service"), spec.at("caBundle"), spec.at("insecureSkipTLSVerify"));
    if !service.set() {
        if let Some(bundle) = ca.filled() {
            let bytes = bundle.trim_end_matches('=').len() * 3 / 4;
            ca.invalid_as(format!("{bytes} bytes"), "local APIServices may not have a caBundle");
        }
        if insecure.yes() {
            insecure.invalid("local APIServices may not have insecureSkipTLSVerify");
        }
        return;
    }
    for field in ["namespace", "name"] {
        if service.at(field).filled().is_none() {
            service.at(field).required("");
        }
    }
    let port = service.at("port");
    let wrong = names::port_number(port.int_or(0));
    if !wrong.is_empty() {
        port.invalid_as(port.int_or(0), format!("port is not valid: {}", wrong.join(", ")));
    }
    if insecure.yes() && ca.filled().is_some() {
        insecure.invalid("may not be true if caBundle is present");
    }
}

/// The conditions of an APIService.
pub fn api_service_status(status: &At<'_>) {
    for condition in status.at("conditions").items() {
        let status = condition.at("status");
        if !matches!(status.text(), "True" | "False" | "Unknown") {
            status.not_supported(&["True", "False", "Unknown"]);
        }
    }
}
