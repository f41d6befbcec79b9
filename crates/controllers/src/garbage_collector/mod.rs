//! The garbage collector: deletes what has lost all its owners, and works off foreground and orphan
//! deletions. [`graph`] is the picture and the decisions; this file feeds it by watching the metadata
//! of every kind, and carries decisions out.

pub mod graph;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions, PropagationPolicy, WatchEvent, WatchParams};
use kube::core::PartialObjectMeta;
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use reconcile::{Queue, Requeue, Tasks, run_workers};
use serde_json::json;

use crate::Context;
use crate::resources::{self, Served};
use graph::{Absent, Action, Graph, Identity, Item};

/// How often the list of kinds is looked at anew.
const REFRESH: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Collector {
    client: Client,
    graph: Arc<Mutex<Graph>>,
    kinds: Arc<Mutex<HashMap<(String, String), Served>>>,
    queue: Queue<String>,
    /// Kinds whose first list is still to come: until then owners may seem absent that are not.
    unsynced: Arc<tokio::sync::watch::Sender<usize>>,
}

/// Starts the controller.
pub fn start(context: &Context) {
    let collector = Collector {
        client: context.client.clone(),
        graph: Arc::default(),
        kinds: Arc::default(),
        queue: Queue::new(),
        unsynced: Arc::new(tokio::sync::watch::Sender::new(1)),
    };
    let (c, tasks) = (collector.clone(), context.tasks.clone());
    context.tasks.spawn("garbage-collector kinds", async move { c.follow_kinds(&tasks).await });
    let c = collector.clone();
    run_workers(&context.tasks, "garbage-collector", 8, collector.queue.clone(), move |uid: String| {
        let c = c.clone();
        async move {
            // The sender is held by the collector itself.
            let _ = c.unsynced.subscribe().wait_for(|n| *n == 0).await;
            c.work(&uid).await
        }
    });
}

impl Collector {
    async fn follow_kinds(&self, tasks: &Tasks) {
        let mut first = true;
        let mut running: HashMap<(String, String), Tasks> = HashMap::new();
        loop {
            match resources::served(&self.client).await {
                Ok(all) => {
                    let wanted: HashMap<(String, String), Served> = all
                        .into_iter()
                        .filter(|s| s.can("list") && s.can("watch") && s.can("delete") && s.resource.plural != "events")
                        .map(|s| ((s.resource.group.clone(), s.resource.kind.clone()), s))
                        .collect();
                    running.retain(|kind, task| {
                        let keep = wanted.contains_key(kind);
                        if !keep {
                            task.cancel();
                        }
                        keep
                    });
                    for (kind, served) in &wanted {
                        if !running.contains_key(kind) {
                            let child = tasks.child();
                            self.unsynced.send_modify(|n| *n += 1);
                            let (c, resource) = (self.clone(), served.resource.clone());
                            child.spawn(format!("garbage-collector {}", served.resource.plural), async move { c.follow(resource).await });
                            running.insert(kind.clone(), child);
                        }
                    }
                    *self.kinds.lock() = wanted;
                    if first {
                        first = false;
                        self.unsynced.send_modify(|n| *n -= 1);
                    }
                    tokio::time::sleep(REFRESH).await;
                }
                Err(error) => {
                    tracing::debug!("the kinds cannot be listed: {error}");
                    tokio::time::sleep(Duration::from_millis(if first { 50 } else { 5000 })).await;
                }
            }
        }
    }

    /// Lists and watches the metadata of one kind for ever.
    async fn follow(&self, resource: ApiResource) {
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        let mut listed = false;
        loop {
            if let Err(error) = self.list_and_watch(&api, &resource, &mut listed).await {
                tracing::debug!(kind = resource.kind, "listing again: {error}");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }

    async fn list_and_watch(&self, api: &Api<DynamicObject>, resource: &ApiResource, listed: &mut bool) -> kube::Result<()> {
        let mut params = ListParams::default().limit(500);
        let mut seen = Vec::new();
        let mut version = loop {
            let page = api.list_metadata(&params).await?;
            for object in page.items {
                seen.push(object.uid().unwrap_or_default());
                self.put(resource, &object);
            }
            match page.metadata.continue_.filter(|c| !c.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break page.metadata.resource_version.unwrap_or_default(),
            }
        };
        let gone = self.graph.lock().others(resource, &seen);
        gone.into_iter().for_each(|uid| self.remove(&uid));
        if !*listed {
            *listed = true;
            self.unsynced.send_modify(|n| *n -= 1);
        }
        loop {
            let mut events = api.watch_metadata(&WatchParams::default().timeout(290), &version).await?.boxed();
            while let Some(event) = events.try_next().await? {
                match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        version = object.resource_version().unwrap_or(version);
                        self.put(resource, &object);
                    }
                    WatchEvent::Deleted(object) => {
                        version = object.resource_version().unwrap_or(version);
                        self.remove(&object.uid().unwrap_or_default());
                    }
                    WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
                    WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
                }
            }
        }
    }

    fn put(&self, resource: &ApiResource, object: &PartialObjectMeta<DynamicObject>) {
        let item = Item {
            identity: Identity {
                resource: resource.clone(),
                namespace: object.namespace().unwrap_or_default(),
                name: object.name_any(),
            },
            owners: object.owner_references().to_vec(),
            deleting: object.metadata.deletion_timestamp.is_some(),
            foreground: object.finalizers().iter().any(|f| f == "foregroundDeletion"),
            orphan: object.finalizers().iter().any(|f| f == "orphan"),
        };
        let work = self.graph.lock().put(object.uid().unwrap_or_default(), item);
        work.into_iter().for_each(|uid| self.queue.add(uid));
    }

    fn remove(&self, uid: &str) {
        let work = self.graph.lock().remove(uid);
        work.into_iter().for_each(|uid| self.queue.add(uid));
    }

    async fn work(&self, uid: &str) -> kube::Result<Requeue> {
        let unknown = self.graph.lock().unknown_owners(uid);
        let mut absent = Vec::new();
        let namespace = self.graph.lock().get(uid).map(|i| i.identity.namespace.clone());
        let Some(namespace) = namespace else { return Ok(Requeue::No) };
        for owner in unknown {
            absent.push((owner.uid.clone(), self.look_up(&owner, &namespace).await?));
        }
        let action = self.graph.lock().decide(uid, &absent);
        match action {
            Action::Nothing => {}
            Action::Delete { identity, foreground } => {
                let policy = if foreground { PropagationPolicy::Foreground } else { PropagationPolicy::Background };
                let params = DeleteParams {
                    propagation_policy: Some(policy),
                    preconditions: Some(Preconditions { uid: Some(uid.to_string()), resource_version: None }),
                    ..DeleteParams::default()
                };
                forgive(self.api(&identity).delete(&identity.name, &params).await.map(|_| ()))?;
            }
            Action::DropOwners { identity, keep } => {
                let patch = json!({"metadata": {"uid": uid, "ownerReferences": keep}});
                forgive(self.api(&identity).patch_metadata(&identity.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ()))?;
            }
            Action::Visit(dependents) => dependents.into_iter().for_each(|uid| self.queue.add(uid)),
            Action::Orphan { dependents, identity } => {
                for (dependent, child, keep) in dependents {
                    let patch = json!({"metadata": {"uid": dependent, "ownerReferences": keep}});
                    forgive(self.api(&child).patch_metadata(&child.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ()))?;
                }
                self.drop_finalizer(uid, &identity, "orphan").await?;
            }
            Action::Finish(identity) => self.drop_finalizer(uid, &identity, "foregroundDeletion").await?,
        }
        Ok(Requeue::No)
    }

    /// Whether an owner that is not in the graph exists after all.
    async fn look_up(&self, owner: &OwnerReference, namespace: &str) -> kube::Result<Absent> {
        let group = owner.api_version.split_once('/').map_or("", |(g, _)| g).to_string();
        let Some(served) = self.kinds.lock().get(&(group, owner.kind.clone())).cloned() else {
            return Ok(Absent::Unknown);
        };
        if served.namespaced && namespace.is_empty() {
            tracing::warn!(kind = owner.kind, name = owner.name, "a cluster-wide object names an owner within a namespace");
            return Ok(Absent::Unknown);
        }
        let api = if served.namespaced {
            Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, &served.resource)
        } else {
            Api::<DynamicObject>::all_with(self.client.clone(), &served.resource)
        };
        let found = api.get_metadata_opt(&owner.name).await?;
        Ok(if found.is_some_and(|o| o.uid().as_ref() == Some(&owner.uid)) { Absent::No } else { Absent::Yes })
    }

    async fn drop_finalizer(&self, uid: &str, identity: &Identity, finalizer: &str) -> kube::Result<()> {
        let api = self.api(identity);
        let Some(object) = api.get_metadata_opt(&identity.name).await?.filter(|o| o.uid().as_deref() == Some(uid)) else { return Ok(()) };
        let left: Vec<&String> = object.finalizers().iter().filter(|f| *f != finalizer).collect();
        if left.len() == object.finalizers().len() {
            return Ok(());
        }
        let patch = json!({"metadata": {"resourceVersion": object.resource_version(), "finalizers": left}});
        forgive_gone(api.patch_metadata(&identity.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ()))
    }

    fn api(&self, identity: &Identity) -> Api<DynamicObject> {
        if identity.namespace.is_empty() {
            Api::all_with(self.client.clone(), &identity.resource)
        } else {
            Api::namespaced_with(self.client.clone(), &identity.namespace, &identity.resource)
        }
    }
}

/// An object that is gone, or that is another by now, needs nothing more.
fn forgive(result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other,
    }
}

fn forgive_gone(result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other,
    }
}
