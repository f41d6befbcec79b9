//! How many pods the controllers of some pods want: known kinds from the informers, any other from
//! its `scale` subresource.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::ReplicationController;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client, ResourceExt};
use reconcile::{Informer, Informers};

use crate::pod::Pod;
use crate::{ownership, pods};

/// The kinds of controllers that pods have.
#[derive(Clone)]
pub struct Scales {
    client: Client,
    controllers: Informer<ReplicationController>,
    sets: Informer<ReplicaSet>,
    deployments: Informer<Deployment>,
    stateful: Informer<StatefulSet>,
}

/// What is wanted of some pods.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Expected {
    pub pods: i32,
    /// Whether some of them have no controller.
    pub unmanaged: bool,
}

impl Scales {
    pub fn new(client: Client, informers: &Informers) -> Scales {
        Scales { client, controllers: informers.of(), sets: informers.of(), deployments: informers.of(), stateful: informers.of() }
    }

    /// Completes when all informers have their first list.
    pub async fn synced(&self) {
        self.controllers.synced().await;
        self.sets.synced().await;
        self.deployments.synced().await;
        self.stateful.synced().await;
    }

    /// The sum over all controllers of `selected`, each once.
    pub async fn expected(&self, selected: &[Arc<Pod>]) -> Result<Expected, String> {
        // By the pod's controller: the controller that scales it, and its scale.
        let mut found: BTreeMap<String, (String, i32)> = BTreeMap::new();
        let mut expected = Expected::default();
        for pod in selected {
            let Some(owner) = ownership::controller_of(&pod.metadata) else {
                expected.unmanaged = true;
                continue;
            };
            if found.contains_key(&owner.uid) {
                continue;
            }
            let namespace = pod.namespace().unwrap_or_default();
            let scale = match self.known(&namespace, owner) {
                Some(scale) => Some(scale),
                None => self.asked(&namespace, owner).await?,
            };
            let scale = scale.ok_or_else(|| format!("found no controllers for pod {:?}", pod.name_any()))?;
            found.insert(owner.uid.clone(), scale);
        }
        let by_scaler: BTreeMap<String, i32> = found.into_values().collect();
        expected.pods = by_scaler.into_values().fold(0, i32::saturating_add);
        Ok(expected)
    }

    fn known(&self, namespace: &str, owner: &OwnerReference) -> Option<(String, i32)> {
        let is = |meta: &ObjectMeta, owner: &OwnerReference| meta.uid.as_ref() == Some(&owner.uid);
        let group = owner.api_version.split_once('/').map_or("", |(g, _)| g);
        match (group, owner.kind.as_str()) {
            ("", "ReplicationController") => {
                let rc = self.controllers.get(namespace, &owner.name).filter(|c| is(&c.metadata, owner))?;
                Some((owner.uid.clone(), rc.spec.as_ref()?.replicas.unwrap_or(1)))
            }
            ("apps", "StatefulSet") => {
                let set = self.stateful.get(namespace, &owner.name).filter(|s| is(&s.metadata, owner))?;
                Some((owner.uid.clone(), set.spec.as_ref()?.replicas.unwrap_or(1)))
            }
            ("apps" | "extensions", "ReplicaSet") => {
                let set = self.sets.get(namespace, &owner.name).filter(|s| is(&s.metadata, owner))?;
                match ownership::controller_of(&set.metadata).filter(|o| o.kind == "Deployment") {
                    Some(above) => {
                        let deployment = self.deployments.get(namespace, &above.name).filter(|d| is(&d.metadata, above))?;
                        Some((above.uid.clone(), deployment.spec.as_ref()?.replicas.unwrap_or(1)))
                    }
                    None => Some((owner.uid.clone(), set.spec.as_ref()?.replicas.unwrap_or(1))),
                }
            }
            _ => None,
        }
    }

    /// Asks the API server for the scale of any kind.
    async fn asked(&self, namespace: &str, owner: &OwnerReference) -> Result<Option<(String, i32)>, String> {
        let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        let listed = match group {
            "" => self.client.list_core_api_resources(version).await,
            _ => self.client.list_api_group_resources(&owner.api_version).await,
        };
        let listed = listed.map_err(|e| pods::text(&e))?.resources;
        let plural = listed.iter().find(|r| r.kind == owner.kind && !r.name.contains('/')).map(|r| r.name.clone());
        let plural = plural.ok_or_else(|| format!("no matches for kind {:?} in version {:?}", owner.kind, owner.api_version))?;
        if !listed.iter().any(|r| r.name == format!("{plural}/scale") && r.kind == "Scale") {
            let name = if group.is_empty() { plural } else { format!("{plural}.{group}") };
            return Err(format!("{name} does not implement the scale subresource"));
        }
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, &owner.kind), &plural);
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, &resource);
        match api.get_scale(&owner.name).await {
            Ok(scale) if scale.metadata.uid.as_ref() == Some(&owner.uid) => {
                Ok(Some((owner.uid.clone(), scale.spec.and_then(|s| s.replicas).unwrap_or(0))))
            }
            Ok(_) => Ok(None),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(pods::text(&error)),
        }
    }
}
