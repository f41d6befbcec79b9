//! The image that knarr carries: its own executable, so that a first tour needs no registry.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::At;
use crate::manifest::host;
use crate::{Image, Result, Store};

/// Name of the built-in image, without a tag; it has the tags `latest`, `v1` and `v2`.
pub const BUILTIN_NAME: &str = "knarr.local/echo";

impl Store {
    /// Makes the built-in image of `exe` (a static executable), unless it is there already. Blocks.
    pub fn ensure_builtin(&self, exe: &Path) -> Result<Image> {
        let meta = fs::metadata(exe).at(exe)?;
        let identity = format!("{}:{}:{}:{}:{}", meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
        let index = self.0.index.read()?;
        if let Some((id, entry)) = index.images.iter().find(|(_, e)| e.builtin.as_deref() == Some(&identity))
            && entry.chain.iter().all(|c| index.layers.contains_key(c))
            && let Some(image) = self.get(id)?
        {
            return Ok(image);
        }

        let temp = self.temp_dir()?;
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).at(temp.path())?;
        let inside = temp.path().join("knarr");
        // A link costs nothing. The mode belongs to the file, so it must be right already.
        if meta.mode() & 0o777 != 0o755 || fs::hard_link(exe, &inside).is_err() {
            fs::copy(exe, &inside).at(exe)?;
            fs::set_permissions(&inside, fs::Permissions::from_mode(0o755)).at(&inside)?;
            File::open(&inside).and_then(|f| f.sync_data()).at(&inside)?;
        }
        let diff_id = archive_digest(&inside, meta.size()).at(&inside)?;
        let config = serde_json::json!({
            "architecture": host().architecture,
            "os": "linux",
            "config": {
                "Entrypoint": ["/knarr", "echo"],
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/"],
                "ExposedPorts": {"8080/tcp": {}},
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created_by": "knarr's own executable"}],
        });
        let bytes = serde_json::to_vec(&config).map_err(io::Error::from).at(&inside)?;
        let _hold = self.hold_for_pull(std::slice::from_ref(&diff_id))?;
        self.enter_layer(&diff_id, temp, meta.size())?;
        let id = self.write_blob(&bytes)?;
        let tags: Vec<String> = ["latest", "v1", "v2"].iter().map(|tag| format!("{BUILTIN_NAME}:{tag}")).collect();
        self.enter_image(&id, vec![diff_id], &tags, &[], Vec::new())?;
        // The one of an older executable goes when no container uses it.
        self.0.index.change(|index| {
            index.images.retain(|other, entry| *other == id || entry.builtin.is_none());
            if let Some(entry) = index.images.get_mut(&id) {
                entry.builtin = Some(identity);
            }
            Ok(((), true))
        })?;
        self.collect_garbage()?;
        Ok(self.get(&id)?.unwrap_or_else(|| Image { id, tags, digests: Vec::new(), size: meta.size(), pinned: true }))
    }
}

/// The digest of the layer's archive: what `tar` would make of this one file.
fn archive_digest(file: &Path, size: u64) -> io::Result<String> {
    struct Hash(Sha256);
    impl Write for Hash {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o755);
    header.set_entry_type(tar::EntryType::Regular);
    let mut archive = tar::Builder::new(Hash(Sha256::new()));
    archive.append_data(&mut header, "knarr", io::BufReader::with_capacity(1 << 20, File::open(file)?))?;
    Ok(format!("sha256:{}", hex::encode(archive.into_inner()?.0.finalize())))
}
