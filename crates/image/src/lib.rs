//! Images: pull, content store, unpack, overlay snapshots. Knows no containers.
//!
//! A [`Store`] is a directory that any number of processes may have open:
//!
//! ```text
//! index.json       which images, names and layers there are; replaced by rename, under `lock`
//! blobs/sha256/    manifests and configurations, named by digest
//! layers/N/        one unpacked layer: a lower directory for overlayfs
//! holds/OWNER      the layers that a container uses, so that they outlive their image
//! tmp/             whatever is not finished; emptied by the first process to open the store
//! ```
//!
//! Compressed layers are not kept: nothing is pushed from here. A layer is known by its chain id (its
//! content and that of all below), because the owners and modes of directories that a layer's archive
//! does not mention come from the layers below.
//!
//! Names are normalised as everywhere: `nginx` is `docker.io/library/nginx:latest`.
#![forbid(unsafe_code)]

mod builtin;
mod decompress;
mod error;
mod import;
mod index;
mod manifest;
mod name;
mod pull;
mod store;
mod unpack;

pub use builtin::BUILTIN_NAME;
pub use error::Error;
pub use name::{Name, normalize};
pub use oci_spec::image::ImageConfiguration;
pub use pull::{Auth, Options, Progress};
pub use store::{Image, Store};

/// What everything here answers.
pub type Result<T> = std::result::Result<T, Error>;
