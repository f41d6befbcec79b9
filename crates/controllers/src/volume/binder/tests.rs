//! Scenarios: what the binder does about claims and volumes, and what it leaves.

use super::plan::*;
use super::*;
use rules::migration;
use serde_json::{Value, json};

fn merged(mut base: Value, more: Value) -> Value {
    for (key, value) in more.as_object().expect("an object").clone() {
        match base.get(&key).is_some_and(Value::is_object) && value.is_object() {
            true => base[&key] = merged(base[&key].clone(), value),
            false => base[&key] = value,
        }
    }
    base
}

fn claim(more: Value) -> PersistentVolumeClaim {
    let base = json!({"metadata": {"name": "a", "namespace": "n", "uid": "u", "annotations": {}},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}, "status": {"phase": "Pending"}});
    serde_json::from_value(merged(base, more)).expect("a claim")
}

fn volume(more: Value) -> Arc<PersistentVolume> {
    let base = json!({"metadata": {"name": "v", "annotations": {}}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "2Gi"},
        "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/data"}}, "status": {"phase": "Available"}});
    Arc::new(serde_json::from_value(merged(base, more)).expect("a volume"))
}

fn class(name: &str, provisioner: &str, mode: &str, default: bool) -> Arc<StorageClass> {
    let annotations = json!({"storageclass.kubernetes.io/is-default-class": default.to_string()});
    let object = json!({"metadata": {"name": name, "annotations": annotations}, "provisioner": provisioner, "volumeBindingMode": mode});
    Arc::new(serde_json::from_value(object).expect("a class"))
}

fn mine(more: Value) -> Value {
    merged(json!({"spec": {"claimRef": {"namespace": "n", "name": "a", "uid": "u"}}}), more)
}

fn with(volumes: Vec<Arc<PersistentVolume>>, classes: Vec<Arc<StorageClass>>) -> World {
    World { volumes, classes, pods: Vec::new() }
}

/// The event that goes with waiting, as `reason: message`.
fn waits(action: ClaimAction) -> String {
    match action {
        ClaimAction::Wait(Some(n)) | ClaimAction::Tell(n) => format!("{}: {}", n.reason, n.message),
        other => panic!("it does not wait: {other:?}"),
    }
}

#[test]
fn a_claim_without_class_finds_a_volume_or_waits() {
    let free = volume(json!({}));
    assert_eq!(plan_claim(&claim(json!({})), &with(vec![free.clone()], vec![])), ClaimAction::Bind(free));
    let none = plan_claim(&claim(json!({})), &with(vec![], vec![]));
    assert_eq!(waits(none), "FailedBinding: no persistent volumes available for this claim and no storage class is set");
    // The default class is given late, but not to those who want none.
    let classes = || vec![class("std", "p.io/x", "Immediate", true)];
    assert_eq!(plan_claim(&claim(json!({})), &with(vec![], classes())), ClaimAction::SetClass("std".into()));
    let none = plan_claim(&claim(json!({"spec": {"storageClassName": ""}})), &with(vec![], classes()));
    assert!(waits(none).starts_with("FailedBinding"));
}

#[test]
fn provisioners_are_asked_by_class() {
    let asks = |provisioner: &str| plan_claim(&claim(json!({"spec": {"storageClassName": "c"}})), &with(vec![], vec![class("c", provisioner, "Immediate", false)]));
    assert_eq!(asks("rancher.io/local-path"), ClaimAction::Provision("rancher.io/local-path".into()));
    let of_two = plan_claim(&claim(json!({"spec": {"storageClassName": "c"}})), &with(vec![], vec![class("b", "b.example", "Immediate", false), class("c", "c.example", "Immediate", false)]));
    assert_eq!(of_two, ClaimAction::Provision("c.example".into()));
    // Those of clouds have been taken over.
    assert_eq!(asks("kubernetes.io/aws-ebs"), ClaimAction::Provision("ebs.csi.aws.com".into()));
    assert_eq!(asks("kubernetes.io/azure-file"), ClaimAction::Provision("file.csi.azure.com".into()));
    assert_eq!(waits(asks("kubernetes.io/rbd")), "ProvisioningFailed: no volume plugin matched name: kubernetes.io/rbd");
    assert_eq!(waits(asks("kubernetes.io/no-provisioner")), "ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner");
    let unknown = plan_claim(&claim(json!({"spec": {"storageClassName": "c"}})), &with(vec![], vec![]));
    assert_eq!(waits(unknown), "ProvisioningFailed: storageclass.storage.k8s.io \"c\" not found");
}

#[test]
fn a_waiting_class_waits_for_a_consumer_and_then_for_its_node() {
    let late = || vec![class("c", "rancher.io/local-path", "WaitForFirstConsumer", false)];
    let of_class = || claim(json!({"spec": {"storageClassName": "c"}}));
    let mut world = with(vec![volume(json!({"spec": {"storageClassName": "c"}}))], late());
    let message = "WaitForFirstConsumer: waiting for first consumer to be created before binding";
    assert_eq!(waits(plan_claim(&of_class(), &world)), message, "though a volume would do");
    let pod = |name: &str, node: &str, claim: &str| -> Arc<Pod> {
        let volumes = json!([{"name": "x", "persistentVolumeClaim": {"claimName": claim}}]);
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [], "volumes": volumes}})).expect("a pod"))
    };
    world.pods = vec![pod("on-a-node", "x", "a"), pod("other", "", "b")];
    assert_eq!(waits(plan_claim(&of_class(), &world)), message);
    world.pods.push(pod("p", "", "a"));
    assert_eq!(waits(plan_claim(&of_class(), &world)), "WaitForPodScheduled: waiting for pod p to be scheduled");
    world.pods.push(pod("q", "", "a"));
    assert_eq!(waits(plan_claim(&of_class(), &world)), "WaitForPodScheduled: waiting for pods p,q to be scheduled");
    let chosen = claim(json!({"metadata": {"annotations": {storage::SELECTED_NODE: "x"}}, "spec": {"storageClassName": "c"}}));
    assert_eq!(plan_claim(&chosen, &world), ClaimAction::Provision("rancher.io/local-path".into()));
}

#[test]
fn a_claim_that_names_its_volume() {
    let named = |more: Value| claim(merged(json!({"spec": {"volumeName": "v"}}), more));
    assert_eq!(plan_claim(&named(json!({})), &with(vec![], vec![])), ClaimAction::Wait(None), "it may come");
    let free = volume(json!({}));
    assert_eq!(plan_claim(&named(json!({})), &with(vec![free.clone()], vec![])), ClaimAction::Bind(free.clone()));
    let reserved = volume(mine(json!({})));
    assert_eq!(plan_claim(&named(json!({})), &with(vec![reserved.clone()], vec![])), ClaimAction::Bind(reserved));
    let taken = volume(json!({"spec": {"claimRef": {"namespace": "n", "name": "b", "uid": "other"}}}));
    assert_eq!(waits(plan_claim(&named(json!({})), &with(vec![taken], vec![]))), "FailedBinding: volume \"v\" already bound to a different claim.");
    for (why, more) in [
        ("requested PV is too small", json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}})),
        ("storageClassName does not match", json!({"spec": {"storageClassName": "c"}})),
        ("incompatible volumeMode", json!({"spec": {"volumeMode": "Block"}})),
        ("incompatible accessMode", json!({"spec": {"accessModes": ["ReadWriteMany"]}})),
    ] {
        let action = plan_claim(&named(more), &with(vec![free.clone()], vec![]));
        assert_eq!(waits(action), format!("VolumeMismatch: Cannot bind to requested volume \"v\": {why}"));
    }
    let whole = named(json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}));
    assert_eq!(plan_claim(&whole, &with(vec![free.clone()], vec![])), ClaimAction::Bind(free), "all of it may be asked for");
}

#[test]
fn a_bound_claim_keeps_its_volume_or_has_lost_it() {
    let bound = |more: Value| claim(merged(json!({"metadata": {"annotations": {storage::BIND_COMPLETED: "yes"}}, "spec": {"volumeName": "v"}}), more));
    let good = volume(mine(json!({})));
    assert_eq!(plan_claim(&bound(json!({})), &with(vec![good.clone()], vec![])), ClaimAction::Bind(good));
    let lost = |volumes, claim: PersistentVolumeClaim| match plan_claim(&claim, &with(volumes, vec![])) {
        ClaimAction::Lost(note) => (note.reason, note.message),
        other => panic!("{other:?}"),
    };
    assert_eq!(lost(vec![], bound(json!({}))), ("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!".into()));
    let nameless = bound(json!({"spec": {"volumeName": ""}}));
    assert_eq!(lost(vec![], nameless), ("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!".into()));
    let others = volume(json!({"spec": {"claimRef": {"namespace": "n", "name": "b", "uid": "other"}}}));
    assert_eq!(lost(vec![others], bound(json!({}))).0, "ClaimMisbound");
}

#[test]
fn binding_writes_both_sides_once() {
    let (c, v) = (claim(json!({})), volume(json!({})));
    let v = writes::volume_to_claim(&v, &c).expect("to be written");
    assert_eq!(v.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).and_then(|r| r.uid.clone()).as_deref(), Some("u"));
    assert!(v.annotations().contains_key(storage::BOUND_BY_CONTROLLER));
    let v = writes::volume_phase(&v, "Bound", "").expect("to be written");
    let c = writes::claim_to_volume(&c, "v").expect("to be written");
    assert!(storage::is_fully_bound(&c) && c.annotations().contains_key(storage::BOUND_BY_CONTROLLER));
    let c = writes::claim_status(&c, "Bound", Some(&v)).expect("to be written");
    let status = c.status.clone().expect("a status");
    assert_eq!((status.phase.as_deref(), status.access_modes), (Some("Bound"), Some(vec!["ReadWriteOnce".into()])));
    assert_eq!(status.capacity.expect("a capacity")["storage"].0, "2Gi");
    assert!(writes::volume_to_claim(&v, &c).is_none() && writes::claim_to_volume(&c, "v").is_none());
    assert!(writes::claim_status(&c, "Bound", Some(&v)).is_none() && writes::volume_phase(&v, "Bound", "").is_none());
    // What a user reserved does not count as the controller's.
    let reserved = volume(json!({"spec": {"claimRef": {"namespace": "n", "name": "a"}}}));
    let reserved = writes::volume_to_claim(&reserved, &claim(json!({}))).expect("the uid is missing");
    assert!(!reserved.annotations().contains_key(storage::BOUND_BY_CONTROLLER));
    let again = writes::unbound(&reserved).spec.and_then(|s| s.claim_ref).expect("still reserved");
    assert_eq!((again.name.as_deref(), again.uid), (Some("a"), None));
    assert!(writes::unbound(&v).spec.and_then(|s| s.claim_ref).is_none());
}

#[test]
fn a_volumes_phase_follows_its_claim() {
    let plan = |v: &PersistentVolume, c: Option<&PersistentVolumeClaim>| plan_volume(v, c, &[], None);
    assert_eq!(plan(&volume(json!({})), None), [VolumeAction::Phase("Available")]);
    let reserved = volume(json!({"spec": {"claimRef": {"namespace": "n", "name": "a"}}}));
    assert_eq!(plan(&reserved, None), [VolumeAction::Phase("Available"), VolumeAction::Claim]);
    let bound = volume(mine(json!({"status": {"phase": "Bound"}})));
    assert_eq!(plan(&bound, Some(&claim(json!({"spec": {"volumeName": "v"}})))), [VolumeAction::Phase("Bound")]);
    assert_eq!(plan(&bound, Some(&claim(json!({})))), [VolumeAction::Claim], "binding was cut short");
    let block = claim(json!({"spec": {"volumeMode": "Block"}}));
    assert!(matches!(plan(&bound, Some(&block)).as_slice(), [VolumeAction::Mismatch { .. }]));
    let elsewhere = claim(json!({"spec": {"volumeName": "w"}}));
    assert_eq!(plan(&bound, Some(&elsewhere)), [VolumeAction::Unbind(None)]);
    let made = json!({"metadata": {"annotations": {storage::PROVISIONED_BY: "rancher.io/local-path"}}, "status": {"phase": "Bound"}});
    let by_hand = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}, "status": {"phase": "Bound"}});
    for more in [made, by_hand] {
        assert_eq!(plan(&volume(mine(more)), Some(&elsewhere)), [VolumeAction::Unbind(None)], "just what was provisioned to be deleted goes");
    }
    // A claim of the same name is not the same claim.
    let heir = claim(json!({"metadata": {"uid": "new"}, "spec": {"volumeName": "v"}}));
    assert_eq!(plan(&bound, Some(&heir)), [VolumeAction::Phase("Released")]);
    assert_eq!(plan(&bound, None), [VolumeAction::Phase("Released")]);
}

#[test]
fn what_is_released_is_kept_or_left_to_its_maker() {
    let released = |more: Value| volume(merged(mine(json!({"status": {"phase": "Released"}})), more));
    let plan = |v: Arc<PersistentVolume>| plan_volume(&v, None, &[], None);
    assert_eq!(plan(released(json!({}))), []);
    let delete = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}});
    let made = json!({"metadata": {"annotations": {storage::PROVISIONED_BY: "rancher.io/local-path"}}});
    assert_eq!(plan(released(merged(delete.clone(), made.clone()))), [], "its provisioner deletes it");
    let failed = |v| match plan(v).as_slice() {
        [VolumeAction::Failed(note)] => note.reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(failed(released(delete)), "VolumeFailedDelete");
    assert_eq!(failed(released(json!({"spec": {"persistentVolumeReclaimPolicy": "Shred"}}))), "VolumeUnknownReclaimPolicy");
    // A second volume that was provisioned for a claim which took another one.
    let spare = volume(mine(merged(json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}, "status": {"phase": "Bound"}}), made)));
    assert_eq!(plan_volume(&spare, Some(&claim(json!({"spec": {"volumeName": "w"}}))), &[], None), [VolumeAction::Phase("Released")]);
}

#[test]
fn recycling_wipes_and_frees() {
    let dirty = volume(mine(json!({"spec": {"persistentVolumeReclaimPolicy": "Recycle", "capacity": {"storage": "5Gi"}}, "status": {"phase": "Released"}})));
    let step = |users: &[Arc<Pod>], recycler: Option<&Pod>| plan_volume(&dirty, None, users, recycler.cloned().map(Arc::new).as_ref());
    let started = step(&[], None);
    let [VolumeAction::Recycle(pod)] = started.as_slice() else { panic!("{started:?}") };
    assert_eq!(pod.name_any(), "recycler-for-v");
    assert_eq!(pod.spec.as_ref().and_then(|s| s.active_deadline_seconds), Some(150));
    let mut pod: Pod = serde_json::from_value(json!(pod)).expect("a pod");
    assert_eq!(step(&[], Some(&pod)), [], "it is at work");
    let mut set = |phase: &str| pod.status = serde_json::from_value(json!({"phase": phase})).ok();
    set("Running");
    let user = Arc::new(pod.clone());
    assert!(matches!(step(&[user], None).as_slice(), [VolumeAction::Tell(_)]), "it is in use");
    pod.status = serde_json::from_value(json!({"phase": "Succeeded"})).ok();
    assert!(matches!(step(&[], Some(&pod)).as_slice(), [VolumeAction::EndRecycler(_), VolumeAction::Unbind(Some(_))]));
    let mut leaving = pod.clone();
    leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
    assert_eq!(step(&[], Some(&leaving)), [], "it has been told of");
    pod.status = serde_json::from_value(json!({"phase": "Failed"})).ok();
    assert!(matches!(step(&[], Some(&pod)).as_slice(), [VolumeAction::EndRecycler(_), VolumeAction::Failed(_)]));
    let local = volume(mine(json!({"spec": {"persistentVolumeReclaimPolicy": "Recycle", "hostPath": null, "local": {"path": "/d"}}, "status": {"phase": "Released"}})));
    assert!(matches!(plan_volume(&local, None, &[], None).as_slice(), [VolumeAction::Failed(_)]));
}

#[test]
fn drivers_that_have_taken_over_are_noted() {
    let noted = |annotations: Value| writes::handed_over_claim(&claim(json!({"metadata": {"annotations": annotations}}))).map(|c| json!(c.annotations()));
    let asked = |provisioner: &str| json!({storage::PROVISIONER: provisioner});
    let driver = |provisioner: &str| json!({storage::PROVISIONER: provisioner, migration::MIGRATED_TO: "ebs.csi.aws.com"});
    assert_eq!(noted(asked("kubernetes.io/aws-ebs")), Some(driver("kubernetes.io/aws-ebs")));
    assert_eq!(noted(driver("kubernetes.io/aws-ebs")), None, "it is noted");
    assert_eq!(noted(driver("kubernetes.io/gce-pd")).expect("another")[migration::MIGRATED_TO], "pd.csi.storage.gke.io");
    assert_eq!(noted(driver("ebs.csi.aws.com")), Some(asked("ebs.csi.aws.com")), "it is asked by its own name");
    assert_eq!((noted(asked("ebs.csi.aws.com")), noted(asked("rancher.io/local-path"))), (None, None));
    let older = json!({storage::BETA_PROVISIONER: "kubernetes.io/cinder"});
    assert_eq!(noted(older).expect("it counts too")[migration::MIGRATED_TO], "cinder.csi.openstack.org");
    assert_eq!((noted(json!({})), noted(json!({migration::MIGRATED_TO: "x"}))), (None, None), "nobody was asked");
    // One write asks the driver and takes back the note.
    let old = claim(json!({"metadata": {"annotations": driver("kubernetes.io/aws-ebs")}}));
    let new = writes::with_provisioner(&old, "ebs.csi.aws.com").expect("to be written");
    let both = json!({storage::PROVISIONER: "ebs.csi.aws.com", storage::BETA_PROVISIONER: "ebs.csi.aws.com"});
    assert_eq!(json!(new.annotations()), both);
}

#[test]
fn volumes_are_protected_by_whoever_deletes_them() {
    let (ours, theirs) = ("kubernetes.io/pv-controller", "external-provisioner.volume.kubernetes.io/finalizer");
    let change = |provisioner: &str, policy: &str, finalizers: Value| {
        let metadata = json!({"annotations": {storage::PROVISIONED_BY: provisioner}, "finalizers": finalizers});
        let old = volume(json!({"metadata": metadata, "spec": {"persistentVolumeReclaimPolicy": policy}}));
        writes::handed_over_volume(&old).map(|v| (json!(v.finalizers()), v.annotations().get(migration::MIGRATED_TO).cloned()))
    };
    let driver = Some("disk.csi.azure.com".to_string());
    assert_eq!(change("kubernetes.io/azure-disk", "Delete", json!([ours, "x", theirs])), Some((json!(["x", theirs]), driver.clone())));
    assert_eq!(change("kubernetes.io/azure-disk", "Retain", json!([])), Some((json!([]), driver)));
    assert_eq!(change("kubernetes.io/host-path", "Delete", json!([theirs])), Some((json!([ours]), None)));
    assert_eq!(change("kubernetes.io/host-path", "Delete", json!([ours])), None);
    assert_eq!(change("kubernetes.io/host-path", "Retain", json!([ours, "x"])), Some((json!(["x"]), None)));
    assert_eq!(change("kubernetes.io/host-path", "Retain", json!(["x"])), None);
    for external in ["disk.csi.azure.com", "rancher.io/local-path"] {
        assert_eq!(change(external, "Delete", json!([ours, theirs])), None, "{external}");
    }
    let by_hand = volume(json!({"metadata": {"finalizers": [ours]}, "spec": {"hostPath": null, "azureDisk": {"diskName": "d", "diskURI": "u"}}}));
    assert!(writes::handed_over_volume(&by_hand).is_none(), "nobody provisioned it");
}

#[test]
fn what_a_driver_has_taken_over_is_its_to_reclaim() {
    let released = |annotations: Value, policy: &str| {
        let more = json!({"metadata": {"annotations": annotations}, "spec": {"persistentVolumeReclaimPolicy": policy}, "status": {"phase": "Released"}});
        plan_volume(&volume(mine(more)), None, &[], None)
    };
    let over = || json!({storage::PROVISIONED_BY: "kubernetes.io/gce-pd", migration::MIGRATED_TO: "pd.csi.storage.gke.io"});
    assert_eq!((released(over(), "Delete"), released(over(), "Recycle")), (vec![], vec![]));
    let disk = json!({"spec": {"hostPath": null, "gcePersistentDisk": {"pdName": "d"}, "persistentVolumeReclaimPolicy": "Delete"}, "status": {"phase": "Released"}});
    let by_hand = plan_volume(&volume(mine(disk)), None, &[], None);
    let [VolumeAction::Failed(note)] = by_hand.as_slice() else { panic!("{by_hand:?}") };
    assert_eq!(note.message, "error getting deleter volume plugin for volume \"v\": no deletable volume plugin matched");
}
