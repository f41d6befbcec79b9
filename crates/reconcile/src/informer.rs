//! One informer a kind a process: lists once, then watches, and tells its users what changed.
//!
//! An informer runs one task. It never gives up: a broken watch is resumed where it was, a revision
//! that is gone leads to a new list, whose differences become changes like any other.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use kube::{Client, Resource, ResourceExt};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::Tasks;
use crate::feed::{Feed, Sink};
use crate::lenient::{Decoded, Odd, decode};

/// A kind that an informer can hold: any k8s-openapi type.
pub trait Object: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static {}
impl<K> Object for K where K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static {}

/// One object's change. Created: no `old`. Deleted: no `new`.
pub struct Change<K> {
    /// The object as it was last seen.
    pub old: Option<Arc<K>>,
    /// The object as it is now.
    pub new: Option<Arc<K>>,
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        Change { old: self.old.clone(), new: self.new.clone() }
    }
}

impl<K> Change<K> {
    /// The object as it is now or, when it is deleted, as it last was.
    pub fn latest(&self) -> &Arc<K> {
        self.new.as_ref().or(self.old.as_ref()).expect("a change has one side at least")
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;
type Key = (String, String);

struct Shared<K> {
    objects: RwLock<BTreeMap<Key, Arc<K>>>,
    /// Held while a change is told, so that a new handler sees each object exactly once.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

/// What is known of one kind. Clones share it.
pub struct Informer<K>(Arc<Shared<K>>);

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer(self.0.clone())
    }
}

/// Informers by type and selection; each is an `Informer` of its type.
type ByKind = HashMap<(TypeId, String), Arc<dyn Any + Send + Sync>>;

/// The informers of a process over one client. Clones share them.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    tasks: Tasks,
    by_kind: Arc<Mutex<ByKind>>,
}

impl Informers {
    /// No informer runs yet; each starts when it is first asked for, as a task of `tasks`.
    pub fn new(client: Client, tasks: Tasks) -> Informers {
        Informers { client, tasks, by_kind: Arc::default() }
    }

    /// The client that the informers use.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The informer of all objects of a kind.
    pub fn of<K: Object>(&self) -> Informer<K> {
        self.selected("")
    }

    /// The informer of those objects that match a field selector, as `spec.nodeName=a`.
    pub fn selected<K: Object>(&self, fields: &str) -> Informer<K> {
        let mut by_kind = self.by_kind.lock();
        let shared = by_kind.entry((TypeId::of::<K>(), fields.to_string())).or_insert_with(|| {
            let shared =
                Arc::new(Shared::<K> { objects: RwLock::default(), handlers: Mutex::default(), synced: watch::Sender::new(false) });
            let feed = Feed::new(self.client.clone(), K::url_path(&(), None)).selected(fields);
            let mut intake = Intake { shared: shared.clone(), names: BTreeSet::new() };
            self.tasks.spawn(format!("informer {}", K::plural(&())), async move { feed.follow(&mut intake).await });
            shared
        });
        Informer(shared.clone().downcast::<Shared<K>>().expect("the key holds the type"))
    }
}

impl<K: Object> Informer<K> {
    /// The object of this name; the namespace is empty for cluster-wide kinds.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.0.objects.read().get(&(namespace.to_string(), name.to_string())).cloned()
    }

    /// All objects, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.0.objects.read().values().cloned().collect()
    }

    /// The objects of one namespace, ordered by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = (namespace.to_string(), String::new());
        let objects = self.0.objects.read();
        objects.range(from..).take_while(|((n, _), _)| n == namespace).map(|(_, o)| o.clone()).collect()
    }

    /// Whether a namespace has any object.
    pub fn any_in_namespace(&self, namespace: &str) -> bool {
        let from = (namespace.to_string(), String::new());
        self.0.objects.read().range(from..).next().is_some_and(|((n, _), _)| n == namespace)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.0.objects.read().len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `handler` for each object that is known now, as if just created, and then for each
    /// change, in order. It runs in the informer's task: it must be quick and must not block.
    pub fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut handlers = self.0.handlers.lock();
        for object in self.list() {
            handler(&Change { old: None, new: Some(object) });
        }
        handlers.push(Box::new(handler));
    }

    /// The same as a channel.
    pub fn subscribe(&self) -> tokio::sync::mpsc::UnboundedReceiver<Change<K>> {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        self.on_change(move |change| {
            // A subscriber that went away needs nothing.
            let _ = sender.send(change.clone());
        });
        receiver
    }

    /// Completes when the first list has been taken in.
    pub async fn synced(&self) {
        let mut synced = self.0.synced.subscribe();
        // The sender lives as long as `self`.
        let _ = synced.wait_for(|s| *s).await;
    }

    /// True when the first list has been taken in.
    pub fn has_synced(&self) -> bool {
        *self.0.synced.borrow()
    }
}

fn key<K: Object>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

impl<K: Object> Shared<K> {
    fn put(&self, mut object: K) {
        // Nobody who reconciles reads these, and they are a third of an object.
        object.meta_mut().managed_fields = None;
        let object = Arc::new(object);
        let handlers = self.handlers.lock();
        let mut old = self.objects.write().insert(key(object.as_ref()), object.clone());
        if old.as_ref().is_some_and(|o| o.meta().resource_version == object.meta().resource_version) {
            return;
        }
        // Another one of that name: the end of the old one was missed while no watch ran. Who waits for it must hear of it.
        if let Some(gone) = old.take_if(|o| o.meta().uid != object.meta().uid) {
            tell(&handlers, &Change { old: Some(gone), new: None });
        }
        tell(&handlers, &Change { old, new: Some(object) });
    }

    fn remove(&self, key: &Key) {
        let handlers = self.handlers.lock();
        let old = self.objects.write().remove(key);
        if old.is_some() {
            tell(&handlers, &Change { old, new: None });
        }
    }
}

/// An object that does not fit its type stays as it was last seen, or unseen.
fn complain<K: Object>(odd: &Odd) {
    tracing::warn!(kind = %K::kind(&()), namespace = odd.namespace, name = odd.name, "an object is passed over: {}", odd.error);
}

fn tell<K>(handlers: &[Handler<K>], change: &Change<K>) {
    handlers.iter().for_each(|handler| handler(change));
}

/// Feeds one informer. While a list is taken in, `names` grows to all that is in it.
struct Intake<K> {
    shared: Arc<Shared<K>>,
    names: BTreeSet<Key>,
}

impl<K: Object> Sink for Intake<K> {
    fn begin(&mut self) {
        self.names.clear();
    }

    fn page(&mut self, objects: &[&RawValue]) {
        for raw in objects {
            match decode::<K>(raw) {
                Decoded::Whole(object) => {
                    self.names.insert(key(&object));
                    self.shared.put(object);
                }
                Decoded::Odd(odd) => {
                    complain::<K>(&odd);
                    self.names.insert((odd.namespace, odd.name));
                }
            }
        }
    }

    fn listed(&mut self) {
        let names = std::mem::take(&mut self.names);
        let gone: Vec<Key> = self.shared.objects.read().keys().filter(|k| !names.contains(*k)).cloned().collect();
        gone.iter().for_each(|key| self.shared.remove(key));
        self.shared.synced.send_replace(true);
    }

    fn put(&mut self, raw: &RawValue) {
        match decode::<K>(raw) {
            Decoded::Whole(object) => self.shared.put(object),
            Decoded::Odd(odd) => complain::<K>(&odd),
        }
    }

    fn remove(&mut self, raw: &RawValue) {
        self.shared.remove(&match decode::<K>(raw) {
            Decoded::Whole(object) => key(&object),
            Decoded::Odd(odd) => (odd.namespace, odd.name),
        });
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    #[test]
    fn another_object_of_the_same_name_is_an_end_and_a_beginning() {
        let shared = Arc::new(Shared::<ConfigMap> { objects: RwLock::default(), handlers: Mutex::default(), synced: watch::Sender::new(false) });
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let told = log.clone();
        Informer(shared.clone()).on_change(move |change| {
            let uid = |side: &Option<Arc<ConfigMap>>| side.as_ref().and_then(|o| o.uid()).unwrap_or_else(|| "-".into());
            told.lock().push(format!("{} {}", uid(&change.old), uid(&change.new)));
        });
        let map = |uid: &str, version: &str| -> ConfigMap {
            serde_json::from_value(serde_json::json!({"metadata": {"name": "m", "namespace": "n", "uid": uid, "resourceVersion": version}}))
                .expect("a map")
        };
        for (uid, version) in [("a", "1"), ("a", "2"), ("a", "2"), ("b", "5")] {
            shared.put(map(uid, version));
        }
        assert_eq!(*log.lock(), ["- a", "a a", "a -", "- b"]);
    }
}
