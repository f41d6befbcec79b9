//! The two kinds, seen as one.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use reconcile::Object;
use rules::labels;
use serde::Serialize;

use crate::ownership::Namespaced;

/// A kind that keeps a number of equal pods.
pub trait Replicated: Namespaced + Object + Serialize {
    /// Whether its status tells of pods that are being deleted.
    const COUNTS_TERMINATING: bool;

    /// The same as a replica set.
    fn as_set(&self) -> ReplicaSet;

    /// The object with another status.
    fn with_status(&self, status: ReplicaSetStatus) -> Self;

    /// Whether its selector selects these labels.
    fn selects(&self, labels: &BTreeMap<String, String>) -> bool;
}

impl Replicated for ReplicaSet {
    const COUNTS_TERMINATING: bool = true;

    fn as_set(&self) -> ReplicaSet {
        self.clone()
    }

    fn with_status(&self, status: ReplicaSetStatus) -> ReplicaSet {
        ReplicaSet { status: Some(status), ..self.clone() }
    }

    fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.spec.as_ref().is_some_and(|s| labels::matches(&s.selector, labels))
    }
}

impl Replicated for ReplicationController {
    const COUNTS_TERMINATING: bool = false;

    fn as_set(&self) -> ReplicaSet {
        let spec = self.spec.clone().map(|s| ReplicaSetSpec {
            min_ready_seconds: s.min_ready_seconds,
            replicas: s.replicas,
            selector: LabelSelector { match_labels: s.selector, match_expressions: None },
            template: s.template,
        });
        let status = self.status.clone().map(|s| ReplicaSetStatus {
            available_replicas: s.available_replicas,
            conditions: s.conditions.map(|all| all.into_iter().map(set_condition).collect()),
            fully_labeled_replicas: s.fully_labeled_replicas,
            observed_generation: s.observed_generation,
            ready_replicas: s.ready_replicas,
            replicas: s.replicas,
            terminating_replicas: None,
        });
        ReplicaSet { metadata: self.metadata.clone(), spec, status }
    }

    fn with_status(&self, status: ReplicaSetStatus) -> ReplicationController {
        let status = ReplicationControllerStatus {
            available_replicas: status.available_replicas,
            conditions: status.conditions.map(|all| all.into_iter().map(controller_condition).collect()),
            fully_labeled_replicas: status.fully_labeled_replicas,
            observed_generation: status.observed_generation,
            ready_replicas: status.ready_replicas,
            replicas: status.replicas,
        };
        ReplicationController { status: Some(status), ..self.clone() }
    }

    fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let selector = self.spec.as_ref().and_then(|s| s.selector.as_ref());
        selector.is_some_and(|s| !s.is_empty() && s.iter().all(|(k, v)| labels.get(k) == Some(v)))
    }
}

fn set_condition(c: ReplicationControllerCondition) -> ReplicaSetCondition {
    ReplicaSetCondition { last_transition_time: c.last_transition_time, message: c.message, reason: c.reason, status: c.status, type_: c.type_ }
}

fn controller_condition(c: ReplicaSetCondition) -> ReplicationControllerCondition {
    ReplicationControllerCondition { last_transition_time: c.last_transition_time, message: c.message, reason: c.reason, status: c.status, type_: c.type_ }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_replication_controller_is_a_replica_set_and_back() {
        let rc: ReplicationController = serde_json::from_value(json!({
            "metadata": {"name": "r"}, "spec": {"replicas": 2, "minReadySeconds": 3, "selector": {"a": "b"}},
            "status": {"replicas": 1, "readyReplicas": 1, "conditions": [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}]}}))
        .expect("a controller");
        let set = rc.as_set();
        assert_eq!((set.spec.as_ref().and_then(|s| s.replicas), set.spec.as_ref().and_then(|s| s.min_ready_seconds)), (Some(2), Some(3)));
        assert_eq!(rc.with_status(set.status.expect("a status")), rc);
        let told = rc.with_status(ReplicaSetStatus { replicas: 2, ..ReplicaSetStatus::default() });
        assert_eq!(told.status.map(|s| s.replicas), Some(2));
        assert!(rc.selects(&BTreeMap::from([("a".into(), "b".into())])));
        assert!(!rc.selects(&BTreeMap::new()) && !ReplicationController::default().selects(&BTreeMap::new()));
    }

    #[test]
    fn a_replica_set_is_itself() {
        let set: ReplicaSet = serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}}})).expect("a set");
        assert_eq!(set.as_set(), set);
        let told = set.with_status(ReplicaSetStatus { replicas: 2, ..ReplicaSetStatus::default() });
        assert_eq!((told.metadata.name.as_deref(), told.status.map(|s| s.replicas)), (Some("r"), Some(2)));
        assert!(set.selects(&BTreeMap::from([("a".into(), "b".into())])));
        assert!(!set.selects(&BTreeMap::new()));
    }
}
