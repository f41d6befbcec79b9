//! [`Lookup`] in lists that were read once: for questions out of turn.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use kube::api::{Api, ListParams};
use kube::{Client, Resource, ResourceExt};

use super::Lookup;

/// The cluster's storage at one time.
#[derive(Debug, Clone, Default)]
pub struct Listed {
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    pub volumes: Vec<Arc<PersistentVolume>>,
    pub classes: Vec<Arc<StorageClass>>,
    pub drivers: Vec<Arc<CSIDriver>>,
    pub csi_nodes: Vec<Arc<CSINode>>,
    pub capacities: Vec<Arc<CSIStorageCapacity>>,
    pub attachments: Vec<Arc<VolumeAttachment>>,
}

async fn list<K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned>(client: &Client) -> kube::Result<Vec<Arc<K>>> {
    Ok(Api::<K>::all(client.clone()).list(&ListParams::default()).await?.items.into_iter().map(Arc::new).collect())
}

impl Listed {
    /// Reads it all.
    pub async fn read(client: &Client) -> kube::Result<Listed> {
        Ok(Listed {
            claims: list(client).await?,
            volumes: list(client).await?,
            classes: list(client).await?,
            drivers: list(client).await?,
            csi_nodes: list(client).await?,
            capacities: list(client).await?,
            attachments: list(client).await?,
        })
    }
}

fn named<K: ResourceExt>(list: &[Arc<K>], name: &str) -> Option<Arc<K>> {
    list.iter().find(|o| o.meta().name.as_deref() == Some(name)).cloned()
}

impl Lookup for Listed {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.iter().find(|c| c.metadata.name.as_deref() == Some(name) && c.metadata.namespace.as_deref() == Some(namespace)).cloned()
    }
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        named(&self.volumes, name)
    }
    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.clone()
    }
    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        named(&self.classes, name)
    }
    fn driver(&self, name: &str) -> Option<Arc<CSIDriver>> {
        named(&self.drivers, name)
    }
    fn csi_node(&self, name: &str) -> Option<Arc<CSINode>> {
        named(&self.csi_nodes, name)
    }
    fn capacities(&self) -> Vec<Arc<CSIStorageCapacity>> {
        self.capacities.clone()
    }
    fn attached(&self, node: &str) -> Vec<(String, String)> {
        let here = self.attachments.iter().filter(|a| a.spec.node_name == node);
        here.filter_map(|a| Some((a.spec.attacher.clone(), a.spec.source.persistent_volume_name.clone()?))).collect()
    }
    fn ready(&self) -> bool {
        true
    }
}
