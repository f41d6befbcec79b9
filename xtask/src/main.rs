//! Project tasks: `cargo xtask test`, `tidy`, `fuzz`, `bench`, `tools`.
#![forbid(unsafe_code)]

mod api;
mod bench;
mod clusters;
mod decisions;
mod fuzz;
mod hollow;
mod test;
mod tidy;
mod tools;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

/// Tasks of the project.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the tests need, and run all of them: tidy, the rooms', and end to end
    Test {
        /// Only what needs no cluster
        #[arg(long)]
        unit: bool,
        /// Only the end-to-end tests whose name contains this
        #[arg(long)]
        e2e: Option<String>,
    },
    /// Check the layer table, file sizes and stray markers
    Tidy,
    /// Fuzz, led by coverage (libFuzzer, which needs a C++ compiler); what is found lies under target/fuzz
    Fuzz {
        /// Only this target
        target: Option<String>,
        /// How long each target is fuzzed
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Only build, and print the executable
        #[arg(long)]
        build: bool,
    },
    /// Measure the figures as whole processes and write docs/benchmarks.md
    Bench {
        #[command(subcommand)]
        what: Option<What>,
    },
    /// Install what the tests need, and nothing else
    Tools,
}

/// One part of the figures.
#[derive(Subcommand)]
enum What {
    /// Decisions of the scheduler alone, 5,000 nodes: printed, not written down
    Scheduler,
    /// The API server under load, beside a server of fixed bytes: printed, not written down
    Api {
        /// Measure the API server of this kubeconfig too
        #[arg(long)]
        also: Option<PathBuf>,
        /// At the end, store 150,000 pods and 5,000 nodes
        #[arg(long)]
        store: bool,
    },
    /// Clusters of several nodes, their idle agents, snapshots of a gigabyte and restoring them: written to docs/benchmarks.md
    Clusters {
        /// Only these parts, printed and not written down: one, six, embedded, etcd
        parts: Vec<String>,
    },
    /// Scheduler and controllers beside an API server, with 5,000 hollow nodes: printed, not written down
    Hollow,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Test { unit, e2e } => test::run(unit, e2e),
        Task::Tidy => tidy::run(),
        Task::Fuzz { target, seconds, build } => fuzz::run(target, seconds, build),
        Task::Bench { what: None } => bench::run(),
        Task::Bench { what: Some(What::Scheduler) } => decisions::run(),
        Task::Bench { what: Some(What::Api { also, store }) } => api::run(also, store),
        Task::Bench { what: Some(What::Clusters { parts }) } => clusters::run(&parts),
        Task::Bench { what: Some(What::Hollow) } => hollow::run(),
        Task::Tools => tools::install().map(|_| ()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// Runs a command to its end.
fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

/// The cargo that runs us.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // What cargo tells us about xtask is not for what we build: ring's build script would run again, and all above it.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_"))) {
        command.env_remove(name);
    }
    command
}

/// Builds the release binary and says where it is.
fn release_binary() -> Result<PathBuf> {
    run(cargo().args(["build", "--release", "-p", "knarr"]))?;
    let output = cargo().args(["metadata", "--format-version=1", "--no-deps"]).output().context("cargo metadata")?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let target = metadata["target_directory"].as_str().context("cargo metadata names no target directory")?;
    let binary = Path::new(target).join(format!("{}-unknown-linux-gnu/release/knarr", std::env::consts::ARCH));
    ensure!(binary.exists(), "{} was not built", binary.display());
    Ok(binary)
}
