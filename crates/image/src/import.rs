//! Archives: what `docker save` writes, and OCI layouts; both also compressed.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use serde::Deserialize;

use crate::error::At;
use crate::manifest::{self, Descriptor, Manifest, Platform, choose, hex_of, host, offered};
use crate::name::Name;
use crate::store::{layers_of, parse_config};
use crate::unpack::{UnpackError, unpack};
use crate::{Error, Image, Result, Store, decompress};

/// An entry of `manifest.json` in a `docker save` archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Store {
    /// Takes in all images of an archive. `name` names an image that has none in it. Blocks.
    pub fn import(&self, archive: impl Read + Send, name: Option<&str>) -> Result<Vec<Image>> {
        let temp = self.temp_dir()?;
        let reader = decompress::decompress(archive).map_err(|e| invalid("archive", e.to_string()))?;
        unpack(reader, temp.path(), &[]).map_err(|e| match e {
            UnpackError::Corrupt(detail) => invalid("archive", detail),
            UnpackError::Disk { path, source } => Error::Io { path: temp.path().join(path), source },
        })?;
        let dir = temp.path();
        let name = name.map(Name::parse).transpose()?;
        if let Some(bytes) = read(dir, "manifest.json")? {
            let saved: Vec<Saved> = serde_json::from_slice(&bytes).map_err(|e| invalid("archive", format!("manifest.json: {e}")))?;
            saved.into_iter().map(|image| self.import_saved(dir, image, name.as_ref())).collect()
        } else if let Some(bytes) = read(dir, "index.json")? {
            let index: Manifest = serde_json::from_slice(&bytes).map_err(|e| invalid("archive", format!("index.json: {e}")))?;
            let entries = index.manifests.unwrap_or_default();
            if entries.is_empty() {
                return Err(invalid("archive", "no image in index.json".into()));
            }
            entries.iter().map(|entry| self.import_oci(dir, entry, name.as_ref())).collect()
        } else {
            Err(invalid("archive", "neither manifest.json nor index.json: not an image archive".into()))
        }
    }

    fn import_saved(&self, dir: &Path, saved: Saved, name: Option<&Name>) -> Result<Image> {
        let config = read(dir, &saved.config)?.ok_or_else(|| invalid("archive", format!("{} is missing", saved.config)))?;
        let stem = saved.config.trim_end_matches(".json").rsplit('/').next().unwrap_or_default();
        let id = manifest::digest(&config);
        if hex_of(&format!("sha256:{stem}")).is_some() && id != format!("sha256:{stem}") {
            return Err(Error::Digest { what: saved.config.clone(), expected: format!("sha256:{stem}"), actual: id });
        }
        let mut tags = Vec::new();
        for tag in saved.repo_tags.unwrap_or_default() {
            tags.extend(Name::parse(&tag)?.tagged());
        }
        if tags.is_empty() {
            tags.extend(name.and_then(Name::tagged));
        }
        self.take_in(dir, &config, &saved.layers, tags, Vec::new(), Vec::new())
    }

    fn import_oci(&self, dir: &Path, entry: &Descriptor, name: Option<&Name>) -> Result<Image> {
        let mut name = name.cloned();
        let noted = ["io.containerd.image.name", "org.opencontainers.image.ref.name"].iter().find_map(|key| entry.annotations.get(*key));
        if let Some(noted) = noted {
            match (&name, noted.contains(['/', ':'])) {
                (_, true) => name = Some(Name::parse(noted)?),
                // Only a tag, as the specification has it.
                (Some(base), false) => name = Some(Name::parse(&format!("{}:{noted}", base.repository()))?),
                (None, false) => {}
            }
        }
        let what = name.as_ref().map_or_else(|| entry.digest.clone(), Name::to_string);
        let mut blobs = Vec::new();
        let mut current = entry.clone();
        let parsed = loop {
            let bytes = blob(dir, &current)?;
            let parsed: Manifest = serde_json::from_slice(&bytes).map_err(|e| invalid(&what, format!("manifest: {e}")))?;
            blobs.push(bytes);
            match &parsed.manifests {
                Some(entries) if blobs.len() < 4 => {
                    let host = host();
                    current = choose(entries, &host)
                        .ok_or_else(|| Error::NoPlatform { name: what.clone(), found: offered(entries), wanted: host.to_string() })?
                        .clone();
                }
                _ => break parsed,
            }
        };
        let config = blob(dir, &parsed.config.ok_or_else(|| invalid(&what, "no configuration".into()))?)?;
        let layers: Vec<String> = parsed.layers.iter().map(|l| blob_path(&l.digest)).collect::<Result<_>>()?;
        let digests = name.iter().map(|n| format!("{}@{}", n.repository(), entry.digest)).collect();
        self.take_in(dir, &config, &layers, name.and_then(|n| n.tagged()).into_iter().collect(), digests, blobs)
    }

    fn take_in(&self, dir: &Path, config: &[u8], layers: &[String], tags: Vec<String>, digests: Vec<String>, blobs: Vec<Vec<u8>>) -> Result<Image> {
        let what = tags.first().cloned().unwrap_or_else(|| "archive".to_string());
        let configuration = parse_config(&what, config)?;
        let (built_for, host) = (
            Platform { architecture: configuration.architecture().to_string(), os: configuration.os().to_string(), variant: String::new() },
            host(),
        );
        if !built_for.runs_on(&host) {
            return Err(Error::NoPlatform { name: what, found: built_for.to_string(), wanted: host.to_string() });
        }
        let (diffs, chain) = layers_of(&configuration);
        if diffs.len() != layers.len() {
            return Err(invalid(&what, format!("{} layers, but {} in its configuration", layers.len(), diffs.len())));
        }
        let _hold = self.hold_for_pull(&chain)?;
        for at in self.present(&chain)?..chain.len() {
            let file = open(dir, &layers[at])?.ok_or_else(|| invalid(&what, format!("layer {} is missing", layers[at])))?;
            self.add_layer(&chain[..=at], &diffs[at], BufReader::new(file))?;
        }
        let mut kept = Vec::new();
        for blob in &blobs {
            kept.push(self.write_blob(blob)?);
        }
        let id = self.write_blob(config)?;
        self.enter_image(&id, chain, &tags, &digests, kept)
    }
}

fn invalid(name: &str, detail: String) -> Error {
    Error::InvalidImage { name: name.to_string(), detail }
}

fn blob_path(digest: &str) -> Result<String> {
    let hex = hex_of(digest).ok_or_else(|| invalid(digest, "unsupported digest".into()))?;
    Ok(format!("blobs/sha256/{hex}"))
}

fn blob(dir: &Path, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let bytes = read(dir, &blob_path(&descriptor.digest)?)?.ok_or_else(|| invalid("archive", format!("blob {} is missing", descriptor.digest)))?;
    let actual = manifest::digest(&bytes);
    if actual != descriptor.digest {
        return Err(Error::Digest { what: "blob".into(), expected: descriptor.digest.clone(), actual });
    }
    Ok(bytes)
}

/// Opens a file of the archive; its symbolic links cannot lead outside.
fn open(dir: &Path, path: &str) -> Result<Option<File>> {
    let root = openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).at(dir)?;
    match openat2(&root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS) {
        Ok(fd) => Ok(Some(File::from(fd))),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(e) => Err(e).at(dir.join(path)),
    }
}

fn read(dir: &Path, path: &str) -> Result<Option<Vec<u8>>> {
    let Some(file) = open(dir, path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(64 << 20).read_to_end(&mut bytes).at(dir.join(path))?;
    Ok(Some(bytes))
}
