//! Scenarios of preemption and of the choice of a node, beyond those of the plug-ins: how far the search
//! for victims goes, what is said when it fails, nominations, and what a failure carries.

use std::collections::HashMap;

use super::*;
use crate::decide::{candidates, conclude};

fn guard(app: &str, allowed: i32) -> Budget {
    let selector = Some(serde_json::from_value(json!({"matchLabels": {"app": app}})).expect("a selector"));
    Budget { namespace: "default".into(), selector, allowed, disrupted: BTreeSet::new() }
}

/// How many choices of victims are found, for each node with which the search may begin.
fn choices(asked: &Asked, nodes: &[Arc<NodeView>], pods: &[(&str, Arc<PodInfo>)], wanted: &PodInfo) -> BTreeSet<usize> {
    let of = |seed| {
        let turn = Turn { config: &asked.config, profile: 0, plugins: &[], budgets: &asked.budgets, start: 0, seed, explain: true };
        let failure = failure(decide(&mut cluster(nodes, pods), wanted, &turn).decision);
        assert_eq!(failure.preemption.expect("victims").violations, 0, "a choice against no budget is looked for, and taken");
        failure.choices.len()
    };
    (0..16).map(of).collect()
}

#[test]
fn the_search_for_victims_ends_when_there_are_enough() {
    let nodes = ["a", "b", "c", "d"].map(|n| node(n, json!({})));
    let pods = ["a", "b", "c", "d"].map(|n| (n, of_priority(n, 1, "4")));
    let sized = |percentage, absolute| {
        profiled(|p| (p.min_candidate_nodes_percentage, p.min_candidate_nodes_absolute) = (percentage, absolute))
    };
    let high = of_priority("high", 10, "1");
    let found = |asked: &Asked| choices(asked, &nodes, &pods, &high);
    assert_eq!(found(&sized(50, 1)), BTreeSet::from([2]), "half of the nodes");
    assert_eq!(found(&sized(10, 3)), BTreeSet::from([3]));
    assert_eq!(found(&sized(10, 100)), BTreeSet::from([4]), "no more than there are");
    // Choices against a budget count, but do not end it alone.
    let guarded = |n: usize, asked: Asked| Asked { budgets: pods[..n].iter().map(|(name, _)| guard(name, 0)).collect(), ..asked };
    let three = |asked: &Asked| choices(asked, &nodes[..3], &pods[..3], &high);
    assert_eq!(three(&guarded(1, sized(0, 2))), BTreeSet::from([2]));
    assert_eq!(three(&guarded(2, sized(0, 1))), BTreeSet::from([1, 2, 3]));
}

#[test]
fn reasons_of_preemption_are_counted_each() {
    let nodes = [node("a", json!({})), node("b", json!({})), node("c", json!({}))];
    let memory = pod("m", json!({"priority": 10, "containers": [{"name": "c", "resources": {"requests": {"memory": "8Gi"}}}]}));
    let low = |name: &str| pod(name, json!({"priority": 1}));
    let pods = [("a", of_priority("x", 10, "4")), ("b", of_priority("y", 10, "4")), ("c", memory), ("a", low("l1")), ("b", low("l2")), ("c", low("l3"))];
    let wanted = pod("p", json!({"priority": 10, "containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]}));
    check(&nodes, &pods, &wanted, "preemption: 0/3 nodes are available: 1 Insufficient memory, 2 Insufficient cpu.");
}

#[test]
fn only_those_wait_who_have_made_room_where_they_may_go() {
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let ask = |nodes: &[Arc<NodeView>], left: i32, preempted: bool| {
        let mut leaving = of_priority("x", left, "4").as_ref().clone();
        (leaving.terminating, leaving.preempted) = (true, preempted);
        let mut wanted = of_priority("p", 10, "1").as_ref().clone();
        wanted.nominated = Some("a".into());
        let pods = [("a", Arc::new(leaving)), ("b", of_priority("y", 1, "4"))];
        let failure = failure(plain().decide(&mut cluster(nodes, &pods), &wanted));
        failure.preemption.map(|v| v.node).unwrap_or(failure.message)
    };
    assert!(ask(&nodes, 1, true).contains("a terminating pod on the nominated node"));
    assert_ne!(ask(&nodes, 1, false).len(), 0);
    assert!(!ask(&nodes, 1, false).contains("terminating pod"), "it goes for a reason of its own");
    assert_eq!(ask(&nodes, 10, true), "b", "it was not displaced for this one");
    let cordoned = [node("a", json!({"spec": {"unschedulable": true}})), nodes[1].clone()];
    assert_eq!(ask(&cordoned, 1, true), "b", "there is no use in waiting for a node that is closed");
    let other = [nodes[0].clone(), node("b", json!({"spec": {"unschedulable": true}}))];
    assert!(ask(&other, 1, true).contains("a terminating pod on the nominated node"), "another node is closed");
}

#[test]
fn a_nominated_node_goes_before_better_ones() {
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let mut wanted = pod("p", cpu("1")).as_ref().clone();
    let ask = |wanted: &PodInfo| bound(plain().decide(&mut cluster(&nodes, &[("a", pod("x", cpu("2")))]), wanted));
    assert_eq!(ask(&wanted), "b");
    wanted.nominated = Some("a".into());
    assert_eq!(ask(&wanted), "a");
    wanted.nominated = Some("gone".into());
    assert_eq!(ask(&wanted), "b");
}

#[test]
fn equal_nodes_are_picked_by_the_seed() {
    let nodes = ["a", "b", "c"].map(|n| node(n, json!({})));
    let asked = plain();
    let pick = |seed| {
        let turn = Turn { config: &asked.config, profile: 0, plugins: &[], budgets: &[], start: 0, seed, explain: false };
        bound(decide(&mut cluster(&nodes, &[]), &pod("p", json!({})), &turn).decision)
    };
    assert_eq!((0..32).map(pick).collect::<BTreeSet<_>>().len(), 3);
}

#[test]
fn a_failure_says_what_is_to_be_done() {
    let nothing = failure(plain().decide(&mut cluster(&[], &[]), &pod("p", json!({}))));
    assert!(nothing.clear_nomination, "there is no node to be nominated to");
    let whole = Asked { plugins: vec![Arc::new(Refuses("whole"))], ..profiled(|p| p.enable(None, "VolumeZone", 5)) };
    assert_eq!(failure(whole.decide(&mut cluster(&[node("a", json!({}))], &[]), &pod("p", json!({})))).plugins, BTreeSet::from(["VolumeZone"]));
    // All nodes that the pod names have been looked at: none is left for it to have refused.
    let named = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]}}}});
    check(&[tainted("a", "NoSchedule")], &[], &pod("p", named), "0/1 nodes are available: 1 node(s) had untolerated taint(s). no new claims");
}

#[test]
fn what_keeps_others_away_is_heeded_from_when_it_came() {
    let mut world = cluster(&[node("a-1", json!({}))], &[]);
    let plain_pod = pod("p", json!({}));
    assert_eq!(bound(plain().decide(&mut world, &plain_pod)), "a-1");
    world.place("a-1", &pod("shy", affinity("podAntiAffinity", "p", ZONE)));
    assert!(bound(plain().decide(&mut world, &plain_pod)).contains("existing pods anti-affinity"));
    world.remove_pod("shy");
    assert_eq!(bound(plain().decide(&mut world, &plain_pod)), "a-1");
}

#[test]
fn plugins_are_enabled_as_they_were() {
    let mut profile = Profile::default();
    profile.disable(None, "TaintToleration");
    profile.disable(Some(Point::Filter), "NodePorts");
    profile.disable(Some(Point::Filter), "NodeName");
    profile.enable(None, "TaintToleration", 0);
    profile.enable(None, "NodePorts", 0);
    assert_eq!(profile.weight("TaintToleration"), 3, "with its own weight");
    assert!(profile.has(Point::Filter, "NodePorts"), "at all points");
    assert!(!profile.has(Point::Filter, "NodeName"), "another one stays off");
    profile.disable(Some(Point::PreScore), "TaintToleration");
    assert_eq!(profile.weight("TaintToleration"), 0, "what is worked out before the score is lacking");
}

#[test]
fn what_is_selected_is_heeded_from_when_it_came() {
    let nodes = [node("a-1", json!({})), node("b-1", json!({"status": {"allocatable": {"cpu": "3"}}}))];
    let mut world = cluster(&nodes, &[("a-1", labelled("w1", json!({"app": "web"}), json!({}))), ("b-1", pod("x", cpu("1")))]);
    let wanted = labelled("w2", json!({"app": "web"}), json!({}));
    assert_eq!(bound(plain().decide(&mut world, &wanted)), "a-1");
    world.workloads.services.insert(("default".into(), "web".into()), vec![("app".into(), "web".into())]);
    world.workloads.generation += 1;
    assert_eq!(bound(plain().decide(&mut world, &wanted)), "b-1", "pods of a service are spread");
}

#[test]
fn affinity_of_those_who_are_there_counts_as_the_profile_says() {
    let nodes = [node("a-1", json!({})), node("b-1", json!({}))];
    let prefers = json!({"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 100, "podAffinityTerm": {"labelSelector": {"matchLabels": {"app": "p"}}, "topologyKey": ZONE}}]}}});
    let ask = |there: Value, wanted: Value, change: fn(&mut Profile)| {
        let pods = [("a-1", pod("x", there)), ("a-1", pod("y", cpu("1")))];
        bound(profiled(change).decide(&mut cluster(&nodes, &pods), &pod("p", wanted)))
    };
    let requires = || affinity("podAffinity", "p", ZONE);
    assert_eq!(ask(requires(), json!({}), |_| ()), "a-1", "what it must be near to");
    assert_eq!(ask(requires(), json!({}), |p| p.hard_pod_affinity_weight = 0), "b-1");
    assert_eq!(ask(prefers.clone(), json!({}), |_| ()), "a-1");
    let ignoring = |p: &mut Profile| p.ignore_preferred_terms_of_existing_pods = true;
    assert_eq!((ask(prefers.clone(), json!({}), ignoring), ask(requires(), json!({}), ignoring)), ("b-1".into(), "b-1".into()));
    let own = json!({"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "podAffinityTerm": {"labelSelector": {"matchLabels": {"app": "nobody"}}, "topologyKey": ZONE}}]}}});
    assert_eq!(ask(prefers, own, ignoring), "a-1", "a pod with preferences of its own heeds them");
}

#[test]
fn nominated_pods_count_when_pods_are_spread() {
    let nodes = [node("a-1", json!({})), node("b-1", json!({}))];
    let mut world = cluster(&nodes, &[("a-1", labelled("w", json!({"app": "web"}), json!({})))]);
    world.nominate(&labelled("n", json!({"app": "web"}), json!({"priority": 5})), Some("b-1"));
    let wanted = labelled("p", json!({"app": "web"}), spread(json!({})));
    assert_eq!(bound(plain().decide(&mut world, &wanted)), "b-1", "with it there are as many as in the other zone");
    world.nominate(&labelled("m", json!({"app": "web"}), json!({"priority": 5})), Some("b-1"));
    assert!(bound(plain().decide(&mut world, &wanted)).contains("topology spread constraints"));
}

#[test]
fn nodes_that_went_leave_their_place() {
    let mut world = cluster(&[node("a", json!({}))], &[("gone", pod("x", json!({})))]);
    assert_eq!((world.len(), world.is_empty()), (1, false), "of the other one only its pod is known");
    world.set_node(node("b", json!({})));
    let place = world.ix("b");
    world.remove_node("b");
    assert_eq!(world.len(), 1);
    world.set_node(node("c", json!({})));
    assert_eq!(world.ix("c"), place);
    assert_eq!(world.pod("x").map(|(n, p)| (n.name().to_string(), p.name().to_string())), Some(("gone".into(), "x".into())));
    world.remove_node("a");
    world.remove_node("c");
    assert_eq!((world.len(), world.is_empty(), world.pod("y").is_none()), (0, true, true));
}

#[test]
fn others_have_their_say_between_filters_and_choice() {
    let nodes = [node("a", json!({})), node("b", json!({})), tainted("c", "NoSchedule")];
    let asked = plain();
    let turn = Turn { config: &asked.config, profile: 0, plugins: &[], budgets: &[], start: 0, seed: 0, explain: false };
    let mut world = cluster(&nodes, &[("a", pod("x", cpu("1")))]);
    let mut wanted = pod("p", cpu("1")).as_ref().clone();
    let (found, _) = candidates(&mut world, &wanted, &turn, true);
    let found = found.expect("two will do");
    assert_eq!((found.nodes.len(), found.rejected.len(), found.rejected[0].0.as_str(), found.nominated), (2, 1, "c", false));
    let after = |world: &mut Cluster, nodes: &[&str], scores: &[(&str, i64)]| {
        let mut left = found.clone();
        left.nodes = nodes.iter().map(|n| n.to_string()).collect();
        let scores: HashMap<String, i64> = scores.iter().map(|(n, score)| (n.to_string(), *score)).collect();
        conclude(world, &wanted, &turn, left, &scores).map(bound)
    };
    assert_eq!(after(&mut world, &["a", "b"], &[]).as_deref(), Some("b"));
    assert_eq!(after(&mut world, &["a"], &[]).as_deref(), Some("a"), "the other one was struck out");
    assert_eq!(after(&mut world, &["a", "b"], &[("a", 1000)]).as_deref(), Some("a"), "their scores count");
    assert!(after(&mut world, &[], &[]).is_some_and(|said| said.starts_with("0/3 nodes are available: 1 node(s) had untolerated taint(s).")));
    // Meanwhile the nodes that were left have been taken.
    let mut full = cluster(&nodes, &[("a", pod("y", cpu("4"))), ("b", pod("z", cpu("4")))]);
    assert_eq!(after(&mut full, &["a", "b"], &[]), None);
    wanted.nominated = Some("a".into());
    let of = |heed| candidates(&mut cluster(&nodes, &[]), &wanted, &turn, heed).0.map(|c| (c.nodes, c.nominated)).expect("some will do");
    assert_eq!(of(true), (vec!["a".to_string()], true));
    assert_eq!((of(false).0.len(), of(false).1), (2, false), "the nomination is not heeded");
}

#[test]
fn others_choose_whom_to_displace() {
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let pods = [("a", of_priority("x", 1, "4")), ("b", of_priority("y", 2, "4"))];
    let failed = failure(plain().decide(&mut cluster(&nodes, &pods), &of_priority("high", 10, "1")));
    assert_eq!((failed.choices.len(), failed.preemption.as_ref().map(|v| v.node.as_str())), (2, Some("a")));
    let left: Vec<_> = failed.choices.iter().filter(|v| v.node == "b").cloned().collect();
    let after = failed.clone().after_choices(Ok(left));
    assert_eq!((after.choices.len(), after.preemption.map(|v| v.node), after.message), (1, Some("b".into()), failed.message.clone()));
    let none = failed.clone().after_choices(Ok(Vec::new()));
    assert!(none.preemption.is_none() && none.message.ends_with("preemption: no candidate node for preemption"), "{}", none.message);
    assert!(failed.after_choices(Err("it is silent".into())).message.ends_with("preemption: it is silent"));
}

#[test]
fn extenders_that_may_fail_come_last() {
    use crate::extender::Extender;
    use client::{Web, WebTls};
    let of = |weight: i64, ignorable: bool| Extender {
        web: Web::new("http://localhost:1", &WebTls::default(), std::time::Duration::from_secs(1)).expect("a URL"),
        filter_verb: String::new(),
        prioritize_verb: String::new(),
        weight,
        bind_verb: String::new(),
        preempt_verb: String::new(),
        node_cache_capable: true,
        managed_resources: BTreeSet::new(),
        ignorable,
    };
    let mut config = Config::default();
    config.profiles[0].ignored_resources.insert("example.com/own".into());
    config.extend(vec![of(1, true), of(2, false)], BTreeSet::new());
    assert_eq!(config.extenders.iter().map(|e| e.weight).collect::<Vec<_>>(), [2, 1]);
    assert!(config.profiles[0].ignored_resources.contains("example.com/own"));
    config.extend(Vec::new(), BTreeSet::from(["example.com/theirs".to_string()]));
    assert_eq!(config.profiles[0].ignored_resources, BTreeSet::from(["example.com/theirs".to_string()]));
}
