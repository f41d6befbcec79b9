//! What is done about the pods of a stateful set: first those that are to be there, in the order of
//! their ordinals, then those that are too many, from the highest, then the rollout of a new revision.
//! Unless the set says `Parallel`, each waits until the one before it is available.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{self, PersistentVolumeClaim, PodTemplateSpec};
use kube::ResourceExt;

use super::{claims, identity};
use crate::pod::Pod;
use crate::{amount, pods};

/// Most pods made in one pass.
const BURST: usize = 500;

/// The two revisions between which a set is.
#[derive(Debug, Clone, Default)]
pub struct Revisions {
    /// Name and template of the revision that a rollout comes from.
    pub current: (String, PodTemplateSpec),
    /// Name and template of the one that is wanted.
    pub update: (String, PodTemplateSpec),
    pub collisions: i32,
}

/// Everything that a plan is made from.
pub struct View<'a> {
    pub set: &'a StatefulSet,
    pub revisions: &'a Revisions,
    /// The set's pods.
    pub pods: &'a [Arc<Pod>],
    /// The claim of a name in the set's namespace.
    pub claim: &'a (dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>> + Sync),
    pub now: Timestamp,
}

/// One thing to do.
#[derive(Debug)]
pub enum Action {
    /// Make this pod, after its claims.
    Create(Box<v1::Pod>),
    Delete(Arc<Pod>),
    /// Make the claims that a pod waits for, and see to their owners.
    Claims(Arc<Pod>),
    /// Put right what of a pod's identity, storage or claims' owners is wrong.
    Mend(Arc<Pod>),
}

/// What is to be done, and the status at its beginning.
#[derive(Debug, Default)]
pub struct Plan {
    /// Each begins when all of the one before has succeeded.
    pub stages: Vec<Vec<Action>>,
    /// Whether the actions of a stage come one after the other.
    pub in_order: bool,
    pub status: StatefulSetStatus,
}

/// A pod that is to be there: it is, or it is yet to be made.
enum Slot {
    There(Arc<Pod>),
    /// With what is to be seen of it.
    New(Box<v1::Pod>, Box<Pod>),
}

impl Slot {
    fn pod(&self) -> &Pod {
        match self {
            Slot::There(pod) => pod,
            Slot::New(_, pod) => pod,
        }
    }
}

fn terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn running_and_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

impl View<'_> {
    fn available(&self, pod: &Pod) -> bool {
        pods::availability(pod, self.min_ready(), self.now).is_ok()
    }

    fn unavailable(&self, pod: &Pod) -> bool {
        terminating(pod) || !self.available(pod)
    }

    /// For how long a pod must be ready to count as available.
    pub fn min_ready(&self) -> Duration {
        let seconds = self.set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
        Duration::from_secs(seconds.max(0) as u64)
    }

    /// The ordinal below which the strategy keeps pods at the current revision.
    fn partition(&self) -> Option<i32> {
        let strategy = self.set.spec.as_ref()?.update_strategy.as_ref()?;
        strategy.rolling_update.as_ref().map(|r| r.partition.unwrap_or(0))
    }

    fn rolls(&self) -> bool {
        let strategy = self.set.spec.as_ref().and_then(|s| s.update_strategy.as_ref()).and_then(|s| s.type_.as_deref());
        strategy.unwrap_or("RollingUpdate") == "RollingUpdate"
    }

    /// The pod that is made for an ordinal.
    fn new_pod(&self, ordinal: i32) -> v1::Pod {
        let start = identity::start(self.set);
        let current = match self.partition() {
            Some(partition) => ordinal < start.saturating_add(partition),
            None => self.rolls() && ordinal < start.saturating_add(self.set.status.as_ref().and_then(|s| s.current_replicas).unwrap_or(0)),
        };
        let (name, template) = if current { &self.revisions.current } else { &self.revisions.update };
        identity::new_pod(self.set, template, name, ordinal)
    }

    fn claims(&self, pod: &Pod) -> Vec<Option<Arc<PersistentVolumeClaim>>> {
        let ordinal = identity::ordinal(pod).unwrap_or(-1);
        identity::claims(self.set, ordinal).iter().map(|(_, c)| (self.claim)(&c.name_any())).collect()
    }

    fn claims_owned_as_wanted(&self, pod: &Pod) -> bool {
        self.claims(pod).iter().flatten().all(|c| claims::is_up_to_date(c, self.set, pod))
    }

    fn blocked_by_claim(&self, pod: &Pod) -> bool {
        let claims = self.claims(pod);
        claims::block(self.set, pod, &claims.iter().flatten().map(Arc::as_ref).collect::<Vec<_>>())
    }

    fn wants_claims(&self, pod: &Pod) -> bool {
        let ready = |c: &Option<Arc<PersistentVolumeClaim>>| {
            c.as_ref().is_some_and(|c| c.metadata.deletion_timestamp.is_none() && claims::is_up_to_date(c, self.set, pod))
        };
        !self.claims(pod).iter().all(ready)
    }
}

/// Plans one pass.
pub fn plan(view: &View) -> Plan {
    let in_order = view.set.spec.as_ref().and_then(|s| s.pod_management_policy.as_deref()) != Some("Parallel");
    let mut plan = Plan { stages: Vec::new(), in_order, status: status(view) };
    if view.set.metadata.deletion_timestamp.is_none() {
        stages(view, &mut plan);
    }
    complete(view, &mut plan.status);
    plan
}

/// The pods that are to be there, in order, and whether those are all. However many a set wants, no more
/// missing ones are thought of than one pass makes; one that waits for the first makes just that.
fn slots(view: &View, mut there: BTreeMap<i32, Arc<Pod>>, in_order: bool) -> (Vec<Slot>, bool) {
    let (mut slots, mut missing) = (Vec::new(), if in_order { 1 } else { BURST });
    for ordinal in identity::ordinals(view.set) {
        slots.push(match there.remove(&ordinal) {
            Some(pod) => Slot::There(pod),
            None if missing == 0 => {
                slots.extend(there.into_values().map(Slot::There));
                return (slots, false);
            }
            None => {
                missing -= 1;
                let new = view.new_pod(ordinal);
                let seen = Pod::unmade(new.metadata.clone());
                Slot::New(Box::new(new), Box::new(seen))
            }
        });
    }
    (slots, true)
}

fn stages(view: &View, plan: &mut Plan) {
    let mut there: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
    let mut condemned: Vec<Arc<Pod>> = Vec::new();
    for pod in view.pods {
        match identity::ordinal(pod.as_ref()) {
            Some(ordinal) if identity::wants(view.set, ordinal) => drop(there.insert(ordinal, pod.clone())),
            Some(_) => condemned.push(pod.clone()),
            None => {}
        }
    }
    condemned.sort_by_cached_key(|p| std::cmp::Reverse(identity::ordinal(p.as_ref())));
    let (slots, whole) = slots(view, there, plan.in_order);
    let all = slots.iter().map(Slot::pod).chain(condemned.iter().rev().map(Arc::as_ref));
    let first_unavailable = all.into_iter().find(|p| view.unavailable(p)).map(ResourceExt::name_any);

    let mut wanted = Vec::new();
    let go_on = slots.iter().all(|slot| replica(view, slot, plan.in_order, &mut wanted) || !plan.in_order);
    plan.stages.push(wanted);
    if !go_on {
        return;
    }
    plan.stages.push(condemned.iter().filter(|p| !view.claims_owned_as_wanted(p)).map(|p| Action::Mend(p.clone())).collect());
    let mut gone = Vec::new();
    let go_on = condemned.iter().all(|pod| surplus(view, pod, first_unavailable.as_deref(), plan.in_order, &mut gone) || !plan.in_order);
    plan.stages.push(gone);
    if go_on && whole && view.rolls() {
        let replaced = rollout(view, &slots);
        if let Some(count) = &mut plan.status.current_replicas {
            *count -= replaced.len() as i32;
        }
        plan.stages.push(replaced.into_iter().map(Action::Delete).collect());
    }
}

/// One pod that is to be there. False when those after it must wait.
fn replica(view: &View, slot: &Slot, in_order: bool, actions: &mut Vec<Action>) -> bool {
    let pod = match slot {
        Slot::New(pod, seen) => {
            if !view.blocked_by_claim(seen) {
                actions.push(Action::Create(pod.clone()));
            }
            return false;
        }
        Slot::There(pod) => pod,
    };
    if matches!(pods::phase(pod), "Failed" | "Succeeded") {
        if !terminating(pod) {
            actions.push(Action::Delete(pod.clone()));
        }
        return false;
    }
    if pods::phase(pod) == "Pending" && view.wants_claims(pod) {
        actions.push(Action::Claims(pod.clone()));
    }
    if in_order && (terminating(pod) || !running_and_ready(pod) || !view.available(pod)) {
        return false;
    }
    if !identity::matches(view.set, pod) || !identity::storage_matches(view.set, pod) || !view.claims_owned_as_wanted(pod) {
        actions.push(Action::Mend(pod.clone()));
    }
    true
}

/// One pod that is too many. False when those after it must wait.
fn surplus(view: &View, pod: &Arc<Pod>, first_unavailable: Option<&str>, in_order: bool, actions: &mut Vec<Action>) -> bool {
    if terminating(pod) {
        return false;
    }
    let healthy = running_and_ready(pod) && view.available(pod);
    if in_order && !healthy && first_unavailable != Some(pod.name_any().as_str()) {
        return false;
    }
    actions.push(Action::Delete(pod.clone()));
    false
}

/// The pods that make place for the wanted revision, from the highest ordinal.
fn rollout(view: &View, slots: &[Slot]) -> Vec<Arc<Pod>> {
    let least = view.partition().unwrap_or(0).max(0) as usize;
    let update = view.revisions.update.0.as_str();
    let outdated = |slot: &Slot| match slot {
        Slot::There(pod) if identity::revision(pod) != update && !terminating(pod) => Some(pod.clone()),
        _ => None,
    };
    let strategy = view.set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
    let Some(allowed) = strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.max_unavailable.as_ref()) else {
        // One at a time, and none while one above it is not available.
        for slot in slots.iter().skip(least).rev() {
            if let Some(pod) = outdated(slot) {
                return vec![pod];
            }
            if view.unavailable(slot.pod()) {
                return Vec::new();
            }
        }
        return Vec::new();
    };
    let allowed = amount::of(allowed, identity::replicas(view.set), false).max(1) as usize;
    let unavailable = slots.iter().filter(|s| view.unavailable(s.pod())).count();
    slots.iter().skip(least).rev().filter_map(outdated).take(allowed.saturating_sub(unavailable)).collect()
}

fn status(view: &View) -> StatefulSetStatus {
    let count = |test: &dyn Fn(&Pod) -> bool| view.pods.iter().filter(|p| test(p)).count() as i32;
    let of = |revision: &str| count(&|p| !terminating(p) && identity::revision(p) == revision);
    StatefulSetStatus {
        observed_generation: view.set.metadata.generation,
        conditions: view.set.status.as_ref().and_then(|s| s.conditions.clone()),
        replicas: view.pods.len() as i32,
        ready_replicas: Some(count(&running_and_ready)),
        available_replicas: Some(count(&|p| running_and_ready(p) && view.available(p))),
        current_replicas: Some(of(&view.revisions.current.0)),
        updated_replicas: Some(of(&view.revisions.update.0)),
        current_revision: Some(view.revisions.current.0.clone()),
        update_revision: Some(view.revisions.update.0.clone()),
        collision_count: Some(view.revisions.collisions),
    }
}

/// When all pods are of the wanted revision, that one is the current one.
fn complete(view: &View, status: &mut StatefulSetStatus) {
    let wanted = identity::replicas(view.set);
    if view.rolls() && status.updated_replicas == Some(wanted) && status.ready_replicas == Some(wanted) && status.replicas == wanted {
        status.current_replicas = status.updated_replicas;
        status.current_revision = status.update_revision.clone();
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
