//! The API server under load, beside a server that only sends fixed bytes and, if one is named, any other API server.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::bench::processes;
use crate::{release_binary, run as execute};

const DATA: &str = "/var/lib/knarr-load";
const RUN: &str = "/run/knarr-load";
const CEILING: &str = "127.0.0.1:19443";

/// What is measured, and what is to be reached.
const GOALS: &[(&str, &str)] = &[
    ("create", "≥ 10,000 /s"),
    ("get", "≥ 30,000 /s"),
    ("patch", "≥ 8,000 /s"),
    ("list JSON", "≤ 20 ms"),
    ("list protobuf", "≤ 15 ms"),
    ("list Table", "≤ 15 ms"),
    ("lists at once", "≥ 50 /s"),
    ("watch", "≥ 200,000 events/s"),
    ("memory after that", "≤ 150 MB"),
    ("stored", "≤ 1,200 MB"),
];

/// A process that ends with its scope.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures and prints a table. `other` is the kubeconfig of an API server to measure beside ours; `store` adds the
/// memory of a large cluster's objects.
pub fn run(other: Option<PathBuf>, store: bool) -> Result<()> {
    let binary = release_binary()?;
    execute(crate::cargo().args(["build", "--release", "-p", "load"]))?;
    let load = binary.with_file_name("load");
    let mut columns = vec![("ceiling", ceiling(&load)?), ("knarr", ours(&binary, &load, store)?)];
    if let Some(kubeconfig) = other {
        columns.push(("other", measure(&load, &kubeconfig, &[])?));
    }
    let heads: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    println!("| figure | to reach | {} |\n|---|---|{}", heads.join(" | "), "---|".repeat(heads.len()));
    for name in &columns[1].1.order {
        let goal = GOALS.iter().find(|(n, _)| n == name).map_or("", |(_, goal)| goal);
        let cells: Vec<&str> = columns.iter().map(|(_, figures)| figures.values.get(name).map_or("", String::as_str)).collect();
        println!("| {name} | {goal} | {} |", cells.join(" | "));
    }
    Ok(())
}

/// What the load tool printed.
struct Figures {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

fn measure(load: &Path, kubeconfig: &Path, args: &[String]) -> Result<Figures> {
    let output = Command::new(load).arg("run").arg("--kubeconfig").arg(kubeconfig).args(args).stderr(Stdio::inherit()).output().context("load")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "load: {}\n{text}", output.status);
    let mut figures = Figures { order: Vec::new(), values: BTreeMap::new() };
    for line in text.lines() {
        let (name, value) = line.split_once('\t').with_context(|| format!("{line:?} is no figure"))?;
        figures.order.push(name.into());
        figures.values.insert(name.into(), value.into());
    }
    Ok(figures)
}

fn ceiling(load: &Path) -> Result<Figures> {
    let kubeconfig = std::env::temp_dir().join(format!("knarr-ceiling-{}.conf", std::process::id()));
    let _server = Running(Command::new(load).args(["ceiling", CEILING]).arg(&kubeconfig).spawn().context("load")?);
    let begin = Instant::now();
    while !kubeconfig.exists() {
        ensure!(begin.elapsed() < Duration::from_secs(10), "the server of the ceiling does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    let figures = measure(load, &kubeconfig, &[]);
    fs::remove_file(&kubeconfig)?;
    figures
}

fn ours(binary: &Path, load: &Path, store: bool) -> Result<Figures> {
    let knarr = |args: &[&str]| -> Result<()> {
        let output = Command::new(binary).args(args).args(["--data-dir", DATA, "--run-dir", RUN]).env("HOME", RUN).output()?;
        ensure!(output.status.success(), "knarr {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    fs::create_dir_all(RUN)?;
    knarr(&["down", "--purge"])?;
    knarr(&["up", "--secure-port", "19444", "--kubelet-port", "19250", "--node-name", "load", "--disable", "controllers", "--disable", "scheduler"])?;
    let server = processes(|line| line.contains(DATA) && line.split(' ').nth(1) == Some("server"));
    let mut args: Vec<String> = server.iter().flat_map(|pid| ["--pid".to_string(), pid.to_string()]).collect();
    if store {
        args.extend(["--store", "150000", "5000"].map(String::from));
    }
    let figures = measure(load, &Path::new(DATA).join("admin.conf"), &args);
    // Whatever happened, nothing stays behind.
    knarr(&["down", "--purge"])?;
    figures
}
