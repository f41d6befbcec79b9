//! What can be said of nodes without looking at their pods, once for all pods that ask the same:
//! whether a rule allows them, whether their taints are tolerated, how far they are preferred.

use std::collections::HashMap;
use std::hash::Hash;

use super::NodeIx;
use crate::node::{Effect, NodeView};
use crate::pod::Toleration;
use crate::selector::{NodeRule, NodeTerm};

/// A question, asked of each node.
pub(crate) trait Question: Eq + Hash + Clone {
    type Answer: Clone + Default;
    fn ask(&self, node: &NodeView) -> Self::Answer;
}

impl Question for NodeRule {
    type Answer = bool;
    fn ask(&self, node: &NodeView) -> bool {
        self.allows(node.name(), &node.labels)
    }
}

/// How tolerations meet a node's taints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tolerance {
    /// No taint keeps the pod away.
    pub hard: bool,
    /// Taints that would rather keep it away.
    pub soft: u16,
    /// The node takes no new pods, and the pod does not tolerate that.
    pub cordoned: bool,
}

impl Question for Vec<Toleration> {
    type Answer = Tolerance;
    fn ask(&self, node: &NodeView) -> Tolerance {
        let covered = |taint: &_| self.iter().any(|t: &Toleration| t.covers(taint));
        let cordon = crate::node::Taint { key: "node.kubernetes.io/unschedulable".into(), value: "".into(), effect: Effect::NoSchedule };
        Tolerance {
            hard: node.taints.iter().filter(|t| t.is_hard()).all(covered),
            // Only tolerations for this effect or for all count here; `covers` sees to that.
            soft: node.taints.iter().filter(|t| t.effect == Effect::PreferNoSchedule && !covered(t)).count() as u16,
            cordoned: node.unschedulable && !covered(&cordon),
        }
    }
}

impl Question for Vec<(i64, NodeTerm)> {
    type Answer = i64;
    fn ask(&self, node: &NodeView) -> i64 {
        self.iter().filter(|(_, term)| term.matches(node.name(), &node.labels)).map(|(weight, _)| weight).sum()
    }
}

/// Answers to questions, by node.
pub(crate) struct Answers<Q: Question> {
    by_question: HashMap<Q, u32>,
    list: Vec<(Q, Vec<Q::Answer>)>,
}

impl<Q: Question> Default for Answers<Q> {
    fn default() -> Self {
        Answers { by_question: HashMap::new(), list: Vec::new() }
    }
}

impl<Q: Question> Answers<Q> {
    /// The number of a question; a new one is asked of all nodes.
    pub fn of<'a>(&mut self, question: &Q, nodes: impl Iterator<Item = (NodeIx, &'a NodeView)>) -> u32 {
        if let Some(known) = self.by_question.get(question) {
            return *known;
        }
        let ix = self.list.len() as u32;
        self.list.push((question.clone(), Vec::new()));
        self.by_question.insert(question.clone(), ix);
        nodes.for_each(|(node, view)| put(&mut self.list[ix as usize].1, node, question.ask(view)));
        ix
    }

    /// Asks a node again.
    pub fn refresh(&mut self, node: NodeIx, view: &NodeView) {
        self.list.iter_mut().for_each(|(question, answers)| put(answers, node, question.ask(view)));
    }

    /// The answer of a node.
    #[inline]
    pub fn get(&self, question: u32, node: NodeIx) -> Q::Answer {
        self.list[question as usize].1.get(node as usize).cloned().unwrap_or_default()
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }
}

fn put<A: Clone + Default>(list: &mut Vec<A>, at: NodeIx, value: A) {
    if list.len() <= at as usize {
        list.resize(at as usize + 1, A::default());
    }
    list[at as usize] = value;
}
