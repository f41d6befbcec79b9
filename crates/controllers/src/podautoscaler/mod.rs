//! Horizontal pod autoscaling: as many replicas as metrics ask for, within what the spec and the recent
//! past allow.
//!
//! [`calculator`] turns readings of metrics into a number of replicas, [`normalize`] bounds it,
//! [`plan`] does both for an object and says what its status and events are to be: all pure.
//! [`metrics`] reads the three metrics APIs, [`scale`] finds the target, and `sync` acts.
//! Behind a gate that is off by default upstream, so not here: scaling to zero.

mod calculator;
mod metrics;
mod normalize;
mod plan;
mod scale;
mod sync;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::SignedDuration;

pub use sync::start;

/// What kube-controller-manager's flags `--horizontal-pod-autoscaler-*` say.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `sync-period`
    pub sync_period: Duration,
    /// `downscale-stabilization`
    pub downscale_stabilization: SignedDuration,
    /// `tolerance`
    pub tolerance: f64,
    /// `cpu-initialization-period`
    pub cpu_initialization_period: SignedDuration,
    /// `initial-readiness-delay`
    pub initial_readiness_delay: SignedDuration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            sync_period: Duration::from_secs(15),
            downscale_stabilization: SignedDuration::from_mins(5),
            tolerance: 0.1,
            cpu_initialization_period: SignedDuration::from_mins(5),
            initial_readiness_delay: SignedDuration::from_secs(30),
        }
    }
}
