//! What the scheduler keeps of a pod's volumes: those that bear on where it can go.

use rules::migration::{self, AWS_EBS, AZURE_DISK, CINDER, GCE_PD, PORTWORX};
use serde::Deserialize;

/// A volume of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodVolume {
    pub name: Box<str>,
    pub persistent_volume_claim: Option<ClaimSource>,
    /// A claim of the pod's own, named POD-VOLUME.
    pub ephemeral: Option<Ephemeral>,
    pub gce_persistent_disk: Option<GceDisk>,
    pub aws_elastic_block_store: Option<AwsDisk>,
    #[serde(rename = "rbd")]
    pub rbd: Option<Rbd>,
    pub iscsi: Option<Iscsi>,
    pub azure_disk: Option<AzureDisk>,
    pub cinder: Option<VolumeId>,
    pub portworx_volume: Option<VolumeId>,
    image: Option<ImageSource>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
struct ImageSource {
    reference: Box<str>,
}

/// A claim that is named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimSource {
    pub claim_name: Box<str>,
    pub read_only: bool,
}

/// Says only that the volume is of this kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
pub struct Ephemeral {}

/// A disk of Google's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GceDisk {
    pub pd_name: Box<str>,
    pub read_only: bool,
}

/// A disk of Amazon's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct AwsDisk {
    #[serde(rename = "volumeID")]
    pub volume_id: Box<str>,
    #[serde(rename = "readOnly")]
    pub read_only: bool,
}

/// A disk of Azure's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct AzureDisk {
    #[serde(rename = "diskURI")]
    pub uri: Box<str>,
    pub kind: Option<Box<str>>,
}

/// A volume that is known by its id alone: one of OpenStack's or Portworx's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct VolumeId {
    #[serde(rename = "volumeID")]
    pub volume_id: Box<str>,
}

/// A block device of Ceph's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rbd {
    pub monitors: Vec<Box<str>>,
    pub image: Box<str>,
    /// `rbd` when it is not named.
    pub pool: Option<Box<str>>,
    pub read_only: bool,
}

/// A block device over iSCSI.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Iscsi {
    pub target_portal: Box<str>,
    pub iqn: Box<str>,
    pub lun: i32,
    pub read_only: bool,
}

impl PodVolume {
    /// The image that it mounts.
    pub fn image(&self) -> Option<&str> {
        self.image.as_ref().map(|i| i.reference.as_ref())
    }

    /// The CSI driver that it is handed to and what that calls it, or why it cannot be. Of shares of Azure
    /// and disks of vSphere upstream's scheduler knows nothing.
    pub fn handed_over(&self) -> Option<(&'static str, Result<String, migration::Error>)> {
        Some(if let Some(disk) = &self.aws_elastic_block_store {
            (AWS_EBS.driver, migration::aws_handle(&disk.volume_id))
        } else if let Some(disk) = &self.gce_persistent_disk {
            (GCE_PD.driver, Ok(migration::gce_handle(&disk.pd_name)))
        } else if let Some(disk) = &self.azure_disk {
            (AZURE_DISK.driver, migration::azure_disk_kind(disk.kind.as_deref()).map(|()| disk.uri.to_string()))
        } else if let Some(disk) = &self.cinder {
            (CINDER.driver, Ok(disk.volume_id.to_string()))
        } else if let Some(volume) = &self.portworx_volume {
            (PORTWORX.driver, Ok(volume.volume_id.to_string()))
        } else {
            return None;
        })
    }

    /// Whether a node could be wrong for it.
    pub(crate) fn matters(&self) -> bool {
        self.persistent_volume_claim.is_some()
            || self.ephemeral.is_some()
            || self.gce_persistent_disk.is_some()
            || self.aws_elastic_block_store.is_some()
            || self.azure_disk.is_some()
            || self.cinder.is_some()
            || self.portworx_volume.is_some()
            || self.rbd.is_some()
            || self.iscsi.is_some()
    }
}
