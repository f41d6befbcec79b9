//! Scenarios: what the graph asks to be looked at, and what is decided then.

use std::sync::Arc;

use kube::api::PropagationPolicy;
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use super::graph::{Graph, Kind, State};
use super::plan::{Action, Standing, decide};
use super::slim::{Meta, Slim};

fn kind(name: &str, namespaced: bool) -> Arc<Kind> {
    Arc::new(Kind { resource: ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", name)), namespaced })
}

fn maps() -> Arc<Kind> {
    kind("ConfigMap", true)
}

/// A config map named like its uid, owned by blocking references.
fn meta(uid: &str, owners: &[&str]) -> Meta {
    let owners: Vec<Value> = owners.iter().map(|o| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": o, "uid": o, "blockOwnerDeletion": true})).collect();
    let object = json!({"metadata": {"name": uid, "namespace": "ns", "uid": uid, "resourceVersion": "1", "ownerReferences": owners}});
    serde_json::from_value::<Slim>(object).expect("an object").metadata
}

fn deleting(uid: &str, owners: &[&str], finalizer: &str) -> Meta {
    Meta { deletion_timestamp: Some("2026-01-01T00:00:00Z".into()), finalizers: vec![finalizer.into()], ..meta(uid, owners) }
}

fn put(graph: &mut Graph, meta: &Meta) -> Vec<String> {
    graph.put(&maps(), meta).look.iter().map(|u| u.to_string()).collect()
}

fn remove(graph: &mut Graph, uid: &str) -> Vec<String> {
    graph.remove(uid).iter().map(|u| u.to_string()).collect()
}

/// The decision when the graph alone is asked.
fn judge(graph: &Graph, live: &Meta) -> Action {
    let standings: Vec<Standing> =
        live.owner_references.iter().map(|r| graph.standing(r, &live.namespace).expect("the graph knows")).collect();
    decide(live, &standings, graph.dependents(&live.uid))
}

const BACKGROUND: Action = Action::Delete { policy: PropagationPolicy::Background, unblock: false };

#[test]
fn dependents_follow_their_last_owner() {
    let mut graph = Graph::default();
    put(&mut graph, &meta("a", &[]));
    put(&mut graph, &meta("b", &[]));
    let c = meta("c", &["a", "b"]);
    assert!(put(&mut graph, &c).is_empty(), "its owners exist");
    assert_eq!(judge(&graph, &c), Action::Nothing);
    assert_eq!(remove(&mut graph, "a"), ["c"]);
    assert!(matches!(judge(&graph, &c), Action::Keep(keep) if keep.len() == 1 && keep[0].uid == "b"));
    assert_eq!(remove(&mut graph, "b"), ["c"]);
    assert_eq!(judge(&graph, &c), BACKGROUND);
    let orphans = Meta { finalizers: vec!["orphan".into()], ..c };
    assert!(matches!(judge(&graph, &orphans), Action::Delete { policy: PropagationPolicy::Orphan, .. }), "a finalizer that is there is honoured");
}

#[test]
fn an_owner_that_nobody_has_seen_is_asked_for() {
    let mut graph = Graph::default();
    let c = meta("c", &["x"]);
    assert_eq!(put(&mut graph, &c), ["c"]);
    assert_eq!(graph.state("c"), State::Owned);
    assert_eq!(graph.standing(&c.owner_references[0], "ns"), None);
    assert_eq!(decide(&c, &[Standing::Absent], (false, false)), BACKGROUND);
    assert_eq!(decide(&c, &[Standing::Unseen], (false, false)), Action::Retry, "its end might be missed");
    assert_eq!(decide(&c, &[Standing::Unknown], (false, false)), Action::Retry);
    assert_eq!(decide(&c, &[Standing::Nonsense], (false, false)), Action::Nothing);
    assert_eq!(decide(&meta("c", &["x", "y"]), &[Standing::Absent, Standing::Unknown], (false, false)), Action::Retry, "nothing is done on a guess");
    assert_eq!(decide(&meta("c", &[]), &[], (false, false)), Action::Nothing, "somebody took its references away");
}

#[test]
fn nothing_is_looked_at_twice_for_nothing() {
    let mut graph = Graph::default();
    put(&mut graph, &meta("a", &[]));
    let c = meta("c", &["a"]);
    put(&mut graph, &c);
    assert!(put(&mut graph, &c).is_empty());
    put(&mut graph, &deleting("c", &["a"], "example.com/mine"));
    assert!(remove(&mut graph, "a").is_empty(), "it goes already");
    assert_eq!(graph.state("c"), State::Settled);
}

#[test]
fn a_foreground_deletion_waits_for_blocking_dependents() {
    let mut graph = Graph::default();
    put(&mut graph, &meta("a", &[]));
    let b = meta("b", &["a"]);
    put(&mut graph, &b);
    let mut loose = meta("l", &["a"]);
    loose.owner_references[0].block_owner_deletion = None;
    put(&mut graph, &loose);
    let looked = put(&mut graph, &deleting("a", &[], "foregroundDeletion"));
    assert_eq!(looked, ["b", "l", "a"]);
    assert_eq!(graph.state("a"), State::Blocked);
    assert_eq!(judge(&graph, &b), BACKGROUND);
    assert_eq!(judge(&graph, &loose), BACKGROUND);
    assert_eq!(remove(&mut graph, "b"), ["a"]);
    assert_eq!(graph.state("a"), State::Unblocked, "what does not block is not waited for");
}

#[test]
fn a_dependent_that_stops_to_block_frees_its_owner() {
    let mut graph = Graph::default();
    put(&mut graph, &deleting("a", &[], "foregroundDeletion"));
    let mut b = meta("b", &["a"]);
    assert_eq!(put(&mut graph, &b), ["b"], "a new dependent of an owner that waits");
    assert_eq!(graph.state("a"), State::Blocked);
    b.owner_references[0].block_owner_deletion = Some(false);
    assert!(put(&mut graph, &b).contains(&"a".to_string()));
    assert_eq!(graph.state("a"), State::Unblocked);
    assert_eq!(graph.dependents("a"), (true, false), "it is its dependent still");
    b.owner_references.clear();
    assert_eq!(put(&mut graph, &b), ["a"]);
    assert_eq!(graph.dependents("a"), (false, false));
    assert!(remove(&mut graph, "a").is_empty(), "nothing is left to follow it");
}

#[test]
fn dependents_of_dependents_go_first() {
    let mut graph = Graph::default();
    put(&mut graph, &deleting("a", &[], "foregroundDeletion"));
    let b = meta("b", &["a"]);
    put(&mut graph, &b);
    put(&mut graph, &meta("c", &["b"]));
    assert_eq!(judge(&graph, &b), Action::Delete { policy: PropagationPolicy::Foreground, unblock: false });
    let kept = meta("d", &["a", "b"]);
    put(&mut graph, &kept);
    assert!(matches!(judge(&graph, &kept), Action::Keep(keep) if keep[0].uid == "b"), "the owner that waits is let go");
}

#[test]
fn a_cycle_is_unblocked() {
    let mut graph = Graph::default();
    put(&mut graph, &meta("a", &["c"]));
    let b = meta("b", &["a"]);
    put(&mut graph, &b);
    let c = meta("c", &["b"]);
    put(&mut graph, &c);
    put(&mut graph, &deleting("a", &["c"], "foregroundDeletion"));
    assert_eq!(judge(&graph, &b), Action::Delete { policy: PropagationPolicy::Foreground, unblock: false });
    put(&mut graph, &deleting("b", &["a"], "foregroundDeletion"));
    assert_eq!(judge(&graph, &c), Action::Delete { policy: PropagationPolicy::Foreground, unblock: true });
    let mut free = deleting("c", &["b"], "foregroundDeletion");
    free.owner_references[0].block_owner_deletion = Some(false);
    assert!(put(&mut graph, &free).contains(&"b".to_string()));
    assert_eq!(graph.state("b"), State::Unblocked);
}

#[test]
fn orphans_lose_that_owner_alone() {
    let mut graph = Graph::default();
    put(&mut graph, &meta("b", &["a", "x"]));
    assert_eq!(put(&mut graph, &deleting("a", &[], "orphan")), ["a"]);
    let State::Orphaning(dependents) = graph.state("a") else { panic!("it is to be orphaned") };
    assert_eq!(dependents.iter().map(|(uid, _)| uid.as_ref()).collect::<Vec<_>>(), ["b"]);
    assert!(put(&mut graph, &deleting("a", &[], "orphan")).is_empty(), "once is enough");
    let spared = Meta { finalizers: vec!["orphan".into()], ..meta("c", &[]) };
    assert!(put(&mut graph, &spared).is_empty(), "it is not being deleted");
    assert_eq!(put(&mut graph, &deleting("c", &[], "orphan")), ["c"]);
}

#[test]
fn owners_of_other_namespaces_are_told_of() {
    let mut graph = Graph::default();
    put(&mut graph, &meta("a", &[]));
    let mut c = meta("c", &["a"]);
    c.namespace = "other".into();
    let work = graph.put(&maps(), &c);
    assert_eq!(work.misplaced.len(), 1);
    assert_eq!(work.look.len(), 1);
    assert_eq!(graph.standing(&c.owner_references[0], "other"), None, "it may be there as well");
    // The other way round: the dependent is known first.
    let mut graph = Graph::default();
    graph.put(&maps(), &c);
    let work = graph.put(&maps(), &meta("a", &[]));
    assert_eq!((work.misplaced.len(), work.look.len()), (1, 1));
    // A cluster-wide owner is everybody's.
    let mut graph = Graph::default();
    graph.put(&kind("ConfigMap", false), &Meta { namespace: String::new(), ..meta("a", &[]) });
    assert_eq!(graph.put(&maps(), &c).misplaced, []);
}

#[test]
fn wrong_coordinates_are_checked_and_condemn_none_but_themselves() {
    let mut graph = Graph::default();
    put(&mut graph, &meta("a", &[]));
    let mut wrong = meta("c", &["a"]);
    wrong.owner_references[0].name = "b".into();
    assert_eq!(put(&mut graph, &wrong), ["c"]);
    assert_eq!(graph.standing(&wrong.owner_references[0], "ns"), None);
    graph.remember_absent("a", "ns", super::Coordinates::of(&wrong.owner_references[0]));
    assert_eq!(graph.standing(&wrong.owner_references[0], "ns"), Some(Standing::Absent));
    let right = meta("d", &["a"]);
    assert!(put(&mut graph, &right).is_empty());
    assert_eq!(judge(&graph, &right), Action::Nothing);
}

#[test]
fn what_owns_itself_does_not_hold_itself() {
    let mut graph = Graph::default();
    let own = meta("a", &["a"]);
    put(&mut graph, &own);
    assert_eq!(judge(&graph, &own), Action::Nothing, "its owner is there");
    assert!(put(&mut graph, &deleting("a", &["a"], "foregroundDeletion")).contains(&"a".to_string()));
    assert_eq!(graph.state("a"), State::Unblocked);
    put(&mut graph, &meta("b", &["a"]));
    assert_eq!(graph.state("a"), State::Blocked, "others do hold it");
}

#[test]
fn what_a_list_does_not_show_is_gone() {
    let mut graph = Graph::default();
    assert!(graph.is_empty());
    for uid in ["a", "b"] {
        graph.put(&maps(), &meta(uid, &[]));
    }
    graph.put(&kind("Secret", true), &meta("s", &[]));
    let apps = Arc::new(Kind { resource: ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", "ConfigMap")), namespaced: true });
    graph.put(&apps, &meta("of another group", &[]));
    assert_eq!((graph.len(), graph.is_empty()), (4, false));
    let missing = graph.others(&maps(), &["a".to_string()].into());
    assert_eq!(missing.iter().map(|u| u.to_string()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(graph.identity("b").map(|i| i.name.to_string()).as_deref(), Some("b"));
    assert!(graph.identity("x").is_none());
}

#[test]
fn an_owner_is_what_its_reference_says() {
    let mut graph = Graph::default();
    graph.put(&maps(), &meta("a", &[]));
    let of = |change: fn(&mut k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference)| {
        let mut reference = meta("c", &["a"]).owner_references.remove(0);
        change(&mut reference);
        graph.standing(&reference, "ns")
    };
    assert_eq!(of(|_| ()), Some(Standing::Solid));
    assert_eq!(of(|r| r.kind = "Secret".into()), None);
    assert_eq!(of(|r| r.api_version = "apps/v1".into()), None);
    assert_eq!(of(|r| r.name = "b".into()), None);
}

#[test]
fn the_last_five_hundred_absent_owners_are_remembered() {
    let mut graph = Graph::default();
    let reference = |n: usize| meta("c", &[&format!("o{n}")]).owner_references.remove(0);
    let known = |graph: &Graph, n: usize| graph.standing(&reference(n), "ns").is_some();
    for n in 0..500 {
        graph.remember_absent(&format!("o{n}"), "ns", super::Coordinates::of(&reference(n)));
    }
    graph.remember_absent("o7", "ns", super::Coordinates::of(&reference(7)));
    assert!(known(&graph, 0) && known(&graph, 499));
    graph.remember_absent("o500", "ns", super::Coordinates::of(&reference(500)));
    assert!(!known(&graph, 0) && known(&graph, 1) && known(&graph, 500));
}
