//! Scenarios of stateful sets: pods and claims, and what is done about them.

use super::*;
use crate::history::REVISION_LABEL;
use crate::statefulset::POD_NAME_LABEL;
use jiff::SignedDuration;
use serde_json::{Value, json};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().expect("a time")
}

/// A set of three, with `spec` over it.
fn set(spec: Value) -> StatefulSet {
    let mut whole = json!({"metadata": {"name": "s", "namespace": "x", "uid": "u", "generation": 2},
        "spec": {"replicas": 3, "minReadySeconds": 10, "selector": {"matchLabels": {"app": "s"}},
            "template": {"metadata": {"labels": {"app": "s"}}, "spec": {"containers": []}}}});
    for (key, value) in spec.as_object().expect("an object") {
        whole["spec"][key] = value.clone();
    }
    serde_json::from_value(whole).expect("a set")
}

fn partition(at: i32) -> Value {
    json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": at}}})
}

fn parallel(mut spec: Value) -> StatefulSet {
    spec["podManagementPolicy"] = "Parallel".into();
    set(spec)
}

/// `ordinal revision state`: ready (long enough), fresh (for 4 s), unready, pending, failed,
/// succeeded, deleting, unlabelled (ready, without its name as a label), lost (ready when it was last heard of).
fn pod(text: &str) -> Arc<Pod> {
    let [ordinal, revision, state] = text.split(' ').collect::<Vec<_>>()[..] else { panic!("{text}") };
    let name = format!("s-{ordinal}");
    let phase = match state {
        "failed" => "Failed",
        "succeeded" => "Succeeded",
        "pending" => "Pending",
        "lost" => "Unknown",
        _ => "Running",
    };
    let since = if state == "fresh" { now() - SignedDuration::from_secs(4) } else { now() - SignedDuration::from_secs(400) };
    let ready = matches!(state, "ready" | "fresh" | "deleting" | "unlabelled" | "lost");
    let mut pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "x", "uid": name, "labels": {"app": "s", REVISION_LABEL: revision, POD_NAME_LABEL: name}},
        "spec": {"containers": []},
        "status": {"phase": phase, "conditions": [
            {"type": "Ready", "status": if ready {"True"} else {"False"}, "lastTransitionTime": since.to_string()}]}
    }))
    .expect("a pod");
    if state == "deleting" {
        pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    }
    if state == "unlabelled" {
        pod.labels_mut().remove(POD_NAME_LABEL);
    }
    Arc::new(pod)
}

fn planned(set: &StatefulSet, there: &[&str]) -> Plan {
    planned_with(set, there, &|_| None)
}

fn planned_with(set: &StatefulSet, there: &[&str], claim: &(dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>> + Sync)) -> Plan {
    let template = |image: &str| serde_json::from_value(json!({"metadata": {"labels": {"app": "s", "image": image}}})).expect("a template");
    let revisions = Revisions { current: ("old".into(), template("old")), update: ("new".into(), template("new")), collisions: 0 };
    let pods: Vec<Arc<Pod>> = there.iter().map(|t| pod(t)).collect();
    plan(&View { set, revisions: &revisions, pods: &pods, claim, now: now() })
}

/// What is done, as `+ordinal revision`, `-ordinal`, `~ordinal` and `claims ordinal`.
fn done(plan: &Plan) -> Vec<String> {
    let ordinal = |p: &Pod| identity::ordinal(p).expect("an ordinal");
    let text = |action: &Action| match action {
        Action::Create(pod) => {
            assert_eq!(pod.labels()["image"], pod.labels()[REVISION_LABEL], "template and label are of one revision");
            format!("+{} {}", identity::ordinal(pod.as_ref()).expect("an ordinal"), pod.labels()[REVISION_LABEL])
        }
        Action::Delete(pod) => format!("-{}", ordinal(pod)),
        Action::Mend(pod) => format!("~{}", ordinal(pod)),
        Action::Claims(pod) => format!("claims {}", ordinal(pod)),
    };
    plan.stages.iter().flatten().map(text).collect()
}

fn does(set: &StatefulSet, there: &[&str]) -> Vec<String> {
    done(&planned(set, there))
}

#[test]
fn pods_are_made_one_after_the_other() {
    let set = set(json!({}));
    assert_eq!(does(&set, &[]), ["+0 new"]);
    for state in ["pending", "unready", "fresh", "deleting", "lost"] {
        assert!(does(&set, &[&format!("0 new {state}")]).iter().all(|a| a.starts_with("claims")), "{state}");
    }
    assert_eq!(does(&set, &["0 new ready"]), ["+1 new"]);
    assert_eq!(does(&set, &["0 new ready", "2 new ready"]), ["+1 new"]);
    assert!(does(&set, &["0 new ready", "1 new ready", "2 new ready"]).is_empty());
}

#[test]
fn ordinals_begin_where_the_set_says() {
    let set = set(json!({"ordinals": {"start": 4}}));
    assert_eq!(does(&set, &[]), ["+4 new"]);
    assert_eq!(does(&set, &["4 new ready", "5 new ready"]), ["+6 new"]);
    assert_eq!(does(&set, &["3 new ready", "4 new ready", "5 new ready", "6 new ready"]), ["-3"]);
}

#[test]
fn parallel_makes_and_deletes_all_at_once() {
    assert_eq!(does(&parallel(json!({})), &[]), ["+0 new", "+1 new", "+2 new"]);
    assert_eq!(does(&parallel(json!({})), &["1 new unready"]), ["+0 new", "+2 new"]);
    let none = parallel(json!({"replicas": 0}));
    assert_eq!(does(&none, &["0 new unready", "1 new ready", "2 new deleting"]), ["-1", "-0"]);
}

#[test]
fn absurd_numbers_of_replicas_are_gone_about_in_parts() {
    let absurd = |spec: Value| {
        let mut spec = spec;
        spec["replicas"] = json!(i32::MAX);
        spec
    };
    assert_eq!(does(&set(absurd(json!({}))), &["0 new ready"]), ["+1 new"]);
    let last = set(absurd(json!({"ordinals": {"start": i32::MAX}})));
    assert_eq!(does(&last, &[]), [format!("+{} new", i32::MAX)]);
    let some = does(&parallel(absurd(json!({}))), &["1 new ready", "7000 new failed"]);
    assert_eq!(some.len(), 501);
    assert_eq!((some[0].as_str(), some[1].as_str(), some[499].as_str(), some[500].as_str()), ("+0 new", "+2 new", "+500 new", "-7000"));
    assert!(does(&parallel(absurd(partition(0))), &["0 old ready"]).iter().all(|a| a.starts_with('+')), "no rollout while so many are missing");
}

#[test]
fn what_ended_is_deleted_and_made_anew() {
    let set = set(json!({}));
    assert_eq!(does(&set, &["0 new failed", "1 new ready"]), ["-0"]);
    assert_eq!(does(&set, &["0 new succeeded"]), ["-0"]);
    assert_eq!(does(&parallel(json!({})), &["0 new failed"]), ["-0", "+1 new", "+2 new"]);
}

#[test]
fn too_many_go_from_the_top_while_all_is_well() {
    let one = set(json!({"replicas": 1}));
    let all = ["0 new ready", "1 new ready", "2 new ready"];
    assert_eq!(does(&one, &all), ["-2"]);
    assert!(does(&one, &["0 new unready", "1 new ready", "2 new ready"]).is_empty());
    assert!(does(&one, &["0 new ready", "1 new ready", "2 new deleting"]).is_empty());
    assert!(does(&one, &["0 new ready", "1 new unready", "2 new unready"]).is_empty(), "the lowest unhealthy one is waited for");
    assert_eq!(does(&one, &["0 new ready", "1 new ready", "2 new unready"]), ["-2"], "the unhealthy one itself may go");
    assert!(does(&one, &["0 new ready", "1 new unready", "2 new fresh"]).is_empty(), "ready, but not for long enough");
    assert_eq!(does(&set(json!({"replicas": 2})), &["0 old ready", "1 old ready", "2 new ready"]), ["-2"], "no rollout before that is done");
    assert_eq!(does(&set(json!({"replicas": 0})), &["0 new unready"]), ["-0"]);
}

#[test]
fn a_rollout_goes_down_from_the_top() {
    let set = set(partition(0));
    assert_eq!(does(&set, &["0 old ready", "1 old ready", "2 old ready"]), ["-2"]);
    assert_eq!(does(&set, &["0 old ready", "1 old ready"]), ["+2 new"]);
    assert!(does(&set, &["0 old ready", "1 old ready", "2 new fresh"]).is_empty());
    assert_eq!(does(&set, &["0 old ready", "1 old ready", "2 new ready"]), ["-1"]);
    assert!(does(&set, &["0 old ready", "1 old ready", "2 new unready"]).is_empty(), "a rollout that is stuck stays so");
    assert!(does(&set, &["0 old ready", "1 old unready", "2 old ready"]).is_empty());
}

#[test]
fn a_partition_keeps_pods_at_the_old_revision() {
    let set = set(partition(2));
    assert_eq!(does(&set, &["0 old ready", "1 old ready", "2 old ready"]), ["-2"]);
    assert!(does(&set, &["0 old ready", "1 old ready", "2 new ready"]).is_empty());
    assert_eq!(does(&set, &["0 old ready"]), ["+1 old"], "below the partition the old one is made again");
    assert_eq!(does(&set, &["0 old ready", "1 old ready"]), ["+2 new"]);
}

#[test]
fn without_settings_the_old_revision_is_made_while_it_is_current() {
    let mut set = set(json!({"updateStrategy": {"type": "RollingUpdate"}}));
    set.status = Some(StatefulSetStatus { current_replicas: Some(2), ..Default::default() });
    assert_eq!(does(&set, &["0 old ready", "2 new ready"]), ["+1 old"]);
    set.status = Some(StatefulSetStatus { current_replicas: Some(1), ..Default::default() });
    assert_eq!(does(&set, &["0 old ready", "2 new ready"]), ["+1 new"]);
}

#[test]
fn on_delete_waits_for_the_user() {
    let set = set(json!({"updateStrategy": {"type": "OnDelete"}}));
    assert!(does(&set, &["0 old ready", "1 old ready", "2 old ready"]).is_empty());
    assert_eq!(does(&set, &["0 old ready", "2 old ready"]), ["+1 new"]);
}

#[test]
fn several_may_be_missing_when_the_set_says_so() {
    let rolling = |count: Value| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": count}}});
    let all = ["0 old ready", "1 old ready", "2 old ready"];
    assert_eq!(does(&set(rolling(json!(2))), &all), ["-2", "-1"]);
    assert_eq!(does(&set(rolling(json!("10%"))), &all), ["-2"], "at least one");
    assert!(does(&parallel(rolling(json!(2))), &["0 old ready", "1 new unready", "2 new unready"]).is_empty());
    assert_eq!(does(&parallel(rolling(json!(2))), &["0 old ready", "1 old ready", "2 new unready"]), ["-1"]);
}

#[test]
fn a_set_that_goes_is_only_counted() {
    let mut set = set(json!({}));
    set.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    let plan = planned(&set, &["0 new ready", "1 new failed", "5 new ready"]);
    assert!(plan.stages.is_empty());
    assert_eq!((plan.status.replicas, plan.status.ready_replicas), (3, Some(2)));
}

#[test]
fn identity_is_put_right() {
    let set = set(json!({}));
    assert_eq!(does(&set, &["0 new unlabelled"]), ["~0", "+1 new"]);
}

#[test]
fn status_counts_and_completes() {
    let set = set(partition(0));
    let plan = planned(&set, &["0 old ready", "1 old fresh", "2 new ready"]);
    let status = plan.status;
    assert_eq!((status.replicas, status.ready_replicas, status.available_replicas), (3, Some(3), Some(2)));
    assert_eq!((status.current_replicas, status.updated_replicas), (Some(2), Some(1)));
    assert_eq!((status.current_revision.as_deref(), status.update_revision.as_deref()), (Some("old"), Some("new")));
    let status = planned(&set, &["0 new ready", "1 new ready", "2 new ready"]).status;
    assert_eq!((status.current_replicas, status.current_revision.as_deref()), (Some(3), Some("new")));
    let status = planned(&set, &["0 old ready", "1 old ready", "2 old ready"]).status;
    assert_eq!(status.current_replicas, Some(2), "the one that is being deleted no longer counts");
    assert_eq!(status.observed_generation, Some(2));
}

fn with_claims(policy: Value) -> StatefulSet {
    set(json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}], "persistentVolumeClaimRetentionPolicy": policy}))
}

#[test]
fn pending_pods_get_the_claims_that_they_lack() {
    let set = with_claims(json!({}));
    assert_eq!(done(&planned(&set, &["0 new pending"])), ["claims 0"]);
    let there = |name: &str| (name == "data-s-0").then(|| Arc::new(PersistentVolumeClaim::default()));
    assert!(done(&planned_with(&set, &["0 new pending"], &there)).is_empty());
    let leaving = |name: &str| {
        let claim = json!({"metadata": {"name": name, "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        Some(Arc::new(serde_json::from_value(claim).expect("a claim")))
    };
    assert_eq!(done(&planned_with(&set, &["0 new pending"], &leaving)), ["claims 0"], "it is needed again");
}

#[test]
fn a_claim_of_the_pod_before_is_waited_for() {
    let stale = |name: &str| {
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "s-0", "uid": "earlier"});
        let claim = json!({"metadata": {"name": name, "ownerReferences": [owner]}});
        Some(Arc::new(serde_json::from_value(claim).expect("a claim")))
    };
    assert!(done(&planned_with(&with_claims(json!({"whenScaled": "Delete"})), &[], &stale)).is_empty());
    assert_eq!(done(&planned_with(&with_claims(json!({"whenScaled": "Retain"})), &[], &stale)), ["+0 new"]);
}

#[test]
fn pods_that_are_scaled_away_take_their_claims_along() {
    let mut set = with_claims(json!({"whenScaled": "Delete"}));
    set.spec.as_mut().expect("a spec").replicas = Some(0);
    let there = |name: &str| (name == "data-s-0").then(|| Arc::new(PersistentVolumeClaim::default()));
    assert_eq!(done(&planned_with(&set, &["0 new ready"], &there)), ["~0", "-0"], "first the claim's owner, then the pod");
}
