//! VolumeRestrictions, VolumeZone and NodeVolumeLimits: what rules a node out for volumes that are
//! there already. Pure.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use rules::{migration, storage};

use super::Lookup;
use super::binding::claim_names;
use crate::pod::PodInfo;
use crate::selector::Labels;
use crate::volume::PodVolume;

pub(crate) const DISK_CONFLICT: &str = "node(s) had no available disk";
pub(crate) const ONCE_POD_CONFLICT: &str = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod";
pub(crate) const ZONE_CONFLICT: &str = "node(s) had no available volume zone";
pub(crate) const TOO_MANY: &str = "node(s) exceed max volume count";

/// Labels of volumes and nodes that say where they are, with the newer form of each.
const TOPOLOGY: [(&str, &str); 4] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("topology.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "topology.kubernetes.io/region"),
];

/// The claims of a pod that one pod at a time may use. An error is that one is missing.
pub(crate) fn once_pod_claims(known: &dyn Lookup, pod: &PodInfo) -> Result<Vec<String>, String> {
    let mut claims = Vec::new();
    for (name, _) in claim_names(pod).filter(|(_, ephemeral)| !ephemeral) {
        let claim = known.claim(pod.namespace(), &name).ok_or_else(|| format!("persistentvolumeclaim \"{name}\" not found"))?;
        if claim.spec.iter().flat_map(|s| s.access_modes.iter().flatten()).any(|m| m == "ReadWriteOncePod") {
            claims.push(name);
        }
    }
    Ok(claims)
}

/// Whether a volume is of a kind that a node can have once only.
pub(crate) fn is_exclusive(volume: &PodVolume) -> bool {
    volume.gce_persistent_disk.is_some() || volume.aws_elastic_block_store.is_some() || volume.rbd.is_some() || volume.iscsi.is_some()
}

/// Whether a pod's volumes are in the way of a volume on one node.
pub(crate) fn disks_conflict(volume: &PodVolume, pod: &PodInfo) -> bool {
    pod.shape.volumes.iter().any(|other| {
        let gce = volume.gce_persistent_disk.as_ref().zip(other.gce_persistent_disk.as_ref());
        let aws = volume.aws_elastic_block_store.as_ref().zip(other.aws_elastic_block_store.as_ref());
        let iscsi = volume.iscsi.as_ref().zip(other.iscsi.as_ref());
        let rbd = volume.rbd.as_ref().zip(other.rbd.as_ref());
        gce.is_some_and(|(a, b)| a.pd_name == b.pd_name && !(a.read_only && b.read_only))
            || aws.is_some_and(|(a, b)| a.volume_id == b.volume_id)
            || iscsi.is_some_and(|(a, b)| a.iqn == b.iqn && !(a.read_only && b.read_only))
            || rbd.is_some_and(|(a, b)| {
                let overlap = a.monitors.iter().any(|m| b.monitors.contains(m));
                let pool = |p: &Option<Box<str>>| p.clone().unwrap_or_else(|| "rbd".into());
                overlap && pool(&a.pool) == pool(&b.pool) && a.image == b.image && !(a.read_only && b.read_only)
            })
    })
}

/// Where a pod's volumes are: label and values. An error is why the pod can go nowhere.
pub(crate) fn zones(known: &dyn Lookup, pod: &PodInfo) -> Result<Vec<(&'static str, &'static str, BTreeSet<String>)>, String> {
    let mut zones = Vec::new();
    for (name, _) in claim_names(pod) {
        let claim = known.claim(pod.namespace(), &name).ok_or_else(|| format!("persistentvolumeclaim \"{name}\" not found"))?;
        let bound = storage::volume_name(&claim);
        if bound.is_empty() {
            let class = storage::claim_class(&claim);
            if class.is_empty() {
                return Err("PersistentVolumeClaim had no pv name and storageClass name".into());
            }
            let class = known.class(class).ok_or_else(|| format!("storageclass.storage.k8s.io \"{class}\" not found"))?;
            if storage::waits_for_consumer(&class) {
                continue;
            }
            return Err("PersistentVolume had no name".into());
        }
        let volume = known.volume(bound).ok_or_else(|| format!("persistentvolume \"{bound}\" not found"))?;
        for (key, newer) in TOPOLOGY {
            if let Some(value) = volume.labels().get(key) {
                zones.push((key, newer, value.split("__").map(str::to_string).collect()));
            }
        }
    }
    Ok(zones)
}

/// Whether a node is where the volumes are. A node that says nothing of its place is anywhere.
pub(crate) fn in_zone(zones: &[(&'static str, &'static str, BTreeSet<String>)], labels: &Labels) -> bool {
    if TOPOLOGY.iter().all(|(key, _)| labels.get(key).is_none()) {
        return true;
    }
    zones.iter().all(|(key, newer, values)| labels.get(key).or_else(|| labels.get(newer)).is_some_and(|v| values.contains(v)))
}

/// Adds the volumes of CSI drivers that a pod uses, also those that are handed to one: a name that tells them
/// apart, and the driver. An error is that a volume which the pod describes itself cannot be handed over; the
/// others are added all the same.
pub(crate) fn add_driver_volumes(known: &dyn Lookup, pod: &PodInfo, all: &mut HashMap<String, String>) -> Result<(), String> {
    for (name, _) in claim_names(pod) {
        let Some(claim) = known.claim(pod.namespace(), &name) else { continue };
        let found = match known.volume(storage::volume_name(&claim)) {
            Some(volume) => of_driver(&volume),
            // It will be of its class's driver.
            None => known.class(storage::claim_class(&claim)).and_then(|class| {
                let driver = match migration::by_name(&class.provisioner) {
                    Some(plugin) => plugin.scheduled.then(|| plugin.driver.to_string())?,
                    None => class.provisioner.clone(),
                };
                Some((driver, format!("{}/{name}", pod.namespace())))
            }),
        };
        if let Some((driver, handle)) = found {
            all.insert(format!("{driver}/{handle}"), driver);
        }
    }
    let mut outcome = Ok(());
    for volume in &pod.shape.volumes {
        match volume.handed_over() {
            Some((driver, Ok(handle))) => drop(all.insert(format!("{driver}/{handle}"), driver.into())),
            Some((_, Err(why))) => outcome = outcome.and(Err(format!("converting volume({}) from inline to csi: {why}", volume.name))),
            None => {}
        }
    }
    outcome
}

/// The driver of a volume, and what that calls it.
fn of_driver(volume: &PersistentVolume) -> Option<(String, String)> {
    if let Some(csi) = volume.spec.as_ref().and_then(|s| s.csi.as_ref()) {
        return Some((csi.driver.clone(), csi.volume_handle.clone()));
    }
    migration::of_volume(volume).filter(|p| p.scheduled)?;
    let csi = migration::source(volume)?.ok()?;
    Some((csi.driver, csi.volume_handle))
}

/// Whether a node has room for more volumes of each driver. Drivers that set no limit have none.
pub(crate) fn has_room<'a>(known: &dyn Lookup, wanted: &HashMap<String, String>, node: &str, pods: impl Iterator<Item = &'a PodInfo>) -> bool {
    let Some(csi) = known.csi_node(node) else { return true };
    let limit = |driver: &str| {
        let of = csi.spec.drivers.iter().find(|d| d.name == driver)?;
        of.allocatable.as_ref()?.count.map(|c| c.max(0) as usize)
    };
    if wanted.values().all(|d| limit(d).is_none()) {
        return true;
    }
    let mut attached: HashMap<String, String> = HashMap::new();
    for pod in pods {
        // What cannot be handed over is not attached there either.
        let _ = add_driver_volumes(known, pod, &mut attached);
    }
    let mut sums: HashMap<&str, usize> = HashMap::new();
    attached.values().for_each(|d| *sums.entry(d).or_default() += 1);
    // What no pod here uses, or uses yet, takes its place all the same. A wanted volume that is still attached
    // counts twice, as it does upstream.
    let lingering: HashMap<String, String> = known
        .attached(node)
        .into_iter()
        .filter_map(|(driver, volume)| {
            let csi = known.volume(&volume)?.spec.as_ref()?.csi.clone()?;
            Some((format!("{driver}/{}", csi.volume_handle), driver))
        })
        .filter(|(name, _)| !attached.contains_key(name))
        .collect();
    lingering.values().for_each(|d| *sums.entry(d).or_default() += 1);
    let mut new: HashMap<&str, usize> = HashMap::new();
    wanted.iter().filter(|(v, _)| !attached.contains_key(*v)).for_each(|(_, d)| *new.entry(d).or_default() += 1);
    new.iter().all(|(driver, more)| limit(driver).is_none_or(|most| sums.get(driver).copied().unwrap_or(0) + more <= most))
}
