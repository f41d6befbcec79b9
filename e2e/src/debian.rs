//! Debian's packages, unpacked aside: programs that this machine need not have, with their libraries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::output;

/// The root that packages are unpacked in, below the tools. `program` is what it is done for, as `usr/sbin/nginx`.
pub fn unpacked(tools: &Path, program: &str, packages: &[&str]) -> Result<PathBuf> {
    let name = Path::new(program).file_name().unwrap_or_default();
    let root = tools.join(name);
    if root.join(program).exists() {
        return Ok(root);
    }
    let work = tools.join(format!("{}-packages", name.display()));
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
    // Another test may have been quicker.
    if !root.exists() {
        fs::rename(&unpacked, &root)?;
    }
    fs::remove_dir_all(&work)?;
    ensure!(root.join(program).exists(), "{program} is in none of {packages:?}");
    Ok(root)
}

/// Where its libraries are, for `LD_LIBRARY_PATH`.
pub fn libraries(root: &Path) -> String {
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    ["lib", "usr/lib"].iter().map(|d| root.join(d).join(&triple).display().to_string()).collect::<Vec<_>>().join(":")
}
