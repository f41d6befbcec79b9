//! Pods and pod templates.

use super::at::{At, by_name, same};
use super::container::{self, Pod};
use super::{annotations, meta, net, scheduling, volumes, windows};
use crate::field::FieldError;
use crate::names;
use crate::seen::Seen;
use serde_json::Value;

/// A pod template, at its path.
pub fn template(at: &At<'_>) {
    let m = at.at("metadata");
    // reported without the step in between, as upstream does
    meta::labels(&m.at("labels").named(at.path.child("labels")));
    meta::annotations(&m.at("annotations").named(at.path.child("annotations")));
    let s = at.at("spec");
    let own = m.at("annotations").named(at.path.child("annotations"));
    annotations::of_pod(&own, &s, None);
    spec(&s, "", false);
    selinux_change_policy(&s, None);
    annotations::match_fields(&own, &s);
    if !s.at("ephemeralContainers").is_empty() {
        s.at("ephemeralContainers").forbidden("ephemeral containers not allowed in pod template");
    }
}

/// A new pod.
pub fn create(pod: &At<'_>) {
    meta::create(&pod.at("metadata"), true, names::dns1123_subdomain);
    meta::finalizer_names(&pod.at("metadata"));
    annotations::of_pod(&pod.down(&["metadata", "annotations"]), &pod.at("spec"), None);
    whole_spec(pod, None);
    let s = pod.at("spec");
    if !s.at("ephemeralContainers").is_empty() {
        s.at("ephemeralContainers").forbidden("cannot be set on create");
    }
    if s.at("nodeName").filled().is_some() && !s.at("schedulingGates").is_empty() {
        s.at("nodeName").forbidden("cannot be set until all schedulingGates have been cleared");
    }
    annotations::match_fields(&pod.down(&["metadata", "annotations"]), &s);
}

fn whole_spec(pod: &At<'_>, old: Option<&At<'_>>) {
    let s = pod.at("spec");
    spec(&s, pod.at("metadata").at("name").text(), true);
    selinux_change_policy(&s, old);
    if s.at("serviceAccountName").filled().is_none() {
        for v in s.at("volumes").items() {
            for source in v.at("projected").at("sources").items() {
                if source.at("serviceAccountToken").set() {
                    source.at("serviceAccountToken").forbidden("must not be specified when serviceAccountName is not set");
                }
            }
        }
    }
    for k in ["containers", "initContainers"] {
        s.at(k).items().for_each(|c| container::image_only_for_pods(&c));
    }
}

/// The spec of a pod or template.
pub fn spec(s: &At<'_>, pod_name: &str, is_pod: bool) {
    let grace = s.at("terminationGracePeriodSeconds");
    if !grace.set() {
        grace.required("");
    }
    let good = volumes::volumes(&s.at("volumes"), pod_name);
    super::devices::pod_claims(&s.at("resourceClaims"));
    let claims: Vec<&str> = s.at("resourceClaims").items().map(|c| c.at("name").text()).filter(|n| !n.is_empty()).collect();
    let host_users = s.at("hostUsers");
    let pod = Pod {
        volumes: &good,
        grace: grace.int(),
        restart_policy: s.at("restartPolicy").text(),
        host_users: !host_users.set() || host_users.yes(),
        claims: &claims,
        os: s.at("os").at("name").text(),
    };
    let (regular, init) = (s.at("containers"), s.at("initContainers"));
    container::containers(&regular, &pod);
    container::init_containers(&init, &regular, &pod);
    let others: Vec<&str> = regular.items().chain(init.items()).map(|c| c.at("name").text()).collect();
    container::ephemeral_containers(&s.at("ephemeralContainers"), &others, &pod);
    if s.at("hostNetwork").yes() {
        for c in regular.items() {
            for p in c.at("ports").items() {
                let (host, own) = (p.at("hostPort").int_or(0), p.at("containerPort").int_or(0));
                if (is_pod || host != 0) && host != own {
                    p.at("hostPort").invalid_as(host, "must match `containerPort` when `hostNetwork` is true");
                }
            }
        }
    }
    s.at("restartPolicy").one_of(&["Always", "OnFailure", "Never"]);
    s.at("dnsPolicy").one_of(&["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    meta::labels(&s.at("nodeSelector"));
    security_context(&s.at("securityContext"), s);
    scheduling::affinity(&s.at("affinity"));
    dns_config(&s.at("dnsConfig"), s.at("dnsPolicy").text());
    for g in s.at("readinessGates").items() {
        g.at("conditionType").check(names::qualified_name);
    }
    let mut gates = Seen::default();
    for g in s.at("schedulingGates").items() {
        let name = g.at("name").named(g.path.clone());
        name.check(names::qualified_name);
        if !gates.add(name.text()) {
            name.duplicate();
        }
    }
    scheduling::topology_spread(&s.at("topologySpreadConstraints"));
    windows::host_process(s);
    if host_users.set() && !host_users.yes() {
        for (k, shown) in [("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
            if s.at(k).yes() {
                s.push(FieldError::forbidden(&s.path.child(shown), "when `hostUsers` is false"));
            }
        }
    }
    hostname_override(s);
    s.at("serviceAccountName").check_if_filled(names::dns1123_subdomain);
    s.at("nodeName").check_if_filled(names::dns1123_subdomain);
    s.at("activeDeadlineSeconds").in_range(1, i64::from(i32::MAX));
    s.at("hostname").check_if_filled(names::dns1123_label);
    s.at("subdomain").check_if_filled(names::dns1123_label);
    scheduling::tolerations(&s.at("tolerations"));
    for a in s.at("hostAliases").items() {
        net::ip(&a.at("ip"));
        a.at("hostnames").items().for_each(|h| h.check(names::dns1123_subdomain));
    }
    s.at("priorityClassName").check_if_filled(names::dns1123_subdomain);
    if s.at("runtimeClassName").set() {
        s.at("runtimeClassName").check(names::dns1123_subdomain);
    }
    if s.at("preemptionPolicy").set() {
        s.at("preemptionPolicy").one_of(&["PreemptLowerPriority", "Never"]);
    }
    container::overhead(&s.at("overhead"));
    let os = s.at("os").at("name");
    if s.at("os").set() && os.filled().is_none() {
        os.required("");
    } else if s.at("os").set() {
        let known = ["linux", "windows"];
        os.named(s.path.child("os")).one_of(&known);
        if known.contains(&os.text()) {
            windows::operating_system(s);
        }
    }
    if s.at("resources").set() {
        let r = s.at("resources");
        if r.at("claims").set() {
            r.at("claims").forbidden("claims may not be set for Resources at pod-level");
        }
        container::resources(&r, &claims);
    }
    file_keys(s);
}

fn hostname_override(s: &At<'_>) {
    let h = s.at("hostnameOverride");
    if !h.set() {
        return;
    }
    if s.at("setHostnameAsFQDN").yes() {
        h.forbidden("may not be specified when setHostnameAsFQDN is true");
    }
    if s.at("hostNetwork").yes() {
        h.forbidden("may not be specified when hostNetwork is true");
    }
    if h.text().len() > 64 {
        h.too_long(64);
    }
    h.check(names::dns1123_subdomain);
}

/// Files that environment variables are read from lie in volumes of the pod.
fn file_keys(s: &At<'_>) {
    let volumes = by_name(s.at("volumes").items());
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for c in s.at(list).items() {
            for e in c.at("env").items() {
                let file = e.down(&["valueFrom", "fileKeyRef"]);
                if !file.set() {
                    continue;
                }
                let name = file.at("volumeName");
                match volumes.get(name.text()) {
                    None => name.not_found(),
                    Some(v) if !v.at("emptyDir").set() => name.invalid("referenced volume must be of type emptyDir"),
                    _ => {}
                }
            }
        }
    }
}

fn security_context(at: &At<'_>, spec: &At<'_>) {
    container::user_and_group(at);
    at.at("supplementalGroups").items().for_each(|g| g.in_range(0, i64::from(i32::MAX)));
    let share = spec.at("shareProcessNamespace");
    if share.yes() && spec.at("hostPID").yes() {
        share
            .named(at.path.child("shareProcessNamespace"))
            .invalid("ShareProcessNamespace and HostPID cannot both be enabled");
    }
    let mut seen = Seen::default();
    for s in at.at("sysctls").items() {
        let name = s.at("name");
        let good = |n: &str| {
            n.len() <= 253
                && n.split(['.', '/']).all(|p| {
                    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
                    !p.is_empty() && p.starts_with(word) && p.ends_with(word) && p.chars().all(|c| word(c) || c == '-' || c == '_')
                })
        };
        if name.filled().is_none() {
            name.required("");
        } else if !good(name.text()) {
            name.invalid("must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$");
        } else if !seen.add(name.text()) {
            name.duplicate();
        }
        if spec.at("hostNetwork").yes() && name.text().starts_with("net.") {
            name.invalid("may not be specified when 'hostNetwork' is true");
        }
        if spec.at("hostIPC").yes() && (name.text().starts_with("kernel.shm") || name.text().starts_with("kernel.msg") || name.text().starts_with("fs.mqueue.") || name.text() == "kernel.sem") {
            name.invalid("may not be specified when 'hostIPC' is true");
        }
    }
    at.at("fsGroupChangePolicy").one_of_if_set(&["Always", "OnRootMismatch"]);
    container::profile(&at.at("seccompProfile"), "seccomp");
    windows::options(&at.at("windowsOptions"));
    container::profile(&at.at("appArmorProfile"), "AppArmor");
    at.at("supplementalGroupsPolicy").one_of_if_set(&["Merge", "Strict"]);
}

/// `MountOption` needs a feature that is off; who had a policy before may have that one too.
fn selinux_change_policy(spec: &At<'_>, old: Option<&At<'_>>) {
    let free = old.is_some_and(|o| o.down(&["spec", "securityContext", "seLinuxChangePolicy"]).set());
    spec.down(&["securityContext", "seLinuxChangePolicy"]).one_of_if_set(if free { &["MountOption", "Recursive"] } else { &["Recursive"] });
}

fn dns_config(at: &At<'_>, policy: &str) {
    let servers = at.at("nameservers");
    if policy == "None" {
        if !at.set() {
            at.required("must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if servers.is_empty() {
            servers.required("must provide at least one DNS nameserver when `dnsPolicy` is None");
            return;
        }
    }
    if servers.len() > 3 {
        servers.invalid("must not have more than 3 nameservers");
    }
    servers.items().for_each(|s| {
        net::ip(&s);
    });
    let searches = at.at("searches");
    if searches.len() > 32 {
        searches.invalid("must not have more than 32 search paths");
    }
    let joined: usize = searches.items().map(|s| s.text().len() + 1).sum();
    if joined > 2049 {
        searches.invalid("must not have more than 2048 characters (including spaces) in the search list");
    }
    for s in searches.items().filter(|s| s.text() != ".") {
        let name = s.text().strip_suffix('.').unwrap_or(s.text());
        for m in names::dns1123_subdomain_with_underscore(name) {
            s.invalid_as(name, m);
        }
    }
    for o in at.at("options").items() {
        if o.at("name").filled().is_none() {
            o.required("must not be empty");
        }
    }
}

/// A changed pod.
pub fn update(pod: &At<'_>, old: &At<'_>) {
    annotations::of_pod(&pod.down(&["metadata", "annotations"]), &pod.at("spec"), Some(&old.down(&["metadata", "annotations"])));
    whole_spec(pod, Some(old));
    annotations::of_pod_changed(pod, old);
    let (s, o) = (pod.at("spec"), old.at("spec"));
    for k in ["containers", "initContainers"] {
        if s.at(k).len() != o.at(k).len() {
            s.at(k).forbidden("pod updates may not add or remove containers");
            return;
        }
        s.at(k).items().filter(|c| c.at("image").filled().is_none()).for_each(|c| c.at("image").required(""));
    }
    let deadline = s.at("activeDeadlineSeconds");
    match (deadline.int(), o.at("activeDeadlineSeconds").int()) {
        (Some(n), _) if !(0..=i64::from(i32::MAX)).contains(&n) => {
            deadline.in_range(0, i64::from(i32::MAX));
            return;
        }
        (Some(n), Some(before)) if before < n => {
            deadline.invalid("must be less than or equal to previous value");
            return;
        }
        (None, Some(_)) => deadline.invalid("must not update from a positive integer to nil value"),
        _ => {}
    }
    only_added_tolerations(&s.at("tolerations"), &o.at("tolerations"));
    let gates: Seen<&str> = o.at("schedulingGates").items().map(|g| g.at("name").text()).collect();
    for g in s.at("schedulingGates").items() {
        let name = g.at("name");
        if !gates.has(&name.text()) {
            name.forbidden(format!("only deletion is allowed, but found new scheduling gate '{}'", name.text()));
        }
    }
    if same(s.v, o.v) {
        return;
    }
    let mut munged = s.v.clone();
    let gated = !o.at("schedulingGates").is_empty();
    keep_mutable(&mut munged, o.v, gated);
    if !same(&munged, o.v) {
        let mut diff = String::new();
        describe_difference(o.v, &munged, &s.path, &mut diff);
        s.forbidden(format!(
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
             `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
             `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n{diff}"
        ));
    }
}

/// Gives the fields that may change their old values.
fn keep_mutable(new: &mut Value, old: &Value, gated: bool) {
    for list in ["containers", "initContainers"] {
        let olds = old.get(list).and_then(Value::as_array);
        let news = new.get_mut(list).and_then(Value::as_array_mut);
        for (c, o) in news.into_iter().flatten().zip(olds.into_iter().flatten()) {
            if let (Some(c), Some(image)) = (c.as_object_mut(), o.get("image")) {
                c.insert("image".to_owned(), image.clone());
            }
        }
    }
    let Some(new) = new.as_object_mut() else { return };
    let mut keep = vec!["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    let negative = old.get("terminationGracePeriodSeconds").and_then(Value::as_i64).is_some_and(|g| g < 0);
    if negative && new.get("terminationGracePeriodSeconds").and_then(Value::as_i64) == Some(1) {
        keep.push("terminationGracePeriodSeconds");
    }
    if gated {
        keep.extend(["nodeSelector", "affinity"]);
    }
    for k in keep {
        match old.get(k) {
            Some(v) => new.insert(k.to_owned(), v.clone()),
            None => new.remove(k),
        };
    }
}

/// The fields that differ, one a pair of lines.
fn describe_difference(old: &Value, new: &Value, path: &crate::field::Path, out: &mut String) {
    if same(old, new) {
        return;
    }
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for k in keys {
                let null = Value::Null;
                describe_difference(a.get(k).unwrap_or(&null), b.get(k).unwrap_or(&null), &path.child(k), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                describe_difference(a, b, &path.index(i), out);
            }
        }
        (a, b) => out.push_str(&format!("- {path}: {a}\n+ {path}: {b}\n")),
    }
}

fn only_added_tolerations(new: &At<'_>, old: &At<'_>) {
    let bare = |v: &Value| {
        let mut v = v.clone();
        if let Some(m) = v.as_object_mut() {
            m.retain(|k, v| k != "tolerationSeconds" && !v.is_null());
        }
        v
    };
    let kept: Seen<Value> = new.items().map(|n| bare(n.v)).collect();
    if old.items().any(|o| !kept.has(&bare(o.v))) {
        new.forbidden("existing toleration can not be modified except its tolerationSeconds");
    } else {
        scheduling::tolerations(new);
    }
}

/// A pod that got containers for debugging: they can only be added.
pub fn update_ephemeral(pod: &At<'_>, old: &At<'_>) {
    if annotations::is_mirror(old) {
        pod.named("".into()).forbidden("static pods do not support ephemeral containers");
        return;
    }
    meta::updated(&pod.at("metadata"), &old.at("metadata"), &meta::Rounds { changes: 1, objects: 0, known: true });
    annotations::of_pod(&pod.down(&["metadata", "annotations"]), &pod.at("spec"), Some(&old.down(&["metadata", "annotations"])));
    whole_spec(pod, Some(old));
    annotations::of_pod_changed(pod, old);
    let list = pod.at("spec").at("ephemeralContainers");
    let kept = by_name(list.items());
    for o in old.at("spec").at("ephemeralContainers").items() {
        let name = o.at("name").text();
        match kept.get(name) {
            None => list.forbidden(format!("existing ephemeral containers {} may not be removed\n", crate::field::go_quote(name))),
            Some(n) if !same(n.v, o.v) => {
                list.forbidden(format!("existing ephemeral containers {} may not be changed\n", crate::field::go_quote(name)));
            }
            Some(_) => {}
        }
    }
}

/// A pod whose containers got other requests and limits: of CPU and memory alone, and none may go.
pub fn update_resize(pod: &At<'_>, old: &At<'_>, class: bool) {
    meta::updated(&pod.at("metadata"), &old.at("metadata"), &meta::Rounds { changes: 1, objects: 0, known: true });
    whole_spec(pod, Some(old));
    let (s, o) = (pod.at("spec"), old.at("spec"));
    if class {
        s.invalid_as(pod.down(&["status", "qosClass"]).text(), "Pod QOS Class may not change as a result of resizing");
    }
    let before = s.errs.borrow().len();
    for list in ["containers", "initContainers"] {
        let (now, was) = (s.at(list), o.at(list));
        if now.len() != was.len() {
            now.forbidden(format!("{list} may not be added or removed on resize"));
            continue;
        }
        for (n, _) in now.items().zip(was.items()).filter(|(n, w)| n.at("name").text() != w.at("name").text()) {
            n.at("name").forbidden(format!("{list} may not be renamed or reordered on resize"));
        }
    }
    if s.errs.borrow().len() > before {
        return;
    }
    let compute = |k: &str| matches!(k, "cpu" | "memory");
    for list in ["initContainers", "containers"] {
        for (c, o) in s.at(list).items().zip(o.at(list).items()) {
            for kind in ["requests", "limits"] {
                let (now, before) = (c.at("resources").at(kind), o.at("resources").at(kind));
                if before.v.as_object().into_iter().flatten().any(|(k, _)| compute(k) && !now.at(k).set()) {
                    now.forbidden(format!("resource {kind} cannot be removed"));
                }
            }
        }
    }
    // but for what is computed with, containers are as they were
    let rest = |c: &At<'_>| {
        let mut c = c.v.clone();
        for kind in ["requests", "limits"] {
            if let Some(all) = c.get_mut("resources").and_then(|r| r.get_mut(kind)).and_then(Value::as_object_mut) {
                all.retain(|k, _| !compute(k));
            }
            if let Some(r) = c.get_mut("resources").and_then(Value::as_object_mut)
                && r.get(kind).and_then(Value::as_object).is_some_and(serde_json::Map::is_empty)
            {
                r.remove(kind);
            }
        }
        c
    };
    for list in ["containers", "initContainers"] {
        for (c, o) in s.at(list).items().zip(o.at(list).items()).filter(|(c, o)| !same(&rest(c), &rest(o))) {
            if list == "containers" {
                s.forbidden("only cpu and memory resources are mutable");
            } else if c.at("restartPolicy").text() == "Always" || o.at("restartPolicy").text() == "Always" {
                c.forbidden("only cpu and memory resources for init or sidecar containers are mutable");
            }
        }
        for (_, _) in s.at(list).items().zip(o.at(list).items()).filter(|(c, o)| list == "initContainers" && o.at("restartPolicy").text() != "Always" && !same(c.v, o.v)) {
            s.forbidden("resources for non-sidecar init containers are immutable");
        }
    }
}

/// A pod whose status changed.
pub fn update_status(pod: &At<'_>, old: &At<'_>) {
    annotations::of_pod_changed(pod, old);
    let (s, o) = (pod.at("status"), old.at("status"));
    const WHOLE: &str = "must be a non-negative integer";
    for c in s.at("conditions").items() {
        let (kind, generation) = (c.at("type"), c.at("observedGeneration"));
        if generation.int_or(0) < 0 {
            generation.invalid(WHOLE);
        }
        if !["PodScheduled", "Ready", "Initialized"].contains(&kind.text()) {
            kind.named(c.path.child("Type")).check(names::qualified_name);
        }
    }
    if pod.down(&["spec", "nodeName"]).text() != old.down(&["spec", "nodeName"]).text() {
        s.at("nodeName").forbidden("may not be changed directly");
    }
    let nominated = s.at("nominatedNodeName");
    if nominated.text() != o.at("nominatedNodeName").text() {
        nominated.check_if_filled(names::dns1123_subdomain);
        if old.down(&["spec", "nodeName"]).filled().is_some() && nominated.filled().is_some() {
            nominated.forbidden("may not be set on pods that are already bound to a node");
        }
    }
    if s.at("observedGeneration").int_or(0) < 0 {
        s.at("observedGeneration").invalid(WHOLE);
    }
    if o.at("qosClass").set() {
        s.at("qosClass").immutable(&o.at("qosClass"));
    }
    container_transitions(&s.at("containerStatuses"), &o.at("containerStatuses"), &old.at("spec"));
    claim_statuses(&s, &pod.at("spec"));
    for list in ["podIPs", "hostIPs"] {
        let (all, before) = (s.at(list), o.at(list));
        let first = all.items().next().map(|i| i.at("ip"));
        if let Some(first) = first.filter(|ip| list == "hostIPs" && ip.text() != s.at("hostIP").text()) {
            first.invalid_as(first.text(), "must be equal to `hostIP`");
        }
        let was: Seen<&str> = before.items().map(|i| i.at("ip").text()).collect();
        let mut ips = Vec::new();
        for i in all.items() {
            ips.extend(net::new_ip(&i.at("ip").named(i.path.clone()), &was));
        }
        if ips.len() == all.len() && !net::one_a_family(&ips) {
            all.invalid("may specify no more than one IP for each IP family");
        }
    }
    allocated_resources(&s.at("containerStatuses"), &pod.down(&["spec", "containers"]));
    allocated_resources(&s.at("initContainerStatuses"), &pod.down(&["spec", "initContainers"]));
    for c in s.at("ephemeralContainerStatuses").items() {
        if !c.at("allocatedResourcesStatus").is_empty() {
            c.at("allocatedResourcesStatus").forbidden("must not be specified in container status");
        }
    }
}

/// What became of the device claims of a pod.
fn claim_statuses(status: &At<'_>, spec: &At<'_>) {
    let claims: Seen<&str> = spec.at("resourceClaims").items().map(|c| c.at("name").text()).collect();
    let mut seen = Seen::default();
    for c in status.at("resourceClaimStatuses").items() {
        let name = c.at("name");
        if !claims.has(&name.text()) {
            name.invalid_as(name.text(), "must match the name of an entry in `spec.resourceClaims`");
        }
        if !seen.add(name.text()) {
            name.duplicate();
        }
        if c.at("resourceClaimName").set() {
            c.at("resourceClaimName").check(names::dns1123_subdomain);
        }
    }
    let extended = status.at("extendedResourceClaimStatus");
    if !extended.set() {
        return;
    }
    let mappings = extended.at("requestMappings");
    if mappings.is_empty() {
        mappings.required("at least one request mapping is required");
    }
    let containers = by_name(spec.at("containers").items().chain(spec.at("initContainers").items()));
    let mut seen = Seen::default();
    for m in mappings.items() {
        let [container, resource, request] = ["containerName", "resourceName", "requestName"].map(|k| m.at(k));
        match containers.get(container.text()) {
            None => container.invalid_as(container.text(), "must match the name of an entry in spec.initContainers.name or spec.containers.name"),
            Some(c) if !c.down(&["resources", "requests"]).v.get(resource.text()).is_some_and(|q| !q.is_null()) => resource.invalid_as(
                resource.text(),
                "must match the extended resource name of an entry in spec.initContainers.resources.requests or spec.containers.resources.requests",
            ),
            Some(_) => {}
        }
        request.named(extended.path.child("requestName")).check(names::dns1123_label);
        let key = [container.text(), resource.text(), request.text()];
        if !seen.add(key) {
            [&container, &resource, &request].iter().for_each(|a| a.duplicate());
        }
    }
    match extended.at("resourceClaimName").filled() {
        None => extended.at("resourceClaimName").required(""),
        Some(_) => extended.at("resourceClaimName").check(names::dns1123_subdomain),
    }
}

/// The health of devices is told of what the containers asked for.
fn allocated_resources(statuses: &At<'_>, containers: &At<'_>) {
    let claimed = |c: At<'_>| {
        let request = c.at("request").filled().map(|r| format!("/{r}")).unwrap_or_default();
        format!("claim:{}{request}", c.at("name").text())
    };
    let containers = by_name(containers.items());
    for s in statuses.items() {
        let Some(container) = containers.get(s.at("name").text()) else { continue };
        let claims: Seen<String> = container.down(&["resources", "claims"]).items().map(claimed).collect();
        for r in s.at("allocatedResourcesStatus").items() {
            let name = r.at("name");
            if name.text().starts_with("claim:") {
                if !claims.has(&name.text().to_owned()) {
                    name.invalid("must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or 'claim:<claimName>' if request is empty");
                }
            } else if !container.down(&["resources", "requests"]).v.get(name.text()).is_some_and(|q| !q.is_null()) {
                name.invalid_as(name.text(), "must match one of the container's resource requests");
            }
        }
    }
}

/// A container that ended for good does not come back.
fn container_transitions(new: &At<'_>, old: &At<'_>, spec: &At<'_>) {
    let restart = spec.at("restartPolicy").text();
    // a container with a policy of its own may be restarted all the same
    let own: Seen<&str> = spec.at("containers").items().filter(|c| c.at("restartPolicy").set()).map(|c| c.at("name").text()).collect();
    if restart == "Always" {
        return;
    }
    for o in old.items().filter(|o| !own.has(&o.at("name").text())) {
        let end = o.down(&["state", "terminated"]);
        if !end.set() || end.at("exitCode").int_or(0) != 0 && restart == "OnFailure" {
            continue;
        }
        for n in new.items().filter(|n| n.at("name").text() == o.at("name").text()) {
            if !n.down(&["state", "terminated"]).set() {
                n.at("state").forbidden("may not be transitioned to non-terminated state");
            }
        }
    }
}
