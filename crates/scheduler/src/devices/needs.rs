//! What a pod needs of devices, and whether a node has it: pure, over a [`World`].

use std::cell::OnceCell;
use std::sync::Arc;

use k8s_openapi::api::resource::v1::{AllocatedDeviceStatus, AllocationResult, DeviceRequestAllocationResult, ResourceClaim};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::NAME;
use super::allocator::{Question, Solution, Stock, Trouble, described};
use super::extended::{self, Extended};
use super::outcome;
use super::selectors::Selectors;
use super::survey::Survey;
use super::world::{World, allocation};
use crate::node::NodeView;
use crate::plugin::{After, Rejection};
use crate::pod::PodInfo;
use crate::selector::NodeTerm;

/// One of a pod's claims.
#[derive(Debug)]
pub(crate) struct Need {
    pub claim: Arc<ResourceClaim>,
    /// Where its devices can be reached, when it is allocated and they cannot everywhere.
    near: Option<Vec<NodeTerm>>,
    /// Its devices will not get ready any more.
    is_lost: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Needs {
    pub claims: Vec<Need>,
    /// The pod asks for extended resources that devices stand behind.
    has_extended: bool,
    /// A claim that an earlier attempt has made for them.
    stale: Option<Arc<ResourceClaim>>,
    /// Claims that are to be allocated, read once for all nodes.
    question: OnceCell<Result<Question, Trouble>>,
}

/// What a node can give.
#[derive(Debug, Default)]
pub(crate) struct Fit {
    /// How good the alternatives are that are taken.
    pub worth: i64,
    /// Allocations in the order of the claims, for those that have none, when they were asked for.
    pub allocations: Vec<AllocationResult>,
    pub extended: Option<(Extended, AllocationResult)>,
}

/// How devices are looked for.
#[derive(Clone, Copy)]
pub(crate) struct Means<'a> {
    pub selectors: &'a dyn Selectors,
    pub tries: usize,
    /// How long devices may take to get ready.
    pub patience: SignedDuration,
    pub now: Timestamp,
}

/// Why a node will not do.
#[derive(Debug, PartialEq)]
pub(crate) struct Refusal {
    pub rejection: Rejection,
    /// Claims, by number, whose devices cannot be used there.
    pub unavailable: Vec<usize>,
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Refusal {
        Refusal { rejection, unavailable: Vec::new() }
    }
}

fn said(why: String) -> Rejection {
    Rejection::said(NAME, false, vec![why])
}

impl Needs {
    /// What a pod needs; `None` when it has nothing to do with devices.
    pub fn of(world: &World, pod: &PodInfo, means: Means<'_>) -> Result<Option<Needs>, Rejection> {
        let has_extended = extended::concerns(world, pod);
        if pod.shape.claims.is_empty() && !has_extended {
            return Ok(None);
        }
        let claims = world.claims_of(pod).map_err(said)?;
        let stale = world.extended_of(pod).filter(|_| has_extended).cloned();
        if claims.is_empty() && !has_extended {
            return Ok(None);
        }
        let mut needs = Needs { claims: Vec::new(), has_extended, stale, question: OnceCell::new() };
        for claim in claims {
            let need = match allocation(&claim) {
                None => {
                    if world.is_promised(&claim) {
                        return Err(said(format!("resource claim {} is in the process of being allocated", described(&claim))));
                    }
                    check_classes(world, &claim)?;
                    Need { claim, near: None, is_lost: false }
                }
                Some(given) => {
                    // The compact form reads the same JSON; what it cannot read selects nothing.
                    let terms = |s: &k8s_openapi::api::core::v1::NodeSelector| s.node_selector_terms.iter().filter_map(|t| serde_json::to_value(t).and_then(serde_json::from_value).ok()).collect();
                    let near = given.node_selector.as_ref().map(terms);
                    let is_lost = match readiness(&claim) {
                        Readiness::Ready => false,
                        Readiness::Failed(_) => true,
                        Readiness::Waiting => is_overdue(&claim, means),
                    };
                    Need { claim, near, is_lost }
                }
            };
            needs.claims.push(need);
        }
        Ok(Some(needs))
    }

    /// The claims that are to be allocated.
    pub fn open(&self) -> impl Iterator<Item = &Arc<ResourceClaim>> {
        self.claims.iter().filter(|n| allocation(&n.claim).is_none()).map(|n| &n.claim)
    }

    /// Whether a node has what is needed. With `share_id` the allocations are written out.
    pub fn on_node(&self, world: &World, means: Means<'_>, pod: &PodInfo, node: &NodeView, share_id: Option<&mut dyn FnMut() -> String>) -> Result<Fit, Refusal> {
        let extended = if self.has_extended { self.extended_on(world, pod, node)? } else { None };
        if extended.is_none() && self.claims.is_empty() {
            return Ok(Fit::default());
        }
        let is_far = |n: &Need| n.near.as_ref().is_some_and(|terms| !terms.iter().any(|t| t.matches(node.name(), &node.labels)));
        let unavailable: Vec<usize> = self.claims.iter().enumerate().filter(|(_, n)| n.is_lost || is_far(n)).map(|(i, _)| i).collect();
        let mut fit = Fit { worth: self.claims.iter().filter_map(|n| Some(worth_of_given(&n.claim, allocation(&n.claim)?))).sum(), ..Fit::default() };
        if extended.is_some() || self.open().next().is_some() {
            self.allocate(world, means, node, extended, share_id, &mut fit)?;
        }
        if unavailable.is_empty() { Ok(fit) } else { Err(Refusal { rejection: Rejection::final_(NAME, "resourceclaim not available on the node"), unavailable }) }
    }

    fn extended_on(&self, world: &World, pod: &PodInfo, node: &NodeView) -> Result<Option<Extended>, Rejection> {
        if self.stale.is_some() {
            return Err(Rejection::final_(NAME, "cannot schedule extended resource claim"));
        }
        let wanted = extended::wanted(world, pod, &node.allocatable).map_err(|why| Rejection::final_(NAME, why))?;
        Ok((!wanted.is_empty()).then(|| extended::claim(pod, &wanted)))
    }

    fn allocate(&self, world: &World, means: Means<'_>, node: &NodeView, extended: Option<Extended>, share_id: Option<&mut dyn FnMut() -> String>, fit: &mut Fit) -> Result<(), Rejection> {
        let class = |name: &str| world.class(name).cloned();
        let stock = Stock { slices: &world.slices, taken: &world.taken, selectors: means.selectors, tries: means.tries };
        let own;
        let question = match &extended {
            // Each node has its own variant of this claim.
            Some(extended) => {
                let claims: Vec<_> = self.open().cloned().chain([Arc::new(extended.claim.clone())]).collect();
                own = Question::new(&claims, &class);
                &own
            }
            None => self.question.get_or_init(|| Question::new(&self.open().cloned().collect::<Vec<_>>(), &class)),
        };
        let broken = |trouble: Trouble| match trouble {
            Trouble::Node(why) => said(why),
            Trouble::Claims(why) => Rejection::broken(NAME, why),
            Trouble::Tries => Rejection::broken(NAME, format!("node {}: timed out trying to allocate devices", node.name())),
        };
        let question = question.as_ref().map_err(|t| broken(t.clone()))?;
        let solutions = question.allocate(stock, node.name(), &node.labels).map_err(broken)?;
        let Some(solutions) = solutions else { return Err(Rejection::final_(NAME, "cannot allocate all claims")) };
        fit.worth += solutions.iter().map(outcome::worth).sum::<i64>();
        if let Some(share_id) = share_id {
            let mut write = |s: &Solution<'_>| outcome::allocation(s, node.name(), share_id);
            fit.allocations = solutions.iter().map(&mut write).collect();
            if let Some(extended) = extended {
                fit.extended = fit.allocations.pop().map(|a| (extended, a));
            }
        }
        Ok(())
    }

    /// What a node has for each request.
    pub fn survey(&self, world: &World, means: Means<'_>, pod: &PodInfo, node: &NodeView) -> Vec<Survey> {
        let class = |name: &str| world.class(name).cloned();
        let stock = Stock { slices: &world.slices, taken: &world.taken, selectors: means.selectors, tries: means.tries };
        let extended = if self.has_extended { self.extended_on(world, pod, node).ok().flatten() } else { None };
        let claims: Vec<_> = self.open().cloned().chain(extended.map(|e| Arc::new(e.claim))).collect();
        Question::new(&claims, &class).map(|q| q.survey(stock, node.name(), &node.labels)).unwrap_or_default()
    }

    /// What can be done when no node will do: `unavailable` are the claims that some node could not use.
    pub fn after(&self, pod: &PodInfo, unavailable: impl Iterator<Item = usize>) -> After {
        let only_ours = |claim: &ResourceClaim| {
            let reserved = claim.status.iter().flat_map(|s| s.reserved_for.iter().flatten());
            let mut others = reserved.filter(|r| r.uid != pod.uid());
            others.next().is_none()
        };
        let idle = unavailable.filter_map(|i| self.claims.get(i)).find(|n| only_ours(&n.claim));
        match (idle, &self.stale) {
            (Some(need), _) => After { message: "deallocation of ResourceClaim completed", give_back: Some(need.claim.name_any()) },
            (None, Some(stale)) => After { message: "deletion of ResourceClaim completed", give_back: Some(stale.name_any()) },
            (None, None) => After { message: "still not schedulable", give_back: None },
        }
    }
}

fn check_classes(world: &World, claim: &ResourceClaim) -> Result<(), Rejection> {
    let check = |class: &str, request: &str| match world.class(class) {
        _ if class.is_empty() => Err(Rejection::broken(NAME, format!("request {request}: unsupported request type"))),
        None => Err(said(format!("request {request}: device class {class} does not exist"))),
        Some(_) => Ok(()),
    };
    for request in claim.spec.devices.iter().flat_map(|d| d.requests.iter().flatten()) {
        match (&request.exactly, &request.first_available) {
            (Some(exactly), _) => check(&exactly.device_class_name, &request.name)?,
            (None, Some(alternatives)) if !alternatives.is_empty() => {
                for alternative in alternatives {
                    check(&alternative.device_class_name, &format!("{}/{}", request.name, alternative.name))?;
                }
            }
            _ => return Err(said(format!("resource claim {}, request {}: unknown request type", described(claim), request.name))),
        }
    }
    Ok(())
}

/// What the alternatives are worth that an allocated claim has.
fn worth_of_given(claim: &ResourceClaim, given: &AllocationResult) -> i64 {
    let taken: Vec<&str> = given.devices.iter().flat_map(|d| d.results.iter().flatten()).map(|r| r.request.as_str()).collect();
    let requests = claim.spec.devices.iter().flat_map(|d| d.requests.iter().flatten()).filter(|r| r.exactly.is_none());
    let alternatives = requests.flat_map(|r| r.first_available.iter().flatten().enumerate().map(|(i, s)| (i, format!("{}/{}", r.name, s.name))));
    alternatives.filter(|(_, name)| taken.contains(&name.as_str())).map(|(i, _)| 8 - i as i64).sum()
}

/// Whether the devices of an allocated claim are ready for its pod.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    Waiting,
    /// In upstream's words.
    Failed(String),
}

/// See [`Readiness`]: devices may have conditions that must be true first.
pub(crate) fn readiness(claim: &ResourceClaim) -> Readiness {
    for result in results(claim).filter(|r| r.binding_conditions.as_ref().is_some_and(|c| !c.is_empty())) {
        let devices = claim.status.iter().flat_map(|s| s.devices.iter().flatten());
        let same = |d: &&AllocatedDeviceStatus| d.device == result.device && d.driver == result.driver && d.pool == result.pool;
        let Some(status) = { devices }.find(same) else { return Readiness::Waiting };
        let is_true = |name: &String| status.conditions.iter().flatten().find(|c| c.type_ == *name && c.status == "True");
        if let Some(failed) = result.binding_failure_conditions.iter().flatten().find_map(is_true) {
            return Readiness::Failed(format!("device binding failed: claim={}, reason={}, message={:?}", claim.name_any(), failed.reason, failed.message));
        }
        if result.binding_conditions.iter().flatten().any(|c| is_true(c).is_none()) {
            return Readiness::Waiting;
        }
    }
    Readiness::Ready
}

/// Whether the devices of a claim have had their time to get ready.
pub(crate) fn is_overdue(claim: &ResourceClaim, means: Means<'_>) -> bool {
    let since = allocation(claim).and_then(|a| a.allocation_timestamp.as_ref());
    results(claim).any(|r| r.binding_conditions.is_some()) && since.is_some_and(|t| t.0.saturating_add(means.patience).is_ok_and(|end| end < means.now))
}

/// Whether devices of a claim have such conditions at all.
pub(crate) fn has_conditions(claim: &ResourceClaim) -> bool {
    results(claim).any(|r| r.binding_conditions.as_ref().is_some_and(|c| !c.is_empty()))
}

fn results(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    allocation(claim).into_iter().flat_map(|a| a.devices.iter().flat_map(|d| d.results.iter().flatten()))
}
