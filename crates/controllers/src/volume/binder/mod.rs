//! persistentvolume-binder: claims and volumes find each other, provisioners are asked for what is
//! missing, and volumes whose claims are gone are kept, given free, or left to who made them.
//!
//! One worker, because two claims must not take one volume: what is written is written under the
//! revision that was read, so a stale view costs a second try and nothing else.

pub mod plan;
pub mod recycle;
#[cfg(test)]
mod tests;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{self, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, run_workers};
use rules::storage;

use crate::Context;
use crate::pod::Pod;
use plan::{ClaimAction, Note, VolumeAction, World, plan_claim, plan_volume};
pub use writes::claim_reference;

/// How often what waits is looked at, and its event told, again.
const AGAIN: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Claim(String, String),
    Volume(String),
}

struct Binder {
    client: Client,
    recorder: Recorder,
    queue: Queue<Key>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    pods: Informer<Pod>,
}

/// Starts the controller.
pub fn start(context: &Context) {
    let binder = Arc::new(Binder {
        client: context.client.clone(),
        recorder: Recorder::new(&context.tasks, context.client.clone(), "persistentvolume-controller", None),
        queue: Queue::new(),
        claims: context.informers.of(),
        volumes: context.informers.of(),
        classes: context.informers.of(),
        pods: context.informers.of(),
    });
    follow(&binder);
    run_workers(&context.tasks, "persistentvolume-binder", 1, binder.queue.clone(), move |key| {
        let binder = binder.clone();
        async move {
            binder.claims.synced().await;
            binder.volumes.synced().await;
            binder.classes.synced().await;
            binder.pods.synced().await;
            match &key {
                Key::Claim(namespace, name) => binder.sync_claim(namespace, name).await,
                Key::Volume(name) => binder.sync_volume(name).await,
            }
        }
    });
}

fn claim_key(claim: &PersistentVolumeClaim) -> Key {
    Key::Claim(claim.namespace().unwrap_or_default(), claim.name_any())
}

/// Claims that have no volume yet: what any other object's change may help.
fn add_waiting(queue: &Queue<Key>, claims: &Informer<PersistentVolumeClaim>) {
    claims.list().iter().filter(|c| !c.annotations().contains_key(storage::BIND_COMPLETED)).for_each(|c| queue.add(claim_key(c)));
}

fn follow(binder: &Binder) {
    let q = binder.queue.clone();
    binder.claims.on_change(move |change| {
        let claim = change.latest();
        q.add(claim_key(claim));
        let named = storage::volume_name(claim);
        if !named.is_empty() {
            q.add(Key::Volume(named.into()));
        }
    });
    let (q, claims) = (binder.queue.clone(), binder.claims.clone());
    binder.volumes.on_change(move |change| {
        let volume = change.latest();
        q.add(Key::Volume(volume.name_any()));
        match volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) {
            Some(r) => q.add(Key::Claim(r.namespace.clone().unwrap_or_default(), r.name.clone().unwrap_or_default())),
            None if change.new.is_some() => add_waiting(&q, &claims),
            None => {}
        }
    });
    let (q, claims) = (binder.queue.clone(), binder.claims.clone());
    binder.classes.on_change(move |change| {
        if change.new.is_some() {
            add_waiting(&q, &claims);
        }
    });
    let (q, claims, volumes) = (binder.queue.clone(), binder.claims.clone(), binder.volumes.clone());
    binder.pods.on_change(move |change| {
        let pod = change.latest();
        if let Some(volume) = pod.name_any().strip_prefix("recycler-for-")
            && volumes.get("", volume).is_some()
        {
            q.add(Key::Volume(volume.into()));
        }
        let namespace = pod.namespace().unwrap_or_default();
        for name in pod.claims() {
            // A claim that waits tells for whom.
            if claims.get(&namespace, &name).is_some_and(|c| !c.annotations().contains_key(storage::BIND_COMPLETED)) && change.old.is_none() {
                q.add(Key::Claim(namespace.clone(), name));
            }
        }
    });
}

impl Binder {
    fn tell<K: kube::Resource<DynamicType = ()>>(&self, object: &K, note: &Note) {
        self.recorder.event(&Reference::of(object), note.kind, note.reason, note.message.clone());
    }

    fn claim_api(&self, claim: &PersistentVolumeClaim) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default())
    }

    fn volume_api(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    async fn sync_claim(&self, namespace: &str, name: &str) -> kube::Result<Requeue> {
        let Some(claim) = self.claims.get(namespace, name) else { return Ok(Requeue::No) };
        if let Some(new) = writes::handed_over_claim(&claim) {
            // The rest follows when that is seen.
            return passing(self.claim_api(&claim).replace(name, &PostParams::default(), &new).await.map(|_| ()), Requeue::No);
        }
        let world = World { volumes: self.volumes.list(), classes: self.classes.list(), pods: self.pods.in_namespace(namespace) };
        let (written, again) = match plan_claim(&claim, &world) {
            ClaimAction::Wait(note) => {
                if let Some(note) = &note {
                    self.tell(claim.as_ref(), note);
                }
                (self.write_status(&claim, "Pending", None).await.map(|_| ()), Requeue::After(AGAIN))
            }
            ClaimAction::Bind(volume) => (self.bind(&volume, &claim).await, Requeue::No),
            ClaimAction::Lost(note) => {
                if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost") {
                    return Ok(Requeue::No);
                }
                let written = self.write_status(&claim, "Lost", None).await;
                if written.is_ok() {
                    self.tell(claim.as_ref(), &note);
                }
                (written.map(|_| ()), Requeue::No)
            }
            ClaimAction::SetClass(class) => {
                let new = writes::with_class(&claim, &class);
                (self.claim_api(&claim).replace(name, &PostParams::default(), &new).await.map(|_| ()), Requeue::No)
            }
            ClaimAction::Provision(provisioner) => (self.ask(&claim, &provisioner).await, Requeue::After(AGAIN)),
            ClaimAction::Tell(note) => {
                self.tell(claim.as_ref(), &note);
                (Ok(()), Requeue::After(AGAIN))
            }
        };
        passing(written, again)
    }

    async fn ask(&self, claim: &PersistentVolumeClaim, provisioner: &str) -> kube::Result<()> {
        if let Some(new) = writes::with_provisioner(claim, provisioner) {
            self.claim_api(claim).replace(&claim.name_any(), &PostParams::default(), &new).await?;
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
        );
        self.tell(claim, &Note { kind: EventType::Normal, reason: "ExternalProvisioning", message });
        Ok(())
    }

    async fn write_status(&self, claim: &PersistentVolumeClaim, phase: &str, volume: Option<&PersistentVolume>) -> kube::Result<()> {
        if let Some(new) = writes::claim_status(claim, phase, volume) {
            self.claim_api(claim).replace_status(&claim.name_any(), &PostParams::default(), &new).await?;
        }
        Ok(())
    }

    async fn write_phase(&self, volume: &PersistentVolume, phase: &str, message: &str) -> kube::Result<PersistentVolume> {
        match writes::volume_phase(volume, phase, message) {
            Some(new) => self.volume_api().replace_status(&volume.name_any(), &PostParams::default(), &new).await,
            None => Ok(volume.clone()),
        }
    }

    /// Four writes, in an order in which each can be the last one before a crash.
    async fn bind(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> kube::Result<()> {
        let (volume_name, claim_name) = (volume.name_any(), claim.name_any());
        let volume = match writes::volume_to_claim(volume, claim) {
            Some(new) => self.volume_api().replace(&volume_name, &PostParams::default(), &new).await?,
            None => volume.clone(),
        };
        let volume = self.write_phase(&volume, "Bound", "").await?;
        let claim = match writes::claim_to_volume(claim, &volume_name) {
            Some(new) => self.claim_api(claim).replace(&claim_name, &PostParams::default(), &new).await?,
            None => claim.clone(),
        };
        self.write_status(&claim, "Bound", Some(&volume)).await
    }

    /// The claim that a volume refers to. That it is gone, or another one of the name, is asked of the
    /// API server: data may be lost over it.
    async fn claim_of(&self, volume: &PersistentVolume) -> kube::Result<Option<PersistentVolumeClaim>> {
        let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.clone()) else { return Ok(None) };
        let (namespace, name) = (reference.namespace.unwrap_or_default(), reference.name.unwrap_or_default());
        match self.claims.get(&namespace, &name) {
            Some(claim) if reference.uid.is_none() || claim.metadata.uid == reference.uid => Ok(Some(claim.as_ref().clone())),
            _ => Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &namespace).get_opt(&name).await,
        }
    }

    async fn sync_volume(&self, name: &str) -> kube::Result<Requeue> {
        let Some(volume) = self.volumes.get("", name) else { return Ok(Requeue::No) };
        if let Some(new) = writes::handed_over_volume(&volume) {
            return passing(self.volume_api().replace(name, &PostParams::default(), &new).await.map(|_| ()), Requeue::No);
        }
        let claim = self.claim_of(&volume).await?;
        let users = users(&volume, &self.pods);
        let recycler = self.pods.get(recycle::NAMESPACE, &recycle::name(name));
        for action in plan_volume(&volume, claim.as_ref(), &users, recycler.as_ref()) {
            let again = matches!(action, VolumeAction::Tell(_));
            let done = self.act(&volume, claim.as_ref(), action).await;
            let done = passing(done, if again { Requeue::After(AGAIN) } else { Requeue::No })?;
            if done != Requeue::No {
                return Ok(done);
            }
        }
        Ok(Requeue::No)
    }

    async fn act(&self, volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>, action: VolumeAction) -> kube::Result<()> {
        match action {
            VolumeAction::Phase(phase) => self.write_phase(volume, phase, "").await.map(|_| ()),
            VolumeAction::Failed(note) => {
                if storage::volume_phase(volume) != "Failed" {
                    self.write_phase(volume, "Failed", &note.message).await?;
                    self.tell(volume, &note);
                }
                Ok(())
            }
            VolumeAction::Unbind(note) => {
                if let Some(note) = &note {
                    self.tell(volume, note);
                }
                let new = self.volume_api().replace(&volume.name_any(), &PostParams::default(), &writes::unbound(volume)).await?;
                self.write_phase(&new, "Available", "").await.map(|_| ())
            }
            VolumeAction::Claim => {
                if let Some(claim) = claim {
                    self.queue.add(claim_key(claim));
                }
                Ok(())
            }
            VolumeAction::Mismatch { volume: of_volume, claim: of_claim } => {
                self.tell(volume, &of_volume);
                if let Some(claim) = claim {
                    self.tell(claim, &of_claim);
                }
                Ok(())
            }
            VolumeAction::Recycle(pod) => {
                // What is known of the volume may be of before it found its next claim, whose data would be wiped.
                let now = self.volume_api().get_metadata(&volume.name_any()).await?;
                if now.metadata.resource_version != volume.metadata.resource_version {
                    return Err(outdated());
                }
                let api = Api::<v1::Pod>::namespaced(self.client.clone(), recycle::NAMESPACE);
                api.create(&PostParams::default(), &pod).await.map(|_| ())
            }
            VolumeAction::EndRecycler(pod) => {
                // Only what is known of it now tells that the volume is clean: it may be of the last time it was released.
                let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: pod.metadata.resource_version.clone() };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                match Api::<Pod>::namespaced(self.client.clone(), recycle::NAMESPACE).delete(&pod.name_any(), &params).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => Err(outdated()),
                    done => done.map(|_| ()),
                }
            }
            VolumeAction::Tell(note) => {
                self.tell(volume, &note);
                Ok(())
            }
        }
    }
}

/// Pods that use the claim that a volume refers to.
fn users(volume: &PersistentVolume, pods: &Informer<Pod>) -> Vec<Arc<Pod>> {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return Vec::new() };
    let name = reference.name.clone().unwrap_or_default();
    let all = pods.in_namespace(reference.namespace.as_deref().unwrap_or_default());
    all.into_iter().filter(|p| p.claims().contains(&name)).collect()
}

/// What an action rests on is no longer so.
fn outdated() -> kube::Error {
    kube::Error::Api(Box::new(kube::core::Status::failure("the object has been modified", "Conflict").with_code(409)))
}

/// A conflict means that something newer is on its way here; what is gone needs nothing more.
fn passing(result: kube::Result<()>, then: Requeue) -> kube::Result<Requeue> {
    match result {
        Ok(()) => Ok(then),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Requeue::No),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Requeue::After(Duration::from_millis(50))),
        Err(error) => Err(error),
    }
}
