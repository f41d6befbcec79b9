//! Which devices a node can reach: slices gathered to pools. A pool counts with the newest generation of
//! its slices, and only when all slices of it are there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::slice::{Counters, Device, Place, Slice};
use crate::selector::Labels;

type ByName = BTreeMap<Box<str>, Arc<Slice>>;

/// All slices, by where they are asked for.
#[derive(Debug, Default)]
pub struct Slices {
    by_name: HashMap<Box<str>, Arc<Slice>>,
    on_node: HashMap<Box<str>, ByName>,
    /// Those that are not of one node, or whose counters other slices use.
    shared: ByName,
    /// By driver and pool.
    by_pool: HashMap<(Box<str>, Box<str>), ByName>,
}

fn node_of(slice: &Slice) -> Option<&str> {
    match &slice.place {
        Place::Node(name) if slice.counters.is_empty() => Some(name),
        _ => None,
    }
}

impl Slices {
    /// Puts a slice in the place of the one of its name.
    pub fn put(&mut self, slice: &Arc<Slice>) {
        self.remove(slice.name());
        let name: Box<str> = slice.name().into();
        match node_of(slice) {
            Some(node) => self.on_node.entry(node.into()).or_default().insert(name.clone(), slice.clone()),
            None => self.shared.insert(name.clone(), slice.clone()),
        };
        self.by_pool.entry((slice.driver.clone(), slice.pool.clone())).or_default().insert(name.clone(), slice.clone());
        self.by_name.insert(name, slice.clone());
    }

    /// Removes the slice of a name.
    pub fn remove(&mut self, name: &str) {
        let Some(old) = self.by_name.remove(name) else { return };
        match node_of(&old) {
            Some(node) => {
                if let Some(list) = self.on_node.get_mut(node) {
                    list.remove(name);
                    if list.is_empty() {
                        self.on_node.remove(node);
                    }
                }
            }
            None => drop(self.shared.remove(name)),
        }
        let key = (old.driver.clone(), old.pool.clone());
        if let Some(list) = self.by_pool.get_mut(&key) {
            list.remove(name);
            if list.is_empty() {
                self.by_pool.remove(&key);
            }
        }
    }

    /// The pools of which a node can reach something, in the order in which devices are tried: by driver
    /// and pool, those last whose devices must get ready first.
    pub fn pools(&self, node: &str, labels: &Labels) -> Vec<Pool<'_>> {
        let mut newest: BTreeMap<(&str, &str), Vec<&Arc<Slice>>> = BTreeMap::new();
        for slice in self.on_node.get(node).into_iter().flatten().chain(&self.shared).map(|(_, s)| s) {
            if !is_relevant(slice, node, labels) {
                continue;
            }
            let known = newest.entry((&slice.driver, &slice.pool)).or_default();
            match known.first().map(|k| k.generation) {
                Some(generation) if slice.generation < generation => continue,
                Some(generation) if slice.generation > generation => known.clear(),
                _ => {}
            }
            known.push(slice);
        }
        let mut pools: Vec<Pool<'_>> = newest.into_iter().filter_map(|((driver, pool), near)| self.pool(driver, pool, near)).collect();
        pools.sort_by_key(|p| p.devices().any(|d| d.binding_conditions.is_some()));
        pools
    }

    /// Builds a pool of its slices that a node can reach; none when they are outdated.
    fn pool<'a>(&'a self, driver: &'a str, pool: &'a str, mut near: Vec<&'a Arc<Slice>>) -> Option<Pool<'a>> {
        let (generation, count) = near.first().map(|s| (s.generation, s.count))?;
        let mut built = Pool { driver, pool, state: State::Ready, near: Vec::new(), far: Vec::new(), counters: HashMap::new() };
        if near.len() as i64 != count {
            // Other slices of the pool are out of this node's reach.
            let all: Vec<&Arc<Slice>> = self.by_pool.get(&(driver.into(), pool.into())).into_iter().flatten().map(|(_, s)| s).collect();
            if all.iter().any(|s| s.generation > generation) {
                return None;
            }
            let current: Vec<&Arc<Slice>> = all.into_iter().filter(|s| s.generation == generation).collect();
            if current.len() as i64 != count {
                built.state = State::Incomplete;
                return Some(built);
            }
            built.far = current.into_iter().filter(|s| !near.iter().any(|n| Arc::ptr_eq(n, s))).collect();
        }
        near.sort_by_key(|s| s.name());
        for slice in near {
            if slice.counters.is_empty() {
                built.near.push(slice);
                continue;
            }
            for (set, counters) in &slice.counters {
                if built.counters.insert(set, counters).is_some() {
                    built.state = State::Invalid(format!("duplicate counter set name {set}"));
                }
            }
        }
        if let Err(why) = built.check() {
            built.state = State::Invalid(why);
        }
        Some(built)
    }
}

fn is_relevant(slice: &Slice, node: &str, labels: &Labels) -> bool {
    match &slice.place {
        // What others share is needed wherever they are.
        _ if !slice.counters.is_empty() => true,
        Place::ByDevice => slice.devices.iter().any(|d| d.place.is_near(node, labels)),
        place => place.is_near(node, labels),
    }
}

/// Whether a pool can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Ready,
    /// Slices are missing.
    Incomplete,
    /// It contradicts itself.
    Invalid(String),
}

/// What a node can reach of a driver's pool.
#[derive(Debug)]
pub struct Pool<'a> {
    pub driver: &'a str,
    pub pool: &'a str,
    pub state: State,
    /// Slices with devices that the node can reach, by name.
    pub near: Vec<&'a Arc<Slice>>,
    /// The pool's other slices, when there are some.
    pub far: Vec<&'a Arc<Slice>>,
    pub counters: HashMap<&'a str, &'a Counters>,
}

impl<'a> Pool<'a> {
    fn devices(&self) -> impl Iterator<Item = &'a Device> {
        self.near.iter().flat_map(|s| &s.devices)
    }

    fn check(&self) -> Result<(), String> {
        let mut names = HashSet::new();
        if let Some(twice) = self.devices().find(|d| !names.insert(d.name.as_ref())) {
            return Err(format!("duplicate device name {}", twice.name));
        }
        for (set, wanted) in self.near.iter().chain(&self.far).flat_map(|s| &s.devices).flat_map(|d| &d.consumes) {
            let Some(counters) = self.counters.get(set.as_ref()) else { return Err(format!("counter set {set} not found")) };
            if let Some((name, _)) = wanted.iter().find(|(name, _)| !counters.iter().any(|(n, _)| n == name)) {
                return Err(format!("counter {name} not found in counter set {set}"));
            }
        }
        Ok(())
    }
}
