//! What is kept on disk: one file a sandbox, and the node's pod range, so that a restarted process
//! knows the addresses in use and is ready before it has heard from the API server.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use netlink::Prefix;
use serde::{Deserialize, Serialize};

use crate::{Error, HostPort, Sandbox, file_error};

/// What a sandbox holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// Its address.
    pub address: Ipv4Addr,
    /// The host's end of its veth pair.
    pub link: String,
    /// Its host ports.
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
}

/// The directory of records.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        let pods = dir.join("pods");
        fs::create_dir_all(&pods).map_err(file_error(&pods))?;
        Ok(Self { dir: dir.to_owned() })
    }

    fn path(&self, id: &str) -> Result<PathBuf, Error> {
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Err(Error::Config(format!("{id:?} is no sandbox identifier")));
        }
        Ok(self.dir.join("pods").join(format!("{id}.json")))
    }

    /// All records. One that cannot be read is reported and removed: a crash of the machine may have
    /// cut it short, and then its sandbox is gone as well.
    pub(crate) fn load(&self) -> Result<Vec<Record>, Error> {
        let dir = self.dir.join("pods");
        let mut records = Vec::new();
        for entry in fs::read_dir(&dir).map_err(file_error(&dir))? {
            let path = entry.map_err(file_error(&dir))?.path();
            if path.extension().is_some_and(|e| e == "tmp") {
                fs::remove_file(&path).map_err(file_error(&path))?;
                continue;
            }
            let bytes = fs::read(&path).map_err(file_error(&path))?;
            match serde_json::from_slice(&bytes) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::warn!(path = %path.display(), "removing an unreadable pod network record: {error}");
                    fs::remove_file(&path).map_err(file_error(&path))?;
                }
            }
        }
        Ok(records)
    }

    /// Writes a record. It is not synced: a machine that crashes takes its sandboxes with it.
    pub(crate) fn save(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.sandbox.id)?;
        write(&path, record)
    }

    pub(crate) fn remove(&self, id: &str) -> Result<(), Error> {
        let path = self.path(id)?;
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(file_error(path)(e)),
            _ => Ok(()),
        }
    }

    pub(crate) fn range(&self) -> Option<Prefix> {
        let text: String = serde_json::from_slice(&fs::read(self.dir.join("range.json")).ok()?).ok()?;
        text.parse().ok()
    }

    pub(crate) fn save_range(&self, range: Prefix) -> Result<(), Error> {
        write(&self.dir.join("range.json"), &range.to_string())
    }
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let bytes = serde_json::to_vec(value).map_err(|e| file_error(path)(e.into()))?;
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, bytes).map_err(file_error(&temporary))?;
    fs::rename(&temporary, path).map_err(file_error(path))
}
