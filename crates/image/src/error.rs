//! What can go wrong with images, in words for the events of a pod.

use std::io;
use std::path::{Path, PathBuf};

/// An image error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name cannot be parsed.
    #[error("couldn't parse image name {name:?}: {detail}")]
    InvalidName { name: String, detail: String },
    /// Nothing here, or in the registry, has this name.
    #[error("{name}: not found")]
    NotFound { name: String },
    /// The registry wants (other) credentials.
    #[error("failed to authorize: {name}: {detail}")]
    Unauthorized { name: String, detail: String },
    /// The image is for other machines.
    #[error("no match for platform in manifest: {name} has {found}, this node needs {wanted}")]
    NoPlatform { name: String, found: String, wanted: String },
    /// Bytes that are not what their digest says.
    #[error("failed to verify {what}: expected digest {expected}, got {actual}")]
    Digest { what: String, expected: String, actual: String },
    /// A layer that cannot be unpacked.
    #[error("failed to extract layer {layer}: {detail}")]
    CorruptLayer { layer: String, detail: String },
    /// A manifest, configuration or archive that is not what it should be.
    #[error("invalid image {name}: {detail}")]
    InvalidImage { name: String, detail: String },
    /// The registry cannot be reached, or does not behave.
    #[error("failed to pull {name}: {detail}")]
    Registry { name: String, detail: String },
    /// The disk.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The store's own index.
    #[error("the image index {} is damaged: {detail}; remove the directory to fetch the images again", path.display())]
    Index { path: PathBuf, detail: String },
}

/// Adds the path to an I/O error.
pub(crate) trait At<T> {
    fn at(self, path: impl AsRef<Path>) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, path: impl AsRef<Path>) -> Result<T, Error> {
        self.map_err(|e| Error::Io { path: path.as_ref().to_path_buf(), source: e.into() })
    }
}
