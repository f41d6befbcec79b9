//! Being kubeadm: the room `bootstrap` does the work; here is how the node's own process is started and ended for it, in
//! the background, or by systemd where that is the init system.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bootstrap::config::Facts;
use bootstrap::host::{Host, Lacking, Role};
use bootstrap::readdress;
use clap::{Args, Parser};

use crate::files::{self, State};
use crate::layout::Layout;
use crate::{config, down, images, preflight, server, up};

/// The unit of systemd.
const UNIT: &str = "/etc/systemd/system/knarr.service";
/// How long a start by systemd may take.
const START: Duration = Duration::from_secs(240);

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Runs as `kubeadm`; the first word is the program's name.
pub fn main(words: &[String]) -> ExitCode {
    let command = match bootstrap::cli::Kubeadm::try_parse_from(words) {
        Ok(kubeadm) => kubeadm.command,
        Err(error) => {
            let usage = error.use_stderr();
            // Closed pipes are not worth a panic.
            let _ = error.print();
            return if usage { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    match work(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

/// The same, called as a command of knarr.
pub fn run(command: bootstrap::cli::Command) -> Result<()> {
    work(command).map_err(|error| anyhow::anyhow!(error.chain()))
}

fn work(command: bootstrap::cli::Command) -> bootstrap::error::Result<()> {
    images::install_crypto();
    let machine = Machine::at(command.dirs());
    command.run(&machine)
}

/// A machine that is, or becomes, a node.
pub struct Machine {
    layout: Layout,
}

/// What is to be at another address.
#[derive(Args)]
pub struct ReaddressArgs {
    /// This machine's new address, which it must have already [default: that of the default route]
    #[arg(long, value_name = "ADDRESS", conflicts_with = "server")]
    to: Option<std::net::Ipv4Addr>,
    /// Where the control plane is now, for a node that joined it elsewhere
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Don't apply any changes; just output what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: bootstrap::cli::PlaceArgs,
}

/// Does it.
pub fn readdress(args: ReaddressArgs) -> Result<()> {
    preflight::root()?;
    images::install_crypto();
    let machine = Machine::at(args.place.dirs());
    let wishes = readdress::Wishes { to: args.to, server: args.server, dry_run: args.dry_run };
    readdress::run(&bootstrap::host::Machine { host: &machine, place: bootstrap::files::Place::default() }, &wishes).map_err(|error| anyhow::anyhow!(error.chain()))
}

impl Host for Machine {
    fn facts(&self) -> Facts {
        Facts { host: config::host_name().unwrap_or_default(), address: preflight::own_address().to_string(), version: server::KUBERNETES.into() }
    }

    fn data_dir(&self) -> &Path {
        &self.layout.data
    }

    fn run_dir(&self) -> &Path {
        &self.layout.run
    }

    fn running(&self) -> Option<u32> {
        files::holder(&self.layout.lock())
    }

    fn start(&self, role: Role, config: &Path) -> Result<(), Cause> {
        self.begin(role, config).map_err(Cause::from)
    }

    fn restart(&self, role: Role, config: &Path) -> Result<(), Cause> {
        self.halt().and_then(|()| self.begin(role, config)).map_err(Cause::from)
    }

    fn kernel(&self) -> Result<(), Lacking> {
        preflight::node_kernel().map_err(|error| {
            let modules = error.downcast_ref::<preflight::Missing>().map(|m| m.modules.clone()).unwrap_or_default();
            Lacking { text: format!("{error:#}"), modules }
        })
    }

    fn stop(&self) -> Result<(), Cause> {
        self.end().map_err(Cause::from)
    }

    fn purge(&self) -> Result<(), Cause> {
        if self.layout.data.exists() && !self.layout.marker().exists() {
            preflight::data_dir(&self.layout.data).map_err(Cause::from)?;
        }
        down::remove(&self.layout).map_err(Cause::from)
    }
}

impl Machine {
    /// The machine of this layout.
    pub fn of(layout: &Layout) -> Machine {
        Machine { layout: layout.clone() }
    }

    fn at((data, run): (PathBuf, PathBuf)) -> Machine {
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        Machine { layout: Layout::new(&absolute(data), &absolute(run)) }
    }

    /// Starts the process, and waits until its node is Ready.
    pub fn begin(&self, role: Role, config: &Path) -> Result<()> {
        preflight::data_dir(&self.layout.data)?;
        ensure!(self.running().is_none(), "a node of knarr's runs on this machine already");
        files::public_dir(&self.layout.data)?;
        preflight::mark(&self.layout)?;
        let exe = up::install(&self.layout)?;
        let role = match role {
            Role::ControlPlane => "server",
            Role::Worker => "agent",
        };
        if Path::new("/run/systemd/system").exists() {
            return self.by_systemd(role, &exe, config);
        }
        up::spawn(&self.layout, &exe, role, &["--config".into(), config.into()], false).map(|_| ())
    }

    /// A unit whose end leaves the pods alone: containers outlive the process.
    fn by_systemd(&self, role: &str, exe: &Path, config: &Path) -> Result<()> {
        let unit = format!(
            "[Unit]\nDescription=knarr: Kubernetes ({role})\nWants=network-online.target\nAfter=network-online.target\n\n\
             [Service]\nExecStart={} {role} --config {}\nKillMode=process\nDelegate=yes\nRestart=always\nRestartSec=2\nLimitNOFILE=infinity\nTasksMax=infinity\n\n\
             [Install]\nWantedBy=multi-user.target\n",
            exe.display(),
            config.display()
        );
        files::write(Path::new(UNIT), unit.as_bytes(), 0o644)?;
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", "--now", "knarr.service"])?;
        let begun = Instant::now();
        while !State::read(&self.layout.state()).is_some_and(|state| state.ready) {
            ensure!(begun.elapsed() < START, "the node was not Ready within {} s: see journalctl -u knarr", START.as_secs());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Ends the process alone.
    pub fn halt(&self) -> Result<()> {
        if Path::new(UNIT).exists() && Path::new("/run/systemd/system").exists() {
            systemctl(&["stop", "knarr.service"])?;
        }
        down::end(&self.layout).map(|_| ())
    }

    fn end(&self) -> Result<()> {
        if Path::new(UNIT).exists() {
            if Path::new("/run/systemd/system").exists() {
                systemctl(&["disable", "--now", "knarr.service"])?;
            }
            std::fs::remove_file(UNIT).with_context(|| format!("cannot remove {UNIT}"))?;
        }
        down::end(&self.layout)?;
        bootstrap::etcd::end_left(&self.layout.member());
        if self.layout.data.exists() || self.layout.run.exists() {
            down::clear(&self.layout)?;
        }
        Ok(())
    }
}

fn systemctl(arguments: &[&str]) -> Result<()> {
    let output = Command::new("systemctl").args(arguments).stdin(Stdio::null()).output().context("cannot run systemctl")?;
    if !output.status.success() {
        bail!("systemctl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
