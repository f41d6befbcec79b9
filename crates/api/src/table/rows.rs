//! The cells of each kind's row.

use super::duration::{Clock, human};
use super::{pod, kinds};
use crate::quantity::Quantity;
use crate::selector::Labels;
use serde_json::Value;

/// An object to be printed at a time.
pub struct Printer<'a> {
    pub obj: &'a Value,
    pub clock: Clock,
}

/// The text at a JSON pointer, empty when there is none.
pub fn text<'a>(v: &'a Value, at: &str) -> &'a str {
    crate::at(v, at).and_then(Value::as_str).unwrap_or_default()
}

/// The list at a JSON pointer, empty when there is none.
pub fn list<'a>(v: &'a Value, at: &str) -> &'a [Value] {
    crate::at(v, at).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

impl<'a> Printer<'a> {
    pub fn text(&self, at: &str) -> &'a str {
        text(self.obj, at)
    }

    pub fn list(&self, at: &str) -> &'a [Value] {
        list(self.obj, at)
    }

    pub fn has(&self, at: &str) -> bool {
        crate::at(self.obj, at).is_some_and(|v| !v.is_null())
    }

    pub fn number(&self, at: &str) -> i64 {
        crate::at(self.obj, at).and_then(Value::as_i64).unwrap_or(0)
    }

    pub fn flag(&self, at: &str, default: bool) -> bool {
        crate::at(self.obj, at).and_then(Value::as_bool).unwrap_or(default)
    }

    pub fn deleted(&self) -> bool {
        self.has("/metadata/deletionTimestamp")
    }

    pub fn name(&self) -> Value {
        self.text("/metadata/name").into()
    }

    pub fn age(&self) -> Value {
        self.since("/metadata/creationTimestamp")
    }

    pub fn since(&self, at: &str) -> Value {
        self.clock.since(crate::at(self.obj, at).and_then(Value::as_str)).into()
    }

    /// The text at a pointer, or another when it is empty.
    pub fn or(&self, at: &str, default: &str) -> Value {
        match self.text(at) {
            "" => default.into(),
            s => s.into(),
        }
    }

    /// The string or number at a pointer as text, or another when there is none.
    fn show_or(&self, at: &str, default: &str) -> Value {
        match crate::at(self.obj, at) {
            Some(Value::String(s)) => s.as_str().into(),
            Some(v) if !v.is_null() => v.to_string().into(),
            _ => default.into(),
        }
    }

    /// Names and images of the containers in a list.
    pub fn containers(&self, at: &str) -> [Value; 2] {
        let join = |key: &str| self.list(at).iter().map(|c| text(c, key)).collect::<Vec<_>>().join(",");
        [join("/name").into(), join("/image").into()]
    }

    pub fn label_map(&self, at: &str) -> Value {
        let map = crate::at(self.obj, at).and_then(Value::as_object);
        let mut pairs: Vec<String> =
            map.into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
        pairs.sort();
        if pairs.is_empty() { "<none>".into() } else { pairs.join(",").into() }
    }

    pub fn selector(&self, at: &str) -> Value {
        match Labels::from_label_selector(crate::at(self.obj, at).unwrap_or(&Value::Null)) {
            Err(_) => "<error>".into(),
            Ok(s) => match s.to_string() {
                s if s.is_empty() => "<none>".into(),
                s => s.into(),
            },
        }
    }

    pub fn condition(&self, kind: &str) -> Option<&'a Value> {
        self.list("/status/conditions").iter().find(|c| text(c, "/type") == kind)
    }

    pub fn is(&self, kind: &str) -> bool {
        self.condition(kind).is_some_and(|c| text(c, "/status") == "True")
    }

    fn quantity(&self, at: &str) -> String {
        let q = crate::at(self.obj, at).and_then(|v| Quantity::from_value(v).ok());
        q.map_or_else(|| "0".to_owned(), |q| q.canonical())
    }

    fn annotation(&self, key: &str) -> &'a str {
        self.obj.get("metadata").and_then(|m| m.get("annotations")).and_then(|a| a.get(key)).and_then(Value::as_str).unwrap_or_default()
    }
}

fn cells<const N: usize>(head: impl IntoIterator<Item = Value>, tail: [Value; N]) -> Vec<Value> {
    head.into_iter().chain(tail).collect()
}

/// Texts joined, of which at most three are shown.
pub fn clip(all: &[String], empty: &str) -> String {
    let shown = all[..all.len().min(3)].join(",");
    match all.len() {
        0 => empty.to_owned(),
        n if n > 3 => format!("{shown} + {} more...", n - 3),
        _ => shown,
    }
}

fn access_modes(modes: &[Value]) -> String {
    let known = [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |m: &str| modes.iter().any(|v| v == m);
    known.iter().filter(|(m, _)| has(m)).map(|(_, s)| *s).collect::<Vec<_>>().join(",")
}

pub fn row(group: &str, kind: &str, p: &Printer<'_>) -> Vec<Value> {
    match (group, kind) {
        ("", "Pod") => pod::row(p),
        ("", "PodTemplate") => {
            let [names, images] = p.containers("/template/spec/containers");
            vec![p.name(), names, images, p.label_map("/template/metadata/labels")]
        }
        ("policy", "PodDisruptionBudget") => vec![
            p.name(),
            p.show_or("/spec/minAvailable", "N/A"),
            p.show_or("/spec/maxUnavailable", "N/A"),
            p.number("/status/disruptionsAllowed").into(),
            p.age(),
        ],
        ("", "ReplicationController") | ("apps", "ReplicaSet") => {
            let selector = if group.is_empty() { p.label_map("/spec/selector") } else { p.selector("/spec/selector") };
            let [names, images] = p.containers("/spec/template/spec/containers");
            vec![
                p.name(),
                p.number("/spec/replicas").into(),
                p.number("/status/replicas").into(),
                p.number("/status/readyReplicas").into(),
                p.age(),
                names,
                images,
                selector,
            ]
        }
        ("apps", "DaemonSet") => {
            let n = |k: &str| Value::from(p.number(&format!("/status/{k}")));
            let [names, images] = p.containers("/spec/template/spec/containers");
            vec![
                p.name(),
                n("desiredNumberScheduled"),
                n("currentNumberScheduled"),
                n("numberReady"),
                n("updatedNumberScheduled"),
                n("numberAvailable"),
                p.label_map("/spec/template/spec/nodeSelector"),
                p.age(),
                names,
                images,
                p.selector("/spec/selector"),
            ]
        }
        ("apps", "Deployment") => {
            let [names, images] = p.containers("/spec/template/spec/containers");
            let selector = Labels::from_label_selector(crate::at(p.obj, "/spec/selector").unwrap_or(&Value::Null));
            vec![
                p.name(),
                format!("{}/{}", p.number("/status/readyReplicas"), p.number("/spec/replicas")).into(),
                p.number("/status/updatedReplicas").into(),
                p.number("/status/availableReplicas").into(),
                p.age(),
                names,
                images,
                selector.map_or_else(|_| "<invalid>".to_owned(), |s| s.to_string()).into(),
            ]
        }
        ("apps", "StatefulSet") => {
            let ready = format!("{}/{}", p.number("/status/readyReplicas"), p.number("/spec/replicas"));
            cells([p.name(), ready.into(), p.age()], p.containers("/spec/template/spec/containers"))
        }
        ("apps", "ControllerRevision") => {
            let owner = p.list("/metadata/ownerReferences").iter().find(|o| o.get("controller") == Some(&true.into()));
            let owner = owner.map_or_else(
                || "<none>".to_owned(),
                |o| {
                    let group = text(o, "/apiVersion").split_once('/').map_or("", |(g, _)| g);
                    format!("{}/{}", crate::status::qualified(group, text(o, "/kind")).to_lowercase(), text(o, "/name"))
                },
            );
            vec![p.name(), owner.into(), p.number("/revision").into(), p.age()]
        }
        ("batch", "Job") => kinds::job(p),
        ("batch", "CronJob") => {
            let suspend = match crate::at(p.obj, "/spec/suspend").and_then(Value::as_bool) {
                Some(true) => "True",
                Some(false) => "False",
                None => "<unset>",
            };
            let last = if p.has("/status/lastScheduleTime") { p.since("/status/lastScheduleTime") } else { "<none>".into() };
            let [names, images] = p.containers("/spec/jobTemplate/spec/template/spec/containers");
            vec![
                p.name(),
                p.text("/spec/schedule").into(),
                p.show_or("/spec/timeZone", "<none>"),
                suspend.into(),
                p.list("/status/active").len().into(),
                last,
                p.age(),
                names,
                images,
                p.selector("/spec/jobTemplate/spec/selector"),
            ]
        }
        ("", "Service") => kinds::service(p),
        ("networking.k8s.io", "Ingress") => {
            let rules = p.list("/spec/rules");
            let mut hosts: Vec<&str> = Vec::new();
            let mut more = false;
            for r in rules {
                more |= hosts.len() == 3;
                let host = text(r, "/host");
                if !more && !host.is_empty() {
                    hosts.push(host);
                }
            }
            let shown = match hosts.join(",") {
                s if s.is_empty() => "*".to_owned(),
                s if more => format!("{s} + {} more...", rules.len() - 3),
                s => s,
            };
            vec![
                p.name(),
                p.show_or("/spec/ingressClassName", "<none>"),
                shown.into(),
                kinds::load_balancer(p).into(),
                if p.list("/spec/tls").is_empty() { "80" } else { "80, 443" }.into(),
                p.age(),
            ]
        }
        ("networking.k8s.io", "IngressClass") => {
            let mut name = p.text("/metadata/name").to_owned();
            if p.annotation("ingressclass.kubernetes.io/is-default-class") == "true" {
                name.push_str(" (default)");
            }
            let parameters = if p.has("/spec/parameters") {
                let kind = crate::status::qualified(p.text("/spec/parameters/apiGroup"), p.text("/spec/parameters/kind"));
                format!("{kind}/{}", p.text("/spec/parameters/name"))
            } else {
                "<none>".to_owned()
            };
            vec![name.into(), p.text("/spec/controller").into(), parameters.into(), p.age()]
        }
        ("networking.k8s.io", "NetworkPolicy") => vec![p.name(), p.selector_or_empty("/spec/podSelector"), p.age()],
        ("networking.k8s.io", "ServiceCIDR") => {
            let cidrs: Vec<&str> = p.list("/spec/cidrs").iter().filter_map(Value::as_str).collect();
            vec![p.name(), cidrs.join(",").into(), p.age()]
        }
        ("networking.k8s.io", "IPAddress") => {
            let parent = if p.has("/spec/parentRef") {
                let t = |k: &str| p.text(&format!("/spec/parentRef/{k}"));
                let namespace = if t("namespace").is_empty() { String::new() } else { format!("/{}", t("namespace")) };
                format!("{}{namespace}/{}", crate::status::qualified(t("group"), t("resource")).to_lowercase(), t("name"))
            } else {
                "<none>".to_owned()
            };
            vec![p.name(), parent.into()]
        }
        ("", "Endpoints") => vec![p.name(), kinds::endpoints(p).into(), p.age()],
        ("discovery.k8s.io", "EndpointSlice") => {
            let ports: Vec<String> = p
                .list("/ports")
                .iter()
                .map(|port| match (port.get("port").and_then(Value::as_i64), port.get("name").and_then(Value::as_str)) {
                    (Some(n), _) => n.to_string(),
                    (None, Some(name)) => name.to_owned(),
                    _ => "*".to_owned(),
                })
                .collect();
            let addresses: Vec<String> = p
                .list("/endpoints")
                .iter()
                .flat_map(|e| list(e, "/addresses"))
                .filter_map(|a| a.as_str().map(str::to_owned))
                .collect();
            vec![
                p.name(),
                p.text("/addressType").into(),
                clip(&ports, "<unset>").into(),
                clip(&addresses, "<unset>").into(),
                p.age(),
            ]
        }
        ("", "Node") => kinds::node(p),
        ("", "Event") | ("events.k8s.io", "Event") => kinds::event(p),
        ("", "Namespace") => vec![p.name(), p.text("/status/phase").into(), p.age()],
        ("", "Secret") => vec![p.name(), p.text("/type").into(), entries(p, "/data").into(), p.age()],
        ("", "ConfigMap") => vec![p.name(), (entries(p, "/data") + entries(p, "/binaryData")).into(), p.age()],
        ("", "PersistentVolume") => {
            let claim = if p.has("/spec/claimRef") {
                format!("{}/{}", p.text("/spec/claimRef/namespace"), p.text("/spec/claimRef/name"))
            } else {
                String::new()
            };
            let class = match p.annotation("volume.beta.kubernetes.io/storage-class") {
                "" => p.text("/spec/storageClassName"),
                c => c,
            };
            vec![
                p.name(),
                p.quantity("/spec/capacity/storage").into(),
                access_modes(p.list("/spec/accessModes")).into(),
                p.text("/spec/persistentVolumeReclaimPolicy").into(),
                if p.deleted() { "Terminating" } else { p.text("/status/phase") }.into(),
                claim.into(),
                class.into(),
                p.show_or("/spec/volumeAttributesClassName", "<unset>"),
                p.text("/status/reason").into(),
                p.age(),
                p.show_or("/spec/volumeMode", "<unset>"),
            ]
        }
        ("", "PersistentVolumeClaim") => {
            let bound = !p.text("/spec/volumeName").is_empty();
            let class = match p.annotation("volume.beta.kubernetes.io/storage-class") {
                "" => p.text("/spec/storageClassName"),
                c => c,
            };
            vec![
                p.name(),
                if p.deleted() { "Terminating" } else { p.text("/status/phase") }.into(),
                p.text("/spec/volumeName").into(),
                if bound { p.quantity("/status/capacity/storage") } else { String::new() }.into(),
                if bound { access_modes(p.list("/status/accessModes")) } else { String::new() }.into(),
                class.into(),
                p.show_or("/spec/volumeAttributesClassName", "<unset>"),
                p.age(),
                p.show_or("/spec/volumeMode", "<unset>"),
            ]
        }
        ("", "ComponentStatus") => {
            let healthy = p.list("/conditions").iter().find(|c| text(c, "/type") == "Healthy");
            let status = match healthy.map(|c| text(c, "/status")) {
                Some("True") => "Healthy",
                Some(_) => "Unhealthy",
                None => "Unknown",
            };
            let t = |k: &str| Value::from(healthy.map_or("", |c| text(c, k)));
            vec![p.name(), status.into(), t("/message"), t("/error")]
        }
        ("", "ResourceQuota") => {
            let (mut requests, mut limits) = (Vec::new(), Vec::new());
            let hard = crate::at(p.obj, "/status/hard").and_then(Value::as_object);
            let mut names: Vec<&String> = hard.into_iter().flat_map(|h| h.keys()).collect();
            names.sort();
            for name in names {
                let q = |m: &str| {
                    let v = p.obj.get("status").and_then(|s| s.get(m)).and_then(|m| m.get(name));
                    v.and_then(|v| Quantity::from_value(v).ok()).map_or_else(|| "0".to_owned(), |q| q.canonical())
                };
                let column = if name.starts_with("limits.") { &mut limits } else { &mut requests };
                column.push(format!("{name}: {}/{}", q("used"), q("hard")));
            }
            vec![p.name(), requests.join(", ").into(), limits.join(", ").into(), p.age()]
        }
        ("autoscaling", "HorizontalPodAutoscaler") => vec![
            p.name(),
            format!("{}/{}", p.text("/spec/scaleTargetRef/kind"), p.text("/spec/scaleTargetRef/name")).into(),
            kinds::hpa_metrics(p).into(),
            p.show_or("/spec/minReplicas", "<unset>"),
            p.number("/spec/maxReplicas").into(),
            p.number("/status/currentReplicas").into(),
            p.age(),
        ],
        ("autoscaling", "Scale") => {
            vec![p.name(), p.number("/spec/replicas").into(), p.number("/status/replicas").into(), p.age()]
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            let subjects = |kind: &str| {
                let names = p.list("/subjects").iter().filter(|s| text(s, "/kind") == kind).map(|s| match kind {
                    "ServiceAccount" => format!("{}/{}", text(s, "/namespace"), text(s, "/name")),
                    _ => text(s, "/name").to_owned(),
                });
                Value::from(names.collect::<Vec<_>>().join(", "))
            };
            vec![
                p.name(),
                format!("{}/{}", p.text("/roleRef/kind"), p.text("/roleRef/name")).into(),
                p.age(),
                subjects("User"),
                subjects("Group"),
                subjects("ServiceAccount"),
            ]
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            let has = |t: &str| p.condition(t).is_some();
            let mut status = if has("Denied") {
                "Denied"
            } else if has("Approved") {
                "Approved"
            } else {
                "Pending"
            }
            .to_owned();
            if has("Failed") {
                status.push_str(",Failed");
            }
            if !p.text("/status/certificate").is_empty() {
                status.push_str(",Issued");
            }
            let wanted = crate::at(p.obj, "/spec/expirationSeconds").and_then(Value::as_i64);
            vec![
                p.name(),
                p.age(),
                p.or("/spec/signerName", "<none>"),
                p.text("/spec/username").into(),
                wanted.map_or_else(|| "<none>".to_owned(), human).into(),
                status.into(),
            ]
        }
        ("certificates.k8s.io", "ClusterTrustBundle") => vec![p.name(), p.or("/spec/signerName", "<none>")],
        ("coordination.k8s.io", "Lease") => vec![p.name(), p.text("/spec/holderIdentity").into(), p.age()],
        ("coordination.k8s.io", "LeaseCandidate") => {
            let t = |k: &str| Value::from(p.text(k));
            vec![p.name(), t("/spec/leaseName"), t("/spec/binaryVersion"), t("/spec/emulationVersion"), p.age()]
        }
        ("storage.k8s.io", "StorageClass") => {
            let mut name = p.text("/metadata/name").to_owned();
            let default = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
            if default.iter().any(|a| p.annotation(a) == "true") {
                name.push_str(" (default)");
            }
            vec![
                name.into(),
                p.text("/provisioner").into(),
                p.show_or("/reclaimPolicy", "Delete"),
                p.show_or("/volumeBindingMode", "Immediate"),
                p.flag("/allowVolumeExpansion", false).into(),
                p.age(),
            ]
        }
        ("storage.k8s.io", "VolumeAttributesClass") => vec![p.name(), p.text("/driverName").into(), p.age()],
        ("storage.k8s.io", "VolumeAttachment") => vec![
            p.name(),
            p.text("/spec/attacher").into(),
            p.text("/spec/source/persistentVolumeName").into(),
            p.text("/spec/nodeName").into(),
            p.flag("/status/attached", false).into(),
            p.age(),
        ],
        ("storage.k8s.io", "CSINode") => vec![p.name(), p.list("/spec/drivers").len().into(), p.age()],
        ("storage.k8s.io", "CSIDriver") => {
            let join = |at: &str, key: &str| {
                let all: Vec<&str> = p.list(at).iter().filter_map(|v| crate::at(v, key)).filter_map(Value::as_str).collect();
                all.join(",")
            };
            let audiences = if p.has("/spec/tokenRequests") { join("/spec/tokenRequests", "/audience") } else { "<unset>".into() };
            let modes = match join("/spec/volumeLifecycleModes", "") {
                s if s.is_empty() => "<none>".to_owned(),
                s => s,
            };
            vec![
                p.name(),
                p.flag("/spec/attachRequired", true).into(),
                p.flag("/spec/podInfoOnMount", false).into(),
                p.flag("/spec/storageCapacity", false).into(),
                audiences.into(),
                p.flag("/spec/requiresRepublish", false).into(),
                modes.into(),
                p.age(),
            ]
        }
        ("storage.k8s.io", "CSIStorageCapacity") => {
            let capacity = if p.has("/capacity") { p.quantity("/capacity") } else { "<unset>".to_owned() };
            vec![p.name(), p.text("/storageClassName").into(), capacity.into()]
        }
        ("scheduling.k8s.io", "PriorityClass") => vec![
            p.name(),
            p.number("/value").into(),
            p.flag("/globalDefault", false).into(),
            p.age(),
            p.text("/preemptionPolicy").into(),
        ],
        ("apiregistration.k8s.io", "APIService") => {
            let service = match p.has("/spec/service") {
                true => format!("{}/{}", p.text("/spec/service/namespace"), p.text("/spec/service/name")),
                false => "Local".to_owned(),
            };
            let condition = p.list("/status/conditions").iter().find(|c| text(c, "/type") == "Available");
            let available = match condition.map(|c| (text(c, "/status"), text(c, "/reason"))) {
                None => "Unknown".to_owned(),
                Some((status @ "True", _) | (status, "")) => status.to_owned(),
                Some((status, reason)) => format!("{status} ({reason})"),
            };
            vec![p.name(), service.into(), available.into(), p.age()]
        }
        ("node.k8s.io", "RuntimeClass") => vec![p.name(), p.text("/handler").into(), p.age()],
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => {
            vec![p.name(), p.list("/webhooks").len().into(), p.age()]
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy") => {
            let rules = p.list("/spec/validations").len() + p.list("/spec/mutations").len();
            let params = if p.has("/spec/paramKind") {
                format!("{}/{}", p.text("/spec/paramKind/apiVersion"), p.text("/spec/paramKind/kind"))
            } else {
                "<unset>".to_owned()
            };
            vec![p.name(), rules.into(), params.into(), p.age()]
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding") => {
            let param = match (p.text("/spec/paramRef/name"), p.text("/spec/paramRef/namespace")) {
                ("", _) if p.has("/spec/paramRef/selector") => p.selector("/spec/paramRef/selector"),
                ("", _) => "<unset>".into(),
                (name, "") => format!("*/{name}").into(),
                (name, namespace) => format!("{namespace}/{name}").into(),
            };
            vec![p.name(), p.text("/spec/policyName").into(), param, p.age()]
        }
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => vec![
            p.name(),
            p.text("/spec/priorityLevelConfiguration/name").into(),
            p.number("/spec/matchingPrecedence").into(),
            p.show_or("/spec/distinguisherMethod/type", "<none>"),
            p.age(),
            p.condition("Dangling").map_or("?", |c| text(c, "/status")).into(),
        ],
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => {
            let n = |k: &str| match crate::at(p.obj, k).and_then(Value::as_i64) {
                Some(n) => n.into(),
                None => Value::from("<none>"),
            };
            vec![
                p.name(),
                p.text("/spec/type").into(),
                n("/spec/limited/nominalConcurrencyShares"),
                n("/spec/limited/limitResponse/queuing/queues"),
                n("/spec/limited/limitResponse/queuing/handSize"),
                n("/spec/limited/limitResponse/queuing/queueLengthLimit"),
                p.age(),
            ]
        }
        ("resource.k8s.io", "ResourceClaim") => {
            let mut states = Vec::new();
            if p.deleted() {
                states.push("deleted");
            }
            if p.has("/status/allocation") {
                states.push("allocated");
                if !p.list("/status/reservedFor").is_empty() {
                    states.push("reserved");
                }
            } else if !p.deleted() {
                states.push("pending");
            }
            vec![p.name(), states.join(",").into(), p.age()]
        }
        ("resource.k8s.io", "ResourceSlice") => vec![
            p.name(),
            p.text("/spec/nodeName").into(),
            p.text("/spec/driver").into(),
            p.text("/spec/pool/name").into(),
            p.age(),
        ],
        ("", "ServiceAccount") | ("resource.k8s.io", "DeviceClass" | "ResourceClaimTemplate") => vec![p.name(), p.age()],
        ("", "Status") => vec![p.text("/status").into(), p.text("/reason").into(), p.text("/message").into()],
        ("metrics.k8s.io", "NodeMetrics" | "PodMetrics") => kinds::metrics(p),
        _ => vec![p.name(), p.text("/metadata/creationTimestamp").into()],
    }
}

impl Printer<'_> {
    /// A selector that selects everything when it is missing.
    fn selector_or_empty(&self, at: &str) -> Value {
        if self.has(at) { self.selector(at) } else { "<none>".into() }
    }
}

fn entries(p: &Printer<'_>, at: &str) -> usize {
    crate::at(p.obj, at).and_then(Value::as_object).map_or(0, serde_json::Map::len)
}
