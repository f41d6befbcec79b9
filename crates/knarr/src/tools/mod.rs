//! `knarr store`: what is done to all objects at once. Through the server where one runs, else on the store itself.

mod beside;
mod migrate;
mod restore;
mod rewrite;
mod snapshot;

pub use snapshot::through as snapshot;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http::StatusCode;
use apiserver::encrypt::Transformer;
use apiserver::{EncryptionConfig, offline};
use bytes::Bytes;
use clap::{Args, Subcommand};
use http::{Method, Request};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::Value;
use store::Store;

use crate::engine::{self, Etcd, EtcdArgs};
use crate::files::{self, Lock};
use crate::layout::Layout;
use crate::{material, preflight};

/// What can be done.
#[derive(Subcommand)]
pub enum StoreCommand {
    /// Write all objects into a file, also while the server runs
    Snapshot(snapshot::SnapshotArgs),
    /// Make a store of a snapshot: in the data directory, or in etcd
    Restore(restore::RestoreArgs),
    /// Take all objects from the data directory to etcd, or back
    Migrate(migrate::MigrateArgs),
    /// Write again what is not encrypted under today's key, and count under which keys everything is
    Rewrite(rewrite::RewriteArgs),
    /// Say which engine the store has, its revision and its size
    Status(At),
    /// Read everything, or a snapshot, and say whether it is whole and under which keys it is encrypted
    Verify(snapshot::VerifyArgs),
}

/// Which store.
#[derive(Args, Clone)]
pub struct At {
    /// The cluster's directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/knarr")]
    pub data_dir: PathBuf,
    #[command(flatten)]
    pub etcd: EtcdArgs,
    /// EncryptionConfiguration of the servers that use etcd [default: the data directory's key]
    #[arg(long, value_name = "FILE")]
    pub encryption_provider_config: Option<PathBuf>,
}

/// Where the store was found.
enum Place {
    /// A server has it.
    Server(kube::Client),
    Embedded(Lock),
    Etcd(Etcd),
}

impl At {
    fn layout(&self) -> Result<Layout> {
        let data = std::path::absolute(&self.data_dir).with_context(|| format!("{} cannot be made absolute", self.data_dir.display()))?;
        Ok(Layout::new(&data, Path::new("/run/knarr")))
    }

    /// The etcd that is named, or was noted.
    fn etcd(&self) -> Result<Option<Etcd>> {
        match Etcd::of(&self.etcd)? {
            Some(etcd) => Ok(Some(etcd)),
            None => engine::noted(&self.layout()?)?.map_or(Ok(None), |args| Etcd::of(&args)),
        }
    }

    /// The encryption of the servers that use this etcd.
    fn encryption(&self) -> Result<EncryptionConfig> {
        match &self.encryption_provider_config {
            None => Ok(material::encryption(&material::encryption_keys(&self.layout()?, None)?)),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                EncryptionConfig::from_text(&text).with_context(|| format!("{} cannot be used", path.display()))
            }
        }
    }

    fn transformer(&self, etcd: Option<&Etcd>) -> Result<Transformer> {
        let transformer = Transformer::new(&self.encryption()?)?;
        Ok(match etcd {
            Some(etcd) => transformer.under(&etcd.prefix),
            None => transformer,
        })
    }

    fn place(&self) -> Result<Place> {
        if let Some(etcd) = Etcd::of(&self.etcd)? {
            return Ok(Place::Etcd(etcd));
        }
        let layout = self.layout()?;
        if let Some(pid) = files::holder(&layout.lock()) {
            ensure!(layout.admin().exists(), "an agent (process {pid}) runs in {}: the objects are on the server", layout.data.display());
            return Ok(Place::Server(client::from_kubeconfig(&layout.admin())?));
        }
        if let Some(etcd) = self.etcd()? {
            return Ok(Place::Etcd(etcd));
        }
        ensure!(engine::has_embedded(&layout), "there is no store in {}: name another --data-dir, or --etcd-servers", layout.data.display());
        Ok(Place::Embedded(files::lock(&layout.lock())?))
    }
}

/// The data directory for oneself; made if it is not there yet.
fn take(layout: &Layout) -> Result<Lock> {
    preflight::root()?;
    if let Some(pid) = files::holder(&layout.lock()) {
        bail!("a server (process {pid}) uses {}: stop it with `knarr down`, for this needs the store alone", layout.data.display());
    }
    preflight::data_dir(&layout.data)?;
    files::public_dir(&layout.data)?;
    preflight::mark(layout)?;
    files::lock(&layout.lock())
}

/// Puts a new store into the place of the one that is there, if any.
fn put_in_place(layout: &Layout) -> Result<()> {
    let (new, store, old) = (layout.new_store(), layout.store(), layout.old_store());
    let step = || {
        if store.exists() {
            if old.exists() {
                std::fs::remove_dir_all(&old)?;
            }
            std::fs::rename(&store, &old)?;
        }
        std::fs::rename(&new, &store)?;
        std::fs::File::open(&layout.data)?.sync_all()?;
        if old.exists() { std::fs::remove_dir_all(&old) } else { Ok(()) }
    };
    step().with_context(|| format!("cannot put {} in the place of {}", new.display(), store.display()))
}

/// A request to the server; what it answers comes bit by bit.
async fn ask(client: &kube::Client, method: Method, path: &str) -> Result<Body> {
    let request = Request::builder().method(method).uri(path).body(Body::from(Vec::new()))?;
    let response = client.send(request).await.context("the API server does not answer")?;
    let status = response.status();
    let body = response.into_body();
    if status.is_success() {
        return Ok(body);
    }
    let text = body.collect().await?.to_bytes();
    let message = serde_json::from_slice::<Value>(&text).ok().and_then(|v| Some(v["message"].as_str()?.to_owned()));
    Err(Refused { status, message: message.unwrap_or_else(|| String::from_utf8_lossy(&text).into_owned()) }.into())
}

/// The API server's no.
#[derive(Debug, thiserror::Error)]
#[error("the API server refuses ({status}): {message}")]
struct Refused {
    status: StatusCode,
    message: String,
}

async fn ask_value(client: &kube::Client, path: &str) -> Result<Value> {
    let bytes = ask(client, Method::GET, path).await?.collect().await?.to_bytes();
    serde_json::from_slice(&bytes).context("the API server's answer cannot be read")
}

/// The next bytes of a body.
async fn chunk(body: &mut Body) -> Result<Option<Bytes>> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Tells how far something has come, now and then.
#[derive(Default)]
struct Meter(Option<Instant>);

impl Meter {
    fn say(&mut self, what: &str, done: u64, of: u64) {
        let due = self.0.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) || done == of;
        if due && of > 0 {
            self.0 = Some(Instant::now());
            eprintln!("  {what}: {done} of {of}");
        }
    }
}

/// Does it.
pub fn run(command: StoreCommand) -> Result<()> {
    crate::images::install_crypto();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match command {
            StoreCommand::Snapshot(args) => snapshot::run(&args).await,
            StoreCommand::Restore(args) => restore::run(&args).await,
            StoreCommand::Migrate(args) => migrate::run(&args).await,
            StoreCommand::Rewrite(args) => rewrite::run(&args).await,
            StoreCommand::Status(at) => status(&at).await,
            StoreCommand::Verify(args) => snapshot::verify(&args).await,
        }
    })
}

async fn status(at: &At) -> Result<()> {
    let (engine, revision, compacted, bytes, error) = match at.place()? {
        Place::Server(client) => {
            let s = ask_value(&client, "/knarr/store/status").await?;
            let number = |name: &str| s[name].as_i64().unwrap_or_default();
            (s["engine"].as_str().unwrap_or_default().to_owned(), number("revision"), number("compacted"), number("bytes") as u64, s["error"].as_str().map(String::from))
        }
        Place::Embedded(_lock) => of(&engine::embedded(&at.layout()?)?).await?,
        Place::Etcd(etcd) => of(&etcd.open().await?).await?,
    };
    println!("engine     {engine}\nrevision   {revision}\ncompacted  {}\nsize       {:.1} MiB", if compacted > 0 { compacted.to_string() } else { "unknown".into() }, bytes as f64 / 1048576.0);
    if let Some(error) = error {
        println!("error      {error}");
    }
    Ok(())
}

async fn of(store: &Arc<dyn Store>) -> Result<(String, i64, i64, u64, Option<String>)> {
    let status = store.status().await?;
    store.close().await;
    Ok((status.engine.to_owned(), status.revision, status.compacted, status.size_bytes, status.error))
}

fn print_keys(keys: impl IntoIterator<Item = (String, u64)>) {
    for (key, count) in keys {
        println!("  {key:<28} {count:>9}");
    }
}

/// Whether all values can be read.
fn judge(unreadable: u64, examples: &[String]) -> Result<()> {
    ensure!(unreadable == 0, "{unreadable} values cannot be read with any key that is configured, {} for one", examples.first().map_or("", String::as_str));
    Ok(())
}

fn told(found: &offline::Survey) -> Result<()> {
    println!("{} values at revision {}", found.values(), found.revision);
    print_keys(found.keys.clone());
    judge(found.unreadable, &found.examples)
}
