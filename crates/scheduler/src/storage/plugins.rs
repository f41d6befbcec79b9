//! The plug-ins, over the process's informers.
//!
//! VolumeBinding keeps what it has promised to pods that are on their way, so that two pods decided on
//! one after the other get two volumes; a promise ends when the pod is bound or turned away.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use reconcile::{Informer, Informers, Tasks};
use rules::storage;
use tokio::sync::Notify;

use super::binding::{self, Plan, Promised, Question, Unfit};
use super::{Lookup, limits};
use crate::cluster::NodeInfo;
use crate::config::Profile;
use crate::node::NodeView;
use crate::plugin::{Check, Plugin, Prepared, Rejection, Site, Work};
use crate::pod::PodInfo;
use crate::selector::Labels;
use crate::shell::Handle;
use crate::volume::PodVolume;

/// All four, in upstream's order.
pub(crate) fn all(client: &Client, informers: &Informers, tasks: &Tasks, timeout: Duration, handle: &Handle) -> Vec<Arc<dyn Plugin>> {
    let live = Arc::new(Live::new(informers));
    live.follow(handle, tasks);
    let known: Arc<dyn Lookup> = live.clone();
    let restrictions = VolumeRestrictions::new(known.clone());
    restrictions.follow(&informers.of());
    let binding = VolumeBinding::new(live, informers.of(), client.clone(), timeout);
    vec![Arc::new(restrictions), Arc::new(NodeVolumeLimits(known.clone())), Arc::new(binding), Arc::new(VolumeZone(known))]
}

/// The same over what was read once, with the pods that are on nodes: for decisions that nobody acts on.
pub(crate) fn over(known: Arc<dyn Lookup>, pods: &[PodInfo]) -> Vec<Arc<dyn Plugin>> {
    let restrictions = VolumeRestrictions::new(known.clone());
    pods.iter().filter(|p| p.node.is_some() && !p.ended).for_each(|p| remember(&restrictions.users, p));
    let binding = VolumeBinding::over(known.clone(), |_| None);
    vec![Arc::new(restrictions), Arc::new(NodeVolumeLimits(known.clone())), Arc::new(binding), Arc::new(VolumeZone(known))]
}

/// [`Lookup`] in informers.
pub(crate) struct Live {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    drivers: Informer<CSIDriver>,
    csi_nodes: Informer<CSINode>,
    capacities: Informer<CSIStorageCapacity>,
    attachments: Informer<VolumeAttachment>,
    /// What is attached, by node and attachment: the driver and the name of the volume.
    attached: Attached,
}

type Attached = Arc<Mutex<HashMap<String, HashMap<String, (String, String)>>>>;

/// Keeps attachments by node.
fn follow_attachments(attachments: &Informer<VolumeAttachment>) -> Attached {
    let attached = Attached::default();
    let known = attached.clone();
    attachments.on_change(move |change| {
        let attachment = change.latest();
        let (node, name) = (&attachment.spec.node_name, attachment.name_any());
        let mut known = known.lock();
        match (&change.new, &attachment.spec.source.persistent_volume_name) {
            (Some(_), Some(volume)) => {
                known.entry(node.clone()).or_default().insert(name, (attachment.spec.attacher.clone(), volume.clone()));
            }
            (Some(_), None) => {}
            (None, _) => {
                if let Some(here) = known.get_mut(node) {
                    here.remove(&name);
                    if here.is_empty() {
                        known.remove(node);
                    }
                }
            }
        }
    });
    attached
}

impl Live {
    pub fn new(informers: &Informers) -> Live {
        let attachments = informers.of();
        Live {
            attached: follow_attachments(&attachments),
            attachments,
            claims: informers.of(),
            volumes: informers.of(),
            classes: informers.of(),
            drivers: informers.of(),
            csi_nodes: informers.of(),
            capacities: informers.of(),
        }
    }

    /// Has pods tried again when what they wait for changes.
    fn follow(self: &Arc<Self>, handle: &Handle, tasks: &Tasks) {
        let everyone = [RESTRICTIONS, LIMITS, BINDING, ZONE];
        let h = handle.clone();
        self.claims.on_change(move |change| {
            let claim = change.latest();
            let (namespace, name) = (claim.namespace().unwrap_or_default(), claim.name_any());
            for plugin in everyone {
                h.wake(plugin, |pod| pod.namespace() == namespace && binding::claim_names(pod).any(|(n, _)| n == name));
            }
        });
        let any = |h: &Handle, plugins: &[&str]| plugins.iter().for_each(|p| h.wake(p, |pod| concerns(p, pod)));
        let h = handle.clone();
        self.volumes.on_change(move |_| any(&h, &everyone));
        let h = handle.clone();
        self.classes.on_change(move |_| any(&h, &everyone));
        let h = handle.clone();
        self.csi_nodes.on_change(move |_| any(&h, &[LIMITS, BINDING]));
        let h = handle.clone();
        self.capacities.on_change(move |_| any(&h, &[BINDING]));
        let h = handle.clone();
        self.drivers.on_change(move |_| any(&h, &[BINDING]));
        let h = handle.clone();
        self.attachments.on_change(move |change| {
            if change.new.is_none() {
                any(&h, &[LIMITS]);
            }
        });
        let (live, h) = (self.clone(), handle.clone());
        tasks.spawn("volumes of the scheduler", async move {
            live.claims.synced().await;
            live.volumes.synced().await;
            live.classes.synced().await;
            live.drivers.synced().await;
            live.csi_nodes.synced().await;
            live.capacities.synced().await;
            live.attachments.synced().await;
            any(&h, &everyone);
        });
    }
}

impl Lookup for Live {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(namespace, name)
    }
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get("", name).filter(|_| !name.is_empty())
    }
    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.list()
    }
    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.get("", name).filter(|_| !name.is_empty())
    }
    fn driver(&self, name: &str) -> Option<Arc<CSIDriver>> {
        self.drivers.get("", name)
    }
    fn csi_node(&self, name: &str) -> Option<Arc<CSINode>> {
        self.csi_nodes.get("", name)
    }
    fn capacities(&self) -> Vec<Arc<CSIStorageCapacity>> {
        self.capacities.list()
    }
    fn attached(&self, node: &str) -> Vec<(String, String)> {
        self.attached.lock().get(node).into_iter().flat_map(HashMap::values).cloned().collect()
    }
    fn ready(&self) -> bool {
        self.claims.has_synced()
            && self.volumes.has_synced()
            && self.classes.has_synced()
            && self.drivers.has_synced()
            && self.csi_nodes.has_synced()
            && self.capacities.has_synced()
            && self.attachments.has_synced()
    }
}

/// Whether a plug-in has to know the cluster's volumes before it can say anything of a pod.
fn concerns(plugin: &str, pod: &PodInfo) -> bool {
    binding::claim_names(pod).next().is_some() || (plugin == LIMITS && pod.shape.volumes.iter().any(|v| v.handed_over().is_some()))
}

/// Says of a pod with volumes that it has to wait until they are known at all.
fn too_early(plugin: &'static str, known: &dyn Lookup, pod: &PodInfo) -> Option<Prepared<'static>> {
    let early = !known.ready() && concerns(plugin, pod);
    early.then(|| Prepared::Reject(Rejection::final_(plugin, "the volumes of the cluster are not known yet")))
}

/// What a pod on its way is to get, and where.
struct Reserved {
    plan: Plan,
    node: String,
}

/// VolumeBinding.
pub(crate) struct VolumeBinding {
    known: Arc<dyn Lookup>,
    /// Labels of nodes, at any time.
    labels: Box<dyn Fn(&str) -> Option<Labels> + Send + Sync>,
    client: Option<Client>,
    timeout: Duration,
    /// Told of each change of a claim or volume.
    changed: Arc<Notify>,
    reserved: Mutex<HashMap<String, Reserved>>,
}

impl VolumeBinding {
    pub fn new(known: Arc<Live>, nodes: Informer<NodeView>, client: Client, timeout: Duration) -> VolumeBinding {
        let changed = Arc::new(Notify::new());
        let c = changed.clone();
        known.claims.on_change(move |_| c.notify_waiters());
        let c = changed.clone();
        known.volumes.on_change(move |_| c.notify_waiters());
        let labels = move |name: &str| nodes.get("", name).map(|n| n.labels.clone());
        VolumeBinding { known, labels: Box::new(labels), client: Some(client), timeout, changed, reserved: Mutex::default() }
    }

    /// One that writes nothing.
    pub fn over(known: Arc<dyn Lookup>, labels: impl Fn(&str) -> Option<Labels> + Send + Sync + 'static) -> VolumeBinding {
        VolumeBinding { known, labels: Box::new(labels), client: None, timeout: Duration::ZERO, changed: Arc::default(), reserved: Mutex::default() }
    }

    fn promised(&self) -> Promised {
        let mut promised = Promised::default();
        for reserved in self.reserved.lock().values() {
            let uid = |c: &PersistentVolumeClaim| c.metadata.uid.clone().unwrap_or_default();
            promised.volumes.extend(reserved.plan.bind.iter().map(|(v, c)| (v.name_any(), uid(c))));
            promised.nodes.extend(reserved.plan.provision.iter().map(|c| (uid(c), reserved.node.clone())));
        }
        promised
    }

    async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        let Some(mut plan) = self.reserved.lock().get(pod.uid()).map(|r| r.plan.clone()) else { return Ok(()) };
        let Some(client) = self.client.clone() else { return Ok(()) };
        let failed = |e: kube::Error| match e {
            kube::Error::Api(status) => format!("binding volumes: {}", status.message),
            other => format!("binding volumes: {other}"),
        };
        for (volume, claim) in &mut plan.bind {
            if let Some(new) = to_claim(volume, claim) {
                let api = Api::<PersistentVolume>::all(client.clone());
                *volume = Arc::new(api.replace(&volume.name_any(), &PostParams::default(), &new).await.map_err(failed)?);
            }
        }
        for claim in &mut plan.provision {
            if claim.annotations().get(storage::SELECTED_NODE).map(String::as_str) != Some(node) {
                let mut new = claim.as_ref().clone();
                new.annotations_mut().insert(storage::SELECTED_NODE.into(), node.into());
                let api = Api::<PersistentVolumeClaim>::namespaced(client.clone(), pod.namespace());
                *claim = Arc::new(api.replace(&claim.name_any(), &PostParams::default(), &new).await.map_err(failed)?);
            }
        }
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let labels = (self.labels)(node).ok_or_else(|| format!("failed to get node \"{node}\": node \"{node}\" not found"))?;
                if binding::progress(&*self.known, &plan, node, &labels)? {
                    return Ok(());
                }
                // A node that goes is told by nobody here.
                let _ = tokio::time::timeout(Duration::from_secs(1), changed).await;
            }
        };
        match tokio::time::timeout(self.timeout, wait).await {
            Ok(done) => done.map_err(|e: String| format!("binding volumes: {e}")),
            Err(_) => Err("binding volumes: context deadline exceeded".into()),
        }
    }
}

/// The volume, reserved for the claim by the controller's hand.
fn to_claim(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<PersistentVolume> {
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    if reference.is_some_and(|r| r.uid == claim.metadata.uid) {
        return None;
    }
    let mut new = volume.clone();
    if !storage::is_bound_to(volume, claim) {
        new.annotations_mut().insert(storage::BOUND_BY_CONTROLLER.into(), "yes".into());
    }
    new.spec.get_or_insert_default().claim_ref = Some(ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        namespace: claim.namespace(),
        name: Some(claim.name_any()),
        uid: claim.uid(),
        resource_version: claim.resource_version(),
        field_path: None,
    });
    Some(new)
}

const BINDING: &str = "VolumeBinding";

struct BindingCheck<'a> {
    known: &'a dyn Lookup,
    question: Question,
}

impl BindingCheck<'_> {
    fn plan(&self, node: &NodeInfo) -> Result<Plan, Unfit> {
        binding::on_node(self.known, &self.question, node.name(), &node.view.labels)
    }
}

impl Check for BindingCheck<'_> {
    fn filter(&self, site: Site<'_>) -> Result<(), Rejection> {
        match self.plan(site.node) {
            Ok(_) => Ok(()),
            Err(Unfit::Broken(why)) => Err(Rejection::broken(BINDING, why)),
            Err(Unfit::Reasons(reasons)) => match reasons.as_slice() {
                [one] => Err(Rejection::final_(BINDING, one)),
                many => Err(Rejection::said(BINDING, false, many.iter().map(|r| r.to_string()).collect())),
            },
        }
    }

    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let scores: Vec<Option<i64>> = nodes.iter().map(|n| self.plan(n).ok().and_then(|p| binding::utilization(&p))).collect();
        scores.iter().any(Option::is_some).then(|| scores.into_iter().map(|s| s.unwrap_or(0)).collect())
    }
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        BINDING
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Profile) -> Prepared<'a> {
        if binding::claim_names(pod).next().is_none() {
            return Prepared::Skip;
        }
        if let Some(early) = too_early(BINDING, &*self.known, pod) {
            return early;
        }
        match binding::claims(&*self.known, pod) {
            Err(why) if why == binding::IMMEDIATE => Prepared::Reject(Rejection::final_(BINDING, binding::IMMEDIATE)),
            Err(why) => Prepared::Reject(Rejection::said(BINDING, false, vec![why])),
            Ok(claims) => Prepared::Check(Box::new(BindingCheck { known: &*self.known, question: Question::new(&*self.known, claims, self.promised()) })),
        }
    }

    fn reserve(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        if binding::claim_names(pod).next().is_none() {
            return Ok(());
        }
        let claims = binding::claims(&*self.known, pod)?;
        if claims.waiting.is_empty() {
            return Ok(());
        }
        let labels = (self.labels)(node).ok_or_else(|| format!("node \"{node}\" not found"))?;
        let question = Question::new(&*self.known, claims, self.promised());
        let plan = binding::on_node(&*self.known, &question, node, &labels).map_err(|unfit| unfit.to_string())?;
        self.reserved.lock().insert(pod.uid().into(), Reserved { plan, node: node.into() });
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo, _: &str) {
        self.reserved.lock().remove(pod.uid());
    }

    fn must_pre_bind(&self, pod: &PodInfo, _: &str) -> bool {
        self.reserved.lock().contains_key(pod.uid())
    }

    fn pre_bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> Work<'a> {
        Box::pin(async move {
            self.bind(pod, node).await?;
            // The claims say it themselves now.
            self.reserved.lock().remove(pod.uid());
            Ok(())
        })
    }
}

const RESTRICTIONS: &str = "VolumeRestrictions";

/// VolumeRestrictions.
pub(crate) struct VolumeRestrictions {
    known: Arc<dyn Lookup>,
    /// Pods that are on a node, or on their way, by namespace and claim.
    users: Arc<Mutex<HashMap<(String, String), HashSet<String>>>>,
}

impl VolumeRestrictions {
    pub fn new(known: Arc<dyn Lookup>) -> VolumeRestrictions {
        VolumeRestrictions { known, users: Arc::default() }
    }

    /// Keeps in mind which pods use which claims.
    pub fn follow(&self, pods: &Informer<PodInfo>) {
        let users = self.users.clone();
        pods.on_change(move |change| {
            if let Some(old) = &change.old {
                forget(&users, old);
            }
            if let Some(new) = change.new.as_ref().filter(|p| p.node.is_some() && !p.ended) {
                remember(&users, new);
            }
        });
    }
}

type Users = Mutex<HashMap<(String, String), HashSet<String>>>;

fn named_claims(pod: &PodInfo) -> impl Iterator<Item = (String, String)> {
    binding::claim_names(pod).filter(|(_, ephemeral)| !ephemeral).map(|(name, _)| (pod.namespace().to_string(), name))
}

fn remember(users: &Users, pod: &PodInfo) {
    for key in named_claims(pod) {
        users.lock().entry(key).or_default().insert(pod.uid().to_string());
    }
}

fn forget(users: &Users, pod: &PodInfo) {
    for key in named_claims(pod) {
        let mut users = users.lock();
        if let Some(of) = users.get_mut(&key) {
            of.remove(pod.uid());
            if of.is_empty() {
                users.remove(&key);
            }
        }
    }
}

struct RestrictionsCheck<'a> {
    exclusive: Vec<&'a PodVolume>,
    /// Other pods that use a claim which one pod at a time may use.
    in_the_way: HashSet<String>,
}

impl Check for RestrictionsCheck<'_> {
    fn filter(&self, site: Site<'_>) -> Result<(), Rejection> {
        if self.exclusive.iter().any(|v| site.pods().any(|p| limits::disks_conflict(v, p))) {
            return Err(Rejection::resolvable(RESTRICTIONS, limits::DISK_CONFLICT));
        }
        if self.in_the_way.iter().any(|uid| !site.removed.iter().any(|r| r.uid() == uid)) {
            return Err(Rejection::resolvable(RESTRICTIONS, limits::ONCE_POD_CONFLICT));
        }
        Ok(())
    }
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        RESTRICTIONS
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Profile) -> Prepared<'a> {
        if let Some(early) = too_early(RESTRICTIONS, &*self.known, pod) {
            return early;
        }
        let once = match limits::once_pod_claims(&*self.known, pod) {
            Ok(claims) => claims,
            Err(why) => return Prepared::Reject(Rejection::said(RESTRICTIONS, false, vec![why])),
        };
        let users = self.users.lock();
        let of = |name: String| users.get(&(pod.namespace().to_string(), name)).into_iter().flatten().filter(|uid| *uid != pod.uid()).cloned();
        let in_the_way: HashSet<String> = once.into_iter().flat_map(of).collect();
        let exclusive: Vec<&PodVolume> = pod.shape.volumes.iter().filter(|v| limits::is_exclusive(v)).collect();
        if exclusive.is_empty() && in_the_way.is_empty() {
            return Prepared::Skip;
        }
        Prepared::Check(Box::new(RestrictionsCheck { exclusive, in_the_way }))
    }

    fn reserve(&self, pod: &PodInfo, _: &str) -> Result<(), String> {
        remember(&self.users, pod);
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo, _: &str) {
        forget(&self.users, pod);
    }
}

const ZONE: &str = "VolumeZone";

/// VolumeZone.
pub(crate) struct VolumeZone(pub Arc<dyn Lookup>);

struct ZoneCheck(Vec<(&'static str, &'static str, BTreeSet<String>)>);

impl Check for ZoneCheck {
    fn filter(&self, site: Site<'_>) -> Result<(), Rejection> {
        if limits::in_zone(&self.0, &site.node.view.labels) { Ok(()) } else { Err(Rejection::final_(ZONE, limits::ZONE_CONFLICT)) }
    }
}

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        ZONE
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Profile) -> Prepared<'a> {
        if let Some(early) = too_early(ZONE, &*self.0, pod) {
            return early;
        }
        match limits::zones(&*self.0, pod) {
            Err(why) => Prepared::Reject(Rejection::said(ZONE, false, vec![why])),
            Ok(zones) if zones.is_empty() => Prepared::Skip,
            Ok(zones) => Prepared::Check(Box::new(ZoneCheck(zones))),
        }
    }
}

const LIMITS: &str = "NodeVolumeLimits";

/// NodeVolumeLimits.
pub(crate) struct NodeVolumeLimits(pub Arc<dyn Lookup>);

struct LimitsCheck<'a> {
    known: &'a dyn Lookup,
    wanted: Result<HashMap<String, String>, String>,
}

impl Check for LimitsCheck<'_> {
    fn filter(&self, site: Site<'_>) -> Result<(), Rejection> {
        let wanted = match &self.wanted {
            Ok(wanted) => wanted,
            // Without a CSINode nothing is handed over, and nothing limited.
            Err(why) if self.known.csi_node(site.node.name()).is_some() => return Err(Rejection::broken(LIMITS, why.as_str())),
            Err(_) => return Ok(()),
        };
        let pods = site.pods().map(|p| p.as_ref());
        if limits::has_room(self.known, wanted, site.node.name(), pods) { Ok(()) } else { Err(Rejection::resolvable(LIMITS, limits::TOO_MANY)) }
    }
}

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        LIMITS
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Profile) -> Prepared<'a> {
        if let Some(early) = too_early(LIMITS, &*self.0, pod) {
            return early;
        }
        let mut wanted = HashMap::new();
        let wanted = limits::add_driver_volumes(&*self.0, pod, &mut wanted).map(|()| wanted);
        if wanted.as_ref().is_ok_and(HashMap::is_empty) {
            return Prepared::Skip;
        }
        Prepared::Check(Box::new(LimitsCheck { known: &*self.0, wanted }))
    }
}
