//! Feeds the graph: a list and a watch of the metadata of each kind that can be deleted, as kinds
//! come and go.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kube::api::{ListParams, WatchEvent, WatchParams};
use reconcile::Tasks;

use super::graph::Kind;
use super::slim::{Meta, Page, Slim};
use super::{Collector, request};
use crate::resources;

/// How often the list of kinds is looked at anew.
const REFRESH: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Collector {
    /// Starts and ends the watches as kinds come and go.
    pub(super) async fn follow_kinds(&self, tasks: &Tasks) {
        let mut first = true;
        let mut running: HashMap<(String, String), Tasks> = HashMap::new();
        loop {
            let found = match resources::discover(&self.client).await {
                Ok(found) if !found.resources.is_empty() => found,
                Ok(_) | Err(_) => {
                    tokio::time::sleep(Duration::from_millis(if first { 50 } else { 5000 })).await;
                    continue;
                }
            };
            let key = |kind: &Kind| (kind.resource.group.clone(), kind.resource.kind.clone());
            // What a group served that does not answer now stays as it was.
            let silent = |group: &str| found.failures.iter().any(|(version, _)| version.split('/').next() == Some(group));
            let mut kinds = self.kinds.lock().clone();
            kinds.retain(|(group, _), _| silent(group));
            let mut followed: HashSet<(String, String)> = kinds.keys().filter(|k| running.contains_key(*k)).cloned().collect();
            for served in found.resources {
                let kind = Arc::new(Kind { resource: served.resource.clone(), namespaced: served.namespaced });
                if ["list", "watch", "delete"].iter().all(|v| served.can(v)) && served.resource.plural != "events" {
                    followed.insert(key(&kind));
                    if !running.contains_key(&key(&kind)) {
                        let child = tasks.child();
                        self.unsynced.send_modify(|n| *n += 1);
                        let (c, kind) = (self.clone(), kind.clone());
                        child.spawn(format!("garbage-collector {}", served.resource.plural), async move { c.follow(kind).await });
                        running.insert((served.resource.group.clone(), served.resource.kind.clone()), child);
                    }
                }
                kinds.insert(key(&kind), kind);
            }
            let ended = running.extract_if(|kind, _| !followed.contains(kind)).collect::<Vec<_>>();
            let old = std::mem::replace(&mut *self.kinds.lock(), kinds);
            for (kind, task) in ended {
                task.cancel();
                if let Some(kind) = old.get(&kind) {
                    let gone = self.graph.lock().others(kind, &HashSet::new());
                    gone.iter().for_each(|uid| self.forget(uid));
                }
            }
            if first {
                first = false;
                self.unsynced.send_modify(|n| *n -= 1);
            }
            tokio::time::sleep(REFRESH).await;
        }
    }

    /// Lists and watches the metadata of one kind for ever.
    async fn follow(&self, kind: Arc<Kind>) {
        let mut listed = false;
        let mut pause = Duration::from_millis(100);
        loop {
            match self.list_and_watch(&kind, &mut listed).await {
                Ok(()) => pause = Duration::from_millis(100),
                Err(error) => {
                    tracing::debug!(kind = kind.resource.kind, "listing again: {error}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Ends with `Ok` when the revision is gone and a new list is due.
    async fn list_and_watch(&self, kind: &Arc<Kind>, listed: &mut bool) -> kube::Result<()> {
        let mut params = ListParams::default().limit(500);
        let mut seen = HashSet::new();
        let mut version = loop {
            let request = request(kind, None).list_metadata(&params).map_err(kube::Error::BuildRequest)?;
            let page: Page = self.client.request(request).await?;
            for object in page.items {
                self.put(kind, &object.metadata);
                seen.insert(object.metadata.uid);
            }
            match page.metadata.continue_.filter(|c| !c.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break page.metadata.resource_version.unwrap_or_default(),
            }
        };
        let gone = self.graph.lock().others(kind, &seen);
        drop(seen);
        gone.iter().for_each(|uid| self.forget(uid));
        if !*listed {
            *listed = true;
            self.unsynced.send_modify(|n| *n -= 1);
        }
        loop {
            let request = request(kind, None).watch_metadata(&WatchParams::default().timeout(290), &version);
            let events = self.client.request_events::<Slim>(request.map_err(kube::Error::BuildRequest)?).await;
            let mut events = match events {
                Ok(events) => events.boxed(),
                Err(kube::Error::Api(status)) if status.code == 410 => return Ok(()),
                Err(error) => return Err(error),
            };
            while let Some(event) = events.try_next().await? {
                match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        self.put(kind, &object.metadata);
                        version = object.metadata.resource_version;
                    }
                    WatchEvent::Deleted(object) => {
                        self.forget(&object.metadata.uid);
                        version = object.metadata.resource_version;
                    }
                    WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
                    WatchEvent::Error(status) if status.code == 410 => return Ok(()),
                    WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
                }
            }
        }
    }

    fn put(&self, kind: &Arc<Kind>, meta: &Meta) {
        let work = self.graph.lock().put(kind, meta);
        work.look.into_iter().for_each(|uid| self.queue.add(uid));
        self.tell(work.misplaced);
    }
}
