//! What a pod's shape means in this cluster: the numbers of the questions, counters and carriers that
//! its decision looks at. Worked out once a shape, and again when something made it stale.

use std::sync::Arc;

use super::{Carried, Cluster, CounterKey, EACH_NODE, MOST_COUNTERS, MOST_RESOLVED, NodeIx, TopologyIx, Where, Who};
use crate::config::{DefaultSpread, Profile};
use crate::pod::{PodTerm, Shape, Spread};
use crate::selector::{NodeRule, Selector};

const HOST: &str = "kubernetes.io/hostname";

/// One topology spread constraint.
#[derive(Debug, Clone)]
pub(crate) struct SpreadUse {
    pub max_skew: i32,
    pub min_domains: i32,
    pub topology: TopologyIx,
    /// Counts by domain, over the nodes that its policies let count.
    pub counter: u32,
    /// Whether the pod itself is one of those counted.
    pub own: bool,
    /// Counts by node, for a constraint over hosts that is scored.
    pub by_node: Option<u32>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    pub tolerations: u32,
    pub rule: Option<u32>,
    pub added_rule: Option<u32>,
    pub preference: Option<u32>,
    /// For each required affinity term its topology, and the pods that all the terms select.
    pub near: Vec<(TopologyIx, u32)>,
    /// Whether the pod's own terms select it.
    pub near_itself: bool,
    pub far: Vec<(TopologyIx, u32)>,
    pub preferred: Vec<(i64, TopologyIx, u32)>,
    /// Carriers whose anti-affinity is against this pod.
    pub against: Vec<u32>,
    /// Carriers that score for or against it.
    pub drawn: Vec<(i64, u32)>,
    pub hard: Vec<SpreadUse>,
    pub soft: Vec<SpreadUse>,
    /// Whether a node without all the soft constraints' labels is not scored.
    pub soft_needs_all: bool,
    carriers_generation: u64,
    workloads_generation: u64,
}

impl Cluster {
    /// Resolves a shape for the profile of this number.
    pub(crate) fn resolve(&mut self, shape: &Arc<Shape>, profile: &Profile, number: usize) -> Arc<Resolved> {
        let key = (Arc::as_ptr(shape) as usize, number);
        if let Some((_, known)) = self.resolved.get(&key)
            && known.carriers_generation == self.carriers_generation
            && known.workloads_generation == self.workloads.generation
        {
            return known.clone();
        }
        if self.counters.len() > MOST_COUNTERS || self.resolved.len() > MOST_RESOLVED || self.rules.len() + self.tolerances.len() > MOST_COUNTERS {
            self.forget_cached();
        }
        let resolved = Arc::new(self.work_out(shape, profile));
        self.resolved.insert(key, (shape.clone(), resolved.clone()));
        resolved
    }

    fn rule(&mut self, rule: &NodeRule) -> u32 {
        let nodes = self.nodes.iter().enumerate().map(|(ix, n)| (ix as NodeIx, n.view.as_ref()));
        self.rules.of(rule, nodes)
    }

    fn work_out(&mut self, shape: &Arc<Shape>, profile: &Profile) -> Resolved {
        let nodes = || self.nodes.iter().enumerate().map(|(ix, n)| (ix as NodeIx, n.view.as_ref()));
        let tolerations = self.tolerances.of(&shape.tolerations, nodes());
        let mut preferences = shape.preferred_nodes.clone();
        preferences.extend(profile.added_preference.iter().cloned());
        let preference = (!preferences.is_empty()).then(|| self.preferences.of(&preferences, nodes()));
        let rule = (!shape.rule.is_empty()).then(|| self.rule(&shape.rule));
        let added_rule = profile.added_affinity.as_ref().map(|terms| self.rule(&NodeRule { selector: Vec::new(), terms: Some(terms.clone()) }));

        let affinity = &shape.affinity;
        let namespace_labels = self.namespace_labels(&shape.namespace).clone();
        let selects = |t: &PodTerm| t.matches(&shape.namespace, &shape.labels, &namespace_labels);
        let near_itself = !affinity.required.is_empty() && affinity.required.iter().all(selects);
        let near = affinity.required.iter().map(|t| self.term(&t.topology, affinity.required.clone())).collect();
        let far = affinity.required_anti.iter().map(|t| self.term(&t.topology, vec![t.clone()])).collect();
        let preferred = affinity.preferred.iter().map(|(weight, t)| {
            let (topology, counter) = self.term(&t.topology, vec![t.clone()]);
            (*weight, topology, counter)
        });
        let preferred: Vec<_> = preferred.collect();

        let (mut against, mut drawn) = (Vec::new(), Vec::new());
        let ignores = profile.ignore_preferred_terms_of_existing_pods && preferred.is_empty();
        for (ix, carrier) in self.carriers.iter().enumerate() {
            if !selects(&carrier.term) {
                continue;
            }
            match carrier.kind {
                Carried::Against => against.push(ix as u32),
                Carried::Towards if profile.hard_pod_affinity_weight > 0 && !ignores => drawn.push((profile.hard_pod_affinity_weight, ix as u32)),
                Carried::Prefers(weight) if !ignores => drawn.push((weight, ix as u32)),
                _ => {}
            }
        }

        let (constraints, soft_needs_all) = self.constraints(shape, profile);
        let group = |hard: bool| constraints.iter().filter(|c| c.hard == hard).cloned().collect::<Vec<Spread>>();
        let hard = self.spread(shape, &group(true), tolerations, true);
        let soft = self.spread(shape, &group(false), tolerations, soft_needs_all);
        Resolved {
            tolerations,
            rule,
            added_rule,
            preference,
            near,
            near_itself,
            far,
            preferred,
            against,
            drawn,
            hard,
            soft,
            soft_needs_all,
            carriers_generation: self.carriers_generation,
            workloads_generation: self.workloads.generation,
        }
    }

    fn term(&mut self, topology: &str, terms: Vec<PodTerm>) -> (TopologyIx, u32) {
        let topology = self.topology(topology);
        let place = Where { all: Vec::new(), rule: None, tolerations: None };
        (topology, self.counter(CounterKey { who: Who::AllOf(terms), place, topology }))
    }

    /// The pod's constraints or, when it has none, the defaults; and whether nodes must have the
    /// labels of all of them to be scored.
    fn constraints(&self, shape: &Shape, profile: &Profile) -> (Vec<Spread>, bool) {
        if !shape.spread.is_empty() {
            return (shape.spread.clone(), true);
        }
        let system = |topology: &str, max_skew| Spread {
            max_skew,
            topology: topology.into(),
            hard: false,
            selector: None,
            min_domains: 1,
            honors_affinity: true,
            honors_taints: false,
        };
        let (mut list, needs_all) = match &profile.default_spread {
            DefaultSpread::System => (vec![system(HOST, 3), system("topology.kubernetes.io/zone", 5)], false),
            DefaultSpread::List(list) => (list.clone(), true),
        };
        let selector = self.default_selector(shape);
        if selector.is_everything() {
            list.clear();
        }
        list.iter_mut().for_each(|c| c.selector = Some(selector.clone()));
        (list, needs_all)
    }

    /// The selector of the services that select a pod, and of its controller.
    fn default_selector(&self, shape: &Shape) -> Selector {
        let mut selector = Selector::default();
        let from = (shape.namespace.clone(), Box::from(""));
        for ((namespace, _), wanted) in self.workloads.services.range(from..) {
            if *namespace != shape.namespace {
                break;
            }
            if wanted.iter().all(|(k, v)| shape.labels.get(k) == Some(v)) {
                wanted.iter().for_each(|(k, v)| selector.require(k, crate::selector::Operator::In, v));
            }
        }
        if let Some(owner) = &shape.owner
            && let Some(own) = self.workloads.owners.get(&(shape.namespace.clone(), owner.kind.clone(), owner.name.clone()))
        {
            selector.0.extend(own.0.iter().cloned());
        }
        selector
    }

    fn spread(&mut self, shape: &Shape, constraints: &[Spread], tolerations: u32, needs_all: bool) -> Vec<SpreadUse> {
        let topologies: Vec<TopologyIx> = constraints.iter().map(|c| self.topology(&c.topology)).collect();
        let all = if needs_all { topologies.clone() } else { Vec::new() };
        let mut list = Vec::new();
        for (c, topology) in constraints.iter().zip(topologies) {
            let rule = (c.honors_affinity && !shape.rule.is_empty()).then(|| self.rule(&shape.rule));
            let place = Where { all: all.clone(), rule, tolerations: c.honors_taints.then_some(tolerations) };
            let who = Who::Spread { namespace: shape.namespace.clone(), selector: c.selector.clone() };
            let by_node = (!c.hard && c.topology.as_ref() == HOST).then(|| {
                let place = Where { all: Vec::new(), rule: None, tolerations: None };
                self.counter(CounterKey { who: who.clone(), place, topology: EACH_NODE })
            });
            list.push(SpreadUse {
                max_skew: c.max_skew,
                min_domains: c.min_domains,
                topology,
                counter: self.counter(CounterKey { who, place, topology }),
                own: c.selector.as_ref().is_some_and(|s| s.matches(&shape.labels)),
                by_node,
            });
        }
        list
    }
}
