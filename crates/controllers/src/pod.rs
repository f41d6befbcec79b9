//! What the controllers keep of a pod: what they read of it, and no more. Pods are most of a cluster's
//! objects; as the client's type one takes 14 KB, as this one two. What the pods of one template have in
//! common is kept once. Whoever needs a whole pod reads it from the API server.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::core::v1::{self, ContainerPort, PodAffinity, PodAntiAffinity, PodResourceClaim, PodResourceClaimStatus, Toleration, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

/// A pod, as controllers see it. The fields have the names and meanings of the API's.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pod {
    #[serde(deserialize_with = "slim_meta")]
    pub metadata: ObjectMeta,
    pub spec: Option<PodSpec>,
    pub status: Option<Box<PodStatus>>,
}

/// What is a pod's own of its spec. The rest is read through it, from what its template's pods share.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodSpec {
    pub node_name: Option<String>,
    pub hostname: Option<String>,
    /// The node that its affinity names (`metadata.name In [node]`), as daemon pods do.
    pub pinned: Option<String>,
    /// Those of claims, named or made for the pod, and others that have to be attached: of clouds, FC and iSCSI.
    pub volumes: Option<Vec<Volume>>,
    template: Arc<Template>,
}

/// What the pods of one template have in common.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Template {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subdomain: Option<String>,
    pub containers: Vec<Container>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_containers: Option<Vec<Container>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerations: Option<Vec<Toleration>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overhead: Option<BTreeMap<String, Quantity>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_claims: Option<Vec<PodResourceClaim>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_deadline_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<BetweenPods>,
}

impl Deref for PodSpec {
    type Target = Template;

    fn deref(&self) -> &Template {
        &self.template
    }
}

/// Affinity, without that to nodes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BetweenPods {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_affinity: Option<PodAffinity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_anti_affinity: Option<PodAntiAffinity>,
}

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<ContainerPort>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<String>,
}

/// What a container, or a pod as a whole, asks for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<BTreeMap<String, Quantity>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<BTreeMap<String, Quantity>>,
}

/// What has become of a pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: Option<Word>,
    pub reason: Option<Word>,
    pub message: Option<String>,
    pub conditions: Option<Vec<Condition>>,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIp>>,
    pub start_time: Option<Time>,
    pub container_statuses: Option<Vec<ContainerStatus>>,
    pub init_container_statuses: Option<Vec<ContainerStatus>>,
    pub resource_claim_statuses: Option<Vec<PodResourceClaimStatus>>,
}

/// One of a pod's addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    pub ip: String,
}

/// A condition of a pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub type_: Word,
    pub status: Word,
    pub reason: Option<Word>,
    pub last_transition_time: Option<Time>,
}

/// How a container is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    pub name: String,
    pub restart_count: i32,
    pub state: Option<ContainerState>,
}

/// The state that a container is in.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    pub waiting: Option<Waiting>,
    pub terminated: Option<Terminated>,
}

/// A container that has not started yet.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Waiting {}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Terminated {
    pub exit_code: i32,
    pub finished_at: Option<Time>,
}

/// A word of the API, which takes no memory of its own when it is one of those that every pod has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Word(Cow<'static, str>);

/// Phases, types of conditions, their states, and reasons.
const WORDS: [&str; 17] = [
    "Pending", "Running", "Succeeded", "Failed", "Unknown", "True", "False", "PodScheduled", "PodReadyToStartContainers", "Initialized",
    "ContainersReady", "Ready", "DisruptionTarget", "PodCompleted", "ContainersNotReady", "Unschedulable", "SchedulingGated",
];

impl From<&str> for Word {
    fn from(text: &str) -> Word {
        Word(WORDS.iter().find(|w| **w == text).map_or_else(|| Cow::Owned(text.to_string()), |w| Cow::Borrowed(*w)))
    }
}

impl Deref for Word {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PartialEq<&str> for Word {
    fn eq(&self, other: &&str) -> bool {
        *self.0 == **other
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Word, D::Error> {
        Ok(Word::from(&*Cow::<str>::deserialize(deserializer)?))
    }
}

impl Pod {
    /// A pod that is yet to be made: its names and labels.
    pub fn unmade(metadata: ObjectMeta) -> Pod {
        Pod { metadata, spec: None, status: None }
    }

    /// The names of all claims of volumes that it uses.
    pub fn claims(&self) -> Vec<String> {
        let volumes = self.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
        rules::storage::claims_of(&self.metadata, volumes)
    }

    /// What quotas read of it, as the API writes that.
    pub fn for_quota(&self) -> Value {
        let meta = &self.metadata;
        let leaving = json!({"deletionTimestamp": meta.deletion_timestamp, "deletionGracePeriodSeconds": meta.deletion_grace_period_seconds});
        let phase = self.status.as_ref().and_then(|s| s.phase.as_deref());
        json!({"metadata": leaving, "spec": self.spec.as_deref(), "status": {"phase": phase}})
    }
}

/// Without what no controller reads and is large.
fn slim_meta<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let mut meta = ObjectMeta::deserialize(deserializer)?;
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    meta.annotations = meta.annotations.filter(|a| !a.is_empty());
    Ok(meta)
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawSpec {
    node_name: Option<String>,
    hostname: Option<String>,
    affinity: Option<v1::Affinity>,
    volumes: Option<Vec<Volume>>,
    subdomain: Option<String>,
    containers: Vec<Container>,
    init_containers: Option<Vec<Container>>,
    tolerations: Option<Vec<Toleration>>,
    resources: Option<Resources>,
    overhead: Option<BTreeMap<String, Quantity>>,
    resource_claims: Option<Vec<PodResourceClaim>>,
    priority_class_name: Option<String>,
    active_deadline_seconds: Option<i64>,
}

impl<'de> Deserialize<'de> for PodSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PodSpec, D::Error> {
        let raw = RawSpec::deserialize(deserializer)?;
        let mut volumes = raw.volumes.unwrap_or_default();
        let attached = |v: &Volume| rules::migration::of_inline(v).is_some() || v.fc.is_some() || v.iscsi.is_some();
        volumes.retain(|v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some() || attached(v));
        volumes.shrink_to_fit();
        let pinned = raw.affinity.as_ref().and_then(pinned);
        let between = raw.affinity.filter(|a| a.pod_affinity.is_some() || a.pod_anti_affinity.is_some());
        let template = Template {
            subdomain: raw.subdomain,
            containers: raw.containers,
            init_containers: raw.init_containers,
            tolerations: raw.tolerations,
            resources: raw.resources,
            overhead: raw.overhead,
            resource_claims: raw.resource_claims,
            priority_class_name: raw.priority_class_name,
            active_deadline_seconds: raw.active_deadline_seconds,
            affinity: between.map(|a| BetweenPods { pod_affinity: a.pod_affinity, pod_anti_affinity: a.pod_anti_affinity }),
        };
        let volumes = Some(volumes).filter(|v| !v.is_empty());
        Ok(PodSpec { node_name: raw.node_name, hostname: raw.hostname, pinned, volumes, template: shared(template) })
    }
}

fn pinned(affinity: &v1::Affinity) -> Option<String> {
    let required = affinity.node_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    match fields.clone().find(|f| f.key == "metadata.name" && f.operator == "In")?.values.as_deref() {
        Some([node]) => Some(node.clone()),
        _ => None,
    }
}

/// One template for all that are equal.
fn shared(template: Template) -> Arc<Template> {
    static KNOWN: LazyLock<Mutex<Templates>> = LazyLock::new(Mutex::default);
    let text = serde_json::to_vec(&template).expect("a template is always JSON");
    KNOWN.lock().share(text, template)
}

/// Templates by what they say. Those that nobody has any more go when they have become many.
#[derive(Default)]
struct Templates {
    by_text: HashMap<Box<[u8]>, Arc<Template>>,
    after_cleaning: usize,
}

impl Templates {
    fn share(&mut self, text: Vec<u8>, template: Template) -> Arc<Template> {
        if let Some(same) = self.by_text.get(text.as_slice()) {
            return same.clone();
        }
        if self.by_text.len() > 2 * self.after_cleaning + 1024 {
            self.by_text.retain(|_, t| Arc::strong_count(t) > 1);
            self.after_cleaning = self.by_text.len();
        }
        let template = Arc::new(template);
        self.by_text.insert(text.into(), template.clone());
        template
    }
}

reconcile::resource_as!(Pod, metadata, v1::Pod);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_one_template_share_it() {
        let pod = |name: &str, image: &str, cpu: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"nodeName": name,
                "volumes": [{"name": format!("token-{name}"), "projected": {}}, {"name": "data", "persistentVolumeClaim": {"claimName": name}}],
                "containers": [{"name": "c", "image": image, "resources": {"requests": {"cpu": cpu}}}]}}))
            .expect("a pod")
        };
        let spec = |pod: &Pod| pod.spec.clone().expect("a spec");
        let (a, b, c) = (spec(&pod("a", "x", "1")), spec(&pod("b", "y", "1")), spec(&pod("c", "x", "2")));
        assert!(Arc::ptr_eq(&a.template, &b.template));
        assert!(!Arc::ptr_eq(&a.template, &c.template));
        assert_eq!((a.node_name.as_deref(), a.volumes.as_ref().map(Vec::len)), (Some("a"), Some(1)));
        assert_eq!(a.containers[0].resources, b.containers[0].resources);
    }

    #[test]
    fn volumes_that_controllers_read_are_kept() {
        let volumes = json!([{"name": "a", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "b", "ephemeral": {}}, {"name": "c", "emptyDir": {}},
            {"name": "d", "cinder": {"volumeID": "v"}}, {"name": "e", "secret": {"secretName": "s"}}, {"name": "f", "nfs": {"server": "s", "path": "/"}},
            {"name": "g", "fc": {"wwids": ["w"]}}, {"name": "h", "iscsi": {"targetPortal": "p", "iqn": "i", "lun": 0}}]);
        let pod: Pod = serde_json::from_value(json!({"spec": {"volumes": volumes}})).expect("a pod");
        let kept: Vec<String> = pod.spec.expect("a spec").volumes.into_iter().flatten().map(|v| v.name).collect();
        assert_eq!(kept, ["a", "b", "d", "g", "h"]);
    }

    #[test]
    fn the_node_of_an_affinity() {
        let by = |key: &str, operator: &str, values: serde_json::Value| -> Option<String> {
            let field = json!({"key": key, "operator": operator, "values": values});
            let required = json!({"nodeSelectorTerms": [{"matchFields": [field]}]});
            let pod: Pod = serde_json::from_value(json!({"spec": {"affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": required}}}})).expect("a pod");
            pod.spec.expect("a spec").pinned
        };
        let of = |values: serde_json::Value| by("metadata.name", "In", values);
        assert_eq!((by("metadata.name", "NotIn", json!(["n"])), by("metadata.namespace", "In", json!(["n"]))), (None, None));
        assert_eq!(of(json!(["n"])).as_deref(), Some("n"));
        assert_eq!(of(json!(["n", "m"])), None);
    }

    #[test]
    fn words_and_what_is_left_out() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"managedFields": [{}], "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}},
            "status": {"phase": "Running", "reason": "Evicted", "conditions": [{"type": "Ready", "status": "True"}], "podIPs": [{"ip": "10.0.0.1"}]}}))
        .expect("a pod");
        assert_eq!((pod.metadata.managed_fields, pod.metadata.annotations), (None, None));
        let status = pod.status.expect("a status");
        assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Running"), Some("Evicted")));
        assert!(status.conditions.expect("one")[0].type_ == "Ready");
        assert!(matches!(Word::from("Ready").0, Cow::Borrowed(_)) && matches!(Word::from("Evicted").0, Cow::Owned(_)));
    }

    #[test]
    fn templates_that_nobody_has_are_forgotten_in_time() {
        let mut known = Templates::default();
        let mut number = 0..;
        let mut fresh = |known: &mut Templates| {
            let text = number.next().map(|n: u32| n.to_be_bytes().to_vec()).expect("a number");
            known.share(text, Template::default())
        };
        let held: Vec<_> = (0..10).map(|_| fresh(&mut known)).collect();
        (0..1015).for_each(|_| drop(fresh(&mut known)));
        assert_eq!(known.by_text.len(), 1025, "a thousand may lie about");
        fresh(&mut known);
        assert_eq!(known.by_text.len(), 11, "the next one makes room");
        assert!(Arc::ptr_eq(&held[3], &known.share(3u32.to_be_bytes().to_vec(), Template::default())), "what somebody has is kept");
        (0..1034).for_each(|_| drop(fresh(&mut known)));
        assert_eq!(known.by_text.len(), 1045, "twice as many as are in use, and a thousand");
        fresh(&mut known);
        assert_eq!(known.by_text.len(), 11);
    }

    #[test]
    fn pods_are_where_pods_are() {
        assert_eq!(<Pod as kube::Resource>::url_path(&(), Some("n")), "/api/v1/namespaces/n/pods");
    }

    #[test]
    fn what_pods_want_of_pods_is_kept() {
        let of = |affinity: serde_json::Value| -> PodSpec {
            serde_json::from_value::<Pod>(json!({"spec": {"affinity": affinity}})).expect("a pod").spec.expect("a spec")
        };
        for kind in ["podAffinity", "podAntiAffinity"] {
            assert!(of(json!({kind: {}})).affinity.is_some(), "{kind}");
        }
        assert!(of(json!({"nodeAffinity": {}})).affinity.is_none());
    }
}
