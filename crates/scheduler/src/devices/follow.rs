//! Keeps the [`World`] as the API server has it, and has pods tried again when what they wait for changes.

use std::sync::Arc;

use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use kube::{Client, ResourceExt};
use parking_lot::RwLock;
use reconcile::{Informer, Informers, Recorder, Tasks};
use tokio::sync::Notify;

use super::NAME;
use super::asked::claim_names;
use super::plugin::DynamicResources;
use super::selectors::Selectors;
use super::slice::Slice;
use super::world::{World, allocation, extends};
use super::write::Writer;
use crate::config::Config;
use crate::node::NodeView;
use crate::pod::PodInfo;
use crate::shell::Handle;

/// Makes the plug-in; it follows what it needs by itself.
pub(crate) fn start(client: &Client, informers: &Informers, tasks: &Tasks, config: &Config, handle: &Handle, selectors: Arc<dyn Selectors>) -> DynamicResources {
    let world = Arc::new(RwLock::new(World::default()));
    let changed = Arc::new(Notify::new());
    let (claims, classes, slices) = (informers.of::<ResourceClaim>(), informers.of::<DeviceClass>(), informers.of::<Slice>());
    follow_classes(&classes, &world, handle);
    follow_slices(&slices, &world, handle);
    follow_claims(&claims, &world, handle, &changed);
    let known = (claims.clone(), classes.clone(), slices.clone());
    let ready = move || known.0.has_synced() && known.1.has_synced() && known.2.has_synced();
    let h = handle.clone();
    tasks.spawn("devices of the scheduler", async move {
        claims.synced().await;
        classes.synced().await;
        slices.synced().await;
        h.free(|pod| !pod.shape.claims.is_empty());
        h.wake(NAME, |_| true);
    });
    let writer = Writer {
        client: client.clone(),
        tasks: tasks.clone(),
        world: world.clone(),
        recorders: config.profiles.iter().map(|p| (p.name.clone(), Recorder::new(tasks, client.clone(), p.name.clone(), None))).collect(),
        changed,
        // The longest that a profile waits: no pod waits less for it.
        timeout: config.profiles.iter().map(|p| p.device_bind_timeout).max().unwrap_or_default(),
    };
    let nodes = informers.of::<NodeView>();
    DynamicResources::new(world, selectors, Box::new(move |name| nodes.get("", name)), ready, Some(Arc::new(writer)))
}

fn follow_classes(classes: &Informer<DeviceClass>, world: &Arc<RwLock<World>>, handle: &Handle) {
    let (world, handle) = (world.clone(), handle.clone());
    classes.on_change(move |change| {
        world.write().set_class(&change.latest().name_any(), change.new.as_ref());
        if change.new.is_some() {
            handle.wake(NAME, |_| true);
            // Whether an extended resource is a matter of devices depends on classes.
            handle.wake("NodeResourcesFit", |pod| !pod.shape.devices.is_empty());
        }
    });
}

fn follow_slices(slices: &Informer<Slice>, world: &Arc<RwLock<World>>, handle: &Handle) {
    let (world, handle) = (world.clone(), handle.clone());
    slices.on_change(move |change| match &change.new {
        Some(slice) => {
            world.write().slices.put(slice);
            handle.wake(NAME, |_| true);
        }
        None => world.write().slices.remove(change.latest().name()),
    });
}

fn names(pod: &PodInfo, claim: &ResourceClaim) -> bool {
    claim.metadata.namespace.as_deref() == Some(pod.namespace()) && claim_names(pod).flatten().any(|(name, _)| claim.metadata.name.as_deref() == Some(name))
}

fn follow_claims(claims: &Informer<ResourceClaim>, world: &Arc<RwLock<World>>, handle: &Handle, changed: &Arc<Notify>) {
    let (world, handle, notify) = (world.clone(), handle.clone(), changed.clone());
    claims.on_change(move |change| {
        let claim = change.latest();
        match &change.new {
            Some(claim) => world.write().put_claim(claim),
            None => world.write().remove_claim(claim),
        }
        notify.notify_waiters();
        let (old, new) = (change.old.as_deref(), change.new.as_deref());
        if let (None, Some(new)) = (old, new) {
            handle.free(|pod| names(pod, new));
        }
        if let (None, Some(pod_uid)) = (new, extends(claim)) {
            // Its pod can have another one now.
            handle.wake(NAME, |pod| pod.uid() == pod_uid);
        }
        // Devices may be free again.
        let freed = old.is_some_and(|c| allocation(c).is_some()) && new.is_none_or(|c| allocation(c).is_none());
        let differs = new.is_some() && old.map(|c| &c.status) != new.map(|c| &c.status);
        if freed || differs {
            handle.wake(NAME, |pod| (freed || names(pod, claim)) && world.read_recursive().claims_of(pod).is_ok());
        }
    });
}
