//! Why a node has no devices for claims: for each request, how many devices there are and what is wrong
//! with the others. For questions out of turn; the search itself does not count.

use super::allocator::{Question, Request, Stock, keeps_away, tolerates};
use super::pools::{Pool, State};
use super::slice::Place;
use crate::selector::Labels;

/// What a node has for one request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// `NAMESPACE/NAME`.
    pub claim: String,
    pub request: String,
    pub class: String,
    /// How many are asked for; `None` means all.
    pub wanted: Option<usize>,
    /// Devices that the node can reach.
    pub near: usize,
    /// Those of them that the selectors of class and request want.
    pub matching: usize,
    /// Those of the matching ones with a taint that the request does not tolerate.
    pub tainted: usize,
    /// Those of the others that belong to other claims.
    pub taken: usize,
    /// Pools that cannot be used now, and why.
    pub unusable: Vec<String>,
}

impl Survey {
    /// Devices that could be had.
    pub fn free(&self) -> usize {
        self.matching - self.tainted - self.taken
    }
}

impl Question {
    /// Looks at a node for each request, as if it were the only one.
    pub fn survey(&self, stock: Stock<'_>, node: &str, labels: &Labels) -> Vec<Survey> {
        let pools = stock.slices.pools(node, labels);
        self.requests().map(|(claim, request)| one(claim, request, stock, &pools, node, labels)).collect()
    }
}

fn one(claim: &str, request: &Request, stock: Stock<'_>, pools: &[Pool<'_>], node: &str, labels: &Labels) -> Survey {
    let class = request.class.metadata.name.clone().unwrap_or_default();
    let mut survey = Survey { claim: claim.into(), request: request.full.clone(), class, wanted: request.wanted(), ..Survey::default() };
    for pool in pools {
        match &pool.state {
            State::Ready => {}
            State::Incomplete => survey.unusable.push(format!("{}/{} is being updated", pool.driver, pool.pool)),
            State::Invalid(why) => survey.unusable.push(format!("{}/{} is invalid: {why}", pool.driver, pool.pool)),
        }
        for slice in &pool.near {
            for (i, device) in slice.devices.iter().enumerate() {
                if matches!(slice.place, Place::ByDevice) && !device.place.is_near(node, labels) {
                    continue;
                }
                survey.near += 1;
                if request.is_for(stock.selectors, slice, i) != Ok(true) {
                    continue;
                }
                survey.matching += 1;
                if device.taints.iter().any(|t| keeps_away(t) && !request.tolerations.iter().any(|own| tolerates(own, t))) {
                    survey.tainted += 1;
                } else if !request.admin && stock.taken.devices.contains_key(device.id.as_ref()) {
                    survey.taken += 1;
                }
            }
        }
    }
    survey
}
