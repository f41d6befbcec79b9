//! What is to be said of a pod that waits because of its volumes.

use rules::storage;

use super::{Finding, finding};
use crate::cluster::NodeInfo;
use crate::plugin::Rejection;
use crate::pod::PodInfo;
use crate::storage::{Lookup, Reach, binding, limits};

/// It can go nowhere yet. What is wrong with each of its claims is said, and the scheduler's own words
/// when none of them shows it.
pub(super) fn whole(pod: &PodInfo, rejection: &Rejection, known: &dyn Lookup, findings: &mut Vec<Finding>) {
    let before = findings.len();
    for (name, ephemeral) in binding::claim_names(pod) {
        let subject = format!("claim {name} ({})", rejection.plugin);
        let describe = format!("kubectl describe pvc -n {} {name}", pod.namespace());
        let Some(claim) = known.claim(pod.namespace(), &name) else {
            let fix = if ephemeral { "its controller makes it: knarr status tells whether the controllers run".into() } else { format!("create the PersistentVolumeClaim {name} in namespace {}", pod.namespace()) };
            findings.push(finding(subject, "it does not exist", fix));
            continue;
        };
        let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
        let (class, volume) = (storage::claim_class(&claim), storage::volume_name(&claim));
        if phase == "Lost" || (!volume.is_empty() && known.volume(volume).is_none()) {
            findings.push(finding(subject, format!("its volume {volume} does not exist any more"), "restore the PersistentVolume, or delete the claim and create it anew"));
        } else if claim.metadata.deletion_timestamp.is_some() {
            findings.push(finding(subject, "it is being deleted", "wait until it is gone and create it anew"));
        } else if storage::is_fully_bound(&claim) {
            continue;
        } else if class.is_empty() {
            findings.push(finding(subject, "it is not bound, and names no storage class that would make a volume", "create a PersistentVolume for it, or name a class in a new claim (kubectl get storageclass)"));
        } else if let Some(class) = known.class(class) {
            if !storage::waits_for_consumer(&class) {
                findings.push(finding(subject, format!("it is not bound yet; {} is to make its volume", class.provisioner), format!("see what the provisioner says: {describe}")));
            }
        } else {
            findings.push(finding(subject, format!("its storage class {class} does not exist"), "create the class, or name another in a new claim (kubectl get storageclass)"));
        }
    }
    if findings.len() == before {
        findings.push(finding(format!("volumes ({})", rejection.plugin), rejection.reasons(pod).join(", "), format!("kubectl get pvc -n {}", pod.namespace())));
    }
}

/// One node will not do: the problem, and what to do.
pub(super) fn on_node(pod: &PodInfo, reason: &str, plugin: &str, node: &NodeInfo, known: &dyn Lookup) -> (String, String) {
    let claims = || binding::claim_names(pod).filter_map(|(name, _)| known.claim(pod.namespace(), &name));
    let volumes = || claims().filter_map(|c| known.volume(storage::volume_name(&c)));
    let names = |list: &mut dyn Iterator<Item = Option<String>>| list.flatten().collect::<Vec<_>>().join(", ");
    match (plugin, reason) {
        ("VolumeBinding", binding::NODE_CONFLICT) => {
            let far = names(&mut volumes().filter(|v| Reach::default().serves(known, v, node.name(), &node.view.labels) != Ok(true)).map(|v| v.metadata.name.clone()));
            (format!("the volume {far} cannot be reached from there"), "the pod must go where its volume is; mend what keeps it from those nodes".into())
        }
        ("VolumeBinding", binding::BIND_CONFLICT) => {
            let unbound = names(&mut claims().filter(|c| !storage::is_fully_bound(c)).map(|c| c.metadata.name.clone()));
            (
                format!("no free PersistentVolume there is large enough for {unbound}, and its class makes none there"),
                "create a PersistentVolume that the node can reach, or name a class with a provisioner (kubectl get storageclass)".into(),
            )
        }
        ("VolumeBinding", binding::NO_SPACE) => ("the storage there has not enough free space for the claim".into(), "ask for less, or free space there".into()),
        ("VolumeBinding", binding::NO_VOLUME) => {
            let lost = names(&mut claims().map(|c| storage::volume_name(&c).to_string()).filter(|v| !v.is_empty() && known.volume(v).is_none()).map(Some));
            (format!("the volume {lost} of a claim does not exist any more"), "restore the PersistentVolume, or delete the claim and create it anew".into())
        }
        ("VolumeRestrictions", limits::ONCE_POD_CONFLICT) => ("another pod uses a claim that one pod at a time may use (ReadWriteOncePod)".into(), "delete that pod, or use another claim".into()),
        ("VolumeRestrictions", _) => ("a pod there has the same disk, which can be attached once only".into(), "delete that pod, or mount the disk read-only in both".into()),
        ("VolumeZone", _) => {
            let places = names(&mut volumes().map(|v| v.metadata.name.clone()));
            (format!("the node is not in the zone of the volume {places}"), "add a node in the zone of the volume".into())
        }
        ("NodeVolumeLimits", _) => ("as many volumes are attached to the node as its driver can".into(), "delete pods with volumes there, or add a node".into()),
        _ => (reason.to_string(), "change the pod's volumes, or the node".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::{Value, json};

    use super::super::{Listed, Report, about_pod};

    fn storage(claim: Value, more: Listed) -> Listed {
        let mut object = json!({"metadata": {"name": "data", "namespace": "default", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "late", "resources": {"requests": {"storage": "1Gi"}}}, "status": {"phase": "Pending"}});
        for (key, value) in claim.as_object().expect("an object") {
            object["spec"][key] = value.clone();
        }
        if !claim["volumeName"].is_null() {
            object["metadata"]["annotations"] = json!({"pv.kubernetes.io/bind-completed": "yes"});
        }
        let class = |name: &str, provisioner: &str, mode: &str| Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode})).expect("a class"));
        let classes = vec![class("late", "kubernetes.io/no-provisioner", "WaitForFirstConsumer"), class("now", "p.io/x", "Immediate")];
        Listed { claims: vec![Arc::new(serde_json::from_value(object).expect("a claim"))], classes, ..more }
    }

    fn volume(more: Value) -> Listed {
        let mut object = json!({"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "late", "capacity": {"storage": "2Gi"}, "local": {"path": "/p"}}, "status": {"phase": "Available"}});
        for (key, value) in more.as_object().expect("an object") {
            object[key] = value.clone();
        }
        Listed { volumes: vec![Arc::new(serde_json::from_value(object).expect("a volume"))], ..Listed::default() }
    }

    fn ask(known: Listed) -> Report {
        ask_beside(known, json!([]))
    }

    fn ask_beside(known: Listed, others: Value) -> Report {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "110"}, "conditions": [{"type": "Ready", "status": "True"}]}}))
        .expect("a node");
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default", "uid": "web"},
            "spec": {"containers": [], "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}, "status": {"phase": "Pending"}}))
        .expect("a pod");
        about_pod(&pod, vec![node], serde_json::from_value(others).expect("pods"), known, crate::devices::Devices::default(), &[])
    }

    fn first(report: &Report) -> (&str, &str) {
        (&report.findings[0].subject, &report.findings[0].problem)
    }

    #[test]
    fn claims_that_hold_the_pod_everywhere() {
        assert_eq!(first(&ask(Listed::default())), ("claim data (VolumeRestrictions)", "it does not exist"));
        assert_eq!(first(&ask(storage(json!({"storageClassName": "now"}), Listed::default()))), ("claim data (VolumeBinding)", "it is not bound yet; p.io/x is to make its volume"));
        assert_eq!(first(&ask(storage(json!({"storageClassName": "nope"}), Listed::default()))).1, "its storage class nope does not exist");
        assert!(first(&ask(storage(json!({"storageClassName": ""}), Listed::default()))).1.contains("names no storage class"));
        assert_eq!(first(&ask(storage(json!({"volumeName": "v"}), Listed::default()))).1, "its volume v does not exist any more");
    }

    #[test]
    fn nodes_that_will_not_do() {
        let nothing = ask(storage(json!({}), Listed::default()));
        assert_eq!(first(&nothing), ("node n1 (VolumeBinding)", "no free PersistentVolume there is large enough for data, and its class makes none there"));
        let elsewhere = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "host", "operator": "In", "values": ["n2"]}]}]}});
        let far = volume(json!({"spec": {"storageClassName": "late", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "2Gi"}, "nodeAffinity": elsewhere, "local": {"path": "/p"}}}));
        assert_eq!(first(&ask(storage(json!({"volumeName": "v"}), far))), ("node n1 (VolumeBinding)", "the volume v cannot be reached from there"));
        let zoned = volume(json!({"metadata": {"name": "v", "labels": {"topology.kubernetes.io/zone": "z2"}}}));
        assert_eq!(first(&ask(storage(json!({"volumeName": "v"}), zoned))), ("node n1 (VolumeZone)", "the node is not in the zone of the volume v"));
        let other = json!([{"metadata": {"name": "o", "namespace": "default", "uid": "o"}, "spec": {"nodeName": "n1", "containers": [], "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}}]);
        let once = json!({"accessModes": ["ReadWriteOncePod"], "volumeName": "v"});
        let beside = ask_beside(storage(once.clone(), volume(json!({}))), other);
        assert_eq!(first(&beside), ("node n1 (VolumeRestrictions)", "another pod uses a claim that one pod at a time may use (ReadWriteOncePod)"));
        // Where nothing is wrong with the volume, nothing is said of it.
        for fits in [storage(once, volume(json!({}))), storage(json!({}), volume(json!({})))] {
            assert_eq!(first(&ask(fits)).1, "the pod fits node n1 but is not bound yet");
        }
    }
}
