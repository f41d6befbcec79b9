//! What the standards ask of a pod, version by version.

use std::collections::BTreeSet;

use serde_json::Value;

use super::policy::{Level, Standard};
use crate::util::{items, map, number, text, texts};

/// What a pod does that it may not.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    pub reason: String,
    pub detail: String,
}

/// The pod and the version (1.MINOR) by which it is judged.
struct Pod<'a> {
    metadata: &'a Value,
    spec: &'a Value,
    version: u32,
}

struct Check {
    level: Level,
    /// The first version that has it.
    from: u32,
    /// The first version in which a stricter one takes its place where the level is restricted.
    replaced: Option<u32>,
    run: fn(&Pod<'_>) -> Option<Violation>,
}

const fn baseline(from: u32, replaced: Option<u32>, run: fn(&Pod<'_>) -> Option<Violation>) -> Check {
    Check { level: Level::Baseline, from, replaced, run }
}

const fn restricted(from: u32, run: fn(&Pod<'_>) -> Option<Violation>) -> Check {
    Check { level: Level::Restricted, from, replaced: None, run }
}

/// In the order in which they are told.
const CHECKS: [Check; 19] = [
    baseline(0, None, app_armor),
    baseline(0, Some(22), capabilities_added),
    baseline(0, None, host_namespaces),
    baseline(0, Some(0), host_paths),
    baseline(0, None, host_ports),
    baseline(34, None, probe_hosts),
    baseline(0, None, privileged),
    baseline(0, Some(35), |pod| if pod.version >= 35 && pod.has_users_of_its_own() { None } else { proc_mount(pod) }),
    baseline(0, None, selinux),
    baseline(0, Some(19), |pod| if pod.version < 19 { seccomp_annotations(pod) } else { seccomp(pod, false) }),
    baseline(0, None, sysctls),
    baseline(0, None, windows_host),
    restricted(8, |pod| if pod.is_windows_since(25) { None } else { escalation(pod) }),
    restricted(22, |pod| if pod.is_windows_since(25) { None } else { capabilities(pod) }),
    restricted(35, proc_mount),
    restricted(0, volumes),
    restricted(0, |pod| if pod.version >= 35 && pod.has_users_of_its_own() { None } else { non_root(pod) }),
    restricted(23, |pod| if pod.version >= 35 && pod.has_users_of_its_own() { None } else { root_user(pod) }),
    restricted(19, |pod| if pod.is_windows_since(25) { None } else { seccomp(pod, true) }),
];

/// What the pod does that it may not by this standard.
pub fn violations(standard: Standard, metadata: &Value, spec: &Value) -> Vec<Violation> {
    let pod = Pod { metadata, spec, version: standard.version.0 };
    let counts = |check: &&Check| {
        let replaced = standard.level == Level::Restricted && check.replaced.is_some_and(|r| pod.version >= r);
        check.level <= standard.level && pod.version >= check.from && !replaced
    };
    if standard.level == Level::Privileged { Vec::new() } else { CHECKS.iter().filter(counts).filter_map(|check| (check.run)(&pod)).collect() }
}

fn found(reason: &str, detail: String) -> Option<Violation> {
    Some(Violation { reason: reason.into(), detail })
}

impl<'a> Pod<'a> {
    fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        let spec = self.spec;
        ["/initContainers", "/containers", "/ephemeralContainers"].into_iter().flat_map(move |list| items(spec, list))
    }

    /// The names of the containers of which this is so.
    fn with(&self, is: impl Fn(&Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|c| is(c)).map(|c| text(c, "/name")).collect()
    }

    fn is_windows_since(&self, version: u32) -> bool {
        self.version >= version && text(self.spec, "/os/name") == "windows"
    }

    fn has_users_of_its_own(&self) -> bool {
        self.spec.get("hostUsers") == Some(&Value::Bool(false))
    }

    /// `pod and container "a"`: of whom it is so, the pod's own context or those of containers.
    fn setters(&self, is: impl Fn(&Value) -> bool) -> Vec<String> {
        let containers = self.with(&is);
        let pod = is(self.spec).then(|| "pod".to_string());
        pod.into_iter().chain((!containers.is_empty()).then(|| named(&containers))).collect()
    }

    /// The texts at a pointer into the pod's context and those of its containers that are none of the good ones.
    fn other_texts(&self, pointer: &str, good: &[&str]) -> BTreeSet<&'a str> {
        std::iter::once(self.spec).chain(self.containers()).filter_map(|c| api::at(c, pointer)?.as_str()).filter(|t| !good.contains(t)).collect()
    }
}

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

fn quoted<S: AsRef<str>>(all: impl IntoIterator<Item = S>) -> String {
    all.into_iter().map(|s| format!("\"{}\"", s.as_ref())).collect::<Vec<_>>().join(", ")
}

fn named(containers: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", containers.len()), quoted(containers))
}

fn is_true(value: &Value, pointer: &str) -> bool {
    api::at(value, pointer) == Some(&Value::Bool(true))
}

fn annotations<'a>(pod: &Pod<'a>) -> impl Iterator<Item = (&'a str, &'a str)> {
    map(pod.metadata, "/annotations").into_iter().flatten().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default()))
}

fn app_armor(pod: &Pod<'_>) -> Option<Violation> {
    const TYPE: &str = "/securityContext/appArmorProfile/type";
    const GOOD: [&str; 2] = ["RuntimeDefault", "Localhost"];
    let mut setters = pod.setters(|c| api::at(c, TYPE).and_then(Value::as_str).is_some_and(|t| !GOOD.contains(&t)));
    let mut values: Vec<String> = pod.other_texts(TYPE, &GOOD).into_iter().map(str::to_owned).collect();
    let good = |v: &str| v.is_empty() || v == "runtime/default" || v.starts_with("localhost/");
    let forbidden: Vec<String> = annotations(pod)
        .filter(|(k, v)| k.starts_with(api::apparmor::ANNOTATION) && !good(v))
        .map(|(k, v)| format!("{k}={}", api::field::go_quote(v)))
        .collect();
    if !forbidden.is_empty() {
        setters.push(plural("annotation", "annotations", forbidden.len()).into());
        values.extend(forbidden);
    }
    if setters.is_empty() {
        return None;
    }
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len());
    found(reason, format!("{} must not set AppArmor profile type to {}", setters.join(" and "), quoted(&values)))
}

/// The capabilities that a container adds, but for these.
fn added<'a>(container: &'a Value, but: &[&str]) -> BTreeSet<&'a str> {
    texts(container, "/securityContext/capabilities/add").filter(|c| !but.contains(c)).collect()
}

fn not_to_add(pod: &Pod<'_>, but: &[&str]) -> Option<String> {
    let with = pod.with(|c| !added(c, but).is_empty());
    let all: BTreeSet<&str> = pod.containers().flat_map(|c| added(c, but)).collect();
    (!with.is_empty()).then(|| format!("{} must not include {} in securityContext.capabilities.add", named(&with), quoted(all)))
}

fn capabilities_added(pod: &Pod<'_>) -> Option<Violation> {
    const DEFAULT: [&str; 13] = [
        "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP",
        "SETUID", "SYS_CHROOT",
    ];
    found("non-default capabilities", not_to_add(pod, &DEFAULT)?)
}

fn capabilities(pod: &Pod<'_>) -> Option<Violation> {
    let keeping = pod.with(|c| !texts(c, "/securityContext/capabilities/drop").any(|d| d == "ALL"));
    let drop = (!keeping.is_empty()).then(|| format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", named(&keeping)));
    let details: Vec<String> = drop.into_iter().chain(not_to_add(pod, &["NET_BIND_SERVICE"])).collect();
    if details.is_empty() { None } else { found("unrestricted capabilities", details.join("; ")) }
}

fn host_namespaces(pod: &Pod<'_>) -> Option<Violation> {
    let host: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"].iter().filter(|k| pod.spec.get(k) == Some(&Value::Bool(true))).map(|k| format!("{k}=true")).collect();
    if host.is_empty() { None } else { found("host namespaces", host.join(", ")) }
}

fn host_paths(pod: &Pod<'_>) -> Option<Violation> {
    let with: Vec<&str> = items(pod.spec, "/volumes").filter(|v| v.get("hostPath").is_some()).map(|v| text(v, "/name")).collect();
    if with.is_empty() { None } else { found("hostPath volumes", format!("{} {}", plural("volume", "volumes", with.len()), quoted(&with))) }
}

fn host_ports(pod: &Pod<'_>) -> Option<Violation> {
    let ports = |c: &Value| items(c, "/ports").filter_map(|p| number(p, "/hostPort")).filter(|p| *p != 0).map(|p| p.to_string()).collect::<Vec<_>>();
    let with = pod.with(|c| !ports(c).is_empty());
    if with.is_empty() {
        return None;
    }
    let all: BTreeSet<String> = pod.containers().flat_map(ports).collect();
    let (uses, what) = (plural("uses", "use", with.len()), plural("hostPort", "hostPorts", all.len()));
    found("hostPort", format!("{} {uses} {what} {}", named(&with), all.into_iter().collect::<Vec<_>>().join(", ")))
}

fn probe_hosts(pod: &Pod<'_>) -> Option<Violation> {
    const HANDLERS: [&str; 5] = ["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"];
    let hosts = |c: &Value| -> BTreeSet<String> {
        let of = |handler: &str| ["httpGet", "tcpSocket"].map(|kind| text(c, &format!("{handler}/{kind}/host")).to_string());
        HANDLERS.into_iter().flat_map(of).filter(|host| !host.is_empty()).collect()
    };
    let with: BTreeSet<&str> = pod.with(|c| !hosts(c).is_empty()).into_iter().collect();
    if with.is_empty() {
        return None;
    }
    let all: BTreeSet<String> = pod.containers().flat_map(hosts).collect();
    let (uses, what) = (plural("uses", "use", with.len()), plural("probe or lifecycle host", "probe or lifecycle hosts", all.len()));
    let with: Vec<&str> = with.into_iter().collect();
    found("probe or lifecycle host", format!("{} {uses} {what} {}", named(&with), quoted(&all)))
}

fn privileged(pod: &Pod<'_>) -> Option<Violation> {
    let with = pod.with(|c| is_true(c, "/securityContext/privileged"));
    if with.is_empty() { None } else { found("privileged", format!("{} must not set securityContext.privileged=true", named(&with))) }
}

fn proc_mount(pod: &Pod<'_>) -> Option<Violation> {
    let kind = |c: &Value| text(c, "/securityContext/procMount").to_string();
    let with = pod.with(|c| !matches!(kind(c).as_str(), "" | "Default"));
    let kinds: BTreeSet<String> = pod.containers().map(kind).filter(|k| !matches!(k.as_str(), "" | "Default")).collect();
    if with.is_empty() { None } else { found("procMount", format!("{} must not set securityContext.procMount to {}", named(&with), quoted(&kinds))) }
}

fn selinux(pod: &Pod<'_>) -> Option<Violation> {
    const TYPES: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    let good = if pod.version < 31 { &TYPES[..4] } else { &TYPES[..] };
    let of = |c: &Value, key: &str| text(c, &format!("/securityContext/seLinuxOptions/{key}")).to_string();
    let setters = pod.setters(|c| !good.contains(&of(c, "type").as_str()) || !of(c, "user").is_empty() || !of(c, "role").is_empty());
    if setters.is_empty() {
        return None;
    }
    let types = pod.other_texts("/securityContext/seLinuxOptions/type", good);
    let mut details = Vec::new();
    if !types.is_empty() {
        details.push(format!("{} {}", plural("type", "types", types.len()), quoted(&types)));
    }
    for key in ["user", "role"] {
        if std::iter::once(pod.spec).chain(pod.containers()).any(|c| !of(c, key).is_empty()) {
            details.push(format!("{key} may not be set"));
        }
    }
    found("seLinuxOptions", format!("{} set forbidden securityContext.seLinuxOptions: {}", setters.join(" and "), details.join("; ")))
}

fn seccomp_annotations(pod: &Pod<'_>) -> Option<Violation> {
    let containers = pod.containers().map(|c| format!("{}{}", api::seccomp::CONTAINER, text(c, "/name")));
    let keys: Vec<String> = std::iter::once(api::seccomp::POD.to_owned()).chain(containers).collect();
    let good = |v: &str| matches!(v, "runtime/default" | "docker/default") || v.starts_with("localhost/");
    let forbidden: BTreeSet<String> =
        annotations(pod).filter(|(k, v)| keys.iter().any(|key| key == k) && !good(v)).map(|(k, v)| format!("{k}={}", api::field::go_quote(v))).collect();
    if forbidden.is_empty() {
        return None;
    }
    let annotations = plural("annotation", "annotations", forbidden.len());
    found("seccompProfile", format!("forbidden {annotations} {}", forbidden.into_iter().collect::<Vec<_>>().join(", ")))
}

/// That no profile is a bad one, and, where it is `asked` for, that each container has one.
fn seccomp(pod: &Pod<'_>, asked: bool) -> Option<Violation> {
    const TYPE: &str = "/securityContext/seccompProfile/type";
    const GOOD: [&str; 2] = ["RuntimeDefault", "Localhost"];
    let profile = |c: &Value| api::at(c, TYPE).and_then(Value::as_str).map(str::to_owned);
    let setters = pod.setters(|c| profile(c).is_some_and(|t| !GOOD.contains(&t.as_str())));
    if !setters.is_empty() {
        let values = pod.other_texts(TYPE, &GOOD);
        return found("seccompProfile", format!("{} must not set securityContext.seccompProfile.type to {}", setters.join(" and "), quoted(&values)));
    }
    let without = if asked && profile(pod.spec).is_none() { pod.with(|c| profile(c).is_none()) } else { Vec::new() };
    if without.is_empty() {
        return None;
    }
    found("seccompProfile", format!("pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"", named(&without)))
}

fn sysctls(pod: &Pod<'_>) -> Option<Violation> {
    /// With the versions since which they are allowed.
    const ALLOWED: [(&str, u32); 12] = [
        ("kernel.shm_rmid_forced", 0),
        ("net.ipv4.ip_local_port_range", 0),
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.ping_group_range", 0),
        ("net.ipv4.ip_unprivileged_port_start", 0),
        ("net.ipv4.ip_local_reserved_ports", 27),
        ("net.ipv4.tcp_keepalive_time", 29),
        ("net.ipv4.tcp_fin_timeout", 29),
        ("net.ipv4.tcp_keepalive_intvl", 29),
        ("net.ipv4.tcp_keepalive_probes", 29),
        ("net.ipv4.tcp_rmem", 32),
        ("net.ipv4.tcp_wmem", 32),
    ];
    let allowed = |name: &str| ALLOWED.iter().any(|(allowed, since)| *allowed == name && pod.version >= *since);
    let forbidden: Vec<&str> = items(pod.spec, "/securityContext/sysctls").map(|s| text(s, "/name")).filter(|s| !allowed(s)).collect();
    if forbidden.is_empty() { None } else { found("forbidden sysctls", forbidden.join(", ")) }
}

fn windows_host(pod: &Pod<'_>) -> Option<Violation> {
    let setters = pod.setters(|c| is_true(c, "/securityContext/windowsOptions/hostProcess"));
    if setters.is_empty() { None } else { found("hostProcess", format!("{} must not set securityContext.windowsOptions.hostProcess=true", setters.join(" and "))) }
}

fn escalation(pod: &Pod<'_>) -> Option<Violation> {
    let with = pod.with(|c| api::at(c, "/securityContext/allowPrivilegeEscalation") != Some(&Value::Bool(false)));
    if with.is_empty() { None } else { found("allowPrivilegeEscalation != false", format!("{} must set securityContext.allowPrivilegeEscalation=false", named(&with))) }
}

fn volumes(pod: &Pod<'_>) -> Option<Violation> {
    const ALLOWED: [&str; 9] = ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret"];
    let kind = |v: &Value| v.as_object().and_then(|v| v.keys().find(|k| *k != "name")).cloned().unwrap_or_else(|| "unknown".into());
    let odd: Vec<(&str, String)> = items(pod.spec, "/volumes").map(|v| (text(v, "/name"), kind(v))).filter(|(_, k)| !ALLOWED.contains(&k.as_str())).collect();
    if odd.is_empty() {
        return None;
    }
    let kinds: BTreeSet<&String> = odd.iter().map(|(_, kind)| kind).collect();
    let (noun, uses) = (plural("volume", "volumes", odd.len()), plural("uses", "use", odd.len()));
    let what = plural("restricted volume type", "restricted volume types", kinds.len());
    found("restricted volume types", format!("{noun} {} {uses} {what} {}", quoted(odd.iter().map(|(name, _)| name)), quoted(&kinds)))
}

fn non_root(pod: &Pod<'_>) -> Option<Violation> {
    const NON_ROOT: &str = "/securityContext/runAsNonRoot";
    const REASON: &str = "runAsNonRoot != true";
    let setters = pod.setters(|c| api::at(c, NON_ROOT) == Some(&Value::Bool(false)));
    if !setters.is_empty() {
        return found(REASON, format!("{} must not set securityContext.runAsNonRoot=false", setters.join(" and ")));
    }
    let without = if is_true(pod.spec, NON_ROOT) { Vec::new() } else { pod.with(|c| api::at(c, NON_ROOT).is_none()) };
    if without.is_empty() { None } else { found(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", named(&without))) }
}

fn root_user(pod: &Pod<'_>) -> Option<Violation> {
    let setters = pod.setters(|c| number(c, "/securityContext/runAsUser") == Some(0));
    if setters.is_empty() { None } else { found("runAsUser=0", format!("{} must not set runAsUser=0", setters.join(" and "))) }
}

#[cfg(test)]
mod tests {
    use super::super::policy::{LATEST, Version};
    use super::*;
    use serde_json::json;

    fn told(level: Level, version: Version, metadata: Value, spec: Value) -> String {
        let all = violations(Standard { level, version }, &metadata, &spec);
        all.iter().map(|v| format!("{} ({})", v.reason, v.detail)).collect::<Vec<_>>().join(", ")
    }

    fn baseline_of(spec: Value) -> String {
        told(Level::Baseline, LATEST, json!({}), spec)
    }

    #[test]
    fn baseline_tells_of_each_thing() {
        let one = |container: Value| {
            let mut container = container;
            container["name"] = json!("c");
            baseline_of(json!({"containers": [container]}))
        };
        let context = |context: Value| one(json!({"securityContext": context}));
        assert_eq!(one(json!({})), "");
        assert_eq!(context(json!({"privileged": true})), "privileged (container \"c\" must not set securityContext.privileged=true)");
        assert_eq!(context(json!({"capabilities": {"add": ["CHOWN", "SYS_TIME", "NET_RAW"]}})), "non-default capabilities (container \"c\" must not include \"NET_RAW\", \"SYS_TIME\" in securityContext.capabilities.add)");
        assert_eq!(context(json!({"procMount": "Unmasked"})), "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")");
        assert_eq!(context(json!({"seccompProfile": {"type": "Unconfined"}})), "seccompProfile (container \"c\" must not set securityContext.seccompProfile.type to \"Unconfined\")");
        assert_eq!(context(json!({"seLinuxOptions": {"type": "spc_t", "user": "u", "role": "r"}})), "seLinuxOptions (container \"c\" set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set; role may not be set)");
        assert_eq!(one(json!({"ports": [{"hostPort": 80}, {"hostPort": 443}, {"containerPort": 1}]})), "hostPort (container \"c\" uses hostPorts 443, 80)");
        assert_eq!(one(json!({"livenessProbe": {"httpGet": {"host": "h", "port": 1}}})), "probe or lifecycle host (container \"c\" uses probe or lifecycle host \"h\")");
        assert_eq!(baseline_of(json!({"hostNetwork": true, "hostIPC": true})), "host namespaces (hostNetwork=true, hostIPC=true)");
        assert_eq!(baseline_of(json!({"volumes": [{"name": "a", "hostPath": {}}, {"name": "b", "hostPath": {}}]})), "hostPath volumes (volumes \"a\", \"b\")");
        assert_eq!(baseline_of(json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}]}})), "forbidden sysctls (kernel.msgmax)");
        assert_eq!(
            told(Level::Baseline, LATEST, json!({"annotations": {"container.apparmor.security.beta.kubernetes.io/c": "unconfined"}}), json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}, "containers": []})),
            "forbidden AppArmor profiles (pod and annotation must not set AppArmor profile type to \"Unconfined\", \"container.apparmor.security.beta.kubernetes.io/c=\"unconfined\"\")"
        );
        let windows = json!({"securityContext": {"windowsOptions": {"hostProcess": true}}, "containers": [{"name": "c", "securityContext": {"windowsOptions": {"hostProcess": true}}}]});
        assert_eq!(baseline_of(windows), "hostProcess (pod and container \"c\" must not set securityContext.windowsOptions.hostProcess=true)");
    }

    #[test]
    fn restricted_takes_the_place_of_some_of_baseline() {
        let restricted = |spec: Value| told(Level::Restricted, LATEST, json!({}), spec);
        let good = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}]});
        assert_eq!(restricted(good.clone()), "");
        let mut volumes = good.clone();
        volumes["volumes"] = json!([{"name": "h", "hostPath": {}}, {"name": "n", "nfs": {}}, {"name": "s", "secret": {}}, {"name": "i", "image": {}}]);
        assert_eq!(restricted(volumes), "restricted volume types (volumes \"h\", \"n\" use restricted volume types \"hostPath\", \"nfs\")");
        let mut adds = good.clone();
        adds["containers"][0]["securityContext"]["capabilities"] = json!({"add": ["CHOWN"]});
        assert_eq!(restricted(adds), "unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]; container \"c\" must not include \"CHOWN\" in securityContext.capabilities.add)");
        let mut root = good.clone();
        root["securityContext"]["runAsNonRoot"] = json!(false);
        root["containers"][0]["securityContext"]["runAsUser"] = json!(0);
        assert_eq!(restricted(root.clone()), "runAsNonRoot != true (pod must not set securityContext.runAsNonRoot=false), runAsUser=0 (container \"c\" must not set runAsUser=0)");
        // users of the pod's own are none of the host's
        root["hostUsers"] = json!(false);
        assert_eq!(restricted(root.clone()), "");
        assert!(told(Level::Restricted, Version(34), json!({}), root).starts_with("runAsNonRoot"));
    }

    #[test]
    fn versions_differ() {
        let at = |level: Level, minor: u32, spec: &Value| told(level, Version(minor), json!({}), spec.clone());
        let sysctl = json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_keepalive_time"}]}});
        assert!(at(Level::Baseline, 28, &sysctl).starts_with("forbidden sysctls") && at(Level::Baseline, 29, &sysctl).is_empty());
        let probe = json!({"containers": [{"name": "c", "readinessProbe": {"tcpSocket": {"host": "h"}}}]});
        assert!(at(Level::Baseline, 33, &probe).is_empty() && !at(Level::Baseline, 34, &probe).is_empty());
        let engine = json!({"securityContext": {"seLinuxOptions": {"type": "container_engine_t"}}});
        assert!(!at(Level::Baseline, 30, &engine).is_empty() && at(Level::Baseline, 31, &engine).is_empty());
        let windows = json!({"os": {"name": "windows"}, "securityContext": {"runAsNonRoot": true}, "containers": [{"name": "c"}]});
        assert!(at(Level::Restricted, 24, &windows).contains("allowPrivilegeEscalation") && at(Level::Restricted, 25, &windows).is_empty());
        // before profiles were fields
        let plain = json!({"securityContext": {"runAsNonRoot": true}, "containers": [{"name": "c"}]});
        assert_eq!(at(Level::Restricted, 7, &plain), "");
        let annotated = json!({"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}});
        assert_eq!(told(Level::Baseline, Version(18), annotated.clone(), plain.clone()), "seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")");
        assert_eq!(told(Level::Baseline, Version(19), annotated, plain), "");
    }
}
