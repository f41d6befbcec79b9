//! VolumeBinding: which claims of a pod still need a volume, and what would be done about them on a
//! node. Pure.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use rules::storage::{self, Site};

use super::{Lookup, Reach};
use crate::pod::PodInfo;
use crate::selector::Labels;

pub(crate) const IMMEDIATE: &str = "pod has unbound immediate PersistentVolumeClaims";
pub(crate) const BIND_CONFLICT: &str = "node(s) didn't find available persistent volumes to bind";
pub(crate) const NODE_CONFLICT: &str = "node(s) didn't match PersistentVolume's node affinity";
pub(crate) const NO_SPACE: &str = "node(s) did not have enough free storage";
pub(crate) const NO_VOLUME: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";

/// The names of a pod's claims, and whether each is of an ephemeral volume.
pub(crate) fn claim_names(pod: &PodInfo) -> impl Iterator<Item = (String, bool)> {
    pod.shape.volumes.iter().filter_map(|v| match (&v.persistent_volume_claim, &v.ephemeral) {
        (Some(source), _) => Some((source.claim_name.to_string(), false)),
        (None, Some(_)) => Some((format!("{}-{}", pod.name(), v.name), true)),
        (None, None) => None,
    })
}

/// A pod's claims.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// Those that have their volume.
    pub bound: Vec<Arc<PersistentVolumeClaim>>,
    /// Those that wait for the pod's node, the smallest first.
    pub waiting: Vec<Arc<PersistentVolumeClaim>>,
}

/// Looks at a pod's claims. An error is why the pod can go nowhere yet.
pub(crate) fn claims(known: &dyn Lookup, pod: &PodInfo) -> Result<Claims, String> {
    let mut claims = Claims::default();
    let mut immediate = false;
    for (name, ephemeral) in claim_names(pod) {
        let Some(claim) = known.claim(pod.namespace(), &name) else {
            return Err(match ephemeral {
                true => format!("waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""),
                false => format!("persistentvolumeclaim \"{name}\" not found"),
            });
        };
        if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost") {
            return Err(format!("persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{}\"", storage::volume_name(&claim)));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
        }
        if ephemeral {
            storage::made_for_pod(pod.namespace(), pod.name(), pod.uid(), &claim)?;
        }
        let waits = || known.class(storage::claim_class(&claim)).is_some_and(|c| storage::waits_for_consumer(&c));
        if storage::is_fully_bound(&claim) {
            claims.bound.push(claim);
        } else if storage::volume_name(&claim).is_empty() && waits() {
            claims.waiting.push(claim);
        } else {
            immediate = true;
        }
    }
    if immediate {
        return Err(IMMEDIATE.into());
    }
    claims.waiting.sort_by_key(|c| storage::requested(c));
    Ok(claims)
}

/// What other pods that are on their way have been promised.
#[derive(Debug, Default)]
pub(crate) struct Promised {
    /// Volumes by name, and the uid of the claim that each is for.
    pub volumes: HashMap<String, String>,
    /// Nodes of claims that are to be provided for, by the claim's uid.
    pub nodes: HashMap<String, String>,
}

/// What is to be done about a pod's claims on a node.
#[derive(Debug, Default, Clone)]
pub(crate) struct Plan {
    pub bind: Vec<(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>)>,
    pub provision: Vec<Arc<PersistentVolumeClaim>>,
}

/// What a pod's claims mean for each node.
pub(crate) struct Question {
    pub claims: Claims,
    /// Volumes of the claims that are bound, where there are any.
    bound: Vec<Option<Arc<PersistentVolume>>>,
    /// Volumes that the others may have.
    candidates: Vec<Arc<PersistentVolume>>,
    reach: Reach,
    promised: Promised,
}

impl Question {
    pub fn new(known: &dyn Lookup, claims: Claims, promised: Promised) -> Question {
        let bound: Vec<_> = claims.bound.iter().map(|c| known.volume(storage::volume_name(c))).collect();
        let mut candidates = if claims.waiting.is_empty() { Vec::new() } else { known.volumes() };
        let may_do = |v: &PersistentVolume| claims.waiting.iter().any(|c| storage::claim_class(c) == storage::volume_class(v) || storage::is_bound_to(v, c));
        candidates.retain(|v| may_do(v));
        let reach = Reach::of(bound.iter().flatten().chain(&candidates));
        Question { claims, bound, candidates, reach, promised }
    }
}

/// Why a pod's claims keep it from a node.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// Upstream's reasons.
    Reasons(Vec<&'static str>),
    /// A volume of theirs cannot be handed to its CSI driver: there is something to mend before any node will do.
    Broken(String),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::Reasons(reasons) => f.write_str(&reasons.join(", ")),
            Unfit::Broken(why) => f.write_str(why),
        }
    }
}

/// Decides for one node.
pub(crate) fn on_node(known: &dyn Lookup, question: &Question, node: &str, labels: &Labels) -> Result<Plan, Unfit> {
    let mut reasons = Vec::new();
    for volume in &question.bound {
        match volume {
            None => reasons.push(NO_VOLUME),
            Some(volume) if question.reach.serves(known, volume, node, labels).map_err(Unfit::Broken)? => {}
            Some(_) => reasons.push(NODE_CONFLICT),
        }
    }
    let mut plan = Plan::default();
    if let Err(reason) = for_waiting(known, question, node, labels, &mut plan) {
        reasons.push(reason);
    }
    reasons.sort_by_key(|r| [NODE_CONFLICT, BIND_CONFLICT, NO_SPACE, NO_VOLUME].iter().position(|k| k == r));
    reasons.dedup();
    if reasons.is_empty() { Ok(plan) } else { Err(Unfit::Reasons(reasons)) }
}

fn for_waiting(known: &dyn Lookup, question: &Question, node: &str, labels: &Labels, plan: &mut Plan) -> Result<(), &'static str> {
    let promised = &question.promised;
    let mut taken: HashSet<String> = HashSet::new();
    for claim in &question.claims.waiting {
        let uid = claim.metadata.uid.clone().unwrap_or_default();
        let chosen = promised.nodes.get(&uid).or_else(|| claim.annotations().get(storage::SELECTED_NODE));
        if let Some(chosen) = chosen {
            if chosen != node {
                return Err(BIND_CONFLICT);
            }
            plan.provision.push(claim.clone());
            continue;
        }
        let mut out: HashSet<String> = promised.volumes.iter().filter(|(_, c)| **c != uid).map(|(v, _)| v.clone()).collect();
        out.extend(taken.iter().cloned());
        let near = |v: &PersistentVolume| question.reach.is_near(v, node, labels);
        match storage::find_match(claim, &question.candidates, Site::Node(&near), &out) {
            Some(volume) => {
                taken.insert(volume.name_any());
                plan.bind.push((volume, claim.clone()));
            }
            None => plan.provision.push(claim.clone()),
        }
    }
    for claim in &plan.provision {
        let Some(class) = known.class(storage::claim_class(claim)) else { return Err(BIND_CONFLICT) };
        if class.provisioner.is_empty() || class.provisioner == storage::NO_PROVISIONER || !allowed(&class, labels) {
            return Err(BIND_CONFLICT);
        }
        if !has_space(known, &class, claim, labels) {
            return Err(NO_SPACE);
        }
    }
    Ok(())
}

/// Whether the class allows volumes where the node is.
fn allowed(class: &StorageClass, labels: &Labels) -> bool {
    let Some(terms) = class.allowed_topologies.as_ref().filter(|t| !t.is_empty()) else { return true };
    terms.iter().any(|term| {
        let expressions = term.match_label_expressions.as_deref().unwrap_or_default();
        !expressions.is_empty() && expressions.iter().all(|e| labels.get(&e.key).is_some_and(|v| e.values.iter().any(|w| w == v)))
    })
}

/// Whether a driver that publishes its capacity has enough of it for the node.
fn has_space(known: &dyn Lookup, class: &StorageClass, claim: &PersistentVolumeClaim, labels: &Labels) -> bool {
    if known.driver(&class.provisioner).is_none_or(|d| d.spec.storage_capacity != Some(true)) {
        return true;
    }
    let wanted = storage::requested(claim);
    let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    known.capacities().iter().any(|capacity| {
        let size = capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref()).and_then(|q| Quantity::parse(&q.0).ok());
        let selected = capacity.node_topology.as_ref().is_some_and(|s| rules::labels::matches(s, &labels));
        capacity.storage_class_name == class.name_any() && selected && size.is_some_and(|s| s >= wanted)
    })
}

/// How well the volumes of a plan are used, 0 to 100: full ones first. Nothing when none is chosen.
pub(crate) fn utilization(plan: &Plan) -> Option<i64> {
    let mut by_class: HashMap<&str, (f64, f64)> = HashMap::new();
    for (volume, claim) in &plan.bind {
        let sums = by_class.entry(storage::volume_class(volume)).or_default();
        sums.0 += storage::requested(claim).as_f64();
        sums.1 += storage::capacity(volume).as_f64();
    }
    if by_class.is_empty() {
        return None;
    }
    let shares = by_class.values().map(|(wanted, held)| if *held > 0.0 { (wanted * 100.0 / held).min(100.0) } else { 0.0 });
    Some((shares.sum::<f64>() / by_class.len() as f64).round() as i64)
}

/// How far binding is, once everything has been written: true when it is complete. An error ends the attempt.
pub(crate) fn progress(known: &dyn Lookup, plan: &Plan, node: &str, labels: &Labels) -> Result<bool, String> {
    let now = |claim: &PersistentVolumeClaim| {
        let found = known.claim(&claim.namespace().unwrap_or_default(), &claim.name_any()).filter(|c| c.metadata.uid == claim.metadata.uid);
        found.ok_or_else(|| format!("persistentvolumeclaim \"{}\" not found", claim.name_any()))
    };
    let near = |volume: &PersistentVolume| match Reach::default().serves(known, volume, node, labels)? {
        true => Ok(()),
        false => Err(format!("pv \"{}\" node affinity doesn't match node \"{node}\": no matching NodeSelectorTerms", volume.name_any())),
    };
    for (volume, claim) in &plan.bind {
        let current = known.volume(&volume.name_any()).ok_or_else(|| format!("failed to check binding: persistentvolume \"{}\" not found", volume.name_any()))?;
        if is_older(current.metadata.resource_version.as_deref(), volume.metadata.resource_version.as_deref()) {
            return Ok(false);
        }
        near(&current)?;
        let reference = current.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        if reference.is_none_or(|r| r.uid.as_deref().unwrap_or_default().is_empty()) {
            return Err(format!("ClaimRef got reset for pv \"{}\"", volume.name_any()));
        }
        let claim = now(claim).map_err(|e| format!("failed to check binding: {e}"))?;
        if !storage::is_fully_bound(&claim) {
            return Ok(false);
        }
    }
    for claim in &plan.provision {
        let current = now(claim).map_err(|e| format!("failed to check provisioning pvc: {e}"))?;
        if is_older(current.metadata.resource_version.as_deref(), claim.metadata.resource_version.as_deref()) {
            return Ok(false);
        }
        if current.annotations().get(storage::SELECTED_NODE).map(String::as_str) != Some(node) {
            return Err(format!("provisioning failed for PVC \"{}\"", claim.name_any()));
        }
        if !storage::volume_name(&current).is_empty() {
            let Some(volume) = known.volume(storage::volume_name(&current)) else { return Ok(false) };
            near(&volume)?;
        }
        if !storage::is_fully_bound(&current) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_older(seen: Option<&str>, written: Option<&str>) -> bool {
    let number = |v: Option<&str>| v.and_then(|v| v.parse::<u64>().ok());
    number(seen).zip(number(written)).is_some_and(|(seen, written)| seen < written)
}
