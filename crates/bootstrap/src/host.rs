//! What the binary does for this room: it knows how a node's process is started and ended, which this room does not.

use std::path::{Path, PathBuf};

use crate::config::Facts;
use crate::error::{Cause, Result};

/// What a machine is in a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A control plane, and a node.
    ControlPlane,
    /// A node.
    Worker,
}

/// What of the kernel is missing.
#[derive(Debug, Clone, Default)]
pub struct Lacking {
    /// What, why, and what to do.
    pub text: String,
    /// Modules that may have it.
    pub modules: Vec<String>,
}

/// This machine, as the binary knows it.
pub trait Host {
    /// Its name and address, and the version of Kubernetes that the binary serves.
    fn facts(&self) -> Facts;
    /// Where the node's process keeps what lasts.
    fn data_dir(&self) -> &Path;
    /// Where it keeps what a reboot ends.
    fn run_dir(&self) -> &Path;
    /// The process, if it runs.
    fn running(&self) -> Option<u32>;
    /// Starts it with the configuration in a file, in the background or by the init system, and returns once the node
    /// is Ready. The error has the end of its log.
    fn start(&self, role: Role, config: &Path) -> std::result::Result<(), Cause>;
    /// Ends it, but not its pods, and starts it again.
    fn restart(&self, role: Role, config: &Path) -> std::result::Result<(), Cause>;
    /// What of the kernel is missing, with what to do.
    fn kernel(&self) -> std::result::Result<(), Lacking>;
    /// Ends the process, its pods, and their network.
    fn stop(&self) -> std::result::Result<(), Cause>;
    /// Removes everything that the process kept. It must have been ended.
    fn purge(&self) -> std::result::Result<(), Cause>;
}

/// A host with where it keeps upstream's files.
pub struct Machine<'a> {
    /// The machine.
    pub host: &'a dyn Host,
    /// Upstream's directories.
    pub place: crate::files::Place,
}

impl Machine<'_> {
    /// Randomness as hexadecimal digits.
    pub fn random_hex<const N: usize>() -> String {
        let mut bytes = [0; N];
        rand::fill(&mut bytes[..]);
        hex::encode(bytes)
    }

    /// A new bootstrap token.
    pub fn random_token() -> String {
        let mut bytes = [0; 22];
        rand::fill(&mut bytes[..]);
        pki::bootstrap_token::generate(&bytes)
    }

    /// Runs something that needs the network.
    pub fn wait<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
        use crate::error::Doing;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing(|| "cannot start the runtime".into())?;
        runtime.block_on(work)
    }

    /// The certificates' directory of a cluster.
    pub fn certificates(&self, named: &str) -> PathBuf {
        if named.is_empty() { self.place.kubernetes.join("pki") } else { named.into() }
    }
}
