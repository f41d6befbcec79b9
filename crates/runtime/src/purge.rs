//! Ending and removing everything that a runtime has made, without opening it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use shim::protocol::{Call, Request, SOCKET_FILE};
use sys::cgroup::Cgroups;

use crate::state::{Fixed, SandboxState};
use crate::{Config, files};

/// What a purge could not do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Sys(#[from] sys::Error),
    #[error("remove {0}")]
    Remove(String, #[source] std::io::Error),
    #[error("processes in cgroup {0} do not end")]
    Alive(String),
}

const PATIENCE: Duration = Duration::from_secs(10);

/// Kills all containers and shims and removes their mounts, network namespaces, cgroups and files.
/// Nothing may have the runtime open. Idempotent. Blocks. Images and logs are not the runtime's.
pub fn purge(config: &Config) -> Result<(), Error> {
    let cgroups = Cgroups::detect()?;
    // Containers first: a shim records their ends and lets go of their streams.
    let mut parents = BTreeSet::new();
    for dir in dirs(&config.containers()) {
        if let Ok(fixed) = files::read_json::<Fixed>(&dir.join("state.json")) {
            end(&cgroups, &fixed.cgroup)?;
        }
    }
    for dir in dirs(&config.run) {
        quit(&dir);
    }
    for dir in dirs(&config.sandboxes()) {
        if let Ok(state) = files::read_json::<SandboxState>(&dir.join("state.json"))
            && state.own_cgroup {
                parents.insert(state.cgroup_parent);
            }
    }
    end(&cgroups, &config.shim_cgroup())?;
    for parent in parents {
        end(&cgroups, &parent)?;
        // Its own parents, as far as nothing else is in them.
        let mut path = parent.as_str();
        while let Some((above, _)) = path.rsplit_once('/').filter(|(above, _)| !above.is_empty()) {
            if !cgroups.children(above).is_empty() || !cgroups.pids(above)?.is_empty() {
                break;
            }
            cgroups.remove(above)?;
            path = above;
        }
    }
    let own = config.cgroup_parent.trim_end_matches('/');
    if cgroups.exists(own) && cgroups.pids(own)?.is_empty() {
        cgroups.remove(own)?;
    }
    for dir in [&config.root, &config.run] {
        sys::mount::unmount_below(dir)?;
        files::remove_dir(dir).map_err(|e| Error::Remove(dir.display().to_string(), e))?;
    }
    Ok(())
}

fn dirs(parent: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| p.is_dir()).collect()
}

fn end(cgroups: &Cgroups, path: &str) -> Result<(), Error> {
    if !cgroups.exists(path) {
        return Ok(());
    }
    if !cgroups.kill(path, PATIENCE)? {
        return Err(Error::Alive(path.to_owned()));
    }
    Ok(cgroups.remove(path)?)
}

/// Asks a shim to end. One that does not listen is killed with its group.
pub(crate) fn quit(dir: &Path) {
    let Ok(socket) = sys::seqpacket::connect(&dir.join(SOCKET_FILE)) else { return };
    if let Ok(text) = serde_json::to_vec(&Request { id: 0, call: Call::Quit }) {
        let _ = sys::seqpacket::send(&socket, &text, &[]);
    }
}
