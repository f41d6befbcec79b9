//! Dynamic resource allocation: the plug-in DynamicResources. What is decided is pure: [`pools`] says
//! which devices a node can reach, [`allocator`] finds devices for claims, [`outcome`] writes down what was
//! found, [`extended`] turns extended resources of containers into requests. [`world`] keeps what they
//! decide on, with what was promised to pods on their way; [`plugin`] ties it to informers and writes.
//!
//! Not here: what is behind gates that are off by default (rules that taint devices, attributes that are
//! lists, resources of nodes that devices use, claims of pod groups).

pub(crate) mod allocator;
pub(crate) mod asked;
pub(crate) mod capacity;
pub(crate) mod constraints;
pub(crate) mod extended;
pub(crate) mod follow;
pub(crate) mod needs;
pub(crate) mod outcome;
pub(crate) mod plugin;
pub(crate) mod pools;
pub(crate) mod selectors;
pub(crate) mod listed;
pub(crate) mod slice;
pub(crate) mod survey;
#[cfg(test)]
mod tests;
pub(crate) mod world;
pub(crate) mod write;

pub use listed::Devices;

/// Upstream's name of the plug-in.
pub(crate) const NAME: &str = "DynamicResources";
