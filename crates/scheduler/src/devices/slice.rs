//! What the scheduler keeps of a ResourceSlice: its devices with their numbers read.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::NodeSelector;
use k8s_openapi::api::resource::v1 as raw;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer};

use super::selectors::Verdict;
use crate::selector::{Labels, NodeTerm};

/// A value of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    Text(String),
    Int(i64),
    Bool(bool),
    Version(String),
    /// Of a type that is not known here.
    Unknown,
}

/// How much of something a device has, and how it may be shared out.
#[derive(Debug, Clone, PartialEq)]
pub struct Capacity {
    pub value: Quantity,
    pub policy: Option<Policy>,
}

/// What may be taken of a capacity.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Policy {
    pub default: Option<Quantity>,
    pub values: Vec<Quantity>,
    /// Least, most, step.
    pub range: Option<(Quantity, Option<Quantity>, Option<Quantity>)>,
}

/// From where devices can be reached.
#[derive(Debug, Clone, Default)]
pub enum Place {
    /// Nothing that is known here is said.
    #[default]
    Unknown,
    Node(Box<str>),
    Everywhere,
    Selected(Box<NodeSelector>, Vec<NodeTerm>),
    /// Each device says it.
    ByDevice,
}

impl Place {
    fn of(node: Option<&str>, everywhere: Option<bool>, selector: Option<&NodeSelector>) -> Place {
        match (node.filter(|n| !n.is_empty()), everywhere, selector) {
            (Some(node), _, _) => Place::Node(node.into()),
            (_, Some(true), _) => Place::Everywhere,
            (_, _, Some(selector)) => {
                // The compact form reads the same JSON; what it cannot read selects nothing.
                let compact = |t| serde_json::to_value(t).and_then(serde_json::from_value).ok();
                Place::Selected(Box::new(selector.clone()), selector.node_selector_terms.iter().filter_map(compact).collect())
            }
            _ => Place::Unknown,
        }
    }

    /// Whether they can be reached from a node.
    pub fn is_near(&self, node: &str, labels: &Labels) -> bool {
        match self {
            Place::Node(name) => name.as_ref() == node,
            Place::Everywhere => true,
            Place::Selected(_, terms) => terms.iter().any(|t| t.matches(node, labels)),
            Place::Unknown | Place::ByDevice => false,
        }
    }
}

/// Amounts by name.
pub type Counters = Vec<(Box<str>, Quantity)>;

/// A device.
#[derive(Debug, Clone)]
pub struct Device {
    pub name: Box<str>,
    /// `DRIVER/POOL/DEVICE`.
    pub id: Arc<str>,
    pub attributes: BTreeMap<String, Attribute>,
    pub capacity: BTreeMap<String, Capacity>,
    /// What it takes of the pool's shared counters, by set.
    pub consumes: Vec<(Box<str>, Counters)>,
    pub place: Place,
    pub taints: Vec<raw::DeviceTaint>,
    /// It can be had by several claims at once.
    pub is_shared: bool,
    pub binds_to_node: bool,
    pub binding_conditions: Option<Vec<String>>,
    pub binding_failure_conditions: Option<Vec<String>>,
}

impl Device {
    /// An attribute by its full name, `DOMAIN/NAME`.
    pub fn attribute(&self, driver: &str, name: &str) -> Option<&Attribute> {
        self.attributes.get(name).or_else(|| {
            let (domain, short) = name.split_once('/')?;
            self.attributes.get(short).filter(|_| domain == driver)
        })
    }
}

/// A slice. What selectors say of its devices is kept with it: both never change.
#[derive(Debug, Default)]
pub struct Slice {
    meta: ObjectMeta,
    pub driver: Box<str>,
    pub pool: Box<str>,
    pub generation: i64,
    /// Slices that the pool has in this generation.
    pub count: i64,
    pub place: Place,
    pub devices: Vec<Device>,
    /// Counters that devices of the pool share, by set.
    pub counters: Vec<(Box<str>, Counters)>,
    verdicts: Mutex<HashMap<Arc<str>, Vec<Option<Verdict>>>>,
}

/// More selectors than this are not kept for a slice.
const MOST_SELECTORS: usize = 64;

impl Clone for Slice {
    fn clone(&self) -> Slice {
        Slice {
            meta: self.meta.clone(),
            driver: self.driver.clone(),
            pool: self.pool.clone(),
            generation: self.generation,
            count: self.count,
            place: self.place.clone(),
            devices: self.devices.clone(),
            counters: self.counters.clone(),
            verdicts: Mutex::default(),
        }
    }
}

impl Slice {
    /// The slice's name.
    pub fn name(&self) -> &str {
        self.meta.name.as_deref().unwrap_or_default()
    }

    /// What a selector says of a device; `ask` is asked once.
    pub(crate) fn verdict(&self, selector: &Arc<str>, device: usize, ask: impl FnOnce() -> Verdict) -> Verdict {
        if let Some(known) = self.verdicts.lock().get(selector).and_then(|v| v[device].clone()) {
            return known;
        }
        let verdict = ask();
        let mut verdicts = self.verdicts.lock();
        if verdicts.len() >= MOST_SELECTORS && !verdicts.contains_key(selector) {
            verdicts.clear();
        }
        verdicts.entry(selector.clone()).or_insert_with(|| vec![None; self.devices.len()])[device] = Some(verdict.clone());
        verdict
    }
}

fn quantity(text: &Text) -> Quantity {
    // The API server lets nothing else through.
    Quantity::parse(&text.0).unwrap_or_else(|_| Quantity::zero())
}

fn counters(all: BTreeMap<String, raw::Counter>) -> Counters {
    all.into_iter().map(|(name, c)| (name.into(), quantity(&c.value))).collect()
}

fn attribute(raw: raw::DeviceAttribute) -> Attribute {
    match raw {
        raw::DeviceAttribute { int: Some(int), .. } => Attribute::Int(int),
        raw::DeviceAttribute { bool: Some(bool), .. } => Attribute::Bool(bool),
        raw::DeviceAttribute { string: Some(text), .. } => Attribute::Text(text),
        raw::DeviceAttribute { version: Some(version), .. } => Attribute::Version(version),
        _ => Attribute::Unknown,
    }
}

fn capacity(raw: &raw::DeviceCapacity) -> Capacity {
    let policy = raw.request_policy.as_ref().map(|p| Policy {
        default: p.default.as_ref().map(quantity),
        values: p.valid_values.iter().flatten().map(quantity).collect(),
        range: p.valid_range.as_ref().map(|r| (quantity(&r.min), r.max.as_ref().map(quantity), r.step.as_ref().map(quantity))),
    });
    Capacity { value: quantity(&raw.value), policy }
}

impl From<raw::ResourceSlice> for Slice {
    fn from(raw: raw::ResourceSlice) -> Slice {
        let (meta, spec) = (raw.metadata, raw.spec);
        let by_device = spec.per_device_node_selection == Some(true);
        let prefix = format!("{}/{}/", spec.driver, spec.pool.name);
        let device = |d: raw::Device| Device {
            id: format!("{prefix}{}", d.name).into(),
            name: d.name.into(),
            attributes: d.attributes.unwrap_or_default().into_iter().map(|(k, v)| (k, attribute(v))).collect(),
            capacity: d.capacity.unwrap_or_default().into_iter().map(|(k, v)| (k, capacity(&v))).collect(),
            consumes: d.consumes_counters.into_iter().flatten().map(|c| (c.counter_set.into(), counters(c.counters))).collect(),
            place: if by_device { Place::of(d.node_name.as_deref(), d.all_nodes, d.node_selector.as_ref()) } else { Place::Unknown },
            taints: d.taints.unwrap_or_default(),
            is_shared: d.allow_multiple_allocations == Some(true),
            binds_to_node: d.binds_to_node == Some(true),
            binding_conditions: d.binding_conditions,
            binding_failure_conditions: d.binding_failure_conditions,
        };
        let place = match Place::of(spec.node_name.as_deref(), spec.all_nodes, spec.node_selector.as_ref()) {
            Place::Unknown if by_device => Place::ByDevice,
            place => place,
        };
        Slice {
            place,
            devices: spec.devices.into_iter().flatten().map(device).collect(),
            counters: spec.shared_counters.into_iter().flatten().map(|c| (c.name.into(), counters(c.counters))).collect(),
            generation: spec.pool.generation,
            count: spec.pool.resource_slice_count,
            driver: spec.driver.into(),
            pool: spec.pool.name.into(),
            meta: ObjectMeta { name: meta.name, uid: meta.uid, resource_version: meta.resource_version, ..ObjectMeta::default() },
            verdicts: Mutex::default(),
        }
    }
}

impl<'de> Deserialize<'de> for Slice {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Slice, D::Error> {
        raw::ResourceSlice::deserialize(d).map(Slice::from)
    }
}

reconcile::resource_as!(Slice, meta, raw::ResourceSlice);
