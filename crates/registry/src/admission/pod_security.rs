//! PodSecurity: the pod security standards, chosen by namespace labels
//! (https://kubernetes.io/docs/concepts/security/pod-security-standards/). `enforce` refuses,
//! `warn` warns and `audit` tells the audit log, also about the templates of workloads.
//!
//! The checks are those of the newest version of the standards whatever version a label names.

use std::collections::BTreeSet;

use apiserver::types::Status;
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use serde_json::Value;

use super::{forbidden, is_sub};
use crate::util::{NAMESPACES, items, map, number, text, texts};

pub(super) struct PodSecurity;

const MODES: [&str; 3] = ["enforce", "audit", "warn"];
/// What the audit log is told.
const ENFORCED: &str = "pod-security.kubernetes.io/enforce-policy";
const VIOLATIONS: &str = "pod-security.kubernetes.io/audit-violations";

/// Where the pod specification is in the kinds that have a template.
const TEMPLATES: [(&str, &str, &str); 8] = [
    ("", "replicationcontrollers", "/spec/template/spec"),
    ("", "podtemplates", "/template/spec"),
    ("apps", "deployments", "/spec/template/spec"),
    ("apps", "replicasets", "/spec/template/spec"),
    ("apps", "statefulsets", "/spec/template/spec"),
    ("apps", "daemonsets", "/spec/template/spec"),
    ("batch", "jobs", "/spec/template/spec"),
    ("batch", "cronjobs", "/spec/jobTemplate/spec/template/spec"),
];

#[async_trait]
impl Admission for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        let ctx = attributes.ctx;
        let Some(object) = object.filter(|_| !ctx.namespace.is_empty()) else { return Ok(()) };
        let pod = is_sub(attributes, "", "pods", "") || is_sub(attributes, "", "pods", "ephemeralcontainers");
        let spec = if pod {
            object.get("spec")
        } else {
            TEMPLATES.iter().find(|(g, p, _)| is_sub(attributes, g, p, "")).and_then(|(_, _, at)| object.pointer(at))
        };
        let Some(spec) = spec else { return Ok(()) };
        let Some(namespace) = ctx.backend.reader.get(&NAMESPACES, "", &ctx.namespace) else { return Ok(()) };
        if pod && MODES.iter().all(|mode| policy(&namespace, mode).is_none()) {
            ctx.audit(ENFORCED, || "privileged:latest".to_owned());
            return Ok(());
        }
        // Only a change of what is judged is judged again: images and metadata may change.
        if pod && attributes.old.is_some_and(|old| ctx.subresource.is_empty() && same_but_images(spec, old.get("spec"))) {
            return Ok(());
        }
        let violates = |mode: &str| {
            let (level, version) = policy(&namespace, mode)?;
            let found = violations(object, spec, level);
            (!found.is_empty()).then(|| (format!("{level}:{version}"), found.join(", ")))
        };
        if ctx.is_audited() {
            if pod {
                ctx.audit(ENFORCED, || enforced(&namespace));
            }
            if let Some((policy, what)) = violates("audit") {
                ctx.audit(VIOLATIONS, || format!("would violate PodSecurity \"{policy}\": {what}"));
            }
        }
        if pod && let Some((policy, what)) = violates("enforce") {
            return Err(forbidden(attributes, Some(object), format!("violates PodSecurity \"{policy}\": {what}")));
        }
        if let Some((policy, what)) = violates("warn") {
            ctx.warn(format!("would violate PodSecurity \"{policy}\": {what}"));
        }
        Ok(())
    }
}

/// The policy that is enforced, by name.
fn enforced(namespace: &Value) -> String {
    match policy(namespace, "enforce") {
        Some((level, version)) => format!("{level}:{version}"),
        None => {
            let version = &namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce-version"];
            format!("privileged:{}", version.as_str().unwrap_or("latest"))
        }
    }
}

fn policy<'a>(namespace: &'a Value, mode: &str) -> Option<(&'a str, &'a str)> {
    let label = |key: String| namespace["metadata"]["labels"].get(key).and_then(Value::as_str);
    let level = label(format!("pod-security.kubernetes.io/{mode}"))?;
    let version = label(format!("pod-security.kubernetes.io/{mode}-version")).unwrap_or("latest");
    match level {
        "privileged" => None,
        "baseline" => Some((level, version)),
        // What cannot be understood is taken strictly.
        _ => Some(("restricted", version)),
    }
}

fn same_but_images(new: &Value, old: Option<&Value>) -> bool {
    let strip = |spec: &Value| {
        let mut spec = spec.clone();
        for list in ["containers", "initContainers", "ephemeralContainers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                container.as_object_mut().map(|c| c.remove("image"));
            }
        }
        for key in ["tolerations", "activeDeadlineSeconds", "terminationGracePeriodSeconds"] {
            spec.as_object_mut().map(|s| s.remove(key));
        }
        spec
    };
    old.is_some_and(|old| strip(new) == strip(old))
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["/initContainers", "/containers", "/ephemeralContainers"].into_iter().flat_map(|list| items(spec, list))
}

fn named(bad: &[&Value]) -> String {
    let names: Vec<String> = bad.iter().map(|c| format!("{:?}", text(c, "/name"))).collect();
    format!("{} {}", if bad.len() == 1 { "container" } else { "containers" }, names.join(", "))
}

fn quoted(set: &BTreeSet<String>) -> String {
    set.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ")
}

fn bad(spec: &Value, is_bad: impl Fn(&Value) -> bool) -> Vec<&Value> {
    containers(spec).filter(|c| is_bad(c)).collect()
}

const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP", "SETGID",
    "SETPCAP", "SETUID", "SYS_CHROOT",
];
const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
];
const VOLUMES: [&str; 8] =
    ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];

/// What is wrong with the pod, as `reason (detail)`; baseline's checks first.
fn violations(object: &Value, spec: &Value, level: &str) -> Vec<String> {
    let mut found = Vec::new();
    let linux = text(spec, "/os/name") != "windows";
    baseline(object, spec, &mut found);
    if level == "restricted" {
        restricted(spec, linux, &mut found);
    }
    found
}

fn baseline(object: &Value, spec: &Value, found: &mut Vec<String>) {
    let capabilities = |c: &Value| -> BTreeSet<String> {
        texts(c, "/securityContext/capabilities/add").filter(|k| !DEFAULT_CAPABILITIES.contains(k)).map(str::to_owned).collect()
    };
    let with = bad(spec, |c| !capabilities(c).is_empty());
    if !with.is_empty() {
        let all: BTreeSet<String> = with.iter().flat_map(|c| capabilities(c)).collect();
        found.push(format!("non-default capabilities ({} must not include {} in securityContext.capabilities.add)", named(&with), quoted(&all)));
    }
    let host: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|k| spec.get(k) == Some(&Value::Bool(true)))
        .map(|k| format!("{k}=true"))
        .collect();
    if !host.is_empty() {
        found.push(format!("host namespaces ({})", host.join(", ")));
    }
    let paths: Vec<String> = items(spec, "/volumes").filter(|v| v.get("hostPath").is_some()).map(|v| format!("{:?}", text(v, "/name"))).collect();
    if !paths.is_empty() {
        found.push(format!("hostPath volumes ({} {})", if paths.len() == 1 { "volume" } else { "volumes" }, paths.join(", ")));
    }
    let ports = |c: &Value| -> BTreeSet<String> {
        items(c, "/ports").filter_map(|p| number(p, "/hostPort")).filter(|p| *p != 0).map(|p| p.to_string()).collect()
    };
    let with = bad(spec, |c| !ports(c).is_empty());
    if !with.is_empty() {
        let all: BTreeSet<String> = with.iter().flat_map(|c| ports(c)).collect();
        let (verb, noun) = (if with.len() == 1 { "uses" } else { "use" }, if all.len() == 1 { "hostPort" } else { "hostPorts" });
        found.push(format!("hostPort ({} {verb} {noun} {})", named(&with), all.into_iter().collect::<Vec<_>>().join(", ")));
    }
    let with = bad(spec, |c| c.pointer("/securityContext/privileged") == Some(&Value::Bool(true)));
    if !with.is_empty() {
        found.push(format!("privileged ({} must not set securityContext.privileged=true)", named(&with)));
    }
    let mounts = bad(spec, |c| !matches!(text(c, "/securityContext/procMount"), "" | "Default"));
    if !mounts.is_empty() {
        let all: BTreeSet<String> = mounts.iter().map(|c| text(c, "/securityContext/procMount").to_owned()).collect();
        found.push(format!("procMount ({} must not set securityContext.procMount to {})", named(&mounts), quoted(&all)));
    }
    let types = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    let odd = |c: &Value| {
        !types.contains(&text(c, "/securityContext/seLinuxOptions/type"))
            || !text(c, "/securityContext/seLinuxOptions/user").is_empty()
            || !text(c, "/securityContext/seLinuxOptions/role").is_empty()
    };
    setters("seLinuxOptions", spec, odd, "set forbidden securityContext.seLinuxOptions", found);
    let unconfined = |c: &Value| text(c, "/securityContext/seccompProfile/type") == "Unconfined";
    setters("seccompProfile", spec, unconfined, "must not set securityContext.seccompProfile.type to \"Unconfined\"", found);
    let unconfined = |c: &Value| text(c, "/securityContext/appArmorProfile/type") == "Unconfined";
    setters("forbidden AppArmor profile", spec, unconfined, "must not set AppArmor profile type to \"Unconfined\"", found);
    let annotations: Vec<String> = map(object, "/metadata/annotations")
        .into_iter()
        .flatten()
        .filter(|(k, v)| k.starts_with("container.apparmor.security.beta.kubernetes.io/") && *v == "unconfined")
        .map(|(k, _)| format!("{k}=\"unconfined\""))
        .collect();
    if !annotations.is_empty() {
        found.push(format!("forbidden AppArmor profile ({})", annotations.join(", ")));
    }
    let sysctls: Vec<&str> =
        items(spec, "/securityContext/sysctls").map(|s| text(s, "/name")).filter(|s| !SYSCTLS.contains(s)).collect();
    if !sysctls.is_empty() {
        found.push(format!("forbidden sysctls ({})", sysctls.join(", ")));
    }
    let windows = |c: &Value| c.pointer("/securityContext/windowsOptions/hostProcess") == Some(&Value::Bool(true));
    setters("hostProcess", spec, windows, "must not set securityContext.windowsOptions.hostProcess=true", found);
}

/// `pod and container "a" <what>`: a check that concerns the pod's own context and each container's.
fn setters(reason: &str, spec: &Value, is_bad: impl Fn(&Value) -> bool, what: &str, found: &mut Vec<String>) {
    let with = bad(spec, &is_bad);
    let mut who = Vec::new();
    if is_bad(spec) {
        who.push("pod".to_owned());
    }
    if !with.is_empty() {
        who.push(named(&with));
    }
    if !who.is_empty() {
        found.push(format!("{reason} ({} {what})", who.join(" and ")));
    }
}

fn restricted(spec: &Value, linux: bool, found: &mut Vec<String>) {
    if linux {
        let with = bad(spec, |c| c.pointer("/securityContext/allowPrivilegeEscalation") != Some(&Value::Bool(false)));
        if !with.is_empty() {
            found.push(format!(
                "allowPrivilegeEscalation != false ({} must set securityContext.allowPrivilegeEscalation=false)",
                named(&with)
            ));
        }
        capabilities(spec, found);
    }
    let kind = |v: &Value| v.as_object().and_then(|v| v.keys().find(|k| *k != "name")).cloned().unwrap_or_default();
    let volumes: Vec<(&str, String)> = items(spec, "/volumes").map(|v| (text(v, "/name"), kind(v))).collect();
    let odd: Vec<&(&str, String)> = volumes.iter().filter(|(_, k)| !VOLUMES.contains(&k.as_str())).collect();
    if !odd.is_empty() {
        let names: Vec<String> = odd.iter().map(|(n, _)| format!("{n:?}")).collect();
        let kinds: BTreeSet<String> = odd.iter().map(|(_, k)| k.clone()).collect();
        let (noun, verb) = if odd.len() == 1 { ("volume", "uses") } else { ("volumes", "use") };
        let what = if kinds.len() == 1 { "restricted volume type" } else { "restricted volume types" };
        found.push(format!("restricted volume types ({noun} {} {verb} {what} {})", names.join(", "), quoted(&kinds)));
    }
    const NON_ROOT: &str = "/securityContext/runAsNonRoot";
    let before = found.len();
    let denies = |c: &Value| c.pointer(NON_ROOT) == Some(&Value::Bool(false));
    setters("runAsNonRoot != true", spec, denies, "must not set securityContext.runAsNonRoot=false", found);
    if found.len() == before && spec.pointer(NON_ROOT) != Some(&Value::Bool(true)) {
        let with = bad(spec, |c| c.pointer(NON_ROOT).is_none());
        if !with.is_empty() {
            found.push(format!("runAsNonRoot != true (pod or {} must set securityContext.runAsNonRoot=true)", named(&with)));
        }
    }
    let root = |c: &Value| number(c, "/securityContext/runAsUser") == Some(0);
    setters("runAsUser=0", spec, root, "must not set runAsUser=0", found);
    const SECCOMP: &str = "/securityContext/seccompProfile/type";
    if linux && text(spec, SECCOMP).is_empty() {
        let with = bad(spec, |c| text(c, SECCOMP).is_empty());
        if !with.is_empty() {
            found.push(format!(
                "seccompProfile (pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
                named(&with)
            ));
        }
    }
}

fn capabilities(spec: &Value, found: &mut Vec<String>) {
    let keeps = bad(spec, |c| !texts(c, "/securityContext/capabilities/drop").any(|d| d == "ALL"));
    let extra = |c: &Value| -> BTreeSet<String> {
        texts(c, "/securityContext/capabilities/add").filter(|a| *a != "NET_BIND_SERVICE").map(str::to_owned).collect()
    };
    let adds = bad(spec, |c| !extra(c).is_empty());
    let mut details = Vec::new();
    if !keeps.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", named(&keeps)));
    }
    if !adds.is_empty() {
        let all: BTreeSet<String> = adds.iter().flat_map(|c| extra(c)).collect();
        details.push(format!("{} must not include {} in securityContext.capabilities.add", named(&adds), quoted(&all)));
    }
    if !details.is_empty() {
        found.push(format!("unrestricted capabilities ({})", details.join("; ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use crate::util::PODS;
    use apiserver::UserInfo;
    use serde_json::json;

    #[test]
    fn levels() {
        let objects = Objects::new();
        let ctx = objects.ctx(&PODS, "a", "", UserInfo::default());
        let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
        let check = |level: &str, spec: Value| {
            objects.put(&NAMESPACES, json!({"metadata": {"name": "a", "labels": {"pod-security.kubernetes.io/enforce": level}}}));
            let pod = json!({"metadata": {"name": "p"}, "spec": spec});
            block_on(PodSecurity.validate(&attributes, Some(&pod))).map_err(|e| e.message)
        };
        let plain = json!({"containers": [{"name": "c"}]});
        check("privileged", json!({"hostNetwork": true, "containers": [{"name": "c", "securityContext": {"privileged": true}}]})).unwrap();
        check("baseline", plain.clone()).unwrap();
        assert_eq!(
            check("baseline", json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}], "volumes": [{"name": "v", "hostPath": {}}]})).unwrap_err(),
            "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": hostPath volumes (volume \"v\"), privileged (container \"c\" must not set securityContext.privileged=true)"
        );
        assert_eq!(
            check("restricted", plain).unwrap_err(),
            "pods \"p\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        let good = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]});
        check("restricted", good).unwrap();
    }
}
