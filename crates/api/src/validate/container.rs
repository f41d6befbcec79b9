//! Containers of a pod: ports, environment, probes, resources, security.

use super::at::At;
use super::volumes::{descending_path, mounts, no_backsteps};
use crate::names;
use crate::seen::Seen;
use serde_json::Value;
use std::collections::HashMap;

/// Names of network protocols, as they are listed.
pub const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// What the containers of a pod have in common.
pub struct Pod<'a> {
    pub volumes: &'a HashMap<&'a str, &'a Value>,
    pub grace: Option<i64>,
    pub restart_policy: &'a str,
    pub host_users: bool,
    pub claims: &'a [&'a str],
    pub os: &'a str,
}

/// The containers that run side by side.
pub fn containers(at: &At<'_>, pod: &Pod<'_>) {
    if at.is_empty() {
        at.required("");
        return;
    }
    let mut seen = Seen::default();
    for c in at.items() {
        common(&c, pod);
        let name = c.at("name");
        if !seen.add(name.text()) {
            name.duplicate();
        }
        lifecycle_and_probes(&c, pod);
        restart_policy(&c);
    }
    host_port_conflicts(at, &at.items().collect::<Vec<_>>());
}

/// The containers that run first, one after the other, or all along as sidecars.
pub fn init_containers(at: &At<'_>, regular: &At<'_>, pod: &Pod<'_>) {
    let mut seen: Seen<&str> = regular.items().map(|c| c.at("name").text()).collect();
    for c in at.items() {
        common(&c, pod);
        restart_policy(&c);
        let sidecar = c.at("restartPolicy").text() == "Always";
        let name = c.at("name");
        if seen.has(&name.text()) || name.filled().is_some() && !seen.add(name.text()) {
            name.duplicate();
        }
        host_port_conflicts(at, std::slice::from_ref(&c));
        if sidecar {
            lifecycle_and_probes(&c, pod);
        } else {
            for k in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if c.at(k).set() {
                    c.at(k).forbidden("may not be set for init containers without restartPolicy=Always");
                }
            }
            for p in c.at("resizePolicy").items() {
                if p.at("restartPolicy").text() == "RestartContainer" {
                    p.at("restartPolicy").invalid("must not be set to 'RestartContainer' for non-sidecar initContainers");
                }
            }
        }
    }
}

/// The containers that are added for debugging.
pub fn ephemeral_containers(at: &At<'_>, others: &[&str], pod: &Pod<'_>) {
    const ALLOWED: &[&str] = &[
        "name", "image", "command", "args", "workingDir", "env", "envFrom", "volumeMounts", "volumeDevices", "imagePullPolicy",
        "terminationMessagePath", "terminationMessagePolicy", "securityContext", "stdin", "stdinOnce", "tty", "targetContainerName",
    ];
    let others: Seen<&str> = others.iter().copied().collect();
    let mut seen = others.clone();
    for c in at.items() {
        common(&c, pod);
        image_only_for_pods(&c);
        let name = c.at("name");
        if !seen.add(name.text()) {
            name.duplicate();
        }
        let target = c.at("targetContainerName");
        if target.filled().is_some_and(|t| !others.has(&t)) {
            target.not_found();
        }
        for (k, v) in c.v.as_object().into_iter().flatten() {
            let empty = v.is_null() || v.as_array().is_some_and(Vec::is_empty) || v.as_object().is_some_and(serde_json::Map::is_empty);
            if !ALLOWED.contains(&k.as_str()) && !empty {
                c.at(k).forbidden("cannot be set for an Ephemeral Container");
            }
        }
        for m in c.at("volumeMounts").items() {
            for k in ["subPath", "subPathExpr"] {
                if m.at(k).filled().is_some() {
                    m.at(k).forbidden("cannot be set for an Ephemeral Container");
                }
            }
        }
    }
}

/// What holds for images of pods but not of templates.
pub fn image_only_for_pods(c: &At<'_>) {
    let image = c.at("image");
    if image.text().trim() != image.text() {
        image.invalid("must not have leading or trailing whitespace");
    }
}

fn common(c: &At<'_>, pod: &Pod<'_>) {
    let name = c.at("name");
    match name.filled() {
        None => name.required(""),
        Some(_) => name.check(names::dns1123_label),
    }
    if c.at("image").filled().is_none() {
        c.at("image").required("");
    }
    c.at("terminationMessagePolicy").one_of(&["File", "FallbackToLogsOnError"]);
    ports(&c.at("ports"));
    env(&c.at("env"));
    env_from(&c.at("envFrom"));
    mounts(c, pod.volumes);
    c.at("imagePullPolicy").one_of(&["Always", "IfNotPresent", "Never"]);
    resources(&c.at("resources"), pod.claims);
    resize_policy(&c.at("resizePolicy"), pod.restart_policy);
    security_context(&c.at("securityContext"), pod.host_users);
}

fn restart_policy(c: &At<'_>) {
    let (policy, rules) = (c.at("restartPolicy"), c.at("restartPolicyRules"));
    if policy.set() {
        policy.one_of_if_set(&["Always", "Never", "OnFailure"]);
    } else if !rules.is_empty() {
        policy.required("must specify restartPolicy when restart rules are used");
    }
    if rules.len() > 20 {
        rules.push(crate::field::FieldError::too_many(&rules.path, rules.len(), 20));
    }
    for r in rules.items() {
        r.at("action").one_of_if_set(&["Restart", "RestartAllContainers"]);
        let codes = r.at("exitCodes");
        if codes.set() {
            codes.at("operator").one_of_if_set(&["In", "NotIn"]);
            let values = codes.at("values");
            if values.len() > 255 {
                values.push(crate::field::FieldError::too_many(&values.path, values.len(), 255));
            }
        } else {
            codes.required("must be specified");
        }
    }
}

fn resize_policy(at: &At<'_>, pod_restart_policy: &str) {
    let mut seen = Seen::default();
    for p in at.items() {
        let resource = p.at("resourceName");
        if !seen.add(resource.text()) {
            p.with(resource.v, p.path.clone()).duplicate();
        }
        resource.named(at.path.clone()).one_of(&["cpu", "memory"]);
        let policy = p.at("restartPolicy").named(at.path.clone());
        policy.one_of(&["NotRequired", "RestartContainer"]);
        if pod_restart_policy == "Never" && policy.text() != "NotRequired" {
            policy.invalid("must be 'NotRequired' when pod `restartPolicy` is 'Never'");
        }
    }
}

fn ports(at: &At<'_>) {
    let mut seen = Seen::default();
    for p in at.items() {
        let name = p.at("name");
        if let Some(n) = name.filled() {
            if !names::port_name(n).is_empty() {
                name.check(names::port_name);
            } else if !seen.add(n) {
                name.duplicate();
            }
        }
        match p.at("containerPort").int_or(0) {
            0 => p.at("containerPort").required(""),
            _ => p.at("containerPort").in_range(1, 65535),
        }
        if p.at("hostPort").int_or(0) != 0 {
            p.at("hostPort").in_range(1, 65535);
        }
        p.at("protocol").one_of(PROTOCOLS);
    }
}

fn host_port_conflicts(at: &At<'_>, containers: &[At<'_>]) {
    let mut seen = Seen::default();
    for (i, c) in containers.iter().enumerate() {
        for (j, p) in c.at("ports").items().enumerate() {
            let port = p.at("hostPort").int_or(0);
            if port == 0 {
                continue;
            }
            let key = format!("{}/{}/{port}", p.at("protocol").text(), p.at("hostIP").text());
            if !seen.add(key.clone()) {
                let path = at.path.index(i).child("ports").index(j).child("hostPort");
                at.push(crate::field::FieldError::duplicate(&path, key.as_str()));
            }
        }
    }
}

fn env(at: &At<'_>) {
    const FIELDS: &[&str] = &[
        "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP",
        "status.hostIPs", "status.podIP", "status.podIPs",
    ];
    for e in at.items() {
        let name = e.at("name");
        match name.filled() {
            None => name.required(""),
            Some(_) => name.check(names::env_var_name),
        }
        let from = e.at("valueFrom");
        if !from.set() {
            continue;
        }
        let mut sources = 0;
        for k in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
            let s = from.at(k);
            if !s.set() {
                continue;
            }
            sources += 1;
            match k {
                "fieldRef" => field_ref(&s, FIELDS),
                "resourceFieldRef" => resource_field_ref(&s, false),
                "fileKeyRef" => file_key_ref(&s),
                _ => {
                    s.at("name").check(names::dns1123_subdomain);
                    match s.at("key").filled() {
                        None => s.at("key").required(""),
                        Some(_) => s.at("key").check(names::config_map_key),
                    }
                }
            }
        }
        if sources == 0 {
            from.invalid_as("", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`");
        } else if e.at("value").filled().is_some() {
            from.invalid_as("", "may not be specified when `value` is not empty");
        } else if sources > 1 {
            from.invalid_as("", "may not have more than one field specified at a time");
        }
    }
}

fn file_key_ref(at: &At<'_>) {
    match at.at("key").filled() {
        None => at.at("key").required(""),
        Some(_) => at.at("key").check(names::env_var_name),
    }
    match at.at("volumeName").filled() {
        None => at.at("volumeName").required(""),
        Some(_) => at.at("volumeName").check(names::dns1123_label),
    }
    match at.at("path").filled() {
        None => at.at("path").required(""),
        Some(_) => no_backsteps(&at.at("path")),
    }
}

/// A reference to a field of the pod.
pub fn field_ref(at: &At<'_>, valid: &[&str]) {
    if at.at("apiVersion").filled().is_none() {
        at.at("apiVersion").required("");
        return;
    }
    let path = at.at("fieldPath");
    let Some(p) = path.filled() else {
        path.required("");
        return;
    };
    if at.at("apiVersion").text() != "v1" {
        path.invalid(format!("error converting fieldPath: unsupported pod version: {}", at.at("apiVersion").text()));
        return;
    }
    let known = [
        "metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName",
        "spec.restartPolicy", "spec.serviceAccountName", "spec.schedulerName", "status.phase", "status.hostIP", "status.hostIPs",
        "status.podIP", "status.podIPs",
    ];
    let subscript = p.strip_suffix("']").and_then(|s| s.split_once("['"));
    match subscript {
        Some(("metadata.annotations", key)) => {
            for m in names::qualified_name(&key.to_lowercase()) {
                at.invalid_as(key.to_lowercase(), m);
            }
        }
        Some(("metadata.labels", key)) => {
            for m in names::qualified_name(key) {
                at.invalid_as(key, m);
            }
        }
        Some((head, _)) if known.contains(&head) => at.invalid_as(head, "does not support subscript"),
        _ if !known.contains(&p) => {
            path.invalid(format!("error converting fieldPath: field label not supported: {p}"));
        }
        _ if !valid.contains(&p) => path.not_supported(valid),
        _ => {}
    }
}

/// A reference to a resource of a container.
pub fn resource_field_ref(at: &At<'_>, volume: bool) {
    const RESOURCES: &[&str] = &[
        "limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory",
    ];
    let resource = at.at("resource");
    let name = resource.text();
    let huge = name.starts_with("requests.hugepages-") || name.starts_with("limits.hugepages-");
    if volume && at.at("containerName").filled().is_none() {
        at.at("containerName").required("");
    } else if name.is_empty() {
        resource.required("");
    } else if !RESOURCES.contains(&name) && !huge {
        resource.not_supported(RESOURCES);
    }
    let Some(divisor) = at.at("divisor").quantity().filter(|q| !q.is_zero()) else { return };
    const SIZES: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let divisor = divisor.canonical();
    let what = match name.split_once('.').map(|(_, r)| r) {
        Some("cpu") if divisor != "1m" && divisor != "1" => {
            at.at("divisor").invalid_as(name, "only divisor's values 1m and 1 are supported with the cpu resource");
            return;
        }
        Some("memory") => "memory",
        Some("ephemeral-storage") => "local ephemeral storage",
        _ if huge => "hugepages",
        _ => return,
    };
    if !SIZES.contains(&divisor.as_str()) {
        at.at("divisor").invalid_as(name, format!("only divisor's values {} are supported with the {what} resource", SIZES.join(", ")));
    }
}

fn env_from(at: &At<'_>) {
    for e in at.items() {
        e.at("prefix").check_if_filled(names::env_var_name);
        let mut sources = 0;
        for k in ["configMapRef", "secretRef"] {
            let s = e.at(k);
            if !s.set() {
                continue;
            }
            sources += 1;
            match s.at("name").filled() {
                None => s.at("name").required(""),
                Some(_) => s.at("name").check(names::dns1123_subdomain),
            }
        }
        match sources {
            0 => at.invalid_as("", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => at.invalid_as("", "may not have more than one field specified at a time"),
        }
    }
}

fn lifecycle_and_probes(c: &At<'_>, pod: &Pod<'_>) {
    let lifecycle = c.at("lifecycle");
    for k in ["postStart", "preStop"] {
        if lifecycle.at(k).set() {
            handler(&lifecycle.at(k), pod.grace, &["exec", "httpGet", "tcpSocket", "sleep"]);
        }
    }
    if lifecycle.at("stopSignal").set() && pod.os.is_empty() {
        lifecycle.at("stopSignal").forbidden("may not be set for containers with empty `spec.os.name`");
    }
    for k in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let p = c.at(k);
        if !p.set() {
            continue;
        }
        handler(&p, pod.grace, &["exec", "httpGet", "tcpSocket", "grpc"]);
        for n in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
            p.at(n).nonnegative();
        }
        let grace = p.at("terminationGracePeriodSeconds");
        if grace.int().is_some_and(|g| g <= 0) {
            grace.invalid("must be greater than 0");
        }
        if k == "readinessProbe" {
            if grace.set() {
                grace.invalid("must not be set for readinessProbes");
            }
        } else if p.at("successThreshold").int_or(1) != 1 {
            p.at("successThreshold").invalid("must be 1");
        }
    }
}

/// A port by number or name.
pub fn port(at: &At<'_>) {
    match at.v {
        Value::String(s) => {
            for m in names::port_name(s) {
                at.invalid(m);
            }
        }
        v => {
            for m in names::port_number(v.as_i64().unwrap_or(0)) {
                at.invalid_as(v.as_i64().unwrap_or(0), m);
            }
        }
    }
}

fn handler(at: &At<'_>, grace: Option<i64>, kinds: &[&str]) {
    let mut found = false;
    for kind in kinds {
        let h = at.at(kind);
        if !h.set() {
            continue;
        }
        if found {
            h.forbidden("may not specify more than 1 handler type");
            continue;
        }
        found = true;
        match *kind {
            "exec" => {
                if h.at("command").is_empty() {
                    h.at("command").required("");
                }
            }
            "httpGet" => {
                if h.at("path").filled().is_none() {
                    h.at("path").required("");
                }
                port(&h.at("port"));
                let scheme = h.at("scheme");
                if !["HTTP", "HTTPS"].contains(&scheme.text()) {
                    scheme.with(scheme.v, scheme.path.clone()).not_supported(&["HTTP", "HTTPS"]);
                }
                for header in h.at("httpHeaders").items() {
                    for m in names::http_header_name(header.at("name").text()) {
                        h.at("httpHeaders").invalid_as(header.at("name").text(), m);
                    }
                }
            }
            "tcpSocket" | "grpc" => port(&h.at("port")),
            _ => {
                let seconds = h.at("seconds").int_or(0);
                if let Some(g) = grace.filter(|g| seconds < 0 || seconds > *g) {
                    h.invalid_as(seconds, format!("must be non-negative and less than terminationGracePeriodSeconds ({g})"));
                }
            }
        }
    }
    if !found {
        at.required("must specify a handler type");
    }
}

/// Whether a resource is pages of memory.
pub fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Whether a resource is one of Kubernetes' own.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

const STANDARD: &[&str] = &[
    "cpu", "memory", "ephemeral-storage", "requests.cpu", "requests.memory", "requests.ephemeral-storage", "limits.cpu",
    "limits.memory", "limits.ephemeral-storage", "pods", "resourcequotas", "services", "replicationcontrollers", "secrets",
    "configmaps", "persistentvolumeclaims", "storage", "requests.storage", "services.nodeports", "services.loadbalancers",
];

/// The name of a resource.
pub fn resource_name(at: &At<'_>, name: &str) -> bool {
    let bad = names::qualified_name(name);
    for m in &bad {
        at.invalid_as(name, m.as_str());
    }
    if !bad.is_empty() {
        return false;
    }
    let huge = is_huge_page(name) || name.starts_with("requests.hugepages-");
    if !name.contains('/') && !STANDARD.contains(&name) && !huge {
        at.invalid_as(name, "must be a standard resource type or fully qualified");
        return false;
    }
    true
}

/// The name of a resource of a container.
pub fn container_resource_name(at: &At<'_>, name: &str) {
    resource_name(at, name);
    if !name.contains('/') {
        if !["cpu", "memory", "ephemeral-storage"].contains(&name) && !is_huge_page(name) {
            at.invalid_as(name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !names::is_extended_resource(name) {
        at.invalid_as(name, "doesn't follow extended resource name standard");
    }
}

/// An amount of a resource.
pub fn resource_amount(at: &At<'_>, name: &str) {
    const WHOLE: &[&str] = &[
        "pods", "resourcequotas", "services", "replicationcontrollers", "secrets", "configmaps", "persistentvolumeclaims",
        "services.nodeports", "services.loadbalancers",
    ];
    let Some(q) = at.quantity() else { return };
    if q.sign() < 0 {
        at.invalid_as(q.canonical(), "must be greater than or equal to 0");
    }
    if (WHOLE.contains(&name) || names::is_extended_resource(name)) && q.milli_value() % 1000 != 0 {
        at.invalid_as(q.canonical(), "must be an integer");
    }
}

/// What a pod takes besides its containers.
pub fn overhead(at: &At<'_>) {
    for (name, q) in at.entries() {
        let q = q.named(at.path.child("limits").key(name));
        container_resource_name(&q, name);
        resource_amount(&q, name);
    }
}

/// Requests and limits of a container.
pub fn resources(at: &At<'_>, claims: &[&str]) {
    let (limits, requests) = (at.at("limits"), at.at("requests"));
    let (mut huge, mut compute) = (false, false);
    for (name, q) in limits.entries().chain(requests.entries()) {
        huge |= is_huge_page(name);
        compute |= name == "cpu" || name == "memory";
        container_resource_name(&q, name);
        resource_amount(&q, name);
    }
    for (name, q) in requests.entries() {
        let Some(amount) = q.quantity() else { continue };
        let overcommit = is_native(name) && !is_huge_page(name);
        match limits.at(name).quantity() {
            Some(limit) if amount != limit && !overcommit => {
                requests.invalid_as(amount.canonical(), format!("must be equal to {name} limit of {}", limit.canonical()));
            }
            Some(limit) if amount > limit => {
                requests.invalid_as(amount.canonical(), format!("must be less than or equal to {name} limit of {}", limit.canonical()));
            }
            None if !overcommit => limits.required("Limit must be set for non overcommitable resources"),
            _ => {}
        }
    }
    if huge && !compute {
        at.forbidden("HugePages require cpu or memory");
    }
    let claims_known: Seen<&str> = claims.iter().copied().collect();
    // by name, how often it was there; and with its request
    let (mut seen, mut names_seen) = (Seen::default(), HashMap::new());
    for c in at.at("claims").items() {
        let (name, request) = (c.at("name"), c.at("request"));
        let key = (name.text(), request.text());
        if name.filled().is_none() {
            c.required("");
            continue;
        }
        if seen.has(&(key.0, "")) {
            c.push(crate::field::FieldError::duplicate(&c.path, key.0));
        } else {
            request.check_if_filled(names::dns1123_label);
            let times = names_seen.entry(key.0).or_insert(0usize);
            if !seen.add(key) {
                c.push(crate::field::FieldError::duplicate(&c.path, format!("{}/{}", key.0, key.1)));
            } else if key.1.is_empty() {
                (0..*times).for_each(|_| c.push(crate::field::FieldError::duplicate(&c.path, key.0)));
            }
            *times += 1;
        }
        if !claims_known.has(&name.text()) {
            let mut e = crate::field::FieldError::not_found(&c.path, name.text());
            e.detail = "must be one of the names in pod.spec.resourceClaims".to_owned();
            // each mistake shows them
            const MOST: usize = 100;
            e.detail.push_str(&if claims.is_empty() { " which is empty".to_owned() } else { format!(": {}", claims[..claims.len().min(MOST)].join(", ")) });
            c.push(e);
        }
    }
}

/// The containers of all kinds.
pub fn each<'a>(spec: &At<'a>) -> impl Iterator<Item = At<'a>> + use<'a> {
    ["initContainers", "containers", "ephemeralContainers"].map(|list| spec.at(list)).into_iter().flat_map(|list| list.items())
}

/// A seccomp or AppArmor profile.
pub fn profile(at: &At<'_>, kind: &str) {
    if !at.set() {
        return;
    }
    let (t, local) = (at.at("type"), at.at("localhostProfile"));
    match t.text() {
        "" if kind == "seccomp" => t.required("type is required when seccompProfile is set"),
        "" => t.required("type is required when appArmorProfile is set"),
        "Localhost" | "RuntimeDefault" | "Unconfined" => {}
        _ => t.not_supported(&["Localhost", "RuntimeDefault", "Unconfined"]),
    }
    if t.text() == "Localhost" {
        if !local.set() || kind == "AppArmor" && local.text().is_empty() {
            local.required(&format!("must be set when {kind} type is Localhost"));
        } else if kind == "AppArmor" && local.text().trim() != local.text() {
            local.invalid("must not be padded with whitespace");
        } else if kind == "seccomp" {
            descending_path(&local);
        }
    } else if local.set() {
        // the whole profile is shown of the one, its path of the other
        let shown = if kind == "seccomp" { local.with(at.v, local.path.clone()) } else { local };
        shown.invalid(format!("can only be set when {kind} type is Localhost"));
    }
}

/// Checks that user and group numbers are in range.
pub fn user_and_group(at: &At<'_>) {
    for k in ["runAsUser", "runAsGroup", "fsGroup"] {
        at.at(k).in_range(0, i64::from(i32::MAX));
    }
}

fn security_context(at: &At<'_>, host_users: bool) {
    if !at.set() {
        return;
    }
    user_and_group(at);
    let mount = at.at("procMount");
    mount.one_of_if_set(&["Default", "Unmasked"]);
    if host_users && mount.text() == "Unmasked" {
        mount.invalid("`hostUsers` must be false to use `Unmasked`");
    }
    profile(&at.at("seccompProfile"), "seccomp");
    let escalation = at.at("allowPrivilegeEscalation");
    if escalation.set() && !escalation.yes() {
        if at.at("privileged").yes() {
            at.invalid("cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        if at.down(&["capabilities", "add"]).items().any(|c| c.text() == "CAP_SYS_ADMIN") {
            at.invalid("cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    super::windows::options(&at.at("windowsOptions"));
    profile(&at.at("appArmorProfile"), "AppArmor");
}
