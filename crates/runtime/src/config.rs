//! Where the runtime keeps things.

use std::path::PathBuf;

/// Fixed for the life of a [`crate::Runtime`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Durable state: `/var/lib/knarr/containers`. Overlays cannot have their changes on another
    /// overlay, so it should be on a real file system or a tmpfs.
    pub root: PathBuf,
    /// State that a reboot ends: `/run/knarr/pods`.
    pub run: PathBuf,
    /// The executable that is called as `<self_exe> shim …`. It should not change while shims run.
    pub self_exe: PathBuf,
    /// The group below which shims live, and pods that name no parent: `/knarr`.
    pub cgroup_parent: String,
    /// The version that the CRI reports.
    pub version: String,
    /// How registries are reached.
    pub registries: image::Options,
}

impl Config {
    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub(crate) fn shim_cgroup(&self) -> String {
        format!("{}/shims", self.cgroup_parent.trim_end_matches('/'))
    }
}
