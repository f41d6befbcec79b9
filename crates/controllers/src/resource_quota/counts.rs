//! How many objects of a kind each namespace has: a list and a watch of metadata for each kind that
//! a quota has ever asked about.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kube::core::{ApiResource, DynamicObject};
use kube::{Client, Resource};
use parking_lot::Mutex;
use reconcile::{Feed, Sink, Tasks};
use serde_json::value::RawValue;

use super::plan::Found;
use crate::garbage_collector::slim::Slim;
use crate::resources::{self, Discovered};

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

    async fn follow(self, kind: Kind) {
        let mut pause = Duration::from_millis(100);
        loop {
            let result = match self.served(&kind).await {
                Ok(Some(resource)) => {
                    let feed = Feed::new(self.client.clone(), DynamicObject::url_path(&resource, None)).metadata_only();
                    feed.once(&mut Intake { counts: &self, kind: &kind, listed: HashMap::new() }).await
                }
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
        find(found, kind).map_err(|why| kube::Error::Service(why.into()))
    }

    fn set(&self, kind: &Kind, objects: HashMap<String, String>) {
        let old = self.kinds.lock().insert(kind.clone(), Some(objects.clone())).flatten();
        if old.as_ref() != Some(&objects) {
            (self.notify)(kind, None);
        }
    }
}

/// The resource of a kind that can be counted, if there is one; an error when that is not known.
fn find(found: Discovered, kind: &Kind) -> Result<Option<ApiResource>, String> {
    let partial = found.is_partial(&kind.0);
    let mut all = found.resources.into_iter().filter(|s| s.namespaced && s.can("list") && s.can("watch"));
    match all.find(|s| s.resource.group == kind.0 && s.resource.plural == kind.1) {
        Some(served) => Ok(Some(served.resource)),
        None if partial => Err(format!("whether {}.{} is served is not known", kind.1, kind.0)),
        None => Ok(None),
    }
}

/// Counts the objects of one kind.
struct Intake<'a> {
    counts: &'a Counts,
    kind: &'a Kind,
    /// The list that is being taken in.
    listed: HashMap<String, String>,
}

impl Intake<'_> {
    /// Its uid and namespace.
    fn decode(&self, raw: &RawValue) -> Option<(String, String)> {
        match serde_json::from_str::<Slim>(raw.get()) {
            Ok(object) => Some((object.metadata.uid, object.metadata.namespace)),
            Err(error) => {
                tracing::warn!(kind = self.kind.1, "an object is not counted: {error}");
                None
            }
        }
    }

    fn counted(&self, change: impl FnOnce(&mut HashMap<String, String>)) {
        if let Some(Some(objects)) = self.counts.kinds.lock().get_mut(self.kind) {
            change(objects);
        }
    }
}

impl Sink for Intake<'_> {
    fn begin(&mut self) {
        self.listed.clear();
    }

    fn page(&mut self, objects: &[&RawValue]) {
        let page: Vec<_> = objects.iter().filter_map(|raw| self.decode(raw)).collect();
        self.listed.extend(page);
    }

    fn listed(&mut self) {
        self.counts.set(self.kind, std::mem::take(&mut self.listed));
    }

    fn put(&mut self, raw: &RawValue) {
        if let Some((uid, namespace)) = self.decode(raw) {
            self.counted(|objects| drop(objects.insert(uid, namespace)));
        }
    }

    fn remove(&mut self, raw: &RawValue) {
        if let Some((uid, namespace)) = self.decode(raw) {
            self.counted(|objects| drop(objects.remove(&uid)));
            (self.counts.notify)(self.kind, Some(&namespace));
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::GroupVersionKind;

    use super::*;
    use crate::resources::Served;

    fn served(group: &str, kind: &str, plural: &str, namespaced: bool, verbs: &[&str]) -> Served {
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural);
        Served { resource, namespaced, verbs: verbs.iter().map(|v| v.to_string()).collect() }
    }

    #[test]
    fn there_is_none_of_a_kind_only_when_all_of_its_group_was_seen() {
        let all = |failures: &[&str]| Discovered {
            resources: vec![
                served("batch", "Job", "jobs", true, &["list", "watch"]),
                served("batch", "Once", "onces", true, &["list"]),
                served("apps", "Host", "hosts", false, &["list", "watch"]),
            ],
            failures: failures.iter().map(|v| (v.to_string(), "no answer".to_string())).collect(),
        };
        let of = |found: Discovered, group: &str, plural: &str| find(found, &(group.into(), plural.into())).map(|r| r.map(|r| r.plural));
        assert_eq!(of(all(&["batch/v2"]), "batch", "jobs"), Ok(Some("jobs".into())));
        assert_eq!(of(all(&["apps/v1"]), "batch", "crons"), Ok(None), "other groups do not matter");
        assert!(of(all(&["batch/v2"]), "batch", "crons").is_err());
        assert_eq!(of(all(&[]), "batch", "onces"), Ok(None), "it cannot be watched");
        assert_eq!(of(all(&[]), "apps", "hosts"), Ok(None), "it is in no namespace");
        assert_eq!(of(all(&[]), "", "jobs"), Ok(None), "it is of another group");
    }
}
