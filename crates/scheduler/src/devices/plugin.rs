//! The plug-in: decisions over a [`World`], promises to pods that are on their way, and what is written for
//! them before they are bound.
//!
//! A promise is made under the lock of the world, so two pods decided on one after the other never get the
//! same device. It ends when the claim says it itself, or the pod is turned away.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::NAME;
use super::asked::is_reserved_for;
use super::extended::{self, Extended};
use super::needs::{Means, Needs, Refusal};
use super::selectors::Selectors;
use super::world::World;
use super::write::Writer;
use crate::cluster::NodeInfo;
use crate::config::Profile;
use crate::hints::Event;
use crate::node::NodeView;
use crate::plugin::{After, Check, Plugin, Prepared, Rejection, Site, Work};
use crate::pod::PodInfo;

/// Devices that can be looked at in the time that a filter has: a bound that does not depend on the
/// machine, so that equal cases end equally.
fn tries(timeout: Duration) -> usize {
    const A_MILLISECOND: u128 = 100;
    if timeout.is_zero() { usize::MAX } else { usize::try_from(timeout.as_millis().saturating_mul(A_MILLISECOND)).unwrap_or(usize::MAX) }
}

/// What a pod on its way is to get.
#[derive(Debug, Clone)]
pub(crate) struct Reserved {
    /// Its claims, those that have an allocation now with it.
    pub claims: Vec<(Arc<ResourceClaim>, Option<Arc<AllocationResult>>)>,
    /// The claim that is to be made for its extended resources.
    pub extended: Option<(Extended, Arc<AllocationResult>)>,
}

impl Reserved {
    /// The claims to which something was promised.
    fn promises(&self) -> impl Iterator<Item = (&str, &Arc<AllocationResult>)> {
        let own = self.claims.iter().filter_map(|(c, a)| Some((c.metadata.uid.as_deref()?, a.as_ref()?)));
        own.chain(self.extended.iter().filter_map(|(e, a)| Some((e.claim.metadata.uid.as_deref()?, a))))
    }
}

/// A node by its name, at any time.
pub(crate) type NodeOf = Box<dyn Fn(&str) -> Option<Arc<NodeView>> + Send + Sync>;

/// DynamicResources.
pub(crate) struct DynamicResources {
    pub world: Arc<RwLock<World>>,
    /// Whether all of it is known: before, nothing must be decided on it.
    ready: Box<dyn Fn() -> bool + Send + Sync>,
    selectors: Arc<dyn Selectors>,
    node: NodeOf,
    writer: Option<Arc<Writer>>,
    /// By the pod's uid.
    reserved: Arc<Mutex<HashMap<String, Reserved>>>,
}

impl DynamicResources {
    pub fn new(world: Arc<RwLock<World>>, selectors: Arc<dyn Selectors>, node: NodeOf, ready: impl Fn() -> bool + Send + Sync + 'static, writer: Option<Arc<Writer>>) -> DynamicResources {
        DynamicResources { world, selectors, node, ready: Box::new(ready), writer, reserved: Arc::default() }
    }

    /// One that writes nothing.
    pub fn over(world: Arc<RwLock<World>>) -> DynamicResources {
        DynamicResources::new(world, super::selectors::standard(), Box::new(|_| None), || true, None)
    }

    fn means(&self, profile: Option<&Profile>) -> Means<'_> {
        Means {
            selectors: &*self.selectors,
            tries: profile.map_or(usize::MAX, |p| tries(p.device_filter_timeout)),
            patience: self.writer.as_ref().map_or(SignedDuration::from_mins(10), |w| w.patience()),
            now: Timestamp::now(),
        }
    }
}

struct DevicesCheck<'a> {
    world: RwLockReadGuard<'a, World>,
    means: Means<'a>,
    pod: &'a PodInfo,
    needs: Needs,
    /// What was found out, by node.
    known: RefCell<HashMap<String, Result<i64, Rejection>>>,
    unavailable: RefCell<BTreeSet<usize>>,
}

impl DevicesCheck<'_> {
    fn on(&self, node: &NodeInfo) -> Result<i64, Rejection> {
        // Other pods do not matter to it, so it may be asked many times.
        if let Some(known) = self.known.borrow().get(node.name()) {
            return known.clone();
        }
        let found = match self.needs.on_node(&self.world, self.means, self.pod, &node.view, None) {
            Ok(fit) => Ok(fit.worth),
            Err(Refusal { rejection, unavailable }) => {
                self.unavailable.borrow_mut().extend(unavailable);
                Err(rejection)
            }
        };
        self.known.borrow_mut().insert(node.name().into(), found.clone());
        found
    }
}

impl Check for DevicesCheck<'_> {
    fn filter(&self, site: Site<'_>) -> Result<(), Rejection> {
        self.on(site.node).map(|_| ())
    }

    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let worths: Vec<i64> = nodes.iter().map(|n| self.on(n).unwrap_or(0)).collect();
        let best = worths.iter().copied().max().filter(|best| *best > 0)?;
        Some(worths.into_iter().map(|w| w * 100 / best).collect())
    }

    fn after(&self) -> After {
        self.needs.after(self.pod, self.unavailable.borrow().iter().copied())
    }
}

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        NAME
    }

    fn is_late(&self) -> bool {
        true
    }

    fn holds(&self, pod: &PodInfo) -> Option<String> {
        if pod.shape.claims.is_empty() {
            return None;
        }
        self.world.read_recursive().claims_of(pod).err()
    }

    fn provides(&self, resource: &str) -> bool {
        self.world.read_recursive().class_behind(resource).is_some()
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, profile: &'a Profile) -> Prepared<'a> {
        if pod.shape.claims.is_empty() && pod.shape.devices.is_empty() {
            return Prepared::Skip;
        }
        if !pod.shape.claims.is_empty() && !(self.ready)() {
            return Prepared::Reject(Rejection::final_(NAME, "the devices of the cluster are not known yet"));
        }
        let (world, means) = (self.world.read_recursive(), self.means(Some(profile)));
        match Needs::of(&world, pod, means) {
            Ok(None) => Prepared::Skip,
            Ok(Some(needs)) => Prepared::Check(Box::new(DevicesCheck { world, means, pod, needs, known: RefCell::default(), unavailable: RefCell::default() })),
            Err(rejection) => Prepared::Reject(rejection),
        }
    }

    fn reserve(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        if pod.shape.claims.is_empty() && pod.shape.devices.is_empty() {
            return Ok(());
        }
        let mut world = self.world.write();
        let means = self.means(None);
        let said = |r: Rejection| r.reasons(pod).join(", ");
        let Some(needs) = Needs::of(&world, pod, means).map_err(said)? else { return Ok(()) };
        let view = (self.node)(node).ok_or_else(|| format!("node \"{node}\" not found"))?;
        let mut share_id = || super::write::new_uid();
        let fit = needs.on_node(&world, means, pod, &view, Some(&mut share_id)).map_err(|r| said(r.rejection))?;
        let mut given = fit.allocations.into_iter().map(Arc::new);
        let claims = needs.claims.iter().map(|n| (n.claim.clone(), if super::world::allocation(&n.claim).is_none() { given.next() } else { None }));
        let reserved = Reserved { claims: claims.collect(), extended: fit.extended.map(|(e, a)| (e, Arc::new(a))) };
        if reserved.claims.is_empty() && reserved.extended.is_none() {
            return Ok(());
        }
        reserved.promises().for_each(|(uid, allocation)| world.promise(uid, allocation.clone()));
        self.reserved.lock().insert(pod.uid().into(), reserved);
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo, _: &str) {
        if pod.shape.claims.is_empty() && pod.shape.devices.is_empty() {
            return;
        }
        let mut world = self.world.write();
        if let Some(reserved) = self.reserved.lock().remove(pod.uid()) {
            reserved.promises().for_each(|(uid, _)| world.end_promise(uid, None));
        }
        let Some(writer) = &self.writer else { return };
        // What was written down already is given back too.
        let own = world.claims_of(pod).unwrap_or_default().into_iter().filter(|c| is_reserved_for(pod, c)).collect();
        writer.clone().release(pod, own, world.extended_of(pod).cloned());
    }

    fn must_pre_bind(&self, pod: &PodInfo, _: &str) -> bool {
        !(pod.shape.claims.is_empty() && pod.shape.devices.is_empty()) && self.reserved.lock().contains_key(pod.uid())
    }

    fn pre_bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> Work<'a> {
        Box::pin(async move {
            let Some(writer) = &self.writer else { return Ok(()) };
            let Some(reserved) = self.reserved.lock().get(pod.uid()).cloned() else { return Ok(()) };
            writer.write(pod, node, &reserved).await?;
            self.reserved.lock().remove(pod.uid());
            Ok(())
        })
    }

    fn give_back<'a>(&'a self, pod: &'a PodInfo, claim: &'a str) -> Work<'a> {
        Box::pin(async move {
            let Some(writer) = &self.writer else { return Ok(()) };
            let known = self.world.read_recursive().claim(pod.namespace(), claim).cloned();
            match known {
                Some(claim) => writer.give_back(pod, &claim).await,
                None => Ok(()),
            }
        })
    }

    fn helps(&self, pod: &PodInfo, event: &Event) -> bool {
        match event {
            Event::Node { old: None, .. } => true,
            Event::Node { old: Some(old), new } => old.labels != new.labels || old.allocatable != new.allocatable,
            Event::PodGone { old, .. } => {
                // It may have been turned away, with what was promised to it.
                let devices = !old.shape.claims.is_empty() || extended::concerns(&self.world.read_recursive(), old);
                devices && old.uid() != pod.uid()
            }
            Event::NodeGone { .. } | Event::PodOnNode { .. } => false,
        }
    }
}
