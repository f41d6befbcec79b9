//! The node's share of the local-path provisioner: it says where its directories are, and removes one
//! when it is asked to. Runs one task. Requests and answers are annotations of the node's own object
//! (`rules::storage::local`); nothing outside the one directory is ever touched.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use rules::storage::local::{self, Removal};
use reconcile::{Informer, Queue, Requeue, Tasks, run_workers};
use serde_json::{Value, json};

/// What is to be removed, as (volume, directory). Pure. What failed is asked for again by the provisioner.
pub fn asked(node: &Node) -> Vec<(String, String)> {
    let of = |volume: &str| match Removal::of(node, volume) {
        Some(Removal::Asked(directory)) => Some((volume.to_string(), directory)),
        _ => None,
    };
    Removal::volumes(node).filter_map(of).collect()
}

/// Removes one directory below `root`, which must be a plain name of a volume's directory and hold no
/// mount of anything else. One that is not there is removed already.
pub fn remove(root: &Path, directory: &str) -> Result<(), String> {
    if !local::is_directory_name(directory) {
        return Err(format!("{directory:?} is no name of a volume's directory"));
    }
    let path = root.join(directory);
    // A pod may have mounted something there, and that is not ours.
    if let Some(mounted) = sys::mount::below(&path).map_err(|e| e.to_string())?.first() {
        return Err(format!("something is mounted on {}", mounted.display()));
    }
    match fs::symlink_metadata(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e.to_string()),
        // Links below are removed, not followed.
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path).map_err(|e| e.to_string()),
        Ok(_) => Err(format!("{} is no directory", path.display())),
    }
}

/// Makes the directory of a volume, writable for whichever user a container runs as.
pub fn make(root: &Path, path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    fs::DirBuilder::new().recursive(true).mode(0o711).create(root)?;
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o777)),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

/// Whether a path is that of a volume's directory right below `root`.
pub fn is_below(root: &Path, path: &Path) -> bool {
    let name = path.strip_prefix(root).ok().and_then(Path::to_str);
    name.is_some_and(local::is_directory_name)
}

/// Starts the task.
pub fn start(tasks: &Tasks, client: Client, nodes: Informer<Node>, name: String, root: PathBuf) {
    let queue = Queue::<()>::new();
    let q = queue.clone();
    nodes.on_change(move |_| q.add(()));
    run_workers(tasks, "local storage", 1, queue, move |()| {
        let (client, nodes, name, root) = (client.clone(), nodes.clone(), name.clone(), root.clone());
        async move {
            let Some(node) = nodes.get("", &name) else { return Ok(Requeue::No) };
            let mut answers = serde_json::Map::<String, Value>::new();
            let own = root.display().to_string();
            if node.annotations().get(local::DIRECTORY) != Some(&own) {
                answers.insert(local::DIRECTORY.into(), own.into());
            }
            for (volume, directory) in asked(&node) {
                let root = root.clone();
                let done = tokio::task::spawn_blocking(move || remove(&root, &directory)).await;
                let answer = match done.map_err(|e| e.to_string()).and_then(|r| r) {
                    Ok(()) => Removal::Done,
                    Err(why) => {
                        tracing::warn!(volume, "its directory cannot be removed: {why}");
                        Removal::Failed(why)
                    }
                };
                answers.insert(Removal::key(&volume), answer.to_string().into());
            }
            if !answers.is_empty() {
                let patch = json!({"metadata": {"annotations": answers}});
                Api::<Node>::all(client).patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            }
            Ok::<_, kube::Error>(Requeue::No)
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_volumes_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("storage");
        let outside = dir.path().join("pvc-outside");
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        let volume = root.join("pvc-1_n_a");
        make(&root, &volume).unwrap();
        make(&root, &volume).unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("pvc-link")).unwrap();
        fs::write(root.join("pvc-file"), "").unwrap();
        for bad in ["../pvc-outside", "", ".", "..", "pvc-1_n_a/..", "pvc-link", "pvc-file", "other"] {
            assert!(remove(&root, bad).is_err(), "{bad:?}");
        }
        assert_eq!(remove(&root, "pvc-1_n_a"), Ok(()));
        assert_eq!(remove(&root, "pvc-1_n_a"), Ok(()), "gone is gone");
        assert!(!volume.exists() && outside.join("kept").exists());
    }

    #[test]
    fn volumes_directories_are_open_and_right_below() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pvc-1_n_a");
        make(dir.path(), &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o777);
        assert!(is_below(dir.path(), &path));
        for other in ["/etc", "/pvc-1", ".."] {
            assert!(!is_below(dir.path(), &dir.path().join(other)), "{other}");
        }
        assert!(!is_below(dir.path(), &path.join("deeper")));
    }

    #[test]
    fn requests_are_told_from_answers() {
        let annotations = [("a", "remove pvc-a"), ("b", "removed"), ("c", "failed x"), ("d", "nonsense")];
        let annotations = annotations.map(|(volume, value)| (Removal::key(volume), value.to_string()));
        let mut node = Node::default();
        node.annotations_mut().extend(annotations);
        assert_eq!(asked(&node), [("a".to_string(), "pvc-a".to_string())]);
    }
}
