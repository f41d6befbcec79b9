//! Load for an API server, from a process of its own: `load run` measures whatever a kubeconfig leads to, `load ceiling` is a
//! server that sends fixed bytes and nothing else, to be measured in its place. `cargo xtask bench api` uses both.
#![forbid(unsafe_code)]

mod ceiling;
mod client;
mod memory;
mod objects;
mod reads;
mod watches;
mod writes;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::client::Target;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure an API server and print one line for each figure: name, tab, value
    Run(Run),
    /// Answer every request with fixed bytes, until killed
    Ceiling {
        /// Where to listen, and where to write a kubeconfig that leads here
        address: std::net::SocketAddr,
        kubeconfig: PathBuf,
    },
}

/// How much load, and of which kinds.
#[derive(clap::Args, Clone)]
pub struct Run {
    /// Whom to measure; the server's certificate is not checked
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Pods in the namespace that is read
    #[arg(long, default_value_t = 5_000)]
    pods: usize,
    /// Connections that read and write
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Connections that watch
    #[arg(long, default_value_t = 500)]
    watchers: usize,
    /// How long each kind of load lasts
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Processes whose memory counts
    #[arg(long)]
    pid: Vec<u32>,
    /// Kinds of load, by their first words; all without
    #[arg(long)]
    only: Vec<String>,
    /// Pods and nodes to store at the end
    #[arg(long, num_args = 2, default_values_t = [0, 0])]
    store: Vec<usize>,
}

impl Run {
    fn wants(&self, kind: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|o| kind.starts_with(o.as_str()))
    }

    fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// One figure.
pub fn figure(name: &str, value: impl std::fmt::Display) {
    println!("{name}\t{value}");
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Ceiling { address, kubeconfig } => ceiling::serve(address, &kubeconfig).await,
        Task::Run(run) => measure(&run).await,
    }
}

async fn measure(run: &Run) -> Result<()> {
    let target = Target::new(&run.kubeconfig)?;
    let fixed = target.is_ceiling().await?;
    if !fixed {
        writes::prepare(&target).await?;
    }
    let empty = memory::of(&run.pid)?;
    writes::create(&target, run, fixed).await?;
    let filled = memory::of(&run.pid)?;
    if let (Some(empty), Some(filled)) = (empty, filled) {
        figure("memory for each pod stored", format!("{:.1} KB", (filled as f64 - empty as f64) / run.pods as f64 / 1e3));
    }
    if run.wants("get") {
        reads::get(&target, run).await?;
    }
    if run.wants("patch") {
        writes::patch(&target, run).await?;
    }
    reads::lists(&target, run).await?;
    if run.wants("watch") {
        watches::watch(&target, run, fixed).await?;
    }
    if let Some(bytes) = memory::of(&run.pid)? {
        figure("memory after that", format!("{:.0} MB", bytes as f64 / 1e6));
    }
    if let [pods, nodes] = run.store[..]
        && pods + nodes > 0
        && !fixed
    {
        writes::fill(&target, run, pods, nodes).await?;
    }
    Ok(())
}
