//! The scheduler's decisions alone: no API server, nothing written. What a decision takes bounds what
//! a whole process can do.

use anyhow::{Context, Result, ensure};

use crate::cargo;

/// What is measured, and what is to be reached.
const GOALS: &[(&str, &str)] = &[
    ("basic", "99 of 100 within 500 us; 4,000 pods/s bound"),
    ("required affinity", "99 of 100 within 500 us"),
    ("required anti-affinity", "99 of 100 within 500 us; 1,500 pods/s bound"),
    ("topology spread", "99 of 100 within 500 us; 1,500 pods/s bound"),
    ("fits nowhere", "99 of 100 within 500 us"),
    ("preemption", "500 pods/s"),
];

/// Builds the example that measures, runs it and prints a table.
pub fn run() -> Result<()> {
    let output = cargo().args(["run", "--release", "--quiet", "-p", "scheduler", "--example", "decisions"]).output().context("cargo run")?;
    ensure!(output.status.success(), "decisions: {}", String::from_utf8_lossy(&output.stderr));
    println!("| 5,000 nodes, decisions alone | to reach | measured |\n|---|---|---|");
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let (name, measured) = line.split_once('\t').with_context(|| format!("{line:?} is no figure"))?;
        let goal = GOALS.iter().find(|(n, _)| *n == name).map_or("", |(_, goal)| goal);
        println!("| {name} | {goal} | {} |", measured.replace('\t', ", "));
    }
    Ok(())
}
