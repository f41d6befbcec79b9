//! The garbage collector: deletes what has lost all its owners, and works off foreground and orphan
//! deletions. [`graph`] is the picture, [`plan`] the decision, [`watch`] feeds the graph by watching
//! the metadata of every kind; this file asks the API server what the graph cannot know, and carries
//! decisions out.

pub mod graph;
pub mod plan;
pub(crate) mod slim;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::{Client, core::Request};
use parking_lot::Mutex;
use reconcile::{EventType, Queue, Recorder, Reference, Requeue, run_workers};
use serde_json::{Value, json};

use crate::{Context, pods};
use graph::{Coordinates, Graph, Identity, Kind, Misplaced, State, Uid};
use plan::{Action, Standing, decide};
use slim::{Meta, Slim};

/// Workers, as upstream's `--concurrent-gc-syncs`.
const WORKERS: usize = 20;
/// How long the first lists may take before work begins without them.
const PATIENCE: Duration = Duration::from_secs(30);
/// Dependents that are let go at once.
const PARALLEL: usize = 16;

/// Kinds that are served, by group and kind.
type Kinds = HashMap<(String, String), Arc<Kind>>;

/// Why an object is to be looked at again, ever later.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}", pods::text(.0))]
    Api(#[from] kube::Error),
    #[error("an owner is of a kind that is not served, or has not been seen yet")]
    Unsure,
}

#[derive(Clone)]
struct Collector {
    client: Client,
    graph: Arc<Mutex<Graph>>,
    kinds: Arc<Mutex<Kinds>>,
    queue: Queue<Uid>,
    recorder: Recorder,
    /// Objects with owners of kinds that were not served when they were looked at.
    unsure: Arc<Mutex<HashSet<Uid>>>,
    /// Kinds whose first list is still to come.
    unsynced: Arc<tokio::sync::watch::Sender<usize>>,
}

/// Starts the controller.
pub fn start(context: &Context) {
    let collector = Collector {
        client: context.client.clone(),
        graph: Arc::default(),
        kinds: Arc::default(),
        queue: Queue::new(),
        unsure: Arc::default(),
        recorder: Recorder::new(&context.tasks, context.client.clone(), "garbage-collector-controller", None),
        unsynced: Arc::new(tokio::sync::watch::Sender::new(1)),
    };
    let (c, tasks) = (collector.clone(), context.tasks.clone());
    context.tasks.spawn("garbage-collector kinds", async move { c.follow_kinds(&tasks).await });
    let start = tokio::time::Instant::now();
    let c = collector.clone();
    run_workers(&context.tasks, "garbage-collector", context.workers(WORKERS), collector.queue.clone(), move |uid: Uid| {
        let c = c.clone();
        async move {
            // Owners that no list has shown yet are looked for at the API server, so nothing goes
            // wrong without the lists; with them it is just far less work.
            let mut unsynced = c.unsynced.subscribe();
            let _ = tokio::time::timeout_at(start + PATIENCE, unsynced.wait_for(|n| *n == 0)).await;
            c.work(&uid).await
        }
    });
}

impl Collector {
    async fn work(&self, uid: &Uid) -> Result<Requeue, Error> {
        let (state, identity) = {
            let graph = self.graph.lock();
            let Some(identity) = graph.identity(uid).cloned() else { return Ok(Requeue::No) };
            (graph.state(uid), identity)
        };
        match state {
            State::Settled | State::Blocked => Ok(Requeue::No),
            State::Unblocked => Ok(self.drop_finalizer(uid, &identity, "foregroundDeletion").await?),
            State::Orphaning(dependents) => {
                let results: Vec<kube::Result<()>> = futures::stream::iter(dependents)
                    .map(|(dependent, at)| async move { self.release(&dependent, &at, uid).await })
                    .buffer_unordered(PARALLEL)
                    .collect()
                    .await;
                results.into_iter().collect::<kube::Result<()>>()?;
                Ok(self.drop_finalizer(uid, &identity, "orphan").await?)
            }
            State::Owned => self.judge(uid, &identity).await,
        }
    }

    /// Looks at the object and its owners as they are now, and does what follows.
    async fn judge(&self, uid: &Uid, identity: &Identity) -> Result<Requeue, Error> {
        let Some(live) = self.live(uid, identity).await? else {
            self.forget(uid);
            return Ok(Requeue::No);
        };
        let mut standings = Vec::with_capacity(live.owner_references.len());
        for reference in &live.owner_references {
            let known = self.graph.lock().standing(reference, &identity.namespace);
            standings.push(match known {
                Some(standing) => standing,
                None => self.ask(reference, identity).await?,
            });
        }
        let dependents = self.graph.lock().dependents(uid);
        match decide(&live, &standings, dependents) {
            Action::Nothing => Ok(Requeue::No),
            Action::Retry => {
                if standings.contains(&Standing::Unknown) {
                    self.unsure.lock().insert(uid.clone());
                }
                Err(Error::Unsure)
            }
            Action::Keep(keep) => Ok(self.replace_owners(identity, &live, keep).await?),
            Action::Delete { policy, unblock } => {
                let mut live = live;
                if unblock {
                    let owners = live.owner_references.iter().cloned();
                    let free = owners.map(|r| OwnerReference { block_owner_deletion: Some(false), ..r }).collect();
                    if let Requeue::After(soon) = self.replace_owners(identity, &live, free).await? {
                        return Ok(Requeue::After(soon));
                    }
                    let Some(changed) = self.live(uid, identity).await? else { return Ok(Requeue::No) };
                    live = changed;
                }
                Ok(self.delete(uid, identity, &live, policy).await?)
            }
        }
    }

    /// Whether an owner exists that the graph does not hold under these coordinates.
    async fn ask(&self, reference: &OwnerReference, dependent: &Identity) -> kube::Result<Standing> {
        let coordinates = Coordinates::of(reference);
        let kind = self.kinds.lock().get(&(coordinates.group().to_string(), reference.kind.clone())).cloned();
        let Some(kind) = kind else { return Ok(Standing::Unknown) };
        if kind.namespaced && dependent.namespace.is_empty() {
            return Ok(Standing::Nonsense);
        }
        let namespace = if kind.namespaced { dependent.namespace.clone() } else { "".into() };
        let identity = Identity { kind, namespace: namespace.clone(), name: reference.name.as_str().into() };
        Ok(match self.live(&reference.uid, &identity).await? {
            Some(owner) if owner.deletion_timestamp.is_some() && owner.finalizers.iter().any(|f| f == "foregroundDeletion") => Standing::Waiting,
            Some(_) => Standing::Unseen,
            None => {
                self.graph.lock().remember_absent(&reference.uid, &namespace, coordinates);
                Standing::Absent
            }
        })
    }

    /// The object of this uid at this place.
    async fn live(&self, uid: &str, identity: &Identity) -> kube::Result<Option<Meta>> {
        let request = self.request(identity).get_metadata(&identity.name, &Default::default());
        match self.client.request::<Slim>(request.map_err(kube::Error::BuildRequest)?).await {
            Ok(object) if object.metadata.uid == uid => Ok(Some(object.metadata)),
            Ok(_) => Ok(None),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, uid: &Uid, identity: &Identity, live: &Meta, policy: PropagationPolicy) -> kube::Result<Requeue> {
        let mut version = Some(live.resource_version.clone());
        loop {
            let preconditions = Preconditions { uid: Some(uid.to_string()), resource_version: version.clone() };
            let params = DeleteParams { propagation_policy: Some(policy.clone()), preconditions: Some(preconditions), ..DeleteParams::default() };
            let request = self.request(identity).delete(&identity.name, &params).map_err(kube::Error::BuildRequest)?;
            match self.client.request_text(request).await {
                Ok(_) => return Ok(Requeue::No),
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    self.forget(uid);
                    return Ok(Requeue::No);
                }
                // Others may change it faster than we can read it; only its owners matter to us.
                Err(kube::Error::Api(status)) if status.code == 409 && version.is_some() => match self.live(uid, identity).await? {
                    None => return Ok(Requeue::No),
                    Some(now) if now.owner_references == live.owner_references => version = None,
                    Some(_) => return Ok(Requeue::After(Duration::from_millis(5))),
                },
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes a dependent lose one owner.
    async fn release(&self, uid: &Uid, identity: &Identity, owner: &Uid) -> kube::Result<()> {
        loop {
            let Some(live) = self.live(uid, identity).await? else { return Ok(()) };
            let keep: Vec<OwnerReference> = live.owner_references.iter().filter(|r| *r.uid != **owner).cloned().collect();
            if keep.len() == live.owner_references.len() {
                return Ok(());
            }
            if self.replace_owners(identity, &live, keep).await? == Requeue::No {
                return Ok(());
            }
        }
    }

    async fn replace_owners(&self, identity: &Identity, live: &Meta, owners: Vec<OwnerReference>) -> kube::Result<Requeue> {
        let patch = json!({"metadata": {"uid": live.uid, "resourceVersion": live.resource_version, "ownerReferences": owners}});
        self.patch(identity, patch).await
    }

    async fn drop_finalizer(&self, uid: &Uid, identity: &Identity, finalizer: &str) -> kube::Result<Requeue> {
        let Some(live) = self.live(uid, identity).await? else {
            self.forget(uid);
            return Ok(Requeue::No);
        };
        let left: Vec<&String> = live.finalizers.iter().filter(|f| *f != finalizer).collect();
        if left.len() == live.finalizers.len() {
            return Ok(Requeue::No);
        }
        self.patch(identity, json!({"metadata": {"resourceVersion": live.resource_version, "finalizers": left}})).await
    }

    /// Changes metadata. An object that is gone needs nothing; one that was changed is looked at again.
    async fn patch(&self, identity: &Identity, patch: Value) -> kube::Result<Requeue> {
        let request = self.request(identity).patch_metadata(&identity.name, &PatchParams::default(), &Patch::Merge(patch));
        match self.client.request_text(request.map_err(kube::Error::BuildRequest)?).await {
            Ok(_) => Ok(Requeue::No),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Requeue::No),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Requeue::After(Duration::from_millis(5))),
            Err(error) => Err(error),
        }
    }

    /// An object that turned out not to exist.
    fn forget(&self, uid: &str) {
        let look = self.graph.lock().remove(uid);
        look.into_iter().for_each(|uid| self.look(uid));
    }

    /// Has an object looked at for a new reason: how often others were in vain does not matter for it.
    fn look(&self, uid: Uid) {
        self.queue.forget(&uid);
        self.queue.add(uid);
    }

    fn tell(&self, mistakes: Vec<Misplaced>) {
        for m in mistakes {
            let resource = &m.identity.kind.resource;
            let reference = Reference {
                api_version: resource.api_version.clone(),
                kind: resource.kind.clone(),
                namespace: m.identity.namespace.to_string(),
                name: m.identity.name.to_string(),
                uid: m.uid.to_string(),
                ..Reference::default()
            };
            let owner = &m.owner;
            let message = format!(
                "ownerRef [{}/{}, namespace: {ns}, name: {}, uid: {}] does not exist in namespace {ns:?}",
                owner.api_version, owner.kind, owner.name, m.owner_uid, ns = m.identity.namespace
            );
            self.recorder.event(&reference, EventType::Warning, "OwnerRefInvalidNamespace", message);
        }
    }

    fn request(&self, identity: &Identity) -> Request {
        request(&identity.kind, Some(&*identity.namespace).filter(|n| !n.is_empty()))
    }
}

/// Requests for objects of a kind, of one namespace or of all.
fn request(kind: &Kind, namespace: Option<&str>) -> Request {
    use kube::Resource;
    Request::new(kube::core::DynamicObject::url_path(&kind.resource, namespace))
}
