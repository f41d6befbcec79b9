//! Control groups of either version behind one type.
//!
//! A path here is the group's name from the root of the hierarchy, the same in all controllers of
//! version 1: `/kubepods/burstable/pod…`. On version 1 each controller is a tree of its own; one that
//! is not mounted is left out.

mod limits;
mod stats;
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use limits::{HugepageLimit, Limits};
pub use stats::{Cpu, Memory, Pressure, Stats};

use crate::error::{Error, Result};

/// Which of the kernel's two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// The controllers that we set or read.
pub(crate) const CONTROLLERS: &[&str] = &["cpu", "cpuacct", "cpuset", "memory", "pids", "hugetlb", "devices", "freezer", "blkio"];

/// The usable hierarchy of this machine.
#[derive(Clone, Debug)]
pub struct Cgroups {
    version: Version,
    /// Controller to mount point on version 1; on version 2 one entry named `unified`.
    mounts: BTreeMap<String, PathBuf>,
}

impl Cgroups {
    /// Finds the hierarchy that has controllers: version 2 when its root offers `memory`, else 1.
    pub fn detect() -> Result<Self> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(|e| Error::new("read", "/proc/self/mountinfo", e))?;
        let mut unified = None;
        let mut mounts = BTreeMap::new();
        for line in table.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(point) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next(), right.nth(1).unwrap_or_default());
            match kind {
                Some("cgroup2") => unified = unified.or(Some(point)),
                Some("cgroup") => {
                    for option in options.split(',').filter(|o| CONTROLLERS.contains(o)) {
                        mounts.entry(option.to_owned()).or_insert_with(|| point.clone());
                    }
                }
                _ => {}
            }
        }
        if let Some(root) = unified {
            let offered = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            if offered.split_whitespace().any(|c| c == "memory") {
                return Ok(Self { version: Version::V2, mounts: [("unified".to_owned(), root)].into() });
            }
        }
        if mounts.contains_key("memory") && mounts.contains_key("cpu") {
            return Ok(Self { version: Version::V1, mounts });
        }
        Err(Error::new("find a cgroup hierarchy with controllers in", "/sys/fs/cgroup", rustix::io::Errno::NOTSUP))
    }

    /// A hierarchy in a plain directory, for tests: on version 1 with one directory a controller.
    pub fn at(root: &Path, version: Version) -> Self {
        let mounts = match version {
            Version::V2 => [("unified".to_owned(), root.to_owned())].into(),
            Version::V1 => CONTROLLERS.iter().map(|c| ((*c).to_owned(), root.join(c))).collect(),
        };
        Self { version, mounts }
    }

    /// Which version is in use.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The directory of a group for a controller; on version 2 they are all the same.
    pub fn dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let mount = self.mounts.get(controller).or_else(|| self.mounts.get("unified"))?;
        Some(mount.join(path.trim_start_matches('/')))
    }

    /// Every directory that makes up a group, without repetition.
    fn dirs(&self, path: &str) -> Vec<PathBuf> {
        let mut dirs: Vec<PathBuf> = self.mounts.values().map(|m| m.join(path.trim_start_matches('/'))).collect();
        dirs.dedup();
        dirs.sort();
        dirs.dedup();
        dirs
    }
}

#[cfg(test)]
mod tests;
