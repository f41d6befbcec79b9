//! The decision: which node a pod goes to, or why it goes to none and whether preemption would help.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::cluster::{Cluster, NodeIx};
use crate::config::{Config, Point, Profile};
use crate::filters::Cycle;
use crate::plugin::{Plugin, Rejection};
use crate::pod::PodInfo;
use crate::preempt::{Budget, Victims, preempt};

/// One node's rejection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReasons {
    pub node: String,
    pub rejection: Rejection,
}

/// What comes of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It goes to this node.
    Bind(String),
    /// It fits nowhere as things are.
    Unschedulable(Box<Failure>),
}

/// Why a pod fits nowhere.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Failure {
    /// In upstream's words.
    pub message: String,
    /// What each node that was looked at says.
    pub nodes: Vec<NodeReasons>,
    /// Plug-ins that rejected it.
    pub plugins: BTreeSet<&'static str>,
    /// Pods whose removal makes room for it on a node.
    pub preemption: Option<Victims>,
    /// It is no longer nominated to the node that it was.
    pub clear_nomination: bool,
}

/// What a decision needs besides the cluster and the pod.
pub struct Turn<'a> {
    pub config: &'a Config,
    /// Number of the profile in the configuration.
    pub profile: usize,
    pub plugins: &'a [Arc<dyn Plugin>],
    pub budgets: &'a [Budget],
    /// Where in the order of nodes to begin.
    pub start: usize,
    /// Picks among equal nodes.
    pub seed: u64,
    /// Whether to keep what each node says, beyond the message.
    pub explain: bool,
}

/// A decision, and where the next one begins.
pub struct Outcome {
    pub decision: Decision,
    pub start: usize,
}

/// Fewer nodes than this are always all looked at.
const FEW_NODES: usize = 100;

/// How many fitting nodes are enough among `all`.
pub(crate) fn enough(all: usize, percentage: u32) -> usize {
    if all < FEW_NODES {
        return all;
    }
    let percentage = match percentage {
        0 => 50usize.saturating_sub(all / 125).max(5),
        percentage => percentage as usize,
    };
    (all * percentage / 100).clamp(FEW_NODES.min(all), all)
}

fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Decides for one pod. The same cluster, pod and turn give the same answer.
pub fn decide(cluster: &mut Cluster, pod: &PodInfo, turn: &Turn<'_>) -> Outcome {
    let profile = &turn.config.profiles[turn.profile];
    let all = cluster.order().len();
    if all == 0 {
        let message = "no nodes available to schedule pods".into();
        return Outcome { decision: failed(Failure { message, clear_nomination: true, ..Failure::default() }), start: 0 };
    }
    let resolved = cluster.resolve(&pod.shape, profile, turn.profile);
    let cluster = &*cluster;
    let (cycle, whole) = Cycle::new(cluster, profile, turn.plugins, pod, resolved);
    if let Some(rejection) = whole {
        return Outcome { decision: failed_whole(&cycle, rejection, turn, all), start: turn.start };
    }
    if let Some(node) = pod.nominated.as_deref().and_then(|n| cluster.ix(n))
        && cycle.filter(node).is_ok()
    {
        return Outcome { decision: Decision::Bind(cluster.at(node).name().into()), start: turn.start };
    }
    let (only, only_by) = restricted(&cycle);
    let wanted = enough(all, profile.percentage_of_nodes_to_score.unwrap_or(turn.config.percentage_of_nodes_to_score));
    let order = cluster.known_order();
    let start = turn.start % all;
    let turning;
    let candidates: &mut dyn Iterator<Item = NodeIx> = match &only {
        Some(only) => {
            turning = only.clone();
            &mut turning.into_iter()
        }
        None => &mut order[start..].iter().chain(&order[..start]).copied(),
    };
    let (mut fitting, mut rejected) = (Vec::with_capacity(wanted), Vec::new());
    for node in candidates {
        match cycle.filter(node) {
            Ok(()) => {
                fitting.push(node);
                if fitting.len() >= wanted {
                    break;
                }
            }
            Err(rejection) => rejected.push((node, rejection)),
        }
    }
    let next = (start + fitting.len() + rejected.len()) % all;
    let decision = match fitting[..] {
        [] => unschedulable(&cycle, rejected, only_by, turn, all),
        [one] => Decision::Bind(cluster.at(one).name().into()),
        _ => {
            let scores = cycle.score(&fitting, all);
            let best = scores.iter().max().copied().unwrap_or(0);
            let ties: Vec<usize> = (0..scores.len()).filter(|i| scores[*i] == best).collect();
            let pick = ties[(mix(turn.seed) % ties.len() as u64) as usize];
            Decision::Bind(cluster.at(fitting[pick]).name().into())
        }
    };
    Outcome { decision, start: next }
}

fn failed(failure: Failure) -> Decision {
    Decision::Unschedulable(Box::new(failure))
}

/// The only nodes that can do, when a plug-in knows them beforehand, and which plug-ins those are.
fn restricted(cycle: &Cycle<'_>) -> (Option<Vec<NodeIx>>, BTreeSet<&'static str>) {
    let (mut only, mut by) = (None::<Vec<NodeIx>>, BTreeSet::new());
    let mut restrict = |plugin, names: Vec<NodeIx>| {
        by.insert(plugin);
        only = Some(match only.take() {
            None => names,
            Some(before) => before.into_iter().filter(|n| names.contains(n)).collect(),
        });
    };
    if cycle.profile.has(Point::Filter, "NodeAffinity")
        && let Some(names) = cycle.pod.shape.rule.names()
    {
        restrict("NodeAffinity", names.into_iter().filter_map(|n| cycle.cluster.ix(n)).collect());
    }
    for (plugin, check) in &cycle.checks {
        if let Some(names) = check.only() {
            restrict(plugin, names.iter().filter_map(|n| cycle.cluster.ix(n)).collect());
        }
    }
    (only, by)
}

/// PreFilter has refused the pod as a whole.
fn failed_whole(cycle: &Cycle<'_>, rejection: Rejection, turn: &Turn<'_>, all: usize) -> Decision {
    let said = rejection.reasons(cycle.pod).join(", ");
    let nodes: Vec<(NodeIx, Rejection)> = cycle.cluster.known_order().iter().map(|n| (*n, rejection.clone())).collect();
    let (preemption, after, clear_nomination) = try_preemption(cycle, &nodes, turn, all);
    let plugins = BTreeSet::from([rejection.plugin]);
    failed(Failure { message: format!("0/{all} nodes are available: {said}.{after}"), nodes: Vec::new(), plugins, preemption, clear_nomination })
}

fn unschedulable(cycle: &Cycle<'_>, rejected: Vec<(NodeIx, Rejection)>, only_by: BTreeSet<&'static str>, turn: &Turn<'_>, all: usize) -> Decision {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut same: Vec<(&Rejection, usize)> = Vec::new();
    for (_, rejection) in &rejected {
        match same.iter_mut().find(|(known, _)| *known == rejection) {
            Some((_, count)) => *count += 1,
            None => same.push((rejection, 1)),
        }
    }
    for (rejection, count) in &same {
        rejection.reasons(cycle.pod).into_iter().for_each(|r| *reasons.entry(r).or_default() += count);
    }
    let mut plugins: BTreeSet<&'static str> = same.iter().map(|(r, _)| r.plugin).collect();
    if rejected.len() < all && !only_by.is_empty() {
        let names: Vec<&str> = only_by.iter().copied().collect();
        *reasons.entry(format!("node(s) didn't satisfy plugin(s) [{}]", names.join(" "))).or_default() += all - rejected.len();
        plugins.extend(only_by);
    }
    let (preemption, after, clear_nomination) = try_preemption(cycle, &rejected, turn, all);
    let message = format!("0/{all} nodes are available: {}.{after}", histogram(&reasons));
    let nodes = if turn.explain {
        rejected.into_iter().map(|(n, rejection)| NodeReasons { node: cycle.cluster.at(n).name().into(), rejection }).collect()
    } else {
        Vec::new()
    };
    failed(Failure { message, nodes, plugins, preemption, clear_nomination })
}

pub(crate) fn histogram(reasons: &BTreeMap<String, usize>) -> String {
    let mut texts: Vec<String> = reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    texts.sort();
    texts.join(", ")
}

/// Tries preemption; answers its victims, or what is to be said of it in the message, and whether the
/// pod loses its nomination.
fn try_preemption(cycle: &Cycle<'_>, rejected: &[(NodeIx, Rejection)], turn: &Turn<'_>, all: usize) -> (Option<Victims>, String, bool) {
    let (mut said, mut loses) = (Vec::new(), true);
    // Upstream's DynamicResources says so of every pod that has no claims.
    if after_filters(cycle.profile, "DynamicResources") {
        said.push("no new claims to deallocate".to_string());
    }
    if after_filters(cycle.profile, "DefaultPreemption") {
        match preempt(cycle, rejected, turn.budgets, mix(turn.seed), all) {
            Ok(victims) => return (Some(victims), String::new(), false),
            Err(helpless) => {
                loses = helpless.loses_nomination;
                said.push(format!("preemption: {}", helpless.message));
            }
        }
    }
    (None, if said.is_empty() { String::new() } else { format!(" {}", said.join(", ")) }, loses)
}

fn after_filters(profile: &Profile, plugin: &str) -> bool {
    profile.has(Point::PostFilter, plugin)
}
