//! What each driver is told of a volume that is written in the old way.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    AWSElasticBlockStoreVolumeSource, AzureDiskVolumeSource, AzureFilePersistentVolumeSource, AzureFileVolumeSource, CSIPersistentVolumeSource,
    GCEPersistentDiskVolumeSource, PersistentVolume, PortworxVolumeSource, SecretReference, Volume, VsphereVirtualDiskVolumeSource,
};
use kube::ResourceExt;

use super::{AWS_EBS, AZURE_DISK, AZURE_FILE, CINDER, Error, GCE_PD, PORTWORX, Plugin, VSPHERE};

/// Between the zones of a disk that is in several.
pub(super) const BETWEEN_ZONES: &str = "__";
/// Stands for a project or zone that only the node knows.
const UNSPECIFIED: &str = "UNSPECIFIED";
const MANAGED: &str = "Managed";
const RESOURCE_GROUP: &str = "kubernetes.io/azure-file-resource-group";
const PORTWORX_SECRET: [&str; 2] = ["openstorage.io/auth-secret-name", "openstorage.io/auth-secret-namespace"];

type Attributes = Vec<(&'static str, String)>;

fn csi(plugin: &Plugin, handle: String, read_only: Option<bool>, fs_type: Option<&String>, attributes: Attributes) -> CSIPersistentVolumeSource {
    let attributes: BTreeMap<String, String> = attributes.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
    CSIPersistentVolumeSource {
        driver: plugin.driver.into(),
        volume_handle: handle,
        read_only: read_only.filter(|r| *r),
        fs_type: fs_type.filter(|t| !t.is_empty()).cloned(),
        volume_attributes: Some(attributes).filter(|a| !a.is_empty()),
        ..CSIPersistentVolumeSource::default()
    }
}

/// What the driver calls a disk: `aws://ZONE/vol-…` without the place.
pub fn aws_handle(id: &str) -> Result<String, Error> {
    let Some(rest) = id.strip_prefix("aws://") else { return Ok(id.into()) };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let path = rest.find('/').map_or("", |at| &rest[at..]).trim_matches('/');
    match path.strip_prefix("vol-") {
        Some(rest) if !rest.contains('/') => Ok(path.into()),
        _ => Err(Error::AwsVolume(id.into())),
    }
}

pub(super) fn aws(disk: &AWSElasticBlockStoreVolumeSource) -> Result<CSIPersistentVolumeSource, Error> {
    let partition = disk.partition.unwrap_or(0).to_string();
    Ok(csi(&AWS_EBS, aws_handle(&disk.volume_id)?, disk.read_only, disk.fs_type.as_ref(), vec![("partition", partition)]))
}

/// What the driver calls a disk of this name, as far as it is known without its zone.
pub fn gce_handle(name: &str) -> String {
    format!("projects/{UNSPECIFIED}/zones/{UNSPECIFIED}/disks/{name}")
}

/// A disk in the zones of a label, which may be empty.
pub(super) fn gce(disk: &GCEPersistentDiskVolumeSource, zones: &str) -> Result<CSIPersistentVolumeSource, Error> {
    let name = &disk.pd_name;
    let handle = if zones.is_empty() {
        gce_handle(name)
    } else if zones.contains(BETWEEN_ZONES) {
        format!("projects/{UNSPECIFIED}/regions/{}/disks/{name}", gce_region(zones.split(BETWEEN_ZONES))?)
    } else {
        format!("projects/{UNSPECIFIED}/zones/{zones}/disks/{name}")
    };
    let partition = disk.partition.filter(|p| *p != 0).map(|p| p.to_string()).unwrap_or_default();
    Ok(csi(&GCE_PD, handle, disk.read_only, disk.fs_type.as_ref(), vec![("partition", partition)]))
}

fn gce_region<'a>(zones: impl Iterator<Item = &'a str>) -> Result<String, Error> {
    let mut regions = BTreeSet::new();
    for zone in zones {
        let parts: Vec<&str> = zone.split('-').collect();
        let [locale, region, _] = parts.as_slice() else { return Err(Error::GceZone(zone.into())) };
        regions.insert(format!("{locale}-{region}"));
    }
    match regions.len() {
        1 => Ok(regions.pop_first().unwrap_or_default()),
        _ => Err(Error::GceRegions(regions.into_iter().map(|r| format!("{r}:{{}}")).collect::<Vec<_>>().join(" "))),
    }
}

/// Modes as the driver knows them: it writes from one node or reads from many, and refuses anything else,
/// which was let pass before there was a driver.
pub(super) fn gce_access_modes(modes: Vec<String>) -> Vec<String> {
    let reads_only = modes.iter().all(|m| m != "ReadWriteOnce" && m != "ReadWriteMany") && modes.iter().any(|m| m == "ReadOnlyMany");
    vec![if reads_only { "ReadOnlyMany" } else { "ReadWriteOnce" }.into()]
}

pub(super) fn cinder(id: &str, read_only: Option<bool>, fs_type: Option<&String>) -> CSIPersistentVolumeSource {
    csi(&CINDER, id.into(), read_only, fs_type, Vec::new())
}

/// Refuses disks that the driver cannot attach: those in storage accounts.
pub fn azure_disk_kind(kind: Option<&str>) -> Result<(), Error> {
    match kind.filter(|k| !k.eq_ignore_ascii_case(MANAGED)) {
        Some(other) => Err(Error::AzureKind(other.into())),
        None => Ok(()),
    }
}

pub(super) fn azure_disk(disk: &AzureDiskVolumeSource) -> Result<CSIPersistentVolumeSource, Error> {
    azure_disk_kind(disk.kind.as_deref())?;
    let mut attributes = vec![("kind", MANAGED.to_string())];
    attributes.extend(disk.caching_mode.clone().map(|mode| ("cachingmode", mode)));
    attributes.extend(disk.fs_type.clone().map(|fs_type| ("fstype", fs_type)));
    Ok(csi(&AZURE_DISK, disk.disk_uri.clone(), disk.read_only, disk.fs_type.as_ref(), attributes))
}

/// A disk in a pod: a caching mode that is given but empty is not told.
pub(super) fn azure_disk_of_pod(disk: &AzureDiskVolumeSource) -> Result<CSIPersistentVolumeSource, Error> {
    let caching_mode = disk.caching_mode.clone().filter(|mode| !mode.is_empty());
    azure_disk(&AzureDiskVolumeSource { caching_mode, ..disk.clone() })
}

/// The storage account that a Secret is for.
fn azure_account(secret: &str) -> &str {
    let account = secret.split_once("azure-storage-account-").and_then(|(_, rest)| Some(rest.rsplit_once("-secret")?.0));
    account.filter(|a| !a.is_empty()).unwrap_or(secret)
}

fn azure_file(handle: String, share: &str, secret: &str, namespace: &str, read_only: Option<bool>) -> CSIPersistentVolumeSource {
    let secret = SecretReference { name: Some(secret.into()), namespace: Some(namespace.into()) };
    CSIPersistentVolumeSource { node_stage_secret_ref: Some(secret), ..csi(&AZURE_FILE, handle, read_only, None, vec![("sharename", share.into())]) }
}

pub(super) fn azure_share(volume: &PersistentVolume, share: &AzureFilePersistentVolumeSource) -> Result<CSIPersistentVolumeSource, Error> {
    let claim = || volume.spec.as_ref()?.claim_ref.as_ref()?.namespace.as_ref();
    let namespace = share.secret_namespace.as_ref().or_else(claim).filter(|n| !n.is_empty()).ok_or(Error::NoSecretNamespace)?;
    let group = volume.annotations().get(RESOURCE_GROUP).map(String::as_str).unwrap_or_default();
    let handle = [group, azure_account(&share.secret_name), &share.share_name, &volume.name_any(), namespace].join("#");
    Ok(azure_file(handle, &share.share_name, &share.secret_name, namespace, share.read_only))
}

pub(super) fn azure_share_of_pod(volume: &Volume, share: &AzureFileVolumeSource, namespace: &str) -> CSIPersistentVolumeSource {
    let namespace = if namespace.is_empty() { "default" } else { namespace };
    let handle = ["", azure_account(&share.secret_name), &share.share_name, &volume.name, namespace].join("#");
    azure_file(handle, &share.share_name, &share.secret_name, namespace, share.read_only)
}

pub(super) fn vsphere(disk: &VsphereVirtualDiskVolumeSource) -> CSIPersistentVolumeSource {
    let policy = disk.storage_policy_name.clone().filter(|p| !p.is_empty());
    csi(&VSPHERE, disk.volume_path.clone(), None, disk.fs_type.as_ref(), policy.map(|p| ("storagepolicyname", p)).into_iter().collect())
}

/// The Secret that a volume's annotations name for all that is done with it.
pub(super) fn portworx_secret(volume: &PersistentVolume) -> Option<SecretReference> {
    let [name, namespace] = PORTWORX_SECRET.map(|key| volume.annotations().get(key).cloned());
    Some(SecretReference { name: Some(name?), namespace: Some(namespace?) })
}

pub(super) fn portworx(disk: &PortworxVolumeSource, secret: Option<SecretReference>) -> CSIPersistentVolumeSource {
    CSIPersistentVolumeSource {
        controller_publish_secret_ref: secret.clone(),
        node_stage_secret_ref: secret.clone(),
        node_publish_secret_ref: secret.clone(),
        controller_expand_secret_ref: secret.clone(),
        node_expand_secret_ref: secret,
        ..csi(&PORTWORX, disk.volume_id.clone(), None, disk.fs_type.as_ref(), Vec::new())
    }
}
