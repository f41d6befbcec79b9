//! The devices of a cluster, read once: for questions out of turn.

use std::sync::Arc;

use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use kube::api::{Api, ListParams};
use kube::{Client, Resource, ResourceExt};
use parking_lot::RwLock;

use super::needs::{Means, Needs};
use super::plugin::DynamicResources;
use super::slice::Slice;
use super::survey::Survey;
use super::world::World;
use crate::node::NodeView;
use crate::plugin::Plugin;
use crate::pod::PodInfo;

/// Claims, classes and slices at one time.
#[derive(Clone, Default)]
pub struct Devices(pub(crate) Arc<RwLock<World>>);

async fn list<K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned>(client: &Client) -> kube::Result<Vec<Arc<K>>> {
    Ok(Api::<K>::all(client.clone()).list(&ListParams::default()).await?.items.into_iter().map(Arc::new).collect())
}

impl Devices {
    /// Reads them all.
    pub async fn read(client: &Client) -> kube::Result<Devices> {
        let mut world = World::default();
        list::<DeviceClass>(client).await?.iter().for_each(|c| world.set_class(&c.name_any(), Some(c)));
        list::<Slice>(client).await?.iter().for_each(|s| world.slices.put(s));
        list::<ResourceClaim>(client).await?.iter().for_each(|c| world.put_claim(c));
        Ok(Devices(Arc::new(RwLock::new(world))))
    }

    /// The plug-in over them.
    pub(crate) fn plugin(&self) -> Arc<dyn Plugin> {
        Arc::new(DynamicResources::over(self.0.clone()))
    }

    /// What a node has for a pod's requests.
    pub(crate) fn survey(&self, pod: &PodInfo, node: &NodeView) -> Vec<Survey> {
        let world = self.0.read_recursive();
        let selectors = super::selectors::standard();
        let means = Means { selectors: &*selectors, tries: usize::MAX, patience: k8s_openapi::jiff::SignedDuration::from_mins(10), now: k8s_openapi::jiff::Timestamp::now() };
        match Needs::of(&world, pod, means) {
            Ok(Some(needs)) => needs.survey(&world, means, pod, node),
            _ => Vec::new(),
        }
    }
}
