//! Extenders: web servers that have a say in decisions, spoken to as `k8s.io/kube-scheduler/extender/v1`
//! says. Only the calls and their forms are here; when they are made is for the shell, and what comes of
//! the answers for the core.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use client::Web;
use serde_json::{Value, json};

use crate::decide::Candidates;
use crate::plugin::Rejection;
use crate::pod::PodInfo;
use crate::preempt::Victims;

/// The name under which a pod remembers that an extender has refused nodes.
pub const EXTENDER: &str = "Extender";

/// What an extender's score from 0 to 10 is multiplied with to be one of the scheduler's.
const SCALE: i64 = 100 / 10;

/// An extender. An empty verb means that it is not asked that question.
#[derive(Debug, Clone)]
pub struct Extender {
    /// Where it is.
    pub web: Web,
    pub filter_verb: String,
    pub prioritize_verb: String,
    /// What its scores are multiplied with.
    pub weight: i64,
    pub bind_verb: String,
    pub preempt_verb: String,
    /// It knows the nodes and pods itself, so that their names are enough.
    pub node_cache_capable: bool,
    /// It is asked about pods that ask for one of these alone; about all when there is none.
    pub managed_resources: BTreeSet<String>,
    /// Pods are placed though it fails.
    pub ignorable: bool,
}

/// What is sent of objects: names, or all that there is of them.
pub(crate) struct Objects {
    pub pod: Value,
    /// Nodes by name; there for extenders that need them.
    pub nodes: HashMap<String, Arc<k8s_openapi::api::core::v1::Node>>,
    /// Pods that may be displaced, by uid; there for extenders that need them.
    pub victims: HashMap<String, Value>,
}

/// A field of an object, whatever the case of its name: Go reads it so.
fn field<'a>(object: &'a Value, name: &str) -> &'a Value {
    let map = object.as_object();
    let exact = map.and_then(|m| m.get(name));
    let alike = || map?.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v);
    exact.or_else(alike).unwrap_or(&Value::Null)
}

/// The text of a field; what is missing is empty.
fn text(object: &Value, name: &str) -> Result<String, String> {
    match field(object, name) {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("the answer's field {name} is no text: {other}")),
    }
}

/// A field that maps names to something.
fn map<'a>(object: &'a Value, name: &str) -> Result<Vec<(&'a String, &'a Value)>, String> {
    match field(object, name) {
        Value::Null => Ok(Vec::new()),
        Value::Object(map) => Ok(map.iter().collect()),
        other => Err(format!("the answer's field {name} is no object: {other}")),
    }
}

fn texts(object: &Value, name: &str) -> Result<BTreeMap<String, String>, String> {
    map(object, name)?.into_iter().map(|(k, v)| Ok((k.clone(), v.as_str().ok_or_else(|| format!("the answer's field {name} holds {v}, which is no text"))?.to_string()))).collect()
}

fn number(object: &Value, name: &str) -> Result<i64, String> {
    match field(object, name) {
        Value::Null => Ok(0),
        value => value.as_i64().ok_or_else(|| format!("the answer's field {name} is no whole number: {value}")),
    }
}

impl Extender {
    /// Whether it is to be asked about a pod.
    pub fn is_interested(&self, pod: &PodInfo) -> bool {
        // The API server sets the request of an extended resource to its limit.
        self.managed_resources.is_empty() || pod.shape.requests.other.iter().any(|(name, _)| self.managed_resources.contains(name.as_ref()))
    }

    /// Whether it wants node objects in full.
    pub(crate) fn needs_nodes(&self) -> bool {
        !self.node_cache_capable && !(self.filter_verb.is_empty() && self.prioritize_verb.is_empty())
    }

    async fn call(&self, verb: &str, arguments: &Value) -> Result<Value, String> {
        let (status, body) = self.web.post(verb, arguments.to_string().into_bytes()).await.map_err(|e| e.to_string())?;
        if status != 200 {
            return Err(format!("failed {verb} with extender at URL {}/{verb}, code {}", self.web.url(), status.as_u16()));
        }
        // One value is read; what follows it is not looked at.
        let mut values = serde_json::Deserializer::from_slice(&body).into_iter::<Value>();
        values.next().unwrap_or(Ok(Value::Null)).map_err(|e| format!("the answer of {}/{verb} is no JSON: {e}", self.web.url()))
    }

    fn arguments(&self, objects: &Objects, names: &[String]) -> Value {
        if self.node_cache_capable {
            return json!({"Pod": objects.pod, "Nodes": null, "NodeNames": names});
        }
        let items: Vec<&k8s_openapi::api::core::v1::Node> = names.iter().filter_map(|n| objects.nodes.get(n)).map(AsRef::as_ref).collect();
        json!({"Pod": objects.pod, "Nodes": {"metadata": {}, "items": items}, "NodeNames": null})
    }

    /// Which of the nodes it leaves, and what it says of the others.
    async fn filter(&self, objects: &Objects, names: &[String]) -> Result<Filtered, String> {
        let answer = self.call(&self.filter_verb, &self.arguments(objects, names)).await?;
        let error = text(&answer, "Error")?;
        if !error.is_empty() {
            return Err(error);
        }
        let left = match (field(&answer, "NodeNames"), field(&answer, "Nodes")) {
            (Value::Array(left), _) if self.node_cache_capable => {
                let left: Vec<String> = left.iter().map(|n| n.as_str().unwrap_or_default().to_string()).collect();
                if let Some(foreign) = left.iter().find(|n| !names.contains(n)) {
                    return Err(format!("extender {:?} claims a filtered node {foreign:?} which is not found in the input node list", self.web.url()));
                }
                left
            }
            (_, Value::Null) => Vec::new(),
            (_, list) => {
                let items = match field(list, "items") {
                    Value::Null => &Vec::new(),
                    Value::Array(items) => items,
                    other => return Err(format!("the answer's field items is no list: {other}")),
                };
                items.iter().map(|n| text(field(n, "metadata"), "name")).collect::<Result<_, _>>()?
            }
        };
        Ok(Filtered { left, failed: texts(&answer, "FailedNodes")?, hopeless: texts(&answer, "FailedAndUnresolvableNodes")? })
    }

    /// Its scores of nodes, weighted.
    async fn prioritize(&self, objects: &Objects, names: &[String]) -> Result<Vec<(String, i64)>, String> {
        let answer = self.call(&self.prioritize_verb, &self.arguments(objects, names)).await?;
        let list = match &answer {
            Value::Null => return Ok(Vec::new()),
            Value::Array(list) => list,
            other => return Err(format!("the answer is no list: {other}")),
        };
        list.iter().map(|s| Ok((text(s, "Host")?, number(s, "Score")?.saturating_mul(self.weight).saturating_mul(SCALE)))).collect()
    }

    /// Has the pod bound.
    async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        let arguments = json!({"PodName": pod.name(), "PodNamespace": pod.namespace(), "PodUID": pod.uid(), "Node": node});
        let error = text(&self.call(&self.bind_verb, &arguments).await?, "Error")?;
        if error.is_empty() { Ok(()) } else { Err(error) }
    }

    /// Which of these choices of pods to displace it leaves.
    async fn preempt(&self, objects: &Objects, choices: &[Victims], on: &impl Fn(&str, &str) -> Option<Arc<PodInfo>>) -> Result<Vec<Victims>, String> {
        let by_node = |pod: &dyn Fn(&PodInfo) -> Value| -> Value {
            let one = |v: &Victims| (v.node.clone(), json!({"Pods": v.pods.iter().map(|p| pod(p)).collect::<Vec<_>>(), "NumPDBViolations": v.violations}));
            Value::Object(choices.iter().map(one).collect())
        };
        let arguments = if self.node_cache_capable {
            json!({"Pod": objects.pod, "NodeNameToVictims": null, "NodeNameToMetaVictims": by_node(&|p| json!({"UID": p.uid()}))})
        } else {
            let full = |p: &PodInfo| objects.victims.get(p.uid()).cloned().unwrap_or(Value::Null);
            json!({"Pod": objects.pod, "NodeNameToVictims": by_node(&full), "NodeNameToMetaVictims": null})
        };
        let answer = self.call(&self.preempt_verb, &arguments).await?;
        let mut left = Vec::new();
        for (node, victims) in map(&answer, "NodeNameToMetaVictims")? {
            let mut pods = Vec::new();
            for pod in field(victims, "Pods").as_array().into_iter().flatten() {
                let uid = text(pod, "UID")?;
                let claims = || format!("extender: {} claims to preempt pod (UID: &MetaPod{{UID:{uid},}}) on node: {node}, but the pod is not found on that node", self.web.url());
                pods.push(on(node, &uid).ok_or_else(claims)?);
            }
            if pods.is_empty() {
                if self.ignorable {
                    continue;
                }
                return Err(format!("expected at least one victim pod on node {node:?}"));
            }
            left.push(Victims { node: node.clone(), pods, violations: usize::try_from(number(victims, "NumPDBViolations")?).unwrap_or(0) });
        }
        Ok(left)
    }
}

struct Filtered {
    left: Vec<String>,
    failed: BTreeMap<String, String>,
    hopeless: BTreeMap<String, String>,
}

/// Asks those that are interested, one after the other, each about what the one before has left.
pub(crate) async fn filter(extenders: &[&Extender], objects: &Objects, candidates: &mut Candidates) -> Result<(), String> {
    let before = candidates.nodes.len();
    for extender in extenders.iter().filter(|e| !e.filter_verb.is_empty()) {
        if candidates.nodes.is_empty() {
            break;
        }
        match extender.filter(objects, &candidates.nodes).await {
            Ok(Filtered { left, failed, hopeless }) => {
                let failed = failed.into_iter().filter(|(n, _)| !hopeless.contains_key(n)).map(|(n, why)| (n, why, true));
                let refused: Vec<(String, String, bool)> = failed.chain(hopeless.iter().map(|(n, why)| (n.clone(), why.clone(), false))).collect();
                for (node, why, resolvable) in refused {
                    candidates.rejected.retain(|(n, _)| *n != node);
                    candidates.rejected.push((node, Rejection::said(EXTENDER, resolvable, vec![why])));
                }
                candidates.nodes = left;
            }
            Err(error) if extender.ignorable => {
                tracing::info!("the extender {} is passed over, for it failed and is ignorable: {error}", extender.web.url());
            }
            Err(error) => return Err(error),
        }
    }
    candidates.refused |= candidates.nodes.len() != before;
    Ok(())
}

/// The sum of what those that are interested give the nodes. One that fails gives nothing.
pub(crate) async fn prioritize(extenders: &[&Extender], objects: &Objects, nodes: &[String]) -> HashMap<String, i64> {
    let asked = extenders.iter().filter(|e| !e.prioritize_verb.is_empty());
    let answers = futures::future::join_all(asked.map(|e| async move { (e, e.prioritize(objects, nodes).await) })).await;
    let mut scores: HashMap<String, i64> = HashMap::new();
    for (extender, answer) in answers {
        match answer {
            Ok(list) => list.into_iter().for_each(|(node, score)| {
                let sum = scores.entry(node).or_default();
                *sum = sum.saturating_add(score);
            }),
            Err(error) => tracing::debug!("the extender {} gives no scores: {error}", extender.web.url()),
        }
    }
    scores
}

/// Asks those that are interested which choices of pods to displace they leave. `on` finds a pod on a node.
pub(crate) async fn preempt(extenders: &[&Extender], objects: &Objects, mut choices: Vec<Victims>, on: impl Fn(&str, &str) -> Option<Arc<PodInfo>>) -> Result<Vec<Victims>, String> {
    for extender in extenders.iter().filter(|e| !e.preempt_verb.is_empty()) {
        match extender.preempt(objects, &choices, &on).await {
            Ok(left) => choices = left,
            Err(error) if extender.ignorable => {
                tracing::info!("the extender {} is passed over, for it failed and is ignorable: {error}", extender.web.url());
            }
            Err(error) => return Err(error),
        }
        if choices.is_empty() {
            break;
        }
    }
    Ok(choices)
}

/// Lets the extender that binds do it; `None` when there is none for this pod, or it failed and is ignorable.
pub(crate) async fn bind(extenders: &[Extender], pod: &PodInfo, node: &str) -> Option<Result<(), String>> {
    for extender in extenders.iter().filter(|e| !e.bind_verb.is_empty() && e.is_interested(pod)) {
        match extender.bind(pod, node).await {
            Err(error) if extender.ignorable => {
                tracing::info!("the extender {} does not bind, for it failed and is ignorable: {error}", extender.web.url());
            }
            answer => return Some(answer),
        }
    }
    None
}
