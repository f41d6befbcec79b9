//! Files that are written whole, with the right mode from the start.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Doing, Result};

/// Where upstream keeps what on a machine.
#[derive(Debug, Clone)]
pub struct Place {
    /// `/etc/kubernetes`
    pub kubernetes: PathBuf,
    /// `/var/lib/kubelet`
    pub kubelet: PathBuf,
}

impl Default for Place {
    fn default() -> Place {
        Place { kubernetes: "/etc/kubernetes".into(), kubelet: "/var/lib/kubelet".into() }
    }
}

impl Place {
    /// The kubeconfig of this name.
    pub fn conf(&self, name: &str) -> PathBuf {
        self.kubernetes.join(format!("{name}.conf"))
    }
    /// What the node's own process is started with.
    pub fn process(&self) -> PathBuf {
        self.kubernetes.join("knarr.yaml")
    }
    /// The kubelet's client certificate and key, in one file.
    pub fn kubelet_client(&self) -> PathBuf {
        self.kubelet.join("pki/kubelet-client-current.pem")
    }
}

/// Replaces a file in one step: it is whole before and after, whatever happens in between.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    })();
    if written.is_err() {
        // The error to tell is the first one.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// The same; the file's directory is made, for its owner alone, where there is none.
pub fn write(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.and_then(|()| replace(path, contents, mode)).doing(|| format!("cannot write {}", path.display()))
}

/// Reads a text.
pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).doing(|| format!("cannot read {}", path.display()))
}

/// Removes what is in a directory, and says whether there was anything.
pub fn clean(dir: &Path) -> Result<bool> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).doing(|| format!("cannot read {}", dir.display())),
    };
    let mut any = false;
    for entry in entries.flatten() {
        any = true;
        let path = entry.path();
        let directory = entry.file_type().is_ok_and(|t| t.is_dir());
        if directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.doing(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(any)
}
