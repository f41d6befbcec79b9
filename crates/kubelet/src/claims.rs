//! Volumes behind claims: which PersistentVolume a pod's claim stands for, whether this node reaches
//! it, and whose its files are to be. Sources that need no driver: hostPath and local.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{PersistentVolume, Pod, Volume};
use kube::ResourceExt;
use rules::storage;

use crate::admit::term_matches;
use crate::objects::Objects;
use crate::pod::{self, go_quote};

/// The volume behind a pod's volume; nothing when that is not a claim. An error says why it is not
/// there yet, in upstream's words.
pub async fn find(objects: &dyn Objects, pod: &Pod, volume: &Volume) -> Result<Option<PersistentVolume>, String> {
    let Some((name, ephemeral)) = storage::claim_of(&pod.metadata, volume) else { return Ok(None) };
    let namespace = pod.namespace().unwrap_or_default();
    let failed = |why: String| format!("error processing PVC {namespace}/{name}: {why}");
    let missing = || format!("persistentvolumeclaims {} not found", go_quote(&name));
    let claim = objects.claim(&namespace, &name).await.and_then(|c| c.ok_or_else(missing));
    let claim = claim.map_err(|e| failed(format!("failed to fetch PVC from API server: {e}")))?;
    let protected = claim.finalizers().iter().any(|f| f == "kubernetes.io/pvc-protection");
    if claim.metadata.deletion_timestamp.is_some() && !protected {
        return Err(failed("PVC is being deleted".into()));
    }
    if claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
        return Err(failed("PVC is not bound".into()));
    }
    let bound = storage::volume_name(&claim);
    if bound.is_empty() {
        return Err(failed("PVC has empty pvc.Spec.VolumeName".into()));
    }
    if ephemeral {
        storage::made_for(&pod.metadata, &claim)?;
    }
    let missing = || format!("persistentvolumes {} not found", go_quote(bound));
    let found = objects.volume(bound).await.and_then(|v| v.ok_or_else(missing));
    let found = found.map_err(|e| failed(format!("failed to fetch PV {bound} from API server: {e}")))?;
    let Some(reference) = found.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else {
        return Err(failed(format!("found PV object {bound} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim")));
    };
    if reference.uid != claim.metadata.uid {
        let (theirs, ours) = (reference.uid.clone().unwrap_or_default(), claim.uid().unwrap_or_default());
        return Err(failed(format!("found PV object {bound} but its pv.Spec.ClaimRef.UID {theirs} does not point to claim.UID {ours}")));
    }
    let mode = found.spec.as_ref().and_then(|s| s.volume_mode.as_deref()).unwrap_or("Filesystem");
    let mounted = pod::members(pod).iter().any(|m| m.spec.volume_mounts.iter().flatten().any(|v| v.name == volume.name));
    if mounted && mode != "Filesystem" {
        return Err(format!("volume {} has volumeMode {mode}, but is specified in volumeMounts", volume.name));
    }
    Ok(Some(found))
}

/// What the event says while claims are missing: each as its volume's name and why.
pub fn waiting(missing: &[(String, String)]) -> String {
    let names: Vec<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
    let reasons: Vec<&str> = missing.iter().map(|(_, why)| why.as_str()).collect();
    let names = names.join(" ");
    format!("Unable to attach or mount volumes: unmounted volumes=[{names}], unattached volumes=[], failed to process volumes=[{names}]: {}", reasons.join("; "))
}

/// Whether the volume can be reached from a node with these labels.
pub fn is_near(volume: &PersistentVolume, labels: &BTreeMap<String, String>, node: &str) -> bool {
    let required = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
    required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term_matches(t, labels, node)))
}

/// A volume of type local: a path that somebody else has made.
pub fn local(path: &str) -> Result<PathBuf, String> {
    let found = PathBuf::from(path);
    if found.exists() { Ok(found) } else { Err(format!("path {} does not exist", go_quote(path))) }
}

/// Gives everything below `root` to a group, which may read it and, unless it is read only, write it.
/// `lazily`: only when the root itself is not so already. Blocks.
pub fn give_to_group(root: &Path, group: u32, read_only: bool, lazily: bool) -> std::io::Result<()> {
    let wanted = if read_only { 0o440 } else { 0o660 };
    let meta = fs::symlink_metadata(root)?;
    if lazily && meta.gid() == group && meta.mode() & (wanted | 0o2110) == wanted | 0o2110 {
        return Ok(());
    }
    give(root, &meta, group, wanted)
}

fn give(path: &Path, meta: &fs::Metadata, group: u32, wanted: u32) -> std::io::Result<()> {
    // The root is done last: a walk that was cut off is begun again.
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            give(&entry.path(), &entry.metadata()?, group, wanted)?;
        }
    }
    lchown(path, None, Some(group))?;
    if meta.is_symlink() {
        return Ok(());
    }
    let more = if meta.is_dir() { wanted | 0o2110 } else { wanted };
    fs::set_permissions(path, fs::Permissions::from_mode(meta.permissions().mode() | more))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PersistentVolumeClaim;
    use serde_json::json;

    use super::*;
    use crate::plan::tests::pod;
    use crate::volumes::tests::FakeObjects;

    #[tokio::test]
    async fn a_claim_leads_to_its_volume_or_says_what_is_missing() {
        let objects = FakeObjects::default();
        let pod = pod(json!({"containers": [{"name": "c", "volumeMounts": [{"name": "d", "mountPath": "/d"}]}],
            "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "e", "emptyDir": {}}]}));
        let volumes = pod::volumes(&pod);
        assert_eq!(find(&objects, &pod, &volumes[1]).await, Ok(None));
        let mut claim: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": {"name": "data", "namespace": "n", "uid": "u1"}, "status": {"phase": "Pending"}})).unwrap();
        let mut pv: PersistentVolume = serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": {"hostPath": {"path": "/p"}, "claimRef": {"uid": "other"}}})).unwrap();
        let text = async || find(&objects, &pod, &volumes[0]).await.expect_err("not yet");
        let put = |claim: &PersistentVolumeClaim, pv: &PersistentVolume| {
            objects.claims.lock().insert("data".into(), claim.clone());
            objects.volumes.lock().insert("v".into(), pv.clone());
        };
        let start = "error processing PVC n/data: ";
        assert_eq!(text().await, format!("{start}failed to fetch PVC from API server: persistentvolumeclaims \"data\" not found"));
        put(&claim, &pv);
        assert_eq!(text().await, format!("{start}PVC is not bound"));
        claim.status.as_mut().unwrap().phase = Some("Bound".into());
        put(&claim, &pv);
        assert_eq!(text().await, format!("{start}PVC has empty pvc.Spec.VolumeName"));
        claim.spec.get_or_insert_default().volume_name = Some("v".into());
        put(&claim, &pv);
        assert_eq!(text().await, format!("{start}found PV object v but its pv.Spec.ClaimRef.UID other does not point to claim.UID u1"));
        pv.spec.as_mut().unwrap().claim_ref.as_mut().unwrap().uid = Some("u1".into());
        put(&claim, &pv);
        assert_eq!(find(&objects, &pod, &volumes[0]).await, Ok(Some(pv.clone())));
        pv.spec.as_mut().unwrap().volume_mode = Some("Block".into());
        put(&claim, &pv);
        assert_eq!(text().await, "volume d has volumeMode Block, but is specified in volumeMounts");
    }

    #[test]
    fn what_is_missing_is_told_at_once() {
        let missing = [("a".to_string(), "no".to_string()), ("b".to_string(), "neither".to_string())];
        let expect = "Unable to attach or mount volumes: unmounted volumes=[a b], unattached volumes=[], failed to process volumes=[a b]: no; neither";
        assert_eq!(waiting(&missing), expect);
    }

    #[test]
    fn volumes_belong_to_nodes() {
        let volume: PersistentVolume = serde_json::from_value(json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}]}]}}}})).unwrap();
        let labels = |host: &str| BTreeMap::from([("kubernetes.io/hostname".to_string(), host.to_string())]);
        assert!(is_near(&volume, &labels("a"), "a") && !is_near(&volume, &labels("b"), "b"));
        assert!(is_near(&PersistentVolume::default(), &labels("b"), "b"));
    }

    #[test]
    fn files_are_given_to_the_group() {
        let dir = tempfile::tempdir().unwrap();
        let group = fs::metadata(dir.path()).unwrap().gid();
        let (file, below) = (dir.path().join("f"), dir.path().join("d"));
        fs::write(&file, "").unwrap();
        fs::create_dir(&below).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("l")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let before = mode(Path::new("/etc/passwd"));
        give_to_group(dir.path(), group, true, true).unwrap();
        assert_eq!(mode(&file), 0o640);
        give_to_group(dir.path(), group, false, true).unwrap();
        assert_eq!(mode(&file), 0o660);
        assert_eq!(mode(&below) & 0o2770, 0o2770);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        give_to_group(dir.path(), group, false, true).unwrap();
        assert_eq!(mode(&file), 0o600, "the root is as it should be");
        give_to_group(dir.path(), group, false, false).unwrap();
        assert_eq!(mode(&file), 0o660);
        assert_eq!(mode(Path::new("/etc/passwd")), before, "links are not followed");
    }
}
