//! What the scheduler keeps of a pod: a small record a pod, and one [`Shape`] for all pods that ask
//! for the same.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer};

use crate::devices::asked::{ContainerDevices, PodClaim};
use crate::node::{Effect, RawMeta, Taint};
use crate::requests::{Asking, List, Resources, total};
use crate::selector::{Labels, NodeRule, NodeTerm, Operator, Selector};
use crate::volume::PodVolume;

/// A port of the node that a pod takes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    pub protocol: Box<str>,
    /// `0.0.0.0` for all addresses.
    pub address: Box<str>,
    pub port: i32,
}

impl HostPort {
    /// Whether two pods cannot have these both.
    pub fn collides(&self, other: &HostPort) -> bool {
        let anywhere = |p: &HostPort| p.address.as_ref() == "0.0.0.0";
        self.protocol == other.protocol && self.port == other.port && (self.address == other.address || anywhere(self) || anywhere(other))
    }
}

/// A toleration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct Toleration {
    pub key: Box<str>,
    pub operator: Box<str>,
    pub value: Box<str>,
    pub effect: Option<Effect>,
}

impl Toleration {
    /// Whether it covers a taint.
    pub fn covers(&self, taint: &Taint) -> bool {
        let compare = |test: fn(i64, i64) -> bool| match (taint.value.parse(), self.value.parse()) {
            (Ok(taint), Ok(own)) => test(taint, own),
            _ => false,
        };
        self.effect.is_none_or(|e| e == taint.effect)
            && (self.key.is_empty() || self.key == taint.key)
            && match self.operator.as_ref() {
                "Exists" => true,
                "" | "Equal" => self.value == taint.value,
                "Lt" => compare(|taint, own| taint < own),
                "Gt" => compare(|taint, own| taint > own),
                _ => false,
            }
    }
}

/// A term of affinity between pods, its namespaces made explicit and its label keys resolved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodTerm {
    /// `None` selects nothing.
    pub selector: Option<Selector>,
    /// Ordered.
    pub namespaces: Vec<Box<str>>,
    pub namespace_selector: Option<Selector>,
    pub topology: Box<str>,
}

impl PodTerm {
    /// Whether it selects a pod of these labels; `namespace_labels` are those of its namespace.
    pub fn matches(&self, namespace: &str, labels: &Labels, namespace_labels: &Labels) -> bool {
        let here = self.namespaces.iter().any(|n| n.as_ref() == namespace)
            || self.namespace_selector.as_ref().is_some_and(|s| s.matches(namespace_labels));
        here && self.selector.as_ref().is_some_and(|s| s.matches(labels))
    }
}

/// Affinity between pods.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PodAffinity {
    pub required: Vec<PodTerm>,
    pub required_anti: Vec<PodTerm>,
    /// With their weights, those of anti-affinity negative.
    pub preferred: Vec<(i64, PodTerm)>,
}

impl PodAffinity {
    /// True when nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.required.is_empty() && self.required_anti.is_empty() && self.preferred.is_empty()
    }
}

/// A topology spread constraint, its label keys resolved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Spread {
    pub max_skew: i32,
    pub topology: Box<str>,
    /// Whether a node that would break it is ruled out, and not only scored down.
    pub hard: bool,
    /// `None` selects nothing.
    pub selector: Option<Selector>,
    pub min_domains: i32,
    pub honors_affinity: bool,
    pub honors_taints: bool,
}

/// The controller of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    pub api_version: Box<str>,
    pub kind: Box<str>,
    pub name: Box<str>,
}

/// Everything of a pod that decisions rest on and that pods of one workload have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Shape {
    pub namespace: Box<str>,
    pub labels: Labels,
    pub scheduler: Box<str>,
    pub priority: i32,
    /// `preemptionPolicy: Never`.
    pub never_preempts: bool,
    pub requests: Resources,
    /// Cpu and memory with defaults for containers that ask for none.
    pub nonzero: (i64, i64),
    pub ports: Vec<HostPort>,
    pub tolerations: Vec<Toleration>,
    pub rule: NodeRule,
    pub preferred_nodes: Vec<(i64, NodeTerm)>,
    pub affinity: PodAffinity,
    pub spread: Vec<Spread>,
    /// Images of containers, init containers and volumes, normalized, one entry a use.
    pub images: Vec<Box<str>>,
    /// Containers and init containers.
    pub containers: u32,
    pub volumes: Vec<PodVolume>,
    pub gates: Vec<Box<str>>,
    /// Its device claims.
    pub claims: Vec<PodClaim>,
    /// What its containers ask for that devices may stand behind, by container.
    pub devices: Vec<ContainerDevices>,
    /// What the node must have declared that it can do.
    pub features: Vec<&'static str>,
    pub owner: Option<Owner>,
}

impl Shape {
    /// Whether the pod tolerates a taint.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|t| t.covers(taint))
    }
}

/// A pod.
#[derive(Debug, Clone, Default)]
pub struct PodInfo {
    meta: ObjectMeta,
    pub shape: Arc<Shape>,
    /// The node it is bound to.
    pub node: Option<Box<str>>,
    /// `status.nominatedNodeName`.
    pub nominated: Option<Box<str>>,
    /// It has succeeded or failed, and takes nothing.
    pub ended: bool,
    /// It is being deleted.
    pub terminating: bool,
    /// It is being deleted because a scheduler wanted its place.
    pub preempted: bool,
    /// Seconds since 1970.
    pub created: i64,
    /// When the kubelet took it in, in nanoseconds since 1970.
    pub started: Option<i64>,
    /// Reason and message of its PodScheduled condition while that is false.
    pub refused: Option<Arc<(String, String)>>,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// Claims that were made for it from templates, by their names in the spec; some need none.
    pub made_claims: Option<Box<MadeClaims>>,
}

type MadeClaims = Vec<(Box<str>, Option<Box<str>>)>;

impl PodInfo {
    /// The pod's name.
    pub fn name(&self) -> &str {
        self.meta.name.as_deref().unwrap_or_default()
    }

    /// The pod's namespace.
    pub fn namespace(&self) -> &str {
        self.meta.namespace.as_deref().unwrap_or_default()
    }

    /// The pod's uid.
    pub fn uid(&self) -> &str {
        self.meta.uid.as_deref().unwrap_or_default()
    }

    /// Reads a pod object, as [`Deserialize`] does.
    pub fn of(pod: &Pod) -> Result<PodInfo, serde_json::Error> {
        serde_json::from_value(serde_json::to_value(pod)?)
    }
}

/// One shape for all that are equal.
fn shared(shape: Shape) -> Arc<Shape> {
    static SHAPES: LazyLock<Mutex<(HashSet<Arc<Shape>>, usize)>> = LazyLock::new(Mutex::default);
    let mut shapes = SHAPES.lock();
    if let Some(known) = shapes.0.get(&shape) {
        return known.clone();
    }
    if shapes.0.len() > 2 * shapes.1 + 1024 {
        shapes.0.retain(|s| Arc::strong_count(s) > 1);
        shapes.1 = shapes.0.len();
    }
    let shape = Arc::new(shape);
    shapes.0.insert(shape.clone());
    shape
}

#[derive(Deserialize)]
struct RawPod {
    metadata: RawMeta,
    #[serde(default)]
    spec: RawSpec,
    #[serde(default)]
    status: RawStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawSpec {
    node_name: Option<Box<str>>,
    scheduler_name: Option<Box<str>>,
    priority: Option<i32>,
    preemption_policy: Option<String>,
    containers: Option<Vec<RawContainer>>,
    init_containers: Option<Vec<RawContainer>>,
    overhead: Option<List>,
    resources: Option<RawResources>,
    tolerations: Option<Vec<Toleration>>,
    node_selector: Option<BTreeMap<Box<str>, Box<str>>>,
    affinity: Option<RawAffinity>,
    topology_spread_constraints: Option<Vec<RawSpread>>,
    scheduling_gates: Option<Vec<RawNamed>>,
    resource_claims: Option<Vec<PodClaim>>,
    volumes: Option<Vec<PodVolume>>,
    host_network: Option<bool>,
    host_users: Option<bool>,
}

#[derive(Deserialize)]
struct RawNamed {
    name: Box<str>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawContainer {
    name: Box<str>,
    image: Option<String>,
    resources: Option<RawResources>,
    restart_policy: Option<String>,
    ports: Option<Vec<RawPort>>,
    restart_policy_rules: Option<Vec<RawRule>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawRule {
    action: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawResources {
    requests: Option<List>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawPort {
    host_port: Option<i32>,
    #[serde(rename = "hostIP")]
    host_ip: Option<Box<str>>,
    protocol: Option<Box<str>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawAffinity {
    node_affinity: Option<RawNodeAffinity>,
    pod_affinity: Option<RawPodAffinity>,
    pod_anti_affinity: Option<RawPodAffinity>,
}

/// Node affinity as the API writes it.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawNodeAffinity {
    required_during_scheduling_ignored_during_execution: Option<RawNodeTerms>,
    preferred_during_scheduling_ignored_during_execution: Option<Vec<RawPreferredNode>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawNodeTerms {
    node_selector_terms: Vec<NodeTerm>,
}

#[derive(Deserialize)]
struct RawPreferredNode {
    weight: i64,
    preference: NodeTerm,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawPodAffinity {
    required_during_scheduling_ignored_during_execution: Option<Vec<RawTerm>>,
    preferred_during_scheduling_ignored_during_execution: Option<Vec<RawPreferredTerm>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPreferredTerm {
    weight: i64,
    pod_affinity_term: RawTerm,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawTerm {
    label_selector: Option<Selector>,
    namespaces: Option<Vec<Box<str>>>,
    namespace_selector: Option<Selector>,
    topology_key: Box<str>,
    match_label_keys: Option<Vec<Box<str>>>,
    mismatch_label_keys: Option<Vec<Box<str>>>,
}

impl RawTerm {
    fn resolve(self, namespace: &str, labels: &Labels) -> PodTerm {
        let mut namespaces = self.namespaces.unwrap_or_default();
        if namespaces.is_empty() && self.namespace_selector.is_none() {
            namespaces.push(namespace.into());
        }
        namespaces.sort();
        let mut selector = self.label_selector;
        if let Some(selector) = &mut selector {
            let keys = |list: Option<Vec<Box<str>>>, operator| list.into_iter().flatten().map(move |k| (k, operator));
            for (key, operator) in keys(self.match_label_keys, Operator::In).chain(keys(self.mismatch_label_keys, Operator::NotIn)) {
                if let Some(value) = labels.get(&key) {
                    selector.require(&key, operator, value);
                }
            }
        }
        PodTerm { selector, namespaces, namespace_selector: self.namespace_selector, topology: self.topology_key }
    }
}

/// A topology spread constraint as the API writes it.
#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RawSpread {
    max_skew: i32,
    topology_key: Box<str>,
    when_unsatisfiable: String,
    label_selector: Option<Selector>,
    min_domains: Option<i32>,
    node_affinity_policy: Option<String>,
    node_taints_policy: Option<String>,
    match_label_keys: Option<Vec<Box<str>>>,
}

impl RawSpread {
    pub(crate) fn resolve(self, labels: &Labels) -> Spread {
        let mut selector = self.label_selector;
        if let Some(selector) = &mut selector {
            for key in self.match_label_keys.into_iter().flatten() {
                if let Some(value) = labels.get(&key) {
                    selector.require(&key, Operator::In, value);
                }
            }
        }
        Spread {
            max_skew: self.max_skew,
            topology: self.topology_key,
            hard: self.when_unsatisfiable == "DoNotSchedule",
            selector,
            min_domains: self.min_domains.unwrap_or(1),
            honors_affinity: self.node_affinity_policy.as_deref() != Some("Ignore"),
            honors_taints: self.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawStatus {
    phase: Option<String>,
    nominated_node_name: Option<Box<str>>,
    start_time: Option<String>,
    conditions: Option<Vec<RawCondition>>,
    resource_claim_statuses: Option<Vec<RawMadeClaim>>,
    container_statuses: Option<Vec<RawContainerStatus>>,
    init_container_statuses: Option<Vec<RawContainerStatus>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawCondition {
    r#type: String,
    status: String,
    reason: Option<String>,
    message: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawMadeClaim {
    name: Box<str>,
    resource_claim_name: Option<Box<str>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawContainerStatus {
    name: Box<str>,
    resources: Option<RawResources>,
}

/// Name of an image as nodes report it: with a tag.
pub(crate) fn normalized(image: &str) -> Box<str> {
    let (colon, slash) = (image.rfind(':'), image.rfind('/'));
    if colon.is_some() && colon > slash { image.into() } else { format!("{image}:latest").into() }
}

fn seconds(text: Option<&String>) -> Option<k8s_openapi::jiff::Timestamp> {
    text.and_then(|t| t.parse().ok())
}

fn asking(containers: &[RawContainer], given: &Option<Vec<RawContainerStatus>>) -> Vec<Asking> {
    let given = |name: &str| given.iter().flatten().find(|s| s.name.as_ref() == name)?.resources.as_ref()?.requests.clone();
    containers
        .iter()
        .map(|c| Asking {
            requests: c.resources.as_ref().and_then(|r| r.requests.clone()),
            given: given(&c.name),
            sidecar: c.restart_policy.as_deref() == Some("Always"),
        })
        .collect()
}

/// What containers ask for that devices may stand behind, init containers first, as their numbers go.
fn devices(containers: &[RawContainer], init: &[RawContainer]) -> Vec<ContainerDevices> {
    let all = init.iter().map(|c| (c, c.restart_policy.as_deref() == Some("Always"))).chain(containers.iter().map(|c| (c, true)));
    all.enumerate()
        .filter_map(|(index, (c, stays))| {
            let requests = c.resources.as_ref()?.requests.as_ref()?;
            ContainerDevices::of(index, &c.name, stays, requests)
        })
        .collect()
}

/// The features that a node must have declared for such a pod. Others that upstream knows concern changes
/// of pods, not their places.
fn required_features(containers: &[RawContainer], init: &[RawContainer], host_network: bool, host_users: Option<bool>) -> Vec<&'static str> {
    let rules = || containers.iter().chain(init).flat_map(|c| c.restart_policy_rules.iter().flatten());
    let mut features = Vec::new();
    if rules().any(|r| r.action == "RestartAllContainers") {
        features.push("RestartAllContainersOnContainerExits");
    }
    if host_network && host_users == Some(false) {
        features.push("UserNamespacesHostNetworkSupport");
    }
    features
}

impl From<RawPod> for PodInfo {
    fn from(raw: RawPod) -> PodInfo {
        let (mut metadata, spec, status) = (raw.metadata, raw.spec, raw.status);
        let labels: Labels = metadata.labels.take().unwrap_or_default().into_iter().collect();
        let namespace: Box<str> = metadata.namespace.as_deref().unwrap_or_default().into();
        let (containers, init) = (spec.containers.unwrap_or_default(), spec.init_containers.unwrap_or_default());
        let (main, early) = (asking(&containers, &status.container_statuses), asking(&init, &status.init_container_statuses));
        let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
        let sum = |defaults| total(&main, &early, whole, spec.overhead.as_ref(), defaults);
        let nonzero = sum(true);
        let affinity = spec.affinity.unwrap_or_default();
        let node_affinity = affinity.node_affinity.unwrap_or_default();
        let (near, far) = (affinity.pod_affinity.unwrap_or_default(), affinity.pod_anti_affinity.unwrap_or_default());
        let resolve = |term: RawTerm| term.resolve(&namespace, &labels);
        let mut preferred = Vec::new();
        for (sign, list) in [(1, near.preferred_during_scheduling_ignored_during_execution), (-1, far.preferred_during_scheduling_ignored_during_execution)] {
            preferred.extend(list.into_iter().flatten().map(|p| (sign * p.weight, resolve(p.pod_affinity_term))));
        }
        let pod_affinity = PodAffinity {
            required: near.required_during_scheduling_ignored_during_execution.into_iter().flatten().map(resolve).collect(),
            required_anti: far.required_during_scheduling_ignored_during_execution.into_iter().flatten().map(resolve).collect(),
            preferred,
        };
        let sidecars = init.iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let ports = containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
        let ports = ports.filter_map(|p| {
            Some(HostPort {
                port: p.host_port.filter(|p| *p > 0)?,
                address: p.host_ip.clone().filter(|a| !a.is_empty()).unwrap_or_else(|| "0.0.0.0".into()),
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
            })
        });
        let volumes = spec.volumes.unwrap_or_default();
        let images = init.iter().chain(&containers).filter_map(|c| c.image.as_deref()).chain(volumes.iter().filter_map(|v| v.image()));
        let condition = |name: &str| status.conditions.iter().flatten().find(|c| c.r#type == name);
        let shape = Shape {
            scheduler: spec.scheduler_name.unwrap_or_else(|| crate::config::DEFAULT_NAME.into()),
            priority: spec.priority.unwrap_or(0),
            never_preempts: spec.preemption_policy.as_deref() == Some("Never"),
            requests: sum(false),
            nonzero: (nonzero.cpu, nonzero.memory),
            ports: ports.collect(),
            tolerations: spec.tolerations.unwrap_or_default(),
            rule: NodeRule {
                selector: spec.node_selector.unwrap_or_default().into_iter().collect(),
                terms: node_affinity.required_during_scheduling_ignored_during_execution.map(|r| r.node_selector_terms),
            },
            preferred_nodes: node_affinity
                .preferred_during_scheduling_ignored_during_execution
                .into_iter()
                .flatten()
                .map(|p| (p.weight, p.preference))
                .collect(),
            affinity: pod_affinity,
            spread: spec.topology_spread_constraints.into_iter().flatten().map(|s| s.resolve(&labels)).collect(),
            images: images.map(normalized).collect(),
            containers: (containers.len() + init.len()) as u32,
            gates: spec.scheduling_gates.into_iter().flatten().map(|g| g.name).collect(),
            claims: spec.resource_claims.unwrap_or_default(),
            devices: devices(&containers, &init),
            features: required_features(&containers, &init, spec.host_network == Some(true), spec.host_users),
            owner: metadata.owner_references.take().into_iter().flatten().find(|o| o.controller == Some(true)).map(|o| Owner {
                api_version: o.api_version,
                kind: o.kind,
                name: o.name,
            }),
            volumes: volumes.into_iter().filter(PodVolume::matters).collect(),
            namespace,
            labels,
        };
        let refused = condition("PodScheduled").filter(|c| c.status == "False");
        PodInfo {
            shape: shared(shape),
            node: spec.node_name.filter(|n| !n.is_empty()),
            nominated: status.nominated_node_name.clone().filter(|n| !n.is_empty()),
            ended: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            terminating: metadata.deletion_timestamp.is_some(),
            preempted: metadata.deletion_timestamp.is_some()
                && condition("DisruptionTarget").is_some_and(|c| c.status == "True" && c.reason.as_deref() == Some("PreemptionByScheduler")),
            created: seconds(metadata.creation_timestamp.as_ref()).map_or(0, |t| t.as_second()),
            started: seconds(status.start_time.as_ref()).map(|t| t.as_nanosecond() as i64),
            refused: refused.map(|c| Arc::new((c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default()))),
            generation: metadata.generation,
            made_claims: status.resource_claim_statuses.filter(|l| !l.is_empty()).map(|l| Box::new(l.into_iter().map(|c| (c.name, c.resource_claim_name)).collect())),
            meta: metadata.kept(),
        }
    }
}

impl<'de> Deserialize<'de> for PodInfo {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<PodInfo, D::Error> {
        RawPod::deserialize(d).map(PodInfo::from)
    }
}

reconcile::resource_as!(PodInfo, meta, Pod);
