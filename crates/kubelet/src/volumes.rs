//! The volumes of pods: directories on the node, filled from the API.
//!
//! What holds secrets (Secret, projected and downward API volumes) lies on one tmpfs of the node, so
//! that no secret reaches a disk, in the run directory. Both trees have a directory a pod and are removed with it.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, PersistentVolume, Pod, Secret, Volume, VolumeProjection,
};
use kube::ResourceExt;

use crate::atomic::{self, File, Payload};
use crate::claims;
use crate::local_storage;
use crate::objects::{Kind, Objects};
use crate::pod::{self, NodeFacts, go_quote};
use crate::resources;

/// Makes volumes.
pub struct Volumes {
    /// Holds `pods/<uid>`.
    root: PathBuf,
    /// Holds `secrets/<uid>`, the tmpfs.
    run: PathBuf,
    objects: Arc<dyn Objects>,
    site: Site,
}

/// What volumes behind claims have to know of the node.
pub struct Site {
    pub node: String,
    /// The node's labels as they are now.
    pub labels: Box<dyn Fn() -> BTreeMap<String, String> + Send + Sync>,
    /// Holds the volumes of the local-path provisioner.
    pub storage: Option<PathBuf>,
}

impl Default for Site {
    fn default() -> Site {
        Site { node: String::new(), labels: Box::new(BTreeMap::new), storage: None }
    }
}

/// A volume that cannot be made: its name, and the text of the event.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
}

/// All volumes of a pod.
#[derive(Debug, Default)]
pub struct Mounted {
    /// By the volume's name.
    pub paths: BTreeMap<String, PathBuf>,
    /// When tokens want a look again.
    pub refresh: Option<Duration>,
}

impl Volumes {
    /// `root` is the kubelet's data directory, `run` its run directory.
    pub fn new(root: PathBuf, run: PathBuf, objects: Arc<dyn Objects>) -> Volumes {
        Volumes { root, run, objects, site: Site::default() }
    }

    /// The same on a node.
    pub fn at(self, site: Site) -> Volumes {
        Volumes { site, ..self }
    }

    /// Mounts the tmpfs for secrets, unless it is there from before.
    pub fn prepare(&self) -> Result<(), sys::Error> {
        let secrets = self.run.join("secrets");
        let _ = fs::create_dir_all(&secrets);
        let _ = fs::create_dir_all(self.root.join("pods"));
        if !sys::mount::is_mount_point(&secrets) {
            sys::mount::tmpfs(&secrets, "mode=0750")?;
        }
        // Processes of containers that are not root pass through.
        let _ = fs::set_permissions(&secrets, fs::Permissions::from_mode(0o751));
        Ok(())
    }

    /// The directory of a pod.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }

    /// The uids of all pods that have a directory.
    pub fn pods_on_disk(&self) -> Vec<String> {
        let mut uids: HashSet<String> = HashSet::new();
        for tree in [self.root.join("pods"), self.run.join("secrets")] {
            let entries = fs::read_dir(tree).into_iter().flatten().flatten();
            uids.extend(entries.filter_map(|e| e.file_name().into_string().ok()));
        }
        uids.into_iter().collect()
    }

    /// Which objects a pod's volumes show.
    pub fn references(pod: &Pod) -> HashSet<(Kind, String)> {
        let mut all = HashSet::new();
        for volume in pod::volumes(pod) {
            all.extend(volume.config_map.as_ref().map(|s| (Kind::ConfigMap, s.name.clone())));
            all.extend(volume.secret.as_ref().and_then(|s| s.secret_name.clone()).map(|n| (Kind::Secret, n)));
            for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
                all.extend(source.config_map.as_ref().map(|s| (Kind::ConfigMap, s.name.clone())));
                all.extend(source.secret.as_ref().map(|s| (Kind::Secret, s.name.clone())));
            }
        }
        all
    }

    /// Makes all volumes of a pod, and brings those that are there up to date.
    pub async fn mount(&self, pod: &Pod, node: &NodeFacts, allocatable: &resources::List) -> Result<Mounted, Failure> {
        let mut mounted = Mounted::default();
        let (mut behind, mut missing) = (BTreeMap::new(), Vec::new());
        for volume in pod::volumes(pod) {
            match claims::find(&*self.objects, pod, volume).await {
                Ok(found) => behind.extend(found.map(|v| (volume.name.clone(), v))),
                Err(why) => missing.push((volume.name.clone(), why)),
            }
        }
        if !missing.is_empty() {
            return Err(Failure { message: claims::waiting(&missing) });
        }
        for volume in pod::volumes(pod) {
            if let Some(found) = behind.get(&volume.name) {
                let read_only = volume.persistent_volume_claim.as_ref().is_some_and(|s| s.read_only == Some(true));
                let path = self.mount_persistent(pod, found, read_only).await.map_err(|(step, why)| Failure {
                    message: format!("{step} for volume {} : {why}", go_quote(&found.name_any())),
                })?;
                mounted.paths.insert(volume.name.clone(), path);
                continue;
            }
            let path = self.mount_one(pod, volume, node, allocatable, &mut mounted.refresh).await.map_err(|error| Failure {
                message: format!("MountVolume.SetUp failed for volume {} : {error}", go_quote(&volume.name)),
            })?;
            mounted.paths.insert(volume.name.clone(), path);
        }
        Ok(mounted)
    }

    /// An error is the step that failed, and why.
    async fn mount_persistent(&self, pod: &Pod, volume: &PersistentVolume, read_only: bool) -> Result<PathBuf, (&'static str, String)> {
        const SET_UP: &str = "MountVolume.SetUp failed";
        if !claims::is_near(volume, &(self.site.labels)(), &self.site.node) {
            return Err(("MountVolume.NodeAffinity check failed", "no matching NodeSelectorTerms".into()));
        }
        let spec = volume.spec.clone().unwrap_or_default();
        let path = spec.host_path.as_ref().map(|h| &h.path).or(spec.local.as_ref().map(|l| &l.path)).map(PathBuf::from);
        let ours = path.as_ref().zip(self.site.storage.as_ref()).filter(|(path, root)| local_storage::is_below(root, path));
        if let Some((path, root)) = ours {
            local_storage::make(root, path).map_err(|e| (SET_UP, e.to_string()))?;
        }
        if let Some(source) = &spec.host_path {
            host_path(source).map_err(|e| (SET_UP, e))?;
            return Ok(PathBuf::from(&source.path));
        }
        let Some(source) = &spec.local else { return Err((SET_UP, "no volume plugin matched".into())) };
        let path = claims::local(&source.path).map_err(|e| ("MountVolume.NewMounter initialization failed", e))?;
        let security = pod::spec(pod).security_context.as_ref();
        if let Some(group) = security.and_then(|s| s.fs_group).and_then(|g| u32::try_from(g).ok()) {
            let lazily = security.is_some_and(|s| s.fs_group_change_policy.as_deref() == Some("OnRootMismatch"));
            let root = path.clone();
            let given = tokio::task::spawn_blocking(move || claims::give_to_group(&root, group, read_only, lazily)).await;
            given.map_err(std::io::Error::other).and_then(|r| r).map_err(|e| (SET_UP, format!("applyFSGroup failed for vol {}: {e}", volume.name_any())))?;
        }
        Ok(path)
    }

    async fn mount_one(&self, pod: &Pod, volume: &Volume, node: &NodeFacts, allocatable: &resources::List, refresh: &mut Option<Duration>) -> Result<PathBuf, String> {
        let uid = pod::uid(pod);
        let namespace = pod.namespace().unwrap_or_default();
        let group = pod::spec(pod).security_context.as_ref().and_then(|s| s.fs_group).and_then(|g| u32::try_from(g).ok());
        let on_disk = |plugin: &str| self.pod_dir(&uid).join("volumes").join(plugin).join(&volume.name);
        let in_memory = |plugin: &str| self.run.join("secrets").join(&uid).join(plugin).join(&volume.name);
        let disk = |e: std::io::Error| e.to_string();

        if let Some(source) = &volume.host_path {
            return host_path(source).map(|()| PathBuf::from(&source.path));
        }
        if let Some(source) = &volume.empty_dir {
            let path = on_disk("kubernetes.io~empty-dir");
            if !path.exists() {
                fs::create_dir_all(&path).map_err(disk)?;
            }
            let medium = source.medium.as_deref().unwrap_or_default();
            match medium {
                "" => {}
                "Memory" => {
                    if !sys::mount::is_mount_point(&path) {
                        let limit = source.size_limit.as_ref().and_then(|q| api::quantity::Quantity::parse(&q.0).ok()).map(|q| q.value());
                        let of_pod = resources::pod_limits(pod).get("memory").map(|q| q.value());
                        let size = [limit, of_pod].into_iter().flatten().filter(|v| *v > 0).min();
                        let options = size.map_or_else(|| "mode=0777".to_string(), |s| format!("size={s},mode=0777"));
                        mount_tmpfs(&path, &options)?;
                    }
                }
                other => return Err(format!("unsupported medium {}", go_quote(other))),
            }
            let mode = if group.is_some() { 0o2777 } else { 0o777 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(disk)?;
            if let Some(group) = group {
                std::os::unix::fs::chown(&path, None, Some(group)).map_err(disk)?;
            }
            return Ok(path);
        }
        let (path, payload) = if let Some(source) = &volume.config_map {
            let map = self.objects.config_map(&namespace, &source.name).await?;
            let optional = source.optional == Some(true);
            (on_disk("kubernetes.io~configmap"), config_map(&source.name, map, source.items.as_deref(), source.default_mode.unwrap_or(0o644), optional)?)
        } else if let Some(source) = &volume.secret {
            let name = source.secret_name.clone().unwrap_or_default();
            let secret = self.objects.secret(&namespace, &name).await?;
            let optional = source.optional == Some(true);
            (in_memory("kubernetes.io~secret"), secret_payload(&name, secret, source.items.as_deref(), source.default_mode.unwrap_or(0o644), optional)?)
        } else if let Some(source) = &volume.downward_api {
            let mode = source.default_mode.unwrap_or(0o644);
            (in_memory("kubernetes.io~downward-api"), downward(pod, source.items.as_deref(), mode, node, allocatable)?)
        } else if let Some(source) = &volume.projected {
            let mode = source.default_mode.unwrap_or(0o644);
            let mut payload = Payload::new();
            for part in source.sources.iter().flatten() {
                payload.extend(self.projection(pod, part, mode, group, node, allocatable, refresh).await?);
            }
            (in_memory("kubernetes.io~projected"), payload)
        } else {
            return Err("no volume plugin matched".to_string());
        };
        let payload = match group {
            Some(_) => payload.into_iter().map(|(p, f)| (p, File { mode: f.mode | 0o440, ..f })).collect(),
            None => payload,
        };
        if !path.exists() {
            fs::create_dir_all(&path).map_err(disk)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).map_err(disk)?;
        }
        atomic::write(&path, &payload, group).map_err(disk)?;
        Ok(path)
    }

    #[allow(clippy::too_many_arguments)]
    async fn projection(
        &self,
        pod: &Pod,
        part: &VolumeProjection,
        mode: i32,
        group: Option<u32>,
        node: &NodeFacts,
        allocatable: &resources::List,
        refresh: &mut Option<Duration>,
    ) -> Result<Payload, String> {
        let namespace = pod.namespace().unwrap_or_default();
        if let Some(source) = &part.config_map {
            let map = self.objects.config_map(&namespace, &source.name).await?;
            config_map(&source.name, map, source.items.as_deref(), mode, source.optional == Some(true))
        } else if let Some(source) = &part.secret {
            let secret = self.objects.secret(&namespace, &source.name).await?;
            secret_payload(&source.name, secret, source.items.as_deref(), mode, source.optional == Some(true))
        } else if let Some(source) = &part.downward_api {
            downward(pod, source.items.as_deref(), mode, node, allocatable)
        } else if let Some(source) = &part.service_account_token {
            let seconds = source.expiration_seconds.unwrap_or(3600);
            let token = self.objects.token(pod, source.audience.as_deref().unwrap_or_default(), seconds).await?;
            // Renewed after 80 % of its life: a look at a tenth of it is often enough.
            let look = Duration::from_secs(u64::try_from(seconds / 10).unwrap_or(60).clamp(30, 3600));
            *refresh = Some(refresh.map_or(look, |r| r.min(look)));
            let user = common_user(pod);
            let mode = if group.is_some() || user.is_some() { 0o600 } else { mode };
            Ok(Payload::from([(source.path.clone(), File { bytes: token.into_bytes(), mode: mode as u32, user })]))
        } else {
            Err("unsupported projection".to_string())
        }
    }

    /// Resolves the `subPath`s of a container: host path by mount path. The result is a bind mount, so
    /// that what the container does to links later leads nowhere.
    pub fn sub_paths(&self, pod: &Pod, container: &Container, volumes: &BTreeMap<String, PathBuf>, expand: impl Fn(&str) -> String) -> Result<BTreeMap<String, PathBuf>, String> {
        let mut resolved = BTreeMap::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let sub_path = match (&mount.sub_path_expr, &mount.sub_path) {
                (Some(e), _) if !e.is_empty() => expand(e),
                (_, Some(p)) if !p.is_empty() => p.clone(),
                _ => continue,
            };
            let Some(root) = volumes.get(&mount.name) else { continue };
            let relative = Path::new(&sub_path);
            if relative.is_absolute() || relative.components().any(|c| c == std::path::Component::ParentDir) {
                return Err(format!("failed to prepare subPath for volumeMount {} of container {}", go_quote(&mount.name), go_quote(&container.name)));
            }
            let failed = |e: String| {
                tracing::warn!(pod = pod::format(pod), sub_path, "{e}");
                format!("failed to prepare subPath for volumeMount {} of container {}", go_quote(&mount.name), go_quote(&container.name))
            };
            let source = match sys::beneath::open(root, relative) {
                Ok(file) => file,
                Err(_) => {
                    sys::beneath::create_dir_all(root, relative).map_err(|e| failed(e.to_string()))?;
                    let made = sys::beneath::open(root, relative).map_err(|e| failed(e.to_string()))?;
                    // As the volume itself, or a container that is not root could not write.
                    let mode = fs::metadata(root).map_err(|e| failed(e.to_string()))?.permissions();
                    let through = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&made));
                    fs::set_permissions(through, mode).map_err(|e| failed(e.to_string()))?;
                    made
                }
            };
            let target = self.pod_dir(&pod::uid(pod)).join("volume-subpaths").join(&mount.name).join(&container.name).join(index.to_string());
            if sys::mount::is_mount_point(&target) {
                sys::mount::unmount(&target).map_err(|e| failed(e.to_string()))?;
            }
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).map_err(|e| failed(e.to_string()))?;
            }
            let is_dir = source.metadata().map_err(|e| failed(e.to_string()))?.is_dir();
            if is_dir {
                let _ = fs::create_dir(&target);
            } else {
                let _ = fs::File::create(&target);
            }
            use std::os::fd::AsRawFd;
            let through = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
            sys::mount::bind(&through, &target, true).map_err(|e| failed(e.to_string()))?;
            resolved.insert(mount.mount_path.clone(), target);
        }
        Ok(resolved)
    }

    /// Removes everything of a pod. Blocks.
    pub fn remove(&self, uid: &str) -> Result<(), String> {
        if uid.is_empty() || uid.contains('/') || uid.starts_with('.') {
            return Ok(());
        }
        let dir = self.pod_dir(uid);
        if dir.exists() {
            sys::mount::unmount_below(&dir).map_err(|e| e.to_string())?;
            fs::remove_dir_all(&dir).map_err(|e| e.to_string())?;
        }
        match fs::remove_dir_all(self.run.join("secrets").join(uid)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.to_string()),
            _ => Ok(()),
        }
    }
}

fn mount_tmpfs(path: &Path, options: &str) -> Result<(), String> {
    let options = std::ffi::CString::new(options).map_err(|e| e.to_string())?;
    rustix::mount::mount("tmpfs", path, "tmpfs", rustix::mount::MountFlags::empty(), options.as_c_str()).map_err(|e| format!("mount tmpfs: {e}"))
}

/// Checks a host path, making what its type wants made.
fn host_path(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    let meta = fs::metadata(path);
    let exists = meta.is_ok();
    let failed = |what: &str| Err(format!("hostPath type check failed: {} is not {what}", source.path));
    let is = |test: &dyn Fn(&fs::FileType) -> bool| meta.as_ref().is_ok_and(|m| test(&m.file_type()));
    match source.type_.as_deref().unwrap_or_default() {
        "" => Ok(()),
        "DirectoryOrCreate" if !exists => {
            fs::create_dir_all(path).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755))).map_err(|e| e.to_string())
        }
        "Directory" | "DirectoryOrCreate" if is(&|t| t.is_dir()) => Ok(()),
        "Directory" | "DirectoryOrCreate" => failed("a directory"),
        "FileOrCreate" if !exists => fs::File::create(path).map(|_| ()).map_err(|e| e.to_string()),
        "File" | "FileOrCreate" if is(&|t| t.is_file()) => Ok(()),
        "File" | "FileOrCreate" => failed("a file"),
        "Socket" if is(&|t| t.is_socket()) => Ok(()),
        "Socket" => failed("a socket file"),
        "CharDevice" if is(&|t| t.is_char_device()) => Ok(()),
        "CharDevice" => failed("a character device"),
        "BlockDevice" if is(&|t| t.is_block_device()) => Ok(()),
        "BlockDevice" => failed("a block device"),
        other => Err(format!("{other} is an invalid volume type")),
    }
}

/// Chooses and names the keys of a map: all of them, or the items.
fn select(what: &str, all: BTreeMap<String, Vec<u8>>, items: Option<&[KeyToPath]>, mode: i32, optional: bool) -> Result<Payload, String> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        return Ok(all.into_iter().map(|(key, bytes)| (key, File { bytes, mode: mode as u32, user: None })).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match all.get(&item.key) {
            Some(bytes) => {
                payload.insert(item.path.clone(), File { bytes: bytes.clone(), mode: item.mode.unwrap_or(mode) as u32, user: None });
            }
            None if optional => {}
            None => return Err(format!("references non-existent {what} key: {}", item.key)),
        }
    }
    Ok(payload)
}

fn config_map(name: &str, map: Option<ConfigMap>, items: Option<&[KeyToPath]>, mode: i32, optional: bool) -> Result<Payload, String> {
    let Some(map) = map else {
        return if optional { Ok(Payload::new()) } else { Err(format!("configmap {} not found", go_quote(name))) };
    };
    let text = map.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes()));
    let all = text.chain(map.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0))).collect();
    select("config", all, items, mode, optional)
}

fn secret_payload(name: &str, secret: Option<Secret>, items: Option<&[KeyToPath]>, mode: i32, optional: bool) -> Result<Payload, String> {
    let Some(secret) = secret else {
        return if optional { Ok(Payload::new()) } else { Err(format!("secret {} not found", go_quote(name))) };
    };
    select("secret", secret.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect(), items, mode, optional)
}

fn downward(pod: &Pod, items: Option<&[DownwardAPIVolumeFile]>, mode: i32, node: &NodeFacts, allocatable: &resources::List) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for item in items.into_iter().flatten() {
        let value = if let Some(field) = &item.field_ref {
            pod::field(pod, &field.field_path, node).ok_or_else(|| format!("unsupported fieldPath: {}", field.field_path))?
        } else if let Some(resource) = &item.resource_field_ref {
            let name = resource.container_name.clone().unwrap_or_default();
            let container = pod::member(pod, &name).ok_or_else(|| format!("container {name} not found"))?.spec;
            resources::field(container, &resource.resource, resource.divisor.as_ref(), allocatable)
                .ok_or_else(|| format!("unsupported container resource : {}", resource.resource))?
        } else {
            continue;
        };
        payload.insert(item.path.clone(), File { bytes: value.into_bytes(), mode: item.mode.unwrap_or(mode) as u32, user: None });
    }
    Ok(payload)
}

/// As whom all containers run, if that is said, and is the same.
fn common_user(pod: &Pod) -> Option<u32> {
    let spec = pod::spec(pod);
    let of_pod = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users = spec.init_containers.iter().flatten().chain(&spec.containers).map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next()??;
    if users.all(|user| user == Some(first)) { u32::try_from(first).ok() } else { None }
}

#[cfg(test)]
pub mod tests {
    use std::collections::HashMap;

    use async_trait::async_trait;
    use k8s_openapi::api::core::v1::PersistentVolumeClaim;
    use parking_lot::Mutex;

    use super::*;
    use crate::plan::tests::pod;

    /// Objects in memory.
    #[derive(Default)]
    pub struct FakeObjects {
        pub config_maps: Mutex<HashMap<String, ConfigMap>>,
        pub secrets: Mutex<HashMap<String, Secret>>,
        pub claims: Mutex<HashMap<String, PersistentVolumeClaim>>,
        pub volumes: Mutex<HashMap<String, PersistentVolume>>,
    }

    #[async_trait]
    impl Objects for FakeObjects {
        async fn config_map(&self, _: &str, name: &str) -> Result<Option<ConfigMap>, String> {
            Ok(self.config_maps.lock().get(name).cloned())
        }
        async fn secret(&self, _: &str, name: &str) -> Result<Option<Secret>, String> {
            Ok(self.secrets.lock().get(name).cloned())
        }
        async fn claim(&self, _: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, String> {
            Ok(self.claims.lock().get(name).cloned())
        }
        async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, String> {
            Ok(self.volumes.lock().get(name).cloned())
        }
        async fn token(&self, _: &Pod, audience: &str, seconds: i64) -> Result<String, String> {
            Ok(format!("token {audience} {seconds}"))
        }
    }

    #[tokio::test]
    async fn volumes_are_filled_and_updated_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Arc::new(FakeObjects::default());
        let volumes = Volumes::new(dir.path().into(), dir.path().join("run"), objects.clone());
        let pod = pod(serde_json::json!({"containers": [{"name": "c", "volumeMounts": [{"name": "e", "mountPath": "/e"}]}], "volumes": [
            {"name": "e", "emptyDir": {}},
            {"name": "m", "configMap": {"name": "map", "items": [{"key": "k", "path": "deep/file", "mode": 0o400}]}},
            {"name": "s", "secret": {"secretName": "sec", "defaultMode": 0o440}},
            {"name": "p", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
                {"configMap": {"name": "gone", "optional": true}}]}},
        ]}));
        let facts = NodeFacts::default();
        let mount = async || volumes.mount(&pod, &facts, &resources::List::new()).await;
        assert_eq!(mount().await.unwrap_err().message, "MountVolume.SetUp failed for volume \"m\" : configmap \"map\" not found");
        let map = |value: &str| -> ConfigMap { serde_json::from_value(serde_json::json!({"data": {"k": value}})).unwrap() };
        objects.config_maps.lock().insert("map".into(), map("1"));
        objects.secrets.lock().insert("sec".into(), serde_json::from_value(serde_json::json!({"data": {"pw": "aHVudGVy"}})).unwrap());
        let mounted = mount().await.unwrap();
        let read = |volume: &str, file: &str| fs::read_to_string(mounted.paths[volume].join(file)).unwrap();
        assert_eq!(read("m", "deep/file"), "1");
        assert_eq!(read("s", "pw"), "hunter");
        assert_eq!(read("p", "token"), "token  3607");
        assert_eq!(read("p", "namespace"), "n");
        assert_eq!(fs::metadata(mounted.paths["m"].join("deep/file")).unwrap().permissions().mode() & 0o777, 0o400);
        assert_eq!(fs::metadata(&mounted.paths["e"]).unwrap().permissions().mode() & 0o777, 0o777);
        assert!(mounted.refresh.is_some());
        objects.config_maps.lock().insert("map".into(), map("2"));
        mount().await.unwrap();
        assert_eq!(read("m", "deep/file"), "2");
        assert_eq!(Volumes::references(&pod).len(), 3);
        assert_eq!(volumes.pods_on_disk(), ["u"]);
        volumes.remove("u").unwrap();
        assert!(volumes.pods_on_disk().is_empty());
    }

    #[tokio::test]
    async fn a_claims_volume_is_mounted_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Arc::new(FakeObjects::default());
        let storage = dir.path().join("storage");
        let labels = || BTreeMap::from([("kubernetes.io/hostname".to_string(), "a".to_string())]);
        let site = Site { node: "a".into(), labels: Box::new(labels), storage: Some(storage.clone()) };
        let volumes = Volumes::new(dir.path().into(), dir.path().join("run"), objects.clone()).at(site);
        let pod = pod(serde_json::json!({"containers": [{"name": "c"}], "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}));
        let facts = NodeFacts::default();
        let mount = async || volumes.mount(&pod, &facts, &resources::List::new()).await.map(|m| m.paths["d"].clone()).map_err(|f| f.message);
        assert!(mount().await.unwrap_err().starts_with("Unable to attach or mount volumes: unmounted volumes=[d], "));
        let claim = serde_json::json!({"metadata": {"uid": "u1"}, "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}});
        objects.claims.lock().insert("data".into(), serde_json::from_value(claim).unwrap());
        let put = |source: serde_json::Value, host: &str| {
            let mut spec = serde_json::json!({"claimRef": {"uid": "u1"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]}}});
            spec.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
            let volume = serde_json::json!({"metadata": {"name": "v"}, "spec": spec});
            objects.volumes.lock().insert("v".into(), serde_json::from_value(volume).unwrap());
        };
        let ours = storage.join("pvc-u1_n_data");
        let host_path = || serde_json::json!({"hostPath": {"path": ours, "type": "DirectoryOrCreate"}});
        put(host_path(), "b");
        assert_eq!(mount().await.unwrap_err(), "MountVolume.NodeAffinity check failed for volume \"v\" : no matching NodeSelectorTerms");
        assert!(!ours.exists(), "nothing is made for another node");
        put(host_path(), "a");
        assert_eq!(mount().await.unwrap(), ours);
        assert_eq!(fs::metadata(&ours).unwrap().permissions().mode() & 0o777, 0o777);
        put(serde_json::json!({"local": {"path": "/no/such/path"}}), "a");
        assert_eq!(mount().await.unwrap_err(), "MountVolume.NewMounter initialization failed for volume \"v\" : path \"/no/such/path\" does not exist");
        put(serde_json::json!({"csi": {"driver": "d", "volumeHandle": "h"}}), "a");
        assert_eq!(mount().await.unwrap_err(), "MountVolume.SetUp failed for volume \"v\" : no volume plugin matched");
    }

    #[test]
    fn tokens_belong_to_the_user_of_all_containers() {
        let of = |pod_user: Option<i64>, users: &[Option<i64>]| {
            let containers: Vec<_> = users.iter().map(|user| serde_json::json!({"name": "c", "securityContext": {"runAsUser": user}})).collect();
            common_user(&pod(serde_json::json!({"containers": containers, "securityContext": {"runAsUser": pod_user}})))
        };
        assert_eq!(of(None, &[None]), None);
        assert_eq!(of(Some(7), &[None, None]), Some(7));
        assert_eq!(of(None, &[Some(7), None]), None);
        assert_eq!(of(Some(7), &[Some(8), Some(8)]), Some(8));
        assert_eq!(of(Some(7), &[Some(8), None]), None);
        assert_eq!(of(Some(-1), &[None]), None);
    }

    #[test]
    fn host_paths_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let check = |path: &str, kind: &str| host_path(&HostPathVolumeSource { path: dir.path().join(path).display().to_string(), type_: Some(kind.into()) });
        assert!(check("new", "DirectoryOrCreate").is_ok());
        assert!(check("new", "Directory").is_ok());
        assert!(check("new", "File").unwrap_err().ends_with("is not a file"));
        assert!(check("none", "Directory").unwrap_err().starts_with("hostPath type check failed: "));
        assert!(check("file", "FileOrCreate").is_ok());
    }
}
