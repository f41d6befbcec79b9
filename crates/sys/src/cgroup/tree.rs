//! Making, filling, emptying and removing groups.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Cgroups, Version};
use crate::error::{Context, Error, Result};

impl Cgroups {
    /// Makes a group with its parents. On version 2 the controllers are passed on to it, on version 1
    /// a cpuset inherits its parent's processors and memory nodes. Idempotent.
    pub fn create(&self, path: &str) -> Result<()> {
        check(path)?;
        for mount in self.mounts.values() {
            let mut dir = mount.clone();
            for part in path.split('/').filter(|p| !p.is_empty()) {
                if self.version == Version::V2 {
                    pass_on_controllers(&dir);
                }
                let parent = dir.clone();
                dir.push(part);
                match std::fs::create_dir(&dir) {
                    Ok(()) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                    Err(error) => return Err(Error::new("create cgroup", dir, error)),
                }
                if self.version == Version::V1 {
                    inherit_cpuset(&parent, &dir);
                }
            }
        }
        Ok(())
    }

    /// Whether the group is there, in any controller.
    pub fn exists(&self, path: &str) -> bool {
        self.dirs(path).iter().any(|dir| dir.is_dir())
    }

    /// Moves a process into the group.
    pub fn join(&self, path: &str, pid: i32) -> Result<()> {
        for dir in self.dirs(path) {
            let file = dir.join("cgroup.procs");
            std::fs::write(&file, pid.to_string()).context("move a process to", file)?;
        }
        Ok(())
    }

    /// The processes in the group and all groups below it.
    pub fn pids(&self, path: &str) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        // On version 1 a process may sit in the group of one controller only.
        for dir in self.dirs(path) {
            collect_pids(&dir, &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Kills everything in the group and below, and waits until it is gone. `false` when something is
    /// still there after the time, because it waits for a device.
    pub fn kill(&self, path: &str, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        let kill_file = self.dir("unified", path).map(|d| d.join("cgroup.kill")).filter(|_| self.version == Version::V2);
        loop {
            let pids = self.pids(path)?;
            if pids.is_empty() {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            let killed_whole = kill_file.as_ref().is_some_and(|file| file.exists() && std::fs::write(file, "1").is_ok());
            let mut open = Vec::new();
            for pid in pids {
                if let Some(fd) = crate::pidfd::open(pid)? {
                    if !killed_whole {
                        fd.signal(libc::SIGKILL)?;
                    }
                    open.push(fd);
                }
            }
            for fd in open {
                // A process that another one traces or that is a zombie ends later than it dies.
                fd.wait(deadline.saturating_duration_since(Instant::now()).min(Duration::from_millis(100)))?;
            }
        }
    }

    /// Removes the group and all below it. It must hold no process. Idempotent.
    pub fn remove(&self, path: &str) -> Result<()> {
        check(path)?;
        if path.trim_matches('/').is_empty() {
            return Err(Error::new("remove cgroup", path, rustix::io::Errno::INVAL));
        }
        for dir in self.dirs(path) {
            remove_tree(&dir)?;
        }
        Ok(())
    }

    /// The names of the groups directly below.
    pub fn children(&self, path: &str) -> Vec<String> {
        let mut names = Vec::new();
        for dir in self.dirs(path) {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            names.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.file_name().to_string_lossy().into_owned()));
        }
        names.sort();
        names.dedup();
        names
    }
}

fn check(path: &str) -> Result<()> {
    match path.split('/').any(|part| part == ".." || part == ".") {
        true => Err(Error::new("use cgroup", path, rustix::io::Errno::INVAL)),
        false => Ok(()),
    }
}

/// Lets the children of a group have the controllers that it has. A controller that cannot be passed
/// on (because processes sit in the group itself) shows when a limit is set.
fn pass_on_controllers(dir: &Path) {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
    let (offered, passed) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
    for controller in offered.split_whitespace() {
        if (super::CONTROLLERS.contains(&controller) || controller == "io")
            && !passed.split_whitespace().any(|c| c == controller) {
                let _ = std::fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
            }
    }
}

/// A fresh cpuset of version 1 has neither processors nor memory, and takes no process.
fn inherit_cpuset(parent: &Path, dir: &Path) {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(value) = std::fs::read_to_string(parent.join(name)) {
            let _ = std::fs::write(dir.join(name), value.trim());
        }
    }
}

fn collect_pids(dir: &Path, pids: &mut Vec<i32>) -> Result<()> {
    let file = dir.join("cgroup.procs");
    match std::fs::read_to_string(&file) {
        Ok(list) => pids.extend(list.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|pid| *pid > 0)),
        // Gone, or being removed.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)) => {}
        Err(error) => return Err(Error::new("read", file, error)),
    }
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect_pids(&entry.path(), pids)?;
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    // The last process leaves a moment after it was reaped.
    let deadline = Instant::now() + Duration::from_millis(500);
    loop {
        match std::fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(Error::new("remove cgroup", dir, error)),
        }
    }
}
