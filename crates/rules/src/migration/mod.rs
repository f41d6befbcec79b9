//! CSI migration: volumes of clouds that Kubernetes once attached by itself are their CSI drivers' now.
//! Which driver has got which, and what a volume that is written in the old way looks like to it. Pure.
//!
//! What only the drivers' own helpers need is not here: classes as their provisioners read them, volumes
//! written back in the old way, handles that are completed from a node's name.

mod sources;
#[cfg(test)]
mod tests;
mod topology;

use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, PersistentVolume, PersistentVolumeSpec, Volume};
use k8s_openapi::api::storage::v1::CSINode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

pub use sources::{aws_handle, azure_disk_kind, gce_handle};

/// On a claim or volume whose provisioner is named in the old way: the driver that sees to it.
pub const MIGRATED_TO: &str = "pv.kubernetes.io/migrated-to";
/// On a CSINode: the kinds of volumes that its kubelet hands over.
pub const MIGRATED_PLUGINS: &str = "storage.alpha.kubernetes.io/migrated-plugins";

/// A kind of volume that has been handed over.
#[derive(Debug, PartialEq, Eq)]
pub struct Plugin {
    /// Its name of old: the provisioner of classes that have not been rewritten.
    pub name: &'static str,
    /// The CSI driver.
    pub driver: &'static str,
    /// Whether the scheduler knows of it. Of the others it sees neither the driver's labels nor its limits.
    pub scheduled: bool,
    /// What the driver's nodes are labelled with, where that is not what all nodes are labelled with.
    place: Place,
}

/// Labels that say where a volume can be reached.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Those of the volume stay.
    Same,
    /// A label of the driver's instead of the zone.
    Zone(&'static str),
    /// Labels of the driver's instead of zone and region.
    ZoneAndRegion(&'static str, &'static str),
}

/// Elastic Block Store of Amazon.
pub const AWS_EBS: Plugin =
    Plugin { name: "kubernetes.io/aws-ebs", driver: "ebs.csi.aws.com", scheduled: true, place: Place::Zone("topology.ebs.csi.aws.com/zone") };
/// Persistent disks of Google.
pub const GCE_PD: Plugin =
    Plugin { name: "kubernetes.io/gce-pd", driver: "pd.csi.storage.gke.io", scheduled: true, place: Place::Zone("topology.gke.io/zone") };
/// Cinder of OpenStack.
pub const CINDER: Plugin =
    Plugin { name: "kubernetes.io/cinder", driver: "cinder.csi.openstack.org", scheduled: true, place: Place::Zone("topology.cinder.csi.openstack.org/zone") };
/// Disks of Azure.
pub const AZURE_DISK: Plugin = Plugin { name: "kubernetes.io/azure-disk", driver: "disk.csi.azure.com", scheduled: true, place: Place::Same };
/// Shares of Azure.
pub const AZURE_FILE: Plugin = Plugin { name: "kubernetes.io/azure-file", driver: "file.csi.azure.com", scheduled: false, place: Place::Same };
/// Disks of vSphere.
pub const VSPHERE: Plugin = Plugin {
    name: "kubernetes.io/vsphere-volume",
    driver: "csi.vsphere.vmware.com",
    scheduled: false,
    place: Place::ZoneAndRegion("topology.csi.vmware.com/zone", "topology.csi.vmware.com/region"),
};
/// Volumes of Portworx.
pub const PORTWORX: Plugin = Plugin { name: "kubernetes.io/portworx-volume", driver: "pxd.portworx.com", scheduled: true, place: Place::Same };

/// All of them, in the order of [`which`].
static PLUGINS: [Plugin; 7] = [AWS_EBS, GCE_PD, CINDER, AZURE_DISK, AZURE_FILE, VSPHERE, PORTWORX];

/// Why a volume cannot be handed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("failed to translate Kubernetes ID to EBS Volume ID Invalid format for AWS volume ({0})")]
    AwsVolume(String),
    #[error("failed to get region from zones: zone in unexpected format, expected: {{locale}}-{{region}}-{{zone}}, got: {0}")]
    GceZone(String),
    #[error("failed to get region from zones: multiple or no regions gotten from zones, got: map[{0}]")]
    GceRegions(String),
    #[error("kind({0}) is not supported in csi migration")]
    AzureKind(String),
    #[error("could not find a secret namespace in PersistentVolumeSource or ClaimRef")]
    NoSecretNamespace,
}

/// What was handed over under this name of old.
pub fn by_name(name: &str) -> Option<&'static Plugin> {
    PLUGINS.iter().find(|p| p.name == name)
}

fn which(present: [bool; 7]) -> Option<&'static Plugin> {
    PLUGINS.iter().zip(present).find_map(|(plugin, present)| present.then_some(plugin))
}

/// What kind a volume is of; nothing for those that were never handed over, and those that are written
/// for a CSI driver anyway.
pub fn of_volume(volume: &PersistentVolume) -> Option<&'static Plugin> {
    let spec = volume.spec.as_ref()?;
    which([
        spec.aws_elastic_block_store.is_some(),
        spec.gce_persistent_disk.is_some(),
        spec.cinder.is_some(),
        spec.azure_disk.is_some(),
        spec.azure_file.is_some(),
        spec.vsphere_volume.is_some(),
        spec.portworx_volume.is_some(),
    ])
}

/// The same for a volume that a pod describes itself.
pub fn of_inline(volume: &Volume) -> Option<&'static Plugin> {
    which([
        volume.aws_elastic_block_store.is_some(),
        volume.gce_persistent_disk.is_some(),
        volume.cinder.is_some(),
        volume.azure_disk.is_some(),
        volume.azure_file.is_some(),
        volume.vsphere_volume.is_some(),
        volume.portworx_volume.is_some(),
    ])
}

/// Whether a node's kubelet leaves this kind to the driver.
pub fn is_on_node(plugin: &Plugin, node: Option<&CSINode>) -> bool {
    let listed = node.and_then(|n| n.annotations().get(MIGRATED_PLUGINS));
    listed.is_some_and(|list| list.split(',').any(|name| name == plugin.name))
}

/// What the driver is told of a volume: the part of [`volume`] that costs little.
pub fn source(volume: &PersistentVolume) -> Option<Result<CSIPersistentVolumeSource, Error>> {
    let spec = volume.spec.as_ref()?;
    Some(if let Some(disk) = &spec.aws_elastic_block_store {
        sources::aws(disk)
    } else if let Some(disk) = &spec.gce_persistent_disk {
        sources::gce(disk, topology::zones_label(volume))
    } else if let Some(disk) = &spec.cinder {
        Ok(sources::cinder(&disk.volume_id, disk.read_only, disk.fs_type.as_ref()))
    } else if let Some(disk) = &spec.azure_disk {
        sources::azure_disk(disk)
    } else if let Some(share) = &spec.azure_file {
        sources::azure_share(volume, share)
    } else if let Some(disk) = &spec.vsphere_volume {
        Ok(sources::vsphere(disk))
    } else if let Some(disk) = &spec.portworx_volume {
        Ok(sources::portworx(disk, sources::portworx_secret(volume)))
    } else {
        return None;
    })
}

/// A volume as its driver sees it.
pub fn volume(volume: &PersistentVolume) -> Option<Result<PersistentVolume, Error>> {
    let plugin = of_volume(volume)?;
    let csi = match source(volume)? {
        Ok(csi) => csi,
        Err(error) => return Some(Err(error)),
    };
    let mut new = volume.clone();
    match plugin.place {
        Place::Same => {}
        Place::Zone(zone) => topology::to_zone(&mut new, zone),
        Place::ZoneAndRegion(zone, region) => topology::to_zone_and_region(&mut new, zone, region),
    }
    let spec = new.spec.get_or_insert_default();
    if spec.gce_persistent_disk.is_some() {
        spec.access_modes = spec.access_modes.take().map(sources::gce_access_modes);
    }
    spec.aws_elastic_block_store = None;
    spec.gce_persistent_disk = None;
    spec.cinder = None;
    spec.azure_disk = None;
    spec.azure_file = None;
    spec.vsphere_volume = None;
    spec.portworx_volume = None;
    spec.csi = Some(csi);
    Some(Ok(new))
}

/// A volume that a pod of this namespace describes itself, as its driver sees it. There is no such object;
/// its name is what events call it.
pub fn inline(volume: &Volume, namespace: &str) -> Option<Result<PersistentVolume, Error>> {
    const ONCE: &str = "ReadWriteOnce";
    let once_or_many = |read_only: Option<bool>| if read_only == Some(true) { "ReadOnlyMany" } else { ONCE };
    let named = |csi: CSIPersistentVolumeSource, id: &str, mode| (format!("{}-{id}", csi.driver), csi, mode);
    let made = if let Some(disk) = &volume.aws_elastic_block_store {
        sources::aws(disk).map(|csi| {
            let id = csi.volume_handle.clone();
            named(csi, &id, ONCE)
        })
    } else if let Some(disk) = &volume.gce_persistent_disk {
        sources::gce(disk, "").map(|csi| named(csi, &disk.pd_name, once_or_many(disk.read_only)))
    } else if let Some(disk) = &volume.cinder {
        Ok(named(sources::cinder(&disk.volume_id, disk.read_only, disk.fs_type.as_ref()), &disk.volume_id, ONCE))
    } else if let Some(disk) = &volume.azure_disk {
        sources::azure_disk_of_pod(disk).map(|csi| (disk.disk_uri.clone(), csi, ONCE))
    } else if let Some(share) = &volume.azure_file {
        let csi = sources::azure_share_of_pod(volume, share, namespace);
        Ok((csi.volume_handle.clone(), csi, "ReadWriteMany"))
    } else if let Some(disk) = &volume.vsphere_volume {
        Ok(named(sources::vsphere(disk), &disk.volume_path, ONCE))
    } else if let Some(disk) = &volume.portworx_volume {
        Ok(named(sources::portworx(disk, None), &disk.volume_id, once_or_many(disk.read_only)))
    } else {
        return None;
    };
    Some(made.map(|(name, csi, mode)| PersistentVolume {
        metadata: ObjectMeta { name: Some(name), ..ObjectMeta::default() },
        spec: Some(PersistentVolumeSpec {
            access_modes: Some(vec![mode.into()]),
            csi: Some(csi),
            volume_mode: Some("Filesystem".into()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }))
}
