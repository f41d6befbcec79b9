//! The store: what is there, who uses it, and what may go. Everything here is quick and synchronous.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use oci_spec::image::ImageConfiguration;
use rustix::fs::{FlockOperation, flock, syncfs};
use sha2::{Digest, Sha256};

use crate::error::At;
use crate::index::{Entry, Index, IndexFile, Layer};
use crate::manifest::{self, chain_ids, hex_of};
use crate::name::Name;
use crate::unpack::{UnpackError, unpack};
use crate::{Error, Result, decompress};

/// An image that is here, whole.
#[derive(Debug, Clone)]
pub struct Image {
    /// `sha256:…`, the digest of its configuration.
    pub id: String,
    /// Full names with tags.
    pub tags: Vec<String>,
    /// Full names with digests, as a registry knows it.
    pub digests: Vec<String>,
    /// Bytes of its files, over all layers.
    pub size: u64,
    /// Made by knarr itself; never collected.
    pub pinned: bool,
}

/// The image store. Clones are the same store.
#[derive(Clone)]
pub struct Store(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub root: PathBuf,
    pub index: IndexFile,
    /// Held shared as long as the store is open, so that nobody empties `tmp` meanwhile.
    _in_use: File,
    sequence: AtomicU64,
    pub pulling: parking_lot::Mutex<std::collections::HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Store {
    /// Opens the store in `root`, which is made when missing.
    pub fn open(root: impl Into<PathBuf>) -> Result<Store> {
        let root = root.into();
        for dir in ["blobs/sha256", "layers", "holds", "tmp"] {
            fs::create_dir_all(root.join(dir)).at(root.join(dir))?;
        }
        let path = root.join("in-use");
        let in_use = File::options().create(true).truncate(false).write(true).open(&path).at(&path)?;
        let index = IndexFile::new(&root);
        index.read()?;
        let first = flock(&in_use, FlockOperation::NonBlockingLockExclusive).is_ok();
        let store = Store(Arc::new(Inner {
            root,
            index,
            _in_use: in_use.try_clone().at(&path)?,
            sequence: AtomicU64::new(0),
            pulling: Default::default(),
        }));
        if first {
            store.clean_up()?;
        }
        flock(&in_use, FlockOperation::LockShared).at(&path)?;
        Ok(store)
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// All images.
    pub fn list(&self) -> Result<Vec<Image>> {
        let index = self.0.index.read()?;
        Ok(index.images.iter().map(|(id, entry)| image(&index, id, entry)).collect())
    }

    /// The image of a name, a name with digest, or an id (whole or the start of one).
    pub fn get(&self, reference: &str) -> Result<Option<Image>> {
        let index = self.0.index.read()?;
        Ok(find(&index, reference)?.map(|(id, entry)| image(&index, id, entry)))
    }

    /// The configuration of an image.
    pub fn config(&self, reference: &str) -> Result<ImageConfiguration> {
        let index = self.0.index.read()?;
        let (id, _) = find(&index, reference)?.ok_or_else(|| Error::NotFound { name: reference.to_string() })?;
        let path = self.blob_path(id)?;
        let bytes = fs::read(&path).at(&path)?;
        parse_config(reference, &bytes)
    }

    /// The lower directories of an image in the order that overlayfs wants: topmost first.
    pub fn lower_dirs(&self, reference: &str) -> Result<Vec<PathBuf>> {
        let index = self.0.index.read()?;
        let (_, entry) = find(&index, reference)?.ok_or_else(|| Error::NotFound { name: reference.to_string() })?;
        self.dirs_of(&index, &entry.chain)
    }

    /// The same, and `owner` (a container's id: a file name) holds these layers until [`Store::release`],
    /// also over restarts and over the removal of the image.
    pub fn hold(&self, owner: &str, reference: &str) -> Result<Vec<PathBuf>> {
        self.0.index.change(|index| {
            let (_, entry) = find(index, reference)?.ok_or_else(|| Error::NotFound { name: reference.to_string() })?;
            self.write_hold(owner, &entry.chain)?;
            Ok((self.dirs_of(index, &entry.chain)?, false))
        })
    }

    /// `owner` needs its layers no more.
    pub fn release(&self, owner: &str) -> Result<()> {
        let path = self.0.root.join("holds").join(owner);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).at(path),
            _ => Ok(()),
        }
    }

    /// Gives an image one more name.
    pub fn tag(&self, reference: &str, tag: &str) -> Result<()> {
        let name = Name::parse(tag)?;
        let tagged = name.tagged().ok_or_else(|| Error::InvalidName { name: tag.to_string(), detail: "a tag is needed".into() })?;
        self.0.index.change(|index| {
            let id = find(index, reference)?.ok_or_else(|| Error::NotFound { name: reference.to_string() })?.0.to_string();
            index.tag(&id, &tagged);
            Ok(((), true))
        })
    }

    /// Removes an image with all its names, and the layers that nothing needs any more. Answers
    /// the names, if there was one.
    pub fn remove(&self, reference: &str) -> Result<Option<Vec<String>>> {
        let removed = self.0.index.change(|index| {
            let Some(id) = find(index, reference)?.map(|(id, _)| id.to_string()) else { return Ok((None, false)) };
            Ok((index.images.remove(&id), true))
        })?;
        let Some(removed) = removed else { return Ok(None) };
        self.collect_garbage()?;
        Ok(Some(removed.tags.into_iter().collect()))
    }

    /// Removes layers and blobs that no image and no holder needs. Returns the bytes of the layers.
    pub fn collect_garbage(&self) -> Result<u64> {
        // Directories are renamed away under the lock and removed after it.
        let (freed, doomed) = self.0.index.change(|index| {
            let held = self.held()?;
            let used: BTreeSet<&String> = index.images.values().flat_map(|i| &i.chain).collect();
            let unused: Vec<String> = index.layers.keys().filter(|c| !used.contains(c) && !held.contains(*c)).cloned().collect();
            let mut freed = 0;
            let mut doomed = Vec::new();
            for chain in unused {
                if let Some(layer) = index.layers.remove(&chain) {
                    freed += layer.size;
                    doomed.push(layer.dir);
                }
            }
            let changed = !doomed.is_empty();
            Ok(((freed, doomed), changed))
        })?;
        for dir in doomed {
            let path = self.layer_path(dir);
            let gone = self.0.root.join("tmp").join(format!("gone-{dir}"));
            fs::rename(&path, &gone).at(&path)?;
            fs::remove_dir_all(&gone).at(&gone)?;
        }
        self.0.index.change(|index| {
            let used: BTreeSet<&str> = index
                .images
                .iter()
                .flat_map(|(id, entry)| entry.blobs.iter().map(String::as_str).chain([id.as_str()]))
                .filter_map(hex_of)
                .collect();
            let blobs = self.0.root.join("blobs/sha256");
            for blob in fs::read_dir(&blobs).at(&blobs)? {
                let blob = blob.at(&blobs)?;
                // A pull writes its blobs before it enters the image.
                let fresh = blob.metadata().and_then(|m| m.modified()).is_ok_and(|m| m.elapsed().is_ok_and(|e| e.as_secs() < 3600));
                if !fresh && blob.file_name().to_str().is_some_and(|name| !used.contains(name)) {
                    let _ = fs::remove_file(blob.path());
                }
            }
            Ok(((), false))
        })?;
        Ok(freed)
    }

    /// Bytes of all layers.
    pub fn used_bytes(&self) -> Result<u64> {
        Ok(self.0.index.read()?.layers.values().map(|l| l.size).sum())
    }

    fn clean_up(&self) -> Result<()> {
        let index = self.0.index.read()?;
        let known: BTreeSet<String> = index.layers.values().map(|l| l.dir.to_string()).collect();
        let each = |dir: &str, doomed: &dyn Fn(&str) -> bool| -> Result<()> {
            let dir = self.0.root.join(dir);
            for entry in fs::read_dir(&dir).at(&dir)? {
                let entry = entry.at(&dir)?;
                if !entry.file_name().to_str().is_none_or(doomed) {
                    continue;
                }
                let path = entry.path();
                let removed = if entry.file_type().is_ok_and(|t| t.is_dir()) { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.at(&path)?;
            }
            Ok(())
        };
        each("tmp", &|_| true)?;
        each("layers", &|name| !known.contains(name))?;
        each("holds", &|name| name.starts_with("pull-"))
    }

    fn held(&self) -> Result<BTreeSet<String>> {
        let dir = self.0.root.join("holds");
        let mut held = BTreeSet::new();
        for entry in fs::read_dir(&dir).at(&dir)? {
            let path = entry.at(&dir)?.path();
            match fs::read_to_string(&path) {
                Ok(text) => held.extend(text.lines().map(str::to_string)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e).at(path),
            }
        }
        Ok(held)
    }

    fn write_hold(&self, owner: &str, chain: &[String]) -> Result<()> {
        let path = self.0.root.join("holds").join(owner);
        fs::write(&path, chain.join("\n")).at(&path)
    }

    /// Holds layers that are about to come, for the time of a pull.
    pub(crate) fn hold_for_pull(&self, chain: &[String]) -> Result<PullHold<'_>> {
        let owner = format!("pull-{}-{}", std::process::id(), self.0.sequence.fetch_add(1, Ordering::Relaxed));
        self.write_hold(&owner, chain)?;
        Ok(PullHold { store: self, owner })
    }

    fn dirs_of(&self, index: &Index, chain: &[String]) -> Result<Vec<PathBuf>> {
        chain
            .iter()
            .rev()
            .map(|c| index.layers.get(c).map(|l| self.layer_path(l.dir)).ok_or_else(|| Error::NotFound { name: format!("layer {c}") }))
            .collect()
    }

    pub(crate) fn layer_path(&self, dir: u64) -> PathBuf {
        self.0.root.join("layers").join(dir.to_string())
    }

    pub(crate) fn blob_path(&self, digest: &str) -> Result<PathBuf> {
        let hex = hex_of(digest).ok_or_else(|| Error::InvalidImage { name: digest.to_string(), detail: "unsupported digest".into() })?;
        Ok(self.0.root.join("blobs/sha256").join(hex))
    }

    pub(crate) fn temp_dir(&self) -> Result<tempfile::TempDir> {
        let tmp = self.0.root.join("tmp");
        tempfile::TempDir::new_in(&tmp).at(tmp)
    }

    /// Keeps a small blob; answers its digest.
    pub(crate) fn write_blob(&self, bytes: &[u8]) -> Result<String> {
        let digest = manifest::digest(bytes);
        let path = self.blob_path(&digest)?;
        let tmp = self.0.root.join("tmp");
        let mut file = tempfile::NamedTempFile::new_in(&tmp).at(&tmp)?;
        std::io::Write::write_all(&mut file, bytes).at(&path)?;
        file.as_file().sync_data().at(&path)?;
        file.persist(&path).map_err(|e| e.error).at(&path)?;
        Ok(digest)
    }

    /// How many of the lowest layers are here already.
    pub(crate) fn present(&self, chain: &[String]) -> Result<usize> {
        let index = self.0.index.read()?;
        Ok(chain.iter().take_while(|c| index.layers.contains_key(*c)).count())
    }

    /// Unpacks the layer on top of `chain` (the last entry is its own id), verifying its `diff_id`.
    pub(crate) fn add_layer(&self, chain: &[String], diff_id: &str, compressed: impl Read + Send) -> Result<()> {
        let Some((own, lower)) = chain.split_last() else { return Ok(()) };
        let lowers = self.dirs_of(&*self.0.index.read()?, lower)?;
        let corrupt = |detail: String| Error::CorruptLayer { layer: diff_id.to_string(), detail };
        let temp = self.temp_dir()?;
        rustix::fs::chmod(temp.path(), rustix::fs::Mode::from_raw_mode(0o755)).at(temp.path())?;
        let plain = decompress::decompress(compressed).map_err(|e| corrupt(e.to_string()))?;
        let mut hashing = Hashing { inner: plain, hash: Sha256::new() };
        let size = unpack(&mut hashing, temp.path(), &lowers).map_err(|e| match e {
            UnpackError::Corrupt(detail) => corrupt(detail),
            UnpackError::Disk { path, source } => Error::Io { path: temp.path().join(path.trim_start_matches('/')), source },
        })?;
        std::io::copy(&mut hashing, &mut std::io::sink()).map_err(|e| corrupt(e.to_string()))?;
        let actual = format!("sha256:{}", hex::encode(hashing.hash.finalize()));
        if actual != diff_id {
            return Err(Error::Digest { what: "layer".into(), expected: diff_id.to_string(), actual });
        }
        let dir = File::open(temp.path()).at(temp.path())?;
        syncfs(&dir).at(temp.path())?;
        self.enter_layer(own, temp, size)
    }

    pub(crate) fn enter_layer(&self, chain_id: &str, temp: tempfile::TempDir, size: u64) -> Result<()> {
        self.0.index.change(|index| {
            if index.layers.contains_key(chain_id) {
                return Ok(((), false)); // Somebody else was quicker.
            }
            // A crash between rename and index leaves a directory that nobody lists.
            let dir = loop {
                index.next_layer += 1;
                if !self.layer_path(index.next_layer).exists() {
                    break index.next_layer;
                }
            };
            let path = self.layer_path(dir);
            let from = temp.keep();
            fs::rename(&from, &path).at(&from)?;
            index.layers.insert(chain_id.to_string(), Layer { dir, size });
            Ok(((), true))
        })
    }

    /// Enters an image whose layers and configuration are here.
    pub(crate) fn enter_image(&self, id: &str, chain: Vec<String>, tags: &[String], digests: &[String], blobs: Vec<String>) -> Result<Image> {
        self.0.index.change(|index| {
            if let Some(missing) = chain.iter().find(|c| !index.layers.contains_key(*c)) {
                return Err(Error::NotFound { name: format!("layer {missing}") });
            }
            let entry = index.images.entry(id.to_string()).or_insert_with(|| Entry { chain, ..Entry::default() });
            entry.digests.extend(digests.iter().cloned());
            for blob in blobs {
                if !entry.blobs.contains(&blob) {
                    entry.blobs.push(blob);
                }
            }
            tags.iter().for_each(|tag| index.tag(id, tag));
            Ok((image(index, id, &index.images[id]), true))
        })
    }
}

pub(crate) struct PullHold<'a> {
    store: &'a Store,
    owner: String,
}

impl Drop for PullHold<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.store.release(&self.owner) {
            tracing::warn!("a pull's hold stays behind until the next start: {error}");
        }
    }
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        Ok(n)
    }
}

fn image(index: &Index, id: &str, entry: &Entry) -> Image {
    Image {
        id: id.to_string(),
        tags: entry.tags.iter().cloned().collect(),
        digests: entry.digests.iter().cloned().collect(),
        size: entry.chain.iter().filter_map(|c| index.layers.get(c)).map(|l| l.size).sum(),
        pinned: entry.builtin.is_some(),
    }
}

fn find<'a>(index: &'a Index, reference: &str) -> Result<Option<(&'a str, &'a Entry)>> {
    let by_id = |id: &str| index.images.get_key_value(id).map(|(k, e)| (k.as_str(), e));
    if reference.starts_with("sha256:") {
        return Ok(by_id(reference));
    }
    if reference.len() >= 12 && reference.bytes().all(|b| b.is_ascii_hexdigit()) {
        let start = format!("sha256:{reference}");
        let mut fitting = index.images.range(start.clone()..).take_while(|(k, _)| k.starts_with(&start));
        if let (Some((k, e)), None) = (fitting.next(), fitting.next()) {
            return Ok(Some((k, e)));
        }
    }
    let name = Name::parse(reference)?;
    let full = name.to_string();
    Ok(index.images.iter().find(|(_, e)| e.tags.contains(&full) || e.digests.contains(&full)).map(|(k, e)| (k.as_str(), e)))
}

pub(crate) fn parse_config(name: &str, bytes: &[u8]) -> Result<ImageConfiguration> {
    ImageConfiguration::from_reader(bytes).map_err(|e| Error::InvalidImage { name: name.to_string(), detail: format!("configuration: {e}") })
}

/// The diff ids and chain ids that a configuration names.
pub(crate) fn layers_of(config: &ImageConfiguration) -> (Vec<String>, Vec<String>) {
    let diffs: Vec<String> = config.rootfs().diff_ids().to_vec();
    let chain = chain_ids(&diffs);
    (diffs, chain)
}
