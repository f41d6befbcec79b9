//! What is said to Windows, and what cannot be said to it.

use super::at::At;
use crate::names;
use serde_json::Value;

/// Longest credential specification, in KiB.
const MAX_CREDENTIALS: usize = 64;
/// Longest domain of a user, and longest name in it.
const MAX_DOMAIN: usize = 256;
const MAX_USER: usize = 104;

/// Fields of a pod that are Linux's.
const POD: [&[&str]; 15] = [
    &["securityContext", "appArmorProfile"],
    &["securityContext", "seLinuxOptions"],
    &["hostUsers"],
    &["hostPID"],
    &["hostIPC"],
    &["securityContext", "seccompProfile"],
    &["securityContext", "fsGroup"],
    &["securityContext", "fsGroupChangePolicy"],
    &["securityContext", "sysctls"],
    &["shareProcessNamespace"],
    &["securityContext", "runAsUser"],
    &["securityContext", "runAsGroup"],
    &["securityContext", "supplementalGroups"],
    &["securityContext", "supplementalGroupsPolicy"],
    &["securityContext", "seLinuxChangePolicy"],
];
/// Those of a container.
const CONTAINER: [&[&str]; 10] = [
    &["securityContext", "appArmorProfile"],
    &["securityContext", "seLinuxOptions"],
    &["securityContext", "seccompProfile"],
    &["securityContext", "capabilities"],
    &["securityContext", "readOnlyRootFilesystem"],
    &["securityContext", "privileged"],
    &["securityContext", "allowPrivilegeEscalation"],
    &["securityContext", "procMount"],
    &["securityContext", "runAsUser"],
    &["securityContext", "runAsGroup"],
];

/// All containers of a pod's specification.
fn containers<'a>(spec: &At<'a>) -> impl Iterator<Item = At<'a>> {
    ["initContainers", "containers", "ephemeralContainers"].map(|list| spec.at(list).items()).into_iter().flatten()
}

/// `windowsOptions` of a pod or container.
pub fn options(at: &At<'_>) {
    let (name, credentials, user) = (at.at("gmsaCredentialSpecName"), at.at("gmsaCredentialSpec"), at.at("runAsUserName"));
    if name.set() {
        name.check(names::dns1123_subdomain);
    }
    if credentials.set() && credentials.text().is_empty() {
        credentials.invalid("gmsaCredentialSpec cannot be an empty string");
    } else if credentials.text().len() > MAX_CREDENTIALS << 10 {
        credentials.invalid(format!("gmsaCredentialSpec size must be under {MAX_CREDENTIALS} KiB"));
    }
    if user.set() {
        user_name(&user);
    }
}

/// `user` or `domain\user`.
fn user_name(at: &At<'_>) {
    let text = at.text();
    if text.is_empty() {
        return at.invalid("runAsUserName cannot be an empty string");
    }
    if text.bytes().any(|b| b.is_ascii_control()) {
        return at.invalid("runAsUserName cannot contain control characters");
    }
    let (domain, user) = match text.split_once('\\') {
        Some((_, rest)) if rest.contains('\\') => return at.invalid("runAsUserName cannot contain more than one backslash"),
        Some((domain, user)) => (Some(domain), user),
        None => (None, text),
    };
    if let Some(domain) = domain {
        if domain.len() >= MAX_DOMAIN {
            at.invalid(format!("runAsUserName's Domain length must be under {MAX_DOMAIN} characters"));
        }
        if !is_netbios(domain) && !is_dns(domain) {
            at.invalid("runAsUserName's Domain doesn't match the NetBios nor the DNS format");
        }
    }
    if user.is_empty() {
        at.invalid("runAsUserName's User cannot be empty");
    } else if user.len() > MAX_USER {
        at.invalid(format!("runAsUserName's User length must not be longer than {MAX_USER} characters"));
    }
    if !user.is_empty() && user.chars().all(|c| ". ".contains(c)) {
        at.invalid("runAsUserName's User cannot contain only periods or spaces");
    }
    if user.contains(|c| "\"/\\:;|=,+*?<>@[]".contains(c)) {
        at.invalid("runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]");
    }
}

fn is_netbios(domain: &str) -> bool {
    (1..=15).contains(&domain.chars().count()) && !domain.starts_with('.') && !domain.contains(|c| "\\/:*?\"<>|".contains(c))
}

fn is_dns(domain: &str) -> bool {
    domain.split('.').all(|label| {
        let plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        (1..=63).contains(&label.len()) && plain && !label.starts_with('-') && !label.ends_with('-')
    })
}

/// Processes of the host: all containers are such, or none.
pub fn host_process(spec: &At<'_>) {
    let of = |at: &At<'_>| at.down(&["securityContext", "windowsOptions", "hostProcess"]).v.as_bool();
    let (pod, mut all, mut such) = (of(spec), 0, 0);
    for container in containers(spec) {
        let own = of(&container);
        if let (Some(pod), Some(own)) = (pod, own)
            && pod != own
        {
            container.down(&["securityContext", "windowsOptions", "hostProcess"]).invalid(format!("pod hostProcess value must be identical if both are specified, was {pod}"));
        }
        all += 1;
        such += usize::from(own.or(pod) == Some(true));
    }
    if such == 0 {
        return;
    }
    if such != all {
        spec.invalid_as("", "If pod contains any hostProcess containers then all containers must be HostProcess containers");
    }
    if !spec.at("hostNetwork").yes() {
        spec.at("hostNetwork").invalid_as(false, "hostNetwork must be true if pod contains any hostProcess containers");
    }
}

/// Fields of the one system are none of the other's.
pub fn operating_system(spec: &At<'_>) {
    // off is as good as not there for two of them, and so are empty lists
    let is_there = |field: &At<'_>| match field.v {
        Value::Bool(false) => !["hostPID", "hostIPC"].iter().any(|name| std::ptr::eq(field.v, spec.at(name).v)),
        Value::Array(items) => !items.is_empty(),
        other => !other.is_null(),
    };
    let refuse = |at: &At<'_>, ways: &[&[&str]], why: &str| {
        for field in ways.iter().map(|way| at.down(way)).filter(is_there) {
            field.forbidden(why);
        }
    };
    let (pod, container, why): (&[&[&str]], &[&[&str]], _) = match spec.down(&["os", "name"]).text() {
        "windows" => (&POD, &CONTAINER, "cannot be set for a windows pod"),
        _ => (&[&["securityContext", "windowsOptions"]], &[&["securityContext", "windowsOptions"]], "windows options cannot be set for a linux pod"),
    };
    refuse(spec, pod, why);
    containers(spec).for_each(|c| refuse(&c, container, why));
}

/// What is refused where nothing may be privileged.
pub fn privileged(spec: &At<'_>) {
    let mut host = spec.down(&["securityContext", "windowsOptions", "hostProcess"]).yes();
    for container in containers(spec) {
        let context = container.at("securityContext");
        if context.at("privileged").yes() {
            context.at("privileged").forbidden("disallowed by cluster policy");
        }
        host |= context.down(&["windowsOptions", "hostProcess"]).yes();
    }
    if host {
        spec.forbidden("hostProcess containers are disallowed by cluster policy");
    }
}
