//! Topologies: for each label key that somebody asks about, the nodes' values as small numbers.

use std::collections::HashMap;

use super::NodeIx;
use crate::selector::Labels;

/// Which topology.
pub(crate) type TopologyIx = u32;
/// No value: the node lacks the label.
pub(crate) const NONE: u32 = u32::MAX;
/// The topology in which each node is a domain of its own, whatever its labels.
pub(crate) const EACH_NODE: TopologyIx = 0;

pub(crate) struct Topology {
    key: Box<str>,
    values: HashMap<Box<str>, u32>,
    /// By node.
    pub of: Vec<u32>,
}

pub(crate) struct Topologies {
    list: Vec<Topology>,
    by_key: HashMap<Box<str>, TopologyIx>,
}

impl Default for Topologies {
    fn default() -> Topologies {
        let each = Topology { key: "".into(), values: HashMap::new(), of: Vec::new() };
        Topologies { list: vec![each], by_key: HashMap::new() }
    }
}

impl Topologies {
    /// The topology of a label key; `nodes` are all nodes, to fill a new one.
    pub fn of_key<'a>(&mut self, key: &str, nodes: impl Iterator<Item = (NodeIx, &'a Labels)>) -> TopologyIx {
        if let Some(known) = self.by_key.get(key) {
            return *known;
        }
        let ix = self.list.len() as TopologyIx;
        let mut topology = Topology { key: key.into(), values: HashMap::new(), of: Vec::new() };
        nodes.for_each(|(node, labels)| topology.set(node, labels));
        self.list.push(topology);
        self.by_key.insert(key.into(), ix);
        ix
    }

    /// A node came, changed or, with no labels, went.
    pub fn set(&mut self, node: NodeIx, labels: &Labels) {
        let each = &mut self.list[EACH_NODE as usize].of;
        if each.len() <= node as usize {
            each.resize(node as usize + 1, NONE);
        }
        each[node as usize] = node;
        self.list.iter_mut().skip(1).for_each(|t| t.set(node, labels));
    }

    /// The value of a node.
    #[inline]
    pub fn value(&self, topology: TopologyIx, node: NodeIx) -> u32 {
        self.list[topology as usize].of.get(node as usize).copied().unwrap_or(NONE)
    }
}

impl Topology {
    fn set(&mut self, node: NodeIx, labels: &Labels) {
        if self.of.len() <= node as usize {
            self.of.resize(node as usize + 1, NONE);
        }
        let count = self.values.len() as u32;
        self.of[node as usize] = match labels.get(&self.key) {
            None => NONE,
            Some(value) => match self.values.get(value) {
                Some(known) => *known,
                None => *self.values.entry(value.into()).or_insert(count),
            },
        };
    }
}
