//! How many objects of a kind each namespace has: a list and a watch of metadata for each kind that
//! a quota has ever asked about.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kube::Client;
use kube::Resource;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::{ApiResource, DynamicObject, Request};
use parking_lot::Mutex;
use reconcile::Tasks;

use super::plan::Found;
use crate::garbage_collector::slim::{Page, Slim};
use crate::resources;

/// Group and plural.
type Kind = (String, String);
/// Namespaces by uid; None until the first list is there.
type Objects = Option<HashMap<String, String>>;
/// Told of a kind and a namespace in which there is less of it, or, after a first list, of all.
type Notify = Arc<dyn Fn(&Kind, Option<&str>) + Send + Sync>;

const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The counts. Clones are the same.
#[derive(Clone)]
pub struct Counts {
    client: Client,
    tasks: Tasks,
    kinds: Arc<Mutex<HashMap<Kind, Objects>>>,
    notify: Notify,
}

impl Counts {
    pub fn new(client: Client, tasks: Tasks, notify: Notify) -> Counts {
        Counts { client, tasks, kinds: Arc::default(), notify }
    }

    /// How many there are; unknown at first, and then `notify` is called when it is known.
    pub fn count(&self, kind: &Kind, namespace: &str) -> Found {
        let mut kinds = self.kinds.lock();
        match kinds.get(kind) {
            Some(Some(objects)) => Found::Count(objects.values().filter(|n| *n == namespace).count()),
            Some(None) => Found::Unknown,
            None => {
                kinds.insert(kind.clone(), None);
                let (counts, kind) = (self.clone(), kind.clone());
                self.tasks.spawn(format!("quota counts {}", kind.1), async move { counts.follow(kind).await });
                Found::Unknown
            }
        }
    }

    async fn follow(&self, kind: Kind) {
        let mut pause = Duration::from_millis(100);
        loop {
            let result = match self.served(&kind).await {
                Ok(Some(resource)) => self.list_and_watch(&kind, &resource).await,
                Ok(None) => {
                    // A kind that is not served, or not yet: there is none of it.
                    self.set(&kind, HashMap::new());
                    pause = LONGEST_PAUSE;
                    tokio::time::sleep(pause).await;
                    continue;
                }
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => pause = Duration::from_millis(100),
                Err(error) => {
                    tracing::debug!(kind = kind.1, "counting again: {error}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn served(&self, kind: &Kind) -> kube::Result<Option<ApiResource>> {
        let found = resources::discover(&self.client).await?;
        let mut all = found.resources.into_iter().filter(|s| s.namespaced && s.can("list") && s.can("watch"));
        Ok(all.find(|s| s.resource.group == kind.0 && s.resource.plural == kind.1).map(|s| s.resource))
    }

    fn set(&self, kind: &Kind, objects: HashMap<String, String>) {
        let old = self.kinds.lock().insert(kind.clone(), Some(objects.clone())).flatten();
        if old.as_ref() != Some(&objects) {
            (self.notify)(kind, None);
        }
    }

    /// Ends with `Ok` when the revision is gone and a new list is due.
    async fn list_and_watch(&self, kind: &Kind, resource: &ApiResource) -> kube::Result<()> {
        let request = || Request::new(DynamicObject::url_path(resource, None));
        let mut params = ListParams::default().limit(500);
        let mut listed = HashMap::new();
        let mut version = loop {
            let page: Page = self.client.request(request().list_metadata(&params).map_err(kube::Error::BuildRequest)?).await?;
            listed.extend(page.items.into_iter().map(|o| (o.metadata.uid, o.metadata.namespace)));
            match page.metadata.continue_.filter(|c| !c.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break page.metadata.resource_version.unwrap_or_default(),
            }
        };
        self.set(kind, listed);
        loop {
            let watch = request().watch_metadata(&WatchParams::default().timeout(290), &version).map_err(kube::Error::BuildRequest)?;
            let mut events = match self.client.request_events::<Slim>(watch).await {
                Ok(events) => events.boxed(),
                Err(kube::Error::Api(status)) if status.code == 410 => return Ok(()),
                Err(error) => return Err(error),
            };
            while let Some(event) = events.try_next().await? {
                match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        if let Some(Some(objects)) = self.kinds.lock().get_mut(kind) {
                            objects.insert(object.metadata.uid, object.metadata.namespace);
                        }
                        version = object.metadata.resource_version;
                    }
                    WatchEvent::Deleted(object) => {
                        if let Some(Some(objects)) = self.kinds.lock().get_mut(kind) {
                            objects.remove(&object.metadata.uid);
                        }
                        version = object.metadata.resource_version;
                        (self.notify)(kind, Some(&object.metadata.namespace));
                    }
                    WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
                    WatchEvent::Error(status) if status.code == 410 => return Ok(()),
                    WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
                }
            }
        }
    }
}
