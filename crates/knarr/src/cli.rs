//! The command line: one enum of everything that the binary can be asked for.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::config::Flags;
use crate::{agent, down, images, server, status, tools, up, why};

/// Kubernetes, whole, in one small binary.
#[derive(Parser)]
#[command(name = "knarr", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a one-node cluster in the background and wait until it works
    Up(Flags),
    /// The same in the foreground, for systemd
    Server(Flags),
    /// Add this machine to a cluster as a node
    Agent(agent::AgentArgs),
    /// Say what runs: components, node, versions, sizes
    Status(Place),
    /// Stop everything, pods too
    Down(down::DownArgs),
    /// Print the token that an agent joins with
    Token(Place),
    /// Images on this node
    #[command(subcommand)]
    Image(images::ImageCommand),
    /// All objects: snapshots, restoring, moving to etcd and back, rewriting under a new encryption key
    #[command(subcommand)]
    Store(tools::StoreCommand),
    /// Say what keeps a pod from running or a node from Ready: pod/NAME or node/NAME
    Why(why::WhyArgs),
}

/// Where a cluster keeps its files.
#[derive(Args, Clone)]
pub struct Place {
    /// Directory for everything that lasts
    #[arg(long, value_name = "DIR", default_value = "/var/lib/knarr")]
    pub data_dir: PathBuf,
    /// Directory for what a reboot ends
    #[arg(long, value_name = "DIR", default_value = "/run/knarr")]
    pub run_dir: PathBuf,
}

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Up(flags) => up::run(&flags),
            Command::Server(flags) => server::run(&flags),
            Command::Agent(args) => agent::run(&args),
            Command::Status(place) => status::run(&place),
            Command::Down(args) => down::run(&args),
            Command::Token(place) => agent::print_token(&place),
            Command::Image(command) => images::run(command),
            Command::Store(command) => tools::run(command),
            Command::Why(args) => why::run(&args),
        }
    }
}
