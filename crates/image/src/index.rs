//! The index file: read when it changed, replaced by rename, changed under a lock that all processes share.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::error::At;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Index {
    pub next_layer: u64,
    /// By chain id.
    pub layers: BTreeMap<String, Layer>,
    /// By the digest of the configuration.
    pub images: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Layer {
    /// Name of the directory below `layers`.
    pub dir: u64,
    /// Bytes of its files.
    pub size: u64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Entry {
    /// Chain ids, lowest first.
    pub chain: Vec<String>,
    /// Full names with tags.
    pub tags: BTreeSet<String>,
    /// Full names with the digest of the manifest (or the index) that they were pulled by.
    pub digests: BTreeSet<String>,
    /// Other blobs of this image: its manifest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<String>,
    /// Of the built-in image: which executable it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builtin: Option<String>,
}

impl Index {
    /// Moves a tag to an image.
    pub fn tag(&mut self, id: &str, tag: &str) {
        for entry in self.images.values_mut() {
            entry.tags.remove(tag);
        }
        if let Some(entry) = self.images.get_mut(id) {
            entry.tags.insert(tag.to_string());
        }
    }
}

/// What tells two versions of the file apart.
type Stamp = (u64, i64, i64, u64);

pub struct IndexFile {
    path: PathBuf,
    lock: PathBuf,
    cached: Mutex<Option<(Stamp, Arc<Index>)>>,
}

impl IndexFile {
    pub fn new(root: &Path) -> IndexFile {
        IndexFile { path: root.join("index.json"), lock: root.join("lock"), cached: Mutex::new(None) }
    }

    /// The index as it is now.
    pub fn read(&self) -> Result<Arc<Index>, Error> {
        let stamp = match fs::metadata(&self.path) {
            Ok(m) => (m.ino(), m.mtime(), m.mtime_nsec(), m.size()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Arc::default()),
            Err(e) => return Err(e).at(&self.path),
        };
        let mut cached = self.cached.lock();
        if let Some((known, index)) = &*cached
            && *known == stamp
        {
            return Ok(index.clone());
        }
        let bytes = fs::read(&self.path).at(&self.path)?;
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|e| Error::Index { path: self.path.clone(), detail: e.to_string() })?;
        let index = Arc::new(index);
        *cached = Some((stamp, index.clone()));
        Ok(index)
    }

    /// Changes the index; nothing is written when `change` fails or changes nothing (answers `false`).
    pub fn change<T>(&self, change: impl FnOnce(&mut Index) -> Result<(T, bool), Error>) -> Result<T, Error> {
        let lock = File::options().create(true).truncate(false).write(true).open(&self.lock).at(&self.lock)?;
        flock(&lock, FlockOperation::LockExclusive).at(&self.lock)?;
        let mut index = Index::clone(&*self.read()?);
        let (answer, changed) = change(&mut index)?;
        if changed {
            let bytes = serde_json::to_vec(&index).map_err(|e| Error::Index { path: self.path.clone(), detail: e.to_string() })?;
            let new = self.path.with_extension("json.new");
            let mut file = File::create(&new).at(&new)?;
            file.write_all(&bytes).and_then(|()| file.sync_data()).at(&new)?;
            fs::rename(&new, &self.path).at(&self.path)?;
            *self.cached.lock() = None;
        }
        Ok(answer)
    }
}
