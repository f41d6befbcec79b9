//! The provisioner `rancher.io/local-path`: a volume is a directory on the node of its first consumer.
//!
//! It makes PersistentVolumes only; directories are the kubelets' affair. A node says in an annotation
//! where its directories are (`storage::local`), its kubelet makes one when a pod mounts the volume,
//! and removes one when this controller asks for it in another annotation of that node's. So no node
//! gets a right that it did not have, and nothing is run on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use reconcile::EventType::{Normal, Warning};
use rules::storage::{self, local};
use reconcile::{Informer, Queue, Recorder, Reference, Requeue, run_workers};
use serde_json::json;

use super::binder::claim_reference;
use crate::Context;

/// The provisioner's name.
pub const NAME: &str = "rancher.io/local-path";
/// Keeps a volume until its directory is gone, whoever deletes it first.
pub const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Why no volume can be made.
#[derive(Debug, PartialEq)]
pub struct Refusal {
    pub message: String,
    /// Another node might do: the scheduler is asked again.
    pub elsewhere: bool,
}

/// Whether a claim is ours to provide for, now.
pub fn wanted(claim: &PersistentVolumeClaim, class: Option<&StorageClass>) -> bool {
    let asked = [storage::PROVISIONER, storage::BETA_PROVISIONER].iter().find_map(|a| claim.annotations().get(*a));
    claim.metadata.deletion_timestamp.is_none()
        && storage::volume_name(claim).is_empty()
        && asked.is_some_and(|p| p == NAME)
        && class.is_some_and(|c| c.provisioner == NAME && (!storage::waits_for_consumer(c) || selected(claim).is_some()))
}

/// The node that the scheduler chose.
pub fn selected(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.annotations().get(storage::SELECTED_NODE).map(String::as_str).filter(|n| !n.is_empty())
}

/// The volume for a claim on the node that was chosen for it.
pub fn volume(claim: &PersistentVolumeClaim, class: &StorageClass, node: Option<&Node>) -> Result<PersistentVolume, Refusal> {
    let refuse = |message: &str| Err(Refusal { message: message.into(), elsewhere: false });
    let spec = claim.spec.clone().unwrap_or_default();
    let modes = spec.access_modes.unwrap_or_default();
    if modes.iter().any(|m| !matches!(m.as_str(), "ReadWriteOnce" | "ReadWriteOncePod")) {
        return refuse("NodePath only supports ReadWriteOnce and ReadWriteOncePod (1.22+) access modes");
    }
    if spec.selector.is_some() {
        return refuse("claim.Spec.Selector is not supported");
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return refuse("only file systems can be provisioned, volumeMode Block is not supported");
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return refuse("a volume cannot be made from a data source");
    }
    let Some(name) = selected(claim) else { return refuse("configuration error, no node was specified") };
    let elsewhere = |message: String| Err(Refusal { message, elsewhere: true });
    let Some(node) = node else { return elsewhere(format!("node \"{name}\" not found")) };
    let Some(root) = node.annotations().get(local::DIRECTORY) else { return elsewhere(format!("node \"{name}\" has no directory for local volumes")) };
    let hostname = node.labels().get(HOSTNAME).map_or(name, String::as_str);
    let volume = local::volume_name(claim.metadata.uid.as_deref().unwrap_or_default());
    let path = format!("{root}/{}", local::directory_name(&volume, &claim.namespace().unwrap_or_default(), &claim.name_any()));
    let kind = claim.annotations().get("volumeType").or(class.annotations().get("defaultVolumeType"));
    let source = match kind.map(String::as_str) {
        Some("local") => ("local", json!({"path": path})),
        _ => ("hostPath", json!({"path": path, "type": "DirectoryOrCreate"})),
    };
    let policy = class.reclaim_policy.as_deref().unwrap_or("Delete");
    let finalizers = if policy == "Delete" { json!([FINALIZER]) } else { json!(null) };
    let mut object = json!({
        "metadata": {"name": volume, "finalizers": finalizers,
            "annotations": {storage::PROVISIONED_BY: NAME, "local.path.provisioner/selected-node": name}},
        "spec": {
            "capacity": {"storage": storage::requested(claim).canonical()}, "accessModes": modes, "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": policy, "storageClassName": storage::claim_class(claim), "claimRef": claim_reference(claim),
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [hostname]}]}]}},
        },
    });
    object["spec"][source.0] = source.1;
    serde_json::from_value(object).map_err(|e| Refusal { message: e.to_string(), elsewhere: false })
}

/// The next step towards a volume's end.
#[derive(Debug, PartialEq)]
pub enum End {
    /// It lives on, or others have to act first.
    Nothing,
    /// It is kept by policy, so it must not hold our finalizer.
    LetGo,
    /// The node is to remove this directory.
    Ask { node: String, directory: String },
    /// The node could not; it is to be asked again after a while.
    Failed { node: String, directory: String, message: String },
    /// Nothing is left of it.
    Gone { node: String },
}

/// Decides on a volume; `node` looks a node up.
pub fn end(volume: &PersistentVolume, node: impl Fn(&str) -> Option<Arc<Node>>) -> End {
    let Some(spec) = volume.spec.as_ref().filter(|_| volume.annotations().get(storage::PROVISIONED_BY).is_some_and(|p| p == NAME)) else {
        return End::Nothing;
    };
    if spec.persistent_volume_reclaim_policy.as_deref() != Some("Delete") {
        return if volume.finalizers().iter().any(|f| f == FINALIZER) { End::LetGo } else { End::Nothing };
    }
    if !matches!(storage::volume_phase(volume), "Released" | "Failed") {
        return End::Nothing;
    }
    let path = spec.host_path.as_ref().map(|h| &h.path).or(spec.local.as_ref().map(|l| &l.path));
    let directory = path.and_then(|p| p.rsplit_once('/')).map(|(_, name)| name.to_string()).unwrap_or_default();
    let Some(name) = volume.annotations().get("local.path.provisioner/selected-node").filter(|_| local::is_directory_name(&directory)) else {
        return End::Nothing;
    };
    let Some(node) = node(name) else { return End::Gone { node: name.clone() } };
    match local::Removal::of(&node, &volume.name_any()) {
        None => End::Ask { node: name.clone(), directory },
        Some(local::Removal::Asked(_)) => End::Nothing,
        Some(local::Removal::Failed(message)) => End::Failed { node: name.clone(), directory, message },
        Some(local::Removal::Done) => End::Gone { node: name.clone() },
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Claim(String, String),
    Volume(String),
    /// A volume whose directory could not be removed.
    Again(String),
}

/// How long until a node that failed is asked again.
const AGAIN: Duration = Duration::from_secs(30);

struct Provisioner {
    client: Client,
    recorder: Recorder,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    nodes: Informer<Node>,
}

/// Starts the provisioner.
pub fn start(context: &Context) {
    let it = Arc::new(Provisioner {
        client: context.client.clone(),
        recorder: Recorder::new(&context.tasks, context.client.clone(), NAME, None),
        claims: context.informers.of(),
        volumes: context.informers.of(),
        classes: context.informers.of(),
        nodes: context.informers.of(),
    });
    let queue = Queue::new();
    let q = queue.clone();
    it.claims.on_change(move |change| {
        if let Some(claim) = &change.new {
            q.add(Key::Claim(claim.namespace().unwrap_or_default(), claim.name_any()));
        }
    });
    let q = queue.clone();
    it.volumes.on_change(move |change| q.add(Key::Volume(change.latest().name_any())));
    let (q, volumes) = (queue.clone(), it.volumes.clone());
    it.nodes.on_change(move |change| {
        let node = change.latest();
        local::Removal::volumes(node).for_each(|v| q.add(Key::Volume(v.into())));
        if change.new.is_none() {
            volumes.list().iter().for_each(|v| q.add(Key::Volume(v.name_any())));
        }
    });
    let again = queue.clone();
    run_workers(&context.tasks, "local-path-provisioner", 2, queue, move |key| {
        let (it, again) = (it.clone(), again.clone());
        async move {
            it.claims.synced().await;
            it.volumes.synced().await;
            it.classes.synced().await;
            it.nodes.synced().await;
            let done = match &key {
                Key::Claim(namespace, name) => it.provide(namespace, name).await,
                Key::Volume(name) => it.finish(name, false).await,
                Key::Again(name) => it.finish(name, true).await,
            };
            if let (Key::Volume(name), Ok(Requeue::After(delay))) = (&key, &done) {
                again.add_after(Key::Again(name.clone()), *delay);
                return Ok(Requeue::No);
            }
            match done {
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(Requeue::After(Duration::from_millis(50))),
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(Requeue::No),
                other => other,
            }
        }
    });
}

impl Provisioner {
    async fn provide(&self, namespace: &str, name: &str) -> kube::Result<Requeue> {
        let Some(claim) = self.claims.get(namespace, name) else { return Ok(Requeue::No) };
        let class = self.classes.get("", storage::claim_class(&claim));
        let Some(class) = class.filter(|c| wanted(&claim, Some(c))) else { return Ok(Requeue::No) };
        if self.volumes.get("", &local::volume_name(claim.metadata.uid.as_deref().unwrap_or_default())).is_some() {
            return Ok(Requeue::No);
        }
        let about = Reference::of(claim.as_ref());
        self.recorder.event(&about, Normal, "Provisioning", format!("External provisioner is provisioning volume for claim \"{namespace}/{name}\""));
        let node = selected(&claim).and_then(|n| self.nodes.get("", n));
        match volume(&claim, &class, node.as_deref()) {
            Ok(volume) => {
                match Api::<PersistentVolume>::all(self.client.clone()).create(&PostParams::default(), &volume).await {
                    Ok(_) => self.recorder.event(&about, Normal, "ProvisioningSucceeded", format!("Successfully provisioned volume {}", volume.name_any())),
                    // Made before a restart.
                    Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
                    Err(error) => return Err(error),
                }
                Ok(Requeue::No)
            }
            Err(refusal) => {
                let message = format!("failed to provision volume with StorageClass \"{}\": {}", class.name_any(), refusal.message);
                self.recorder.event(&about, Warning, "ProvisioningFailed", message);
                if refusal.elsewhere {
                    let mut new = claim.as_ref().clone();
                    new.annotations_mut().remove(storage::SELECTED_NODE);
                    Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), namespace).replace(name, &PostParams::default(), &new).await?;
                    return Ok(Requeue::No);
                }
                Ok(Requeue::After(Duration::from_secs(60)))
            }
        }
    }

    async fn annotate(&self, node: &str, volume: &str, value: Option<String>) -> kube::Result<()> {
        let patch = json!({"metadata": {"annotations": BTreeMap::from([(local::Removal::key(volume), value)])}});
        Api::<Node>::all(self.client.clone()).patch(node, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
    }

    async fn finish(&self, name: &str, again: bool) -> kube::Result<Requeue> {
        let api = Api::<PersistentVolume>::all(self.client.clone());
        let Some(volume) = self.volumes.get("", name) else {
            // What a node did for a volume that is gone by now.
            for node in self.nodes.list().iter().filter(|n| local::Removal::of(n, name).is_some()) {
                if api.get_opt(name).await?.is_none() {
                    self.annotate(&node.name_any(), name, None).await?;
                }
            }
            return Ok(Requeue::No);
        };
        match end(&volume, |n| self.nodes.get("", n)) {
            End::Nothing => {}
            End::LetGo => self.let_go(&volume).await?,
            End::Ask { node, directory } => self.annotate(&node, name, Some(local::Removal::Asked(directory).to_string())).await?,
            End::Failed { node, directory, .. } if again => self.annotate(&node, name, Some(local::Removal::Asked(directory).to_string())).await?,
            End::Failed { node, message, .. } => {
                let message = format!("node {node} cannot remove the directory: {message}");
                self.recorder.event(&Reference::of(volume.as_ref()), Warning, "VolumeFailedDelete", message);
                return Ok(Requeue::After(AGAIN));
            }
            End::Gone { .. } => {
                // What says so may be old: the claim may be another volume's and this one's phase not Released.
                let Some(live) = api.get_opt(name).await? else { return Ok(Requeue::No) };
                if live.metadata.uid == volume.metadata.uid && matches!(storage::volume_phase(&live), "Released" | "Failed") {
                    self.let_go(&live).await?;
                    if live.metadata.deletion_timestamp.is_none() {
                        api.delete(name, &DeleteParams::default()).await?;
                    }
                }
            }
        }
        Ok(Requeue::No)
    }

    async fn let_go(&self, volume: &PersistentVolume) -> kube::Result<()> {
        let mut new = volume.clone();
        new.finalizers_mut().retain(|f| f != FINALIZER);
        if new.finalizers().len() == volume.finalizers().len() {
            return Ok(());
        }
        Api::<PersistentVolume>::all(self.client.clone()).replace(&volume.name_any(), &PostParams::default(), &new).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn claim(more: Value) -> PersistentVolumeClaim {
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "local-path", "resources": {"requests": {"storage": "1024Mi"}}});
        spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let annotations = json!({storage::PROVISIONER: NAME, storage::SELECTED_NODE: "a"});
        serde_json::from_value(json!({"metadata": {"name": "data", "namespace": "n", "uid": "u-1", "annotations": annotations}, "spec": spec})).expect("a claim")
    }

    fn class(mode: &str, policy: &str) -> StorageClass {
        serde_json::from_value(json!({"metadata": {"name": "local-path"}, "provisioner": NAME, "volumeBindingMode": mode, "reclaimPolicy": policy})).expect("a class")
    }

    fn node(annotations: Value) -> Node {
        let labels = json!({HOSTNAME: "host-a"});
        serde_json::from_value(json!({"metadata": {"name": "a", "labels": labels, "annotations": annotations}})).expect("a node")
    }

    fn ready() -> Node {
        node(json!({local::DIRECTORY: "/var/lib/knarr/storage"}))
    }

    #[test]
    fn a_volume_is_a_directory_of_the_chosen_node() {
        let made = volume(&claim(json!({})), &class("WaitForFirstConsumer", "Delete"), Some(&ready())).expect("a volume");
        assert_eq!(made.name_any(), "pvc-u-1");
        assert_eq!(made.finalizers(), [FINALIZER]);
        let spec = made.spec.clone().expect("a spec");
        assert_eq!(spec.host_path.map(|h| h.path).as_deref(), Some("/var/lib/knarr/storage/pvc-u-1_n_data"));
        assert_eq!(spec.capacity.expect("a capacity")["storage"].0, "1Gi");
        assert_eq!(spec.claim_ref.and_then(|r| r.uid).as_deref(), Some("u-1"));
        let affinity = serde_json::to_value(spec.node_affinity).expect("JSON");
        assert_eq!(affinity["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"], json!(["host-a"]));
        let mut own = claim(json!({}));
        own.annotations_mut().insert("volumeType".into(), "local".into());
        let made = volume(&own, &class("WaitForFirstConsumer", "Retain"), Some(&ready())).expect("a volume");
        assert!(made.spec.as_ref().is_some_and(|s| s.local.is_some() && s.host_path.is_none()));
        assert!(made.finalizers().is_empty(), "it is kept, by nobody's doing");
    }

    #[test]
    fn what_cannot_be_provided_is_refused() {
        let class = class("WaitForFirstConsumer", "Delete");
        for more in [
            json!({"accessModes": ["ReadWriteMany"]}),
            json!({"selector": {"matchLabels": {"a": "b"}}}),
            json!({"volumeMode": "Block"}),
            json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "x"}}),
        ] {
            assert!(!volume(&claim(more.clone()), &class, Some(&ready())).expect_err(&more.to_string()).elsewhere);
        }
        // Another node may do.
        assert!(volume(&claim(json!({})), &class, None).expect_err("no node").elsewhere);
        assert!(volume(&claim(json!({})), &class, Some(&node(json!({})))).expect_err("no directory").elsewhere);
    }

    #[test]
    fn claims_are_provided_for_when_it_is_their_time() {
        let late = class("WaitForFirstConsumer", "Delete");
        assert!(wanted(&claim(json!({})), Some(&late)));
        assert!(!wanted(&claim(json!({"volumeName": "v"})), Some(&late)));
        assert!(!wanted(&claim(json!({})), None));
        let mut other = claim(json!({}));
        other.annotations_mut().remove(storage::SELECTED_NODE);
        assert!(!wanted(&other, Some(&late)), "no consumer yet");
        assert!(wanted(&other, Some(&class("Immediate", "Delete"))));
        other.annotations_mut().insert(storage::PROVISIONER.into(), "another".into());
        assert!(!wanted(&other, Some(&class("Immediate", "Delete"))));
    }

    #[test]
    fn a_released_volume_ends_step_by_step() {
        let mut it = volume(&claim(json!({})), &class("WaitForFirstConsumer", "Delete"), Some(&ready())).expect("a volume");
        let phase = |v: &mut PersistentVolume, phase: &str| v.status = serde_json::from_value(json!({"phase": phase})).ok();
        let on = |removal: Option<local::Removal>| {
            let mut node = ready();
            if let Some(removal) = removal {
                node.annotations_mut().insert(local::Removal::key("pvc-u-1"), removal.to_string());
            }
            move |_: &str| Some(Arc::new(node.clone()))
        };
        let a = || "a".to_string();
        phase(&mut it, "Bound");
        assert_eq!(end(&it, on(None)), End::Nothing);
        phase(&mut it, "Released");
        assert_eq!(end(&it, on(None)), End::Ask { node: a(), directory: "pvc-u-1_n_data".into() });
        assert_eq!(end(&it, on(Some(local::Removal::Asked("pvc-u-1_n_data".into())))), End::Nothing);
        assert_eq!(end(&it, on(Some(local::Removal::Failed("busy".into())))), End::Failed { node: a(), directory: "pvc-u-1_n_data".into(), message: "busy".into() });
        assert_eq!(end(&it, on(Some(local::Removal::Done))), End::Gone { node: a() });
        assert_eq!(end(&it, |_| None), End::Gone { node: a() }, "the node went, and the directory with it");
        let mut kept = it.clone();
        kept.spec.as_mut().expect("a spec").persistent_volume_reclaim_policy = Some("Retain".into());
        assert_eq!(end(&kept, on(None)), End::LetGo);
        let mut foreign = it.clone();
        foreign.annotations_mut().insert(storage::PROVISIONED_BY.into(), "another".into());
        assert_eq!(end(&foreign, on(None)), End::Nothing);
        it.spec.as_mut().expect("a spec").host_path.as_mut().expect("a path").path = "/etc".into();
        assert_eq!(end(&it, on(None)), End::Nothing, "no directory of ours");
    }
}
