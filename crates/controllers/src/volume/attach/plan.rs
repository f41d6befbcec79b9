//! What is to be attached to one node and what detached: pure. The state is in the API alone: a
//! VolumeAttachment for each volume that a CSI driver attaches, and in the node's status what may be
//! mounted (`volumesAttached`) and what is (`volumesInUse`). FC and iSCSI volumes need no attaching;
//! they are only told of. Volumes of clouds are their CSI drivers', also those that pods describe themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{AttachedVolume, FCVolumeSource, Node, PersistentVolume, PersistentVolumeSpec, Volume};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::ResourceExt;
use reconcile::EventType;
use rules::migration;
use sha2::{Digest, Sha256};

/// A mounted volume of a node that is not ready is detached after this time.
pub const MAX_WAIT_FOR_UNMOUNT: Duration = Duration::from_secs(6 * 60);
/// How long a driver may take to attach before that is told.
const PATIENCE: Duration = Duration::from_secs(2 * 60);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// The node's kubelet leaves attaching to the controller.
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
const CSI: &str = "kubernetes.io/csi/";
const FC: &str = "kubernetes.io/fc/";
const ISCSI: &str = "kubernetes.io/iscsi/";

/// A volume that has to be attached before it is mounted.
#[derive(Debug, Clone, PartialEq)]
pub struct Attachable {
    /// Its name in the status of nodes.
    pub unique: String,
    /// The name of the PersistentVolume. A volume that a pod describes itself has one only in events.
    pub volume: String,
    /// The CSI driver and what it calls the volume; nothing when the node does all by itself.
    pub csi: Option<(String, String)>,
    /// Whether it may be attached to one node only.
    pub exclusive: bool,
    /// What the driver is told of a volume that a pod describes itself.
    pub inline: Option<Box<PersistentVolumeSpec>>,
}

/// The name of a driver's volume in the status of nodes.
pub fn unique_name(driver: &str, handle: &str) -> String {
    format!("{CSI}{driver}^{handle}")
}

/// What a volume needs; nothing when it needs no attaching. `attaches` tells whether a CSI driver attaches.
pub fn attachable(volume: &PersistentVolume, attaches: impl Fn(&str) -> bool) -> Option<Attachable> {
    match migration::volume(volume) {
        Some(as_driver_sees_it) => needs(&as_driver_sees_it.ok()?, attaches),
        None => needs(volume, attaches),
    }
}

/// What a volume needs that a pod of this namespace describes itself.
pub fn inline_attachable(volume: &Volume, namespace: &str, attaches: impl Fn(&str) -> bool) -> Option<Attachable> {
    let Some(as_driver_sees_it) = migration::inline(volume, namespace) else {
        let unique = match (&volume.fc, &volume.iscsi) {
            (Some(fc), _) => fc_name(fc)?,
            (None, Some(iscsi)) => iscsi_name(&iscsi.target_portal, &iscsi.iqn, iscsi.lun),
            (None, None) => return None,
        };
        return Some(Attachable { unique, volume: volume.name.clone(), csi: None, exclusive: false, inline: None });
    };
    let volume = as_driver_sees_it.ok()?;
    let needed = needs(&volume, attaches)?;
    Some(Attachable { inline: volume.spec.map(Box::new), ..needed })
}

fn fc_name(fc: &FCVolumeSource) -> Option<String> {
    let list = |names: &[String]| format!("[{}]", names.join(" "));
    let name = match (fc.target_wwns.as_deref(), fc.lun, fc.wwids.as_deref()) {
        (Some(names @ [_, ..]), Some(lun), _) => format!("{}:{lun}", list(names)),
        (_, _, Some(names @ [_, ..])) => list(names),
        _ => return None,
    };
    Some(format!("{FC}{name}"))
}

fn iscsi_name(portal: &str, iqn: &str, lun: i32) -> String {
    format!("{ISCSI}{portal}:{iqn}:{lun}")
}

/// Whether this is what its driver calls a volume.
pub fn is_handle(volume: &PersistentVolume, handle: &str) -> bool {
    match volume.spec.as_ref().and_then(|s| s.csi.as_ref()) {
        Some(csi) => csi.volume_handle == handle,
        None => migration::source(volume).is_some_and(|csi| csi.is_ok_and(|csi| csi.volume_handle == handle)),
    }
}

fn needs(volume: &PersistentVolume, attaches: impl Fn(&str) -> bool) -> Option<Attachable> {
    let spec = volume.spec.as_ref()?;
    let (unique, csi) = if let Some(csi) = spec.csi.as_ref().filter(|csi| attaches(&csi.driver)) {
        (unique_name(&csi.driver, &csi.volume_handle), Some((csi.driver.clone(), csi.volume_handle.clone())))
    } else if let Some(fc) = &spec.fc {
        (fc_name(fc)?, None)
    } else if let Some(iscsi) = &spec.iscsi {
        (iscsi_name(&iscsi.target_portal, &iscsi.iqn, iscsi.lun), None)
    } else {
        return None;
    };
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    let shared = modes.is_empty() || modes.iter().any(|m| m == "ReadWriteMany" || m == "ReadOnlyMany");
    Some(Attachable { unique, volume: volume.name_any(), csi, exclusive: !shared, inline: None })
}

/// The name of the attachment of a driver's volume to a node.
pub fn attachment_name(driver: &str, handle: &str, node: &str) -> String {
    let digest = Sha256::digest(format!("{handle}{driver}{node}"));
    digest.iter().fold(String::from("csi-"), |name, byte| format!("{name}{byte:02x}"))
}

/// A pod, by namespace and name.
pub type PodName = (String, String);

/// Who holds a volume that is exclusive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// Other nodes that it is attached to.
    pub nodes: Vec<String>,
    /// Pods on them that use it.
    pub pods: Vec<PodName>,
}

/// What is decided on.
pub struct Input<'a> {
    pub name: &'a str,
    /// Nothing when it is gone.
    pub node: Option<&'a Node>,
    /// What the node's pods want, with those pods, by unique name.
    pub wanted: BTreeMap<String, (Attachable, Vec<PodName>)>,
    /// The attachments to this node.
    pub attachments: Vec<Arc<VolumeAttachment>>,
    /// A volume by its PersistentVolume's name.
    pub volume: &'a dyn Fn(&str) -> Option<Attachable>,
    /// Who else has a volume.
    pub elsewhere: &'a dyn Fn(&Attachable) -> Elsewhere,
    /// For how long volumes have been waited for that nobody wants any more.
    pub leaving: &'a dyn Fn(&str) -> Duration,
    pub now: Timestamp,
}

/// An event about the pods that want a volume.
#[derive(Debug, PartialEq, Eq)]
pub struct Note {
    pub pods: Vec<PodName>,
    pub kind: EventType,
    pub reason: &'static str,
    pub message: String,
}

/// What is to be done, in this order.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// The node's new `volumesAttached`.
    pub report: Option<Vec<AttachedVolume>>,
    /// Attachments to delete, by name.
    pub detach: Vec<String>,
    /// Volumes to attach.
    pub attach: Vec<Attachable>,
    pub notes: Vec<Note>,
    /// Volumes that nobody wants and that are still there.
    pub leaving: BTreeSet<String>,
    /// When to look again though nothing happens.
    pub again: Option<Duration>,
}

impl Plan {
    fn look_again(&mut self, after: Duration) {
        self.again = Some(self.again.map_or(after, |a| a.min(after)));
    }
}

/// Decides about one node.
pub fn plan(input: &Input) -> Plan {
    let mut plan = Plan::default();
    if input.node.is_some_and(|n| !n.annotations().contains_key(MANAGED)) {
        return plan;
    }
    let mut there: BTreeMap<String, &VolumeAttachment> = BTreeMap::new();
    for attachment in &input.attachments {
        if let Some(unique) = unique_of(input, attachment) {
            there.insert(unique, attachment);
        }
    }
    let status = input.node.and_then(|n| n.status.as_ref());
    let told = status.and_then(|s| s.volumes_attached.as_deref()).unwrap_or_default();
    let mut attached: BTreeSet<String> = BTreeSet::new();
    for (unique, attachment) in &there {
        let is = attachment.status.as_ref().is_some_and(|s| s.attached) && attachment.metadata.deletion_timestamp.is_none();
        match input.wanted.contains_key(unique) {
            true if is => drop(attached.insert(unique.clone())),
            true => {}
            // The node must not begin to use what goes, so it is told before.
            false if attachment.metadata.deletion_timestamp.is_some() => {}
            false if may_go(input, unique, &mut plan) => plan.detach.push(attachment.name_any()),
            false if is => drop(attached.insert(unique.clone())),
            false => {}
        }
    }
    for volume in told.iter().map(|v| &v.name).filter(|name| !there.contains_key(*name) && !input.wanted.contains_key(*name)) {
        let plain = volume.starts_with(FC) || volume.starts_with(ISCSI);
        // Of other kinds nothing is known: others may have their reasons. An attachment of CSI that is gone is gone.
        if (plain && !may_go(input, volume, &mut plan)) || !(plain || volume.starts_with(CSI)) {
            attached.insert(volume.clone());
        }
    }
    for (unique, (volume, pods)) in &input.wanted {
        match (&volume.csi, there.get(unique)) {
            (None, _) => drop(attached.insert(unique.clone())),
            (Some((driver, handle)), Some(attachment)) => waiting(input, volume, (driver, handle), attachment, pods, &mut plan),
            (Some(_), None) => attach(input, volume, pods, &mut plan),
        }
        if attached.contains(unique) && !told.iter().any(|v| v.name == *unique) {
            let message = format!("AttachVolume.Attach succeeded for volume {:?} ", volume.volume);
            plan.notes.push(Note { pods: pods.clone(), kind: EventType::Normal, reason: "SuccessfulAttachVolume", message });
        }
    }
    let same = told.len() == attached.len() && told.iter().all(|v| attached.contains(&v.name));
    if input.node.is_some() && !same {
        let mut report: Vec<AttachedVolume> = told.iter().filter(|v| attached.remove(&v.name)).cloned().collect();
        report.extend(attached.into_iter().map(|name| AttachedVolume { name, device_path: String::new() }));
        plan.report = Some(report);
    }
    plan
}

/// The unique name of what an attachment of ours attaches. One that others have made under another name is theirs.
fn unique_of(input: &Input, attachment: &VolumeAttachment) -> Option<String> {
    let name = attachment.name_any();
    let is = |driver: &str, handle: &str| attachment_name(driver, handle, input.name) == name;
    if let Some(csi) = attachment.spec.source.inline_volume_spec.as_ref().and_then(|s| s.csi.as_ref())
        && is(&csi.driver, &csi.volume_handle)
    {
        return Some(unique_name(&csi.driver, &csi.volume_handle));
    }
    let known = attachment.spec.source.persistent_volume_name.as_deref().and_then(|v| (input.volume)(v));
    if let Some(volume) = known
        && let Some((driver, handle)) = &volume.csi
        && is(driver, handle)
    {
        return Some(volume.unique);
    }
    // The volume is gone, or needs no attaching any more. The node or its pods still know its name.
    let status = input.node.and_then(|n| n.status.as_ref());
    let told = status.iter().flat_map(|s| s.volumes_attached.iter().flatten()).map(|v| &v.name);
    let used = status.iter().flat_map(|s| s.volumes_in_use.iter().flatten());
    let parts = |unique: &str| -> bool { unique.strip_prefix(CSI).and_then(|n| n.split_once('^')).is_some_and(|(driver, handle)| is(driver, handle)) };
    told.chain(used).chain(input.wanted.keys()).find(|unique| parts(unique)).cloned()
}

/// Whether a volume that nobody wants may be detached: it is not mounted, or its node will not tell.
fn may_go(input: &Input, unique: &str, plan: &mut Plan) -> bool {
    plan.leaving.insert(unique.to_string());
    let mounted = match input.node {
        Some(node) => node.status.iter().flat_map(|s| s.volumes_in_use.iter().flatten()).any(|v| v == unique),
        None => true,
    };
    let ready = |n: &Node| n.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == "Ready" && c.status == "True");
    let healthy = input.node.is_some_and(ready);
    let out_of_service = input.node.is_some_and(|n| n.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == OUT_OF_SERVICE));
    if !mounted || out_of_service {
        return true;
    }
    let left = MAX_WAIT_FOR_UNMOUNT.saturating_sub((input.leaving)(unique));
    if !left.is_zero() {
        plan.look_again(left);
    }
    left.is_zero() && !healthy
}

fn failed(volume: &Attachable, pods: &[PodName], why: &str) -> Note {
    let message = format!("AttachVolume.Attach failed for volume {:?} : {why}", volume.volume);
    Note { pods: pods.to_vec(), kind: EventType::Warning, reason: "FailedAttachVolume", message }
}

/// A volume that is wanted and has an attachment.
fn waiting(input: &Input, volume: &Attachable, (driver, handle): (&str, &str), attachment: &VolumeAttachment, pods: &[PodName], plan: &mut Plan) {
    if attachment.metadata.deletion_timestamp.is_some() {
        plan.notes.push(failed(volume, pods, "volume attachment is being deleted"));
        return;
    }
    let status = attachment.status.as_ref();
    if status.is_some_and(|s| s.attached) {
        return;
    }
    if let Some(error) = status.and_then(|s| s.attach_error.as_ref()) {
        plan.notes.push(failed(volume, pods, error.message.as_deref().unwrap_or_default()));
        return;
    }
    let created = attachment.metadata.creation_timestamp.as_ref().map_or(input.now, |t| t.0);
    let waited = Duration::try_from(input.now.duration_since(created)).unwrap_or_default();
    match PATIENCE.checked_sub(waited).filter(|left| !left.is_zero()) {
        Some(left) => plan.look_again(left),
        None => {
            let why = format!("timed out waiting for external-attacher of {driver} CSI driver to attach volume {handle}");
            plan.notes.push(failed(volume, pods, &why));
        }
    }
}

/// A volume that is wanted and has no attachment yet.
fn attach(input: &Input, volume: &Attachable, pods: &[PodName], plan: &mut Plan) {
    let other = if volume.exclusive { (input.elsewhere)(volume) } else { Elsewhere::default() };
    if other.nodes.is_empty() {
        plan.attach.push(volume.clone());
        return;
    }
    for pod in pods {
        let (near, far): (Vec<&PodName>, Vec<&PodName>) = other.pods.iter().partition(|p| p.0 == pod.0);
        let near: Vec<&str> = near.iter().map(|p| p.1.as_str()).collect();
        let why = match (near.as_slice(), far.len()) {
            ([], 0) => "Volume is already exclusively attached to one node and can't be attached to another".to_string(),
            ([], n) => format!("Volume is already used by {n} pod(s) in different namespaces"),
            (names, 0) => format!("Volume is already used by pod(s) {}", names.join(", ")),
            (names, n) => format!("Volume is already used by pod(s) {} and {n} pod(s) in different namespaces", names.join(", ")),
        };
        let message = format!("Multi-Attach error for volume {:?} {why}", volume.volume);
        plan.notes.push(Note { pods: vec![pod.clone()], kind: EventType::Warning, reason: "FailedAttachVolume", message });
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PersistentVolume;
    use serde_json::{Value, json};

    use super::*;

    const NAME: &str = "kubernetes.io/csi/d.example^h1";

    fn volume(modes: Value) -> Attachable {
        let volume: PersistentVolume =
            serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": {"accessModes": modes, "csi": {"driver": "d.example", "volumeHandle": "h1"}}}))
                .expect("a volume");
        attachable(&volume, |_| true).expect("it is attached")
    }

    struct World {
        node: Option<Value>,
        wanted: bool,
        attachment: Option<Value>,
        elsewhere: Elsewhere,
        waited: u64,
        gone: bool,
    }

    impl World {
        fn new(wanted: bool, attachment: Option<Value>) -> World {
            World { node: Some(node(json!([]), json!([]))), wanted, attachment, elsewhere: Elsewhere::default(), waited: 0, gone: false }
        }

        fn plan(&self) -> Plan {
            let node: Option<Node> = self.node.clone().map(|n| serde_json::from_value(n).expect("a node"));
            let volume = volume(json!(["ReadWriteOnce"]));
            let wanted = self.wanted.then(|| (NAME.to_string(), (volume.clone(), vec![("ns".to_string(), "p".to_string())])));
            let attachments = self.attachment.iter().map(|a| Arc::new(serde_json::from_value(a.clone()).expect("an attachment")));
            plan(&Input {
                name: "n",
                node: node.as_ref(),
                wanted: wanted.into_iter().collect(),
                attachments: attachments.collect(),
                volume: &|name| (name == "pv" && !self.gone).then(|| volume.clone()),
                elsewhere: &|_| self.elsewhere.clone(),
                leaving: &|_| Duration::from_secs(self.waited),
                now: "2026-01-01T00:10:00Z".parse().expect("a time"),
            })
        }
    }

    fn node(told: Value, used: Value) -> Value {
        let told: Vec<Value> = told.as_array().expect("a list").iter().map(|n| json!({"name": n, "devicePath": ""})).collect();
        json!({"metadata": {"name": "n", "annotations": {MANAGED: "true"}}, "status": {"volumesAttached": told, "volumesInUse": used,
            "conditions": [{"type": "Ready", "status": "True"}]}})
    }

    fn attachment(status: Value) -> Value {
        json!({"metadata": {"name": attachment_name("d.example", "h1", "n"), "creationTimestamp": "2026-01-01T00:09:00Z"},
            "spec": {"attacher": "d.example", "nodeName": "n", "source": {"persistentVolumeName": "pv"}}, "status": status})
    }

    fn names(report: Option<Vec<AttachedVolume>>) -> Option<Vec<String>> {
        report.map(|r| r.into_iter().map(|v| v.name).collect())
    }

    #[test]
    fn what_needs_attaching() {
        let of = |spec: Value| {
            let volume: PersistentVolume = serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": spec})).expect("a volume");
            attachable(&volume, |driver| driver != "light.example").map(|a| (a.unique, a.exclusive))
        };
        let csi = |driver: &str, mode: &str| json!({"accessModes": [mode], "csi": {"driver": driver, "volumeHandle": "h"}});
        assert_eq!(of(csi("d", "ReadWriteOnce")), Some(("kubernetes.io/csi/d^h".into(), true)));
        assert_eq!(of(csi("d", "ReadWriteMany")), Some(("kubernetes.io/csi/d^h".into(), false)));
        assert_eq!(of(csi("light.example", "ReadWriteOnce")), None);
        assert_eq!(of(json!({"fc": {"targetWWNs": ["a", "b"], "lun": 3}})), Some(("kubernetes.io/fc/[a b]:3".into(), false)));
        assert_eq!(of(json!({"fc": {"wwids": ["w"]}})), Some(("kubernetes.io/fc/[w]".into(), false)));
        let iscsi = json!({"iscsi": {"targetPortal": "1.2.3.4:3260", "iqn": "iqn.x", "lun": 0}});
        assert_eq!(of(iscsi), Some(("kubernetes.io/iscsi/1.2.3.4:3260:iqn.x:0".into(), false)));
        assert_eq!(of(json!({"hostPath": {"path": "/x"}})), None);
    }

    #[test]
    fn volumes_of_clouds_are_attached_by_their_drivers() {
        let of = |spec: Value| {
            let volume: PersistentVolume = serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": spec})).expect("a volume");
            attachable(&volume, |driver| driver != "file.csi.azure.com")
        };
        let disk = of(json!({"accessModes": ["ReadWriteMany"], "gcePersistentDisk": {"pdName": "d"}})).expect("it is attached");
        let handle = "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d";
        assert_eq!((disk.unique.as_str(), disk.volume.as_str(), disk.exclusive), (&*format!("kubernetes.io/csi/pd.csi.storage.gke.io^{handle}"), "pv", true));
        assert_eq!((disk.csi, disk.inline), (Some(("pd.csi.storage.gke.io".into(), handle.into())), None));
        assert_eq!(of(json!({"azureFile": {"secretName": "s", "shareName": "f", "secretNamespace": "n"}})), None, "its driver attaches nothing");
        assert_eq!(of(json!({"azureDisk": {"diskName": "d", "diskURI": "u", "kind": "Dedicated"}})), None, "it cannot be handed over");
        let own = |source: Value| inline_attachable(&serde_json::from_value(source).expect("a volume"), "ns", |_| true);
        let disk = own(json!({"name": "x", "awsElasticBlockStore": {"volumeID": "aws://z/vol-1", "fsType": "xfs"}})).expect("it is attached");
        assert_eq!((disk.unique.as_str(), disk.volume.as_str(), disk.exclusive), ("kubernetes.io/csi/ebs.csi.aws.com^vol-1", "ebs.csi.aws.com-vol-1", true));
        let csi = json!({"driver": "ebs.csi.aws.com", "volumeHandle": "vol-1", "fsType": "xfs", "volumeAttributes": {"partition": "0"}});
        assert_eq!(json!(disk.inline), json!({"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "csi": csi}));
        assert_eq!(own(json!({"name": "x", "emptyDir": {}})), None);
        let told = |source: Value| own(source).map(|a| (a.unique, a.volume, a.csi, a.exclusive));
        let plain = |unique: &str| Some((unique.to_string(), "x".to_string(), None, false));
        assert_eq!(told(json!({"name": "x", "fc": {"targetWWNs": ["a"], "lun": 1}})), plain("kubernetes.io/fc/[a]:1"));
        assert_eq!(told(json!({"name": "x", "iscsi": {"targetPortal": "p:1", "iqn": "i", "lun": 2}})), plain("kubernetes.io/iscsi/p:1:i:2"));
        assert_eq!(own(json!({"name": "x", "nfs": {"server": "s", "path": "/"}})), None);
    }

    #[test]
    fn a_volume_is_known_by_its_drivers_name_for_it() {
        let of = |spec: Value| -> PersistentVolume { serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": spec})).expect("a volume") };
        assert!(is_handle(&of(json!({"csi": {"driver": "d", "volumeHandle": "vol-1"}})), "vol-1"));
        assert!(is_handle(&of(json!({"awsElasticBlockStore": {"volumeID": "aws:///vol-1"}})), "vol-1"));
        assert!(!is_handle(&of(json!({"awsElasticBlockStore": {"volumeID": "vol-2"}})), "vol-1"));
        assert!(!is_handle(&of(json!({"hostPath": {"path": "vol-1"}})), "vol-1"));
    }

    #[test]
    fn an_attachment_says_itself_what_a_pod_described() {
        let mut inline = attachment(json!({"attached": true}));
        inline["spec"]["source"] = json!({"inlineVolumeSpec": {"csi": {"driver": "d.example", "volumeHandle": "h1"}}});
        let unknown = World { gone: true, ..World::new(false, Some(inline.clone())) }.plan();
        assert_eq!(unknown.detach, [attachment_name("d.example", "h1", "n")]);
        let wanted = World { gone: true, ..World::new(true, Some(inline.clone())) }.plan();
        assert_eq!((wanted.attach.len(), names(wanted.report)), (0, Some(vec![NAME.to_string()])));
        inline["spec"]["source"]["inlineVolumeSpec"]["csi"]["volumeHandle"] = json!("h2");
        assert_eq!(World { gone: true, ..World::new(false, Some(inline)) }.plan(), Plan::default(), "its name is not ours");
    }

    #[test]
    fn a_wanted_volume_is_attached_and_then_told_of() {
        assert_eq!(World::new(true, None).plan().attach.len(), 1);
        let pending = World::new(true, Some(attachment(json!({"attached": false})))).plan();
        assert_eq!((pending.attach.len(), pending.notes.len(), pending.report, pending.again), (0, 0, None, Some(Duration::from_secs(60))));
        let done = World::new(true, Some(attachment(json!({"attached": true})))).plan();
        assert_eq!(names(done.report), Some(vec![NAME.to_string()]));
        assert_eq!(done.notes[0].message, "AttachVolume.Attach succeeded for volume \"pv\" ");
        let known = World { node: Some(node(json!([NAME]), json!([NAME]))), ..World::new(true, Some(attachment(json!({"attached": true})))) };
        assert_eq!(known.plan(), Plan::default(), "nothing is left to do");
    }

    #[test]
    fn failures_are_told() {
        let of = |status: Value, more: Value| {
            let mut object = attachment(status);
            more.as_object().expect("fields").iter().for_each(|(k, v)| object["metadata"][k] = v.clone());
            World::new(true, Some(object)).plan().notes.pop().map(|n| n.message)
        };
        let error = of(json!({"attached": false, "attachError": {"message": "rpc error: no"}}), json!({}));
        assert_eq!(error.as_deref(), Some("AttachVolume.Attach failed for volume \"pv\" : rpc error: no"));
        let slow = of(json!({"attached": false}), json!({"creationTimestamp": "2026-01-01T00:08:00Z"})).expect("a note");
        assert!(slow.ends_with("timed out waiting for external-attacher of d.example CSI driver to attach volume h1"), "{slow}");
        let leaving = of(json!({"attached": true}), json!({"deletionTimestamp": "2026-01-01T00:09:30Z"})).expect("a note");
        assert!(leaving.ends_with("volume attachment is being deleted"), "{leaving}");
    }

    #[test]
    fn what_nobody_wants_is_detached_once_it_is_not_mounted() {
        let attached = || Some(attachment(json!({"attached": true})));
        let free = World { node: Some(node(json!([NAME]), json!([]))), ..World::new(false, attached()) }.plan();
        assert_eq!((names(free.report), free.detach.len()), (Some(Vec::new()), 1));
        let used = || World { node: Some(node(json!([NAME]), json!([NAME]))), ..World::new(false, attached()) };
        let plan = used().plan();
        assert_eq!((plan.report, plan.detach.len(), plan.leaving.len(), plan.again), (None, 0, 1, Some(MAX_WAIT_FOR_UNMOUNT)));
        let late = World { waited: 400, ..used() };
        assert_eq!(late.plan().detach.len(), 0, "a healthy node will unmount it");
        let mut ill = World { waited: 400, ..used() };
        ill.node.as_mut().expect("a node")["status"]["conditions"][0]["status"] = json!("Unknown");
        assert_eq!(ill.plan().detach.len(), 1);
        ill.waited = 100;
        assert_eq!(ill.plan().detach.len(), 0);
        ill.node.as_mut().expect("a node")["spec"] = json!({"taints": [{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]});
        assert_eq!(ill.plan().detach.len(), 1, "somebody has said that the node is off");
        let lost = World { node: None, waited: 400, ..World::new(false, attached()) };
        assert_eq!((lost.plan().detach.len(), lost.plan().report), (1, None));
    }

    #[test]
    fn attachments_of_a_volume_that_is_gone_are_known_by_the_node() {
        let world = World { node: Some(node(json!([NAME]), json!([]))), gone: true, ..World::new(false, Some(attachment(json!({"attached": true})))) };
        assert_eq!(world.plan().detach.len(), 1);
        let mut foreign = attachment(json!({"attached": true}));
        foreign["metadata"]["name"] = json!("of-somebody-else");
        assert_eq!(World::new(false, Some(foreign)).plan(), Plan::default());
    }

    #[test]
    fn an_exclusive_volume_waits_for_its_other_node() {
        let elsewhere = |pods: &[(&str, &str)]| {
            let pods = pods.iter().map(|(n, p)| (n.to_string(), p.to_string())).collect();
            let plan = World { elsewhere: Elsewhere { nodes: vec!["m".into()], pods }, ..World::new(true, None) }.plan();
            assert!(plan.attach.is_empty());
            plan.notes.into_iter().next().expect("a note").message
        };
        let start = "Multi-Attach error for volume \"pv\" Volume is already ";
        assert_eq!(elsewhere(&[]), format!("{start}exclusively attached to one node and can't be attached to another"));
        assert_eq!(elsewhere(&[("ns", "a"), ("ns", "b")]), format!("{start}used by pod(s) a, b"));
        assert_eq!(elsewhere(&[("ns", "a"), ("x", "b")]), format!("{start}used by pod(s) a and 1 pod(s) in different namespaces"));
        assert_eq!(elsewhere(&[("x", "b")]), format!("{start}used by 1 pod(s) in different namespaces"));
    }

    #[test]
    fn nodes_whose_kubelet_attaches_are_left_alone() {
        let mut world = World::new(true, None);
        world.node.as_mut().expect("a node")["metadata"]["annotations"] = json!({});
        assert_eq!(world.plan(), Plan::default());
    }

    #[test]
    fn volumes_that_need_no_driver_are_only_told_of() {
        let fc = "kubernetes.io/fc/[w]";
        let old = |used: Value| World { node: Some(node(json!([fc, "kubernetes.io/other/x"]), used)), ..World::new(false, None) }.plan();
        assert_eq!(names(old(json!([])).report), Some(vec!["kubernetes.io/other/x".to_string()]));
        assert_eq!(old(json!([fc])).report, None, "it is mounted");
        let spec = json!({"metadata": {"name": "pv"}, "spec": {"fc": {"wwids": ["w"]}}});
        let wanted = attachable(&serde_json::from_value(spec).expect("a volume"), |_| true).expect("it is told of");
        let node: Node = serde_json::from_value(node(json!([fc]), json!([fc]))).expect("a node");
        let input = Input {
            name: "n",
            node: Some(&node),
            wanted: [(fc.to_string(), (wanted, Vec::new()))].into(),
            attachments: Vec::new(),
            volume: &|_| None,
            elsewhere: &|_| Elsewhere::default(),
            leaving: &|_| Duration::ZERO,
            now: Timestamp::UNIX_EPOCH,
        };
        assert_eq!(plan(&input), Plan::default(), "it is wanted and told of: nobody waits for its end");
    }

    #[test]
    fn an_attachment_is_named_for_driver_volume_and_node() {
        let name = attachment_name("d.example", "h1", "n");
        assert!(name.starts_with("csi-") && name.len() == 68, "{name}");
        for (driver, handle, node) in [("e.example", "h1", "n"), ("d.example", "h2", "n"), ("d.example", "h1", "m")] {
            assert_ne!(attachment_name(driver, handle, node), name);
        }
    }

    #[test]
    fn what_goes_already_or_never_came_needs_little() {
        let mut going = attachment(json!({"attached": true}));
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:09:30Z");
        assert_eq!(World::new(false, Some(going)).plan(), Plan::default(), "it is deleted once");
        let never = World { node: Some(node(json!([]), json!([NAME]))), ..World::new(false, Some(attachment(json!({"attached": false})))) };
        assert_eq!(never.plan().report, None, "it is not attached");
    }
}
