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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use serde_json::{Value, json};

    fn owner(api_version: &str, kind: &str, name: &str) -> Value {
        json!([{"apiVersion": api_version, "kind": kind, "name": name, "uid": name, "controller": true}])
    }

    fn scaled(api_version: &str, kind: &str, name: &str, replicas: i32, owners: Value) -> Value {
        json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": "n", "uid": name, "ownerReferences": owners},
            "spec": {"replicas": replicas, "selector": {}, "template": {}}})
    }

    fn pods(owners: &[Value]) -> Vec<Arc<Pod>> {
        let pod = |owners: &Value| serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "ownerReferences": owners}}));
        owners.iter().map(|o| Arc::new(pod(o).expect("a pod"))).collect()
    }

    /// A cluster in which things of `example.com/v1` have a scale, and toys have none.
    async fn expected(objects: Vec<Value>, owners: &[Value]) -> Result<(i32, bool), String> {
        let client = testing::client(objects, |path| match path {
            "/apis/example.com/v1" => Some(json!({"groupVersion": "example.com/v1", "resources": [
                {"name": "things/status", "singularName": "", "namespaced": true, "kind": "Thing", "verbs": []},
                {"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": []},
                {"name": "things/scale", "singularName": "", "namespaced": true, "kind": "Scale", "verbs": []},
                {"name": "toys", "singularName": "toy", "namespaced": true, "kind": "Toy", "verbs": []},
                {"name": "toys/scale", "singularName": "", "namespaced": true, "kind": "Measure", "verbs": []}]})),
            "/api/v1" => Some(json!({"groupVersion": "v1", "resources": [{"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": []}]})),
            "/apis/example.com/v1/namespaces/n/things/t/scale" => Some(json!({"metadata": {"name": "t", "uid": "t"}, "spec": {"replicas": 7}})),
            "/apis/example.com/v1/namespaces/n/things/new/scale" => Some(json!({"metadata": {"name": "new", "uid": "another"}, "spec": {"replicas": 7}})),
            "/apis/example.com/v1/namespaces/n/things/broken/scale" => {
                Some(json!({"kind": "Status", "status": "Failure", "code": 503, "reason": "ServiceUnavailable", "message": "try later", "metadata": {}}))
            }
            _ => None,
        });
        let scales = Scales::new(client.clone(), &Informers::new(client, reconcile::Tasks::new()));
        scales.synced().await;
        scales.expected(&pods(owners)).await.map(|e| (e.pods, e.unmanaged))
    }

    #[tokio::test]
    async fn each_controller_counts_once_at_the_scale_of_what_scales_it() {
        let world = || {
            vec![
                scaled("v1", "ReplicationController", "rc", 1, json!([])),
                scaled("apps/v1", "StatefulSet", "db", 20, json!([])),
                scaled("apps/v1", "ReplicaSet", "alone", 300, json!([])),
                scaled("apps/v1", "ReplicaSet", "web-1", 9, owner("apps/v1", "Deployment", "web")),
                scaled("apps/v1", "ReplicaSet", "web-2", 9, owner("apps/v1", "Deployment", "web")),
                scaled("apps/v1", "ReplicaSet", "toy-1", 4000, owner("example.com/v1", "Toy", "toy")),
                scaled("apps/v1", "Deployment", "web", 50_000, json!([])),
            ]
        };
        let rs = |name: &str| owner("apps/v1", "ReplicaSet", name);
        assert_eq!(expected(world(), &[owner("v1", "ReplicationController", "rc")]).await, Ok((1, false)));
        assert_eq!(expected(world(), &[owner("apps/v1", "StatefulSet", "db")]).await, Ok((20, false)));
        assert_eq!(expected(world(), &[rs("alone"), rs("alone"), json!([])]).await, Ok((300, true)), "one pod has no controller");
        assert_eq!(expected(world(), &[rs("web-1"), rs("web-2")]).await, Ok((50_000, false)), "both are the deployment's");
        assert_eq!(expected(world(), &[rs("toy-1")]).await, Ok((4000, false)), "no deployment is above it");
        let all = [owner("v1", "ReplicationController", "rc"), owner("apps/v1", "StatefulSet", "db"), rs("alone"), rs("web-1")];
        assert_eq!(expected(world(), &all).await, Ok((50_321, false)));
    }

    #[tokio::test]
    async fn other_kinds_are_asked_for_their_scale() {
        let asked = async |api_version: &str, kind: &str, name: &str| expected(vec![], &[owner(api_version, kind, name)]).await;
        assert_eq!(asked("example.com/v1", "Thing", "t").await, Ok((7, false)));
        let gone = Err("found no controllers for pod \"p\"".to_string());
        assert_eq!(asked("example.com/v1", "Thing", "gone").await, gone);
        assert_eq!(asked("example.com/v1", "Thing", "new").await, gone, "it is a later one of that name");
        assert_eq!(asked("example.com/v1", "Thing", "broken").await, Err("try later".into()));
        assert_eq!(asked("example.com/v1", "Toy", "t").await, Err("toys.example.com does not implement the scale subresource".into()));
        assert_eq!(asked("v1", "Pod", "t").await, Err("pods does not implement the scale subresource".into()));
        assert_eq!(asked("example.com/v1", "Cat", "t").await, Err("no matches for kind \"Cat\" in version \"example.com/v1\"".into()));
        assert_eq!(asked("unknown.com/v1", "Cat", "t").await, Err("not found".into()));
    }
}
