//! What a pod asks of a node and what a node has, in integers: cpu in thousandths of a core,
//! everything else in whole units (bytes, pods, devices).

use std::collections::BTreeMap;

use api::quantity::Quantity;
use serde::Deserialize;

/// A resource list as the API writes it.
pub(crate) type List = BTreeMap<String, Text>;

/// A quantity as the API writes it: mostly a string.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Text {
    Text(String),
    Number(serde_json::Number),
}

/// Amounts by resource. Absent is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    /// In thousandths of a core.
    pub cpu: i64,
    /// In bytes.
    pub memory: i64,
    /// Local storage, in bytes.
    pub ephemeral: i64,
    /// Everything else by name, ordered.
    pub other: Vec<(Box<str>, i64)>,
}

/// What a container that asks for nothing counts as when nodes are scored.
pub(crate) const DEFAULT_CPU: i64 = 100;
pub(crate) const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

impl Resources {
    pub(crate) fn parse(list: &List) -> Resources {
        let mut all = Resources::default();
        for (name, text) in list {
            let value = match text {
                Text::Text(text) => Quantity::parse(text).ok(),
                Text::Number(number) => Quantity::parse(&number.to_string()).ok(),
            };
            // What is no quantity counts as nothing: the API server refuses it.
            let Some(value) = value else { continue };
            all.set(name, if name == "cpu" { value.milli_value() } else { value.value() });
        }
        all
    }

    /// The amount of a resource.
    pub fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral,
            _ => self.other.binary_search_by(|(n, _)| n.as_ref().cmp(name)).map_or(0, |i| self.other[i].1),
        }
    }

    fn slot(&mut self, name: &str) -> &mut i64 {
        match name {
            "cpu" => &mut self.cpu,
            "memory" => &mut self.memory,
            "ephemeral-storage" => &mut self.ephemeral,
            _ => {
                let at = self.other.binary_search_by(|(n, _)| n.as_ref().cmp(name)).unwrap_or_else(|at| {
                    self.other.insert(at, (name.into(), 0));
                    at
                });
                &mut self.other[at].1
            }
        }
    }

    /// Sets the amount of a resource.
    pub fn set(&mut self, name: &str, amount: i64) {
        *self.slot(name) = amount;
    }

    /// Adds `other`.
    pub fn add(&mut self, other: &Resources) {
        self.scaled(other, 1);
    }

    /// Takes `other` away.
    pub fn subtract(&mut self, other: &Resources) {
        self.scaled(other, -1);
    }

    fn scaled(&mut self, other: &Resources, by: i64) {
        self.cpu += by * other.cpu;
        self.memory += by * other.memory;
        self.ephemeral += by * other.ephemeral;
        other.other.iter().for_each(|(name, amount)| *self.slot(name) += by * amount);
    }

    fn raise(&mut self, other: &Resources) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral = self.ephemeral.max(other.ephemeral);
        for (name, amount) in &other.other {
            let own = self.slot(name);
            *own = (*own).max(*amount);
        }
    }

    /// All resources by name, those of nodes in general first.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        let first = [("cpu", self.cpu), ("memory", self.memory), ("ephemeral-storage", self.ephemeral)];
        first.into_iter().chain(self.other.iter().map(|(n, a)| (n.as_ref(), *a)))
    }
}

/// One container's share in a pod's requests.
pub(crate) struct Asking {
    pub requests: Option<List>,
    /// What the node says it gives the container, when it may differ from what is asked.
    pub given: Option<List>,
    pub sidecar: bool,
}

impl Asking {
    fn amounts(&self, defaults: bool) -> Resources {
        let mut amounts = self.requests.as_ref().map(Resources::parse).unwrap_or_default();
        if let Some(given) = &self.given {
            amounts.raise(&Resources::parse(given));
        }
        if defaults {
            let lacks = |name: &str| !self.requests.as_ref().is_some_and(|r| r.contains_key(name));
            if lacks("cpu") {
                amounts.cpu = DEFAULT_CPU;
            }
            if lacks("memory") {
                amounts.memory = DEFAULT_MEMORY;
            }
        }
        amounts
    }
}

/// What a pod asks for: its containers and sidecars together, or more while its init containers run
/// one by one, plus the overhead of its runtime class. Requests on the pod itself go before. With
/// `defaults` a container that asks for no cpu or memory counts as a small one.
pub(crate) fn total(containers: &[Asking], init: &[Asking], whole: Option<&List>, overhead: Option<&List>, defaults: bool) -> Resources {
    let mut total = Resources::default();
    containers.iter().for_each(|c| total.add(&c.amounts(defaults)));
    let (mut sidecars, mut peak) = (Resources::default(), Resources::default());
    for c in init {
        let mut now = c.amounts(defaults);
        if c.sidecar {
            sidecars.add(&now);
            peak.raise(&sidecars);
        } else {
            now.add(&sidecars);
            peak.raise(&now);
        }
    }
    total.add(&sidecars);
    total.raise(&peak);
    if let Some(whole) = whole {
        let amounts = Resources::parse(whole);
        // Of a pod as a whole only these can be asked for.
        for name in whole.keys().filter(|n| matches!(n.as_str(), "cpu" | "memory") || n.starts_with("hugepages-")) {
            total.set(name, amounts.get(name));
        }
    }
    if let Some(overhead) = overhead {
        total.add(&Resources::parse(overhead));
    }
    total
}
