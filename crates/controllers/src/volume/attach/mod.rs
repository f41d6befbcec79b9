//! Attaching and detaching of volumes: what CSI drivers are told by VolumeAttachments, and nodes by
//! their status. [`plan`] decides about one node.

mod plan;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Volume};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use reconcile::{Change, Informer, Queue, Recorder, Reference, Requeue, run_workers};
use rules::{migration, storage};
use serde_json::json;

use self::plan::{Attachable, Elsewhere, Input, Note, PodName};
use crate::pod::Pod;
use crate::{Context, pods};

/// Waits for an informer to show what has just been written.
const SETTLE: Duration = Duration::from_millis(100);

#[derive(Clone)]
struct Controller {
    client: Client,
    recorder: Recorder,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    attachments: Informer<VolumeAttachment>,
    drivers: Informer<CSIDriver>,
    queue: Queue<String>,
    memory: Arc<Mutex<Memory>>,
}

/// What is not in the API.
#[derive(Default)]
struct Memory {
    /// By node, the pods that use claims, or volumes that have to be attached.
    users: HashMap<String, HashSet<PodName>>,
    /// By node and volume, since when nobody wants it there.
    leaving: HashMap<(String, String), Instant>,
    /// By node, the warnings that its pods have been told already.
    told: HashMap<String, HashSet<(PodName, String)>>,
}

/// Starts the controller.
pub fn start(context: &Context) {
    let client = context.client.clone();
    let controller = Controller {
        recorder: Recorder::new(&context.tasks, client.clone(), "attachdetach-controller", None),
        client,
        pods: context.informers.of(),
        nodes: context.informers.of(),
        claims: context.informers.of(),
        volumes: context.informers.of(),
        attachments: context.informers.of(),
        drivers: context.informers.of(),
        queue: Queue::new(),
        memory: Arc::default(),
    };
    let c = controller.clone();
    controller.pods.on_change(move |change| c.pod_changed(change));
    let c = controller.clone();
    controller.nodes.on_change(move |change| c.queue.add(change.latest().name_any()));
    let c = controller.clone();
    controller.claims.on_change(move |change| c.claim_changed(&change.latest().namespace().unwrap_or_default(), &change.latest().name_any()));
    let c = controller.clone();
    controller.volumes.on_change(move |change| c.volume_changed(change.latest()));
    let c = controller.clone();
    controller.attachments.on_change(move |change| {
        let attachment = change.latest();
        c.queue.add(attachment.spec.node_name.clone());
        if change.new.is_none() {
            c.freed(attachment);
        }
    });
    let c = controller.clone();
    controller.drivers.on_change(move |_| c.nodes.list().iter().for_each(|n| c.queue.add(n.name_any())));
    run_workers(&context.tasks, "attachdetach", 4, controller.queue.clone(), move |node: String| {
        let controller = controller.clone();
        async move {
            controller.pods.synced().await;
            controller.nodes.synced().await;
            controller.claims.synced().await;
            controller.volumes.synced().await;
            controller.attachments.synced().await;
            controller.drivers.synced().await;
            pods::again_on_conflict(controller.sync(&node).await)
        }
    });
}

/// Whether a pod wants its volumes on its node: it has not ended.
fn wants(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let runs = |s: &crate::pod::ContainerStatus| s.state.as_ref().is_none_or(|s| s.waiting.is_none() && s.terminated.is_none());
    let leaving = pod.metadata.deletion_timestamp.is_some() && !statuses.into_iter().any(runs);
    !leaving && !matches!(pods::phase(pod), "Succeeded" | "Failed")
}

fn volumes_of(pod: &Pod) -> &[Volume] {
    pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default()
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

impl Controller {
    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.latest();
        let name = (pod.namespace().unwrap_or_default(), pod.name_any());
        let Some(node) = node_of(pod).filter(|_| !volumes_of(pod).is_empty()) else { return };
        let mut memory = self.memory.lock();
        match &change.new {
            Some(_) => drop(memory.users.entry(node.to_string()).or_default().insert(name)),
            None => {
                if let Some(users) = memory.users.get_mut(node) {
                    users.remove(&name);
                    if users.is_empty() {
                        memory.users.remove(node);
                    }
                }
            }
        }
        self.queue.add(node.to_string());
    }

    /// The pods that use a claim, with their nodes.
    fn users(&self, namespace: &str, claim: &str) -> Vec<(String, PodName)> {
        let memory = self.memory.lock();
        let all = memory.users.iter().flat_map(|(node, pods)| pods.iter().map(move |p| (node, p)));
        let uses = |(_, pod): &(&String, &PodName)| {
            pod.0 == namespace && self.pods.get(&pod.0, &pod.1).is_some_and(|p| wants(&p) && p.claims().iter().any(|c| c == claim))
        };
        all.filter(uses).map(|(node, pod)| (node.clone(), pod.clone())).collect()
    }

    fn claim_changed(&self, namespace: &str, name: &str) {
        self.users(namespace, name).into_iter().for_each(|(node, _)| self.queue.add(node));
    }

    fn volume_changed(&self, volume: &PersistentVolume) {
        if let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) {
            self.claim_changed(reference.namespace.as_deref().unwrap_or_default(), reference.name.as_deref().unwrap_or_default());
        }
    }

    /// Who waits for the volume of an attachment that is gone may have it now.
    fn freed(&self, attachment: &VolumeAttachment) {
        let source = &attachment.spec.source;
        let inline = source.inline_volume_spec.as_ref().and_then(|s| s.csi.clone());
        let volume = source.persistent_volume_name.as_ref().and_then(|v| self.volumes.get("", v));
        if let Some(volume) = &volume {
            self.volume_changed(volume);
        }
        let Some(csi) = inline.or_else(|| migration::source(volume.as_ref()?)?.ok()) else { return };
        // Pods may name it themselves.
        let unique = plan::unique_name(&csi.driver, &csi.volume_handle);
        let all: Vec<(String, PodName)> = {
            let memory = self.memory.lock();
            memory.users.iter().flat_map(|(node, pods)| pods.iter().map(move |p| (node.clone(), p.clone()))).collect()
        };
        all.into_iter().filter(|(_, pod)| self.uses(pod, &unique)).for_each(|(node, _)| self.queue.add(node));
    }

    fn attaches(&self, driver: &str) -> bool {
        self.drivers.get("", driver).is_none_or(|d| d.spec.attach_required != Some(false))
    }

    fn attachable(&self, volume: &PersistentVolume) -> Option<Attachable> {
        plan::attachable(volume, |driver| self.attaches(driver))
    }

    /// Whether a pod wants a volume of this name to be attached.
    fn uses(&self, pod: &PodName, unique: &str) -> bool {
        self.pods.get(&pod.0, &pod.1).is_some_and(|p| wants(&p) && self.wanted(&p).iter().any(|v| v.unique == unique))
    }

    /// What a pod wants to be attached.
    fn wanted(&self, pod: &Pod) -> Vec<Attachable> {
        let namespace = pod.namespace().unwrap_or_default();
        let behind = |volume: &Volume| {
            let Some((name, ephemeral)) = storage::claim_of(&pod.metadata, volume) else {
                return plan::inline_attachable(volume, &namespace, |driver| self.attaches(driver));
            };
            let claim = self.claims.get(&namespace, &name)?;
            if ephemeral && storage::made_for(&pod.metadata, &claim).is_err() {
                return None;
            }
            let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
            let volume = self.volumes.get("", claim.spec.as_ref()?.volume_name.as_deref().filter(|_| bound)?)?;
            let of_claim = volume.spec.as_ref()?.claim_ref.as_ref()?.uid == claim.metadata.uid;
            self.attachable(&volume).filter(|_| of_claim)
        };
        volumes_of(pod).iter().filter_map(behind).collect()
    }

    /// Whether an attachment is one of this volume. Several objects may stand for one volume of its driver.
    fn is_of(&self, attachment: &VolumeAttachment, volume: &Attachable) -> bool {
        let source = &attachment.spec.source;
        let Some((_, handle)) = volume.csi.as_ref().filter(|(driver, _)| *driver == attachment.spec.attacher) else { return false };
        match (&source.persistent_volume_name, &source.inline_volume_spec) {
            (Some(name), _) if volume.inline.is_none() && *name == volume.volume => true,
            (Some(name), _) => self.volumes.get("", name).is_some_and(|v| plan::is_handle(&v, handle)),
            (None, Some(spec)) => spec.csi.as_ref().is_some_and(|csi| csi.volume_handle == *handle),
            (None, None) => false,
        }
    }

    /// Other nodes that have a volume, and the pods there.
    fn elsewhere(&self, node: &str, volume: &Attachable) -> Elsewhere {
        let there = |a: &&Arc<VolumeAttachment>| a.spec.node_name != node && self.is_of(a, volume);
        let nodes: Vec<String> = self.attachments.list().iter().filter(there).map(|a| a.spec.node_name.clone()).collect();
        let mut pods: Vec<PodName> = {
            let memory = self.memory.lock();
            nodes.iter().filter_map(|n| memory.users.get(n)).flatten().cloned().collect()
        };
        pods.retain(|pod| self.uses(pod, &volume.unique));
        pods.sort();
        Elsewhere { nodes, pods }
    }

    async fn sync(&self, name: &str) -> kube::Result<Requeue> {
        let node = self.nodes.get("", name);
        let users = self.memory.lock().users.get(name).cloned().unwrap_or_default();
        let mut wanted: BTreeMap<String, (Attachable, Vec<PodName>)> = BTreeMap::new();
        for key in users {
            let Some(pod) = self.pods.get(&key.0, &key.1).filter(|p| node_of(p) == Some(name) && wants(p)) else { continue };
            for volume in self.wanted(&pod) {
                wanted.entry(volume.unique.clone()).or_insert_with(|| (volume, Vec::new())).1.push(key.clone());
            }
        }
        if node.is_none() {
            wanted.clear();
        }
        wanted.values_mut().for_each(|(_, pods)| pods.sort());
        let leaving = |unique: &str| {
            let memory = self.memory.lock();
            memory.leaving.get(&(name.to_string(), unique.to_string())).map_or(Duration::ZERO, |since| since.elapsed())
        };
        let plan = plan::plan(&Input {
            name,
            node: node.as_deref(),
            wanted,
            attachments: self.attachments.list().into_iter().filter(|a| a.spec.node_name == name).collect(),
            volume: &|volume| self.volumes.get("", volume).and_then(|v| self.attachable(&v)),
            elsewhere: &|volume| self.elsewhere(name, volume),
            leaving: &leaving,
            now: Timestamp::now(),
        });
        {
            let mut memory = self.memory.lock();
            memory.leaving.retain(|(node, volume), _| node != name || plan.leaving.contains(volume));
            for volume in &plan.leaving {
                memory.leaving.entry((name.to_string(), volume.clone())).or_insert_with(Instant::now);
            }
        }
        if let Some(report) = &plan.report {
            let patch = json!({"status": {"volumesAttached": report}});
            match Api::<Node>::all(self.client.clone()).patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => drop(other?),
            }
        }
        // The events first: what was attached is told of once, with the report.
        self.tell(name, plan.notes);
        let api = Api::<VolumeAttachment>::all(self.client.clone());
        for attachment in &plan.detach {
            tracing::info!(node = name, attachment, "detaching");
            match api.delete(attachment, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => drop(other?),
            }
        }
        for volume in &plan.attach {
            let Some((driver, handle)) = &volume.csi else { continue };
            let source = match &volume.inline {
                Some(spec) => json!({"inlineVolumeSpec": spec}),
                None => json!({"persistentVolumeName": volume.volume}),
            };
            let attachment = json!({"metadata": {"name": plan::attachment_name(driver, handle, name)},
                "spec": {"attacher": driver, "nodeName": name, "source": source}});
            let attachment: VolumeAttachment = serde_json::from_value(attachment).map_err(kube::Error::SerdeError)?;
            tracing::info!(node = name, volume = volume.volume, "attaching");
            match api.create(&PostParams::default(), &attachment).await {
                Err(kube::Error::Api(status)) if status.code == 409 => return Ok(Requeue::After(SETTLE)),
                other => drop(other?),
            }
        }
        Ok(plan.again.map_or(Requeue::No, Requeue::After))
    }

    /// Tells what has not been told yet.
    fn tell(&self, node: &str, notes: Vec<Note>) {
        let mut now = HashSet::new();
        let before = self.memory.lock().told.remove(node).unwrap_or_default();
        for note in notes {
            for pod in note.pods {
                let key = (pod, note.message.clone());
                if !before.contains(&key)
                    && let Some(object) = self.pods.get(&key.0.0, &key.0.1)
                {
                    self.recorder.event(&Reference::of(object.as_ref()), note.kind, note.reason, note.message.clone());
                }
                now.insert(key);
            }
        }
        if !now.is_empty() {
            self.memory.lock().told.insert(node.to_string(), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_pod_wants_its_volumes_until_it_has_ended() {
        let pod = |deleted: bool, phase: &str, states: Value| -> Pod {
            let statuses: Vec<Value> = states.as_array().into_iter().flatten().map(|s| json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": s})).collect();
            let stamp = if deleted { json!("2026-01-01T00:00:00Z") } else { Value::Null };
            serde_json::from_value(json!({"metadata": {"deletionTimestamp": stamp}, "spec": {"nodeName": "n", "containers": []}, "status": {"phase": phase, "containerStatuses": statuses}})).expect("a pod")
        };
        let (running, waiting, ended) = (json!({"running": {}}), json!({"waiting": {}}), json!({"terminated": {"exitCode": 0}}));
        assert!(wants(&pod(false, "Pending", json!([]))) && wants(&pod(false, "Running", json!([running, ended]))));
        assert!(!wants(&pod(false, "Succeeded", json!([ended]))) && !wants(&pod(false, "Failed", json!([]))));
        assert!(wants(&pod(true, "Running", json!([ended, running]))), "one of its containers runs on");
        assert!(!wants(&pod(true, "Running", json!([ended, waiting]))) && !wants(&pod(true, "Pending", json!([]))));
        assert_eq!(node_of(&pod(false, "Running", json!([]))), Some("n"));
        let one: Pod = serde_json::from_value(json!({"spec": {"containers": [], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}})).expect("a pod");
        assert_eq!((volumes_of(&one).iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), volumes_of(&Pod::default()).len()), (vec!["v"], 0));
        let nowhere = |spec: Value| serde_json::from_value::<Pod>(json!({"metadata": {}, "spec": spec})).expect("a pod");
        assert_eq!((node_of(&nowhere(json!({"nodeName": "", "containers": []}))), node_of(&nowhere(json!({"containers": []})))), (None, None));
    }
}
