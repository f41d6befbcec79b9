//! The command line: one enum of everything that the binary can be asked for.

use std::path::PathBuf;

use anyhow::Result;
use bootstrap::cli::{CertsCommand, ConfigCommand, InitArgs, JoinArgs, KubeconfigCommand, ResetArgs, TokenCommand};
use clap::{Args, Parser, Subcommand};

use crate::config::Flags;
use crate::{agent, down, etcd, images, kubeadm, server, status, tools, up, why};

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
    /// Print the token that an agent joins with; or manage bootstrap tokens
    Token(TokenArgs),
    /// Set up a cluster's first control plane, as kubeadm does
    Init(Box<InitArgs>),
    /// Join a cluster that init has set up, as a node or as another control plane
    Join(Box<JoinArgs>),
    /// The certificates of a cluster that init has set up
    #[command(subcommand)]
    Certs(CertsCommand),
    /// Kubeconfig files for more users
    #[command(subcommand)]
    Kubeconfig(KubeconfigCommand),
    /// Configuration files of init and join
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Take another address: of this machine, or of the control plane that it has joined
    Readdress(kubeadm::ReaddressArgs),
    /// Take back what init or join has done to this machine
    Reset(Box<ResetArgs>),
    /// Images on this node
    #[command(subcommand)]
    Image(images::ImageCommand),
    /// All objects: snapshots, restoring, moving to etcd and back, rewriting under a new encryption key
    #[command(subcommand)]
    Store(tools::StoreCommand),
    /// The members of the etcd that the servers run
    #[command(subcommand)]
    Etcd(etcd::EtcdCommand),
    /// Say what keeps a pod from running or a node from Ready: pod/NAME or node/NAME
    Why(why::WhyArgs),
}

/// `token`, with or without a command.
#[derive(Args)]
pub struct TokenArgs {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Option<TokenCommand>,
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
            Command::Token(TokenArgs { place, command: None }) => agent::print_token(&place),
            Command::Token(TokenArgs { command: Some(command), .. }) => kubeadm::run(bootstrap::cli::Command::Token(command)),
            Command::Init(args) => kubeadm::run(bootstrap::cli::Command::Init(args)),
            Command::Join(args) => kubeadm::run(bootstrap::cli::Command::Join(args)),
            Command::Certs(command) => kubeadm::run(bootstrap::cli::Command::Certs(command)),
            Command::Kubeconfig(command) => kubeadm::run(bootstrap::cli::Command::Kubeconfig(command)),
            Command::Config(command) => kubeadm::run(bootstrap::cli::Command::Config(command)),
            Command::Readdress(args) => kubeadm::readdress(args),
            Command::Reset(args) => kubeadm::run(bootstrap::cli::Command::Reset(args)),
            Command::Image(command) => images::run(command),
            Command::Store(command) => tools::run(command),
            Command::Etcd(command) => etcd::run(command),
            Command::Why(args) => why::run(&args),
        }
    }
}
