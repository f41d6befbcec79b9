//! Debian's packages, unpacked aside: programs that this machine need not have, with their libraries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::output;

/// The root that packages are unpacked in, below the tools. `wanted` are the files that it is done for.
fn unpacked(tools: &Path, name: &str, wanted: &[&str], packages: &[&str]) -> Result<PathBuf> {
    let root = tools.join(name);
    let is_there = || wanted.iter().all(|file| root.join(file).exists());
    if is_there() {
        return Ok(root);
    }
    let work = tools.join(format!("{name}-packages"));
    fs::create_dir_all(&work)?;
    let fetch = || output(Command::new("apt-get").args(["download", "-qq"]).args(packages).current_dir(&work));
    if fetch().is_err() {
        output(Command::new("apt-get").args(["update", "-qq"]))?;
        fetch()?;
    }
    let unpacked = work.join("root");
    for entry in fs::read_dir(&work)?.flatten().filter(|e| e.path().extension().is_some_and(|e| e == "deb")) {
        output(Command::new("dpkg-deb").arg("-x").arg(entry.path()).arg(&unpacked))?;
    }
    // Another test may have been quicker; or it is an older one, with less in it.
    if !is_there() {
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        fs::rename(&unpacked, &root)?;
    }
    fs::remove_dir_all(&work)?;
    ensure!(is_there(), "{wanted:?} are not all in {packages:?}");
    Ok(root)
}

/// haproxy.
pub fn haproxy(tools: &Path) -> Result<PathBuf> {
    let packages = ["haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1", "libpcre2-8-0", "libssl3", "libcrypt1", "libsystemd0"];
    unpacked(tools, "haproxy", &["usr/sbin/haproxy"], &packages)
}

/// nginx, and its module that leads streams.
pub fn nginx(tools: &Path) -> Result<PathBuf> {
    let packages = ["nginx", "nginx-common", "libnginx-mod-stream", "libpcre2-8-0", "libssl3", "libcrypt1", "zlib1g"];
    unpacked(tools, "nginx", &["usr/sbin/nginx", "usr/lib/nginx/modules/ngx_stream_module.so"], &packages)
}

/// keepalived.
pub fn keepalived(tools: &Path) -> Result<PathBuf> {
    let packages = [
        "keepalived", "libglib2.0-0", "libmnl0", "libnftnl11", "libnl-3-200", "libnl-genl-3-200", "libpcre2-8-0", "libpci3", "libsensors5", "libsnmp40", "libssl3", "libsystemd0", "libwrap0",
    ];
    unpacked(tools, "keepalived", &["usr/sbin/keepalived"], &packages)
}

/// Where its libraries are, for `LD_LIBRARY_PATH`.
pub fn libraries(root: &Path) -> String {
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    ["lib", "usr/lib"].iter().map(|d| root.join(d).join(&triple).display().to_string()).collect::<Vec<_>>().join(":")
}
