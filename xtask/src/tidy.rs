//! The layer table as data, and what else a machine can see: an edge that the table does not list, a
//! file that grew too long, a marker of unfinished work.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{cargo, root};

/// Which rooms each room may use. An arrow that is not here does not exist.
const LAYERS: &[(&str, &str)] = &[
    ("api", ""),
    ("cel", "api"),
    ("pki", ""),
    ("store", "proto"),
    ("sys", ""),
    ("netlink", ""),
    ("nft", ""),
    ("proto", ""),
    ("streaming", ""),
    ("apiserver", "api cel pki store streaming"),
    ("registry", "apiserver api cel pki"),
    ("client", "api pki streaming"),
    ("rules", "api"),
    ("reconcile", "client api"),
    ("scheduler", "reconcile rules client api cel"),
    ("controllers", "reconcile rules client api cel pki"),
    ("image", "sys"),
    ("shim", "sys"),
    ("cri", "proto"),
    ("runtime", "cri image shim sys streaming"),
    ("kubelet", "cri reconcile rules client api sys streaming proto pki"),
    ("proxy", "reconcile client api nft"),
    ("overlay", "reconcile client api netlink sys"),
    ("dns", "reconcile client api"),
    ("metrics", "reconcile client api"),
    ("bootstrap", "client pki api sys netlink apiserver proto"),
    ("knarr", "*"),
    ("xtask", ""),
    ("e2e", ""),
    ("load", ""),
    ("fuzz", "*"),
];

/// Crates that a room must not contain.
const FORBIDDEN: &[(&str, &str)] = &[
    ("api", "tokio hyper http"),
    ("cel", "tokio hyper http kube k8s-openapi"),
    ("pki", "tokio hyper http"),
    ("sys", "kube k8s-openapi libcontainer"),
    ("netlink", "kube k8s-openapi"),
    ("nft", "kube k8s-openapi"),
    ("store", "kube k8s-openapi"),
    ("shim", "tokio hyper"),
    ("registry", "hyper fjall"),
    ("kubelet", "libcontainer rtnetlink"),
    ("runtime", "kube k8s-openapi"),
    ("image", "libcontainer kube"),
];

/// Rooms that may hold `unsafe`.
const UNSAFE: &[&str] = &["sys", "netlink", "nft", "shim", "image"];
/// Longest source file.
const LINES: usize = 800;
/// Most packages that the binary is built from.
const PACKAGES: usize = 420;

/// Checks everything, and names all that is wrong.
pub fn run() -> Result<()> {
    let mut wrong = Vec::new();
    let output = cargo().args(["metadata", "--format-version=1", "--locked"]).output().context("cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    layers(&metadata, &mut wrong);
    packages(&metadata, &mut wrong);
    sources(&mut wrong)?;
    guided(&mut wrong)?;
    if wrong.is_empty() {
        println!("tidy: 1 passed, 0 failed");
        return Ok(());
    }
    wrong.iter().for_each(|w| println!("tidy: {w}"));
    bail!("{} things are not tidy", wrong.len())
}

/// What is fuzzed under libFuzzer is a workspace of its own; its lock file has to follow the manifests.
fn guided(wrong: &mut Vec<String>) -> Result<()> {
    let output = cargo().current_dir(root().join("fuzz/guided")).args(["metadata", "--format-version=1", "--locked"]).output().context("cargo metadata")?;
    if !output.status.success() {
        wrong.push(format!("fuzz/guided, where `cargo update --workspace` may help: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(())
}

fn layers(metadata: &Value, wrong: &mut Vec<String>) {
    let table: BTreeMap<&str, &str> = LAYERS.iter().copied().collect();
    let forbidden: BTreeMap<&str, &str> = FORBIDDEN.iter().copied().collect();
    for package in metadata["packages"].as_array().into_iter().flatten().filter(|p| p["source"].is_null()) {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(allowed) = table.get(name) else {
            wrong.push(format!("the crate {name} is not in the layer table"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten().filter(|d| d["kind"] != "dev") {
            let to = dependency["name"].as_str().unwrap_or_default();
            let room = dependency["source"].is_null();
            if room && *allowed != "*" && !allowed.split(' ').any(|a| a == to) {
                wrong.push(format!("{name} uses {to}: the layer table has no such arrow"));
            }
            if forbidden.get(name).is_some_and(|f| f.split(' ').any(|f| f == to)) {
                wrong.push(format!("{name} uses {to}, which it must not contain"));
            }
        }
    }
}

fn packages(metadata: &Value, wrong: &mut Vec<String>) {
    let count = metadata["resolve"]["nodes"].as_array().map_or(0, Vec::len);
    if count > PACKAGES {
        wrong.push(format!("{count} packages are resolved, and the ceiling is {PACKAGES}"));
    }
}

fn sources(wrong: &mut Vec<String>) -> Result<()> {
    let root = root();
    let mut files = Vec::new();
    for dir in ["crates", "xtask", "e2e", "fuzz", "load"] {
        collect(&root.join(dir), &mut files)?;
    }
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let name = file.strip_prefix(&root).unwrap_or(&file).display().to_string();
        let lines = text.lines().count();
        if lines > LINES {
            wrong.push(format!("{name} has {lines} lines: split it by meaning"));
        }
        if !text.starts_with("//!") {
            wrong.push(format!("{name} does not say its job in its first line"));
        }
        let room = name.split('/').nth(1).unwrap_or_default();
        // Built from parts, so that this file does not find itself.
        for marker in [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("#[ig", "nore"), concat!("FIX", "ME")] {
            if text.contains(marker) {
                wrong.push(format!("{name} holds {marker}"));
            }
        }
        let root_file = name.ends_with("src/lib.rs") || name.ends_with("src/main.rs");
        if root_file && name.starts_with("crates/") && !UNSAFE.contains(&room) && !text.contains("#![forbid(unsafe_code)]") {
            wrong.push(format!("{name} does not forbid unsafe code"));
        }
    }
    Ok(())
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|n| n != "target") {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
