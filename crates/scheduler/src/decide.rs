//! The decision: which node a pod goes to, or why it goes to none and whether preemption would help.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::cluster::{Cluster, NodeIx};
use crate::config::{Config, Point, Profile};
use crate::extender::EXTENDER;
use crate::filters::Cycle;
use crate::plugin::{After, Plugin, Rejection, Why};
use crate::pod::PodInfo;
use crate::preempt::{Budget, Helpless, Victims, best, preempt};

/// One node's rejection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReasons {
    pub node: String,
    pub rejection: Rejection,
}

/// What comes of a pod.
#[derive(Debug, Clone)]
pub enum Decision {
    /// It goes to this node.
    Bind(String),
    /// It fits nowhere as things are.
    Unschedulable(Box<Failure>),
    /// It could not be decided on, because something is wrong with what it asks for.
    Failed(String),
}

/// Why a pod fits nowhere.
#[derive(Debug, Clone, Default)]
pub struct Failure {
    /// In upstream's words.
    pub message: String,
    /// What each node that was looked at says.
    pub nodes: Vec<NodeReasons>,
    /// Plug-ins that rejected it.
    pub plugins: BTreeSet<&'static str>,
    /// It was rejected before any node was looked at.
    pub whole: Option<Rejection>,
    /// Pods whose removal makes room for it on a node.
    pub preemption: Option<Victims>,
    /// All choices of such pods that were found, the one above among them.
    pub choices: Vec<Victims>,
    /// It is no longer nominated to the node that it was.
    pub clear_nomination: bool,
    /// What is said of its device claims.
    pub claims: Option<&'static str>,
    /// The device claim that is to be given back, for the pod to get another one.
    pub give_back: Option<String>,
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

/// Nodes that are left for a pod, for others to have a say before one is chosen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Candidates {
    /// Those that do.
    pub nodes: Vec<String>,
    /// Those that do not.
    pub rejected: Vec<(String, Rejection)>,
    /// Plug-ins that knew beforehand that no other nodes can do.
    only_by: BTreeSet<&'static str>,
    /// It is the node that the pod is nominated to; others have not been looked at.
    pub nominated: bool,
    /// Others have left fewer nodes than there were.
    pub refused: bool,
}

/// What the filters leave.
struct Found {
    fitting: Vec<NodeIx>,
    rejected: Vec<(NodeIx, Rejection)>,
    only_by: BTreeSet<&'static str>,
    /// Why the search was given up.
    broken: Option<String>,
}

/// Decides for one pod. The same cluster, pod and turn give the same answer.
pub fn decide(cluster: &mut Cluster, pod: &PodInfo, turn: &Turn<'_>) -> Outcome {
    let Some((cluster, cycle, whole)) = begin(cluster, pod, turn) else { return no_nodes() };
    if let Some(rejection) = whole {
        return Outcome { decision: failed_whole(&cycle, rejection, turn), start: turn.start };
    }
    if let Some(node) = nominated(&cycle) {
        return Outcome { decision: Decision::Bind(cluster.at(node).name().into()), start: turn.start };
    }
    let (found, start) = find(&cycle, turn);
    if let Some(message) = found.broken {
        return Outcome { decision: Decision::Failed(message), start };
    }
    let decision = if found.fitting.is_empty() { unschedulable(&cycle, found, false, turn) } else { choose(&cycle, &found.fitting, &HashMap::new(), turn.seed) };
    Outcome { decision, start }
}

/// The first half of a decision, up to the choice: what the filters leave, or the decision when they
/// leave nothing to be asked about. `heed` says whether the node that the pod is nominated to comes
/// before all others.
pub(crate) fn candidates(cluster: &mut Cluster, pod: &PodInfo, turn: &Turn<'_>, heed: bool) -> (Result<Candidates, Decision>, usize) {
    let Some((cluster, cycle, whole)) = begin(cluster, pod, turn) else {
        let Outcome { decision, start } = no_nodes();
        return (Err(decision), start);
    };
    if let Some(rejection) = whole {
        return (Err(failed_whole(&cycle, rejection, turn)), turn.start);
    }
    let name = |node: NodeIx| cluster.at(node).name().to_string();
    if let Some(node) = nominated(&cycle).filter(|_| heed) {
        return (Ok(Candidates { nodes: vec![name(node)], nominated: true, ..Candidates::default() }), turn.start);
    }
    let (found, start) = find(&cycle, turn);
    if let Some(message) = found.broken {
        return (Err(Decision::Failed(message)), start);
    }
    if found.fitting.is_empty() {
        return (Err(unschedulable(&cycle, found, false, turn)), start);
    }
    let Found { fitting, rejected, only_by, .. } = found;
    let rejected = rejected.into_iter().map(|(n, r)| (name(n), r)).collect();
    (Ok(Candidates { nodes: fitting.into_iter().map(name).collect(), rejected, only_by, ..Candidates::default() }), start)
}

/// The second half, after others have struck out nodes and given scores of their own. `None` when the
/// cluster has changed so that none of the nodes that are left will do any more.
pub(crate) fn conclude(cluster: &mut Cluster, pod: &PodInfo, turn: &Turn<'_>, candidates: Candidates, scores: &HashMap<String, i64>) -> Option<Decision> {
    let Some((cluster, cycle, whole)) = begin(cluster, pod, turn) else { return Some(no_nodes().decision) };
    let fitting: Vec<NodeIx> = candidates.nodes.iter().filter_map(|n| cluster.ix(n)).filter(|n| whole.is_none() && cycle.filter(*n).is_ok()).collect();
    if !fitting.is_empty() {
        let scores = scores.iter().filter_map(|(n, score)| Some((cluster.ix(n)?, *score))).collect();
        return Some(choose(&cycle, &fitting, &scores, turn.seed));
    }
    if !candidates.nodes.is_empty() || whole.is_some() {
        return None;
    }
    let rejected = candidates.rejected.into_iter().filter_map(|(n, r)| Some((cluster.ix(&n)?, r))).collect();
    Some(unschedulable(&cycle, Found { fitting, rejected, only_by: candidates.only_by, broken: None }, candidates.refused, turn))
}

fn no_nodes() -> Outcome {
    let message = "no nodes available to schedule pods".into();
    Outcome { decision: failed(Failure { message, clear_nomination: true, ..Failure::default() }), start: 0 }
}

/// Prepares the decision; there is none to take when there is no node.
fn begin<'a>(cluster: &'a mut Cluster, pod: &'a PodInfo, turn: &Turn<'a>) -> Option<(&'a Cluster, Cycle<'a>, Option<Rejection>)> {
    let profile = &turn.config.profiles[turn.profile];
    if cluster.order().is_empty() {
        return None;
    }
    let resolved = cluster.resolve(&pod.shape, profile, turn.profile);
    let cluster = &*cluster;
    let (cycle, whole) = Cycle::new(cluster, profile, turn.plugins, pod, resolved);
    Some((cluster, cycle, whole))
}

/// The node that the pod is nominated to, when it will do.
fn nominated(cycle: &Cycle<'_>) -> Option<NodeIx> {
    let node = cycle.cluster.ix(cycle.pod.nominated.as_deref()?)?;
    cycle.filter(node).is_ok().then_some(node)
}

/// Runs the filters until enough nodes are found; answers them, and where the next search begins.
fn find(cycle: &Cycle<'_>, turn: &Turn<'_>) -> (Found, usize) {
    let order = cycle.cluster.known_order();
    let all = order.len();
    let (only, only_by) = restricted(cycle);
    let wanted = enough(all, cycle.profile.percentage_of_nodes_to_score.unwrap_or(turn.config.percentage_of_nodes_to_score));
    let start = turn.start % all;
    let turning;
    let candidates: &mut dyn Iterator<Item = NodeIx> = match only {
        Some(only) => {
            turning = only;
            &mut turning.into_iter()
        }
        None => &mut order[start..].iter().chain(&order[..start]).copied(),
    };
    let (mut fitting, mut rejected, mut broken) = (Vec::with_capacity(wanted), Vec::new(), None);
    for node in candidates {
        match cycle.filter(node) {
            Ok(()) => {
                fitting.push(node);
                if fitting.len() >= wanted {
                    break;
                }
            }
            Err(Rejection { plugin, why: Why::Broken(why), .. }) => {
                broken = Some(format!("running {plugin:?} filter plugin: {why}"));
                break;
            }
            Err(rejection) => rejected.push((node, rejection)),
        }
    }
    let next = (start + fitting.len() + rejected.len()) % all;
    (Found { fitting, rejected, only_by, broken }, next)
}

/// The best of nodes that do, `more` being what others give them.
fn choose(cycle: &Cycle<'_>, fitting: &[NodeIx], more: &HashMap<NodeIx, i64>, seed: u64) -> Decision {
    let pick = match fitting {
        [one] => *one,
        _ => {
            let mut scores = cycle.score(fitting, cycle.cluster.known_order().len());
            if !more.is_empty() {
                scores.iter_mut().zip(fitting).for_each(|(score, node)| *score = score.saturating_add(more.get(node).copied().unwrap_or(0)));
            }
            let best = scores.iter().max().copied().unwrap_or(0);
            let ties: Vec<usize> = (0..scores.len()).filter(|i| scores[*i] == best).collect();
            fitting[ties[(mix(seed) % ties.len() as u64) as usize]]
        }
    };
    Decision::Bind(cycle.cluster.at(pick).name().into())
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
fn failed_whole(cycle: &Cycle<'_>, rejection: Rejection, turn: &Turn<'_>) -> Decision {
    if let Why::Broken(why) = &rejection.why {
        return Decision::Failed(format!("running PreFilter plugin {:?}: {why}", rejection.plugin));
    }
    let said = rejection.reasons(cycle.pod).join(", ");
    let order = cycle.cluster.known_order();
    let nodes: Vec<(NodeIx, Rejection)> = order.iter().map(|n| (*n, rejection.clone())).collect();
    let plugins = BTreeSet::from([rejection.plugin]);
    let message = format!("0/{} nodes are available: {said}.", order.len());
    let failure = Failure { message, plugins, whole: Some(rejection), ..Failure::default() };
    failed(try_preemption(cycle, &nodes, turn, failure))
}

fn unschedulable(cycle: &Cycle<'_>, found: Found, refused: bool, turn: &Turn<'_>) -> Decision {
    let Found { rejected, only_by, .. } = found;
    let all = cycle.cluster.known_order().len();
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
    if refused {
        plugins.insert(EXTENDER);
    }
    if rejected.len() < all && !only_by.is_empty() {
        let names: Vec<&str> = only_by.iter().copied().collect();
        *reasons.entry(format!("node(s) didn't satisfy plugin(s) [{}]", names.join(" "))).or_default() += all - rejected.len();
        plugins.extend(only_by);
    }
    // An extender may strike out all nodes without a word.
    let said = if reasons.is_empty() { String::new() } else { format!(" {}.", histogram(&reasons)) };
    let message = format!("0/{all} nodes are available:{said}");
    let mut failure = try_preemption(cycle, &rejected, turn, Failure { message, plugins, ..Failure::default() });
    if turn.explain {
        failure.nodes = rejected.into_iter().map(|(n, rejection)| NodeReasons { node: cycle.cluster.at(n).name().into(), rejection }).collect();
    }
    failed(failure)
}

pub(crate) fn histogram(reasons: &BTreeMap<String, usize>) -> String {
    let mut texts: Vec<String> = reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    texts.sort();
    texts.join(", ")
}

/// Tries preemption, and adds to the failure its victims, or what is to be said of it in the message.
fn try_preemption(cycle: &Cycle<'_>, rejected: &[(NodeIx, Rejection)], turn: &Turn<'_>, mut failure: Failure) -> Failure {
    if after_filters(cycle.profile, "DynamicResources") {
        let check = cycle.checks.iter().find(|(name, _)| *name == "DynamicResources");
        let After { message, give_back } = check.filter(|_| failure.whole.is_none()).map_or(After::NOTHING, |(_, check)| check.after());
        (failure.claims, failure.give_back) = (Some(message), give_back);
    }
    let mut said = Vec::new();
    failure.clear_nomination = true;
    if after_filters(cycle.profile, "DefaultPreemption") {
        match preempt(cycle, rejected, turn.budgets, mix(turn.seed), cycle.cluster.known_order().len()) {
            Ok(choices) => return failure.preempting(Ok(choices)),
            Err(Helpless { message, loses_nomination, broken }) => {
                if broken {
                    return failure.preempting(Err(message));
                }
                failure.clear_nomination = loses_nomination;
                said.push(format!("preemption: {message}"));
            }
        }
    }
    if let Some(claims) = failure.claims {
        said.insert(0, claims.to_string());
    }
    if !said.is_empty() {
        failure.message += &format!(" {}", said.join(", "));
    }
    failure
}

impl Failure {
    /// The failure with preemption's choices, or why preemption came to nothing.
    fn preempting(mut self, choices: Result<Vec<Victims>, String>) -> Failure {
        self.clear_nomination = false;
        match choices {
            Ok(choices) => {
                self.preemption = best(choices.clone());
                self.choices = choices;
                if self.preemption.is_none() {
                    self.message += &self.claims.map_or(String::new(), |claims| format!(" {claims},"));
                    self.message += " preemption: no candidate node for preemption";
                }
            }
            Err(message) => self.message += &format!(" preemption: {message}"),
        }
        self
    }

    /// The failure after others have had a say in what preemption may choose from.
    pub(crate) fn after_choices(mut self, choices: Result<Vec<Victims>, String>) -> Failure {
        self.preemption = None;
        self.choices = Vec::new();
        self.preempting(choices)
    }
}

fn after_filters(profile: &Profile, plugin: &str) -> bool {
    profile.has(Point::PostFilter, plugin)
}
