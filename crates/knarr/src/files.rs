//! Writing files whole, with the right mode from the start, and the state that a server leaves.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::layout::LOCK;

/// Makes a directory that only root can look into.
pub fn private_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(|| format!("cannot make the directory {}", path.display()))
}

/// Makes a directory that all may enter: users inside pods reach their files below it.
pub fn public_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path).with_context(|| format!("cannot make the directory {}", path.display()))
}

/// Replaces a file in one step.
pub fn write(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    bootstrap::files::replace(path, contents, mode).with_context(|| format!("cannot write {}", path.display()))
}

/// What a running server or agent says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub pid: u32,
    pub role: String,
    pub version: String,
    pub server: String,
    pub node_name: String,
    pub ready: bool,
    /// Milliseconds from start to ready.
    pub ready_after_ms: Option<u64>,
}

impl State {
    /// Reads what was left; nothing when there is none.
    pub fn read(path: &Path) -> Option<State> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Leaves it for others.
    pub fn write(&self, path: &Path) -> Result<()> {
        write(path, &serde_json::to_vec_pretty(self)?, 0o644)
    }
}

/// The lock on a data directory, as long as it is held.
pub struct Lock(#[allow(dead_code)] File);

/// Takes the lock, or says who has it.
pub fn lock(path: &Path) -> Result<Lock> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)?;
            (&file).write_all(std::process::id().to_string().as_bytes())?;
            Ok(Lock(file))
        }
        Err(fs::TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(path).unwrap_or_default();
            anyhow::bail!(
                "another knarr (process {}) uses {}: stop it with `knarr down`, or give this one another --data-dir",
                holder.trim(),
                path.parent().unwrap_or(path).display(),
            )
        }
        Err(fs::TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Whether this is the file of a lock: its name, and in it a process or nothing.
pub fn is_lock(path: &Path) -> bool {
    let text = || fs::read(path).is_ok_and(|text| text.len() <= 10 && text.iter().all(u8::is_ascii_digit));
    path.file_name().is_some_and(|name| name == LOCK) && path.is_file() && text()
}

/// The process that holds the lock, if any does.
pub fn holder(path: &Path) -> Option<u32> {
    let file = File::open(path).ok()?;
    match file.try_lock_shared() {
        Ok(()) => None,
        Err(_) => fs::read_to_string(path).ok()?.trim().parse().ok(),
    }
}
