//! What is written for pods with devices: allocations and reservations before they are bound, and what
//! takes them back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim, ResourceClaimConsumerReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use parking_lot::RwLock;
use reconcile::{EventType, Recorder, Reference, Tasks};
use serde_json::json;
use tokio::sync::Notify;

use super::asked::is_reserved_for;
use super::extended::Extended;
use super::needs::{Readiness, has_conditions, readiness};
use super::plugin::Reserved;
use super::world::World;
use crate::pod::PodInfo;

/// Keeps a claim from going while it is allocated.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Times that a write is tried which meets other writers.
const ATTEMPTS: usize = 5;
const PAUSE: Duration = Duration::from_millis(10);
/// How often devices are looked at that get ready, though nothing was told.
const LOOK: Duration = Duration::from_secs(5);

/// A random uid.
pub(crate) fn new_uid() -> String {
    use std::hash::{BuildHasher, Hasher};
    // Each state is seeded by the system's random numbers.
    let random = || std::collections::hash_map::RandomState::new().build_hasher().finish();
    let (a, b) = (random(), random());
    format!("{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}", a >> 32, (a >> 16) & 0xffff, a & 0xfff, 0x8000 | ((b >> 48) & 0x3fff), b & 0xffff_ffff_ffff)
}

/// See the module.
pub(crate) struct Writer {
    pub client: Client,
    pub tasks: Tasks,
    pub world: Arc<RwLock<World>>,
    /// By the names of the profiles.
    pub recorders: HashMap<String, Recorder>,
    /// Told of each change of a claim.
    pub changed: Arc<Notify>,
    /// How long devices may take to get ready.
    pub timeout: Duration,
}

enum Failed {
    /// Another one has written meanwhile.
    Conflict(String),
    Other(String),
}

impl Failed {
    fn of(what: String) -> impl FnOnce(kube::Error) -> Failed {
        move |error| match error {
            kube::Error::Api(s) if s.code == 409 && s.reason == "Conflict" => Failed::Conflict(format!("{what}: {}", s.message)),
            kube::Error::Api(s) => Failed::Other(format!("{what}: {}", s.message)),
            other => Failed::Other(format!("{what}: {other}")),
        }
    }
}

fn named(claim: &ResourceClaim) -> String {
    super::allocator::described(claim)
}

impl Writer {
    pub fn patience(&self) -> SignedDuration {
        SignedDuration::try_from(self.timeout).unwrap_or(SignedDuration::MAX)
    }

    fn claims(&self, namespace: &str) -> Api<ResourceClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// PreBind: writes what was promised, and waits until the devices are ready.
    pub async fn write(&self, pod: &PodInfo, node: &str, reserved: &Reserved) -> Result<(), String> {
        let mut written = Vec::new();
        for (claim, allocation) in &reserved.claims {
            let claim = if is_reserved_for(pod, claim) { claim.clone() } else { self.bind(pod, claim, allocation.as_deref()).await? };
            if let Some(uid) = claim.metadata.uid.as_deref().filter(|_| allocation.is_some()) {
                self.world.write().end_promise(uid, Some(&claim));
            } else {
                self.world.write().put_claim(&claim);
            }
            written.push(claim);
        }
        if let Some((extended, allocation)) = &reserved.extended {
            let made = self.make(extended).await?;
            // From here on it is found by its owner, should the pod be turned away.
            self.world.write().put_claim(&made);
            let claim = self.bind(pod, &made, Some(allocation)).await?;
            let uid = extended.claim.metadata.uid.as_deref().unwrap_or_default();
            self.world.write().end_promise(uid, Some(&claim));
            self.tell(pod, extended, &claim).await?;
            written.push(claim);
        }
        if written.iter().any(|c| has_conditions(c)) {
            self.wait(pod, node, &written).await?;
        }
        Ok(())
    }

    /// Writes a reservation, and the allocation if there is one.
    async fn bind(&self, pod: &PodInfo, claim: &Arc<ResourceClaim>, allocation: Option<&AllocationResult>) -> Result<Arc<ResourceClaim>, String> {
        let api = self.claims(pod.namespace());
        let mut now = claim.as_ref().clone();
        let mut attempt = 1;
        loop {
            match self.try_bind(&api, pod, now, allocation).await {
                Ok(written) => return Ok(Arc::new(written)),
                Err(Failed::Conflict(_)) if attempt < ATTEMPTS => {}
                Err(Failed::Conflict(why) | Failed::Other(why)) => return Err(why),
            }
            attempt += 1;
            tokio::time::sleep(PAUSE).await;
            let again = api.get(&claim.name_any()).await;
            now = again.map_err(|e| format!("get updated claim {} after conflict: {}", named(claim), said(&e)))?;
            if now.metadata.uid != claim.metadata.uid {
                return Err(format!("claim {} got deleted in the meantime", named(claim)));
            }
        }
    }

    async fn try_bind(&self, api: &Api<ResourceClaim>, pod: &PodInfo, mut claim: ResourceClaim, allocation: Option<&AllocationResult>) -> Result<ResourceClaim, Failed> {
        let name = named(&claim);
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(Failed::Other(format!("claim {name} got deleted in the meantime")));
        }
        if let Some(allocation) = allocation {
            if super::world::allocation(&claim).is_some() {
                return Err(Failed::Other(format!("claim {name} got allocated elsewhere in the meantime")));
            }
            if !claim.finalizers().iter().any(|f| f == FINALIZER) {
                claim.finalizers_mut().push(FINALIZER.into());
                claim = api.replace(&claim.name_any(), &PostParams::default(), &claim).await.map_err(Failed::of(format!("add finalizer to claim {name}")))?;
            }
            claim.status.get_or_insert_default().allocation = Some(allocation.clone());
        }
        let status = claim.status.get_or_insert_default();
        let Some(given) = &mut status.allocation else {
            return Err(Failed::Other(format!("claim {name} got deallocated elsewhere in the meantime")));
        };
        given.allocation_timestamp.get_or_insert_with(|| Time(Timestamp::now()));
        let consumer = ResourceClaimConsumerReference { api_group: None, resource: "pods".into(), name: pod.name().into(), uid: pod.uid().into() };
        let reserved = status.reserved_for.get_or_insert_default();
        // A write whose answer was lost may have done it.
        if !reserved.iter().any(|r| r.uid == consumer.uid) {
            reserved.push(consumer);
        }
        let what = if allocation.is_some() { "add allocation and reservation to" } else { "add reservation to" };
        api.replace_status(&claim.name_any(), &PostParams::default(), &claim).await.map_err(Failed::of(format!("{what} claim {name}")))
    }

    /// Makes the claim for extended resources.
    async fn make(&self, extended: &Extended) -> Result<Arc<ResourceClaim>, String> {
        let mut claim = extended.claim.clone();
        (claim.metadata.name, claim.metadata.uid) = (None, None);
        let namespace = claim.namespace().unwrap_or_default();
        let made = self.claims(&namespace).create(&PostParams::default(), &claim).await;
        made.map(Arc::new).map_err(|e| format!("create claim for extended resources {namespace}/: {}", said(&e)))
    }

    /// Writes into the pod's status which claim its extended resources come from.
    async fn tell(&self, pod: &PodInfo, extended: &Extended, claim: &ResourceClaim) -> Result<(), String> {
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"extendedResourceClaimStatus": {"resourceClaimName": claim.name_any(), "requestMappings": extended.mappings}}});
        let api = Api::<Pod>::namespaced(self.client.clone(), pod.namespace());
        let told = api.patch_status(pod.name(), &PatchParams::default(), &Patch::Strategic(patch)).await;
        told.map(|_| ()).map_err(|e| format!("update pod {}/{} ExtendedResourceClaimStatus: {}", pod.namespace(), pod.name(), said(&e)))
    }

    /// Waits until the devices of these claims are ready.
    async fn wait(&self, pod: &PodInfo, node: &str, claims: &[Arc<ResourceClaim>]) -> Result<(), String> {
        if let Some(recorder) = self.recorders.get(pod.shape.scheduler.as_ref()) {
            recorder.event(&Reference::of(pod), EventType::Normal, "BindingConditionsPending", format!("waiting for binding conditions for device on node {node}"));
        }
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.are_ready(claims)? {
                    return Ok(());
                }
                let _ = tokio::time::timeout(LOOK, changed).await;
            }
        };
        match tokio::time::timeout(self.timeout, wait).await {
            Ok(done) => done,
            Err(_) => Err("device binding timeout: context deadline exceeded".into()),
        }
    }

    fn are_ready(&self, claims: &[Arc<ResourceClaim>]) -> Result<bool, String> {
        let world = self.world.read_recursive();
        let mut all = true;
        for claim in claims {
            let (namespace, name) = (claim.namespace().unwrap_or_default(), claim.name_any());
            let known = world.claim(&namespace, &name).ok_or_else(|| format!("could not find ResourceClaim \"{namespace}/{name}\""))?;
            if super::world::allocation(known).is_none() {
                return Err(format!("claim {namespace}/{name} got deallocated elsewhere in the meantime"));
            }
            match readiness(known) {
                Readiness::Ready => {}
                Readiness::Waiting => all = false,
                Readiness::Failed(why) => return Err(why),
            }
        }
        Ok(all)
    }

    /// Unreserve: the pod does not get the claims after all. `own` are those that say that they are its.
    pub fn release(self: Arc<Self>, pod: &PodInfo, own: Vec<Arc<ResourceClaim>>, extended: Option<Arc<ResourceClaim>>) {
        if own.is_empty() && extended.is_none() {
            return;
        }
        let (namespace, uid) = (pod.namespace().to_string(), pod.uid().to_string());
        let writer = self.clone();
        self.tasks.spawn("device claims that are given back", async move {
            for claim in own {
                // One entry can be removed without knowing the others.
                let patch = json!({"metadata": {"uid": claim.uid()}, "status": {"reservedFor": [{"$patch": "delete", "uid": uid}]}});
                let done = writer.claims(&namespace).patch_status(&claim.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await;
                match done {
                    Ok(claim) => writer.world.write().put_claim(&Arc::new(claim)),
                    Err(error) => tracing::debug!(claim = claim.name_any(), "the reservation could not be taken back: {error}"),
                }
            }
            if let Some(claim) = extended
                && let Err(error) = writer.remove(&claim).await
            {
                tracing::debug!(claim = claim.name_any(), "it could not be removed: {error}");
            }
        });
    }

    /// PostFilter: gives a claim's devices back, or removes it when it was made for extended resources.
    pub async fn give_back(&self, pod: &PodInfo, claim: &ResourceClaim) -> Result<(), String> {
        if self.world.read_recursive().extended_of(pod).is_some_and(|e| e.metadata.uid == claim.metadata.uid) {
            return self.remove(claim).await;
        }
        let mut claim = claim.clone();
        claim.status = None;
        let api = self.claims(pod.namespace());
        let done = api.replace_status(&claim.name_any(), &PostParams::default(), &claim).await;
        done.map(|claim| self.world.write().put_claim(&Arc::new(claim))).map_err(|e| said(&e))
    }

    /// Removes a claim, and before that what keeps it.
    async fn remove(&self, claim: &ResourceClaim) -> Result<(), String> {
        let api = self.claims(&claim.namespace().unwrap_or_default());
        let mut now = claim.clone();
        for attempt in 1.. {
            now.finalizers_mut().retain(|f| f != FINALIZER);
            match api.replace(&now.name_any(), &PostParams::default(), &now).await {
                Ok(_) => break,
                Err(kube::Error::Api(s)) if s.code == 404 => return Ok(()),
                Err(kube::Error::Api(s)) if s.code == 409 && attempt < ATTEMPTS => now = api.get(&claim.name_any()).await.map_err(|e| said(&e))?,
                Err(error) => return Err(said(&error)),
            }
        }
        match api.delete(&claim.name_any(), &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(s)) if s.code == 404 => Ok(()),
            Err(error) => Err(said(&error)),
        }
    }
}

fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
