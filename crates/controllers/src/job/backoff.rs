//! How long a failed pod's replacement waits: 10 s, doubling with each failure since the last
//! success, at most 10 min, counted from the last failure's end.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use crate::pod::{ContainerStatus, Pod};

const FIRST: SignedDuration = SignedDuration::from_secs(10);
const LONGEST: SignedDuration = SignedDuration::from_mins(10);

/// The failures of one job since its last success.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Record {
    pub failures: u32,
    pub last: Option<Timestamp>,
}

impl Record {
    /// The record after pods that have newly ended.
    pub fn after(self, succeeded: &[Arc<Pod>], failed: &[Arc<Pod>], now: Timestamp) -> Record {
        let ends = |pods: &[Arc<Pod>]| pods.iter().map(|p| ended(p).unwrap_or(now)).collect::<Vec<_>>();
        match ends(succeeded).into_iter().max() {
            None => {
                let ends = ends(failed);
                Record { failures: self.failures + ends.len() as u32, last: ends.into_iter().max().or(self.last) }
            }
            Some(success) => {
                let later: Vec<Timestamp> = ends(failed).into_iter().filter(|e| *e > success).collect();
                Record { failures: later.len() as u32, last: later.into_iter().max() }
            }
        }
    }

    /// What is left of the wait.
    pub fn left(self, now: Timestamp) -> Option<Duration> {
        left(self.failures, self.last?, now)
    }
}

/// What is left of the wait after so many failures.
pub fn left(failures: u32, last: Timestamp, now: Timestamp) -> Option<Duration> {
    if failures == 0 {
        return None;
    }
    let delay = FIRST.checked_mul(1 << (failures - 1).min(6)).unwrap_or(LONGEST).min(LONGEST);
    let left = delay - now.duration_since(last);
    left.is_positive().then(|| left.unsigned_abs())
}

/// When a pod ended: with its last container, or when it ceased to be ready, or when it was told to go.
pub fn ended(pod: &Pod) -> Option<Timestamp> {
    let ready = || {
        let conditions = pod.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|c| c.type_ == "Ready" && c.status == "False")?.last_transition_time.as_ref().map(|t| t.0)
    };
    let told = || {
        let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or(0));
        pod.metadata.deletion_timestamp.as_ref().map(|t| t.0 - grace)
    };
    containers_ended(pod).or_else(ready).or_else(told).or_else(|| pod.creation_timestamp().map(|t| t.0))
}

fn containers_ended(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let sidecars: Vec<&str> = pod
        .spec
        .iter()
        .flat_map(|s| s.init_containers.iter().flatten())
        .filter(|c| c.restart_policy.as_deref() == Some("Always"))
        .map(|c| c.name.as_str())
        .collect();
    let end = |c: &ContainerStatus| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|t| t.0);
    let started = status.init_container_statuses.iter().flatten().filter(|c| sidecars.contains(&c.name.as_str()));
    let ends: Option<Vec<Timestamp>> = status.container_statuses.iter().flatten().chain(started).map(end).collect();
    ends?.into_iter().max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).expect("a time")
    }

    fn pod(second: i64) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "p"}, "status": {"containerStatuses": [{"name": "c", "image": "i", "imageID": "",
                "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 1, "finishedAt": at(second).to_string()}}}]}}))
            .expect("a pod"),
        )
    }

    #[test]
    fn failures_add_up_until_a_success() {
        let now = at(100);
        let first = Record::default().after(&[], &[pod(1), pod(3)], now);
        assert_eq!(first, Record { failures: 2, last: Some(at(3)) });
        assert_eq!(first.after(&[], &[], now), first);
        assert_eq!(first.after(&[], &[pod(9)], now).failures, 3);
        assert_eq!(first.after(&[pod(5)], &[], now), Record::default());
        assert_eq!(first.after(&[pod(5)], &[pod(4), pod(6), pod(8)], now), Record { failures: 2, last: Some(at(8)) });
        assert_eq!(first.after(&[pod(5)], &[pod(5)], now), Record::default(), "a failure of that very second is not after it");
    }

    #[test]
    fn the_wait_doubles_up_to_ten_minutes() {
        let wait = |failures| left(failures, at(0), at(0)).map_or(0, |d| d.as_secs());
        assert_eq!([0, 1, 2, 3, 6, 7, 50].map(wait), [0, 10, 20, 40, 320, 600, 600]);
        assert_eq!(left(1, at(0), at(4)), Some(Duration::from_secs(6)));
        assert_eq!(left(1, at(0), at(10)), None);
    }

    #[test]
    fn a_pod_ends_with_its_last_container_or_when_it_is_told_to_go() {
        let pod = |v| serde_json::from_value::<Pod>(v).expect("a pod");
        let told = json!({"metadata": {"deletionTimestamp": at(30).to_string(), "deletionGracePeriodSeconds": 20}});
        assert_eq!(ended(&pod(told)), Some(at(10)));
        assert_eq!(ended(&pod(json!({"metadata": {}}))), None);
        let ready = |status: &str| json!([{"type": "Initialized", "status": "False", "lastTransitionTime": at(1).to_string()},
            {"type": "Ready", "status": status, "lastTransitionTime": at(7).to_string()}]);
        let of = |status: &str| ended(&pod(json!({"metadata": {"creationTimestamp": at(0).to_string()}, "status": {"conditions": ready(status), "containerStatuses": [{"name": "c",
            "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": {}}}]}})));
        assert_eq!((of("False"), of("True")), (Some(at(7)), Some(at(0))));
        // Sidecars end last; other containers that initialise are over before any of the rest begins.
        let state = |name: &str, second: i64| json!({"name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 0, "finishedAt": at(second).to_string()}}});
        let init = json!([{"name": "first"}, {"name": "beside", "restartPolicy": "Always"}]);
        let whole = json!({"metadata": {}, "spec": {"containers": [], "initContainers": init},
            "status": {"initContainerStatuses": [state("first", 99), state("beside", 30)], "containerStatuses": [state("c", 20)]}});
        assert_eq!(ended(&pod(whole)), Some(at(30)));
    }
}
