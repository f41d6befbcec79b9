//! Debian's haproxy, unpacked aside with the libraries that this machine need not have.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::output;

/// The root that it is unpacked in; the program needs `LD_LIBRARY_PATH` of [`libraries`].
pub fn root(tools: &Path) -> Result<PathBuf> {
    let root = tools.join("haproxy");
    if root.join("usr/sbin/haproxy").exists() {
        return Ok(root);
    }
    let work = tools.join("haproxy-packages");
    fs::create_dir_all(&work)?;
    let packages = ["haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1", "libpcre2-8-0", "libssl3", "libcrypt1", "libsystemd0"];
    let fetch = || output(Command::new("apt-get").args(["download", "-qq"]).args(packages).current_dir(&work));
    if fetch().is_err() {
        output(Command::new("apt-get").args(["update", "-qq"]))?;
        fetch()?;
    }
    let unpacked = work.join("root");
    for entry in fs::read_dir(&work)?.flatten().filter(|e| e.path().extension().is_some_and(|e| e == "deb")) {
        output(Command::new("dpkg-deb").arg("-x").arg(entry.path()).arg(&unpacked))?;
    }
    // Another test may have been quicker.
    if !root.exists() {
        fs::rename(&unpacked, &root)?;
    }
    fs::remove_dir_all(&work)?;
    ensure!(root.join("usr/sbin/haproxy").exists(), "the package haproxy holds no haproxy");
    Ok(root)
}

/// Where its libraries are.
pub fn libraries(root: &Path) -> String {
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    ["lib", "usr/lib"].iter().map(|d| root.join(d).join(&triple).display().to_string()).collect::<Vec<_>>().join(":")
}
