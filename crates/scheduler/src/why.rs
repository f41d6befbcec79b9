//! Why not? What keeps a pod from running or a node from Ready, on one screen, with what to do.
//!
//! The answers are worked out by pure functions from what any API server shows: objects and events.
//! For a pod that waits for a node the scheduler's own core is asked, node by node.

mod devices;
#[cfg(test)]
mod scenarios;
mod volumes;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStatus, Event, Node, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use serde::Serialize;

use crate::cluster::Cluster;
use crate::config::Config;
use crate::decide::{Decision, NodeReasons, Turn, decide};
use crate::node::NodeView;
use crate::pod::PodInfo;
use crate::storage::Lookup;
pub use crate::devices::Devices;
pub use crate::storage::Listed;

/// One thing that stands in the way.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What: a container, a node, the pod itself.
    pub subject: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub fix: String,
}

/// The answer about one object.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// As `pod/default/web`.
    pub object: String,
    /// One line: how it stands.
    pub summary: String,
    pub findings: Vec<Finding>,
    /// The latest warnings about it, newest last.
    pub events: Vec<String>,
}

impl Report {
    /// The report as text for a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{}: {}\n", self.object, self.summary);
        for finding in &self.findings {
            text += &format!("\n  {}: {}\n    → {}\n", finding.subject, finding.problem, finding.fix);
        }
        if !self.events.is_empty() {
            text += "\n  recent warnings:\n";
            self.events.iter().for_each(|e| text += &format!("    {e}\n"));
        }
        text
    }
}

/// Asks about a pod.
pub async fn pod(client: &Client, namespace: &str, name: &str) -> kube::Result<Report> {
    let pod = Api::<Pod>::namespaced(client.clone(), namespace).get(name).await?;
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?.items;
    let pods = Api::<PodInfo>::all(client.clone()).list(&ListParams::default()).await?.items;
    let events = events(client, namespace, name, "Pod").await?;
    let uses_volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).any(|v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some());
    let storage = if uses_volumes { Listed::read(client).await? } else { Listed::default() };
    let devices = if devices::concern(&pod) { Devices::read(client).await? } else { Devices::default() };
    Ok(about_pod(&pod, nodes, pods, storage, devices, &events))
}

/// Asks about a node.
pub async fn node(client: &Client, name: &str) -> kube::Result<Report> {
    let node = Api::<Node>::all(client.clone()).get(name).await?;
    let events = events(client, "default", name, "Node").await?;
    Ok(about_node(&node, &events))
}

async fn events(client: &Client, namespace: &str, name: &str, kind: &str) -> kube::Result<Vec<Event>> {
    let selector = format!("involvedObject.name={name},involvedObject.kind={kind}");
    let mut events = Api::<Event>::namespaced(client.clone(), namespace).list(&ListParams::default().fields(&selector)).await?.items;
    events.sort_by_key(|e| e.last_timestamp.as_ref().map(|t| t.0).or(e.event_time.as_ref().map(|t| t.0)));
    Ok(events)
}

fn warnings(events: &[Event]) -> Vec<String> {
    let warnings = events.iter().filter(|e| e.type_.as_deref() == Some("Warning"));
    let line = |e: &Event| {
        let times = e.count.filter(|n| *n > 1).map_or(String::new(), |n| format!(" (x{n})"));
        format!("{}{times}: {}", e.reason.clone().unwrap_or_default(), e.message.clone().unwrap_or_default().trim())
    };
    let mut lines: Vec<String> = warnings.map(line).collect();
    lines.split_off(lines.len().saturating_sub(5))
}

fn finding(subject: impl Into<String>, problem: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { subject: subject.into(), problem: problem.into(), fix: fix.into() }
}

/// What can be said of a pod. `storage` and `devices` may be empty when the pod has no claims on such.
pub fn about_pod(pod: &Pod, nodes: Vec<Node>, pods: Vec<PodInfo>, storage: Listed, devices: Devices, events: &[Event]) -> Report {
    let object = format!("pod/{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    let status = pod.status.clone().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    let phase = status.phase.clone().unwrap_or_else(|| "Pending".into());
    let assigned = spec.node_name.clone().filter(|n| !n.is_empty());
    let mut findings = Vec::new();

    if pod.metadata.deletion_timestamp.is_some() {
        let holding = pod.finalizers().join(", ");
        if holding.is_empty() {
            findings.push(finding("pod", "it is being deleted and its containers are stopping", format!("wait for its grace period of {} s", pod.metadata.deletion_grace_period_seconds.unwrap_or(30))));
        } else {
            findings.push(finding("pod", format!("it is being deleted, and finalizers hold it: {holding}"), "whoever set them must remove them"));
        }
    }
    match &assigned {
        None if !matches!(phase.as_str(), "Succeeded" | "Failed") => waiting_for_node(pod, &nodes, pods, storage, devices, &mut findings),
        Some(name) => match nodes.iter().find(|n| n.name_any() == *name) {
            None => findings.push(finding(format!("node {name}"), "the node does not exist any more", "the pod will be collected; its controller makes a new one")),
            Some(node) if !ready(node) => findings.push(finding(format!("node {name}"), "the node is not Ready", format!("knarr why node/{name}"))),
            Some(_) => {}
        },
        None => {}
    }
    let containers = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    containers.for_each(|c| container(pod, c, events, &mut findings));
    if assigned.is_some() && phase == "Pending" && findings.is_empty() {
        for event in events.iter().rev().filter(|e| e.type_.as_deref() == Some("Warning")).take(1) {
            let reason = event.reason.clone().unwrap_or_default();
            let fix = match reason.as_str() {
                "FailedMount" => "create what the volume names, or mark it optional",
                "FailedCreatePodSandBox" => "knarr status, and the server's log, say what the node could not do",
                _ => "mend what the event names",
            };
            findings.push(finding(format!("event {reason}"), event.message.clone().unwrap_or_default(), fix));
        }
    }
    let running = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let summary = match (phase.as_str(), running) {
        ("Running", true) if findings.is_empty() => "runs and is ready; nothing stands in its way".to_string(),
        ("Succeeded", _) => "has run to completion".to_string(),
        ("Running", false) => "runs, but is not ready".to_string(),
        _ => {
            let reason = status.reason.map_or(String::new(), |r| format!(" ({r})"));
            let message = status.message.map_or(String::new(), |m| format!(": {m}"));
            format!("{phase}{reason}{message}")
        }
    };
    Report { object, summary, findings, events: warnings(events) }
}

fn waiting_for_node(pod: &Pod, nodes: &[Node], pods: Vec<PodInfo>, storage: Listed, devices: Devices, findings: &mut Vec<Finding>) {
    let gates = pod.spec.as_ref().and_then(|s| s.scheduling_gates.clone()).unwrap_or_default();
    if !gates.is_empty() {
        let names: Vec<String> = gates.into_iter().map(|g| g.name).collect();
        findings.push(finding("scheduling gates", format!("the pod waits behind {}", names.join(", ")), "whoever set them must remove them from spec.schedulingGates"));
        return;
    }
    let scheduler = pod.spec.as_ref().and_then(|s| s.scheduler_name.clone()).unwrap_or_default();
    if !scheduler.is_empty() && scheduler != "default-scheduler" {
        findings.push(finding("scheduler", format!("the pod is for the scheduler {scheduler:?}"), "run that scheduler, or leave spec.schedulerName out"));
        return;
    }
    let views = nodes.iter().filter_map(|n| serde_json::to_value(n).ok().and_then(|v| serde_json::from_value::<NodeView>(v).ok()).map(Arc::new));
    let storage = Arc::new(storage);
    let mut plugins = crate::storage::plugins::over(storage.clone(), &pods);
    plugins.push(devices.plugin());
    let mut cluster = Cluster::new(views, pods.into_iter().map(Arc::new));
    let Ok(info) = PodInfo::of(pod) else { return };
    if devices::held(&info, &devices, findings) {
        return;
    }
    let config = Config::default();
    let turn = Turn { config: &config, profile: 0, plugins: &plugins, budgets: &[], start: 0, seed: 0, explain: true };
    match decide(&mut cluster, &info, &turn).decision {
        Decision::Bind(node) => findings.push(finding("scheduler", format!("the pod fits node {node} but is not bound yet"), "wait a moment; if it stays so, knarr status tells whether the scheduler runs")),
        Decision::Failed(message) => findings.push(finding("scheduler", message, "mend what it names")),
        Decision::Unschedulable(failure) if cluster.is_empty() => findings.push(finding("scheduler", failure.message, "add a node: knarr agent --server URL --token TOKEN")),
        Decision::Unschedulable(failure) => {
            if let Some(victims) = &failure.preemption {
                let names: Vec<&str> = victims.pods.iter().map(|p| p.name()).collect();
                findings.push(finding("scheduler", format!("on node {} it takes the place of {}, of lower priority", victims.node, names.join(", ")), "wait until they have ended"));
            }
            match &failure.whole {
                Some(rejection) if rejection.plugin == crate::devices::NAME => devices::whole(&info, rejection, findings),
                Some(rejection) => volumes::whole(&info, rejection, &*storage, findings),
                None => {}
            }
            failure.nodes.iter().for_each(|n| rejected(&info, n, &cluster, &*storage, &devices, findings));
        }
    }
}

fn rejected(pod: &PodInfo, reasons: &NodeReasons, cluster: &Cluster, storage: &dyn Lookup, known: &Devices, findings: &mut Vec<Finding>) {
    let Some(info) = cluster.node(&reasons.node) else { return };
    let rejection = &reasons.rejection;
    let shape = &pod.shape;
    for reason in rejection.reasons(pod) {
        let (problem, fix) = match rejection.plugin {
            "TaintToleration" => {
                let list: Vec<String> = info.view.taints.iter().filter(|t| t.is_hard() && !shape.tolerates(t)).map(|t| format!("{}={}:{:?}", t.key, t.value, t.effect)).collect();
                let first = list.first().cloned().unwrap_or_default();
                (
                    format!("the pod does not tolerate the node's taint {}", list.join(", ")),
                    format!("add a toleration to the pod, or: kubectl taint nodes {} {first}-", reasons.node),
                )
            }
            "NodeUnschedulable" => ("the node is cordoned".to_string(), format!("kubectl uncordon {}", reasons.node)),
            "NodeAffinity" => {
                let lacking: Vec<String> =
                    shape.rule.selector.iter().filter(|(k, v)| info.view.labels.get(k) != Some(v.as_ref())).map(|(k, v)| format!("{k}={v}")).collect();
                if lacking.is_empty() {
                    ("the node does not match the pod's required node affinity".to_string(), "change spec.affinity.nodeAffinity, or the node's labels".to_string())
                } else {
                    (format!("the node lacks the labels {}", lacking.join(", ")), format!("kubectl label nodes {} {}", reasons.node, lacking.join(" ")))
                }
            }
            "NodeResourcesFit" => {
                let resource = reason.trim_start_matches("Insufficient ").to_string();
                if reason == "Too many pods" {
                    (format!("{} pods are on the node, which takes {}", info.pods.len(), info.pods_allowed()), "delete pods there, or add a node".to_string())
                } else {
                    let all = info.view.allocatable.get(&resource);
                    let free = all - info.requested.get(&resource);
                    (
                        format!("{reason}: the pod asks for {}, {} of {} is free", show(&resource, shape.requests.get(&resource)), show(&resource, free), show(&resource, all)),
                        if rejection.resolvable { "ask for less, delete other pods there, or add a node" } else { "no node of this size can ever take it: ask for less, or add a larger node" }.to_string(),
                    )
                }
            }
            "NodePorts" => ("another pod has one of the pod's host ports".to_string(), "use another hostPort, or none and a Service instead".to_string()),
            "InterPodAffinity" if reason.contains("existing pods") => ("a pod there wants none like this one near it".to_string(), "change that pod's podAntiAffinity, or this pod's labels".to_string()),
            "InterPodAffinity" if reason.contains("anti-affinity") => ("a pod that this one wants far away is there, or in the same domain".to_string(), "add a node in another domain, or relax the pod's podAntiAffinity".to_string()),
            "InterPodAffinity" => ("no pod that this one wants near is there, or in the same domain".to_string(), "run such a pod there first, or relax the pod's podAffinity".to_string()),
            "PodTopologySpread" if reason.contains("missing") => {
                let lacking: Vec<&str> = shape.spread.iter().map(|c| c.topology.as_ref()).filter(|k| info.view.labels.get(k).is_none()).collect();
                (format!("the node lacks the label {} over which the pod is to be spread", lacking.join(", ")), format!("kubectl label nodes {} {}=…", reasons.node, lacking.first().unwrap_or(&"")))
            }
            "PodTopologySpread" => ("one more pod there would make the spread more uneven than maxSkew allows".to_string(), "add nodes in the domains with the fewest pods, or raise maxSkew".to_string()),
            "VolumeBinding" | "VolumeRestrictions" | "NodeVolumeLimits" | "VolumeZone" => volumes::on_node(pod, &reason, rejection.plugin, info, storage),
            crate::devices::NAME => devices::on_node(pod, &reason, &info.view, known),
            "NodeDeclaredFeatures" => {
                let lacking: Vec<&str> = shape.features.iter().copied().filter(|f| !info.view.declares(f)).collect();
                let ask = |feature: &str| match feature {
                    "RestartAllContainersOnContainerExits" => "restartPolicyRules with the action RestartAllContainers",
                    _ => "hostUsers: false together with hostNetwork: true",
                };
                let asked: Vec<&str> = lacking.iter().map(|f| ask(f)).collect();
                (
                    format!("the node's kubelet has not declared {} (status.declaredFeatures)", lacking.join(", ")),
                    format!("leave {} out of the pod, or add a node whose kubelet can do it", asked.join(" and ")),
                )
            }
            _ => (reason.clone(), "change the pod or the node".to_string()),
        };
        findings.push(finding(format!("node {} ({})", reasons.node, rejection.plugin), problem, fix));
    }
}

fn show(resource: &str, amount: i64) -> String {
    match resource {
        "cpu" if amount % 1000 == 0 => format!("{} cores", amount / 1000),
        "cpu" => format!("{amount}m cores"),
        "memory" | "ephemeral-storage" => format!("{} MiB", amount / (1024 * 1024)),
        _ => amount.to_string(),
    }
}

fn container(pod: &Pod, status: &ContainerStatus, events: &[Event], findings: &mut Vec<Finding>) {
    let subject = format!("container {}", status.name);
    let logs = format!("kubectl logs -n {} {} -c {}", pod.namespace().unwrap_or_default(), pod.name_any(), status.name);
    let state = status.state.clone().unwrap_or_default();
    if let Some(waiting) = state.waiting {
        let reason = waiting.reason.unwrap_or_default();
        let message = waiting.message.unwrap_or_default();
        let last = status.last_state.as_ref().and_then(|s| s.terminated.as_ref());
        match reason.as_str() {
            "CrashLoopBackOff" => {
                let end = last.map_or("its process keeps ending".to_string(), |t| ended(t.exit_code, t.reason.as_deref()));
                findings.push(finding(subject, format!("it was restarted {} times: {end}; {message}", status.restart_count), format!("{logs} --previous")));
            }
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => findings.push(finding(
                subject,
                format!("its image {} cannot be had: {message}", status.image),
                "check the name and the registry; knarr image pull tries it by hand, knarr image import loads a file",
            )),
            "CreateContainerConfigError" => findings.push(finding(subject, message, "create the ConfigMap, Secret or key that it names")),
            "ContainerCreating" | "PodInitializing" | "" => {}
            _ => findings.push(finding(subject, format!("{reason}: {message}"), logs)),
        }
    } else if let Some(end) = state.terminated {
        if end.exit_code != 0 {
            findings.push(finding(subject, ended(end.exit_code, end.reason.as_deref()), logs));
        }
    } else if !status.ready {
        let probe = events.iter().rev().find(|e| {
            e.reason.as_deref() == Some("Unhealthy") && e.involved_object.field_path.as_deref().is_some_and(|p| p.contains(&format!("{{{}}}", status.name)))
        });
        let problem = probe.and_then(|e| e.message.clone()).unwrap_or_else(|| "it runs, but its readiness probe has not succeeded yet".into());
        findings.push(finding(subject, problem.trim().to_string(), format!("see what it says: {logs}")));
    }
}

fn ended(code: i32, reason: Option<&str>) -> String {
    match (code, reason) {
        (_, Some("OOMKilled")) => "it was killed because it used more memory than its limit".to_string(),
        (137, _) => "it was killed (SIGKILL)".to_string(),
        (143, _) => "it was told to end (SIGTERM)".to_string(),
        (126, _) => "its command cannot be executed (exit code 126)".to_string(),
        (127, _) => "its command was not found (exit code 127)".to_string(),
        (code, _) => format!("its process ended with exit code {code}"),
    }
}

fn ready(node: &Node) -> bool {
    node.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == "Ready" && c.status == "True")
}

/// What can be said of a node.
pub fn about_node(node: &Node, events: &[Event]) -> Report {
    let name = node.name_any();
    let mut findings = Vec::new();
    for c in node.status.iter().flat_map(|s| s.conditions.iter().flatten()) {
        let message = c.message.clone().unwrap_or_default();
        match (c.type_.as_str(), c.status.as_str()) {
            ("Ready", "True") => {}
            ("Ready", "Unknown") => findings.push(finding("kubelet", message, "the node is off, cut off, or its agent is not running: start it, or see its log")),
            ("Ready", _) => findings.push(finding("kubelet", message, "the node's own message says what it waits for")),
            ("MemoryPressure", "True") => findings.push(finding("memory", message, "end what uses memory there, or set requests so that less is put there")),
            ("DiskPressure", "True") => findings.push(finding("disk", message, "free disk space: unused images (knarr image rm), logs, volumes")),
            ("PIDPressure", "True") => findings.push(finding("process ids", message, "end what makes so many processes")),
            _ => {}
        }
    }
    if node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true)) {
        findings.push(finding("scheduling", "the node is cordoned: no new pods come", format!("kubectl uncordon {name}")));
    }
    let summary = match (ready(node), findings.is_empty()) {
        (true, true) => "is Ready; nothing stands in its way",
        (true, false) => "is Ready, but",
        (false, false) => "is not Ready",
        (false, true) => "has not said anything yet: its agent has registered it but not reported",
    };
    Report { object: format!("node/{name}"), summary: summary.into(), findings, events: warnings(events) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(taints: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n1"}, "spec": {"taints": taints}, "status": {
            "allocatable": {"cpu": "2", "memory": "1Gi", "pods": "110"}, "conditions": [{"type": "Ready", "status": "True"}]}}))
        .expect("a node")
    }

    fn pod(spec: Value, status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec, "status": status})).expect("a pod")
    }

    #[test]
    fn a_pending_pod_is_told_node_by_node_what_to_do() {
        let asking = pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "8"}}}]}), json!({"phase": "Pending"}));
        let report = about_pod(&asking, vec![node(json!([]))], Vec::new(), Listed::default(), Devices::default(), &[]);
        assert_eq!(report.findings[0].subject, "node n1 (NodeResourcesFit)");
        assert_eq!(report.findings[0].problem, "Insufficient cpu: the pod asks for 8 cores, 2 cores of 2 cores is free");
        let plain = pod(json!({"containers": []}), json!({}));
        let report = about_pod(&plain, vec![node(json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]))], Vec::new(), Listed::default(), Devices::default(), &[]);
        assert!(report.findings[0].fix.ends_with("kubectl taint nodes n1 k=v:NoSchedule-"), "{report:?}");
    }

    #[test]
    fn features_that_a_node_has_not_declared_are_named() {
        let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [3]}}]);
        let wanting = pod(json!({"containers": [{"name": "c", "restartPolicy": "Never", "restartPolicyRules": rules}]}), json!({"phase": "Pending"}));
        let report = about_pod(&wanting, vec![node(json!([]))], Vec::new(), Listed::default(), Devices::default(), &[]);
        assert_eq!(report.findings[0].subject, "node n1 (NodeDeclaredFeatures)");
        assert!(report.findings[0].problem.contains("has not declared RestartAllContainersOnContainerExits"), "{report:?}");
        assert!(report.findings[0].fix.contains("RestartAllContainers out of the pod"), "{report:?}");
    }

    #[test]
    fn devices_that_are_lacking_are_counted() {
        let devices = Devices::default();
        let read = |value: Value| Arc::new(serde_json::from_value(value).expect("an object"));
        let pod = |claim: &str| pod(json!({"containers": [], "resourceClaims": [{"name": "gpu", "resourceClaimName": claim}]}), json!({"phase": "Pending"}));
        let says = |claim: &str| about_pod(&pod(claim), vec![node(json!([]))], Vec::new(), Listed::default(), devices.clone(), &[]).findings[0].clone();
        assert_eq!(says("c").problem, "the ResourceClaim c does not exist");
        let claim = |name: &str, class: &str, status: Value| json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "status": status,
            "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": class, "allocationMode": "ExactCount", "count": 2,
                "selectors": [{"cel": {"expression": "device.attributes['d.io'].model == 'big'"}}]}}]}}});
        devices.0.write().put_claim(&Arc::new(serde_json::from_value(claim("c", "gpu", json!({}))).expect("a claim")));
        assert_eq!(says("c").problem, "request r: device class gpu does not exist");
        devices.0.write().set_class("gpu", Some(&Arc::new(serde_json::from_value(json!({"metadata": {"name": "gpu"}, "spec": {}})).expect("a class"))));
        assert_eq!(says("c").problem, "request r of claim default/c asks for 2 of class gpu: no driver offers devices there");
        let slice = |model: &str| json!({"metadata": {"name": "s"}, "spec": {"driver": "d.io", "nodeName": "n1", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "1", "attributes": {"model": {"string": model}}}, {"name": "2", "attributes": {"model": {"string": model}}}]}});
        devices.0.write().slices.put(&read(slice("small")));
        assert_eq!(says("c").problem, "request r of claim default/c asks for 2 of class gpu: none of 2 devices there is what the selectors want");
        devices.0.write().slices.put(&read(slice("big")));
        assert!(says("c").problem.starts_with("the pod fits node n1"), "{:?}", says("c"));
        let taken = json!({"allocation": {"devices": {"results": [{"request": "r", "driver": "d.io", "pool": "p", "device": "1"}]}}});
        devices.0.write().put_claim(&Arc::new(serde_json::from_value(claim("other", "gpu", taken)).expect("a claim")));
        assert_eq!(says("c").problem, "request r of claim default/c asks for 2 of class gpu: 2 devices there match, 1 of them belong to other claims");
        assert_eq!(says("c").subject, "node n1 (DynamicResources)");
    }

    #[test]
    fn a_crash_and_a_missing_image_are_explained() {
        let broken = pod(
            json!({"nodeName": "n1", "containers": []}),
            json!({"phase": "Running", "containerStatuses": [
                {"name": "a", "image": "i", "imageID": "", "ready": false, "restartCount": 4,
                 "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
                 "lastState": {"terminated": {"exitCode": 127}}},
                {"name": "b", "image": "nope:1", "imageID": "", "ready": false, "restartCount": 0,
                 "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}]}),
        );
        let report = about_pod(&broken, vec![node(json!([]))], Vec::new(), Listed::default(), Devices::default(), &[]);
        assert!(report.findings[0].problem.contains("restarted 4 times: its command was not found"));
        assert!(report.findings[1].problem.contains("nope:1 cannot be had: not found"));
        assert!(report.text().contains("--previous"));
    }

    #[test]
    fn nodes() {
        assert_eq!(about_node(&node(json!([])), &[]).findings, []);
        let silent: Node = serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"conditions": [
            {"type": "Ready", "status": "Unknown", "message": "Kubelet stopped posting node status."}]}}))
        .expect("a node");
        assert_eq!(about_node(&silent, &[]).findings[0].subject, "kubelet");
    }
}
