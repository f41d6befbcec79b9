//! Whole clusters on hosts that are network namespaces: how fast they come to be, what an idle agent takes, snapshots. The
//! work is done by an example of the end-to-end tests, which has such hosts.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::bench::{machine, publish};
use crate::{cargo, release_binary, tools};

/// What is measured, by how it begins, and what is to be reached.
const GOALS: &[(&str, &str)] = &[
    ("init until Ready, embedded", "≤ 2 s"),
    ("worker join until Ready", "≤ 2 s"),
    ("worker agent, idle", "≤ 40 MB"),
    ("init until Ready, etcd", "≤ 5 s"),
    ("3 + 3 nodes in sequence", "≤ 30 s"),
    ("snapshot of ", "≤ 10 s"),
    ("restoring it until it is served", "≤ 20 s"),
];

/// Measures, prints a table and writes it to docs/benchmarks.md; with words, only these parts: `one`, `six`, `embedded`,
/// `etcd`, printed alone.
pub fn run(parts: &[String]) -> Result<()> {
    let tools = tools::install()?;
    let binary = match std::env::var_os("KNARR_BIN") {
        Some(binary) => binary,
        None => release_binary()?.into_os_string(),
    };
    let mut command = cargo();
    command.args(["run", "-q", "-p", "e2e", "--example", "clusters", "--"]).args(parts);
    let output = command.env("KNARR_TOOLS", &tools.dir).env("KNARR_BIN", binary).stderr(Stdio::inherit()).output().context("clusters")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut table = "| figure | to reach | measured |\n|---|---|---|\n".to_owned();
    for line in text.lines() {
        let (name, value) = line.split_once('\t').with_context(|| format!("{line:?} is no figure"))?;
        let goal = GOALS.iter().find(|(begin, _)| name.starts_with(begin)).map_or("", |(_, goal)| goal);
        table += &format!("| {name} | {goal} | {value} |\n");
    }
    println!("{table}");
    ensure!(output.status.success(), "not all was measured: {}", output.status);
    if !parts.is_empty() {
        return Ok(());
    }
    publish("Clusters", &format!("Measured by `cargo xtask bench clusters`: three rounds, median and range. Hosts are network namespaces.\n\nMachine: {}\n\n{table}", machine()))
}
