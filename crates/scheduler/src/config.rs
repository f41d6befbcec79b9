//! What can be set about the scheduler: profiles, each a scheduler's name with its plug-ins, their
//! weights and arguments. The defaults are those of upstream's 1.36.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::extender::Extender;
use crate::pod::{RawSpread, Spread};
use crate::selector::{Labels, NodeTerm};

/// The name that pods ask for when they ask for none.
pub const DEFAULT_NAME: &str = "default-scheduler";

/// The whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// One at least; their names differ.
    pub profiles: Vec<Profile>,
    /// How many of the nodes that fit are looked for before the best is taken, in percent; 0 lets the
    /// scheduler choose by the cluster's size.
    pub percentage_of_nodes_to_score: u32,
    /// The first wait of a pod that did not fit.
    pub initial_backoff: Duration,
    /// The longest wait.
    pub max_backoff: Duration,
    /// Bindings that may be in flight at once.
    pub parallel_bindings: usize,
    /// Added to the turn's number to break ties between equal nodes.
    pub seed: u64,
    /// Those that are asked, in this order; see [`Config::extend`].
    pub extenders: Vec<Extender>,
}

impl Config {
    /// Has extenders asked: the ignorable ones last. No profile looks at the resources of `ignored`,
    /// whatever its arguments say, unless it is empty.
    pub fn extend(&mut self, mut extenders: Vec<Extender>, ignored: BTreeSet<String>) {
        extenders.sort_by_key(|e| e.ignorable);
        self.extenders = extenders;
        if !ignored.is_empty() {
            self.profiles.iter_mut().for_each(|p| p.ignored_resources = ignored.clone());
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            profiles: vec![Profile::default()],
            percentage_of_nodes_to_score: 0,
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(10),
            parallel_bindings: 256,
            seed: 0,
            extenders: Vec::new(),
        }
    }
}

/// Where plug-ins take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Point {
    PreEnqueue,
    QueueSort,
    PreFilter,
    Filter,
    PostFilter,
    PreScore,
    Score,
    Reserve,
    Permit,
    PreBind,
    Bind,
    PostBind,
}

/// The plug-ins that are on by default, with the weights of their scores.
pub const DEFAULT_PLUGINS: &[(&str, i64)] = &[
    ("SchedulingGates", 0),
    ("PrioritySort", 0),
    ("NodeUnschedulable", 0),
    ("NodeName", 0),
    ("TaintToleration", 3),
    ("NodeAffinity", 2),
    ("NodePorts", 0),
    ("NodeResourcesFit", 1),
    ("VolumeRestrictions", 0),
    ("NodeVolumeLimits", 0),
    ("VolumeBinding", 0),
    ("VolumeZone", 0),
    ("PodTopologySpread", 2),
    ("InterPodAffinity", 2),
    ("DynamicResources", 2),
    ("DefaultPreemption", 0),
    ("NodeResourcesBalancedAllocation", 1),
    ("ImageLocality", 1),
    ("DefaultBinder", 0),
    ("NodeDeclaredFeatures", 0),
];

/// How nodes are scored by what is free on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Strategy {
    LeastAllocated,
    MostAllocated,
    /// Points of utilization in percent and score from 0 to 10, by rising utilization.
    RequestedToCapacityRatio(Vec<(i64, i64)>),
}

/// Constraints for pods that have none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefaultSpread {
    /// Over hosts and zones, as a preference.
    System,
    /// These; their selectors are worked out for each pod.
    List(Vec<Spread>),
}

/// One scheduler's settings.
#[derive(Debug, Clone)]
pub struct Profile {
    /// The `schedulerName` of its pods.
    pub name: String,
    /// Overrides [`Config::percentage_of_nodes_to_score`].
    pub percentage_of_nodes_to_score: Option<u32>,
    /// Plug-ins that are off, by point.
    off: BTreeSet<(Point, String)>,
    /// Plug-ins that are on, with their weights.
    weights: BTreeMap<String, i64>,
    pub strategy: Strategy,
    /// Resources that NodeResourcesFit scores, with their weights.
    pub fit_resources: Vec<(String, i64)>,
    /// Extended resources that NodeResourcesFit does not look at.
    pub ignored_resources: BTreeSet<String>,
    /// Groups of such, as `example.com`.
    pub ignored_groups: BTreeSet<String>,
    /// Resources that NodeResourcesBalancedAllocation scores.
    pub balanced_resources: Vec<String>,
    /// What a required affinity of other pods to this one is worth, 0 to 100.
    pub hard_pod_affinity_weight: i64,
    pub ignore_preferred_terms_of_existing_pods: bool,
    pub default_spread: DefaultSpread,
    /// Node affinity that all pods have besides their own: required terms, of which one must match.
    pub added_affinity: Option<Vec<NodeTerm>>,
    /// The same, preferred, with weights.
    pub added_preference: Vec<(i64, NodeTerm)>,
    /// How many of the nodes where preemption may help are tried, in percent.
    pub min_candidate_nodes_percentage: usize,
    /// The same as a number.
    pub min_candidate_nodes_absolute: usize,
    /// How long VolumeBinding waits for volumes.
    pub bind_timeout: Duration,
    /// How long DynamicResources may look for devices on one node; zero is without bound.
    pub device_filter_timeout: Duration,
    /// How long it waits until devices are ready.
    pub device_bind_timeout: Duration,
}

impl Default for Profile {
    fn default() -> Profile {
        Profile::named(DEFAULT_NAME)
    }
}

impl Profile {
    /// The default profile under a name.
    pub fn named(name: impl Into<String>) -> Profile {
        Profile {
            name: name.into(),
            percentage_of_nodes_to_score: None,
            off: BTreeSet::new(),
            weights: DEFAULT_PLUGINS.iter().map(|(n, w)| (n.to_string(), *w)).collect(),
            strategy: Strategy::LeastAllocated,
            fit_resources: vec![("cpu".into(), 1), ("memory".into(), 1)],
            ignored_resources: BTreeSet::new(),
            ignored_groups: BTreeSet::new(),
            balanced_resources: vec!["cpu".into(), "memory".into()],
            hard_pod_affinity_weight: 1,
            ignore_preferred_terms_of_existing_pods: false,
            default_spread: DefaultSpread::System,
            added_affinity: None,
            added_preference: Vec::new(),
            min_candidate_nodes_percentage: 10,
            min_candidate_nodes_absolute: 100,
            bind_timeout: Duration::from_secs(600),
            device_filter_timeout: Duration::from_secs(10),
            device_bind_timeout: Duration::from_secs(600),
        }
    }

    /// Turns a plug-in off at a point, or everywhere (`MultiPoint`); `*` means all.
    pub fn disable(&mut self, point: Option<Point>, plugin: &str) {
        let names: Vec<String> = match plugin {
            "*" => DEFAULT_PLUGINS.iter().map(|(n, _)| n.to_string()).collect(),
            name => vec![name.to_string()],
        };
        for name in names {
            match point {
                Some(point) => {
                    self.off.insert((point, name));
                }
                None => {
                    self.weights.remove(&name);
                }
            }
        }
    }

    /// Turns a plug-in on, at a point or everywhere. A weight other than 0 replaces the default one.
    pub fn enable(&mut self, point: Option<Point>, plugin: &str, weight: i64) {
        let usual = DEFAULT_PLUGINS.iter().find(|(n, _)| *n == plugin).map_or(0, |(_, w)| *w);
        let own = self.weights.entry(plugin.to_string()).or_insert(usual);
        if weight != 0 {
            *own = weight;
        }
        match point {
            Some(point) => {
                self.off.remove(&(point, plugin.to_string()));
            }
            None => self.off.retain(|(_, name)| name != plugin),
        }
    }

    /// Whether a plug-in takes part at a point.
    pub fn has(&self, point: Point, plugin: &str) -> bool {
        // A filter without what is worked out before it cannot do its work.
        let before = match point {
            Point::Filter => Some(Point::PreFilter),
            Point::Score => Some(Point::PreScore),
            _ => None,
        };
        let off = |point| !self.off.is_empty() && self.off.contains(&(point, plugin.to_string()));
        self.weights.contains_key(plugin) && !off(point) && !before.is_some_and(off)
    }

    /// The weight of a plug-in's score; 0 when it has none.
    pub fn weight(&self, plugin: &str) -> i64 {
        if self.has(Point::Score, plugin) { self.weights.get(plugin).copied().unwrap_or(0) } else { 0 }
    }

    /// Reads topology spread constraints as the API writes them, for [`DefaultSpread::List`].
    pub fn spread_list(list: serde_json::Value) -> Result<DefaultSpread, serde_json::Error> {
        let list: Vec<RawSpread> = serde_json::from_value(list)?;
        Ok(DefaultSpread::List(list.into_iter().map(|s| s.resolve(&Labels::default())).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_turned_off_and_on() {
        let mut profile = Profile::default();
        assert!(profile.has(Point::Filter, "NodePorts"));
        profile.disable(Some(Point::Score), "ImageLocality");
        profile.disable(None, "InterPodAffinity");
        assert_eq!((profile.weight("ImageLocality"), profile.weight("InterPodAffinity"), profile.weight("TaintToleration")), (0, 0, 3));
        assert!(!profile.has(Point::Filter, "InterPodAffinity"));
        profile.enable(None, "InterPodAffinity", 7);
        assert_eq!(profile.weight("InterPodAffinity"), 7);
        profile.disable(Some(Point::PreFilter), "NodePorts");
        assert!(!profile.has(Point::Filter, "NodePorts"));
        profile.disable(None, "*");
        assert!(!profile.has(Point::PostFilter, "DefaultPreemption"));
    }
}
