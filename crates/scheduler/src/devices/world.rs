//! What decisions on devices rest on: claims, classes and slices, which devices are taken, and what was
//! promised to pods that are on their way and is not written down yet.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim};
use kube::ResourceExt;

use super::allocator::Taken;
use super::asked::{claim_names, implicit_resource, is_for};
use super::capacity::{self, Amounts};
use super::pools::Slices;
use crate::pod::PodInfo;

/// Marks the claim that the scheduler makes for a pod's extended resources.
pub(crate) const EXTENDED: &str = "resource.kubernetes.io/extended-resource-claim";

/// A device that an allocation takes: its id, and how much of it when it is shared.
type Hold = (Arc<str>, Option<Amounts>);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub slices: Slices,
    pub taken: Taken,
    /// By uid.
    by_uid: HashMap<String, Arc<ResourceClaim>>,
    /// By namespace and name.
    claims: HashMap<String, HashMap<String, Arc<ResourceClaim>>>,
    classes: HashMap<String, Arc<DeviceClass>>,
    /// Classes by the extended resource that they stand behind.
    by_resource: HashMap<String, Arc<DeviceClass>>,
    /// Claims for extended resources, by the pod that they were made for.
    extended: HashMap<String, Arc<ResourceClaim>>,
    /// What was promised, by the claim's uid.
    promised: HashMap<String, Arc<AllocationResult>>,
    /// What is taken, by the claim's uid.
    held: HashMap<String, Vec<Hold>>,
}

fn version(claim: &ResourceClaim) -> u64 {
    claim.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn uid(claim: &ResourceClaim) -> &str {
    claim.metadata.uid.as_deref().unwrap_or_default()
}

/// A claim's allocation.
pub(crate) fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

/// The uid of the pod that a claim for extended resources was made for.
pub(crate) fn extends(claim: &ResourceClaim) -> Option<&str> {
    let marked = claim.metadata.annotations.as_ref()?.get(EXTENDED).is_some_and(|v| v == "true");
    claim.owner_references().iter().find(|o| marked && o.controller == Some(true)).map(|o| o.uid.as_str())
}

fn holds(allocation: &AllocationResult) -> Vec<Hold> {
    let results = allocation.devices.iter().flat_map(|d| d.results.iter().flatten());
    // Access of administrators takes nothing from others.
    let taking = results.filter(|r| r.admin_access != Some(true));
    let amounts = |list: &BTreeMap<_, k8s_openapi::apimachinery::pkg::api::resource::Quantity>| list.iter().map(|(name, text): (&String, _)| (name.clone(), Quantity::parse(&text.0).unwrap_or_else(|_| Quantity::zero()))).collect();
    taking.map(|r| (format!("{}/{}/{}", r.driver, r.pool, r.device).into(), r.share_id.is_some().then(|| r.consumed_capacity.as_ref().map(amounts).unwrap_or_default()))).collect()
}

impl World {
    /// A claim by its name.
    pub fn claim(&self, namespace: &str, name: &str) -> Option<&Arc<ResourceClaim>> {
        self.claims.get(namespace)?.get(name)
    }

    /// A class by its name.
    pub fn class(&self, name: &str) -> Option<&Arc<DeviceClass>> {
        self.classes.get(name)
    }

    /// The class behind an extended resource.
    pub fn class_behind(&self, resource: &str) -> Option<&Arc<DeviceClass>> {
        self.by_resource.get(resource)
    }

    /// The claim that was made for a pod's extended resources.
    pub fn extended_of(&self, pod: &PodInfo) -> Option<&Arc<ResourceClaim>> {
        self.extended.get(pod.uid())
    }

    /// Whether a claim is about to get an allocation.
    pub fn is_promised(&self, claim: &ResourceClaim) -> bool {
        self.promised.contains_key(uid(claim))
    }

    /// Takes a claim in, unless a newer state of it is known.
    pub fn put_claim(&mut self, claim: &Arc<ResourceClaim>) {
        let (namespace, name) = (claim.namespace().unwrap_or_default(), claim.name_any());
        let known = self.claim(&namespace, &name);
        if known.is_some_and(|k| k.metadata.uid == claim.metadata.uid && version(k) > version(claim)) {
            return;
        }
        // Another one of the same name is gone.
        if let Some(other) = known.filter(|k| k.metadata.uid != claim.metadata.uid).cloned() {
            self.forget(&other);
        }
        if let Some(pod) = extends(claim) {
            self.extended.insert(pod.into(), claim.clone());
        }
        self.claims.entry(namespace).or_default().insert(name, claim.clone());
        self.by_uid.insert(uid(claim).into(), claim.clone());
        self.count(uid(claim), allocation(claim));
    }

    /// Removes a claim.
    pub fn remove_claim(&mut self, claim: &ResourceClaim) {
        let (namespace, name) = (claim.namespace().unwrap_or_default(), claim.name_any());
        if let Some(list) = self.claims.get_mut(&namespace)
            && list.get(&name).is_some_and(|known| known.metadata.uid == claim.metadata.uid)
        {
            list.remove(&name);
            if list.is_empty() {
                self.claims.remove(&namespace);
            }
        }
        self.forget(claim);
    }

    fn forget(&mut self, claim: &ResourceClaim) {
        if let Some(pod) = extends(claim)
            && self.extended.get(pod).is_some_and(|known| known.metadata.uid == claim.metadata.uid)
        {
            self.extended.remove(pod);
        }
        self.by_uid.remove(uid(claim));
        self.count(uid(claim), None);
    }

    /// Promises a claim an allocation.
    pub fn promise(&mut self, uid: &str, allocation: Arc<AllocationResult>) {
        self.promised.insert(uid.into(), allocation);
        self.count_again(uid);
    }

    /// Takes a promise back, or it is written down by now, in this claim.
    pub fn end_promise(&mut self, uid: &str, written: Option<&Arc<ResourceClaim>>) {
        if let Some(claim) = written {
            self.put_claim(claim);
        }
        if self.promised.remove(uid).is_some() {
            self.count_again(uid);
        }
    }

    fn count_again(&mut self, uid: &str) {
        let written = self.by_uid.get(uid).cloned();
        self.count(uid, written.as_deref().and_then(allocation));
    }

    /// Counts what a claim takes: what is written, or else what was promised.
    fn count(&mut self, uid: &str, written: Option<&AllocationResult>) {
        let new = written.or(self.promised.get(uid).map(Arc::as_ref)).map(holds).unwrap_or_default();
        if self.held.get(uid).map_or(new.is_empty(), |old| *old == new) {
            return;
        }
        for (id, amounts) in self.held.remove(uid).unwrap_or_default() {
            self.taken.give_back(&id, amounts.as_ref());
        }
        new.iter().for_each(|(id, amounts)| self.taken.take(id, amounts.as_ref()));
        if !new.is_empty() {
            self.held.insert(uid.into(), new);
        }
    }

    /// A class came, changed, or went (`None`).
    pub fn set_class(&mut self, name: &str, class: Option<&Arc<DeviceClass>>) {
        match class {
            Some(class) => drop(self.classes.insert(name.into(), class.clone())),
            None => drop(self.classes.remove(name)),
        }
        // Of two for the same resource the newer one counts, then the first by name.
        let mut all: Vec<&Arc<DeviceClass>> = self.classes.values().collect();
        all.sort_by(|a, b| a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp).then_with(|| b.metadata.name.cmp(&a.metadata.name)));
        let named = all.iter().filter_map(|c| Some((c.spec.extended_resource_name.clone()?, (*c).clone())));
        self.by_resource = named.chain(all.iter().map(|c| (implicit_resource(&c.name_any()), (*c).clone()))).collect();
    }

    /// The claims that a pod names, in their order. An error is what upstream says of one that is not there.
    pub fn claims_of(&self, pod: &PodInfo) -> Result<Vec<Arc<ResourceClaim>>, String> {
        let mut claims = Vec::new();
        for named in claim_names(pod) {
            let (name, own) = named?;
            let namespace = pod.namespace();
            let claim = self.claim(namespace, name).ok_or_else(|| format!("could not find ResourceClaim \"{namespace}/{name}\""))?;
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("resourceclaim {name:?} is being deleted"));
            }
            if own && !is_for(pod, claim) {
                return Err(format!("ResourceClaim {namespace}/{name} was not created for Pod {namespace}/{} (Pod is not owner)", pod.name()));
            }
            claims.push(claim.clone());
        }
        Ok(claims)
    }
}

impl Taken {
    fn take(&mut self, id: &Arc<str>, amounts: Option<&Amounts>) {
        match amounts {
            None => *self.devices.entry(id.clone()).or_default() += 1,
            Some(amounts) => {
                let share = self.shares.entry(id.clone()).or_default();
                share.0 += 1;
                capacity::add(&mut share.1, amounts);
            }
        }
    }

    fn give_back(&mut self, id: &Arc<str>, amounts: Option<&Amounts>) {
        match amounts {
            None => {
                if let Some(count) = self.devices.get_mut(id) {
                    *count -= 1;
                    if *count == 0 {
                        self.devices.remove(id);
                    }
                }
            }
            Some(amounts) => {
                if let Some(share) = self.shares.get_mut(id) {
                    share.0 -= 1;
                    capacity::subtract(&mut share.1, amounts);
                    if share.0 == 0 {
                        self.shares.remove(id);
                    }
                }
            }
        }
    }
}
