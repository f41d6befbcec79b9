//! Being an upstream component: the binary, called by its name, takes its flags and does its work,
//! beside any API server.
//!
//! ```text
//! flags → kubeconfig → port → lease → work ── SIGTERM → work drained → lease released → end
//!                                       └──── lease lost → end at once
//! ```

mod access;
mod apiserver;
mod apiserver_access;
mod controller_manager;
mod feature_gates;
mod flags;
mod scheduler;
mod scheduler_config;
mod scheduler_extenders;
mod scheduler_profiles;
mod serve;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use client::Entry;
use jiff::Timestamp;
use kube::Client;
use parking_lot::RwLock;
use reconcile::leader::{Elector, Settings, Timing};
use reconcile::{Recorder, Tasks};
use serde_json::Value;

use crate::server::{KUBERNETES, Signals, init_log};
pub use flags::go_duration;
use flags::Values;

/// The components that this binary can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    ApiServer,
    ControllerManager,
    Scheduler,
}

/// How long what is no component's work (port, events) may take to end.
const DRAIN: Duration = Duration::from_secs(2);

impl Component {
    /// The component of this name: of the binary as it was called, or of its first argument.
    pub fn named(name: &str) -> Option<Component> {
        match Path::new(name).file_name()?.to_str()? {
            "kube-apiserver" => Some(Component::ApiServer),
            "kube-controller-manager" => Some(Component::ControllerManager),
            "kube-scheduler" => Some(Component::Scheduler),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Component::ApiServer => "kube-apiserver",
            Component::ControllerManager => "kube-controller-manager",
            Component::Scheduler => "kube-scheduler",
        }
    }

    fn table(self) -> Vec<flags::Flag> {
        flags::table(match self {
            Component::ApiServer => include_str!("apiserver.flags"),
            Component::ControllerManager => include_str!("controller_manager.flags"),
            Component::Scheduler => include_str!("scheduler.flags"),
        })
    }

    fn about(self) -> &'static str {
        match self {
            Component::ApiServer => "The API server of Kubernetes: it keeps the cluster's state, checks what is written, and tells of what changes.",
            Component::ControllerManager => "The controllers of Kubernetes: each follows one part of the cluster's state and moves it towards what is wanted.",
            Component::Scheduler => "The scheduler of Kubernetes: it gives each pod a node that has room and that the pod's constraints allow.",
        }
    }

    /// Runs as this component until it is told to end.
    pub fn main(self, args: &[String]) -> ExitCode {
        let table = self.table();
        let values = match flags::parse(self.name(), table.clone(), args) {
            Ok(values) => values,
            Err(error) => {
                // Closed pipes are not worth a panic.
                let mut out = std::io::stderr();
                if !matches!(error, flags::FlagError::Arguments(..)) {
                    let _ = writeln!(out, "{}", flags::usage(self.name(), &table));
                }
                let _ = writeln!(out, "Error: {error}");
                if let flags::FlagError::Unknown(name) = &error
                    && let Some(hint) = flags::removed(name)
                {
                    let _ = writeln!(out, "Hint: upstream removed --{name}: {hint}");
                }
                return ExitCode::FAILURE;
            }
        };
        if values.bool("help") {
            let _ = write!(std::io::stdout(), "{}\n\n{}", self.about(), flags::usage(self.name(), &table));
            return ExitCode::SUCCESS;
        }
        match values.text("version").as_str() {
            "raw" => {
                println!("version.Info{{Major:\"1\", Minor:\"36\", GitVersion:{KUBERNETES:?}}}");
                return ExitCode::SUCCESS;
            }
            text if flags::go_bool(text) != Some(false) => {
                println!("Kubernetes {KUBERNETES}");
                return ExitCode::SUCCESS;
            }
            _ => {}
        }
        match self.run(values) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("Error: {error:#}");
                ExitCode::FAILURE
            }
        }
    }

    fn run(self, values: Values) -> Result<()> {
        init_log(match values.int("v") {
            ..4 => "info",
            4..6 => "info,knarr=debug,controllers=debug,scheduler=debug,reconcile=debug,client=debug",
            6..8 => "debug,rustls=info,hyper=info,h2=info,hyper_util=info,tower=info",
            _ => "debug",
        })?;
        sys::kernel::raise_open_files();
        crate::images::install_crypto();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4)))
            .enable_all()
            .build()?;
        let result = runtime.block_on(self.serve(values));
        runtime.shutdown_timeout(Duration::from_secs(1));
        result
    }

    async fn serve(self, values: Values) -> Result<()> {
        let mut signals = Signals::new()?;
        tracing::info!(version = KUBERNETES, "starting {}", self.name());
        let idle: Vec<&str> = values.without_meaning().into_iter().collect();
        if !idle.is_empty() {
            tracing::info!("these flags are accepted and have no effect here: --{}", idle.join(" --"));
        }
        feature_gates::check(&values.text("feature-gates")).map_err(anyhow::Error::msg)?;
        let work = match self {
            // It needs no lease: any number of them serve side by side.
            Component::ApiServer => return apiserver::Setup::new(&values)?.run(&values, &mut signals).await,
            Component::ControllerManager => Work::Controllers(Box::new(controller_manager::Setup::new(&values)?)),
            Component::Scheduler => Work::Scheduler(Box::new(scheduler::Setup::new(&values)?)),
        };
        if let Work::Scheduler(setup) = &work
            && let Some(path) = values.given("write-config-to")
        {
            return crate::files::write(Path::new(&path), setup.written()?.as_bytes(), 0o600);
        }
        let entry = work.entry(&values)?;
        let client = client::https(entry.https()?);
        let election = work.election(&values)?;
        let tasks = Tasks::new();
        let site = Arc::new(serve::Site {
            component: self.name(),
            access: access(&values)?,
            election: RwLock::default(),
            running: RwLock::new(BTreeSet::new()),
            config: work.configz(&values),
            started: Timestamp::now(),
            values,
        });
        serve::start(site.clone(), &tasks).await?;
        let result = lead(self.name(), &site, &client, &entry, election, &work, &tasks, &mut signals).await;
        tasks.shutdown(DRAIN).await;
        result
    }
}

/// What there is to do once this process leads.
enum Work {
    Controllers(Box<controller_manager::Setup>),
    Scheduler(Box<scheduler::Setup>),
}

impl Work {
    fn start(&self, client: &Client, entry: &Entry, tasks: &Tasks) -> Result<BTreeSet<String>> {
        match self {
            Work::Controllers(setup) => setup.start(client, entry, tasks),
            Work::Scheduler(setup) => Ok(setup.start(client, tasks)),
        }
    }

    fn entry(&self, values: &Values) -> Result<Entry> {
        let configured = match self {
            Work::Controllers(_) => None,
            Work::Scheduler(setup) => setup.kubeconfig(),
        };
        let path = configured.or_else(|| values.given("kubeconfig")).context("invalid configuration: no configuration has been provided: give --kubeconfig")?;
        let mut entry = Entry::read(Path::new(&path))?;
        if let Some(master) = values.given("master") {
            entry.server = master;
        }
        Ok(entry)
    }

    /// The election that the flags, or the configuration file, ask for.
    fn election(&self, values: &Values) -> Result<Option<Settings>> {
        let from_file = match self {
            Work::Controllers(_) => None,
            Work::Scheduler(setup) => setup.election(),
        };
        let (wanted, lock, settings) = match from_file {
            Some(from_file) => from_file,
            None => {
                let timing = Timing {
                    lease: values.duration("leader-elect-lease-duration"),
                    renew: values.duration("leader-elect-renew-deadline"),
                    retry: values.duration("leader-elect-retry-period"),
                };
                let settings = Settings {
                    namespace: values.text("leader-elect-resource-namespace"),
                    name: values.text("leader-elect-resource-name"),
                    identity: String::new(),
                    timing,
                };
                (values.bool("leader-elect"), values.text("leader-elect-resource-lock"), settings)
            }
        };
        if !wanted {
            return Ok(None);
        }
        ensure!(lock == "leases", "invalid lock-type {lock}: only leases are supported");
        settings.timing.check().map_err(anyhow::Error::msg)?;
        Ok(Some(Settings { identity: identity()?, ..settings }))
    }

    fn configz(&self, values: &Values) -> Value {
        match self {
            Work::Controllers(_) => controller_manager::configz(values),
            Work::Scheduler(setup) => setup.configz(),
        }
    }

    fn patience(&self, values: &Values) -> Duration {
        match self {
            Work::Controllers(_) => values.duration("controller-shutdown-timeout"),
            Work::Scheduler(_) => Duration::from_secs(10),
        }
    }
}

/// Works for as long as this process leads, or until a signal.
#[allow(clippy::too_many_arguments)]
async fn lead(
    component: &'static str,
    site: &serve::Site,
    client: &Client,
    entry: &Entry,
    election: Option<Settings>,
    work: &Work,
    tasks: &Tasks,
    signals: &mut Signals,
) -> Result<()> {
    let doing = Tasks::new();
    let patience = work.patience(&site.values);
    let Some(settings) = election else {
        *site.running.write() = work.start(client, entry, &doing)?;
        signals.wait().await;
        doing.shutdown(patience).await;
        return Ok(());
    };
    let recorder = Recorder::new(tasks, client.clone(), component, None);
    let name = settings.name.clone();
    let mut elector = Elector::new(client.clone(), settings, recorder);
    *site.election.write() = Some((name, elector.leadership()));
    tokio::select! {
        () = elector.acquire() => {}
        () = signals.wait() => return Ok(()),
    }
    *site.running.write() = work.start(client, entry, &doing)?;
    tokio::select! {
        () = signals.wait() => {}
        () = elector.renew() => {
            // Another one may work already: nothing is drained.
            doing.cancel();
            anyhow::bail!("leaderelection lost");
        }
    }
    tracing::info!("requested to terminate");
    if doing.shutdown(patience).await {
        elector.release().await;
    } else {
        tracing::warn!("some tasks did not end in time: the lease is left to end by itself");
    }
    Ok(())
}

/// Who this process is in elections: the host, and a number that no other process has.
fn identity() -> Result<String> {
    let host = crate::config::host_name()?;
    let mut id: [u8; 16] = rand::random();
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    let hex = hex::encode(id);
    Ok(format!("{host}_{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

fn access(values: &Values) -> Result<access::Access> {
    let client = |flag: &str| -> Result<Option<Client>> {
        let Some(path) = values.given(flag) else { return Ok(None) };
        Ok(Some(client::from_kubeconfig(Path::new(&path)).with_context(|| format!("--{flag}"))?))
    };
    let roots = match values.given("client-ca-file") {
        None => None,
        Some(path) => Some(pki::Roots::from_pem(&read(&path)?).with_context(|| format!("unable to load client CA file {path:?}"))?),
    };
    let (authentication, authorization) = (client("authentication-kubeconfig")?, client("authorization-kubeconfig")?);
    if authentication.is_none() {
        tracing::warn!("no --authentication-kubeconfig: tokens are not accepted on this port");
    }
    if authorization.is_none() {
        tracing::warn!("no --authorization-kubeconfig: on this port, all but the open paths is forbidden");
    }
    Ok(access::Access::new(values, roots, authentication, authorization))
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(PathBuf::from(path)).with_context(|| format!("cannot read {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(component: Component, args: &[&str]) -> Values {
        let args: Vec<String> = args.iter().map(|a| a.to_string()).collect();
        flags::parse(component.name(), component.table(), &args).expect("flags")
    }

    #[test]
    fn the_name_says_the_component() {
        assert_eq!(Component::named("/usr/local/bin/kube-scheduler"), Some(Component::Scheduler));
        assert_eq!(Component::named("kube-controller-manager"), Some(Component::ControllerManager));
        assert_eq!(Component::named("kube-apiserver"), Some(Component::ApiServer));
        assert_eq!(Component::named("/usr/bin/knarr"), None);
    }

    #[test]
    fn every_default_fits_its_type_and_every_flag_is_there_once() {
        for component in [Component::ApiServer, Component::ControllerManager, Component::Scheduler] {
            let table = component.table();
            let names: BTreeSet<&str> = table.iter().map(|f| f.name).collect();
            assert_eq!(names.len(), table.len(), "a flag is there twice");
            for flag in table.iter().filter(|f| !f.default.is_empty()) {
                let args = [format!("--{}={}", flag.name, flag.default)];
                flags::parse(component.name(), table.clone(), &args).unwrap_or_else(|e| panic!("{}: {e}", flag.name));
            }
        }
    }

    #[test]
    fn the_lines_of_guides_are_taken() {
        let manager = "--bind-address=0.0.0.0 --service-cluster-ip-range=10.32.0.0/24 --cluster-cidr=10.200.0.0/16 --kubeconfig=/k --authentication-kubeconfig=/k --authorization-kubeconfig=/k --leader-elect=true --cluster-signing-cert-file=/c --cluster-signing-key-file=/k --root-ca-file=/c --service-account-private-key-file=/s --use-service-account-credentials=true --v=2";
        let taken = values(Component::ControllerManager, &manager.split(' ').collect::<Vec<_>>());
        assert!(taken.bool("use-service-account-credentials") && taken.without_meaning().is_empty());
        let scheduler = "--kubeconfig=/k --authentication-kubeconfig=/k --authorization-kubeconfig=/k --bind-address=127.0.0.1 --leader-elect=true";
        assert_eq!(values(Component::Scheduler, &scheduler.split(' ').collect::<Vec<_>>()).text("bind-address"), "127.0.0.1");
    }

    #[test]
    fn identities_differ_and_name_the_host() {
        let (one, other) = (identity().expect("a host name"), identity().expect("a host name"));
        assert_ne!(one, other);
        let (host, id) = one.rsplit_once('_').expect("two parts");
        assert_eq!(host, crate::config::host_name().expect("a host name"));
        assert_eq!(id.len(), 36);
    }
}
