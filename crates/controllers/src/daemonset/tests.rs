//! Scenarios of daemon sets: nodes and pods, and what is done about them.

use super::*;
use jiff::SignedDuration;
use serde_json::{Value, json};

const NOW: &str = "2026-01-01T01:00:00Z";

fn now() -> Timestamp {
    NOW.parse().expect("a time")
}

fn set(strategy: Value) -> DaemonSet {
    serde_json::from_value(json!({
        "metadata": {"name": "d", "namespace": "x", "uid": "u", "generation": 4},
        "spec": {"selector": {"matchLabels": {"app": "d"}}, "minReadySeconds": 10, "updateStrategy": strategy,
                 "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": []}}},
        "status": {"observedGeneration": 4, "currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0}
    }))
    .expect("a set")
}

fn surge(count: i32) -> DaemonSet {
    set(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": count, "maxUnavailable": 0}}))
}

fn unavailable(count: Value) -> DaemonSet {
    set(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": count}}))
}

/// Nodes by name; one that begins with `t` has a taint, one with `e` a taint that evicts.
fn nodes(names: &[&str]) -> Vec<Arc<Node>> {
    let node = |name: &&str| {
        let taints = match &name[..1] {
            "t" => json!([{"key": "k", "effect": "NoSchedule"}]),
            "e" => json!([{"key": "k", "effect": "NoExecute"}]),
            _ => json!([]),
        };
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"taints": taints}})).expect("a node"))
    };
    names.iter().map(node).collect()
}

/// `name@node revision state`; the state is ready (long enough), fresh (ready for 4 s), unready,
/// pending (not bound), failed, succeeded or deleting.
fn pod(text: &str) -> Arc<Pod> {
    let [place, revision, state] = text.split(' ').collect::<Vec<_>>()[..] else { panic!("{text}") };
    let (name, node) = place.split_once('@').expect(text);
    let phase = match state {
        "failed" => "Failed",
        "succeeded" => "Succeeded",
        "pending" => "Pending",
        _ => "Running",
    };
    let since = if state == "fresh" { now() - SignedDuration::from_secs(4) } else { "2026-01-01T00:00:00Z".parse().expect("a time") };
    let ready = matches!(state, "ready" | "fresh" | "deleting");
    let mut pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "x", "uid": name, "labels": {"app": "d", REVISION_LABEL: revision}},
        "spec": {"containers": []},
        "status": {"phase": phase, "conditions": [
            {"type": "Ready", "status": if ready {"True"} else {"False"}, "lastTransitionTime": since.to_string()}]}
    }))
    .expect("a pod");
    let spec = pod.spec.get_or_insert_default();
    if state == "pending" {
        spec.pinned = Some(node.into());
    } else {
        spec.node_name = Some(node.into());
    }
    if state == "deleting" {
        pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    }
    Arc::new(pod)
}

fn pods(texts: &[&str]) -> Vec<Arc<Pod>> {
    texts.iter().map(|t| pod(t)).collect()
}

/// What is made and deleted, as `+node` and `-pod`.
fn done(actions: Actions) -> Vec<String> {
    let mut all: Vec<String> = actions.create.iter().map(|n| format!("+{n}")).collect();
    all.extend(actions.delete.iter().map(|p| format!("-{}", p.name_any())));
    all.sort();
    all
}

fn managed(set: &DaemonSet, on: &[&str], there: &[&str]) -> Vec<String> {
    done(manage(&View::new(set, "new", &nodes(on), &pods(there), now()), &mut Backoff::default()))
}

fn rolled(set: &DaemonSet, on: &[&str], there: &[&str]) -> Vec<String> {
    done(rolling(&View::new(set, "new", &nodes(on), &pods(there), now())))
}

#[test]
fn each_node_that_fits_has_one_pod() {
    let set = unavailable(json!(1));
    assert_eq!(managed(&set, &["a", "b", "t", "e"], &[]), ["+a", "+b"]);
    assert!(managed(&set, &["a"], &["p@a new unready"]).is_empty());
    assert!(managed(&set, &["a"], &["p@a old pending"]).is_empty(), "a pod that waits for its node is one");
    assert!(managed(&set, &["a"], &["p@a new deleting"]).is_empty(), "the next one comes when it is gone");
    assert!(managed(&set, &["t"], &["p@t new ready"]).is_empty(), "where it may not start, it may stay");
    assert_eq!(managed(&set, &["e"], &["p@e new ready", "q@e new deleting"]), ["-p"]);
    assert_eq!(managed(&set, &["a"], &["p@a new ready", "q@a new ready", "r@a new pending"]), ["-q", "-r"]);
}

#[test]
fn pods_of_nodes_that_are_gone() {
    let set = unavailable(json!(1));
    assert_eq!(managed(&set, &["a"], &["p@a new ready", "q@b new pending"]), ["-q"]);
    assert!(managed(&set, &["a"], &["p@a new ready", "q@b new ready"]).is_empty(), "bound pods are the garbage collector's");
}

#[test]
fn pods_that_ended_are_replaced_but_not_in_a_hurry() {
    let set = unavailable(json!(1));
    let there = pods(&["p@a new failed", "q@b new succeeded"]);
    let on = nodes(&["a", "b"]);
    let mut backoff = Backoff::default();
    let first = manage(&View::new(&set, "new", &on, &there, now()), &mut backoff);
    let events: Vec<&str> = first.events.iter().map(|e| e.1).collect();
    assert_eq!(events, ["FailedDaemonPod", "SucceededDaemonPod"]);
    assert_eq!(first.events[0].2, "Found failed daemon pod x/p on node a, will try to kill it");
    assert_eq!(done(first), ["-p", "-q"]);
    let again = pods(&["p2@a new failed"]);
    let second = manage(&View::new(&set, "new", &on[..1], &again, now()), &mut backoff);
    assert_eq!((second.delete.len(), second.events.len(), second.again), (0, 0, Some(Duration::from_secs(1))));
    let later = now() + SignedDuration::from_secs(2);
    assert_eq!(done(manage(&View::new(&set, "new", &on[..1], &again, later), &mut backoff)), ["-p2"]);
    assert_eq!(managed(&set, &["a"], &["p@a new failed", "q@a new ready"]), ["-p"]);
}

#[test]
fn two_pods_of_a_surge() {
    let set = surge(1);
    assert!(managed(&set, &["a"], &["o@a old ready", "n@a new unready"]).is_empty(), "the old one waits for the new one");
    assert!(managed(&set, &["a"], &["o@a old ready", "n@a new fresh"]).is_empty(), "ready, but not for long enough");
    assert_eq!(managed(&set, &["a"], &["o@a old ready", "n@a new ready"]), ["-o"]);
    assert_eq!(managed(&set, &["a"], &["o@a old unready", "n@a new unready"]), ["-o"]);
    assert_eq!(managed(&set, &["a"], &["o1@a old ready", "o2@a old ready", "n1@a new unready", "n2@a new unready"]), ["-n2", "-o2"]);
    assert_eq!(managed(&set, &["a"], &["o@a old deleting"]), ["+a"], "with a surge the new one need not wait");
    assert!(managed(&set, &["t"], &["o@t old deleting"]).is_empty());
}

#[test]
fn a_rollout_deletes_as_many_as_may_be_missing() {
    let set = unavailable(json!(1));
    assert_eq!(rolled(&set, &["a", "b"], &["p@a old ready", "q@b old ready"]), ["-p"]);
    assert!(rolled(&set, &["a", "b"], &["p@a new unready", "q@b old ready"]).is_empty());
    assert!(rolled(&set, &["a", "b"], &["p@a new fresh", "q@b old ready"]).is_empty(), "available means for long enough");
    assert!(rolled(&set, &["a", "b"], &["q@b old ready"]).is_empty(), "a node without a pod counts as missing");
    assert!(rolled(&set, &["a", "b"], &["p@a old deleting", "q@b old ready"]).is_empty());
    assert_eq!(rolled(&set, &["a", "b"], &["p@a new ready", "q@b old ready"]), ["-q"]);
    assert!(rolled(&set, &["a", "b"], &["p@a new ready", "q@b new ready"]).is_empty());
    assert_eq!(rolled(&set, &["a", "b"], &["p@a old unready", "q@b old unready"]), ["-p", "-q"], "what is broken goes at once");
    let half = unavailable(json!("50%"));
    let four = ["p@a old ready", "q@b old ready", "r@c old ready", "s@d old ready"];
    assert_eq!(rolled(&half, &["a", "b", "c", "d"], &four), ["-p", "-q"]);
    let none = unavailable(json!(0));
    assert_eq!(rolled(&none, &["a", "b"], &["p@a old ready", "q@b old ready"]), ["-p"], "a rollout that allows nothing would never end");
    assert!(rolled(&set, &["a"], &["p@a old ready", "q@a old ready"]).is_empty(), "excess is dealt with first");
    assert_eq!(rolled(&set, &["a", "b"], &["p@a old unready", "q@b old ready"]), ["-p"], "one is missing by that already");
    assert!(rolled(&unavailable(json!("10%")), &["t"], &["p@t old ready"]).is_empty(), "nobody wants one there");
}

#[test]
fn on_delete_waits_for_the_user() {
    let set = set(json!({"type": "OnDelete"}));
    assert!(rolled(&set, &["a", "b"], &["p@a old ready", "q@b old unready"]).is_empty());
    assert_eq!(managed(&set, &["a", "b"], &["p@a old ready"]), ["+b"]);
}

#[test]
fn a_surge_makes_new_pods_before_old_ones_go() {
    let set = surge(1);
    assert_eq!(rolled(&set, &["a", "b"], &["p@a old ready", "q@b old ready"]), ["+a"]);
    assert!(rolled(&set, &["a", "b"], &["p@a old ready", "n@a new unready", "q@b old ready"]).is_empty());
    assert_eq!(rolled(&set, &["a", "b"], &["p@a old ready", "n@a new ready", "q@b old ready"]), ["+b", "-p"]);
    assert_eq!(rolled(&set, &["a", "b"], &["p@a old unready", "q@b old unready"]), ["+a", "+b"]);
    assert!(rolled(&set, &["a", "b"], &["p@a old ready", "m@b new ready", "n@b new ready"]).is_empty(), "two on a node are to be sorted out first");
    // Node t is no longer wanted: its pod goes when as many as are wanted are available elsewhere.
    assert!(rolled(&set, &["a", "t"], &["p@t old ready"]).is_empty());
    assert_eq!(rolled(&set, &["a", "t"], &["p@t old ready", "n@a new ready"]), ["-p"]);
    assert_eq!(rolled(&set, &["a", "t"], &["p@t old unready", "n@a new ready"]), ["-p"]);
}

#[test]
fn status_counts_nodes() {
    let set = unavailable(json!(1));
    let on = nodes(&["a", "b", "c", "t"]);
    let there = pods(&["p@a new ready", "q@b old fresh", "r@t old ready"]);
    let view = View::new(&set, "new", &on, &there, now());
    let got = status(&view, true);
    assert_eq!((got.desired_number_scheduled, got.current_number_scheduled, got.number_misscheduled), (3, 2, 1));
    assert_eq!((got.number_ready, got.number_available, got.number_unavailable), (2, Some(1), Some(2)));
    assert_eq!((got.updated_number_scheduled, got.observed_generation), (Some(1), Some(4)));
    let mut newer = set.clone();
    newer.metadata.generation = Some(5);
    let old = newer.status.get_or_insert_default();
    old.collision_count = Some(2);
    old.conditions = Some(vec![k8s_openapi::api::apps::v1::DaemonSetCondition { type_: "Mine".into(), ..Default::default() }]);
    let view = View::new(&newer, "new", &on, &there, now());
    let got = status(&view, false);
    assert_eq!(got.observed_generation, Some(4), "the new generation has not been acted on");
    assert_eq!((got.collision_count, got.conditions.map(|c| c.len())), (Some(2), Some(1)));
}

#[test]
fn pods_of_before_revisions_are_known_by_their_generation() {
    let mut set = unavailable(json!(1));
    set.annotations_mut().insert(super::super::GENERATION.into(), "7".into());
    let mut old = pod("p@a x ready").as_ref().clone();
    old.labels_mut().insert(GENERATION_LABEL.into(), "7".into());
    let view = View::new(&set, "new", &nodes(&["a"]), &[Arc::new(old)], now());
    assert!(done(rolling(&view)).is_empty());
    assert_eq!(nodes::template(&set, "h").metadata.and_then(|m| m.labels).map(|l| l[GENERATION_LABEL].clone()).as_deref(), Some("7"));
}

#[test]
fn of_two_pods_the_elder_stays() {
    let at = |text: &str, time: &str| {
        let mut pod = pod(text).as_ref().clone();
        pod.metadata.creation_timestamp = serde_json::from_value(json!(time)).expect("a time");
        Arc::new(pod)
    };
    let there = [at("a@a new ready", "2026-01-01T00:00:09Z"), at("b@a new ready", "2026-01-01T00:00:01Z"), at("c@a new pending", "2026-01-01T00:00:00Z")];
    let set = unavailable(json!(1));
    assert_eq!(done(manage(&View::new(&set, "new", &nodes(&["a"]), &there, now()), &mut Backoff::default())), ["-a", "-c"], "a bound one before all");
}
