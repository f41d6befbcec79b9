//! The store's directory: whose it is, which format it has, and that only one process uses it.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const LOCK: &str = "lock";
const FORMAT: &str = "format";
const CREATING: &str = "creating";
const DATABASE: &str = "db";
const PROBE: &str = "probe";
const FORMAT_TEXT: &str = "knarr store 1\n";

/// Why a store could not be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "the store in {path} is in use by process {holder}: stop that process, or use another data directory"
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process id, if it is known.
        holder: String,
    },
    /// The directory holds something else.
    #[error(
        "{path} is not empty and holds no knarr store (there is {found:?}): choose an empty directory, \
         or move what is in this one away"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Something that was found in it.
        found: String,
    },
    /// It is of another version.
    #[error(
        "the store in {path} has the format {found:?}, this program reads {FORMAT_TEXT:?}: use the version of knarr that wrote it"
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// What its format file says.
        found: String,
    },
    /// A new store is wanted, and there is one already.
    #[error("there is a store in {path} already: choose an empty directory, or say that it is to be replaced")]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// Its files are damaged.
    #[error(
        "the store in {path} is damaged ({message}): restore a backup into it, or move it away to start empty"
    )]
    Corrupt {
        /// The directory.
        path: PathBuf,
        /// The engine's words.
        message: String,
    },
    /// The file system refused something.
    #[error(
        "the store in {path} cannot be opened: {action} failed: check the directory's permissions, the free space and the disk"
    )]
    Io {
        /// The directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A directory that this process holds.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Locked for as long as it is open.
    lock: File,
    new: bool,
}

/// A process that is being started may have the file open for a moment longer: the lock must not wait for that.
impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(path = %self.path.display(), %error, "the lock of the store is given up with its file only");
        }
    }
}

impl Directory {
    /// Takes the directory, or says why that cannot be. A new directory is only marked as a store by
    /// [`Directory::created`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |action| {
            move |source| OpenError::Io {
                path: path.to_owned(),
                action,
                source,
            }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(io("creating the directory"))?;
        let mut found = None;
        for entry in path.read_dir().map_err(io("listing the directory"))? {
            let name = entry.map_err(io("listing the directory"))?.file_name();
            if ![LOCK, FORMAT, CREATING, DATABASE]
                .iter()
                .any(|ours| name == *ours)
            {
                found = Some(name.to_string_lossy().into_owned());
            }
        }
        let marked = path.join(FORMAT).exists();
        if let (false, Some(found)) = (marked, found) {
            return Err(OpenError::Foreign {
                path: path.to_owned(),
                found,
            });
        }
        let mut lock = OpenOptions::new();
        let lock = lock
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(LOCK));
        let mut lock = lock.map_err(io("opening the lock file"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(source)) => return Err(io("locking")(source)),
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.read_to_string(&mut holder);
                let holder = if holder.trim().is_empty() {
                    "(unknown)"
                } else {
                    holder.trim()
                }
                .to_owned();
                return Err(OpenError::Locked {
                    path: path.to_owned(),
                    holder,
                });
            }
        }
        let this = |new| Self {
            path: path.to_owned(),
            lock: lock.try_clone().expect("a lock file can be cloned"),
            new,
        };
        let directory = if marked {
            let found = std::fs::read(path.join(FORMAT)).map_err(io("reading the format file"))?;
            let found = String::from_utf8_lossy(&found).into_owned();
            if found != FORMAT_TEXT {
                return Err(OpenError::Format {
                    path: path.to_owned(),
                    found,
                });
            }
            if !path.join(DATABASE).is_dir() {
                return Err(OpenError::Corrupt {
                    path: path.to_owned(),
                    message: "its database is gone".to_owned(),
                });
            }
            this(false)
        } else {
            if path.join(DATABASE).exists() && !path.join(CREATING).exists() {
                return Err(OpenError::Foreign {
                    path: path.to_owned(),
                    found: DATABASE.to_owned(),
                });
            }
            // What a creation left that did not come to its end was never used.
            File::create(path.join(CREATING)).map_err(io("creating a file"))?;
            if path.join(DATABASE).exists() {
                std::fs::remove_dir_all(path.join(DATABASE))
                    .map_err(io("removing an unfinished database"))?;
            }
            this(true)
        };
        let pid = std::process::id().to_string();
        let mut write = || {
            lock.set_len(0)?;
            lock.rewind()?;
            lock.write_all(pid.as_bytes())
        };
        // Only tells who holds the lock; a full disk need not keep us from reading.
        let _ = write();
        Ok(directory)
    }

    /// The store's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is not a store yet.
    pub fn is_new(&self) -> bool {
        self.new
    }

    /// Where the database is.
    pub fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// Marks a new directory as a store, now that the database in it is complete.
    pub fn created(&mut self) -> Result<(), OpenError> {
        if std::mem::take(&mut self.new) {
            let mark = || {
                let temporary = self.path.join(CREATING);
                let mut file = File::create(&temporary)?;
                file.write_all(FORMAT_TEXT.as_bytes())?;
                file.sync_all()?;
                std::fs::rename(temporary, self.path.join(FORMAT))?;
                File::open(&self.path)?.sync_all()
            };
            mark().map_err(|source| OpenError::Io {
                path: self.path.clone(),
                action: "writing the format file",
                source,
            })?;
        }
        Ok(())
    }

    /// Whether there is no room for a file of `bytes`: tried, for what failed in the background does not say why.
    pub fn is_full(&self, bytes: u64) -> bool {
        let path = self.path.join(PROBE);
        let written = File::create(&path).and_then(|mut file| {
            let chunk = [0x5a; 64 << 10];
            (0..bytes.div_ceil(chunk.len() as u64)).try_for_each(|_| file.write_all(&chunk))
        });
        let _ = std::fs::remove_file(&path);
        written.is_err_and(|e| matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    /// Bytes that the files take on disk.
    pub fn size(&self) -> u64 {
        fn sum(path: &Path) -> u64 {
            use std::os::unix::fs::MetadataExt;
            let Ok(entries) = path.read_dir() else {
                return 0;
            };
            let size = |entry: std::fs::DirEntry| match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => sum(&entry.path()),
                Ok(metadata) => metadata.blocks() * 512,
                Err(_) => 0,
            };
            entries.flatten().map(size).sum()
        }
        sum(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_the_descriptor_does_not_hold_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let held = Directory::open(dir.path()).unwrap();
        assert!(matches!(Directory::open(dir.path()), Err(OpenError::Locked { .. })));
        // As a child has it between fork and exec.
        let copy = held.lock.try_clone().unwrap();
        drop(held);
        Directory::open(dir.path()).unwrap();
        drop(copy);
    }
}
