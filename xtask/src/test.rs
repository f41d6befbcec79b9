//! Runs every test there is, and counts.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{cargo, release_binary, tidy, tools};

#[derive(Default)]
struct Count {
    passed: u64,
    failed: u64,
}

/// Runs them. The last line says how many passed and failed.
pub fn run(unit: bool, e2e: Option<String>) -> Result<()> {
    let tools = tools::install()?;
    let mut count = Count::default();
    let mut broken = Vec::new();
    if e2e.is_none() {
        match tidy::run() {
            Ok(()) => count.passed += 1,
            Err(error) => {
                println!("tidy: {error:#}");
                count.failed += 1;
            }
        }
        let mut rooms = cargo();
        rooms.args(["test", "--workspace", "--exclude", "e2e", "--no-fail-fast"]).env("KNARR_TOOLS", &tools.dir);
        if !counted(&mut rooms, &mut count)? {
            broken.push("the rooms' tests");
        }
    }
    if !unit {
        let binary = release_binary()?;
        let mut ends = cargo();
        ends.args(["test", "-p", "e2e", "--no-fail-fast", "--"]).args(e2e);
        ends.env("KNARR_TOOLS", &tools.dir).env("KNARR_BIN", binary);
        if !counted(&mut ends, &mut count)? {
            broken.push("the end-to-end tests");
        }
    }
    println!("{} passed, {} failed", count.passed, count.failed);
    ensure!(count.failed == 0 && broken.is_empty(), "failed: {}", if broken.is_empty() { "tidy".into() } else { broken.join(" and ") });
    Ok(())
}

/// Passes a test run's output on and adds up its closing lines. Returns whether it succeeded.
fn counted(command: &mut Command, count: &mut Count) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {command:?}"))?;
    let output = child.stdout.take().context("no standard output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        if let Some(result) = line.strip_prefix("test result: ") {
            let number = |word: &str| {
                let words: Vec<&str> = result.split([' ', ';', '.']).filter(|w| !w.is_empty()).collect();
                let at = words.iter().position(|w| *w == word)?;
                words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
            };
            count.passed += number("passed").unwrap_or(0);
            count.failed += number("failed").unwrap_or(0);
        }
    }
    Ok(child.wait()?.success())
}
