//! Files of a volume that change all at once: `name → ..data/name`, `..data → ..<time>`, as upstream's
//! atomic writer lays them out. A reader sees the old or the new content, never a mixture.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

/// Content and mode of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub bytes: Vec<u8>,
    pub mode: u32,
    /// Whose it is, if not the kubelet's.
    pub user: Option<u32>,
}

/// Relative path → file.
pub type Payload = BTreeMap<String, File>;

const DATA: &str = "..data";

/// True for a path that may be in a payload: relative, without `..`.
pub fn is_safe(path: &str) -> bool {
    let path = Path::new(path);
    !path.as_os_str().is_empty()
        && path.components().all(|c| matches!(c, Component::Normal(_)))
        && path.components().next().is_none_or(|c| !c.as_os_str().as_encoded_bytes().starts_with(b".."))
}

/// Makes `dir` hold `payload`. Answers whether anything changed. `group` owns the files when given.
pub fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    if let Some(bad) = payload.keys().find(|p| !is_safe(p)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path: {bad}")));
    }
    let data = dir.join(DATA);
    let current = fs::read_link(&data).ok();
    if let Some(current) = &current
        && same(&dir.join(current), payload)
    {
        return Ok(false);
    }
    let fresh = fresh_name(dir);
    let target = dir.join(&fresh);
    fs::create_dir(&target)?;
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let path = target.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(file.mode & 0o777).open(&path)?;
        out.write_all(&file.bytes)?;
        // The mask of the process does not count.
        out.set_permissions(fs::Permissions::from_mode(file.mode & 0o7777))?;
        if group.is_some() || file.user.is_some() {
            std::os::unix::fs::fchown(&out, file.user, group)?;
        }
    }
    let new_link = dir.join("..data_tmp");
    match fs::remove_file(&new_link) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    symlink(&fresh, &new_link)?;
    fs::rename(&new_link, &data)?;

    let top: BTreeSet<&str> = payload.keys().filter_map(|p| p.split('/').next()).collect();
    for name in &top {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(text) = name.to_str() else { continue };
        if !text.starts_with("..") && !top.contains(text) {
            fs::remove_file(entry.path())?;
        }
    }
    if let Some(old) = current {
        fs::remove_dir_all(dir.join(old))?;
    }
    Ok(true)
}

fn same(dir: &Path, payload: &Payload) -> bool {
    let mut found = Vec::new();
    if collect(dir, dir, &mut found).is_err() || found.len() != payload.len() {
        return false;
    }
    found.iter().all(|path| {
        let Some(file) = path.to_str().and_then(|p| payload.get(p)) else { return false };
        let path = dir.join(path);
        fs::metadata(&path).is_ok_and(|m| m.permissions().mode() & 0o7777 == file.mode & 0o7777) && fs::read(path).is_ok_and(|b| b == file.bytes)
    })
}

fn collect(root: &Path, dir: &Path, into: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(root, &entry.path(), into)?;
        } else if let Ok(path) = entry.path().strip_prefix(root) {
            into.push(path.to_path_buf());
        }
    }
    Ok(())
}

fn fresh_name(dir: &Path) -> String {
    let now = jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S").to_string();
    loop {
        let name = format!("..{now}.{}", rand::random::<u32>());
        if !dir.join(&name).exists() {
            return name;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files.iter().map(|(p, c)| (p.to_string(), File { bytes: c.as_bytes().to_vec(), mode: 0o644, user: None })).collect()
    }

    #[test]
    fn content_changes_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let read = |p: &str| fs::read_to_string(dir.path().join(p)).ok();
        assert!(write(dir.path(), &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        let first = fs::read_link(dir.path().join(DATA)).unwrap();
        assert_eq!((read("a").as_deref(), read("sub/b").as_deref()), (Some("1"), Some("2")));
        assert!(!write(dir.path(), &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert_eq!(fs::read_link(dir.path().join(DATA)).unwrap(), first);
        assert!(write(dir.path(), &payload(&[("a", "3"), ("c", "4")]), None).unwrap());
        assert_eq!((read("a").as_deref(), read("c").as_deref(), read("sub/b")), (Some("3"), Some("4"), None));
        let mut names: Vec<String> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names.len(), 4, "{names:?}");
    }

    #[test]
    fn paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["../x", "/x", "a/../../x", "", "..x"] {
            assert!(write(dir.path(), &payload(&[(bad, "1")]), None).is_err(), "{bad}");
        }
    }
}
