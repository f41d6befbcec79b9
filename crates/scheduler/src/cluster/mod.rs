//! The cluster as the scheduler sees it: nodes with the pods on them, and everything that decisions
//! look up instead of working it out each time. It changes pod by pod and node by node, and is always
//! what a new one made from the same objects would be.

mod counters;
mod resolve;
mod topology;
mod verdicts;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

pub(crate) use counters::{Carried, Carrier, ClassKey, Counter, Who};
use counters::{Class, CounterKey, Where};
pub(crate) use resolve::{Resolved, SpreadUse};
pub(crate) use topology::{EACH_NODE, NONE, TopologyIx};
use topology::Topologies;
pub(crate) use verdicts::Tolerance;
use verdicts::Answers;

use crate::node::NodeView;
use crate::pod::{HostPort, PodInfo, Shape, Toleration};
use crate::requests::Resources;
use crate::selector::{Labels, NodeRule, NodeTerm, Selector};

/// A node's number, stable while it lives.
pub type NodeIx = u32;

/// A node and what is on it.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    pub view: Arc<NodeView>,
    /// The sum of its pods' requests.
    pub requested: Resources,
    /// Cpu and memory of its pods, with defaults for those that ask for none.
    pub nonzero: (i64, i64),
    pub pods: Vec<Arc<PodInfo>>,
    ports: Vec<HostPort>,
    name: Arc<str>,
    /// The object is there; without it only the pods are known.
    exists: bool,
    pods_allowed: i64,
    /// Classes of its pods, with their numbers.
    classes: Vec<(u32, u32)>,
}

impl NodeInfo {
    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many pods it takes.
    pub fn pods_allowed(&self) -> i64 {
        self.pods_allowed
    }

    /// Host ports that are taken.
    pub fn ports(&self) -> &[HostPort] {
        &self.ports
    }

    fn count(&mut self, pod: &PodInfo, by: i64) {
        let shape = &pod.shape;
        if by > 0 { self.requested.add(&shape.requests) } else { self.requested.subtract(&shape.requests) }
        self.nonzero.0 += by * shape.nonzero.0;
        self.nonzero.1 += by * shape.nonzero.1;
        for port in &shape.ports {
            if by > 0 {
                self.ports.push(port.clone());
            } else if let Some(at) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(at);
            }
        }
    }
}

/// An image that some node has.
#[derive(Default)]
struct Image {
    sizes: HashMap<NodeIx, i64>,
}

/// What gives pods without constraints their selector: services and controllers.
#[derive(Default)]
pub(crate) struct Workloads {
    /// By namespace and name.
    pub services: BTreeMap<(Box<str>, Box<str>), Vec<(String, String)>>,
    /// Selectors of controllers, by namespace, kind and name.
    pub owners: HashMap<(Box<str>, Box<str>, Box<str>), Selector>,
    pub generation: u64,
}

/// See the module.
#[derive(Default)]
pub struct Cluster {
    nodes: Vec<NodeInfo>,
    free: Vec<NodeIx>,
    by_name: HashMap<Arc<str>, NodeIx>,
    /// Pods by uid, with their nodes.
    placed: HashMap<Box<str>, NodeIx>,
    order: Vec<NodeIx>,
    stale_order: bool,
    namespaces: HashMap<Box<str>, Labels>,
    images: HashMap<Box<str>, Image>,
    topologies: Topologies,
    rules: Answers<NodeRule>,
    tolerances: Answers<Vec<Toleration>>,
    preferences: Answers<Vec<(i64, NodeTerm)>>,
    classes: Vec<Class>,
    free_classes: Vec<u32>,
    class_of: HashMap<ClassKey, u32>,
    counters: Vec<Counter>,
    counter_of: HashMap<CounterKey, u32>,
    carriers: Vec<Carrier>,
    carrier_of: HashMap<(Carried, crate::pod::PodTerm), u32>,
    /// Raised when a carrier is added, or a namespace changes.
    carriers_generation: u64,
    resolved: HashMap<(usize, usize), (Arc<Shape>, Arc<Resolved>)>,
    pub(crate) workloads: Workloads,
    /// Pods that are nominated to nodes, by uid.
    pub(crate) nominated: HashMap<Box<str>, Arc<PodInfo>>,
    nominated_on: HashMap<Box<str>, Vec<Arc<PodInfo>>>,
}

/// More cached questions and counts than this are thrown away, all of them, and made again as needed.
const MOST_COUNTERS: usize = 2_000;
const MOST_RESOLVED: usize = 10_000;

impl Cluster {
    /// A cluster of these nodes and pods. Pods that have ended take nothing.
    pub fn new(nodes: impl IntoIterator<Item = Arc<NodeView>>, pods: impl IntoIterator<Item = Arc<PodInfo>>) -> Cluster {
        let mut cluster = Cluster::default();
        nodes.into_iter().for_each(|n| drop(cluster.set_node(n)));
        for pod in pods {
            if let Some(node) = pod.node.clone().filter(|_| !pod.ended) {
                cluster.place(&node, &pod);
            }
        }
        cluster
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.by_name.values().filter(|ix| self.nodes[**ix as usize].exists).count()
    }

    /// True when there is no node.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.by_name.get(name).map(|ix| &self.nodes[*ix as usize]).filter(|n| n.exists)
    }

    pub(crate) fn ix(&self, name: &str) -> Option<NodeIx> {
        self.by_name.get(name).copied().filter(|ix| self.nodes[*ix as usize].exists)
    }

    #[inline]
    pub(crate) fn at(&self, node: NodeIx) -> &NodeInfo {
        &self.nodes[node as usize]
    }

    /// The nodes in the order in which they are looked at: the zones take turns.
    pub(crate) fn order(&mut self) -> &[NodeIx] {
        if self.stale_order {
            self.stale_order = false;
            let mut zones: BTreeMap<(String, String), Vec<NodeIx>> = BTreeMap::new();
            let mut names: Vec<(&Arc<str>, NodeIx)> = self.by_name.iter().map(|(n, ix)| (n, *ix)).filter(|(_, ix)| self.nodes[*ix as usize].exists).collect();
            names.sort_unstable();
            for (_, ix) in names {
                let label = |key: &str| self.nodes[ix as usize].view.labels.get(key).unwrap_or_default().to_string();
                zones.entry((label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))).or_default().push(ix);
            }
            let longest = zones.values().map(Vec::len).max().unwrap_or(0);
            self.order = (0..longest).flat_map(|i| zones.values().filter_map(move |z| z.get(i).copied())).collect();
        }
        &self.order
    }

    pub(crate) fn known_order(&self) -> &[NodeIx] {
        &self.order
    }

    fn entry(&mut self, name: &str) -> NodeIx {
        if let Some(ix) = self.by_name.get(name) {
            return *ix;
        }
        let name: Arc<str> = name.into();
        let info = NodeInfo { name: name.clone(), ..NodeInfo::default() };
        let ix = match self.free.pop() {
            Some(ix) => {
                self.nodes[ix as usize] = info;
                ix
            }
            None => {
                self.nodes.push(info);
                self.nodes.len() as NodeIx - 1
            }
        };
        self.by_name.insert(name, ix);
        ix
    }

    /// A node came or changed. Answers what it was before.
    pub fn set_node(&mut self, view: Arc<NodeView>) -> Option<Arc<NodeView>> {
        let ix = self.entry(view.name());
        let old = Some(self.nodes[ix as usize].view.clone()).filter(|_| self.nodes[ix as usize].exists);
        let relabelled = old.as_ref().is_none_or(|o| o.labels != view.labels || o.taints != view.taints || o.unschedulable != view.unschedulable);
        if relabelled {
            self.withdraw(ix);
        }
        if old.as_ref().is_none_or(|o| o.images != view.images) {
            self.set_images(ix, old.as_deref(), Some(&view));
        }
        let info = &mut self.nodes[ix as usize];
        info.exists = true;
        info.pods_allowed = view.allocatable.get("pods");
        info.view = view.clone();
        if relabelled {
            self.refresh(ix, &view);
            self.contribute(ix);
            self.stale_order = true;
        }
        old
    }

    /// A node went. Its pods stay known until they go themselves.
    pub fn remove_node(&mut self, name: &str) -> Option<Arc<NodeView>> {
        let ix = self.ix(name)?;
        self.withdraw(ix);
        let old = std::mem::take(&mut self.nodes[ix as usize].view);
        self.set_images(ix, Some(&old), None);
        self.nodes[ix as usize].exists = false;
        self.nodes[ix as usize].pods_allowed = 0;
        self.refresh(ix, &NodeView::default());
        self.contribute(ix);
        self.stale_order = true;
        self.forget_if_empty(ix);
        Some(old)
    }

    fn forget_if_empty(&mut self, ix: NodeIx) {
        let info = &self.nodes[ix as usize];
        if !info.exists && info.pods.is_empty() {
            self.by_name.remove(&info.name.clone());
            self.free.push(ix);
        }
    }

    fn set_images(&mut self, ix: NodeIx, old: Option<&NodeView>, new: Option<&NodeView>) {
        for (name, _) in old.into_iter().flat_map(|v| &v.images) {
            if let Some(image) = self.images.get_mut(name) {
                image.sizes.remove(&ix);
                if image.sizes.is_empty() {
                    self.images.remove(name);
                }
            }
        }
        for (name, size) in new.into_iter().flat_map(|v| &v.images) {
            self.images.entry(name.clone()).or_default().sizes.insert(ix, *size);
        }
    }

    fn refresh(&mut self, ix: NodeIx, view: &NodeView) {
        self.topologies.set(ix, &view.labels);
        self.rules.refresh(ix, view);
        self.tolerances.refresh(ix, view);
        self.preferences.refresh(ix, view);
    }

    /// The value under which a counter counts a node, if it does.
    fn counted(&self, key: &CounterKey, node: NodeIx) -> u32 {
        let Where { all, rule, tolerations } = &key.place;
        let eligible = self.nodes[node as usize].exists
            && all.iter().all(|t| self.topologies.value(*t, node) != NONE)
            && rule.is_none_or(|r| self.rules.get(r, node))
            && tolerations.is_none_or(|t| self.tolerances.get(t, node).hard);
        if eligible { self.topologies.value(key.topology, node) } else { NONE }
    }

    fn withdraw(&mut self, node: NodeIx) {
        self.apply_node(node, -1);
    }

    fn contribute(&mut self, node: NodeIx) {
        self.apply_node(node, 1);
    }

    fn apply_node(&mut self, node: NodeIx, by: i32) {
        for ix in 0..self.counters.len() {
            let value = self.counted(&self.counters[ix].key, node);
            let classes = &self.nodes[node as usize].classes;
            let pods: u32 = classes.iter().filter(|(c, _)| self.classes[*c as usize].counters.contains(&(ix as u32))).map(|(_, n)| n).sum();
            self.counters[ix].node(value, by);
            self.counters[ix].pods(value, by * pods as i32);
        }
        let pods: Vec<Arc<PodInfo>> = self.nodes[node as usize].pods.iter().filter(|p| !p.shape.affinity.is_empty()).cloned().collect();
        for pod in pods {
            for (kind, term) in carried(&pod.shape) {
                if let Some(ix) = self.carrier_of.get(&(kind, term.clone())).copied() {
                    let value = self.topologies.value(self.carriers[ix as usize].topology, node);
                    self.carriers[ix as usize].place(value, by);
                }
            }
        }
    }

    /// A pod is on a node, or is taken as being there. Whatever was known of it before is replaced.
    pub fn place(&mut self, node: &str, pod: &Arc<PodInfo>) {
        self.remove_pod(pod.uid());
        let ix = self.entry(node);
        self.placed.insert(pod.uid().into(), ix);
        let class = self.class(pod);
        let info = &mut self.nodes[ix as usize];
        info.count(pod, 1);
        info.pods.push(pod.clone());
        match info.classes.iter_mut().find(|(c, _)| *c == class) {
            Some((_, n)) => *n += 1,
            None => info.classes.push((class, 1)),
        }
        self.count_class(class, ix, 1);
        self.carry(pod, ix, 1);
    }

    /// A pod is no longer on its node. Answers the node and the pod.
    pub fn remove_pod(&mut self, uid: &str) -> Option<(NodeIx, Arc<PodInfo>)> {
        let ix = self.placed.remove(uid)?;
        let info = &mut self.nodes[ix as usize];
        let at = info.pods.iter().position(|p| p.uid() == uid)?;
        let pod = info.pods.swap_remove(at);
        info.count(&pod, -1);
        let class = self.class(&pod);
        let info = &mut self.nodes[ix as usize];
        if let Some(at) = info.classes.iter().position(|(c, _)| *c == class) {
            info.classes[at].1 -= 1;
            if info.classes[at].1 == 0 {
                info.classes.swap_remove(at);
            }
        }
        self.count_class(class, ix, -1);
        self.carry(&pod, ix, -1);
        self.forget_if_empty(ix);
        Some((ix, pod))
    }

    /// The pod as it is placed.
    pub fn pod(&self, uid: &str) -> Option<(&NodeInfo, &Arc<PodInfo>)> {
        let info = &self.nodes[*self.placed.get(uid)? as usize];
        Some((info, info.pods.iter().find(|p| p.uid() == uid)?))
    }

    fn class(&mut self, pod: &PodInfo) -> u32 {
        let key = ClassKey { namespace: pod.shape.namespace.clone(), labels: pod.shape.labels.clone(), terminating: pod.terminating };
        if let Some(known) = self.class_of.get(&key) {
            return *known;
        }
        let none = Labels::default();
        let labels = self.namespaces.get(&key.namespace).unwrap_or(&none);
        let counters = self.counters.iter().enumerate().filter(|(_, c)| c.key.who.counts(&key, labels)).map(|(ix, _)| ix as u32).collect();
        let class = Class { key: key.clone(), pods: 0, nodes: HashMap::new(), counters };
        let ix = match self.free_classes.pop() {
            Some(ix) => {
                self.classes[ix as usize] = class;
                ix
            }
            None => {
                self.classes.push(class);
                self.classes.len() as u32 - 1
            }
        };
        self.class_of.insert(key, ix);
        ix
    }

    fn count_class(&mut self, class: u32, node: NodeIx, by: i32) {
        for at in 0..self.classes[class as usize].counters.len() {
            let counter = self.classes[class as usize].counters[at];
            let value = self.counted(&self.counters[counter as usize].key, node);
            self.counters[counter as usize].pods(value, by);
        }
        let class_info = &mut self.classes[class as usize];
        class_info.pods = class_info.pods.saturating_add_signed(by);
        let here = class_info.nodes.entry(node).or_insert(0);
        *here = here.saturating_add_signed(by);
        if *here == 0 {
            class_info.nodes.remove(&node);
        }
        if class_info.pods == 0 {
            self.class_of.remove(&class_info.key);
            class_info.counters.clear();
            self.free_classes.push(class);
        }
    }

    fn carry(&mut self, pod: &PodInfo, node: NodeIx, by: i32) {
        if pod.shape.affinity.is_empty() {
            return;
        }
        for (kind, term) in carried(&pod.shape) {
            let key = (kind, term.clone());
            let ix = match self.carrier_of.get(&key) {
                Some(known) => *known,
                None => {
                    let topology = self.topology(&term.topology);
                    let ix = self.carriers.len() as u32;
                    self.carriers.push(Carrier { kind: key.0.clone(), term: term.clone(), topology, counts: Vec::new(), pods: 0 });
                    self.carrier_of.insert(key, ix);
                    self.carriers_generation += 1;
                    ix
                }
            };
            let value = self.topologies.value(self.carriers[ix as usize].topology, node);
            self.carriers[ix as usize].add(value, by);
        }
    }

    pub(crate) fn topology(&mut self, key: &str) -> TopologyIx {
        let Cluster { topologies, nodes, .. } = self;
        topologies.of_key(key, nodes.iter().enumerate().map(|(ix, n)| (ix as NodeIx, &n.view.labels)))
    }

    #[inline]
    pub(crate) fn value(&self, topology: TopologyIx, node: NodeIx) -> u32 {
        self.topologies.value(topology, node)
    }

    fn counter(&mut self, key: CounterKey) -> u32 {
        if let Some(known) = self.counter_of.get(&key) {
            return *known;
        }
        let ix = self.counters.len() as u32;
        let mut counter = Counter::new(key.clone());
        for node in 0..self.nodes.len() as NodeIx {
            counter.node(self.counted(&key, node), 1);
        }
        let none = Labels::default();
        let mut counting = Vec::new();
        for class in self.class_of.values() {
            let info = &self.classes[*class as usize];
            if key.who.counts(&info.key, self.namespaces.get(&info.key.namespace).unwrap_or(&none)) {
                info.nodes.iter().for_each(|(node, n)| counter.pods(self.counted(&key, *node), *n as i32));
                counting.push(*class);
            }
        }
        counting.into_iter().for_each(|c| self.classes[c as usize].counters.push(ix));
        self.counters.push(counter);
        self.counter_of.insert(key, ix);
        ix
    }

    /// Whether a counter counts a node's pods.
    pub(crate) fn counts_node(&self, counter: u32, node: NodeIx) -> bool {
        self.counted(&self.counters[counter as usize].key, node) != NONE
    }

    #[inline]
    pub(crate) fn counter_at(&self, ix: u32) -> &Counter {
        &self.counters[ix as usize]
    }

    #[inline]
    pub(crate) fn carrier_at(&self, ix: u32) -> &Carrier {
        &self.carriers[ix as usize]
    }

    #[inline]
    pub(crate) fn allowed(&self, rule: u32, node: NodeIx) -> bool {
        self.rules.get(rule, node)
    }

    #[inline]
    pub(crate) fn tolerance(&self, tolerations: u32, node: NodeIx) -> Tolerance {
        self.tolerances.get(tolerations, node)
    }

    #[inline]
    pub(crate) fn preference(&self, preference: u32, node: NodeIx) -> i64 {
        self.preferences.get(preference, node)
    }

    /// Size of an image on a node, and how many nodes have it.
    pub(crate) fn image(&self, name: &str) -> Option<(&HashMap<NodeIx, i64>, usize)> {
        self.images.get(name).map(|i| (&i.sizes, i.sizes.len()))
    }

    pub(crate) fn namespace_labels(&self, namespace: &str) -> &Labels {
        static NONE: std::sync::LazyLock<Labels> = std::sync::LazyLock::new(Labels::default);
        self.namespaces.get(namespace).unwrap_or(&NONE)
    }

    /// A namespace's labels; `None` when it is gone.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        let old = match labels.clone() {
            Some(labels) => self.namespaces.insert(name.into(), labels),
            None => self.namespaces.remove(name),
        };
        if old.unwrap_or_default() != labels.unwrap_or_default() {
            self.forget_cached();
        }
    }

    /// Throws away what is made again when needed.
    fn forget_cached(&mut self) {
        self.resolved.clear();
        self.counters.clear();
        self.counter_of.clear();
        self.classes.iter_mut().for_each(|c| c.counters.clear());
        self.rules = Answers::default();
        self.tolerances = Answers::default();
        self.preferences = Answers::default();
        // Carriers that nobody carries any more go too.
        let kept: Vec<Carrier> = std::mem::take(&mut self.carriers).into_iter().filter(|c| c.pods > 0).collect();
        self.carrier_of = kept.iter().enumerate().map(|(ix, c)| ((c.kind.clone(), c.term.clone()), ix as u32)).collect();
        self.carriers = kept;
        self.carriers_generation += 1;
    }

    /// A pod is nominated to a node, is no longer (`None`), or is gone.
    pub fn nominate(&mut self, pod: &Arc<PodInfo>, node: Option<&str>) {
        if let Some(old) = self.nominated.remove(pod.uid()) {
            let from = old.nominated.as_deref().unwrap_or_default();
            if let Some(list) = self.nominated_on.get_mut(from) {
                list.retain(|p| p.uid() != pod.uid());
                if list.is_empty() {
                    self.nominated_on.remove(from);
                }
            }
        }
        if let Some(node) = node {
            let mut own = pod.as_ref().clone();
            own.nominated = Some(node.into());
            let own = Arc::new(own);
            self.nominated.insert(pod.uid().into(), own.clone());
            self.nominated_on.entry(node.into()).or_default().push(own);
        }
    }

    /// Pods that are nominated to a node.
    pub fn nominated_to(&self, node: &str) -> &[Arc<PodInfo>] {
        if self.nominated_on.is_empty() { &[] } else { self.nominated_on.get(node).map_or(&[], Vec::as_slice) }
    }
}

/// The terms that a pod carries for others to heed.
pub(crate) fn carried(shape: &Shape) -> impl Iterator<Item = (Carried, &crate::pod::PodTerm)> {
    let a = &shape.affinity;
    let against = a.required_anti.iter().map(|t| (Carried::Against, t));
    let towards = a.required.iter().map(|t| (Carried::Towards, t));
    against.chain(towards).chain(a.preferred.iter().map(|(weight, t)| (Carried::Prefers(*weight), t)))
}
