//! Makes a new store of what another one held, with its revisions as they were. Blocks; for tools, while no store is open.
//!
//! Until [`Import::finish`] the directory is no store: what an import leaves that was cut short is begun anew.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Options;
use super::database::{Database, Failed};
use super::directory::{Directory, OpenError};
use crate::{Error, KeyValue};

/// Deadlines that are written at once.
const DEADLINES: usize = 10_000;

/// A store in the making.
pub struct Import {
    directory: Directory,
    database: Database,
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
        Ok(Import { directory, database, newest: 0 })
    }

    fn error(&self, failed: &Failed) -> Error {
        let path = self.directory.path().to_owned();
        match failed.no_space() {
            true => Error::NoSpace { path, advice: "free some space on the file system that holds it, and begin again" },
            false => Error::Io { path, message: failed.message() },
        }
    }

    /// Takes all keys, once: in order, straight into tables. A key expires after the time that comes with it, from now on.
    pub fn fill<E: From<Error>>(&mut self, keys: impl IntoIterator<Item = Result<(KeyValue, Option<Duration>), E>>) -> Result<(), E> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (mut deadlines, mut last, mut newest) = (Vec::new(), Vec::new(), 0);
        let versions = keys.into_iter().map(|next| -> Result<KeyValue, E> {
            let (kv, ttl) = next?;
            if kv.key <= last {
                return Err(Error::Invalid("keys have to come in order, each once").into());
            }
            last.clone_from(&kv.key);
            newest = newest.max(kv.mod_revision);
            if let Some(ttl) = ttl {
                deadlines.push(((now + ttl).as_millis() as i64, kv.key.clone(), kv.mod_revision));
            }
            Ok(kv)
        });
        self.database.ingest(versions, |failed| self.error(&failed).into())?;
        for some in deadlines.chunks(DEADLINES) {
            self.database.deadlines_of(some).map_err(|failed| self.error(&failed))?;
        }
        self.newest = self.newest.max(newest);
        Ok(())
    }

    /// Completes the store: it stands at `revision` (or the newest of its keys, if that is larger), and everything before
    /// that is compacted.
    pub fn finish(mut self, revision: i64) -> Result<(), Error> {
        self.database.begin_at(revision.max(self.newest).max(1)).map_err(|failed| self.error(&failed))?;
        let path = self.directory.path().to_owned();
        self.directory.created().map_err(|error| Error::Io { path, message: error.to_string() })
    }
}
