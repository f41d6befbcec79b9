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
use rules::migration::{self, Plugin};

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
    /// What is attached to a node: the driver and the name of the volume.
    fn attached(&self, node: &str) -> Vec<(String, String)>;
    /// Whether all this is known: before, nothing must be decided on it.
    fn ready(&self) -> bool;
}

/// From where volumes can be reached: their node affinities in the form that is quickly compared.
#[derive(Default)]
pub(crate) struct Reach(HashMap<String, Place>);

/// From where one volume can be reached.
struct Place {
    own: Terms,
    /// The same in its CSI driver's labels, when it is one of those that were handed over; or why it cannot be.
    handed_over: Option<(&'static Plugin, Result<Terms, String>)>,
}

/// One of these must hold; none at all asks for nothing.
type Terms = Option<Vec<NodeTerm>>;

impl Place {
    fn of(volume: &PersistentVolume) -> Place {
        let plugin = migration::of_volume(volume).filter(|p| p.scheduled);
        let as_driver_sees_it = || Some(migration::volume(volume)?.map(|v| terms(&v)).map_err(|e| format!("could not translate pv: {e}")));
        Place { own: terms(volume), handed_over: plugin.and_then(|p| Some((p, as_driver_sees_it()?))) }
    }
}

fn terms(volume: &PersistentVolume) -> Terms {
    let required = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    // The compact form reads the same JSON; what it cannot read selects nothing.
    let compact = |t| serde_json::to_value(t).and_then(serde_json::from_value).ok();
    Some(required.node_selector_terms.iter().filter_map(compact).collect())
}

fn are_met(terms: &Terms, node: &str, labels: &Labels) -> bool {
    terms.as_ref().is_none_or(|t| t.iter().any(|t| t.matches(node, labels)))
}

impl Reach {
    /// Keeps those of these volumes.
    pub fn of<'a>(volumes: impl IntoIterator<Item = &'a Arc<PersistentVolume>>) -> Reach {
        Reach(volumes.into_iter().map(|v| (v.name_any(), Place::of(v))).collect())
    }

    fn place<R>(&self, volume: &PersistentVolume, ask: impl FnOnce(&Place) -> R) -> R {
        match volume.metadata.name.as_ref().and_then(|name| self.0.get(name)) {
            Some(place) => ask(place),
            None => ask(&Place::of(volume)),
        }
    }

    /// Whether a volume can be reached from a node, as it says itself.
    pub fn is_near(&self, volume: &PersistentVolume, node: &str, labels: &Labels) -> bool {
        self.place(volume, |place| are_met(&place.own, node, labels))
    }

    /// The same once it belongs to a claim: on nodes whose kubelet hands it to a CSI driver, the driver's labels
    /// count. An error is why it cannot be handed over.
    pub fn serves(&self, known: &dyn Lookup, volume: &PersistentVolume, node: &str, labels: &Labels) -> Result<bool, String> {
        self.place(volume, |place| match &place.handed_over {
            Some((plugin, terms)) if migration::is_on_node(plugin, known.csi_node(node).as_deref()) => {
                terms.as_ref().map(|terms| are_met(terms, node, labels)).map_err(String::clone)
            }
            _ => Ok(are_met(&place.own, node, labels)),
        })
    }
}
