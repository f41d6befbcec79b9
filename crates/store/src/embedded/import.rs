//! Makes a new store of what another one held, with its revisions as they were. Blocks; for tools, while no store is open.
//!
//! Until [`Import::finish`] the directory is no store: what an import leaves that was cut short is begun anew.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Options;
use super::database::{Database, Failed, Writes};
use super::directory::{Directory, OpenError};
use crate::{Error, KeyValue};

/// Bytes that are written at once.
const CHUNK: usize = 4 << 20;

/// A store in the making.
pub struct Import {
    directory: Directory,
    database: Database,
    writes: Writes,
    bytes: usize,
    newest: i64,
}

impl Import {
    /// Begins a store in a directory that holds none.
    pub fn begin(dir: impl AsRef<Path>) -> Result<Import, OpenError> {
        let directory = Directory::open(dir.as_ref())?;
        let path = || directory.path().to_owned();
        if !directory.is_new() {
            return Err(OpenError::Exists { path: path() });
        }
        let database = match Database::open(&directory.database(), &Options::default()) {
            Ok(database) => database,
            Err(Failed(fjall::Error::Io(source))) => return Err(OpenError::Io { path: path(), action: "making the database", source }),
            Err(failed) => return Err(OpenError::Corrupt { path: path(), message: failed.message() }),
        };
        Ok(Import { directory, database, writes: Writes::default(), bytes: 0, newest: 0 })
    }

    fn error(&self, failed: &Failed) -> Error {
        let path = self.directory.path().to_owned();
        match failed.no_space() {
            true => Error::NoSpace { path, advice: "free some space on the file system that holds it, and begin again" },
            false => Error::Io { path, message: failed.message() },
        }
    }

    /// Adds a key, each once; it expires after `ttl` from now on.
    pub fn put(&mut self, kv: &KeyValue, ttl: Option<Duration>) -> Result<(), Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let deadline = ttl.map(|ttl| (now + ttl).as_millis() as i64);
        Database::import(kv, deadline, &mut self.writes);
        self.bytes += kv.key.len() + kv.value.len();
        self.newest = self.newest.max(kv.mod_revision);
        if self.bytes >= CHUNK { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.bytes = 0;
        let writes = std::mem::take(&mut self.writes);
        self.database.write(writes).map_err(|failed| self.error(&failed))
    }

    /// Completes the store: it stands at `revision` (or the newest of its keys, if that is larger), and everything before
    /// that is compacted.
    pub fn finish(mut self, revision: i64) -> Result<(), Error> {
        self.flush()?;
        self.database.begin_at(revision.max(self.newest).max(1)).map_err(|failed| self.error(&failed))?;
        let path = self.directory.path().to_owned();
        self.directory.created().map_err(|error| Error::Io { path, message: error.to_string() })
    }
}
