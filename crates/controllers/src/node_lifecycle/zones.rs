//! How fast nodes of a zone may be given up: when many fail at once it is rather the network or the
//! control plane than the nodes, and driving their pods away would make it worse. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

use super::Settings;

/// The zone of a node.
pub fn of(node: &Node) -> String {
    let label = |now: &str, before: &str| node.labels().get(now).or_else(|| node.labels().get(before)).cloned().unwrap_or_default();
    let region = label("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region");
    let zone = label("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone");
    if region.is_empty() && zone.is_empty() { String::new() } else { format!("{region}:\u{0}:{zone}") }
}

/// Whether a node counts when a zone is judged.
pub fn counts(node: &Node) -> bool {
    !node.labels().contains_key("node.kubernetes.io/exclude-disruption")
}

/// How a zone is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneState {
    Normal,
    Partial,
    Full,
}

impl Settings {
    /// Judges a zone by its numbers of ready and other nodes.
    fn judge(&self, ready: usize, unready: usize) -> ZoneState {
        if ready == 0 && unready > 0 {
            ZoneState::Full
        } else if unready > 2 && unready as f64 / (ready + unready) as f64 >= self.unhealthy_zone {
            ZoneState::Partial
        } else {
            ZoneState::Normal
        }
    }

    fn rate(&self, state: ZoneState, size: usize) -> f64 {
        match state {
            ZoneState::Normal | ZoneState::Full => self.eviction_rate,
            ZoneState::Partial if size > self.large_cluster => self.secondary_eviction_rate,
            ZoneState::Partial => 0.0,
        }
    }
}

/// A token bucket of one.
#[derive(Debug)]
struct Limiter {
    rate: f64,
    tokens: f64,
    at: Option<Timestamp>,
}

impl Limiter {
    fn accept(&mut self, now: Timestamp) -> bool {
        let passed = self.at.map_or(0.0, |at| now.duration_since(at).as_secs_f64().max(0.0));
        self.at = Some(now);
        self.tokens = (self.tokens + passed * self.rate).min(1.0);
        let fine = self.rate > 0.0 && self.tokens >= 1.0;
        if fine {
            self.tokens -= 1.0;
        }
        fine
    }
}

#[derive(Debug)]
struct Zone {
    limiter: Limiter,
    waiting: VecDeque<String>,
}

impl Zone {
    fn new(rate: f64) -> Zone {
        Zone { limiter: Limiter { rate, tokens: 1.0, at: None }, waiting: VecDeque::new() }
    }
}

/// What follows for all nodes from how the zones are.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    Nothing,
    /// No node of any zone is ready: it must be us. All are to be taken for reachable.
    AllLost,
    /// Some are ready again: all silence is counted from now.
    SomeBack,
}

/// All zones, and the nodes that wait to be given up.
#[derive(Debug, Default)]
pub struct Zones {
    settings: Settings,
    zones: BTreeMap<String, Zone>,
    lost: bool,
}

impl Zones {
    /// No zones yet.
    pub fn new(settings: Settings) -> Zones {
        Zones { settings, ..Zones::default() }
    }

    /// A node is to be given up, in its turn.
    pub fn give_up(&mut self, zone: &str, node: &str) {
        let zone = self.zones.entry(zone.to_string()).or_insert_with(|| Zone::new(self.settings.eviction_rate));
        if !zone.waiting.iter().any(|n| n == node) {
            zone.waiting.push_back(node.to_string());
        }
    }

    /// A node is well, or gone.
    pub fn keep(&mut self, node: &str) {
        self.zones.values_mut().for_each(|z| z.waiting.retain(|n| n != node));
    }

    /// The nodes whose turn it is.
    pub fn due(&mut self, now: Timestamp) -> Vec<String> {
        let mut due = Vec::new();
        for zone in self.zones.values_mut() {
            while !zone.waiting.is_empty() && zone.limiter.accept(now) {
                due.extend(zone.waiting.pop_front());
            }
        }
        due
    }

    /// Judges the zones anew, by their numbers of ready and other nodes.
    pub fn judge(&mut self, numbers: &BTreeMap<String, (usize, usize)>) -> Turn {
        let known: BTreeSet<&String> = numbers.keys().collect();
        self.zones.retain(|name, zone| known.contains(name) || !zone.waiting.is_empty());
        if numbers.is_empty() {
            return Turn::Nothing;
        }
        let lost = numbers.values().all(|(ready, unready)| self.settings.judge(*ready, *unready) == ZoneState::Full);
        for (name, (ready, unready)) in numbers {
            let state = self.settings.judge(*ready, *unready);
            let rate = if lost { 0.0 } else { self.settings.rate(state, ready + unready) };
            self.zones.entry(name.clone()).or_insert_with(|| Zone::new(rate)).limiter.rate = rate;
        }
        let turn = match (self.lost, lost) {
            (false, true) => Turn::AllLost,
            (true, false) => Turn::SomeBack,
            _ => Turn::Nothing,
        };
        self.lost = lost;
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn numbers(zones: &[(&str, usize, usize)]) -> BTreeMap<String, (usize, usize)> {
        zones.iter().map(|(name, ready, unready)| (name.to_string(), (*ready, *unready))).collect()
    }

    #[test]
    fn zones_are_judged_as_upstream_does() {
        let judge = |ready, unready| Settings::default().judge(ready, unready);
        assert_eq!(judge(0, 1), ZoneState::Full);
        assert_eq!(judge(1, 1), ZoneState::Normal, "two of few are no disruption");
        assert_eq!(judge(1, 2), ZoneState::Normal);
        assert_eq!(judge(2, 2), ZoneState::Normal);
        assert_eq!(judge(2, 3), ZoneState::Partial);
        assert_eq!(judge(3, 3), ZoneState::Normal, "half is less than 55 %");
        assert_eq!(judge(0, 0), ZoneState::Normal);
    }

    #[test]
    fn nodes_are_given_up_one_in_ten_seconds() {
        let mut zones = Zones::default();
        zones.judge(&numbers(&[("z", 10, 3)]));
        for node in ["a", "b", "c", "a"] {
            zones.give_up("z", node);
        }
        assert_eq!(zones.due(at(0)), ["a"]);
        assert!(zones.due(at(9)).is_empty());
        assert_eq!(zones.due(at(10)), ["b"]);
        zones.keep("c");
        assert!(zones.due(at(100)).is_empty());
        zones.give_up("z", "d");
        zones.give_up("z", "e");
        assert_eq!(zones.due(at(200)), ["d"], "the time of rest is not saved up");
    }

    #[test]
    fn a_disrupted_zone_is_left_alone_or_slowly_given_up() {
        let mut zones = Zones::default();
        zones.judge(&numbers(&[("small", 2, 8), ("large", 20, 40)]));
        for n in 0..3 {
            zones.give_up("small", &format!("s{n}"));
            zones.give_up("large", &format!("l{n}"));
        }
        assert_eq!(zones.due(at(0)), ["l0"]);
        assert!(zones.due(at(50)).is_empty());
        assert_eq!(zones.due(at(101)), ["l1"]);
    }

    #[test]
    fn the_rates_are_the_users() {
        let settings = Settings { eviction_rate: 1.0, secondary_eviction_rate: 0.5, large_cluster: 4, unhealthy_zone: 0.8, ..Settings::default() };
        let mut zones = Zones::new(settings);
        zones.judge(&numbers(&[("well", 2, 4), ("ill", 1, 5), ("small", 0, 0)]));
        for zone in ["well", "ill"] {
            (0..3).for_each(|n| zones.give_up(zone, &format!("{zone}{n}")));
        }
        assert_eq!(zones.due(at(0)), ["ill0", "well0"]);
        assert_eq!(zones.due(at(1)), ["well1"]);
        assert_eq!(zones.due(at(2)), ["ill1", "well2"]);
    }

    #[test]
    fn when_all_are_lost_it_is_us() {
        let mut zones = Zones::default();
        assert_eq!(zones.judge(&numbers(&[])), Turn::Nothing);
        assert_eq!(zones.judge(&numbers(&[("a", 1, 0), ("b", 0, 3)])), Turn::Nothing);
        zones.give_up("b", "n");
        assert_eq!(zones.judge(&numbers(&[("a", 0, 1), ("b", 0, 3)])), Turn::AllLost);
        assert!(zones.due(at(1000)).is_empty());
        assert_eq!(zones.judge(&numbers(&[("a", 0, 1), ("b", 0, 3)])), Turn::Nothing);
        assert_eq!(zones.judge(&numbers(&[("a", 1, 0), ("b", 0, 3)])), Turn::SomeBack);
        assert_eq!(zones.due(at(2000)), ["n"], "one zone that is lost alone is given up at the normal rate");
    }

    #[test]
    fn zones_are_named_by_labels() {
        let node = |labels: serde_json::Value| serde_json::from_value::<Node>(serde_json::json!({"metadata": {"name": "n", "labels": labels}})).expect("a node");
        let (region, zone) = ("topology.kubernetes.io/region", "topology.kubernetes.io/zone");
        let both = of(&node(serde_json::json!({region: "r", zone: "z"})));
        assert_eq!(both, "r:\u{0}:z");
        assert_eq!(of(&node(serde_json::json!({"failure-domain.beta.kubernetes.io/region": "r", "failure-domain.beta.kubernetes.io/zone": "z"}))), both);
        assert_eq!(of(&node(serde_json::json!({zone: "z"}))), ":\u{0}:z");
        assert_eq!(of(&node(serde_json::json!({region: "r"}))), "r:\u{0}:");
        assert_eq!(of(&node(serde_json::json!({}))), "");
        assert!(counts(&node(serde_json::json!({}))) && !counts(&node(serde_json::json!({"node.kubernetes.io/exclude-disruption": ""}))));
    }

    #[test]
    fn a_zone_is_large_from_fifty_one_nodes_on() {
        let mut zones = Zones::default();
        zones.judge(&numbers(&[("fifty", 20, 30), ("more", 20, 31)]));
        zones.give_up("fifty", "f");
        zones.give_up("more", "m");
        assert_eq!(zones.due(at(0)), ["m"]);
    }

    #[test]
    fn a_zone_without_nodes_stays_while_some_wait() {
        let mut zones = Zones::default();
        zones.judge(&numbers(&[("gone", 1, 1), ("empty", 1, 0), ("z", 5, 0)]));
        zones.give_up("gone", "n");
        zones.judge(&numbers(&[("z", 5, 0)]));
        assert_eq!(zones.zones.keys().collect::<Vec<_>>(), ["gone", "z"]);
        assert_eq!(zones.due(at(0)), ["n"]);
    }
}
