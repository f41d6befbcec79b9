//! The status of a daemon set: how many nodes are to have a pod, have one, and how those are.

use k8s_openapi::api::apps::v1::DaemonSetStatus;

use super::nodes::Fit;
use super::plan::View;
use crate::pods;

/// The status that the pods amount to. `acted` is whether the current generation has been acted on;
/// if not, the observed generation stays.
pub fn status(view: &View, acted: bool) -> DaemonSetStatus {
    let old = view.set.status.clone().unwrap_or_default();
    let mut status = DaemonSetStatus {
        collision_count: old.collision_count,
        conditions: old.conditions,
        observed_generation: if acted { view.set.metadata.generation } else { old.observed_generation },
        ..DaemonSetStatus::default()
    };
    let (mut updated, mut available) = (0, 0);
    for (node, fit) in &view.fits {
        let oldest = view.pods.get(node).and_then(|pods| pods.first());
        match (fit, oldest) {
            (Fit::Runs, Some(pod)) => {
                status.desired_number_scheduled += 1;
                status.current_number_scheduled += 1;
                status.number_ready += i32::from(pods::is_ready(pod));
                available += i32::from(view.is_available(pod));
                updated += i32::from(view.is_updated(pod));
            }
            (Fit::Runs, None) => status.desired_number_scheduled += 1,
            (_, Some(_)) => status.number_misscheduled += 1,
            (_, None) => {}
        }
    }
    status.updated_number_scheduled = Some(updated);
    status.number_available = Some(available);
    status.number_unavailable = Some(status.desired_number_scheduled - available);
    status
}
