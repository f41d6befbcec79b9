//! Scenarios of what wakes pods that wait, beyond those of affinity and spread: plug-ins, extenders, and
//! pods that could displace others.

use super::*;
use crate::extender::EXTENDER;

struct Waits(bool);

impl Plugin for Waits {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }
    fn prepare<'a>(&'a self, _: &'a PodInfo, _: &'a Profile) -> Prepared<'a> {
        Prepared::Skip
    }
    fn helps(&self, _: &PodInfo, _: &Event) -> bool {
        self.0
    }
}

#[test]
fn who_knows_is_asked() {
    let mut world = cluster(&[node("a", json!({}))], &[]);
    let (wanted, other) = (pod("p", cpu("8")), pod("x", json!({})));
    let gone = Event::PodGone { old: other, node: "a".into() };
    let mut ask = |plugin: bool, by: &[&'static str]| {
        let plugins: [Arc<dyn Plugin>; 1] = [Arc::new(Waits(plugin))];
        helps(&mut world, &Profile::default(), 0, &plugins, &wanted, by, &gone)
    };
    assert!(ask(true, &["VolumeZone"]));
    assert!(!ask(false, &["VolumeZone"]));
    assert!(!ask(true, &["NodeResourcesFit"]), "it is not the one that rejected the pod");
    assert!(ask(false, &[EXTENDER]), "nobody knows what an extender waits for");
    assert!(ask(false, &[]), "nor what is wrong when nobody rejected it");
}

#[test]
fn who_could_displace_others_is_woken() {
    let nodes = [node("a", json!({}))];
    let (low, equal) = (of_priority("low", 1, "1"), of_priority("equal", 9, "2"));
    let gone = Event::PodGone { old: of_priority("x", 1, "1"), node: "a".into() };
    let mut world = cluster(&nodes, &[("a", low), ("a", equal)]);
    let mut ask = |amount: &str, policy: Value| wakes(&mut world, &pod("p", with(cpu(amount), policy)), "NodeResourcesFit", gone.clone());
    assert!(ask("2", json!({"priority": 9})));
    assert!(!ask("3", json!({"priority": 9})), "the less important ones are not enough");
    assert!(!ask("2", json!({"priority": 9, "preemptionPolicy": "Never"})), "it displaces nobody");
}

#[test]
fn spread_that_counts_all_nodes_is_woken_by_another_domain() {
    let rack = |name: &str| node("x", json!({"metadata": {"labels": {"rack": name}}}));
    let blind = labelled("even", json!({"app": "web"}), spread(json!({"topologyKey": "rack", "nodeAffinityPolicy": "Ignore"})));
    let moved = |from: &str, to: &str| Event::Node { old: Some(rack(from)), new: rack(to) };
    assert!(wakes(&mut cluster(&[], &[]), &blind, "PodTopologySpread", moved("1", "2")));
    assert!(!wakes(&mut cluster(&[], &[]), &blind, "PodTopologySpread", moved("1", "1")));
}
