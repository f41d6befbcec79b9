//! Where a cluster keeps what.

use std::path::{Path, PathBuf};

/// The directories of one server or agent.
#[derive(Debug, Clone)]
pub struct Layout {
    pub data: PathBuf,
    pub run: PathBuf,
}

/// The file that marks a data directory as ours.
pub const MARKER: &str = "knarr.json";
/// The file that is locked by whoever uses the data directory.
pub const LOCK: &str = "lock";

impl Layout {
    /// The layout below two roots.
    pub fn new(data: &Path, run: &Path) -> Layout {
        Layout { data: data.into(), run: run.into() }
    }
    pub fn marker(&self) -> PathBuf {
        self.data.join(MARKER)
    }
    /// Held by the server or agent while it lives.
    pub fn lock(&self) -> PathBuf {
        self.data.join(LOCK)
    }
    pub fn pki(&self) -> PathBuf {
        self.data.join("pki")
    }
    /// Certificates of this node alone, where those of the cluster are kept elsewhere.
    pub fn node_pki(&self) -> PathBuf {
        self.data.join("node-pki")
    }
    pub fn store(&self) -> PathBuf {
        self.data.join("store")
    }
    /// A store in the making, and one that was replaced.
    pub fn new_store(&self) -> PathBuf {
        self.data.join("store.new")
    }
    pub fn old_store(&self) -> PathBuf {
        self.data.join("store.old")
    }
    /// Says that the objects are in etcd, and in which.
    pub fn etcd(&self) -> PathBuf {
        self.data.join("etcd.json")
    }
    /// The member of etcd beside the server, if there is one.
    pub fn member(&self) -> PathBuf {
        self.data.join("etcd")
    }
    /// Snapshots that the server makes by itself.
    pub fn snapshots(&self) -> PathBuf {
        self.data.join("snapshots")
    }
    /// The API servers that an agent knows.
    pub fn servers(&self) -> PathBuf {
        self.data.join("api-servers.json")
    }
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }
    pub fn containers(&self) -> PathBuf {
        self.data.join("containers")
    }
    pub fn kubelet(&self) -> PathBuf {
        self.data.join("kubelet")
    }
    /// Volumes of the local-path provisioner.
    pub fn storage(&self) -> PathBuf {
        self.data.join("storage")
    }
    pub fn overlay(&self) -> PathBuf {
        self.data.join("network")
    }
    pub fn pod_logs(&self) -> PathBuf {
        self.data.join("logs/pods")
    }
    pub fn bin(&self) -> PathBuf {
        self.data.join("bin")
    }
    pub fn admin(&self) -> PathBuf {
        self.data.join("admin.conf")
    }
    pub fn log(&self) -> PathBuf {
        self.data.join("server.log")
    }
    pub fn pods_run(&self) -> PathBuf {
        self.run.join("pods")
    }
    /// What the running server says of itself.
    pub fn state(&self) -> PathBuf {
        self.run.join("state.json")
    }
}
