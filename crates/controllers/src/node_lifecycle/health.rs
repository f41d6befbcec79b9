//! Whether a node gives signs of life, and what is written when it gives none. Pure.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Settings;

/// A condition of a node.
pub fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// The status of a node's `Ready` condition, if it has one.
pub fn ready(node: &Node) -> Option<&str> {
    condition(node, "Ready").map(|c| c.status.as_str())
}

/// What was seen of a node last, and when by our own clock: the clocks of nodes need not agree with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// When it last gave a sign of life.
    pub probe: Timestamp,
    heartbeat: Option<Timestamp>,
    renewed: Option<Timestamp>,
}

impl Health {
    /// A node that is seen for the first time.
    pub fn new(node: &Node, lease: Option<&Lease>, now: Timestamp) -> Health {
        let created = node.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
        let spoke = condition(node, "Ready").is_some() || lease.is_some();
        Health { probe: if spoke { now } else { created }, heartbeat: heartbeat(node), renewed: renewed(lease) }
    }

    /// Takes in what is known now.
    pub fn observe(&mut self, node: &Node, lease: Option<&Lease>, now: Timestamp) {
        let heartbeat = heartbeat(node);
        if heartbeat != self.heartbeat {
            self.heartbeat = heartbeat;
            self.probe = now;
        }
        let renewed = renewed(lease);
        if renewed > self.renewed {
            self.renewed = renewed;
            self.probe = now;
        }
    }

    /// Whether the node has been silent for too long.
    pub fn is_silent(&self, node: &Node, settings: &Settings, now: Timestamp) -> bool {
        let grace = if condition(node, "Ready").is_some() { settings.grace } else { settings.startup_grace };
        now.duration_since(self.probe) > grace
    }
}

fn heartbeat(node: &Node) -> Option<Timestamp> {
    condition(node, "Ready")?.last_heartbeat_time.as_ref().map(|t| t.0)
}

fn renewed(lease: Option<&Lease>) -> Option<Timestamp> {
    lease?.spec.as_ref()?.renew_time.as_ref().map(|t| t.0)
}

/// The conditions of a node that has been silent for too long.
pub fn silent(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let mut conditions = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            Some(c) if c.status == "Unknown" => {}
            Some(c) => {
                c.status = "Unknown".into();
                c.reason = Some("NodeStatusUnknown".into());
                c.message = Some("Kubelet stopped posting node status.".into());
                c.last_transition_time = Some(Time(now));
            }
            None => conditions.push(NodeCondition {
                type_: kind.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(now)),
            }),
        }
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn node(heartbeat: Option<i64>) -> Node {
        let conditions = heartbeat.map(|s| json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": at(s).to_string()}]));
        let object = json!({"metadata": {"name": "n", "creationTimestamp": at(0).to_string()}, "status": {"conditions": conditions.unwrap_or(json!([]))}});
        serde_json::from_value(object).expect("a node")
    }

    fn lease(second: i64) -> Lease {
        serde_json::from_value(json!({"spec": {"renewTime": at(second).strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()}})).expect("a lease")
    }

    #[test]
    fn a_lease_or_a_status_is_a_sign_of_life() {
        let said = node(Some(1_000_000));
        let mut health = Health::new(&said, None, at(100));
        assert!(!health.is_silent(&said, &Settings::default(), at(150)), "the node's clock does not matter");
        assert!(health.is_silent(&said, &Settings::default(), at(151)));
        health.observe(&said, Some(&lease(7)), at(140));
        assert!(!health.is_silent(&said, &Settings::default(), at(190)));
        health.observe(&said, Some(&lease(7)), at(190));
        health.observe(&said, None, at(190));
        assert!(health.is_silent(&said, &Settings::default(), at(191)), "the same lease again is no sign");
        health.observe(&node(Some(1_000_001)), Some(&lease(7)), at(191));
        assert!(!health.is_silent(&said, &Settings::default(), at(241)));
    }

    #[test]
    fn a_new_node_has_a_minute() {
        let new = node(None);
        let health = Health::new(&new, None, at(30));
        assert!(!health.is_silent(&new, &Settings::default(), at(60)));
        assert!(health.is_silent(&new, &Settings::default(), at(61)));
        let conditions = silent(&new, at(61));
        assert!(conditions.iter().all(|c| c.status == "Unknown" && c.reason.as_deref() == Some("NodeStatusNeverUpdated")));
        assert_eq!(conditions.len(), 4);
    }

    #[test]
    fn what_is_unknown_stays_as_it_is() {
        let mut old = node(Some(5));
        let first = silent(&old, at(100));
        assert_eq!(first[0].reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(first[0].last_heartbeat_time, Some(Time(at(5))));
        old.status.get_or_insert_default().conditions = Some(first.clone());
        assert_eq!(silent(&old, at(200)), first);
    }
}
