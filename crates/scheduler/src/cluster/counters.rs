//! Counts of pods by topology domain, kept up to date as pods come and go, so that affinity and
//! spread are looked up instead of counted.
//!
//! Pods of one namespace with the same labels are a class. A counter knows which classes it counts,
//! so a pod that comes raises its class's counters and nothing else.

use super::NodeIx;
use super::topology::{NONE, TopologyIx};
use crate::pod::PodTerm;
use crate::selector::{Labels, Selector};

/// Which pods are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// Those that all of these terms select.
    AllOf(Vec<PodTerm>),
    /// Those of a namespace that a selector selects and that are not being deleted.
    Spread { namespace: Box<str>, selector: Option<Selector> },
}

impl Who {
    pub fn counts(&self, class: &ClassKey, namespace_labels: &Labels) -> bool {
        match self {
            Who::AllOf(terms) => !terms.is_empty() && terms.iter().all(|t| t.matches(&class.namespace, &class.labels, namespace_labels)),
            Who::Spread { namespace, selector } => {
                !class.terminating
                    && class.namespace == *namespace
                    && selector.as_ref().is_some_and(|s| !s.is_everything() && s.matches(&class.labels))
            }
        }
    }
}

/// Which nodes' pods are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Where {
    /// They must have values in these.
    pub all: Vec<TopologyIx>,
    /// Number of a node rule.
    pub rule: Option<u32>,
    /// Number of a list of tolerations.
    pub tolerations: Option<u32>,
}

/// What identifies a counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct CounterKey {
    pub who: Who,
    pub place: Where,
    pub topology: TopologyIx,
}

/// Pods that no counter tells apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ClassKey {
    pub namespace: Box<str>,
    pub labels: Labels,
    pub terminating: bool,
}

/// A class of pods.
pub(crate) struct Class {
    pub key: ClassKey,
    pub pods: u32,
    /// Pods by node.
    pub nodes: std::collections::HashMap<NodeIx, u32>,
    /// Counters that count it.
    pub counters: Vec<u32>,
}

/// Pods by domain.
pub(crate) struct Counter {
    pub key: CounterKey,
    /// By value of the topology.
    pub counts: Vec<i32>,
    /// Nodes that count, by value; a domain is a value with one at least.
    pub nodes: Vec<u32>,
    pub domains: usize,
    pub total: i64,
}

impl Counter {
    pub fn new(key: CounterKey) -> Counter {
        Counter { key, counts: Vec::new(), nodes: Vec::new(), domains: 0, total: 0 }
    }

    /// A node that counts came (1) or went (-1).
    pub fn node(&mut self, value: u32, by: i32) {
        if value == NONE {
            return;
        }
        let at = value as usize;
        if self.nodes.len() <= at {
            self.nodes.resize(at + 1, 0);
        }
        let before = self.nodes[at];
        self.nodes[at] = before.saturating_add_signed(by);
        match (before, self.nodes[at]) {
            (0, 1..) => self.domains += 1,
            (1.., 0) => self.domains -= 1,
            _ => {}
        }
    }

    /// Pods came to a node that counts, or went.
    pub fn pods(&mut self, value: u32, by: i32) {
        if value == NONE || by == 0 {
            return;
        }
        let at = value as usize;
        if self.counts.len() <= at {
            self.counts.resize(at + 1, 0);
        }
        self.counts[at] += by;
        self.total += i64::from(by);
    }

    /// The pods in a domain.
    #[inline]
    pub fn count(&self, value: u32) -> i32 {
        self.counts.get(value as usize).copied().unwrap_or(0)
    }

    /// The fewest pods in any domain; as if `value` had `delta` more.
    pub fn least(&self, value: u32, delta: i32) -> i32 {
        let domains = self.nodes.iter().enumerate().filter(|(_, nodes)| **nodes > 0);
        domains.map(|(at, _)| self.count(at as u32) + if at as u32 == value { delta } else { 0 }).min().unwrap_or(0)
    }
}

/// What pods that are there ask of pods that come.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Carried {
    /// Required anti-affinity.
    Against,
    /// Required affinity.
    Towards,
    /// Preferred, with its weight.
    Prefers(i64),
}

/// One term that pods carry, and where they are.
pub(crate) struct Carrier {
    pub kind: Carried,
    pub term: PodTerm,
    pub topology: TopologyIx,
    pub counts: Vec<i32>,
    /// Pods that carry it, anywhere.
    pub pods: i64,
}

impl Carrier {
    pub fn add(&mut self, value: u32, by: i32) {
        self.pods += i64::from(by);
        self.place(value, by);
    }

    pub fn place(&mut self, value: u32, by: i32) {
        if value == NONE {
            return;
        }
        if self.counts.len() <= value as usize {
            self.counts.resize(value as usize + 1, 0);
        }
        self.counts[value as usize] += by;
    }

    #[inline]
    pub fn count(&self, value: u32) -> i32 {
        self.counts.get(value as usize).copied().unwrap_or(0)
    }
}
