//! What upstream warns of when an object is written: fields that do nothing, do something else than
//! they look like, or are on their way out. The write goes on.

mod net;
mod nodes;
mod pods;
mod storage;

use serde_json::Value;

use crate::field::{Path, go_quote};
use crate::names;
use crate::quantity::Quantity;
use crate::resources::Resource;

/// Most characters of all warnings of a request that are sent together.
const MOST: usize = 4096;
/// Most characters of each, where they are more together.
const MOST_OF_ONE: usize = 256;

/// What a request is warned of, each once. What could not be sent any more is not kept.
#[derive(Clone, Debug, Default)]
pub struct Warnings {
    all: Vec<String>,
    /// Characters of all, if each is cut.
    length: usize,
}

impl Warnings {
    pub fn push(&mut self, text: String) {
        if !self.is_full() && !self.all.contains(&text) {
            self.length += text.chars().take(MOST_OF_ONE).count();
            self.all.push(text);
        }
    }

    pub fn extend(&mut self, texts: impl IntoIterator<Item = String>) {
        for text in texts {
            if self.is_full() {
                break;
            }
            self.push(text);
        }
    }

    /// Whether nothing more would be sent.
    pub fn is_full(&self) -> bool {
        self.length >= MOST
    }

    pub fn all(&self) -> &[String] {
        &self.all
    }

    pub fn into_all(self) -> Vec<String> {
        self.all
    }

    /// What is sent: where they are too long together, each is cut, and those that still do not fit are left out.
    pub fn sent(self) -> Vec<String> {
        if self.all.iter().map(|text| text.chars().count()).sum::<usize>() <= MOST {
            return self.all;
        }
        self.all.iter().map(|text| text.chars().take(MOST_OF_ONE).collect()).collect()
    }
}

/// The warnings of a new or changed object.
pub fn of(resource: &Resource, new: &Value, old: Option<&Value>) -> Warnings {
    let mut out = Warnings::default();
    if old.is_none() {
        hostname(resource, new, &mut out);
    }
    match (resource.group, resource.kind) {
        ("", "Pod") if old.is_none() => pods::pod(new, &Path::root(), false, &mut out),
        ("", "PodTemplate" | "ReplicationController") | ("apps", _) | ("batch", _) => workload(resource, new, old, &mut out),
        ("", "Service") => service(new, &mut out),
        ("", "PersistentVolumeClaim") => {
            storage::storage_class(new, &mut out);
            storage::claim(&new["spec"], &"spec".into(), &mut out);
        }
        ("", "PersistentVolume") => storage::volume(new, &mut out),
        ("", "Node") => node(&new["spec"], &mut out),
        ("", "ResourceQuota") if old.is_none() => quota(&new["spec"]["hard"], &mut out),
        ("", "ServiceAccount") => {
            const MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";
            let has = |account: &Value| annotation(account, MOUNTABLE);
            if has(new) && !old.is_some_and(has) {
                out.push(format!("metadata.annotations[{MOUNTABLE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"));
            }
        }
        ("", "Endpoints") => endpoints(new, &mut out),
        ("discovery.k8s.io", "EndpointSlice") => slice(new, old.is_none(), &mut out),
        ("networking.k8s.io", "NetworkPolicy") => policy(&new["spec"], &mut out),
        ("networking.k8s.io", "Ingress") if old.is_none() => {
            const CLASS: &str = "kubernetes.io/ingress.class";
            if annotation(new, CLASS) && new["spec"]["ingressClassName"].is_null() {
                out.push(format!("annotation \"{CLASS}\" is deprecated, please use 'spec.ingressClassName' instead"));
            }
        }
        ("node.k8s.io", "RuntimeClass") => {
            out.extend(nodes::old_labels(&new["scheduling"]["nodeSelector"]).map(|(_, why)| format!("scheduling.nodeSelector: {why}")));
        }
        ("storage.k8s.io", "StorageClass") => storage::topologies(list(new, "allowedTopologies"), &mut out),
        ("storage.k8s.io", "CSIStorageCapacity") => {
            let (selector, path) = (&new["nodeTopology"], Path::new("nodeTopology"));
            nodes::term(selector, false, &path, &mut out);
            out.extend(nodes::old_labels(&selector["matchLabels"]).map(|(key, why)| format!("{}: {why}", path.child("matchLabels").child(key))));
        }
        ("storage.k8s.io", "CSIDriver") => storage::driver(new, old, &mut out),
        ("resource.k8s.io", "ResourceSlice") => {
            let name = text(&new["spec"], "driver");
            if name.chars().any(char::is_uppercase) {
                out.push(format!("spec.driver: driver names should be lowercase; {} contains uppercase characters", go_quote(name)));
            }
        }
        ("admissionregistration.k8s.io", _) if text(&new["metadata"], "name").ends_with(".static.k8s.io") => {
            out.push("metadata.name: names ending with \".static.k8s.io\" are reserved for static manifest-based configurations and cannot be managed via the API".into());
        }
        _ => {}
    }
    out
}

/// The warnings of an object whose status is written.
pub fn of_status(resource: &Resource, new: &Value) -> Warnings {
    let mut out = Warnings::default();
    match (resource.group, resource.kind) {
        ("", "Pod") => {
            for key in ["podIPs", "hostIPs"] {
                net::ips_of(&new["status"][key], &Path::new("status").child(key), &mut out);
            }
        }
        ("", "Service") | ("networking.k8s.io", "Ingress") => net::balancer(new, &mut out),
        _ => {}
    }
    out
}

/// Names of pods become names of hosts.
fn hostname(resource: &Resource, new: &Value, out: &mut Warnings) {
    let what = match (resource.group, resource.kind) {
        ("", "Pod") => "the Pod's hostname",
        ("", "ReplicationController") | ("apps", "ReplicaSet" | "Deployment") | ("batch", "Job" | "CronJob") => "Pod names and hostnames",
        _ => return,
    };
    let messages = names::dns1123_label(text(&new["metadata"], "name"));
    if !messages.is_empty() {
        out.push(format!("metadata.name: this is used in {what}, which can result in surprising behavior; a DNS label is recommended: [{}]", messages.join(" ")));
    }
}

fn list<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    v[key].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v[key].as_str().unwrap_or_default()
}

fn annotation(object: &Value, key: &str) -> bool {
    object["metadata"]["annotations"].get(key).is_some()
}

/// Fractions of a byte.
fn whole_bytes(amounts: &Value, path: &Path, resource: &str, out: &mut Warnings) {
    let Some(amount) = amounts.get(resource).and_then(|v| Quantity::from_value(v).ok()) else { return };
    if amount.milli_value() % 1000 != 0 {
        out.push(format!("{}: fractional byte value {} is invalid, must be an integer", path.key(resource), go_quote(&amount.canonical())));
    }
}

/// What makes pods of a template, which is looked at when it is new or may have changed.
fn workload(resource: &Resource, new: &Value, old: Option<&Value>, out: &mut Warnings) {
    let template: &[&str] = match resource.kind {
        "PodTemplate" => &["template"],
        "CronJob" => &["spec", "jobTemplate", "spec", "template"],
        _ => &["spec", "template"],
    };
    let changed = old.is_none_or(|old| match resource.kind {
        "DaemonSet" => old["spec"]["template"] != new["spec"]["template"],
        _ => old["metadata"]["generation"] != new["metadata"]["generation"],
    });
    // upstream looks at what a replication controller had before
    let looked_at = old.filter(|_| resource.kind == "ReplicationController").unwrap_or(new);
    if let Some(template_value) = template.iter().try_fold(looked_at, |v, n| v.get(n)).filter(|_| changed) {
        let at = template.iter().fold(Path::root(), |p, n| p.child(n));
        if resource.group == "batch" {
            many_indexes(new, &template[..template.len() - 1], out);
        }
        pods::pod(template_value, &at, true, out);
    }
    let spec = &new["spec"];
    if resource.kind == "StatefulSet" {
        for (i, c) in list(spec, "volumeClaimTemplates").iter().enumerate() {
            let at = Path::new("spec.volumeClaimTemplates").index(i);
            storage::claim(&c["spec"], &if old.is_some() { at.child("Spec") } else { at }, out);
        }
        if spec["revisionHistoryLimit"].as_i64().is_some_and(|n| n < 0) {
            out.push("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended".into());
        }
    }
    if resource.kind == "CronJob" && old.is_some() && text(spec, "schedule").contains("TZ") {
        let more = "https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/";
        out.push(format!("cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see {more} for more details"));
    }
}

/// Indexed jobs that are too large for all their failures to be told.
fn many_indexes(new: &Value, at: &[&str], out: &mut Warnings) {
    let spec = at.iter().fold(new, |v, n| &v[n]);
    let more = |key: &str, than: i64| spec[key].as_i64().is_some_and(|n| n > than);
    if text(spec, "completionMode") == "Indexed" && more("completions", 100_000) && more("parallelism", 10_000) {
        let path = at.join(".");
        out.push(format!("{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"));
    }
}

fn service(service: &Value, out: &mut Warnings) {
    let spec = &service["spec"];
    if annotation(service, "service.kubernetes.io/topology-aware-hints") {
        out.push("annotation service.kubernetes.io/topology-aware-hints is deprecated, please use service.kubernetes.io/topology-mode instead".into());
    }
    let kind = text(spec, "type");
    let path = Path::new("spec");
    if text(spec, "clusterIP") != "None" {
        net::ips(&spec["clusterIPs"], &path.child("clusterIPs"), out);
    }
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
    net::ips(&spec["externalIPs"], &path.child("externalIPs"), out);
    if external && !headless && kind != "ExternalName" {
        out.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".into());
    }
    net::ip(text(spec, "loadBalancerIP"), &path.child("loadBalancerIP"), out);
    net::cidrs(&spec["loadBalancerSourceRanges"], &path.child("loadBalancerSourceRanges"), out);
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

fn node(spec: &Value, out: &mut Warnings) {
    if !spec["configSource"].is_null() {
        out.push("spec.configSource: the feature is removed".into());
    }
    if !text(spec, "externalID").is_empty() {
        out.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".into());
    }
    net::cidrs(&spec["podCIDRs"], &Path::new("spec.podCIDRs"), out);
}

/// Requests that may be more than the limits.
fn quota(hard: &Value, out: &mut Warnings) {
    for name in ["cpu", "memory", "storage", "ephemeral-storage"] {
        let (request, limit) = (format!("requests.{name}"), format!("limits.{name}"));
        let request = if matches!(name, "cpu" | "memory") && hard.get(&request).is_none() { name } else { &request };
        let amount = |key: &str| hard.get(key).and_then(|v| Quantity::from_value(v).ok());
        if let (Some(asked), Some(most)) = (amount(request), amount(&limit))
            && asked > most
        {
            out.push(format!("ResourceQuota {request} ({}) should be less than {limit} ({})", asked.canonical(), most.canonical()));
        }
    }
}

fn managed_by<'a>(object: &'a Value, label: &str) -> &'a str {
    text(&object["metadata"]["labels"], label)
}

fn endpoints(endpoints: &Value, out: &mut Warnings) {
    if managed_by(endpoints, "endpoints.kubernetes.io/managed-by") == "endpoint-controller" {
        return;
    }
    for (i, subset) in list(endpoints, "subsets").iter().enumerate() {
        let at = Path::new("subsets").index(i);
        for key in ["addresses", "notReadyAddresses"] {
            net::ips_of(&subset[key], &at.child(key), out);
        }
    }
}

fn slice(slice: &Value, new: bool, out: &mut Warnings) {
    if new && text(slice, "addressType") == "FQDN" {
        out.push("spec.addressType: FQDN endpoints are deprecated".into());
    }
    if matches!(managed_by(slice, "endpointslice.kubernetes.io/managed-by"), "endpointslice-controller.k8s.io" | "endpointslicemirroring-controller.k8s.io") {
        return;
    }
    for (i, endpoint) in list(slice, "endpoints").iter().enumerate() {
        net::ips(&endpoint["addresses"], &Path::new("endpoints").index(i).child("addresses"), out);
    }
}

fn policy(spec: &Value, out: &mut Warnings) {
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in list(spec, rules).iter().enumerate() {
            for (j, peer) in list(rule, peers).iter().enumerate() {
                let (block, at) = (&peer["ipBlock"], Path::new("spec").child(rules).index(i).child(peers).index(j).child("ipBlock"));
                net::cidr(text(block, "cidr"), &at.child("cidr"), out);
                net::cidrs(&block["except"], &at.child("except"), out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_warnings_are_cut() {
        let of = |texts: Vec<String>| {
            let mut warnings = Warnings::default();
            warnings.extend(texts);
            warnings.sent()
        };
        let few = vec!["a".repeat(4000), "b".repeat(96)];
        assert_eq!(of(few.iter().cloned().chain(few.clone()).collect()), few, "each once");
        let sent = of((0..1000).map(|i| format!("{i}{}", "é".repeat(300))).collect());
        assert!(sent.len() == 16 && sent.iter().all(|w| w.chars().count() == 256));
    }
}
