//! The plug-ins for volumes: VolumeBinding, VolumeRestrictions, NodeVolumeLimits, VolumeZone. What is
//! decided is in [`binding`] and [`limits`], pure over a [`Lookup`]; [`plugins`] ties it to informers.

pub(crate) mod binding;
pub(crate) mod limits;
mod listed;
pub(crate) mod plugins;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use kube::ResourceExt;

pub use listed::Listed;

use crate::selector::{Labels, NodeTerm};

/// The objects that decisions on volumes rest on.
pub(crate) trait Lookup: Send + Sync {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>>;
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>>;
    fn volumes(&self) -> Vec<Arc<PersistentVolume>>;
    fn class(&self, name: &str) -> Option<Arc<StorageClass>>;
    fn driver(&self, name: &str) -> Option<Arc<CSIDriver>>;
    fn csi_node(&self, name: &str) -> Option<Arc<CSINode>>;
    fn capacities(&self) -> Vec<Arc<CSIStorageCapacity>>;
    /// Whether all this is known: before, nothing must be decided on it.
    fn ready(&self) -> bool;
}

/// From where volumes can be reached: their node affinities in the form that is quickly compared.
#[derive(Default)]
pub(crate) struct Reach(HashMap<String, Option<Vec<NodeTerm>>>);

fn terms(volume: &PersistentVolume) -> Option<Vec<NodeTerm>> {
    let required = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    // The compact form reads the same JSON; what it cannot read selects nothing.
    let compact = |t| serde_json::to_value(t).and_then(serde_json::from_value).ok();
    Some(required.node_selector_terms.iter().filter_map(compact).collect())
}

impl Reach {
    /// Keeps those of these volumes.
    pub fn of<'a>(volumes: impl IntoIterator<Item = &'a Arc<PersistentVolume>>) -> Reach {
        Reach(volumes.into_iter().map(|v| (v.name_any(), terms(v))).collect())
    }

    /// Whether a volume can be reached from a node.
    pub fn is_near(&self, volume: &PersistentVolume, node: &str, labels: &Labels) -> bool {
        let near = |terms: &Option<Vec<NodeTerm>>| terms.as_ref().is_none_or(|t| t.iter().any(|t| t.matches(node, labels)));
        match volume.metadata.name.as_ref().and_then(|name| self.0.get(name)) {
            Some(terms) => near(terms),
            None => near(&terms(volume)),
        }
    }
}
