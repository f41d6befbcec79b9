//! Pods and templates of pods.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::nodes::{self, old_label};
use super::storage::claim;
use super::{Warnings, list, net, text, whole_bytes};
use crate::field::{Path, go_quote};
use crate::{apparmor, seccomp};

/// A pod or a template, at its path.
pub(super) fn pod(pod: &Value, at: &Path, template: bool, out: &mut Warnings) {
    let (spec, path) = (&pod["spec"], at.child("spec"));
    for (key, why) in nodes::old_labels(&spec["nodeSelector"]) {
        out.push(format!("{}: {why}", path.child("nodeSelector").key(key)));
    }
    node_affinity(&spec["affinity"]["nodeAffinity"], &path.child("affinity").child("nodeAffinity"), out);
    for (i, constraint) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let (path, key) = (path.child("topologySpreadConstraints").index(i), text(constraint, "topologyKey"));
        if let Some(why) = old_label(key) {
            out.push(format!("{}: {key} is {why}", path.child("topologyKey")));
        }
        null_selector(constraint, &path, out);
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
    if spec["securityContext"]["seccompProfile"].is_null() && annotations.get(seccomp::POD).is_some() {
        let key = at.child("metadata").child("annotations").key(seccomp::POD);
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
    net::ips(&spec["dnsConfig"]["nameservers"], &path.child("dnsConfig").child("nameservers"), out);
    net::ips_of(&spec["hostAliases"], &path.child("hostAliases"), out);
}

fn node_affinity(affinity: &Value, path: &Path, out: &mut Warnings) {
    let (required, preferred) = ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
    nodes::selector(&affinity[required], &path.child(required), out);
    for (i, weighted) in list(affinity, preferred).iter().enumerate() {
        let (term, at) = (&weighted["preference"], path.child(preferred).index(i).child("preference"));
        nodes::term(term, true, &at, out);
    }
}

fn null_selector(term: &Value, path: &Path, out: &mut Warnings) {
    if term["labelSelector"].is_null() {
        out.push(format!("{}: a null labelSelector results in matching no pod", path.child("labelSelector")));
    }
}

fn duplicates(items: &[Value], key: &str, path: &Path, out: &mut Warnings) {
    let mut seen = BTreeSet::new();
    for (i, item) in items.iter().enumerate() {
        if !seen.insert(text(item, key)) {
            out.push(format!("{}: duplicate {key} {}", path.index(i).child(key), go_quote(text(item, key))));
        }
    }
}

fn volumes(spec: &Value, path: &Path, out: &mut Warnings) {
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
#[derive(PartialEq)]
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
fn overlaps(volume: &Value, out: &mut Warnings) {
    let name = go_quote(text(volume, "name"));
    let (map, secret, downward) = (&volume["configMap"], &volume["secret"], &volume["downwardAPI"]);
    for (of, files) in [
        (format!("ConfigMap {}", go_quote(text(map, "name"))), files(map, "")),
        (format!("Secret {}", go_quote(text(secret, "secretName"))), files(secret, "")),
        ("DownwardAPI".to_owned(), files(downward, "")),
    ] {
        within(&format!("volume {name} ({of})"), files, &mut Tree::default(), out);
    }
    let mut seen = Tree::default();
    for source in list(&volume["projected"], "sources") {
        if source.as_object().is_none_or(serde_json::Map::is_empty) {
            out.push(format!("volume {name} (Projected) has no sources provided"));
        }
        within(&format!("volume {name} (Projected)"), projected(source), &mut seen, out);
    }
}

/// The files of one source of a projected volume.
fn projected(source: &Value) -> Vec<File<'_>> {
    const ALONE: &[(&str, &str, &str)] = &[
        ("serviceAccountToken", "path", "ServiceAccountToken"),
        ("podCertificate", "certificateChainPath", "PodCertificate chain"),
        ("podCertificate", "keyPath", "PodCertificate key"),
        ("podCertificate", "credentialBundlePath", "PodCertificate credential bundle"),
    ];
    let of = |kind: &str, word: &str| files(&source[kind], &format!("{word} {}", go_quote(text(&source[kind], "name"))));
    let mut all = of("configMap", "ConfigMap");
    all.extend(of("secret", "Secret"));
    all.extend(files(&source["downwardAPI"], "DownwardAPI"));
    all.extend(ALONE.iter().map(|(kind, key, word)| File { path: text(&source[*kind], key), from: (*word).into() }));
    let bundle = &source["clusterTrustBundle"];
    let name = if bundle["name"].is_null() { "signerName" } else { "name" };
    all.push(File { path: text(bundle, "path"), from: format!("ClusterTrustBundle {}", go_quote(text(bundle, name))) });
    all
}

/// Files by the parts of their paths.
#[derive(Default)]
struct Tree<'a> {
    files: Vec<File<'a>>,
    /// What ends at a place, and the places below it. The first is the root.
    places: Vec<(Vec<usize>, HashMap<&'a str, usize>)>,
}

impl<'a> Tree<'a> {
    /// Puts a file in its place. Answers those that are over or within it, as they came.
    fn add(&mut self, file: File<'a>) -> Vec<usize> {
        if self.places.is_empty() {
            self.places.push(Default::default());
        }
        let (mut at, mut met) = (0, Vec::new());
        for part in file.path.split('/') {
            met.extend(&self.places[at].0);
            let next = self.places.len();
            at = *self.places[at].1.entry(part).or_insert(next);
            if at == next {
                self.places.push(Default::default());
            }
        }
        let mut open = vec![at];
        while let Some(place) = open.pop() {
            met.extend(&self.places[place].0);
            open.extend(self.places[place].1.values());
        }
        met.sort_unstable();
        // of equal ones the same would be said again
        if !self.places[at].0.iter().any(|other| self.files[*other] == file) {
            self.places[at].0.push(self.files.len());
            self.files.push(file);
        }
        met
    }
}

/// Tells of files that are over or within those seen before.
fn within<'a>(of: &str, files: Vec<File<'a>>, seen: &mut Tree<'a>, out: &mut Warnings) {
    for mut file in files {
        file.path = file.path.trim_end_matches('/');
        if file.path.is_empty() {
            continue;
        }
        if out.is_full() {
            return;
        }
        let shown = file.shown();
        for other in seen.add(file) {
            out.push(format!("{of}: overlapping paths: {shown} with {}", seen.files[other].shown()));
        }
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

fn containers(pod: &Value, at: &Path, template: bool, out: &mut Warnings) {
    let (spec, annotations) = (&pod["spec"], &pod["metadata"]["annotations"]);
    let all = each(spec, &at.child("spec"));
    for (path, c) in &all {
        let annotated = |prefix: &str| Some(format!("{prefix}{}", text(c, "name"))).filter(|key| annotations.get(key).is_some());
        let place = |key: &str| at.child("metadata").child("annotations").key(key);
        if c["securityContext"]["seccompProfile"].is_null()
            && let Some(key) = annotated(seccomp::CONTAINER)
        {
            out.push(format!("{}: non-functional in v1.27+; use the \"seccompProfile\" field instead", place(&key)));
        }
        // a pod's own annotations become fields as it is made
        if template
            && c["securityContext"]["appArmorProfile"].is_null()
            && let Some(key) = annotated(apparmor::ANNOTATION)
        {
            let of_pod = &spec["securityContext"]["appArmorProfile"];
            if of_pod.is_null() || Some(of_pod) != apparmor::profile(text(annotations, &key)).as_ref() {
                out.push(apparmor::deprecated(&place(&key)));
            }
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

/// The ports of a number and protocol that were met so far.
#[derive(Default)]
struct Same<'a> {
    places: Vec<Path>,
    /// Those without a port on the host, those by it, and by it and its address.
    inside: Vec<usize>,
    by_host: HashMap<i64, Vec<usize>>,
    by_address: HashMap<(i64, &'a str), Vec<usize>>,
}

impl<'a> Same<'a> {
    /// Those that a port may be mistaken for, in their order, and how.
    fn like(&self, host: i64, ip: &'a str) -> Vec<(usize, &'static str)> {
        let equal = self.by_address.get(&(host, ip));
        let is_equal = |i: &usize| equal.is_some_and(|e| e.binary_search(i).is_ok());
        let name = |how: &'static str| move |i: usize| (i, how);
        let mut all: Vec<(usize, &'static str)> = equal.into_iter().flatten().copied().map(name("duplicate")).collect();
        if host == 0 {
            all.extend((0..self.places.len()).filter(|i| !is_equal(i)).map(name("overlapping")));
        } else {
            all.extend(self.inside.iter().copied().map(name("overlapping")));
            let ambiguous = if ip.is_empty() { self.by_host.get(&host) } else { self.by_address.get(&(host, "")) };
            all.extend(ambiguous.into_iter().flatten().copied().filter(|i| !is_equal(i)).map(name("dangerously ambiguous")));
        }
        all.sort_unstable();
        all
    }

    fn add(&mut self, place: Path, host: i64, ip: &'a str) {
        let index = self.places.len();
        self.places.push(place);
        if host == 0 {
            self.inside.push(index);
        }
        self.by_host.entry(host).or_default().push(index);
        self.by_address.entry((host, ip)).or_default().push(index);
    }
}

fn ports(containers: &[(Path, &Value)], out: &mut Warnings) {
    let mut by_port: BTreeMap<(i64, &str), Same<'_>> = BTreeMap::new();
    let mut by_name: BTreeMap<&str, Path> = BTreeMap::new();
    let number = |p: &Value, key: &str| p[key].as_i64().unwrap_or(0);
    let every = || containers.iter().flat_map(|(path, c)| list(c, "ports").iter().enumerate().map(|(i, p)| (path.child("ports").index(i), p)));
    for (at, port) in every() {
        if out.is_full() {
            return;
        }
        let (ip, host) = (text(port, "hostIP"), number(port, "hostPort"));
        let (own, protocol) = (number(port, "containerPort"), text(port, "protocol"));
        if !ip.is_empty() && host == 0 {
            out.push(format!("{at}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{own} Protocol:{protocol} HostIP:{ip}}}", text(port, "name")));
        }
        let others = by_port.entry((own, protocol)).or_default();
        for (other, how) in others.like(host, ip) {
            out.push(format!("{at}: {how} port definition with {}", others.places[other]));
        }
        others.add(at, host, ip);
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
