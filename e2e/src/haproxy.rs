//! Debian's haproxy.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::debian;

/// The root that it is unpacked in; the program needs `LD_LIBRARY_PATH` of [`debian::libraries`].
pub fn root(tools: &Path) -> Result<PathBuf> {
    let packages = ["haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1", "libpcre2-8-0", "libssl3", "libcrypt1", "libsystemd0"];
    debian::unpacked(tools, "usr/sbin/haproxy", &packages)
}
