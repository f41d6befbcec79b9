//! Fuzzing led by coverage: builds `fuzz/guided` with the compiler's own instrumentation, which the stable compiler has
//! too, and runs target after target. Inputs that reach something new are kept from run to run, in `target/fuzz/corpus`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{cargo, root, run as finish};

/// What makes the compiler tell libFuzzer which ways were taken, and what was compared with what. The linker must not
/// throw away the tables that this makes.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Clink-arg=-Wl,-z,nostart-stop-gc";
/// Largest input that is made.
const LENGTH: u32 = 8192;
/// Most memory, in MB.
const MEMORY: u32 = 2048;
/// Most seconds for one input.
const PATIENCE: u32 = 20;
/// A thread of the server has this much of a stack, in KB.
const STACK: u32 = 2048;

/// Runs all targets, or one. The first that finds something ends it.
pub fn run(target: Option<String>, seconds: u64, build: bool) -> Result<()> {
    let executable = built()?;
    if build {
        println!("{}", executable.display());
        return Ok(());
    }
    let names = names()?;
    ensure!(target.as_ref().is_none_or(|t| names.contains(t)), "the targets are: {}", names.join(" "));
    for name in names.iter().filter(|n| target.as_ref().is_none_or(|t| t == *n)) {
        println!("fuzz: {name}");
        one(&executable, name, seconds)?;
    }
    Ok(())
}

fn one(executable: &Path, name: &str, seconds: u64) -> Result<()> {
    let (kept, found) = (root().join("target/fuzz/corpus").join(name), root().join("target/fuzz/found"));
    for folder in [&kept, &found] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit -s {STACK}; exec \"$@\"")).arg("sh").arg(executable);
    command.args([format!("-max_total_time={seconds}"), format!("-max_len={LENGTH}"), format!("-rss_limit_mb={MEMORY}"), format!("-timeout={PATIENCE}")]);
    command.args(["-print_final_stats=1".to_owned(), format!("-artifact_prefix={}/{name}-", found.display())]);
    command.args([kept, root().join("fuzz/corpus").join(name)]);
    finish(command.env("KNARR_FUZZ_TARGET", name)).with_context(|| format!("{name} found something, see {}", found.display()))
}

/// The targets; each has a folder of seeds.
fn names() -> Result<Vec<String>> {
    let folder = root().join("fuzz/corpus");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn built() -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let folder = root().join("target/fuzz/build");
    let mut command = cargo();
    command.current_dir(root().join("fuzz/guided")).env("RUSTFLAGS", FLAGS);
    command.args(["build", "--release", "--locked", "--target", &triple, "--target-dir"]).arg(&folder);
    finish(&mut command)?;
    Ok(folder.join(triple).join("release/guided"))
}
