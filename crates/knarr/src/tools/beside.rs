//! `knarr store migrate --to etcd` without `--etcd-servers`: all objects go from the data directory to a member of etcd
//! that runs beside the server from then on, so that further control planes can join.
//!
//! Of a node that `init` has made, the process is ended for as long as that takes, its settings and the cluster's are
//! changed, and it is started again; its pods go on. Each step sees what is there, so that what was cut short goes on
//! when it is asked for again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bootstrap::cluster::{Cluster, collection};
use bootstrap::files::Place;
use bootstrap::host::Role;
use k8s_openapi::api::core::v1::ConfigMap;
use reconcile::Tasks;
use serde_json::{Value, json};

use super::migrate::{self, MigrateArgs};
use super::take;
use crate::config::{Config, Flags};
use crate::etcd::{self, Beside};
use crate::kubeadm::Machine;
use crate::layout::Layout;
use crate::{engine, files, preflight};

/// How long the API server is waited for once its process was started.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn run(args: &MigrateArgs) -> Result<()> {
    preflight::root()?;
    let layout = args.at.layout()?;
    let file = settings(args, &layout);
    let flags = Flags { config: file.clone(), data_dir: Some(layout.data.clone()), etcd: true, etcd_program: args.etcd_program.clone(), ..Flags::default() };
    let config = flags.resolve()?;
    let layout = Layout::new(&config.data_dir, &config.run_dir);
    let member = config.member.as_ref().context("a member is asked for")?;
    // What is missing is better known before anything is stopped.
    bootstrap::etcd::find_program(member.program.as_deref()).await?;
    let is_there = !engine::has_embedded(&layout) && layout.member().exists() && engine::noted(&layout)?.is_some();
    ensure!(is_there || engine::has_embedded(&layout), "there is no store in {} that could be taken to etcd", layout.data.display());
    let machine = file.as_ref().filter(|_| config.kubeadm.is_some()).map(|file| (Machine::of(&layout), file));
    let ran = files::holder(&layout.lock()).is_some();
    if let Some((machine, _)) = machine.as_ref().filter(|_| ran) {
        println!("ending the node's process for a moment; its pods go on");
        machine.halt()?;
    }
    let copied = if is_there { Ok(()) } else { copy(args, &config, &layout, member).await };
    let Some((machine, file)) = machine else {
        copied?;
        println!("start the server with --etcd");
        return Ok(());
    };
    if let Err(error) = copied {
        if ran {
            machine.begin(Role::ControlPlane, file).with_context(|| format!("{error:#}; and the node's process does not start again"))?;
        }
        return Err(error);
    }
    with_etcd(file, args.etcd_program.as_deref())?;
    machine.begin(Role::ControlPlane, file).context("the objects are in etcd, and the node's process does not start")?;
    tell(&layout, config.secure_port).await.context("the objects are in etcd; the cluster's configuration does not say so yet: say the same again")?;
    println!("further control planes may join: kubeadm init phase upload-certs --upload-certs, and kubeadm token create --print-join-command --certificate-key …");
    Ok(())
}

/// The file that the server is started with: the one that is named, or that of a node that `init` has made here.
fn settings(args: &MigrateArgs, layout: &Layout) -> Option<PathBuf> {
    args.config.clone().or_else(|| {
        let path = Place::default().process();
        let text = std::fs::read_to_string(&path).ok()?;
        let settings: Value = serde_saphyr::from_str(&text).ok()?;
        (settings["data-dir"].as_str() == layout.data.to_str()).then_some(path)
    })
}

async fn copy(args: &MigrateArgs, config: &Config, layout: &Layout, member: &Beside) -> Result<()> {
    let _lock = take(layout)?;
    let tasks = Tasks::new();
    let copied = match etcd::start(config, layout, member, preflight::node_ip(config), &tasks).await {
        Ok(etcd) => migrate::into_etcd(args, layout, &etcd).await,
        Err(error) => Err(error),
    };
    ensure!(tasks.shutdown(PATIENCE).await, "etcd does not end");
    copied
}

/// Has the settings say that there is a member.
fn with_etcd(file: &Path, program: Option<&Path>) -> Result<()> {
    let said = || format!("{} cannot be changed: it should say etcd: true", file.display());
    let mut settings: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).with_context(said)?).with_context(said)?;
    settings["etcd"] = true.into();
    if let Some(program) = program {
        settings["etcd-program"] = std::path::absolute(program)?.display().to_string().into();
    }
    files::write(file, serde_saphyr::to_string(&settings).with_context(said)?.as_bytes(), 0o600)
}

/// Has the cluster's configuration say it too: further control planes read it.
async fn tell(layout: &Layout, port: u16) -> Result<()> {
    let cluster = Cluster::of(&layout.admin(), Some(&format!("https://127.0.0.1:{port}")))?;
    let healthy = async {
        while cluster.healthy().await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, healthy).await.is_err() {
        cluster.healthy().await?;
    }
    let (key, namespace, name) = ("ClusterConfiguration", "kube-system", "kubeadm-config");
    let text = cluster.config_map(namespace, name, key).await?.with_context(|| format!("there is no ConfigMap {name}"))?;
    let mut all: Value = serde_saphyr::from_str(&text).with_context(|| format!("the ConfigMap {name} cannot be read"))?;
    all["etcd"] = json!({"local": {"dataDir": layout.member().join("data").display().to_string()}});
    let patch = json!({"data": {key: serde_saphyr::to_string(&all)?}});
    cluster.patch(&format!("{}/{name}", collection::<ConfigMap>(namespace)), &patch).await?;
    Ok(())
}
