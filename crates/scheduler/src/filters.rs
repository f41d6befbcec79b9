//! The filters: what rules a node out for a pod, in upstream's order and words. [`Cycle`] holds what
//! is worked out once a decision; asking it about a node then costs a few look-ups.

use std::sync::Arc;

use crate::cluster::{Carried, Cluster, NodeIx, NodeInfo, NONE, Resolved, Who, carried};
use crate::config::{Point, Profile};
use crate::plugin::{Check, Plugin, Prepared, Rejection, Site, Why};
use crate::pod::PodInfo;

/// Which of the filters of this crate take part.
#[derive(Debug, Clone, Copy)]
struct On {
    unschedulable: bool,
    name: bool,
    taints: bool,
    affinity: bool,
    ports: bool,
    fit: bool,
    spread: bool,
    pods: bool,
    features: bool,
}

/// One pod's decision.
pub(crate) struct Cycle<'a> {
    pub cluster: &'a Cluster,
    pub profile: &'a Profile,
    pub pod: &'a PodInfo,
    pub resolved: Arc<Resolved>,
    pub checks: Vec<(&'static str, Box<dyn Check + 'a>)>,
    /// How many of the checks come before the filters that look at other pods.
    early: usize,
    on: On,
    /// Fewest pods in a domain, by hard constraint, the number of domains heeded.
    least: Vec<i32>,
    /// Requests by name that NodeResourcesFit does not look at.
    ignored: Vec<bool>,
    /// Requests by name that are seen to by a plug-in on nodes which do not have them.
    provided: Vec<bool>,
    /// No pod anywhere matches the required affinity.
    near_nobody: bool,
}

impl<'a> Cycle<'a> {
    /// Prepares a decision. An error is what PreFilter says of the pod as a whole.
    pub fn new(cluster: &'a Cluster, profile: &'a Profile, plugins: &'a [Arc<dyn Plugin>], pod: &'a PodInfo, resolved: Arc<Resolved>) -> (Cycle<'a>, Option<Rejection>) {
        let filters = |name| profile.has(Point::Filter, name);
        let shape = &pod.shape;
        let on = On {
            unschedulable: filters("NodeUnschedulable"),
            name: filters("NodeName") && pod.node.is_some(),
            taints: filters("TaintToleration"),
            affinity: filters("NodeAffinity"),
            ports: filters("NodePorts") && !shape.ports.is_empty(),
            fit: filters("NodeResourcesFit"),
            spread: filters("PodTopologySpread") && !resolved.hard.is_empty(),
            pods: filters("InterPodAffinity"),
            features: filters("NodeDeclaredFeatures") && !shape.features.is_empty(),
        };
        let (mut checks, mut early, mut rejected) = (Vec::new(), 0, None);
        let provided = match shape.requests.other.as_slice() {
            [] => Vec::new(),
            other => other.iter().map(|(name, _)| plugins.iter().any(|p| filters(p.name()) && p.provides(name))).collect(),
        };
        for plugin in plugins.iter().filter(|p| filters(p.name())) {
            match plugin.prepare(pod, profile) {
                Prepared::Skip => {}
                Prepared::Check(check) => {
                    checks.push((plugin.name(), check));
                    early += usize::from(!plugin.is_late());
                }
                Prepared::Reject(rejection) => {
                    let last = !rejection.resolvable;
                    rejected = Some(rejection);
                    if last {
                        break;
                    }
                }
            }
        }
        let least = resolved.hard.iter().map(|u| cluster.counter_at(u.counter)).zip(&resolved.hard);
        let least = least.map(|(c, u)| if (c.domains as i64) < i64::from(u.min_domains) { 0 } else { c.least(NONE, 0) }).collect();
        let ignored = shape.requests.other.iter().map(|(name, _)| {
            let group = name.split('/').next().unwrap_or_default();
            profile.ignored_resources.contains(name.as_ref()) || (name.contains('/') && profile.ignored_groups.contains(group))
        });
        let near_nobody = resolved.near.iter().all(|(_, c)| cluster.counter_at(*c).total == 0);
        let ignored = ignored.collect();
        (Cycle { cluster, profile, pod, resolved, checks, early, on, least, ignored, provided, near_nobody }, rejected)
    }

    /// Runs the filters over a node until one says no. Where pods of the same or a higher priority are
    /// nominated to the node, it must do with them and without them.
    pub fn filter(&self, node: NodeIx) -> Result<(), Rejection> {
        let info = self.cluster.at(node);
        let nominated = self.cluster.nominated_to(info.name());
        if nominated.is_empty() {
            return self.at(node, Site::plain(info));
        }
        self.with_nominated(node, nominated, &[])
    }

    /// The same without some of the node's pods.
    pub fn without(&self, node: NodeIx, removed: &[Arc<PodInfo>]) -> Result<(), Rejection> {
        let info = self.cluster.at(node);
        self.with_nominated(node, self.cluster.nominated_to(info.name()), removed)
    }

    fn with_nominated(&self, node: NodeIx, nominated: &[Arc<PodInfo>], removed: &[Arc<PodInfo>]) -> Result<(), Rejection> {
        let info = self.cluster.at(node);
        let heeded = |p: &&Arc<PodInfo>| p.shape.priority >= self.pod.shape.priority && p.uid() != self.pod.uid();
        let added: Vec<Arc<PodInfo>> = nominated.iter().filter(heeded).cloned().collect();
        if !added.is_empty() {
            self.at(node, Site { node: info, added: &added, removed })?;
        }
        self.at(node, Site { node: info, added: &[], removed })
    }

    fn at(&self, node: NodeIx, site: Site<'_>) -> Result<(), Rejection> {
        let (cluster, resolved) = (self.cluster, &*self.resolved);
        if self.on.unschedulable || self.on.taints {
            let tolerance = cluster.tolerance(resolved.tolerations, node);
            if self.on.unschedulable && tolerance.cordoned {
                return Err(Rejection::final_("NodeUnschedulable", "node(s) were unschedulable"));
            }
            if self.on.name {
                self.named(site.node)?;
            }
            if self.on.taints && !tolerance.hard {
                return Err(Rejection::final_("TaintToleration", "node(s) had untolerated taint(s)"));
            }
        } else if self.on.name {
            self.named(site.node)?;
        }
        if self.on.affinity {
            if resolved.added_rule.is_some_and(|r| !cluster.allowed(r, node)) {
                return Err(Rejection::final_("NodeAffinity", "node(s) didn't match scheduler-enforced node affinity"));
            }
            if resolved.rule.is_some_and(|r| !cluster.allowed(r, node)) {
                return Err(Rejection::final_("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
            }
        }
        if self.on.ports && self.ports_taken(site) {
            return Err(Rejection::resolvable("NodePorts", "node(s) didn't have free ports for the requested pod ports"));
        }
        if self.on.fit {
            self.fits(site)?;
        }
        for (_, check) in &self.checks[..self.early] {
            check.filter(site)?;
        }
        if self.on.spread {
            self.spread(node, site)?;
        }
        if self.on.pods {
            self.pods(node, site)?;
        }
        for (_, check) in &self.checks[self.early..] {
            check.filter(site)?;
        }
        if self.on.features && !self.pod.shape.features.iter().all(|f| site.node.view.declares(f)) {
            return Err(Rejection::final_("NodeDeclaredFeatures", "node(s) didn't match Pod's required features"));
        }
        Ok(())
    }

    fn named(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if self.pod.node.as_deref() == Some(node.name()) {
            return Ok(());
        }
        Err(Rejection::final_("NodeName", "node(s) didn't match the requested node name"))
    }

    fn ports_taken(&self, site: Site<'_>) -> bool {
        let wanted = &self.pod.shape.ports;
        let taken = |used: &crate::pod::HostPort| wanted.iter().any(|w| w.collides(used));
        if site.is_plain() { site.node.ports().iter().any(taken) } else { site.pods().flat_map(|p| &p.shape.ports).any(taken) }
    }

    fn fits(&self, site: Site<'_>) -> Result<(), Rejection> {
        let (wanted, node) = (&self.pod.shape.requests, site.node);
        let all = &node.view.allocatable;
        let extra = |of: &dyn Fn(&PodInfo) -> i64| -> i64 {
            site.added.iter().map(|p| of(p)).sum::<i64>() - site.removed.iter().map(|p| of(p)).sum::<i64>()
        };
        let plain = site.is_plain();
        let (mut mask, mut resolvable) = (0, true);
        let pods = node.pods.len() as i64 + site.added.len() as i64 - site.removed.len() as i64;
        if pods + 1 > node.pods_allowed() {
            mask |= 1;
        }
        let mut look = |bit: usize, wanted: i64, all: i64, used: i64| {
            if wanted > 0 && wanted > all - used {
                mask |= 1 << bit.min(63);
                resolvable &= wanted <= all;
            }
        };
        let used = |amount: i64, of: &dyn Fn(&PodInfo) -> i64| if plain { amount } else { amount + extra(of) };
        look(1, wanted.cpu, all.cpu, used(node.requested.cpu, &|p| p.shape.requests.cpu));
        look(2, wanted.memory, all.memory, used(node.requested.memory, &|p| p.shape.requests.memory));
        look(3, wanted.ephemeral, all.ephemeral, used(node.requested.ephemeral, &|p| p.shape.requests.ephemeral));
        for (i, (name, amount)) in wanted.other.iter().enumerate() {
            if *amount > 0 && !self.ignored[i] && !(self.provided[i] && all.get(name) <= 0) {
                look(4 + i, *amount, all.get(name), used(node.requested.get(name), &|p| p.shape.requests.get(name)));
            }
        }
        if mask == 0 { Ok(()) } else { Err(Rejection { plugin: "NodeResourcesFit", resolvable, why: Why::Lacking(mask) }) }
    }

    /// By how much a counter's count at a site differs from what it holds.
    fn delta(&self, counter: u32, site: Site<'_>) -> i32 {
        if site.is_plain() {
            return 0;
        }
        let who = &self.cluster.counter_at(counter).key.who;
        let counts = |pod: &&Arc<PodInfo>| counts(who, pod, self.cluster);
        site.added.iter().filter(counts).count() as i32 - site.removed.iter().filter(counts).count() as i32
    }

    fn spread(&self, node: NodeIx, site: Site<'_>) -> Result<(), Rejection> {
        for (i, used) in self.resolved.hard.iter().enumerate() {
            let value = self.cluster.value(used.topology, node);
            if value == NONE {
                return Err(Rejection::final_("PodTopologySpread", "node(s) didn't match pod topology spread constraints (missing required label)"));
            }
            let counter = self.cluster.counter_at(used.counter);
            let delta = if self.cluster.counts_node(used.counter, node) { self.delta(used.counter, site) } else { 0 };
            let least = match delta {
                0 => self.least[i],
                _ if (counter.domains as i64) < i64::from(used.min_domains) => 0,
                _ => counter.least(value, delta),
            };
            if counter.count(value) + delta + i32::from(used.own) - least > used.max_skew {
                return Err(Rejection::resolvable("PodTopologySpread", "node(s) didn't match pod topology spread constraints"));
            }
        }
        Ok(())
    }

    fn pods(&self, node: NodeIx, site: Site<'_>) -> Result<(), Rejection> {
        let (cluster, resolved) = (self.cluster, &*self.resolved);
        let unfit = || Err(Rejection::final_("InterPodAffinity", "node(s) didn't match pod affinity rules"));
        let (mut found, mut more) = (true, 0);
        for (topology, counter) in &resolved.near {
            let value = cluster.value(*topology, node);
            if value == NONE {
                return unfit();
            }
            let delta = self.delta(*counter, site);
            more += delta;
            found &= cluster.counter_at(*counter).count(value) + delta > 0;
        }
        if !found {
            // The first of pods that want to be near their like may go anywhere.
            let nobody = if more == 0 {
                self.near_nobody
            } else {
                resolved.near.iter().all(|(_, c)| cluster.counter_at(*c).total + i64::from(self.delta(*c, site)) == 0)
            };
            if !(nobody && resolved.near_itself) {
                return unfit();
            }
        }
        for (topology, counter) in &resolved.far {
            let value = cluster.value(*topology, node);
            if value != NONE && cluster.counter_at(*counter).count(value) + self.delta(*counter, site) > 0 {
                return Err(Rejection::resolvable("InterPodAffinity", "node(s) didn't match pod anti-affinity rules"));
            }
        }
        let refused = || Err(Rejection::resolvable("InterPodAffinity", "node(s) didn't satisfy existing pods anti-affinity rules"));
        for ix in &resolved.against {
            let carrier = cluster.carrier_at(*ix);
            let value = cluster.value(carrier.topology, node);
            if value == NONE {
                continue;
            }
            // A pod that carries a term twice is counted twice.
            let gone = site.removed.iter().flat_map(|p| &p.shape.affinity.required_anti).filter(|t| **t == carrier.term).count() as i32;
            if carrier.count(value) - gone > 0 {
                return refused();
            }
        }
        for pod in site.added {
            let labels = cluster.namespace_labels(&self.pod.shape.namespace);
            for (kind, term) in carried(&pod.shape) {
                if kind == Carried::Against
                    && term.matches(&self.pod.shape.namespace, &self.pod.shape.labels, labels)
                    && site.node.view.labels.get(&term.topology).is_some()
                {
                    return refused();
                }
            }
        }
        Ok(())
    }
}

/// Whether a counter of these would count a pod.
pub(crate) fn counts(who: &Who, pod: &PodInfo, cluster: &Cluster) -> bool {
    let shape = &pod.shape;
    match who {
        Who::AllOf(terms) => {
            let labels = cluster.namespace_labels(&shape.namespace);
            !terms.is_empty() && terms.iter().all(|t| t.matches(&shape.namespace, &shape.labels, labels))
        }
        Who::Spread { namespace, selector } => {
            !pod.terminating && shape.namespace == *namespace && selector.as_ref().is_some_and(|s| !s.is_everything() && s.matches(&shape.labels))
        }
    }
}
