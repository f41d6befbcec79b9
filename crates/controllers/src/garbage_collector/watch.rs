//! Feeds the graph: a list and a watch of the metadata of each kind that can be deleted, as kinds
//! come and go.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use kube::Resource;
use kube::core::DynamicObject;
use reconcile::{Feed, Sink, Tasks};
use serde_json::value::RawValue;

use super::Collector;
use super::graph::Kind;
use super::slim::{Meta, Slim};
use crate::resources;

/// How often the list of kinds is looked at anew.
const REFRESH: Duration = Duration::from_secs(30);
/// How soon it is looked at again when some of it could not be had; twice that the next time, and so on up to the other.
const RETRY: Duration = Duration::from_millis(50);
const MAX_RETRY: Duration = Duration::from_secs(5);

impl Collector {
    /// Starts and ends the watches as kinds come and go.
    pub(super) async fn follow_kinds(&self, tasks: &Tasks) {
        let (mut first, mut pause) = (true, RETRY);
        let mut running: HashMap<(String, String), Tasks> = HashMap::new();
        loop {
            let found = match resources::discover(&self.client).await {
                Ok(found) if !found.resources.is_empty() => found,
                Ok(_) | Err(_) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_RETRY);
                    continue;
                }
            };
            let key = |kind: &Kind| (kind.resource.group.clone(), kind.resource.kind.clone());
            // What a group served that does not answer now stays as it was.
            let mut kinds = self.kinds.lock().clone();
            kinds.retain(|(group, _), _| found.is_partial(group));
            let mut followed: HashSet<(String, String)> = kinds.keys().filter(|k| running.contains_key(*k)).cloned().collect();
            for served in &found.resources {
                let kind = Arc::new(Kind { resource: served.resource.clone(), namespaced: served.namespaced });
                if ["list", "watch", "delete"].iter().all(|v| served.can(v)) && served.resource.plural != "events" {
                    followed.insert(key(&kind));
                    if !running.contains_key(&key(&kind)) {
                        let child = tasks.child();
                        self.unsynced.send_modify(|n| *n += 1);
                        let feed = Feed::new(self.client.clone(), DynamicObject::url_path(&kind.resource, None)).metadata_only();
                        let mut intake = Intake { collector: self.clone(), kind: kind.clone(), seen: HashSet::new(), listed: false };
                        let name = format!("garbage-collector {}", served.resource.plural);
                        child.spawn(name, async move { feed.follow(&mut intake).await });
                        running.insert((served.resource.group.clone(), served.resource.kind.clone()), child);
                    }
                }
                kinds.insert(key(&kind), kind);
            }
            let ended = running.extract_if(|kind, _| !followed.contains(kind)).collect::<Vec<_>>();
            let old = std::mem::replace(&mut *self.kinds.lock(), kinds);
            if self.kinds.lock().keys().any(|k| !old.contains_key(k)) {
                // By now they may have to wait for long until they are looked at again.
                std::mem::take(&mut *self.unsure.lock()).into_iter().for_each(|uid| self.look(uid));
            }
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
            // Of kinds that are missing here nothing is known to be owned.
            let (now, next) = if found.failures.is_empty() { (REFRESH, RETRY) } else { (pause, (pause * 2).min(MAX_RETRY)) };
            tokio::time::sleep(now).await;
            pause = next;
        }
    }

    fn put(&self, kind: &Arc<Kind>, meta: &Meta) {
        let work = self.graph.lock().put(kind, meta);
        work.look.into_iter().for_each(|uid| self.look(uid));
        self.tell(work.misplaced);
    }
}

/// Puts the objects of one kind into the graph.
struct Intake {
    collector: Collector,
    kind: Arc<Kind>,
    /// What the list that is being taken in has had so far.
    seen: HashSet<String>,
    listed: bool,
}

impl Intake {
    fn decode(&self, raw: &RawValue) -> Option<Meta> {
        match serde_json::from_str::<Slim>(raw.get()) {
            Ok(object) => Some(object.metadata),
            Err(error) => {
                tracing::warn!(kind = self.kind.resource.kind, "an object is passed over: {error}");
                None
            }
        }
    }
}

impl Sink for Intake {
    fn begin(&mut self) {
        self.seen.clear();
    }

    fn page(&mut self, objects: &[&RawValue]) {
        for meta in objects.iter().filter_map(|raw| self.decode(raw)).collect::<Vec<_>>() {
            self.collector.put(&self.kind, &meta);
            self.seen.insert(meta.uid);
        }
    }

    fn listed(&mut self) {
        let gone = self.collector.graph.lock().others(&self.kind, &std::mem::take(&mut self.seen));
        gone.iter().for_each(|uid| self.collector.forget(uid));
        if !std::mem::replace(&mut self.listed, true) {
            self.collector.unsynced.send_modify(|n| *n -= 1);
        }
    }

    fn put(&mut self, raw: &RawValue) {
        if let Some(meta) = self.decode(raw) {
            self.collector.put(&self.kind, &meta);
        }
    }

    fn remove(&mut self, raw: &RawValue) {
        if let Some(meta) = self.decode(raw) {
            self.collector.forget(&meta.uid);
        }
    }
}
