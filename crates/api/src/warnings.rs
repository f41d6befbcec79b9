//! What upstream warns of when an object is written: fields that do nothing, do something else than
//! they look like, or are on their way out. The write goes on.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::field::{Path, go_quote};
use crate::names;
use crate::quantity::Quantity;
use crate::resources::Resource;

/// The warnings of a new or changed object.
pub fn of(resource: &Resource, new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = Vec::new();
    let template = |out: &mut Vec<String>, path: &[&str], word: &str| {
        if old.is_none() && !word.is_empty() {
            hostname(new, word, out);
        }
        let at = path.iter().fold(Path::root(), |p, n| p.child(n));
        let changed = old.is_none_or(|old| old["spec"] != new["spec"]);
        if let Some(template) = path.iter().try_fold(new, |v, n| v.get(n)).filter(|_| changed) {
            pod(template, &at, true, out);
        }
    };
    match (resource.group, resource.kind) {
        ("", "Pod") if old.is_none() => {
            hostname(new, "the Pod's hostname", &mut out);
            pod(new, &Path::root(), false, &mut out);
        }
        ("", "PodTemplate") => pod(&new["template"], &"template".into(), true, &mut out),
        ("", "ReplicationController") | ("apps", "ReplicaSet" | "Deployment") => {
            template(&mut out, &["spec", "template"], "Pod names and hostnames");
        }
        ("apps", "DaemonSet") => template(&mut out, &["spec", "template"], ""),
        ("apps", "StatefulSet") => {
            template(&mut out, &["spec", "template"], "");
            if new["spec"]["revisionHistoryLimit"].as_i64().is_some_and(|n| n < 0) {
                out.push("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended".into());
            }
        }
        ("batch", "Job") => template(&mut out, &["spec", "template"], "Pod names and hostnames"),
        ("batch", "CronJob") => template(&mut out, &["spec", "jobTemplate", "spec", "template"], "Pod names and hostnames"),
        ("", "Service") => service(new, &mut out),
        ("", "PersistentVolumeClaim") => claim(&new["spec"], &"spec".into(), &mut out),
        ("", "PersistentVolume") => volume(&new["spec"], &mut out),
        ("", "Node") if new["spec"]["externalID"].as_str().is_some_and(|id| !id.is_empty()) => {
            out.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".into());
        }
        ("storage.k8s.io", "CSIDriver") => driver(new, old, &mut out),
        _ => {}
    }
    out
}

/// Names of pods become names of hosts.
fn hostname(new: &Value, word: &str, out: &mut Vec<String>) {
    let messages = names::dns1123_label(new["metadata"]["name"].as_str().unwrap_or_default());
    if !messages.is_empty() {
        out.push(format!("metadata.name: this is used in {word}, which can result in surprising behavior; a DNS label is recommended: [{}]", messages.join(" ")));
    }
}

fn list<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    v[key].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v[key].as_str().unwrap_or_default()
}

/// A pod or a template, at its path.
fn pod(pod: &Value, at: &Path, template: bool, out: &mut Vec<String>) {
    let (spec, path) = (&pod["spec"], at.child("spec"));
    for (i, constraint) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        null_selector(constraint, &path.child("topologySpreadConstraints").index(i), out);
    }
    let annotations = &pod["metadata"]["annotations"];
    let mut annotated = |key: &str, why: &str| {
        if annotations.get(key).is_some() {
            out.push(format!("{}: {why}", at.child("metadata").child("annotations").key(key)));
        }
    };
    annotated("scheduler.alpha.kubernetes.io/critical-pod", "non-functional in v1.16+; use the \"priorityClassName\" field instead");
    for key in ["security.alpha.kubernetes.io/sysctls", "security.alpha.kubernetes.io/unsafe-sysctls"] {
        annotated(key, "non-functional in v1.11+; use the \"sysctls\" field instead");
    }
    volumes(spec, &path, out);
    duplicates(list(spec, "hostAliases"), "ip", &path.child("hostAliases"), out);
    duplicates(list(spec, "imagePullSecrets"), "name", &path.child("imagePullSecrets"), out);
    for (i, _) in list(spec, "imagePullSecrets").iter().enumerate().filter(|(_, s)| text(s, "name").is_empty()) {
        out.push(format!("{}: invalid empty name \"\"", path.child("imagePullSecrets").index(i).child("name")));
    }
    for resource in ["memory", "ephemeral-storage"] {
        whole_bytes(&spec["overhead"], &path.child("overhead"), resource, out);
    }
    if spec["securityContext"]["seccompProfile"].is_null() && annotations.get("seccomp.security.alpha.kubernetes.io/pod").is_some() {
        let key = at.child("metadata").child("annotations").key("seccomp.security.alpha.kubernetes.io/pod");
        out.push(format!("{key}: non-functional in v1.27+; use the \"seccompProfile\" field instead"));
    }
    containers(pod, at, template, out);
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|n| n < 0) {
        out.push(format!("{}: must be >= 0; negative values are invalid and will be treated as 1", path.child("terminationGracePeriodSeconds")));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (terms, path) = (&spec["affinity"][kind], path.child("affinity").child(kind));
        let (required, preferred) = ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
        for (i, term) in list(terms, required).iter().enumerate() {
            null_selector(term, &path.child(required).index(i), out);
        }
        for (i, term) in list(terms, preferred).iter().enumerate() {
            null_selector(&term["podAffinityTerm"], &path.child(preferred).index(i).child("podAffinityTerm"), out);
        }
    }
}

fn null_selector(term: &Value, path: &Path, out: &mut Vec<String>) {
    if term["labelSelector"].is_null() {
        out.push(format!("{}: a null labelSelector results in matching no pod", path.child("labelSelector")));
    }
}

fn duplicates(items: &[Value], key: &str, path: &Path, out: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (i, item) in items.iter().enumerate() {
        if !seen.insert(text(item, key)) {
            out.push(format!("{}: duplicate {key} {}", path.index(i).child(key), go_quote(text(item, key))));
        }
    }
}

/// Fractions of a byte.
fn whole_bytes(amounts: &Value, path: &Path, resource: &str, out: &mut Vec<String>) {
    let Some(amount) = amounts.get(resource).and_then(|v| Quantity::from_value(v).ok()) else { return };
    if amount.milli_value() % 1000 != 0 {
        out.push(format!("{}: fractional byte value {} is invalid, must be an integer", path.key(resource), go_quote(&amount.canonical())));
    }
}

fn volumes(spec: &Value, path: &Path, out: &mut Vec<String>) {
    const OLD: &[(&str, &str, &str)] = &[
        ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
        ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
        ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
        ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
        ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ];
    for (i, v) in list(spec, "volumes").iter().enumerate() {
        let at = path.child("volumes").index(i);
        for (_, shown, why) in OLD.iter().filter(|(key, ..)| !v[*key].is_null()) {
            out.push(format!("{}: {why}", at.child(shown)));
        }
        claim(&v["ephemeral"]["volumeClaimTemplate"]["spec"], &at.child("ephemeral").child("volumeClaimTemplate").child("spec"), out);
    }
    list(spec, "volumes").iter().for_each(|v| overlaps(v, out));
}

/// A path of a volume's file, and where it comes from.
struct File<'a> {
    path: &'a str,
    from: String,
}

impl File<'_> {
    fn shown(&self) -> String {
        if self.from.is_empty() { go_quote(self.path) } else { format!("{} ({})", go_quote(self.path), self.from) }
    }
}

fn files<'a>(source: &'a Value, from: &str) -> Vec<File<'a>> {
    list(source, "items").iter().map(|i| File { path: text(i, "path"), from: from.into() }).collect()
}

/// Files of one volume that lie over or within each other.
fn overlaps(volume: &Value, out: &mut Vec<String>) {
    let mut told = |of: &str, all: Vec<File<'_>>| {
        let mut seen: Vec<File<'_>> = Vec::new();
        for mut file in all {
            file.path = file.path.trim_end_matches('/');
            if file.path.is_empty() {
                continue;
            }
            let within = |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            for other in seen.iter().filter(|o| within(o.path, file.path) || within(file.path, o.path)) {
                out.push(format!("volume {} ({of}): overlapping paths: {} with {}", go_quote(text(volume, "name")), file.shown(), other.shown()));
            }
            seen.push(file);
        }
    };
    let (map, secret, downward) = (&volume["configMap"], &volume["secret"], &volume["downwardAPI"]);
    told(&format!("ConfigMap {}", go_quote(text(map, "name"))), files(map, ""));
    told(&format!("Secret {}", go_quote(text(secret, "secretName"))), files(secret, ""));
    told("DownwardAPI", files(downward, ""));
    let mut all = Vec::new();
    let mut empty = 0;
    for source in list(&volume["projected"], "sources") {
        let of = |kind: &str, word: &str| files(&source[kind], &format!("{word} {}", go_quote(text(&source[kind], "name"))));
        if source.as_object().is_none_or(serde_json::Map::is_empty) {
            empty += 1;
        }
        all.extend(of("configMap", "ConfigMap"));
        all.extend(of("secret", "Secret"));
        all.extend(files(&source["downwardAPI"], "DownwardAPI"));
        if !source["serviceAccountToken"].is_null() {
            all.push(File { path: text(&source["serviceAccountToken"], "path"), from: "ServiceAccountToken".into() });
        }
    }
    told("Projected", all);
    for _ in 0..empty {
        out.push(format!("volume {} (Projected) has no sources provided", go_quote(text(volume, "name"))));
    }
}

/// The containers of all kinds, each with its path.
fn each<'a>(spec: &'a Value, path: &Path) -> Vec<(Path, &'a Value)> {
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    let of = |k: &'static str| {
        let path = path.child(k);
        list(spec, k).iter().enumerate().map(move |(i, c)| (path.index(i), c))
    };
    lists.into_iter().flat_map(of).collect()
}

fn containers(pod: &Value, at: &Path, template: bool, out: &mut Vec<String>) {
    let (spec, annotations) = (&pod["spec"], &pod["metadata"]["annotations"]);
    let all = each(spec, &at.child("spec"));
    for (path, c) in &all {
        let annotated = |prefix: &str| Some(format!("{prefix}{}", text(c, "name"))).filter(|key| annotations.get(key).is_some());
        let place = |key: &str| at.child("metadata").child("annotations").key(key);
        if c["securityContext"]["seccompProfile"].is_null()
            && let Some(key) = annotated("container.seccomp.security.alpha.kubernetes.io/")
        {
            out.push(format!("{}: non-functional in v1.27+; use the \"seccompProfile\" field instead", place(&key)));
        }
        if template
            && c["securityContext"]["appArmorProfile"].is_null()
            && spec["securityContext"]["appArmorProfile"].is_null()
            && let Some(key) = annotated("container.apparmor.security.beta.kubernetes.io/")
        {
            out.push(format!("{}: deprecated since v1.30; use the \"appArmorProfile\" field instead", place(&key)));
        }
        for resource in ["memory", "ephemeral-storage"] {
            for kind in ["limits", "requests"] {
                whole_bytes(&c["resources"][kind], &path.child("resources").child(kind), resource, out);
            }
        }
        let mut seen = BTreeSet::new();
        for (i, e) in list(c, "env").iter().enumerate() {
            let name = text(e, "name");
            let (value, itself) = (text(e, "value"), format!("$({name})"));
            if !seen.insert(name) && (!e["valueFrom"].is_null() || value == itself || !value.contains(&itself)) {
                out.push(format!("{}: hides previous definition of {}, which may be dropped when using apply", path.child("env").index(i), go_quote(name)));
            }
        }
    }
    ports(&all, out);
}

fn ports(containers: &[(Path, &Value)], out: &mut Vec<String>) {
    let mut by_port: BTreeMap<(i64, &str), Vec<(Path, &Value)>> = BTreeMap::new();
    let mut by_name: BTreeMap<&str, Path> = BTreeMap::new();
    let number = |p: &Value, key: &str| p[key].as_i64().unwrap_or(0);
    let every = || containers.iter().flat_map(|(path, c)| list(c, "ports").iter().enumerate().map(|(i, p)| (path.child("ports").index(i), p)));
    for (at, port) in every() {
        let (ip, host) = (text(port, "hostIP"), number(port, "hostPort"));
        let (own, protocol) = (number(port, "containerPort"), text(port, "protocol"));
        if !ip.is_empty() && host == 0 {
            out.push(format!("{at}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{own} Protocol:{protocol} HostIP:{ip}}}", text(port, "name")));
        }
        let others = by_port.entry((own, protocol)).or_default();
        for (place, other) in others.iter() {
            let (other_ip, other_host) = (text(other, "hostIP"), number(other, "hostPort"));
            let what = match () {
                () if ip == other_ip && host == other_host => "duplicate",
                () if host == 0 || other_host == 0 => "overlapping",
                () if host == other_host && ip.is_empty() != other_ip.is_empty() => "dangerously ambiguous",
                () => continue,
            };
            out.push(format!("{at}: {what} port definition with {place}"));
        }
        others.push((at, port));
    }
    for (at, port) in every().filter(|(_, p)| !text(p, "name").is_empty()) {
        let name = text(port, "name");
        if let Some(other) = by_name.get(name) {
            out.push(format!("{at}: duplicate port name {} with {other}, services and probes that select ports by name will use {other}", go_quote(name)));
        } else {
            by_name.insert(name, at);
        }
    }
}

fn service(service: &Value, out: &mut Vec<String>) {
    let spec = &service["spec"];
    if service["metadata"]["annotations"].get("service.kubernetes.io/topology-aware-hints").is_some() {
        out.push("annotation service.kubernetes.io/topology-aware-hints is deprecated, please use service.kubernetes.io/topology-mode instead".into());
    }
    let kind = text(spec, "type");
    let headless = kind == "ClusterIP" && text(spec, "clusterIP") == "None";
    let external = !list(spec, "externalIPs").is_empty();
    if headless {
        if !text(spec, "loadBalancerIP").is_empty() {
            out.push("spec.loadBalancerIP is ignored for headless services".into());
        }
        if external {
            out.push("spec.externalIPs is ignored for headless services".into());
        }
        if text(spec, "sessionAffinity") != "None" {
            out.push("spec.SessionAffinity is ignored for headless services".into());
        }
    }
    if external && !headless && kind != "ExternalName" {
        out.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".into());
    }
    if kind == "ExternalName" && external {
        out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".into());
    }
    if kind != "ExternalName" && !text(spec, "externalName").is_empty() {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
    }
    if text(spec, "trafficDistribution") == "PreferClose" {
        out.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".into());
    }
}

fn claim(spec: &Value, path: &Path, out: &mut Vec<String>) {
    for kind in ["requests", "limits"] {
        whole_bytes(&spec["resources"][kind], &path.child("resources").child(kind), "storage", out);
    }
}

fn volume(spec: &Value, out: &mut Vec<String>) {
    const OLD: &[(&str, &str)] = &[
        ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
        ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ];
    if text(spec, "persistentVolumeReclaimPolicy") == "Recycle" {
        out.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".into());
    }
    for (key, why) in OLD.iter().filter(|(key, _)| !spec[*key].is_null()) {
        out.push(format!("spec.{}: {why}", if *key == "storageos" { "storageOS" } else { key }));
    }
}

fn driver(new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
    let (spec, before) = (&new["spec"], old.map(|o| &o["spec"]["tokenRequests"]));
    if !list(spec, "tokenRequests").is_empty() && spec["serviceAccountTokenInSecrets"].is_null() && before != Some(&spec["tokenRequests"]) {
        out.push(
            "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes".into(),
        );
    }
}
